"""Everything a steering context could leave behind on a model, taken down and compared."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

HOOKS = (
    "_forward_hooks _forward_pre_hooks _forward_hooks_with_kwargs _forward_hooks_always_called "
    "_forward_pre_hooks_with_kwargs _backward_hooks _backward_pre_hooks _state_dict_hooks _state_dict_pre_hooks "
    "_load_state_dict_pre_hooks _load_state_dict_post_hooks _non_persistent_buffers_set"
).split()


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A model's observable state: by name, values that compare with `==`, and the bits of its tensors."""

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "Snapshot":
        facts: dict[str, Any] = {
            "class": type(model),
            "state_dict keys": list(model.state_dict()),
            "parameter names": [name for name, _ in model.named_parameters()],
            "buffer names": [name for name, _ in model.named_buffers()],
            "module names": [name for name, _ in model.named_modules()],
        }
        for owner in ("config", "generation_config"):
            held = getattr(model, owner, None)
            facts[owner] = None if held is None else copy.deepcopy(held.to_dict())
        for name, module in model.named_modules():
            facts[f"{name}: type"] = type(module)
            facts[f"{name}: id"] = id(module)
            facts[f"{name}: training"] = module.training
            facts[f"{name}: attributes"] = sorted(module.__dict__)
            facts[f"{name}: forward"] = module.__dict__.get("forward")
            facts[f"{name}: children"] = [(n, id(child)) for n, child in module._modules.items()]
            facts[f"{name}: parameters"] = [(n, id(p)) for n, p in module._parameters.items()]
            for hooks in HOOKS:
                held = getattr(module, hooks, ())
                facts[f"{name}: {hooks}"] = list(held.items()) if isinstance(held, dict) else sorted(held)
        return cls(facts, {key: value.detach().clone() for key, value in model.state_dict().items()})

    def differences(self, other: "Snapshot") -> list[str]:
        """One line for each thing that is not as it was."""
        found = []
        for key in {**self.facts, **other.facts}:
            before, after = self.facts.get(key, "absent"), other.facts.get(key, "absent")
            if before == after:
                continue
            if isinstance(before, list) and isinstance(after, list):
                gone, new = [x for x in before if x not in after], [x for x in after if x not in before]
                found.append(f"{key}: gone {gone}, new {new}" if gone or new else f"{key}: another order")
            else:
                found.append(f"{key}: {before!r:.300} -> {after!r:.300}")
        for key in self.tensors.keys() & other.tensors.keys():
            if not same_bits(self.tensors[key], other.tensors[key]):
                found.append(f"{key}: another value")
        return found


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit (so 0.0 is not -0.0, and NaN is NaN)."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*raw)


def assert_same_bits(a: torch.Tensor, b: torch.Tensor, what: str = "") -> None:
    """Fail with the size of the difference."""
    if not same_bits(a, b):
        assert a.shape == b.shape and a.dtype == b.dtype, f"{what}: {a.shape} {a.dtype} and {b.shape} {b.dtype}"
        raise AssertionError(f"{what}: not bitwise equal, largest difference {(a.double() - b.double()).abs().max()}")


def assert_unchanged(model: nn.Module, before: Snapshot) -> None:
    """Fail with what changed on a model since a snapshot."""
    found = before.differences(Snapshot.of(model))
    assert not found, "the model changed:\n" + "\n".join(found[:20])


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The model is after the block what it was before it, however the block ends."""
    before = Snapshot.of(model)
    try:
        yield
    finally:
        assert_unchanged(model, before)
