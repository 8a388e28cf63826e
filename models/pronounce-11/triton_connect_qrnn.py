"""Triton kernels of the connection around a layer: residual, dropout and RMSNorm in one pass.

    out = residual + dropout(h)        normed = out . r . weight,  r = 1 / sqrt(mean(out^2) + eps)

With n = out . r the gradient of `out` from `normed` is r (a - n mean(a n)), where a is the gradient
of `normed` times the weight; that of the weight is the sum of the gradient of `normed` times n.

A program holds a row, channels by fours: four share a draw of dropout. A row of more than `_WIDEST`
channels is walked in several runs. Backward, a program takes every P-th row and sums the weight's
gradient over its rows; torch adds the programs' sums. P depends on the shape alone, so two runs
give the same bits.

Shapes: B batch, T time, H units.
"""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

from .triton_qrnn import _jit, _mix, _on

_WIDEST = 4096  # channels in registers at once
# Programs of the backward pass, at most: eight for each of 132 multiprocessors.
_PROGRAMS = 1056

# ------------------------------------------------------------------ pieces of both kernels


@_jit
def _fours(first, QUADS: tl.constexpr):
    """Numbers (QUADS, 1) of the fours of channels from `first` on, and the channels."""
    quad = first // 4 + tl.arange(0, QUADS)[:, None]
    return quad, quad * 4 + tl.arange(0, 4)[None, :]


@_jit
def _row(pointer, row, channel, H, like):
    """Read channels of a row in the dtype of `like`; zeros beyond the last."""
    values = tl.load(pointer + row * H + channel, mask=channel < H, other=0.0)
    return values.to(like.dtype)


@_jit
def _put(pointer, row, channel, H, values):
    tl.store(pointer + row * H + channel, values.to(pointer.dtype.element_ty), mask=channel < H)


@_jit
def _drop(x, seed, row, T, quad, channel, threshold):
    """Zero what dropout takes, NaN too, and divide the others by what is left of 1.

    The bits are those of `dropout_keep`.
    """
    golden = 0x9E3779B97F4A7C15
    b = row // T
    t = row % T
    key = _mix(seed + ((b << 32) + t + 1).to(tl.uint64) * golden)
    draw = _mix(key + (quad + 1).to(tl.uint64) * golden)  # (QUADS, 1)
    bits = ((draw >> ((channel % 4) * 16).to(tl.uint64)) & 0xFFFF).to(tl.int32)
    kept = tl.maximum(65536 - threshold, 1).to(x.dtype)
    return tl.where(bits >= threshold, x * (65536.0 / kept), 0.0)


@_jit
def _inverse_root(x):
    """Compute 1 / sqrt(x) to the last digits: `tl.sqrt` is coarse in float32."""
    root = tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)
    return 1.0 / root


@_jit
def _sum_of_row(h, residual, seed, row, first, T, H, threshold, like, OUT, QUADS):
    """Compute a run of a row of `out`, with the digits that it has in memory, and its channels."""
    quad, channel = _fours(first, QUADS)
    x = _row(h, row, channel, H, like)
    if seed is not None:
        x = _drop(x, seed, row, T, quad, channel, threshold)
    if residual is not None:
        x += _row(residual, row, channel, H, like)
    return x.to(OUT).to(like.dtype), channel


# ------------------------------------------------------------------ forward


@_jit
def _forward_kernel(
    h, residual, weight, seed,
    out, normed, inverse,
    T, H, threshold,
    EPS: tl.constexpr, STATE: tl.constexpr, OUT: tl.constexpr, QUADS: tl.constexpr,
    HELD: tl.constexpr,
):  # fmt: skip
    """Connect one row."""
    row = tl.program_id(0).to(tl.int64)
    like = tl.zeros((QUADS, 4), STATE)
    if seed is not None:
        seed = tl.load(seed).to(tl.uint64)
    start = row * 0
    x, channel = _sum_of_row(
        h, residual, seed, row, start, T, H, threshold, like, OUT, QUADS
    )  # fmt: skip
    if out is not None:
        _put(out, row, channel, H, x)
    squares = x * x
    if not HELD:
        first = start + 4 * QUADS
        while first < H:
            more, there = _sum_of_row(
                h, residual, seed, row, first, T, H, threshold, like, OUT, QUADS
            )  # fmt: skip
            if out is not None:
                _put(out, row, there, H, more)
            squares += more * more
            first += 4 * QUADS
    if normed is not None:
        mean = tl.sum(squares) / H
        r = _inverse_root(mean + EPS)
        tl.store(inverse + row, r)
        _put(normed, row, channel, H, x * r * _row(weight, start, channel, H, like))
        if not HELD:
            first = start + 4 * QUADS
            while first < H:
                # Computed again: what other threads of the program wrote may not be there yet.
                more, there = _sum_of_row(
                    h, residual, seed, row, first, T, H, threshold, like, OUT, QUADS
                )  # fmt: skip
                _put(normed, row, there, H, more * r * _row(weight, start, there, H, like))
                first += 4 * QUADS


# ------------------------------------------------------------------ backward


@_jit
def _norm_of_row(out, grad_normed, weight, row, channel, r, H, like):
    """Compute a run of n, of a, and of the gradient of `normed`."""
    n = _row(out, row, channel, H, like) * r
    given = _row(grad_normed, row, channel, H, like)
    return n, given * _row(weight, row * 0, channel, H, like), given


@_jit
def _give(
    grad, grad_out, seed, grad_h, grad_residual, row, quad, channel, T, H, threshold,
):  # fmt: skip
    """Write a run of the gradients of `residual` and `h`, of what comes through the norm."""
    if grad_out is not None:
        grad += _row(grad_out, row, channel, H, grad)
    if grad_residual is not None:
        _put(grad_residual, row, channel, H, grad)
    if grad_h is not None:
        if seed is not None:
            grad = _drop(grad, seed, row, T, quad, channel, threshold)
        _put(grad_h, row, channel, H, grad)


@_jit
def _backward_kernel(
    grad_out, grad_normed, out, weight, inverse, seed,
    grad_h, grad_residual, parts,
    ROWS, T, H, threshold,
    STATE: tl.constexpr, QUADS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Take every P-th row, and sum the weight's gradient over them where rows are held."""
    program = tl.program_id(0).to(tl.int64)
    like = tl.zeros((QUADS, 4), STATE)
    if seed is not None:
        seed = tl.load(seed).to(tl.uint64)
    total = like
    row = program
    while row < ROWS:
        start = row * 0
        quad, channel = _fours(start, QUADS)
        grad = like
        if grad_normed is not None:
            r = tl.load(inverse + row)
            n, a, given = _norm_of_row(out, grad_normed, weight, row, channel, r, H, like)
            total += given * n
            products = a * n
            if not HELD:
                first = start + 4 * QUADS
                while first < H:
                    _, there = _fours(first, QUADS)
                    m, c, _ = _norm_of_row(out, grad_normed, weight, row, there, r, H, like)
                    products += c * m
                    first += 4 * QUADS
            mean = tl.sum(products) / H
            grad = r * (a - n * mean)
        _give(grad, grad_out, seed, grad_h, grad_residual, row, quad, channel, T, H, threshold)
        if not HELD:
            first = start + 4 * QUADS
            while first < H:
                quads, there = _fours(first, QUADS)
                more = like
                if grad_normed is not None:
                    m, c, _ = _norm_of_row(out, grad_normed, weight, row, there, r, H, like)
                    more = r * (c - m * mean)
                _give(
                    more, grad_out, seed, grad_h, grad_residual, row, quads, there, T, H, threshold
                )  # fmt: skip
                first += 4 * QUADS
        row += tl.num_programs(0)
    if parts is not None:
        _, channel = _fours(program * 0, QUADS)
        _put(parts, program, channel, H, total)


# ------------------------------------------------------------------ what Python calls


def connect_forward(
    h: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout: float,
    eps: float,
    normed_dtype: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `out`, `normed` and r, as the library's operation of this name does.

    Args:
        h: (B, T, H), of float64 if all are, else of any smaller floating dtype.
        residual: (B, T, H), or None.
        weight: (H), or None without a norm.
        seed: 0-d int64 on the device of `h`, or None without dropout.
        dropout: Probability of zeroing a number of `h`, in [0, 1].
        eps: Added to the mean square.
        normed_dtype: Name of the dtype of `normed`.

    Returns:
        `out` in the dtype of `residual` (without one, of `h`); `normed`; and r (B, T) in float32,
        or float64 for float64. What there is none of has shape (0,): `out` where it would be `h`.
    """
    batch, length, hidden = h.shape
    state = _state_dtype(h)
    dtype = h.dtype if residual is None else residual.dtype
    has_out = residual is not None or seed is not None
    out = h.new_empty(h.shape if has_out else (0,), dtype=dtype)
    named = dtype if weight is None else getattr(torch, normed_dtype)
    normed = h.new_empty((0,) if weight is None else h.shape, dtype=named)
    inverse = h.new_empty((0,) if weight is None else (batch, length), dtype=state)
    if h.numel():
        given = (None if x is None else x.contiguous() for x in (h, residual, weight))
        results = [out if has_out else None]
        results += [None, None] if weight is None else [normed, inverse]
        options = _options(hidden, state)
        with _on(h.device):
            _forward_kernel[(batch * length,)](
                *given, seed, *results, length, hidden, _threshold(dropout),
                EPS=float(eps), OUT=_triton_dtype(dtype), **options,
            )  # fmt: skip
    return out, normed, inverse


def connect_backward(
    grad_out: torch.Tensor | None,
    grad_normed: torch.Tensor | None,
    out: torch.Tensor | None,
    weight: torch.Tensor | None,
    inverse: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout: float,
    h_dtype: str,
    residual_dtype: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of `h`, `residual` and `weight`, as the library's operation does.

    Args:
        grad_out: (B, T, H), or None for zeros; `grad_normed` too, but not both.
        grad_normed: With it `out` (which may be `h`), `weight` and `inverse` of the forward pass.
        h_dtype: Name of the dtype of the gradient of `h`; "" where it is not wanted.
        residual_dtype: The same of `residual`.

    Returns:
        The three, of shape (0,) where not wanted; the weight's in the dtype of `inverse`.
    """
    like = grad_out if grad_normed is None else grad_normed
    assert like is not None, "one of them is there"
    batch, length, hidden = like.shape
    rows, state, options = batch * length, _state_dtype(like), _options(hidden, _state_dtype(like))
    grads = [
        like.new_empty(like.shape, dtype=getattr(torch, name)) if name else None
        for name in (h_dtype, residual_dtype)
    ]
    tensors = (grad_out, *((grad_normed, out, weight, inverse) if grad_normed is not None else ()))
    given = [None if x is None else x.contiguous() for x in tensors] + [None] * (5 - len(tensors))
    programs = min(rows, _PROGRAMS)
    summed = grad_normed is not None and options["HELD"]
    parts = like.new_empty((programs, hidden) if summed else (0,), dtype=state)
    if like.numel():
        with _on(like.device):
            _backward_kernel[(programs,)](
                *given, seed, *grads, parts if summed else None,
                rows, length, hidden, _threshold(dropout), **options,
            )  # fmt: skip
    of_weight = parts.sum(0) if summed else parts
    if grad_normed is not None and not summed:
        assert out is not None, "as the forward pass left it"
        assert inverse is not None, "as the forward pass left it"
        of_weight = (grad_normed.to(state) * out * inverse[..., None]).sum((0, 1))
    none = like.new_empty(0)
    return (*(none if x is None else x for x in grads), of_weight)  # type: ignore[return-value]


def _state_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _threshold(dropout: float) -> int:
    return round(dropout * (1 << 16))


def _triton_dtype(dtype: torch.dtype) -> Any:
    return getattr(tl, str(dtype).removeprefix("torch."))


def _options(hidden: int, state: torch.dtype) -> dict[str, Any]:
    """Tell the constants of both kernels."""
    channels = 32
    while channels < min(hidden, _WIDEST):
        channels *= 2
    return {
        "STATE": _triton_dtype(state),
        "QUADS": channels // 4,
        "HELD": hidden <= channels,
        "num_warps": max(1, min(8, channels // 256)),
        "enable_fp_fusion": True,  # said aloud: Triton 3.9 warns where it is left to the default
    }
