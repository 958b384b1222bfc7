"""Methods that need every activation: their state is all rows, in whatever order they were read."""

from steerfn._struct import struct
from steerfn.discover.engine._method import Method
from steerfn.discover.engine._rows import Rows


@struct
class Pair:
    """The rows of both sides."""

    positive: Rows
    negative: Rows

    def ordered(self) -> "Pair":
        """Both sides by text number, so that the order of reading leaves no trace."""
        return Pair(self.positive.ordered(), self.negative.ordered())


class Kept(Method):
    """A method whose state is all rows. Its `finalize` begins with `state.ordered()`."""

    def init(self, width: int) -> Pair:
        return Pair(Rows.empty(width), Rows.empty(width))

    def update(self, state: Pair, positive: Rows, negative: Rows) -> Pair:
        return self.merge(state, Pair(positive, negative))

    def merge(self, first: Pair, second: Pair) -> Pair:
        return Pair(first.positive.joined(second.positive), first.negative.joined(second.negative))
