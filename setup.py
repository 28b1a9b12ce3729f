"""Builds the wheel: with the CPU kernels' library if a compiler is at hand, always with csrc/.

Without the library, and in an editable install, the kernels are compiled when they are first used.
"""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# Not by its name: importing rnnkit would import torch, which an isolated build does not have.
spec = spec_from_file_location("build", ROOT / "rnnkit" / "native" / "build.py")
assert spec is not None and spec.loader is not None
native = module_from_spec(spec)
spec.loader.exec_module(native)


class Build(build_py):
    """Adds the sources and the library to the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib, "rnnkit")
            self.add_sources(package / "csrc")
            self.add_library(package / "native" / native.LIBRARY, package / "csrc")

    def get_source_files(self) -> list[str]:
        """What an sdist has: csrc/ as well."""
        csrc = native.sources(ROOT / "csrc")
        return super().get_source_files() + [str(path.relative_to(ROOT)) for path in csrc]

    def add_sources(self, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)  # a former build's
        for path in native.sources(ROOT / "csrc"):
            copy = target / path.relative_to(ROOT / "csrc")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

    def add_library(self, target: Path, csrc: Path) -> None:
        target.unlink(missing_ok=True)
        try:
            native.build(target, csrc, native.find_compiler())
        except native.NoLibrary as error:
            self.warn(f"the wheel has no compiled CPU kernels: {error}")
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
