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


def only_where_it_fits(lab):
    """A patch follows lines that have moved, but never goes to a place that only looks like its own."""
    ends = "static int f{0}(void)\n{{\n\treturn {0};\n}}\n\n"
    function = "int g(int a)\n{\n\tif (a)\n\t\treturn 1;\n\treturn 0;\n}\n"
    last = "\nint h(void);\n"
    hunk = "@@ -4,5 +4,6 @@\n \t\treturn 1;\n \treturn 0;\n }\n+EXPORT_SYMBOL_GPL(g);\n \n int h(void);\n"
    cases = {       # name: (the file, the patch's hunks, what comes out of it)
        "as made": (function + last, hunk, function + "EXPORT_SYMBOL_GPL(g);\n" + last),
        "moved": (ends.format(1) + function + last, hunk, ends.format(1) + function + "EXPORT_SYMBOL_GPL(g);\n" + last),
        # patch -F3 puts the line behind the function that is there instead.
        "another function": (function.replace("return 1", "return a") + last, hunk, Fail),
        "another neighbour": (function + "\nint i(void);\n", hunk, Fail),
        "two places": ("\n" + (function + last) * 2, hunk, Fail),
        "two places, one as made": ((function + last) * 2, hunk, function + "EXPORT_SYMBOL_GPL(g);\n" + last + function + last),
        "second hunk": (function + last, hunk + "@@ -30,1 +31,1 @@\n-nowhere\n+here\n", Fail),
        "second hunk, moved": ("\n" + function + last + "end\n", hunk + "@@ -9,1 +10,2 @@\n end\n+more\n",
                               "\n" + function + "EXPORT_SYMBOL_GPL(g);\n" + last + "end\nmore\n"),
        "no newline at the end": ("a\nb", "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n", "a\nc\n"),
        "cut short": (function + last, hunk.removesuffix(" int h(void);\n"), Fail),
        "no such file": (None, hunk, Fail),
        "is there already": ("a\n", "@@ -0,0 +1,1 @@\n+a\n", Fail),
        "new": (None, "@@ -0,0 +1,1 @@\n+a\n", "a\n"),
    }
    with tempfile.TemporaryDirectory() as tmp:
        tree, patch = Path(tmp) / "tree", Path(tmp) / "x.patch"
        tree.mkdir()
        for name, (before, hunks, after) in cases.items():
            (tree / "f.c").unlink(missing_ok=True)
            if before is not None:
                (tree / "f.c").write_text(before)
            patch.write_text(f"--- {'/dev/null' if '-0,0' in hunks else 'a/f.c'}\n+++ b/f.c\n{hunks}")
            try:
                got = overlay.result(tree, {}, [patch])["f.c"].decode()
            except Fail as failure:
                got, said = Fail, str(failure)
                wanted = "damaged" if name == "cut short" else f"f.c, hunk {hunks.count('@@ -')}"
                if "x.patch" not in said or wanted not in said:
                    raise Fail(f"{name}: the message does not say {wanted}: {said}") from failure
            if got != after:
                raise Fail(f"{name}: got {got!r}")


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
    "lab-overlay-place": only_where_it_fits,
    "lab-initramfs": archived,
}
