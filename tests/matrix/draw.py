"""Cases drawn by hypothesis; each rule that leaves a combination out says why."""

import dataclasses
from typing import Any

import by_hand
import hypothesis.strategies as st
import transformers
from by_hand import ACTS, ANATOMY, Program, Step

from matrix.case import TAKES_ROWS, Case
from matrix.models import PEFT

OLD = transformers.__version__.startswith("4.")

RECURRENT = {"mamba", "lfm2"}
"""Their state can neither be cut, nor cropped, nor made by the caller."""

SLIDING = {"gemma2", "mistral_sliding"}
"""A window cannot be cropped, and is shorter than a mask as long as a cache."""

WHOLE_MASK = {"bloom", "opt"}
"""Their biases and positions are counted over the whole mask, which must be as long as the tokens, not as the cache."""

SINGLE = {"bloom", "gemma2"}
"""Their softmax is in float32, in which float64's mask is infinite, and a row of pads NaN."""

TRACED = sorted(ANATOMY.keys() - {"mamba", "bloom"})
"""What `torch.compile` traces without warnings of its own."""

strengths = st.sampled_from([2.0, -1.5, 0.7])


def pick(*options: Any) -> Any:
    """One of some values, those first that are as usual: hypothesis shrinks towards them."""
    return st.sampled_from(options)


@st.composite
def steps(draw: Any, family: str) -> Step:
    layer = draw(st.integers(-3, 2))
    kind = draw(pick(*ANATOMY[family].kinds(layer % 3)))
    head = draw(st.integers(0, 3)) if kind == "head_out" else None
    scope = draw(pick(*by_hand.SCOPES))
    return Step(draw(pick(*ACTS)), kind, layer, scope, draw(strengths), head, seed=draw(st.integers(0, 3)))


@st.composite
def programs(draw: Any, family: str, rows: int) -> tuple[Program, ...]:
    """One program for all rows, one with a strength for each row, or one for each row, some of them unsteered."""
    some = st.lists(steps(family), min_size=1, max_size=2).map(tuple)
    how = draw(pick("one", "one", "strengths", "rows"))
    if how == "one":
        return (draw(some),)
    if how == "strengths":
        program = [s if s.act in TAKES_ROWS else dataclasses.replace(s, act="add") for s in draw(some)]
        return tuple(tuple(dataclasses.replace(s, number=draw(strengths)) for s in program) for _ in range(rows))
    each = [draw(st.one_of(st.just(()), some)) for _ in range(rows)]
    return tuple(each) if any(each) else (draw(some),)


def objects(lora: bool) -> list[str]:
    """What can be steered and called."""
    return ["model", "backbone", "peft"] if lora else ["model", "backbone"]


@st.composite
def forwards(draw: Any, families: Any = tuple(ANATOMY), compiled: bool = False) -> Case:
    """Plain forward passes."""
    family, lora = draw(pick(*families)), PEFT and draw(st.booleans())
    lengths = tuple(draw(st.lists(st.integers(2, 6), min_size=1, max_size=3)))
    lengths = (lengths[0],) * len(lengths) if draw(st.booleans()) else lengths
    padding = draw(pick("left", "right")) if len(set(lengths)) > 1 else ""
    at: dict[str, Any] = {"lora": lora, "padding": padding, "prompt_length": draw(st.booleans())}
    at["dtype"] = "float32" if family in SINGLE else draw(pick("float64", "float64", "bfloat16"))
    at["face"], at["steered"] = draw(pick("steer", "functional")), draw(pick(*objects(lora)))
    if compiled:  # compiled code cannot tell threads apart; it rounds otherwise
        at |= {"compiled": draw(pick("around", "in place")), "face": "steer", "dtype": "float64"}
    # A pure view is of one object, and that is called.
    at["called"] = at["steered"] if at["face"] == "functional" else draw(pick(*objects(lora), "held backbone"))
    caches = ["", "default"]
    if family not in RECURRENT:
        caches += ["dynamic"] if family == "bloom" else ["dynamic", "StaticCache"]
    at["cache"] = draw(pick(*caches))
    at["mask"] = "given" if padding else draw(pick("", "given"))
    first = max(lengths) - min(lengths) + 1  # the first pass holds a token of every row
    # What is padded on the right cannot go on.
    if at["cache"] and padding != "right" and family not in RECURRENT and first < max(lengths):
        at["cuts"] = tuple(sorted(draw(st.sets(st.integers(first, max(lengths) - 1), max_size=2))))
    if at["cache"] == "StaticCache" and family not in SLIDING | WHOLE_MASK:
        at["mask"] = draw(pick(at["mask"], "long"))
    if at.get("cuts") and at["cache"] in ("default", "dynamic") and family not in SLIDING:
        at["cropped"] = draw(pick(0, 0, 2))
    if not compiled:
        at["beside"] = draw(pick("", "", "unsteered", "steered"))
        at["nested"] = draw(pick(False, False, True)) and (draw(steps(family)),) or ()
    return Case(family, draw(programs(family, len(lengths))), lengths, "forward", **at)


@st.composite
def generations(draw: Any, families: Any = tuple(ANATOMY), compiled: bool = False) -> Case:
    """One or two turns of `generate`."""
    family, lora = draw(pick(*families)), PEFT and draw(st.booleans())
    lengths = tuple(draw(st.lists(st.integers(2, 6), min_size=1, max_size=3)))
    lengths = (lengths[0],) * len(lengths) if draw(st.booleans()) else lengths
    padding = "left" if len(set(lengths)) > 1 else ""
    called = draw(pick("model", "peft")) if lora else "model"
    at: dict[str, Any] = {"lora": lora, "padding": padding, "called": called, "steered": draw(pick(*objects(lora)))}
    at["dtype"] = "float32" if family in SINGLE else "float64"
    at["decoding"] = draw(pick("greedy", "greedy", "beams", "returned", "guided", "guided against"))
    caches = ["", "default"] if family in RECURRENT else ["", "default", "dynamic", "static", "StaticCache"]
    if family == "mamba" and at["decoding"].startswith("guided"):
        caches = [""]  # guidance hands on `past_key_values`, which it has none of
    at["cache"], at["mask"] = draw(pick(*caches)), draw(pick("", "given"))
    by_caller = at["cache"] in ("default", "dynamic", "StaticCache") and family not in RECURRENT
    if by_caller and at["decoding"] == "greedy":
        turns = ["first", "again", "new tokens", "begun"]
        at["turn"] = draw(pick(*turns[: 2 if at["cache"] == "StaticCache" and family in WHOLE_MASK else 4]))
        if at["turn"] in ("again", "new tokens"):
            # Without one, transformers counts the new tokens only, and takes a generated pad id for a pad.
            at["mask"] = "given"
        at["prompt_length"] = at["turn"] == "begun" and draw(st.booleans())
    if by_caller and at["cache"] != "StaticCache" and at.get("turn", "first") == "first":
        at["chunk"] = draw(pick(0, 0, 2, 3))
    if at.get("turn", "first") == "first" and not at.get("chunk") and family != "mamba":
        at["embedded"] = at["mask"] == "given" and not at["decoding"].startswith("guided") and draw(st.booleans())
    at["processor"] = draw(pick(False, False, True))
    if compiled:
        at["compiled"] = "in place"
    else:
        at["beside"] = draw(pick("", "", "unsteered", "steered"))
        at["nested"] = draw(pick(False, False, True)) and (draw(steps(family)),) or ()
    return Case(family, draw(programs(family, len(lengths))), lengths, "generate", **at)


@st.composite
def trainings(draw: Any) -> Case:
    """Forward and backward passes in train mode."""
    family, lora = draw(pick(*ANATOMY)), PEFT and draw(st.booleans())
    lengths = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)))
    face, steered = draw(pick("steer", "functional")), draw(pick(*objects(lora)))
    # A step whose direction is trained is told by its place.
    program = draw(st.lists(steps(family), min_size=1, max_size=2, unique=True))
    return Case(
        family,
        (tuple(program),),
        lengths,
        "gradient",
        dtype="float32" if family in SINGLE else "float64",
        lora=lora,
        steered=steered,
        called=steered if face == "functional" else draw(pick(*objects(lora))),
        face=face,
        padding=draw(pick("left", "right")) if len(set(lengths)) > 1 else "",
        checkpointing=draw(pick("", "reentrant", "not reentrant")),
        backward=draw(pick("inside", "after")),
    )
