"""Writes the pins anew: constraints.txt, and requirements/ with the hashes of every platform's files.

    pip install uv==0.13.8 && python .ci/lock.py [--upgrade]

Without --upgrade what is pinned stays, and what has become necessary is added. requirements/torch-cpu.txt is kept by
hand: its files are on PyTorch's own index alone.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS, FOLDER = ROOT / "constraints.txt", ROOT / "requirements"
EVERYTHING, SETS = ("dev", "ray"), {"serve": ("serve", "demo"), "test": ("test",)}
TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
"""What differs between machines with CUDA and without: it has a file of its own."""


def resolve(extras: tuple[str, ...], out: Path, *more: str) -> None:
    """Write the requirements of some extras and of the build backend, with all that they need."""
    command = ["uv", "pip", "compile", "-q", "--universal", "--python-version", "3.10", "--no-header", "--no-annotate"]
    command += [word for extra in extras for word in ("--extra", extra)]
    subprocess.run(
        [*command, *more, "pyproject.toml", "-", "-o", out], cwd=ROOT, check=True, text=True, input="hatchling"
    )


def main() -> None:
    """Pins first, then hashes of what is pinned."""
    resolve(EVERYTHING, CONSTRAINTS, *sys.argv[1:])
    for name, extras in SETS.items():
        out = FOLDER / f"{name}.txt"
        resolve(extras, out, "-c", str(CONSTRAINTS), "--generate-hashes")
        blocks = re.findall(r"^\S.*\n(?: +--hash.*\n)+", out.read_text(), re.MULTILINE)
        out.write_text("".join(block for block in blocks if not TORCH.match(block)))
        (FOLDER / "torch.txt").write_text("".join(block for block in blocks if TORCH.match(block)))


if __name__ == "__main__":
    main()
