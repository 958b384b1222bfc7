"""`push_to_hub`: a vector and its card in a repository of the Hugging Face hub, in one commit."""

import dataclasses
from pathlib import Path
from typing import Any

from steerfn.values._errors import FileError
from steerfn.values.files._hub import CARD, FILE, push
from steerfn.values.files._save_load import encode


def push_to_hub(
    vector: Any,
    repo: str,
    *,
    card: str | None = None,
    file: str = FILE,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
) -> str:
    """Put a vector into a repository of the Hugging Face hub, as `SteeringVector.push_to_hub` does.

    Args:
        vector: what is pushed; the other arguments and the errors are those of the method.
        repo: "user/name".
        card: the text of a card.
        file: the vector's path in the repository.
        revision: a branch that is there.
        private: whether a new repository is private.
        message: of the commit.

    Returns:
        The address that `sf.load` takes.

    Raises:
        FileError: no such repository, or no way to write there.

    Example:
        With a login to the hub::

            address = sf.files.push_to_hub(v, "user/happy", card=sf.card(report))
    """
    if card is not None and not isinstance(card, str):
        raise FileError(f"`card` must be the text of a card, such as sf.card(report), not a {type(card).__name__}.")
    files = {path.as_posix(): data for path, data in encode(vector, Path(file)).items()}
    if card is not None:
        files[CARD if file == FILE else Path(file).with_suffix(".md").as_posix()] = card.encode()
    commit = push(repo, files, revision=revision, private=private, message=message or f"Upload {file}")
    return str(dataclasses.replace(commit, file=file))
