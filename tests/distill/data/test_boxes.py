import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.data.boxes import fitting_box, random_area_box

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@given(
    st.integers(0, 2**32),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).map(sorted),
    st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)).map(sorted),
    st.sampled_from(["published", "usual"]),
)
def test_a_box_lies_inside_the_image(seed, height, width, scale, ratio, sampling):
    box = random_area_box(np.random.default_rng(seed), height, width, scale, ratio, sampling)
    assert box.width >= 1 and box.height >= 1
    assert 0 <= box.left <= width - box.width and 0 <= box.top <= height - box.height


def boxes(sampling, height, width, count=4000):
    random = np.random.default_rng(3)
    return np.array([random_area_box(random, height, width, SCALE, RATIO, sampling) for _ in range(count)])


def test_published_boxes_are_those_of_the_published_code():
    # Written down from the published description, with its own generator: same distribution of sides and places.
    random = np.random.default_rng(11)

    def published(img_h, img_w):
        aspect = math.sqrt(random.uniform(*RATIO))
        w, h = aspect, 1 / aspect
        bound = min((img_w / img_h) / w**2, (img_h / img_w) / h**2)
        area = img_w * img_h * random.uniform(min(SCALE[0], bound), min(SCALE[1], bound))
        w, h = int(math.sqrt(area) * w), int(math.sqrt(area) * h)
        return random.integers(0, img_w - w + 1), random.integers(0, img_h - h + 1), w, h

    expected = np.array([published(375, 500) for _ in range(4000)])
    received = boxes("published", 375, 500)
    for column in range(4):
        assert stats.ks_2samp(expected[:, column], received[:, column]).pvalue > 0.001


def test_published_ratio_is_uniform_and_the_usual_one_log_uniform():
    for sampling, transform in (("published", float), ("usual", math.log)):
        # Small areas always fit, so that the ratio is as drawn
        random = np.random.default_rng(5)
        drawn = [random_area_box(random, 4000, 4000, (0.1, 0.3), RATIO, sampling) for _ in range(4000)]
        ratios = [transform(box.width / box.height) for box in drawn]
        low, high = map(transform, RATIO)
        assert stats.kstest(ratios, stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_published_boxes_never_exceed_the_area_that_fits():
    received = boxes("published", 100, 1000)
    share = received[:, 2] * received[:, 3] / 1e5
    # a box of ratio 4/3 in a strip of 100 px has at most 133 x 100 px, one of ratio 3/4 only 75 x 100
    assert share.min() > 0.07 and share.max() <= 0.134


def test_usual_boxes_fall_back_to_the_centre():
    box = random_area_box(np.random.default_rng(0), 10, 1000, (0.9, 1.0), RATIO, "usual")
    assert box == ((1000 - 13) // 2, 0, 13, 10)
    box = random_area_box(np.random.default_rng(0), 1000, 10, (0.9, 1.0), RATIO, "usual")
    assert box == (0, (1000 - 13) // 2, 10, 13)


def test_a_box_that_can_never_fit():
    assert fitting_box(np.random.default_rng(0), 100, 100, (0.9, 1.0), (3.0, 4.0)) is None
