"""A way to use the library as data, and the operators that it gives the library."""

import dataclasses
from typing import Any

import by_hand
import torch
from by_hand import Program, Step

import steerfn as sf

SCOPES = {
    "everywhere": sf.everywhere,
    "prompt": sf.prompt,
    "generated": sf.generated,
    "last_prompt_token": sf.last_prompt_token,
    "positions(0)": sf.positions(0),
    "positions(1, -1)": sf.positions(1, -1),
    "positions(slice(-2, None))": sf.positions(slice(-2, None)),
    "~prompt": ~sf.prompt,
    "prompt & ~last_prompt_token": sf.prompt & ~sf.last_prompt_token,
    "positions(0) | generated": sf.positions(0) | sf.generated,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to use the library, as data. Printed on one line, without what is as usual.

    Attributes:
        family: in `by_hand.ANATOMY`.
        programs: what steers: one program for all rows, or one for each.
        lengths: tokens of each prompt.
        way: "forward", "generate" or "gradient".
        dtype: of the model.
        lora: whether PEFT wraps the model.
        steered: which object the library is given: the "model", its "backbone", "peft" around it.
        called: which object is called; it is reached inside the context, a "held backbone" was taken before.
        compiled: "", or what is: "around" (`torch.compile(m)`), "in place" (`m.compile()`).
        face: "steer" or "functional".
        padding: the side of the pads, "" where all rows are equally long.
        mask: "" (none is passed), "given", or "long" (as long as the static cache).
        cache: "" (none), "default", "dynamic" or "StaticCache" (given by the caller), "static" (asked for by name).
        cuts: where a forward is cut into passes that hand on the cache.
        cropped: tokens that each of these passes has too many, and that are cropped from the cache.
        prompt_length: whether it is given: in a forward, the last two tokens of each row are no prompt.
        decoding: "greedy", "beams", "returned" (several a prompt), "guided", or "guided against" a negative prompt.
        turn: "first"; "again" and "new tokens" are second turns with the cache of the first, of which the one passes
            the whole sequence and the other what is new; "begun" has a cache from a plain pass.
        chunk: `prefill_chunk_size`, 0 without.
        embedded: whether the prompt is given as embeddings.
        processor: whether a logits processor runs the model besides.
        nested: a second context, opened inside.
        beside: what another thread does in the middle of a pass: "" (nothing), "unsteered", "steered".
        checkpointing: "", "reentrant" or "not reentrant".
        backward: "inside" the context, or "after" it.
    """

    family: str
    programs: tuple[Program, ...]
    lengths: tuple[int, ...] = (4,)
    way: str = "forward"
    dtype: str = "float64"
    lora: bool = False
    steered: str = "model"
    called: str = "model"
    compiled: str = ""
    face: str = "steer"
    padding: str = ""
    mask: str = ""
    cache: str = ""
    cuts: tuple[int, ...] = ()
    cropped: int = 0
    prompt_length: bool = False
    decoding: str = "greedy"
    turn: str = "first"
    chunk: int = 0
    embedded: bool = False
    processor: bool = False
    nested: Program = ()
    beside: str = ""
    checkpointing: str = ""
    backward: str = "inside"

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        shown = {f.name: getattr(self, f.name) for f in fields if f.default != getattr(self, f.name)}
        return " | ".join(f"{name}: {value}" for name, value in shown.items())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis prints a case that fails."""
        printer.text(repr(self))

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def wide(self) -> torch.dtype:
        """Of directions: what the library computes in."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def rows(self, nested: bool = True) -> list[Program]:
        """What steers each row, with the steps of the nested context behind its own."""
        more = self.nested if nested else ()
        return [(*self.programs[r % len(self.programs)], *more) for r in range(len(self.lengths))]

    def prompt_lengths(self) -> torch.Tensor | None:
        """What `prompt_length=` is given."""
        if not self.prompt_length:
            return None
        return torch.tensor([max(n - 2, 1) if self.way == "forward" else n for n in self.lengths])


def vector(step: Step, dtype: torch.dtype, second: bool = False) -> sf.SteeringVector:
    """The direction of a step, or the other axis of its plane, at its site."""
    return sf.SteeringVector({sf.Site(step.kind, step.layer, step.head): step.direction(dtype, second)})


def of_step(step: Step, dtype: torch.dtype, number: Any = None, v: Any = None) -> sf.Operator:
    """A step as an operator; `number` and `v` replace its own."""
    v, c = vector(step, dtype) if v is None else v, step.number if number is None else number
    op = {
        "add": lambda: sf.add(v, c),
        "ablate": lambda: sf.ablate(v),
        "project": lambda: sf.project(v),
        "clamp": lambda: sf.clamp(v, c),
        "bound": lambda: sf.clamp(v, min=-abs(c), max=abs(c)),
        "renormed add": lambda: sf.renorm(sf.add(v, c)),
        "rotate": lambda: sf.rotate(v, c),
        "rotate in a plane": lambda: sf.rotate(v, c, plane=vector(step, dtype, second=True)),
        "add if aligned": lambda: sf.when(sf.projection_above(vector(step, dtype, second=True), 0.1), sf.add(v, c)),
    }[step.act]()
    return sf.scheduled(op, by_hand.FADING) if step.scope == "scheduled" else sf.at(SCOPES[step.scope], op)


def of_program(program: Program, dtype: torch.dtype) -> sf.Operator:
    """A program as an operator."""
    return of_step(program[0], dtype) if len(program) == 1 else sf.chain(*(of_step(step, dtype) for step in program))


def operator(case: Case) -> sf.Operator:
    """A case's programs, without the nested one: strengths by row where only those differ, else `rows`."""
    first = case.programs[0]
    if len(case.programs) == 1:
        return of_program(first, case.wide)
    kinds = {tuple(dataclasses.replace(step, number=0.0) for step in program) for program in case.programs}
    if len(kinds) == 1 and all(step.act in TAKES_ROWS for step in first):
        numbers = [torch.tensor([p[i].number for p in case.programs], dtype=case.wide) for i in range(len(first))]
        return sf.chain(*(of_step(step, case.wide, n) for step, n in zip(first, numbers, strict=True)))
    return sf.rows([of_program(program, case.wide) if program else None for program in case.programs])


TAKES_ROWS = ("add", "clamp", "rotate")
"""Acts whose number may be one for each row."""


def nothing(case: Case) -> sf.Operator:
    """What changes no bit at the case's sites: strength 0, and a scope that selects nothing."""
    steps = [step for program in case.rows() for step in program]
    zeros = [sf.add(vector(step, case.wide), 0.0) for step in steps]
    return sf.chain(*zeros, *(sf.at(~sf.everywhere, of_step(step, case.wide)) for step in steps))
