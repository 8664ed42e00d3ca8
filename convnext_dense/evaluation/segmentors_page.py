"""What the comparison of models leaves: a table for the terminal, CSV, JSON, and one HTML page that needs no other file."""

import base64
import csv
import io
import json
from pathlib import Path
from statistics import median

import matplotlib
import numpy as np
from PIL import Image
from rich.table import Column, Table

from ..data.pictures import overlay, read
from ..pages import render

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

WIDTH = 480  # of an example, in pixels
LINES = plt.cm.tab10.colors + plt.cm.Dark2.colors  # of the models


def label(rows):
    """Give every row the ``label`` under which it is shown: its name without what all names end with."""
    names = [row['name'].removesuffix(', fused') for row in rows]
    end = (
        names[0].rpartition('_')[2]
        if len(set(names)) > 1 and len({one.rpartition('_')[2] for one in names}) == 1
        else None
    )
    for row, one in zip(rows, names):
        row['label'] = (one.removesuffix(f'_{end}') if end else one) + ', fused' * row['is_fused']


def columns(rows):
    """Heading -> (figure of a row, its format). Metrics as the rows have them."""
    fine = [row for row in rows if 'error' not in row]
    found = {
        name: (lambda row, name=name: row['metrics'].get(name), '.2f')
        for row in fine
        for name in row['metrics']
    }
    main = next(iter(found), '')
    if any('tta' in row for row in fine):
        found[f'{main}, TTA'] = (lambda row: row['tta'][main], '.2f')
    found.update(
        {
            'latency, ms': (lambda row: 1e3 * median(row['seconds']), '.1f'),
            'p95, ms': (lambda row: 1e3 * np.percentile(row['seconds'], 95), '.1f'),
            'images/s': (lambda row: row['batch'] / median(row['batch_seconds']), '.1f'),
            'memory, MB': (lambda row: row['memory'] / 1e6, '.1f'),
            'parameters, M': (lambda row: row['parameters'] / 1e6, '.2f'),
            'FLOPs, G': (lambda row: row['flops'] / 1e9, '.2f'),
        }
    )
    return found


def figure(row, value):
    """Of a column, or None: not measured, not yet, or not to be had."""
    try:
        return value(row)
    except (KeyError, TypeError):
        return None


def cells(rows):
    """Heading and texts of every row; a dash where there is no figure."""
    wanted = columns(rows)
    label(rows)
    texts = [
        [
            row['label'],
            *(
                format(found, spec) if (found := figure(row, value)) is not None else '–'
                for value, spec in wanted.values()
            ),
        ]
        for row in rows
    ]
    return ['model', *wanted], texts


def table(rows):
    heading, texts = cells(rows)
    shown = Table(heading[0], *(Column(name, justify='right') for name in heading[1:]))
    for row, text in zip(rows, texts):
        shown.add_row(*text, style='red' if 'error' in row else None)
    return shown


def scores(row):
    return ', '.join(f'{name} {value:.2f}' for name, value in row['metrics'].items())


def write(rows, about, folder):
    for row in rows:
        row.setdefault('batch', about['batch'])
    (heading, texts), figures = cells(rows), columns(rows).values()
    with open(folder / 'results.csv', 'w', newline='', encoding='utf-8') as file:
        sheet = csv.writer(file)
        sheet.writerow([*heading, 'error'])
        for row in rows:
            sheet.writerow(
                [row['name'], *(figure(row, value) for value, _ in figures), row.get('error', '')]
            )
    (folder / 'results.json').write_text(
        json.dumps(dict(machine=about, models=rows), indent=1), encoding='utf-8'
    )
    fine = [row for row in rows if 'error' not in row]
    metric, shown = (
        heading[1] if fine else '',
        [row for row in fine if not row['is_fused']],
    )  # fused: the same predictions
    timed = [row for row in fine if row.get('seconds')]
    (folder / 'index.html').write_text(
        render(
            'segmentors_page.html',
            about=about,
            heading=heading,
            texts=list(zip(rows, texts)),
            first=fine[0] if fine else None,
            metric=metric,
            plots=plots(timed, metric) if timed else [],
            models=[row['label'] for row in shown],
            classes=classes(shown),
            examples=examples(shown, folder),
            colours={
                row['name']: '#%02x%02x%02x' % tuple(round(255 * part) for part in colour)
                for row, colour in zip(fine, line_colours(fine))
            },
        ),
        encoding='utf-8',
    )


def classes(rows):
    """Name, colour and per model the IoU of each class, best in its row or not; of segmentors."""
    found = []
    for i, name in enumerate(rows[0]['classes'] if rows and rows[0]['meaning'] else ()):
        values = [row['per_class'].get(name, {}).get('IoU') for row in rows]  # not of every metric
        texts = ['–' if value is None else f'{value:.1f}' for value in values]
        best = max((float(text) for text in texts if text != '–'), default=0)
        found.append(
            (
                name,
                f'rgb({",".join(map(str, rows[0]["palette"][i]))})',
                [(text, bool(best) and text == f'{best:.1f}') for text in texts],
            )
        )
    return found


def line_colours(rows):
    """A model and its fused form share a colour."""
    plain = list(dict.fromkeys(row['name'].removesuffix(', fused') for row in rows))
    return [LINES[plain.index(row['name'].removesuffix(', fused')) % len(LINES)] for row in rows]


def plots(rows, metric):
    """Accuracy over latency, and memory, as SVG. Small enough to be read on a telephone."""
    colours = line_colours(rows)
    with plt.rc_context({'font.size': 11, 'svg.hashsalt': 'convnext_dense'}):
        height = 3.4 + 0.22 * ((len(rows) + 1) // 2)
        first, axis = plt.subplots(figsize=(5, height), layout='constrained')
        for row, colour in zip(rows, colours):
            axis.plot(
                1e3 * median(row['seconds']),
                row['metrics'].get(metric, np.nan),
                's' if row['is_fused'] else 'o',
                markersize=12 if row['is_fused'] else 6,
                color=colour,
                label=row['label'],
                markerfacecolor='none' if row['is_fused'] else colour,
                markeredgewidth=2,
            )
        axis.set(
            xlabel='latency, ms (median, one image)',
            ylabel=f'{metric}, %',
            xlim=(0, 1.1e3 * max(median(row['seconds']) for row in rows)),
        )
        axis.margins(y=0.15)
        axis.grid(alpha=0.3)
        first.legend(
            *axis.get_legend_handles_labels(),
            loc='outside lower center',
            ncols=1 + (max(len(row['label']) for row in rows) < 33),
            fontsize=9,
            frameon=False,
            markerscale=0.7,
        )
        second, axis = plt.subplots(figsize=(5, 1.2 + 0.42 * len(rows)), layout='constrained')
        values = [row['memory'] / 1e6 for row in rows]
        bars = axis.barh([row['label'] for row in rows], values, color=colours, height=0.6)
        axis.bar_label(bars, [f'{value:.0f}' for value in values], padding=3)
        axis.set(xlabel='peak memory of one image, MB', xlim=(0, 1.15 * max(values)))
        axis.invert_yaxis()
        axis.tick_params(axis='y', labelsize=10)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
        return [(f'{metric} over latency', _svg(first)), ('Memory', _svg(second))]


def _svg(shown):
    file = io.StringIO()
    shown.savefig(
        file, format='svg', bbox_inches='tight', metadata={'Date': None}
    )  # long names make it wider
    plt.close(shown)
    text = file.getvalue()
    return text[text.index('<svg') :]


def examples(rows, folder):
    """Name of the image -> [(caption, picture as data URI)]: the image, the truth, and what every model predicts."""
    if (
        not rows
        or not rows[0].get('palette')
        or not (folder / rows[0]['folder'] / 'truth').is_dir()
    ):
        return {}
    colours, found = rows[0]['palette'], {}
    for path, name in rows[0]['examples']:
        image = Image.fromarray(read(Path(path))[0])
        small = image.resize((WIDTH, round(image.height * WIDTH / image.width)))
        shown = [('image', np.asarray(small))]
        for caption, labels in [('truth', folder / rows[0]['folder'] / 'truth' / name)] + [
            (row['label'], folder / row['folder'] / 'predictions' / name) for row in rows
        ]:
            shown.append(
                (
                    caption,
                    overlay(
                        np.asarray(small),
                        np.asarray(Image.open(labels).resize(small.size, Image.NEAREST)),
                        colours,
                    ),
                )
            )
        found[Path(path).name] = [(caption, _uri(picture)) for caption, picture in shown]
    return found


def _uri(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=88)
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()
