"""The vectors of the folder that STEERFN_VECTORS names, read once in every process.

With the models and settings of vLLM that are steered. Whatever is not here is refused, with the reason.
"""

import os
import threading
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from steerfn.serving import RequestError, Shelf
from steerfn.values import SiteError, SteerError, SteeringVector, fingerprint, visible_line

FOLDER = "STEERFN_VECTORS"


class Offered(NamedTuple):
    """A vector that requests can name."""

    vector: SteeringVector
    sha256: str
    directions: dict[int, Tensor]


class EngineShelf:
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
        files = Shelf(folder, SimpleNamespace(config=config))
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
        by_block: dict[int, dict[str, Tensor]] = {}
        for each in self.offered.values():
            for block, direction in each.directions.items():
                by_block.setdefault(block, {})[each.sha256] = direction
        return dict(sorted(by_block.items()))

    def summary(self) -> str:
        """A summary for the log: every vector with its hash and blocks, and the files that were refused."""
        lines = [
            f"{name} (SHA-256 {each.sha256}, blocks {sorted(each.directions)})" for name, each in self.offered.items()
        ]
        return visible_line("; ".join([*lines, *self.refused.values()])) or "none"


def at_blocks(vector: SteeringVector, n_layers: int) -> dict[int, Tensor]:
    """The directions of a vector by the block at whose output they act.

    Raises:
        SiteError: a site that is not a block's output, or two directions at one.
    """
    by_block: dict[int, Tensor] = {}
    resolved = vector.resolve(n_layers)
    for site, direction in zip(resolved.sites, resolved.directions, strict=True):
        block = site.block if site.kind == "resid_post" else site.block - 1
        if site.kind not in ("resid_post", "resid_pre") or block < 0:
            raise SiteError(
                f"It has a direction at {site}, and vLLM is steered at the outputs of blocks: resid_post, or resid_pre "
                "from block 1 on. Select those with vector.select(...) and save the vector again."
            )
        if block in by_block:
            raise SiteError(
                f"It has two directions at the output of block {block} (resid_post[{block}] and "
                f"resid_pre[{block + 1}] are one place); keep one of them."
            )
        by_block[block] = direction
    return by_block


def folder() -> str | None:
    """The folder that the environment names, if it does."""
    return os.environ.get(FOLDER) or None


def shelf_of(config: Any) -> EngineShelf | None:
    """The shelf of an engine, read at the first call in a process; None without a folder."""
    named = folder()
    if named is None:
        return None
    text = config.model_config.hf_config.get_text_config()
    key = named, fingerprint(SimpleNamespace(config=text))["fingerprint"]
    with _lock:
        if key not in _read:
            _read[key] = EngineShelf(named, text)
        return _read[key]


_read: dict[tuple[str, str], EngineShelf] = {}
_lock = threading.Lock()
FAMILIES = {
    "LlamaForCausalLM": "LlamaDecoderLayer",
    "MistralForCausalLM": "MistralDecoderLayer",
    "Qwen2ForCausalLM": "Qwen2DecoderLayer",
    "Qwen3ForCausalLM": "Qwen3DecoderLayer",
    "GemmaForCausalLM": "GemmaDecoderLayer",
    "Gemma2ForCausalLM": "Gemma2DecoderLayer",
    "Gemma3ForCausalLM": "Gemma3DecoderLayer",
    "Glm4ForCausalLM": "Glm4DecoderLayer",
    "MixtralForCausalLM": "MixtralDecoderLayer",
    "Phi3ForCausalLM": "LlamaDecoderLayer",
    "Qwen3MoeForCausalLM": "Qwen3MoeDecoderLayer",
}
"""By architecture, the class of the decoder blocks: each returns two halves `(hidden, residual)` of the stream."""


def obstacle(config: Any) -> str | None:
    """Why an engine of this configuration cannot be steered, or None."""
    try:
        return _find_obstacle(config)
    except AttributeError as error:
        return f"this version of vLLM keeps its settings elsewhere ({error})"


def _find_obstacle(config: Any) -> str | None:
    model, parallel = config.model_config, config.parallel_config
    if model.architecture not in FAMILIES:
        return f"its blocks are known for {', '.join(FAMILIES)}, and this is a {model.architecture}"
    settings = {
        "a pooling model": model.runner_type != "generate",
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
        "micro-batches (--enable-dbo)": parallel.use_ubatching,
        "speculative decoding": config.speculative_config is not None,
        "a KV connector, which may share steered keys and values under keys of its own": (
            config.kv_transfer_config is not None
        ),
        "--kv-sharing-fast-prefill": config.cache_config.kv_sharing_fast_prefill,
    }
    switched_on = [name for name, on in settings.items() if on]
    return f"it is not known to be right with {', '.join(switched_on)}" if switched_on else None
