"""What a report does not show: every rule speaks where it should, and only there."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from steerfn.discover import Quality
from steerfn.discover._engine._chance import Chance
from steerfn.evaluate._pairs import analyse, plan_pairs
from steerfn.metrics._metric import Metric
from steerfn.reporting._verdict import Facts, limits


def effect(n=40, shift=1.0, about="How warm it is, by its words."):
    random = np.random.default_rng(0)
    base = random.normal(size=n)
    values = {name: base + by * random.uniform(0.9, 1.1, size=n) for name, by in (("unsteered", 0), ("v", shift))}
    values["random like v"] = base + 1e-3 * random.normal(size=(5, n))
    return SimpleNamespace(
        prompts=[f"prompt {i}" for i in range(n)],
        unit_of=tuple(range(n)),
        about={"groups": None},
        pairs=analyse({"tone": values}, plan_pairs(["v"]), resamples=199),
        metrics={"tone": Metric("tone", len, about=about)},
    )


def quality(auc, **more):
    return Quality(auc, 1.0, 0.2, 0.3, (20, 20), 5, **more)


USUAL = Facts(
    effect=effect(),
    alpha=2.0,
    max_new_tokens=40,
    sampled=True,
    draws=3,
    own_prompts=False,
    overlap=(),
    made_from=(30, 30),
    data=(20, 20),
    match="same",
    aucs=(0.9,),
    best=quality(0.95),
    chance=Chance(0.6, 0.7, 0.005, 30, 199),
    lint=0,
    passages=16,
    own_passages=False,
    questions=False,
    unchanged=True,
)
CASES = {
    "changed": ({"unchanged": False}, "did not give the same logits"),
    "another model": ({"match": "other"}, "made from a model of another architecture; what it means here is unknown."),
    "no model": ({"match": "unknown"}, "does not say from which model it was made"),
    "no counts": ({"made_from": None}, "does not say from how many texts it was made"),
    "same counts": ({"made_from": (20, 20)}, "as many texts as the vector was made from"),
    "lint": ({"lint": 2}, "Section 3 has 2 findings on the data"),
    "no held-out AUC": ({"best": quality(None, reason="the folds")}, "Cross-validation tells nothing here (the folds)"),
    "low held-out AUC": (
        {"best": quality(0.61)},
        "The best held-out AUC of any layer is 0.61, where 0.5 is chance: the",
    ),
    "chance": (
        {"chance": Chance(0.6, 0.7, 0.2, 30, 199)},
        "is 0.95, where 0.5 is chance for one layer; for the best of",
    ),
    "no chance": ({"chance": None}, "what chance gives is not known: that the data's two sides"),
    "other weights": ({"match": "other weights"}, "made from other weights than these, of the same architecture"),
    "architecture": ({"match": "architecture"}, "a fine-tune has the same fingerprint"),
    "wrong way": ({"aucs": (0.9, 0.2)}, "its AUC on the data is 0.20, below chance"),
    "hardly": ({"aucs": (0.9, 0.55)}, "its AUC on the data is 0.55, where 0.5 is chance: whatever it does"),
    "overlap": ({"overlap": ("a b",)}, "Of the 40 prompts 1 can also be found in the data (first 'a b')"),
    "own prompts": ({"own_prompts": True}, "neutral ones that come with steerfn"),
    "few prompts": ({"effect": effect(n=12)}, "There are only 12 prompts."),
    "zero": ({"effect": effect(shift=0.0)}, "The interval of the difference in tone includes 0."),
    "unknown metric": ({"effect": effect(about="")}, "tone is a metric of the user's own"),
    "few controls": ({"draws": 4}, "Only 4 random vectors drawn: fewer than 5 do not show what others do"),
    "greedy": ({"sampled": False}, "decoded greedily"),
    "own passages": ({"own_passages": True}, "plain text that come with steerfn, all in English"),
}


def test_pairs_that_are_told_apart_are_told_apart_though_their_texts_are_not():
    low = dataclasses.replace(USUAL, best=quality(0.61, pair_accuracy=0.88))
    assert not any("hardly told apart" in each for each in limits(low))


@pytest.mark.parametrize("case", CASES)
def test_a_rule_speaks_where_it_should_and_only_there(case):
    change, text = CASES[case]
    assert not any(text in each for each in limits(USUAL))
    assert sum(text in each for each in limits(dataclasses.replace(USUAL, **change))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "What it measures: How warm it is, by its words.",
        "One strength was tried (alpha 2).",
        "Texts end after 40 tokens.",
        "Side effects were measured on 16 passages of plain text. Other languages, code, long contexts, knowledge",
        "All of this is about averages.",
        "on this model at this strength",
        "not the same as removing what the model knows",
    ],
)
def test_some_things_are_always_said(text):
    assert sum(text in each for each in limits(USUAL)) == 1
