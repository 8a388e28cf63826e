"""Backends and kernels: which code pools, and what is said when it cannot."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration, kernels, use_backend
from hf_qrnn.kernels import build
from hf_qrnn.model import backends_qrnn
from hf_qrnn.model.backends_qrnn import (
    BACKENDS,
    VARIABLE,
    Backend,
    backend_named,
    choose,
    unavailable,
)
from hf_qrnn.model.configuration_qrnn import POOL_BACKENDS
from hf_qrnn.model.layers_qrnn import QRNNLayer
from hf_qrnn.model.pooling_qrnn import pool

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No backend forced from outside, nothing remembered of an earlier test."""
    monkeypatch.delenv(VARIABLE, raising=False)
    caches = (backends_qrnn._choose, backends_qrnn._connection)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let nothing but `names` be available, anywhere."""

    def reason(name: str, device: torch.device) -> str | None:
        return None if name in names else f"no {name} today"

    monkeypatch.setattr(backends_qrnn, "unavailable", reason)


# ------------------------------------------------------------------ the ladder


@pytest.mark.parametrize(
    ("device", "available", "chosen"),
    [
        (CUDA, ("native", "triton", "torch"), "native"),
        (CUDA, ("triton", "torch"), "triton"),
        (CPU, ("native", "triton", "torch"), "native"),
        (CPU, ("triton", "torch"), "torch"),
        (torch.device("meta"), ("native", "triton", "torch"), "torch"),
    ],
    ids=str,
)
def test_first_that_works_is_taken(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, available: tuple[str, ...], chosen: str
) -> None:
    only(monkeypatch, *available)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the CPU falls back silently
        assert choose("auto", device, torch.float32, "fo").name == chosen
        assert choose("auto", device, torch.float8_e5m2, "fo").name == "torch"


def test_cuda_without_a_kernel_warns_once_with_the_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "torch")
    with pytest.warns(UserWarning, match="no native today; triton: no triton today") as caught:
        chosen = [choose("auto", CUDA, torch.float32, "fo").name for _ in range(3)]
    assert chosen == ["torch"] * 3
    assert len(caught) == 1


def test_context_is_stronger_than_environment_than_config(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "native", "triton", "torch")
    assert choose("triton", CPU, torch.float32, "fo").name == "triton"
    monkeypatch.setenv(VARIABLE, "torch")
    assert choose("triton", CPU, torch.float32, "fo").name == "torch"
    with use_backend("native"):
        assert choose("triton", CPU, torch.float32, "fo").name == "native"
        with use_backend("auto"):
            assert choose("torch", CUDA, torch.float32, "fo").name == "native"
        assert choose("triton", CPU, torch.float32, "fo").name == "native"
    assert choose("triton", CPU, torch.float32, "fo").name == "torch"
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(KeyError), use_backend("torch"):
        raise KeyError
    assert VARIABLE not in os.environ


def test_forced_and_unavailable_is_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only(monkeypatch, "torch")
    gates = torch.zeros(1, 2, 6)
    with pytest.raises(RuntimeError) as error, use_backend("native"):
        pool(gates, pooling="fo")
    assert str(error.value) == (
        "`HF_QRNN_BACKEND` must be available on cpu, but 'native' is not: no native today."
    )
    with pytest.raises(RuntimeError, match="`backend` must be available on cpu, but 'triton'"):
        pool(gates, pooling="fo", backend="triton")
    # Inside the registered operation too.
    with pytest.raises(RuntimeError, match="no triton today"):
        pool(gates.requires_grad_(), pooling="fo", backend="triton")


def test_unknown_names_are_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "must be one of 'auto', 'native', 'triton', 'torch', but is 'cuda'."
    with pytest.raises(ValueError, match=f"`name` {rule}"), use_backend("cuda"):
        pass
    gates = torch.zeros(1, 2, 6)
    with pytest.raises(ValueError, match=f"`backend` {rule}"):
        pool(gates, pooling="fo", backend="cuda")
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match=f"`HF_QRNN_BACKEND` {rule}"):
        pool(gates, pooling="fo")


def test_config_reaches_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 8, "embedding_size": 4, "hidden_size": 4}
    model = QRNNForConditionalGeneration(
        QRNNConfig(**sizes, encoder_layers=2, decoder_layers=2, pool_backend="triton")
    )
    layers = [module for module in model.modules() if isinstance(module, QRNNLayer)]
    assert [layer.pool_backend for layer in layers] == ["triton"] * 4
    only(monkeypatch, "torch")
    ids = torch.tensor([[5, 1]])
    with pytest.raises(RuntimeError, match="no triton today"):
        model(input_ids=ids, decoder_input_ids=ids)


def test_backward_may_run_on_another_backend_than_forward() -> None:
    if unavailable("native", CPU) is not None:
        pytest.skip(str(unavailable("native", CPU)))
    gates = torch.randn(2, 70, 9, dtype=torch.float64, requires_grad=True)
    grads: list[torch.Tensor] = []
    for ways in (("torch", "torch"), ("torch", "native"), ("native", "torch")):
        with use_backend(ways[0]):
            h = pool(gates, pooling="fo", reverse=True).h
        with use_backend(ways[1]):
            grads += torch.autograd.grad(h.square().sum(), gates)
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=0, atol=1e-13)


def test_compiled_is_still_a_name_of_native(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "native", "torch")
    assert choose("compiled", CPU, torch.float32, "fo").name == "native"
    monkeypatch.setenv(VARIABLE, "compiled")
    assert choose("torch", CPU, torch.float32, "fo").name == "native"
    monkeypatch.delenv(VARIABLE)
    # Model folders of 0.1.0 in the same process read the variable and know the old name alone.
    for name in ("native", "compiled"):
        with use_backend(name):
            assert os.environ[VARIABLE] == "compiled"
            assert choose("torch", CPU, torch.float32, "fo").name == "native"
    assert backend_named("compiled").name == "native"
    monkeypatch.undo()
    assert unavailable("compiled", CPU) == unavailable("native", CPU)


def test_operations_are_called_by_names_that_0_1_0_knows() -> None:
    class Pool(torch.nn.Module):
        def forward(self, gates: torch.Tensor) -> torch.Tensor:
            return pool(gates, pooling="fo", backend="native").h

    program = torch.export.export(Pool(), (torch.zeros(1, 2, 6),))
    (call,) = (node for node in program.graph.nodes if "pool_v2" in str(node.target))
    assert call.args[-1] == "compiled"


def test_config_of_0_1_0_keeps_its_backend(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "embedding_size": 4, "hidden_size": 4, "encoder_layers": 1}
    QRNNConfig(**sizes, decoder_layers=1, pool_backend="compiled").save_pretrained(tmp_path)
    config = QRNNConfig.from_pretrained(tmp_path)
    assert config.pool_backend == "compiled"
    if unavailable("native", CPU) is None:
        ids = torch.tensor([[5, 1]])
        QRNNForConditionalGeneration(config)(input_ids=ids, decoder_input_ids=ids)
    assert ("auto", *BACKENDS) == POOL_BACKENDS


def test_pool_calls_both_ways_of_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def noted(name: str) -> Backend:
        ways = backend_named(name)

        def forward(*arguments: Any) -> Any:
            calls.append(f"{name} forward")
            return ways.forward(*arguments)

        def backward(*arguments: Any) -> Any:
            calls.append(f"{name} backward")
            return ways.backward(*arguments)

        return Backend(name, forward, backward)

    monkeypatch.setattr(backends_qrnn, "backend_named", noted)
    pool(torch.zeros(1, 2, 6, requires_grad=True), pooling="fo", backend="torch").h.sum().backward()
    assert calls == ["torch forward", "torch backward"]


# ------------------------------------------------------------------ the library


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_everything_runs_without_library_compiler_and_triton(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, hf_qrnn\n"
        "gates = torch.ones(1, 2, 6, requires_grad=True)\n"
        "hf_qrnn.pool(gates, pooling='fo').h.sum().backward()\n"
        "from hf_qrnn.model.backends_qrnn import choose, unavailable\n"
        "assert choose('auto', gates.device, gates.dtype, 'fo').name == 'torch'\n"
        "print(unavailable('native', gates.device))\n"
    )
    done = run_python(script, TORCH_EXTENSIONS_DIR=str(tmp_path), PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "not built: run `python -m hf_qrnn.kernels.build`" in done.stdout


def test_import_neither_loads_nor_builds(tmp_path: Path) -> None:
    script = (
        "import torch, hf_qrnn, hf_qrnn.kernels\n"
        "assert not hasattr(torch.ops.hf_qrnn_kernels, 'pool_forward')\n"
    )
    done = run_python(script, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_broken_library_is_a_reason_with_the_loaders_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = build.cache_folder() / "cpu"
    folder.mkdir(parents=True)
    (folder / build.LIBRARY_NAME).write_bytes(b"no library")
    info = {"sources": build.source_hash(), "cuda_archs": []}
    (folder / build.INFO_NAME).write_text(json.dumps(info))
    script = (
        "import torch\nfrom hf_qrnn import kernels\n"
        "print(kernels.unavailable(torch.device('cpu')))\n"
    )
    done = run_python(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not load" in done.stdout
    assert "file too short" in done.stdout or "invalid ELF header" in done.stdout
    # A library of other sources is none.
    (folder / build.INFO_NAME).write_text(json.dumps({**info, "sources": "other"}))
    assert kernels.find().path is None


def test_cuda_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: dict[str, Any] = {"path": Path("a"), "reason": None}
    for archs, sentence in (([], "built without CUDA"), (["90"], "built, no device")):
        kernels.unavailable.cache_clear()
        found = kernels.Loaded(**loaded, info={"cuda_archs": archs})
        monkeypatch.setattr(kernels, "load", lambda found=found: found)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert sentence in str(kernels.unavailable(CUDA))
    kernels.unavailable.cache_clear()
    assert "no code for xpu" in str(kernels.unavailable(torch.device("xpu")))


# ------------------------------------------------------------------ building


def builder(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, build.__file__],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path), **environment},
    )


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("off", 0, ""),
        ("auto", 0, "no compiled library: there is no C++ compiler"),
        ("cpu", 1, "no compiled library: there is no C++ compiler"),
        ("cuda", 1, "there is no"),
        ("gpu", 1, "`HF_QRNN_BUILD` must be one of auto, cpu, cuda, off, but is 'gpu'."),
    ],
)
def test_build_fails_only_where_asked_for_by_name(
    tmp_path: Path, mode: str, status: int, words: str
) -> None:
    done = builder(tmp_path, HF_QRNN_BUILD=mode, CXX="no-such-compiler")
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_compilers_words_reach_the_user(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'a riddle' >&2\nexit 1\n")
    compiler.chmod(0o755)
    for mode, status in (("auto", 0), ("cpu", 1)):
        done = builder(tmp_path / mode, HF_QRNN_BUILD=mode, CXX=str(compiler))
        assert done.returncode == status
        assert "a riddle" in done.stderr
        assert not list((tmp_path / mode).rglob("*.so"))
        assert [path.name for path in (tmp_path / mode).glob("hf_qrnn/*/*")] == ["lock"]


def test_library_is_named_by_sources_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.source_hash()
    assert build.source_hash() == before
    monkeypatch.setattr(build, "_CXX", (*build._CXX, "-O1"))
    assert build.source_hash() != before
    tools = build.Tools(Path("torch"), "g++", None, ())
    assert build.variant(tools) == "cpu"
    command = build._link_command(tools, ["a.o"], Path("b.so"))
    # libtorch is named although nothing refers to it: torch loads its own libraries privately.
    assert command.index("-Wl,--no-as-needed") < command.index("-ltorch")
    monkeypatch.setattr(build, "nvcc_version", lambda nvcc: "13.0.1")
    tools = tools._replace(nvcc="nvcc", archs=("90", "75"))
    assert build.variant(tools) == "cuda-13.0.1-sm90-75"
    assert build._gencode(tools.archs)[-1] == "-gencode=arch=compute_75,code=compute_75"
