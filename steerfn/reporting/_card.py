"""`card`: a report as the model card of a vector, with a head that the hub reads; every number is the report's."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steerfn.discover import Calibration
from steerfn.evaluate import RANDOM, STEERED, UNSTEERED, Sweep
from steerfn.model.demo import HUB as DEMO
from steerfn.output import (
    Bullets,
    Paragraph,
    Section,
    Table,
    enumeration,
    escape_markdown,
    format_number,
    percent,
    quantity,
)
from steerfn.reporting._report import Report
from steerfn.values import DataError, SteerError, public, visible, visible_line

TAGS = ("steerfn", "steering-vector")
FITS = re.compile(r"[\w.-]+/[\w.-]+")
"""What the hub takes for a model or a data set."""
LICENCE = re.compile(r"[\w.+-]+")
SCOPES = {"every token": "", **{name: name for name in ("prompt", "generated", "last_prompt_token")}}
"""Scopes that the example can write, by what the report calls them."""
QUESTION = "How was your day?"


@public
def card(
    report: Report,
    *,
    name: str | None = None,
    calibration: Calibration | None = None,
    sweep: Sweep | None = None,
    licence: str | None = None,
    datasets: Sequence[str] = (),
    load: str | None = None,
) -> str:
    """Write the model card of a vector from a report on it: Markdown, with the YAML head that the hub reads.

    The head has the tags `steerfn` and `steering-vector`, the base model where the report knows its name on the hub,
    and the licence and data sets that are given. Then come the verdict, what the vector does, with intervals and beside
    random vectors, what it costs, on which prompts, at which strengths, layer and position, on which data, what could
    not be shown, and how to run it. No number is typed by hand; what comes from files, models and people is escaped.

    Args:
        report: as `sf.report` gives it.
        name: what to call the vector; default its name in the report.
        calibration: as `sf.discover.calibrate` gives it, for how far the strength may go.
        sweep: as `sf.sweep` gives it, for what other strengths do.
        licence: of the vector, as the hub writes it: "apache-2.0".
        datasets: ids of data sets on the hub that the vector was made from.
        load: the expression that gives the vector in the example; default `sf.load` of the report's file or address.

    Returns:
        Markdown below its head, as `v.push_to_hub("user/name", card=...)` takes it.

    Raises:
        SteerError: something other than a report, a calibration or a sweep.
        DataError: a data set that is no id of the hub, or a licence with blanks in it.

    Source: Mitchell et al. 2019, "Model Cards for Model Reporting".

    Example:
        >>> import steerfn as sf
        >>> text = sf.card(report, name="happy", licence="apache-2.0")  # the report that sf.report(...) gave
        >>> text.splitlines()[1]
        'base_model: HuggingFaceTB/SmolLM2-135M-Instruct'

        With a login to the hub, `v.push_to_hub("user/happy", card=text)` puts both there.
    """
    for what, value, kind in (
        ("report", report, Report),
        ("calibration", calibration, Calibration),
        ("sweep", sweep, Sweep),
    ):
        if not isinstance(value, kind) and (value is not None or what == "report"):
            raise SteerError(f"`{what}` must be a {kind.__name__}, as steerfn gives it, got a {type(value).__name__}.")
    datasets = [datasets] if isinstance(datasets, str) else list(datasets)
    if strange := [each for each in datasets if not (isinstance(each, str) and FITS.fullmatch(each))]:
        raise DataError(f"datasets holds {strange[0]!r:.80}, which is no id on the hub such as 'user/name'.")
    if licence is not None and not (isinstance(licence, str) and LICENCE.fullmatch(licence)):
        raise DataError(f"`licence` must be as the hub writes it, such as 'apache-2.0', got {licence!r:.80}.")
    findings = report.findings
    vector_name = visible_line(name or findings["vector"]["name"])
    base = findings["model"]["name"]
    title = f"{vector_name}: a steering vector for {base}"
    body = "\n\n".join(section.markdown() for section in _sections(findings, calibration, sweep))
    code = visible(_example(findings, vector_name, load))
    fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", code)), 3)  # no code ends it
    example = f"## How to run it\n\n{fence}python\n{code}\n{fence}"
    return f"---\n{_head(base, licence, datasets)}\n---\n\n# {escape_markdown(visible(title))}\n\n{body}\n\n{example}\n"


def _head(base: str, licence: str | None, datasets: list[str]) -> str:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        base_model=base if FITS.fullmatch(base) else None,
        datasets=datasets or None,
        license=licence,
        library_name="steerfn",
        tags=list(TAGS),
    ).to_yaml()


def _sections(findings: Mapping[str, Any], calibration: Calibration | None, sweep: Sweep | None) -> Iterator[Section]:
    yield Paragraph(findings["verdict"]["headline"])
    yield Bullets(findings["verdict"]["reasons"])
    yield from _effect(findings)
    yield from _costs(findings["side_effects"])
    yield from _strengths(findings, calibration, sweep)
    yield from _where_and_data(findings)
    yield Bullets([*_failures(findings), *findings["limits"]], "What could not be shown")
    yield Paragraph("Sections that are named here are those of the report, which has every text.")
    yield _hashes(findings)


def _effect(findings: Mapping[str, Any]) -> Iterator[Section]:
    effect, about, vector = findings["effect"], findings["about"], findings["vector"]["name"]
    prompts = effect["about"]["prompts"]
    decoding = "sampled" if about["sampled"] else "decoded greedily"
    rows = [
        [
            pair["metric"],
            "random vectors" if pair["against"] == "random" else pair["control"],
            _number(pair["difference"]),
            _ends(pair["low"], pair["high"]),
            _number(pair["p_holm"]),
            str(pair["n"]),
            pair["verdict"],
        ]
        for pair in effect["pairs"]
    ]
    headers = ["metric", "minus", "difference", "interval", "p (Holm)", "n", "verdict"]
    yield Table(headers, rows, "What it does", numeric=range(2, 6))
    columns = list(dict.fromkeys(condition for of in effect["means"].values() for condition in of))
    labels = {vector: STEERED, UNSTEERED: UNSTEERED}
    means = [[metric, *(_estimate(of.get(each)) for each in columns)] for metric, of in effect["means"].items()]
    yield Table(
        ["mean of", *(labels.get(each, "random vectors") for each in columns)],
        means,
        numeric=range(1, len(columns) + 1),
    )
    yield Paragraph(
        f"Measured on {quantity(len(prompts), 'prompt')} ({about['prompts_from']}), such as "
        f"{enumeration([json.dumps(each, ensure_ascii=False)[:120] for each in prompts[:3]])}, {decoding}, at most "
        f"{about['max_new_tokens']} tokens, beside {quantity(about['controls'], 'random vector')} of the same sites "
        f"and lengths. In brackets: {percent(effect['about']['level'])} intervals."
    )


def _costs(costs: Mapping[str, Any]) -> Iterator[Section]:
    columns = {STEERED: costs["figures"], UNSTEERED: costs["baseline"], RANDOM: costs["controls"].get(RANDOM, {})}
    names = dict.fromkeys(name for of in columns.values() for name in of)
    rows = [[name, *(_estimate(of.get(name)) for of in columns.values())] for name in names]
    yield Table(["on plain text", *columns], rows, "What it costs", numeric=range(1, len(columns) + 1))
    if costs["notes"]:
        yield Bullets(costs["notes"])


def _strengths(findings: Mapping[str, Any], calibration: Calibration | None, sweep: Sweep | None) -> Iterator[Section]:
    about = findings["about"]
    sentences = [
        f"Reported on at alpha {findings['vector']['alpha']:g}, with {about['operator']}, at {about['scope']}."
    ]
    if calibration is not None:
        tried = [alpha for alpha, _ in calibration.curve]
        sentences.append(
            f"From alpha {min(tried):.3g} to {max(tried):.3g} were tried on plain text, and up to "
            f"{calibration.alpha:.3g} its perplexity stays within {calibration.max_ratio:g} times that of the "
            f"unsteered model ({calibration.ratio:.3g} times there)."
        )
    if sweep is not None:
        alphas = [config.alpha for config in sweep.configs]
        sentences.append(
            f"What alpha {min(alphas):g} to {max(alphas):g} do on {quantity(len(sweep.prompts), 'prompt')}, as "
            "means, which are no test:"
        )
    yield Bullets(sentences, "How strong")
    if sweep is not None:
        headers = ["alpha", *sweep.metrics]
        means = [sweep.mean(metric) for metric in sweep.metrics]
        rows = [[f"{config.alpha:g}", *(_number(each[config]) for each in means)] for config in sweep.configs]
        yield Table(headers, rows, numeric=range(len(headers)))


def _where_and_data(findings: Mapping[str, Any]) -> Iterator[Section]:
    vector, quality, data, made = findings["vector"], findings["quality"], findings["data"], findings["metadata"]
    rows = [
        [
            site,
            format_number(vector["norms"][site]),
            f"{100 * quality['relative_norm'][site]:.3g} %",
            f"{_number(quality['auc'][site])} {_ends(*quality['auc_interval'][site])}",
        ]
        for site in vector["sites"]
    ]
    headers = ["site", "norm", "of a hidden state", "AUC on the data"]
    yield Table(headers, rows, "Where it acts, and on which data", numeric=range(1, 4))
    facts = [("method", "Made by"), ("position", "read at"), ("counts", "from"), ("data", "of")]
    told = [f"{word} {_plain(made[key])}" for key, word in facts if made.get(key) is not None]
    yield Bullets(
        [
            f"{', '.join(told)}: in the vector's own words." if told else "The vector does not say how it was made.",
            f"Judged on {data['name']} ({data['positive']} positive and {data['negative']} negative texts), read at "
            f"{_plain(quality['position'])}. Source and licence: {data['source'] or 'not said'}. Contrast: "
            f"{data['description'] or 'not said'}",
        ]
    )


def _failures(findings: Mapping[str, Any]) -> Iterator[str]:
    for pair in findings["effect"]["pairs"]:
        if pair["verdict"] not in ("higher", "lower"):
            other = "random vectors" if pair["against"] == "random" else f"the {pair['control']} model"
            yield f"A difference from {other} in {pair['metric']}: {pair['verdict']}."
    for message in findings["quality"]["lint"]:
        yield f"In the data: {message}"


def _hashes(findings: Mapping[str, Any]) -> Section:
    model, about = findings["model"], findings["about"]
    rows = [
        ["vector (tensors)", findings["vector"]["sha256"]],
        ["data", findings["data"]["sha256"]],
        ["prompts", about["prompts_sha256"]],
        ["plain text", about["passages_sha256"]],
        ["model", f"{model['name']}, fingerprint {model['fingerprint']}, weights {model['weights_sample']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())],
        ["written", findings["written"]],
    ]
    return Table(["SHA-256 of", "is"], rows, "To tell what was measured")


def _example(findings: Mapping[str, Any], name: str, load: str | None) -> str:
    about, base, alpha = findings["about"], findings["model"]["name"], findings["vector"]["alpha"]
    source = "sf.demo_model()" if base == DEMO else f"sf.from_pretrained({base!r})"
    load = load or f"sf.load({findings['vector']['file'] or f'{name}.safetensors'!r}, model=model)"
    scope = SCOPES.get(about["scope"])
    if about["operator"] not in ("add", "rotate", "clamp") or scope is None:
        return f"# As it was measured, with a make and a scope of the report's own:\n{about['call']}"
    steering = f"sf.{about['operator']}(vector, {alpha!r})"
    steering = f"sf.at(sf.{scope}, {steering})" if scope else steering
    return (
        f"import steerfn as sf\n\nmodel, tokenizer = {source}\nvector = {visible_line(load)}\n"
        f"print(sf.generate(model, tokenizer, {QUESTION!r}, {steering}).texts[0])"
    )


def _plain(value: Any) -> str:
    """A value of metadata, which may be anything."""
    if isinstance(value, Mapping):
        return ", ".join(f"{each} {key}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _ends(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"({format_number(low)} to {format_number(high)})"


def _estimate(value: Mapping[str, Any] | None) -> str:
    if not value or value.get("mean") is None or math.isnan(value["mean"]):
        return "-"
    ends = f" {_ends(value['low'], value['high'])}" if value["low"] is not None else ""
    return format_number(value["mean"]) + ends
