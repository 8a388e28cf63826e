"""`QRNNState` is a pair to programs written for `nn.LSTM`, and keeps the window of inputs."""

import copy
import io
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

from hf_qrnn import QRNN, QRNNState
from hf_qrnn import layer as recurrent


@pytest.fixture(autouse=True)
def _warns_again() -> None:
    """Forget that a warning was given, which is given once in a process."""
    recurrent._warn_of_lost_window.cache_clear()


@pytest.fixture
def layer() -> QRNN:
    return QRNN(3, 4, 2, kernel_size=3, dtype=torch.float64).eval()


@pytest.fixture
def state(layer: QRNN) -> QRNNState:
    return layer(steps(4, 2))[1]


def steps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 3, dtype=torch.float64)


def tensors_of(state: QRNNState) -> list[torch.Tensor]:
    assert type(state) is QRNNState
    return [*state, *state.inputs]


# ------------------------------------------------------------------ a pair


def test_is_a_tuple_of_two() -> None:
    layer, x = QRNN(3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    output, (h, c) = layer(x)
    state = layer(x)[1]
    assert isinstance(state, tuple)
    assert len(state) == 2
    assert torch.equal(state[0], h)
    assert torch.equal(state[-1], c)
    assert state.h_n is state[0]
    assert state.c_n is state[1]
    assert h.shape == c.shape == (4, 2, 4)
    assert torch.equal(h[-2], output[-1, :, :4])
    assert [past.shape for past in state.inputs] == [(1, 2, 3), (1, 2, 8)]
    assert torch.equal(state.inputs[0][0], x[-1])


def test_is_made_of_a_pair_too(state: QRNNState) -> None:
    # So do code that moves tuples from device to device and DataParallel put tuples together.
    for rebuilt in (QRNNState(map(torch.clone, state)), QRNNState(*map(torch.clone, state))):
        assert torch.equal(rebuilt.c_n, state.c_n)
        assert rebuilt.inputs is None
        assert rebuilt.detach().inputs is None
    for wrong in (state.h_n, (state.h_n,), (state.h_n, state.c_n, state.inputs)):
        with pytest.raises(ValueError, match="`c_n` must follow `h_n`, but the values given are"):
            QRNNState(wrong)


def test_repr_shows_the_window(state: QRNNState) -> None:
    text = repr(state)
    assert text.startswith("QRNNState(h_n=tensor(")
    assert repr(state.c_n) in text
    assert repr(state.inputs[1]) in text


# ------------------------------------------------------------------ what keeps the window


def saved_and_loaded(state: QRNNState) -> QRNNState:
    file = io.BytesIO()
    torch.save({"hidden": state.detach()}, file)
    file.seek(0)
    loaded: QRNNState = torch.load(file, weights_only=True)["hidden"]
    return loaded


KEEPING: dict[str, Callable[[QRNNState], QRNNState]] = {
    "detach": QRNNState.detach,
    "clone": QRNNState.clone,
    "to": lambda state: state.to(torch.float32).to("cpu", torch.float64, non_blocking=True),
    "select": lambda state: state.select([1, 0]).select(torch.tensor([1, 0])),
    "copy": copy.copy,
    "deepcopy": lambda state: copy.deepcopy(state.detach()),
    "pickle": lambda state: pickle.loads(pickle.dumps(state.detach())),
    "torch.save": saved_and_loaded,
    "pytree": lambda state: pytree.tree_map(torch.clone, state),
}


@pytest.mark.parametrize("name", KEEPING)
def test_goes_on_exactly(layer: QRNN, name: str) -> None:
    x = steps(9, 2)
    whole = layer(x)[0]
    _, state = layer(x[:4])
    kept = KEEPING[name](state)
    assert len(tensors_of(kept)) == 4
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if name == "to" else {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(layer(x[4:], kept)[0], whole[4:], **tolerance)


def test_detach_cuts_the_graph(layer: QRNN) -> None:
    _, state = layer(steps(5, 2).requires_grad_())
    assert all(tensor.requires_grad for tensor in tensors_of(state))
    cut = state.detach()
    for tensor, before in zip(tensors_of(cut), tensors_of(state), strict=True):
        assert not tensor.requires_grad
        assert torch.equal(tensor, before)


def test_clone_and_to_give_memory_and_types(state: QRNNState) -> None:
    copied = state.clone()
    for tensor, before in zip(tensors_of(copied), tensors_of(state), strict=True):
        assert tensor.data_ptr() != before.data_ptr()
    assert {x.dtype for x in tensors_of(state.to(torch.bfloat16))} == {torch.bfloat16}
    assert {x.device.type for x in tensors_of(state.to("meta"))} == {"meta"}


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([2, 0], [2, 0]),
        (slice(1, None), [1, 2]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([1, 1, 1]), [1, 1, 1]),
    ],
    ids=["list", "slice", "mask", "repeat"],
)
def test_select_takes_rows_of_the_batch(layer: QRNN, index: object, rows: list[int]) -> None:
    first, second = steps(4, 3), steps(2, 3)
    _, state = layer(first)
    output, _ = layer(second[:, rows], state.select(index))
    torch.testing.assert_close(output, layer(second, state)[0][:, rows])


def test_select_of_one_has_no_batch(layer: QRNN) -> None:
    first, second = steps(4, 3), steps(2, 3)
    _, state = layer(first)
    one = state.select(1)
    torch.testing.assert_close(layer(second[:, 1], one)[0], layer(second, state)[0][:, 1])
    with pytest.raises(ValueError, match=r"`h_n` must have a batch .*has shape \(2, 4\)"):
        one.select(0)


def _answer(
    ours: "multiprocessing.Queue[QRNNState]", back: "multiprocessing.Queue[object]"
) -> None:
    state = ours.get()
    back.put((type(state).__name__, len(state), [past.sum().item() for past in state.inputs]))


def test_goes_to_another_process(state: QRNNState) -> None:
    context = torch.multiprocessing.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=_answer, args=(there, back))
    process.start()
    there.put(state.detach())
    answer = back.get(timeout=120)
    process.join()
    sums = [past.sum().item() for past in state.inputs]
    assert answer == ("QRNNState", 2, pytest.approx(sums))


# ------------------------------------------------------------------ a node of torch's trees


def test_is_a_node_of_a_pytree(state: QRNNState) -> None:
    leaves, spec = pytree.tree_flatten(state)
    assert len(leaves) == 4
    assert all(a is b for a, b in zip(leaves, tensors_of(state), strict=True))
    back = pytree.tree_unflatten(leaves, spec)
    assert all(a is b for a, b in zip(tensors_of(back), leaves, strict=True))
    keys = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(state)[0]]
    assert keys == [".h_n", ".c_n", ".inputs[0]", ".inputs[1]"]
    # What comes back need not be tensors, and a pair stays one.
    assert pytree.tree_map(lambda _: None, state).inputs == (None, None)
    assert pytree.tree_map(torch.clone, QRNNState(*state)).inputs is None
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


# torch 2.11 warns of its own way to read a saved program.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_compiles_and_exports_with_its_window(layer: QRNN) -> None:
    x, y = steps(4, 2), steps(5, 2)

    def run(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, QRNNState]:
        _, state = layer(x)
        h, c = state
        output, state = layer(y, state.detach().select([1, 0]).clone().to(torch.float64))
        return output + h[-1] + c[-1], state

    output, state = torch.compile(run, backend="aot_eager", fullgraph=True)(x, y)
    expected, its = run(x, y)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(tensors_of(state), tensors_of(its))

    _, state = layer(x)
    program = torch.export.export(layer, (y, state.detach())).module()
    output, after = program(y, state.detach())
    expected, its = layer(y, state)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(tensors_of(after), tensors_of(its))
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(layer, (y, state.detach())), buffer)
    buffer.seek(0)
    assert type(torch.export.load(buffer).module()(y, state.detach())[1]) is QRNNState


# ------------------------------------------------------------------ what loses it

REBUILDING: dict[str, Callable[[QRNNState], object]] = {
    "repackage": lambda state: tuple(v.detach() for v in state),
    "list": lambda state: [v.data for v in state],
    "pair": lambda state: (state[0] * 1, state[1] * 1),
    "named": lambda state: QRNNState(*state),
}


@pytest.mark.parametrize("name", REBUILDING)
def test_rebuilt_pair_starts_its_window_at_zero_and_is_told_once(layer: QRNN, name: str) -> None:
    _, state = layer(steps(4, 2))
    x = steps(5, 2)
    pair = REBUILDING[name](state)
    with pytest.warns(
        UserWarning, match=r"plain \(h_0, c_0\).*back whole.*QRNNState\(h_0, c_0, \(\)\)"
    ):
        output, _ = layer(x, pair)
    zeros = tuple(torch.zeros_like(past) for past in state.inputs)
    assert torch.equal(output, layer(x, QRNNState(*state, zeros))[0])
    assert not torch.allclose(output, layer(x, state)[0])
    # An error here: said once in a process.
    assert torch.equal(layer(x, pair)[0], output)


@pytest.mark.parametrize(
    "options", [{"input_size": 5}, {"kernel_size": 2}, {"kernel_size": 4}, {"dense": True}], ids=str
)
def test_state_of_another_layer_starts_the_window_at_zero(
    layer: QRNN, options: dict[str, int]
) -> None:
    # A decoder goes on from the state of an encoder, whose inputs may be others.
    _, state = layer(steps(4, 2))
    arguments = {"input_size": 3, "hidden_size": 4, "num_layers": 2, "kernel_size": 3, **options}
    decoder = QRNN(**arguments, dtype=torch.float64)
    x = torch.randn(5, 2, decoder.input_size, dtype=torch.float64)
    with pytest.warns(UserWarning, match="or the state of a layer with other inputs"):
        output, _ = decoder(x, state)
    assert torch.equal(output, decoder(x, QRNNState(*state, ()))[0])
    # One without a window has none to lose; another batch is a mistake.
    decoder = QRNN(3, 4, 2, kernel_size=1, dtype=torch.float64)
    recurrent._warn_of_lost_window.cache_clear()
    decoder(steps(5, 2), state)
    mixed = QRNNState(*state.select([0]), state.inputs)
    with pytest.raises(ValueError, match=r"`inputs\[0\]` must have shape \(2, 1, 3\)"):
        layer(steps(5, 1), mixed)


def test_is_not_told_where_nothing_is_lost(state: QRNNState, layer: QRNN) -> None:
    x = steps(5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zeros = torch.zeros(2, 2, 4)
        layer(x, (zeros, zeros))  # how programs begin
        layer(x, (torch.randn_like(zeros), zeros))
        layer(x, QRNNState(*state, ()))  # meant
        layer(x, state)
        short = QRNN(3, 4, 2, kernel_size=1, dtype=torch.float64)
        short(x, tuple(v.detach() for v in short(x)[1]))
    assert recurrent._warn_of_lost_window.cache_info().currsize == 0


def test_numbers_are_not_looked_at_by_compilers_and_transforms(
    state: QRNNState, layer: QRNN
) -> None:
    x, pair = steps(5, 2), tuple(v.detach() for v in state)
    expected = layer(x, QRNNState(*pair, ()))[0]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, pair)[0], expected)
    exported = torch.export.export(layer, (x, pair)).module()
    torch.testing.assert_close(exported(x, pair)[0], expected)
    by_row = torch.vmap(lambda x, h, c: layer(x, (h, c))[0], in_dims=1, out_dims=1)
    torch.testing.assert_close(by_row(x, *pair), expected)
    meta = QRNN(3, 4, device="meta")
    meta(torch.ones(5, 2, 3, device="meta"), (torch.ones(1, 2, 4, device="meta"),) * 2)


def test_accelerators_are_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "_looks", iter(range(100)))
    far = SimpleNamespace(device=SimpleNamespace(type="xpu"), is_cuda=False)
    looked = [recurrent._may_look(far) for _ in range(50)]
    assert looked == [True] * recurrent.MAX_LOOKS + [False] * (50 - recurrent.MAX_LOOKS)
    assert recurrent._may_look(torch.ones(1))
