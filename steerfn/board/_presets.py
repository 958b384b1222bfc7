"""Where the page's vectors come from: a folder of files or vectors that the caller holds, and the zoo."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerfn import zoo
from steerfn.board._report_evidence import ReportEvidence
from steerfn.operators import as_vector
from steerfn.serving import NAME, RequestError, Shelf
from steerfn.values import DataError, FileError, SteeringVector, check_match, strictest
from steerfn.values.files import FORMATS, check_target, load, save


class Presets:
    """Vectors by name, for one model. Those of the zoo that were made from a model of its architecture are `zoo:NAME`.

    Args:
        vectors: a folder, which may come to be when the first vector is saved; a mapping of names to vectors; or one
            vector or a list of them, which are named by their number.
        model: the model that they must fit.

    Raises:
        DataError: something else.
        FileError: a file, where the folder that it lies in is meant.
        ModelError: a vector that was made for another model.
    """

    def __init__(self, vectors: Any, model: Any) -> None:
        self.model = model
        self.folder = folder_of(vectors)
        self.held = {} if self.folder is not None else _by_name(vectors)
        for vector in self.held.values():
            check_match(vector, model, strict=strictest(vector))
        named = Counter(each.name for each in zoo.list())
        fitting = zoo.list(model=model)
        self._zoo = {f"{zoo.ZOO}{each.name if named[each.name] == 1 else each.key}": each for each in fitting}
        self._read: dict[str, SteeringVector] = {}
        self._shelf: Shelf | None = None

    def note(self) -> str:
        """A sentence where the folder is not there yet, else ""."""
        if self.folder is None or self.folder.is_dir():
            return ""
        return f"There is no folder '{self.folder}' yet; the first vector that is saved makes it."

    def names(self) -> list[str]:
        """The names that can be chosen, those of the zoo last."""
        shelf = self._open()
        return [*sorted({*self.held, *(shelf.names() if shelf else ())}), *self._zoo]

    def choices(self) -> list[tuple[str, str]]:
        """The label and the name of each vector; the label of one of the zoo has its report's verdict."""
        verdicts = {name: f", {ReportEvidence.of(each.evidence).verdict}" for name, each in self._zoo.items()}
        return [(name + verdicts.get(name, ""), name) for name in self.names()]

    def alpha(self, name: str) -> float:
        """The strength to begin with: the one that a report is on, else 1."""
        return ReportEvidence.of(self.get(name).metadata.get("evidence")).alpha

    def get(self, name: str) -> SteeringVector:
        """A vector by its name.

        Raises:
            DataError: no vector has that name, or its file is damaged or made for another model.
        """
        if name in self.held:
            return self.held[name]
        if name in self._zoo:
            if name not in self._read:
                self._read[name] = load(self._zoo[name].address, model=self.model, strict="architecture")
            return self._read[name]
        shelf = self._open()
        if shelf is None or name.startswith(zoo.ZOO):
            raise DataError(f"There is no vector {name!r:.140}; there are {', '.join(self.names()) or 'none yet'}.")
        try:
            return shelf.get(name).vector
        except RequestError as error:
            raise DataError(error.message) from None

    def files(self) -> dict[str, str | None]:
        """The file of each vector, as code and commands name it; None where it has none."""
        shelf, files = self._open(), dict.fromkeys(self.held)
        if shelf is None or self.folder is None:
            return files
        for name in shelf.names():
            with contextlib.suppress(RequestError):  # two files of one name: `get` says so
                files[name] = str(self.folder / shelf.path(name).name)
        return files

    def save(self, name: str, vector: SteeringVector) -> str:
        """Keep a vector under a new name: in the folder, or in memory if there is no folder. Returns where.

        Raises:
            FileError: a name that is taken or no file's name, or a folder that cannot be written.
        """
        if NAME.fullmatch(name) is None or Path(name).suffix in FORMATS:
            raise FileError(f"{name!r:.140} is not a name for a vector; use letters, digits and '-', without a suffix.")
        if name in self.names():
            raise FileError(f"There is a vector {name!r} already; choose another name.")
        if self.folder is None:
            self.held[name] = vector
            return f"in memory as {name!r}"
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        check_target(path)
        return str(save(vector, path))

    def _open(self) -> Shelf | None:
        if self._shelf is None and self.folder is not None and self.folder.is_dir():
            self._shelf = Shelf(self.folder, self.model)
        return self._shelf


def folder_of(vectors: Any) -> Path | None:
    """The folder that is given for vectors, which may come to be later; None where vectors themselves are.

    Raises:
        FileError: a file, where the folder that it lies in is meant.
    """
    if not isinstance(vectors, (str, Path)):
        return None
    folder = Path(vectors)
    if folder.is_file() or folder.suffix in FORMATS:
        raise FileError(
            f"'{folder}' is a file, and the page takes a folder of them or vectors themselves; pass "
            f"'{folder.parent}', or in Python sf.load({str(folder)!r})."
        )
    return folder


def _by_name(vectors: Any) -> dict[str, SteeringVector]:
    if vectors is None:
        return {}
    if isinstance(vectors, SteeringVector):
        vectors = [vectors]
    if not isinstance(vectors, (Mapping, list, tuple)):
        raise DataError(
            "vectors must be a folder, a SteeringVector, a list of them, or a mapping of names to them, got "
            f"{type(vectors).__name__}."
        )
    named = vectors.items() if isinstance(vectors, Mapping) else ((f"vector-{i}", v) for i, v in enumerate(vectors, 1))
    return {str(name): as_vector(vector, "vectors") for name, vector in named}
