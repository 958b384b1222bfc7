"""What Prometheus reads."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TYPE = CONTENT_TYPE_LATEST
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meters:
    """Counters of one server.

    Args:
        waiting: how many texts wait or run.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "steerfn_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
        )
        self.steered = Counter("steerfn_steered_requests", "Requests by vector.", ["vector"], registry=self.registry)
        self.tokens = Counter("steerfn_tokens", "Tokens read and generated.", ["kind"], registry=self.registry)
        self.rows = Histogram("steerfn_batch_rows", "Rows of a batch.", buckets=ROWS, registry=self.registry)
        self.seconds = Histogram(
            "steerfn_request_seconds",
            "Seconds from arrival to the last token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first = Histogram(
            "steerfn_first_token_seconds",
            "Seconds from arrival to the first text.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queued = Histogram(
            "steerfn_queue_seconds",
            "Seconds that a text waited for its batch.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram("steerfn_batch_seconds", "Seconds of a batch.", buckets=SECONDS, registry=self.registry)
        self.refusals = Counter("steerfn_refused", "Requests refused, by reason.", ["code"], registry=self.registry)
        Gauge("steerfn_waiting", "Texts that wait or run.", registry=self.registry).set_function(waiting)

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self.registry)
