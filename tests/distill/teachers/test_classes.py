import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from distill.errors import UserError
from distill.teachers.classes import read_class_map


@pytest.fixture
def write(tmp_path):
    def file(content):
        path = tmp_path / "classes.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def test_lines_in_any_order_ranges_comments_and_windows_line_ends(write):
    path = write(b"\xef\xbb\xbf# cats and dogs\r\n\r\n 2\t7 , 3-5 # three\r\n0 1\r\n1 0,2\r\n")
    found = read_class_map(path, students=3, teachers=8)
    assert found.teacher_classes.tolist() == [1, 0, 2, 3, 4, 5, 7]
    assert found.starts.tolist() == [0, 1, 3]
    same = read_class_map(write("0 1\n1 2,0\n2 3,4,5,7"), students=3)
    assert same.sha256 == found.sha256
    assert read_class_map(write("0 1\n1 2\n2 0,3-5,7"), students=3).sha256 != found.sha256


def test_all_that_is_wrong_is_said_at_once_with_its_line(write):
    path = write("0 1,x\nzero 2\n\n1 5\n1 6\n9 0\n3 5,8\n4 4-2\n5\n2 0-99999999\n6 7,7\n")
    with pytest.raises(UserError) as caught:
        read_class_map(path, students=8, teachers=8)
    assert str(caught.value).splitlines()[1:] == [
        "  line 1: expected numbers and ranges such as 7,281-285, received 'x'",
        "  line 2: expected STUDENT TEACHER[,TEACHER...], received 'zero 2'",
        "  line 5: class 1 has a line already, 4",
        "  line 6: class 9 is outside the student's 0..7",
        "  line 7: the teacher's class 5 is taken already, by class 1 in line 4",
        "  line 7: class 8 is outside the teacher's 0..7",
        "  line 8: expected a range from low to high, received 4-2",
        "  line 9: expected STUDENT TEACHER[,TEACHER...], received '5'",
        "  line 10: class 99999999 is outside the teacher's 0..7",
        "  line 11: the teacher's class 7 is taken already, by class 6 in this line",
        "  2 of the student's 8 classes have no line: 5, 7",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "3 of the student's 3 classes have no line: 0, 1, 2"),
        (b"0 1\n1 \xff\n", "line 2: not UTF-8 text"),
        ("0 1\n1 ²\n2 3".encode(), "line 2: expected numbers"),
        (b"0 -1\n1 2\n2 3", "line 1: expected numbers"),
        (b"0 1,\n1 2\n2 3", "line 1: expected numbers and ranges such as 7,281-285, received ''"),
        (b"0\n1\n2", "line 1: expected STUDENT TEACHER"),
        (b"0 1\x000\n1 2\n2 3", "line 1: expected numbers"),
        (b"0 1\n" * 1000, "and 1979 more"),
        (b" " * (2**24 + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_map_is_refused(write, content, message):
    with pytest.raises(UserError) as caught:
        read_class_map(write(content), students=3, teachers=8)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="Cannot read the map of classes"):
        read_class_map(tmp_path / "absent.txt", students=2)
    with pytest.raises(UserError, match="Is a directory"):
        read_class_map(tmp_path, students=2)


LOGITS = st.floats(-1000, 1000, width=32)


@given(arrays(np.float32, (3, 6), elements=LOGITS))
def test_a_softmax_is_the_teachers_distribution_renormalised(tmp_path_factory, logits):
    path = tmp_path_factory.getbasetemp() / "map.txt"
    path.write_text("1 0,3\n0 2,4-5\n")  # class 1 of the teacher is nobody's
    found = read_class_map(path, students=2, teachers=6).logits(logits)
    assert found.dtype == np.float32
    mapped = softmax(logits.astype(np.float64)[:, [0, 2, 3, 4, 5]], axis=1)
    expected = np.stack([mapped[:, 1] + mapped[:, 3] + mapped[:, 4], mapped[:, 0] + mapped[:, 2]], axis=1)
    np.testing.assert_allclose(softmax(found.astype(np.float64), axis=1), expected, atol=1e-4)


def test_one_class_each_is_a_permutation_to_the_last_bit(write):
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = read_class_map(write("0 3\n1 0\n2 1"), students=3, teachers=4)
    assert (found.logits(logits) == logits[:, [3, 0, 1]]).all()


def test_a_row_does_not_depend_on_the_others(write):
    random = np.random.default_rng(0)
    logits = (10 * random.normal(size=(67, 1000))).astype(np.float32)
    order = random.permutation(1000)
    lines = [f"{c} {','.join(map(str, order[c * 10 : c * 10 + 1 + c % 10]))}" for c in range(100)]
    found = read_class_map(write("\n".join(lines)), students=100, teachers=1000)
    together = found.logits(logits)
    for size in (1, 3, 16):
        parts = [found.logits(logits[at : at + size]) for at in range(0, 67, size)]
        assert (np.concatenate(parts) == together).all()
