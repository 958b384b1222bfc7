"""Additions as biases: what is added to a block's output is added to the bias of its last projection.

Which biases a family has, and which of them other engines read, differs; what has none is written as a Llama, whose
`mlp_bias` transformers and vLLM honour. Engines leave a bias uninitialised that a checkpoint lacks, so all that the
configuration announces are written, as zeros where nothing is added.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerfn._blocks import Layout
from steerfn._errors import ModelError

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
    def written(config: Any) -> Any:
        from transformers import LlamaConfig

        known = {name: value for name, value in config.to_dict().items() if name in LLAMA and value is not None}
        return LlamaConfig(**known, attention_bias=attention_bias, mlp_bias=True)

    return written


def _slides(config: Any) -> str | None:
    kinds = getattr(config, "layer_types", None)
    slides = any(kind != "full_attention" for kind in kinds) if kinds else bool(getattr(config, "sliding_window", None))
    return "its sliding windows are nothing that a Llama has" if slides else None


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


def with_biases(root: Any, found: Layout, deltas: dict[int, Tensor]) -> Any:
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
    for key, wanted in made.state_dict().items():
        if key not in state and key.endswith(".bias"):
            state[key] = torch.zeros(wanted.shape, dtype=root.dtype)
    for block, delta in deltas.items():
        key = f"{found.blocks[block].path}.{family.projection}.bias"
        own = state[key]
        state[key] = (own.detach().double().cpu() + delta / family.scale(root.config)).to(own.dtype)
    return filled(made, state)


def filled(made: Any, state: dict[str, Tensor]) -> Any:
    """A model without data, given its tensors.

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
