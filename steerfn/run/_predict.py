"""The predictions of a steered model at chosen places of some texts, as a pure function of the operator."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steerfn.model import unwrap_model
from steerfn.operators import identity
from steerfn.run._budget import Budget
from steerfn.run._text import input_device, pad_id, pad_rows
from steerfn.verbs import Functional, functional


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """The next-token logits of a model under an operator.

    Attributes:
        f: the model as a pure function.
        narrow: whether the model can run its head at chosen places only.
        pad: the token to pad with.
        device: where the model takes its token ids.
    """

    f: Functional
    narrow: bool
    pad: int
    device: torch.device

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> "Predictor":
        """The predictor of a model."""
        root = unwrap_model(model)
        narrow = "logits_to_keep" in inspect.signature(root.forward).parameters
        return cls(functional(model), narrow, pad_id(model, tokenizer), input_device(root))

    def __call__(self, op: Any, rows: Sequence[Sequence[int]], places: Tensor, prompts: Any = None) -> Tensor:
        """Logits `[rows, places, vocabulary]`, in at least float32.

        Args:
            rows: token ids; padded on the right, where no causal model looks.
            places: indices into the padded rows, ascending.
            prompts: how many tokens of each row are prompt, for scopes that ask; None: all.
        """
        ids, mask = pad_rows(rows, self.pad, "right", self.device)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        places = places.to(self.device)
        if self.narrow:
            given["logits_to_keep"] = places
        if prompts is not None:
            given["prompt_length"] = torch.as_tensor(prompts, device=self.device)
        logits = self.f(op, **given).logits
        # Some models take the option and compute all the same.
        if logits.shape[1] != len(places):
            logits = logits[:, places.to(logits.device)]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def last(self, op: Any, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits after the last token of each row, `[rows, vocabulary]`."""
        ends = [len(row) - 1 for row in rows]
        places = sorted(set(ends))
        logits = self(op, rows, torch.tensor(places))
        which = torch.tensor([places.index(end) for end in ends], device=logits.device)
        return logits[torch.arange(len(rows), device=logits.device), which]


TOKENS = 512, 4096
"""Tokens of an automatic batch, on the CPU and elsewhere: each has logits over the whole vocabulary."""


@dataclasses.dataclass(frozen=True, eq=False)
class Perplexity:
    """The mean loss of a model on texts, as a function of the operator: `mean_t -log p_t`, in nats a token.

    Attributes:
        predict: the model.
        rows: token ids of the texts, the longest first.
        budget: what goes into one batch.
    """

    predict: Predictor
    rows: Sequence[Sequence[int]]
    budget: Budget

    @classmethod
    def of(cls, predict: Predictor, rows: Sequence[Sequence[int]], batch_size: int | str) -> "Perplexity":
        """The loss on some texts.

        Raises:
            DataError: a batch size that is neither "auto" nor a positive integer.
        """
        budget = Budget.of(batch_size, predict.device, TOKENS)
        return cls(predict, sorted(rows, key=len, reverse=True), budget)

    def __call__(self, op: Any = None) -> float:
        """The mean loss over all tokens of all texts but the first of each."""
        op = identity if op is None else op
        total = sum(loss for _, loss in self.budget.run(self.rows, lambda batch: self._loss(op, batch), len))
        return total / sum(len(row) - 1 for row in self.rows)

    def _loss(self, op: Any, rows: Sequence[Sequence[int]]) -> float:
        """The sum over the tokens of a batch."""
        with torch.no_grad():
            logits = self.predict(op, rows, torch.arange(len(rows[0]) - 1), prompts=[1] * len(rows))
            total = 0.0
            for row, predicted in zip(rows, logits, strict=True):  # one text at a time bounds what float32 takes
                following = torch.tensor(row[1:], device=predicted.device)
                losses = F.cross_entropy(predicted[: len(following)].float(), following, reduction="none")
                total += float(losses.double().sum())
        return total
