"""The common part of all plots: figures of one size and style, made without pyplot, a display or global state.

Texts from users and models are drawn without invisible characters, without missing glyphs, and cut where too long.
"""

import base64
import collections
import functools
import io
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

from steerfn.output import columns
from steerfn.run import Text, is_token_ids, shown_prompt
from steerfn.values import SteerError, finite_number, import_extra

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Told apart with every kind of colour vision (Okabe and Ito 2008), the last added."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY, LIGHT = "#555555", "#D9D9D9"
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"
"""Colour maps that every kind of colour vision reads: around a middle, and from nothing up."""
NARROWEST = 3.0
PER_INCH = 13.5
"""Letters of a title in an inch: at 9 points one takes about 0.07."""


def ready(width: Any) -> None:
    """Check that a figure can be drawn, before anything is computed.

    Raises:
        DataError: a width that is not a number, or is too narrow to read.
        SteerError: matplotlib is not installed.
    """
    finite_number("width", width, least=NARROWEST, hint="it is in inches")
    import_extra("matplotlib.figure", "plot")  # fail before the work rather than after it


def check_result(plot: str, result: Any, kind: type, call: str) -> None:
    """Refuse to draw something else than what a verb returned.

    Raises:
        SteerError: it is of another type.
    """
    if not isinstance(result, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise SteerError(
            f"plot.{plot} takes {article} {kind.__name__}, not a {type(result).__name__}; make one with {call}."
        )


def figure(width: float = 6.0, height: float = 4.0, ax: Any = None) -> Any:
    """An empty `matplotlib.figure.Figure`, in inches; in the place of an axes, a subfigure.

    Raises:
        SteerError: as `ready`, or an axes without a subplot grid.
    """
    ready(width)
    from matplotlib.figure import Figure

    if ax is None:
        return Figure(figsize=(width, height), dpi=150, layout="constrained")
    spec = checked_axes(ax).get_subplotspec()
    if spec is None:
        raise SteerError(
            "This plot has several panels, and puts them in the place of ax, so ax must stand in a grid: take one from "
            "plt.subplots(), not from add_axes()."
        )
    whole = ax.figure
    root = whole.figure
    if root.get_layout_engine() is None:
        root.set_layout_engine("constrained")  # or titles and labels would lie on the neighbours'
    ax.remove()
    return whole.add_subfigure(spec)


def one_axes(width: float, height: float, ax: Any = None) -> tuple[Any, Any]:
    """A figure with one axes; or the axes that is given, and its figure."""
    if ax is not None:
        return checked_axes(ax).figure, ax
    made = figure(width, height)
    return made, made.subplots()


def checked_axes(ax: Any) -> Any:
    """Check that `ax` is a matplotlib axes, and return it.

    Raises:
        SteerError: it is not an axes.
    """
    if not hasattr(ax, "get_subplotspec") or not hasattr(ax, "set_title"):
        raise SteerError(f"ax is a matplotlib axes, such as fig, ax = plt.subplots() gives, not {ax!r:.80}.")
    return ax


def width_of(width: Any, ax: Any) -> float:
    """How many inches a plot has: those asked for, or those of the axes that it is drawn in."""
    if ax is None:
        ready(width)
        return width
    ready(NARROWEST)
    inches_wide = checked_axes(ax).get_window_extent().width / ax.figure.get_dpi()
    return max(NARROWEST, float(inches_wide))


def height_of(ax: Any) -> float:
    """How many inches an axes is high."""
    return ax.get_window_extent().height / ax.figure.get_dpi()


def inches(made: Any) -> tuple[float, float]:
    """The width and height of a figure or subfigure."""
    return made.bbox.width / made.get_dpi(), made.bbox.height / made.get_dpi()


def tidy(axes: Any, grid: str = "y") -> None:
    """Remove what carries no data: the box; leave light grid lines along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor="black", labelsize=8)
    axes.grid(axis=grid, color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)


def lines_of(text: str, width: float) -> list[str]:
    """A title's lines, as long as fit into a number of inches."""
    return textwrap.wrap(text, max(12, int(width * PER_INCH))) or [""]


def heading(made: Any, *paragraphs: str, title: str | None = None, axes: Any = None) -> int:
    """Put a title over a whole figure, from its left edge, and return its number of lines.

    Args:
        paragraphs: what it says, unless the caller has a title of their own.
        title: the caller's own; an empty text leaves it out.
        axes: where the figure is the caller's, the axes to put it over.
    """
    wide = inches(made)[0] if axes is None else width_of(None, axes)
    texts = paragraphs if title is None else (str(title),)
    lines = [line for each in texts if each for part in each.split("\n") for line in lines_of(part, wide - 0.2)]
    if axes is not None:
        axes.set_title("\n".join(lines), loc="left", fontsize=9)
    elif lines:
        made.suptitle("\n".join(lines), x=0.1 / wide, ha="left", fontsize=9)
    return len(lines)


def legend(made: Any, handles: Any, labels: Any, axes: Any = None) -> int:
    """Put a legend below the axes, in as many columns as fit, and return its number of rows.

    Below the axes no line runs through it. In the caller's own axes it is inside, since a legend of the figure would
    stand below other axes too.
    """
    if axes is not None:
        axes.legend(handles, labels, fontsize=7, framealpha=0.8)
        return len(labels)
    across = int((inches(made)[0] - 0.2) * 15 / (max(map(len, labels)) + 7))
    across = max(1, min(across, 4, len(labels)))
    made.legend(handles, labels, frameon=False, fontsize=8, ncols=across, loc="outside lower center")
    return math.ceil(len(labels) / across)


def finish(made: Any, only: Any = None) -> Any:
    """The whole figure, with its texts taken literally: a dollar sign in a token does not begin mathematics.

    Texts also fall back on installed fonts that know more characters than matplotlib's own.

    Args:
        made: a figure or subfigure of ours, or the caller's figure.
        only: our axes in the caller's figure.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    texts = [] if only else [*made.texts, *(text for legend in made.legends for text in legend.get_texts())]
    for axes in [only] if only else made.axes:
        texts += [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            # Labels of numbers are matplotlib's own, and may be mathematics. Those that were given come from a
            # FuncFormatter where their places were given too.
            custom = isinstance(axis.get_major_formatter(), (FixedFormatter, FuncFormatter))
            texts += axis.get_ticklabels() if custom else []
    for text in texts:
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_fontfamily(families(text.get_fontfamily()[0]))
    return made.figure


def data_url(figure: Any, *, transparent: bool = False) -> str:
    """A `matplotlib.figure.Figure` as the URL of a picture that a page holds in itself.

    Args:
        transparent: without the white ground, for pages that are dark too.
    """
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, transparent=transparent)
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def contrasting(colour: Any) -> str:
    """Black or white, whichever is read better on a colour: by its relative luminance (WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


MORE = (
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Nirmala UI",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Symbols 2",
    "Noto Emoji",
    "Segoe UI Symbol",
    "Arial Unicode MS",
)
"""Fonts of common systems for what matplotlib's own lacks: Chinese, Japanese, Korean and other scripts, symbols."""


def families(kind: str) -> list[str]:
    """A family of fonts ("sans-serif", "monospace"), followed by the fallback fonts that are installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [kind, *(name for name in MORE if name in installed and name != kind)]


def has_glyph(character: str, kind: str = "sans-serif") -> bool:
    """Whether a figure can show a character in a family of fonts or what it falls back on."""
    from matplotlib import font_manager

    return any(
        ord(character) in _characters(font_manager.findfont(font_manager.FontProperties(family=[family])))
        for family in families(kind)
    )


@functools.cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(path).get_charmap())


SIGNS = {"\n": "⏎", "\t": "⇥"}
CUT = "…"


def drawable_text(
    text: str, limit: int | None = None, *, spaces: bool = False, end: bool = False, kind: str = "sans-serif"
) -> str:
    """A text on one line, as it can be drawn.

    A line break is drawn as ⏎, a tab as ⇥; what has no glyph or no width is written as Python writes it (`\\u200b`).

    Args:
        limit: how many characters to show at most, the ellipsis among them; escapes are not cut.
        spaces: show spaces as "·", as for tokens.
        end: keep the end rather than the beginning.
        kind: the family of fonts.
    """
    pieces = [_piece(character, spaces, kind) for character in text]
    if text and unicodedata.category(text[0]) == "Mn":
        pieces.insert(0, "◌")  # an accent stands on something
    if limit is None or columns("".join(pieces)) <= limit:
        return "".join(pieces)
    kept: list[str] = []
    for piece in reversed(pieces) if end else pieces:
        if columns("".join(kept)) + columns(piece) > limit - 1:
            break
        kept.append(piece)
    return CUT + "".join(reversed(kept)) if end else "".join(kept) + CUT


def distinct(names: Sequence[str], limit: int) -> dict[str, str]:
    """Different names as different labels of at most so many characters: cut at the end, or else in the middle.

    Names that differ only in the part that is cut are numbered.
    """
    labels = {name: drawable_text(name, limit) for name in dict.fromkeys(names)}
    for again in (_without_middle, _with_number):
        counts = collections.Counter(labels.values())
        alike = [name for name, label in labels.items() if counts[label] > 1]
        labels |= {name: again(name, limit, i) for i, name in enumerate(alike, 1)}
    return labels


def _without_middle(name: str, limit: int, _: int) -> str:
    end = (limit - 1) // 2
    if columns(drawable_text(name)) <= limit:
        return drawable_text(name)
    return drawable_text(name, limit - end)[:-1] + drawable_text(name, end + 1, end=True)


def _with_number(name: str, limit: int, number: int) -> str:
    mark = f" ({number})"
    return drawable_text(name, max(2, limit - len(mark))) + mark


def fitting(text: str, inches: float, points: float, weight: str = "normal") -> str:
    """The longest beginning of a token's text that fits into some inches, but two characters at least."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=families("sans-serif"), size=points, weight=weight)
    for limit in range(columns(drawable_text(text, spaces=True)), 2, -1):
        label = drawable_text(text, limit, spaces=True)
        # In points, of which an inch has 72.
        if text_to_path.get_text_width_height_descent(label, font, ismath=False)[0] <= 72 * inches:
            return label
    return drawable_text(text, 2, spaces=True)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, with its space; of a token that holds a part of a character, its bytes (`\\xe4\\xbd`)."""
    return [_token(tokenizer, int(token)) for token in ids]


def prompt_text(prompt: Text) -> str:
    """The name of a prompt in a title: its text, or the last message of a conversation."""
    if is_token_ids(prompt):
        return shown_prompt(prompt)
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _piece(character: str, spaces: bool, kind: str) -> str:
    if character == " ":
        return "·" if spaces else " "
    if character in SIGNS:
        return SIGNS[character]
    # Only the ordinary space can be told from the others by eye.
    unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
    if unseen or not has_glyph(character, kind):
        return character.encode("unicode_escape").decode()
    return character


def _token(tokenizer: Any, token: int) -> str:
    name = tokenizer.convert_ids_to_tokens(token)
    if name is None:  # a row of the embedding beyond the vocabulary
        return f"id {token}"
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if not text or "\ufffd" in text:
        return _bytes_of(str(name))
    # SentencePiece's decoder drops the space in front of what it takes for the beginning of a text.
    return f" {text}" if isinstance(name, str) and name.startswith("▁") and not text.startswith(" ") else text


def _bytes_of(name: str) -> str:
    """The bytes that a byte-level tokenizer's name for a token stands for, or the name of another tokenizer's token.

    Bytes beyond ASCII are written as `\\xe4`.
    """
    letters = _byte_letters()
    if not all(letter in letters for letter in name):
        return name
    values = (letters[letter] for letter in name)
    return "".join(chr(byte) if byte < 128 else f"\\x{byte:02x}" for byte in values)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: a printable byte stands for itself, the others for the letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
