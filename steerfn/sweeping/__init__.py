"""Sweeping: many strengths, vectors and sites on the same prompts, as rows of common batches."""

from steerfn.sweeping._sweep import sweep as sweep
from steerfn.sweeping._table import Best as Best
from steerfn.sweeping._table import Config as Config
from steerfn.sweeping._table import Sweep as Sweep
