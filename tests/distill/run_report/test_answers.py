import numpy as np

from distill.run_report.answers import worst_classes


def test_the_worst_classes_come_first_with_what_they_were_taken_for():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 1, 1, 2, 1, 1, 0, 2])
    found = worst_classes(labels, predicted, ["cat", "dog", "bird"])
    assert [(each.name, each.images, each.accuracy, each.taken_for) for each in found] == [
        ("cat", 4, 0.25, [("dog", 2), ("bird", 1)]),
        ("bird", 2, 0.5, [("cat", 1)]),
    ]
