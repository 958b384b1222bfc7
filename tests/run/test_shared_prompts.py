"""Rows of a generation sweep share their prompts, and give what a loop over the configurations gives."""

import warnings

import families
import pytest
import torch
from words import words

import steerfn as sf
from steerfn.run import _generate_many

pytestmark = pytest.mark.steady

PROMPTS = ["a b c d e", "d e f g a b", "c d", "f"]
ALPHAS = [0.0, 1.0, 4.0]
SCOPES = {
    "everywhere": None,
    "generated": sf.generated,
    "prompt": sf.prompt,
    "not the last": sf.prompt & ~sf.last_prompt_token,
    "first": sf.positions(0),
}


def vector(model, layers=(0, 1)):
    generator = torch.Generator().manual_seed(5)
    width = sf.layout(model).d_model
    return sf.SteeringVector({sf.resid_post[i]: torch.randn(width, generator=generator) for i in layers})


@pytest.fixture
def shared(monkeypatch):
    """What each batch of a sweep began with: None where it shared nothing."""
    found = []

    def noted(*given):
        found.append(prefill(*given))
        return found[-1]

    prefill = _generate_many.prefill
    monkeypatch.setattr(_generate_many, "prefill", noted)
    return found


def swept(model, prompts=PROMPTS[:3], v=None, sites=(0, 1), **options):
    v = vector(model) if v is None else v
    options = {"chat": False, "max_new_tokens": 4, "progress": False} | options
    return sf.sweep(model, words(), prompts, v, ALPHAS, sites=sites, **options).texts


def looped(model, prompts=PROMPTS[:3], scope=None, max_new_tokens=4):
    v, rows = vector(model), []
    for site in (0, 1):
        for alpha in ALPHAS:
            op = sf.add(v.select(site), alpha)
            op = op if scope is None else sf.at(scope, op)
            texts = [
                sf.generate(model, words(), prompt, op, chat=False, max_new_tokens=max_new_tokens)[0]
                for prompt in prompts
            ]
            rows.append(tuple(texts))
    return tuple(rows)


@pytest.mark.parametrize("scope", SCOPES)
def test_shared_prompts_give_the_tokens_of_a_loop(tiny, shared, scope):
    assert swept(tiny, scope=SCOPES[scope]) == looped(tiny, scope=SCOPES[scope])
    assert all(shared)


@pytest.mark.parametrize(
    "family",
    ["gpt2", "gpt_neox", "opt", "phi", "qwen2", "qwen3", "gemma", "mistral", "olmo2", "falcon_new", "granite", "bloom"],
)
def test_other_families_share_too_or_do_without(family, shared):
    model = families.build(family)
    assert swept(model) == looped(model)
    assert all(shared) or family == "bloom"  # which takes no position ids


@pytest.mark.parametrize("family", ["gemma2", "mistral_sliding", "mamba2", "jamba"])
def test_models_that_keep_other_caches_run_every_prompt(family, shared):
    model = families.build(family)
    assert swept(model) == looped(model)
    assert not any(shared)


def test_a_shared_prompt_runs_once_below_the_operators_and_a_late_scope_never_again(tiny):
    ran = [0, 0, 0]

    def count(block):
        def note(module, args, out):
            ran[block] += out.shape[0] * out.shape[1]

        return note

    for block, layer in enumerate(tiny.model.layers):
        layer.mlp.register_forward_hook(count(block))
    options = {"prompts": ["a b c d e f g"], "max_new_tokens": 1}  # 8 tokens with BOS, 7 before the last
    swept(tiny, **options)  # asks the model, once, what it can
    ran[:] = 0, 0, 0
    swept(tiny, **options)
    # The last token of 5 rows; the beginning once, or 2 rows of site 0 (in block 1) or 4 (in block 2).
    assert ran == [5 + 7, 5 + 7 + 2 * 7, 5 + 7 + 4 * 7]
    ran[:] = 0, 0, 0
    swept(tiny, scope=sf.generated, **options)
    assert ran == [5 + 7] * 3


def test_sampling_takes_the_numbers_that_it_takes_without_sharing(tiny, monkeypatch):
    options = {"do_sample": True, "seed": 3, "max_new_tokens": 6}
    found = swept(tiny, **options)
    monkeypatch.setattr(_generate_many, "prefill", lambda *_: None)
    assert found == swept(tiny, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2, "eos_token_id": 98},  # without an end transformers 4.57 fails
        {"prompts": ["a b c", PROMPTS[3]], "alone": True},
    ],
    ids=str,
)
def test_other_ways_to_generate_share_nothing(tiny, shared, options):
    if options.pop("alone", False):  # one token and no BOS: no beginning
        table = sf.sweep(
            tiny, words(bos=False), options["prompts"], vector(tiny), ALPHAS, chat=False, max_new_tokens=2,
            progress=False,
        )  # fmt: skip
        assert len(table.texts) == 3
    else:
        swept(tiny, **options)
    assert not any(shared)


def test_conditions_on_the_prompt_see_all_of_it(tiny, shared):
    v = vector(tiny)
    condition = sf.on_prompt(sf.cosine_above(v.select(0), -2.0))

    def conditional(vector, alpha):
        return sf.when(condition, sf.add(vector, alpha))

    assert swept(tiny, make=conditional, sites=[1]) == swept(tiny, sites=[1])
    assert shared[0] is None and shared[-1] is not None


def test_a_scope_within_the_beginning_selects_something_and_one_beyond_the_end_warns(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swept(tiny, scope=sf.positions(0))
    with pytest.warns(sf.SteerWarning, match="selected no token"):
        swept(tiny, scope=sf.positions(40))


def test_inside_a_context_every_prompt_runs_under_it(tiny, shared):
    with sf.steer(tiny, vector(tiny), 2.0):
        inside = swept(tiny)
    assert not any(shared)
    assert inside != swept(tiny)


def test_the_model_is_what_it_was(tiny):
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        before = tiny(ids).logits
        swept(tiny)
        assert torch.equal(before, tiny(ids).logits)
