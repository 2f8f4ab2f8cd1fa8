"""Tables: every cell against the result it is made from, in every format."""

from __future__ import annotations

import csv
import io
import math
import pathlib
import re
from typing import Any

import numpy as np
import pandas
import pytest

from data_pipelines.spec import DataError
from kerass2 import metrics, render, tables

BANDS = ("B05", "B06", "B07", "B8A", "B11", "B12")
METHODS = ("bicubic", "bilinear", "model", "a_b & 50%")
TABLE_NAMES = list(tables.TABLES)


def scores(seed: int) -> dict[str, dict[str, float]]:
    """Values as scores.Scores.results has them, from made-up sums."""
    rng = np.random.default_rng(seed)
    x = np.rint(rng.gamma(3, 600, (2, 16, 16, 6)) + 1) / 1e4
    p = x + rng.normal(0, 0.01, x.shape)
    sums = metrics.sums(p, x, None, 2, lowres=x[:, ::2, ::2])
    return metrics.results(sums, BANDS, 12_345.0)


def result(scenes: tuple[str, ...] = ("first", "second")) -> dict[str, Any]:
    found = {m: scores(i) for i, m in enumerate(METHODS)}
    by_scene = {
        scene: {"pixels": 9, "methods": {m: scores(10 * s + i) for i, m in enumerate(METHODS)}}
        for s, scene in enumerate(scenes, 1)
    }
    std = math.nan if len(scenes) < 2 else 0.5
    return {
        "task": "superres_20m",
        "split": "test",
        "data": "folder",
        "methods": found,
        "scenes": by_scene,
        "over_scenes": {
            m: {
                metric: {key: {"mean": value + 1, "std": std} for key, value in values.items()}
                for metric, values in found[m].items()
            }
            for m in METHODS
        },
        "models": {"model": {"ranks": 2, "global_batch": 256, "seconds": 90.0}, "a_b & 50%": {}},
        "units": dict(metrics.UNITS),
    }


def read(table: tables.Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render.to_csv(table))))


def test_csv_by_band_has_every_number_with_all_digits() -> None:
    found, rows = result(), read(tables.by_band(result()))
    assert len(rows) == len(metrics.DEFINITIONS) * len(METHODS)
    for row in rows:
        metric = row["metric"].split(" [")[0]
        values = found["methods"][row["method"]][metric]
        assert row["metric"] == metric or row["metric"] == f"{metric} [{metrics.UNITS[metric]}]"
        for key in ("mean", *BANDS):
            # Exactly; a metric without bands has empty cells.
            assert row[key] == "" if key not in values else float(row[key]) == values[key]
    frame = pandas.read_csv(
        io.StringIO(render.to_csv(tables.by_band(found))), float_precision="round_trip"
    )
    assert frame["mean"].tolist() == [
        found["methods"][m][name]["mean"] for name in metrics.DEFINITIONS for m in METHODS
    ]
    assert frame["B05"].isna().sum() == 3 * len(METHODS)


def test_csv_as_in_the_paper(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "superres_20m.csv"
    file.write_text(
        "method,gpus,global_batch,training_time,rmse,sre,sam,ergas,ssim,psnr\n"
        "bicubic,,,,125.69,25.64,1.22,3.48,0.82,44.9998\n"
        "s2x,8,1028,12h,35.61,36.05,0.76,1.05,0.9329,55.6393\n"
        "s2x,16,2056,4h,38.58,35.27,0.81,1.16,0.9320,54.9243\n"
        "s2x,4,1028,4h,38.58,35.27,0.81,1.16,0.9291,54.9243\n"
    )
    found = {**result(), "published": tables.read_published(file, "superres_20m")}
    rows = read(tables.as_in_the_paper(found))
    assert list(rows[0])[:10] == file.read_text().splitlines()[0].split(",")
    for row, method in zip(rows[:4], METHODS, strict=True):
        values = {name: value["mean"] for name, value in found["methods"][method].items()}
        assert row["source"] == "measured"
        for name in ("rmse", "sre", "sam", "uiq", "consistency"):
            assert float(row[name]) == values[name]
        for name in ("ergas", "ssim", "psnr"):
            assert float(row[name]) == values[f"{name}_paper"]
            assert float(row[f"{name}_textbook"]) == values[name]
    assert (rows[2]["gpus"], rows[2]["global_batch"], rows[2]["training_time"]) == (
        *("2", "256"),
        "1.5min",
    )
    assert [row["source"] for row in rows[4:]] == ["published"] * 4
    assert [row["global_batch"] for row in rows[4:]] == ["", "1024", "2048", "1028"]
    assert rows[5]["note"] == "batch printed as 1028, a misprint"
    assert rows[7]["note"] == ""
    assert rows[6]["ssim"] == "0.9320"  # as printed
    assert (rows[5]["psnr"], rows[4]["ssim"], rows[5]["uiq"]) == ("55.6393", "0.82", "")


def test_csv_by_scene() -> None:
    found, rows = result(), read(tables.by_scene(result()))
    labels = ["first", "second", "mean over scenes", "standard deviation"]
    assert [row["scene"] for row in rows] == [label for label in labels for _ in METHODS]
    for row in rows:
        for name, unit in metrics.UNITS.items():
            cell = float(row[name if unit == "1" else f"{name} [{unit}]"])
            if row["scene"] in found["scenes"]:
                values = found["scenes"][row["scene"]]["methods"][row["method"]]
                assert cell == values[name]["mean"]
            else:
                key = "mean" if row["scene"].startswith("mean") else "std"
                assert cell == found["over_scenes"][row["method"]][name]["mean"][key]


def test_what_is_missing_and_what_is_no_number_look_different() -> None:
    found = result(scenes=("only",))
    del found["methods"]["model"]["rmse"]["B06"]
    found["methods"]["model"]["rmse"]["B07"] = math.nan
    found["methods"]["model"]["rmse"]["B8A"] = None  # as JSON has it
    found["methods"]["model"]["psnr"]["B05"] = math.inf
    table = tables.by_band(found)
    rows = {(row["metric"].split(" [")[0], row["method"]): row for row in read(table)}
    row = rows["rmse", "model"]
    assert (row["B06"], row["B07"], row["B8A"]) == ("", "nan", "nan")
    assert rows["psnr", "model"]["B05"] == "inf"
    line = next(x for x in render.to_markdown(table).splitlines() if "| model" in x)
    assert line.split("|")[5:8] == ["  ", " nan ", " nan "]
    assert "standard deviation" in render.to_csv(tables.by_scene(found))
    last = read(tables.by_scene(found))[-1]
    assert last["rmse [DN]"] == "nan"


def test_markdown_is_a_pipe_table() -> None:
    table = tables.as_in_the_paper(result())
    lines = render.to_markdown(table).splitlines()
    assert lines[0] == table.caption
    header, rule, *rows = lines[2 : 4 + len(table.rows)]
    cells = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in (header, rule, *rows)]
    assert cells[0] == list(table.columns)
    assert set(cells[1]) == {"---", "---:"}
    assert {len(line) for line in cells} == {len(table.columns)}
    for row, found in zip(table.rows, cells[2:], strict=True):
        assert found == [render.format_cell(cell) for cell in row]
    assert table.notes[0] in lines
    assert "a\\|b" in render.to_markdown(tables.Table("", ("x", "y"), (("a|b", 1.0),)))


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_latex_has_the_structure_of_a_table(name: str) -> None:
    table = tables.TABLES[name](result())
    text = render.to_latex(table)
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1] == ["table", "tabular"]
    assert [text.count(rule) for rule in (r"\toprule", r"\bottomrule")] == [1, 1]
    layout = re.search(r"\\begin{tabular}{([lr]+)}", text)
    assert layout and len(layout[1]) == len(table.columns)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(table.rows)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(table.columns) - 1
        assert not re.search(r"(?<!\\)[%$#_]|\^|~", row)
        assert not re.match(r"\[|.*& \[", row)
        assert row.count("{") == row.count("}")
    assert r"a\_b \& 50\%" in text


def test_latex_escapes_every_special_character() -> None:
    text = render.to_latex(tables.Table("", ("x",), (("\\~^&%$#_{}",),), texts=1))
    row = text.split("\\midrule\n")[1].splitlines()[0]
    assert row == (r"\textbackslash{}\textasciitilde{}\textasciicircum{}\&\%\$\#\_\{\} \\")


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_the_terminal_shows_whole_cells_however_narrow(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = tables.TABLES[name](result())
    render.show(table, "table")
    out = capsys.readouterr().out
    assert "…" not in out
    for row in table.rows:
        for cell in row:
            if isinstance(cell, float):
                assert render.format_cell(cell) in out
    for note in table.notes:
        assert note in out


def test_numbers_for_people_have_four_digits() -> None:
    cells = [12345.6, 125.69, 0.9329001, 1.0, 3, None, "a", math.nan, -math.inf]
    assert [render.format_cell(cell) for cell in cells] == [
        *("1.235e+04", "125.7", "0.9329", "1.000", "3", "", "a", "nan", "-inf")
    ]


def test_data_without_scenes_have_no_table_of_them() -> None:
    with pytest.raises(DataError, match="folder: the data do not say which scenes"):
        tables.by_scene({**result(), "scenes": {}})


@pytest.mark.shared_data
def test_the_published_tables_are_read(shared_data: pathlib.Path) -> None:
    for task, count, misprints in (("superres_20m", 7, 2), ("superres_60m", 7, 0)):
        found = tables.read_published(shared_data / "published" / f"{task}.csv", task)
        assert len(found["rows"]) == count
        assert sum(row["note"] is not None for row in found["rows"]) == misprints
        batches = [r["global_batch"] / r["gpus"] for r in found["rows"] if r["method"][0] == "s"]
        assert len(set(batches)) == 1  # what a misprint would break
