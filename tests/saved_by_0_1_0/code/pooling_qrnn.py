"""Quasi-recurrent pooling: the only sequential part of a QRNN (section 2.1 of arXiv 1611.01576).

Every pooling kind is one elementwise recurrence over time, `c_t = f_t . c_{t-1} + write_t`:

    f-pooling    (Eq. 3)   c_t = f_t . c_{t-1} + (1 - f_t) . z_t       h_t = c_t
    fo-pooling   (Eq. 4)   c_t = f_t . c_{t-1} + (1 - f_t) . z_t       h_t = o_t . c_t
    ifo-pooling  (Eq. 5)   c_t = f_t . c_{t-1} + i_t . z_t             h_t = o_t . c_t

A pad and a zoned-out channel are the same thing said with `f_t = 1`: the state is carried.

What is below is the definition, in plain torch; `backends_qrnn.py` chooses between it and kernels.

Shapes: B batch, T time, H units, G gates. Gate order is always z, f, o, i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from .backends_qrnn import Backward, Forward, backward_of, choose, forward_of

NUM_GATES = {"f": 2, "fo": 3, "ifo": 4}

# The state before every 32nd processed step is kept for the backward pass: a tile's start.
TILE = 32

# The package and a model folder from the Hub may live in one process: the first copy registers the
# operations, the other uses them. Raise the number when a schema or its meaning changes.
_NAMESPACE = "hf_qrnn"
_FORWARD, _BACKWARD = "pool_v2", "pool_backward_v2"


class PoolOutput(NamedTuple):
    """What `pool` returns: `h` (B, T, H), `c` (B, T, H) where asked, the final `state` (B, H)."""

    h: torch.Tensor
    c: torch.Tensor | None
    state: torch.Tensor


class _Gates(NamedTuple):
    """Activated gates, each (B, T, H) in the state's dtype; `f` is 1 where the state is carried."""

    z: torch.Tensor
    f: torch.Tensor
    o: torch.Tensor | None
    i: torch.Tensor  # 1 - f for f- and fo-pooling; 0 where nothing is written


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The state is kept in float32, or float64 for float64 gates."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pool(
    gates: torch.Tensor,
    *,
    pooling: str,
    bias: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    zoneout: float = 0.0,
    seed: torch.Tensor | None = None,
    reverse: bool = False,
    return_c: bool = False,
    backend: str = "auto",
) -> PoolOutput:
    """Pool pre-activations over time (Eqs. 3 to 6, section 2.1 of 1611.01576).

    Equivalent to, for fo-pooling without the options:

        z, f, o = gates.chunk(3, -1); z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        for t in range(T): c = f[:, t] * c + (1 - f[:, t]) * z[:, t]; h[:, t] = o[:, t] * c

    Args:
        gates: Pre-activations (B, T, G*H) in gate order z, f, o, i; any floating dtype.
        pooling: "f" (G = 2), "fo" (G = 3) or "ifo" (G = 4).
        bias: Added to the gates of every timestep, (B, G*H): the decoder's `V h~` of Eq. 7, say.
        initial_state: c before the first processed step, (B, H); zero when None.
        mask: (B, T), true or 1 where the step is real. At a pad the state is carried, h is zero.
        zoneout: Probability that a forget gate is set to 1 (Eq. 6: no rescaling), in [0, 1).
        seed: 0-d int64 tensor the zoneout bits are a function of; drawn from torch's default
            generator when None and `zoneout` > 0.
        reverse: Process from the last timestep to the first; results stay in the given order.
        return_c: Return the states of all timesteps too.
        backend: "auto" (the fastest that works), "compiled", "triton" or "torch";
            `hf_qrnn.use_backend` and the environment variable HF_QRNN_BACKEND are stronger.

    Returns:
        `h` (B, T, H) in the dtype of `gates`; `c` (B, T, H) or None, and the final `state` (B, H),
        in at least float32. All are differentiable in gates, bias and initial_state, twice.

    Raises:
        ValueError: If a shape, `pooling`, `zoneout` or `backend` does not fit.
        RuntimeError: If the backend asked for does not work here; the sentence says why.
    """
    _check(gates, pooling, bias, initial_state, mask, zoneout)
    if seed is not None and not (
        isinstance(seed, torch.Tensor) and seed.dtype == torch.int64 and seed.dim() == 0
    ):
        given = tuple(seed.shape) if isinstance(seed, torch.Tensor) else repr(seed)
        raise ValueError(f"`seed` must be a 0-d int64 tensor, but is {given}.")
    if zoneout > 0.0 and seed is None:
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=gates.device)
    arguments = (gates, bias, initial_state, mask, seed, pooling, zoneout, reverse, return_c)
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        # ONNX knows no operation of ours.
        options = (pooling, zoneout, reverse)
        h, c, state = _pool_with(_scan_in_graph, arguments[:5], options)
        return PoolOutput(h, c if return_c else None, state)
    # An exported program's number of tiles would tie it to short or to long rows.
    want_tiles = _wants_grad(gates, bias, initial_state) and not torch.compiler.is_exporting()
    h, c, state, _ = _run(_FORWARD, *arguments, want_tiles, backend)
    return PoolOutput(h, c if return_c else None, state)


def _run(name: str, *arguments: Any) -> tuple[torch.Tensor, ...]:
    """Run an operation: registered where something traces, else without torch.library's dispatch.

    That dispatch takes longer in training than the pooling itself of a small model, and many times
    as long as a decoding step's pooling.
    """
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    function, differentiable = _EAGER[name]
    if torch.compiler.is_compiling() or any(type(x) not in _PLAIN_TENSORS for x in tensors):
        run = getattr(getattr(torch.ops, _NAMESPACE), name)
    else:
        run = differentiable.apply if _wants_grad(*tensors) else function
    results: tuple[torch.Tensor, ...] = run(*arguments)
    return results


def _wants_grad(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _check(
    gates: torch.Tensor,
    pooling: str,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    mask: torch.Tensor | None,
    zoneout: float,
) -> None:
    if pooling not in NUM_GATES:
        raise ValueError(f"`pooling` must be one of {', '.join(NUM_GATES)}, but is {pooling!r}.")
    num_gates = NUM_GATES[pooling]
    if gates.dim() != 3 or gates.shape[2] % num_gates:
        raise ValueError(
            f"`gates` must be (batch, time, {num_gates} * hidden) for {pooling!r} pooling, "
            f"but is {tuple(gates.shape)}."
        )
    if not gates.is_floating_point():
        raise ValueError(f"`gates` must be floating point, but is {gates.dtype}.")
    batch, length, channels = gates.shape
    wanted = {
        "bias": (bias, (batch, channels)),
        "initial_state": (initial_state, (batch, channels // num_gates)),
        "mask": (mask, (batch, length)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"`{name}` must have shape {shape}, but has {tuple(tensor.shape)}.")
    if not 0.0 <= zoneout < 1.0:
        raise ValueError(f"`zoneout` must be in [0, 1), but is {zoneout}.")


# ------------------------------------------------------------------ zoneout bits

# SplitMix64 (Steele, Lea and Flood 2014); constants as signed 64-bit integers.
_GOLDEN = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 on int64 tensors (wrapping products, logical shifts)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def zoneout_keep(
    seed: torch.Tensor, batch: int, length: int, channels: int, probability: float
) -> torch.Tensor:
    """True where a forget gate is left alone, (B, T, H): one bit per (seed, b, t, channel).

    A counter-based draw, so forward, backward and every backend see the same bits without a stored
    mask: the top 24 bits of SplitMix64 at counter `channel`, keyed by SplitMix64 at (b, t).
    """
    b = torch.arange(batch, dtype=torch.int64, device=seed.device)[:, None, None]
    t = torch.arange(length, dtype=torch.int64, device=seed.device)[None, :, None]
    channel = torch.arange(channels, dtype=torch.int64, device=seed.device)
    key = _mix(seed + ((b << 32) + t + 1) * _GOLDEN)  # (B, T, 1)
    bits = (_mix(key + (channel + 1) * _GOLDEN) >> 40) & 0xFFFFFF  # (B, T, H)
    return bits >= round(probability * (1 << 24))


# ------------------------------------------------------------------ the definition


def _activate(
    gates: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    pooling: str,
    zoneout: float,
) -> _Gates:
    """Activations, pads and zoneout: everything elementwise before the recurrence."""
    # Contiguous, so that every result has the strides the fake kernels promise to compilers.
    x = gates.contiguous().to(state_dtype(gates.dtype))
    if bias is not None:
        x = x + bias.to(gates.dtype).to(x.dtype)[:, None]
    parts = x.chunk(NUM_GATES[pooling], dim=-1)  # G times (B, T, H)
    z, f = parts[0].tanh(), parts[1].sigmoid()
    o = parts[2].sigmoid() if pooling != "f" else None
    # 1 - sigmoid(x) would lose what a long memory is made of: sigmoid(-x) keeps every digit.
    i = parts[3].sigmoid() if pooling == "ifo" else parts[1].neg().sigmoid()
    if zoneout > 0.0:
        assert seed is not None, "zoneout needs a seed"
        batch, length, channels = z.shape
        keep = zoneout_keep(seed, batch, length, channels, zoneout)
        f = torch.where(keep, f, 1.0)
        i = i if pooling == "ifo" else torch.where(keep, i, 0.0)
    if mask is not None:
        real = mask[:, :, None].bool()
        f, i = torch.where(real, f, 1.0), torch.where(real, i, 0.0)
        o = None if o is None else torch.where(real, o, 0.0)
    return _Gates(z, f, o, i)


def _scan(f: torch.Tensor, write: torch.Tensor, first: torch.Tensor, reverse: bool) -> torch.Tensor:
    """All states of c_t = f_t . c_{t-1} + write_t, (B, T, H), from `first` (B, H)."""
    c = torch.empty_like(write)
    steps = list(zip(f.unbind(1), write.unbind(1), c.unbind(1), strict=True))
    state = first
    for f_t, write_t, c_t in reversed(steps) if reverse else steps:
        torch.addcmul(write_t, f_t, state, out=c_t)
        state = c_t
    return c


def _first_state(initial_state: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    if initial_state is None:
        return like.new_zeros(like.shape[0], like.shape[2])
    return initial_state.to(like.dtype)


def _hide_pads(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return h if mask is None else h.masked_fill(~mask[:, :, None].bool(), 0.0)


def _torch_forward(
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
    """`h`, `c` (empty if not wanted), the final state and the tiles' starts (B, T/TILE, H)."""
    z, f, o, i = _activate(gates, bias, mask, seed, pooling, zoneout)
    first = _first_state(initial_state, z)
    c = _scan(f, i * z, first, reverse)
    h = o * c if o is not None else _hide_pads(c.clone(), mask)
    # One tensor each: an operation must not return the same one twice.
    no_c, tiles = c.new_empty(0), c.new_empty(0)
    if c.shape[1] == 0:
        tiles = c if want_tiles else tiles
        return h.to(gates.dtype), c.clone() if want_c else no_c, first.clone(), tiles
    state = (c[:, 0] if reverse else c[:, -1]).clone()
    if want_tiles:
        in_order = c.flip(1) if reverse else c
        before = in_order[:, TILE - 1 : -1 : TILE]
        tiles = torch.cat([first[:, None], before], dim=1)  # (B, ceil(T/TILE), H)
    return h.to(gates.dtype), c if want_c else no_c, state, tiles


def _states_from_tiles(
    f: torch.Tensor, write: torch.Tensor, tiles: torch.Tensor, reverse: bool
) -> torch.Tensor:
    """All states (B, T, H) again, every tile from its start: at most TILE steps, not T."""
    length = f.shape[1]
    size = min(TILE, length)
    if reverse:
        f, write = f.flip(1), write.flip(1)
    extra = (0, 0, 0, -length % size)
    # All tiles as one batch: (B * T/size, size, H).
    f, write = (pad(x, extra).unflatten(1, (-1, size)).flatten(0, 1) for x in (f, write))
    c = _scan(f, write, tiles.flatten(0, 1), False)
    c = c.unflatten(0, tiles.shape[:2]).flatten(1, 2)[:, :length]  # (B, T, H)
    return c.flip(1) if reverse else c


def _torch_backward(
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
    """Gradients of gates, bias (empty without one) and the initial state.

    grad of c_t: what h_t and c_t receive, plus f_{t+1} times the gradient of c_{t+1}.
    """
    z, f, o, i = _activate(gates, bias, mask, seed, pooling, zoneout)
    first = _first_state(initial_state, z)
    from_state = torch.zeros_like(first) if grad_state is None else grad_state
    length = z.shape[1]
    if length == 0:
        none = z.new_zeros(0) if bias is None else z.new_zeros(bias.shape)
        return gates.new_zeros(gates.shape), none, from_state.clone()
    c = _states_from_tiles(f, i * z, tiles, reverse)
    grad_h = torch.zeros_like(c) if grad_h is None else grad_h.to(c.dtype)
    received = grad_h * o if o is not None else _hide_pads(grad_h, mask)
    if grad_c is not None:
        received = received + grad_c
    before, after = [first[:, None], c[:, :-1]], [f[:, 1:], torch.ones_like(f[:, :1])]
    if reverse:
        before, after = [c[:, 1:], first[:, None]], [torch.ones_like(f[:, :1]), f[:, :-1]]
    c_before = torch.cat(before, dim=1)
    grad = _scan(torch.cat(after, dim=1), received, from_state, not reverse)

    # Where f was set to 1 (pad, zoneout) it is a constant, and f (1 - f) is zero of itself.
    change = c_before if pooling == "ifo" else c_before.sub_(z)
    slope_f = f * (1 - f) if pooling == "ifo" else f * i
    grads = [_tanh_slope(grad * i, z), change.mul_(slope_f).mul_(grad)]
    if o is not None:
        grads.append(_sigmoid_slope(grad_h * c, o))
    if pooling == "ifo":
        grads.append(_sigmoid_slope(grad * z, i))
    grad_x = torch.cat(grads, dim=-1)  # (B, T, G*H)
    grad_bias = grad_x.sum(1) if bias is not None else grad_x.new_zeros(0)
    end = length - 1 if reverse else 0
    return grad_x.to(gates.dtype), grad_bias, f[:, end] * grad[:, end]


# grad . (1 - z^2) and grad . y (1 - y), in one pass each.
_tanh_slope = torch.ops.aten.tanh_backward.default
_sigmoid_slope = torch.ops.aten.sigmoid_backward.default


def _scan_differentiable(
    f: torch.Tensor, write: torch.Tensor, state: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states and the final one, by operations that autograd follows to any order."""
    states: list[torch.Tensor] = []
    times = range(write.shape[1])
    for t in reversed(times) if reverse else times:
        state = f[:, t] * state + write[:, t]
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, dim=1) if states else write, state


def _scan_in_graph(
    f: torch.Tensor, write: torch.Tensor, state: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states and the final one, by one loop of an exported graph, of any length."""
    from torch._higher_order_ops.scan import scan

    def step(
        state: torch.Tensor, now: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        f_t, write_t = now
        state = f_t * state + write_t
        return state, state.clone()

    by_time = tuple((x.flip(1) if reverse else x).transpose(0, 1) for x in (f, write))
    state, c = scan(step, state, by_time)
    # Its length is T, which the exporter would not know of itself.
    c = c.reshape(by_time[1].shape).transpose(0, 1)
    return c.flip(1) if reverse else c, state


def _pool_with(
    scan: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    tensors: Sequence[Any],
    options: tuple[str, float, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`h`, `c`, final state of gates, bias, initial state, mask and seed; `scan` recurs."""
    (gates, bias, initial_state, mask, seed), (pooling, zoneout, reverse) = tensors, options
    z, f, o, i = _activate(gates, bias, mask, seed, pooling, zoneout)
    c, state = scan(f, i * z, _first_state(initial_state, z), reverse)
    h = o * c if o is not None else _hide_pads(c, mask)
    return h.to(gates.dtype), c, state


# ------------------------------------------------------------------ the operations


def _fit(
    gates: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The arguments as every backend takes them: dtypes, and adjacent channels."""
    if gates.shape[2] > 1 and gates.stride(2) != 1:
        gates = gates.contiguous()
    if bias is not None:
        bias = bias.to(gates.dtype).contiguous()
    if initial_state is not None:
        initial_state = initial_state.to(state_dtype(gates.dtype)).contiguous()
    return gates, bias, initial_state, None if mask is None else mask.bool()  # type: ignore[return-value]


def _pool_forward(
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
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen = choose(backend, gates.device, gates.dtype)
    forward: Forward = _torch_forward if chosen == "torch" else forward_of(chosen)
    tensors = _fit(gates, bias, initial_state, mask)
    return forward(*tensors, seed, pooling, zoneout, reverse, want_c, want_tiles)


def _pool_backward(
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
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen = choose(backend, gates.device, gates.dtype)
    backward: Backward = _torch_backward if chosen == "torch" else backward_of(chosen)
    tensors = _fit(gates, bias, initial_state, mask)
    grads = [None if x is None else x.contiguous() for x in (grad_h, grad_c, grad_state)]
    return backward(*grads, *tensors, seed, tiles, pooling, zoneout, reverse)


# ------------------------------------------------------------------ registration


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, pooling, zoneout, reverse, _, ctx.has_tiles, backend = inputs
    ctx.options = (pooling, zoneout, reverse)
    ctx.backend = backend
    ctx.save_for_backward(*tensors, output[3])
    ctx.set_materialize_grads(False)


def _forward_vjp(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    *tensors, tiles = ctx.saved_tensors
    unused: tuple[None, ...] = (None,) * 8
    given = grads[:3]  # of h, c and the state; nobody reads the tiles
    if all(grad is None for grad in given):
        return (None, None, None, *unused)
    if not ctx.has_tiles:
        tiles = _run(_FORWARD, *tensors, *ctx.options, False, True, ctx.backend)[3]
    results = _run(_BACKWARD, *given, *tensors, tiles, *ctx.options, ctx.backend)
    _, bias, initial_state, *_ = tensors
    grad_bias = None if bias is None else results[1].to(bias.dtype)
    grad_initial = None if initial_state is None else results[2].to(initial_state.dtype)
    return (results[0], grad_bias, grad_initial, *unused)


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, pooling, zoneout, reverse, _ = inputs
    ctx.options = (pooling, zoneout, reverse)
    ctx.save_for_backward(*tensors)


def _backward_vjp(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
    """Second derivatives: differentiate the first ones of the differentiable definition.

    The tiles are recomputed here from their own causes, so their gradient needs no path of its own.
    """
    *given, mask, seed, _ = ctx.saved_tensors  # grads of h, c, state; gates, bias, initial_state
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in given]
        cotangents, causes = leaves[:3], leaves[3:]
        outputs = _pool_with(_scan_differentiable, (*causes, mask, seed), ctx.options)
        pairs = [(out, g) for out, g in zip(outputs, cotangents, strict=True) if g is not None]
        wanted = [(x, g) for x, g in zip(causes, grads, strict=True) if x is not None]
        first = torch.autograd.grad(
            [out for out, _ in pairs],
            [x for x, _ in wanted],
            [g.to(out.dtype) for out, g in pairs],
            create_graph=True,
            materialize_grads=True,
        )
        products = [(x.to(g.dtype) * g).sum() for x, (_, g) in zip(first, wanted, strict=True)]
        inputs = [x for x in leaves if x is not None]
        second = iter(
            torch.autograd.grad(sum(products), inputs, allow_unused=True)  # type: ignore[arg-type]
        )
    results = [None if x is None else next(second) for x in leaves]
    return (*results, *(None,) * 7)


class _PoolFunction(torch.autograd.Function):
    """The forward operation with the derivatives it is registered with, for eager training."""

    forward = staticmethod(_pool_forward)
    setup_context = staticmethod(_forward_context)
    backward = staticmethod(_forward_vjp)


class _PoolBackwardFunction(torch.autograd.Function):
    """The backward operation with its derivatives, where gradients of gradients are wanted."""

    forward = staticmethod(_pool_backward)
    setup_context = staticmethod(_backward_context)
    backward = staticmethod(_backward_vjp)


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
_EAGER = {
    _FORWARD: (_pool_forward, _PoolFunction),
    _BACKWARD: (_pool_backward, _PoolBackwardFunction),
}


def _fake_forward(
    gates: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    pooling, _, _, want_c, want_tiles, _ = rest[4:]
    batch, length, channels = gates.shape
    hidden, dtype = channels // NUM_GATES[pooling], state_dtype(gates.dtype)
    num_tiles = (length + TILE - 1) // TILE
    return (
        gates.new_empty(batch, length, hidden),
        gates.new_empty((batch, length, hidden) if want_c else (0,), dtype=dtype),
        gates.new_empty((batch, hidden), dtype=dtype),
        gates.new_empty((batch, num_tiles, hidden) if want_tiles else (0,), dtype=dtype),
    )


def _fake_backward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gates, bias, tiles = arguments[3], arguments[4], arguments[8]
    grad_bias = tiles.new_empty(0) if bias is None else tiles.new_empty(bias.shape)
    return gates.new_empty(gates.shape), grad_bias, tiles.new_empty(tiles.shape[0], tiles.shape[2])


def _register() -> None:
    """Make the two operations one node each in compiled and exported graphs."""
    if hasattr(getattr(torch.ops, _NAMESPACE), _FORWARD):
        return
    tensors = "Tensor gates, Tensor? bias, Tensor? initial_state, Tensor? mask, Tensor? seed"
    options = "str pooling, float zoneout, bool reverse"
    forward = torch.library.custom_op(
        f"{_NAMESPACE}::{_FORWARD}",
        _pool_forward,
        mutates_args=(),
        schema=f"({tensors}, {options}, bool want_c, bool want_tiles, str backend)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
    )
    backward = torch.library.custom_op(
        f"{_NAMESPACE}::{_BACKWARD}",
        _pool_backward,
        mutates_args=(),
        schema=f"(Tensor? grad_h, Tensor? grad_c, Tensor? grad_state, {tensors}, Tensor tiles,"
        f" {options}, str backend) -> (Tensor, Tensor, Tensor)",
    )
    forward.register_fake(_fake_forward)
    backward.register_fake(_fake_backward)
    forward.register_autograd(_forward_vjp, setup_context=_forward_context)
    backward.register_autograd(_backward_vjp, setup_context=_backward_context)


_register()
