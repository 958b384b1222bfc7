"""The registered metrics."""

from markdown_table import markdown_table

import steerfn as sf


def table() -> str:
    """One row a metric: its name, unit and better way, what it needs and its options, what it measures."""
    rows = []
    for metric in map(sf.metrics.get, sf.metrics.names()):
        unit = ", ".join(filter(None, [metric.unit, metric.better and f"{metric.better} is better"]))
        takes = [f"`{each}`" for each in metric.needs]
        options = {name: repr(value) for name, value in metric.options.items()}
        takes += [f"`{name}={value}`" if len(value) < 20 else f"`{name}`" for name, value in options.items()]
        rows.append([f"`{metric.name}`", unit, ", ".join(takes), metric.about])
    return markdown_table(["name", "unit", "needs, and options", "measures"], rows)
