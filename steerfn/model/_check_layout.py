"""Checks what `layout` found on a forward pass over a structural copy of the model."""

import dataclasses
import functools
import threading
from collections import OrderedDict

import torch
from torch import nn

from steerfn.model._blocks import Layout
from steerfn.model._entry import Observation
from steerfn.model._observe import Look, observe
from steerfn.model._spine import HOOKS, INSTALLED, Spine
from steerfn.model._substitute import plan
from steerfn.values import ModelError, Site

SMALL = 2_000_000_000
"""Parameters up to which a forward pass of four tokens on the real weights is a cheap check."""

_EAGER = threading.RLock()
"""Held while compiled code is switched off, which is a setting of the process and not of the thread: a check that began
within another and outlived it would leave it off for good."""


def check_layout(root: nn.Module, layout: Layout) -> Layout:
    """The layout, checked: every block runs once, in order, and every site has the expected shape.

    On the meta device where the architecture allows, else on the real weights of models below 2 B
    parameters, else not at all (the layout says which).

    Raises:
        ModelError: the forward pass contradicts the layout.
    """
    spine = Spine(root, layout, plan(layout), whole=True)
    spine.evaluate()
    for copy in spine.copies.values():
        # The hooks on the model, the user's and transformers' own, are not for this forward pass.
        copy.own.update({name: OrderedDict() for name in HOOKS if name in copy.twin.__dict__})
        copy.own[INSTALLED] = False
        copy.twin.__dict__.update(copy.own)
    real = [p for p in root.parameters() if p.device.type != "meta"]
    reason = "by name only"
    if len(real) and sum(p.numel() for p in real) <= SMALL and len({p.device for p in real}) == 1:
        attempts = ["meta", str(real[0].device)]
    else:
        attempts = ["meta"]
    for device in attempts:
        if device == "meta":
            _to_meta(spine)
        elif not spine.refresh():
            break
        try:
            seen = _look(spine, layout, device)
        except ModelError:
            raise
        except Exception as error:
            reason = f"by name only ({type(error).__name__} in a forward pass on {device})"
            continue
        idle = _compare(layout, seen)
        where = "the meta device" if device == "meta" else device
        return dataclasses.replace(layout, checked=f"by a forward pass on {where}", idle=idle)
    return dataclasses.replace(layout, checked=reason)


def _to_meta(spine: Spine) -> None:
    for copy in spine.copies.values():
        for name in ("_parameters", "_buffers"):
            tensors = copy.twin.__dict__[name]
            for key, value in tensors.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
                    tensors[key] = nn.Parameter(empty, requires_grad=False) if name == "_parameters" else empty


def _look(spine: Spine, layout: Layout, device: str) -> list[tuple[Site, tuple[int, ...]]]:
    """The sites met in a forward pass of four tokens, in order, with the shapes of their states."""
    sites = [Site(k, i, None) for i, b in enumerate(layout.blocks) for k in b.kinds if k != "head_out"]
    sites += [
        Site("head_out", i, h) for i, b in enumerate(layout.blocks) for h in range(b.heads) if "head_out" in b.kinds
    ]
    seen: list[tuple[Site, tuple[int, ...]]] = []
    look = Look(tuple(sites), lambda site, hidden: seen.append((site, tuple(hidden.shape))))
    entry = Observation(spine.host, look, lambda _: torch.device(device))
    # No mask, and a cache to be filled: transformers then asks no tensor for its values, which meta ones lack.
    ids = torch.zeros(1, 4, dtype=torch.long, device=device)
    # What is compiled runs plainly here: compiled code does not say what it meets.
    with torch.no_grad(), _EAGER, torch.compiler.set_stance("force_eager"):
        observe(functools.partial(spine.root, input_ids=ids, use_cache=True), entry)
    return seen


def _compare(layout: Layout, seen: list[tuple[Site, tuple[int, ...]]]) -> tuple[int, ...]:
    """Check what was seen; the blocks that did not run."""
    met = [site.layer for site, _ in seen if site.kind == "resid_post"]
    if not met or len(met) != len(set(met)):  # some may be left out: they run with other inputs only (an image)
        raise ModelError(
            f"The blocks of {layout.model} at {layout.path} do not each run once in a forward pass (they ran as "
            f"{met}), so a layer would not mean one place. If these are not its decoder blocks, say where they are: "
            'sf.layout(model, blocks="path.to.the.blocks"); otherwise this architecture is not supported.'
        )
    for site, shape in seen:
        if len(shape) != 3:
            raise ModelError(
                f"The state at {site} of {layout.model} has shape {list(shape)}, not [batch, seq, d_model]: this "
                "architecture keeps several residual streams, which is not supported."
            )
        if shape[-1] != layout.width(site):
            raise ModelError(
                f"The state at {site} of {layout.model} has width {shape[-1]} where {layout.width(site)} was expected; "
                "please report this architecture."
            )
    return tuple(sorted(set(range(layout.n_layers)) - set(met)))
