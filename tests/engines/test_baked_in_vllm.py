"""Stock vLLM, on a CPU and without a plugin, runs baked checkpoints as live steering runs the original.

pytest -m engine -s tests/engines/test_baked_in_vllm.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from environments import python_of

import steerfn as sf

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]  # the first test builds the environment
TOKENS = 20
TIE = 1e-3
"""Log-probabilities closer than this may change places by rounding."""
PROMPTS = (
    "The film was", "Our dinner turned out", "My week has been", "The hotel room looked", "This book is",
    "When I opened the door, I saw", "The meeting this morning went", "She read the letter and felt",
    "The capital of France is", "Yesterday my neighbour told me", "After the long winter, the garden",
    "The new teacher walked in and", "I think that the best way to", "The train to the coast was",
    "In the middle of the night, the phone", "My brother's new job is", "Once upon a time, a small dog",
    "1, 2, 3, 4,", "def add(a, b):\n    return",
    "<|im_start|>user\nHow was your day?<|im_end|>\n<|im_start|>assistant\n",
)  # fmt: skip


def in_vllm(folder, prompts, place):
    """What stock vLLM generates from a checkpoint, in a process of its own."""
    job = {"model": str(folder), "prompts": prompts, "tokens": TOKENS}
    (place / "job.json").write_text(json.dumps(job))
    command = [str(python_of("vllm")), str(Path(__file__).with_name("run_stock_vllm.py"))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [*command, str(place / "job.json"), str(place / "out.json")],
        capture_output=True, text=True, env=environment, timeout=900, cwd=place,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((place / "out.json").read_text())


def generated(model, op, prompt):
    """The greedy tokens of live steering."""
    ids = torch.tensor([prompt])
    with sf.steer(model, op):
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return answer[0, len(prompt) :].tolist()


def scored(model, op, prompt, tokens):
    """The log-probabilities [tokens, vocabulary] of live steering along given tokens."""
    with torch.no_grad():
        logits = sf.functional(model)(op, torch.tensor([prompt + tokens]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def operators(model, tokenizer):
    texts = sf.datasets.load("sentiment")
    sites = [sf.resid_post[block] for block in (0, 9, 14, 29)]
    v = sf.mean_difference(model, tokenizer, texts.positive, texts.negative, sites, position="mean", progress=False)
    direction = v.select([sf.resid_post[14]])
    return {
        "additions at 4 blocks": sf.add(v, 0.75),
        "ablation": sf.ablate(sf.discover.spread(direction, sf.layout(model).stream)),
    }


def furthest(live, found):
    """The largest difference in the log-probabilities of the tokens that vLLM chose."""
    ours = live.gather(1, torch.tensor(found["tokens"])[:, None])[:, 0]
    return float((ours - torch.tensor(found["log_probabilities"])).abs().max())


@pytest.mark.parametrize("what", ["additions at 4 blocks", "ablation"])
def test_a_baked_checkpoint_gives_the_tokens_of_live_steering(demo, tmp_path, what):
    model, tokenizer = demo
    op = operators(model, tokenizer)[what]
    folder = sf.bake(model, tokenizer, op, tmp_path / "baked")
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    same, ties, apart, effect, changed = 0, [], 0.0, 0.0, 0
    for text, prompt, found in zip(PROMPTS, prompts, in_vllm(folder, prompts, tmp_path), strict=True):
        ours, theirs = generated(model, op, prompt), found["tokens"]
        live, plain = (scored(model, each, prompt, theirs) for each in (op, sf.identity))
        apart, effect = max(apart, furthest(live, found)), max(effect, furthest(plain, found))
        changed += plain.argmax(-1).tolist() != theirs
        if ours == theirs:
            same += 1
            continue
        at = next(at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        gap = float(live[at, ours[at]] - live[at, theirs[at]])
        ties.append(f"{text!r}: token {at}, {gap:.1e} apart")
        assert abs(gap) < TIE, f"{what}, {ties[-1]}: vLLM runs another model than live steering"
    print(
        f"\n{what}: {same} of {len(PROMPTS)} greedy texts of {TOKENS} tokens equal ({', '.join(ties) or 'no ties'}); "
        f"log-probabilities within {apart:.1e} of live steering, {effect:.1e} from the unsteered model; "
        f"{changed} texts differ from the unsteered model's"
    )
    assert apart < TIE and effect > 100 * apart
    assert changed > len(PROMPTS) / 4, "steering that changes no text proves nothing"


def test_unsteered_it_agrees_as_closely(demo, tmp_path):
    """What the two engines differ by without any steering: what the others are to be read against."""
    model, tokenizer = demo
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    theirs = in_vllm(tmp_path / "plain", prompts, tmp_path)
    runs = zip(prompts, theirs, strict=True)
    apart = max(furthest(scored(model, sf.identity, prompt, found["tokens"]), found) for prompt, found in runs)
    print(f"\nunsteered: log-probabilities within {apart:.1e} of transformers")
    assert apart < TIE
