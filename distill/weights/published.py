"""The published files of the series: what there is, where, under which licence."""

import csv
from dataclasses import dataclass
from importlib import resources

from distill.errors import UserError, did_you_mean

NON_COMMERCIAL = "CC-BY-NC-4.0"
RELEASES = ("2.1", "2.0", "1.x")
"""Of PaddleClas, the newest first. 2.1 stands for all since; 1.x are tars of static graphs, not read here."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights that PaddleClas' documents or code name.

    Attributes:
        name: The published row's name, e.g. "ResNet50_vd_ssld_v2".
        model: The network.
        variant: "plain", "v2", "ssld", "ssld_v2", "fix_ssld_v2" or "fix".
        release: One of `RELEASES`.
        url: Its address, which need not hold `name`.
        licence: In words; `NON_COMMERCIAL` must be accepted.
        top1: Published for the name, in per cent, on ImageNet-1k's validation images.
        remark: What else one should know.
        source: Which public document gives the address.
    """

    name: str
    model: str
    variant: str
    release: str
    url: str
    licence: str
    top1: str
    remark: str
    source: str

    @property
    def file_name(self) -> str:
        """Its name on the disk: two addresses end alike and hold different weights, names do not."""
        return f"{self.name}_pretrained{'.tar' if self.release == '1.x' else '.pdparams'}"


def published_files() -> list[PublishedFile]:
    """All of them, by row of the published table, the newest release first."""
    table = resources.files("distill.weights").joinpath("published.tsv").read_text(encoding="utf-8")
    return [PublishedFile(**row) for row in csv.DictReader(table.splitlines(), delimiter="\t")]


def find_file(model: str, variant: str = "plain", release: str | None = None) -> PublishedFile:
    """Returns the file of a network.

    Args:
        model: The network, or a row's whole name such as "ResNet50_vd_ssld_v2".
        variant: See `PublishedFile`.
        release: One of `RELEASES`; None: the newest that has it.

    Raises:
        UserError: There is none; the message lists what there is.
    """
    files = published_files()
    names = {file.name: (file.model, file.variant) for file in files}
    if variant == "plain" and model in names:
        model, variant = names[model]
    of_model = [file for file in files if file.model == model]
    if not of_model:
        raise UserError(
            f"unknown model {model!r}.{did_you_mean(model, names)} `distill weights list` shows what is published"
        )
    found = [file for file in of_model if file.variant == variant and release in (None, file.release)]
    if not found:
        there = ", ".join(f"{file.variant} ({file.release})" for file in of_model)
        wanted = variant if release is None else f"{variant} ({release})"
        raise UserError(f"{model} is not published as {wanted}. There is: {there}")
    return found[0]
