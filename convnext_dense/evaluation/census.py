"""Swap the backbone of every config that mmdet and mmseg install, train each distinct model for a step, write the table."""

import json
import multiprocessing
import os
import re
import resource
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from rich.progress import track

from ..errors import ConfigError
from ..swap import plan, prove
from ..swap.finding import LIBRARIES, at, find_owners, read_config, zoo
from ..swap.proof import run_step

LIMIT = 900  # seconds for one model
NOT_GRAPH = re.compile(
    'init_cfg|pretrained|train_cfg|test_cfg|data_preprocessor|num_classes|loss.*'
)
BERT = 'bert-base-uncased'
STATES = dict(
    works='works',
    adapter='works with an adapter',
    cannot='cannot',
    broken='does not run before the swap',
    fails='fails',
)


def in_processes(function, items, what):
    """One process for each item, so that none can take the others along: not by a crash, nor by time or memory."""

    def one(item):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=lambda: theirs.send(limited(function, item)))
        process.start()
        theirs.close()
        try:
            result = (
                ours.recv() if ours.poll(LIMIT) else dict(state='fails', why=f'more than {LIMIT} s')
            )
        except EOFError:
            result = dict(state='fails', why='the process crashed')
        process.kill()
        process.join()
        return result

    context = multiprocessing.get_context('fork')  # with the libraries imported
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(track(threads.map(one, items), what, len(items)))


# ---- in the processes ----


def prepare(bert, arch):
    global BERT_FOLDER, ARCH
    BERT_FOLDER, ARCH = bert, arch
    import mmseg.models  # noqa: F401

    torch.set_num_threads(1)


def limited(function, item):
    warnings.filterwarnings('ignore')
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    resource.setrlimit(
        resource.RLIMIT_AS, (memory * 4 // 5, memory * 4 // 5)
    )  # address space is more than what is used
    with open(os.devnull, 'w') as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        return function(item)


def read(library, name):
    os.chdir(zoo(library).parent)  # a distilled model names its teacher relative to there
    cfg = read_config(zoo(library) / name)
    if isinstance(cfg.get('model'), dict):
        cfg.model = fit_to_machine(cfg.model)
    return cfg


def swap(item):
    try:
        cfg = read(*item)
        if not isinstance(cfg.get('model'), dict):
            return dict(state='no model')
        done = plan(cfg, ARCH)
    except ConfigError as error:
        if 'not a config that MMEngine can read' in str(error) or 'new-style' in str(
            error
        ):  # scripts that lie among them
            return dict(state='no model')
        refused = 'another backbone' in str(error) or 'no backbone' in str(error)
        return dict(state='cannot' if refused else 'fails', why=str(error))
    except Exception as error:
        return dict(state='fails', why=f'{type(error).__name__}: {error}')
    graph = json.dumps(graph_of(done.cfg.model.to_dict()), sort_keys=True, default=str)
    lost = [warning for warning in done.warnings if 'gone with it' in warning]
    return dict(state='swapped', graph=graph, adapters=done.adapters, lost=lost)


def train(item):
    """The step that proves a swapped model. If it fails, its original is asked for one."""
    try:
        proof = prove(plan(read(*item), ARCH))
        return dict(step=proof.step, unused=proof.without_gradient)
    except Exception as error:
        reason = first_reason(error)
    try:
        cfg = read(*item)
        run_step(at(cfg, find_owners(cfg)[0]))
    except Exception as error:
        if 'does not reach' not in str(error):  # frozen stems of old backbones
            return dict(state='broken', why=first_reason(error))
    return dict(state='fails', why=reason)


def first_reason(error):
    return (
        ' '.join(re.sub('.*ConfigError: ', '', str(error), flags=re.S).split('; ')[0].split())
        or type(error).__name__
    )


def graph_of(value):
    if isinstance(value, dict):
        return {
            key: graph_of(inner) for key, inner in value.items() if not NOT_GRAPH.fullmatch(key)
        }
    return [graph_of(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def fit_to_machine(value):
    """The small BERT, and no checkpointing by fairscale, which saves memory only."""
    if isinstance(value, dict):
        return type(value)(
            {key: 0 if key == 'num_cp' else fit_to_machine(inner) for key, inner in value.items()}
        )
    if isinstance(value, (list, tuple)):
        return type(value)(fit_to_machine(inner) for inner in value)
    return BERT_FOLDER if value == BERT else value


def make_bert(folder):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', 'a', 'b']
    Path(folder, 'vocab.txt').write_text(
        '\n'.join(words + [f'[unused{i}]' for i in range(1000)]), encoding='utf-8'
    )
    BertTokenizerFast(str(Path(folder, 'vocab.txt'))).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words) + 1000, num_hidden_layers=2)).save_pretrained(folder)
    return folder


# ---- the report ----


def report(rows, arch):
    exchangeable = [row for row in rows if row['state'] != 'cannot']
    families = {(row['library'], row['family']) for row in exchangeable}
    broken = {
        key for key in families if all(row['state'] == 'broken' for row in of(exchangeable, key))
    }
    whole = {
        key
        for key in families - broken
        if all(row['state'] in ('works', 'adapter', 'broken') for row in of(exchangeable, key))
    }
    counted = [row for row in exchangeable if row['state'] != 'broken']
    good = [row for row in counted if row['state'] in ('works', 'adapter')]
    chosen = [row for row in rows if row.get('of') == row['config']]
    steps = Counter(row.get('step') for row in chosen if row['state'] in ('works', 'adapter'))
    lines = [
        '# Census: whose backbone can be swapped',
        '',
        f'Made by `make census`; ConvNeXt-{arch}. {versions()}',
        '',
        f'{len(rows)} configs with a model were swapped. Their swapped models are {len(chosen)} distinct ones (equal but for weights, '
        'losses, numbers of classes, and settings of training and test counts as one), and each of these was built and run: '
        f'{steps["loss"]} trained a step with the loss of the method, {steps["forward"]} ran forward and backward from their raw '
        'outputs, because their loss needs data of its own kind. "Works" means that gradients reached the stem.',
        '',
        f'**{len(whole)} of {len(families - broken)} families** whose backbone is exchangeable work, and {len(good)} of '
        f'{len(counted)} of their configs ({len(good) / max(len(counted), 1):.1%}). Configs that do not run with their own '
        'backbone here either are not counted; what stopped them is quoted below.',
        '',
    ]
    for library in LIBRARIES:
        lines += [
            f'## {library}',
            '',
            '| family | configs | distinct | '
            + ' | '.join(STATES.values())
            + ' | adapter or reason |',
            '|---' * (len(STATES) + 4) + '|',
        ]
        for key in sorted(
            {(row['library'], row['family']) for row in rows if row['library'] == library}
        ):
            own = of(rows, key)
            states = Counter(row['state'] for row in own)
            notes = Counter(
                note for row in own for note in dict.fromkeys(row.get('adapters') or [])
            )
            notes.update(
                row['why'].partition(':')[0] if row['state'] == 'cannot' else 'see below'
                for row in own
                if row['state'] in ('cannot', 'broken', 'fails')
            )
            notes.update(
                'layers of the method were in the old backbone' for row in own if row.get('lost')
            )
            lines.append(
                f'| {key[1]} | {len(own)} | {sum(row.get("of") == row["config"] for row in own)} | '
                + ' | '.join(str(states[state] or '') for state in STATES)
                + f' | {"; ".join(notes)} |'
            )
        lines.append('')
    for state, title in (
        ('cannot', 'Cannot'),
        ('broken', 'Does not run before the swap'),
        ('fails', 'Fails'),
    ):
        found = {}
        for row in rows:
            if row['state'] == state:
                found.setdefault(row['why'], []).append(row['config'])
        lines += [f'## {title}', '']
        lines += [
            f'- {", ".join(f"`{name}`" for name in names[:3])}{f" and {len(names) - 3} more" if len(names) > 3 else ""}: {why[:400]}'
            for why, names in found.items()
        ] or ['None.']
        lines.append('')
    unused = [row for row in chosen if row.get('unused')]
    lines += [
        '## Maps without a gradient',
        '',
        'Distributed training of these needs `find_unused_parameters=True`, which the tool sets:',
        '',
    ]
    lines += [f'- `{row["config"]}`: {", ".join(row["unused"])}' for row in unused] or ['None.']
    return '\n'.join(lines) + '\n'


def of(rows, key):
    return [row for row in rows if (row['library'], row['family']) == key]


def versions():
    import mmdet
    import mmengine
    import mmseg

    return (
        f'mmdet {mmdet.__version__}, mmseg {mmseg.__version__}, mmengine {mmengine.__version__}, '
        f'torch {torch.__version__.partition("+")[0]}, CPU only.'
    )
