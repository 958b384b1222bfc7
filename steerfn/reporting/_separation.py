"""How well the data's two sides are told apart: at every layer by directions of its own, and by the vector itself."""

import dataclasses
import warnings
from typing import Any

import torch

from steerfn._errors import SteerWarning
from steerfn._site import Site, resid_post
from steerfn._vector import SteeringVector, unit
from steerfn.datasets import ContrastSet
from steerfn.discover import LintReport, Profile, layer_profile, lint_pairs
from steerfn.discover.engine._contrast import contrast
from steerfn.discover.engine._quality import auc
from steerfn.reading import Position, plan, position_name, run

POSITIONS = ("last", "mean", "mean_all", "answer")
"""The last needs pairs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Separation:
    """What the data says of the vector, and what could be wrong with the data.

    Attributes:
        position: which token of each text was read.
        chat: whether texts went into the chat template.
        profile: the mean difference of the data at every layer and at the vector's sites, cross-validated.
        aucs: by site of the vector, the area under the ROC curve of `<h, v>`, positive against negative texts.
        shares: by site, `|v|` over the mean `|h|`.
        lint: what `lint_pairs` found.
    """

    position: str | int
    chat: bool | None
    profile: Profile
    aucs: dict[Site, float]
    shares: dict[Site, float]
    lint: LintReport


def separation(
    model: Any,
    tokenizer: Any,
    vector: SteeringVector,
    data: ContrastSet,
    *,
    position: Position | None,
    batch_size: int | str,
    seed: int,
    progress: bool,
) -> Separation:
    """Read the data where the vector says that it was read, and see how far its sides are apart.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        vector: with its layers counted from 0.
        data: the two sides.
        position: where to read; None is where the vector was read.
        batch_size: texts at once.
        seed: of the folds.
        progress: show bars.
    """
    where, chat = read_as(vector, data)
    position = where if position is None else position
    elsewhere = [site for site in vector.sites if site.kind != "resid_post"]
    with warnings.catch_warnings():
        # Too few texts to cross-validate: the report says so where the number would be.
        warnings.filterwarnings("ignore", "The direction could not be cross-validated", SteerWarning)
        profile = layer_profile(
            model, tokenizer, data.positive, data.negative, sites=[resid_post[:], *elsewhere], position=position,
            chat=chat, batch_size=batch_size, seed=seed, progress=progress,
        )  # fmt: skip
    aucs, shares = itself(model, tokenizer, vector, data, position, chat, batch_size, progress)
    return Separation(position_name(position), chat, profile, aucs, shares, lint_pairs(data))


def read_as(vector: SteeringVector, data: ContrastSet) -> tuple[Position, bool | None]:
    """Where the vector says its texts were read, as far as the data can be read so; else the last token."""
    said, chat = vector.metadata.get("position"), vector.metadata.get("chat", False)
    position: Position = "last"
    if said in POSITIONS[: None if data.paired else -1] or (isinstance(said, int) and not isinstance(said, bool)):
        position = said
    return position, chat if chat in (True, None) else False


def itself(
    model: Any,
    tokenizer: Any,
    vector: SteeringVector,
    data: ContrastSet,
    position: Position,
    chat: bool | None,
    batch_size: int | str,
    progress: bool,
) -> tuple[dict[Site, float], dict[Site, float]]:
    """The AUC of `<h, v>` and `|v| / mean |h|`, by site."""
    texts = contrast(tokenizer, data.positive, data.negative, position=position, chat=chat, paired=False)
    scores = {site: torch.zeros(len(texts.reads), dtype=torch.float64) for site in vector.sites}
    lengths = {site: 0.0 for site in vector.sites}
    for batch in run(model, plan(model, texts.reads, vector.sites, batch_size=batch_size), progress=progress):
        for site in vector.sites:
            states = batch.states[site].detach().double().cpu()
            axis = unit(vector[site].detach().double().cpu())
            scores[site][batch.texts] = states @ axis
            lengths[site] += float(states.norm(dim=-1).sum())
    n = texts.positive
    typical = {site: total / len(texts.reads) for site, total in lengths.items()}
    return (
        {site: auc(each[:n], each[n:]) for site, each in scores.items()},
        {site: norm / typical[site] if typical[site] else 0.0 for site, norm in vector.magnitude.items()},
    )
