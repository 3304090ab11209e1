"""Accuracy of the series against what it costs: the four figures of the series' document, and a user's own points."""

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.benchmark.labelling import Boxes, nearest_point, place_labels
from distill.benchmark.measurements import Measurement
from distill.benchmark.tables import PublishedModel, count, flops_doubt, latency_ms, published_models
from distill.benchmark.zoo import counted_measurement
from distill.errors import UserError
from distill.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
SIZE_INCHES = (9.0, 6.0)
_RADIUS_PX = 9.0
_PADDING_PX = 2.0
_LINE_BOX_PX = 8.0
_LINE_FROM_PX = 20.0  # a name farther away than this gets a line to its point

PublishedCost = Callable[[PublishedModel], float | None]
MeasuredCost = Callable[[Measurement], float | None]


@dataclass(frozen=True)
class Axis:
    """What a figure has on its horizontal axis.

    Attributes:
        file: Name of the files, without their endings.
        label: Of the axis, with the unit.
        title: Of the figure.
        published: The cost of a published row.
        measured: The cost of a checkpoint that the user measured; None: unknown.
        note: Below the figure.
        measured_note: There too, where it shows what was measured.
        families: What the legend says of the rows.
    """

    file: str
    label: str
    title: str
    published: PublishedCost
    measured: MeasuredCost
    note: str = ""
    measured_note: str = ""
    families: str = "published"


@dataclass(frozen=True)
class Family:
    """Rows that are drawn alike.

    Attributes:
        title: In the legend.
        rows: Their names.
        colour: Of marks and line.
        marker: Matplotlib's.
        joined: Whether a line joins them.
    """

    title: str
    rows: tuple[str, ...]
    colour: str
    marker: str
    joined: bool = True


FAMILIES = (
    Family("ResNet", tuple(f"ResNet{depth}" for depth in (18, 34, 50, 101, 152)), "#4c6a92", "o"),
    Family("ResNet_vc", ("ResNet50_vc",), "#7a7a7a", "s", joined=False),
    Family("ResNet_vd", tuple(f"ResNet{depth}_vd" for depth in (18, 34, 50, 101, 152, 200)), "#2a8c82", "o"),
    Family("ResNet_vd, distilled (SSLD)", tuple(f"ResNet{n}_vd_ssld" for n in (34, 50, 101)), "#b5542d", "D"),
    Family(
        "distilled in other ways",
        ("ResNet50_vd_v2", "ResNet50_vd_ssld_v2", "Fix_ResNet50_vd_ssld_v2"),
        "#8a4f9e",
        "^",
        joined=False,
    ),
)
MEASURED = Family("measured here", (), "black", "*", joined=False)


def _latency(precision: str) -> tuple[PublishedCost, MeasuredCost]:
    def measured(found: Measurement) -> float | None:
        as_published = found.width == 1 and found.stem_stride == 4
        return latency_ms(found.model, found.crop_px, precision, 4) if as_published else None

    return lambda row: latency_ms(row.network, row.crop_px, precision, 4), measured


_LATENCY_NOTE = "Of what was measured here only the accuracy is ours; its latency is the network's published one."

AXES = (
    Axis(
        "accuracy_flops",
        "FLOPs of one image (G)",
        "accuracy and computation",
        lambda row: row.flops_g,
        lambda found: 2 * counted_measurement(found).macs_g,
        "!: the published FLOPs cannot be right, `distill zoo` says why.",
        "FLOPs of what was measured here are twice our multiply-accumulates.",
    ),
    Axis(
        "accuracy_parameters",
        "parameters (M)",
        "accuracy and size",
        lambda row: row.params_m,
        lambda found: counted_measurement(found).params_m,
    ),
    Axis(
        "accuracy_latency_fp32",
        "ms for 4 images",
        "accuracy and latency, T4, fp32",
        *_latency("fp32"),
        measured_note=_LATENCY_NOTE,
    ),
    Axis(
        "accuracy_latency_fp16",
        "ms for 4 images",
        "accuracy and latency, T4, fp16",
        *_latency("fp16"),
        measured_note=_LATENCY_NOTE,
    ),
)


@dataclass(frozen=True)
class Point:
    """A mark in a figure and its name; accuracy in %."""

    name: str
    cost: float
    top1: float
    family: Family


def draw_figures(folder: Path, measured: Sequence[Measurement]) -> list[Path]:
    """Writes each figure as PNG and SVG.

    Args:
        folder: Made where it is missing.
        measured: Drawn as stars over what is published; those that are not of ImageNet-1k's validation set are left
            out, and so are those whose cost is unknown.

    Returns:
        The files.

    Raises:
        UserError: The folder cannot be made.
        RunError: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}. Choose another folder with --figures") from error
    on_imagenet = [each for each in measured if each.on_imagenet]
    return [path for axis in AXES for path in write_figure(folder, axis, on_imagenet)]


def write_figure(folder: Path, axis: Axis, measured: Sequence[Measurement] = ()) -> list[Path]:
    """Writes one figure as PNG and SVG; see `draw_figures`."""
    figure = draw(axis, points(axis, measured))
    written = []
    for kind in ("png", "svg"):
        path = folder / f"{axis.file}.{kind}"
        write_atomically(path, _rendered(figure, kind))
        written.append(path)
    return written


def points(axis: Axis, measured: Sequence[Measurement]) -> list[Point]:
    """All that a figure shows: the rows of the series whose cost is published, and the measurements."""
    rows = {row.model: row for row in published_models()}
    found = []
    for family in FAMILIES:
        for name in family.rows:
            cost = axis.published(rows[name])
            mark = "!" if axis.file == "accuracy_flops" and flops_doubt(rows[name], count(rows[name])) else ""
            if cost is not None:
                found.append(Point(name + mark, cost, 100 * rows[name].top1, family))
    own = [(each, axis.measured(each)) for each in measured]
    return found + [Point(each.name, cost, 100 * each.top1, MEASURED) for each, cost in own if cost is not None]


def draw(axis: Axis, shown: Sequence[Point]) -> "Figure":
    """One figure; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for family in (*FAMILIES, MEASURED):
        own = sorted((point.cost, point.top1) for point in shown if point.family is family)
        if own:
            axes.plot(
                *zip(*own, strict=True),
                linestyle="-" if family.joined else "",
                linewidth=1,
                color=family.colour,
                marker=family.marker,
                markersize=12 if family is MEASURED else 6,
                markerfacecolor="none" if family is MEASURED else family.colour,  # what is published shows through
                label=family.title if family is MEASURED else f"{family.title}, {axis.families}",
            )
    axes.margins(x=0.12, y=0.08)
    axes.set_xlabel(axis.label)
    axes.set_ylabel("top-1 on ImageNet-1k's validation set (%)")
    axes.set_title(f"The ResNet series: {axis.title}", loc="left")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8, frameon=True, framealpha=1.0, edgecolor="#cccccc")
    measured_note = axis.measured_note if any(point.family is MEASURED for point in shown) else ""
    if note := f"{axis.note} {measured_note}".strip():
        figure.supxlabel(note, fontsize=7, color="#555555", x=0.01, ha="left")
    _name_points(figure, axes, shown)
    return figure


def _name_points(figure: "Figure", axes: "Axes", shown: Sequence[Point]) -> None:
    """Writes the points' names where they cover nothing."""
    figure.draw_without_rendering()  # lays out: only now a point's place in pixels is known
    figure.set_layout_engine("none")  # and from here on it stays
    whole = np.array([figure.bbox.width, figure.bbox.height])
    texts = [axes.annotate(point.name, (0, 0), xycoords="figure fraction", fontsize=7.5) for point in shown]
    extents = np.array([_box(text) for text in texts])
    sizes = extents[:, 2:] - extents[:, :2] + 2 * _PADDING_PX
    centres = axes.transData.transform([(point.cost, point.top1) for point in shown])
    boxes = place_labels(centres, sizes, _box(axes), _drawn(axes), radius_px=_RADIUS_PX)
    for text, box, centre, point in zip(texts, boxes, centres, shown, strict=True):
        text.set_color(point.family.colour)
        text.xy = tuple((box[:2] + _PADDING_PX) / whole)
        text.set_position(text.xy)
        end = nearest_point(box, centre)
        if np.linalg.norm(end - centre) > _LINE_FROM_PX:
            axes.annotate(
                "",
                xy=centre / whole,
                xytext=end / whole,
                xycoords="figure fraction",
                textcoords="figure fraction",
                arrowprops={"arrowstyle": "-", "color": point.family.colour, "linewidth": 0.5, "shrinkA": 0},
            )


def _drawn(axes: "Axes") -> Boxes:
    """What names should not cover: the legend, and small boxes along the lines."""
    boxes = [_box(axes.get_legend())[None]]
    for line in axes.get_lines():
        corners = axes.transData.transform(line.get_xydata()) if line.get_linestyle() == "-" else ()
        for first, second in itertools.pairwise(corners):
            steps = max(1, int(np.linalg.norm(second - first) / _LINE_BOX_PX))
            places = first + (second - first) * np.linspace(0, 1, steps + 1)[:, None]
            boxes.append(np.concatenate([places - 1, places + 1], axis=1))
    return np.concatenate(boxes)


def _box(artist: Any) -> Boxes:
    return np.array(artist.get_window_extent().extents, dtype=np.float64)


def _rendered(figure: "Figure", kind: str) -> bytes:
    """The figure as a file, the same bytes every time."""
    import matplotlib

    target = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "distill", "svg.fonttype": "none"}):
        figure.savefig(target, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return target.getvalue()
