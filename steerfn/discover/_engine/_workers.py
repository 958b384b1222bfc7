"""Who reads: this process alone, or many that share the rows of a plan and merge what they made of them.

The outcome does not depend on the split. A row holds whole texts, each text is in one row, states are sums in float64
(or keep the texts by number), and halves of pairs that different workers read meet in `Job.merge`.
"""

import abc
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steerfn.discover._engine._checkpoint import RunCheckpoint
from steerfn.discover._engine._job import Job, Run
from steerfn.values import DataError
from steerfn.values.files import check_output


class Workers(abc.ABC):
    """Processes that read the texts of a discovery together; see `torchrun` and `ray`."""

    @abc.abstractmethod
    def run(self, job: Job, model: Any, *, progress: bool, kept: RunCheckpoint | None) -> Run:
        """The run over all rows of the job, whoever read them.

        Args:
            kept: where this process keeps how far its own part has come.
        """

    def own(self, path: Path) -> Path:
        """The checkpoint of this process, where the call names `path`."""
        return path


class LocalWorker(Workers):
    """This process only."""

    def run(self, job: Job, model: Any, *, progress: bool, kept: RunCheckpoint | None) -> Run:
        return run_shard(job, model, progress=progress, kept=kept)


def run_shard(job: Job, model: Any, *, progress: bool, kept: RunCheckpoint | None, watch: Any = None) -> Run:
    """The run of this process, with or without a checkpoint."""
    if kept is None:
        return job.run(model, progress=progress, keep=watch)
    return kept.run(job, model, progress=progress, watch=watch)


@contextlib.contextmanager
def run_job(job: Job, model: Any, *, progress: bool, checkpoint: Any = None, workers: Any = None) -> Iterator[Run]:
    """The run over all rows of a job. Its checkpoint is deleted at the end of the block, unless that raises.

    Raises:
        DataError: `workers` is not a `Workers`.
        FileError: the file at `checkpoint` is not a checkpoint.
    """
    workers = LocalWorker() if workers is None else workers
    if not isinstance(workers, Workers):
        raise DataError(f"workers must be sf.workers.torchrun(), sf.workers.ray(...) or None, not {workers!r:.80}.")
    path = None if checkpoint is None else workers.own(check_output(checkpoint, "The checkpoint"))
    kept = None if path is None else RunCheckpoint(path)
    with contextlib.nullcontext() if kept is None else kept:
        yield workers.run(job, model, progress=progress, kept=kept)
