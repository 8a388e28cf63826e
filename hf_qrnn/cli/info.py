"""The command `hf-qrnn info`."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import Any

from hf_qrnn.data.box import describe
from hf_qrnn.data.json_files import read_json

from .models import model_name, scores_of

_TEXT = """\
Print the versions of the packages; for every device which pooling backends (the programs that run
the recurrence) are available, or why one is not; and what the compiled library was built for. With
MODEL, print what the model's folder says of it instead."""

_DTYPES = {
    "I8": "int8", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip


def add_info(commands: Any) -> None:
    """Add `info` to the commands of a parser."""
    parser = commands.add_parser(
        "info", help="print versions and backends, or facts of a model", description=_TEXT
    )
    parser.set_defaults(run=_info)
    model = "folder with a saved model, or its name in the box (hf-qrnn models)"
    parser.add_argument("model", metavar="MODEL", nargs="?", type=model_name, help=model)


def _info(args: argparse.Namespace) -> None:
    if args.model is not None:
        _print_model(Path(args.model))
        return
    import platform
    from importlib.metadata import version

    from hf_qrnn import __version__

    print(f"hf_qrnn       {__version__}")
    print(f"python        {platform.python_version()}")
    # Not by importing them: transformers takes longer than all else here.
    for package in ("torch", "transformers", "tokenizers"):
        print(f"{package:13} {version(package)}")
    _print_backends()


def _print_model(folder: Path) -> None:
    """Print what a model's folder says of it, without loading it."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"`MODEL` must be a folder with a saved model, but is {str(folder)!r}.")
    model = describe(folder)
    kinds = read_json(folder / "config.json").get("architectures")
    facts = {
        "folder": str(model.folder),
        "class": ", ".join(kinds) if isinstance(kinds, list) and kinds else "not stated",
        "task": model.task,
        "languages": ", ".join(model.languages) or "not stated",
        "weights": _weights(folder),
        "size": f"{model.num_bytes / 1e6:.1f} MB",
        "scores": scores_of(model),
        "licence": model.license,
    }
    for name, value in facts.items():
        print(f"{name:13} {value}")


def _weights(folder: Path) -> str:
    """Count the weights of each type."""
    from hf_qrnn.engine.weights import Weights

    weights, counts = Weights(folder), Counter[str]()
    for name, dtype in weights.dtypes.items():
        counts[_DTYPES.get(dtype, dtype)] += math.prod(weights.shapes[name])
    return ", ".join(f"{count:,} {dtype}" for dtype, count in counts.items())


def _print_backends() -> None:
    """Print for every backend and device whether it can pool there or why not, and the library."""
    import torch

    from hf_qrnn import kernels
    from hf_qrnn.model.backends_qrnn import BACKENDS, unavailable

    count = torch.cuda.device_count()
    # Without a GPU, one line for each backend says why there would be none on it.
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(max(count, 1)))]
    print("pooling backends, the first available one is used:")
    for device in devices:
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" and count else ""
        print(f"  {device if count else device.type}{name}")
        for backend in BACKENDS if device.type == "cuda" else ("native", "torch"):
            reason = unavailable(backend, device)
            if reason is None and device.type == "cuda" and not count:
                reason = "no device"
            print(f"    {backend:9} {'available' if reason is None else reason}")
    library = kernels.load()
    if library.path is None:  # the lines above say why
        return
    print("compiled library")
    print(f"  path          {library.path}")
    print(f"  ABI target    torch {library.info['abi_target']}")
    archs = " ".join(f"sm_{arch}" for arch in library.info["cuda_archs"])
    print(f"  CUDA          {archs or 'none'}")
    print(f"  nvcc          {library.info['nvcc'] or 'none'}")
    print(f"  CPU           {kernels.operation('simd')('')}")
