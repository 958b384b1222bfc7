"""The finding of the report on a vector, as the vector's own file says it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

VERDICTS = {
    "shown": "effect shown", "text only": "changes the text only", "like random": "like a random vector",
    "not shown": "no effect shown",
}  # fmt: skip
MOST = 1e6
"""The largest strength that is believed to be one."""


class ReportEvidence(NamedTuple):
    """The finding of a report.

    Attributes:
        alpha: the strength that was reported on; 1 without a report.
        verdict: its verdict in a few words.
        headline: its verdict in a sentence, with the strength; "" without a report.
    """

    alpha: float = 1.0
    verdict: str = "no report"
    headline: str = ""

    @classmethod
    def of(cls, said: Any) -> "ReportEvidence":
        """The evidence that stands in a vector's metadata, which may hold anything."""
        said = said if isinstance(said, Mapping) else {}
        alpha, verdict, headline = (said.get(name) for name in ("alpha", "verdict", "headline"))
        number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and abs(alpha) <= MOST
        if not number or str(verdict) not in VERDICTS:
            return cls()
        return cls(float(alpha), VERDICTS[str(verdict)], f"Its report, at strength {alpha:g}: {str(headline)[:300]}")
