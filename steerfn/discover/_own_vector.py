"""A model's own vector of some contrast texts: what a vector from elsewhere is held against."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.discover._engine import Reader, auc, contrast, quality, two_sides
from steerfn.discover._mean_difference import mean_difference
from steerfn.run import Chat, Position, read_states
from steerfn.values import Site, SteeringVector


@dataclasses.dataclass(frozen=True, eq=False)
class OwnVector:
    """The target's own vector of some contrast texts, and how near to it the transferred vector and others are.

    Attributes:
        vector: the mean difference of the texts in the target, with its quality in the metadata.
        cosine: of the transferred vector with it.
        cosine_shuffled: of the vector that the map of shuffled texts makes.
        cosines_random: of random vectors like the source's, sent through the same map.
        auc: how well the transferred vector tells the texts apart in the target.
        auc_own: how well the target's own does, cross-validated; None where that says nothing.
        aucs_random: how well those random vectors do.
    """

    vector: SteeringVector
    cosine: float
    cosine_shuffled: float
    cosines_random: tuple[float, ...]
    auc: float
    auc_own: float | None
    aucs_random: tuple[float, ...]

    @property
    def p(self) -> float:
        """How often a random vector through the same map is as near to the target's own vector, or to its opposite."""
        reached = sum(abs(each) >= abs(self.cosine) for each in self.cosines_random)
        return (1 + reached) / (1 + len(self.cosines_random))

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        numbers = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "vector"}
        return {"p": self.p, **numbers, "metadata": dict(self.vector.metadata)}


class ContrastTexts:
    """Contrast texts for a model, encoded and checked, which nothing has read yet."""

    def __init__(self, reader: Reader, positive: Any, negative: Any, position: Position, chat: Chat) -> None:
        self.reader, self.given = reader, (positive, negative)
        self.options: Any = {"position": position, "chat": chat}
        sides = two_sides(positive, negative)
        self.texts = contrast(
            reader[1], sides.positive, sides.negative, paired=False, pairs=sides.paired, **self.options
        )

    def compare(
        self, site: Site, moved: Tensor, shuffled: Tensor, random: Sequence[Tensor], seed: int, **options: Any
    ) -> OwnVector:
        """The model's own vector at a site, with the cosines and AUCs of other directions there.

        Args:
            moved: the transferred direction.
            shuffled: what a map of shuffled texts makes of it.
            random: others through the same map.
            seed: of the folds.
            options: how to run the model, `batch_size` and `progress`.
        """
        model, tokenizer = self.reader
        own = mean_difference(model, tokenizer, *self.given, site, quality=True, seed=seed, **self.options, **options)
        states = read_states(model, self.texts.reads, site, **options)[site].double()
        directions = torch.stack([moved, shuffled, *random])
        cosines = torch.cosine_similarity(directions, own[site].double(), dim=-1).tolist()
        aucs = [auc(*(states @ each).split((self.texts.positive, self.texts.negative))) for each in directions]
        return OwnVector(
            own, cosines[0], cosines[1], tuple(cosines[2:]), aucs[0], quality(own)[site].auc, tuple(aucs[2:])
        )  # fmt: skip
