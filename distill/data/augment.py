"""Random and fixed views of an image: pure functions of the image, the settings and a generator."""

import cv2
import numpy as np

from distill.data.boxes import cut_box, place_box, random_area_box
from distill.data.erasing import erase
from distill.data.policies import apply_policy
from distill.data.types import Image, ImageRows
from distill.errors import UserError
from distill.recipe import CenterCrop, PaddedCrop, RandomAreaCrop, ViewSection


def train_view(image: Image | ImageRows, view: ViewSection, random: np.random.Generator) -> Image:
    """The view that teacher and student see: cropped, flipped, changed by a policy, erased in part.

    Args:
        image: uint8 [H, W, 3], or one whose rows below the view need not be decoded.
        view: What is done, and how often.
        random: The sample's own generator. Order of the draws: crop, flip, policy, erasing. So crop and flip are the
            same with and without the others.

    Returns:
        uint8 [size_px, size_px, 3].

    Raises:
        UserError: The image is too small for a padded or centre crop.
        UndecodableImage: The rows that the view needs are damaged.
    """
    seen = _crop(image, view, random)
    if random.random() < view.horizontal_flip:
        seen = _flip(seen)
    if view.policy is not None:
        seen = apply_policy(seen, view.policy, random)
    if view.erasing is not None:
        seen = erase(seen, view.erasing, random)
    return seen


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


def _crop(image: Image | ImageRows, view: ViewSection, random: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    match view.crop:
        case RandomAreaCrop() as crop:
            box = random_area_box(random, height, width, crop.scale, crop.ratio, crop.sampling)
            return _resize(cut_box(_rows(image, box.top + box.height), box), view.size_px, view.size_px)
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
    box = place_box(random, height, width, size_px, size_px)
    return np.ascontiguousarray(cut_box(padded, box))


def _flip(image: Image) -> Image:
    # not NumPy: its copy of image[:, ::-1] takes twenty times as long
    flipped: Image = cv2.flip(image, 1)
    return flipped


def _resize(image: Image, height: int, width: int) -> Image:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    resized: Image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized
