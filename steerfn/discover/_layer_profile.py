"""Layer profiles: how good a direction is at every layer, in one pass."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from steerfn.discover._engine import Chance, DiscoveryOptions, Method, Quality, discover, quality
from steerfn.discover._lat import Lat
from steerfn.discover._lda import Lda
from steerfn.discover._linear_probe import LinearProbe
from steerfn.discover._mean_difference import MeanDifference
from steerfn.discover._pca import DifferencePca
from steerfn.model import Model, Tokenizer
from steerfn.output import BAR, Result, Section, Table, bar, format_or_dash
from steerfn.values import DataError, Site, Sites, SteeringVector, SteerWarning, public, resid_post, struct

METHODS: Mapping[str, Callable[[int], Method]] = {
    "lat": Lat,
    "lda": lambda _: Lda(),
    "linear_probe": lambda _: LinearProbe(),
    "mean_difference": lambda _: MeanDifference(),
    "pca": lambda _: DifferencePca(),
}
"""Methods by name, each made with a seed, with which only `lat` draws."""
NUMBERS = ("auc", "cohens_d", "pair_accuracy", "pair_cosine", "relative_norm")


@struct
class Profile(Result):
    """The directions at some sites, each with its quality; see `layer_profile`. Iterates over `.table`.

    Attributes:
        vectors: all the directions as one vector, with the qualities in its metadata.
    """

    vectors: SteeringVector

    _title = "Layer profile"
    _what = "The profile"
    _index = "site"

    @property
    def table(self) -> tuple[tuple[Site, Quality], ...]:
        """(site, quality), in the order of a forward pass."""
        by_site = quality(self.vectors)
        return tuple(sorted(by_site.items(), key=lambda item: item[0].order))

    def __iter__(self) -> Iterator[tuple[Site, Quality]]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def chance(self) -> Chance | None:
        """The best AUC over these sites under permuted labels; None where it cannot be estimated."""
        stored = self.vectors.metadata.get("chance")
        return None if stored is None else Chance.from_dict(stored)

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

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each site, in the order of a forward pass."""
        return [
            {"site": site.name, "layer": site.block, **{name: getattr(each, name) for name in NUMBERS}}
            for site, each in self.table
        ]

    def _facts(self) -> dict[str, Any]:
        about = {key: self.vectors.metadata.get(key) for key in ("model", "method", "counts", "position", "chance")}
        return {**about, "sites": {site.name: each.to_dict() for site, each in self.table}}

    def _sections(self) -> Sequence[Section]:
        table = self.table
        (positive, negative), folds = table[0][1].n, max(each.folds for _, each in table)
        held = (
            f"{folds}-fold cross-validated" if folds else f"cross-validation tells nothing here: {table[0][1].reason}"
        )
        best = None if all(each.auc is None for _, each in table) else self.best()
        headers = ["site", "AUC", "95 %", f"{'0.5':<{BAR - 2}} 1", "Cohen's d", "pairs", "pair cosine", "|v|/|h|", ""]
        rows = [
            [
                site.name,
                format_or_dash(each.auc, ".3f"),
                "" if each.interval is None else f"{each.interval[0]:.2f} to {each.interval[1]:.2f}",
                bar(each.auc),
                format_or_dash(each.cohens_d, ".2f"),
                format_or_dash(each.pair_accuracy, ".2f"),
                format_or_dash(each.pair_cosine, ".3f"),
                format_or_dash(each.relative_norm, ".3f"),
                "<- best" if site == best else "",
            ]
            for site, each in table
        ]
        about = f"{self.vectors.metadata.get('method')}, {positive} positive and {negative} negative texts, {held}"
        notes = [] if self.chance is None else [str(self.chance)]
        return [Table(headers, rows, about, notes, numeric=(1, 4, 5, 6, 7))]

    def __repr__(self) -> str:
        known = any(each.auc is not None for _, each in self)
        best = f", best {self.best()}: {dict(self.table)[self.best()]!r}" if known else ""
        return f"Profile({len(self)} sites{best})"


@public
def layer_profile(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    *,
    sites: Sites | None = None,
    method: str | Method = "mean_difference",
    **options: Unpack[DiscoveryOptions],
) -> Profile:
    """How good a direction is at every layer: held-out AUC, Cohen's d, cosine of pairs and norm, from one pass.

    Every text is read once at all sites; the numbers are cross-validated as `quality` says, so that a layer whose
    direction merely remembers its texts scores 0.5. The best of many layers still owes something to chance, which
    `.chance` measures by exchanging the labels; report its number on texts that chose nothing.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite.
        sites: one or several; an int means `resid_post`. Default: `resid_post` of every layer.
        method: makes the directions: "mean_difference", "pca", "lat", "linear_probe" or "lda" with its defaults, or
            a `Method`.
        options: what every method takes, see `DiscoveryOptions`; `seed` draws the folds. Memory holds one float64 row
            for each text and site.

    Returns:
        A profile: print it, `.best()`, `.vector(site)`, `.to_pandas()`, `.to_json()`, `sf.plot.layers(profile)`.

    Raises:
        DataError: no texts on a side, an empty one, a position outside a text, or an unknown method.
        SiteError: a site that the model lacks.

    Example:
        >>> import steerfn as sf
        >>> profile = sf.discover.layer_profile(model, tokenizer, happy, sad, sites=[6, 14], position="mean")
        >>> profile.best()
        resid_post[14]
        >>> v = profile.vector(profile.best())
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise DataError(f"There is no method named {method!r} here; use one of {', '.join(METHODS)}.")
        method = METHODS[method](options.get("seed", 0))
    if not isinstance(method, Method):
        raise DataError(f"method must be a name ({', '.join(METHODS)}) or a Method, not {method!r:.80}.")
    where = resid_post[:] if sites is None else sites
    chosen: DiscoveryOptions = {**options, "quality": True}
    with warnings.catch_warnings():
        # A profile holds the early layers too, where the last token may resemble the sink: it is there to choose from.
        warnings.filterwarnings("ignore", "The direction at .* lies along the state", SteerWarning)
        return Profile(discover(method, model, tokenizer, positive, negative, where, **chosen))
