"""Helpers to run the training scripts in a test, as a module, as a task or as a process."""

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from hf_qrnn.training.run import run_task
from hf_qrnn.training.task import Task

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/train_translation.py"
# Two processes that meet at a free port: the usual one may be another run's of this machine.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--main_process_port", "0"),
)


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_translation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags(folder: Path, **changes: object) -> list[str]:
    """Write a small run's data to `folder` and return its command line."""
    lines = [f"{'ab' * (i % 5)}c" for i in range(60)]
    for name in ("a", "b"):
        if not (folder / name).exists():
            (folder / name).write_text("".join(line + "\n" for line in lines))
    options = {
        **{"train_source": folder / "a", "train_target": folder / "b"},
        **{"valid_source": folder / "a", "valid_target": folder / "b"},
        **{"hidden_size": 8, "embedding_size": 8, "encoder_layers": 1, "decoder_layers": 1},
        **{"output_dir": folder / "out", "max_steps": 8, "max_tokens": 64, "save_every": 2},
        **{"eval_every": 100, "log_every": 1, "eval_sentences": 0, **changes},
    }
    return ["--cpu", *(text for k, v in options.items() for text in (f"--{k}", str(v)))]


def status_of(kind: type[Task], argv: list[str]) -> object:
    """Run a task here; its exit status, also where the parser of its flags ends the process."""
    try:
        return run_task(kind, argv)
    except SystemExit as error:
        return error.code


def start(argv: list[str], *launcher: str, script: Path = SCRIPT) -> subprocess.Popen[str]:
    """Start a script as a process of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_at_a_checkpoint(argv: list[str], folder: Path, script: Path) -> None:
    """Start a script, and kill it when the first checkpoint in its `folder` is complete."""
    process = start(argv, script=script)
    wait_until(lambda: any((folder / "checkpoints").glob("step-*/complete.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def suspend(process: subprocess.Popen[str]) -> None:
    """Stop a process, and wait until the last of its threads stands still.

    The signal is only sent when `send_signal` returns: a thread within a write to the disk ends
    that first.
    """
    process.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")

    def stands() -> bool:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0] for task in threads.iterdir()
        ]
        return set(states) == {"T"}

    wait_until(stands, process)


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """List a folder and all under it: time of change, and content, by relative path."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in paths
    }
