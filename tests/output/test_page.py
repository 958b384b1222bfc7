"""Pages: escaped, self-contained, without scripts."""

import re
from html.parser import HTMLParser

import jinja2
import pytest
from markupsafe import Markup

from steerfn.output._page import page, part, render
from steerfn.output._table import Table

HOSTILE = "<script>alert('1')</script> & \"x\""
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Parsed(HTMLParser):
    """Tags in order, which must be balanced, and the text of every cell."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.cells, self.attributes = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_a_page_is_whole_and_loads_nothing():
    text = page(HOSTILE, Table(["a"], [["b"]]).html(), style=".steerfn b { color: inherit; }")
    found = Parsed(text)
    assert found.tags[:2] == ["html", "head"] and "script" not in found.tags and "link" not in found.tags
    assert not re.search(r"https?:|@import|url\(", text)
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in found.attributes)
    assert "default-src 'none'" in text and ".steerfn b { color: inherit; }" in text
    assert "<title>&lt;script&gt;" in text and "prefers-color-scheme: dark" in text


def test_a_part_chooses_no_ground_of_its_own():
    text = part(Markup("<p>x</p>"), style=".steerfn i { }")
    assert text.startswith('<div class="steerfn"><style>') and text.endswith("</div>") and ".steerfn i" in text
    rules = re.findall(r"([^{}]+)\{[^}]*\}", text.split("<style>")[1].split("</style>")[0])
    assert all(".steerfn" in each for rule in rules for each in rule.split(","))  # nothing of the notebook is styled
    assert "background: #" not in text and "color: #" not in text
    Parsed(text)


def test_cells_show_the_text_as_it_is():
    found = Parsed(Table([HOSTILE, "n"], [[HOSTILE, "3"], ["b", "None"]], numeric={1}).html())
    assert found.cells == [HOSTILE, "n", HOSTILE, "3", "b", "None"]
    assert "script" not in found.tags
    assert found.attributes.count(("class", "number")) == 3


def test_a_template_escapes_what_it_shows_and_nothing_twice():
    inner = Table([HOSTILE], [["red \x1b[31m, \u202e and\nlines"]]).html()
    found = Parsed(page("t", inner + HOSTILE))
    assert found.cells == [HOSTILE, "red \\x1b[31m, \\u202e and\nlines"] and "script" not in found.tags
    assert type(page("t", inner)) is str and type(part(inner)) is str  # which others may escape as they like


def test_a_template_says_which_of_its_values_is_missing():
    with pytest.raises(jinja2.UndefinedError, match="'rows' is undefined"):
        render("output/table.html.j2", headers=["a"], numeric=(), title="")
