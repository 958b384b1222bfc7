"""AxBench's steering: concept, instruction and fluency at once, at a strength chosen on other prompts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from steerfn._blocks import unwrapped
from steerfn._capture import capture
from steerfn._errors import DataError
from steerfn._layout import layout
from steerfn._text import Text, as_texts, encode, input_device
from steerfn.discover.search._held_out import held_out as hold_out
from steerfn.evaluate._outcome import Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._tally import outcome
from steerfn.evaluate.protocols._axbench_judge import PARTS, Judge, harmonic, named, ratings_of
from steerfn.evaluate.protocols._axbench_offline import OFFLINE
from steerfn.evaluate.protocols._data import texts_of
from steerfn.evaluate.protocols._run import Grouped, Run
from steerfn.metrics._metric import Setting
from steerfn.operators import Operator
from steerfn.operators._base import as_vector
from steerfn.sweeping._configs import alphas_of

SOURCE = "Wu et al. 2025, AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders"
SAMPLING = {"do_sample": True, "temperature": 1.0}
"""As in the paper's code."""
FACTORS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0)


def axbench(
    model: Any,
    tokenizer: Any,
    vec: Any,
    data: Any,
    *,
    concept: str,
    judge: Judge = OFFLINE,
    alphas: Sequence[float] = FACTORS,
    activating: Any = None,
    max_new_tokens: int = 128,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[Grouped],
) -> Outcome:
    """AxBench's steering score: the harmonic mean of three ratings from 0 to 2, 0 where one is 0.

    Half of the prompts choose the strength, by the mean score; the other half, which chose nothing, report. Every
    control chooses its own strength. A rating that the judge does not give counts as 0, as in the paper's code, and is
    counted in the notes.

    Figures:

    - `score`: the harmonic mean of the three ratings of a text, the mean over the reporting prompts;
    - `concept`: is the concept in the text; `instruction`: does the text do what the prompt asks; `fluency`: does it
      read well. From 0 to 2 each.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vec: the concept's vector.
        data: prompts that have nothing to do with the concept, or the path of a file of instructions.
        concept: what the vector stands for, in words.
        judge: who rates.

            - "offline": three small scorers with fixed cuts. They are no language model, and the outcome says so: its
              figures are not comparable with published ones;
            - a mapping of `concept`, `instruction` and `fluency` to metrics that give 0 to 2:
              `sf.protocols.axbench_judge(sf.metrics.endpoint(...), concept)` asks a language model;
            - a function of the texts and their prompts that gives three numbers for each text.
        alphas: the strengths to choose from; the default are the paper's factors.
        activating: texts with the concept. With them strengths are the paper's: factors of the concept's maximal
            activation, the largest `<h, v / |v|>` of any token of these texts but the first of each, along a vector of
            length 1. Without them they are factors of the vector as it is, often a third as far.
        max_new_tokens: tokens of a text at most; the paper has 128.
        generation: more of what transformers' `generate` takes; by default the paper's sampling at temperature 1.
        options: what every protocol takes, see `Grouped`.

    Raises:
        DataError: fewer than two different prompts, no concept, or a judge that gives something else than ratings.
        FileError: a file that cannot be read.
        SteerError: the offline judge without the MiniLM package (extra `minilm`).

    Source: Wu et al. 2025, "AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders".

    Example:
        >>> import steerfn as sf
        >>> found = sf.protocols.axbench(
        ...     model, tokenizer, v, "vicuna_question.jsonl", concept="rental services", alphas=[1, 2, 4], limit=20
        ... )  # doctest: +SKIP
        >>> print(found, found.about["chosen"])  # doctest: +SKIP
    """
    run = Run.of("axbench", options, scope=None, groups=None)
    if not isinstance(concept, str) or not concept.strip():
        raise DataError(f"concept says in words what the vector stands for, not {concept!r:.80}.")
    prompts, units = run.grouped(texts_of(data, "data"))
    # Prompts of one group choose or report together.
    alike = prompts if run.groups is None else [f"group {unit}" for unit in units]
    reports = np.array(hold_out(alike, 0.5, run.seed))
    if not reports.any():
        raise DataError("AxBench chooses a strength on half of the prompts; pass at least two different ones.")
    strengths, decoding = alphas_of(alphas), {**SAMPLING, **(generation or {})}
    reached = None if activating is None else maximal_activation(model, tokenizer, vec, activating)
    by_name = run.strengths(model, vec if reached is None else as_vector(vec, "axbench").unit() * reached, strengths)
    unreadable = 0

    def rated(some: list[Text], ops: list[Operator | None]) -> tuple[list[list[str]], np.ndarray]:
        """The texts and their ratings, `[operators, prompts, 3]`."""
        nonlocal unreadable
        texts = run.texts(model, tokenizer, some, ops, max_new_tokens, decoding)
        setting = Setting(
            prompts=some * len(ops),
            ops=[op for op in ops for _ in some],
            model=model,
            tokenizer=tokenizer,
            chat=run.chat,
        )
        found = ratings_of(judge, concept, [text for row in texts for text in row], setting)
        unreadable += int(np.isnan(found).sum())
        return texts, np.nan_to_num(found, nan=0.0).reshape(len(ops), len(some), len(PARTS))

    choosing, reporting = (
        [p for p, out in zip(prompts, reports, strict=True) if out == side] for side in (False, True)
    )
    _, first = rated(choosing, [op for ops in by_name.values() for op in ops])
    scores = harmonic(first).reshape(len(by_name), len(strengths), -1)
    chosen = {name: best(strengths, row) for name, row in zip(by_name, scores, strict=True)}
    ops: dict[str, Operator | None] = {name: each[strengths.index(chosen[name])] for name, each in by_name.items()}
    ops[UNSTEERED] = None
    texts, second = rated(reporting, list(ops.values()))
    values = {
        name: {"score": harmonic(second[c]), **{part: second[c, :, i] for i, part in enumerate(PARTS)}}
        for c, name in enumerate(ops)
    }
    return outcome(
        run.protocol,
        SOURCE,
        values,
        compared=("score", "concept", "fluency"),
        records=[
            {"item": p, "condition": name, "alpha": chosen.get(name, 0.0), "prompt": prompt, "text": texts[c][p]}
            | {figure: float(found[p]) for figure, found in values[name].items()}
            for c, name in enumerate(ops)
            for p, prompt in enumerate(reporting)
        ],
        notes=_notes(judge, chosen, len(choosing), len(reporting), unreadable),
        about=run.about(
            model, [*(op for each in by_name.values() for op in each), None], prompts, concept=concept,
            judge=named(judge), alphas=strengths, chosen=chosen, max_new_tokens=max_new_tokens, generation=decoding,
            maximal_activation=reached,
        ),
        draws=run.draws,
        units=[unit for unit, out in zip(units, reports, strict=True) if out],
        level=run.level,
        seed=run.seed,
    )  # fmt: skip


def best(alphas: Sequence[float], scores: np.ndarray) -> float:
    """The strength with the highest mean score over prompts, `[alphas, prompts]`; of equals the weakest.

    A text without a score has 0, so that a strength that ruins most texts does not win by the others.
    """
    means = np.nan_to_num(np.asarray(scores, np.float64), nan=0.0).mean(-1)
    return max(zip(means, alphas, strict=True), key=lambda pair: (pair[0], -abs(pair[1])))[1]


def maximal_activation(model: Any, tokenizer: Any, vec: Any, texts: Any) -> float:
    """The largest `<h, v / |v|>` of any token of some texts, but the first of each, at the vector's site.

    Raises:
        DataError: no texts, or texts of one token; a vector at several sites, or one that no text reaches upwards.
    """
    vector = as_vector(vec, "axbench").resolve(layout(unwrapped(model)).n_layers)
    if len(vector.sites) != 1:
        raise DataError(
            f"A concept's maximal activation is that at one site, and the vector has {len(vector.sites)}; leave out "
            "activating=, or pass a vector at one site."
        )
    [site], [direction] = vector.sites, vector.unit().directions
    found = -math.inf
    for ids in encode(tokenizer, as_texts(texts, "activating"), False):
        with torch.no_grad():
            _, states = capture(model, site)(input_ids=torch.tensor([ids], device=input_device(model)))
        along = states[site][0, 1:].float() @ direction.to(states[site].device).float()
        found = max([found, *along.tolist()])  # the first token is often an attention sink
    if not 0 < found < math.inf:
        raise DataError(
            "No token of the activating texts lies along the vector's direction, so there is no maximal activation; "
            "pass longer texts that show the concept, or leave out activating=."
        )
    return found


def _notes(judge: Judge, chosen: Mapping[str, float], choosing: int, reporting: int, unreadable: int) -> list[str]:
    strengths = ", ".join(f"{name} {alpha:g}" for name, alpha in chosen.items())
    notes = [f"Strengths chosen on {choosing} prompts ({strengths}), figures of the {reporting} others."]
    if unreadable:
        notes.append(f"{unreadable} ratings could not be read from the judge's answers and count as 0.")
    if judge == OFFLINE:
        notes.insert(
            0,
            "OFFLINE judge: small scorers with fixed cuts, no language model. Not comparable with published AxBench "
            "figures.",
        )
    return notes
