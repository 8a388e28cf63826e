"""The build of the compiled library: g++, and nvcc where it is there; standard library only.

    python -m hf_qrnn.kernels.build          # into the user's cache, where hf_qrnn finds it

The environment variable HF_QRNN_BUILD says what to build: "auto" (the default: what this machine
can, never an error), "cpu", "cuda" (an error where impossible) or "off". HF_QRNN_CUDA_ARCHS is a
list of compute capabilities, "75;80;90;100;120" if not set; the lowest one's PTX is included, so
that newer devices run it too.

The library uses torch's stable ABI of 2.10 and no Python symbols: one file serves CPU and CUDA
builds of any later torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

MODES = ("auto", "cpu", "cuda", "off")
LIBRARY_NAME, INFO_NAME = "hf_qrnn_kernels.so", "build.json"
ABI_TARGET = "2.10"
CUDA_ARCHS = "75;80;90;100;120"
SOURCES = Path(__file__).resolve().parent / "csrc"

_COMMON = ("-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL")
_CXX = (
    *("-O2", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=fast"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
)
_NVCC = (
    *("-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA", "-DQRNN_WEAK_STREAM"),
    *("-Werror", "all-warnings"),
)
# One source, pool_cpu_kernels.h, compiled for three instruction sets; the CPU chooses when it runs.
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_ISA = {"cpu_avx2.cpp": _AVX2, "cpu_avx512.cpp": _AVX512}

# The engine's library: without torch, and with its own C++ runtime, so that one file is enough.
ENGINE_NAME = "hf_qrnn_engine.so"
ENGINE_SOURCES = SOURCES / "engine"
_ENGINE_CXX = ("-std=c++17", *_CXX, "-Wno-maybe-uninitialized")
_ENGINE_LINK = ("-shared", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")
_ENGINE_ISA = {
    "engine_avx2.cpp": _AVX2,
    "engine_avx512.cpp": _AVX512,
    "engine_vnni.cpp": (*_AVX512, "-mavx512vnni"),
}


class BuildError(Exception):
    """A reason for which the library could not be built."""


class Tools(NamedTuple):
    """The tools of a build: torch's folder, compilers (nvcc None without CUDA) and the archs."""

    torch: Path
    cxx: str
    nvcc: str | None
    archs: tuple[str, ...]


def mode_from_environment() -> str:
    """Read the value of HF_QRNN_BUILD.

    Raises:
        BuildError: If it is none of `MODES`.
    """
    mode = os.environ.get("HF_QRNN_BUILD") or "auto"
    if mode not in MODES:
        raise BuildError(f"`HF_QRNN_BUILD` must be one of {', '.join(MODES)}, but is {mode!r}.")
    return mode


def find_tools(mode: str) -> Tools:
    """Find torch and the compilers for `mode`.

    Raises:
        BuildError: If something that `mode` needs is missing.
    """
    if platform.system() != "Linux":
        raise BuildError(f"the compiled library is for Linux, but this is {platform.system()}")
    # Not `import torch`: it takes seconds, and a build in isolation has none.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError(
            "torch is not installed in the environment that builds (with pip, use "
            "--no-build-isolation, or run `python -m hf_qrnn.kernels.build` later)"
        )
    torch = Path(spec.origin).parent
    if not (torch / "include/torch/csrc/stable/library.h").is_file():
        raise BuildError(f"torch has no headers of the stable ABI in {torch / 'include'}")
    cxx = _find_cxx()
    nvcc: str | None = None
    archs: tuple[str, ...] = ()
    if mode != "cpu" and cuda_sources():
        nvcc = _find_nvcc()
        archs = tuple((os.environ.get("HF_QRNN_CUDA_ARCHS") or CUDA_ARCHS).split(";"))
        if not all(arch.isdigit() for arch in archs):
            raise BuildError(
                "`HF_QRNN_CUDA_ARCHS` must be numbers like '80;90', "
                f"but is {os.environ['HF_QRNN_CUDA_ARCHS']!r}."
            )
    if mode == "cuda" and nvcc is None:
        raise BuildError("there is no nvcc: install the CUDA toolkit, or set CUDA_HOME")
    return Tools(torch, cxx, nvcc, archs if nvcc else ())


def _find_nvcc() -> str | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(variable)
        if root and (nvcc := shutil.which("nvcc", path=str(Path(root) / "bin"))):
            return nvcc
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def cpp_sources() -> list[Path]:
    """List the C++ files to compile on this machine's architecture."""
    files = sorted(SOURCES.glob("*.cpp"))
    if platform.machine() in ("x86_64", "AMD64"):
        return files
    return [file for file in files if file.name not in _ISA]


def cuda_sources() -> list[Path]:
    """List the CUDA files to compile."""
    return sorted((SOURCES / "cuda").glob("*.cu"))


def source_hash() -> str:
    """Make a name of the sources and flags: a library of another name is out of date."""
    digest = hashlib.sha256(repr((_COMMON, _CXX, _NVCC, sorted(_ISA.items()))).encode())
    for file in sorted(SOURCES.rglob("*")):
        if file.is_file() and ENGINE_SOURCES not in file.parents:
            digest.update(f"{file.relative_to(SOURCES)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder(name: str | None = None) -> Path:
    """Return the place of the libraries of these sources, one folder each; or of other `name`."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR") or os.environ.get("XDG_CACHE_HOME")
    base = Path(given) if given else Path.home() / ".cache"
    return base / "hf_qrnn" / f"{platform.machine()}-{name or source_hash()}"


def engine_path() -> Path:
    """Return the place of the engine's library of these very sources in the user's cache."""
    digest = hashlib.sha256(repr((_ENGINE_CXX, _ENGINE_LINK, sorted(_ENGINE_ISA.items()))).encode())
    # What its sources include lies beside the folder of the engine.
    for file in sorted([*ENGINE_SOURCES.iterdir(), *SOURCES.glob("*.h")]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return cache_folder(f"engine-{digest.hexdigest()[:16]}") / ENGINE_NAME


def build_engine(folder: Path | None = None) -> Path:
    """Build the engine's library unless it is there, and return its path.

    Args:
        folder: Where to write it; None is the user's cache.

    Raises:
        BuildError: If it cannot be built; what the compiler said is in the text.
    """
    if platform.system() != "Linux":
        raise BuildError(f"the compiled library is for Linux, but this is {platform.system()}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return _compile_engine(folder / ENGINE_NAME)
    target = engine_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / "lock"):
        if not target.is_file():
            with tempfile.TemporaryDirectory(dir=target.parent) as name:
                _compile_engine(Path(name) / ENGINE_NAME).rename(target)
    return target


def _compile_engine(library: Path) -> Path:
    cxx = _find_cxx()
    others = platform.machine() not in ("x86_64", "AMD64")
    with tempfile.TemporaryDirectory() as name:
        jobs = [
            [cxx, *_ENGINE_CXX, *flags, "-c", str(source), "-o", f"{name}/{source.stem}.o"]
            for source in sorted(ENGINE_SOURCES.glob("*.cpp"))
            for flags in [_ENGINE_ISA.get(source.name, ())]
            if not (flags and others)
        ]
        with ThreadPoolExecutor(max(1, min(len(jobs), os.cpu_count() or 1))) as pool:
            list(pool.map(_run, jobs))
        _run([cxx, *_ENGINE_LINK, *(job[-1] for job in jobs), "-o", str(library)])
    return library


def _find_cxx() -> str:
    cxx = shutil.which(os.environ.get("CXX") or "g++")
    if cxx is None:
        raise BuildError("there is no C++ compiler: install g++, or set CXX")
    return cxx


def variant(tools: Tools) -> str:
    """Name the folder of a build with `tools`: its contents, and by which nvcc."""
    if tools.nvcc is None:
        return "cpu"
    return f"cuda-{nvcc_version(tools.nvcc)}-sm{'-'.join(tools.archs)}"


def nvcc_version(nvcc: str) -> str:
    """Return the release of `nvcc`, as 13.0.88."""
    text = _run([nvcc, "--version"])
    return text.rpartition(", V")[2].split()[0] if ", V" in text else "unknown"


def build(mode: str = "auto", folder: Path | None = None) -> Path | None:
    """Build the library unless it is there, and return its path.

    Args:
        mode: One of `MODES`.
        folder: Where to write the library and its build.json; None is the user's cache.

    Returns:
        The library's path; None if `mode` is "off".

    Raises:
        BuildError: If it cannot be built; what the compiler said is in the text.
    """
    if mode == "off":
        return None
    tools = find_tools(mode)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _compile_into(folder, tools)
        return folder / LIBRARY_NAME
    cache = cache_folder()
    target = cache / variant(tools)
    cache.mkdir(parents=True, exist_ok=True)
    # Several processes of one run may all want it first.
    with _locked(cache / "lock"):
        if not (target / LIBRARY_NAME).is_file():
            # Into a folder beside it and then renamed: nobody ever sees half a library.
            with tempfile.TemporaryDirectory(dir=cache) as name:
                finished = Path(name) / "finished"
                finished.mkdir()
                _compile_into(finished, tools)
                shutil.rmtree(target, ignore_errors=True)
                finished.rename(target)
    return target / LIBRARY_NAME


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile_into(folder: Path, tools: Tools) -> None:
    """Compile, link and describe the library in `folder`."""
    include = ("-isystem", str(tools.torch / "include"), f"-I{SOURCES}")
    jobs: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        for source in cpp_sources():
            flags = (*_COMMON, *_CXX, *_ISA.get(source.name, ()), *include)
            jobs.append([tools.cxx, *flags, "-c", str(source), "-o", f"{name}/{source.stem}.o"])
        if tools.nvcc is not None:
            flags = (*_COMMON, *_NVCC, "-ccbin", tools.cxx, *_gencode(tools.archs), *include)
            for source in cuda_sources():
                object_file = f"{name}/{source.stem}.cu.o"
                jobs.append([tools.nvcc, *flags, "-c", str(source), "-o", object_file])
        # The slowest first: nvcc's job is last in the list.
        with ThreadPoolExecutor(max(1, min(len(jobs), os.cpu_count() or 1))) as pool:
            list(pool.map(_run, reversed(jobs)))
        objects = [job[-1] for job in jobs]
        _run(_link_command(tools, objects, folder / LIBRARY_NAME))
    info = {
        "abi_target": ABI_TARGET,
        "cuda_archs": list(tools.archs),
        "nvcc": nvcc_version(tools.nvcc) if tools.nvcc else None,
        "sources": source_hash(),
    }
    (folder / INFO_NAME).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def _gencode(archs: Sequence[str]) -> list[str]:
    """Return nvcc's flags: machine code of every arch, and PTX of the lowest for newer ones."""
    lowest = min(archs, key=int)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*codes, f"-gencode=arch=compute_{lowest},code=compute_{lowest}"]


def _link_command(tools: Tools, objects: Sequence[str], library: Path) -> list[str]:
    """Return the command that links `objects` to `library`, by nvcc where there is CUDA code."""
    # torch loads its libraries privately, so ours must name them. libtorch.so is an empty shell
    # that the linker would drop; on a CUDA build of torch it brings the CUDA library along.
    flags = ["--no-as-needed", f"-L{tools.torch / 'lib'}", "-ltorch", "-ltorch_cpu"]
    flags = [flags[0], "--exclude-libs,ALL", *flags[1:]]
    if tools.nvcc is None:
        options = [f"-Wl,{flag}" if flag.startswith("--") else flag for flag in flags]
        return [tools.cxx, "-shared", *objects, *options, "-o", str(library)]
    options = []
    for flag in flags:
        options += ["-Xlinker", flag.replace(",", "=")] if flag.startswith("--") else [flag]
    command = [tools.nvcc, "-shared", "-cudart", "static", "-ccbin", tools.cxx]
    return [*command, *_gencode(tools.archs), *objects, *options, "-o", str(library)]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise BuildError(f"{Path(command[0]).name} failed ({' '.join(command)}):\n{said}")
    return done.stdout


def main() -> int:
    """Build as HF_QRNN_BUILD says; return the exit status."""
    try:
        mode = mode_from_environment()
        # First: it needs no torch.
        if mode != "off":
            build_engine()
        library = build(mode)
    except (BuildError, OSError) as error:
        print(f"hf_qrnn: no compiled library: {error}", file=sys.stderr)
        # A mistake in a variable or a build asked for by name is an error, "auto" never is.
        return 0 if os.environ.get("HF_QRNN_BUILD", "auto") in ("", "auto") else 1
    if library is not None and "--quiet" not in sys.argv[1:]:
        print(library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
