"""Evidence: does it steer, by how much, at what cost, and how sure are we.

Statistics over prompts, comparisons of vectors, and the protocols of published papers.
"""

from steerfn._lazy import contents as _contents
from steerfn.evaluate._compare import compare as compare
from steerfn.evaluate._compare_vectors import compare_vectors as compare_vectors
from steerfn.evaluate._comparison import Comparison as Comparison
from steerfn.evaluate._configs import Config as Config
from steerfn.evaluate._crawford_howell import crawford_howell as crawford_howell
from steerfn.evaluate._outcome import Outcome as Outcome
from steerfn.evaluate._pairs import Pair as Pair
from steerfn.evaluate._statistics import Difference as Difference
from steerfn.evaluate._statistics import Estimate as Estimate
from steerfn.evaluate._statistics import by_prompt as by_prompt
from steerfn.evaluate._statistics import estimate as estimate
from steerfn.evaluate._statistics import holm as holm
from steerfn.evaluate._statistics import paired as paired
from steerfn.evaluate._statistics import proportion as proportion
from steerfn.evaluate._statistics import ratio as ratio
from steerfn.evaluate._sweep import sweep as sweep
from steerfn.evaluate._sweep_table import Best as Best
from steerfn.evaluate._sweep_table import Sweep as Sweep
from steerfn.evaluate._vector_comparison import VectorComparison as VectorComparison
from steerfn.evaluate.protocols import benchmark as benchmark

__dir__ = _contents(globals())

# What other folders use besides.
from steerfn.evaluate._against_random import FEWEST_DRAWS as FEWEST_DRAWS
from steerfn.evaluate._common import common as common
from steerfn.evaluate._compare import METRICS as METRICS
from steerfn.evaluate._comparison import SideBySide as SideBySide
from steerfn.evaluate._conditions import CONTROLS as CONTROLS
from steerfn.evaluate._conditions import strengths_of as strengths_of
from steerfn.evaluate._conditions import validate_metrics as validate_metrics
from steerfn.evaluate._outcome import RANDOM as RANDOM
from steerfn.evaluate._outcome import STEERED as STEERED
from steerfn.evaluate._pairs import UNSTEERED as UNSTEERED
from steerfn.evaluate._pairs import analyse as analyse
from steerfn.evaluate._pairs import mean_of as mean_of
from steerfn.evaluate._pairs import random_like as random_like
from steerfn.evaluate._sentences import sentence as sentence
from steerfn.evaluate._statistics import RESAMPLES as RESAMPLES
from steerfn.evaluate._statistics import check_intervals as check_intervals
from steerfn.evaluate._statistics import units_of as units_of
from steerfn.evaluate._sweep import DEFAULT as DEFAULT
from steerfn.evaluate._sweep import SCORED as SCORED
from steerfn.evaluate._tables import means_table as means_table
from steerfn.evaluate._tables import p_cell as p_cell
