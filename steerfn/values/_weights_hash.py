"""Which weights a model has: a hash of a few elements of every tensor, which tells a base model from its fine-tunes."""

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SAMPLES = 64
"""Elements of each tensor that are looked at. A fine-tune differs in all that it trained."""


def weights_hash(model: Any) -> str | None:
    """16 hex digits of the SHA-256 of a few elements of every parameter and persistent buffer, with their names.

    Floating-point elements are rounded to bfloat16 first, so a checkpoint has one hash whether it is loaded in
    float32 or bfloat16, and on any device. A quantized copy, an adapter and a fine-tune have other weights and another
    hash. Weights that accelerate has offloaded are read from where they lie.

    Args:
        model: a torch module; the transformers model itself, without `torch.compile` or PEFT around it.

    Returns:
        None where this process cannot see the weights: no module, tensors on the meta device, or a model that is
        split over processes.
    """
    if not isinstance(model, torch.nn.Module):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(model), key=lambda named: named[0]):
        digest.update(name.encode())
        for plain in _plain(tensor):
            if plain.device.type == "meta" or hasattr(plain, "device_mesh"):
                return None
            digest.update(f"{tuple(plain.shape)}".encode())
            digest.update(_sample(plain).numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by name, each once where modules share it."""
    seen: set[int] = set()
    for place, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        own = {**module._parameters, **{n: b for n, b in module._buffers.items() if n not in passing}}
        for name, tensor in own.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{place}.{name}", _offloaded_weight(module, name) if tensor.device.type == "meta" else tensor


def _offloaded_weight(module: Any, name: str) -> Tensor:
    """A weight that accelerate keeps elsewhere; the meta tensor in its place where it does not."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        held = getattr(each, "weights_map", None)
        if held is not None:
            with warnings.catch_warnings():  # of torch, about memory maps that are read-only
                warnings.simplefilter("ignore", UserWarning)
                return held[name]
    return getattr(module, name)


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantized one wraps, or itself."""
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is None or hasattr(tensor, "device_mesh"):
        yield tensor.detach()
    else:
        for name in inner()[0]:
            yield from _plain(getattr(tensor, name))


def _sample(tensor: Tensor) -> Tensor:
    # An odd step, since one that divides the width of a matrix would see its first column only.
    few = tensor.reshape(-1)[:: max(1, tensor.numel() // SAMPLES) | 1].cpu()
    return few.to(torch.bfloat16).view(torch.int16) if few.is_floating_point() else few.to(torch.int64)
