"""Checks of what torch asks of an operation: gradients, `opcheck`, one compiled graph."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hf_qrnn import QRNN, pool, use_backend
from hf_qrnn.kernels import POOLING_NUMBERS
from hf_qrnn.model.backends_qrnn import unavailable
from hf_qrnn.model.pooling_qrnn import NUM_GATES


def contracts(
    backends: Sequence[str] = ("native", "triton"),
    device: str = "cuda",
    compiler: str = "inductor",
) -> Iterator[dict[str, Any]]:
    """Check every contract with every backend; yield a record for each.

    Args:
        backends: Backends of pooling.
        device: Of the tensors.
        compiler: A backend of torch.compile.
    """
    for backend in backends:
        reason = unavailable(backend, torch.device(device))
        if reason is not None:
            yield {"status": "skipped", "reason": reason, "backend": backend}
            continue
        for name, case in {
            "gradcheck": gradcheck,
            "opcheck": opcheck,
            "torch.compile": functools.partial(compiles, compiler),
        }.items():
            failure = None
            with use_backend(backend):
                try:
                    case(device)
                except Exception as error:  # whatever it is, the other cases must have their turn
                    failure = f"{type(error).__name__}: {error}"[:2000]
            status = "passed" if failure is None else "failed"
            yield {"status": status, "reason": failure, "backend": backend, "case": name}


def gradcheck(device: str) -> None:
    """Check the gradients of all results in all arguments, for every kind with every option."""
    batch, length, hidden = 2, 35, 2
    for pooling in POOLING_NUMBERS:  # the kinds that kernels know
        channels = NUM_GATES[pooling] * hidden
        sizes = [(batch, length, channels), (batch, channels), (batch, hidden)]
        leaves = [torch.randn(x, device=device, dtype=torch.float64) for x in sizes]
        call = functools.partial(
            _pooled,
            pooling=pooling,
            mask=torch.rand(batch, length, device=device) < 0.8,
            seed=torch.tensor(7, device=device),
            zoneout=0.3,
        )
        torch.autograd.gradcheck(call, [x.requires_grad_() for x in leaves], fast_mode=True)


def _pooled(
    gates: torch.Tensor, bias: torch.Tensor, state: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, ...]:
    output = pool(gates, bias=bias, initial_state=state, return_c=True, **options)
    return tuple(x for x in output if x is not None)


def opcheck(device: str) -> None:
    """Check schema, fake results, autograd and compiling of the operation, as torch does."""
    gates = torch.randn(2, 35, 12, device=device, requires_grad=True)
    arguments = (gates, None, None, None, None, "fo", 0.0, False, True, True, "auto")
    torch.library.opcheck(torch.ops.hf_qrnn.pool_v2.default, arguments)


def compiles(compiler: str, device: str) -> None:
    """Check that a compiled training step of a layer is one graph and gives the same."""
    layer = QRNN(16, 16, batch_first=True).to(device)
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    x = torch.randn(3, 40, 16, device=device)
    results = []
    for module in (layer, compiled):
        layer.zero_grad()
        h = module(x)[0]
        h.square().sum().backward()
        results.append([h.detach(), *(p.grad.clone() for p in layer.parameters())])
    # Matrix products of a GPU may round to ten bits.
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)
