"""Layer profiles: how good a direction is at every layer, in one pass."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from typing_extensions import Unpack

from steerfn._dataframe import dataframe
from steerfn._errors import DataError, SteerWarning
from steerfn._site import Site, resid_post
from steerfn._struct import struct
from steerfn._vector import SteeringVector
from steerfn.discover._lat import Lat
from steerfn.discover._lda import Lda
from steerfn.discover._mean import MeanDifference
from steerfn.discover._pca import DifferencePca
from steerfn.discover._probe import LinearProbe
from steerfn.discover.engine._chance import Chance
from steerfn.discover.engine._discover import Options, discover
from steerfn.discover.engine._method import Method
from steerfn.discover.engine._quality import Quality, number, quality

METHODS: Mapping[str, Callable[[int], Method]] = {
    "lat": Lat,
    "lda": lambda _: Lda(),
    "linear_probe": lambda _: LinearProbe(),
    "mean_difference": lambda _: MeanDifference(),
    "pca": lambda _: DifferencePca(),
}
"""Methods by name, each made with a seed, with which only `lat` draws."""
NUMBERS = ("auc", "cohens_d", "pair_accuracy", "pair_cosine", "relative_norm")
BAR = 20
"""Characters of a bar that stands for an AUC of 1."""


@struct
class Profile:
    """The directions at some sites, each with its quality; see `layer_profile`. Iterates over `.table`.

    Attributes:
        vectors: all the directions as one vector, with the qualities in its metadata.
    """

    vectors: SteeringVector

    @property
    def table(self) -> tuple[tuple[Site, Quality], ...]:
        """(site, quality), in the order of a forward pass."""
        found = quality(self.vectors)
        return tuple(sorted(found.items(), key=lambda item: item[0].order))

    def __iter__(self) -> Iterator[tuple[Site, Quality]]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def chance(self) -> Chance | None:
        """What the best of these sites reaches where labels mean nothing; None where that cannot be said."""
        held = self.vectors.metadata.get("chance")
        return None if held is None else Chance.from_dict(held)

    def best(self, by: str = "auc") -> Site:
        """The site with the highest number, which is the best of many: see `chance`, and judge it on other texts.

        Ties go to the higher Cohen's d, then to the site that comes first in a forward pass.

        Args:
            by: "auc", "cohens_d", "pair_accuracy", "pair_cosine" or "relative_norm".

        Raises:
            DataError: another name, or a number that no site has.
        """
        if by not in NUMBERS:
            raise DataError(f"A profile has no {by!r}; choose by one of {', '.join(NUMBERS)}.")
        known = [(site, each) for site, each in self.table if getattr(each, by) is not None]
        if not known:
            positive, negative = self.table[0][1].n
            why = f": {reason}" if by in ("auc", "cohens_d") and (reason := self.table[0][1].reason) else ""
            raise DataError(
                f"No site has a number for {by} ({positive} positive and {negative} negative texts){why}; pass more "
                "texts (as many on either side for pair_cosine), or choose by relative_norm."
            )
        lowest = float("-inf")
        return max(
            known, key=lambda item: (getattr(item[1], by), lowest if item[1].cohens_d is None else item[1].cohens_d)
        )[0]

    def vector(self, sites: Any = None) -> SteeringVector:
        """The vector at a site (an int means `resid_post`), or at several, with its quality; by default at the best.

        Raises:
            SiteError: a site that the profile lacks.
        """
        chosen = self.vectors.select(self.best() if sites is None else sites)
        return chosen.with_metadata(quality={site.name: each.to_dict() for site, each in quality(chosen).items()})

    def to_json(self) -> str:
        """The table as JSON: method, counts, and the numbers by site."""
        about = {key: self.vectors.metadata.get(key) for key in ("model", "method", "counts", "position", "chance")}
        return json.dumps({**about, "sites": {site.name: each.to_dict() for site, each in self.table}}, indent=2)

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame, one row for each site.

        Raises:
            DataError: pandas is not installed.
        """
        rows = [
            {"site": site.name, "layer": site.block, **{name: getattr(each, name) for name in NUMBERS}}
            for site, each in self.table
        ]
        return dataframe(rows).set_index("site")

    def __str__(self) -> str:
        table = self.table
        (positive, negative), folds = table[0][1].n, max(each.folds for _, each in table)
        held = (
            f"{folds}-fold cross-validated" if folds else f"cross-validation tells nothing here: {table[0][1].reason}"
        )
        best = None if all(each.auc is None for _, each in table) else self.best()
        wide = max(len(site.name) for site, _ in table)
        lines = [
            f"{self.vectors.metadata.get('method')}, {positive} positive and {negative} negative texts, {held}",
            f"{'site':<{wide}}    AUC  {'95 %':<12}  {'0.5':<{BAR - 2}} 1  Cohen's d  pairs  pair cosine  |v|/|h|",
        ]
        for site, each in table:
            ends = "" if each.interval is None else f"{each.interval[0]:.2f} to {each.interval[1]:.2f}"
            lines.append(
                f"{site.name:<{wide}}  {number(each.auc, '.3f'):>5}  {ends:<12}  {bar(each.auc)}  "
                f"{number(each.cohens_d, '.2f'):>9}  {number(each.pair_accuracy, '.2f'):>5}  "
                f"{number(each.pair_cosine, '.3f'):>11}  {number(each.relative_norm, '.3f'):>7}"
                f"{'  <- best' if site == best else ''}"
            )
        return "\n".join([*lines, *([] if self.chance is None else [str(self.chance)])])

    def __repr__(self) -> str:
        known = any(each.auc is not None for _, each in self)
        best = f", best {self.best()}: {dict(self.table)[self.best()]!r}" if known else ""
        return f"Profile({len(self)} sites{best})"


def bar(value: float | None) -> str:
    """An AUC as a bar: empty at 0.5 (chance) and below, full at 1."""
    eighths = 0 if value is None else round(8 * BAR * min(max(2 * value - 1, 0.0), 1.0))
    whole, part = divmod(eighths, 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[part].strip()).ljust(BAR, "·")


def layer_profile(
    model: Any,
    tokenizer: Any,
    positive: Any,
    negative: Any = None,
    *,
    sites: Any = None,
    method: str | Method = "mean_difference",
    **options: Unpack[Options],
) -> Profile:
    """How good a direction is at every layer: held-out AUC, Cohen's d, cosine of pairs and norm, from one pass.

    Every text is read once at all sites; the numbers are cross-validated as `quality` says, so that a layer whose
    direction merely remembers its texts scores 0.5. The best of many layers still owes something to chance, which
    `.chance` measures by exchanging the labels;
    report its number on texts that chose nothing.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite.
        sites: one or several; an int means `resid_post`. Default: `resid_post` of every layer.
        method: makes the directions: "mean_difference", "pca", "lat", "linear_probe" or "lda" with its defaults, or
            a `Method`.
        options: what every method takes, see `Options`; `seed` draws the folds. Memory holds one float64 row for
            each text and site.

    Returns:
        A profile: print it, `.best()`, `.vector(site)`, `.to_pandas()`, `.to_json()`, `sf.plot.layers(profile)`.

    Raises:
        DataError: no texts on a side, an empty one, a position outside a text, or an unknown method.
        SiteError: a site that the model lacks.

    Example:
        >>> import steerfn as sf
        >>> profile = sf.layer_profile(model, tokenizer, happy, sad)  # doctest: +SKIP
        >>> v = profile.vector(profile.best())  # doctest: +SKIP
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise DataError(f"There is no method named {method!r} here; use one of {', '.join(METHODS)}.")
        method = METHODS[method](options.get("seed", 0))
    if not isinstance(method, Method):
        raise DataError(f"method is a name ({', '.join(METHODS)}) or a Method, not {method!r:.80}.")
    where = resid_post[:] if sites is None else sites
    chosen: Options = {**options, "quality": True}
    with warnings.catch_warnings():
        # A profile holds the early layers too, where the last token may resemble the sink: it is there to choose from.
        warnings.filterwarnings("ignore", "The direction at .* lies along the state", SteerWarning)
        return Profile(discover(method, model, tokenizer, positive, negative, where, **chosen))
