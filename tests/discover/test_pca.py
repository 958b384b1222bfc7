"""PCA: against numpy and scikit-learn, of low and of full rank, and what centring would do."""

import numpy as np
import pytest
import torch
from methods import planted, rows
from sklearn.decomposition import PCA
from words import words

import steerfn as sf
from steerfn.discover._engine._moments import top_axis
from steerfn.discover._pca import DifferencePca, PooledPca

POSITIVE, NEGATIVE = ["a b c", "d e f g", "h i", "j k l m n"], ["o p", "q r s t", "u", "v w x"]


def scaled(axis, difference):
    """As every method scales an axis, in numpy."""
    return torch.from_numpy(axis * (axis @ difference.numpy()) / (axis @ axis))


@pytest.mark.parametrize(("count", "width"), [(60, 8), (5, 40), (12, 40)])
def test_differences_equal_an_uncentred_svd(count, width):
    positive, negative, _ = planted(0, (count, count), width=width)
    differences = positive.values - negative.values
    axis = np.linalg.svd(differences.numpy(), full_matrices=False)[2][0]
    expected = scaled(axis, differences.mean(0))
    torch.testing.assert_close(DifferencePca().of(positive, negative), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("counts", "width"), [((60, 45), 8), ((3, 4), 40), ((9, 6), 40)])
def test_pooled_equals_scikit_learn(counts, width):
    positive, negative, _ = planted(1, counts, width=width)
    axis = PCA(1, svd_solver="full").fit(torch.cat([positive.values, negative.values]).numpy()).components_[0]
    expected = scaled(axis, positive.values.mean(0) - negative.values.mean(0))
    torch.testing.assert_close(PooledPca().of(positive, negative), expected, rtol=1e-9, atol=1e-9)


def test_pitfall_09_centring_differences_would_remove_the_signal():
    random = torch.Generator().manual_seed(0)
    axis, topic = torch.linalg.qr(torch.randn(16, 2, generator=random, dtype=torch.float64)).Q.T
    negative = torch.randn(200, 16, generator=random, dtype=torch.float64)
    size = torch.randn(200, 1, generator=random, dtype=torch.float64)
    positive = negative + 3 * axis + size * topic + 0.3 * torch.randn(200, 16, generator=random, dtype=torch.float64)
    centred = PCA(1).fit((positive - negative).numpy()).components_[0]
    assert abs(float(axis @ torch.from_numpy(centred))) < 0.1
    found = DifferencePca().of(rows(positive), rows(negative))
    assert float(torch.cosine_similarity(found, axis, dim=0)) > 0.99


@pytest.mark.parametrize(("count", "bound"), [(1, 1), (3, 3), (3, 10), (10, 10), (11, 11), (40, 40), (200, 200)])
def test_the_axis_of_low_rank_is_the_top_eigenvector(count, bound):
    random = torch.Generator().manual_seed(count)
    values = (
        torch.randn(count, 40, generator=random, dtype=torch.float64) @ torch.diag(torch.linspace(1, 9, 40)).double()
    )
    moment = values.T @ values / count
    found, expected = top_axis(moment, bound), torch.linalg.eigh(moment).eigenvectors[:, -1]
    assert abs(float(found @ expected)) == pytest.approx(1.0, abs=1e-12)
    assert float(found.norm()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("on", ["differences", "pooled"])
def test_equals_a_plain_loop_over_transformers(tiny, on):
    tokenizer, states = words(), {}
    for name, texts in {"positive": POSITIVE, "negative": NEGATIVE}.items():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            with torch.no_grad():
                out = tiny(**ids, output_hidden_states=True)
            states.setdefault(name, []).append(out.hidden_states[2][0, -1].double())
    positive, negative = (torch.stack(states[name]) for name in ("positive", "negative"))
    values = positive - negative if on == "differences" else torch.cat([positive, negative])
    values = values if on == "differences" else values - values.mean(0)
    axis = np.linalg.svd(values.numpy(), full_matrices=False)[2][0]
    expected = scaled(axis, positive.mean(0) - negative.mean(0))
    for batch_size in ("auto", 1, 3):
        v = sf.pca(tiny, tokenizer, POSITIVE, NEGATIVE, 1, on=on, batch_size=batch_size, progress=False)
        torch.testing.assert_close(v[1].double(), expected, rtol=1e-4, atol=1e-5)


def test_pitfall_26_what_it_is_taken_on_matters_and_is_told(tiny):
    differences, pooled = (
        sf.pca(tiny, words(), POSITIVE, NEGATIVE, 1, on=on, progress=False) for on in ("differences", "pooled")
    )
    assert not differences.allclose(pooled)
    assert differences.metadata["on"] == "differences" and pooled.metadata["on"] == "pooled"
    assert differences.identical(sf.pca(tiny, words(), POSITIVE, NEGATIVE, 1, progress=False))


@pytest.mark.parametrize("on", ["difference", None, ["pooled"]])
def test_another_on_is_one_sentence(tiny, on):
    with pytest.raises(sf.DataError) as caught:
        sf.pca(tiny, words(), POSITIVE, NEGATIVE, 1, on=on, progress=False)
    assert str(caught.value) == f"on must be 'differences' (of pairs) or 'pooled' (both sides together), not {on!r}."
