"""What removing or adding a candidate for the refusal direction does to held-out requests."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._blocks import Layout
from steerfn._errors import DataError, SteerWarning
from steerfn._site import Site
from steerfn._text import Text, encode
from steerfn._vector import SteeringVector
from steerfn.discover._spread import spread
from steerfn.discover.search._predict import Predictor
from steerfn.operators import Operator, ablate, add, identity


@dataclasses.dataclass(frozen=True)
class Score:
    """What one candidate does to held-out prompts.

    Attributes:
        site: where it was read, and is added.
        position: the token it was read at, from the end.
        ablated: mean refusal log-odds of harmful prompts without the direction.
        kl: mean divergence of the next-token distribution of harmless prompts without the direction.
        induced: mean refusal log-odds of harmless prompts with the direction added.
    """

    site: Site
    position: int
    ablated: float
    kl: float
    induced: float

    def described(self) -> dict[str, Any]:
        """As a JSON value, in which a number that is none is None."""
        numbers = {"ablated": self.ablated, "kl": self.kl, "induced": self.induced}
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        return {"site": self.site.name, "position": self.position, **finite}

    def __str__(self) -> str:
        return f"{self.site} at position {self.position} (KL {self.kl:.3g}, log-odds {self.induced:.3g} where added)"


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Scores candidates on held-out prompts.

    Attributes:
        predict: the model.
        everywhere: the sites of an ablation.
        tokens: first tokens of refusals.
        rows: token ids of the prompts, by side, sorted by length.
        size: prompts at once.
        harmful: the unsteered refusal log-odds of the harmful prompts, mean.
        harmless: the same of the harmless ones.
        usual: unsteered log-probabilities of the next token of the harmless prompts, `[prompts, vocabulary]`.
    """

    predict: Predictor
    everywhere: tuple[Site, ...]
    tokens: list[int]
    rows: dict[str, list[list[int]]]
    size: int
    harmful: float
    harmless: float
    usual: Tensor

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, found: Layout, tokens: list[int], texts: dict[str, list[Text]], size: int
    ) -> "Judge":
        """A judge that knows the unsteered model."""
        rows = {name: sorted(encode(tokenizer, side, True), key=len) for name, side in texts.items()}
        judge = cls(
            Predictor.of(model, tokenizer), found.stream, tokens, rows, size, math.nan, math.nan, torch.empty(0)
        )
        usual = judge.logits(identity, "harmless")
        return dataclasses.replace(
            judge,
            harmful=judge.log_odds(judge.logits(identity, "harmful")),
            harmless=judge.log_odds(usual),
            usual=usual.log_softmax(-1),
        )

    def warn(self) -> None:
        """Say so where the model does not refuse what it should."""
        if not self.harmful > self.harmless:
            warnings.warn(
                f"The unsteered model refuses harmful requests no more than harmless ones (log-odds "
                f"{self.harmful:.3g} and {self.harmless:.3g}), so there may be no refusal direction to find; check "
                "refusal_phrases against what the model writes.",
                SteerWarning,
                stacklevel=3,
            )

    def logits(self, op: Operator, side: str) -> Tensor:
        """Next-token logits of the prompts of one side, on the CPU."""
        rows, step = self.rows[side], self.size
        with torch.no_grad():
            parts = [self.predict.last(op, rows[i : i + step]).cpu() for i in range(0, len(rows), step)]
        return torch.cat(parts)

    def log_odds(self, logits: Tensor) -> float:
        """The mean over prompts of the log-odds of all first tokens of refusals together."""
        return float(log_odds(logits, self.tokens).mean())

    def scores(self, candidates: dict[tuple[Site, int], SteeringVector], progress: bool) -> list[Score]:
        """The scores of all candidates, in their order."""
        from tqdm import tqdm

        found = []
        for (site, position), v in tqdm(
            candidates.items(), desc="Scoring directions", unit="direction", disable=not progress, leave=False
        ):
            without = ablate(spread(v, self.everywhere))
            changed = self.logits(without, "harmless").log_softmax(-1)
            found.append(
                Score(
                    site=site,
                    position=position,
                    ablated=self.log_odds(self.logits(without, "harmful")),
                    kl=float(torch.nn.functional.kl_div(changed, self.usual, reduction="batchmean", log_target=True)),
                    induced=self.log_odds(self.logits(add(v), "harmless")),
                )
            )
        return found


def log_odds(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """`log p - log(1 - p)` of each row `[rows, vocabulary]`, with `p` the probability of some tokens together."""
    chosen = torch.tensor(list(tokens), device=logits.device)
    others = logits.index_fill(-1, chosen, -torch.inf)
    return logits[:, chosen].logsumexp(-1) - others.logsumexp(-1)


def best(scores: list[Score], max_kl: float, least: float) -> Score:
    """The lowest refusal among the candidates that satisfy both conditions, or an error with the best numbers."""
    quiet = [score for score in scores if score.kl <= max_kl]
    if not quiet:
        nearest = min(scores, key=lambda score: score.kl if math.isfinite(score.kl) else math.inf)
        raise DataError(
            f"Ablating any of the {len(scores)} candidates changes harmless requests by a KL above max_kl={max_kl:g}; "
            f"the least is {nearest}. Pass more requests of the same style on both sides, other sites or positions, or "
            f"a larger max_kl."
        )
    inducing = [score for score in quiet if score.induced > least and math.isfinite(score.ablated)]
    if not inducing:
        nearest = max(quiet, key=lambda score: score.induced if math.isfinite(score.induced) else -math.inf)
        raise DataError(
            f"None of the {len(quiet)} candidates with a KL within max_kl={max_kl:g} brings the refusal log-odds of "
            f"harmless requests above {least:.3g} when it is added; the nearest is {nearest}. Check refusal_phrases "
            "against what the model writes, pass other sites or positions, or another min_induced."
        )
    return min(inducing, key=lambda score: score.ablated)
