"""steerfn: activation steering of Hugging Face causal language models as pure functions.

import steerfn as sf

model, tokenizer = sf.demo_model()
v = sf.mean_difference(model, tokenizer, positive=[...], negative=[...], sites=14)
with sf.steer(model, v, alpha=2.0):
    model.generate(**inputs)
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

from steerfn import engines as engines
from steerfn._activations import activations as activations
from steerfn._activations import token_read as token_read
from steerfn._blocks import Layout as Layout
from steerfn._capture import capture as capture
from steerfn._demo import demo_model as demo_model
from steerfn._errors import DataError as DataError
from steerfn._errors import FileError as FileError
from steerfn._errors import ModelError as ModelError
from steerfn._errors import ShapeError as ShapeError
from steerfn._errors import SiteError as SiteError
from steerfn._errors import SteerError as SteerError
from steerfn._errors import SteerWarning as SteerWarning
from steerfn._fingerprint import check_match as check_match
from steerfn._fingerprint import fingerprint as fingerprint
from steerfn._functional import functional as functional
from steerfn._generate import Generations as Generations
from steerfn._generate import generate as generate
from steerfn._generate import stream as stream
from steerfn._io import describe as describe
from steerfn._io import load as load
from steerfn._io import save as save
from steerfn._later import later as _later
from steerfn._layout import layout as layout
from steerfn._metadata import Metadata as Metadata
from steerfn._models import from_pretrained as from_pretrained
from steerfn._site import Site as Site
from steerfn._site import attn_out as attn_out
from steerfn._site import head_out as head_out
from steerfn._site import mlp_out as mlp_out
from steerfn._site import resid_mid as resid_mid
from steerfn._site import resid_post as resid_post
from steerfn._site import resid_pre as resid_pre
from steerfn._steer import steer as steer
from steerfn._vector import SteeringVector as SteeringVector
from steerfn.operators import Info as Info
from steerfn.operators import Operator as Operator
from steerfn.operators import Scope as Scope
from steerfn.operators import Tokens as Tokens
from steerfn.operators import ablate as ablate
from steerfn.operators import add as add
from steerfn.operators import at as at
from steerfn.operators import chain as chain
from steerfn.operators import clamp as clamp
from steerfn.operators import constant as constant
from steerfn.operators import cosine_above as cosine_above
from steerfn.operators import everywhere as everywhere
from steerfn.operators import first_tokens as first_tokens
from steerfn.operators import generated as generated
from steerfn.operators import identity as identity
from steerfn.operators import last_prompt_token as last_prompt_token
from steerfn.operators import linear_decay as linear_decay
from steerfn.operators import on_prompt as on_prompt
from steerfn.operators import positions as positions
from steerfn.operators import probe as probe
from steerfn.operators import project as project
from steerfn.operators import projection_above as projection_above
from steerfn.operators import prompt as prompt
from steerfn.operators import renorm as renorm
from steerfn.operators import rotate as rotate
from steerfn.operators import rows as rows
from steerfn.operators import scheduled as scheduled
from steerfn.operators import warm_up as warm_up
from steerfn.operators import when as when

if TYPE_CHECKING:  # what loads at first use, for those who read types
    from steerfn import datasets as datasets
    from steerfn import discover as discover
    from steerfn import metrics as metrics
    from steerfn import plot as plot
    from steerfn._sensitivity import Sensitivity as Sensitivity
    from steerfn._sensitivity import sensitivity as sensitivity
    from steerfn.discover import Calibration as Calibration
    from steerfn.discover import FoundCondition as FoundCondition
    from steerfn.discover import LintReport as LintReport
    from steerfn.discover import Profile as Profile
    from steerfn.discover import Quality as Quality
    from steerfn.discover import caa as caa
    from steerfn.discover import calibrate as calibrate
    from steerfn.discover import find_condition as find_condition
    from steerfn.discover import from_sae as from_sae
    from steerfn.discover import iti as iti
    from steerfn.discover import lat as lat
    from steerfn.discover import layer_profile as layer_profile
    from steerfn.discover import lda as lda
    from steerfn.discover import linear_probe as linear_probe
    from steerfn.discover import lint_pairs as lint_pairs
    from steerfn.discover import mean_difference as mean_difference
    from steerfn.discover import optimise as optimise
    from steerfn.discover import pca as pca
    from steerfn.discover import quality as quality
    from steerfn.discover import random_vector as random_vector
    from steerfn.discover import refusal_direction as refusal_direction
    from steerfn.discover import spread as spread
    from steerfn.discover import torchrun as torchrun
    from steerfn.engines._bake import bake as bake
    from steerfn.engines._imports import from_pt as from_pt
    from steerfn.engines._imports import from_repeng as from_repeng
    from steerfn.engines._imports import from_steering_vectors as from_steering_vectors
    from steerfn.engines._lm_eval import to_lm_eval as to_lm_eval
    from steerfn.evaluate import protocols as protocols
    from steerfn.evaluate._benchmark import benchmark as benchmark
    from steerfn.evaluate._compare import compare as compare
    from steerfn.evaluate._compare_vectors import compare_vectors as compare_vectors
    from steerfn.evaluate._comparison import Comparison as Comparison
    from steerfn.evaluate._outcome import Outcome as Outcome
    from steerfn.evaluate._vector_comparison import VectorComparison as VectorComparison
    from steerfn.integrations._ray import ray_workers as ray_workers
    from steerfn.reporting._report import Report as Report
    from steerfn.reporting._report import report as report
    from steerfn.scoring._score import Scores as Scores
    from steerfn.scoring._score import score as score
    from steerfn.sweeping._sweep import sweep as sweep
    from steerfn.sweeping._table import Sweep as Sweep


__getattr__, __dir__ = _later(
    globals(),
    {
        "steerfn.discover": (
            "Calibration FoundCondition LintReport Profile Quality caa calibrate find_condition from_sae iti lat "
            "layer_profile lda "
            "linear_probe lint_pairs mean_difference optimise pca quality random_vector "
            "refusal_direction spread torchrun"
        ),
        "steerfn._sensitivity": "Sensitivity sensitivity",
        "steerfn.engines._bake": "bake",
        "steerfn.engines._imports": "from_pt from_repeng from_steering_vectors",
        "steerfn.engines._lm_eval": "to_lm_eval",
        "steerfn.evaluate._benchmark": "benchmark",
        "steerfn.evaluate._compare": "compare",
        "steerfn.evaluate._compare_vectors": "compare_vectors",
        "steerfn.evaluate._comparison": "Comparison",
        "steerfn.evaluate._outcome": "Outcome",
        "steerfn.evaluate._vector_comparison": "VectorComparison",
        "steerfn.integrations._ray": "ray_workers",
        "steerfn.reporting._report": "Report report",
        "steerfn.scoring._score": "Scores score",
        "steerfn.sweeping._sweep": "sweep",
        "steerfn.sweeping._table": "Sweep",
        "steerfn.datasets": "",
        "steerfn.evaluate.protocols": "",
        "steerfn.metrics": "",
        "steerfn.plot": "",
    },
)
