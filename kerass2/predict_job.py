"""What a command line of kerass2.predict asks for, checked before ranks start; and its granules."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from data_pipelines.spec import DataError
from kerass2 import messages, shipped

if TYPE_CHECKING:
    from data_pipelines.granule import Granule
    from data_pipelines.windows import Window
    from kerass2.methods import Method
    from kerass2.networks import Network
    from kerass2.outputs import Advance, Target
    from strategies.base import Strategy

TASKS = {"superres_20m": 20, "superres_60m": 60}
# Counts up when the same model gives other pixels: windows made before are not gone on with.
PIXELS = 2
LABEL_FORMATS = ("CSV", "GeoJSON", "GeoParquet")
SUFFIXES = {".tif": ("COG", "GTiff"), ".tiff": ("COG", "GTiff"), ".zarr": ("Zarr",)}


@dataclasses.dataclass(frozen=True)
class Job:
    """Predictions to make."""

    models: tuple[Method, ...]
    """Those that sharpen; none: bicubic interpolation."""
    tasks: tuple[str, ...]
    """What is sharpened: of the models, or by interpolation."""
    sources: tuple[pathlib.Path, ...]
    """Granules."""
    messages: tuple[str, ...]
    """What to say of the sources."""
    targets: tuple[Target, ...]
    """The output of each."""
    options: dict[str, Any]
    """The other options of the command."""

    def open(self) -> Callable[[int, Strategy, Any], str]:
        """Load the models; gives the function that makes the output of one granule.

        That takes the granule's number, the strategy and the function that begins a progress bar,
        and returns what to say; every rank calls it. It raises DataError for what concerns this
        granule only.
        """
        from kerass2 import methods, networks

        if not self.models:
            found = [networks.build_bicubic(task) for task in self.tasks]
        else:
            found = [
                networks.build_network(
                    methods.load(method),
                    procedure=self.options["procedure"],
                    precision=self.options["precision"],
                    window=self.options["window"],
                    border=self.options["border"],
                )
                for method in self.models
            ]
        return functools.partial(_run, self, found)

    @property
    def identity(self) -> dict[str, Any]:
        """All that pixels depend on but the granule: JSON types."""
        names = ("procedure", "precision", "window", "border")
        files = [method.file for method in self.models]
        models = {str(path): f"{zlib.crc32(path.read_bytes()):08x}" for path in files}
        chosen = {name: self.options[name] for name in names}
        return {"models": models or "bicubic", "pixels": PIXELS, **chosen}


def check(arguments: Sequence[pathlib.Path], **options: Any) -> Job:
    """Everything that can be wrong with models and outputs, found before ranks start.

    Args:
        arguments: model and inputs; without a model, or with option bicubic, inputs only.
        **options: of kerass2.predict: output, model_60m, bands, roi, roi_lonlat, geojson, kind,
            procedure, precision, bicubic, stac, preview, resume, overwrite, window, border.

    Raises:
        DataError: a model or band that does not fit, or an output that is in the way.
        click.UsageError: options that contradict each other.
    """
    from data_pipelines import sample, sentinel2
    from kerass2 import sharpen

    chosen = [name for name in ("roi", "roi_lonlat", "geojson") if options[name] is not None]
    if len(chosen) > 1:
        raise click.UsageError(f"{', '.join(map(dashed, chosen))}: choose one")
    foreign = [name for name in ("stride", "threshold") if options.get(name) is not None]
    if foreign or options["kind"] in LABEL_FORMATS:
        given = [*map(dashed, foreign), *([options["kind"]] if not foreign else [])]
        raise click.UsageError(f"{', '.join(given)}: for a model that gives labels")
    if options["border"] is not None and options["procedure"] != "dsen2":
        raise click.UsageError("--border is of --procedure dsen2")
    wanted = None if options["bands"] is None else tuple(options["bands"].split(","))
    models, tasks, sources = _find_models(arguments, wanted, options)
    given = [band for task in tasks for band in sentinel2.bands_at(TASKS[task])]
    sharpen.choose_bands(given, wanted)
    resolved = [sample.resolve_granule(source) for source in sources]
    paths = tuple(path for path, _ in resolved)
    messages = tuple(dict.fromkeys(message for _, message in resolved if message))
    messages += shipped.say_which([method.file for method in models])
    targets = find_targets(paths, options, SUFFIXES)
    keep_inputs(targets, (*paths, *(method.file for method in models)))
    paths, targets, said = leave_out_done(paths, targets, options)
    messages += said
    for target in targets:
        target.check(overwrite=options["overwrite"])
    return Job(models, tasks, paths, messages, targets, {**options, "bands": wanted})


def keep_inputs(targets: Sequence[Target], given: Sequence[pathlib.Path]) -> None:
    """Refuse an output that is an input, whatever --overwrite says: a STAC item is a .json too."""
    there = {path.resolve() for path in given}
    for target in targets:
        for path in target.paths:
            if path.resolve() in there:
                raise DataError(f"{path}: is an input; expected another name for the output")


def leave_out_done(
    paths: tuple[pathlib.Path, ...], targets: tuple[Target, ...], options: Mapping[str, Any]
) -> tuple[tuple[pathlib.Path, ...], tuple[Target, ...], tuple[str, ...]]:
    """(sources, outputs, what to say): with --resume, of several, those that are left to do."""
    if not options["resume"] or len(targets) < 2:
        return paths, targets, ()
    left = [n for n, target in enumerate(targets) if not target.is_done()]
    said = tuple(f"{t.path}: already there" for t in targets if t.is_done())
    return tuple(paths[n] for n in left), tuple(targets[n] for n in left), said


def dashed(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def _find_models(
    arguments: Sequence[pathlib.Path], bands: Sequence[str] | None, options: dict[str, Any]
) -> tuple[tuple[Method, ...], tuple[str, ...], Sequence[pathlib.Path]]:
    """(models, what is sharpened, inputs) of a command line."""
    from kerass2 import methods

    second = options["model_60m"]
    if options["bicubic"]:
        if second is not None:
            raise click.UsageError("--bicubic takes no model")
        return (), shipped.find_tasks(bands), arguments
    given, sources = shipped.complete(arguments, shipped.find_tasks(bands), second)
    if not sources:
        raise click.UsageError(f"{given[0]}: expected an INPUT behind the model")
    models = tuple(map(methods.find, given))
    _check_tasks(models)
    return models, tuple(model.task for model in models), sources


def _check_tasks(models: Sequence[Method]) -> None:
    """Refuse models that sharpen nothing, or not what their place on the command line says.

    Raises:
        DataError: names the model, its task and what is expected.
    """
    for model in models:
        if model.task not in TASKS:
            raise DataError(
                f"{model.file}: task {model.task}; expected a model for {' or '.join(TASKS)}"
            )
    if len(models) == 1:
        return
    for model, place, expected in zip(models, ("MODEL", "--model-60m"), TASKS, strict=True):
        if model.task != expected:
            raise DataError(
                f"{model.file}: a model for {model.task}; {place} has to be one for {expected}"
            )


def find_targets(
    sources: Sequence[pathlib.Path],
    options: Mapping[str, Any],
    suffixes: Mapping[str, Sequence[str]],
) -> tuple[Target, ...]:
    """The output of each source.

    Args:
        sources: the inputs.
        options: output, kind, stac, preview.
        suffixes: suffix of a file -> formats that it may have, the default first; of several inputs
            the first one.

    Raises:
        DataError: a name or folder that does not fit, or two outputs of one name.
    """
    from kerass2.outputs import Target

    output, kind = options["output"], options["kind"]
    beside = options["stac"], options["preview"]
    # The first suffix of each format.
    endings = {kind: suffix for suffix, kinds in reversed(list(suffixes.items())) for kind in kinds}
    if kind is not None and kind not in endings:
        raise DataError(f"--format {kind}: of such outputs there are {', '.join(endings)}")
    if len(sources) == 1:
        allowed = suffixes.get(output.suffix.lower())
        if allowed is None:
            there = " or ".join(dict.fromkeys(reversed(endings.values())))
            raise DataError(f"{output}: expected a name that ends in {there}")
        if kind is not None and kind not in allowed:
            raise DataError(f"{output}: expected a name that ends in {endings[kind]} ({kind})")
        return (Target(output, kind or allowed[0], *beside),)
    if output.suffix.lower() in suffixes and not output.is_dir():
        raise DataError(f"{output}: {len(sources)} inputs; expected the name of a folder")
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be made: {error.strerror or error}") from error
    kind = kind or next(iter(suffixes.values()))[0]
    names = [re.sub(r"\.(SAFE|SAFE\.zip|zip|npz|json)$", "", path.name) for path in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"several inputs are named {', '.join(twice)}: sharpen them one by one")
    return tuple(Target(output / f"{name}{endings[kind]}", kind, *beside) for name in names)


def _run(job: Job, networks: list[Network], number: int, strategy: Strategy, begin: Any) -> str:
    """Make the output of one granule."""
    from data_pipelines import partial
    from kerass2 import outputs, sharpen

    source, target, options = job.sources[number], job.targets[number], job.options
    with outputs.together(strategy, f"{source}: another rank could not read it"):
        plan = _plan(job, networks, source, say=strategy.is_chief)
    identity = {
        **job.identity,
        "bands": list(plan.bands),
        "roi": list(dataclasses.astuple(plan.roi)),
        "core": plan.core,
        partial.STAMPS: {str(source): partial.stamp(str(source))},
    }
    advance: Advance = begin(plan.granule.name, len(plan.regions))
    seconds = outputs.write_output(
        plan,
        target,
        strategy,
        identity=identity,
        overwrite=options["overwrite"],
        resume=options["resume"],
        advance=advance,
    )
    size = f"{plan.roi.height} x {plan.roi.width} px of 10 m"
    spent = f"{seconds[0]:.1f} s for windows, {seconds[1]:.1f} s for the output"
    spent += sharpen.describe_work(plan)
    return f"wrote {target.path}: {size}, {len(plan.bands)} bands, {plan.granule.name}; {spent}"


def _plan(job: Job, networks: list[Network], source: pathlib.Path, *, say: bool) -> Any:
    """Open a granule and say what there is to say about it."""
    from data_pipelines.granule import open_granule
    from kerass2 import meaning, sharpen

    granule = open_granule(source)
    options = job.options
    if say and granule.synthetic:
        click.echo("THE INPUT IS SYNTHETIC (MADE UP, NOT MEASURED), SO IS THE OUTPUT", err=True)
    place = meaning.georeference(granule)
    if say and place["crs"] is None:
        messages.warn(f"{source} has no CRS, so the output will have none")
    if say:
        for text in warn_of_levels(job.models, granule, source):
            messages.warn(text)
    with warnings.catch_warnings(action="default" if say else "ignore"):
        roi = find_roi(granule, options, place)
    core = options["window"] if options["procedure"] == "lattice" else None
    return sharpen.build_plan(granule, networks, bands=options["bands"], roi=roi, core=core)


def find_roi(granule: Granule, options: Mapping[str, Any], place: dict[str, Any]) -> Window | None:
    """The region that the options name."""
    from data_pipelines import roi

    if options["roi"] is not None:
        return roi.from_pixels(granule.name, options["roi"], granule.shape)
    if options["roi_lonlat"] is not None:
        return roi.from_lonlat(granule.name, options["roi_lonlat"], granule.shape, **place)
    if options["geojson"] is not None:
        return roi.from_geojson(granule.name, options["geojson"], granule.shape, **place)
    return None


def warn_of_levels(
    models: Sequence[Method], granule: Granule, source: pathlib.Path
) -> Iterator[str]:
    """What to say of models that were trained on products of another level."""
    from kerass2 import methods

    level = granule.facts.get("level")
    levels = [str(level)] if level else methods.find_levels([granule.name, source.name])
    for model in models:
        if text := methods.warn_of_level(model, levels, f"{source} is"):
            yield text
