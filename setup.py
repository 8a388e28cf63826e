"""Adds the models in the box to a wheel, and the compiled kernels where that can be.

Torch and a compiler must be at hand for the kernels (HF_QRNN_BUILD).
"""

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


def _builder() -> ModuleType:
    # By its path: importing the package would import torch and transformers.
    path = Path(__file__).parent / "hf_qrnn" / "kernels" / "build.py"
    spec = importlib.util.spec_from_file_location("hf_qrnn_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildPython(build_py):
    """Python files, then the library beside them."""

    library: Path | None = None

    def run(self) -> None:
        """Build; HF_QRNN_BUILD=cpu and =cuda fail where that is impossible."""
        super().run()
        if self.editable_mode:
            return  # the library of an editable install is in the user's cache, its models here
        self._copy_models()
        builder = _builder()
        mode = builder.mode_from_environment()
        try:
            folder = Path(self.build_lib) / "hf_qrnn" / "kernels" / "lib"
            # The engine's needs no torch, and a wheel with it alone is for one platform too.
            if mode != "off":
                BuildPython.library = builder.build_engine(folder)
            BuildPython.library = builder.build(mode, folder) or BuildPython.library
        except (builder.BuildError, OSError) as error:
            if mode != "auto":
                raise
            print(f"hf_qrnn: no compiled library: {error}", file=sys.stderr)

    def _copy_models(self) -> None:
        """Put the models into the package, where `hf_qrnn/data/box.py` finds them."""
        target = Path(self.build_lib) / "hf_qrnn" / "models"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for config in Path(__file__).parent.glob("models/*/config.json"):
            name = config.parent.name
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(config.parent, target / name, ignore=skipped)


class Wheel(bdist_wheel):
    """A wheel for any Python, and for this platform alone if the library is inside."""

    def get_tag(self) -> tuple[Any, ...]:
        """(Python, ABI, platform)."""
        if BuildPython.library is None:
            return super().get_tag()
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildPython, "bdist_wheel": Wheel})
