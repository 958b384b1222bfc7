"""A vector that was carried from one model to another, with all that says whether it means the same there."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn.discover._own_vector import OwnVector
from steerfn.output import BAR, Bullets, Result, Section, Table, bar, format_number, format_or_dash, format_p
from steerfn.values import Site, SteeringVector

NO_FIT, POOR = 0.05, 0.5
"""An R^2 must exceed that of shuffled texts by the first to be a fit, and one below the second is poor."""
LEVEL = 0.05
"""A cosine that random vectors reach more often than this is theirs."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Transferred(Result):
    """The vector that `transfer` made, and how far it can be trusted. Print it.

    Attributes:
        vector: for the target model; its metadata name the target, the map, and the vector that it was made from.
        source: where that was read in the source.
        fits: the target's sites, each with the number by which one was chosen: the share of the variance of what the
            vector reads in the source, `<x, v>`, that the target's states there predict, on texts that choose.
        r2_read: the same share at the chosen site, on texts that neither made a map nor chose anything.
        r2: the share of the variance of a dimension of the target that the map predicts, mean over the dimensions, on
            the same texts.
        r2_of_variance: the same of the variance of all dimensions together, of which a few have most.
        r2_shuffled: as `r2`, of a map made and judged with each text of the source beside another text of the target.
        own: the target's own vector and how near the transferred one is to it; None without contrast texts.
        notes: what else should be known, a sentence each.
    """

    vector: SteeringVector
    source: Site
    fits: tuple[tuple[Site, float], ...]
    r2_read: float
    r2: float
    r2_of_variance: float
    r2_shuffled: float
    own: OwnVector | None = None
    notes: tuple[str, ...] = ()

    _title = "Transfer of a vector"
    _what = "The transfer"

    @property
    def site(self) -> Site:
        """Where the vector is in the target."""
        return self.vector.sites[0]

    @property
    def level(self) -> str:
        """The verdict in two words.

        "no fit": the map predicts little more than one of shuffled texts. "fit only": there are no contrast texts to
        tell more. "like random": random vectors through the same map are as near to the target's own vector. "carried
        over": they are not.
        """
        if not self.r2 - max(self.r2_shuffled, 0.0) >= NO_FIT:
            return "no fit"
        if self.own is None:
            return "fit only"
        return "carried over" if self.own.cosine > 0 and self.own.p <= LEVEL else "like random"

    @property
    def verdict(self) -> str:
        """The claim that the numbers support, by rule."""
        fit = f"R^2 {self.r2:.2f} on held-out texts, {self.r2_shuffled:.2f} where texts are shuffled"
        if self.level == "no fit":
            return f"No fit: {fit}. The map predicts next to nothing, and the vector means nothing in the target."
        if self.own is None:
            evidence = "what the vector does in the target was not measured; pass positive= and negative= texts"
        else:
            near = f"cosine {self.own.cosine:.2f} with the target's own vector"
            evidence = f"{near} ({format_p(self.own.p)} against random vectors through the same map)"
        return f"{self.level.capitalize()}: {evidence}. The fit is {'poor' if self.r2 < POOR else 'good'}: {fit}."

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each site of the target that was tried."""
        return [
            {"site": site.name, "layer": site.block, "r2_read": fit, "chosen": site == self.site}
            for site, fit in self.fits
        ]

    def _facts(self) -> dict[str, Any]:
        names = "level verdict r2_read r2 r2_of_variance r2_shuffled notes".split()
        return {
            **{name: getattr(self, name) for name in names},
            "source": self.source.name,
            "site": self.site.name,
            "own": None if self.own is None else self.own.to_dict(),
            "metadata": dict(self.vector.metadata),
        }

    def _sections(self) -> Sequence[Section]:
        about = self.vector.metadata
        penalty = "" if about["penalty"] is None else f" with penalty {about['penalty']:g}"
        made = f"{about['map'].replace('_', ' ')}{penalty} on {about['texts']['tokens']} tokens"
        headers = ["", "transferred", "target's own", "random", "shuffled"]
        rows = [
            ["R^2 of what it reads", f"{self.r2_read:.3f}", "", "", ""],
            ["R^2, mean of dimensions", f"{self.r2:.3f}", "", "", f"{self.r2_shuffled:.3f}"],
            ["R^2 of all variance", f"{self.r2_of_variance:.3f}", "", "", ""],
            ["length", format_number(self.vector.magnitude[self.site]), "", "", ""],
        ]
        if self.own is not None:
            own, cosines, aucs = self.own, *map(_range, (self.own.cosines_random, self.own.aucs_random))
            rows[-1][2] = format_number(own.vector.magnitude[self.site])
            rows.append(["cosine with its own", f"{own.cosine:.3f}", "1", cosines, f"{own.cosine_shuffled:.3f}"])
            rows.append(["AUC of the contrast", f"{own.auc:.3f}", format_or_dash(own.auc_own, ".3f"), aucs, ""])
        tried = [
            [site.name, f"{fit:.3f}", bar((1 + fit) / 2), "<- chosen" if site == self.site else ""]
            for site, fit in self.fits
        ]
        chosen_by = "what the vector reads in the source, read off the target's states (texts to choose by)"
        return [
            Bullets([self.verdict, *self.notes]),
            Table(headers, rows, f"{self.source} to {self.site}, {made}", numeric=(1, 2, 3, 4)),
            Table(["site", "R^2", f"{'0':<{BAR - 2}} 1", ""], tried, chosen_by, numeric=(1,)),
        ]

    def __repr__(self) -> str:
        near = "" if self.own is None else f", cosine {self.own.cosine:.2f}"
        return f"Transferred({self.source} to {self.site}, {self.level}, R^2 {self.r2:.2f}{near})"


def _range(values: Sequence[float]) -> str:
    """Where 95 of 100 values are."""
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{low:.2f} to {high:.2f}"
