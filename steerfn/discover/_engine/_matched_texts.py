"""Two models on the same texts: which of their tokens end at the same character, and their states there, in chunks."""

import dataclasses
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.output import progress_bar
from steerfn.run import Read, plan, run, sinks_of, token_ends
from steerfn.values import Site

NUMBERS = 1 << 24
"""States that are in memory at once, as numbers: 128 MiB in float64."""

Reader = tuple[Any, Any]
"""A model and its tokenizer."""
MatchedText = tuple[Read, Read]
"""What is read of a text by either model: as many tokens, which end at the same characters."""


def match_texts(source: Reader, target: Reader, texts: Sequence[str]) -> list[MatchedText]:
    """The tokens of each text that end at the same character in both models, without the sinks of either."""
    sides = []
    for model, tokenizer in (source, target):
        rows = token_ends(tokenizer, texts)
        sinks = sinks_of(model, [Read(ids, (len(ids) - 1,)) for ids, _ in rows], ()).known
        sides.append([(ids, _by_end(ends, set(sinks.others(ids)))) for ids, ends in rows])
    matched = []
    for both in zip(*sides, strict=True):
        common = sorted(both[0][1].keys() & both[1][1].keys())
        first, second = (Read(ids, tuple(ends[end] for end in common), apart=True) for ids, ends in both)
        matched.append((first, second))
    return matched


def _by_end(ends: Mapping[int, int], kept: Collection[int]) -> dict[int, int]:
    """The tokens by their ends, of those that are kept."""
    return {end: i for end, i in ends.items() if i in kept}


def shuffle_texts(matched: Sequence[MatchedText], seed: int) -> list[MatchedText]:
    """Each text as the first model reads it with another one, of like length, as the second reads that."""
    order = random.Random(seed).sample(range(len(matched)), len(matched))
    order.sort(key=lambda i: len(matched[i][0].where))
    other = dict(zip(order, [*order[1:], order[0]], strict=True))
    shuffled = []
    for i, (read, _) in enumerate(matched):
        another = matched[other[i]][1]
        common = min(len(read.where), len(another.where))
        shuffled.append(tuple(dataclasses.replace(each, where=each.where[:common]) for each in (read, another)))
    return shuffled


def matched_states(
    source: Reader,
    target: Reader,
    matched: Sequence[MatchedText],
    sites: tuple[Site, Sequence[Site]],
    width: int,
    batch_size: int | str,
    progress: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The states of both models at matched tokens, float64, in chunks of whole texts.

    Args:
        sites: where the source is read, and where the target is.
        width: of the target.

    Returns:
        The number of the text of each token `[tokens]`, the source's states `[tokens, width]`, and the target's at its
        sites beside each other `[tokens, sites * width]`.
    """
    longest_first = sorted(range(len(matched)), key=lambda i: len(matched[i][0].ids), reverse=True)
    chunk, tokens, most = [], 0, NUMBERS // (width * len(sites[1]))
    with progress_bar("Reading two models", "text", progress, total=len(matched)) as bar:
        for place, i in enumerate(longest_first, 1):
            chunk.append(i)
            tokens += len(matched[i][0].where)
            if tokens < most and place < len(matched):
                continue
            numbers, x = _read(source[0], [matched[i][0] for i in chunk], [sites[0]], batch_size)
            _, y = _read(target[0], [matched[i][1] for i in chunk], sites[1], batch_size)
            bar.update(len(chunk))
            yield torch.tensor(chunk)[numbers], x, y
            chunk, tokens = [], 0


def _read(model: Any, reads: Sequence[Read], sites: Sequence[Site], batch_size: int | str) -> tuple[Tensor, Tensor]:
    """The number of the text of each token, ascending, and the states at the sites beside each other."""
    batches = list(run(model, plan(model, reads, sites, batch_size=batch_size), progress=False))
    numbers = torch.tensor([number for batch in batches for number in batch.texts])
    states = torch.cat([torch.cat([batch.states[site] for site in sites], -1) for batch in batches])
    order = numbers.argsort(stable=True)
    return numbers[order], states[order].double()
