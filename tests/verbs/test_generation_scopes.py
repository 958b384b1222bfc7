"""Generation under scopes: with a cache as without, in a padded batch as alone, on every family.

Rows of one batch carry different operators, so that one `generate` per family tries them all; the oracle is a
greedy loop without a cache over the pure view, each row alone.
"""

import warnings

import pytest
import torch
import transformers
from families import CORE, build, shared
from greedy import by_hand, generate, manual_decode, padded, ragged, steered
from snapshot import assert_same_bits
from steering import sites_of, token_ids, vector_at

import steerfn as sf

families = pytest.mark.parametrize("family", CORE)
OLD = transformers.__version__.startswith("4.")

NO_PLAIN_PADDING = {"gpt2": "takes positions from the index: pass position_ids"}
READS_PADDING = {"lfm2"} if OLD else set()
"""Families whose state passes through the pads."""

SCOPES = {
    "everywhere": sf.everywhere,
    "prompt": sf.prompt,
    "generated": sf.generated,
    "last_prompt_token": sf.last_prompt_token,
    "positions(1)": sf.positions(1),
    "positions(-2)": sf.positions(-2),
    "positions(-1, 7)": sf.positions(-1, 7),
    "positions(slice(2, None, 2))": sf.positions(slice(2, None, 2)),
    "~prompt": ~sf.prompt,
    "~generated": ~sf.generated,
    "prompt & ~last_prompt_token": sf.prompt & ~sf.last_prompt_token,
    "positions(0) | generated": sf.positions(0) | sf.generated,
    "generated & ~last_prompt_token": sf.generated & ~sf.last_prompt_token,
    "~(positions(1) | positions(8))": ~(sf.positions(1) | sf.positions(8)),
}


def operators(model):
    """One operator of each kind, at the output of the first block (and what leads there), strong enough to matter."""
    v, w = (vector_at(model, sf.resid_post[0], seed=s, scale=4.0) for s in (1, 2))
    early = vector_at(model, sf.resid_pre[0], seed=3, scale=2.0)
    return {
        "add": sf.add(v),
        "add at two sites": sf.add(v + early),
        "ablate": sf.chain(sf.add(w), sf.ablate(v)),
        "project": sf.project(v + w),
        "clamp": sf.clamp(v, 8.0),
        "clamp min": sf.clamp(v, min=1.0, max=3.0),
        "rotate": sf.rotate(v, 1.0),
        "rotate in a plane": sf.rotate(v, 2.0, plane=w),
        "renorm": sf.renorm(sf.add(v)),
        "chain": sf.chain(sf.add(v, 0.5), sf.rotate(w, 0.5), sf.add(early)),
        "when": sf.when(sf.cosine_above(w, 0.0), sf.add(v)),
        "when earlier": sf.when(sf.projection_above(early, 0.0), sf.add(v)),
        "scheduled": sf.scheduled(sf.add(v, 2.0), [1.0, 0.0, 0.5, 2.0]),
        "scheduled function": sf.scheduled(sf.add(v, 2.0), lambda t: 0.8**t),
    }


def all_pairs(model):
    """Every scope with some operator, and every operator with some scope."""
    ops, scopes = list(operators(model).values()), list(SCOPES.values())
    return [sf.at(scopes[i % len(scopes)], ops[(i * k) % len(ops)]) for k in (0, 1) for i in range(len(scopes))]


@families
def test_pitfall_04_scopes_under_the_cache(family):
    model = shared(family)
    ops = all_pairs(model)
    ids = token_ids(len(ops), 5)
    with warnings.catch_warnings():
        # Six new tokens do not reach every position that some scopes name.
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        cached = steered(model, sf.rows(ops), ids, use_cache=True)
        uncached = steered(model, sf.rows(ops), ids, use_cache=False)
        reference = by_hand(model, sf.rows(ops), ids)
    assert torch.equal(uncached, reference), "uncached generate is the loop over the pure view"
    assert torch.equal(cached, uncached)
    changed = (cached != generate(model, ids)).any(-1)
    assert changed.float().mean() > 0.3, "the steering is too weak to test anything"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("scope", SCOPES)
def test_pitfall_04_every_scope_alone(family, scope):
    model = shared(family)
    ids = token_ids(2, 5)
    for op in list(operators(model).values())[:: 1 if family == "llama" else 5]:
        op = sf.at(SCOPES[scope], op)
        cached = steered(model, op, ids, n=5)
        assert torch.equal(cached, steered(model, op, ids, n=5, use_cache=False))
        assert torch.equal(cached, by_hand(model, op, ids, n=5))


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out"])
def test_scopes_at_every_kind_of_site(kind):
    for family in ("llama", "bloom", "granite", "mixtral"):
        model = shared(family)
        op = sf.add(vector_at(model, sites_of(model, kind), scale=3.0))
        ids = token_ids(2, 5)
        for scope in (sf.generated, sf.prompt & ~sf.last_prompt_token, sf.positions(-2, 6)):
            cached = steered(model, sf.at(scope, op), ids)
            assert torch.equal(cached, steered(model, sf.at(scope, op), ids, use_cache=False)), (family, scope)
            assert torch.equal(cached, by_hand(model, sf.at(scope, op), ids)), (family, scope)


@families
def test_pitfall_02_rows_of_a_padded_batch_are_what_they_are_alone(family):
    """Pitfalls 2, 5 and 28: ragged rows, no position ids given, batches of one."""
    if family in READS_PADDING:
        pytest.skip("its state passes through the pads, steered or not")
    model = shared(family)
    ids, mask, rows = ragged()
    for ops in (all_pairs(model)[:4], all_pairs(model)[3:7], all_pairs(model)[-4:]):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
            together = steered(model, sf.rows(ops), ids, mask)
            for i, (op, row) in enumerate(zip(ops, rows, strict=True)):
                assert torch.equal(together[i : i + 1], steered(model, op, row)), (i, op)


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_pitfall_05_padding_in_a_plain_forward(family, side):
    if family in READS_PADDING:
        pytest.skip("its state passes through the pads, steered or not")
    model = shared(family)
    _, _, rows = ragged()
    ids, mask = padded(rows, side)
    options = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if family in NO_PLAIN_PADDING else {}
    v = vector_at(model, sf.resid_post[0], scale=2.0)
    sites = [sf.resid_post[0], sf.resid_post[-1]]
    scopes = [s for name, s in SCOPES.items() if name not in ("~prompt", "generated & ~last_prompt_token")]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        _, plain = sf.capture(model, sites)(ids, attention_mask=mask, **options)
        for scope in scopes:
            with sf.steer(model, v, scope=scope):
                out, acts = sf.capture(model, sites)(ids, attention_mask=mask, **options)
                for i, row in enumerate(rows):
                    alone = model(row).logits[0]
                    real = out.logits[i][mask[i].bool()]
                    assert torch.allclose(real, alone, rtol=1e-3, atol=1e-3), f"{scope}, row {i}"
            pads = ~mask.bool()
            assert_same_bits(acts[sf.resid_post[0]][pads], plain[sf.resid_post[0]][pads], "the pads")


@families
def test_pads_never_change_value(family):
    model = shared(family)
    _, _, rows = ragged()
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        for kind in ("resid_pre", "resid_post"):
            site = sf.Site(kind, 0)
            v = vector_at(model, site, scale=5.0)
            op = sf.chain(sf.add(v), sf.renorm(sf.add(v)), sf.scheduled(sf.add(v), lambda t: 1.0 + t), sf.clamp(v, 3.0))
            with torch.no_grad():
                _, plain = sf.capture(model, site)(ids, attention_mask=mask)
                with sf.steer(model, op):
                    _, acts = sf.capture(model, site)(ids, attention_mask=mask)
            pads = ~mask.bool()
            assert_same_bits(acts[site][pads], plain[site][pads], side)
            assert not (acts[site][~pads] == plain[site][~pads]).all(-1).any(), "a real token was left out"


@families
def test_alpha_for_each_row(family):
    model = shared(family)
    v = vector_at(model, sf.resid_post[0], scale=2.0)
    alphas = torch.tensor([0.0, 1.0, -1.5, 3.0])
    ids = token_ids(4, 5)
    found = steered(model, sf.add(v, alphas), ids)
    assert torch.equal(found, steered(model, sf.rows([sf.add(v, float(a)) for a in alphas]), ids))
    assert torch.equal(found, by_hand(model, sf.add(v, alphas), ids))
    for row, alpha in enumerate(alphas):
        assert torch.equal(found[row : row + 1], steered(model, sf.add(v, alpha), ids[row : row + 1]))
    assert torch.equal(found[:1], generate(model, ids[:1]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "mamba", "qwen3_next", "gpt_oss"])
def test_beams_and_returned_sequences(family):
    if family in ("mamba", "qwen3_next"):
        options = {"num_return_sequences": 2, "do_sample": True, "top_k": 20}
    else:
        options = {"num_beams": 2, "num_return_sequences": 2}
    model = shared(family)
    ids, mask, rows = ragged()
    ops = [
        sf.at(sf.positions(-2), operators(model)["add"]),
        None,
        operators(model)["rotate"],
        operators(model)["scheduled"],
    ]
    torch.manual_seed(3)
    together = steered(model, sf.rows(ops), ids, mask, **options)
    if "num_beams" in options:
        for i, row in enumerate(rows):
            alone = steered(model, ops[i] or sf.identity, row, **options)
            assert torch.equal(together[2 * i : 2 * i + 2], alone), i
        assert torch.equal(together, steered(model, sf.rows(ops), ids, mask, use_cache=False, **options))
    else:
        twice = [op for op in ops for _ in range(2)]
        torch.manual_seed(3)
        expected = steered(
            model, sf.rows(twice), ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0), do_sample=True, top_k=20
        )
        assert torch.equal(together, expected)


@pytest.mark.parametrize("many", [{"num_beams": 2, "num_return_sequences": 2}, {"num_beams": 3}])
def test_beams_without_a_mask(many):
    """Which rows belong to one prompt is known from the prompts, not from their mask."""
    model = shared("llama")
    ids, n = token_ids(2, 5), many.get("num_return_sequences", 1)
    ops = [operators(model)["rotate"], operators(model)["add"]]
    together = steered(model, sf.rows(ops), ids, **many)
    for i, op in enumerate(ops):
        assert torch.equal(together[n * i : n * (i + 1)], steered(model, op, ids[i : i + 1], **many))
    v, alphas = vector_at(model, sf.resid_post[1]), torch.tensor([0.0, 3.0])
    together = steered(model, sf.add(v, alphas), ids, **many)
    for i, alpha in enumerate(alphas):
        alone = steered(model, sf.add(v, alpha), ids[i : i + 1], **many)
        assert torch.equal(together[n * i : n * (i + 1)], alone)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "mixtral"])
def test_sampling_under_a_seed(family):
    model = shared(family)
    op, ids = sf.at(sf.generated, operators(model)["add"]), token_ids(2, 5)

    def sampled(**options):
        torch.manual_seed(7)
        return steered(model, op, ids, do_sample=True, top_k=0, **options)

    first = sampled()
    assert torch.equal(first, sampled())
    assert torch.equal(first, sampled(use_cache=False))
    torch.manual_seed(7)
    given, f = ids, sf.functional(model)
    with torch.no_grad():
        for _ in range(6):
            probabilities = f(op, given, prompt_length=5, use_cache=False).logits[:, -1].softmax(-1)
            given = torch.cat([given, torch.multinomial(probabilities, 1)], 1)
    assert torch.equal(first, given[:, 5:])


def test_pitfall_29_a_scope_that_selects_nothing_warns(tiny):
    v, ids = vector_at(tiny, sf.resid_post[1]), token_ids(2, 5)
    for scope in (sf.positions(50), ~sf.everywhere, sf.positions(-9), sf.prompt & ~sf.prompt):
        with pytest.warns(sf.SteerWarning, match=r"selected no token in any forward pass") as caught:
            found = steered(tiny, sf.at(scope, sf.add(v)), ids)
        assert len(caught) == 1 and str(scope) in str(caught[0].message)
        assert torch.equal(found, generate(tiny, ids))
        with pytest.warns(sf.SteerWarning, match="selected no token"):
            sf.functional(tiny)(sf.at(scope, sf.add(v)), ids)
    # Selected late, in one row only, or in one of two forward passes: no warning (warnings are errors here).
    steered(tiny, sf.at(sf.positions(9), sf.add(v)), ids)
    steered(tiny, sf.rows([sf.at(sf.positions(5), sf.add(v)), None]), ids)
    with sf.steer(tiny, v, scope=sf.positions(4)):
        tiny(ids[:, :2])
        tiny(ids)
    # Nothing ran: nothing to warn about. A failure has its own message.
    with sf.steer(tiny, v, scope=sf.positions(50)):
        pass
    with pytest.raises(KeyError), sf.steer(tiny, v, scope=sf.positions(50)):
        tiny(ids)
        raise KeyError
    only_pads = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    with pytest.warns(sf.SteerWarning, match="selected no token"), sf.steer(tiny, v, scope=sf.positions(4)):
        tiny(ids, attention_mask=only_pads)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon", "opt", "qwen3_next", "gpt_oss"])
@pytest.mark.parametrize("scope", ["generated", "prompt", "positions(-2)", "positions(slice(2, None, 2))", "~prompt"])
def test_manual_decoding_with_a_cache(family, scope):
    model = shared(family)
    op = sf.at(SCOPES[scope], operators(model)["add"])
    ids, mask, rows = ragged()
    expected = by_hand(model, op, token_ids(2, 5))
    for length in (5, torch.tensor(5), torch.tensor([5, 5])):
        with sf.steer(model, op, prompt_length=length):
            assert torch.equal(manual_decode(model, token_ids(2, 5)), expected)
    lengths = mask.sum(-1)
    with sf.steer(model, op, prompt_length=lengths):
        together = manual_decode(model, ids, mask=mask)
    for i, row in enumerate(rows):
        assert torch.equal(together[i : i + 1], by_hand(model, op, row)), i


def test_prompt_length_of_another_batch_is_refused(tiny):
    v, ids = vector_at(tiny, sf.resid_post[1]), token_ids(2, 5)
    op, wrong = sf.at(sf.generated, sf.add(v)), torch.tensor([1, 2, 3])
    with pytest.raises(sf.ShapeError, match="prompt_length has 3 values, but the batch has 2 rows"):
        sf.functional(tiny)(op, ids, prompt_length=wrong)
    with pytest.raises(sf.ShapeError, match="prompt_length has 3 values, but the batch has 2 rows"):
        with sf.steer(tiny, op, prompt_length=wrong):
            tiny(ids)


def test_prompt_length_changes_what_a_scope_means(tiny):
    site = sf.resid_post[1]
    v, ids = vector_at(tiny, site), token_ids(2, 6)
    plain = sf.capture(tiny, site)(ids)[1][site]
    for length, scope, expected in [
        (None, sf.generated, [[5], [5]]),
        (4, sf.generated, [[3, 4, 5], [3, 4, 5]]),
        (4, ~sf.prompt, [[4, 5], [4, 5]]),
        (torch.tensor([2, 5]), sf.last_prompt_token, [[1], [4]]),
        (torch.tensor([2, 5]), sf.positions(-2), [[0], [3]]),
        (torch.tensor([2, 5]), sf.positions(slice(-2, None)), [[0, 1, 2, 3, 4, 5], [3, 4, 5]]),
        (torch.tensor([2, 5]), sf.positions(slice(None, -1)), [[0], [0, 1, 2, 3]]),
    ]:
        with sf.steer(tiny, v, scope=scope, prompt_length=length):
            found = (sf.capture(tiny, site)(ids)[1][site] != plain).any(-1)
        assert [row.nonzero().flatten().tolist() for row in found] == expected, scope


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3", "phi", "gpt_neox", "cohere", "mixtral"])
def test_static_cache(family):
    model = build(family)
    ids, mask, rows = ragged()
    ops = all_pairs(model)[4:8]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        expected = steered(model, sf.rows(ops), ids, mask)
        found = steered(model, sf.rows(ops), ids, mask, cache_implementation="static")
        cache = transformers.StaticCache(config=model.config, max_cache_len=20)
        given = steered(model, sf.rows(ops), ids, mask, past_key_values=cache)
    assert torch.equal(found, expected)
    assert torch.equal(given, expected)


@pytest.mark.parametrize("scope", ["generated", "prompt", "positions(-2)", "~prompt", "positions(-1, 7)"])
def test_other_ways_to_generate(tiny, scope):
    """A cache from an earlier turn, embeddings as the prompt, chunks of a prompt, speculation."""
    op = sf.at(SCOPES[scope], operators(tiny)["add"])
    ids = token_ids(1, 5)
    expected = by_hand(tiny, op, ids)
    if not OLD:  # 4.57 needs an eos token for this
        assert torch.equal(steered(tiny, op, ids, prompt_lookup_num_tokens=2), expected)
    assert torch.equal(steered(tiny, op, ids, assistant_model=build("llama")), expected)
    embedded = tiny.get_input_embeddings()(ids).detach()
    with sf.steer(tiny, op):
        found = tiny.generate(
            inputs_embeds=embedded, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
    assert torch.equal(found, expected)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)  # it selects tokens of one half only
        with sf.steer(tiny, op, prompt_length=5):
            cache = tiny(ids[:, :4], use_cache=True).past_key_values
        assert torch.equal(steered(tiny, op, ids, past_key_values=cache), expected)
    with sf.steer(tiny, op):
        keyword = tiny.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        inputs = tiny.generate(inputs=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert torch.equal(keyword[:, 5:], expected) and torch.equal(inputs[:, 5:], expected)


def test_chunked_prefill(tiny):
    ids = token_ids(2, 7)
    for scope in SCOPES.values():
        op = sf.at(scope, operators(tiny)["add"])
        assert torch.equal(steered(tiny, op, ids, prefill_chunk_size=3), by_hand(tiny, op, ids))


def test_generate_under_the_default_mask(tiny):
    """No mask given: transformers derives one from the pad id, and so does what is steered."""
    ids, mask, rows = ragged()
    ops = all_pairs(tiny)[2:6]
    with sf.steer(tiny, sf.rows(ops)):
        found = tiny.generate(ids, max_new_tokens=6, do_sample=False)[:, ids.shape[1] :]
    assert torch.equal(found, steered(tiny, sf.rows(ops), ids, mask))


def test_pitfall_28_one_token_one_row(tiny):
    for length in (1, 2):
        ids = token_ids(1, length)
        for op in (
            sf.at(sf.generated, operators(tiny)["add"]),
            operators(tiny)["rotate"],
            sf.rows([operators(tiny)["add"]]),
        ):
            found = steered(tiny, op, ids)
            assert torch.equal(found, by_hand(tiny, op, ids))
            assert torch.equal(steered(tiny, op, ids, n=1), found[:, :1])


def test_two_generates_in_one_context_are_independent(tiny):
    op = sf.at(sf.generated, operators(tiny)["scheduled"])
    with sf.steer(tiny, op):
        first = generate(tiny, token_ids(2, 5))
        second = generate(tiny, token_ids(3, 8, seed=4))
        plain = tiny(token_ids(2, 5)).logits
    assert torch.equal(first, by_hand(tiny, op, token_ids(2, 5)))
    assert torch.equal(second, by_hand(tiny, op, token_ids(3, 8, seed=4)))
    assert_same_bits(plain, sf.functional(tiny)(op, token_ids(2, 5)).logits)
