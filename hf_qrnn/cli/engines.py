"""The flag `--engine`, and what a command says of the engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_qrnn.engine.choice import Choice


def add_engine(add: Any) -> None:
    """Add the flag of the engine to a command, by its `add_argument`."""
    text = (
        "native: compute on the CPU without torch, which starts at once; torch: by generate(); "
        "auto: native where it can do what is asked and there is no GPU (default: auto)"
    )
    add("--engine", metavar="E", default="auto", help=text)


def tell_engine(choice: Choice) -> None:
    """Say on standard error why a model is not computed by the engine, or not in C++.

    Once it is loaded: of a model that nothing can load, one sentence is enough.
    """
    if choice.refusal is not None:
        print(f"generate() computes, since the engine cannot: {choice.refusal}", file=sys.stderr)
    elif choice.engine is not None and choice.engine.reason is not None:
        reason = choice.engine.reason
        print(f"the engine computes in NumPy, which is slower: {reason}", file=sys.stderr)
