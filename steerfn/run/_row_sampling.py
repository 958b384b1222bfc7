"""How the tokens of one row of a batch are chosen."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class RowSampling:
    """How one row's tokens are chosen.

    In this order, as vLLM has it: `logit_bias`, penalties, temperature, `min_p`, `top_k`, `top_p`.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: the share of probability that is sampled from.
        top_k: how many of the most probable tokens are sampled from; 0 for all.
        min_p: tokens less probable than this share of the most probable one are left out.
        presence_penalty: taken off the logits of tokens that the text has.
        frequency_penalty: the same for each time that it has them.
        repetition_penalty: what positive logits of tokens of prompt and text are divided by (Keskar et al. 2019).
        logit_bias: added to the logits of tokens, by their ids.
        seed: of the row's own random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int = 0

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before they are compared."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1.0)
        return bool(self.logit_bias) or any(penalties)

    def change(self, logits: Tensor, prompt: Tensor, text: Tensor) -> Tensor:
        """The logits `[vocabulary]` with bias and penalties.

        Args:
            logits: the model's.
            prompt: the token ids of the prompt.
            text: those that were generated so far.
        """
        logits = logits.clone()
        for token, bias in self.logit_bias.items():
            logits[token] += bias
        if self.repetition_penalty != 1.0:
            seen = torch.cat([prompt, text]).unique()
            values = logits[seen]
            logits[seen] = torch.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
        if self.frequency_penalty or self.presence_penalty:
            counts = torch.bincount(text, minlength=len(logits))
            logits -= self.frequency_penalty * counts + self.presence_penalty * (counts > 0)
        return logits


def truncate(scores: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor) -> Tensor:
    """The scores of the tokens that are sampled from, -inf for the others.

    Of the tokens that have a share `min_p` of the most probable one's probability, the `top_k` most probable ones, and
    of those the fewest that have a share `top_p` of the probability together.

    Args:
        scores: `[rows, vocabulary]`.
        top_p: `[rows, 1]`, in (0, 1].
        top_k: `[rows, 1]`; 0 for all.
        min_p: `[rows, 1]`, in [0, 1].

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (`top_p`); Nguyen et al. 2024,
    "Turning Up the Heat" (`min_p`).

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> one = torch.ones(1, 1)
        >>> truncate(scores, 0.7 * one, 0 * one, 0 * one).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    ordered, index = scores.sort(-1, descending=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    out = ((top_k > 0) & (rank >= top_k)) | (ordered - ordered[:, :1] < min_p.log())
    probability = ordered.masked_fill(out, -torch.inf).softmax(-1)
    out = out | (probability.cumsum(-1) - probability >= top_p)
    return torch.full_like(scores, -torch.inf).scatter(-1, index, ordered.masked_fill(out, -torch.inf))
