"""The connection around a layer as one operation: residual, dropout and RMSNorm.

    out = residual + dropout(h)
    normed = out / sqrt(mean(out^2) + eps) . weight

Dropout's bits are a function of a seed, of the row, the step and the channel, as those of zoneout
are: backward draws them again where torch's dropout keeps a mask, a pad more or less changes none
of the others, and every backend has the same.

The definition is in plain torch, which compilers, exporters and transforms see; the native library
computes it in one pass over memory each way.

Shapes: B batch, T time, H units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from .backends_qrnn import connection_kernels
from .internals_qrnn import is_untouched, runs_eagerly
from .pool_equations_qrnn import counter_key, state_dtype, words_at


class Connected(NamedTuple):
    """`out` (B, T, H), and `normed` (B, T, H) where a weight is given."""

    out: torch.Tensor
    normed: torch.Tensor | None


def connect(
    h: torch.Tensor,
    residual: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
    seed: torch.Tensor | None = None,
    eps: float = 1e-6,
    normed_dtype: torch.dtype | None = None,
) -> Connected:
    """Add `h`, after dropout, to `residual`, and normalise the sum.

    Args:
        h: A layer's output (B, T, H), of any floating dtype.
        residual: The layer's input (B, T, H); None without a residual connection.
        weight: RMSNorm's (H); None without a norm.
        dropout: Probability of zeroing a number of `h`, in [0, 1], in steps of 2^-16; the others
            are divided by what is left of 1.
        seed: 0-d int64 tensor that the bits are a function of; drawn from torch's default
            generator when None and `dropout` > 0.
        eps: Added to the mean square.
        normed_dtype: Dtype of `normed`; None is that of `out`.

    Returns:
        `out` in the dtype of `residual` (without one, of `h`), and `normed`; both differentiable in
        `h`, `residual` and `weight`, to any order.

    Raises:
        ValueError: If a shape or `dropout` does not fit.
    """
    _check(h, residual, weight, dropout)
    if dropout == 0.0:
        seed = None
    elif seed is None:
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=h.device)
    if seed is None and weight is None:
        return Connected(h if residual is None else residual + h, None)
    dtype = h.dtype if residual is None else residual.dtype
    options = (dropout, eps, normed_dtype or dtype)
    tensors = [x for x in (h, residual, weight, seed) if x is not None]
    if not runs_eagerly(*tensors) or not _fits(tensors, options[2]):
        return Connected(*_definition(h, residual, weight, seed, *options))
    kernels = connection_kernels(h.device)
    if kernels is None:
        return Connected(*_definition(h, residual, weight, seed, *options))
    out, normed = _Connect.apply(h, residual, weight, seed, *options)
    return Connected(h if out is None else out, normed)


def dropout_keep(
    seed: torch.Tensor, batch: int, length: int, channels: int, probability: float
) -> torch.Tensor:
    """Return where dropout leaves a number alone, (B, T, H) boolean.

    Four channels share a draw of SplitMix64, at counter `channel` / 4, keyed by (b, t) as zoneout's
    draws are; each has 16 bits of it.
    """
    key = counter_key(seed, batch, length)  # (B, T, 1)
    draws = words_at(key, (channels + 3) // 4)  # (B, T, ceil(H/4))
    shifts = torch.arange(0, 64, 16, device=seed.device)
    bits = (draws[..., None] >> shifts) & 0xFFFF  # (B, T, ceil(H/4), 4)
    return bits.flatten(2)[..., :channels] >= _threshold(probability)


def _threshold(probability: float) -> int:
    return round(probability * (1 << 16))


def _scale(probability: float) -> float:
    """Return what the numbers that stay are multiplied by."""
    kept = (1 << 16) - _threshold(probability)
    return (1 << 16) / kept if kept else 0.0


def _drop(x: torch.Tensor, seed: torch.Tensor | None, probability: float) -> torch.Tensor:
    if seed is None:
        return x
    keep = dropout_keep(seed, *x.shape, probability)  # type: ignore[call-arg]
    return (x * _scale(probability)).masked_fill(~keep, 0.0)


def _definition(
    h: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout: float,
    eps: float,
    normed_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `out` and `normed` by operations that everything follows."""
    out = _drop(h, seed, dropout)
    if residual is not None:
        out = residual + out.to(residual.dtype)
    if weight is None:
        return out, None
    x = out.to(state_dtype(out.dtype))
    normed = nn.functional.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)
    return out, normed.to(normed_dtype)


def _definition_backward(
    grad_out: torch.Tensor | None,
    grad_normed: torch.Tensor | None,
    saved: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    options: tuple[float, float, torch.dtype],
    dtypes: tuple[torch.dtype, torch.dtype | None],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Compute the gradients of `h`, `residual` and `weight` by operations that autograd follows.

    `saved` are out, weight and seed; `dtypes` those of `h` and of `residual`.
    """
    (out, weight, seed), (dropout, eps, _) = saved, options
    grad = None if grad_out is None else grad_out.to(state_dtype(out.dtype))
    of_weight = None
    if grad_normed is not None:
        assert weight is not None, "a norm has one"
        x = out.to(state_dtype(out.dtype))
        inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        n, given = x * inverse, grad_normed.to(x.dtype)
        a = given * weight.to(x.dtype)
        of_x = inverse * (a - n * (a * n).mean(-1, keepdim=True))
        grad = of_x if grad is None else grad + of_x
        of_weight = (given * n).sum((0, 1)).to(weight.dtype)
    assert grad is not None, "asked for without a gradient"
    of_h = _drop(grad, seed, dropout).to(dtypes[0])
    return of_h, None if dtypes[1] is None else grad.to(dtypes[1]), of_weight


class _Connect(torch.autograd.Function):
    """The operation by kernels; its `out` is None where that is `h` itself."""

    @staticmethod
    def forward(
        ctx: Any,
        h: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor | None,
        seed: torch.Tensor | None,
        *options: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Compute `out` and `normed`; of a norm, keep 1 / sqrt(mean(out^2) + eps) (B, T)."""
        dropout, eps, normed_dtype = options
        kernels = connection_kernels(h.device)
        assert kernels is not None, "asked for where there are none"
        name = _name(normed_dtype)
        out, normed, inverse = kernels.forward(h, residual, weight, seed, dropout, eps, name)
        has_out = residual is not None or seed is not None
        kept = out if has_out else h
        ctx.save_for_backward(kept if weight is not None else None, weight, seed, inverse)
        ctx.options, ctx.normed = options, weight is not None
        ctx.dtypes = (h.dtype, None if residual is None else residual.dtype)
        ctx.set_materialize_grads(False)
        return out if has_out else None, normed if weight is not None else None

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        """Compute the gradients in one pass over those given."""
        grad_out, grad_normed = grads
        unused: tuple[None, ...] = (None,) * 4
        if grad_out is None and grad_normed is None:
            return (None, None, None, *unused)
        out, weight, seed, inverse = ctx.saved_tensors
        given = [x for x in grads if x is not None]
        # A backward pass may be watched, or on another backend, where the forward pass was not.
        kernels = connection_kernels(given[0].device) if runs_eagerly(*given) else None
        if kernels is None or torch.is_grad_enabled():
            like = given[0] if out is None else out
            results = _definition_backward(
                grad_out, grad_normed, (like, weight, seed), ctx.options, ctx.dtypes
            )
            return (*results, *unused)
        wanted = [
            _name(dtype) if dtype is not None and needed else ""
            for dtype, needed in zip(ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
        ]
        of_h, of_residual, of_weight = kernels.backward(
            grad_out, grad_normed, out, weight, inverse, seed, ctx.options[0], *wanted
        )
        return (
            of_h if wanted[0] else None,
            of_residual if wanted[1] else None,
            of_weight.to(weight.dtype) if grad_normed is not None else None,
            *unused,
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fits(tensors: list[torch.Tensor], normed: torch.dtype) -> bool:
    """Tell whether kernels know these dtypes together: float64 mixes with no other."""
    dtypes = {normed} | {x.dtype for x in tensors if x.is_floating_point()}
    known = {torch.float32, torch.bfloat16, torch.float16}
    return dtypes == {torch.float64} or dtypes <= known


def _check(
    h: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, dropout: float
) -> None:
    if h.dim() != 3 or not h.is_floating_point():
        raise ValueError(
            f"`h` must be floating point (batch, time, hidden), but is {h.dtype} {tuple(h.shape)}."
        )
    # A trace would write the comparison down.
    of_h = () if torch.jit.is_tracing() else tuple(h.shape)  # type: ignore[attr-defined]
    for name, tensor, shape in (("residual", residual, of_h), ("weight", weight, of_h[2:])):
        if of_h and tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"`{name}` must have shape {shape}, but has {tuple(tensor.shape)}.")
    _check_probability(dropout)


def _check_probability(dropout: float) -> None:
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"`dropout` must be in [0, 1], but is {dropout}.")


# ------------------------------------------------------------------ modules


class Dropout(nn.Dropout):
    """`nn.Dropout` with the bits of `dropout_keep`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """Zero numbers of `input` (B, ..., H), in training only."""
        return drop(input, self.p, self.training)


class LockedDropout(nn.Dropout):
    """Dropout whose bits are one step's for all steps of a call, a draw for every row."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """Zero channels of `input` (B, ..., H) at all steps, in training only."""
        if not self.training or self.p == 0.0:
            return input
        _check_probability(self.p)
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=input.device)
        x = input if input.dim() > 1 else input.reshape(1, input.numel())
        keep = dropout_keep(seed, x.shape[0], 1, x.shape[-1], self.p)  # (B, 1, H)
        scale = (keep * _scale(self.p)).to(x.dtype)
        return (x * scale.view(x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])).view(input.shape)


def make_dropout(probability: float, *, locked: bool) -> nn.Dropout:
    """Make the dropout of a layer: of `LockedDropout`, or of fresh bits at every step."""
    return LockedDropout(probability) if locked else Dropout(probability)


def drop(x: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """Zero numbers of `x` (B, ..., H) with a probability, in training only."""
    if not training or probability == 0.0:
        return x
    if x.dim() < 2:
        rows = x.reshape(1, 1, x.numel())
    else:
        rows = x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)  # (B, T, H)
    return connect(rows, dropout=probability).out.view(x.shape)


def normalize(norm: nn.Module, x: torch.Tensor, *, for_products: bool = True) -> torch.Tensor:
    """Call `norm`, an `nn.RMSNorm` or what took its place, on `x` (B, T, H).

    For products the result has, under autocast, the dtype that they would turn it into.
    """
    if not runs_eagerly(x) or not _is_plain(norm):
        called: torch.Tensor = norm(x)
        return called
    assert isinstance(norm, nn.RMSNorm)
    dtype = _for_products(x) if for_products else None
    eps = norm.eps
    assert eps is not None, "a plain norm has one"
    normed = connect(x, None, norm.weight, eps=eps, normed_dtype=dtype).normed
    assert normed is not None, "a plain norm has a weight"
    return normed


def plain_norm(norm: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """Compute what `normalize` does, where the caller knows that nobody looks or differentiates."""
    eps = norm.eps
    assert eps is not None, "a plain norm has one"
    kernels = connection_kernels(x.device)
    if kernels is None:
        normed = _definition(x, None, norm.weight, None, 0.0, eps, x.dtype)[1]
    else:
        normed = kernels.forward(x, None, norm.weight, None, 0.0, eps, _name(x.dtype))[1]
    assert normed is not None, "a plain norm has a weight"
    return normed


def join(
    x: torch.Tensor, h: torch.Tensor, dropout: nn.Module, norm: nn.Module | None = None
) -> Connected:
    """Add `h` (B, T, H), after dropout, to `x` (B, T, H), and normalise the sum for products."""
    together = (
        # First of all: a compiler sees the modules called.
        runs_eagerly(x, h) and is_plain_dropout(dropout) and (norm is None or _is_plain(norm))
    )
    if not together:
        out = x + dropout(h)
        return Connected(out, None if norm is None else norm(out))
    assert isinstance(dropout, nn.Dropout)
    probability = dropout.p if dropout.training else 0.0
    if isinstance(dropout, LockedDropout):
        h, probability = dropout(h), 0.0
    if norm is None:
        return connect(h, x, dropout=probability)
    assert isinstance(norm, nn.RMSNorm)
    eps = norm.eps
    assert eps is not None, "a plain norm has one"
    options: dict[str, Any] = {"eps": eps, "normed_dtype": _for_products(x)}
    return connect(h, x, norm.weight, dropout=probability, **options)


def is_plain_dropout(dropout: nn.Module) -> bool:
    """Tell whether `dropout` is one of ours whose work may be done without calling it."""
    return is_untouched(dropout, Dropout) or is_untouched(dropout, LockedDropout)


def _is_plain(norm: nn.Module) -> bool:
    """Tell whether `norm` is an `nn.RMSNorm` over the last dimension whose call does no more."""
    return (
        is_untouched(norm, nn.RMSNorm)
        and norm.weight is not None
        and norm.weight.dim() == 1  # type: ignore[operator]
        and norm.eps is not None
    )


def _for_products(x: torch.Tensor) -> torch.dtype | None:
    kind = x.device.type
    if x.dtype is torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None
