"""The engine: what it reads is what plain transformers computes for each text alone."""

import dataclasses

import pytest
import torch
from families import CORE, FAMILIES, build

import steerfn as sf
from steerfn.run import Budget, _positions, _read

GENERATOR = torch.Generator().manual_seed(3)
BEGINNING = torch.randint(3, 99, (9,), generator=GENERATOR).tolist()
ROWS = [
    *(BEGINNING + torch.randint(3, 99, (n,), generator=GENERATOR).tolist() for n in (3, 5, 2)),
    torch.randint(3, 99, (6,), generator=GENERATOR).tolist(),
    BEGINNING[:4],
]
SITES = [sf.resid_post[0], sf.resid_post[-1]]

# Those that take no 4-D mask, or position ids, or keep a state, or see fewer tokens than these texts have.
ALONE = {
    "gemma2", "gemma3_text", "gemma3", "bloom", "cohere2", "gpt_oss", "mamba", "jamba", "qwen3_next", "mpt", "lfm2",
    "falcon_h1",
}  # fmt: skip


def read(model, rows=ROWS, position="last", sites=SITES, **options):
    planned = _read.plan(model, _positions.reads(rows, position), sites, **options)
    found = {}
    for batch in _read.run(model, planned, progress=False):
        for site, state in batch.states.items():
            found.setdefault(site, torch.full((len(rows), state.shape[-1]), torch.nan))[batch.texts] = state
    return found, planned


def alone(model, ids, site, where):
    with torch.no_grad():
        _, acts = sf.capture(model, site)(torch.tensor([ids]))
    return acts[site][0, where].float()


def assert_equals_alone(model, found, position="last", tolerance=1e-5):
    for site, states in found.items():
        for ids, state in zip(ROWS, states, strict=True):
            whole = alone(model, ids, site, slice(None))
            expected = whole.mean(0) if position == "mean" else whole[-1]
            torch.testing.assert_close(state, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("family", CORE)
def test_pitfall_03_texts_that_share_a_row_are_read_as_if_alone(family):
    model = build(family)
    found, planned = read(model)
    assert any(row.shared for row in planned.rows) == (family not in ALONE)
    assert_equals_alone(model, found)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_attention_kernels_and_means(attention, position):
    model = build("llama")
    model.set_attn_implementation(attention)
    found, planned = read(model, position=position)
    assert any(row.shared for row in planned.rows)
    assert_equals_alone(model, found, position)


@pytest.mark.parametrize("family", ["paligemma", "deepseek_v32"])
def test_texts_are_not_padded_where_a_model_sees_the_padding(family):
    """Prefix attention (in transformers 5) and sparse attention."""
    if family not in FAMILIES:
        pytest.skip(f"this release of transformers has no {family}")
    model = build(family)
    found, planned = read(model)
    assert not planned.can.share
    assert_equals_alone(model, found)


@pytest.mark.filterwarnings("ignore:The `use_cache` argument is deprecated:FutureWarning")  # xlnet's own, in 4.57
def test_a_state_that_is_not_rows_by_tokens_is_refused():
    with pytest.raises(sf.ModelError, match="not .rows, tokens, width., so texts cannot be read there; use sf.capture"):
        read(build("xlnet"))


def test_what_a_model_can_is_not_asked_under_steering():
    model, v = build("llama"), sf.SteeringVector({sf.resid_post[0]: 100 * torch.ones(32)})
    with sf.steer(model, v, scope=sf.last_prompt_token):
        assert not any(row.shared for row in read(model)[1].rows)
    found, planned = read(model)
    assert any(row.shared for row in planned.rows)
    assert_equals_alone(model, found)


def test_bf16():
    model = build("llama").bfloat16()
    found, planned = read(model)
    assert any(row.shared for row in planned.rows) and found[sf.resid_post[0]].dtype == torch.float32
    apart, _ = read(model, share=False)
    for site in found:
        torch.testing.assert_close(found[site], apart[site], rtol=0.05, atol=0.05)


def test_sublayers_and_heads(tiny):
    sites = [sf.resid_pre[1], sf.resid_mid[1], sf.attn_out[1], sf.mlp_out[1], sf.head_out[1, 2]]
    assert_equals_alone(tiny, read(tiny, sites=sites)[0])


def test_a_window_shorter_than_the_text_is_not_shared():
    model = build("mistral")
    assert all(row.shared for row in read(model, ROWS[:3])[1].rows)
    model.config.sliding_window = 10  # as a configuration says it; these texts have 11 to 14 tokens
    assert not any(row.shared for row in read(model, ROWS[:3])[1].rows)


def test_an_attention_that_takes_no_mask_does_not_share(tiny, monkeypatch):
    def refuses(*args, **kwargs):
        if kwargs.get("attention_mask") is not None and kwargs["attention_mask"].ndim == 4:
            raise ValueError("no such mask here")
        return plain(*args, **kwargs)

    plain = tiny.model.forward
    monkeypatch.setattr(tiny.model, "forward", refuses)
    found, planned = read(tiny)
    assert not any(row.shared for row in planned.rows)
    assert_equals_alone(tiny, found)


def test_the_last_block_works_on_the_tokens_that_are_read_alone(tiny):
    """After its attention; the blocks before it on all."""
    seen = {}

    def counting(module, key):
        def forward(hidden, plain=module.forward):
            seen[key] = hidden.shape[-2]
            return plain(hidden)

        return forward

    for layer in (0, 1):
        for name in ("mlp.up_proj", "self_attn.o_proj", "self_attn.k_proj"):
            module = tiny.get_submodule(f"model.layers.{layer}.{name}")
            module.forward = counting(module, (layer, name))
    read(tiny, [ROWS[0]], sites=[1])
    all_ = len(ROWS[0])
    assert seen == {
        **{(0, n): all_ for n in ("mlp.up_proj", "self_attn.o_proj", "self_attn.k_proj")},
        **{(1, "mlp.up_proj"): 1, (1, "self_attn.o_proj"): 1, (1, "self_attn.k_proj"): all_},
    }


def test_a_block_that_mixes_tokens_after_attention_works_on_all(tiny):
    """The MLP's output at each token depends on the token before it: skipping tokens would be wrong."""

    def mix(module, args, out):
        return out + torch.roll(out, 1, -2) if out.shape[-2] > 1 else out

    tiny.model.layers[1].mlp.register_forward_hook(mix)
    found, planned = read(tiny, ROWS[:3], sites=[1])
    assert not planned.can.narrow and not any(row.shared for row in planned.rows)
    for ids, state in zip(ROWS[:3], found[sf.resid_post[1]], strict=True):
        torch.testing.assert_close(state, alone(tiny, ids, sf.resid_post[1], -1), rtol=1e-5, atol=1e-5)


def test_blocks_after_the_deepest_site_and_the_head_do_not_run(tiny):
    ran = []
    for name in ("model.layers.0", "model.layers.1", "model.layers.2", "lm_head"):
        tiny.get_submodule(name).register_forward_pre_hook(lambda m, a, name=name: ran.append(name))
    _read.plan(tiny, _positions.reads(ROWS, "last"), 1)  # asks once whether texts may share rows
    ran.clear()
    read(tiny, sites=[1])
    assert set(ran) == {"model.layers.0", "model.layers.1"}


def test_a_pair_runs_its_common_prompt_once(tiny):
    tokens = []
    tiny.model.embed_tokens.register_forward_pre_hook(lambda m, a: tokens.append(a[0].numel()))
    first, second = BEGINNING + [7, 8, 9], BEGINNING + [6, 8, 9]
    planned = _read.plan(tiny, _positions.reads([first, second], "answer", 1), 1)
    tokens.clear()
    list(_read.run(tiny, planned, progress=False))
    assert sum(tokens) == len(BEGINNING) + 2  # and nothing after the answers


def test_a_plan_is_repeated_bit_for_bit_cut_and_sharded(tiny):
    planned = _read.plan(tiny, _positions.reads(ROWS, "last"), 1, batch_size=1)
    first, again = (list(_read.run(tiny, planned, progress=False)) for _ in range(2))
    rest = list(_read.run(tiny, planned, start=first[1].done, progress=False))
    site = sf.resid_post[1]
    assert [b.texts for b in first] == [b.texts for b in again] and [b.texts for b in first[2:]] == [
        b.texts for b in rest
    ]
    for batch, same in [*zip(first, again, strict=True), *zip(first[2:], rest, strict=True)]:
        assert torch.equal(batch.states[site], same.states[site])
    shards = [planned.shard(i, 2) for i in range(2)]
    seen = [t for s in shards for b in _read.run(tiny, s, progress=False) for t in b.texts]
    assert sorted(seen) == list(range(len(ROWS))) and sum(s.texts for s in shards) == len(ROWS)


def test_batches_keep_to_the_budget_and_to_the_batch_size(tiny):
    rows = [[5] * n for n in (9, 8, 7, 3, 3, 2)]
    planned = dataclasses.replace(
        _read.plan(tiny, _positions.reads(rows, "last"), 1, share=False), budget=Budget(None, 18)
    )
    assert [b.texts for b in _read.run(tiny, planned, progress=False)] == [[0, 1], [2, 3], [4, 5]]
    assert [b.texts for b in _read.run(tiny, read(tiny, rows, batch_size=4, share=False)[1], progress=False)] == [
        [0, 1, 2, 3],
        [4, 5],
    ]
    for batch in _read.run(tiny, read(tiny, batch_size=2)[1], progress=False):
        assert len(batch.texts) <= 2


@pytest.mark.parametrize("scope", [sf.everywhere, sf.last_prompt_token], ids=str)
def test_inside_a_context_texts_are_whole_and_alone_and_steered(tiny, scope):
    """The second scope would reach a text cut off after the token that is read."""
    v = sf.SteeringVector({sf.resid_post[0]: torch.randn(32, generator=torch.Generator().manual_seed(0))})
    with sf.steer(tiny, v, 2.0, scope=scope):
        found, planned = read(tiny, position=1)
        assert not any(row.shared for row in planned.rows)
        for ids, state in zip(ROWS, found[sf.resid_post[2]], strict=True):
            torch.testing.assert_close(state, alone(tiny, ids, sf.resid_post[2], 1), rtol=1e-5, atol=1e-5)


def test_reading_leaves_no_trace(tiny, prompt):
    before = tiny(prompt).logits
    read(tiny)
    assert torch.equal(tiny(prompt).logits, before)
    assert not any("forward" in vars(module) for module in tiny.modules())


@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_tokens_apart_are_states_of_their_own(family, batch_size):
    """In the order of a text, whether texts share rows or not."""
    model, where = build(family), [(0, 2, 5), (1,), (3, 4), (0, 1, 2, 3, 4, 5), (2, 3)]
    reads = [
        dataclasses.replace(read, where=own, apart=True)
        for read, own in zip(_positions.reads(ROWS, "last"), where, strict=True)
    ]
    batches = list(_read.run(model, _read.plan(model, reads, SITES, batch_size=batch_size), progress=False))
    assert sorted(number for batch in batches for number in batch.texts) == [0, 0, 0, 1, 2, 2, *[3] * 6, 4, 4]
    for site in sf.layout(model).resolve(tuple(SITES)):
        for number, (ids, own) in enumerate(zip(ROWS, where, strict=True)):
            found = torch.cat([batch.states[site][torch.tensor(batch.texts) == number] for batch in batches])
            expected = alone(model, ids, site, list(own))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
