"""Group a: the machine, and the library that was built elsewhere for it alone."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from hf_qrnn import kernels
from hf_qrnn.speed.timing import interleave, stream_copy

from .plan import ROOT, Record, Setting, SkippedError

PRODUCT = 8192  # rows and columns of the product whose rate is measured


def environment(setting: Setting) -> Iterator[Record]:
    """Record the versions of everything that could explain a number, then this card's rates."""
    record: Record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        # Under a sandboxed kernel profilers and sanitizers do not work.
        "kernel": platform.release(),
    }
    if not setting.dry:
        record |= {
            "device": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
        }
    for name, command in {
        "driver_and_clock": [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm",
            "--format=csv,noheader",
        ],
        "nvcc": ["nvcc", "--version"],
    }.items():
        record[name] = _said_by(command)
    yield {"status": "measured", **record}
    yield rates(setting)


def _said_by(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"no {command[0]} on PATH"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return "".join(done.stdout.strip().splitlines()[-1:]) or done.stderr.strip()


def rates(setting: Setting) -> Record:
    """Measure the two ceilings of this card: a large copy and a large product in bfloat16."""
    copy = stream_copy(setting.device, 1 << 20 if setting.dry else 4 << 30)
    size = 64 if setting.dry else PRODUCT
    # Of random numbers: a product of zeros is faster than any that is wanted.
    a, b = (torch.randn(size, size, device=setting.device).bfloat16() for _ in range(2))
    calls = {"copy": copy.call, "product": lambda: torch.mm(a, b)}
    found = interleave(calls, device=setting.device, seconds=2 * setting.seconds)
    terabytes = copy.rate(found["copy"]) / 1e3
    teraflops = 2 * size**3 / found["product"].median / 1e12
    return {
        "status": "measured",
        "bench": "rates",
        "copy_tb_per_second": round(terabytes, 4),
        "bf16_tflops": round(teraflops, 4),
        "say": f"copy {terabytes:.2f} TB/s, bf16 product {teraflops:.0f} TFLOP/s",
    }


def library(setting: Setting) -> Iterator[Record]:
    """Load the library as it was built elsewhere, run its self-test, and time its first call."""
    started = time.perf_counter()
    reason = kernels.unavailable(torch.device(setting.device))
    first = time.perf_counter() - started
    loaded = kernels.load()
    yield {
        "status": "passed" if reason is None else "failed",
        "reason": reason,
        "path": str(loaded.path),
        # Of a process in which torch has a context: the library's own runtime finds it, and
        # modules are loaded when their first kernel is wanted.
        "first_call_ms": round(1e3 * first, 1),
        **loaded.info,
    }


def build(setting: Setting) -> Iterator[Record]:
    """Build the library here, where the carried one does not work."""
    if kernels.unavailable(torch.device(setting.device)) is None:
        raise SkippedError("the carried library works")
    if not setting.dry and shutil.which("nvcc") is None:
        raise SkippedError("no nvcc on PATH")
    settings = {"HF_QRNN_BUILD": "cpu" if setting.dry else "cuda"}
    if not setting.dry:
        settings["HF_QRNN_CUDA_ARCHS"] = "{}{}".format(*torch.cuda.get_device_capability())
    started = time.perf_counter()
    # Into the folder of the carried one, where every later step looks.
    done = subprocess.run(
        [sys.executable, str(ROOT / "hf_qrnn/kernels/build.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **settings},
    )
    seconds = round(time.perf_counter() - started, 1)
    if done.returncode:
        yield {"status": "failed", "reason": (done.stderr or done.stdout)[-2000:]}
    else:
        yield {"status": "passed", "seconds": seconds, "path": done.stdout.strip()}
