"""After a run: whether it is still what its stages wrote, and how two runs differ."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from talaria.errors import UserError
from talaria.run import finished_stages
from talaria.verify import unchecked, verify


def verify_run(run_folder: Path) -> None:
    """Re-hash a run; UserError if anything changed."""
    problems = verify(run_folder)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(
            f"{run_folder}: {len(problems)} problem(s); put back what changed, or delete the stages named above "
            "and run again"
        )
    names = ", ".join(folder.name for folder in finished_stages(run_folder))
    print(f"{run_folder}: every hash holds, from raw text to results ({names})")
    for name in unchecked(run_folder):
        print(f"not checked, since it is not on this machine: {name}")


def compare_runs(first: Path, second: Path) -> None:
    """Print two runs side by side."""
    from talaria.report.compare import compare_runs as compare

    for run_folder in (first, second):
        finished_stages(run_folder)  # refuses a folder that is no run
    Console().print(compare(first, second))
