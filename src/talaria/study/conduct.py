"""The study from settings to a report, arm by arm: what is finished is kept, what was killed is made again.

    conduct(StudySettings(), Path("runs/study"), print)

Every arm is a stage of the folder, so that a kill at any instant loses the arm under way and nothing else. The report
is written after every seed, of what is finished by then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from talaria.errors import UserError
from talaria.files import atomic_write, to_json
from talaria.report.results import ResultRow, read_results, write_results
from talaria.run import Stage, is_current, lock, run_stage
from talaria.study.settings import ArmSettings, StudySettings


def conduct(settings: StudySettings, folder: Path, tell: Callable[[str], None], train: bool = True) -> Path:
    """Train the arms that are not finished, unless `train` is false, and report; returns the report's path.

    Raises UserError where no seed has all its arms, which only `train=False` or a folder in use can bring about.
    """
    arms = settings.arms()
    page = None
    with lock(folder):
        for seed in sorted({arm.seed for arm in arms}):
            of_seed = [(number, arm) for number, arm in enumerate(arms, 1) if arm.seed == seed]
            ran = False
            for number, arm in of_seed if train else []:
                made = run_stage(folder, _stage(arm))
                ran = ran or made
                tell(f"arm {number} of {len(arms)}: {arm.name}{'' if made else ' (is current)'}")
            if ran:
                page = _report(settings, folder)
        return page or _report(settings, folder)


def _stage(arm: ArmSettings) -> Stage:
    def work(folder: Path) -> None:
        from talaria.study.arm import train_arm

        train_arm(arm, folder)

    return Stage(arm.name, arm, {}, (), work)


def _report(settings: StudySettings, folder: Path) -> Path:
    from talaria.study.findings import findings
    from talaria.study.page import write_page
    from talaria.study.points import points_of

    rows = _finished_rows(settings, folder)
    for corpus in settings.corpora:
        write_results([row for row in rows if row.model.startswith(f"{corpus}-")], folder / f"{corpus}.csv")
    record = findings(rows, settings)
    atomic_write(folder / "study.json", to_json(record))
    return write_page(record, points_of(rows), folder)


def _finished_rows(settings: StudySettings, folder: Path) -> list[ResultRow]:
    """Rows of the seeds that have every arm, so that each comparison is of the same seeds."""
    by_seed: dict[int, list[ArmSettings]] = {}
    for arm in settings.arms():
        by_seed.setdefault(arm.seed, []).append(arm)
    whole = [arms for arms in by_seed.values() if all(is_current(folder, _stage(arm)) for arm in arms)]
    if not whole:
        raise UserError(f"{folder}: no seed has all its arms yet; run talaria study with these settings first")
    return [row for arms in whole for arm in arms for row in read_results(folder / arm.name / "results.csv")]
