"""scripts/gpu_check.py without a GPU: its processes, limits, carried files and sentences.

What the steps themselves do is in tests/benchmarks/test_gpu_steps.py.
"""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import prepare, running
from gpu.plan import CALLS, STEPS, steps_of

from hf_qrnn import kernels
from hf_qrnn.kernels.build import INFO_NAME, LIBRARY_NAME, source_hash

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"
needs_library = pytest.mark.skipif(kernels.find().path is None, reason="no compiled library")


def command(*options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_well(tmp_path: Path) -> None:
    done = command("--out", tmp_path / "results")
    said = "gpu_check: there is no CUDA device here, so there is nothing to check.\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert not (tmp_path / "results").exists()


# ------------------------------------------------------------------ the plan


def test_steps_fit_two_calls_of_thirteen_minutes() -> None:
    limits = {call: sum(STEPS[name].limit for name in steps_of(call)) for call in CALLS}
    assert max(limits.values()) < 600
    assert sum(limits.values()) == sum(step.limit for step in STEPS.values()) <= 13 * 60
    assert steps_of(None) == list(STEPS)
    letters = [step.letter for step in STEPS.values()]
    assert letters == sorted(letters)


def test_the_page_has_every_step_and_both_commands() -> None:
    text = (ROOT / "docs" / "gpu_check.md").read_text(encoding="utf-8")
    for name in STEPS:
        assert f"`{name}`" in text
    for call in CALLS:
        line = prepare.command(call, ROOT / "runs" / "gpu")
        assert f"    {line}\n" in text
        assert len(line) <= 2000


# ------------------------------------------------------------------ processes

PROGRAM = """
import json, pathlib, subprocess, sys, time
name, path, pids = sys.argv[1:]
with open(path, "a") as file:
    if name == "cut":
        file.write('{"step": "cut", "sta')
    elif name != "silent":
        print(json.dumps({"step": name, "status": "passed"}), file=file)
if name == "slow":
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    own = subprocess.Popen(sleep)
    apart = subprocess.Popen(sleep, start_new_session=True)
    pathlib.Path(pids).write_text(f"{own.pid} {apart.pid}")
    time.sleep(60)
if name in ("broken", "cut"):
    raise RuntimeError("the cause")
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_every_step_leaves_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, pids = tmp_path / "results.jsonl", tmp_path / "pids"
    limits = {"good": 60, "slow": 4, "broken": 60, "cut": 60, "silent": 60, "last": 60}
    jobs = [
        running.Job(name, limit, [sys.executable, "-c", PROGRAM, name, results, pids], results)
        for name, limit in limits.items()
    ]
    # Of an earlier run: those of the same step go, others stay.
    before = [{"step": "good", "status": "failed"}, {"step": "other", "status": "passed"}]
    results.write_text("".join(json.dumps(x) + "\n" for x in before))
    outcomes = running.run_jobs(jobs, seconds=300, log=tmp_path / "log")
    records = running.read_records(results)
    # What a step had found before it was killed is kept.
    assert [(r["step"], r["status"]) for r in records] == [
        ("other", "passed"),
        ("good", "passed"),
        ("slow", "passed"),
        ("slow", "failed"),
        ("broken", "passed"),
        ("broken", "failed"),
        ("cut", "failed"),
        ("silent", "failed"),
        ("last", "passed"),
    ]
    reasons = {r["step"]: r["reason"] for r in records if "reason" in r}
    assert reasons["slow"] == "it took more than 4 s"
    assert "the cause" in reasons["broken"]
    assert "the cause" in reasons["cut"]
    assert reasons["silent"] == "it left no record"
    assert [x.name for x in outcomes if x.status == "failed"] == ["slow", "broken", "cut", "silent"]
    assert "last: passed" in capsys.readouterr().out
    # The children of what was killed are gone, also one in a session of its own.
    deadline = time.monotonic() + 10
    children = [int(pid) for pid in pids.read_text().split()]
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [is_alive(pid) for pid in children] == [False, False]


def test_a_used_up_budget_skips_the_rest(tmp_path: Path) -> None:
    results = tmp_path / "new" / "results.jsonl"
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    jobs = [running.Job(name, 60, wait, results) for name in ("first", "second")]
    outcomes = running.run_jobs(jobs, seconds=4, log=tmp_path / "log")
    assert [(x.name, x.status) for x in outcomes] == [("first", "failed"), ("second", "skipped")]
    assert [x["reason"] for x in running.read_records(results)] == [
        "it took more than 4 s",
        "no time is left of 4 s",
    ]


# ------------------------------------------------------------------ what travels


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's library stands in for that of a GPU."""
    monkeypatch.setattr(prepare, "build", lambda target, mode: carry_library(target))


def carry_library(target: Path, content: bytes | None = None) -> Path:
    path = kernels.find().path
    assert path is not None
    folder = target / "hf_qrnn" / f"{os.uname().machine}-{source_hash()}" / "cuda-13.0-sm90"
    folder.mkdir(parents=True)
    (folder / LIBRARY_NAME).write_bytes(path.read_bytes() if content is None else content)
    info = {"abi_target": "2.10", "cuda_archs": ["90"], "sources": source_hash()}
    (folder / INFO_NAME).write_text(json.dumps(info))
    return folder / LIBRARY_NAME


@needs_library
def test_what_travels_is_one_folder_with_its_sizes(
    tmp_path: Path, built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one that stands in may be for many kinds of GPUs.
    monkeypatch.setattr(prepare, "MOST_LIBRARY", 100_000_000)
    data, wheels, folder = tmp_path / "data", tmp_path / "wheels", tmp_path / "carried"
    data.mkdir()
    wheels.mkdir()
    names = [f"{x}.{y}.xz" for x in ("train", "val", "test_2016_flickr") for y in ("de", "en")]
    for name in names[1:]:
        (data / name).write_bytes(b"1" * 20_000)
    with pytest.raises(FileNotFoundError, match=r"train\.de\.xz` must be there"):
        prepare.prepare(folder, data=data, wheels=None)
    (data / names[0]).write_bytes(b"1" * 20_000)
    with zipfile.ZipFile(wheels / "some-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_package.py", "value = 7\n")
    import shutil

    shutil.rmtree(folder)
    said = prepare.prepare(folder, data=data, wheels=wheels)
    assert sorted(path.name for path in (folder / "multi30k").iterdir()) == sorted(names)
    assert "multi30k/train.de.xz: 0.02 MB" in said
    assert "wheels/some-1.0-py3-none-any.whl" in said
    assert "call 2, at most 470 s:" in said
    (folder / "wheels" / "broken.whl").write_bytes(b"no archive")
    assert running.unpack_wheels(folder / "wheels", tmp_path / "site") == [
        "broken.whl (File is not a zip file)"
    ]
    assert (tmp_path / "site" / "some_package.py").read_text() == "value = 7\n"


@needs_library
def test_too_large_a_library_does_not_travel(
    tmp_path: Path, built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MOST_LIBRARY", 1000)
    with pytest.raises(RuntimeError, match="the library must be at most 10 MB"):
        prepare.prepare(tmp_path, data=None, wheels=None)


@needs_library
def test_the_carried_library_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    carried = tmp_path / "carried"
    path = carry_library(carried / "kernels")
    # As on that machine: where results go says an environment variable, which may be empty.
    done = command("--dry", "--only", "library", "--carried", carried, OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout
    (record,) = running.read_records(tmp_path / "out" / "gpu_a.jsonl")
    assert (record["status"], record["path"]) == ("passed", str(path.resolve()))
    assert record["cuda_archs"] == ["90"]
    assert done.stdout.rstrip().endswith("0 of 1 steps failed")


@needs_library
def test_a_library_that_does_not_load_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    carried, out = tmp_path / "carried", tmp_path / "out"
    carry_library(carried / "kernels", b"no library")
    done = command(
        "--dry", "--only", "environment", "library", "--carried", carried, "--out", out, PATH=""
    )
    assert done.returncode == 1
    records = running.read_records(out / "gpu_a.jsonl")
    assert [(x["step"], x["status"]) for x in records] == [
        ("environment", "measured"),
        ("environment", "measured"),
        ("library", "failed"),
    ]
    assert records[0]["nvcc"] == "no nvcc on PATH"
    assert records[0]["gpu"] == "none, a dry run on the CPU"
    assert "does not load" in records[2]["reason"]
    assert done.stdout.rstrip().endswith("1 of 2 steps failed: library")
    assert {x.name for x in out.iterdir()} == {"gpu_a.jsonl", "gpu_log.txt", "gpu_tables.md"}


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("--dry", "--only", "library", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "`out` must be a folder to write to, but is not" in done.stderr


def judged(*statuses: str) -> Any:
    return running.judge("step", [{"status": x, "reason": x} for x in statuses], 1.0)


def test_a_step_is_as_good_as_its_worst_record() -> None:
    assert judged("measured", "failed", "skipped").status == "failed"
    assert judged("skipped", "measured").status == "measured"
    assert judged("passed", "measured").status == "passed"
    assert judged("skipped", "skipped").status == "skipped"
    assert judged().reason == "it left no record"
