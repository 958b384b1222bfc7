"""Scopes against Python's own indexing of each row's real tokens, and what is refused."""

import itertools
import re

import pytest
import torch

import steerfn as sf

ADD = sf.add(sf.SteeringVector({0: torch.ones(1)}))
SCOPES = {
    "prompt": (sf.prompt, lambda p, n: range(p)),
    "generated": (sf.generated, lambda p, n: range(p - 1, n)),
    "last": (sf.last_prompt_token, lambda p, n: [p - 1]),
    "everywhere": (sf.everywhere, lambda p, n: range(n)),
    "first": (sf.positions(0), lambda p, n: [0]),
    "several": (sf.positions(0, 2, -1), lambda p, n: [0, 2, p - 1]),
    "list": (sf.positions([1, 3]), lambda p, n: [1, 3]),
    "range": (sf.positions(range(1, 3)), lambda p, n: [1, 2]),
    "negative": (sf.positions(-2), lambda p, n: [p - 2]),
    "none": (sf.positions(50, -50), lambda p, n: []),
    "slice": (sf.positions(slice(1, 3)), lambda p, n: range(n)[1:3]),
    "from": (sf.positions(slice(2, None)), lambda p, n: range(n)[2:]),
    "up to": (sf.positions(slice(3)), lambda p, n: range(n)[:3]),
    "step": (sf.positions(slice(1, None, 2)), lambda p, n: range(n)[1::2]),
    "from the end": (sf.positions(slice(-2, None)), lambda p, n: range(n)[max(p - 2, 0) :]),
    "to the end": (sf.positions(slice(None, -1)), lambda p, n: range(p)[:-1]),
    "inside": (sf.positions(slice(-3, -1)), lambda p, n: range(p)[-3:-1]),
    "inside by 2": (sf.positions(slice(-4, -1, 2)), lambda p, n: range(p)[-4:-1:2]),
    "beyond": (sf.positions(slice(-99, 99)), lambda p, n: range(n)),
    "empty": (sf.positions(slice(3, 1)), lambda p, n: []),
    "slice and int": (sf.positions(slice(0, 1), -1), lambda p, n: [0, p - 1]),
    "not": (~sf.prompt, lambda p, n: range(p, n)),
    "and not": (sf.prompt & ~sf.last_prompt_token, lambda p, n: range(p - 1)),
    "or": (sf.positions(0) | sf.generated, lambda p, n: [0, *range(p - 1, n)]),
    "or everywhere": (sf.positions(0) | sf.everywhere, lambda p, n: range(n)),
    "and everywhere": (sf.everywhere & sf.positions(1) & sf.everywhere, lambda p, n: [1]),
    "nowhere": (~sf.everywhere, lambda p, n: []),
}


def steered(scope, real, prompt_length):
    """The real tokens that a scope selects, by row, through an operator."""
    mask = torch.tensor(real)
    h = torch.zeros(*mask.shape, 1)
    info = sf.Info.of(h, prompt_length=prompt_length, attention_mask=mask)
    hit = sf.at(scope, ADD)(h, info)[..., 0] == 1
    return [row[keep.bool()].nonzero().flatten().tolist() for row, keep in zip(hit, mask, strict=True)]


@pytest.mark.parametrize("name", SCOPES)
def test_positions_count_real_tokens(name):
    """Prompts of 1 to 5 tokens, 0 to 3 generated: alone, and padded left, right or in the middle."""
    scope, expected = SCOPES[name]
    for prompt, new in itertools.product(range(1, 6), range(4)):
        n = prompt + new
        want = [i for i in sorted(set(expected(prompt, n))) if 0 <= i < n]
        rows = [[1] * n + [0] * 2, [0] * 2 + [1] * n, [1] * (n - 1) + [0] * 2 + [1]]
        assert steered(scope, [[1] * n], prompt) == [want]
        assert steered(scope, rows, prompt) == [want] * 3
        assert steered(scope, rows, torch.tensor([prompt] * 3)) == [want] * 3


def test_rows_have_prompts_of_their_own():
    real = [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]]
    assert steered(sf.last_prompt_token, real, torch.tensor([2, 3, 1])) == [[1], [2], [0]]
    assert steered(sf.generated, real, torch.tensor([4, 1, 2])) == [[3], [0, 1, 2], [1]]


def test_without_a_prompt_length_everything_is_prompt():
    h = torch.zeros(2, 4, 1)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    info = sf.Info.of(h, attention_mask=mask)
    assert (sf.prompt.mask(info.tokens) | ~mask.bool()).all()
    assert (sf.generated.mask(info.tokens) & mask.bool()).nonzero().tolist() == [[0, 3], [1, 1]]


def test_a_cached_forward_selects_what_the_whole_one_does():
    whole = sf.Info.of(torch.zeros(1, 6, 1), prompt_length=3).tokens
    for name, (scope, _) in SCOPES.items():
        mask = scope.mask(whole)
        for i in range(6):
            step = sf.operators.Tokens(whole.index[:, i : i + 1], whole.prompt_length, None)
            part = scope.mask(step)
            assert (part is None) == (mask is None), name
            assert mask is None or torch.equal(part, mask[:, i : i + 1]), name


def test_tokens_outside_keep_their_bits():
    h = torch.tensor([[[-0.0], [-0.0]]])
    out = sf.at(sf.positions(1), sf.add(sf.SteeringVector({0: torch.ones(1)}), 2.0))(h, sf.Info.of(h))
    assert torch.signbit(out[0, 0, 0]) and out[0, 1, 0] == 2


def test_equal_scopes_are_equal_and_others_are_not():
    scopes = [scope for scope, _ in SCOPES.values()]
    again = [sf.positions(0), ~sf.prompt, sf.prompt & ~sf.last_prompt_token, sf.positions(slice(1, 3))]
    for scope in again:
        assert scopes.count(scope) == 1 and {scope: 1}[scopes[scopes.index(scope)]] == 1
    assert len(set(scopes)) == len(scopes)
    assert sf.positions(0) != sf.positions(slice(0, 1)) and sf.prompt != sf.generated and sf.prompt != "prompt"


def test_repr():
    assert repr(sf.prompt & ~sf.last_prompt_token | sf.positions(0, slice(2, None))) == (
        "((prompt & ~last_prompt_token) | positions(0, slice(2, None, 1)))"
    )
    assert repr(sf.everywhere) == "everywhere" and repr(sf.generated) == "generated"


def test_refusals():
    fix = "use sf.everywhere, sf.prompt, sf.generated, sf.last_prompt_token or sf.positions(...), combined with | & ~."
    text = f"A scope is needed, not 'prompt' of type str; {fix}"
    for make in (lambda: sf.at("prompt", ADD), lambda: sf.prompt | "prompt", lambda: sf.prompt & "prompt"):
        with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
            make()
    text = "positions needs at least one position, such as sf.positions(0) or sf.positions(slice(2, 5))."
    for empty in ((), ([],), (range(0),)):
        with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
            sf.positions(*empty)
    for bad in (1.5, "1", None, True, slice(1.5, None), slice("a")):
        with pytest.raises(
            sf.SteerError, match=f"^{re.escape(f'A position is an int or a slice of ints, not {bad!r}.')}$"
        ):
            sf.positions(bad)
    for step in (0, -1):
        text = f"The step of slice(None, None, {step}) is {step}; use a step of 1 or more."
        with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
            sf.positions(slice(None, None, step))
