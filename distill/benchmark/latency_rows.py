"""Rows of the latency table: which networks, what was measured of them, and the CSV that keeps it."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from distill.benchmark.tables import count_network, published_latencies, published_models
from distill.errors import UserError, did_you_mean
from distill.files import write_atomically

EngineName = Literal["eager", "predictor", "onnxruntime"]
LatencyPrecision = Literal["float32", "bfloat16", "float16"]
USUAL_CROP_PX, USUAL_RESIZE_PX = 224, 256


@dataclass(frozen=True)
class Target:
    """A network at an image size; weights of several published rows share one.

    Attributes:
        model: The network's name, or at a size of its own that of the first published row with it.
        network: A name in `SPECS`.
        crop_px: Height and width of the images.
        resize_short_px: That the short side is resized to before; it changes no time.
    """

    model: str
    network: str
    crop_px: int
    resize_short_px: int

    @property
    def macs(self) -> float:
        """Multiply-accumulates of one image."""
        return 1e9 * count_network(self.network, self.crop_px).macs_g


def all_targets() -> list[Target]:
    """Every network of the published accuracy table, in its order, each at the size or sizes it was published at."""
    resize = {(row.model, row.crop_px): row.resize_short_px for row in published_latencies()}
    found: dict[tuple[str, int], Target] = {}
    for row in published_models():
        model = row.network if row.crop_px == USUAL_CROP_PX else row.model
        target = Target(model, row.network, row.crop_px, resize.get((row.model, row.crop_px), USUAL_RESIZE_PX))
        found.setdefault((row.network, row.crop_px), target)
    return list(found.values())


def choose_targets(models: Sequence[str]) -> list[Target]:
    """The targets of published rows.

    Args:
        models: Names of networks or of published rows; none: the series, which is all but its WSL teachers.

    Raises:
        UserError: An unknown name.
    """
    targets = {(target.network, target.crop_px): target for target in all_targets()}
    if not models:
        return [target for target in targets.values() if not target.network.endswith("_wsl")]
    places = {row.model: (row.network, row.crop_px) for row in published_models()}
    for model in models:
        if model not in places:
            raise UserError(f"unknown model {model!r}.{did_you_mean(model, places)} Valid: {', '.join(places)}")
    return [targets[place] for place in dict.fromkeys(places[model] for model in models)]


@dataclass(frozen=True)
class LatencyRow:
    """What was measured of a network on an engine, for one batch size.

    Attributes:
        model: See `Target`.
        crop_px: See `Target`.
        resize_short_px: See `Target`.
        engine: What computed.
        precision: In which it did.
        batch: Images in a call.
        runs: How many calls were timed.
        min_ms: Of them, for the whole batch, the quickest.
        median_ms: The median.
        p90_ms: The 90th percentile.
        date: YYYY-MM-DD.
        processor: What computed: `report.device_name`.
        threads: Of the engine, on a CPU.
        versions: "paddle 3.3.1, onnxruntime 1.32.0".
    """

    model: str
    crop_px: int
    resize_short_px: int
    engine: str
    precision: str
    batch: int
    runs: int
    min_ms: float
    median_ms: float
    p90_ms: float
    date: str
    processor: str
    threads: int
    versions: str

    @property
    def key(self) -> tuple[str, int, str, str, int]:
        """Tells it from the other rows."""
        return self.model, self.crop_px, self.engine, self.precision, self.batch

    @property
    def machine(self) -> str:
        """What rows of one table have in common."""
        return f"{self.processor}, {self.threads} threads, {self.versions}"


COLUMNS = tuple(field.name for field in fields(LatencyRow))


def read_rows(path: Path) -> list[LatencyRow]:
    """The rows of a CSV that `write_rows` wrote; none where there is no file.

    Raises:
        UserError: It cannot be read, or a line of it is no row; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the table {path} cannot be read: {error}") from error
    lines = csv.reader(io.StringIO(text))
    if tuple(next(lines, ())) != COLUMNS:
        raise UserError(f"{path} is not a table of latencies: expected the columns {', '.join(COLUMNS)}")
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 2)]


def write_rows(path: Path, rows: Iterable[LatencyRow]) -> None:
    """Writes all rows atomically, in the order of the published table."""
    places = {(target.model, target.crop_px): place for place, target in enumerate(all_targets())}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: (places.get((row.model, row.crop_px), len(places)), row.key)):
        writer.writerow(asdict(row).values())
    write_atomically(path, text.getvalue())


def _row(line: Sequence[str], where: str) -> LatencyRow:
    try:
        return LatencyRow(
            **{field.name: field.type(value) for field, value in zip(fields(LatencyRow), line, strict=True)}  # type: ignore[operator]
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: not a row of the table ({error}); expected {', '.join(COLUMNS)}") from None
