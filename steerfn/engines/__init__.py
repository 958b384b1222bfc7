"""Other engines: the same steering baked into a checkpoint, in lm-evaluation-harness and in vLLM.

See `docs/guides/engines.md`.
"""

from steerfn.engines._bake import bake as bake
from steerfn.engines._bake import check_folder as check_folder
from steerfn.engines._to_lm_eval import check_target as check_target
from steerfn.engines._to_lm_eval import to_lm_eval as to_lm_eval
