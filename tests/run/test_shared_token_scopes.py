"""What shares computation between rows gives, outside tool calls too, what a loop over single passes gives."""

import numpy as np
import pytest
import torch
from families import build
from steering import vector
from tool_words import CLOSE, END, OPEN, tool_words

import steerfn as sf
from steerfn.run import _generate_many
from steerfn.run._scorer import Scorer
from steerfn.run._trees import Item

MODEL, TOKENIZER = build("llama"), tool_words()
SCOPE = sf.outside_tool_calls(TOKENIZER)
V = vector(sf.resid_post[0], sf.resid_post[1], scale=2.0)
PROMPTS = ["a <tool_call> b </tool_call> c", "d e <tool_call> f", "g"]
SCOPES = {"outside": SCOPE, "generated": sf.generated & SCOPE, "inside": ~SCOPE}


@pytest.mark.filterwarnings("ignore:The scope:steerfn.SteerWarning")
def test_continuations_that_share_a_row_are_scored_as_alone():
    """One continuation opens a call, another does not: which tokens come before a token depends on the text."""
    items = [
        Item((5, 6, 7, 8), ((OPEN, 9, 10), (9, OPEN, 11, CLOSE, 12), (9, 10, 13))),
        Item((5, OPEN, 7), ((9, 10), (CLOSE, 10, 11), (9, END, 12))),
        Item((5, OPEN, 7, CLOSE, 8), ((9,), (10,))),
    ]
    ops = [None, *(sf.at(s, sf.add(V.select(i))) for s in SCOPES.values() for i in (0, 1)), sf.add(V)]
    for options in ({}, {"batch_size": 3}, {"share": False}):
        scores = {}
        for part in Scorer(MODEL, items, ops, **options).run():
            scores.update(zip(part.items, part.log_probs, strict=True))
        for i, item in enumerate(items):
            np.testing.assert_allclose(scores[i], [by_hand(item, op) for op in ops], atol=1e-4)


def by_hand(item, op):
    f, n, scores = sf.functional(MODEL), len(item.prompt), []
    for continuation in item.continuations:
        ids = torch.tensor([[*item.prompt, *continuation]])
        with torch.no_grad():
            logits = f(sf.identity if op is None else op, ids, prompt_length=n, use_cache=False).logits[0, n - 1 : -1]
        scores.append(float(logits.log_softmax(-1)[torch.arange(len(continuation)), ids[0, n:]].sum()))
    return scores


@pytest.mark.filterwarnings("ignore:The scope:steerfn.SteerWarning")
@pytest.mark.parametrize("scope", SCOPES)
def test_shared_prompts_of_sweeps_give_the_tokens_of_a_loop(scope, monkeypatch):
    shared, prefill = [], _generate_many.prefill
    monkeypatch.setattr(_generate_many, "prefill", lambda *given: shared.append(prefill(*given)) or shared[-1])
    options = {"chat": False, "max_new_tokens": 5}
    alphas = [0.0, 1.0, 4.0]
    swept = sf.sweep(MODEL, TOKENIZER, PROMPTS[:2], V, alphas, scope=SCOPES[scope], progress=False, **options).texts
    assert all(shared) and len(shared)
    for texts, alpha in zip(swept, alphas, strict=True):
        op = sf.at(SCOPES[scope], sf.add(V, alpha))
        assert list(texts) == [sf.generate(MODEL, TOKENIZER, each, op, **options)[0] for each in PROMPTS[:2]]


@pytest.mark.filterwarnings("ignore:The scope:steerfn.SteerWarning")
def test_prompts_with_steerings_of_their_own():
    ops = [sf.at(SCOPE, sf.add(V)), sf.at(sf.generated & SCOPE, sf.ablate(V)), sf.at(~SCOPE, sf.add(V)), None]
    prompts = [*PROMPTS, PROMPTS[1]]
    together = sf.generate(MODEL, TOKENIZER, prompts, ops, max_new_tokens=6)
    alone = [sf.generate(MODEL, TOKENIZER, p, op, max_new_tokens=6)[0] for p, op in zip(prompts, ops, strict=True)]
    assert list(together) == alone
    beams = sf.generate(MODEL, TOKENIZER, prompts, ops, max_new_tokens=6, num_beams=2)
    assert list(beams) == [
        sf.generate(MODEL, TOKENIZER, p, op, max_new_tokens=6, num_beams=2)[0]
        for p, op in zip(prompts, ops, strict=True)
    ]


def test_a_baked_checkpoint_has_no_such_scope(tmp_path):
    with pytest.raises(sf.SteerError, match="cannot be baked for the scope outside_tool_calls"):
        sf.bake(MODEL, TOKENIZER, sf.at(SCOPE, sf.add(V)), tmp_path / "baked")
