"""Planted directions: every method finds the one that was put there, with its sign, from rows and through a model."""

import pytest
import torch
from methods import METHODS, PAIRED, UNPAIRED, planted, rows
from words import WORDS, words

import steerfn as sf

EVEN, MORE, FEWER = (2000, 2000), (2000, 1200), (1200, 2000)
CASES = [(name, EVEN) for name in METHODS] + [(name, counts) for name in UNPAIRED for counts in (MORE, FEWER)]
VERBS = {
    "mean_difference": sf.mean_difference,
    "pca": sf.pca,
    "pca pooled": lambda *arguments, **options: sf.pca(*arguments, on="pooled", **options),
    "lat": sf.discover.lat,
    "linear_probe": sf.linear_probe,
    "lda": sf.lda,
}
LETTERS = WORDS[:26]


def cosine(a, b):
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize(("name", "counts"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_pitfall_20_noise_and_unequal_counts(name, counts, seed):
    positive, negative, axis = planted(seed, counts)
    found = METHODS[name].of(positive, negative)
    assert found.dtype == torch.float64 and cosine(found, axis) > 0.99
    assert abs(float(found @ axis) - 3.0) < 0.2  # the length of what was planted


@pytest.mark.parametrize("name", METHODS)
def test_duplicates(name):
    positive, negative, axis = planted(2, (1000, 1000))
    times = torch.randint(1, 5, (1000,), generator=torch.Generator().manual_seed(0))
    many = [rows(side.values.repeat_interleave(times, 0)) for side in (positive, negative)]
    assert cosine(METHODS[name].of(*many), axis) > 0.99


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_pitfall_11_positives_project_higher(name, seed):
    """Whatever sign an eigenvector happens to have; and a label that is turned round turns the direction."""
    positive, negative, _ = planted(seed, (50, 50))
    for first, second in ((positive, negative), (negative, positive)):
        found = METHODS[name].of(first, second)
        assert float((first.values @ found).mean() - (second.values @ found).mean()) > 1.0


@pytest.mark.parametrize("name", METHODS)
def test_pitfall_10_two_fits_are_bitwise_equal(name):
    for counts in ((30, 30), (3, 3)):  # of full rank and of low rank
        positive, negative, _ = planted(0, counts, width=8 if counts[0] > 8 else 40)
        if counts[0] < 8 and name == "lda without shrinkage":
            continue
        torch.manual_seed(1)
        first = METHODS[name].of(positive, negative)
        torch.manual_seed(2)
        assert torch.equal(first, METHODS[name].of(positive, negative))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("width", [1, 40])
def test_pitfall_28_one_text_a_side(name, width):
    """Where a direction is defined it is the difference; where it is not, that is said."""
    positive, negative, _ = planted(3, (1, 1), width=width)
    if name.startswith("lda"):
        with pytest.raises(sf.DataError, match="which is zero for 1 positive and 1 negative texts; pass more"):
            METHODS[name].of(positive, negative)
    elif name == "lat":
        with pytest.raises(sf.DataError, match="lat centres the differences, which leaves nothing of 1 pair"):
            METHODS[name].of(positive, negative)
    else:
        difference = positive.values[0] - negative.values[0]
        torch.testing.assert_close(METHODS[name].of(positive, negative), difference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_width_of_one(name):
    positive, negative, _ = planted(3, (9, 9), width=1)
    difference = positive.values.mean(0) - negative.values.mean(0)
    torch.testing.assert_close(METHODS[name].of(positive, negative), difference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in METHODS if not n.startswith("lda")])
def test_pitfall_15_sides_that_are_the_same_give_zero(name):
    positive, _, _ = planted(4, (6, 6))
    found = METHODS[name].of(positive, positive)
    assert not found.isnan().any() and float(found.norm()) < 1e-12


@pytest.fixture
def model(tiny):
    """A model whose embeddings of a to m and of n to z differ by a planted direction."""
    axis = torch.zeros(32).index_fill_(0, torch.tensor([3, 20]), 0.5**0.5)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        table = tiny.get_input_embeddings().weight
        ids = torch.tensor(words().convert_tokens_to_ids(LETTERS))
        table[ids] = 1.0 + 0.05 * torch.randn(26, 32, generator=random) + axis * (torch.arange(26) < 13).unsqueeze(1)
    return tiny, axis


@pytest.mark.parametrize("name", VERBS)
def test_through_a_model(name, model):
    tiny, axis = model
    tokenizer, site = words(), sf.resid_pre[0]
    negative = LETTERS[13:] if name in PAIRED else LETTERS[13:23]
    v = VERBS[name](tiny, tokenizer, LETTERS[:13], negative, [site, 1], progress=False)
    assert v.sites == (site, sf.resid_post[1]) and v.dtype == torch.float32
    assert cosine(v[site], axis) > 0.99 and abs(v.magnitude[site] - 1) < 0.1
    assert v.metadata["method"] == name.split()[0] and v.metadata["model"] == sf.values.fingerprint(tiny, weights=True)
    high, low = (
        sf.activations(tiny, tokenizer, t, 1, progress=False)[sf.resid_post[1]] @ v[1] for t in (LETTERS[:13], negative)
    )
    assert high.mean() > low.mean()


@pytest.mark.parametrize("name", VERBS)
def test_pitfall_19_no_batch_size_changes_the_vector(name, tiny):
    texts = [" ".join(LETTERS[i : i + 1 + i % 4]) for i in range(20)]
    whole = VERBS[name](tiny, words(), texts[:10], texts[10:], [1, sf.head_out[2, 1]], progress=False)
    for batch_size in (1, 3, 7):
        v = VERBS[name](
            tiny, words(), texts[:10], texts[10:], [1, sf.head_out[2, 1]], progress=False, batch_size=batch_size
        )
        for site in whole.sites:
            assert float((v[site] - whole[site]).norm()) <= 1e-4 * whole.magnitude[site]  # the model's own rounding


@pytest.mark.parametrize("name", VERBS)
def test_pitfall_20_unequal_counts_are_refused_by_methods_of_pairs_alone(name, tiny):
    if name in PAIRED:
        with pytest.raises(sf.DataError, match="Pairs are needed, but there are 3 positive and 2 negative texts"):
            VERBS[name](tiny, words(), ["a", "b", "c"], ["d", "e"], 1, progress=False)
    else:
        v = VERBS[name](tiny, words(), ["a", "b", "c"], ["d", "e"], 1, progress=False)
        assert v.metadata["counts"] == {"positive": 3, "negative": 2} and v.magnitude[sf.resid_post[1]] > 0


@pytest.mark.parametrize("name", VERBS)
def test_activations_that_are_not_finite_are_one_sentence(name, tiny):
    with torch.no_grad():
        tiny.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(sf.DataError, match=r"The activations at resid_post\[1\] are not all finite numbers; load the"):
        VERBS[name](tiny, words(), ["a", "b"], ["c", "d"], [0, 1], progress=False)


def test_an_error_names_its_site(tiny):
    with pytest.raises(sf.DataError, match=r"^At resid_pre\[0\]: lda divides by the variance within the sides"):
        sf.lda(tiny, words(), ["a", "b a"], ["c", "d c"], [sf.resid_pre[0], 1], progress=False)


@pytest.mark.parametrize("name", VERBS)
def test_quality_is_measured_of_the_same_vector(name, tiny):
    texts = [" ".join(LETTERS[i : i + 1 + i % 4]) for i in range(20)]
    plain, judged = (
        VERBS[name](tiny, words(), texts[:10], texts[10:], [1, 2], progress=False, quality=quality)
        for quality in (False, True)
    )
    assert plain.allclose(judged, rtol=1e-4, atol=1e-5)
    assert dict(judged.metadata).keys() - dict(plain.metadata).keys() == {"quality", "chance"}
