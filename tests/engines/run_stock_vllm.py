"""Greedy tokens of stock vLLM, with no plugin; run by the interpreter of its environment, without steerfn.

python run_stock_vllm.py JOB OUT    JOB: {"model": folder, "prompts": [[id, ...], ...], "tokens": count}
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_PLUGINS": "",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main(job: dict, out: str) -> None:
    from vllm import LLM, SamplingParams

    model = LLM(job["model"], dtype="float32", enforce_eager=True, max_model_len=512, generation_config="vllm")
    greedy = SamplingParams(temperature=0, max_tokens=job["tokens"], logprobs=1)
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    found = []
    for request in model.generate(prompts, greedy, use_tqdm=False):
        [answer] = request.outputs
        chosen = [scores[token].logprob for token, scores in zip(answer.token_ids, answer.logprobs, strict=True)]
        found.append({"tokens": list(answer.token_ids), "log_probabilities": chosen})
    assert not any(name.split(".")[0] == "steerfn" for name in sys.modules), "this is not stock vLLM"
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
