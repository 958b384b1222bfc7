"""Everything that has a test of its own, crossed: sites, operators, scopes, caches, padding, wrapping, threads.

Hypothesis draws a `Case`; plain torch hooks (`by_hand.py`) on another copy of the model say what is right, each row
alone, without padding and without a cache. On the way it is seen that the model is bit for bit what it was, inside at
strength 0, in another thread, and afterwards.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import threading
import warnings
from typing import Any

import by_hand
import hypothesis.strategies as st
import pytest
import torch
import transformers
from by_hand import ACTS, ANATOMY, Program, Step
from families import build
from hypothesis import event, given, settings
from snapshot import Snapshot, assert_same_bits, assert_unchanged
from torch import Tensor, nn

import steerfn as sf

OLD = transformers.__version__.startswith("4.")
PEFT = importlib.util.find_spec("peft") is not None

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
    """One way to use the library, as data.

    Attributes:
        family: in `by_hand.ANATOMY`.
        programs: what steers: one for all rows, or one for each.
        lengths: tokens of each prompt.
        way: "forward", "generate" or "gradient".
        dtype: of the model.
        steered: which object `steer` or `functional` is given: the "model", its "backbone", "peft" around it.
        called: which object is called; it is reached inside the context, a "held backbone" was taken before.
        lora: whether PEFT wraps the model.
        compiled: "" or what is compiled: "around" (`torch.compile(m)`), "in place" (`m.compile()`).
        face: "steer" or "functional".
        padding: the side of the pads, "" where all rows are equally long.
        mask: "" (none given), "given", or "long" (as long as the static cache).
        cache: "" (none), "default", "dynamic", "static" by name, "StaticCache" given by the caller.
        cuts: where a forward is cut into passes that hand on the cache.
        cropped: tokens that were cached too many, and are cropped.
        told: whether `prompt_length` is given: the last two tokens of each row are no prompt.
        decoding: "greedy", "beams", "returned" (several a prompt) or "guided".
        turn: "first"; "again" and "new tokens" are second turns with the cache of the first, of which the one passes
            the whole sequence and the other what is new; "begun" has a cache from a plain pass.
        chunk: `prefill_chunk_size`, 0 without.
        nested: a second context, opened inside.
        beside: what another thread does in the middle of a pass: "", "unsteered", "steered".
        checkpointing: "" or "reentrant", "not reentrant".
        backward: "inside" the context or "after" it.
    """

    family: str
    programs: tuple[Program, ...]
    lengths: tuple[int, ...] = (4, 4)
    way: str = "forward"
    dtype: str = "float64"
    steered: str = "model"
    called: str = "model"
    lora: bool = False
    compiled: str = ""
    face: str = "steer"
    padding: str = ""
    mask: str = ""
    cache: str = ""
    cuts: tuple[int, ...] = ()
    cropped: int = 0
    told: bool = False
    decoding: str = "greedy"
    turn: str = "first"
    chunk: int = 0
    nested: Program = ()
    beside: str = ""
    checkpointing: str = ""
    backward: str = "inside"

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        shown = {f.name: getattr(self, f.name) for f in fields if f.default != getattr(self, f.name)}
        return " | ".join(f"{name}: {value}" for name, value in shown.items())

    @property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def all_programs(self) -> tuple[Program, ...]:
        """Programs with the nested context's steps behind them."""
        return tuple((*program, *self.nested) for program in self.programs)

    def row(self, r: int) -> Program:
        return self.all_programs[r % len(self.programs)]


# -- what the library is given --------------------------------------------------------------------------------------


def vector(step: Step, dtype: torch.dtype, second: bool = False) -> sf.SteeringVector:
    return sf.SteeringVector({sf.Site(step.kind, step.layer, step.head): step.direction(dtype, second)})


def of_step(step: Step, dtype: torch.dtype, number: Any = None, v: Any = None) -> sf.Operator:
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
    }[step.act]()
    return sf.scheduled(op, by_hand.FADING) if step.scope == "scheduled" else sf.at(SCOPES[step.scope], op)


def of_program(program: Program, dtype: torch.dtype) -> sf.Operator:
    return of_step(program[0], dtype) if len(program) == 1 else sf.chain(*(of_step(step, dtype) for step in program))


def operator(case: Case) -> sf.Operator:
    """The case's programs, without the nested one: strengths by row where only those differ, else `rows`."""
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    programs = case.programs
    if len(programs) == 1:
        return of_program(programs[0], dtype)
    firsts = {tuple(dataclasses.replace(step, number=0.0) for step in program) for program in programs}
    if len(firsts) == 1 and all(step.act in ("add", "clamp", "rotate") for step in programs[0]):
        columns = [[program[i].number for program in programs] for i in range(len(programs[0]))]
        numbers = [torch.tensor(column, dtype=dtype) for column in columns]
        return sf.chain(*(of_step(step, dtype, n) for step, n in zip(programs[0], numbers, strict=True)))
    return sf.rows([of_program(program, dtype) if program else None for program in programs])


def nothing(case: Case) -> sf.Operator:
    """Something at the same sites that changes no bit: strength 0, an unsteered row, a scope that selects nothing."""
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    steps = [step for program in case.all_programs for step in program]
    zeros = [sf.add(vector(step, dtype), 0.0) for step in steps]
    return sf.chain(*zeros, *(sf.at(~sf.everywhere, of_step(step, dtype)) for step in steps))


# -- the models -----------------------------------------------------------------------------------------------------


class Beside:
    """A hook in the middle of a model that, when there is a job, runs it in another thread and waits for it."""

    def __init__(self) -> None:
        self.job: Any = None
        self.results: list[Any] = []

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.job is None or len(self.results) == 2 or threading.current_thread() is not threading.main_thread():
            return
        thread = threading.Thread(target=self._work)
        thread.start()
        thread.join()

    def _work(self) -> None:
        try:
            self.results.append(self.job())
        except BaseException as error:
            self.results.append(error)


class Subject:
    """A model of a family and what may be wrapped around it."""

    def __init__(self, family: str, dtype: str, lora: bool, watched: bool = True) -> None:
        self.model: Any = build(family).to(getattr(torch, dtype))
        self.core = self.model
        if lora:
            from peft import LoraConfig, get_peft_model

            targets = "all-linear" if family != "mamba" else ["in_proj", "x_proj"]  # PEFT refuses the others
            config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GPT-2's weights lie the other way round
                self.peft: Any = get_peft_model(self.model, config).eval().to(getattr(torch, dtype))
        self.beside = Beside()
        if watched:
            anatomy = ANATOMY[family]
            middle = self.core.get_submodule(f"{anatomy.blocks}.1.{anatomy.attn[1]}")
            middle.register_forward_pre_hook(self.beside, with_kwargs=True)

    def part(self, name: str) -> Any:
        return self.peft if name == "peft" else self.core.base_model if "backbone" in name else self.core


@functools.lru_cache(maxsize=None)
def subject(family: str, dtype: str, lora: bool) -> Subject:
    return Subject(family, dtype, lora)


@functools.lru_cache(maxsize=None)
def reference(family: str, dtype: str, lora: bool) -> Subject:
    return Subject(family, dtype, lora)


@functools.lru_cache(maxsize=None)
def training(family: str, dtype: str, lora: bool, checkpointing: str) -> Subject:
    made = Subject(family, dtype, lora, watched=False)
    (made.peft if lora else made.core).train()
    for module in made.core.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its name changes
            kwargs = {"use_reentrant": checkpointing == "reentrant"}
            made.core.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return made


# -- the runs -------------------------------------------------------------------------------------------------------

NEW = 3
PAD = 0


def prompts(case: Case) -> list[Tensor]:
    return [torch.randint(3, 99, (n,), generator=torch.Generator().manual_seed(i)) for i, n in enumerate(case.lengths)]


def batch(case: Case, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Padded ids and their mask."""
    width = max(map(len, rows))
    sides = [(0, width - len(row)) if case.padding == "right" else (width - len(row), 0) for row in rows]
    ids = [nn.functional.pad(row, side, value=PAD) for row, side in zip(rows, sides, strict=True)]
    mask = [nn.functional.pad(torch.ones_like(row), side) for row, side in zip(rows, sides, strict=True)]
    return torch.stack(ids), torch.stack(mask)


def new_cache(case: Case, model: Any) -> Any:
    if case.cache == "StaticCache":
        return transformers.StaticCache(config=model.config, max_cache_len=24)
    return transformers.DynamicCache(config=model.config) if case.cache == "dynamic" else None


def hidden_of(out: Any) -> Tensor:
    return out.logits if "logits" in out else out.last_hidden_state


def forward(case: Case, call: Any, model: Any) -> list[Tensor]:
    """Passes over the prompts, cut where the case says, the cache handed on; the logits of every position."""
    ids, mask = batch(case, prompts(case))
    cache = new_cache(case, model)
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    found, start = [], 0
    with torch.no_grad():
        for end in (*case.cuts, case.width):
            given: dict[str, Any] = {"use_cache": case.cache != ""}
            passed, seen = ids[:, start:end], mask[:, :end]
            if case.cropped and end != case.width:  # as when a guess was wrong
                passed = torch.cat([passed, torch.full((len(ids), case.cropped), 5)], 1)
                seen = torch.cat([seen, torch.ones(len(ids), case.cropped, dtype=torch.long)], 1)
            if case.mask == "given":
                given["attention_mask"] = seen
            if case.mask == "long":
                given["attention_mask"] = nn.functional.pad(seen, (0, 24 - seen.shape[1]))
            if case.padding and takes_positions:  # some architectures count pads otherwise
                given["position_ids"] = (seen.cumsum(-1) - 1).clamp_min(0)[:, start:]
            if cache is not None:
                given["past_key_values"] = cache
            out = call(passed, **given)
            cache = out.get("past_key_values")
            logits = hidden_of(out)
            if case.cropped and end != case.width:
                cache.crop(-case.cropped)
                logits = logits[:, : end - start]
            found.append(logits)
            start = end
    return [torch.cat(found, 1)]


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"output_logits": True},
    "beams": {"num_beams": 3, "output_scores": True},
    "returned": {"num_beams": 3, "num_return_sequences": 2, "output_scores": True},
    "guided": {"guidance_scale": 1.5, "output_scores": True},
}


def generate(case: Case, target: Any, model: Any) -> list[Tensor]:
    """One or two turns of `generate`; sequences, and what they score."""
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD, "return_dict_in_generate": True}
    options |= OPTIONS[case.decoding]
    if case.cache == "":
        options["use_cache"] = False
    if case.cache == "static":
        options["cache_implementation"] = "static"
    if case.chunk:
        options["prefill_chunk_size"] = case.chunk
    rows = prompts(case)
    ids, mask = batch(case, rows)
    cache = new_cache(case, model)
    found: list[Tensor] = []
    if case.turn == "begun":
        with torch.no_grad():
            given = {"attention_mask": mask[:, :-1], "use_cache": True}
            if case.padding and "position_ids" in inspect.signature(type(model).forward).parameters:
                given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, :-1]
            cache = target(ids[:, :-1], past_key_values=cache, **given).past_key_values
    if case.turn in ("again", "new tokens"):
        first = target.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        found += outcome(case, first, ids.shape[1])
        cache = first.past_key_values
        more = torch.tensor([[7, 8]] * len(rows))
        ids = torch.cat([first.sequences, more], 1)
        mask = torch.cat([mask, torch.ones(len(rows), NEW + 2, dtype=torch.long)], 1)
        if case.turn == "new tokens":
            ids = ids[:, -3:]  # the last token of the first turn is not in the cache
    given = {"past_key_values": cache} if cache is not None else {}
    if case.mask:
        given["attention_mask"] = mask
    out = target.generate(ids, **given, **options)
    return found + outcome(case, out, ids.shape[1])


def outcome(case: Case, out: Any, width: int) -> list[Tensor]:
    if case.decoding == "greedy":
        return [out.sequences[:, width:], torch.stack(out.logits, 1)]
    if case.decoding == "guided":
        return [out.sequences[:, width:], torch.stack(out.scores, 1)]
    return [out.sequences[:, width:], out.sequences_scores]


def run(case: Case, target: Any, model: Any) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)  # a drawn scope may select nothing
        return (forward if case.way == "forward" else generate)(case, target, model)


# -- what is right --------------------------------------------------------------------------------------------------


def by_hooks(case: Case, programs: Any = None) -> list[list[Tensor]]:
    """For each row what comes out for it alone, without padding, without a cache, under hooks."""
    ref = reference(case.family, case.dtype, case.lora)
    found = []
    for r, tokens in enumerate(prompts(case)):
        program = case.row(r) if programs is None else programs[r]
        if case.way == "forward":
            n, pads = len(tokens), case.width - len(tokens)
            if case.told:
                parts: list[Any] = [(None, max(n - 2, 1))]
            elif case.padding == "right":
                parts = [(None, n)]
            else:  # each pass is all prompt
                ends = [end - pads for end in (*case.cuts, case.width)]
                parts = [(end, end + (case.cropped if end != n else 0)) for end in ends]
            core = ref.part("backbone" if "backbone" in case.called else "model")
            with torch.no_grad(), by_hand.steering(core, case.family, [program], by_hand.a_row(*parts)):
                found.append([hidden_of(core(tokens[None], use_cache=False))[0]])
        else:
            found.append(_generated_by_hooks(case, ref.core, program, tokens))
    return found


def _generated_by_hooks(case: Case, core: Any, program: Program, tokens: Tensor) -> list[Tensor]:
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD, "return_dict_in_generate": True}
    options |= OPTIONS[case.decoding] | {"use_cache": False}
    p, found, parts = len(tokens), [], []
    if case.turn == "begun":
        parts = [(p - 1, p if case.told else p - 1)]
    if case.turn in ("again", "new tokens"):
        with by_hand.steering(core, case.family, [program], by_hand.a_row((None, p))):
            ids = tokens[None]
            first = core.generate(ids, attention_mask=torch.ones_like(ids), **options)
        found += outcome(case, first, p)
        parts = [(p + NEW - 1, p)]
        tokens = torch.cat([first.sequences[0], torch.tensor([7, 8])])
    ids = tokens[None]
    with by_hand.steering(core, case.family, [program], by_hand.a_row(*parts, (None, len(tokens)))):
        out = core.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return found + outcome(case, out, len(tokens))


TOLERANCE = {"float64": 2e-5, "float32": 2e-4}


def assert_rows(case: Case, found: list[Tensor], expected: list[list[Tensor]], what: str) -> None:
    """Each row of what came out is what came out for it alone."""
    copies = 2 if case.decoding == "returned" and case.way == "generate" else 1
    if case.dtype == "bfloat16":
        return  # rounds otherwise in another batch: see `assert_same_pass`
    for r, alone in enumerate(expected):
        for together, one in zip(found, alone, strict=True):
            row = together[copies * r : copies * (r + 1)] if case.way == "generate" else together[r]
            if case.way == "forward":
                n = case.lengths[r]
                row = row[:n] if case.padding == "right" else row[-n:]
            if row.dtype == torch.long:
                assert torch.equal(row, one), f"{what}, row {r}: tokens {row.tolist()}, by hand {one.tolist()}"
                continue
            finite = one.isfinite()
            size = float(one[finite].abs().max())
            error = float((row - one)[finite].abs().max())
            assert error <= TOLERANCE[case.dtype] * size, f"{what}, row {r}: off by {error:.2g} of {size:.2g}"


def assert_same_pass(case: Case, found: list[Tensor]) -> None:
    """One pass over the same batch under hooks: the same bits where the same is computed."""
    if case.cuts or case.cache:
        return
    ref = reference(case.family, case.dtype, case.lora)
    core = ref.part("backbone" if "backbone" in case.called else "model")
    programs = case.programs if case.face == "functional" else case.all_programs
    places = by_hand.padded(case.lengths, case.padding or "left")
    if case.told:
        plain = places

        def places(batch: int, seq: int) -> Any:
            return [[place and (place[0], max(place[1] - 2, 1)) for place in row] for row in plain(batch, seq)]

    with by_hand.steering(core, case.family, programs, places):
        expected = forward(case, core, core)
    steps = [step for program in programs for step in program]
    scaled = ANATOMY[case.family].scale != 1
    exact = all(
        step.act == "add"
        and step.scope != "scheduled"
        and step.kind != "resid_mid"
        and not (scaled and step.kind in ("attn_out", "mlp_out"))
        for step in steps
    )
    if exact:
        assert_equal(found, expected, "the same pass under hooks")
    else:
        difference, size = (found[0] - expected[0]).abs(), expected[0].abs().max()
        assert difference.nan_to_num().max() <= 0.1 * size, "the same pass under hooks"


def assert_equal(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other, what)


# -- the check ------------------------------------------------------------------------------------------------------


def check(case: Case) -> bool:
    """Everything that must hold of a case; whether its steering changed anything."""
    who = Subject(case.family, case.dtype, case.lora, watched=False) if case.compiled else None
    who = who or subject(case.family, case.dtype, case.lora)
    core, steered, held = who.core, who.part(case.steered), who.part(case.called)
    if case.compiled:
        torch._dynamo.reset()
    if case.compiled == "around":
        held = torch.compile(held, backend="eager")
    if case.compiled == "in place":
        held.compile(backend="eager")

    def go() -> list[Tensor]:
        fresh = case.called == "backbone" and not case.compiled
        return run(case, who.part("backbone") if fresh else held, core)

    op, length = operator(case), None
    if case.told:
        length = torch.tensor([max(n - 2, 1) for n in case.lengths]) if case.way == "forward" else case.lengths
        length = torch.as_tensor(length)

    plain = go()
    before = Snapshot.of(core)  # after a first run, in which transformers leaves notes of its own
    assert_rows(case, plain, by_hooks(case, [()] * len(case.lengths)), "unsteered (transformers itself)")

    def steered_run() -> list[Tensor]:
        if case.face == "functional":
            f = sf.functional(steered)
            inner = of_program(case.nested, torch.float64) if case.nested else None
            # An open context does not reach the pure view.
            with sf.steer(core, inner) if inner else contextlib.nullcontext():
                return run(case, lambda *a, **k: f(op, *a, prompt_length=length, **k), core)
        with sf.steer(steered, op, prompt_length=length):
            if not case.nested:
                return go()
            once = go()
            inner = of_program(case.nested, torch.float64 if case.dtype == "float64" else torch.float32)
            with sf.steer(steered, inner, prompt_length=length):
                twice = go()
            assert_equal(go(), once, "after the nested context")
            return twice

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        if case.face == "functional":
            f = sf.functional(steered)
            assert_equal(run(case, lambda *a, **k: f(nothing(case), *a, **k), core), plain, "strength 0, pure")
        else:
            with sf.steer(steered, nothing(case)):
                assert_equal(go(), plain, "strength 0, inside")
        if case.beside:
            who.beside.results = []
            alone = plain
            if case.beside == "steered":
                other = sf.add(vector(Step("add", "resid_post", 1, seed=9), torch.float32))
                with sf.steer(core, other):
                    alone = go()

            def job() -> list[Tensor]:
                with sf.steer(core, other) if case.beside == "steered" else contextlib.nullcontext():
                    return go()

            who.beside.job = job
        try:
            found = steered_run()
        finally:
            who.beside.job = None
        if case.beside:
            assert who.beside.results, "the other thread never ran"
            for result in who.beside.results:
                if isinstance(result, BaseException):
                    raise result
                assert_equal(result, alone, f"the other thread, {case.beside}")
        expected = by_hooks(case, [case.programs[r % len(case.programs)] for r in range(len(case.lengths))]
                            if case.face == "functional" else None)
        assert_rows(case, found, expected, "steered")
        if case.way == "forward":
            assert_same_pass(case, found)
        if case.way == "forward" and case.face == "steer" and not case.nested and case.steered == case.called.removeprefix("held "):
            f = sf.functional(steered)
            pure = run(case, lambda *a, **k: f(op, *a, prompt_length=length, **k), core)
            assert_equal(pure, found, "context and pure view")
    assert_equal(go(), plain, "afterwards")
    if not case.compiled:
        assert_unchanged(core, before)
    return any(not torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def check_gradients(case: Case) -> None:
    """Gradients of a direction and of the embeddings, in train mode: through checkpoints what they are without."""
    who = training(case.family, case.dtype, case.lora, case.checkpointing)
    ref = reference(case.family, case.dtype, case.lora)
    found = _gradients(case, who, _backward_of_library)
    expected = _gradients(case, ref, _backward_by_hooks)
    for name, one in expected.items():
        size, error = float(one.abs().max()), float((found[name] - one).abs().max())
        assert error <= (1e-3 if case.dtype == "float32" else 1e-5) * size + 1e-9, f"gradient of {name}: off by {error:.2g} of {size:.2g}"


def _gradients(case: Case, who: Subject, backward: Any) -> dict[str, Tensor]:
    """The loss of a batch and of a shorter one, run before either goes back, and its gradients."""
    ids, mask = batch(case, prompts(case))
    short = slice(0, 2) if case.padding == "right" else slice(-2, None)
    embed, inputs = who.core.get_input_embeddings(), []
    for each in (ids, ids[:, short]):
        inputs.append(embed(each).detach().requires_grad_())
    direction = nn.Parameter(case.programs[0][0].direction(getattr(torch, case.dtype)))

    def loss(call: Any) -> Tensor:
        total = torch.zeros(())
        for given, seen in zip(inputs, (mask, mask[:, short]), strict=True):
            out = hidden_of(call(inputs_embeds=given, attention_mask=seen, use_cache=False))
            total = total + (out * seen[..., None]).square().sum()
        return total

    backward(case, who, direction, loss)
    grads = {"the direction": direction.grad, "the embeddings": inputs[0].grad, "the short ones": inputs[1].grad}
    missing = [name for name, value in grads.items() if value is None]
    assert not missing, f"no gradient of {missing}"
    return {name: value for name, value in grads.items() if value is not None}


def _backward_of_library(case: Case, who: Subject, direction: Tensor, loss: Any) -> None:
    first, *rest = case.programs[0]
    dtype = getattr(torch, case.dtype)
    trained = sf.SteeringVector({sf.Site(first.kind, first.layer, first.head): direction})
    op = sf.chain(of_step(first, dtype, v=trained), *(of_step(step, dtype) for step in rest))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        if case.face == "functional":
            f = sf.functional(who.part(case.steered))
            loss(functools.partial(f, op)).backward()
            return
        with sf.steer(who.part(case.steered), op):
            total = loss(who.part(case.called))
            if case.backward == "inside":
                total.backward()
        if case.backward == "after":
            total.backward()


def _backward_by_hooks(case: Case, who: Subject, direction: Tensor, loss: Any) -> None:
    def places(rows: int, seq: int) -> Any:
        return by_hand.padded([min(n, seq) for n in case.lengths], case.padding or "left")(rows, seq)

    trained = {case.programs[0][0]: direction}
    with by_hand.steering(who.core, case.family, case.programs, places, trained):
        loss(who.part("backbone" if "backbone" in case.called else "model")).backward()


# -- the draw -------------------------------------------------------------------------------------------------------

RECURRENT = {"mamba", "lfm2"}  # their state cannot be cut, handed on by hand, or cropped
SLIDING = {"gemma2", "mistral_sliding"}
SINGLE = {"bloom", "gemma2"}  # their softmax is in float32, where float64's mask is infinite

numbers = st.sampled_from([2.0, -1.5, 0.7])


@st.composite
def steps(draw: Any, family: str, scopes: list[str]) -> Step:
    layer = draw(st.integers(-3, 2))
    kind = draw(st.sampled_from(ANATOMY[family].kinds(layer % 3)))
    head = draw(st.integers(0, 3)) if kind == "head_out" else None
    act = draw(st.sampled_from(ACTS))
    return Step(act, kind, layer, draw(st.sampled_from(scopes)), draw(numbers), head, draw(st.integers(0, 3)))


@st.composite
def programs(draw: Any, family: str, scopes: list[str], rows: int) -> tuple[Program, ...]:
    """One program for all rows, one with strengths by row, or one for each row, some of them unsteered."""
    some = st.lists(steps(family, scopes), min_size=1, max_size=2).map(tuple)
    how = draw(st.sampled_from(["one", "one", "strengths", "rows"]))
    if how == "one":
        return (draw(some),)
    if how == "strengths":
        program = draw(some)
        if any(step.act not in ("add", "clamp", "rotate") for step in program):
            program = tuple(dataclasses.replace(step, act="add") for step in program)
        return tuple(
            tuple(dataclasses.replace(step, number=draw(numbers)) for step in program) for _ in range(rows)
        )
    found = [draw(st.one_of(st.just(()), some)) for _ in range(rows)]
    return tuple(found) if any(found) else (draw(some),)


@st.composite
def cases(draw: Any, way: str, compiled: bool = False) -> Case:
    def pick(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    family = pick(*ANATOMY)
    rows = pick(1, 2, 3)
    # A beam search may rank sums whose last bits differ, so long as the strengths are large it does not.
    lengths = tuple(draw(st.integers(2, 6)) for _ in range(rows))
    if draw(st.booleans()):
        lengths = (lengths[0],) * rows
    lora = PEFT and draw(st.booleans())
    ragged = len(set(lengths)) > 1
    padding = (pick("left", "right") if way == "forward" else "left") if ragged else ""
    at = {"family": family, "lengths": lengths, "way": way, "lora": lora, "padding": padding}
    at["dtype"] = "float32" if family in SINGLE else "float64" if way != "forward" else pick("float64", "bfloat16")
    called = ["model", "peft"] if lora else ["model"]
    if compiled:
        at |= {"compiled": pick("around", "in place")}
    if way == "forward":
        at |= draw(forwards(family, lengths, padding, lora, compiled))
    else:
        at |= draw(generations(family, lengths, padding))
        at |= {"steered": pick(*called), "called": pick(*called)}
    scopes = list(by_hand.SCOPES)
    if at.get("decoding") == "guided":
        # A pass of guidance is a plain pass over a prompt of its own, where only these are the same cached or not.
        scopes = ["everywhere", "positions(0)"]
    at["programs"] = draw(programs(family, scopes, rows))
    if not compiled and draw(st.integers(0, 3)) == 0:
        at["nested"] = (draw(steps(family, scopes)),)
    if not compiled:  # compiled code cannot tell threads apart
        at["beside"] = pick("", "", "unsteered", "steered")
    return Case(**at)


@st.composite
def forwards(draw: Any, family: str, lengths: Any, padding: str, lora: bool, compiled: bool) -> dict[str, Any]:
    def pick(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    parts = ["model", "backbone", "peft"] if lora else ["model", "backbone"]
    at = {"face": "steer" if compiled else pick("steer", "functional"), "steered": pick(*parts)}
    at["called"] = at["steered"] if at["face"] == "functional" else pick(*parts, "held backbone")
    caches = ["", "default"]
    if family not in RECURRENT:
        # BLOOM's biases are as wide as the mask, never as the cache.
        caches += ["dynamic"] if family == "bloom" else ["dynamic", "StaticCache"]
    at["cache"] = pick(*caches)
    at["mask"] = "given" if padding else pick("", "given")
    at["told"] = draw(st.booleans())
    first = max(lengths) - min(lengths) + 1  # the first pass holds a token of every row
    cut = padding != "right" and family not in RECURRENT and max(lengths) > first
    if at["cache"] and cut:
        at["cuts"] = tuple(sorted(set(draw(st.lists(st.integers(first, max(lengths) - 1), max_size=2)))))
    # OPT counts its positions over the whole mask; a mask as long as the cache is longer than a window.
    if at["cache"] == "StaticCache" and family not in SLIDING | {"opt"}:
        at["mask"] = pick(at["mask"], "long")
    elif at.get("cuts") and at["cache"] in ("default", "dynamic") and family not in SLIDING:
        at["cropped"] = pick(0, 0, 2)
    return at


@st.composite
def generations(draw: Any, family: str, lengths: Any, padding: str) -> dict[str, Any]:
    def pick(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    at: dict[str, Any] = {"decoding": pick("greedy", "greedy", "beams", "returned", "guided")}
    caches = ["", "default"] if family in RECURRENT else ["", "default", "dynamic", "static", "StaticCache"]
    if at["decoding"] == "guided" and family == "mamba":
        caches = [""]  # hands on no `past_key_values`
    at["cache"] = pick(*caches)
    at["mask"] = pick("", "given")
    if at["cache"] in ("default", "dynamic", "StaticCache") and at["decoding"] == "greedy" and family not in RECURRENT:
        turns = ["first", "again", "new tokens", "begun"]
        if at["cache"] == "StaticCache" and family in ("bloom", "opt"):
            turns = turns[:2]  # their biases and positions are as long as the mask, never as the cache
        at["turn"] = pick(*turns)
        if at["turn"] in ("again", "new tokens"):
            # Without one, transformers counts the new tokens only, and takes a generated pad id for a pad.
            at["mask"] = "given"
        if at["turn"] == "begun":
            at["told"] = draw(st.booleans())
    if at["cache"] in ("default", "dynamic") and at.get("turn", "first") == "first" and family not in RECURRENT:
        at["chunk"] = pick(0, 0, 2, 3)
    return at


@st.composite
def gradients(draw: Any) -> Case:
    def pick(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    family, lora = pick(*ANATOMY), PEFT and draw(st.booleans())
    lengths = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)))
    padding = pick("left", "right") if len(set(lengths)) > 1 else ""
    parts = ["model", "backbone", "peft"] if lora else ["model", "backbone"]
    face, steered = pick("steer", "functional"), pick(*parts)
    scopes = ["everywhere", "prompt", "generated", "last_prompt_token", "positions(slice(-2, None))"]
    program = draw(st.lists(steps(family, scopes), min_size=1, max_size=2, unique_by=lambda step: step.seed))
    return Case(
        family,
        (tuple(program),),
        lengths,
        "gradient",
        dtype="float32" if family in SINGLE else "float64",
        steered=steered,
        called=steered if face == "functional" else pick(*parts),
        lora=lora,
        face=face,
        padding=padding,
        checkpointing=pick("", "reentrant", "not reentrant"),
        backward=pick("inside", "after"),
    )


def settings_for(examples: int) -> Any:
    return settings(max_examples=settings.default.max_examples if THOROUGH else examples)


import os

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@settings_for(60)
@given(case=cases("forward"))
def test_forward(case: Case) -> None:
    check(case)


@settings_for(40)
@given(case=cases("generate"))
def test_generate(case: Case) -> None:
    check(case)


@settings_for(4)
@given(case=cases("forward", compiled=True))
def test_compiled(case: Case) -> None:
    check(case)


@settings_for(40)
@given(case=gradients())
def test_gradients(case: Case) -> None:
    check_gradients(case)
