#!/usr/bin/env python
"""Compare oneDNN with torch's own choice for products of float32 matrices on a CPU.

    python benchmarks/bench_products.py

Forward, gradient of the input and gradient of the weight of layers from (rows, K) to (rows, N), as
`hf_qrnn/model/products_qrnn.py` computes them. What the choice there rests on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from ending import end_process
from results import Record, versus
from running import add_options, run

from hf_qrnn.model.internals_qrnn import onednn_linear
from hf_qrnn.model.products_qrnn import prefers_onednn
from hf_qrnn.speed.timing import environment, interleave, using_threads

# Of the modern preset: gates of an encoder's direction and of the decoder, a square, a vocabulary.
SHAPES = (
    (1520, 512, 384),
    (1320, 512, 768),
    (1320, 256, 256),
    (1320, 256, 200),
    (64, 512, 768),
    (16, 512, 768),
    (8, 512, 768),
    (1, 512, 768),
)


def products(rows: int, inner: int, outer: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Make the operands of the three products, the second one as a weight (N, K)."""
    x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
    grad = torch.randn(rows, outer)
    yield "forward", x, weight
    yield "gradient of the input", grad, weight.t()
    yield "gradient of the weight", grad.t(), x.t()


def measure(options: argparse.Namespace) -> Iterator[Record]:
    """Measure all shapes with every number of threads."""
    yield {"bench": "environment", **environment("cpu"), "command": sys.argv[1:]}
    multiply = onednn_linear()
    if multiply is None:
        yield {"bench": "product", "skipped": "torch has no linear layer of oneDNN"}
        return
    for threads in options.threads:
        with using_threads(threads):
            for shape in SHAPES:
                for name, x, weight in products(*shape):
                    calls = {
                        "oneDNN": lambda x=x, weight=weight: multiply(x, weight, None),
                        "torch.mm": lambda x=x, weight=weight: torch.mm(x, weight.t()),
                    }
                    found = interleave(calls, seconds=options.seconds)
                    yield {
                        **{"bench": "product", "peer": "torch.mm", "device": "cpu"},
                        **{"dtype": "float32", "threads": threads, "mode": name},
                        **{"rows": shape[0], "inner": shape[1], "outer": shape[2]},
                        "is_chosen": prefers_onednn(),
                        **versus(found["oneDNN"], found["torch.mm"]),
                    }


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "bench_products", threads=[1])
    parser.set_defaults(seconds=0.2)
    return run(parser, parser.parse_args(argv), measure)


if __name__ == "__main__":
    end_process(main)
