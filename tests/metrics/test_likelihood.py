"""perplexity, kl_from_baseline, log_prob_difference and refusal_log_odds: against plain forward passes with hooks."""

import math

import numpy as np
import pytest
import torch
from asking import HARMFUL, HARMLESS, PLANT, logits, planted
from families import build
from steering import vector
from words import words

import steerfn as sf
from steerfn.metrics import _likelihood, kl_from_baseline, log_prob_difference, perplexity, refusal_log_odds
from steerfn.metrics._likelihood import TOGETHER, answers_of, divergence, log_probs, sharing
from steerfn.metrics._refusal import PHRASES

pytestmark = pytest.mark.steady

PROMPTS = ["a b c", "d e f g a b c d", "a b c", "b", "a b c", "c d", "e f"]
TEXTS = [" d e", " f", " d e", " g h i j k", "d x y", "", " z"]
LAYER = 1
V = vector(sf.resid_post[LAYER])
DIRECTION = V[sf.resid_post[LAYER]]
OPS = [sf.add(V, 2.0), None, sf.add(V, -3.0), sf.at(sf.generated, sf.add(V, 4.0)), sf.add(V, 2.0), sf.add(V), None]
ADDED = [2.0, 0.0, -3.0, 4.0, 2.0, 1.0, 0.0]
GIVEN = {"tokenizer": words(), "chat": False}
LETTERS = {"suppress_tokens": [0, 1, 2, *range(len(words()), 99)]}  # what the tokenizer has no word for stays unsaid


def tokens(prompt, text, tokenizer=None):
    """Prompt and text as one, and where the text begins: the first token that the prompt alone has not."""
    tokenizer = tokenizer or words()
    alone, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
    start = 0
    while start < min(len(alone), len(ids)) and alone[start] == ids[start]:
        start += 1
    return ids, start


def predicted(model, i, steered):
    """Log-probabilities `[tokens, vocabulary]` of the places that predict the text, and its tokens."""
    ids, start = tokens(PROMPTS[i], TEXTS[i])
    first = start - 1 if OPS[i] is OPS[3] else 0
    found = logits(model, ids, ADDED[i] * DIRECTION if steered else 0 * DIRECTION, LAYER, first)
    return found.log_softmax(-1)[start - 1 : len(ids) - 1], ids[start:]


def summed(model, i, steered):
    if not TEXTS[i]:
        return math.nan
    found, ids = predicted(model, i, steered)
    return float(found[torch.arange(len(ids)), torch.tensor(ids)].sum())


def count(i):
    ids, start = tokens(PROMPTS[i], TEXTS[i])
    return len(ids) - start


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_perplexity_is_a_loop_over_plain_forwards(family):
    model = build(family)
    expected = []
    for i in range(len(TEXTS)):
        ids, start = tokens(PROMPTS[i], TEXTS[i])
        with torch.no_grad():
            found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses = [-float(found[t - 1, ids[t]]) for t in range(start, len(ids))]
        expected.append(math.exp(sum(losses) / len(losses)) if losses else math.nan)
    found = perplexity(TEXTS, prompts=PROMPTS, model=model, **GIVEN)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert math.isnan(found[5]) and found[0] == found[2]


def test_log_prob_difference_is_a_loop_over_hooked_forwards(tiny):
    expected = [summed(tiny, i, True) - summed(tiny, i, False) for i in range(len(TEXTS))]
    found = log_prob_difference(TEXTS, prompts=PROMPTS, ops=OPS, model=tiny, **GIVEN)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found[1] == found[6] == 0 and math.isnan(found[5]) and abs(found[0]) > 0.01


def test_kl_is_a_loop_over_hooked_forwards(tiny):
    expected = []
    for i in range(len(TEXTS)):
        if not TEXTS[i]:
            expected.append(math.nan)
            continue
        new, old = (predicted(tiny, i, steered)[0].numpy() for steered in (True, False))
        expected.append(np.mean([(np.exp(n) * (n - o)).sum() for n, o in zip(new, old, strict=True)]))
    found = kl_from_baseline(TEXTS, prompts=PROMPTS, ops=OPS, model=tiny, **GIVEN)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found[1] == found[6] == 0 and min(found[0], found[2], found[3]) > 0.01


def test_a_stronger_push_is_farther_away(tiny):
    given = {"prompts": PROMPTS[:1] * 3, "model": tiny, **GIVEN}
    near, far, none = kl_from_baseline(TEXTS[:1] * 3, ops=[sf.add(V, 0.5), sf.add(V, 4.0), sf.add(V, 0.0)], **given)
    assert far > near > none == pytest.approx(0, abs=1e-6)


def test_what_steering_writes_it_finds_likelier(tiny):
    ops = [sf.add(V, alpha) for alpha in (-4.0, 4.0)]
    written = sf.generate(tiny, words(), PROMPTS[:2], ops, max_new_tokens=6, chat=False, **LETTERS).texts
    given = {"prompts": PROMPTS[:2], "model": tiny, **GIVEN}
    own = log_prob_difference([" " + text for text in written], ops=ops, **given)
    other = log_prob_difference([" " + text for text in written], ops=ops[::-1], **given)
    assert min(own) > 0 and min(own) > max(other)


def test_what_the_model_would_say_itself_is_least_unexpected(tiny):
    [own] = sf.generate(tiny, words(), PROMPTS[:1], max_new_tokens=1, chat=False, **LETTERS).texts
    letters = "abcdefghijklmnopqrstuvwxyz"
    found = perplexity([f" {letter}" for letter in letters], prompts=PROMPTS[:1] * 26, model=tiny, **GIVEN)
    assert letters[int(np.argmin(found))] == own


@pytest.mark.parametrize("metric", [perplexity, kl_from_baseline, log_prob_difference], ids=lambda m: m.name)
def test_pitfall_28_one_text_one_token_and_none_at_all(tiny, metric):
    given = {"model": tiny, **GIVEN}
    ops = {"ops": OPS} if "ops" in metric.needs else {}

    def found(some):
        cut = {"ops": [OPS[i] for i in some]} if ops else {}
        return metric([TEXTS[i] for i in some], prompts=[PROMPTS[i] for i in some], **cut, **given)

    together = found(range(len(TEXTS)))
    for i in range(len(TEXTS)):  # a text alone, of one token among them, is what it is among others
        np.testing.assert_allclose(found([i]), together[i : i + 1], rtol=1e-4, atol=1e-5)
    assert found([]) == []
    blank = metric(["", ""], prompts=["a", "b"], **({"ops": [OPS[0], None]} if ops else {}), **given)
    assert all(map(math.isnan, blank))


def test_a_text_that_cannot_be_told_from_its_prompt_has_no_number(tiny):
    """Without a BOS the only token of the prompt becomes another one."""
    given = {"tokenizer": words(bos=False), "chat": False}
    found = perplexity(["b c", " b c", " "], prompts=["a", "a", "a"], model=tiny, **given)
    assert [math.isnan(value) for value in found] == [True, False, True]


def test_prompts_go_into_the_template_as_in_generate(tiny):
    tokenizer = words(template=True)
    ids = tokenizer("user a b assistant c d")["input_ids"]
    found = logits(tiny, ids).log_softmax(-1)
    expected = math.exp(-float(found[4, ids[5]] + found[5, ids[6]]) / 2)
    for chat, prompt in ((True, "a b"), (None, "a b"), (False, [{"role": "user", "content": "a b"}])):
        [value] = perplexity([" c d"], prompts=[prompt], model=tiny, tokenizer=tokenizer, chat=chat)
        assert value == pytest.approx(expected, rel=1e-4)
    [plain] = perplexity([" c d"], prompts=["a b"], model=tiny, tokenizer=tokenizer, chat=False)
    assert plain != pytest.approx(expected, rel=1e-2)


def test_scopes_take_the_prompt_for_the_prompt(tiny):
    """An operator on the prompt alone still moves the text; one on what nobody reads does not."""
    given = {"prompts": PROMPTS[:2], "model": tiny, **GIVEN}
    for metric in (kl_from_baseline, log_prob_difference):
        ops = [sf.at(sf.prompt, sf.add(V, 3.0)), sf.at(sf.generated, sf.add(V, 3.0))]
        one, other = (metric([" d e", " d e"], ops=[op, op], **given) for op in ops)
        assert all(abs(value) > 1e-3 for value in (*one, *other)) and one != pytest.approx(other, rel=1e-2)


def test_every_operator_is_that_of_its_text(tiny):
    """Not only additions: a rotation, an ablation, a condition and a chain in one batch."""
    ops = [sf.rotate(V, 0.7), sf.ablate(V), sf.when(sf.projection_above(V, 0.0), sf.add(V, 3.0)), None]
    ops += [sf.chain(sf.ablate(V), sf.add(V, 2.0)), sf.clamp(V, 1.5)]
    prompts, texts = (PROMPTS * 2)[: len(ops)], [" d e", " f", " g", " h", " i j", " k"]
    f = sf.functional(tiny)
    expected = {"kl": [], "difference": []}
    for prompt, text, op in zip(prompts, texts, ops, strict=True):
        ids, start = tokens(prompt, text)
        with torch.no_grad():
            old, new = (
                f(each, torch.tensor([ids]), prompt_length=start).logits[0].double().log_softmax(-1)[start - 1 : -1]
                for each in (sf.identity, op or sf.identity)
            )
        expected["kl"].append(float((new.exp() * (new - old)).sum(-1).mean()))
        expected["difference"].append(float((new - old)[torch.arange(len(ids) - start), ids[start:]].sum()))
    given = {"prompts": prompts, "ops": ops, "model": tiny, **GIVEN}
    np.testing.assert_allclose(kl_from_baseline(texts, **given), expected["kl"], atol=1e-4)
    np.testing.assert_allclose(log_prob_difference(texts, **given), expected["difference"], atol=1e-3)


# ---- how it is computed


def passes(model, call):
    seen = []
    handle = model.model.embed_tokens.register_forward_hook(lambda _, __, out: seen.append(out.shape[0] * out.shape[1]))
    try:
        return call(), seen
    finally:
        handle.remove()


def test_a_prompt_runs_once_for_its_texts_and_a_text_once_for_its_copies(tiny):
    prompt = " ".join("abcdefghijklmnopqrstuvwxyz")
    texts = [f" {a} {b}" for a in "abcd" for b in "xyz"] * 3
    given = {"model": tiny, **GIVEN}
    perplexity(texts[:1], prompts=[prompt], **given)  # asks the model what it can do
    found, seen = passes(tiny, lambda: perplexity(texts, prompts=[prompt] * len(texts), **given))
    assert sum(seen) < 2 * 26 < len(texts) * 26
    alone = [perplexity([text], prompts=[prompt], **given)[0] for text in texts[:12]]
    np.testing.assert_allclose(found, alone * 3, rtol=1e-4)


def test_texts_share_rows_up_to_a_bound():
    answers = [((1, 2), tuple(range(n, n + 40))) for n in range(20)] + [((3,), (4,)), ((1, 2), tuple(range(40)))]
    found = sharing(answers, 100)
    assert [len(item.continuations) for item, _ in found] == [2] * 10 + [1]
    for item, whose in found:
        for text, mine in zip(item.continuations, whose, strict=True):
            assert all(answers[i] == (item.prompt, text) for i in mine)
    assert sorted(i for _, whose in found for mine in whose for i in mine) == list(range(22))
    assert found[0][1] == [[0, 21], [1]]
    # a prompt longer than the bound is shared by as many tokens as it has itself
    long = [(tuple(range(400)), tuple(range(n, n + 40))) for n in range(12)]
    assert [len(item.continuations) for item, _ in sharing(long, 100)] == [10, 2]
    assert 0 < TOGETHER < 2**26 / 50_000  # the logits of one row fit into a pass


def test_only_what_is_wanted_is_scored(tiny):
    answers = answers_of(words(), TEXTS, PROMPTS, False)
    whole = log_probs(tiny, answers, [None, OPS[0]])
    some = log_probs(tiny, answers, [None, OPS[0]], [0, 3])
    np.testing.assert_allclose(some[:, [0, 3]], whole[:, [0, 3]], atol=1e-4)
    assert np.isnan(some[:, [1, 2, 4, 5, 6]]).all() and np.isnan(log_probs(tiny, [None], [None])).all()


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_kl_does_not_depend_on_its_batches(tiny, monkeypatch, budget):
    given = {"prompts": PROMPTS, "ops": OPS, "model": tiny, **GIVEN}
    whole = kl_from_baseline(TEXTS, **given)
    monkeypatch.setattr(_likelihood, "TOKENS", (budget, budget))
    np.testing.assert_allclose(kl_from_baseline(TEXTS, **given), whole, rtol=1e-3, atol=1e-6)


def test_kl_makes_do_with_little_memory(tiny, monkeypatch):
    given = {"prompts": PROMPTS, "ops": OPS, "model": tiny, **GIVEN}
    whole, real = kl_from_baseline(TEXTS, **given), _likelihood._divergences

    def narrow(predict, answers, ops):
        if len(answers) > 1:
            raise torch.OutOfMemoryError("no")
        return real(predict, answers, ops)

    monkeypatch.setattr(_likelihood, "_divergences", narrow)
    np.testing.assert_allclose(kl_from_baseline(TEXTS, **given), whole, rtol=1e-3, atol=1e-6)
    monkeypatch.setattr(_likelihood, "_divergences", lambda *_: narrow(None, [1, 2], None))
    with pytest.raises(torch.OutOfMemoryError):
        kl_from_baseline(TEXTS, **given)


def test_divergence_is_numpys_and_zero_for_tokens_that_are_ruled_out():
    draw = np.random.default_rng(0)
    new, old = draw.normal(size=(2, 4, 9))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (new, old))
    np.testing.assert_allclose(divergence(torch.tensor(new), torch.tensor(old)), (p * np.log(p / q)).sum(-1))
    new[:, 2] = old[:, 2] = -np.inf
    assert torch.isfinite(divergence(torch.tensor(new), torch.tensor(old))).all()
    assert torch.isnan(divergence(torch.tensor([[np.nan, 0.0]]), torch.tensor([[0.0, 0.0]]))).all()
    assert divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -np.inf]])).isinf().all()


# ---- refusal log-odds


def test_refusal_log_odds_are_those_of_a_loop(tiny):
    tokenizer = words()
    phrases = ["z a", "y", "z b"]
    chosen = torch.tensor(tokenizer.convert_tokens_to_ids(["z", "y"]))
    expected = []
    for prompt, added, op in zip(PROMPTS, ADDED, OPS, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        first = len(ids) - 1 if op is OPS[3] else 0
        p = logits(tiny, ids, added * DIRECTION, LAYER, first)[-1].softmax(-1)[chosen].sum()
        expected.append(float(torch.log(p) - torch.log1p(-p)))
    found = refusal_log_odds(TEXTS, prompts=PROMPTS, ops=OPS, model=tiny, refusal_phrases=phrases, **GIVEN)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    others = refusal_log_odds.using(refusal_phrases=["x"])(TEXTS, prompts=PROMPTS, ops=OPS, model=tiny, **GIVEN)
    assert np.abs(np.array(found) - others).max() > 0.1
    none = {"prompts": [], "ops": [], "model": tiny, "refusal_phrases": phrases}
    assert refusal_log_odds([], **none, **GIVEN) == []


def test_refusal_log_odds_move_with_the_direction_that_carries_refusal():
    """A model whose word x writes a direction that its head reads as the word z."""
    model, tokenizer = planted(), words()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("z")] += 3 * PLANT
    v = sf.SteeringVector({sf.resid_post[2]: PLANT})
    given = {"model": model, "tokenizer": tokenizer, "chat": False, "refusal_phrases": ["z"]}
    prompts = HARMFUL + HARMLESS
    plain, without, more = (
        np.array(refusal_log_odds([""] * len(prompts), prompts=prompts, ops=[op] * len(prompts), **given))
        for op in (None, sf.ablate(v), sf.add(v, 8.0))
    )
    assert (more > plain).all() and more.mean() > without.mean()


def test_a_prompt_is_asked_once_for_its_samples(tiny):
    op, other = sf.add(V), sf.add(V, 2.0)
    given = {"prompts": ["a b", "c d"] * 10, "model": tiny, "refusal_phrases": ["z"], **GIVEN}
    ops = [op] * 10 + [other] * 5 + [None] * 5
    found, seen = passes(tiny, lambda: refusal_log_odds([""] * 20, ops=ops, **given))
    assert sum(seen) == 6 * 3  # two prompts of three tokens under three operators
    assert len(set(found)) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: perplexity(["a"], prompts=["a", "b"], model=m, **GIVEN),
            "There are 1 texts and 2 prompts; pass one",
        ),
        (lambda m: kl_from_baseline(["a"], prompts=["a"], ops=[], model=m, **GIVEN), "There are 1 texts and 0 ops"),
        (lambda m: log_prob_difference([], prompts=[], ops=[None], model=m, **GIVEN), "There are 0 texts and 1 ops"),
        (lambda m: refusal_log_odds(["a"], prompts=["a"], ops=[], model=m, **GIVEN), "There are 1 texts and 0 ops"),
        (lambda m: perplexity(["a"], prompts=[" "], model=m, **GIVEN), "prompts[0] is empty"),
        (lambda m: perplexity(["a"], prompts=["b"], model=m, tokenizer=words(), chat=3), "chat is True, False or None"),
        (
            lambda m: perplexity(["a"], prompts=["b"], model=m, tokenizer=words(), chat=True),
            "This tokenizer has no chat template",
        ),
        (
            lambda m: refusal_log_odds(["a"], prompts=["a"], ops=[None], model=m, **GIVEN),
            "No refusal phrase begins with a token that the tokenizer knows",
        ),
        (
            lambda m: kl_from_baseline([" a"], prompts=["b"], ops=[sf.add(vector(sf.resid_post[7]))], model=m, **GIVEN),
            "resid_post[7]",
        ),
    ],
)
def test_errors_by_their_text(tiny, call, message):
    with pytest.raises(sf.SteerError) as caught:
        call(tiny)
    assert message in str(caught.value)


def test_nothing_on_the_model_changes(tiny):
    before = logits(tiny, [1, 3, 4])
    given = {"prompts": PROMPTS, "ops": OPS, "model": tiny, **GIVEN}
    kl_from_baseline(TEXTS, **given), log_prob_difference(TEXTS, **given)
    assert torch.equal(logits(tiny, [1, 3, 4]), before)


def test_on_a_real_model(demo):
    model, tokenizer = demo
    given = {"model": model, "tokenizer": tokenizer, "chat": None}
    prompt = "What is the capital of France?"
    texts = ["The capital of France is Paris.", "Paris The of is France capital.", "qx zzk 8 (( lorem"]
    good, shuffled, broken = perplexity(texts, prompts=[prompt] * 3, **given)
    assert 1 < good < shuffled < broken
    [found] = refusal_log_odds([""], prompts=[prompt], ops=[None], **given)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    first = [tokenizer(phrase, add_special_tokens=False)["input_ids"][0] for phrase in PHRASES]
    with torch.no_grad():
        p = model(**inputs).logits[0, -1].double().softmax(-1)[list(set(first))].sum()
    assert found == pytest.approx(float(torch.logit(p)), abs=1e-3)
