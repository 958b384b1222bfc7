"""Which characters a figure can show: those of its font and of the installed fonts that it falls back on."""

import functools

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
    """A family of fonts ("sans-serif", "monospace"), then what is installed of the others."""
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
