"""Plots: matplotlib Figures, made without a display. Needs the extra: `pip install -c constraints.txt -e ".[plot]"`."""

from steerfn._lazy import contents as _contents
from steerfn.plot._forest import comparison as comparison
from steerfn.plot._forest import outcome as outcome
from steerfn.plot._layers import layers as layers
from steerfn.plot._next_token import token_probabilities as token_probabilities
from steerfn.plot._next_token import top_k_changes as top_k_changes
from steerfn.plot._separation import separation as separation
from steerfn.plot._sweep import heat_map as heat_map
from steerfn.plot._sweep import sweep as sweep
from steerfn.plot._tokens import tokens as tokens

__dir__ = _contents(globals())

# What other folders use besides.
from steerfn.plot._figure import data_url as data_url
from steerfn.plot._figure import figure as figure
from steerfn.plot._figure import token_texts as token_texts
