"""Run by vLLM's interpreter: engines, and rounds of requests on each, from one JSON file into another.

    python vllm_run.py job.json result.json

A job has engines by name, `{"llm": {...}, "rounds": [[request, ...], ...]}`; a request is `{"prompt": [ids],
"steer": ..., "max_tokens": n}`, and with `"after": [round, number]` its prompt goes on with what an earlier one gave.
The requests of a round run together. Floats are written with all their bits.
"""

import gc
import json
import os
import sys
import time


def run_round(engine, requests, before):
    """What each request gave: tokens, log-probabilities, tokens found in the cache; or why it was refused."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    results = [None] * len(requests)
    for number, each in enumerate(requests):
        prompt = list(each["prompt"])
        if "after" in each:
            earlier, which = each["after"]
            prompt += before[earlier][which]["texts"][0]["tokens"]
        extra, n = None if each.get("steer") is None else {"steerfn": each["steer"]}, each.get("n", 1)
        params = SamplingParams(
            temperature=float(n > 1),  # vLLM wants more than greedy decoding for several texts
            top_k=1,
            n=n,
            max_tokens=each["max_tokens"],
            ignore_eos=True,
            logprobs=0,
            extra_args=extra,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        results[number] = {"prompt": prompt}
        try:
            engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
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

    with open(sys.argv[1]) as file:
        job = json.load(file)
    results = {}
    for name, each in job.items():
        began = time.perf_counter()
        llm = LLM(disable_log_stats=False, dtype="float32", seed=0, enable_prefix_caching=True, **each["llm"])
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
