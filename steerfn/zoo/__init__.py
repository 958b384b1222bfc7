"""Vectors that others have made and measured, with their cards: those of this package, of a folder, or of the hub."""

from steerfn._lazy import contents as _contents
from steerfn.zoo._add import add as add
from steerfn.zoo._card import card as card
from steerfn.zoo._entries import ZooVector as ZooVector
from steerfn.zoo._list import Zoo as Zoo
from steerfn.zoo._list import list as list
from steerfn.zoo._load import load as load

__dir__ = _contents(globals())

from steerfn.zoo._entries import ZOO as ZOO
