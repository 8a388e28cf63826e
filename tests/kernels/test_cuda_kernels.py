"""The CUDA kernels: compiled by nvcc for every architecture, run on the CPU, watched for races.

No GPU is needed and none is used: the kernels' own source runs with a thread per CUDA thread.
"""

import functools
import mmap
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulation import (
    ARCHITECTURES,
    DTYPES,
    Emulated,
    compile_with_gxx,
    missing_tool,
    nvcc_command,
    run,
)
from pooling_loop import inputs, loop

from hf_qrnn.kernels import POOLING_NUMBERS
from hf_qrnn.model.pooling_qrnn import NUM_GATES, pool, state_dtype

needs_gxx = pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++")))
needs_nvcc = pytest.mark.skipif(
    missing_tool("nvcc", "g++") is not None, reason=str(missing_tool("nvcc", "g++"))
)

STREAM, SPLIT = 0, 1
NAMES = ["h", "c", "state"]
# Of numbers in the gates' dtype and in the state's, relative to max(1, |expected|). The first is
# half a unit in the last place, doubled where a value rounds twice.
TOLERANCES = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (4e-6, 4e-6),
    torch.bfloat16: (2**-8, 4e-6),
    torch.float16: (2**-11, 4e-6),
}
# float64 is never split.
FORMS = [(torch.float64, STREAM)]
FORMS += [(dtype, form) for dtype in DTYPES[1:] for form in (STREAM, SPLIT)]
FORM_IDS = [f"{str(d).removeprefix('torch.')}-{('stream', 'split')[f]}" for d, f in FORMS]


# ------------------------------------------------------------------ builds, once a session

POOL, CONNECT = "sanitized_main.cpp", "sanitized_connect.cpp"
THREADS, ADDRESSES = ["-fsanitize=thread"], ["-fsanitize=address,undefined"]
SANITIZED = {
    "threads": (POOL, THREADS),
    "addresses": (POOL, [*ADDRESSES, "-fno-sanitize-recover=all"]),
    "no_barrier": (POOL, [*THREADS, "-DQRNN_WITHOUT_CARRY_BARRIER"]),
    "connect_threads": (CONNECT, THREADS),
    "connect_addresses": (CONNECT, [*ADDRESSES, "-fno-sanitize-recover=all"]),
    "connect_no_barrier": (CONNECT, [*THREADS, "-DQRNN_WITHOUT_TEAM_BARRIER"]),
}


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """Programs of the sanitizers, two at a time while the other tests run."""
    folder = tmp_path_factory.mktemp("cuda")
    with ThreadPoolExecutor(2) as workers:
        yield {
            name: workers.submit(compile_with_gxx, source, folder / name, "-O1", "-g1", *options)
            for name, (source, options) in SANITIZED.items()
        }


# ------------------------------------------------------------------ nvcc


def parts_of_fat_binaries(path: Path) -> set[tuple[str, int]]:
    """("cubin" or "ptx", architecture) of everything nvcc put into an object file."""
    data, found = path.read_bytes(), set()
    position = data.find(FAT_BINARY)
    while position >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, position)
        entry, end = position + header, position + header + size
        while entry < end:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            found.add(({1: "ptx", 2: "cubin"}[kind], architecture))
            entry += entry_header + entry_size
        position = data.find(FAT_BINARY, end)
    return found


FAT_BINARY = struct.pack("<IH", 0xBA55ED50, 1)


@needs_nvcc
@pytest.mark.parametrize("source", ["pool_cuda.cu", "connect_cuda.cu", "step_cuda.cu"])
def test_nvcc_compiles_every_architecture_without_a_warning(source: str, tmp_path: Path) -> None:
    target = tmp_path / "object.o"
    done = run(nvcc_command(source, target), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {("cubin", architecture) for architecture in ARCHITECTURES}
    # PTX of the lowest: an architecture that is yet to come can translate it.
    assert parts_of_fat_binaries(target) == wanted | {("ptx", min(ARCHITECTURES))}


# ------------------------------------------------------------------ against the loop


CASES: dict[str, tuple[tuple[int, int, int], bool]] = {
    # Odd rows, a tile and a bit; even rows, two tiles and a bit, several chunks of a block.
    "plain": ((2, 37, 3), False),
    "options": ((3, 70, 4), True),
}
MASK = torch.ones(3, 70, dtype=torch.bool)
MASK[0, :9] = False
MASK[1, 50:] = False
MASK[2] = False
ZONEOUT, SEED = 0.3, 12345


def arguments(pooling: str, dtype: torch.dtype, case: str) -> dict[str, torch.Tensor]:
    shape, options = CASES[case]
    given = inputs(pooling, shape=shape, dtype=dtype, bias=options, initial_state=options)
    tensors = {name: x.detach() for name, x in given.items() if x is not None}
    if options:
        tensors["initial_state"] = tensors["initial_state"].to(state_dtype(dtype))
    return tensors


def received(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Draw the gradients that h, c and the state receive."""
    generator = torch.Generator().manual_seed(3)
    state = state_dtype(dtype)
    return {
        "grad_h": torch.randn(shape, generator=generator).to(dtype),
        "grad_c": torch.randn(shape, generator=generator).to(state),
        "grad_state": torch.randn(shape[0], shape[2], generator=generator).to(state),
    }


@functools.cache
def expected(pooling: str, dtype: torch.dtype, case: str) -> dict[str, torch.Tensor]:
    """Values and gradients of the float64 loop."""
    shape, options = CASES[case]
    tensors = arguments(pooling, dtype, case)
    tensors.setdefault("initial_state", torch.zeros(shape[0], shape[2]))
    given = {name: x.double().requires_grad_() for name, x in tensors.items()}
    extra: dict[str, Any] = {}
    if options:
        extra = {"mask": MASK.tolist(), "zoneout": ZONEOUT, "seed": SEED, "reverse": True}
    out = loop(**given, pooling=pooling, **extra)
    grads = torch.autograd.grad(
        list(out), list(given.values()), [g.double() for g in received(shape, dtype).values()]
    )
    wanted = dict(zip(NAMES, out, strict=True))
    wanted |= {f"grad_{name}": g for name, g in zip(given, grads, strict=True)}
    in_order = out.c.flip(1) if options else out.c
    starts = [given["initial_state"][:, None], in_order[:, 31:-1:32]]
    wanted["tiles"] = torch.cat(starts, dim=1)
    wanted["grad_initial"] = wanted.pop("grad_initial_state")
    return {name: x.detach() for name, x in wanted.items()}


def assert_near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float, name: str) -> None:
    assert found.shape == wanted.shape, name
    error = (found.double() - wanted).abs() / wanted.abs().clamp(min=1)
    assert not error.isnan().any(), f"{name}: not wholly written"
    assert error.max() <= tolerance, f"{name}: {float(error.max()):.2e}"


@needs_gxx
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pooling", POOLING_NUMBERS)
@pytest.mark.parametrize(("dtype", "form"), FORMS, ids=FORM_IDS)
def test_kernels_match_loop(
    emulated: Emulated, pooling: str, dtype: torch.dtype, form: int, case: str
) -> None:
    shape, options = CASES[case]
    given = arguments(pooling, dtype, case)
    extra: dict[str, Any] = {"form": form}
    if options:
        # Rows inside a larger tensor: strides of the batch and of time are taken as they are.
        wide = torch.full((shape[0], shape[1] + 2, given["gates"].shape[2] + 6), float("nan"))
        room = wide.to(dtype)[:, 1:-1, 2:-4]
        given["gates"] = room.copy_(given["gates"])
        mask = torch.stack([MASK, ~MASK], dim=2)[:, :, 0]
        extra |= {"mask": mask, "zoneout": ZONEOUT, "reverse": True}
        extra["seed"] = torch.tensor(SEED)
    out, call = emulated.forward(**given, pooling=pooling, **extra)
    grads = emulated.backward(call, received(shape, dtype), dtype)
    wanted = expected(pooling, dtype, case)
    for name, found in {**out, **grads}.items():
        coarse, fine = TOLERANCES[dtype]
        assert_near(found, wanted[name], coarse if found.dtype == dtype else fine, name)


# ------------------------------------------------------------------ edges


@needs_gxx
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 32, 33, 64, 65])
def test_any_length_matches_the_definition(emulated: Emulated, length: int, form: int) -> None:
    shape = (2, length, 2)
    given = {
        name: x
        for name, x in inputs("fo", shape=shape, dtype=torch.float32).items()
        if x is not None
    }
    output = pool(pooling="fo", return_c=True, backend="torch", **given)
    grads = received(shape, torch.float32)
    wanted = torch.autograd.grad(list(output), list(given.values()), list(grads.values()))
    plain = {name: x.detach() for name, x in given.items()}
    found, call = emulated.forward(**plain, pooling="fo", form=form)
    back = emulated.backward(call, grads, torch.float32)
    for name, want in zip(NAMES, output, strict=True):
        torch.testing.assert_close(found[name], want, rtol=0, atol=2e-6)
    names = ["grad_gates", "grad_bias", "grad_initial"]
    for name, want in zip(names, wanted, strict=True):
        torch.testing.assert_close(back[name], want, rtol=1e-5, atol=1e-5)


@needs_gxx
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 5, 0), (0, 0, 0), (3, 0, 1)])
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
def test_empty_sizes_give_empty_results(
    emulated: Emulated, shape: tuple[int, int, int], form: int
) -> None:
    gates = torch.zeros(*shape[:2], 3 * shape[2])
    out, call = emulated.forward(gates, "fo", form=form)
    grads = emulated.backward(call, {}, torch.float32)
    assert (out["state"] == 0).all()
    assert (grads["grad_initial"] == 0).all()
    assert grads["grad_gates"].shape == gates.shape


@needs_gxx
@pytest.mark.parametrize("pooling", POOLING_NUMBERS)
@pytest.mark.parametrize("hidden", [1, 2, 7, 66])
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
def test_any_width_is_written_wholly_and_nowhere_else(
    emulated: Emulated, hidden: int, form: int, pooling: str
) -> None:
    gates = torch.randn(2, 33, NUM_GATES[pooling] * hidden, dtype=torch.bfloat16)
    out, call = emulated.forward(gates, pooling, form=form)
    grads = emulated.backward(call, received((2, 33, hidden), torch.bfloat16), torch.bfloat16)
    wanted = pool(gates.float(), pooling=pooling, return_c=True)
    assert_near(out["h"], wanted.h.double(), 2**-8, "h")
    assert_near(out["c"], wanted.c.double(), 4e-6, "c")
    assert not any(x.isnan().any() for x in (*out.values(), *grads.values()))


@needs_gxx
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
def test_an_address_that_pairs_do_not_fit_is_read_one_by_one(emulated: Emulated, form: int) -> None:
    # An even number of channels, one element off: 32-bit words would not be aligned. The same
    # numbers, so the same bits; the sanitizer's build would stop at a misaligned word.
    even = torch.randn(2, 40, 12, dtype=torch.float16)
    memory = torch.zeros(even.numel() + 1, dtype=torch.float16)
    off = memory[1:].view_as(even).copy_(even)
    assert off.data_ptr() % 4
    grads = received((2, 40, 4), torch.float16)
    results = []
    for gates in (even, off):
        out, call = emulated.forward(gates, "fo", form=form)
        results.append({**out, **emulated.backward(call, grads, torch.float16)})
    for name, found in results[0].items():
        assert torch.equal(found, results[1][name]), name


@needs_gxx
@pytest.mark.parametrize("pooling", POOLING_NUMBERS)
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
def test_pads_may_hold_anything(emulated: Emulated, form: int, pooling: str) -> None:
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, 30:] = mask[1, :5] = False
    clean = torch.randn(2, 40, NUM_GATES[pooling] * 2)
    grads = received((2, 40, 2), torch.float32)
    results = []
    for garbage in (0.0, float("nan"), float("inf")):
        gates = clean.masked_fill(~mask[:, :, None], garbage)
        out, call = emulated.forward(gates, pooling, mask=mask, form=form)
        results.append({**out, **emulated.backward(call, grads, torch.float32)})
    assert (results[0]["h"][~mask] == 0).all()
    assert (results[0]["grad_gates"][~mask] == 0).all()
    for other in results[1:]:
        for name, found in results[0].items():
            assert torch.equal(found, other[name]), name


@needs_gxx
def test_a_nan_in_an_output_gate_concerns_one_step(emulated: Emulated) -> None:
    gates = torch.randn(1, 40, 6, dtype=torch.bfloat16)
    gates[0, 10, 4] = float("nan")  # o of channel 0
    for form in (STREAM, SPLIT):
        out, _ = emulated.forward(gates, "fo", form=form)
        assert out["h"].isnan().nonzero().tolist() == [[0, 10, 0]]
        assert not out["c"].isnan().any()


@needs_gxx
def test_saturated_gates_keep_their_digits(emulated: Emulated) -> None:
    # 1 - sigmoid(x) has no digits left at x = 20 in float32; sigmoid(-x) has them all.
    z = torch.tensor([1e-6, 1e-3, 0.2, 0.3, 4.0, 60.0, -1e-6, -60.0])
    f = torch.tensor([20.0, -20.0, 15.0, 80.0, -80.0, 0.0, 3.0, -200.0])
    gates = torch.cat([z, f])[None, None]
    out, _ = emulated.forward(gates, "f", form=STREAM)
    wanted = (-f.double()).sigmoid() * z.double().tanh()
    found = out["c"][0, 0].double()
    assert ((found - wanted).abs() <= 1e-6 * wanted.abs() + 1e-38).all(), (found, wanted)


@needs_gxx
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
def test_what_is_not_asked_for_changes_nothing(emulated: Emulated, form: int) -> None:
    gates = torch.randn(2, 70, 9)
    full, call = emulated.forward(gates, "fo", form=form)
    bare, _ = emulated.forward(gates, "fo", form=form, want=False)
    assert torch.equal(full["h"], bare["h"])
    assert torch.equal(full["state"], bare["state"])
    # Gradients that are absent are zero gradients.
    shape, names = (2, 70, 3), ["grad_h", "grad_c", "grad_state"]
    grads = received(shape, torch.float32)
    for name in names:
        zeros = {n: g if n == name else torch.zeros_like(g) for n, g in grads.items()}
        absent = {n: g if n == name else None for n, g in grads.items()}
        one = emulated.backward(call, zeros, torch.float32)
        other = emulated.backward(call, absent, torch.float32)
        for key, found in one.items():
            assert torch.equal(found, other[key]), (name, key)


@needs_gxx
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
def test_two_runs_are_equal_to_the_bit(emulated: Emulated, form: int) -> None:
    given = {k: x.detach() for k, x in inputs("ifo", shape=(2, 300, 3)).items() if x is not None}
    given = {name: x.float() for name, x in given.items()}
    grads = received((2, 300, 3), torch.float32)
    results = []
    for _ in range(2):
        out, call = emulated.forward(**given, pooling="ifo", form=form)
        results.append({**out, **emulated.backward(call, grads, torch.float32)})
    for name, found in results[0].items():
        assert torch.equal(found, results[1][name]), name


@needs_gxx
def test_batches_beyond_a_grid_dimension(emulated: Emulated) -> None:
    # 65,535 is the limit of every grid dimension but the first.
    gates = torch.randn(65_540, 2, 2)
    out, _ = emulated.forward(gates, "f", form=STREAM)
    torch.testing.assert_close(out["h"], pool(gates, pooling="f").h, rtol=0, atol=2e-6)


@needs_gxx
@pytest.mark.parametrize("form", [STREAM, SPLIT], ids=["stream", "split"])
def test_rows_more_than_2_to_the_31_elements_apart(emulated: Emulated, form: int) -> None:
    # Memory that is reserved but, apart from the two rows, never touched.
    stride, row = 2**31 + 64, 33 * 6
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it since 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    with mmap.mmap(-1, 2 * (stride + row), flags=flags) as memory:
        whole = torch.frombuffer(memory, dtype=torch.bfloat16)
        gates = whole.as_strided((2, 33, 6), (stride, 6, 1))
        gates.copy_(torch.randn(2, 33, 6))
        near = gates.clone()
        far, _ = emulated.forward(gates, "fo", form=form)
        del gates, whole
    wanted, _ = emulated.forward(near, "fo", form=form)
    assert torch.equal(far["h"], wanted["h"])


# ------------------------------------------------------------------ the operations


def call_operations(
    pooling: str, gates: torch.Tensor, tensors: dict[str, torch.Tensor | None], zoneout: float
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results and gradients of `pool_forward` and `pool_backward` as torch calls them."""
    ops, number = torch.ops.hf_qrnn_emulated, POOLING_NUMBERS[pooling]
    given = [gates, *(tensors.get(n) for n in ("bias", "initial_state", "mask", "seed"))]
    out = ops.pool_forward(*given, number, zoneout, True, True, True)
    grads = [tensors.get(n) for n in ("grad_h", "grad_c", "grad_state")]
    return list(out), list(ops.pool_backward(*grads, *given, out[3], number, zoneout, True))


@needs_gxx
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("pooling", POOLING_NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_take_and_give_what_the_definition_does(
    emulated: Emulated, dtype: torch.dtype, pooling: str
) -> None:
    shape = (2, 35, 4)
    given = {
        k: x.detach() for k, x in inputs(pooling, shape=shape, dtype=dtype).items() if x is not None
    }
    given["initial_state"] = given["initial_state"].to(state_dtype(dtype))
    leaves = {name: x.double().requires_grad_() for name, x in given.items()}
    mask, seed = torch.ones(2, 35, dtype=torch.bool), torch.tensor(5)
    mask[1, 20:] = False
    options = {"mask": mask, "zoneout": 0.2, "seed": seed, "reverse": True, "return_c": True}
    wanted = pool(pooling=pooling, **options, **leaves)
    grads = received(shape, dtype)
    # One number for all of h, as from a sum: a tensor without strides.
    grads["grad_h"] = torch.ones((), dtype=dtype).expand(shape)
    wanted_grads = torch.autograd.grad(
        list(wanted), list(leaves.values()), [g.double() for g in grads.values()]
    )
    # Strides: bias and state as columns of something else, the mask transposed.
    tensors = {n: torch.stack([x, x], dim=-1)[..., 0] for n, x in given.items() if n != "gates"}
    tensors |= {"mask": mask.t().contiguous().t(), "seed": seed, **grads}
    out, back = call_operations(pooling, given["gates"], tensors, 0.2)
    coarse, fine = TOLERANCES[dtype]
    for name, found, want in zip(NAMES, out[:3], wanted, strict=True):
        assert_near(found, want.detach(), coarse if name == "h" else fine, name)
    for name, found, want in zip(given, back, wanted_grads, strict=True):
        assert found.dtype == (dtype if name == "gates" else state_dtype(dtype))
        assert_near(found, want, coarse if name == "gates" else fine, name)


@needs_gxx
def test_operations_leave_out_what_is_not_wanted(emulated: Emulated) -> None:
    gates = torch.randn(2, 40, 6)
    ops = torch.ops.hf_qrnn_emulated
    h, c, state, tiles = ops.pool_forward(gates, *[None] * 4, 1, 0.0, False, False, False)
    assert (h.shape, c.shape, state.shape, tiles.shape) == ((2, 40, 2), (0,), (2, 2), (0,))
    tiles = ops.pool_forward(gates, *[None] * 4, 1, 0.0, False, False, True)[3]
    assert tiles.shape == (2, 2, 2)
    back = ops.pool_backward(h, None, None, gates, *[None] * 4, tiles, 1, 0.0, False)
    assert [x.shape for x in back] == [(2, 40, 6), (0,), (2, 2)]


@needs_gxx
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"pooling": 3}, "`pooling` must be 0 \\(f\\), 1 \\(fo\\) or 2 \\(ifo\\), but is 3"),
        ({"pooling": 2}, "`gates` must be \\(batch, time, 4 \\* hidden\\), but is \\(2, 5, 6\\)"),
        (
            {"gates": torch.zeros(2, 6, 5).mT},
            "`gates` must have adjacent channels, but has stride 5",
        ),
        ({"gates": torch.zeros(2, 5, 6).int()}, "`gates` must be float64, float32"),
        ({"bias": torch.zeros(6)}, "`bias` must have shape \\(2, 6\\), but has \\(6\\)"),
        ({"initial_state": torch.zeros(2, 2).double()}, "`initial_state` must have the dtype"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "`mask` must have shape \\(2, 5\\)"),
        ({"zoneout": 0.5}, "`seed` must be given with zoneout"),
        ({"zoneout": 1.0}, "`zoneout` must be in \\[0, 1\\), but is 1"),
    ],
)
def test_a_wrong_argument_is_named(emulated: Emulated, changes: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = dict.fromkeys(["bias", "initial_state", "mask", "seed"])
    given |= {"gates": torch.zeros(2, 5, 6), "pooling": 1, "zoneout": 0.0}
    given |= {"reverse": False, "want_c": True, "want_tiles": True}
    with pytest.raises(RuntimeError, match=text):
        torch.ops.hf_qrnn_emulated.pool_forward(**{**given, **changes})


# ------------------------------------------------------------------ 16-bit numbers


@needs_gxx
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_stand_ins_are_those_of_torch(emulated: Emulated, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    torch.testing.assert_close(emulated.widen(every), every.float(), rtol=0, atol=0, equal_nan=True)
    # Halfway cases and their neighbours, subnormals, overflow.
    middles = (every[:-1].float() + every[1:].float()) / 2
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), dtype=torch.int64).to(torch.int32)
    x = torch.cat([middles, middles * (1 + 2**-20), every.float(), bits.view(torch.float32)])
    torch.testing.assert_close(
        emulated.narrow(x, dtype), x.to(dtype), rtol=0, atol=0, equal_nan=True
    )


# ------------------------------------------------------------------ the choice of a form


@needs_gxx
def test_few_channels_are_split_and_many_stream(emulated: Emulated) -> None:
    bf16 = torch.bfloat16
    forms = {
        shape: emulated.plan(False, bf16, *shape)[0]
        for shape in [(8, 512, 320), (8, 31, 320), (102, 512, 320), (103, 512, 320), (1, 32, 1)]
    }
    assert forms == {
        (8, 512, 320): SPLIT,
        (8, 31, 320): STREAM,
        (102, 512, 320): SPLIT,
        (103, 512, 320): STREAM,
        (1, 32, 1): SPLIT,
    }
    assert emulated.plan(False, torch.float64, 8, 512, 320)[0] == STREAM


@needs_gxx
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backward", [False, True])
def test_every_plan_fits_the_kernels(
    emulated: Emulated, backward: bool, dtype: torch.dtype
) -> None:
    for batch in (1, 3, 8, 100, 70_000):
        for length in (1, 32, 33, 200, 5000):
            for hidden in (1, 2, 7, 64, 320, 4096):
                form, lanes, slices = emulated.plan(backward, dtype, batch, length, hidden)
                assert lanes >= 1
                assert slices >= 1
                if form == STREAM:
                    assert (lanes, slices) == (32 if dtype == torch.float64 else 64, 1)
                    continue
                assert lanes * slices <= 256
                if backward:
                    # A chunk holds whole tiles of 32 steps.
                    assert slices * 4 % 32 == 0


@needs_gxx
def test_the_table_decides_unless_a_form_is_asked_for(emulated: Emulated) -> None:
    gates = torch.randn(2, 70, 9)
    chosen, split, stream = (
        emulated.forward(gates, "fo", form=form)[0]["h"] for form in (-1, SPLIT, STREAM)
    )
    assert torch.equal(chosen, split)
    # Sums in another order: equal, but not to the bit.
    assert not torch.equal(chosen, stream)
    torch.testing.assert_close(chosen, stream)


# ------------------------------------------------------------------ sanitizers

OPTIONS = {"TSAN_OPTIONS": "halt_on_error=0", "ASAN_OPTIONS": "detect_leaks=0"}


@needs_gxx
@pytest.mark.parametrize("name", ["threads", "addresses", "connect_threads", "connect_addresses"])
def test_kernels_run_clean_under_a_sanitizer(builds: dict[str, Future[Path]], name: str) -> None:
    done = run([str(builds[name].result())], **OPTIONS)
    assert (done.returncode, done.stdout) == (0, "all right\n"), done.stdout + done.stderr


@needs_gxx
@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("no_barrier", ("split_forward", "split_backward")),
        ("connect_no_barrier", ("connect_forward_kernel", "connect_backward_kernel")),
    ],
)
def test_a_missing_barrier_is_found(
    builds: dict[str, Future[Path]], name: str, kernels: tuple[str, ...]
) -> None:
    done = run([str(builds[name].result())], **OPTIONS)
    assert done.returncode != 0
    assert "data race" in done.stderr
    for kernel in kernels:
        assert kernel in done.stderr
