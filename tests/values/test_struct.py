"""Structs: frozen dataclasses that are pytrees."""

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.utils._pytree as pytree

from steerfn.values._struct import map_children, new, replace, static, struct


@struct
class Point:
    x: torch.Tensor
    label: str = static()
    y: torch.Tensor
    note: str = static(structure=False, default="")

    def __post_init__(self):
        if self.label == "refused":
            raise ValueError("refused")


@struct
class Group:
    points: tuple
    first: Point


def point(x=1.0, y=2.0, **kwargs):
    return Point(torch.tensor(x), "p", torch.tensor(y), **kwargs)


def test_children_are_leaves_and_static_fields_are_structure():
    p = point()
    leaves, structure = pytree.tree_flatten(p)
    assert leaves[0] is p.x and leaves[1] is p.y and len(leaves) == 2
    assert pytree.tree_structure(point(5.0)) == structure
    assert pytree.tree_structure(Point(p.x, "q", p.y)) != structure
    names = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(p)[0]]
    assert names == [".x", ".y"]


def test_a_described_field_is_no_structure_and_survives():
    a, b = point(note="a"), point(note="b")
    assert pytree.tree_structure(a) == pytree.tree_structure(b)
    assert hash(pytree.tree_structure(a).context[1]) == hash(pytree.tree_structure(b).context[1])
    total = pytree.tree_map(torch.add, a, b)
    assert total.note == "a" and total.x == 2.0 and total.label == "p"


def test_unflatten_bypasses_validation():
    with pytest.raises(ValueError, match="refused"):
        Point(torch.ones(1), "refused", torch.ones(1))
    structure = pytree.tree_structure(new(Point, x=1, label="refused", y=2, note=""))
    back = pytree.tree_unflatten([None, "anything"], structure)
    assert type(back) is Point and back.y == "anything" and back.label == "refused"


def test_nested_structs_flatten_through():
    group = Group((point(1.0), point(3.0)), point(5.0))
    assert [float(x) for x in pytree.tree_leaves(group)] == [1.0, 2.0, 3.0, 2.0, 5.0, 2.0]
    doubled = pytree.tree_map(lambda x: 2 * x, group)
    assert doubled.points[1].x == 6.0 and doubled.first.label == "p"


def test_structs_are_frozen_and_compare_by_identity():
    p = point()
    for change in (lambda: setattr(p, "x", 1), lambda: setattr(p, "z", 1), lambda: delattr(p, "x")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    assert p == p and p != copy.copy(p) and hash(p) == hash(p) and len({p, copy.copy(p)}) == 2


def test_copies_and_pickles():
    p = point(note="n")
    for back in (copy.copy(p), copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert (back.x, back.y, back.label, back.note) == (p.x, p.y, "p", "n")
    assert copy.deepcopy(p).x is not p.x


def test_replace_changes_some_fields_without_validation():
    p = point()
    q = replace(p, label="refused", x=7)
    assert (q.x, q.label) == (7, "refused") and q.y is p.y and p.label == "p"


def test_map_children_goes_one_level_and_into_tuples():
    group = Group((point(1.0), point(3.0)), point(5.0))
    seen = []
    back = map_children(lambda child: seen.append(child) or child, group)
    assert seen == [*group.points, group.first]
    assert isinstance(back, Group) and back.points == group.points
    assert map_children(lambda child: 0, point()).label == "p"


def test_repr_shows_the_fields_unless_the_class_has_one():
    assert repr(point()) == "Point(x=tensor(1.), label='p', y=tensor(2.), note='')"

    @struct
    class Quiet:
        x: int

        def __repr__(self):
            return "quiet"

    assert repr(Quiet(1)) == "quiet"
