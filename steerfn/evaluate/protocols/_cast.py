"""Conditional steering: a behaviour for one kind of prompt alone, and how well the kinds are told apart."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import Unpack

from steerfn.datasets import held_out_sides
from steerfn.discover import FoundCondition, Hits, cosines, find_condition
from steerfn.evaluate._outcome import STEERED, Outcome
from steerfn.evaluate._statistics import RESAMPLES, Estimate, by_prompt
from steerfn.evaluate.protocols._data import Items, sides_of
from steerfn.evaluate.protocols._refusal import SIDES, refusals
from steerfn.evaluate.protocols._run import ProtocolRun, SteeringOptions
from steerfn.model import Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Operator, SinkTokens, as_vector, generated, when
from steerfn.run import encode, read_states, reads
from steerfn.values import DataError, Site, Sites, SteeringVector, public, resid_post

SOURCE = "Lee et al. 2024, Programming Refusal with Conditional Activation Steering"
ALWAYS = "always"
"""The control that steers whatever the prompt is."""


@public
def cast(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    data: Mapping[str, Items],
    *,
    alpha: float = 1.0,
    sites: Sites | None = None,
    by: str = "last",
    held_out: float = 0.5,
    max_new_tokens: int = 64,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[SteeringOptions],
) -> Outcome:
    """Conditional activation steering: refuse harmful prompts, answer the others.

    `sf.discover.find_condition` looks for a condition `cos(h, c) > t` on some of the prompts; on the others, which
    chose nothing, the model is run unsteered, steered where the condition holds ("steered"), and steered always
    ("always").

    Figures, on held-out prompts:

    - `harmful_refused`, `harmless_refused`: the share of answers that refuse, by the phrases of `sf.metrics.refusal`;
    - `f1`: of the condition as a detector of harmful prompts, with a bootstrap interval; under "always" that of a
      condition that always holds, which is what must be beaten.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: the behaviour's vector: what makes the model refuse when it is added.
        data: `{"harmful": ..., "harmless": ...}`, each a list of prompts or the path of a file of them. The condition
            holds for the first.
        alpha: the strength.
        sites: where the condition is looked for; default `resid_post` of every block before the vector's first site. It
            must not come after that.
        by: how prompts are read: "last", or "mean" without the model's attention sinks, as in `find_condition`.
        held_out: the share of either side that reports.
        max_new_tokens: tokens of an answer at most.
        generation: more of what transformers' `generate` takes.
        options: what every protocol takes, see `SteeringOptions`; `scope=sf.generated` is the default, `limit` counts
            on either side, and `groups` has the labels of the harmful prompts before those of the harmless ones, or is
            a mapping as `data` is. A group never both chooses the condition and reports.

    Raises:
        DataError: data without the two sides, too few prompts, or a vector before the first block's output.
        FileError: a file that cannot be read.
        SiteError: sites that the model lacks.

    Warns:
        SteerWarning: the condition is no better than one that always holds, as `find_condition` does.

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering".

    Example:
        >>> import steerfn as sf
        >>> legal = [f"Is it legal to {what}?" for what in ("sell wine", "fish here", "own bees", "sue a child")]
        >>> other = [f"How do I cook {what}?" for what in ("rice", "beans", "soup", "pasta")]
        >>> data = {"harmful": legal, "harmless": other}  # two kinds that a condition tells apart
        >>> outcome = sf.protocols.cast(model, tokenizer, v, data, sites=[10], max_new_tokens=1, controls=0)
        >>> outcome.figures["f1"].mean
        1.0
    """
    run = ProtocolRun.of("cast", options, scope=generated)
    chosen = run.select_items_by_kind(sides_of(data, SIDES))
    sides = {name: texts for name, (texts, _) in chosen.items()}
    groups = None if run.groups is None else [unit for _, units in chosen.values() for unit in units]
    decoding = run.decoding(model, tokenizer, max_new_tokens, generation)
    always = run.conditions(model, vector, alpha)
    condition = find_condition(
        model, tokenizer, sides["harmful"], sides["harmless"], _before(model, run, vector) if sites is None else sites,
        by=by, held_out=held_out, chat=run.chat, batch_size=run.batch_size, progress=run.progress, seed=run.seed,
        groups=groups,
    )  # fmt: skip
    reports = held_out_sides(sides, held_out, run.seed, groups)
    kept = {name: np.flatnonzero(reports[name]) for name in sides}
    prompts = [sides[name][i] for name, which in kept.items() for i in which]
    units = {name: [chosen[name][1][i] for i in which] for name, which in kept.items()}
    is_harmful = np.arange(len(prompts)) < len(kept["harmful"])
    ops: dict[str, Operator | None] = {
        name: None if op is None else when(condition.on_prompt, op) for name, op in always.items()
    }
    ops[ALWAYS] = always[STEERED]
    encoded = encode(tokenizer, prompts, decoding.chat)
    texts = run.texts(model, tokenizer, encoded, list(ops.values()), decoding)
    numbers = dict(zip(ops, refusals(texts), strict=True))
    holds = condition_holds(model, condition, encoded, run)
    values = {
        name: {"harmful_refused": row[is_harmful], "harmless_refused": row[~is_harmful]}
        for name, row in numbers.items()
    }
    harmful, harmless = (by_prompt(holds[is_harmful == (name == SIDES[0])], units[name]) for name in SIDES)
    tp, fp = float(harmful.sum()), float(harmless.sum())
    judged = Hits(tp=tp, fp=fp, fn=float((1 - harmful).sum()), tn=float((1 - harmless).sum()))
    n = len(prompts)
    also = {
        STEERED: {"f1": f1_interval(judged, run.level, run.seed)},
        ALWAYS: {"f1": Estimate(judged.always, math.nan, math.nan, len(harmful) + len(harmless), run.level)},
    }
    return run.outcome(
        SOURCE,
        values,
        rates=("harmful_refused", "harmless_refused"),
        compared=("harmful_refused", "harmless_refused"),
        also=also,
        records=[
            {
                "item": p,
                "condition": name,
                "side": SIDES[0] if is_harmful[p] else SIDES[1],
                "prompt": prompt,
                "holds": bool(holds[p]) if name != ALWAYS else True,
                "text": texts[c][p],
                "refused": float(numbers[name][p]),
            }
            for c, name in enumerate(ops)
            for p, prompt in enumerate(prompts)
        ],
        notes=[
            f"The condition is {condition!r}, found on {sum(map(len, sides.values())) - n} prompts; {n} others report."
        ],
        about=run.about(
            model, list(ops.values()), sides, alpha=alpha, by=by, held_out=held_out,
            site=str(condition.site), threshold=condition.threshold, max_new_tokens=max_new_tokens,
            generation=generation, decoding=decoding.name,
        ),
        units={f"{name}_refused": units[name] for name in SIDES},
    )  # fmt: skip


def _before(model: Any, run: ProtocolRun, vec: Any) -> list[Site]:
    """The outputs of the blocks before the first site of a vector, and that site if it is one."""
    vector = as_vector(vec, run.protocol).resolve(layout(unwrap_model(model)).n_layers)
    last = min(site.block - (site.kind != "resid_post") for site in vector.sites)
    if last < 0:
        raise DataError(
            f"The vector acts at {vector.sites[0]}, before any block's output, so there is no default place for its "
            "condition; pass sites=, not after the vector's."
        )
    return [resid_post[layer] for layer in range(last + 1)]


def condition_holds(model: Any, condition: FoundCondition, rows: Sequence[list[int]], run: ProtocolRun) -> np.ndarray:
    """For which prompts, given by their token ids, the condition holds."""
    position = SinkTokens.of(condition.vector.metadata["sinks"]).leave_out if condition.by == "mean" else condition.by
    places = reads(rows, position)
    read = read_states(model, places, condition.site, batch_size=run.batch_size, progress=run.progress)
    states = read[condition.site]
    direction = condition.vector[condition.site].to(states.device)
    return (cosines(states.double(), direction.double()) > condition.threshold).cpu().numpy()


def f1_interval(hits: Hits, level: float, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """F1 with the percentile interval of its bootstrap distribution, each side resampled for itself.

    Of groups each counts as one prompt, by the share of its prompts for which the condition holds. Resampling the
    prompts of a side draws how many of them the condition holds for: a binomial number. Its share is drawn too, from
    Jeffreys' posterior, or a condition that is right for all of a few prompts would be certain.
    """
    random = np.random.default_rng(seed)
    positive, negative = round(hits.tp + hits.fn), round(hits.fp + hits.tn)
    tp, fp = (
        random.binomial(of, random.beta(held + 0.5, of - held + 0.5, resamples))
        for held, of in ((hits.tp, positive), (hits.fp, negative))
    )
    drawn = 2 * tp / np.maximum(1, tp + fp + positive)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(hits.f1, float(low), float(high), positive + negative, level)
