"""Checkpoints: a file that holds how far a run has come, so that a killed run continues and ends with the same bits.

    safetensors  "0", "1", ...: the tensors of the `Run`, in the order of its tree
    header       {"steerfn": {format, version, run: what determines it, sha256 of the tensors}}

States are exact sums in float64 and a plan cut at a batch goes on with the batch that would have followed, so nothing
is lost by stopping. A batch that ran out of memory and was halved makes other batches, and rounding differs as it
does for another `batch_size`.

What determines the outcome of a run is kept in words and hashes: runs may only be continued or merged with their like.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn.discover._engine._job import Job, Run
from steerfn.model import digest, entries_of, layout, substitutions_of, unwrap_model, value_sha256
from steerfn.run import ProgressFile
from steerfn.values import DataError, FileError, fingerprint
from steerfn.values.files import Refused, brief, parse_json, version_of

FORMAT, VERSION, KEY = "steerfn checkpoint", 2, "steerfn"


class RunCheckpoint(ProgressFile):
    """The checkpoint of one run in one file."""

    def run(self, job: Job, model: Any, *, progress: bool = True, watch: Callable[[Run], None] | None = None) -> Run:
        """Read what is left.

        Args:
            watch: is given the run after every batch, too.

        Raises:
            FileError: a checkpoint of another run, a damaged one, or a place that cannot be written.
            DataError: a method whose state is more than tensors.
        """
        self._about = identity(job, model)
        self._reached = self._load(job, self._about)

        def keep(reached: Run) -> None:
            self._reached = reached
            self.update()
            if watch is not None:
                watch(reached)

        whole = job.run(model, self._reached, progress=progress, keep=keep)
        self.write()  # what follows may take long too, or fail
        return whole

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
        if self.path is None or not self.path.exists():
            return start
        if not self.path.is_file():
            raise FileError(f"The checkpoint '{self.path}' is not a regular file; choose another path.")
        there, tensors = self._read(self.path)
        if there != about:
            raise FileError(
                f"The checkpoint '{self.path}' belongs to another run, with different {differences(there, about)}; "
                "delete the file or choose another path."
            )
        if len(tensors) != len(leaves):
            self._refuse(f"it holds {len(tensors)} tensors, and the run has {len(leaves)}")
        return pytree.tree_unflatten(tensors, structure)

    def _read(self, path: Path) -> tuple[dict[str, Any], list[Tensor]]:
        """The run's description and the tensors in the file, after its checksum has been verified."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                document = parse_json((file.metadata() or {}).get(KEY, "null").encode("utf-8", "surrogatepass"))
                ours = isinstance(document, dict) and document.get("format") == FORMAT
                # Copies, because the file is replaced while they are in use.
                tensors = [file.get_tensor(str(i)).clone() for i in range(len(list(file.keys())))] if ours else []
        except Refused as refused:
            self._refuse(refused.what)
        except OSError as error:
            self._refuse(error.strerror or brief(str(error)))
        except Exception as error:  # whatever safetensors has to say
            self._refuse(f"{type(error).__name__}: {brief(str(error))}")
        if not ours or not isinstance(document.get("run"), dict):
            raise FileError(f"'{self.path}' is not a steerfn checkpoint, so it is left unchanged; choose another path.")
        if document.get("version") != VERSION:
            self._refuse(f"it has format version {brief(document.get('version'))}, and this steerfn reads {VERSION}")
        if document.get("sha256") != value_sha256([document["run"], tensors]):
            self._refuse("it was changed since it was written (the SHA-256 does not match)")
        return document["run"], tensors

    def _data(self) -> bytes:
        tensors = _apart(pytree.tree_leaves(self._reached))
        sha256 = value_sha256([self._about, tensors])
        document = {"format": FORMAT, "version": VERSION, "run": self._about, "sha256": sha256}
        return safetensors.torch.save({str(i): t for i, t in enumerate(tensors)}, metadata={KEY: json.dumps(document)})


def _apart(leaves: list[Tensor]) -> list[Tensor]:
    """Leaves on the CPU that share no memory, as safetensors wants them."""
    apart, seen = [], set()
    for leaf in leaves:
        leaf = leaf.detach().cpu().contiguous()
        memory = leaf.untyped_storage().data_ptr()
        apart.append(leaf.clone() if memory in seen else leaf)
        seen.add(memory)
    return apart


def identity(job: Job, model: Any) -> dict[str, str]:
    """Everything that determines the vector of a job, by the name that messages use for it.

    Weights are told apart as `weights_hash` does, and by their dtype. The device is left out, so that a run may be
    continued on another.
    """
    planned, root = job.planned, unwrap_model(model)
    budget = planned.budget
    steering = [entry.operator for entry in entries_of(substitutions_of(root, layout(root)).host)]
    about = fingerprint(root, weights=True)
    weights = [about["fingerprint"], about["weights"], str(getattr(root, "dtype", None))]
    named = {"sites", "reads", "budget", "sinks"}  # what sinks there are shows in what is read
    layout_of_rows = [getattr(planned, f.name) for f in dataclasses.fields(planned) if f.name not in named]
    return {
        "model": f"{about['architecture']} {digest(weights)}",
        "steering": digest(steering) if steering else "none",
        "sites": ", ".join(map(str, planned.sites)),
        "method": f"{job.method.name} {digest(job.method)}",
        "texts": f"{job.positive} of {len(planned.reads)} positive, {digest(list(planned.reads))}",
        "batch size": f"{budget.limit} texts" if budget.limit else f"auto, {budget.size} tokens",
        "rows": f"{len(planned.rows)}, {digest(layout_of_rows)}",
        "steerfn": version_of("steerfn"),
    }


def differences(there: Mapping[str, Any], here: Mapping[str, str]) -> str:
    """The entries in which two identities differ, with both values, for a message."""
    return ", ".join(
        f"{name} ({brief(there.get(name, 'unknown'), 60)} there, {brief(here[name], 60)} here)"
        for name in here
        if there.get(name) != here[name]
    )
