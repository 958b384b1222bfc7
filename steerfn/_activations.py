"""Reading many texts: batches without waste, the forward pass stopped as soon as everything is read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn import _forward
from steerfn._errors import DataError
from steerfn._forward import Entry
from steerfn._layout import layout, unwrapped
from steerfn._site import Site, as_sites
from steerfn._struct import static, struct
from steerfn._substitute import device_of, substitutions_of
from steerfn._text import as_texts, encode, input_device, pad_id, padded
from steerfn._types import Activations
from steerfn.operators import Info, Operator

Position = str | int | Callable[[list[int]], int]
"""Where to read: "last" (real token), "mean" (over real tokens), an index, or a function of the token ids."""

TOKENS = 4096
"""Tokens, padding included, that `batch_size="auto"` puts into one batch."""


class _AllRead(BaseException):
    """Ends a forward pass once every wanted site has been read."""


@struct
class _Reader:
    weights: Any
    store: Any
    wanted: Any

    def __call__(self, hidden: Tensor, info: Info) -> Tensor:
        state = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        self.store[info.site] = torch.einsum("bs,bsd->bd", self.weights.to(state.device, state.dtype), state)
        if len(self.store) == self.wanted:
            raise _AllRead
        return hidden


@struct
class _Read(Operator):
    at_sites: tuple[Site, ...] = static()
    weights: Tensor = static()
    store: Any = static()

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.at_sites

    def bind(self, site: Site, device: Any = None) -> Any:
        del site, device
        return _Reader(weights=self.weights, store=self.store, wanted=len(self.at_sites))


def read(
    model: Any,
    tokenizer: Any,
    texts: Any,
    sites: Any,
    *,
    position: Position = "last",
    batch_size: int | str = "auto",
    chat: bool | None = False,
    progress: bool = True,
    what: str = "texts",
) -> Iterator[tuple[list[int], dict[Site, Tensor]]]:
    """The activations of texts, batch by batch: indices into `texts`, and `[rows, width]` by site.

    Batches come longest text first; each text is read once. See `activations` for the arguments.
    """
    found = as_texts(texts, what)
    root = unwrapped(model)
    at = layout(root)
    wanted = at.resolve(as_sites(sites))
    rows = encode(tokenizer, found, chat)
    weights = [_weights(ids, position) for ids in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    return _batches(model, root, at, wanted, rows, weights, order, _size(batch_size), pad_id(tokenizer), progress)


def _batches(
    model: Any,
    root: Any,
    at: Any,
    wanted: Any,
    rows: Any,
    weights: Any,
    order: list[int],
    size: int | None,
    pad: int,
    progress: bool,
) -> Iterator[tuple[list[int], dict[Site, Tensor]]]:
    from tqdm import tqdm

    limit = size
    with tqdm(total=len(order), desc="Reading activations", unit="text", disable=not progress, leave=False) as bar:
        start = 0
        while start < len(order):
            count = limit or max(1, TOKENS // len(rows[order[start]]))
            chosen = order[start : start + count]
            try:
                states = _forward_once(
                    model, root, at, wanted, [rows[i] for i in chosen], [weights[i] for i in chosen], pad
                )
            except torch.OutOfMemoryError:
                if len(chosen) == 1 or size is not None:
                    raise
                limit = len(chosen) // 2
                continue
            yield chosen, states
            start += len(chosen)
            bar.update(len(chosen))


def _forward_once(
    model: Any,
    root: Any,
    at: Any,
    wanted: tuple[Site, ...],
    rows: list[list[int]],
    weights: list[list[float]],
    pad: int,
) -> dict[Site, Tensor]:
    """One batch, padded on the right: in a causal model no real token sees what comes after it."""
    ids, mask = padded(rows, pad, "right", input_device(root))
    spread = torch.zeros(ids.shape)
    for i, row in enumerate(weights):
        spread[i, : len(row)] = torch.tensor(row)
    store: dict[Site, Tensor] = {}
    substitutions = substitutions_of(root, at)
    entry = Entry(substitutions.host, _Read(wanted, spread, store), lambda site: device_of(root, at, site))
    substitutions.open(root, at, entry, {})
    token = _forward.active.set((*_forward.active.get(), entry))
    try:
        with torch.no_grad():
            root(input_ids=ids, attention_mask=mask, use_cache=False)
    except _AllRead:
        pass
    finally:
        _forward.active.reset(token)
        substitutions.close(entry)
    return {site: store[site] for site in wanted}


def _size(batch_size: int | str) -> int | None:
    if batch_size == "auto":
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch_size is 'auto' or a number of texts from 1, not {batch_size!r}.")
    return batch_size


def _weights(ids: list[int], position: Position) -> list[float]:
    """How much each token of a text counts in what is read of it."""
    if position == "mean":
        return [1 / len(ids)] * len(ids)
    where: Any = -1 if position == "last" else position(list(ids)) if callable(position) else position
    if isinstance(where, bool) or not isinstance(where, int):
        raise DataError(f"position is 'last', 'mean', an index or a function of the token ids, not {where!r}.")
    if not -len(ids) <= where < len(ids):
        raise DataError(
            f"Position {where} is outside a text of {len(ids)} tokens; use an index it has, 'last' or 'mean'."
        )
    weights = [0.0] * len(ids)
    weights[where] = 1.0
    return weights


def activations(
    model: Any,
    tokenizer: Any,
    texts: Any,
    sites: Any,
    position: Position = "last",
    *,
    batch_size: int | str = "auto",
    chat: bool | None = False,
    progress: bool = True,
) -> dict[Site, Activations]:
    """The hidden state of each text at some sites, one row for each text, in the given order.

    Texts are batched by length and padded on the right, so no padding is ever read and batching changes a row
    by float rounding only; the forward pass stops as soon as the deepest site is read. Inside a steering
    context of the calling thread the values are the steered ones.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        texts: a list of texts or of conversations (`[{"role": ..., "content": ...}]`).
        sites: one or several; an int means `resid_post`.
        position: "last" real token, "mean" over all tokens (special ones included), an index into the tokens, or
            a function from the list of token ids to an index.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        chat: True wraps texts in the chat template; None does so where there is one; False takes them as they are.
        progress: show a progress bar on stderr.

    Returns:
        `{site: Float[Tensor, "texts d_model"]}` on the CPU, in at least float32.

    Raises:
        DataError: no texts, an empty one, a position outside a text.
        SiteError: a site that the model lacks.

    Example:
        >>> import steerfn as sf
        >>> sf.activations(model, tokenizer, ["Hello there.", "Good night."], 12)  # doctest: +SKIP
    """
    found: dict[Site, Tensor] = {}
    batches = read(
        model, tokenizer, texts, sites, position=position, batch_size=batch_size, chat=chat, progress=progress
    )
    total = len(as_texts(texts, "texts"))
    for chosen, states in batches:
        for site, state in states.items():
            if site not in found:
                found[site] = torch.empty(total, state.shape[-1], dtype=state.dtype)
            found[site][chosen] = state.cpu()
    return found


def token_read(
    tokenizer: Any, texts: Sequence[Any], position: Position = "last", chat: bool | None = False
) -> list[str]:
    """The text of the token that is read of each text (for "mean", all of it), to see what is measured."""
    rows = encode(tokenizer, as_texts(texts, "texts"), chat)
    return [tokenizer.decode([t for t, w in zip(row, _weights(row, position), strict=True) if w]) for row in rows]
