"""hf_qrnn.model.pool_kinds_qrnn: one table, and what becomes of a kind that is added to it."""

from collections.abc import Iterator

import pytest
import torch
from pooling_loop import inputs, loop

from hf_qrnn import QRNN, QRNNConfig, kernels, use_backend
from hf_qrnn.model import backends_qrnn, pooling_qrnn
from hf_qrnn.model.backends_qrnn import BACKENDS, VARIABLE, choose
from hf_qrnn.model.layers_qrnn import QRNNLayer
from hf_qrnn.model.pool_kinds_qrnn import NUM_GATES, POOL_KINDS, PoolKind

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def fi(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A kind nobody knows but the table: an input gate, no output gate."""
    monkeypatch.setitem(POOL_KINDS, "fi", PoolKind(False, True, in_triton=False))
    monkeypatch.setitem(NUM_GATES, "fi", 3)
    monkeypatch.delenv(VARIABLE, raising=False)
    backends_qrnn._choose.cache_clear()
    yield "fi"
    backends_qrnn._choose.cache_clear()


def let_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends_qrnn, "unavailable", lambda name, device: None)


def test_the_kinds_of_the_paper() -> None:
    assert {name: (*kind[:2], NUM_GATES[name]) for name, kind in POOL_KINDS.items()} == {
        "f": (False, False, 2),
        "fo": (True, False, 3),
        "ifo": (True, True, 4),
    }
    # Model folders of other releases ask the library by these.
    assert kernels.POOLING_NUMBERS == {"f": 0, "fo": 1, "ifo": 2}


@pytest.mark.parametrize("pooling", kernels.POOLING_NUMBERS)
def test_known_kinds_go_to_the_fastest(monkeypatch: pytest.MonkeyPatch, pooling: str) -> None:
    let_all_work(monkeypatch)
    backends_qrnn._choose.cache_clear()
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose("auto", CPU, torch.float32, pooling).name == BACKENDS[0]
    assert choose("triton", CUDA, torch.float32, pooling).name == "triton"
    backends_qrnn._choose.cache_clear()


def test_new_kind_goes_to_torch_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, fi: str) -> None:
    let_all_work(monkeypatch)
    assert choose("auto", CPU, torch.float32, fi).name == "torch"
    with pytest.warns(UserWarning, match="triton: it does not know 'fi' pooling"):
        assert choose("auto", CUDA, torch.float32, fi).name == "torch"
    for name in BACKENDS[:2]:
        rule = f"must be available on cuda, but '{name}' is not: it does not know 'fi' pooling."
        with pytest.raises(RuntimeError, match=f"`backend` {rule}"):
            choose(name, CUDA, torch.float32, fi)
        gates = torch.zeros(1, 2, 3)
        with pytest.raises(RuntimeError, match="it does not know 'fi'"), use_backend(name):
            pooling_qrnn.pool(gates, pooling=fi)
    # The library may be of an older release, and so may Triton's file be of a newer one.
    monkeypatch.setitem(kernels.POOLING_NUMBERS, fi, 3)
    backends_qrnn._choose.cache_clear()
    assert choose("auto", CPU, torch.float32, fi).name == BACKENDS[0]


@pytest.mark.parametrize("reverse", [False, True])
def test_new_kind_pools_by_its_flags_alone(fi: str, reverse: bool) -> None:
    gates = inputs(fi, shape=(2, 35, 3))["gates"]
    assert gates is not None
    got = pooling_qrnn.pool(gates, pooling=fi, reverse=reverse, return_c=True)
    z, f, i = gates.chunk(3, dim=-1)
    # The loop knows ifo-pooling, whose state takes no notice of the output gate.
    same = torch.cat([z, f, torch.zeros_like(z), i], dim=-1)
    wanted = loop(same, "ifo", reverse=reverse)
    assert got.c is not None
    assert wanted.c is not None
    torch.testing.assert_close(got.h, wanted.c)
    torch.testing.assert_close(got.c, wanted.c)
    grads = torch.autograd.grad(got.h.square().sum(), gates)
    torch.testing.assert_close(grads, torch.autograd.grad(wanted.c.square().sum(), gates))


def test_new_kind_is_one_of_the_layers_the_configs_and_the_errors(fi: str) -> None:
    assert QRNNConfig(pooling=fi).pooling == fi
    with pytest.raises(ValueError, match=r"`pooling` must be one of 'f', 'fo', .*'fi', but"):
        QRNNConfig(pooling="of")
    with pytest.raises(ValueError, match=r"`pooling` must be one of 'f', 'fo', .*'fi', but"):
        QRNN(3, 4, pooling="of")
    assert QRNN(3, 4, pooling=fi)(torch.zeros(5, 2, 3))[0].shape == (5, 2, 4)
    # Its third gate is no output gate.
    assert QRNNLayer(3, 4, pooling=fi)(torch.zeros(2, 5, 3), want_o=True).o is None
    assert QRNNLayer(3, 4, pooling="fo")(torch.zeros(2, 5, 3), want_o=True).o is not None
