"""A crowd: many callers of one model at once, each with a job whose outcome is known from when it ran alone.

A job makes its calls one after the other and notes what comes out; some end in an error that is part of the plan.
Batches in the crowd have the shapes that they have alone, so outcomes agree bit for bit, and one that does not is
cross-talk. Shared by `test_load.py` (seconds) and `benchmarks/load.py` (minutes).
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
from snapshot import same_bits
from torch import Tensor
from words import WORDS

import steerfn as sf

PROMPTS = ["a b c", "d e f g h", "i j", "k l m n o p"]
"""For a model of `small`."""

Notes = list[Any]


def small(width: int = 32, layers: int = 3) -> Any:
    """A random Llama, made from its config, each of whose tokens is a word of `words()`: it has texts to stream."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 3 + len(WORDS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(**sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=None)
        model = LlamaForCausalLM(config).eval()
        for value in model.parameters():
            value.data = value.data + 0.2 * torch.randn(value.shape) / width**0.5
    return model


class Planned(Exception):
    """An error that a job makes on purpose."""


class Interrupted(BaseException):
    """As Ctrl-C is: no `Exception`."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What one caller does: `steps(note)` calls `note` with each result.

    Attributes:
        kind: what sort of use it is.
        raises: whether it ends in an error on purpose.
    """

    kind: str
    steps: Callable[[Callable[[Any], None]], None]
    raises: bool = False

    def outcome(self) -> tuple[Notes, str]:
        """The results in order, and the error that it ended in."""
        notes: Notes = []
        try:
            self.steps(notes.append)
        except (Exception, Interrupted) as error:
            return notes, f"{type(error).__name__}: {error}"
        return notes, ""


def same(a: Any, b: Any) -> bool:
    """Whether two outcomes agree, tensors in every bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same_bits(a, b)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


class Directions:
    """Random vectors at sites of a model, as long as its hidden states are there: an alpha of 1 changes the text."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self.norms: dict[sf.Site, float] = {}

    def __call__(self, *sites: sf.Site, seed: int) -> sf.SteeringVector:
        missing = [site for site in sites if site not in self.norms]
        if missing:
            with torch.no_grad():
                states = sf.capture(self.model, missing)(self.ids)[1]
            self.norms |= {site: float(state[0, 1:].norm(dim=-1).mean()) for site, state in states.items()}
        random_state = torch.Generator().manual_seed(seed)
        drawn = {site: torch.randn(sf.layout(self.model).width(site), generator=random_state) for site in sites}
        return sf.SteeringVector({site: self.norms[site] * d / d.norm() for site, d in drawn.items()})


def operators(model: Any, ids: Tensor) -> dict[str, sf.Operator]:
    """Operators of every kind, with vectors, strengths, places and scopes of their own."""
    v, layers = Directions(model, ids), sf.layout(model).n_layers
    early, middle, last = layers // 3, layers // 2, layers - 1
    post = sf.resid_post
    return {
        "add": sf.add(v(post[middle], seed=0), 1.0),
        "add, another strength": sf.add(v(post[middle], seed=0), -0.6),
        "add, another vector": sf.add(v(post[middle], seed=1), 1.0),
        "add, first and last block": sf.add(v(sf.resid_pre[0], post[last], seed=2), 0.8),
        "add, sublayers": sf.add(v(sf.attn_out[middle], sf.mlp_out[early], sf.resid_mid[last], seed=3), 2.0),
        "add, a head": sf.add(v(sf.head_out[early, 1], seed=4), 20.0),
        "ablate and add": sf.chain(sf.ablate(v(post[early], seed=5)), sf.add(v(post[early], seed=6), 0.9)),
        "rotate": sf.rotate(v(post[middle], seed=7), 0.8),
        "clamp": sf.clamp(v(post[early], seed=8), 5.0 * v.norms[post[early]]),
        "scope: generated": sf.at(sf.generated, sf.add(v(post[middle], seed=9), 1.5)),
        "scope: prompt": sf.at(sf.prompt & ~sf.positions(0), sf.add(v(post[early], seed=10), 1.5)),
        "scheduled": sf.scheduled(sf.add(v(post[middle], seed=11), 2.0), [1.0, 0.5, 0.25]),
        "condition": sf.when(sf.cosine_above(v(post[early], seed=12), 0.0), sf.add(v(post[middle], seed=13), 1.5)),
        "condition, otherwise": sf.when(
            ~sf.projection_above(v(post[early], seed=12), 0.0), sf.add(v(post[middle], seed=13), 1.5)
        ),
    }


def jobs(model: Any, tokenizer: Any, prompts: list[str], tokens: int) -> list[Job]:
    """Jobs of every kind on one model, each different from the others."""
    encoded = [tokenizer(prompt, return_tensors="pt") for prompt in prompts]
    inputs = [{"input_ids": e["input_ids"], "attention_mask": e["attention_mask"]} for e in encoded]
    ops, pure = operators(model, inputs[0]["input_ids"]), sf.functional(model)
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    turns = itertools.count()

    def logits(given: Any) -> Tensor:
        with torch.no_grad():
            return model(**given).logits[0, -1].clone()

    def greedy(given: Any, **more: Any) -> Tensor:
        return model.generate(**given, **{**options, **more})

    def unsteered(given: Any, note: Any) -> None:
        note(logits(given))
        note(greedy(given))

    def generated(prompt: Any, op: Any, note: Any) -> None:
        note(sf.generate(model, tokenizer, prompt, op, max_new_tokens=tokens).token_ids)

    def context(given: Any, op: Any, note: Any) -> None:
        with sf.steer(model, op):
            note(logits(given))
            note(greedy(given))

    def functional(given: Any, op: Any, anew: bool, note: Any) -> None:
        with torch.no_grad():
            note((sf.functional(model) if anew else pure)(op, **given).logits[0, -1].clone())

    def captured(given: Any, op: Any, note: Any) -> None:
        site = sf.resid_post[sf.layout(model).n_layers - 1]
        with torch.no_grad(), sf.steer(model, op):
            note(sf.capture(model, site)(**given)[1][site])

    def streamed(prompt: str, op: Any, pieces: int | None, note: Any) -> None:
        """All pieces, or the first few of a longer text, and then closed: cancelled."""
        length = tokens if pieces is None else 5 * tokens
        stream: Any = sf.stream(model, tokenizer, prompt, op, max_new_tokens=length)
        note(list(itertools.islice(stream, pieces)))
        stream.close()

    def nested(given: Any, outer: Any, inner: Any, order: str, note: Any) -> None:
        opened = {"outer": sf.steer(model, outer), "inner": sf.steer(model, inner)}
        try:
            for each in opened.values():
                each.__enter__()
            note(logits(given))
            for name in order.split():
                opened[name].close()
                note(logits(given))
        finally:
            for each in opened.values():
                each.close()

    def broken(given: Any, op: Any, note: Any) -> None:
        """An operator that raises at the second token, in the middle of a forward pass."""

        def schedule(index: Tensor) -> Tensor:
            if int(index.max()) > 0:
                raise Planned("the operator fails")
            return torch.ones_like(index, dtype=torch.float32)

        with cleaned(given, note), sf.steer(model, sf.scheduled(op, schedule)):
            note(greedy(given))

    def failing(given: Any, op: Any, note: Any) -> None:
        """An error of the user's own inside the block."""
        with cleaned(given, note), sf.steer(model, op):
            note(logits(given))
            raise Planned("the user fails")

    def interrupted(given: Any, op: Any, note: Any) -> None:
        """As Ctrl-C in the middle of a generation."""
        left = itertools.count(2, -1)

        class Streamer:
            def put(self, value: Any) -> None:
                if next(left) == 0:
                    raise Interrupted("in the middle of a generation")

            def end(self) -> None:
                pass

        with cleaned(given, note), sf.steer(model, op):
            note(greedy(given, streamer=Streamer()))

    @contextlib.contextmanager
    def cleaned(given: Any, note: Any) -> Iterator[None]:
        """However the block ends, the same thread runs unsteered after it."""
        try:
            yield
        finally:
            note(logits(given))

    def given() -> Any:
        return inputs[next(turns) % len(inputs)]

    def prompt() -> str:
        return prompts[next(turns) % len(prompts)]

    made: list[tuple[str, Any]] = [("unsteered", functools.partial(unsteered, each)) for each in inputs]
    made += [("unsteered", functools.partial(generated, each, None)) for each in prompts]
    for op in ops.values():
        made.append(("sf.generate", functools.partial(generated, prompt(), op)))
        made.append(("with steer: generate", functools.partial(context, given(), op)))
        made.append(("functional", functools.partial(functional, given(), op, False)))
    some = list(ops.values())
    for i, op in enumerate(some[::4]):
        made.append(("functional, made anew", functools.partial(functional, given(), op, True)))
        made.append(("with steer: capture", functools.partial(captured, given(), op)))
        made.append(("stream", functools.partial(streamed, prompt(), op, None)))
        made.append(("stream, cancelled", functools.partial(streamed, prompt(), some[i + 1], 1)))
    made.append(("stream", functools.partial(streamed, prompt(), None, None)))
    made.append(("rows", functools.partial(generated, prompts[:3], [some[0], None, some[9]])))
    made.append(("rows", functools.partial(generated, prompts[:2], [some[12], some[6]])))
    for i, order in enumerate(("inner outer", "outer inner", "outer inner")):
        made.append(("nested contexts", functools.partial(nested, given(), some[i], some[4 + i], order)))
    found = [Job(kind, steps) for kind, steps in made]
    for i in range(2):
        found.append(Job("operator raises", functools.partial(broken, given(), some[i]), raises=True))
        found.append(Job("block raises", functools.partial(failing, given(), some[2 + i]), raises=True))
        found.append(Job("interrupted", functools.partial(interrupted, given(), some[4 + i]), raises=True))
    return found


class Crowd:
    """Callers in threads of their own, who take jobs and compare the outcome with that of the job alone.

    Attributes:
        expected: the outcome of each job alone.
        calls: jobs done, by kind.
        raised: planned errors, by kind.
        wrong: a line for each outcome that is not as it was alone.
    """

    def __init__(self, jobs: list[Job], callers: int = 64, seed: int = 0) -> None:
        self.jobs, self.callers = jobs, callers
        self.calls: collections.Counter[str] = collections.Counter()
        self.raised: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._order = random.Random(seed)
        self._waiting: list[int] = []
        with ThreadPoolExecutor(1) as one:
            self.expected = list(one.map(Job.outcome, jobs))
        self._pool = ThreadPoolExecutor(callers, thread_name_prefix="caller")

    def work(self, count: int) -> None:
        """Do so many jobs, all callers at once, in a seeded order in which every job has its turn; wait for the end."""
        while len(self._waiting) < count:
            self._waiting += self._order.sample(range(len(self.jobs)), len(self.jobs))
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        futures = {self._pool.submit(self.jobs[i].outcome): i for i in now}
        for future in as_completed(futures):
            self._tell(futures[future], future.result())

    def _tell(self, i: int, outcome: tuple[Notes, str]) -> None:
        kind = self.jobs[i].kind
        self.calls[kind] += 1
        if same(outcome, self.expected[i]):
            self.raised[kind] += self.jobs[i].raises
        else:
            self.wrong.append(f"job {i} ({kind}): {outcome!r:.200} in place of {self.expected[i]!r:.200}")

    def close(self) -> None:
        """Send the callers home."""
        self._pool.shutdown()
