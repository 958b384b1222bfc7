"""The shipped sets: known names, enough pairs, nothing that would give the sides away."""

import json
import re
from collections import Counter
from importlib import resources

import pytest

import steerfn as sf
from steerfn import datasets
from steerfn.discover._lint_pairs import lint_pairs

NAMES = ("concision", "confidence", "formality", "honesty", "politeness", "refusal", "sentiment")


def words(text):
    return len(text.split())


def test_names():
    assert datasets.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_set_passes_its_own_lint(name):
    d = datasets.load(name)
    assert d.paired and len(d) >= 44 and d.name == name and d.description and d.source == "steerfn, Apache-2.0"
    found = [finding.kind for finding in lint_pairs(d)]
    assert found == (["length"] if name == "concision" else []), lint_pairs(d)


@pytest.mark.parametrize("name", NAMES)
def test_a_split_of_a_set_leaks_nothing(name):
    train, test = datasets.load(name).split()
    assert "leak" not in [finding.kind for finding in lint_pairs(train, held_out=test)]


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_clean(name):
    d = datasets.load(name)
    texts = [*d.positive, *d.negative]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == " ".join(text.split()) and text[0].isupper() and text[-1] in ".?", text


@pytest.mark.parametrize("name", [n for n in NAMES if n != "concision"])
def test_the_halves_of_a_pair_are_alike(name):
    """The last token is where a direction is read, so both end alike; and both are about as long."""
    d = datasets.load(name)
    for positive, negative in zip(d.positive, d.negative, strict=True):
        assert positive[-1] == negative[-1], (positive, negative)
        assert abs(words(positive) - words(negative)) <= 4, (positive, negative)
        assert 2 / 3 <= words(positive) / words(negative) <= 3 / 2, (positive, negative)


def test_concision_is_where_length_is_the_behaviour():
    d = datasets.load("concision")
    assert all(2 * words(short) < words(long) for short, long in zip(d.positive, d.negative, strict=True))


def test_answers_to_requests_do_not_open_in_one_way():
    """The text starts with the request, so it is the answer's first word that could be a shortcut."""
    d = datasets.load("refusal")
    opens = [Counter(), Counter()]
    for pair in zip(d.positive, d.negative, strict=True):
        request = re.match(r".+?[.?](?= )", pair[0]).group()
        assert pair[1].startswith(f"{request} "), pair
        for side, text in zip(opens, pair, strict=True):
            side[text.removeprefix(request).split()[0]] += 1
    assert all(max(side.values()) <= len(d) // 5 for side in opens), opens


def test_the_files_say_their_licence_and_read_as_any_other(tmp_path):
    for name in NAMES:
        text = (resources.files("steerfn.datasets") / "data" / f"{name}.json").read_text(encoding="utf-8")
        assert set(json.loads(text)) == {"name", "description", "license", "pairs"}
        assert json.loads(text)["license"] == "Apache-2.0"
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        again, d = datasets.from_file(tmp_path / f"{name}.json"), datasets.load(name)
        assert (again.positive, again.negative, again.paired) == (d.positive, d.negative, True)
        assert again.description == d.description


@pytest.mark.parametrize("name", ["../datasets/data/honesty", "", None, 3, ["honesty"]])
def test_other_names_are_refused(name):
    with pytest.raises(sf.DataError) as caught:
        datasets.load(name)
    known = ", ".join(NAMES)
    assert str(caught.value) == (
        f"No set is called {name!r}. The known names are {known}; sf.datasets.from_file reads your own."
    )


def test_a_near_name_is_suggested():
    with pytest.raises(sf.DataError, match="No set is called 'Sentimant'. Did you mean 'sentiment'\\? The known names"):
        datasets.load("Sentimant")
