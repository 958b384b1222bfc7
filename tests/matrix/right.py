"""What is right for a case: each row alone, without padding and without a cache, under hooks by hand."""

from collections.abc import Sequence
from typing import Any

import by_hand
import torch
from by_hand import ANATOMY, Program
from snapshot import assert_same_bits
from torch import Tensor

from matrix.case import Case
from matrix.models import reference
from matrix.run import AGAINST, FOLLOW_UP, NEW, forward, generation_options, outcome, prompts, state_of

TOLERANCE = {"float64": 2e-5, "float32": 5e-4}
"""Of the largest number. Norms and softmax are computed in float32 in either."""


def by_hooks(case: Case, programs: Sequence[Program]) -> list[list[Tensor]]:
    """What comes out for each row alone, under a program for each."""
    alone = _forward_alone if case.way == "forward" else _generate_alone
    return [alone(case, program, tokens) for program, tokens in zip(programs, prompts(case), strict=True)]


def _forward_alone(case: Case, program: Program, tokens: Tensor) -> list[Tensor]:
    n, ends = len(tokens), [end - (case.width - len(tokens)) for end in case.cuts]
    if case.prompt_length:
        places = by_hand.a_row((None, max(n - 2, 1)))
    else:  # each pass holds nothing but prompt
        places = by_hand.a_row(*((end, end + case.cropped) for end in ends), (None, n))
    model = reference(case.family, case.dtype, case.lora).part("backbone" if "backbone" in case.called else "model")
    with torch.no_grad(), by_hand.steering(model, case.family, [program], places):
        return [state_of(model(tokens[None], use_cache=False))[0]]


def _generate_alone(case: Case, program: Program, tokens: Tensor) -> list[Tensor]:
    model = reference(case.family, case.dtype, case.lora).model
    p, results, earlier = len(tokens), [], []
    options = generation_options(case) | {"use_cache": False}
    if case.decoding == "guided against":
        options["negative_prompt_ids"] = AGAINST

    def turn(ids: Tensor, *parts: Any) -> Any:
        places = by_hand.a_row(*parts)
        if case.decoding.startswith("guided"):
            places = _by_turns(
                model,
                handles,
                places,
                by_hand.a_row((None, AGAINST.shape[1] if "negative_prompt_ids" in options else 1)),
            )
        with by_hand.steering(model, case.family, [program], places):
            return model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), **options)

    handles: list[Any] = []
    try:
        if case.turn == "begun":  # the plain pass, which holds nothing but prompt unless it is told
            earlier = [(p - 1, p if case.prompt_length else p - 1)]
        if case.turn in ("again", "new tokens"):
            first = turn(tokens, (None, p))
            results, earlier = outcome(case, first, p), [(p + NEW - 1, p)]
            tokens = torch.cat([first.sequences[0], FOLLOW_UP])
        out = turn(tokens, *earlier, (None, len(tokens)))
        return results + outcome(case, out, len(tokens))
    finally:
        for handle in handles:
            handle.remove()


def _by_turns(model: Any, handles: list[Any], own: by_hand.Places, other: by_hand.Places) -> by_hand.Places:
    """Places of passes by turns: the generation's own, and one on the sequence that guidance compares with."""
    passes = [0]

    def count(module: Any, args: Any) -> None:
        passes[0] += 1

    handles.append(model.register_forward_pre_hook(count))
    return lambda batch, seq: (own if passes[0] % 2 else other)(batch, seq)


def assert_rows(case: Case, results: list[Tensor], expected: list[list[Tensor]], what: str) -> None:
    """Each row of what came out is what came out for it alone."""
    if case.dtype == "bfloat16":
        return  # a row alone rounds otherwise than in a batch: see `assert_same_pass`
    copies = 2 if case.decoding == "returned" else 1
    for r, alone in enumerate(expected):
        for together, one in zip(results, alone, strict=True):
            if case.way == "forward":
                row = together[r, : case.lengths[r]] if case.padding == "right" else together[r, -case.lengths[r] :]
            else:
                row = together[copies * r : copies * (r + 1)]
            if not row.is_floating_point():
                assert torch.equal(row, one), f"{what}, row {r}: tokens {row.tolist()}, by hand {one.tolist()}"
                continue
            ruled_out = one.isinf()
            size = float(one[~ruled_out].abs().max())
            error = float((row - one)[~ruled_out].abs().max())
            assert error <= TOLERANCE[case.dtype] * size, f"{what}, row {r}: off by {error:.2g} of {size:.2g}"


def assert_same_pass(case: Case, results: list[Tensor], programs: list[Program]) -> None:
    """One pass over the same batch under hooks: the same bits where the same arithmetic is done, else nearly."""
    model = reference(case.family, case.dtype, case.lora).part("backbone" if "backbone" in case.called else "model")
    plain = by_hand.padded(case.lengths, case.padding or "left")
    shorter = 2 * case.prompt_length

    def places(batch: int, seq: int) -> Any:
        return [[place and (place[0], max(place[1] - shorter, 1)) for place in row] for row in plain(batch, seq)]

    with by_hand.steering(model, case.family, programs, places):
        expected = forward(case, model, model)
    if all(_is_plain_addition(case, step) for program in programs for step in program):
        assert_equal(results, expected, "the same pass under hooks")
        return
    error, size = float((results[0] - expected[0]).nan_to_num().abs().max()), float(expected[0].abs().max())
    near = 0.1 if case.dtype == "bfloat16" else TOLERANCE[case.dtype]
    assert error <= near * size, f"the same pass under hooks: off by {error:.2g} of {size:.2g}"


def _is_plain_addition(case: Case, step: by_hand.Step) -> bool:
    scaled = ANATOMY[case.family].scale != 1 and step.kind in ("attn_out", "mlp_out")
    return step.act == "add" and step.scope != "scheduled" and step.kind != "resid_mid" and not scaled


def assert_equal(results: list[Tensor], expected: list[Tensor], what: str) -> None:
    """Bit for bit."""
    for one, other in zip(results, expected, strict=True):
        assert_same_bits(one, other, what)
