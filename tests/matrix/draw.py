"""Cases drawn by hypothesis; each rule that leaves a combination out says why."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import by_hand
import hypothesis.strategies as st
import transformers
from by_hand import ACTS, ANATOMY, Program, Step

from matrix.case import TAKES_ROWS, Case
from matrix.models import PEFT

OLD = transformers.__version__.startswith("4.")

FAMILIES = tuple(ANATOMY) if not OLD else tuple(name for name in ANATOMY if name not in ("mamba", "lfm2"))
"""In 4.57 LFM2 reads pads, and neither it nor Mamba reorders its state for beams."""

RECURRENT = {"mamba", "lfm2"}
"""Their state can neither be cut, nor cropped, nor made by the caller."""

SLIDING = {"gemma2", "mistral_sliding"}
"""A window cannot be cropped, and is shorter than a mask as long as a cache."""

WHOLE_MASK = {"bloom", "opt"}
"""Their biases and positions are counted over the whole mask, which must be as long as the tokens, not as the cache."""

SINGLE = {"bloom", "gemma2"}
"""Their softmax is in float32, in which float64's mask is infinite, and a row of pads NaN."""

TRACED = tuple(sorted({*FAMILIES} - {"mamba", "bloom"}))
"""What `torch.compile` traces without warnings of its own."""

STRENGTHS = (2.0, -1.5, 0.7)
T = TypeVar("T")


class Choices:
    """Decisions read from bytes, one from each; 0 stands for what is as usual, towards which hypothesis shrinks.

    Strategies of strategies would do as well, but hypothesis spends most of a small budget on copies of cases in which
    one decision stands in another's place.
    """

    def __init__(self, given: bytes) -> None:
        self._left = iter(given)

    def pick(self, *options: T) -> T:
        return options[next(self._left, 0) % len(options)]

    def flag(self) -> bool:
        return self.pick(False, True)

    def number(self, low: int, high: int) -> int:
        return self.pick(*range(low, high + 1))


def drawn(make: Callable[..., Case], *args: Any) -> st.SearchStrategy[Case]:
    """Cases that one of the functions below makes."""
    return st.binary(min_size=64, max_size=64).map(lambda given: make(Choices(given), *args))


def _step(choose: Choices, family: str) -> Step:
    layer = choose.number(-3, 2)
    kind = choose.pick(*ANATOMY[family].kinds(layer % 3))
    head = choose.number(0, 3) if kind == "head_out" else None
    scope = choose.pick(*by_hand.SCOPES)
    return Step(choose.pick(*ACTS), kind, layer, scope, choose.pick(*STRENGTHS), head, seed=choose.number(0, 3))


def _program(choose: Choices, family: str) -> Program:
    return tuple(_step(choose, family) for _ in range(choose.number(1, 2)))


def _programs(choose: Choices, family: str, rows: int) -> tuple[Program, ...]:
    """One program for all rows, one with a strength for each row, or one for each row, some of them unsteered."""
    how = choose.pick("one", "one", "strengths", "rows")
    program = _program(choose, family)
    if how == "one":
        return (program,)
    if how == "strengths":
        program = tuple(s if s.act in TAKES_ROWS else dataclasses.replace(s, act="add") for s in program)
        return tuple(
            tuple(dataclasses.replace(s, number=choose.pick(*STRENGTHS)) for s in program) for _ in range(rows)
        )
    others = [() if choose.pick(False, False, True) else _program(choose, family) for _ in range(rows - 1)]
    return (program, *others)


def _lengths(choose: Choices) -> tuple[int, ...]:
    first, rows = choose.number(2, 6), choose.number(1, 3)
    ragged = choose.flag()
    return (first, *(choose.number(2, 6) if ragged else first for _ in range(rows - 1)))


def _objects(lora: bool) -> list[str]:
    """What can be steered and called."""
    return ["model", "backbone", "peft"] if lora else ["model", "backbone"]


def _company(choose: Choices, family: str) -> dict[str, Any]:
    """What else goes on: a nested context, another thread."""
    nested = (_step(choose, family),) if choose.pick(False, False, True) else ()
    return {"nested": nested, "beside": choose.pick("", "", "unsteered", "steered")}


def forwards(choose: Choices, families: Sequence[str] = FAMILIES, compiled: bool = False) -> Case:
    """Plain forward passes."""
    family, lora, lengths = choose.pick(*families), choose.flag() and PEFT, _lengths(choose)
    padding = choose.pick("left", "right") if len(set(lengths)) > 1 else ""
    at: dict[str, Any] = {"lora": lora, "padding": padding, "prompt_length": choose.flag()}
    at["dtype"] = "float32" if family in SINGLE else choose.pick("float64", "float64", "bfloat16")
    at["face"], at["steered"] = choose.pick("steer", "functional"), choose.pick(*_objects(lora))
    if compiled:  # it rounds otherwise, so in bfloat16 there is nothing to compare with
        at |= {"compiled": choose.pick("around", "in place"), "face": "steer"}
        at["dtype"] = "float32" if family in SINGLE else "float64"
    # A pure view is of one object, and that is called.
    at["called"] = at["steered"] if at["face"] == "functional" else choose.pick(*_objects(lora), "held backbone")
    caches = ["", "default", "dynamic", "StaticCache"]
    at["cache"] = choose.pick(*caches[: 2 if family in RECURRENT else 3 if family == "bloom" else 4])
    at["mask"] = "given" if padding else choose.pick("", "given")
    first = max(lengths) - min(lengths) + 1  # the first pass holds a token of every row
    # What is padded on the right cannot go on.
    if at["cache"] and padding != "right" and family not in RECURRENT and first < max(lengths):
        at["cuts"] = tuple(sorted({choose.number(first, max(lengths) - 1) for _ in range(choose.number(0, 2))}))
    if at["cache"] == "StaticCache" and family not in SLIDING | WHOLE_MASK:
        at["mask"] = choose.pick(at["mask"], "long")
    if at.get("cuts") and at["cache"] in ("default", "dynamic") and family not in SLIDING:
        at["cropped"] = choose.pick(0, 0, 2)
    if not compiled:  # compiled code cannot tell threads apart
        at |= _company(choose, family)
    return Case(family, _programs(choose, family, len(lengths)), lengths, "forward", **at)


def generations(choose: Choices, families: Sequence[str] = FAMILIES, compiled: bool = False) -> Case:
    """One or two turns of `generate`."""
    family, lora, lengths = choose.pick(*families), choose.flag() and PEFT, _lengths(choose)
    padding = "left" if len(set(lengths)) > 1 else ""
    called = choose.pick("model", "peft") if lora else "model"
    at: dict[str, Any] = {"lora": lora, "padding": padding, "called": called, "steered": choose.pick(*_objects(lora))}
    at["dtype"] = "float32" if family in SINGLE else "float64"
    at["decoding"] = choose.pick("greedy", "greedy", "beams", "returned", "guided", "guided against")
    guided = at["decoding"].startswith("guided")
    caches = ["", "default"] if family in RECURRENT else ["", "default", "dynamic", "static", "StaticCache"]
    # Guidance hands on `past_key_values`, which Mamba has none of.
    at["cache"] = "" if family == "mamba" and guided else choose.pick(*caches)
    at["mask"] = choose.pick("", "given")
    by_caller = at["cache"] in ("default", "dynamic", "StaticCache") and family not in RECURRENT
    turn = "first"
    if by_caller and at["decoding"] == "greedy":
        turns = ["first", "again", "begun", "new tokens"]
        known = (
            2 if at["cache"] == "StaticCache" and family in WHOLE_MASK else 3 if OLD else 4
        )  # 4.57 knows no last one
        turn = choose.pick(*turns[:known])
        if turn in ("again", "new tokens"):
            # Without one, transformers counts the new tokens only, and takes a generated pad id for a pad.
            at["mask"] = "given"
        at["prompt_length"] = turn == "begun" and choose.flag()
    at["turn"] = turn
    chunks = at["cache"] != "StaticCache" and not (OLD and family in SLIDING)  # 4.57 loses what slid out of a chunk
    if by_caller and chunks and turn == "first":
        at["chunk"] = choose.pick(0, 0, 2, 3)
    if turn == "first" and not at.get("chunk") and family != "mamba" and at["mask"] and not guided:
        at["embedded"] = choose.flag()
    at["processor"] = choose.pick(False, False, True)
    if compiled:
        at["compiled"] = "in place"
    else:
        at |= _company(choose, family)
    if OLD and at["cache"] == "static":
        at["beside"] = ""  # 4.57 keeps such a cache on the model, one for all threads
    return Case(family, _programs(choose, family, len(lengths)), lengths, "generate", **at)


def trainings(choose: Choices) -> Case:
    """Forward and backward passes in train mode."""
    family, lora, lengths = choose.pick(*FAMILIES), choose.flag() and PEFT, _lengths(choose)
    face, steered = choose.pick("steer", "functional"), choose.pick(*_objects(lora))
    return Case(
        family,
        (tuple(dict.fromkeys(_program(choose, family))),),  # the step that is trained is told by its value
        lengths,
        "gradient",
        dtype="float32" if family in SINGLE else "float64",
        lora=lora,
        steered=steered,
        called=steered if face == "functional" else choose.pick(*_objects(lora)),
        face=face,
        padding=choose.pick("left", "right") if len(set(lengths)) > 1 else "",
        checkpointing=choose.pick("", "reentrant", "not reentrant"),
        backward=choose.pick("inside", "after"),
    )
