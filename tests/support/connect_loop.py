"""The connection around a layer as a plain loop in float64, its bits by Python's integers."""

from typing import Any, NamedTuple

import torch
from pooling_loop import split_mix

GOLDEN = 0x9E3779B97F4A7C15


def keeps(seed: int, b: int, t: int, channel: int, probability: float) -> bool:
    """Tell whether dropout leaves one number alone."""
    key = split_mix((seed + (b * 2**32 + t + 1) * GOLDEN) % 2**64)
    draw = split_mix((key + (channel // 4 + 1) * GOLDEN) % 2**64)
    return (draw >> 16 * (channel % 4)) % 2**16 >= round(probability * 2**16)


def connect_loop(
    h: torch.Tensor,
    residual: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
    seed: int = 0,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `out` and `normed`, step by step and without rounding."""
    batch, length, hidden = h.shape
    kept = 2**16 - round(dropout * 2**16)
    scale = 2**16 / kept if kept else 0.0
    outs, normeds = [], []
    for b in range(batch):
        for t in range(length):
            keep = [float(keeps(seed, b, t, channel, dropout)) for channel in range(hidden)]
            out = h[b, t].double() * torch.tensor(keep, dtype=torch.float64) * scale
            if residual is not None:
                out = out + residual[b, t].double()
            outs.append(out)
            if weight is not None:
                root = torch.sqrt((out * out).sum() / hidden + eps)
                normeds.append(out / root * weight.double())
    shape = (batch, length, hidden)
    if not outs:
        empty = h.double() * 1
        return empty, None if weight is None else empty * weight.double()
    out = torch.stack(outs).reshape(shape)
    return out, torch.stack(normeds).reshape(shape) if weight is not None else None


class Case(NamedTuple):
    """One call of `connect`: its shape (B, T, H) and options."""

    shape: tuple[int, int, int]
    residual: bool = True
    norm: bool = True
    dropout: float = 0.3

    def given(self, *dtypes: torch.dtype) -> dict[str, torch.Tensor | None]:
        """Return random h, residual and weight, each of one of `dtypes`, or all of the one."""
        generator = torch.Generator().manual_seed(sum(self.shape))

        def normal(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
            x = torch.randn(*sizes, generator=generator, dtype=torch.float64)
            return x.to(dtype).requires_grad_()

        of_h, of_residual, of_weight = dtypes if len(dtypes) == 3 else dtypes * 3
        return {
            "h": normal(*self.shape, dtype=of_h),
            "residual": normal(*self.shape, dtype=of_residual) if self.residual else None,
            "weight": normal(self.shape[2], dtype=of_weight) if self.norm else None,
        }

    def options(self, seed: Any) -> dict[str, Any]:
        return {"dropout": self.dropout, "seed": seed}

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape))]
        words += ["residual"] * self.residual + ["norm"] * self.norm
        return "-".join([*words, f"p{self.dropout:g}"])
