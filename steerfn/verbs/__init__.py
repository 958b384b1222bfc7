"""The verbs of a model and an operator: steer it, call it as a pure function, capture from it."""

from typing import TYPE_CHECKING

from steerfn._lazy import lazy
from steerfn.verbs._prepare_operator import check_vector as check_vector
from steerfn.verbs._prepare_operator import prepare_operator as prepare_operator
from steerfn.verbs._prepare_operator import prepare_operators as prepare_operators
from steerfn.verbs._steer import STREAM as STREAM
from steerfn.verbs._steer import Steering as Steering
from steerfn.verbs._steer import as_optional_steering as as_optional_steering
from steerfn.verbs._steer import as_steering as as_steering
from steerfn.verbs._steer import refuse_open_rows as refuse_open_rows
from steerfn.verbs._steer import steer as steer
from steerfn.verbs._steer import warn_of_empty as warn_of_empty

if TYPE_CHECKING:  # what loads at first use, for those who read types
    from steerfn.verbs._capture import capture as capture
    from steerfn.verbs._functional import Functional as Functional
    from steerfn.verbs._functional import functional as functional


__getattr__, __dir__ = lazy(
    globals(),
    {
        "steerfn.verbs._capture": "capture",
        "steerfn.verbs._functional": "Functional functional",
    },
)
