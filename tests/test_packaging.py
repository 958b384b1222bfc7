"""Packaging promises: what the wheel holds, what an import costs in modules, one version everywhere."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import steerfn as sf

ROOT = Path(__file__).parents[1]


@pytest.mark.heavy
def test_pitfall_30_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    files = ("pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-r", ROOT / "steerfn", *(ROOT / f for f in files), source], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [n for n in zipfile.ZipFile(wheel).namelist() if "__pycache__" not in n]
    assert {n.split("/")[0] for n in names} == {"steerfn", f"steerfn-{sf.__version__}.dist-info"}
    assert "steerfn/py.typed" in names and not [n for n in names if "test" in n]
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "steerfn").rglob("*.py")}
    assert ours <= set(names)


def test_pitfall_30_one_version():
    assert sf.__version__ == metadata.version("steerfn")
    assert f'version = "{sf.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {sf.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_pitfall_30_an_import_loads_neither_transformers_nor_an_extra():
    code = "import sys, steerfn; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"transformers", "gguf", "accelerate", "torchao", "beartype", "matplotlib", "pytest"}


def test_the_package_is_found_beside_its_clone(tmp_path):
    """A folder of the same name in the working directory is an empty namespace package, which must not win."""
    (tmp_path / "steerfn").mkdir()
    code = "import steerfn; print(steerfn.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{sf.__version__}\n", done.stderr


def test_core_packages_are_pinned_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    needed = metadata.requires("steerfn")
    names = {re.split(r"[>=<\[; ]", d)[0].lower() for d in needed} - {"steerfn"}
    assert names - {"vllm"} <= pinned  # vLLM pins a torch and a transformers of its own: an environment for itself


def test_everything_public_is_importable_and_documented():
    for name in [n for n in dir(sf) if not n.startswith("_")]:
        assert getattr(sf, name) is not None
    api = "layout SteeringVector save load add ablate project clamp rotate renorm chain identity at everywhere prompt"
    more = "generated last_prompt_token positions when cosine_above projection_above rows scheduled steer functional"
    rest = "capture mean_difference activations generate stream from_pretrained demo_model SteerError"
    assert all(
        hasattr(sf, n) for n in f"{api} {more} {rest} resid_pre resid_mid resid_post attn_out mlp_out head_out".split()
    )
