"""Hypothesis profiles: `HYPOTHESIS_PROFILE=thorough pytest tests/properties` for a night's worth of cases."""

import os
import warnings

from hypothesis import HealthCheck, settings

# derandomize: a run that fails for one fails for all. too_slow: two workers share a core.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch compiles rules for forward-mode gradients with its own deprecated jit
    import torch._decomp.decompositions_for_jvp  # noqa: F401
