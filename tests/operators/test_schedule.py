"""Strength as a function of the generated-token index."""

import re

import numpy as np
import pytest
import torch
from families import build
from greedy import steered
from steering import token_ids, vector_at

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
        tokens = sf.operators.Tokens(INFO.tokens.index[:, i : i + 1], INFO.tokens.prompt_length, None)
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


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_named_schedules_by_formula(n):
    """Read through an operator, past their end, where the last number goes on."""

    def strengths(schedule):
        h = torch.zeros(1, 12, 2, dtype=torch.float64)
        return sf.scheduled(sf.add(V), schedule)(h, sf.Info.of(h, prompt_length=1))[0, :, 0]

    t = torch.arange(12, dtype=torch.float64)
    share = (t / n).clamp_max(1)
    for schedule, expected in [
        (sf.schedules.constant(), torch.ones_like(t)),
        (sf.schedules.constant(-0.5), torch.full_like(t, -0.5)),
        (sf.schedules.linear_decay(n), 1 - share),
        (sf.schedules.linear_decay(n, start=2.0), 2 - 2 * share),
        (sf.schedules.linear_decay(n, 2.0, end=-0.5), 2 - 2.5 * share),
        (sf.schedules.first_tokens(n), (t < n).double()),
        (sf.schedules.first_tokens(n, strength=3), 3 * (t < n).double()),
        (sf.schedules.warm_up(n), share),
        (sf.schedules.warm_up(n, strength=4), 4 * share),
    ]:
        assert isinstance(schedule, list) and all(type(s) is float for s in schedule)
        assert torch.allclose(strengths(schedule), expected, atol=1e-12)


def test_the_ends_of_named_schedules_are_exact():
    for n in range(1, 60):
        assert sf.schedules.linear_decay(n, 0.1, 0.7)[0] == 0.1 and sf.schedules.linear_decay(n, 0.1, 0.7)[-1] == 0.7
        assert sf.schedules.warm_up(n, 0.3)[0] == 0.0 and sf.schedules.warm_up(n, 0.3)[-1] == 0.3


def test_refusals_of_named_schedules():
    for make in (sf.schedules.linear_decay, sf.schedules.first_tokens, sf.schedules.warm_up):
        for bad in (0, -3, 2.0, True, "5", None):
            text = f"`tokens` must be a positive integer, got {bad!r}."
            with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
                make(bad)
    for name, make in {
        "strength": sf.schedules.constant,
        "start": lambda x: sf.schedules.linear_decay(3, x),
        "end": lambda x: sf.schedules.linear_decay(3, end=x),
    }.items():
        for bad in (float("nan"), float("inf"), True, "1", None):
            text = f"`{name}` must be a finite number, got {bad!r}; it is a share of the operator's effect."
            with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
                make(bad)
    for make in (sf.schedules.first_tokens, sf.schedules.warm_up):
        with pytest.raises(sf.SteerError, match="^`strength` must be a finite number, got nan; "):
            make(3, strength=float("nan"))


NAMED = {
    "constant": sf.schedules.constant(1.5),
    "linear_decay": sf.schedules.linear_decay(4, start=2.0),
    "first_tokens": sf.schedules.first_tokens(2, strength=2.0),
    "warm_up": sf.schedules.warm_up(3, strength=2.0),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_schedules_in_generation_with_a_cache_and_without(name):
    model = build("llama")
    ids, schedule = token_ids(3, 5), NAMED[name]
    v = vector_at(model, sf.resid_post[1], scale=3.0)
    op = sf.scheduled(sf.add(v), schedule)
    cached = steered(model, op, ids, n=8)
    assert torch.equal(cached, steered(model, op, ids, n=8, use_cache=False))
    # A plain alpha for every new token, one forward pass each, without a cache or a schedule.
    f, given = sf.functional(model), ids
    with torch.no_grad():
        for t in range(8):
            alphas = [schedule[min(i, len(schedule) - 1)] for i in range(t + 1)]
            op = sf.chain(*(sf.at(sf.positions(4 + i), sf.add(v, a)) for i, a in enumerate(alphas)))
            step = f(op, given, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            given = torch.cat([given, step], 1)
    assert torch.equal(cached, given[:, 5:])
    assert not torch.equal(cached, steered(model, sf.scheduled(sf.add(v), [1.0]), ids, n=8))


def test_pitfall_35_schedules_of_other_lengths_compile_once_more_at_most():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    apply = torch.compile(lambda op, h: op(h, sf.Info.of(h, prompt_length=2)), backend=backend, fullgraph=True)
    for n in range(2, 9):
        op = sf.scheduled(sf.add(V), sf.schedules.linear_decay(n))
        assert torch.allclose(apply(op, H), op(H, sf.Info.of(H, prompt_length=2)))
    assert 1 <= len(graphs) <= 2
    torch._dynamo.reset()


def test_nothing_outside_changes_a_schedule_and_numpy_numbers_are_numbers():
    strengths = torch.tensor([1.0, 0.5])
    op, info = sf.scheduled(sf.add(V), strengths), sf.Info.of(H, prompt_length=2)
    expected = op(H, info)
    strengths.zero_()
    assert torch.equal(op(H, info), expected)
    assert sf.schedules.linear_decay(np.int64(4), np.float32(1)) == sf.schedules.linear_decay(4)
    assert sf.positions(np.int64(0), slice(np.int64(2), None)) == sf.positions(0, slice(2, None))
    assert sf.positions(np.arange(2)) == sf.positions(0, 1)
