"""Random and fixed views of an image: pure functions of the image, the settings and a generator."""

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np

from distill.data.types import Image, ImageRows
from distill.errors import UserError
from distill.recipe import CenterCrop, PaddedCrop, RandomAreaCrop, ViewSection


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def train_view(image: Image | ImageRows, view: ViewSection, random: np.random.Generator) -> Image:
    """The view that teacher and student see.

    Args:
        image: uint8 [H, W, 3], or one whose rows below the view need not be decoded.
        view: Crop, size and flip.
        random: The sample's own generator. Order of the draws: crop, then flip.

    Returns:
        uint8 [size_px, size_px, 3].

    Raises:
        UserError: The image is too small for a padded or centre crop.
        UndecodableImage: The rows that the view needs are damaged.
    """
    cropped = _crop(image, view, random)
    if random.random() < view.horizontal_flip:
        return _flip(cropped)
    return cropped


def evaluation_view(image: Image, resize_short_px: int, crop_px: int) -> Image:
    """Resizes the short side, keeping the aspect ratio, and crops the centre.

    As the published accuracies were measured (PaddleClas `ResizeImage(resize_short)`, `CropImage`): sides
    rounded to whole pixels, OpenCV bilinear without antialiasing, the offset rounded down.

    Args:
        image: uint8 [H, W, 3].
        resize_short_px: The new short side.
        crop_px: Height and width of the crop, <= resize_short_px.

    Returns:
        uint8 [crop_px, crop_px, 3].

    Raises:
        UserError: crop_px is larger than resize_short_px.
    """
    if crop_px > resize_short_px:
        raise UserError(f"the centre crop of {crop_px} px does not fit into a short side of {resize_short_px} px")
    height, width = image.shape[:2]
    factor = resize_short_px / min(height, width)
    resized = _resize(image, round(height * factor), round(width * factor))
    top = (resized.shape[0] - crop_px) // 2
    left = (resized.shape[1] - crop_px) // 2
    return np.ascontiguousarray(resized[top : top + crop_px, left : left + crop_px])


def random_area_box(
    random: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    sampling: Literal["published", "usual"],
) -> Box:
    """A box of random area and aspect ratio inside an image.

    'published' is PaddleClas' `RandCropImage`: the ratio is drawn uniformly, the area's interval is clamped
    so that the box always fits, and nothing is tried twice. 'usual' is that of Inception and torchvision:
    log-uniform ratio, ten tries, then the largest centre box of an allowed ratio.

    Args:
        random: Generator.
        height: The image's, >= 1.
        width: The image's, >= 1.
        scale: Least and greatest share of the image's area, in (0, 1].
        ratio: Least and greatest width / height, > 0.
        sampling: Which of the two.
    """
    if sampling == "published":
        return _published_box(random, height, width, scale, ratio)
    return _usual_box(random, height, width, scale, ratio)


def _published_box(
    random: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    box_ratio = random.uniform(*ratio)
    # the largest share of the area that a box of this ratio can have inside the image
    bound = min(width / height / box_ratio, height / width * box_ratio)
    side = math.sqrt(width * height * random.uniform(min(scale[0], bound), min(scale[1], bound)))
    # rounding may miss the image by one pixel, and a sliver of an image may round to nothing
    box_width = min(max(int(side * math.sqrt(box_ratio)), 1), width)
    box_height = min(max(int(side / math.sqrt(box_ratio)), 1), height)
    return _place(random, height, width, box_height, box_width)


def _usual_box(
    random: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        box_ratio = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width = round(math.sqrt(area * box_ratio))
        box_height = round(math.sqrt(area / box_ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            return _place(random, height, width, box_height, box_width)
    box_width = max(min(width, round(height * ratio[1])), 1)
    box_height = max(min(height, round(width / ratio[0])), 1)
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def _place(random: np.random.Generator, height: int, width: int, box_height: int, box_width: int) -> Box:
    left = int(random.integers(0, width - box_width, endpoint=True))
    top = int(random.integers(0, height - box_height, endpoint=True))
    return Box(left, top, box_width, box_height)


def _crop(image: Image | ImageRows, view: ViewSection, random: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    match view.crop:
        case RandomAreaCrop() as crop:
            box = random_area_box(random, height, width, crop.scale, crop.ratio, crop.sampling)
            return _resize(_cut(_rows(image, box.top + box.height), box), view.size_px, view.size_px)
        case PaddedCrop() as crop:
            return _padded_crop(_rows(image, height), crop.padding_px, view.size_px, random)
        case CenterCrop() as crop:
            return evaluation_view(_rows(image, height), crop.resize_short_px, view.size_px)


def _rows(image: Image | ImageRows, end: int) -> Image:
    return image if isinstance(image, np.ndarray) else image.rows(end)


def _padded_crop(image: Image, padding_px: int, size_px: int, random: np.random.Generator) -> Image:
    height, width = (side + 2 * padding_px for side in image.shape[:2])
    if min(height, width) < size_px:
        raise UserError(
            f"the image has {image.shape[1]} x {image.shape[0]} px; even with view.crop.padding_px {padding_px} on "
            f"each side it is smaller than view.size_px {size_px}. Use a smaller size_px, or the crop 'random_area'."
        )
    padded = np.pad(image, ((padding_px, padding_px), (padding_px, padding_px), (0, 0)))
    box = _place(random, height, width, size_px, size_px)
    return np.ascontiguousarray(_cut(padded, box))


def _cut(image: Image, box: Box) -> Image:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _flip(image: Image) -> Image:
    # not NumPy: its copy of image[:, ::-1] takes twenty times as long
    flipped: Image = cv2.flip(image, 1)
    return flipped


def _resize(image: Image, height: int, width: int) -> Image:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    resized: Image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized
