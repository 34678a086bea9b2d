"""Tools in processes of their own that need not start: a server that has imported everything forks them.

:func:`run` and :class:`Started` take the place of :func:`subprocess.run` and :class:`subprocess.Popen` for ``[python,
script.py, argument, ...]``, and cost a tenth of a second where those cost five. Everything else is as it would be: the
script is ``__main__`` in a process with its own folder, environment, output, signals and exit code. What is about
starting itself (imports, ``PYTHONPATH``, torchrun) needs the real thing.
"""

import atexit
import ctypes
import functools
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

#: What Python and its libraries read when they start, so that a fork cannot have it otherwise.
_READ_AT_START = ("PYTHONPATH", "PYTHONHASHSEED", "OMP_NUM_THREADS", "LD_PRELOAD", "LANG", "LC_ALL", "PYTHONUTF8")
_PR_SET_CHILD_SUBREAPER = 36


class Started:
    """A script in a process of its own; arguments and attributes as those of :class:`subprocess.Popen`.

    What it writes to a ``PIPE`` lies in a file and is there for :meth:`communicate` only.
    """

    def __init__(self, command, cwd=None, env=None, stdout=None, stderr=None, text=False, process_group=None):
        python, *argv = map(str, command)
        environment = dict(os.environ if env is None else env)
        other = [name for name in _READ_AT_START if environment.get(name) != os.environ.get(name)]
        if python != sys.executable or other:
            raise ValueError(f"cannot be forked: {command[:2]}, {other}")
        self.args, self.returncode, self.text = command, None, text
        pipes = [where == subprocess.PIPE for where in (stdout, stderr)]
        self.outputs = [tempfile.TemporaryFile() if pipe else None for pipe in pipes]  # noqa: SIM115, communicate closes
        request = {"argv": argv, "cwd": str(cwd or os.getcwd()), "env": environment, "group": process_group}
        with tempfile.TemporaryFile() as words, open(os.devnull, "wb") as nothing:
            words.write(json.dumps(request).encode())
            words.flush()
            files = [
                {None: number, subprocess.DEVNULL: nothing, subprocess.PIPE: output}.get(where)
                for number, where, output in zip((1, 2), (stdout, stderr), self.outputs, strict=True)
            ]
            if stderr == subprocess.STDOUT:
                files[1] = files[0]
            numbers = [words, *files]
            connection = _server()
            socket.send_fds(connection, [b"."], [n if isinstance(n, int) else n.fileno() for n in numbers])
            self.pid = int(connection.recv(32))

    def poll(self):
        """The exit code, negative after a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end."""
        deadline = time.monotonic() + (timeout or 3600)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end; returns what was written to either output, None where that was no ``PIPE``."""
        self.wait(timeout)
        return tuple(None if file is None else self._content(file) for file in self.outputs)

    def _content(self, file):
        with file:
            file.seek(0)
            content = file.read()
        return content.decode() if self.text else content

    def send_signal(self, number):
        """Send it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class Group:
    """A script in several processes that form a group, as under torchrun; pid and group are those of the first.

    A process that fails ends the others. The exit code is then its, and what all have written follows one after the
    other.
    """

    def __init__(self, command, processes, env=None, **options):
        self.args, self.members = command, []
        for own in _variables(processes):
            environment = {**(os.environ if env is None else env), **own}
            group = self.members[0].pid if self.members else 0
            self.members.append(Started(command, env=environment, process_group=group, **options))
        self.pid = self.members[0].pid

    def poll(self):
        """The exit code; None while one runs and none has failed."""
        codes = [process.poll() for process in self.members]
        failed = sorted(filter(None, codes), reverse=True)  # those that were ended by a signal last
        if failed:
            self.send_signal(signal.SIGTERM)
        return None if None in codes else failed[0] if failed else 0

    def communicate(self, timeout=600):
        """Wait for the end; returns what was written to either output, None where that was no ``PIPE``."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        said = zip(*(process.communicate(60) for process in self.members), strict=True)
        return tuple(None if None in parts else type(parts[0])().join(parts) for parts in said)

    @property
    def returncode(self):
        """The exit code after the end."""
        return self.poll()

    def send_signal(self, number):
        """Send it to all that run."""
        for process in self.members:
            process.send_signal(number)

    def kill(self):
        """Kill all."""
        self.send_signal(signal.SIGKILL)


def run(command, processes=1, check=False, capture_output=False, timeout=600, **options):
    """As :func:`subprocess.run`; more than one process form a :class:`Group`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = Started(command, **options) if processes == 1 else Group(command, processes, **options)
    try:
        said = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, *said)
    return subprocess.CompletedProcess(command, process.returncode, *said)


def _variables(processes):
    """The variables that torchrun sets for every process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@functools.cache
def _server():
    """The connection to this process's server."""
    ours, theirs = socket.socketpair()
    # A script's parent, which has forked twice, ends at once; the script is then a child of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _import_all():
    import genflow

    for module in pkgutil.walk_packages(genflow.__path__, "genflow."):
        importlib.import_module(module.name)
    for name in ("mmengine.runner", "mmcv.transforms", "matplotlib.pyplot", "sklearn.datasets", "diffusers", "timm"):
        importlib.import_module(name)


def _serve(connection):
    """Fork for every request; returns the request in the process that is to run it, never in the server."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1, 3)
        if not message:
            os._exit(0)
        reader, writer = os.pipe()
        first = os.fork()
        if first == 0:
            second = os.fork()
            if second == 0:
                return files
            os.write(writer, str(second).encode())
            os._exit(0)
        os.waitpid(first, 0)
        connection.send(os.read(reader, 32))
        for number in (*files, reader, writer):
            os.close(number)


def _become(files):
    """Take over folder, environment and outputs of a request; returns the script."""
    with open(files[0], "rb") as words:
        words.seek(0)
        request = json.loads(words.read())
    with open(os.devnull, "rb") as nothing:
        for number, own in ((nothing.fileno(), 0), (files[1], 1), (files[2], 2)):
            os.dup2(number, own)
    if request["group"] is not None:
        os.setpgid(0, request["group"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    return sys.argv[0]


def _exit_code(script):
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(code):
    """End as Python does, but for tearing down every module, which takes seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        _import_all()
        files = _serve(requests)
    _leave(_exit_code(_become(files)))
