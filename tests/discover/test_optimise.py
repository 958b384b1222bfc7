"""Gradient search: losses against plain forwards, gradients against finite differences, bounds, stopping, options."""

import dataclasses
import math
import warnings

import pytest
import torch
import torch.utils._pytree as pytree
from families import build
from steering import vector_at
from words import words

import steerfn as sf
from steerfn.datasets._held_out import held_out
from steerfn.discover._engine._objective import (
    Continuation,
    Examples,
    examples_of,
    losses,
    split_examples,
    with_margins,
)
from steerfn.discover._engine._search import Search
from steerfn.run._predict import Predictor

PROMPTS = ["a b c", "d", "e f", "g h i j", "k l", "m n o p q", "r s", "t u v"]
PROMOTE = [(prompt, " z") for prompt in PROMPTS]
SUPPRESS = [(prompt, " x y") for prompt in PROMPTS[:5]]
PAIRS = [(prompt, " z a", " y") for prompt in PROMPTS]
QUIET = {"progress": False}


def probabilities(model, prompt, following, v=None):
    """The probability of each token of a continuation, from a plain forward of one row."""
    tokenizer = words()
    ids = tokenizer(prompt + following, return_tensors="pt")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        if v is None:
            logits = model(ids).logits
        else:
            with sf.steer(model, v):
                logits = model(ids).logits
    p = logits[0].double().softmax(-1)
    return torch.stack([p[t - 1, ids[0, t]] for t in range(start, ids.shape[1])])


def test_losses_equal_their_formulas_row_by_row(tiny):
    """Ragged rows in one padded batch give what each gives alone."""
    v = vector_at(tiny, [sf.resid_post[1], sf.attn_out[2]])
    predict = Predictor.of(tiny, words())
    examples, _ = examples_of(words(), PROMOTE[:4], SUPPRESS, PAIRS[:3], None)
    pairs = with_margins(predict, examples.pairs, 2)
    with torch.no_grad():
        promote, suppress, prefer = losses(predict, sf.add(v), dataclasses.replace(examples, pairs=pairs), 0.3)
    for i, (prompt, following) in enumerate(PROMOTE[:4]):
        assert promote[i].item() == pytest.approx(
            -probabilities(tiny, prompt, following, v).log().mean().item(), abs=1e-5
        )
    for i, (prompt, following) in enumerate(SUPPRESS):
        expected = -(1 - probabilities(tiny, prompt, following, v)).log().mean().item()
        assert suppress[i].item() == pytest.approx(expected, abs=1e-5)
    for i, (prompt, good, bad) in enumerate(PAIRS[:3]):
        margin, before = (
            (probabilities(tiny, prompt, good, w).log().sum() - probabilities(tiny, prompt, bad, w).log().sum()).item()
            for w in (v, None)
        )
        assert prefer[i].item() == pytest.approx(math.log(1 + math.exp(-0.3 * (margin - before))), abs=1e-5)
        assert pairs[i].before == pytest.approx(before, abs=1e-5)


def test_a_certain_token_can_be_suppressed():
    """`log(1 - p)` where p rounds to 1 in float32: a finite loss with a gradient."""
    logits = torch.tensor([[[0.0, 60.0, 0.0]]], requires_grad=True)
    (loss,) = losses(lambda *_, **__: logits, None, Examples(suppress=(Continuation((0, 1), 1),)), 0.1)
    assert loss.item() == pytest.approx(60 - math.log(2), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[[-0.5, 1.0, -0.5]]]))


def search_over(model, examples, scope=None):
    predict = Predictor.of(model, words())
    examples = dataclasses.replace(examples, pairs=with_margins(predict, examples.pairs, 4))
    return Search(predict, scope, {}, examples, examples, 0.5, 8), examples


@pytest.mark.parametrize("scope", [None, sf.generated], ids=str)
def test_the_gradient_equals_finite_differences(scope):
    model = build("gpt2").double()  # Llama's norms compute in float32 whatever the model's dtype is
    sites = [sf.resid_post[0], sf.mlp_out[1], sf.head_out[2, 3]]
    v = vector_at(model, sites, scale=0.3).to(torch.float64)
    examples, _ = examples_of(words(), PROMOTE[:3], SUPPRESS[:2], PAIRS[:2], None)
    search, examples = search_over(model, examples, scope)
    gradient, _ = torch.func.grad_and_value(lambda u: search.loss(u, examples))(v)
    assert gradient.sites == v.sites
    for seed in range(3):
        w, h = vector_at(model, sites, seed=seed + 1).to(torch.float64), 1e-5
        with torch.no_grad():
            slope = (search.loss(v + h * w, examples) - search.loss(v - h * w, examples)) / (2 * h)
        found = sum((gradient[site] * w[site]).sum() for site in sites)
        assert found.item() == pytest.approx(slope.item(), rel=1e-6)


def test_promoting_makes_the_continuation_likelier_within_the_bound(tiny):
    v = sf.optimise(tiny, words(), 1, promote=PROMOTE, max_norm=3.0, steps=60, **QUIET)
    about = v.metadata
    assert v.sites == (sf.resid_post[1],) and v.dtype == torch.float32
    assert 0 < v.magnitude[sf.resid_post[1]] <= 3.0 * (1 + 1e-6)
    assert about["held_out_loss"]["after"] < about["held_out_loss"]["before"] - 0.1
    assert about["train_loss"]["after"] < about["train_loss"]["before"] - 0.1
    assert 0 < about["best_step"] <= about["steps"] <= 60
    assert about["counts"] == {"promote": 8, "suppress": 0, "pairs": 0} and about["method"] == "optimise"
    assert about["max_norm"] == {"resid_post[1]": 3.0} and about["model"] == sf.values.fingerprint(tiny, weights=True)
    for prompt in [*PROMPTS, "w x"]:  # the last one was never seen
        assert probabilities(tiny, prompt, " z", v) > 1.5 * probabilities(tiny, prompt, " z")


def test_the_losses_in_the_metadata_are_those_of_the_vector(tiny):
    v = sf.optimise(tiny, words(), 1, promote=PROMOTE, steps=10, held_out=0.4, **QUIET)
    out = held_out(PROMPTS, 0.4, 0)
    for name, side in (("held_out_loss", True), ("train_loss", False)):
        chosen = [prompt for prompt, is_out in zip(PROMPTS, out, strict=True) if is_out is side]
        for when, w in (("before", None), ("after", v)):
            expected = sum(-probabilities(tiny, p, " z", w).log().mean().item() for p in chosen) / len(chosen)
            assert v.metadata[name][when] == pytest.approx(expected, abs=1e-4)


def test_suppressing_makes_the_continuation_less_likely(tiny):
    """The likeliest next token of each prompt, so that there is something to suppress."""
    tokenizer, examples = words(), []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = tiny(tokenizer(prompt, return_tensors="pt")["input_ids"]).logits[0, -1, 3:29]
        examples.append((prompt, " " + tokenizer.decode([3 + int(logits.argmax())])))
    v = sf.optimise(tiny, tokenizer, [0, 2], suppress=examples, steps=60, **QUIET)
    before, after = (sum(probabilities(tiny, *e, w).item() for e in examples) for w in (None, v))
    assert after < 0.7 * before


def test_a_preference_raises_the_margin(tiny):
    v = sf.optimise(tiny, words(), 1, pairs=PAIRS, beta=1.0, steps=60, **QUIET)
    for prompt, good, bad in PAIRS:
        change = [
            (probabilities(tiny, prompt, each, v).log() - probabilities(tiny, prompt, each).log()).sum()
            for each in (good, bad)
        ]
        assert change[0] > change[1] + 0.2
    assert v.metadata["held_out_loss"]["before"] == pytest.approx(math.log(2))  # relative to the unsteered model


def test_the_model_is_untouched(tiny):
    before = {name: (p.clone(), p.requires_grad) for name, p in tiny.named_parameters()}
    assert all(requires for _, requires in before.values())
    sf.optimise(tiny, words(), 1, promote=PROMOTE, pairs=PAIRS, steps=3, **QUIET)
    for name, p in tiny.named_parameters():
        assert p.grad is None and p.requires_grad and torch.equal(p, before[name][0])


def test_no_gradient_is_followed_through_parameters(tiny, monkeypatch):
    """Nothing outside the vector is recorded, so a step costs no memory for weights."""
    seen, plain = [], torch.func.grad_and_value

    def spy(function):
        def call(v):
            gradient, loss = plain(function)(v)
            seen.append((loss.requires_grad, [d.requires_grad for d in gradient.directions]))
            return gradient, loss

        return call

    monkeypatch.setattr(torch.func, "grad_and_value", spy)
    sf.optimise(tiny, words(), 1, promote=PROMOTE, steps=2, **QUIET)
    assert seen == [(False, [False])] * 2


def test_the_default_bound_is_the_norm_of_the_stream(tiny):
    v = sf.optimise(tiny, words(), [1, sf.head_out[2, 1]], promote=PROMOTE, held_out=0, steps=2, **QUIET)
    for site in v.sites:
        norms = []
        for prompt in PROMPTS:
            with torch.no_grad():
                _, acts = sf.capture(tiny, site)(words()(prompt, return_tensors="pt")["input_ids"])
            norms.append(acts[site][0, -1].double().norm().item())
        assert v.metadata["max_norm"][site.name] == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_a_step_has_the_length_it_says(tiny):
    v = sf.optimise(tiny, words(), 1, promote=PROMOTE, steps=1, lr=0.05, max_norm=2.0, **QUIET)
    assert v.magnitude[sf.resid_post[1]] == pytest.approx(0.05 * 2.0, rel=1e-3)


def test_it_starts_where_it_is_told_and_within_the_bound(tiny):
    init = vector_at(tiny, [sf.resid_post[1], sf.resid_post[2]], scale=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sf.SteerWarning)  # whether a step helps does not matter here
        v = sf.optimise(tiny, words(), 1, promote=PROMOTE, init=init, max_norm=2.0, steps=1, lr=1e-6, **QUIET)
    assert v.cosine(init.select(1)) > 1 - 1e-6 and v.magnitude[sf.resid_post[1]] == pytest.approx(2.0, rel=1e-4)


def test_early_stopping_keeps_the_best(tiny):
    """A bound that is reached at once: nothing gets better, and the search stops after its patience."""
    v = sf.optimise(tiny, words(), 1, promote=PROMOTE, max_norm=1e-3, lr=1.0, steps=500, patience=4, **QUIET)
    about = v.metadata
    assert about["steps"] < 500 and about["steps"] >= about["best_step"] + 4
    assert about["held_out_loss"]["after"] < about["held_out_loss"]["before"]


def test_a_search_that_helps_nothing_says_so(tiny):
    """From near an optimum of two aims that hold each other in balance, one jump far beyond it."""
    both = {"promote": [("a b", " z")], "suppress": [("a b", " z")], "max_norm": 50.0}
    start = sf.optimise(tiny, words(), 2, lr=0.002, **both, **QUIET)
    with pytest.warns(
        sf.SteerWarning, match="None of 1 steps lowered the held-out loss .* so the result is the initial"
    ):
        v = sf.optimise(tiny, words(), 2, init=start, steps=1, lr=1.0, **both, **QUIET)
    assert v.allclose(start) and v.metadata["best_step"] == 0


def test_one_example_is_enough(tiny):
    v = sf.optimise(tiny, words(), 1, promote=[("a", " z")], steps=20, **QUIET)
    assert probabilities(tiny, "a", " z", v) > probabilities(tiny, "a", " z")


def test_no_prompt_is_on_both_sides_of_a_division():
    examples, prompts = examples_of(words(), PROMOTE, [*SUPPRESS, ("D", " y")], PAIRS[:1], None)
    train, test = split_examples(examples, prompts, 0.3, 0)
    begins = [{e.ids[: e.start] for e in (*side.promote, *side.suppress)} for side in (train, test)]
    assert begins[0] and begins[1] and not begins[0] & begins[1]
    assert len(train.promote) + len(test.promote) == 8 and len(test.promote) >= 2
    assert train.pairs == test.pairs == examples.pairs  # one cannot be divided
    assert any(split_examples(examples, prompts, 0.3, seed)[1] != test for seed in (1, 2, 3))
    assert split_examples(examples, prompts, 0, 0) == (examples, examples)


def test_chat_prompts_end_with_the_opening_of_the_answer(tiny):
    tokenizer = words(template=True)
    chat, _ = examples_of(tokenizer, [("a b", " z"), ([{"role": "user", "content": "a b"}], " z")], None, None, None)
    plain, _ = examples_of(tokenizer, [("a b", " z")], None, None, False)
    assert tokenizer.decode(chat.promote[0].ids) == "<bos> user a b assistant z" and chat.promote[0].start == 5
    assert chat.promote[0] == chat.promote[1] and tokenizer.decode(plain.promote[0].ids) == "<bos> a b z"
    v = sf.optimise(tiny, tokenizer, 1, promote=PROMOTE, steps=2, **QUIET)
    w = sf.optimise(tiny, tokenizer, 1, promote=PROMOTE, steps=2, chat=False, **QUIET)
    assert not v.allclose(w)


def test_the_same_call_gives_the_same_bits(tiny):
    first, second = (sf.optimise(tiny, words(), 1, promote=PROMOTE, steps=5, **QUIET) for _ in range(2))
    assert first.identical(second)


@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 0.05},
        {"lr": 0.05},
        {"steps": 12},
        {"scope": sf.last_prompt_token},
        {"batch_size": 2},
        {"batch_size": 2, "seed": 1},
        {"held_out": 0.5},
        {"init": "vector"},
        {"suppress": SUPPRESS},
        {"beta": 2.0},
    ],
    ids=str,
)
def test_pitfall_26_options_change_the_result(tiny, options):
    base = {"promote": PROMOTE, "pairs": PAIRS, "steps": 6, **QUIET}
    if options.get("init"):
        options = {"init": vector_at(tiny, sf.resid_post[1], scale=0.1)}
    without = {"batch_size": 2} if "seed" in options else {}
    first = sf.optimise(tiny, words(), 1, **base, **without)
    assert not first.allclose(sf.optimise(tiny, words(), 1, **(base | options)))


def test_other_families():
    for family in ("gpt2", "gemma2", "mixtral"):
        v = sf.optimise(build(family), words(), 1, promote=PROMOTE, steps=8, lr=0.05, **QUIET)
        assert v.metadata["held_out_loss"]["after"] < v.metadata["held_out_loss"]["before"], family


def test_bfloat16_models_are_optimised_in_float32(tiny):
    v = sf.optimise(tiny.bfloat16(), words(), 1, promote=PROMOTE, steps=10, lr=0.05, **QUIET)
    assert v.dtype == torch.float32
    assert v.metadata["held_out_loss"]["after"] < v.metadata["held_out_loss"]["before"]


def test_a_bar_is_shown_where_asked_for(tiny, capsys):
    sf.optimise(tiny, words(), 1, promote=PROMOTE, steps=2)
    assert "Optimising" in capsys.readouterr().err
    sf.optimise(tiny, words(), 1, promote=PROMOTE, steps=2, **QUIET)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "There is nothing to optimise; pass promote=[(prompt, continuation)], suppress=[...] or pairs="),
        ({"promote": []}, "There is nothing to optimise;"),
        ({"promote": "a"}, "promote must be a list of (prompt, continuation), not 'a'."),
        ({"promote": ["ab"]}, "promote[0] is 'ab'; pass (prompt, continuation)."),
        ({"pairs": [("a", " b")]}, "pairs[0] is ('a', ' b'); pass (prompt, preferred, rejected)."),
        ({"promote": [("a", "")]}, "The continuation of promote[0] is ''; pass a text that is not empty."),
        ({"promote": [("", " a")]}, "the prompt of promote[0][0] is empty ('')"),
        ({"promote": [("a", " ")]}, "The tokens of promote[0] cannot be divided into prompt and continuation"),
        ({"pairs": [("a", " b", " b")]}, "pairs[0] prefers a continuation to itself; pass two that differ."),
        ({"chat": "yes"}, "chat is True, False or None, not 'yes'."),
        ({"steps": 0}, "`steps` must be a positive integer, got 0."),
        ({"patience": 1.5}, "`patience` must be a positive integer, got 1.5."),
        ({"batch_size": True}, "`batch_size` must be a positive integer, got True."),
        ({"lr": -1}, "`lr` must be a finite number > 0, got -1."),
        ({"beta": 0}, "`beta` must be a finite number > 0, got 0."),
        ({"max_norm": math.inf}, "`max_norm` must be a finite number > 0, got inf."),
        (
            {"held_out": 1},
            "`held_out` must be a finite number >= 0 and < 1, got 1.",
        ),
        ({"seed": "a"}, "`seed` must be an integer, got 'a'."),
        ({"init": 3}, "init must be a SteeringVector or None, not a int."),
        (
            {"init": vector_at(build("llama"), sf.resid_post[2])},
            "init has no direction at resid_post[1]; it has resid_",
        ),
        ({"scope": "prompt"}, "A scope is needed, not 'prompt' of type str"),
    ],
)
def test_wrong_arguments_are_one_sentence(tiny, options, message):
    given = {"promote": PROMOTE[:2]} if not {"promote", "pairs"} & set(options) and options else {}
    with pytest.raises(sf.SteerError) as caught:
        sf.optimise(tiny, words(), 1, **(given | options), **QUIET)
    assert message in str(caught.value)


def test_a_loss_that_is_no_number_is_refused(tiny):
    with torch.no_grad():
        tiny.lm_head.weight.fill_(torch.nan)
    with pytest.raises(sf.DataError, match="The loss is nan after 0 steps; pass a smaller max_norm or lr, or a model"):
        sf.optimise(tiny, words(), 1, promote=PROMOTE, **QUIET)


def test_the_loss_is_a_pytree_function_of_the_vector(tiny):
    """The gradient is itself a vector: what `torch.func` gives for a pytree."""
    examples, _ = examples_of(words(), PROMOTE[:1], None, None, None)
    search, examples = search_over(tiny, examples)
    v = vector_at(tiny, [sf.resid_post[0], sf.resid_post[1]])
    gradient = torch.func.grad(lambda u: search.loss(u, examples))(v)
    assert pytree.tree_structure(gradient) == pytree.tree_structure(v)
