"""Tiny random causal language models, one builder per architecture family.

`FAMILIES[name]()` (or `build(name)`) returns a seeded fp32 CPU model in eval mode: vocab 99,
width 32, 3 blocks, 4 heads of width 8, 2 key-value heads where the family has them. `SMALL` is
handed to every config that has a field of that name; the tables hold what a family needs besides.
A family that the installed transformers lacks is left out. No eos token, so greedy generation has
a fixed length; pad is 0. Every parameter is redrawn, so norms and biases are not trivial.

Left out, because they do not run from token ids and a padded mask, or not at this size: blt,
cpmant, dbrx, emu3, fuyu, git, musicgen, reformer, roc_bert, xlm, xlstm, xmod, qwen4_exp; gemma3n
and phi4_multimodal whole (timm, audio); encoder-decoders; bert-like models but bert and roberta.
A plain forward takes no account of left padding in gpt2, gpt_neo, gpt_bigcode, openai-gpt, ctrl,
biogpt, xglm and the bart and bert kinds (pass position_ids), paligemma (5.x), hunyuan (rotary
length), nor ever in rwkv, recurrent_gemma and, in 4.57, lfm2 and doge (they read the pads).
"""

import copy
import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

WIDTH, LAYERS, HEADS, HEAD_DIM, VOCAB = 32, 3, 4, 8, 99

_SAME: dict[int, str] = {
    WIDTH: "hidden_size n_embd d_model embed_dim dim word_embed_proj_dim lru_width moe_latent_size",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers",
    HEADS: "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads "
    "num_experts num_local_experts n_routed_experts linear_num_value_heads mamba_dt_rank "
    "time_step_rank rotary_dim index_topk moe_num_experts zero_expert_num linear_num_heads "
    "swa_num_attention_heads",
    2: "num_key_value_heads num_experts_per_tok linear_num_key_heads moe_k moe_topk index_n_heads "
    "patch_size n_shared_experts swa_num_key_value_heads",
    1: "mamba_n_groups n_groups n_group topk_group mamba_ngroups first_k_dense_replace",
    HEAD_DIM: "head_dim mamba_d_head mamba_head_dim mamba_headdim mamba_n_heads mamba_num_heads "
    "mamba_d_state mamba_chunk_size state_size chunk_size linear_key_head_dim n_mamba_heads "
    "linear_value_head_dim linear_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim "
    "index_head_dim image_size swa_head_dim",
    16: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size ssm_state_size "
    "global_head_dim",
    48: "intermediate_size ffn_dim decoder_ffn_dim ffn_hidden_size intermediate_size_mlp dim_ff block_ff_dim",
    128: "n_positions max_position_embeddings max_seq_len",
    VOCAB: "vocab_size vocab_size_per_layer_input",
}
SMALL: dict[str, Any] = {key: value for value, keys in _SAME.items() for key in keys.split()} | {
    "bos_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": None,
    "use_mamba_kernels": False,
}

_PLAIN = """
afmoe apertus arcee aria_text bart beam bert biogpt bitnet bloom codegen cohere cohere2_moe ctrl cwm
deepseek_v4 diffllama doge ernie4_5 ernie4_5_moe exaone_moe falcon falcon_mamba flex_olmo flint
gemma gemma4_unified_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gptj
granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 inkling2_text
inkling_text jais2 jetmoe kolibri1 laguna lfm3 llama mamba mellum mimo_v2_flash minimax_m2
minimax_m3_vl_text ministral3 mistral mixtral moshi mpt nanochat nemotron nemotron_h olmo olmo2
olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe recurrent_gemma
roberta rwkv seed_oss smollm3 solar_open stablelm starcoder2 trocr xglm xlnet
"""
_LATENT = """
axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots1 glm4_moe_lite glm_moe_dsa longcat_flash
minicpm3 youtu
"""
_MULTIPLIED = "granite granite_swa granitemoe granitemoe_swa hyperclovax"
_FULL_HEADS = {"num_key_value_heads": HEADS}
_SLIDE = ["sliding_attention", "full_attention", "sliding_attention"]
_SLIDING = {"sliding_window": 4, "layer_types": _SLIDE}
_LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_ATTN1 = {"attn_layer_period": 2, "attn_layer_offset": 1}
_HYBRID = {"layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 16}
_SCALED = {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.3}
_LLAMA = {"model_type": "llama"}
_CLIP, _SIGLIP = {"model_type": "clip_vision_model"}, {"model_type": "siglip_vision_model"}
_MROPE = {"rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2]}}
_DEPTH = {"depth": 1}
_FALCON_H1 = {"mamba_d_ssm": 64, "attention_out_multiplier": 0.7, "ssm_out_multiplier": 1.3}
_CROSS = {"cross_attention_layers": [1], "rope_scaling": {"rope_type": "default"}}

# name -> (model type, fields besides SMALL); a dict under a sub-config's name is its fields
_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in _PLAIN.split()},
    **{name: (name, _FULL_HEADS) for name in _LATENT.split()},
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_sliding": ("mistral", {"sliding_window": 4}),
    "ministral": ("ministral", _SLIDING),
    "gemma2": ("gemma2", _SLIDING),
    "gemma3_text": ("gemma3_text", _SLIDING),
    "vaultgemma": ("vaultgemma", _SLIDING),
    "cohere2": ("cohere2", _SLIDING),
    "olmo3": ("olmo3", _SLIDING),
    "exaone4": ("exaone4", _SLIDING),
    "gpt_oss": ("gpt_oss", _SLIDING),
    "modernbert-decoder": ("modernbert-decoder", {"global_attn_every_n_layers": 2}),
    "llama4_text": ("llama4_text", {"attention_chunk_size": 4, "moe_layers": [1]}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local", "global"], 1]]}),
    "gpt_neox_sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "phi_multi": ("phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True}),
    "opt_post_norm": ("opt", {"do_layer_norm_before": False}),
    "falcon_new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_sequential": ("falcon", {"parallel_attn": False, "multi_query": False, "alibi": True}),
    **{name: (name, _SCALED) for name in _MULTIPLIED.split()},
    "granitemoeshared": ("granitemoeshared", _SCALED | {"shared_intermediate_size": 16}),
    "granitemoehybrid": ("granitemoehybrid", _SCALED | _HYBRID),
    "qwen3_next": ("qwen3_next", _LINEAR),
    "qwen3_5_text": ("qwen3_5_text", _LINEAR),
    "olmo_hybrid": ("olmo_hybrid", _LINEAR),
    "kimi_linear": ("kimi_linear", _LINEAR | _FULL_HEADS),
    "bailing_hybrid": ("bailing_hybrid", {"layer_group_size": 2} | _FULL_HEADS),
    "gemma3n_text": ("gemma3n_text", _SLIDING | {"num_kv_shared_layers": 0}),
    "gemma4_text": ("gemma4_text", _SLIDING),
    "zaya": ("zaya", {"num_experts_per_tok": 1}),
    "minimax": ("minimax", _LINEAR),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "lfm2_moe": (
        "lfm2_moe",
        {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    ),
    "mamba2": ("mamba2", {"num_heads": 8}),
    "jamba": ("jamba", _ATTN1 | {"expert_layer_offset": 0}),
    "bamba": ("bamba", {"attn_layer_indices": [1]}),
    "zamba": ("zamba", {"layers_block_type": ["mamba", "hybrid", "hybrid"]}),
    "zamba2": ("zamba2", {"layers_block_type": ["mamba", "hybrid", "mamba"]}),
    "falcon_h1": ("falcon_h1", _FALCON_H1),
    "gemma3": ("gemma3", {"text_config": _SLIDING, "vision_config": _SIGLIP}),
    "llava": ("llava", {"text_config": _LLAMA, "vision_config": _CLIP}),
    "paligemma": ("paligemma", {"text_config": {"model_type": "gemma"}, "vision_config": _SIGLIP}),
    "mistral3": ("mistral3", {"text_config": _LLAMA, "vision_config": {"model_type": "pixtral"}}),
    "idefics3": ("idefics3", {"text_config": _LLAMA, "vision_config": {}}),
    "internvl": ("internvl", {"text_config": _LLAMA, "vision_config": {}}),
    "qwen2_vl": ("qwen2_vl", {"text_config": _MROPE, "vision_config": _DEPTH}),
    "qwen2_5_vl": ("qwen2_5_vl", {"text_config": _MROPE, "vision_config": _DEPTH}),
    "qwen3_vl": ("qwen3_vl", {"text_config": _MROPE, "vision_config": _DEPTH}),
    "llama4": ("llama4", {"text_config": {"moe_layers": [1]}, "vision_config": {}}),
    "mllama": ("mllama", {"text_config": _CROSS, "vision_config": {}}),
}


def _config(cls: type, given: dict[str, Any]) -> PretrainedConfig:
    """An instance of config class `cls` from SMALL and `given`; nested dicts become configs."""
    known = {*inspect.signature(cls.__init__).parameters, *getattr(cls, "__dataclass_fields__", ())}
    fields = {key: value for key, value in SMALL.items() if key in known} | given
    for key, nested in cls.sub_configs.items():
        if key in given:
            inner = dict(given[key])
            kind = inner.pop("model_type", None)
            fields[key] = _config(CONFIG_MAPPING[kind] if kind else nested, inner).to_dict()
    return cls(**fields)


def _build(model_type: str, given: dict[str, Any]) -> PreTrainedModel:
    config = _config(CONFIG_MAPPING[model_type], given)
    vision = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (AutoModelForImageTextToText if vision else AutoModelForCausalLM).from_config(config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape, generator=random, dtype=value.dtype)
            value.copy_(0.2 * noise if value.ndim > 1 else value + 0.1 * noise)
    return model.eval()


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    name: partial(_build, model_type, given)
    for name, (model_type, given) in _TABLE.items()
    if model_type in CONFIG_MAPPING_NAMES
}

CORE: tuple[str, ...] = tuple(
    name
    for name in """
llama mistral gemma gemma2 gemma3_text gemma3 qwen2 qwen3 phi phi3 gpt2 gpt_neox gptj opt falcon bloom stablelm olmo2
granite cohere cohere2 starcoder2 mixtral qwen2_moe gpt_oss mamba jamba qwen3_next llava mpt lfm2 falcon_h1
""".split()
    if name in FAMILIES
)
"""The families that every law of the model boundary is tested on; the others are in the slow tests."""

UNSUPPORTED = {"hrm_text", "deepseek_v4", "hy_v4", "gemma3n_text"}
"""Families that are refused, by `layout` or at use (several residual streams, blocks that run several times)."""


@functools.cache
def _pristine(name: str) -> PreTrainedModel:
    """A model that is only ever copied: a copy is made faster than a model."""
    return FAMILIES[name]()


def build(name: str) -> PreTrainedModel:
    """The tiny model of family `name`; the same parameters at every call."""
    return copy.deepcopy(_pristine(name))


@functools.cache
def _kept(name: str) -> PreTrainedModel:
    return build(name)


def shared(name: str) -> PreTrainedModel:
    """The model of family `name` that tests share which leave a model as it was; a fresh one outside `CORE`."""
    return _kept(name) if name in CORE else build(name)  # others may keep a state on their modules
