"""Reading activations: the model's output together with its hidden states at some sites."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from steerfn import _forward
from steerfn._blocks import unwrapped
from steerfn._forward import Entry
from steerfn._layout import layout
from steerfn._site import Site, as_sites
from steerfn._struct import static, struct
from steerfn._substitute import device_of, substitutions_of
from steerfn.operators import Info, Operator


@struct
class _Tap:
    store: Any

    def __call__(self, hidden: Tensor, info: Info) -> Tensor:
        # A copy: some blocks (Falcon's) go on to write into the tensor that a sublayer returned.
        self.store[info.site] = hidden.clone()
        return hidden


@struct
class Taps(Operator):
    """Not an operator on the state: notes it down and hands it on."""

    at_sites: tuple[Site, ...] = static()
    store: Any = static()

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.at_sites

    def bind(self, site: Site, device: Any = None) -> Any:
        del site, device
        return _Tap(store=self.store)


def capture(model: Any, sites: Any) -> Callable[..., tuple[Any, dict[Site, Tensor]]]:
    """Run a model and read its hidden states: `out, acts = capture(model, sites)(**inputs)`.

    Inside a steering context of the calling thread, the values are the steered ones, as the next operation of the model
    sees them. Values are copies, with their autograd graph where gradients are on.

    Args:
        model: any transformers causal LM. Unchanged.
        sites: one site or several; an int, slice or range means `resid_post`; negative layers count
            from the end.

    Returns:
        A function of the model's inputs that returns the model's own output and
        `{site: Float[Tensor, "batch seq d_model"]}` (`d_head` wide at `head_out`), with layers counted from 0.
        Padded positions are in it, with whatever the model computes there.

    Raises:
        SiteError: a site that the model lacks, or that the forward pass does not meet.

    Example:
        >>> import steerfn as sf
        >>> out, acts = sf.capture(model, [sf.resid_post[12], sf.attn_out[3]])(**inputs)  # doctest: +SKIP
    """
    root, named = unwrapped(model), as_sites(sites)
    layout(root).resolve(named)  # what is wrong with them is said now

    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[Site, Tensor]]:
        found = layout(root)
        wanted = found.resolve(named)
        store: dict[Site, Tensor] = {}
        substitutions = substitutions_of(root, found)
        entry = Entry(substitutions.host, Taps(wanted, store), lambda site: device_of(root, found, site))
        substitutions.open(root, found, entry, {})
        token = _forward.active.set((*_forward.active.get(), entry))
        try:
            out = model(*args, **kwargs)
        finally:
            _forward.active.reset(token)
            substitutions.close(entry)
        found.check_met(wanted, store)
        return out, {site: store[site] for site in wanted}

    return run
