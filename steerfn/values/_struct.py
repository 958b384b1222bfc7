"""The one representation: frozen dataclasses that are torch pytrees.

A *struct* is an immutable value. Its fields are children (tensors, structs, tuples of them), so
`grad`, `jvp`, `vmap` and `tree_map` reach every tensor, except the fields declared `static()`, which
are structure. Unflattening bypasses `__init__`: validation runs for people, never for transforms,
which may put any object at a leaf. `eq=False` because `==` on tensors is ambiguous.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch.utils._pytree as pytree
from typing_extensions import dataclass_transform

_T = TypeVar("_T")
S = TypeVar("S")


def static(*, structure: bool = True, **kwargs: Any) -> Any:
    """A dataclass field that is never a leaf.

    With `structure=False` the field only describes its value (metadata): two trees that differ in it
    alone still have one structure, so `tree_map` over both works.
    """
    return dataclasses.field(metadata={"static": True, "structure": structure}, **kwargs)


class _Described:
    """A box that equals every other, for static fields that are not structure."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Described)

    def __hash__(self) -> int:
        return hash(_Described)

    def __repr__(self) -> str:
        return "_Described"  # equal structures read alike


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def struct(cls: type[_T]) -> type[_T]:
    """Make `cls` a frozen dataclass with identity equality and register it as a torch pytree.

    Example:
        >>> import torch
        >>> from steerfn.values._struct import struct
        >>> @struct
        ... class Scaled:
        ...     factor: torch.Tensor
        >>> torch.utils._pytree.tree_leaves(Scaled(torch.tensor(2.0)))
        [tensor(2.)]
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr="__repr__" not in cls.__dict__)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    children = tuple(f.name for f in fields if not f.metadata.get("static"))
    statics = tuple(f.name for f in fields if f.metadata.get("static"))
    described = {f.name for f in fields if not f.metadata.get("structure", True)}

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        held = tuple(_Described(getattr(value, n)) if n in described else getattr(value, n) for n in statics)
        return [getattr(value, n) for n in children], held

    def flatten_with_keys(value: Any) -> Any:
        return [(pytree.GetAttrKey(n), getattr(value, n)) for n in children], flatten(value)[1]

    def unflatten(leaves: Any, context: tuple[Any, ...]) -> Any:
        held = (c.value if isinstance(c, _Described) else c for c in context)
        return new(cls, **dict(zip(children, leaves, strict=True)), **dict(zip(statics, held, strict=True)))

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        flatten_with_keys_fn=flatten_with_keys,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
    )
    return cls


def new(cls: type[S], **fields: Any) -> S:
    """An instance of a struct without running its `__init__` or any validation."""
    value = object.__new__(cls)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return value


def replace(value: S, **changes: Any) -> S:
    """A copy of a struct with some fields changed, without validation."""
    return new(type(value), **{n: changes.get(n, getattr(value, n)) for n in _names(value)})


def children(value: Any) -> list[Any]:
    """The contents of the non-static fields of a struct, tuples item by item."""
    fields = (getattr(value, n) for n in _names(value, static=False))
    return [child for field in fields for child in (field if isinstance(field, tuple) else (field,))]


def map_children(function: Callable[[Any], Any], value: S) -> S:
    """A copy of a struct with `function` applied to its `children`."""

    def each(child: Any) -> Any:
        return tuple(map(function, child)) if isinstance(child, tuple) else function(child)

    return replace(value, **{n: each(getattr(value, n)) for n in _names(value, static=False)})


def is_struct(value: Any) -> bool:
    """Whether a value never changes, as a struct of ours or another frozen dataclass."""
    return dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen  # pyright: ignore


def _names(value: Any, static: bool = True) -> list[str]:
    """The fields of a struct, or the attributes of a plain object."""
    if not dataclasses.is_dataclass(value):
        return list(vars(value))
    return [f.name for f in dataclasses.fields(value) if static or not f.metadata.get("static")]
