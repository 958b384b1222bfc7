"""Rows: every row of the batch its own steering.

Rows are grouped once, when bound. The rows of one operator run together, and so do those of operators that are
the same arithmetic on other numbers: their tensors are stacked, a direction to `[rows, width]` and a number to
`[rows]`. Unsteered rows are not computed at all.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._errors import DataError, ShapeError, SteerError
from steerfn._site import Site
from steerfn._struct import map_children, replace, static, struct
from steerfn._types import Hidden
from steerfn.operators import _combine, _linear, _schedule, _scope
from steerfn.operators._base import Bound, Operator, Steerable, as_operator, negative_zero, sites_of
from steerfn.operators._info import Info, Tokens
from steerfn.operators._linear import Shift

STACKABLE: dict[type, dict[str, int]] = {
    Shift: {"delta": 1},
    _linear._Ablated: {"unit": 1},
    _linear._Projected: {"unit": 1},
    _linear._Clamped: {"unit": 1, "low": 0, "high": 0},
    _linear._Turned: {"unit": 1, "angle": 0},
    _linear._TurnedInPlane: {"unit": 1, "angle": 0, "second": 1},
    _schedule._Scheduled: {"strengths": 1},
    _scope._Scoped: {},
    _combine._Renormed: {},
    _combine._Sequence: {},
}
"""The bound operators whose tensors may have an axis of rows in front, and how many axes each has without it."""


def _alike(a: Any, b: Any, axes: int = 0) -> bool:
    """Whether two parts of bound operators are the same arithmetic on other numbers."""
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return same and a.ndim == axes  # one number for each row already: it has its rows
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(_alike(x, y, axes) for x, y in zip(a, b, strict=True))
    if type(a) in STACKABLE:
        known = STACKABLE[type(a)]
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(_alike(getattr(a, n), getattr(b, n), known.get(n, 0)) for n in names)
    return a is b or (isinstance(a, (Site, _scope.Scope)) and a == b)


def _stacked(parts: Sequence[Any]) -> Any:
    """Bound operators that are alike as one, whose tensors hold one entry for each row."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(list(parts))
    if isinstance(first, tuple):
        return tuple(_stacked(each) for each in zip(*parts, strict=True))
    if type(first) in STACKABLE:
        names = [field.name for field in dataclasses.fields(first)]
        return replace(first, **{n: _stacked([getattr(part, n) for part in parts]) for n in names})
    return first


@struct
class _Group:
    """Some rows of the batch and the bound operator that acts on them."""

    bound: Any
    rows: Tensor

    def __call__(self, hidden: Hidden, info: Info, batch: int) -> Tensor:
        """Its rows, steered, in their order. `batch` counts the rows before they were copied for beams."""
        if self.rows.shape[0] == batch:
            return self.bound(hidden, info)
        return self.bound(self._of(hidden, batch), self._narrowed(info, batch))

    def _of(self, values: Tensor, batch: int) -> Tensor:
        """The entries for its rows of a tensor with one for each row of the batch."""
        return values.unflatten(0, (batch, -1)).index_select(0, self.rows.to(values.device)).flatten(0, 1)

    def _narrowed(self, info: Info, batch: int) -> Info:
        index, length, real = info.tokens.index, info.tokens.prompt_length, info.tokens.real
        real = None if real is None else self._of(real, batch)
        tokens = Tokens(self._of(index, batch), self._of(length, batch), real, copies=info.tokens.copies)
        reads = None if info.reads is None else {site: self._of(h, batch) for site, h in info.reads.items()}
        return replace(info, tokens=tokens, reads=reads)


@struct
class _Grouped:
    """Bound `rows`: `source` says where each row of the result lies among all rows and then each group's."""

    groups: tuple[_Group, ...]
    source: Tensor

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        rows, copies = self.source.shape[0], info.tokens.copies
        if rows * copies != hidden.shape[0]:
            raise ShapeError(
                f"sf.rows has {rows} operators, but the batch has {hidden.shape[0]} rows; pass one for each row "
                "(None leaves a row unsteered)."
            )
        found = [group(hidden, info, rows) for group in self.groups]
        if len(found) == 1 and found[0].shape[0] == hidden.shape[0]:
            return found[0]
        whole = torch.cat([hidden, *found]).unflatten(0, (-1, copies))
        return whole.index_select(0, self.source.to(hidden.device)).flatten(0, 1)


@struct
class Rows(Operator):
    """See `rows`."""

    operators: tuple[Operator, ...]  # each once, however many rows it steers
    which: tuple[int, ...] = static()  # the operator of each row, -1 for none

    touched = Operator.touched_by_parts

    @property
    def sites(self) -> tuple[Site, ...]:
        return sites_of(self.operators)

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        bound = [op.bind_at(site, device) for op in self.operators]
        kinds: list[list[int]] = []
        for i, each in enumerate(bound):
            if each is None:
                continue
            for kind in kinds:
                if _alike(bound[kind[0]], each):
                    kind.append(i)
                    break
            else:
                kinds.append([i])
        if not kinds:
            return None
        first = bound[kinds[0][0]]
        if len(kinds) == 1 and isinstance(first, Shift) and first.delta.ndim == 1:
            # Plain additions, the common case, become one; adding -0.0 leaves a row as it is, bit for bit.
            nothing = replace(first, delta=negative_zero(torch.zeros_like(first.delta)))
            return _stacked([nothing if i < 0 or bound[i] is None else bound[i] for i in self.which])
        groups, source = [], list(range(len(self.which)))
        end = len(source)
        for kind in kinds:
            members = [row for row, i in enumerate(self.which) if i in kind]
            acting = bound[kind[0]] if len(kind) == 1 else _stacked([bound[self.which[row]] for row in members])
            groups.append(_Group(bound=acting, rows=torch.tensor(members, device=device)))
            for row in members:
                source[row], end = end, end + 1
        return _Grouped(groups=tuple(groups), source=torch.tensor(source, device=device))


def rows(operators: Sequence[Operator | None]) -> Operator:
    """Row `i` of the batch gets operator `i`; None leaves a row as it is, bit for bit.

    Rows that share an operator, and rows whose operators differ in numbers only (the vector, the strength, the
    angle), are steered at once: `rows` of 64 additions costs about what one addition does.

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
    distinct: dict[int, tuple[int, Operator]] = {}
    which = []
    for row, op in enumerate(operators):
        # An alpha of one number for the one row would be too short for a group, so such rows stay alone.
        key = id(op) if op is None or row_count(as_operator(op)) is None else -row
        which.append(-1 if op is None else distinct.setdefault(key, (len(distinct), op))[0])
    return Rows(tuple(op for _, op in distinct.values()), tuple(which))


def row_count(part: Steerable) -> int | None:
    """For how many rows an operator holds one number or operator each; None where it holds none by row.

    Raises:
        ShapeError: parts for different numbers of rows.
    """
    if isinstance(part, Rows):
        return len(part.which)
    found = {len(value) for name in part.by_row if (value := getattr(part, name)).ndim}
    found |= {n for inner in part._parts() if isinstance(inner, Steerable) and (n := row_count(inner)) is not None}
    if len(found) > 1:
        raise ShapeError(
            f"This operator holds strengths or operators for {sorted(found)} rows; make all of them for one batch."
        )
    return next(iter(found), None)


def refuse_rows(operators: Iterable[Steerable | None], verb: str) -> None:
    """Refuse operators that hold one number or operator for each row, where rows are not the caller's prompts.

    Raises:
        DataError: one of them does.
    """
    for each in operators:
        if each is not None and (rows := row_count(each)) is not None:
            raise DataError(
                f"This operator holds one strength or operator for each of {rows} rows, but {verb} steers all prompts "
                "alike and batches them as it likes; pass one strength, or use sf.generate with one for each prompt."
            )


def of_row(part: Any, row: int) -> Any:
    """What an operator does to one row of its batch, as an operator for any row; itself where rows are alike."""
    if not isinstance(part, Steerable) or row_count(part) is None:
        return part
    if isinstance(part, Rows):
        which = part.which[row]
        return _combine.identity if which < 0 else of_row(part.operators[which], 0)
    values = {name: getattr(part, name) for name in part.by_row}
    return replace(
        map_children(lambda child: of_row(child, row), part),
        **{name: value[row] if value.ndim else value for name, value in values.items()},
    )
