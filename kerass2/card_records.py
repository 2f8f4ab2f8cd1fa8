"""What a run's own records tell for its model card, and the table of scenes with their licences."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.spec import DataError
from kerass2 import inputs, report
from kerass2 import workdir as folder

COLUMNS = ("scenes", "level", "use", "licence", "attribution", "source")
LEVELS = ("L1C", "L2A")
TRAINING, EVALUATION = "training", "evaluation"
# What an RMSE is set against: the strongest interpolation.
REFERENCE = "cubic_spline"
# What names of ESA's products and of BigEarthNet's say of the ground: satellite, time, tile.
_SENSED = re.compile(r"(S2[A-D])_MSIL\w\w_(\d{8}T\d{5,6})(?:_|$)")
_TILE = re.compile(r"_(T\d{2}[A-Z]{3})(?:_|$)")


@dataclasses.dataclass(frozen=True)
class Scene:
    """A row of the table of scenes."""

    scenes: str
    """Name of a scene, or a pattern of names (fnmatch)."""
    level: str
    """ "L1C" or "L2A"."""
    use: str
    """What its licence is taken to allow here: TRAINING and scoring, or EVALUATION only."""
    licence: str
    """Of the pixels."""
    attribution: str
    """What it asks to be said."""
    source: str
    """Where they were found."""


def read_sources(path: pathlib.Path) -> list[Scene]:
    """The table of scenes.

    Raises:
        DataError: no such file, other columns, or another use or level than there are.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as CSV: {error}") from None
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}: columns {','.join(header) or 'none'}; expected {COLUMNS}")
    rows = []
    for number, line in enumerate(lines, 2):
        allowed = {1: LEVELS, 2: (TRAINING, EVALUATION)}
        if len(line) != len(COLUMNS) or any(line[i] not in known for i, known in allowed.items()):
            raise DataError(
                f"{path}, line {number}: {','.join(line)}; expected {len(COLUMNS)} cells, the "
                f"second {' or '.join(LEVELS)}, the third {TRAINING} or {EVALUATION}"
            )
        rows.append(Scene(*line))
    return rows


def find_scene(sources: Sequence[Scene], name: str, where: pathlib.Path) -> Scene:
    """The row of a scene.

    Raises:
        DataError: there is none.
    """
    for row in sources:
        if fnmatch.fnmatchcase(name, row.scenes):
            return row
    raise DataError(f"{where}: no row for scene {name}; a licence is needed")


def read_training(file: pathlib.Path) -> dict[str, Any]:
    """What a model was trained on, how and how long.

    Args:
        file: the .keras file in its work folder.

    Returns:
        {"experiment": name, "precision", "command", "prepare": the data's command, "data": digest
        of their manifest, "init": None or {"path", "digest", "scenes": see _scenes_before},
        "steps", "seconds", "patches", "scenes": [..]}.

    Raises:
        DataError: a record is missing or damaged, or the data set is gone or another one.
    """
    work = file.parent
    experiment, data = (inputs.read_json(work / n) for n in (folder.EXPERIMENT, folder.DATA))
    log = report.read_log(work / folder.LOG)
    if experiment is None or data is None or not log:
        raise DataError(
            f"{work}: expected {folder.EXPERIMENT}, {folder.DATA} and {folder.LOG} of kerass2.fit"
        )
    found = inputs.open_data(data["data"], experiment["data"]["task"])
    if found.digest != data["manifest"]:
        raise DataError(
            f"{found.path} has changed: manifest {found.digest}, the run's is {data['manifest']}"
        )
    return {
        "experiment": experiment["name"],
        "precision": experiment["run"]["precision"],
        "command": without_folders(data["command"]),
        "prepare": _prepare_command(found),
        "data": found.digest,
        "init": _read_init(data.get("init")),
        "steps": log[-1]["step"],
        "seconds": log[-1]["seconds"],
        "patches": found.counts["train"],
        "scenes": [str(scene) for scene in found.provenance.get("scenes", ())],
    }


def _read_init(init: Mapping[str, str] | None) -> dict[str, Any] | None:
    """What data.json says of the weights that a run started from, with their scenes."""
    if not init:
        return None
    scenes = _scenes_before(pathlib.Path(init["path"]), init["digest"])
    return {**init, "path": _last(init["path"]), "scenes": scenes}


def _scenes_before(file: pathlib.Path, digest: str) -> list[str] | None:
    """Scenes that starting weights have seen, in their own start too; None: that is not known.

    By the card beside them or, where it is none of theirs, by the records of their run.
    """
    from kerass2.job import Init

    card = inputs.read_json(file.with_suffix(".json")) or {}
    try:
        if card.get("digest") == digest:
            trained = card["trained"]
        elif Init.of(file).digest == digest:
            trained = read_training(file)
        else:
            return None
        before = (trained["init"] or {"scenes": []}).get("scenes")
        return None if before is None else list(dict.fromkeys([*before, *trained["scenes"]]))
    except (DataError, KeyError, TypeError):
        return None  # no file, or no records: published weights have none


def seen(trained: Mapping[str, Any]) -> list[str]:
    """Scenes that a model has seen as far as is known, its starting weights' first."""
    before = (trained["init"] or {}).get("scenes") or []
    return list(dict.fromkeys([*before, *trained["scenes"]]))


def read_scores(file: pathlib.Path, trained_on: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Scores on whole scenes, from the evaluation*.json beside a model.

    Args:
        file: the .keras file.
        trained_on: scenes that it has seen, by the names of products or scenes.

    Returns:
        {scene: {"pixels", "view", "methods": {method: {metric: {"mean" or band: value}}}}}.

    Raises:
        DataError: none, one of another model, one of a scene that the model was trained on, a scene
            twice, or without the reference.
    """
    from kerass2 import whole
    from kerass2.job import Init

    digest, scores = Init.of(file).digest, dict[str, dict[str, Any]]()
    for path in sorted(file.parent.glob(f"{pathlib.Path(folder.EVALUATION).stem}*.json")):
        found = inputs.read_json(path) or {}
        if found.get("split") != whole.SPLIT:
            continue
        there = found["models"]["model"].get("digest")
        if there != digest:
            raise DataError(f"{path}: of a model with digest {there}; {file} has {digest}")
        for scene, values in found["scenes"].items():
            # A BigEarthNet patch has a name of its own; data sets are told by their product's.
            product = _sensed(found.get("products", {}).get(scene, scene))
            known = product in map(_sensed, trained_on) or scene in scores
            if known or REFERENCE not in values["methods"]:
                raise DataError(
                    f"{path}: scene {scene} is of the training data, there twice, or without "
                    f"{REFERENCE}"
                )
            short = {method: _short(each) for method, each in values["methods"].items()}
            scores[scene] = {"view": found["view"], "pixels": values["pixels"], "methods": short}
    if not scores:
        raise DataError(
            f"{file.parent}: no evaluation of whole scenes; python -m kerass2.evaluate "
            f"{file} --whole lattice --data SCENE makes one"
        )
    return scores


def _sensed(name: str) -> str:
    """What was sensed: the same of one scene's L1C and L2A, and of its versions, by their names."""
    sensed, tile = _SENSED.match(name), _TILE.search(name)
    return " ".join([*sensed.groups(), tile[1]]) if sensed and tile else name


def _short(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Metrics to five digits; but for RMSE the means over bands only."""
    return {
        metric: {
            key: None if value is None else float(f"{value:.5g}")
            for key, value in values.items()
            if metric == "rmse" or key == "mean"
        }
        for metric, values in found.items()
    }


def ratio(values: Mapping[str, Any], key: str = "mean") -> float:
    """RMSE of the model over that of the reference, of a scene of read_scores."""
    methods = values["methods"]
    return float(methods["model"]["rmse"][key] / methods[REFERENCE]["rmse"][key])


def read_curve(models: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    """Runs of one kind on more and more data: [{"scenes", "patches", "steps", "ratios"}].

    Raises:
        DataError: see read_training and read_scores; one of another experiment than the last, or
            scored on other scenes or otherwise.
    """
    rows, kinds = [], []
    for file in models:
        trained = read_training(file)
        scores = read_scores(file, seen(trained))
        views = {f"{scene} ({values['view']})" for scene, values in scores.items()}
        kinds.append(f"{trained['experiment']}, scored on {', '.join(sorted(views))}")
        sizes = {key: trained[key] for key in ("patches", "steps", "seconds")}
        ratios = {scene: round(ratio(values), 4) for scene, values in scores.items()}
        rows.append({"scenes": len(trained["scenes"]), **sizes, "ratios": ratios})
    for file, kind in zip(models, kinds, strict=True):
        if kind != kinds[-1]:
            raise DataError(f"{file}: {kind}; expected {kinds[-1]}, as {models[-1]}")
    return sorted(rows, key=lambda row: (row["scenes"], row["patches"], row["steps"]))


def without_folders(command: str) -> str:
    """A command line with the last part of each absolute path: where it ran is nobody's concern."""
    return shlex.join(_last(word) for word in shlex.split(command))


def _last(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return option + equals + pathlib.PurePath(value).name if value.startswith("/") else word


def _prepare_command(data: inputs.Data) -> str:
    """The kerass2.prepare that made a data set, as far as its manifest tells."""
    facts = data.provenance
    if "sources" not in facts:
        return ""
    words = ["python", "-m", "kerass2.prepare", *map(_last, map(str, facts["sources"]))]
    words += ["-o", data.path.name, "--task", data.open("train").spec.task]
    for name in ("patch_size", "stride", "split"):
        if facts.get(name) is not None:
            words += ["--" + name.replace("_", "-"), str(facts[name])]
    return shlex.join(words)


def describe_machine() -> str:
    """Cores and processor of this machine."""
    from data_pipelines import workers

    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = "CPU"
    return f"{workers.num_cores()} cores, {name}"
