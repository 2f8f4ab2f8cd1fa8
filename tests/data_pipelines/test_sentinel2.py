"""The band table and DN <-> reflectance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import sentinel2
from data_pipelines.spec import DataError


def test_storage_order_covers_all_bands_but_b10_once() -> None:
    names = [name for gsd in (10, 20, 60) for name in sentinel2.bands_at(gsd)]
    assert sorted(names) == sorted(set(sentinel2.BANDS) - {"B10"})
    for gsd in (10, 20, 60):
        assert all(sentinel2.BANDS[name].gsd == gsd for name in sentinel2.bands_at(gsd))


def test_native_order_is_that_of_the_product() -> None:
    order = sorted(sentinel2.BANDS.values(), key=lambda band: band.native_order)
    names = [f"B{number:02d}" for number in range(1, 13)]
    names.insert(8, "B8A")
    assert [band.name for band in order] == names
    waves = [band.wavelength for band in order]
    assert waves == sorted(waves)
    assert all(abs(band.wavelength - band.wavelength_s2b) < 20 for band in order)


def test_bands_are_ordered_by_gsd_and_checked_by_level() -> None:
    found = sentinel2.order_bands("L1C", ["B10", "B12", "B8A", "B02", "B01", "B02"])
    assert found == {10: ("B02",), 20: ("B8A", "B12"), 60: ("B01", "B10")}
    assert list(found) == [10, 20, 60]
    assert sentinel2.order_bands("L2A", []) == {}
    with pytest.raises(DataError, match=r"L2A has no band B10; it has B01, .*, B12; .*cirrus"):
        sentinel2.order_bands("L2A", ["B10"])
    with pytest.raises(DataError, match=r"L1C has no band B1, b02; it has B01, .* B12$"):
        sentinel2.order_bands("L1C", ["b02", "B1"])


def test_unknown_gsd_says_which_exist() -> None:
    with pytest.raises(ValueError, match=r"gsd 30: .*10, 20, 60"):
        sentinel2.bands_at(30)


@pytest.mark.parametrize(("dn", "offset", "reflectance"), [(10_000, 0, 1.0), (1500, -1000, 0.05)])
def test_reflectance_by_hand(dn: int, offset: int, reflectance: float) -> None:
    found = sentinel2.dn_to_reflectance(np.array([dn], np.uint16), offset=offset)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reflectance, rtol=1e-6)


@given(dn=st.integers(1, 65_535), offset=st.sampled_from([0, -1000]))
def test_dn_survive_the_way_there_and_back(dn: int, offset: int) -> None:
    there = sentinel2.dn_to_reflectance(dn, offset=offset)
    assert sentinel2.reflectance_to_dn(there, offset=offset) == dn


def test_dn_stay_in_range_and_never_become_no_data() -> None:
    np.testing.assert_array_equal(
        sentinel2.reflectance_to_dn(np.array([-1.0, 0.0, 99.0])), [1, 1, 65_535]
    )
    with pytest.raises(ValueError, match="NaN"):
        sentinel2.reflectance_to_dn(np.nan)
