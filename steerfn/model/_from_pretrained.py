"""Loading a model and its tokenizer in one call.

A thin door over ``AutoModelForCausalLM`` (``AutoModelForImageTextToText`` for models that also see)
and ``AutoTokenizer``: it picks the device, spells the dtype and the quantization, and turns what
goes wrong into one sentence with a fix. Nothing else in the library depends on it: every verb takes
any model that the user already holds.
"""

from pathlib import Path
from typing import Any

import torch

from steerfn.values import ModelError, SteerError, missing, public

_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


# What finds the files, and so concerns the tokenizer as well as the model.
_SHARED = "cache_dir force_download gguf_file local_files_only revision subfolder token trust_remote_code".split()


@public
def from_pretrained(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Loads a causal LM and its tokenizer; the model is in eval mode, on one device.

    Vision-language models (Llava, Mistral 3, Qwen2.5-VL, ...) load whole; their text tower is what
    is steered.

    Args:
        name_or_path: a folder written by ``save_pretrained``, a name on the model hub, or a
            ``.gguf`` file of a model (its weights are unpacked; this needs the ``gguf`` package).
        device: ``None`` or ``"auto"`` takes CUDA where there is one, else Apple's MPS, else the
            CPU; a string or a ``torch.device`` places the whole model there. To spread a model
            over devices pass transformers' ``device_map=`` instead.
        dtype: ``None`` or ``"auto"`` keeps the checkpoint's own; else ``"bf16"``, ``"fp16"``,
            ``"fp32"`` (or the long names) or a floating-point ``torch.dtype``.
        quantization: ``None``, ``"int8"`` (8-bit weights, one scale per output row) or ``"int4"``
            (4-bit weights, one scale per 32 inputs), both through torchao, weights only: the
            hidden states that steering acts on keep ``dtype``. Off CUDA, int4 has the
            precision of four bits but takes a byte per weight, because torchao's packed kernels
            are CUDA ones; int8 is then as small, faster and much closer to the original.
        kwargs: go to ``AutoModelForCausalLM.from_pretrained``; those that say where the files
            are (``revision``, ``gguf_file``, ``token``, ...) go to the tokenizer as well.

    Returns:
        ``(model, tokenizer)``.

    Raises:
        ModelError: there is no such model, it cannot be reached, its files are damaged or lack
            weights (which transformers would fill with random numbers), or transformers cannot
            load it; the original exception is the ``__cause__``.
        SteerError: an unknown or absent device, dtype or quantization, ``device`` together with
            ``device_map``, or torchao is not installed.

    Example:
        >>> import steerfn as sf
        >>> folder = sf.demo_model()[0].name_or_path
        >>> model, tokenizer = sf.from_pretrained(folder, device="cpu", dtype="bf16")
        >>> model.dtype, model.training
        (torch.bfloat16, False)
    """
    name = str(name_or_path)
    if name.lower().endswith(".gguf") and "gguf_file" not in kwargs:
        name, kwargs["gguf_file"] = _gguf(name)
    if "device_map" in kwargs and device is not None:
        raise SteerError(
            f"device={device!r} and device_map={kwargs['device_map']!r} both place the model: "
            "pass device= for one device, or device_map= alone to spread it."
        )
    place = None if "device_map" in kwargs else _device(device)
    # transformers 4 says torch_dtype, 5 says dtype; both understand dtype from 4.56 on.
    old = kwargs.pop("torch_dtype", None)
    weights = _dtype(old if dtype is None else dtype)
    if quantization is not None:
        where = place.type if place is not None else _device(None).type
        kwargs["quantization_config"], weights = _quantization(quantization, where, weights)
        if place is not None:
            kwargs["device_map"] = {"": place}  # so that weights are packed where they will run

    if (looks_local := name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name) and (
        not Path(name).expanduser().exists()
    ):
        # The hub client would retry such a name over the network for half a minute.
        raise ModelError(
            f"There is no folder {name!r}: pass a folder written by save_pretrained, or a hub "
            "name such as 'HuggingFaceTB/SmolLM2-135M-Instruct'."
        )
    source = str(Path(name).expanduser()) if looks_local else name

    shared = {key: kwargs[key] for key in _SHARED if key in kwargs}
    packing = None
    kwargs.pop("output_loading_info", None)
    try:
        from steerfn.output import no_banners  # here, as steering alone shows nothing

        with no_banners():  # transformers imports torchao for any model; who quantizes has imported it above
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(source, **shared)
            packing = quantization  # what fails from here on may be its fault
            model: Any
            model, info = _class_for(source, kwargs.get("config"), shared).from_pretrained(
                source, dtype=weights, output_loading_info=True, **kwargs
            )
    # Whatever it is (safetensors, tokenizers and pickle have exceptions of their own), it is the files'.
    except Exception as error:
        raise ModelError(_explain(source, packing, error)) from error
    if missing := sorted(info.get("missing_keys", ())):
        raise ModelError(
            f"The files of {name!r} lack {len(missing)} of the model's weights, such as {missing[0]!r}, which would be "
            "random numbers: fetch or save the model again, or load a checkpoint of this architecture with its "
            "language-modelling head."
        )
    if place is not None and quantization is None:
        model = model.to(place)
    return model.eval(), tokenizer


def _gguf(name: str) -> tuple[str, str]:
    """The folder and the file name of a model in one GGUF file."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(
            f"There is no file {name!r}: pass the path of a model's .gguf file, or the model's folder or hub name with "
            "gguf_file='file.gguf'."
        )
    return str(path.parent.resolve()), path.name


def _class_for(source: str, config: Any, shared: dict[str, Any]) -> Any:
    """The auto class that knows a model: of causal LMs, or of those that also take images."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    config = AutoConfig.from_pretrained(source, **shared) if config is None else config
    kind = getattr(config, "model_type", None)
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return AutoModelForImageTextToText if sees and not own else AutoModelForCausalLM


def _device(device: str | torch.device | None) -> torch.device:
    """The device asked for, proven to exist by putting an empty tensor on it."""
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise SteerError(
            f"device={device!r} is not a device PyTorch can use here: "
            f"pass one of {', '.join(repr(d) for d in ['auto', 'cpu', *here])}."
        ) from error
    return place


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """The dtype asked for, in the words of transformers ("auto" is the checkpoint's own)."""
    if dtype is None or dtype == "auto":
        return "auto"
    torch_dtype = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise SteerError(
            f"dtype={dtype!r} is not one a model can be loaded in: pass None for the "
            "checkpoint's own, 'bf16', 'fp16', 'fp32' or a floating-point torch.dtype "
            "(fewer bits are asked for with quantization='int8' or 'int4')."
        )
    return torch_dtype


def _quantization(name: str, where: str, dtype: str | torch.dtype) -> tuple[Any, str | torch.dtype]:
    """The quantization config of transformers for ``name`` on a device type, and the dtype it needs."""
    if name not in ("int8", "int4"):
        raise SteerError(f"quantization={name!r} is unknown: pass None, 'int8' or 'int4'.")
    try:
        from torchao.quantization import Int4WeightOnlyConfig as Int4
        from torchao.quantization import Int8WeightOnlyConfig as Int8
        from torchao.quantization import IntxWeightOnlyConfig as Intx
        from torchao.quantization import PerGroup
    except ImportError as error:
        raise SteerError(missing("torchao", "quantized", error)) from error
    from transformers import TorchAoConfig

    if name == "int8":
        return TorchAoConfig(Int8()), dtype
    if where != "cuda":
        # The packed formats have CUDA kernels only (torchao 0.18); this one runs anywhere.
        four: Any = getattr(torch, "int4")  # noqa: B009 - torch's type stubs lack it
        return TorchAoConfig(Intx(weight_dtype=four, granularity=PerGroup(32))), dtype
    if dtype not in ("auto", torch.bfloat16):
        raise SteerError(
            f"quantization='int4' on CUDA computes in bfloat16, not {dtype}: leave dtype=None, "
            "or pass quantization='int8', which takes any dtype."
        )
    packed: dict[str, Any] = {"int4_packing_format": "tile_packed_to_4d"}
    return TorchAoConfig(Int4(32, **packed)), torch.bfloat16


def _explain(name: str, quantization: str | None, error: Exception) -> str:
    """One sentence for what transformers said, with the fix most likely to help."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    if quantization is not None and not isinstance(error, OSError):
        return (
            f"The model {name!r} could not be loaded with quantization={quantization!r} "
            f"({reason}): 'int4' needs every linear layer's input width to be a multiple of 32; "
            "try 'int8', or quantization=None to see whether the model loads at all."
        )
    if Path(name).exists():
        return (
            f"The folder {name!r} could not be loaded as a causal LM with its tokenizer "
            f"({reason}): it must hold what model.save_pretrained and tokenizer.save_pretrained "
            "write, undamaged."
        )
    return (
        f"The model {name!r} could not be loaded from the hub ({reason}): check the spelling and "
        "the network, run `hf auth login` if the model is gated, or pass a local folder."
    )
