"""Every backend against the loop in float64, and what the compiled library promises besides."""

import functools
import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from backend_runs import CPU, all_backends, compiled
from cuda_emulation import missing_tool
from pooling_loop import gradients, in_double, inputs, largest_difference, loop, weighted

from hf_qrnn import kernels
from hf_qrnn.model.backends_qrnn import unavailable
from hf_qrnn.model.pooling_qrnn import NUM_GATES, PoolOutput, pool

pytestmark = pytest.mark.usefixtures("nan_memory")

KINDS = tuple(kernels.POOLING_NUMBERS)
# "native" once for every instruction set of its kernels.

# Largest difference from the loop in float64 on the same, already rounded, inputs: of h and the
# gradients in the inputs' dtype, and of c and the state. Relative to the largest number there if
# that is above 1.
TOLERANCE = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (2e-6, 1e-6),
    torch.bfloat16: (1.01 * 2**-8, 1e-6),  # one rounding: half a unit in the last place
    torch.float16: (1.01 * 2**-11, 1e-6),
}


class Case(NamedTuple):
    """One call: shape (B, T, H), which side the pads are on, and the options."""

    shape: tuple[int, int, int]
    pads: str | None = None
    initial_state: bool = False
    bias: bool = False
    zoneout: float = 0.0
    reverse: bool = False
    return_c: bool = False

    def mask(self) -> torch.Tensor | None:
        """Row b has its (7 b + 3)-th part of pads; with three rows the last has nothing else."""
        batch, length, _ = self.shape
        if self.pads is None:
            return None
        num_pads = torch.tensor([(7 * b + 3) % (length + 1) for b in range(batch)])
        if batch > 2:
            num_pads[-1] = length
        times = torch.arange(length)
        pads = (
            times < num_pads[:, None]
            if self.pads == "left"
            else times >= length - num_pads[:, None]
        )
        return ~pads


# Around the tile of 32 steps, around the lanes of every instruction set (16, 8, 4 and 2).
CASES = (
    Case((2, 0, 3), initial_state=True, bias=True),
    Case((0, 5, 3), initial_state=True, bias=True, return_c=True),
    Case((2, 1, 5), reverse=True),
    Case((1, 2, 64), initial_state=True, return_c=True),
    Case((3, 31, 7), "left", initial_state=True, zoneout=0.4, return_c=True),
    Case((3, 32, 8), "right", bias=True, reverse=True, return_c=True),
    Case((2, 33, 17), "left", True, True, 0.4, True, True),
    Case((3, 63, 3), "right", True, True, 0.3),
    Case((2, 35, 1), return_c=True),
    Case((1, 34, 83), None, True, True, 0.5, True, True),
)


def name(case: Case) -> str:
    words = [f"{x}" for x in (case.pads, "c0", "bias", "zoneout", "reverse", "c")]
    flags = [case.pads, *case[2:]]
    shape = "x".join(map(str, case.shape))
    return "-".join([shape, *(word for word, flag in zip(words, flags, strict=True) if flag)])


@pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++")))
@pytest.mark.skipif(os.environ.get("HF_QRNN_BUILD") == "off", reason="no build is wanted")
def test_the_library_is_there_where_it_can_be_built() -> None:
    # Without it most tests of this file are skipped: a library that no longer compiles must show.
    assert unavailable("native", CPU) is None


def given_of(case: Case, pooling: str, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    options = {"bias": case.bias, "initial_state": case.initial_state}
    return inputs(pooling, shape=case.shape, dtype=dtype, **options)


def results(output: PoolOutput, return_c: bool) -> list[torch.Tensor]:
    return [x for x in (output.h, output.c if return_c else None, output.state) if x is not None]


@functools.cache
def expected(
    case: Case, pooling: str, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results and gradients of the loop in float64."""
    exact = in_double(given_of(case, pooling, dtype))
    mask = case.mask()
    rows = None if mask is None else mask.tolist()
    output = loop(**exact, pooling=pooling, mask=rows, **options_of(case, 7))
    wanted = results(output, case.return_c)
    leaves = [x for x in exact.values() if x is not None]
    if case.shape[0] == 0:
        return wanted, [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(weighted(wanted), leaves, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in wanted], list(found)


def options_of(case: Case, seed: Any) -> dict[str, Any]:
    return {"zoneout": case.zoneout, "seed": seed, "reverse": case.reverse}


def run(case: Case, given: dict[str, torch.Tensor | None], pooling: str) -> list[torch.Tensor]:
    """Results and gradients of `pool`."""
    options = options_of(case, torch.tensor(7))
    got = pool(**given, pooling=pooling, mask=case.mask(), return_c=case.return_c, **options)
    assert (got.c is not None) == case.return_c
    found = results(got, case.return_c)
    return [*found, *gradients(found, given)]


@all_backends
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("pooling", KINDS)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_backend_matches_the_loop(
    backend: str, case: Case, pooling: str, dtype: torch.dtype
) -> None:
    values, grads = expected(case, pooling, dtype)
    got = run(case, given_of(case, pooling, dtype), pooling)
    of_h, of_c = TOLERANCE[dtype]
    tolerances = [of_h, *[of_c] * (len(values) - 1), *[of_h] * len(grads)]
    for ours, exact, tolerance in zip(got, [*values, *grads], tolerances, strict=True):
        largest = exact.abs().max() if exact.numel() else 0
        assert largest_difference(ours, exact) <= tolerance * max(1, largest)
    mask = case.mask()
    if mask is not None:
        assert (got[0][~mask] == 0).all()
        assert (got[len(values)][~mask] == 0).all()


@compiled
@pytest.mark.parametrize("pooling", KINDS)
def test_threads_and_repetition_change_no_bit(backend: str, pooling: str) -> None:
    case = Case((3, 70, 200), "left", True, True, 0.2, True, True)
    given = given_of(case, pooling, torch.float32)
    first = run(case, given, pooling)
    try:
        torch.set_num_threads(2)
        in_parallel = run(case, given, pooling)
    finally:
        torch.set_num_threads(1)
    for other in (run(case, given, pooling), in_parallel):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@compiled
def test_lanes_do_not_mix(backend: str) -> None:
    # A channel's results are those it has alone, wherever in a vector it lies.
    case = Case((2, 40, 21))
    given = given_of(case, "fo", torch.float32)
    whole = run(case, given, "fo")
    gates = given["gates"].detach().unflatten(-1, (3, 21))
    for channel in (0, 7, 15, 16, 20):
        alone = {**given, "gates": gates[..., channel].contiguous().requires_grad_()}
        got = run(case._replace(shape=(2, 40, 1)), alone, "fo")
        assert torch.equal(got[0][..., 0], whole[0][..., channel])


@all_backends
def test_strided_gates_are_read_in_place(backend: str) -> None:
    x = torch.randn(2, 80, 12)
    for gates in (x[:, ::2, 1:10], x.transpose(0, 1)[..., :9], x[:1, :, :9].expand(4, -1, -1)):
        mask = torch.rand(2 * gates.shape[0], gates.shape[1])[::2] < 0.8
        wanted, got = (pool(g, pooling="fo", mask=mask) for g in (gates.contiguous(), gates))
        assert torch.equal(got.h, wanted.h)
        assert torch.equal(got.state, wanted.state)
    # Channels that are not adjacent are copied.
    apart = x[..., :9:3]
    assert torch.equal(pool(apart, pooling="fo").h, pool(apart.contiguous(), pooling="fo").h)


@all_backends
@pytest.mark.parametrize(
    ("first", "h", "grad_x", "grad_u", "grad_first"),
    [
        (
            0.0,
            [0.1875, 0.265625, 0.5828125, 0.6696875],
            [0.3779765625, 0.37896875, 0.984625, 0.53575],
            [1.1339296875, 0.4737109375, 1.2492429687, 0.2908955078],
            1.1339296875,
        ),
        (
            1.0,
            [0.9375, 0.828125, 0.8640625, 0.8384375],
            [1.0356328125, 0.75584375, 1.367125, 0.67075],
            [-1.0356328125, -1.3227265625, 0.1965242188, -0.1074248047],
            3.1068984375,
        ),
    ],
    ids=["from_zero", "from_one"],
)
def test_published_f_pooling(
    backend: str,
    first: float,
    h: list[float],
    grad_x: list[float],
    grad_u: list[float],
    grad_first: float,
) -> None:
    # Inputs x = tanh(z) and update gates u = 1 - f, and what torchqrnn gives for them.
    x = torch.tensor([0.75, 0.5, 0.9, 0.8], dtype=torch.float64)
    u = torch.tensor([0.25, 0.25, 0.5, 0.4], dtype=torch.float64)
    gates = torch.stack([x.atanh(), (1 - u).logit()], dim=-1)[None].requires_grad_()
    initial = torch.full((1, 1), first, dtype=torch.float64, requires_grad=True)
    got = pool(gates, pooling="f", initial_state=initial)
    torch.testing.assert_close(
        got.h[0, :, 0], torch.tensor(h, dtype=torch.float64), rtol=0, atol=1e-8
    )
    grads, grad_initial = torch.autograd.grad(got.h.square().sum(), (gates, initial))
    # The chain rule, through tanh and through u = 1 - sigma.
    torch.testing.assert_close(
        grads[0, :, 0], torch.tensor(grad_x, dtype=torch.float64) * (1 - x * x), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(
        grads[0, :, 1], -torch.tensor(grad_u, dtype=torch.float64) * u * (1 - u), rtol=0, atol=1e-8
    )
    assert grad_initial.item() == pytest.approx(grad_first, abs=1e-9)


@all_backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_ifo_with_tied_gates_is_fo(backend: str, dtype: torch.dtype) -> None:
    given = inputs("fo", shape=(2, 40, 5), dtype=dtype, bias=False)
    tied = torch.cat([given["gates"], -given["gates"][..., 5:10]], dim=-1)
    fo = pool(**given, pooling="fo")
    ifo = pool(tied, pooling="ifo", initial_state=given["initial_state"])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for a, b in zip(
        gradients((fo.h, fo.state), given), gradients((ifo.h, ifo.state), given), strict=True
    ):
        assert largest_difference(a, b) <= tolerance
    assert largest_difference(fo.h, ifo.h) <= tolerance


@all_backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_activations_of_any_number(backend: str, dtype: torch.dtype) -> None:
    # One step from zero: c = sigma(-f) tanh(z), h = sigma(o) c. Relative precision, huge numbers,
    # infinities; what is not a number stays so.
    x = torch.cat([torch.linspace(-30, 30, 401), torch.logspace(-8, 3, 60)]).to(dtype)
    x = torch.cat([x, -x, torch.tensor([0.0, torch.inf, -torch.inf], dtype=dtype)])
    zero = torch.zeros_like(x)
    eps = torch.finfo(dtype).eps
    for gates in ((x, zero, zero + 1e3), (zero + 1e3, x, zero + 1e3), (zero + 1e3, zero - 1e3, x)):
        rows = torch.stack(gates, dim=-1)[:, None]  # every number a row of one step
        z, f, o = (gate.double() for gate in gates)
        wanted = o.sigmoid() * (-f).sigmoid() * z.tanh()
        got = pool(rows, pooling="fo").h[:, 0, 0].double()
        tiny = torch.finfo(dtype).tiny * 4
        assert ((got - wanted).abs() <= 8 * eps * wanted.abs() + tiny).all()
    for gate in range(3):
        row = torch.zeros(1, 1, 3, dtype=dtype)
        row[..., gate] = torch.nan
        assert pool(row, pooling="fo").h.isnan().all()


@all_backends
@pytest.mark.parametrize("pooling", ["fo", "ifo"])
def test_a_nan_in_an_output_gate_concerns_one_output(backend: str, pooling: str) -> None:
    gates = torch.randn(1, 6, NUM_GATES[pooling] * 20, generator=torch.Generator().manual_seed(0))
    whole = pool(gates, pooling=pooling, return_c=True)
    gates[0, 2, 2 * 20 + 3] = torch.nan
    got = pool(gates, pooling=pooling, return_c=True)
    assert got.h[0, 2, 3].isnan()
    got.h[0, 2, 3] = whole.h[0, 2, 3]
    torch.testing.assert_close(tuple(got), tuple(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@compiled
def test_every_half_is_read_and_written_as_torch_does(backend: str, dtype: torch.dtype) -> None:
    # f = 0 and i = 1: the state goes in as float32 and comes out as it was, rounded once.
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    exact = numbers.float()
    between = exact + torch.rand(2**16) * exact.abs() * torch.finfo(dtype).eps
    for state in (exact, between, torch.randn(2**16) * 1e-6, torch.randn(2**16) * 1e5):
        gates = torch.zeros(1, 1, 2 * 2**16, dtype=dtype)
        gates[..., 2**16 :] = torch.inf  # f is 1: nothing is forgotten, nothing written
        h = pool(gates, pooling="f", initial_state=state[None]).h[0, 0]
        assert torch.equal(h.isnan(), state.to(dtype).isnan())
        assert torch.equal(h[~h.isnan()], state.to(dtype)[~h.isnan()])
    # Reading: tanh of the number itself, f = 0.
    gates = torch.zeros(1, 1, 2 * 2**16, dtype=dtype)
    gates[0, 0, : 2**16], gates[..., 2**16 :] = numbers, -torch.inf
    got = pool(gates, pooling="f", return_c=True).c[0, 0]
    torch.testing.assert_close(got, exact.tanh(), rtol=2e-6, atol=0, equal_nan=True)


@pytest.mark.skipif(unavailable("native", CPU) is not None, reason="the library is not built")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pooling": 3}, "`pooling` must be 0, 1 or 2, but is 3"),
        ({"gates": torch.zeros(2, 9)}, "`gates` must be \\(batch, time, gates"),
        ({"gates": torch.zeros(2, 4, 8)}, "`gates` must be \\(batch, time, gates"),
        ({"gates": torch.zeros(2, 4, 18)[..., ::2]}, "`gates` must have adjacent channels"),
        ({"gates": torch.zeros(2, 4, 9, dtype=torch.int32)}, "`gates` must be float64, float32"),
        ({"bias": torch.zeros(9)}, "`bias` has the wrong shape"),
        ({"bias": torch.zeros(2, 9).half()}, "`bias` has the wrong dtype"),
        ({"initial_state": torch.zeros(2, 4)}, "`initial_state` has the wrong shape"),
        ({"mask": torch.ones(2, 4)}, "`mask` has the wrong dtype"),
        ({"zoneout": 1.0}, "`zoneout` must be in \\[0, 1\\)"),
        ({"zoneout": 0.5}, "`seed` must be given with zoneout"),
    ],
)
def test_library_checks_its_arguments(changes: dict[str, Any], sentence: str) -> None:
    arguments = {
        "gates": torch.zeros(2, 4, 9),
        **dict.fromkeys(("bias", "initial_state", "mask", "seed")),
        "pooling": 1,
        "zoneout": 0.0,
        "reverse": False,
        "want_c": False,
        "want_tiles": False,
        **changes,
    }
    assert kernels.load().path is not None
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.hf_qrnn_kernels.pool_forward(*arguments.values())


# ------------------------------------------------------------------ where it runs

IN_A_SMALL_THREAD = """
import threading

import torch

from hf_qrnn import use_backend
from hf_qrnn.kernels import POOLING_NUMBERS
from hf_qrnn.model.pooling_qrnn import NUM_GATES, pool

done = []


def run():
    for isa in ("baseline", "avx2", "avx512"):
        try:
            torch.ops.hf_qrnn_kernels.simd(isa)
        except RuntimeError:
            continue  # this CPU has none
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for pooling in POOLING_NUMBERS:
                num_gates = NUM_GATES[pooling]
                # Work enough for two threads.
                gates = torch.randn(32, 40, num_gates * 128, dtype=dtype, requires_grad=True)
                bias = torch.randn(32, num_gates * 128, dtype=dtype, requires_grad=True)
                pool(gates, pooling=pooling, bias=bias).h.sum().backward()
                assert gates.grad.isfinite().all() and bias.grad.isfinite().all()
                done.append((isa, dtype, pooling))


with use_backend("native"):
    pool(torch.ones(1, 1, 2), pooling="f")  # loads the library, on the first thread's stack
    threading.stack_size(128 * 1024)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
print(len(done) % 12 == 0 and len(done) > 0)
"""


@pytest.mark.skipif(unavailable("native", CPU) is not None, reason="the library is not built")
@pytest.mark.parametrize("threads", [1, 2])
def test_runs_on_a_small_stack(threads: int) -> None:
    """musl gives a thread 128 KiB, and OpenMP's threads have what OMP_STACKSIZE says."""
    command = f"import torch; torch.set_num_threads({threads})\n{IN_A_SMALL_THREAD}"
    environment = {**os.environ, "OMP_STACKSIZE": "128k"}
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"


def test_build_command_says_only_what_it_did() -> None:
    environment = {**os.environ, "HF_QRNN_BUILD": "off"}
    command = [sys.executable, "-m", "hf_qrnn.kernels.build"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
