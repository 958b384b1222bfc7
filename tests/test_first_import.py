"""What an import costs in modules and files: one process imports one thing after another and tells what is loaded."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import steerfn

CODE = """
import json, sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
told = {}

def tell(step):
    sets = [path for path in opened if path.endswith(".json") and "datasets" in path]
    told[step] = {"modules": sorted(sys.modules), "sets": sets}

import steerfn
tell("steerfn")
told["later"] = sorted(set(dir(steerfn)) - set(vars(steerfn)))
from steerfn import datasets
tell("datasets")
datasets.load("honesty")
tell("a set")
steerfn.metrics.names()
tell("metrics")
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    quiet = ["-W", "ignore:Guards may run slower:RuntimeWarning"]  # torch, of Python 3.13.0, as in pyproject.toml
    done = subprocess.run([sys.executable, *quiet, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


def packages(told, step):
    return {module.split(".")[0] for module in told[step]["modules"]}


def test_pitfall_30_an_import_loads_neither_transformers_nor_an_extra(told):
    extras = {"transformers", "gguf", "accelerate", "torchao", "matplotlib", "jinja2", "pytest", "scipy", "pandas"}
    assert not packages(told, "steerfn") & {*extras, "beartype"}  # which the first checked call loads


def test_what_loads_at_first_use_is_what_types_say(told):
    tree = ast.parse(Path(steerfn.__file__).read_text(encoding="utf8"))
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    assert set(told["later"]) == {alias.name for node in typed.body for alias in node.names}
    assert all(hasattr(steerfn, name) for name in told["later"])
    assert not {"steerfn.discover", "steerfn.metrics"} & set(told["steerfn"]["modules"])
    with pytest.raises(AttributeError, match="module 'steerfn' has no attribute 'discovr'"):
        _ = steerfn.discovr


def test_no_set_is_read_before_it_is_asked_for(told):
    assert not {"transformers", "pandas"} & packages(told, "datasets")
    assert not told["datasets"]["sets"]
    assert [path for path in told["a set"]["sets"] if path.endswith("honesty.json")]


def test_metrics_are_light(told):
    assert "steerfn.metrics" in told["metrics"]["modules"]
    heavy = {"transformers", "sacrebleu", "rouge_score", "vaderSentiment", "scipy", "nltk"}
    assert not heavy & packages(told, "metrics")
