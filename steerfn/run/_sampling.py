"""Sampling with a stream of random numbers for each row, so that a row's text depends on no other row."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.values import DataError


class ByRow:
    """Sample as transformers does, each row with its own random numbers; a `custom_generate` for `model.generate`.

    What is sampled from is what transformers would sample from: it has put all of its processors and warpers
    (temperature, top-k, top-p, ...) in front when this is called. At step `t` a row's token is the first one at which
    its cumulative probability exceeds `u_t`, with `u = uniforms(seed, copy, steps)`.

    Args:
        seeds: one for each prompt.
        assistant: the `assistant_model` of the call, which transformers does not hand on.
        streamer: the `streamer` of the call, which transformers does not hand on either.

    Raises:
        DataError: at the call, a way to generate that does not pick one token a row and step.
    """

    def __init__(self, seeds: Sequence[int], assistant: Any = None, streamer: Any = None) -> None:
        self.seeds, self.assistant, self.streamer = seeds, assistant, streamer

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        mode = generation_config.get_generation_mode(self.assistant)
        if mode not in ("sample", "greedy_search"):
            raise DataError(
                f"seed=[...] gives every prompt random numbers of its own, which {mode.value.replace('_', ' ')} cannot "
                "use; pass one int as the seed, or sample without beams, assistant and prompt lookup."
            )
        if generation_config.do_sample:
            steps = generation_config.max_length - input_ids.shape[1]
            copies = input_ids.shape[0] // len(self.seeds)
            numbers = torch.stack([uniforms(seed, copy, steps) for seed in self.seeds for copy in range(copies)])
            logits_processor.append(_Pick(numbers, input_ids))
            generation_config.do_sample = False  # a private copy; the most probable token is now the picked one
        return model._sample(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            streamer=self.streamer,
            **model_kwargs,
        )


class _Pick:
    """The last logits processor: leaves each row one token, picked with its number for this step."""

    def __init__(self, numbers: Tensor, prompt: Tensor) -> None:
        # All at once, so that no step waits for a number on its way to an accelerator.
        self.numbers = numbers.to(device=prompt.device, dtype=wide_dtype(prompt.device))
        self.start = prompt.shape[1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        number = self.numbers[:, input_ids.shape[1] - self.start]
        return keep_only(scores, pick(scores, number.to(scores.device)))


def keep_only(scores: Tensor, tokens: Tensor) -> Tensor:
    """Scores that leave each row one token."""
    return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(-1), 0.0)


def uniforms(seed: int, copy: int, steps: int) -> Tensor:
    """The numbers in `[0, 1)` that one row samples with, `[steps]`; more steps do not change the first ones.

    For the first sequence of a prompt they are those of `torch.Generator().manual_seed(seed)`; each further one has
    a stream of its own, seeded with a hash of `seed` and `copy`.
    """
    if copy:
        seed = int.from_bytes(hashlib.sha256(f"{seed}/{copy}".encode()).digest()[:8], "big")
    return torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pick(scores: Tensor, number: Tensor) -> Tensor:
    """The token at which the cumulative probability of `softmax(scores)` passes a number in `[0, 1)`.

    Args:
        scores: `[rows, vocabulary]`, -inf for tokens that are ruled out; those are never picked.
        number: `[rows]`.

    Returns:
        Token ids `[rows]`.
    """
    wide = wide_dtype(scores.device)
    below = scores.softmax(-1, dtype=torch.float32).cumsum(-1, dtype=wide)
    # Just under the whole, which rounding could reach: nothing would lie above it.
    whole = below[:, -1:] * (1 - torch.finfo(wide).eps)
    return torch.searchsorted(below, number.to(wide).unsqueeze(-1) * whole, right=True).squeeze(-1)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
