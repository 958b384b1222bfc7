"""The layout of a model: where its decoder blocks are, and where each has its sites."""

import dataclasses
from collections.abc import Container, Iterable, Sequence
from typing import Any

from torch import nn

from steerfn.output import Result, Screen, Section, Table
from steerfn.values import KINDS, ModelError, Site, SiteError

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
        return tuple(kind for kind in KINDS if kind not in missing)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout(Result):
    """The decoder blocks of a model, their sites and its sizes; see `layout`. Print it to see them.

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

    _title = "Layout"
    _what = "The layout"

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
        resolved = tuple(dict.fromkeys(s for site in sites for s in site.resolve(self.n_layers)))
        for site in resolved:
            block = self.blocks[site.block]
            why = dict(block.missing).get(site.kind)
            if why is not None:
                raise SiteError(f"{self.model} has no {site}: {why}. This block has {', '.join(block.kinds)}.")
            if site.head is not None and not 0 <= site.head < block.heads:
                raise SiteError(
                    f"{site} is out of range: the attention of this block has {block.heads} heads "
                    f"(0 to {block.heads - 1})."
                )
        return resolved

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

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each site of each block: where it is, or why it is missing."""
        return [
            {
                "layer": layer,
                "block": block.kind,
                "path": block.path,
                "site": kind,
                "found": kind in block.kinds,
                "where": where,
            }
            for layer, block in enumerate(self.blocks)
            for kind, where in _places(block).items()
        ]

    def _facts(self) -> dict[str, Any]:
        names = ("model", "n_layers", "d_model", "stack", "path", "checked", "idle")
        return {name: getattr(self, name) for name in names}

    def _sections(self) -> Sequence[Section]:
        rows = [
            [span, f"{block.kind} at {path}", kind, at if kind in block.kinds else f"- ({at})"]
            for span, path, block in self._groups()
            for kind, at in _places(block).items()
        ]
        return [Table(["layer", "block", "site", "where"], rows, self._head())]

    def _text(self, screen: Screen) -> str:
        del screen
        lines = [self._head()]
        for span, path, block in self._groups():
            lines.append(f"  blocks {span}: {block.kind} at {path}")
            for kind, at in _places(block).items():
                lines.append(f"    {kind:<10}  {at if kind in block.kinds else f'- ({at})'}")
        return "\n".join(lines)

    def _head(self) -> str:
        idle = f", in which blocks {', '.join(map(str, self.idle))} did not run" if self.idle else ""
        return f"{self.model}: {self.n_layers} blocks, d_model {self.d_model}, checked {self.checked}{idle}"

    def _groups(self) -> list[tuple[str, str, Block]]:
        """Consecutive blocks that are alike: which layers, where they are, and the first of them."""
        groups: list[tuple[list[int], Block]] = []
        for i, block in enumerate(self.blocks):
            same = dataclasses.replace(block, path="")
            if groups and dataclasses.replace(groups[-1][1], path="") == same:
                groups[-1][0].append(i)
            else:
                groups.append(([i], block))
        return [
            (f"{layers[0]}", block.path, block)
            if len(layers) == 1
            else (f"{layers[0]}-{layers[-1]}", f"{block.path.rpartition('.')[0]}.*", block)
            for layers, block in groups
        ]


def _places(block: Block) -> dict[str, str]:
    """Where each site of a block is, or why it is missing."""

    def describe_addend(addend: Addend | None) -> str:
        if addend is None:
            return ""
        return f"output of {addend.path}" + (f" * {addend.scale:g}" if addend.scale != 1 else "")

    where = {
        "resid_pre": "block input",
        "head_out": f"input of {block.projection}, {block.heads} heads of {block.d_head}",
        "attn_out": describe_addend(block.attn),
        "resid_mid": f"input of {block.mid}",
        "mlp_out": describe_addend(block.mlp),
        "resid_post": "block output",
    }
    return where | dict(block.missing)


def unwrap_model(model: Any) -> nn.Module:
    """The module behind `torch.compile`, or a clear refusal of anything but a model."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"A model is a torch module such as transformers' AutoModelForCausalLM gives, not {model!r:.80} of type "
            f"{type(model).__name__}; load one with sf.from_pretrained(name)."
        )
    return model._modules.get("_orig_mod", model)  # pyright: ignore[reportReturnType]
