"""The convolution: one product or three, forward and backward, and when which."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_qrnn.model import convolution_qrnn, products_qrnn
from hf_qrnn.model.convolution_qrnn import LEAST_STEPS, convolve, gate_convolution
from hf_qrnn.model.padding_qrnn import windows
from hf_qrnn.model.paired_convolution_qrnn import (
    LEAST_INPUTS,
    LEAST_OUTPUTS,
    LEAST_PAIRS,
    PairConvolution,
)

pytestmark = pytest.mark.usefixtures("nan_memory")

B, E, H, G = 3, 5, 7, 3


def make(kernel_size: int, length: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded inputs and a weight, both with gradients."""
    generator = torch.Generator().manual_seed(kernel_size + 10 * length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=options.get("dtype", torch.float64))

    padded = normal(B, length + kernel_size - 1, options.get("width", E))
    weight = normal(G * options.get("units", H), kernel_size * options.get("width", E))
    return padded.requires_grad_(), weight.requires_grad_()


def by_windows(
    padded: torch.Tensor, weight: torch.Tensor, kernel_size: int, reverse: bool
) -> torch.Tensor:
    return windows(padded, kernel_size, reverse=reverse) @ weight.t()


def test_windows_are_the_taps_in_processing_order() -> None:
    padded = torch.tensor([[[0.0], [1], [2], [3]]])
    assert windows(padded, 1) is padded
    assert windows(padded, 2).tolist() == [[[0, 1], [1, 2], [2, 3]]]
    assert windows(padded, 2, reverse=True).tolist() == [[[1, 0], [2, 1], [3, 2]]]
    assert windows(padded, 4).tolist() == [[[0, 1, 2, 3]]]


# ------------------------------------------------------------------ pairs


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("kernel_size", [2, 4, 6])
def test_pairs_are_the_product_with_windows(kernel_size: int, length: int, reverse: bool) -> None:
    leaves = make(kernel_size, length)
    got = PairConvolution.apply(*leaves, kernel_size, reverse)
    wanted = by_windows(*leaves, kernel_size, reverse)
    assert got.stride(-1) == 1
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, cotangent),
        torch.autograd.grad(wanted, leaves, cotangent),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("kernel_size", "length"), [(2, 3), (2, 4), (4, 3)])
def test_gradients_of_pairs_can_be_differentiated(
    kernel_size: int, length: int, reverse: bool
) -> None:
    def convolution(*leaves: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = PairConvolution.apply(*leaves, kernel_size, reverse)
        return out

    leaves = make(kernel_size, length, width=2, units=1)
    assert torch.autograd.gradcheck(convolution, leaves)
    assert torch.autograd.gradgradcheck(convolution, leaves)


@pytest.mark.parametrize("wanted", [0, 1], ids=["inputs", "weight"])
def test_one_gradient_is_computed_without_the_other(wanted: int) -> None:
    leaves = make(2, 5)
    both = torch.autograd.grad(PairConvolution.apply(*leaves, 2, False).square().sum(), leaves)
    leaves[1 - wanted].requires_grad_(False)
    loss = PairConvolution.apply(*leaves, 2, False).square().sum()
    (one,) = torch.autograd.grad(loss, leaves[wanted])
    assert one.equal(both[wanted])


def test_pairs_read_views_and_write_nothing_else() -> None:
    padded, weight = make(2, 6)
    turned = padded.detach().transpose(0, 1).contiguous().transpose(0, 1)
    before = turned.clone()
    got = PairConvolution.apply(turned, weight, 2, False)
    torch.testing.assert_close(got, by_windows(padded, weight, 2, False), rtol=0, atol=1e-12)
    assert turned.equal(before)


def test_pairs_are_as_exact_as_one_product_in_float32() -> None:
    padded, weight = make(2, 512, width=320, units=320, dtype=torch.float32)
    with torch.no_grad():
        exact = by_windows(padded.double(), weight.double(), 2, False)
        of_windows = (by_windows(padded, weight, 2, False) - exact).abs()
        of_pairs = (PairConvolution.apply(padded, weight, 2, False) - exact).abs()
    assert of_pairs.mean() < 2 * of_windows.mean()
    assert of_pairs.max() < 2 * of_windows.max()


@pytest.mark.parametrize("step", range(8))
def test_pairs_do_not_look_ahead_and_keep_what_is_no_number_where_it_is(step: int) -> None:
    padded, weight = make(2, 8)
    with torch.no_grad():
        before = PairConvolution.apply(padded, weight, 2, False)
        padded[:, step + 1] = torch.nan  # what output `step` sees last
        after = PairConvolution.apply(padded, weight, 2, False)
    touched = slice(step, step + 2)
    assert after[:, touched].isnan().all()
    after[:, touched] = before[:, touched]
    assert after.equal(before)


# ------------------------------------------------------------------ the choice


def choose_library(monkeypatch: pytest.MonkeyPatch, *, onednn: bool) -> None:
    """Multiply as a processor does for which oneDNN is the faster library, or MKL."""
    for module in (convolution_qrnn, products_qrnn):
        monkeypatch.setattr(module, "prefers_onednn", lambda: onednn)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ways that were gone, on a processor for which MKL is the faster library."""
    gone: list[str] = []
    choose_library(monkeypatch, onednn=False)

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            gone.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(PairConvolution, "apply", noted("pairs", PairConvolution.apply))
    monkeypatch.setattr(nn.functional, "linear", noted("product", nn.functional.linear))
    monkeypatch.setattr(nn.Linear, "forward", noted("call", nn.Linear.forward))
    return gone


def gates_of(
    convolution: nn.Module, steps: int, width: int = LEAST_INPUTS, kernel_size: int = 2
) -> None:
    """Convolve one row, and compare with a call of the module."""
    weight = next(convolution.parameters())
    padded = torch.randn(1, steps + kernel_size - 1, width, dtype=weight.dtype)
    gates, bias = convolve(convolution, padded, kernel_size)
    wanted = nn.Linear.forward(convolution, windows(padded, kernel_size))  # type: ignore[arg-type]
    tolerance = 1e-4 if gates.dtype == torch.float32 else 0.05
    total = gates if bias is None else gates + bias
    torch.testing.assert_close(total, wanted, rtol=tolerance, atol=tolerance)


UNITS = -(-LEAST_OUTPUTS // 3)
LONG = 2 * LEAST_PAIRS


def test_many_steps_go_by_pairs_and_few_with_their_bias(ways: list[str]) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    for steps, way, leaves_bias in (
        (LONG, "pairs", True),
        (LONG - 2, "product", True),
        (LEAST_STEPS, "product", True),
        (LEAST_STEPS - 1, "product", False),
        (1, "product", False),
    ):
        ways.clear()
        gates_of(convolution, steps)
        assert ways[0] == way, steps
        padded = torch.randn(1, steps + 1, LEAST_INPUTS)
        assert (convolve(convolution, padded, 2)[1] is not None) == leaves_bias, steps


def test_no_pairs_are_made_where_onednn_multiplies(
    ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_library(monkeypatch, onednn=True)
    for steps in (LONG, LEAST_STEPS, 1):
        gates_of(gate_convolution(LEAST_INPUTS, UNITS, 2, 3), steps)
    assert "pairs" not in ways


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("step", [6, 7])
def test_infinite_inputs_give_what_one_product_gives(
    ways: list[str], step: int, value: float
) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    padded = torch.randn(1, LONG + 1, LEAST_INPUTS)
    padded[0, step, 3] = value
    gates, bias = convolve(convolution, padded, 2)
    assert ways == ["product"]
    assert bias is not None
    wanted = windows(padded, 2) @ convolution.weight.t()
    assert gates.isinf().any() == (value == value)
    torch.testing.assert_close(gates, wanted, equal_nan=True)


def test_a_step_of_many_rows_is_a_product_with_its_bias(ways: list[str]) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    gates, bias = convolve(convolution, torch.randn(LONG, 2, LEAST_INPUTS), 2)
    assert ways == ["product"]
    assert gates.shape == (LONG, 1, 3 * UNITS)
    assert bias is None


@pytest.mark.parametrize(
    ("width", "units", "kernel_size"),
    [
        (LEAST_INPUTS - 1, UNITS, 2),
        (LEAST_INPUTS, (LEAST_OUTPUTS - 1) // 3, 2),
        (LEAST_INPUTS, UNITS, 1),
        (LEAST_INPUTS, UNITS, 3),
    ],
    ids=["narrow", "few-units", "one-tap", "odd"],
)
def test_other_layers_go_by_one_product(
    ways: list[str], width: int, units: int, kernel_size: int
) -> None:
    gates_of(gate_convolution(width, units, kernel_size, 3), LONG, width, kernel_size)
    assert ways[0] == "product"


def test_no_bias_stays_none(ways: list[str]) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    convolution.register_parameter("bias", None)
    for steps, way in ((LONG, "pairs"), (LONG - 2, "product"), (1, "product")):
        ways.clear()
        gates_of(convolution, steps)
        assert ways[0] == way
        padded = torch.randn(1, steps + 1, LEAST_INPUTS)
        assert convolve(convolution, padded, 2)[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_not_rounded_to_half_precision(ways: list[str], dtype: torch.dtype) -> None:
    gates_of(gate_convolution(LEAST_INPUTS, UNITS, 2, 3).to(dtype), LONG)
    assert ways[0] == "product"


def test_autocast_computes_the_product(ways: list[str]) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        gates, bias = convolve(convolution, torch.randn(1, LONG + 1, LEAST_INPUTS), 2)
    assert ways == ["product"]
    assert bias is not None
    assert gates.dtype == bias.dtype == torch.bfloat16


class Adapter(nn.Linear):
    """A product that takes the place of a layer's."""


def hooked(register: str) -> nn.Linear:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    getattr(convolution, register)(lambda *_: None)
    return convolution


def test_what_is_no_bare_convolution_is_called(ways: list[str]) -> None:
    calls = 0

    def forward(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return nn.Linear.forward(replaced, x)

    replaced = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    replaced.forward = forward  # type: ignore[method-assign, assignment]  # as accelerate's hooks do
    gates_of(replaced, LONG)
    assert calls == 1
    gates_of(Adapter(2 * LEAST_INPUTS, 3 * UNITS), LONG)
    assert "pairs" not in ways


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_whoever_listens_to_the_convolution_hears_it(ways: list[str], register: str) -> None:
    gates_of(hooked(register), LONG)
    assert ways[0] == "call"


class Layer(nn.Module):
    """Return a function that `torch.func` can call with other weights."""

    def __init__(self, convolution: nn.Linear) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        return convolve(self.convolution, padded, 2)[0]


def test_transforms_of_torch_func_see_one_product(ways: list[str]) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    padded = torch.randn(2, LONG + 1, LEAST_INPUTS)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        weights = {"convolution.weight": weight}
        gates: torch.Tensor = torch.func.functional_call(layer, weights, (padded,))
        return gates.square().sum()

    layer, weight = Layer(convolution), convolution.weight.detach().clone()
    got = torch.func.grad(loss)(weight)
    rows = torch.func.vmap(lambda row: convolve(convolution, row[None], 2)[0][0])(padded)
    assert set(ways) == {"call", "product"}
    wanted, bias = convolve(convolution, padded, 2)
    assert ways[-1] == "pairs"
    assert bias is not None
    torch.testing.assert_close(rows, wanted + bias, rtol=1e-4, atol=1e-4)
    (of_call,) = torch.autograd.grad(
        nn.Linear.forward(convolution, windows(padded, 2)).square().sum(), convolution.weight
    )
    torch.testing.assert_close(got, of_call, rtol=1e-4, atol=1e-2)


class OtherTensor(torch.Tensor):
    """A weight as quantised and distributed ones are: of a type of its own."""


def test_weights_and_inputs_of_another_type_go_by_a_call(ways: list[str]) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    padded = torch.randn(1, LONG + 1, LEAST_INPUTS)
    convolve(convolution, padded.as_subclass(OtherTensor), 2)
    assert ways[0] == "call"
    ways.clear()
    weight = convolution.weight.detach().as_subclass(OtherTensor)
    convolution.weight = nn.Parameter(weight)
    convolve(convolution, padded, 2)
    assert ways[0] == "call"


def test_flops_are_those_of_one_product(ways: list[str]) -> None:
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    with FlopCounterMode(display=False) as counter:
        convolve(convolution, torch.randn(1, LONG + 1, LEAST_INPUTS), 2)
    assert ways[0] == "call"
    assert counter.get_total_flops() == 2 * LONG * convolution.weight.numel()


def test_hooks_on_all_modules_hear_the_convolution(ways: list[str]) -> None:
    heard: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda *call: heard.append(call[0]))
    convolution = gate_convolution(LEAST_INPUTS, UNITS, 2, 3)
    try:
        convolve(convolution, torch.randn(1, LONG + 1, LEAST_INPUTS), 2)
    finally:
        handle.remove()
    assert ways[0] == "call"
    assert heard == [convolution]


def test_a_trace_keeps_one_product(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    gates_of(gate_convolution(LEAST_INPUTS, UNITS, 2, 3), LONG)
    assert ways[0] == "call"


def test_an_exported_program_holds_one_product() -> None:
    layer = Layer(gate_convolution(LEAST_INPUTS, UNITS, 2, 3))
    program = torch.export.export(layer, (torch.randn(1, LONG + 1, LEAST_INPUTS),))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    products = [name for name in names if "linear" in name or "mm" in name]
    assert products == ["aten.linear.default"]


def test_a_compiler_sees_one_product(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    gates_of(gate_convolution(LEAST_INPUTS, UNITS, 2, 3), LONG)
    assert ways[0] == "call"
