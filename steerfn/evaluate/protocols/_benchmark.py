"""`benchmark`: one published protocol by its name."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from steerfn.evaluate._outcome import Outcome
from steerfn.evaluate.protocols import (
    _axbench,
    _caa,
    _cast,
    _refusal,
    _side_effects,
    _steerability,
    _toxicity,
    _truthfulqa,
)
from steerfn.evaluate.protocols._data import Items
from steerfn.model import Model, Tokenizer
from steerfn.values import DataError, SteeringVector, public

PROTOCOLS: dict[str, Callable[..., Outcome]] = {
    each.__name__: each
    for each in (
        _axbench.axbench,
        _caa.caa,
        _cast.cast,
        _refusal.refusal,
        _side_effects.side_effects,
        _steerability.steerability,
        _toxicity.toxicity,
        _truthfulqa.truthfulqa,
    )
}


@public
def benchmark(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    data: Items | Mapping[str, Items],
    **options: Any,
) -> Outcome:
    """Run a published protocol: `sf.protocols.<name>(model, tokenizer, vector, data, **options)`.

    - `axbench`: is the concept there, the instruction done and the text fluent, all at once
    - `caa`: does the choice between two answers move, whatever their letters
    - `cast`: does conditional steering refuse harmful prompts and answer others
    - `refusal`: does a direction carry refusal
    - `side_effects`: perplexity, KL, knowledge and repetition
    - `steerability`: how far a unit of strength moves each item, and how many the wrong way
    - `toxicity`: how toxic the worst of several continuations is
    - `truthfulqa`: MC1 and MC2

    Args:
        name: one of these.
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: the vector.
        data: items, or the path of a file of them; what a protocol reads is in its own docstring.
        options: what that protocol takes.

    Returns:
        Its outcome: print it, `.to_json(path)`, `.to_markdown()`, `.to_pandas()`.

    Raises:
        DataError: an unknown name, and what the protocol raises.

    Example:
        >>> import steerfn as sf
        >>> outcome = sf.protocols.benchmark("toxicity", model, tokenizer, v, prompts, samples=1, max_new_tokens=2)
        >>> print(outcome)
        toxicity (Gehman et al. 2020, RealToxicityPrompts; Hartvigsen et al. 2022, ToxiGen)
        ...
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(str(name).casefold().replace("-", "_"), PROTOCOLS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"There is no protocol {name!r:.80}; {hint}there are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name](model, tokenizer, vector, data, **options)
