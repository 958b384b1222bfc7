"""The part of an operator that weights can hold: additions at block outputs, or one direction removed everywhere."""

from typing import Any

import torch
from torch import Tensor

from steerfn.model import Layout
from steerfn.operators import Ablate, Add, At, Chain, Operator, everywhere
from steerfn.values import Site, SiteError, SteerError, resid_post, resid_pre

LIVE = "steer live with sf.steer or sf.generate instead"
PARALLEL = 1 - 1e-5
"""The cosine from which two directions are one."""


def parts_of(op: Operator) -> list[Operator]:
    """The additions and ablations that an operator is a chain of.

    Raises:
        SteerError: anything that weights cannot do.
    """
    if isinstance(op, Chain):
        return [part for each in op.operators for part in parts_of(each)]
    if isinstance(op, At):
        if op.scope is not everywhere:
            raise SteerError(
                f"Weights act on every token and cannot be baked for the scope {op.scope}; drop the scope, or {LIVE}."
            )
        return parts_of(op.operator)
    if not isinstance(op, (Add, Ablate)):
        raise SteerError(
            f"{op} depends on the hidden state and cannot be written into weights, which hold additions and ablations; "
            f"{LIVE}."
        )
    if isinstance(op, Add) and op.alpha.ndim:
        raise SteerError(f"A strength for each row cannot be baked: a checkpoint has one; {LIVE}.")
    return [op]


def additions(parts: list[Operator]) -> dict[int, Tensor]:
    """The sum of the additions at the output of each block, in float64.

    Raises:
        SiteError: a site that is not a block's output.
    """
    out: dict[int, Tensor] = {}
    for part in parts:
        assert isinstance(part, Add)
        for site, direction in zip(part.vector.sites, part.vector.directions, strict=True):
            block = _block(site)
            delta = float(part.alpha) * direction.detach().cpu().double()
            out[block] = out.get(block, 0) + delta
    return {block: delta for block, delta in out.items() if bool(delta.any())}


def _block(site: Site) -> int:
    """The block to whose output an addition at a site adds."""
    if site.kind in ("resid_post", "mlp_out"):
        return site.block
    if site.kind == "resid_pre" and site.block > 0:
        return site.block - 1
    raise SiteError(
        f"An addition at {site} does not add to a block's output, where it would be baked as a bias; use resid_post "
        f"sites, or {LIVE}."
    )


def ablated_direction(parts: list[Operator], layout: Layout) -> Tensor:
    """The one unit direction that is ablated along the whole stream, in float64.

    Raises:
        SteerError: several directions, or some sites only: then no change of weights does the same.
    """
    if len(parts) > 1 or not isinstance(parts[0], Ablate):
        raise SteerError(
            "Baking takes additions, or one ablation, and not both or several: bake one, and bake the result again."
        )
    vector = parts[0].vector
    units = [direction.detach().cpu().double() for direction in vector.directions]
    units = [each / each.norm().clamp_min(torch.finfo(torch.float64).tiny) for each in units]
    if any(abs(float(units[0] @ each)) < PARALLEL for each in units[1:]):
        raise SteerError(
            "The directions that are ablated differ from site to site, which no change of weights does exactly; ablate "
            f"one: sf.ablate(sf.discover.spread(v, sf.layout(model).stream)), or {LIVE}."
        )
    needed, has = ({_canonical(site, layout) for site in sites} for sites in (layout.stream, vector.sites))
    if needed - has or has - needed:
        missing = sorted(needed - has, key=lambda site: site.order) or sorted(has - needed, key=lambda site: site.order)
        raise SteerError(
            "Weights are orthogonal to a direction or not, so an ablation is baked along the whole stream only, and "
            f"this one {'leaves out' if needed - has else 'also has'} {missing[0]}; pass "
            f"sf.ablate(sf.discover.spread(v, sf.layout(model).stream)), or {LIVE}."
        )
    return units[0]


def _canonical(site: Site, layout: Layout) -> Site:
    """One name for the place between two blocks."""
    if site.kind == "resid_post" and site.block < layout.n_layers - 1:
        return resid_pre[site.block + 1]
    return site


def fold_operator(op: Any, layout: Layout) -> tuple[dict[int, Tensor], Tensor | None]:
    """The additions at block outputs, or the direction to remove; one of the two is empty or None.

    Raises:
        SteerError: an operator that weights cannot do, or that changes nothing.
        SiteError: a site that is not a block's output.
    """
    parts = parts_of(op)
    if any(isinstance(part, Ablate) for part in parts):
        return {}, ablated_direction(parts, layout)
    deltas = additions(parts)
    if not deltas:
        raise SteerError("The operator changes nothing, so there is nothing to bake; check the vector and its alpha.")
    return deltas, None


def total(deltas: dict[int, Tensor]) -> dict[Any, Tensor]:
    """The additions as directions of a vector, in float32."""
    return {resid_post[block]: delta.float() for block, delta in sorted(deltas.items())}
