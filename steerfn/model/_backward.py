"""Where in autograd's work the calling code runs: inside which backward pass, inside how many checkpoints."""

import sys

import torch
from torch.utils import checkpoint


def backward_task() -> int:
    """The number of the backward pass that the calling thread is inside of, -1 outside one."""
    return torch._C._current_graph_task_id()


def checkpoints() -> int:
    """How many functions of `torch.utils.checkpoint` the calling code runs inside of (several for each checkpoint).

    The call stack is all that tells of a reentrant checkpoint: inside, it looks like any code without gradients.
    """
    frame, count = sys._getframe(), 0
    while frame is not None:
        count += frame.f_code.co_filename == checkpoint.__file__
        frame = frame.f_back
    return count
