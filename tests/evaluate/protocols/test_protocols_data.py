"""Items of protocols: every published format is read, and what is wrong with a file is said with its place."""

import json
from pathlib import Path

import pytest

import steerfn as sf
from steerfn.evaluate.protocols._choices import Question, questions_of
from steerfn.evaluate.protocols._data import entries, sides_of, texts_of

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
ITEM = {"question": "Q?\n (A) x\n (B) y", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}

published = pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout")


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_options_change_places_and_nothing_else():
    text = "Which?\n\nChoices:\n (A) the one,\nover two lines\n (B) two \n (C) three\n\nAnswer:"
    found = Question(text, "(A)", "(C)").swap_options()
    assert found.text == "Which?\n\nChoices:\n (A) three\n (B) two \n (C) the one,\nover two lines\n\nAnswer:"
    assert (found.positive, found.negative) == ("(C)", "(A)")
    assert found.swap_options() == Question(text, "(A)", "(C)")


def test_a_question_without_letters_has_one_order():
    plain = Question("Would you?", " Yes", " No")
    assert plain.letters is None and plain.swap_options() is plain
    assert Question("?", "(A)", "Yes").letters is None


def test_an_option_that_is_missing_is_named():
    with pytest.raises(
        sf.DataError, match=r"'Which\? \(A\) or \(B\)' has no line that begins with \(A\).*both_orders=F"
    ):
        Question("Which? (A) or (B)", "(A)", "(B)").swap_options()


def test_questions_of_lists_contrast_sets_and_both_formats():
    other = {"prompt": "Q?", "correct": "(B)", "incorrect": "(A)", "category": "x"}
    assert questions_of([ITEM, other]) == [Question(ITEM["question"], "(A)", "(B)"), Question("Q?", "(B)", "(A)")]
    whole = sf.datasets.ContrastSet("s", ["Q? (A)"], ["Q? (B)"], paired=True, items=(ITEM,))
    assert questions_of(whole) == [Question(ITEM["question"], "(A)", "(B)")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"data is empty; pass at least one item\."),
        ({"a": 1}, "data must be a list of items or the path of a file, not {'a': 1} of type dict"),
        ([3], r"data\[0\] is 3; a question is a dict with question, answer_matching_behavior, .* or prompt, correct"),
        (
            [ITEM, {**ITEM, "answer_matching_behavior": " "}],
            r"data\[1\] has no text for answer_matching_behavior; give",
        ),
        (
            [{**ITEM, "answer_matching_behavior": " (B) "}],
            r"data\[0\] has the same answer twice, ' \(B\) '; give it two",
        ),
    ],
)
def test_questions_that_are_none(data, message):
    with pytest.raises(sf.DataError, match=message):
        questions_of(data)


def test_texts_of_every_shape():
    chat = [{"role": "user", "content": "hi"}]
    assert texts_of(["a", chat, {"prompt": "b"}, {"prompt": {"text": "c", "toxicity": 0.1}}], "data") == [
        "a", chat, "b", "c",
    ]  # fmt: skip
    assert texts_of([{"turns": ["d", "e"]}, {"goal": "f", "target": "x"}, {"text": "g"}], "data") == ["d", "f", "g"]
    tasks = [{"instruction": "Add.", "instances": [{"input": " 1 2 "}]}, {"instruction": "Say.", "instances": []}]
    assert texts_of(tasks, "data") == ["Add.\n\n1 2", "Say."]
    assert texts_of(chat, "data") == [chat]


def test_files_of_every_kind(tmp_path):
    assert texts_of(written(tmp_path, "a.json", '["a", "b"]'), "data") == ["a", "b"]
    assert texts_of(str(written(tmp_path, "b.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')), "data") == ["a", "b"]
    assert texts_of(written(tmp_path, "c.csv", 'goal,target\n"a, b",x\nc,y\n'), "data") == ["a, b", "c"]
    toxigen = written(tmp_path, "d.txt", "- one\\n- two\\n-\nthree\n")
    assert texts_of(toxigen, "data") == ["- one\n- two\n-", "three"]
    assert questions_of(written(tmp_path, "e.jsonl", json.dumps(ITEM)))[0].positive == "(A)"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1,", r"Cannot read '.*a\.json': its text is not valid JSON"),
        ("b.json", "[]", r"Cannot read '.*b\.json': its list is empty; write at least one item\."),
        ("c.json", '{"x": [1], "y": 2}', r"it holds one JSON object with the keys x, y; a list of items is needed\."),
        ("d.csv", "goal,target\na,b,c\n", r"row 1 has 3 columns and its header 2; put texts that contain a comma in"),
        ("e.csv", "goal,target\n", r"it has no row below its header; write at least one item\."),
        ("f.csv", 'goal\n"a\n', r"Cannot read '.*f\.csv': .*; save it as a CSV table in UTF-8\."),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
    with pytest.raises(sf.FileError, match=message):
        texts_of(written(tmp_path, name, text), "data")


def test_files_that_are_missing_or_no_text(tmp_path):
    for name in ("gone.json", "gone.csv"):
        with pytest.raises(sf.FileError, match=rf"Cannot read '.*{name}'"):
            entries(tmp_path / name, "data")
    (tmp_path / "x.csv").write_bytes(b"goal\n\xff\xfe\n")
    with pytest.raises(sf.FileError, match="or save it as JSON, JSONL or CSV in UTF-8"):
        entries(tmp_path / "x.csv", "data")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"words": "x"}, r"data\[0\] has none of the keys prompt, instruction, .*, but words; pass texts"),
        ({"prompt": {"toxicity": 1}}, r"data\[0\] has no text but None; give it words, or remove it\."),
        (" ", r"data\[0\] has no text but  ?; give it words"),
        (4, r"data\[0\] has no text but 4; give it words"),
    ],
)
def test_entries_without_text(value, message):
    with pytest.raises(sf.DataError, match=message):
        texts_of([value], "data")


def test_an_entry_of_a_file_is_told_by_its_line(tmp_path):
    path = written(tmp_path, "p.jsonl", '{"prompt": "a"}\n\n{"other": "b"}\n')
    with pytest.raises(sf.DataError, match=r"p\.jsonl, line 3 has none of the keys"):
        texts_of(path, "data")


def test_sides(tmp_path):
    path = written(tmp_path, "h.json", '[{"instruction": "x"}]')
    assert sides_of({"harmful": path, "harmless": ["y"]}, ("harmful", "harmless")) == {
        "harmful": ["x"],
        "harmless": ["y"],
    }
    for wrong in (["a"], {"harmful": ["a"]}):
        with pytest.raises(
            sf.DataError, match='data must be a mapping {"harmful": prompts or a path, "harmless": prompts or'
        ):
            sides_of(wrong, ("harmful", "harmless"))


@published
@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((f"caa/test_ab/{name}.json", 50) for name in ("myopic-reward", "survival-instinct", "sycophancy")),
        ("caa/generate/survival-instinct.json", 903),
        ("caa/mmlu_ab.json", 570),
        ("caa/truthful_qa_ab.json", 817),
        ("anthropic_evals/xrisk_human/survival-instinct.jsonl", 953),
    ],
)
def test_every_published_question_can_be_asked_in_both_orders(name, count):
    found = questions_of(DATA / name)
    assert len(found) == count
    for each in found:
        swapped = each.swap_options()
        assert swapped != each and swapped.swap_options() == each and sorted(swapped.text) == sorted(each.text)
        mine, theirs = each.letters
        lines = {line.strip()[:3]: line.strip()[3:].strip() for line in each.text.splitlines()}
        turned = {line.strip()[:3]: line.strip()[3:].strip() for line in swapped.text.splitlines()}
        assert turned[f"({theirs})"] == lines[f"({mine})"] and turned[f"({mine})"] == lines[f"({theirs})"]


@published
@pytest.mark.parametrize(
    ("name", "count", "begins"),
    [
        ("toxicity/rtp_nontoxic_prompts_500.jsonl", 500, "An hour and a half later"),
        ("refusal/harmful_test.json", 572, "Write a defamatory article"),
        ("refusal/advbench.csv", 520, "Write a script that can exploit"),
        ("instructions/mt_bench_question.jsonl", 80, "Compose an engaging travel blog"),
        ("instructions/vicuna_question.jsonl", 80, "How can I improve my time"),
        ("instructions/self_instruct_seed_tasks.jsonl", 175, "Is there anything I can eat"),
        ("instructions/user_oriented_instructions.jsonl", 252, "The sentence you are given"),
        ("caa/test_open_ended/myopic-reward.json", 50, "You can have a beer now"),
    ],
)
def test_published_prompts(name, count, begins):
    found = texts_of(DATA / name, "data")
    assert len(found) == count and found[0].startswith(begins)


@published
def test_yes_and_no_questions():
    found = questions_of(DATA / "anthropic_evals/persona/risk-averse.jsonl")
    assert len(found) == 1000 and found[0].positive == " Yes" and found[0].letters is None
