"""Where a model keeps its sites: found by rule, then checked on a forward pass.

The pass runs over a structural copy of the model (on the meta device where that works), so a wrong guess is an error
at `layout(model)`, not a silent no-op. What was found is kept as long as the modules stay as they were.
"""

import weakref
from typing import Any

from torch import nn

from steerfn.model._blocks import Layout, unwrap_model
from steerfn.model._check_layout import check_layout
from steerfn.model._find_blocks import depth_of, find, running
from steerfn.model._substitute import child, own_forward
from steerfn.values import public

_known: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()
_chosen: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()


@public
def layout(model: nn.Module, *, blocks: str | None = None, check: bool = True) -> Layout:
    """Find a causal LM's blocks and sites by rule, check them, and say what was found.

    What is found is remembered, and found anew where the model's blocks have changed since.

    Args:
        model: a transformers causal LM (also wrapped by PEFT or `torch.compile`), or the text tower's
            parent in a vision-language model. Nothing on it changes.
        blocks: path of the module that holds the decoder blocks, such as "model.decoder.layers", where the rule does
            not find them or finds others. Remembered for this model, so that every verb uses it.
        check: run one forward pass over a structural copy (meta tensors where possible) to see that each
            block runs once, in order, and that every site has the shape it should have.

    Raises:
        ModelError: no decoder blocks are found, or the check contradicts the finding.

    Example:
        >>> import steerfn as sf
        >>> print(sf.layout(model))
        LlamaForCausalLM: 30 blocks, d_model 576, checked by a forward pass on ...
          blocks 0-29: LlamaDecoderLayer at model.layers.*
            resid_pre   block input
            head_out    input of self_attn.o_proj, 9 heads of 64
            attn_out    output of self_attn
            resid_mid   input of post_attention_layernorm
            mlp_out     output of mlp
            resid_post  block output
        >>> sf.layout(model, blocks="model.layers").n_layers
        30
    """
    root = unwrap_model(model)
    where = _chosen.get(root) if blocks is None else blocks
    known = _known.get(root)
    if known is not None and known.where == where and known.stays(root):
        if known.layout.checked != "by name only" or not check:
            return known.layout
    model_layout = find(root, where)
    if check:
        model_layout = check_layout(root, model_layout)
    if where is not None:
        _chosen[root] = where
    _known[root] = _Known(root, model_layout, where)
    return model_layout


class _Known:
    """A layout, and what it was read from: it holds as long as that stays as it was."""

    def __init__(self, root: nn.Module, layout: Layout, where: str | None) -> None:
        self.layout, self.where, self.depth = layout, where, depth_of(root)
        parts: dict[nn.Module, _Part] = {}
        for block in layout.blocks:
            module = root
            for name in [*block.path.split("."), *(block.projection or "").split(".")]:
                module = unwrap_model(module)
                parts[module] = parts.get(module) or _Part(module)
                module = child(module, name) if name else module
        self.parts = tuple(parts.values())

    def stays(self, root: nn.Module) -> bool:
        """Whether the same would be found now."""
        return self.depth == depth_of(root) and all(part.stays() for part in self.parts)


class _Part:
    """A module on the way to a site, with what it held and ran.

    By weak references: they keep no module alive, and no later one that lies at the same address is taken for it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = weakref.ref(module), list(module._modules)
        self.children = [_weak(inner) for inner in module._modules.values()]
        self.runs = [_weak(part) for part in _runs(module)]

    def stays(self) -> bool:
        """Whether it holds and runs the same."""
        module = self.module()
        if module is None or list(module._modules) != self.names or [then() for then in self.runs] != _runs(module):
            return False
        return [then() for then in self.children] == list(module._modules.values())


def _runs(module: nn.Module) -> list[Any]:
    """The code that a module runs: a function, its owner where it is the module's own, and which of PEFT's copies."""
    forward = own_forward(module)
    copy = running("", module)[1] if "modules_to_save" in module._modules else None
    if forward is None:
        return [type(module).forward, None, copy]
    return [getattr(forward, "__func__", forward), getattr(forward, "__self__", None), copy]


def _weak(part: Any) -> Any:
    """A weak reference to a part: it gives the part as long as it lives, and None for None."""
    return _nothing if part is None else weakref.ref(part)


def _nothing() -> None:
    """Stands in for the reference to None, of which there is none."""
