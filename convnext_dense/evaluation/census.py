"""The census: configs are swapped, those that mmdet and mmseg install or others, and judged.

Each config is swapped, and each distinct swapped model trained and judged, in a process of its own.
So none takes the others along when it crashes, and its limits of time and memory are its own.
"""

import hashlib
import io
import json
import os
import re
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import torch
from mmengine.config import Config

from ..config_names import config_folder
from ..errors import ConfigError
from ..printing import markdown_table
from ..swap import plan, prove
from ..swap.config_files import import_modules, read_config
from ..swap.proof import ORIGINAL_FAILS
from ..weights import PRESETS
from .judgement import Verdict, judge_images, judge_model, why_it_does_not_run
from .processes import Process, ask_each

LIMIT = 900  # seconds for one model
KEPT = Path('work_dirs/census')  # what is done; the same command goes on after an interruption
# Keys that may differ between configs of the same model.
NOT_GRAPH = re.compile(
    'init_cfg|pretrained|train_cfg|test_cfg|data_preprocessor|num_classes|loss.*'
)
BERT = 'bert-base-uncased'
# Of this package what no trial reads, and what none reads but to plan a swap.
NOT_READ = 'commands', 'data', 'demo', 'doctor', 'export', 'runtime', 'training'
PLANNING = tuple(
    f'swap/{name}'
    for name in (
        'cases',
        'config_files',
        'optimiser',
        'planning',
        'rewiring',
        'stages',
        'surroundings',
        'widths',
        'writing',
    )
)
STATES = dict(
    works='works',
    adapter='works with an adapter',
    cannot='cannot',
    broken='does not run before the swap',
    fails='fails',
    wrong='runs, but is wrong',
)
NO_MODEL = {'no model': 'no config of a model'}
# Part of a ConfigError's message -> the state of a config of which it is said.
STATE_OF_ERROR = {
    'not a config that MMEngine can read': 'no model',  # a script that lies among the configs
    'another backbone': 'cannot',
    'no backbone': 'cannot',
    'cannot be imported': 'broken',
}


@dataclass
class Row:
    """What came of one config."""

    config: str  # LIBRARY/FAMILY/NAME.py, or the path that was given
    path: Path
    folder: Path  # that it is read in
    state: str = ''  # a key of STATES, or of NO_MODEL
    why: str = ''  # it cannot, is broken, fails or is wrong
    adapters: list[str] = field(default_factory=list)  # Swap.adapters
    lost: bool = False  # layers of the method were in the old backbone
    graph: str = ''  # the swapped model as JSON, but for what may differ
    configs: str = ''  # digest of the original and of the swapped config
    trained: bool = False  # itself: it is the first of its graph
    step: str = ''  # Proof.step
    unused: list[str] = field(default_factory=list)  # Proof.without_gradient
    faults: list[str] = field(default_factory=list)  # Verdict.faults, those of images
    not_judged: list[str] = field(default_factory=list)

    @property
    def family(self) -> str:
        return '/'.join(self.config.split('/')[:2])

    @property
    def works(self) -> bool:
        return self.state in ('works', 'adapter')


def configs_of_libraries(only: str = '') -> list[Row]:
    """Every config of mmdet and mmseg whose path contains ``only``."""
    return [
        Row(f'{library}/{path.relative_to(folder).as_posix()}', path, folder.parent)
        for library in ('mmdet', 'mmseg')
        if (folder := config_folder(library))
        for path in sorted(folder.rglob('*.py'))
        if '_base_' not in path.parts and only in str(path)
    ]


def configs_in(paths: Sequence[str]) -> list[Row]:
    """Configs, and those in folders but for what lies under ``_base_``.

    Raises:
        ConfigError: there is nothing at a path.
    """
    configs: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigError(f'no config and no folder at {path}')
        inside = sorted(path.rglob('*.py')) if path.is_dir() else [path]
        configs += [config for config in inside if path == config or '_base_' not in config.parts]
    return [Row(config.as_posix(), config.absolute(), Path.cwd()) for config in configs]


def census(rows: Sequence[Row], arch: str, modules: Sequence[str] = ()) -> list[Row]:
    """Swap each config, train and judge each distinct model for a step; scripts are left out.

    Args:
        modules: that are imported first.
    """
    try:
        for name in ('mmdet.models', 'mmdet.datasets', 'mmseg.models', 'mmseg.datasets'):
            import_module(name)  # once, for all processes
    except Exception as error:
        raise ConfigError(
            f'mmdet and mmseg cannot be imported: {type(error).__name__}: {error}'
        ) from error
    with tempfile.TemporaryDirectory() as bert:
        make_bert(bert)
        rows = _answers('swapped', rows, arch, bert, modules)
        first: dict[str, Row] = {}
        for row in rows:
            if row.graph:
                row.trained = first.setdefault(row.graph, row) is row
        trained = _answers('trained', first.values(), arch, bert, modules)
    proofs = {row.graph: row for row in trained}
    for row in rows:
        if proof := proofs.get(row.graph):
            row.why, row.step, row.unused = proof.why, proof.step, proof.unused
            row.state = 'adapter' if proof.state == 'works' and row.adapters else proof.state
            reasons = [*row.not_judged, *(proof.not_judged if row.trained else [])]
            row.not_judged = list(dict.fromkeys(reasons))
        if row.works and row.faults:
            row.state, row.why = 'wrong', '; '.join(row.faults)
    return rows


def _answers(question: str, rows: Iterable[Row], *arguments) -> list[Row]:
    """What the ``Trial`` of each row, in a process of its own, answers to ``question``."""
    rows = list(rows)
    starts = {
        KEPT / f'{_key(question, row, arguments)}.json': partial(
            Process, Trial, row, *arguments, method='fork'
        )
        for row in rows
    }
    return [
        replace(row, state='fails', why=str(answer))
        if isinstance(answer, RuntimeError)
        else Row(**answer | dict(path=row.path, folder=row.folder))
        for row, answer in zip(rows, ask_each(question, starts, LIMIT))
    ]


def _key(question: str, row: Row, arguments: Sequence) -> str:
    """Of all that an answer depends on: the row, the options and the code.

    A step of training depends on the planning of a swap by its result alone, so that a change of
    the planning trains again only those models that it changes.
    """
    arch, _, modules = arguments  # the folder of the BERT is another one each time
    parts = [question, row.config, arch, modules, versions()]
    if question == 'trained':
        parts += [row.configs, code_digest(*NOT_READ, *PLANNING)]
    else:
        parts += [row.path.read_bytes(), code_digest(*NOT_READ)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@cache
def code_digest(*left_out: str) -> str:
    """Of this package, as it was when the census began.

    Args:
        left_out: folders, and modules without ``.py``, relative to the package.
    """
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob('*.py')):
        name = path.relative_to(package).with_suffix('').as_posix()
        if not any(name == part or name.startswith(f'{part}/') for part in left_out):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Trial:
    """A config in a process of its own, which this limits in memory and in what it prints.

    Args:
        bert: folder of the BERT that takes the place of the published one.
        modules: that are imported first.
    """

    def __init__(self, row: Row, arch: str, bert: str, modules: Sequence[str]):
        self.row, self.arch, self.bert, self.modules = row, arch, bert, modules
        # where images are normalised for pretrained weights, which are not fetched
        presets = [name for name, preset in PRESETS.items() if preset.arch == arch]
        self.preset = presets[0] if presets else None
        torch.set_num_threads(1)
        warnings.filterwarnings('ignore')
        sys.stderr = io.StringIO()
        # of address space, which is more than what is used
        limit = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') * 4 // 5
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def swapped(self) -> Row:
        """The row with the graph of its swapped model, or with the reason why there is none."""
        cfg = None
        try:
            cfg = self._read()
            if not isinstance(cfg.get('model'), dict):
                return replace(self.row, state='no model')
            swap = plan(cfg, self.arch, self.preset)
        except ConfigError as error:
            states = [state for part, state in STATE_OF_ERROR.items() if part in str(error)]
            reason = '' if states or cfg is None else why_it_does_not_run(cfg)
            states += ['broken'] if reason else ['fails']
            return replace(self.row, state=states[0], why=reason or str(error))
        images = Verdict([], [])
        if self.preset:
            preset = PRESETS[self.preset]
            images = judge_images(swap, preset.mean, preset.std)
        graph = json.dumps(graph_of(swap.cfg.model.to_dict()), sort_keys=True, default=str)
        both = [swap.original.to_dict(), swap.cfg.to_dict(), swap.owners]
        text = json.dumps(both, sort_keys=True, default=str).replace(self.bert, BERT)
        configs = hashlib.sha256(text.encode()).hexdigest()
        lost = any('gone with it' in warning for warning in swap.warnings)
        row = replace(self.row, faults=images.faults, not_judged=images.not_judged)
        return replace(row, graph=graph, configs=configs, adapters=swap.adapters, lost=lost)

    def trained(self) -> Row:
        """The row after a step of training; where it fails, after the original's."""
        try:
            swap = plan(self._read(), self.arch, self.preset)
            step, _, unused = prove(swap)
            faults, not_judged = judge_model(swap)
            state, why = 'wrong' if faults else 'works', '; '.join(faults)
            row = replace(self.row, state=state, why=why, not_judged=not_judged)
            return replace(row, step=step, unused=unused)
        except Exception as error:
            reason = str(error).partition(ORIGINAL_FAILS)[2]
            if reason:
                return replace(self.row, state='broken', why=' '.join(reason.split()))
            return replace(self.row, state='fails', why=first_reason(error))

    def _read(self) -> Config:
        os.chdir(self.row.folder)  # a distilled model names its teacher relative to there
        import_modules(self.modules, self.row.path)
        cfg = read_config(self.row.path)
        if isinstance(cfg.get('model'), dict):
            cfg.model = fit_to_machine(cfg.model, self.bert)
        return cfg


def first_reason(error: Exception) -> str:
    text = re.sub('.*ConfigError: ', '', str(error), flags=re.DOTALL).split('; ')[0]
    return ' '.join(text.split()) or type(error).__name__


def graph_of(value):
    if isinstance(value, dict):
        kept = [key for key in value if not NOT_GRAPH.fullmatch(str(key))]
        return {str(key): graph_of(value[key]) for key in kept}
    return [graph_of(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def fit_to_machine(value, bert: str):
    """The small BERT, and no checkpointing by fairscale, which saves memory only."""
    if isinstance(value, dict):
        return type(value)(
            {k: 0 if k == 'num_cp' else fit_to_machine(v, bert) for k, v in value.items()}
        )
    if isinstance(value, (list, tuple)):
        return type(value)(fit_to_machine(inner, bert) for inner in value)
    return bert if value == BERT else value


def make_bert(folder: str) -> None:
    """Write a BERT of two layers with random weights, and its tokenizer.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        from transformers import BertConfig, BertModel, BertTokenizerFast
    except ImportError as error:
        raise ConfigError(
            f'the census needs a BERT of transformers, and {error}: '
            'pip install "convnext_dense[peers]"'
        ) from None

    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', 'a', 'b']
    words += [f'[unused{i}]' for i in range(1000)]
    vocabulary = Path(folder, 'vocab.txt')
    vocabulary.write_text('\n'.join(words), encoding='utf-8')
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=2)).save_pretrained(folder)


# ---- the report ----


def report(rows: Sequence[Row], arch: str) -> str:
    """The page in Markdown, without scripts that lie among the configs."""
    rows = [row for row in rows if row.state != 'no model']
    parts = [summary(rows, arch)]
    for library in ('mmdet', 'mmseg'):
        of_library = [row for row in rows if row.config.startswith(f'{library}/')]
        parts += [f'## {library}', table(of_library)]
    for state in ('cannot', 'broken', 'fails', 'wrong'):
        of_state = [row for row in rows if row.state == state]
        parts += [f'## {STATES[state].capitalize()}', reasons(of_state)]
    unused = [row for row in rows if row.trained and row.unused]
    parts += [
        '## Maps without a gradient',
        'Distributed training of these needs `find_unused_parameters=True`, which the tool sets:',
        '\n'.join(f'- `{row.config}`: {", ".join(row.unused)}' for row in unused) or 'None.',
        '## Not judged',
        'Configs of which something could not be compared, and why:',
        not_judged(rows),
    ]
    return '\n\n'.join(parts) + '\n'


def report_of_each(rows: Sequence[Row], arch: str) -> str:
    """The page in Markdown, with a line for each config."""
    states = Counter(row.state for row in rows)
    names = STATES | NO_MODEL
    counts = ', '.join(f'{states[state]} {text}' for state, text in names.items())
    lines = []
    for row in rows:
        remarks = '; '.join(dict.fromkeys([row.why, *row.adapters, *row.not_judged]))
        lines.append([f'`{row.config}`', names[row.state], remarks[:300].strip('; ')])
    return (
        f'{len(rows)} configs on ConvNeXt-{arch}: {counts}. {versions()}\n\n'
        + markdown_table(['config', 'outcome', 'why, or what was not compared'], lines)
        + '\n'
    )


def summary(rows: Sequence[Row], arch: str) -> str:
    counted = [row for row in rows if row.state not in ('cannot', 'broken')]
    good = [row for row in counted if row.works]
    families = {row.family for row in counted}
    whole = families - {row.family for row in counted if not row.works}
    trained = [row for row in rows if row.trained]
    steps = Counter(row.step for row in trained if row.works)
    return (
        '# Census: whose backbone can be swapped\n\n'
        f'Made by `convnext-dense census`; ConvNeXt-{arch}. {versions()}\n\n'
        f'{len(rows)} configs with a model were swapped. Their swapped models are {len(trained)} '
        'distinct ones (equal but for weights, losses, numbers of classes, and settings of '
        'training and test counts as one), and each of these was built and run: '
        f'{steps["loss"]} trained a step with the loss of the method, {steps["forward"]} ran '
        'forward and backward from their raw outputs, because their loss needs data of its own '
        'kind. "Works" means that gradients reached the stem, and that three measurements agree: '
        'images reach the network as the weights expect, maps are read at the strides that were '
        'told, and what was trained before still is. '
        f'{sum(bool(row.not_judged) for row in rows)} configs could not be judged whole.\n\n'
        f'**{len(whole)} of {len(families)} families** whose backbone is exchangeable work, and '
        f'{len(good)} of {len(counted)} of their configs ({len(good) / max(len(counted), 1):.1%}). '
        'Configs that do not run with their own backbone here either are not counted; what '
        'stopped them is quoted below.'
    )


def table(rows: Sequence[Row]) -> str:
    """A line for each family."""
    lines = []
    for name in sorted({row.family for row in rows}):
        family = [row for row in rows if row.family == name]
        states = Counter(row.state for row in family)
        counts = [states[state] or '' for state in STATES]
        distinct = sum(row.trained for row in family)
        name = name.rpartition('/')[2]
        lines.append([name, len(family), distinct, *counts, '; '.join(notes(family))])
    return markdown_table(
        ['family', 'configs', 'distinct', *STATES.values(), 'adapter or reason'], lines
    )


def notes(family: Sequence[Row]) -> list[str]:
    """What is to be said of a family's configs, each note once."""
    texts = [adapter for row in family for adapter in row.adapters]
    texts += [
        row.why.partition(':')[0] if row.state == 'cannot' else 'see below'
        for row in family
        if not row.works
    ]
    if any(row.lost for row in family):
        texts.append('layers of the method were in the old backbone')
    return list(dict.fromkeys(texts))


def reasons(rows: Sequence[Row]) -> str:
    """Why rows do not work."""
    return by_text((row.config, row.why) for row in rows)


def not_judged(rows: Sequence[Row]) -> str:
    return by_text((row.config, text) for row in rows for text in row.not_judged)


def by_text(pairs: Iterable[tuple[str, str]]) -> str:
    """Each text with the first of its configs."""
    configs: dict[str, list[str]] = {}
    for config, text in pairs:
        configs.setdefault(text, []).append(f'`{config}`')
    lines = []
    for why, names in configs.items():
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        lines.append(f'- {", ".join(names[:3])}{more}: {why[:400]}')
    return '\n'.join(lines) or 'None.'


def versions() -> str:
    import mmdet
    import mmengine
    import mmseg

    return (
        f'mmdet {mmdet.__version__}, mmseg {mmseg.__version__}, mmengine {mmengine.__version__}, '
        f'torch {torch.__version__.partition("+")[0]}, CPU only.'
    )
