"""Packaging promises: what the wheel holds, what an import costs in modules, one version everywhere."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
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
    ours = [p for p in (ROOT / "steerfn").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {"_page.py", "page.html.j2", "page.css"} <= {p.name for p in ours}
    assert {str(p.relative_to(ROOT)) for p in ours} <= set(names)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_source_distribution_runs_its_own_tests(tmp_path):
    """Unpacked and installed in a new environment, which has the packages of this one and not this checkout."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    templates = {str(p.relative_to(ROOT)) for form in ("*.j2", "*.css") for p in (ROOT / "steerfn").rglob(form)}
    assert templates and all((unpacked / each).is_file() for each in templates)
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    (packages,) = (tmp_path / "venv").rglob("site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not followed

    def run(*arguments):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([python, *arguments], cwd=unpacked, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--ignore-installed", ".")
    assert Path(run("-c", "import steerfn; print(steerfn.__file__)").strip()).is_relative_to(tmp_path)
    files = "test_packaging test_first_import test_architecture values/test_site values/files/test_save_load"
    files += " test_readme test_notebooks output/test_page"
    run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *(f"tests/{each}.py" for each in files.split()))


def test_pitfall_30_one_version():
    assert sf.__version__ == metadata.version("steerfn")
    assert f'version = "{sf.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {sf.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {sf.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_package_is_found_beside_its_clone(tmp_path):
    """A folder of the same name in the working directory is an empty namespace package, which must not win."""
    (tmp_path / "steerfn").mkdir()
    code = "import steerfn; print(steerfn.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{sf.__version__}\n", done.stderr


def pins(name):
    """What a file pins: hashes by requirement, whatever the platform."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.split()[0]: set(re.findall(r"--hash=sha256:([0-9a-f]{64})(?!\S)", line)) for line in lines}


def test_every_required_package_is_imported_somewhere():
    [listed] = re.findall(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    required = {re.match(r'\s*"([a-z]+)', line)[1] for line in listed.splitlines()}
    code = "\n".join(file.read_text(encoding="utf8") for file in (ROOT / "steerfn").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.M))
    assert {"torch", "einops", "beartype"} <= required <= imported


def test_what_pages_are_made_with_comes_with_a_required_package():
    """jinja2 is torch's; so there is no installation of this package without it, and no extra that names it."""
    needed = [each for package in ("torch", "jinja2") for each in metadata.requires(package) if "extra ==" not in each]
    assert {"jinja2", "markupsafe"} <= {re.match(r"[A-Za-z0-9_.-]+", each)[0].lower() for each in needed}


def test_core_packages_are_pinned_in_the_constraints():
    pinned = {pin.split("==")[0] for pin in pins("constraints.txt")}
    names = {re.split(r"[>=<\[; ]", d)[0].lower() for d in metadata.requires("steerfn")} - {"steerfn"}
    assert names - {"vllm"} <= pinned  # vLLM pins a torch and a transformers of its own: an environment for itself


def test_what_is_installed_by_hash_is_what_is_pinned_for_everyone():
    everyone, cpu = pins("constraints.txt"), pins("requirements/torch-cpu.txt")
    serve, test, torch = (pins(f"requirements/{name}.txt") for name in ("serve", "test", "torch"))
    assert all((serve | test | torch | cpu).values()) and not any(everyone.values())
    assert test.keys() < everyone.keys() and torch.keys() < everyone.keys() and not test.keys() & torch.keys()
    assert serve.items() < test.items()
    assert [pin.removesuffix("+cpu") for pin in cpu] == [pin for pin in torch if pin.startswith("torch==")]
    backend = re.search(r'requires = \["(.*)"\]', (ROOT / "pyproject.toml").read_text())[1]
    assert backend in serve  # so that this package is built without fetching anything


def test_images_start_from_a_digest_install_by_hash_and_do_not_run_as_root():
    files = [path.read_text() for path in (ROOT / "docker").rglob("Dockerfile")]
    (base,) = {re.search(r"^ARG BASE=(.*)$", text, re.MULTILINE)[1] for text in files}
    assert len(files) == 2 and re.fullmatch(r"python:\S+@sha256:[0-9a-f]{64}", base)
    for text in files:
        assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${BASE}"]
        assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001"]
        installs = re.findall(r"pip install .*(?:\\\n.*)?", text)
        assert all("--require-hashes" in each or "--no-deps --no-build-isolation ." in each for each in installs)


def test_everything_public_is_importable_and_documented():
    for name in [n for n in dir(sf) if not n.startswith("_")]:
        assert getattr(sf, name) is not None
    api = "layout SteeringVector save load add ablate project clamp rotate renorm chain identity at everywhere prompt"
    more = "generated last_prompt_token positions when cosine_above projection_above rows scheduled steer functional"
    rest = "capture mean_difference activations generate stream from_pretrained demo_model SteerError"
    assert all(
        hasattr(sf, n) for n in f"{api} {more} {rest} resid_pre resid_mid resid_post attn_out mlp_out head_out".split()
    )
