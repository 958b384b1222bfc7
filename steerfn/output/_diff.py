"""Where two texts differ, by words."""

import difflib
import re

Run = tuple[str, bool]
"""A piece of a text, and whether the other text has something else there."""


# Scripts that put no blanks between words are compared character by character.
_DENSE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_DENSE}]|[^\s{_DENSE}]+")

_Block = tuple[int, int, int]
"""Equal words: where they begin in either text, and how many they are."""


def runs(before: str, after: str) -> tuple[list[Run], list[Run]]:
    """Both texts cut into what they have in common and what they have not; the pieces of each make up the text.

    Words that two different passages happen to share ("the", "of") do not break them up: equal words between two
    differences count as different where either difference is at least as long, in both texts.

    Example:
        >>> from steerfn.output._diff import runs
        >>> runs("A very good film.", "A bad film.")[1]
        [('A ', False), ('bad', True), (' film.', False)]
    """
    first, second = list(_WORD.finditer(before)), list(_WORD.finditer(after))
    words = [m.group() for m in first], [m.group() for m in second]
    # autojunk would take frequent words of long texts for noise.
    matched = difflib.SequenceMatcher(None, *words, autojunk=False).get_matching_blocks()
    kept = _without_islands([(block.a, block.b, block.size) for block in matched if block.size], *map(len, words))
    return (
        _cut(before, first, [(a, size) for a, _, size in kept]),
        _cut(after, second, [(b, size) for _, b, size in kept]),
    )


def _without_islands(blocks: list[_Block], length_a: int, length_b: int) -> list[_Block]:
    """The equal stretches without those that are no longer than the differences on both of their sides."""
    kept = list(blocks)
    # The shortest first: what its removal joins is longer, and may outweigh a neighbour.
    while islands := [i for i in range(len(kept)) if _is_island(kept, i, length_a, length_b)]:
        del kept[min(islands, key=lambda i: kept[i][2])]
    return kept


def _is_island(blocks: list[_Block], i: int, length_a: int, length_b: int) -> bool:
    a, b, n = blocks[i]
    end = (blocks[i - 1][0] + blocks[i - 1][2], blocks[i - 1][1] + blocks[i - 1][2]) if i else (0, 0)
    start = blocks[i + 1][:2] if i + 1 < len(blocks) else (length_a, length_b)
    left, right = max(a - end[0], b - end[1]), max(start[0] - a - n, start[1] - b - n)
    return n <= left and n <= right


def _cut(text: str, words: list[re.Match[str]], equal: list[tuple[int, int]]) -> list[Run]:
    """A text as pieces: blanks beside a difference belong to what is equal."""
    same = {i for start, size in equal for i in range(start, start + size)}
    pieces: list[Run] = []
    end = 0
    for i, word in enumerate(words):
        if i in same:
            continue
        # Blanks between two words of one difference belong to it.
        inside = i > 0 and i - 1 not in same
        if inside:
            pieces[-1] = (text[end - len(pieces[-1][0]) : word.end()], True)
        else:
            if word.start() > end:
                pieces.append((text[end : word.start()], False))
            pieces.append((word.group(), True))
        end = word.end()
    if end < len(text):
        pieces.append((text[end:], False))
    return pieces
