"""Lint for contrast pairs: what would make a direction mean something else than the behaviour.

Against what chance alone would do to two sides of texts, computed exactly.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from steerfn.model import Tokenizer
from steerfn.output import Bullets, Paragraph, Result, Section, quantity
from steerfn.run import Text, as_list, as_texts, same_text
from steerfn.values import DataError, public

FEW = 20
"""Fewer examples a side than this are too few: the noise of a mean falls with the root of their number."""
LENGTH_RATIO = 1.25
"""The longer side may have this many times the mean length of the shorter."""
FIRST_TOKEN = 0.2
"""How far the total variation may exceed what chance gives, for large sides; `1 / sqrt(n)` is added for small ones."""
LETTER_P, LETTER_SHARE = 0.05, 0.05
"""An answer is out of place at a two-sided p-value below this, if its share is also this far from one half."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a set of contrast pairs; see `lint_pairs`.

    Attributes:
        kind: "empty", "few", "unequal counts", "duplicate", "contradiction", "leak", "length", "first token", or
            "letter position".
        message: a sentence with the numbers and what to do.
        indices: the texts concerned, on the side that the message names (of a leak: in `held_out`); of a
            duplicate all but the first. Empty where the finding is of all texts.
    """

    kind: str
    message: str
    indices: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class LintReport(Result):
    """The findings of `lint_pairs`; `print(report)` shows one a line.

    Iterating gives the findings and `len` their number, so a report without findings is falsy: ask for `ok`.

    Attributes:
        findings: every `Finding`, in the order of the list in `lint_pairs`.
        examples: what was looked at, such as "48 pairs".
    """

    findings: tuple[Finding, ...]
    examples: str

    _title = "Lint of contrast pairs"
    _what = "The findings"

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each finding."""
        return [dataclasses.asdict(finding) for finding in self]

    def _facts(self) -> dict[str, Any]:
        return {"examples": self.examples, "ok": self.ok}

    def _sections(self) -> Sequence[Section]:
        if self.ok:
            return [Paragraph(f"ok: {self.examples}, nothing found")]
        head = f"{quantity(len(self), 'finding')} in {self.examples}"
        return [Bullets([f"{finding.kind}: {finding.message}" for finding in self], head, "  ")]

    def __repr__(self) -> str:
        return str(self)


@public
def lint_pairs(
    positive: Any, negative: Any = None, *, held_out: Any = None, tokenizer: Tokenizer | None = None
) -> LintReport:
    """Report confounds: differences between two sides of texts that a direction would learn instead of the behaviour.

    - empty: a text without words.
    - few: fewer than 20 texts on a side.
    - unequal counts: pairs are meant, and one side has more texts.
    - duplicate: a text twice on one side.
    - contradiction: a text on both sides.
    - leak: a text of `held_out` among those here, on either side.
    - length: one side is more than 1.25 times as long as the other, in the mean.
    - first token: the first word gives the side away. The total variation distance between the first words of the two
      sides, `sum(|p - q|) / 2`, exceeds by more than `0.2 + 1 / sqrt(n)` its mean when the same texts are dealt to the
      sides by chance (computed exactly); `n` is the size of the smaller side.
    - letter position: the texts are answers such as (A) or Yes, and of those with one answer other than half are
      positive: p < 0.05 in a two-sided binomial test, and more than 5 points from one half.

    Texts are the same when they differ in case and white space only. Of a conversation, the length and the words
    are those of its last message.

    Args:
        positive: a set with `positive` and `negative` such as `sf.datasets.load` gives, or a list of texts.
        negative: the list of the other side, where `positive` is a list; the two are taken for pairs.
        held_out: texts to be tested on, as a set or as `(positive, negative)`, to look for leaks.
        tokenizer: counts tokens and compares first tokens, instead of words. Unchanged.

    Raises:
        DataError: no texts on one side, or something that is no text.

    Example:
        >>> import steerfn as sf
        >>> train, test = sf.datasets.load("honesty").split()
        >>> sf.discover.lint_pairs(train, held_out=test)
        ok: 36 pairs, nothing found
        >>> print(sf.discover.lint_pairs(["I am happy.", "I am glad."], ["You are sad.", "I am happy."]))
        2 findings in 2 pairs
          few: 2 positive and 2 negative texts are few; write at least 20 a side.
          contradiction: 1 text is on both sides, first 'I am happy.' (positive[0]); decide where it belongs.
    """
    sides, paired, items = _sides(positive, negative, "positive and negative")
    withheld = None if held_out is None else _sides(*_pair(held_out), "the texts held out")[0]
    measure = _words if tokenizer is None else _tokens(tokenizer)
    full = [[text for text in side if _last(text).strip()] for side in sides]
    findings = [
        *_empty(sides),
        *_few(sides),
        *_unequal(sides, paired),
        *_duplicates(sides),
        *_contradictions(sides),
        *_leaks(sides, withheld),
    ]
    if all(full):
        measured = [[measure(_last(text)) for text in side] for side in full]
        findings += [
            *_lengths(measured, "words" if tokenizer is None else "tokens"),
            *_first(measured, "word" if tokenizer is None else "token", tokenizer),
            *_letters(full, items),
        ]
    counts = [len(side) for side in sides]
    pairs = paired and counts[0] == counts[1]
    return LintReport(
        tuple(findings),
        quantity(counts[0], "pair") if pairs else f"{counts[0]} positive and {counts[1]} negative texts",
    )


Sides = Sequence[Sequence[Text]]
"""The positive and the negative texts."""

NAMES = ("positive", "negative")
ANSWERS = ("answer_matching_behavior", "answer_not_matching_behavior")


def _pair(held_out: Any) -> tuple[Any, Any]:
    """The arguments that a set or a pair of lists stands for."""
    if hasattr(held_out, "positive"):
        return held_out, None
    if isinstance(held_out, (tuple, list)) and len(held_out) == 2 and not any(isinstance(s, str) for s in held_out):
        return held_out[0], held_out[1]
    raise DataError(f"held_out must be a contrast set or (positive, negative), not {held_out!r:.80}.")


def _sides(positive: Any, negative: Any, what: str) -> tuple[list[list[Text]], bool, Sequence[Any]]:
    """The texts of both sides, whether they are pairs, and the questions they come from."""
    paired, items = True, ()
    if hasattr(positive, "positive") and hasattr(positive, "negative"):
        if negative is not None:
            raise DataError(f"A contrast set has both sides; pass {positive!r:.80} alone, or two lists.")
        paired, items = bool(getattr(positive, "paired", False)), getattr(positive, "items", ())
        positive, negative = positive.positive, positive.negative
    elif negative is None:
        raise DataError(f"{what} are a set such as sf.datasets.load gives, or two lists; the negative one is missing.")
    sides = []
    for name, side in zip(NAMES, (positive, negative), strict=True):
        given = as_texts(side, name) if isinstance(side, str) else as_list(side, name)
        blank = {i for i, text in enumerate(given) if isinstance(text, str) and not text.strip()}
        # A blank text is a finding here, and no error.
        texts = as_texts(["-" if i in blank else text for i, text in enumerate(given)], name)
        sides.append(["" if i in blank else text for i, text in enumerate(texts)])
    questions = isinstance(items, (tuple, list)) and all(isinstance(i, dict) and set(ANSWERS) <= set(i) for i in items)
    return sides, paired, items if questions else ()


def _last(text: Text) -> str:
    return text if isinstance(text, str) else str(text[-1]["content"])  # which may be a list of parts


def _empty(sides: Sides) -> Iterator[Finding]:
    for name, side in zip(NAMES, sides, strict=True):
        if empty := tuple(i for i, text in enumerate(side) if not _last(text).strip()):
            yield Finding(
                "empty",
                f"{quantity(len(empty), f'{name} text')} without words, first {name}[{empty[0]}]; remove or write "
                "them.",
                empty,
            )


def _few(sides: Sides) -> Iterator[Finding]:
    counts = [len(side) for side in sides]
    if min(counts) < FEW:
        message = f"{counts[0]} positive and {counts[1]} negative texts are few; write at least {FEW} a side."
        yield Finding("few", message)


def _unequal(sides: Sides, paired: bool) -> Iterator[Finding]:
    counts = [len(side) for side in sides]
    if paired and counts[0] != counts[1]:
        yield Finding(
            "unequal counts",
            f"{counts[0]} positive and {counts[1]} negative texts are not pairs; give each its opposite, or use only "
            "methods that take means.",
        )


def _duplicates(sides: Sides) -> Iterator[Finding]:
    for name, side in zip(NAMES, sides, strict=True):
        first: dict[str, int] = {}
        seen = [(i, first.setdefault(same_text(text), i)) for i, text in enumerate(side) if _last(text).strip()]
        if repeats := [(i, before) for i, before in seen if i != before]:
            again, before = repeats[0]
            repeat = "repeats" if len(repeats) == 1 else "repeat"
            yield Finding(
                "duplicate",
                f"{quantity(len(repeats), f'{name} text')} {repeat} an earlier one, first "
                f"{_quote(side[again])} ({name}[{again}] = {name}[{before}]); remove the repeats.",
                tuple(i for i, _ in repeats),
            )


def _contradictions(sides: Sides) -> Iterator[Finding]:
    negatives = {same_text(text) for text in sides[1] if _last(text).strip()}
    if shared := tuple(i for i, text in enumerate(sides[0]) if same_text(text) in negatives):
        first = f"{_quote(sides[0][shared[0]])} (positive[{shared[0]}])"
        are, where = ("is", "it belongs") if len(shared) == 1 else ("are", "they belong")
        yield Finding(
            "contradiction",
            f"{quantity(len(shared), 'text')} {are} on both sides, first {first}; decide where {where}.",
            shared,
        )


def _leaks(sides: Sides, held: Sides | None) -> Iterator[Finding]:
    known = {same_text(text) for side in sides for text in side if _last(text).strip()}
    for name, side in zip(NAMES, held or ((), ()), strict=True):
        if leaked := tuple(i for i, text in enumerate(side) if same_text(text) in known):
            yield Finding(
                "leak",
                f"{len(leaked)} of {len(side)} {name} texts held out are also trained on, first "
                f"{_quote(side[leaked[0]])} ({name}[{leaked[0]}]); remove them from one of the two.",
                leaked,
            )


def _quote(text: Text) -> str:
    words = " ".join(_last(text).split())
    return repr(words if len(words) <= 60 else f"{words[:60]}...")


Measure = Callable[[str], tuple[int, Hashable]]
"""The length of a text and its first word or token."""


def _words(text: str) -> tuple[int, Hashable]:
    words = text.casefold().split()
    return len(words), words[0].strip("\"'“”‘’.,;:!?()[]*-") or words[0]


def _tokens(tokenizer: Any) -> Measure:
    if not hasattr(tokenizer, "apply_chat_template"):
        raise DataError(
            f"A transformers tokenizer is needed, not {tokenizer!r:.80} of type {type(tokenizer).__name__}."
        )

    def measure(text: str) -> tuple[int, Hashable]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(ids), ids[0] if ids else None

    return measure


def _lengths(measured: Sequence[Sequence[tuple[int, Hashable]]], unit: str) -> Iterator[Finding]:
    positive, negative = (sum(length for length, _ in side) / len(side) for side in measured)
    ratio = max(positive, negative) / max(min(positive, negative), 1e-9)
    if ratio > LENGTH_RATIO:
        longer = NAMES[negative > positive]
        yield Finding(
            "length",
            f"The {longer} texts are {ratio:.2f} times as long ({positive:.1f} {unit} positive, {negative:.1f} "
            f"negative); bring them within {LENGTH_RATIO}, or the direction will also be one of length.",
        )


def _first(measured: Sequence[Sequence[tuple[int, Hashable]]], unit: str, tokenizer: Any) -> Iterator[Finding]:
    positive, negative = (Counter(first for _, first in side) for side in measured)
    n, m = (len(side) for side in measured)
    gaps = {word: positive[word] / n - negative[word] / m for word in positive | negative}
    distance = sum(map(abs, gaps.values())) / 2
    chance = sum(chance_gap(positive[word] + negative[word], n, m) for word in gaps) / 2
    if distance - chance > FIRST_TOKEN + 1 / math.sqrt(min(n, m)):
        word = max(gaps, key=lambda w: abs(gaps[w]))
        shown = word if tokenizer is None or word is None else tokenizer.decode([word])
        yield Finding(
            "first token",
            f"The first {unit} gives the side away: total variation {distance:.2f}, where chance gives {chance:.2f} "
            f"({shown!r} opens {positive[word]} of {n} positive and {negative[word]} of {m} negative texts); vary the "
            "openings, or open both texts of a pair alike.",
        )


_LETTER = re.compile(r"\(?([A-Z])[).:]{0,2}")
_WORDS = ("yes", "no", "true", "false")


def _letters(sides: Sides, items: Sequence[Any]) -> Iterator[Finding]:
    if items:
        answers = [[_answer(str(item[key]).split()) for item in items] for key in ANSWERS]
    else:
        answers = [[_answer(_last(text).split()[-1:]) for text in side] for side in sides]
    if any(side.count(None) > 0.1 * len(side) for side in answers):
        return  # the texts are no answers by letter
    positive, negative = (Counter(a for a in side if a is not None) for side in answers)
    n, m = positive.total(), negative.total()
    tested = {a: two_sided(positive[a], positive[a] + negative[a], n / (n + m)) for a in positive | negative}
    # Among the texts that end in this answer, how many are positive; of unequal sides, more should be.
    share = {a: positive[a] / n / (positive[a] / n + negative[a] / m) for a in tested}
    wrong = [a for a in tested if tested[a] < LETTER_P and abs(share[a] - 0.5) > LETTER_SHARE]
    if wrong:
        worst = min(wrong, key=lambda a: tested[a])
        shares = ", ".join(f"{a} in {count / n:.0%}" for a, count in positive.most_common(4))
        yield Finding(
            "letter position",
            f"The positive answer is {shares} of {n}, and {worst} is positive in {positive[worst]} of the "
            f"{positive[worst] + negative[worst]} cases that have it (p = {tested[worst]:.2g}); swap the options of "
            "some questions, or a preference for a letter will look like the behaviour.",
            tuple(i for i, a in enumerate(answers[0]) if a in wrong),
        )


def _answer(words: Sequence[str]) -> str | None:
    """ "(A)" of "(A)", "A." or "(A) A donut"; "Yes" of "yes, it is"; None of "A donut" and of anything else."""
    word = words[0] if words else ""
    match = _LETTER.fullmatch(word)
    if match and (len(words) == 1 or len(word) > 1):
        return f"({match.group(1)})"
    plain = word.strip(".!,:;\"'").casefold()
    return plain.capitalize() if plain in _WORDS else None


def chance_gap(count: int, n: int, m: int) -> float:
    """The mean of `|k/n - (count-k)/m|` when `count` of `n + m` texts are dealt to two sides (hypergeometric)."""
    return sum(
        math.exp(_log_choose(n, k) + _log_choose(m, count - k) - _log_choose(n + m, count))
        * abs(k / n - (count - k) / m)
        for k in range(max(0, count - m), min(n, count) + 1)
    )


def two_sided(k: int, n: int, p: float) -> float:
    """The two-sided binomial p-value: the probability of all counts that are no likelier than `k` of `n`."""
    logs = [_log_choose(n, i) + i * math.log(p) + (n - i) * math.log1p(-p) for i in range(n + 1)]
    return min(1.0, sum(math.exp(each) for each in logs if each <= logs[k] + 1e-9))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
