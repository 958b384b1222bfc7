"""The directions on the device, and the arithmetic: what every token of a step is steered by.

All of it has a fixed size and a fixed place, because compiled code and CUDA graphs read it where it was when they were
made. Before each step only numbers are written: for every token the *slot* of its steering, and for a slot that is new
its coefficients. A chain of additions and ablations at one place is an affine map, `h + U^T (shift + mix U h)`, with
the unit directions of the block as the rows of `U`: so one chain costs what another costs, and different ones in one
batch cost what one costs. Slot 0 is no steering: its tokens are selected, not computed, and keep every bit.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn._vector import unit
from steerfn.engines.vllm._spec import MOST, Part, place


class Block:
    """The directions at the output of one block, and what each slot makes of them.

    Args:
        directions: `[d_model]`, by the vector's hash.
        slots: how many there are.
        device: where the model computes.
    """

    def __init__(self, directions: dict[str, Tensor], slots: int, device: Any) -> None:
        exact = torch.stack([direction.detach().cpu().double() for direction in directions.values()])
        units = unit(exact)
        self.row = {name: row for row, name in enumerate(directions)}
        self.norms, self.gram = torch.linalg.vector_norm(exact, dim=-1), units @ units.T
        self.units = units.float().to(device)
        self.shift = torch.zeros(slots, len(directions), device=device)
        self.rows = torch.zeros(slots, MOST, dtype=torch.int64, device=device)
        self.mix = torch.zeros(slots, MOST, MOST, device=device)

    def write(self, slot: int, parts: Iterable[Part], block: int) -> None:
        """The coefficients of a chain: each ablation takes the projection of what the parts before it made."""
        count = len(self.row)
        shift, mix = torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
        ablated: list[int] = []
        for part in parts:
            if block not in part["blocks"]:
                continue
            row = self.row[part["sha256"]]
            if part["operation"] == "add":
                shift[row] += part["alpha"] * self.norms[row]
            elif self.norms[row] > 0:
                ablated += [] if row in ablated else [row]
                before = shift @ self.gram[row], self.gram[row] @ mix
                shift[row] -= before[0]
                mix[row] -= before[1]
                mix[row, row] -= 1
        rows = torch.zeros(MOST, dtype=torch.int64)
        small = torch.zeros(MOST, MOST)
        rows[: len(ablated)] = torch.tensor(ablated, dtype=torch.int64)
        small[: len(ablated), : len(ablated)] = mix[ablated][:, ablated].float()
        for mine, new in ((self.shift, shift.float()), (self.rows, rows), (self.mix, small)):
            send(mine[slot], new)


class Tables:
    """What steers the tokens of one model.

    Args:
        directions: `[d_model]`, by block and by the vector's hash.
        tokens: the most tokens of a step.
        requests: the most requests of a step.
        device: where the model computes.
    """

    def __init__(self, directions: dict[int, dict[str, Tensor]], tokens: int, requests: int, device: Any) -> None:
        self.slots = 3 * requests + 1  # each of a request's regions may have its own
        self.blocks = {block: Block(found, self.slots, device) for block, found in directions.items()}
        self.places = sorted(place(name, block) for block, found in directions.items() for name in found)
        """The directions that parts of requests may name."""
        self.token = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.busy = dict.fromkeys(self.blocks, True)
        """The blocks at which this step steers, and whether it ablates there; all, until the first step."""
        self._known: dict[str, tuple[int, dict[int, bool]]] = {}
        self._used: set[str] = set()
        self._staged = 0

    def begin(self) -> None:
        """A new step: slots that it does not ask for may be given to others."""
        self._used.clear()

    def slot(self, key: str, parts: list[Part]) -> int:
        """The slot of a chain, written if it is new."""
        if not key:
            return 0
        if key not in self._known:
            number = len(self._known) + 1
            if number == self.slots:
                oldest = next(each for each in self._known if each not in self._used)
                number, _ = self._known.pop(oldest)
            for block, table in self.blocks.items():
                table.write(number, parts, block)
            self._known[key] = number, _acting(parts)
        self._used.add(key)
        self._known[key] = self._known.pop(key)  # the last is the one that was asked for last
        return self._known[key][0]

    def stage(self, slots: np.ndarray) -> None:
        """The slot of each token of the step; none where nothing is steered."""
        last, self._staged = self._staged, len(slots)
        if len(slots) < last:
            self.token[len(slots) : last].zero_()
        if len(slots):
            send(self.token[: len(slots)], torch.from_numpy(slots))
        self.busy = {}
        for key in self._used:
            for block, ablates in self._known[key][1].items():
                self.busy[block] = self.busy.get(block, False) or ablates

    def apply(self, hidden: Tensor, residual: Tensor, block: int) -> None:
        """Steer the output of a block in place: the stream is `hidden + residual`, and `hidden` takes the change.

        Args:
            hidden: `[tokens, d_model]`.
            residual: the same.
            block: which.
        """
        # A graph that is captured is run for steps that are not known yet, so it holds everything.
        captured = hidden.is_cuda and torch.cuda.is_current_stream_capturing()
        if block not in self.busy and not captured:
            return
        table = self.blocks[block]
        slots = self.token[: hidden.shape[0]]
        change = table.shift[slots]
        if captured or self.busy[block]:
            along = (hidden.float() + residual.float()) @ table.units.T
            rows = table.rows[slots]
            part = torch.bmm(table.mix[slots], along.gather(1, rows).unsqueeze(-1)).squeeze(-1)
            change = change.scatter_add(1, rows, part)
        moved = hidden + (change @ table.units).to(hidden.dtype)
        torch.where((slots != 0).unsqueeze(-1), moved, hidden, out=hidden)


def _acting(parts: list[Part]) -> dict[int, bool]:
    """The blocks at which a chain acts, and whether it ablates there."""
    found: dict[int, bool] = {}
    for part in parts:
        for block in part["blocks"]:
            found[block] = found.get(block, False) or part["operation"] == "ablate"
    return found


def send(there: Tensor, here: Tensor) -> None:
    """Copy to a device without waiting for what it computes."""
    there.copy_(here.pin_memory() if there.is_cuda else here, non_blocking=True)
