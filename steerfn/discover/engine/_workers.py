"""Who reads: this process alone, or many that share the rows of a plan and merge what they made of them.

The outcome does not depend on the split. A row holds whole texts, each text is in one row, states are sums in float64
(or keep the texts by number), and halves of pairs that different workers read meet in `Job.merge`.
"""

import abc
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steerfn._errors import DataError
from steerfn.discover.engine._checkpoint import Checkpoint
from steerfn.discover.engine._collect import Job, Run


class Workers(abc.ABC):
    """Those who carry out a job together."""

    @abc.abstractmethod
    def run(self, job: Job, model: Any, *, progress: bool, kept: Checkpoint | None) -> Run:
        """The run over all rows of the job, whoever read them.

        Args:
            job: the whole job.
            model: the model of this process.
            progress: show a bar.
            kept: where this process keeps how far its own part has come.
        """

    def own(self, path: Path) -> Path:
        """The checkpoint of this process, where the call names `path`."""
        return path


class Alone(Workers):
    """This process only."""

    def run(self, job: Job, model: Any, *, progress: bool, kept: Checkpoint | None) -> Run:
        return part(job, model, progress=progress, kept=kept)


def part(job: Job, model: Any, *, progress: bool, kept: Checkpoint | None, watch: Any = None) -> Run:
    """The run of this process, with or without a checkpoint."""
    if kept is None:
        return job.run(model, progress=progress, keep=watch)
    return kept.run(job, model, progress=progress, watch=watch)


@contextlib.contextmanager
def finished(job: Job, model: Any, *, progress: bool, checkpoint: Any = None, workers: Any = None) -> Iterator[Run]:
    """The run over all rows of a job. Its checkpoint is deleted at the end of the block, unless that raises.

    Args:
        job: the job.
        model: its model.
        progress: show a bar.
        checkpoint: a path, or None.
        workers: who reads; None for this process alone.

    Raises:
        DataError: workers that are none.
        FileError: a checkpoint that is none.
    """
    crew = Alone() if workers is None else workers
    if not isinstance(crew, Workers):
        raise DataError(f"workers is sf.torchrun(), sf.ray_workers(...) or None, not {crew!r:.80}.")
    kept = None if checkpoint is None else Checkpoint(crew.own(Checkpoint(checkpoint).path))
    yield crew.run(job, model, progress=progress, kept=kept)
    if kept is not None:
        kept.remove()
