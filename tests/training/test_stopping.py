"""hf_qrnn.training.stopping: signals at any moment end a script with 75 and one sentence."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from training_script import flags, load_script, start, tree, wait_until

from hf_qrnn.training.stopping import EXIT_INTERRUPTED, Signals
from hf_qrnn.training.translation_task import TranslationTask


def test_the_inner_hears_first_and_makes_the_outer_deaf() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals(raising=True) as outer:
        with Signals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.received
        os.kill(os.getpid(), signal.SIGINT)  # a second one changes nothing
        assert outer.is_deaf
    with Signals(raising=True), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_worker_dies_of_its_pools_signal() -> None:
    ready, says = os.pipe()
    with Signals(raising=True):
        child = os.fork()
        if child == 0:
            os.write(says, b"1")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize(
    "moment",
    ["translation_task.load_translation_data", "translation_task.score_pairs", "run.publish_run"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_of_training_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moment: str,
    number: signal.Signals,
) -> None:
    script: Any = load_script()

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(f"hf_qrnn.training.{moment}", interrupted)
    argv = flags(tmp_path, max_steps=1, test_source=tmp_path / "a", test_target=tmp_path / "b")
    if moment == "run.publish_run":
        monkeypatch.setattr(TranslationTask, "finish", lambda *_: None)
    before = tree(tmp_path)
    assert script.main(argv) == EXIT_INTERRUPTED
    error = capsys.readouterr().err
    assert "Traceback" not in error
    sentence = "stopped: interrupted: no update was under way, what was saved stays; go on with "
    assert error.splitlines()[-1] == sentence + "--resume auto."
    if moment == "translation_task.load_translation_data":
        assert tree(tmp_path) == before
    else:
        monkeypatch.undo()
        assert script.main(flags(tmp_path, max_steps=1, resume="auto")) == 0


@pytest.mark.parametrize("moment", ["training", "scoring"])
def test_signals_that_do_not_cease_end_a_run_with_75(tmp_path: Path, moment: str) -> None:
    """A scheduler's SIGTERM, again and again until the process is gone; Ctrl-C held down."""
    with (tmp_path / "long").open("w") as file:
        file.writelines(f"{'ab' * (i % 9)}c\n" for i in range(20000))
    out = tmp_path / "out"
    if moment == "training":
        argv, number = flags(tmp_path, max_steps=10**6), signal.SIGTERM
        log = out / "metrics.jsonl"
        process = start(argv)
        wait_until(lambda: log.is_file() and log.read_text().count("\n") > 2, process)
    else:
        test = {"test_source": tmp_path / "long", "test_target": tmp_path / "long"}
        process, number = start(flags(tmp_path, max_steps=2, **test)), signal.SIGINT
        wait_until((out / "training.json").exists, process)
        time.sleep(0.3)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        os.kill(process.pid, number)
        time.sleep(0.02)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, error
    # Python itself tells of a signal that came inside a callback of a weak reference.
    told = re.sub(r"Exception ignored in.*?\nKeyboardInterrupt: ?\n?", "", error, flags=re.DOTALL)
    assert "Traceback" not in told
    last = error.strip().splitlines()[-1]
    assert last.startswith("stopped: interrupted")
    assert last.endswith("--resume auto.")


def test_a_signal_while_python_ends_does_not_change_the_status() -> None:
    code = (
        "import atexit, os, signal\n"
        "from hf_qrnn.training.stopping import end_process\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "end_process(lambda: 3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
