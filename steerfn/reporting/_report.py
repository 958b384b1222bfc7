"""`report`: everything that a reviewer asks of a vector, measured, judged by rule, and on one page."""

import dataclasses
import datetime
import html
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerfn.evaluate import (
    CONTROLS,
    METRICS,
    RESAMPLES,
    UNSTEERED,
    VectorComparison,
    check_intervals,
    compare_vectors,
    strengths_of,
    validate_metrics,
)
from steerfn.evaluate.protocols import questions_of
from steerfn.model import Model, Tokenizer, describe_vector, layout, model_of, unwrap_model
from steerfn.operators import Make, Scope, add
from steerfn.output import Bullets, Paragraph, Result, Section, Table, format_or_dash, write_text
from steerfn.plot import figure
from steerfn.reporting._call_source import call_source
from steerfn.reporting._document import document
from steerfn.reporting._findings import NAME, Findings
from steerfn.reporting._material import (
    contrast_of,
    data_of,
    labels_of,
    prompts_in_data,
    sample,
    subset,
    texts_sha256,
    vector_of,
)
from steerfn.reporting._measure import costs_of, separation, side_effects, unit_of
from steerfn.reporting._prompts import PASSAGES, PROMPTS
from steerfn.reporting._verdict import Facts, limits, verdict
from steerfn.run import (
    Chat,
    Position,
    Text,
    as_texts,
    checked_seeds,
    decoding_of,
    encode,
    input_device,
    shown_prompt,
)
from steerfn.values import ModelIdentity, SteeringVector, integer, positive_int, public, visible_line, warn
from steerfn.verbs import check_vector

COSTS = {"data": "passages", "questions": "questions"}
"""What `protocols.side_effects` calls the kinds of a report's material."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report(Result):
    """A report on a vector, made by `report`; print it to see its verdict.

    Attributes:
        html: the document, on one page that loads nothing and runs nothing.
        findings: everything that was measured, as JSON values: `verdict`, `vector`, `metadata`, `model`, `data`,
            `quality`, `effect` (with every text), `side_effects`, `unchanged`, `overlap`, `limits`, `about`.
    """

    html: str
    findings: Mapping[str, Any]

    _what = "The report"

    def save(self, path: Any) -> Path:
        """Write the document, or what another form holds where the suffix is .csv, .json or .md; whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        if str(path).lower().endswith((".csv", ".json", ".md")):
            return super().save(path)
        return write_text(path, self.html, self._what)

    def to_html(self, path: Any = None) -> str:
        """The document; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        return self._write(self.html, path)

    def to_dict(self) -> dict[str, Any]:
        """The findings."""
        return dict(self.findings)

    def to_records(self) -> list[dict[str, Any]]:
        """One record for every text behind the effect: condition, draw, seed, prompt, text and metrics."""
        return [dict(each) for each in self.findings["effect"]["records"]]

    def _heading(self) -> str:
        return self.findings["title"]

    def _sections(self) -> Sequence[Section]:
        verdict, pairs = self.findings["verdict"], self.findings["effect"]["pairs"]
        rows = [
            [
                f"{pair['metric']}: {pair['treatment']} - {pair['control']}",
                *(format_or_dash(pair[name], ".3g") for name in ("difference", "low", "high", "p_holm")),
                str(pair["n"]),
                pair["verdict"],
            ]
            for pair in pairs
        ]
        headers = ["comparison", "difference", "low", "high", "p (Holm)", "n", "verdict"]
        return [
            Bullets(verdict["reasons"], verdict["headline"]),
            Table(headers, rows, "Every comparison", numeric=range(1, 6)),
            Bullets(self.findings["limits"], "What it does not show"),
        ]

    def _print_sections(self) -> Sequence[Section]:
        verdict = self.findings["verdict"]
        limits = f"What it does not show: {len(self.findings['limits'])} points, in the report."
        return [Paragraph(self._heading()), Bullets([*verdict["reasons"], limits], verdict["headline"], "  - ")]

    def _repr_html_(self) -> str:
        # In a frame of its own, so that neither page's style touches the other's; the frame may run no scripts.
        return (
            f'<iframe sandbox srcdoc="{html.escape(self.html)}" title="Report" '
            'style="width: 100%; height: 45em; border: 1px solid rgba(128, 128, 128, .5)"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Report({self.findings['verdict']['headline']!r})"


@public
def report(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector | str | os.PathLike[str],
    data: Any,
    *,
    prompts: Any = None,
    metrics: Any = METRICS,
    alpha: float = 1.0,
    scope: Scope | None = None,
    make: Make = add,
    controls: int = CONTROLS,
    passages: Any = None,
    questions: Any = None,
    position: Position | None = None,
    examples: int = 8,
    limit: int | None = None,
    groups: Any = None,
    seeds: Any = (0,),
    max_new_tokens: int | None = None,
    chat: Chat = None,
    batch_size: int | str = "auto",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strict: bool | str = False,
    title: str | None = None,
    call: str | None = None,
    progress: bool = True,
    **hf: Any,
) -> Report:
    """Measure a vector in every way that a reviewer asks for, and write it up as one page to be signed.

    The page has: what the vector is (sites, norms, hashes, the model); how it was made (its metadata); how well it
    tells the data apart (`layer_profile`, and its own AUC); what it does (`compare_vectors` with the unsteered model
    and with random vectors of the same length); side effects (`protocols.side_effects`); controls; texts side by side;
    what all this does not show; how to repeat it; lines for signatures.

    The verdict at its top is computed by rule: "an effect was shown" needs a metric of behaviour that differs from the
    unsteered model and, the same way, from random vectors by more than they differ among themselves, with intervals
    that exclude 0 and p-values below `1 - level` after Holm's correction for all comparisons. What the findings do not
    carry is listed, by rule as well.

    Args:
        model: any transformers causal LM. Unchanged, which is checked and reported.
        tokenizer: its tokenizer. Unchanged.
        vector: the vector, or the file that it is in: then the file's own hash is in the report too.
        data: texts that show the behaviour and texts that show its opposite, best those that the vector was not made
            from: a `ContrastSet`, a file of one (`sf.datasets.from_file`), or a mapping with `positive` and `negative`.
        prompts: prompts that did not make the vector, of the kind that it is meant for; default 40 neutral ones. Those
            that are also in the data are named in a warning and in the report.
        metrics: names, functions or `Metric`s, as in `compare_vectors`. The default ones describe the text only: name
            one of the behaviour, such as "sentiment", or the verdict will say that it was not measured.
        alpha: the strength to report on.
        scope: the tokens to steer, as in `at`; default all.
        make: how the vector and its strength become an operator: `sf.add`, `sf.rotate`, ...
        controls: random vectors of the same sites and norms to compare with, divided over the prompts; fewer than five
            carry no claim (`compare_vectors`). Side effects are compared with the first five.
        passages: plain texts on which side effects are measured; default 16 short ones that state facts.
        questions: questions with two answers, or a file of them as in `protocols.caa`, to see if knowledge suffers.
        position: where texts of the data are read; default where the vector says that it was read.
        examples: texts to show, taken at even distances.
        limit: texts a side, prompts, passages and questions at most, drawn with `seed`; None takes all.
        groups: a label for each prompt, where several belong together, as in `compare_vectors`; or a mapping of `data`
            (a label for each pair or text, as `quality` takes them), `prompts`, `passages` and `questions` to labels.
        seeds: of generation, which is greedy unless `do_sample=True`; several need that.
        max_new_tokens: tokens of a text at most; default 40, as in `generate`.
        chat: as in `generate`, for the prompts.
        batch_size: rows at once; "auto" fits them to memory.
        level: of the intervals.
        resamples: of every interval and test of the effect.
        seed: of random vectors, choices and resamples.
        strict: True refuses a vector unless it was made from these very weights, "architecture" unless from a model
            of this architecture.
        title: of the document.
        call: how the report was asked for, to be written in it; default this call.
        progress: show bars on stderr.
        hf: anything else that transformers' `generate` takes, and switches of the chat template, as in `generate`.

    Returns:
        A `Report`: print it, `.save("report.html")`, `.to_json(path)`, `.findings`.

    Raises:
        DataError: no texts, prompts or metrics, an option out of range.
        FileError: a file that cannot be read.
        ModelError: a vector that does not fit the model, or with `strict` one of another.
        SteerError: scipy or matplotlib is not installed.

    Warns:
        SteerWarning: prompts that are also in the data, or a vector of another model.

    Source: after the idea of Mitchell et al. 2019, "Model Cards for Model Reporting"; controls as in Turner et al. 2023
    and Tan et al. 2024.

    Example:
        >>> import steerfn as sf
        >>> held_out = sf.datasets.load("sentiment").split()[1]
        >>> report = sf.report(  # with limit=2 and controls=1 it is quick, and shows nothing
        ...     model, tokenizer, v, held_out, metrics="sentiment", alpha=2.0, limit=2, controls=1, max_new_tokens=4
        ... )
        >>> print(report)
        Report on the steering vector “vector”
        ...
        >>> report.save("report.html").name
        'report.html'
    """
    options = dict(locals())
    decoding = decoding_of(report, model, tokenizer, hf, chat=chat, max_new_tokens=max_new_tokens)
    chat, hf = decoding.chat, decoding.hf
    most = decoding.max_new_tokens or decoding.max_length or 0
    examples = integer("examples", examples, 0)
    limit = None if limit is None else positive_int("limit", limit, hint="None takes all texts")
    check_intervals(level, seed, resamples)
    figure()  # fail before the slow work starts where matplotlib, needed last, is missing
    given, origin = vector_of(vector)
    controls = positive_int("controls", controls)
    checked_seeds(seeds, hf)
    strengths_of(alpha, {NAME: given})
    texts = contrast_of(data)
    asked = as_texts(PROMPTS if prompts is None else prompts, "prompts")
    plain = as_texts(PASSAGES if passages is None else passages, "passages")
    asked_too = None if questions is None else questions_of(questions, "questions")
    labels = labels_of(groups, texts, asked, plain, asked_too, limit, seed)
    texts, asked, plain = subset(texts, limit, seed), sample(asked, limit, seed), sample(plain, limit, seed)
    measures, root = validate_metrics(metrics), unwrap_model(model)
    identity = ModelIdentity(root)
    vector = check_vector(given, identity, strict=strict).resolve(layout(root).n_layers)
    described = describe_vector(given, identity)
    if shared := prompts_in_data(asked, texts):
        warn(
            f"{len(shared)} of {len(asked)} prompts are also in the data, first {shared[0]!r:.80}: an effect on them "
            "says little of new text; pass prompts that are not in the data."
        )
    name = _name(origin["file"])
    how = {"chat": chat, "batch_size": batch_size, "level": level, "seed": seed, "progress": progress}
    steering = {"alpha": alpha, "scope": scope, "make": make, "controls": controls} | how
    before = _logits(model, tokenizer, asked[0], chat)
    apart = separation(
        model, tokenizer, vector, texts, position=position, batch_size=batch_size, groups=labels.get("data"), seed=seed,
        progress=progress,
    )  # fmt: skip
    effect = compare_vectors(
        model, tokenizer, {name: vector}, asked, measures, seeds=seeds, max_new_tokens=max_new_tokens,
        resamples=resamples, groups=labels.get("prompts"), **steering, **hf,
    )  # fmt: skip
    costs = side_effects(
        model, tokenizer, vector, plain, asked_too, effect, name, limit=limit,
        groups={kind: labels[each] for kind, each in COSTS.items() if each in labels}, **steering,
    )  # fmt: skip
    facts = Facts(
        effect=effect,
        alpha=effect.about["alpha"][name],
        max_new_tokens=most,
        sampled=decoding.sampled,
        draws=effect.about["controls"],
        own_prompts=prompts is None,
        overlap=shared,
        made_from=_counts(given),
        data=(len(texts.positive), len(texts.negative)),
        match=described["match"],
        aucs=list(apart.aucs.values()),
        best=apart.best,
        chance=apart.profile.chance,
        lint=len(apart.lint),
        passages=len(plain),
        own_passages=passages is None,
        questions=questions is not None,
        unchanged=torch.equal(before, _logits(model, tokenizer, asked[0], chat)),
    )
    about = {
        "versions": effect.about["versions"],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "operator": getattr(make, "__name__", type(make).__name__),
        "scope": "every token" if scope is None else str(scope),
        "prompts_from": "neutral ones that come with steerfn" if prompts is None else "given for this report",
        "prompts_sha256": texts_sha256(asked),
        "passages": len(plain),
        "passages_from": "that come with steerfn" if passages is None else "given for this report",
        "passages_sha256": texts_sha256(plain),
        "controls": effect.about["controls"],
        "sampled": facts.sampled,
        "seed": seed,
        "max_new_tokens": most,
        "decoding": decoding.name,
        "limit": limit,
        "groups": {kind: len(set(each)) for kind, each in labels.items()},
        "generation": json.dumps(hf, default=str) if hf else "",
    }
    findings = Findings(
        name=name,
        title=f"Report on the steering vector “{name}”" if title is None else visible_line(title),
        written=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        alpha=facts.alpha,
        vector=vector,
        identity=described | origin,
        model=model_of(identity),
        data=data_of(texts),
        separation=apart,
        effect=effect,
        costs=costs,
        unchanged=facts.unchanged,
        overlap=shared,
        examples=_examples(effect, name, examples),
        verdict=verdict(effect.pairs, effect.metrics, costs_of(costs), unit_of(effect)),
        limits=limits(facts),
        call=call_source(report, options) if call is None else call,
        about=about,
    )
    return Report(document(findings), findings.to_dict())


def _name(file: str | None) -> str:
    """The vector's name: its file's stem, unless a control has that name."""
    stem = visible_line(Path(file).stem) if file else NAME
    return NAME if stem == UNSTEERED or stem.startswith("random like") else stem


def _counts(vector: SteeringVector) -> tuple[Any, Any] | None:
    """The numbers of positive and negative texts in a vector's metadata."""
    counts = vector.metadata.get("counts")
    return (counts.get("positive"), counts.get("negative")) if isinstance(counts, Mapping) else None


def _logits(model: Any, tokenizer: Any, prompt: Text, chat: Chat) -> Tensor:
    """The model's logits for a prompt, to be compared bit for bit."""
    ids = torch.tensor(encode(tokenizer, [prompt], chat), device=input_device(model))
    with torch.no_grad():
        return model(input_ids=ids).logits.cpu()


def _examples(effect: VectorComparison, name: str, number: int) -> list[tuple[str, str, str]]:
    """Prompts at even distances, with their texts without and with the vector, under the first seed."""
    n = len(effect.prompts)
    chosen = [i * n // min(number, n) for i in range(min(number, n))]
    texts = effect.texts
    heads = {i: f"{i + 1}. {shown_prompt(effect.prompts[i])}" for i in chosen}
    return [(head, texts[UNSTEERED][i].strip(), texts[name][i].strip()) for i, head in heads.items()]
