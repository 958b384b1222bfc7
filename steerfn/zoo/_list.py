"""`list`: what a zoo has, with the evidence for each."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from steerfn.model import Model
from steerfn.output import Paragraph, Result, Section, Table
from steerfn.values import fingerprint as fingerprint_of
from steerfn.values import public
from steerfn.zoo._entries import Place, ZooVector, entries


@dataclasses.dataclass(frozen=True, eq=False)
class Zoo(Result):
    """The vectors of a zoo, as `list` gives them; print it, iterate over it, or export it.

    Attributes:
        vectors: by name.
    """

    vectors: tuple[ZooVector, ...]

    _title = "Zoo"
    _what = "The list"

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in alphabetical order, each once."""
        return tuple(dict.fromkeys(each.name for each in self.vectors))

    def __iter__(self) -> Iterator[ZooVector]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each vector."""
        return [
            {
                "name": each.name,
                "model": str(each.model.get("name")),
                "sites": " ".join(each.sites),
                "alpha": each.evidence.get("alpha"),
                "verdict": each.evidence.get("verdict"),
                "headline": each.evidence.get("headline"),
                "behaviour": each.behaviour,
                "address": each.address,
            }
            for each in self.vectors
        ]

    def _sections(self) -> Sequence[Section]:
        if not self.vectors:
            return [Paragraph("There is no vector here.")]
        rows = [
            [row["name"], row["model"], row["sites"], "-" if row["alpha"] is None else f"{row['alpha']}",
             str(row["headline"] or "no report")]
            for row in self.to_records()
        ]  # fmt: skip
        return [Table(["name", "model", "sites", "alpha", "what its report says"], rows, numeric=[3])]

    def __repr__(self) -> str:
        return f"Zoo({', '.join(self.names)})"


@public
def list(zoo: Place | None = None, *, model: Model | None = None) -> Zoo:
    """List the vectors of a zoo: model, sites, the strength that was reported on, and the verdict of the report.

    A zoo is a folder with `name.safetensors` and its card `name.md`, or with a folder of such files for each model; on
    the hub it is a repository like that, fetched by `huggingface_hub` and without a connection read from its cache.

    Args:
        zoo: a folder, or "hf://user/name[@revision]"; default the zoo of this package.
        model: list only what was made from a model of its architecture.

    Raises:
        FileError: no such folder or repository, or no way to it.

    Warns:
        SteerWarning: a file that is no vector, which is left out.

    Example:
        >>> import steerfn as sf
        >>> "sentiment" in sf.zoo.list().names
        True
    """
    known = entries(zoo)
    if model is not None:
        identity = fingerprint_of(model)
        known = tuple(each for each in known if each.fits(identity))
    return Zoo(known)
