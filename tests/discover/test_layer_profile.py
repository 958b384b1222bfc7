"""Layer profiles: the same numbers as site by site, from one pass, and a table that can be read."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from words import words

import steerfn as sf
from steerfn.discover._engine._quality import auc
from steerfn.discover._mean_difference import MeanDifference
from steerfn.discover._pca import PooledPca
from steerfn.output._numbers import bar

pytestmark = pytest.mark.steady

POSITIVE = ["a b c", "d e f g", "h i", "j k l m n", "b d", "c c a", "x y z"]
NEGATIVE = ["o p", "q r s t", "u", "v w a", "t t", "s o u", "r"]
DATA = Path(__file__).parents[2].parent / "shared" / "data"
QUIET = {"progress": False}


def profile(model, **options):
    return sf.discover.layer_profile(model, words(), POSITIVE, NEGATIVE, **QUIET, **options)


def made(**numbers):
    """A profile with given numbers, by layer."""
    fill = {"auc": 0.5, "cohens_d": 0.0, "pair_cosine": 0.0, "relative_norm": 0.1}
    count = len(next(iter(numbers.values())))
    held = {
        f"resid_post[{i}]": sf.discover.Quality(
            **(fill | {k: each[i] for k, each in numbers.items()}), n=(6, 6), folds=5
        ).to_dict()
        for i in range(count)
    }
    directions = {sf.resid_post[i]: torch.ones(4) for i in range(count)}
    return sf.discover.Profile(sf.SteeringVector(directions, {"quality": held, "method": "by hand"}))


def test_the_numbers_are_those_of_each_site_alone(tiny):
    sites = [sf.resid_post[:], sf.attn_out[1]]
    table = dict(profile(tiny, sites=sites, seed=2, position="mean"))
    assert list(table) == [sf.resid_post[0], sf.attn_out[1], sf.resid_post[1], sf.resid_post[2]]  # as in a pass
    for site, each in table.items():
        v = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, site, quality=True, seed=2, position="mean", **QUIET)
        expected = sf.quality(v)[site]
        assert each.auc == expected.auc and math.isclose(each.cohens_d, expected.cohens_d, rel_tol=1e-4)


def test_it_takes_the_passes_of_one_discovery(tiny):
    passes = []
    sf.activations(tiny, words(), POSITIVE, sf.resid_post[:], **QUIET)  # what the model can do is tried once
    tiny.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, sf.resid_post[:], batch_size=2, **QUIET)
    once = len(passes)
    found = profile(tiny, batch_size=2)
    assert len(passes) == 2 * once and [site for site, _ in found] == [sf.resid_post[i] for i in range(3)]


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("mean_difference", sf.mean_difference),
        ("pca", sf.pca),
        ("lat", sf.discover.lat),
        ("linear_probe", sf.linear_probe),
        ("lda", sf.lda),
    ],
)
def test_methods_by_name_are_the_verbs_with_their_defaults(tiny, name, verb):
    found = profile(tiny, sites=[0, 1], method=name, seed=3)
    expected = verb(tiny, words(), POSITIVE, NEGATIVE, [0, 1], quality=True, seed=3, **QUIET)
    assert found.vectors.identical(expected) and f"{name}, 7 positive and 7 negative texts, 5-fold" in str(found)


def test_a_method_of_ones_own(tiny):
    found = profile(tiny, sites=1, method=PooledPca())
    assert found.vectors.metadata["on"] == "pooled"


def test_vectors_are_kept_with_their_quality(tiny):
    found = profile(tiny)
    v = found.vector(1)
    assert v.allclose(sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, **QUIET), rtol=1e-5)
    assert sf.quality(v) == {sf.resid_post[1]: dict(found)[sf.resid_post[1]]}
    assert list(v.metadata["quality"]) == ["resid_post[1]"] and v.metadata["method"] == "mean_difference"
    assert found.vector().sites == (found.best(),) and found.vector([0, 2]).layers == (0, 2)


def test_best_and_its_ties():
    assert made(auc=[0.6, 0.9, 0.8]).best() == sf.resid_post[1]
    assert made(auc=[0.9, 0.9, 0.9], cohens_d=[1.0, 3.0, 2.0]).best() == sf.resid_post[1]
    assert made(auc=[0.8, 0.9, 0.9], cohens_d=[9.0, 2.0, 2.0]).best() == sf.resid_post[1]  # the first
    assert made(auc=[None, 0.3, None]).best() == sf.resid_post[1]
    assert made(auc=[0.9, 0.9], cohens_d=[None, -1.0]).best() == sf.resid_post[1]
    for by in ("cohens_d", "pair_cosine", "relative_norm"):
        assert made(**{"auc": [0.9, 0.1, 0.2], by: [0.1, 0.2, 0.3]}).best(by=by) == sf.resid_post[2]


def test_it_prints_as_an_aligned_table():
    found = made(auc=[0.5, None, 0.75, 0.3, 1.0], cohens_d=[0.0, None, -1.25, 22.0, 3.5])
    first, head, *lines = str(found).splitlines()
    assert first == "by hand, 6 positive and 6 negative texts, 5-fold cross-validated"
    assert len({len(line.removesuffix("  <- best")) for line in [head, *lines]}) == 1
    assert [line.endswith("  <- best") for line in lines] == [False, False, False, False, True]
    assert [line.split()[:2] for line in lines[:3]] == [
        ["resid_post[0]", "0.500"],
        ["resid_post[1]", "-"],
        ["resid_post[2]", "0.750"],
    ]
    assert [line.count("█") for line in lines] == [0, 0, 10, 0, 20]
    assert repr(found).startswith("Profile(5 sites, best resid_post[4]: Quality(AUC 1.000, d 3.50,")


def test_a_bar_grows_from_chance_to_certainty():
    def length(text):
        return sum("·▏▎▍▌▋▊▉█".index(c) for c in text)

    values = [i / 320 for i in range(160, 321)]
    assert [length(bar(value)) for value in values] == list(range(161))
    assert {len(bar(value)) for value in [None, 0.0, *values]} == {20} and length(bar(0.2)) == length(bar(None)) == 0


def test_as_json_and_as_a_data_frame(tiny):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    found = profile(tiny)
    told = json.loads(found.to_json())
    assert told["method"] == "mean_difference" and told["counts"] == {"positive": 7, "negative": 7}
    assert told["sites"] == {site.name: each.to_dict() for site, each in found}
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame.index) == [site.name for site, _ in found]
    assert frame["auc"].tolist() == [each.auc for _, each in found] and frame["layer"].tolist() == [0, 1, 2]


def test_without_pandas_the_error_names_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sf.SteerError, match="to_pandas needs pandas, which is not installed: pip install pandas."):
        made(auc=[0.9]).to_pandas()


def test_a_profile_is_immutable():
    found = made(auc=[0.9])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.vectors = None
    with pytest.raises(TypeError):
        found.table[0] = None


def test_pitfall_28_one_text_a_side(tiny):
    found = sf.discover.layer_profile(tiny, words(), ["a"], ["b"], **QUIET)
    assert "1 positive and 1 negative texts, cross-validation tells nothing here: one text" in str(found)
    assert repr(found) == "Profile(3 sites)" and found.best(by="relative_norm") in found.vectors
    with pytest.raises(
        sf.DataError, match="No site has a number for auc \\(1 positive and 1 negative texts\\): one text"
    ):
        found.best()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: profile(m, method="magic"), "There is no method named 'magic' here; use one of lat, lda, "),
        (
            lambda m: profile(m, method=MeanDifference),
            "method must be a name (lat, lda, linear_probe, mean_difference, pca) ",
        ),
        (lambda m: profile(m, sites=7), "resid_post[7] is out of range"),
        (
            lambda m: profile(m).best(by="size"),
            "A profile has no 'size'; choose by one of auc, cohens_d, pair_accuracy",
        ),
        (lambda m: profile(m, sites=[0, 1]).vector(2), "no direction at resid_post[2]; it has resid_post[0], "),
        (lambda m: sf.discover.layer_profile(m, words(), [], ["a"], **QUIET), "positive is empty"),
    ],
)
def test_errors_by_their_text(tiny, call, message):
    with pytest.raises(sf.SteerError) as caught:
        call(tiny)
    assert message in str(caught.value)


@pytest.mark.heavy
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout")
def test_on_the_real_model_sentiment_is_read_from_texts_that_chose_nothing(demo):
    """Happy and sad scenes (RepE): 60 a side to find the direction and the layer, 60 others to judge both."""
    model, tokenizer = demo
    folder = DATA / "repe" / "emotions"
    scenes = sf.datasets.from_file(folder / "happiness.json", negative=folder / "sadness.json")
    happy, sad = list(dict.fromkeys(scenes.positive))[:120], list(dict.fromkeys(scenes.negative))[:120]
    found = sf.discover.layer_profile(model, tokenizer, happy[:60], sad[:60], **QUIET)
    best = found.best()
    held_out = dict(found)[best].auc
    assert held_out > 0.8, f"the best layer, {best}, has a held-out AUC of {held_out:.3f}"
    axis = found.vector(best)[best]
    high, low = (sf.activations(model, tokenizer, side[60:], best, **QUIET)[best] @ axis for side in (happy, sad))
    fresh = auc(high.double(), low.double())
    assert fresh > 0.8, f"{best}, with {held_out:.3f} held out, has an AUC of {fresh:.3f} on 60 other texts a side"
