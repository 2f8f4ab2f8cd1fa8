"""The made-up granule."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from data_pipelines import granule, sentinel2, synthetic, wald


@pytest.fixture(scope="module")
def cubes() -> dict[str, np.ndarray]:
    return synthetic.build_cubes(600)


def test_it_is_the_same_for_the_same_seed(cubes: dict[str, np.ndarray]) -> None:
    again, other = synthetic.build_cubes(600), synthetic.build_cubes(600, seed=1)
    for name, cube in cubes.items():
        np.testing.assert_array_equal(cube, again[name])
        assert (cube != other[name]).mean() > 0.9


def test_shapes_nest_and_values_are_dn(cubes: dict[str, np.ndarray]) -> None:
    for name, cube in cubes.items():
        gsd = sentinel2.GSDS[name]
        assert cube.shape == (len(sentinel2.bands_at(gsd)), 6000 // gsd, 6000 // gsd)
        assert cube.dtype == np.uint16
        assert cube.min() >= 1
        assert 100 < cube.mean() < 6000
        assert cube.max() <= 10_000


def test_bands_correlate_as_in_real_images(cubes: dict[str, np.ndarray]) -> None:
    mean = cubes["gsd10"].reshape(4, 300, 2, 300, 2).mean(axis=(2, 4))
    matrix = np.corrcoef(np.concatenate([mean, cubes["gsd20"]]).reshape(10, -1))
    names = [*sentinel2.BANDS_10M, *sentinel2.BANDS_20M]
    for a, b in (("B08", "B8A"), ("B03", "B05"), ("B02", "B04"), ("B11", "B12")):
        assert matrix[names.index(a), names.index(b)] > 0.9


def test_detail_of_20_m_bands_shows_at_10_m(cubes: dict[str, np.ndarray]) -> None:
    """What interpolation misses is mostly a linear mixture of the 10 m bands' own detail."""
    cv2 = pytest.importorskip("cv2")

    def missed(truth: np.ndarray, lowres: np.ndarray) -> np.ndarray:
        size = truth.shape[1:]
        guess = [cv2.resize(b, size, interpolation=cv2.INTER_CUBIC) for b in lowres]
        return (truth - np.stack(guess)).reshape(len(truth), -1).T

    fine = wald.degrade(cubes["gsd10"], 2)
    known = missed(fine, fine.reshape(4, 150, 2, 150, 2).mean(axis=(2, 4), dtype=np.float32))
    wanted = missed(cubes["gsd20"], wald.degrade(cubes["gsd20"], 2))
    mixture = np.linalg.lstsq(known, wanted, rcond=None)[0]
    left = np.sqrt(((wanted - known @ mixture) ** 2).mean() / (wanted**2).mean())
    assert left < 0.5
    assert np.sqrt((wanted**2).mean()) > 50  # [DN]: interpolation has something to miss


def test_files(tmp_path: pathlib.Path) -> None:
    folder = synthetic.write_granule(tmp_path / "made-up", 120, seed=4)
    (found,) = granule.open_granules(folder)
    assert found.plane == synthetic.CRS
    assert found.synthetic
    for name, cube in synthetic.build_cubes(120, seed=4).items():
        np.testing.assert_array_equal(found.cubes[name].values, cube)


def test_sizes_that_do_not_nest_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 6"):
        synthetic.build_cubes(100)
