"""The demo model: a small real one, found in the cache or built once from what is reachable."""

from steerfn.model.demo._demo_model import demo_model as demo_model
from steerfn.model.demo._sources import HUB as HUB
