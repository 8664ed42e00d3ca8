"""What a comparison of models leaves: a table, CSV, JSON, and one HTML page without other files."""

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import color_sequences
from matplotlib.colors import to_hex
from PIL import Image
from rich.table import Table

from ..data.pictures import overlay, read
from ..pages import render
from ..printing import table as make_table
from .kept_rows import Row

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

WIDTH = 480  # of an example, in pixels
# of the models
COLOURS = [to_hex(colour) for name in ('tab10', 'Dark2') for colour in color_sequences[name]]


class Figure(NamedTuple):
    """A column of the tables."""

    value: Callable[[Row], float]  # NaN: not measured
    digits: int  # after the point


def latency(row: Row) -> float:
    """Milliseconds of one image, median."""
    return 1e3 * median(row.seconds or [nan])


MARKERS = {
    '': 'o',
    'fused': 's',
    'bf16': 'D',
    'fused, bf16': 'D',
    'onnxruntime': '^',
    'openvino': 'v',
}  # form of a model -> its mark
MEASUREMENTS = {
    'latency, ms': Figure(latency, 1),
    'p95, ms': Figure(lambda row: 1e3 * float(np.percentile(row.seconds or [nan], 95)), 1),
    'images/s': Figure(lambda row: (row.batch or nan) / median(row.batch_seconds or [nan]), 1),
    'memory, MB': Figure(lambda row: (row.memory or nan) / 1e6, 1),
    'parameters, M': Figure(lambda row: (row.parameters or nan) / 1e6, 2),
    'FLOPs, G': Figure(lambda row: (row.flops or nan) / 1e9, 2),
}


def set_labels(rows: Sequence[Row]) -> None:
    """The names without the part behind the last ``_``, if that is the same of all models."""
    names = [_base(row) for row in rows]
    ends = {name.rpartition('_')[2] for name in names}
    end = f'_{ends.pop()}' if len(set(names)) > 1 and len(ends) == 1 else ''
    for row, name in zip(rows, names):
        row.label = name.removesuffix(end) + f', {row.form}' * bool(row.form)


def _base(row):
    """The name without the form."""
    return row.name.removesuffix(f', {row.form}')


def columns(rows: Sequence[Row]) -> dict[str, Figure]:
    """By heading: all metrics that a row has, then what was measured."""
    names = dict.fromkeys(name for row in rows if not row.error for name in row.metrics)
    figures = {name: Figure(partial(_metric, name=name), 2) for name in names}
    if any(row.tta for row in rows):
        main = next(iter(names), '')
        figures[f'{main}, TTA'] = Figure(lambda row: (row.tta or {}).get(main, nan), 2)
    return figures | MEASUREMENTS


def _metric(row, name):
    return row.metrics.get(name, nan)


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the texts of every row; a dash where there is no figure."""
    figures = columns(rows)
    texts = []
    for row in rows:
        values = [(figure.value(row), figure.digits) for figure in figures.values()]
        row_texts = ['–' if isnan(value) else f'{value:.{digits}f}' for value, digits in values]
        texts.append([row.label, *row_texts])
    return ['model', *figures], texts


def table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    heading, texts = cells(rows)
    return make_table(heading, texts, red=[i for i, row in enumerate(rows) if row.error])


def scores(row: Row) -> str:
    """The metrics in a line."""
    return ', '.join(f'{name} {value:.2f}' for name, value in row.metrics.items())


def write(rows: Sequence[Row], about: dict, folder: Path) -> None:
    """Write ``results.csv``, ``results.json`` and ``index.html``.

    Args:
        about: what all rows have in common: the machine, versions, ``data``, ``batch`` and
            ``command``.
    """
    set_labels(rows)
    figures = columns(rows)
    with open(folder / 'results.csv', 'w', newline='', encoding='utf-8') as file:
        sheet = csv.writer(file)
        sheet.writerow(['model', *figures, 'error'])
        for row in rows:
            values = [figure.value(row) for figure in figures.values()]
            known = ['' if isnan(value) else value for value in values]
            sheet.writerow([row.name, *known, row.error or ''])
    content = dict(machine=about, models=[row.known() for row in rows])
    (folder / 'results.json').write_text(json.dumps(content, indent=1), encoding='utf-8')

    heading, texts = cells(rows)
    compared = [row for row in rows if not row.error]
    unfused = [row for row in compared if not row.form]  # else they predict the same, or nearly
    text = render(
        'segmentors_page.html',
        about=about,
        heading=heading,
        texts=list(zip(rows, texts)),
        first=compared[0] if compared else None,
        plots=plots([row for row in compared if row.seconds], heading[1]),
        models=[row.label for row in unfused],
        classes=class_table(unfused),
        examples=example_pictures(unfused, folder),
        colours=model_colours(compared),
    )
    (folder / 'index.html').write_text(text, encoding='utf-8')


def class_table(rows: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Name and CSS colour of each class; of each model its IoU as text, and whether it is best.

    Empty for detectors.
    """
    lines = []
    for i, name in enumerate(rows[0].classes if rows and rows[0].meaning else ()):
        values = [row.per_class.get(name, {}).get('IoU') for row in rows]
        texts = ['–' if value is None else f'{value:.1f}' for value in values]
        best = max((float(text) for text in texts if text != '–'), default=0)
        colour = f'rgb({",".join(map(str, rows[0].palette[i]))})'
        lines.append((name, colour, [(text, best > 0 and text == f'{best:.1f}') for text in texts]))
    return lines


def model_colours(rows: Sequence[Row]) -> dict[str, str]:
    """Name of a row -> ``#rrggbb``. The forms of a model share a colour."""
    names = [_base(row) for row in rows]
    order = list(dict.fromkeys(names))
    return {row.name: COLOURS[order.index(name) % len(COLOURS)] for row, name in zip(rows, names)}


def plots(rows: Sequence[Row], metric: str) -> list[tuple[str, str]]:
    """Title and SVG of accuracy over latency, and of memory where it is known; none without rows.

    Small enough to be read on a telephone.
    """
    if not rows:
        return []
    with plt.rc_context({'font.size': 11, 'svg.hashsalt': 'convnext_dense'}):
        pictures = [(f'{metric} over latency', _svg(_plot_accuracy(rows, metric)))]
        measured = [row for row in rows if row.memory]  # not of exported files
        if measured:
            pictures.append(('Memory', _svg(_plot_memory(measured))))
    return pictures


def _plot_accuracy(rows, metric):
    height = 3.4 + 0.22 * ((len(rows) + 1) // 2)
    figure, axis = plt.subplots(figsize=(5, height), layout='constrained')
    colours = model_colours(rows)
    for row in rows:
        axis.plot(
            latency(row),
            _metric(row, metric),
            MARKERS[row.form],
            markersize=12 if row.form else 6,
            color=colours[row.name],
            label=row.label,
            markerfacecolor='none' if row.form else colours[row.name],
            markeredgewidth=2,
        )
    slowest = max(latency(row) for row in rows)
    axis.set(xlabel='latency, ms (median, one image)', ylabel=f'{metric}, %')
    axis.set(xlim=(0, 1.1 * slowest))
    axis.margins(y=0.15)
    axis.grid(alpha=0.3)
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc='outside lower center',
        ncols=1 + (max(len(row.label) for row in rows) < 33),
        fontsize=9,
        frameon=False,
        markerscale=0.7,
    )
    return figure


def _plot_memory(rows):
    figure, axis = plt.subplots(figsize=(5, 1.2 + 0.42 * len(rows)), layout='constrained')
    values = [row.memory / 1e6 for row in rows]
    colours = model_colours(rows).values()
    bars = axis.barh([row.label for row in rows], values, color=list(colours), height=0.6)
    axis.bar_label(bars, [f'{value:.0f}' for value in values], padding=3)
    axis.set(xlabel='peak memory of one image, MB', xlim=(0, 1.15 * max(values)))
    axis.invert_yaxis()
    axis.tick_params(axis='y', labelsize=10)
    axis.spines[['top', 'right']].set_visible(False)
    return figure


def _svg(figure):
    file = io.StringIO()
    # tight: long names make it wider
    figure.savefig(file, format='svg', bbox_inches='tight', metadata={'Date': None})
    plt.close(figure)
    text = file.getvalue()
    return text[text.index('<svg') :]


def example_pictures(rows: Sequence[Row], folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Name of an image -> caption and data URI of the image, the truth, and what models predict.

    Empty for detectors.
    """
    if not rows or not rows[0].palette or not (folder / rows[0].folder / 'truth').is_dir():
        return {}
    maps = {'truth': folder / rows[0].folder / 'truth'}
    maps |= {row.label: folder / row.folder / 'predictions' for row in rows}
    examples = {}
    for path, name in rows[0].examples:
        image = Image.fromarray(read(Path(path))[0])
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)))
        pictures = [('image', _uri(np.asarray(image)))]
        for caption, map_folder in maps.items():
            labels = Image.open(map_folder / name).resize(image.size, Image.Resampling.NEAREST)
            shown = overlay(np.asarray(image), np.asarray(labels), rows[0].palette)
            pictures.append((caption, _uri(shown)))
        examples[Path(path).name] = pictures
    return examples


def _uri(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=88)
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()
