"""python -m benchmarks COMMAND: times layers against their peers, and what follows from the times.

    run      times every layer against every peer, and stores rows
    report   the tables, pages and figures of the stored rows (--check: whether they are up to date)
    profile  where the time of one call goes
    static   compiles every kernel for GPUs that need not be here, with the compiler's figures
    plan     how the CUDA kernels would share out a step
    steps    the time of a step of the recurrent kernels, in each of their forms
    gpu      all that a GPU should tell, in one folder

Each has --help.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("run", "report", "profile", "static", "plan", "steps", "gpu")


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        asked_for_help = bool(argv) and argv[0] in ("-h", "--help")
        print((__doc__ or "").rstrip(), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    status: int = importlib.import_module(f"{__package__}.{argv[0]}").main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
