"""The ways in which two sides are given: lists, columns, contrast sets and pairs, all with the same vector."""

import pytest
from words import words

import steerfn as sf

POSITIVE, NEGATIVE = ["a b c", "d e f g", "h i"], ["o p", "q r s t", "u v"]
PAIRS = [*zip(POSITIVE, NEGATIVE, strict=True)]
SET = sf.datasets.ContrastSet("mine", POSITIVE, NEGATIVE, paired=True)
QUIET = {"progress": False}


class Column:
    """A column of a table, as `datasets` and pandas give one: it can be iterated, and is no list."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)


@pytest.mark.parametrize("verb", [sf.mean_difference, sf.pca, sf.discover.lat, sf.linear_probe, sf.lda])
def test_a_contrast_set_or_pairs_stand_for_both_sides(tiny, verb):
    expected = verb(tiny, words(), POSITIVE, NEGATIVE, 1, **QUIET)
    for given in ((SET, 1), (PAIRS, 1), ([*map(list, PAIRS)], 1), (Column(POSITIVE), Column(NEGATIVE), 1)):
        assert verb(tiny, words(), *given, **QUIET).identical(expected)
    assert verb(tiny, words(), SET, sites=1, **QUIET).identical(expected)


def test_profiles_and_heads_take_them_too(tiny):
    profiles = [
        sf.discover.layer_profile(tiny, words(), *given, **QUIET) for given in ((POSITIVE, NEGATIVE), (SET,), (PAIRS,))
    ]
    assert all(each.vectors.identical(profiles[0].vectors) for each in profiles)
    heads = [sf.discover.iti(tiny, words(), *given, k=2, **QUIET) for given in ((POSITIVE, NEGATIVE), (SET,), (PAIRS,))]
    assert all(each.identical(heads[0]) for each in heads)


def test_pairs_of_conversations(tiny):
    talk = [[{"role": "user", "content": text}] for text in POSITIVE]
    tokenizer = words(template=True)
    expected = sf.mean_difference(tiny, tokenizer, talk, NEGATIVE, 1, **QUIET)
    found = sf.mean_difference(tiny, tokenizer, [*zip(talk, NEGATIVE, strict=True)], 1, **QUIET)
    assert found.identical(expected)


def test_sides_that_are_not_pairs_are_not_taken_for_pairs(tiny):
    loose = sf.datasets.ContrastSet("loose", POSITIVE, NEGATIVE)
    v = sf.mean_difference(tiny, words(), loose, 1, quality=True, **QUIET)
    assert sf.quality(v)[sf.resid_post[1]].pair_accuracy is None
    for verb, options in ((sf.pca, {}), (sf.mean_difference, {"position": "answer"})):
        with pytest.raises(sf.DataError, match="pairs"):
            verb(tiny, words(), loose, 1, **options, **QUIET)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((POSITIVE,), "negative is missing: pass texts that show the opposite of positive, or a contrast set"),
        ((SET,), "sites is missing: pass the layer to read at"),
        ((POSITIVE, NEGATIVE), "sites is missing"),
        ((SET, NEGATIVE, 1), "which has both sides; leave negative out."),
        ((PAIRS, NEGATIVE, 1), "which has both sides; leave negative out."),
        ((PAIRS + [("a", "b", "c")], NEGATIVE, 1), "positive[0] is ('a b c', 'o p') of type tuple"),
    ],
)
def test_errors_by_their_text(tiny, given, message):
    with pytest.raises(sf.DataError) as caught:
        sf.mean_difference(tiny, words(), *given, **QUIET)
    assert message in str(caught.value)


def test_a_whole_table_is_no_side(tiny):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"a": POSITIVE, "b": NEGATIVE})
    with pytest.raises(sf.DataError, match=r"positive is a table \(DataFrame\); pass two of its columns"):
        sf.mean_difference(tiny, words(), table, 1, **QUIET)
    expected = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, **QUIET)
    assert sf.mean_difference(tiny, words(), table["a"], table["b"], 1, **QUIET).identical(expected)


def test_a_column_of_a_dataset(tiny):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    if not hasattr(datasets, "Dataset"):
        pytest.skip("datasets is not installed")
    columns = pytest.importorskip("pyarrow").table({"chosen": POSITIVE, "rejected": NEGATIVE})
    table = datasets.Dataset(datasets.table.InMemoryTable(columns), fingerprint="mine")
    expected = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, **QUIET)
    assert sf.mean_difference(tiny, words(), table["chosen"], table["rejected"], 1, **QUIET).identical(expected)
    assert sf.mean_difference(tiny, words(), sf.datasets.from_rows(table), 1, **QUIET).identical(expected)
    with pytest.raises(sf.DataError, match="positive is a table"):
        sf.mean_difference(tiny, words(), table, 1, **QUIET)
