"""BigEarthNet in its three layouts."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from data_pipelines import bigearthnet, granule, sentinel2, synthetic
from data_pipelines.spec import DataError

V2 = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (V2, ("S2A_MSIL2A_20170613T101031_N9999_R022", "33UUP", (57, 26))),
        ("S2A_MSIL2A_20170613T101031_87_48", ("S2A_MSIL2A_20170613T101031", None, (48, 87))),
        ("S2B_MSIL2A_20180204T94161_57_38", ("S2B_MSIL2A_20180204T94161", None, (38, 57))),
    ],
)
def test_names_hold_product_tile_and_column_and_row(
    name: str, expected: tuple[object, ...]
) -> None:
    assert bigearthnet.parse_name(name) == expected


@pytest.mark.parametrize("name", ["S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_40", "x", V2[:-6]])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="not a BigEarthNet patch name"):
        bigearthnet.parse_name(name)


def test_folders_of_the_true_layout(tmp_path: pathlib.Path) -> None:
    folders = synthetic.write_bigearthnet(tmp_path, [(0, 0), (0, 1)], seed=2)
    cubes = synthetic.build_cubes(240, seed=2)
    found = list(granule.open_granules(tmp_path))
    assert [g.name for g in found] == [folder.name for folder in folders]
    assert {g.place for g in found} == {"T32UMC"}
    first, second = found
    assert second.origin == (first.origin[0], first.origin[1] + 120)  # type: ignore[index]
    for name, cube in second.cubes.items():
        n = 1200 // sentinel2.GSDS[name]
        np.testing.assert_array_equal(cube.values, cubes[name][:, :n, n : 2 * n])
        assert cube.attrs["crs"] == synthetic.CRS
    (one,) = granule.open_granules(folders[1])
    assert one.name == second.name


def test_bad_folders_are_named(tmp_path: pathlib.Path) -> None:
    (folder,) = synthetic.write_bigearthnet(tmp_path, [(0, 0)])
    small = folder / f"{folder.name}_B05.tif"
    small.write_bytes((folder / f"{folder.name}_B01.tif").read_bytes())
    (found,) = granule.open_granules(folder)
    with pytest.raises(DataError, match=r"B05 is uint16 \(20, 20\); expected uint16 \(60, 60\)"):
        found.cubes["gsd20"].compute(scheduler="synchronous")
    small.unlink()
    with pytest.raises(DataError, match=f"{folder.name}: no band B05; found .*B01.tif"):
        list(granule.open_granules(folder))


def write_lmdb(folder: pathlib.Path, values: dict[str, bytes]) -> pathlib.Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as t:
        for name, value in values.items():
            t.put(name.encode(), value)
    return folder


def lmdb_value(without: str = "") -> bytes:
    save = pytest.importorskip("safetensors.numpy").save
    sizes = {10: 120, 20: 60, 60: 20}
    bands = {
        name: np.full((sizes[sentinel2.BANDS[name].gsd],) * 2, i + 1, np.uint16)
        for i, name in enumerate(bigearthnet.BANDS)
        if name != without
    }
    return bytes(save(bands))


def test_lmdb(tmp_path: pathlib.Path) -> None:
    radar = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_40"
    other = V2.replace("26_57", "27_57")
    path = write_lmdb(tmp_path / "db", {V2: lmdb_value(), other: lmdb_value(), radar: b"x"})
    first, second = granule.open_granules(path)
    assert (first.name, first.place, first.plane) == (V2, "T33UUP", "T33UUP")
    assert (first.origin, second.origin) == ((57 * 120, 26 * 120), (57 * 120, 27 * 120))
    for cube in first.cubes.values():
        for band in cube.band.values:
            assert (cube.sel(band=band) == bigearthnet.BANDS.index(str(band)) + 1).all()
    assert [g.name for g in bigearthnet.open_lmdb(path, exclude={V2})] == [other]


def test_bad_lmdbs_are_named_and_never_unpickled(tmp_path: pathlib.Path) -> None:
    path = write_lmdb(tmp_path / "pickle", {V2: b"cos\nsystem\n(S'false'\ntR."})
    (found,) = granule.open_granules(path)
    with pytest.raises(DataError, match=f"{V2}: not readable as safetensors"):
        found.cubes["gsd10"].compute(scheduler="synchronous")
    path = write_lmdb(tmp_path / "band", {V2: lmdb_value(without="B03")})
    (found,) = granule.open_granules(path)
    with pytest.raises(DataError, match=f"{V2}: no band B03; found B01"):
        found.cubes["gsd10"].compute(scheduler="synchronous")
    with pytest.raises(DataError, match="no Sentinel-2 patch"):
        list(granule.open_granules(write_lmdb(tmp_path / "radar", {"S1": b"x"})))
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "data.mdb").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="rubbish: not readable as LMDB"):
        list(granule.open_granules(tmp_path / "rubbish"))


def test_exclusions(tmp_path: pathlib.Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"patch_id": ["a", "b"]}), tmp_path / "a.parquet")
    assert bigearthnet.read_exclusions(tmp_path / "a.parquet") == {"a", "b"}
    parquet.write_table(pyarrow.table({"other": ["a"]}), tmp_path / "b.parquet")
    for name in ("b", "missing"):
        with pytest.raises(
            DataError, match=rf"{name}.parquet: not readable as BigEarthNet metadata"
        ):
            bigearthnet.read_exclusions(tmp_path / f"{name}.parquet")


@pytest.mark.shared_data
def test_numbers_in_real_names_are_column_and_row(shared_data: pathlib.Path) -> None:
    corner = (30_000, -540_000)  # of tile T33UUP in its zone [px of 10 m]
    folders = ("v1_BigEarthNet-S2-Example", "v2_configilm")
    granules = [g for f in folders for g in granule.open_granules(shared_data / "bigearthnet" / f)]
    known = [g for g in granules if g.place == "T33UUP" and g.plane == "EPSG:32633"]
    assert len(known) > 10
    for g in known:
        row, column = bigearthnet.parse_name(g.name)[2]
        assert g.origin == (corner[1] + row * 120, corner[0] + column * 120)


@pytest.mark.shared_data
def test_real_v1_patches_know_their_tile(shared_data: pathlib.Path) -> None:
    path = shared_data / "bigearthnet" / "v1_BigEarthNet-S2-Example"
    found = list(granule.open_granules(path))
    assert len(found) == 6
    tiles = [
        json.loads(next(folder.glob("*.json")).read_text())["tile_source"].split("_")[5]
        for folder in sorted(path.iterdir())
    ]
    assert [g.place for g in found] == tiles
    assert all((cube > 0).any() for cube in found[0].cubes.values())


@pytest.mark.shared_data
def test_real_v1_patches_without_tile_have_no_position(shared_data: pathlib.Path) -> None:
    found = list(granule.open_granules(shared_data / "bigearthnet" / "v1_configilm"))
    assert len(found) == 30
    assert all(g.origin is None and g.place == g.scene for g in found)
