"""The scope outside tool calls against a plain walk over each row's tokens, and what it is made of."""

import pickle
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tool_words import CLOSE, END, OPEN, PIECES, pieces, tool_words
from words import words

import steerfn as sf
from steerfn.model import value_sha256
from steerfn.operators._marks import Marks
from steerfn.operators._row_ids import PAD, RowIds
from steerfn.operators._token_scope import token_scopes

TOKENS = sf.outside_tool_calls(tool_words())
ADD = sf.add(sf.SteeringVector({0: torch.ones(1)}))


def outside(tokens, opens, closes):
    """Token by token: a token is a call's if it is inside one before it, or after it."""
    inside, result = False, []
    for token in tokens:
        before = inside
        inside = token in opens or (inside and token not in closes)
        result.append(not (before or inside))
    return result


def outside_in_text(texts, opens, closes):
    """The same, character by character; an added token is a list of its text, and a character of its own."""
    inside, written, result = False, [], []
    for text in texts:
        before = inside
        for letter in text:
            written.append(letter)
            ends = [mark for mark in (*opens, *closes) if written[-len(mark) :] == list(mark)]
            inside = bool(ends and ends[0] in opens) or (inside and not ends)
        result.append(not (before or inside))
    return result


def steered(scope, ids, mask=None):
    """The tokens that a scope selects, through an operator."""
    ids = torch.tensor(ids)
    h = torch.zeros(*ids.shape, 1)
    info = sf.Info.of(h, token_ids=ids, attention_mask=None if mask is None else torch.tensor(mask))
    return (sf.at(scope, ADD)(h, info)[..., 0] == 1).tolist()


ROWS = st.lists(st.sampled_from([3, 4, OPEN, OPEN, CLOSE, CLOSE, END]), min_size=1, max_size=14)


@given(
    rows=st.lists(ROWS, min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    pad=st.sampled_from([0, OPEN, END]),
)
def test_rows_of_a_batch_are_as_alone(rows, side, pad):
    """Whatever pads with, it is no mark."""
    width = max(map(len, rows))
    pads = [[pad] * (width - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    zeros = [[0] * len(each) for each in pads]
    ids, mask = (
        [p + r if side == "left" else r + p for p, r in zip(a, b, strict=True)]
        for a, b in ((pads, rows), (zeros, ones))
    )
    selected = steered(TOKENS, ids, mask)
    for row, found, real in zip(rows, selected, mask, strict=True):
        expected = outside(row, {OPEN}, {CLOSE, END})
        assert [yes for yes, is_real in zip(found, real, strict=True) if is_real] == expected
        assert steered(TOKENS, [row]) == [expected]


@given(ids=st.lists(st.integers(0, len(PIECES) + 1), min_size=1, max_size=24))
def test_marks_written_in_pieces(ids):
    """A mark is its text however it is cut; an added token is none of it, though its text holds it."""
    tokenizer = pieces(["<|im_end|>", "<tool_call>!"])
    scope = sf.outside_tool_calls(tokenizer, marks=("<tool_call>", "</tool_call>"))
    texts = [[*PIECES, ["<|im_end|>"], [None]][i] for i in ids]
    assert steered(scope, [ids]) == [outside_in_text(texts, ["<tool_call>"], ["</tool_call>", ("<|im_end|>",)])]


@given(ids=st.lists(st.integers(0, len(PIECES) + 1), min_size=1, max_size=24))
def test_marks_of_a_token_and_text(ids):
    """As the beginning of a role's turn is written, `<|im_start|>assistant`."""
    scope = sf.outside_tool_calls(pieces(), marks=("<|call|>tool", "_call<|call|>", "/"))
    texts = [[*PIECES, ["<|im_end|>"], ["<|call|>"]][i] for i in ids]
    opens, closes = [["<|call|>", *"tool"]], [[*"_call", "<|call|>"], "/", ["<|im_end|>"]]
    assert steered(scope, [ids]) == [outside_in_text(texts, opens, closes)]


@given(ids=st.lists(st.integers(0, len(PIECES) + 1), min_size=1, max_size=24), data=st.data())
def test_a_position_depends_on_the_ids_up_to_it_alone(ids, data):
    scope = sf.outside_tool_calls(pieces(), marks=("<tool_call>", "</tool_call>"))
    n = data.draw(st.integers(1, len(ids)))
    assert steered(scope, [ids[:n]])[0] == steered(scope, [ids])[0][:n]


def test_the_demo_tokenizer_writes_its_marks_in_pieces(demo):
    tokenizer = demo[1]
    scope = sf.outside_tool_calls(tokenizer, marks=("<tool_call>", "</tool_call>"))
    for before, call, after in [
        ("Sure. ", "<tool_call>", '\n{"name": "a"}\n</tool_call>\nDone.<|im_end|>'),
        ("x", "<tool_call>", '{"a": "</tool_cal"}</tool_call>!'),
        ("", "<tool_call>", "<|im_end|>\n<|im_start|>user\nHi"),
        ("(", "<tool_call>", ")<tool_call></tool_call>"),
    ]:
        text = before + call + after
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        start = len(before + call)
        end = min(
            at
            for mark in ("</tool_call>", "<|im_end|>")
            if (at := text.find(mark, start) + len(mark)) >= start + len(mark)
        )
        expected = [not (b >= start and a < end) for a, b in offsets]
        assert steered(scope, [ids]) == [expected] and not all(expected)


def test_a_quotation_is_no_mark():
    """A mark that is a token of the tokenizer is that token."""
    tokenizer = pieces(["<tool_call>", "</tool_call>"])
    scope = sf.outside_tool_calls(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(
        ["<tool_call", ">", "a", "<tool_call>", "a", "</tool_", "call>", "</tool_call>", "a"]
    )
    assert steered(scope, [ids]) == [[True, True, True, False, False, False, False, False, True]]


def test_a_call_ends_with_its_turn():
    tokenizer = tool_words()
    tokenizer.chat_template = "[TOOL_CALLS]"
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"], "eos_token": "</s>"})
    call, eos = tokenizer.convert_tokens_to_ids(["[TOOL_CALLS]", "</s>"])
    scope = sf.outside_tool_calls(tokenizer)
    assert steered(scope, [[3, call, 4, call, 4, eos, 5]]) == [[True, False, False, False, False, False, True]]


def test_scopes_combine_and_print():
    ids, mask = [[3, OPEN, 4, CLOSE, 5, 6]], None
    inside = [[False, True, True, True, False, False]]
    assert steered(~TOKENS, ids, mask) == inside
    assert steered(TOKENS & sf.positions(0, 1, 4), ids) == [[True, False, False, False, True, False]]
    assert steered(~TOKENS | sf.positions(5), ids) == [[False, True, True, True, False, True]]
    assert steered(TOKENS & sf.generated, ids) == [[False] * 5 + [True]]
    assert repr(sf.generated & ~TOKENS) == "(generated & ~outside_tool_calls)"
    assert sf.scopes.outside_tool_calls is sf.outside_tool_calls


def test_scopes_are_values():
    same, other = sf.outside_tool_calls(tool_words()), sf.outside_tool_calls(pieces(), marks=("<", ">"))
    assert same == TOKENS and hash(same) == hash(TOKENS) and same != other
    assert pickle.loads(pickle.dumps(TOKENS)) == TOKENS
    ops = [sf.at(scope, ADD) for scope in (TOKENS, same, other)]
    structures = [torch.utils._pytree.tree_structure(op) for op in ops]
    assert structures[0] == structures[1] != structures[2]
    assert value_sha256(ops[0]) == value_sha256(ops[1]) != value_sha256(ops[2])
    op = sf.rows([None, sf.chain(ops[0], sf.at(~(same | sf.prompt), ADD)), ops[2]])
    assert token_scopes(op) == (TOKENS, other) and token_scopes(sf.at(sf.prompt, ADD)) == ()


def test_transforms_reach_what_the_scope_lets_through():
    ids = torch.tensor([[3, OPEN, 4, CLOSE, 5]])
    h, v = torch.zeros(1, 5, 1), sf.SteeringVector({0: torch.ones(1)})
    info = sf.Info.of(h, token_ids=ids)
    alphas = torch.tensor([1.0, -2.0])
    together = torch.func.vmap(lambda a: sf.at(TOKENS, sf.add(v, a))(h, info))(alphas)
    assert torch.equal(together[:, 0, :, 0], alphas[:, None] * torch.tensor([1.0, 0, 0, 0, 1]))
    assert torch.func.grad(lambda a: sf.at(TOKENS, sf.add(v, a))(h, info).sum())(torch.tensor(1.0)) == 2


def test_rows_have_their_own_ids():
    ids = [[3, OPEN, 4], [OPEN, CLOSE, 5], [3, 4, 5]]
    h = torch.zeros(3, 3, 1)
    op = sf.rows([sf.at(TOKENS, ADD), None, sf.at(TOKENS, sf.ablate(sf.SteeringVector({0: torch.ones(1)})))])
    out = op(h + 2, sf.Info.of(h, token_ids=ids))[..., 0] - 2
    assert out.tolist() == [[1, 0, 0], [0, 0, 0], [-2, -2, -2]]


def test_each_scope_is_asked_once_a_pass(monkeypatch):
    asked = []
    between = Marks.between
    monkeypatch.setattr(Marks, "between", lambda self, ids: asked.append(1) or between(self, ids))
    row = RowIds.of(torch.tensor([[3, OPEN, PAD]]))
    assert row.mask(TOKENS).tolist() == [[True, False, False]] and torch.equal(row.mask(TOKENS), row.mask(TOKENS))
    assert asked == [1]


def test_refusals():
    with pytest.raises(sf.DataError, match=" knows of no tool calls: "):
        sf.outside_tool_calls(words())
    with pytest.raises(sf.DataError, match=re.escape("The mark '<call>' opens and '>' closes, but one of them ends")):
        sf.outside_tool_calls(pieces(), marks=("<call>", ">"))
    h = torch.zeros(1, 3, 1)
    with pytest.raises(sf.SteerError, match="^The scope outside_tool_calls is a function of all token ids of a row, "):
        sf.at(TOKENS, ADD)(h, sf.Info.of(h))
    with pytest.raises(sf.ShapeError, match=re.escape("The token ids have shape [3]; pass them in the shape [1, 3]")):
        sf.Info.of(h, token_ids=[3, 4, 5])
