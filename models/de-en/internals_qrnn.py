"""Questions to torch by names that torch may change, in one place.

A model folder from the Hub carries this code into releases of torch that are not written yet. Where
such a name is gone, each function here gives the answer under which every result is right, if
slower; nobody else in a travelling file uses a private name of torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

try:
    from torch.utils import _pytree
except ImportError:
    _pytree = None  # type: ignore[assignment]

_C: Any = getattr(torch, "_C", None)
# Looked up once, and by compilers known as what they are.
_transforms_at_work: Callable[[], bool] | None = getattr(
    _C, "_are_functorch_transforms_active", None
)
_num_dispatch_modes: Callable[[], int] | None = getattr(_C, "_len_torch_dispatch_stack", None)
_global_hooks: Callable[[], bool] | None = getattr(nn.modules.module, "_has_any_global_hook", None)
_FORWARD_AD: Any = torch.autograd.forward_ad
_WEIGHTS = (nn.Parameter, type(None))


def is_transformed() -> bool:
    """Tell whether a transform of torch.func is at work, or may be."""
    return _transforms_at_work is None or _transforms_at_work()


def is_watched() -> bool:
    """Tell whether a dispatch mode sees every operation, or may."""
    return _num_dispatch_modes is None or _num_dispatch_modes() > 0


def in_forward_mode() -> bool:
    """Tell whether derivatives may go along with values; False where that is not to be known."""
    in_mode: bool = getattr(_FORWARD_AD, "_current_level", -1) >= 0
    return in_mode


def has_global_hooks() -> bool:
    """Tell whether somebody listens to the calls of all modules, or may."""
    return _global_hooks is None or _global_hooks()


def hooks_of(attributes: dict[str, Any]) -> list[dict[int, Any]]:
    """Return the hooks of a module, by its `vars`.

    Raises:
        KeyError: If it keeps them elsewhere.
    """
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [attributes[name] for name in names]


def tables_of(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of the modules and the parameters that a module has, by its `vars`.

    Raises:
        KeyError: If it keeps them elsewhere.
    """
    return [attributes[name] for name in ("_modules", "_parameters")]


def is_hooked(module: nn.Module) -> bool:
    """Tell whether somebody listens to the calls of `module`, or may."""
    try:
        return has_global_hooks() or any(hooks_of(vars(module)))
    except KeyError:
        return True


def runs_eagerly(*tensors: torch.Tensor) -> bool:
    """Tell whether nobody looks at the operations on these tensors.

    A compiler, a tracer, a transform of torch.func, forward-mode derivatives, a dispatch mode or a
    tensor of another type must see operations of torch.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and all(type(x) is torch.Tensor or type(x) is nn.Parameter for x in tensors)
        and not is_transformed()
        and not in_forward_mode()
        and not is_watched()
    )


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether `module` is a plain `kind` whose work may be done without calling it.

    Else an adapter or a quantised layer took its place, or somebody listens.
    """
    if type(module) is not kind:
        return False
    own = vars(module)
    weight = own["weight"] if "weight" in own else own.get("_parameters", {}).get("weight")
    return type(weight) in _WEIGHTS and "forward" not in own and not is_hooked(module)


@functools.cache
def onednn_linear() -> Callable[..., torch.Tensor] | None:
    """Return the linear layer of oneDNN, `(x, weight, bias)`; None where torch has it no more."""
    packet = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)
    operation = getattr(packet, "default", None)
    if operation is None:
        return None

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = operation(x, weight, bias, "none", [], None)
        return result

    x = torch.arange(6.0).view(2, 3)
    try:
        right = torch.equal(linear(x, x, x[0, :2]), x @ x.t() + x[0, :2])
    except (RuntimeError, TypeError):
        return None
    return linear if right else None


def mark_static_address(tensor: torch.Tensor) -> None:
    """Tell compilers that `tensor` keeps its address; unsaid, they may compile once more."""
    mark = getattr(getattr(torch, "_dynamo", None), "mark_static_address", None)
    if mark is not None:
        mark(tensor)


def assert_later(condition: torch.Tensor, sentence: str) -> None:
    """Let a GPU stop with `sentence` where `condition` is false, without waiting for it."""
    check = getattr(torch, "_assert_async", None)
    if check is not None:
        check(condition, sentence)


def register_container(
    cls: type,
    flatten_named: Callable[[Any], tuple[list[tuple[str, Any]], Any]],
    unflatten: Callable[[Iterable[Any], Any], Any],
) -> None:
    """Let torch.export look into a `cls`, its tensors by name; where it cannot, it takes none."""

    def flatten(value: Any) -> tuple[list[Any], Any]:
        named, context = flatten_named(value)
        return [tensor for _, tensor in named], context

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
        named, context = flatten_named(value)
        return [(_pytree.MappingKey(name), tensor) for name, tensor in named], context

    register = getattr(_pytree, "register_pytree_node", None)
    if register is None or cls in getattr(_pytree, "SUPPORTED_NODES", ()):
        return
    register(
        cls,
        flatten,
        unflatten,
        # The package's class and a Hub folder's have names of their own, so both can be saved.
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


def register_decomposition(
    operation: Any, function: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Say what `operation` is made of, to exporters that know no operation of ours.

    torch.onnx looks it up in torch's table when it translates an exported program, whoever made it.
    """
    module = getattr(torch, "_decomp", None)
    register = getattr(module, "register_decomposition", None)
    if register is None or operation in getattr(module, "decomposition_table", ()):
        return
    register(operation)(function)
    # Else symbolic shapes would be found by the function, not by the fake kernel.
    register(operation, type="meta")(fake)


def scan_of_graphs() -> Callable[..., Any]:
    """Return the loop of exported graphs, which only exporters need."""
    from torch._higher_order_ops.scan import scan

    return scan
