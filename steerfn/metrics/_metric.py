"""Metrics, the registry of their names, and the one place where they are computed."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from steerfn.model import Model, Tokenizer
from steerfn.operators import Operator
from steerfn.run import Chat, Text, as_list
from steerfn.values import DataError, SteerError, misnamed_keyword, public, unknown_keyword

Better = Literal["higher", "lower"]
Function = Callable[..., Sequence[float]]
AnyMetric = str | Callable[..., Any]
"""A metric by its name, a function of texts that gives one number for each, or a `Metric`."""
Metrics = AnyMetric | Sequence[AnyMetric] | Mapping[str, AnyMetric]
"""One metric, a list of them, or a mapping of names to them."""


@public
@dataclasses.dataclass(frozen=True)
class Setting:
    """The arguments that a metric may take besides the texts: lists have one entry for each text.

    Attributes:
        prompts: what each text was generated from.
        references: what each text is compared with: the unsteered model's text, or a user's own.
        ops: the operator that each text was generated with, None for the unsteered model.
        model: the model that generated them.
        tokenizer: its tokenizer.
        chat: whether prompts go into the chat template, as in `generate`.

    Example:
        >>> import steerfn as sf
        >>> def echoes(texts, *, prompts):  # `prompts` are those of the setting
        ...     return [float(prompt in text) for text, prompt in zip(texts, prompts)]
        >>> sf.metrics.Metric("echoes", echoes).needs
        ('prompts',)
    """

    prompts: Sequence[Text] | None = None
    references: Sequence[str] | None = None
    ops: Sequence[Operator | None] | None = None
    model: Model | None = None
    tokenizer: Tokenizer | None = None
    chat: Chat = None


GIVEN = tuple(field.name for field in dataclasses.fields(Setting))


@public
@dataclasses.dataclass(frozen=True)
class Metric:
    """One number for each text.

    A metric is a function of a list of texts. What else it wants it names as keyword-only arguments without a
    default, out of those of `Setting`: `def overlap(texts, *, references): ...`. Keyword-only arguments with a
    default are its options.

    Attributes:
        name: how tables call it.
        function: the texts in, one number for each out; NaN where a text has none.
        better: which way is better, or None where neither is as such.
        unit: of its numbers, such as "tokens" or "probability".
        about: what it measures, and what it does not, in a sentence or two.

    Example:
        >>> import steerfn as sf
        >>> shouting = sf.metrics.Metric("shouting", lambda texts: [t.count("!") for t in texts], unit="marks")
        >>> shouting(["Hello!", "Hello."])
        [1, 0]
    """

    name: str
    function: Function
    better: Better | None = None
    unit: str = ""
    about: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the arguments that it takes besides the texts."""
        return tuple(name for name, default in _keywords(self.function).items() if default is inspect.Parameter.empty)

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their values."""
        keywords = _keywords(self.function)
        return {name: value for name, value in keywords.items() if value is not inspect.Parameter.empty}

    def using(self, **options: Any) -> "Metric":
        """The same metric with other options, named after them.

        Raises:
            DataError: an option that it does not have.
        """
        if unknown := [name for name in options if name not in self.options]:
            listed = f"its options are: {', '.join(self.options) or 'none'}"
            raise DataError(unknown_keyword(f"The metric {self.name!r}", unknown[0], self.options, listed))
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        bound = functools.partial(self.function, **options)
        return dataclasses.replace(self, name=f"{self.name}({shown})", function=bound)

    def __call__(self, texts: Sequence[str], **given: Any) -> Sequence[float]:
        texts = as_list(texts, "texts")
        try:
            return self.function(texts, **given)
        except TypeError:
            wrong = misnamed_keyword(self.function, (texts,), given)
            if wrong is None:
                raise
        raise DataError(unknown_keyword(f"The metric {self.name!r}", wrong, _keywords(self.function)))

    def __str__(self) -> str:
        way = f", {self.better} is better" if self.better else ""
        return f"{self.name} [{self.unit or 'number'}{way}]: {self.about}".rstrip(": ")


def _keywords(function: Function) -> dict[str, Any]:
    """The keyword-only arguments of a function and their defaults."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins tell no signature
        return {}
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


_registry: dict[str, Metric] = {}


@public
def register(metric: Metric) -> Metric:
    """Make a metric known by its name.

    Args:
        metric: the metric.

    Raises:
        DataError: another metric has that name, or it asks for something that nobody gives.

    Example:
        >>> import steerfn as sf
        >>> asking = sf.metrics.Metric("asking", lambda texts: [text.count("?") for text in texts])
        >>> sf.metrics.register(asking).name
        'asking'
    """
    if metric.name in _registry and _registry[metric.name] != metric:
        raise DataError(f"There is a metric named {metric.name!r} already; give this one another name.")
    _check_needs(metric)
    _registry[metric.name] = metric
    return metric


def metric(*, better: Better | None = None, unit: str = "", about: str = "") -> Callable[[Function], Metric]:
    """A decorator that registers a function as the metric of its name."""
    return lambda function: register(Metric(function.__name__, function, better, unit, about))


@public
def names() -> tuple[str, ...]:
    """The names of all metrics that are known.

    Example:
        >>> import steerfn as sf
        >>> "sentiment" in sf.metrics.names()
        True
    """
    return tuple(sorted(_registry))


@public
def get(name: str) -> Metric:
    """A metric by its name.

    Args:
        name: one of `names()`.

    Raises:
        DataError: no metric has that name.

    Example:
        >>> import steerfn as sf
        >>> print(sf.metrics.get("length"))
        length [words]: Words of a text, as white space separates them; bounded by max_new_tokens.
    """
    if name not in _registry:
        near = difflib.get_close_matches(name, _registry, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"There is no metric {name!r}; {hint}there are {', '.join(names())}.")
    return _registry[name]


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """Metrics by name: of names, functions and `Metric`s, one, a list, or a mapping of names to them.

    Raises:
        DataError: a name that is not known, something that is no function, or two of one name.
    """
    if isinstance(metrics, Mapping):
        listed_metrics = [dataclasses.replace(_as_metric(each), name=str(name)) for name, each in metrics.items()]
    else:
        listed: Any = [metrics] if isinstance(metrics, str) or callable(metrics) else metrics
        if not isinstance(listed, Sequence):
            raise DataError(f"metrics must be a list of names or functions, not {metrics!r:.80}.")
        listed_metrics = [_as_metric(each) for each in listed]
    called = [each.name for each in listed_metrics]
    if twice := [name for name in called if called.count(name) > 1]:
        raise DataError(f"Two metrics are named {twice[0]!r}; pass a mapping of names to functions.")
    return {each.name: _check_needs(each) for each in listed_metrics}


def _as_metric(each: Any) -> Metric:
    if isinstance(each, Metric):
        return each
    if isinstance(each, str):
        return get(each)
    if not callable(each):
        raise DataError(
            "A metric must be a name, or a function of a list of texts that returns one number for each, not "
            f"{each!r:.80}."
        )
    function: Any = each
    return Metric(getattr(each, "__name__", type(each).__name__), function)


def _check_needs(metric: Metric) -> Metric:
    if strange := [name for name in metric.needs if name not in GIVEN]:
        raise DataError(
            f"The metric {metric.name!r} asks for {strange[0]!r}, which is not available; besides the texts there are "
            f"{', '.join(GIVEN)}. Give its options default values."
        )
    return metric


ALONE = {"prompts", "references"}
"""What a metric may need beside the texts and still be tried before anything has run."""


def try_metrics(metrics: Mapping[str, Metric]) -> None:
    """Ask those metrics that need no model about one text: what fails does so before anything has run.

    Raises:
        DataError: a metric that fails.
        SteerError: an optional package that is not installed.
    """
    text = "A text to try the metrics on."
    setting = Setting(prompts=[text], references=[text])
    measure({name: each for name, each in metrics.items() if set(each.needs) <= ALONE}, [text], setting)


def measure(metrics: Mapping[str, Metric], texts: Sequence[str], setting: Setting) -> dict[str, np.ndarray]:
    """Every metric of every text, `[texts]`, each asked once for all of them.

    Raises:
        DataError: a metric that asks for what this setting has not, or that does not give one number for each text.
    """
    values = {}
    for name, each in metrics.items():
        arguments = {need: getattr(setting, need) for need in each.needs}
        # chat may be None, which lets the tokenizer decide
        if missing := [need for need, value in arguments.items() if value is None and need != "chat"]:
            raise DataError(f"The metric {name!r} needs {missing[0]}, which this call does not provide; leave it out.")
        try:
            numbers = np.array(list(each(texts, **arguments)), dtype=np.float64)
        except (TypeError, ValueError) as error:
            if isinstance(error, SteerError):  # it says itself what is wrong: a package that is missing, a server
                raise
            raise DataError(f"The metric {name!r} must return one number for each text: {error}.") from error
        if numbers.shape != (len(texts),):
            raise DataError(
                f"The metric {name!r} gave {numbers.shape} numbers for {len(texts)} texts; it must return one for each."
            )
        values[name] = numbers
    return values


def check_paired(texts: Sequence[str], **given: Sequence[Any]) -> None:
    """Refuses prompts or references of another number than the texts'.

    Raises:
        DataError: it names both numbers.
    """
    for name, values in given.items():
        if len(values) != len(texts):
            raise DataError(f"There are {len(texts)} texts and {len(values)} {name}; pass one for each text.")


def describe_metric(metric: Metric) -> dict[str, Any]:
    """The unit, better direction and description of a metric, as JSON values."""
    return {"unit": metric.unit, "better": metric.better, "about": metric.about}
