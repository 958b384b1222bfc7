"""Checkpoints: a file that holds how far a run has come, so that a killed run continues and ends with the same bits.

    safetensors  "0", "1", ...: the tensors of the `Run`, in the order of its tree
    header       {"steerfn": {format, version, run: what determines it, sha256 of the tensors}}

States are exact sums in float64 and a plan cut at a batch goes on with the batch that would have followed, so nothing
is lost by stopping. A batch that ran out of memory and was halved makes other batches, and rounding differs as it
does for another `batch_size`.
"""

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn._errors import DataError, FileError, SteerWarning
from steerfn._io_document import Refused, brief, parse_json
from steerfn._io_write import write_together
from steerfn.discover.engine._collect import Job, Run
from steerfn.discover.engine._identity import differences, identity

FORMAT, VERSION, KEY = "steerfn checkpoint", 1, "steerfn"
INTERVAL = 5.0
"""Seconds between two writes."""
PATIENCE = 10
"""And this many times as long as the last write took, so that large states do not spend their time on the disk."""


class Checkpoint:
    """The checkpoint of one run in one file.

    Raises:
        FileError: something that names no file.
    """

    def __init__(self, path: Any) -> None:
        try:
            self.path = Path(path)
        except TypeError:
            raise FileError(
                f"A checkpoint is named by text or a Path, not by {brief(path)} of type {type(path).__name__}."
            ) from None

    def run(self, job: Job, model: Any, *, progress: bool = True, watch: Callable[[Run], None] | None = None) -> Run:
        """Read what is left. Interrupted in any way but by a kill, it writes what it has read before it stops.

        Args:
            job: the job.
            model: its model.
            progress: show a bar.
            watch: is given the run after every batch, too.

        Raises:
            FileError: a checkpoint of another run, a damaged one, or a place that cannot be written.
            DataError: a method whose state is more than tensors.
        """
        with self._keeping(job, identity(job, model)) as (so_far, keep):

            def after(reached: Run) -> None:
                keep(reached)
                if watch is not None:
                    watch(reached)

            return job.run(model, so_far, progress=progress, keep=after)

    def remove(self) -> None:
        """Delete the file: its run is over."""
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _keeping(self, job: Job, about: dict[str, str]) -> Iterator[tuple[Run, Callable[[Run], None]]]:
        """Where to go on, and what to call with each further run."""
        last = written = self._load(job, about)
        due = time.monotonic() + INTERVAL

        def write() -> None:
            nonlocal written, due
            begun = time.monotonic()
            self._write(last, about)
            written = last
            now = time.monotonic()
            due = now + max(INTERVAL, PATIENCE * (now - begun))

        def keep(reached: Run) -> None:
            nonlocal last
            last = reached
            if time.monotonic() >= due:
                write()

        try:
            yield last, keep
        except FileError:  # it cannot be written
            raise
        except BaseException:
            if last is not written:
                try:
                    write()
                except FileError as error:  # the interruption is what the caller has to see
                    told = f"The run was interrupted, and what it read last is lost: {error}"
                    warnings.warn(told, SteerWarning, stacklevel=2)
            raise
        if last is not written:  # what follows may take long too, or fail
            write()

    def _load(self, job: Job, about: dict[str, str]) -> Run:
        """The run in the file, or the start of one."""
        start = job.start()
        leaves, structure = pytree.tree_flatten(start)
        strange = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
        if strange:
            raise DataError(
                f"The state of method {job.method.name!r} holds a {strange[0]} besides tensors, so it cannot be kept "
                "in a checkpoint; keep numbers as tensors, or leave checkpoint out."
            )
        if self.path.exists() and not self.path.is_file():
            raise FileError(f"The checkpoint '{self.path}' is no regular file; choose another path.")
        if not self.path.parent.is_dir():
            raise FileError(
                f"Cannot write the checkpoint '{self.path}': there is no folder '{self.path.parent}'; create it first."
            )
        if not self.path.exists():
            return start
        there, tensors = self._read()
        if there != about:
            raise FileError(
                f"The checkpoint '{self.path}' belongs to another run, with other {differences(there, about)}; "
                "delete the file or choose another path."
            )
        if len(tensors) != len(leaves):
            self._damaged(f"it holds {len(tensors)} tensors, and the run has {len(leaves)}")
        return pytree.tree_unflatten(tensors, structure)

    def _read(self) -> tuple[dict[str, Any], list[Tensor]]:
        """What the file says of its run, and its tensors, once its checksum holds."""
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                document = parse_json((file.metadata() or {}).get(KEY, "null").encode("utf-8", "surrogatepass"))
                ours = isinstance(document, dict) and document.get("format") == FORMAT
                # Copies, because the file is replaced while they are in use.
                tensors = [file.get_tensor(str(i)).clone() for i in range(len(list(file.keys())))] if ours else []
        except Refused as refused:
            self._damaged(refused.what)
        except OSError as error:
            self._damaged(error.strerror or brief(str(error)))
        except Exception as error:  # whatever safetensors has to say
            self._damaged(f"{type(error).__name__}: {brief(str(error))}")
        if not ours or not isinstance(document.get("run"), dict):
            raise FileError(f"'{self.path}' is no checkpoint of steerfn, so it is left alone; choose another path.")
        if document.get("version") != VERSION:
            self._damaged(f"it has format version {brief(document.get('version'))}, and this steerfn reads {VERSION}")
        if document.get("sha256") != _checksum(document["run"], tensors):
            self._damaged("it was changed since it was written (the SHA-256 does not match)")
        return document["run"], tensors

    def _damaged(self, what: str) -> NoReturn:
        raise FileError(
            f"Cannot continue from the checkpoint '{self.path}': {what}; delete it to begin anew, or choose another "
            "path."
        )

    def _write(self, reached: Run, about: dict[str, str]) -> None:
        tensors = _apart(pytree.tree_leaves(reached))
        document = {"format": FORMAT, "version": VERSION, "run": about, "sha256": _checksum(about, tensors)}
        data = safetensors.torch.save({str(i): t for i, t in enumerate(tensors)}, metadata={KEY: json.dumps(document)})
        try:
            write_together({self.path: data})
        except OSError as error:
            raise FileError(
                f"Cannot write the checkpoint '{self.path}': {error.strerror or error}; what was there before is "
                "unchanged."
            ) from None


def _apart(leaves: list[Tensor]) -> list[Tensor]:
    """Leaves on the CPU that share no memory, as safetensors wants them."""
    found, seen = [], set()
    for leaf in leaves:
        leaf = leaf.detach().cpu().contiguous()
        memory = leaf.untyped_storage().data_ptr()
        found.append(leaf.clone() if memory in seen else leaf)
        seen.add(memory)
    return found


def _checksum(about: dict[str, Any], tensors: list[Tensor]) -> str:
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
