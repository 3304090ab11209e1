"""A store of features by sample, for images whose view is the same in every epoch.

    <key>.features    a record a sample of the sources: 4 bytes CRC-32, then float32 [D]
    <key>.json        the key: what the features depend on

The key is a hash of the network's weights, what computes, the view and the images, so that a store is never read for
anything else (image files of equal names and sizes are not told apart). A record that is missing, torn by a killed
writer or damaged fails its check and counts as absent. Values are kept as they were computed, so that reading them
gives the same bits.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.sources import Images
from distill.data.types import FloatArray, IntArray, KnownFeatures
from distill.display import readable_bytes
from distill.errors import RunError
from distill.files import write_all, write_atomically
from distill.recipe import CenterCrop, EvaluationSection, Stage, ViewSection

FORMAT = 1
_CHECK_BYTES = 4


@dataclass(frozen=True)
class FeatureStore:
    """The features of one source in one view; see `distill.data.types.FeatureSource`.

    Reading and adding go through the system's page cache and take no memory of the process, whatever the size. Several
    threads and processes may do both at once.

    Attributes:
        path: The file of records; it may have holes.
        count: Samples of the source.
        width: D, features of a sample.
    """

    path: Path
    count: int
    width: int

    @property
    def record_bytes(self) -> int:
        """Bytes of a sample: 8,196 with D = 2048."""
        return _CHECK_BYTES + 4 * self.width

    @property
    def full_bytes(self) -> int:
        """The disk for all samples: 10.5 GB with 1.28 M and D = 2048."""
        return self.count * self.record_bytes

    def read(self, indices: IntArray) -> KnownFeatures:
        """What is stored for the samples `indices`, int64 [N] in [0, count); N may be 0.

        Raises:
            RunError: The file cannot be read.
        """
        values = np.zeros((len(indices), self.width), dtype=np.float32)
        usable = np.zeros(len(indices), dtype=np.bool_)
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return KnownFeatures(self, values, usable)
        try:
            for place, index in enumerate(indices.tolist()):
                record = os.pread(descriptor, self.record_bytes, index * self.record_bytes)
                data = record[_CHECK_BYTES:]
                if record[:_CHECK_BYTES] == _check(data, index):
                    values[place] = np.frombuffer(data, "<f4")
                    usable[place] = True
        except OSError as error:
            raise RunError(f"cannot read the features in {self.path}: {error.strerror}. Delete the file") from error
        finally:
            os.close(descriptor)
        return KnownFeatures(self, values, usable)

    def add(self, indices: IntArray, values: FloatArray) -> None:
        """Stores the features, float32 [N, D], of the samples `indices`, int64 [N].

        Raises:
            RunError: They could not be written.
        """
        if values.shape != (len(indices), self.width):
            raise ValueError(f"features must be [{len(indices)}, {self.width}], received {list(values.shape)}")
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                for index, row in zip(indices.tolist(), values.astype("<f4"), strict=True):
                    data = row.tobytes()
                    write_all(descriptor, _check(data, index) + data, index * self.record_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RunError(
                f"cannot write the features to {self.path}: {error.strerror}. All of them take "
                f"{readable_bytes(self.full_bytes)}. Free some space, choose another folder with "
                "runtime.features_folder, or do without: runtime.reuse_features=false. The last checkpoint is intact"
            ) from error


def _check(data: bytes, index: int) -> bytes:
    """CRC-32 of a record and its index, never 0: neither a hole nor a record at a wrong place passes."""
    return (zlib.crc32(data, index & 0xFFFFFFFF) or 1).to_bytes(_CHECK_BYTES, "little")


@dataclass(frozen=True)
class FeatureFolder:
    """Where the features of one network lie.

    Attributes:
        folder: Made where a store is opened.
        network: What tells this network, and what computes it, from others, as JSON holds it.
        width: D.
    """

    folder: Path
    network: Mapping[str, Any]
    width: int

    def training(self, images: Images, stage: Stage) -> FeatureStore | None:
        """The store of a stage's training images; None where they are different ones in every epoch.

        Raises:
            RunError: The folder cannot be written.
        """
        return self._store(images, stage.view) if stage.repeats_views else None

    def evaluation(self, images: Images, section: EvaluationSection) -> FeatureStore:
        """The store of the images that a student is measured on; raises as `training`."""
        crop = CenterCrop(kind="center", resize_short_px=section.resize_short_px)
        return self._store(images, ViewSection(size_px=section.crop_px, crop=crop, horizontal_flip=0.0))

    def _store(self, images: Images, view: ViewSection) -> FeatureStore:
        key = {
            "format": FORMAT,
            "network": dict(self.network),
            "view": view.model_dump(mode="json"),
            "images": {"count": len(images), **images.identity()},
        }
        content = json.dumps(key, indent=2)
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot make {self.folder}: {error.strerror}. Choose another folder with runtime.features_folder"
            ) from error
        write_atomically(self.folder / f"{name}.json", content + "\n")
        return FeatureStore(self.folder / f"{name}.features", len(images), self.width)
