"""The rule that finds an architecture's blocks and their sites.

It reads names and types, never code: the longest-known names of transformers' blocks, and a small table of the
architectures whose blocks do something else. `_check_layout` checks what it says.
"""

import dataclasses
import math
from typing import Any, cast

from torch import nn

from steerfn.model._blocks import Addend, Block, Layout, unwrap_model
from steerfn.values import ModelError

BLOCK_LISTS = ("layers", "h", "blocks", "layer")
NOT_TEXT = ("vision", "visual", "audio", "image", "encoder_", "gated_cross", "speech", "depth_decoder")
MIXERS = (
    "self_attn attn attention self_attention multi_head_attention linear_attn temporal_block mamba conv mixer "
    "mamba_decoder.mamba"
).split()
MLPS = "mlp feed_forward ffn block_sparse_moe mlp_block fc2".split()
ATTN_POST_NORMS = "post_self_attn_layernorm post_norm1 post_operator_norm attn_sconv".split()
MLP_POST_NORMS = "post_feedforward_layernorm post_mlp_layernorm post_norm2 post_ffn_norm mlp_sconv".split()
MID_NORMS = (
    "pre_feedforward_layernorm pre_mlp_layernorm post_attention_layernorm ln_2 ffn_norm feedforward_layernorm "
    "pre_ff_layernorm channel_pre_norm mlp_norm final_layer_norm norm_2 ln2 layernorm2"
).split()
PROJECTIONS = "o_proj out_proj dense c_proj Wo wo resid_proj output_linear".split()
HEADS = "num_heads n_head n_heads num_attention_heads decoder_attention_heads attention_heads".split()
RECURRENT = ("linear_attn", "mamba", "conv", "mamba_decoder.mamba")


# Blocks that add the residual inside a sublayer: what is added is the output of its last projection.
FUSED = {"BloomBlock": ("self_attention.dense", "mlp.dense_4h_to_h"), "MptBlock": ("attn", "ffn.down_proj")}


# Blocks whose sublayers do not simply add to the stream: resid_pre and resid_post only.
NO_ADDENDS = {
    "it normalises after the addition (post-LN)": (
        "BertLayer RobertaLayer BartDecoderLayer TrOCRDecoderLayer MvpDecoderLayer MarianDecoderLayer "
        "PLBartDecoderLayer BlenderbotSmallDecoderLayer ProphetNetDecoderLayer XLNetLayer Block XLMModel "
        "CamembertLayer ElectraLayer ErnieLayer Data2VecTextLayer RoCBertLayer RoFormerLayer BigBirdLayer XmodLayer"
    ),
    "it adds to a normalised residual": "MiniMaxDecoderLayer",
    "it keeps several residual streams": (
        "DeepseekV4DecoderLayer HYV4DecoderLayer Glm5NextTextDecoderLayer Qwen4ExpTextDecoderLayer "
        "Gemma3nTextDecoderLayer"
    ),
    "it attends over earlier blocks": "Inkling2SlidingDecoderLayer Inkling2FullDecoderLayer",
    "it has two attentions and a shortcut": "LongcatFlashDecoderLayer",
    "it gates both terms of the addition": "ZayaDecoderLayer MuseSparkTextDecoderLayer",
    "it weights the residual": "BeamDecoderLayer DogeDecoderLayer",
    "it runs several times in one forward pass": "HrmTextDecoderLayer",
    "its norms and attention are one module": "DbrxBlock",
    "it adds a bias of its own after attention": "GPTNeoXJapaneseLayer",
}
NO_ADDENDS_BY_CLASS = {name: why for why, names in NO_ADDENDS.items() for name in names.split()}


def find(model: nn.Module, where: str | None = None) -> Layout:
    """The blocks of a model and their sites, by name only; in the module at the path `where`, or by rule.

    Raises:
        ModelError: there are no such blocks.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ModelError(
            f"{type(model).__name__} has no transformers config, so its blocks cannot be found; pass a transformers "
            "causal language model."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is an encoder-decoder, whose layers do not form one residual stream; pass a "
            "decoder-only causal language model."
        )
    text = config.get_text_config(decoder=True)
    path, blocks = _list(model) if where is None else _module_at(model, where)
    width = getattr(text, "hidden_size", None) or getattr(text, "n_embd", None) or getattr(text, "d_model", 0)
    inner = [running(f"{path}.{name}", unwrap_model(block)) for name, block in blocks.named_children()]
    return Layout(type(model).__name__, path, tuple(_block(at, block, text) for at, block in inner), int(width))


def depth_of(model: nn.Module) -> int | None:
    """How many blocks a model's config names."""
    text = cast(Any, model).config.get_text_config(decoder=True)
    names = ("decoder_layers", "num_layers", "num_hidden_layers")
    return next((n for name in names if (n := getattr(text, name, None))), None)


def _list(model: nn.Module) -> tuple[str, nn.Module]:
    """The list of decoder blocks and its path, by rule: as long as the config says, the nearest to the model."""
    named = list(model.named_modules())
    idle = [  # PEFT keeps the module that it has copied, and a copy for each adapter; one of them runs
        f"{path}.{name}."
        for path, module in named
        if (copies := _copies(module))
        for name in copies
        if copies[name] is not running(path, module)[1]
    ]
    lists = [
        (path.replace("_orig_mod.", ""), module)
        for path, module in named
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        and path.rpartition(".")[2] in BLOCK_LISTS
        and not any(word in path for word in NOT_TEXT)
        and not any(path.startswith(each) for each in idle)
        and len(module)
    ]
    if not lists:
        raise ModelError(
            f"No decoder blocks were found in {type(model).__name__}; steering needs a causal language model with a "
            f"list of blocks named {', '.join(BLOCK_LISTS)}. Where they have another name, say where they are: "
            'sf.layout(model, blocks="path.to.the.blocks").'
        )
    depth = depth_of(model)
    return min([c for c in lists if len(c[1]) == depth] or lists, key=lambda c: c[0].count("."))


def _module_at(model: nn.Module, where: str) -> tuple[str, nn.Module]:
    """The module at a path, which holds blocks."""
    named = {path.replace("_orig_mod.", ""): module for path, module in model.named_modules()}
    holder = named.get(where) if isinstance(where, str) else None
    if holder is None or not where or not len(holder._modules):
        lists = [p for p, m in named.items() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m)]
        raise ModelError(
            f"blocks={where!r} names no module of {type(model).__name__} that holds blocks; its lists of modules are "
            f"{', '.join(lists[:12]) or 'none'}."
        )
    return where, holder


def running(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """The module that runs where PEFT keeps several (`modules_to_save`), and its path; any other module is its own."""
    copies = _copies(module)
    if not copies:
        return path, module
    wrapper: Any = module
    active = [] if wrapper.disable_adapters else wrapper.active_adapters
    name = f"modules_to_save.{active[0]}" if active else ""
    name = name if name in copies else "original_module"
    return running(f"{path}.{name}", copies[name])


def _copies(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that a wrapper of PEFT's keeps for one, by their paths from it; none for any other module."""
    kept = module._modules.get("modules_to_save")
    if kept is None:
        return {}
    original = cast(nn.Module, module._modules["original_module"])
    return {"original_module": original, **{f"modules_to_save.{name}": each for name, each in kept.named_children()}}


def _unwrap_block(block: nn.Module) -> tuple[str, nn.Module]:
    """The block that others have put a wrapper around (FSDP, activation checkpointing, repeng), and its path from it.

    A wrapper's only child is not a sublayer.
    """
    at = ""
    while len(block._modules) == 1 and not block._modules.keys() & {*MIXERS, *MLPS}:
        [(name, inner)] = block._modules.items()
        if inner is None or isinstance(inner, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            break
        at, block = f"{at}{name}.", unwrap_model(inner)
    return at, block


def _block(path: str, block: nn.Module, config: Any) -> Block:
    within, block = _unwrap_block(block)
    kind = type(block).__name__
    refused = NO_ADDENDS_BY_CLASS.get(kind)
    if getattr(block, "do_layer_norm_before", True) is False:
        refused = "it normalises after the addition (post-LN)"
    if refused is not None:
        missing = {k: f"{kind} has none, since {refused}" for k in ("attn_out", "resid_mid", "mlp_out", "head_out")}
        return Block(path, kind, missing=tuple(missing.items()))
    mixers, mlp = [n for n in MIXERS if has(block, n)], next((n for n in MLPS if has(block, n)), None)
    if kind in FUSED:
        mixers, mlp = [FUSED[kind][0]], FUSED[kind][1]
    if getattr(block, "block_type", None) in ("mlp", "moe"):  # Nemotron-H: every block is one mixer
        mixers, mlp = [], "mixer"
    missing: dict[str, str] = {}
    attn, mlps = _addends(block, kind, mixers, mlp, config)
    attn_one = _single(attn, "attn_out", missing)
    mlp_one = _single(mlps, "mlp_out", missing)
    mid = _mid(block, kind, attn, mlps, config, missing)
    if "attn_out" in missing:
        missing.setdefault("resid_mid", "what attention adds is not one module's output")
    projection, heads, d_head = _heads(block, kind, mixers, config)
    if projection is None:
        missing["head_out"] = "this block has no attention with an output projection"
    attn_one, mlp_one = (a and dataclasses.replace(a, path=within + _real(block, a.path)) for a in (attn_one, mlp_one))
    mid, projection = (p and within + _real(block, p) for p in (mid, projection))
    return Block(path, kind, attn_one, mlp_one, mid, projection, heads, d_head, tuple(missing.items()))


def _real(block: nn.Module, path: str) -> str:
    """A path in a block that leads through the modules that run."""
    at, module = "", block
    for name in path.split("."):
        at, module = running(at, unwrap_model(module))
        at, module = f"{at}.{name}", getattr(module, name)
    return at.removeprefix(".")


def _addends(
    block: nn.Module, kind: str, mixers: list[str], mlp: str | None, config: Any
) -> tuple[list[Addend], list[Addend]]:
    """The modules whose outputs a block adds to its stream: the attention's and the MLP's."""
    scale = float(getattr(block, "residual_multiplier", 1.0))
    if kind == "MiniCPM3DecoderLayer":
        scale = config.scale_depth / math.sqrt(config.num_hidden_layers)
    multipliers = {"mamba": "ssm_out_multiplier", "self_attn": "attn_out_multiplier"}  # Falcon-H1
    attn = [Addend(n, scale * float(getattr(block, multipliers.get(n, ""), 1.0))) for n in mixers]
    attn_norm, mlp_norm = _post_norms(block)
    if attn_norm is not None:
        attn = [Addend(attn_norm, scale)]
    mlps = [Addend(mlp_norm or mlp, scale)] if mlp else []
    if mlp in (None, "block_sparse_moe") and has(block, "shared_mlp"):  # Granite's shared expert
        mlps.append(Addend("shared_mlp", scale))
    return attn, mlps


def _post_norms(block: nn.Module) -> tuple[str | None, str | None]:
    """Norms between a sublayer and the addition."""
    if getattr(block, "norm_after", False):  # Molmo 2
        return "input_layernorm", "post_attention_layernorm"
    attn = next((n for n in ATTN_POST_NORMS if has(block, n)), None)
    mlp = next((n for n in MLP_POST_NORMS if has(block, n)), None)
    # `post_attention_layernorm` is Llama's name for the norm before the MLP, and Gemma's for one after attention.
    if attn is None and mlp in MLP_POST_NORMS[:2] and has(block, "post_attention_layernorm"):
        attn = "post_attention_layernorm"
    return attn, mlp


def _single(addends: list[Addend], kind: str, missing: dict[str, str]) -> Addend | None:
    """The one addend of a site; notes why there is none."""
    if len(addends) == 1:
        return addends[0]
    what = "attention or other mixer" if kind == "attn_out" else "MLP"
    names = " and ".join(a.path for a in addends)
    missing[kind] = (
        f"this block adds the outputs of {names}, not of one module" if addends else f"this block has no {what}"
    )
    return None


def _mid(
    block: nn.Module, kind: str, attn: list[Addend], mlps: list[Addend], config: Any, missing: dict[str, str]
) -> str | None:
    """The module that reads the stream between attention and MLP; notes why there is none."""
    if not attn or not mlps:
        missing["resid_mid"] = "this block has one sublayer only"
        return None
    if has(block, "pre_ln"):  # the first block of RWKV
        missing["resid_mid"] = "the stream of this block starts at its pre_ln"
        return None
    attn_norm, mlp_norm = _post_norms(block)
    norm = next((n for n in MID_NORMS if n not in (attn_norm, mlp_norm) and has(block, n)), None)
    parallel = getattr(block, "use_parallel_residual", None)
    if kind == "FalconDecoderLayer":
        parallel = config.new_decoder_architecture or config.parallel_attn
    if parallel is None:
        parallel = norm is None and attn_norm is None
    if parallel:
        missing["resid_mid"] = "attention and MLP run in parallel, so no stream lies between them"
        return None
    return norm or next(n for n in MLPS if has(block, n))


def _heads(block: nn.Module, kind: str, mixers: list[str], config: Any) -> tuple[str | None, int, int]:
    """The output projection of a block's attention, its heads and their width."""
    for mixer in mixers:
        name = mixer.split(".")[0] if kind in FUSED else mixer
        _, root = running("", block.get_submodule(name))
        if name in RECURRENT or any(
            hasattr(root, a) for a in ("conv1d", "A_log", "linear_out", "time_decay", "q_conv1d")
        ):
            continue
        paths = [
            n
            for n, m in root.named_modules()
            if n.rpartition(".")[2] in PROJECTIONS and (hasattr(m, "weight") or hasattr(m, "linear"))
        ]
        if not paths or isinstance(getattr(root, "experts", None), nn.Module):
            continue
        path = min(paths, key=lambda n: n.count("."))
        module: Any = root.get_submodule(path)
        width = getattr(module, "in_features", None) or getattr(module, "nx", None)
        if width is None and getattr(module, "weight", None) is not None:  # Conv1D keeps its weight as [in, out]
            width = module.weight.shape[0 if type(module).__name__ == "Conv1D" else 1]
        heads = _head_count(root, config)
        if width and heads and width % heads == 0:
            return f"{name}.{path}", heads, int(width) // heads
    return None, 0, 0


def _head_count(attention: nn.Module, config: Any) -> int:
    inner = getattr(attention, "attention", attention)  # GPT-Neo nests its attention
    for owner in (attention, inner, config):
        for name in HEADS:
            count = getattr(owner, name, None)
            if isinstance(count, int) and count:
                return count
    return 0


def has(block: nn.Module, path: str) -> bool:
    """Whether a module has a submodule at a dotted path."""
    module: Any = block
    for part in path.split("."):
        module = getattr(module, part, None)
    return isinstance(module, nn.Module)
