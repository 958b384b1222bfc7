"""Numbers as people read them."""

import math


def shown(value: float) -> str:
    """A number for people: three digits, whole where it is large, "-" where it is none."""
    if math.isnan(value):
        return "-"
    text = f"{value:.0f}" if 100 <= abs(value) < math.inf else f"{value:.3g}"
    return "0" if float(text) == 0 else text  # no "-0"


def shown_p(p: float) -> str:
    """A p-value for people."""
    if math.isnan(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def percent(part: float) -> str:
    """A part of 1 in percent: "95 %"."""
    return f"{100 * part:g} %"
