"""Calibration: ratios against transformers' own loss, one text at a time, and what the search promises."""

import contextlib
import math

import pytest
import torch
from families import build
from steering import vector
from words import words

import steerfn as sf
from steerfn.discover._calibrate import relative_norm, search
from steerfn.run._predict import Perplexity, Predictor

TEXTS = ["a b c d e f", "g h", "i j k l m n o p q r", "s t u v", "w"]
V = vector(sf.resid_post[1])
QUIET = {"progress": False}


def likely(family="llama", texts=TEXTS, steps=60):
    """A tiny model that has learned some texts, so that steering makes them less likely."""
    model = build(family)
    rows = [words()(text, return_tensors="pt").input_ids for text in texts]
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        sum(model(ids, labels=ids).loss for ids in rows).backward()
        adam.step()
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def learned():
    return likely()


def perplexity(model, op=None, alpha=1.0, scope=None):
    """exp of the mean loss of a token, from transformers' loss of each text alone."""
    total = count = 0
    for text in TEXTS:
        ids = words()(text, return_tensors="pt").input_ids
        with torch.no_grad():
            with contextlib.nullcontext() if op is None else sf.steer(model, op, alpha, scope=scope):
                loss = model(ids, labels=ids).loss
        total, count = total + loss.item() * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return math.exp(total / count)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("batch_size", ["auto", 1, 2])
def test_every_point_of_the_curve_is_the_ratio_of_a_plain_loop(family, batch_size, learned):
    model = learned if family == "llama" else likely(family, steps=20)
    found = sf.discover.calibrate(model, words(), V, TEXTS, tolerance=0.3, batch_size=batch_size, **QUIET)
    usual = perplexity(model)
    assert math.isclose(found.perplexity, usual, rel_tol=1e-5) and len(found.curve) > 3
    for alpha, ratio in found.curve:
        assert math.isclose(ratio, perplexity(model, V, alpha) / usual, rel_tol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bound", [1.05, 2.0])
def test_the_bound_holds_at_alpha_and_not_at_the_next_point(learned, sign, bound):
    found = sf.discover.calibrate(learned, words(), V, TEXTS, max_ratio=bound, sign=sign, **QUIET)
    points = dict(found.curve)
    assert points[found.alpha] == found.ratio <= bound and found.alpha * sign > 0
    assert perplexity(learned, V, found.alpha) / perplexity(learned) <= bound * (1 + 1e-4)
    smaller = [ratio for alpha, ratio in found.curve if abs(alpha) < abs(found.alpha)]
    larger = [(abs(alpha), ratio) for alpha, ratio in found.curve if abs(alpha) > abs(found.alpha)]
    assert all(ratio <= bound for ratio in smaller) and larger[0][1] > bound
    assert larger[0][0] <= 1.05 * abs(found.alpha) * (1 + 1e-9)
    assert [abs(alpha) for alpha, _ in found.curve] == sorted(abs(alpha) for alpha, _ in found.curve)
    assert repr(found).startswith(f"Calibration(alpha {found.alpha:.4g}, perplexity ratio {found.ratio:.4g} of at most")


def test_pitfall_26_each_option_does_something(learned):
    def found(v=V, **options):
        return sf.discover.calibrate(learned, words(), v, TEXTS, **QUIET, **options)

    usual = found()
    assert found(max_ratio=1.5).alpha > usual.alpha and found(sign=-1).alpha < 0
    assert len(found(tolerance=0.001).curve) > len(usual.curve)
    assert found(low=usual.alpha / 2).curve[0][0] == usual.alpha / 2
    assert found(scope=sf.positions(1)).alpha > usual.alpha
    with pytest.warns(sf.SteerWarning, match="is only .* at the largest alpha tried, "):
        assert found(high=usual.alpha / 2).alpha == usual.alpha / 2
    assert math.isclose(found(2 * V).alpha, usual.alpha / 2, rel_tol=1e-3)  # the default range goes with the vector


def test_a_text_counts_as_generated_after_its_first_token(learned):
    everywhere = sf.discover.calibrate(learned, words(), V, TEXTS, **QUIET)
    generated = sf.discover.calibrate(learned, words(), V, TEXTS, scope=sf.generated, **QUIET)
    assert generated.curve == everywhere.curve
    last = sf.discover.calibrate(learned, words(), V, TEXTS, scope=sf.last_prompt_token, **QUIET)
    steered = perplexity(learned, V, last.alpha, sf.positions(0))
    assert math.isclose(last.ratio, steered / perplexity(learned), rel_tol=1e-4)


def test_the_default_range_is_in_units_of_the_hidden_state(learned):
    two = vector(sf.resid_post[0], sf.resid_post[2])
    rows = [words()(text).input_ids for text in TEXTS]
    acts = sf.activations(learned, words(), TEXTS, list(two.sites), **QUIET)
    expected = max(two.magnitude[site] / float(acts[site].norm(dim=-1).mean()) for site in two.sites)
    assert math.isclose(relative_norm(learned, two, rows), expected, rel_tol=1e-5)
    found = sf.discover.calibrate(learned, words(), two, TEXTS, **QUIET)
    assert math.isclose(found.curve[0][0], 0.01 / expected, rel_tol=1e-5)
    with pytest.warns(sf.SteerWarning):
        highest = sf.discover.calibrate(learned, words(), two, TEXTS, max_ratio=1e9, **QUIET).alpha
    assert math.isclose(highest, 10 / expected, rel_tol=1e-5)


def test_negative_layers_and_several_sites(learned):
    last = sf.SteeringVector({sf.resid_post[-2]: V[1]})
    assert sf.discover.calibrate(learned, words(), last, TEXTS, **QUIET).alpha == pytest.approx(
        sf.discover.calibrate(learned, words(), V, TEXTS, **QUIET).alpha
    )


def test_the_model_is_left_alone_and_contexts_do_not_reach_the_numbers(learned):
    ids = words()(TEXTS[0], return_tensors="pt").input_ids
    before = learned(ids).logits
    outside = Perplexity.of(Predictor.of(learned, words()), [ids[0].tolist()], "auto")()
    with sf.steer(learned, V, 3.0):
        assert Perplexity.of(Predictor.of(learned, words()), [ids[0].tolist()], "auto")() == outside
    assert torch.equal(learned(ids).logits, before)


def test_batches_are_halved_when_memory_runs_out(learned, monkeypatch):
    rows = [words()(text).input_ids for text in TEXTS]
    expected = Perplexity.of(Predictor.of(learned, words()), rows, 1)(sf.add(V))
    plain, sizes = Perplexity._loss, []

    def small(self, op, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no")
        return plain(self, op, batch)

    monkeypatch.setattr(Perplexity, "_loss", small)
    assert math.isclose(Perplexity.of(Predictor.of(learned, words()), rows, "auto")(sf.add(V)), expected, rel_tol=1e-6)
    assert max(sizes) > 2
    with pytest.raises(torch.OutOfMemoryError):
        Perplexity.of(Predictor.of(learned, words()), rows, 5)(sf.add(V))


# -- the search alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1.01, 1.1, 3.0])
@pytest.mark.parametrize("tolerance", [0.1, 1e-6])
def test_a_steady_curve_is_solved(bound, tolerance):
    exact = math.sqrt(math.log(bound))
    found, curve = search(lambda a: math.exp(a * a), bound, 1e-3, 10.0, tolerance)
    assert found <= exact <= found * (1 + tolerance) and curve[found] <= bound


def test_a_curve_that_is_not_steady_gives_a_point_that_was_measured():
    def ratio(alpha):
        return 1.0 + 0.2 * (0.9 < alpha < 1.1 or alpha > 5)

    found, curve = search(ratio, 1.1, 0.1, 100.0, 0.01)
    assert curve[found] <= 1.1 and ratio(found) <= 1.1
    assert all(curve[alpha] <= 1.1 for alpha in curve if alpha <= found)


def test_what_is_no_number_exceeds_the_bound():
    for bad in (math.nan, math.inf):
        found, curve = search(lambda alpha, bad=bad: 1.0 if alpha < 0.5 else bad, 1.1, 0.1, 10.0, 0.01)
        assert 0.49 < found < 0.5 and curve[found] == 1.0


def test_the_ends_of_the_range():
    assert search(lambda _: 1.0, 1.1, 0.1, 3.0, 0.01) == (
        3.0,
        {0.1: 1.0, 0.2: 1.0, 0.4: 1.0, 0.8: 1.0, 1.6: 1.0, 3.0: 1.0},
    )
    assert search(lambda _: 2.0, 1.1, 0.1, 3.0, 0.01) == (None, {0.1: 2.0})
    assert search(lambda _: 1.0, 1.1, 3.0, 3.0, 0.01) == (3.0, {3.0: 1.0})
    found, _ = search(lambda a: 1.0 if a < 0.7 else 2.0, 1.1, 0.1, 10.0, 1e-300)  # no finer than floats are
    assert found < 0.7 <= math.nextafter(found, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_ratio": 1.0},
            "`max_ratio` must be a finite number > 1, got 1.0; the unsteered model has 1, and 1.1 allows 10 %",
        ),
        ({"max_ratio": "high"}, "`max_ratio` must be a finite number > 1"),
        ({"sign": 0}, "sign must be 1 or -1, not 0."),
        ({"low": 0.0}, "`low` must be a finite number > 0, got 0.0."),
        ({"high": math.inf}, "`high` must be a finite number > 0, got inf."),
        ({"tolerance": -1}, "`tolerance` must be a finite number > 0, got -1."),
        ({"low": 2.0, "high": 1.0}, "The range from low=2 to high=1 is empty; pass low below high."),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device."),
        ({"texts": []}, "texts is empty; pass at least one text."),
        ({"v": 0 * V}, "The vector is zero at all its sites, so no strength changes anything; pass another vector."),
        ({"v": 3}, "calibrate takes a SteeringVector, not a int"),
        ({"v": vector(sf.resid_post[9])}, "resid_post[9] is out of range"),
        ({"low": 40.0, "high": 50.0}, "No alpha from 40 to 50 keeps the perplexity ratio within 1.1: it is "),
        ({"scope": 3}, "scope"),
    ],
)
def test_errors_by_their_text(learned, options, message):
    given = {"v": V, "texts": TEXTS, **options}
    with pytest.raises(sf.SteerError) as caught:
        sf.discover.calibrate(learned, words(), given.pop("v"), given.pop("texts"), **QUIET, **given)
    assert message in str(caught.value)


def test_pitfall_28_a_text_of_one_token_is_refused(tiny):
    with pytest.raises(sf.DataError) as caught:
        sf.discover.calibrate(tiny, words(bos=False), V, ["a b", "c"], **QUIET)
    assert "texts[1] has 1 token, and the first token of a text is not predicted; pass longer" in str(caught.value)


def test_a_model_that_gives_no_numbers_is_refused(tiny):
    with torch.no_grad():
        tiny.lm_head.weight.fill_(float("nan"))
    with pytest.raises(sf.DataError, match="The unsteered model's loss on the texts is nan a token; pass other texts"):
        sf.discover.calibrate(tiny, words(), V, TEXTS, **QUIET)


def test_progress_shows_a_bar(learned, capsys):
    sf.discover.calibrate(learned, words(), V, TEXTS, tolerance=0.5, progress=True)
    assert "Calibrating" in capsys.readouterr().err
    sf.discover.calibrate(learned, words(), V, TEXTS, tolerance=0.5, progress=False)
    assert not capsys.readouterr().err
