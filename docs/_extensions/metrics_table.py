"""The registered metrics."""

from markdown_table import markdown_table

import steerfn as sf


def table() -> str:
    """One row a metric: its name, unit and better way, what it needs and its options, what it measures."""
    rows = []
    for name in sf.metrics.names():
        metric = sf.metrics.get(name)
        unit = ", ".join(filter(None, [metric.unit, metric.better and f"{metric.better} is better"]))
        takes = [f"`{each}`" for each in metric.needs]
        takes += [f"`{option}={value!r}`" for option, value in metric.options.items()]
        rows.append([f"`{name}`", unit, ", ".join(takes), metric.about])
    return markdown_table(["name", "unit", "needs, and options", "measures"], rows)
