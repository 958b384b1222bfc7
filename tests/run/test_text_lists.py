"""Lists of texts as people have them: what iterates to something other than texts is refused or read as meant."""

import numpy as np
import pytest
from words import words

import steerfn as sf

TEXTS = ["a b", "c d"]


class Table:
    """As a DataFrame of pandas or polars does, it iterates over the names of its columns."""

    columns = ("text", "label")

    def __iter__(self):
        return iter(self.columns)


class Rows:
    """As a `datasets.Dataset` does, it iterates over rows."""

    column_names = ("text",)

    def __iter__(self):
        return iter([{"text": text} for text in TEXTS])


def read(tiny, texts):
    return sf.activations(tiny, words(), texts, 1, progress=False)[sf.resid_post[1]]


def test_pitfall_48_lists_of_texts_in_any_clothes(tiny):
    expected = read(tiny, TEXTS)
    for given in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), iter(TEXTS), dict.fromkeys(TEXTS).keys()):
        assert read(tiny, given).equal(expected)


def test_pandas_columns_are_texts_and_frames_are_not(tiny):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "a": TEXTS})
    assert read(tiny, frame["text"]).equal(read(tiny, TEXTS))
    with pytest.raises(sf.DataError, match=r"^texts is a table \(DataFrame\) with the columns \['text', 'a'\]; pass"):
        read(tiny, frame)


def test_pitfall_48_what_iterates_to_something_else_is_refused(tiny):
    w = words()
    for given, text in [
        (Table(), "is a table"),
        (Rows(), "is a table"),
        ({"a": "b"}, "is a dict, which is not a list of texts"),
        ({"a b", "c d"}, "is a set, which is not a list of texts"),
        (frozenset(TEXTS), "is a frozenset"),
        (b"a b", "is a bytes"),
        (3, "is a list of texts, not 3"),
    ]:
        for run in (
            lambda given=given: read(tiny, given),
            lambda given=given: sf.generate(tiny, w, given),
            lambda given=given: sf.mean_difference(tiny, w, given, TEXTS, 1, progress=False),
            lambda given=given: sf.score(tiny, w, given, ["a"], progress=False),
            lambda given=given: sf.discover.lint_pairs(given, TEXTS),
            lambda given=given: sf.metrics.length(given),
        ):
            with pytest.raises(sf.DataError, match=text):
                run()
    with pytest.raises(sf.DataError, match="texts is a str"):
        sf.metrics.length("letters are no texts")


@pytest.mark.parametrize(
    "text",
    ["cut here \ud83d", "\ude00 begins", [{"role": "user", "content": "half \ud800"}]],
    ids=("end", "start", "chat"),
)
def test_half_of_a_surrogate_pair_is_one_sentence(tiny, text):
    """Tokenizers answer it with a TypeError of their own, or with other text."""
    tokenizer = words()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for call in (
        lambda: sf.generate(tiny, tokenizer, [text], max_new_tokens=1, chat=False),
        lambda: sf.mean_difference(tiny, tokenizer, [text], ["a b"], 1, progress=False),
        lambda: sf.score(tiny, tokenizer, ["a b"], [" \ud800", " c"], chat=False),
    ):
        with pytest.raises(sf.DataError, match="half of a surrogate pair .* write the whole one"):
            call()
