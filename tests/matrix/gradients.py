"""Gradients through a steered model in train mode, with and without gradient checkpointing."""

import functools
from collections.abc import Callable
from typing import Any

import by_hand
import torch
from torch import Tensor, nn

import steerfn as sf
from matrix.case import Case, of_step
from matrix.models import Subject
from matrix.run import padded, prompts, state_of

Loss = Callable[[Any], Tensor]
Backward = Callable[[Case, Subject, Tensor, Loss], None]


def gradients(case: Case, who: Subject, backward: Backward) -> dict[str, Tensor]:
    """Gradients of the loss over a batch and over a shorter one, both run before either goes back.

    Args:
        case: its first step's direction is trained.
        who: the model.
        backward: runs the loss, steered, and goes back.
    """
    ids, mask = padded(prompts(case), case.padding)
    short = slice(0, 2) if case.padding == "right" else slice(-2, None)  # real tokens of every row
    embed = who.model.get_input_embeddings()
    inputs = [embed(each).detach().requires_grad_() for each in (ids, ids[:, short])]
    direction = nn.Parameter(case.programs[0][0].direction(case.torch_dtype))

    def loss(call: Any) -> Tensor:
        total = torch.zeros(())
        for given, seen in zip(inputs, (mask, mask[:, short]), strict=True):
            state = state_of(call(inputs_embeds=given, attention_mask=seen, use_cache=False))
            total = total + (state * seen.unsqueeze(-1)).square().sum()
        return total

    backward(case, who, direction, loss)
    leaves = {"the direction": direction, "the embeddings": inputs[0], "the shorter embeddings": inputs[1]}
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def by_library(case: Case, who: Subject, direction: Tensor, loss: Loss) -> None:
    """Through the context or the pure view."""
    first, *rest = case.programs[0]
    trained = sf.SteeringVector({sf.Site(first.kind, first.layer, first.head): direction})
    op = sf.chain(of_step(first, case.torch_dtype, v=trained), *(of_step(step, case.torch_dtype) for step in rest))
    if case.face == "functional":
        loss(functools.partial(sf.functional(who.part(case.steered)), op)).backward()
        return
    with sf.steer(who.part(case.steered), op):
        total = loss(who.part(case.called))
        if case.backward == "inside":
            total.backward()
    if case.backward == "after":
        total.backward()


def by_hooks(case: Case, who: Subject, direction: Tensor, loss: Loss) -> None:
    """Under hooks by hand."""

    def places(batch: int, seq: int) -> Any:
        return by_hand.padded([min(n, seq) for n in case.lengths], case.padding or "left")(batch, seq)

    trained = {case.programs[0][0]: direction}
    with by_hand.steering(who.model, case.family, case.programs, places, trained):
        loss(who.part("backbone" if "backbone" in case.called else "model")).backward()
