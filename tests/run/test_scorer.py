"""What the engine does not compute: shared prompts, blocks below an operator, the LM head where nothing is scored."""

from collections import Counter

import numpy as np
import pytest
import torch
from steering import vector
from words import words

import steerfn as sf
from steerfn.run._scorer import Scorer
from steerfn.run._trees import Item, items_of, tree_of

PROMPT = tuple(range(5, 35))
ALPHAS = [-2.0, -1.0, 0.5, 1.0, 2.0]


def counted(model, run):
    """Tokens that pass each block and the LM head while something runs."""
    seen, handles = Counter(), []
    for name, module in [*((i, b.mlp.gate_proj) for i, b in enumerate(model.model.layers)), ("head", model.lm_head)]:

        def note(module, args, name=name):
            seen[name] += args[0].shape[0] * args[0].shape[1]

        handles.append(module.register_forward_pre_hook(note))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def scorer(model, scope, layer, items):
    ops = [sf.at(scope, sf.add(vector(sf.resid_post[layer]), alpha)) for alpha in ALPHAS]
    found = Scorer(model, items, ops)
    list(found.run())  # what the model can is asked at the first run
    return found


def test_after_the_prompt_a_prompt_runs_once_for_every_operator_and_continuation(tiny):
    items = [Item(PROMPT, ((40,), (41,), (42, 43)))]
    run = scorer(tiny, sf.generated, 1, items)
    seen = counted(tiny, lambda: list(run.run()))
    # The prompt but its last token once; then for each operator that token and the one input of the third text.
    assert seen[0] == seen[1] == 29 + len(ALPHAS) * 2
    assert seen[2] == len(ALPHAS) * 2  # after its attention the last block works on what predicts something
    assert seen["head"] == len(ALPHAS) * 2


def test_over_the_prompt_blocks_below_the_operator_run_once(tiny):
    items = [Item(PROMPT, ((40,), (41,)))]
    run = scorer(tiny, sf.everywhere, 1, items)
    seen = counted(tiny, lambda: list(run.run()))
    assert seen[0] == seen[1] == 30
    assert seen[2] == len(ALPHAS)  # one token that predicts, for each operator
    assert seen["head"] == len(ALPHAS)


def test_in_an_open_context_scores_add_up_with_it(tiny):
    items, op = [Item(PROMPT[:6], ((40, 41), (41,)))], sf.add(vector(sf.resid_post[1], seed=2))
    outer = sf.at(sf.generated, sf.add(vector(sf.resid_post[0], seed=3)))
    with sf.steer(tiny, outer):
        [found] = Scorer(tiny, items, [op, None]).run()
    [expected] = Scorer(tiny, items, [sf.chain(outer, op), outer]).run()
    np.testing.assert_allclose(found.log_probs[0], expected.log_probs[0], atol=1e-4)


def test_a_tree_holds_common_beginnings_once_and_no_last_token():
    tree = tree_of(Item((1, 2), ((3, 4, 5), (3, 4, 6), (3,), (7,))))
    assert tree.ids.tolist() == [1, 2, 3, 4] and tree.depth.tolist() == [0, 1, 2, 3] and tree.is_chain
    assert [(nodes.tolist(), tokens.tolist()) for nodes, tokens in tree.asked] == [
        ([1, 2, 3], [3, 4, 5]),
        ([1, 2, 3], [3, 4, 6]),
        ([1], [3]),
        ([1], [7]),
    ]
    fork = tree_of(Item((1,), ((2, 4), (3, 4))))
    assert fork.ids.tolist() == [1, 2, 3] and fork.depth.tolist() == [0, 1, 1] and not fork.is_chain
    assert fork.seen.tolist() == [[True, False, False], [True, True, False], [True, False, True]]


def test_memory_that_runs_out_halves_the_batch(tiny, monkeypatch):
    items = [Item(PROMPT[: 5 + i], ((40,), (41, 42))) for i in range(6)]
    op = sf.add(vector(sf.resid_post[1]))
    [whole] = Scorer(tiny, items, [op]).run()
    forward, sizes = type(tiny).forward, []

    def small(self, *args, **kwargs):
        rows, columns = kwargs["input_ids"].shape
        sizes.append(rows * columns)
        if rows > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny), "forward", small)
    monkeypatch.setattr(Scorer, "batches", lambda self: [list(range(6))])
    [halved] = Scorer(tiny, items, [op]).run()
    assert max(sizes) > 60
    by_item = dict(zip(whole.items, whole.log_probs, strict=True))
    for i, rows in zip(halved.items, halved.log_probs, strict=True):
        np.testing.assert_allclose(rows, by_item[i], atol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        list(Scorer(tiny, items, [op], batch_size=6).run())


def test_a_prompt_ends_where_its_continuations_begin_to_differ_from_it():
    [item] = items_of(words(), ["a b"], [" c d", " e"], False)
    assert item.prompt == tuple(words()("a b").input_ids)
    assert [words().decode(each) for each in item.continuations] == ["c d", "e"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [" b", 3]), "There are 1 prompts but 2 lists of continuations; pass one for each."),
        ((["a"], [[]]), "continuations[0] is []; pass a list of texts that is not empty."),
        ((["a"], " b"), "continuations is a list of texts for every prompt, or one list for each, not ' b'."),
        ((["a"], [""]), "The continuation of prompts[0] is ''; pass a text that is not empty."),
        (([], [" b"]), "prompts is empty"),
    ],
)
def test_errors_by_their_text(tiny, arguments, message):
    with pytest.raises(sf.DataError) as caught:
        sf.score(tiny, words(), *arguments, chat=False, progress=False)
    assert message in str(caught.value)


def test_scores_read_well(tiny):
    scores = sf.score(tiny, words(), ["a b", "c"], [" a", " b"], chat=False, progress=False)
    assert len(scores) == 2 and scores.tokens == ((1, 1), (1, 1))
    for row, shares, mass, choice in zip(scores.log_probs, scores.shares, scores.masses, scores.choices, strict=True):
        assert shares == pytest.approx(np.exp(row) / np.exp(row).sum())
        assert mass == pytest.approx(np.exp(row).sum()) and choice == int(np.argmax(row))
    lines = str(scores).splitlines()
    assert lines[0] == "a b" and lines[1].split()[-1] == "a'" and lines[3] == "c"


def test_a_scope_that_selects_nothing_warns(tiny):
    op = sf.at(sf.positions(80), sf.add(vector(sf.resid_post[1])))
    with pytest.warns(sf.SteerWarning, match="selected no token in any forward pass"):
        sf.score(tiny, words(), ["a b"], [" a", " b"], op, chat=False, progress=False)
