"""xarray.open_datatree(path, engine="kerass2")."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray

from data_pipelines import safe_jp2, sentinel2, synthetic
from data_pipelines import synthetic_product as products
from data_pipelines.spec import DataError
from data_pipelines.xarray_backend import Kerass2Backend

EDGE = 120
# rioxarray 0.19 multiplies transforms the way that affine 3 is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


@pytest.fixture(scope="module")
def cubes() -> dict[str, np.ndarray]:
    found = synthetic.build_cubes(EDGE, seed=1)
    for cube in found.values():
        cube[:, 0, 0], cube[:, 1, 1] = sentinel2.NO_DATA, sentinel2.SATURATED
    return found


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory, cubes: dict[str, np.ndarray]) -> pathlib.Path:
    return products.write_product(
        tmp_path_factory.mktemp("xarray"), cubes, level="L2A", baseline="04.00"
    )


def open_tree(path: pathlib.Path, **options: object) -> xarray.DataTree:
    return xarray.open_datatree(path, engine=Kerass2Backend, **options)


def test_a_node_a_gsd_a_variable_a_band(
    product: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    tree = open_tree(product)
    assert set(tree.children) == {"gsd10", "gsd20", "gsd60"}
    assert tree.attrs["level"] == "L2A" and tree.attrs["tile"] == "T32UMC"
    for name, gsd in sentinel2.GSDS.items():
        node = tree[name]
        masks = {"scl", "cloud"} if gsd == 20 else set()
        assert set(node.data_vars) == {*sentinel2.bands_at(gsd), *masks}
        for index, band in enumerate(sentinel2.bands_at(gsd)):
            variable = node[band]
            assert variable.dtype == np.uint16 and variable.dims == ("y", "x")
            assert (variable.attrs["offset"], variable.attrs["quantification"]) == (-1000, 10_000)
            stored = products.to_stored(cubes[name][index], -1000)
            np.testing.assert_array_equal(variable, stored)
            np.testing.assert_array_equal(variable[3:5, ::7], stored[3:5, ::7])


def test_places_are_as_rioxarray_reads_them(product: pathlib.Path) -> None:
    tree = open_tree(product)
    x, y = synthetic.CORNER
    for name, gsd in sentinel2.GSDS.items():
        node = tree[name].to_dataset()
        assert node.rio.crs.to_epsg() == 32632
        assert tuple(node.rio.transform())[:6] == (gsd, 0, x, 0, -gsd, y)
        band = node[sentinel2.bands_at(gsd)[0]]
        assert band.rio.crs.to_epsg() == 32632 and band.rio.nodata == 0
        assert float(node.x[0]) == x + gsd / 2 and float(node.y[0]) == y - gsd / 2
    # By place, across GSDs.
    spot = {"x": x + 615, "y": y - 615, "method": "nearest"}
    fine, coarse = tree["gsd10"]["B02"].sel(**spot), tree["gsd60"]["B01"].sel(**spot)
    assert (float(fine.x), float(coarse.x)) == (x + 615, x + 630)


def test_pixels_are_read_when_asked_for(
    product: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("pixels were read")

    with monkeypatch.context() as patch:
        patch.setattr(safe_jp2, "read_pixels", fail)
        tree = open_tree(product)
        chunked = open_tree(product, chunks={})
        node = xarray.open_dataset(product, engine=Kerass2Backend, group="gsd20", chunks={})
        assert node["B05"].mean().shape == ()
    assert chunked["gsd20"]["B05"].chunks is not None and tree["gsd20"]["B05"].chunks is None
    np.testing.assert_array_equal(chunked["gsd20"]["B05"], tree["gsd20"]["B05"])


def test_reflectance_where_it_is_known(product: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    node = xarray.open_dataset(product, engine=Kerass2Backend, mask_and_scale=True)
    assert set(node.data_vars) == set(sentinel2.bands_at(10))
    expected = cubes["gsd10"][0].astype(np.float32) / 10_000
    expected[0, 0] = expected[1, 1] = np.nan
    assert node["B02"].dtype == np.float32 and node["B02"].attrs["units"] == "1"
    np.testing.assert_allclose(node["B02"], expected, rtol=1e-6)
    chunked = xarray.open_dataset(product, engine=Kerass2Backend, mask_and_scale=True, chunks={})
    np.testing.assert_array_equal(chunked["B02"], node["B02"])


def test_what_there_is_to_choose(product: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tree = open_tree(product, drop_variables=["B05", "cloud"])
    assert "B05" not in tree["gsd20"].data_vars and "scl" in tree["gsd20"].data_vars
    tree = open_tree(product, bands=["B03", "B8A"], drop_variables="scl")
    assert set(tree["gsd20"].data_vars) == {"B8A", "cloud"} and "gsd60" not in tree.children
    assert set(xarray.open_groups(product, engine=Kerass2Backend)) == {
        "/", "/gsd10", "/gsd20", "/gsd60",
    }  # fmt: skip
    node = xarray.open_dataset(product, engine=Kerass2Backend, group="/gsd60")
    assert node.attrs["tile"] == "T32UMC" and node.attrs["gsd"] == 60
    with pytest.raises(DataError, match="group 'gsd30'; it has /gsd10, /gsd20, /gsd60"):
        xarray.open_dataset(product, engine=Kerass2Backend, group="gsd30")
    with pytest.raises(DataError, match="L2A has no band B10"):
        open_tree(product, bands=["B10"])
    with pytest.raises(DataError, match="nowhere: not found"):
        open_tree(tmp_path / "nowhere")


def test_several_tiles_have_nodes_of_their_own(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    other = products.Tile(cubes, "T33UUB", 32633, (399_960.0, 5_600_040.0))
    path = products.write_product(tmp_path, cubes, compact=False, more_tiles=[other])
    tree = open_tree(path)
    assert set(tree.children) == {"T32UMC", "T33UUB"}
    assert tree["T33UUB/gsd10"].to_dataset().rio.crs.to_epsg() == 32633
    assert tree["T33UUB"].attrs["tile"] == "T33UUB"
    assert set(open_tree(path, tile="T33UUB").children) == {"gsd10", "gsd20", "gsd60"}
    node = xarray.open_dataset(path, engine=Kerass2Backend, group="T32UMC/gsd20")
    assert node.attrs["tile"] == "T32UMC"
    with pytest.raises(DataError, match="tile 'T31TCJ'; it has T32UMC, T33UUB"):
        open_tree(path, tile="T31TCJ")
    with pytest.raises(DataError, match="group None; it has /T32UMC/gsd10"):
        xarray.open_dataset(path, engine=Kerass2Backend)


def test_other_kinds_open_too(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    from data_pipelines import geotiff

    geotiff.write_folder(tmp_path, cubes, crs=None, corner=synthetic.CORNER)
    tree = open_tree(tmp_path)
    np.testing.assert_array_equal(tree["gsd10"]["B04"], cubes["gsd10"][2])
    assert "x" not in tree["gsd10"].coords


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("S2A_X.SAFE", True),
        ("a.SAFE.zip", True),
        ("MTD_MSIL2A.xml", True),
        ("S2A_OPER_MTD_SAFL1C_PDMC_20150818T101237.xml", True),
        ("a.zip", False),
        ("a.nc", False),
        ("MTD_TL.xml", False),
    ],
)
def test_names_that_xarray_may_guess(name: str, can: bool) -> None:
    assert Kerass2Backend().guess_can_open(name) is can
    assert Kerass2Backend().guess_can_open(pathlib.Path(name)) is can
    assert Kerass2Backend().guess_can_open(b"bytes") is False


def test_it_can_be_written_and_read_again(product: pathlib.Path, tmp_path: pathlib.Path) -> None:
    node = xarray.open_dataset(product, engine=Kerass2Backend, group="gsd60")
    node.chunk(x=7).to_zarr(tmp_path / "a.zarr", consolidated=False)
    with xarray.open_zarr(tmp_path / "a.zarr", consolidated=False, decode_coords="all") as again:
        np.testing.assert_array_equal(again["B01"], node["B01"])
        assert again.rio.crs.to_epsg() == 32632 and again["B01"].attrs["offset"] == -1000
