"""Docstrings as they are written here, turned into reStructuredText before napoleon reads them.

`code` is code; a paragraph that is set in is shown as it stands; what follows "Returns:" is a sentence, not a type;
a shape is shown as `Tensor[batch, seq, width]`, and a union that has a name by its name.
"""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.typing import stringify_annotation

from steerfn import metrics, run, values

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Examples?|Note|Warns):$")
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(\w?)")
SHAPE = re.compile(r"(?:jaxtyping\.)?(?:Float|Int|Bool|Shaped)\[(?:torch\.)?Tensor, [\"'] ?(.*?)[\"']\]")


def markup(lines: list[str]) -> list[str]:
    """The lines of a docstring in reStructuredText."""
    out: list[str] = []
    in_section = False
    for line in lines:
        if line and not line.startswith(" "):
            in_section = bool(SECTION.match(line))
        set_in = line.startswith("    ") and not in_section and out[-1:] == [""]
        if set_in and next((each for each in reversed(out) if each), "")[:1] not in (" ", ">", "-"):
            out += ["::", ""]
        out.append(line)
    code = CODE.sub(lambda match: f"``{match[1]}``" + (f"\\ {match[2]}" if match[2] else ""), "\n".join(out))
    return code.split("\n")


ALIASES = {
    "~steerfn.metrics.Metrics": metrics.Metrics,
    "~steerfn.run.Position": run.Position,
    "~steerfn.run.Chat": run.Chat,
    "~steerfn.values.Sites": values.Sites,
}
NAMES = {stringify_annotation(alias, "smart"): name for name, alias in ALIASES.items()} | {
    "~torch.nn.modules.module.Module": "~torch.nn.Module",
    "tokenizer: ~typing.Any": "tokenizer: ~transformers.PreTrainedTokenizerBase",  # what type checkers are told
    "= Ellipsis": "= ...",
}


def show_types(text: str) -> str:
    """A signature as it is read."""
    for long, short in NAMES.items():
        text = text.replace(long, short)
    text = SHAPE.sub(lambda match: f"Tensor[{', '.join(match[1].split())}]", text)
    return re.sub(r"<function (\w+)>", r"\1", text)


def process(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """What autodoc calls for every docstring."""
    lines[:] = markup(lines)


def returned(self: GoogleDocstring, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
    """A section of what is returned: without the type that napoleon would take from before a colon."""
    lines = self._dedent(self._consume_to_next_section())
    return [("", "", lines)] if lines else []


def signature(app: Sphinx, what: str, name: str, value: Any, options: Any, shown: str | None, back: str | None) -> Any:
    """What autodoc calls for every signature."""
    return shown and show_types(shown), back and show_types(back)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    GoogleDocstring._consume_returns_section = returned  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True}
