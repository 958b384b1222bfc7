"""What the evidence tools say of a real vector, of vectors from shuffled labels, and of AxBench's ten concepts.

    python benchmarks/evidence.py [--parts effect shuffled axbench] [--save FOLDER]

All on SmolLM2-135M-Instruct and on the CPU, greedy. What chooses (texts of the vector, its layer, its strength) and what
reports (prompts) are different texts everywhere.

effect    A sentiment vector from movie reviews, on the beginnings of other reviews; beside a random vector of the same
          norm, as many more of them as is the default as the control of each, and a vector from shuffled labels. Then what
          it costs.
shuffled  The same with ten shuffles of the labels: how many of them are said to have an effect, and how many would be by
          sign flips over prompts alone.
axbench   Mean difference, PCA and a probe for the ten concepts of AxBench's Concept10, with the OFFLINE judge: three small
          scorers, no language model. Needs pandas and pyarrow.

`--save` writes what was compared, with all texts.
"""

import argparse
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
from quality import DATA, reviews

import steerfn as sf
from steerfn.evaluate import estimate, holm, paired

SIDE, PROMPTS, WORDS, TOKENS = 300, 120, 5, 24
MAX_RATIO = 1.5  # of the perplexity of plain text, for the strength
QUIET = {"progress": False}


def split() -> tuple[list[str], list[str], list[str]]:
    """Positive and negative reviews for the vector, and beginnings of others, half of either kind, as prompts."""
    positive, negative = reviews()
    for side in (positive, negative):
        random.Random(0).shuffle(side)
    held_out = [text for side in (positive, negative) for text in side[SIDE : SIDE + PROMPTS // 2]]
    return positive[:SIDE], negative[:SIDE], [" ".join(text.split()[:WORDS]) for text in held_out]


def speeches(count: int, start: int = 0) -> list[str]:
    """Paragraphs of inaugural addresses."""
    with zipfile.ZipFile(DATA / "text" / "inaugural.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        texts = [archive.read(name).decode("utf8", "replace") for name in names]
    return [" ".join(text.split()[20:180]) for text in texts][start : start + count]


def found(model, tokenizer, positive, negative):
    """The mean difference at the layer that cross-validation chooses, with its quality."""
    profile = sf.layer_profile(model, tokenizer, positive, negative, position="mean", chat=False, **QUIET)
    site = profile.best()
    v = profile.vector(site)
    return v, site, sf.quality(v)[site]


def strength(model, tokenizer, v) -> sf.Calibration:
    return sf.calibrate(model, tokenizer, v, speeches(10), max_ratio=MAX_RATIO, **QUIET)


def shuffled(positive, negative, seed):
    """The same texts with labels that mean nothing."""
    texts = [*positive, *negative]
    random.Random(seed).shuffle(texts)
    return texts[: len(positive)], texts[len(positive) :]


def effect(model, tokenizer, save: Path | None) -> None:
    positive, negative, prompts = split()
    v, site, quality = found(model, tokenizer, positive, negative)
    alpha = strength(model, tokenizer, v)
    print(f"\nThe vector: mean difference of {SIDE} + {SIDE} movie reviews at {site}, the best of all layers by")
    print(
        f"cross-validated AUC ({quality.auc:.3f}). Strength {alpha.alpha:.2f}: a perplexity of plain text up to {MAX_RATIO} times."
    )
    labels, _, _ = found(model, tokenizer, *shuffled(positive, negative, 0))
    labels = sf.SteeringVector({site: labels[labels.sites[0]]})
    vectors = {"sentiment": v, "random": sf.random_vector(v, 100), "shuffled labels": labels * (norm(v) / norm(labels))}
    compared = sf.compare_vectors(
        model, tokenizer, vectors, prompts, ["sentiment", "sentiment_minilm"], alpha=alpha.alpha,
        max_new_tokens=TOKENS, chat=False, **QUIET,
    )  # fmt: skip
    saved(compared, save, "effect")
    print(f"\n{PROMPTS} beginnings of other reviews, {TOKENS} tokens each\n\n{compared}")
    cost = sf.protocols.side_effects(
        model, tokenizer, v, speeches(40, 10), alpha=alpha.alpha, questions=DATA / "caa" / "mmlu_ab.json",
        prompts=prompts, limit=100, max_new_tokens=TOKENS, chat=False,
        controls={name: each for name, each in vectors.items() if name != "sentiment"}, **QUIET,
    )  # fmt: skip
    print(f"\nWhat it costs: speeches, 100 questions of MMLU with two answers, the same prompts\n\n{cost}")


def saved(compared, folder: Path | None, name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        compared.to_json(folder / f"{name}.json")


def norm(v) -> float:
    return float(v.directions[0].norm())


def shuffles(model, tokenizer, save: Path | None, count: int = 10) -> None:
    positive, negative, prompts = split()
    v, _, quality = found(model, tokenizer, positive, negative)
    alpha = strength(model, tokenizer, v).alpha
    print(
        f"\nReal labels: AUC {quality.auc:.3f}, norm {norm(v):.2f}. {count} shuffles, each pushed as far (alpha {alpha:.2f} x that norm):"
    )
    shown = by_flips = 0
    for seed in range(count):
        w, site, quality = found(model, tokenizer, *shuffled(positive, negative, seed))
        compared = sf.compare_vectors(
            model, tokenizer, {"shuffled": w}, prompts, ["sentiment"], alpha=alpha * norm(v) / norm(w),
            max_new_tokens=TOKENS, chat=False, seed=seed, **QUIET,
        )  # fmt: skip
        saved(compared, save, f"shuffled-{seed}")
        plain, chance = (
            compared.pair("sentiment", "shuffled", "unsteered"),
            compared.pair("sentiment", "shuffled", "random like shuffled"),
        )
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
        "level of 5 % one in twenty is expected at most."
    )


def told(pair) -> str:
    found = pair.difference.estimate
    return f"{found.mean:6.3f} ({found.low:6.3f} to {found.high:6.3f}), p = {pair.adjusted:.2g}"


def axbench(model, tokenizer, save: Path | None, layer: int = 14) -> None:
    import pandas

    folder = DATA / "axbench"
    table = pandas.read_parquet(folder / "concept10_prod_2b_l20_v1_train.parquet")
    concepts = pandas.read_json(folder / "concept10_prod_2b_l20_v1_metadata.jsonl", lines=True)
    negative = table[(table.category == "negative") & (table.dataset_category == "instruction")].output.tolist()[:72]
    methods = {
        "mean difference": sf.mean_difference,
        "PCA": sf.pca,
        "probe": sf.linear_probe,
    }
    scores = {name: [] for name in (*methods, "random", "unsteered")}
    print(f"\nOFFLINE judge (small scorers, no language model): not comparable with published figures. Block {layer}.")
    print(f"{'concept':<52}" + "".join(f"{name:>17}" for name in scores))
    for _, row in concepts.iterrows():
        positive = table[table.concept_id == row.concept_id].output.tolist()
        usual, line = None, {}
        for name, method in methods.items():
            v = method(model, tokenizer, positive, negative, layer, position="mean", chat=False, **QUIET)
            usual = usual or norm(v)  # the others' lengths mean something else: all are given the mean difference's
            outcome = sf.protocols.axbench(
                model, tokenizer, v * (usual / norm(v)), DATA / "instructions" / "vicuna_question.jsonl",
                concept=row.concept, alphas=[0.5, 1, 1.5, 2, 3, 4], limit=16, max_new_tokens=32,
                controls=5 * (name == "mean difference"), **QUIET,
            )  # fmt: skip
            saved(outcome, save, f"axbench-{row.concept_id}-{name.replace(' ', '-')}")
            line[name] = outcome.figures["score"].mean
            if name == "mean difference":
                line["random"], line["unsteered"] = (
                    outcome.controls["random"]["score"].mean,
                    outcome.baseline["score"].mean,
                )
        for name, score in line.items():
            scores[name].append(score)
        print(f"{row.concept[:50]:<52}" + "".join(f"{line[name]:>17.3f}" for name in scores), flush=True)
    print(f"{'mean':<52}" + "".join(f"{np.mean(each):>17.3f}" for each in scores.values()))
    others = [name for name in scores if name != "mean difference"]
    tests = [paired(scores["mean difference"], scores[name]) for name in others]
    for name, test, p in zip(others, tests, holm([each.p for each in tests]), strict=True):
        print(f"mean difference against {name}: {test.estimate}, p = {p:.3g} (Holm over {len(others)}), over concepts")
    print(f"score of mean difference over concepts: {estimate(scores['mean difference'])}")


PARTS = {
    "effect": effect,
    "shuffled": shuffles,
    "axbench": axbench,
}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="what to run; default all")
    arguments.add_argument("--save", type=Path, help="a folder for all that was compared, as JSON")
    chosen = arguments.parse_args()
    if not DATA.exists():
        sys.exit(f"The texts are read from {DATA}, which is not there.")
    for part in chosen.parts:
        PARTS[part](*sf.demo_model(progress=False), chosen.save)
