"""The functions of vLLM that are wrapped. Each is looked for by name and parameters: where one differs, nothing is.

| function | around it |
|---|---|
| `InputProcessor.process_inputs` | a request's steering is checked and resolved |
| `init_entrypoints_middleware` of the server, `handle_endpoint_request` of `vllm run-batch` | the field `steering` |
| `to_beam_search_params` of the server's requests | beam search, which drops what is beside the prompt, is refused |
| `EngineCore._initialize_kv_caches`, `preprocess_add_request` | the workers have the vectors that requests name |
| `generate_block_hash_extra_keys` | steering is part of the prefix cache's keys |
| `VllmConfig.compute_hash` | compiled code of steered and of unsteered engines is kept apart |
| `Worker.load_model` | the directions go to the device, and the forwards into the blocks |
| `GPUModelRunner._prepare_inputs`, and `prepare_inputs` of the second runner | every token of a step gets its slot |
"""

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from steerfn.engines.vllm import _requests, _tables
from steerfn.engines.vllm._requests import NAME, key_of, place, resolved_of, validate_resolved
from steerfn.engines.vllm._steering_field import HOLDERS, SteeringField, place_steering
from steerfn.engines.vllm._tables import Tables
from steerfn.engines.vllm._vectors import FOLDER, folder, obstacle, shelf_of
from steerfn.values import ModelError, SteerError
from steerfn.values.files import brief

OPENAI = "vllm.entrypoints.openai"
KNOWN = [
    ("vllm.v1.engine.input_processor", "InputProcessor.process_inputs", "request_id prompt params"),
    ("vllm.entrypoints.launchers.app", "init_entrypoints_middleware", "args app supported_tasks"),
    ("vllm.entrypoints.launchers.run_batch", "handle_endpoint_request", "request"),
    (f"{OPENAI}.completion.protocol", "CompletionRequest.to_beam_search_params", ""),
    (f"{OPENAI}.chat_completion.protocol", "ChatCompletionRequest.to_beam_search_params", ""),
    ("vllm.v1.engine.core", "EngineCore._initialize_kv_caches", "vllm_config"),
    ("vllm.v1.engine.core", "EngineCore.preprocess_add_request", "request"),
    ("vllm.v1.core.kv_cache_utils", "generate_block_hash_extra_keys", "request start_token_idx end_token_idx"),
    ("vllm.v1.core.block_pool", "generate_block_hash_extra_keys", "request start_token_idx end_token_idx"),
    ("vllm.config", "VllmConfig.compute_hash", ""),
    ("vllm.v1.worker.gpu_worker", "Worker.load_model", ""),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._prepare_inputs", "scheduler_output num_scheduled_tokens"),
    ("vllm.v1.worker.gpu.model_runner", "GPUModelRunner.prepare_inputs", "scheduler_output batch_req_state"),
]
"""Module, name, and the parameters that it begins with."""
ADMITTING = 5
"""So many of them, the first, are wrapped without a folder too: to refuse."""

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def differences(known: list[tuple[str, str, str]]) -> list[str]:
    """How this vLLM differs from the functions that are known, a clause for each."""
    clauses = []
    for module, name, parameters in known:
        try:
            function: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError):
            clauses.append(f"{module}.{name} is missing")
            continue
        has = [each for each in inspect.signature(function).parameters if each != "self"]
        if has[: len(parameters.split())] != parameters.split():
            clauses.append(f"{module}.{name} takes ({', '.join(has)})")
    return clauses


def patch() -> None:
    """Wrap them, once in a process; without a folder of vectors only those that then refuse.

    Raises:
        SteerError: steering is asked for with STEERFN_VECTORS, and this version of vLLM is not one that is known.
    """
    steered = folder() is not None
    known = KNOWN if steered else KNOWN[:ADMITTING]
    differs = differences(known)
    if differs:
        version = importlib.metadata.version("steerfn")
        text = (
            f"steerfn {version} does not know how to steer this version of vLLM ({'; '.join(differs)}): install the "
            "one that docs/guides/vllm.md names"
        )
        if steered:
            raise SteerError(f"{text}, or start it without {FOLDER}.")
        _requests.log.warning("%s. Until then steering that requests ask for does nothing.", text)
        return
    wrappers: list[Wrapper] = [
        _admitting,
        _with_steering_field,
        _with_steering_field_in_batches,
        _refusing_beams,
        _refusing_beams,
        _with_workers_asked,
        _with_vectors_checked,
        _with_keys,
        _with_keys,
        _with_salt,
        _with_blocks_placed,
        _with_first_runner_staged,
        _with_second_runner_staged,
    ]
    for (module, name, _), wrapper in zip(known, wrappers, strict=False):
        _wrap(module, name, wrapper)


def _wrap(module: str, name: str, wrapper: Wrapper) -> None:
    *above, last = name.split(".")
    owner = functools.reduce(getattr, above, importlib.import_module(module))
    inner = owner.__dict__[last]
    if not hasattr(inner, NAME):
        outer = functools.wraps(inner)(wrapper(inner))
        setattr(outer, NAME, True)
        setattr(owner, last, outer)


def _admitting(inner: Any) -> Any:
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

        try:
            regions = _requests.admit(self.vllm_config, params, resumable=bool(kwargs.get("resumable")))
        except SteerError as error:
            raise VLLMValidationError(str(error), parameter=NAME) from None
        made = inner(self, request_id, prompt, params, *args, **kwargs)
        if regions is not None:
            if made.prompt_embeds is not None:
                raise VLLMValidationError("Prompts that are embeddings cannot be steered.", parameter=NAME)
            made.sampling_params.extra_args = {**made.sampling_params.extra_args, NAME: regions}
            _requests.log_request(request_id, params, self.vllm_config)
        return made

    return process_inputs


def _with_steering_field(inner: Any) -> Any:
    def init_entrypoints_middleware(args: Any, app: Any, supported_tasks: Any) -> None:
        def check(steering: Any) -> None:
            engine = getattr(app.state, "engine_client", None)  # a server that only renders has none
            if engine is not None:
                _requests.admit(engine.vllm_config, SimpleNamespace(extra_args={NAME: steering}))

        generates = {"generate", "render"} & set(supported_tasks)
        # The first that is added is the innermost.
        app.add_middleware(SteeringField, holders=HOLDERS if generates else {}, check=check)
        inner(args, app, supported_tasks)

    return init_entrypoints_middleware


def _with_steering_field_in_batches(inner: Any) -> Any:
    def handle_endpoint_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.entrypoints.launchers.run_batch import (  # pyright: ignore[reportMissingImports]
            make_async_error_request_output,
        )

        body, xargs = request.body, "vllm_xargs"
        fields = {**(request.model_extra or {}), **(body.model_extra or {}), xargs: getattr(body, xargs, None)}
        try:
            placed = place_steering(fields, request.url)
        except SteerError as error:
            return make_async_error_request_output(request, error_msg=str(error))
        if placed is not fields:
            setattr(body, xargs, placed[xargs])
        return inner(request, *args, **kwargs)

    return handle_endpoint_request


def _refusing_beams(inner: Any) -> Any:
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (self.vllm_xargs or {}).get(NAME) is not None:  # beam search would drop it
            raise ValueError("Beam search cannot be steered; leave out use_beam_search, or steerfn in vllm_xargs.")
        return inner(self, *args, **kwargs)

    return to_beam_search_params


def _with_workers_asked(inner: Any) -> Any:
    def _initialize_kv_caches(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        # The models are loaded now, and each worker read the folder on its own: what all of them have can be asked for.
        self.steerfn_places = set.intersection(*map(set, self.collective_rpc(_places_of)))
        return inner(self, vllm_config, *args, **kwargs)

    return _initialize_kv_caches


def _places_of(worker: Any) -> list[str]:
    tables = getattr(worker.model_runner, NAME, None)
    return [] if tables is None else tables.places


def _with_vectors_checked(inner: Any) -> Any:
    def preprocess_add_request(self: Any, request: Any) -> Any:
        regions = resolved_of(request.sampling_params)
        if regions is not None:
            validate_resolved(regions)
            parts = [part for region in regions.values() for part in region["parts"]]
            places = {place(part["sha256"], block) for part in parts for block in part["blocks"]}
            missing = places - getattr(self, "steerfn_places", set())
            if missing:
                raise SteerError(
                    f"The engine's workers have no vector with SHA-256 {brief(min(missing))}: the folder changed while "
                    "the engine started, or differs from machine to machine; start it again."
                )
        return inner(self, request)

    return preprocess_add_request


def _with_keys(inner: Any) -> Any:
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> Any:
        keys, after = inner(request, start_token_idx, end_token_idx, start_mm_idx)
        key = key_of(request, start_token_idx, end_token_idx)
        return (keys if key is None else (*(keys or ()), key)), after

    return generate_block_hash_extra_keys


def _with_salt(inner: Any) -> Any:
    def compute_hash(self: Any, *args: Any, **kwargs: Any) -> str:
        plain = inner(self, *args, **kwargs)
        if self.model_config is None or obstacle(self) is not None:
            return plain
        shelf = shelf_of(self)
        assert shelf is not None
        salt = f"{plain} steerfn {importlib.metadata.version('steerfn')} {sorted(shelf.directions())}"
        return hashlib.sha256(salt.encode()).hexdigest()[: len(plain)]

    return compute_hash


def _with_blocks_placed(inner: Any) -> Any:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        config, runner = self.vllm_config, self.model_runner
        shelf, reason = shelf_of(config), obstacle(config)
        if reason is not None or shelf is None:
            _requests.log.warning("steerfn: this engine cannot be steered: %s.", reason)
            return
        if _known_runner(runner) is None:
            raise ModelError(
                f"steerfn does not know the model runner {type(runner).__qualname__}; start vLLM without {FOLDER}."
            )
        tables = Tables(shelf.directions(), runner.max_num_tokens, runner.max_num_reqs, runner.device)
        _tables.place_forwards(runner.get_model(), config.model_config.architecture, shelf.n_layers, tables)
        runner.steerfn, runner.steerfn_asked = tables, {}
        _requests.log.info("steerfn: vectors: %s", shelf.summary())

    return load_model


def _known_runner(runner: Any) -> str | None:
    """Which of the two runners this is, by the wrapped function that it has not overridden."""
    for name in ("_prepare_inputs", "prepare_inputs"):
        if hasattr(getattr(type(runner), name, None), NAME):
            return name
    return None


def _with_first_runner_staged(inner: Any) -> Any:
    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        made = inner(self, scheduler_output, num_scheduled_tokens, *args, **kwargs)
        if getattr(self, NAME, None) is not None:
            _tables.run(self.steerfn)
            _tables.of_first_runner(self, num_scheduled_tokens)
        return made

    return _prepare_inputs


def _with_second_runner_staged(inner: Any) -> Any:
    def prepare_inputs(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        batch = inner(self, scheduler_output, *args, **kwargs)
        if getattr(self, NAME, None) is not None:
            _tables.run(self.steerfn)
            _tables.of_second_runner(self, scheduler_output, batch)
        return batch

    return prepare_inputs
