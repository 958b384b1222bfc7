"""Pitfall 26: every option of every protocol has a call in which it changes the outcome; and `benchmark`."""

import copy
import functools
import re

import numpy as np
import pytest
from asking import HARMFUL, HARMLESS, QUESTIONS, TRUTH, late, lettered, planted
from families import build, shared
from options import assert_changes, optional
from steering import vector
from words import words

import steerfn as sf
from steerfn.evaluate._tally import bootstrap_statistic
from steerfn.evaluate.protocols._benchmark import PROTOCOLS
from steerfn.evaluate.protocols._run import ProtocolOptions, SteeringOptions

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


# Shared by all calls, as a protocol leaves a model as it was: what a model supports is asked once.
llama, planted_once = functools.partial(shared, "llama"), functools.cache(planted)

# protocol: model, tokenizer, data and the options of the call that others are compared with
BASE = {
    P.caa: (llama, lettered, QUESTIONS, {}),
    P.steerability: (llama, lettered, QUESTIONS, {}),
    P.truthfulqa: (llama, lettered, TRUTH, {}),
    P.refusal: (llama, words, SIDES, {"refusal_phrases": ["z a"], "max_new_tokens": 3}),
    P.cast: (planted_once, words, SIDES, {"max_new_tokens": 3, "alpha": 3.0}),
    P.toxicity: (llama, words, TEXTS, {"metric": late, "samples": 2, "max_new_tokens": 4}),
    P.side_effects: (llama, lettered, TEXTS, {"prompts": ["a b", "c"], "max_new_tokens": 4}),
    P.axbench: (
        llama,
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
STEERED = {"scope": {"scope": sf.positions(0)}, "make": {"make": lambda v, a: sf.rotate(v, 0.3 * a)}}
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


def run(protocol, model=None, **options):
    make, tokenizer, data, given = BASE[protocol]
    chat = {"template": True} if options.get("chat") else {}
    options = {"chat": False, "progress": False, "controls": 1, **given, **options}
    return protocol(model or make(), tokenizer(**chat), V, data, **options)


def told(found):
    """What was found, without the record of what was asked."""
    return str(found.records) + str(found.figures) + str(found.controls) + str(found.effects)


@functools.cache
def usual(protocol):
    """What a protocol finds without options."""
    return run(protocol)


@pytest.mark.filterwarnings("ignore:The condition does not separate:steerfn.SteerWarning")
@pytest.mark.parametrize(("protocol", "option"), NAMED, ids=lambda x: getattr(x, "__name__", x))
def test_pitfall_26_an_option_changes_the_outcome(protocol, option):
    base = {"questions": QUESTIONS} if (protocol, option) == (P.side_effects, "both_orders") else {}
    change = (COMMON | STEERED | OWN[protocol] | LIMIT.get(protocol, {}))[option]
    assert_changes(
        lambda: told(run(protocol, **base) if base else usual(protocol)), lambda: told(run(protocol, **base, **change))
    )


@pytest.mark.parametrize("protocol", BASE, ids=lambda p: p.__name__)
def test_pitfall_26_no_option_is_left_out(protocol):
    known = ProtocolOptions if protocol is P.refusal else SteeringOptions
    assert optional(protocol) - set(known.__annotations__) == set(OWN[protocol])
    assert set(known.__annotations__) == {
        *COMMON,
        *(() if protocol is P.refusal else STEERED),
        "groups",
        "batch_size",
        "progress",
    }
    assert set(BASE) == set(PROTOCOLS.values())


@pytest.mark.filterwarnings("ignore:The condition does not separate:steerfn.SteerWarning")
@pytest.mark.parametrize("protocol", BASE, ids=lambda p: p.__name__)
def test_pitfall_26_batch_size_changes_how_many_run_at_once(protocol):
    model, seen = copy.deepcopy(BASE[protocol][0]()), []
    run(protocol, model)  # asks once what the model can
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))

    def passes(**options):
        seen.clear()
        run(protocol, model, **options)
        return len(seen)

    assert passes() < passes(batch_size=1)


def test_progress_shows_bars(capsys):
    run(P.caa, progress=True)
    assert "Scoring" in capsys.readouterr().err
    run(P.caa)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "`limit` must be a positive integer, got 0; None takes all items"),
        (
            {"controls": -1},
            "`controls` must be a non-negative integer, got -1; a mapping of names to vectors is taken too",
        ),
        ({"controls": {"steered": V}}, "A control cannot be named 'steered', which is the name of a condition"),
        ({"chat": "yes"}, "chat is True, False or None, not 'yes'"),
        ({"level": 95}, "`level` must be a finite number > 0 and < 1, got 95; 0.95 is usual"),
        ({"seed": -1}, "`seed` must be a non-negative integer, got -1"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device"),
        ({"alpha": float("nan")}, "^`alpha` must be a finite number, got nan.$"),
        ({"controls": {"mine": 3}}, r"controls\['mine'\] takes a SteeringVector, not a int"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(sf.SteerError, match=message):
        run(P.caa, **options)


def test_options_that_a_protocol_does_not_have():
    with pytest.raises(sf.DataError, match="caa has no option 'limt'; did you mean 'limit'?"):
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


@pytest.mark.parametrize(
    "protocol", [P.caa, P.steerability, P.truthfulqa, P.toxicity, P.axbench], ids=lambda p: p.__name__
)
def test_groups_are_the_units(protocol):
    data = BASE[protocol][2]
    if protocol is P.axbench:  # half of the groups choose
        found = run(protocol, groups=["a", "a", "b", "b"])
        assert found.figures["score"].n == 1 and len({r["prompt"] for r in found.records}) == 2
        return
    groups = [min(i, len(data) - 2) for i in range(len(data))]  # the last two belong together
    found, plain = run(protocol, groups=groups), usual(protocol)
    name, effect = next(iter(found.effects["unsteered"].items()))
    assert effect.n == len(data) - 1 == plain.effects["unsteered"][name].n - 1
    records = [r for r in found.records if r["condition"] == "steered"]
    mine = np.array([r[name] for r in records])
    assert found.figures[name].mean == pytest.approx(np.mean([*mine[:-2], mine[-2:].mean()]))
    with pytest.raises(sf.DataError, match="groups has 1 labels for"):
        run(protocol, groups=["x"])


def last_two(items):
    """Labels by which the last two items belong together."""
    return [min(i, len(items) - 2) for i in range(len(items))]


def by_hand(numbers):
    return np.nanmean([*numbers[:-2], np.nanmean(numbers[-2:])])


def column(found, name, **where):
    return [r[name] for r in found.records if all(r[key] == value for key, value in where.items())]


def test_groups_of_either_side_are_the_units_of_refusal():
    labels = {side: last_two(texts) for side, texts in SIDES.items()}
    found = run(P.refusal, groups=labels)
    in_a_row = [f"{side} {label}" for side, own in labels.items() for label in own]
    assert found.effects == run(P.refusal, groups=in_a_row).effects != usual(P.refusal).effects
    for way, side in (("ablated", "harmful"), ("added", "harmless")):
        effect = found.effects["unsteered"][f"{way}_{side}_log_odds"]
        steered = column(found, "log_odds", condition="steered", way=way, side=side)
        plain = column(found, "log_odds", condition="unsteered", side=side)
        assert effect.n == len(SIDES[side]) - 1
        assert effect.estimate.mean == pytest.approx(by_hand(np.subtract(steered, plain)))
    assert found.figures["ablated_harmless_kl"].n == len(HARMLESS) - 1
    with pytest.raises(sf.DataError, match="groups has 1 labels for .* harmful, then"):
        run(P.refusal, groups=["x"])


def test_groups_of_every_kind_are_the_units_of_side_effects():
    kinds = {"data": TEXTS, "questions": QUESTIONS, "prompts": ["a b", "c d", "d e", "f"]}
    options = {"questions": QUESTIONS, "prompts": kinds["prompts"]}
    found = run(P.side_effects, groups={kind: last_two(items) for kind, items in kinds.items()}, **options)
    known = ("data", "kl", "text"), ("questions", "p_correct", "question"), ("prompts", "distinct_n", "generation")
    for kind, name, record in known:
        numbers = column(found, name, kind=record, condition="steered")
        assert found.figures[name].n == len(kinds[kind]) - 1
        assert found.figures[name].mean == pytest.approx(by_hand(numbers))
    entropy = by_hand(column(found, "cross_entropy", kind="text", condition="steered"))
    assert found.figures["perplexity"].mean == pytest.approx(np.exp(entropy))
    assert found.figures["perplexity_ratio"].n == found.effects["random"]["kl"].n == len(TEXTS) - 1
    some = run(P.side_effects, groups={"questions": last_two(QUESTIONS)}, **options)
    assert some.figures["kl"].n == len(TEXTS) and some.figures["accuracy"].n == len(QUESTIONS) - 1


@pytest.mark.filterwarnings("ignore:The condition does not separate:steerfn.SteerWarning")
def test_a_group_of_cast_chooses_or_reports_and_is_one_unit():
    labels = {side: [i // 2 for i in range(len(texts))] for side, texts in SIDES.items()}
    found = run(P.cast, groups=labels)
    reported = {side: set(column(found, "prompt", condition="steered", side=side)) for side in SIDES}
    holds = {
        side: [column(found, name, condition="steered", side=side) for name in ("prompt", "holds")] for side in SIDES
    }
    units, wholes = {}, {}
    for side, texts in SIDES.items():
        whole = [
            {text for text, label in zip(texts, labels[side], strict=True) if label == own} for own in set(labels[side])
        ]
        assert all(group <= reported[side] or not group & reported[side] for group in whole)
        wholes[side] = [group for group in whole if group <= reported[side]]
        units[side] = len(wholes[side])
        assert found.figures[f"{side}_refused"].n == units[side] < len(reported[side])
    assert found.figures["f1"].n == sum(units.values())
    share = {
        side: np.mean([[h for t, h in zip(texts, held, strict=True) if t in group] for group in wholes[side]], axis=1)
        for side, (texts, held) in holds.items()
    }
    hits, alarms, harmful = share["harmful"].sum(), share["harmless"].sum(), units["harmful"]
    assert found.figures["f1"].mean == pytest.approx(2 * hits / (hits + alarms + harmful))


def test_items_of_a_unit_are_drawn_together():
    values = np.random.default_rng(0).normal(size=12)
    copies, copied = np.repeat(values, 5), np.repeat(np.arange(12), 5)
    together, apart = (
        bootstrap_statistic(lambda x: np.std(x, axis=-1), copies, units, level=0.95, seed=0)
        for units in (copied, range(60))
    )
    wide, narrow = (each.high - each.low for each in (together, apart))
    assert together.n == 12 and wide > 1.8 * narrow
    by_item = bootstrap_statistic(lambda x: np.std(x, axis=-1), values, range(12), level=0.95, seed=0)
    assert (together.mean, together.low) == pytest.approx((by_item.mean, by_item.low), rel=0.05)


def test_copies_of_an_item_are_one_observation():
    found = sf.protocols.caa(llama(), lettered(), V, QUESTIONS * 3, chat=False, progress=False)
    assert found.figures == usual(P.caa).figures and found.figures["p_match"].n == len(QUESTIONS)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.filterwarnings("ignore:The condition does not separate:steerfn.SteerWarning")
def test_benchmark_runs_a_protocol_by_its_name(name):
    make, tokenizer, data, given = BASE[PROTOCOLS[name]]
    found = sf.protocols.benchmark(
        name, make(), tokenizer(), V, data=data, chat=False, progress=False, controls=1, **given
    )
    assert found.protocol == name and told(found) == told(usual(PROTOCOLS[name]))
    assert str(found).startswith(f"{name} ({found.source})") and re.search(r"\d{4}", found.source)
    assert found.to_json() and found.to_markdown() and found._repr_html_()


def test_a_protocol_that_is_unknown():
    with pytest.raises(
        sf.DataError, match=r"There is no protocol 'Steerabilty'; did you mean 'steerability'\? there are a"
    ):
        sf.protocols.benchmark("Steerabilty", None, lettered(), V, [])
    with pytest.raises(sf.SteerError, match="caa takes a SteeringVector, not a str"):
        sf.protocols.benchmark("caa", build("llama"), lettered(), "v", QUESTIONS, progress=False)
