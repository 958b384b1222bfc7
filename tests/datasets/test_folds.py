"""Folds: units whole, tokens shared out, sizes even; whatever the order of the texts."""

import numpy as np
import pytest

import steerfn as sf
from steerfn.datasets._folds import deciding_tokens, describe_texts, divide, net_tokens, reason_against
from steerfn.run._positions import reads


def balance(texts, fold):
    """By fold, how often each token is read on the positive side minus on the negative side."""
    labels, tokens = texts.labels, np.array(texts.tokens)[:, 0]
    return {
        one: {t: int((2 * labels[(fold == one) & (tokens == t)] - 1).sum()) for t in set(tokens.tolist())}
        for one in set(fold)
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pairs", [6, 7, 20, 47, 48])
def test_every_fold_of_balanced_answers_is_balanced(pairs, seed):
    order = np.random.default_rng(seed).permutation(np.arange(pairs) % 2)
    texts = describe_texts((pairs, pairs), [*order, *(1 - order)])
    fold = divide(texts, 5, seed)
    assert (fold[:pairs] == fold[pairs:]).all() and set(fold) == set(range(fold.max() + 1))
    left = [net for each in balance(texts, fold).values() for net in each.values() if net]
    assert len(left) == 2 * (pairs % 2) and set(map(abs, left)) <= {1}  # the odd one, of its two tokens
    assert reason_against(texts, fold) is None
    assert fold.max() + 1 == min(5, (pairs + 1) // 2) and max(np.bincount(fold)) - min(np.bincount(fold)) <= 4


@pytest.mark.parametrize("counts", [(11, 11), (40, 17), (3, 200)])
def test_without_tokens_folds_are_as_even_as_can_be(counts):
    fold = divide(describe_texts(counts), 3, seed=1)
    for side in (fold[: counts[0]], fold[counts[0] :]):
        assert max(np.bincount(side, minlength=3)) - min(np.bincount(side, minlength=3)) <= 1


def test_a_token_that_is_always_positive_is_no_reason_to_balance():
    """Yes against No in every pair: that is the behaviour."""
    texts = describe_texts((10, 10), [1] * 10 + [2] * 10)
    fold = divide(texts, 5, 0)
    assert sorted(np.bincount(fold)) == [4] * 5 and reason_against(texts, fold) is None


def test_unpaired_sides_share_out_the_tokens_of_each():
    tokens = [1] * 20 + [2] * 10 + [1] * 12 + [2] * 30
    texts = describe_texts((30, 42), tokens)
    fold = divide(texts, 5, 0)
    rates = [net / (fold == one).sum() for one, each in balance(texts, fold).items() for net in [each[1] - each[2]]]
    assert max(rates) - min(rates) < 0.25 and reason_against(texts, fold) is None


def test_groups_of_pairs_and_of_texts():
    pairs = describe_texts((4, 4), None, ["a", "a", "b", "c"])
    assert pairs.units == (0, 0, 1, 2, 0, 0, 1, 2) and pairs.paired and pairs.sides == (3, 3)
    texts = describe_texts((4, 4), None, [0, 1, 2, 3, 3, 2, 1, 1])
    assert texts.units == (0, 1, 2, 3, 3, 2, 1, 1) and not texts.paired and texts.sides == (4, 3)
    with pytest.raises(sf.DataError, match="5 labels for 4 pairs"):
        describe_texts((4, 4), None, [0, 1, 2, 3, 4])
    with pytest.raises(sf.DataError, match="groups is a list of labels"):
        describe_texts((4, 3), None, 7)


def test_groups_that_leave_a_side_empty_are_said():
    texts = describe_texts((4, 5), None, [0, 0, 0, 0, 1, 1, 2, 2, 2])
    assert "one text or group on a side" in reason_against(texts, divide(texts, 1, 0))


def test_the_net_of_tokens_counts_common_ones_only():
    texts = describe_texts((2, 2), [5, 7, 7, 9])
    assert net_tokens(texts, texts.labels).tolist() == [[-1.0], [1.0]]
    assert net_tokens(describe_texts((2, 2)), texts.labels).shape == (2, 0)


def test_the_deciding_tokens_are_the_answers():
    """1 and 2 are the answers, 8 and 9 end every text."""
    rows = [[4, 5, 1, 8, 9], [6, 2, 8, 9], [4, 5, 2, 8, 9], [6, 1, 8, 9]]
    assert deciding_tokens(reads(rows, "last"), 2) == ((1, 1), (2, 2), (2, 2), (1, 1))
    assert deciding_tokens(reads(rows, "last"), None) == ((1,), (2,), (2,), (1,))
    assert deciding_tokens(reads(rows, "mean"), None) == ((1,), (2,), (2,), (1,))
    assert deciding_tokens(reads(rows, "answer", 2), 2) == ((1, 1), (2, 2), (2, 2), (1, 1))
    assert deciding_tokens(reads([[1, 5], [3, 1, 5]], "last"), 1) == ((1, 1), (3, 3))
    assert deciding_tokens(reads([[5], [3, 5]], "last"), 1) == ((5, 5), (3, 3))


def test_the_seed_draws_the_folds_and_the_labels_may_be_others():
    texts = describe_texts((20, 20), [0, 1] * 10 + [1, 0] * 10)
    assert (divide(texts, 5, 3) == divide(texts, 5, 3)).all() and (divide(texts, 5, 3) != divide(texts, 5, 4)).any()
    turned = np.tile(np.arange(20) % 2, 2)  # token 0 is positive never
    turned[20:] = 1 - turned[20:]
    assert sorted(np.bincount(divide(texts, 5, 3, turned))) == [8] * 5
