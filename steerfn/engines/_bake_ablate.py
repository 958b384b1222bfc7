"""An ablation as weights: every matrix that writes to the stream is made orthogonal to the direction.

`W' = (I - r r^T) W` for whatever is added to the residual stream: embeddings, the last projections of both sublayers,
and their biases. Then no block ever writes along `r`, which is what ablating `r` everywhere does (Arditi et al. 2024).
A head that shares the embeddings' weights reads them as they were, so it gets weights of its own.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from steerfn._blocks import Layout
from steerfn._errors import ModelError
from steerfn.engines._bake_add import INSTEAD, filled

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


def orthogonalised(root: Any, found: Layout, direction: Tensor) -> Any:
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
        f"{block.path}.{path}": modules[f"{block.path}.{path}"] for block in found.blocks for path in WRITERS[name]
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
    return filled(made, state)


def _without(rows: Tensor, direction: Tensor) -> Tensor:
    """Rows `[..., d]` without their part along a unit direction, contiguous, in their dtype."""
    wide = rows.detach().cpu().double()
    return (wide - (wide @ direction)[..., None] * direction).to(rows.dtype).contiguous()
