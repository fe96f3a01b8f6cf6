# SPDX-License-Identifier: GPL-2.0
"""Tests of the lab: a judge that lets a bad boot pass would make every other test worthless."""
import re
import subprocess
import tempfile
from pathlib import Path

import initramfs
import judge
import overlay
from util import LAB, Fail


def judged(lab):
    """Recorded logs in lab/tests/judge: what is expected, how QEMU ended, the console, the channel."""
    for path in sorted((LAB / "tests/judge").glob("*.log")):
        head, console, channel = re.split(r"^--- (?:console|channel)\n", path.read_text(), flags=re.M)
        expect = dict(line.split(": ", 1) for line in head.splitlines() if not line.startswith("#"))
        code, reasons = judge.judge(console, channel, expect["ended"])
        if expect["verdict"] == "good" and (code or reasons):
            raise Fail(f"{path.name}: judged bad: {reasons}")
        if expect["verdict"] != "good" and (not code or not any(expect["verdict"] in r for r in reasons)):
            raise Fail(f"{path.name}: expected “{expect['verdict']}”, got {code}, {reasons}")
        fault, known = judge.emulator_fault(console, expect["ended"]), expect.get("emulator")
        if bool(fault) != bool(known) or known and known not in fault:
            raise Fail(f"{path.name}: the emulator's fault is {known}, got {fault}")


def each_report_is_seen(lab):
    """Each line of lab/tests/judge/reports.txt, alone in a good log, must make it a bad one."""
    for line in (LAB / "tests/judge/reports.txt").read_text().splitlines():
        if line and not line.startswith("#") and not judge.judge(f"good\n{line}\ngood\n", "LAB-EXIT 0\n", "off")[0]:
            raise Fail(f"judged good: {line}")


def overlaid(lab):
    """Our parts come into a tree, change there, and leave it as it was."""
    with tempfile.TemporaryDirectory() as tmp:
        tree, whole, patch = Path(tmp) / "tree", Path(tmp) / "whole", Path(tmp) / "a.patch"
        tree.mkdir()
        (tree / "a").write_text("one\ntwo\nthree\n")
        (tree / "b").write_text("b\n")
        whole.write_text("ours\n")
        patch.write_text("--- a/a\n+++ b/a\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n")

        def state():
            return {p.name: p.read_text() for p in tree.iterdir()}

        pristine = state()
        overlay.apply(tree, None, {"b": whole, "c": whole}, [patch])
        if state() != {"a": "one\n2\nthree\n", "b": "ours\n", "c": "ours\n"}:
            raise Fail(f"applied: {state()}")
        stamps = {p.name: p.stat().st_mtime_ns for p in tree.iterdir()}
        overlay.apply(tree, None, {"b": whole, "c": whole}, [patch])
        if stamps != {p.name: p.stat().st_mtime_ns for p in tree.iterdir()}:
            raise Fail("a second time, unchanged files are written")
        overlay.apply(tree, None, {}, [])
        if state() != pristine:
            raise Fail(f"not restored: {state()}")
        patch.write_text("--- a/a\n+++ b/a\n@@ -1,3 +1,3 @@\n eins\n-zwei\n+2\n drei\n")
        try:
            overlay.result(tree, {}, [patch])
        except Fail:
            return
    raise Fail("a patch that does not apply is not noticed")


def archived(lab):
    """busybox's cpio reads what our writer writes."""
    data = initramfs.newc({"etc/lab/run": (0o755, b"echo '$x'\n"), "odd": (0o644, b"abc")})
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["busybox", "cpio", "-id"], input=data, cwd=tmp, check=True, capture_output=True)
        run, odd = Path(tmp) / "etc/lab/run", Path(tmp) / "odd"
        if run.read_bytes() != b"echo '$x'\n" or odd.read_bytes() != b"abc" or not run.stat().st_mode & 0o100:
            raise Fail("the archive's content is not what was put in")


CASES = {
    "lab-judge": judged,
    "lab-judge-reports": each_report_is_seen,
    "lab-overlay": overlaid,
    "lab-initramfs": archived,
}
