"""The equations of quasi-recurrent pooling (section 2.1 of arXiv 1611.01576), in plain torch.

Every pooling kind is one elementwise recurrence over time, `c_t = f_t . c_{t-1} + write_t`:

    f-pooling    (Eq. 3)   c_t = f_t . c_{t-1} + (1 - f_t) . z_t       h_t = c_t
    fo-pooling   (Eq. 4)   c_t = f_t . c_{t-1} + (1 - f_t) . z_t       h_t = o_t . c_t
    ifo-pooling  (Eq. 5)   c_t = f_t . c_{t-1} + i_t . z_t             h_t = o_t . c_t

A pad and a zoned-out channel are the same thing said with `f_t = 1`: the state is carried.

This is the definition that kernels must equal; `pooling_qrnn.py` makes an operation of it.

Shapes: B batch, T time, H units, G gates. Gate order is always z, f, o, i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from .internals_qrnn import scan_of_graphs
from .pool_kinds_qrnn import NUM_GATES, POOL_KINDS

# The state before every 32nd processed step is kept for the backward pass: a tile's start.
TILE = 32


class _Gates(NamedTuple):
    """Activated gates, each (B, T, H) in the state's dtype; `f` is 1 where the state is carried."""

    z: torch.Tensor
    f: torch.Tensor
    o: torch.Tensor | None
    i: torch.Tensor  # 1 - f without an input gate; 0 where nothing is written


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The state is kept in float32, or float64 for float64 gates."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    kind = POOL_KINDS[pooling]
    o = parts[2].sigmoid() if kind.has_output_gate else None
    # 1 - sigmoid(x) would lose what a long memory is made of: sigmoid(-x) keeps every digit.
    i = parts[-1].sigmoid() if kind.has_input_gate else parts[1].neg().sigmoid()
    if zoneout > 0.0:
        assert seed is not None, "zoneout needs a seed"
        batch, length, channels = z.shape
        zoned_out = ~zoneout_keep(seed, batch, length, channels, zoneout)
        f = f.masked_fill(zoned_out, 1.0)
        i = i if kind.has_input_gate else i.masked_fill(zoned_out, 0.0)
    if mask is not None:
        padded = ~mask[:, :, None].bool()
        f, i = f.masked_fill(padded, 1.0), i.masked_fill(padded, 0.0)
        o = None if o is None else o.masked_fill(padded, 0.0)
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


def torch_forward(
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


def torch_backward(
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
    has_input_gate = POOL_KINDS[pooling].has_input_gate
    change = c_before if has_input_gate else c_before.sub_(z)
    slope_f = f * (1 - f) if has_input_gate else f * i
    grads = [_tanh_slope(grad * i, z), change.mul_(slope_f).mul_(grad)]
    if o is not None:
        grads.append(_sigmoid_slope(grad_h * c, o))
    if has_input_gate:
        grads.append(_sigmoid_slope(grad * z, i))
    grad_x = torch.cat(grads, dim=-1)  # (B, T, G*H)
    grad_bias = grad_x.sum(1) if bias is not None else grad_x.new_zeros(0)
    end = length - 1 if reverse else 0
    return grad_x.to(gates.dtype), grad_bias, f[:, end] * grad[:, end]


# grad . (1 - z^2) and grad . y (1 - y), in one pass each.
_tanh_slope = torch.ops.aten.tanh_backward.default
_sigmoid_slope = torch.ops.aten.sigmoid_backward.default


def scan_differentiable(
    f: torch.Tensor, write: torch.Tensor, state: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states and the final one, by operations that autograd follows to any order."""
    states: list[torch.Tensor] = []
    times = range(write.shape[1])
    for t in reversed(times) if reverse else times:
        state = f[:, t] * state + write[:, t]
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, dim=1) if states else write, state


def scan_in_graph(
    f: torch.Tensor, write: torch.Tensor, state: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states and the final one, by one loop of an exported graph, of any length."""

    def step(
        state: torch.Tensor, now: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        f_t, write_t = now
        state = f_t * state + write_t
        return state, state.clone()

    by_time = tuple((x.flip(1) if reverse else x).transpose(0, 1) for x in (f, write))
    state, c = scan_of_graphs()(step, state, by_time)
    # Its length is T, which the exporter would not know of itself.
    c = c.reshape(by_time[1].shape).transpose(0, 1)
    return c.flip(1) if reverse else c, state


def pool_with(
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
