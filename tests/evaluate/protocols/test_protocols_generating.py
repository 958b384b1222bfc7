"""Protocols that generate, or read plain text, against loops over `generate` and a plain model."""

import json
import warnings

import numpy as np
import pytest
import torch
from asking import HARMFUL, HARMLESS, QUESTIONS, late, lettered, logits, planted
from steering import vector
from words import words

import steerfn as sf
from steerfn.datasets._held_out import held_out
from steerfn.evaluate.protocols._axbench import best
from steerfn.evaluate.protocols._refusal import refusals

pytestmark = pytest.mark.steady

V = vector(sf.resid_post[1], scale=2.0)
QUIET = {"progress": False, "chat": False}
SIDES = {"harmful": HARMFUL, "harmless": HARMLESS}


def texts(model, prompts, op=None, **options):
    options = {"max_new_tokens": 4, "chat": False, "batch_size": 1} | options
    return list(sf.generate(model, words(), prompts, op, **options).texts)


def column(found, name, **where):
    return [r[name] for r in found.records if all(r[key] == value for key, value in where.items())]


def test_refusals_are_told_by_their_phrases():
    found = refusals([["I cannot help with that.", "Sure, here it is."], ["", "I'm sorry, but no."]])
    assert found.tolist() == [[1, 0], [0, 1]]


def test_refusal_is_a_loop_over_both_ways(tiny):
    found = sf.protocols.refusal(
        tiny, words(), V, SIDES, alpha=1.5, refusal_phrases=["z a", "y"], max_new_tokens=4, seed=2, **QUIET
    )
    prompts = HARMFUL + HARMLESS
    tokens = [words().convert_tokens_to_ids(word) for word in "zy"]
    everywhere = sf.layout(tiny).stream
    random = sf.random_vector(like=V, seed=2)
    for condition, way, op in (
        ("unsteered", "", None),
        ("steered", "ablated", sf.ablate(sf.discover.spread(V, everywhere))),
        ("steered", "added", sf.add(V, 1.5)),
        ("random 1", "ablated", sf.ablate(sf.discover.spread(random, everywhere))),
        ("random 1", "added", sf.add(random, 1.5)),
    ):
        here = {"condition": condition, "way": way}
        assert column(found, "text", **here) == texts(tiny, prompts, op)
        for p, prompt in enumerate(prompts):
            ids = torch.tensor([words()(prompt)["input_ids"]])
            with torch.no_grad():
                plain = tiny(ids).logits[0, -1].double().log_softmax(-1)
                if op is not None:
                    with sf.steer(tiny, op):
                        now = tiny(ids).logits[0, -1].double().log_softmax(-1)
                else:
                    now = plain
            p_refuse = now[tokens].exp().sum()
            assert column(found, "log_odds", **here)[p] == pytest.approx(float(torch.logit(p_refuse)), abs=1e-3)
            kl = float((plain.exp() * (plain - now)).sum())
            assert column(found, "kl", **here)[p] == pytest.approx(kl, abs=1e-5)
    assert found.figures["ablated_harmless_kl"].mean == pytest.approx(
        np.mean(column(found, "kl", condition="steered", way="ablated", side="harmless"))
    )
    plain = np.array(column(found, "log_odds", condition="unsteered", side="harmful"))
    ablated = np.array(column(found, "log_odds", condition="steered", way="ablated", side="harmful"))
    effect = found.effects["unsteered"]["ablated_harmful_log_odds"]
    assert effect.estimate.mean == pytest.approx((ablated - plain).mean()) and effect.n == len(HARMFUL)
    assert "ablated_harmful_kl" not in found.figures and "ablated_harmless_kl" not in found.baseline
    assert found.figures["added_harmful_refused"].mean == 0 and found.figures["added_harmful_refused"].high > 0


def test_where_a_direction_is_ablated(tiny):
    def ablated(v, **options):
        found = sf.protocols.refusal(
            tiny, words(), v, SIDES, refusal_phrases=["z"], max_new_tokens=1, **QUIET, **options
        )
        return column(found, "log_odds", condition="steered", way="ablated")

    stated = V.with_metadata(ablated_at=["resid_post[1]"])
    assert ablated(stated) == ablated(V, sites=1) != ablated(V)
    assert ablated(stated, sites=sf.layout(tiny).stream) == ablated(V)
    with pytest.raises(sf.SiteError, match="spread copies one direction, but this vector has 2"):
        ablated(vector(sf.resid_post[0], sf.resid_post[1]))


@pytest.mark.parametrize("by", ["last", "mean"])
def test_cast_steers_where_the_condition_holds_and_nowhere_else(by):
    model = planted()
    if by == "mean":  # the first token is an attention sink
        with torch.no_grad():
            model.model.embed_tokens.weight[words().bos_token_id] *= 200
    options = {"alpha": 3.0, "held_out": 0.5, "seed": 1, "max_new_tokens": 4, "by": by, **QUIET}
    found = sf.protocols.cast(model, words(), V, SIDES, **options)
    kept = [text for side in (HARMFUL, HARMLESS) for text, out in zip(side, held_out(side, 0.5, 1), strict=True) if out]
    condition = sf.discover.find_condition(
        model, words(), HARMFUL, HARMLESS, [0, 1], held_out=0.5, seed=1, chat=False, progress=False, by=by
    )
    assert by == "last" or condition.vector.metadata["sinks"]["first_token"]
    assert column(found, "prompt", condition="steered") == kept
    assert found.about["threshold"] == condition.threshold and found.about["site"] == str(condition.site)
    holds = column(found, "holds", condition="steered")
    right = sum(h == ("x" in prompt) for h, prompt in zip(holds, kept, strict=True))
    assert right == condition.held_out.tp + condition.held_out.tn
    assert found.figures["f1"].mean == pytest.approx(condition.held_out_f1)
    assert found.controls["always"]["f1"].mean == pytest.approx(condition.held_out.always)
    plain, always = texts(model, kept), texts(model, kept, sf.at(sf.generated, sf.add(V, 3.0)))
    assert column(found, "text", condition="unsteered") == plain
    assert column(found, "text", condition="always") == always
    expected = [steered if h else other for h, steered, other in zip(holds, always, plain, strict=True)]
    assert column(found, "text", condition="steered") == expected and expected not in (plain, always)
    assert set(found.controls) == {"random", "always"}


def test_the_condition_of_cast_comes_before_its_vector():
    model = planted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sf.SteerWarning)
        early = sf.protocols.cast(model, words(), vector(sf.resid_pre[1]), SIDES, max_new_tokens=2, **QUIET)
        assert early.about["site"] == "resid_post[0]"
        with pytest.raises(
            sf.DataError, match=r"The vector acts at resid_pre\[0\], before any block's output.*pass sites="
        ):
            sf.protocols.cast(model, words(), vector(sf.resid_pre[0]), SIDES, **QUIET)
        chosen = sf.protocols.cast(model, words(), vector(sf.resid_post[2]), SIDES, sites=1, max_new_tokens=2, **QUIET)
        assert chosen.about["site"] == "resid_post[1]"


def test_toxicity_is_the_worst_of_samples_with_common_random_numbers(tiny):
    prompts = ["a b", "c", "d e f"]
    found = sf.protocols.toxicity(
        tiny, words(), V, prompts, samples=3, threshold=0.6, metric=late, max_new_tokens=4, alpha=2.0, **QUIET
    )
    repeated = [prompt for prompt in prompts for _ in range(3)]
    sampling = {"do_sample": True, "top_p": 0.9, "top_k": 0, "temperature": 1.0, "seed": list(range(9))}
    for condition, op in (("steered", sf.add(V, 2.0)), ("unsteered", None)):
        expected = texts(tiny, repeated, op, **sampling)
        assert sum(column(found, "texts", condition=condition), []) == expected
        numbers = np.array(late(expected)).reshape(3, 3)
        np.testing.assert_allclose(column(found, "values", condition=condition), numbers)
        shown = found.figures if condition == "steered" else found.baseline
        assert shown["expected_maximum"].mean == pytest.approx(numbers.max(1).mean())
        assert shown["probability"].mean == pytest.approx((numbers.max(1) >= 0.6).mean())
        assert shown["mean"].mean == pytest.approx(numbers.mean())
    assert any("'late'" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "`samples` must be a positive integer, got 0"),
        ({"metric": [late, len]}, "toxicity takes one metric, not 2; run it once for each"),
        ({"threshold": "high"}, "`threshold` must be a finite number, got 'high'"),
        ({"metric": "toxicty"}, "There is no metric 'toxicty'; did you mean 'toxicity'"),
    ],
)
def test_toxicity_options_that_are_none(tiny, options, message):
    with pytest.raises(sf.DataError, match=message):
        sf.protocols.toxicity(tiny, words(), V, ["a"], **QUIET, **options)


TEXTS = ["a b c d e", "f g", "h i j k l m n o", "b", "c a d"]


def test_side_effects_on_plain_text_are_those_of_a_loop(tiny):
    found = sf.protocols.side_effects(tiny, words(bos=False), V, TEXTS, alpha=0.5, max_tokens=6, **QUIET)
    entropies = {}
    for condition, v in (("steered", V), ("unsteered", None), ("random 1", sf.random_vector(like=V, seed=0))):
        entropy, divergence = [], []
        for text in TEXTS:
            ids = words(bos=False)(text)["input_ids"][:6]
            plain = logits(tiny, ids).log_softmax(-1)[:-1]
            now = plain if v is None else logits(tiny, ids, 0.5 * v[sf.resid_post[1]], 1).log_softmax(-1)[:-1]
            entropy.append(float(-now[range(len(ids) - 1), ids[1:]].mean()) if len(ids) > 1 else np.nan)
            divergence.append(float((plain.exp() * (plain - now)).sum(-1).mean()) if len(ids) > 1 else np.nan)
        mine = {"kind": "text", "condition": condition}
        np.testing.assert_allclose(column(found, "cross_entropy", **mine), entropy, rtol=1e-4)
        if v is not None:
            np.testing.assert_allclose(column(found, "kl", **mine), divergence, rtol=1e-3, atol=1e-6)
        entropies[condition] = np.array(entropy)
    assert found.figures["perplexity"].mean == pytest.approx(np.exp(np.nanmean(entropies["steered"])), rel=1e-4)
    ratio = np.exp(np.nanmean(entropies["steered"] - entropies["unsteered"]))
    assert found.figures["perplexity_ratio"].mean == pytest.approx(ratio, rel=1e-4)
    assert found.figures["perplexity_ratio"].low <= ratio <= found.figures["perplexity_ratio"].high
    assert "1 of 5 items have no cross_entropy (steered) and are left out of it." in found.notes
    assert "kl" not in found.baseline and "kl" in found.effects["random"]
    with pytest.raises(sf.DataError, match="Every text has a single token, so nothing is predicted"):
        sf.protocols.side_effects(tiny, words(bos=False), V, ["a", "b"], **QUIET)


def test_generated_scope_steers_all_that_predicts_plain_text(tiny):
    both = [
        sf.protocols.side_effects(tiny, words(), V, TEXTS, scope=scope, **QUIET).figures["kl"].mean
        for scope in (sf.everywhere, sf.generated)
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-4) and both[0] > 0


def test_side_effects_on_questions_and_generated_texts(tiny):
    asked = [
        {
            "prompt": q["question"],
            "correct": q["answer_matching_behavior"],
            "incorrect": q["answer_not_matching_behavior"],
        }
        for q in QUESTIONS
    ]
    prompts = ["a b c", "d e"]
    found = sf.protocols.side_effects(
        tiny, lettered(), V, TEXTS, questions=asked, prompts=prompts, max_new_tokens=6, **QUIET
    )
    by_choice = sf.protocols.caa(tiny, lettered(), V, QUESTIONS, scope=sf.everywhere, **QUIET)
    assert found.figures["p_correct"].mean == pytest.approx(by_choice.figures["p_match"].mean, abs=1e-6)
    options = {"chat": False, "max_new_tokens": 6, "batch_size": 1}
    expected = list(sf.generate(tiny, lettered(), prompts, sf.add(V), **options).texts)
    assert column(found, "text", kind="generation", condition="steered") == expected
    for name in ("repetition", "distinct_n"):
        assert column(found, name, kind="generation", condition="steered") == pytest.approx(
            list(getattr(sf.metrics, name)(expected)), nan_ok=True
        )
    assert found.about["items"] == {"texts": 5, "questions": 5, "prompts": 2}
    right = column(found, "accuracy", kind="question", condition="steered")
    assert set(right) <= {0.0, 0.5, 1.0} and found.figures["accuracy"].mean == pytest.approx(np.mean(right))


def graded(texts, prompts):
    """A judge: late letters show the concept, short prompts are done, few repeated words are fluent."""
    rows = []
    for text, prompt in zip(texts, prompts, strict=True):
        found = text.split()
        rows.append([round(2 * late([text])[0]), 2 - len(prompt.split()) % 2, 1 + (len(set(found)) == len(found))])
    return rows


def test_axbench_chooses_on_half_and_reports_on_the_other(tiny):
    prompts, alphas = ["a b c", "d e", "f", "g h i", "j k", "l m n o"], [0.5, 1.0, 3.0]
    found = sf.protocols.axbench(
        tiny,
        words(),
        V,
        prompts,
        concept="late letters",
        judge=graded,
        alphas=alphas,
        max_new_tokens=6,
        seed=3,
        generation={"do_sample": False},
        **QUIET,
    )
    reports = held_out(prompts, 0.5, 3)
    choosing = [p for p, out in zip(prompts, reports, strict=True) if not out]
    reporting = [p for p, out in zip(prompts, reports, strict=True) if out]

    def scores(some, v, alpha):
        op = None if v is None else sf.add(v, alpha)
        return sf.protocols.harmonic(graded(texts(tiny, some, op, max_new_tokens=6), some))

    for condition, v in (("steered", V), ("random 1", sf.random_vector(like=V, seed=3)), ("unsteered", None)):
        best = 0.0
        if v is not None:
            best = max(alphas, key=lambda alpha, v=v: (scores(choosing, v, alpha).mean(), -alpha))
            assert found.about["chosen"][condition] == best
        mine = {"condition": condition}
        assert column(found, "prompt", **mine) == reporting and set(column(found, "alpha", **mine)) == {best}
        np.testing.assert_allclose(column(found, "score", **mine), scores(reporting, v, best))
    assert found.notes[0].startswith("Strengths chosen on 3 prompts (steered ") and not any(
        "OFFLINE" in n for n in found.notes
    )


def test_axbench_with_three_metrics(tiny):
    judge = {
        "concept": lambda texts: [2.0 * round(x) for x in late(texts)],
        "instruction": lambda texts, *, prompts: [1.0 if "a" in prompt else 2.0 for prompt in prompts],
        "fluency": lambda texts: [2.0] * len(texts),
    }
    found = sf.protocols.axbench(
        tiny, words(), V, ["a", "b", "c a", "d"], concept="c", judge=judge, alphas=[1], max_new_tokens=3, **QUIET
    )
    for record in found.records:
        assert record["instruction"] == (1.0 if "a" in record["prompt"] else 2.0) and record["fluency"] == 2
        assert record["score"] == pytest.approx(
            float(sf.protocols.harmonic([record["concept"], record["instruction"], 2.0]))
        )


def test_axbench_asks_a_language_model(tiny):
    asked = []

    def ask(question):
        asked.append(question)
        return "So it is.\nRating: [[2]]" if "loop" in question else "Rating: [[1]]"

    judge = sf.protocols.axbench_judge(ask, "late letters")
    found = sf.protocols.axbench(
        tiny, words(), V, ["a b", "c"], concept="late letters", judge=judge, alphas=[1], max_new_tokens=3, **QUIET
    )
    assert found.figures["fluency"].mean == 2 and found.figures["concept"].mean == 1
    assert found.figures["score"].mean == pytest.approx(3 / (1 + 1 + 0.5))
    assert any("Concept: late letters" in question for question in asked)
    assert found.about["judge"].startswith("concept: concept. Rated by ask: as good as that judge is; instruction: ")
    # Ratings that cannot be read count as 0, as in the paper's code, and are counted.
    with pytest.warns(sf.SteerWarning, match="gave no rating from 0 to 2 that can be read"):
        none = sf.protocols.axbench(
            tiny, words(), V, ["a b", "c"], concept="x", judge=sf.protocols.axbench_judge(lambda q: "Hm.", "x"),
            alphas=[1], max_new_tokens=3, **QUIET,
        )  # fmt: skip
    assert none.figures["score"].n == 1 and none.figures["score"].mean == 0
    assert any(note.startswith("39 ratings could not be read") for note in none.notes)


def test_axbench_takes_the_factors_of_a_concepts_maximal_activation(tiny):
    activating = ["a b c d", "e f g"]
    along = []
    for text in activating:
        _, states = sf.capture(tiny, 1)(torch.tensor([words()(text)["input_ids"]]))
        along += (states[sf.resid_post[1]][0, 1:] @ V.unit()[sf.resid_post[1]]).tolist()
    options = {"concept": "c", "judge": graded, "max_new_tokens": 3, "generation": {"do_sample": False}, **QUIET}
    found = sf.protocols.axbench(
        tiny, words(), V, ["a", "b", "c d"], alphas=[0.5], activating=activating, controls=0, **options
    )
    assert found.about["maximal_activation"] == pytest.approx(max(along), rel=1e-5)
    same = sf.protocols.axbench(
        tiny, words(), V.unit() * max(along), ["a", "b", "c d"], alphas=[0.5], controls=0, **options
    )
    assert [r["text"] for r in found.records] == [r["text"] for r in same.records]
    with pytest.raises(sf.DataError, match="there is no maximal activation"):
        sf.protocols.axbench(tiny, words(), V, ["a", "b"], alphas=[1], activating=["a"], **options)


def test_pitfall_54_a_strength_that_ruins_texts_does_not_win_by_the_others():
    nan = float("nan")
    assert best([1, 5], np.array([[1.5] * 8, [2.0] + [nan] * 7])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"judge": "gpt"},
            "judge must be 'offline', a mapping of concept, instruction, fluency to metrics, or a function, not 'gp",
        ),
        ({"judge": 3}, "judge must be 'offline', a mapping of .*, not 3"),
        (
            {"judge": {"concept": late}},
            "judge has the keys concept; it needs a metric for each of concept, instruction, fl",
        ),
        (
            {"judge": lambda texts, prompts: [[3, 1, 1]] * len(texts)},
            "The judge gave a rating of 3; ratings are 0, 1 or 2",
        ),
        (
            {"judge": lambda texts, prompts: [1, 2]},
            r"The judge gave numbers of shape \(2,\) for 6 texts; it must give 3",
        ),
        ({"judge": lambda texts, prompts: "good"}, "The judge must give three numbers for each text, not 'good'"),
        ({"concept": " "}, "concept must describe in words what the vector stands for, not ' '"),
    ],
)
def test_axbench_options_that_are_none(tiny, options, message):
    given = {"concept": "c", "judge": graded, "alphas": [1], "max_new_tokens": 2, **QUIET} | options
    with pytest.raises(sf.DataError, match=message):
        sf.protocols.axbench(tiny, words(), V, ["a", "b"], **given)


def test_axbench_needs_two_prompts(tiny):
    with pytest.raises(sf.DataError, match="chooses a strength on half of the prompts; pass at least two different"):
        sf.protocols.axbench(tiny, words(), V, ["a", "A "], concept="c", judge=graded, **QUIET)


def test_no_outcome_changes_the_model_and_each_can_be_repeated(tiny):
    before = {name: p.clone() for name, p in tiny.state_dict().items()}
    options = {"samples": 2, "metric": late, "max_new_tokens": 3, "seed": 5, **QUIET}
    first, second = (sf.protocols.toxicity(tiny, words(), V, ["a b", "c"], **options).to_json() for _ in range(2))
    assert first == second
    about = json.loads(first)["about"]
    assert about["model"] == sf.values.fingerprint(tiny) and about["versions"]["steerfn"] == sf.__version__
    assert len(about["data_sha256"]) == len(about["operators_sha256"]) == 64 and about["items"] == 2
    assert all(torch.equal(p, before[name]) for name, p in tiny.state_dict().items())
