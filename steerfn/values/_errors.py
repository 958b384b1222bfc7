"""The exceptions and warnings of the package.

Every error is a full sentence that carries the offending values and the fix. All of them are
`SteerError`, which is a `ValueError`, so one `except` catches whatever this library refuses.
"""

from steerfn.values._visible import visible_line


class _Sentence:
    """A message is one line of printable text: it may quote a file's metadata, or the name of a path."""

    def __str__(self) -> str:  # where it leaves, and not in a constructor: `torch.compile` traces those
        return visible_line(super().__str__())


class SteerError(_Sentence, ValueError):
    """Base of every error this library raises on purpose."""


class ShapeError(SteerError):
    """A tensor has the wrong width, rank, dtype or device for where it is used."""


class SiteError(SteerError):
    """A site that is unknown, out of range, or that this architecture does not have."""


class ModelError(SteerError):
    """A model that cannot be steered, or a vector that was made for another model."""


class FileError(SteerError):
    """A file that is missing, damaged, hostile or of an unknown format."""


class DataError(SteerError):
    """Texts, prompts or options that nothing can be computed from."""


class SteerWarning(_Sentence, UserWarning):
    """Something that works but is probably not what was meant (a scope that selects nothing, ...)."""
