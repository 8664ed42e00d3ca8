"""Configs of models without the pretrained weights that they name."""

from typing import TypeVar

Part = TypeVar('Part')


def without_pretrained(part: Part, keep_teacher: bool = False) -> Part:
    """A copy of a model's config, or of a part of it, that fetches no weights.

    Left out at every depth: ``init_cfg`` of type ``Pretrained`` (in a list of several, only that
    entry), ``pretrained``, and ``teacher_ckpt``, from which mmdet's distillation loads its teacher.

    Args:
        keep_teacher: leave ``teacher_ckpt`` where it is. A run that is resumed needs it: mmdet
            keeps the teacher out of the model's modules, so no checkpoint of a training has it.
    """
    keys = {'pretrained'} if keep_teacher else {'pretrained', 'teacher_ckpt'}

    def copy(value):
        if isinstance(value, dict):
            items = value.items()
            return type(value)(
                {k: copy(v) for k, v in items if k not in keys and not _is_pretrained(v)}
            )
        if isinstance(value, (list, tuple)):
            return type(value)(copy(inner) for inner in value if not _is_pretrained(inner))
        return value

    return copy(part)


def _is_pretrained(value) -> bool:
    """Of MMEngine, by its registered name or as the class itself."""
    kind = value.get('type') if isinstance(value, dict) else None
    return getattr(kind, '__name__', kind) in ('Pretrained', 'PretrainedInit')
