"""The layers of docs/design.md, enforced: imports point down only, and one file touches modules."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "steerfn"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")

LAYERS = [
    ("L0", "_errors _struct _types"),
    ("L1", "_site _metadata _vector _fingerprint _io _io_document _io_json _io_pt _io_safetensors _io_write"),
    ("L2", "operators"),
    ("L3", "_forward _interpose _layout _substitute _layout_check"),
    ("L4", "_steer _functional _capture"),
    ("L5", "_stage _text _activations _models _demo _demo_sources _demo_convert _generate discover"),
    ("L7", "cli"),
]
RANK = {name: rank for rank, (_, names) in enumerate(LAYERS) for name in names.split()}


def part_of(module):
    """The file or folder of the package that a dotted name belongs to."""
    return module.split(".")[1] if module.startswith("steerfn.") else None


def imports(path):
    """Every module that a file imports, at any depth, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "steerfn":
                yield from (f"steerfn.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_file_has_a_layer():
    assert {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        other = part_of(module)
        if other is not None and other in RANK:
            assert RANK[other] <= RANK[here], f"{here} ({LAYERS[RANK[here]][0]}) imports {other}"
        if RANK[here] <= RANK["operators"]:
            assert module.split(".")[0] != "transformers", f"{here} imports transformers"


def test_there_are_no_import_cycles():
    graph = {}
    for path in FILES:
        name = "steerfn." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        top = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module and n.module.startswith("steerfn.")]
        graph[name] = {n.module for n in top}
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, f"cycle: {under_way[under_way.index(name) :]}"
        if name in done or name not in graph:
            return
        under_way.append(name)
        for other in graph[name]:
            visit(other)
        under_way.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_one_file_touches_modules(path):
    if path.name == "_substitute.py":
        return
    source = path.read_text()
    writes = [line for line in source.splitlines() if "_modules[" in line and "=" in line.split("_modules[")[1]]
    assert not writes and "register_forward_hook" not in source and "register_forward_pre_hook" not in source


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_weakened_annotations_and_no_junk_drawers(path):
    assert "from __future__ import annotations" not in path.read_text()
    assert path.stem.strip("_") not in {"utils", "helpers", "common", "misc", "manager"}
