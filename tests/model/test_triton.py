"""hf_qrnn.model.triton_qrnn: the kernels run in the interpreter and compile for GPUs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from triton_runs import need_triton, run_in_the_interpreter, run_python

from hf_qrnn import QRNNConfig, QRNNForCausalLM, pool
from hf_qrnn.model import triton_qrnn
from hf_qrnn.model.backends_qrnn import VARIABLE
from hf_qrnn.model.pool_kinds_qrnn import NUM_GATES, POOL_KINDS

KERNELS = {"forward": triton_qrnn._forward_kernel, "backward": triton_qrnn._backward_kernel}
KINDS = {name: NUM_GATES[name] for name, kind in POOL_KINDS.items() if kind.in_triton}


def test_kernels_match_the_loop_in_the_interpreter() -> None:
    run_in_the_interpreter("triton_interpreter.py")


def _compile(kernel: Any, gates: str, num_gates: int, capability: int, plain: bool) -> Any:
    """Compile with a short tile; `plain` leaves every option out and has T = H = 1."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    state = "*fp64" if gates == "*fp64" else "*fp32"
    constants: dict[str, Any] = {"GATES": num_gates, "BLOCK": 32, "STEPS": 2, "TILE": 8}
    constants["REVERSE"] = not plain
    optional = ("bias", "initial_state", "mask", "seed", "c", "tiles", "grad_bias", "grad_state")
    if plain:
        backward_needs = ("tiles",) if "grad_h" in kernel.arg_names else ()
        constants |= {name: None for name in optional if name not in backward_needs}
        constants |= {"grad_c": None, "T": 1, "H": 1}
    types = dict.fromkeys(kernel.arg_names, state)
    types |= dict.fromkeys(("gates", "bias", "h", "grad_h", "grad_gates"), gates)
    types |= {"mask": "*u8", "seed": "*i64", "stride_b": "i64"}
    types |= dict.fromkeys(("T", "H", "stride_t", "mask_b", "mask_t", "threshold"), "i32")
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in constants else types[name] for name in kernel.arg_names
    }
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 1, "enable_fp_fusion": True}
    target = GPUTarget("cuda", capability, 32)
    return compiler.compile(source, target=target, options=options)


@pytest.mark.parametrize(
    ("pooling", "gates", "capability", "plain"),
    [
        ("f", "*fp32", 75, True),
        ("f", "*fp64", 80, False),
        ("fo", "*bf16", 90, False),
        ("ifo", "*fp16", 100, False),
    ],
)
@pytest.mark.parametrize("direction", KERNELS)
def test_kernel_compiles_for_gpus(
    direction: str,
    pooling: str,
    gates: str,
    capability: int,
    plain: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The interpreter is Python: it accepts what the compiler would not.
    need_triton()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = _compile(KERNELS[direction], gates, KINDS[pooling], capability, plain)
    assert len(done.asm["cubin"]) > 1000
    assert ".approx" not in done.asm["ptx"].replace("ex2.approx", "").replace("rcp.approx", "")


def test_why_unavailable_names_the_reason() -> None:
    need_triton()
    reason = triton_qrnn.why_unavailable(torch.device("cpu"))
    assert reason is not None
    assert "'cpu'" in reason
    if not torch.cuda.is_available():
        assert triton_qrnn.why_unavailable(torch.device("cuda")) == "torch sees no CUDA device"


def test_forced_without_a_gpu_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    need_triton()
    monkeypatch.delenv(VARIABLE, raising=False)  # it is stronger than the argument
    with pytest.raises(RuntimeError, match="'triton' is not: Triton has no kernels for device"):
        pool(torch.zeros(1, 2, 6), pooling="fo", backend="triton")


def test_a_model_folder_carries_the_kernels(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "embedding_size": 4, "hidden_size": 4}
    QRNNForCausalLM(QRNNConfig(**sizes, decoder_layers=1)).save_pretrained(tmp_path)
    source = Path(triton_qrnn.__file__).read_text(encoding="utf-8")
    assert (tmp_path / "triton_qrnn.py").read_text(encoding="utf-8") == source


def test_module_without_triton_imports_and_says_so() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from hf_qrnn.model import triton_qrnn\n"
        "print(triton_qrnn.why_unavailable(torch.device('cuda')))\n"
    )
    done = run_python("-W", "error", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "Triton is not installed (pip install triton)\n",
        "",
    )
