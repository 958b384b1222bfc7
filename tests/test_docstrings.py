"""Every public docstring's example runs, and gives what it says."""

import doctest
import importlib
import inspect
import pkgutil
import warnings

import pytest

import steerfn

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Finder(doctest.DocTestFinder):
    """Finds what a decorator wraps, too: the wrapper's globals are another module's."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object) if inspect.isfunction(object) else object)


def examples():
    """Every module's docstrings with examples; a module whose extra is not installed has none here."""
    found = []
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
        found += [t for t in Finder(exclude_empty=True).find(module) if t.examples]
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_example_runs(example, request):
    if "demo_model(" in example.docstring:
        request.getfixturevalue("demo")  # fetched once, under the fixture's name and not the example's
    said = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    assert runner.run(example, out=said.append).failed == 0, "".join(said)


def test_public_functions_are_documented():
    for name in dir(steerfn):
        value = getattr(steerfn, name)
        if not name.startswith("_") and (callable(value) or isinstance(value, type)):
            assert (value.__doc__ or "").strip(), f"sf.{name} has no docstring"
