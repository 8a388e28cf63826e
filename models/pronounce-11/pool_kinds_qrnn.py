"""The pooling kinds: which gates each has beside the candidate z and the forget gate f.

Everybody who lists or compares kinds reads this table. What the compiled library knows, it says
itself (`POOLING_NUMBERS` of `hf_qrnn.kernels`): a model folder may run beside the library of
another release.

Gate order is always z, f, o, i. Saved weights hold it.
"""

from __future__ import annotations

from typing import NamedTuple


class PoolKind(NamedTuple):
    """One pooling kind.

    Attributes:
        has_output_gate: Whether h_t = o_t . c_t; else h_t = c_t.
        has_input_gate: Whether i_t . z_t is written; else (1 - f_t) . z_t.
        in_triton: Whether `triton_qrnn.py` knows the kind.
    """

    has_output_gate: bool
    has_input_gate: bool
    in_triton: bool


POOL_KINDS = {
    "f": PoolKind(has_output_gate=False, has_input_gate=False, in_triton=True),  # Eq. 3
    "fo": PoolKind(has_output_gate=True, has_input_gate=False, in_triton=True),  # Eq. 4
    "ifo": PoolKind(has_output_gate=True, has_input_gate=True, in_triton=True),  # Eq. 5
}

NUM_GATES = {
    name: 2 + kind.has_output_gate + kind.has_input_gate for name, kind in POOL_KINDS.items()
}
