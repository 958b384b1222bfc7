"""Which token each position holds."""

import re

import pytest
import torch

import steerfn as sf


def test_plain_tokens():
    tokens = sf.operators.Tokens.plain(2, 3)
    assert tokens.index.tolist() == [[0, 1, 2]] * 2 and tokens.prompt_length.tolist() == [[3], [3]]
    assert tokens.real is None and tokens.copies == 1
    assert tokens.generated_index.tolist() == [[-2, -1, 0]] * 2


def test_padded_tokens_count_real_ones():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 1]])
    tokens = sf.operators.Tokens.plain(4, 5, mask)
    for row in range(4):
        seen = [int(i) for i, m in zip(tokens.index[row], mask[row], strict=True) if m]
        assert seen == list(range(int(mask[row].sum()))) and tokens.prompt_length[row, 0] == len(seen)
    assert torch.equal(tokens.real, mask.bool())
    last = (tokens.generated_index == 0) & tokens.real
    assert last.nonzero().tolist() == [[0, 4], [1, 2], [2, 4], [3, 4]]


def test_info_of_a_hidden_state():
    h = torch.zeros(2, 3, 4)
    info = sf.Info.of(h)
    assert info.site == sf.resid_post[0] and info.reads is None and info.selections is None
    assert sf.Info.of(h, sf.attn_out[2]).site == sf.attn_out[2]
    for given, lengths in [(2, [[2], [2]]), (torch.tensor([1, 3]), [[1], [3]]), ([1, 3], [[1], [3]])]:
        assert sf.Info.of(h, prompt_length=given).tokens.prompt_length.tolist() == lengths
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    tokens = sf.Info.of(h, attention_mask=mask, prompt_length=1).tokens
    assert tokens.prompt_length.tolist() == [[1], [1]] and torch.equal(tokens.real, mask.bool())


def test_refusals():
    h = torch.zeros(2, 3, 4)
    text = "The attention mask has shape [2, 4]; pass one of shape [2, 3], as the hidden state has."
    with pytest.raises(sf.ShapeError, match=f"^{re.escape(text)}$"):
        sf.Info.of(h, attention_mask=torch.ones(2, 4))
    text = "There are 3 prompt lengths for 2 rows; pass one, or one for each row."
    with pytest.raises(sf.ShapeError, match=f"^{re.escape(text)}$"):
        sf.Info.of(h, prompt_length=[1, 2, 3])


def test_info_and_tokens_are_pytrees():
    info = sf.Info.of(torch.zeros(2, 3, 4), prompt_length=2)
    leaves, structure = torch.utils._pytree.tree_flatten(info)
    back = torch.utils._pytree.tree_unflatten(leaves, structure)
    assert back.site == info.site and torch.equal(back.tokens.index, info.tokens.index)
