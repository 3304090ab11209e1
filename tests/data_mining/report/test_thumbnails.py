import base64

import cv2
import numpy as np
import pytest

from data_mining.report.thumbnails import SIDE_PX, encode_thumbnail


def decode(url):
    kind, data = url.removeprefix("data:image/").split(";base64,")
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    return kind, image[:, :, ::-1]


def test_small_images_keep_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (32, 28, 3), dtype=np.uint8)
    kind, shown = decode(encode_thumbnail(image))
    assert kind == "png" and np.array_equal(shown, image)


@pytest.mark.parametrize(("height", "width"), [(300, 600), (2000, 3), (100, 90)])
def test_large_images_become_small_jpegs(height, width):
    image = np.full((height, width, 3), (200, 30, 60), np.uint8)
    kind, shown = decode(encode_thumbnail(image))
    assert kind == "jpeg" and max(shown.shape[:2]) == min(SIDE_PX, max(height, width))
    np.testing.assert_allclose(shown.reshape(-1, 3).mean(axis=0), (200, 30, 60), atol=8)  # red stays red
