"""How well directions tell texts apart that they were not made of, on SmolLM2-135M.

    python benchmarks/quality.py [--texts 60] [--parts contrasts sinks noise answers groups]

For each contrast the layer is chosen by cross-validation on the first texts of each side; the direction made of them is
then judged on as many other texts, which chose nothing. Then what docs/background/results.md quotes: means with and
without attention sinks, folds that share out the answers, groups, and the best of thirty layers of noise.
"""

import argparse
import json
import random
import warnings
import zipfile
from pathlib import Path

import torch

import steerfn as sf
from steerfn.discover._engine._method import StateRows
from steerfn.discover._engine._quality import auc_interval, measure
from steerfn.discover._mean_difference import MeanDifference
from steerfn.output import format_or_dash

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
    profile = sf.discover.layer_profile(model, tokenizer, positive[:count], negative[:count], **options)
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


def sinks(model, tokenizer, block: int = 14) -> None:
    """The norm of the first token's state, and a mean over tokens with and without it."""
    texts = sf.datasets.load("sentiment")
    first, others = [], []
    for text in texts.positive[:12]:
        with torch.no_grad():
            _, states = sf.capture(model, sf.resid_post[:])(**tokenizer(text, return_tensors="pt"))
        norms = torch.stack([states[site][0].norm(dim=-1) for site in sorted(states, key=lambda site: site.order)])
        first.append(norms[:, 0])
        others.append(norms[:, 1:])
    first, others = torch.stack(first).mean(0), torch.cat(others, dim=1)  # by block; by block and token
    from_block = int((first > 10 * others.median(dim=1).values).nonzero()[0])
    low, high = others[block].quantile(torch.tensor([0.05, 0.95]))
    print(
        f"\nthe first token's norm is more than ten times that of others (the median) from block {from_block} on; at block"
    )
    print(f"{block} it is {first[block]:.0f}, and {low:.0f} to {high:.0f} of 90 of 100 others")
    for position in ("mean_all", "mean"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sf.SteerWarning)  # what it warns of is what is measured
            v = sf.mean_difference(model, tokenizer, texts, block, position=position, quality=True, progress=False)
        print(f"sentiment, block {block}, position={position!r}: {sf.quality(v)[sf.resid_post[block]]}")


def answers(model, tokenizer, pairs: int, seeds: int = 10) -> None:
    """Questions balanced by their answers: folds at random, one pair a fold, folds that share the answers out."""
    print(
        f"\n{pairs} pairs of questions, AUC by folds at random (mean of {seeds}), by one pair a fold, by folds that share"
    )
    print(f"out the answers, and of the vector on {pairs} other pairs")
    sites, index = [sf.resid_post[layer] for layer in (10, 14, 18)], torch.arange(pairs)
    for name, (positive, negative, position) in questions().items():
        if len(positive) < 2 * pairs:
            continue
        options = {"position": position, "progress": False}
        sides = positive[: 2 * pairs], negative[: 2 * pairs]
        profile = sf.discover.layer_profile(model, tokenizer, *(side[:pairs] for side in sides), sites=sites, **options)
        high, low = (sf.activations(model, tokenizer, side, sites, **options) for side in sides)
        for site in sites:
            rows = [StateRows(index, side[site][:pairs].double()) for side in (high, low)]
            chance = sum(measure(MeanDifference(), *rows, seed=seed).auc for seed in range(seeds)) / seeds
            alone = measure(MeanDifference(), *rows, folds=pairs).auc
            v, said = profile.vector(site), sf.quality(profile.vector(site))[site]
            true = auc(high[site][pairs:] @ v[site], low[site][pairs:] @ v[site])
            print(
                f"{name:<14} {site!s:<15} {chance:.2f}  {alone:.2f}  {format_or_dash(said.auc, '.2f')}  {true:.2f}",
                flush=True,
            )


def questions() -> dict[str, tuple[list[str], list[str], str | int]]:
    """Questions with two answers, in random order, and where the answer is read."""
    found = {name: (*persona(name), "last") for name in ("extraversion", "agreeableness")}
    texts = sf.datasets.from_file(DATA / "caa" / "generate" / "corrigible-neutral-HHH.json")
    shuffled = texts.subset(random.Random(0).sample(range(len(texts)), len(texts)))
    return found | {"corrigible": (*_sides(shuffled), -2)}  # the letter, before its bracket


def groups(model, tokenizer, questions: int = 100, others: int = 300) -> None:
    """A probe on TruthfulQA's answers, divided by answer and by question, and on other questions."""
    rows = json.loads((DATA / "truthfulqa" / "mc_task.json").read_text(encoding="utf8"))
    random.Random(0).shuffle(rows)  # which come by category
    sides = [], []
    for place, row in enumerate(rows[: questions + others]):
        for answer, right in row["mc2_targets"].items():
            sides[1 - right].append((place, f"Q: {row['question']}\nA: {answer}"))
    first = [[each for each in side if each[0] < questions] for side in sides]
    texts = [[text for _, text in side] for side in first]
    labels = [number for side in first for number, _ in side]
    print()
    for said, which in (("by answer", None), ("by question", labels)):
        v = sf.linear_probe(model, tokenizer, *texts, 14, quality=True, groups=which, progress=False)
        print(f"TruthfulQA, {questions} questions, probe, folds {said}: {sf.quality(v)[sf.resid_post[14]]}", flush=True)
    site = v.sites[0]  # the vector is the same, however its texts were divided
    held_out = [[text for number, text in side if number >= questions] for side in sides]
    high, low = (sf.activations(model, tokenizer, side, site, progress=False)[site] @ v[site] for side in held_out)
    area = auc(high, low)
    low, high = auc_interval(area, others, others)
    print(f"TruthfulQA, probe, on {others} other questions: AUC {area:.3f} ({low:.2f} to {high:.2f})")


def noise(layers: int = 30, runs: int = 20) -> None:
    """The best of many layers of nothing."""
    for pairs in (24, 6):
        best = []
        for seed in range(runs):
            draw = torch.randn(layers, 2, pairs, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            index = torch.arange(pairs)
            best.append(max(measure(MeanDifference(), StateRows(index, p), StateRows(index, n)).auc for p, n in draw))
        print(f"the best of {layers} layers of independent noise, {pairs} pairs: AUC {sum(best) / runs:.2f}")


def tell_apart(model, tokenizer, count: int) -> None:
    """Every contrast: the best layer, how good it is said to be, and how good it is."""
    print(
        f"{'contrast':<42}{'texts':>5}   {'best layer':<15}{'AUC there':>9}{'95 %':>15}{'chance':>9}{'pairs':>7}{'AUC on others':>14}"
    )
    for name, (positive, negative, chat) in contrasts().items():
        print(f"{name:<42} {judge(model, tokenizer, positive, negative, chat, count)}", flush=True)


PARTS = {
    "contrasts": tell_apart,
    "sinks": lambda model, tokenizer, _: sinks(model, tokenizer),
    "noise": lambda *_: noise(),
    "answers": lambda model, tokenizer, _: [answers(model, tokenizer, pairs) for pairs in (48, 200)],
    "groups": lambda model, tokenizer, _: groups(model, tokenizer),
}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="what to run; default all")
    arguments.add_argument("--texts", type=int, default=60, help="of each side, to make the direction and to judge it")
    chosen = arguments.parse_args()
    model, tokenizer = sf.demo_model(progress=False)
    for part in chosen.parts:
        if DATA.exists() or part not in ("answers", "groups"):
            PARTS[part](model, tokenizer, chosen.texts)
