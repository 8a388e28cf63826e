"""Everything that travels to the machine of a GPU: the library, data and wheels in one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .plan import CALLS, ROOT, STEPS, steps_of
from .training import FOLDER, SPLITS

ARCHITECTURE = "90"  # the library for one alone is a fraction of that for all
MOST_LIBRARY = 10 << 20
MOST_ALL = 60 << 20
MOST_COMMAND = 2_000


def prepare(folder: Path, *, data: Path | None, wheels: Path | None, mode: str = "cuda") -> str:
    """Fill `folder`, and return what to do with it.

    Args:
        folder: Outside of git, inside the checkout: it is named as carried.
        data: Folder of Multi30k's `train.de.xz` and so on; None leaves out what is not there.
        wheels: Folder of wheels of other packages; None for none.
        mode: "cuda", or "cpu" for a library that stands in for it.

    Raises:
        FileNotFoundError: If a file of the data is not there.
        RuntimeError: If the library cannot be built, or is too large to travel.
    """
    library = build(folder / "kernels", mode)
    lines = [size_of(library, folder)]
    if library.stat().st_size > MOST_LIBRARY:
        raise RuntimeError(f"the library must be at most 10 MB, but is {lines[0]}")
    for name in SPLITS.values() if data is not None else ():
        for side in ("de", "en"):
            lines.append(_copy(data / f"{name}.{side}.xz", folder / FOLDER, folder))  # type: ignore[operator]
    for wheel in sorted(wheels.glob("*.whl")) if wheels is not None else ():
        lines.append(_copy(wheel, folder / "wheels", folder))
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total > MOST_ALL:
        raise RuntimeError(f"`{folder}` must be at most 60 MiB, but is {total / 2**20:.1f}.")
    lines.append(f"{total / 1e6:.2f} MB in all; carry {folder}")
    for call in CALLS:
        seconds = sum(STEPS[name].limit for name in steps_of(call))
        lines += [f"call {call}, at most {seconds} s:", f"    {command(call, folder)}"]
    return "\n".join(lines)


def command(call: int, folder: Path) -> str:
    """Write the command of a call, for the root of the checkout there."""
    name = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    text = f"PYTHONUNBUFFERED=1 python3 scripts/gpu_check.py --call {call} --carried {name}"
    assert len(text) <= MOST_COMMAND
    return text


def build(target: Path, mode: str) -> Path:
    """Build the library below `target`, where `TORCH_EXTENSIONS_DIR` finds it; return its path.

    Raises:
        RuntimeError: With what the compiler said.
    """
    settings = {
        "HF_QRNN_BUILD": mode,
        "HF_QRNN_CUDA_ARCHS": ARCHITECTURE,
        "TORCH_EXTENSIONS_DIR": str(target),
        "PYTHONPATH": str(ROOT),
    }
    code = "from hf_qrnn.kernels.build import build, mode_from_environment as mode\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(build(mode()))"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return Path(done.stdout.strip())


def _copy(path: Path, target: Path, folder: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` must be there to be carried, but is not.")
    target.mkdir(parents=True, exist_ok=True)
    return size_of(Path(shutil.copy(path, target)), folder)


def size_of(path: Path, folder: Path) -> str:
    """Write a file's place and size."""
    place = path.relative_to(folder) if path.is_relative_to(folder) else path
    return f"{place}: {path.stat().st_size / 1e6:.2f} MB"
