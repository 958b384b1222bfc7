"""What provokes each message of the page of messages, on tiny models, by the number of its entry."""

import gc
from pathlib import Path
from typing import Any

import torch
from families import build
from words import words

import steerfn as sf
from steerfn.values import import_extra


def wide(width: int = 16, layer: int = 1) -> sf.SteeringVector:
    """A vector of a width."""
    return sf.SteeringVector({sf.resid_post[layer]: torch.ones(width)})


def provoke(name: str, folder: Path) -> Any:
    """Do what a reader has done who sees the message."""
    model, tokenizer = build("llama"), words()
    vector = wide(32)
    if name == "width":
        sf.steer(model, wide()).__enter__()
    elif name == "layer":
        sf.steer(model, wide(32, layer=7)).__enter__()
    elif name == "kind":
        sf.capture(model, sf.resid_post)  # type: ignore[arg-type]
    elif name == "no-site":
        sf.capture(build("mamba"), sf.resid_mid[0])
    elif name == "streams":
        sf.capture(build("gemma3n_text"), 0)(torch.ones(1, 3, dtype=torch.long))
    elif name == "swapped":
        sf.mean_difference(tokenizer, model, ["a"], ["b"], 1)  # type: ignore[arg-type]
    elif name == "layers":
        sf.mean_difference(model, tokenizer, ["a"], ["b"], layers=1)  # type: ignore[call-arg]
    elif name == "unopened":
        sf.steer(model, vector)
        gc.collect()
    elif name == "empty-scope":
        with sf.steer(model, sf.at(sf.positions(50), sf.add(vector))):
            model(torch.ones(1, 3, dtype=torch.long))
    elif name == "origin":
        made = sf.mean_difference(model, tokenizer, ["a b"], ["c d"], 1, progress=False)
        sf.save(made, folder / "v.safetensors")
        sf.load(folder / "v.safetensors", model=build("mistral"), strict=True)
    elif name == "no-vector-file":
        (folder / "v.safetensors").write_bytes(b"not a vector")
        sf.load(folder / "v.safetensors")
    elif name == "alpha":
        sf.steer(model, sf.add(vector), alpha=2.0)
    elif name == "metric":
        sf.metrics.get("sentimet")
    elif name == "sampling":
        sf.generate(model, tokenizer, "a", temperature=0.7)
    elif name == "counts":
        sf.generate(model, tokenizer, ["a", "b", "c"], [vector, None])
    elif name == "template":
        sf.generate(model, tokenizer, "a", chat=True)
    elif name == "scope":
        sf.at(sf.positions, sf.add(vector))  # type: ignore[arg-type]
    elif name == "extra":
        import_extra("a_package_that_is_not_here", "plot")
    elif name == "half":
        with sf.steer(model.half(), vector * 1e6):
            model(torch.ones(1, 3, dtype=torch.long))
