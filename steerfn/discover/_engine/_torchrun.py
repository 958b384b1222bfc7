"""Discovery under `torchrun`: every rank reads its share of the rows, and all of them end with the same run.

What ranks tell each other goes two ways: a word at a time through the store that every process group has (who is
ready, who has failed), which needs nobody to answer; and the runs through gloo, on the CPU, once all are done.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from steerfn.discover._engine._checkpoint import RunCheckpoint, differences, identity
from steerfn.discover._engine._job import Job, Run
from steerfn.discover._engine._workers import Workers, run_shard
from steerfn.model import unwrap_model
from steerfn.values import DataError, SteerError, public

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PAUSE = 0.02
"""Seconds between two looks at the store."""


@public
def torchrun() -> Workers:
    """Workers for `workers=`: the processes that `torchrun` started, on one machine or several.

    Every rank runs the same script and makes the same call with a model of its own. Rank `r` of `w` reads the rows
    `r, r + w, r + 2 w, ...` of the plan; the states are merged in rank order, so every rank returns the same vector,
    bit for bit, and the one that a single process makes up to rounding (1e-6). A rank that fails stops the others at
    their next batch. With `checkpoint=path` rank `r` keeps its share in `path.rank{r}`.

    A default process group is made (gloo, from torchrun's environment) where there is none, and stays open.

    Raises:
        DataError: not started by torchrun, ranks that were given different texts, options or models, or a model
            that is itself split over the ranks.
        SteerError: another rank failed; says which and how.

    Example:
        In a script that `torchrun --nproc-per-node 2 script.py` starts::

            v = sf.mean_difference(model, tokenizer, happy, sad, 14, workers=sf.workers.torchrun())
    """
    if not dist.is_available():
        raise DataError("This build of torch has no torch.distributed; install one that has, or leave workers out.")
    missing = [name for name in NEEDED if name not in os.environ]
    if missing and not dist.is_initialized():
        raise DataError(
            f"sf.workers.torchrun() needs processes that torchrun started, and {', '.join(missing)} is not set; "
            "start the script with `torchrun --nproc-per-node 2 script.py`, or leave workers out."
        )
    return TorchRun()


class TorchRun(Workers):
    """See `torchrun`."""

    def own(self, path: Path) -> Path:
        return path.with_name(f"{path.name}.rank{_world()[0]}")

    def run(self, job: Job, model: Any, *, progress: bool, kept: RunCheckpoint | None) -> Run:
        if any(hasattr(parameter, "device_mesh") for parameter in unwrap_model(model).parameters()):
            raise DataError(
                "The model is split over the ranks (tensor parallel), so every text needs all of them; leave workers "
                "out and make the call on every rank."
            )
        with _team() as team:
            _compare(team.stage("plan", json.dumps(identity(job, model))))
            share = dataclasses.replace(job, planned=job.planned.shard(team.rank, team.size))
            mine = run_shard(
                share, model, progress=progress and team.rank == 0, kept=kept, watch=lambda _: team.watch()
            )
            team.stage("read")
            return team.merge(job, mine)


@dataclasses.dataclass(frozen=True)
class _Team:
    """The ranks of one call."""

    rank: int
    size: int
    group: Any
    store: Any

    def stage(self, name: str, word: str = "") -> list[str]:
        """The words of all ranks, once every rank has come here."""
        self.store.set(f"{name}/{self.rank}", word)
        names = [f"{name}/{rank}" for rank in range(self.size)]
        while not self.store.check(names):
            # Another may have come here, gone on and failed since: then go on, to what it failed with.
            if self.store.check(["failed"]) and not self.store.check(names):
                self.watch()
            time.sleep(PAUSE)
        return [self.store.get(each).decode() for each in names]

    def watch(self) -> None:
        """Raise where another rank has failed."""
        if self.store.check(["failed"]):
            raise SteerError(f"{self.store.get('failed').decode()}; see its log. This rank stopped with it.")

    def report_failure(self, error: BaseException) -> None:
        """Tell the others; the first word stays."""
        message = f"Rank {self.rank} of {self.size} failed with {type(error).__name__}: {str(error)[:1000].rstrip('.')}"
        with contextlib.suppress(RuntimeError):  # the store may be what failed
            self.store.compare_set("failed", "", message)

    def merge(self, job: Job, mine: Run) -> Run:
        """The runs of all ranks, merged in rank order by every rank, one at a time so that memory stays bounded."""
        whole: Run | None = None
        for rank in range(self.size):
            box = [mine if rank == self.rank else None]
            dist.broadcast_object_list(box, src=rank, group=self.group)
            [run] = box
            assert run is not None
            whole = run if whole is None else job.merge(whole, run)
        assert whole is not None
        self.stage("merged")  # nobody hangs up while another still listens
        return whole


@contextlib.contextmanager
def _team() -> Iterator[_Team]:
    """The ranks, for one call: a group of its own, whose name no other call has used in the store."""
    rank, size = _world()
    group: Any = dist.new_group(backend="gloo")
    everyone = dist.distributed_c10d._get_default_store()  # no public name, in any release so far
    store = dist.PrefixStore(f"steerfn/{group.group_name}", everyone)  # pyright: ignore[reportPrivateImportUsage]
    team = _Team(rank, size, group, store)
    try:
        yield team
    except BaseException as error:
        team.report_failure(error)
        raise
    finally:
        dist.destroy_process_group(group)


def _world() -> tuple[int, int]:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def _compare(words: list[str]) -> None:
    """Refuse to merge what does not belong together."""
    plans = [json.loads(word) for word in words]
    for rank, plan in enumerate(plans):
        if plan != plans[0]:
            raise DataError(
                f"Rank {rank} and rank 0 were not given the same arguments: {differences(plan, plans[0])} differs; "
                f"give every rank the same texts, options and model ('there' is rank {rank}, 'here' is rank 0)."
            )
