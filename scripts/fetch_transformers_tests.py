"""Fetch the common tests of the installed transformers release into the running environment.

The wheel does not carry them, the source distribution on the package registry does. Only its
`tests/` folder is kept, in `<environment>/share/transformers-<version>/tests`; run again, it does
nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# A file that one of the tests reads and the source distribution leaves out.
SAMPLE_TEXT = "The train to Bremen leaves at seven.\n\nNobody knows why it is late today.\n"


def tests_folder(version: str) -> Path:
    """Return the folder in which the tests of transformers `version` are kept."""
    return Path(sys.prefix) / "share" / f"transformers-{version}" / "tests"


def download(version: str, folder: Path) -> Path:
    """Fetch the source distribution of transformers `version` by pip into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}"]
    subprocess.run(command, check=True)
    archives = sorted(folder.glob("transformers-*.tar.gz"))
    if len(archives) != 1:
        raise FileNotFoundError(f"pip must leave one source distribution, but left {archives}.")
    return archives[0]


def unpack(archive: Path, target: Path) -> None:
    """Put the `tests/` folder of `archive` at `target`, wholly or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if "tests" in Path(m.name).parts[1:2]]
            tar.extractall(scratch, members=members, filter="data")
        (tests,) = Path(scratch).glob("*/tests")
        (tests / "__init__.py").touch()
        (tests / "fixtures").mkdir(exist_ok=True)
        (tests / "fixtures" / "sample_text.txt").write_text(SAMPLE_TEXT, encoding="utf-8")
        os.replace(tests, target)


def main() -> None:
    """Fetch and unpack, unless it has been done."""
    version = importlib.metadata.version("transformers")
    target = tests_folder(version)
    if target.is_dir():
        return
    scratch = Path(tempfile.mkdtemp())
    try:
        unpack(download(version, scratch), target)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    # There are no options, but `--help` must not begin to download.
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    main()
