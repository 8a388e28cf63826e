"""hf_qrnn.model.connect_qrnn: transforms, compilers, traces, modes and subclasses see torch."""

import math
from typing import Any

import pytest
import torch
from connect_loop import Case, connect_loop
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from hf_qrnn.model import connect_qrnn
from hf_qrnn.model.connect_qrnn import (
    Connected,
    Dropout,
    connect,
    drop,
    dropout_keep,
    join,
    normalize,
)

pytestmark = [
    pytest.mark.usefixtures("nan_memory"),
    # torch's own, at the first forward-mode derivative and the first trace.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

CASE = Case((2, 3, 5))
V, P = 3, 0.4


def samples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """h and residual (V, B, T, H), weights (V, H) and seeds (V)."""
    h, residual = torch.randn(2, V, *CASE.shape, dtype=torch.float64)
    return h, residual, torch.randn(V, CASE.shape[2], dtype=torch.float64), torch.tensor([5, 7, 5])


def both(
    h: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, seed: torch.Tensor | None
) -> torch.Tensor:
    """A number that reads each of `out` and `normed`."""
    got = connect(h, residual, weight, dropout=P, seed=seed)
    assert got.normed is not None
    return got.out.sin().sum() + got.normed.cos().sum()


def by_loop(v: int) -> list[torch.Tensor]:
    """The same of sample `v`, and its gradients, by the plain loop."""
    h, residual, weight, seeds = samples_once
    leaves = [x[v].clone().requires_grad_() for x in (h, residual, weight)]
    out, normed = connect_loop(*leaves, dropout=P, seed=int(seeds[v]))
    assert normed is not None
    total = out.sin().sum() + normed.cos().sum()
    return [total.detach(), *torch.autograd.grad(total, leaves)]


torch.manual_seed(3)
samples_once = samples()


def assert_same(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


# ------------------------------------------------------------------ torch.func


def test_vmap_of_values_and_gradients_is_a_loop_over_samples() -> None:
    wanted = [torch.stack(parts) for parts in zip(*map(by_loop, range(V)), strict=True)]
    assert_same(vmap(both)(*samples_once), wanted[0])
    assert_same(list(vmap(grad(both, argnums=(0, 1, 2)))(*samples_once)), wanted[1:])
    *leaves, seeds = samples_once

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = vmap(both)(*tensors, seeds).sum()
        return result

    assert_same(list(grad(total, argnums=(0, 1, 2))(*leaves)), wanted[1:])


def test_vmap_draws_as_it_is_told() -> None:
    h = torch.ones(V, 1, 4, 50)

    def dropped(x: torch.Tensor) -> torch.Tensor:
        return drop(x, 0.5, training=True)

    different = vmap(dropped, randomness="different")(h)
    assert not any(different[i].equal(different[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert set(different.unique().tolist()) == {0.0, 2.0}
    same = vmap(dropped, randomness="same")(h)
    assert same[0].equal(same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(dropped)(h)


def test_forward_mode_is_reverse_mode() -> None:
    h, residual, weight, seeds = (x[0] for x in samples_once)
    leaves = (h, residual, weight)
    tangents = tuple(torch.randn_like(x) for x in leaves)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return both(*tensors, seeds)  # type: ignore[arg-type]

    value, tangent = jvp(function, leaves, tangents)
    wanted, *grads = by_loop(0)
    assert_same(value, wanted)
    assert_same(tangent, sum((a * b).sum() for a, b in zip(grads, tangents, strict=True)))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(leaves, tangents, strict=True)]
        assert_same(forward_ad.unpack_dual(function(*duals)).tangent, tangent)

    def of_h(x: torch.Tensor) -> torch.Tensor:
        return connect(x, residual, weight, dropout=P, seed=seeds).normed  # type: ignore[return-value]

    assert_same(jacfwd(of_h)(h), jacrev(of_h)(h))
    second = hessian(lambda x: both(x, residual, weight, seeds))(h).flatten(3).flatten(0, 2)
    by_grad = torch.autograd.functional.hessian(lambda x: both(x, residual, weight, seeds), h)
    assert_same(second, by_grad.flatten(3).flatten(0, 2))  # type: ignore[union-attr]


# ------------------------------------------------------------------ programs


class Around(nn.Module):
    """What stands around a layer, with a seed that is given or drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(CASE.shape[2], eps=1e-6, dtype=torch.float64)
        self.norm.weight.data.uniform_(0.5, 2.0)

    def forward(
        self, h: torch.Tensor, residual: torch.Tensor, seed: torch.Tensor | None = None
    ) -> Connected:
        return connect(h, residual, self.norm.weight, dropout=P, seed=seed)


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(x[0] for x in (*samples_once[:2], samples_once[3]))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiled_it_is_one_graph_with_the_same_numbers(compiler: str) -> None:
    module, (h, residual, seed) = Around(), given()
    results = []
    for function in (module, torch.compile(module, backend=compiler, fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in (h, residual)]
        got = function(*leaves, seed)
        total = got.out.sin().sum() + got.normed.cos().sum()
        grads = torch.autograd.grad(total, [*leaves, module.norm.weight])
        results.append([*got, *grads])
    assert_same(results[1], results[0])


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.12"),
    reason="the inductor of torch 2.11 draws other bits on a CPU",
)
def test_compiled_bits_are_the_same() -> None:
    # Inductor's, of more than one draw a step: their counters must not overflow as indices do.
    compiled = torch.compile(dropout_keep, fullgraph=True)
    for seed in (torch.tensor(5), torch.tensor(-(2**63))):
        assert compiled(seed, 4, 8, 9, 0.4).equal(dropout_keep(seed, 4, 8, 9, 0.4))


def test_compiled_it_draws() -> None:
    module, (h, residual, _) = Around(), given()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    first, second = compiled(h, residual).out, compiled(h, residual).out
    assert not first.equal(second)
    torch.manual_seed(1)
    assert compiled(h, residual).out.equal(first)
    # The numbers that stand eagerly too: both draw one seed from the same generator.
    torch.manual_seed(1)
    assert_same(module(h, residual).out, first)


def test_exported_and_traced_it_has_no_operation_of_ours() -> None:
    module, arguments = Around(), given()
    wanted = module(*arguments)
    program = torch.export.export(module, arguments)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names
    assert not [name for name in names if not name.startswith(("aten.", "<built-in"))]
    assert_same(tuple(program.module()(*arguments)), tuple(wanted))
    traced = torch.jit.trace(module, arguments)
    assert_same(tuple(traced(*arguments)), tuple(wanted))
    # A seed is no constant of theirs.
    other = (*arguments[:2], torch.tensor(99))
    for again in (program.module(), traced):
        assert_same(tuple(again(*other)), tuple(module(*other)))


class Names(TorchDispatchMode):
    """Writes down the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_operations_of_torch() -> None:
    module, (h, residual, seed) = Around(), given()
    leaves = [x.clone().requires_grad_() for x in (h, residual)]
    wanted = module(*leaves, seed)
    with Names() as mode:
        got = module(*leaves, seed)
    assert mode.names
    assert all(name.startswith("aten.") for name in mode.names)
    assert_same(tuple(got), tuple(wanted))
    # Around the backward pass alone, too.
    (plain,) = torch.autograd.grad(wanted.normed.sum(), leaves[0], retain_graph=True)
    with Names() as mode:
        (seen,) = torch.autograd.grad(wanted.normed.sum(), leaves[0])
    assert all(name.startswith("aten.") for name in mode.names)
    assert_same(seen, plain)


def test_fake_tensors_go_through() -> None:
    with FakeTensorMode():
        h = torch.empty(2, 3, 5, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(5, requires_grad=True)
        got = connect(h, h.float(), weight, dropout=0.5, normed_dtype=torch.bfloat16)
        assert got.normed is not None
        assert (got.out.dtype, got.normed.dtype) == (torch.float32, torch.bfloat16)
        grads = torch.autograd.grad(got.normed.sum(), (h, weight))
    assert [(x.shape, x.dtype) for x in grads] == [(x.shape, x.dtype) for x in (h, weight)]
    meta = connect(torch.empty(2, 3, 5, device="meta"), dropout=0.5)
    assert meta.out.shape == (2, 3, 5)


class OtherTensor(torch.Tensor):
    """A tensor of a type of its own."""


@pytest.mark.parametrize("place", range(3), ids=["h", "residual", "weight"])
def test_a_tensor_of_another_type_gets_the_definition(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, residual, seed = given()
    tensors = [h, residual, torch.linspace(1, 2, CASE.shape[2], dtype=torch.float64)]
    wanted = connect(*tensors, dropout=P, seed=seed)
    monkeypatch.setattr(connect_qrnn._Connect, "apply", None)
    tensors[place] = tensors[place].as_subclass(OtherTensor)
    for got, plain in zip(connect(*tensors, dropout=P, seed=seed), wanted, strict=True):
        assert got is not None
        assert_same(got.as_subclass(torch.Tensor), plain)


# ------------------------------------------------------------------ dtypes of autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
def test_under_autocast_norms_give_what_products_take(dtype: torch.dtype) -> None:
    x, h = torch.randn(2, 3, 8), torch.randn(2, 3, 8).to(dtype)
    norm = nn.RMSNorm(8, eps=1e-6)
    plain = normalize(norm, x)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        assert normalize(norm, x).dtype == dtype
        assert normalize(norm, x).equal(plain.to(dtype))
        assert normalize(norm, x, for_products=False).equal(plain)
        assert normalize(norm, x.bfloat16()).dtype == torch.bfloat16
        got = join(x, h, Dropout(0.0), norm)
        assert (got.out.dtype, got.normed.dtype) == (torch.float32, dtype)  # type: ignore[union-attr]
        torch.testing.assert_close(got.out, x + h)
        # A module that is not plain gives what it gives; the product after it is the same one's.
        norm.register_forward_hook(lambda *_: None)
        called = join(x, h, Dropout(0.0), norm)
        assert called.normed is not None
        assert called.normed.dtype == torch.float32
        assert called.normed.to(dtype).equal(got.normed)


@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16], ids=["", "weight16"])
@pytest.mark.parametrize("of_x", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # torch's own
def test_normalize_is_the_call_of_the_module(of_x: torch.dtype, of_weight: torch.dtype) -> None:
    norm = nn.RMSNorm(33, eps=1e-6, dtype=of_weight if of_x != torch.float64 else of_x)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(2, 3, 33).to(of_x)
    got, wanted = normalize(norm, x), norm(x)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "norm",
    [
        nn.Identity(),
        nn.LayerNorm(8),
        nn.RMSNorm(8),
        nn.RMSNorm(8, elementwise_affine=False),
        nn.RMSNorm((3, 8)),
    ],
    ids=["identity", "layer", "no-eps", "no-weight", "two-dims"],
)
def test_other_norms_are_called(norm: nn.Module) -> None:
    x, h = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert normalize(norm, x).equal(norm(x))
    got = join(x, h, Dropout(0.0), norm)
    assert got.normed is not None
    assert got.normed.equal(norm(x + h))
    assert math.isfinite(float(got.normed.detach().sum()))
