import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distill.benchmark.labelling import nearest_point, place_labels, shared_area

PICTURE = np.array([0.0, 0.0, 1000.0, 700.0])
NOTHING = np.empty((0, 4))


def test_the_area_that_boxes_share():
    first = np.array([[0.0, 0.0, 4.0, 2.0], [10.0, 0.0, 11.0, 1.0]])
    second = np.array([[1.0, 1.0, 9.0, 9.0], [0.0, 0.0, 4.0, 2.0], [4.0, 0.0, 5.0, 1.0]])
    assert shared_area(first, second).tolist() == [[3.0, 8.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_name_alone_stands_to_the_right():
    (box,) = place_labels(np.array([[500.0, 300.0]]), np.array([[80.0, 12.0]]), PICTURE, NOTHING, radius_px=5.0)
    assert box.tolist() == [509.0, 294.0, 589.0, 306.0]


def test_names_of_a_column_of_points_cover_nothing():
    points = np.array([[400.0, 200.0 + 9 * n] for n in range(8)])
    sizes = np.full((8, 2), (120.0, 14.0))
    line = np.array([[400 + n, 190 - n, 402 + n, 192 - n] for n in range(0, 100, 8)], dtype=float)
    boxes = place_labels(points, sizes, PICTURE, line, radius_px=4.0)
    shared = shared_area(boxes, boxes) - np.diag(sizes.prod(1))
    assert shared.max() < 1e-6
    marks = np.concatenate([points - 4.0, points + 4.0], axis=1)
    assert shared_area(boxes, marks).max() < 1e-6
    assert shared_area(boxes, line).max() < 1e-6
    assert (boxes[:, :2] >= 0).all()


@given(st.tuples(st.floats(0, 1000), st.floats(0, 700)))
def test_a_name_stays_inside_wherever_its_point_is(point):
    (box,) = place_labels(np.array([point]), np.array([[150.0, 14.0]]), PICTURE, NOTHING, radius_px=5.0)
    assert math.isclose(shared_area(box[None], PICTURE[None])[0, 0], 150 * 14, rel_tol=1e-9)


def test_the_end_of_a_line_from_a_name_to_its_point():
    box = np.array([10.0, 20.0, 30.0, 40.0])
    assert nearest_point(box, np.array([0.0, 25.0])).tolist() == [10.0, 25.0]
    assert nearest_point(box, np.array([50.0, 50.0])).tolist() == [30.0, 40.0]
