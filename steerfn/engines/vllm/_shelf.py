"""The vectors of the folder that STEERFN_VECTORS names, read once in every process."""

import os
import threading
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from steerfn._errors import SiteError, SteerError
from steerfn._fingerprint import fingerprint
from steerfn._vector import SteeringVector
from steerfn._visible import visible_line
from steerfn.serving import _shelf
from steerfn.serving._refused import RequestError

FOLDER = "STEERFN_VECTORS"


class Offered(NamedTuple):
    """A vector that requests can name."""

    vector: SteeringVector
    sha256: str
    directions: dict[int, Tensor]


class Shelf:
    """The vectors of a folder that fit a model.

    They are read when the engine starts, because their directions lie on the device from then on: what changes in the
    folder later counts from the next start.

    Args:
        folder: where the vector files are.
        config: the configuration of the language model, of transformers.

    Raises:
        FileError: no such folder.
    """

    def __init__(self, folder: str, config: Any) -> None:
        self.n_layers = int(config.num_hidden_layers)
        self.offered: dict[str, Offered] = {}
        self.refused: dict[str, str] = {}
        files = _shelf.Shelf(folder, SimpleNamespace(config=config))
        for name in files.names():
            try:
                vector, digest = files.get(name)
                self.offered[name] = Offered(vector, digest, at_blocks(vector, self.n_layers))
            except RequestError as error:
                self.refused[name] = error.message
            except SteerError as error:
                self.refused[name] = f"The vector {name!r} cannot be served: {error}"

    def __getitem__(self, name: str) -> Offered:
        if name in self.refused:
            raise SteerError(self.refused[name])
        if name not in self.offered:
            known = ", ".join(sorted(self.offered)[:10]) or "none"
            raise SteerError(
                f"There is no vector {name!r:.140}; the folder had {known} when the engine started. A new one is read "
                "at the next start."
            )
        return self.offered[name]

    def sha256(self, name: str) -> str:
        """The hash of a vector's tensors."""
        return self[name].sha256

    def blocks(self, name: str, layers: list[int] | None) -> list[int]:
        """The blocks at whose output a vector acts, or only those of some layers.

        Raises:
            SteerError: an unknown vector, or layers that it lacks.
        """
        vector = self[name].vector
        try:
            chosen = vector if layers is None else vector.select(layers)
        except SteerError as error:
            raise SteerError(f"The vector {name!r}: {error}") from None
        return sorted(at_blocks(chosen, self.n_layers))

    def directions(self) -> dict[int, dict[str, Tensor]]:
        """Every direction, by block and by the vector's hash."""
        found: dict[int, dict[str, Tensor]] = {}
        for each in self.offered.values():
            for block, direction in each.directions.items():
                found.setdefault(block, {})[each.sha256] = direction
        return dict(sorted(found.items()))

    def told(self) -> str:
        """For the log: every vector with its hash and blocks, and what was refused."""
        lines = [
            f"{name} (SHA-256 {each.sha256}, blocks {sorted(each.directions)})" for name, each in self.offered.items()
        ]
        return visible_line("; ".join([*lines, *self.refused.values()])) or "none"


def at_blocks(vector: SteeringVector, n_layers: int) -> dict[int, Tensor]:
    """The directions of a vector by the block at whose output they act.

    Raises:
        SiteError: a site that is no block's output, or two directions at one.
    """
    found: dict[int, Tensor] = {}
    resolved = vector.resolve(n_layers)
    for site, direction in zip(resolved.sites, resolved.directions, strict=True):
        block = site.block if site.kind == "resid_post" else site.block - 1
        if site.kind not in ("resid_post", "resid_pre") or block < 0:
            raise SiteError(
                f"It has a direction at {site}, and vLLM is steered at the outputs of blocks: resid_post, or resid_pre "
                "from block 1 on. Select those with vector.select(...) and save the vector again."
            )
        if block in found:
            raise SiteError(
                f"It has two directions at the output of block {block} (resid_post[{block}] and "
                f"resid_pre[{block + 1}] are one place); keep one of them."
            )
        found[block] = direction
    return found


def folder() -> str | None:
    """The folder that the environment names, if it does."""
    return os.environ.get(FOLDER) or None


def shelf_of(config: Any) -> Shelf | None:
    """The shelf of an engine, read at the first call in a process; None without a folder.

    Args:
        config: a `VllmConfig`.
    """
    named = folder()
    if named is None:
        return None
    text = config.model_config.hf_config.get_text_config()
    key = named, fingerprint(SimpleNamespace(config=text))["fingerprint"]
    with _lock:
        if key not in _read:
            _read[key] = Shelf(named, text)
        return _read[key]


_read: dict[tuple[str, str], Shelf] = {}
_lock = threading.Lock()
