"""The operations under test: the library's, Triton's, on a CPU those of the emulated kernels."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from hf_qrnn import kernels
from hf_qrnn.kernels import POOLING_NUMBERS
from hf_qrnn.kernels.build import cache_folder, source_hash
from hf_qrnn.model.backends_qrnn import backend_named, unavailable

from .plan import ROOT, Setting, SkippedError

Operation = Callable[..., tuple[torch.Tensor, ...]]


class Operations(NamedTuple):
    """Pooling forward and backward, called as the library's; `choose` forces a form of it."""

    forward: Operation
    backward: Operation
    choose: Callable[[str], str] | None = None


def native(setting: Setting) -> Operations:
    """Return the compiled library's operations, in a dry run the emulated ones."""
    if setting.dry:
        found = emulated()
        return Operations(found.pool_forward, found.pool_backward, found.pool_form)
    reason = kernels.unavailable(torch.device(setting.device))
    if reason is not None:
        raise SkippedError(f"no compiled library for this device: {reason}")
    forward, backward = map(kernels.operation, ("pool_forward", "pool_backward"))
    return Operations(forward, backward, kernels.operation("pool_form"))


def emulated() -> Any:
    """Return torch's namespace of the CUDA kernels on the CPU; tests build the same."""
    found = torch.ops.hf_qrnn_emulated
    if not hasattr(found, "pool_forward"):
        if shutil.which("g++") is None:
            raise SkippedError("no g++ on PATH")
        module = support("cuda_emulation")
        folder = cache_folder(f"emulated-{source_hash()}")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # What defines the operations has to live as long as they do.
            emulated.library = module.Emulated(module.compile_emulated(folder))  # type: ignore[attr-defined]
    return found


def triton(setting: Setting) -> Operations:
    """Return the Triton kernels, to be called as the library's operations are."""
    reason = unavailable("triton", torch.device(setting.device))
    if reason is not None:
        raise SkippedError(reason)
    kinds = {number: kind for kind, number in POOLING_NUMBERS.items()}

    def named(operation: Operation, num_options: int) -> Operation:
        def call(*arguments: Any) -> tuple[torch.Tensor, ...]:
            tensors, options = arguments[:-num_options], arguments[-num_options:]
            return operation(*tensors, kinds[options[0]], *options[1:])

        return call

    found = backend_named("triton")
    return Operations(named(found.forward, 5), named(found.backward, 3))


def support(name: str) -> Any:
    """Import a module of the tests."""
    path = str(ROOT / "tests/support")
    if path not in sys.path:
        sys.path.insert(0, path)
    return __import__(name)


# ------------------------------------------------------------------ what a CPU has not


def synchronize(setting: Setting) -> None:
    """Wait for the GPU."""
    if not setting.dry:
        torch.cuda.synchronize()


@contextlib.contextmanager
def side_stream(setting: Setting) -> Iterator[None]:
    """Work on a stream of its own inside; in a dry run on the only one there is."""
    if setting.dry:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def graph_of(
    setting: Setting, step: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, Callable[[], object]]:
    """Capture `step` as a CUDA graph: its result, and the call that computes it anew in place."""
    if setting.dry:
        result = step()
        return result, lambda: result.copy_(step())
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return result, graph.replay
