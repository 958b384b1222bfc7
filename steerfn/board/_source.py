"""How the model and the vectors of a page were loaded, so that code and commands can load them again."""

import dataclasses
import json
import shlex
from collections.abc import Mapping

from steerfn.zoo import ZOO


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model and vectors come from, for the code that `to_python` gives.

    Attributes:
        model: "demo", or what `from_pretrained` takes.
        options: the keywords of loading that were used, such as `{"dtype": "float32"}`.
        folder: of the vectors; None where they are in memory.
        files: the file of each vector by its name; None where it has none.
    """

    model: str = "demo"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    folder: str | None = None
    files: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    @property
    def python(self) -> str:
        """The Python that loads the model."""
        name = [] if self.model == "demo" else [quote(self.model)]
        words = [*name, *(f"{key}={quote(value)}" for key, value in self.options.items())]
        return (
            f"model, tokenizer = sf.{'demo_model' if self.model == 'demo' else 'from_pretrained'}({', '.join(words)})"
        )

    @property
    def words(self) -> list[str]:
        """The options of the command line that load the model."""
        given = {} if self.model == "demo" else {"model": self.model}
        return [word for key, value in (given | dict(self.options)).items() for word in (f"--{key}", value)]

    def vector(self, name: str) -> str:
        """The Python that gives a vector; one that is in memory only is one of those that the caller holds."""
        if self._is_of_zoo(name):
            return f"sf.zoo.load({quote(name.removeprefix(ZOO))}, model=model)"
        path = self.files.get(name)
        return f"vectors[{quote(name)}]" if path is None else f"sf.load({quote(path)})"

    def file(self, name: str) -> str:
        """The name of a vector on the command line; one in memory has to be saved under its name."""
        return name if self._is_of_zoo(name) else self.files.get(name) or f"{name}.safetensors"

    def target(self, name: str) -> str:
        """The file that a vector is saved in under a name."""
        folder = "" if self.folder is None else f"{self.folder.rstrip('/')}/"
        return f"{folder}{name or 'vector'}.safetensors"

    def _is_of_zoo(self, name: str) -> bool:
        return name.startswith(ZOO) and name not in self.files


def quote(text: str) -> str:
    """A text in double quotes, as Python and JSON both write it."""
    return json.dumps(text, ensure_ascii=False)


def shell(*words: object) -> str:
    """Words of a command line, quoted where a shell needs it."""
    return shlex.join(map(str, words))
