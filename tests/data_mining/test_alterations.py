"""The forms of a protected image."""

import numpy as np
import pytest

from data_mining.alterations import ALTERATIONS, CROPS, FRAME_SHADES, altered


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def test_crops_have_their_share_of_the_area_and_reach_every_corner(image):
    forms = list(altered(image))
    assert len(forms) == ALTERATIONS == 9 + 16 + 3
    first = 0
    for area, places in CROPS:
        crops = forms[first : first + places**2]
        first += places**2
        h, w = crops[0].shape[:2]
        assert h * w == pytest.approx(area * 60 * 90, rel=0.02)
        assert {crop.shape for crop in crops} == {(h, w, 3)}
        corners = (image[:h, :w], image[:h, -w:], image[-h:, :w], image[-h:, -w:])
        found = (crops[0], crops[places - 1], crops[-places], crops[-1])
        for crop, corner in zip(found, corners, strict=True):
            np.testing.assert_array_equal(crop, corner)


def test_frames_lie_around_the_whole_image(image):
    for form, shade in zip(list(altered(image))[-len(FRAME_SHADES) :], FRAME_SHADES, strict=True):
        np.testing.assert_array_equal(form[7:-7, 11:-11], image)
        frame = np.ones(form.shape[:2], bool)
        frame[7:-7, 11:-11] = False
        assert (form[frame] == shade).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_the_smallest_images_have_all_forms(shape):
    forms = list(altered(np.zeros((*shape, 3), np.uint8)))
    assert len(forms) == ALTERATIONS
    assert all(form.size and form.flags.c_contiguous for form in forms)
