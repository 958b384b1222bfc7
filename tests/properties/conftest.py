"""Hypothesis profiles: `HYPOTHESIS_PROFILE=thorough pytest tests/properties` for a night's worth of cases."""

import os

from hypothesis import HealthCheck, settings

# derandomize: a run that fails for one fails for all. too_slow: two workers share a core.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
