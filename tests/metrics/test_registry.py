"""Names, functions and `Metric`s: what is known, what is asked, and what is refused."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import steerfn as sf
from steerfn.metrics import Metric, Setting, _metric, get, names, register
from steerfn.metrics import _metric as registry
from steerfn.metrics._metric import as_metrics, measure

NAMED = (
    "bleu chrf rouge semantic_similarity sentiment sentiment_minilm toxicity helpfulness refusal refusal_log_odds "
    "perplexity kl_from_baseline log_prob_difference repetition distinct_n length"
)
"""Their examples run in test_classifier.py."""


@pytest.fixture
def own(monkeypatch):
    """A registry to write into."""
    monkeypatch.setattr(registry, "_registry", dict(_metric._registry))


def vowels(texts):
    return [sum(letter in "aeiou" for letter in text) for text in texts]


def test_every_builtin_is_known_by_its_name_and_says_what_it_is():
    assert list(names()) == sorted(NAMED.split())
    for name in names():
        metric = get(name)
        assert getattr(sf.metrics, name) is metric and metric.name == name
        assert metric.about.endswith(".") and metric.unit
        doc = inspect.getdoc(metric.function)
        assert all(part in doc for part in ("Args:", "Returns:", "Example:")), name
        for option in (*metric.options, *metric.needs):
            assert f"    {option}: " in doc, (name, option)


def test_a_metric_of_ones_own_is_known_once_registered(own):
    mine = register(Metric("vowels", vowels, better="higher", unit="letters", about="Vowels."))
    assert get("vowels") is mine and "vowels" in names()
    assert register(mine) is mine  # a notebook's cell runs twice
    assert as_metrics("vowels") == {"vowels": mine}
    assert str(mine) == "vowels [letters, higher is better]: Vowels."


def test_names_are_given_once(own):
    register(Metric("vowels", vowels))
    with pytest.raises(sf.DataError, match="There is a metric named 'vowels' already; give this one another name."):
        register(Metric("vowels", lambda texts: [0] * len(texts)))


def test_a_need_that_nobody_gives_is_refused(own):
    def strange(texts, *, grades):
        return grades

    message = (
        "The metric 'strange' asks for 'grades', which is not available; besides the texts there are prompts, refere"
    )
    with pytest.raises(sf.DataError, match=message):
        register(Metric("strange", strange))
    with pytest.raises(sf.DataError, match=message):
        as_metrics([strange])
    assert "strange" not in names()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("blue", "There is no metric 'blue'; did you mean 'bleu'? there are bleu, chrf, "),
        (["length", "xyzzy"], "There is no metric 'xyzzy'; there are bleu, chrf, "),
        (3, "metrics must be a list of names or functions, not 3."),
        ([3], "A metric must be a name, or a function of a list of texts that returns one number for each, not 3."),
        (["length", "length"], "Two metrics are named 'length'; pass a mapping of names to functions."),
        ([vowels, vowels], "Two metrics are named 'vowels'; pass a mapping of names to functions."),
    ],
)
def test_what_is_no_metric_is_told(given, message):
    with pytest.raises(sf.DataError) as caught:
        as_metrics(given)
    assert message in str(caught.value)


def test_metrics_are_named_in_any_way():
    found = as_metrics(["length", vowels, sf.metrics.repetition.using(n=2)])
    assert list(found) == ["length", "vowels", "repetition(n=2)"]
    renamed = as_metrics({"how long": "length", "v": vowels})
    assert list(renamed) == ["how long", "v"] and renamed["how long"].function is sf.metrics.length.function
    assert as_metrics(vowels)["vowels"](["aeb"]) == [2]


def test_using_takes_options_only():
    with pytest.raises(sf.DataError, match="The metric 'repetition' has no option 'm'; its options are: n."):
        sf.metrics.repetition.using(m=2)
    with pytest.raises(sf.DataError, match="The metric 'bleu' has no option 'references'; its options are: none."):
        sf.metrics.bleu.using(references=["a"])


def test_a_metric_is_asked_once_and_given_what_it_names():
    asked = []

    def both(texts, *, prompts, references, scale=2.0):
        asked.append((texts, prompts, references))
        return [scale * len(text) for text in texts]

    setting = Setting(prompts=["p", "q"], references=["r", "s"])
    found = measure(as_metrics({"both": both, "v": vowels}), ["ab", "eio"], setting)
    assert asked == [(["ab", "eio"], ["p", "q"], ["r", "s"])]
    np.testing.assert_array_equal(found["both"], [4, 6])
    np.testing.assert_array_equal(found["v"], [1, 3])


def test_what_a_setting_lacks_is_told():
    with pytest.raises(
        sf.DataError, match="The metric 'bleu' needs references, which this call does not provide; leave"
    ):
        measure(as_metrics("bleu"), ["a"], Setting())
    with pytest.raises(sf.DataError, match="The metric 'perplexity' needs model, which this call does not provide"):
        measure(as_metrics("perplexity"), ["a"], Setting(prompts=["b"]))


def test_what_a_metric_says_itself_is_not_said_anew():
    def missing(texts):
        raise sf.SteerError("This needs x; run `pip install x`.")

    def broken(texts):
        return ["good"] * len(texts)

    with pytest.raises(sf.SteerError) as caught:
        measure(as_metrics([missing]), ["a"], Setting())
    assert str(caught.value) == "This needs x; run `pip install x`."
    with pytest.raises(
        sf.DataError, match="The metric 'broken' must return one number for each text: could not convert"
    ):
        measure(as_metrics([broken]), ["a"], Setting())
    with pytest.raises(
        sf.DataError, match=r"The metric 'short' gave \(1,\) numbers for 2 texts; it must return one for each."
    ):
        measure(as_metrics({"short": lambda texts: [1.0]}), ["a", "b"], Setting())


# ---- the page


@pytest.mark.parametrize("section", ["Your own metric", "A judge"])
def test_the_pages_code_runs(section, own, capsys):
    page = (Path(__file__).parents[2] / "docs" / "guides" / "metrics.md").read_text(encoding="utf8")
    [part] = [each for each in page.split("\n## ")[1:] if each.startswith(section)]
    blocks = [block.partition("\n")[2] for block in part.split("```")[1::2] if block.startswith("python\n")]
    assert blocks
    exec(compile("\n".join(blocks), "metrics.md", "exec"), {"__name__": "page"})
    shown = [line.partition("# -> ")[2] for block in blocks for line in block.splitlines() if "# -> " in line]
    assert shown and capsys.readouterr().out.splitlines() == shown
