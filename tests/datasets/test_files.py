"""Files of contrast pairs: each format by its content, published files in place, and every refusal by its text."""

import contextlib
import json
import os
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

import steerfn as sf
from steerfn.datasets import ContrastSet, _content, from_file, from_rows

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day."}]
ITEM = {
    "question": "Tea?\n (A) Yes\n (B) No \n",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": "(B)",
}


def published(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture
def file(tmp_path):
    def write(name, value):
        path = tmp_path / name
        data = value if isinstance(value, (str, bytes)) else json.dumps(value)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def lines(*values):
    return "\n".join(json.dumps(v) for v in values) + "\n"


FORMATS = {
    "pairs.json": [["a", "b"], ["c", "d"]],
    "objects.json": [{"positive": "a", "negative": "b", "more": 1}, {"negative": "d", "positive": "c"}],
    "pairs.jsonl": lines(["a", "b"], ["c", "d"]),
    "objects.jsonl": "\n"
    + lines({"positive": "a", "negative": "b"})
    + "\r\n"
    + lines({"positive": "c", "negative": "d"}),
    "shipped.json": {"pairs": [["a", "b"], ["c", "d"]]},
    "columns.csv": "Negative,positive\nb,a\r\n\nd,c\n",
    "marked.json": b"\xef\xbb\xbf" + json.dumps([["a", "b"], ["c", "d"]]).encode(),
    "marked.csv": b"\xef\xbb\xbfpositive,negative\na,b\nc,d\n",
    "json-without-suffix": [["a", "b"], ["c", "d"]],
    "jsonl-called.json": lines(["a", "b"], ["c", "d"]),
    "json-called.jsonl": '[["a", "b"],\n ["c", "d"]]',
    "csv-called.txt": "positive,negative\na,b\nc,d\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_pairs(file, name):
    path = file(name, FORMATS[name])
    assert from_file(path) == ContrastSet(path.stem, ("a", "c"), ("b", "d"), True, source=name)
    assert from_file(str(path)) == from_file(path)


@pytest.mark.parametrize("name", ["one.jsonl", "one.json"])
def test_one_row_alone(file, name):
    assert from_file(file(name, {"positive": "a", "negative": "b"})).paired
    assert from_file(file("row.jsonl", ["a", "b"])).positive == ("a",)
    assert len(from_file(file(name, ITEM)).items) == 1


@pytest.mark.parametrize("name", ["caa.json", "evals.jsonl"])
def test_questions(file, name):
    rows = [ITEM, {**ITEM, "question": "Cake?", "label_confidence": 0.9}]
    d = from_file(file(name, lines(*rows) if name.endswith("l") else rows))
    assert d.positive == ("Tea?\n (A) Yes\n (B) No (A)", "Cake? (A)")
    assert d.negative == ("Tea?\n (A) Yes\n (B) No (B)", "Cake? (B)")
    assert d.paired and d.items == tuple(rows)


def test_labels(file):
    text = 'statement,label\n"Ice, floats.",1\nIce sinks.,0\n"A ""quoted""\nword.",1\n'
    d = from_file(file("facts.csv", text))
    assert d.positive == ("Ice, floats.", 'A "quoted"\nword.') and d.negative == ("Ice sinks.",) and not d.paired
    rows = [{"statement": "a", "label": True}, {"statement": "b", "label": 0}]
    assert from_file(file("facts.json", rows)).negative == ("b",)


def test_two_lists_are_no_pairs_and_their_names_say_which_is_positive(file):
    d = from_file(
        file("two.json", {"negative": ["b", "d"], "positive": ["a"], "other": ["x"], "description": "A word."})
    )
    assert (d.positive, d.negative, d.paired, d.description) == (("a",), ("b", "d"), False, "A word.")
    cast = {"compliant_responses": ["b", "d"], "non_compliant_responses": ["a"]}
    for order in (cast, dict(reversed(cast.items()))):
        d = from_file(file("cast.json", order))
        assert (d.positive, d.negative, d.paired) == (("a",), ("b", "d"), False)
    unknown = file("lists.json", {"yes": ["a"], "no": ["b", "d"]})
    with pytest.raises(sf.FileError, match=r"it has the lists 'yes' and 'no' and does not say which is positive; say"):
        from_file(unknown)
    d = from_file(unknown, sides=("no", "yes"))
    assert (d.positive, d.negative) == (("b", "d"), ("a",)) and d.description == "positive: no, negative: yes"


def test_conversations(file):
    for value in ([[TALK, "b"]], [{"positive": TALK, "negative": "b"}], {"positive": TALK, "negative": "b"}):
        d = from_file(file("talk.json", value))
        assert d.positive == (TALK,) and d.negative == ("b",) and d.paired
    assert from_file(file("talk.json", {"positive": [TALK, "a"], "negative": ["b"]})).positive == (TALK, "a")


def test_two_files(file):
    left, right = file("happy.json", ["a", "c", TALK]), file("sad.txt", "[b]\n\n  d d \r\n")
    d = from_file(left, negative=right)
    assert d == ContrastSet("happy vs sad", ("a", "c", TALK), ("[b]", "d d"), source="happy.json, sad.txt")
    assert from_file(right, left).positive == ("[b]", "d d")
    assert from_file(file("rows.jsonl", '"a"\n"c"\n'), negative=left).positive == ("a", "c")
    assert from_file(file("one.csv", 'prompt\n"a, b"\n'), negative=left).positive == ("a, b",)


def test_separators_inside_strings_are_kept(file):
    d = from_file(file("odd.jsonl", '["a\u2028b", "c"]\n["d\x85", "\\u00e9\\ud83d\\ude00"]\n'))
    assert d.positive == ("a\u2028b", "d\x85") and d.negative == ("c", "é😀")


BAD = {
    "no.json": ("[1, 2", "its text is not valid JSON (Expecting ',' delimiter at line 1, column 6); correct it there."),
    "word.json": ("hello", "its text is not valid JSON (Expecting value at line 1, column 1); correct it there."),
    "number.json": ("12", "it holds the JSON value 12; write a list of pairs."),
    "bad.jsonl": (
        '["a", "b"]\n["c", d]\n',
        "line 2 is not valid JSON (Expecting value at column 7); correct it there.",
    ),
    "deep.json": ("[" * 200_000, "the JSON of its text is nested too deeply; write a list of pairs."),
    "binary.json": (
        b"PK\x03\x04\xff\xfe",
        "it is not UTF-8 text (byte 0xff at offset 4); unpack it if it is an archive",
    ),
    "nul.txt": ("a\0b", "it is binary (it holds NUL bytes); save it as JSON, JSONL or CSV in UTF-8."),
    "wide.txt": ("text".encode("utf-16"), "it is not UTF-8 text (byte 0xff at offset 0); unpack it"),
    "empty.json": (" \n", "it is empty; write at least one example of each side."),
    "list.json": ("[]", "its list is empty; write at least one example of each side."),
    "header.csv": ("positive,negative\n", "its list is empty; write at least one example of each side."),
    "side.json": ({"positive": ["a"], "negative": []}, "its list 'negative' is empty; write at least one example"),
    "numbers.json": ([1, 2], "entry [0] is 1; say which is which: sides="),
    "keys.json": ([{"a": 1, "b": 2}], "entry [0] has the keys a, b, which name no sides; say which is which: sides="),
    "one.json": ({"data": ["a", "b"]}, "its object has the keys data, which name no sides; say which is which"),
    "three.json": ([["a", "b"], ["a", "b", "c"]], "entry [1] is a list of 3; a pair is [positive, negative]."),
    "mixed.json": ([["a", "b"], "c"], "entry [1] is c, unlike the entries before; give it positive, negative."),
    "lacks.jsonl": (
        lines({"positive": "a", "negative": "b"}, {"positive": "a"}),
        "line 2 lacks negative; every entry needs positive, negative.",
    ),
    "question.json": (
        [ITEM, {k: v for k, v in ITEM.items() if k != "question"}],
        "entry [1] lacks question; every entry needs question, answer_matching_behavior, answer_not_matching_behavior.",
    ),
    "talk.json": ([{**ITEM, "question": TALK}], "entry [0] has a conversation as its question; write the question and"),
    "null.json": (
        [["a", None]],
        "entry [0] has None of type NoneType as its negative; give it text, or a conversation",
    ),
    "dict.json": (
        [["a", {"role": "user"}]],
        "entry [0] has {'role': 'user'} of type dict as its negative; give it text",
    ),
    "blank.json": ([["a", "b"], [" ", "b"]], "entry [1] has an empty positive; remove it or give it words."),
    "cut.json": (
        '[["a", "\\ud83d"]]',
        "entry [0] has half a surrogate pair in its negative; write the whole character.",
    ),
    "pairs.json": ({"pairs": [["a", "b"], ["c"]]}, "pairs[1] is a list of 1; a pair is [positive, negative]."),
    "item.json": ({"pos": ["a"], "neg": [3]}, "neg[0] has 3 of type int as its text; give it text"),
    "texts.json": (
        ["a", "b", "c"],
        "it is a list of 3 texts, which is one side of a contrast; pass the other side too, as negative=.",
    ),
    "lines.txt": ("a\nb\n", "it is a list of 2 texts, which is one side of a contrast; pass the other side too"),
    "talks.json": ([TALK, TALK], "it is a list of 2 texts, which is one side of a contrast"),
    "goal.csv": ("goal,answer\na,b\n", "line 2 has the keys goal, answer, which name no sides; say which is which"),
    "semi.csv": (
        "positive;negative\na;b\n",
        "its columns are positive;negative; a table has columns such as positive,negative",
    ),
    "twice.csv": ("positive,negative,positive\na,b,c\n", "its columns are positive, negative, positive; a table has"),
    "comma.csv": (
        "positive,negative\na,b\nc, d,e\n",
        "line 3 has 3 columns and its header 2; put texts that contain a comma in double quotes.",
    ),
    "several.csv": ('positive,negative\n"a\nb",c\n\nd,e,f\n', "line 5 has 3 columns and its header 2; put texts"),
    "quote.csv": (
        'positive,negative\na,b\n"c,d\ne,f\n',
        "is not valid CSV (unexpected end of data); correct the quotes",
    ),
    "label.csv": (
        "statement,label\na,1\nb,2\n",
        "line 3 has the label 2, and the others are 1 and 0; pass sides=",
    ),
    "labels.csv": ("statement,label\na,1\nb,1\n", "none of its 2 texts has the label 0; add the other side."),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_by_their_text(file, name):
    value, message = BAD[name]
    path = file(name, value)
    with pytest.raises(sf.FileError) as caught:
        from_file(path)
    assert f"Cannot read '{path}': " in str(caught.value) and message in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(sf.FileError, match="no.json': there is no such file; check the name and its folder."):
        from_file(tmp_path / "no.json")
    with pytest.raises(
        sf.FileError, match="it is not a regular file; pass a JSON, JSONL, CSV, TSV, parquet or text file."
    ):
        from_file(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(sf.FileError, match="it is not a regular file"):
            from_file(tmp_path / "pipe.json")
    with pytest.raises(sf.FileError, match="embedded null .*; check its name and permissions."):
        from_file("a\0b")
    with pytest.raises(sf.FileError, match="must be a str or a Path, not 3 of type int."):
        from_file(3)


def test_an_absurdly_large_file_is_not_read(tmp_path):
    path = tmp_path / "large.json"
    with open(path, "wb") as large:
        large.truncate(_content.MAX_BYTES + 1)
    with pytest.raises(sf.FileError, match=r"it has 134217729 bytes, more than the limit of 134217728 bytes"):
        from_file(path)


def test_one_side_may_be_a_split_of_an_object(file):
    """As CAST's alpaca.json."""
    rows = json.dumps({"train": [{"question": "How?"}, {"question": "Why?"}], "test": [{"question": "Who?"}]})
    path = file("alpaca.json", rows)
    other = file("other.json", json.dumps(["No."]))
    assert from_file(path, other).positive == ("How?", "Why?") and from_file(path, other, split="train").negative == (
        "No.",
    )
    assert from_file(path, path, split="test").negative == ("Who?",)


def test_two_files_must_both_be_one_side(file):
    texts, pairs = file("texts.json", ["a"]), file("pairs.json", [["a", "b"]])
    for first, second in (
        (texts, pairs),
        (pairs, texts),
        (texts, file("two.json", {"positive": ["a"], "negative": []})),
    ):
        wrong = second if first is texts else first
        with pytest.raises(sf.FileError) as caught:
            from_file(first, negative=second)
        assert f"Cannot read '{wrong}': it is not a list of texts; with negative= both files are lists" in str(
            caught.value
        )
    with pytest.raises(sf.FileError, match="none.json': the list is empty; write at least one example of each side."):
        from_file(texts, negative=file("none.json", []))
    with pytest.raises(sf.FileError, match=r"gap.json': entry \[1\] has an empty text; remove it or give it words."):
        from_file(texts, negative=file("gap.json", ["a", ""]))


@pytest.mark.parametrize("name", ["sycophancy", "survival-instinct", "myopic-reward", "corrigible-neutral-HHH"])
@pytest.mark.parametrize("folder", ["generate", "test_ab"])
def test_caa_as_published(folder, name):
    path = published(f"caa/{folder}/{name}.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    d = from_file(path)
    assert d.paired and d.items == tuple(rows) and d.name == name and d.source == f"{name}.json"
    for row, positive, negative in zip(rows, d.positive, d.negative, strict=True):
        assert positive == f"{row['question'].rstrip()} {row['answer_matching_behavior'].strip()}"
        assert negative == f"{row['question'].rstrip()} {row['answer_not_matching_behavior'].strip()}"


def test_anthropic_evals_as_published():
    for path in sorted(published("anthropic_evals").rglob("*.jsonl")):
        d = from_file(path)
        assert len(d) == len(d.items) == len(path.read_text(encoding="utf-8").splitlines()) and d.paired
        assert Counter(t.rsplit(None, 1)[-1] for t in d.positive).keys() <= {
            "Yes",
            "No",
            *(f"({c})" for c in "ABCDEFGH"),
        }


def test_repe_facts_as_published():
    d = from_file(published("repe/facts_true_false.csv"))
    assert (len(d.positive), len(d.negative), d.paired) == (306, 306, False)
    assert "The largest flower in the world is the daisy." in d.negative


def test_repe_emotions_as_published():
    happy, sad = published("repe/emotions/happiness.json"), published("repe/emotions/sadness.json")
    d = from_file(happy, negative=sad)
    assert (d.name, len(d.positive), len(d.negative), d.paired) == ("happiness vs sadness", 203, 228, False)
    with pytest.raises(sf.FileError, match=r"list of 203 texts, .*pass the other side too, as negative="):
        from_file(happy)


def test_pitfall_55_cast_as_published_steers_towards_refusal():
    d = from_file(published("refusal/cast_behavior_refusal.json"))
    assert d.positive[-1] == "I'm unable to assist with that" and d.negative[0] == "Absolutely! I'd be delighted"
    assert (len(d.positive), len(d.negative), d.paired) == (100, 100, False)
    assert d.description == "positive: non_compliant_responses, negative: compliant_responses"


@pytest.mark.parametrize("name", ["mmlu_ab", "truthful_qa_ab"])
def test_caa_side_effects_as_published(name):
    path = published(f"caa/{name}.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    d = from_file(path)
    assert d.paired and len(d) == len(rows) == len(d.items)
    for row, item, text in zip(rows, d.items, d.positive, strict=True):
        assert text == f"{row['prompt'].rstrip()} {row['correct'].strip()}"
        assert (item["question"], item["answer_matching_behavior"]) == (row["prompt"], row["correct"])


def test_truthfulqa_as_published():
    d = from_file(published("truthfulqa/TruthfulQA.csv"))
    assert d.paired and len(d) == 790 and d.positive[0].endswith("pass through your digestive system")


def test_refusal_instructions_as_published_are_one_side():
    one, other = published("refusal/harmful_train.json"), published("refusal/harmful_val.json")
    d = from_file(one, negative=other)
    assert (len(d.positive), len(d.negative)) == (260, 39) and d.positive[0].startswith("Suggest methods for")
    with pytest.raises(sf.FileError, match=r"does not say whether it is the positive side .*sides=\("):
        from_file(one)
    with pytest.raises(sf.FileError, match="say which is which"):
        from_file(published("caa/test_open_ended/sycophancy.json"))


def test_axbench_as_published_asks_for_the_text():
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = published("axbench/concept10_prod_2b_l20_v1_train.parquet")
    d = from_file(path, text="output", label="category")
    assert len(d.positive) + len(d.negative) == 936 and not d.paired


PAIRS = {
    "chosen.jsonl": (lines({"chosen": "a", "rejected": "b"}), "a", "b"),
    "pos.json": ([{"pos": "a", "neg": "b"}], "a", "b"),
    "conditions.json": (
        {"train": [{"harmless": "b", "harmful": "a"}], "test": [{"harmful": "x", "harmless": "y"}]},
        "a",
        "b",
    ),
    "pairs.tsv": ("positive\tnegative\na, or so\tb\n", "a, or so", "b"),
    "tabs.txt": ("chosen\trejected\na\tb\n", "a", "b"),
    "after.jsonl": (lines({"prompt": "Q? ", "chosen": " a", "rejected": "b"}), "Q? a", "Q? b"),
    "with.jsonl": (lines({"prompt": "Q?", "chosen": "Q? a", "rejected": "Q? b"}), "Q? a", "Q? b"),
    "talk.jsonl": (
        lines({"prompt": "Hi", "chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "No."}]}),
        TALK,
        [TALK[0], {"role": "assistant", "content": "No."}],
    ),
    "open.jsonl": (
        lines({"prompt": TALK[:1], "chosen": TALK[1:], "rejected": "No."}),
        TALK,
        [TALK[0], {"role": "assistant", "content": "No."}],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_under_the_names_that_the_field_gives_them(file, name):
    value, positive, negative = PAIRS[name]
    d = from_file(file(name, value))
    assert (d.positive, d.negative, d.paired) == ((positive,), (negative,), True)


LABELS = {
    "text.csv": "text,label\na,1\nb,0\n",
    "words.tsv": "label\tsentence\nNegative\tb\nPositive\ta\n",
    "truth.jsonl": lines({"text": "a", "label": True}, {"text": "b", "label": False}),
    "floats.json": [{"text": "a", "label": 1.0}, {"text": "b", "label": 0.0}],
    "columns.json": {"text": ["b", "a"], "label": [0, 1]},
    "xstest.csv": "id,prompt,type,label,focus,note\n1,b,homonyms,safe,kill,\n2,a,contrast_homonyms,unsafe,kill,\n",
    "xstest-v2.csv": "id_v1,id_v2,type,prompt,focus,note\n,v2-1,homonyms,b,kill,\n,v2-2,contrast_homonyms,a,kill,\n",
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_under_the_names_that_the_field_gives_them(file, name):
    d = from_file(file(name, LABELS[name]))
    assert (d.positive, d.negative, d.paired) == (("a",), ("b",), False)


def test_pitfall_55_other_labels_and_columns_are_asked_for(file):
    emotions = file("emotions.csv", "text,label\na,joy\nb,anger\nc,fear\n")
    with pytest.raises(
        sf.FileError, match=r"line 2 has the label joy, which does not say .*labels are joy, anger, fear"
    ):
        from_file(emotions)
    d = from_file(emotions, sides=("anger", "joy"))
    assert (d.positive, d.negative) == (("b",), ("a",))
    table = file("table.csv", "Terse,Wordy,prompt\na,b,q\n")
    with pytest.raises(sf.FileError, match="line 2 has the keys terse, wordy, prompt, which name no sides; say which"):
        from_file(table)
    assert from_file(table, sides=("Wordy", "Terse")).positive == ("q b",)
    with pytest.raises(sf.FileError, match="happy and sad are neither two of them nor the labels"):
        from_file(table, sides=("happy", "sad"))
    two = file("two.csv", "prompt,response,label\nq,a,1\nq,b,0\n")
    with pytest.raises(sf.FileError, match="name no sides"):
        from_file(two)
    assert from_file(two, text="response").positive == ("a",)
    more = file("more.json", {"train": [{"base": "b", "hate_speech": "a", "legal_opinion": "c"}]})
    with pytest.raises(sf.FileError, match=r"train\[0\] has the keys base, hate_speech, legal_opinion"):
        from_file(more)
    assert from_file(more, sides=("hate_speech", "base")).positive == ("a",)
    for wrong in ("ab", ("a",), ("a", "a"), 3):
        with pytest.raises(sf.FileError, match="sides are two different names"):
            from_file(more, sides=wrong)
    with pytest.raises(sf.FileError, match="label is the name of a column, not 3"):
        from_file(more, label=3)


def test_traits_of_persona_vectors(file):
    trait = {
        "instruction": [{"pos": "Be evil.", "neg": "Be good."}] * 2,
        "questions": ["Q?", "R?"],
        "eval_prompt": "...",
    }
    d = from_file(file("evil.json", trait))
    assert d.paired and len(d) == 4
    assert d.negative[1] == [{"role": "system", "content": "Be good."}, {"role": "user", "content": "R?"}]
    with pytest.raises(sf.FileError, match=r"instruction\[0\] is .* give it pos and neg"):
        from_file(file("evil.json", {"instruction": ["x"], "questions": ["Q?"]}))


def test_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "pairs.parquet"
    talk = [[TALK[0]], [TALK[0]]]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": talk, "chosen": ["a", "c"], "rejected": ["b", "d"]}), path)
    d = from_file(path)
    assert d.positive[1] == [TALK[0], {"role": "assistant", "content": "c"}] and d.paired
    monkeypatch.setattr(_content, "MAX_BYTES", 6000)
    pyarrow.parquet.write_table(pyarrow.table({"chosen": ["a" * 5000] * 900, "rejected": ["b"] * 900}), path)
    with pytest.raises(sf.FileError, match="its table has more than 6000 bytes in memory; divide it"):
        from_file(path)
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(sf.FileError, match="it is not a valid parquet file"):
        from_file(path)


def test_a_text_that_every_row_of_a_parquet_file_means_costs_what_the_limit_says(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    same = [pyarrow.DictionaryArray.from_arrays([0] * 256, ["a" * 2**20]) for _ in range(2)]
    parquet.write_table(
        pyarrow.table(same, ["chosen", "rejected"]), path := tmp_path / "same.parquet", compression="zstd"
    )
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(_content, "MAX_BYTES", 4 * 2**20)
    pool, former = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool()), pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        with pytest.raises(sf.FileError, match="its table has more than 4194304 bytes in memory; divide it"):
            from_file(path)
    finally:
        pyarrow.set_memory_pool(former)
    assert pool.max_memory() < 32 * 2**20
    monkeypatch.setattr(_content, "MAX_BYTES", 2**20)
    with pytest.raises(sf.FileError, match="its columns have .* bytes unpacked, more than 1048576; divide it"):
        from_file(path)


def test_parquet_without_pyarrow_names_the_fix(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(sf.FileError, match=r"This needs pyarrow, .*\.\[parquet\]\"; or save the table"):
        from_file(file("t.parquet", b"PAR1"))


def test_rows_at_hand():
    assert from_rows([("a", "b"), ["c", "d"]]) == ContrastSet("rows", ("a", "c"), ("b", "d"), True)
    d = from_rows(({"t": x, "kind": k} for x, k in (("a", "x"), ("b", "y"))), sides=("x", "y"), text="t", label="kind")
    assert (d.positive, d.negative) == (("a",), ("b",))
    for rows, message in (
        ([], "there are no rows; pass at least one."),
        ([("a", "b", "c")], "row 0 is a list of 3; a pair is"),
        (["a", "b"], "it is a list of 2 texts, which is one side"),
        ("ab", "rows must be a list of pairs or of dicts, or a table, not ab of type str"),
        ({"a": 1}, "of type dict"),
    ):
        with pytest.raises(sf.DataError) as caught:
            from_rows(rows)
        assert message in str(caught.value)


def test_rows_of_a_data_frame_and_of_a_dataset():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"chosen": ["a", "c"], "rejected": ["b", "d"]}, index=[7, 3])
    assert from_rows(frame).positive == ("a", "c")
    assert from_rows(pandas.DataFrame({"text": ["a", "b"], "label": [1, 0]})).negative == ("b",)


HEAVY = {
    "lists.json": "[" + "[]," * 30_000 + "[]]",
    "objects.json": "[" + "{}," * 30_000 + "{}]",
    "deep.json": "[" * 200_000,
    "rows.csv": "positive,negative\n" + "a,b\n" * 15_000,
    "lines.jsonl": '["a","b"]\n' * 10_000,
    "lines.txt": "a\n" * 30_000,
    "numbers.json": "[" + "1," * 30_000 + "1]",
    "wide.txt": "\N{GRINNING FACE}" * 50_000,
}


@pytest.mark.parametrize("name", HEAVY)
def test_memory_is_a_multiple_of_the_files_size(tmp_path, name):
    path = tmp_path / name
    path.write_text(HEAVY[name], encoding="utf-8")
    tracemalloc.start()
    try:
        with contextlib.suppress(sf.FileError):
            sf.datasets.from_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 128 * path.stat().st_size


def test_a_file_of_too_many_things_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(_content, "MAX_THINGS", 1000)
    for name, text in (("a.json", "[" + "[]," * 600 + "[]]"), ("a.txt", "a\n" * 1001), ("a.csv", "a,b\n" * 600)):
        (tmp_path / name).write_text(text)
        with pytest.raises(sf.FileError, match=r"lines, commas and brackets, more than 1000; divide it"):
            sf.datasets.from_file(tmp_path / name)
