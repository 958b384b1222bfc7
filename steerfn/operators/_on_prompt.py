"""Conditions on the prompt: asked of the prompt's tokens only, answered once for the whole row.

Under a key-value cache the prompt is not in later forward passes, so its answer is remembered for as long as one
`generate` runs. Where an answer is needed and cannot be known, that is an error and never a guess.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerfn.operators._condition import Condition, as_condition
from steerfn.operators._operator import Info, Steerable, Tokens
from steerfn.operators._sink_tokens import SinkTokens
from steerfn.values import Hidden, ShapeError, Site, SteerError, TokenMask, is_transformed, public, static, struct, warn

BY = ("last", "any", "mean")


@struct
class Evidence:
    """The evidence about the prompts of a batch so far, one entry for each prompt.

    Attributes:
        seen: how many of the prompt tokens that count have been met.
        needed: how many there are.
        sums: whether one of them satisfied the condition; with `by="mean"` how many of them are not attention sinks,
            and the sum of the states of these, and of all, at each site that is read, the operator's own first.
    """

    seen: Tensor
    needed: Tensor
    sums: tuple[Tensor, ...]

    def plus(self, other: "Evidence") -> "Evidence":
        """The evidence of an earlier part of the prompts and of a later one; of two booleans the sum is "or"."""
        sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        return Evidence(self.seen + other.seen, other.needed, sums)


class Memory:
    """The evidence and the decisions of one steering's conditions while one `generate` runs.

    By place: the site, and which asking it is there in its forward pass. Every pass asks in the same order, so nothing
    has to be known of how operators are bound, or which rows of the batch they are given.
    """

    def __init__(self) -> None:
        self.evidence: dict[tuple[str, int], Evidence] = {}
        self.answers: dict[tuple[str, int], Tensor] = {}


class Asking:
    """One steering at one site in one forward pass, as conditions on the prompt see it.

    Args:
        past: tokens in the cache before this pass, an int or a 0-d tensor.
        told: whether it is known where prompts end; if not, all that a pass without a cache holds is prompt.
        length: tokens of the longest prompt, padding included, where that is known.
        memory: what earlier passes of the same `generate` have left, None outside one.
    """

    def __init__(self, past: Any = 0, told: bool = False, length: int | None = None, memory: Memory | None = None):
        self.past, self.told, self.length, self.memory = past, told, length, memory
        self.asked = 0
        self.doubted = False
        self._unknown: Tensor | None = None

    def place(self, site: Site) -> tuple[str, int]:
        """The place of the next asking."""
        self.asked += 1
        return site.name, self.asked

    def begins(self) -> bool:
        """Whether it is certain that the pass begins where its rows begin."""
        if isinstance(self.past, Tensor):  # a static cache; the only wait for the device, before anything is decided
            return not torch.compiler.is_compiling() and int(self.past) == 0
        return self.past == 0

    def whole(self, seq: int) -> bool:
        """Whether it is certain that the pass holds every row's whole prompt."""
        return (not self.told or (self.length is not None and seq >= self.length)) and self.begins()

    def doubt(self, rows: Tensor) -> None:
        """Some rows have no answer: what acts on them by this condition must be noticed."""
        self.doubted = True
        self._unknown = rows if self._unknown is None else self._unknown | rows

    def unknown(self) -> Tensor | None:
        """Takes the rows without an answer that the condition just asked has left, `[rows, 1, 1]`; None: none."""
        rows, self._unknown = self._unknown, None
        return None if rows is None else rows[:, None, None]

    def check(self, out: Tensor, hidden: Tensor, tokens: Tokens, name: str) -> None:
        """Refuse a result in which a token was acted on by a condition that has no answer.

        Raises:
            SteerError: there is such a token.
        """
        lost = (out.isnan() & ~hidden.isnan()).any(-1)
        lost = lost if tokens.real is None else lost & tokens.real
        if not is_transformed(lost) and bool(lost.any()):
            raise SteerError(NO_ANSWER.format(name=name))


NO_ANSWER = (
    "sf.on_prompt has no answer at {name}: the operator acts on tokens of a row whose prompt was not seen in full. "
    "model.generate remembers the answer; where a prompt comes in chunks, act in the scope sf.generated; where a cache "
    "holds the beginning of the prompt, ask by='last'; in a plain forward pass give all tokens without a cache, and "
    "prompt_length=..."
)
COMPILED = (
    "sf.on_prompt cannot be answered at {name} in compiled code: this forward pass may lack a part of the prompt, and "
    "no earlier one of a running generate has answered. Give the prompt to generate in one piece, or do not compile "
    "the pass that reads it."
)


@struct
class _OnPrompt:
    inner: Any
    by: str = static()
    reads: tuple[str, ...] = static()
    sinks: SinkTokens = static(default=SinkTokens())

    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        answer = self._answer(hidden, info)
        rows = hidden.shape[0]
        if rows % answer.shape[0]:
            raise ShapeError(
                f"sf.on_prompt decided for {answer.shape[0]} prompts at {info.site}, but the batch now has {rows} "
                "rows; a batch may only grow by copies of its prompts while generate runs."
            )
        answer = answer.to(hidden.device)
        if rows != answer.shape[0]:
            answer = answer.repeat_interleave(rows // answer.shape[0], 0)
        return answer.unsqueeze(-1).expand(hidden.shape[:-1])

    def _answer(self, hidden: Hidden, info: Info) -> Tensor:
        """One answer for each prompt (or row, where rows are prompts)."""
        asking, site = info.decisions, info.site
        if asking is None:  # a hidden state on its own
            evidence = self._evidence(hidden, info)
            if not torch.compiler.is_compiling() and not is_transformed(evidence.seen):
                if not bool((evidence.seen >= evidence.needed).all()):
                    raise SteerError(NO_ANSWER.format(name=site.name))
            return self._judge(evidence, info)
        place, memory = asking.place(site), asking.memory
        if memory is not None and place in memory.answers:
            return memory.answers[place]
        whole = asking.whole(hidden.shape[1])
        if torch.compiler.is_compiling() and not whole:
            raise SteerError(COMPILED.format(name=site.name))
        evidence = self._evidence(hidden, info)
        if memory is not None and place in memory.evidence:
            evidence = memory.evidence[place].plus(evidence)
        answer = self._judge(evidence, info)
        if not whole:
            known = evidence.seen >= evidence.needed
            if not asking.told and not asking.begins():
                known = torch.zeros_like(known)
            whole = not is_transformed(known) and bool(known.all())
            if not whole:
                asking.doubt(~known.repeat_interleave(hidden.shape[0] // known.shape[0], 0))
        if memory is not None and whole:
            memory.answers[place] = answer
        elif memory is not None:
            memory.evidence[place] = evidence
        return answer

    def _evidence(self, hidden: Hidden, info: Info) -> Evidence:
        """The evidence about the prompts in this forward pass."""
        tokens = info.tokens
        length = tokens.prompt_length.squeeze(-1)
        if self.by == "last":
            counts, needed = tokens.generated_index == 0, length.clamp_max(1)
        else:
            counts, needed = tokens.index < tokens.prompt_length, length
        if tokens.real is not None:
            counts = counts & tokens.real
        if self.by == "mean":
            kept, states = counts & ~self.sinks.among(tokens), (hidden, *self._met(info).values())
            sums = (
                kept.sum(-1).expand(hidden.shape[0]),
                *(_total(state, which) for state in states for which in (kept, counts)),
            )
        else:
            sums = ((self.inner(hidden, info) & counts).any(-1),)
        rows, copies = hidden.shape[0], tokens.copies
        one = slice(None, None, copies if rows % copies == 0 else 1)  # the copies of a prompt are one prompt
        return Evidence(counts.sum(-1).expand(rows)[one], needed.expand(rows)[one], tuple(each[one] for each in sums))

    def _met(self, info: Info) -> dict[Site, Hidden]:
        """The states met at earlier sites that the condition reads."""
        return {site: state for site, state in (info.reads or {}).items() if site.name in self.reads}

    def _judge(self, evidence: Evidence, info: Info) -> Tensor:
        """The answer that evidence gives."""
        if self.by != "mean":
            return evidence.sums[0]
        kept, *totals = evidence.sums
        some = (kept > 0).unsqueeze(-1)
        number = torch.where(some, kept.unsqueeze(-1), evidence.needed.clamp_min(1).unsqueeze(-1))
        here, *earlier = (
            (torch.where(some.to(mine.device), mine, every) / number.to(mine.device)).unsqueeze(1)
            for mine, every in zip(totals[::2], totals[1::2], strict=True)
        )
        length = evidence.needed.unsqueeze(-1)
        reads = dict(zip(self._met(info), earlier, strict=True))
        return self.inner(here, Info(site=info.site, tokens=Tokens(length - 1, length, None), reads=reads)).squeeze(-1)


def _total(state: Hidden, counts: Tensor) -> Tensor:
    """The sum of the states that count, `[rows, width]`, in at least float32."""
    work = state.to(torch.promote_types(state.dtype, torch.float32))
    return torch.where(counts.to(state.device).unsqueeze(-1), work, 0.0).sum(1)


@struct
class OnPrompt(Condition):
    """See `on_prompt`."""

    condition: Condition
    by: str = static(default="last")
    sinks: SinkTokens = static(default=SinkTokens())

    def prepare(self, site: Site, device: Any) -> Any:
        reads = tuple(read.name for read in self.condition.reads)
        return _OnPrompt(inner=self.condition.prepare(site, device), by=self.by, reads=reads, sinks=self.sinks)


def asks_prompts(value: Steerable) -> bool:
    """Whether a condition on the prompt is in an operator or a condition."""
    return isinstance(value, OnPrompt) or any(asks_prompts(p) for p in value._parts if isinstance(p, Steerable))


@public
def on_prompt(condition: Condition | bool, by: str = "last", *, sinks: Mapping[str, Any] | None = None) -> Condition:
    """Ask a condition of the prompt only; the answer holds for every token of the row, generated ones too.

    With `c` the condition and `p` the prompt's real tokens, a row's answer is

    - `by="last"`: `c(h_last)`, that of the prompt's last token, where all of it has been read;
    - `by="any"`: `c(h_t)` for some `t` in `p`;
    - `by="mean"`: `c(mean_t h_t)`, that of the mean state over `p` without the model's attention sinks, as
      `position="mean"` reads texts; of a prompt that is nothing but sinks, over all of it.

    `sf.at(sf.generated, sf.when(sf.on_prompt(c), op))` decides on the prompt and acts on the answer. Inside `generate`
    the answer is taken once and remembered, for each prompt, with or without a cache, in chunks, under beams. In a
    plain forward pass all tokens are prompt unless `prompt_length` says otherwise. Per-token gates are conditions
    without `on_prompt`. Strengths need not be all or nothing: `op` may be `scheduled`.

    Args:
        condition: asked of each token: `cosine_above`, `projection_above`, `probe`, a combination, or a bool.
        by: "last", "any" or "mean".
        sinks: which tokens a mean leaves out, such as `{"first_token": True, "token_ids": []}`. By default what the
            vectors of the condition say in `v.metadata["sinks"]`: those of `find_condition(by="mean")`, and those that
            were read at `position="mean"`. Where they say nothing every token counts.

    Raises:
        SteerError: `condition` is not a condition or is about the prompt already, another `by`, or `sinks` of another
            form; at use, an operator that acts on tokens whose prompt has not been seen in full (a cache outside
            `generate`, the first chunks of a prompt), or sinks known by their ids where embeddings are passed.

    Warns:
        SteerWarning: `by="mean"` of vectors that a model made and that do not say what its sinks are.

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (CAST); its code takes the mean
    over all tokens.

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)})
        >>> h = torch.tensor([[[-1.0], [2.0], [-3.0]], [[2.0], [-1.0], [4.0]]])
        >>> op = sf.when(sf.on_prompt(sf.projection_above(v, 0.0)), sf.add(v))
        >>> op(h, sf.Info.of(h, prompt_length=2)).squeeze(-1)
        tensor([[ 0.,  3., -2.],
                [ 2., -1.,  4.]])
    """
    inner = as_condition(condition)
    if by not in BY:
        raise SteerError(f"by is 'last', 'any' or 'mean' (over the prompt's tokens), not {by!r}.")
    if asks_prompts(inner):
        raise SteerError(
            "on_prompt takes a condition on single tokens, and this one is about the whole prompt already; combine "
            "them outside, as in sf.on_prompt(a) & sf.on_prompt(b)."
        )
    return OnPrompt(inner, by, _sinks_of(inner, sinks) if by == "mean" else SinkTokens())


def _sinks_of(condition: Condition, given: Any) -> SinkTokens:
    """The sinks that are given, or else those that a condition's vectors know of."""
    if given is not None:
        return SinkTokens.of(given)
    known = SinkTokens.of_vectors(condition.vectors)
    if known is None and any("model" in v.metadata for v in condition.vectors):
        warn(
            "on_prompt(by='mean') reads every token of the prompt, attention sinks too, since the vectors of its "
            "condition do not say which tokens these are in their model: the mean may follow the length of the prompt. "
            "Find the condition with sf.discover.find_condition(..., by='mean'), which measures them, read the vector "
            "at position='mean', or pass sinks={'first_token': True, 'token_ids': []}."
        )
    return known or SinkTokens()
