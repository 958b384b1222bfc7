"""Shared fixtures: one tiny seeded model, the real demo model, token ids."""

import warnings

import pytest
import torch
from families import build
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import steerfn as sf

# Tiny models gain nothing from a second thread, and test processes that run side by side lose a lot.
torch.set_num_threads(1)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch compiles rules for forward-mode gradients with its own deprecated jit
    import torch._decomp.decompositions_for_jvp  # noqa: F401


@pytest.fixture
def tiny() -> PreTrainedModel:
    """A fresh tiny random Llama: vocab 99, d_model 32, 3 blocks, 4 heads of 8."""
    return build("llama")


@pytest.fixture(scope="session")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct and its tokenizer; fetched once, then from the cache."""
    return sf.demo_model(progress=False)


@pytest.fixture
def prompt() -> torch.Tensor:
    """Two rows of six token ids without padding."""
    return torch.randint(3, 99, (2, 6), generator=torch.Generator().manual_seed(1))
