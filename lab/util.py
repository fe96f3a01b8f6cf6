# SPDX-License-Identifier: GPL-2.0
"""Paths, messages and subprocesses, shared by all parts of the lab."""
import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LAB = REPO / "lab"
BUILD = REPO / "build"
LOGS = BUILD / "logs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME') or ''}/.cache").absolute() / "xen-iommu"
CPUS = len(os.sched_getaffinity(0))

_start = time.monotonic()


class Fail(Exception):
    """A failure to report to the user in one line."""


def check_cache():
    """Fail if downloads cannot be stored."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=CACHE):
            pass
    except OSError as error:
        raise Fail(f"cannot write to {CACHE}, the cache of downloads: {error.strerror}; "
                   "XDG_CACHE_HOME=folder in the environment moves it") from error


def say(text):
    seconds = int(time.monotonic() - _start)
    print(f"[{seconds // 60:3}:{seconds % 60:02}] {text}", flush=True)


def die_with_parent(how=signal.SIGKILL):
    """In a child: get the signal `how` when the lab dies, for whatever reason."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)


def terminate_with_parent():
    """The same for make and the like, which first clean up and end their own children."""
    die_with_parent(signal.SIGTERM)


def clean_env(**more):
    """Our environment without what the calling make added for its children."""
    drop = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS", "KERNEL", "IOMMU",
            "DOM0", "ROOT", "CONFIG", "RUN", "O", "V", "C", "W", "M", "ARCH", "CROSS_COMPILE")
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env.update(LC_ALL="C", **more)
    return env


def _reason(log, start=0):
    """The most telling line of a failed step's log; the step's output begins at byte `start`."""
    lines = Path(log).read_bytes()[start:].decode(errors="replace").splitlines()[1:]
    if any("No space left on device" in line for line in lines):
        return "disk full"
    telling = re.compile(r"error:|^E: |\*\*\*|undefined|FAILED|[Ff]atal|cannot|No rule")
    for line in lines:
        if telling.search(line) and "Waiting for unfinished" not in line:
            return line.strip()[:200]
    return lines[-1].strip()[:200] if lines else "no output"


def run(what, cmd, log, *, cwd=None, env=None, progress=None, append=False):
    """Run a step with its output in `log`; a Progress counts its lines and reports how far it is."""
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "ab" if append else "wb") as out:
            start = out.tell()
            out.write(f"$ {' '.join(map(str, cmd))}\n".encode())
            out.flush()
            proc = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=env or clean_env(),
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, start_new_session=True,
                                    preexec_fn=terminate_with_parent)
            try:
                for line in proc.stdout:
                    out.write(line)
                    out.flush()
                    if progress:
                        progress.line(line.decode(errors="replace"))
                code = proc.wait()
            finally:
                kill_group(proc)
    except OSError as err:
        raise Fail(f"{what}: {err.strerror}: {err.filename or cmd[0]}; log: {log}") from err
    if code:
        raise Fail(f"{what} failed: {_reason(log, start)}; log: {log}")


class Progress:
    """Counts the objects of a build, and reports every 20 seconds with an estimate of the time left."""
    OBJECT = re.compile(r"  (?:CC|AS)(?:\s+\[M\])?\s|\[\d+/(\d+)\] ")      # of make, and of ninja, which knows the total
    PAUSE = 20

    def __init__(self, what, total=0):
        self.what, self.total, self.count = what, total, 0
        self.began = self.told = time.monotonic()

    def line(self, text):
        found = self.OBJECT.match(text)
        if not found:
            return
        self.count += 1
        self.total = int(found[1] or self.total)
        now = time.monotonic()
        if now - self.told >= self.PAUSE:
            self.told = now
            say(f"  {self.what}: {self.text(now - self.began)}")

    def text(self, seconds):
        """Without a total, or beyond it, there is no estimate, nor from the first 2%, which other work precedes."""
        if not self.total or self.count > self.total:
            return f"{self.count:,} objects"
        if self.count * 50 < self.total:
            return f"{self.count:,} of {self.total:,} objects"
        left = seconds / self.count * (self.total - self.count)
        return f"{self.count:,} of {self.total:,} objects, about {left / 60:.0f} min left" if left >= 90 \
            else f"{self.count:,} of {self.total:,} objects, about {left:.0f} s left"


def kill_group(proc):
    """End a process and its children, with ten seconds for cleaning up after SIGTERM."""
    # A second Ctrl-C must not interrupt this.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        if proc.poll() is None:
            os.killpg(proc.pid, signal.SIGTERM)
            proc.wait(10)
    except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
        pass
    try:
        os.killpg(proc.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    proc.wait()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def new_folder(folder):
    """A folder to fill: it gets its final name when it is complete, and is removed on failure."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def lock(path, waiting):
    """Hold a lock file; report `waiting` if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {waiting}")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def output(cmd, **kw):
    """The standard output of a short command, or None if it failed."""
    done = subprocess.run([str(c) for c in cmd], env=clean_env(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", **kw)
    return done.stdout if done.returncode == 0 else None


def qemu_version(program):
    """(major, minor) of a QEMU, or None if it does not run."""
    text = output([program, "--version"]) if shutil.which(program) else None
    found = re.search(r"version (\d+)\.(\d+)", text or "")
    return found and tuple(map(int, found.groups()))


def write_if_changed(path, data):
    """Do not touch the file, or its time stamp, if it already has this content."""
    path = Path(path)
    if isinstance(data, str):
        data = data.encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".lab-new")
    new.write_bytes(data)
    new.rename(path)        # atomically, and not into other hard links of the file
    return True


def say_error(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)
