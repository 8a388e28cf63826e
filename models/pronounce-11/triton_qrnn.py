"""Pooling as Triton kernels (Eqs. 3 to 6 of arXiv 1611.01576): one pass over memory each way.

A model folder from the Hub carries this file, so that it runs fast on a GPU where the package and
its compiled library are not installed. The results are those that `pool_equations_qrnn.py` defines:

    forward   c_t = f_t . c_{t-1} + w_t . z_t,  w_t = 1 - f_t (f, fo) or i_t (ifo),  h_t = o_t . c_t
    backward  dc_t = o_t . dh_t + (what c_t itself receives) + f_{t+1} . dc_{t+1}

A program owns one batch row and a block of channels and walks through time. It reads the rows of
several steps before it computes the first of them, so that many loads are in flight at once; the
backward kernel starts every tile of 32 steps from the state that the forward kernel noted there,
recomputes the states of the tile and sweeps it backwards. No program writes where another does.

Shapes: B batch, T time, H units, G gates. Gate order is always z, f, o, i.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

from .pool_kinds_qrnn import NUM_GATES

# Steps between two noted states, as in pool_equations_qrnn.py: any backend's tiles serve all.
TILE = 32

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WARP = 32  # threads
# Steps whose rows the forward kernel reads at once, with one and with two channels a thread: few
# channels need more of them in flight.
_FORWARD_STEPS, _WIDE_FORWARD_STEPS = 16, 8
# Channels of the whole batch from which a thread owns two of them.
_WIDE_FROM = 1 << 16


def _jit(function: Any) -> Any:
    """Compile a function for Triton; leave it alone where Triton is not installed."""
    return function if triton is None else triton.jit(function)


# ------------------------------------------------------------------ pieces of both kernels


@_jit
def _mix(x):
    """Apply the finaliser of SplitMix64 (Steele, Lea and Flood 2014) to uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@_jit
def _bits(seed, b, t, channel):
    """Draw 24 random bits, a function of (seed, b, t, channel), as `zoneout_keep` does."""
    golden = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: SplitMix64's step
    key = _mix(seed + ((b << 32) + t + 1).to(tl.uint64) * golden)
    return (_mix(key + (channel + 1).to(tl.uint64) * golden) >> 40).to(tl.int32)


@_jit
def _sigmoids(x):
    """Compute sigma(x) and sigma(-x) = 1 - sigma(x), each with all its digits."""
    # The exponent is never positive, so nothing overflows.
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(x >= 0, large, small), tl.where(x >= 0, small, large)


@_jit
def _tanh(x):
    """Compute tanh(x) to the last digits of float32 and float64, near zero too.

    (1 - e) / (1 + e) with e = exp(-2|x|) loses digits near zero. Below 1/2 it is replaced by the
    seventh convergent of Lambert's continued fraction, whose error is less than x^15 / 2.7e11.
    """
    y = x * x
    e = tl.exp(-2.0 * tl.abs(x))
    over = x * (((y + 378.0) * y + 17325.0) * y + 135135.0)
    under = ((28.0 * y + 3150.0) * y + 62370.0) * y + 135135.0
    near = y < 0.25
    over = tl.where(near, over, tl.where(x < 0, e - 1.0, 1.0 - e))
    return over / tl.where(near, under, 1.0 + e)


@_jit
def _time(step, T, REVERSE):
    """Return the timestep of a step: steps count in processing order."""
    return T - 1 - step if REVERSE else step


@_jit
def _only_if(condition, inside):
    """Return the mask `inside` where `condition`, one boolean, holds; else a mask of False.

    Not `inside & condition`: the interpreter of Triton 3.9 makes that bytes, which it refuses as a
    mask.
    """
    return tl.where(condition, inside, False)


@_jit
def _vector(pointer, offsets, inside, like):
    """Load a vector in the dtype of `like`, the state's; zeros without a pointer."""
    # A pointer that is None is a constant to Triton: the other branch is not compiled.
    if pointer is None:
        values = tl.zeros_like(like)
    else:
        values = tl.load(pointer + offsets, mask=inside, other=0.0).to(like.dtype)
    return values


@_jit
def _rows(pointer, first, T, stride, inside, STEPS, REVERSE):
    """Load the rows of `STEPS` steps from `first` on, zeros past the end.

    No load waits for a result, so that all of them are in flight at once.
    """
    rows = ()
    for s in tl.static_range(STEPS):
        here = pointer + _time(first + s, T, REVERSE) * stride
        rows = rows + (tl.load(here, mask=_only_if(first + s < T, inside), other=0.0),)
    return rows


@_jit
def _gate_rows(
    gates, first, T, H, stride, inside,
    GATES, STEPS, REVERSE,
):  # fmt: skip
    """Load the rows of z, f, o and i, in this order in memory.

    Where there is no o or i, z stands in and nobody reads it.
    """
    z = _rows(gates, first, T, stride, inside, STEPS, REVERSE)
    f = _rows(gates + H, first, T, stride, inside, STEPS, REVERSE)
    o = z
    i = z
    if GATES > 2:
        o = _rows(gates + 2 * H, first, T, stride, inside, STEPS, REVERSE)
    if GATES > 3:
        i = _rows(gates + 3 * H, first, T, stride, inside, STEPS, REVERSE)
    return z, f, o, i


@_jit
def _reals(mask, first, T, stride, STEPS, REVERSE):
    """Tell of each of `STEPS` steps whether it is within the sequence and no pad."""
    reals = ()
    for s in tl.static_range(STEPS):
        real = first + s < T
        if mask is not None:
            here = mask + _time(first + s, T, REVERSE) * stride
            real = tl.load(here, mask=real, other=0) != 0
        reals = reals + (real,)
    return reals


@_jit
def _biases(bias, at, H, inside, like, GATES):
    """Load the biases of z, f, o and i of one row; zeros without a bias."""
    z = _vector(bias, at, inside, like)
    f = _vector(bias, at + H, inside, like)
    o = z
    i = z
    if GATES > 2:
        o = _vector(bias, at + 2 * H, inside, like)
    if GATES > 3:
        i = _vector(bias, at + 3 * H, inside, like)
    return z, f, o, i


@_jit
def _activate(
    rows, s, biases, real, b, t, channel,
    seed, threshold, GATES,
):  # fmt: skip
    """Compute z, f, 1 - f, o and the weight of z, which is 1 - f or i (Eq. 1), of step `s`.

    f is exactly 1 where the state is carried: at a pad, and where zoneout says so (Eq. 6).
    """
    # By `where`, not by a product: a pad may hold NaN, and what it writes and lets out must be 0.
    z = tl.where(real, _tanh(rows[0][s].to(biases[0].dtype) + biases[0]), 0.0)
    f, rest = _sigmoids(rows[1][s].to(biases[1].dtype) + biases[1])
    live = real  # where f is what the gate says (Eq. 6)
    if seed is not None:
        live = real & (_bits(seed, b, t, channel) >= threshold)
    f = tl.where(live, f, 1.0)
    rest = tl.where(live, rest, 0.0)
    o = f
    if GATES > 2:
        o, _ = _sigmoids(rows[2][s].to(biases[2].dtype) + biases[2])
        o = tl.where(real, o, 0.0)
    weight = rest
    if GATES > 3:
        weight, _ = _sigmoids(rows[3][s].to(biases[3].dtype) + biases[3])
        weight = tl.where(real, weight, 0.0)
    return z, f, rest, o, weight


@_jit
def _place(H, BLOCK):
    """Return the row and the channels that this program owns, and a mask of those that exist."""
    # int64, since b * T * H may be more than 2^31.
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(H, BLOCK)
    b = program // blocks
    channel = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    return b, channel, channel < H


# ------------------------------------------------------------------ forward


@_jit
def _forward_kernel(
    gates, bias, initial_state, mask, seed,
    h, c, state, tiles,
    T, H, stride_b, stride_t, mask_b, mask_t, threshold,
    GATES: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Pool one batch row and `BLOCK` channels through all of time."""
    b, channel, inside = _place(H, BLOCK)
    if seed is not None:
        seed = tl.load(seed).to(tl.uint64)
    if mask is not None:
        mask += b * mask_b
    value = tl.zeros((BLOCK,), state.dtype.element_ty)
    value = _vector(initial_state, b * H + channel, inside, value)
    biases = _biases(bias, b * H * GATES + channel, H, inside, value, GATES)
    gates += b * stride_b + channel

    first = b * 0  # a zero of 64 bits, as the offsets below need it
    while first < T:
        if tiles is not None:
            here = tiles + (b * tl.cdiv(T, TILE) + first // TILE) * H + channel
            tl.store(here, value, mask=_only_if(first % TILE == 0, inside))
        rows = _gate_rows(gates, first, T, H, stride_t, inside, GATES, STEPS, REVERSE)
        reals = _reals(mask, first, T, mask_t, STEPS, REVERSE)
        for s in tl.static_range(STEPS):
            t = _time(first + s, T, REVERSE)
            z, f, _, o, weight = _activate(
                rows, s, biases, reals[s], b, t, channel, seed, threshold, GATES
            )
            value = f * value + weight * z  # Eqs. 3 to 5
            out = o * value if GATES > 2 else tl.where(reals[s], value, 0.0)
            there = (b * T + t) * H + channel
            written = _only_if(first + s < T, inside)
            tl.store(h + there, out.to(h.dtype.element_ty), mask=written)
            if c is not None:
                tl.store(c + there, value, mask=written)
        first += STEPS
    tl.store(state + b * H + channel, value, mask=inside)


# ------------------------------------------------------------------ backward


@_jit
def _advance(
    value, gates, biases, mask, seed, b, channel, first, T, H, stride_t, mask_t, threshold, inside,
    GATES, REVERSE, STEPS,
):  # fmt: skip
    """Compute the state after `STEPS` steps from `value`."""
    rows = _gate_rows(gates, first, T, H, stride_t, inside, GATES, STEPS, REVERSE)
    reals = _reals(mask, first, T, mask_t, STEPS, REVERSE)
    for s in tl.static_range(STEPS):
        t = _time(first + s, T, REVERSE)
        z, f, _, _, weight = _activate(
            rows, s, biases, reals[s], b, t, channel, seed, threshold, GATES
        )
        value = f * value + weight * z
    return value


@_jit
def _step_gradients(grad_h, received, before, value, active, GATES):
    """Compute the gradients of the gates of one step and of the state before it.

    `received` is the gradient of c_t from everywhere but h_t. Where the state is carried, 1 - f
    and the weight are zero, and so are the gradients of the gates.
    """
    z, f, rest, o, weight = active
    # Eqs. 4 and 5: h_t = o_t . c_t; Eq. 3: h_t = c_t.
    if GATES > 2:
        grad_o = grad_h * value * o * (1.0 - o)
        grad_state = received + grad_h * o
    else:
        grad_o = grad_h
        grad_state = received + grad_h
    grad_z = grad_state * weight * (1.0 - z * z)
    if GATES > 3:
        grad_f = grad_state * before * f * rest
        grad_i = grad_state * z * weight * (1.0 - weight)
    else:
        grad_f = grad_state * (before - z) * f * rest
        grad_i = grad_f
    return (grad_z, grad_f, grad_o, grad_i), f * grad_state


@_jit
def _sweep(
    value, carried, grad_h, grad_c, grad_gates, gates, biases, mask, seed, b, channel, first,
    T, H, stride_t, mask_t, threshold, inside, GATES, REVERSE, STEPS,
):  # fmt: skip
    """Go forwards from `value` and backwards from `carried` through `STEPS` steps.

    Write the gradients of their gates. Return the gradient of `value` and, for the bias, the sum of
    each gate's gradients.
    """
    rows = _gate_rows(gates, first, T, H, stride_t, inside, GATES, STEPS, REVERSE)
    reals = _reals(mask, first, T, mask_t, STEPS, REVERSE)
    if grad_h is not None:
        rows_h = _rows(grad_h + b * T * H + channel, first, T, H, inside, STEPS, REVERSE)
    if grad_c is not None:
        rows_c = _rows(grad_c + b * T * H + channel, first, T, H, inside, STEPS, REVERSE)
    # Both as tuples of constant length, so that they stay in registers.
    states = (value,)
    active = ()
    for s in tl.static_range(STEPS):
        t = _time(first + s, T, REVERSE)
        step = _activate(rows, s, biases, reals[s], b, t, channel, seed, threshold, GATES)
        active = active + (step,)
        states = states + (step[1] * states[s] + step[4] * step[0],)
    zero = tl.zeros_like(value)
    sums = (zero, zero, zero, zero)
    for s in tl.static_range(STEPS - 1, -1, -1):
        of_h = zero
        if grad_h is not None:
            of_h = tl.where(reals[s], rows_h[s].to(carried.dtype), 0.0)
        if grad_c is not None:
            carried += rows_c[s]  # at a pad too: its c_t is the state
        grads, carried = _step_gradients(of_h, carried, states[s], states[s + 1], active[s], GATES)
        row = b * T + _time(first + s, T, REVERSE)
        for g in tl.static_range(GATES):
            there = grad_gates + row * H * GATES + g * H + channel
            grad = grads[g].to(grad_gates.dtype.element_ty)
            tl.store(there, grad, mask=_only_if(first + s < T, inside))
        sums = (sums[0] + grads[0], sums[1] + grads[1], sums[2] + grads[2], sums[3] + grads[3])
    return carried, sums


@_jit
def _backward_kernel(
    grad_h, grad_c, grad_state, gates, bias, mask, seed, tiles, grad_gates, grad_bias, grad_initial,
    T, H, stride_b, stride_t, mask_b, mask_t, threshold,
    GATES: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one batch row and `BLOCK` channels, the last tile first.

    A tile is four groups of steps. One way through it finds the state at the start of each group.
    Then each group is swept with its own states in registers, the last group first.
    """
    b, channel, inside = _place(H, BLOCK)
    if seed is not None:
        seed = tl.load(seed).to(tl.uint64)
    if mask is not None:
        mask += b * mask_b
    zero = tl.zeros((BLOCK,), grad_initial.dtype.element_ty)
    biases = _biases(bias, b * H * GATES + channel, H, inside, zero, GATES)
    carried = _vector(grad_state, b * H + channel, inside, zero)
    total_z, total_f, total_o, total_i = zero, zero, zero, zero
    gates += b * stride_b + channel
    number = tl.cdiv(T, TILE)
    tile = b * 0 + number - 1
    while tile >= 0:
        first = tile * TILE
        last = tl.minimum((T - 1 - first) // STEPS, TILE // STEPS - 1)
        start_0 = tl.load(tiles + (b * number + tile) * H + channel, mask=inside, other=0.0)
        # Four names and `where`, since Triton indexes tuples by constants only.
        value, start_1, start_2, start_3 = start_0, start_0, start_0, start_0
        group = tile * 0
        while group < last:
            value = _advance(
                value, gates, biases, mask, seed, b, channel, first + group * STEPS,
                T, H, stride_t, mask_t, threshold, inside, GATES, REVERSE, STEPS,
            )  # fmt: skip
            start_1 = tl.where(group == 0, value, start_1)
            start_2 = tl.where(group == 1, value, start_2)
            start_3 = tl.where(group == 2, value, start_3)
            group += 1
        while group >= 0:
            value = tl.where(group == 0, start_0, tl.where(group == 1, start_1, start_2))
            value = tl.where(group == 3, start_3, value)
            carried, sums = _sweep(
                value, carried, grad_h, grad_c, grad_gates, gates, biases, mask, seed, b, channel,
                first + group * STEPS, T, H, stride_t, mask_t, threshold, inside,
                GATES, REVERSE, STEPS,
            )  # fmt: skip
            # A sum of sums: its rounding grows with the number of groups, not of steps.
            total_z += sums[0]
            total_f += sums[1]
            total_o += sums[2]
            total_i += sums[3]
            group -= 1
        tile -= 1
    tl.store(grad_initial + b * H + channel, carried, mask=inside)
    if grad_bias is not None:
        totals = (total_z, total_f, total_o, total_i)
        for g in tl.static_range(GATES):
            tl.store(grad_bias + b * H * GATES + g * H + channel, totals[g], mask=inside)


# ------------------------------------------------------------------ what Python calls


def why_unavailable(device: torch.device) -> str | None:
    """Say why these kernels cannot run on `device`, with the cure if any; None if they can."""
    if triton is None:
        return "Triton is not installed (pip install triton)"
    if not isinstance(_forward_kernel, triton.JITFunction):
        return None  # TRITON_INTERPRET=1: the interpreter runs anywhere
    if device.type != "cuda":
        return f"Triton has no kernels for device type {device.type!r} (only its interpreter has)"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 5):
        return "The GPU is older than compute capability 7.5"
    return None


def pool_forward(
    gates: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    pooling: str,
    zoneout: float,
    reverse: bool,
    want_c: bool,
    want_tiles: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pool (Eqs. 3 to 6 of 1611.01576) in one pass over the gates, as `torch_forward` does.

    Args:
        gates: Pre-activations (B, T, G*H) with channel stride 1, any other strides.
        bias: (B, G*H) in the dtype of `gates`, contiguous, or None.
        initial_state: (B, H) in the state's dtype (float64 for float64 gates, else float32),
            contiguous, or None for zeros.
        mask: (B, T) bool with any strides, false at pads, or None.
        seed: 0-d int64 on the device of `gates`; None if `zoneout` is 0.
        pooling: "f" (G = 2), "fo" (G = 3) or "ifo" (G = 4).
        zoneout: Probability that a forget gate is set to 1, in [0, 1).
        reverse: Process from the last timestep to the first.
        want_c: Whether `c` is written.
        want_tiles: Whether `tiles`, which `pool_backward` needs, are written.

    Returns:
        `h` (B, T, H) in the dtype of `gates`; in the state's dtype `c` (B, T, H), the last `state`
        (B, H), and `tiles` (B, ceil(T / 32), H), the states before steps 0, 32, 64 ... in
        processing order. What is not wanted has shape (0,).

    Raises:
        TypeError: If `gates` are not float64, float32, bfloat16 or float16.
    """
    _check_dtype(gates)
    batch, length, hidden = _sizes(gates, pooling)
    dtype = _state_dtype(gates)
    h = gates.new_empty(batch, length, hidden)
    c = gates.new_empty((batch, length, hidden) if want_c else (0,), dtype=dtype)
    state = gates.new_empty(batch, hidden, dtype=dtype)
    noted = (batch, -(-length // TILE), hidden)
    tiles = gates.new_empty(noted if want_tiles else (0,), dtype=dtype)
    if batch and hidden:
        gates, mask, sizes, options = _arguments(gates, mask, pooling, zoneout, reverse)
        steps = _FORWARD_STEPS if options["BLOCK"] == _WARP else _WIDE_FORWARD_STEPS
        # A decoding step has one; the others would be loaded for nothing.
        options["STEPS"] = 1 if length == 1 else steps
        seed = seed if zoneout > 0.0 else None
        results = (h, c if want_c else None, state, tiles if want_tiles else None)
        with _on(gates.device):
            _forward_kernel[_grid(gates, options)](
                gates, bias, initial_state, mask, seed, *results, *sizes, **options
            )
    return h, c, state, tiles


def pool_backward(
    grad_h: torch.Tensor | None,
    grad_c: torch.Tensor | None,
    grad_state: torch.Tensor | None,
    gates: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    tiles: torch.Tensor,
    pooling: str,
    zoneout: float,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of `pool_forward` from its arguments and the states in `tiles`.

    Args:
        grad_h: (B, T, H) in the dtype of `gates`, or None for zeros.
        grad_c: (B, T, H) in the state's dtype, or None for zeros.
        grad_state: (B, H) in the state's dtype, or None for zeros.
        gates: The rest are the arguments of `pool_forward`, and its `tiles`.

    Returns:
        `grad_gates` (B, T, G*H) in the dtype of `gates`; `grad_bias` (B, G*H), their sum over time
        before that rounding, shape (0,) without a bias; `grad_initial` (B, H); both in the state's
        dtype.

    Raises:
        TypeError: If `gates` are not float64, float32, bfloat16 or float16.
    """
    _check_dtype(gates)
    batch, _, hidden = _sizes(gates, pooling)
    dtype = _state_dtype(gates)
    grad_gates = gates.new_empty(gates.shape)
    grad_bias = gates.new_empty((0,) if bias is None else bias.shape, dtype=dtype)
    grad_initial = gates.new_empty(batch, hidden, dtype=dtype)
    if batch and hidden:
        gates, mask, sizes, options = _arguments(gates, mask, pooling, zoneout, reverse)
        options["STEPS"] = TILE // 4  # the kernel names four groups of a tile
        seed = seed if zoneout > 0.0 else None
        given = (x if x is None else x.contiguous() for x in (grad_h, grad_c, grad_state))
        results = (grad_gates, None if bias is None else grad_bias, grad_initial)
        with _on(gates.device):
            _backward_kernel[_grid(gates, options)](
                *given, gates, bias, mask, seed, tiles, *results, *sizes, **options
            )
    return grad_gates, grad_bias, grad_initial


def _check_dtype(gates: torch.Tensor) -> None:
    if gates.dtype not in _DTYPES:
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise TypeError(f"`gates` must be one of {names}, but is {gates.dtype}.")


def _state_dtype(gates: torch.Tensor) -> torch.dtype:
    return torch.float64 if gates.dtype == torch.float64 else torch.float32


def _sizes(gates: torch.Tensor, pooling: str) -> tuple[int, int, int]:
    batch, length, channels = gates.shape
    return batch, length, channels // NUM_GATES[pooling]


def _arguments(
    gates: torch.Tensor, mask: torch.Tensor | None, pooling: str, zoneout: float, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, ...], dict[str, Any]]:
    """Return what both kernels are given: gates, mask, sizes and compile-time constants."""
    batch, length, hidden = _sizes(gates, pooling)
    if gates.stride(2) != 1:
        gates = gates.contiguous()
    if mask is not None:
        # The same bytes, as numbers that the kernels compare with 0.
        mask = mask.view(torch.uint8)
    mask_b, mask_t = (0, 0) if mask is None else mask.stride()
    threshold = round(zoneout * (1 << 24))
    sizes = (length, hidden, gates.stride(0), gates.stride(1), mask_b, mask_t, threshold)
    # One warp with a channel a thread, or with two where there are enough warps all the same.
    wide = gates.dtype != torch.float64 and batch * hidden >= _WIDE_FROM
    options = {
        "GATES": NUM_GATES[pooling],
        "REVERSE": reverse,
        "BLOCK": 2 * _WARP if wide else _WARP,
        "TILE": TILE,
        "num_warps": 1,
        "enable_fp_fusion": True,  # said aloud: Triton 3.9 warns where it is left to the default
    }
    return gates, mask, sizes, options


def _grid(gates: torch.Tensor, options: dict[str, Any]) -> tuple[int]:
    """Return the number of programs: a row and `BLOCK` channels each."""
    blocks = -(-gates.shape[2] // (options["GATES"] * options["BLOCK"]))
    return (gates.shape[0] * blocks,)  # the one axis without a limit of 65,535


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make `device` the current one: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
