"""A sweep gives what a loop over its configurations gives, as a table."""

import itertools
import json
from itertools import product

import numpy as np
import pytest
import torch
from words import words

import steerfn as sf
from steerfn.evaluate import _sweep
from steerfn.evaluate._configs import Config
from steerfn.run._checkpoint import Partial

pytestmark = pytest.mark.steady

PROMPTS = ["a b c", "d e f g a", "b", "c c d", "e a b f"]
CHOICES = [[" a", " b"], [" c d", " c e f", " g"], [" a", " d"], [" b c", " e"], [" f", " g"]]
ALPHAS = [-2.0, 0.0, 3.0]


def vectors(model, layers=(0, 1, 2)):
    torch.manual_seed(5)
    width = sf.layout(model).d_model
    return sf.SteeringVector({sf.resid_post[i]: torch.randn(width) for i in layers})


def swept(model, v, **options):
    return sf.sweep(model, words(), PROMPTS, v, ALPHAS, progress=False, chat=False, **options)


@pytest.mark.parametrize("batch_size", ["auto", 1, 4])
@pytest.mark.parametrize("scope", [None, sf.generated])
def test_generations_are_those_of_a_loop(tiny, scope, batch_size):
    v = vectors(tiny)
    table = swept(tiny, v, sites=[0, 2], scope=scope, max_new_tokens=5, batch_size=batch_size)
    assert [(c.sites, c.alpha) for c in table.configs] == [
        ((f"resid_post[{site}]",), alpha) for site, alpha in product((0, 2), ALPHAS)
    ]
    for config, texts in zip(table.configs, table.texts, strict=True):
        op = sf.add(v.select(int(config.sites[0][-2])), config.alpha)
        op = op if scope is None else sf.at(scope, op)
        expected = sf.generate(tiny, words(), PROMPTS, op, max_new_tokens=5, chat=False, batch_size=1).texts
        assert texts == expected, config


def test_scores_are_those_of_a_loop_and_their_numbers_are_the_formulas(tiny):
    v, targets = vectors(tiny), [1, 2, 0, 1, 0]
    table = swept(tiny, {"one": v, "two": -v}, sites=[1], continuations=CHOICES, correct=targets)
    for c, config in enumerate(table.configs):
        op = sf.add((v if config.vector == "one" else -v).select(1), config.alpha)
        scores = sf.score(tiny, words(), PROMPTS, CHOICES, op, chat=False, progress=False)
        for p, target in enumerate(targets):
            row = np.array(scores.log_probs[p])
            np.testing.assert_allclose(table.log_probs[p][c], row, atol=1e-4)
            others = np.log(np.exp(np.delete(row, target)).sum())
            assert table.values["propensity"][c, p] == pytest.approx(row[target] - others, abs=1e-3)
            assert table.values["share"][c, p] == pytest.approx(np.exp(row[target]) / np.exp(row).sum(), abs=1e-4)
            assert table.values["accuracy"][c, p] == (row.argmax() == target)
            assert table.values["log_prob"][c, p] == pytest.approx(row[target], abs=1e-4)
            assert table.values["mass"][c, p] == pytest.approx(np.exp(row).sum(), rel=1e-3)


def test_one_continuation_has_a_log_probability_only(tiny):
    assert swept(tiny, vectors(tiny), continuations=[" a b"]).metrics == ("log_prob",)


def test_the_unsteered_model_is_run_once(tiny):
    table = swept(tiny, vectors(tiny), sites=[0, 1, 2], continuations=[" a", " b"])
    plain = [c for c, config in enumerate(table.configs) if config.alpha == 0]
    assert len(plain) == 3
    for rows in table.log_probs:
        assert np.array_equal(rows[plain[0]], rows[plain[1]]) and np.array_equal(rows[plain[0]], rows[plain[2]])


def test_metrics_are_tried_on_one_text_and_then_asked_once_for_all(tiny):
    asked = []

    def letters(texts):
        asked.append(len(texts))
        return [len(text) for text in texts]

    table = swept(tiny, vectors(tiny), metrics=[letters], max_new_tokens=3)
    assert asked == [1, len(ALPHAS) * len(PROMPTS)] and table.metrics == ("letters",)
    assert table.values["letters"].tolist() == [[len(text) for text in row] for row in table.texts]


def test_a_metric_that_fails_does_so_before_anything_is_generated(tiny):
    tiny.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(sf.DataError, match="The metric 'bad' must return one number for each text: could not convert"):
        swept(tiny, vectors(tiny), metrics={"bad": lambda texts: ["good"] * len(texts)})


def test_best_is_chosen_on_some_prompts_and_reported_on_the_others(tiny):
    table = swept(tiny, vectors(tiny), sites=[0, 1, 2], continuations=[" a", " b"])
    best = table.best("share", held_out=0.4, seed=3)
    values = table.values["share"]
    chosen, reported = best.n
    assert chosen + reported == len(PROMPTS) and reported == 2
    # Whichever prompts were held out, the mean of the winner over the rest is the highest of all.
    from itertools import combinations

    splits = [set(held) for held in combinations(range(len(PROMPTS)), 2)]
    top = table.configs.index(best.config)
    fits = [
        held
        for held in splits
        if np.isclose(values[top, sorted(set(range(5)) - held)].mean(), best.chosen)
        and np.isclose(values[top, sorted(held)].mean(), best.reported)
    ]
    assert fits
    assert any(values[:, sorted(set(range(5)) - held)].mean(1).max() == pytest.approx(best.chosen) for held in fits)
    assert best.baseline == pytest.approx(values[1, sorted(fits[0])].mean())
    everything = table.best("share", held_out=0)
    assert everything.reported is None and everything.chosen == pytest.approx(values.mean(1).max())
    assert table.best("share", lowest=True, held_out=0).chosen == pytest.approx(values.mean(1).min())


def test_a_group_of_prompts_chooses_or_reports_and_is_one_unit():
    configs = [Config("v", ("resid_post[1]",), a) for a in (1.0, 2.0)]
    groups = [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    values = np.random.default_rng(0).normal(size=(2, 10))
    found = sf.evaluate.Sweep(configs, [f"p {i}" for i in range(10)], {"m": values}).best(held_out=0.5, groups=groups)
    mine = values[configs.index(found.config)]
    for some in itertools.combinations(range(4), 2):
        means = [mine[np.array(groups) == group].mean() for group in some]
        if found.n[1] == sum(g in some for g in groups) and np.isclose(found.reported, np.mean(means)):
            assert found.error == pytest.approx(np.std(means, ddof=1) / 2**0.5)
            return
    pytest.fail("no two groups report that mean")


def test_the_same_prompts_never_choose_and_report(tiny):
    table = sf.sweep(
        tiny, words(), ["a b", "A  B", "c"], vectors(tiny), ALPHAS, continuations=[" a"], chat=False, progress=False
    )
    assert table.best(held_out=0.4).n in {(2, 1), (1, 2)}


def test_as_pandas(tiny):
    pytest.importorskip("pandas")
    table = swept(tiny, vectors(tiny), sites=[0, 1], max_new_tokens=2)
    frame = table.to_pandas()
    assert len(frame) == len(table) * len(PROMPTS)
    assert frame.groupby(["sites", "alpha"])["length"].mean().to_dict() == {
        (config.sites[0], config.alpha): value for config, value in table.mean().items()
    }


def test_as_json_and_text(tiny, tmp_path):
    table = swept(tiny, vectors(tiny), sites=[0, 1], max_new_tokens=2)
    document = json.loads(table.to_json(tmp_path / "table.json"))
    assert json.loads((tmp_path / "table.json").read_text()) == document
    assert document["about"]["model"] == sf.values.fingerprint(tiny)
    assert [row["text"] for row in document["records"][:5]] == list(table.texts[0])
    with pytest.raises(sf.FileError, match="cannot be written to .*nowhere.*: there is no folder"):
        table.to_json(tmp_path / "nowhere" / "table.json")
    printed = str(table).splitlines()
    assert printed[0] == "6 configurations x 5 prompts"
    assert printed[2].split() == ["length", "-2", "0", "+3"]
    assert printed[3].split()[:2] == ["v", "resid_post[0]"]
    assert [float(cell) for cell in printed[3].split()[2:]] == pytest.approx(list(table.mean().values())[:3], rel=1e-3)


@pytest.mark.parametrize("options", [{"continuations": CHOICES}, {"max_new_tokens": 3, "batch_size": 2}])
def test_an_interrupted_sweep_goes_on(tiny, tmp_path, monkeypatch, options):
    from steerfn.run._scorer import Scorer

    path, v = tmp_path / "sweep.json", vectors(tiny)
    whole = swept(tiny, v, **options)
    passes = []
    original = type(tiny).forward
    monkeypatch.setattr(Scorer, "batches", lambda self: [[i] for i in range(len(self.items))])

    def counting(self, *args, **kwargs):
        passes.append(1)
        if len(passes) == stop:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny), "forward", counting)
    stop = 0
    swept(tiny, v, **options)  # another forward: what the model can do is asked anew, once
    passes.clear()
    swept(tiny, v, **options)
    total, passes[:] = len(passes), []
    stop = total - 1
    with pytest.raises(KeyboardInterrupt):
        swept(tiny, v, checkpoint=path, **options)
    assert path.exists()
    with pytest.raises(sf.FileError, match="belongs to another sweep"):
        swept(tiny, -v, checkpoint=path, **options)
    passes[:], stop = [], 0
    again = swept(tiny, v, checkpoint=path, **options)
    assert 0 < len(passes) < total / 2
    assert not path.exists()
    assert again.texts == whole.texts
    for name, values in whole.values.items():
        np.testing.assert_allclose(again.values[name], values, atol=1e-4)


def test_a_damaged_checkpoint_is_one_sentence(tiny, tmp_path):
    path = tmp_path / "sweep.json"
    cases = {"{": "Cannot continue from the checkpoint", '{"format": "other"}': "is not the checkpoint of a sweep"}
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(sf.FileError, match=message):
            swept(tiny, vectors(tiny), continuations=[" a"], checkpoint=path)
        assert path.read_text() == text


def test_a_checkpoint_with_the_right_checksum_and_other_numbers_is_refused(tiny, tmp_path, monkeypatch):
    v, path, identities = vectors(tiny), tmp_path / "sweep.json", []

    def opened(path, identity, fits):
        identities.append(identity)
        return Partial(path, identity, fits)

    monkeypatch.setattr(_sweep, "Partial", opened)
    table = swept(tiny, v, continuations=[" a", " b"])
    shape = np.array(table.log_probs[0]).shape
    for found in ({"0": [["x"]]}, {"0": [[0.5], [0.5, 0.5]]}, {"0": 0.5}, {"zero": np.zeros(shape).tolist()}):
        partial = Partial(path, identities[0], lambda key, value: True)
        partial.add(found)
        partial.write()
        with pytest.raises(sf.FileError, match="which no sweep writes there; delete it to begin anew"):
            swept(tiny, v, continuations=[" a", " b"], checkpoint=path)
        path.unlink()


def test_samples_of_a_prompt_differ_by_their_steering_alone(tiny):
    v = vectors(tiny)
    options = {"seed": 7, "do_sample": True, "max_new_tokens": 4}
    table = swept(tiny, {"v": v, "same": v}, **options)
    assert table.texts[:3] == table.texts[3:]
    assert table.texts[0] != table.texts[1]
    assert swept(tiny, v, **options | {"seed": 8}).texts != table.texts[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector": []}, "A sweep takes a SteeringVector, a list of them, or a mapping of names to them, not []"),
        ({"vector": {"x": 3}}, "a mapping of names to them, not 3"),
        ({"alphas": []}, "alphas must be a list of finite numbers, at least one, not []."),
        ({"alphas": [1, float("nan")]}, "`alphas[1]` must be a finite number, got nan."),
        ({"alphas": ["2"]}, "`alphas[0]` must be a finite number, got '2'."),
        ({"alphas": [True]}, "`alphas[0]` must be a finite number, got True."),
        ({"alphas": "12"}, "alphas must be a list of numbers, not '12'."),
        ({"alphas": {1.0: 2.0}}, "alphas must be a list of numbers, not {1.0: 2.0}."),
        ({"alphas": [1, 1.0]}, "alphas contains a strength twice: [1.0, 1.0]"),
        ({"alphas": 3}, "alphas must be a list of numbers, not 3."),
        ({"sites": [17]}, "17"),
        ({"continuations": []}, "continuations is a list of texts for every prompt"),
        ({"continuations": [["a"], ["b"]]}, "There are 5 prompts but 2 lists of continuations"),
        (
            {"continuations": [" a", " b"], "correct": 2},
            "`correct[0]` must be an integer from 0 to 1, got 2; it is the index of one of the 2",
        ),
        ({"continuations": [" a", " b"], "correct": [0]}, "There are 5 prompts but 1 indices"),
        ({"continuations": [" a"], "metrics": [len]}, "Metrics measure generated texts"),
        ({"metrics": "blue"}, "There is no metric 'blue'; did you mean 'bleu'?"),
        ({"metrics": 3}, "metrics must be a list of names or functions, not 3."),
        ({"seed": "x"}, "`seed` must be an integer, got 'x'."),
        (
            {"checkpoint": "/nowhere/sweep.json"},
            "cannot be written to '/nowhere/sweep.json': there is no folder",
        ),
        ({"metrics": [3]}, "A metric must be a name, or a function of a list of texts"),
        ({"metrics": [lambda t: t, lambda t: t]}, "Two metrics are named '<lambda>'"),
        ({"metrics": {"bad": lambda texts: [1.0, 2.0]}}, "The metric 'bad' gave (2,) numbers for 1 texts"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device."),
        ({"make": lambda v: v}, "make must be a function of a vector and a strength"),
    ],
)
def test_errors_by_their_text(tiny, options, message):
    given = {"vector": vectors(tiny), "alphas": ALPHAS} | options
    with pytest.raises(sf.SteerError) as caught:
        sf.sweep(tiny, words(), PROMPTS, progress=False, chat=False, **given)
    assert message in str(caught.value)


def test_configs_read_well():
    assert str(Config("v", ("resid_post[3]",), -2.0)) == "v at resid_post[3], alpha -2"
    assert str(Config("v", ("a", "b"), 0.5)) == "v at 2 sites, alpha 0.5"
