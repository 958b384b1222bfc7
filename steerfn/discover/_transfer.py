"""Transfer: the same direction in another model, through a linear map between the states of both on shared texts."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.datasets import held_out as hold_out
from steerfn.discover._engine import (
    LinearMap,
    MatchedText,
    PairSums,
    Reader,
    best_penalty,
    check_finite,
    match_texts,
    matched_states,
    shuffle_texts,
)
from steerfn.discover._own_vector import ContrastTexts
from steerfn.discover._random_vector import random_vector
from steerfn.discover._transferred import Transferred
from steerfn.model import Layout, Model, Tokenizer, layout, unwrap_model, vector_identity
from steerfn.operators import as_vector
from steerfn.output import quantity
from steerfn.run import as_texts, limit_of, position_named, same_text
from steerfn.values import (
    DataError,
    Site,
    SiteError,
    Sites,
    SteeringVector,
    as_sites,
    check_match,
    check_tokenizer,
    fingerprint,
    finite_number,
    integer,
    json_sha256,
    positive_int,
    public,
    warn,
)

METHODS = ("ridge", "least_squares", "orthogonal")
PARTS = FIT, CHOOSE, REPORT = range(3)
"""What a text is for: to make the map, to choose the site and the penalty, to measure the fit that is reported."""


@public
def transfer(
    vector: SteeringVector,
    source: tuple[Model, Tokenizer],
    target: tuple[Model, Tokenizer],
    texts: Any,
    *,
    method: str = "ridge",
    sites: Sites | None = None,
    positive: Any = None,
    negative: Any = None,
    position: Any = None,
    held_out: float = 0.2,
    draws: int = 199,
    batch_size: int | str = "auto",
    progress: bool = True,
    seed: int = 0,
) -> Transferred:
    """The direction of a vector in another model, through a linear map made of texts that both models read.

    With `x` the source's state at the vector's site and `y` the target's at one of its own, both after the same
    characters of a text, a map `y = W^T (x - mean x) + mean y` is fitted, and the vector `v` becomes `W^T v`:

    - "ridge": `W = (C + penalty tr(C)/d I)^-1 K`, `C` the covariance of `x` and `K` that of `x` with `y`;
    - "least_squares": the same without a penalty, which needs more tokens than dimensions;
    - "orthogonal": `W = s U V^T` with `K = U S V^T`, a rotation and one scale. The narrower of two widths is filled up
      with zeros, so of a wider source what has no room is lost.

    Positions are matched by characters: tokens that end at the same one, whatever the tokenizers. Attention sinks of
    either model are left out. Texts are divided in three: most make the map, some choose, and some judge what was made
    and chosen. The site is that whose states `y` tell best, by a ridge regression on the texts that choose, what the
    vector reads in the source, `<x, v>`; these choose the penalty of the map, too, by the mean of R^2 over the target's
    dimensions. The map is then made of all texts but those that judge. Every text is read twice by both models, and
    only sums are kept, `24 d_target^2` bytes a site.

    What shows whether it worked: the same fit with texts shuffled; and, where contrast texts are given, the cosine with
    the mean difference that the target itself makes of them, beside those of random vectors through the same map.
    Contrast texts that the vector was not made of say more.

    Args:
        vector: a vector with one site, in the residual stream or what is added to it.
        source: `(model, tokenizer)` that the vector was made from. Unchanged.
        target: `(model, tokenizer)` that it is for. Unchanged. Both tokenizers are fast ones.
        texts: plain texts of the kind on which the vector will act, many: some thousand tokens.
        method: how the map is fitted.
        sites: where in the target to look; an int means `resid_post`. Default: every block, at the kind of site that
            the vector has.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite.
        position: where the contrast texts are read. Default: as the vector's metadata says, or else "last".
        held_out: the part of the texts that judges, and the part of the rest that chooses.
        draws: how many random vectors are sent through the map.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        progress: show progress bars on stderr.
        seed: another seed, another division of the texts and other random vectors.

    Returns:
        The vector for the target with the evidence: `.vector`, `.verdict`, `.r2`, `.own`; print it.

    Raises:
        DataError: what is not a pair of model and tokenizer, a slow tokenizer, a text that is not plain, too few tokens
            in common (for "least_squares", not more than the source has dimensions), a zero vector.
        SiteError: a vector with several sites, a site inside a head, or one that a model lacks.
        ModelError: a vector that cannot be the source's.

    Warns:
        SteerWarning: fewer tokens than the source has dimensions; a vector that was made from another model.

    Source: Schönemann 1966, "A Generalized Solution of the Orthogonal Procrustes Problem"; Hoerl & Kennard 1970,
    "Ridge Regression"; for linear maps between models' representations, Lenc & Vedaldi 2015, "Understanding Image
    Representations by Measuring Their Equivariance and Equivalence", and Bansal et al. 2021, "Revisiting Model
    Stitching to Compare Neural Representations".

    Example:
        >>> import steerfn as sf
        >>> read = sf.datasets.load("sentiment")
        >>> texts, target = read.positive + read.negative, (model, tokenizer)  # for want of a second model, the same
        >>> moved = sf.transfer(v, (model, tokenizer), target, texts, sites=[14])
        >>> moved.r2 > 0.9, moved.vector.cosine(v) > 0.9
        (True, True)
    """
    vector = as_vector(vector, "transfer")
    if method not in METHODS:
        raise DataError(f"method must be one of {', '.join(METHODS)}, not {method!r:.80}.")
    held_out = finite_number("held_out", held_out, above=0, below=1)
    draws, seed = positive_int("draws", draws), integer("seed", seed)
    limit_of(batch_size)
    source, target = _reader("source", source), _reader("target", target)
    check_match(vector, source[0])
    site, candidates = _sites(vector, layout(source[0]), layout(target[0]), sites)
    directions = torch.stack([_only(vector), *(_only(random_vector(vector, seed + i)) for i in range(draws))])
    if not bool(directions[0].any()):
        raise DataError(f"The vector is zero at {site}, so there is no direction to transfer; pass another vector.")
    own = _contrast(vector, target, positive, negative, position)
    distinct = _distinct(texts)
    matched = match_texts(source, target, distinct)
    used = [i for i, (read, _) in enumerate(matched) if read.where]
    matched, parts = [matched[i] for i in used], _divide([distinct[i] for i in used], held_out, seed)
    tokens = torch.bincount(parts, torch.tensor([len(read.where) for read, _ in matched]), len(PARTS)).int().tolist()
    notes = _check_tokens(tokens, directions.shape[1], method, len(distinct) - len(used))
    width = layout(target[0]).d_model

    def states(pairs: Sequence[MatchedText], at: Sequence[Site]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return matched_states(source, target, pairs, (site, at), width, batch_size, progress)

    back = [[PairSums.zero(width, 1) for _ in PARTS] for _ in candidates]
    for numbers, x, y in states(matched, candidates):
        for here, sums, each in zip(candidates, back, y.split(width, 1), strict=True):
            check_finite(here, each)
            _add(sums, parts[numbers], each, (x @ directions[0]).unsqueeze(1))
    fits = [best_penalty(sums[FIT], sums[CHOOSE], "ridge")[1] for sums in back]
    place = fits.index(max(fits))
    _, _, (r2_read, _) = _fit(back[place], "ridge")

    chosen, both = candidates[place], [PairSums.zero(len(directions[0]), width) for _ in (*PARTS, *PARTS)]
    for numbers, x, y in states([*matched, *shuffle_texts(matched, seed)], [chosen]):
        check_finite(site, x)
        _add(both, torch.cat([parts, parts + len(PARTS)])[numbers], x, y)
    between, penalty, (r2, r2_of_variance) = _fit(both[: len(PARTS)], method)
    shuffled, _, (r2_shuffled, _) = _fit(both[len(PARTS) :], method)
    moved, *random = directions @ between.weight
    about = {
        "model": fingerprint(target[0], weights=True),
        "method": "transfer",
        "map": method,
        "penalty": penalty if method == "ridge" else None,
        "from": {"model": fingerprint(source[0], weights=True), **vector_identity(vector)},
        "texts": {"count": len(matched), "tokens": tokens[FIT] + tokens[CHOOSE], "sha256": json_sha256(distinct)},
        "held_out": {"part": held_out, "tokens": tokens[REPORT], "seed": seed},
        "r2": r2,
        "r2_shuffled": r2_shuffled,
    }
    options = {"batch_size": batch_size, "progress": progress}
    return Transferred(
        vector=SteeringVector({chosen: moved.float()}, about),
        source=site,
        fits=tuple(zip(candidates, fits, strict=True)),
        r2_read=r2_read,
        r2=r2,
        r2_of_variance=r2_of_variance,
        r2_shuffled=r2_shuffled,
        own=own and own.compare(chosen, moved, directions[0] @ shuffled.weight, random, seed, **options),
        notes=notes,
    )


def _reader(name: str, pair: Any) -> Reader:
    """A model and its tokenizer."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise DataError(f"{name} must be a pair (model, tokenizer), not a {type(pair).__name__}; pass both.")
    check_tokenizer(pair[1])
    return unwrap_model(pair[0]), pair[1]


def _sites(vector: SteeringVector, source: Layout, target: Layout, sites: Any) -> tuple[Site, tuple[Site, ...]]:
    """Where the vector is in the source, and where it may go in the target."""
    if len(vector.sites) != 1:
        some = ", ".join(map(str, vector.sites[:8]))
        raise SiteError(
            f"transfer moves one direction, but this vector has {len(vector.sites)}: {some}; choose one with "
            "v.select(site)."
        )
    [site] = source.resolve(vector.sites)
    alike = (Site(site.kind, (None, None, None), None if site.head is None else 0),)
    candidates = target.resolve(alike if sites is None else as_sites(sites))
    for each in (site, *candidates):
        if each.head is not None:
            raise SiteError(
                f"transfer maps the residual stream and what is added to it, and {each} is inside an attention head; "
                "use resid_pre, resid_mid, resid_post, attn_out or mlp_out."
            )
    return site, candidates


def _only(vector: SteeringVector) -> Tensor:
    """The one direction of a vector, float64."""
    return vector.directions[0].detach().double().cpu()


def _contrast(
    vector: SteeringVector, target: Reader, positive: Any, negative: Any, position: Any
) -> ContrastTexts | None:
    """The contrast texts, to be read as the vector says that it was."""
    if positive is None and negative is None:
        return None
    if positive is None:
        raise DataError("positive is missing: pass texts that show the behaviour beside those that show its opposite.")
    if position is None:
        named = position_named(vector.metadata.get("position"))
        position = "last" if named is None else named
    return ContrastTexts(target, positive, negative, position, None if vector.metadata.get("chat") else False)


def _distinct(texts: Any) -> list[str]:
    """Plain texts, each once."""
    listed = as_texts(texts, "texts")
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise DataError(
                f"texts[{i}] is a conversation or token ids, and tokens of two models are matched by the characters of "
                "a plain text; pass texts."
            )
    return list({same_text(text): str(text) for text in listed}.values())


def _divide(texts: Sequence[str], part: float, seed: int) -> Tensor:
    """The part of each text: what it is for."""
    parts = [REPORT if out else FIT for out in hold_out(texts, part, seed)]
    rest = [i for i, each in enumerate(parts) if each == FIT]
    for i, out in zip(rest, hold_out([texts[i] for i in rest], part, seed), strict=True):
        parts[i] = CHOOSE if out else FIT
    return torch.tensor(parts, dtype=torch.int64)


def _check_tokens(tokens: Sequence[int], width: int, method: str, without: int) -> tuple[str, ...]:
    """Refuse what is too little to fit or judge a map, and say what is little.

    Args:
        tokens: that both models have in common, by what their texts are for.
        width: of the source.
        method: of the map.
        without: texts without such tokens.
    """
    notes = [f"{quantity(without, 'text')} without a token in common left out."] if without else []
    if min(tokens) < 2:
        raise DataError(
            f"{tokens[FIT]}, {tokens[CHOOSE]} and {tokens[REPORT]} tokens that end at the same character in both "
            "models, attention sinks left out, make the map, choose the site and judge it; each needs two at least. "
            "Pass more texts, or longer ones."
        )
    if tokens[FIT] <= width:
        few = f"{tokens[FIT]} tokens make the map, not more than the {width} dimensions of the source"
        if method == "least_squares":
            raise DataError(f"{few}, so least squares has no single answer; pass more texts, or method='ridge'.")
        notes.append(f"{few}: what the texts do not span of the vector is lost. Pass more texts.")
        warn(notes[-1])
    return tuple(notes)


def _add(sums: list[PairSums], parts: Tensor, x: Tensor, y: Tensor) -> None:
    """Add states to the sums of their part."""
    for part in range(len(sums)):
        inside = parts == part
        sums[part] = sums[part].plus(x[inside], y[inside])


def _fit(sums: Sequence[PairSums], method: str) -> tuple[LinearMap, float, tuple[float, float]]:
    """The map of all texts but those that judge it, its penalty, and its two R^2 on these."""
    penalty, _ = best_penalty(sums[FIT], sums[CHOOSE], method)
    between = LinearMap.fit(sums[FIT].merge(sums[CHOOSE]), method, penalty)
    fits = between.r2(sums[REPORT])
    if any(map(math.isnan, fits)):
        raise DataError("The states of the texts that judge the map do not vary; pass more texts, or longer ones.")
    return between, penalty, fits
