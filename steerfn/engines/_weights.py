"""Steering as weights: additions as biases, an ablation as matrices that are orthogonal to the direction.

What is added to a block's output is added to the bias of its last projection. Which biases a family has, and which of
them other engines read, differs; what has none is written as a Llama, whose `mlp_bias` transformers and vLLM honour.
Engines leave a bias uninitialised that a checkpoint lacks, so all that the configuration announces are written, as
zeros where nothing is added.

For an ablation, `W' = (I - r r^T) W` for whatever is added to the residual stream: embeddings, the last projections of
both sublayers, and their biases. Then no block ever writes along `r`, which is what ablating `r` everywhere does
(Arditi et al. 2024). A head that shares the embeddings' weights reads them as they were, so it gets weights of its own.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steerfn.model import Layout
from steerfn.values import ModelError

INSTEAD = "save the vector and steer live, with sf.steer or sf.generate"
LLAMA = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings initializer_range rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id "
    "tie_word_embeddings rope_theta rope_scaling rope_parameters attention_dropout head_dim"
).split()
"""What a Llama's configuration shares with those of its relatives."""


class Family(NamedTuple):
    """How one architecture is baked.

    Attributes:
        projection: what writes a block's output, from the block.
        config: the configuration of the result.
        refuses: why a model of this architecture cannot be baked, if so.
        scale: by what a block multiplies its output before adding it.
    """

    projection: str
    config: Callable[[Any], Any] = copy.deepcopy
    refuses: Callable[[Any], str | None] = lambda config: None
    scale: Callable[[Any], float] = lambda config: 1.0


def _with_mlp_bias(config: Any) -> Any:
    config = copy.deepcopy(config)
    config.mlp_bias = True
    return config


def _as_llama(attention_bias: bool) -> Callable[[Any], Any]:
    def llama_config(config: Any) -> Any:
        from transformers import LlamaConfig

        known = {name: value for name, value in config.to_dict().items() if name in LLAMA and value is not None}
        return LlamaConfig(**known, attention_bias=attention_bias, mlp_bias=True)

    return llama_config


def _slides(config: Any) -> str | None:
    kinds = getattr(config, "layer_types", None)
    slides = any(kind != "full_attention" for kind in kinds) if kinds else bool(getattr(config, "sliding_window", None))
    return "a Llama has no sliding windows" if slides else None


def _odd_opt(config: Any) -> str | None:
    if not config.do_layer_norm_before:
        return "its blocks normalise after they add"
    return None if config.word_embed_proj_dim == config.hidden_size else "it projects its embeddings"


FAMILIES = {
    "LlamaForCausalLM": Family("mlp.down_proj", _with_mlp_bias),
    "MistralForCausalLM": Family("mlp.down_proj", _as_llama(False), _slides),
    "Qwen2ForCausalLM": Family("mlp.down_proj", _as_llama(True), _slides),
    "GraniteForCausalLM": Family("mlp.down_proj", _with_mlp_bias, scale=lambda config: config.residual_multiplier),
    "GPT2LMHeadModel": Family("mlp.c_proj"),
    "GPTNeoXForCausalLM": Family("mlp.dense_4h_to_h"),
    "OPTForCausalLM": Family("fc2", refuses=_odd_opt),
}


def with_biases(root: Any, layout: Layout, deltas: dict[int, Tensor]) -> Any:
    """A model with the additions in its biases; it shares every other tensor with `root`, which is unchanged.

    Raises:
        ModelError: an architecture that cannot hold them.
    """
    from transformers import AutoModelForCausalLM

    name = type(root).__name__
    if name not in FAMILIES:
        raise ModelError(
            f"Additions cannot be baked into {name}, whose blocks end in no bias that engines read; those of "
            f"{', '.join(FAMILIES)} can. Instead {INSTEAD}."
        )
    family = FAMILIES[name]
    if why := family.refuses(root.config):
        raise ModelError(f"Additions cannot be baked into this {name}: {why}. Instead {INSTEAD}.")
    state = dict(root.state_dict())
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(family.config(root.config))
    for key, tensor in made.state_dict().items():
        if key not in state and key.endswith(".bias"):
            state[key] = torch.zeros(tensor.shape, dtype=root.dtype)
    for block, delta in deltas.items():
        key = f"{layout.blocks[block].path}.{family.projection}.bias"
        own = state[key]
        state[key] = (own.detach().double().cpu() + delta / family.scale(root.config)).to(own.dtype)
    return with_tensors(made, state)


def with_tensors(made: Any, state: dict[str, Tensor]) -> Any:
    """A model on the meta device, given its tensors.

    Raises:
        ModelError: names that do not match: an architecture that this transformers writes otherwise.
    """
    missing, unexpected = made.load_state_dict(state, strict=False, assign=True)
    if missing or unexpected:
        raise ModelError(
            f"The weights of {type(made).__name__} have other names in this transformers than steerfn knows (missing "
            f"{missing[:3]}, left over {unexpected[:3]}); nothing was written. Please report it."
        )
    made.tie_weights()
    return made


GATED = ("self_attn.o_proj", "mlp.down_proj")
WRITERS = {
    "LlamaForCausalLM": GATED,
    "MistralForCausalLM": GATED,
    "Qwen2ForCausalLM": GATED,
    "Qwen3ForCausalLM": GATED,
    "GraniteForCausalLM": GATED,
    "GemmaForCausalLM": GATED,
    "Phi3ForCausalLM": GATED,
    "PhiForCausalLM": ("self_attn.dense", "mlp.fc2"),
    "GPT2LMHeadModel": ("attn.c_proj", "mlp.c_proj"),
    "GPTNeoXForCausalLM": ("attention.dense", "mlp.dense_4h_to_h"),
    "OPTForCausalLM": ("self_attn.out_proj", "fc2"),
}
"""By architecture, what writes to the stream, from a block. Families that normalise what they add (Gemma 2 and 3,
OLMo 2) are not here: a norm's own weights turn the direction."""


def orthogonal_to(root: Any, layout: Layout, direction: Tensor) -> Any:
    """A model that never writes along a unit direction; it shares what it can with `root`, which is unchanged.

    Raises:
        ModelError: an architecture whose writing matrices are not known, or do not write straight to the stream.
    """
    from transformers import AutoModelForCausalLM

    name = type(root).__name__
    if name not in WRITERS:
        raise ModelError(
            f"An ablation cannot be baked into {name}: it is exact where every matrix writes straight to the stream, "
            f"as in {', '.join(WRITERS)}. Instead {INSTEAD}."
        )
    if name == "OPTForCausalLM" and not root.config.do_layer_norm_before:
        raise ModelError(
            f"An ablation cannot be baked into this {name}: it normalises after it adds. Instead {INSTEAD}."
        )
    config = copy.deepcopy(root.config)
    config.tie_word_embeddings = False
    state = dict(root.state_dict())
    head = root.get_output_embeddings()
    modules = dict(root.named_modules())
    writers = {key: each for key, each in modules.items() if isinstance(each, nn.Embedding)}
    writers |= {
        f"{block.path}.{path}": modules[f"{block.path}.{path}"] for block in layout.blocks for path in WRITERS[name]
    }
    for key, module in writers.items():
        if module is head:
            continue
        weight = state[f"{key}.weight"]
        if direction.shape[0] not in weight.shape:
            raise ModelError(f"{key} of this {name} does not write to the stream (it has shape {list(weight.shape)}).")
        # Embeddings and GPT-2's convolutions hold the stream in their second dimension, linear layers in their first.
        is_linear = isinstance(module, nn.Linear)
        state[f"{key}.weight"] = (
            _without(weight.T, direction).T.contiguous() if is_linear else _without(weight, direction)
        )
        if f"{key}.bias" in state:
            state[f"{key}.bias"] = _without(state[f"{key}.bias"], direction)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    return with_tensors(made, state)


def _without(rows: Tensor, direction: Tensor) -> Tensor:
    """Rows `[..., d]` without their part along a unit direction, contiguous, in their dtype."""
    wide = rows.detach().cpu().double()
    return (wide - (wide @ direction)[..., None] * direction).to(rows.dtype).contiguous()
