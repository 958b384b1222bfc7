"""The sections of a report on the vector itself: what it is, how it was made, how well it tells the data apart."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from steerfn._page import table
from steerfn.discover.engine._quality import number
from steerfn.evaluate._shown import shown
from steerfn.plot import layers
from steerfn.reporting._findings import Findings
from steerfn.reporting._identity import MATCHES
from steerfn.reporting._pictures import picture
from steerfn.reporting._text import items, pairs_of, paragraph
from steerfn.reporting._words import counted, listed

KNOWN = ("method", "counts", "position", "chat", "tokens_read", "seed")
"""Metadata that most methods write, in the order in which it is read best."""
MOST = 40
"""Entries of a vector's metadata shown: a file may hold any number."""
SITES = 40


def what_it_is(found: Findings) -> str:
    """Section 1: the vector, and the model at hand."""
    identity, model = found.identity, found.model
    about = [
        ("Name", found.name),
        ("File", identity["file"] or "none: a vector in memory"),
        ("SHA-256 of the file", identity["file_sha256"] or "-"),
        ("SHA-256 of the tensors", identity["sha256"]),
        ("Directions", f"{counted(len(identity['sites']), 'site')}, {identity['dtype']}"),
        ("Applied with", f"alpha {found.alpha:g}, {found.about['operator']}, at {found.about['scope']}"),
    ]
    rows = [
        [site.name, identity["widths"][site.name], shown(norm), shown(found.separation.shares[site])]
        for site, norm in found.vector.magnitude.items()
    ]
    headers = ["site", "width", "|v|", "|v| / mean |h|"]
    if found.about["operator"] == "add":  # what alpha is to others is not a push of that length
        headers += ["|alpha v|", "|alpha v| / mean |h|"]
        for row, (site, norm) in zip(rows, found.vector.magnitude.items(), strict=True):
            row += [shown(abs(found.alpha) * each) for each in (norm, found.separation.shares[site])]
    at_hand = [
        ("Model", model["name"]),
        ("Revision", model["revision"] or "not known"),
        ("Architecture", f"{model['architecture']}, {model['n_layers']} blocks, width {model['d_model']}"),
        ("Fingerprint", f"{model['fingerprint']} (sizes only: tells architectures apart, not weights)"),
        ("Weights", f"{model['weights_sample']} (hash of a few elements of every tensor), {model['dtype']}"),
    ]
    return "\n".join(
        [
            pairs_of(about),
            table(headers, rows[:SITES], numeric=range(1, len(headers))),
            paragraph(f"... and {len(rows) - SITES} more sites.") if len(rows) > SITES else "",
            paragraph("|h| is the length of a hidden state of the data at that site."),
            "<h3>The model it was tested on</h3>",
            pairs_of(at_hand),
            paragraph(MATCHES[identity["match"]], strong=identity["match"] == "other"),
        ]
    )


def how_it_was_made(found: Findings) -> str:
    """Section 2: what the vector says of itself."""
    said = found.vector.metadata
    if not said:
        return paragraph("The vector says nothing of how it was made.", strong=True)
    rest = [key for key in said if key not in (*KNOWN, "model", "quality")]
    keys = [*(key for key in KNOWN if key in said), *sorted(rest)]
    rows = [(key.replace("_", " "), _told(said[key])) for key in keys[:MOST]]
    made = said.get("model")
    if isinstance(made, Mapping):
        rows.insert(0, ("model", _told({k: made[k] for k in sorted(made) if made[k] is not None})))
    versions = found.identity["versions"]
    if versions:
        rows.append(("written by", ", ".join(f"{name} {version}" for name, version in versions.items())))
    more = f"... and {len(keys) - MOST} more." if len(keys) > MOST else ""
    return "\n".join(
        [
            paragraph("In its own words: this is what the vector's metadata says, and nobody has checked it."),
            pairs_of(rows),
            paragraph(more) if more else "",
        ]
    )


def how_well_it_separates(found: Findings) -> str:
    """Section 3: quality by layer, and of the vector itself."""
    data, quality = found.data, found.separation
    sides = f"{data['positive']} positive and {data['negative']} negative texts"
    where = {
        "last": "the last token",
        "mean": "the mean over tokens without attention sinks",
        "mean_all": "the mean over all tokens",
        "answer": "the first token that differs",
    }
    read = where.get(str(quality.position), f"token {quality.position}")
    profile = dict(quality.profile)
    known = [each.auc for each in profile.values() if each.auc is not None]
    parts = [
        pairs_of(
            [
                ("Data", f"{data['name']}: {sides}{', in pairs' if data['paired'] else ''}"),
                ("Source", data["source"] or "not said"),
                ("What it contrasts", data["description"] or "not said"),
                ("SHA-256 of the texts", data["sha256"]),
                ("Read at", f"{read}, {'in the chat template' if quality.chat else 'as plain text'}"),
            ]
        )
    ]
    if known:
        best = quality.profile.best()
        parts.append(
            paragraph(
                "At every layer a direction of its own, the mean difference, is found on part of the data and judged "
                f"on the rest. It tells the two sides apart best at {best}, with a held-out AUC of "
                f"{profile[best].auc:.3f} (0.5 is chance, 1 is perfect). The best of many layers owes something to "
                "chance."
            )
        )
        acts = listed([f"layer {layer}" for layer in found.vector.layers[:8]])
        parts.append(
            picture(
                _marked(found),
                f"Quality by layer. Dotted: {acts}, where the vector acts.",
                f"Held-out AUC and Cohen's d of a mean difference at {len(profile)} sites; best AUC "
                f"{profile[best].auc:.3f} at {best}.",
            )
        )
    else:
        few = "There are too few texts to cross-validate, so there is no quality by layer."
        parts.append(paragraph(few, strong=True))
    rows = [
        [
            site.name,
            f"{quality.aucs[site]:.3f}",
            number(profile[site].auc if site in profile else None, ".3f"),
            number(profile[site].cohens_d if site in profile else None, ".2f"),
            number(profile[site].pair_cosine if site in profile else None, ".3f"),
        ]
        for site in found.vector.sites[:SITES]
    ]
    headers = ["site of the vector", "AUC of the vector", "held-out AUC here", "Cohen's d here", "pair cosine here"]
    parts += [
        table(headers, rows, numeric=range(1, 5)),
        paragraph(
            "AUC of the vector: the chance that a positive text lies further along it than a negative one. If the "
            "vector was made from these texts, that number is not held out; the other three are of the layer, and not "
            "of the vector."
        ),
    ]
    if quality.lint:
        parts += ["<h3>What is wrong with the data</h3>", items(finding.message for finding in quality.lint)]
    return "\n".join(parts)


def _marked(found: Findings) -> Any:
    """The layer profile with the vector's own layers marked."""
    figure = layers(found.separation.profile)
    for axes in figure.axes:
        for layer in found.vector.layers:
            axes.axvline(layer, color="black", linewidth=1.0, linestyle=":", zorder=0)
    return figure


def _told(value: Any) -> str:
    """A value of metadata, which may be anything."""
    if isinstance(value, Mapping) and all(isinstance(each, (str, int, float, bool)) for each in value.values()):
        return ", ".join(_entries(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _entries(value: Mapping[str, Any]) -> Iterable[str]:
    for key, each in value.items():
        yield f"{key!r}: {each}" if " " in key or not key else f"{key}: {each}"
