from __future__ import annotations

import functools
import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import mean_squared_error

from kerass2 import metrics

BANDS = ("B05", "B06", "B07", "B8A", "B11", "B12")


def scene(
    patches: int = 7, size: int = 24, bands: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Target of whole DN as reflectance, and a prediction near it."""
    rng = np.random.default_rng(seed)
    dn = np.rint(rng.gamma(3.0, 600.0, (patches, size, size, bands))).clip(1, 20_000)
    target = (dn / 10_000).astype(np.float32)
    return target, (target + rng.normal(0, 0.01, target.shape)).astype(np.float32)


TARGET, PREDICTION = scene()
X, P = 1e4 * TARGET.astype(np.float64), 1e4 * PREDICTION.astype(np.float64)


def score(scale: int = 2, target: np.ndarray = TARGET, prediction: np.ndarray = PREDICTION) -> dict:
    sums = metrics.sums(prediction, target, None, scale, lowres=observe(target, scale))
    return results(sums, target)


def observe(target: np.ndarray, scale: int) -> np.ndarray:
    """The input under Wald's protocol, by scipy instead of our own filter."""
    blurred = ndimage.gaussian_filter(target.astype(np.float64), (0, 1 / scale, 1 / scale, 0))
    n, height, width, bands = target.shape
    blocks = blurred.reshape(n, height // scale, scale, width // scale, scale, bands)
    return blocks.mean(axis=(2, 4))


def results(sums: dict, target: np.ndarray = TARGET) -> dict:
    peak = metrics.data_range(metrics.histogram(target))
    return metrics.results(sums, BANDS[: target.shape[-1]], peak)


def mse() -> np.ndarray:
    """Of each band, by scikit-learn."""
    return mean_squared_error(X.reshape(-1, 6), P.reshape(-1, 6), multioutput="raw_values")


def with_mean(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(np.mean(values)), **dict(zip(BANDS, values.tolist(), strict=True))}


def close(found: dict[str, float], expected: dict[str, float], rel: float = 1e-9) -> None:
    assert found == pytest.approx(expected, rel=rel)


def test_rmse() -> None:
    close(score()["rmse"], with_mean(np.sqrt(mse())))


def test_sre() -> None:
    close(score()["sre"], with_mean(10 * np.log10(X.mean((0, 1, 2)) ** 2 / mse())))


@pytest.mark.parametrize(("scale", "ratio"), [(2, 1 / 2), (6, 1 / 6)])
def test_ergas(scale: int, ratio: float) -> None:
    root = np.sqrt(np.mean(mse() / X.mean((0, 1, 2)) ** 2))
    close(score(scale)["ergas"], {"mean": 100 * ratio * root})
    close(score(scale)["ergas_paper"], {"mean": 50 * root})


def test_psnr() -> None:
    """By scikit-image."""
    for name, peak in (("psnr", 10_000), ("psnr_paper", np.rint(X).max() - np.rint(X).min())):
        expected = [
            peak_signal_noise_ratio(X[..., b], P[..., b], data_range=peak) for b in range(6)
        ]
        close(score()[name], with_mean(np.array(expected)))


@pytest.mark.parametrize("scale", [2, 6])
def test_consistency_is_the_rmse_of_the_degraded_prediction(scale: int) -> None:
    """By scipy's filter; its outermost pixels would need what lies beyond the patch."""
    difference = 1e4 * (observe(PREDICTION, scale) - observe(TARGET, scale))[:, 1:-1, 1:-1]
    expected = np.sqrt(np.mean(difference**2, axis=(0, 1, 2)))
    close(score(scale)["consistency"], with_mean(expected), rel=1e-4)


def test_consistency_sees_what_the_edges_of_a_patch_hide() -> None:
    """A patch cut out of a scene has the scene's own pixels as input, edges and all."""
    target, _ = scene(patches=1, size=48)
    lowres, inner = observe(target, 2), slice(8, 40)
    cut = target[:, inner, inner]
    sums = metrics.sums(cut, cut, None, 2, lowres=lowres[:, 4:20, 4:20])
    assert results(sums, cut)["consistency"]["mean"] < 0.01
    assert np.abs(1e4 * (observe(cut, 2) - lowres[:, 4:20, 4:20])).max() > 1


def test_what_is_not_compared_with_its_input_has_no_consistency() -> None:
    found = results(metrics.sums(PREDICTION, TARGET, None, 2))
    assert np.isnan(found["consistency"]["mean"])
    assert {k: v for k, v in found.items() if k != "consistency"} == {
        k: v for k, v in score().items() if k != "consistency"
    }


def test_strips_add_up_to_the_whole() -> None:
    target, prediction = scene(patches=1, size=60)
    whole = metrics.sums(prediction, target, None, 2)
    for bounds in ((0, 20, 60), (0, 11, 33, 49, 60)):
        total = metrics.zeros(6)
        for start, stop in itertools.pairwise(bounds):
            below = 0 if stop == 60 else 10
            rows = slice(start, stop + below)
            part = metrics.sums(prediction[:, rows], target[:, rows], None, 2, below=below)
            total = metrics.add(total, part)
        for name in set(whole) - {"patches", "scale"}:
            np.testing.assert_allclose(total[name], whole[name], rtol=1e-12)


def test_pixels_that_do_not_count_and_windows_with_them() -> None:
    """A rectangle without data: the rest is scored as scikit-image's map of windows says."""
    target, prediction = scene(patches=1, size=40, bands=1)
    valid = np.ones((1, 40, 40), bool)
    valid[0, 12:20, 5:9] = False
    spoilt, truth = prediction.copy(), target.copy()
    spoilt[~valid], truth[~valid] = np.nan, 7.0
    found = results(metrics.sums(spoilt, truth, None, 2, valid=valid), target)
    difference = 1e4 * (prediction - target).astype(np.float64)
    expected = np.sqrt(np.mean(difference[valid] ** 2))
    assert found["rmse"]["B05"] == pytest.approx(expected, rel=1e-6)
    _, windows = structural_similarity(
        1e4 * target[0, ..., 0].astype(np.float64),
        1e4 * prediction[0, ..., 0].astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=10_000,
        full=True,
    )
    whole = ndimage.minimum_filter(valid[0], 11)[5:-5, 5:-5]
    assert found["ssim"]["B05"] == pytest.approx(windows[5:-5, 5:-5][whole].mean(), rel=1e-6)


def test_sam() -> None:
    angles = [
        np.degrees(np.arccos(np.dot(x, p) / (np.linalg.norm(x) * np.linalg.norm(p))))
        for x, p in zip(X.reshape(-1, 6), P.reshape(-1, 6), strict=True)
    ]
    close(score()["sam"], {"mean": float(np.mean(angles))})


def test_ssim_is_scikit_images() -> None:
    expected = [
        np.mean(
            [
                structural_similarity(
                    X[n, ..., b],
                    P[n, ..., b],
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                    data_range=10_000,
                )
                for n in range(len(X))
            ]
        )
        for b in range(6)
    ]
    close(score()["ssim"], with_mean(np.array(expected)))


def test_ssim_of_the_paper_has_no_constants() -> None:
    expected = structural_similarity(
        X[0, ..., 0],
        P[0, ..., 0],
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        K1=0,
        K2=0,
        data_range=10_000,
    )
    assert score(target=TARGET[:1], prediction=PREDICTION[:1])["ssim_paper"][
        "B05"
    ] == pytest.approx(expected)


def test_uiq_by_its_formula() -> None:
    values = []
    for n in range(len(X)):
        for y in range(24 - 7):
            for x in range(24 - 7):
                a, b = (v[n, y : y + 8, x : x + 8].reshape(64, 6) for v in (X, P))
                covariance = ((a - a.mean(0)) * (b - b.mean(0))).mean(0)
                below = (a.var(0) + b.var(0)) * (a.mean(0) ** 2 + b.mean(0) ** 2)
                values.append(4 * covariance * a.mean(0) * b.mean(0) / below)
    close(score()["uiq"], with_mean(np.mean(values, axis=0)))


def test_a_perfect_prediction() -> None:
    found = score(prediction=TARGET)
    assert [found[name]["mean"] for name in ("rmse", "ergas")] == [0, 0]
    assert [found[name]["mean"] for name in ("uiq", "ssim", "ssim_paper")] == pytest.approx(
        [1, 1, 1]
    )
    assert found["sam"]["mean"] == pytest.approx(0, abs=1e-5)
    assert found["psnr"]["B05"] == found["sre"]["B05"] == np.inf


@pytest.mark.parametrize(
    ("level", "shift", "expected"), [(0.1, 0.0, 1.0), (0.1, 0.1, 0.8), (0.0, 0.0, 1.0)]
)
def test_flat_patches(level: float, shift: float, expected: float) -> None:
    """As Wang's code: without variance the luminance term is left, without signal 1."""
    flat = np.full((1, 16, 16, 2), level, np.float32)
    found = score(target=flat, prediction=flat + np.float32(shift))
    assert found["uiq"]["mean"] == pytest.approx(expected)
    assert found["ssim_paper"]["mean"] == pytest.approx(expected)
    if level == 0:
        assert np.isnan(found["sam"]["mean"])


def test_pixels_without_a_spectrum_have_no_angle() -> None:
    target = TARGET.copy()
    target[0, :12] = 0
    whole, rest = score(target=target), score(target=TARGET[1:], prediction=PREDICTION[1:])
    seen = score(target=TARGET[:1, 12:], prediction=PREDICTION[:1, 12:])
    assert whole["sam"]["mean"] == pytest.approx(
        (6 * rest["sam"]["mean"] + 0.5 * seen["sam"]["mean"]) / 6.5
    )


def test_padding_counts_nothing_whatever_it_holds() -> None:
    mask = np.array([1, 0, 1, 1, 0, 0, 1], np.float32)
    target, prediction = TARGET.copy(), PREDICTION.copy()
    target[mask == 0], prediction[mask == 0] = np.nan, np.inf
    lowres = observe(TARGET, 2)
    lowres[mask == 0] = np.nan
    sums = metrics.sums(prediction, target, mask, 2, lowres=lowres)
    peak = metrics.data_range(metrics.histogram(target, mask))
    expected = score(target=TARGET[mask > 0], prediction=PREDICTION[mask > 0])
    assert metrics.results(sums, BANDS, peak) == expected


def test_a_rank_without_patches_adds_zeros() -> None:
    lowres = observe(TARGET, 2)
    empty = metrics.sums(PREDICTION, TARGET, np.zeros(7), 2, lowres=lowres)
    assert all(not value.any() for value in empty.values())
    like = metrics.zeros(6)
    assert {name: value.shape for name, value in like.items()} == {
        name: value.shape for name, value in empty.items()
    }
    total = metrics.add(empty, metrics.sums(PREDICTION, TARGET, None, 2, lowres=lowres))
    assert results(total) == score()
    assert np.isnan(metrics.data_range(metrics.histogram(TARGET, np.zeros(7))))
    with pytest.raises(ValueError, match="no patches"):
        results(empty)


@settings(max_examples=25, deadline=None)
@given(owner=st.lists(st.integers(0, 3), min_size=7, max_size=7), scale=st.sampled_from([2, 6]))
def test_any_partition_over_ranks_gives_the_same(owner: list[int], scale: int) -> None:
    """The vectors of 4 ranks, added as Strategy.sum does."""
    lowres = observe(TARGET, scale)
    shares = [
        metrics.sums(PREDICTION, TARGET, np.equal(owner, rank), scale, lowres=lowres)
        for rank in range(4)
    ]
    vector = np.sum([metrics.pack(share) for share in shares], axis=0)
    joined = results(metrics.unpack(vector, shares[0]))
    in_turn = results(functools.reduce(metrics.add, shares))
    for name, expected in score(scale).items():
        close(joined[name], expected, rel=1e-12)
        close(in_turn[name], expected, rel=1e-12)


def test_never_a_mean_of_batches() -> None:
    """Root and logarithm come after the sum: the whole is not the mean of its halves."""
    bright = np.concatenate([PREDICTION[:3], TARGET[3:]])
    halves = [score(target=TARGET[s], prediction=bright[s]) for s in (slice(0, 3), slice(3, 6))]
    whole = score(target=TARGET[:6], prediction=bright[:6])
    assert whole["rmse"]["mean"] != pytest.approx(
        np.mean([h["rmse"]["mean"] for h in halves]), rel=0.05
    )


def test_every_metric_has_a_definition_and_a_unit() -> None:
    assert list(score()) == list(metrics.DEFINITIONS) == list(metrics.UNITS)
    json.dumps(metrics.DEFINITIONS)
    assert all(set(value) in ({"mean"}, {"mean", *BANDS}) for value in score().values())
    assert all(type(number) is float for value in score().values() for number in value.values())


def test_low_precision_input_is_summed_in_float64() -> None:
    sums = metrics.sums(PREDICTION.astype(np.float16), TARGET, None, 2)
    assert {value.dtype for value in sums.values()} == {np.dtype(np.float64)}


def test_a_few_hundred_patches_take_well_under_a_second() -> None:
    target, prediction = scene(patches=200, size=32)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        metrics.sums(prediction, target, None, 2)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    ("target", "prediction", "mask", "message"),
    [
        (TARGET, PREDICTION[..., :5], None, "two equal"),
        (TARGET[0], PREDICTION[0], None, "two equal"),
        (TARGET[:, :8], PREDICTION[:, :8], None, "SSIM needs 11 x 11"),
        (TARGET, PREDICTION, np.ones(6), r"mask \(6,\) for 7"),
    ],
)
def test_wrong_arguments(
    target: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.sums(prediction, target, mask, 2)


def test_rows_below_complete_the_windows_of_ssim() -> None:
    with pytest.raises(ValueError, match="4 rows below: 0 or 10 are needed"):
        metrics.sums(PREDICTION, TARGET, None, 2, below=4)


def test_wrong_bands() -> None:
    with pytest.raises(ValueError, match="2 band names"):
        metrics.results(metrics.sums(PREDICTION, TARGET, None, 2), ("B01", "B09"), 1.0)
    with pytest.raises(ValueError, match="different metrics"):
        metrics.add({"a": np.zeros(1)}, {"b": np.zeros(1)})
