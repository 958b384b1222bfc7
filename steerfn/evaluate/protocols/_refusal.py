"""The refusal direction's own evaluation: harmful and harmless requests, the direction removed and added.

And what a steered model would say first: how much of it is refusing, and how far it is from the unsteered model.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from steerfn.discover import spread
from steerfn.evaluate._outcome import STEERED, Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate.protocols._data import Items, sides_of
from steerfn.evaluate.protocols._run import ProtocolOptions, ProtocolRun
from steerfn.metrics import BATCH, PHRASES, Setting, as_metrics, divergence, measure
from steerfn.metrics import log_odds as refusal_log_odds
from steerfn.metrics import refusal_tokens as first_tokens
from steerfn.model import Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Operator, ablate, add, identity
from steerfn.output import progress_bar
from steerfn.run import Predictor, encode, limit_of
from steerfn.values import Sites, SteeringVector, public

SOURCE = "Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction"
SIDES = ("harmful", "harmless")
WAYS = ("ablated", "added")
COMPARED = ("ablated_harmful", "added_harmless")
"""Where a way is meant to change something: each further comparison makes all p-values larger."""


@public
def refusal(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    data: Mapping[str, Items],
    *,
    alpha: float = 1.0,
    sites: Sites | None = None,
    refusal_phrases: Sequence[str] = PHRASES,
    max_new_tokens: int = 64,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[ProtocolOptions],
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
        vector: the direction, at one site, such as `sf.discover.refusal_direction` finds.
        data: `{"harmful": ..., "harmless": ...}`, each a list of requests or the path of a file of them.
        alpha: the strength with which it is added.
        sites: where it is ablated; default `vector.metadata["ablated_at"]`, or the residual stream of every block.
        refusal_phrases: how refusals begin; their first tokens count for `log_odds`.
        max_new_tokens: tokens of an answer at most. The paper has 512; a refusal begins early.
        generation: more of what transformers' `generate` takes.
        options: what every protocol takes, see `ProtocolOptions`; `limit` counts on either side, and `groups` has the
            labels of the harmful requests before those of the harmless ones, or is a mapping as `data` is.

    Raises:
        DataError: data without the two sides, or no phrase that begins with a token that the tokenizer knows.
        FileError: a file that cannot be read.
        SiteError: a vector with several sites.

    Source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction", sections 2 and 3.

    Example:
        >>> import steerfn as sf
        >>> data = {"harmful": ["How do I steal a car?"], "harmless": ["How do I bake bread?"]}
        >>> outcome = sf.protocols.refusal(model, tokenizer, v, data, sites=[14], max_new_tokens=1, controls=0)
        >>> outcome.figures["added_harmless_kl"].mean > 0
        True
    """
    run = ProtocolRun.of("refusal", options)
    chosen = run.select_items_by_kind(sides_of(data, SIDES))
    sides = {name: texts for name, (texts, _) in chosen.items()}
    prompts = [prompt for side in sides.values() for prompt in side]
    ops = operators(run, model, vector, alpha, sites)
    tokens = first_tokens(tokenizer, refusal_phrases)
    decoding = run.decoding(model, tokenizer, max_new_tokens, generation)
    encoded = encode(tokenizer, prompts, decoding.chat)
    texts = run.texts(model, tokenizer, encoded, list(ops.values()), decoding)
    predicted = next_token(run, Predictor.of(model, tokenizer), encoded, list(ops.values()), tokens)
    numbers = {
        key: {"refused": row, "log_odds": predicted.log_odds[c], "kl": predicted.kl[c]}
        for c, (key, row) in enumerate(zip(ops, refusals(texts), strict=True))
    }
    is_harmful = np.arange(len(prompts)) < len(sides[SIDES[0]])
    labels = [SIDES[0] if harmful else SIDES[1] for harmful in is_harmful]
    values = figures(numbers, {SIDES[0]: is_harmful, SIDES[1]: ~is_harmful})
    return run.outcome(
        SOURCE,
        values,
        rates=[f"{way}_{side}_refused" for way in WAYS for side in SIDES],
        compared=[f"{each}_{name}" for each in COMPARED for name in ("refused", "log_odds")],
        records=[
            {"item": p, "condition": condition, "way": way, "side": side, "prompt": prompt, "text": texts[c][p]}
            | {name: float(row[p]) for name, row in numbers[condition, way].items()}
            for c, (condition, way) in enumerate(ops)
            for p, (prompt, side) in enumerate(zip(prompts, labels, strict=True))
        ],
        about=run.about(
            model, list(ops.values()), sides, alpha=alpha, sites=sites, refusal_phrases=list(refusal_phrases),
            max_new_tokens=max_new_tokens, generation=generation, decoding=decoding.name,
        ),
        units={name: chosen[name.split("_")[1]][1] for name in values[STEERED]},
    )  # fmt: skip


def operators(
    run: ProtocolRun, model: Any, vec: Any, alpha: float, sites: Any
) -> dict[tuple[str, str], Operator | None]:
    """By condition and way, how the vector and its controls are removed and added; one unsteered condition."""
    vectors = run.vectors(model, vec)
    ops: dict[tuple[str, str], Operator | None] = {}
    for condition, vector in vectors.items():
        ops[condition, "ablated"] = ablate(spread(vector, _everywhere(model, vectors[STEERED], sites)))
        ops[condition, "added"] = add(vector, alpha)
        ops[UNSTEERED, ""] = None
    return ops


def _everywhere(model: Any, vec: SteeringVector, sites: Any) -> Any:
    return (vec.metadata.get("ablated_at") or layout(unwrap_model(model)).stream) if sites is None else sites


def refusals(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Whether each text refuses, by the phrases of `sf.metrics.refusal`: 1 or 0, `[operators, prompts]`."""
    flat = [text for row in texts for text in row]
    [values] = measure(as_metrics("refusal"), flat, Setting()).values()
    return np.nan_to_num(values).reshape(len(texts), -1)  # an empty answer refuses nothing in words


def figures(
    numbers: Mapping[tuple[str, str], Mapping[str, np.ndarray]], sides: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """The figures by condition; the unsteered model is what either way is compared with."""
    by_condition: dict[str, dict[str, np.ndarray]] = {}
    for condition in dict.fromkeys(condition for condition, _ in numbers):
        by_condition[condition] = {
            f"{way}_{side}_{name}": values[where]
            for way in WAYS
            for side, where in sides.items()
            for name, values in numbers[condition, "" if condition == UNSTEERED else way].items()
            if name != "kl" or (side == "harmless" and condition != UNSTEERED)
        }
    return by_condition


@dataclasses.dataclass(frozen=True, eq=False)
class NextTokenShift:
    """Numbers of the next token after each prompt, `[operators, prompts]`.

    Attributes:
        log_odds: `log p - log(1 - p)`, with `p` the probability of some tokens together.
        kl: the divergence `KL(unsteered || steered)`, in nats.
    """

    log_odds: np.ndarray
    kl: np.ndarray


def next_token(
    run: ProtocolRun,
    predict: Predictor,
    rows: Sequence[Sequence[int]],
    ops: Sequence[Operator | None],
    tokens: Sequence[int],
) -> NextTokenShift:
    """Run every prompt (its token ids) under every operator once, in batches of one length as far as possible."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    step = limit_of(run.batch_size) or BATCH
    log_odds, kl = (np.zeros((len(ops), len(rows))) for _ in range(2))
    with (
        torch.no_grad(),
        progress_bar("Next tokens", "prompt", run.progress, total=len(rows)) as bar,
    ):
        for start in range(0, len(order), step):
            some = order[start : start + step]
            batch = [rows[i] for i in some]
            plain = predict.last(identity, batch)
            for c, op in enumerate(ops):
                logits = plain if op is None else predict.last(op, batch)
                log_odds[c, some] = refusal_log_odds(logits, list(tokens)).double().cpu().numpy()
                kl[c, some] = divergence(plain, logits).double().cpu().numpy()
            bar.update(len(some))
    return NextTokenShift(log_odds, kl)
