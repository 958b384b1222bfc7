"""The limits of one request, and of all together."""

import dataclasses

from steerfn.values import finite_number, public


@public
@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server; what exceeds one is refused with its value.

    Attributes:
        max_tokens: tokens of one text; a request that asks for more gets as many.
        max_rows: rows of one batch.
        max_queue: rows that may wait; further requests get 429.
        cache_tokens: tokens of all rows together that are kept where rows join and leave a running batch.
        max_body: bytes of a request.
        max_upload: bytes of a vector that is uploaded.
        max_choices: texts of one request (`n` times prompts).
        max_stops: stop texts of one request.
        max_steering: vectors of one request.
        max_alpha: the largest strength, of all that a request does with one vector together.
        timeout: seconds from a request's arrival to its last token.
        receive: seconds in which a request must have come whole.
        keep_alive: seconds of silence after which a stream that waits says so.
        gather: seconds that the worker waits for more rows when it begins a batch.
        drain: seconds that running requests get when the server is told to stop.

    Example:
        >>> from steerfn.serving import Limits
        >>> Limits(max_alpha=4.0).max_rows
        16
    """

    max_tokens: int = 512
    max_rows: int = 16
    max_queue: int = 256
    cache_tokens: int = 16384
    max_body: int = 1 << 20
    max_upload: int = 1 << 25
    max_choices: int = 16
    max_stops: int = 4
    max_steering: int = 8
    max_alpha: float = 1e4
    timeout: float = 120.0
    receive: float = 30.0
    keep_alive: float = 5.0
    gather: float = 0.005
    drain: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name in ("gather", "drain") else 1 if isinstance(field.default, int) else 1e-3
            finite_number(field.name, getattr(self, field.name), least=least)
