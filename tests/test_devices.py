"""The same steering on every accelerator that is there."""

import pytest
import torch
from families import build
from steering import vector

import steerfn as sf

DEVICES = [
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device here")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_steering_on_an_accelerator(device, dtype, family, prompt):
    model, ids = build(family).to(device, dtype), prompt.to(device)
    v = vector(sf.resid_post[1], sf.resid_pre[2])  # stays on the CPU: directions go where the state is
    op = sf.chain(sf.at(sf.generated, sf.add(v, 2.0)), sf.rows([sf.ablate(v), None]), sf.rotate(v, 0.1))
    with torch.no_grad():
        before = model(ids).logits
        with sf.steer(model, op):
            inside = model(ids).logits
            model.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(model(ids).logits, before) and not torch.equal(inside, before)
        assert torch.equal(sf.functional(model)(op, ids).logits, inside)
        _, acts = sf.capture(model, v.sites)(ids)
    assert all(a.device.type == device and a.dtype == dtype for a in acts.values())
