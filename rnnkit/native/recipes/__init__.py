"""What compiles csrc/ to shared libraries with C interfaces, for every torch: a recipe for each.

Standard library only: setup.py imports this package where neither torch nor rnnkit can be imported.
The commands are a dozen that never change one by one, so there is nothing for a build system to do.
"""

from .compiler import Compiler, Failure, NoLibrary, Refusal, check_allowed
from .cpu import Cpu
from .cuda import Cuda
from .recipe import Recipe

__all__ = ["Compiler", "Cpu", "Cuda", "Failure", "NoLibrary", "Recipe", "Refusal", "check_allowed"]
