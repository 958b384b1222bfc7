"""The floors of the house: imports go one way, what is private stays in its folder, one file touches modules."""

import ast
import collections
import functools
import operator
from pathlib import Path

import pytest

import steerfn

PACKAGE = Path(steerfn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = {f.name for f in PACKAGE.iterdir() if f.is_dir() and f.name != "__pycache__"}

# A folder imports what stands before it in this list, never after. The edges share the last place, and may know all.
FLOORS = (
    "values output operators model verbs run datasets metrics discover evaluate "
    "board+cli+engines+integrations+plot+reporting+serving+zoo"
)


def module_of(file):
    """`steerfn/values/_site.py` is `steerfn.values._site`, and a folder's `__init__.py` the folder."""
    parts = ["steerfn", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def package_of(module):
    """The folder that a module lies in; a folder lies in itself."""
    known = MODULES.get(module)
    return module if known is not None and known.name == "__init__.py" else module.rpartition(".")[0]


def floor_of(module):
    """The floor of a module. The lazy-import helper comes before all of them, the table of contents is an edge."""
    if module == "steerfn._lazy":
        return -1
    floors = [floor.split("+") for floor in FLOORS.split()]
    top = (module.split(".") + [""])[1]
    return next((n for n, folders in enumerate(floors) if top in folders), len(floors) - 1)


def imports(tree, package):
    """Every import of the package's own, in functions too: (module, the names taken from it, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, [], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            base = above[: len(above) - node.level + 1] if node.level else []
            module = ".".join(filter(None, [*base, node.module]))
            names = [alias.name for alias in node.names]
            for inner in [name for name in names if f"{module}.{name}" in MODULES]:
                yield f"{module}.{inner}", [], node.lineno  # `from steerfn.model import _frame` is the module
            if others := [name for name in names if f"{module}.{name}" not in MODULES]:
                yield module, others, node.lineno


def is_open(package, module):
    """Whether code in a folder may name a module: what has an underscore belongs to its own folder and those inside."""
    parts = module.split(".")
    owners = [".".join(parts[:i]) for i, part in enumerate(parts) if part.startswith("_")]
    return all(package == owner or package.startswith(f"{owner}.") for owner in owners)


def wrong_imports(tree, module):
    """What a module imports and may not, in words."""
    package, floor = package_of(module), floor_of(module)
    for other, names, line in imports(tree, package):
        if other.split(".")[0] != "steerfn":
            continue
        if floor_of(other) > floor:
            yield f"{module}:{line} imports {other}, which stands on a floor below"
        if not is_open(package, other):
            yield f"{module}:{line} imports {other}, which is private: take the name from its folder, which offers it"
        private = [name for name in names if name.startswith("_") and not name.startswith("__")]
        if private and not package_of(other).startswith(package) and not package.startswith(package_of(other)):
            yield f"{module}:{line} imports {private} of {other}, which are private"


@functools.cache
def parsed(file):
    return ast.parse(file.read_text(encoding="utf8"))


def test_imports_point_up_and_stay_out_of_what_is_private():
    assert not [wrong for module, file in MODULES.items() for wrong in wrong_imports(parsed(file), module)]


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("steerfn.values._site", "from steerfn.operators import add", "below"),
        ("steerfn.values._site", "def f():\n    from steerfn.run import generate", "below"),
        ("steerfn.values._site", "from ..model import layout", "below"),
        ("steerfn.evaluate._pairs", "import steerfn.plot", "below"),
        ("steerfn.evaluate._pairs", "from steerfn import __version__", "below"),
        ("steerfn.run._generate", "from steerfn.values._site import Site", "private"),
        ("steerfn.run._generate", "from steerfn.model import _frame", "private"),
        ("steerfn.evaluate._pairs", "from steerfn.discover._engine import quality", "private"),
        ("steerfn.discover._pca", "from steerfn.discover._engine._quality import quality", "private"),
        ("steerfn.run._generate", "from steerfn.operators import _Gated", "private"),
        ("steerfn.values._site", "from steerfn._lazy import lazy", None),
        ("steerfn.values.files._gguf", "from steerfn.values._site import Site", None),
        ("steerfn.discover._pca", "from steerfn.discover._engine import quality", None),
        ("steerfn.discover._engine._ray", "from steerfn.discover._pca import _axis", None),
        ("steerfn.plot._sweep", "import numpy\nfrom steerfn.serving import app", None),
    ],
)
def test_the_rule_of_imports_sees_what_it_forbids(module, text, wrong):
    found = list(wrong_imports(ast.parse(text), module))
    assert (len(found) == 1 and wrong in found[0]) if wrong else not found


def circle(trees):
    """Modules that import each other when they load, or None. What a function imports, it imports later."""
    needs = {
        module: [
            other
            for other, _, _ in imports(ast.Module([n for n in tree.body if not is_later(n)], []), package_of(module))
        ]
        for module, tree in trees.items()
    }
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done or module not in needs:
            return None
        path.append(module)
        found = next(filter(None, map(visit, needs[module])), None)
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, needs)), None)


def is_later(node):
    """What loads nothing when its module does: functions, and what is there for types only."""
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )


def test_modules_load_in_one_order():
    assert circle({module: parsed(file) for module, file in MODULES.items()}) is None
    site, vector = "from steerfn.values._vector import V", "from steerfn.values._site import Site"
    names = "steerfn.values._site", "steerfn.values._vector"
    assert circle(dict(zip(names, map(ast.parse, (site, vector)), strict=True))) == list(names)
    assert circle(dict(zip(names, map(ast.parse, (f"def f():\n    {site}", vector)), strict=True))) is None


def test_every_folder_has_its_floor():
    assert sorted(FLOORS.replace("+", " ").split()) == sorted(FOLDERS)
    here = {f.name for f in Path(__file__).parent.iterdir() if f.is_dir() and not f.name.startswith(("_", "."))}
    assert here - {"docs", "matrix", "properties"} <= FOLDERS, "tests/ mirrors the package"


def strangers(names):
    """What lies in the package's root and is not its table of contents, the lazy-import helper or `py.typed`."""
    return sorted(set(names) - {"__init__.py", "_lazy.py", "py.typed"} - FOLDERS - {"__pycache__"})


def test_the_root_is_a_table_of_contents():
    assert not strangers(f.name for f in PACKAGE.iterdir())
    assert strangers(["__init__.py", "py.typed", "values", "_site.py", "utils"]) == ["_site.py", "utils"]


def classes_named_twice(trees):
    """Class names that stand for several classes, in functions too, with their modules."""
    homes = collections.defaultdict(list)
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_a_class_name_stands_for_one_class():
    assert not classes_named_twice({module: parsed(file) for module, file in MODULES.items()})
    two = {
        "a": ast.parse("class Row: ..."),
        "b": ast.parse("def f():\n    class Row: ..."),
        "c": ast.parse("class One: ..."),
    }
    assert classes_named_twice(two) == {"Row": ["a", "b"]}


def test_values_and_operators_know_no_model():
    for module in (m for m in MODULES if m.startswith(("steerfn.values", "steerfn.operators"))):
        found = {other for other, _, _ in imports(parsed(MODULES[module]), package_of(module))}
        assert not {other for other in found if other.split(".")[0] == "transformers"}, module
        if module.startswith("steerfn.operators"):
            of_torch = {
                alias.name
                for node in ast.walk(parsed(MODULES[module]))
                if isinstance(node, ast.ImportFrom) and node.module == "torch"
                for alias in node.names
            }
            assert "torch.nn" not in found and "nn" not in of_torch, module


def test_no_stringified_annotations():
    """`from __future__ import annotations` weakens jaxtyping."""
    for module, file in MODULES.items():
        nodes = ast.walk(parsed(file))
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in nodes), module


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


MAY_TOUCH = {"steerfn.model._substitute", "steerfn.model._spine", "steerfn.model._check_layout"}


def test_only_one_file_touches_modules():
    """Beside it `_spine`, which writes to private copies that it makes, and the check of a layout, which runs one."""
    for module in sorted(set(MODULES) - MAY_TOUCH):
        lines = list(written(parsed(MODULES[module])))
        assert not lines, f"{module}: lines {lines} write to a module"


def test_the_check_sees_a_module_being_touched():
    touching = "m._modules['a'] = b", "m.__dict__.update(x)", "del m.__dict__['f']", "m.register_forward_hook(f)"
    for text in touching:
        assert list(written(ast.parse(text))), text
    assert not list(written(ast.parse("self.__dict__.update(x); y = m._modules['a']; m.x = 1")))


def test_files_are_short():
    """One idea a file."""
    long = {m: n for m, f in MODULES.items() if (n := len(f.read_text(encoding="utf8").splitlines())) > 450}
    assert not long


def public(node):
    """Whether a statement hands names on, as in `from ._x import y as y`."""
    return isinstance(node, ast.ImportFrom) and all(alias.asname == alias.name for alias in node.names)


def test_the_table_of_contents_holds_nothing_else():
    """`steerfn/__init__.py` only imports `x as x`, at once or at first use, and names what it imports."""
    for node in parsed(PACKAGE / "__init__.py").body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        special = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).lstrip("(").startswith("__")
        typing = isinstance(node, ast.If) and all(map(public, node.body)) and not node.orelse
        means = isinstance(node, ast.ImportFrom) and node.module in ("typing", "steerfn._lazy")
        assert docstring or public(node) or special or typing or means, ast.unparse(node)[:100]


def test_a_name_that_moved_is_found_under_its_old_spelling_with_a_warning():
    for old, new in {"lat": "discover.lat", "ray_workers": "workers.ray", "Metadata": "values.Metadata"}.items():
        with pytest.warns(DeprecationWarning, match=rf"^steerfn.{old} is steerfn.{new} now; the old spelling goes"):
            there = getattr(steerfn, old)
        assert there is operator.attrgetter(new)(steerfn) and old not in dir(steerfn)
    moved = next(call.args[3] for call in ast.walk(parsed(PACKAGE / "__init__.py")) if isinstance(call, ast.Call))
    for home, names in ast.literal_eval(moved).items():
        for entry in names.split():
            assert operator.attrgetter(f"{home}.{entry.rpartition('=')[2]}")(steerfn) is not None


def test_the_top_level_is_the_contract_and_little_more():
    assert len([name for name in dir(steerfn) if not name.startswith("_")]) <= 83
