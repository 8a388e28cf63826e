"""hf_qrnn.training.folder_lock: one run at a time, and a dead one holds nothing."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_script import TORCHRUN, flags, start, suspend, tree, wait_until

from hf_qrnn.training.folder_lock import LOCK, FolderLock

HOLD = """
import os, sys, time
from pathlib import Path
from hf_qrnn.training.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
child = os.fork()  # as a loader's worker, which lives a little longer than a killed run
if child:
    print(child, flush=True)
time.sleep(100)
"""


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        before = tree(tmp_path)
        rule = rf"`output_dir` must not be in use, but process {holder.pid} on .* trains in"
        for refused in (FolderLock(tmp_path).check, FolderLock(tmp_path).take):
            with pytest.raises(ValueError, match=rule):
                refused()
        assert tree(tmp_path) == before
        holder.kill()
        holder.wait()
        with FolderLock(tmp_path) as lock:
            lock.check()
            lock.take()
            lock.check()
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    before = tree(tmp_path)
    FolderLock(tmp_path).check()
    FolderLock(tmp_path / "nowhere").check()
    assert tree(tmp_path) == before


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", without)
    FolderLock(tmp_path).check()
    with FolderLock(tmp_path) as lock:
        lock.take()
    assert f"the file system of '{tmp_path}' has no locks" in caplog.text


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_two_processes_refuse_a_folder_in_use_with_one_sentence(
    tmp_path: Path, resume: str
) -> None:
    """Nothing of the run under way is touched; after kill -9 the folder is free at once."""
    argv = flags(tmp_path, max_steps=10**6, save_every=1, resume="auto")
    first = start(argv)
    log = tmp_path / "out/metrics.jsonl"
    try:
        wait_until(lambda: log.is_file() and log.read_text().count("\n") > 2, first)
        suspend(first)  # so that nothing changes but by the others
        before = tree(tmp_path / "out")
        changes = {"num_threads": 1, "max_steps": 2, "resume": resume}
        second = start(flags(tmp_path, **changes), *TORCHRUN)
        _, error = second.communicate(timeout=180)
        assert second.returncode != 0
        sentence = f"error: `--output_dir` must not be in use, but process {first.pid} on "
        assert error.count(sentence) == 1, error
        assert error.count("error: `") == 1
        # torchrun tells of each process's status, and that it has no traceback to show.
        assert "exitcode  : 2 " in error
        assert 'Traceback (most recent call last):\n  File "' + str(tmp_path) not in error
        assert tree(tmp_path / "out") == before
    finally:
        first.kill()
        first.communicate()
    if resume == "auto":
        third = start(flags(tmp_path, max_steps=1, resume="auto"))
        _, error = third.communicate(timeout=180)
        assert third.returncode == 0, error
