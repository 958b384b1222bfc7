"""Operators: pure, immutable functions on hidden states. They know no model."""

from steerfn.operators._base import Operator as Operator
from steerfn.operators._combine import chain as chain
from steerfn.operators._combine import identity as identity
from steerfn.operators._combine import renorm as renorm
from steerfn.operators._condition import Condition as Condition
from steerfn.operators._condition import cosine_above as cosine_above
from steerfn.operators._condition import probe as probe
from steerfn.operators._condition import projection_above as projection_above
from steerfn.operators._condition import when as when
from steerfn.operators._info import Info as Info
from steerfn.operators._info import Tokens as Tokens
from steerfn.operators._linear import ablate as ablate
from steerfn.operators._linear import add as add
from steerfn.operators._linear import clamp as clamp
from steerfn.operators._linear import project as project
from steerfn.operators._linear import rotate as rotate
from steerfn.operators._rows import rows as rows
from steerfn.operators._schedule import scheduled as scheduled
from steerfn.operators._scope import Scope as Scope
from steerfn.operators._scope import at as at
from steerfn.operators._scope import everywhere as everywhere
from steerfn.operators._scope import generated as generated
from steerfn.operators._scope import last_prompt_token as last_prompt_token
from steerfn.operators._scope import positions as positions
from steerfn.operators._scope import prompt as prompt
