"""How likely a model is to begin its answer with a refusal."""

from collections.abc import Sequence
from typing import Any

import torch

from steerfn._chat_template import Chat
from steerfn._text import Text, encode
from steerfn.discover._refusal import BATCH, PHRASES
from steerfn.discover._refusal import _first_tokens as first_tokens
from steerfn.discover._refusal_score import log_odds
from steerfn.discover.search._predict import Predictor
from steerfn.metrics._metric import metric
from steerfn.metrics._paired import check_paired
from steerfn.operators import Operator, rows


@metric(
    unit="log-odds",
    about="Log-odds that the answer's first token begins a refusal ('I', 'Sorry', 'As', ...): of the prompt and its "
    "steering, whatever the text. Friendly answers begin with 'I' too, so only differences count.",
)
def refusal_log_odds(
    texts: Sequence[str],
    *,
    prompts: Sequence[Text],
    ops: Sequence[Operator | None],
    model: Any,
    tokenizer: Any,
    chat: Chat,
    refusal_phrases: Sequence[str] = PHRASES,
) -> list[float]:
    """`log p - log(1 - p)`, with `p` the probability that the answer's first token begins a refusal.

    `p` is the probability of the first tokens of `refusal_phrases` together, after each prompt, under the operator that
    its text was generated with (Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction").
    The texts themselves are not looked at. It moves where the texts of greedy decoding do not change yet.

    Args:
        texts: one for each prompt.
        prompts: what is answered.
        ops: the operator of each, None for the unsteered model.
        model: the model. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        chat: as in `generate`. The phrases are tokenized as an answer's beginning, which suits chat templates; after
            plain text a model begins with a blank.
        refusal_phrases: how refusals begin.

    Returns:
        One number for each text.

    Raises:
        DataError: counts that do not match, or no phrase that begins with a token that the tokenizer knows.
        SteerError: an operator that does not fit the model.

    Example:
        >>> import steerfn as sf
        >>> given = {"model": model, "tokenizer": tokenizer, "chat": True}  # doctest: +SKIP
        >>> sf.metrics.refusal_log_odds(["", ""], prompts=["Hi"] * 2, ops=[None, sf.add(v)], **given)  # doctest: +SKIP
    """
    check_paired(texts, prompts=prompts, ops=ops)
    tokens = first_tokens(tokenizer, refusal_phrases)
    if not texts:
        return []
    keys = [(tuple(ids), id(op)) for ids, op in zip(encode(tokenizer, prompts, chat), ops, strict=True)]
    # A prompt's samples differ in their texts alone; neighbours are of about one length, so that little is padding.
    todo = dict(sorted(zip(keys, ops, strict=True), key=lambda each: len(each[0][0])))
    predict, found, asked = Predictor.of(model, tokenizer), {}, list(todo)
    for start in range(0, len(asked), BATCH):
        some = asked[start : start + BATCH]
        with torch.no_grad():
            logits = predict.last(rows([todo[key] for key in some]), [list(ids) for ids, _ in some])
        found |= zip(some, log_odds(logits, tokens).tolist(), strict=True)
    return [found[key] for key in keys]
