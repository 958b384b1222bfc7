"""Results: each says its records and its sections; text, Markdown, HTML, JSON, CSV and pandas follow from these."""

import abc
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from steerfn.output._export import as_csv, as_json, dataframe, write_text
from steerfn.output._numbers import format_number
from steerfn.output._page import page, part, render
from steerfn.output._sections import Section, escape_markdown
from steerfn.output._table import Table
from steerfn.output._terminal import Screen
from steerfn.values import FileError
from steerfn.values.files import check_output

IN_NOTEBOOK = 20
"""Rows of what may be very long that a notebook shows."""


FORMS = {".csv": "to_csv", ".html": "to_html", ".json": "to_json", ".md": "to_markdown"}
"""What writes a result, by the suffix of its file."""


def check_result_file(path: Any, what: str) -> Path:
    """Find out whether a result can be written to a place, whose suffix says the form.

    Args:
        path: the place.
        what: what is to be written there, as errors call it: "The table".

    Returns:
        The path.

    Raises:
        FileError: another suffix, or the file cannot be written.
    """
    place = check_output(path, what)
    if place.suffix.lower() not in FORMS:
        raise FileError(
            f"{what} cannot be written to '{path}': its suffix says the form, and is one of {', '.join(FORMS)}."
        )
    return place


class Result(abc.ABC):
    """The result of a run. Print it, let a notebook show it, or export it in one of its forms.

    A subclass says three things, from which every form follows: `to_records`, what goes beside the records into the
    JSON (`_facts`), and the sections of its page (`_sections`).
    """

    _title: ClassVar[str] = "Result"
    """The heading of its page."""
    _what: ClassVar[str] = "The result"
    """What errors about its files call it."""
    _index: ClassVar[str | None] = None
    """The column that names the rows of its DataFrame."""

    @abc.abstractmethod
    def to_records(self) -> list[dict[str, Any]]:
        """The rows that `to_pandas`, `to_csv` and the JSON's "records" have, as they are: NaN stays NaN."""

    @abc.abstractmethod
    def _sections(self) -> Sequence[Section]:
        """The sections of its page, in order."""

    def _print_sections(self) -> Sequence[Section]:
        """The sections that printing shows, in order; by default those of the page."""
        return self._sections()

    def _facts(self) -> Mapping[str, Any]:
        """The fields of the JSON beside the records."""
        return {}

    def _heading(self) -> str:
        return self._title

    def _css(self) -> str:
        """The CSS that its page needs beside the style that all pages share."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Everything that `to_json` writes, as Python values."""
        return {**self._facts(), "records": self.to_records()}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything as JSON, with null where a number is NaN or infinite; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        return self._write(as_json(self.to_dict()), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The records as CSV, nothing where a number is NaN; also into a file, where `path` names one.

        Numbers have all their digits. A cell that is a list is JSON. Texts stand as they are: a spreadsheet takes one
        that begins with "=" for a formula.

        Raises:
            FileError: the file cannot be written.
        """
        return self._write(as_csv(self.to_records()), path)

    def to_pandas(self) -> Any:
        """The records as a pandas DataFrame.

        Raises:
            DataError: pandas is not installed.
        """
        frame = dataframe(self.to_records())
        return frame if self._index is None else frame.set_index(self._index)

    def to_markdown(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole page as Markdown; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        sections = (each.markdown() for each in self._sections())
        return self._write("\n\n".join([f"# {escape_markdown(self._heading())}", *sections]) + "\n", path)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole page as one self-contained HTML document without scripts; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        return self._write(page(self._heading(), self._body(None), style=self._css()), path)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file, whole or not at all; its suffix says the form: .csv, .html, .json or .md.

        Returns:
            The path.

        Raises:
            FileError: another suffix, or the file cannot be written.
        """
        place = check_result_file(path, self._what)
        getattr(self, FORMS[place.suffix.lower()])(place)
        return place

    def _body(self, max_rows: int | None) -> Markup:
        sections = [each.html(max_rows) for each in self._sections()]
        return render("output/result.html.j2", heading=self._heading(), sections=sections)

    def _repr_html_(self) -> str:
        return part(self._body(IN_NOTEBOOK), style=self._css())

    def _text(self, screen: Screen) -> str:
        return "\n\n".join(each.text(screen) for each in self._print_sections())

    def __str__(self) -> str:
        return self._text(Screen.of_stdout())

    def _write(self, text: str, path: Any) -> str:
        if path is not None:
            write_text(path, text, self._what)
        return text


class Record(Result):
    """A dataclass of a few numbers that belong together: it is its own record, and prints as it is."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]

    def to_records(self) -> list[dict[str, Any]]:
        """One record: the numbers by name, and those of what has numbers of its own by both names."""
        return [_flat(self.to_dict())]

    def _sections(self) -> Sequence[Section]:
        [record] = self.to_records()
        return [Table(["name", "value"], [[name, _cell(value)] for name, value in record.items()])]

    def _heading(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return repr(self)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            flat |= {f"{name}_{key}": each for key, each in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _cell(value: Any) -> str:
    """A value for people."""
    if isinstance(value, (tuple, list)):
        return "; ".join(map(_cell, value))
    return "-" if value is None else format_number(value) if isinstance(value, float) else str(value)
