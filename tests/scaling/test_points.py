"""Tables that cannot be right are refused with their row; `talaria fit` as a person uses it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import talaria

from talaria.errors import UsageError, UserError
from talaria.scaling.points import read_points

GOOD = [(n, d, 1.8 + 400 / n**0.34 + 1500 / d**0.36) for n in (1e8, 4e8, 1.6e9) for d in (1e9, 8e9, 6.4e10, 5e11)]


def table(folder: Path, rows: list[tuple[object, ...]], header: str = "params,tokens,loss") -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join([header, *(",".join(str(cell) for cell in row) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("nan", 1e9, 3.0), r"runs.csv:4: params is nan"),
        ((1e8, 1e9, -3.0), r"runs.csv:4: loss is -3.0"),
        ((1e8, 1e9, "high"), r"runs.csv:4: loss is 'high'"),
        ((1e8, 1e9, 410.0), r"runs.csv:4: loss is 410.0; it must be the mean"),
        ((1e8, 12.5, 3.0), r"runs.csv:4: tokens is 12.5, too small"),
        ((70, 1e9, 3.0), r"runs.csv:4: params is 70, too small"),
        ((4e14, 1e9, 3.0), r"runs.csv:4: params 4e\+14 is 2e\+05 times above"),
        ((4e8, 8e3 * 1e6 * 1e6, 3.0), r"runs.csv:4: tokens 8e\+15 is 2e\+04 times above"),
        ((4e8, 6.4e4, 2.9), r"runs.csv:4: tokens 6.4e\+04 is 2e\+04 times below"),
        ((1e8, 1e5, 2.1), r"runs.csv:4: tokens 1e\+05 is 1e\+04 times below"),
        ((1e8, 1e9), r"runs.csv:4: 2 cells where the header has 3"),
    ],
)
def test_a_row_that_cannot_be_right_is_named(tmp_path: Path, row: tuple[object, ...], message: str) -> None:
    rows: list[tuple[object, ...]] = [*GOOD]
    rows[2] = row
    with pytest.raises(UserError, match=message):
        read_points(table(tmp_path, rows), ("params", "tokens", "loss"))


def test_a_much_larger_run_with_a_fitting_loss_is_no_mistake(tmp_path: Path) -> None:
    rows = [*GOOD, (7e11, 1.4e13, 1.83)]
    assert len(read_points(table(tmp_path, rows), ("params", "tokens", "loss"))) == len(rows)


def test_compute_in_another_unit_is_named(tmp_path: Path) -> None:
    rows = [(n, d, 6 * n * d, loss) for n, d, loss in GOOD]
    rows[5] = (*rows[5][:2], rows[5][2] * 1e6, rows[5][3])
    with pytest.raises(UserError, match=r"runs.csv:7: flops is 1e\+06 times"):
        read_points(table(tmp_path, rows, "params,tokens,flops,loss"), ("params", "tokens", "loss"))


@pytest.mark.parametrize(
    ("header", "change", "message"),
    [
        ("flops,params,loss", (1e6, 1, 1), r"runs.csv:7: flops 1.92e\+25 is 4e\+03 times above"),
        ("flops,loss", (1e6, 1), r"runs.csv:7: flops 1.92e\+25 is 4e\+03 times above"),
        ("params,tokens,unique_tokens,loss", (1, 1, 1e-5, 1), r"runs.csv:7: unique_tokens is 1e-05 times tokens"),
        ("params,tokens,unique_tokens,loss", (1, 1, 1e6, 1), r"runs.csv:7: unique_tokens is 1e\+06 times tokens"),
        ("params,tokens,params_non_embedding,loss", (1, 1, 1e6, 1), r"runs.csv:7: params_non_embedding is 1e\+06 tim"),
    ],
)
def test_one_row_in_another_unit_is_named_in_every_column(
    tmp_path: Path, header: str, change: tuple[float, ...], message: str
) -> None:
    rows = []
    for n, d, loss in GOOD:
        known = {"params": n, "params_non_embedding": n, "tokens": d, "unique_tokens": d, "flops": 6 * n * d}
        rows.append(tuple((known | {"loss": loss})[name] for name in header.split(",")))
    rows[5] = tuple(cell * factor for cell, factor in zip(rows[5], change, strict=True))
    needs = ("flops", "loss") if header == "flops,loss" else ("params", "tokens", "loss")
    with pytest.raises(UserError, match=message):
        read_points(table(tmp_path, rows, header), needs)


def test_a_whole_column_in_another_unit_is_named(tmp_path: Path) -> None:
    rows = [(n, d / 1e4, loss) for n, d, loss in GOOD]
    with pytest.raises(UserError, match=r"tokens is 6\.\de-05 times params"):
        read_points(table(tmp_path, rows), ("params", "tokens", "loss"))


def test_missing_columns_are_told_and_mapped_ones_found(tmp_path: Path) -> None:
    path = table(tmp_path, GOOD, "Model Size,tokens,loss")
    with pytest.raises(UserError, match=r"runs.csv:1: no column params.*--columns"):
        read_points(path, ("params", "tokens", "loss"))
    with pytest.raises(UsageError, match="it has Model Size, tokens, loss"):
        read_points(path, ("params", "tokens", "loss"), {"params": "Size"})
    points = read_points(path, ("params", "tokens", "loss"), {"params": "Model Size"})
    np.testing.assert_allclose(points.flops, 6 * points.params * points.tokens)


def test_tokens_follow_from_compute(tmp_path: Path) -> None:
    rows = [(n, 6 * n * d, loss) for n, d, loss in GOOD]
    points = read_points(table(tmp_path, rows, "params,flops,loss"), ("params", "tokens", "loss"))
    np.testing.assert_allclose(points.tokens, [d for _, d, _ in GOOD])


@pytest.mark.parametrize("text", ["", "params,tokens,loss\n"])
def test_an_empty_table_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="no rows"):
        read_points(path, ("params", "tokens", "loss"))


def test_a_damaged_gzip_file_is_told(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"params,tokens,loss\n" + b"1e6,1e8,3.2\n" * 200))
    whole[14:-8] = bytes(byte ^ 0xFF for byte in whole[14:-8])
    path = tmp_path / "runs.csv.gz"
    path.write_bytes(bytes(whole))
    with pytest.raises(UserError, match="cannot be read"):
        read_points(path, ("params", "tokens", "loss"))


def test_the_command_prints_what_was_promised_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, pictures, written = table(tmp_path, GOOD), tmp_path / "pictures", tmp_path / "fit.json"
    options = ["--law", "chinchilla", "--json", "--draws", 50, "--plot", pictures, "--output", written]
    assert talaria("fit", path, *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["coefficients"]) == {"E", "A", "B", "alpha", "beta"} == set(told["interval90"])
    assert told["coefficients"]["alpha"] == pytest.approx(0.34, abs=0.01)
    assert told["exponents"]["parameters"] + told["exponents"]["tokens"] == pytest.approx(1)
    assert any("too few points" in warning for warning in told["warnings"])
    drawn = {"chinchilla_fit.png", "chinchilla_residuals.png"}
    assert {file.name for file in pictures.iterdir()} == drawn | {"chinchilla.html"}
    assert all((pictures / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    page = (pictures / "chinchilla.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "too few points" in page and "<script" not in page
    assert f"{told['coefficients']['alpha']:.5g}" in page
    assert json.loads(written.read_text()) == told


def test_wrong_arguments_of_the_command_end_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, GOOD)
    for wrong in (
        ["--law", "moore"],
        ["--columns", "params"],
        ["--without", "two"],
        ["--without", "99"],
        ["--draws", 1],
    ):
        assert talaria("fit", path, *wrong) == 2
        assert wrong[0] in capsys.readouterr().err or wrong[1] in ("99",)
    assert talaria("fit", tmp_path / "none.csv") == 1
    one_size = table(tmp_path, [(1e8, d, loss) for _, d, loss in GOOD])
    assert talaria("fit", one_size) == 1
    assert "differ in params" in capsys.readouterr().err
