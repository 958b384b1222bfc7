"""Which tokens are a model's attention sinks: the rule by which means leave them out, of texts and of hidden states."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.operators._operator import Tokens
from steerfn.values import SteerError, SteeringVector


@dataclasses.dataclass(frozen=True)
class SinkTokens:
    """The tokens that a mean leaves out.

    Attributes:
        first: whether the first token of a text is one, whatever it says.
        ids: token ids that are one wherever they stand, ascending.
    """

    first: bool = False
    ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, data: Any) -> "SinkTokens":
        """From what metadata says, `{"first_token": True, "token_ids": [...]}`; None is no sink.

        Raises:
            SteerError: something else.
        """
        if data is None:
            return cls()
        first, ids = (data.get("first_token"), data.get("token_ids")) if isinstance(data, Mapping) else (None, None)
        if not isinstance(first, bool) or not isinstance(ids, (list, tuple)) or any(type(i) is not int for i in ids):
            raise SteerError(
                "sinks says which tokens are attention sinks, as v.metadata['sinks'] of a vector that was read at "
                f"position='mean' does: {{'first_token': True, 'token_ids': [...]}}, not {data!r:.120}."
            )
        return cls(first, tuple(sorted(set(ids))))

    @classmethod
    def of_vectors(cls, vectors: Iterable[SteeringVector]) -> "SinkTokens | None":
        """The sink tokens that vectors record of their model, together; None where no vector records any."""
        records = [each for vector in vectors if (each := vector.metadata.get("sinks")) is not None]
        if not records:
            return None
        sinks = [cls.of(each) for each in records]
        return cls(any(each.first for each in sinks), tuple(sorted({i for each in sinks for i in each.ids})))

    def others(self, ids: Sequence[int]) -> list[int]:
        """The places of the other tokens of a text."""
        sinks = set(self.ids)
        return [i for i, token in enumerate(ids) if not (i == 0 and self.first) and token not in sinks]

    def leave_out(self, ids: Sequence[int]) -> list[int]:
        """The places of the other tokens of a text; all of its places where there are no others."""
        return self.others(ids) or [*range(len(ids))]

    def among(self, tokens: Tokens) -> Tensor:
        """Which positions of a forward pass hold one.

        Raises:
            SteerError: ids are needed, and the pass was given embeddings.
        """
        is_sink = tokens.index == 0 if self.first else torch.zeros_like(tokens.index, dtype=torch.bool)
        if not self.ids:
            return is_sink
        if tokens.ids is None:
            raise SteerError(
                f"sf.on_prompt(by='mean') leaves out the attention sinks with the token ids {list(self.ids)[:8]}, and "
                "this forward pass does not say which tokens it holds; give the model input_ids, or ask by='last'."
            )
        ids = tokens.ids.to(is_sink.device)
        return is_sink | (ids.unsqueeze(-1) == torch.tensor(self.ids, device=ids.device)).any(-1)
