"""`capture`: the model's own output together with its hidden states."""

import threading

import pytest
import torch
from families import build
from snapshot import assert_same_bits, unchanged
from steering import everywhere_in, sites_of, token_ids, vector_at

import steerfn as sf


def test_returns_the_models_own_output_and_the_states(tiny):
    plain = tiny(token_ids())
    with unchanged(tiny):
        out, acts = sf.capture(tiny, [sf.resid_post[2], sf.attn_out[0], sf.head_out[1, 3]])(token_ids())
    assert type(out) is type(plain)
    assert_same_bits(out.logits, plain.logits)
    assert list(acts) == [sf.resid_post[2], sf.attn_out[0], sf.head_out[1, 3]]
    assert [tuple(value.shape) for value in acts.values()] == [(2, 6, 32), (2, 6, 32), (2, 6, 8)]
    out = sf.capture(tiny, 0)(input_ids=token_ids(), return_dict=False)[0]
    assert_same_bits(out[0], plain.logits)


def test_what_names_sites(tiny):
    every = sf.capture(tiny, sf.resid_post[:])(token_ids())[1]
    assert list(every) == [sf.resid_post[0], sf.resid_post[1], sf.resid_post[2]]
    for sites, expected in [
        (1, [1]),
        (-1, [2]),
        ([0, 2], [0, 2]),
        (range(1, 3), [1, 2]),
        (slice(0, 2), [0, 1]),
        (sf.resid_post[-2:], [1, 2]),
        ([2, -1, sf.resid_post[2]], [2]),
        ("resid_post[1]", [1]),
    ]:
        acts = sf.capture(tiny, sites)(token_ids())[1]
        assert list(acts) == [sf.resid_post[layer] for layer in expected], sites
        for site, value in acts.items():
            assert_same_bits(value, every[site])


def test_refuses_what_names_no_site(tiny):
    for sites, text in [
        ([], "^No site was given; pass for example sites=12"),
        (sf.resid_post, r"^resid_post needs a layer: write resid_post\[12\]"),
        ("residual[3]", "residual"),
        (1.5, "layer is an integer, not 1.5"),
        (None, "layer is an integer, not None"),
        (3, r"resid_post\[3\] is out of range"),
    ]:
        with pytest.raises(sf.SiteError, match=text):
            sf.capture(tiny, sites)


def test_many_sites_at_once_are_what_each_is_alone(tiny):
    sites = sites_of(tiny)
    together = sf.capture(tiny, sites)(token_ids())[1]
    assert list(together) == sites
    for site in sites:
        assert_same_bits(sf.capture(tiny, site)(token_ids())[1][site], together[site], str(site))


def test_sees_steered_values_inside_a_context(tiny):
    v, w = everywhere_in(tiny), vector_at(tiny, sf.resid_post[1], seed=5)
    sites, run = sites_of(tiny), sf.capture(tiny, sites_of(tiny))
    plain_out, plain = run(token_ids())
    with sf.steer(tiny, v):
        expected = tiny(token_ids()).logits
        out, acts = run(token_ids())
        assert_same_bits(out.logits, expected)
        with sf.steer(tiny, w):
            both = run(token_ids())[1]
        again = run(token_ids())[1]
    first = sf.resid_pre[0]
    assert_same_bits(acts[first], plain[first] + v[first])
    assert_same_bits(both[sf.resid_post[1]], acts[sf.resid_post[1]] + w[1])
    for site in sites:
        assert not torch.allclose(acts[site], plain[site]), site
        assert_same_bits(again[site], acts[site])
    out, after = run(token_ids())
    assert_same_bits(out.logits, plain_out.logits)
    for site in sites:
        assert_same_bits(after[site], plain[site])


def test_values_are_copies():
    """Falcon adds to what its attention returned, in place; writing to a capture changes nothing either."""
    for family in ("falcon", "llama", "gpt2"):
        model = build(family)
        sites = sites_of(model)
        with torch.no_grad():
            plain = model(token_ids()).logits
            out, acts = sf.capture(model, sites)(token_ids())
            kept = {site: value.clone() for site, value in acts.items()}
            for value in acts.values():
                value.zero_()
            assert_same_bits(out.logits, plain)
            out, again = sf.capture(model, sites)(token_ids())
        for site in sites:
            assert_same_bits(again[site], kept[site], f"{family} {site}")


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "mamba", "mixtral", "bloom"])
def test_pitfall_32_gradients_through_captures(family):
    """The gradients of a captured state are those of what a forward hook sees, steered or not."""
    model = build(family)
    site, block = sf.resid_post[1], model.get_submodule(sf.layout(model).blocks[1].path)
    weight, v = model.get_input_embeddings().weight, vector_at(model, sf.resid_post[0])
    for op in (sf.identity, sf.add(v), sf.ablate(v)):
        seen = []
        with sf.steer(model, op):
            acts = sf.capture(model, site)(token_ids())[1]
            handle = block.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
            model(token_ids())
            handle.remove()
        by_hook = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        (found,) = torch.autograd.grad(acts[site].square().sum(), weight)
        (expected,) = torch.autograd.grad(by_hook.square().sum(), weight)
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected)


def test_pitfall_32_gradients_of_every_site(tiny):
    sites = sites_of(tiny)
    acts = sf.capture(tiny, sites)(token_ids())[1]
    for site in sites:
        assert acts[site].requires_grad, site
        (gradient,) = torch.autograd.grad(acts[site].sum(), tiny.model.embed_tokens.weight, retain_graph=True)
        assert gradient.abs().max() > 0, site
    with torch.no_grad():
        assert not any(value.requires_grad for value in sf.capture(tiny, sites)(token_ids())[1].values())


def test_pitfall_32_gradients_of_a_direction_through_a_capture():
    """What a direction at one site does to the state at a later one: identity plus what the blocks between add."""
    model = build("llama").double()
    site, later = sf.resid_post[1], sf.resid_pre[2]
    direction = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with sf.steer(model, sf.SteeringVector({site: direction})):
        acts = sf.capture(model, [site, later])(token_ids())[1]
    for each in (site, later):
        (gradient,) = torch.autograd.grad(acts[each].sum(), direction, retain_graph=True)
        torch.testing.assert_close(gradient, torch.full((32,), 12.0, dtype=torch.float64))


def test_padding_and_cache(tiny):
    """Padded positions are in it; with a cache, the new tokens only."""
    ids = torch.cat([torch.zeros(2, 2, dtype=torch.long), token_ids(2, 4)], 1)
    mask = (torch.arange(6) >= 2).long().expand(2, 6)
    acts = sf.capture(tiny, 1)(ids, attention_mask=mask)[1]
    alone = sf.capture(tiny, 1)(ids[:, 2:])[1]
    assert acts[sf.resid_post[1]].shape == (2, 6, 32)
    torch.testing.assert_close(acts[sf.resid_post[1]][:, 2:], alone[sf.resid_post[1]], rtol=1e-4, atol=1e-4)
    whole = sf.capture(tiny, 1)(token_ids())[1][sf.resid_post[1]]
    cache = tiny(token_ids()[:, :5], use_cache=True).past_key_values
    last = sf.capture(tiny, 1)(token_ids()[:, 5:], past_key_values=cache)[1][sf.resid_post[1]]
    assert last.shape == (2, 1, 32)
    torch.testing.assert_close(last, whole[:, 5:], rtol=1e-4, atol=1e-4)


def test_one_token_one_row(tiny):
    acts = sf.capture(tiny, sites_of(tiny))(token_ids(1, 1))[1]
    assert all(value.shape[:2] == (1, 1) for value in acts.values())


def test_a_failing_forward_leaves_nothing(tiny):
    with unchanged(tiny), pytest.raises((TypeError, ValueError)):
        sf.capture(tiny, sites_of(tiny))()
    with unchanged(tiny), pytest.raises(IndexError):
        sf.capture(tiny, sites_of(tiny))(torch.tensor([[1000]]))


def test_pitfall_44_a_site_that_the_pass_does_not_meet_is_refused():
    """Mllama's cross-attention block runs with images only."""
    model = build("mllama")
    message = (
        r"^The forward pass of MllamaForConditionalGeneration did not meet resid_post\[1\], so nothing can be read"
    )
    with pytest.raises(sf.SiteError, match=message), unchanged(model):
        sf.capture(model, sf.resid_post[:])(token_ids())
    assert list(sf.capture(model, [0, 2])(token_ids())[1]) == [sf.resid_post[0], sf.resid_post[2]]


def test_captures_of_two_threads_are_their_own(tiny):
    run, start, found = sf.capture(tiny, 1), threading.Barrier(4), {}
    expected = [run(token_ids(2, 6, seed=i))[1][sf.resid_post[1]] for i in range(4)]

    def work(i):
        start.wait()
        found[i] = [run(token_ids(2, 6, seed=i))[1] for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        for acts in found[i]:
            assert_same_bits(acts[sf.resid_post[1]], expected[i])


def test_works_under_inference_mode_and_training(tiny):
    plain = sf.capture(tiny, 1)(token_ids())[1][sf.resid_post[1]].detach()
    with torch.inference_mode():
        acts = sf.capture(tiny, 1)(token_ids())[1]
    assert torch.equal(acts[sf.resid_post[1]], plain)
    tiny.train()
    with unchanged(tiny):
        sf.capture(tiny, 1)(token_ids())[1][sf.resid_post[1]].sum().backward()
    assert tiny.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
