"""The words of the house: functions are verbs with an object or nouns, first lines say what is computed."""

import ast
import re
from pathlib import Path

import steerfn

PACKAGE = Path(steerfn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted([*PACKAGE.parent.glob("*.md"), *PACKAGE.parent.glob("docs/**/*.md"), *PACKAGE.parent.glob("examples/*")])
IRREGULAR = "told found asked shown held kept drawn made said given known written taken taught sent seen begun sought"
PUBLIC = {"generated", "scheduled", "paired", "touched"}
"""Names of the contract that look like lone participles: a scope, an operator, and the statistics' term."""
EMPTY = re.compile(r"(?<!there )\b(is|are) none\b(?! of)")


def functions(tree):
    """The functions of a file, but properties, whose names may be adjectives."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            decorators = [ast.unparse(each) for each in node.decorator_list]
            if not any(each.endswith(("property", ".setter")) for each in decorators):
                yield node


def participles(tree):
    """Functions whose name is a participle without anything that it says something of."""
    for node in functions(tree):
        name = node.name.strip("_")
        lone = re.fullmatch(r"[a-z]+[^e]ed", name) and name not in ("seed", "embed")
        if name not in PUBLIC and (lone or name in IRREGULAR.split()):
            yield f"{node.name}, line {node.lineno}"


def first_lines(tree):
    """The first lines of docstrings that do not say what a thing is or does."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            first = (ast.get_docstring(node) or "A.").split("\n\n")[0]
            if first.startswith(("What ", "As ")) or not first.rstrip().endswith((".", "?", ":")) or first[0].islower():
                yield first


def say_nothing(text):
    """Places where "none" stands for what a thing is not."""
    return [text[max(0, m.start() - 40) : m.end() + 20] for m in EMPTY.finditer(" ".join(text.split()))]


def test_names_and_first_lines():
    for file in FILES:
        text = file.read_text(encoding="utf8")
        tree = ast.parse(text)
        assert not [*participles(tree), *first_lines(tree), *say_nothing(text)], file


def test_pages():
    for page in PAGES:
        if page.is_file() and page.suffix in (".md", ".py", ".ipynb"):
            assert not say_nothing(page.read_text(encoding="utf8")), page


def test_each_rule_finds_what_it_forbids():
    tree = ast.parse('def told(): ...\ndef _checked(): ...\ndef fed(): ...\n@property\ndef closed(): "What is."')
    assert list(participles(tree)) == ["told, line 1", "_checked, line 2"] and list(first_lines(tree)) == ["What is."]
    assert say_nothing("a file that is none, though there is none") and not say_nothing(
        "there is none; this is none of it"
    )
