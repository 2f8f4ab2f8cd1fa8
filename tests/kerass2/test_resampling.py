from __future__ import annotations

import cv2
import numpy as np
import pytest
import tensorflow as tf

from kerass2 import resampling

KERNELS = {
    "bilinear": (resampling.bilinear, cv2.INTER_LINEAR),
    "bicubic": (resampling.bicubic, cv2.INTER_CUBIC),
}


def opencv(x: np.ndarray, scale: int, interpolation: int) -> np.ndarray:
    """cv2.resize, band by band."""
    size = (x.shape[2] * scale, x.shape[1] * scale)
    return np.stack(
        [
            np.stack(
                [
                    cv2.resize(patch[..., b], size, interpolation=interpolation)
                    for b in range(x.shape[3])
                ],
                -1,
            )
            for patch in x
        ]
    )


@pytest.mark.parametrize("scale", [2, 3, 6])
@pytest.mark.parametrize("shape", [(2, 16, 16, 6), (1, 7, 12, 2), (1, 4, 5, 1), (1, 1, 3, 1)])
@pytest.mark.parametrize("name", KERNELS)
def test_equals_opencv(name: str, shape: tuple[int, ...], scale: int) -> None:
    ours, theirs = KERNELS[name]
    x = np.random.default_rng(0).uniform(0.05, 0.5, shape).astype(np.float32)
    expected = opencv(x, scale, theirs)
    assert np.max(np.abs(np.asarray(ours(x, scale)) - expected)) < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("scale", [2, 6])
def test_bilinear_equals_tensorflow(scale: int) -> None:
    x = np.random.default_rng(1).random((2, 9, 13, 3), dtype=np.float32)
    expected = tf.image.resize(x, (9 * scale, 13 * scale), "bilinear", antialias=False)
    np.testing.assert_allclose(resampling.bilinear(x, scale), expected, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_is_not_tensorflows_cubic_nor_shifted(name: str) -> None:
    """A ramp stays a ramp inside: half-pixel centres; and weights add to 1."""
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[None, None, :, None], (1, 12, 12, 1))
    enlarged = np.asarray(KERNELS[name][0](ramp, 2))[0, 12, :, 0]
    np.testing.assert_allclose(enlarged[4:-4], np.arange(24)[4:-4] / 2 - 0.25, atol=0.15)
    np.testing.assert_allclose(
        KERNELS[name][0](np.ones((1, 5, 5, 1), np.float32), 6), 1.0, atol=1e-6
    )
    if name == "bicubic":
        a_half = tf.image.resize(
            ramp**2, (24, 24), "bicubic"
        )  # a = -0.5 reproduces a parabola, -0.75 does not
        assert np.abs(np.asarray(resampling.bicubic(ramp**2, 2)) - a_half)[0, 12, 6:-6].max() > 0.01


@pytest.mark.parametrize("name", KERNELS)
def test_sizes_unknown_to_the_graph(name: str) -> None:
    ours = KERNELS[name][0]
    compiled = tf.function(
        lambda x: ours(x, 2), input_signature=[tf.TensorSpec((None, None, None, 3))]
    )
    for shape in [(1, 4, 6, 3), (2, 5, 3, 3)]:
        x = np.random.default_rng(2).random(shape, dtype=np.float32)
        np.testing.assert_allclose(compiled(x), ours(x, 2), atol=1e-6)


def test_whole_numbers_become_float() -> None:
    enlarged = np.asarray(resampling.bicubic(np.full((1, 4, 4, 1), 7, np.uint16), 2))
    assert enlarged.dtype == np.float32
    np.testing.assert_allclose(enlarged, 7.0, rtol=1e-6)


def test_scale_1_changes_nothing() -> None:
    x = np.random.default_rng(3).random((1, 4, 4, 2), dtype=np.float32)
    np.testing.assert_array_equal(resampling.bicubic(x, 1), x)


@pytest.mark.parametrize("scale", [0, -2, 1.5])
def test_refuses_other_scales(scale: float) -> None:
    with pytest.raises(ValueError, match="whole number"):
        resampling.bilinear(np.zeros((1, 4, 4, 1), np.float32), scale)  # type: ignore[arg-type]


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(batch, y, x, band\)"):
        resampling.bilinear(np.zeros((4, 4, 1), np.float32), 2)
