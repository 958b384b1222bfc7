"""The model that most tests of the server serve."""

import pytest
from families import build


@pytest.fixture(scope="module")
def model():
    """A tiny Llama; its tokenizer is `served.tokenizer`."""
    return build("llama")
