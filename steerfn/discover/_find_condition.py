"""Finding the condition of conditional steering: where and above which cosine prompts are of one kind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.datasets import held_out_sides
from steerfn.discover._engine import (
    Candidate,
    Hits,
    candidate,
    check_finite,
    cosines,
    hits,
    left_out_cosines,
    rank,
    two_sides,
)
from steerfn.model import Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Condition, as_vector, check_width, cosine_above, on_prompt
from steerfn.output import Result, Section, Table
from steerfn.run import Chat, Text, as_texts, check_ids, checked_chat, encode, read_states, reads, sinks_of
from steerfn.values import (
    DataError,
    Site,
    Sites,
    SteeringVector,
    as_sites,
    check_match,
    fingerprint,
    finite_number,
    integer,
    public,
    resid_post,
    warn,
)


@dataclasses.dataclass(frozen=True, eq=False)
class FoundCondition(Result):
    """The result of `find_condition`; print it.

    Attributes:
        vector: the condition's vector, at one site.
        threshold: the condition holds where `cos(h, vector)` is above it.
        by: how prompts are read, as in `on_prompt`.
        chosen: how often it is right on the texts that chose it.
        held_out: how often on those that chose nothing.
        table: the best threshold at every site, in the order of a forward pass.
    """

    vector: SteeringVector
    threshold: float
    by: str
    chosen: Hits
    held_out: Hits
    table: tuple[Candidate, ...]

    _title = "Condition"
    _what = "The condition"

    @property
    def site(self) -> Site:
        """Where the condition is read. What it gates must lie there or later in the forward pass."""
        return self.vector.sites[0]

    @property
    def condition(self) -> Condition:
        """`sf.cosine_above(vector, threshold)`, which asks single tokens."""
        return cosine_above(self.vector, self.threshold)

    @property
    def on_prompt(self) -> Condition:
        """`sf.on_prompt(condition, by)`: asked of prompts as they were read in the search, without the same sinks."""
        return on_prompt(self.condition, self.by)

    @property
    def f1(self) -> float:
        """F1 on the texts that chose the condition: the best of many, so too good."""
        return self.chosen.f1

    @property
    def held_out_f1(self) -> float:
        """F1 on the texts that chose nothing."""
        return self.held_out.f1

    def __repr__(self) -> str:
        return (
            f"FoundCondition(cosine above {self.threshold:.4g} at {self.site}, by {self.by!r}; F1 {self.f1:.3f}, held "
            f"out {self.held_out_f1:.3f}, always yes {self.held_out.always:.3f})"
        )

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each site: its best threshold, and how often that is right on the texts that choose."""
        return [
            {
                "site": each.site.name,
                "sign": each.sign,
                "threshold": each.threshold,
                "f1": each.hits.f1,
                **each.hits.to_dict(),
                "margin": each.margin,
                "chosen": each.site == self.site,
            }
            for each in self.table
        ]

    def _facts(self) -> dict[str, Any]:
        facts = {"site": self.site.name, "threshold": self.threshold, "by": self.by}
        return {**facts, "chosen": self.chosen, "held_out": self.held_out}

    def _sections(self) -> Sequence[Section]:
        chosen, out = self.chosen, self.held_out
        turned = any(each.sign < 0 for each in self.table)
        rows = [
            [
                each.site.name,
                f"{each.threshold:.4f}",
                f"{each.hits.f1:.3f}",
                *([f"{each.sign:+d}"] if turned else []),
                "<- chosen" if each.site == self.site else "",
            ]
            for each in self.table
        ]
        notes = [
            f"F1 {self.f1:.3f} on the {chosen.tp + chosen.fn} + {chosen.fp + chosen.tn} texts that chose it",
            f"F1 {out.f1:.3f} on {out.tp + out.fn} + {out.fp + out.tn} held-out texts (always yes: {out.always:.3f}): "
            f"precision {out.precision:.3f}, recall {out.recall:.3f}, {out.fn} missed, {out.fp} false alarms",
        ]
        about = f"Condition: cosine above {self.threshold:.4f} at {self.site}, by {self.by!r}"
        headers = ["site", "threshold", "F1", *(["sign"] if turned else []), ""]
        return [Table(headers, rows, about, notes, numeric=range(1, len(headers) - 1))]


@public
def find_condition(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    sites: Sites | None = None,
    *,
    vector: SteeringVector | None = None,
    by: str = "last",
    held_out: float = 0.3,
    chat: Chat = None,
    batch_size: int | str = "auto",
    groups: Any = None,
    progress: bool = True,
    seed: int = 0,
) -> FoundCondition:
    """The condition `cos(h, v) > t` that best tells prompts of one kind from others, by F1, and how good it is.

    Some texts of either side choose, the others report. At each site `v = mean(h(positive)) - mean(h(negative))` over
    the texts that choose; each of these is scored by the cosine with the vector that the others alone give, so that
    no text vouches for itself. Every threshold that divides the scores differently is tried, and the site and
    threshold with the highest F1 win; of equals the one with the widest empty gap around it, in standard deviations
    of the scores. The winner is then judged on the held-out texts.

    With `vector` given the vector is that one at every site, and the condition may hold on either side of it: where the
    other side wins, the result's vector is `-v`.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: prompts for which the condition should hold; or a contrast set or pairs in place of both sides.
        negative: prompts for which it should not, in any number.
        sites: one or several; an int means `resid_post`. Default: those of `vector`, or `resid_post` of every layer.
            What the condition is to gate must not come before it, so leave later sites out.
        vector: a vector to use instead of the difference of means.
        by: "last" reads the prompt's last token, "mean" the mean over its tokens without the model's attention sinks,
            as in `on_prompt`: they are measured on the texts, and the vector's metadata says which they are.
        held_out: the share of either side that only reports. Texts that are the same stay together.
        chat: None puts prompts into the chat template where there is one, as `generate` does; True always; False
            takes them as they are.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        groups: which texts are of one kind (paraphrases of one request): a label for each, the positives first. A group
            never both chooses and reports.
        progress: show a progress bar on stderr.
        seed: another seed holds out other texts.

    Returns:
        The condition, with its F1 on either part; print it. Use it as `sf.when(found.on_prompt, op)`.

    Raises:
        DataError: too few texts on a side (two must choose and one report), an empty one, or an option out of range.
        SiteError: a site that the model, or `vector`, lacks.
        ShapeError: a `vector` of another width.

    Warns:
        SteerWarning: on the held-out texts the condition is no better than one that always holds.

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (CAST).

    Example:
        >>> import steerfn as sf
        >>> legal = [f"Is it legal to {what}?" for what in ("sell wine", "fish here", "park there", "own bees")]
        >>> other = [f"How do I cook {what}?" for what in ("rice", "beans", "soup", "pasta")]
        >>> gate = sf.discover.find_condition(model, tokenizer, legal, other, sites=[10])
        >>> op = sf.at(sf.generated, sf.when(gate.on_prompt, sf.add(v, 2.0)))
        >>> texts = sf.generate(model, tokenizer, legal[0], op, max_new_tokens=5).texts
    """
    positive, negative, sites, _ = two_sides(positive, negative, sites)
    sides = {"positive": as_texts(positive, "positive"), "negative": as_texts(negative, "negative")}
    if by not in ("last", "mean"):
        raise DataError(f"by must be 'last' or 'mean', as prompts are read for sf.on_prompt, not {by!r:.80}.")
    finite_number("held_out", held_out, above=0, below=1)
    checked_chat(chat)
    out = _split(sides, held_out, integer("seed", seed), groups)
    where, vector = _where(model, sites, vector)
    rows = encode(tokenizer, [*sides["positive"], *sides["negative"]], chat)
    check_ids(model, rows)
    sinks = sinks_of(model, reads(rows, by), where) if by == "mean" else None
    places = reads(rows, by if sinks is None else sinks.known.leave_out)
    states = read_states(model, places, where, batch_size=batch_size, progress=progress)
    label = torch.tensor([i < len(sides["positive"]) for i in range(len(rows))])
    table = tuple(_candidates(site, states[site][~out].double(), label[~out], vector) for site in where)
    best = max(table, key=rank)
    direction = best.sign * _direction(best.site, states[best.site][~out].double(), label[~out], vector)
    if sinks is not None:
        sinks.warn_along({best.site: direction})
    judged = hits(cosines(states[best.site][out].double(), direction) > best.threshold, label[out])
    about = {
        "model": fingerprint(model, weights=True),
        "method": "find_condition",
        "by": by,
        "chat": chat,
        "threshold": best.threshold,
        "chosen": dataclasses.asdict(best.hits),
        "held_out": dataclasses.asdict(judged),
        **({} if sinks is None else {"sinks": sinks.describe(tokenizer)}),
    }
    result = FoundCondition(
        SteeringVector({best.site: direction.float()}, about), best.threshold, by, best.hits, judged, table
    )
    if judged.f1 <= judged.always:
        warn(
            f"The condition does not separate the texts: on held-out texts its F1 is {judged.f1:.3f}, and that of "
            f"a condition that always holds is {judged.always:.3f}; pass more texts, other sites, or prompts that "
            "differ in kind."
        )
    return result


def _where(model: Any, sites: Any, v: Any) -> tuple[tuple[Site, ...], SteeringVector | None]:
    """The sites to try, in the order of a forward pass, and the given vector there."""
    root = unwrap_model(model)
    at = layout(root)
    if v is not None:
        v = as_vector(v, "find_condition").resolve(at.n_layers)
        if "model" in v.metadata:
            check_match(v, root)
        v = v if sites is None else v.select(at.resolve(as_sites(sites)))
        sites = v.sites
    where = at.resolve(as_sites(resid_post[:] if sites is None else sites))
    return tuple(sorted(where, key=lambda site: site.order)), v


def _direction(site: Site, h: Tensor, positive: Tensor, v: SteeringVector | None) -> Tensor:
    """The vector of the condition at a site, from the states that choose."""
    return h[positive].mean(0) - h[~positive].mean(0) if v is None else v[site].double().cpu()


def _candidates(site: Site, h: Tensor, positive: Tensor, v: SteeringVector | None) -> Candidate:
    """The best threshold at a site; of a given vector the better of its two sides.

    The sign of a difference of means is that of the data. Left-out scores of texts without a difference lean to the
    wrong side, so trying both would take that for a finding.
    """
    check_finite(site, h)
    if v is None:
        return candidate(site, left_out_cosines(h, positive), positive, 1)
    check_width(v[site], h, site)
    scores = cosines(h, _direction(site, h, positive, v))
    return max((candidate(site, sign * scores, positive, sign) for sign in (1, -1)), key=rank)


def _split(sides: dict[str, list[Text]], part: float, seed: int, groups: Any) -> Tensor:
    """Which texts, the positives first, only report."""
    flags: list[bool] = []
    for name, out in held_out_sides(sides, part, seed, groups).items():
        if not any(out) or len(out) - sum(out) < 2:
            raise DataError(
                f"{name} has {len(out) - sum(out)} texts to choose by and {sum(out)} to report on; two must choose and "
                "one must report, so pass at least three different ones, or another held_out."
            )
        flags += out
    return torch.tensor(flags)
