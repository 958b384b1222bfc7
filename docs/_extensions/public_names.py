"""The reference of public names, from their docstrings.

A page lists names in a block, `{names} steerfn.discover` and under it `caa pca lat`; each is shown at its public path.
The build fails where a public name stands on no page, on two, or has no docstring.
"""

import importlib
import inspect
import re
import sys
from types import ModuleType
from typing import Any

from docstrings import markup
from public_modules import NAMESPACES, OTHERS, SHORT
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

from steerfn.metrics import Metric

BLOCK = re.compile(r"^```\{names\} (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def value_at(path: str) -> Any:
    """The object at a public path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(SHORT.get(module, module)), name)


def public_names() -> dict[str, str]:
    """Every public name by its path, with the shortest path to the same thing."""
    offered = [(module, dir(importlib.import_module(SHORT.get(module, module)))) for module in NAMESPACES]
    offered += [(module, names.split()) for module, names in OTHERS.items()]
    paths: dict[str, str] = {}
    shortest: dict[int, str] = {}
    for module, names in offered:
        for name in names:
            value = value_at(f"{module}.{name}")
            if not name.startswith("_") and not isinstance(value, ModuleType):
                paths[f"{module}.{name}"] = shortest.setdefault(id(value), f"{module}.{name}")
    return paths


def directive(path: str) -> str:
    """The directive that shows one public name, in reStructuredText."""
    value = value_at(path)
    if _is_class(value):
        return f".. autoclass:: {path}\n   :members:\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {path}\n"
    lines, head = documentation(path), f"data:: {path}"
    if isinstance(value, Metric):
        signature = stringify_signature(inspect.signature(value.function), show_annotation=False)
        lines, head = (
            str(GoogleDocstring(markup(lines.splitlines()), Config(napoleon_use_rtype=False))),
            f"function:: {path}{signature}",
        )
    return f".. py:{head}\n\n" + "".join(f"   {line}\n" for line in lines.splitlines())


def documentation(path: str) -> str:
    """The docstring of a public name; of a value, what is written below its assignment."""
    value = value_at(path)
    if isinstance(value, Metric):
        value = value.function
    if inspect.isroutine(value) or _is_class(value):
        return (inspect.getdoc(value) or "").strip()
    module, _, name = path.rpartition(".")
    return "\n".join(_home(SHORT.get(module, module), name).attr_docs.get(("", name), [])).strip()


def _is_class(value: Any) -> bool:
    """A class of ours; a type alias that is a class of jaxtyping is not."""
    return inspect.isclass(value) and value.__module__.startswith("steerfn")


def _home(module: str, name: str) -> ModuleAnalyzer:
    """The analysed source of the module in which a value is assigned."""
    analyzer = ModuleAnalyzer.for_module(module)
    analyzer.analyze()
    moved = re.search(rf"^from (steerfn\S*) import {name} as {name}$", analyzer.code, re.MULTILINE)
    return _home(moved[1], name) if moved else analyzer


def expand(app: Sphinx, page: str, content: list[str]) -> None:
    """Put autodoc's directives in the place of a list of names."""
    listed: dict[str, str] = app.env.public_names  # type: ignore[attr-defined]

    def block(match: re.Match[str]) -> str:
        paths = [f"{match[1]}.{name}" for name in match[2].split()]
        for path in paths:
            if listed.get(path, page) != page:
                raise ExtensionError(f"{path} stands on two pages: {listed[path]} and {page}.")
            listed[path] = page
        return "```{eval-rst}\n" + "\n".join(map(directive, paths)) + "```"

    for path in [path for path, where in listed.items() if where == page]:
        del listed[path]
    content[0] = BLOCK.sub(block, content[0])


def check(app: Sphinx, env: Any) -> None:
    """Fail where the pages and the package differ."""
    expected, listed = set(public_names().values()), set(env.public_names)
    problems = [f"{path} is public and stands on no page of the reference" for path in sorted(expected - listed)]
    problems += [f"{path} is in the reference and not public" for path in sorted(listed - expected)]
    problems += [f"{path} has no docstring" for path in sorted(listed & expected) if not documentation(path)]
    if problems:
        raise ExtensionError("\n".join(["The reference is not the package:", *problems]))


def begin(app: Sphinx) -> None:
    """Keep what pages list with what Sphinx keeps of a build."""
    if not hasattr(app.env, "public_names"):
        app.env.public_names = {}  # type: ignore[attr-defined]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    for typed, module in SHORT.items():  # so that autodoc finds them by the path that users type
        sys.modules[typed] = importlib.import_module(module)
    app.connect("builder-inited", begin)
    app.connect("source-read", expand)
    app.connect("env-updated", check)
    return {"parallel_read_safe": False}
