"""Recurrences of other packages on a GPU, where they are installed: never a dependency.

All of them scan c_t = a_t . c_{t-1} + b_t. What they read and write differs from fo-pooling, so
they are compared per byte. Shapes: B batch, T time, H channels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hf_qrnn.speed.timing import Call

Shape = tuple[int, int, int]


class Peer(NamedTuple):
    """Calls, and the bytes an element that each must move."""

    forward: Call
    both: Call
    forward_bytes: int
    both_bytes: int


def _with_gradients(scan: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> Call:
    with torch.no_grad():
        cotangent = torch.randn_like(scan(*leaves))
    return lambda: torch.autograd.grad(scan(*leaves), leaves, cotangent)


def _without_graph(scan: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> Call:
    def call() -> object:
        with torch.no_grad():
            return scan(*leaves)

    return call


def _peer(scan: Callable[..., torch.Tensor], leaves: list[torch.Tensor], *num: int) -> Peer:
    size = leaves[0].element_size()
    calls = _without_graph(scan, leaves), _with_gradients(scan, leaves)
    return Peer(*calls, *(size * count for count in num))


def _random(*shape: int, device: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_()


def _hgrn(name: str, shape: Shape, device: str) -> Peer:
    """Of fla: x and the logarithm of the gate in, (B, T, H); backward reads g, o, do."""
    scan: Any = getattr(importlib.import_module("fla.ops.hgrn"), name)
    x, g = (_random(*shape, device=device) for _ in range(2))
    with torch.no_grad():
        g.copy_(torch.nn.functional.logsigmoid(g))
    return _peer(lambda x, g: scan(x, g)[0], [x, g], 3, 3 + 5)


def _accelerated_scan(shape: Shape, device: str) -> Peer:
    """Load accelerated-scan; its layout is (B, H, T), T a power of two, gates and tokens in."""
    scan: Any = importlib.import_module("accelerated_scan.warp").scan
    batch, length, hidden = shape
    gates, tokens = (_random(batch, hidden, length, device=device) for _ in range(2))
    with torch.no_grad():
        gates.sigmoid_()
    return _peer(scan, [gates, tokens], 3, 3 + 5)


def _sru(shape: Shape, device: str) -> Peer:
    """Load SRU's elementwise part in float32: u of three gates and x in, h and c out."""
    recurrence: Any = importlib.import_module("sru.ops").elementwise_recurrence_gpu
    batch, length, hidden = shape
    of_float = {"device": device, "dtype": torch.float32}
    u, x = (
        _random(length, batch, 3 * hidden, **of_float),
        _random(length, batch, hidden, **of_float),
    )
    weight, bias = (torch.zeros(2 * hidden, device=device) for _ in range(2))
    c0 = torch.zeros(batch, hidden, device=device)

    def scan(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return recurrence(u, x, weight, bias, c0, 0, hidden, False, True)[0]

    return _peer(scan, [u, x], 6, 6 + 10)


def _rg_lru(shape: Shape, device: str) -> Peer:
    raise ImportError("TensorRT-LLM has it as a source file for its plugins, not as a function")


PEERS: dict[str, Callable[[Shape, str], Peer]] = {
    "fla chunk_hgrn": lambda shape, device: _hgrn("chunk_hgrn", shape, device),
    "fla fused_recurrent_hgrn": lambda shape, device: _hgrn("fused_recurrent_hgrn", shape, device),
    "accelerated-scan": _accelerated_scan,
    "SRU": _sru,
    "rg_lru": _rg_lru,
}


def load(name: str, shape: Shape, device: str = "cuda") -> Peer | str:
    """Return the peer called `name`, or say why it cannot be measured here."""
    try:
        return PEERS[name](shape, device)
    except (ImportError, AttributeError, TypeError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def kernel_names(call: Call) -> list[str]:
    """Names of the CUDA kernels that `call` launches, those with most time first."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = [x for x in profiler.key_averages() if x.device_type == DeviceType.CUDA]
    return [x.key for x in sorted(events, key=lambda x: -x.self_device_time_total)]
