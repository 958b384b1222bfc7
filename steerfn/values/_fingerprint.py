"""Which model a vector was made from, and whether it fits the one at hand.

The fingerprint is a hash of the sizes that define an architecture, so it does not depend on dtype,
device, quantization, or the transformers version. It tells shapes apart, not weights: a base model and its
fine-tunes share it, and vectors are often moved between those on purpose. Vectors carry a hash of the weights
beside it, which `strict=True` asks for.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Any

from steerfn.values._arguments import public
from steerfn.values._errors import ModelError
from steerfn.values._site import Site
from steerfn.values._vector import SteeringVector
from steerfn.values._warn import warn
from steerfn.values._weights_hash import weights_hash

# What each family calls its sizes; the first name that is set counts (num_layers before num_hidden_layers
# because longcat_flash has both and transformers changed the latter). Only what the releases of transformers agree
# on: head_dim is left out because they do not, and the rest of the sizes tell architectures apart without it.
_NAMES = {
    "d_model": "hidden_size n_embd d_model embed_dim dim model_dim",
    "n_layers": "num_layers num_hidden_layers n_layer n_layers decoder_layers",
    "n_heads": "num_attention_heads n_head n_heads num_heads decoder_attention_heads",
    "n_kv_heads": "num_key_value_heads num_kv_heads n_head_kv",
    "d_mlp": "intermediate_size n_inner ffn_dim decoder_ffn_dim d_ff ffn_hidden_size ffn_intermediate_size",
    "n_experts": "num_local_experts num_experts n_routed_experts moe_num_experts",
    "vocabulary": "vocab_size",
}


@public
def fingerprint(model: Any, *, weights: bool = False) -> dict[str, Any]:
    """The identity of a model, as it is kept in `metadata["model"]` of the vectors made from it.

    Args:
        model: a transformers model (compiled or wrapped by PEFT too), or anything with a `config`.
        weights: also say which weights it has, as vectors do. That reads a few elements of every tensor.

    Returns:
        `name` (never a path on this machine: of a folder only its last part), `revision` (commit, or
        None), `architecture` (class name), `d_model`, `n_layers`, and `fingerprint`: 16 hex digits, of the sizes.
        With `weights`, also `weights`: 16 hex digits of their values, rounded to bfloat16, or None where this process
        does not hold them (a model that is split over processes).

    Raises:
        ModelError: something without a `config`.

    Example:
        >>> import steerfn as sf
        >>> model, tokenizer = sf.demo_model()
        >>> sf.values.fingerprint(model, weights=True) == sf.values.fingerprint(model.bfloat16(), weights=True)
        True
    """
    identity = ModelIdentity.of(model)
    return {**identity.sizes, "weights": identity.weights} if weights else identity.sizes


class ModelIdentity:
    """The `fingerprint` of a model, each half of which is computed at its first use.

    A value for the time of one call, which hands it on: nothing would tell it that weights changed in place.

    Attributes:
        model: the model without `torch.compile` and PEFT around it.
    """

    def __init__(self, model: Any) -> None:
        self.model = _base_model(model)
        self._said: set[str] = set()

    @classmethod
    def of(cls, model: Any) -> "ModelIdentity":
        """The identity of a model, or the one that is given."""
        return model if isinstance(model, cls) else cls(model)

    @functools.cached_property
    def sizes(self) -> dict[str, Any]:
        """The fingerprint without the weights."""
        config, kind = _config(self.model), type(self.model).__name__
        sizes = _sizes(config)
        model_type = getattr(_text(config), "model_type", None)
        text = json.dumps({"model_type": model_type, **sizes}, sort_keys=True, default=str)
        name, revision = _name(config)
        return {
            "name": name or kind,
            "revision": revision,
            "architecture": kind,
            "d_model": sizes["d_model"],
            "n_layers": sizes["n_layers"],
            "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
        }

    @functools.cached_property
    def weights(self) -> str | None:
        """The hash of the weights, None where this process does not hold them."""
        return weights_hash(self.model)

    def warn_once(self, message: str) -> None:
        """Warn of something about the model, unless that has been said in this call."""
        if message not in self._said:
            self._said.add(message)
            warn(message)


@public
def check_match(vector: SteeringVector, model: Any, strict: bool | str = False) -> None:
    """Refuse a vector that cannot fit a model, and warn of one that was made from another architecture.

    Args:
        vector: a vector. One that does not say what it was made from is checked for its width and layers only,
            unless `strict` asks for more.
        model: the model that it is to steer.
        strict: True refuses a vector unless it was made from these very weights (a base model's vector on its
            instruct version is refused); "architecture" refuses one unless the architecture is the same.

    Raises:
        ModelError: another width than the model's, a layer that it does not have, or, with `strict`, a vector that
            was made from another model or does not say from which.

    Warns:
        SteerWarning: another architecture, without `strict`.

    Example:
        >>> import torch, steerfn as sf
        >>> model, tokenizer = sf.demo_model()
        >>> sf.values.check_match(sf.SteeringVector({sf.resid_post[-1]: torch.ones(model.config.hidden_size)}), model)
    """
    widths = [(site, len(direction)) for site, direction in vector._items()]
    check_origin(vector.metadata.get("model"), widths, ModelIdentity.of(model), strict=strict)


def check_origin(
    made: Any, widths: Sequence[tuple[Site, int | None]], identity: ModelIdentity, *, strict: bool | str
) -> None:
    """`check_match` of a vector that says it was made from a model, and has directions of some widths."""
    if strict not in (False, True, "architecture"):
        raise ModelError(
            f"`strict` must be True (the same weights), 'architecture' (the same sizes) or False, got {strict!r:.80}."
        )
    here = identity.sizes
    made = made if isinstance(made, dict) else {}
    d_model, layers = here["d_model"], here["n_layers"]
    origin = f" (it was made from {_label(made)})" if made else ""
    for site, width in widths:
        if isinstance(d_model, int) and site.kind != "head_out" and width not in (None, d_model):
            raise ModelError(
                f"The vector has width {width}{origin}, but {_label(here)} has width {d_model}; "
                "use a vector that was made from this model."
            )
        if isinstance(layers, int) and isinstance(site.layer, int) and not -layers <= site.layer < layers:
            raise ModelError(
                f"The vector has a direction at {site}{origin}, but {_label(here)} has {layers} blocks "
                f"(0 to {layers - 1}); use a vector that was made from this model."
            )
    if made.get("fingerprint") is None:
        if strict:
            raise ModelError(
                f"The vector does not say which model it was made from, so strict={strict!r} cannot tell whether it "
                f"belongs to {_label(here)}; discover it with steerfn, or pass strict=False to check its width and "
                "layers only."
            )
        return
    if made["fingerprint"] != here["fingerprint"]:
        models = f"The vector was made from {_label(made)}, and this model is {_label(here)}"
        message = f"{models}: their architectures differ"
        if strict:
            raise ModelError(f"{message}; use a vector that was made from this model, or pass strict=False.")
        fix = (
            "its effect here is unknown; use a vector that was made from this model, or strict=True to refuse such "
            "vectors."
        )
        identity.warn_once(f"{message}, so {fix}")
    elif strict is True:
        _check_weights(made, here, identity.weights)


def strictest(vector: SteeringVector, *, weights: bool = True) -> bool | str:
    """The strictest check of `check_match` that a vector can pass by what it says of its model.

    For engines, which serve vectors that say nothing too, but none that says it was made from another model.

    Args:
        vector: the vector.
        weights: whether the engine's model has the weights by their names; one that fuses or splits them has not.
    """
    made = vector.metadata.get("model")
    if not isinstance(made, dict) or made.get("fingerprint") is None:
        return False
    return True if weights and made.get("weights") is not None else "architecture"


def _check_weights(made: dict[str, Any], here: dict[str, Any], weights: str | None) -> None:
    """Refuse a vector of the same architecture unless it was made from these weights."""
    looser = "pass strict='architecture' to compare the architecture only"
    if weights is None:
        raise ModelError(
            f"strict=True compares weights, and this process does not hold those of {_label(here)} (it is split over "
            f"processes, or on the meta device); {looser}."
        )
    if made.get("weights") is None:
        raise ModelError(
            f"The vector names {_label(made)}, of this architecture, but not which weights it was made from: it comes "
            "from a version of steerfn that did not record them, or from a model that was split over processes. "
            f"Discover it again for strict=True, or {looser}."
        )
    if made["weights"] != weights:
        raise ModelError(
            f"The vector was made from {_label(made)} with the weights {str(made['weights'])[:16]}, and "
            f"{_label(here)} has the same architecture but the weights {weights} (a base model and its instruct "
            "version, a fine-tune, an adapter or a quantized copy differ so); use a vector that was made from these "
            f"weights, or {looser}."
        )


def _label(identity: dict[str, Any]) -> str:
    # A file may say anything of its model: a few words of it are enough.
    return f"{str(identity.get('name'))[:80]!r} (fingerprint {str(identity.get('fingerprint'))[:16]})"


def _base_model(model: Any) -> Any:
    """The transformers model inside `torch.compile` and PEFT wrappers."""
    model = getattr(model, "_orig_mod", model)
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model


def _config(model: Any) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(
            f"A {type(model).__name__} has no config that says what model it is; "
            "pass a transformers causal language model."
        )
    return config


def _text(config: Any) -> Any:
    """The part of a config that describes the language model."""
    try:
        return config.get_text_config(decoder=True)
    except Exception:  # not a transformers config, or one of which transformers cannot tell
        return config


def _sizes(config: Any) -> dict[str, Any]:
    text = _text(config)
    sizes = {}
    for size, names in _NAMES.items():
        values = (_value(text, name) for name in names.split())
        sizes[size] = next((value for value in values if value is not None), None)
    if sizes["n_kv_heads"] is None:  # a default that some versions write out
        sizes["n_kv_heads"] = sizes["n_heads"]
    return sizes


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # transformers raises where a size differs from layer to layer
        return None


def _name(config: Any) -> tuple[str | None, str | None]:
    """A model's name and revision, without where on this machine it lies."""
    name = getattr(config, "_name_or_path", None) or None
    revision = getattr(config, "_commit_hash", None) or None
    if name is None:
        return None, revision
    name = str(name)
    parts = re.split(r"[/\\]+", name.rstrip("/\\"))
    for place, part in enumerate(parts):  # the hub's cache: .../models--org--name/snapshots/commit
        if part.startswith("models--"):
            commit = (
                parts[place + 2] if parts[place + 1 : place + 2] == ["snapshots"] and len(parts) > place + 2 else None
            )
            return part.removeprefix("models--").replace("--", "/"), revision or commit
    if os.path.isdir(name) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        name = PureWindowsPath(os.path.abspath(name) if name.startswith(".") else name).name
    return name or None, revision
