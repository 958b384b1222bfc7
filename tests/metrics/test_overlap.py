"""bleu, chrf and rouge: against their packages' own calls, and in the right direction."""

import math
import sys

import pytest

import steerfn as sf
from steerfn.metrics import _overlap, bleu, chrf, rouge
from steerfn.values._extra import import_extra

TEXTS = [
    "The cat sat on the mat.",
    "A cat was sitting on the mat, and it slept.",
    "cat",
    "",
    "   ",
    "Shares fell on Monday.",
    "the the the the the",
    "日本語の文章です。",
]
REFERENCE = "The cat sat on the mat."
REFERENCES = [REFERENCE] * len(TEXTS)


def sacrebleu():
    return pytest.importorskip("sacrebleu")


def rouge_scorer():
    return pytest.importorskip("rouge_score.rouge_scorer")


def test_bleu_is_sacrebleus_sentence_bleu():
    package = sacrebleu()
    expected = [package.sentence_bleu(text, [REFERENCE]).score for text in TEXTS]
    assert bleu(TEXTS, references=REFERENCES) == expected
    assert expected[0] == pytest.approx(100) and expected[0] > expected[1] > expected[5] > expected[3] == 0


def test_bleu_by_hand():
    """Three of four words, two of three pairs, one of two triples, no run of four: smoothed to half of one."""
    sacrebleu()
    precisions = [3 / 4, 2 / 3, 1 / 2, 1 / 2]  # exponential smoothing counts 1/2 of one in the one run of four
    expected = 100 * math.prod(precisions) ** (1 / 4)
    assert bleu(["a b c x"], references=["a b c d"]) == pytest.approx([expected])


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleus_sentence_chrf(word_order):
    package = sacrebleu()
    expected = [package.sentence_chrf(text, [REFERENCE], word_order=word_order).score for text in TEXTS]
    found = chrf(TEXTS, references=REFERENCES, word_order=word_order)
    assert found == expected
    assert found[0] == pytest.approx(100) and found[0] > found[1] > found[5] > found[3] == 0


@pytest.mark.parametrize("variant", ["rougeL", "rouge1", "rouge2", "rougeLsum"])
def test_rouge_is_rouge_scores_f1(variant):
    scorer = rouge_scorer().RougeScorer([variant])
    expected = [scorer.score(REFERENCE, text)[variant].fmeasure for text in TEXTS]
    found = rouge(TEXTS, references=REFERENCES, variant=variant)
    assert found == expected
    assert found[0] == 1 and found[0] > found[1] > found[3] == found[7] == 0


def test_rouge_by_hand():
    rouge_scorer()
    # the longest common subsequence of "a c d" and "a b c d" is "a c d"
    assert rouge(["a c d"], references=["a b c d"]) == pytest.approx([2 * 1 * (3 / 4) / (1 + 3 / 4)])


@pytest.mark.parametrize("metric", [bleu, chrf, rouge], ids=lambda m: m.name)
def test_nothing_can_be_compared_with_a_blank_reference(metric):
    sacrebleu(), rouge_scorer()
    found = metric(["a", "", "a b"], references=["", " \n", "a b"])
    assert [math.isnan(value) for value in found] == [True, True, False]
    assert metric([], references=[]) == []
    with pytest.raises(sf.DataError, match="There are 2 texts and 1 references; pass one for each text."):
        metric(["a", "b"], references=["a"])


def test_options_change_the_numbers():
    sacrebleu(), rouge_scorer()
    given = {"references": ["the mat on the cat sat quietly"]}
    text = ["the cat sat on the mat"]
    assert chrf.using(word_order=2)(text, **given) != chrf(text, **given)
    assert rouge.using(variant="rouge1")(text, **given) != rouge(text, **given)
    assert rouge.using(variant="rouge1").name == "rouge(variant='rouge1')"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rouge(["a"], references=["a"], variant="rougeX"), "'rougeL' or 'rougeLsum', not 'rougeX'."),
        (lambda: rouge(["a"], references=["a"], variant=2), "'rougeL' or 'rougeLsum', not 2."),
        (lambda: chrf(["a"], references=["a"], word_order=-1), "`word_order` must be a non-negative integer, got -1."),
        (
            lambda: chrf(["a"], references=["a"], word_order=True),
            "`word_order` must be a non-negative integer, got True.",
        ),
    ],
)
def test_options_that_are_none(call, message):
    with pytest.raises(sf.DataError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "package"), [(bleu, "sacrebleu"), (chrf, "sacrebleu"), (rouge, "rouge_score")], ids=str
)
def test_a_missing_package_is_told_with_its_extra(metric, package, monkeypatch):
    _overlap._bleu.cache_clear()
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(sf.SteerError) as caught:
        metric(["a"], references=["a"])
    assert f"This needs {package}, which cannot be imported (" in str(caught.value)
    assert str(caught.value).endswith('run: pip install -c constraints.txt -e ".[evaluate]"')


def test_an_extra_is_imported_by_its_full_name():
    assert import_extra("os.path", "evaluate") is sys.modules["os.path"]
