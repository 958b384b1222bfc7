"""Numbers, counts and lists as people read them."""

import math
from collections.abc import Sequence


def format_number(value: float) -> str:
    """A number for people: three digits, whole where it is large, "-" where it is NaN."""
    if math.isnan(value):
        return "-"
    text = f"{value:.0f}" if 100 <= abs(value) < math.inf else f"{value:.3g}"
    return "0" if float(text) == 0 else text  # no "-0"


def format_signed(value: float) -> str:
    """The same with a plus sign where it is positive."""
    text = format_number(value)
    return f"+{text}" if value > 0 and text != "0" else text


def format_p(p: float) -> str:
    """A p-value for people."""
    if math.isnan(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def percent(part: float) -> str:
    """A part of 1 in percent: "95 %"."""
    return f"{100 * part:g} %"


def quantity(n: int, what: str) -> str:
    """ "1 prompt", "2 prompts", "2 groups of prompts"."""
    one, *rest = what.split(" of ")
    return " of ".join([f"{n} {one}{'s' * (n != 1)}", *rest])


def enumeration(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


BAR = 20
"""Characters of a bar that stands for an AUC of 1."""


def bar(value: float | None) -> str:
    """An AUC as a bar: empty at 0.5 (chance) and below, full at 1."""
    eighths = 0 if value is None else round(8 * BAR * min(max(2 * value - 1, 0.0), 1.0))
    whole, part = divmod(eighths, 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[part].strip()).ljust(BAR, "·")


def format_or_dash(value: float | None, form: str) -> str:
    """A number in a table, or what stands for none."""
    return "-" if value is None else format(value, form)
