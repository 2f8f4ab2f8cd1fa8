"""The report: what its words and tables say of made-up records, of gaps and of damage."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import (
    project_records,
    report,
    report_plots,
    report_scaling,
    report_words,
    systems,
)
from data_pipelines.spec import DataError
from tests.benchmarks import made_records
from tests.benchmarks.made_records import figure, line, write


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
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags must close in order"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A report of all kinds of records, one of them damaged, one of another version."""
    root = tmp_path_factory.mktemp("report")
    folder = write(root / "records", made_records.everything())
    with (folder / "made.jsonl").open("a") as file:
        file.write('{"version": 99, "what": "scaling"}\n{"version": 2, "what": "sca\n')
    report.build_report(systems.load("local"), folder, root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def page(made: pathlib.Path) -> Page:
    return Page((made / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def markdown(made: pathlib.Path) -> str:
    return (made / "report.md").read_text(encoding="utf-8")


def test_says_what_was_measured(page: Page, markdown: str) -> None:
    assert not page.open
    for text in (
        "S2x, weak scaling, float32, 2 ranks: Horovod's throughput over multiworker's is 1.04 "
        "(1.03 to 1.05): Horovod is ahead.",
        "S2x, weak scaling, bfloat16, 2 ranks: Horovod's throughput over multiworker's is 1.01 "
        "(0.980 to 1.04): no difference beyond the spread.",
        "ResNet-50, weak scaling: efficiency at 4 ranks: horovod float32 0.480 (0.470 to 0.490); ",
        "ResNet-50's gradients summed over 2 ranks by horovod-gloo: ",
        " of torch-gloo.",
        "figures were disturbed by load (marked †)",
        "The model against all-reduces, horovod-gloo: sizes left out: median error 0.0%",
        "The model against S2x, horovod, float32: a step, from one rank's and the links: ",
        "version 99; this code reads",
        "damaged: no JSON",
        "0.450 (0.441 to 0.459)†",
        "a GeoTIFF a band",
    ):
        assert text in page.text, text
        assert text in markdown, text


def test_what_is_missing_is_said(page: Page, markdown: str) -> None:
    for text in ("No record of reading.", "No record of predict."):
        assert text not in markdown
    lines = [
        each
        for each in made_records.scaling()
        if (each["strategy"], each["ranks"]) != ("multiworker", 4)
    ]
    described = report.describe(systems.load("local"), lines, [])
    text = "\n".join(report.to_markdown(described))
    for gap in (
        "S2x, float32, weak scaling, 4 ranks: no record of multiworker.",
        "No record of reading.",
        "No record of predict.",
        "No record of shares.",
        "No record of allreduce",
        "no record of strategies.",
        "No record of quality, and nothing published of this system.",
        "nothing says what its links cost",
    ):
        assert gap in text, gap
    # The line of the plot breaks there: it does not run on as if something had been measured.
    plot = next(p for p in described["sections"][0].plots if p.title.startswith("Throughput: S2x"))
    drawn = {one["name"]: one["y"] for one in plot.figure["data"]}
    assert drawn["multiworker, float32"][-1] is None
    assert drawn["horovod, float32"][-1] is not None
    assert plot.table.rows[-1][2] == "–"


def test_disturbed_points_are_hollow(made: pathlib.Path) -> None:
    described = report.describe(systems.load("local"), made_records.scaling(), [])
    plot = described["sections"][0].plots[0]
    marks = {one["name"]: one["marker"]["symbol"] for one in plot.figure["data"]}
    assert [symbol.endswith("-open") for symbol in marks["horovod, bfloat16"]] == [0, 0, 1]
    assert not any(symbol.endswith("-open") for symbol in marks["horovod, float32"])


def test_needs_nothing_from_elsewhere(made: pathlib.Path, page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "connect-src" not in text
    assert len(text) < 7e6


def test_every_plot_has_its_numbers(page: Page) -> None:
    plots = [attributes for tag, attributes in page.tags if "data-figure" in attributes]
    assert len(plots) > 15
    assert len([tag for tag, _ in page.tags if tag == "details"]) == len(plots)
    assert len({attributes["data-figure"] for attributes in plots}) == len(plots)
    assert all(attributes["aria-label"] for attributes in plots)


def test_text_of_records_does_not_become_markup() -> None:
    lines = [
        line("reading", task="a</script><b>&", ranks=1, source="<i>x|y</i>", throughput=figure(1.0))
    ]
    described = report.describe(systems.load("local"), lines, [])
    (plot,) = described["sections"][5].plots
    script = report.to_script(plot.figure)
    assert not set("<>&") & set(script)
    assert json.loads(script) == plot.figure
    assert "<i>x\\|y</i>" in "\n".join(report.to_markdown(described))


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "juwels",
            (
                "Nothing was measured on juwels",
                "efficiency over 4 ranks: 1.01 at 8, 1.01 at 16, 1.03 at 32, 1.07 at 48, 1.08 at "
                "64, 0.964 at 96",
                "Time per epoch: ResNet-50, weak scaling",
                "projected for horovod in float32",
                "an epoch as published, from at most 32 ranks | 3 |",
                "The model against ResNet-50, 12 bands: an epoch as published, from at most 32 ",
                "Classification paper, table 2",
            ),
        ),
        (
            "juron",
            ("38.58", "S2x, published", "Super-resolution paper, table 1", "S6x: neither measured"),
        ),
        ("jureca", ("about 14 h for 100 epochs", "504", "No record of allreduce")),
    ],
)
def test_published_systems_without_records(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, texts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(report.main, ["--system", name])
    assert done.exit_code == 0, done.output
    folder = pathlib.Path(f"report-{name}")
    assert done.stdout == f"wrote {folder / 'report.html'}\nwrote {folder / 'report.md'}\n"
    found = (folder / "report.md").read_text(encoding="utf-8")
    for text in texts:
        assert text in found, text
    assert not Page((folder / "report.html").read_text(encoding="utf-8")).open


def test_measured_over_published() -> None:
    lines = [
        line(
            "scaling",
            experiment="bigearthnet_ms",
            strategy="horovod",
            precision="float32",
            mode="weak",
            ranks=n,
            global_batch=64 * n,
            seconds=figure(0.3),
            epoch_seconds=figure(seconds),
        )
        for n, seconds in ((4, 173.5), (8, 129.0), (12, 1.0))
    ]
    described = report.describe(systems.load("juwels"), lines, [])
    (table,) = described["sections"][0].tables
    assert [(row[0], *row[3:]) for row in table.rows] == [
        ("4", "horovod", "347", "0.500"),
        ("8", "horovod", "172", "0.750"),
    ]


def test_published_figures_of_other_systems_stand_beside() -> None:
    local = systems.load("local")
    others = [systems.load(name) for name in ("juwels", "juron")]
    described = report.describe(local, made_records.everything(), [], others)
    alone = report.describe(local, made_records.everything(), [])
    text = "\n".join(report.to_markdown(described))
    plot = next(
        p
        for p in described["sections"][0].plots
        if p.title.startswith("Efficiency: ResNet-50, weak")
    )
    drawn = {one["name"]: one["x"] for one in plot.figure["data"]}
    assert drawn["published, horovod on juwels"] == [4, 8, 16, 32, 48, 64, 96]
    assert drawn["horovod, float32"] == [1, 2, 4]
    for found in (
        "Published, ResNet-50, 12 bands, horovod on juwels: efficiency over 4 ranks: 1.01 at 8",
        "S2x: rmse against the global batch: DSen2, published: 35.9 at 128; S2x, published: 36.4 "
        "at 128, ",
        "Super-resolution paper, table 2; on juron",
        "| 4 | horovod, float32 |",
        "--system local --beside juwels --beside juron`",
    ):
        assert found in text, found
    # What is projected rests on this machine alone.
    assert described["sections"][-2].tables == alone["sections"][-2].tables


def test_ranks_on_shared_cores_are_named() -> None:
    where = {"where": {"cores": 2}}
    for ranks, told in ((1, "1 rank"), (2, "2 ranks"), (3, "3 ranks on shared cores")):
        assert report_scaling.tell_ranks({"ranks": ranks, "cores_each": 1, **where}) == told
    assert report_scaling.tell_ranks({"ranks": 9, **where}) == "9 ranks"


def test_what_is_there_stays_unless_asked(tmp_path: pathlib.Path) -> None:
    folder = write(tmp_path / "records", made_records.comparisons())
    system = systems.load("local")
    report.build_report(system, folder, tmp_path / "out")
    before = (tmp_path / "out" / "report.html").read_bytes()
    with pytest.raises(DataError, match=r"report\.html is there already; expected another -o, or"):
        report.build_report(system, folder, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    write(folder, made_records.parts())
    report.build_report(system, folder, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "report.html").read_bytes() != before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]


def test_no_records(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no record of local, and nothing published"):
        report.build_report(systems.load("local"), tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="nowhere: not found"):
        report.build_report(systems.load("juwels"), tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_damaged_lines_are_no_records(tmp_path: pathlib.Path) -> None:
    (tmp_path / "made.jsonl").write_text("x\n" * 3)
    with pytest.raises(DataError, match="no record of local"):
        report.build_report(systems.load("local"), tmp_path, tmp_path / "out")


def test_the_command_ends_with_one_line(run_benchmark: Any, tmp_path: pathlib.Path) -> None:
    done = run_benchmark("report", "--system", "summit", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: no system 'summit'; expected one of .*\n", done.stderr)


def test_the_kept_records_can_be_told() -> None:
    kept = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "local"
    lines, problems = project_records.read(systems.load("local"), kept)
    assert problems == []
    described = report.describe(systems.load("local"), lines, [])
    assert "## The README's table" in "\n".join(report.to_markdown(described))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1.00"),
        (0.97, "0.970"),
        (0.012345, "0.0123"),
        (12.345, "12.3"),
        (123.45, "123"),
        (17049.2, "17,049"),
        (1.5e-7, "1.5e-07"),
        (None, "–"),
        (-2.5, "-2.50"),
        (99.96, "100"),
        (9.996, "10.0"),
        (999.6, "1,000"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert report_words.number(value) == text


def test_figures_in_words() -> None:
    assert report_words.tell(figure(2.0, "1", 0.1)) == "2.00 (1.80 to 2.20)"
    assert report_words.tell({**figure(2.0), "repeats": 1, "disturbed": True}) == "2.00†"
    assert report_words.tell(None) == "–"
    assert [report_words.size(n) for n in (12, 1024, 999_999, 94e6, 2.5e9)] == [
        "12 B",
        "1.02 kB",
        "1 MB",
        "94 MB",
        "2.5 GB",
    ]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("card", ["#ffffff", "#1a2125"])
def test_colours_show_on_both_pages(card: str) -> None:
    """Graphics need a contrast of 3 to 1 (WCAG 2.1, 1.4.11)."""
    assert f"--card: {card}" in report.TEMPLATE.read_text(encoding="utf-8")
    for colour in report_plots.COLOURS:
        light, dark = sorted((luminance(colour), luminance(card)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_published_speed_up_counts_from_its_first_point() -> None:
    (curve,) = systems.load("juwels").curve
    found = report_scaling.published_values(curve, "speed_up")
    assert found[0] == 4
    assert found[-1] == pytest.approx(4 * 347 / 15)
    assert report_scaling.published_values(curve, "throughput") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 4], [1, 2, 4]),
        ([4, 8, 16, 32, 48, 64, 96], [4, 8, 16, 32, 48, 96]),
        ([2**power for power in range(11)], [1, 4, 16, 64, 256, 1024]),
        ([1, 1000, 1001, 1024], [1, 1000]),
        ([8], [8]),
        ([], []),
    ],
)
def test_ticks_that_a_phone_has_room_for(values: list[float], expected: list[float]) -> None:
    assert report_plots.thin(values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.9], [1, 1.5, 2]),
        ([15, 347], [20, 50, 100, 200]),
        ([0.002, 4.0], [0.01, 0.1, 1]),
    ],
)
def test_ticks_of_decades(values: list[float], expected: list[float]) -> None:
    assert report_plots.decades(values) == pytest.approx(expected)


def test_sizes_have_fewer_ticks_and_small_numbers_one_form() -> None:
    sizes = [2**power for power in range(10, 29, 2)]
    assert report_plots.thin(sizes, 4) == [2**power for power in (10, 16, 22, 28)]
    assert [report_plots._tick(value) for value in (1e-5, 1e-4, 0.01, 2000)] == [
        *("1e-05", "1e-04", "0.01", "2,000"),
    ]


def test_long_names_are_wrapped_and_stay_text() -> None:
    assert report_plots.wrap("S2x, horovod, float32, <b>2 ranks") == (
        "S2x, horovod, float32,<br>&lt;b&gt;2 ranks"
    )


def test_where_ranks_take_turns_it_is_said() -> None:
    described = report.describe(systems.load("local"), made_records.everything(), [])
    (told,) = [text for text in described["verdict"] if text.startswith("S6x, projected")]
    cores = systems.load("local").node.devices
    if cores < 4:
        assert f"since there is room for {cores} only: more take turns" in told


def test_ranks_without_cores_of_their_own_are_no_curve() -> None:
    """Four ranks on two cores: neither they nor the fewer ranks of their run are scaling."""
    own = made_records.training({1: 1.0, 2: 1.1}, cores_each=1)
    shared = made_records.training({1: 0.5, 2: 1.0, 4: 2.0}, cores_each=2)
    assert report_scaling.select_scaling([*own, *shared]) == own
    assert report_scaling.select_scaling(made_records.training({1: 1.0, 4: 2.0})) != []


def test_records_that_compare_nothing() -> None:
    lines = [line("predict", model="S2x", precision="float32", size=8, throughput=figure(1.0))]
    described = report.describe(systems.load("local"), lines, [])
    assert described["verdict"] == ["These records compare nothing."]


def test_ratios_without_a_chapter_are_told() -> None:
    lines = [line("cutting over the direct way", task="superres_20m", ratio=figure(10.2, "1"))]
    described = report.describe(systems.load("local"), lines, [])
    (table,) = next(s for s in described["sections"] if s.title == "Other comparisons").tables
    assert table.rows == [["cutting over the direct way", "10.2", "task superres_20m"]]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("horovod", True),
        ("043c5e31c92c, aee0e7f512c7", True),
        ("12", False),
        ("1,200 (1,100 to 1,300)", False),
        ("+3.1%", False),
        ("0.450†", False),
        ("2026-11-22", False),
        ("–", False),
        ("", False),
    ],
)
def test_words_stand_left(cell: str, expected: bool) -> None:
    assert report.is_word(cell) is expected
