"""How well directions tell texts apart that they were not made of, on SmolLM2-135M.

    python benchmarks/quality.py [--texts 60]

For each contrast the layer is chosen by cross-validation on the first texts of each side; the direction made of them is
then judged on as many other texts, which chose nothing.
"""

import argparse
import json
import zipfile
from pathlib import Path

import torch

import steerfn as sf

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
    return found


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
    chosen = sf.quality(v)[site]
    return f"{count:>4}   {site!s:<15}{chosen.auc:>9.3f}{auc(high, low):>12.3f}"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--texts", type=int, default=60, help="of each side, to make the direction and to judge it")
    count = arguments.parse_args().texts
    model, tokenizer = sf.demo_model(progress=False)
    print(f"{'contrast':<38}{'texts':>5}   {'best layer':<15}{'AUC there':>9}{'AUC on others':>14}")
    for name, (positive, negative, chat) in contrasts().items():
        print(f"{name:<38} {judge(model, tokenizer, positive, negative, chat, count)}", flush=True)
