"""LAT: against scikit-learn on swapped differences; which pairs are swapped."""

import pytest
import torch
from methods import planted, rows
from sklearn.decomposition import PCA
from words import words

import steerfn as sf
from steerfn.discover._lat import Lat, signs

pytestmark = pytest.mark.steady

POSITIVE, NEGATIVE = ["a b c", "d e f g", "h i", "j k l m n"], ["o p", "q r s t", "u", "v w x"]


@pytest.mark.parametrize(("count", "width"), [(60, 8), (61, 8), (5, 40), (2, 40)])
@pytest.mark.parametrize("seed", [0, 7])
def test_equals_scikit_learn_on_the_swapped_pairs(count, width, seed):
    positive, negative, _ = planted(0, (count, count), width=width)
    first, second = positive.values.clone(), negative.values.clone()
    swap = signs(positive.index, seed) < 0
    first[swap], second[swap] = second[swap].clone(), first[swap].clone()
    axis = torch.from_numpy(PCA(1, svd_solver="full").fit((first - second).numpy()).components_[0])
    expected = axis * (axis @ (positive.values - negative.values).mean(0))
    torch.testing.assert_close(Lat(seed).of(positive, negative), expected, rtol=1e-9, atol=1e-9)


def test_of_every_two_neighbours_one_is_swapped_by_chance():
    index = torch.arange(4000)
    found = signs(index, 0)
    assert set(found.tolist()) == {-1.0, 1.0} and not found.reshape(-1, 2).sum(1).any()
    assert abs(float(found[::2].mean())) < 4 / 2000**0.5
    assert abs(float((found[::2] * signs(index, 1)[::2]).mean())) < 4 / 2000**0.5  # another seed, other pairs
    assert abs(float((found[0:-2:2] * found[2::2]).mean())) < 4 / 2000**0.5


def test_a_swap_depends_on_the_seed_and_the_number_alone():
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    whole = signs(torch.arange(50), 3)
    torch.manual_seed(5)
    assert torch.equal(signs(order, 3), whole[order])
    assert torch.equal(signs(order[:7], 3), whole[order[:7]])
    assert not torch.equal(signs(torch.arange(50), -(10**30)), whole)  # any int
    assert len(signs(torch.arange(0), 0)) == 0


def test_pitfall_09_a_few_pairs_are_never_all_swapped_alike():
    """Centring would then remove what the pairs have in common."""
    random = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(16, generator=random, dtype=torch.float64), dim=0)
    for count in (2, 3, 4):
        negative = torch.randn(count, 16, generator=random, dtype=torch.float64)
        positive = negative + 3 * axis + 0.02 * torch.randn(count, 16, generator=random, dtype=torch.float64)
        for seed in range(10):
            found = Lat(seed).of(rows(positive), rows(negative))
            assert float(torch.cosine_similarity(found, axis, dim=0)) > 0.99


def test_pitfall_26_the_seed_changes_the_vector_and_is_told(tiny):
    # Of an even number of pairs; another swap of neighbours mixes other differences.
    found = [sf.discover.lat(tiny, words(), POSITIVE, NEGATIVE, 1, seed=seed, progress=False) for seed in range(4)]
    assert len({tuple(v[1].tolist()) for v in found}) > 1
    assert [v.metadata["seed"] for v in found] == [0, 1, 2, 3]
    assert found[0].identical(sf.discover.lat(tiny, words(), POSITIVE, NEGATIVE, 1, progress=False))
    assert found[1].metadata["method"] == "lat"


def test_batches_and_random_state_change_nothing(tiny):
    whole = sf.discover.lat(tiny, words(), POSITIVE, NEGATIVE, 1, seed=2, progress=False)
    torch.manual_seed(9)
    apart = sf.discover.lat(tiny, words(), POSITIVE, NEGATIVE, 1, seed=2, progress=False, batch_size=1)
    assert whole.allclose(apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [1.5, True, "1", None])
def test_a_seed_that_is_none_is_one_sentence(tiny, seed):
    with pytest.raises(sf.DataError) as caught:
        sf.discover.lat(tiny, words(), POSITIVE, NEGATIVE, 1, seed=seed, progress=False)
    assert str(caught.value) == f"`seed` must be an integer, got {seed!r}."


def test_one_pair_is_one_sentence(tiny):
    with pytest.raises(sf.DataError) as caught:
        sf.discover.lat(tiny, words(), ["a"], ["b"], 1, progress=False)
    assert str(caught.value) == (
        "At resid_post[1]: lat centres the differences, which leaves nothing of 1 pair; pass at least 2 pairs, or use "
        "sf.pca or sf.mean_difference."
    )
