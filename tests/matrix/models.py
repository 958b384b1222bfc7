"""Models of a case, each with what may be wrapped around it; kept, since nothing may change on them."""

import functools
import importlib.util
import threading
import warnings
from typing import Any

import torch
from by_hand import ANATOMY
from families import build
from torch import nn

PEFT = importlib.util.find_spec("peft") is not None


class Beside:
    """A hook in the middle of a model that, when there is a job, runs it twice in another thread and waits for it."""

    def __init__(self) -> None:
        self.job: Any = None
        self.results: list[Any] = []

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.job is not None and len(self.results) < 2 and threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=self._work)
            thread.start()
            thread.join()

    def _work(self) -> None:
        try:
            self.results.append(self.job())
        except BaseException as error:
            self.results.append(error)


class Subject:
    """A model, and PEFT around it where that is asked for."""

    def __init__(self, family: str, dtype: str, lora: bool, watched: bool = True) -> None:
        self.model: Any = build(family).to(getattr(torch, dtype))
        self.peft: Any = _with_lora(self.model, family).to(getattr(torch, dtype)) if lora else None
        self.beside = Beside()
        if watched:
            middle = self.model.get_submodule(f"{ANATOMY[family].blocks}.1.{ANATOMY[family].attn[1]}")
            middle.register_forward_pre_hook(self.beside, with_kwargs=True)

    def part(self, name: str) -> Any:
        """The "model", its "backbone" or "held backbone", or "peft" around it."""
        return self.peft if name == "peft" else self.model.base_model if "backbone" in name else self.model


def _with_lora(model: Any, family: str) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = ["in_proj", "x_proj"] if family == "mamba" else "all-linear"  # PEFT refuses Mamba's other projections
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # GPT-2's weights lie the other way round
        torch.manual_seed(0)
        return get_peft_model(model, config).eval()


@functools.cache
def subject(family: str, dtype: str, lora: bool) -> Subject:
    """The model that is steered."""
    return Subject(family, dtype, lora)


@functools.cache
def reference(family: str, dtype: str, lora: bool) -> Subject:
    """Another one just like it, that the library never meets."""
    return Subject(family, dtype, lora)


@functools.cache
def trainee(family: str, dtype: str, lora: bool, checkpointing: str) -> Subject:
    """One in train mode, without dropout, perhaps with gradient checkpointing."""
    made = Subject(family, dtype, lora, watched=False)
    made.part("peft" if lora else "model").train()
    for module in made.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the method is about to be renamed
            made.model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    return made
