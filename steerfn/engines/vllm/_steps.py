"""Which token of a step belongs to which request and region of it: from vLLM's bookkeeping to slots."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from steerfn.engines.vllm._spec import REGIONS, Region, resolved_of
from steerfn.engines.vllm._tables import Tables

Asked = tuple[dict[str, Region] | None, int]
"""The steering of a request, and the length of its prompt."""


def stage(
    tables: Tables, requests: Sequence[str], counts: np.ndarray, starts: np.ndarray, asked: Callable[[str], Asked]
) -> None:
    """Write the slot of every token of a step.

    Args:
        tables: where to.
        requests: the ids, in the order of the batch.
        counts: the tokens of each in this step.
        starts: the position of the first of them in its request: chunks of a prompt, what a preempted request computes
            again, and generated tokens are told apart by their positions alone.
        asked: what a request asked for.
    """
    tables.begin()
    each = [asked(request) for request in requests]
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
        >>> from steerfn.engines.vllm._steps import rows_and_regions
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

    def asked(request: str) -> Asked:
        state = runner.requests[request]
        return resolved_of(state.sampling_params), state.num_prompt_tokens

    stage(runner.steerfn, batch.req_ids[:number], counts, batch.num_computed_tokens_cpu[:number], asked)


def of_second_runner(runner: Any, scheduled: Any, batch: Any) -> None:
    """Before a step of the runner of `vllm.v1.worker.gpu`, which forgets what a request asked for: kept here."""
    known: dict[str, Asked] = runner.steerfn_asked
    for new in scheduled.scheduled_new_reqs:
        known[new.req_id] = resolved_of(new.sampling_params), new.prompt_len
    if len(known) > 2 * runner.max_num_reqs:
        for request in known.keys() - runner.req_states.req_id_to_index.keys():
            del known[request]
    stage(runner.steerfn, batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np, known.__getitem__)
