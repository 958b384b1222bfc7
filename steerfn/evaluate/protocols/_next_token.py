"""What a steered model would say first: how much of it is refusing, and how far it is from the unsteered model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn._text import Text, encode
from steerfn.discover._refusal import BATCH
from steerfn.discover._refusal_score import log_odds as refusal_log_odds
from steerfn.discover.search._predict import Predictor
from steerfn.evaluate.protocols._run import Run
from steerfn.operators import Operator, identity
from steerfn.reading._budget import limit_of


@dataclasses.dataclass(frozen=True, eq=False)
class NextToken:
    """Numbers of the next token after each prompt, `[operators, prompts]`.

    Attributes:
        log_odds: `log p - log(1 - p)`, with `p` the probability of some tokens together.
        kl: the divergence `KL(unsteered || steered)`, in nats.
    """

    log_odds: np.ndarray
    kl: np.ndarray


def next_token(
    run: Run, model: Any, tokenizer: Any, prompts: Sequence[Text], ops: Sequence[Operator | None], tokens: Sequence[int]
) -> NextToken:
    """Run every prompt under every operator once, in batches of one length as far as possible.

    Args:
        run: the options.
        model: the model.
        tokenizer: its tokenizer.
        prompts: the prompts.
        ops: the operators; None is the unsteered model.
        tokens: the tokens whose log-odds are asked for.
    """
    from tqdm import tqdm

    predict = Predictor.of(model, tokenizer)
    rows = encode(tokenizer, prompts, run.chat)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    step = limit_of(run.batch_size, "prompts") or BATCH
    log_odds, kl = (np.zeros((len(ops), len(rows))) for _ in range(2))
    with (
        torch.no_grad(),
        tqdm(total=len(rows), desc="Next tokens", unit="prompt", disable=not run.progress, leave=False) as bar,
    ):
        for start in range(0, len(order), step):
            some = order[start : start + step]
            batch = [rows[i] for i in some]
            plain = predict.last(identity, batch)
            for c, op in enumerate(ops):
                logits = plain if op is None else predict.last(op, batch)
                log_odds[c, some] = refusal_log_odds(logits, list(tokens)).double().cpu().numpy()
                kl[c, some] = _divergence(plain, logits).double().cpu().numpy()
            bar.update(len(some))
    return NextToken(log_odds, kl)


def _divergence(plain: Tensor, logits: Tensor) -> Tensor:
    usual, changed = plain.log_softmax(-1), logits.log_softmax(-1)
    return torch.nn.functional.kl_div(changed, usual, reduction="none", log_target=True).sum(-1).clamp_min(0)
