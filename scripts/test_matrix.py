"""Run the tests with several versions of torch and transformers and write docs/test_matrix.md.

Every pair gets an environment of its own under `.venv-matrix/`; pairs with the same torch share one
copy of it. In each run the project's tests, the whole of transformers' common tests, and the tests
of pooling and models once more on a wheel, the same one everywhere, in place of the checkout.

What you should see: one line per pair, then the table. Without a CPU wheel of a torch release, pip
installs the CUDA one: 4.6 GB of disk for torch 2.11.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-matrix"
PAGE = ROOT / "docs" / "test_matrix.md"
TORCH = ("2.11.0", "2.13.0")
TRANSFORMERS = ("5.17.0", "5.23.0")
# What the pinned set of constraints.txt says for the newest transformers only.
FREE = ("transformers", "tokenizers", "huggingface_hub", "datasets")
SUITES = {
    "project": ["--ignore-glob=*test_transformers_*"],
    "common": [
        "--slow",
        "tests/model/test_transformers_models.py",
        "tests/data/test_transformers_tokenizers.py",
    ],
    "wheel": [
        "tests/model/test_pooling.py",
        "tests/model/test_modeling.py",
        "tests/model/test_loading.py",
    ],
}
# The package and its library come out of the wheel: argument 1 is where it lies unpacked.
FROM_WHEEL = """
import pathlib, sys, torch, hf_qrnn, hf_qrnn.kernels as kernels
folder = pathlib.Path(sys.argv[1])
reason = kernels.unavailable(torch.device("cpu"))
files = pathlib.Path(hf_qrnn.__file__), kernels.find().path
assert reason is None and all(file.is_relative_to(folder) for file in files), (files, reason)
"""


@dataclass
class Result:
    """The outcome of one suite in one environment."""

    torch: str
    transformers: str
    suite: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


def run(*command: str | Path, **environment: str) -> int:
    """Run `command` in the repository's root, with `environment` added; return its exit status."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, check=False
    ).returncode


def make(folder: Path) -> Path:
    """Return the python of a virtual environment at `folder`; make it if it is not there."""
    if not (folder / "pyvenv.cfg").exists() and run(sys.executable, "-m", "venv", folder):
        raise RuntimeError(f"A virtual environment could not be made at {folder}.")
    return folder / "bin" / "python"


def prepare(torch: str, transformers: str) -> Path:
    """Return the python of the environment of one pair; install it if it is not there."""
    base = FOLDER / f"torch-{torch}"
    folder = FOLDER / f"torch-{torch}-transformers-{transformers}"
    python, stamp = folder / "bin" / "python", folder / "installed"
    if stamp.exists():
        return python
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if transformers not in " ".join(pins):
        pins = [pin for pin in pins if pin.split("==")[0] not in FREE]
    FOLDER.mkdir(exist_ok=True)
    constraints = FOLDER / f"constraints-{torch}-{transformers}.txt"
    if f"torch=={torch}" not in pins:  # each release of torch has a triton of its own
        pins = [pin for pin in pins if pin.split("==")[0] not in ("torch", "triton")]
        pins.append(f"torch=={torch}")
    constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
    install = ("-m", "pip", "install", "--quiet", "--constraint", constraints)
    done = (
        run(make(base), *install, f"torch=={torch}") == 0
        and share(base, make(folder))
        and run(python, *install, f"transformers=={transformers}", "--editable", ".[dev]") == 0
        and run(python, "scripts/fetch_transformers_tests.py") == 0
    )
    if not done:
        raise RuntimeError(f"torch {torch} with transformers {transformers} did not install.")
    stamp.touch()
    return python


def share(base: Path, python: Path) -> bool:
    """Let `python` import what the environment `base` holds, and pip see it."""
    code = "import pathlib, sys, sysconfig as s; p = pathlib.Path(s.get_path('purelib'));"
    code += "(p / 'torch.pth').write_text(sys.argv[1])"
    packages = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    return run(python, "-c", code, base / packages) == 0


def unpack_wheel(torch: str, python: Path) -> Path:
    """Return the folder in which the wheel lies unpacked.

    It is built once, by the `python` and `torch` of the first pair: the others must run with it.
    """
    folder = FOLDER / "wheel"
    if folder.exists():
        return folder
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    unpack = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder)
    made = FOLDER / f"wheel-by-torch-{torch}"
    if run(python, *build, "--wheel-dir", made, ".", HF_QRNN_BUILD="cpu") == 0:
        run(python, *unpack, *made.glob("*.whl"))
    if not folder.exists():
        raise RuntimeError(f"The wheel was not built with torch {torch}.")
    return folder


def read(report: Path, torch: str, transformers: str, suite: str) -> Result:
    """Read counts, names of failures and reasons of skips from a JUnit report."""
    result, skipped = Result(torch, transformers, suite), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            result.failed.append(name)
        elif skip is not None:
            skipped[skip.get("message") or ""] += 1
        else:
            result.passed += 1
    result.skipped = dict(skipped.most_common())
    return result


def test(python: Path, torch: str, transformers: str, suite: str, extra: list[str]) -> Result:
    """Run one suite in one environment, `extra` being arguments of pytest."""
    report = FOLDER / f"torch-{torch}-transformers-{transformers}-{suite}.xml"
    report.unlink(missing_ok=True)
    environment: dict[str, str] = {}
    if suite == "wheel":
        folder = unpack_wheel(torch, python)
        # With an empty cache no library of the checkout wins over the wheel's.
        environment = {"PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(FOLDER / "no-cache")}
        environment["PYTHONSAFEPATH"] = "1"  # nor does the working directory
        if run(python, "-c", FROM_WHEEL, folder, **environment) != 0:
            raise RuntimeError(f"The wheel does not work with torch {torch}.")
    words = ("-q", f"--junitxml={report}", "--numprocesses=2", "--dist=loadfile")
    run(python, "-m", "pytest", *words, *SUITES[suite], *extra, **environment)
    if not report.exists():
        raise RuntimeError(f"pytest wrote no report: torch {torch}, transformers {transformers}.")
    return read(report, torch, transformers, suite)


def table(results: list[Result]) -> list[str]:
    """Write the results as a table in Markdown."""
    lines = ["| torch | transformers | suite | passed | failed | skipped |", "|---" * 6 + "|"]
    for r in results:
        counts = f"{r.passed} | {len(r.failed)} | {sum(r.skipped.values())}"
        lines.append(f"| {r.torch} | {r.transformers} | {r.suite} | {counts} |")
    return lines


def page(results: list[Result]) -> str:
    """Write the whole page: passed, failed, and the reasons of skips."""
    lines = [
        "# Tests with several versions of torch and transformers",
        "",
        "Written by `make test-matrix`. The suite `project` is what `make test` runs, without",
        "transformers' common tests; `common` is all of those: see",
        "[transformers_common_tests.md](transformers_common_tests.md). `wheel` is the tests",
        "of pooling, models and loading on one wheel, built by the first pair, in place of the",
        "checkout.",
        "",
        *table(results),
    ]
    failed = [
        f"- torch {r.torch}, transformers {r.transformers}: `{t}`"
        for r in results
        for t in r.failed
    ]
    lines += ["", "## Failed", "", *(failed or ["Nothing."])]
    for suite in SUITES:
        lines += ["", f"## Skipped in `{suite}`", "", "| reason | tests |", "|---|---|"]
        most: Counter[str] = Counter()
        for result in results:
            if result.suite == suite:
                most |= Counter(result.skipped)
        lines += [f"| {reason} | {number} |" for reason, number in most.most_common()]
    return "\n".join([*lines, ""])


def main() -> int:
    """Run what is asked for, keep it with what was run before, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", nargs="+", default=list(TORCH), help="releases of torch")
    parser.add_argument(
        "--transformers", nargs="+", default=list(TRANSFORMERS), help="of transformers"
    )
    parser.add_argument("--suite", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--dry", action="store_true", help="leave docs/test_matrix.md alone")
    options, extra = parser.parse_known_args()
    kept = FOLDER / "results.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    results = {(r["torch"], r["transformers"], r["suite"]): Result(**r) for r in before}
    for old in FOLDER.glob("wheel*"):  # of an earlier run, perhaps of other sources
        shutil.rmtree(old)
    for torch in options.torch:
        for transformers in options.transformers:
            python = prepare(torch, transformers)
            for suite in options.suite:
                result = test(python, torch, transformers, suite, extra)
                results[torch, transformers, suite] = result
                print(*table([result])[2:], *result.failed, sep="\n", flush=True)
                if not extra:
                    rows = [asdict(r) for r in results.values()]
                    kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    ordered = [results[key] for key in sorted(results)]
    if not (options.dry or extra):
        PAGE.write_text(page(ordered), encoding="utf-8")
    return int(any(result.failed for result in ordered))


if __name__ == "__main__":
    sys.exit(main())
