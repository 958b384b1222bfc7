"""Rows: every row of the batch its own steering."""

from collections.abc import Sequence
from typing import Any

import torch

from steerfn._errors import ShapeError, SteerError
from steerfn._site import Site
from steerfn._struct import replace, struct
from steerfn._types import Hidden
from steerfn.operators._base import Bound, Operator, as_operator, negative_zero
from steerfn.operators._combine import identity
from steerfn.operators._info import Info, Tokens
from steerfn.operators._linear import Shift


@struct
class _ByRow:
    """The general case: each row through its own bound operator."""

    bound: tuple[Any, ...]

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        copies = info.tokens.copies
        rows = len(self.bound)
        if rows * copies != hidden.shape[0]:
            raise ShapeError(
                f"sf.rows has {rows} operators, but the batch has {hidden.shape[0]} rows; pass one for each row "
                "(None leaves a row unsteered)."
            )
        parts = []
        for i, bound in enumerate(self.bound):
            part = slice(i * copies, (i + 1) * copies)
            parts.append(hidden[part] if bound is None else bound(hidden[part], _narrowed(info, part)))
        return torch.cat(parts)


def _narrowed(info: Info, part: slice) -> Info:
    """The info of some rows of the batch."""
    tokens, length = info.tokens, info.tokens.prompt_length
    real = None if tokens.real is None else tokens.real[part]
    kept = Tokens(tokens.index[part], length[part], real, copies=part.stop - part.start)
    reads = None if info.reads is None else {site: state[part] for site, state in info.reads.items()}
    return replace(info, tokens=kept, reads=reads)


@struct
class Rows(Operator):
    """See `rows`."""

    operators: tuple[Operator, ...]

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        bound = tuple(op.bind(site, device) for op in self.operators)
        if all(b is None for b in bound):
            return None
        # Plain additions, the common case, become one addition of a [rows, width] tensor.
        deltas = [b.delta for b in bound if isinstance(b, Shift) and b.delta.ndim == 1]
        if len(deltas) == sum(b is not None for b in bound) and len({d.shape for d in deltas}) == 1:
            nothing = negative_zero(torch.zeros_like(deltas[0]))
            stacked = torch.stack([b.delta if isinstance(b, Shift) else nothing for b in bound])
            return Shift(delta=stacked, site=site)
        return _ByRow(bound=bound)


def rows(operators: Sequence[Operator | None]) -> Operator:
    """Row `i` of the batch gets operator `i`; None leaves a row as it is, bit for bit.

    With beams or `num_return_sequences`, all rows of one prompt get that prompt's operator.

    Args:
        operators: one operator or None for each row of the batch.

    Raises:
        SteerError: an empty list, or something that is neither an operator nor None; at use, a batch
            with another number of rows.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)}), torch.zeros(3, 1, 1)
        >>> sf.rows([sf.add(v, 2.0), None, sf.add(v, -1.0)])(h, sf.Info.of(h)).flatten()
        tensor([ 2.,  0., -1.])
    """
    if isinstance(operators, (Operator, str)) or not isinstance(operators, Sequence) or not operators:
        raise SteerError(f"rows takes a non-empty list with an operator or None for each row, not {operators!r:.80}.")
    return Rows(tuple(identity if op is None else as_operator(op) for op in operators))
