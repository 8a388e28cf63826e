"""The equations of quasi-recurrent pooling (sections 2 and 2.1 of arXiv 1611.01576), in torch.

Every pooling kind is one elementwise recurrence over time, `c_t = f_t . c_{t-1} + write_t`:

    f-pooling    (Eq. 3)   c_t = f_t . c_{t-1} + (1 - f_t) . z_t       h_t = c_t
    fo-pooling   (Eq. 4)   c_t = f_t . c_{t-1} + (1 - f_t) . z_t       h_t = o_t . c_t
    ifo-pooling  (Eq. 5)   c_t = f_t . c_{t-1} + i_t . z_t             h_t = o_t . c_t

Eq. 3 of the paper calls the state h, since nothing stands between it and the output; here it is c
in every kind. Zoneout (Eq. 6) sets `f_t = 1`; without an input gate nothing is written then, and
the state is carried. A pad carries it in every kind, and its h_t is 0. The convolution of Eq. 1 is
in `convolution_qrnn.py`; its tanh and sigmoids are here, in `_activate`.

To read: `_activate`, `_scan` and `torch_forward` are the definition that kernels must equal;
`torch_backward` is its gradient. `pooling_qrnn.py` makes an operation of both.

Shapes: B batch, T time, H units, G gates. Gate order is always z, f, o, i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from .internals_qrnn import scan_of_graphs
from .pool_kinds_qrnn import NUM_GATES, POOL_KINDS

# A tile is 32 processed steps. Forward keeps the state before each tile, and backward recomputes
# the others: all of them would take as much memory as h, twice as much for 16-bit gates.
TILE = 32


class _Gates(NamedTuple):
    """The activated gates, each (B, T, H) in the state's dtype.

    Attributes:
        z: The candidate; what it holds at a pad is never used.
        f: The forget gate; exactly 1 where the state is carried.
        o: The output gate, 0 at a pad; None where the kind has none.
        i: The factor of z: the input gate, or 1 - f where the kind has none; 0 at a pad, and where
            zoneout carries the state of a kind without an input gate.
    """

    z: torch.Tensor
    f: torch.Tensor
    o: torch.Tensor | None
    i: torch.Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the state's dtype: float64 for float64 gates, else float32.

    A sum over many steps would lose small contributions in 16 bits.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


# ------------------------------------------------------------------ zoneout bits

# SplitMix64 (Steele, Lea and Flood 2014). Its constants as signed 64-bit integers, since torch has
# few operations on unsigned ones.
_GOLDEN = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Apply the finaliser of SplitMix64 to int64 tensors.

    Products wrap around. A mask behind each shift clears the copies of the sign, so that the shift
    is that of an unsigned number.
    """
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def counter_key(seed: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Return SplitMix64 at every (b, t), (B, T, 1): the key of the draws of a step."""
    b = torch.arange(batch, dtype=torch.int64, device=seed.device)[:, None, None]
    t = torch.arange(length, dtype=torch.int64, device=seed.device)[None, :, None]
    return _mix(seed + ((b << 32) + t + 1) * _GOLDEN)


def words_at(key: torch.Tensor, number: int) -> torch.Tensor:
    """Return the first `number` draws of 64 bits at `key` (B, T, 1): (B, T, `number`)."""
    counter = torch.arange(1, number + 1, dtype=torch.int64, device=key.device)
    # By halves: of a range a compiler makes an index, whose products it takes for numbers that do
    # not wrap around (inductor's C++ then has other bits).
    high, low = _GOLDEN >> 32, _GOLDEN & 0xFFFFFFFF
    return _mix(key + (((counter * high) << 32) + counter * low))


def zoneout_keep(
    seed: torch.Tensor, batch: int, length: int, channels: int, probability: float
) -> torch.Tensor:
    """Draw the mask of Eq. 6: (B, T, H), True where a forget gate is left alone.

    Each bit is a function of (seed, b, t, channel): the top 24 bits of SplitMix64 at counter
    `channel`, keyed by SplitMix64 at (b, t), against `probability`. So forward, backward and every
    backend see the same mask, and nobody stores it.

    Args:
        seed: 0-d int64 tensor.
        batch, length, channels: B, T and H.
        probability: Of a forget gate being set to 1, in [0, 1).
    """
    bits = (words_at(counter_key(seed, batch, length), channels) >> 40) & 0xFFFFFF  # (B, T, H)
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
    """Compute everything elementwise before the recurrence: activations (Eq. 1), zoneout, pads.

    Args:
        gates: W * X of Eq. 1, all gates beside each other, (B, T, G*H).
        bias: Added to every step of a row, (B, G*H): the bias of Eq. 1, V h~ of Eq. 7.
        mask: (B, T), true or 1 where the step is real.
        seed: 0-d int64, of the zoneout mask.
        pooling: A name of `POOL_KINDS`.
        zoneout: Probability of Eq. 6.
    """
    # Contiguous, so that every result has the strides the fake kernels promise to compilers.
    x = gates.contiguous().to(state_dtype(gates.dtype))
    if bias is not None:
        x = x + bias.to(gates.dtype).to(x.dtype)[:, None]
    parts = x.chunk(NUM_GATES[pooling], dim=-1)  # G times (B, T, H)
    z, f = parts[0].tanh(), parts[1].sigmoid()  # Z = tanh(W_z * X), F = sigma(W_f * X) (Eq. 1)
    kind = POOL_KINDS[pooling]
    o = parts[2].sigmoid() if kind.has_output_gate else None
    # sigmoid(-x) is 1 - sigmoid(x) with all its digits. The difference has few where f is near 1,
    # and there 1 - f is the little that a long memory takes in.
    i = parts[-1].sigmoid() if kind.has_input_gate else parts[1].neg().sigmoid()
    if zoneout > 0.0:
        assert seed is not None, "zoneout needs a seed"
        batch, length, channels = z.shape
        # Eq. 6: F = 1 - dropout(1 - sigma(W_f * X)), where dropout sets to 0 and rescales nothing.
        zoned_out = ~zoneout_keep(seed, batch, length, channels, zoneout)
        f = f.masked_fill(zoned_out, 1.0)
        # An input gate of its own (Eq. 5) stays: zoneout is about the forget gate alone.
        i = i if kind.has_input_gate else i.masked_fill(zoned_out, 0.0)
    if mask is not None:
        # A pad carries the state, writes nothing and lets nothing out.
        padded = ~mask[:, :, None].bool()
        f, i = f.masked_fill(padded, 1.0), i.masked_fill(padded, 0.0)
        o = None if o is None else o.masked_fill(padded, 0.0)
    return _Gates(z, f, o, i)


def _scan(f: torch.Tensor, write: torch.Tensor, first: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Compute all states c_t = f_t . c_{t-1} + write_t (Eqs. 3 to 5), (B, T, H).

    Args:
        f, write: (B, T, H).
        first: The state before the first processed step, (B, H).
        reverse: Whether the last step is processed first.
    """
    # Each step writes its row of one tensor; autograd cannot follow that, see `torch_backward`.
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


def _hidden(c: torch.Tensor, o: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Compute h (B, T, H) of the states: Eqs. 4 and 5, or Eq. 3, where it may be `c` itself."""
    return o * c if o is not None else _hide_pads(c, mask)


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
    """Pool (Eqs. 3 to 6): the definition of what every backend's forward returns.

    Args:
        gates: Pre-activations (B, T, G*H) in gate order z, f, o, i.
        bias: (B, G*H), added to every step, or None.
        initial_state: (B, H), or None for zeros.
        mask: (B, T), true where the step is real, or None.
        seed: 0-d int64, or None without zoneout.
        pooling: A name of `POOL_KINDS`.
        zoneout: Probability of Eq. 6, in [0, 1).
        reverse: Whether the last step is processed first.
        want_c: Whether `c` is wanted.
        want_tiles: Whether `tiles` are wanted.

    Returns:
        `h` (B, T, H) in the dtype of `gates`; in the state's dtype `c` (B, T, H), the final state
        (B, H) and `tiles` (B, ceil(T / TILE), H), the states before steps 0, 32, 64 ... in
        processing order. What is not wanted has shape (0,).
    """
    z, f, o, i = _activate(gates, bias, mask, seed, pooling, zoneout)
    first = _first_state(initial_state, z)
    c = _scan(f, i * z, first, reverse)
    h = _hidden(c, o, mask)
    # Clones, and two empty tensors: an operation must not return the same tensor twice.
    h = h.clone() if h is c else h
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
    """Recompute all states (B, T, H), every tile from its start.

    The tiles are scanned beside each other: TILE steps on large tensors take less time than T on
    small ones.

    Args:
        f, write: (B, T, H).
        tiles: The states before each tile, (B, ceil(T / TILE), H).
        reverse: Whether the last step is processed first.
    """
    length = f.shape[1]
    size = min(TILE, length)
    if reverse:
        f, write = f.flip(1), write.flip(1)
    extra = (0, 0, 0, -length % size)
    # All tiles as one batch: (B * ceil(T / size), size, H).
    f, write = (pad(x, extra).unflatten(1, (-1, size)).flatten(0, 1) for x in (f, write))
    c = _scan(f, write, tiles.flatten(0, 1), False)
    c = c.unflatten(0, tiles.shape[:2]).flatten(1, 2)[:, :length]  # (B, T, H)
    return c.flip(1) if reverse else c


def _neighbours(
    c: torch.Tensor, f: torch.Tensor, first: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return c_{t-1} of every step, and the f_{t+1} through which its state reaches the next.

    The final state's own gradient comes through a factor of 1.
    """
    before, after = [first[:, None], c[:, :-1]], [f[:, 1:], torch.ones_like(f[:, :1])]
    if reverse:
        before, after = [c[:, 1:], first[:, None]], [torch.ones_like(f[:, :1]), f[:, :-1]]
    return torch.cat(before, dim=1), torch.cat(after, dim=1)  # (B, T, H) each


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
    """Compute the gradients of the gates, the bias and the initial state.

    The gradient of c_t is what h_t and c_t receive, plus f_{t+1} times the gradient of c_{t+1}: the
    recurrence of Eqs. 3 to 5 once more, backwards. `grad_h`, `grad_c` (B, T, H) and `grad_state`
    (B, H) may be None for zeros. `tiles` are those of `torch_forward`, as are the other arguments.

    Returns:
        Of the gates (B, T, G*H) in their dtype; in the state's dtype of the bias (B, G*H), shape
        (0,) without one, and of the initial state (B, H).
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
    c_before, f_after = _neighbours(c, f, first, reverse)
    grad = _scan(f_after, received, from_state, not reverse)
    del f_after  # as large as the output

    # df/dx = f (1 - f). Where f was set to 1 (pad, zoneout) it is a constant, and this is zero of
    # itself. Without an input gate 1 - f is `i`, with more digits.
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
    """Compute all states (B, T, H) and the final one by operations that autograd can follow.

    It follows them to any order of derivatives, which it cannot in `_scan`.
    """
    states: list[torch.Tensor] = []
    times = range(write.shape[1])
    for t in reversed(times) if reverse else times:
        state = f[:, t] * state + write[:, t]
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, dim=1) if states else write, state


def scan_in_graph(
    f: torch.Tensor, write: torch.Tensor, state: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute all states (B, T, H) and the final one by one loop of an exported graph.

    A loop in Python would be written out for the length it was traced with; this runs for any T.
    """

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
    """Pool as `torch_forward` does, with `scan` for the recurrence.

    Args:
        scan: `scan_differentiable` or `scan_in_graph`.
        tensors: gates, bias, initial_state, mask and seed.
        options: pooling, zoneout and reverse.

    Returns:
        `h` (B, T, H), `c` (B, T, H) and the final state (B, H).
    """
    (gates, bias, initial_state, mask, seed), (pooling, zoneout, reverse) = tensors, options
    z, f, o, i = _activate(gates, bias, mask, seed, pooling, zoneout)
    c, state = scan(f, i * z, _first_state(initial_state, z), reverse)
    return _hidden(c, o, mask).to(gates.dtype), c, state
