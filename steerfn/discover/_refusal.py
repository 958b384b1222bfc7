"""The refusal direction: found between harmful and harmless requests, chosen by what removing it does."""

import math
from collections.abc import Sequence
from typing import Any

from steerfn._blocks import Layout, unwrapped
from steerfn._errors import DataError, SiteError
from steerfn._fingerprint import fingerprint
from steerfn._layout import layout
from steerfn._site import Site, as_sites, resid_pre
from steerfn._text import Text, as_texts, encode
from steerfn._vector import SteeringVector
from steerfn.discover._mean import MeanDifference
from steerfn.discover._refusal_score import Judge, best
from steerfn.discover.engine._discover import checked_seed, discover
from steerfn.discover.search._held_out import held_out as hold_out
from steerfn.reading._budget import limit_of

PHRASES = ("I cannot", "I'm sorry", "I am sorry", "As an AI", "Sorry")
PRUNED = 0.2
"""The share of the layers, from the last, that are not tried by default: directions there are words, not intentions."""
BATCH = 32
"""Prompts at once where `batch_size` leaves it open: what is scored needs the logits of one token each."""


def refusal_direction(
    model: Any,
    tokenizer: Any,
    harmful: Any,
    harmless: Any,
    *,
    sites: Any = None,
    positions: Any = None,
    refusal_phrases: Sequence[str] = PHRASES,
    max_kl: float = 0.1,
    min_induced: float | None = None,
    held_out: float = 0.2,
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

        op = sf.ablate(sf.spread(v, v.metadata["ablated_at"]))
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
        >>> v = sf.refusal_direction(model, tokenizer, harmful, harmless)  # doctest: +SKIP
        >>> without = sf.ablate(sf.spread(v, v.metadata["ablated_at"]))  # doctest: +SKIP
    """
    sides = {"harmful": as_texts(harmful, "harmful"), "harmless": as_texts(harmless, "harmless")}
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "refusal_direction reads the tokens of the chat template after the user's text, but this tokenizer has no "
            "chat template; set tokenizer.chat_template, or use an instruction-tuned model with its tokenizer."
        )
    _check(max_kl, held_out, batch_size)
    found = layout(unwrapped(model))
    at = _sites(found, sites)
    where = _positions(tokenizer, [*sides["harmful"], *sides["harmless"]], positions)
    train, test = _split(sides, held_out, checked_seed(seed))
    candidates: dict[tuple[Site, int], SteeringVector] = {}
    for position in where:
        v = discover(
            MeanDifference(),
            model,
            tokenizer,
            train["harmful"],
            train["harmless"],
            at,
            position=position,
            batch_size=batch_size,
            chat=True,
            progress=progress,
        )
        candidates |= {(site, position): v.select(site) for site in v.sites}
    candidates = _distinct(candidates)
    tokens = _first_tokens(tokenizer, refusal_phrases)
    judge = Judge.of(model, tokenizer, found, tokens, test, BATCH if batch_size == "auto" else int(batch_size))
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
        "token": tokenizer.decode([encode(tokenizer, sides["harmful"][:1], True)[0][chosen.position]]),
        "refusal_tokens": [tokenizer.decode([token]) for token in tokens],
        "baseline": {"harmful": judge.harmful, "harmless": judge.harmless},
        "chosen": chosen.described(),
        "scores": [score.described() for score in scores],
        "ablated_at": [site.name for site in judge.everywhere],
    }
    return SteeringVector({chosen.site: direction[chosen.site]}, about)


def _check(max_kl: Any, held_out: Any, batch_size: Any) -> None:
    for name, value, least, most in (("max_kl", max_kl, 0, math.inf), ("held_out", held_out, 0, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < most:
            raise DataError(f"{name} is a number between {least} and {most}, not {value!r}.")
    limit_of(batch_size, "requests")


def _sites(found: Layout, sites: Any) -> tuple[Site, ...]:
    if sites is None:
        sites = resid_pre[: max(1, int(found.n_layers * (1 - PRUNED)))]
    at = found.resolve(as_sites(sites))
    heads = [site for site in at if site.kind == "head_out"]
    if heads:
        raise SiteError(f"A refusal direction lies in the residual stream, not in {heads[0]}; use sf.resid_pre[...].")
    return at


def _positions(tokenizer: Any, texts: list[Text], positions: Any) -> list[int]:
    """The positions to read, from the end; by default of the tokens that the template writes after the user's text."""
    if positions is not None:
        chosen = [positions] if isinstance(positions, int) else list(positions)
        if not chosen or any(isinstance(p, bool) or not isinstance(p, int) or p >= 0 for p in chosen):
            raise DataError(
                f"positions are indices from the end of the request, such as [-1, -2], not {positions!r:.80}."
            )
        return chosen
    # Two texts with nothing in common leave the template's own ending; the requests themselves count too, since
    # a tokenizer may join their last character with what follows.
    rows = encode(tokenizer, ["a", "7", *texts], True)
    first, common = rows[0], 0
    while all(len(row) > common and row[-1 - common] == first[-1 - common] for row in rows):
        common += 1
    if not common:
        raise DataError(
            "The chat template writes nothing after the user's text that all requests share; pass positions=[-1]."
        )
    return list(range(-common, 0))


def _split(sides: dict[str, list[Text]], part: float, seed: int) -> tuple[dict[str, list[Text]], dict[str, list[Text]]]:
    train, test = {}, {}
    for name, texts in sides.items():
        out = hold_out(texts, part, seed)
        if not any(out):
            raise DataError(
                f"{name} has {len(texts)} requests, of which none can be held out; pass at least two different ones."
            )
        train[name] = [text for text, is_out in zip(texts, out, strict=True) if not is_out]
        test[name] = [text for text, is_out in zip(texts, out, strict=True) if is_out]
    return train, test


def _distinct(candidates: dict[tuple[Site, int], SteeringVector]) -> dict[tuple[Site, int], SteeringVector]:
    """The candidates that are more than rounding: before the first block a template's token is always the same."""
    norms = {key: v.magnitude[key[0]] for key, v in candidates.items()}
    least = 1e-6 * max(norms.values())
    found = {key: v for key, v in candidates.items() if norms[key] > least}
    if not found:
        raise DataError(
            "The hidden states of harmful and harmless requests are the same at every position and site; read at "
            "deeper sites, or at positions that come after the requests."
        )
    return found


def _first_tokens(tokenizer: Any, phrases: Any) -> list[int]:
    """The first tokens of some phrases, without what the tokenizer does not know."""
    if isinstance(phrases, str) or not phrases or not all(isinstance(p, str) and p.strip() for p in phrases):
        raise DataError(f"refusal_phrases is a list of texts such as ['I cannot'], not {phrases!r:.80}.")
    found = dict.fromkeys(ids[0] for p in phrases if (ids := tokenizer(p, add_special_tokens=False)["input_ids"]))
    found.pop(getattr(tokenizer, "unk_token_id", None), None)
    if not found:
        raise DataError(
            f"No refusal phrase begins with a token that the tokenizer knows ({', '.join(phrases):.120}); pass "
            "refusal_phrases that this model writes."
        )
    return list(found)
