"""The CUDA kernels of a step: their own source, run on the CPU by a thread per CUDA thread.

Products are torch's on either device, here the CPU's.
"""

from typing import Any

import pytest
import stepping
import torch
from cuda_emulation import missing_tool
from stepping import (
    MODERN,
    VARIANTS,
    WRONG,
    Case,
    Change,
    arguments,
    check,
    check_bad_number,
    check_no_source,
    draw,
)

pytestmark = [
    pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++"))),
    pytest.mark.usefixtures("emulated", "nan_memory"),
]
EVERY_VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def operation() -> stepping.Operation:
    found: stepping.Operation = torch.ops.hf_qrnn_emulated.decoder_step
    return found


@EVERY_VARIANT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_variant_is_torchs(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    check(Case(changes, dtype), operation())


@EVERY_VARIANT
def test_language_models_step_too(changes: dict[str, Any]) -> None:
    check(Case(changes, has_source=False), operation())


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("mask", ["", "sources", "rows"])
@pytest.mark.parametrize("changes", [{}, MODERN], ids=["inside", "behind"])
def test_rows_may_share_a_source(changes: dict[str, Any], mask: str, each: int) -> None:
    # More pairs of row and head than blocks in this build.
    check(Case(changes, each=each, mask=mask), operation())


@pytest.mark.parametrize("hidden", [1, 7, 33, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_width(hidden: int, dtype: torch.dtype) -> None:
    # 130 is a head of more than a warp's vector.
    sizes = {"hidden_size": hidden, "embedding_size": hidden, "num_attention_heads": 1}
    check(Case({**MODERN, **sizes, "feed_forward_size": 5}, dtype), operation())


@pytest.mark.parametrize("length", [1, 31, 70])
@pytest.mark.parametrize("changes", [{}, MODERN], ids=["inside", "behind"])
def test_sources_of_any_length(changes: dict[str, Any], length: int) -> None:
    # Of 70 steps every warp has several tiles.
    check(Case(changes, torch.float32, lengths=(length, max(1, length - 9), 1)), operation())


def test_source_without_a_real_step_is_zero() -> None:
    check_no_source(operation())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_no_number_stays_in_its_row(dtype: torch.dtype, bad: float) -> None:
    check_bad_number(operation(), dtype, bad)


@pytest.mark.parametrize(("change", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(change: Change, sentence: str) -> None:
    given = arguments(draw(Case(MODERN)))
    change(given)
    with pytest.raises(RuntimeError, match=sentence):
        operation()(*given)
