"""The one door through which the commands print: nothing that a file or a model chose acts on the terminal."""

import re
from typing import Any

from steerfn.values import visible

# Bold and colours that can be read, as `compare` marks what differs and the server's log its levels. What a model or a
# file says is written out before it is printed, so these are never theirs.
_COLOUR = "(?:0|1|3[1-7]|9[1-7])"
_OURS = re.compile(f"(\x1b\\[{_COLOUR}(?:;{_COLOUR})?m)")


class VisibleStream:
    """A text stream that writes control characters out, but for line breaks, tabs and colours.

    Args:
        stream: where to.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        self._stream.write("".join(part if i % 2 else visible(part) for i, part in enumerate(_OURS.split(text))))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
