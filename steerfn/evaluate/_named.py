"""What a result says of the vectors and metrics it is about."""

from typing import Any

from steerfn._io_document import compose, tensors_of
from steerfn._vector import SteeringVector
from steerfn.metrics._metric import Metric


def identified(vector: SteeringVector) -> dict[str, Any]:
    """Which vector it was: the hash that its file would carry, and what it says of itself."""
    return {
        "sha256": compose(vector, tensors_of(vector))["sha256"],
        "sites": [site.name for site in vector.sites],
        "method": vector.metadata.get("method"),
    }


def told(metric: Metric) -> dict[str, Any]:
    """What the numbers of a metric are."""
    return {"unit": metric.unit, "better": metric.better, "about": metric.about}
