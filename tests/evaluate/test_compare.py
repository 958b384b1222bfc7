"""`compare` against loops over `generate` and numpy, on a tiny model; what it shows, and that it claims no more."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from balanced_page import BalancedPage
from families import build
from options import assert_changes, optional
from steering import vector
from words import words

import steerfn as sf
from steerfn.evaluate import paired
from steerfn.output._terminal import columns

pytestmark = pytest.mark.steady

PROMPTS = ["a b c", "d e f g a", "b", "c c d", "e a b f", "g h", "i j k l", "m", "n o p", "q r"]
V = vector(sf.resid_post[1], scale=2.0)
SAMPLE = {"do_sample": True, "seeds": (0, 3)}


def late(texts):
    """How late in the alphabet the words of a text are."""
    return [float(np.mean([ord(word[0]) - 96 for word in text.split()] or [0])) for text in texts]


def same(texts, *, references):
    """Whether a text is its reference."""
    return [float(text == reference) for text, reference in zip(texts, references, strict=True)]


def compared(model=None, prompts=PROMPTS, op=V, metrics=(late,), **options):
    model = build("llama") if model is None else model
    options = {"max_new_tokens": 4, "progress": False, "chat": False, **options}
    return sf.compare(model, words(template=True), prompts, op, list(metrics), **options)


def plain(model, op, **options):
    return sf.generate(model, words(), PROMPTS, op, max_new_tokens=4, chat=False, batch_size=1, **options).texts


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_texts_are_those_of_generate_with_and_without(tiny, batch_size):
    found = compared(tiny, alpha=-2.0, scope=sf.prompt, batch_size=batch_size)
    assert found.before == plain(tiny, None)
    assert found.after == plain(tiny, sf.at(sf.prompt, sf.add(V, -2.0))) != found.before
    assert found.changed == sum(a != b for a, b in zip(found.before, found.after, strict=True)) > 0
    assert compared(tiny, op=sf.at(sf.prompt, sf.add(V, -2.0)), batch_size=batch_size).after == found.after


def test_both_texts_are_sampled_with_the_same_random_numbers(tiny):
    found = compared(tiny, alpha=2.0, **SAMPLE)
    for op, texts in ((None, found.before), (sf.add(V, 2.0), found.after)):
        expected = ()
        for seed in (0, 3):
            seeds = [seed * 1_000_003 + p for p in range(len(PROMPTS))]
            options = {"max_new_tokens": 4, "chat": False, "do_sample": True, "seed": seeds}
            expected += sf.generate(tiny, words(), PROMPTS, op, **options).texts
        assert texts == expected
    null = compared(tiny, alpha=0.0, **SAMPLE)
    assert null.before == null.after and null.changed == 0 and null.pairs[0].difference.p == 1
    assert null.summary().splitlines()[0] == "Steering changed 0 of 20 texts."
    assert "could be shown" in null.summary() and "random push" not in null.summary()


def test_numbers_are_those_of_numpy_by_prompt(tiny):
    found = compared(tiny, alpha=2.0, level=0.9, **SAMPLE)
    before, after = (np.array(late(texts)) for texts in (found.before, found.after))
    assert np.array_equal(found.values["late"][0], before) and np.array_equal(found.values["late"][1], after)
    first, second = before.reshape(2, -1).mean(0), after.reshape(2, -1).mean(0)
    expected = paired(second, first, level=0.9)
    [pair] = found.pairs
    assert pair.difference.estimate.mean == pytest.approx(expected.estimate.mean)
    assert pair.difference.estimate.low == pytest.approx(expected.estimate.low)
    assert (pair.difference.p, pair.n) == (pytest.approx(expected.p), len(PROMPTS))
    assert found.means["late"][0].mean == pytest.approx(first.mean())
    assert found.means["late"][1].mean == pytest.approx(second.mean())


def test_texts_are_compared_with_those_before_unless_references_are_given(tiny):
    found = compared(tiny, metrics=[same, late], alpha=2.0)
    before, after = found.values["same"]
    assert before is None and found.means["same"][0] is None
    assert after.tolist() == [float(a == b) for a, b in zip(found.before, found.after, strict=True)]
    assert [pair.metric for pair in found.pairs] == ["late"]
    assert "same of the steered texts against the unsteered ones: " in found.summary()

    references = list(found.after)
    given = compared(tiny, metrics=[same], alpha=2.0, references=references)
    assert given.values["same"][1].tolist() == [1.0] * len(PROMPTS)
    assert given.values["same"][0].tolist() == after.tolist()
    assert [pair.metric for pair in given.pairs] == ["same"]


def test_metrics_get_what_belongs_to_each_text(tiny):
    asked = []

    def noted(texts, *, prompts, references, ops, model, tokenizer, chat):
        asked.append((list(texts), list(prompts), list(references), list(ops), model, chat))
        return [0.0] * len(texts)

    op = sf.add(V, 2.0)
    found = compared(tiny, metrics=[noted], op=op, **SAMPLE)
    [(texts, prompts, references, ops, model, chat)] = asked
    assert texts == [*found.before, *found.after] and references == [*found.before] * 2
    assert prompts == PROMPTS * 4 and model is tiny and chat is False
    assert ops == [None] * 20 + [op] * 20


def test_a_prompt_that_comes_twice_is_one_unit(tiny):
    found = compared(tiny, prompts=[*PROMPTS, PROMPTS[0], PROMPTS[0]], alpha=2.0)
    assert found.pairs[0].n == len(PROMPTS) and len(found) == 12
    assert str(found).startswith(
        "12 prompts (10 different ones, which are what counts), with and without SteeringVector("
    )


def test_four_prompts_carry_nothing(tiny):
    def rising(texts):
        return [float(i >= 4) for i in range(len(texts))]

    found = compared(tiny, prompts=PROMPTS[:4], metrics=[rising], alpha=2.0)
    assert found.summary().splitlines()[1] == (
        "n = 4 prompts cannot carry a difference in rising between steering and the unsteered model (Holm over 1 "
        "comparison); use at least 6."
    )
    shown = compared(tiny, metrics=[lambda texts: [float(i >= 10) + i % 10 for i in range(len(texts))]], alpha=2.0)
    assert "Steering raises <lambda> by " in shown.summary()
    assert shown.summary().endswith("not known from this: sf.compare_vectors asks it.")


def test_all_metrics_are_corrected_together(tiny):
    metrics = {"one": late, "two": late, "three": late}
    found = sf.compare(tiny, words(), PROMPTS, V, metrics, alpha=2.0, max_new_tokens=4, progress=False)
    for pair in found.pairs:
        assert pair.family == 3 and pair.adjusted == pytest.approx(min(1.0, 3 * pair.difference.p))


def test_texts_without_a_number_are_left_out_and_counted(tiny):
    def partly(texts):
        return [math.nan if i == 3 else value for i, value in enumerate(late(texts))]

    def nothing(texts, *, references):
        return [math.nan] * len(texts)

    found = compared(tiny, metrics=[partly, nothing], alpha=2.0)
    assert (found.pairs[0].n, found.pairs[0].left_out) == (9, 1)
    assert found.summary().splitlines()[-1] == "nothing of the steered texts against the unsteered ones: no number."
    assert json.loads(found.to_json())["records"][3]["partly before"] is None
    assert str(found) and found.to_html() and found.to_markdown()


@pytest.mark.parametrize("width", [60, 100, 160])
def test_it_prints_within_the_terminal_and_without_colours(tiny, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    found = compared(tiny, metrics=[late, sf.metrics.Metric("x", late, unit="places in the alphabet")], alpha=2.0)
    text = str(found)
    assert "\x1b" not in text
    texts, numbers = text.split("\n\n", 1)[1].split(found.summary())[0].split("... and 2 more")
    assert max(columns(line) for line in texts.splitlines()) <= width
    assert max(columns(line) for line in numbers.splitlines()) <= max(width, 80)  # numbers are not broken
    assert ("d_z" in numbers) == (width == 160)
    assert text.endswith(found.summary())
    for i in range(8):
        assert f"\n{i + 1}. {PROMPTS[i]}\n" in text
    assert f"9. {PROMPTS[8]}" not in text
    [row] = [line for line in text.splitlines() if line.startswith("late ")]
    estimate = found.pairs[0].difference.estimate
    assert f"{estimate.mean:+.3g} ({estimate.low:+.3g} to {estimate.high:+.3g})" in row


def test_show_says_how_many_rows_how_wide_and_whether_in_colour(tiny, capsys):
    found = compared(tiny, alpha=2.0)

    def shown(*arguments, **options):
        found.show(*arguments, **options)
        return capsys.readouterr().out

    monochrome = shown(width=90)
    assert "\x1b" not in monochrome and "{+" in monochrome  # what pytest captures is no terminal
    coloured = shown(width=90, colour=True)
    assert "\x1b[1;36m" in coloured and "{+" not in coloured
    everything = shown(None, width=90)
    assert all(f"\n{i + 1}. {prompt}\n" in everything for i, prompt in enumerate(PROMPTS)) and " more" not in everything
    assert "... and 10 more" in shown(0) and "1. a b c" not in shown(0)
    assert shown(width=60) != shown(width=120)
    for wrong in (-1, True, "x"):
        with pytest.raises(sf.DataError) as caught:
            found.show(wrong)
        assert str(caught.value) == (f"`max_rows` must be a non-negative integer, got {wrong!r}; None shows all texts.")


def test_the_texts_of_one_prompt_stand_together(tiny):
    found = compared(tiny, alpha=2.0, **SAMPLE)
    text = str(found)
    places = [text.index(f"{p + 1}. {PROMPTS[p]} (seed {seed})") for p in range(4) for seed in (0, 3)]
    assert places == sorted(places) and "10 prompts x 2 seeds" in text
    records = found.records()
    assert [(row["prompt"], row["seed"]) for row in records[::10]] == [(PROMPTS[0], 0), (PROMPTS[0], 3)]


def test_as_json_with_what_is_needed_to_repeat_it(tiny, tmp_path):
    found = compared(tiny, metrics=[late, same], alpha=2.0, scope=sf.prompt, **SAMPLE)
    document = json.loads(found.to_json(tmp_path / "found.json"))
    assert json.loads((tmp_path / "found.json").read_text()) == document
    about = document["about"]
    assert about["model"] == sf.values.fingerprint(tiny) and about["prompts"] == PROMPTS and about["seeds"] == [0, 3]
    assert about["hf"] == {"do_sample": True} and about["max_new_tokens"] == 4 and about["level"] == 0.95
    assert about["steering"].endswith("alpha 2, at prompt") and len(about["operators_sha256"]) == 64
    sf.save(V, tmp_path / "v.json")
    assert [each["sha256"] for each in about["vectors"]] == [json.loads((tmp_path / "v.json").read_text())["sha256"]]
    assert document["summary"] == found.summary().splitlines()
    assert document["means"]["late"]["before"]["mean"] == found.means["late"][0].mean
    assert document["means"]["same"]["before"] is None
    assert document["effects"][0]["p_holm"] == found.pairs[0].adjusted
    for row, before, after in zip(document["records"], found.before, found.after, strict=True):
        assert (row["before"], row["after"]) == (before, after)
        assert [row["late before"], row["late after"]] == late([before, after])
        assert row["same after"] == float(before == after) and "same before" not in row
    assert json.loads(compared(tiny, alpha=1.0).to_json())["about"]["operators_sha256"] != about["operators_sha256"]
    with pytest.raises(sf.FileError, match="The comparison cannot be written to .*nowhere.*; create it first"):
        found.to_json(tmp_path / "nowhere" / "found.json")


def test_as_pandas(tiny):
    pytest.importorskip("pandas")
    found = compared(tiny, alpha=2.0)
    frame = found.to_pandas()
    assert list(frame.columns) == ["prompt", "seed", "before", "after", "late before", "late after"]
    assert frame["late after"].mean() == pytest.approx(found.means["late"][1].mean)


def hostile(found):
    """The same comparison had a model and a user written the worst they could."""
    before, after = "<b>one</b> & two | *three*\n\n`four`", "<script>alert(1)</script> & two | _three_\x1b[2J"
    return dataclasses.replace(
        found,
        prompts=("</td><script>alert(2)</script> | $x$", *found.prompts[1:]),
        before=(before, *found.before[1:]),
        after=(after, *found.after[1:]),
        means={"<i>late</i>": found.means["late"]},
        metrics={"<i>late</i>": found.metrics["late"]},
        values={"<i>late</i>": found.values["late"]},
        pairs=tuple(dataclasses.replace(pair, metric="<i>late</i>") for pair in found.pairs),
    )


def test_as_html_every_text_is_shown_as_it_is(tiny, tmp_path):
    found = hostile(compared(tiny, alpha=2.0))
    text = found.to_html(tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text() == text
    page = BalancedPage(text)
    assert not page.tags & {"script", "b", "i", "img", "link", "iframe"} and not re.search(r"https?:", text)
    start = page.cells.index("1. </td><script>alert(2)</script> | $x$")
    assert page.cells[start + 1] == found.before[0]
    assert page.cells[start + 2] == "<script>alert(1)</script> & two | _three_\\x1b[2J"
    rows = page.cells[start:]
    assert rows[4::3] == [each.strip() for each in found.before[1:]]
    assert rows[5::3] == [each.strip() for each in found.after[1:]]
    assert ("ins", "<script>alert(1)</script>") in page.marked and ("del", "<b>one</b>") in page.marked
    assert "<i>late</i>" in page.cells and text.count("<li>") == len(found.summary().splitlines())


def test_a_notebook_shows_the_first_texts_and_says_how_many_more(tiny):
    found = compared(tiny, alpha=2.0, do_sample=True, seeds=(0, 1, 2))
    text = found._repr_html_()
    assert text.startswith('<div class="steerfn">') and "... and 10 more" in text
    assert len([cell for cell in BalancedPage(text).cells if "(seed " in cell]) == 20
    assert "more</p>" not in found.to_html()


def test_as_markdown_every_text_is_on_one_line_and_escaped(tiny, tmp_path):
    found = hostile(compared(tiny, alpha=2.0))
    text = found.to_markdown(tmp_path / "x.md")
    assert (tmp_path / "x.md").read_text() == text
    rows = [line for line in text.splitlines() if line.startswith("| 1\\.") or line.startswith("| 1. ")]
    assert len(rows) == 1 and "\\|" in rows[0]
    cells = re.split(r"(?<!\\)\|", rows[0])
    assert len(cells) == 5 and "**\\<script\\>alert(1)\\</script\\>**" in cells[3] and "\x1b" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == (2 + 1) + (2 + len(PROMPTS))
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in table[3:]}) == 1


def test_it_is_the_same_every_time(tiny):
    first, again = compared(tiny, alpha=2.0, **SAMPLE), compared(tiny, alpha=2.0, **SAMPLE)
    assert first.to_json() == again.to_json() and first.to_html() == again.to_html() and str(first) == str(again)
    assert repr(first) == "Comparison(10 prompts, 20 texts each way, metrics ['late'])"


def test_one_prompt_one_token(tiny):
    found = compared(tiny, prompts="a", alpha=2.0, max_new_tokens=1)
    assert len(found) == 1 and "1 prompt, with and without" in str(found)
    assert "Nothing can be said of late between steering and the unsteered model: 1 of 1 prompt has a number" in str(
        found
    )
    assert found.to_html() and found.to_markdown() and json.loads(found.to_json())["effects"][0]["p"] is None


def test_conversations_are_prompts_too(tiny):
    talk = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]
    found = compared(tiny, prompts=[talk], alpha=2.0, chat=True)
    assert "1. user: a b / assistant: c / user: d" in str(found)
    assert json.loads(found.records()[0]["prompt"]) == talk


def test_the_metrics_of_those_who_name_none(tiny):
    found = sf.compare(tiny, words(), PROMPTS, V, max_new_tokens=4, progress=False)
    assert list(found.metrics) == ["length", "distinct_n", "repetition"]
    assert found.values["length"][1].tolist() == [len(text.split()) for text in found.after]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op": "happy"}, "steer takes a SteeringVector or an operator, not a str"),
        ({"op": sf.add(V), "alpha": 2.0}, "alpha=2.0 goes with a vector; an operator has its strength inside"),
        (
            {"alpha": torch.ones(2)},
            "alpha must be one number, not a tensor of shape [2]: all prompts are steered alike.",
        ),
        ({"alpha": "x"}, "alpha is a number"),
        ({"op": vector(sf.resid_post[9])}, "9"),
        ({"op": vector(sf.resid_post[0], width=7)}, "has width 7"),
        ({"prompts": []}, "prompts is empty; pass at least one text."),
        ({"metrics": []}, "metrics names no metric; pass at least one"),
        ({"metrics": ["lenght"]}, "There is no metric 'lenght'; did you mean 'length'?"),
        (
            {"metrics": [lambda texts: ["good"] * len(texts)]},
            "The metric '<lambda>' must return one number for each text",
        ),
        ({"references": ["x"]}, "There are 10 prompts but 1 references; pass one for each."),
        ({"seeds": (0, 1)}, "Decoding does not sample, so the texts of 2 seeds would be copies; pass do_sample=True"),
        ({"seeds": "01"}, "`seeds` must be integers, one for each text of a prompt"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2; pass several seeds instead"),
        ({"level": 95}, "`level` must be a finite number > 0 and < 1, got 95; 0.95 is usual."),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device."),
    ],
)
def test_errors_by_their_text_before_anything_is_generated(tiny, options, message):
    tiny.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(sf.SteerError) as caught:
        compared(tiny, **options)
    assert message in str(caught.value)


def test_the_model_and_torchs_random_state_stay_as_they_were(tiny):
    before, state = {k: v.clone() for k, v in tiny.state_dict().items()}, torch.random.get_rng_state()
    compared(tiny, alpha=2.0, **SAMPLE)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def texts(**options):
    found = compared(**{"alpha": 2.0, **options})
    return found.before, found.after


def numbers(**options):
    found = compared(**{"alpha": 2.0, **options})
    return found.means, found.pairs


def passes(**options):
    """How many forward passes a comparison takes."""
    model, seen = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    compared(model, **options)
    return len(seen)


CASES = {
    "metrics": (numbers, lambda: numbers(metrics=[lambda texts: [2 * x for x in late(texts)]])),
    "alpha": (texts, lambda: texts(alpha=-2.0)),
    "scope": (texts, lambda: texts(scope=sf.last_prompt_token)),
    "seeds": (lambda: texts(do_sample=True), lambda: texts(do_sample=True, seeds=(1,))),
    "references": (lambda: numbers(metrics=[same]), lambda: numbers(metrics=[same], references=["a"] * 10)),
    "max_new_tokens": (texts, lambda: texts(max_new_tokens=2)),
    "chat": (texts, lambda: texts(chat=True)),
    "batch_size": (passes, lambda: passes(batch_size=1)),
    "level": (numbers, lambda: numbers(level=0.5)),
    "groups": (numbers, lambda: numbers(groups=[i // 2 for i in range(len(PROMPTS))])),
}


@pytest.mark.parametrize("option", CASES)
def test_pitfall_26_an_option_changes_the_result(option):
    assert_changes(*CASES[option])


def test_pitfall_26_no_option_is_left_out(capsys):
    assert optional(sf.compare) == {*CASES, "progress"}
    compared(progress=True)
    assert "Generating" in capsys.readouterr().err
