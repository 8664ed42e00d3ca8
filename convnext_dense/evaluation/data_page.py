"""What is wrong with the data of a config, as a table, a page and a CSV file."""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image, ImageDraw
from rich.table import Table

from ..data import pictures
from ..data.checking import Report, classes_of, data_sets, head_problems, width_problems
from ..data.problems import COUNTED, REFUSED, Problem
from ..errors import ConfigError
from ..inference.building import build
from ..pages import render
from ..printing import table

SHOWN = 4  # pictures of a kind
SIDE = 320  # pixels of a picture, at most
HEADER = 'split', 'reads', 'checked as', 'images', 'classes', 'refused', 'told'


def head_report(cfg: Config) -> list[Report]:
    """The heads of the config's model beside the classes of its data sets, and beside its maps.

    Raises:
        ConfigError: the model cannot be built.
    """
    try:
        model = build(cfg.model, 'meta')
    except Exception as error:
        raise ConfigError(
            f'the model of this config cannot be built: {type(error).__name__}: {error}'
        ) from error
    problems = dict.fromkeys(
        problem
        for _, leaf in data_sets(cfg)
        if classes_of(leaf)
        for problem in head_problems(model, leaf)
    )
    wrong = [*problems, *width_problems(model)]
    return [Report('all', 'the model', 'classes and widths', 0, Counter(), wrong)]


def summary(reports: Sequence[Report]) -> Table:
    rows = _rows(reports)
    red = [i for i, row in enumerate(rows) if row[5]]
    return table(HEADER, rows, justify='left', red=red)


def _rows(reports):
    rows = []
    for report in reports:
        refused = sum(problem.kind in REFUSED for problem in report.problems)
        told = len(report.problems) - refused
        seen = len(report.classes)
        rows.append([report.split, report.source, report.kind, report.images, seen, refused, told])
    return rows


def write(reports: Sequence[Report], folder: Path, config: str) -> Path:
    """Write ``index.html`` with its pictures, and ``problems.csv`` with every problem."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'problems.csv', 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['split', 'kind', 'is refused', 'file', 'detail', 'image'])
        for report in reports:
            for problem in report.problems:
                is_refused = 'yes' if problem.kind in REFUSED else 'no'
                writer.writerow([report.split, problem.kind, is_refused, *problem[1:4]])
    shutil.rmtree(folder / 'pictures', ignore_errors=True)
    values = dict(
        config=config,
        header=HEADER,
        rows=_rows(reports),
        kinds=list(_kinds(reports, folder)),
        histograms=[_histogram(report) for report in reports if report.classes],
    )
    page = folder / 'index.html'
    page.write_text(render('data_page.html', **values), encoding='utf-8')
    return page


def _kinds(reports: Sequence[Report], folder: Path) -> Iterator[dict]:
    problems = [problem for report in reports for problem in report.problems]
    for kind, advice in (REFUSED | COUNTED).items():
        items = [problem for problem in problems if problem.kind == kind]
        if not items:
            continue
        drawn: list[dict] = []
        for problem in items:
            if problem.image and len(drawn) < SHOWN:
                name = f'pictures/{kind.replace(" ", "-")}-{len(drawn)}.jpg'
                if _draw(problem, folder / name):
                    drawn.append(dict(file=name, text=str(problem)))
        first = list(map(str, items[:20]))
        refused = kind in REFUSED
        yield dict(
            name=kind, count=len(items), advice=advice, refused=refused, lines=first, drawn=drawn
        )


def _draw(problem: Problem, path: Path) -> bool:
    try:
        picture = Image.fromarray(pictures.read(Path(problem.image))[0])
    except (OSError, SyntaxError, ValueError):
        return False
    scale = min(1, SIDE / max(picture.size))
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    if problem.box:
        x, y, width, height = np.array(problem.box) * scale
        corners = [x, y, max(x, x + width), max(y, y + height)]
        ImageDraw.Draw(picture).rectangle(corners, outline='red', width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return True


def _histogram(report: Report) -> dict:
    largest, total = max(report.classes.values()), sum(report.classes.values())
    bars = [
        dict(
            name=name, count=f'{count:,}', share=f'{count / total:.1%}', width=100 * count / largest
        )
        for name, count in report.classes.most_common()
    ]
    return dict(title=f'{report.split}: {report.source}', bars=bars)
