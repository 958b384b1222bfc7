"""What the evidence tools say of a real vector, of vectors from shuffled labels, and of AxBench's ten concepts.

    python benchmarks/evidence.py [--parts effect shuffled axbench] [--save FOLDER]

All on SmolLM2-135M-Instruct and on the CPU. What chooses (texts of the vector, its layer, its strength) and what reports
(prompts) are different texts everywhere. Means over tokens leave attention sinks out.

effect    A sentiment vector from movie reviews, on the beginnings of other reviews, with forty random vectors of its norm.
          Some of the texts, then what it costs.
shuffled  The same with ten shuffles of the labels, on fewer prompts, pushed as far in relation to the states at their sites:
          how many of them are said to have an effect, and how many would be by sign flips over prompts alone.
axbench   Mean difference, PCA and a probe for the ten concepts of AxBench's Concept10, with the OFFLINE judge: three small
          scorers, no language model. Strengths are the paper's, factors of the concept's maximal activation. Needs
          pyarrow.

`--save` writes what was compared, with all texts.
"""

import argparse
import functools
import json
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from quality import DATA, reviews

import steerfn as sf
from steerfn.discover._engine._method import StateRows
from steerfn.discover._engine._quality import Quality, measure
from steerfn.discover._linear_probe import LinearProbe
from steerfn.discover._mean_difference import MeanDifference
from steerfn.discover._pca import DifferencePca
from steerfn.evaluate import estimate, holm, paired
from steerfn.evaluate._against_random import PromptBlock

SIDE, PROMPTS, WORDS, TOKENS = 300, 120, 5, 20
FEW = 40  # prompts of each shuffle
MAX_RATIO = 1.5  # of the perplexity of plain text, for the strength
QUIET = {"progress": False}


def split() -> tuple[list[str], list[str]]:
    """Reviews for the vector, the positive ones first, and beginnings of others, of either kind in turn, as prompts."""
    sides = reviews()
    for side in sides:
        random.Random(0).shuffle(side)
    held_out = zip(*(side[SIDE : SIDE + PROMPTS // 2] for side in sides), strict=True)
    beginnings = [" ".join(text.split()[:WORDS]) for pair in held_out for text in pair]
    return [text for side in sides for text in side[:SIDE]], beginnings


def speeches(count: int, start: int = 0) -> list[str]:
    """Paragraphs of inaugural addresses."""
    with zipfile.ZipFile(DATA / "text" / "inaugural.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        texts = [archive.read(name).decode("utf8", "replace") for name in names]
    return [" ".join(text.split()[20:180]) for text in texts][start : start + count]


@functools.cache
def states(model, tokenizer) -> dict[sf.Site, torch.Tensor]:
    """The activations of all reviews at all layers, read once for every way to label them."""
    return sf.activations(model, tokenizer, split()[0], sf.resid_post[:], "mean", chat=False, **QUIET)


def found(model, tokenizer, seed: int | None = None) -> tuple[sf.SteeringVector, sf.Site, Quality]:
    """The mean difference at the layer that cross-validation chooses, of the labels or of a shuffle, with its quality."""
    order = list(range(2 * SIDE))
    if seed is not None:
        random.Random(seed).shuffle(order)
    index, best = torch.arange(SIDE), None
    for site, rows in sorted(states(model, tokenizer).items(), key=lambda item: item[0].order):
        positive, negative = (StateRows(index, rows[side].double()) for side in (order[:SIDE], order[SIDE:]))
        quality = measure(MeanDifference(), positive, negative)
        if best is None or quality.auc > best[2].auc:
            direction = MeanDifference().of(positive, negative)
            best = sf.SteeringVector({site: direction.float()}), site, quality
    return best


@functools.cache
def real(model, tokenizer) -> tuple[sf.SteeringVector, sf.Site, Quality, float]:
    """What the true labels give, and the strength."""
    v, site, quality = found(model, tokenizer)
    return v, site, quality, sf.discover.calibrate(model, tokenizer, v, speeches(8), max_ratio=MAX_RATIO, **QUIET).alpha


def norm(v) -> float:
    return float(v.directions[0].norm())


def effect(model, tokenizer, save: Path | None) -> None:
    v, site, quality, alpha = real(model, tokenizer)
    print(
        f"\nThe vector: mean difference of {SIDE} + {SIDE} movie reviews at {site}, the best of all layers by cross-validated"
    )
    print(
        f"AUC ({quality}). Norm {norm(v):.2f}, strength {alpha:.2f}: a perplexity of plain text up to {MAX_RATIO} times."
    )
    prompts = split()[1]
    compared = sf.compare_vectors(
        model, tokenizer, {"sentiment": v}, prompts, ["sentiment", "sentiment_minilm"], alpha=alpha,
        max_new_tokens=TOKENS, chat=False, **QUIET,
    )  # fmt: skip
    saved(compared, save, "effect")
    print(f"\n{PROMPTS} beginnings of other reviews, {TOKENS} tokens each\n\n{compared}\n")
    for metric in compared.metrics:
        print(f"spread of random vectors in {metric}: {spread(compared, metric, 'sentiment'):.2f}")
    for i, prompt in enumerate(prompts[:6]):
        for name in ("unsteered", "sentiment", "random like sentiment"):
            print(f"{prompt} [{name}] {' '.join(compared.texts[name][i].split())}")
    cost = sf.protocols.side_effects(
        model, tokenizer, v, speeches(30, 10), alpha=alpha, questions=DATA / "caa" / "mmlu_ab.json", prompts=prompts,
        limit=30, max_new_tokens=TOKENS, chat=False, **QUIET,
    )  # fmt: skip
    print(f"\nWhat it costs: speeches, questions of MMLU with two answers, some of the prompts\n\n{cost}", flush=True)


def spread(compared, metric: str, name: str) -> float:
    """The standard deviation of random vectors' mean effects, in standard deviations of a prompt's difference."""
    values = {condition: compared.by_unit(each) for condition, each in compared.values[metric].items()}
    random = values[f"random like {name}"]
    parts = [PromptBlock.of(values[name][..., inside], random[..., inside]) for inside in each_block(compared.blocks)]
    between = sum(part.of_draws for part in parts) / sum(part.draws - 1 for part in parts)
    rest = sum(part.of_rest for part in parts) / sum((part.draws - 1) * (part.prompts - 1) for part in parts)
    prompts = sum((part.draws - 1) * part.prompts for part in parts) / sum(part.draws - 1 for part in parts)
    return float(np.sqrt(max(between - rest, 0) / prompts) / np.std(values[name] - values["unsteered"], ddof=1))


def each_block(blocks: np.ndarray) -> list[np.ndarray]:
    return [blocks == number for number in np.unique(blocks)]


def saved(compared, folder: Path | None, name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        compared.to_json(folder / f"{name}.json")


def shuffles(model, tokenizer, save: Path | None, count: int = 10) -> None:
    _, _, quality, alpha = real(model, tokenizer)
    far = alpha * quality.relative_norm
    prompts = split()[1][:FEW]
    print(
        f"\nReal labels: AUC {quality.auc:.3f}, a push of {far:.2f} of the states' norm. {count} shuffles, each pushed as far at"
    )
    print(f"its site, on {FEW} prompts:", flush=True)
    shown = by_flips = 0
    for seed in range(count):
        w, site, quality = found(model, tokenizer, seed)
        compared = sf.compare_vectors(
            model, tokenizer, {"shuffled": w}, prompts, ["sentiment"], alpha=far / quality.relative_norm,
            max_new_tokens=TOKENS, chat=False, seed=seed, **QUIET,
        )  # fmt: skip
        saved(compared, save, f"shuffled-{seed}")
        plain, chance = (compared.pair("sentiment", "shuffled", of) for of in ("unsteered", "random like shuffled"))
        same_way = plain.difference.estimate.mean * chance.difference.estimate.mean > 0
        claimed = same_way and chance.significant  # which stands for both comparisons
        shown, by_flips = shown + claimed, by_flips + (same_way and max(plain.p, chance.difference.p) < 0.05)
        print(
            f"  {seed}: {site!s:<14} AUC {quality.auc:.3f}  against unsteered {told(plain)}, random {told(chance)} "
            f"(by flips {chance.difference.p:.2g}): {'EFFECT' if claimed else 'no effect'}",
            flush=True,
        )
    print(
        f"{shown} of {count} shuffles are said to have an effect, {by_flips} would be by sign flips over prompts alone; at a "
        "level of 5 % one in twenty is expected at most.",
        flush=True,
    )


def told(pair) -> str:
    found = pair.difference.estimate
    return f"{found.mean:6.3f} ({found.low:6.3f} to {found.high:6.3f}), p = {pair.adjusted:.2g}"


def axbench(model, tokenizer, save: Path | None, block: int = 14) -> None:
    from pyarrow import parquet

    folder, site = DATA / "axbench", sf.resid_post[block]
    rows = parquet.read_table(folder / "concept10_prod_2b_l20_v1_train.parquet").to_pylist()
    concepts = (folder / "concept10_prod_2b_l20_v1_metadata.jsonl").read_text(encoding="utf8").splitlines()
    methods = {"mean difference": MeanDifference(), "PCA": DifferencePca(), "probe": LinearProbe()}
    scores = {name: [] for name in (*methods, "random", "unsteered")}
    others = [
        row["output"] for row in rows if row["category"] == "negative" and row["dataset_category"] == "instruction"
    ]
    index, negative = torch.arange(72), read(model, tokenizer, others[:72], site)
    print(f"\nOFFLINE judge (small scorers, no language model): not comparable with published figures. Block {block}.")
    print(f"{'concept':<42}" + "".join(f"{name:>17}" for name in scores), flush=True)
    for line in map(json.loads, concepts):
        texts = [row["output"] for row in rows if row["concept_id"] == line["concept_id"]][:72]
        positive, line_scores = read(model, tokenizer, texts, site), {}
        for name, method in methods.items():
            direction = method.of(StateRows(index, positive), StateRows(index, negative))
            outcome = sf.protocols.axbench(
                model, tokenizer, sf.SteeringVector({site: direction.float()}), DATA / "instructions" / "vicuna_question.jsonl",
                concept=line["concept"], alphas=[0.2, 0.4, 0.8], activating=texts[:4], limit=8,
                max_new_tokens=24, controls=int(name == "mean difference"), **QUIET,
            )  # fmt: skip
            saved(outcome, save, f"axbench-{line['concept_id']}-{name.replace(' ', '-')}")
            line_scores[name] = outcome.figures["score"].mean
            if name == "mean difference":
                line_scores |= {
                    "random": outcome.controls["random"]["score"].mean,
                    "unsteered": outcome.baseline["score"].mean,
                }
        for name in scores:
            scores[name].append(line_scores[name])
        print(f"{line['concept'][:40]:<42}" + "".join(f"{line_scores[name]:>17.3f}" for name in scores), flush=True)
    print(f"{'mean':<42}" + "".join(f"{np.mean(each):>17.3f}" for each in scores.values()))
    others = [name for name in scores if name != "mean difference"]
    tests = [paired(scores["mean difference"], scores[name]) for name in others]
    for name, test, p in zip(others, tests, holm([each.p for each in tests]), strict=True):
        print(f"mean difference against {name}: {test.estimate}, p = {p:.3g} (Holm over {len(others)}), over concepts")
    for name, each in scores.items():
        print(f"score of {name} over concepts: {estimate(each)}")


def read(model, tokenizer, texts, site) -> torch.Tensor:
    return sf.activations(model, tokenizer, texts, site, "mean", chat=False, **QUIET)[site].double()


PARTS = {"effect": effect, "shuffled": shuffles, "axbench": axbench}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="what to run; default all")
    arguments.add_argument("--save", type=Path, help="a folder for all that was compared, as JSON")
    chosen = arguments.parse_args()
    if not DATA.exists():
        sys.exit(f"The texts are read from {DATA}, which is not there.")
    model, tokenizer = sf.demo_model(progress=False)
    for part in chosen.parts:
        PARTS[part](model, tokenizer, chosen.save)
