"""A virtual environment for each engine, built from scratch where it is missing.

    python tests/engines/environments.py [NAME ...]

They lie in $STEERFN_ENGINES (default: ~/.cache/steerfn/engines), one folder each, and are asked for with `-m engine`.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(os.environ.get("STEERFN_ENGINES", Path.home() / ".cache" / "steerfn" / "engines"))
REQUIREMENTS = {
    "lm_eval": ["lm_eval==0.4.13", "torch==2.13.0", "transformers>=5.16,<5.20", "accelerate>=1.15"],
    "repeng": ["repeng==0.4.0", "transformers==4.57.*"],
}


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
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS[name]]
        subprocess.run(command, check=True)
        whole.write_text("\n".join(REQUIREMENTS[name]))
    return python


if __name__ == "__main__":
    for each in sys.argv[1:] or REQUIREMENTS:
        print(python_of(each))
