"""Eqs. 3 to 6 as a plain loop in float64, and helpers to compare `pool` with it."""

from collections.abc import Sequence

import torch

from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS
from hf_qrnn.model.pooling_qrnn import NUM_GATES, PoolOutput


def split_mix(x: int) -> int:
    """Apply the finaliser of SplitMix64, in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def keeps(seed: int, b: int, t: int, channel: int, probability: float) -> bool:
    """Tell whether one forget gate is left alone (Eq. 6)."""
    golden = 0x9E3779B97F4A7C15
    key = split_mix((seed + (b * 2**32 + t + 1) * golden) % 2**64)
    bits = split_mix((key + (channel + 1) * golden) % 2**64) >> 40
    return bits >= round(probability * 2**24)


def logistic(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def loop(
    gates: torch.Tensor,
    pooling: str,
    bias: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    mask: Sequence[Sequence[int]] | None = None,
    zoneout: float = 0.0,
    seed: int = 0,
    reverse: bool = False,
) -> PoolOutput:
    """Pool by Eqs. 3 to 6, row by row and step by step."""
    kind, gates = POOL_KINDS[pooling], gates.double()
    batch, length = gates.shape[:2]
    hidden = gates.shape[2] // NUM_GATES[pooling]
    h = [[torch.zeros(0)] * length for _ in range(batch)]
    c = [[torch.zeros(0)] * length for _ in range(batch)]
    finals = []
    for b in range(batch):
        state = torch.zeros(hidden).double() if initial_state is None else initial_state[b].double()
        for t in reversed(range(length)) if reverse else range(length):
            if mask is not None and not mask[b][t]:
                c[b][t], h[b][t] = state, torch.zeros(hidden).double()
                continue
            x = gates[b, t] if bias is None else gates[b, t] + bias[b].double()
            part = [x[g * hidden : (g + 1) * hidden] for g in range(NUM_GATES[pooling])]
            z, f = torch.tanh(part[0]), logistic(part[1])
            if zoneout > 0:
                # Eq. 6: F = 1 - dropout(1 - F), without rescaling.
                one = [float(keeps(seed, b, t, channel, zoneout)) for channel in range(hidden)]
                f = 1 - torch.tensor(one).double() * (1 - f)
            write = logistic(part[-1]) * z if kind.has_input_gate else (1 - f) * z
            state = f * state + write
            o = logistic(part[2]) if kind.has_output_gate else torch.ones(hidden).double()
            c[b][t], h[b][t] = state, o * state
        finals.append(state)
    if batch * length == 0:
        empty = gates.new_zeros(batch, length, hidden)
        return PoolOutput(empty, empty, torch.stack(finals) if finals else empty.sum(1))
    stacked = [torch.stack([torch.stack(row) for row in rows]) for rows in (h, c)]
    return PoolOutput(stacked[0], stacked[1], torch.stack(finals))


def inputs(
    pooling: str,
    *,
    shape: tuple[int, int, int] = (3, 5, 3),
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    initial_state: bool = True,
    seed: int = 0,
) -> dict[str, torch.Tensor | None]:
    """Draw random differentiable arguments of `pool`."""
    generator = torch.Generator().manual_seed(seed)
    batch, length, hidden = shape
    channels = NUM_GATES[pooling] * hidden

    def normal(*sizes: int) -> torch.Tensor:
        x = torch.randn(*sizes, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    return {
        "gates": normal(batch, length, channels),
        "bias": normal(batch, channels) if bias else None,
        "initial_state": normal(batch, hidden) if initial_state else None,
    }


def weighted(output: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum every number of `output` with a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for x in output:
        weights = torch.linspace(-1, 1.5, x.numel(), dtype=torch.float64).reshape(x.shape)
        total = total + (x.double() * weights.cos()).sum()
    return total


def gradients(
    output: Sequence[torch.Tensor], given: dict[str, torch.Tensor | None]
) -> list[torch.Tensor]:
    wanted = [x for x in given.values() if x is not None]
    return list(torch.autograd.grad(weighted(output), wanted))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    difference = (a.detach().double() - b.detach().double()).abs()
    assert not difference.isnan().any()
    return float(difference.max()) if difference.numel() else 0.0


def in_double(given: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """Copy the arguments as float64 leaves, whose gradients are not rounded."""
    return {
        name: None if x is None else x.detach().double().requires_grad_()
        for name, x in given.items()
    }
