"""The parts of the GPU check: each runs a case, and returns its rows with their verdicts."""

import math
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..backbone import ConvNeXt
from ..folding import fuse
from .peers import (
    BOUND,
    MODES,
    OFFICIAL,
    OURS,
    OURS_IN_TRAINING,
    PEERS,
    Scenario,
    autocast,
    candidate,
    common,
    images_of,
    in_mode,
    infer,
    official,
    randomise,
    worst,
)
from .timing import Candidate, Measurement, figures, interleaved, operators, tf32

PASS, FAIL, UNJUDGED = 'pass', 'FAIL', '-'
FACTOR, FLOOR = 2, 2e-6  # of errors, for rounding in another order: see is_within
SAVES = 0.75  # most memory of a step that recomputes, as a share of that of a step that does not
STAGES = {'all': 4, 'first, scale 1e-6': 1}  # name of a case -> number of stages that are trained
# Of a model in its table, as in timing.Figures but for the milliseconds.
FIGURES = ('median, ms', 'spread', 'speed', 'from', 'to', 'memory, MB', 'relative memory')
Row = dict[str, Any]  # column of a part's table -> cell


class Settings(NamedTuple):
    device: str
    networks: dict[str, str | dict]  # V1 and V2, to compare: name -> arch
    compared: str  # images x height x width, as the other sizes
    timed: tuple[str, ...]  # V1 and V2 that the peers have too
    inference: str
    training: str
    precisions: tuple[str, ...]  # in which they are timed
    rounds: int
    compiler: str = 'inductor'  # backend of torch.compile


SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 16, 16))
SETTINGS = dict(
    cuda=Settings(
        device='cuda',
        networks=dict(tiny='tiny', v2_tiny='v2_tiny'),
        compared='2x256x256',
        timed=('tiny', 'v2_tiny'),
        inference='1x800x1280',
        training='8x512x512',
        precisions=('float32', 'float32, TF32', 'bfloat16', 'float16'),
        rounds=20,
    ),
    cpu=Settings(
        device='cpu',
        networks={'small V1': SMALL, 'small V2': dict(SMALL, generation=2)},
        compared='2x64x64',
        timed=('atto', 'v2_atto'),
        inference='1x64x64',
        # Some CPUs take 16 MB for the gradient of a depthwise convolution, whatever the size of
        # the maps; beside smaller maps it would hide what recomputing saves.
        training='2x96x96',
        precisions=('float32',),
        rounds=2,
    ),
)


# ---- the parts: each runs a case and returns its rows ----


def features(settings: Settings, network: str, stages: str, precision: str) -> list[Row]:
    """Maps and gradients of a training step, fp16 and bf16 under autocast with a GradScaler. Its
    scale is a quarter of the largest at which the official form has no overflow."""
    images, net = compared(settings, network)
    for name, parameter in net.named_parameters():
        if STAGES[stages] == 1 and name.endswith('gamma'):  # V1's layer scale, V2's GRN
            nn.init.constant_(parameter, 1e-6)
    run = partial(train, device=settings.device, stages=STAGES[stages])
    exact = run(official(net).double(), images.double(), torch.float64)
    dtype, reference, scale, rows = getattr(torch, precision), official(net), 2.0**48, []
    theirs = run(reference, images, dtype, scale=scale)
    while not theirs.is_taken and scale > 1:
        scale /= 16
        theirs = run(reference, images, dtype, scale=scale)
    limits = worst(theirs.maps, exact.maps), rms(theirs.gradients, exact.gradients)
    for mode in MODES:
        ours = run(in_mode(net, mode), images, dtype, scale=scale / 4)
        errors = worst(ours.maps, exact.maps), rms(ours.gradients, exact.gradients)
        row = {
            'checkpointing': mode,
            'maps': errors[0],
            'official maps': limits[0],
            'gradients': errors[1],
            'official gradients': limits[1],
            'step': 'taken' if ours.is_taken else 'skipped',
        }
        rows.append(judged(row, ours.is_taken and all(map(is_within, errors, limits))))
    return rows


def fused(settings: Settings, network: str, precision: str) -> list[Row]:
    """Maps of ``fuse``, weights and images in one precision. On a GPU, twice the images take no
    more operators."""
    device, dtype = settings.device, getattr(torch, precision)
    images, net = compared(settings, network)
    exact = infer(official(net).double().to(device), images.double().to(device))
    images, model = images.to(device, dtype), fuse(net).to(device, dtype)
    limit = worst(infer(official(net).to(device, dtype), images), exact)
    error = worst(infer(model, images), exact)
    batches = images, images.repeat(2, 1, 1, 1)
    few, many = (operators(partial(infer, model, batch)) for batch in batches)
    row = {'maps': error, 'official maps': limit, 'operators': few, 'for twice': many}
    return [judged(row, is_within(error, limit) and (device == 'cpu' or many <= few))]


def ddp(settings: Settings, network: str, checkpointing: str) -> list[Row]:
    """Gradients under DDP (a single process) with find_unused_parameters=False, beside those
    without DDP."""
    device, (images, net) = settings.device, compared(settings, network)
    alone, inner = in_mode(net, checkpointing), in_mode(net, checkpointing).to(device)
    backend = 'nccl' if device == 'cuda' else 'gloo'
    with tempfile.TemporaryDirectory() as folder:
        store = f'file://{folder}/store'
        torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            wrapped = DistributedDataParallel(inner, find_unused_parameters=False)
            for _ in range(2):  # the second raises if the first left a parameter without gradient
                steps = [train(model, images, torch.float32, device) for model in (wrapped, alone)]
        finally:
            torch.distributed.destroy_process_group()
    error = rms(*(step.gradients for step in steps))
    return [judged(dict(gradients=error), error < BOUND['float32'])]


def compiled(settings: Settings, network: str) -> list[Row]:
    """torch.compile with fullgraph=True at inference, in fp32: maps beside those of eager mode, and
    latency."""
    images, net = compared(settings, network)
    images, net = images.to(settings.device), net.to(settings.device)
    torch.compiler.reset()
    models = dict(compiled=torch.compile(net, fullgraph=True, backend=settings.compiler), eager=net)
    calls = {name: partial(infer, model, images) for name, model in models.items()}
    error = worst(calls['compiled'](), [part.double() for part in calls['eager']()])
    clocks = {name: Candidate(call, settings.device).seconds for name, call in calls.items()}
    seconds = interleaved(clocks, settings.rounds)
    latencies = {f'{name}, ms': 1e3 * median(times) for name, times in seconds.items()}
    return [judged(dict(maps=error, **latencies), error < BOUND['float32'])]


def inference(settings: Settings, network: str, precision: str) -> list[Row]:
    """Latency and peak memory, weights and images in one precision, in turns. Speed is relative to
    the fastest peer, memory to the lightest; the error is without TF32."""
    scenario = Scenario(network, settings.inference, precision)
    return in_turns((*OURS, OFFICIAL, *PEERS), scenario, settings)


def training(settings: Settings, network: str, precision: str) -> list[Row]:
    """The same of forward and backward, fp16 and bf16 under autocast, memory without the gradients
    of weights. Recomputing has to save a quarter of it."""
    scenario = Scenario(network, settings.training, precision, train=True)
    rows = in_turns((*OURS_IN_TRAINING, OFFICIAL, *PEERS), scenario, settings)
    memory = {row['model']: row.get('memory, MB', math.nan) for row in rows}
    none, *others = OURS_IN_TRAINING
    for row in rows:
        if row['model'] in others and not memory[row['model']] <= SAVES * memory[none]:
            row.update(verdict=FAIL, why=f'more than {SAVES:.0%} of the memory of {none}')
    return rows


# ---- their steps ----


def compared(settings: Settings, network: str) -> tuple[Tensor, ConvNeXt]:
    """Images, and a network that no other case has changed."""
    return images_of(settings.compared), randomise(ConvNeXt(settings.networks[network]))


class Step(NamedTuple):
    maps: list[Tensor]
    gradients: dict[str, Tensor]  # flat, in float64
    is_taken: bool  # by the scaler, which skips a step with an overflow


def train(
    model: nn.Module,
    images: Tensor,
    dtype: torch.dtype,
    device: str,
    stages: int = 4,
    scale: float = 1.0,
) -> Step:
    """A step, in place; under autocast, with this loss scale, where ``dtype`` is of 16 bits."""
    model, images = model.to(device).train(), images.to(device)
    if stages == 1:  # else a convolution before the stage may overflow first
        model.downsample_layers.requires_grad_(False)
    scaler = getattr(torch.amp, 'GradScaler', None)  # not in torch 2.1
    scaler = partial(scaler, device) if scaler else torch.cuda.amp.GradScaler
    scaler = scaler(init_scale=scale, enabled=dtype.itemsize == 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with autocast(device, dtype):
        maps = model(images)[:stages]
    torch.manual_seed(0)
    loss = sum((part * torch.randn(part.shape).to(device, images.dtype)).mean() for part in maps)
    before = scaler.get_scale()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradients = {
        name.replace('module.', ''): parameter.grad.double().flatten()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return Step([part.detach() for part in maps], gradients, scaler.get_scale() >= before)


def rms(gradients: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Root mean square of the relative errors of all parameters: each counts, however small."""
    errors = [(gradients[name] - value).norm() / value.norm() for name, value in exact.items()]
    return torch.stack(errors).square().mean().sqrt().item()


def is_within(error: float, limit: float) -> bool:
    """Whether ``error`` of ours is explained by rounding, when the official form's is ``limit``.

    Sums in fp32 differ by FLOOR if only their order does. Where the official form overflows, so
    that ``limit`` is not finite, any finite error will do.
    """
    largest = max(FLOOR, FACTOR * limit) if math.isfinite(limit) else math.inf
    return math.isfinite(error) and error <= largest


def reason(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}'


def judged(row: Row, is_right: bool) -> Row:
    return {**row, 'verdict': PASS if is_right else FAIL}


def in_turns(names: Iterable[str], scenario: Scenario, settings: Settings) -> list[Row]:
    """A row for each of ``names`` that is installed and has this architecture."""
    device, (dtype, _, rounding) = settings.device, scenario.dtype.partition(', ')
    scenario = scenario._replace(dtype=dtype)
    images, net = common(scenario)
    exact = infer(official(net).double().to(device), images.double().to(device))
    expected, candidates = [part.cpu() for part in exact], {}
    rows: list[Row] = []
    with tf32(rounding == 'TF32'):
        for name in names:
            try:
                candidates[name] = candidate(name, scenario, device, expected)
            except Exception as error:
                verdict = FAIL if name.startswith('convnext_dense') else UNJUDGED
                rows.append(dict(model=name, verdict=verdict, why=reason(error)))
        ready = {name: model for name, model in candidates.items() if model.is_available}
        clocks = {name: model.seconds for name, model in ready.items()}
        seconds = interleaved(clocks, settings.rounds)
        measured = {
            name: Measurement(seconds[name], model.memory(), model.error)
            for name, model in ready.items()
        }
    for name, figure in figures(measured).items():
        cells: Row = dict(zip(FIGURES, figure._replace(median=1e3 * figure.median)))
        verdict = PASS if name.startswith('convnext_dense') else UNJUDGED
        rows.append({'model': name, **cells, 'error': ready[name].error, 'verdict': verdict})
    return rows


class Part(NamedTuple):
    run: Callable[..., list[Row]]
    choices: Callable[[Settings], dict[str, Iterable[str]]]  # every combination is a case
    is_autocast: bool = False


PARTS = dict(
    features=Part(
        features,
        lambda s: dict(network=s.networks, stages=STAGES, precision=BOUND),
        is_autocast=True,
    ),
    fused=Part(fused, lambda s: dict(network=s.networks, precision=BOUND)),
    ddp=Part(ddp, lambda s: dict(network=s.networks, checkpointing=MODES)),
    compile=Part(compiled, lambda s: dict(network=s.networks)),
    inference=Part(inference, lambda s: dict(network=s.timed, precision=s.precisions)),
    training=Part(
        training, lambda s: dict(network=s.timed, precision=s.precisions), is_autocast=True
    ),
)
