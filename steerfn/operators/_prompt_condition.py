"""Conditions on the prompt: asked of the prompt's tokens only, answered once for the whole row.

Under a key-value cache the prompt is not in later forward passes, so its answer is remembered for as long as one
`generate` runs. Where an answer is needed and cannot be known, that is an error and never a guess.
"""

from typing import Any

import torch
from torch import Tensor

from steerfn._errors import ShapeError, SteerError
from steerfn._finite import is_transformed
from steerfn._site import Site
from steerfn._struct import static, struct
from steerfn._types import Hidden, TokenMask
from steerfn.operators._base import Steerable
from steerfn.operators._condition import Condition, as_condition
from steerfn.operators._info import Info, Tokens

BY = ("last", "any", "mean")


@struct
class Evidence:
    """What the prompts of a batch have shown so far, one entry for each prompt.

    Attributes:
        seen: how many of the prompt tokens that count have been met.
        needed: how many there are.
        found: whether one of them satisfied the condition; with `by="mean"` the sum of the states at each site that
            is read, the operator's own first.
    """

    seen: Tensor
    needed: Tensor
    found: tuple[Tensor, ...]

    def plus(self, other: "Evidence") -> "Evidence":
        """The evidence of an earlier part of the prompts and of a later one; of two booleans the sum is "or"."""
        found = tuple(a + b for a, b in zip(self.found, other.found, strict=True))
        return Evidence(self.seen + other.seen, other.needed, found)


class Memory:
    """What the conditions of one steering have met and decided while one `generate` runs.

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
            return self._judged(evidence, info)
        place, memory = asking.place(site), asking.memory
        if memory is not None and place in memory.answers:
            return memory.answers[place]
        whole = asking.whole(hidden.shape[1])
        if torch.compiler.is_compiling() and not whole:
            raise SteerError(COMPILED.format(name=site.name))
        evidence = self._evidence(hidden, info)
        if memory is not None and place in memory.evidence:
            evidence = memory.evidence[place].plus(evidence)
        answer = self._judged(evidence, info)
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
        """What this forward pass shows of the prompts."""
        tokens = info.tokens
        length = tokens.prompt_length.squeeze(-1)
        if self.by == "last":
            counts, needed = tokens.generated_index == 0, length.clamp_max(1)
        else:
            counts, needed = tokens.index < tokens.prompt_length, length
        if tokens.real is not None:
            counts = counts & tokens.real
        if self.by == "mean":
            found = tuple(_total(state, counts) for state in (hidden, *self._met(info).values()))
        else:
            found = ((self.inner(hidden, info) & counts).any(-1),)
        rows, copies = hidden.shape[0], tokens.copies
        one = slice(None, None, copies if rows % copies == 0 else 1)  # the copies of a prompt are one prompt
        return Evidence(counts.sum(-1).expand(rows)[one], needed.expand(rows)[one], tuple(f[one] for f in found))

    def _met(self, info: Info) -> dict[Site, Hidden]:
        """The states met at earlier sites that the condition reads."""
        return {site: state for site, state in (info.reads or {}).items() if site.name in self.reads}

    def _judged(self, evidence: Evidence, info: Info) -> Tensor:
        """The answer that evidence gives."""
        if self.by != "mean":
            return evidence.found[0]
        number = evidence.needed.clamp_min(1).unsqueeze(-1)
        here, *earlier = ((total / number.to(total.device)).unsqueeze(1) for total in evidence.found)
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

    def prepare(self, site: Site, device: Any) -> Any:
        reads = tuple(read.name for read in self.condition.reads)
        return _OnPrompt(inner=self.condition.prepare(site, device), by=self.by, reads=reads)


def asks_prompts(value: Steerable) -> bool:
    """Whether a condition on the prompt is in an operator or a condition."""
    parts = (part for part in value._parts() if isinstance(part, Steerable))
    return isinstance(value, OnPrompt) or any(map(asks_prompts, parts))


def on_prompt(condition: Any, by: str = "last") -> Condition:
    """Ask a condition of the prompt only; the answer holds for every token of the row, generated ones too.

    With `c` the condition and `p` the prompt's real tokens, a row's answer is

    - `by="last"`: `c(h_last)`, that of the prompt's last token, where all of it has been read;
    - `by="any"`: `c(h_t)` for some `t` in `p`;
    - `by="mean"`: `c(mean_t h_t)`, that of the mean state over `p` (as CAST's code does by default).

    `sf.at(sf.generated, sf.when(sf.on_prompt(c), op))` decides on the prompt and acts on the answer. Inside `generate`
    the answer is taken once and remembered, for each prompt, with or without a cache, in chunks, under beams. In a
    plain forward pass all tokens are prompt unless `prompt_length` says otherwise. Per-token gates are conditions
    without `on_prompt`. Strengths need not be all or nothing: `op` may be `scheduled`.

    Args:
        condition: asked of each token: `cosine_above`, `projection_above`, `probe`, a combination, or a bool.
        by: "last", "any" or "mean".

    Raises:
        SteerError: `condition` is none or is about the prompt already, or another `by`; at use, an operator that acts
            on tokens whose prompt has not been seen in full (a cache outside `generate`, the first chunks of a
            prompt).

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (CAST).

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
    return OnPrompt(inner, by)
