"""Builds of the CUDA source: by nvcc, and by g++ to run on the CPU; each once a session."""

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import hf_qrnn
from hf_qrnn.kernels import POOLING_NUMBERS
from hf_qrnn.model.pooling_qrnn import NUM_GATES, state_dtype

CSRC = Path(hf_qrnn.__file__).parent / "kernels" / "csrc"
EMULATION = Path(__file__).parents[1] / "cuda_emulation"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TILE = 32

_NUMBERS = ["dtype", "pooling", "form", "reverse", "batch", "length", "hidden"]
_INPUTS = ["gates", "gates_stride_b", "gates_stride_t", "bias", "initial_state"]
_OPTIONS = ["mask", "mask_stride_b", "mask_stride_t", "seed", "zoneout_threshold"]
_OUTPUTS = ["h", "c", "state", "tiles"]
_GRADS = ["grad_h", "grad_c", "grad_state", "grad_gates", "grad_bias", "grad_initial"]


SCHEMAS = [
    "pool_forward(Tensor gates, Tensor? bias, Tensor? initial_state, Tensor? mask, Tensor? seed, "
    "int pooling, float zoneout, bool reverse, bool want_c, bool want_tiles)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "pool_backward(Tensor? grad_h, Tensor? grad_c, Tensor? grad_state, Tensor gates, Tensor? bias, "
    "Tensor? initial_state, Tensor? mask, Tensor? seed, Tensor tiles, int pooling, float zoneout, "
    "bool reverse) -> (Tensor, Tensor, Tensor)",
    "connect_forward(Tensor h, Tensor? residual, Tensor? weight, Tensor? seed, float dropout, "
    "float eps, str normed_dtype) -> (Tensor, Tensor, Tensor)",
    "pool_form(str wanted) -> str",
    "connect_backward(Tensor? grad_out, Tensor? grad_normed, Tensor? out, Tensor? weight, "
    "Tensor? inverse, Tensor? seed, float dropout, str h_dtype, str residual_dtype) "
    "-> (Tensor, Tensor, Tensor)",
    "decoder_step(Tensor x, Tensor[] weights, Tensor[] states, Tensor[] memory, Tensor? mask, "
    "int[] layout, float[] numbers, bool onednn) -> Tensor[]",
]


class Call(ctypes.Structure):
    """`Call` of emulated.cpp: 8 bytes a field, addresses as numbers."""

    _fields_ = [
        (name, ctypes.c_int64) for name in [*_NUMBERS, *_INPUTS, *_OPTIONS, *_OUTPUTS, *_GRADS]
    ]


def compile_with_gxx(
    sources: str, target: Path, *options: str, libraries: Sequence[str] = ()
) -> Path:
    """Compile files of `cuda_emulation/`, by their names; any warning is an error."""
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    # As in CUDA: a word is read where two 16-bit numbers were written.
    flags += [
        "-fno-strict-aliasing",
        "-DQRNN_EMULATE_CUDA",
        "-DQRNN_MAX_PARTS=3",
        "-DQRNN_MAX_BLOCKS=5",
    ]
    command = ["g++", *flags, f"-I{EMULATION}", f"-I{CSRC / 'cuda'}", *options]
    command += [str(EMULATION / source) for source in sources.split()]
    done = subprocess.run(
        [*command, *libraries, "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


TORCH = Path(torch.__file__).parent
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000ULL", "-isystem", str(TORCH / "include")]


def compile_emulated(folder: Path) -> Path:
    """Compile the operations and the C interface as a library for torch and for ctypes.

    It is built once in `folder`, by the first of several processes.
    """
    target = folder / "emulated.so"
    link = ["-Wl,--no-as-needed", f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu"]
    options = ["-O1", "-fPIC", "-shared", *STABLE_ABI]
    with (folder / "emulated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            sources = "emulated.cpp emulated_connect.cpp emulated_step.cpp"
            compile_with_gxx(sources, target, *options, libraries=link)
    return target


def nvcc_command(source: str, target: Path) -> list[str]:
    """Write the command for every architecture, and PTX of the lowest; warnings are errors."""
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    return [
        *[nvcc, "-O3", "-std=c++17", "-Werror", "all-warnings", "--threads", "2"],
        *["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"],
        *[*STABLE_ABI, "-DUSE_CUDA", "-c", str(CSRC / "cuda" / source)],
        *[f"-gencode=arch=compute_{n},code=sm_{n}" for n in ARCHITECTURES],
        "-gencode=arch=compute_75,code=compute_75",
        *["-o", str(target)],
    ]


ARCHITECTURES = [75, 80, 90, 100, 120]


def missing_tool(*names: str) -> str | None:
    """Say why tests skip: no such compiler here. With one, they run or fail."""
    absent = [name for name in names if shutil.which(name) is None]
    return f"no {absent[0]} on this machine" if absent else None


def run(
    command: list[str], timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, **environment},
    )


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _nan(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    # What is not written shows.
    return torch.full(shape, float("nan"), dtype=dtype)


class Emulated:
    """The kernels, run on the CPU by a thread per CUDA thread."""

    def __init__(self, path: Path) -> None:
        # What defines them has to live as long as the operations.
        self.schemas = torch.library.Library("hf_qrnn_emulated", "DEF")
        for schema in SCHEMAS:
            self.schemas.define(schema)
        torch.ops.load_library(str(path))
        self.library = ctypes.CDLL(str(path))

    def plan(self, backward: bool, dtype: torch.dtype, *shape: int) -> tuple[int, int, int]:
        """Return form (0 stream, 1 split), threads across channels, slices of time."""
        answer = (ctypes.c_int64 * 3)()
        numbers = [ctypes.c_int64(n) for n in (backward, DTYPES.index(dtype), *shape)]
        self.library.qrnn_plan(*numbers, answer)
        return answer[0], answer[1], answer[2]

    def widen(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(x.shape, dtype=torch.float32)
        self._convert("qrnn_widen", x.dtype, x, y)
        return y

    def narrow(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        y = torch.empty(x.shape, dtype=dtype)
        self._convert("qrnn_narrow", dtype, x, y)
        return y

    def _convert(self, name: str, dtype: torch.dtype, x: torch.Tensor, y: torch.Tensor) -> None:
        count, number = ctypes.c_int64(x.numel()), ctypes.c_int64(DTYPES.index(dtype))
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
        getattr(self.library, name)(number, count, *addresses)

    def forward(
        self,
        gates: torch.Tensor,
        pooling: str,
        *,
        bias: torch.Tensor | None = None,
        initial_state: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        zoneout: float = 0.0,
        seed: torch.Tensor | None = None,
        reverse: bool = False,
        form: int = -1,
        want: bool = True,
    ) -> tuple[dict[str, torch.Tensor], Call]:
        """Run the forward kernel on outputs full of NaN; return them and what `backward` takes."""
        batch, length, channels = gates.shape
        hidden = channels // NUM_GATES[pooling]
        state = state_dtype(gates.dtype)
        out = {"h": _nan(batch, length, hidden, dtype=gates.dtype)}
        out["state"] = _nan(batch, hidden, dtype=state)
        if want:
            out["c"] = _nan(batch, length, hidden, dtype=state)
            out["tiles"] = _nan(batch, -(-length // TILE), hidden, dtype=state)
        strides = (0, 0) if mask is None else mask.stride()
        call = Call(
            dtype=DTYPES.index(gates.dtype),
            pooling=POOLING_NUMBERS[pooling],
            form=form,
            reverse=reverse,
            batch=batch,
            length=length,
            hidden=hidden,
            gates=gates.data_ptr(),
            gates_stride_b=gates.stride(0),
            gates_stride_t=gates.stride(1),
            bias=_address(bias),
            initial_state=_address(initial_state),
            mask=_address(mask),
            mask_stride_b=strides[0],
            mask_stride_t=strides[1],
            seed=_address(seed),
            zoneout_threshold=round(zoneout * 2**24),
            **{name: tensor.data_ptr() for name, tensor in out.items()},
        )
        self.library.qrnn_emulate(ctypes.byref(call), ctypes.c_int64(0))
        return out, call

    def backward(
        self, call: Call, grads: Mapping[str, torch.Tensor | None], dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """Compute gradients of what `call` was given; `grads` has grad_h, grad_c and grad_state."""
        shape = (call.batch, call.length, call.hidden)
        channels = call.hidden * (call.pooling + 2)
        state = state_dtype(dtype)
        out = {"grad_gates": _nan(*shape[:2], channels, dtype=dtype)}
        out["grad_initial"] = _nan(call.batch, call.hidden, dtype=state)
        if call.bias:
            out["grad_bias"] = _nan(call.batch, channels, dtype=state)
        for name, tensor in [*grads.items(), *out.items()]:
            setattr(call, name, _address(tensor))
        self.library.qrnn_emulate(ctypes.byref(call), ctypes.c_int64(1))
        return out
