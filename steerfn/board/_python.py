"""The Python that gives what the page shows."""

from collections.abc import Iterator, Sequence
from typing import Any

from steerfn.board._source import Source, quote
from steerfn.board._state import Push, State
from steerfn.run import seed_of_rows


def to_python(state: State, source: Source) -> str:
    """A program that computes what a state shows.

    Args:
        state: what is set on the page.
        source: where the model and the vectors come from.

    Example:
        >>> from steerfn.board import Push, Source, State, to_python
        >>> state = State(turns=("Hi.",), steering=(Push("happy", 2.0),))
        >>> print(to_python(state, Source(files={"happy": "happy.safetensors"})))
        import steerfn as sf
        <BLANKLINE>
        model, tokenizer = sf.demo_model()
        op = sf.add(sf.load("happy.safetensors"), 2.0)
        <BLANKLINE>
        comparison = sf.compare(model, tokenizer, ["Hi."], op, max_new_tokens=60)
        print(comparison)
        <BLANKLINE>
    """
    lines = {"compare": _compare, "strength": _strength, "look": _look, "make": _make}[state.view](state, source)
    return "\n".join(["import steerfn as sf", "", source.python, *lines, ""])


def _compare(state: State, source: Source) -> Iterator[str]:
    yield f"op = {_operator(state.steering, source)}"
    yield ""
    if len(state.turns) < 2 or not state.chat:
        keywords = _keywords(_decoding(state) | ({"seeds": (state.seed,)} if state.sample else {}))
        yield f"comparison = sf.compare(model, tokenizer, {_texts(state.turns[-1:])}, op, {keywords})"
        yield "print(comparison)"
        return
    seed = seed_of_rows(state.seed)
    keywords = _keywords(_decoding(state) | ({"seed": [seed, seed]} if state.sample else {}))
    yield "unsteered, steered = [], []  # each side goes on from its own answers"
    yield f"for turn in {_texts(state.turns)}:"
    yield '    question = {"role": "user", "content": turn}'
    yield "    chats = [[*unsteered, question], [*steered, question]]"
    yield f"    answers = sf.generate(model, tokenizer, chats, [None, op], {keywords})"
    yield '    unsteered, steered = [[*c, {"role": "assistant", "content": a}] for c, a in zip(chats, answers)]'
    yield '    print(turn, *answers, sep="\\n\\n")'


def _strength(state: State, source: Source) -> Iterator[str]:
    push = state.focused
    options: dict[str, Any] = {"metrics": list(state.metrics), **_decoding(state)}
    options |= {"seed": state.seed} if state.sample else {}
    more = ([f"sites=[{quote(push.site)}]"] if push.site else []) + (
        [f"scope=sf.{push.scope}"] if push.scope != "everywhere" else []
    )
    yield ""
    yield f"prompts = {_texts(state.prompts)}"
    yield f"vector = {source.vector(push.vector)}"
    yield f"table = sf.sweep(model, tokenizer, prompts, {{{quote(push.vector)}: vector}}, {list(state.alphas)},"
    yield f"    {', '.join([*more, _keywords(options)])})"
    yield "print(table)"
    yield "for metric in table.metrics:"
    yield '    sf.plot.sweep(table, metric).savefig(f"{metric}.png")'


def _look(state: State, source: Source) -> Iterator[str]:
    push = state.focused
    yield f"op = {_operator(state.steering, source)}"
    yield ""
    yield f"text = {quote(state.text)}"
    yield f'ids = tokenizer(text)["input_ids"]{f"[:{state.tokens}]" if state.tokens else ""}'
    yield 'sf.plot.token_probabilities(model, tokenizer, ids, op).savefig("next_token.png")'
    if push.vector:
        yield f"vector = {_part(push, source)}"
        yield "for site in vector.sites:"
        yield '    sf.plot.tokens(model, tokenizer, text, vector, site).savefig(f"{site}.png")'
        yield '_, states = sf.capture(model, vector.sites)(**tokenizer(text, return_tensors="pt").to(model.device))'
        yield "for site, state in states.items():"
        yield "    stream = float(state.detach().norm(dim=-1).median())"
        yield f"    print(site, {abs(push.alpha)} * vector.magnitude[site], stream)"


def _make(state: State, source: Source) -> Iterator[str]:
    if state.dataset:
        yield f"texts = sf.datasets.load({quote(state.dataset)})"
        yield "positive, negative = texts.positive, texts.negative"
    else:
        yield f"positive = {_texts(state.positive)}"
        yield f"negative = {_texts(state.negative)}"
    layer = "sf.layout(model).n_layers // 2" if state.layer is None else state.layer
    yield ""
    yield "print(sf.discover.lint_pairs(positive, negative))"
    method = f"sf.{'discover.' * (state.method == 'lat')}{state.method}"
    more = f"position={quote(state.position)}, quality=True"
    yield f"v = {method}(model, tokenizer, positive, negative, {layer}, {more})"
    yield "print(sf.quality(v))"
    yield f"sf.save(v, {quote(source.target(state.name))})"


def _operator(steering: Sequence[Push], source: Source) -> str:
    ops = [f"sf.add({_part(push, source)}, {push.alpha})" for push in steering]
    scoped = [
        op if push.scope == "everywhere" else f"sf.at(sf.{push.scope}, {op})"
        for op, push in zip(ops, steering, strict=True)
    ]
    if len(scoped) == 1:
        return scoped[0]
    return "sf.chain(\n" + "".join(f"    {op},\n" for op in scoped) + ")" if scoped else "sf.identity"


def _part(push: Push, source: Source) -> str:
    return source.vector(push.vector) + (f".select({quote(push.site)})" if push.site else "")


def _decoding(state: State) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": state.max_new_tokens}
    return options | ({"do_sample": True} if state.sample else {}) | ({} if state.chat else {"chat": False})


def _keywords(options: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={value if not isinstance(value, list) else _list(value)}" for name, value in options.items()
    )


def _list(values: Sequence[Any]) -> str:
    return f"[{', '.join(quote(each) if isinstance(each, str) else str(each) for each in values)}]"


def _texts(texts: Sequence[str]) -> str:
    """A list of texts, one a line where they are many or long."""
    line = _list(texts)
    return line if len(line) <= 80 else "[\n" + "".join(f"    {quote(each)},\n" for each in texts) + "]"
