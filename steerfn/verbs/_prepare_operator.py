"""Whether an operator fits a model: checked before it is used, and once, which its vectors remember."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch.utils._pytree as pytree

from steerfn.model import Layout, layout, unwrap_model
from steerfn.operators import Operator
from steerfn.values import (
    Metadata,
    ModelIdentity,
    ShapeError,
    Site,
    SteerError,
    SteeringVector,
    check_match,
    check_origin,
    replace,
)

Needs = tuple[tuple[tuple[str | None, tuple[tuple[str, int | None], ...]], ...], tuple[str, ...]]
"""What an operator asks of a model, in constants: of each vector the model that it was made from (JSON) and its widths
by site, None where they are not looked at; and the sites that the operator acts on."""


def needs_of(operator: Operator, *, widths: bool = True, known: Layout | None = None) -> Needs:
    """Check an operator against a model: its sites, its widths, and once per layout where its vectors come from."""
    vectors = tuple(
        (
            None if known is not None and v.metadata.checked_for is known else v.metadata.origin,
            tuple((s.name, d.shape[-1] if widths else None) for s, d in v._items()),
        )
        for v in operator.vectors
    )
    return vectors, tuple(site.name for site in operator.sites)


def check_needs(needs: Needs, model: Any, layout: Layout, *, strict: bool | str) -> None:
    """Refuse an operator that does not fit a model; see `prepare_operator`."""
    vectors, acts = needs
    identity = ModelIdentity.of(model)
    for origin, widths in vectors:
        sites = [(Site.parse(name), width) for name, width in widths]
        if strict or origin is not None:
            check_origin(json.loads(origin or "null"), sites, identity, strict=strict)
        for given, width in sites:
            [site] = layout.resolve((given,))
            if width not in (None, layout.width(site)):
                raise ShapeError(
                    f"The direction at {site} has width {width}, but {layout.model} has width {layout.width(site)} "
                    "there: this vector was made for another model."
                )
    if not vectors:
        layout.resolve(tuple(map(Site.parse, acts)))


def prepare_operator(operator: Operator, model: Any, layout: Layout, *, strict: bool | str = False) -> Operator:
    """An operator with its sites resolved against a model, and checked against it.

    Its vectors remember that their origin was compared with this model: preparing the result again, or what is made of
    it, compares nothing twice and repeats no warning.

    `model` may be its `ModelIdentity`; `strict` is as in `check_match`, and a strict check is always made.

    Raises:
        SteerError: a site that the model lacks, a direction of another width, a vector of another model.
    """
    sites = operator.sites
    if not isinstance(sites, (tuple, list)) or not all(isinstance(site, Site) for site in sites):
        raise SteerError(_no_sites(operator))
    check_needs(needs_of(operator, known=None if strict else layout), model, layout, strict=strict)
    if not _are_concrete((*sites, *(site for vector in operator.vectors for site in vector.sites))):
        operator = operator.resolve(layout.n_layers)
    if not _are_concrete(operator.sites):
        raise SteerError(_no_sites(operator))
    layout.resolve(operator.sites)
    return _remember(operator, layout)


def prepare_operators(ops: Sequence[Operator | None], model: Any, layout: Layout) -> list[Operator | None]:
    """The operators of one call, as by `prepare_operator`: what is one operator stays one, and None stays None.

    The model is identified once, and what there is to say of where vectors were made is said once.
    """
    identity = ModelIdentity.of(model)
    ready: dict[int, Operator] = {}
    for op in ops:
        if op is not None and id(op) not in ready:
            ready[id(op)] = prepare_operator(op, identity, layout)
    return [None if op is None else ready[id(op)] for op in ops]


def check_vector(vector: SteeringVector, model: Any, *, strict: bool | str = False) -> SteeringVector:
    """A vector that `check_match` has compared with a model (or its `ModelIdentity`), and that remembers it."""
    identity = ModelIdentity.of(model)
    model_layout = layout(unwrap_model(identity.model))
    if strict or vector.metadata.checked_for is not model_layout:
        check_match(vector, identity, strict=strict)
    return _remember(vector, model_layout)


def _remember(value: Any, layout: Layout) -> Any:
    """The same, of vectors that note by which layout they were checked; operators that users wrote are left alone."""

    def is_vector(part: Any) -> bool:
        return isinstance(part, SteeringVector)

    def note(leaf: Any) -> Any:
        return replace(leaf, metadata=Metadata(leaf.metadata, checked_for=layout)) if is_vector(leaf) else leaf

    vectors = (value,) if is_vector(value) else value.vectors
    if all(v.metadata.origin is None or v.metadata.checked_for is layout for v in vectors):
        return value
    return pytree.tree_map(note, value, is_leaf=is_vector)


def _no_sites(operator: Operator) -> str:
    return (
        f"The sites that {type(operator).__name__} computes are {operator.sites!r:.80}; return a tuple of sites of "
        "one block each, counted from 0, such as (sf.resid_post[12],)."
    )


def _are_concrete(sites: Iterable[Any]) -> bool:
    """Whether all of them are sites of one block each, counted from 0."""
    return all(isinstance(site, Site) and not site.is_range and site.block >= 0 for site in sites)
