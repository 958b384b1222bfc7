"""`from_pretrained`: what it places, casts, quantizes, passes on and refuses."""

import sys

import pytest
import torch
from saved import save_tiny

from steerfn.model._from_pretrained import from_pretrained
from steerfn.values._errors import ModelError, SteerError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def logits(model, tokenizer):
    ids = tokenizer("the cat sat on a mat", return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits.float()


def test_gives_what_transformers_gives(tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = from_pretrained(tiny, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype="auto").eval()
    assert tokenizer("the cat").input_ids == AutoTokenizer.from_pretrained(tiny)("the cat").input_ids
    assert torch.equal(logits(model, tokenizer), logits(plain, tokenizer))
    assert not model.training


def test_default_dtype_is_the_checkpoints(tiny):
    assert from_pretrained(tiny)[0].dtype == torch.bfloat16
    assert from_pretrained(str(tiny), dtype="auto")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["fp32", "float32", "torch.float32", torch.float32])
def test_dtype_spellings(tiny, dtype):
    assert from_pretrained(tiny, dtype=dtype)[0].dtype == torch.float32


def test_the_old_keyword_for_dtype(tiny):
    assert from_pretrained(tiny, torch_dtype=torch.float16)[0].dtype == torch.float16


@pytest.mark.parametrize("dtype", ["int8", "fp8x", torch.int8, 16])
def test_bad_dtype_names_what_works(tiny, dtype):
    with pytest.raises(SteerError, match=r"dtype=.*'bf16', 'fp16', 'fp32'"):
        from_pretrained(tiny, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
def test_bad_device_names_what_works(tiny, device):
    with pytest.raises(SteerError, match=rf"device='{device}' is not.*'auto', 'cpu'"):
        from_pretrained(tiny, device=device)


@pytest.mark.parametrize("device", [None, "auto", "cpu", torch.device("cpu")])
def test_placement(tiny, device):
    best = "cuda" if torch.cuda.is_available() else "cpu"
    best = "mps" if torch.backends.mps.is_available() else best
    expected = best if device in (None, "auto") else "cpu"
    assert from_pretrained(tiny, device=device)[0].device.type == expected


def test_device_map_and_device_exclude_each_other(tiny):
    with pytest.raises(SteerError, match="both place the model"):
        from_pretrained(tiny, device="cpu", device_map="auto")
    assert from_pretrained(tiny, device_map={"": "cpu"})[0].device.type == "cpu"


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "~/no-such-folder", "a/b/c"])
def test_missing_folder(name):
    with pytest.raises(ModelError, match="There is no folder .*save_pretrained"):
        from_pretrained(name)


def test_unknown_hub_name_keeps_the_cause():
    with pytest.raises(ModelError, match="from the hub .*check the spelling") as caught:
        from_pretrained("nobody/no-such-model-steerfn", local_files_only=True)
    assert isinstance(caught.value.__cause__, OSError)


def test_folder_without_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ModelError, match="could not be loaded as a causal LM"):
        from_pretrained(tmp_path)


def test_unknown_quantization(tiny):
    with pytest.raises(SteerError, match="'int3' is unknown: pass None, 'int8' or 'int4'"):
        from_pretrained(tiny, quantization="int3")


def test_quantization_without_torchao(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(SteerError, match=r'needs torchao.*pip install .*"\.\[quantized\]"'):
        from_pretrained(tiny, quantization="int8")


@pytest.mark.parametrize(("name", "error"), [("int8", 0.03), ("int4", 0.3)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_quantized_weights_only(tiny, name, error, dtype):
    pytest.importorskip("torchao")
    plain, tokenizer = from_pretrained(tiny, device="cpu", dtype="fp32")
    model, _ = from_pretrained(tiny, device="cpu", dtype=dtype, quantization=name)
    weight = model.model.layers[0].mlp.down_proj.weight
    assert type(weight) is not torch.nn.Parameter and not model.training
    assert model.model.embed_tokens.weight.dtype == model.dtype
    expected = logits(plain, tokenizer)
    found = logits(model, tokenizer)
    assert 0 < (found - expected).norm() / expected.norm() < error


def test_int4_needs_widths_in_groups(tmp_path):
    pytest.importorskip("torchao")
    with pytest.raises(ModelError, match="quantization='int4'.*multiple of 32.*try 'int8'"):
        from_pretrained(save_tiny(tmp_path, width=48), device="cpu", quantization="int4")


def test_int4_levels(tiny):
    """At most 16 values in each group of 32: four bits in precision, whatever the storage."""
    pytest.importorskip("torchao")
    model, _ = from_pretrained(tiny, device="cpu", dtype="fp32", quantization="int4")
    weight = model.model.layers[0].mlp.down_proj.weight.dequantize()
    assert max(len(group.unique()) for group in weight.reshape(-1, 32)) <= 16
