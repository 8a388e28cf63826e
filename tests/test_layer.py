"""`QRNN` is called like `nn.LSTM`: shapes, packed sequences, states, gradients, mistakes."""

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hf_qrnn import QRNN, QRNNState
from hf_qrnn import layer as recurrent
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS

POOLINGS = ("f", "fo", "ifo")
LENGTHS = torch.tensor([3, 7, 1, 5])


@pytest.fixture(autouse=True)
def _warns_again() -> None:
    """Forget that a warning was given, which is given once in a process."""
    recurrent._warn_of_lost_window.cache_clear()


def make(num_layers: int = 2, **options: object) -> QRNN:
    return QRNN(3, 4, num_layers, dtype=torch.float64, **options).eval()


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def plain_layer(
    layer: nn.Module, x: torch.Tensor, c: torch.Tensor, past: list[torch.Tensor], pooling: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """One direction of one layer over `x` (T, E), by the equations, step by step."""
    rows, hs = [*past, *x], []
    for t in range(len(x)):
        gates = layer.convolution(torch.cat(rows[t : t + len(past) + 1])).chunk(
            {"f": 2, "fo": 3, "ifo": 4}[pooling]
        )
        z, f = gates[0].tanh(), gates[1].sigmoid()
        c = f * c + (gates[3].sigmoid() if pooling == "ifo" else 1 - f) * z
        hs.append(c if pooling == "f" else gates[2].sigmoid() * c)
    return torch.stack(hs), c


# ------------------------------------------------------------------ parity with nn.LSTM


@pytest.mark.parametrize("form", ["batch", "no batch", "packed", "packed unsorted"])
def test_shapes_are_those_of_lstm(form: str) -> None:
    flags = itertools.product([1, 3], [False, True], [False, True], [False, True], [False, True])
    for num_layers, bias, batch_first, bidirectional, with_state in flags:
        arguments = (5, 6, num_layers, bias, batch_first, 0.0, bidirectional)
        lstm, qrnn = nn.LSTM(*arguments), QRNN(*arguments)
        x: Any = torch.randn(4, 4, 5) if form != "no batch" else torch.randn(7, 5)
        if "packed" in form:
            lengths = torch.tensor([4, 3, 3, 1] if form == "packed" else [3, 1, 4, 3])
            x = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=form == "packed")
        rows = num_layers * (1 + bidirectional)
        shape = (rows, 6) if form == "no batch" else (rows, 4, 6)
        hx = (torch.randn(shape), torch.randn(shape)) if with_state else None
        expected, (h_n, c_n) = lstm(x, hx)
        output, state = qrnn(x, None if hx is None else QRNNState(*hx, ()))
        assert type(output) is type(expected)
        if isinstance(output, PackedSequence):
            assert torch.equal(output.batch_sizes, expected.batch_sizes)
            for name in ("sorted_indices", "unsorted_indices"):
                mine, theirs = getattr(output, name), getattr(expected, name)
                assert (mine is None and theirs is None) or torch.equal(mine, theirs)
            output, expected = output.data, expected.data
        assert output.shape == expected.shape
        assert output.dtype == expected.dtype
        assert (state.h_n.shape, state.c_n.shape) == (h_n.shape, c_n.shape)
        assert (state.h_n.dtype, state.c_n.dtype) == (h_n.dtype, c_n.dtype)


def test_attributes_are_those_of_lstm() -> None:
    arguments = (5, 6, 2, False, True, 0.25, True)
    lstm, qrnn = nn.LSTM(*arguments), QRNN(*arguments, device="cpu", dtype=torch.float64)
    names = "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
    for name in names.split():
        assert getattr(qrnn, name) == getattr(lstm, name)
    assert qrnn.extra_repr() == (
        "5, 6, num_layers=2, bias=False, batch_first=True, dropout=0.25, bidirectional=True"
    )
    assert QRNN(5, 6, kernel_size=3, pooling="f", zoneout=0.1, dense=True).extra_repr() == (
        "5, 6, kernel_size=3, pooling='f', zoneout=0.1, dense=True"
    )
    assert (lstm.mode, qrnn.mode) == ("LSTM", "QRNN")
    assert QRNN(5, 6, proj_size=0).proj_size == 0
    assert qrnn.flatten_parameters() is None
    assert len(qrnn.all_weights) == len(lstm.all_weights) == 4


def test_state_dict_names_are_stable() -> None:
    layer = QRNN(5, 6, 2, bidirectional=True, kernel_size=3, pooling="ifo")
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == {
        "l0.convolution.weight": (24, 15),
        "l0.convolution.bias": (24,),
        "l0_reverse.convolution.weight": (24, 15),
        "l0_reverse.convolution.bias": (24,),
        "l1.convolution.weight": (24, 36),
        "l1.convolution.bias": (24,),
        "l1_reverse.convolution.weight": (24, 36),
        "l1_reverse.convolution.bias": (24,),
    }
    names = [f"{name}.convolution.weight" for name in ("l0", "l0_reverse", "l1", "l1_reverse")]
    state = dict(layer.named_parameters())
    assert all(w[0] is state[n] for w, n in zip(layer.all_weights, names, strict=True))
    other = QRNN(5, 6, 2, bidirectional=True, kernel_size=3, pooling="ifo")
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 2, 5)
    assert torch.equal(other(x)[0], layer(x)[0])
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])
    without = QRNN(5, 6, 2, bias=False).state_dict()
    assert set(without) == {"l0.convolution.weight", "l1.convolution.weight"}


def test_parameters_go_where_they_are_asked_to() -> None:
    layer = QRNN(3, 4, 2, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    with torch.device("meta"):
        assert next(QRNN(3, 4).parameters()).is_meta


def test_half_precision_keeps_its_state_in_float32() -> None:
    layer = QRNN(3, 4, 2, dtype=torch.bfloat16)
    output, state = layer(torch.randn(5, 2, 3, dtype=torch.bfloat16))
    assert (output.dtype, state.h_n.dtype, state.c_n.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    again, _ = layer(torch.randn(5, 2, 3, dtype=torch.bfloat16), state)
    assert again.isfinite().all()


def test_reset_parameters_opens_the_forget_gate() -> None:
    layer = QRNN(60, 100, 2, bidirectional=True, kernel_size=3)
    for name in ("l0", "l0_reverse", "l1", "l1_reverse"):
        convolution = layer.get_submodule(name).convolution
        fan_in = convolution.in_features
        assert convolution.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.03)
        z, f, o = convolution.bias.chunk(3)
        assert bool((f == 1).all() and (z == 0).all() and (o == 0).all())


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_matches_the_equations(pooling: str, kernel_size: int) -> None:
    layer = make(pooling=pooling, kernel_size=kernel_size, bidirectional=True, dense=True)
    x, c_0 = batch(6, 1, 3), batch(4, 1, 4)
    output, state = layer(x, QRNNState(torch.zeros_like(c_0), c_0, ()))
    row, h_n, c_n = x[:, 0], [], []
    for index in range(2):
        past = [torch.zeros(row.shape[1], dtype=row.dtype)] * (kernel_size - 1)
        ahead, c = plain_layer(
            layer.get_submodule(f"l{index}"), row, c_0[2 * index, 0], past, pooling
        )
        back, c_back = plain_layer(
            layer.get_submodule(f"l{index}_reverse"),
            row.flip(0), c_0[2 * index + 1, 0], past, pooling,
        )  # fmt: skip
        h_n += [ahead[-1], back[-1]]
        c_n += [c, c_back]
        own = torch.cat([ahead, back.flip(0)], dim=1)
        row = torch.cat([row, own], dim=1)
    torch.testing.assert_close(output[:, 0], own)
    torch.testing.assert_close(state.h_n[:, 0], torch.stack(h_n))
    torch.testing.assert_close(state.c_n[:, 0], torch.stack(c_n))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"dense": True}], ids=str)
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_equals_padded_equals_alone(
    batch_first: bool, options: dict[str, bool], enforce_sorted: bool
) -> None:
    layer = make(batch_first=batch_first, kernel_size=3, **options)
    lengths = LENGTHS.sort(descending=True).values if enforce_sorted else LENGTHS
    rows = [batch(n, 3).requires_grad_() for n in lengths.tolist()]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first, padding_value=7.0)
    packed = pack_padded_sequence(padded, lengths, batch_first, enforce_sorted=enforce_sorted)
    size = (2 * (1 + layer.bidirectional), 4, 4)
    h_0, c_0 = batch(*size), batch(*size)
    output, state = layer(packed, QRNNState(h_0, c_0, ()))
    output, given_back = pad_packed_sequence(output, batch_first)
    assert torch.equal(given_back, lengths)
    output = output if batch_first else output.transpose(0, 1)
    weights = batch(*output.shape)
    grads = torch.autograd.grad((output * weights).sum(), rows, retain_graph=True)
    for b, row in enumerate(rows):
        alone, its = layer(row, QRNNState(h_0[:, b], c_0[:, b], ()))
        torch.testing.assert_close(output[b, : len(row)], alone)
        assert not output[b, len(row) :].any()
        for name in ("h_n", "c_n"):
            torch.testing.assert_close(getattr(state, name)[:, b], getattr(its, name))
        for mine, theirs in zip(state.inputs, its.inputs, strict=True):
            torch.testing.assert_close(mine[:, b], theirs)
        (grad,) = torch.autograd.grad((alone * weights[b, : len(row)]).sum(), row)
        torch.testing.assert_close(grads[b], grad)


def test_packed_batch_of_equal_lengths_equals_the_tensor() -> None:
    layer, x = make(bidirectional=True), batch(5, 2, 3)
    output, state = layer(pack_padded_sequence(x, torch.tensor([5, 5])))
    expected, its = layer(x)
    assert torch.equal(pad_packed_sequence(output)[0], expected)
    assert torch.equal(state.h_n, its.h_n)


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dense", [False, True])
def test_chunks_equal_the_whole(kernel_size: int, pooling: str, dense: bool) -> None:
    layer = make(3, kernel_size=kernel_size, pooling=pooling, dense=dense)
    x = batch(9, 2, 3)
    whole, last = layer(x)
    for sizes in ([1] * 9, [4, 5], [2, 1, 6]):
        outputs, state = [], None
        for chunk in x.split(sizes):
            output, state = layer(chunk, state)
            outputs.append(output)
        torch.testing.assert_close(torch.cat(outputs), whole)
        torch.testing.assert_close(state.h_n, last.h_n)
        torch.testing.assert_close(state.c_n, last.c_n)
        for mine, theirs in zip(state.inputs, last.inputs, strict=True):
            assert mine.shape[0] == kernel_size - 1
            torch.testing.assert_close(mine, theirs)


def test_packed_sequences_go_on_from_their_own_ends() -> None:
    layer = make(kernel_size=3)
    first, second = batch(7, 4, 3), batch(2, 4, 3)
    _, state = layer(pack_padded_sequence(first, LENGTHS, enforce_sorted=False))
    output, _ = layer(second, state)
    for b, length in enumerate(LENGTHS.tolist()):
        whole, _ = layer(torch.cat([first[:length, b], second[:, b]]))
        torch.testing.assert_close(output[:, b], whole[length:])


def test_every_form_of_a_state_is_accepted() -> None:
    layer, x = make(), batch(5, 2, 3)
    _, state = layer(batch(4, 2, 3))
    h_n, c_n = state
    output, _ = layer(x, state)
    for whole in ((h_n, c_n, state.inputs), [h_n, c_n, list(state.inputs)]):
        assert torch.equal(layer(x, whole)[0], output)
    # h_0 has no effect; without the inputs before it the first step sees zeros.
    zeros = tuple(torch.zeros_like(past) for past in state.inputs)
    expected = layer(x, QRNNState(h_n, c_n, zeros))[0]
    assert not torch.allclose(expected, output)
    assert torch.equal(layer(x, QRNNState(batch(2, 2, 4), c_n, ()))[0], expected)
    assert torch.equal(layer(x, (h_n, c_n, ()))[0], expected)
    with pytest.warns(UserWarning, match="plain"):
        assert torch.equal(layer(x, (h_n, c_n))[0], expected)
    assert torch.equal(layer(x, [h_n, c_n])[0], expected)
    assert torch.equal(layer(x, QRNNState(h_n, c_n))[0], expected)


def test_c_n_of_the_pair_is_where_lstm_code_expects_it() -> None:
    # A pooling that forgets nothing: c_0 of every layer and direction comes back as c_n.
    layer = make(bidirectional=True, pooling="fo")
    for weight, bias in layer.all_weights:
        nn.init.zeros_(weight)
        nn.init.zeros_(bias)
        bias.data[4:8] = 100.0
    c_0 = torch.arange(4.0 * 2 * 4, dtype=torch.float64).reshape(4, 2, 4)
    assert torch.equal(layer(batch(5, 2, 3), (c_0, c_0, ()))[1].c_n, c_0)


def test_gradients_reach_input_state_and_parameters() -> None:
    layer = make(pooling="ifo", kernel_size=3, bidirectional=True)
    x = batch(4, 2, 3).requires_grad_()
    state = (batch(4, 2, 4), batch(4, 2, 4).requires_grad_())
    past = tuple(batch(2, 2, width).requires_grad_() for width in (3, 8))

    def run(x: torch.Tensor, c: torch.Tensor, *past: torch.Tensor) -> torch.Tensor:
        output, after = layer(x, QRNNState(state[0], c, past))
        return output.sum() + (after.h_n * after.c_n).sum() + after.inputs[1].sum()

    assert torch.autograd.gradcheck(run, (x, state[1], *past))
    run(x, state[1], *past).backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


# ------------------------------------------------------------------ noise


def test_dropout_acts_between_layers_only() -> None:
    x = batch(6, 2, 3)
    layer = make(2, dropout=1.0).train()
    output, state = layer(x)
    # All of the first layer's output is dropped: the second sees nothing but its bias.
    second = layer.get_submodule("l1")
    expected = second(torch.zeros(2, 6, 4, dtype=torch.float64)).h.transpose(0, 1)
    torch.testing.assert_close(output, expected)
    # States are those before dropout, and evaluation has none.
    torch.testing.assert_close(state.h_n[0], layer.eval()(x)[1].h_n[0])
    assert not torch.allclose(layer(x)[0], expected)


def test_dropout_of_a_single_layer_warns() -> None:
    with pytest.warns(UserWarning, match="`num_layers` 1 a `dropout` of 0.5 does nothing"):
        layer = QRNN(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QRNN(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    assert torch.equal(layer.train()(x)[0], layer(x)[0])


def test_zoneout_acts_in_training_only() -> None:
    layer, x = make(zoneout=0.5), batch(6, 2, 3)
    calm = layer(x)[0]
    assert torch.equal(layer(x)[0], calm)
    layer.train()
    torch.manual_seed(1)
    first = layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first)
    assert not torch.allclose(first, calm)


# ------------------------------------------------------------------ mistakes

OPTIONS = {
    "input_size": (0, "an integer of at least 1"),
    "hidden_size": (4.0, "an integer of at least 1"),
    "num_layers": (True, "an integer of at least 1"),
    "kernel_size": (0, "an integer of at least 1"),
    "bias": (1, "a boolean"),
    "batch_first": (None, "a boolean"),
    "bidirectional": ("no", "a boolean"),
    "dense": (2, "a boolean"),
    "dropout": (1.5, "in [0, 1]"),
    "zoneout": (1.0, "in [0, 1)"),
    "proj_size": (3, "0"),
    "pooling": ("of", "one of " + ", ".join(map(repr, POOL_KINDS))),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_option_is_one_sentence(name: str) -> None:
    value, rule = OPTIONS[name]
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole text is compared)
        QRNN(**{"input_size": 3, "hidden_size": 4, name: value})
    assert str(error.value) == f"`{name}` must be {rule}, but is {value!r}."


CALLS = {
    "integers": (torch.ones(5, 2, 3, dtype=torch.int64), None, "`input` must be floating point"),
    "width": (torch.ones(5, 2, 4), None, r"`input` must be \(time, batch, 3\)"),
    "rank": (torch.ones(3), None, r"`input` must be \(time, batch, 3\)"),
    "empty": (torch.ones(0, 2, 3), None, "with at least one step, but is"),
    "hx": (torch.ones(5, 2, 3), torch.ones(2, 2, 4), "`hx` must be .*, but is a Tensor"),
    "one": (torch.ones(5, 2, 3), (torch.ones(2, 2, 4),), r"but is a tuple of 1\."),
    "h_0": (torch.ones(5, 2, 3), (torch.ones(1), torch.ones(1)), "`h_0` must have shape"),
    "c_0": (torch.ones(5, 3), (torch.ones(2, 4), torch.ones(2, 1, 4)), r"shape \(2, 4\), but has"),
    "tensor": (torch.ones(5, 2, 3), (torch.ones(2, 2, 4), 1), "`c_0` must be a tensor, but"),
    "four": (torch.ones(5, 2, 3), (torch.ones(2, 2, 4),) * 4, r"but is a tuple of 4\."),
    "layers": (
        torch.ones(5, 3),
        (torch.ones(2, 4), torch.ones(2, 4), (torch.ones(1, 3),)),
        "`inputs` must be 2 tensors, but is 1",
    ),
    "inputs": (
        torch.ones(5, 3),
        (torch.ones(2, 4), torch.ones(2, 4), (torch.ones(1, 3), torch.ones(1, 3))),
        r"`inputs\[1\]` must have shape \(1, 4\), but has \(1, 3\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_bad_call_is_one_sentence(name: str) -> None:
    x, hx, message = CALLS[name]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        QRNN(3, 4, 2)(x, hx)
    assert str(error.value).count(". ") == 0


# ------------------------------------------------------------------ use


@pytest.mark.parametrize("bidirectional", [False, True])
def test_compiles_in_one_graph(bidirectional: bool) -> None:
    layer = make(bidirectional=bidirectional)
    x = batch(5, 2, 3)
    _, state = layer(batch(4, 2, 3))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, state.detach()), layer(x, state))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}], ids=str)
def test_traces(options: dict[str, bool], grad: bool) -> None:
    """One trace for every batch and length, for use and for training, with plain states."""
    layer = make(**options)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(layer, (batch(5, 2, 3),))
    x = batch(9, 4, 3)
    output, (h_n, c_n) = traced(x)
    expected, state = layer(x)
    torch.testing.assert_close((output, h_n, c_n), (expected, *state))
    weights = list(layer.parameters())
    grads = torch.autograd.grad(output.sum(), weights)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), weights))
    if not layer.bidirectional:
        whole = (*layer(batch(4, 2, 3))[1].detach(), tuple(batch(1, 2, n) for n in (3, 4)))
        traced = torch.jit.trace(layer, (batch(5, 2, 3), whole))
        torch.testing.assert_close(traced(x[:, :2], whole)[0], layer(x[:, :2], whole)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_is_not_scripted() -> None:
    # docs/recurrent.md says why; the day this passes, it must say so.
    with pytest.raises(torch.jit.frontend.NotSupportedError, match="keyword-only arguments"):
        torch.jit.script(QRNN(3, 4))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["hook", "module"]
)
def test_takes_weight_norm_of_all_submodules(norm: Callable[..., nn.Module]) -> None:
    layer, x = make(bidirectional=True), batch(5, 2, 3)
    expected = layer(x)[0]
    normed = [m for m in layer.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
    assert [type(norm(m)).__name__ for m in normed] == [type(m).__name__ for m in normed]
    assert len(normed) == 4
    output, (_, c) = layer(x)
    torch.testing.assert_close(output, expected)
    (output.sum() + c.sum()).backward()
    assert len(list(layer.parameters())) == 12
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    assert [len(weights) for weights in layer.all_weights] == [3] * 4
    copied = make(bidirectional=True)
    for m in list(copied.modules()):
        if isinstance(getattr(m, "weight", None), nn.Parameter):
            norm(m)
    copied.load_state_dict(layer.state_dict())
    torch.testing.assert_close(copied(x)[0], expected)


def test_other_submodules_are_not_layers() -> None:
    layer, x = make(bidirectional=True), batch(5, 2, 3)
    expected = layer(x)[0]
    layer.register_module("extra", nn.Linear(3, 3))
    assert torch.equal(layer(x)[0], expected)
    assert len(layer.all_weights) == 4
    layer.reset_parameters()
    assert not torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize("wrap", [nn.DataParallel, copy.deepcopy])
def test_wrappers_of_lstm_leave_it_whole(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer, x = make(), batch(7, 2, 3)
    wrapped, (expected, _) = wrap(layer), layer(x)
    first, state = wrapped(x[:4])
    second, _ = wrapped(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantiz")
def test_torch_quantises_the_convolutions() -> None:
    layer, x = make().float(), batch(7, 2, 3).float()
    quantised = torch.ao.quantization.quantize_dynamic(layer, dtype=torch.qint8)
    assert quantised.l0.convolution.weight().dtype == torch.qint8
    expected, _ = layer(x)
    first, state = quantised(x[:4])
    second, _ = quantised(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), expected, rtol=0.0, atol=0.05)


@pytest.mark.parametrize("kind", [nn.LSTM, QRNN])
def test_takes_the_place_of_lstm_in_training(kind: type[nn.Module]) -> None:
    """Learn which of two symbols came first, four or more steps ago: beyond any window of two."""
    torch.manual_seed(0)
    length, size = 12, 64
    classes = torch.randint(2, (size,))
    steps = torch.zeros(size, length, 3)
    steps[:, :, 2] = 1.0
    first = torch.randint(0, length - 8, (size,))
    for b in range(size):
        steps[b, first[b]] = nn.functional.one_hot(classes[b], 3).float()
        steps[b, first[b] + 4] = nn.functional.one_hot(1 - classes[b], 3).float()
    rnn, head = kind(3, 16, 2, batch_first=True), nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.02)
    for _ in range(80):
        output, state = rnn(steps)
        assert torch.equal(output[:, -1], state[0][-1])
        loss = nn.functional.cross_entropy(head(output[:, -1]), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
