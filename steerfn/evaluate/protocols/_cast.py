"""Conditional steering: a behaviour for one kind of prompt alone, and how well the kinds are told apart."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import Unpack

from steerfn._activations import activations
from steerfn._blocks import unwrapped
from steerfn._errors import DataError
from steerfn._layout import layout
from steerfn._site import Site, resid_post
from steerfn._text import Text
from steerfn.discover import FoundCondition, Hits, find_condition
from steerfn.discover.search._held_out import held_out as hold_out
from steerfn.discover.search._threshold import cosines
from steerfn.evaluate._outcome import STEERED, Outcome
from steerfn.evaluate._statistics import RESAMPLES, Estimate
from steerfn.evaluate._tally import outcome
from steerfn.evaluate.protocols._data import sides_of
from steerfn.evaluate.protocols._refusal import SIDES, refused
from steerfn.evaluate.protocols._run import Run, Steering
from steerfn.operators import Operator, generated, when

SOURCE = "Lee et al. 2024, Programming Refusal with Conditional Activation Steering"
ALWAYS = "always"
"""The control that steers whatever the prompt is."""


def cast(
    model: Any,
    tokenizer: Any,
    vec: Any,
    data: Any,
    *,
    alpha: float = 1.0,
    sites: Any = None,
    by: str = "last",
    held_out: float = 0.5,
    max_new_tokens: int = 64,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[Steering],
) -> Outcome:
    """Conditional activation steering: refuse harmful prompts, answer the others.

    `sf.find_condition` looks for a condition `cos(h, c) > t` on some of the prompts; on the others, which chose
    nothing, the model is run unsteered, steered where the condition holds ("steered"), and steered always ("always").

    Figures, on held-out prompts:

    - `harmful_refused`, `harmless_refused`: the share of answers that refuse, by the phrases of `sf.metrics.refusal`;
    - `f1`: of the condition as a detector of harmful prompts, with a bootstrap interval; under "always" that of a
      condition that always holds, which is what must be beaten.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vec: the behaviour's vector: what makes the model refuse when it is added.
        data: `{"harmful": ..., "harmless": ...}`, each a list of prompts or the path of a file of them. The condition
            holds for the first.
        alpha: the strength.
        sites: where the condition is looked for; default `resid_post` of every block before the vector's first site. It
            must not come after that.
        by: how prompts are read: "last" or "mean", as in `find_condition`.
        held_out: the share of either side that reports.
        max_new_tokens: tokens of an answer at most.
        generation: more of what transformers' `generate` takes.
        options: what every protocol takes, see `Steering`; `scope=sf.generated` is the default, `limit` counts on
            either side.

    Raises:
        DataError: data without the two sides, too few prompts, or a vector before the first block's output.
        FileError: a file that cannot be read.
        SiteError: sites that the model lacks.

    Warns:
        SteerWarning: the condition is no better than one that always holds, as `find_condition` does.

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering".

    Example:
        >>> import steerfn as sf
        >>> data = {"harmful": "harmful_train.json", "harmless": "vicuna_question.jsonl"}
        >>> print(sf.protocols.cast(model, tokenizer, refusal, data, alpha=2.0))  # doctest: +SKIP
    """
    run = Run.of("cast", options, scope=generated)
    sides = {name: run.chosen(texts) for name, texts in sides_of(data, SIDES).items()}
    always = run.conditions(model, vec, alpha)
    found = find_condition(
        model, tokenizer, sides["harmful"], sides["harmless"], _before(model, run, vec) if sites is None else sites,
        by=by, held_out=held_out, chat=run.chat, batch_size=run.batch_size, progress=run.progress, seed=run.seed,
    )  # fmt: skip
    kept = {name: _reported(texts, held_out, run.seed) for name, texts in sides.items()}
    prompts = [prompt for side in kept.values() for prompt in side]
    is_harmful = np.arange(len(prompts)) < len(kept["harmful"])
    ops: dict[str, Operator | None] = {
        name: None if op is None else when(found.on_prompt, op) for name, op in always.items()
    }
    ops[ALWAYS] = always[STEERED]
    texts = run.texts(model, tokenizer, prompts, list(ops.values()), max_new_tokens, generation)
    numbers = dict(zip(ops, refused(texts), strict=True))
    holds = held(model, tokenizer, found, prompts, run)
    values = {
        name: {"harmful_refused": row[is_harmful], "harmless_refused": row[~is_harmful]}
        for name, row in numbers.items()
    }
    judged = Hits(
        tp=int((holds & is_harmful).sum()),
        fp=int((holds & ~is_harmful).sum()),
        fn=int((~holds & is_harmful).sum()),
        tn=int((~holds & ~is_harmful).sum()),
    )
    n = len(prompts)
    also = {
        STEERED: {"f1": f1_interval(judged, run.level, run.seed)},
        ALWAYS: {"f1": Estimate(judged.always, math.nan, math.nan, n, run.level)},
    }
    return outcome(
        run.protocol,
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
        notes=[f"The condition is {found!r}, found on {sum(map(len, sides.values())) - n} prompts; {n} others report."],
        about=run.about(
            model, list(ops.values()), sides, alpha=alpha, by=by, held_out=held_out,
            site=str(found.site), threshold=found.threshold, max_new_tokens=max_new_tokens, generation=generation,
        ),
        draws=run.draws,
        level=run.level,
        seed=run.seed,
    )  # fmt: skip


def _before(model: Any, run: Run, vec: Any) -> list[Site]:
    """The outputs of the blocks before the first site of a vector, and that site if it is one."""
    vector = run.vectors(vec)[STEERED].resolve(layout(unwrapped(model)).n_layers)
    last = min(site.block - (site.kind != "resid_post") for site in vector.sites)
    if last < 0:
        raise DataError(
            f"The vector acts at {vector.sites[0]}, before any block's output, so there is no default place for its "
            "condition; pass sites=, not after the vector's."
        )
    return [resid_post[layer] for layer in range(last + 1)]


def _reported(texts: list[Text], part: float, seed: int) -> list[Text]:
    """The texts that `find_condition` holds out."""
    return [text for text, out in zip(texts, hold_out(texts, part, seed), strict=True) if out]


def held(model: Any, tokenizer: Any, found: FoundCondition, prompts: list[Text], run: Run) -> np.ndarray:
    """For which prompts the condition holds."""
    position = "mean_all" if found.by == "mean" else found.by
    states = activations(
        model, tokenizer, prompts, found.site, position=position, chat=run.chat, batch_size=run.batch_size,
        progress=run.progress,
    )[found.site]  # fmt: skip
    direction = found.vector[found.site].to(states.device)
    return (cosines(states.double(), direction.double()) > found.threshold).cpu().numpy()


def f1_interval(found: Hits, level: float, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """F1 with the percentile interval of its bootstrap distribution, each side resampled for itself.

    Resampling the prompts of a side draws how many of them the condition holds for: a binomial number. Its share is
    drawn too, from Jeffreys' posterior, or a condition that is right for all of a few prompts would be certain.
    """
    random = np.random.default_rng(seed)
    positive, negative = found.tp + found.fn, found.fp + found.tn
    tp, fp = (
        random.binomial(of, random.beta(hits + 0.5, of - hits + 0.5, resamples))
        for hits, of in ((found.tp, positive), (found.fp, negative))
    )
    drawn = 2 * tp / np.maximum(1, tp + fp + positive)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(found.f1, float(low), float(high), positive + negative, level)
