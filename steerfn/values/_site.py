"""Sites: named places in a block of the residual stream.

    resid_pre  -> attention -> (+) resid_mid -> MLP -> (+) resid_post
                     |  attn_out              |  mlp_out

`resid_post[12]` is the output of block 12 (0-based; negative layers count from the end). It equals
transformers' `hidden_states[13]`, except at the last block, where transformers stores the state after
the final norm: what this library reads and writes is always the site itself.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from steerfn.values._checks import as_integer
from steerfn.values._errors import SiteError

KINDS = ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Every kind of site, in the order in which a forward pass meets them (`head_out` feeds `attn_out`)."""

Range = tuple[int | None, int | None, int | None]


class Site:
    """A place in one block, or in a range of blocks before it is resolved against a model. Immutable.

    Args:
        kind: "resid_pre" (block input), "resid_mid" (after attention is added), "resid_post" (block output), "attn_out"
            or "mlp_out" (what is added to the stream), or "head_out" (one head's part of the output projection's
            input).
        layer: 0-based block index, negative from the end, or a `(start, stop, step)` range.
        head: attention head, for `head_out` only.

    Attributes:
        name: the site as text, `"resid_post[12]"`.

    Raises:
        SiteError: unknown kind, or a head where there is none.

    Example:
        >>> import steerfn as sf
        >>> sf.resid_post[10:12].resolve(30)
        (resid_post[10], resid_post[11])
    """

    # A plain class rather than a struct: it is not data, and `torch.compile` reads its attributes as they are.
    kind: str
    layer: int | Range
    head: int | None
    name: str

    def __init__(self, kind: str, layer: int | Range, head: int | None = None) -> None:
        if kind not in KINDS:
            raise SiteError(f"There is no site named {kind!r}; use one of {', '.join(KINDS)}.")
        if kind == "head_out":
            if head is None:
                raise SiteError("head_out needs a layer and a head: write head_out[12, 3].")
            head = _integer(head, "head")
        elif head is not None:
            raise SiteError(f"{kind} has no heads; write {kind}[{layer}], or use head_out.")
        if isinstance(layer, tuple):
            if len(layer) != 3:
                raise SiteError(
                    f"A range of layers is (start, stop, step), not {layer}; write {kind}[start:stop:step]."
                )
            start, stop, step = (None if part is None else _integer(part, "layer") for part in layer)
            layer = (start, stop, step)
            if step == 0:
                raise SiteError(
                    f"A range of layers with a step of 0 names none; use a step of 1 or more in {kind}[::0]."
                )
            where = ":".join("" if part is None else str(part) for part in (start, stop))
            where += "" if step is None else f":{step}"
        else:
            layer = _integer(layer, "layer")
            where = str(layer)
        name = f"{kind}[{where}]" if head is None else f"{kind}[{where}, {head}]"
        self.__dict__.update(kind=kind, layer=layer, head=head, name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"A site is immutable; make another one instead of setting {name}.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A site is immutable; {name} cannot be deleted.")

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Site) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def is_range(self) -> bool:
        """Whether this names several blocks."""
        return isinstance(self.layer, tuple)

    @property
    def block(self) -> int:
        """The layer of a site that names one block.

        Raises:
            SiteError: a range.
        """
        if isinstance(self.layer, tuple):
            raise SiteError(f"{self} names several blocks; resolve it against a model first.")
        return self.layer

    def resolve(self, n_layers: int) -> tuple["Site", ...]:
        """The concrete sites this means in a model of `n_layers` blocks, layers counted from 0.

        Raises:
            SiteError: a layer out of range, or a range that holds no layer.
        """
        if isinstance(self.layer, tuple):
            layers = range(n_layers)[slice(*self.layer)]
            if not layers:
                raise SiteError(f"{self} selects no layer of a model with {n_layers} blocks (0 to {n_layers - 1}).")
            return tuple(Site(self.kind, layer, self.head) for layer in layers)
        if not -n_layers <= self.layer < n_layers:
            raise SiteError(
                f"{self} is out of range: the model has {n_layers} blocks, so a layer is 0 to {n_layers - 1} "
                f"(or -{n_layers} to -1 from the end)."
            )
        return (self if self.layer >= 0 else Site(self.kind, self.layer + n_layers, self.head),)

    def expand(self) -> tuple["Site", ...]:
        """The single-layer sites of a range whose bounds need no model (`[10:14]`, not `[10:]`)."""
        if not isinstance(self.layer, tuple):
            return (self,)
        start, stop, step = self.layer
        backwards = (step or 1) < 0
        if stop is None or min(start or 0, stop) < 0 or (backwards and start is None):
            raise SiteError(f"{self} needs a model to be resolved; write both bounds as layers from 0, as in [10:14].")
        if not range(start or 0, stop, step or 1):
            raise SiteError(f"{self} names no layer; write the bounds as in [10:14], for layers 10 to 13.")
        return self.resolve(max(start or 0, stop) + 1)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts concrete sites in the order in which a forward pass meets them."""
        return (self.layer if isinstance(self.layer, int) else -1, KINDS.index(self.kind))

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The inverse of `repr`: `Site.parse("head_out[12, 3]")`.

        Raises:
            SiteError: text that names no site.
        """
        kind, bracket, rest = text.partition("[")
        try:
            if not bracket or not rest.endswith("]"):
                raise ValueError(text)
            layer, _, head = rest[:-1].partition(",")
            if ":" in layer:
                parts = tuple(int(p) if p else None for p in layer.split(":"))
                if not 2 <= len(parts) <= 3:
                    raise ValueError(text)
                where: Any = (*parts, None)[:3]
            else:
                where = int(layer)
            return cls(kind, where, int(head) if head else None)
        except SiteError:
            raise
        except ValueError:
            raise SiteError(
                f"{text!r} names no site; write for example 'resid_post[12]' or 'head_out[12, 3]'."
            ) from None


def _integer(value: Any, what: str) -> int:
    """An int, from anything that is one (numpy integers too, booleans not)."""
    if (number := as_integer(value)) is None:
        raise SiteError(f"A {what} is an integer, not {value!r} of type {type(value).__name__}.")
    return number


class _Kind:
    """`resid_post` and its siblings: `resid_post[12]`, `resid_post[10:14]`, `head_out[12, 3]`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __repr__(self) -> str:
        return self._kind

    def __getitem__(self, key: Any) -> Site:
        if self._kind == "head_out":
            if not (isinstance(key, tuple) and len(key) == 2):
                raise SiteError(f"head_out needs a layer and a head: write head_out[12, 3], not head_out[{key}].")
            key, head = key
        else:
            head = None
        if isinstance(key, slice):
            key = (key.start, key.stop, key.step)
        elif isinstance(key, tuple):
            raise SiteError(f"{self._kind} takes one layer or a range, not {key}; pass several sites as a list.")
        return Site(self._kind, key, head)


resid_pre = _Kind("resid_pre")
"""The input of a block."""
resid_mid = _Kind("resid_mid")
"""The residual stream after attention is added, before the MLP."""
resid_post = _Kind("resid_post")
"""The output of a block: what an int stands for in `sites=`."""
attn_out = _Kind("attn_out")
"""What attention adds to the stream, after a norm that follows it (as in Gemma)."""
mlp_out = _Kind("mlp_out")
"""What the MLP adds to the stream, after a norm that follows it."""
head_out = _Kind("head_out")
"""What one head hands to the output projection of attention: `head_out[layer, head]`."""

Sites = int | Site | slice | range | Sequence[int | Site]
"""What a `sites=` argument accepts: one or several; an int means `resid_post`."""


def as_sites(sites: Any) -> tuple[Site, ...]:
    """Normalise a `sites=` argument: one or several; an int, slice or range means `resid_post`.

    Raises:
        SiteError: nothing that names a site, or nothing at all.
    """
    if isinstance(sites, (Site, slice)):
        chosen = (sites if isinstance(sites, Site) else resid_post[sites],)
    elif isinstance(sites, str):
        chosen = (Site.parse(sites),)
    elif isinstance(sites, Iterable):
        chosen = tuple(site for each in sites for site in as_sites(each))
        if not chosen:
            raise SiteError(
                "No site was given; pass for example sites=12 or sites=[sf.resid_post[10], sf.attn_out[11]]."
            )
    elif isinstance(sites, _Kind):
        raise SiteError(f"{sites} needs a layer: write {sites}[12], or {sites}[:] for every block.")
    else:
        chosen = (resid_post[sites],)
    return tuple(dict.fromkeys(chosen))


def resolve_sites(sites: Any, n_layers: int) -> tuple[Site, ...]:
    """`as_sites`, resolved against a model of `n_layers` blocks, without duplicates."""
    return tuple(dict.fromkeys(site for each in as_sites(sites) for site in each.resolve(n_layers)))
