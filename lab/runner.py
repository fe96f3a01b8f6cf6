# SPDX-License-Identifier: GPL-2.0
"""Run test cases in parallel, each in its own process, and report TAP."""
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass

from util import Fail, die_with_parent, say


class Skip(Exception):
    """The reason why a test cannot run here."""


@dataclass
class Outcome:
    """How a case ended: passed, failed or skipped, and why."""
    name: str
    verdict: str
    reason: str
    seconds: float


def run_one(name, function, lab):
    began, reason = time.monotonic(), ""
    try:
        function(lab)
        verdict = "passed"
    except Skip as skip:
        verdict, reason = "skipped", f" # SKIP {skip}"
    except (Fail, Exception) as failure:
        verdict = "failed"
        text = str(failure) if isinstance(failure, Fail) else traceback.format_exc()
        print("\n".join(f"# {line}" for line in text.splitlines()), flush=True)
    return Outcome(name, verdict, reason, time.monotonic() - began)


class Child:
    """A case that runs in the background; its output is kept until it ends."""

    def __init__(self, name, function, lab):
        self.name, self.output, self.result = name, tempfile.TemporaryFile(), tempfile.TemporaryFile()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                die_with_parent()
                os.dup2(self.output.fileno(), 1)
                os.dup2(self.output.fileno(), 2)
                pickle.dump(run_one(name, function, lab), self.result)
                self.result.flush()
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        self.began = time.monotonic()

    def end(self):
        """After the process has ended, show its output and return its outcome."""
        for file in (self.output, self.result):
            file.seek(0)
        sys.stdout.write(self.output.read().decode(errors="replace"))
        try:
            return pickle.load(self.result)
        except EOFError:
            print("# the test's process died")
            return Outcome(self.name, "failed", "", time.monotonic() - self.began)


def side_by_side(selected, lab, jobs):
    """Yield the outcomes in the order in which the cases end."""
    waiting, running = list(selected.items()), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, function = waiting.pop(0)
                say(f"{name}: started")
                child = Child(name, function, lab)
                running[child.pid] = child
            pid, _ = os.wait()
            if pid in running:
                yield running.pop(pid).end()
    except KeyboardInterrupt:
        # The terminal has interrupted them, too: let them clean up.
        for pid in running:
            os.waitpid(pid, 0)
        raise
    except SystemExit:
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        for pid in running:
            os.waitpid(pid, 0)
        raise


def run_all(selected, lab, jobs):
    """Run the cases, print TAP, and return the outcomes."""
    print(f"TAP version 14\n1..{len(selected)}", flush=True)
    if jobs > 1 and len(selected) > 1:
        outcomes = side_by_side(selected, lab, jobs)
    else:
        outcomes = ((say(name), run_one(name, function, lab))[1] for name, function in selected.items())
    ended = []
    for number, o in enumerate(outcomes, 1):
        print(f"{'not ok' if o.verdict == 'failed' else 'ok'} {number} {o.name} ({o.seconds:.0f} s){o.reason}", flush=True)
        ended.append(o)
    return ended
