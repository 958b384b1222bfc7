"""Pitfall 26: every option of every protocol has a call in which it changes the outcome; and `benchmark`."""

import re

import numpy as np
import pytest
from asking import HARMFUL, HARMLESS, QUESTIONS, TRUTH, late, lettered, planted
from families import build
from options import assert_changes, optional
from steering import vector
from words import words

import steerfn as sf
from steerfn.evaluate._benchmark import PROTOCOLS
from steerfn.evaluate.protocols._run import Grouped, Options, Steering

P = sf.protocols
V = vector(sf.resid_post[1], scale=2.0)
W = vector(sf.resid_post[1], seed=1)
SIDES = {"harmful": HARMFUL, "harmless": HARMLESS}
TEXTS = ["a b c d e", "f g", "h i j k l m n o", "c a d"]
YES = {"generation": {"do_sample": True}}


def grades(texts, prompts):
    return [[1 + x, 2 - x, 1] for x in late(texts)]


def others(texts, prompts):
    return [[1 + x, 1, 2] for x in late(texts)]


# protocol: model, tokenizer, data and the options of the call that others are compared with
BASE = {
    P.caa: (lambda: build("llama"), lettered, QUESTIONS, {}),
    P.steerability: (lambda: build("llama"), lettered, QUESTIONS, {}),
    P.truthfulqa: (lambda: build("llama"), lettered, TRUTH, {}),
    P.refusal: (lambda: build("llama"), words, SIDES, {"refusal_phrases": ["z a"], "max_new_tokens": 3}),
    P.cast: (planted, words, SIDES, {"max_new_tokens": 3, "alpha": 3.0}),
    P.toxicity: (lambda: build("llama"), words, TEXTS, {"metric": late, "samples": 2, "max_new_tokens": 4}),
    P.side_effects: (lambda: build("llama"), lettered, TEXTS, {"prompts": ["a b", "c"], "max_new_tokens": 4}),
    P.axbench: (
        lambda: build("llama"),
        words,
        TEXTS,
        {"concept": "late", "judge": grades, "alphas": [1, 3], "max_new_tokens": 4},
    ),
}
COMMON = {
    "controls": {"controls": 2},
    "limit": {"limit": 2},
    "seed": {"seed": 1},
    "chat": {"chat": True},
    "level": {"level": 0.8},
}
STEERED = {"scope": {"scope": sf.positions(0)}, "operator": {"operator": lambda v, a: sf.rotate(v, 0.3 * a)}}
OWN = {
    P.caa: {"alpha": {"alpha": 2.0}, "both_orders": {"both_orders": False}},
    P.steerability: {"alphas": {"alphas": [0, 1]}, "both_orders": {"both_orders": False}},
    P.truthfulqa: {"alpha": {"alpha": 2.0}, "primer": {"primer": "a b c "}},
    P.refusal: {
        "alpha": {"alpha": 2.0},
        "sites": {"sites": 1},
        "refusal_phrases": {"refusal_phrases": ["y"]},
        "max_new_tokens": {"max_new_tokens": 5},
        "generation": YES,
    },
    P.cast: {
        "alpha": {"alpha": 1.0},
        "sites": {"sites": [1]},
        "by": {"by": "mean"},
        "held_out": {"held_out": 0.3},
        "max_new_tokens": {"max_new_tokens": 5},
        "generation": YES,
    },
    P.toxicity: {
        "alpha": {"alpha": 3.0},
        "samples": {"samples": 3},
        "threshold": {"threshold": 0.0},
        "metric": {"metric": lambda texts: [len(text) for text in texts]},
        "max_new_tokens": {"max_new_tokens": 6},
        "generation": {"generation": {"temperature": 0.2}},
    },
    P.side_effects: {
        "alpha": {"alpha": 3.0},
        "questions": {"questions": QUESTIONS},
        "prompts": {"prompts": ["d e f"]},
        "max_tokens": {"max_tokens": 3},
        "both_orders": {"both_orders": False},
        "max_new_tokens": {"max_new_tokens": 6},
        "generation": YES,
    },
    P.axbench: {
        "judge": {"judge": others},
        "alphas": {"alphas": [0.2]},
        "max_new_tokens": {"max_new_tokens": 6},
        "generation": {"generation": {"do_sample": False}},
        "activating": {"activating": ["a b c d", "e f g"]},
    },
}
LIMIT = {P.cast: {"limit": {"limit": 5}}}  # two of a side must choose
NAMED = [(protocol, name) for protocol in BASE for name in [*OWN[protocol], *COMMON, *STEERED]]
NAMED = [(p, name) for p, name in NAMED if not (p is P.refusal and name in STEERED)]
GROUPED = (P.caa, P.steerability, P.truthfulqa, P.toxicity, P.axbench)


def run(protocol, model=None, **options):
    make, tokenizer, data, given = BASE[protocol]
    chat = {"template": True} if options.get("chat") else {}
    options = {"chat": False, "progress": False, **given, **options}
    return protocol(model or make(), tokenizer(**chat), V, data, **options)


def told(found):
    """What was found, without the record of what was asked."""
    return str(found.records) + str(found.figures) + str(found.controls) + str(found.effects)


@pytest.mark.filterwarnings("ignore:The condition does not tell:steerfn.SteerWarning")
@pytest.mark.parametrize(("protocol", "option"), NAMED, ids=lambda x: getattr(x, "__name__", x))
def test_pitfall_26_an_option_changes_the_outcome(protocol, option):
    base = {"questions": QUESTIONS} if (protocol, option) == (P.side_effects, "both_orders") else {}
    change = (COMMON | STEERED | OWN[protocol] | LIMIT.get(protocol, {}))[option]
    assert_changes(lambda: told(run(protocol, **base)), lambda: told(run(protocol, **base, **change)))


@pytest.mark.parametrize("protocol", BASE, ids=lambda p: p.__name__)
def test_pitfall_26_no_option_is_left_out(protocol):
    assert optional(protocol) == set(OWN[protocol])
    known = Options if protocol is P.refusal else Grouped if protocol in GROUPED else Steering
    assert set(known.__annotations__) == {
        *COMMON,
        *(() if protocol is P.refusal else STEERED),
        *(["groups"] if protocol in GROUPED else []),
        "batch_size",
        "progress",
    }
    assert set(BASE) == set(PROTOCOLS.values())


@pytest.mark.filterwarnings("ignore:The condition does not tell:steerfn.SteerWarning")
@pytest.mark.parametrize("protocol", BASE, ids=lambda p: p.__name__)
def test_pitfall_26_batch_size_changes_how_many_run_at_once(protocol):
    def passes(**options):
        model, seen = BASE[protocol][0](), []
        run(protocol, model)  # asks once what the model can
        model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
        return len(seen), told(run(protocol, model, **options)), len(seen)

    assert passes()[2] < passes(batch_size=1)[2]


def test_progress_shows_bars(capsys):
    run(P.caa, progress=True)
    assert "Scoring" in capsys.readouterr().err
    run(P.caa)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is a number of items from 1, or None for all, not 0"),
        ({"controls": -1}, "controls is a number of random vectors, or a mapping of names to vectors, not -1"),
        ({"controls": {"steered": V}}, "A control cannot be named 'steered', which is a condition"),
        ({"chat": "yes"}, "chat is True, False or None, not 'yes'"),
        ({"level": 95}, "level is a number between 0 and 1, such as 0.95, not 95"),
        ({"seed": -1}, "seed is an int from 0, not -1"),
        ({"batch_size": 0}, "batch_size is 'auto' or a number of rows from 1, not 0"),
        ({"alpha": float("nan")}, "alphas is a list of finite numbers, at least one, not"),
        ({"controls": {"mine": 3}}, r"controls\['mine'\] takes a SteeringVector, not a int"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(sf.SteerError, match=message):
        run(P.caa, **options)


def test_options_that_a_protocol_does_not_have():
    with pytest.raises(
        sf.DataError, match=r"caa has no option 'limt' \(did you mean 'limit'\?\); beside its own it has batch"
    ):
        run(P.caa, limt=3)
    with pytest.raises(sf.DataError, match="refusal has no option 'scope'"):
        run(P.refusal, scope=sf.everywhere)


def test_controls_are_random_vectors_of_the_same_norm_or_ones_own():
    several = run(P.caa, controls=2, seed=5)
    assert list(several.controls) == ["random"] and several.draws == 2 and not run(P.caa, controls=0).controls
    means = []
    for i in range(2):
        alone = run(P.caa, controls={"mine": sf.random_vector(like=V, seed=5 + i)}, seed=5)
        means.append(alone.controls["mine"]["p_match"].mean)
    assert several.controls["random"]["p_match"].mean == pytest.approx(np.mean(means), abs=1e-6)
    mine = run(P.caa, controls={"other": V})
    assert mine.controls["other"] == mine.figures and mine.effects["other"]["p_match"].p == 1


def test_a_limit_draws_items_by_the_seed_and_keeps_their_order():
    def taken(**options):
        found = run(P.caa, controls=0, **options)
        return [record["question"] for record in found.records if record["condition"] == "steered"]

    questions = [item["question"] for item in QUESTIONS]
    drawn = {tuple(taken(limit=3, seed=seed)) for seed in range(6)}
    assert len(drawn) > 1
    for some in drawn:
        assert [q for q in questions if q in some] == list(some) and len(some) == 3
    assert taken(limit=99) == taken() == questions


@pytest.mark.parametrize("protocol", GROUPED, ids=lambda p: p.__name__)
def test_groups_are_the_units(protocol):
    data = BASE[protocol][2]
    if protocol is P.axbench:  # half of the groups choose
        found = run(protocol, groups=["a", "a", "b", "b"])
        assert found.figures["score"].n == 1 and len({r["prompt"] for r in found.records}) == 2
        return
    groups = [min(i, len(data) - 2) for i in range(len(data))]  # the last two belong together
    found, plain = run(protocol, groups=groups), run(protocol)
    name, effect = next(iter(found.effects["unsteered"].items()))
    assert effect.n == len(data) - 1 == plain.effects["unsteered"][name].n - 1
    records = [r for r in found.records if r["condition"] == "steered"]
    mine = np.array([r[name] for r in records])
    assert found.figures[name].mean == pytest.approx(np.mean([*mine[:-2], mine[-2:].mean()]))
    with pytest.raises(sf.DataError, match="groups has 1 labels for"):
        run(protocol, groups=["x"])


def test_copies_of_an_item_are_one_observation():
    found = sf.protocols.caa(build("llama"), lettered(), V, QUESTIONS * 3, chat=False, progress=False)
    assert found.figures == run(P.caa).figures and found.figures["p_match"].n == len(QUESTIONS)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.filterwarnings("ignore:The condition does not tell:steerfn.SteerWarning")
def test_benchmark_runs_a_protocol_by_its_name(name):
    make, tokenizer, data, given = BASE[PROTOCOLS[name]]
    found = sf.benchmark(name, make(), tokenizer(), V, data=data, chat=False, progress=False, **given)
    assert found.protocol == name and told(found) == told(run(PROTOCOLS[name]))
    assert str(found).startswith(f"{name} ({found.source})") and re.search(r"\d{4}", found.source)
    assert found.to_json() and found.to_markdown() and found._repr_html_()


def test_a_protocol_that_is_unknown():
    with pytest.raises(
        sf.DataError, match=r"There is no protocol 'Steerabilty'; did you mean 'steerability'\? there are a"
    ):
        sf.benchmark("Steerabilty", None, None, V, [])
    with pytest.raises(sf.SteerError, match="caa takes a SteeringVector, not a str"):
        sf.benchmark("caa", build("llama"), lettered(), "v", QUESTIONS, progress=False)
