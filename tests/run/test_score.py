"""Scores equal a plain loop: one steered forward pass for each operator, prompt and continuation."""

import contextlib

import families
import numpy as np
import pytest
import torch

import steerfn as sf
from steerfn.run._scorer import Scorer
from steerfn.run._trees import Item

ITEMS = [
    Item((5, 6, 7, 8, 9, 10, 11), ((12,), (13,), (14,))),
    Item((5, 6, 7), ((20, 21, 22), (20, 21, 23, 24), (30,))),
    Item((40,), ((41, 42),)),
    Item(tuple(range(50, 69)), ((70, 71), (70, 72))),
]
SCOPES = {
    "everywhere": sf.everywhere,
    "generated": sf.generated,
    "prompt": sf.prompt,
    "last": sf.last_prompt_token,
    "late": sf.positions(slice(5, None)),
    "answer": sf.generated & ~sf.prompt,
}


def operators(model, scope=sf.everywhere):
    """Operators at several sites, of every kind of trunk."""
    layers = sf.layout(model).n_layers
    torch.manual_seed(3)

    def v(*sites):
        return sf.SteeringVector({site: torch.randn(sf.layout(model).d_model) for site in sites})

    ops = [
        sf.add(v(sf.resid_post[0]), 0.7),
        sf.add(v(sf.resid_post[0]), -0.4),
        sf.add(v(sf.resid_post[layers - 1])),
        sf.ablate(v(sf.resid_pre[1])),
        sf.chain(sf.add(v(sf.resid_pre[0])), sf.rotate(v(sf.resid_post[1]), 0.3)),
        sf.when(sf.cosine_above(v(sf.resid_post[0]), 0.0), sf.add(v(sf.resid_post[1]))),
        sf.when(sf.on_prompt(sf.cosine_above(v(sf.resid_post[0]), 0.0), by="mean"), sf.add(v(sf.resid_post[1]))),
    ]
    return [None, *(sf.at(scope, op) for op in ops), sf.scheduled(ops[0], [1.0, 0.5, 0.0])]


def by_hand(model, item, op):
    found = []
    for continuation in item.continuations:
        ids = torch.tensor([[*item.prompt, *continuation]])
        n = len(item.prompt)
        context = contextlib.nullcontext() if op is None else sf.steer(model, op, prompt_length=n)
        with torch.no_grad(), context:
            logits = model(ids, use_cache=False).logits[0]
        after = torch.arange(n - 1, ids.shape[1] - 1)
        found.append(float(logits[after].log_softmax(-1)[torch.arange(len(continuation)), ids[0, n:]].sum()))
    return found


def by_engine(model, items, ops, **options):
    scorer = Scorer(model, items, ops, **options)
    found = {i: values for part in scorer.run() for i, values in zip(part.items, part.log_probs, strict=True)}
    return [found[i] for i in range(len(items))]


@pytest.mark.filterwarnings("ignore:The scope:steerfn.SteerWarning")
@pytest.mark.parametrize("scope", SCOPES)
def test_every_way_equals_a_loop(tiny, scope):
    ops = operators(tiny, SCOPES[scope])
    for options in ({}, {"batch_size": 3}, {"share": False}):
        for item, values in zip(ITEMS, by_engine(tiny, ITEMS, ops, **options), strict=True):
            expected = [by_hand(tiny, item, op) for op in ops]
            np.testing.assert_allclose(values, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The scope:steerfn.SteerWarning")
@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "gemma2", "gemma3", "qwen3", "phi", "mistral", "mixtral", "bloom", "mamba"]
)
def test_other_families(family):
    model = families.build(family)
    for scope in ("everywhere", "generated"):
        ops = operators(model, SCOPES[scope])[:5]
        for item, values in zip(ITEMS, by_engine(model, ITEMS, ops), strict=True):
            np.testing.assert_allclose(values, [by_hand(model, item, op) for op in ops], atol=1e-4)
