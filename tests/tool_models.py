"""Models that call tools: the demo model's tokenizer with a template of each format, and models that write a script."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import steerfn as sf

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% for c in m['tool_calls'] or [] %}{{ CALL }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ HOW + '<|im_end|>\n' }}{% endif %}"
)
FORMATS = {
    "hermes": (
        "'<tool_call>\n' + (c['function'] | tojson) + '\n</tool_call>'",
        '\'Write calls as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>\'',
    ),
    "mistral": ("'[TOOL_CALLS] [' + (c['function'] | tojson) + ']'", "'Write calls as [TOOL_CALLS] [...]'"),
    "llama": ("(c['function'] | tojson)", '\'Respond as {"name": a function, "parameters": an object}\''),
}
"""How each writes a call of an earlier turn, and what it tells the model."""


@functools.cache
def _demo() -> tuple[Any, Any]:
    return sf.demo_model()


def tool_tokenizer(form: str = "hermes") -> Any:
    """The demo model's tokenizer with a chat template that knows tools."""
    tokenizer = copy.deepcopy(_demo()[1])
    call, how = FORMATS[form]
    tokenizer.chat_template = TOOLS.replace("HOW", how) + TURNS.replace("CALL", call)
    return tokenizer


def noise(tokenizer: Any) -> Any:
    """A tiny model that has learned nothing: what it writes is noise."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def scripted(tokenizer: Any, answer: Callable[[str], str]) -> Any:
    """A tiny model that writes what a function of the prompt's text says, and ends.

    Its hidden states and their steering are a real model's; only the logits of its head are the script's.
    """
    model = noise(tokenizer)
    state: dict[str, Any] = {}

    def write(_: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        if cache is None:
            return out
        if ids.shape[1] == cache.get_seq_length():  # the first pass has the whole prompt; padding is on its left
            lengths = kwargs["position_ids"][:, -1].expand(len(ids)) + 1
            prompts = [row[len(row) - length :].tolist() for row, length in zip(ids, lengths.tolist(), strict=True)]
            state["start"] = cache.get_seq_length()
            state["script"] = [
                [*tokenizer.encode(answer(tokenizer.decode(prompt)), add_special_tokens=False), tokenizer.eos_token_id]
                for prompt in prompts
            ]
        for row, script in enumerate(state["script"]):
            done = cache.get_seq_length() - state["start"]
            out.logits[row, -1] = out.logits[row, -1].clamp(-9, 9)
            out.logits[row, -1, script[min(done, len(script) - 1)]] = 50.0
        return out

    model.register_forward_hook(write, with_kwargs=True)
    return model
