import numpy as np
import paddle
import pytest

from distill.data.types import Batch
from distill.normalization import mix_images, normalize, seen_images, to_unit_range
from distill.recipe import NormalizationSection

IMAGENET = NormalizationSection(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((3, 3, 4, 5), dtype=np.float32)


def test_bytes_become_the_unit_range() -> None:
    every_byte = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    result = to_unit_range(every_byte)
    assert result.dtype == paddle.float32
    # Paddle 2.6 multiplies by the reciprocal: one rounding more.
    np.testing.assert_allclose(result.numpy().ravel(), np.arange(256) / 255, rtol=2e-7)


def test_normalizes_channel_by_channel_in_both_layouts(images: np.ndarray) -> None:
    expected = np.stack([(images[:, c] - IMAGENET.mean[c]) / IMAGENET.std[c] for c in range(3)], axis=1)
    nchw = normalize(paddle.to_tensor(images), IMAGENET).numpy()
    np.testing.assert_allclose(nchw, expected, rtol=1e-5, atol=1e-6)
    nhwc = normalize(paddle.to_tensor(images.transpose(0, 2, 3, 1)), IMAGENET, "NHWC").numpy()
    np.testing.assert_array_equal(nhwc.transpose(0, 3, 1, 2), nchw)


def test_mixes_each_image_with_its_partner(images: np.ndarray) -> None:
    partner, lam = np.array([2, 1, 0]), np.array([0.25, 0.5, 1.0], np.float32)
    mixed = mix_images(paddle.to_tensor(images), partner, lam).numpy()
    np.testing.assert_allclose(mixed[0], 0.25 * images[0] + 0.75 * images[2], rtol=1e-6)
    np.testing.assert_allclose(mixed[1], images[1], rtol=1e-6)
    np.testing.assert_array_equal(mixed[2], images[2])


def seen(images: np.ndarray, lam: list[float], cut: list[bool] | None) -> np.ndarray:
    return seen_images(
        Batch(
            images=images,
            labels=np.zeros(3, np.int64),
            indices=np.arange(3),
            partner=np.array([1, 2, 0]),
            lam=np.array(lam, np.float32),
            epoch=0,
            step=0,
            ends_step=True,
            global_count=3,
            failures=(),
            cut=np.array(cut) if cut is not None else None,
        )
    ).numpy()


def test_an_image_with_a_box_of_its_partners_is_not_summed_with_it_too() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 28, 28), dtype=np.uint8)
    lam = [0.25, 0.5, 0.75]
    plain, mixed = to_unit_range(images).numpy(), seen(images, lam, None)
    some = seen(images, lam, [True, False, True])
    np.testing.assert_array_equal(some[[0, 2]], plain[[0, 2]])
    np.testing.assert_array_equal(some[1], mixed[1])
    np.testing.assert_array_equal(seen(images, lam, [True, True, True]), plain)
    np.testing.assert_array_equal(seen(images, lam, [False, False, False]), mixed)
    np.testing.assert_array_equal(seen(images, [1.0, 1.0, 0.5], [False, False, True]), plain)


def test_mixing_is_all_or_nothing(images: np.ndarray) -> None:
    tensor = paddle.to_tensor(images)
    assert mix_images(tensor, None, None) is tensor
    with pytest.raises(ValueError, match="both partner and lam"):
        mix_images(tensor, np.array([0, 1, 2]), None)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_the_order_of_operands_changes_no_bit(data_format: str) -> None:
    """Runs are resumed bitwise, whichever form of broadcasting is the fast one."""
    shape, channels = ((6, 3, 8, 8), (1, 3, 1, 1)) if data_format == "NCHW" else ((6, 8, 8, 3), (1, 1, 1, 3))
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    mean = np.asarray(IMAGENET.mean, np.float32).reshape(channels)
    std = np.asarray(IMAGENET.std, np.float32).reshape(channels)
    tensor = paddle.to_tensor(images)
    np.testing.assert_array_equal(normalize(tensor, IMAGENET, data_format).numpy(), (images - mean) / std)
    partner = np.array([1, 2, 0, 4, 5, 3])
    lam = np.random.default_rng(1).random(6, dtype=np.float32)
    share = lam.reshape(-1, 1, 1, 1)
    expected = share * images + (np.float32(1) - share) * images[partner]
    np.testing.assert_array_equal(mix_images(tensor, partner, lam).numpy(), expected)
