"""Finding the condition of conditional steering: where and above which cosine prompts are of one kind."""

import dataclasses
import random
import warnings
from typing import Any

import torch
from torch import Tensor

from steerfn._activations import activations
from steerfn._blocks import unwrapped
from steerfn._chat_template import Chat, checked_chat
from steerfn._errors import DataError, SteerWarning
from steerfn._fingerprint import check_match, fingerprint
from steerfn._groups import number_groups
from steerfn._layout import layout
from steerfn._site import Site, as_sites, resid_post
from steerfn._text import Text, as_texts, encode
from steerfn._vector import SteeringVector
from steerfn.discover.engine._discover import checked_seed
from steerfn.discover.engine._sides import two_sides
from steerfn.discover.search._held_out import held_out as hold_out
from steerfn.discover.search._threshold import Candidate, Hits, candidate, cosines, hits, left_out_cosines, rank
from steerfn.operators import Condition, cosine_above, on_prompt
from steerfn.operators._base import as_vector, check_width
from steerfn.reading import reads, sinks_of


@dataclasses.dataclass(frozen=True, eq=False)
class FoundCondition:
    """What `find_condition` found; print it.

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
        """`sf.on_prompt(condition, by)`: asked of prompts as they were read in the search."""
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

    def __str__(self) -> str:
        chosen, out = self.chosen, self.held_out
        wide = max(len(each.site.name) for each in self.table)
        turned = any(each.sign < 0 for each in self.table)
        lines = [f"{'site':<{wide}}  threshold     F1" + ("  sign" if turned else "")]
        for each in self.table:
            sign = f"  {each.sign:+d}  " if turned else ""
            mark = "  <- chosen" if each.site == self.site else ""
            lines.append(f"{each.site.name:<{wide}}  {each.threshold:9.4f}  {each.hits.f1:.3f}{sign}{mark}".rstrip())
        return "\n".join(
            [
                f"Condition: cosine above {self.threshold:.4f} at {self.site}, by {self.by!r}",
                *lines,
                f"F1 {self.f1:.3f} on the {chosen.tp + chosen.fn} + {chosen.fp + chosen.tn} texts that chose it",
                f"F1 {out.f1:.3f} on {out.tp + out.fn} + {out.fp + out.tn} held-out texts (always yes: "
                f"{out.always:.3f}): precision {out.precision:.3f}, recall {out.recall:.3f}, {out.fn} missed, "
                f"{out.fp} false alarms",
            ]
        )


def find_condition(
    model: Any,
    tokenizer: Any,
    positive: Any,
    negative: Any = None,
    sites: Any = None,
    *,
    v: SteeringVector | None = None,
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

    With `v` given the vector is that one at every site, and the condition may hold on either side of it: where the
    other side wins, the result's vector is `-v`.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: prompts for which the condition should hold; or a contrast set or pairs in place of both sides.
        negative: prompts for which it should not, in any number.
        sites: one or several; an int means `resid_post`. Default: those of `v`, or `resid_post` of every layer. What
            the condition is to gate must not come before it, so leave later sites out.
        v: a vector to use instead of the difference of means.
        by: "last" reads the prompt's last token, "mean" the mean over all its tokens, as in `on_prompt`. Where the
            model has an attention sink the mean follows the length of the prompts, and a warning says so.
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
        SiteError: a site that the model, or `v`, lacks.
        ShapeError: a `v` of another width.

    Warns:
        SteerWarning: on the held-out texts the condition is no better than one that always holds.

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (CAST).

    Example:
        >>> import steerfn as sf
        >>> found = sf.find_condition(model, tokenizer, legal, other, sites=range(6, 15))  # doctest: +SKIP
        >>> op = sf.at(sf.generated, sf.when(found.on_prompt, sf.add(refusal, 2.0)))  # doctest: +SKIP
    """
    positive, negative, sites, _ = two_sides(positive, negative, sites)
    sides = {"positive": as_texts(positive, "positive"), "negative": as_texts(negative, "negative")}
    _check(by, held_out, chat)
    out = _split(sides, held_out, checked_seed(seed), groups)
    where, v = _where(model, sites, v)
    texts = [*sides["positive"], *sides["negative"]]
    # Every token of the prompt counts for `on_prompt`, which knows no model; attention sinks too.
    position = "mean_all" if by == "mean" else by
    options: dict[str, Any] = {"position": position, "batch_size": batch_size, "chat": chat, "progress": progress}
    states = activations(model, tokenizer, texts, where, **options)
    label = torch.tensor([i < len(sides["positive"]) for i in range(len(texts))])
    table = tuple(_candidates(site, states[site][~out].double(), label[~out], v) for site in where)
    best = max(table, key=rank)
    direction = best.sign * _direction(best.site, states[best.site][~out].double(), label[~out], v)
    if by == "mean":
        sinks = sinks_of(model, reads(encode(tokenizer, texts, chat), position), (best.site,))
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
    }
    found = FoundCondition(
        SteeringVector({best.site: direction.float()}, about), best.threshold, by, best.hits, judged, table
    )
    if judged.f1 <= judged.always:
        warnings.warn(
            f"The condition does not tell the texts apart: on held-out texts its F1 is {judged.f1:.3f}, and that of "
            f"one that always holds is {judged.always:.3f}; pass more texts, other sites, or prompts that differ in "
            "kind.",
            SteerWarning,
            stacklevel=2,
        )
    return found


def _check(by: Any, held_out: Any, chat: Any) -> None:
    if by not in ("last", "mean"):
        raise DataError(f"by is 'last' or 'mean', as prompts are read for sf.on_prompt, not {by!r:.80}.")
    number = isinstance(held_out, (int, float)) and not isinstance(held_out, bool)
    if not number or not 0 < held_out < 1:
        raise DataError(f"held_out is a share of the texts between 0 and 1, not {held_out!r}.")
    checked_chat(chat)


def _where(model: Any, sites: Any, v: Any) -> tuple[tuple[Site, ...], SteeringVector | None]:
    """The sites to try, in the order of a forward pass, and the given vector there."""
    root = unwrapped(model)
    at = layout(root)
    if v is not None:
        v = as_vector(v, "find_condition").resolve(at.n_layers)
        if "model" in v.metadata:
            check_match(v, root)
        v = v if sites is None else v.select(at.resolve(as_sites(sites)))
        sites = v.sites
    found = at.resolve(as_sites(resid_post[:] if sites is None else sites))
    return tuple(sorted(found, key=lambda site: site.order)), v


def _direction(site: Site, h: Tensor, positive: Tensor, v: SteeringVector | None) -> Tensor:
    """The vector of the condition at a site, from the states that choose."""
    return h[positive].mean(0) - h[~positive].mean(0) if v is None else v[site].double().cpu()


def _candidates(site: Site, h: Tensor, positive: Tensor, v: SteeringVector | None) -> Candidate:
    """The best threshold at a site; of a given vector the better of its two sides.

    The sign of a difference of means is that of the data. Left-out scores of texts without a difference lean to the
    wrong side, so trying both would take that for a finding.
    """
    if not bool(torch.isfinite(h).all()):
        raise DataError(
            f"The activations at {site} are not all finite numbers; load the model in bfloat16 or float32 (float16 "
            "overflows), or leave that site out."
        )
    if v is None:
        return candidate(site, left_out_cosines(h, positive), positive, 1)
    check_width(v[site], h, site)
    scores = cosines(h, _direction(site, h, positive, v))
    return max((candidate(site, sign * scores, positive, sign) for sign in (1, -1)), key=rank)


def _split(sides: dict[str, list[Text]], part: float, seed: int, groups: Any) -> Tensor:
    """Which texts, the positives first, only report."""
    found: list[bool] = []
    apart = None if groups is None else _groups_apart(sides, part, seed, groups)
    for name, texts in sides.items():
        out = hold_out(texts, part, seed) if apart is None else apart[name]
        if not any(out) or len(out) - sum(out) < 2:
            raise DataError(
                f"{name} has {len(out) - sum(out)} texts to choose by and {sum(out)} to report on; two must choose and "
                "one must report, so pass at least three different ones, or another held_out."
            )
        found += out
    return torch.tensor(found)


def _groups_apart(sides: dict[str, list[Text]], part: float, seed: int, groups: Any) -> dict[str, list[bool]]:
    """Which texts only report, by side, where groups are held out as wholes, from both sides at once."""
    labels = number_groups(groups, sum(map(len, sides.values())))
    first, second = sides
    of = {first: labels[: len(sides[first])], second: labels[len(sides[first]) :]}
    order = list(dict.fromkeys(labels))
    random.Random(seed).shuffle(order)
    chosen: set[int] = set()
    for group in order[:-1]:
        if all(sum(label in chosen for label in own) >= max(1, round(part * len(own))) for own in of.values()):
            break
        chosen.add(group)
    return {name: [label in chosen for label in own] for name, own in of.items()}
