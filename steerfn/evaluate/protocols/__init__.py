"""Published protocols: each a function with its paper's formula, the unsteered model and a random vector beside."""

from steerfn._lazy import contents as _contents
from steerfn.evaluate.protocols._axbench import axbench as axbench
from steerfn.evaluate.protocols._axbench import axbench_judge as axbench_judge
from steerfn.evaluate.protocols._axbench import harmonic as harmonic
from steerfn.evaluate.protocols._caa import caa as caa
from steerfn.evaluate.protocols._cast import cast as cast
from steerfn.evaluate.protocols._choices import p_match as p_match
from steerfn.evaluate.protocols._refusal import refusal as refusal
from steerfn.evaluate.protocols._side_effects import side_effects as side_effects
from steerfn.evaluate.protocols._steerability import slope as slope
from steerfn.evaluate.protocols._steerability import steerability as steerability
from steerfn.evaluate.protocols._toxicity import toxicity as toxicity
from steerfn.evaluate.protocols._truthfulqa import mc1 as mc1
from steerfn.evaluate.protocols._truthfulqa import mc2 as mc2
from steerfn.evaluate.protocols._truthfulqa import mc3 as mc3
from steerfn.evaluate.protocols._truthfulqa import truthfulqa as truthfulqa

__dir__ = _contents(globals())

# What other folders use besides.
from steerfn.evaluate.protocols._benchmark import benchmark as benchmark
from steerfn.evaluate.protocols._choices import questions_of as questions_of
