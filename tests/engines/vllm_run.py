"""Run by vLLM's interpreter: engines, and rounds of requests on each, from one JSON file into another.

    python vllm_run.py job.json result.json

A job has engines by name, `{"llm": {...}, "rounds": [[request, ...], ...]}`; a request is `{"prompt": [ids],
"steer": ..., "max_tokens": n}`. With `"after": [round, number]` its prompt goes on with what an earlier one gave, with
`"odd": name` it asks for a steering that JSON cannot hold, with `"choice": [texts]` it answers one of them, and with
`"lora": folder` it uses an adapter. The requests of a round run together. Floats are written with all their bits.
"""

import gc
import json
import os
import sys
import time


def odd_steerings():
    """What only a caller in the same process can send."""
    recursive, mapping = [], {"vector": "one"}
    recursive.append(recursive)
    mapping["layers"] = [mapping]
    vector = {"vector": "one"}
    return {
        "recursive": recursive,
        "recursive mapping": mapping,
        "nan": {**vector, "alpha": float("nan")},
        "infinite": {**vector, "alpha": -float("inf")},
        "object": object(),
        "bytes": b"one",
        "tuple": (vector,) * 9,
    }


def run_round(engine, requests, before):
    """What each request gave: tokens, log-probabilities, tokens found in the cache; or why it was refused."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    results = [None] * len(requests)
    for number, each in enumerate(requests):
        prompt = list(each["prompt"])
        if "after" in each:
            earlier, which = each["after"]
            prompt += before[earlier][which]["texts"][0]["tokens"]
        steer, n = odd_steerings()[each["odd"]] if "odd" in each else each.get("steer"), each.get("n", 1)
        results[number] = {"prompt": prompt}
        lora = LoRARequest("adapter", 1, each["lora"]) if "lora" in each else None
        try:
            params = SamplingParams(
                temperature=float(n > 1),  # vLLM wants more than greedy decoding for several texts
                top_k=1,
                n=n,
                max_tokens=each["max_tokens"],
                ignore_eos="choice" not in each,
                logprobs=0,
                structured_outputs=StructuredOutputsParams(choice=each["choice"]) if "choice" in each else None,
                extra_args=None if steer is None else {"steerfn": steer},
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(number), {"prompt_token_ids": prompt}, params, lora_request=lora)
        except Exception as error:
            results[number]["error"] = f"{type(error).__name__}: {error}"
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                results[int(output.request_id)] |= {"cached": output.num_cached_tokens, "texts": texts(output)}
    return results


def texts(output):
    found = []
    for text in output.outputs:
        pairs = zip(text.token_ids, text.logprobs, strict=True)
        log_probs = [step[token].logprob.hex() for token, step in pairs]
        found.append({"tokens": list(text.token_ids), "log_probs": log_probs})
    return found


def main():
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.model_executor.models import registry

    # vLLM looks at each architecture in a new process, for CUDA's sake: ten seconds of a CPU for every family.
    registry._run_in_subprocess = lambda function: function()
    with open(sys.argv[1]) as file:
        job = json.load(file)
    results = {}
    for name, each in job.items():
        began = time.perf_counter()
        settings = {"dtype": "float32", **each["llm"]}
        llm = LLM(disable_log_stats=False, seed=0, enable_prefix_caching=True, **settings)
        started = time.perf_counter()
        rounds = []
        for requests in each["rounds"]:
            rounds.append(run_round(llm.llm_engine, requests, rounds))
        counters = {metric.name: metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"}
        results[name] = {"rounds": rounds, "preemptions": counters["vllm:num_preemptions"]}
        print(f"{name}: start {started - began:.1f} s, rounds {time.perf_counter() - started:.1f} s", flush=True)
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
        with open(sys.argv[2], "w") as file:
            json.dump(results, file)
    sys.stdout.flush()
    os._exit(0)  # engines leave threads behind


if __name__ == "__main__":
    main()
