"""Strength as a function of the generated-token index."""

import re

import pytest
import torch

import steerfn as sf

V = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, -2.0])})
H = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([3, 5])
INFO = sf.Info.of(H, prompt_length=LENGTHS)


def by_hand(strength_of, alpha=1.0):
    """h + s(t) alpha v, token by token."""
    out = H.clone()
    for b in range(2):
        for i in range(6):
            t = i - (int(LENGTHS[b]) - 1)
            if t >= 0:
                out[b, i] = H[b, i] + strength_of(t) * alpha * V[0]
    return out


@pytest.mark.parametrize("numbers", [[2.0], [1.0, 0.5, 0.0], [0.0, 1.0], [3.0, -1.0, 0.25, 0.75, 9.0]])
def test_a_list_goes_on_with_its_last_number(numbers):
    expected = by_hand(lambda t: numbers[min(t, len(numbers) - 1)], 2.0)
    for schedule in (numbers, tuple(numbers), torch.tensor(numbers), torch.tensor(numbers, dtype=torch.float64)):
        out = sf.scheduled(sf.add(V, 2.0), schedule)(H, INFO)
        assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(sf.scheduled(sf.add(V), [1, 2])(H, INFO), by_hand(lambda t: min(t + 1, 2)), atol=1e-6)


def test_a_function_is_given_token_indices():
    seen = []

    def fading(t):
        seen.append(t)
        return 0.5**t

    out = sf.scheduled(sf.add(V), fading)(H, INFO)
    assert torch.allclose(out, by_hand(lambda t: 0.5**t), atol=1e-6)
    assert seen[0].tolist() == [[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1]] and seen[0].dtype == torch.int64
    out = sf.scheduled(sf.add(V), lambda t: torch.tensor(2.0))(H, INFO)
    assert torch.allclose(out, by_hand(lambda t: 2.0), atol=1e-6)


def test_the_prompt_before_its_last_token_keeps_its_bits():
    out = sf.scheduled(sf.chain(sf.ablate(V), sf.add(V)), [5.0])(H, INFO)
    assert torch.equal(out[0, :2], H[0, :2]) and torch.equal(out[1, :4], H[1, :4])
    assert not torch.equal(out[0, 2:], H[0, 2:])


def test_strengths_of_zero_and_one_are_exact():
    op = sf.ablate(V)
    out = sf.scheduled(op, [0.0, 1.0, 0.0])(H, INFO)
    assert torch.equal(out[0, 2], H[0, 2]) and torch.equal(out[0, 4:], H[0, 4:])
    assert torch.equal(out[0, 3], op(H, INFO)[0, 3])


def test_any_operator_is_interpolated():
    out = sf.scheduled(sf.rotate(V, 0.7), [0.25])(H, INFO)
    turned = sf.rotate(V, 0.7)(H, INFO)
    assert torch.allclose(out[0, 2:], 0.75 * H[0, 2:] + 0.25 * turned[0, 2:], atol=1e-6)


def test_a_cached_step_is_given_the_strength_of_its_token():
    op = sf.scheduled(sf.add(V), [1.0, 0.5, 0.25, 0.0])
    whole = op(H, INFO)
    for i in range(6):
        tokens = sf.Tokens(INFO.tokens.index[:, i : i + 1], INFO.tokens.prompt_length, None)
        assert torch.equal(op(H[:, i : i + 1], sf.Info(site=INFO.site, tokens=tokens)), whole[:, i : i + 1])


def test_where_the_operator_does_nothing_the_state_is_passed_on():
    assert sf.scheduled(sf.identity, [2.0])(H, INFO) is H
    assert sf.scheduled(sf.add(V), [2.0])(H, sf.Info.of(H, sf.attn_out[0])) is H


def test_refusals():
    for bad in ([], torch.ones(0), [float("nan")], [1.0, float("inf")], [[1.0]], torch.tensor(1.0)):
        text = f"A schedule is a non-empty list of finite numbers, not {bad!r:.80}."
        with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
            sf.scheduled(sf.add(V), bad)
    for bad in ("fast", None, ["a"], {"a": 1}):
        text = f"A schedule is a list of numbers or a function of token indices, not {bad!r:.80}."
        with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
            sf.scheduled(sf.add(V), bad)
    with pytest.raises(sf.SteerError, match="^An operator is needed, not a SteeringVector"):
        sf.scheduled(V, [1.0])
    for bad in (lambda t: 1.0, lambda t: torch.ones(3), lambda t: None):
        with pytest.raises(
            sf.ShapeError, match=r"^The schedule returned .*; given token indices of shape \[2, 6\] it must"
        ):
            sf.scheduled(sf.add(V), bad)(H, INFO)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_with_respect_to_a_strength_is_the_change(strength):
    """At 0 and 1 too, where the result is h or op(h) bit for bit."""

    def total(strengths):
        return sf.scheduled(sf.ablate(V), strengths)(H, INFO).sum()

    slope = torch.func.grad(total)(torch.tensor([strength]))
    change = sf.ablate(V)(H, INFO) - H
    expected = sum(change[b, int(LENGTHS[b]) - 1 :].sum() for b in range(2))
    assert torch.allclose(slope, expected, atol=1e-5) and slope.abs() > 0.01
