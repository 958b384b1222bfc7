"""The registered metrics."""

from markdown_table import markdown_table

import steerfn as sf


def table() -> str:
    """One row a metric: its name, unit, better way, what it needs, its options, what it measures."""
    rows = []
    for name in sf.metrics.names():
        metric = sf.metrics.get(name)
        needs = ", ".join(f"`{each}`" for each in metric.needs)
        options = ", ".join(f"`{option}={value!r}`" for option, value in metric.options.items())
        rows.append([f"`{name}`", metric.unit, metric.better or "neither", needs, options, metric.about])
    return markdown_table(["name", "unit", "better", "needs", "options", "measures"], rows)
