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
from steerfn.datasets._folds import describe_texts, divide
from steerfn.discover._engine._keeping import Keeping
from steerfn.discover._engine._method import Kept
from steerfn.discover._engine._quality import auc, auc_interval, cohens_d, measure, pair_accuracy, pair_cosine
from steerfn.discover._lat import Lat
from steerfn.discover._linear_probe import LinearProbe
from steerfn.discover._mean_difference import MeanDifference
from steerfn.values._struct import static, struct

pytestmark = pytest.mark.steady

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
    of = torch.from_numpy(divide(describe_texts(counts), k, seed=3)).split(counts)
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
    assert sorted((4 - len(p), 9 - len(n)) for p, n in method.seen) == [(1, 2), (1, 2), (1, 2), (1, 3)]


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


# -- pitfall 51: data that is balanced by its answers -----------------------------------------------


def answers(pairs, gap, seed=0, width=40, token=12.0):
    """Activations at answer tokens: a topic each pair shares, the token's own large state, and the behaviour `gap`.

    The positive answer of one half of the pairs is token 0, of the other half token 1.
    """
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(2, width, generator=random, dtype=torch.float64)
    states, behaviour = token * states / states.norm(dim=1, keepdim=True), torch.zeros(width, dtype=torch.float64)
    behaviour[0] = gap
    read = torch.arange(pairs) % 2
    topics = torch.randn(pairs, width, generator=random, dtype=torch.float64)
    noise = torch.randn(2, pairs, width, generator=random, dtype=torch.float64)
    sides = topics + states[read] + noise[0] + behaviour, topics + states[1 - read] + noise[1]
    return *map(rows, sides), describe_texts((pairs, pairs), [*read.tolist(), *(1 - read).tolist()])


@pytest.mark.parametrize("pairs", [6, 10, 48, 50])
def test_pitfall_51_the_claimed_auc_is_the_true_one_where_answers_are_balanced(pairs):
    """Against 2,000 pairs that nothing saw, with the answer tokens' states the same."""
    claimed, true, blind = [], [], []
    for seed in range(12):
        positive, negative, texts = answers(2000 + pairs, 3.0, seed)
        train = positive[torch.arange(pairs)], negative[torch.arange(pairs)]
        known = describe_texts((pairs, pairs), [*texts.tokens[:pairs], *texts.tokens[2000 + pairs :][:pairs]])
        claimed.append(measure(MeanDifference(), *train, texts=known, seed=seed).auc)
        blind.append(measure(MeanDifference(), *train, seed=seed).auc)
        axis = MeanDifference().of(*train)
        true.append(auc(positive.values[pairs:] @ axis, negative.values[pairs:] @ axis))
    assert abs(np.mean(claimed) - np.mean(true)) < 0.08, f"claimed {np.mean(claimed):.2f}, true {np.mean(true):.2f}"
    if pairs in (6, 48):  # what folds that know nothing of the tokens say
        assert np.mean(blind) < np.mean(true) - 0.15


def test_pitfall_51_where_no_division_is_balanced_it_says_so_and_claims_nothing():
    positive, negative, texts = answers(2, 3.0)
    found = measure(MeanDifference(), positive, negative, texts=texts)
    assert (found.auc, found.interval, found.pair_accuracy, found.folds) == (None, None, None, 0)
    assert "answers that are read cannot be shared out" in found.reason
    assert "cross-validation tells nothing here: the answers" in repr(found)
    assert sf.discover.Quality.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert measure(MeanDifference(), positive, negative).reason is None  # of two pairs that read one token


@pytest.mark.parametrize(("end", "position"), [("", "last"), (" z w", "last"), (" z", "mean")])
def test_the_answer_reaches_the_folds_whatever_ends_the_texts(tiny, end, position):
    """Questions with the answers a and b in turn, through a model: as "(A)" is read at its bracket."""
    questions = ["x y", "h i j", "d e", "m n o", "p q", "r s"]
    positive = [f"{q} {'ab'[i % 2]}{end}" for i, q in enumerate(questions)]
    negative = [f"{q} {'ba'[i % 2]}{end}" for i, q in enumerate(questions)]
    options = {"position": position, **QUIET}
    v = sf.mean_difference(tiny, words(), positive, negative, 1, quality=True, **options)
    acts = [
        sf.activations(tiny, words(), side, 1, **options)[sf.resid_post[1]].double() for side in (positive, negative)
    ]
    texts = describe_texts((6, 6), [0, 1] * 3 + [1, 0] * 3)
    found = sf.quality(v)[sf.resid_post[1]]
    assert found.folds == 3 and found.auc == measure(MeanDifference(), *map(rows, acts), texts=texts).auc
    fewer = sf.mean_difference(tiny, words(), positive[:4], negative[:2], 1, quality=True, **options)
    assert sf.quality(fewer)[sf.resid_post[1]].folds == 2


def test_pair_accuracy_is_the_share_of_pairs_in_order():
    high, low = torch.tensor([3.0, 0.5, 1.0, 2.0]), torch.tensor([2.0, 1.0, 1.0, -4.0])
    assert pair_accuracy(high, low) == (1 + 0 + 0.5 + 1) / 4
    topic = 5 * normal(40, 1)  # pairs differ in topic more than the sides do
    found = measure(MeanDifference(), rows(topic + 1 + 0.1 * normal(40, 1, 2)), rows(topic + 0.1 * normal(40, 1, 3)))
    assert found.pair_accuracy > 0.95 and found.auc < 0.7
    assert measure(MeanDifference(), rows(normal(4)), rows(normal(5, seed=1))).pair_accuracy is None


def test_the_interval_of_an_auc_covers_it_and_has_a_width():
    """Two normals whose true AUC is known, from 8 texts a side to 60."""
    for shift, true in ((0.0, 0.5), (1.0, 0.7602), (2.0, 0.9214)):  # Phi(shift / sqrt(2))
        for n in (8, 20, 60):
            covered = 0
            for seed in range(200):
                high, low = normal(n, 1, seed, shift)[:, 0], normal(n, 1, 1000 + seed)[:, 0]
                low_end, high_end = auc_interval(auc(high, low), n, n)
                covered += low_end <= true <= high_end
            assert covered / 200 > 0.91, f"shift {shift}, n {n}: {covered / 200}"
    assert auc_interval(1.0, 8, 8)[0] < 0.9 and auc_interval(1.0, 8, 8)[1] == 1.0
    assert auc_interval(0.0, 8, 8) == pytest.approx([1 - end for end in auc_interval(1.0, 8, 8)[::-1]])
    wide, narrow = (np.diff(auc_interval(0.8, n, n)) for n in (10, 100))
    assert wide > 2.5 * narrow


# -- groups -----------------------------------------------------------------------------------------


def several_answers(seed, questions=24, each=4, width=30, share=3.0):
    """Answers of questions: right or wrong, and each question has a state of its own that its answers share."""
    random = torch.Generator().manual_seed(seed)
    group = torch.arange(questions).repeat_interleave(each)
    own = share * torch.randn(questions, width, generator=random, dtype=torch.float64)
    right = torch.rand(questions, generator=random) < 0.5  # of most questions nearly all answers are right, or wrong
    chance = torch.where(right, 0.9, 0.1)[group]
    labels = torch.rand(len(group), generator=random) < chance
    states = own[group] + torch.randn(len(group), width, generator=random, dtype=torch.float64)
    return rows(states[labels]), rows(states[~labels]), [*group[labels].tolist(), *group[~labels].tolist()]


def test_groups_stay_together_and_nothing_is_claimed_of_questions_that_were_seen():
    by_text, by_group = [], []
    for seed in range(12):
        positive, negative, groups = several_answers(seed)
        counts = len(positive), len(negative)
        by_text.append(measure(LinearProbe(), positive, negative, texts=describe_texts(counts, None, None)).auc)
        texts = describe_texts(counts, None, groups)
        found = measure(LinearProbe(), positive, negative, texts=texts)
        by_group.append(found.auc)
        fold = divide(texts, 5, 0)
        assert all(len(set(fold[np.array(groups) == g])) == 1 for g in set(groups))
        assert found.interval[1] - found.interval[0] > np.diff(auc_interval(found.auc, *counts))
    assert np.mean(by_text) > 0.75 and abs(np.mean(by_group) - 0.5) < 0.06, (np.mean(by_text), np.mean(by_group))


@pytest.mark.parametrize("verb", [sf.mean_difference, sf.linear_probe, sf.discover.iti])
def test_groups_are_an_option_of_every_method(tiny, verb):
    where = {} if verb is sf.discover.iti else {"sites": 1, "quality": True}
    options = {**QUIET, **where} | ({"k": 12} if verb is sf.discover.iti else {})
    plain = verb(tiny, words(), POSITIVE, NEGATIVE, **options)
    grouped = verb(tiny, words(), POSITIVE, NEGATIVE, groups=[0, 0, 0, 1, 1, 1, 1], **options)
    key = "accuracy" if verb is sf.discover.iti else "quality"
    assert grouped.metadata["groups"] == 2 and plain.metadata[key] != grouped.metadata[key]
    if key == "quality":
        assert sf.quality(grouped)[sf.resid_post[1]].folds == 2
    with pytest.raises(sf.DataError, match="3 labels for 7 pairs; pass one for each pair, or one for each of the 14"):
        verb(tiny, words(), POSITIVE, NEGATIVE, groups=[0, 1, 1], **options)
    with pytest.raises(sf.DataError, match=r"11 labels for 12 texts \(7 positive, then 5 negative\)"):
        verb(tiny, words(), POSITIVE, NEGATIVE[:5], groups=[*range(11)], **options)


def test_a_quality_is_a_value_and_json():
    found = measure(MeanDifference(), rows(normal(8)), rows(normal(9, seed=1)))
    assert sf.discover.Quality.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    low, high = found.interval
    shown = f"Quality(AUC {found.auc:.3f} ({low:.2f} to {high:.2f}), d {found.cohens_d:.2f}, pair cosine -, "
    assert repr(found).startswith(shown)
    older = {k: v for k, v in found.to_dict().items() if k not in ("interval", "pair_accuracy", "reason")}
    assert (
        sf.discover.Quality.from_dict(older).auc == found.auc and sf.discover.Quality.from_dict(older).interval is None
    )
    with pytest.raises(AttributeError):
        found.auc = 1.0
    for wrong in ({"auc": 1.0}, {**found.to_dict(), "n": 3}, None, {**found.to_dict(), "interval": [1]}):
        with pytest.raises(sf.DataError) as caught:
            sf.discover.Quality.from_dict(wrong)
        assert "A quality must be a mapping with auc, cohens_d, pair_cosine, relative_norm, n, folds, not " in str(
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
        ({"quality": "yes"}, "quality must be True or False, not 'yes'."),
        ({"quality": True, "seed": 1.5}, "`seed` must be an integer, got 1.5."),
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
        (v, "This vector has no quality in its metadata; compute it with quality=True"),
        (v.with_metadata(quality={"resid_post[0]": good}), "quality covers resid_post[0], without resid_post[1];"),
        (v.with_metadata(quality={"resid_post[1]": {"auc": 1}}), "A quality must be a mapping with auc,"),
        (torch.ones(4), "quality takes a SteeringVector, not a Tensor"),
    ):
        with pytest.raises(sf.SteerError) as caught:
            sf.quality(vector)
        assert message in str(caught.value)
