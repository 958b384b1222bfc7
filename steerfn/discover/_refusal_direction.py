"""The refusal direction: found between harmful and harmless requests, chosen by what removing it does.

Candidates are scored on held-out requests, by what removing and adding them does.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.datasets import held_out_sides
from steerfn.discover._engine import check_finite
from steerfn.discover._spread import spread
from steerfn.metrics import BATCH, PHRASES, log_odds, refusal_tokens
from steerfn.model import Layout, Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Operator, ablate, add, identity
from steerfn.output import progress_bar
from steerfn.run import Predictor, Read, Text, as_texts, encode, limit_of, plan, reads, run, sinks_of
from steerfn.values import (
    DataError,
    Site,
    SiteError,
    Sites,
    SteeringVector,
    as_integer,
    as_sites,
    fingerprint,
    finite_number,
    integer,
    public,
    resid_pre,
    warn,
)

Row = tuple[int, ...]
"""The token ids of a request."""
PRUNED = 0.2
"""The share of the layers, from the last, that are not tried by default: directions there are words, not intentions."""


@public
def refusal_direction(
    model: Model,
    tokenizer: Tokenizer,
    harmful: Any,
    harmless: Any,
    *,
    sites: Sites | None = None,
    positions: Any = None,
    refusal_phrases: Sequence[str] = PHRASES,
    max_kl: float = 0.1,
    min_induced: float | None = None,
    held_out: float = 0.2,
    groups: Any = None,
    batch_size: int | str = "auto",
    progress: bool = True,
    seed: int = 0,
) -> SteeringVector:
    """The direction whose removal stops a model from refusing, and changes little else.

    Requests go through the chat template. Candidates are `mean(h(harmful)) - mean(h(harmless))` at each site and each
    of the template's tokens after the user's text. On held-out requests each is scored by the refusal log-odds
    `log p - log(1 - p)`, with `p` the probability that the next token begins a refusal. The candidate with the
    lowest log-odds on harmful requests, when it is ablated from every layer's stream, wins, out of those

    - whose ablation changes harmless requests little: `KL(p || p_ablated) <= max_kl`, over the next token;
    - that induce refusal: added to harmless requests at their own site, they raise the log-odds.

    To remove it everywhere, or to induce refusal:

        op = sf.ablate(sf.discover.spread(v, v.metadata["ablated_at"]))
        op = sf.add(v)

    Args:
        model: any transformers causal LM that was trained to refuse. Unchanged.
        tokenizer: its tokenizer, with a chat template. Unchanged.
        harmful: requests that the model refuses.
        harmless: requests that it answers.
        sites: where to look; default `resid_pre` of the first 80 % of the layers.
        positions: token indices from the end, such as `[-1, -2]`; default all tokens of the template after the user's
            text.
        refusal_phrases: how refusals begin; their first tokens count.
        max_kl: bound on the divergence, in nats.
        min_induced: the refusal log-odds that adding must reach on harmless requests (the paper: 0, more likely than
            not); None asks only that they rise.
        held_out: the share of either side that candidates are scored on; the means are over the others.
        groups: which requests are of one kind (paraphrases of one): a label for each, the harmful ones first, or a
            mapping of `harmful` and `harmless` to labels. No group is both in the means and among those that score.
        batch_size: requests at once; "auto" lets the reading batch by tokens, and scores 32 at once.
        progress: show progress bars on stderr.
        seed: another seed holds out other requests.

    Returns:
        A vector at one site, in float32, in units of the residual stream. Its metadata holds the position and its
        token, the scores of every candidate and those of the unsteered model, and the sites of the ablation.

    Raises:
        DataError: too few requests, a tokenizer without a template, or no candidate that satisfies the conditions;
            the error names the best numbers.
        SiteError: a site that the model lacks, or one outside the residual stream.

    Warns:
        SteerWarning: a model that does not tell the two sides apart by refusing.

    Source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction".

    Example:
        >>> import steerfn as sf
        >>> refused = ["What time is it?", "Please call my mother.", "Order me a pizza.", "Open the window for me."]
        >>> answered = ["What is two plus two?", "Please list three fruits.", "Name a pizza.", "Describe a window."]
        >>> v = sf.discover.refusal_direction(  # the demo model refuses what it cannot do
        ...     model, tokenizer, refused, answered, sites=sf.resid_pre[14], positions=[-1], max_kl=2.0
        ... )
        >>> v.sites
        (resid_pre[14],)
        >>> without = sf.ablate(sf.discover.spread(v, v.metadata["ablated_at"]))
    """
    sides = {"harmful": as_texts(harmful, "harmful"), "harmless": as_texts(harmless, "harmless")}
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "refusal_direction reads the tokens of the chat template after the user's text, but this tokenizer has no "
            "chat template; set tokenizer.chat_template, or use an instruction-tuned model with its tokenizer."
        )
    finite_number("max_kl", max_kl, above=0)
    finite_number("held_out", held_out, above=0, below=1)
    limit_of(batch_size)
    model_layout = layout(unwrap_model(model))
    at = _sites(model_layout, sites)
    rows = {name: list(map(tuple, encode(tokenizer, side, True))) for name, side in sides.items()}
    where = _positions(tokenizer, [*rows["harmful"], *rows["harmless"]], positions)
    train, test = _split(sides, rows, held_out, integer("seed", seed), groups)
    candidates = _distinct(_differences(model, train, at, where, batch_size, progress))
    tokens = refusal_tokens(tokenizer, refusal_phrases)
    size = BATCH if batch_size == "auto" else int(batch_size)
    judge = Judge(Predictor.of(model, tokenizer), model_layout.stream, tokens, test, size)
    judge.warn()
    scores = judge.scores(candidates, progress)
    chosen = best(scores, max_kl, judge.harmless if min_induced is None else min_induced)
    direction = candidates[chosen.site, chosen.position]
    about = {
        "model": fingerprint(model, weights=True),
        "method": "refusal_direction",
        "counts": {name: len(texts) for name, texts in train.items()},
        "held_out": {name: len(texts) for name, texts in test.items()},
        "position": chosen.position,
        "token": tokenizer.decode([rows["harmful"][0][chosen.position]]),
        "refusal_tokens": [tokenizer.decode([token]) for token in tokens],
        "baseline": {"harmful": judge.harmful, "harmless": judge.harmless},
        "chosen": chosen.to_dict(),
        "scores": [score.to_dict() for score in scores],
        "ablated_at": [site.name for site in judge.everywhere],
    }
    return SteeringVector({chosen.site: direction[chosen.site]}, about)


def _sites(model_layout: Layout, sites: Any) -> tuple[Site, ...]:
    if sites is None:
        sites = resid_pre[: max(1, int(model_layout.n_layers * (1 - PRUNED)))]
    at = model_layout.resolve(as_sites(sites))
    heads = [site for site in at if site.kind == "head_out"]
    if heads:
        raise SiteError(f"A refusal direction lies in the residual stream, not in {heads[0]}; use sf.resid_pre[...].")
    return at


def _positions(tokenizer: Any, requests: list[Row], positions: Any) -> list[int]:
    """The positions to read, from the end; by default of the tokens that the template writes after the user's text."""
    if positions is not None:
        indices = [positions] if as_integer(positions) is not None else list(positions)
        chosen = [p for each in indices if (p := as_integer(each)) is not None and p < 0]
        if not chosen or len(chosen) < len(indices):
            raise DataError(
                f"positions must be indices from the end of the request, such as [-1, -2], not {positions!r:.80}."
            )
        return chosen
    # Two texts with nothing in common leave the template's own ending; the requests themselves count too, since
    # a tokenizer may join their last character with what follows.
    rows = [*map(tuple, encode(tokenizer, ["a", "7"], True)), *requests]
    first, common = rows[0], 0
    while all(len(row) > common and row[-1 - common] == first[-1 - common] for row in rows):
        common += 1
    if not common:
        raise DataError(
            "The chat template adds no tokens after the user's text that all requests share; pass positions=[-1]."
        )
    return list(range(-common, 0))


def _split(
    sides: dict[str, list[Text]], rows: dict[str, list[Row]], part: float, seed: int, groups: Any
) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """The requests that candidates are made of, and those that are held out, as token ids."""
    train, test = {}, {}
    for name, out in held_out_sides(sides, part, seed, groups).items():
        texts = sides[name]
        if not any(out) or all(out):
            raise DataError(
                f"{name} has {len(texts)} requests, of which {'all' if any(out) else 'none'} can be held out; pass at "
                "least two different ones."
            )
        train[name] = [row for row, is_out in zip(rows[name], out, strict=True) if not is_out]
        test[name] = [row for row, is_out in zip(rows[name], out, strict=True) if is_out]
    return train, test


def _differences(
    model: Any, train: dict[str, list[Row]], at: tuple[Site, ...], where: list[int], batch_size: Any, progress: bool
) -> dict[tuple[Site, int], SteeringVector]:
    """`mean(h(harmful)) - mean(h(harmless))` at every site and position, each request read once for all positions."""
    sides = train["harmful"], train["harmless"]
    if sides[0] == sides[1]:
        raise DataError("harmful and harmless are the same texts, so their difference is zero; pass opposites.")
    # A text for each position: those of one request differ in where they are read alone, so they share a row.
    texts: list[Read] = []
    kinds: list[int] = []  # the position and the side of each
    for p, position in enumerate(where):
        for s, side in enumerate(sides):
            texts += reads(list(map(list, side)), position)
            kinds += [2 * p + s] * len(side)
    width, kind = layout(unwrap_model(model)).width, torch.tensor(kinds)
    sums = {site: torch.zeros(2 * len(where), width(site), dtype=torch.float64) for site in at}
    for batch in run(model, plan(model, texts, at, batch_size=batch_size), progress=progress):
        for site, states in batch.states.items():
            sums[site].index_add_(0, kind[batch.texts], states.double())
    candidates = {}
    for p, position in enumerate(where):
        for site in at:
            check_finite(site, sums[site])
            harmful, harmless = (sums[site][2 * p + s] / len(side) for s, side in enumerate(sides))
            candidates[site, position] = SteeringVector({site: (harmful - harmless).float()})
    if any(read.where[0] == 0 for read in texts):  # a text so short that the model's attention sink is read
        sinks = sinks_of(model, texts, at)
        for (site, _), v in candidates.items():
            sinks.warn_along({site: v[site]})
    return candidates


def _distinct(candidates: dict[tuple[Site, int], SteeringVector]) -> dict[tuple[Site, int], SteeringVector]:
    """The candidates that are more than rounding: before the first block a template's token is always the same."""
    norms = {key: v.magnitude[key[0]] for key, v in candidates.items()}
    least = 1e-6 * max(norms.values())
    distinct = {key: v for key, v in candidates.items() if norms[key] > least}
    if not distinct:
        raise DataError(
            "The hidden states of harmful and harmless requests are the same at every position and site; read at "
            "deeper sites, or at positions that come after the requests."
        )
    return distinct


@dataclasses.dataclass(frozen=True)
class Score:
    """The effect of one candidate on held-out prompts.

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

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, with None for NaN and infinity."""
        numbers = {"ablated": self.ablated, "kl": self.kl, "induced": self.induced}
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        return {"site": self.site.name, "position": self.position, **finite}

    def __str__(self) -> str:
        return f"{self.site} at position {self.position} (KL {self.kl:.3g}, log-odds {self.induced:.3g} where added)"


class Judge:
    """Scores candidates on held-out prompts, against the unsteered model.

    Attributes:
        everywhere: the sites of an ablation.
        harmful: the unsteered refusal log-odds of the harmful prompts, mean.
        harmless: the same of the harmless ones.

    Args:
        predict: the model.
        everywhere: the sites of an ablation.
        tokens: first tokens of refusals.
        test: token ids of the prompts, by side.
        size: prompts at once.
    """

    def __init__(
        self, predict: Predictor, everywhere: tuple[Site, ...], tokens: list[int], test: dict[str, list[Row]], size: int
    ) -> None:
        self.predict, self.everywhere, self.tokens, self.size = predict, everywhere, tokens, size
        self.rows = {name: sorted(side, key=len) for name, side in test.items()}  # so that little is padded
        usual = self.logits(identity, "harmless")
        self.harmful, self.harmless = self.log_odds(self.logits(identity, "harmful")), self.log_odds(usual)
        self.usual = usual.log_softmax(-1)

    def warn(self) -> None:
        """Say so where the model does not refuse what it should."""
        if not self.harmful > self.harmless:
            warn(
                f"The unsteered model refuses harmful requests no more than harmless ones (log-odds "
                f"{self.harmful:.3g} and {self.harmless:.3g}), so there may be no refusal direction to find; check "
                "refusal_phrases against what the model writes."
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
        numbers = []
        for (site, position), v in progress_bar("Scoring directions", "direction", progress, candidates.items()):
            without = ablate(spread(v, self.everywhere))
            changed = self.logits(without, "harmless").log_softmax(-1)
            numbers.append(
                Score(
                    site=site,
                    position=position,
                    ablated=self.log_odds(self.logits(without, "harmful")),
                    kl=float(torch.nn.functional.kl_div(changed, self.usual, reduction="batchmean", log_target=True)),
                    induced=self.log_odds(self.logits(add(v), "harmless")),
                )
            )
        return numbers


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
