"""hf_qrnn.model.products_qrnn: products by oneDNN are torch's, and where they are made."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_qrnn import QRNNConfig, QRNNForCausalLM
from hf_qrnn.model import convolution_qrnn, products_qrnn
from hf_qrnn.model.internals_qrnn import onednn_linear
from hf_qrnn.model.products_qrnn import (
    LEAST_ROWS,
    apply_linear,
    is_open,
    linear,
    prefers_onednn,
)

pytestmark = [
    pytest.mark.usefixtures("nan_memory"),
    pytest.mark.skipif(onednn_linear() is None, reason="torch has no oneDNN here"),
]

ROWS, K, N = LEAST_ROWS + 3, 5, 7


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A processor that oneDNN is the faster for; the shapes that it multiplied."""
    shapes: list[tuple[int, ...]] = []
    by_onednn = products_qrnn._by_onednn

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        shapes.append((*x.shape, weight.shape[0]))
        return by_onednn(x, weight, bias)

    for module in (products_qrnn, convolution_qrnn):
        monkeypatch.setattr(module, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products_qrnn, "_by_onednn", noted)
    monkeypatch.setattr(products_qrnn, "LEAST_WORK", 1)  # of small matrices, as tests have
    return shapes


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Nothing is remembered of the processor and of torch, before and after."""
    for function in (prefers_onednn, onednn_linear):
        function.cache_clear()
    yield
    for function in (prefers_onednn, onednn_linear):
        function.cache_clear()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape).requires_grad_()


def exact(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The product and, of the sum of its squares, the gradients, in float64."""
    leaves = [y.detach().double().requires_grad_() for y in (x, weight, bias) if y is not None]
    product = leaves[0] @ leaves[1].t()
    product = product + leaves[2] if bias is not None else product
    return product, list(torch.autograd.grad(product.square().sum(), leaves))


def assert_near(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    largest = wanted.detach().abs().max() if wanted.numel() else 1.0
    torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=2e-6 * float(largest))


# ------------------------------------------------------------------ the product


def test_small_products_are_torchs(
    onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call itself takes longer than they do; the gradient of a weight is as much work."""
    monkeypatch.setattr(products_qrnn, "LEAST_WORK", 16 * 8 * 32)
    for rows, times in ((15, 0), (16, 3)):
        onednn.clear()
        linear(normal(rows, 8), normal(32, 8)).sum().backward()
        assert len(onednn) == times


@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    ("shape", "by_onednn"),
    [
        ((ROWS, K), True),
        ((2, ROWS, K), True),
        ((2, 2, 4, K), True),
        ((LEAST_ROWS, 1), True),
        ((LEAST_ROWS - 1, K), False),
        ((1, K), False),
        ((K,), False),
        ((0, K), False),
        ((3, 0, K), False),
        ((ROWS, 0), False),
    ],
    ids=str,
)
def test_products_and_gradients_are_torchs(
    onednn: list[tuple[int, ...]], shape: tuple[int, ...], by_onednn: bool, has_bias: bool
) -> None:
    x, weight = normal(*shape), normal(N, shape[-1])
    bias = normal(N) if has_bias else None
    got = linear(x, weight, bias)
    assert bool(onednn) == by_onednn
    wanted, wanted_grads = exact(x, weight, bias)
    assert got.shape == wanted.shape
    assert_near(got, wanted)
    leaves = [y for y in (x, weight, bias) if y is not None]
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), leaves), wanted_grads, strict=True
    ):
        assert ours.dtype == torch.float32
        assert_near(ours, theirs)


def test_no_outputs_are_torchs(onednn: list[tuple[int, ...]]) -> None:
    assert linear(normal(ROWS, K), normal(0, K)).shape == (ROWS, 0)
    assert onednn == []


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "turned": lambda x: x.t().contiguous().t(),
    "every second row": lambda x: torch.stack([x, x + 1], 1).flatten(0, 1)[::2],
    "every second column": lambda x: torch.stack([x, x + 1], -1).flatten(1)[:, ::2],
    "a part of the columns": lambda x: torch.cat([x + 1, x, x + 2], -1)[:, K : 2 * K],
    "behind a start": lambda x: torch.cat([x.new_ones(3), x.flatten()])[3:].view_as(x),
    "one row everywhere": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("of_weight", VIEWS)
@pytest.mark.parametrize("of_x", VIEWS)
def test_views_are_multiplied_as_they_are_seen(
    onednn: list[tuple[int, ...]], of_x: str, of_weight: str
) -> None:
    x, weight = VIEWS[of_x](torch.randn(ROWS, K)), VIEWS[of_weight](torch.randn(N, K))
    before = x.clone(), weight.clone()
    leaves = [y.requires_grad_() for y in (x, weight)]
    got = linear(x, weight)
    assert onednn
    wanted, wanted_grads = exact(x, weight, None)
    assert_near(got, wanted)
    # A gradient that is a view too.
    grads = torch.autograd.grad((got.t().contiguous().t() * got).sum(), leaves)
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        assert_near(ours, theirs)
    assert x.equal(before[0])
    assert weight.equal(before[1])


@pytest.mark.parametrize("wanted", range(3), ids=["x", "weight", "bias"])
def test_one_gradient_is_computed_without_the_others(
    onednn: list[tuple[int, ...]], wanted: int
) -> None:
    leaves = [normal(ROWS, K), normal(N, K), normal(N)]
    every = torch.autograd.grad(linear(*leaves).square().sum(), leaves)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i == wanted)
    product = linear(*leaves)
    onednn.clear()
    (one,) = torch.autograd.grad(product.square().sum(), leaves[wanted])
    assert one.equal(every[wanted])
    assert len(onednn) == (0 if wanted == 2 else 1) * (wanted == 0 or N >= LEAST_ROWS)


def test_gradients_of_gradients(onednn: list[tuple[int, ...]]) -> None:
    leaves = [normal(2, ROWS, K), normal(N + LEAST_ROWS, K), normal(N + LEAST_ROWS)]
    doubles = [x.detach().double().requires_grad_() for x in leaves]

    def second(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, product: Any) -> Any:
        loss = product(x, weight, bias).tanh().square().sum()
        grads = torch.autograd.grad(loss, (x, weight, bias), create_graph=True)
        total = sum(g.sin().sum() for g in grads)
        return torch.autograd.grad(total, (x, weight, bias))

    ours = second(*leaves, linear)
    assert len(onednn) > 3
    for a, b in zip(ours, second(*doubles, nn.functional.linear), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_many_gradients_at_once(onednn: list[tuple[int, ...]]) -> None:
    leaves = [normal(2, ROWS, K), normal(N, K), normal(N)]
    product = linear(*leaves)
    cotangents = torch.randn(4, *product.shape)
    options: dict[str, bool] = {"retain_graph": True}
    batched = torch.autograd.grad(product, leaves, cotangents, is_grads_batched=True, **options)
    for i in range(4):
        one = torch.autograd.grad(product, leaves, cotangents[i], **options)
        torch.testing.assert_close([x[i] for x in batched], list(one), rtol=1e-5, atol=1e-5)


def test_threads_and_repetition_change_no_bit(onednn: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(130, 40), torch.randn(50, 40)
    assert linear(x, weight).equal(linear(x, weight))


# ------------------------------------------------------------------ where


MAKERS = {"AuthenticAMD": True, "GenuineIntel": False, "HygonGenuine": False, "": False}


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("maker", MAKERS)
def test_the_choice_is_by_the_processors_maker(monkeypatch: pytest.MonkeyPatch, maker: str) -> None:
    monkeypatch.setattr(products_qrnn.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(products_qrnn, "_maker_of_processor", lambda: maker)
    assert prefers_onednn() == MAKERS[maker]
    # A rule, not a measurement: it is asked once, and always answered alike.
    monkeypatch.setattr(products_qrnn, "_maker_of_processor", lambda: "another")
    assert prefers_onednn() == MAKERS[maker]
    prefers_onednn.cache_clear()
    assert not prefers_onednn()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("missing", ["machine", "mkl", "mkldnn"])
def test_nothing_is_preferred_without_two_libraries(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(products_qrnn, "_maker_of_processor", lambda: "AuthenticAMD")
    machine = "aarch64" if missing == "machine" else "x86_64"
    monkeypatch.setattr(products_qrnn.platform, "machine", lambda: machine)
    for name in ("mkl", "mkldnn"):
        there = missing != name
        monkeypatch.setattr(
            getattr(torch.backends, name), "is_available", lambda there=there: there
        )
    assert not prefers_onednn()


def test_the_maker_is_that_of_the_kernel_or_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(products_qrnn, "Path", lambda _: path)
    assert products_qrnn._maker_of_processor() == ""
    for text, maker in (
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n\nprocessor : 1\n", "AuthenticAMD"),
        ("vendor_id\t: GenuineIntel\nmodel name\t: x\xff\n", "GenuineIntel"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", ""),
        ("", ""),
    ):
        path.write_bytes(text.encode("latin-1"))
        assert products_qrnn._maker_of_processor() == maker


def raising(*_: Any) -> torch.Tensor:
    raise NotImplementedError("no kernel")


GONE: dict[str, Any] = {
    "no operations": None,
    "no packet": object(),
    "another signature": type("Other", (), {"default": staticmethod(lambda x, w: x)}),
    "another result": type("Wrong", (), {"default": staticmethod(lambda x, *_: x[:, :2])}),
    "no kernel": type("None_", (), {"default": staticmethod(raising)}),
}


class Operations:
    """torch.ops with another namespace `mkldnn`."""

    def __init__(self, packet: Any) -> None:
        if packet is not None:
            self.mkldnn = type("Namespace", (), {"_linear_pointwise": packet})


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("name", GONE)
def test_where_torchs_operation_is_gone_torch_multiplies(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    x, weight, bias = normal(ROWS, K), normal(N, K), normal(N)
    with monkeypatch.context() as patch:
        patch.setattr(products_qrnn, "_maker_of_processor", lambda: "AuthenticAMD")
        patch.setattr(torch, "ops", Operations(GONE[name]))
        assert onednn_linear() is None
        assert not prefers_onednn()
        got = linear(x, weight, bias)
    assert got.equal(nn.functional.linear(x, weight, bias))


# torch's own, at the first look at the switch.
@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_torchs_switches_are_heeded(onednn: list[tuple[int, ...]]) -> None:
    x, weight = normal(ROWS, K), normal(N, K)
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight)
    assert onednn == []
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert onednn == []
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert linear(x.to(dtype), weight.to(dtype)).dtype == dtype
    assert onednn == []
    linear(x, weight)
    assert len(onednn) == 1


# ------------------------------------------------------------------ modules


class Adapter(nn.Linear):
    """A layer that takes the place of a plain one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1.0


class OtherTensor(torch.Tensor):
    """A weight or an input as quantised and distributed ones are: of a type of its own."""


def called(x: torch.Tensor) -> torch.Tensor:
    return x.sum(-1, keepdim=True).expand(*x.shape[:-1], N)


def adapted() -> nn.Module:
    return Adapter(K, N)


def replaced() -> nn.Module:
    module = nn.Linear(K, N)
    module.forward = called  # type: ignore[method-assign, assignment]  # as accelerate's hooks do
    return module


def quantised() -> nn.Module:
    model = nn.Sequential(nn.Linear(K, N))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: it will be gone some day
        done: Any = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    module: nn.Module = done[0]
    return module


def normalised() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(K, N))


def of_another_type() -> nn.Module:
    module = nn.Linear(K, N)
    module.weight = nn.Parameter(module.weight.detach().as_subclass(OtherTensor))
    return module


@pytest.mark.parametrize("make", [adapted, replaced, quantised, normalised, of_another_type])
def test_what_took_a_layers_place_is_called(
    onednn: list[tuple[int, ...]], make: Callable[[], nn.Module]
) -> None:
    module, x = make(), torch.randn(ROWS, K)
    assert not is_open(module, x)
    got = apply_linear(module, x)
    assert onednn == []
    assert torch.equal(got.as_subclass(torch.Tensor), module(x).as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_whoever_listens_to_a_layer_hears_it(onednn: list[tuple[int, ...]], register: str) -> None:
    module, x, heard = nn.Linear(K, N), normal(ROWS, K), []
    handle = getattr(module, register)(lambda *call: heard.append(call[0]))
    apply_linear(module, x).sum().backward()
    assert heard == [module]
    assert onednn == []
    handle.remove()
    apply_linear(module, x)
    assert len(onednn) == 1


# torch's own, at the first forward-mode derivative.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_transforms_modes_and_other_tensors_see_a_call(onednn: list[tuple[int, ...]]) -> None:
    module, x = nn.Linear(K, N), torch.randn(3, ROWS, K)
    plain = module(x)
    mapped = torch.func.vmap(lambda row: apply_linear(module, row))(x)
    torch.testing.assert_close(mapped, plain)
    grads = torch.func.grad(lambda y: apply_linear(module, y).sum())(x)
    assert grads.shape == x.shape
    _, tangent = torch.func.jvp(lambda y: apply_linear(module, y), (x,), (x,))
    torch.testing.assert_close(tangent, x @ module.weight.t())
    with FlopCounterMode(display=False) as counter:
        apply_linear(module, x)
    assert counter.get_total_flops() == 2 * 3 * ROWS * K * N
    apply_linear(module, x.as_subclass(OtherTensor))
    assert onednn == []


def test_a_mode_around_backward_alone_sees_products(onednn: list[tuple[int, ...]]) -> None:
    x, weight = normal(3, ROWS, K), normal(N + LEAST_ROWS, K)
    total = linear(x, weight).sum()
    assert len(onednn) == 1
    with FlopCounterMode(display=False) as counter:
        total.backward()
    assert len(onednn) == 1
    assert counter.get_total_flops() == 2 * 2 * 3 * ROWS * K * (N + LEAST_ROWS)


def test_traces_and_exported_programs_hold_a_plain_layer(onednn: list[tuple[int, ...]]) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(K, N)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return apply_linear(self.linear, x)

    layer, x = Layer(), torch.randn(2, ROWS, K)
    program = torch.export.export(layer, (x,))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.linear.default"]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), layer.linear(x))
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), layer.linear(x))
    assert onednn == []


# ------------------------------------------------------------------ models


@pytest.mark.parametrize("library", ["onednn", "mkl"])
def test_both_libraries_train_a_model_alike(
    onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    fields: dict[str, Any] = {
        "vocab_size": 20,
        "embedding_size": 24,
        "hidden_size": 24,
        "decoder_layers": 2,
        "feed_forward_size": 32,
        "residual": True,
        "rms_norm": True,
    }
    model = QRNNForCausalLM(QRNNConfig(**fields)).train()
    double = copy.deepcopy(model).double()
    ids = torch.randint(4, 20, (3, 17))
    if library == "mkl":
        for module in (products_qrnn, convolution_qrnn):
            monkeypatch.setattr(module, "prefers_onednn", lambda: False)
    losses = []
    for kind in (model, double):
        torch.manual_seed(1)
        losses.append(kind(ids, labels=ids).loss)
        losses[-1].backward()
    assert bool(onednn) == (library == "onednn")
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for ours, theirs in zip(model.parameters(), double.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        largest = float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=1e-4 * largest)
