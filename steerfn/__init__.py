"""Activation steering of Hugging Face causal language models as pure functions.

The examples of the other docstrings use these names:

>>> import steerfn as sf
>>> model, tokenizer = sf.demo_model()  # 135M parameters; or any causal LM and its tokenizer
>>> happy = ["I am so happy today!", "What a beautiful morning.", "This is the best day ever."]
>>> sad = ["I am so sad today.", "What a gloomy morning.", "This is the worst day ever."]
>>> v = sf.mean_difference(model, tokenizer, happy, sad, sites=14, position="mean")
>>> prompts = ["My day was", "The film was"]
>>> inputs = tokenizer("My day was", return_tensors="pt").to(model.device)
>>> with sf.steer(model, v, alpha=2.0):
...     ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

from steerfn._lazy import lazy as _lazy
from steerfn.operators import Info as Info
from steerfn.operators import Operator as Operator
from steerfn.operators import ablate as ablate
from steerfn.operators import add as add
from steerfn.operators import at as at
from steerfn.operators import chain as chain
from steerfn.operators import clamp as clamp
from steerfn.operators import cosine_above as cosine_above
from steerfn.operators import everywhere as everywhere
from steerfn.operators import generated as generated
from steerfn.operators import identity as identity
from steerfn.operators import last_prompt_token as last_prompt_token
from steerfn.operators import on_prompt as on_prompt
from steerfn.operators import outside_tool_calls as outside_tool_calls
from steerfn.operators import positions as positions
from steerfn.operators import probe as probe
from steerfn.operators import project as project
from steerfn.operators import projection_above as projection_above
from steerfn.operators import prompt as prompt
from steerfn.operators import renorm as renorm
from steerfn.operators import rotate as rotate
from steerfn.operators import rows as rows
from steerfn.operators import scheduled as scheduled
from steerfn.operators import when as when
from steerfn.values import DataError as DataError
from steerfn.values import FileError as FileError
from steerfn.values import ModelError as ModelError
from steerfn.values import ShapeError as ShapeError
from steerfn.values import Site as Site
from steerfn.values import SiteError as SiteError
from steerfn.values import SteerError as SteerError
from steerfn.values import SteeringVector as SteeringVector
from steerfn.values import SteerWarning as SteerWarning
from steerfn.values import attn_out as attn_out
from steerfn.values import head_out as head_out
from steerfn.values import mlp_out as mlp_out
from steerfn.values import resid_mid as resid_mid
from steerfn.values import resid_post as resid_post
from steerfn.values import resid_pre as resid_pre
from steerfn.values.files import load as load
from steerfn.values.files import save as save

if TYPE_CHECKING:  # what loads at first use, for those who read types
    from steerfn import datasets as datasets
    from steerfn import discover as discover
    from steerfn import metrics as metrics
    from steerfn import plot as plot
    from steerfn import zoo as zoo
    from steerfn.board import dashboard as dashboard
    from steerfn.discover import caa as caa
    from steerfn.discover import lda as lda
    from steerfn.discover import linear_probe as linear_probe
    from steerfn.discover import mean_difference as mean_difference
    from steerfn.discover import optimise as optimise
    from steerfn.discover import pca as pca
    from steerfn.discover import quality as quality
    from steerfn.discover import random_vector as random_vector
    from steerfn.discover import transfer as transfer
    from steerfn.discover import workers as workers
    from steerfn.engines import bake as bake
    from steerfn.engines import to_lm_eval as to_lm_eval
    from steerfn.evaluate import compare as compare
    from steerfn.evaluate import compare_vectors as compare_vectors
    from steerfn.evaluate import protocols as protocols
    from steerfn.evaluate import sweep as sweep
    from steerfn.model import from_pretrained as from_pretrained
    from steerfn.model import layout as layout
    from steerfn.model.demo import demo_model as demo_model
    from steerfn.operators import schedules as schedules
    from steerfn.operators import scopes as scopes
    from steerfn.output import set_progress as set_progress
    from steerfn.reporting import card as card
    from steerfn.reporting import report as report
    from steerfn.run import activations as activations
    from steerfn.run import generate as generate
    from steerfn.run import score as score
    from steerfn.run import sensitivity as sensitivity
    from steerfn.run import stream as stream
    from steerfn.values import files as files
    from steerfn.values.files import from_repeng as from_repeng
    from steerfn.values.files import from_steering_vectors as from_steering_vectors
    from steerfn.verbs import capture as capture
    from steerfn.verbs import functional as functional
    from steerfn.verbs import steer as steer


__getattr__, __dir__ = _lazy(
    globals(),
    {
        "steerfn.board": "dashboard",
        "steerfn.discover": "caa lda linear_probe mean_difference optimise pca quality random_vector transfer",
        "steerfn.engines": "bake to_lm_eval",
        "steerfn.evaluate": "compare compare_vectors sweep",
        "steerfn.model": "from_pretrained layout",
        "steerfn.model.demo": "demo_model",
        "steerfn.output": "set_progress",
        "steerfn.reporting": "card report",
        "steerfn.run": "activations generate score sensitivity stream",
        "steerfn.values.files": "from_repeng from_steering_vectors",
        "steerfn.verbs": "capture functional steer",
    },
    "steerfn.datasets steerfn.discover steerfn.discover.workers steerfn.evaluate.protocols steerfn.metrics "
    "steerfn.operators.schedules steerfn.operators.scopes steerfn.plot steerfn.values.files steerfn.zoo",
    {
        "discover": (
            "Calibration FoundCondition LintReport Profile Quality calibrate find_condition from_sae iti lat "
            "layer_profile lint_pairs refusal_direction spread"
        ),
        "evaluate": "Comparison Outcome Sweep VectorComparison",
        "files": "describe from_pt",
        "model": "Layout",
        "operators": "Tokens",
        "protocols": "benchmark",
        "reporting": "Report",
        "run": "Generations Scores Sensitivity token_read",
        "schedules": "constant first_tokens linear_decay warm_up",
        "scopes": "Scope",
        "values": "Metadata check_match fingerprint",
        "workers": "ray_workers=ray torchrun",
    },
)
