"""The verdict claims what was planted and no more."""

import numpy as np
import pytest

from steerfn.evaluate._pairs import analyse, plan_pairs
from steerfn.metrics._metric import Metric
from steerfn.reporting._measure import Costs
from steerfn.reporting._verdict import DESCRIBING, FIT, describes, verdict

NOTHING = Costs()
NONE = "No effect could be shown."


def planted(shifts, n=40, seed=0, better=None, costs=NOTHING, plain=True, draws=5, empty=()):
    """The verdict on metrics with given shifts of the vector and of the random one, in noise of 0.3."""
    random = np.random.default_rng(seed)
    values, metrics = {}, {}
    for name, (vector, control) in shifts.items():
        base = random.normal(size=n)
        values[name] = {
            "unsteered": base,
            "v": base + vector + 0.3 * random.normal(size=n),
            "random like v": base + control + 0.3 * random.normal(size=(draws, n)),
        }
        if not plain:
            del values[name]["unsteered"]
        for condition in values[name] if name in empty else ():
            values[name][condition] = np.full_like(values[name][condition], np.nan)
        metrics[name] = Metric(name, lambda texts: [0.0] * len(texts), better)
    return verdict(analyse(values, plan_pairs(["v"]), resamples=999), metrics, costs)


@pytest.mark.parametrize(
    ("vector", "control", "level", "headline"),
    [
        (0.0, 0.0, "not shown", NONE),
        (1.0, 0.0, "shown", "An effect was shown: the vector raises tone."),
        (-1.0, 0.0, "shown", "An effect was shown: the vector lowers tone."),
        (1.0, 1.0, "like random", "No effect beyond that of a random vector of the same length could be shown."),
        # The random vector does even more: what differs between the two goes the other way.
        (1.0, 2.0, "like random", "No effect beyond that of a random vector of the same length could be shown."),
        # Only the random vector does something.
        (0.0, 1.0, "not shown", NONE),
    ],
)
def test_it_needs_a_difference_to_the_unsteered_model_and_to_random_vectors(vector, control, level, headline):
    found = planted({"tone": (vector, control)})
    assert (found.level, found.headline) == (level, headline)
    assert "Tested on 40 prompts with 1 metric" in found.reasons[0] and "correction for 1 metric." in found.reasons[0]
    assert found.reasons[-1] == FIT


def test_metrics_of_the_text_carry_no_effect_on_behaviour():
    found = planted({"length": (1.0, 0.0)})
    assert found.level == "text only"
    assert found.headline == "The texts change, but whether the behaviour does was not measured."
    assert "name a metric of it" in found.reasons[1]
    both = planted({"tone": (0.0, 0.0), "length": (1.0, 0.0)})
    assert (both.level, both.headline) == ("text only", "The texts change, but no effect on tone could be shown.")
    assert planted({"tone": (1.0, 0.0), "length": (1.0, 0.0)}).headline.endswith("raises tone.")
    assert describes("repetition(n=3)") and describes("length") and not describes("sentiment")


def test_every_metric_that_describes_is_one_that_there_is():
    import steerfn as sf

    assert set(sf.metrics.names()) >= DESCRIBING


def test_costs_are_in_the_headline():
    shift = {"tone": (1.0, 0.0)}
    assert planted(shift).headline.endswith("raises tone.")
    priced = planted(shift, costs=Costs(("perplexity rises by half",), ("repetition up to 7 %",)))
    assert priced.headline.endswith("raises tone, at a cost.")
    assert {"Cost: perplexity rises by half.", "Not excluded: repetition up to 7 %."} <= set(priced.reasons)
    assert planted(shift, costs=Costs((), ("x",))).headline.endswith(", at a cost that cannot be excluded.")
    assert planted({"tone": (0.0, 0.0)}, costs=Costs((), ("x",))).headline == NONE
    assert planted({"tone": (0.0, 0.0)}, costs=Costs(("x",))).headline == "No effect could be shown, but a cost was."


def test_a_change_for_the_worse_is_called_one():
    worse = "For tone, lower is better: this is a change for the worse."
    assert worse in planted({"tone": (1.0, 0.0)}, better="lower").reasons
    assert worse not in planted({"tone": (-1.0, 0.0)}, better="lower").reasons
    assert worse not in planted({"tone": (1.0, 0.0)}).reasons


def test_a_change_that_a_random_vector_makes_too_is_told_beside_one_that_it_does_not():
    found = planted({"tone": (1.0, 0.0), "warmth": (1.0, 1.0)})
    assert found.headline == "An effect was shown: the vector raises tone."
    assert "The change of warmth could not be told from that which a random vector makes." in found.reasons


def test_a_metric_without_unsteered_value_is_against_random_vectors_alone():
    found = planted({"tone": (1.0, 0.0)}, plain=False)
    assert found.headline == "An effect was shown: the vector raises tone beyond what a random vector does."
    assert planted({"tone": (0.0, 0.0)}, plain=False).level == "not shown"


@pytest.mark.parametrize("plain", [True, False])
def test_one_random_vector_shows_nothing_and_the_verdict_says_why(plain):
    found = planted({"tone": (1.0, 0.0), "warmth": (1.0, 0.0)}, plain=plain, draws=1)
    assert found.level == ("like random" if plain else "not shown")
    assert "For tone and warmth fewer than five random vectors have numbers" in found.reasons[0]


def test_a_metric_without_numbers_takes_nothing_from_another():
    found = planted({"tone": (1.0, 0.0), "warmth": (0.0, 0.0)}, empty=("warmth",))
    assert found.headline == "An effect was shown: the vector raises tone."
    assert "fewer than five" not in found.reasons[0] and "cannot show anything" not in found.reasons[0]


def test_too_few_prompts_show_nothing_however_large_the_difference():
    found = planted({"tone": (100.0, 0.0)}, n=5)
    assert found.level == "not shown" and "use at least 6 prompts." in found.reasons[0]
    nothing = verdict((), {}, NOTHING)
    assert nothing.headline == NONE and nothing.reasons[0].startswith("No metric has a number under two conditions")


def test_under_the_null_an_effect_is_shown_no_more_often_than_allowed():
    """Of 100 reports on nothing, more than 11 would be, at a rate of 5 %, one case in 200."""
    shown = sum(planted({"tone": (0.0, 0.0)}, n=20, seed=seed).level == "shown" for seed in range(100))
    assert shown <= 11
