"""Workers for `workers=` in discovery: processes that `torchrun` started, and Ray's actors."""

from steerfn._lazy import contents as _contents
from steerfn.discover._engine import Workers as Workers
from steerfn.discover._engine import ray as ray
from steerfn.discover._engine import torchrun as torchrun

__dir__ = _contents(globals())
