"""Steps of the set-up: commands whose output goes into a file, with a line on the screen."""

import os
import re
import signal
import subprocess
import sys
import threading
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
        lines: list[str] = []
        start = time.time()
        with open(self.path, 'a') as log:
            log.write(f'\n$ {" ".join(command)}\n')
            kwargs.update(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
            process = subprocess.Popen(command, text=True, errors='replace', **kwargs)

            def read():
                for line in process.stdout:
                    lines.append(line)
                    log.write(line)

            reader = threading.Thread(target=read)
            reader.start()
            try:
                _show_progress(reader, lines, start)
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
                sys.exit('\ninterrupted; run the same command again to go on')
            code = process.wait()
        if sys.stdout.isatty():
            print('\r\033[K', end='')
        if code:
            raise StepFailed(
                f'{"".join(lines[-30:])}\nfailed: {title}. The end of its output is above, all of '
                f'it in {self.path}'
            )
        print(f'   done in {time.time() - start:.0f} s', flush=True)
        return ''.join(lines)


def _show_progress(reader: threading.Thread, lines: list[str], start: float) -> None:
    """On a terminal a line that moves twice a second, in a file a line every half minute."""
    moves = sys.stdout.isatty()
    while reader.is_alive():
        reader.join(0.5 if moves else 30)
        if reader.is_alive():
            text = f'   {time.time() - start:4.0f} s  {_summary(lines[-1]) if lines else ""}'
            print(f'\r\033[K{text}' if moves else text, end='' if moves else '\n', flush=True)


def _summary(line: str) -> str:
    """Of a compiler's "[12/78] ..." the counter; anything else is cut to the screen."""
    counter = re.match(r'\s*\[(\d+)/(\d+)\]', line)
    return f'compiled {counter[1]} of {counter[2]} files' if counter else line.strip()[:100]
