"""`add`: a vector and the card of its report, into a zoo."""

import re
from collections.abc import Sequence
from pathlib import Path

from steerfn.discover import Calibration
from steerfn.evaluate import Sweep
from steerfn.reporting import Report
from steerfn.reporting import card as card_of
from steerfn.values import DataError, FileError, ModelError, SteeringVector, public
from steerfn.values.files import HubAddress, encode, is_hub, vector_sha256, write_together
from steerfn.zoo._entries import CARD, OURS, SUFFIX, Place

NAME = re.compile(r"\w[\w.-]*")


@public
def add(
    name: str,
    vector: SteeringVector,
    report: Report,
    zoo: Place,
    *,
    calibration: Calibration | None = None,
    sweep: Sweep | None = None,
    licence: str | None = None,
    datasets: Sequence[str] = (),
    overwrite: bool = False,
) -> str:
    """Put a vector into a zoo, with the card of its report, and what the report says into its metadata.

    The files are `model/name.safetensors` and `model/name.md`, both or none, with the name of the model that the vector
    was made from. On the hub they are one commit.

    Args:
        name: letters, digits and "_.-".
        vector: the vector that the report is on.
        report: as `sf.report` gives it, of the model that the vector was made from.
        zoo: a folder, which is made if it is not there, or "hf://user/name".
        calibration: for the card, as in `sf.card`.
        sweep: for the card, as in `sf.card`.
        licence: of the vector, as the hub writes it: "apache-2.0".
        datasets: ids of data sets on the hub that the vector was made from.
        overwrite: whether a vector of that name and model in a folder may be replaced; a commit on the hub replaces it
            in any case.

    Returns:
        What `sf.load` takes: its path, or its address on the hub.

    Raises:
        DataError: a name with other signs, or a report on another vector.
        ModelError: a vector that does not say from which model it was made, or a report on another one.
        FileError: a vector that is there already, or a place that cannot be written.

    Example:
        >>> import steerfn as sf
        >>> sf.zoo.add("happy", v, report, "my-zoo", licence="apache-2.0")  # the report that sf.report(...) gave
        'my-zoo/SmolLM2-135M-Instruct/happy.safetensors'
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DataError(f"A vector's name in a zoo has letters, digits and '_.-', not {name!r:.80}.")
    text = card_of(
        report, name=name, calibration=calibration, sweep=sweep, licence=licence, datasets=datasets,
        load=_load_line(name, zoo),
    )  # fmt: skip
    findings = report.findings
    if findings["vector"]["sha256"] != (sha256 := vector_sha256(vector)):
        raise DataError(
            f"The report is on a vector with SHA-256 {findings['vector']['sha256'][:16]}, and this one has "
            f"{sha256[:16]}; report on the vector that is added."
        )
    if findings["vector"]["match"] in ("unknown", "other"):
        raise ModelError(
            f"The report was made on {findings['model']['name']}, and that the vector is of this model is not known; "
            "add vectors that were discovered on it."
        )
    verdict = findings["verdict"]
    evidence = {"alpha": findings["vector"]["alpha"], "verdict": verdict["level"], "headline": verdict["headline"]}
    vector = vector.with_metadata(evidence=evidence)
    folder = re.sub(r"[^\w.-]", "-", str(findings["model"]["name"]).rpartition("/")[2]).strip(".-") or "model"
    file = Path(folder, f"{name}{SUFFIX}")
    if is_hub(zoo):
        address = HubAddress.of(zoo)
        assert address is not None
        return vector.push_to_hub(address.repo, card=text, file=file.as_posix(), revision=address.revision)
    path = Path(zoo) / file
    if path.exists() and not overwrite:
        raise FileError(f"'{path}' is in the zoo already; choose another name, or pass overwrite=True.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_together({path.with_suffix(CARD): text.encode(), **encode(vector, path)})
    except OSError as error:
        raise FileError(f"'{path}' cannot be written: {error.strerror or error}; choose another place.") from None
    return str(path)


def _load_line(name: str, zoo: Place) -> str:
    """How the card's example loads the vector: where its folder lies on this machine is nobody's business."""
    if not is_hub(zoo) and Path(zoo).resolve() == OURS.resolve():
        return f"sf.zoo.load({name!r}, model=model)"
    return f"sf.zoo.load({name!r}, {str(zoo) if is_hub(zoo) else Path(zoo).name!r}, model=model)"
