#!/usr/bin/env python
"""Check and time everything on a CUDA machine, in two calls of a few minutes (docs/gpu_check.md).

    python scripts/gpu_check.py --prepare runs/gpu --data DIR    # here: what travels
    python scripts/gpu_check.py --call 1 --carried runs/gpu      # there
    python scripts/gpu_check.py --dry                            # on a CPU, with tiny shapes

Needs torch and this repository, no set-up. Each step is a process of its own under a time limit;
what it finds is a line of `gpu_<group>.jsonl` at once. The results go to --out, else to $OUT, else
to runs/gpu_check; a table is printed last.

Exit status: 0 if nothing failed, also where there is no GPU (one sentence says so); 1 if something
failed; 2 after a mistake.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Before the installed ones, if any: this checkout is what is checked.
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu import report, running  # noqa: E402
from gpu.plan import STEPS, WATCHED, Setting, records_path, steps_of  # noqa: E402
from gpu.step import run_step  # noqa: E402

DRY = 20  # times as long as a step may take there


def has_gpu() -> bool:
    """Ask the driver for a device; torch itself would take seconds to be imported."""
    # Where the driver is in a place of its own, torch may find it all the same.
    if shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists():
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return bool(
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def run(names: list[str], setting: Setting, seconds: float | None) -> int:
    """Run steps, each as a process; return the exit status."""
    setting.out.mkdir(parents=True, exist_ok=True)
    options = ["--out", str(setting.out), "--carried", str(setting.carried)]
    options += ["--work", str(setting.work)] + (["--dry"] if setting.dry else [])
    command = [sys.executable, str(Path(__file__).resolve()), *options, "--step"]
    # A dry run measures no speed, and what it compiles for the CPU takes its time.
    slower = DRY if setting.dry else 1
    jobs = [
        running.Job(name, slower * step.limit, [*command, name], records_path(setting.out, name))
        for name, step in STEPS.items()
        if name in names
    ]
    total = sum(job.limit for job in jobs) if seconds is None else seconds
    site = setting.work / "site"
    for name in running.unpack_wheels(setting.carried / "wheels", site):
        print(f"not a wheel: {name}", flush=True)
    paths = [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    kernels = setting.carried / "kernels"
    # A dry run without a carried library takes the one that is built here.
    if kernels.is_dir() or not setting.dry:
        environment["TORCH_EXTENSIONS_DIR"] = str(kernels)
    log = setting.out / "gpu_log.txt"
    outcomes = running.run_jobs(jobs, seconds=total, log=log, environment=environment)
    print("\n" + report.write(setting.out, outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--call", type=int, choices=[1, 2], help="the steps of one call (both)")
    add("--only", nargs="+", choices=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)}")
    add("--out", type=Path, help="folder of the results ($OUT, or runs/gpu_check)")
    add("--carried", type=Path, default=ROOT / "runs/gpu", help="what travelled (runs/gpu)")
    add("--work", type=Path, help="folder of what is thrown away (one of the system's)")
    add("--seconds", type=float, help="limit of all steps together (the sum of their own)")
    add("--dry", action="store_true", help="walk all steps on the CPU, with tiny shapes")
    add("--prepare", type=Path, metavar="DIR", help="fill DIR with what travels, and end")
    add("--data", type=Path, help="with --prepare: the folder of Multi30k's *.de.xz and *.en.xz")
    add("--wheels", type=Path, help="with --prepare: a folder of wheels to compare with")
    add("--step", choices=[*STEPS, *WATCHED], help="run this step in this process")
    add("--records", type=Path, help="with --step: the file of its records")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what the command line says; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.prepare is not None:
        from gpu.prepare import prepare

        try:
            print(prepare(options.prepare.resolve(), data=options.data, wheels=options.wheels))
        except (OSError, RuntimeError) as error:
            parser.error(str(error))
        return 0
    out = options.out or Path(os.environ.get("OUT") or ROOT / "runs/gpu_check")
    if options.step is None and not options.dry and not has_gpu():
        print("gpu_check: there is no CUDA device here, so there is nothing to check.")
        return 0
    with tempfile.TemporaryDirectory() as name:
        work = (options.work or Path(name)).resolve()
        setting = Setting(out.resolve(), options.carried.resolve(), work, options.dry)
        if options.step is not None:
            return run_step(options.step, setting, options.records)
        names = options.only or steps_of(options.call)
        try:
            return run(names, setting, options.seconds)
        except OSError as error:
            parser.error(f"`out` must be a folder to write to, but is not: {error}")


if __name__ == "__main__":
    sys.exit(main())
