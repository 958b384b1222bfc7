"""The last sections of a report: what it does not show, how to do it again, and who answers for it."""

import html

from steerfn._visible import visible
from steerfn.reporting._findings import Findings
from steerfn.reporting._text import items, pairs_of, paragraph

SIGNERS = ("Made by", "Reviewed by")
DECISIONS = (
    "Approved for the use named here",
    "Approved under the conditions named here",
    "Not approved",
)


def what_it_does_not_show(found: Findings) -> str:
    """Section 8: the limits."""
    return "\n".join(
        [paragraph("Chosen by rule from what was found; none of it can be left out."), items(found.limits)]
    )


def how_to_repeat_it(found: Findings) -> str:
    """Section 9: the call, versions, seeds and hashes."""
    about = found.about
    rows = [
        ("Written", found.written),
        ("Versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
        ("Python", f"{about['python']}, {about['platform']}"),
        ("Seed", f"{about['seed']} (random vectors, choice of texts, resamples)"),
        ("Seeds of generation", ", ".join(map(str, found.effect.seeds)) if about["sampled"] else "none: greedy"),
        ("Options of generation", about["generation"] or "none"),
        ("SHA-256 of the vector", found.identity["sha256"]),
        ("SHA-256 of the operators", found.effect.about["operators_sha256"]),
        ("SHA-256 of the data", found.data["sha256"]),
        ("SHA-256 of the prompts", about["prompts_sha256"]),
        ("SHA-256 of the plain text", about["passages_sha256"]),
        ("Model", f"{found.model['name']}, fingerprint {found.model['fingerprint']}"),
        ("Weights", found.model["weights_sample"]),
    ]
    return "\n".join(
        [
            f"<pre>{html.escape(visible(found.call))}</pre>",
            pairs_of(rows),
            paragraph(
                "The same call with the same versions on the same kind of device gives the same numbers; other "
                "versions and devices round otherwise, which may change single words of a text."
            ),
        ]
    )


def signatures() -> str:
    """Lines for those who answer for it, to be filled in on the screen or on paper."""
    boxes = "\n".join(f'<label class="box"><input type="checkbox"> {html.escape(each)}</label>' for each in DECISIONS)
    lines = "\n".join(
        f'<fieldset><legend>{who}</legend><label>Name <input type="text"></label>'
        '<label>Date <input type="text"></label><label class="wide">Signature <input type="text"></label></fieldset>'
        for who in SIGNERS
    )
    return (
        '<form class="signatures" autocomplete="off">\n'
        '<label class="wide">Intended use <input type="text"></label>\n'
        f"{boxes}\n"
        '<label class="wide">Conditions <input type="text"></label>\n'
        f"{lines}\n</form>"
    )
