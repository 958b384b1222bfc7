"""`report`: everything that a reviewer asks of a vector, measured, judged by rule, and on one page."""

import dataclasses
import datetime
import html
import json
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerfn._blocks import unwrapped
from steerfn._chat_template import Chat
from steerfn._decoding import decoding_of
from steerfn._errors import DataError, SteerWarning
from steerfn._extra import import_extra
from steerfn._fingerprint import check_match
from steerfn._keywords import hf_keywords
from steerfn._layout import layout
from steerfn._records import as_json, write_text
from steerfn._text import Text, as_texts, encode, input_device
from steerfn._vector import SteeringVector
from steerfn._visible import visible_line
from steerfn.evaluate import VectorComparison, compare_vectors
from steerfn.evaluate._compare import METRICS
from steerfn.evaluate._condition_texts import tried
from steerfn.evaluate._conditions import CONTROLS, checked_controls, strengths_of
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._seeds import checked_seeds
from steerfn.evaluate._side_by_side import shown_prompt
from steerfn.evaluate._statistics import RESAMPLES, checked_options
from steerfn.operators import Scope, add
from steerfn.plot._figure import figure
from steerfn.reading import Position
from steerfn.reporting._called import called
from steerfn.reporting._costs import costs_of, side_effects
from steerfn.reporting._document import document
from steerfn.reporting._findings import NAME, Findings
from steerfn.reporting._identity import data_of, identified, model_of, texts_sha256, vector_of
from steerfn.reporting._limits import Facts, limits
from steerfn.reporting._material import contrast_of, drawn, subset
from steerfn.reporting._overlap import overlapping
from steerfn.reporting._prompts import PASSAGES, PROMPTS
from steerfn.reporting._separation import separation
from steerfn.reporting._verdict import verdict
from steerfn.sweeping._configs import Make


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
    """A report on a vector; print it to see its verdict.

    Attributes:
        html: the document, on one page that loads nothing and runs nothing.
        findings: everything that was measured, as JSON values: `verdict`, `vector`, `metadata`, `model`, `data`,
            `quality`, `effect` (with every text), `side_effects`, `unchanged`, `overlap`, `limits`, `about`.
    """

    html: str
    findings: Mapping[str, Any]

    def save(self, path: Any) -> Path:
        """Write the document, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        return write_text(path, self.html, "The report")

    def to_json(self, path: Any = None) -> str:
        """The findings as JSON, NaN as null; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        text = as_json(self.findings)
        if path is not None:
            write_text(path, text, "The findings")
        return text

    def _repr_html_(self) -> str:
        # In a frame of its own, so that neither page's style touches the other's; the frame may run no scripts.
        return (
            f'<iframe sandbox srcdoc="{html.escape(self.html)}" title="Report" '
            'style="width: 100%; height: 45em; border: 1px solid rgba(128, 128, 128, .5)"></iframe>'
        )

    def __str__(self) -> str:
        found = self.findings["verdict"]
        lines = [self.findings["title"], "", found["headline"], *(f"  - {each}" for each in found["reasons"])]
        return "\n".join([*lines, f"  - What it does not show: {len(self.findings['limits'])} points, in the report."])

    def __repr__(self) -> str:
        return f"Report({self.findings['verdict']['headline']!r})"


def report(
    model: Any,
    tokenizer: Any,
    v: Any,
    data: Any,
    *,
    prompts: Any = None,
    metrics: Any = METRICS,
    alpha: float = 1.0,
    scope: Scope | None = None,
    operator: Make = add,
    controls: int = CONTROLS,
    passages: Any = None,
    questions: Any = None,
    position: Position | None = None,
    examples: int = 8,
    limit: int | None = None,
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
        v: the vector, or the file that it is in: then the file's own hash is in the report too.
        data: texts that show the behaviour and texts that show its opposite, best those that the vector was not made
            from: a `ContrastSet`, a file of one (`sf.datasets.from_file`), or a mapping with `positive` and `negative`.
        prompts: prompts that did not make the vector, of the kind that it is meant for; default 40 neutral ones. Those
            that are also in the data are told by a warning and in the report.
        metrics: names, functions or `Metric`s, as in `compare_vectors`. The default ones describe the text only: name
            one of the behaviour, such as "sentiment", or the verdict will say that it was not measured.
        alpha: the strength to report on.
        scope: the tokens to steer, as in `at`; default all.
        operator: how the vector and its strength become an operator: `sf.add`, `sf.rotate`, ...
        controls: random vectors of the same sites and norms to compare with, divided over the prompts; fewer than five
            carry no claim (`compare_vectors`). Side effects are compared with the first five.
        passages: plain texts on which side effects are measured; default 16 short ones that state facts.
        questions: questions with two answers, or a file of them as in `protocols.caa`, to see if knowledge suffers.
        position: where texts of the data are read; default where the vector says that it was read.
        examples: texts to show, taken at even distances.
        limit: texts a side, prompts, passages and questions at most, drawn with `seed`; None takes all.
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
        >>> found = sf.report(
        ...     model, tokenizer, "happy.safetensors", held_out, metrics=["sentiment"], alpha=2.0
        ... )  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
        >>> found.save("report.html")  # doctest: +SKIP
    """
    options = dict(locals())
    chat, hf = hf_keywords(report, model, tokenizer, chat, hf)
    decoding = decoding_of(model, tokenizer, hf, max_new_tokens)
    most = decoding.max_new_tokens or decoding.max_length or 0
    _check("examples", examples, 0)
    if limit is not None:
        _check("limit", limit, 1)
    checked_options(level, seed, resamples)
    _ = figure(), import_extra("scipy", "evaluate")  # what is missing is better missed before anything runs
    given, origin = vector_of(v)
    checked_controls(controls)
    checked_seeds(seeds, hf)
    strengths_of(alpha, {NAME: given})
    texts = subset(contrast_of(data), limit, seed)
    asked = drawn(as_texts(PROMPTS if prompts is None else prompts, "prompts"), limit, seed)
    plain = drawn(as_texts(PASSAGES if passages is None else passages, "passages"), limit, seed)
    measures, root = tried(metrics), unwrapped(model)
    check_match(given, model, strict=strict)
    whole = given.resolve(layout(root).n_layers)
    vector = whole.with_metadata(model=None)  # what there is to say of the match has been said, once
    if shared := overlapping(asked, texts):
        warnings.warn(
            f"{len(shared)} of {len(asked)} prompts are also in the data, first {shared[0]!r:.80}: an effect on them "
            "says little of new text; pass prompts that are not in the data.",
            SteerWarning,
            stacklevel=2,
        )
    name = _name(origin["file"])
    how = {"chat": chat, "batch_size": batch_size, "level": level, "seed": seed, "progress": progress}
    steering = {"alpha": alpha, "scope": scope, "operator": operator, "controls": controls} | how
    before = _logits(model, tokenizer, asked[0], chat)
    apart = separation(
        model, tokenizer, vector, texts, position=position, batch_size=batch_size, seed=seed, progress=progress
    )
    effect = compare_vectors(
        model, tokenizer, {name: vector}, asked, measures, seeds=seeds, max_new_tokens=max_new_tokens,
        resamples=resamples, **steering, **hf,
    )  # fmt: skip
    costs = side_effects(model, tokenizer, vector, plain, questions, effect, name, limit=limit, **steering)
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
        match=identified(given, model)["match"],
        aucs=list(apart.aucs.values()),
        held_out=max((each.auc for _, each in apart.profile if each.auc is not None), default=None),
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
        "operator": getattr(operator, "__name__", type(operator).__name__),
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
        "generation": json.dumps(hf, default=str) if hf else "",
    }
    found = Findings(
        name=name,
        title=f"Report on the steering vector “{name}”" if title is None else visible_line(title),
        written=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        alpha=facts.alpha,
        vector=whole,
        identity=identified(given, model) | origin,
        model=model_of(model),
        data=data_of(texts),
        separation=apart,
        effect=effect,
        costs=costs,
        unchanged=facts.unchanged,
        overlap=shared,
        examples=_examples(effect, name, examples),
        verdict=verdict(effect.pairs, effect.metrics, costs_of(costs)),
        limits=limits(facts),
        call=called(report, options) if call is None else call,
        about=about,
    )
    return Report(document(found), found.to_dict())


def _check(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} is a number of texts from {least}, not {value!r}.")


def _name(file: str | None) -> str:
    """What the vector is called: as its file, unless that is what a control is called."""
    stem = visible_line(Path(file).stem) if file else NAME
    return NAME if stem == UNSTEERED or stem.startswith("random like") else stem


def _counts(vector: SteeringVector) -> tuple[Any, Any] | None:
    """How many texts a vector says that it was made from."""
    said = vector.metadata.get("counts")
    return (said.get("positive"), said.get("negative")) if isinstance(said, Mapping) else None


def _logits(model: Any, tokenizer: Any, prompt: Text, chat: Chat) -> Tensor:
    """What the model says of a prompt, to the bit."""
    ids = torch.tensor(encode(tokenizer, [prompt], chat), device=input_device(model))
    with torch.no_grad():
        return model(input_ids=ids).logits.cpu()


def _examples(effect: VectorComparison, name: str, wanted: int) -> list[tuple[str, str, str]]:
    """Prompts at even distances, and what came of them without and with the vector, under the first seed."""
    n = len(effect.prompts)
    kept = [i * n // min(wanted, n) for i in range(min(wanted, n))]
    texts = effect.texts
    heads = {i: f"{i + 1}. {shown_prompt(effect.prompts[i])}" for i in kept}
    return [(head, texts[UNSTEERED][i].strip(), texts[name][i].strip()) for i, head in heads.items()]
