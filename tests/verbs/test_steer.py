"""`with steer(...)`: what it takes, what it refuses, what it does when steering fails."""

import logging

import pytest
import torch
from families import build
from snapshot import assert_same_bits, same_bits, unchanged
from steering import raising, sites_of, token_ids, vector, vector_at
from words import words

import steerfn as sf
from steerfn.values._fingerprint import fingerprint


def logits(model):
    with torch.no_grad():
        return model(token_ids()).logits


def under(model, *args, **options):
    with sf.steer(model, *args, **options):
        return logits(model)


def test_a_vector_means_add(tiny):
    v = vector_at(tiny, [sf.resid_post[1], sf.attn_out[2]])
    assert_same_bits(under(tiny, v), under(tiny, sf.add(v)))
    assert_same_bits(under(tiny, v, 2.5), under(tiny, sf.add(v, 2.5)))
    assert_same_bits(under(tiny, v, alpha=-2), under(tiny, sf.add(v, -2.0)))
    assert_same_bits(under(tiny, v, torch.tensor([0.0, 3.0])), under(tiny, sf.rows([None, sf.add(v, 3.0)])))
    assert not torch.allclose(under(tiny, v), under(tiny, v, 2.5))


def test_scope_is_at(tiny):
    v = vector_at(tiny, sf.resid_post[1])
    for scope in (sf.last_prompt_token, sf.positions(0, 2), sf.prompt & ~sf.positions(-1)):
        found = under(tiny, v, 2.0, scope=scope)
        assert_same_bits(found, under(tiny, sf.at(scope, sf.add(v, 2.0))))
        assert_same_bits(found, under(tiny, sf.add(v, 2.0), scope=scope))
        assert not torch.allclose(found, under(tiny, v, 2.0))


def test_negative_layers_and_ranges(tiny):
    v = vector_at(tiny, sf.resid_post[2])
    negative = sf.SteeringVector({sf.resid_post[-1]: v[sf.resid_post[2]]})
    assert_same_bits(under(tiny, negative), under(tiny, v))
    both = sf.SteeringVector({sf.resid_post[-1]: v[2], sf.resid_post[2]: v[2]})  # they meet on one site
    torch.testing.assert_close(under(tiny, both), under(tiny, 2 * v))
    stack = torch.stack([vector_at(tiny, sf.resid_post[i], seed=i)[i] for i in (0, 1)])
    ranged = sf.SteeringVector({sf.resid_post[0:2]: stack})
    assert_same_bits(under(tiny, ranged), under(tiny, sf.SteeringVector({0: stack[0], 1: stack[1]})))


def test_refuses_wrong_arguments(tiny):
    v = vector_at(tiny, sf.resid_post[1])
    for arguments, options, text in [
        ((v,), {"on_error": "ignore"}, r"^on_error is 'raise' or 'baseline', not 'ignore'\.$"),
        (
            (sf.add(v), 2.0),
            {},
            r"^alpha=2\.0 goes with a vector; an operator has its strength inside, as in sf\.add\(v, 2",
        ),
        (
            (torch.ones(32),),
            {},
            r"^steer takes a SteeringVector or an operator, not a Tensor; load a vector with sf\.load",
        ),
        ((None,), {}, "not a NoneType"),
        (([v],), {}, "not a list"),
        ((v, "2"), {}, r"^alpha is a number, a 0-d tensor or a \[batch\] tensor, not '2' of type str"),
        ((v, float("nan")), {}, r"^alpha is nan; it must be finite"),
        ((v, torch.ones(2, 2)), {}, r"^alpha is a tensor of shape \[2, 2\]"),
        ((v,), {"scope": "prompt"}, r"^A scope is needed, not 'prompt' of type str; use sf\.everywhere"),
        ((v,), {"scope": sf.outside_tool_calls}, r"call it, as in outside_tool_calls\(\.\.\.\)"),
        ((v,), {"scope": 3}, "^A scope is needed, not 3 of type int"),
    ]:
        with pytest.raises(sf.SteerError, match=text):
            sf.steer(tiny, *arguments, **options)


def test_the_context_gives_itself(tiny):
    v = vector_at(tiny, sf.resid_post[1])
    steering = sf.steer(tiny, v, 2.0)
    with steering as inside:
        assert inside is steering
        assert inside.model is tiny and inside.fallbacks == 0
        assert isinstance(inside.operator, sf.Operator)


def test_one_steering_opens_again_and_inside_itself(tiny):
    v = vector_at(tiny, sf.resid_post[1])
    steering, plain = sf.steer(tiny, v), logits(tiny)
    once, twice = under(tiny, v), under(tiny, sf.chain(sf.add(v), sf.add(v)))
    with unchanged(tiny):
        for _ in range(2):
            with steering:
                assert_same_bits(logits(tiny), once)
                with steering:
                    assert_same_bits(logits(tiny), twice)
                assert_same_bits(logits(tiny), once)
            assert_same_bits(logits(tiny), plain)
        steering.close()  # closed already


def test_a_steering_that_was_never_opened_does_nothing(tiny):
    plain = logits(tiny)
    with unchanged(tiny), pytest.warns(sf.SteerWarning, match="never opened"):
        steering = sf.steer(tiny, vector_at(tiny, sf.resid_post[1]))
        assert_same_bits(logits(tiny), plain)
        steering.close()
        del steering


@pytest.mark.parametrize("strict", [False, True])
def test_a_vector_of_another_model(strict):
    model, other = build("llama"), build("mistral")
    v = vector_at(other, sf.resid_post[1]).with_metadata(model=fingerprint(other, weights=True))
    own = v.with_metadata(model=fingerprint(model, weights=True))
    with sf.steer(model, own, strict=strict):
        expected = logits(model)
    sf.functional(model)(sf.add(own), token_ids(), strict=strict)
    if strict:
        with pytest.raises(sf.ModelError, match="Mistral"), unchanged(model), sf.steer(model, v, strict=True):
            pass  # pragma: no cover
        with pytest.raises(sf.ModelError, match="Mistral"):
            sf.functional(model)(sf.add(v), token_ids(), strict=True)
    else:
        with pytest.warns(sf.SteerWarning, match="Mistral"):
            found = under(model, v)
        assert_same_bits(found, expected)
        with pytest.warns(sf.SteerWarning, match="Mistral"):
            sf.functional(model)(sf.add(v), token_ids())


def test_on_error_baseline_when_set_up_fails(tiny, caplog):
    plain = logits(tiny)
    bad = [sf.SteeringVector({sf.resid_post[9]: torch.ones(32)}), sf.SteeringVector({sf.resid_post[1]: torch.ones(31)})]
    for v in bad:
        caplog.clear()
        with unchanged(tiny), caplog.at_level(logging.ERROR, "steerfn"):
            steering = sf.steer(tiny, v, on_error="baseline")
            for times in (1, 2):
                with steering:
                    assert_same_bits(logits(tiny), plain)
                assert steering.fallbacks == times
        first, second = [r for r in caplog.records if r.name == "steerfn"]
        assert "could not be set up; the model runs unsteered (fallback 1)" in first.getMessage()
        assert "(fallback 2)" in second.getMessage() and first.levelno == logging.ERROR
        with pytest.raises(sf.SteerError), sf.steer(tiny, v):
            pass  # pragma: no cover


def test_on_error_baseline_on_something_that_is_no_model(caplog):
    steering = sf.steer(torch.nn.Linear(2, 2), sf.SteeringVector({0: torch.ones(2)}), on_error="baseline")
    with steering:
        pass
    assert steering.fallbacks == 1 and "Linear has no transformers config" in caplog.text


def test_on_error_baseline_when_a_forward_fails(tiny, caplog):
    plain = logits(tiny)
    v, w = vector_at(tiny, sf.resid_post[1]), vector_at(tiny, sf.resid_post[0], seed=3)
    broken = raising(v, RuntimeError("no such thing"))
    with unchanged(tiny):
        with sf.steer(tiny, broken, on_error="baseline") as steering:
            assert_same_bits(logits(tiny), plain)
            assert_same_bits(logits(tiny), plain)
        assert steering.fallbacks == 2
        # The other site of the same operator, and other contexts, go on steering.
        with sf.steer(tiny, sf.chain(broken, sf.add(w)), on_error="baseline"), sf.steer(tiny, v):
            found = logits(tiny)
    assert_same_bits(found, under(tiny, v + w))
    messages = [r.getMessage() for r in caplog.records if r.name == "steerfn"]
    assert messages[0] == "steering failed at resid_post[1] and was left out there (fallback 1): no such thing"
    assert "(fallback 2)" in messages[1]
    with pytest.raises(RuntimeError, match="no such thing"), sf.steer(tiny, broken):
        logits(tiny)


def test_on_error_baseline_with_another_number_of_rows(tiny):
    rows = sf.rows([sf.add(vector_at(tiny, sf.resid_post[1]))] * 3)
    with sf.steer(tiny, rows, on_error="baseline") as steering:
        found = logits(tiny)
        tokens = tiny.generate(token_ids(), max_new_tokens=3, do_sample=False)
    assert steering.fallbacks == 4
    assert_same_bits(found, logits(tiny))
    assert torch.equal(tokens, tiny.generate(token_ids(), max_new_tokens=3, do_sample=False))
    with pytest.raises(sf.ShapeError, match=r"but the batch has 2 rows"), sf.steer(tiny, rows):
        logits(tiny)


def test_on_error_baseline_hides_no_interrupt(tiny):
    broken = raising(vector_at(tiny, sf.resid_post[1]), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), unchanged(tiny), sf.steer(tiny, broken, on_error="baseline"):
        logits(tiny)


def test_an_operator_that_changes_shape_or_dtype_is_refused(tiny):
    from steerfn.values._struct import static, struct

    @struct
    class Odd(sf.Operator):
        function: object = static()

        @property
        def sites(self):
            return (sf.resid_post[1],)

        def bind(self, site, device=None):
            return lambda hidden, info: self.function(hidden)

    for function, text in [
        (lambda h: h[:1], r"returned \[1, 6, 32\] and torch\.float32; given a hidden state of \[2, 6, 32\]"),
        (lambda h: h.double(), r"returned \[2, 6, 32\] and torch\.float64"),
        (lambda h: None, "returned NoneType"),
    ]:
        with pytest.raises(sf.ShapeError, match=text), unchanged(tiny), sf.steer(tiny, Odd(function)):
            logits(tiny)


def block_alone(model, layer, hidden):
    """A block called by hand, outside its model's forward."""
    where = torch.arange(hidden.shape[1])[None]
    with torch.no_grad():
        out = model.model.layers[layer](hidden, position_embeddings=model.model.rotary_emb(hidden, where))
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out"])
def test_a_block_called_directly_inside_a_context_is_steered(tiny, kind):
    hidden = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    plain = block_alone(tiny, 1, hidden)
    site = [s for s in sites_of(tiny, kind) if s.layer == 1][0]
    v = vector_at(tiny, site)
    with sf.steer(tiny, v):
        steered = block_alone(tiny, 1, hidden)
        assert_same_bits(block_alone(tiny, 0, hidden), block_alone(build("llama"), 0, hidden))
    assert_same_bits(block_alone(tiny, 1, hidden), plain)
    if kind == "resid_post":
        assert_same_bits(steered, plain + v[site])
    elif kind == "resid_pre":
        assert_same_bits(steered, block_alone(tiny, 1, hidden + v[site]))
    else:
        assert not torch.allclose(steered, plain)
        if kind == "mlp_out":
            torch.testing.assert_close(steered, plain + v[site])


def test_a_condition_reads_an_earlier_site_of_a_block_called_directly(tiny):
    hidden = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    plain, read = block_alone(tiny, 1, hidden), vector_at(tiny, sf.resid_pre[1], seed=2)
    v = vector_at(tiny, sf.resid_post[1])
    with sf.steer(tiny, sf.when(sf.projection_above(read, 0.0), sf.add(v))):
        steered = block_alone(tiny, 1, hidden)
    chosen = (hidden @ read[sf.resid_pre[1]] > 0)[..., None]
    assert chosen.any() and not chosen.all()
    assert_same_bits(steered, torch.where(chosen, plain + v[1], plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_pitfall_14_dtype_follows_the_hidden_state(dtype):
    model = build("llama").to(dtype)
    sites = sites_of(model)
    f = sf.functional(model)
    before = sf.capture(model, sites)(token_ids())[1]
    for i, site in enumerate(sites):
        v = vector_at(model, site, seed=i)
        delta = (1.7 * v[site].to(torch.float64)).to(dtype)
        with sf.steer(model, v, 1.7):
            out, acts = sf.capture(model, sites)(token_ids())
        assert out.logits.dtype == dtype and all(value.dtype == dtype for value in acts.values())
        if site.kind in ("resid_pre", "resid_post", "head_out"):
            nearly = (
                {"rtol": 0, "atol": 1e-6} if dtype in (torch.float32, torch.float64) else {"rtol": 1e-2, "atol": 1e-2}
            )
            torch.testing.assert_close(acts[site], before[site] + delta, **nearly)
        for op in (sf.ablate(v), sf.project(v), sf.clamp(v, 1.0), sf.rotate(v, 0.5), sf.renorm(sf.add(v))):
            assert f(op, token_ids()).logits.dtype == dtype


def test_pitfall_14_half_precision_deltas_are_computed_in_float32():
    """Ablation of a large state in fp16, whose squares overflow in fp16."""
    model = build("llama").half()
    site = sf.resid_post[1]
    v = vector_at(model, site, scale=100.0)
    acts = {}
    with sf.steer(model, v, 20.0), sf.steer(model, sf.ablate(v)):
        acts = sf.capture(model, site)(token_ids())[1]
    assert torch.isfinite(acts[site]).all()
    plain = sf.capture(model, site)(token_ids())[1][site]
    big = (plain + (20.0 * v[site]).half()).float()
    unit = v[site] / v[site].norm()
    expected = big - (big @ unit)[..., None] * unit
    torch.testing.assert_close(acts[site].float(), expected, rtol=1e-2, atol=2.0)


def test_steering_does_not_depend_on_gradients_being_on(tiny):
    v = vector_at(tiny, sf.resid_post[1])
    expected = under(tiny, v)
    with sf.steer(tiny, v):
        with torch.enable_grad():
            assert_same_bits(tiny(token_ids()).logits.detach(), expected)
        with torch.inference_mode():
            assert same_bits(tiny(token_ids()).logits, expected)
    with torch.inference_mode(), sf.steer(tiny, v):
        assert same_bits(tiny(token_ids()).logits, expected)
    assert_same_bits(under(tiny, v), expected)


def test_training_a_direction_inside_a_context():
    """A direction that requires gradients: backward and step, several times, in one open context."""
    model = build("llama")
    direction = torch.zeros(32, requires_grad=True)
    target = token_ids(2, 6, seed=9)

    def loss_of(out):
        return torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), target.flatten())

    losses, optimiser = [], torch.optim.SGD([direction], lr=0.5)
    for _ in range(3):
        with sf.steer(model, sf.SteeringVector({sf.resid_post[1]: direction})):
            loss = loss_of(model(token_ids()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_one_vector_under_gradients_runs_and_goes_backward_twice(tiny):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    v = sf.SteeringVector({sf.resid_post[1]: direction})
    with sf.steer(tiny, v):
        first = torch.autograd.grad(tiny(token_ids()).logits.sum(), v.directions[0])[0]
        second = torch.autograd.grad(tiny(token_ids()).logits.sum(), v.directions[0])[0]
    assert_same_bits(first, second)
    assert first.abs().max() > 0


def test_pitfall_44_a_site_that_no_pass_meets_warns():
    """A block that runs with images only; a site that some pass met, or that no pass had the time to meet, does not."""
    model, v = build("mllama"), vector(sf.resid_post[1], sf.resid_post[2])
    message = r"^No forward pass met resid_post\[1\], so nothing was steered there: its block was skipped or runs with"
    with torch.no_grad(), unchanged(model):
        plain = model(token_ids()).logits
        with pytest.warns(sf.SteerWarning, match=message), sf.steer(model, v):
            assert not torch.allclose(model(token_ids()).logits, plain)
        with pytest.warns(sf.SteerWarning, match=message), sf.steer(model, v):
            model.generate(token_ids(), max_new_tokens=2, do_sample=False)
        with pytest.warns(sf.SteerWarning, match=message):
            sf.functional(model)(v, token_ids())
        with sf.steer(model, v):
            pass  # no pass, nothing missed


def test_pitfall_44_a_module_that_takes_a_steered_ones_place_inside_warns(tiny):
    v, block = vector_at(tiny, sf.mlp_out[1]), tiny.model.layers[1]
    own = block.mlp
    with (
        torch.no_grad(),
        pytest.warns(sf.SteerWarning, match=r"took the place of model\.layers\.1\.mlp: what ran there"),
    ):
        with sf.steer(tiny, v):
            block.mlp = build("llama").model.layers[1].mlp
            tiny(token_ids())
    block.mlp = own


def test_a_site_that_one_of_several_passes_meets_is_met(tiny):
    """Early exit: passes that end before the site do not count, whether they return or are stopped."""
    v, kept = vector_at(tiny, sf.resid_post[2]), tiny.model.layers
    with sf.steer(tiny, v):  # the reading stops at block 0
        sf.activations(tiny, words(), ["a b"], 0, progress=False)
    with torch.no_grad(), sf.steer(tiny, v):
        tiny.model.config.num_hidden_layers = 1
        tiny(token_ids())
        tiny.model.config.num_hidden_layers = 3
        tiny(token_ids())
    assert tiny.model.layers is kept
