"""Attention sinks: found on the model by norm, left out of means, and said in the metadata."""

import pytest
import torch
from families import build
from words import words

import steerfn as sf
from steerfn.reading import plan, reads

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


def test_a_condition_by_the_mean_is_decided_by_the_sink_and_warns(model):
    long, short = [f"{a} b c d e f g h" for a in "abcdefgh"], [f"{a} m" for a in "ijklmnop"]
    with pytest.warns(sf.SteerWarning, match="attention sink"):
        sf.find_condition(model, words(), long, short, sites=1, by="mean", **QUIET)


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
