"""Which bands of a granule come from which network, and the DN of a region of them."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import meaning, tiling
from kerass2.networks import Network, predict_region

if TYPE_CHECKING:
    import xarray

    from data_pipelines.granule import Granule

# Edge of a region [px of 10 m], about. Larger ones spend less on overlap and more memory: full-size
# networks hold about 2 kB a pixel.
REGION = 512
# One window at a time, whatever threads ask: a network uses all cores by itself.
_COMPUTING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is made of a granule."""

    granule: Granule
    networks: tuple[Network, ...]
    """Those that are needed for `bands`."""
    bands: tuple[str, ...]
    """Of the output, in spectral order."""
    roi: Window
    """The part that is made [px of 10 m]."""
    core: int
    """Edge of a region [px of 10 m]; a multiple of every network's step."""

    @property
    def cubes(self) -> dict[str, xarray.DataArray]:
        """The cubes that are read."""
        names = {name for network in self.networks for name in network.inputs}
        names |= {name for name in self.granule.cubes if _has(self.granule, name, self.copied)}
        return {name: cube for name, cube in self.granule.cubes.items() if name in names}

    @property
    def copied(self) -> tuple[str, ...]:
        """Bands of 10 m, which are copied as they are."""
        made = {band for network in self.networks for band in network.bands}
        return tuple(band for band in self.bands if band not in made)

    @property
    def regions(self) -> list[Window]:
        """Squares that fill the ROI, row by row."""
        return tiling.list_regions(self.roi, self.core)


def _has(granule: Granule, name: str, bands: Sequence[str]) -> bool:
    return bool(set(map(str, granule.cubes[name].band.values)) & set(bands))


def build_plan(
    granule: Granule,
    networks: Sequence[Network],
    *,
    bands: Sequence[str] | None = None,
    roi: Window | None = None,
    core: int | None = None,
) -> Plan:
    """What is made of a granule by networks.

    Args:
        granule: see data_pipelines.granule.open_granule.
        networks: one for the 20 m bands, one for the 60 m bands, or both.
        bands: names; None: those that the networks give; ("all",): the 10 m bands, too.
        roi: the part to make [px of 10 m]; None: all.
        core: edge of a region [px of 10 m], rounded to what the networks' lattices allow.

    Raises:
        DataError: a band that nothing gives, a granule that a network cannot take, or an ROI that
            is smaller than what the networks see around a pixel.
    """
    given = [band for network in networks for band in network.bands]
    twice = sorted({band for band in given if given.count(band) > 1})
    if twice:
        raise DataError(f"two models give {','.join(twice)}; expected one for each band")
    wanted = choose_bands(given, bands)
    used = tuple(n for n in networks if set(n.bands) & set(wanted))
    for network in used:
        check_granule(network, granule)
    plain = [band for band in wanted if band not in given]
    if plain and not _has(granule, "gsd10", plain):
        raise DataError(f"{granule.name}: has no band {','.join(plain)}")
    shape = (
        tiling.granule_shape(
            granule.cubes, {name: ratio for n in used for name, ratio in n.ratios.items()}
        )
        if used
        else granule.shape
    )
    whole = Window(0, 0, *shape)
    roi = roi or whole
    least = 2 * max((n.radius for n in used), default=0) + 1
    if roi != whole and min(roi.height, roi.width) < least:
        raise DataError(
            f"{granule.name}: ROI of {roi.height} x {roi.width} px of 10 m; expected at least "
            f"{least} px, which the model sees around a pixel"
        )
    step = math.lcm(*(n.step for n in used)) if used else 1
    core = max((core or REGION) // step, 1) * step
    return Plan(granule, used, wanted, roi, core)


def choose_bands(given: Sequence[str], bands: Sequence[str] | None) -> tuple[str, ...]:
    """Bands in spectral order.

    Raises:
        DataError: a band that is none, or that no model gives.
    """
    wanted = given if bands is None else bands
    if bands is not None and "all" in bands:
        if len(bands) > 1:
            raise DataError(f"--bands {','.join(bands)}: expected all, or names of bands")
        wanted = [*sentinel2.BANDS_10M, *given]
    unknown = [band for band in wanted if band not in sentinel2.BANDS]
    if unknown:
        names = ",".join(sentinel2.BANDS)
        raise DataError(f"unknown band {','.join(unknown)}; expected all, or some of {names}")
    for band in wanted:
        if band not in given and band not in sentinel2.BANDS_10M:
            gsd = sentinel2.BANDS[band].gsd
            hint = "no model does" if band == "B10" else f"that takes a model for {gsd} m bands"
            raise DataError(f"band {band}: the model gives {','.join(given)}; {hint}")
    return tuple(band for band in sentinel2.BANDS if band in wanted)


def check_granule(network: Network, granule: Granule) -> None:
    """Refuse a granule without the cubes and bands, in the order, that a network takes.

    Raises:
        DataError: what the network takes and what the granule has.
    """
    found = {name: tuple(map(str, cube.band.values)) for name, cube in granule.cubes.items()}
    if any(found.get(name) != tuple(bands) for name, bands in network.inputs.items()):
        takes, has = (
            "; ".join(f"{name} {','.join(bands)}" for name, bands in table.items())
            for table in (network.inputs, found)
        )
        raise DataError(f"{granule.name}: has {has}; model {network.name} takes {takes}")
    tiling.granule_shape(granule.cubes, network.ratios)


def make_regions(
    plan: Plan, regions: Sequence[Window] | None = None
) -> Iterator[tuple[Window, NDArray[np.uint16]]]:
    """Regions and their DN (band, y, x), top to bottom.

    Threads of their own read a row of regions ahead, bring the next region's pixels into form and
    call the networks, while the caller works on the DN of the one before. Memory holds the chunks
    that two rows of regions see, one window, and pixels of three regions.

    Args:
        plan: what is made.
        regions: some of plan.regions, in that order; None: all.

    Raises:
        DataError: a model gives NaN or Inf, or pixels cannot be read.
    """
    cubes = plan.cubes
    regions = plan.regions if regions is None else regions

    def prepared() -> Iterator[_Region]:
        read = tiling.read_strips(cubes, plan.networks, regions, plan.granule.shape)
        return (_prepare(plan, cubes, strips, region) for region, strips in read)

    computed = (_compute(plan, work) for work in tiling.ahead(prepared()))
    for work in tiling.ahead(computed):
        yield work.region, finish_region(plan, cubes, work)


def make_region(
    plan: Plan, cubes: dict[str, xarray.DataArray], strips: tiling.Strips, region: Window
) -> NDArray[np.uint16]:
    """DN (band, y, x) of a region, of pixels that are in memory."""
    return finish_region(plan, cubes, _compute(plan, _prepare(plan, cubes, strips, region)))


@dataclasses.dataclass(frozen=True)
class _Task:
    """What one network does for a region."""

    network: Network
    empty: NDArray[np.bool_]
    """(y, x): where a band that the network reads has no data."""
    saturated: NDArray[np.bool_]
    """(band, y, x): where a band that it gives is saturated."""
    union: Window
    """The window around all that the network reads."""
    given: Mapping[str, NDArray[np.float32]] | None
    """{input: (y, x, band) reflectance} of `union`; None where no pixel is to be made."""
    made: NDArray[np.float32] | None = None
    """(y, x, band) reflectance of the region, once it is computed."""


@dataclasses.dataclass(frozen=True)
class _Region:
    """A region on its way."""

    region: Window
    out: NDArray[np.uint16]
    """DN (band, y, x), with the bands that are copied."""
    tasks: tuple[_Task, ...]


def _prepare(
    plan: Plan, cubes: dict[str, xarray.DataArray], strips: tiling.Strips, region: Window
) -> _Region:
    """Cut out what a region needs."""
    out = np.zeros((len(plan.bands), region.height, region.width), np.uint16)
    for band in plan.copied:
        name = f"gsd{sentinel2.BANDS[band].gsd}"
        names = list(map(str, cubes[name].band.values))
        out[plan.bands.index(band)] = strips.cut(name, region)[names.index(band)]
    tasks = tuple(_task(plan, network, cubes, strips, region) for network in plan.networks)
    return _Region(region, out, tasks)


def _task(
    plan: Plan,
    network: Network,
    cubes: dict[str, xarray.DataArray],
    strips: tiling.Strips,
    region: Window,
) -> _Task:
    """A network's input; where no pixel has data in all of its bands nothing will be computed.

    A pixel has no data where any band that the network reads has none at that place. Its neighbours
    keep their values, for which the network sees the gap filled, see gaps.fill.
    """
    empty, saturated = _special_pixels(network, strips, region)
    union = tiling.reading_window([network], region, plan.granule.shape)
    taken = {name: cubes[name] for name in network.inputs}
    given = None if empty.all() else tiling.read_region(taken, strips, union)
    return _Task(network, empty, saturated, union, given)


def _compute(plan: Plan, work: _Region) -> _Region:
    """Call the networks."""
    tasks = []
    for task in work.tasks:
        if task.given is not None:
            pieces = task.network.place(work.region, plan.granule.shape)
            with _COMPUTING:
                made = predict_region(task.network, task.given, task.union, pieces, work.region)
            task = dataclasses.replace(task, given=None, made=made)
        tasks.append(task)
    return dataclasses.replace(work, tasks=tuple(tasks))


def finish_region(
    plan: Plan, cubes: dict[str, xarray.DataArray], work: _Region
) -> NDArray[np.uint16]:
    """DN (band, y, x) of a region."""
    for task in work.tasks:
        if task.made is None:
            continue
        network, region = task.network, work.region
        if not np.isfinite(task.made).all():
            raise DataError(
                f"model {network.name} gives NaN or Inf in rows {region.y} to "
                f"{region.y + region.height}: is it trained?"
            )
        units = meaning.dn_meaning(cubes[network.lowres])
        dn = meaning.to_dn(task.made.transpose(2, 0, 1), **units)
        dn[task.saturated] = sentinel2.SATURATED
        dn[:, task.empty] = sentinel2.NO_DATA
        for index, band in enumerate(network.bands):
            if band in plan.bands:
                work.out[plan.bands.index(band)] = dn[index]
    return work.out


def _special_pixels(
    network: Network, strips: tiling.Strips, region: Window
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels of the target in a region: (y, x) without data in any band that the network reads.

    And (band, y, x) saturated, of the bands that it gives.
    """
    empty = np.zeros((region.height, region.width), bool)
    for name, ratio in network.ratios.items():
        grown = _on_grid(region, ratio)
        dn = strips.cut(name, grown.coarser(ratio))
        y, x = region.y - grown.y, region.x - grown.x
        inside = (..., slice(y, y + region.height), slice(x, x + region.width))
        empty |= _enlarge((dn == sentinel2.NO_DATA).any(axis=0), ratio)[inside]
        if name == network.lowres:
            saturated = _enlarge(dn == sentinel2.SATURATED, ratio)[inside]
    return empty, saturated


def _enlarge(flags: NDArray[np.bool_], ratio: int) -> NDArray[np.bool_]:
    """(..., y, x) on a grid `ratio` times finer."""
    return flags.repeat(ratio, axis=-2).repeat(ratio, axis=-1)


def _on_grid(window: Window, ratio: int) -> Window:
    """The window grown to whole pixels of a grid whose pixels are `ratio` times larger."""
    y, x = window.y // ratio * ratio, window.x // ratio * ratio
    height = -(-(window.y + window.height) // ratio) * ratio - y
    return Window(y, x, height, -(-(window.x + window.width) // ratio) * ratio - x)


def count_work(plan: Plan) -> tuple[float, float]:
    """FLOP that a plan takes with its overlap, and without; 0 where they are not counted."""
    total = inside = 0.0
    for network in plan.networks:
        for region in plan.regions:
            for piece in network.place(region, plan.granule.shape):
                total += network.flops(piece.out.height, piece.out.width)
        inside += network.flops_inside * plan.roi.height * plan.roi.width
    return total, inside


def describe_work(plan: Plan) -> str:
    """The arithmetic that a plan takes, and how much of it is overlap; empty where not counted."""
    total, inside = count_work(plan)
    if not inside:
        return ""
    return f"; {total / 1e12:.3g} TFLOP, {1 - inside / total:.1%} of them overlap"
