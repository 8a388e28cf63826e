"""hf_qrnn.model.triton_connect_qrnn: the kernels run in the interpreter and compile for GPUs."""

from pathlib import Path
from typing import Any

import pytest
from triton_runs import need_triton, run_in_the_interpreter, run_python

from hf_qrnn import QRNNConfig, QRNNForCausalLM
from hf_qrnn.model import triton_connect_qrnn

FORWARD, BACKWARD = triton_connect_qrnn._forward_kernel, triton_connect_qrnn._backward_kernel


def test_kernels_match_the_definition_in_the_interpreter() -> None:
    run_in_the_interpreter("triton_connect_interpreter.py")


SIZES = ("ROWS", "T", "H", "threshold")


def compile_for(kernel: Any, capability: int, dtypes: dict[str, str], **constants: Any) -> Any:
    """Compile for a GPU that is not here; arguments of no dtype are integers."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    types = dict.fromkeys(SIZES, "i32") | {"seed": "*i64"} | dtypes
    known = types.keys() | constants.keys()
    constants |= {n: None for n in kernel.arg_names if n not in known}
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return compiler.compile(
        source, target=target, options={"num_warps": 1, "enable_fp_fusion": True}
    )


MIXED = {
    "h": "*bf16", "residual": "*fp32", "weight": "*fp32", "out": "*fp32", "normed": "*fp16",
    "grad_out": "*fp32", "grad_normed": "*fp16", "inverse": "*fp32", "grad_h": "*bf16",
    "grad_residual": "*fp32", "parts": "*fp32",
}  # fmt: skip
DOUBLE = dict.fromkeys(MIXED, "*fp64")
ONLY_DROPOUT = dict.fromkeys(("h", "out", "grad_out", "grad_h"), "*fp32")


@pytest.mark.parametrize(
    ("capability", "dtypes", "held"),
    [(75, ONLY_DROPOUT, True), (80, DOUBLE, True), (90, MIXED, True), (100, MIXED, False)],
    ids=["dropout-75", "float64-80", "mixed-90", "wide-100"],
)
@pytest.mark.parametrize("kernel", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_kernel_compiles_for_gpus(
    kernel: Any,
    capability: int,
    dtypes: dict[str, str],
    held: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The interpreter is Python: it accepts what the compiler would not.
    need_triton()
    import triton.language as tl

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    state = tl.float64 if dtypes is DOUBLE else tl.float32
    constants: dict[str, Any] = {"STATE": state, "QUADS": 16, "HELD": held}
    if dtypes is ONLY_DROPOUT:  # a 1 is a constant to Triton
        constants |= {name: 1 for name in SIZES if name in kernel.arg_names}
    given = {name: dtype for name, dtype in dtypes.items() if name in kernel.arg_names}
    if kernel is FORWARD:
        constants |= {"EPS": 1e-6, "OUT": state}
    elif not held:
        given.pop("parts")  # torch sums the weight's gradient
    done = compile_for(kernel, capability, given, **constants)
    assert len(done.asm["cubin"]) > 1000
    assert ".approx" not in done.asm["ptx"]


def test_a_model_folder_carries_the_kernels(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "embedding_size": 4, "hidden_size": 4}
    QRNNForCausalLM(QRNNConfig(**sizes, decoder_layers=1)).save_pretrained(tmp_path)
    source = Path(triton_connect_qrnn.__file__).read_text(encoding="utf-8")
    assert (tmp_path / "triton_connect_qrnn.py").read_text(encoding="utf-8") == source


def test_module_without_triton_imports() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from hf_qrnn.model import triton_connect_qrnn\n"
        "print(triton_connect_qrnn.triton)\n"
    )
    done = run_python("-W", "error", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
