"""The layers of the code: imports point down only, and one file alone touches modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import steerfn

PACKAGE = Path(steerfn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Names of modules below `steerfn`, a prefix with a star; the first that matches counts. Names of one
# layer may import each other.
LAYERS = [
    ("_errors", "_finite", "_groups", "_numbers", "_struct", "_types", "_later", "_extra", "_visible"),
    ("_site", "_metadata", "_vector", "_io*", "_fingerprint", "_weights"),
    ("operators*",),
    (
        "_stack",
        "_backward",
        "_padding",
        "_block_output",
        "_generation",
        "_selections",
        "_forward",
        "_checkpoint",
        "_interpose",
        "_shards",
        "_blocks",
        "_find_blocks",
        "_substitute",
        "_spine",
        "_layout_check",
        "_layout",
    ),
    ("_steer", "_functional", "_capture"),
    (
        "_models",
        "_demo*",
        "_stage",
        "_text",
        "_chat_template",
        "_keywords",
        "_decoding",
        "_stop_strings",
        "_generate",
        "_sampling",
        "_stream",
        "_continuation",
        "_dataframe",
        "scoring*",
        "sweeping*",
        "_sensitivity*",
        "_activations",
        "reading*",
        "_recipes*",
        "discover*",
        "datasets*",
        "metrics*",
        "_records",
        "_about",
        "_page",
    ),
    ("evaluate*",),
    ("cli*", "plot*", "engines*", "serving*", "integrations*", "report*", "_table*", "", "__main__"),
]
NAMES = {file: ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__") for file in FILES}
NAMES = {file: name.removesuffix(".") for file, name in NAMES.items()}


def layer_of(name):
    """The layer of a module named from the package: "_site", "operators._base", "" for the package."""
    for layer, names in enumerate(LAYERS):
        for each in names:
            if name == each or (each.endswith("*") and name.startswith(each[:-1])):
                return layer
    raise AssertionError(f"steerfn.{name} belongs to no layer: name it in LAYERS")


def imports(tree, package):
    """Every module imported anywhere in a file, in functions too, as absolute dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            base = ".".join(above[: len(above) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            if module == "steerfn":
                for alias in node.names:  # `from steerfn import _forward` is the module, not the package
                    known = f"steerfn.{alias.name}" if alias.name in NAMES.values() else "steerfn"
                    yield known, node.lineno
            else:
                yield module, node.lineno


def parsed(file):
    parts = file.relative_to(PACKAGE).parent.parts
    return ast.parse(file.read_text(encoding="utf8")), ".".join(["steerfn", *parts])


def named(file):
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=named)
def test_imports_point_down_only(file):
    tree, package = parsed(file)
    here = layer_of(NAMES[file])
    for module, line in imports(tree, package):
        if module.split(".")[0] != "steerfn":
            continue
        target = module.removeprefix("steerfn").removeprefix(".")
        assert layer_of(target) <= here, f"{named(file)}:{line} (layer {here}) imports {module} ({layer_of(target)})"


@pytest.mark.parametrize("file", [f for f in FILES if layer_of(NAMES[f]) <= 2], ids=named)
def test_values_and_operators_know_no_model(file):
    tree, package = parsed(file)
    for module, line in imports(tree, package):
        if NAMES[file] == "_fingerprint":
            continue  # reads a model's config by duck typing
        assert module.split(".")[0] != "transformers", f"{named(file)}:{line} imports {module}"
    if NAMES[file].startswith("operators"):
        found = {module for module, _ in imports(tree, package)}
        assert "torch.nn" not in found and "nn" not in {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "torch"
            for alias in node.names
        }


@pytest.mark.parametrize("file", FILES, ids=named)
def test_no_stringified_annotations(file):
    """`from __future__ import annotations` weakens jaxtyping."""
    tree, _ = parsed(file)
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in ast.walk(tree))


def reaches(node, *attributes):
    """Whether an expression goes through an attribute of one of these names."""
    return any(isinstance(part, ast.Attribute) and part.attr in attributes for part in ast.walk(node))


def written(tree):
    """The lines that write the children or the instance dict of an object other than `self`."""
    mutators = {"update", "pop", "setdefault", "clear", "popitem", "__setitem__", "__delitem__"}
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in mutators:
            targets = [node.func.value]
        for target in targets:
            own = ast.unparse(target).startswith("self.__dict__")
            if reaches(target, "_modules", "__dict__") and not own:
                yield node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "register_forward_hook",
            "register_forward_pre_hook",
            "register_module",
            "add_module",
            "set_submodule",
        ):
            yield node.lineno


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.name not in ("_substitute.py", "_spine.py", "_layout_check.py")], ids=named
)
def test_only_one_file_touches_modules(file):
    """Beside it `_spine`, which writes to private copies that it makes, and the check of a layout, which runs one."""
    tree, _ = parsed(file)
    lines = list(written(tree))
    assert not lines, f"{named(file)}: lines {lines} write to a module"


def test_the_check_sees_a_module_being_touched():
    touching = "m._modules['a'] = b", "m.__dict__.update(x)", "del m.__dict__['f']", "m.register_forward_hook(f)"
    for text in touching:
        assert list(written(ast.parse(text))), text
    assert not list(written(ast.parse("self.__dict__.update(x); y = m._modules['a']; m.x = 1")))


def test_files_are_short():
    """One idea a file."""
    long = {named(f): n for f in FILES if (n := len(f.read_text(encoding="utf8").splitlines())) > 450}
    assert not long


def public(node):
    """Whether a statement hands names on, as in `from ._x import y as y`."""
    return isinstance(node, ast.ImportFrom) and all(alias.asname == alias.name for alias in node.names)


def test_the_table_of_contents_holds_nothing_else():
    """`steerfn/__init__.py` only imports `x as x`, at once or at first use, and names what it imports."""
    tree, _ = parsed(PACKAGE / "__init__.py")
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        special = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).lstrip("(").startswith("__")
        typing = isinstance(node, ast.If) and all(map(public, node.body)) and not node.orelse
        means = isinstance(node, ast.ImportFrom) and node.module in ("typing", "steerfn._later")
        assert docstring or public(node) or special or typing or means, ast.unparse(node)[:100]


def test_what_loads_at_first_use_is_what_types_say():
    tree, _ = parsed(PACKAGE / "__init__.py")
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    said = {alias.name: getattr(steerfn, alias.name) for node in typed.body for alias in node.names}
    code = "import sys, steerfn; print(*set(dir(steerfn)) - set(vars(steerfn)), 'steerfn.discover' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(found[:-1]) == set(said) and found[-1] == "False"
    with pytest.raises(AttributeError, match="module 'steerfn' has no attribute 'discovr'"):
        _ = steerfn.discovr
