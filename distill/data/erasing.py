"""Random erasing: a box of the view is covered with noise."""

import numpy as np

from distill.data.boxes import cut_box, fitting_box
from distill.data.types import Image
from distill.recipe import ErasingSection


def erase(image: Image, erasing: ErasingSection, random: np.random.Generator) -> Image:
    """Covers a box of random area, shape and place with noise, each byte uniform in 0-255.

    Source: Zhong et al. 2020, "Random Erasing Data Augmentation", arXiv 1708.04896, algorithm 1. Of the fillings that
    it compares, noise and the data set's mean are the best and noise is the one it takes; a mean would also tie the
    view to a normalisation, and teachers have their own.

    Deliberate deviations: the aspect is drawn log-uniformly, so that wide and tall boxes are equally likely; and where
    none of ten boxes fits, which the usual settings make impossible in practice, nothing is erased.

    Args:
        image: uint8 [H, W, 3]; not changed.
        erasing: How often, how much, of which shape.
        random: The sample's own generator.

    Returns:
        uint8 [H, W, 3]; the image itself where nothing is erased.
    """
    if random.random() >= erasing.probability:
        return image
    height, width = image.shape[:2]
    box = fitting_box(random, height, width, erasing.area, erasing.aspect)
    if box is None:
        return image
    erased = image.copy()
    cut_box(erased, box)[:] = random.integers(0, 256, (box.height, box.width, 3), dtype=np.uint8)
    return erased
