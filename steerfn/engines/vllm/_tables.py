"""The directions on the device, and the arithmetic: what every token of a step is steered by.

All of it has a fixed size and a fixed place, because compiled code and CUDA graphs read it where it was when they were
made. Before each step only numbers are written: for every token the *slot* of its steering, and for a slot that is new
its coefficients. A chain of additions and ablations at one place is an affine map, `h + U^T (shift + mix U h)`, with
the unit directions of the block as the rows of `U`: so one chain costs what another costs, and different ones in one
batch cost what one costs. Slot 0 is no steering: its tokens are selected, not computed, and keep every bit.

Which token of a step belongs to which request and region of it: from vLLM's bookkeeping to slots.

The forward that stands in place of a decoder block's, and the operator that compiled code calls.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steerfn.engines.vllm._requests import MOST, REGIONS, Part, Region, place, resolved_of
from steerfn.engines.vllm._vectors import FAMILIES
from steerfn.model import Host, Interposed, Shadow, around
from steerfn.values import ModelError, unit


class BlockTables:
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
    """The directions, slots and coefficients that steer the tokens of one model.

    Args:
        directions: `[d_model]`, by block and by the vector's hash.
        tokens: the most tokens of a step.
        requests: the most requests of a step.
        device: where the model computes.
    """

    def __init__(self, directions: dict[int, dict[str, Tensor]], tokens: int, requests: int, device: Any) -> None:
        self.slots = 3 * requests + 1  # each of a request's regions may have its own
        self.blocks = {block: BlockTables(by_hash, self.slots, device) for block, by_hash in directions.items()}
        self.places = sorted(place(name, block) for block, by_hash in directions.items() for name in by_hash)
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
    ablates: dict[int, bool] = {}
    for part in parts:
        for block in part["blocks"]:
            ablates[block] = ablates.get(block, False) or part["operation"] == "ablate"
    return ablates


def send(there: Tensor, here: Tensor) -> None:
    """Copy to a device without waiting for what it computes."""
    there.copy_(here.pin_memory() if there.is_cuda else here, non_blocking=True)


RequestSteering = tuple[dict[str, Region] | None, int]
"""The steering of a request, and the length of its prompt."""


def stage(
    tables: Tables,
    requests: Sequence[str],
    counts: np.ndarray,
    starts: np.ndarray,
    steering_of: Callable[[str], RequestSteering],
) -> None:
    """Write the slot of every token of a step.

    Args:
        tables: where to.
        requests: the ids, in the order of the batch.
        counts: the tokens of each in this step.
        starts: the position of the first of them in its request: chunks of a prompt, what a preempted request computes
            again, and generated tokens are told apart by their positions alone.
        steering_of: the steering and the prompt's length of a request, by its id.
    """
    tables.begin()
    each = [steering_of(request) for request in requests]
    if not any(regions for regions, _ in each):
        tables.stage(np.zeros(0, dtype=np.int64))
        return
    slots = np.zeros((len(each), len(REGIONS)), dtype=np.int64)
    for row, (regions, _) in enumerate(each):
        if regions is not None:
            slots[row] = [tables.slot(regions[name]["key"], regions[name]["parts"]) for name in REGIONS]
    tables.stage(slots[rows_and_regions(counts, starts, np.array([length for _, length in each]))])


def rows_and_regions(counts: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every token of a step its row in the batch, and its region: 0 before the last token of the prompt, 1 there, 2
    after it.

    Example:
        >>> import numpy as np
        >>> from steerfn.engines.vllm._tables import rows_and_regions
        >>> rows, regions = rows_and_regions(np.array([3, 1]), np.array([1, 7]), np.array([3, 4]))
        >>> rows.tolist(), regions.tolist()
        ([0, 0, 0, 1], [0, 1, 2, 2])
    """
    counts = np.asarray(counts, dtype=np.int64)
    rows = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    positions = np.asarray(starts, dtype=np.int64)[rows] + np.arange(len(rows)) - first[rows]
    return rows, 1 + np.sign(positions - (np.asarray(lengths, dtype=np.int64)[rows] - 1))


def of_first_runner(runner: Any, counts: np.ndarray) -> None:
    """Before a step of vLLM's `GPUModelRunner`, and of `CPUModelRunner`, which is one."""
    batch = runner.input_batch
    number = batch.num_reqs

    def steering_of(request: str) -> RequestSteering:
        state = runner.requests[request]
        return resolved_of(state.sampling_params), state.num_prompt_tokens

    stage(runner.steerfn, batch.req_ids[:number], counts, batch.num_computed_tokens_cpu[:number], steering_of)


def of_second_runner(runner: Any, scheduled: Any, batch: Any) -> None:
    """Before a step of the runner of `vllm.v1.worker.gpu`, which forgets what a request asked for: kept here."""
    known: dict[str, RequestSteering] = runner.steerfn_asked
    for new in scheduled.scheduled_new_reqs:
        known[new.req_id] = resolved_of(new.sampling_params), new.prompt_len
    if len(known) > 2 * runner.max_num_reqs:
        for request in known.keys() - runner.req_states.req_id_to_index.keys():
            del known[request]
    stage(runner.steerfn, batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np, known.__getitem__)


class _Current:
    """The tables of the model that runs in this process: compiled code cannot hold them."""

    tables: Tables | None = None


def run(tables: Tables) -> None:
    """Make these the tables of the model that runs in this process."""
    _Current.tables = tables


class PlacedForward(Interposed):
    """A block's forward, and the steering of what comes out of it."""

    def __init__(self, host: Any, original: nn.Module, *, tables: Tables, block: int) -> None:
        super().__init__(host, original)
        self.tables, self.block = tables, block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The two halves of the stream, steered."""
        hidden, residual = self.inner(*args, **kwargs)
        if torch.compiler.is_compiling():
            torch.ops.steerfn.steer_block(hidden, residual, self.block)
        else:
            self.tables.apply(hidden, residual, self.block)
        return hidden, residual


@functools.cache
def define() -> torch.library.Library:
    """Define the operator, once in a process; it lives as long as what is returned, which the cache keeps."""
    library = torch.library.Library("steerfn", "FRAGMENT")
    library.define("steer_block(Tensor(a!) hidden, Tensor residual, int block) -> ()")
    library.impl("steer_block", _steer_block, "CompositeExplicitAutograd")
    torch.library.register_fake("steerfn::steer_block", lambda hidden, residual, block: None, lib=library)
    return library


def _steer_block(hidden: Tensor, residual: Tensor, block: int) -> None:
    assert _Current.tables is not None
    _Current.tables.apply(hidden, residual, block)


def place_forwards(model: Any, architecture: str, n_layers: int, tables: Tables) -> None:
    """Put the steering forwards in place of those of the blocks that the tables have directions for.

    Raises:
        ModelError: the model's blocks are not the ones that are known.
    """
    blocks = getattr(getattr(model, "model", None), "layers", nn.ModuleList())
    classes = {type(block).__name__ for block in blocks}
    if len(blocks) != n_layers or classes != {FAMILIES[architecture]}:
        raise ModelError(
            f"vLLM's {architecture} is known with {n_layers} blocks of class {FAMILIES[architecture]} at model.layers, "
            f"and here there are {len(blocks)} of {sorted(classes)}; "
            "start vLLM without STEERFN_VECTORS, or install the version of vLLM that docs/guides/vllm.md names."
        )
    define()
    for block in tables.blocks:
        make = functools.partial(PlacedForward, tables=tables, block=block)
        Shadow(blocks[block], "forward", functools.partial(around, module=blocks[block], makes=(make,), host=Host()))
    run(tables)
