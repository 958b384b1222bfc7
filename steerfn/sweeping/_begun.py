"""What rows of a generation share: their prompt, run once for all of them as far as their operators leave it alone.

An operator that begins at the prompt's last token leaves the keys and values of all tokens before it as they are, and
one that acts on the prompt still leaves those of the blocks below it. So the unsteered prompt runs once, up to the
last block that anyone leaves alone, and each row runs only the blocks above its own. The prompt's last token is left
to `generate`.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._forward import Entry, Selections
from steerfn._generate import ASSISTED
from steerfn._site import resid_post
from steerfn._substitute import device_of, substitutions_of, walk
from steerfn._text import pad_id, padded
from steerfn.operators import Operator, Tokens, identity, rows
from steerfn.operators._prompt_condition import asks_prompts
from steerfn.reading._passing import Enough, passed
from steerfn.scoring import Scorer
from steerfn.scoring._engine import repeats
from steerfn.scoring._trunk import Noting, Repeating

OWN_CACHE = ("past_key_values", "custom_generate", "inputs_embeds", *ASSISTED)
"""Options of `generate` that bring or need a cache of their own."""


@dataclasses.dataclass(frozen=True, eq=False)
class Begun:
    """A batch whose prompts have run but for their last tokens.

    Attributes:
        cache: their keys and values, a `DynamicCache`.
        selections: what scopes have selected there.
    """

    cache: Any
    selections: Selections


def begun(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    which: Sequence[int],
    ops: Sequence[Operator | None],
    hf: dict[str, Any],
) -> Begun | None:
    """The beginning of a batch, or None where rows share nothing or the model cannot take part.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: the token ids of distinct prompts.
        which: the prompt of each row.
        ops: the operator of each row, None for unsteered.
        hf: the options of `generate`.
    """
    if len(which) <= len(prompts) or min(map(len, prompts)) < 2 or not _takes_cache(model, hf):
        return None
    if any(op is not None and asks_prompts(op) for op in ops):  # they decide where the whole prompt is seen at once
        return None
    scorer = Scorer(model, (), ops)
    longest = max(map(len, prompts))
    if not scorer.share or scorer.root is not model or (scorer.longest is not None and longest > scorer.longest):
        return None
    ids, mask = padded(prompts, pad_id(model, tokenizer), "left", scorer.device)
    beginning = _Beginning(scorer, ids[:, :-1], mask[:, :-1], [len(prompt) for prompt in prompts])
    depths = [beginning.depth(*each) for each in zip(scorer.ops, scorer.trunks, which, strict=True)]
    if max(depths) < 0 or not _begins(scorer):
        return None
    if not all(repeats(scorer, depth) for depth in set(depths) if 0 <= depth < beginning.last):
        return None
    cache = beginning.run(which, depths, scorer.ops)
    return None if cache is None else Begun(cache, scorer.selections)


def _takes_cache(model: Any, hf: dict[str, Any]) -> bool:
    """Whether a `generate` with these options decodes plainly, a token a step, with the usual cache."""
    config = hf.get("generation_config") or getattr(model, "generation_config", None)

    def value(name: str) -> Any:
        return hf.get(name, getattr(config, name, None))

    one = all(value(name) in (None, 1) for name in ("num_beams", "num_return_sequences", "num_beam_groups"))
    usual = value("use_cache") is not False and value("cache_implementation") in (None, "dynamic")
    return one and usual and value("guidance_scale") in (None, 1) and all(hf.get(name) is None for name in OWN_CACHE)


class _Beginning:
    """The prompts of a batch but for their last tokens, padded on the left."""

    def __init__(self, scorer: Scorer, ids: Tensor, mask: Tensor, lengths: Sequence[int]) -> None:
        self.scorer, self.ids, self.mask, self.lengths = scorer, ids, mask, torch.tensor(lengths)
        self.last = scorer.at.n_layers - 1

    def depth(self, op: Operator, trunk: int, prompt: int) -> int:
        """The last block whose keys and values an operator leaves alone here; -1 where there is none."""
        length = int(self.lengths[prompt])
        tokens = Tokens(torch.arange(length - 1).expand(1, -1), torch.tensor([[length]]), None)
        return trunk if bool(op.touched(tokens).any()) else self.last

    def run(self, which: Sequence[int], depths: Sequence[int], ops: Sequence[Operator]) -> Any:
        """The keys and values of every row, or None where the model keeps others than the usual ones."""
        noting = Noting({depth for depth in depths if depth >= 0})
        shared = self._pass(torch.arange(len(self.lengths)), identity, noting)
        if shared is None or not noting.alone:
            return None
        parts = []
        for depth in sorted(set(depths)):
            mine = [i for i, each in enumerate(depths) if each == depth]
            chosen = torch.tensor([which[i] for i in mine])
            if depth == self.last:
                parts.append((mine, chosen, depth, None))
                continue
            above = _Above(noting, depth, chosen, self.ids.shape[1], self.last)
            found = self._pass(chosen, rows([ops[i] for i in mine]), above)
            if found is None:
                return None
            parts.append((mine, chosen, depth, found))
        return _joined(shared, parts, len(which), self.last + 1)

    def _pass(self, chosen: Tensor, op: Operator, around: Any) -> Any:
        """The cache after some prompts under an operator with resolved sites; None where it is an unusual one."""
        scorer = self.scorer
        cache = _empty_cache(scorer.root)
        if cache is None:
            return None
        where = chosen.to(self.ids.device)
        mask = self.mask[where]
        given = {"input_ids": self.ids[where], "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if "position_ids" in inspect.signature(scorer.root.forward).parameters:
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        host = substitutions_of(scorer.root, scorer.at).host
        devices = functools.partial(device_of, scorer.root, scorer.at)
        entry = Entry(host, op, devices, self.lengths[chosen], trunk=around, through=around.sites)
        entry.selections = scorer.selections
        passed(scorer.root, scorer.root, scorer.at, entry, given)
        return cache


class _Above(Repeating):
    """Repeats the noted blocks, runs the others, and ends the pass after the last, where nothing more is kept."""

    def __init__(self, noted: Noting, layer: int, chosen: Tensor, columns: int, last: int) -> None:
        if layer >= 0:
            super().__init__(noted, layer, chosen, columns)
        else:
            self.layer = layer
        self.last = last
        self.sites = tuple(resid_post[i] for i in range(last + 1))

    def __call__(self, layer: int, hidden: Tensor, run: Callable[[], Any]) -> Any:
        out = super().__call__(layer, hidden, run)
        if layer == self.last:
            raise Enough
        return out


def _empty_cache(root: Any) -> Any:
    """A cache as `generate` would make it, where each block keeps all keys and values; else None."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = root.config.get_text_config()
    cache = DynamicCache(config=config)
    usual = all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if usual and len(cache.layers) in (0, config.num_hidden_layers) else None


def _joined(shared: Any, parts: Sequence[Any], count: int, layers: int) -> Any:
    """One cache for all rows: blocks up to a row's depth from the shared prompts, the others from its own pass."""
    from transformers import DynamicCache

    out = DynamicCache()
    for layer in range(layers):
        pair = []
        for name in ("keys", "values"):
            some = [
                (
                    mine,
                    getattr(shared.layers[layer], name)[chosen] if layer <= depth else getattr(own.layers[layer], name),
                )
                for mine, chosen, depth, own in parts
            ]
            first = some[0][1]
            whole = first.new_empty(count, *first.shape[1:])
            for mine, each in some:
                whole[mine] = each
            pair.append(whole)
        out.update(*pair, layer)
    return out


_begin: "weakref.WeakKeyDictionary[Any, dict[Any, bool]]" = weakref.WeakKeyDictionary()


def _begins(scorer: Scorer) -> bool:
    """Whether a model goes on from a cache of padded prompts as if it had run them itself: asked of it once."""
    blocks, _, _ = walk(scorer.root, scorer.at.blocks[0].path)
    known = _begin.setdefault(blocks, {})
    key = (getattr(scorer.root.config, "_attn_implementation", None), getattr(scorer.root, "dtype", None))
    if key not in known:
        known[key] = contextvars.Context().run(_same_begun, scorer)
    return known[key]


def _same_begun(scorer: Scorer) -> bool:
    prompts = [list(range(5, 17)), list(range(7, 15))]
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    # A model may refuse in any way it likes: then it cannot.
    with contextlib.suppress(Exception):
        ids, mask = padded(prompts, 0, "left", scorer.device)
        beginning = _Beginning(scorer, ids[:, :-1], mask[:, :-1], list(map(len, prompts)))
        which = [1, 0, 1]
        cache = beginning.run(which, [beginning.last] * 3, [identity] * 3)
        given = {"input_ids": ids[which], "attention_mask": mask[which], "pad_token_id": 0}
        generate: Any = scorer.root.generate
        with torch.no_grad():
            expected = generate(**given, **options).logits[0].float()
            found = generate(**given, **options, past_key_values=cache).logits[0].float()
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
        return cache is not None and bool(error.max() < 2e-2)
    return False
