"""Steering vectors: immutable directions by site, with the algebra of a vector space."""

import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.values._arguments import public
from steerfn.values._checks import is_finite
from steerfn.values._errors import ShapeError, SiteError
from steerfn.values._metadata import Metadata
from steerfn.values._shapes import Direction, check_shapes
from steerfn.values._site import Site, as_sites
from steerfn.values._struct import new, replace, static, struct
from steerfn.values._unit import norm, unit
from steerfn.values._visible import visible_line


@public
@struct
class SteeringVector:
    """Directions by site: an immutable value, hashable by identity, a pytree of its tensors.

    Vectors form a vector space over the union of their sites (a missing site is a zero direction).
    Tensors are copied in and out, so nothing outside can change a vector.

    Args:
        directions: a `[d_model]` tensor by site (`[d_head]` at `head_out`). A range such as
            `resid_post[10:14]` takes one direction for all its blocks or a `[blocks, d_model]` stack;
            an int key means `resid_post`.
        metadata: JSON values that describe the vector (model, method, counts, ...).

    Raises:
        SiteError: no direction, or a key that is not a site.
        ShapeError: a direction that is not a 1-D finite floating-point tensor, or widths that differ.

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[3]: torch.ones(4)})
        >>> (2 * v - v / 2).magnitude
        {resid_post[3]: 3.0}
    """

    _directions: tuple[Direction, ...]
    sites: tuple[Site, ...] = static()
    metadata: Metadata = static(structure=False)

    def __init__(self, directions: Mapping[Any, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        if not isinstance(directions, Mapping):
            raise ShapeError(
                f"A SteeringVector is made from a mapping of sites to tensors, not from a {type(directions).__name__}: "
                "write SteeringVector({sf.resid_post[12]: tensor})."
            )
        pairs = [pair for key, tensor in directions.items() for pair in _spread(key, tensor)]
        if not pairs:
            raise SiteError(
                "A SteeringVector needs at least one direction: SteeringVector({sf.resid_post[12]: tensor})."
            )
        for heads in (False, True):
            alike = [(s, len(d)) for s, d in pairs if (s.kind == "head_out") == heads]
            if len({width for _, width in alike}) > 1:
                shown = ", ".join(f"{s} has {width}" for s, width in alike[:8])
                raise ShapeError(f"The directions of one vector share a width, but these differ: {shown}.")
        by_site = _sum_by_site(pairs)
        if len(by_site) < len(pairs):
            _check_finite(by_site, by_site.values(), "The sum of the directions given for one site")
        object.__setattr__(self, "sites", tuple(by_site))
        object.__setattr__(self, "_directions", tuple(by_site.values()))
        object.__setattr__(self, "metadata", Metadata(metadata))

    # -- reading ---------------------------------------------------------------------------------

    def _items(self) -> Iterator[tuple[Site, Direction]]:
        """Each site with the direction there, itself and not a copy."""
        return zip(self.sites, self._directions, strict=True)

    @property
    def directions(self) -> tuple[Tensor, ...]:
        """The directions in the order of `sites`: copies, except of those that gradients are taken with respect to."""
        return tuple(d if d.requires_grad else d.clone() for d in self._directions)

    def __getitem__(self, key: Any) -> Tensor:
        """A copy of the direction at a site (an int means `resid_post`)."""
        site = _one_site(key)
        if site not in self.sites:
            raise SiteError(f"This vector has no direction at {site}; it has {_names(self.sites)}.")
        return self._directions[self.sites.index(site)].clone()

    def __contains__(self, key: Any) -> bool:
        return all(site in self.sites for site in as_sites(key))

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks it touches, in order, without duplicates."""
        return tuple(sorted({s.layer for s in self.sites if isinstance(s.layer, int)}))

    @property
    def d_model(self) -> int | None:
        """Width of its residual-stream directions; None where it has `head_out` directions only."""
        return _width(self, heads=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its directions."""
        return self._directions[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of its directions."""
        return self._directions[0].device

    @property
    def magnitude(self) -> dict[Site, float]:
        """The L2 norm of the direction at each site, computed in float64."""
        return {s: norm(d) for s, d in self._items()}

    def __repr__(self) -> str:
        method = visible_line(str(self.metadata.get("method") or ""))[:80]
        norms = ", ".join(f"{s} |v|={n:.4g}" for s, n in list(self.magnitude.items())[:4])
        more = f", ... {len(self.sites)} sites" if len(self.sites) > 4 else ""
        return f"SteeringVector({norms}{more}{f', {method}' if method else ''})"

    # -- algebra ---------------------------------------------------------------------------------

    def _map(self, function: Callable[[Tensor], Tensor], *what: Any) -> "SteeringVector":
        """The vector of other directions; `what` describes it in errors, where they may become infinite."""
        directions = tuple(function(d) for d in self._directions)
        if what:
            _check_finite(self.sites, directions, *what)
        return replace(self, _directions=directions)

    def _combine(self, other: "SteeringVector", sign: float) -> "SteeringVector":
        if not isinstance(other, SteeringVector):
            return NotImplemented
        self._check_widths(other)
        by_site = _sum_by_site([*self._items(), *((site, sign * direction) for site, direction in other._items())])
        _check_finite(by_site, by_site.values(), "The sum or difference of these vectors")
        history = self.metadata if dict(self.metadata) == dict(other.metadata) else _common_metadata(self, other)
        return new(SteeringVector, sites=tuple(by_site), _directions=tuple(by_site.values()), metadata=history)

    def _check_widths(self, other: "SteeringVector") -> None:
        """Refuse a vector whose directions are not as wide as those of this one."""
        mine = dict(self._items())
        for site, direction in other._items():
            here = mine.get(site)
            if here is not None and here.shape != direction.shape:
                raise ShapeError(
                    f"The directions at {site} have widths {here.shape[-1]} and {direction.shape[-1]}: "
                    "vectors of two different models cannot be combined."
                )
        for heads in (False, True):
            own, theirs = _width(self, heads), _width(other, heads)
            if own is not None and theirs is not None and own != theirs:
                raise ShapeError(
                    f"The vectors have widths {own} and {theirs}: vectors of two different models cannot be combined."
                )

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        return self._combine(other, 1.0)

    def __radd__(self, other: Any) -> "SteeringVector":
        """0 + v, with which `sum` begins."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self._combine(other, -1.0)

    def __neg__(self) -> "SteeringVector":
        return self._map(torch.neg)

    def __mul__(self, factor: Any) -> "SteeringVector":
        number = _scalar(factor)
        return NotImplemented if number is None else self._map(lambda d: d * number, "A vector times", factor)

    __rmul__ = __mul__
    __array_ufunc__ = None  # a numpy number on the left leaves the product to __rmul__

    def __truediv__(self, factor: Any) -> "SteeringVector":
        number = _scalar(factor)
        if number is None:
            return NotImplemented
        if isinstance(number, float) and number == 0:
            raise ShapeError("A steering vector cannot be divided by 0; multiply it by 0 for the zero vector.")
        return self._map(lambda d: d / number, "A vector divided by", factor)

    def unit(self) -> "SteeringVector":
        """Every direction scaled to L2 norm 1; a zero direction stays zero."""
        return self._map(unit)

    def cosine(self, other: "SteeringVector") -> float:
        """Cosine similarity over all sites at once (the directions laid end to end, in float64).

        A site that only one of the two has counts as a zero direction in the other; two vectors of
        which one is zero have cosine 0. For one site: `v.select(site).cosine(w.select(site))`.
        """
        if not isinstance(other, SteeringVector):
            raise ShapeError(f"cosine compares two steering vectors, not a vector and a {type(other).__name__}.")
        self._check_widths(other)
        mine, theirs = (dict(v._items()) for v in (self, other))
        ends = [(mine.get(s), theirs.get(s)) for s in {**mine, **theirs}]
        a = torch.cat([_plain(b) * 0 if a is None else _plain(a) for a, b in ends])
        b = torch.cat([_plain(a) * 0 if b is None else _plain(b) for a, b in ends])
        return float(unit(a) @ unit(b))

    # -- selecting, moving, comparing ------------------------------------------------------------

    def select(self, sites: Any) -> "SteeringVector":
        """The part of the vector at `sites` (one or several; ranges pick the sites it has).

        Raises:
            SiteError: a site that the vector does not have.
        """
        chosen = [s for each in as_sites(sites) for s in _matching(each, self.sites)]
        keep = tuple(dict.fromkeys(chosen))
        return replace(self, sites=keep, _directions=tuple(self._directions[self.sites.index(s)] for s in keep))

    def to(self, *args: Any, **kwargs: Any) -> "SteeringVector":
        """The vector on another device or in another floating-point dtype, as `Tensor.to`."""
        target = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
        try:
            return self._map(lambda d: _floating(d.to(*args, **kwargs)), "This vector as", target)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ShapeError(f"A vector cannot be moved to ({target}): {str(error).splitlines()[0]}") from None

    def allclose(self, other: "SteeringVector", rtol: float = 1e-5, atol: float = 1e-8) -> bool:
        """Whether both have the same sites and nearly the same directions (`torch.allclose`)."""
        return self._compare(other, lambda a, b: torch.allclose(a.double(), b.double().to(a.device), rtol, atol))

    def identical(self, other: "SteeringVector") -> bool:
        """Whether sites, dtypes, metadata and every bit of every direction agree."""
        same = self._compare(other, lambda a, b: a.dtype == b.dtype and _bits(a) == _bits(b))
        return same and self.sites == other.sites and self.metadata == other.metadata

    def _compare(self, other: "SteeringVector", same: Callable[[Tensor, Tensor], bool]) -> bool:
        if not isinstance(other, SteeringVector):
            raise ShapeError(f"A steering vector compares with another, not with a {type(other).__name__}.")
        if set(self.sites) != set(other.sites):
            return False
        theirs = dict(other._items())
        pairs = [(d, theirs[s]) for s, d in self._items()]
        return all(a.shape == b.shape and same(a, b) for a, b in pairs)

    def with_metadata(self, **values: Any) -> "SteeringVector":
        """The same directions with some metadata added or replaced."""
        checked_for = None if "model" in values else self.metadata.checked_for
        return replace(self, metadata=Metadata({**self.metadata, **values}, checked_for=checked_for))

    def push_to_hub(
        self,
        repo: str,
        *,
        card: str | None = None,
        file: str = "vector.safetensors",
        revision: str | None = None,
        private: bool | None = None,
        message: str | None = None,
    ) -> str:
        """Put the vector, and a card beside it, into a repository of the Hugging Face hub, in one commit.

        A repository that is not there is made. The login is the hub client's (`hf auth login`, or HF_TOKEN), and so is
        the endpoint (HF_ENDPOINT). Nothing is pushed that `sf.load` would not read back.

        Args:
            repo: "user/name".
            card: the text of a card, as `sf.card(report)` writes it: the repository's README.md, or for another `file`
                the `.md` of its name.
            file: the vector's path in the repository; its suffix picks the format, as in `sf.save`.
            revision: a branch that is there; default the main one.
            private: whether a new repository is private; default is the owner's setting.
            message: of the commit.

        Returns:
            The address that `sf.load` takes, with the commit: "hf://user/name@commit/vector.safetensors".

        Raises:
            FileError: not the name of a repository, no login, no right to write there, or no way to the hub; also as
                `sf.save`.

        Example:
            With a login to the hub::

                address = v.push_to_hub("user/happy", card=sf.card(report))
                v = sf.load(address)  # "hf://user/happy@1f0c.../vector.safetensors"
        """
        return _push(self, repo, card=card, file=file, revision=revision, private=private, message=message)

    def resolve(self, n_layers: int) -> "SteeringVector":
        """The vector with negative layers counted from 0; directions that meet on a site add up."""
        if all(isinstance(s.layer, int) and 0 <= s.layer < n_layers for s in self.sites):
            return self
        by_site = _sum_by_site([(*site.resolve(n_layers), direction) for site, direction in self._items()])
        return replace(self, sites=tuple(by_site), _directions=tuple(by_site.values()))

    def _at(self, site: Site) -> Direction | None:
        """The direction itself at a resolved site (not a copy), or None where there is none."""
        for mine, direction in self._items():
            if mine.name == site.name:
                return direction
        return None


def _push(vector: SteeringVector, repo: str, **options: Any) -> str:
    from steerfn.values.files import push_to_hub  # files know vectors, and vectors no files

    return push_to_hub(vector, repo, **options)


def _sum_by_site(pairs: Sequence[tuple[Any, ...]]) -> dict[Site, Tensor]:
    by_site: dict[Site, Tensor] = {}
    for site, direction in pairs:
        by_site[site] = by_site[site] + direction if site in by_site else direction
    return by_site


def _plain(direction: Any) -> Tensor:
    return direction.detach().double().cpu()


def _width(vector: SteeringVector, heads: bool) -> int | None:
    """Width of a vector's `head_out` directions, or of all the others."""
    return next((d.shape[-1] for s, d in vector._items() if (s.kind == "head_out") == heads), None)


def _one_site(key: Any) -> Site:
    first, *more = as_sites(key)
    if more:
        raise SiteError(
            f"One site is needed here, not {1 + len(more)} ({_names((first, *more))}); "
            "select several with v.select(sites)."
        )
    return first


def _check_finite(sites: Iterable[Site], directions: Iterable[Tensor], *what: Any) -> None:
    """Refuse directions that arithmetic has made infinite, or no numbers at all; `what` describes their vector."""
    for site, direction in zip(sites, directions, strict=True):
        if not is_finite(direction):
            most = torch.finfo(direction.dtype).max
            wider = "float32" if most < torch.finfo(torch.float32).max else "float64"
            raise ShapeError(
                f"{' '.join(map(str, what))} has a direction at {site} with entries that are NaN or infinite: "
                f"{direction.dtype} holds numbers up to {most:.5g}. Use a smaller vector, or {wider}."
            )


def _spread(key: Any, tensor: Any) -> Iterable[tuple[Site, Tensor]]:
    """One (site, direction) for each layer of a key, validated and copied."""
    site = _one_site(key)
    if not isinstance(tensor, Tensor):
        raise ShapeError(
            f"The direction at {site} is a {type(tensor).__name__}; pass a torch tensor of shape [d_model]."
        )
    _floating(tensor)
    sites = site.expand()
    if tensor.ndim == 2 and site.is_range and len(tensor) == len(sites):
        tensors = list(tensor)
    elif tensor.ndim == 1:
        tensors = [tensor] * len(sites)
    else:
        stack = f" or [{len(sites)}, d_model]" if site.is_range else ""
        raise ShapeError(f"The direction at {site} has shape {list(tensor.shape)}; pass one of shape [d_model]{stack}.")
    if tensor.numel() == 0:
        raise ShapeError(f"The direction at {site} is empty; pass a tensor of shape [d_model].")
    if not is_finite(tensor):
        bad = int((~torch.isfinite(tensor.detach())).sum())
        raise ShapeError(
            f"The direction at {site} has {bad} entries that are NaN or infinite; a direction must be finite."
        )
    return [(s, _copy(t)) for s, t in zip(sites, tensors, strict=True)]


@check_shapes
def _copy(direction: Direction) -> Direction:
    return direction.clone()


def _floating(tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ShapeError(
            f"A direction holds floating-point numbers, not {tensor.dtype}; convert it with tensor.float()."
        )
    return tensor


def _scalar(factor: Any) -> float | Tensor | None:
    """A factor of a vector as a float or a 0-d tensor; None for what is neither."""
    if isinstance(factor, bool) or not isinstance(factor, (numbers.Real, Tensor)):
        return None
    if isinstance(factor, Tensor):
        if factor.ndim or factor.is_complex():
            raise ShapeError(
                f"A steering vector is scaled by a real number or a 0-d tensor, not by a tensor of shape "
                f"{list(factor.shape)} and {factor.dtype}; for one strength a row use add(v, alpha=tensor)."
            )
        return factor
    if not abs(number := as_float(factor)) <= sys.float_info.max:
        raise ShapeError(f"A steering vector is scaled by a finite number, not by {factor}.")
    return number


def as_float(number: Any) -> float:
    """A real number, numpy's included, as a Python float; an integer too large for one as infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _matching(wanted: Site, sites: tuple[Site, ...]) -> list[Site]:
    if isinstance(wanted.layer, tuple):
        top = 1 + max((s.layer for s in sites if isinstance(s.layer, int)), default=0)
        layers = range(top)[slice(*wanted.layer)]
        matching = [s for n in layers for s in sites if (s.kind, s.layer, s.head) == (wanted.kind, n, wanted.head)]
    else:
        matching = [wanted] if wanted in sites else []
    if not matching:
        raise SiteError(f"This vector has no direction at {wanted}; it has {_names(sites)}.")
    return matching


def _common_metadata(first: "SteeringVector", second: "SteeringVector") -> Metadata:
    """Metadata of a combination: what both agree on, such as the model."""
    theirs = dict(second.metadata)
    return Metadata({k: v for k, v in first.metadata.items() if k in theirs and theirs[k] == v})


def _names(sites: tuple[Site, ...]) -> str:
    shown = ", ".join(map(str, sites[:8]))
    return f"{shown}, ... ({len(sites)} sites)" if len(sites) > 8 else shown


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
