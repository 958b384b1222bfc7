"""Plots: matplotlib Figures, made without a display. Needs the extra: `pip install "steerfn[plot]"`."""

from steerfn.plot._layers import layers as layers
