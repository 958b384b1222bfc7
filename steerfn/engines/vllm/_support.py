"""The models and settings of vLLM that are steered. Whatever is not here is refused, with the reason."""

from typing import Any

FAMILIES = {
    "LlamaForCausalLM": "LlamaDecoderLayer",
    "MistralForCausalLM": "MistralDecoderLayer",
    "Qwen2ForCausalLM": "Qwen2DecoderLayer",
    "Qwen3ForCausalLM": "Qwen3DecoderLayer",
    "GemmaForCausalLM": "GemmaDecoderLayer",
    "Gemma2ForCausalLM": "Gemma2DecoderLayer",
    "Gemma3ForCausalLM": "Gemma3DecoderLayer",
}
"""By architecture, the class of the decoder blocks: each returns two halves `(hidden, residual)` of the stream."""


def unsupported(config: Any) -> str | None:
    """Why an engine of this configuration cannot be steered, or None.

    Args:
        config: a `VllmConfig`.
    """
    try:
        return _unsupported(config)
    except AttributeError as error:
        return f"this version of vLLM keeps its settings elsewhere ({error})"


def _unsupported(config: Any) -> str | None:
    model, parallel = config.model_config, config.parallel_config
    if model.architecture not in FAMILIES:
        return f"its blocks are known for {', '.join(FAMILIES)}, and this is a {model.architecture}"
    settings = {
        "a pooling model": model.runner_type != "generate",
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
        "micro-batches (--enable-dbo)": parallel.use_ubatching,
        "speculative decoding": config.speculative_config is not None,
        "a KV connector, which may share steered keys and values under keys of its own": (
            config.kv_transfer_config is not None
        ),
        "--kv-sharing-fast-prefill": config.cache_config.kv_sharing_fast_prefill,
    }
    found = [name for name, on in settings.items() if on]
    return f"it is not known to be right with {', '.join(found)}" if found else None
