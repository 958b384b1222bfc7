"""Tables that are made at build from what they describe, where a page says `{generated} name`."""

import re
from collections.abc import Callable

import command_line
import metrics_table
import server_api
import support
from sphinx.application import Sphinx

BLOCK = re.compile(r"^```\{generated\} (\w+)\n```$", re.MULTILINE)
TABLES: dict[str, Callable[[], str]] = {
    "command_line": command_line.sections,
    "metrics": metrics_table.table,
    "server_api": server_api.sections,
    "support": support.table,
}


def expand(app: Sphinx, page: str, content: list[str]) -> None:
    """Put tables in their places."""
    content[0] = BLOCK.sub(lambda match: TABLES[match[1]](), content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", expand)
    return {"parallel_read_safe": True}
