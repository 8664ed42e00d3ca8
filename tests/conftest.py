"""Shared fixtures: generated data, real data where they are there, and runs of our tools."""

import importlib.util
import os
import runpy
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')  # the cores have a test process each

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import ROOT, run, start

from convnext_dense import __main__ as program

__all__ = ['ROOT', 'run', 'start']  # for the tests, which import from here


def _half_convolution():
    try:
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3).half(), torch.ones(1, 1, 3, 3).half())
    except RuntimeError:
        return False
    return True


def _has_module(name):
    return importlib.util.find_spec(name) is not None


CAPABILITIES = {  # what torch 2.1 cannot do, or what is not installed beside it
    'half convolution on the CPU': _half_convolution(),
    'export with dynamic sizes': hasattr(torch, 'export') and hasattr(torch.export, 'Dim'),
    'compiled recomputation': torch.__version__ >= '2.2',
    'loss scaling on the CPU': hasattr(torch.amp, 'GradScaler'),
    'ONNX export': _has_module('onnxscript'),
    'DINOv3 in transformers': _has_module('transformers.models.dinov3_convnext'),
    'OpenVINO': _has_module('openvino'),
    'twine': _has_module('twine'),
}
# Capability -> the tests that are skipped without it. Any other skip fails the run, and so does
# one of these tests that is run without its capability.
SKIPS = {
    'half convolution on the CPU': {
        'test_half_precision_on_the_cpu',
        'test_half_precision_at_1024_pixels',
        'test_naive_response_norm_overflows',
        'test_a_small_layer_scale_overflows_no_gradient',
    },
    'export with dynamic sizes': {
        'test_exported_program_runs_at_other_sizes',
        'test_exported_head_runs_at_other_sizes',
    },
    'compiled recomputation': {'test_training_with_recomputation_compiles_as_one_graph'},
    'loss scaling on the CPU': {'test_steps_that_a_real_loss_scaler_skips_are_let_pass'},
    'ONNX export': {
        'test_onnx_runs_at_other_sizes',
        'test_onnx_head_runs_at_other_sizes',
        'tests/test_export.py',
        'tests/test_export_detectors.py',
    },
    'DINOv3 in transformers': {'test_features_equal_dinov3'},
    'OpenVINO': {'test_openvino_runs_the_file_too', 'test_what_openvino_cannot_run_is_a_note'},
    'twine': {'test_twine_accepts_both'},
}
REAL_DATA = 'no real data'


def needs(capability):
    return pytest.mark.skipif(not CAPABILITIES[capability], reason=f'needs {capability}')


def _wrong_skips(reporter):
    """Tests that were skipped or run against ``SKIPS``."""

    def names(*outcomes):
        reports = [report for outcome in outcomes for report in reporter.stats.get(outcome, [])]
        reports = [report for report in reports if REAL_DATA not in str(report.longrepr)]
        return {report.nodeid.rpartition('::')[2].partition('[')[0] for report in reports}

    lacking = [capability for capability, is_there in CAPABILITIES.items() if not is_there]
    allowed = set().union(*(SKIPS[capability] for capability in lacking))
    return sorted((names('skipped') - allowed) | (allowed & names('passed', 'failed')))


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin('terminalreporter')
    if reporter and _wrong_skips(reporter):  # the processes of pytest-xdist have no reporter
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    names = _wrong_skips(terminalreporter)
    if names:
        message = f'skips differ from the list in tests/conftest.py: {names}'
        terminalreporter.write_line(message, red=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """Folder with a few generated scenes in COCO (``coco``) and ADE20K (``ade``) layout."""
    from convnext_dense.demo.scenes import write

    folder = tmp_path_factory.mktemp('scenes') / 'data'
    write(folder, dict(train=16, val=4, test=4))
    return folder


@pytest.fixture(scope='session')
def real_data_root():
    """DENSE_DATA or ../shared/data; need not be there."""
    return Path(os.environ.get('DENSE_DATA', ROOT.parent / 'shared' / 'data'))


@pytest.fixture(scope='session')
def real_data(real_data_root):
    """``real_data(name)`` is a folder of real images; skips where it is absent."""

    def find(name):
        if not (real_data_root / name).is_dir():
            pytest.skip(f'{REAL_DATA} at {real_data_root / name}')
        return real_data_root / name

    return find


@pytest.fixture
def photo(real_data_root, scenes):
    """A COCO image where the real data are there, else a generated one."""
    folder = real_data_root / 'coco_tiny' / 'val2017'
    return sorted((folder if folder.is_dir() else scenes / 'coco').rglob('*.jpg'))[0]


def randomise(net):
    """Every parameter at random: as initialised, layer scale (1e-6) and GRN (0) would leave next to
    nothing of the blocks, and errors in them would not show."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'grn' in name or name.endswith('bias'):
                parameter.normal_(0, 0.1)
            elif name.endswith('gamma') or 'layer_scale' in name or parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return net.eval()


def two_processes(work, folder):
    """``work(rank)`` in two processes of one gloo group, one thread each. Raises what they
    raise."""
    processes = mp.spawn(_in_group, (work, str(folder)), nprocs=2, join=False)
    deadline = time.monotonic() + 300
    while not processes.join(timeout=5):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            raise TimeoutError('the two processes wait for each other')


def _in_group(rank, work, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    work(rank)
    dist.barrier()
    os._exit(0)  # gloo's threads may wait for each other for ever while the interpreter ends


@pytest.fixture
def exits(capsys, monkeypatch):
    """``exits(script, *arguments)`` runs a script in this process, to its ``sys.exit``, and
    ``exits(name, *arguments)`` a command of ``convnext-dense``. Returns all that the user would
    see. For what stops before it does much."""

    def run_here(script, *arguments):
        is_command = script in program.NAMES
        start = ['convnext-dense', script] if is_command else [str(script)]
        monkeypatch.setattr(sys, 'argv', [*start, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            program.main() if is_command else runpy.run_path(str(script), run_name='__main__')
        printed = capsys.readouterr()
        message = stopped.value.code if isinstance(stopped.value.code, str) else ''
        return printed.out + printed.err + message

    return run_here


def demo_options(task, scenes, **more):
    """Options that point a demo config at generated scenes, load them in the main process, log each
    iteration and draw nothing. A value of None leaves an option out."""
    options = {f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')}
    options |= {
        'train_dataloader.persistent_workers': False,
        'default_hooks.logger.interval': 1,
        'custom_hooks': '[]',
    } | more
    texts = [f'{key}={value}' for key, value in options.items() if value is not None]
    return ['--data-root', scenes / task, '--cfg-options', *texts]


DEMO = dict(
    coco='configs/demo/mask-rcnn_convnext-atto_shapes.py',
    ade='configs/demo/upernet_convnext-atto_shapes.py',
)
COCO_T = 'configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco.py'
ADE_T = 'configs/ade20k/upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512.py'
ALL_CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/*.py'))


def export_for_any_size(cfg, model, pictures, out):
    """Export a model, which takes any number of pictures of any size, into the file ``out``."""
    from convnext_dense.export.writing import export

    checkpoint = out.with_suffix('.pth')
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    done = export(cfg, str(checkpoint), out, pictures)
    assert done.says == 'any number of pictures, any height and width' and not done.notes
    assert out.exists()
    return done
