"""Attention sinks: found on the model by norm, left out of means, and said in the metadata."""

import warnings

import numpy as np
import pytest
import torch
from families import build
from words import words

import steerfn as sf
from steerfn.run._positions import reads
from steerfn.run._read import plan

TEXTS = ["a b c", "d e f g h", "i j", "a b d e k l m", "n o p q r s t u v", "w x y"]
SITES = [sf.resid_post[0], sf.resid_post[2], sf.mlp_out[1]]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model():
    """A model that keeps a huge state at the beginning of a text, and at z wherever it is."""
    found = build("llama")
    with torch.no_grad():
        huge = 40 * torch.randn(32, generator=torch.Generator().manual_seed(1))
        for token in (words().bos_token_id, words().convert_tokens_to_ids("z")):
            found.model.embed_tokens.weight[token] = huge
    return found


def by_hand(model, text, site, out=()):
    """The mean over all tokens of a text but some, by a capture of this text alone."""
    ids = words()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        state = sf.capture(model, site)(ids)[1][site][0]
    return state[[i for i in range(len(state)) if i not in out]].mean(0)


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_pitfall_50_a_mean_leaves_the_first_token_out_where_it_is_a_sink(model, batch_size):
    found = sf.activations(model, words(), TEXTS, SITES, "mean", batch_size=batch_size, **QUIET)
    every = sf.activations(model, words(), TEXTS, SITES, "mean_all", batch_size=batch_size, **QUIET)
    for site in SITES:
        for i, text in enumerate(TEXTS):
            torch.testing.assert_close(found[site][i], by_hand(model, text, site, {0}), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(every[site][i], by_hand(model, text, site), rtol=1e-4, atol=1e-5)


def test_a_sink_in_the_middle_is_left_out_too(model):
    texts = ["a z b c", "z d e f", "g h i z"]
    found = sf.activations(model, words(), texts, 1, "mean", **QUIET)[sf.resid_post[1]]
    for i, (text, at) in enumerate(zip(texts, (2, 1, 4), strict=True)):
        torch.testing.assert_close(found[i], by_hand(model, text, sf.resid_post[1], {0, at}), rtol=1e-4, atol=1e-5)


def test_a_text_of_nothing_but_sinks_is_read_as_it_is(model):
    found = sf.activations(model, words(), ["z", "a b c d e"], 1, "mean", **QUIET)[sf.resid_post[1]]
    torch.testing.assert_close(found[0], by_hand(model, "z", sf.resid_post[1]), rtol=1e-4, atol=1e-5)


def test_without_sinks_every_token_counts(tiny):
    found, every = (sf.activations(tiny, words(), TEXTS, SITES, at, **QUIET) for at in ("mean", "mean_all"))
    assert all(torch.equal(found[site], every[site]) for site in SITES)
    v = sf.mean_difference(tiny, words(), TEXTS[:3], TEXTS[3:], 1, position="mean", **QUIET)
    assert v.metadata["sinks"]["first_token"] is False and v.metadata["sinks"]["tokens"] == []
    assert v.metadata["sinks"]["norm_over_median"] < 5
    assert "sinks" not in sf.mean_difference(tiny, words(), TEXTS[:3], TEXTS[3:], 1, **QUIET).metadata


def test_what_was_left_out_is_in_the_metadata(model):
    v = sf.mean_difference(model, words(), ["a z b", "c d e z f"], ["g h z", "i j k"], 1, position="mean", **QUIET)
    sinks = v.metadata["sinks"]
    assert sinks["first_token"] is True and sinks["tokens"] == ["<bos>", "z"]
    assert sinks["norm_over_median"] > 5 and sf.Site.parse(sinks["site"]).kind == "resid_post"


def test_a_vector_along_the_sink_is_one_of_lengths_and_warns(model):
    long, short = ["a b c d e f g h", "d e f g h i j k"], ["l m", "n o"]
    with pytest.warns(
        sf.SteerWarning, match=r"at resid_post\[1\] lies along the state of .* attention sink \(cosine -"
    ):
        lengths = sf.mean_difference(model, words(), long, short, 1, position="mean_all", **QUIET)
    first = sf.capture(model, 1)(words()("a", return_tensors="pt")["input_ids"])[1][sf.resid_post[1]][0, 0].detach()
    assert float(torch.cosine_similarity(lengths[1], first, dim=0)) < -0.9
    v = sf.mean_difference(model, words(), long, short, 1, position="mean", **QUIET)  # and nothing is warned of
    assert abs(float(torch.cosine_similarity(v[1], first, dim=0))) < 0.5


PROMPTS = ["a z b c", "d e f", "z g h i j k", "l m", "z"]
"""With a sink in the middle, at both ends, and nothing but sinks."""


def known(model):
    """A direction whose vector says what the sinks are, and its projection of the mean of each prompt, offline."""
    site = sf.resid_post[1]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    ids = [words().bos_token_id, words().convert_tokens_to_ids("z")]
    v = sf.SteeringVector({site: direction}, {"sinks": {"first_token": True, "token_ids": ids}})
    states = sf.activations(model, words(), PROMPTS, site, "mean", **QUIET)[site]
    return v, (states @ v.unit()[site]).tolist()


def test_pitfall_50_what_a_condition_reads_of_a_prompt_is_what_discovery_reads(model):
    """The same numbers: thresholds just below and just above what is read offline part what happens."""
    v, numbers = known(model)
    push = sf.SteeringVector({sf.resid_post[1]: 300 * torch.randn(32, generator=torch.Generator().manual_seed(5))})
    assert len({round(number, 2) for number in numbers}) == len(numbers)

    def ops(off):
        return [
            sf.at(sf.generated, sf.when(sf.on_prompt(sf.projection_above(v, n + off), "mean"), sf.add(push)))
            for n in numbers
        ]

    def texts(op, **options):
        options = {"max_new_tokens": 4, "chat": False} | options
        return list(sf.generate(model, words(), PROMPTS, op, **options).texts)

    always, never = texts(sf.at(sf.generated, sf.add(push))), texts(None)
    assert all(a != b for a, b in zip(always, never, strict=True))
    for options in ({}, {"use_cache": False}, {"batch_size": 1}, {"prefill_chunk_size": 2, "batch_size": 1}):
        assert texts(ops(-2e-3), **options) == always
        assert texts(ops(+2e-3), **options) == never
    pushed = [sf.at(sf.generated, sf.add(push))] * len(PROMPTS)
    scores = [
        [
            sf.score(model, words(), prompt, [" a b", " c"], op, chat=False, progress=False).log_probs[0]
            for prompt, op in zip(PROMPTS, each, strict=True)
        ]
        for each in (ops(-2e-3), pushed, ops(+2e-3), [None] * len(PROMPTS))
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores[2], scores[3], rtol=1e-4, atol=1e-4)


def test_a_found_condition_reads_prompts_live_as_it_read_them_in_the_search(model):
    """Long and short prompts, which a mean with the sink would part by nothing but their length."""
    long, short = [f"{a} b c z e f g h" for a in "abcdefgh"], [f"{a} m" for a in "ijklmnop"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The condition does not separate", sf.SteerWarning)
        warnings.filterwarnings("error", ".*attention sink", sf.SteerWarning)
        found = sf.discover.find_condition(model, words(), long, short, sites=[0, 1], by="mean", **QUIET)
        asked = sf.on_prompt(found.condition, "mean")  # the vector says what the sinks are
    assert found.vector.metadata["sinks"]["tokens"] == ["<bos>", "z"]
    states = sf.activations(model, words(), long + short, found.site, "mean", **QUIET)[found.site]
    held = torch.cosine_similarity(states, found.vector[found.site], dim=-1) > found.threshold
    push = sf.SteeringVector({sf.resid_post[1]: 300 * torch.randn(32, generator=torch.Generator().manual_seed(5))})
    for condition in (found.on_prompt, asked):
        for text, holds in zip(long + short, held.tolist(), strict=True):
            ids = words()(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                changed = sf.functional(model)(sf.when(condition, sf.add(push)), ids).logits != model(ids).logits
            assert bool(changed.any()) == holds


def test_a_condition_that_does_not_know_the_sinks_says_so(model):
    v, _ = known(model)
    says_nothing = v.with_metadata(sinks=None, model=sf.values.fingerprint(model))
    with pytest.warns(sf.SteerWarning, match="do not say which tokens these are in their model"):
        sf.on_prompt(sf.projection_above(says_nothing, 0.0), "mean")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.on_prompt(sf.projection_above(says_nothing, 0.0), "mean", sinks={"first_token": True, "token_ids": []})
        sf.on_prompt(sf.projection_above(says_nothing, 0.0), "last")
    for bad in (
        True,
        {"first_token": 1, "token_ids": []},
        {"first_token": True},
        {"first_token": True, "token_ids": ["a"]},
    ):
        with pytest.raises(sf.SteerError, match="sinks says which tokens are attention sinks"):
            sf.on_prompt(sf.projection_above(v, 0.0), "mean", sinks=bad)
    condition = sf.when(sf.on_prompt(sf.projection_above(v, 0.0), "mean"), sf.add(v))
    embedded = model.model.embed_tokens(words()("a b", return_tensors="pt")["input_ids"])
    with pytest.raises(sf.SteerError, match="does not say which tokens it holds; give the model input_ids"):
        sf.functional(model)(condition, inputs_embeds=embedded)


def test_rows_are_as_few_as_without_it(model, tiny):
    """What begins alike is still computed once: sinks are measured on a few short stretches, before."""
    rows = words()([f"a b c d e f g h {x}" for x in "ijklmnop"])["input_ids"]
    with_sinks, without = (plan(each, reads(rows, "mean"), 1) for each in (model, tiny))
    assert with_sinks.sinks.first and not without.sinks.first
    assert [row.ids for row in with_sinks.rows] == [row.ids for row in without.rows]


def test_a_plan_measures_once_and_only_for_means(model):
    passes = []
    handle = model.model.layers[1].register_forward_pre_hook(lambda *_: passes.append(1))
    rows = words()(TEXTS)["input_ids"]
    plan(model, reads(rows, "mean"), 0)
    passes.clear()
    plan(model, reads(rows, "last"), 0)
    assert not passes
    plan(model, reads(rows, "mean"), 0)
    assert len(passes) == 1
    handle.remove()


@pytest.mark.heavy
def test_on_the_real_model_the_sink_is_found_and_the_vector_says_what_texts_say(demo):
    """Sentiment at layer 14: AUC 0.54 with the first token, above 0.9 without."""
    model, tokenizer = demo
    texts = sf.datasets.load("sentiment")
    options = {"sites": 14, "quality": True, "progress": False}
    v = sf.mean_difference(model, tokenizer, texts.positive, texts.negative, position="mean", **options)
    sinks = v.metadata["sinks"]
    assert sinks["first_token"] and sinks["tokens"] == [] and sinks["norm_over_median"] > 50
    with pytest.warns(sf.SteerWarning, match="lies along"):
        every = sf.mean_difference(model, tokenizer, texts.positive, texts.negative, position="mean_all", **options)
    found, with_sink = (sf.quality(each)[sf.resid_post[14]].auc for each in (v, every))
    assert found > 0.9 > 0.7 > with_sink, f"{found:.3f}, {with_sink:.3f}"
