"""`talaria fit`: a table of runs and the name of a law in; what is printed, drawn and written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from talaria.errors import UsageError, UserError
from talaria.scaling.diagnosis import diagnose
from talaria.scaling.envelope import fit_envelope
from talaria.scaling.fit import Fit, fit_law, hold_out
from talaria.scaling.isoflop import fit_isoflop
from talaria.scaling.laws import LAWS
from talaria.scaling.points import Points, read_points

ALLOCATION_NEEDS = {"isoflop": ("flops", "params", "loss"), "envelope": ("params", "tokens", "loss")}
LAW_NAMES = (*LAWS, *ALLOCATION_NEEDS)


def fit_table(
    path: Path,
    law: str,
    columns: Mapping[str, str],
    without: Sequence[int] = (),
    draws: int = 1000,
    seed: int = 0,
    pictures: Path | None = None,
) -> tuple[Fit, list[Path]]:
    """Read, fit, diagnose and, where `pictures` is a folder, draw; returns the pictures, too. UserError and UsageError
    name what is wrong."""
    if law not in LAW_NAMES:
        raise UsageError(f"--law {law}: unknown; known: {', '.join(LAW_NAMES)}")
    if draws < 20:
        raise UsageError(f"--draws {draws}: an interval needs 20 or more")
    needs = LAWS[law].needs if law in LAWS else ALLOCATION_NEEDS[law]
    points = read_points(path, needs, columns)
    if without:
        points = points.without(without, str(path))
    try:
        return _fitted(law, points, draws, seed, pictures)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None


def _fitted(law: str, points: Points, draws: int, seed: int, folder: Path | None) -> tuple[Fit, list[Path]]:
    if folder is not None:
        from talaria.scaling import pictures
    if law == "isoflop":
        fit, valleys = fit_isoflop(points, draws, seed)
        return fit, [] if folder is None else pictures.draw_isoflop(fit, points, valleys, folder)
    if law == "envelope":
        fit, envelope = fit_envelope(points, draws, seed)
        return fit, [] if folder is None else pictures.draw_envelope(fit, points, envelope, folder)
    fit = fit_law(law, points, draws, seed)
    fit = replace(fit, held_out=hold_out(law, points, seed=seed), warnings=diagnose(fit, points, seed))
    return fit, [] if folder is None else pictures.draw_fit(fit, points, folder)


def fit_summary(fit: Fit) -> Group:
    """The fit as a person reads it."""
    table = Table(title=f"{fit.law}, {fit.n_points} points", title_justify="left", box=SIMPLE)
    for column in ("coefficient", "value", "90 % interval"):
        table.add_column(column, justify="left" if column == "coefficient" else "right")
    for name, value in fit.coefficients.items():
        low, high = fit.interval(name)
        table.add_row(name, f"{value:.5g}", f"{low:.5g} to {high:.5g}")
    parts: list[Any] = [table]
    if fit.exponents is not None:
        parts.append(
            Text(
                f"best parameters ~ C^{fit.exponents['parameters']:.3f}, tokens ~ C^{fit.exponents['tokens']:.3f}: "
                f"ten times the compute wants {10 ** fit.exponents['parameters']:.2f} times the parameters on "
                f"{10 ** fit.exponents['tokens']:.2f} times the tokens"
            )
        )
    if fit.held_out is not None:
        out = fit.held_out
        what = f"the {out.n} runs of most compute"
        if fit.law in ALLOCATION_NEEDS:
            what = "the best size at the largest budget" + ("" if out.n == 1 else f"s ({out.n} places)")
        mean, largest = 100 * out.mean_relative_error, 100 * out.largest_relative_error
        if out.n == 1:
            off = f"{mean:.2f} % off"
            held = {None: "", 0: "; outside its 90 % interval", 1: "; inside its 90 % interval"}[out.inside_interval90]
        else:
            off = f"{mean:.2f} % off in the mean, {largest:.2f} % at most"
            inside = out.inside_interval90
            held = "" if inside is None else f"; {inside} of {out.n} inside their 90 % interval"
        parts.append(Text(f"{what}, predicted from the rest: {off}{held}"))
    parts += [Text(f"warning: {warning}") for warning in fit.warnings]
    return Group(*parts)
