"""Steps of the set-up: commands whose output goes into a file, with a line on the screen."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path


class StepFailed(SystemExit):
    """Ends the set-up with a message, unless there is another way."""


class Log:
    """Runs commands with their output in the file ``path``."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def run(self, title: str, command, estimate: str = '', **kwargs) -> str:
        """Returns the output. StepFailed has the end of it when the command fails."""
        print(f'-> {title}' + (f' ({estimate})' if estimate else ''), flush=True)
        command = [str(part) for part in command]
        start = time.time()
        with open(self.path, 'a') as log, open(self.path, errors='replace') as reader:
            _lock(log)
            print('\n$', *command, file=log, flush=True)
            reader.seek(0, os.SEEK_END)
            kwargs.update(stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            process = subprocess.Popen(command, **kwargs)
            try:
                output = _show_progress(process, reader, start)
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
                sys.exit('\ninterrupted; run the same command again to go on')
        if sys.stdout.isatty():
            print('\r\033[K', end='')
        if process.returncode:
            end = '\n'.join(output.splitlines()[-30:])
            raise StepFailed(f'{end}\nfailed: {title}. All of its output is in {self.path}')
        print(f'   done in {time.time() - start:.0f} s', flush=True)
        return output


def _lock(log) -> None:
    """Held by the command, too: this waits where a set-up was killed and its command was not."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('   waiting for another set-up of this environment', flush=True)
        fcntl.flock(log, fcntl.LOCK_EX)


def _show_progress(process: subprocess.Popen, reader, start: float) -> str:
    """On a terminal a line that moves twice a second, in a file a line every half minute."""
    moves, output = sys.stdout.isatty(), ''
    while True:
        try:
            process.wait(0.5 if moves else 30)
            return output + reader.read()
        except subprocess.TimeoutExpired:
            output += reader.read()
        text = f'   {time.time() - start:4.0f} s  {_summary(output)}'
        print(f'\r\033[K{text}' if moves else text, end='' if moves else '\n', flush=True)


def _summary(output: str) -> str:
    """Of a compiler's last "[12/78] ..." the counter; any other line is cut to the screen."""
    last = output.strip().rpartition('\n')[2].strip()
    counter = re.match(r'\[(\d+)/(\d+)\]', last)
    return f'compiled {counter[1]} of {counter[2]} files' if counter else last[:100]
