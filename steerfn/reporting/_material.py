"""The vector, the model and the data by names, sizes and hashes, so that a signature refers to exactly one of each.

Prompts that are also in the data are named: an effect on them would be one on texts that made the vector.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from steerfn.datasets import ContrastSet, describe_texts, from_file
from steerfn.operators import as_vector
from steerfn.run import Text, is_token_ids, same_text, shown_prompt
from steerfn.values import DataError, FileError, SteeringVector, number_groups
from steerfn.values.files import MAX_BYTES, HubAddress, Refused, describe, is_hub, load, read_bytes

MATCHES = {
    "same": "The vector says that it was made from these very weights: their hashes are the same.",
    "architecture": "The vector says that it was made from a model of this architecture, but not from which weights.",
    "other weights": "The vector was made from other weights of this architecture: their hashes differ, as those of a "
    "base model and its instruct version, a fine-tune, an adapter or a quantized copy do.",
    "other": "The vector says that it was made from a model of another architecture.",
    "unknown": "The vector does not say from which model it was made.",
}
"""What a vector says of its model beside the model at hand."""


def vector_of(v: Any) -> tuple[SteeringVector, dict[str, Any]]:
    """A vector, and what is known of the file that it came from, if it did.

    Returns:
        The vector, and `file` (its name, without where it lies; on the hub its address), `file_sha256` and `versions`
        (that wrote it), each None for a vector that did not come from a file.

    Raises:
        FileError: a file that `load` refuses.
        SteerError: neither a vector nor a path.
    """
    if not isinstance(v, (str, os.PathLike)):
        return as_vector(v, "report"), {"file": None, "file_sha256": None, "versions": None}
    vector = load(v)
    if is_hub(v):
        file = HubAddress(*(vector.metadata["hub"][key] for key in ("repo", "revision", "file")))
        versions = describe(str(file))["versions"]
        return vector, {"file": str(file), "file_sha256": vector.metadata["hub"]["sha256"], "versions": versions}
    path = Path(v)
    try:
        digest = hashlib.sha256(read_bytes(path, MAX_BYTES)).hexdigest()
    except (OSError, Refused) as error:  # it was there a moment ago
        raise FileError(f"Cannot read '{path}' again: {error}; leave it in place.") from None
    return vector, {"file": path.name, "file_sha256": digest, "versions": describe(path)["versions"]}


def data_of(data: ContrastSet) -> dict[str, Any]:
    """A description of a contrast set: counts, origin, and a hash of its texts."""
    return {
        "name": data.name,
        "source": data.source,
        "description": data.description,
        "positive": len(data.positive),
        "negative": len(data.negative),
        "paired": data.paired,
        "sha256": texts_sha256([*data.positive, "|", *data.negative]),
    }


def texts_sha256(texts: Any) -> str:
    """The SHA-256 of some texts or conversations, as the UTF-8 of their JSON list."""
    text = json.dumps([each if isinstance(each, str) else list(map(dict, each)) for each in texts])
    return hashlib.sha256(text.encode()).hexdigest()


T = TypeVar("T")


def contrast_of(data: Any) -> ContrastSet:
    """A contrast set: itself, out of a file, or of a mapping with its two sides.

    Raises:
        DataError: something else, or a side without texts.
        FileError: a file that cannot be read.
    """
    if isinstance(data, ContrastSet):
        return data
    if isinstance(data, (str, os.PathLike)):
        return from_file(data)
    if isinstance(data, Mapping) and set(data) == {"positive", "negative"}:
        return ContrastSet("texts given for this report", data["positive"], data["negative"])
    raise DataError(
        "data is a ContrastSet (sf.datasets.load, sf.datasets.from_file), a file of one, or a mapping "
        f"{{'positive': [...], 'negative': [...]}}, not {data!r:.80} of type {type(data).__name__}."
    )


def subset(data: ContrastSet, limit: int | None, seed: int) -> ContrastSet:
    """At most so many texts a side, pairs kept together, in their order."""
    sides = len(data.positive), len(data.negative)
    if limit is None or max(sides) <= limit:
        return data
    if data.paired:
        return data.subset(sample(range(sides[0]), limit, seed))
    return data.subset(*(sample(range(n), limit, seed) for n in sides))


def labels_of(
    groups: Any,
    data: ContrastSet,
    prompts: Sequence[Any],
    passages: Sequence[Any],
    questions: Any,
    limit: int | None,
    seed: int,
) -> dict[str, list[int]]:
    """The groups of what `limit` leaves of a report's material, by kind; kinds without labels are left out.

    Raises:
        DataError: labels that do not fit, or of another kind.
    """
    kinds = "data", "prompts", "passages", "questions"
    labels_by_kind = groups if isinstance(groups, Mapping) else {} if groups is None else {"prompts": groups}
    if unknown := [kind for kind in labels_by_kind if kind not in kinds]:
        raise DataError(f"groups has labels of {unknown[0]!r:.80}; it may have them of {', '.join(kinds)}.")
    numbers = {}
    for kind, items in (("prompts", prompts), ("passages", passages)):
        if kind in labels_by_kind:
            rows = f"{kind} (those of the data are groups={{'data': [...]}})"
            numbers[kind] = sample(number_groups(labels_by_kind[kind], len(items), rows), limit, seed)
    if "data" in labels_by_kind:
        n, m = len(data.positive), len(data.negative)
        texts = describe_texts((n, m), groups=labels_by_kind["data"])
        parts = texts.units[:n], () if texts.paired else texts.units[n:]  # of pairs one label is for both
        numbers["data"] = [unit for part in parts for unit in sample(part, limit, seed)]
    if "questions" in labels_by_kind and questions is not None:  # of which the protocol draws as many as `limit` says
        labels = labels_by_kind["questions"]
        numbers["questions"] = number_groups(labels, len(labels) if hasattr(labels, "__len__") else -1, "questions")
    return numbers


def sample(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most so many items, drawn with a seed, in their order."""
    if limit is None or len(items) <= limit:
        return list(items)
    kept = np.random.default_rng(seed).choice(len(items), limit, replace=False)
    return [items[i] for i in sorted(kept.tolist())]


def prompts_in_data(prompts: Sequence[Text], data: ContrastSet) -> list[str]:
    """The prompts that are a text of the data, a message of one, or its beginning; case and white space aside."""
    known = {each for text in (*data.positive, *data.negative) for each in _parts(text)}
    shared = []
    for prompt in prompts:
        keys = {f"{key} " for key in _parts(prompt)}
        if any(f"{text} ".startswith(key) for text in known for key in keys):
            shared.append(shown_prompt(prompt))
    return list(dict.fromkeys(shared))


def _parts(text: Text) -> Iterator[str]:
    """A text; of a conversation all of it, and each message of a user; token ids have no words to compare."""
    if is_token_ids(text):
        return
    yield same_text(text)
    if not isinstance(text, str):
        yield from (same_text(str(message["content"])) for message in text if message["role"] == "user")
