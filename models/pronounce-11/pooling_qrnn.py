"""Quasi-recurrent pooling as one operation: checks, registration, derivatives.

The equations (Eqs. 3 to 6 of arXiv 1611.01576) are in `pool_equations_qrnn.py`; `backends_qrnn.py`
chooses between them and kernels. A call goes from `pool` to `_pool_forward`; autograd comes back by
`_forward_vjp` to `_pool_backward`, and once more by `_backward_vjp`. `_run` and the rest let
torch.compile, torch.export, ONNX and torch.func do the same.

Shapes: B batch, T time, H units, G gates. Gate order is always z, f, o, i.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .backends_qrnn import AS_BEFORE, choose
from .internals_qrnn import in_forward_mode, is_transformed, register_decomposition
from .pool_equations_qrnn import (
    TILE,
    pool_with,
    scan_differentiable,
    scan_in_graph,
    state_dtype,
    zoneout_keep,
)
from .pool_kinds_qrnn import NUM_GATES

__all__ = ["NUM_GATES", "TILE", "PoolOutput", "pool", "state_dtype", "zoneout_keep"]

# The package and a model folder from the Hub may live in one process: the first copy registers the
# operations, the other uses them. Raise the number when a schema or its meaning changes.
_NAMESPACE = "hf_qrnn"
_FORWARD, _BACKWARD = "pool_v2", "pool_backward_v2"


class PoolOutput(NamedTuple):
    """The result of `pool`.

    Attributes:
        h: Outputs (B, T, H) in the dtype of the gates.
        c: States (B, T, H) in the state's dtype, or None where they were not asked for.
        state: c after the last processed step, (B, H) in the state's dtype.
    """

    h: torch.Tensor
    c: torch.Tensor | None
    state: torch.Tensor


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
    """Pool pre-activations over time (Eqs. 3 to 6, sections 2 and 2.1 of 1611.01576).

    Equivalent to, for fo-pooling without the options:

        z, f, o = gates.chunk(3, -1); z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        for t in range(T): c = f[:, t] * c + (1 - f[:, t]) * z[:, t]; h[:, t] = o[:, t] * c

    Args:
        gates: Pre-activations (B, T, G*H) in gate order z, f, o, i; any floating dtype.
        pooling: A name of `POOL_KINDS`; of the paper "f" (G = 2), "fo" (G = 3), "ifo" (G = 4).
        bias: Added to the gates of every timestep, (B, G*H), such as the decoder's `V h~` of Eq. 7.
        initial_state: c before the first processed step, (B, H); zero when None.
        mask: (B, T), true or 1 where the step is real. At a pad the state is carried, h is zero.
        zoneout: Probability that a forget gate is set to 1, in [0, 1); nothing is rescaled (Eq. 6).
        seed: 0-d int64 tensor that decides where zoneout acts. When None and `zoneout` > 0, it is
            drawn from torch's default generator.
        reverse: Process from the last timestep to the first; results stay in the given order.
        return_c: Return the states of all timesteps too.
        backend: "auto" (the fastest that works), "native", "triton" or "torch";
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
    if not _is_plain(arguments[:5]):
        return _pool_watched(arguments, backend)
    # Nearly every call, and `_run` would ask all of it again, piece by piece.
    wants = torch.is_grad_enabled() and _require_grad(gates, bias, initial_state)
    run: Any = _EagerPool.apply if wants else _pool_forward
    h, c, state, _ = run(*arguments, wants, backend)
    return PoolOutput(h, c if return_c else None, state)


def _pool_watched(arguments: tuple[Any, ...], backend: str) -> PoolOutput:
    """Pool where something traces, transforms or goes along; the first nine of `_pool_forward`."""
    *tensors, pooling, zoneout, reverse, return_c = arguments
    if in_forward_mode() or (is_transformed() and torch.compiler.is_compiling()):
        # Neither forward-mode derivatives nor a compiled transform follow an operation of ours.
        h, c, state = pool_with(scan_differentiable, tensors, (pooling, zoneout, reverse))
        return PoolOutput(h, c if return_c else None, state)
    # For backward. In an exported program their number would tie it to short or to long rows.
    want_tiles = _wants_grad(*tensors[:3]) and not torch.compiler.is_exporting()
    h, c, state, _ = _run(_FORWARD, *arguments, want_tiles, backend)
    return PoolOutput(h, c if return_c else None, state)


def _run(name: str, *arguments: Any) -> tuple[torch.Tensor, ...]:
    """Run an operation: registered where something traces, else without torch.library's dispatch.

    That dispatch takes longer in training than the pooling itself of a small model, and many times
    as long as a decoding step's pooling.
    """
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    function, eager, transformable = _EAGER[name]
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced or any(type(x) not in _PLAIN_TENSORS for x in tensors):
        run = getattr(getattr(torch.ops, _NAMESPACE), name)
        # A copy of 0.1.0 may have registered it, which knows "native" by its alias alone.
        *arguments, backend = arguments  # type: ignore[assignment]
        arguments = (*arguments, AS_BEFORE.get(backend, backend))
    elif is_transformed():
        run = transformable.apply
    else:
        run = eager.apply if _wants_grad(*tensors) else function
    results: tuple[torch.Tensor, ...] = run(*arguments)
    return results


def _wants_grad(*tensors: torch.Tensor | None) -> bool:
    """Tell whether a gradient may be asked for, so that forward must keep the tiles."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True  # one trace for training and for use
    if not torch.is_grad_enabled():
        return False
    # Inside a vmap a tensor does not say what an outer transform wants of it.
    return _require_grad(*tensors) or is_transformed()


def _require_grad(*tensors: torch.Tensor | None) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


def _is_plain(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Tell whether these are torch's own tensors, and nothing traces, transforms or goes along."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not is_transformed()
        and not in_forward_mode()
        and all(x is None or type(x) in _PLAIN_TENSORS for x in tensors)
    )


def _check(
    gates: torch.Tensor,
    pooling: str,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    mask: torch.Tensor | None,
    zoneout: float,
) -> None:
    """Check the arguments of `pool`.

    Raises:
        ValueError: If a shape, the dtype of `gates`, `pooling` or `zoneout` does not fit.
    """
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
    if bias is not None:
        _check_shape("bias", bias, (batch, channels))
    if initial_state is not None:
        _check_shape("initial_state", initial_state, (batch, channels // num_gates))
    if mask is not None:
        _check_shape("mask", mask, (batch, length))
    if not 0.0 <= zoneout < 1.0:
        raise ValueError(f"`zoneout` must be in [0, 1), but is {zoneout}.")


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, but has {tuple(tensor.shape)}.")


# ------------------------------------------------------------------ the operations


def _fit(
    gates: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """Bring the arguments into the form that every backend takes: dtypes, adjacent channels."""
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
    """Pool by the backend chosen: arguments and results are those of `torch_forward`."""
    chosen = choose(backend, gates.device, gates.dtype, pooling)
    tensors = _fit(gates, bias, initial_state, mask)
    return chosen.forward(*tensors, seed, pooling, zoneout, reverse, want_c, want_tiles)


def pool_eagerly(
    gates: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    pooling: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pool as `pool` does, where nobody wants a gradient and the caller knows that all fits.

    Returns:
        h, nothing, the final state and nothing, as `torch_forward`.
    """
    options = (pooling, 0.0, False, False, False)
    return _pool_forward(gates, bias, initial_state, None, None, *options, backend)


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
    """Compute first derivatives by the backend chosen, as `torch_backward` does."""
    chosen = choose(backend, gates.device, gates.dtype, pooling)
    tensors = _fit(gates, bias, initial_state, mask)
    grads = [None if x is None else x.contiguous() for x in (grad_h, grad_c, grad_state)]
    return chosen.backward(*grads, *tensors, seed, tiles, pooling, zoneout, reverse)


# ------------------------------------------------------------------ registration


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """Keep for `_forward_vjp` the inputs and the tiles, not the states of all steps."""
    # `_` is want_c, on which no gradient depends.
    *tensors, pooling, zoneout, reverse, _, ctx.has_tiles, backend = inputs
    ctx.options = (pooling, zoneout, reverse)
    ctx.backend = backend
    ctx.save_for_backward(*tensors, output[3])
    # Most calls give no gradient to c: None costs nothing, a tensor of zeros is memory and time.
    ctx.set_materialize_grads(False)


def _forward_vjp(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    """Compute the gradients of the forward operation's inputs (B, T, G*H), (B, G*H), (B, H)."""
    *tensors, tiles = ctx.saved_tensors
    unused: tuple[None, ...] = (None,) * 8  # mask, seed and the six options have no gradient
    given = grads[:3]  # of h, c and the state; nobody reads the tiles
    if all(grad is None for grad in given):
        return (None, None, None, *unused)
    if in_forward_mode():
        # A derivative of a derivative: forward mode follows torch's own operations only.
        return (*_equations_vjp(given, tensors, ctx.options), *unused)
    if not ctx.has_tiles:
        # Forward did not know that a gradient would be asked for.
        tiles = _run(_FORWARD, *tensors, *ctx.options, False, True, ctx.backend)[3]
    arguments = (*given, *tensors, tiles, *ctx.options, ctx.backend)
    if not torch.is_grad_enabled() and _is_plain(arguments[:9]):
        results: tuple[torch.Tensor, ...] = _pool_backward(*arguments)
    else:
        results = _run(_BACKWARD, *arguments)
    _, bias, initial_state, *_ = tensors
    grad_bias = None if bias is None else results[1].to(bias.dtype)
    grad_initial = None if initial_state is None else results[2].to(initial_state.dtype)
    return (results[0], grad_bias, grad_initial, *unused)


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """Keep all inputs of the backward operation for `_backward_vjp`."""
    *tensors, pooling, zoneout, reverse, _ = inputs
    ctx.options = (pooling, zoneout, reverse)
    ctx.save_for_backward(*tensors)


def _backward_vjp(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
    """Compute second derivatives: the first ones of the differentiable definition, once more.

    The tiles are functions of the gates. The definition recomputes them from the gates, so that
    what flows through them is counted there, and the tiles themselves get no gradient.
    """
    *given, mask, seed, _ = ctx.saved_tensors  # grads of h, c, state; gates, bias, initial_state
    if is_transformed() or in_forward_mode():
        return (*_second_vjp(given, (mask, seed), ctx.options, grads), *(None,) * 7)
    with torch.enable_grad():
        # Leaves of a graph of its own, which is differentiated twice.
        leaves = [None if x is None else x.detach().requires_grad_() for x in given]
        cotangents, causes = leaves[:3], leaves[3:]
        outputs = pool_with(scan_differentiable, (*causes, mask, seed), ctx.options)
        pairs = [(out, g) for out, g in zip(outputs, cotangents, strict=True) if g is not None]
        wanted = [(x, g) for x, g in zip(causes, grads, strict=True) if x is not None]
        first = torch.autograd.grad(
            [out for out, _ in pairs],
            [x for x, _ in wanted],
            [g.to(out.dtype) for out, g in pairs],
            create_graph=True,
            materialize_grads=True,
        )
        # One scalar whose gradient is the sum over all wanted gradients: a vector-Jacobian product.
        products = [(x.to(g.dtype) * g).sum() for x, (_, g) in zip(first, wanted, strict=True)]
        inputs = [x for x in leaves if x is not None]
        second = iter(
            torch.autograd.grad(sum(products), inputs, allow_unused=True)  # type: ignore[arg-type]
        )
    results = [None if x is None else next(second) for x in leaves]
    return (*results, *(None,) * 7)


def _equations_vjp(
    cotangents: Sequence[torch.Tensor | None],
    tensors: Sequence[torch.Tensor | None],
    options: tuple[str, float, bool],
) -> list[torch.Tensor | None]:
    """Compute first derivatives in gates, bias and initial state by what every transform follows.

    Args:
        cotangents: Gradients of h, c and the final state; None for zeros.
        tensors: gates, bias, initial_state, mask and seed.
        options: pooling, zoneout and reverse.
    """
    *causes, mask, seed = tensors

    def outputs(*present: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = _filled(causes, present)
        h, c, state = pool_with(scan_differentiable, (*given, mask, seed), options)
        return h, c, state

    present = [x for x in causes if x is not None]
    values, vjp = torch.func.vjp(outputs, *present)  # type: ignore[misc]
    pairs = zip(values, cotangents, strict=True)
    return _filled(causes, vjp(tuple(torch.zeros_like(y) if g is None else g for y, g in pairs)))


def _second_vjp(
    given: Sequence[torch.Tensor | None],
    constants: tuple[torch.Tensor | None, torch.Tensor | None],
    options: tuple[str, float, bool],
    grads: Sequence[torch.Tensor],
) -> list[torch.Tensor | None]:
    """Compute `_backward_vjp` inside a transform, where autograd's own calls are forbidden.

    Args:
        given: Gradients of h, c and the final state, then gates, bias and initial_state.
        constants: mask and seed.
        options: pooling, zoneout and reverse.
        grads: What the first derivatives receive.
    """

    def first(*present: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = _filled(given, present)
        results = _equations_vjp(leaves[:3], (*leaves[3:], *constants), options)
        return tuple(x for x in results if x is not None)

    present = [x for x in given if x is not None]
    values, vjp = torch.func.vjp(first, *present)  # type: ignore[misc]
    wanted = [g for x, g in zip(given[3:], grads, strict=True) if x is not None]
    return _filled(given, vjp(tuple(g.to(y.dtype) for y, g in zip(values, wanted, strict=True))))


def _filled(
    places: Sequence[torch.Tensor | None], present: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """List the tensors of `present` in order where `places` has one, None elsewhere."""
    rest = iter(present)
    return [None if x is None else next(rest) for x in places]


def _vmap_rows(
    name: str, num_tensors: int, info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[torch.Tensor, ...], tuple[int | None, ...]]:
    """Run an operation over a vmapped dimension by making it part of the batch.

    No row depends on another, so more rows are as good as more calls. But zoneout depends on the
    row's number: with it each sample runs alone.

    Args:
        name: The operation.
        num_tensors: Number of its arguments that are tensors or None; they come first.
        info: torch.func's, with the size of the dimension.
        in_dims: Where each argument has the dimension; None for one that all samples share.
        arguments: The operation's.

    Returns:
        The results, and where each has the dimension.
    """
    size, options = info.batch_size, arguments[num_tensors:]
    pairs = list(zip(arguments[:num_tensors], in_dims, strict=False))
    if options[1] > 0.0:  # zoneout
        samples = []
        for index in range(size):
            own = (x if dim is None else x.select(dim, index) for x, dim in pairs)
            samples.append(_run(name, *own, *options))
        stacked = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
        return stacked, (0,) * len(stacked)
    rows = [_as_rows(x, dim, size) for x, dim in pairs]
    results = _run(name, *rows, *options)
    # What is not wanted is empty, and has no rows.
    out_dims = tuple(0 if x.dim() > 1 else None for x in results)
    return tuple(
        x if dim is None else x.unflatten(0, (size, x.shape[0] // size))
        for x, dim in zip(results, out_dims, strict=True)
    ), out_dims


def _as_rows(x: torch.Tensor | None, dim: int | None, size: int) -> torch.Tensor | None:
    """Return a vmapped tensor (B, ...) as (size * B, ...); None for a seed, which nobody reads."""
    if x is None or x.dim() == (0 if dim is None else 1):
        return None
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


class _EagerPool(torch.autograd.Function):
    """The forward operation with its registered derivatives, for eager training.

    Of a Function that torch.func takes, torch looks up the signature at every call, which takes
    longer than all else of a small layer.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Pool, and keep what `_forward_vjp` reads."""
        output = _pool_forward(*inputs)
        _forward_context(ctx, inputs, output)
        return output

    backward = staticmethod(_forward_vjp)


class _EagerPoolBackward(torch.autograd.Function):
    """The backward operation with its derivatives, for gradients of gradients."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Compute first derivatives, and keep what `_backward_vjp` reads."""
        output = _pool_backward(*inputs)
        _backward_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward_vjp)


class _PoolFunction(torch.autograd.Function):
    """The forward operation inside transforms of torch.func."""

    forward = staticmethod(_pool_forward)
    setup_context = staticmethod(_forward_context)
    backward = staticmethod(_forward_vjp)
    vmap = staticmethod(functools.partial(_vmap_rows, _FORWARD, 5))


class _PoolBackwardFunction(torch.autograd.Function):
    """The backward operation inside transforms of torch.func."""

    forward = staticmethod(_pool_backward)
    setup_context = staticmethod(_backward_context)
    backward = staticmethod(_backward_vjp)
    vmap = staticmethod(functools.partial(_vmap_rows, _BACKWARD, 9))


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
_EAGER = {
    _FORWARD: (_pool_forward, _EagerPool, _PoolFunction),
    _BACKWARD: (_pool_backward, _EagerPoolBackward, _PoolBackwardFunction),
}


def _fake_forward(
    gates: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tell compilers the shapes and dtypes of the forward results, without computing them."""
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
    """Tell compilers the shapes and dtypes of the first derivatives."""
    gates, bias, tiles = arguments[3], arguments[4], arguments[8]
    grad_bias = tiles.new_empty(0) if bias is None else tiles.new_empty(bias.shape)
    return gates.new_empty(gates.shape), grad_bias, tiles.new_empty(tiles.shape[0], tiles.shape[2])


def _forward_in_graph(
    *arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write the forward operation as operations that ONNX knows: one loop over time."""
    *tensors, pooling, zoneout, reverse, want_c, want_tiles, _ = arguments
    assert not want_tiles, "an exported program has no backward pass"
    h, c, state = pool_with(scan_in_graph, tensors, (pooling, zoneout, reverse))
    nothing = c.new_empty(0)
    return h, c if want_c else nothing, state, nothing.clone()


def _register() -> None:
    """Register the two operations, so that each is one node in compiled and exported graphs."""
    # Another copy of this file may have done so: see `_NAMESPACE`.
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
register_decomposition(
    getattr(getattr(torch.ops, _NAMESPACE), _FORWARD).default, _forward_in_graph, _fake_forward
)
