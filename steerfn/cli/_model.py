"""`--model` and how to load it, for every command that needs one."""

import argparse
from typing import Any

from steerfn._errors import SteerError


def add_model_options(command: argparse.ArgumentParser) -> None:
    """`--model` and how to load it."""
    command.add_argument(
        "--model", default="demo", help="a hub name or folder; 'demo' (default) is SmolLM2-135M-Instruct"
    )
    command.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")
    command.add_argument("--quantization", choices=("int8", "int4"), help="load the weights quantized")
    command.add_argument("--quiet", action="store_true", help="no progress bars")


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and tokenizer that the options name."""
    import steerfn as sf

    if options.model == "demo":
        if options.quantization:
            raise SteerError("--quantization goes with --model NAME; the demo model is loaded as it is.")
        return sf.demo_model(device=options.device or "cpu", dtype=options.dtype, progress=not options.quiet)
    return sf.from_pretrained(
        options.model, device=options.device, dtype=options.dtype, quantization=options.quantization
    )
