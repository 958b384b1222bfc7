"""The document: verdict first, then the sections in order, on one page that loads nothing, for screen and paper.

What it says is in the templates beside this file, a section each; here are the tables and the pictures in them.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from steerfn.evaluate import Estimate, Pair, SideBySide, means_table, p_cell, sentence
from steerfn.output import Table, format_number, format_or_dash, page, render
from steerfn.plot import comparison, data_url, layers
from steerfn.reporting._findings import Findings
from steerfn.reporting._material import MATCHES
from steerfn.reporting._measure import unit_of
from steerfn.reporting._verdict import BY_CHANCE

KNOWN = ("method", "counts", "position", "chat", "tokens_read", "seed")
"""Metadata that most methods write, in the order in which it is read best."""
MOST = 40
"""Entries of a vector's metadata shown, and sites: a file may hold any number."""


def document(findings: Findings) -> str:
    """A report as HTML."""
    effect, quality = findings.effect, findings.separation
    metadata, left_out = _metadata(findings)
    units = len(set(effect.unit_of))
    headers, means = means_table(effect.means, effect.conditions, effect.units, units)
    tables = {
        "lengths": _lengths(findings),
        "metadata": metadata,
        "areas": _areas(findings),
        "means": Table(headers, means, numeric=range(1, len(headers))),
        "pairs": _pairs(findings),
        "costs": _costs(findings),
        "cost_tests": _cost_tests(findings),
    }
    body = render(
        "reporting/report.html.j2",
        findings=findings,
        about=findings.about,
        tables=tables,
        left_out=left_out,
        most=MOST,
        examples=SideBySide(findings.examples),
        pictures={
            "quality": "" if quality.best.auc is None else data_url(_profile_figure(findings)),
            "effect": data_url(comparison(effect)),
        },
        matches=MATCHES,
        by_chance=BY_CHANCE,
        area=_area,
        acting=[f"layer {layer}" for layer in findings.vector.layers[:8]],
        units=units,
        unit=unit_of(effect),
        against_random=[sentence(pair, effect.units) for pair in effect.pairs if pair.against == "random"],
        versions=_versions(findings.about["versions"]),
    )
    return page(findings.title, body, style=render("evaluate/side_by_side.css") + render("reporting/report.css"))


def _lengths(findings: Findings) -> Table:
    """Section 1: how long the vector is, and how long a push of it, at every site."""
    widths, shares = findings.identity["widths"], findings.separation.shares
    headers = ["site", "width", "|v|", "|v| / mean |h|"]
    rows = [
        [site.name, str(widths[site.name]), format_number(norm), format_number(shares[site])]
        for site, norm in findings.vector.magnitude.items()
    ]
    if findings.about["operator"] == "add":  # what alpha is to others is not a push of that length
        headers += ["|alpha v|", "|alpha v| / mean |h|"]
        for row, (site, norm) in zip(rows, findings.vector.magnitude.items(), strict=True):
            row += [format_number(abs(findings.alpha) * each) for each in (norm, shares[site])]
    return Table(headers, rows, numeric=range(1, len(headers)), long=True)


def _metadata(findings: Findings) -> tuple[list[tuple[str, str]], int]:
    """Section 2: what the vector says of itself, and how many entries are left out."""
    metadata = findings.vector.metadata
    rest = [key for key in metadata if key not in (*KNOWN, "model", "quality")]
    keys = [*(key for key in KNOWN if key in metadata), *sorted(rest)]
    rows = [(key.replace("_", " "), _value(metadata[key])) for key in keys[:MOST]]
    model = metadata.get("model")
    if isinstance(model, Mapping):
        rows.insert(0, ("model", _value({k: model[k] for k in sorted(model) if model[k] is not None})))
    if findings.identity["versions"]:
        rows.append(("written by", _versions(findings.identity["versions"])))
    return rows, len(keys) - MOST


def _value(value: Any) -> str:
    """A value of metadata, which may be anything."""
    if isinstance(value, Mapping) and all(isinstance(each, (str, int, float, bool)) for each in value.values()):
        names = {key: repr(key) if " " in key or not key else key for key in value}
        return ", ".join(f"{names[key]}: {each}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _areas(findings: Findings) -> Table:
    """Section 3: how well the data's sides are separated at the vector's sites, by the vector and by the layer."""
    quality, profile = findings.separation, dict(findings.separation.profile)
    here = ["held-out AUC here", "pairs told apart here", "Cohen's d here", "pair cosine here"]
    rows = [
        [
            site.name,
            _area(quality.aucs[site], quality.intervals[site]),
            _area(profile[site].auc, profile[site].interval),
            format_or_dash(profile[site].pair_accuracy, ".2f"),
            format_or_dash(profile[site].cohens_d, ".2f"),
            format_or_dash(profile[site].pair_cosine, ".3f"),
        ]
        for site in findings.vector.sites[:MOST]
    ]
    return Table(["site of the vector", "AUC of the vector", *here], rows, numeric=range(1, 6))


def _area(auc: float | None, interval: tuple[float, float] | None) -> str:
    ends = "" if interval is None else f" ({interval[0]:.2f}\u00a0to\u00a0{interval[1]:.2f})"
    return f"{format_or_dash(auc, '.3f')}{ends}"


def _pairs(findings: Findings) -> Table:
    """Section 4: the vector against the unsteered model and random vectors."""
    headers = ["metric", "minus", "difference", "in percent", "p (Holm)", "d_z", "n", "verdict"]
    rows = [_pair(pair, findings.effect.units.get(pair.metric)) for pair in findings.effect.pairs]
    return Table(headers, rows, numeric=range(2, 7))


def _pair(pair: Pair, unit: str | None) -> list[str]:
    change = pair.percent
    return [
        f"{pair.metric} [{unit}]" if unit else pair.metric,
        "random" if pair.against == "random" else pair.control,
        _with_interval(pair.difference.estimate),
        _around(change, "\u00a0%") if change else "-",
        p_cell(pair.adjusted),
        format_number(pair.difference.effect),
        str(pair.n),
        pair.verdict,
    ]


def _costs(findings: Findings) -> Table:
    """Section 5: what steering costs."""
    costs = findings.costs
    columns = {"steered": costs.figures, "unsteered": costs.baseline, **costs.controls}
    columns = {name: figures for name, figures in columns.items() if figures}
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    rows = [[name, *(_with_interval(figures.get(name)) for figures in columns.values())] for name in names]
    return Table(["figure", *columns], rows, numeric=range(1, len(columns) + 1))


def _cost_tests(findings: Findings) -> Table:
    """Section 5: by how much the costs differ from those of the unsteered model and of random vectors."""
    costs, rows = findings.costs, []
    for against, effects in costs.effects.items():
        for name, difference in effects.items():
            mean = difference.estimate
            way = "higher" if mean.mean > 0 else "lower"
            rows.append(
                [
                    name,
                    against,
                    format_number(mean.mean),
                    f"{format_number(mean.low)} to {format_number(mean.high)}",
                    p_cell(costs.adjusted[against, name]),
                    way if costs.is_shown(name, against) else "not shown",
                ]
            )
    return Table(
        ["figure", "steered minus", "difference", "interval", "p (Holm)", "verdict"], rows, numeric=range(2, 5)
    )


def _with_interval(mean: Estimate | None) -> str:
    return "-" if mean is None or not mean.n else _around(mean)


def _around(mean: Estimate, unit: str = "") -> str:
    """A mean and its interval, which stays on one line."""
    ends = f"({format_number(mean.low)} to {format_number(mean.high)}{unit})".replace(" ", "\u00a0")
    return f"{format_number(mean.mean)}{unit}" if math.isnan(mean.low) else f"{format_number(mean.mean)}{unit} {ends}"


def _profile_figure(findings: Findings) -> Any:
    """The layer profile with the vector's own layers marked."""
    figure = layers(findings.separation.profile)
    for axes in figure.axes:
        for layer in findings.vector.layers:
            axes.axvline(layer, color="black", linewidth=1.0, linestyle=":", zorder=0)
    return figure
