"""Schedules: the strength of `sf.scheduled` by generated token."""

from steerfn._lazy import contents as _contents
from steerfn.operators._schedule import constant as constant
from steerfn.operators._schedule import first_tokens as first_tokens
from steerfn.operators._schedule import linear_decay as linear_decay
from steerfn.operators._schedule import warm_up as warm_up

__dir__ = _contents(globals())
