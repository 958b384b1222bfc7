"""Sweeps measure by names: with prompts, references, operators and the model at hand."""

import math

import numpy as np
import pytest
from steering import vector
from words import words

import steerfn as sf
from steerfn.evaluate import _sweep
from steerfn.evaluate._configs import Config

pytestmark = pytest.mark.steady

PROMPTS = ["a b c", "d e f g a", "b"]
ALPHAS = [-2.0, 0.0, 3.0]
V = vector(sf.resid_post[0], sf.resid_post[1])
SITES = [0, 1]


def tokenizer():
    return words(template=True)


def swept(model, metrics, alphas=ALPHAS, **options):
    # What the tokenizer has no word for stays unsaid, so that texts are as long as generations.
    options = {"max_new_tokens": 5, "suppress_tokens": [0, 1, 2, *range(len(words()), 99)], **options}
    return sf.sweep(model, tokenizer(), PROMPTS, V, alphas, sites=SITES, metrics=metrics, progress=False, **options)


def given(table, c):
    """What the metrics of a configuration's texts are given, by hand."""
    config = table.configs[c]
    op = sf.add(V.select(sf.resid_post[int(config.sites[0][-2])]), config.alpha) if config.alpha else None
    return {"prompts": PROMPTS, "ops": [op] * len(PROMPTS), "tokenizer": tokenizer()}


def test_names_functions_and_metrics_stand_side_by_side(tiny):
    def letters(texts):
        return [len(text) for text in texts]

    table = swept(tiny, ["length", letters, sf.metrics.distinct_n.using(n=1)])
    assert table.metrics == ("length", "letters", "distinct_n(n=1)")
    for c, texts in enumerate(table.texts):
        assert table.values["length"][c].tolist() == [len(text.split()) for text in texts]
        assert table.values["letters"][c].tolist() == [len(text) for text in texts]
        np.testing.assert_array_equal(table.values["distinct_n(n=1)"][c], sf.metrics.distinct_n(texts, n=1))
    renamed = swept(tiny, {"how long": "length"})
    assert renamed.metrics == ("how long",) and swept(tiny, "length").metrics == ("length",)


def test_without_metrics_the_length_is_measured(tiny):
    table = swept(tiny, ())
    assert table.metrics == ("length",)
    np.testing.assert_array_equal(table.values["length"], swept(tiny, ["length"]).values["length"])


def test_references_are_the_unsteered_texts_of_the_same_prompts(tiny):
    seen = []

    def same(texts, *, references, prompts):
        seen.append((references, prompts))
        return [float(text == reference) for text, reference in zip(texts, references, strict=True)]

    table = swept(tiny, [same])
    plain = table.texts[1]
    assert table.configs[1].alpha == 0
    assert seen[1:] == [(list(plain) * 6, PROMPTS * 6)]
    assert table.values["same"][1].tolist() == table.values["same"][4].tolist() == [1, 1, 1]
    assert table.values["same"].min() == 0


def test_bleu_and_rouge_compare_with_the_unsteered_model(tiny):
    pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score")
    table = swept(tiny, ["bleu", "rouge"])
    for c, texts in enumerate(table.texts):
        for name in ("bleu", "rouge"):
            expected = getattr(sf.metrics, name)(texts, references=table.texts[1])
            np.testing.assert_array_equal(table.values[name][c], expected)
    assert table.values["rouge"][1].tolist() == [1, 1, 1] and table.values["rouge"].min() < 1


def test_metrics_of_the_model_get_each_texts_own_operator(tiny):
    names = ["perplexity", "kl_from_baseline", "log_prob_difference"]
    table = swept(tiny, names, chat=False)
    for c, texts in enumerate(table.texts):
        mine = given(table, c)
        for name in names:
            metric = sf.metrics.get(name)
            needed = {need: mine[need] for need in metric.needs if need in mine}
            expected = metric(texts, model=tiny, chat=False, **needed)
            np.testing.assert_allclose(table.values[name][c], expected, rtol=1e-3, atol=1e-3)
    assert (table.values["kl_from_baseline"][1] == 0).all() and (table.values["kl_from_baseline"][0] > 0).all()


def test_chat_reaches_the_metrics(tiny):
    def chats(texts, *, chat):
        return [{None: 0, True: 1, False: 2}[chat]] * len(texts)

    for chat, number in ((None, 0), (True, 1), (False, 2)):
        assert (swept(tiny, [chats], chat=chat).values["chats"] == number).all()


@pytest.mark.parametrize("operator", [sf.add, sf.rotate])
def test_a_metric_without_references_is_told_before_anything_is_generated(tiny, operator):
    tiny.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    alphas = [1.0, 2.0] if operator is sf.add else [0.0, 2.0]  # only adding nothing is known to be the unsteered model
    with pytest.raises(sf.DataError) as caught:
        swept(tiny, ["length", "bleu"], alphas, make=operator)
    assert str(caught.value) == (
        "The metric 'bleu' compares with the unsteered model's texts, which are not in this sweep: add 0 to alphas "
        "(with make=sf.add), or leave the metric out."
    )


def test_without_alpha_zero_the_other_metrics_go_on(tiny):
    table = swept(tiny, ["length", "kl_from_baseline"], [1.0, 2.0])
    assert table.values["kl_from_baseline"].shape == (4, 3) and (table.values["kl_from_baseline"] > 0).all()


def test_what_is_compared_is_tried_before_anything_is_generated(tiny):
    tiny.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("the model ran"))

    def broken(texts, *, references, prompts):
        raise sf.DataError("the server is not there")

    with pytest.raises(sf.DataError, match="the server is not there"):
        swept(tiny, [broken])


def test_metrics_of_the_model_are_not_tried(tiny):
    asked = []

    def late(texts, *, model):
        asked.append(len(texts))
        return [0] * len(texts)

    swept(tiny, [late])
    assert asked == [6 * 3]


def test_unknown_names_are_told_with_what_is_near(tiny):
    with pytest.raises(sf.DataError, match="There is no metric 'repetitions'; did you mean 'repetition'\\? there are"):
        swept(tiny, ["repetitions"])


def test_metrics_of_one_configuration_alone():
    """Pitfall 28: one configuration, one prompt, one text that is empty."""
    named = _sweep.sweep_metrics(["length", "repetition", "refusal"], True)
    found = _sweep.measure_grid(named, [[""]], ["a"], [None], model=None, tokenizer=None, chat=None)
    assert (
        found["length"].tolist() == [[0]] and math.isnan(found["repetition"][0, 0]) and found["refusal"].shape == (1, 1)
    )


def test_pitfall_54_means_and_best_are_over_the_prompts_that_all_share():
    """A strength that ruins most texts does not win by those that survive."""
    nan = math.nan
    configs = [Config("v", ("resid_post[1]",), alpha) for alpha in (1.0, 2.0, 3.0)]
    values = np.array([[1.5] * 10, [9.0] + [nan] * 9, [1.0, nan, 4.0] + [1.0] * 7])
    table = sf.evaluate.Sweep(tuple(configs), tuple(f"prompt {i}" for i in range(10)), {"m": values})
    kept = [i for i in range(10) if i != 1]
    means = list(table.mean().values())
    assert means[0] == 1.5 and math.isnan(means[1]) and means[2] == pytest.approx(values[2, kept].mean())
    assert list(table.counts().values()) == [10, 1, 9]
    text = str(table)
    assert "[1/10]" in text and "(means over the 9 of 10 prompts that have a number in all of these cells)" in text
    best = table.best(held_out=0)
    assert best.config == configs[0] and best.chosen == 1.5 and best.n == (9, 0)
    assert "1 of 3 configurations have numbers for too few prompts to be chosen." in best.notes
    held = table.best(held_out=0.4)
    assert sum(held.n) == 9 and held.error is None  # that all others agree is no certainty
    values[[0, 2]] = nan
    with pytest.raises(sf.DataError, match="for too few prompts to choose by: of 10, at most 1 under one config"):
        table.best()


def test_the_best_says_when_it_stands_at_the_edge_of_the_grid():
    configs = [Config("v", (f"resid_post[{layer}]",), alpha) for layer in (2, 10, 3) for alpha in (-1.0, 0.0, 2.0)]
    values = np.zeros((9, 4))
    table = sf.evaluate.Sweep(tuple(configs), tuple("abcd"), {"m": values})
    values[7] = 1.0
    assert table.best(held_out=0).notes == ()
    values[7], values[5] = 0.0, 1.0
    alpha, site = table.best(held_out=0).notes
    assert alpha == "At the edge of the grid: alpha 2 is the largest that was tried; beyond it may be better."
    assert site == "At the edge of the grid: resid_post[10] is the deepest site that was tried."
    assert str(table.best(held_out=0)).splitlines()[1:] == [f"  {alpha}", f"  {site}"]
    values[5], values[0] = 0.0, 1.0
    assert ["smallest" in table.best(held_out=0).notes[0], "first" in table.best(held_out=0).notes[1]] == [True, True]


def test_scores_say_that_log_odds_are_not_texts(tiny):
    from steerfn.evaluate._sweep_table import LOG_ODDS

    scores = sf.sweep(
        tiny,
        words(),
        ["a b", "c"],
        vector(sf.resid_post[1]),
        [0, 1],
        continuations=[" a", " b"],
        chat=False,
        progress=False,
    )
    assert str(scores).endswith(LOG_ODDS) and LOG_ODDS in scores.best().notes
    assert LOG_ODDS not in str(swept(tiny, ["length"]))
