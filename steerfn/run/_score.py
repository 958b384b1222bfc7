"""`score`: how likely a steered model finds given continuations."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn.model import Model, Tokenizer
from steerfn.operators import Operator
from steerfn.output import Result, Screen, Section, Table, progress_bar
from steerfn.run._chat_template import Chat
from steerfn.run._keywords import only_switches
from steerfn.run._scorer import Scorer
from steerfn.run._text import Text, as_texts, prompt_field, shown_prompt
from steerfn.run._trees import by_prompt, items_of
from steerfn.values import SteeringVector, public
from steerfn.verbs import as_optional_steering, warn_of_empty


@dataclasses.dataclass(frozen=True, eq=False)
class Scores(Result):
    """Log-probabilities of continuations; see `score`.

    Attributes:
        prompts: the prompts as given.
        continuations: those of each prompt.
        log_probs: for each prompt, the log-probability of each of its continuations: the sum over its tokens, in nats.
        tokens: for each prompt, how many tokens each of its continuations has.
    """

    prompts: tuple[Text, ...]
    continuations: tuple[tuple[str, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]

    _title = "Scores of continuations"
    _what = "The scores"

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """For each prompt, the share of each continuation in the probability of all of them: `softmax(log_probs)`."""
        return tuple(tuple(softmax(np.array(row)).tolist()) for row in self.log_probs)

    @property
    def masses(self) -> tuple[float, ...]:
        """For each prompt, the probability of all its continuations together: how much the shares speak for."""
        return tuple(float(np.exp(row).sum()) for row in self.log_probs)

    @property
    def choices(self) -> tuple[int, ...]:
        """For each prompt, its likeliest continuation."""
        return tuple(int(np.argmax(row)) for row in self.log_probs)

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each continuation of each prompt."""
        return [
            {"prompt": prompt_field(prompt), "continuation": text, "log_prob": value, "share": share, "tokens": tokens}
            for prompt, *rows in zip(
                self.prompts, self.continuations, self.log_probs, self.shares, self.tokens, strict=True
            )
            for text, value, share, tokens in zip(*rows, strict=True)
        ]

    def _sections(self) -> Sequence[Section]:
        rows = [
            [shown_prompt(prompt), f"{value:.3f}", f"{share:.1%}", repr(text)]
            for prompt, *rows in zip(self.prompts, self.log_probs, self.shares, self.continuations, strict=True)
            for value, share, text in zip(*rows, strict=True)
        ]
        return [Table(["prompt", "log p", "share", "continuation"], rows, numeric=(1, 2), long=True)]

    def _text(self, screen: Screen) -> str:
        del screen
        lines = []
        for prompt, *rows in zip(self.prompts, self.log_probs, self.shares, self.continuations, strict=True):
            lines.append(f"{prompt!s}")
            lines += [f"  {value:9.3f}  {share:6.1%}  {text!r}" for value, share, text in zip(*rows, strict=True)]
        return "\n".join(lines)


def softmax(values: np.ndarray) -> np.ndarray:
    """Shares along the last axis."""
    e = np.exp(values - values.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@public
def score(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Any,
    continuations: Any,
    op: Operator | SteeringVector | Sequence[Operator | SteeringVector | None] | None = None,
    *,
    alpha: Any = None,
    chat: Chat = None,
    batch_size: int | str = "auto",
    progress: bool = True,
    **switches: Any,
) -> Scores:
    """How likely a model finds given continuations of prompts, steered or not.

    `log p(c | x) = sum_t log p(c_t | x, c_<t)`, in at least float32. A prompt is run once for all its continuations,
    and the LM head only where something is scored. Prompt and continuation are tokenized together, as one text.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        prompts: texts, conversations or token ids, one or several, as in `generate`.
        continuations: a list of texts for every prompt, or one such list for each prompt.
        op: an operator, or a vector, which means `add(vector)`. For scopes the prompt is what comes before the
            continuations, so `sf.generated` covers all that predicts them.
        alpha: the strength of a vector (default 1); an operator has its own.
        chat: as in `generate`.
        batch_size: texts at once; "auto" batches by tokens and halves where memory runs out.
        progress: show a progress bar on stderr.
        switches: what the tokenizer's chat template reads, such as `enable_thinking=False`.

    Raises:
        DataError: no prompts or continuations, an empty one, counts that do not match, or an unknown keyword.
        SteerError: as `steer`.

    Example:
        >>> import steerfn as sf
        >>> continuations = [" good", " bad"]
        >>> unsteered = sf.score(model, tokenizer, "The film was", continuations, chat=False).shares
        >>> steered = sf.score(model, tokenizer, "The film was", continuations, sf.add(v, 2.0), chat=False).shares
        >>> steered[0][0] > unsteered[0][0]
        True
    """
    chat = only_switches(score, tokenizer, chat, switches)
    texts = as_texts(prompts, "prompts")
    items = items_of(tokenizer, texts, continuations, chat)
    scorer = Scorer(model, items, [as_optional_steering(op, alpha)], batch_size=batch_size)
    log_probs: dict[int, tuple[float, ...]] = {}
    with progress_bar("Scoring", "prompt", progress, total=len(items)) as bar:
        for part in scorer.run():
            log_probs |= {i: tuple(values[0].tolist()) for i, values in zip(part.items, part.log_probs, strict=True)}
            bar.update(len(part.items))
    warn_of_empty(scorer.selections)
    return Scores(
        tuple(texts),
        tuple(map(tuple, by_prompt(continuations, len(texts)))),
        tuple(log_probs[i] for i in range(len(items))),
        tuple(tuple(map(len, item.continuations)) for item in items),
    )
