"""The operation `decoder_step`: every device's code computes what torch's few calls do.

That of CUDA runs on the CPU by a thread per CUDA thread; products are torch's on either device.
"""

from typing import Any

import pytest
import torch
from cuda_emulation import missing_tool
from stepping import (
    MODERN,
    VARIANTS,
    WRONG,
    Case,
    Change,
    Operation,
    arguments,
    check,
    check_bad_number,
    check_no_source,
    draw,
)

from hf_qrnn import kernels
from hf_qrnn.model.internals_qrnn import onednn_linear

pytestmark = pytest.mark.usefixtures("nan_memory")
REASON = kernels.unavailable(torch.device("cpu"))
BUILT = pytest.mark.skipif(REASON is not None, reason=str(REASON))
EVERY_VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def native() -> Operation:
    found: Operation = torch.ops.hf_qrnn_kernels.decoder_step
    return found


@pytest.fixture(params=["CPU", "CUDA"])
def operation(request: pytest.FixtureRequest) -> Operation:
    """The operation of one device, as it is built here."""
    if request.param == "CPU":
        if REASON is not None:
            pytest.skip(REASON)
        return native()
    reason = missing_tool("g++")
    if reason is not None:
        pytest.skip(reason)
    request.getfixturevalue("emulated")
    found: Operation = torch.ops.hf_qrnn_emulated.decoder_step
    return found


# ------------------------------------------------------------------ on every device


@EVERY_VARIANT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_variant_is_torchs(
    operation: Operation, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    check(Case(changes, dtype), operation)


@EVERY_VARIANT
def test_language_models_step_too(operation: Operation, changes: dict[str, Any]) -> None:
    check(Case(changes, has_source=False), operation)


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("mask", ["", "sources", "rows"])
@pytest.mark.parametrize("changes", [{}, MODERN], ids=["inside", "behind"])
def test_rows_may_share_a_source(
    operation: Operation, changes: dict[str, Any], mask: str, each: int
) -> None:
    # More pairs of row and head than blocks in this build.
    check(Case(changes, each=each, mask=mask), operation)


@pytest.mark.parametrize("hidden", [1, 7, 33, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_width(operation: Operation, hidden: int, dtype: torch.dtype) -> None:
    # 130 is a head of more than a warp's vector.
    sizes = {"hidden_size": hidden, "embedding_size": hidden, "num_attention_heads": 1}
    check(Case({**MODERN, **sizes, "feed_forward_size": 5}, dtype), operation)


@pytest.mark.parametrize("length", [1, 31, 70])
@pytest.mark.parametrize("changes", [{}, MODERN], ids=["inside", "behind"])
def test_sources_of_any_length(operation: Operation, changes: dict[str, Any], length: int) -> None:
    # Of 70 steps every warp has several tiles.
    check(Case(changes, torch.float32, lengths=(length, max(1, length - 9), 1)), operation)


def test_source_without_a_real_step_is_zero(operation: Operation) -> None:
    check_no_source(operation)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_no_number_stays_in_its_row(
    operation: Operation, dtype: torch.dtype, bad: float
) -> None:
    check_bad_number(operation, dtype, bad)


@pytest.mark.parametrize(("change", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(operation: Operation, change: Change, sentence: str) -> None:
    given = arguments(draw(Case(MODERN)))
    change(given)
    with pytest.raises(RuntimeError, match=sentence):
        operation(*given)


# ------------------------------------------------------------------ on the CPU


@BUILT
@EVERY_VARIANT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_is_torchs(
    isa: str, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    simd, before = torch.ops.hf_qrnn_kernels.simd, torch.ops.hf_qrnn_kernels.simd("")
    try:
        if simd(isa) != isa:
            pytest.skip(f"this processor has no {isa}")
        check(Case(changes, dtype), native())
    finally:
        simd(before)


@BUILT
@pytest.mark.skipif(onednn_linear() is None, reason="torch has no oneDNN here")
def test_either_library_of_products() -> None:
    sizes = {"hidden_size": 320, "embedding_size": 320, "vocab_size": 13}
    check(Case(sizes, torch.float32, each=4), native(), onednn=True)
    check(Case({**MODERN, **sizes}, torch.float32, each=4), native(), onednn=True)


@BUILT
def test_nothing_that_is_given_changes() -> None:
    drawn = draw(Case(MODERN))
    given = arguments(drawn)
    tensors = [x for part in given[:4] for x in (part if isinstance(part, list) else [part])]
    before = [x.clone() for x in tensors]
    native()(*given)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@BUILT
def test_schema_is_that_of_an_operation_of_torch() -> None:
    drawn = draw(Case(MODERN, torch.float32))
    torch.library.opcheck(
        torch.ops.hf_qrnn_kernels.decoder_step.default,
        tuple(arguments(drawn)),
        test_utils=("test_schema", "test_autograd_registration"),
    )
