"""A benchmark ends quietly where nobody reads on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PROGRAMS = [path for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text()]
_PRINTS = "import sys\nfrom ending import end_process\nend_process(lambda: print({what}) or 3)"


def run_into_closed_pipe(*command: str) -> tuple[int, str]:
    """Run a command whose reader has left; its status and standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", *command],
            stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": f"{FOLDER}:{FOLDER.parent}", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("what", ["'a'", "'a' * 100_000"], ids=["at the end", "on the way"])
def test_reader_that_left_gets_no_traceback(what: str) -> None:
    assert run_into_closed_pipe("-c", _PRINTS.format(what=what)) == (141, "")


def test_status_of_the_work_is_kept() -> None:
    code = _PRINTS.format(what="'a'")
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, "a\n", "")


def test_tables_of_pronunciation_can_be_cut() -> None:
    program = str(FOLDER / "pronunciation.py")
    assert run_into_closed_pipe(program, "--table") == (141, "")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_ends_so(path: Path) -> None:
    assert path.read_text().endswith('if __name__ == "__main__":\n    end_process(main)\n')
