"""The command line that gives what the page shows."""

import json
import re
from collections.abc import Iterator

from steerfn.board._source import Source, shell
from steerfn.board._state import State


def to_command(state: State, source: Source) -> str:
    """A command that prints, or writes, what a state shows.

    Where no command of its own does, `steerfn dashboard --state ... --out FILE` writes the page's result.

    Args:
        state: what is set on the page.
        source: where the model and the vectors come from.

    Example:
        >>> from steerfn.board import Push, Source, State, to_command
        >>> state = State(turns=("Hi.",), steering=(Push("happy", 2.0),))
        >>> print(to_command(state, Source(files={"happy": "happy.safetensors"})))
        steerfn compare Hi. --vector happy.safetensors --alpha 2.0 --max-new-tokens 60
    """
    if state.view == "make" and not (state.dataset or (_lines(state.positive) and _lines(state.negative))):
        return _page(state, source)
    if state.view == "make":
        return "\n".join(_make(state, source))
    if state.view == "strength" and _plain(state.prompts):
        return shell(*_strength(state, source))
    if state.view == "compare" and (len(state.turns) < 2 or not state.chat) and _plain(state.turns[-1:]):
        return shell(*_compare(state, source))
    return _page(state, source)


def _page(state: State, source: Source) -> str:
    folder = ["--vectors", source.folder] if source.folder else []
    return shell("steerfn", "dashboard", *source.words, *folder, "--state", state.to_query(), "--out", "result.html")


def _compare(state: State, source: Source) -> Iterator[object]:
    yield from ("steerfn", "compare", *state.turns[-1:])
    alone = state.steering[0] if len(state.steering) == 1 and state.steering[0].site is None else None
    if alone is None:
        entries = [
            {"vector": source.file(push.vector), "alpha": push.alpha}
            | ({"site": push.site} if push.site else {})
            | ({"scope": push.scope} if push.scope != "everywhere" else {})
            for push in state.steering
        ]
        yield from ("--steering", json.dumps(entries, ensure_ascii=False))
    else:
        yield from ("--vector", source.file(alone.vector), *_alpha(alone.alpha))
        yield from ("--scope", alone.scope) if alone.scope != "everywhere" else ()
    yield from _decoding(state)
    yield from ("--seeds", state.seed) if state.sample else ()
    yield from source.words


def _strength(state: State, source: Source) -> Iterator[object]:
    push = state.focused
    yield from ("steerfn", "sweep", *state.prompts, "--vector", source.file(push.vector))
    yield f"--alphas={','.join(f'{alpha:g}' for alpha in state.alphas)}"
    yield from ("--site", push.site) if push.site else ()
    yield from ("--scope", push.scope) if push.scope != "everywhere" else ()
    yield from ("--metric", ",".join(state.metrics)) if state.metrics else ()
    yield from _decoding(state)
    yield from ("--seed", state.seed) if state.sample else ()
    yield from source.words


def _make(state: State, source: Source) -> Iterator[str]:
    for side in () if state.dataset else ("positive", "negative"):
        yield f"printf '%s\\n' {shell(*getattr(state, side))} > {side}.txt"
    texts = ["--dataset", state.dataset] if state.dataset else "--positive positive.txt --negative negative.txt".split()
    layer = [] if state.layer is None else ["--layer", state.layer]
    read = ["--method", state.method, *layer, "--position", state.position, "--quality"]
    yield shell("steerfn", "discover", *texts, *read, "--out", source.target(state.name), *source.words)


def _decoding(state: State) -> Iterator[object]:
    yield from ("--max-new-tokens", state.max_new_tokens)
    yield from ("--sample",) if state.sample else ()
    yield from ("--raw",) if not state.chat else ()


def _alpha(alpha: float) -> tuple[object, ...]:
    return ("--alpha", alpha) if alpha >= 0 else (f"--alpha={alpha}",)


def _plain(prompts: tuple[str, ...]) -> bool:
    """Whether a command line takes prompts as they are: not for an option or a leftover number."""
    return all(prompts) and not any(re.fullmatch(r"-.*|[\d.]+", prompt, re.DOTALL) for prompt in prompts)


def _lines(texts: tuple[str, ...]) -> bool:
    """Whether texts are lines of a file."""
    return bool(texts) and not any("\n" in text or text != text.strip() for text in texts)
