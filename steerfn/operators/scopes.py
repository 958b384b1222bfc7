"""Scopes: which tokens of a text an operator acts on. Combine them with `|`, `&` and `~`."""

from steerfn._lazy import contents as _contents
from steerfn.operators._outside_tool_calls import outside_tool_calls as outside_tool_calls
from steerfn.operators._scope import Scope as Scope
from steerfn.operators._scope import everywhere as everywhere
from steerfn.operators._scope import generated as generated
from steerfn.operators._scope import last_prompt_token as last_prompt_token
from steerfn.operators._scope import positions as positions
from steerfn.operators._scope import prompt as prompt

__dir__ = _contents(globals())
