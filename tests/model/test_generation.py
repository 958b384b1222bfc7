"""What a forward pass belongs to, and what is read from it: foreign passes inside generate, caches, masks, prompts."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
import transformers
from families import build
from snapshot import assert_same_bits
from steering import token_ids, vector
from torch import Tensor

import steerfn as sf
from steerfn.operators import Operator
from steerfn.values._struct import static, struct

OLD = transformers.__version__.startswith("4.")
V, W = vector(sf.resid_post[1], scale=3.0), vector(sf.resid_post[0], seed=4, scale=3.0)
OPS = {
    "everywhere": sf.add(V),
    "generated": sf.at(sf.generated, sf.add(V)),
    "prompt": sf.at(sf.prompt, sf.add(W)),
    "position": sf.at(sf.positions(-1, 6), sf.add(W)),
    "on_prompt": sf.at(sf.generated, sf.when(sf.on_prompt(sf.projection_above(W, 0.0), by="any"), sf.add(V))),
}
ops = pytest.mark.parametrize("op", OPS)
caching = pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])


def generate(model, op, ids, n: Any = 5, **options):
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": n, "do_sample": False, **options}
    with quietly(), sf.steer(model, op):
        return model.generate(ids, **options)[:, ids.shape[1] :]


@contextlib.contextmanager
def quietly():
    """Few tokens do not reach every position that a scope names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        yield


def left_padded(rows):
    width = max(row.shape[1] for row in rows)
    pads = [(width - row.shape[1], 0) for row in rows]
    ids = torch.cat([torch.nn.functional.pad(row, pad) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)])
    return ids, mask


PROMPTS = [token_ids(1, n, seed) for n, seed in ((6, 1), (2, 2), (4, 3))]
NEGATIVE = [token_ids(1, n, seed) for n, seed in ((3, 4), (6, 5), (1, 6))]


def guided_by_hand(model, op, ids, negative, scale=2.0, n=5):
    """Classifier-free guidance without a cache over the pure view: each sequence with the prompt that it has."""
    f, length, negative_length = sf.functional(model), ids.shape[1], negative.shape[1]
    with torch.no_grad(), quietly():
        for _ in range(n):
            scores = f(op, ids, prompt_length=length, use_cache=False).logits[:, -1].log_softmax(-1)
            other = f(op, negative, prompt_length=negative_length, use_cache=False).logits[:, -1].log_softmax(-1)
            token = (other + scale * (scores - other)).argmax(-1, keepdim=True)
            ids, negative = torch.cat([ids, token], 1), torch.cat([negative, token], 1)
    return ids[:, length:]


@ops
@caching
def test_pitfall_41_guidance(tiny, op, cached):
    """The unconditional branch is a sequence of its own, whose prompt is the negative one; rows are as alone."""
    ids, mask = left_padded(PROMPTS)
    found = generate(tiny, OPS[op], ids, attention_mask=mask, guidance_scale=2.0, use_cache=cached)
    wanted = [guided_by_hand(tiny, OPS[op], row, row[:, -1:]) for row in PROMPTS]
    assert torch.equal(found, torch.cat(wanted))
    negative, negative_mask = left_padded(NEGATIVE)
    options = {"negative_prompt_ids": negative, "negative_prompt_attention_mask": negative_mask}
    found = generate(tiny, OPS[op], ids, attention_mask=mask, guidance_scale=2.0, use_cache=cached, **options)
    wanted = [guided_by_hand(tiny, OPS[op], *pair) for pair in zip(PROMPTS, NEGATIVE, strict=True)]
    assert torch.equal(found, torch.cat(wanted))


def test_guidance_of_several_sequences_for_each_prompt(tiny):
    """Strengths and rows are one for each prompt in the unconditional branch too."""
    ids, mask = left_padded(PROMPTS)
    options = {"attention_mask": mask, "guidance_scale": 2.0}
    for op in (sf.add(V, torch.tensor([0.0, 1.0, -2.0])), sf.rows([None, sf.add(V), sf.rotate(V, 1.0)])):
        alone = generate(tiny, op, ids, **options)
        found = generate(tiny, op, ids, do_sample=True, top_k=1, num_return_sequences=2, **options)
        assert torch.equal(found, alone.repeat_interleave(2, 0))


class Calls:
    """Calls the model with other inputs while it generates; noted: what the first call gave."""

    def __init__(self, model, kind):
        self.model, self.kind, self.first, self.cache = model, kind, None, None

    def inputs(self, ids):
        whole = {"input_ids": ids}
        fixed = {"input_ids": token_ids(ids.shape[0], 4, seed=9)}
        growing = {"input_ids": torch.cat([fixed["input_ids"], ids[:, 6:]], 1)}  # as long as the prompt at first
        with_cache = growing if self.cache is None else {"input_ids": ids[:, -1:], "past_key_values": self.cache}
        return {
            "the whole sequence": whole,
            "without a cache": whole | {"use_cache": False},
            "a fixed text": fixed,
            "one row": {"input_ids": token_ids(1, 7, seed=8)},
            "another sequence": growing | {"use_cache": False},
            "another sequence, cached": with_cache | {"use_cache": True},
        }[self.kind]

    def run(self, ids):
        given = {"input_ids": ids[:, :4]}
        if self.kind == "generate":
            out = self.model.generate(ids[:, :4], attention_mask=torch.ones_like(ids[:, :4]), max_new_tokens=3)
            logits = out
        else:
            given = self.inputs(ids)
            out = self.model(**given)
            logits = out.logits
            self.cache = out.get("past_key_values") if "cached" in self.kind else None
        if self.first is None:
            self.first = given["input_ids"], logits


class Processor(Calls, transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        self.run(input_ids)
        return scores


class Criterion(Calls, transformers.StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs: Any):
        self.run(input_ids)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


HOW = {"processor": (Processor, "logits_processor"), "criterion": (Criterion, "stopping_criteria")}


KINDS = [
    "the whole sequence",
    "without a cache",
    "a fixed text",
    "one row",
    "another sequence",
    "another sequence, cached",
    "generate",
]


@caching
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", HOW)
def test_pitfall_41_a_pass_of_others_changes_no_token(tiny, kind, how, cached):
    """And is steered as the forward pass of its own that it is."""
    ids, mask = left_padded([token_ids(1, 6, 1), token_ids(1, 3, 2)])
    for op in OPS.values():
        make, option = HOW[how]
        calls = make(tiny, kind)
        options = {"attention_mask": mask, "use_cache": cached}
        wanted = generate(tiny, op, ids, **options)
        assert torch.equal(generate(tiny, op, ids, **{option: [calls]}, **options), wanted)
        given, found = calls.first
        if kind == "generate":
            assert torch.equal(found, torch.cat([given, generate(tiny, op, given, n=3)], 1))
        else:
            with torch.no_grad(), quietly():
                assert_same_bits(found, sf.functional(tiny)(op, given).logits, kind)


@pytest.mark.parametrize("family", ["mamba", "gemma2", "qwen3_next"])
@pytest.mark.parametrize("kind", ["the whole sequence", "a fixed text", "another sequence, cached"])
def test_passes_of_others_beside_other_caches(family, kind):
    model = build(family)
    ids = token_ids(2, 6)
    if family == "mamba" and "cached" in kind:
        pytest.skip("its cache has another name")
    for op in (OPS["generated"], OPS["position"]):
        wanted = generate(model, op, ids)
        for make, option in HOW.values():
            assert torch.equal(generate(model, op, ids, **{option: [make(model, kind)]}), wanted)
    static = {"cache_implementation": "static"} if family == "gemma2" else {}
    calls = Processor(model, kind)
    assert torch.equal(generate(model, op, ids, logits_processor=[calls], **static), wanted)


def cached_loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """A decoding loop of a user's own, with the cache that generate made."""
    cache, new = kwargs["past_key_values"], input_ids
    while True:
        logits = model(input_ids=new, past_key_values=cache, use_cache=True).logits[:, -1]
        new = logits_processor(input_ids, logits).argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, new], 1)
        if bool(stopping_criteria(input_ids, None).all()):
            return input_ids


def uncached_loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    while True:
        logits = model(input_ids=input_ids, use_cache=False).logits[:, -1]
        new = logits_processor(input_ids, logits).argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, new], 1)
        if bool(stopping_criteria(input_ids, None).all()):
            return input_ids


@ops
@pytest.mark.parametrize("loop", [cached_loop, uncached_loop])
def test_a_loop_of_the_users_own_beside_passes_of_others(tiny, op, loop):
    ids = token_ids(2, 6)
    wanted = generate(tiny, OPS[op], ids)
    for kind in ("the whole sequence", "one row", "a fixed text"):
        for make, option in HOW.values():
            found = generate(tiny, OPS[op], ids, custom_generate=loop, **{option: [make(tiny, kind)]})
            assert torch.equal(found, wanted), kind


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
@caching
def test_pitfall_42_virtual_tokens(kind, cached):
    """Virtual tokens are tokens of the prompt; scopes are measured from the ends that they leave where they are."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(build("llama"), settings).eval()
    ids, mask = left_padded([token_ids(1, 6, 1), token_ids(1, 3 if kind == "PromptTuningConfig" else 6, 2)])
    block = model.base_model.model.layers[1]
    direction = V[sf.resid_post[1]]

    def by_hand(start):
        """Greedy decoding without a cache, with a hook on the last tokens of each pass."""
        now, given = ids, mask
        for step in range(5):

            def hook(module, args, out, end=step):
                state = out[0] if isinstance(out, tuple) else out
                shift = torch.zeros_like(state)
                shift[:, state.shape[1] - end + start :] = direction
                state = state + shift
                return (state, *out[1:]) if isinstance(out, tuple) else state

            handle = block.register_forward_hook(hook)
            with torch.no_grad():
                logits = model(input_ids=now, attention_mask=given, use_cache=False).logits[:, -1]
            handle.remove()
            now = torch.cat([now, logits.argmax(-1, keepdim=True)], 1)
            given = torch.nn.functional.pad(given, (0, 1), value=1)
        return now[:, 6:]

    if kind == "PrefixTuningConfig" and not cached:
        pytest.skip("peft feeds its prefix through the cache")
    for scope, start in ((sf.generated, -1), (sf.generated & ~sf.last_prompt_token, 0)):
        with sf.steer(model, V, scope=scope):
            found = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, use_cache=cached
            )
        assert torch.equal(found[:, -5:], by_hand(start)), scope


@struct
class Look(Operator):
    """Notes which tokens a pass holds."""

    seen: Any = static()

    @property
    def sites(self) -> tuple[sf.Site, ...]:
        return (sf.resid_post[0],)

    def bind(self, site: sf.Site, device: Any = None) -> Any:
        def note(hidden: Tensor, info: sf.Info) -> Tensor:
            tokens = info.tokens
            real = torch.ones_like(tokens.index, dtype=torch.bool) if tokens.real is None else tokens.real
            self.seen.append((tokens.index.masked_fill(~real, -9).tolist(), tokens.prompt_length.flatten().tolist()))
            return hidden

        return note


REAL = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
CACHES = {
    "dynamic": ("llama", lambda config: transformers.DynamicCache(config=config)),
    "static": ("llama", lambda config: transformers.StaticCache(config=config, max_cache_len=12)),
    "sliding": ("mistral_sliding", lambda config: transformers.DynamicCache(config=config)),
    "static sliding": ("mistral_sliding", lambda config: transformers.StaticCache(config=config, max_cache_len=12)),
    "alternating": ("gemma2", lambda config: transformers.DynamicCache(config=config)),
    "hybrid": ("jamba", None),
    "recurrent": ("mamba", None),
}
MASKS = ["none", "all", "as long as the cache", "of the new tokens"]


@pytest.mark.parametrize("masking", MASKS)
@pytest.mark.parametrize("kind", CACHES)
def test_pitfall_42_caches_and_masks_in_plain_forward_passes(kind, masking):
    """Three passes of 5, 2 and 1 tokens with one cache: each position is the token that it is."""
    family, make = CACHES[kind]
    if OLD and family in ("jamba", "mamba", "mistral_sliding", "gemma2"):
        pytest.skip("transformers 4 makes their caches in another way")
    if masking == "as long as the cache" and "static" not in kind:
        pytest.skip("no other cache has a length")
    if masking == "all" and kind == "recurrent":
        pytest.skip("Mamba takes a mask of the new tokens only")
    model, ids = build(family), token_ids(2, 8)
    name = "cache_params" if family == "mamba" else "past_key_values"
    cache: Any = None if make is None else make(model.config)
    real = REAL[:, :8] if masking != "none" else torch.ones_like(REAL[:, :8])
    index = (real.cumsum(-1) - 1).masked_fill(real == 0, -9)
    seen: list[Any] = []
    with torch.no_grad(), sf.steer(model, Look(seen)):
        for start, end in ((0, 5), (5, 7), (7, 8)):
            long = torch.nn.functional.pad(REAL[:, :end], (0, 12 - end))
            first = REAL[:, :end] if start == 0 else torch.ones_like(REAL[:, start:end])
            mask = {"none": None, "all": REAL[:, :end], "as long as the cache": long, "of the new tokens": first}
            out = model(ids[:, start:end], attention_mask=mask[masking], use_cache=True, **{name: cache})
            cache = out[name]
            lengths = real[:, :end].sum(-1)
            wanted = index[:, start:end]
            if masking == "of the new tokens" and start:  # what the mask leaves out counts as real
                wanted, lengths = torch.arange(start, end).expand(2, -1), torch.tensor([end, end])
            if kind == "recurrent" and masking in ("none", "of the new tokens") and start:
                continue  # its cache does not say how many tokens it has seen, and neither does anything else
            assert seen[-1] == (wanted.tolist(), lengths.tolist()), (start, end)


def test_a_static_cache_with_a_mask_of_its_length(tiny):
    """It is steered as with any other mask (it was not at all)."""
    ids = token_ids(1, 5)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 7))

    def run(op):
        cache = transformers.StaticCache(config=tiny.config, max_cache_len=12)
        return sf.functional(tiny)(op, ids, attention_mask=mask, past_key_values=cache).logits

    with torch.no_grad():
        assert torch.allclose(run(sf.add(V)), sf.functional(tiny)(sf.add(V), ids).logits, atol=1e-5)
        assert not torch.allclose(run(sf.add(V)), run(sf.identity))


@pytest.mark.skipif(OLD, reason="transformers 4 takes no new tokens alone")
@pytest.mark.parametrize("scope", ["generated", "position", "on_prompt"])
def test_pitfall_42_a_second_turn_of_new_tokens_only(tiny, scope):
    """The prompt of the second turn is all that came before: what the cache holds and the new tokens."""
    ids = token_ids(1, 7)
    later = sf.positions(slice(4, None))  # the first turn was not steered
    op = OPS[scope]
    caches = []
    with torch.no_grad():
        for _ in range(2):
            caches.append(tiny(ids[:, :4], use_cache=True).past_key_values)
    f = sf.functional(tiny)
    now = ids
    if scope == "on_prompt":
        op = sf.at(sf.generated, sf.when(sf.on_prompt(sf.projection_above(W, -99.0), by="last"), sf.add(V)))
    with torch.no_grad(), quietly():
        for _ in range(5):
            logits = f(sf.at(later, op), now, prompt_length=7, use_cache=False).logits[:, -1]
            now = torch.cat([now, logits.argmax(-1, keepdim=True)], 1)
        mask = torch.ones_like(ids)
        options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
        with sf.steer(tiny, op):
            found = tiny.generate(ids[:, 4:], past_key_values=caches[0], **options)
            again = tiny.generate(ids[:, 4:], past_key_values=caches[1], prefill_chunk_size=2, **options)
    assert torch.equal(found[:, 3:], now[:, 7:])
    assert torch.equal(again[:, 3:], now[:, 7:])


@pytest.mark.skipif(OLD, reason="transformers 4 crops by a length")
def test_pitfall_42_a_cropped_cache(tiny):
    ids = token_ids(1, 6)
    op = OPS["position"]
    cache = transformers.DynamicCache(config=tiny.config)
    with torch.no_grad(), quietly(), sf.steer(tiny, op, prompt_length=6):
        tiny(ids, past_key_values=cache, use_cache=True)
        cache.crop(-3)
        found = tiny(ids[:, 3:], past_key_values=cache, use_cache=True).logits
        assert torch.allclose(found, tiny(ids).logits[:, 3:], atol=1e-5)


@pytest.mark.skipif(OLD, reason="transformers 4 takes pads for tokens there, steered or not")
@pytest.mark.parametrize("chunk", [2, 4, 9])
def test_chunks_of_a_padded_prompt(tiny, chunk):
    """Pads are known from the first chunk on, whether the mask is given or inferred from them."""
    ids, mask = left_padded(PROMPTS)
    for name, op in OPS.items():
        wanted = generate(tiny, op, ids, attention_mask=mask)
        assert torch.equal(generate(tiny, op, ids, attention_mask=mask, prefill_chunk_size=chunk), wanted), name
        assert torch.equal(generate(tiny, op, ids, attention_mask=None, prefill_chunk_size=chunk), wanted), name


def test_a_static_cache_under_an_inferred_mask(tiny):
    ids, mask = left_padded(PROMPTS)
    for name, op in OPS.items():
        wanted = generate(tiny, op, ids, attention_mask=mask)
        found = generate(tiny, op, ids, attention_mask=None, cache_implementation="static")
        assert torch.equal(found, wanted), name


def test_strengths_are_one_for_each_prompt_under_beams(tiny):
    ids = token_ids(3, 5)
    for op in (sf.add(V, torch.linspace(-2, 2, 6)), sf.clamp(V, torch.linspace(-2, 2, 6)), sf.rows([sf.add(V)] * 6)):
        for many in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
            with pytest.raises(sf.ShapeError, match=r"6 .*6 rows \(3 prompts in 2 copies each.*one for each prompt"):
                generate(tiny, op, ids, **many)
    alphas = torch.tensor([-2.0, 0.0, 2.0])
    found = generate(tiny, sf.add(V, alphas), ids, num_beams=2)
    alone = [generate(tiny, sf.add(V, float(a)), ids[i : i + 1], num_beams=2) for i, a in enumerate(alphas)]
    assert torch.equal(found, torch.cat(alone))
