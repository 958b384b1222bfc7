"""What a steered model predicts at chosen places of some texts, as a pure function of the operator."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._blocks import unwrapped
from steerfn._functional import Functional, functional
from steerfn._text import input_device, pad_id, padded


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
        root = unwrapped(model)
        narrow = "logits_to_keep" in inspect.signature(root.forward).parameters
        return cls(functional(model), narrow, pad_id(model, tokenizer), input_device(root))

    def __call__(self, op: Any, rows: Sequence[Sequence[int]], places: Tensor, prompts: Any = None) -> Tensor:
        """Logits `[rows, places, vocabulary]`, in at least float32.

        Args:
            op: an operator.
            rows: token ids; padded on the right, where no causal model looks.
            places: indices into the padded rows, ascending.
            prompts: how many tokens of each row are prompt, for scopes that ask; None: all.
        """
        ids, mask = padded(rows, self.pad, "right", self.device)
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
