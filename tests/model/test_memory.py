"""What a steered pass leaves behind: no hidden state outlives it, not even until the next garbage collection."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import families
import pytest
import torch
import transformers
from torch import Tensor

import steerfn as sf
from steerfn.operators import Operator
from steerfn.run._positions import Read
from steerfn.run._read import plan, run
from steerfn.values._struct import static, struct

OLD = transformers.__version__.startswith("4.")


@struct
class Watching(Operator):
    """Notes the states that it hands on, weakly, and asks where its tokens are."""

    at: sf.Site = static()
    seen: Any = static()

    @property
    def sites(self) -> tuple[sf.Site, ...]:
        return (self.at,)

    def bind(self, site: sf.Site, device: Any = None) -> Any:
        def note(hidden: Tensor, info: sf.Info) -> Tensor:
            assert info.tokens.index.shape == hidden.shape[:2]
            out = hidden + 0
            self.seen.append(weakref.ref(out))
            return out

        return note


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("site", [sf.resid_pre[1], sf.resid_post[1]], ids=str)
def test_no_state_outlives_its_pass(site: sf.Site) -> None:
    model, seen = families.build("llama"), []
    with sf.steer(model, Watching(site, seen)):
        model(torch.tensor([[5, 6, 7]]))
        model.model.layers[1](torch.zeros(1, 3, 32), position_embeddings=(torch.ones(1, 3, 8), torch.ones(1, 3, 8)))
        assert len(seen) == 2
        assert [ref() for ref in seen] == [None, None]


@pytest.mark.usefixtures("without_collector")
def test_a_pass_that_is_cut_short_leaves_nothing() -> None:
    model, seen = families.build("llama"), []
    reads = [Read((5, 6, 7, 8), (3,)), Read((5, 6, 9), (2,))]
    planned = plan(model, reads, 1)
    with sf.steer(model, Watching(sf.resid_pre[1], seen)):
        assert sorted(n for batch in run(model, planned, progress=False) for n in batch.texts) == [0, 1]
    assert seen
    assert all(ref() is None for ref in seen)


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("site", [sf.attn_out[1], sf.resid_post[1]], ids=str)
def test_a_checkpointed_pass_leaves_nothing_after_backward(site: sf.Site) -> None:
    """What its blocks need to run again is held by the graph alone, also after the context closed."""
    model, seen = families.build("llama").train(), []
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # transformers 5, 4
    getattr(model, f"{name}_checkpointing_enable")()
    with sf.steer(model, Watching(site, seen)):
        loss = model(torch.tensor([[5, 6, 7]]), use_cache=False).logits.sum()
    loss.backward()
    assert len(seen) == (1 if site.kind == "resid_post" and not OLD else 2)  # transformers 5 checkpoints inside a block
    del loss
    assert all(ref() is None for ref in seen)
