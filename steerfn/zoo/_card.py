"""`card`: the card of a vector of a zoo, as it stands."""

from steerfn.values import FileError, public
from steerfn.values.files import MAX_BYTES, Refused, read_bytes
from steerfn.zoo._entries import CARD, Place, find, only


@public
def card(name: str, zoo: Place | None = None) -> str:
    """Read the card of a vector: Markdown, with the head that the hub reads.

    Args:
        name: as `list` shows it; "folder/name" where several have it.
        zoo: a folder, or "hf://user/name[@revision]"; default the zoo of this package.

    Raises:
        DataError: no vector of that name.
        FileError: no such zoo, or a vector without a card.
        SteerError: several vectors of that name.

    Example:
        >>> import steerfn as sf
        >>> print(sf.zoo.card("sentiment").splitlines()[1])
        base_model: HuggingFaceTB/SmolLM2-135M-Instruct
    """
    path = only(find(name, zoo)).path.with_suffix(CARD)
    try:
        return read_bytes(path, MAX_BYTES, "write a card").decode()
    except (OSError, Refused, UnicodeDecodeError) as error:
        raise FileError(f"'{name}' has no card that could be read ({error}); write '{path.name}' beside it.") from None
