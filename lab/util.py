# SPDX-License-Identifier: GPL-2.0
"""Paths, messages and subprocesses, shared by all parts of the lab."""
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LAB = REPO / "lab"
BUILD = REPO / "build"
LOGS = BUILD / "logs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xen-iommu"
CPUS = len(os.sched_getaffinity(0))

_start = time.monotonic()


class Fail(Exception):
    """A failure that one line tells the user."""


def say(text):
    seconds = int(time.monotonic() - _start)
    print(f"[{seconds // 60:3}:{seconds % 60:02}] {text}", flush=True)


def die_with_parent():
    """In a child: be killed when the lab dies, however it dies."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def clean_env(**more):
    """Our environment without what the calling make put there for its own children."""
    drop = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS", "KERNEL", "IOMMU",
            "DOM0", "RUN", "O", "V", "C", "W", "M", "ARCH", "CROSS_COMPILE")
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env.update(LC_ALL="C", **more)
    return env


def _reason(log):
    """The line of a failed step's log that says most."""
    lines = Path(log).read_text(errors="replace").splitlines()
    if any("No space left on device" in line for line in lines):
        return "disk full"
    telling = re.compile(r"error:|^E: |\*\*\*|undefined|FAILED|[Ff]atal|cannot|No rule")
    for line in lines:
        if telling.search(line) and "Waiting for unfinished" not in line:
            return line.strip()[:200]
    return lines[-1].strip()[:200] if lines else "no output"


def run(what, cmd, log, *, cwd=None, env=None, progress=None, append=False):
    """Run a step with its output in `log`; while it lasts, say how far it is.

    progress: (regex of the output lines to count, file that keeps the last count)
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    pattern, count_file = progress or (None, None)
    expected = int(count_file.read_text()) if count_file and count_file.exists() else 0
    count, told = 0, time.monotonic()
    try:
        with open(log, "ab" if append else "wb") as out:
            out.write(f"$ {' '.join(map(str, cmd))}\n".encode())
            out.flush()
            proc = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=env or clean_env(),
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, start_new_session=True,
                                    preexec_fn=die_with_parent)
            try:
                for line in proc.stdout:
                    out.write(line)
                    out.flush()
                    if pattern and re.match(pattern, line.decode(errors="replace")):
                        count += 1
                        if time.monotonic() - told > 20:
                            told = time.monotonic()
                            say(f"  {what}: {count}" + (f" of about {expected}" if expected else ""))
                code = proc.wait()
            finally:
                kill_group(proc)
    except OSError as err:
        raise Fail(f"{what}: {err.strerror}: {err.filename or cmd[0]}; log: {log}") from err
    if code:
        raise Fail(f"{what} failed: {_reason(log)}; log: {log}")
    if count_file and count > expected // 2:
        count_file.parent.mkdir(parents=True, exist_ok=True)
        count_file.write_text(str(count))


def kill_group(proc):
    try:
        os.killpg(proc.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    proc.wait()


def output(cmd, **kw):
    """The standard output of a short command, or None if it failed."""
    done = subprocess.run([str(c) for c in cmd], env=clean_env(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", **kw)
    return done.stdout if done.returncode == 0 else None


def write_if_changed(path, data):
    """Leave the file alone, and its time stamp, if it has this content."""
    path = Path(path)
    if isinstance(data, str):
        data = data.encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".lab-new")
    new.write_bytes(data)
    new.rename(path)        # at once, and never into another hard link of the file
    return True


def say_error(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)
