"""What a user would do wrong with each command ends in a message: no traceback, no status 0."""

import logging

import pytest
import torch

from conftest import DEMO, ROOT, demo_options
from convnext_dense import ConvNeXt
from convnext_dense.commands.shared import errors_as_messages
from convnext_dense.errors import ConfigError

LINES = 30  # of all that is printed: a screen


@pytest.fixture
def wrong(tmp_path, scenes, photo):
    """Placeholder of a command line -> what stands there."""
    (tmp_path / 'syntax.py').write_text('model = dict(\n')
    (tmp_path / 'name.py').write_text('model = absent\n')
    (tmp_path / 'base.py').write_text("_base_ = 'absent.py'\n")
    broken = (
        f"_base_ = '{ROOT / DEMO['coco']}'\nmodel = dict(neck=dict(in_channels=[1, 2, 3, 4]))\n"
    )
    (tmp_path / 'broken.py').write_text(broken)
    (tmp_path / 'nothing.pth').touch()
    torch.save(dict(state_dict=dict(a=torch.zeros(1000))), tmp_path / 'whole.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:-500])
    torch.save(ConvNeXt('atto').state_dict(), tmp_path / 'atto.pth')
    (tmp_path / 'file').write_text('')
    files = {path.name: path for path in tmp_path.iterdir()}
    names = dict(PHOTO=photo, ADE=ROOT / DEMO['ade'], OUT=tmp_path / 'out', FULL='/dev/full')
    names['BELOW_A_FILE'] = tmp_path / 'file/picture.png'
    return {**files, **names, '{}': [str(text) for text in demo_options('ade', scenes)]}


@pytest.mark.parametrize(
    'command, message',
    [
        ('train syntax.py', 'syntax.py is not a config that MMEngine can read: SyntaxError'),
        ('train name.py', 'name.py is not a config that MMEngine can read: NameError'),
        ('train base.py', 'base.py is not a config that MMEngine can read'),
        ('train ADE --resume cut.pth {}', 'cut.pth is damaged or cut short'),
        ('train ADE {} load_from=cut.pth', 'cut.pth is damaged or cut short'),
        ('train ADE {} load_from=absent.pth', 'no weights at'),
        ('train ADE --work-dir BELOW_A_FILE {}', 'Error: [Errno '),
        ('train ADE {} nonsense=1', 'nonsense: the config has no such key'),
        ('test syntax.py whole.pth', 'SyntaxError'),
        ('test ADE cut.pth {}', 'cut.pth is damaged or cut short'),
        ('test ADE nothing.pth {}', 'nothing.pth is no file of weights'),
        ('predict ADE whole.pth PHOTO --score 7', '--score 7: scores lie between 0 and 1'),
        ('predict syntax.py whole.pth PHOTO', 'SyntaxError'),
        ('predict ADE cut.pth PHOTO', 'cut.pth is damaged or cut short'),
        ('predict ADE whole.pth absent.jpg', 'no image, folder or video at'),
        ('features PHOTO cut.pth', 'cut.pth is damaged or cut short'),
        ('features PHOTO atto.pth --size 64 --out BELOW_A_FILE', 'Error: [Errno '),
        ('features PHOTO atto.pth --size 64 --out FULL', 'the disk is full'),
        ('features file atto', 'the file is empty'),
        ('groups syntax.py', 'SyntaxError'),
        ('groups ADE --out BELOW_A_FILE', 'Error: [Errno '),
        ('groups ADE --out FULL', 'the disk is full'),
        ('groups broken.py --out BELOW_A_FILE', 'Error: [Errno '),
        ('flops syntax.py', 'SyntaxError'),
        ('flops broken.py', 'does not run on an image of 800 x 1280 zeros: RuntimeError'),
        ('flops absent', 'no config absent'),
        ('convert absent.pth', 'no weights at'),
        ('convert cut.pth', 'cut.pth is damaged or cut short'),
        ('swap syntax.py --arch tiny -o out.py', 'SyntaxError'),
        ('swap ADE --arch giant -o out.py', 'giant'),
        ('compare syntax.py=whole.pth --out OUT', 'SyntaxError'),
        pytest.param('benchmark syntax.py --out OUT', 'SyntaxError', marks=pytest.mark.slow),
        ('configs absent', "no recipe has 'absent' in its name"),
        ('configs absent -o out.py', 'no config absent'),
        ('demo_data BELOW_A_FILE', 'Error: [Errno '),
        ('census --only absent --out BELOW_A_FILE', 'Error: [Errno '),
    ],
)
def test_no_command_ends_in_a_traceback(command, message, wrong, exits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where commands leave what no option names
    monkeypatch.setattr(logging, 'raiseExceptions', False)  # MMEngine's logs go to closed streams
    words = []
    for word in command.split():
        key, sign, value = word.rpartition('=')
        inserted = wrong.get(value, value)
        words += (
            inserted if isinstance(inserted, list) else [f'{wrong.get(key, key)}{sign}{inserted}']
        )
    output = exits(*words)
    assert message in output and len(output.splitlines()) <= LINES, output[-3000:]


def test_what_happens_in_other_processes_and_places_is_a_message_too():
    worker = ConfigError(
        'Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback '
        '(most recent call last):\n  File "x.py"\nconvnext_dense.errors.ConfigError: a.png: broken'
    )
    for error, message in (
        (worker, 'ConfigError: a.png: broken'),
        (PermissionError(13, 'Permission denied', 'a'), 'change who may read and write there'),
        (OSError(28, 'No space left on device'), 'the disk is full: make room'),
        (FloatingPointError('iteration 3'), 'FloatingPointError: iteration 3'),
    ):
        with pytest.raises(SystemExit) as stopped, errors_as_messages():
            raise error
        assert message in stopped.value.code and 'Traceback' not in stopped.value.code
