"""Quality: against scikit-learn and plain loops, and held out where it says so."""

import json
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from methods import rows
from sklearn.metrics import roc_auc_score
from words import words

import steerfn as sf
from steerfn._struct import static, struct
from steerfn.discover._lat import Lat
from steerfn.discover._mean import MeanDifference
from steerfn.discover.engine._keeping import Keeping
from steerfn.discover.engine._kept import Kept
from steerfn.discover.engine._quality import auc, cohens_d, folds_of, measure, pair_cosine

POSITIVE = ["a b c", "d e f g", "h i", "j k l m n", "b d", "c c a", "x y z"]
NEGATIVE = ["o p", "q r s t", "u", "v w a", "t t", "s o u", "r"]
QUIET = {"progress": False}


def normal(n, width=6, seed=0, shift=0.0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_auc_is_that_of_scikit_learn_ties_included(decimals):
    for seed in range(5):
        high, low = (normal(n, 1, seed, shift).round(decimals=decimals)[:, 0] for n, shift in ((13, 0.5), (29, 0.0)))
        labels = [1] * len(high) + [0] * len(low)
        assert math.isclose(auc(high, low), roc_auc_score(labels, torch.cat([high, low]).numpy()), abs_tol=1e-12)


def test_cohens_d_is_the_difference_in_pooled_standard_deviations():
    high, low = normal(9, 1, 0, 1.0)[:, 0], normal(14, 1, 1)[:, 0]
    squares = sum((x - side.mean()) ** 2 for side in (high, low) for x in side)
    expected = (high.mean() - low.mean()) / (squares / (9 + 14 - 2)).sqrt()
    assert math.isclose(cohens_d(high, low), float(expected), rel_tol=1e-12)


def test_cohens_d_without_spread_is_no_number_made_up():
    one, two = torch.ones(3, dtype=torch.float64), 2 * torch.ones(4, dtype=torch.float64)
    assert cohens_d(one, one[:2]) == 0.0 and cohens_d(one, two) is None and cohens_d(0 * one, 0 * two) == 0.0


def test_pair_cosine_is_the_mean_over_pairs_of_pairs():
    u = normal(7, shift=0.3)
    cosines = [float(torch.cosine_similarity(u[i], u[j], 0)) for i in range(7) for j in range(i)]
    assert math.isclose(pair_cosine(u), np.mean(cosines), rel_tol=1e-12)
    assert pair_cosine(u[:1]) is None
    assert math.isclose(pair_cosine(u[:1].expand(4, -1)), 1.0, rel_tol=1e-12)


def test_pair_cosine_takes_pairs_without_a_difference_as_cosine_0():
    u = normal(4)
    u[1] = 0
    left = [float(torch.cosine_similarity(u[i], u[j], 0)) for i, j in ((0, 2), (0, 3), (2, 3))]
    assert math.isclose(pair_cosine(u), sum(left) / 6, rel_tol=1e-12) and pair_cosine(0 * u) == 0.0


@pytest.mark.parametrize("counts", [(11, 11), (12, 7), (2, 9)])
def test_the_scores_are_those_of_a_plain_loop_over_texts(counts):
    positive, negative = normal(counts[0], shift=0.4), normal(counts[1], seed=1)
    k = min(5, *counts)
    of = folds_of(counts, k, seed=3)
    scores = []
    for side, folds in ((positive, of[0]), (negative, of[1])):
        for i, h in enumerate(side):
            high = torch.stack([p for p, fold in zip(positive, of[0], strict=True) if fold != folds[i]]).mean(0)
            low = torch.stack([n for n, fold in zip(negative, of[1], strict=True) if fold != folds[i]]).mean(0)
            direction = (high - low) / (high - low).norm()
            scores.append(float((h - (high + low) / 2) @ direction))
    found = measure(MeanDifference(), rows(positive), rows(negative), seed=3)
    assert math.isclose(found.auc, roc_auc_score([1] * counts[0] + [0] * counts[1], scores), abs_tol=1e-12)
    high, low = np.array(scores[: counts[0]]), np.array(scores[counts[0] :])
    pooled = ((counts[0] - 1) * high.var(ddof=1) + (counts[1] - 1) * low.var(ddof=1)) / (sum(counts) - 2)
    assert math.isclose(found.cohens_d, (high.mean() - low.mean()) / pooled**0.5, rel_tol=1e-9)
    norm = (positive.mean(0) - negative.mean(0)).norm() / torch.cat([positive, negative]).norm(dim=1).mean()
    assert math.isclose(found.relative_norm, float(norm), rel_tol=1e-12)
    assert found.n == counts and found.folds == k and (found.pair_cosine is None) == (counts[0] != counts[1])


def test_held_out_means_held_out():
    """Labels without meaning, fewer texts than dimensions: in hindsight they are told apart without an error."""
    inside, held_out = [], []
    for seed in range(12):
        positive, negative = normal(15, 200, seed), normal(15, 200, 100 + seed)
        direction = positive.mean(0) - negative.mean(0)
        inside.append(auc(positive @ direction, negative @ direction))
        held_out.append(measure(MeanDifference(), rows(positive), rows(negative)).auc)
    assert min(inside) > 0.99
    assert abs(np.mean(held_out) - 0.5) < 0.06, f"held-out AUC without any signal: {np.mean(held_out):.3f}"


@struct
class Recording(MeanDifference):
    """A method that writes down which texts it is fitted to."""

    seen: list = static(default_factory=list)
    name: ClassVar[str] = "recording"

    def update(self, state, positive, negative):
        self.seen.append((positive.index.tolist(), negative.index.tolist()))
        return super().update(state, positive, negative)


@pytest.mark.parametrize("n", [2, 5, 13])
def test_the_texts_of_a_pair_are_never_in_two_folds(n):
    method = Recording()
    measure(method, rows(normal(n)), rows(normal(n, seed=1)), direction=torch.ones(6, dtype=torch.float64))
    assert len(method.seen) == min(5, n)
    assert all(positive == negative for positive, negative in method.seen)
    out = [set(range(n)) - set(positive) for positive, _ in method.seen]
    assert sorted(i for fold in out for i in fold) == list(range(n))  # each once
    assert max(map(len, out)) - min(map(len, out)) <= 1


def test_with_unequal_counts_each_fold_holds_texts_of_both_sides():
    method = Recording()
    measure(method, rows(normal(4)), rows(normal(9)), direction=torch.ones(6, dtype=torch.float64))
    assert [(4 - len(p), 9 - len(n)) for p, n in method.seen] == [(1, 3), (1, 2), (1, 2), (1, 2)]


def test_rows_count_by_their_number_not_by_the_order_of_reading():
    positive, negative = rows(normal(9, shift=0.2)), rows(normal(9, seed=1))
    shuffled = positive[torch.tensor([3, 1, 0, 2, 8, 7, 4, 6, 5])], negative[torch.arange(8, -1, -1)]
    assert measure(MeanDifference(), positive, negative) == measure(MeanDifference(), *shuffled)


def test_a_seed_divides_again_and_the_same_seed_the_same_way():
    sides = rows(normal(20, shift=0.2)), rows(normal(20, seed=1))
    found = [measure(MeanDifference(), *sides, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] and found[0].auc != found[2].auc and found[0].relative_norm == found[2].relative_norm


def test_pitfall_28_one_text_a_side_has_no_held_out_number():
    found = measure(MeanDifference(), rows(normal(1)), rows(normal(1, seed=1)))
    assert (found.auc, found.cohens_d, found.pair_cosine, found.folds) == (None, None, None, 0)
    assert found.relative_norm > 0 and '"auc": null' in json.dumps(found.to_dict())
    assert measure(MeanDifference(), rows(normal(1)), rows(normal(5))).auc is None


def test_pitfall_15_sides_that_are_the_same_give_chance_and_never_nan():
    same = normal(6)
    for side in (same, same[:1].expand(6, -1), 0 * same):
        found = measure(MeanDifference(), rows(side), rows(side))
        assert (found.auc, found.cohens_d, found.pair_cosine, found.relative_norm) == (0.5, 0.0, 0.0, 0.0)
        json.dumps(found.to_dict(), allow_nan=False)
    apart = measure(MeanDifference(), rows(same[:1].expand(6, -1)), rows(same[1:2].expand(4, -1)))
    assert apart.auc == 1.0 and apart.cohens_d is None


def test_a_method_that_needs_more_texts_than_the_folds_leave_says_so():
    with pytest.warns(sf.SteerWarning, match="without one of 2 folds of 2 positive and 2 negative texts, lat centres"):
        found = measure(Lat(), rows(normal(2)), rows(normal(2, seed=1)))
    assert found.auc is None and found.folds == 0 and found.pair_cosine is not None


def test_a_quality_is_a_value_and_json():
    found = measure(MeanDifference(), rows(normal(8)), rows(normal(9, seed=1)))
    assert sf.Quality.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert repr(found).startswith(f"Quality(AUC {found.auc:.3f}, d {found.cohens_d:.2f}, pair cosine -, ")
    with pytest.raises(AttributeError):
        found.auc = 1.0
    for wrong in ({"auc": 1.0}, {**found.to_dict(), "n": 3}, None):
        with pytest.raises(sf.DataError) as caught:
            sf.Quality.from_dict(wrong)
        assert "A quality is a mapping with auc, cohens_d, pair_cosine, relative_norm, n, folds, not " in str(
            caught.value
        )


# -- through a model --------------------------------------------------------------------------------


def test_a_vector_carries_the_quality_of_its_activations(tiny, tmp_path):
    sites = [0, sf.attn_out[1], sf.head_out[2, 1]]
    v = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE[:5], sites, quality=True, seed=4, **QUIET)
    plain = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE[:5], sites, **QUIET)
    assert v.allclose(plain, rtol=1e-6) and "quality" not in plain.metadata
    assert v.metadata["method"] == "mean_difference" and v.metadata["counts"] == {"positive": 7, "negative": 5}
    acts = [sf.activations(tiny, words(), texts, sites, **QUIET) for texts in (POSITIVE, NEGATIVE[:5])]
    found = sf.quality(v)
    assert tuple(found) == v.sites
    for site, each in found.items():
        expected = measure(MeanDifference(), *(rows(side[site].double()) for side in acts), seed=4)
        assert each.auc == expected.auc and math.isclose(each.cohens_d, expected.cohens_d, rel_tol=1e-4)
        assert math.isclose(each.relative_norm, expected.relative_norm, rel_tol=1e-5)
    sf.save(v, tmp_path / "v.safetensors")
    assert sf.quality(sf.load(tmp_path / "v.safetensors")) == found
    assert sf.quality(v.select(sf.attn_out[1])) == {sf.attn_out[1]: found[sf.attn_out[1]]}


def test_inspect_shows_it(tiny, tmp_path, capsys):
    from steerfn.cli import main

    v = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, quality=True, **QUIET)
    path = sf.save(v, tmp_path / "v.safetensors")
    main(["inspect", str(path)])
    shown = capsys.readouterr().out
    assert "quality:" in shown and f'"auc": {sf.quality(v)[sf.resid_post[1]].auc}' in shown


def test_batches_leave_no_trace(tiny):
    found = [
        sf.quality(sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, quality=True, batch_size=size, **QUIET))
        for size in ("auto", 1, 3)
    ]
    for each in found[1:]:
        assert each[sf.resid_post[1]].auc == found[0][sf.resid_post[1]].auc
        assert math.isclose(each[sf.resid_post[1]].cohens_d, found[0][sf.resid_post[1]].cohens_d, rel_tol=1e-4)


def test_keeping_is_the_method_under_its_name():
    for method in (MeanDifference(), Lat(3)):
        kept = Keeping(method)
        assert isinstance(kept, Kept) and (kept.name, kept.paired) == (method.name, method.paired)
        positive, negative = rows(normal(6)), rows(normal(6, seed=1))
        order = torch.tensor([2, 0, 1, 5, 4, 3])
        assert torch.equal(kept.of(positive[order], negative[order.flip(0)]), method.of(positive, negative))


def test_an_interrupted_run_keeps_its_activations(tiny, tmp_path):
    options = {"quality": True, "batch_size": 2, "progress": False}
    whole = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, **options)
    path, passes = tmp_path / "run", []

    def stop(*_):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt

    handle = tiny.model.layers[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, checkpoint=path, **options)
    handle.remove()
    assert path.exists()
    assert sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, checkpoint=path, **options).identical(whole)


def test_pitfall_26_the_options_do_something(tiny):
    def found(**options):
        v = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, **QUIET, **options)
        return v.metadata.get("quality")

    assert found() is None and found(quality=True) != found(quality=True, seed=1)


def test_progress_shows_a_bar(tiny, capsys):
    sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, quality=True, progress=True)
    assert "Cross-validating" in capsys.readouterr().err
    sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, quality=True, progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "yes"}, "quality is True or False, not 'yes'."),
        ({"quality": True, "seed": 1.5}, "seed is an int, not 1.5 of type float."),
    ],
)
def test_wrong_options_are_one_sentence(tiny, options, message):
    with pytest.raises(sf.DataError) as caught:
        sf.mean_difference(tiny, words(), ["a"], ["b", "c"], 1, **QUIET, **options)
    assert message in str(caught.value)


def test_errors_by_their_text():
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(4)})
    good = measure(MeanDifference(), rows(normal(3)), rows(normal(3, seed=1))).to_dict()
    for vector, message in (
        (v, "This vector does not say how good it is; compute it with quality=True"),
        (v.with_metadata(quality={"resid_post[0]": good}), "quality is that of resid_post[0], without resid_post[1];"),
        (v.with_metadata(quality={"resid_post[1]": {"auc": 1}}), "A quality is a mapping with auc,"),
        (torch.ones(4), "quality takes a SteeringVector, not a Tensor"),
    ):
        with pytest.raises(sf.SteerError) as caught:
            sf.quality(vector)
        assert message in str(caught.value)
