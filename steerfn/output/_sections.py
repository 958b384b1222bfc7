"""Sections: the parts of a result's display, each as text, Markdown or HTML."""

import abc
import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from steerfn.output._page import render
from steerfn.output._side_by_side import wrap_text
from steerfn.output._terminal import Screen
from steerfn.values import visible


class Section(abc.ABC):
    """A part of what a result says, in every form."""

    @abc.abstractmethod
    def text(self, screen: Screen) -> str:
        """For a terminal, a pipe or a file."""

    @abc.abstractmethod
    def markdown(self) -> str:
        """The section as Markdown, escaped."""

    @abc.abstractmethod
    def html(self, max_rows: int | None = None) -> Markup:
        """The section as HTML, escaped; `max_rows` limits sections that may be very long, and None shows all rows."""


@dataclasses.dataclass(frozen=True)
class Paragraph(Section):
    """A sentence that stands alone."""

    sentence: str

    def text(self, screen: Screen) -> str:
        """The sentence."""
        return "\n".join(prose(self.sentence, screen))

    def markdown(self) -> str:
        """The sentence."""
        return escape_markdown(visible(self.sentence))

    def html(self, max_rows: int | None = None) -> Markup:
        """The sentence, less prominent than what it introduces."""
        del max_rows
        return Markup('<p class="muted">{}</p>').format(visible(self.sentence))


@dataclasses.dataclass(frozen=True)
class Bullets(Section):
    """Sentences below each other.

    Attributes:
        sentences: at least one.
        title: what stands above them.
        mark: what stands before each in text, such as "  - ".
    """

    sentences: Sequence[str]
    title: str = ""
    mark: str = ""

    def text(self, screen: Screen) -> str:
        """A sentence a line, or several lines on a person's screen."""
        head = prose(self.title, screen) if self.title else []
        return "\n".join([*head, *(line for each in self.sentences for line in prose(each, screen, self.mark))])

    def markdown(self) -> str:
        """A list."""
        head = [f"## {escape_markdown(visible(self.title))}\n"] if self.title else []
        return "\n".join([*head, *(f"- {escape_markdown(visible(each))}" for each in self.sentences)])

    def html(self, max_rows: int | None = None) -> Markup:
        """A list."""
        del max_rows
        return render("output/bullets.html.j2", title=self.title, sentences=self.sentences)


def prose(text: str, screen: Screen, mark: str = "") -> list[str]:
    """A sentence as lines: one, or on a person's screen as many as it takes, with the mark before the first."""
    lines = wrap_text(visible(text), screen.width - len(mark)) if screen.wraps else [visible(text)]
    return [f"{' ' * len(mark) if i else mark}{line}" for i, line in enumerate(lines)]


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
