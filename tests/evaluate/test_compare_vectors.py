"""`compare_vectors` against loops over `generate` and numpy, on a tiny model."""

import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from families import shared
from options import assert_changes, count_passes, files_left, optional
from steering import vector
from words import words

import steerfn as sf
from steerfn.evaluate import by_prompt, estimate, paired
from steerfn.evaluate._against_random import PromptBlock, against_random
from steerfn.evaluate._conditions import random_slots

pytestmark = pytest.mark.steady

PROMPTS = ["a b c", "d e f g a", "b", "c c d", "e a b f", "g h", "i j k l", "m", "n o p", "q r"]
V1, V2 = vector(sf.resid_post[0], scale=2.0), vector(sf.resid_post[1], seed=1, scale=2.0)
VECTORS = {"v1": V1, "v2": V2}
FAST = {"max_new_tokens": 4, "resamples": 199, "progress": False, "chat": False}
SAMPLE = {"do_sample": True, "seeds": (0, 3)}
FEW = {"alpha": 2.0, "controls": 1}


def late(texts):
    """How late in the alphabet the words of a text are."""
    return [float(np.mean([ord(word[0]) - 96 for word in text.split()] or [0])) for text in texts]


def compared(model=None, vectors=VECTORS, prompts=PROMPTS, metrics=(late,), **options):
    model = shared("llama") if model is None else model
    return sf.compare_vectors(model, words(template=True), vectors, prompts, list(metrics), **FAST | options)


def test_texts_are_those_of_a_loop_under_every_condition(tiny):
    found = compared(tiny, alpha={"v1": 2.0, "v2": -3.0}, scope=sf.prompt, controls=2, seed=7)
    assert found.conditions == ("unsteered", "v1", "v2", "random like v1", "random like v2")

    def random(v, seed, alpha):
        return sf.add(sf.random_vector(like=v, seed=seed), alpha)

    ops = {
        "unsteered": [None],
        "v1": [sf.add(V1, 2.0)],
        "v2": [sf.add(V2, -3.0)],
        "random like v1": [random(V1, 7, 2.0), random(V1, 8, 2.0)],
        "random like v2": [random(V2, 9, -3.0), random(V2, 10, -3.0)],
    }
    for condition, texts in found.texts.items():
        expected = []
        for op in ops[condition]:
            op = op and sf.at(sf.prompt, op)
            expected += sf.generate(tiny, words(), PROMPTS, op, max_new_tokens=4, chat=False, batch_size=1).texts
        assert list(texts) == expected, condition
    assert len(set(found.texts.values())) > 3


def test_many_random_vectors_are_divided_over_the_prompts(tiny):
    """Each prompt is continued under ten of forty, all prompts of a block under the same ten."""
    found = compared(tiny, {"v1": V1}, alpha=2.0, seed=3)
    slots, block = random_slots(40, range(len(PROMPTS)), 3)
    assert np.array_equal(found.slots, slots) and np.array_equal(found.blocks // 10, block)
    assert slots.shape == (10, 10) and sorted(np.bincount(block)) == [2, 2, 3, 3]
    texts = found.texts["random like v1"]
    assert len(texts) == 100 and found.about["controls"] == 40
    for slot, p in ((0, 0), (4, 7), (9, 9)):
        op = sf.add(sf.random_vector(like=V1, seed=3 + int(slots[slot, p])), 2.0)
        [expected] = sf.generate(tiny, words(), [PROMPTS[p]], op, max_new_tokens=4, chat=False).texts
        assert texts[slot * len(PROMPTS) + p] == expected
    [pair] = [pair for pair in found.pairs if pair.against == "random"]
    assert pair.draws == 40 and {row["draw"] for row in found.records()} == set(range(40))


def test_few_prompts_have_fewer_random_vectors():
    assert random_slots(40, [0, 1, 2], 0)[0].shape == (10, 3) and random_slots(40, [0, 1, 2], 0)[0].max() == 9
    assert random_slots(7, range(30), 0)[0].tolist() == [[j] * 30 for j in range(7)]
    assert random_slots(25, range(30), 0)[0].max() == 26  # rounded up, so that every prompt has as many
    assert (
        random_slots(20, [0, 0, 1, 2, 3], 1)[0][:, 0].tolist() == random_slots(20, [0, 0, 1, 2, 3], 1)[0][:, 1].tolist()
    )


def test_groups_are_the_units(tiny):
    groups = ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e"]
    found = compared(tiny, {"v1": V1}, alpha=2.0, groups=groups)
    plain = found.pair("late", "v1")
    values = {c: by_prompt(found.values["late"][c], groups) for c in ("v1", "unsteered")}
    assert plain.n == 5 and plain.difference == paired(values["v1"], values["unsteered"], resamples=199)
    assert (found.slots[:, ::2] == found.slots[:, 1::2]).all()  # a group is in one block
    assert "10 prompts (5 groups, which are what counts)" in str(found)


def test_every_condition_samples_with_the_same_random_numbers(tiny):
    found = compared(tiny, alpha=2.0, **SAMPLE)
    for condition, op in (("unsteered", None), ("v2", sf.add(V2, 2.0))):
        expected = []
        for seed in (0, 3):
            seeds = [seed * 1_000_003 + p for p in range(len(PROMPTS))]
            expected += sf.generate(
                tiny, words(), PROMPTS, op, max_new_tokens=4, chat=False, do_sample=True, seed=seeds
            ).texts
        assert list(found.texts[condition]) == expected
    null = compared(tiny, alpha=0.0, controls=3, **SAMPLE)
    once = null.texts["unsteered"]
    assert all(texts == once * (3 if "random" in name else 1) for name, texts in null.texts.items())
    assert {pair.p for pair in null.pairs} == {1.0}


def test_numbers_means_and_pairs_are_those_of_numpy(tiny):
    found = compared(tiny, controls=3, alpha=2.0, level=0.9, seed=4, **SAMPLE)
    by_hand, by_draw = {}, {}
    for condition, texts in found.texts.items():
        values = np.array(late(texts))
        assert np.array_equal(found.values["late"][condition], values)
        draws = 3 if condition.startswith("random") else 1
        by_hand[condition] = values.reshape(draws, 2, len(PROMPTS)).mean((0, 1))
        by_draw[condition] = values.reshape(draws, 2, len(PROMPTS)).mean(1)
        same = estimate(by_hand[condition], level=0.9, seed=4, resamples=199)
        assert found.means["late"][condition].mean == pytest.approx(same.mean)
        assert found.means["late"][condition].low == pytest.approx(same.low)
    assert [(pair.treatment, pair.control) for pair in found.pairs] == [
        ("v1", "unsteered"),
        ("v1", "random like v1"),
        ("v2", "unsteered"),
        ("v2", "random like v2"),
        ("v2", "v1"),
    ]
    for pair in found.pairs:
        same = paired(by_hand[pair.treatment], by_hand[pair.control], level=0.9, seed=4, resamples=199)
        assert pair.difference.estimate.mean == pytest.approx(same.estimate.mean)
        families = {"unsteered": 2, "random": 2, "vector": 1}
        assert (pair.difference.p, pair.n) == (pytest.approx(same.p), len(PROMPTS))
        assert pair.family == families[pair.against]
        if pair.against == "random":
            test = against_random([PromptBlock.of(by_hand[pair.treatment], by_draw[pair.control])], 0.9)
            assert (pair.draws, pair.among) == (3, pytest.approx(test.p))
            assert pair.difference.estimate.high - pair.difference.estimate.mean == pytest.approx(test.margin)
    assert found.pair("late", "v2", "v1") is found.pairs[-1]


def test_a_prompt_that_comes_twice_is_one_unit(tiny):
    prompts = [*PROMPTS, PROMPTS[0], PROMPTS[0]]
    found = compared(tiny, prompts=prompts, alpha=2.0, controls=2, **SAMPLE)
    assert {pair.n for pair in found.pairs} == {len(PROMPTS)}
    expected = by_prompt(found.values["late"]["v1"], prompts * 2)
    assert found.means["late"]["v1"].mean == pytest.approx(expected.mean())
    assert "12 prompts (10 different ones, which are what counts) x 2 seeds" in str(found)


def test_metrics_get_what_belongs_to_each_text(tiny):
    asked = []

    def noted(texts, *, prompts, references, ops, model, tokenizer, chat):
        asked.append((list(texts), list(prompts), list(references), list(ops), model, chat))
        return [float(text != reference) for text, reference in zip(texts, references, strict=True)]

    found = compared(tiny, metrics=[noted, late], alpha=2.0, controls=2, **SAMPLE)
    [(texts, prompts, references, ops, model, chat)] = asked
    assert texts == [text for each in found.texts.values() for text in each]
    assert prompts == PROMPTS * (len(texts) // len(PROMPTS)) and model is tiny and chat is False
    once = 2 * len(PROMPTS)
    assert references == list(found.texts["unsteered"]) * (len(texts) // once)
    assert len(ops) == len(texts) and ops[:once] == [None] * once
    assert len({id(op) for op in ops}) == 7 and all(
        len(set(map(id, ops[i : i + once]))) == 1 for i in range(0, 140, 20)
    )
    # The unsteered texts would be compared with themselves.
    assert "unsteered" not in found.values["noted"] and "unsteered" in found.values["late"]
    assert not [pair for pair in found.pairs if pair.metric == "noted" and pair.control == "unsteered"]
    assert str(found).splitlines()[3].split()[:2] == ["unsteered", "-"]

    asked.clear()
    given = compared(tiny, metrics=[noted], references=["x"] * len(PROMPTS))
    assert set(asked[0][2]) == {"x"} and given.means["noted"]["unsteered"].mean == 1


def test_texts_without_a_number_are_left_out_and_counted(tiny):
    def partly(texts):
        return [math.nan if i % 10 == 3 else value for i, value in enumerate(late(texts))]

    found = compared(tiny, metrics=[partly, late], alpha=2.0)
    for pair in found.pairs:
        assert (pair.n, pair.left_out) == ((9, 1) if pair.metric == "partly" else (10, 0))
    nothing = compared(tiny, metrics={"none": lambda texts: [math.nan] * len(texts)}.values(), alpha=2.0)
    assert "Nothing can be said of <lambda> between v1 and the unsteered model: 0 of 10" in nothing.summary()
    assert json.loads(nothing.to_json())["pairs"][0]["p"] is None


def test_the_same_call_finds_the_same(tiny):
    options = {"alpha": 2.0, "controls": 2, **SAMPLE}
    first, again = compared(tiny, **options), compared(tiny, **options)
    assert first.to_json() == again.to_json() and first.to_html() == again.to_html()
    apart = compared(tiny, batch_size=3, **options)
    assert apart.texts == first.texts and apart.pairs == first.pairs


def test_it_reads_well(tiny):
    found = compared(
        tiny, alpha=4.0, metrics=[late, sf.metrics.Metric("words", lambda t: [4.0] * len(t), unit="words")]
    )
    lines = str(found).splitlines()
    assert lines[0] == "5 conditions x 10 prompts: means with intervals"
    assert lines[2].split() == ["condition", "late", "words", "[words]"]
    assert lines[3].startswith("unsteered ") and lines[3].endswith("4 (2.89 to 5.11)")
    assert [line.split("  ")[0] for line in lines[3:8]] == list(found.conditions)
    assert lines[9:] == found.summary().splitlines()
    assert (
        "No difference in words between v1 and v2 could be shown (v2 against v1: 0 %, 95 % CI -27.8 to 27.8 %, p = 1, "
        "n = 10, Holm)." in lines
    )
    assert repr(found) == "VectorComparison(2 vectors, 10 prompts, metrics ['late', 'words'])"


def test_four_prompts_carry_nothing(tiny):
    found = compared(tiny, prompts=PROMPTS[:4], alpha=4.0, metrics={"up": rising}.values())
    assert found.summary().splitlines()[0] == (
        "n = 4 prompts cannot carry a difference in rising between v1 and the unsteered model (Holm over 2 "
        "comparisons); use at least 7."
    )
    assert not any(pair.significant for pair in found.pairs)


def rising(texts):
    """Every later condition is higher, by the same on every prompt."""
    return [float(i // 4) for i in range(len(texts))]


def test_as_json_with_what_is_needed_to_repeat_it(tiny, tmp_path):
    found = compared(tiny, alpha=2.0, controls=2, **SAMPLE)
    document = json.loads(found.to_json(tmp_path / "found.json"))
    assert json.loads((tmp_path / "found.json").read_text()) == document
    about = document["about"]
    assert about["model"] == sf.values.fingerprint(tiny) and about["prompts"] == PROMPTS and about["seeds"] == [0, 3]
    assert about["alpha"] == {"v1": 2.0, "v2": 2.0} and about["operator"].endswith("add") and about["level"] == 0.95
    assert set(about["versions"]) == {"steerfn", "torch", "transformers"} and about["hf"] == {"do_sample": True}
    sf.save(V1, tmp_path / "v1.json")
    assert json.loads((tmp_path / "v1.json").read_text())["sha256"] == about["vectors"]["v1"]["sha256"]
    assert document["summary"] == found.summary().splitlines()
    assert document["means"]["late"]["v1"]["mean"] == found.means["late"]["v1"].mean
    assert document["pairs"][4]["p_holm"] == found.pairs[4].adjusted
    records = document["records"]
    assert len(records) == (3 + 2 * 2) * 2 * len(PROMPTS)
    last = records[-1]
    assert (last["condition"], last["draw"], last["seed"], last["prompt"]) == ("random like v2", 1, 3, PROMPTS[-1])
    for row in records:
        assert row["late"] == late([row["text"]])[0]
    with pytest.raises(sf.FileError, match="The comparison cannot be written to .*nowhere.*; create it first"):
        found.to_json(tmp_path / "nowhere" / "found.json")


def test_as_pandas(tiny):
    pytest.importorskip("pandas")
    found = compared(tiny, **FEW)
    means = found.to_pandas().groupby("condition").late.mean().to_dict()
    assert means == pytest.approx({name: each.mean for name, each in found.means["late"].items()})


def test_as_markdown_and_html_names_are_shown_as_they_are(tiny, tmp_path):
    found = compared(tiny, {"a|b": V1, "<script>x</script>": V2}, **FEW)
    text, page = found.to_markdown(tmp_path / "x.md"), found.to_html(tmp_path / "x.html")
    assert (tmp_path / "x.md").read_text() == text and (tmp_path / "x.html").read_text() == page
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == (2 + 5) + (2 + 5) and "a\\|b" in text and "<script>" not in text.replace("\\<script\\>", "")
    assert "<script" not in page and "&lt;script&gt;x&lt;/script&gt;" in page
    assert page.count("<tr>") == (1 + 5) + (1 + 5) and page.count("<li>") == len(found.summary().splitlines())
    assert "<script" not in found._repr_html_() and found._repr_html_().startswith('<div class="steerfn">')


def test_an_interrupted_comparison_goes_on(tiny, tmp_path, monkeypatch):
    path, options = tmp_path / "run.json", {"alpha": 2.0, "batch_size": 5, "controls": 2, "max_new_tokens": 2, **SAMPLE}
    whole = compared(tiny, **options)
    passes, original = [], type(tiny).forward

    def counting(self, *args, **kwargs):
        passes.append(1)
        if len(passes) == stop:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny), "forward", counting)
    stop = 0
    compared(tiny, **options)  # another forward: what the model can do is asked anew, once
    passes.clear()
    compared(tiny, **options)
    total, passes[:] = len(passes), []
    stop = total - 1
    with pytest.raises(KeyboardInterrupt):
        compared(tiny, checkpoint=path, **options)
    with pytest.raises(sf.FileError, match="other model, prompts, vectors or options"):
        compared(tiny, checkpoint=path, **options | {"alpha": 1.0})
    passes[:], stop = [], 0
    again = compared(tiny, checkpoint=path, **options)
    assert 0 < len(passes) < total / 4 and not path.exists()
    assert again.to_json() == whole.to_json()


def test_a_metric_that_fails_does_so_before_anything_is_generated(tiny):
    tiny.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(sf.DataError, match="The metric 'bad' must return one number for each text"):
        compared(tiny, metrics=[sf.metrics.Metric("bad", lambda texts: ["good"] * len(texts))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": {}}, "vectors must be a SteeringVector, or a mapping of names to at least one, such as {'v1': v1"),
        ({"vectors": {"x": 3}}, "such as {'v1': v1, 'v2': v2}, not 3."),
        ({"vectors": [V1]}, "such as {'v1': v1, 'v2': v2}, not [SteeringVector("),
        ({"vectors": {"unsteered": V1}}, "A vector cannot be named 'unsteered', which is the name of a control"),
        ({"vectors": {"x": V1, "random like x": V2}}, "A vector cannot be named 'random like x'"),
        ({"vectors": {"x": vector(sf.resid_post[9])}}, "9"),
        ({"vectors": {"x": vector(sf.resid_post[0], width=7)}}, "has width 7"),
        ({"prompts": []}, "prompts is empty; pass at least one text."),
        ({"metrics": []}, "metrics names no metric; pass at least one, such as metrics=['toxicity']."),
        ({"metrics": ["toxicty"]}, "There is no metric 'toxicty'; did you mean 'toxicity'?"),
        (
            {"alpha": "x"},
            "`alpha` must be a finite number, got 'x'; a mapping of the vectors' names to numbers is taken too.",
        ),
        (
            {"alpha": float("inf")},
            "`alpha` must be a finite number, got inf; a mapping of the vectors' names to numbers is taken too.",
        ),
        (
            {"alpha": {"v1": 1.0}},
            "alpha has strengths for ['v1'], but the vectors are ['v1', 'v2']; give one for each.",
        ),
        ({"controls": 0}, "`controls` must be a positive integer, got 0."),
        ({"make": lambda v: v}, "make must be a function of a vector and a strength"),
        ({"references": ["x"]}, "There are 10 prompts but 1 references; pass one for each."),
        ({"references": [3] * 10}, "references must be texts, one for each prompt, not 3."),
        (
            {"seeds": ()},
            "`seeds` must be integers, one for each text of a prompt and at least one, such as (0, 1, 2), got ().",
        ),
        (
            {"seeds": "01"},
            "`seeds` must be integers, one for each text of a prompt and at least one, such as (0, 1, 2), got '01'.",
        ),
        ({"seeds": (-1,)}, "`seeds[0]` must be an integer from 0 to 2147483647, got -1."),
        ({"seeds": (1, 1)}, "seeds names a seed twice: [1, 1]; the same seed gives the same texts."),
        ({"seeds": (0, 1)}, "Decoding does not sample, so the texts of 2 seeds would be copies; pass do_sample=True"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2; pass several seeds instead"),
        ({"level": 95}, "`level` must be a finite number > 0 and < 1, got 95; 0.95 is usual."),
        ({"resamples": 10}, "`resamples` must be an integer >= 99, got 10."),
        ({"seed": "x"}, "`seed` must be a non-negative integer, got 'x'."),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device."),
        ({"checkpoint": "/nowhere/run.json"}, "there is no folder '/nowhere'; create it first."),
    ],
)
def test_errors_by_their_text_before_anything_is_generated(tiny, options, message):
    tiny.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(sf.SteerError) as caught:
        compared(tiny, **options)
    assert message in str(caught.value)


def test_a_comparison_that_was_not_made_is_told_with_those_that_were(tiny):
    with pytest.raises(sf.DataError) as caught:
        compared(tiny, V1).pair("late", "v", "w")
    assert str(caught.value) == (
        "'v' was not compared with 'w' in 'late'; the metrics are late, the comparisons v against unsteered, v against "
        "random like v."
    )


def test_pitfall_49_the_models_own_generation_config_does_not_decide_whether_decoding_samples(tiny):
    plain = compared(tiny, **FEW).texts
    tiny.generation_config.do_sample = True
    assert compared(tiny, **FEW).texts == plain != compared(tiny, do_sample=True, **FEW).texts
    with pytest.raises(sf.DataError, match="Decoding does not sample"):
        compared(tiny, seeds=(0, 1))


@functools.cache
def usual():
    """A comparison without options."""
    return compared(**FEW)


def texts(**options):
    return (compared(**FEW | options) if options else usual()).texts


def pairs(**options):
    return (compared(**FEW | options) if options else usual()).pairs


def passes(**options):
    return count_passes(lambda model: compared(model, controls=1, **options))


def left(checkpoint):
    return files_left(functools.partial(compared, controls=1, max_new_tokens=1, batch_size=1), checkpoint)


def same(found, *, references):
    """A metric that compares."""
    return [float(text == reference) for text, reference in zip(found, references, strict=True)]


CASES = {
    "alpha": (texts, lambda: texts(alpha=-2.0)),
    "scope": (texts, lambda: texts(scope=sf.last_prompt_token)),
    "make": (texts, lambda: texts(make=lambda v, a: sf.add(v, 2 * a))),
    "controls": (texts, lambda: texts(controls=2)),
    "references": (lambda: pairs(metrics=[same]), lambda: pairs(metrics=[same], references=["a"] * 10)),
    "groups": (pairs, lambda: pairs(groups=[*"aabbccddee"])),
    "seeds": (lambda: texts(do_sample=True), lambda: texts(do_sample=True, seeds=(1,))),
    "max_new_tokens": (texts, lambda: texts(max_new_tokens=2)),
    "chat": (texts, lambda: texts(chat=True)),
    "batch_size": (passes, lambda: passes(batch_size=1)),
    "level": (pairs, lambda: pairs(level=0.5)),
    "resamples": (pairs, lambda: pairs(resamples=299)),
    "seed": (texts, lambda: texts(seed=1)),
    "checkpoint": (lambda: left(False), lambda: left(True)),
}


@pytest.mark.parametrize("option", CASES)
def test_pitfall_26_an_option_changes_the_result(option):
    assert_changes(*CASES[option])


def test_pitfall_26_no_option_is_left_out(capsys):
    assert optional(sf.compare_vectors) == {*CASES, "progress"}
    compared(progress=True, controls=1)
    assert "Generating" in capsys.readouterr().err


def test_the_model_and_torchs_random_state_stay_as_they_were(tiny):
    before, state = {k: v.clone() for k, v in tiny.state_dict().items()}, torch.random.get_rng_state()
    compared(tiny, alpha=2.0, controls=2, **SAMPLE)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.docs
def test_the_code_of_the_guide_runs(demo, monkeypatch, capsys):
    monkeypatch.setattr("steerfn.demo_model", lambda: demo)
    docs = Path(__file__).parents[2] / "docs"
    pages = [docs / "guides" / "evidence.md", docs / "background" / "statistics.md"]
    blocks = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    exec(compile("\n".join(blocks), "evidence.md", "exec"), {"__name__": "guide"})
    out = capsys.readouterr().out
    assert "5 conditions x 10 prompts" in out and "random like probe" in out and "n = 10" in out
    assert "0.9 (95 % CI 0.699 to 0.972, n = 20)" in out
