"""`from_pretrained` on damaged files, on models that see, and on one GGUF file: loaded right, or a clear sentence."""

import json
import shutil

import pytest
import torch
from families import build
from saved import save_tiny
from words import words

import steerfn as sf


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    words().save_pretrained(folder)
    build("llama").save_pretrained(folder, max_shard_size="20KB")
    return folder


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def garble(folder):
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")


def break_config(folder):
    (folder / "config.json").write_text('{"model_type": "llama", ')


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')


def lose_shard(folder):
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def wrong_index(folder):
    """An index that names a file and forgets some weights."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = content["weight_map"].pop("model.layers.1.mlp.down_proj.weight")
    for name, file in list(content["weight_map"].items()):
        if file == lost:
            content["weight_map"].pop(name)
    index.write_text(json.dumps(content))


def other_sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


def more_blocks(folder):
    """Weights of a block that the files do not have: transformers would fill it with random numbers."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))


@pytest.mark.parametrize(
    "damage", [truncate, garble, break_config, break_tokenizer, other_sizes, more_blocks], ids=lambda f: f.__name__
)
def test_damaged_files_are_a_clear_error(whole, tmp_path, damage):
    folder = shutil.copytree(whole, tmp_path / "damaged")
    sf.from_pretrained(folder, device="cpu")
    damage(folder)
    with pytest.raises(sf.ModelError) as caught:
        sf.from_pretrained(folder, device="cpu")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("damage", [lose_shard, wrong_index], ids=lambda f: f.__name__)
def test_damaged_shards_are_a_clear_error(sharded, tmp_path, damage):
    folder = shutil.copytree(sharded, tmp_path / "damaged")
    assert sf.from_pretrained(folder, device="cpu")[0].config.vocab_size == 99
    damage(folder)
    with pytest.raises(sf.ModelError) as caught:
        sf.from_pretrained(folder, device="cpu")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("family", ["llava", "mistral3", "qwen2_5_vl"])
def test_models_that_see_load_by_name(tmp_path, family):
    saved = build(family)
    saved.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    model, tokenizer = sf.from_pretrained(tmp_path, device="cpu")
    ids = torch.tensor([[1, 3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, saved(ids).logits)
    assert type(model) is type(saved)
    v = sf.SteeringVector({1: torch.randn(sf.layout(model).d_model, generator=torch.Generator().manual_seed(0))})
    texts = [sf.generate(model, tokenizer, "a b", op, chat=False, max_new_tokens=4).token_ids for op in (None, 50 * v)]
    assert texts[0] != texts[1]


def test_a_gguf_file_is_a_model(tmp_path):
    """Against the model whose weights were written into it, with the tensors' llama.cpp names."""
    gguf = pytest.importorskip("gguf")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    plain = LlamaForCausalLM(config).eval()
    path = tmp_path / "tiny.model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(32)
    tokens = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "▁", "x1", "x2"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 32)
    writer.add_token_types([2, 3, 3] + [1] * 29)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.q_proj": "blk.0.attn_q", "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v", "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate", "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }  # fmt: skip
    for name, weight in plain.state_dict().items():
        weight = weight.float()
        if ".q_proj" in name or ".k_proj" in name:  # llama.cpp keeps the two halves of a rotation side by side
            weight = weight.reshape(2, 2, 8, 32).transpose(1, 2).reshape(32, 32)
        writer.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model, tokenizer = sf.from_pretrained(path, device="cpu")
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-5)
    assert sf.generate(model, tokenizer, "ab", max_new_tokens=3).token_ids

    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(sf.ModelError, match="could not be loaded"):
        sf.from_pretrained(path, device="cpu")


def test_a_gguf_file_that_is_not_there():
    with pytest.raises(sf.ModelError, match=r"There is no file '/no/such/model.gguf'"):
        sf.from_pretrained("/no/such/model.gguf")
