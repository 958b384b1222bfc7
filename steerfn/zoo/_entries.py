"""A zoo: a folder with `name.safetensors` and the card `name.md`, or with a folder of such files for each model."""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerfn.values import DataError, FileError, SteerError, warn
from steerfn.values.files import HubAddress, describe, fetch_folder

OURS = Path(__file__).parent / "data"
"""The zoo of this package."""
ZOO = "zoo:"
"""What the name of one of its vectors begins with where a file may stand too: `zoo:refusal`."""
SUFFIX, CARD = ".safetensors", ".md"

Place = str | os.PathLike[str]
"""A folder, or "hf://user/name[@revision]"."""


@dataclasses.dataclass(frozen=True)
class ZooVector:
    """A vector of a zoo, and what its file says of it; see `list`.

    Attributes:
        name: "sentiment".
        key: its name with the folder that it lies in, if that is not the zoo's own: "SmolLM2-135M-Instruct/sentiment".
        address: what `sf.load` takes: a path, or its address on the hub, with the commit.
        path: where its file lies on this machine.
        sites: the names of its sites.
        model: the fingerprint of the model that it was made from (see `sf.values.fingerprint`).
        behaviour: what it does, in a sentence; "" where it does not say.
        evidence: what `add` wrote of the report: `alpha`, `verdict` (a `Verdict`'s level), `headline`; or nothing.
    """

    name: str
    key: str
    address: str
    path: Path
    sites: tuple[str, ...]
    model: Mapping[str, Any]
    behaviour: str
    evidence: Mapping[str, Any]

    def fits(self, identity: Mapping[str, Any]) -> bool:
        """Whether it was made from a model of the architecture with this fingerprint."""
        return self.model.get("fingerprint") == identity["fingerprint"]


def entries(zoo: Place | None) -> tuple[ZooVector, ...]:
    """The vectors of a zoo, by name; a file that cannot be read is named in a warning and left out.

    Raises:
        FileError: no such folder or repository, or no way to it.
    """
    folder, hub = place_of(zoo)
    files = sorted((*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*/*{SUFFIX}")))
    vectors = []
    for path in files:
        file = path.relative_to(folder).as_posix()
        try:
            about = describe(path)
        except FileError as error:
            warn(f"The zoo has a file that is no vector: {error}")
            continue
        made, evidence = (_mapping(about["metadata"].get(key)) for key in ("model", "evidence"))
        address = str(path) if hub is None else str(dataclasses.replace(hub, file=file))
        vectors.append(
            ZooVector(
                name=path.stem,
                key=file.removesuffix(SUFFIX),
                address=address,
                path=path,
                sites=tuple(about["sites"]),
                model=made,
                behaviour=str(about["metadata"].get("behaviour") or ""),
                evidence=evidence,
            )
        )
    return tuple(sorted(vectors, key=lambda each: (each.name, each.key)))


def place_of(zoo: Place | None) -> tuple[Path, HubAddress | None]:
    """The folder of a zoo, and its address where it was fetched from the hub.

    Raises:
        FileError: no such folder or repository, or no way to it.
    """
    address = HubAddress.of(zoo)
    if address is not None:
        if address.file is not None:
            raise FileError(f"'{zoo}' names a file; a zoo is a whole repository: hf://user/name[@revision].")
        return fetch_folder(address, SUFFIX, CARD)
    try:
        folder = OURS if zoo is None else Path(zoo)
    except TypeError:
        raise FileError(f"`zoo` must be a folder or 'hf://user/name', got a {type(zoo).__name__}.") from None
    if not folder.is_dir():
        raise FileError(f"There is no folder '{folder}' to be a zoo; check its name, or make one with sf.zoo.add.")
    return folder, None


def find(name: str, zoo: Place | None) -> tuple[ZooVector, ...]:
    """The vectors of a name, which several models may have.

    Raises:
        DataError: the zoo has no vector of that name.
        FileError: as `entries`.
    """
    known = entries(zoo)
    if chosen := tuple(each for each in known if name in (each.name, each.key)):
        return chosen
    names = sorted({each.name for each in known})
    near = difflib.get_close_matches(name.casefold(), names, n=1) if isinstance(name, str) else []
    meant = f"Did you mean '{near[0]}'? It has" if near else "It has"
    raise DataError(f"The zoo has no vector {name!r:.80}. {meant} {', '.join(names) or 'none'}.")


def only(chosen: Sequence[ZooVector]) -> ZooVector:
    """The one vector there is.

    Raises:
        SteerError: there are several.
    """
    first, *more = chosen
    if more:
        keys = ", ".join(repr(each.key) for each in chosen)
        raise SteerError(f"{len(chosen)} vectors of the zoo have the name '{first.name}': pass one of {keys}.")
    return first


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
