"""A plugin of vLLM: another steering for every request of one continuous batch. See `docs/guides/vllm.md`.

    STEERFN_VECTORS=vectors vllm serve org/name
    llm.generate(prompt, SamplingParams(extra_args={"steerfn": {"vector": "happy", "alpha": 2.0}}))

Installed beside vLLM it is found by the entry point `vllm.general_plugins`, which calls `register` in every process.

| file | |
|---|---|
| `_patches` | which functions of vLLM are wrapped, and that they are the ones that are known |
| `_requests` | what a request asks for, as the operators of three regions of its tokens |
| | it is checked when it comes in, and only that request is refused |
| | what steering adds to the key of a block of the prefix cache |
| `_vectors` | the vectors of the folder, read once |
| | the models and settings that are steered; the others are refused |
| `_tables` | the directions on the device, and the arithmetic |
| | the forward that stands in place of a decoder block's |
| | which token of a step belongs to which request and region |
"""


def register() -> None:
    """Called by vLLM in each of its processes.

    Without the variable STEERFN_VECTORS nothing of the engine changes, and requests that ask for steering are refused.

    Raises:
        SteerError: STEERFN_VECTORS is set, and this version of vLLM is not one that can be steered.

    Example:
        vLLM finds it by its entry point; where plugins are listed by hand, list this one::

            VLLM_PLUGINS=steerfn STEERFN_VECTORS=vectors vllm serve org/name
    """
    from steerfn.engines.vllm._patches import patch

    patch()
