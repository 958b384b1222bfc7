"""How well directions tell texts apart that they were not made of, on SmolLM2-135M.

    python benchmarks/quality.py [--texts 60]

For each contrast the layer is chosen by cross-validation on the first texts of each side; the direction made of them is
then judged on as many other texts, which chose nothing. Then the four figures that docs/discovery.md quotes: folds that
share out the answers, means without attention sinks, groups, and the best of thirty layers of noise.
"""

import argparse
import json
import random
import warnings
import zipfile
from pathlib import Path

import torch

import steerfn as sf
from steerfn.discover._mean import MeanDifference
from steerfn.discover.engine._quality import measure
from steerfn.discover.engine._rows import Rows

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def reviews() -> tuple[list[str], list[str]]:
    with zipfile.ZipFile(DATA / "sentiment" / "sentence_polarity.zip") as archive:
        names = {name.rsplit(".", 1)[-1]: name for name in archive.namelist() if "rt-polarity." in name}
        positive, negative = (archive.read(names[side]).decode("latin-1").splitlines() for side in ("pos", "neg"))
    return positive, negative


def emotions() -> tuple[list[str], list[str]]:
    folder = DATA / "repe" / "emotions"
    return tuple(json.loads((folder / f"{name}.json").read_text(encoding="utf8")) for name in ("happiness", "sadness"))


def facts() -> tuple[list[str], list[str]]:
    found = sf.datasets.from_file(DATA / "repe" / "facts_true_false.csv")
    return list(found.positive), list(found.negative)


def contrasts() -> dict[str, tuple[list[str], list[str], bool]]:
    found = {f"{name} (shipped)": (*_sides(sf.datasets.load(name)), False) for name in sf.datasets.names()}
    if DATA.exists():
        found["happy and sad scenes (RepE)"] = (*emotions(), False)
        found["movie reviews (Pang & Lee)"] = (*reviews(), False)
        found["movie reviews, in the chat template"] = (*reviews(), True)
        found["true and false facts (RepE)"] = (*facts(), False)
        for name in ("extraversion", "agreeableness"):
            found[f"{name} (Anthropic evals, Yes or No)"] = (*persona(name), False)
    return found


def persona(name: str) -> tuple[list[str], list[str]]:
    texts = sf.datasets.from_file(DATA / "anthropic_evals" / "persona" / f"{name}.jsonl")
    return _sides(texts.subset(random.Random(0).sample(range(len(texts)), len(texts))))


def _sides(texts: sf.datasets.ContrastSet) -> tuple[list[str], list[str]]:
    return list(texts.positive), list(texts.negative)


def auc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    wins = (positive[:, None] > negative[None, :]).double() + (positive[:, None] == negative[None, :]).double() / 2
    return float(wins.mean())


def judge(model, tokenizer, positive, negative, chat, count) -> str:
    count = min(count, len(positive) // 2, len(negative) // 2)
    options = {"chat": chat, "progress": False}
    profile = sf.layer_profile(model, tokenizer, positive[:count], negative[:count], **options)
    site = profile.best()
    v = profile.vector(site)
    high, low = (
        sf.activations(model, tokenizer, side[count : 2 * count], site, **options)[site] @ v[site]
        for side in (positive, negative)
    )
    chosen, chance = sf.quality(v)[site], profile.chance
    interval = "{:.2f} to {:.2f}".format(*chosen.interval)
    by_chance = "-" if chance is None else f"{chance.high:.3f}"
    return (
        f"{count:>4}   {site!s:<15}{chosen.auc:>9.3f} {interval:>14}{by_chance:>9}{chosen.pair_accuracy:>7.2f}"
        f"{auc(high, low):>12.3f}"
    )


def sinks(model, tokenizer) -> None:
    """A mean over tokens with and without the first one."""
    texts = sf.datasets.load("sentiment")
    for position in ("mean_all", "mean"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sf.SteerWarning)  # what it warns of is what is measured
            v = sf.mean_difference(
                model, tokenizer, texts, 14, position=position, quality=True, progress=False
            )  # fmt: skip
        print(f"sentiment, block 14, position={position!r}: {sf.quality(v)[sf.resid_post[14]]}")


def groups(model, tokenizer, questions: int = 60) -> None:
    """A probe on TruthfulQA's answers, divided by answer and by question, and on other questions."""
    rows = json.loads((DATA / "truthfulqa" / "mc_task.json").read_text(encoding="utf8"))[: 2 * questions]
    sides = [], []
    for number, row in enumerate(rows):
        for answer, right in row["mc2_targets"].items():
            sides[1 - right].append((number, f"Q: {row['question']}\nA: {answer}"))
    first = [[each for each in side if each[0] < questions] for side in sides]
    texts = [[text for _, text in side] for side in first]
    labels = [number for side in first for number, _ in side]
    for said, which in (("by answer", None), ("by question", labels)):
        v = sf.linear_probe(model, tokenizer, *texts, 14, quality=True, groups=which, progress=False)
        print(f"TruthfulQA, probe, folds {said}: {sf.quality(v)[sf.resid_post[14]]}")
    site = v.sites[0]
    others = [[text for number, text in side if number >= questions] for side in sides]
    high, low = (sf.activations(model, tokenizer, side, site, progress=False)[site] @ v[site] for side in others)
    print(f"TruthfulQA, probe, on other questions: AUC {auc(high, low):.3f}")


def noise(layers: int = 30, runs: int = 20) -> None:
    """The best of many layers of nothing."""
    for pairs in (24, 6):
        best = []
        for seed in range(runs):
            draw = torch.randn(layers, 2, pairs, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            index = torch.arange(pairs)
            best.append(max(measure(MeanDifference(), Rows(index, p), Rows(index, n)).auc for p, n in draw))
        print(f"the best of {layers} layers of independent noise, {pairs} pairs: AUC {sum(best) / runs:.2f}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--texts", type=int, default=60, help="of each side, to make the direction and to judge it")
    count = arguments.parse_args().texts
    model, tokenizer = sf.demo_model(progress=False)
    print(
        f"{'contrast':<38}{'texts':>5}   {'best layer':<15}{'AUC there':>9}{'95 %':>15}{'chance':>9}{'pairs':>7}{'AUC on others':>14}"
    )
    for name, (positive, negative, chat) in contrasts().items():
        print(f"{name:<38} {judge(model, tokenizer, positive, negative, chat, count)}", flush=True)
    sinks(model, tokenizer)
    noise()
    if DATA.exists():
        groups(model, tokenizer)
