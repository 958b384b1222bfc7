"""Packing: every text whole, every token once, and nothing seen that a text alone would not see."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steerfn.run._positions import Read
from steerfn.run._trees import alone, fill_rows, pack, trees

texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=8)


def read(ids, at=None):
    return Read(tuple(ids), (len(ids) - 1 if at is None else at,))


def packed(ids, **options):
    return pack([read(i) for i in ids], **{"whole": True, "share": True, "width": 10**6} | options)


@given(texts)
def test_every_text_is_in_one_row_with_its_own_tokens_and_positions(ids):
    rows = packed(ids)
    found = {number: (row, path) for row in rows for number, path in row.paths}
    assert sorted(number for row in rows for number, _ in row.paths) == list(range(len(ids)))
    for number, (row, path) in found.items():
        assert tuple(row.ids[j] for j in path) == ids[number]
        assert [row.depth[j] for j in path] == list(range(len(path)))


@given(texts)
def test_no_beginning_is_computed_twice(ids):
    beginnings = {text[: i + 1] for text in ids for i in range(len(text))}
    assert sum(len(row.ids) for row in packed(ids)) == len(beginnings)


@given(texts)
def test_a_token_sees_the_beginning_of_its_text_and_nothing_else(ids):
    for row in packed(ids):
        expected = np.zeros((len(row.ids), len(row.ids)), dtype=bool)
        for _, path in row.paths:
            for i, token in enumerate(path):
                for seen in path[: i + 1]:
                    expected[token, seen] = True
        assert np.array_equal(row.visible(), expected)


def test_what_comes_after_the_token_that_is_read_is_left_out():
    [row] = pack([read([5, 6, 7, 8], at=1), read([5, 6, 9], at=2)], whole=False, share=True, width=10**6)
    assert row.ids == (5, 6, 9)
    [row] = pack([read([5, 6, 7, 8], at=1)], whole=True, share=True, width=10**6)
    assert row.ids == (5, 6, 7, 8)


def test_joining_must_save_more_than_it_costs():
    """In a narrow model attention dominates: a long row of texts that share one token is not worth it."""
    ids = {i: (1, *range(10 * i, 10 * i + 9)) for i in range(1, 30)}
    assert len(trees(ids, 10**6, None)) == 1
    assert 1 < len(trees(ids, 16, None)) <= len(ids)
    assert [len(row.paths) for row in trees({0: (1, 2), 1: (3, 4)}, 10**6, None)] == [1, 1]  # nothing in common


@given(texts, st.sampled_from([4, 16, 64]), st.sampled_from([None, 1, 3]))
def test_short_rows_fill_up_long_ones(ids, width, most):
    """First fit: no row could take another whole, and none is longer than the longest or the limits."""
    single = [alone(i, text) for i, text in enumerate(ids)]
    rows = fill_rows(single, width, most)
    assert sorted(number for row in rows for number, _ in row.paths) == list(range(len(ids)))
    assert all(tuple(row.ids[j] for j in path) == ids[number] for row in rows for number, path in row.paths)
    size = min(max(max(map(len, ids)), width // 4), width // 2)
    lengths = sorted(len(row.ids) for row in rows)
    assert all(len(row.ids) <= max(size, len(ids[row.paths[0][0]])) for row in rows)
    assert all(most is None or len(row.paths) <= most for row in rows)
    if most is None and len(rows) > 1:
        assert lengths[0] + lengths[1] > size


def test_limits():
    ids = [(1, 2, 3, i) for i in range(6)]
    assert [len(row.paths) for row in packed(ids, most=2)] == [2, 2, 2]
    assert all(not row.shared for row in packed(ids, longest=3))
    assert all(not row.shared for row in packed(ids, share=False))


def test_rows_of_one_text_come_first_and_the_longest_of_each_kind():
    rows = packed([(9,) * 3, (1, 2, 3), (1, 2, 4), (8,) * 5, (5, 1), (5, 2)], width=8)
    assert [(row.shared, len(row.ids)) for row in rows] == [(False, 5), (False, 3), (True, 4), (True, 3)]
