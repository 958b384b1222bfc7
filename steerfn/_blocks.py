"""What is known of a model's decoder blocks: where they are, and where each has its sites."""

import dataclasses
from collections.abc import Container, Iterable
from typing import Any

from torch import nn

from steerfn._errors import ModelError, SiteError
from steerfn._site import Site

UNMET = (
    "its block was skipped or runs with other inputs only (an image, say), or another module now stands in its place"
)
"""Why a forward pass may not meet a site."""


@dataclasses.dataclass(frozen=True)
class Addend:
    """The module whose output, times `scale`, a block adds to its stream (path from the block)."""

    path: str
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Block:
    """One decoder block and where its sites are.

    Attributes:
        path: module path from the model.
        kind: class name.
        attn: what the attention (or other mixer) adds, or None.
        mlp: what the MLP adds, or None.
        mid: path of the module that reads `resid_mid`, or None.
        projection: path of the attention output projection, whose input `head_out` slices, or None.
        heads: attention heads, 0 without `head_out`.
        d_head: width of one head, 0 without `head_out`.
        missing: why a site is missing, by kind.
    """

    path: str
    kind: str
    attn: Addend | None = None
    mlp: Addend | None = None
    mid: str | None = None
    projection: str | None = None
    heads: int = 0
    d_head: int = 0
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of site it has."""
        missing = dict(self.missing)
        return tuple(
            k for k in ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_out", "resid_post") if k not in missing
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What was found in a model: its blocks, their sites, its sizes. Print it to see.

    A model keeps one layout as long as its blocks stay as they are, so what else is found out about them is remembered
    by their layout.

    Attributes:
        model: class name of the model.
        path: path of the module that holds the blocks.
        blocks: every decoder block, in order.
        d_model: width of the residual stream.
        checked: how the finding was checked.
        idle: blocks that did not run in that check, since they run with other inputs only (an image, say).
    """

    model: str
    path: str
    blocks: tuple[Block, ...]
    d_model: int
    checked: str = "by name only"
    idle: tuple[int, ...] = ()

    @property
    def stack(self) -> str:
        """The path of the module that runs the blocks ("" for the model itself)."""
        return self.path.rpartition(".")[0]

    @property
    def n_layers(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @property
    def stream(self) -> tuple[Site, ...]:
        """The residual stream from end to end: before each block, between its sublayers where it has such a place, and
        after the last. What a block's output is, the next one reads as its input.
        """
        sites = []
        for layer, block in enumerate(self.blocks):
            sites += [Site(kind, layer) for kind in ("resid_pre", "resid_mid") if kind in block.kinds]
        return (*sites, Site("resid_post", self.n_layers - 1))

    def resolve(self, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        """Concrete sites, each of which this model has.

        Raises:
            SiteError: a layer or head out of range, or a site that the architecture lacks.
        """
        found = tuple(dict.fromkeys(s for site in sites for s in site.resolve(self.n_layers)))
        for site in found:
            block = self.blocks[site.block]
            why = dict(block.missing).get(site.kind)
            if why is not None:
                raise SiteError(f"{self.model} has no {site}: {why}. This block has {', '.join(block.kinds)}.")
            if site.head is not None and not 0 <= site.head < block.heads:
                raise SiteError(
                    f"{site} is out of range: the attention of this block has {block.heads} heads "
                    f"(0 to {block.heads - 1})."
                )
        return found

    def check_met(self, sites: Iterable[Site], met: Container[Site]) -> None:
        """Refuse sites that a forward pass has not met.

        Raises:
            SiteError: those sites.
        """
        missed = [site.name for site in sites if site not in met]
        if missed:
            raise SiteError(
                f"The forward pass of {self.model} did not meet {', '.join(missed[:8])}, so nothing can be read there: "
                f"{UNMET}; leave these sites out, or pass inputs with which they run."
            )

    def width(self, site: Site) -> int:
        """The width of the hidden state at a concrete site."""
        return self.blocks[site.block].d_head if site.kind == "head_out" else self.d_model

    def __str__(self) -> str:
        groups: list[tuple[list[int], Block]] = []
        for i, block in enumerate(self.blocks):
            same = dataclasses.replace(block, path="")
            if groups and dataclasses.replace(groups[-1][1], path="") == same:
                groups[-1][0].append(i)
            else:
                groups.append(([i], block))
        idle = f", in which blocks {', '.join(map(str, self.idle))} did not run" if self.idle else ""
        lines = [f"{self.model}: {self.n_layers} blocks, d_model {self.d_model}, checked {self.checked}{idle}"]
        for layers, block in groups:
            span = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
            where = block.path if len(layers) == 1 else f"{block.path.rpartition('.')[0]}.*"
            lines += [f"  blocks {span}: {block.kind} at {where}", *_explain(block)]
        return "\n".join(lines)


def _explain(block: Block) -> list[str]:
    """A line for each site of a block: where it is, or why it is missing."""

    def added(addend: Addend | None) -> str:
        return (
            "" if addend is None else f"output of {addend.path}" + (f" * {addend.scale:g}" if addend.scale != 1 else "")
        )

    where = {
        "resid_pre": "block input",
        "head_out": f"input of {block.projection}, {block.heads} heads of {block.d_head}",
        "attn_out": added(block.attn),
        "resid_mid": f"input of {block.mid}",
        "mlp_out": added(block.mlp),
        "resid_post": "block output",
    }
    missing = dict(block.missing)
    return [f"    {kind:<10}  {f'- ({missing[kind]})' if kind in missing else text}" for kind, text in where.items()]


def unwrapped(model: Any) -> nn.Module:
    """The module behind `torch.compile`, or a clear refusal of what is no model."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"A model is a torch module such as transformers' AutoModelForCausalLM gives, not {model!r:.80} of type "
            f"{type(model).__name__}; load one with sf.from_pretrained(name)."
        )
    return model._modules.get("_orig_mod", model)  # pyright: ignore[reportReturnType]
