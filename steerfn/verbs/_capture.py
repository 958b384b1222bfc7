"""Reading activations: the model's output together with its hidden states at some sites."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from steerfn.model import Look, layout, observation, observe, substitutions_of, unwrap_model
from steerfn.values import Site, Sites, as_sites, public


@public
def capture(model: nn.Module, sites: Sites) -> Callable[..., tuple[Any, dict[Site, Tensor]]]:
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
        >>> out, acts = sf.capture(model, [sf.resid_post[12], sf.attn_out[3]])(**inputs)
        >>> acts[sf.resid_post[12]].shape
        torch.Size([1, 3, 576])
    """
    root, named = unwrap_model(model), as_sites(sites)
    layout(root).resolve(named)  # what is wrong with them is said now

    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[Site, Tensor]]:
        model_layout = layout(root)
        resolved = model_layout.resolve(named)
        store: dict[Site, Tensor] = {}

        def see(site: Site, hidden: Tensor) -> None:
            # A copy: some blocks (Falcon's) go on to write into the tensor that a sublayer returned.
            store[site] = hidden.clone()

        entry = observation(root, model_layout, Look(resolved, see))
        place = substitutions_of(root, model_layout).place(root, model_layout, entry)
        out = observe(lambda: model(*args, **kwargs), entry, place)
        model_layout.check_met(resolved, store)
        return out, {site: store[site] for site in resolved}

    return run
