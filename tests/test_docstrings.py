"""Every public name has a docstring with an example that runs and gives what it says."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
import warnings
from pathlib import Path

import pytest
from public_modules import NAMESPACES, OTHERS, SHORT

import steerfn
from steerfn import FileError, SteerError
from steerfn.metrics import Metric

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

SHOWN_ONLY = {
    "steerfn.workers.ray": "Ray is an extra that the tests do without",
    "steerfn.workers.torchrun": "several processes",
    "steerfn.files.push_to_hub": "a login to the hub",
    "steerfn.engines.vllm.register": "vLLM calls it",
}
"""Functions whose examples do not run here, and why."""
OPENAPI = {"steerfn.serving.SteeringRequest"}
"""A class whose docstring is a line of the server's OpenAPI page, which describes its fields."""


class Finder(doctest.DocTestFinder):
    """Finds what a decorator wraps, too: a wrapper's globals are another module's, and a metric holds its function."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object) if inspect.isfunction(object) else object)

    def _find(self, tests, obj, name, module, source_lines, globs, seen):
        super()._find(tests, obj, name, module, source_lines, globs, seen)
        for each in vars(obj).values() if inspect.ismodule(obj) else ():
            if isinstance(each, Metric) and getattr(each.function, "__module__", None) == name:
                super()._find(tests, each.function, f"{name}.{each.name}", module, source_lines, globs, seen)


def examples():
    """Every module's docstrings with examples; a module whose extra is not installed has none here."""
    found = Finder(exclude_empty=True).find(steerfn)
    for info in pkgutil.walk_packages(steerfn.__path__, "steerfn.", onerror=lambda name: None):
        if info.name.endswith("__main__"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what an optional dependency says of itself
                module = importlib.import_module(info.name)
        except ImportError as error:
            if (error.name or "").startswith("steerfn"):
                raise
            continue
        found += Finder(exclude_empty=True).find(module)
    return [test for test in found if test.examples]


EXAMPLES = examples()


def offered():
    """Every public function and class by its path, once; of a metric the function that it holds."""
    found = {}
    for module, listed in [*((m, None) for m in NAMESPACES), *OTHERS.items()]:
        try:
            home = importlib.import_module(SHORT.get(module, module))
            values = {name: getattr(home, name) for name in (dir(home) if listed is None else listed.split())}
        except (ImportError, SteerError):  # an extra that is not installed
            continue
        for name, value in values.items():
            value = value.function if isinstance(value, Metric) else value
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value)):
                found.setdefault(value, f"{module}.{name}")
    return found


OFFERED = offered()
IN_OFFERED = tuple(f"{value.__module__}.{value.__qualname__}" for value in OFFERED)

BY_NAME = {example.name: example for example in EXAMPLES}
SHARED = ("model", "tokenizer", "happy", "sad", "v", "prompts", "inputs")
REPORT = "steerfn.reporting._report.report"
HEAVY = {
    REPORT, "steerfn.reporting._card.card", "steerfn.zoo._add.add", "steerfn.discover._transfer.transfer",
    "steerfn.engines._bake.bake", "steerfn.plot._forest.comparison", "steerfn.plot._forest.outcome",
    *(f"steerfn.evaluate.protocols._{name}.{name}" for name in ("axbench", "cast", "refusal")),
}  # fmt: skip
"""Examples that take seconds, of functions that tests of their own run too."""


def run(example, names):
    """Run an example; the names that it leaves behind stay in its `globs`.

    That of a public name knows no others than these: whoever copies it has no more.
    """
    if example.name.startswith(IN_OFFERED):
        example.globs = {"__name__": "__main__"}
    example.globs |= names
    said = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    failed, text = runner.run(example, out=said.append, clear_globs=False).failed, "".join(said)
    if missing := re.search(r"This needs .+?, which .*", text):
        pytest.skip(missing[0])
    assert failed == 0, text


@pytest.fixture(scope="session")
def shared(demo):
    """What examples share: the names of the package's own docstring."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steerfn, "demo_model", lambda: demo)  # loaded once for all
        run(BY_NAME["steerfn"], {})
    return {name: BY_NAME["steerfn"].globs[name] for name in SHARED}


@pytest.fixture(scope="session")
def report(shared):
    """The report that `sf.report`'s example makes."""
    run(BY_NAME[REPORT], shared)
    return BY_NAME[REPORT].globs["report"]


@pytest.mark.parametrize(
    "example",
    [pytest.param(each, id=each.name, marks=[pytest.mark.heavy] * (each.name in HEAVY)) for each in EXAMPLES],
)
def test_example_runs(example, shared, demo, monkeypatch, tmp_path, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steerfn, "demo_model", lambda: demo)
    if re.search(r">>>.*\breport[,)]", example.docstring):
        shared = {**shared, "report": request.getfixturevalue("report")}
    if example.name != REPORT:  # which has run
        run(example, shared)


def section(value, name):
    """The entries of a section of a docstring, by name; None where there is no such section."""
    match = re.search(rf"^{name}:\n(.*?)(?=^\S|\Z)", inspect.getdoc(value) or "", re.DOTALL | re.MULTILINE)
    return match and re.findall(r"^    (\w+):", match[1], re.MULTILINE)


def has_example(value):
    """Whether its docstring has an example, or one of its methods', or it begins with the function that makes it."""
    parts = [value, *vars(value).values()] if inspect.isclass(value) else [value]
    if any("Example:\n" in (inspect.getdoc(part) or "") for part in parts):
        return True
    makers = re.findall(r"`(\w+)`", (inspect.getdoc(value) or "").partition("\n\n")[0])
    return any(path.rpartition(".")[2] in makers and "Example:\n" in inspect.getdoc(f) for f, path in OFFERED.items())


def missing_arguments(function):
    """The parameters that a docstring does not describe."""
    return inspect.signature(inspect.unwrap(function)).parameters.keys() - (section(function, "Args") or ())


def missing_errors(function):
    """The errors that a function raises itself and its docstring tells neither by their names nor by a base's."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    calls = [node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    raised = {call.id for call in calls if isinstance(call, ast.Name)} & ERRORS.keys()
    told = tuple(ERRORS[name] for name in section(function, "Raises") or () if name in ERRORS)
    return {name for name in raised if not issubclass(ERRORS[name], told)}


ERRORS = {name: value for name, value in vars(steerfn).items() if name.endswith("Error")}


def test_public_names_have_examples():
    without = {path for value, path in OFFERED.items() if not has_example(value)}
    assert without == {f"steerfn.{name}" for name in [*ERRORS, "SteerWarning"]} | OPENAPI


def test_examples_run_but_for_those_that_need_more_than_a_test_has():
    run_or_shown = [value for value in OFFERED if "Example:\n" in (inspect.getdoc(value) or "")]
    shown = {OFFERED[value] for value in run_or_shown if ">>> " not in inspect.getdoc(value)}
    assert shown == SHOWN_ONLY.keys()
    files = Path(steerfn.__file__).parent.rglob("*.py")
    assert not [file for file in files if "doctest: +SKIP" in file.read_text(encoding="utf8")]


def test_arguments_and_errors_are_described():
    functions = [value for value in OFFERED if inspect.isroutine(value)]
    assert not {OFFERED[each]: missing for each in functions if (missing := missing_arguments(each))}
    assert not {OFFERED[each]: missing for each in functions if (missing := missing_errors(each))}


def test_the_rules_find_what_they_forbid():
    def load(path, strict):
        """Load.

        Args:
            path: a file.

        Raises:
            FileError: it is not there.
        """
        if strict:
            raise FileError("It is not there.")
        raise SteerError("It is not what it should be.")

    assert missing_arguments(load) == {"strict"} and missing_errors(load) == {"SteerError"} and not has_example(load)
    load.__doc__ = "Load.\n\nRaises:\n    SteerError: always.\n\nExample:\n    >>> load('x')"
    assert has_example(load) and not missing_errors(load)
    load.__doc__ = "Load; see `generate`."
    assert has_example(load)
    load.__doc__ = "Load; see `SteerError`."
    assert not has_example(load)
