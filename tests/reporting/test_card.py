"""Cards: a report as a model card that the hub reads, with the report's numbers and nobody's markup."""

import dataclasses
import functools
import json
import re

import pytest
import torch
import yaml
from families import shared
from test_report import DATA, HOSTILE, PROMPTS, reported
from words import words

import steerfn as sf
from steerfn.discover import Calibration
from steerfn.output import format_number
from steerfn.reporting import Report

CURVE = ((0.5, 1.01), (1.5, 1.0625), (3.25, 1.6))
CALIBRATION = Calibration(1.5, 1.0625, CURVE, perplexity=21.0, max_ratio=1.25)


@functools.cache
def made():
    model, tokenizer = shared("llama"), words(template=True)
    quiet = {"progress": False, "chat": False}
    vector = sf.mean_difference(model, tokenizer, DATA["positive"], DATA["negative"], 1, **quiet)
    sweep = sf.sweep(model, tokenizer, PROMPTS[:3], vector, [-1.5, 0, 1.5], max_new_tokens=3, **quiet)
    return reported(vector=vector, controls=5, alpha=1.5), sweep


def changed(report, **parts):
    """The report with other findings, as a file or a model might have put them there."""
    findings = json.loads(json.dumps(report.findings))
    for path, value in parts.items():
        *keys, last = path.split("__")
        functools.reduce(lambda at, key: at[key], keys, findings)[last] = value
    return Report(report.html, findings)


def head_of(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_is_what_the_hub_reads():
    from huggingface_hub import ModelCard

    report, _ = made()
    report = changed(report, model__name="org/base-1.5")
    text = sf.card(report, licence="apache-2.0", datasets="user/pairs")
    head, _ = head_of(text)
    assert head == {
        "base_model": "org/base-1.5",
        "datasets": ["user/pairs"],
        "library_name": "steerfn",
        "license": "apache-2.0",
        "tags": ["steerfn", "steering-vector"],
    }
    assert ModelCard(text).data.to_dict() == head
    assert "base_model" not in head_of(sf.card(made()[0]))[0]  # a model that is not on the hub


def test_every_number_of_the_effect_and_its_cost_is_the_reports():
    report, sweep = made()
    text = sf.card(report, name="late", calibration=CALIBRATION, sweep=sweep)
    found = report.findings
    assert found["verdict"]["headline"] in text and "# late: a steering vector for LlamaForCausalLM" in text
    for pair in found["effect"]["pairs"]:
        other = "random vectors" if pair["against"] == "random" else "unsteered"
        ends = f"({format_number(pair['low'])} to {format_number(pair['high'])})"
        assert f"| late | {other} | {format_number(pair['difference'])} | {ends} |" in text
    for name, figure in found["side_effects"]["figures"].items():
        assert f"| {name.replace('_', chr(92) + '_')} | {format_number(figure['mean'])} (" in text
    for hash_ in (found["vector"]["sha256"], found["data"]["sha256"], found["about"]["prompts_sha256"]):
        assert hash_ in text
    assert "10 prompts (given for this report)" in text and '"a b c d"' in text
    for limit in found["limits"]:
        assert limit.split(".")[0].replace("_", "\\_") in text
    assert "From alpha 0.5 to 3.25 were tried" in text and "up to 1.5 its perplexity stays within 1.25" in text
    assert "(1.06 times there)" in text
    for config, mean in sweep.mean().items():
        assert f"| {config.alpha:g} | {format_number(mean)} |" in text
    numbers = set(re.findall(r"\d+\.\d+", sf.card(report, name="late")))
    known = json.dumps(found) + " ".join(map(format_number, _floats(found)))
    assert numbers <= set(re.findall(r"\d+\.\d+", known)) | {f"{100 * x:.3g}" for x in _floats(found)}


def _floats(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [each for part in value for each in _floats(part)]
    return [value] if isinstance(value, float) else []


def test_what_could_not_be_shown_is_said():
    report, _ = made()
    assert {pair["verdict"] for pair in report.findings["effect"]["pairs"]} == {"not shown"}
    section = sf.card(report).split("## What could not be shown")[1]
    assert "A difference from the unsteered model in late: not shown." in section
    assert "A difference from random vectors in late: not shown." in section
    assert "In the data: 7 positive and 7 negative texts are few" in section


def test_the_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    report, _ = made()
    monkeypatch.chdir(tmp_path)
    model, tokenizer = shared("llama"), words(template=True)
    sf.save(sf.SteeringVector({1: torch.ones(model.config.hidden_size)}), "late.safetensors")
    monkeypatch.setattr(sf, "from_pretrained", lambda name: (model, tokenizer))
    [code] = re.findall(r"```python\n(.*?)\n```", sf.card(report, name="late"), re.S)
    monkeypatch.setattr(
        sf, "generate", lambda *given: seen.append(given) or dataclasses.make_dataclass("G", ["texts"])([""])
    )
    seen = []
    exec(code, {})
    assert len([line for line in code.splitlines() if line]) <= 5
    assert seen[0][:2] == (model, tokenizer) and float(seen[0][3].alpha) == 1.5


def test_a_scope_is_in_the_example_and_a_maker_of_ones_own_is_not_guessed():
    report, _ = made()
    assert "sf.at(sf.generated, sf.add(vector, 1.5))" in sf.card(changed(report, about__scope="generated"))
    own = sf.card(changed(report, about__operator="my_make", about__call="sf.report(\n    model,\n)"))
    assert "sf.report(\n    model,\n)" in own and "sf.generate" not in own


def test_nothing_from_files_or_models_is_markup():
    report, sweep = made()
    named = f"# {HOSTILE}\n\n---\nx: [a](javascript:1) ![b](c) `d` | e"
    hostile = changed(
        report,
        model__name=named,
        data__name=named,
        data__source=named,
        data__description=named,
        metadata__method=named,
        metadata__data=named,
        verdict__headline=named,
        vector__file="```\n" + named,
        about__operator="own",
        about__call="```\n# " + named,
        limits=[named],
    )
    text = sf.card(hostile, name=named, sweep=sweep)
    head, body = head_of(text)
    assert set(head) == {"library_name", "tags"}
    prose, code, end = re.fullmatch(r"(.*?)\n(?=````)(.*)\n(````+)\n", body, re.S).groups()
    assert "<script" not in prose.replace("\\<", "") and "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"(?<!\\)[<>`]", prose) and not re.search(r"(?<!\\)\]\(", prose)
    assert end not in code[len(end) :]
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    titles = ["What it does", "What it costs", "How strong", "Where it acts, and on which data"]
    titles += ["What could not be shown", "To tell what was measured", "How to run it"]
    assert [line.removeprefix("## ") for line in headings[1:]] == titles and headings[0].startswith("# ")


def test_what_is_no_report_is_refused():
    report, sweep = made()
    with pytest.raises(sf.SteerError, match="`report` must be a Report, as steerfn gives it, got a dict"):
        sf.card(report.findings)
    with pytest.raises(sf.SteerError, match="`calibration` must be a Calibration, .* got a Sweep"):
        sf.card(report, calibration=sweep)
    with pytest.raises(sf.SteerError, match="`sweep` must be a Sweep"):
        sf.card(report, sweep=CALIBRATION)
    with pytest.raises(sf.DataError, match="`licence` must be as the hub writes it, such as 'apache-2.0', got 'my own"):
        sf.card(report, licence="my own")
    with pytest.raises(sf.DataError, match="datasets holds 'my texts', which is no id on the hub"):
        sf.card(report, datasets=["my texts"])
