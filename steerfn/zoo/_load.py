"""`load`: a vector of a zoo, for the model at hand."""

from steerfn.model import Model
from steerfn.output import enumeration
from steerfn.values import ModelError, SteeringVector, public, warn
from steerfn.values import fingerprint as fingerprint_of
from steerfn.values.files import load as load_file
from steerfn.zoo._entries import Place, entries, find, only


@public
def load(
    name: str, zoo: Place | None = None, *, model: Model | None = None, strict: bool | str = "architecture"
) -> SteeringVector:
    """Load a vector of a zoo by its name; of several models' vectors of that name, the one that fits the model.

    Args:
        name: as `list` shows it; "folder/name" where several have it.
        zoo: a folder, or "hf://user/name[@revision]"; default the zoo of this package.
        model: the model that it is to steer. A vector of another architecture is refused.
        strict: with `model`, True refuses a vector of other weights too (of the base model, a fine-tune, a quantized
            copy), as `sf.load` does; False only warns of another architecture.

    Raises:
        DataError: no vector of that name.
        ModelError: none of them was made from this model; it names those that were.
        FileError: no such zoo, no way to it, or a damaged file.
        SteerError: several vectors of that name, and no model that says which.

    Warns:
        SteerWarning: a vector whose report found no effect of its behaviour.

    Example:
        >>> import steerfn as sf
        >>> model, tokenizer = sf.demo_model()
        >>> v = sf.zoo.load("refusal", model=model)
        >>> v.sites
        (resid_post[14],)
    """
    chosen = find(name, zoo)
    if model is not None and strict:
        identity = fingerprint_of(model)
        fitting = tuple(each for each in chosen if each.fits(identity))
        if not fitting:
            others = [each.name for each in entries(zoo) if each.fits(identity)]
            those = enumeration(sorted({str(each.model.get("name"))[:80] for each in chosen}))
            raise ModelError(
                f"The zoo's '{name}' was made from {those}, and this model is {identity['name']} (fingerprint "
                f"{identity['fingerprint']}); "
                + (f"these fit it: {', '.join(others)}." if others else "no vector of the zoo fits it: discover one.")
            )
        chosen = fitting
    entry = only(chosen)
    if entry.evidence.get("verdict") not in (None, "shown"):
        warn(f"The report on the zoo's '{entry.name}' says: {str(entry.evidence.get('headline'))[:300]}")
    return load_file(entry.address, model=model, strict=strict)
