"""Stops a training whose loss is NaN or infinite, before the weights are spoilt."""

from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..layer_decay import FSDP, WRAPPER
from ..registry import HOOKS


@HOOKS.register_module()
class FiniteHook(Hook):
    """Looks at the loss of each iteration before it changes the weights.

    Without loss scaling the training stops at the first one that is not finite. With it, at the
    ``patience``-th in a row: such a step is skipped, since its gradients are not finite either. The
    batch is run once more, and the message names the first module whose output is not finite, the
    images and the iteration. All processes stop together.

    Raises:
        FloatingPointError: from within the iteration.
    """

    def __init__(self, patience: int = 10):
        self.patience = patience
        self.in_a_row = 0
        self.batch = None

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        update, scales = wrapper.update_params, hasattr(wrapper, 'loss_scaler')

        def update_if_finite(loss, *args, **kwargs):
            self.in_a_row = 0 if self._is_finite(loss) else self.in_a_row + 1
            if self.in_a_row >= (self.patience if scales else 1):
                raise FloatingPointError(self._describe(runner, loss))
            update(loss, *args, **kwargs)

        wrapper.update_params = update_if_finite

    def after_train(self, runner: Runner) -> None:
        del runner.optim_wrapper.update_params  # that of its class is there again

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self.batch = data_batch

    @staticmethod
    def _is_finite(loss: Tensor) -> bool:
        """In all processes."""
        flag = loss.detach().isfinite().all().to(torch.uint8)
        if get_world_size() > 1:
            all_reduce(flag, 'min')
        return bool(flag)

    def _describe(self, runner: Runner, loss: Tensor) -> str:
        rate = max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups)
        here = '' if get_world_size() == 1 else f' (process {get_rank()})'
        # In all processes, whose forwards may wait for each other (SyncBN, FSDP).
        cause = first_not_finite(runner.model, self.batch)
        if loss.isfinite().all():
            return f'iteration {runner.iter + 1}: the loss of another process is not finite'
        lines = [
            f'iteration {runner.iter + 1}: the loss is {loss.item()}{here}, the largest learning '
            f'rate {rate:.3g} now. This batch has not changed the weights; if earlier ones have '
            'ruined them, a lower optim_wrapper.optimizer.lr helps',
            cause,
        ]
        lines += [f'  image: {path}' for path in image_paths(self.batch)]
        return '\n'.join(lines)


def first_not_finite(model: Any, batch) -> str:
    """Run a batch once more, and tell where the first NaN or infinity comes from."""
    whole = model
    while is_model_wrapper(model):
        model = model.module
    names = {module: name for name, module in model.named_modules() if not list(module.children())}
    spoilt = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    where: list[str] = []

    def look(module, inputs, output):
        if not where and not _all_finite(output):
            kind = 'are not finite' if not _all_finite(inputs) else 'are finite'
            name = WRAPPER.sub('', names[module])
            where.append(f'{name} ({type(module).__name__}), whose inputs {kind}')

    handles = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad():
            data = model.data_preprocessor(batch, True)
            # FSDP's units have their weights within the forward of the outermost alone
            runs: Any = whole if isinstance(whole, FSDP) else model
            runs._run_forward(data, mode='loss')
    finally:
        for handle in handles:
            handle.remove()
    if spoilt:
        return f'{len(spoilt)} weights were not finite before it, such as {spoilt[0]}'
    if not _all_finite(data):
        return 'the images are not finite after they were prepared'
    if where:
        return f'the first output that is not finite: {where[0]}'
    return 'run again, all outputs of its modules are finite: the loss itself is not'


def image_paths(batch) -> list[str]:
    """The files of a batch, where its samples name them."""
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    return [sample.img_path for sample in samples if 'img_path' in sample]


def _all_finite(value) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(_all_finite(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return all(_all_finite(inner) for inner in value)
    return True
