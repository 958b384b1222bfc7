"""Slices of a tensor over the ranks of a tensor-parallel model: put together on every rank, and cut again.

transformers' tensor parallelism gives each rank some heads of attention, so the input of the output projection is
this rank's slice. It is a plain tensor (transformers 5) or a `DTensor` (4.57). Both directions are differentiable.
"""

from typing import Any

from torch import Tensor, nn

from steerfn._errors import ModelError


def mesh_of(module: nn.Module) -> Any:
    """The mesh of ranks over which a module's weight is cut; None where it is whole."""
    return getattr(getattr(module, "weight", None), "device_mesh", None)


def whole(given: Tensor, width: int, mesh: Any) -> Tensor:
    """All `width` features on every rank; the same tensor where they are there already.

    Raises:
        ModelError: a slice, of which it is not known how it was cut.
    """
    if mesh is not None:
        from torch.distributed.tensor import DTensor, Shard

        if isinstance(given, DTensor):
            return given.full_tensor()
        if mesh.ndim == 1 and given.shape[-1] * mesh.size() == width:
            return DTensor.from_local(given, mesh, [Shard(-1)], run_check=False).full_tensor()
    if given.shape[-1] != width:
        raise ModelError(
            f"The attention heads here are {given.shape[-1]} wide together where {width} was expected: they are split "
            f"over devices in a way that is not known (mesh: {mesh}), so head_out cannot be steered or read; use "
            "attn_out, or load the model without splitting attention."
        )
    return given


def part(changed: Tensor, given: Tensor, mesh: Any) -> Tensor:
    """What `whole` put together cut again, as `given` was."""
    if mesh is None or (type(given) is Tensor and changed.shape == given.shape):
        return changed
    from torch.distributed.tensor import DTensor, Replicate, Shard

    everywhere = DTensor.from_local(changed, mesh, [Replicate()] * mesh.ndim, run_check=False)
    if isinstance(given, DTensor):
        return everywhere.redistribute(placements=given.placements)
    return everywhere.redistribute(placements=[Shard(-1)]).to_local()
