"""The command `hf-qrnn bench`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

_TEXT = """\
Time the forward pass of one QRNN layer (320 units, k = 2) and of nn.LSTM of the same size on this
machine, for several batch sizes and lengths. Print how many times as fast the QRNN is, beside the
paper's table (Fig. 4: cuDNN on a K40). --minutes limits the time: small cells come first, and those
for which no time was left are dashes."""


def add_bench(commands: Any) -> None:
    """Add `bench` to the commands of a parser."""
    parser = commands.add_parser(
        "bench", help="compare speed with nn.LSTM, beside the paper's table", description=_TEXT
    )
    parser.set_defaults(run=_bench)
    add = parser.add_argument
    place = "such as cpu or cuda:0 (default: the GPU if there is one, else the CPU)"
    add("--device", metavar="D", help=place)
    add("--threads", metavar="N", type=int, help="CPU threads (default: torch's own number)")
    kinds = "float32, bfloat16 or float16 (default: float32, on a GPU bfloat16)"
    add("--dtype", metavar="T", help=kinds)
    length = parser.add_mutually_exclusive_group()
    limit = "stop after about M minutes (default: 5)"
    length.add_argument("--minutes", metavar="M", type=float, default=5.0, help=limit)
    length.add_argument("--quick", action="store_true", help="measure six of the thirty cells")


def _bench(args: argparse.Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"`--threads` must be at least 1, but is {args.threads}.")
    if not args.minutes > 0:
        raise ValueError(f"`--minutes` must be above 0, but is {args.minutes}.")
    # Here, not above: whoever made a mistake need not wait for torch.
    import torch
    from tqdm import tqdm

    from hf_qrnn.model.backends_qrnn import choose
    from hf_qrnn.speed.paper_table import (
        DTYPES,
        PAPER_CELLS,
        QUICK_CELLS,
        check_device,
        compare_cells,
        speed_table,
    )
    from hf_qrnn.speed.timing import environment, using_threads

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = args.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"`--dtype` must be one of {', '.join(DTYPES)}, but is {dtype!r}.")
    check_device(device, dtype)
    # A GPU is timed by CUDA graphs: for small cells, launching would take longer than computing.
    on_gpu = torch.device(device).type == "cuda"
    cells = QUICK_CELLS if args.quick else PAPER_CELLS
    with using_threads(args.threads):
        record = environment(device)
    backend = choose("auto", torch.device(device), DTYPES[dtype], "fo").name
    with tqdm(total=len(cells), unit=" cells", disable=None, file=sys.stderr, leave=False) as bar:
        found = compare_cells(
            cells,
            device=device,
            dtype=dtype,
            threads=args.threads,
            seconds=60 * args.minutes,
            graph=on_gpu,
            on_cell=bar.update,
        )
    where = record["gpu"] if on_gpu else f"{record['cpu']}, {record['threads']} threads"
    print(f"{where}; {dtype}; pooling backend {backend}; torch {record['torch']}")
    how = "CUDA graph against CUDA graph" if on_gpu else "one call each, in turns"
    print(f"times as fast as nn.LSTM, forward, 320 units, {how}; in brackets the paper's (K40)")
    print(speed_table(found, cells))
