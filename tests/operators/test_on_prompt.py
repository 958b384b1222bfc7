"""Conditions on the prompt: by hand, remembered through generation, and never guessed.

The oracle in generation is the greedy loop without a cache over the pure view: it sees the whole prompt in every
forward pass and remembers nothing.
"""

import contextvars
import re
import threading
import warnings

import pytest
import torch
import transformers
from families import build
from greedy import by_hand, generate, manual_decode, padded, ragged, steered
from steering import token_ids, vector_at

import steerfn as sf
from steerfn.values._struct import replace

BY = ("last", "any", "mean")
V = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 4.0])})
W = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, -1.0])})
H = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1))
LENGTHS = [3, 6, 1, 4]
ONES = sf.add(sf.SteeringVector({sf.resid_post[0]: torch.ones(2)}), 10.0)


def refused(text, make, error=sf.SteerError):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        make()


def answer(states, by, threshold=0.2, direction=V[0]):
    """Whether a row's prompt, `[tokens, width]`, satisfies projection_above, token by token in Python."""
    unit = direction / direction.norm()
    if by == "mean":
        return float(sum(s @ unit for s in states)) / len(states) > threshold
    held = [float(s @ unit) > threshold for s in states]
    return held[-1] if by == "last" else any(held)


@pytest.mark.parametrize("by", BY)
def test_one_answer_for_the_whole_row(by):
    expected = [answer(h[:n], by) for h, n in zip(H, LENGTHS, strict=True)]
    assert len(set(expected)) == 2
    info = sf.Info.of(H, prompt_length=torch.tensor(LENGTHS))
    op = sf.when(sf.on_prompt(sf.projection_above(V, 0.2), by=by), ONES)
    out = op(H, info)
    for i, yes in enumerate(expected):
        assert torch.equal(out[i], H[i] + 10 if yes else H[i])
        alone = H[i : i + 1]
        assert torch.equal(out[i : i + 1], op(alone, sf.Info.of(alone, prompt_length=LENGTHS[i])))
    if by == "last":
        assert torch.equal(out, sf.when(sf.on_prompt(sf.projection_above(V, 0.2)), ONES)(H, info))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pitfall_03_padding_is_never_asked(by, side):
    lengths = [3, 6, 1, 4]
    mask = torch.zeros(4, 6, dtype=torch.long)
    for i, n in enumerate(lengths):
        mask[i, 6 - n if side == "left" else 0 : 6 if side == "left" else n] = 1
    expected = [answer(h[m.bool()], by) for h, m in zip(H, mask, strict=True)]
    assert len(set(expected)) == 2
    h = torch.where(mask.bool().unsqueeze(-1), H, 1e3)  # pads that would satisfy any such condition
    out = sf.when(sf.on_prompt(sf.projection_above(V, 0.2), by), ONES)(h, sf.Info.of(h, attention_mask=mask))
    assert [bool((o != x).any()) for o, x in zip(out, h, strict=True)] == expected


def test_pitfall_26_by_changes_the_result():
    ops = [sf.when(sf.on_prompt(sf.projection_above(V, 0.2), by), ONES) for by in BY]
    h = torch.randn(20, 4, 2, generator=torch.Generator().manual_seed(0))
    outs = [op(h, sf.Info.of(h, prompt_length=3)) for op in ops]
    assert all(not torch.equal(a, b) for i, a in enumerate(outs) for b in outs[:i])


def test_combinations():
    a, b = sf.on_prompt(sf.projection_above(V, 0.2)), sf.on_prompt(sf.projection_above(W, 0.0), by="any")
    token = sf.projection_above(W, 0.3)
    one = [answer(h, "last") for h in H]
    two = [answer(h, "any", 0.0, W[0]) for h in H]
    each = torch.tensor([[float(s @ W[0]) / 2**0.5 > 0.3 for s in h] for h in H])
    first, second = (torch.tensor(x).unsqueeze(-1).expand(4, 6) for x in (one, two))
    for condition, expected in [
        (a | b, first | second),
        (a & ~b, first & ~second),
        (~a, ~first),
        (a & token, first & each),
        (token | ~b, each | ~second),
        (sf.on_prompt(sf.projection_above(V, 0.2) | sf.projection_above(W, 0.0), "any") | False, None),
    ]:
        found = (sf.when(condition, ONES)(H, sf.Info.of(H)) != H).any(-1)
        if expected is None:
            expected = torch.tensor([answer(h, "any") or answer(h, "any", 0.0, W[0]) for h in H])[:, None].expand(4, 6)
        assert torch.equal(found, expected)
    assert torch.equal(sf.when(sf.on_prompt(True), ONES)(H, sf.Info.of(H)), H + 10)


@pytest.mark.parametrize("by", BY)
def test_read_at_an_earlier_site(by):
    earlier = sf.SteeringVector({sf.attn_out[0]: torch.tensor([1.0, 0.0])})
    read = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(7))
    info = replace(sf.Info.of(H, prompt_length=torch.tensor(LENGTHS)), reads={sf.attn_out[0]: read})
    op = sf.when(sf.on_prompt(sf.projection_above(earlier, 0.2), by), ONES)
    expected = [answer(r[:n], by, 0.2, earlier[sf.attn_out[0]]) for r, n in zip(read, LENGTHS, strict=True)]
    assert len(set(expected)) == 2
    assert [bool((o != x).any()) for o, x in zip(op(H, info), H, strict=True)] == expected
    assert op.reads == (sf.attn_out[0],) and op.sites == (sf.resid_post[0],)
    # In sf.rows each row reads its own rows.
    out = sf.rows([op] * 4)(H, info)
    assert [bool((o != x).any()) for o, x in zip(out, H, strict=True)] == expected


def test_refusals():
    c = sf.projection_above(V, 0.0)
    for bad in ("first", "max", None, 1):
        refused(
            f"by is 'last', 'any' or 'mean' (over the prompt's tokens), not {bad!r}.",
            lambda bad=bad: sf.on_prompt(c, bad),
        )
    text = (
        "on_prompt takes a condition on single tokens, and this one is about the whole prompt already; combine them "
        "outside, as in sf.on_prompt(a) & sf.on_prompt(b)."
    )
    refused(text, lambda: sf.on_prompt(sf.on_prompt(c)))
    refused(text, lambda: sf.on_prompt(c | ~sf.on_prompt(c, "any")))
    with pytest.raises(sf.SteerError, match="^A condition is needed, not 3 of type int; "):
        sf.on_prompt(3)


def test_a_state_on_its_own_without_the_prompt_has_no_answer():
    for by in BY:
        op = sf.when(sf.on_prompt(sf.projection_above(V, 0.0), by), ONES)
        with pytest.raises(sf.SteerError, match=re.escape("sf.on_prompt has no answer at resid_post[0]: ")):
            op(H, sf.Info.of(H, prompt_length=7))
        step = sf.operators.Tokens(torch.full((4, 1), 7), torch.full((4, 1), 6), None)
        with pytest.raises(sf.SteerError, match=re.escape("sf.on_prompt has no answer at resid_post[0]: ")):
            op(H[:, :1], sf.Info(site=sf.resid_post[0], tokens=step))


@pytest.mark.parametrize("by", BY)
def test_transforms_reach_thresholds_and_vectors(by):
    info, thresholds = sf.Info.of(H, prompt_length=3), torch.tensor([-5.0, 0.0, 0.2, 5.0])

    def steered_by(threshold, v=V):
        return sf.when(sf.on_prompt(sf.projection_above(v, threshold), by), sf.add(v))(H, info)

    together = torch.func.vmap(steered_by)(thresholds)
    for t, found in zip(thresholds, together, strict=True):
        assert torch.equal(found, steered_by(t))
    assert len({found.sum().item() for found in together}) > 2
    assert torch.func.grad(lambda t: steered_by(t).sum())(torch.tensor(0.1)) == 0  # a step function
    gradient = torch.func.grad(lambda v: steered_by(torch.tensor(0.1), v).sum())(V)
    rows = sum(answer(h[:3], by, 0.1) for h in H)
    assert torch.allclose(gradient[0], torch.full((2,), 6.0 * rows))


# Through generation.


def conditions(model):
    """Conditions on the prompt that are true of some of `token_ids` and false of others, whatever the row."""
    here, there, early = (
        vector_at(model, sf.resid_post[1], seed=1),
        vector_at(model, sf.resid_post[0], seed=2),
        vector_at(model, sf.resid_pre[0], seed=3),
    )
    return {
        "last": sf.on_prompt(sf.cosine_above(here, 0.0)),
        "any": sf.on_prompt(sf.cosine_above(here, 0.2), by="any"),
        "mean": sf.on_prompt(sf.cosine_above(here, 0.0), by="mean"),
        "last, earlier": sf.on_prompt(sf.projection_above(there, 0.0)),
        "any, earlier": sf.on_prompt(sf.cosine_above(early, 0.25), by="any"),
        "mean, earlier": sf.on_prompt(sf.projection_above(early, 0.0), by="mean"),
        "not": ~sf.on_prompt(sf.cosine_above(here, 0.0)),
        "and": sf.on_prompt(sf.cosine_above(here, 0.0)) & ~sf.on_prompt(sf.cosine_above(there, 0.3), by="any"),
        "with a gate": sf.on_prompt(sf.cosine_above(there, 0.0)) & sf.cosine_above(early, 0.0),
    }


def conditional(model, name="last", scope=sf.generated, scale=4.0):
    return sf.at(
        scope, sf.when(conditions(model)[name], sf.add(vector_at(model, sf.resid_post[1], seed=7, scale=scale)))
    )


KINDS = list(conditions(build("llama")))


@pytest.mark.parametrize("kind", KINDS)
def test_pitfall_04_cached_is_uncached(kind):
    model, ids = build("llama"), token_ids(8, 5)
    for scope in (sf.generated, sf.everywhere, sf.generated & ~sf.last_prompt_token):
        op = conditional(model, kind, scope)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
            cached, expected = steered(model, op, ids), by_hand(model, op, ids)
        assert torch.equal(cached, expected)
        assert torch.equal(steered(model, op, ids, use_cache=False), expected)
    changed = (expected != generate(model, ids)).any(-1)
    assert 0 < changed.sum() < 8, "all prompts or none satisfy the condition: nothing is tested"


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mamba", "qwen3_next", "mixtral"])
def test_other_families(family):
    model, ids = build(family), token_ids(6, 5)
    for kind in ("last", "any", "mean, earlier"):
        op = conditional(model, kind)
        found = steered(model, op, ids)
        assert torch.equal(found, by_hand(model, op, ids))
        assert torch.equal(found, steered(model, op, ids, use_cache=False))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "with a gate"])  # which asks every token, too
def test_the_answer_is_the_prompt_s_own_and_holds_for_generated_tokens(kind):
    """Rows that do not satisfy it are bit for bit unsteered; the others are steered at every generated token."""
    model, ids = build("llama"), token_ids(8, 5)
    op = conditional(model, kind)
    here, there, early = sf.resid_post[1], sf.resid_post[0], sf.resid_pre[0]
    with torch.no_grad():
        _, acts = sf.capture(model, [here, there, early])(ids)

    def cosines(site, seed):
        direction = vector_at(model, site, seed=seed)[site]
        return torch.stack([s @ direction / (s.norm(dim=-1) * direction.norm()) for s in acts[site]])

    first, second, third = cosines(here, 1), cosines(there, 2), cosines(early, 3)
    direction = vector_at(model, early, seed=3)[early]
    mean = acts[here].mean(1) @ vector_at(model, here, seed=1)[here]
    expected = {
        "last": first[:, -1] > 0,
        "any": (first > 0.2).any(-1),
        "mean": mean > 0,
        "last, earlier": second[:, -1] > 0,
        "any, earlier": (third > 0.25).any(-1),
        "mean, earlier": acts[early].mean(1) @ direction > 0,
        "not": first[:, -1] <= 0,
        "and": (first[:, -1] > 0) & ~(second > 0.3).any(-1),
    }[kind]
    plain, found = generate(model, ids), steered(model, op, ids)
    always = steered(model, sf.at(sf.generated, op.operator.operator), ids)
    assert torch.equal(found, torch.where(expected.unsqueeze(-1), always, plain))
    assert (always != plain).any(-1).all()


@pytest.mark.parametrize("kind", ["last", "any", "mean", "and"])
def test_pitfall_02_padded_rows_are_what_they_are_alone(kind):
    model = build("llama")
    ids, mask, rows = ragged((6, 3, 5, 4, 2, 6))
    op = conditional(model, kind)
    together = steered(model, op, ids, mask)
    for i, row in enumerate(rows):
        assert torch.equal(together[i : i + 1], steered(model, op, row)), i
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        with sf.steer(model, op), torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
            for i, row in enumerate(rows):
                assert torch.allclose(logits[i][mask[i].bool()], model(row).logits[0], rtol=1e-3, atol=1e-3), (side, i)


def test_rows_decide_each_for_itself():
    model = build("llama")
    ids, mask, rows = ragged((6, 3, 5, 4, 6, 6))
    shared = conditional(model, "last")
    ops = [
        shared,
        conditional(model, "any"),
        None,
        conditional(model, "mean, earlier"),
        shared,
        sf.add(shared.vectors[1]),
    ]
    together = steered(model, sf.rows(ops), ids, mask)
    for i, (op, row) in enumerate(zip(ops, rows, strict=True)):
        assert torch.equal(together[i : i + 1], steered(model, op or sf.identity, row)), i
        assert torch.equal(together[i : i + 1], by_hand(model, op or sf.identity, row)), i
    # One condition object in operators of their own, in opposite senses.
    c = conditions(model)["last"]
    v = vector_at(model, sf.resid_post[1], seed=7, scale=4.0)
    ops = [sf.at(sf.generated, sf.when(c if i % 2 else ~c, sf.add(v))) for i in range(6)]
    together = steered(model, sf.rows(ops), ids, mask)
    for i, (op, row) in enumerate(zip(ops, rows, strict=True)):
        assert torch.equal(together[i : i + 1], steered(model, op, row)), i


@pytest.mark.parametrize("kind", ["last", "any", "mean"])
@pytest.mark.parametrize("many", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams(kind, many):
    model = build("llama")
    ids, mask, rows = ragged((6, 3, 5, 4))
    op, n = conditional(model, kind), many.get("num_return_sequences", 1)
    together = steered(model, op, ids, mask, **many)
    assert torch.equal(together, steered(model, op, ids, mask, use_cache=False, **many))
    for i, row in enumerate(rows):
        assert torch.equal(together[n * i : n * (i + 1)], steered(model, op, row, **many)), i
    ops = [op, None, conditional(model, "any"), op]
    together = steered(model, sf.rows(ops), ids, mask, **many)
    for i, (each, row) in enumerate(zip(ops, rows, strict=True)):
        assert torch.equal(together[n * i : n * (i + 1)], steered(model, each or sf.identity, row, **many)), i


def test_returned_sequences_share_their_prompt_s_answer():
    model, ids = build("llama"), token_ids(4, 5)
    op, options = conditional(model), {"do_sample": True, "top_k": 20}
    torch.manual_seed(3)
    together = steered(model, op, ids, num_return_sequences=3, **options)
    torch.manual_seed(3)
    assert torch.equal(together, steered(model, op, ids.repeat_interleave(3, 0), **options))
    torch.manual_seed(3)
    assert not torch.equal(together, generate(model, ids, num_return_sequences=3, **options))


def test_static_cache_and_cache_of_an_earlier_turn():
    model = build("llama")
    ids, mask, rows = ragged((6, 3, 5, 4))
    for kind in ("last", "any", "mean"):
        op = conditional(model, kind)
        expected = steered(model, op, ids, mask)
        assert torch.equal(steered(model, op, ids, mask, cache_implementation="static"), expected)
        cache = transformers.StaticCache(config=model.config, max_cache_len=20)
        assert torch.equal(steered(model, op, ids, mask, past_key_values=cache), expected)
    ids = token_ids(1, 5)
    for seed in range(4):
        ids = token_ids(1, 5, seed=seed)
        with torch.no_grad():
            op = conditional(model)
            cache = model(ids[:, :4], use_cache=True).past_key_values
            assert torch.equal(steered(model, op, ids, past_key_values=cache), by_hand(model, op, ids))
            for kind in ("any", "mean"):  # the beginning is not to be seen
                cache = model(ids[:, :4], use_cache=True).past_key_values
                with pytest.raises(sf.SteerError, match=re.escape("sf.on_prompt has no answer at resid_post[1]: ")):
                    steered(model, conditional(model, kind), ids, past_key_values=cache)


@pytest.mark.parametrize("kind", ["last", "any", "mean", "any, earlier", "and"])
def test_chunked_prefill(kind):
    model, ids = build("llama"), token_ids(6, 7)
    op = conditional(model, kind)
    expected = by_hand(model, op, ids)
    for size in (1, 3, 6, 7):
        assert torch.equal(steered(model, op, ids, prefill_chunk_size=size), expected), size
    ops = [op, None, conditional(model, "last"), op, conditional(model, "mean"), None]
    found = steered(model, sf.rows(ops), ids, prefill_chunk_size=3)
    assert torch.equal(found, by_hand(model, sf.rows(ops), ids))
    for scope in (sf.prompt, sf.everywhere, sf.positions(1)):
        op = conditional(model, kind, scope)
        with pytest.raises(sf.SteerError, match=re.escape("sf.on_prompt has no answer at resid_post[1]: ")):
            steered(model, op, ids, prefill_chunk_size=3)
    with warnings.catch_warnings():  # nothing of the prompt in scope but its end, which is in the last chunk
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        op = conditional(model, kind, sf.last_prompt_token)
        assert torch.equal(steered(model, op, ids, prefill_chunk_size=3), by_hand(model, op, ids))


def test_speculation():
    model, ids = build("llama"), token_ids(1, 5)
    op = conditional(model, "any")
    assert torch.equal(steered(model, op, ids, assistant_model=build("llama")), by_hand(model, op, ids))


def test_manual_decoding_with_a_cache_is_refused_and_not_guessed():
    model, ids = build("llama"), token_ids(2, 5)
    for by in BY:
        op = conditional(model, by)
        for length in (None, 5):
            with sf.steer(model, op, prompt_length=length):
                with pytest.raises(sf.SteerError) as caught:
                    manual_decode(model, ids)
            assert str(caught.value) == (
                "sf.on_prompt has no answer at resid_post[1]: the operator acts on tokens of a row whose prompt was "
                "not seen in full. model.generate remembers the answer; where a prompt comes in chunks, act in the "
                "scope sf.generated; where a cache holds the beginning of the prompt, ask by='last'; in a plain "
                "forward pass give all tokens without a cache, and prompt_length=..."
            )
    # A deployment that would rather be unsteered than down is told so.
    with sf.steer(model, conditional(model), prompt_length=5, on_error="baseline") as steering:
        manual_decode(model, ids, n=3)
    assert steering.fallbacks == 2
    # Out of scope nothing is asked of the answer.
    op = conditional(model, "any", sf.prompt)
    with sf.steer(model, op, prompt_length=5):
        assert torch.equal(manual_decode(model, ids), by_hand(model, op, ids))


def test_prompt_length_in_a_plain_forward():
    model, ids = build("llama"), token_ids(8, 7)
    lengths = torch.tensor([2, 7, 4, 5, 1, 3, 6, 2])
    for by in BY:
        op = conditional(model, by)
        with sf.steer(model, op, prompt_length=lengths), torch.no_grad():
            together = model(ids).logits
        plain = model(ids).logits
        for i, n in enumerate(lengths):
            alone = sf.functional(model)(op, ids[i : i + 1], prompt_length=n).logits
            assert torch.allclose(together[i], alone[0], atol=1e-5)
            prefix = sf.functional(model)(op, ids[i : i + 1, :n]).logits  # what comes later cannot matter
            assert torch.allclose(together[i, :n], prefix[0], atol=1e-5)
        changed = [not torch.equal(a, b) for a, b in zip(together, plain, strict=True)]
        assert 0 < sum(changed) < 8
    # A prompt that goes on beyond what is passed: no answer, which matters where its operator acts.
    with pytest.raises(sf.SteerError, match=re.escape("sf.on_prompt has no answer at resid_post[1]")):
        sf.functional(model)(conditional(model, scope=sf.prompt), ids, prompt_length=9)


def test_transforms_through_a_model(tiny):
    f, ids = sf.functional(tiny), token_ids(6, 5)
    read, v = vector_at(tiny, sf.resid_post[0], seed=2), vector_at(tiny, sf.resid_post[1], seed=7)

    def logits(threshold, **options):
        op = sf.when(sf.on_prompt(sf.cosine_above(read, threshold)), sf.add(v))
        return f(op, ids, use_cache=False, **options).logits[:, -1]

    thresholds = torch.tensor([-2.0, -0.05, 0.05, 2.0])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        for options in ({}, {"prompt_length": 3}):
            together = torch.func.vmap(lambda t, options=options: logits(t, **options))(thresholds)
            for t, found in zip(thresholds, together, strict=True):
                assert torch.allclose(found, logits(t, **options), atol=1e-5)
    assert torch.func.grad(lambda t: logits(t).sum())(torch.tensor(0.05)) == 0
    gradient = torch.func.grad(
        lambda u: f(sf.when(sf.on_prompt(sf.cosine_above(read, -2.0)), sf.add(u)), ids).logits.sum()
    )
    assert gradient(v)[1].norm() > 0


def test_two_generates_in_one_context_are_independent(tiny):
    op = conditional(tiny, "any")
    batches = [token_ids(3, 5, seed=s) for s in range(4)] + [token_ids(5, 8)]
    with sf.steer(tiny, op):
        found = [generate(tiny, ids) for ids in batches]
        plain = tiny(batches[0]).logits
    for ids, each in zip(batches, found, strict=True):
        assert torch.equal(each, by_hand(tiny, op, ids))
    assert torch.equal(plain, sf.functional(tiny)(op, batches[0]).logits)


def test_nested_contexts_and_one_that_closes(tiny):
    ids = token_ids(6, 5)
    one, two = conditional(tiny, "last"), conditional(tiny, "any, earlier", scale=-3.0)
    outer = sf.steer(tiny, one)
    with outer:
        with sf.steer(tiny, two):
            both = generate(tiny, ids)
    assert torch.equal(both, by_hand(tiny, sf.chain(one, two), ids))

    class Closing(transformers.LogitsProcessor):
        """Closes the outer context between two tokens."""

        def __call__(self, input_ids, scores):
            if input_ids.shape[1] == 7:
                outer.close(quiet=True)
            return scores

    with outer, sf.steer(tiny, two):
        found = generate(tiny, ids, logits_processor=transformers.LogitsProcessorList([Closing()]))
    rest = by_hand(tiny, sf.chain(one, two), ids, n=3)
    assert torch.equal(found[:, :3], rest)
    assert not torch.equal(found, both)


def test_a_direction_that_is_trained(tiny):
    """Its operator is bound anew for every forward pass."""
    ids = token_ids(6, 5)
    v = vector_at(tiny, sf.resid_post[1], seed=7, scale=4.0)
    trained = sf.SteeringVector({sf.resid_post[1]: torch.nn.Parameter(v[1])})
    c = conditions(tiny)["last"]
    op, fixed = (sf.at(sf.generated, sf.when(c, sf.add(u))) for u in (trained, v))
    assert torch.equal(steered(tiny, op, ids), steered(tiny, fixed, ids))


def test_threads_have_their_own_answers(tiny):
    op, found = conditional(tiny, "any"), {}
    batches = [token_ids(1 + i % 3, 4 + i % 4, seed=i) for i in range(12)]
    expected = [by_hand(tiny, op, ids) for ids in batches]

    def work(i):
        found[i] = generate(tiny, batches[i])

    with sf.steer(tiny, op):
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, i)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, each in enumerate(expected):
        assert torch.equal(found[i], each)


@pytest.fixture
def fresh_dynamo():
    """What one test compiled is not there in the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


of_torch = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*", "ignore::UserWarning:torch.*"
)


@of_torch
@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["last", "mean, earlier", "and"])
def test_compiled_forward_passes(kind, tiny, fresh_dynamo):
    f, ids = sf.functional(tiny), token_ids(6, 5)
    compiled = torch.compile(f, backend="eager", fullgraph=True)
    with torch.no_grad():
        op = conditional(tiny, kind)
        found, expected = (g(op, ids, use_cache=False).logits for g in (compiled, f))
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, tiny(ids).logits, atol=1e-5)


@of_torch
@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "static"), [("last", True), ("any", False), ("mean, earlier", True)])
def test_pitfall_35_compiled_generation(kind, static, fresh_dynamo):
    """What one forward pass decided, in compiled code or not, the next graph reads; another vector compiles nothing."""
    model, ids = build("llama"), token_ids(6, 5)
    ops = [conditional(model, kind, scale=scale) for scale in (4.0, -5.0)]
    expected = [steered(model, op, ids, n=4) for op in ops]
    assert not torch.equal(expected[0], expected[1])
    graphs, options = [], {}

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if static:  # as transformers itself compiles decoding with a static cache: the prompt is read by plain code
        options["compile_config"] = transformers.CompileConfig(backend=backend, fullgraph=True, mode=None)
        options["compile_config"]._compile_all_devices = True
        options["cache_implementation"] = "static"
    else:
        model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    counts = []
    for op, tokens in zip(ops, expected, strict=True):
        assert torch.equal(steered(model, op, ids, n=4, **options), tokens)
        counts.append(len(graphs))
    assert counts[0] == counts[1] > 0


@of_torch
@pytest.mark.heavy
def test_a_compiled_pass_that_lacks_the_prompt_says_so(tiny, fresh_dynamo):
    ids, text = token_ids(2, 5), "sf.on_prompt cannot be answered at resid_post[1] in compiled code: "
    compiled = torch.compile(tiny, backend="eager", fullgraph=True)
    with torch.no_grad(), sf.steer(tiny, conditional(tiny)):
        cache = compiled(ids, use_cache=True).past_key_values
        with pytest.raises(Exception, match=re.escape(text)):
            compiled(ids[:, :1], past_key_values=cache)
