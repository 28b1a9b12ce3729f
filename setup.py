"""Builds the wheel: always with csrc/; with the CPU kernels' library if a compiler is at hand, and
with the CUDA kernels' if RNNKIT_CUDA=1 or CUDA_HOME asks for it.

Without a library, and in an editable install, its kernels are compiled when they are first used.
"""

import os
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# Not by its name: importing rnnkit would import torch, which an isolated build does not have.
spec = spec_from_file_location("recipes", ROOT / "rnnkit" / "native" / "recipes" / "__init__.py")
assert spec is not None and spec.loader is not None
recipes = module_from_spec(spec)
sys.modules["recipes"] = recipes
spec.loader.exec_module(recipes)

RECIPES = (recipes.Cpu, recipes.Cuda)


def sources() -> list[Path]:
    """Those of all libraries, whether one is built or not."""
    return sorted({path for recipe in RECIPES for path in recipe.sources(ROOT / "csrc")})


class Build(build_py):
    """Adds the sources and the libraries to the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib, "rnnkit")
            self.add_sources(package / "csrc")
            for recipe in RECIPES:
                (package / "native" / recipe.library).unlink(missing_ok=True)
            self.add_library(recipes.Cpu(), package)
            # It takes minutes, and most who have nvcc install for themselves: first use does it.
            asked = os.environ.get("RNNKIT_CUDA")
            if asked == "1" or (asked is None and "CUDA_HOME" in os.environ):
                self.add_library(recipes.Cuda(), package, required=asked == "1")

    def get_source_files(self) -> list[str]:
        """What an sdist has: csrc/ as well."""
        return super().get_source_files() + [str(path.relative_to(ROOT)) for path in sources()]

    def add_sources(self, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)  # a former build's
        for path in sources():
            copy = target / path.relative_to(ROOT / "csrc")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

    def add_library(self, recipe: Any, package: Path, required: bool = False) -> None:
        try:
            recipes.check_allowed()
            recipe.build(package / "native" / recipe.library, package / "csrc")
        except recipes.NoLibrary as error:
            if required:
                raise
            self.warn(f"the wheel has no compiled {recipe.kernels} kernels: {error}")
        else:
            # From here on the wheel is one for this platform.
            self.distribution.has_ext_modules = lambda: True


class Wheel(bdist_wheel):
    """With a library, a wheel for one platform, but for every Python: the library knows neither."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(cmdclass={"build_py": Build, "bdist_wheel": Wheel})
