"""The best of many sites by chance: against a loop over relabellings, on noise, and with groups."""

import numpy as np
import pytest
import torch
from methods import rows
from words import words

import steerfn as sf
from steerfn.datasets._folds import describe_texts, divide
from steerfn.discover._engine._chance import Chance, _exchange, _scores, chance_of_best
from steerfn.discover._engine._method import RowPair
from steerfn.discover._engine._quality import held_out_scores, measure
from steerfn.discover._mean_difference import MeanDifference


def noise(seed, pairs, sites, width=20, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(sites, 2, pairs, width, generator=random, dtype=torch.float64)
    values[:, 0, :, 0] += shift
    return [RowPair(rows(site[0]), rows(site[1])) for site in values]


@pytest.mark.parametrize("paired", [True, False])
def test_scores_from_inner_products_are_those_of_directions(paired):
    counts = (9, 9) if paired else (9, 7)
    texts = describe_texts(counts)
    values = torch.randn(sum(counts), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3.0
    random = np.random.default_rng(1)
    labels = [texts.labels, _exchange(texts, random), _exchange(texts, random)]
    folds = [divide(texts, 4, seed, each) for seed, each in enumerate(labels)]
    for score, y, fold in zip(
        _scores(values @ values.T, np.array(labels), np.array(folds)), labels, folds, strict=True
    ):
        high, low = (torch.from_numpy(np.flatnonzero(y == side)) for side in (1, 0))
        by_hand = held_out_scores(
            MeanDifference(),
            rows(values[high]),
            rows(values[low]),
            tuple(torch.from_numpy(fold)[s] for s in (high, low)),
        )
        torch.testing.assert_close(score[high], by_hand[0])
        torch.testing.assert_close(score[low], by_hand[1])


def test_exchanges_keep_what_belongs_together():
    random = np.random.default_rng(0)
    pairs = describe_texts((6, 6), None, [0, 0, 1, 1, 2, 2])
    mixed = describe_texts((3, 5), None, [0, 0, 1, 0, 1, 1, 2, 2])
    pure = describe_texts((4, 4), None, [0, 0, 1, 1, 2, 2, 3, 3])
    seen = set()
    for _ in range(40):
        turned = _exchange(pairs, random)
        assert (turned[:6] == 1 - turned[6:]).all() and all(turned[i] == turned[i + 1] for i in (0, 2, 4))
        seen.add(tuple(turned))
        within = _exchange(mixed, random)
        assert [within[np.array(mixed.units) == u].sum() for u in range(3)] == [2, 1, 0]
        whole = _exchange(pure, random)
        assert whole.sum() == 4 and all(whole[i] == whole[i + 1] for i in (0, 2, 4, 6))
    assert len(seen) == 8


@pytest.mark.parametrize("pairs", [24, 6])
def test_the_null_is_that_of_the_best_of_noise(pairs):
    texts, best, null = describe_texts((pairs, pairs)), [], []
    for seed in range(8):
        sites = noise(seed, pairs, 30)
        best.append(max(measure(MeanDifference(), s.positive, s.negative, seed=seed).auc for s in sites))
        null.append(chance_of_best(sites, best[-1], texts, seed=seed, permutations=49))
    assert abs(np.mean([each.median for each in null]) - np.mean(best)) < 0.04 and np.mean(best) > 0.6
    assert all(each.high >= each.median and each.sites == 30 for each in null)


def test_p_is_small_for_a_signal_and_as_often_small_as_it_says_for_noise():
    texts = describe_texts((12, 12))

    def p(seed, shift):
        sites = noise(seed, 12, 4, shift=shift)
        best = max(measure(MeanDifference(), s.positive, s.negative, seed=seed).auc for s in sites)
        return chance_of_best(sites, best, texts, seed=seed, permutations=49).p

    assert p(0, 3.0) == 1 / 50
    drawn = np.array([p(seed, 0.0) for seed in range(40)])
    assert (drawn <= 0.1).mean() < 0.25 and 0.3 < drawn.mean() < 0.7


def test_a_profile_says_what_chance_picks(tiny):
    positive, negative = ["a b", "c d", "e f", "g h", "i j", "k l"], ["m n", "o p", "q r", "s t", "u v", "w x"]
    found = sf.discover.layer_profile(tiny, words(), positive, negative, progress=False)
    assert isinstance(found.chance, Chance) and found.chance.sites == 3
    assert str(found).splitlines()[-1] == str(found.chance) and "the best of 3 by chance: AUC" in str(found)
    assert found.vector().metadata["chance"]["sites"] == 3  # of how many it was chosen
    assert '"chance": {' in found.to_json()
    few = sf.discover.layer_profile(tiny, words(), ["a"], ["b"], progress=False)
    assert few.chance is None and few.vectors.metadata["chance"] is None


def test_of_many_texts_a_sample_is_relabelled(monkeypatch):
    from steerfn.discover._engine import _chance

    monkeypatch.setattr(_chance, "MOST", 10)
    found = chance_of_best(noise(0, 40, 2), 0.6, describe_texts((40, 40), [0, 1] * 40), permutations=19)
    small = chance_of_best(noise(0, 10, 2), 0.6, describe_texts((10, 10)), permutations=19)
    assert abs(found.high - small.high) < 0.15


def test_a_damaged_chance_is_one_sentence():
    v = sf.SteeringVector({1: torch.ones(4)}, {"chance": {"median": 0.6}})
    with pytest.raises(sf.DataError, match="chance of the best site must be a mapping of five numbers"):
        _ = sf.discover.Profile(v).chance
