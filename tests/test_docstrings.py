"""Every public name has a docstring with an example that runs and gives what it says."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import warnings

import pytest

import steerfn
from steerfn.metrics import Metric

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

NAMESPACES = (
    "steerfn steerfn.operators.scopes steerfn.operators.schedules steerfn.discover steerfn.discover.workers "
    "steerfn.datasets steerfn.metrics steerfn.evaluate steerfn.evaluate.protocols steerfn.plot steerfn.zoo"
)
"""Modules whose `dir` is what they offer."""
OTHERS = {
    "steerfn.operators": "Condition Tokens",
    "steerfn.values": "Metadata check_match fingerprint",
    "steerfn.values.files": "describe from_pt push_to_hub",
    "steerfn.model": "Layout",
    "steerfn.verbs": "Functional Steering",
    "steerfn.run": "Generations Scores Sensitivity token_read",
    "steerfn.reporting": "Report",
    "steerfn.engines.vllm": "register",
    "steerfn.serving": "Keys Limits SteeringRequest app",
    "steerfn.board": "Dashboard State app to_command to_python",
    "steerfn.integrations.langchain": "SteeredChatModel conversation",
    "steerfn.integrations.llamaindex": "SteeredLLM conversation",
}
"""Of modules that hold more than they offer, what they offer."""
SKIPPED: dict[str, int] = {}
"""Lines of examples that cannot run in a test, by the docstring that they stand in."""
SHOWN_BY: dict[str, str] = {}
"""Classes without an example of their own, by the function whose example makes one."""


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


BY_NAME = {example.name: example for example in EXAMPLES}
SHARED = ("model", "tokenizer", "happy", "sad", "v", "prompts", "inputs")
REPORT = "steerfn.reporting._report.report"
HEAVY = {
    REPORT, "steerfn.reporting._card.card", "steerfn.zoo._add.add", "steerfn.discover._transfer.transfer",
    "steerfn.engines._bake.bake", "steerfn.plot._forest.comparison",
}  # fmt: skip


def run(example, names):
    """Run an example; the names that it leaves behind stay in its `globs`."""
    example.globs |= names
    said = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    assert runner.run(example, out=said.append, clear_globs=False).failed == 0, "".join(said)


@pytest.fixture(scope="session")
def shared(demo, tmp_path_factory):
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
