"""One result of every kind, made by hand, with NaN, wide characters, and what HTML and Markdown would read."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from families import build

import steerfn as sf
from steerfn.discover import Chance, Finding, Hits
from steerfn.discover._engine import Candidate
from steerfn.discover._own_vector import OwnVector
from steerfn.evaluate import Comparison, Config, Sweep, VectorComparison, estimate, paired
from steerfn.evaluate._pairs import analyse, plan_pairs, random_like
from steerfn.evaluate._tally import outcome
from steerfn.metrics import Metric
from steerfn.reporting import Report
from steerfn.zoo import Zoo, ZooVector

PROMPTS = ("How was your day?", "今日はどうでしたか？ 😀", "Tell me\nmore.", "a | b <c>", "=1+1", "*q*")
RANDOM = np.random.default_rng(0)


def texts(word):
    return tuple(f"It was a {word} day,\nand <b>{prompt}</b> was {word} too." for prompt in PROMPTS)


def known(values):
    return estimate(values[np.isfinite(values)])


def comparison():
    before, after = RANDOM.normal(size=6), RANDOM.normal(size=6) + 2
    before[1] = math.nan
    values = {"sentiment": (before, after), "same": (None, np.array([0.0, 1, 0, 0, 1, 0]))}
    metrics = {"sentiment": Metric("sentiment", len, unit="-1 to 1", better="higher"), "same": Metric("same", len)}
    pairs = analyse({"sentiment": {"steering": after, "unsteered": before}}, [("steering", "unsteered", "unsteered")])
    means = {name: (None if first is None else known(first), known(then)) for name, (first, then) in values.items()}
    about = {"steering": "SteeringVector(resid_post[14], norm 8.1), alpha 2"}
    return Comparison(PROMPTS, (0,), texts("normal"), texts("wonderful"), values, means, pairs, metrics, about)


def vector_comparison():
    draws = random_like("happy")
    values = {
        name: {"unsteered": RANDOM.normal(size=6), "happy": RANDOM.normal(size=6), draws: RANDOM.normal(size=12)}
        for name in ("sentiment", "length")
    }
    by_draw = {n: {c: v.reshape(2, 6) if len(v) > 6 else v for c, v in of.items()} for n, of in values.items()}
    means = {name: {c: known(v.reshape(-1, 6).mean(0)) for c, v in of.items()} for name, of in values.items()}
    metrics = {name: Metric(name, len, unit="words") for name in values}
    said = {"unsteered": texts("normal"), "happy": texts("great"), draws: texts("odd") * 2}
    pairs = analyse(by_draw, plan_pairs(["happy"]))
    slots = np.array([[0] * 6, [1] * 6])
    return VectorComparison(PROMPTS, (0,), ("happy",), said, values, means, pairs, metrics, tuple(range(6)), slots)


def of_protocol():
    base = RANDOM.normal(size=30)
    values = {
        "steered": {"moved": base + 1, "still": base},
        "unsteered": {"moved": base, "still": base + RANDOM.normal(size=30)},
        "a|b <c>": {"moved": base + RANDOM.normal(size=30)},
    }
    records = [
        {"item": i, "x": float(base[i]) if i else math.nan, "ids": [i, 1], "text": "Hé, 日本\nx"} for i in range(3)
    ]
    return outcome(
        "trial", "Someone 2024", values, compared=("moved", "still"), records=records, notes=["Beware of <b>this</b>."],
        about={"seed": 0, "nan": math.nan}, level=0.95, seed=0,
    )  # fmt: skip


def swept():
    places = [(vector, f"resid_post[{layer}]") for vector in ("v", "日本語 <v>") for layer in (2, 10)]
    configs = tuple(Config(vector, (site,), alpha) for vector, site in places for alpha in np.linspace(-4, 4, 9))
    values = RANDOM.normal(size=(len(configs), 6))
    values[3, :4] = values[4, 0] = math.nan
    return Sweep(configs, PROMPTS, {"length": values}, tuple(texts("fine") for _ in configs))


def quality(auc=0.93):
    return sf.discover.Quality(auc, 2.1, 0.2, 0.35, (60, 60), 5, interval=(0.87, 0.96), pair_accuracy=0.98)


def chance():
    return Chance(median=0.58, high=0.66, p=0.005, sites=3, permutations=199)


def profile():
    qualities = {f"resid_post[{i}]": quality(auc).to_dict() for i, auc in enumerate((0.5, None, 0.93))}
    metadata = {"quality": qualities, "method": "mean_difference", "chance": chance().to_dict()}
    return sf.discover.Profile(sf.SteeringVector({sf.resid_post[i]: torch.ones(4) for i in range(3)}, metadata))


def sensitivity():
    sites = (sf.resid_post[9], sf.head_out[10, 3], sf.resid_post[10])
    values = torch.tensor([[1.5, 0.5], [-3.1, -2.9], [0.0, 0.25]], dtype=torch.float64)
    return sf.run.Sensitivity(values, torch.zeros(2, dtype=torch.float64), sites, "log p(target)", "prompt")


def condition():
    hits = Hits(9, 1, 3, 11)
    table = (
        Candidate(sf.resid_post[1], 1, 0.12, Hits(5, 5, 5, 5), 0.2),
        Candidate(sf.resid_post[3], -1, 0.42, hits, 0.8),
    )
    vector = sf.SteeringVector({sf.resid_post[3]: torch.ones(4)})
    return sf.discover.FoundCondition(vector, 0.42, "last", hits, Hits(4, 1, 1, 4), table)


def transferred():
    about = {"map": "ridge", "penalty": 0.1, "texts": {"count": 90, "tokens": 900}}
    vector = sf.SteeringVector({sf.resid_post[3]: torch.ones(4)}, about)
    fits = ((sf.resid_post[1], -0.25), (sf.resid_post[3], 0.62))
    own = OwnVector(vector, 0.71, 0.02, (-0.1, 0.2, 0.1), 0.93, None, (0.4, 0.5, 0.6))
    return sf.discover.Transferred(
        vector, sf.resid_post[2], fits, 0.58, 0.46, 0.63, 0.01, own, ("2 texts without a token in common left out.",)
    )


def lint():
    few = Finding("few", "2 positive and 2 negative texts are few; write at least 20 a side.")
    again = "1 text is there twice, first 'I am <glad>.' (positive[0]); decide where it belongs."
    return sf.discover.LintReport((few, Finding("duplicate", again, (0, 3))), "2 pairs")


def scores():
    log_probs = ((-1.25, -2.5), (-0.5, -3.0))
    return sf.run.Scores(PROMPTS[:2], ((" good", " <b>ad"), (" 良い", " 悪い")), log_probs, ((1, 1), (2, 2)))


def reported():
    verdict = {"headline": "happy raises <b>sentiment</b>", "reasons": ["2.5 more, p = 0.001.", "So do few others."]}
    effect = json.loads(vector_comparison().to_json())
    return Report(
        "<!DOCTYPE html>2.5 0.001", {"title": "Report", "verdict": verdict, "effect": effect, "limits": ["1"]}
    )


def zoo():
    evidence = {"alpha": 1.5, "verdict": "shown", "headline": PROMPTS[3]}
    made = {"name": "org/*model*", "fingerprint": "0" * 16}
    path = Path("zoo", "happy.safetensors")
    return Zoo((ZooVector("happy", "happy", str(path), path, ("resid_post[14]",), made, PROMPTS[1], evidence),))


RESULTS = {
    "Best": lambda: swept().best(),
    "Calibration": lambda: sf.discover.Calibration(2.0, 1.05, ((1.0, 1.01), (2.0, 1.05), (4.0, math.inf)), 21.0, 1.1),
    "Chance": chance,
    "Comparison": comparison,
    "Difference": lambda: paired([1.0, 2, 3, 4.5], [0.5, 1, 1, 1]),
    "Estimate": lambda: estimate([1.5]),
    "FoundCondition": condition,
    "Generations": lambda: sf.run.Generations(PROMPTS, texts("nice"), ((1, 2),) * 6, ((3, 4),) * 6),
    "Hits": lambda: Hits(9, 1, 3, 11),
    "Layout": lambda: sf.layout(build("llama")),
    "LintReport": lint,
    "Outcome": of_protocol,
    "Pair": lambda: comparison().pairs[0],
    "Profile": profile,
    "Quality": quality,
    "Report": reported,
    "Scores": scores,
    "Sensitivity": sensitivity,
    "Sweep": swept,
    "Transferred": transferred,
    "VectorComparison": vector_comparison,
    "Zoo": zoo,
}
"""By class, what makes one."""
