"""The report page: what is on it, that it needs nothing else, and how it does in a real browser."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import keras
import matplotlib.image
import numpy as np
import pytest

from data_pipelines import convert, geotiff, synthetic
from kerass2 import cli, figures, models, report

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder as kerass2.fit leaves it, with a report made by the command."""
    root = tmp_path_factory.mktemp("report")
    source = synthetic.write_granule(root / "in", 384)
    data = convert.convert(
        lambda: convert.open_all([source]),
        root / "data",
        "superres_20m",
        only_split="test",
        stride=64,
    ).folder
    folder = root / "run"
    folder.mkdir()
    keras.utils.set_random_seed(1)
    model = models.build("dsen2", filters=8, blocks=1)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.05)
    model.save(folder / "model.keras")
    model.save(folder / "best.keras")
    facts = {
        "data": str(data),
        "description": "DATA: A SYNTHETIC GRANULE <made up>",
        "init": {"path": "/far/dsen2_L1C20M.npz", "digest": "0123456789ab"},
    }
    (folder / "data.json").write_text(json.dumps(facts))
    experiment = {"name": "dsen2_tiny", "loss": "l1"}
    experiment["run"] = {"global_batch": 8, "epochs": None, "ema": 0.99}
    (folder / "experiment.json").write_text(json.dumps(experiment))
    lines = [
        {"step": s, "loss": 1 / s, "learning_rate": 1e-4, "patches_per_second": 9, "seconds": 2 * s}
        for s in range(1, 61)
    ]
    lines += [{"step": s, "validation_rmse": 80 - s + s**2 / 60} for s in range(10, 61, 10)]
    last_line = {"step": 60, "validation_rmse": 44.0, "validation_rmse_bicubic": 90.0}
    lines.append({**last_line, "seconds": 125.0})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 61, "lo')
    report.build_report(folder, num_patches=3)
    return folder


class Page(html.parser.HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags must close in order"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


@pytest.fixture(scope="module")
def page(workdir: pathlib.Path) -> Page:
    return Page((workdir / "report.html").read_text(encoding="utf-8"))


def test_says_what_was_done_with_which_data(page: Page, workdir: pathlib.Path) -> None:
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert not page.open
    for text in (
        "dsen2_tiny",
        "SYNTHETIC DATA",
        "A SYNTHETIC GRANULE <made up>",
        f"{evaluation['patches']} patches of the test split",
        "run.global_batch",
        "2 min 05 s",
        "Started from the weights of /far/dsen2_L1C20M.npz (SHA-256 0123456789ab...).",
        "moving average of the weights, decay 0.99",
        "Lowest validation RMSE 65.00 DN after 30 of 60 steps: best.keras",
        f"{models.load_model(workdir / 'model.keras').count_params():,}",
        report.number(evaluation["methods"]["model"]["rmse"]["mean"]),
        report.number(evaluation["methods"]["bicubic"]["ssim"]["B8A"]),
        f"python -m kerass2.report {workdir}",
        *evaluation["definitions"].values(),
    ):
        assert text in page.text, text


def test_needs_nothing_from_elsewhere(page: Page, workdir: pathlib.Path) -> None:
    images = page.all("img")
    # 4 curves; for each of 3 patches a colour scale and 6 panels.
    assert len(images) == 4 + 3 * 7
    assert any("lowest 65 after 30" in str(attributes["alt"]) for attributes in images)
    for attributes in images:
        assert (attributes["src"] or "").startswith("data:image/")
        assert attributes["alt"]
    assert not page.all("script")
    text = (workdir / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text
    assert len(text) < 2e6


def picture(attributes: dict[str, str | None]) -> np.ndarray:
    content = base64.b64decode((attributes["src"] or "").partition("base64,")[2])
    return matplotlib.image.imread(io.BytesIO(content))[..., :3]


def test_panels_show_the_right_pixels_with_one_stretch(workdir: pathlib.Path, page: Page) -> None:
    from data_pipelines import store

    data = json.loads((workdir / "data.json").read_text())["data"]
    source = store.open_source(data, "test")
    batch = source.read([0])
    bands = list(source.spec.targets["superres_20m"].bands)
    chosen = [bands.index(band) for band in ("B12", "B8A", "B05")]
    truth = batch["targets"]["superres_20m"][0][..., chosen].astype(float)
    low, high = np.percentile(truth, 2, axis=(0, 1)), np.percentile(truth, 98, axis=(0, 1))
    lowres = batch["inputs"]["gsd20"][0][..., chosen].repeat(2, axis=0).repeat(2, axis=1)
    panels = {a["alt"].partition(" of patch")[0]: a for a in page.all("img")[5:11]}
    assert list(panels) == [
        "input",
        "bicubic",
        "prediction",
        "truth",
        "bicubic error",
        "prediction error",
    ]
    for name, pixels in (("truth", truth), ("input", lowres)):
        expected = np.clip((pixels - low) / (high - low).max(), 0, 1) ** 0.7
        assert np.abs(picture(panels[name]) - expected).max() < 1.1 / 255
    assert picture(panels["bicubic error"]).shape == (32, 32, 3)


def test_figures_of_a_patch_are_its_own() -> None:
    truth = np.random.default_rng(0).uniform(500, 3000, (1, 12, 12, 6)).astype(np.float32)
    lowres = truth.reshape(1, 6, 2, 6, 2, 6).mean((2, 4))
    found = figures.Comparison(["a"], "superres_20m", lowres, truth + 30, truth - 10, truth)
    shown = figures._panels(found, 0, [0, 1, 2])
    assert (shown["bicubic_rmse"], shown["model_rmse"], shown["change"]) == (
        "30.0",
        "10.0",
        "−66.7 %",
    )
    assert shown["error_limit"] == "30"


def test_without_log_and_settings_the_rest_is_there(
    workdir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("model.keras", "data.json", "evaluation.json"):
        shutil.copy(workdir / name, tmp_path)
    path = report.build_report(tmp_path, tmp_path / "page.html", num_patches=0)
    page = Page(path.read_text(encoding="utf-8"))
    assert "No log.jsonl" in page.text
    assert not page.all("img")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "data.json",
        "evaluation.json",
        "model.keras",
        "page.html",
    ]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command as `python -m` runs it, in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kerass2.report", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(report.main)
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def test_command(run: Run, workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "page.html"
    code, out, err = run(workdir, "-o", output, "--patches", 1)
    assert code == 0, err
    assert out == f"wrote {output}\n"
    assert len(Page(output.read_text(encoding="utf-8")).all("section")) == 1


def test_other_data_leave_the_evaluation_alone(
    run: Run, workdir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source = geotiff.write_folder(
        tmp_path / "in", synthetic.build_cubes(192), crs="EPSG:32632", corner=(399960, 5800020)
    )
    data = convert.convert(
        lambda: convert.open_all([source]), tmp_path / "other", "superres_20m", only_split="test"
    ).folder
    before = (workdir / "evaluation.json").read_bytes()
    output = tmp_path / "page.html"
    code, _, err = run(workdir, "-o", output, "--patches", 1, "--data", data)
    assert code == 0, err
    page = Page(output.read_text(encoding="utf-8"))
    assert "9 patches of the test split" in page.text
    assert f"report {workdir} --data {data} -o {output}" in page.text
    assert "SYNTHETIC DATA" not in page.text  # their files are not tagged
    assert (workdir / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.keras", None, "model.keras: not found"),
        ("evaluation.json", "{", "evaluation.json: damaged, expected JSON"),
        ("evaluation.json", "[]", "evaluation.json: a JSON list, expected an object"),
        ("evaluation.json", "{}", "evaluation.json: no 'task'"),
        ("log.jsonl", 'x\n{"step": 1}\n', "log.jsonl, line 1: damaged"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(
    name: str,
    content: str | None,
    expected: str,
    run: Run,
    workdir: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    folder = shutil.copytree(workdir, tmp_path / "run")
    before = (folder / "report.html").read_bytes()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    code, _, err = run(folder)
    assert code == 1
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert (folder / "report.html").read_bytes() == before


def test_no_folder(run: Run, tmp_path: pathlib.Path) -> None:
    code, _, err = run(tmp_path / "nowhere")
    assert code == 1
    assert "nowhere: no such folder" in err


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (59.9, "1 min 00 s"), (3725, "1 h 02 min"), (0, "0 s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_change_of_errors_and_of_qualities() -> None:
    def metric(bicubic: float | None, model: float | None) -> dict[str, Any]:
        return {"bicubic": {"mean": bicubic}, "model": {"mean": model}}

    values = {
        "rmse": metric(100, 75),
        "sre": metric(20, 25.5),
        "ergas_paper": metric(1, 2),
        "sam": metric(1, None),
        "consistency": metric(80, 60),
    }
    methods = {m: {name: value[m] for name, value in values.items()} for m in ("bicubic", "model")}
    rows = {
        row["name"]: row
        for row in report._metric_rows({"methods": methods, "units": {"rmse": "DN"}})
    }
    assert (rows["rmse"]["change"], rows["rmse"]["verdict"], rows["rmse"]["unit"]) == (
        "−25.0 %",
        "good",
        "DN",
    )
    assert (rows["sre"]["change"], rows["sre"]["verdict"]) == ("+5.5", "good")
    assert (rows["ergas_paper"]["change"], rows["ergas_paper"]["verdict"]) == ("+100.0 %", "bad")
    assert (rows["sam"]["change"], rows["sam"]["values"]) == ("–", ["1.000", "–"])
    assert (rows["consistency"]["change"], rows["consistency"]["verdict"]) == ("−25.0 %", "good")


def test_long_logs_stay_small() -> None:
    log = [{"step": i, "loss": 1 / (1 + i % 7)} for i in range(100_000)]
    (plot,) = figures.curves(log)
    assert len(plot["light"]) < 300_000
    assert plot["light"] != plot["dark"]


@pytest.mark.chromium
def test_in_chromium(browser: Any, workdir: pathlib.Path) -> None:
    for width, scheme in ((1280, "light"), (390, "dark")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((workdir / "report.html").as_uri())
        widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
        assert len(widths) == 25
        assert min(widths) > 0
        assert browser.title.startswith("dsen2_tiny")
        # Nothing sticks out: a phone would show the page too small or cut off.
        assert browser.execute_script("return document.documentElement.scrollWidth") == width
        shown = browser.execute_script("return document.images[5].getBoundingClientRect().width")
        assert shown > 100
        loaded = browser.execute_script(
            "return performance.getEntriesByType('resource').map(r => r.name)"
        )
        assert all(name.startswith("data:") for name in loaded)
    assert browser.get_log("browser") == []
