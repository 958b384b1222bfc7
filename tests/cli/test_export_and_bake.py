"""`steerfn export` and `steerfn bake`: other engines' files from a vector file; mistakes are one line, exit code 2."""

import pytest
import torch
from steering import vector
from transformers import AutoModelForCausalLM
from words import words

import steerfn as sf
from steerfn.cli import main

V = vector(sf.resid_post[1], scale=2.0)


@pytest.fixture
def at_home(tiny, tmp_path, monkeypatch):
    """A folder with a vector, in which the model is the tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda **_: (tiny, words()))
    sf.save(V, "v.safetensors")
    return tiny


def told(capsys, *arguments):
    code = main(list(map(str, arguments)))
    found = capsys.readouterr()
    return code, found.out, found.err


def test_export_writes_what_the_suffix_says(at_home, capsys):
    code, out, _ = told(capsys, "export", "v.safetensors", "v.gguf", "--alpha", 3)
    assert code == 0 and "Wrote v.gguf: SteeringVector(resid_post[1]" in out and "alpha 3" in out
    torch.testing.assert_close(sf.load("v.gguf")[sf.resid_post[1]], 3 * V[sf.resid_post[1]])
    assert told(capsys, "export", "v.safetensors", "v.pt", "--alpha", -1)[0] == 0
    assert torch.load("v.pt", weights_only=True)["layers.1"]["steering_coefficient"] == -1


def test_export_overwrites_only_when_told(at_home, capsys):
    code, _, err = told(capsys, "export", "v.safetensors", "v.safetensors", "--alpha", 3)
    assert code == 2 and err == "steerfn: 'v.safetensors' exists; name another file, or pass --overwrite.\n"
    assert sf.load("v.safetensors").identical(V)
    assert told(capsys, "export", "v.safetensors", "v.safetensors", "--alpha", 3, "--overwrite")[0] == 0
    assert not sf.load("v.safetensors").identical(V)


def test_what_a_format_cannot_say_is_one_line(at_home, capsys):
    sf.save(vector(sf.attn_out[1]), "a.safetensors")
    for out in ("a.gguf", "a.pt", "a.bin"):
        code, _, err = told(capsys, "export", "a.safetensors", out)
        assert code == 2 and err.startswith("steerfn: ") and err.count("\n") == 1


def test_bake_writes_a_checkpoint_that_is_steered_by_itself(at_home, capsys, prompt):
    code, out, _ = told(capsys, "bake", "v.safetensors", "baked", "--alpha", 2)
    assert code == 0 and "Wrote baked. Loaded by stock transformers, its logits differ from live steering by" in out
    made = AutoModelForCausalLM.from_pretrained("baked")
    with torch.no_grad(), sf.steer(at_home, V, 2.0):
        torch.testing.assert_close(made(prompt).logits, at_home(prompt).logits, rtol=1e-4, atol=1e-4)
    code, _, err = told(capsys, "bake", "v.safetensors", "baked")
    assert code == 2 and "'baked' already holds something" in err
    assert told(capsys, "bake", "v.safetensors", "without", "--ablate")[0] == 0
    op = sf.ablate(sf.discover.spread(V, sf.layout(at_home).stream))
    made = AutoModelForCausalLM.from_pretrained("without")
    with torch.no_grad(), sf.steer(at_home, op):
        torch.testing.assert_close(made(prompt).logits, at_home(prompt).logits, rtol=1e-4, atol=1e-4)
