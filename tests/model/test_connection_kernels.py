"""Backends of the connection around a layer: which kernels it takes, and that they are right."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_emulation import Emulated, missing_tool
from triton_runs import need_triton, run_python

from hf_qrnn import use_backend
from hf_qrnn.model import backends_qrnn
from hf_qrnn.model.backends_qrnn import VARIABLE, ConnectionKernels, connection_kernels
from hf_qrnn.model.connect_qrnn import connect

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")
needs_gxx = pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++")))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No backend forced from outside, nothing remembered of an earlier test."""
    monkeypatch.delenv(VARIABLE, raising=False)
    backends_qrnn._connection.cache_clear()
    yield
    backends_qrnn._connection.cache_clear()


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let nothing but `names` be available, anywhere; native operations are their names."""

    def reason(name: str, device: torch.device) -> str | None:
        return None if name in names else f"no {name} today"

    library = SimpleNamespace(operation=lambda name: name)
    monkeypatch.setattr(backends_qrnn, "unavailable", reason)
    monkeypatch.setattr(backends_qrnn, "_kernels", lambda: library)


def name_of(kernels: ConnectionKernels | None) -> str:
    if kernels is None:
        return "torch"
    if isinstance(kernels.forward, str):
        assert tuple(kernels) == ("connect_forward", "connect_backward")
        return "native"
    assert {f.__module__ for f in kernels} == {"hf_qrnn.model.triton_connect_qrnn"}
    return "triton"


@pytest.mark.parametrize(
    ("device", "forced", "available", "chosen"),
    [
        (CUDA, "auto", ("native", "triton"), "native"),
        (CUDA, "auto", ("triton",), "triton"),
        (CUDA, "auto", (), "torch"),
        (CUDA, "triton", ("native", "triton"), "triton"),
        (CUDA, "compiled", ("native", "triton"), "native"),
        (CUDA, "torch", ("native", "triton"), "torch"),
        (CPU, "auto", ("native", "triton"), "native"),
        (CPU, "auto", ("triton",), "torch"),
        (CPU, "triton", ("native", "triton"), "triton"),
        (META, "auto", ("native", "triton"), "torch"),
        (META, "native", ("native", "triton"), "torch"),
    ],
    ids=str,
)
def test_first_that_works_is_taken_or_the_forced_one(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    forced: str,
    available: tuple[str, ...],
    chosen: str,
) -> None:
    only(monkeypatch, *available)
    with use_backend(forced):
        assert name_of(connection_kernels(device)) == chosen


def test_a_forced_one_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "native")
    with use_backend("triton"), pytest.raises(RuntimeError, match="'triton' is not: no triton to"):
        connection_kernels(CUDA)
    monkeypatch.setenv(VARIABLE, "tritn")
    with pytest.raises(ValueError, match=r"must be one of 'auto', .*, but is 'tritn'"):
        connection_kernels(CUDA)


def test_a_library_without_such_kernels_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "native", "triton")
    # As an older release's.
    monkeypatch.setattr(backends_qrnn, "_kernels", lambda: SimpleNamespace(operation=_no_operation))
    assert name_of(connection_kernels(CUDA)) == "triton"
    assert name_of(connection_kernels(CPU)) == "torch"
    with use_backend("native"), pytest.raises(RuntimeError, match="'native' is not: it has no ker"):
        connection_kernels(CUDA)


def _no_operation(name: str) -> Any:
    raise AttributeError(name)


def test_triton_is_not_imported_where_it_is_not_wanted() -> None:
    need_triton()
    script = (
        "import sys, torch\n"
        "from hf_qrnn.model.connect_qrnn import connect\n"
        "connect(torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.ones(3), dropout=0.5)\n"
        "print('hf_qrnn.model.triton_connect_qrnn' in sys.modules)\n"
    )
    done = run_python("-c", script)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_the_cpus_operations_refuse_results_that_they_cannot_write() -> None:
    reason = backends_qrnn.unavailable("native", CPU)
    if reason is not None:
        pytest.skip(reason)
    kernels = connection_kernels(CPU)
    assert kernels is not None
    for dtype, name in ((torch.float32, "float64"), (torch.float64, "float32")):
        h, weight = torch.ones(1, 2, 3, dtype=dtype), torch.ones(3, dtype=dtype)
        with pytest.raises(RuntimeError, match="results must be float64 where the tensors are"):
            kernels.forward(h, None, weight, None, 0.0, 1e-6, name)
        for wanted in ((name, ""), ("", name)):
            with pytest.raises(RuntimeError, match="results must be float64 where the tensors are"):
                kernels.backward(h, None, None, None, None, None, 0.0, *wanted)


# ------------------------------------------------------------------ connect on CUDA's kernels


@pytest.fixture
def cuda_kernels(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Connect by the CUDA kernels, run on the CPU; the list tells what was called."""
    ops = torch.ops.hf_qrnn_emulated
    calls: list[str] = []

    def watched(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            return getattr(ops, name)(*arguments)

        return call

    kernels = ConnectionKernels(watched("connect_forward"), watched("connect_backward"))
    monkeypatch.setattr(backends_qrnn, "_connection_by", lambda *_: kernels)
    return calls


def tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5), (2, 3, 5), (5,))
    drawn = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def results(leaves: list[torch.Tensor], backends: tuple[str, str]) -> list[torch.Tensor]:
    """Compute values and gradients, each pass by one of `backends`."""
    with use_backend(backends[0]):
        found = connect(*leaves, dropout=0.4, seed=torch.tensor(7))
    assert found.normed is not None
    total = found.out.square().sum() + found.normed.sin().sum()
    with use_backend(backends[1]):
        grads = torch.autograd.grad(total, leaves)
    return [found.out, found.normed, *grads]


@needs_gxx
@pytest.mark.parametrize(
    ("backends", "called"),
    [
        (("native", "native"), ["connect_forward", "connect_backward"]),
        (("native", "torch"), ["connect_forward"]),
    ],
    ids=str,
)
def test_each_pass_is_by_the_backend_of_its_time(
    cuda_kernels: list[str], backends: tuple[str, str], called: list[str]
) -> None:
    leaves = tensors(torch.float64)
    wanted = results(leaves, ("torch", "torch"))
    assert cuda_kernels == []
    torch.testing.assert_close(results(leaves, backends), wanted, rtol=0, atol=1e-13)
    assert cuda_kernels == called


@needs_gxx
def test_derivatives_of_any_order(cuda_kernels: list[str]) -> None:
    def joined(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = connect(*leaves, dropout=0.4, seed=torch.tensor(7))
        assert found.normed is not None
        return found.out, found.normed

    leaves = tensors(torch.float64)
    assert torch.autograd.gradcheck(joined, leaves)
    assert "connect_backward" in cuda_kernels
    assert torch.autograd.gradgradcheck(joined, leaves)


@needs_gxx
@pytest.mark.parametrize(
    ("dtype", "normed"), [(torch.float32, torch.float64), (torch.float64, torch.bfloat16)], ids=str
)
def test_a_mix_that_kernels_do_not_know_is_the_definitions(
    cuda_kernels: list[str], dtype: torch.dtype, normed: torch.dtype
) -> None:
    h, _, weight = tensors(dtype)
    found = connect(h, None, weight, normed_dtype=normed).normed
    assert found is not None
    wanted = torch.nn.functional.rms_norm(h, (5,), weight, 1e-6).to(normed)
    assert cuda_kernels == []
    torch.testing.assert_close(found, wanted)
