"""No verb tokenizes a text twice, whatever it batches, repeats or compares."""

import pytest
import torch
from words import words

import steerfn as sf

PROMPTS = ["a b c", "d e", "f g h i"]
GREEDY = {"max_new_tokens": 2, "batch_size": 2}
QUIET = {"progress": False}
SAMPLED = {"do_sample": True, "seeds": (0, 1)}
PHRASES = ["z a", "x"]


def v(model):
    return sf.discover.random_vector(sf.SteeringVector({sf.resid_post[1]: torch.ones(32)}), 0)


def likelihood(metric, **more):
    def call(model, tokenizer):
        given = {"prompts": [*PROMPTS, *PROMPTS], "model": model, "tokenizer": tokenizer, "chat": None}
        metric([f" {word}" for word in "jklmno"], **given, **more)

    return call


def protocol(name, data, **options):
    def call(model, tokenizer):
        run = getattr(sf.protocols, name)
        run(model, tokenizer, v(model), data, controls=1, max_new_tokens=2, **options, **QUIET)

    return call


SIDES = {"harmful": ["a b", "c d", "e f", "g h"], "harmless": ["i j", "k l", "m n", "o p"]}
VERBS = {
    "generate": (1, lambda m, t: sf.generate(m, t, PROMPTS, **GREEDY)),
    "stream": (1, lambda m, t: list(sf.stream(m, t, "a b c", max_new_tokens=2))),
    "sweep": (1, lambda m, t: sf.sweep(m, t, PROMPTS, v(m), [0.0, 1.0, 2.0], **GREEDY, **QUIET)),
    "compare": (1, lambda m, t: sf.compare(m, t, PROMPTS, v(m), **GREEDY, **SAMPLED, **QUIET)),
    "compare_vectors": (
        1,
        lambda m, t: sf.compare_vectors(m, t, v(m), PROMPTS, "length", controls=2, **GREEDY, **SAMPLED, **QUIET),
    ),
    # The prompts alone, and with what follows them.
    "score": (2, lambda m, t: sf.score(m, t, PROMPTS, [" j", " k"], **QUIET)),
    "sweep of scores": (
        2,
        lambda m, t: sf.sweep(m, t, PROMPTS, v(m), [0.0, 1.0], continuations=[" j", " k"], **QUIET),
    ),
    "sensitivity": (2, lambda m, t: sf.sensitivity(m, t, v(m), PROMPTS, (" j", " k"), **QUIET)),
    "perplexity": (2, likelihood(sf.metrics.perplexity)),
    "log_prob_difference": (2, likelihood(sf.metrics.log_prob_difference, ops=[None] * 6)),
    "kl_from_baseline": (2, likelihood(sf.metrics.kl_from_baseline, ops=[None] * 6)),
    "optimise": (
        2,
        lambda m, t: sf.discover.optimise(m, t, sf.resid_post[1], promote=[("a", " b"), ("c", " d")], steps=1, **QUIET),
    ),
    "find_condition": (
        1,
        lambda m, t: sf.discover.find_condition(m, t, *SIDES.values(), by="mean", held_out=0.5, **QUIET),
    ),
    "toxicity": (1, protocol("toxicity", PROMPTS, samples=3, metric="length")),
    # The requests, and the first tokens of each phrase.
    "refusal": (1 + len(PHRASES), protocol("refusal", SIDES, refusal_phrases=PHRASES)),
    # The requests of either side, two probes of the template, and the phrases.
    "refusal_direction": (
        3 + len(PHRASES),
        lambda m, t: sf.discover.refusal_direction(
            m, t, *SIDES.values(), refusal_phrases=PHRASES, positions=None, max_kl=1e9, min_induced=-1e9, **QUIET
        ),
    ),
}


@pytest.mark.filterwarnings("ignore::steerfn.SteerWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_tokenizes_no_text_twice(tiny, monkeypatch, verb):
    tokenizer, said = words(template=verb == "refusal_direction"), []

    def call(self, text, *args, **kwargs):
        said.append([text] if isinstance(text, str) else list(text))
        return own(self, text, *args, **kwargs)

    own = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", call)
    calls, run = VERBS[verb]
    run(tiny, tokenizer)
    texts = [text for some in said for text in some]
    assert len(texts) == len(set(texts)), said
    assert len(said) == calls
