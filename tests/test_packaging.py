"""What is installed has what a clone has: the wheel of a source distribution, looked at."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from hf_qrnn.hub.files import CUSTOM_GENERATE

ROOT = Path(__file__).resolve().parents[1]
# Each goes through the same door as pip does.
BUILD = (
    "import sys\nfrom setuptools import build_meta\nprint(getattr(build_meta, sys.argv[1])('.'))"
)


def build(kind: str, folder: Path) -> Path:
    environment = {**os.environ, "HF_QRNN_BUILD": "off"}  # the kernels have tests of their own
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind],
        capture_output=True, text=True, cwd=folder, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def names_in(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if "__pycache__" not in name}


def test_models_are_in_the_wheel_of_a_source_distribution(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    skipped = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("hf_qrnn", "models"):
        shutil.copytree(ROOT / name, clone / name, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, clone / name)
    with tarfile.open(build("build_sdist", clone)) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build("build_wheel", unpacked)
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as packed_wheel:
        packed_wheel.extractall(installed)
    for folder in (ROOT / "models").iterdir():
        there = installed / "hf_qrnn/models" / folder.name
        assert names_in(there) == names_in(folder)
        assert CUSTOM_GENERATE in names_in(folder)
        weights = "model.safetensors"
        assert (there / weights).read_bytes() == (folder / weights).read_bytes()
    assert (installed / "hf_qrnn/kernels/csrc/ops.cpp").is_file()
    assert not (installed / "models").exists()  # of the environment, which others share
    done = subprocess.run(
        [sys.executable, "-m", "hf_qrnn", "models", "--json"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folders = {model["folder"] for model in json.loads(done.stdout)}
    own = {str(installed / "hf_qrnn/models" / x.name) for x in (ROOT / "models").iterdir()}
    assert folders == own
