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

from steerfn.operators import _chain, _schedule, _scope
from steerfn.operators._add import Shift
from steerfn.operators._on_direction import BoundLaw, negative_zero
from steerfn.operators._operator import Bound, Info, Operator, Steerable, Tokens, as_operator
from steerfn.operators._row_ids import SomeRows
from steerfn.values import (
    DataError,
    Hidden,
    ShapeError,
    Site,
    SteerError,
    map_children,
    public,
    replace,
    static,
    struct,
)

STACKABLE: dict[type, dict[str, int]] = {
    Shift: {"delta": 1},
    BoundLaw: {"axes": 1, "numbers": 0},
    _schedule._Scheduled: {"strengths": 1},
    _scope._Scoped: {},
    _chain._Renormed: {},
    _chain._Sequence: {},
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


def _stack(parts: Sequence[Any]) -> Any:
    """Bound operators that are alike as one, whose tensors hold one entry for each row."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(list(parts))
    if isinstance(first, tuple):
        return tuple(_stack(each) for each in zip(*parts, strict=True))
    if type(first) in STACKABLE:
        names = [field.name for field in dataclasses.fields(first)]
        return replace(first, **{n: _stack([getattr(part, n) for part in parts]) for n in names})
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
        return self.bound(self._of(hidden, batch), self._info_of_rows(info, batch))

    def _of(self, values: Tensor, batch: int) -> Tensor:
        """The entries for its rows of a tensor with one for each row of the batch."""
        return values.unflatten(0, (batch, -1)).index_select(0, self.rows.to(values.device)).flatten(0, 1)

    def _info_of_rows(self, info: Info, batch: int) -> Info:
        at = info.tokens
        real, ids = (None if each is None else self._of(each, batch) for each in (at.real, at.ids))
        row = None if at.row is None else SomeRows(at.row, lambda values: self._of(values, batch))
        tokens = Tokens(self._of(at.index, batch), self._of(at.prompt_length, batch), real, at.copies, ids, row)
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
            copied = f" ({hidden.shape[0] // copies} prompts in {copies} copies each)" if copies > 1 else ""
            raise ShapeError(
                f"sf.rows has {rows} operators, but the batch has {hidden.shape[0]} rows{copied}; pass one for each "
                f"{'prompt' if copies > 1 else 'row'} (None leaves it unsteered)."
            )
        outputs = [group(hidden, info, rows) for group in self.groups]
        if len(outputs) == 1 and outputs[0].shape[0] == hidden.shape[0]:
            return outputs[0]
        whole = torch.cat([hidden, *outputs]).unflatten(0, (-1, copies))
        return whole.index_select(0, self.source.to(hidden.device)).flatten(0, 1)


@struct
class Rows(Operator):
    """See `rows`."""

    operators: tuple[Operator, ...]  # each once, however many rows it steers
    which: tuple[int, ...] = static()  # the operator of each row, -1 for none

    sites = Steerable.sites  # pyright: ignore[reportIncompatibleMethodOverride]  # none at all are fine here
    touched = Operator.touched_by_parts

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
            return _stack([nothing if i < 0 or bound[i] is None else bound[i] for i in self.which])
        groups, source = [], list(range(len(self.which)))
        end = len(source)
        for kind in kinds:
            members = [row for row, i in enumerate(self.which) if i in kind]
            acting = bound[kind[0]] if len(kind) == 1 else _stack([bound[self.which[row]] for row in members])
            groups.append(_Group(bound=acting, rows=torch.tensor(members, device=device)))
            for row in members:
                source[row], end = end, end + 1
        return _Grouped(groups=tuple(groups), source=torch.tensor(source, device=device))


@public
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
    counts = {len(value) for name in part.by_row if (value := getattr(part, name)).ndim}
    counts |= {n for inner in part._parts if isinstance(inner, Steerable) and (n := row_count(inner)) is not None}
    if len(counts) > 1:
        raise ShapeError(
            f"This operator holds strengths or operators for {sorted(counts)} rows; make all of them for one batch."
        )
    return next(iter(counts), None)


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
    """The operator of one row of a batch, as an operator for any row; the operator itself where rows are alike."""
    if not isinstance(part, Steerable) or row_count(part) is None:
        return part
    if isinstance(part, Rows):
        which = part.which[row]
        return _chain.identity if which < 0 else of_row(part.operators[which], 0)
    values = {name: getattr(part, name) for name in part.by_row}
    return replace(
        map_children(lambda child: of_row(child, row), part),
        **{name: value[row] if value.ndim else value for name, value in values.items()},
    )
