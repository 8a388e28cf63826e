"""Every backend that a CPU has, and every instruction set of the native one."""

from collections.abc import Iterator

import pytest
import torch

from hf_qrnn import use_backend
from hf_qrnn.model.backends_qrnn import unavailable

CPU = torch.device("cpu")
BACKENDS = ("torch", "native-baseline", "native-avx2", "native-avx512")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the name for `use_backend`, with the instruction set chosen."""
    backend_name, _, isa = request.param.partition("-")
    reason = unavailable(backend_name, CPU)
    if reason is not None:
        pytest.skip(reason)
    if isa:
        try:
            torch.ops.hf_qrnn_kernels.simd(isa)
        except RuntimeError:
            pytest.skip(f"this CPU has no {isa}")
    with use_backend(backend_name):
        yield backend_name
    if isa:
        torch.ops.hf_qrnn_kernels.simd("best")


all_backends = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
compiled = pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
