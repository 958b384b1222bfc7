"""Pages of the repository's root as pages of the site, and links between the two.

A page of `docs/` that is only an `{include}` of a page above `docs/` shows that page. Links go by the files of the
repository, as code hosts resolve them; here they are turned to the page of the site, wherever they stand.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def included_pages() -> dict[Path, Path]:
    """The page of `docs/` by the file of the repository that it includes."""
    pages = {}
    for page in DOCS.rglob("*.md"):
        for target in INCLUDE.findall(page.read_text(encoding="utf8")):
            pages[(page.parent / target).resolve()] = page
    return pages


def relink(text: str, source: Path, page: Path, pages: dict[Path, Path]) -> str:
    """The text of a file with its links as they are from a page of the site."""

    def link(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        if not target.exists():
            raise ExtensionError(f"{source.relative_to(ROOT)} links to {match[1]}, which does not exist.")
        target = pages.get(target, target)
        return f"]({Path(os.path.relpath(target, page.parent)).as_posix()}{match[2] or ''})"

    return LINK.sub(link, text)


def read(app: Sphinx, name: str, content: list[str]) -> None:
    """Take in what a page includes, and turn the links."""
    pages = included_pages()
    page = Path(app.env.doc2path(name))
    text = relink(INCLUDE.sub("\0\\1\0", content[0]), page, page, pages)
    for target in re.findall("\0(.*?)\0", text):
        source = (page.parent / target).resolve()
        app.env.note_dependency(str(source))
        text = text.replace(f"\0{target}\0", relink(source.read_text(encoding="utf8"), source, page, pages))
    content[0] = text


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
