"""Plots: matplotlib Figures, made without a display. Needs the extra: `pip install -c constraints.txt -e ".[plot]"`."""

from steerfn.plot._comparison import comparison as comparison
from steerfn.plot._heat_map import heat_map as heat_map
from steerfn.plot._layers import layers as layers
from steerfn.plot._outcome import outcome as outcome
from steerfn.plot._separation import separation as separation
from steerfn.plot._sweep import sweep as sweep
from steerfn.plot._token_probabilities import token_probabilities as token_probabilities
from steerfn.plot._tokens import tokens as tokens
from steerfn.plot._top_k_changes import top_k_changes as top_k_changes
