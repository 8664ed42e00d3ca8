"""Keys of a config that nothing would read: refused before anything is built."""

import ast
import contextlib
import difflib
import functools
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import mmengine.registry
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model.weight_init import BaseInit
from mmengine.optim import BaseOptimWrapper, _ParamScheduler
from mmengine.registry import Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    FlexibleRunner,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from mmengine.utils import ManagerMixin
from torch import nn
from torch.utils.data import DataLoader

from ..errors import ConfigError

NEAR = 0.82  # least similarity (difflib's ratio) of a misspelling
ROOTS = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]


class Taken(NamedTuple):
    """The keys that something takes."""

    names: frozenset[str]
    others: bool = True  # it takes other keys as well, or may do so


def _parameters(*functions: Any) -> set[str]:
    return {name for function in functions for name in inspect.signature(function).parameters}


OF_RUNNERS = _parameters(Runner, FlexibleRunner) - {'cfg'}
# Read by MMEngine besides, and by the train and test scripts of the family.
TOP_LEVEL = OF_RUNNERS | {
    *('custom_imports', 'find_unused_parameters', 'init_weights_for_test_or_val', 'log_level'),
    *('model_wrapper_cfg', 'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline', 'tta_test_cfg'),
}
# Read by one of the two runners, and what to write for it.
OF_FLEXIBLE_RUNNER = {'strategy': "write runner_type = 'FlexibleRunner' beside it"}
OF_PLAIN_RUNNER = {
    key: f'FlexibleRunner does not read it; {advice}'
    for key, advice in dict(
        compile='take it out',
        find_unused_parameters='write strategy.model_wrapper.find_unused_parameters',
        model_wrapper_cfg='write strategy.model_wrapper',
        sync_bn='write strategy.sync_bn',
    ).items()
}
LOADER = _parameters(DataLoader) | {'disable_subprocess_warning', 'num_batch_per_epoch'}
# Dicts that need no type.
UNTYPED = {
    'auto_scale_lr': {'base_batch_size', 'enable'},
    'env_cfg': {'cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit'},
    'log_processor': _parameters(LogProcessor),
    'randomness': {'deterministic', 'diff_rank_seed', 'seed'},
    'train_cfg': _parameters(EpochBasedTrainLoop, IterBasedTrainLoop) | {'by_epoch'},
    'val_cfg': _parameters(ValLoop),
    'test_cfg': _parameters(TestLoop),
    **dict.fromkeys(('train_dataloader', 'val_dataloader', 'test_dataloader'), LOADER),
}
# What stands in a dict besides the constructor's keys, and is read by what builds the object: by
# MMEngine and mmcv; of modules also by ResNet, FCNMaskHead and DETRHead for the parts in them, and
# by mmcv's deformable convolutions, under an older name.
READ_BEFORE = {
    BaseInit: {'name', 'override'},
    BaseOptimWrapper: {'constructor', 'paramwise_cfg'},
    Hook: {'priority'},
    ManagerMixin: {'name'},
    _ParamScheduler: {'convert_to_iter_based'},
    nn.Module: {
        *('bg_cls_weight', 'deformable_groups', 'fallback_on_stride', 'requires_grad'),
        'scale_factor',
    },
}
# Classes of these read no keys of the parts in them but those. Others may, and of the parts in them
# misspellings alone are refused.
KNOWN = {'convnext_dense', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'torch'}
OPAQUE = {'Albu'}  # the types inside are another library's


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse options of a command line that would change nothing.

    That is a top-level key that neither the config has nor the runner reads, and a misspelling of a
    key that is there. Keys that the config lacks and the ``type`` beside them takes are right.

    Args:
        cfg: without the options.
        options: dotted key -> value.

    Raises:
        ConfigError: names each of them, and what is near.
    """
    scope, wrong = cfg.get('default_scope') or 'mmengine', {}
    for option in options:
        node: Any = cfg
        parts = option.split('.')
        for depth, part in enumerate(parts):
            if isinstance(node, (list, tuple)):
                node = node[int(part)] if part.isdigit() and int(part) < len(node) else None
            elif not isinstance(node, (dict, Config)) or part.startswith('_'):
                break
            elif part in node:
                node = node[part]
            else:
                advice = None
                if depth:
                    types = _types(node, node.get('_scope_') or scope)
                    if not any(part in _taken(kind).names for kind in types):
                        advice = _near(part, node)
                elif part not in TOP_LEVEL:
                    advice = _near(part, TOP_LEVEL | set(cfg)) or 'the config has no such key'
                if advice:
                    wrong['.'.join(parts[: depth + 1])] = advice
                break
    _refuse(wrong)


def check_keys(cfg: Config) -> None:
    """Refuse keys that would be ignored, or that end a training when they come to be used.

    - A key that the constructor of the ``type`` beside it does not take. Where a constructor takes
      any key, only a misspelling of one that it names is refused. Types that are in no registry are
      left alone, with all that is inside.
    - A top-level key that is a misspelling of one that the runner reads. Other keys there may be
      variables of the file.
    - A top-level key that only the other of MMEngine's two runners reads.

    Raises:
        ConfigError: names each key in full, and what is near.
    """
    wrong = {}
    for key in cfg:
        if key not in TOP_LEVEL and (advice := _near(key, OF_RUNNERS)):
            wrong[key] = advice
    of_other = OF_PLAIN_RUNNER if is_flexible(cfg) else OF_FLEXIBLE_RUNNER
    wrong.update((key, advice) for key, advice in of_other.items() if cfg.get(key))
    scope = cfg.get('default_scope') or 'mmengine'
    for key in sorted(TOP_LEVEL):
        value = cfg.get(key)
        if key in UNTYPED and isinstance(value, dict) and 'type' not in value:
            others = key != 'auto_scale_lr'  # all that is not read there is ignored
            wrong.update(_unread(value, key, Taken(frozenset(UNTYPED[key]), others), key))
        wrong.update(_walk(value, key, scope))
    _refuse(wrong)


def is_flexible(cfg: Config) -> bool:
    """Whether the config is for MMEngine's FlexibleRunner, which trains by a strategy."""
    return getattr(cfg.get('runner_type'), '__name__', cfg.get('runner_type')) == 'FlexibleRunner'


def _refuse(wrong: Mapping[str, str]) -> None:
    if wrong:
        lines = [f'  {key}: {advice}' for key, advice in wrong.items()]
        raise ConfigError('\n'.join(['these keys of the config would not be read:', *lines]))


def _walk(value: Any, path: str, scope: str, known: bool = True) -> Iterator[tuple[str, str]]:
    """Key and advice for each key that would not be read, at any depth.

    Args:
        known: whether all that ``value`` is a part of is of ``KNOWN`` classes.
    """
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _walk(item, f'{path}.{i}', scope, known)
    elif isinstance(value, dict):
        scope = value.get('_scope_') or scope
        if 'type' in value:
            types = _types(value, scope)
            if not types or value['type'] in OPAQUE:
                return
            taken = [_taken(kind) for kind in types]
            names = frozenset[str]().union(*(names for names, _ in taken))
            others = not known or any(others for _, others in taken)
            title = str(getattr(value['type'], '__name__', value['type']))
            read = {
                key
                for base, keys in READ_BEFORE.items()
                for kind in types
                if inspect.isclass(kind) and issubclass(kind, base)
                for key in keys
            }
            rest = {key: inner for key, inner in value.items() if key not in read}
            yield from _unread(rest, path, Taken(names, others), title)
            known = known and all(kind.__module__.split('.')[0] in KNOWN for kind in types)
        for key, inner in value.items():
            yield from _walk(inner, f'{path}.{key}', scope, known)


def _unread(value: dict, path: str, taken: Taken, title: str) -> Iterator[tuple[str, str]]:
    for key in value:
        if key in taken.names or key == 'type' or str(key).startswith('_'):
            continue
        near = _near(key, taken.names)
        if near or not taken.others:
            takes = f'it takes {", ".join(sorted(taken.names))}'
            yield f'{path}.{key}', f'{title} does not take it; {near or takes}'


def _near(key: str, names: Iterable[str]) -> str | None:
    """Advice where ``key`` is a misspelling, and not another name made of the same: ``model_2``."""
    for name in difflib.get_close_matches(key, [str(name) for name in names], 1, NEAR):
        if not key.startswith(f'{name}_') and not key.endswith(f'_{name}'):
            return f'write {name} in its place, or take it out'
    return None


def _types(value: dict, scope: str) -> list:
    """What the ``type`` of a dict may be: of each registry that has it, or itself."""
    kind = value.get('type')
    if not isinstance(kind, str):
        return [kind] if callable(kind) else []
    return _registered(kind, scope)


@functools.cache
def _registered(name: str, scope: str) -> list:
    types: list = []
    for registry in _registries(scope):
        if '.' in name:  # begins with its scope, or with its module
            with contextlib.suppress(RuntimeError):  # it is not here
                types.append(registry.get(name))
            continue
        while registry is not None:
            if name in registry.module_dict:
                types.append(registry.module_dict[name])
                break
            registry = registry.parent
    return [kind for kind in dict.fromkeys(types) if callable(kind)]


@functools.cache
def _registries(scope: str) -> list[Registry]:
    try:
        import_module(f'{scope}.registry')
    except ImportError:  # the runner says so
        return []
    registries = [root.children.get(scope, root) for root in ROOTS]
    for registry in registries:
        registry.import_from_location()
    return registries


@functools.cache
def _taken(kind: Any) -> Taken:
    """Of a class: by its constructor, and those above it as long as each hands on all others."""
    if not inspect.isclass(kind):
        return _signature(kind)
    names: set[str] = set()
    hands_on = True
    for base in kind.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        init = vars(base)['__init__']
        taken = _signature(init)
        names |= taken.names
        if not taken.others:
            return Taken(frozenset(names), not hands_on)
        hands_on = hands_on and _only_hands_on(init)
    return Taken(frozenset(names))


def _signature(function: Any) -> Taken:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return Taken(frozenset())
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = frozenset(parameter.name for parameter in parameters if parameter.kind in kinds)
    others = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return Taken(names - {'self'}, others)


def _only_hands_on(function: Any) -> bool:
    """Whether all that a constructor does with ``**kwargs`` is to give them to the next one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError, TypeError):
        return False
    if not isinstance(tree, ast.FunctionDef) or not tree.args.kwarg:
        return False
    others = tree.args.kwarg.arg
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == others]
    handed_on = [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'super().__init__'
        for keyword in node.keywords
        if keyword.arg is None
    ]
    return bool(uses) and all(use in handed_on for use in uses)
