"""`bake`: the written checkpoint, loaded by stock transformers, does what live steering does; or nothing is written."""

import hashlib
import json
import os
import sys
import time

import pytest
import torch
from families import build
from transformers import AutoModelForCausalLM, AutoTokenizer
from words import words

import steerfn as sf
from steerfn.engines import _bake, _weights

ADDED = {
    "llama": "LlamaForCausalLM",
    "mistral": "LlamaForCausalLM",
    "qwen2": "LlamaForCausalLM",
    "granite": "GraniteForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
}
ABLATED = (*ADDED, "qwen3", "gemma", "phi", "phi3")
PROMPT = torch.tensor([[5, 17, 42, 3, 88, 61]])


def vector(*sites, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return sf.SteeringVector({site: torch.randn(32, generator=draw) for site in sites})


def unwindowed(family):
    """A model of a family; Mistral and Qwen2 without sliding windows."""
    model = build(family)
    model.config.sliding_window = None
    return model


def logits(model, op=None):
    with torch.no_grad():
        return (sf.functional(model)(op, PROMPT) if op is not None else model(PROMPT)).logits


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@pytest.mark.parametrize("family", ADDED)
def test_pitfall_36_additions_are_in_the_checkpoint(family, tmp_path):
    model = unwindowed(family)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    op = sf.chain(sf.add(vector(sf.resid_post[0], sf.resid_post[2]), 1.5), sf.add(vector(sf.mlp_out[0], seed=1), -0.5))
    folder = sf.bake(model, words(), op, tmp_path / "baked")
    made = loaded(folder)
    assert type(made).__name__ == ADDED[family]
    torch.testing.assert_close(logits(made), logits(model, op), rtol=1e-4, atol=1e-4)
    assert (logits(made) - logits(model)).abs().max() > 0.1
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    ids = [each.generate(PROMPT, max_new_tokens=8, do_sample=False) for each in (made,)]
    with sf.steer(model, op):
        assert torch.equal(ids[0], model.generate(PROMPT, max_new_tokens=8, do_sample=False))


@pytest.mark.parametrize("family", ABLATED)
def test_an_ablation_is_in_the_weights(family, tmp_path):
    model = unwindowed(family)
    stream = sf.layout(model).stream
    v = sf.discover.spread(vector(sf.resid_post[1]), stream)
    folder = sf.bake(model, words(), sf.ablate(v), tmp_path / "baked")
    made = loaded(folder)
    torch.testing.assert_close(logits(made), logits(model, sf.ablate(v)), rtol=1e-4, atol=1e-4)
    unit = v[stream[0]] / v[stream[0]].norm()
    with torch.no_grad():
        _, states = sf.capture(made, stream)(PROMPT)
    for site in stream:
        assert (states[site] @ unit).abs().max() < 1e-4, f"{site} still has a part along the direction"


def test_every_bias_of_a_llama_is_written_and_zero_where_nothing_is_added(tmp_path):
    """pitfall: engines leave a bias uninitialised that the configuration announces and the checkpoint lacks."""
    from safetensors.torch import load_file

    folder = sf.bake(build("llama"), words(), vector(sf.resid_post[1]), tmp_path / "baked")
    state = load_file(folder / "model.safetensors")
    biases = {key: tensor for key, tensor in state.items() if key.endswith(".bias")}
    assert len(biases) == 9 and json.loads((folder / "config.json").read_text())["mlp_bias"] is True
    assert [key for key, tensor in biases.items() if tensor.any()] == ["model.layers.1.mlp.down_proj.bias"]


def test_a_bias_that_is_there_is_added_to(tmp_path):
    model = build("gpt2")
    own = model.transformer.h[1].mlp.c_proj.bias.detach().clone()
    v = vector(sf.resid_pre[2])
    made = loaded(sf.bake(model, words(), v, tmp_path / "baked"))
    torch.testing.assert_close(made.transformer.h[1].mlp.c_proj.bias, own + v[sf.resid_pre[2]])


def test_tied_embeddings_are_untied_by_an_ablation(tmp_path):
    model = build("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    op = sf.ablate(sf.discover.spread(vector(sf.resid_post[1]), sf.layout(model).stream))
    made = loaded(sf.bake(model, words(), op, tmp_path / "baked"))
    assert torch.equal(made.lm_head.weight, model.model.embed_tokens.weight)
    assert not torch.equal(made.lm_head.weight, made.model.embed_tokens.weight)


def test_the_record_says_what_was_done_and_how_to_get_back(tmp_path):
    model = build("llama")
    v = vector(sf.resid_post[1]).with_metadata(model=sf.values.fingerprint(model, weights=True), seed=0)
    op = sf.chain(sf.add(v, 1.5), sf.add(v.with_metadata(seed=1), 0.5))
    folder = sf.bake(model, words(), op, tmp_path / "baked")
    record = json.loads((folder / "steerfn.json").read_text())
    assert record["model"] == sf.values.fingerprint(model) and record["versions"]["steerfn"] == sf.__version__
    assert record["check"]["difference_rms"] < 1e-4 < record["check"]["effect_rms"]
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in folder.iterdir()} - {"steerfn.json", "steerfn"} <= set(record["sha256"])
    live = sf.load(folder / "steerfn" / "vector.safetensors")
    assert live.metadata == {"model": v.metadata["model"]}  # what both vectors say
    torch.testing.assert_close(logits(model, sf.add(live)), logits(model, op))
    assert "sf.add(sf.load('steerfn/vector.safetensors'))" in record["back"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half(dtype, tmp_path):
    model = build("llama").to(dtype)
    made = loaded(sf.bake(model, words(), sf.add(vector(sf.resid_post[1]), 4.0), tmp_path / "baked"))
    assert made.dtype == dtype


def test_shards_and_generation_settings_are_written(tmp_path):
    model = build("llama")
    model.generation_config.repetition_penalty = 1.25
    folder = sf.bake(model, words(), vector(sf.resid_post[1]), tmp_path / "baked", max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1 and (folder / "model.safetensors.index.json").exists()
    assert loaded(folder).generation_config.repetition_penalty == 1.25


def test_generation_settings_that_contradict_each_other_are_refused(tmp_path):
    model = build("llama")
    model.generation_config.update(do_sample=False, temperature=0.3)
    with pytest.raises(
        sf.ModelError, match=r"refuses to write the model's generation settings \(.*temperature.*\); make"
    ):
        sf.bake(model, words(), vector(sf.resid_post[1]), tmp_path / "baked")
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
def test_the_real_model_with_its_tokenizer(demo, tmp_path):
    model, tokenizer = demo
    draw = torch.Generator().manual_seed(0)
    v = sf.SteeringVector({sf.resid_post[12]: torch.randn(576, generator=draw)})
    folder = sf.bake(model, tokenizer, sf.add(v, 2.0), tmp_path / "baked")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.chat_template == tokenizer.chat_template
    ids = theirs("The weather today is", return_tensors="pt").input_ids
    with sf.steer(model, v, 2.0):
        live = model.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(loaded(folder).generate(ids, max_new_tokens=20, do_sample=False), live)


def everywhere(model):
    return sf.discover.spread(vector(sf.resid_post[1]), sf.layout(model).stream)


V = vector(sf.resid_post[1])
REFUSED = {
    "scope": (sf.at(sf.generated, sf.add(V)), "cannot be baked for the scope generated; drop the scope, or steer live"),
    "condition": (sf.when(sf.projection_above(V, 1.0), sf.add(V)), "cannot be written into weights"),
    "other operator": (sf.rotate(V, 0.3), "cannot be written into weights"),
    "rows": (sf.add(V, torch.tensor([1.0, 2.0])), "A strength for each row cannot be baked"),
    "nothing": (sf.add(V, 0.0), "The operator changes nothing"),
    "elsewhere": (sf.add(vector(sf.attn_out[1])), r"An addition at attn_out\[1\] does not add to a block's output"),
    "before the first": (sf.add(vector(sf.resid_pre[0])), r"An addition at resid_pre\[0\] does not add"),
    "one place": (sf.ablate(V), "an ablation is baked along the whole stream only, and this one leaves out"),
    "both": (sf.chain(sf.ablate(V), sf.add(V)), "additions, or one ablation, and not both"),
    "several": (sf.ablate(vector(sf.resid_post[1], sf.resid_post[0])), "differ from site to site"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_weights_cannot_do_is_refused_with_what_to_use(case, tmp_path):
    op, told = REFUSED[case]
    with pytest.raises(sf.SteerError, match=told):
        sf.bake(build("llama"), words(), op, tmp_path / "baked")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "family, told",
    [
        ("gemma2", "cannot be baked into Gemma2ForCausalLM"),
        ("qwen3", "those of LlamaForCausalLM, MistralForCausalLM"),
        ("mistral", "a Llama has no sliding windows"),
    ],
)
def test_what_a_family_cannot_hold_is_refused(family, told, tmp_path):
    model = build(family)
    if family == "mistral":
        model.config.sliding_window = 4
    with pytest.raises(sf.ModelError, match=told):
        sf.bake(model, words(), V, tmp_path / "baked")
    if family == "gemma2":
        with pytest.raises(sf.ModelError, match="it is exact where every matrix writes straight to the stream"):
            sf.bake(model, words(), sf.ablate(everywhere(model)), tmp_path / "baked")
    assert not list(tmp_path.iterdir())


def test_pitfall_36_a_checkpoint_that_does_something_else_is_not_left_behind(tmp_path, monkeypatch):
    """The check can fail: a family written without its biases, and one whose scale is forgotten."""
    forgotten = _weights.FAMILIES["GraniteForCausalLM"]._replace(scale=lambda config: 1.0)
    monkeypatch.setitem(_weights.FAMILIES, "GraniteForCausalLM", forgotten)
    model = build("granite")
    model.config.residual_multiplier = 0.3
    for layer in model.model.layers:
        layer.residual_multiplier = 0.3
    with pytest.raises(sf.ModelError, match="logits differ from live steering"):
        sf.bake(model, words(), V, tmp_path / "baked")
    monkeypatch.setitem(_weights.WRITERS, "LlamaForCausalLM", ("mlp.down_proj",))
    model = build("llama")
    with pytest.raises(sf.ModelError, match="logits differ from live steering"):
        sf.bake(model, words(), sf.ablate(everywhere(model)), tmp_path / "baked")
    assert not list(tmp_path.iterdir())


def test_steering_below_rounding_is_not_claimed(tmp_path):
    model = build("llama").bfloat16()
    with pytest.raises(sf.ModelError, match="cannot be told from rounding"):
        sf.bake(model, words(), sf.add(V, 1e-4), tmp_path / "baked")


def test_folders_are_safe(tmp_path):
    model, full = build("llama"), tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(sf.FileError, match="already holds something, which is never overwritten"):
        sf.bake(model, words(), V, full)
    with pytest.raises(sf.FileError, match="does not exist; make it first"):
        sf.bake(model, words(), V, tmp_path / "no" / "baked")
    (tmp_path / "empty").mkdir()
    assert (sf.bake(model, words(), V, tmp_path / "empty") / "config.json").exists()
    assert (full / "mine.txt").read_text() == "keep" and {path.name for path in tmp_path.iterdir()} == {"full", "empty"}


@pytest.mark.parametrize(
    "more, told",
    [
        ({"tokenizer": None}, "A transformers tokenizer is needed, not None"),
        ({"out_dir": None}, "named by text or a Path, not by None"),
        ({"max_shard_size": "big"}, "max_shard_size is a size such as '5GB' or '500MB', not 'big'"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_written(more, told, tmp_path):
    given = {"tokenizer": words(), "op": V, "out_dir": tmp_path / "baked", **more}
    with pytest.raises(sf.SteerError, match=told):
        sf.bake(build("llama"), **given)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_bake_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(_bake, "_compare_with_live", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sf.bake(build("llama"), words(), V, tmp_path / "baked")
    assert not list(tmp_path.iterdir())


def test_quantized_weights_are_refused(tmp_path):
    model = build("llama")
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(
        torch.zeros(32, 48, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(sf.ModelError, match="is quantized, offloaded or sharded"):
        sf.bake(model, words(), V, tmp_path / "baked")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_is_full_is_one_sentence_and_nothing_is_left(tmp_path):
    """The writers of weights and tokenizers have exceptions of their own, which are no OSError."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(sf.FileError, match=r"Cannot write '.*baked': .*; nothing was left there\."):
                sf.bake(build("llama"), words(), sf.add(vector(sf.resid_post[0])), tmp_path / "baked")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.iterdir())


def test_what_killed_runs_left_goes_a_day_later(tmp_path):
    old, young, stranger = (tmp_path / f".steerfn-{name}.tmp" for name in ("0" * 16, "1" * 16, "mine"))
    for folder in (old, young, stranger):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    then = time.time() - 2 * 86400
    for path in (old / "model.safetensors", old, young, stranger / "model.safetensors", stranger):
        os.utime(path, (then, then))
    sf.bake(build("llama"), words(), sf.add(vector(sf.resid_post[0])), tmp_path / "baked")
    assert {path.name for path in tmp_path.iterdir()} == {"baked", young.name, stranger.name}
