"""The stage `report`: `report.json`, and `report.html`, one page for a person to look at."""

import json
from dataclasses import asdict

from data_mining.recipe import MiningRecipe
from data_mining.report.collect import collect
from data_mining.report.page import render
from data_mining.report.thumbnails import Thumbnails
from data_mining.select import result_key
from data_mining.stages import stages_of
from data_mining.workspace import StageReport, Workspace, make_key, stopwatch
from distill.files import write_atomically

STAGE = "report"


def run(workspace: Workspace, recipe: MiningRecipe) -> StageReport:
    """Writes both files into the output folder, from what the other stages have left.

    Raises:
        RunError: A stage of the recipe has not run.
    """
    with stopwatch() as seconds:
        stages = [stage for stage in stages_of(recipe) if stage != STAGE]
        with Thumbnails(workspace, recipe) as thumbnails:
            summary = collect(workspace, recipe, stages, thumbnails)
            page = render(summary, thumbnails.url)
        text = json.dumps(asdict(summary), indent=1, ensure_ascii=False) + "\n"
        write_atomically(workspace.root / "report.json", text)
        write_atomically(workspace.root / "report.html", page)
    key = make_key(STAGE, {}, [result_key(workspace, recipe)])
    return StageReport(STAGE, key, {"pictures": page.count("<img ")}, seconds=seconds[0])
