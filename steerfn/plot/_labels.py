"""Texts of people and models in figures: nothing invisible, nothing without a glyph, nothing too long."""

import collections
import unicodedata
from collections.abc import Sequence
from typing import Any

from steerfn._text import Text, is_token_ids
from steerfn.plot._glyphs import families, has_glyph

SIGNS = {"\n": "⏎", "\t": "⇥"}
CUT = "…"


def shown(
    text: str, limit: int | None = None, *, spaces: bool = False, end: bool = False, kind: str = "sans-serif"
) -> str:
    """A text on one line, as it can be drawn.

    A line break is drawn as ⏎, a tab as ⇥; what has no glyph or no width is written as Python writes it (`\\u200b`).

    Args:
        text: any text.
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

    Names that differ nowhere but in what is cut are numbered.
    """
    labels = {name: shown(name, limit) for name in dict.fromkeys(names)}
    for again in (_without_middle, _numbered):
        counts = collections.Counter(labels.values())
        alike = [name for name, label in labels.items() if counts[label] > 1]
        labels |= {name: again(name, limit, i) for i, name in enumerate(alike, 1)}
    return labels


def _without_middle(name: str, limit: int, _: int) -> str:
    end = (limit - 1) // 2
    if columns(shown(name)) <= limit:
        return shown(name)
    return shown(name, limit - end)[:-1] + shown(name, end + 1, end=True)


def _numbered(name: str, limit: int, number: int) -> str:
    mark = f" ({number})"
    return shown(name, max(2, limit - len(mark))) + mark


def fitting(text: str, inches: float, points: float, weight: str = "normal") -> str:
    """As much of a token's text as fits into some inches at a size, at least two characters; see `shown`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=families("sans-serif"), size=points, weight=weight)
    for limit in range(columns(shown(text, spaces=True)), 2, -1):
        label = shown(text, limit, spaces=True)
        # In points, of which an inch has 72.
        if text_to_path.get_text_width_height_descent(label, font, ismath=False)[0] <= 72 * inches:
            return label
    return shown(text, 2, spaces=True)


def columns(text: str) -> int:
    """How many columns a text takes where all letters are as wide: two for a Chinese character, none for an accent."""
    wide = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else wide.get(unicodedata.east_asian_width(c), 1) for c in text
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, with its space; of a token that holds a part of a character, its bytes (`\\xe4\\xbd`)."""
    return [_token(tokenizer, int(token)) for token in ids]


def prompt_text(prompt: Text) -> str:
    """What a prompt is called in a title: its text, or the last message of a conversation."""
    if is_token_ids(prompt):
        return f"token ids {' '.join(map(str, prompt))}"
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _piece(character: str, spaces: bool, kind: str) -> str:
    if character == " ":
        return "·" if spaces else " "
    if character in SIGNS:
        return SIGNS[character]
    # Of spaces only the ordinary one is told from its likes.
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
    """What a byte-level tokenizer's name for a token stands for, bytes beyond ASCII as `\\xe4`; else the name."""
    letters = _byte_letters()
    if not all(letter in letters for letter in name):
        return name
    found = (letters[letter] for letter in name)
    return "".join(chr(byte) if byte < 128 else f"\\x{byte:02x}" for byte in found)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: a printable byte stands for itself, the others for the letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
