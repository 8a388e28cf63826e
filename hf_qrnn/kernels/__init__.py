"""The compiled pooling library: finds it, loads it at first use, says why it cannot be used.

Importing does nothing. `hf_qrnn.kernels.build` makes the library.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

NAMESPACE = "hf_qrnn_kernels"
CURE = "run `python -m hf_qrnn.kernels.build`"
# The kinds that the library knows, as `enum class Pooling` of csrc/pool_args.h numbers them. Model
# folders of every release read this.
POOLING_NUMBERS = {"f": 0, "fo": 1, "ifo": 2}


class Loaded(NamedTuple):
    """A library's `path` and build.json (`info`), or the `reason` why there is none."""

    path: Path | None
    info: dict[str, Any]
    reason: str | None


def find() -> Loaded:
    """Find the library of these very sources: beside this file, else in the user's cache."""
    # Not above: `python -m hf_qrnn.kernels.build` would warn that its package has it already.
    from .build import INFO_NAME, LIBRARY_NAME, cache_folder, source_hash

    wanted = source_hash()
    found: list[tuple[int, Path, dict[str, Any]]] = []
    candidates = [Path(__file__).resolve().parent / "lib"]
    if cache_folder().is_dir():
        candidates += sorted(cache_folder().iterdir())
    for folder in candidates:
        if not (folder / LIBRARY_NAME).is_file() or not (folder / INFO_NAME).is_file():
            continue
        info = json.loads((folder / INFO_NAME).read_text(encoding="utf-8"))
        if info.get("sources") == wanted:
            found.append((len(info["cuda_archs"]), folder / LIBRARY_NAME, info))
    if not found:
        return Loaded(None, {}, f"the library is not built: {CURE}")
    # A library with CUDA serves the CPU too.
    _, path, info = max(found, key=lambda entry: entry[0])
    return Loaded(path, info, None)


@functools.cache
def load() -> Loaded:
    """Load the library, once in a process.

    A second copy of it would end the process, so an operation that is there already is taken.
    """
    # In functions: the engine finds its library here, and runs without torch.
    import torch

    found = find()
    if found.path is None or hasattr(getattr(torch.ops, NAMESPACE), "pool_forward"):
        return found
    try:
        torch.ops.load_library(str(found.path))
    except OSError as error:
        # torch's own sentence says nothing; the loader's is the cause.
        cause = error.__cause__ or error
        return Loaded(None, found.info, f"'{found.path}' does not load ({cause}): {CURE}")
    return found


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Say why the library cannot pool on `device`, or return None if it can.

    The first question about a CUDA device runs a kernel on it: a device that the library has no
    code for, or a driver that is too old, shows only then.
    """
    import torch

    if device.type not in ("cpu", "cuda"):
        return f"the compiled library has no code for {device.type}"
    loaded = load()
    if loaded.reason is not None or device.type == "cpu":
        return loaded.reason
    if not loaded.info.get("cuda_archs"):
        return f"the library is built without CUDA: set HF_QRNN_BUILD=cuda and {CURE}"
    if not torch.cuda.is_available():
        return "built, no device"
    gates = torch.ones(1, 2, 4, device=device)
    try:
        h = operation("pool_forward")(gates, *[None] * 4, 0, 0.0, False, False, False)[0]
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"its CUDA kernel does not run here ({error})"
    z, f = torch.tensor(1.0).tanh(), torch.tensor(1.0).sigmoid()
    wanted = torch.stack([(1 - f) * z, (1 - f * f) * z])
    right = bool((h.cpu()[0, :, 0] - wanted).abs().max() < 1e-5)
    return None if right else "its CUDA kernel gives wrong results here"


@functools.cache
def operation(name: str) -> Any:
    """Return the library's operation `name`; `unavailable` has said that it is there."""
    import torch

    return getattr(getattr(torch.ops, NAMESPACE), name).default
