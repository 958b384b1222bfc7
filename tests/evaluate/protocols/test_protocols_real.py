"""On the real model: real items move and shuffled ones do not, and published files run as they are."""

from pathlib import Path

import numpy as np
import pytest

import steerfn as sf
from steerfn.evaluate.protocols._axbench import offline
from steerfn.metrics._metric import Setting

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
OPENINGS = (
    "The film was", "Our dinner turned out", "My week has been", "The hotel room looked", "The concert sounded",
    "My new job is", "The weather today is", "Her speech was", "This book is", "Our holiday was", "The food tasted",
    "The party was", "His painting looks", "The game was", "My first day was", "The service here is",
)  # fmt: skip
published = pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout")


@pytest.fixture(scope="module")
def mood(demo):
    d = sf.datasets.load("sentiment")
    return sf.mean_difference(*demo, d.positive, d.negative, 14, position="mean", progress=False)


def items(flip):
    """Which word is the positive answer: the good one, or where `flip` says so the bad one."""
    words = (" wonderful", " terrible")
    return [
        {"question": text, "answer_matching_behavior": words[f], "answer_not_matching_behavior": words[1 - f]}
        for text, f in zip(OPENINGS, flip, strict=True)
    ]


@pytest.mark.heavy
def test_a_real_vector_steers_and_labels_that_mean_nothing_show_nothing(demo, mood):
    options = {"chat": False, "progress": False}
    found = sf.protocols.steerability(*demo, mood, items([0] * len(OPENINGS)), **options)
    assert found.figures["slope"].low > 0 and found.figures["anti_steerable"].mean == 0
    assert found.is_shown("slope") and found.is_shown("slope", "random")
    flip = np.random.default_rng(0).permutation([0, 1] * (len(OPENINGS) // 2))
    shuffled = sf.protocols.steerability(*demo, mood, items(flip), **options)
    low, high = shuffled.figures["slope"].low, shuffled.figures["slope"].high
    assert low < 0 < high and not shuffled.is_shown("slope")


@published
@pytest.mark.heavy
def test_published_files_run_as_they_are(demo, mood):
    few = {"limit": 2, "progress": False}
    found = sf.protocols.benchmark("caa", *demo, mood, DATA / "caa" / "test_ab" / "myopic-reward.json", **few)
    assert found.figures["p_match"].n == 2 and found.figures["mass"].mean > 0.1
    sf.protocols.benchmark(
        "steerability", *demo, mood, DATA / "anthropic_evals/persona/risk-averse.jsonl", alphas=[-1, 1], **few
    )
    truth = sf.protocols.benchmark("truthfulqa", *demo, mood, DATA / "truthfulqa" / "mc_task.json", **few)
    assert 0 < truth.figures["mc2"].mean < 1
    both = {"harmful": DATA / "refusal/harmful_val.json", "harmless": DATA / "instructions/vicuna_question.jsonl"}
    sf.protocols.benchmark("refusal", *demo, mood, both, max_new_tokens=4, **few)
    cost = sf.protocols.benchmark(
        "side_effects", *demo, mood, DATA / "actadd/wedding_essay.txt", questions=DATA / "caa/mmlu_ab.json",
        prompts=DATA / "instructions/mt_bench_question.jsonl", alpha=4.0, max_new_tokens=8, **few,
    )  # fmt: skip
    assert cost.figures["perplexity_ratio"].mean > 1 and cost.figures["kl"].mean > 0


@pytest.mark.heavy
def test_the_offline_judge_tells_good_from_bad(demo):
    pytest.importorskip("sentence_transformers")  # comes with the MiniLM package
    model, tokenizer = demo
    prompt = "How can I make my garden look nicer?"
    on = "Rent a tiller and a hedge trimmer from an equipment rental shop; renting tools for a weekend costs little."
    [off] = sf.generate(model, tokenizer, prompt, max_new_tokens=40).texts
    texts = [on, off, "rental rental rental rental rental rental rental rental rental rental", ""]
    setting = Setting(prompts=[prompt] * 4, ops=[None] * 4, model=model, tokenizer=tokenizer)
    rated = offline(texts, "references to rental services and associated equipment", setting)
    assert rated[0, 0] == 2 and rated[1, 0] < 2, "the concept"
    assert rated[1, 1] > rated[2, 1], "the instruction"
    assert rated[1, 2] == 2 and rated[2, 2] == 0, "fluency"
    assert rated[3].tolist() == [0, 0, 0]
