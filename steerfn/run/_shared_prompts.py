"""Prompts that rows of a generation share, run once for all of them as far as their operators leave them alone.

An operator that begins at the prompt's last token leaves the keys and values of all tokens before it as they are, and
one that acts on the prompt still leaves those of the blocks below it. So the unsteered prompt runs once, up to the
last block that anyone leaves alone, and each row runs only the blocks above its own. The prompt's last token is left
to `generate`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.model import Selections, StopForward, infer, observation
from steerfn.operators import Operator, RowIds, Tokens, asks_prompts, identity, rows
from steerfn.run._capabilities import agrees, probe_once
from steerfn.run._decoding import Decoding
from steerfn.run._generate import ASSISTED
from steerfn.run._scorer import Scorer, repeats
from steerfn.run._text import pad_id, pad_rows
from steerfn.run._trunk import RecordBlocks, ReplayBlocks
from steerfn.values import resid_post

OWN_CACHE = ("past_key_values", "custom_generate", "inputs_embeds", *ASSISTED)
"""Options of `generate` that bring or need a cache of their own."""


@dataclasses.dataclass(frozen=True, eq=False)
class SharedPrompts:
    """The prompts of a batch, which have run but for their last tokens.

    Attributes:
        cache: their keys and values, a `DynamicCache`.
        selections: what scopes have selected there.
    """

    cache: Any
    selections: Selections


def prefill(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    which: Sequence[int],
    ops: Sequence[Operator | None],
    decoding: Decoding,
) -> SharedPrompts | None:
    """Run the prompts of a batch but for their last tokens; None where rows share nothing, or the model cannot do it.

    Args:
        prompts: the token ids of distinct prompts.
        which: the prompt of each row.
        ops: the operator of each row, None for unsteered.
        decoding: how the batch will be generated.
    """
    if len(which) <= len(prompts) or min(map(len, prompts)) < 2 or not _takes_cache(model, decoding.options):
        return None
    if any(op is not None and asks_prompts(op) for op in ops):  # they decide where the whole prompt is seen at once
        return None
    scorer = Scorer(model, (), ops)
    longest = max(map(len, prompts))
    if not scorer.share or scorer.root is not model or (scorer.longest is not None and longest > scorer.longest):
        return None
    ids, mask = pad_rows(prompts, pad_id(model, tokenizer), "left", scorer.device)
    prefix = _Prefix(scorer, ids[:, :-1], mask[:, :-1], [len(prompt) for prompt in prompts])
    depths = [prefix.depth(*each) for each in zip(scorer.ops, scorer.trunks, which, strict=True)]
    if max(depths) < 0 or not _resumes(scorer):  # every operator acts from the first block on
        return None
    if not all(repeats(scorer, depth) for depth in set(depths) if 0 <= depth < prefix.last):
        return None
    cache = prefix.run(which, depths, scorer.ops)
    return None if cache is None else SharedPrompts(cache, scorer.selections)


def _takes_cache(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether a `generate` with these options decodes plainly, a token a step, with the usual cache."""
    own = getattr(model, "generation_config", None)

    def value(name: str) -> Any:
        return options.get(name, getattr(own, name, None))

    one = all(value(name) in (None, 1) for name in ("num_beams", "num_return_sequences", "num_beam_groups"))
    usual = value("use_cache") is not False and value("cache_implementation") in (None, "dynamic")
    plain = all(options.get(name) is None for name in OWN_CACHE)
    return one and usual and plain and value("guidance_scale") in (None, 1)


class _Prefix:
    """The prompts of a batch but for their last tokens, padded on the left."""

    def __init__(self, scorer: Scorer, ids: Tensor, mask: Tensor, lengths: Sequence[int]) -> None:
        self.scorer, self.ids, self.mask, self.lengths = scorer, ids, mask, torch.tensor(lengths)
        self.last = scorer.at.n_layers - 1

    def depth(self, op: Operator, trunk: int, prompt: int) -> int:
        """The last block whose keys and values an operator leaves alone here; -1 where there is none."""
        length = int(self.lengths[prompt])
        own = self.ids[prompt : prompt + 1, self.ids.shape[1] - (length - 1) :].cpu()
        tokens = Tokens(torch.arange(length - 1).expand(1, -1), torch.tensor([[length]]), None, row=RowIds.of(own))
        return trunk if bool(op.touched(tokens).any()) else self.last

    def run(self, which: Sequence[int], depths: Sequence[int], ops: Sequence[Operator]) -> Any:
        """The keys and values of every row, or None where the model keeps others than the usual ones."""
        noting = RecordBlocks({depth for depth in depths if depth >= 0})
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
            own = self._pass(chosen, rows([ops[i] for i in mine]), above)
            if own is None:
                return None
            parts.append((mine, chosen, depth, own))
        return _join_caches(shared, parts, len(which), self.last + 1)

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
        entry = observation(
            scorer.root, scorer.at, op, self.lengths[chosen], trunk=around, through=around.sites,
            selections=scorer.selections,
        )  # fmt: skip
        infer(scorer.root, scorer.root, scorer.at, entry, given)
        return cache


class _Above(ReplayBlocks):
    """Repeats the noted blocks, runs the others, and ends the pass after the last, where nothing more is kept."""

    def __init__(self, noted: RecordBlocks, layer: int, chosen: Tensor, columns: int, last: int) -> None:
        if layer >= 0:
            super().__init__(noted, layer, chosen, columns)
        else:
            self.layer = layer
        self.last = last
        self.sites = tuple(resid_post[i] for i in range(last + 1))

    def __call__(self, layer: int, hidden: Tensor, run: Callable[[], Any]) -> Any:
        out = super().__call__(layer, hidden, run)
        if layer == self.last:
            raise StopForward
        return out


def _empty_cache(root: Any) -> Any:
    """A cache as `generate` would make it, where each block keeps all keys and values; else None."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = root.config.get_text_config()
    cache = DynamicCache(config=config)
    usual = all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if usual and len(cache.layers) in (0, config.num_hidden_layers) else None


def _join_caches(shared: Any, parts: Sequence[Any], count: int, layers: int) -> Any:
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


def _resumes(scorer: Scorer) -> bool:
    """Whether a model goes on from a cache of padded prompts as if it had run them itself: probed once."""

    def resume() -> Iterator[tuple[Tensor, Tensor]]:
        prompts = [list(range(5, 17)), list(range(7, 15))]
        options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        ids, mask = pad_rows(prompts, 0, "left", scorer.device)
        prefix = _Prefix(scorer, ids[:, :-1], mask[:, :-1], list(map(len, prompts)))
        which = [1, 0, 1]
        if (cache := prefix.run(which, [prefix.last] * 3, [identity] * 3)) is None:
            return
        given = {"input_ids": ids[which], "attention_mask": mask[which], "pad_token_id": 0}
        generate: Any = scorer.root.generate
        with torch.no_grad():
            plain, resumed = (
                generate(**given, **options, **more).logits[0] for more in ({}, {"past_key_values": cache})
            )
        yield resumed.float(), plain.float()

    return probe_once(scorer.root, scorer.at, "shared prompts", lambda: agrees(resume))
