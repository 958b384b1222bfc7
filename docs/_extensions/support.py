"""Which models are tested, and which sites they have: the tiny models of the tests, asked for their layouts."""

from typing import Any

from families import CORE, FAMILIES, UNSUPPORTED, build  # of the tests
from markdown_table import markdown_table

import steerfn as sf
from steerfn.values import KINDS


def table() -> str:
    """A row for each family of the default tests; then the names of the others."""
    rows = []
    for name in CORE:
        layout = sf.layout(build(name))
        rows.append([name, layout.model, *(cell(layout, kind) for kind in KINDS)])
    others = [name for name in FAMILIES if name not in CORE and name not in UNSUPPORTED]
    refused = ", ".join(sorted(UNSUPPORTED))
    return "\n\n".join(
        [
            markdown_table(["family", "class", *(f"`{kind}`" for kind in KINDS)], rows),
            f"The slow tests hold {len(others)} more families to the same laws: {', '.join(others)}.",
            f"Refused, with a clear error: {refused}.",
        ]
    )


def cell(layout: Any, kind: str) -> str:
    """Whether all blocks have a site, some or none."""
    missing = [kind in dict(block.missing) for block in layout.blocks]
    return "no" if all(missing) else "some blocks" if any(missing) else "yes"
