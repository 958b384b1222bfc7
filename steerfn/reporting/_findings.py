"""Everything that a report is made of, measured and judged, before it is laid out."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.evaluate import Outcome, VectorComparison
from steerfn.output import finite
from steerfn.reporting._measure import Separation
from steerfn.reporting._verdict import Verdict
from steerfn.values import SteeringVector

NAME = "vector"
"""What a vector without a file is called."""


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """The measurements of one vector, with the verdict and its limits.

    Attributes:
        name: the vector's name in all sentences.
        title: of the document.
        written: when, in UTC.
        alpha: the strength.
        vector: as it was given, with its metadata.
        identity: what it is, and where it came from.
        model: the model at hand.
        data: what the data is.
        separation: how well the data's sides are told apart.
        effect: the vector, random vectors and the unsteered model on the prompts.
        costs: side effects.
        unchanged: whether the model gave the same logits before and after.
        overlap: prompts that are also in the data.
        examples: a heading and the texts without and with steering.
        verdict: what may be claimed.
        limits: what may not.
        call: how to do it again: a command, or a call.
        about: the options, versions and hashes.
    """

    name: str
    title: str
    written: str
    alpha: float
    vector: SteeringVector
    identity: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    separation: Separation
    effect: VectorComparison
    costs: Outcome
    unchanged: bool
    overlap: Sequence[str]
    examples: Sequence[tuple[str, str, str]]
    verdict: Verdict
    limits: Sequence[str]
    call: str
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values, with every text that was generated."""
        quality = self.separation
        return finite(
            {
                "title": self.title,
                "written": self.written,
                "verdict": self.verdict,
                "vector": {**self.identity, "name": self.name, "alpha": self.alpha},
                "metadata": self.vector.metadata,
                "model": self.model,
                "data": self.data,
                "quality": {
                    "position": quality.position,
                    "chat": quality.chat,
                    "auc": {site.name: auc for site, auc in quality.aucs.items()},
                    "auc_interval": {site.name: list(ends) for site, ends in quality.intervals.items()},
                    "relative_norm": {site.name: share for site, share in quality.shares.items()},
                    "profile": {site.name: each.to_dict() for site, each in quality.profile},
                    "chance": quality.profile.chance,
                    "lint": [finding.message for finding in quality.lint],
                },
                "effect": json.loads(self.effect.to_json()),
                "side_effects": json.loads(self.costs.to_json()),
                "unchanged": self.unchanged,
                "overlap": self.overlap,
                "limits": self.limits,
                "about": {**self.about, "call": self.call},
            }
        )
