"""The refusal direction's own evaluation: harmful and harmless requests, the direction removed and added."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import Unpack

from steerfn._blocks import unwrapped
from steerfn._layout import layout
from steerfn._vector import SteeringVector
from steerfn.discover import spread
from steerfn.discover._refusal import PHRASES
from steerfn.discover._refusal import _first_tokens as first_tokens
from steerfn.evaluate._outcome import STEERED, Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._tally import outcome
from steerfn.evaluate.protocols._data import sides_of
from steerfn.evaluate.protocols._next_token import next_token
from steerfn.evaluate.protocols._run import Options, Run
from steerfn.metrics._metric import Setting, as_metrics, measure
from steerfn.operators import Operator, ablate, add

SOURCE = "Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction"
SIDES = ("harmful", "harmless")
WAYS = ("ablated", "added")


def refusal(
    model: Any,
    tokenizer: Any,
    vec: Any,
    data: Any,
    *,
    alpha: float = 1.0,
    sites: Any = None,
    refusal_phrases: Sequence[str] = PHRASES,
    max_new_tokens: int = 64,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """Does a direction carry refusal: is it gone when the direction is ablated, and there when it is added?

    Harmful and harmless requests are answered with the direction removed from the whole residual stream (`ablated`) and
    with `alpha` times the vector added at its site, on all tokens (`added`).

    Figures, each as `{ablated,added}_{harmful,harmless}_...`:

    - `refused`: the share of answers with one of the phrases of `sf.metrics.refusal` (Wilson's interval). It is not how
      harmful an answer is: a model that babbles refuses nothing;
    - `log_odds`: `log p - log(1 - p)`, with `p` the probability that the next token begins a refusal;
    - `kl` (harmless requests only): `KL(unsteered || steered)` of the next token, in nats, the paper's bound on side
      effects.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vec: the direction, at one site, such as `sf.refusal_direction` finds.
        data: `{"harmful": ..., "harmless": ...}`, each a list of requests or the path of a file of them.
        alpha: the strength with which it is added.
        sites: where it is ablated; default `vec.metadata["ablated_at"]`, or the residual stream of every block.
        refusal_phrases: how refusals begin; their first tokens count for `log_odds`.
        max_new_tokens: tokens of an answer at most. The paper has 512; a refusal begins early.
        generation: more of what transformers' `generate` takes.
        options: what every protocol takes, see `Options`; `limit` counts on either side.

    Raises:
        DataError: data without the two sides, or no phrase that begins with a token that the tokenizer knows.
        FileError: a file that cannot be read.
        SiteError: a vector with several sites.

    Source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction", sections 2 and 3.

    Example:
        >>> import steerfn as sf
        >>> data = {"harmful": "harmful_test.json", "harmless": ["How do I bake bread?"]}
        >>> print(sf.protocols.refusal(model, tokenizer, v, data, limit=50))  # doctest: +SKIP
    """
    run = Run.of("refusal", options)
    sides = {name: run.chosen(texts) for name, texts in sides_of(data, SIDES).items()}
    prompts = [prompt for side in sides.values() for prompt in side]
    ops = operators(run, model, vec, alpha, sites)
    tokens = first_tokens(tokenizer, refusal_phrases)
    texts = run.texts(model, tokenizer, prompts, list(ops.values()), max_new_tokens, generation)
    said = next_token(run, model, tokenizer, prompts, list(ops.values()), tokens)
    numbers = {
        key: {"refused": row, "log_odds": said.log_odds[c], "kl": said.kl[c]}
        for c, (key, row) in enumerate(zip(ops, refused(texts), strict=True))
    }
    is_harmful = np.arange(len(prompts)) < len(sides[SIDES[0]])
    labels = [SIDES[0] if harmful else SIDES[1] for harmful in is_harmful]
    about = {"alpha": alpha, "sites": sites, "refusal_phrases": list(refusal_phrases)}
    return outcome(
        run.protocol,
        SOURCE,
        figures(numbers, {SIDES[0]: is_harmful, SIDES[1]: ~is_harmful}),
        rates=[f"{way}_{side}_refused" for way in WAYS for side in SIDES],
        compared=[
            "ablated_harmful_refused",
            "ablated_harmful_log_odds",
            "added_harmless_refused",
            "added_harmless_log_odds",
        ],
        records=[
            {"item": p, "condition": condition, "way": way, "side": side, "prompt": prompt, "text": texts[c][p]}
            | {name: float(row[p]) for name, row in numbers[condition, way].items()}
            for c, (condition, way) in enumerate(ops)
            for p, (prompt, side) in enumerate(zip(prompts, labels, strict=True))
        ],
        about=run.about(
            model, list(ops.values()), sides, **about, max_new_tokens=max_new_tokens, generation=generation
        ),
        draws=run.draws,
        level=run.level,
        seed=run.seed,
    )


def operators(run: Run, model: Any, vec: Any, alpha: float, sites: Any) -> dict[tuple[str, str], Operator | None]:
    """By condition and way, how the vector and its controls are removed and added; one unsteered condition."""
    vectors = run.vectors(vec)
    found: dict[tuple[str, str], Operator | None] = {}
    for condition, vector in vectors.items():
        found[condition, "ablated"] = ablate(spread(vector, _everywhere(model, vectors[STEERED], sites)))
        found[condition, "added"] = add(vector, alpha)
        found[UNSTEERED, ""] = None
    return found


def _everywhere(model: Any, vec: SteeringVector, sites: Any) -> Any:
    return (vec.metadata.get("ablated_at") or layout(unwrapped(model)).stream) if sites is None else sites


def refused(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Whether each text refuses, by the phrases of `sf.metrics.refusal`: 1 or 0, `[operators, prompts]`."""
    flat = [text for row in texts for text in row]
    [found] = measure(as_metrics("refusal"), flat, Setting()).values()
    return np.nan_to_num(found).reshape(len(texts), -1)  # an empty answer refuses nothing in words


def figures(
    numbers: Mapping[tuple[str, str], Mapping[str, np.ndarray]], sides: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """The figures by condition; the unsteered model is what either way is compared with."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for condition in dict.fromkeys(condition for condition, _ in numbers):
        found[condition] = {
            f"{way}_{side}_{name}": values[where]
            for way in WAYS
            for side, where in sides.items()
            for name, values in numbers[condition, "" if condition == UNSTEERED else way].items()
            if name != "kl" or (side == "harmless" and condition != UNSTEERED)
        }
    return found
