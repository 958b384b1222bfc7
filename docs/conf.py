"""The site: `sphinx-build -W -b html docs site`.

What is written once elsewhere is not written again here: `_extensions/` makes the reference from the package, and
takes in the pages that stand in the root of the repository.
"""

import os
import sys
from pathlib import Path

DOCS, ROOT = Path(__file__).parent, Path(__file__).parents[1]
sys.path[:0] = [str(DOCS / "_extensions"), str(ROOT), str(ROOT / "tests")]

import steerfn  # noqa: E402

project, author = "steerfn", "The steerfn authors"
project_copyright = "2026, the steerfn authors. Apache-2.0"
version = release = steerfn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["docstrings", "generated", "public_names", "repository_pages"]
exclude_patterns = ["_extensions"]

# An inventory that cannot be reached is a warning without a class, which `-W` makes an error and nothing can suppress.
# So the links to other projects are for builds that say they have a network; the others show the names unlinked.
if os.environ.get("STEERFN_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # the anchors that links to headings have on code hosts too
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"steerfn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
