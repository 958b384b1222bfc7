"""The distributions of the next token with and without an operator, as numbers."""

import contextvars
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steerfn._chat_template import Chat
from steerfn._errors import DataError
from steerfn._functional import functional
from steerfn._generate import generate
from steerfn._steer import as_steering
from steerfn._text import Text, as_texts, encode, input_device
from steerfn.operators import identity


@dataclasses.dataclass(frozen=True, eq=False)
class NextToken:
    """Tokens and their probabilities.

    Attributes:
        ids: tokens, those that gain most first.
        before: their probabilities without the operator, `[tokens]`.
        after: with it.
        divergence: `KL(after || before)` over the whole vocabulary, in nats.
    """

    ids: tuple[int, ...]
    before: np.ndarray
    after: np.ndarray
    divergence: float


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The likeliest tokens at every step of a generation, with and without an operator.

    Attributes:
        chosen: the tokens that the steered model generated, `[steps]`.
        before: the likeliest tokens without the operator, likeliest first, `[steps, top]`.
        after: with it; both after the same, steered text.
        before_probs: their probabilities, `[steps, top]`.
        after_probs: likewise.
        divergence: `KL(after || before)` at each step, in nats, `[steps]`.
    """

    chosen: np.ndarray
    before: np.ndarray
    after: np.ndarray
    before_probs: np.ndarray
    after_probs: np.ndarray
    divergence: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def is_new(self, step: int, rank: int) -> bool:
        """Whether a token of the steered model is not among the likeliest without steering."""
        return self.after[step, rank] not in self.before[step]


def one_prompt(prompt: Any) -> Text:
    """A prompt.

    Raises:
        DataError: none, or several.
    """
    found = as_texts(prompt, "prompt")
    if len(found) != 1:
        raise DataError(f"One prompt is drawn, not {len(found)}; make a figure for each.")
    return found[0]


def counted(number: Any, what: str) -> int:
    """A number from 1.

    Raises:
        DataError: something else.
    """
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
        raise DataError(f"{what} from 1, not {number!r}.")
    return int(number)


def log_probs(model: Any, ids: Sequence[int], op: Any, prompt: int) -> np.ndarray:
    """Log-probabilities of the token after the prompt and after each token beyond it, `[positions, vocabulary]`.

    Args:
        model: any transformers causal LM. Unchanged; contexts that are open on it do not count.
        ids: a prompt's tokens, and what follows them.
        op: an operator.
        prompt: how many of them are prompt.
    """
    row = torch.tensor([list(ids)], device=input_device(model))
    with torch.no_grad():
        out = functional(model)(op, input_ids=row, attention_mask=torch.ones_like(row), prompt_length=prompt)
    logits = out.logits[0, prompt - 1 :]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu().numpy().astype(np.float64)


def divergence(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """`KL(after || before) = sum_t p_t (log p_t - log q_t)` of log-probabilities, over the last axis, in nats."""
    p = np.exp(after)
    with np.errstate(invalid="ignore"):  # a token that is impossible under both adds nothing
        return np.where(p > 0, p * (after - before), 0.0).sum(-1)


def likeliest(values: np.ndarray, top: int) -> np.ndarray:
    """The tokens of the `top` largest numbers along the last axis, the largest first, ties by their number."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :top]


def next_token(model: Any, tokenizer: Any, prompt: Text, op: Any, top: int, chat: Chat) -> NextToken:
    """The likeliest tokens after a prompt with and without an operator, all those that are among the `top` of either.

    Raises:
        DataError: as `encode`.
        SteerError: as `functional`.
    """
    (ids,) = encode(tokenizer, [prompt], chat)
    before, after = (log_probs(model, ids, each, len(ids))[0] for each in (identity, as_steering(op)))
    both = np.union1d(likeliest(before, top), likeliest(after, top))
    change = np.exp(after[both]) - np.exp(before[both])
    order = both[np.argsort(-change, kind="stable")]
    return NextToken(
        tuple(order.tolist()), np.exp(before[order]), np.exp(after[order]), float(divergence(after, before))
    )


def steps_of(
    model: Any, tokenizer: Any, prompt: Text, op: Any, steps: int, top: int, chat: Chat
) -> tuple[Steps, Sequence[int]]:
    """The likeliest tokens along the steered model's greedy continuation, and the tokens of the prompt.

    The continuation is what `generate` gives; then one pass with the operator and one without read the distributions
    after each of its tokens.

    Raises:
        DataError: as `encode`.
        SteerError: as `generate`.
    """
    op = as_steering(op)
    options = {"max_new_tokens": steps, "chat": chat, "do_sample": False, "num_beams": 1}
    # In a context of its own, so that nothing that the caller has opened steers it as well.
    made = contextvars.Context().run(lambda: generate(model, tokenizer, [prompt], op, **options))
    ids, chosen = made.prompt_token_ids[0], made.token_ids[0]
    whole = [*ids, *chosen[:-1]]
    before, after = (log_probs(model, whole, each, len(ids)) for each in (identity, op))
    first, second = likeliest(before, top), likeliest(after, top)
    probs = np.exp(np.take_along_axis(before, first, -1)), np.exp(np.take_along_axis(after, second, -1))
    return Steps(np.array(chosen), first, second, *probs, divergence(after, before)), ids
