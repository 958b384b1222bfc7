"""Discovery over Ray Data: the rows of a plan in parts, read by actors that hold the model, merged by the driver."""

import contextlib
import dataclasses
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steerfn.discover._engine._checkpoint import RunCheckpoint
from steerfn.discover._engine._job import Job, Run
from steerfn.discover._engine._workers import Workers
from steerfn.model import entries_of, layout, substitutions_of, unwrap_model
from steerfn.output import progress_bar
from steerfn.values import DataError, SteerError, finite_number, import_extra, positive_int, public

PARTS = 4
"""Parts for each worker, so that a slow worker does little of the work and a lost one loses little."""
PIECE = 2**25
"""Bytes of a run in one row of the data set: Arrow allows 2 GiB in a block."""


@public
def ray(
    num_workers: int = 2,
    *,
    model_factory: Callable[[], Any] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Workers:
    """Workers for `workers=`: actors of Ray Data, on this machine or a cluster.

    The rows of the plan are cut into four parts for each worker (row `i` of `n` parts goes to part `i mod n`); the
    driver merges the states in the order of the parts, so the vector is the one that a single process makes up to
    rounding (1e-6), and the same bits for the same number of workers. Ray starts an actor again where one is lost.

    Args:
        num_workers: actors that read at the same time.
        model_factory: a function without arguments that loads the model in each actor, on the actor's own device;
            None sends the driver's model, through Ray's object store.
        num_cpus: cores for each actor.
        num_gpus: GPUs for each actor; a `model_factory` has to put the model on it.

    Raises:
        DataError: Ray is not installed, or numbers that make no sense; in a discovery, also a checkpoint or an open
            steering, which actors do not see.
        SteerError: a worker failed; says how.

    Example:
        On a cluster, each actor loads the model::

            workers = sf.workers.ray(8, model_factory=lambda: sf.from_pretrained("org/name")[0])
            v = sf.mean_difference(model, tokenizer, happy, sad, 14, workers=workers)
    """
    num_workers = positive_int("num_workers", num_workers)
    if model_factory is not None and not callable(model_factory):
        raise DataError(
            f"model_factory must be a function that loads the model, not a {type(model_factory).__name__}; "
            "pass for example lambda: sf.from_pretrained('org/name')[0]."
        )
    needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    needs = {name: finite_number(name, number, least=0, hint="it is for each worker") for name, number in needs.items()}
    import_extra("ray.data", "ray")  # fail before the work rather than on the workers
    return RayWorkers(num_workers, model_factory, needs)


class RayWorkers(Workers):
    """See `ray`."""

    def __init__(self, actors: int, model_factory: Callable[[], Any] | None, resources: dict[str, float]) -> None:
        self.actors, self.model_factory, self.resources = actors, model_factory, resources

    def own(self, path: Path) -> Path:
        raise DataError(
            f"Ray workers keep no checkpoint (here '{path}'): Ray itself restarts lost workers; leave checkpoint "
            "out, or use sf.workers.torchrun()."
        )

    def run(self, job: Job, model: Any, *, progress: bool, kept: RunCheckpoint | None) -> Run:
        del kept
        root = unwrap_model(model)
        if entries_of(substitutions_of(root, layout(root)).host):
            raise DataError(
                "The model is steered here, and Ray workers would read it unsteered; close the context, or leave "
                "workers out."
            )
        parts = max(1, min(PARTS * self.actors, len(job.planned.rows)))
        whole, early, following = job.start(), {}, 0
        for number, run in self._parts(job, model, parts, progress):
            early[number] = run
            while following in early:  # parts come in any order, and merging in theirs gives the same bits every time
                whole, following = job.merge(whole, early.pop(following)), following + 1
        return whole

    def _parts(self, job: Job, model: Any, parts: int, progress: bool) -> Iterator[tuple[int, Run]]:
        """The run over each part, as they are finished."""
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]

        shared = ray.put((job, parts, None if self.model_factory else model, self.model_factory))
        pieces: dict[int, dict[int, bytes]] = {}
        with (
            _quiet(ray.data.DataContext.get_current()),
            _refusals(),
            progress_bar("Reading activations", "text", progress, total=job.planned.texts) as bar,
        ):
            rows = ray.data.from_items([{"part": part} for part in range(parts)], override_num_blocks=parts).flat_map(
                _RayReader,
                fn_constructor_kwargs={"given": shared},
                compute=ray.data.ActorPoolStrategy(size=min(self.actors, parts)),
                **self.resources,  # pyright: ignore[reportArgumentType]
            )
            for row in rows.iter_rows():
                if row["failed"]:
                    kind, message, trace = row["failed"].split("\n", 2)
                    raise SteerError(f"A Ray worker failed with {kind}: {message}.") from RuntimeError(trace)
                part, chunks = row["part"], pieces.setdefault(row["part"], {})
                chunks[row["piece"]] = row["data"]
                if len(chunks) == row["pieces"]:
                    bar.update(job.planned.shard(part, parts).texts)
                    yield part, pickle.loads(b"".join(data for _, data in sorted(pieces.pop(part).items())))


class _RayReader:
    """An actor: loads the model once, and reads parts.

    Whatever goes wrong is told as a row of the data set. An actor that raised would be started again, several times,
    and end in an error of Ray's that names the cause many lines below.

    Args:
        given: a reference to the job, the number of parts, and the model or what makes it.
    """

    def __init__(self, given: Any) -> None:
        self.given, self.model = given, None

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        part, failed, data = int(row["part"]), "", b""
        try:
            data = pickle.dumps(self._read(part), protocol=5)
        except Exception as error:
            message = " ".join(str(error)[:1000].split()).rstrip(".")
            failed = f"{type(error).__name__}\n{message}\n{traceback.format_exc()}"
        cut = [data[start : start + PIECE] for start in range(0, len(data), PIECE)] or [b""]
        return [
            {"part": part, "piece": i, "pieces": len(cut), "data": piece, "failed": failed}
            for i, piece in enumerate(cut)
        ]

    def _read(self, part: int) -> Run:
        import ray  # pyright: ignore[reportMissingImports]

        job, parts, model, factory = ray.get(self.given)
        if self.model is None:
            self.model = factory() if model is None else model
        share = dataclasses.replace(job, planned=job.planned.shard(part, parts))
        return share.run(self.model, progress=False)


@contextlib.contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """Without Ray's own bars: one bar is enough."""
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = before


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Ray's own troubles, as this library's."""
    from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

    try:
        yield
    except RayError as error:
        raise SteerError(f"Ray failed with {type(error).__name__}: {str(error)[:1000]}") from error
