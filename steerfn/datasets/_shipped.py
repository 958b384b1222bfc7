"""The sets that come with the package, written for it."""

import difflib
import json
from importlib import resources
from typing import Any

from steerfn.datasets._set import ContrastSet
from steerfn.values import DataError, public


@public
def names() -> tuple[str, ...]:
    """The names of the sets that come with the package, in alphabetical order.

    Example:
        >>> import steerfn as sf
        >>> sf.datasets.names()
        ('concision', 'confidence', 'formality', 'honesty', 'politeness', 'refusal', 'sentiment')
    """
    return tuple(sorted(f.name.removesuffix(".json") for f in _folder().iterdir() if f.name.endswith(".json")))


@public
def load(name: str) -> ContrastSet:
    """A set that comes with the package: about fifty pairs that differ in one behaviour and little else.

    Within a pair the topic and the length are close (but in `concision`, where length is the behaviour), and the
    first words do not tell the sides apart; `sf.discover.lint_pairs(load(name))` checks it. All were written for this
    package and are under its licence, Apache-2.0.

    Args:
        name: one of `names()`.

    Raises:
        DataError: another name.

    Example:
        >>> import steerfn as sf
        >>> d = sf.datasets.load("sentiment")
        >>> d, d.positive[4]
        (ContrastSet('sentiment', 48 pairs), 'I woke up rested and eager to see what today would bring.')
        >>> d.negative[4]
        'I woke up exhausted and afraid of what today would bring.'
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name.casefold(), known, n=1) if isinstance(name, str) else []
        meant = f"Did you mean '{near[0]}'? The known names are" if near else "The known names are"
        raise DataError(
            f"No set is called {name!r:.80}. {meant} {', '.join(known)}; sf.datasets.from_file reads your own."
        )
    document = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    positive, negative = zip(*document["pairs"], strict=True)
    return ContrastSet(
        name=document["name"],
        positive=positive,
        negative=negative,
        paired=True,
        description=document["description"],
        source=f"steerfn, {document['license']}",
    )


def _folder() -> Any:
    return resources.files("steerfn.datasets") / "data"
