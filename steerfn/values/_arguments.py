"""The arguments of public functions: their names, and which is the model and which the tokenizer.

A call that does not fit is answered with what was probably meant; one that fits pays for one more frame.
"""

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar, cast

from torch import nn

from steerfn.values._errors import DataError

F = TypeVar("F", bound=Callable[..., Any])

SPREAD = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
MEANT = {
    "layers": ("sites",),
    "layer": ("layers", "sites"),
    "sites": ("layers",),
    "pairs": ("positive", "items", "data"),
    "vector": ("op", "vectors"),
    "v": ("op", "vector", "vectors"),
    "op": ("vector", "vectors"),
    "strength": ("alpha", "alphas"),
    "coefficient": ("alpha", "alphas"),
    "multiplier": ("alpha", "alphas"),
    "max_tokens": ("max_new_tokens",),
    "messages": ("prompts", "prompt"),
    "input_ids": ("prompts", "prompt"),
}
"""For names that others use, what they are called here: the first of these that a function has."""
RENAMED = {"v": "vector", "vec": "vector", "operator": "make", "targets": "correct"}
"""Keywords of an earlier release, which still work where a function has the new one, with a warning."""
HINTS = {
    "layers": "a vector steers at its own sites, and v.select(sites) keeps some of them",
    "layer": "a vector steers at its own sites, and v.select(sites) keeps some of them",
    "system": "pass a conversation: [{'role': 'system', 'content': ...}, {'role': 'user', 'content': ...}]",
    "system_prompt": "pass a conversation: [{'role': 'system', 'content': ...}, {'role': 'user', 'content': ...}]",
    "pairs": "pass the texts of both sides",
    "template": "switches of the chat template go into chat={'enable_thinking': False}",
    "chat_template_kwargs": "switches of the chat template go into chat={'enable_thinking': False}",
    "attention_mask": "prompts are padded and masked here; pass them one by one, without padding",
    "stop": "texts end at stop_strings=[...]",
    "device": "the model says where it runs",
}
"""What to do about such names where a function has no argument for them."""
EXPLAINED = {
    "sites": "An int there means resid_post",
    "positive": "It takes pairs in place of both sides",
    "prompts": "Conversations and token ids are prompts",
    "prompt": "A conversation or token ids are a prompt",
}
"""What to know of an argument that was meant."""
HELP = "help() lists those that it has"


def public(function: F) -> F:
    """Make a function, or a class that users construct, answer calls that do not fit it.

    An unknown keyword, also one that stands for an argument that is missing, raises `DataError` with what was probably
    meant; so does what is not a tokenizer where one is required. Options that a `TypedDict` describes
    (`**options: Unpack[Options]`) are shown by `help`.
    """
    if isinstance(function, type):
        kind: Any = function
        kind.__init__ = public(kind.__init__)
        return kind
    parameters = inspect.signature(function).parameters
    named = [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    place = named.index("tokenizer") if "tokenizer" in named else None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for old in older.keys() & kwargs.keys():
            advice = f"{old}= of {function.__name__} is {older[old]}= now; the old spelling goes with the next release."
            warnings.warn(advice, DeprecationWarning, stacklevel=2)
            kwargs.setdefault(older[old], kwargs.pop(old))
        if place is not None and (len(args) > place or "tokenizer" in kwargs):
            check_tokenizer(args[place] if len(args) > place else kwargs["tokenizer"])
        if options:  # the function hands them on, and further ones to the chat template
            for name in kwargs:
                if name not in options and (name in HINTS or _meant(name, options) is not None):
                    raise DataError(unknown_keyword(call, name))
        try:
            return function(*args, **kwargs)
        except TypeError:
            wrong = misnamed_keyword(function, args, kwargs)
            if wrong is None:
                raise
        raise DataError(unknown_keyword(call, wrong))

    options = _show_options(call)
    known = {*parameters, *options}
    older = {old: new for old, new in RENAMED.items() if new in known and old not in known}
    return cast(F, call)


def misnamed_keyword(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The keyword because of which a call does not fit; None where it fits, or is wrong in another way."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins tell none
        return None
    try:
        signature.bind(*args, **kwargs)
        return None  # what raised was inside
    except TypeError:
        pass
    own = {name: p for name, p in signature.parameters.items() if p.kind not in SPREAD}
    missing = [name for name, p in list(own.items())[len(args) :] if p.default is p.empty and name not in kwargs]
    takes_more = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in kwargs:
        if name not in own and (not takes_more or name in HINTS or _meant(name, missing) is not None):
            return name
    return None


def _meant(name: str, names: Collection[str]) -> str | None:
    """Which of these names was meant by one that is not among them."""
    alias = next((each for each in MEANT.get(name, ()) if each in names), None)
    return alias or next(iter(difflib.get_close_matches(name, names, 1, 0.7)), None)


def unknown_keyword(
    function: Callable[..., Any] | str, name: str, known: Collection[str] = (), listed: str = ""
) -> str:
    """The sentence for a keyword that a function does not have, with what was probably meant.

    Args:
        function: the function that was called, or its name.
        name: the keyword.
        known: what it takes beyond its own arguments.
        listed: what is said where nothing is near.
    """
    own = {} if isinstance(function, str) else inspect.signature(function).parameters
    names = [each for each, p in own.items() if p.kind not in SPREAD and each != "self"]
    names += [each for each in sorted(known) if each not in names]
    called = function if isinstance(function, str) else function.__qualname__.removesuffix(".__init__")
    meant = _meant(name, names)
    if meant is not None and (meant in MEANT.get(name, ()) or name not in HINTS):
        more = f" {EXPLAINED[meant]}." if name in MEANT and meant in EXPLAINED else ""
        return f"{called} has no option {name!r}; did you mean {meant!r}?{more}"
    return f"{called} has no option {name!r}; {HINTS.get(name) or listed or HELP}."


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse anything but a tokenizer.

    Raises:
        DataError: it is a model, a processor, or something else.
    """
    if isinstance(tokenizer, nn.Module):
        raise DataError(
            f"A {type(tokenizer).__name__}, which is a model, stands where the tokenizer goes; pass the model first "
            "and its tokenizer second."
        )
    if hasattr(getattr(tokenizer, "tokenizer", None), "apply_chat_template"):
        raise DataError(
            f"A {type(tokenizer).__name__} stands where the tokenizer goes; pass its tokenizer, processor.tokenizer."
        )
    if not hasattr(tokenizer, "apply_chat_template"):
        raise DataError(
            f"A transformers tokenizer is needed, not {tokenizer!r:.80} of type {type(tokenizer).__name__}."
        )


def _show_options(function: Any) -> tuple[str, ...]:
    """Spell out, in the signature and the docstring, the options that a `TypedDict` describes.

    Returns:
        All names of the signature; none where there is no `TypedDict`.
    """
    signature = inspect.signature(function)
    spread = next((p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    kind = next(iter(getattr(getattr(spread, "annotation", None), "__args__", ())), None)
    if spread is None or not hasattr(kind, "__total__"):
        return ()
    own = [p for p in signature.parameters.values() if p is not spread]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=each)
        for name, each in kind.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=[*own, *options])
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    after = next((i + 1 for i, line in enumerate(lines) if line.startswith(f"    {spread.name}: ")), None)
    if after is not None:
        while lines[after].startswith("        "):  # what belongs to that line
            after += 1
        function.__doc__ = "\n".join([*lines[:after], *_option_lines(kind), *lines[after:]])
    return tuple(function.__signature__.parameters)


def _option_lines(kind: Any) -> Iterator[str]:
    """The lines that describe the keys of a `TypedDict`, those that it inherits first."""
    for base in getattr(kind, "__orig_bases__", ()):
        yield from _option_lines(base)
    _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    yield from attributes.splitlines()
