"""What is drawn of a figure: the places of its texts, to see that none lies on another or outside."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

SLACK = 1.5
"""Pixels that boxes may share: a letter does not fill its box."""


def boxes(figure):
    """Every visible text with its box in pixels, as drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = {}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and not _hidden(figure, text):
            box = text.get_window_extent(canvas.get_renderer())
            found[id(text)] = (text.get_text(), box)
    return list(found.values())


def _hidden(figure, text):
    """Ticks beyond the ends of their axis are not drawn, and nor are those that share their labels."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = {id(label) for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
            every = [label for tick in (*axis.majorTicks, *axis.minorTicks) for label in (tick.label1, tick.label2)]
            if id(text) in {id(label) for label in every}:
                return id(text) not in drawn or not axis.get_visible() or not axes.axison
        if not axes.axison and text in (axes.xaxis.label, axes.yaxis.label):
            return True
    return False


def overlaps(figure):
    """Pairs of texts that lie on each other, and texts that leave the figure."""
    found = boxes(figure)
    wide, high = figure.canvas.get_width_height()
    bad = [
        (first, second)
        for (first, a), (second, b) in combinations(found, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > SLACK and min(a.y1, b.y1) - max(a.y0, b.y0) > SLACK
    ]
    outside = [
        (text, "outside", (round(box.x0), round(box.y0), round(box.x1), round(box.y1)), (wide, high))
        for text, box in found
        if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > wide + SLACK or box.y1 > high + SLACK
    ]
    return bad + outside
