"""Installs the registry's torch for Linux without the 3 GB of CUDA that it asks for; a CPU needs none of it.

    $ENVIRONMENT/bin/python .ci/torch_without_cuda.py requirements/torch.txt

CUDA's runtime comes along, as torch asks it whether there is a device. Libraries of the same names, whose every
function fails, stand in for all others. It takes a C compiler and binutils.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

SYSTEM = re.compile(r"(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|python[\d.]+)|ld-linux.*)\.so(\.\d+)*")


def install(requirements: Path) -> None:
    """Torch and CUDA's runtime alone, by their hashes."""
    wanted = re.findall(
        r"^(?:torch|nvidia-cuda-runtime)==.*(?:\n +--hash.*)*\n", requirements.read_text(), re.MULTILINE
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(wanted))
        file.flush()
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", file.name]
        subprocess.run(command, check=True)


def read(*command: str | Path) -> str:
    """What a program prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def missing(libraries: list[Path], there: set[str]) -> Mapping[str, Mapping[str, set[str]]]:
    """The symbols that are wanted of libraries that are not there, by library and by version ("" for none)."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    there = there | {path.name for path in libraries}
    tables = {path: read("nm", "-D", path) for path in libraries}
    defined = {name for table in tables.values() for name in re.findall(r" [A-TV-Z] ([^\s@]+)", table)}
    for path, table in tables.items():
        headers = read("objdump", "-p", path)
        needed = [
            name for name in re.findall(r"NEEDED +(\S+)", headers) if name not in there and not SYSTEM.fullmatch(name)
        ]
        owners = {}
        for library, entries in re.findall(r"required from (\S+):\n((?: +0x.*\n)+)", headers):
            owners |= {entry.split()[-1]: library for entry in entries.splitlines()}
        for symbol, version in re.findall(r" U ([^\s@]+)(?:@(\S+))?$", table, re.MULTILINE):
            if owners.get(version) in needed:
                found[owners[version]][version].add(symbol)
            elif needed and not version and symbol not in defined and re.match("cu|nccl|nv", symbol):
                found[needed[0]][""].add(symbol)  # it does not say of which: any will do
        for library in needed:
            found[library][""] |= set()
    return found


def stand_in(path: Path, versions: Mapping[str, set[str]]) -> None:
    """A library that has those symbols."""
    symbols = sorted(set().union(*versions.values()))
    code = ["int fail(void) { return 1; }", *(f'int {each}(void) __attribute__((alias("fail")));' for each in symbols)]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "source.c"), Path(folder, "versions")
        source.write_text("\n".join(code))
        script.write_text(
            "".join(f"{name} {{ {'; '.join(sorted(each))}; }};\n" for name, each in versions.items() if name)
        )
        command = ["cc", "-shared", "-fPIC", "-w", source, f"-Wl,-soname,{path.name}", "-o", path]
        subprocess.run([*command, f"-Wl,--version-script,{script}"] if any(versions) else command, check=True)


def main() -> None:
    """The package, then what it is linked with."""
    install(Path(sys.argv[1]))
    packages = Path(sysconfig.get_path("platlib"))
    folder = packages / "torch" / "lib"
    there = {path.name for path in packages.glob("nvidia/**/lib*.so*")}
    for name, versions in missing(sorted(folder.glob("*.so*")), there).items():
        stand_in(folder / name, versions)


if __name__ == "__main__":
    main()
