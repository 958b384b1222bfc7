"""Attention sinks: tokens whose state is that of no text, found by the norm that the model gives them.

Most decoder models keep a huge state at the first token, where heads look that have nothing to say (Xiao et al. 2023,
Sun et al. 2024): of SmolLM2-135M its norm is 22,700 from block 11 on, among 120 to 250. A mean over the `T` tokens of a
text contains `1/T` of it, so a difference of means is one of lengths. Which tokens are sinks no table says: a few
texts are read token by token.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.operators import SinkTokens
from steerfn.run._positions import Read
from steerfn.values import Site, unit, warn

PROBES, SHORT, LONG, DEPTHS = 4, 8, 32, 8
"""Stretches of text that are looked at, their tokens at least and at most, and the blocks at which this is done."""
FIRST, LATER = 5.0, 10.0
"""A token whose norm is this many times the median of its text is a sink: the first one, and a later one. Others
differ by two or three, and a frequent word ("the", in early blocks of SmolLM2) by up to eight."""
ALONG = 0.5
"""A direction whose cosine with the sink's state is larger lies along it; chance gives `1 / sqrt(d_model)`."""

StatesOf = Callable[[Sequence[Read], tuple[Site, ...]], Mapping[Site, Tensor]]


@dataclasses.dataclass(frozen=True, eq=False)
class Sinks:
    """The sinks of a model, as far as some texts show them.

    Attributes:
        first: whether the first token of a text is one, whatever it says.
        tokens: ids that are one elsewhere too, such as a second BOS.
        ratio: the largest norm of a token, in medians of its text.
        site: where that was.
        states: the direction of their state by site, empty where there are none.
    """

    first: bool
    tokens: frozenset[int]
    ratio: float
    site: Site | None
    states: Mapping[Site, Tensor]

    def leave_out(self, read: Read) -> Read:
        """A mean without them; all of the text where nothing else is in it."""
        return dataclasses.replace(read, where=tuple(self.known.leave_out(read.ids))) if read.mean else read

    @property
    def known(self) -> SinkTokens:
        """Which tokens they are."""
        return SinkTokens(self.first, tuple(sorted(self.tokens)))

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """The sink tokens as JSON values, for metadata."""
        return {
            "first_token": self.first,
            "tokens": [tokenizer.decode([token]) for token in sorted(self.tokens)],
            "token_ids": sorted(self.tokens),
            "norm_over_median": round(self.ratio, 1),
            "site": None if self.site is None else self.site.name,
        }

    def warn_along(self, directions: Mapping[Site, Tensor]) -> None:
        """Warn of a direction that lies along the sinks' state."""
        along = {
            site: float(unit(direction.detach().double().cpu()) @ self.states[site])
            for site, direction in directions.items()
            if site in self.states
        }
        worst = max(along, key=lambda site: abs(along[site]), default=None)
        if worst is not None and abs(along[worst]) > ALONG:
            warn(
                f"The direction at {worst} lies along the state of the model's attention sink (cosine "
                f"{along[worst]:.2f}), a token whose norm is up to {self.ratio:.0f} times the others'; such a vector "
                "follows how long the texts are rather than what they say. Read them at position='last', or at "
                "'mean', which leaves sinks out, and give each text more than one token."
            )


def measure_sinks(reads: Sequence[Read], blocks: Sequence[Site], sites: tuple[Site, ...], states: StatesOf) -> Sinks:
    """The sinks of a model, measured on a few stretches of texts.

    Args:
        blocks: where blocks end, to measure at.
        sites: where the direction of the sinks is wanted.
        states: reads the model at some sites, one row for each read.
    """
    rows = [_stretch(reads, len(reads) * i // PROBES) for i in range(min(PROBES, len(reads)))]
    rows = [row for row in dict.fromkeys(rows) if len(row) > 2]
    inner = blocks[:-1] or blocks  # the last one writes what the vocabulary reads, with norms of their own
    at = tuple(dict.fromkeys(inner[i * (len(inner) - 1) // (DEPTHS - 1)] for i in range(DEPTHS))) if inner else ()
    if not rows or not at:
        return Sinks(False, frozenset(), 0.0, None, {})
    read = [Read(row, (i,)) for row in rows for i in range(len(row))]
    by_site = states(read, tuple(dict.fromkeys((*at, *sites))))
    lengths = [len(row) for row in rows]
    norms = torch.stack([by_site[site].double().norm(dim=-1) for site in at]).split(lengths, -1)
    ratios = torch.cat([each / each.median(-1, keepdim=True).values.clamp_min(1e-12) for each in norms], -1)
    first = [each.where[0] == 0 for each in read]
    least = torch.tensor([FIRST if start else LATER for start in first], dtype=ratios.dtype)
    is_sink = (ratios > least).any(0).tolist()
    ids = [each.ids[each.where[0]] for each in read]
    later = Counter(token for token, start in zip(ids, first, strict=True) if not start)
    sunk = Counter(token for token, start, sink in zip(ids, first, is_sink, strict=True) if sink and not start)
    largest = int(ratios.argmax())
    return Sinks(
        first=2 * sum(a and b for a, b in zip(first, is_sink, strict=True)) > len(rows),
        tokens=frozenset(token for token, count in sunk.items() if 2 * count > later[token]),
        ratio=float(ratios.max()),
        site=at[largest // ratios.shape[1]],
        states={site: unit(unit(by_site[site].double()[is_sink]).mean(0)) for site in sites} if any(is_sink) else {},
    )


def _stretch(reads: Sequence[Read], start: int) -> tuple[int, ...]:
    """The tokens from the beginning of a text on; of very short texts those of the next, too."""
    ids: tuple[int, ...] = ()
    for read in reads[start:]:
        ids += read.ids
        if len(ids) >= SHORT:
            break
    return ids[:LONG]
