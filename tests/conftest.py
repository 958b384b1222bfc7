"""Shared fixtures: one tiny seeded model, the real demo model, token ids.

And hypothesis profiles: `HYPOTHESIS_PROFILE=thorough pytest tests/properties` for a night's worth of cases.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import build
from hypothesis import HealthCheck, settings
from snapshot import Snapshot
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import steerfn as sf

# Tiny models gain nothing from a second thread, and test processes that run side by side lose a lot.
torch.set_num_threads(1)

# Before any test is made, as they take what holds then. derandomize: a run that fails for one fails for all. No
# deadline, and too_slow: two workers share a core.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch compiles rules for forward-mode gradients with its own deprecated jit
    import torch._decomp.decompositions_for_jvp  # noqa: F401


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    """A tiny random Llama: vocab 99, d_model 32, 3 blocks, 4 heads of 8.

    A fresh one; in a file marked `steady` the same one again until a test has changed it, as what is found out about a
    model (its layout, the shortcuts that it supports) takes longer than most tests.
    """
    if request.node.get_closest_marker("steady") is None:
        yield build("llama")
        return
    model = _steady.get(request.path) or _steady.setdefault(request.path, build("llama"))
    before = Snapshot.of(model)
    yield model
    if before.differences(Snapshot.of(model)) or any(each.grad is not None for each in model.parameters()):
        del _steady[request.path]


_steady: dict[Path, PreTrainedModel] = {}


@pytest.fixture(scope="session")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct and its tokenizer; fetched once, then from the cache."""
    return sf.demo_model(progress=False)


@pytest.fixture
def prompt() -> torch.Tensor:
    """Two rows of six token ids without padding."""
    return torch.randint(3, 99, (2, 6), generator=torch.Generator().manual_seed(1))
