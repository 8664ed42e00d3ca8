"""Runs of our tools and of other scripts, in processes of their own, as a user starts them.

Importing torch and the frameworks is most of a short run. A server imports them once, and each run
of a tool is a fork of it. Where that would make a difference, a new interpreter is started.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['mmdet.apis', 'mmseg.apis', 'convnext_dense.commands.train'])


class Run:
    """A run that has started, with the methods of ``subprocess.Popen``."""

    def __init__(self, command, cwd, env, is_forked):
        self.stdout = tempfile.NamedTemporaryFile('r+', suffix='.log')  # noqa: SIM115
        arguments = [*map(str, command)], cwd, env, is_forked, self.stdout.name
        self.process = SERVER.Process(target=_run_script, args=arguments)
        self.process.start()
        self.pid = self.process.pid  # of its process group as well

    def poll(self):
        return self.process.exitcode

    def communicate(self, timeout=None):
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired('a run', timeout)
        return self.stdout.read(), None

    @property
    def returncode(self):
        return self.poll()


def start(*command, cwd=ROOT, env=None, cold=False):
    """Start a script, or anything else that may follow ``python`` on a command line.

    Args:
        env: in place of this process's environment; with it, the run is ``cold``.
        cold: start an interpreter in which nothing is imported yet.
    """
    is_tool = Path(command[0]).parent.name == 'tools'  # others may care about what is imported
    # The server has read the environment. It may have asked how many GPUs there are as well, and
    # after that its forks can use none.
    is_forked = is_tool and not (cold or env or torch.cuda.is_available())
    return Run(command, str(cwd), env or dict(os.environ), is_forked)


def run(*command, ok=True, **kwargs):
    """``start``, to the end. Returns the output; fails if the run fails, or does not and ``ok`` is
    False."""
    process = start(*command, **kwargs)
    output = process.communicate()[0]
    assert (process.returncode == 0) == ok, output[-4000:]
    return output


def _run_script(command, cwd, env, is_forked, log):
    os.setsid()
    os.chdir(cwd)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if not is_forked:
        os.execve(sys.executable, [sys.executable, *command], env)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')
