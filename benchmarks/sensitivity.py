"""Does the slope at alpha = 0 say at which layer a vector will act? On SmolLM2-135M and sentiment.

    python benchmarks/sensitivity.py [--rounds 3]

A direction for each of the 30 layers comes from the shipped sentiment texts. On sentence beginnings that are not among
them, `sf.sensitivity` gives the slope of log p(positive word) - log p(negative word) at every layer; then each layer is
steered for real, with a plain context, and the mean change of the same difference is measured. Rank correlations compare
the two, and compare what else is known of a layer before any sweep: how long its direction is, how well it reads the
texts, and how deep it lies. A second table moves the one direction of layer 14 to every layer.
"""

import argparse
import statistics
import time

import numpy as np
import torch

import steerfn as sf

ALPHAS = (0.5, 1.0, 2.0, 4.0)
FEELING = """
Today I feel|When I think about my job, I feel|After the phone call I was|Most of the time she seems|Looking at the photo made him
Since moving to the city I have been|Everyone at the table looked|On the way home from school he was|The news left my parents feeling
When the music stopped, we all felt|In the mornings I am usually|Hearing her voice again, I was
""".strip().replace("\n", "|")
THING = """
The film we saw on Friday was|My weekend has been|The food at the new restaurant tastes|Our holiday by the lake was
The weather this month has been|In my opinion the book is|The last year of my life was|Her cooking, to be honest, is|The hotel room looked
The concert in the park was|My first week at the new school was|The service at the front desk was
""".strip().replace("\n", "|")
PROMPTS = [*FEELING.split("|"), *THING.split("|")]
TARGETS = [(" happy", " sad")] * len(FEELING.split("|")) + [(" wonderful", " terrible")] * len(THING.split("|"))


def ranks(values) -> np.ndarray:
    """Ranks from 0, the mean of their ranks for equal values."""
    values = np.asarray(values, dtype=float)
    return np.array([(values < x).sum() + ((values == x).sum() - 1) / 2 for x in values])


def spearman(first, second) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


class Odds:
    """log p(positive) - log p(negative) of every prompt, from one plain forward of all of them."""

    def __init__(self, model, tokenizer) -> None:
        rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        words = [[tokenizer(word, add_special_tokens=False)["input_ids"] for word in pair] for pair in TARGETS]
        assert all(len(ids) == 1 for pair in words for ids in pair), "target words are single tokens"
        self.model, self.rows = model, torch.arange(len(rows))
        self.last = torch.tensor([len(row) - 1 for row in rows])
        self.good, self.bad = (torch.tensor([pair[side][0] for pair in words]) for side in (0, 1))
        self.ids = torch.zeros(len(rows), int(self.last.max()) + 1, dtype=torch.long)
        self.mask = torch.zeros_like(self.ids)
        for i, row in enumerate(rows):
            self.ids[i, : len(row)], self.mask[i, : len(row)] = torch.tensor(row), 1

    def __call__(self) -> torch.Tensor:
        """The difference of each prompt."""
        with torch.no_grad():
            out = self.model(self.ids, attention_mask=self.mask, use_cache=False, logits_to_keep=self.last.unique())
        places = torch.searchsorted(self.last.unique(), self.last)
        logits = out.logits[self.rows, places].double()
        return logits[self.rows, self.good] - logits[self.rows, self.bad]


def swept(odds, model, v) -> dict[float, np.ndarray]:
    """The mean change of the difference at each layer, by alpha, from plain steering."""
    before, found = odds(), {}
    for alpha in ALPHAS:
        changes = []
        for site in v.sites:
            with sf.steer(model, v.select(site), alpha):
                changes.append(float((odds() - before).mean()))
        found[alpha] = np.array(changes)
    return found


def timed(call, unit, rounds: int) -> float:
    """How many times as long as `unit` a call takes, the median over rounds."""
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        unit()
        between = time.perf_counter()
        call()
        ratios.append((time.perf_counter() - between) / (between - start))
    return statistics.median(ratios)


def report(title: str, found, effects, rivals: dict[str, list[float]]) -> None:
    means = np.array([mean for _, mean, _ in found])
    print(f"\n{title}\n{'':<15}{'slope':>9}{'+-':>7}  change of log p(positive) - log p(negative) at alpha")
    print(f"{'site':<15}{'':>16}{''.join(f'{alpha:>10g}' for alpha in effects)}")
    for i, (site, mean, error) in enumerate(found):
        print(f"{site!s:<15}{mean:>+9.3f}{error:>7.3f}{''.join(f'{each[i]:>+10.3f}' for each in effects.values())}")
    print("\nSpearman's correlation with the change")
    for name, values in {"slope": means, **rivals}.items():
        print(f"  {name:<21}{''.join(f'{spearman(values, each):>+10.2f}' for each in effects.values())}")
    best = int(means.argmax())
    print(f"change at {found.sites[best]}, the largest slope, as a share of the largest change of any layer:")
    print(f"  {'':<21}{''.join(f'{each[best] / each.max():>10.2f}' for each in effects.values())}")
    top = set(np.argsort(-means)[:5].tolist())
    shared = [len(top & set(np.argsort(-each)[:5].tolist())) for each in effects.values()]
    print(f"of the 5 largest slopes among the 5 largest changes:\n  {'':<21}{''.join(f'{n:>10}' for n in shared)}")
    far = [float(np.median(np.abs(each) / np.maximum(alpha * np.abs(means), 1e-9))) for alpha, each in effects.items()]
    print(
        f"|change| over |alpha x slope|, median over layers:\n  {'':<21}{''.join(f'{x:>10.2f}' for x in far)}",
        flush=True,
    )


def main(rounds: int) -> None:
    model, tokenizer = sf.demo_model(progress=False)
    texts = sf.datasets.load("sentiment")
    profile = sf.discover.layer_profile(model, tokenizer, texts.positive, texts.negative, progress=False)
    v, table, odds = profile.vectors, profile.table, Odds(model, tokenizer)

    def slopes(vector, **options):
        return sf.sensitivity(model, tokenizer, vector, PROMPTS, TARGETS, chat=False, progress=False, **options)

    found = slopes(v)
    assert torch.allclose(found.baseline, odds(), atol=1e-3), "both measure the same difference"
    print(
        f"SmolLM2-135M-Instruct, torch {torch.__version__}, {torch.get_num_threads()} threads, {len(PROMPTS)} prompts"
    )
    rivals = {
        "length of direction": [v.magnitude[site] for site, _ in table],
        "held-out AUC": [each.auc for _, each in table],
        "depth": [float(site.block) for site, _ in table],
    }
    report(f"each layer's own direction ({len(texts)} pairs of texts)", found, swept(odds, model, v), rivals)
    one = v.select(14)
    moved = sf.SteeringVector({site: one[14] for site in found.sites})
    report(
        "the direction of layer 14 at every layer", slopes(one), swept(odds, model, moved), {"depth": rivals["depth"]}
    )

    print(f"\ntime in unsteered forwards of the prompts, median of {rounds} ratios")
    for mode in ("reverse", "forward"):
        for sites, name in ((v.sites, "30 layers"), (v.sites[14], "1 layer")):
            took = timed(lambda m=mode, s=sites: slopes(v, mode=m, sites=s), odds, rounds)
            print(f"  sf.sensitivity, {mode:<8}{name:>10}{took:>8.1f}", flush=True)
    took = timed(lambda: [_steered(odds, model, v.select(site)) for site in v.sites], odds, rounds)
    print(f"  sweep of one alpha{'30 layers':>16}{took:>8.1f}")


def _steered(odds, model, v) -> torch.Tensor:
    with sf.steer(model, v, 1.0):
        return odds()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=3, help="for the times")
    main(arguments.parse_args().rounds)
