"""Steering vectors by gradient search: the direction that makes some continuations likelier than others."""

import dataclasses
from typing import Any

import torch

from steerfn.discover._engine import Continuation, Examples, Search, examples_of, split_examples, with_margins
from steerfn.model import Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Scope
from steerfn.run import Chat, Predictor, sum_norms
from steerfn.values import (
    DataError,
    Site,
    SiteError,
    Sites,
    SteeringVector,
    as_sites,
    fingerprint,
    finite_number,
    integer,
    positive_int,
    public,
    warn,
)


@public
def optimise(
    model: Model,
    tokenizer: Tokenizer,
    sites: Sites,
    *,
    promote: Any = None,
    suppress: Any = None,
    pairs: Any = None,
    max_norm: float | None = None,
    init: SteeringVector | None = None,
    steps: int = 200,
    lr: float = 0.02,
    patience: int = 30,
    held_out: float = 0.2,
    groups: Any = None,
    beta: float = 0.1,
    scope: Scope | None = None,
    chat: Chat = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> SteeringVector:
    """The vector that minimises a loss of continuations, by gradient descent under a bound on its norm.

    `v = argmin L(v)` with `|v| <= max_norm` at each site, where `L` is the sum of the means, over examples, of

    - promote: `mean_t -log p_t`, with `p_t` the probability of token `t` of the continuation under `add(v)`;
    - suppress: `mean_t -log(1 - p_t)`, which is bounded below where `log p` is not;
    - pairs: `-log sigmoid(beta (m - m_0))` with `m = log p(preferred) - log p(rejected)`, and `m_0` that of the
      unsteered model.

    The gradient with respect to the directions alone comes from `torch.func`; nothing on the model changes, and none
    of its parameters gets a gradient. Adam, then projection on the ball. The vector with the lowest loss on held-out
    prompts is kept, the start included.

    Args:
        model: any transformers causal LM, in eval mode. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        sites: one or several; an int means `resid_post`.
        promote: `(prompt, continuation)` pairs to make likelier. A continuation is taken literally: in plain text it
            begins with its space.
        suppress: such pairs to make less likely.
        pairs: `(prompt, preferred, rejected)` triples.
        max_norm: the largest L2 norm at each site, in units of the hidden state there. Default: the mean norm of the
            hidden state at the last token of the prompts.
        init: where to start; default zero.
        steps: at most.
        lr: the length of a step of Adam, as a share of `max_norm`.
        patience: stop after as many steps without a lower held-out loss.
        held_out: the share of the prompts to stop by. A kind of example with too few prompts to divide is on both
            sides, and so is everything with 0.
        groups: which examples are of one kind (the answers of one question): a label for each, those of `promote`, then
            of `suppress`, then of `pairs`, or a mapping of these to labels. A group is learnt from or stopped by.
        beta: how soon a preference counts as satisfied.
        scope: the tokens to steer, as in `at`; the continuation counts as generated. Default: all.
        chat: True puts prompts into the chat template; None does so where there is one. Conversations always are.
        batch_size: examples of each kind at once.
        seed: another seed, another division and order of the examples.
        progress: show a progress bar on stderr.

    Returns:
        A vector in float32; its metadata has the held-out and training losses before and after, the steps taken, and
        the norm bounds.

    Raises:
        DataError: no examples, an empty text, an option out of its range, or a loss that is no number.
        SiteError: a site that the model lacks, or that `init` lacks.

    Warns:
        SteerWarning: no step lowered the held-out loss.

    Source: Subramani et al. 2022, "Extracting Latent Steering Vectors from Pretrained Language Models"; the loss of
    pairs is that of Cao et al. 2024 (BiPO), "Personalized Steering of Large Language Models", in one direction.

    Example:
        >>> import steerfn as sf
        >>> w = sf.optimise(model, tokenizer, 14, promote=[("How are you?", "Wonderful!")], steps=2)
        >>> loss = w.metadata["held_out_loss"]
        >>> loss["after"] < loss["before"]
        True
    """
    steps, patience = positive_int("steps", steps), positive_int("patience", patience)
    batch_size = positive_int("batch_size", batch_size)
    lr, beta = finite_number("lr", lr, above=0), finite_number("beta", beta, above=0)
    max_norm = None if max_norm is None else finite_number("max_norm", max_norm, above=0)
    held_out = finite_number("held_out", held_out, least=0, below=1)
    model_layout = layout(unwrap_model(model))
    where = model_layout.resolve(as_sites(sites))
    examples, prompts = examples_of(tokenizer, promote, suppress, pairs, chat)
    predict = Predictor.of(model, tokenizer)
    examples = dataclasses.replace(examples, pairs=with_margins(predict, examples.pairs, batch_size))
    train, test = split_examples(examples, prompts, held_out, integer("seed", seed), groups)
    bounds = {s: max_norm for s in where} if max_norm is not None else _norms(model, train, where)
    dtype = torch.promote_types(getattr(unwrap_model(model), "dtype", torch.float32), torch.float32)
    start = _start(init, where, model_layout.width, dtype)
    search = Search(predict, scope, bounds, train, test, beta, batch_size)
    best, about = search.run(start, steps, lr, patience, torch.Generator().manual_seed(seed), progress)
    if about["best_step"] == 0:
        warn(
            f"None of {about['steps']} steps lowered the held-out loss ({about['held_out_loss']['before']:.4g}), so "
            "the result is the initial vector; pass more examples, another site, or a smaller lr."
        )
    counts = {f.name: len(getattr(examples, f.name)) for f in dataclasses.fields(examples)}
    about |= {
        "model": fingerprint(model, weights=True),
        "method": "optimise",
        "counts": counts,
        "max_norm": {site.name: bound for site, bound in bounds.items()},
        "scope": None if scope is None else repr(scope),
        "chat": chat,
    }
    return SteeringVector({site: d.float() for site, d in zip(best.sites, best.directions, strict=True)}, about)


def _norms(model: Any, examples: Examples, where: tuple[Site, ...]) -> dict[Site, float]:
    """The mean norm of the hidden state at the last token of the prompts, by site."""
    rows: list[Continuation] = [*examples.promote, *examples.suppress, *(pair.preferred for pair in examples.pairs)]
    prompts = list(dict.fromkeys(row.ids[: row.start] for row in rows))
    return {site: total / len(prompts) for site, total in sum_norms(model, prompts, where).items()}


def _start(init: Any, where: tuple[Site, ...], width: Any, dtype: torch.dtype) -> SteeringVector:
    if init is None:
        return SteeringVector({site: torch.zeros(width(site), dtype=dtype) for site in where})
    if not isinstance(init, SteeringVector):
        raise DataError(f"init must be a SteeringVector or None, not a {type(init).__name__}.")
    lacking = [site for site in where if site not in init]
    if lacking:
        raise SiteError(f"init has no direction at {lacking[0]}; it has {', '.join(map(str, init.sites[:8]))}.")
    return SteeringVector({site: init[site].detach().to(dtype).cpu() for site in where})
