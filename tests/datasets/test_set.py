"""Contrast sets as values: what they hold and refuse, subsets, and splits that leak nothing."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from words import words

import steerfn as sf
from steerfn.datasets import ContrastSet

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day."}]
ITEMS = tuple(
    {"question": f"Q{i}?", "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)", "n": i}
    for i in range(4)
)


def pairs(n, **more):
    return ContrastSet("s", tuple(f"good {i}" for i in range(n)), tuple(f"bad {i}" for i in range(n)), True, **more)


def test_a_set_is_a_value():
    d = ContrastSet("s", ["a", TALK], ["b"], description="x", source="y")
    assert d == ContrastSet("s", ("a", TALK), ("b",), False, (), "x", "y") and hash(d) == hash(dataclasses.replace(d))
    assert d != dataclasses.replace(d, negative=("c",)) and d.positive == ("a", TALK) and d.items == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        d.name = "t"


def test_length_and_repr():
    assert (len(pairs(3)), repr(pairs(3)), repr(pairs(1))) == (
        3,
        "ContrastSet('s', 3 pairs)",
        "ContrastSet('s', 1 pair)",
    )
    d = ContrastSet("s", ["a"], ["b", "c"])
    assert (len(d), repr(d)) == (2, "ContrastSet('s', 1 positive, 2 negative)")
    assert repr(pairs(4, items=ITEMS)) == "ContrastSet('s', 4 pairs with items)"


def test_a_set_feeds_a_discovery_method(tiny):
    d = ContrastSet("s", ["a b", "c"], ["d", "e f", "g"])
    v = sf.mean_difference(tiny, words(), positive=d.positive, negative=d.negative, sites=1, progress=False)
    plain = sf.mean_difference(tiny, words(), ["a b", "c"], ["d", "e f", "g"], 1, progress=False)
    assert v.identical(plain) and v.metadata["counts"] == {"positive": 2, "negative": 3}


def test_subset_of_pairs():
    d = pairs(4, items=ITEMS).subset([2, -4, 2])
    assert d.positive == ("good 2", "good 0", "good 2") and d.negative == ("bad 2", "bad 0", "bad 2")
    assert [item["n"] for item in d.items] == [2, 0, 2] and d.paired and d.name == "s"


def test_subset_without_pairs():
    d = ContrastSet("s", ["a", "b"], ["c", "d", "e"])
    assert d.subset([1]).positive == ("b",) and d.subset([1]).negative == ("d",)
    assert d.subset([1], negative=[2, 0]).negative == ("e", "c")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastSet("s", [], ["a"]), "positive is empty; pass at least one text."),
        (lambda: ContrastSet("s", ["a"], ["b", " "]), "negative[1] is empty (' '); remove it or give it words."),
        (lambda: ContrastSet("s", ["a"], [3.5]), "negative[0] is 3.5 of type float; pass a text, or a conversation"),
        (lambda: ContrastSet("s", ["a"], ["b", "c"], True), "1 positive and 2 negative texts are not pairs; give each"),
        (lambda: pairs(3, items=ITEMS), "4 items do not match 3 pairs; pass one item a pair, and paired=True."),
        (lambda: ContrastSet("s", ["a"], ["b"], items=ITEMS[:1]), "1 items do not match 1 positive, 1 negative;"),
        (
            lambda: pairs(1, items=({"question": "?", "answer_matching_behavior": 1},)),
            "items[0] has no text for answer_matching_behavior, answer_not_matching_behavior; pass dicts with",
        ),
        (lambda: pairs(2).subset([]), "A subset needs at least one index, but there are none."),
        (lambda: pairs(2).subset([0, 2]), "Index 2 is outside the 2 positive texts; pass indices from 0 to 1."),
        (lambda: pairs(2).subset([-3]), "Index -3 is outside the 2 positive texts"),
        (lambda: pairs(2).subset(1), "indices must be a list of ints or a range, not 1."),
        (lambda: pairs(2).subset([0.5]), "indices must be a list of ints or a range, not [0.5]."),
        (
            lambda: pairs(2).subset([0], negative=[1]),
            "The negative texts of pairs go with the positive ones; leave out",
        ),
        (
            lambda: pairs(2).split(0),
            "`held_out` must be a finite number > 0 and < 1, got 0.",
        ),
        (
            lambda: pairs(2).split(1.0),
            "`held_out` must be a finite number > 0 and < 1, got 1.0.",
        ),
        (
            lambda: pairs(2).split(True),
            "`held_out` must be a finite number > 0 and < 1, got True.",
        ),
        (
            lambda: pairs(2).split(float("nan")),
            "`held_out` must be a finite number > 0 and < 1, got nan.",
        ),
        (lambda: pairs(2).split(seed="a"), "`seed` must be an integer, got 'a'."),
        (
            lambda: pairs(1).split(),
            "ContrastSet('s', 1 pair) cannot be split with 0.25 held out: it has too few examples that share no text;",
        ),
        (lambda: ContrastSet("s", ["a", "b"], ["c"]).split(), "1 negative) cannot be split with 0.25 held out"),
        (lambda: ContrastSet("s", ["a", "b", "c"], ["same"] * 3, True).split(), "remove repeated texts"),
    ],
)
def test_errors_by_their_text(make, message):
    with pytest.raises(sf.DataError) as caught:
        make()
    assert message in str(caught.value)


def test_split_by_hand():
    train, test = pairs(8).split(0.25)
    assert (len(train), len(test), train.name, test.name) == (6, 2, "s/train", "s/test")
    for part in (train, test):
        assert part.paired and [p[5:] for p in part.positive] == [n[4:] for n in part.negative]
        assert list(part.positive) == sorted(part.positive)  # in the order of the set


def test_each_option_of_split_changes_it():
    d = pairs(20)
    assert len({d.split(seed=seed)[1].positive for seed in range(5)}) == 5
    assert [len(d.split(part)[1]) for part in (0.01, 0.1, 0.5, 0.99)] == [1, 2, 10, 19]
    assert d.split() == d.split(0.25, 0)


def test_split_depends_on_the_texts_and_not_on_their_order():
    d = pairs(12)
    turned = d.subset(range(11, -1, -1))
    assert set(turned.split()[1].positive) == set(d.split()[1].positive)


def test_repeated_pairs_stay_on_one_side():
    d = ContrastSet("s", ["a", "b", "A ", "c", "d"], ["x", "y", "x", "z", "w"], True)
    for seed in range(20):
        train, test = d.split(0.4, seed)
        assert {"a", "A "} <= set(train.positive) or {"a", "A "} <= set(test.positive)


def test_a_text_shared_by_two_pairs_keeps_them_together():
    d = ContrastSet("s", ["a", "b", "c", "d"], ["x", "a", "y", "z"], True)
    for seed in range(20):
        assert sum({"a", "b"} <= set(part.positive) for part in d.split(0.5, seed)) == 1


def test_what_is_larger_than_the_part_to_hold_out_is_held_out_when_nothing_else_is_left():
    d = ContrastSet("s", ["a"] * 3 + ["b"] * 4, ["x"] * 3 + ["y"] * 4, True)
    train, test = d.split(0.1)
    assert (set(train.positive), set(test.positive)) == ({"b"}, {"a"})


def test_a_group_is_never_in_both_sets():
    apart = ContrastSet("s", [f"a {i}" for i in range(8)], [f"b {i}" for i in range(8)])
    for d, groups in ((pairs(8), [0, 0, 0, 1, 1, 2, 2, 3]), (apart, [0, 0, 1, 1, 2, 2, 3, 3] * 2)):
        for seed in range(10):
            parts = d.split(0.3, seed, groups=groups)
            held = [{g for text, g in zip(d.positive, groups, strict=False) if text in p.positive} for p in parts]
            assert not held[0] & held[1] and held[0] and held[1]
        assert any(d.split(0.3, seed) != d.split(0.3, seed, groups=groups) for seed in range(10))
    with pytest.raises(sf.DataError, match="groups has 3 labels for 8 pairs"):
        pairs(8).split(groups=[1, 2, 3])


def test_items_and_conversations_go_along():
    train, test = pairs(4, items=ITEMS).split(0.5)
    for part in (train, test):
        assert [f"good {item['n']}" for item in part.items] == list(part.positive)
    d = ContrastSet("s", [TALK, "a"], ["b", "c"], True)
    assert sorted(map(str, (d.split()[0].positive[0], d.split()[1].positive[0]))) == sorted(map(str, [TALK, "a"]))


TEXTS = st.lists(st.sampled_from("a b c d e f g h A B ".split(" ")[:10]), min_size=1, max_size=12)


@st.composite
def sets(draw):
    left, right = draw(TEXTS), draw(TEXTS)
    paired = draw(st.booleans())
    if paired:
        n = min(len(left), len(right))
        left, right = left[:n], right[:n]
    # Where texts of the two sides are never the same, splits succeed more often.
    if draw(st.booleans()):
        right = [f"not {text}" for text in right]
    return ContrastSet("s", left, right, paired)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(sets(), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_is_a_partition_without_leaks_and_always_the_same(d, held_out, seed):
    try:
        train, test = d.split(held_out, seed)
    except sf.DataError as error:
        assert "cannot be split" in str(error)
        return
    assert (train, test) == d.split(held_out, seed)
    if d.paired:
        whole = sorted(zip(d.positive, d.negative, strict=True))
        parts = [pair for part in (train, test) for pair in zip(part.positive, part.negative, strict=True)]
        assert sorted(parts) == whole
    for side in ("positive", "negative"):
        assert sorted(getattr(train, side) + getattr(test, side)) == sorted(getattr(d, side))
    seen, held = ({t.casefold() for t in part.positive + part.negative} for part in (train, test))
    assert not seen & held


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_different_pairs_always_split_as_asked(n, held_out, seed):
    train, test = pairs(n).split(held_out, seed)
    assert len(train) + len(test) == n and len(test) == min(max(round(held_out * n), 1), n - 1)
