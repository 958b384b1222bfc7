"""Finding a condition: a planted direction, the best threshold by brute force, labels without meaning, and its use."""

import contextlib
import dataclasses
import itertools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build
from options import assert_changes, optional
from words import words

import steerfn as sf
from steerfn.datasets._held_out import held_out
from steerfn.discover import Hits
from steerfn.discover._engine._threshold import best_threshold

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
QUIET = {"progress": False}
PLANT = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
LETTERS = "abcdefgh"
PLAIN = [" ".join(each) for each in itertools.product(LETTERS, LETTERS[::2])]
WITH_X = [f"{a} x {b}" for a, b in itertools.product(LETTERS[:5], LETTERS[:5])]
RANDOM = [" ".join(each) for each in itertools.permutations(LETTERS[:6], 3)][::2]


@contextlib.contextmanager
def quietly():
    """Whether what is found is any good is no matter here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The condition does not separate", sf.SteerWarning)
        yield


def planted():
    """A Llama in which the word x writes a direction."""
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[words().convert_tokens_to_ids("x")] += 5 * PLANT
    return model


def split(positive, negative, part=0.3, seed=0):
    """The texts that choose and those that report, by side."""
    sides = []
    for texts in (positive, negative):
        out = held_out(texts, part, seed)
        sides.append(
            ([t for t, o in zip(texts, out, strict=True) if not o], [t for t, o in zip(texts, out, strict=True) if o])
        )
    return sides


def states(model, texts, layer, by="last"):
    """`resid_post` of each text, one at a time, as transformers gives it (not the last layer)."""
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model(words()(text, return_tensors="pt").input_ids, output_hidden_states=True).hidden_states
        state = hidden[layer + 1][0].double().numpy()
        found.append(state[-1] if by == "last" else state.mean(0))
    return np.stack(found)


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def f1(positive, negative, threshold):
    """By counting."""
    tp = sum(s > threshold for s in positive)
    fp = sum(s > threshold for s in negative)
    fn = len(positive) - tp
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


@pytest.mark.parametrize("by", ["last", "mean"])
def test_a_planted_direction_is_recovered(by):
    positive = WITH_X if by == "mean" else [f"{a} {b} x" for a, b in itertools.product(LETTERS[:5], LETTERS[:5])]
    found = sf.discover.find_condition(planted(), words(), positive, PLAIN, sf.resid_pre[0], by=by, **QUIET)
    assert found.site == sf.resid_pre[0] and found.f1 == found.held_out_f1 == 1.0
    direction = found.vector[found.site]
    assert float(torch.cosine_similarity(direction, PLANT, dim=0)) > 0.9
    # Judged by new texts, and by the sides of the threshold rather than its number.
    acts = sf.activations(planted(), words(), ["h g f x", "b b x", "c d"], found.site, by, **QUIET)[found.site]
    held = torch.cosine_similarity(acts, direction, dim=-1) > found.threshold
    assert held.tolist() == [True, True, False]


@pytest.mark.parametrize("by", ["last", "mean"])
def test_the_threshold_is_the_best_of_a_brute_force_loop(by):
    """Random texts: no site tells the sides apart by itself, so the choice matters."""
    model, positive, negative = build("llama"), RANDOM[::2], RANDOM[1:40:2]
    with quietly():
        found = sf.discover.find_condition(model, words(), positive, negative, [0, 1], by=by, **QUIET)
    (chosen, out), (other, other_out) = split(positive, negative)
    best = []
    for candidate, layer in zip(found.table, (0, 1), strict=True):
        p, n = states(model, chosen, layer, by), states(model, other, layer, by)
        # Each text by the direction that the others give.
        high = [cosine(h, np.delete(p, i, 0).mean(0) - n.mean(0)) for i, h in enumerate(p)]
        low = [cosine(h, p.mean(0) - np.delete(n, i, 0).mean(0)) for i, h in enumerate(n)]
        every = np.sort([*high, *low])
        best.append(max(f1(high, low, t) for t in [-3.0, *((every[1:] + every[:-1]) / 2), *np.linspace(-1, 1, 301)]))
        assert candidate.site == sf.resid_post[layer] and candidate.hits.f1 == pytest.approx(best[-1])
        assert f1(high, low, candidate.threshold) == pytest.approx(best[-1])
        direction = p.mean(0) - n.mean(0)
        if found.site == candidate.site:
            assert np.allclose(found.vector[layer].numpy(), direction, atol=1e-5)
            judged = [[cosine(h, direction) for h in states(model, texts, layer, by)] for texts in (out, other_out)]
            assert found.held_out_f1 == pytest.approx(f1(*judged, found.threshold))
            assert (found.held_out.tp, found.held_out.fp) == tuple(sum(s > found.threshold for s in j) for j in judged)
            assert found.held_out.tp + found.held_out.fn == len(out)
    assert found.f1 == pytest.approx(max(best)) and found.threshold in [c.threshold for c in found.table]


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_against_every_threshold(seed):
    random = np.random.default_rng(seed)
    scores = np.round(random.uniform(-1, 1, size=20), 1 if seed % 2 else 6)  # with ties
    label = random.random(20) < 0.4
    label[0] = True
    threshold, gap = best_threshold(torch.tensor(scores), torch.tensor(label))
    tried = [-2.0, *np.linspace(-1.1, 1.1, 4001)]
    values = [f1(scores[label], scores[~label], t) for t in tried]
    assert f1(scores[label], scores[~label], threshold) == pytest.approx(max(values))
    assert gap == 0 or not np.any(np.abs(scores - threshold) < gap / 2 - 1e-9)


def test_of_equal_thresholds_the_one_in_the_widest_gap():
    scores, label = torch.tensor([0.9, 0.5, 0.4, 0.1]), torch.tensor([True, False, True, False])
    # F1 0.667 after the first, 0.8 after the third.
    assert best_threshold(scores, label) == (pytest.approx(0.25), pytest.approx(0.3))
    scores, label = torch.tensor([0.9, 0.5, 0.45, 0.1]), torch.tensor([True, True, False, False])
    assert best_threshold(scores, label)[0] == pytest.approx(0.475)
    # Cosines that a model could not tell apart in float32 are not told apart.
    scores = torch.tensor([0.5 + 1e-9, 0.5, 0.1], dtype=torch.float64)
    assert best_threshold(scores, torch.tensor([True, False, True])) == (-2.0, 0.0)


def test_labels_that_mean_nothing_are_seen_to():
    """Chosen as the best of all sites its F1 looks like something; held out it is that of chance, and says so."""
    f1s = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(RANDOM))
        positive, negative = [RANDOM[i] for i in order[:30]], [RANDOM[i] for i in order[30:]]
        with quietly():
            found = sf.discover.find_condition(build("llama"), words(), positive, negative, seed=seed, **QUIET)
        f1s.append(found.held_out_f1)
        assert found.held_out_f1 < found.held_out.always + 0.1
        assert f"(always yes: {found.held_out.always:.3f})" in str(found)
    assert np.mean(f1s) < 0.7


def test_no_better_than_always_yes_warns():
    same = [" ".join(each) for each in itertools.product("abcd", "abcd")]
    with pytest.warns(sf.SteerWarning) as caught:  # the side is told by the first word, and the last one is read
        found = sf.discover.find_condition(build("llama"), words(), same, same[::-1], sf.resid_pre[0], **QUIET)
    assert str(caught[0].message) == (
        f"The condition does not separate the texts: on held-out texts its F1 is {found.held_out_f1:.3f}, and that "
        "of a condition that always holds is 0.667; pass more texts, other sites, or prompts that differ in kind."
    )
    assert found.held_out.always == pytest.approx(2 / 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_given_vector_on_either_side(sign):
    model = planted()
    v = sf.SteeringVector({sf.resid_post[0]: sign * PLANT, sf.resid_pre[0]: sign * PLANT})
    found = sf.discover.find_condition(model, words(), WITH_X, PLAIN, vector=v, by="mean", **QUIET)
    assert [each.site for each in found.table] == [sf.resid_pre[0], sf.resid_post[0]]
    assert found.site == sf.resid_pre[0] and found.held_out_f1 == 1.0
    assert torch.allclose(found.vector[found.site], PLANT) and found.table[0].sign == sign
    assert ("-1" in str(found)) == any(each.sign < 0 for each in found.table)
    one = sf.discover.find_condition(model, words(), WITH_X, PLAIN, sf.resid_pre[0], vector=v, by="mean", **QUIET)
    assert one.table == found.table[:1]


def test_texts_that_are_the_same_do_not_straddle():
    """Nothing but copies tells the sides apart; with a copy on both parts the held-out texts would be known."""
    order = np.random.default_rng(0).permutation(len(RANDOM))
    texts = [RANDOM[i] for i in order]
    positive, negative = [t for t in texts[:8] for _ in range(5)], [t.upper() for t in texts[8:16] for _ in range(5)]
    with quietly():
        found = sf.discover.find_condition(build("llama"), words(), positive, negative, **QUIET)
    counts = [dataclasses.asdict(hits) for hits in (found.chosen, found.held_out)]
    for each in counts:
        assert (each["tp"] + each["fn"]) % 5 == 0 and (each["fp"] + each["tn"]) % 5 == 0
    assert sum(sum(each.values()) for each in counts) == 80


def test_it_is_read_where_generation_asks():
    """The same answers for whole prompts, through the template and in a padded batch, as the search counted."""
    model, tokenizer = planted(), words(template=True)
    for by, sites in (("last", [0, 1]), ("mean", sf.resid_pre[0])):
        with quietly():
            found = sf.discover.find_condition(model, tokenizer, WITH_X, PLAIN, sites, by=by, **QUIET)
        assert found.vector.metadata["chat"] is None
        (chosen, positive), (_, negative) = split(WITH_X, PLAIN)
        push = sf.SteeringVector({sf.resid_post[1]: 20 * torch.randn(32, generator=torch.Generator().manual_seed(2))})
        op = sf.when(found.on_prompt, sf.add(push))
        options = {"max_new_tokens": 3, "batch_size": 64}
        prompts = [*positive, *negative]
        plain = sf.generate(model, tokenizer, prompts, **options).token_ids
        steered = sf.generate(model, tokenizer, prompts, op, **options).token_ids
        changed = [a != b for a, b in zip(plain, steered, strict=True)]
        assert sum(changed[: len(positive)]) == found.held_out.tp
        assert sum(changed[len(positive) :]) == found.held_out.fp
        assert found.held_out.tp and found.held_out.tn


def test_end_to_end_matching_prompts_change_and_the_others_keep_every_token():
    model, tokenizer = planted(), words()
    found = sf.discover.find_condition(model, tokenizer, WITH_X, PLAIN, sf.resid_pre[0], by="mean", **QUIET)
    push = sf.SteeringVector({sf.resid_post[1]: 20 * torch.randn(32, generator=torch.Generator().manual_seed(2))})
    op = sf.at(sf.generated, sf.when(found.on_prompt, sf.add(push)))
    prompts = ["g h x", "g h", "x b a c", "a b c d e f"]
    options = {"max_new_tokens": 8, "chat": False}
    plain = sf.generate(model, tokenizer, prompts, **options)
    always = sf.generate(model, tokenizer, prompts, sf.at(sf.generated, sf.add(push)), **options)
    steered = sf.generate(model, tokenizer, prompts, op, **options)
    for i, matches in enumerate([True, False, True, False]):
        assert steered.token_ids[i] == (always if matches else plain).token_ids[i]
        assert always.token_ids[i] != plain.token_ids[i]
    uncached = sf.generate(model, tokenizer, prompts, op, use_cache=False, **options)
    assert uncached.token_ids == steered.token_ids


def test_the_result_says_what_it_is(tmp_path):
    sites = [sf.resid_post[0], sf.resid_pre[0]]
    found = sf.discover.find_condition(planted(), words(), WITH_X, PLAIN, sites, by="mean", **QUIET)
    assert repr(found) == (
        f"FoundCondition(cosine above {found.threshold:.4g} at {found.site}, by 'mean'; F1 {found.f1:.3f}, held out "
        f"{found.held_out_f1:.3f}, always yes {found.held_out.always:.3f})"
    )
    lines = str(found).splitlines()
    assert lines[0] == f"Condition: cosine above {found.threshold:.4f} at {found.site}, by 'mean'"
    assert lines[1].split() == ["site", "threshold", "F1"]
    assert [line.split()[0] for line in lines[2:4]] == ["resid_pre[0]", "resid_post[0]"]
    assert sum("<- chosen" in line for line in lines) == 1
    out = found.held_out
    assert lines[-1] == (
        f"F1 {out.f1:.3f} on {out.tp + out.fn} + {out.fp + out.tn} held-out texts (always yes: {out.always:.3f}): "
        f"precision {out.precision:.3f}, recall {out.recall:.3f}, {out.fn} missed, {out.fp} false alarms"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.threshold = 0.0
    sf.save(found.vector, tmp_path / "condition.safetensors")
    v = sf.load(tmp_path / "condition.safetensors")
    assert v.identical(found.vector) and v.metadata["threshold"] == found.threshold
    assert v.metadata["held_out"] == dataclasses.asdict(out) and v.metadata["method"] == "find_condition"


def test_hits():
    hits = Hits(tp=9, fp=1, fn=3, tn=11)
    assert (hits.precision, hits.recall) == (0.9, 0.75)
    assert hits.f1 == pytest.approx(2 * 0.9 * 0.75 / (0.9 + 0.75)) and hits.always == pytest.approx(2 * 12 / 36)
    nothing = Hits(0, 0, 3, 4)
    assert nothing.f1 == nothing.precision == nothing.recall == 0.0


def test_refusals():
    model, tokenizer = build("llama"), words()

    def refused(text, *arguments, error=sf.DataError, **options):
        with pytest.raises(error, match=f"^{re.escape(text)}"):
            sf.discover.find_condition(model, tokenizer, *(arguments or (WITH_X, PLAIN)), **{**QUIET, **options})

    refused("by must be 'last' or 'mean', as prompts are read for sf.on_prompt, not 'any'.", by="any")
    for bad in (0, 1, 1.5, True, "half"):
        refused(
            f"`held_out` must be a finite number > 0 and < 1, got {bad!r}.",
            held_out=bad,
        )
    refused("chat is True, False or None, not 'yes'.", chat="yes")
    refused("`seed` must be an integer, got 0.5.", seed=0.5)
    refused("positive is empty; pass at least one text.", [], PLAIN)
    text = (
        "negative has 1 texts to choose by and 1 to report on; two must choose and one must report, so pass at least "
        "three different ones, or another held_out."
    )
    refused(text, WITH_X, ["a b", "c d"])
    refused(text.replace("has 1", "has 3").replace("and 1", "and 0"), WITH_X, ["a b", "A b", "a  b"])
    wide = sf.SteeringVector({1: torch.ones(16)})
    refused("The direction at resid_post[1] has width 16, but the hidden state", error=sf.ShapeError, vector=wide)
    with pytest.raises(sf.SteerError, match="^find_condition takes a SteeringVector, not a Tensor; "):
        sf.discover.find_condition(model, tokenizer, WITH_X, PLAIN, vector=PLANT)
    with pytest.raises(sf.SiteError):
        sf.discover.find_condition(model, tokenizer, WITH_X, PLAIN, 9, **QUIET)
    with pytest.raises(sf.SiteError):
        sf.discover.find_condition(
            model, tokenizer, WITH_X, PLAIN, 1, vector=sf.SteeringVector({0: torch.ones(32)}), **QUIET
        )
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = torch.inf
    refused("The activations at resid_post[0] are not all finite numbers; load the model in bfloat16 or float32")


def shown(template=False, **options):
    with quietly():
        found = sf.discover.find_condition(
            build("llama"), words(template=template), RANDOM[::2], RANDOM[1::2], **{**QUIET, **options}
        )
    return str(found), found.vector.directions[0].sum().item()


def passes(**options):
    model, seen = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    with quietly():
        sf.discover.find_condition(model, words(), RANDOM[::2], RANDOM[1::2], **{**QUIET, **options})
    return len(seen)


OPTIONS = {
    "sites": (shown, lambda: shown(sites=[0])),
    "vector": (shown, lambda: shown(vector=sf.SteeringVector({1: PLANT}))),
    "by": (shown, lambda: shown(by="mean")),
    "held_out": (shown, lambda: shown(held_out=0.5)),
    "groups": (shown, lambda: shown(groups=[i % 5 for i in range(len(RANDOM))])),
    "chat": (lambda: shown(template=True), lambda: shown(template=True, chat=False)),
    "batch_size": (passes, lambda: passes(batch_size=1)),
    "seed": (shown, lambda: shown(seed=1)),
}


def test_a_group_never_both_chooses_and_reports(monkeypatch):
    from steerfn.discover import _find_condition

    splits, split_of = [], _find_condition._split
    monkeypatch.setattr(_find_condition, "_split", lambda *given: splits.append(split_of(*given)) or splits[-1])
    groups = [i // 5 for i in range(len(WITH_X))] + [i // 8 for i in range(len(PLAIN))]  # paraphrases on both sides
    given = sf.datasets.ContrastSet("x", WITH_X, PLAIN)
    with quietly():
        sf.discover.find_condition(planted(), words(), given, sites=[1], groups=groups, **QUIET)
    [out] = splits
    assert all(len({bool(o) for o, g in zip(out, groups, strict=True) if g == group}) == 1 for group in set(groups))
    assert 0.2 < float(out.float().mean()) < 0.6
    with pytest.raises(sf.DataError, match="groups has 3 labels"):
        sf.discover.find_condition(planted(), words(), given, sites=[1], groups=[0, 1, 2], **QUIET)
    with pytest.raises(sf.DataError, match="texts to choose by"):
        sf.discover.find_condition(planted(), words(), given, sites=[1], groups=[0] * 25 + [1] * len(PLAIN), **QUIET)


@pytest.mark.parametrize("option", OPTIONS)
def test_pitfall_26_an_option_changes_the_result(option):
    assert_changes(*OPTIONS[option])


def test_pitfall_26_no_option_is_left_out(capsys):
    assert optional(sf.discover.find_condition) - set(OPTIONS) <= {"progress"}
    shown(progress=True)
    assert "Reading activations" in capsys.readouterr().err
    shown()
    assert not capsys.readouterr().err


# On the real model.


def harmful_and_harmless(count):
    harmful = json.loads((DATA / "refusal" / "harmful_train.json").read_text(encoding="utf8"))
    plain = (DATA / "instructions" / "self_instruct_seed_tasks.jsonl").read_text(encoding="utf8").splitlines()
    return [each["instruction"] for each in harmful[:count]], [
        json.loads(each)["instruction"] for each in plain[:count]
    ]


def openers(count):
    found = json.loads((DATA / "refusal" / "cast_behavior_refusal.json").read_text(encoding="utf8"))
    return found["non_compliant_responses"][:count], found["compliant_responses"][:count]


@pytest.mark.heavy
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout")
@pytest.mark.parametrize(("texts", "chat"), [(harmful_and_harmless, None), (openers, False)])
def test_real_prompts(demo, texts, chat):
    """CAST's own condition: harmful requests, or openers that refuse, against the others."""
    model, tokenizer = demo
    found = sf.discover.find_condition(model, tokenizer, *texts(48), sites=[4, 8, 12, 16], chat=chat, **QUIET)
    assert found.held_out_f1 > 0.85 > found.held_out.always
    order = np.random.default_rng(0).permutation(96)
    mixed = [t for side in texts(48) for t in side]
    mixed = [mixed[i] for i in order]
    with quietly():
        shuffled = sf.discover.find_condition(model, tokenizer, mixed[:48], mixed[48:], sites=[8], chat=chat, **QUIET)
    assert shuffled.held_out_f1 < found.held_out_f1 - 0.1
