"""Lint of contrast pairs: each finding fires on what it names and on nothing else."""

import math
import random
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from words import words

import steerfn as sf
from steerfn.datasets import ContrastSet, from_file
from steerfn.discover._lint_pairs import Finding, LintReport, chance_gap, lint_pairs, two_sided

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GOOD = [f"word{i} is here" for i in range(40)]
BAD = [f"word{i} is gone" for i in range(40)]


def kinds(*args, **options):
    return [finding.kind for finding in lint_pairs(*args, **options)]


def only(*args, **options):
    (finding,) = lint_pairs(*args, **options)
    return finding


def talk(answer, request="Hi"):
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def letters(positive, negative):
    """Items of which so many have (A) as the positive answer, and so many (B)."""
    rows = [("(A)", "(B)")] * positive + [("(B)", "(A)")] * negative
    left, right = zip(*[(f"Question {i}? {p}", f"Question {i}? {n}") for i, (p, n) in enumerate(rows)], strict=True)
    return left, right


def test_nothing_found():
    report = lint_pairs(GOOD, BAD)
    assert report.ok and list(report) == [] and len(report) == 0
    assert str(report) == repr(report) == "ok: 40 pairs, nothing found"
    unpaired = lint_pairs(ContrastSet("s", GOOD, BAD[1:]))
    assert str(unpaired) == "ok: 40 positive and 39 negative texts, nothing found"
    assert str(lint_pairs(ContrastSet("s", GOOD, BAD, True))) == "ok: 40 pairs, nothing found"


def test_a_report_reads_as_lines():
    report = lint_pairs(["a b", "a  B"], ["c d"])
    assert not report.ok and [f.kind for f in report] == ["few", "unequal counts", "duplicate"]
    assert str(report) == (
        "3 findings in 2 positive and 1 negative texts\n"
        "  few: 2 positive and 1 negative texts are few; write at least 20 a side.\n"
        "  unequal counts: 2 positive and 1 negative texts are not pairs; give each its opposite, or use only methods "
        "that take means.\n"
        "  duplicate: 1 positive text repeats an earlier one, first 'a B' (positive[1] = positive[0]); remove the "
        "repeats."
    )
    assert str(LintReport((Finding("few", "Few."),), "1 pair")) == "1 finding in 1 pair\n  few: Few."


def test_few():
    assert kinds(GOOD[:19], BAD[:19]) == ["few"] and kinds(GOOD[:20], BAD[:20]) == []


def test_unequal_counts_only_where_pairs_are_meant():
    assert kinds(GOOD, BAD[:30]) == ["unequal counts"]
    assert kinds(ContrastSet("s", GOOD, BAD[:30])) == []
    assert kinds(SimpleNamespace(positive=GOOD, negative=BAD[:30], paired=True, items=())) == ["unequal counts"]
    assert kinds(SimpleNamespace(positive=GOOD, negative=BAD[:30])) == []


def test_empty():
    first, second = lint_pairs([*GOOD, " \n", "more is here"], [*BAD, "a b c", talk(" ")])
    assert first.message == "1 positive text without words, first positive[40]; remove or write them."
    assert (first.kind, first.indices, second.indices) == ("empty", (40,), (41,))
    assert kinds(["", "", "a"], ["b", "c", "d"]) == ["empty", "few"]  # and no duplicates of nothing


def test_duplicate():
    found = only([*GOOD, "Word3  is HERE\n", GOOD[3]], [*BAD, "x y z", "u v w"])
    assert (found.kind, found.indices) == ("duplicate", (40, 41))
    assert found.message == (
        "2 positive texts repeat an earlier one, first 'Word3 is HERE' (positive[40] = positive[3]); remove the "
        "repeats."
    )
    # The request counts for sameness of conversations, too.
    same = [talk("Yes indeed, sir", f"Question {i}") for i in range(40)]
    assert kinds(same, [talk("No indeed, sir", f"Question {i}") for i in range(40)]) == ["first token"]
    assert "duplicate" in kinds([talk("Yes indeed, sir")] * 40, BAD)


def test_duplicate_indices_are_what_to_remove():
    d = ContrastSet("s", [*GOOD, GOOD[3]], [*BAD, "word3 is far"], True)
    found = only(d)
    assert kinds(d.subset(i for i in range(len(d)) if i not in found.indices)) == []


def test_contradiction():
    found = only([*GOOD, "word7 is GONE"], [*BAD, "x y z"])
    assert (found.kind, found.indices) == ("contradiction", (40,))
    assert found.message == ("1 text is on both sides, first 'word7 is GONE' (positive[40]); decide where it belongs.")


def test_leak():
    found = only(GOOD, BAD, held_out=(["new text", " WORD5 is   gone"], ["other"]))
    assert (found.kind, found.indices) == ("leak", (1,))
    assert found.message == (
        "1 of 2 positive texts held out are also trained on, first 'WORD5 is gone' (positive[1]); remove them from one "
        "of the two."
    )
    d = ContrastSet("s", ["new"], ["word6 is here"])
    assert only(ContrastSet("t", GOOD, BAD), held_out=d).indices == (0,)
    assert kinds(GOOD, BAD, held_out=(["new"], ["other"])) == []


def test_length():
    longer = [f"{text} now" for text in BAD]
    found = only(GOOD, longer)
    assert found.kind == "length" and found.message == (
        "The negative texts are 1.33 times as long (3.0 words positive, 4.0 negative); bring them within 1.25, or the "
        "direction will also be one of length."
    )
    assert "The positive texts are 1.33" in only(longer, GOOD).message
    four, five = ([f"word{i} is {side}" for i in range(40)] for side in ("a b", "a b c"))
    assert kinds(four, five) == []  # 1.25 exactly


def test_length_in_tokens():
    left, right = ["a b c d"] * 3, ["e fgh i"] * 3
    report = {f.kind: f.message for f in lint_pairs(left, right, tokenizer=words())}
    assert "1.33 times as long (4.0 tokens positive, 3.0 negative)" in report["length"]
    assert kinds([f"a {text}" for text in GOOD], [f"a {text}" for text in BAD], tokenizer=words()) == []


def test_first_token():
    left, right = [f"I am {i} happy" for i in range(40)], [f"You are {i} sad" for i in range(40)]
    found = only(left, right)
    assert found.kind == "first token" and found.message == (
        "The first word gives the side away: total variation 1.00, where chance gives 0.09 ('i' opens 40 of 40 "
        "positive and 0 of 40 negative texts); vary the openings, or open both texts of a pair alike."
    )
    assert kinds([f'"I, {t}' for t in GOOD], [f"i {t}" for t in BAD]) == []  # case and punctuation do not count
    found = only([f"a {t}" for t in left], [f"b {t}" for t in right], tokenizer=words())
    assert found.message.startswith("The first token gives the side away") and "'a' opens 40 of 40" in found.message


def test_first_token_of_conversations_is_the_answers():
    left = [talk(f"Sure, number {i}", f"Ask {i}") for i in range(40)]
    right = [talk(f"Never, number {i}", f"Ask {i}") for i in range(40)]
    assert kinds(left, right) == ["first token"]
    assert kinds([talk(t, f"Yes {t}") for t in GOOD], [talk(t, f"No {t}") for t in BAD]) == []


def test_first_token_accounts_for_small_sides():
    """First words that are all different have a total variation of 1, and mean nothing."""
    different = lint_pairs([f"left{i} is here" for i in range(40)], [f"right{i} is here" for i in range(40)])
    assert different.ok
    assert "first token" not in kinds(["I am", "I do"], ["You are", "You do"])
    assert "first token" in kinds([f"I am {i}" for i in range(6)], [f"You are {i}" for i in range(6)])


def test_first_token_seldom_fires_on_chance():
    rng = random.Random(0)
    fired = 0
    for _ in range(200):
        left, right = (
            [f"{rng.choice('abcdefgh')} x{rng.random()}" for _ in range(rng.randint(20, 60))] for _ in range(2)
        )
        fired += "first token" in kinds(ContrastSet("s", left, right))
    assert fired == 0


def test_letter_position():
    assert kinds(*letters(32, 18)) == []  # p = 0.065
    found = only(*letters(34, 16))
    assert found.kind == "letter position" and found.message == (
        "The positive answer is (A) in 68%, (B) in 32% of 50, and (A) is positive in 34 of the 50 cases that have it "
        "(p = 0.015); swap the options of some questions, or a preference for a letter will look like the behaviour."
    )
    assert kinds(*letters(25, 25)) == []
    # In 5000 questions 53 of 100 are certainly not chance, and too little to matter.
    assert two_sided(2650, 5000, 0.5) < 1e-4 and kinds(*letters(2650, 2350)) == []


@pytest.mark.parametrize("answers", [("Yes", "No"), (" yes.", " no."), ("True", "False"), ("A", "B"), ("B.", "(C)")])
def test_letter_position_of_other_answers(answers):
    yes, no = answers
    left, right = ([f"Question {i}? {a}" for i in range(40)] for a in (yes, no))
    assert kinds(left, right) == ["letter position"]
    turned = [*left[:20], *right[20:]], [*right[:20], *left[20:]]
    assert kinds(*turned) == []
    assert kinds(ContrastSet("s", left, right[:30])) == ["letter position"]
    assert kinds([talk(t) for t in left], [talk(t) for t in right]) == ["letter position"]


def test_letter_position_of_items_with_text_after_the_letter():
    def items(n, m):
        rows = [(f"(A) word{i}", f"(B) other{i}") for i in range(n)]
        rows += [(f"(B) word{i}", f"(A) other{i}") for i in range(n, n + m)]
        keys = "question", "answer_matching_behavior", "answer_not_matching_behavior"
        found = tuple(dict(zip(keys, (f"Question {p}?", p, q), strict=True)) for p, q in rows)
        return ContrastSet("s", [f"Q {p}" for p, _ in rows], [f"Q {q}" for _, q in rows], True, found)

    assert kinds(items(34, 6)) == ["letter position"] and kinds(items(20, 20)) == []


def test_letters_in_sentences_are_no_answers():
    left, right = [f"word{i} is for plan A" for i in range(40)], [f"word{i} is for me" for i in range(40)]
    assert kinds(left, right) == []
    keys = "question", "answer_matching_behavior", "answer_not_matching_behavior"
    items = tuple(dict(zip(keys, (f"{i}?", "I agree", "A donut"), strict=True)) for i in range(40))
    assert kinds(ContrastSet("s", GOOD, BAD, True, items)) == []


def test_letter_position_of_nine_answers_in_ten():
    left, right = letters(40, 0)
    assert kinds([*left, *GOOD[:4]], [*right, *BAD[:4]]) == ["letter position"]
    assert kinds([*left, *GOOD[:6]], [*right, *BAD[:6]]) == []


def test_survival_instinct_as_published():
    path = DATA / "caa/test_ab/survival-instinct.json"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    report = lint_pairs(from_file(path))
    assert [f.kind for f in report] == ["letter position"]
    assert "The positive answer is (A) in 64%, (B) in 28%, (C) in 6%, (E) in 2% of 50" in str(report)


@pytest.mark.parametrize("name", ["coordinate-other-ais", "corrigible-neutral-HHH", "myopic-reward", "sycophancy"])
def test_balanced_sets_as_published(name):
    for folder in ("generate", "test_ab"):
        path = DATA / "caa" / folder / f"{name}.json"
        if not path.exists():
            pytest.skip(f"{path} is not on this machine")
        assert lint_pairs(from_file(path)).ok


def test_cast_as_published():
    path = DATA / "refusal/cast_behavior_refusal.json"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    assert kinds(from_file(path)) == ["duplicate", "duplicate", "first token"]


def test_chance_gap_by_dealing_every_way():
    for count, n, m in [(1, 3, 3), (2, 3, 4), (5, 4, 3), (4, 2, 6), (7, 3, 4)]:
        ways = {k: math.comb(n, k) * math.comb(m, count - k) for k in range(count + 1) if k <= n and count - k <= m}
        mean = sum(w * abs(Fraction(k, n) - Fraction(count - k, m)) for k, w in ways.items()) / sum(ways.values())
        assert chance_gap(count, n, m) == pytest.approx(float(mean), abs=1e-12)


def test_two_sided_by_adding_up():
    for n, p in [(1, 0.5), (7, 0.5), (10, 0.3), (12, 0.8)]:
        mass = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]
        for k in range(n + 1):
            assert two_sided(k, n, p) == pytest.approx(sum(m for m in mass if m <= mass[k] * (1 + 1e-7)), rel=1e-9)


def test_texts_and_tokenizer_are_unchanged():
    tokenizer, left, right = words(), list(GOOD), list(BAD)
    before = tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.truncation_side
    lint_pairs(left, right, tokenizer=tokenizer)
    assert (left, right) == (GOOD, BAD)
    assert before == (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.truncation_side)
    assert lint_pairs((t for t in GOOD), (t for t in BAD)).ok  # any iterable


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (
            (GOOD,),
            {},
            "positive and negative are a set such as sf.datasets.load gives, or two lists; the negative one is",
        ),
        ((GOOD, []), {}, "negative is empty; pass at least one text."),
        ((GOOD, 5), {}, "negative is a list of texts, not 5 of type int."),
        (
            ({"a": 1}, BAD),
            {},
            "positive is a dict, which is not a list of texts; pass a list, such as list(texts.values()).",
        ),
        ((["a", 3], ["b", "c"]), {}, "positive[1] is 3 of type int; pass a text, or a conversation"),
        (
            (ContrastSet("s", GOOD, BAD), BAD),
            {},
            "A contrast set has both sides; pass ContrastSet('s', 40 positive, 40 negative)",
        ),
        ((GOOD, BAD), {"held_out": "text"}, "held_out must be a contrast set or (positive, negative), not 'text'."),
        (
            (GOOD, BAD),
            {"held_out": ("a", "b")},
            "held_out must be a contrast set or (positive, negative), not ('a', 'b').",
        ),
        ((GOOD, BAD), {"held_out": (["a"], [4.5])}, "negative[0] is 4.5 of type float"),
        ((GOOD, BAD), {"tokenizer": "gpt2"}, "A transformers tokenizer is needed, not 'gpt2' of type str."),
    ],
)
def test_errors_by_their_text(args, options, message):
    with pytest.raises(sf.DataError) as caught:
        lint_pairs(*args, **options)
    assert message in str(caught.value)
