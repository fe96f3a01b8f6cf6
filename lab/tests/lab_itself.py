# SPDX-License-Identifier: GPL-2.0
"""Tests of the lab: a judge that lets a bad boot pass would make every other test worthless."""
import gzip
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import initramfs
import judge
import overlay
import variables
from bench import measure, report
from util import LAB, REPO, Fail, Progress, clean_env, kill_group, new_folder


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
    """Each line of lab/tests/judge/reports.txt must turn a good log into a bad one."""
    for line in (LAB / "tests/judge/reports.txt").read_text().splitlines():
        if line and not line.startswith("#") and not judge.judge(f"good\n{line}\ngood\n", "LAB-EXIT 0\n", "off")[0]:
            raise Fail(f"judged good: {line}")


def overlaid(lab):
    """Our parts can be added to a tree, changed, and removed without a trace."""
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
            raise Fail("unchanged files are written again")
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
    """A patch follows lines that have moved, but is never applied to a similar place."""
    ends = "static int f{0}(void)\n{{\n\treturn {0};\n}}\n\n"
    function = "int g(int a)\n{\n\tif (a)\n\t\treturn 1;\n\treturn 0;\n}\n"
    last = "\nint h(void);\n"
    hunk = "@@ -4,5 +4,6 @@\n \t\treturn 1;\n \treturn 0;\n }\n+EXPORT_SYMBOL_GPL(g);\n \n int h(void);\n"
    cases = {       # name: (the file, the patch's hunks, the result)
        "as made": (function + last, hunk, function + "EXPORT_SYMBOL_GPL(g);\n" + last),
        "moved": (ends.format(1) + function + last, hunk, ends.format(1) + function + "EXPORT_SYMBOL_GPL(g);\n" + last),
        # patch -F3 would put the line after the wrong function.
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


def refused(lab):
    """A user's mistake gets one clear line, before anything is built."""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        elf = bytearray(b"\x7fELF\x01".ljust(52, b"\0") + struct.pack("<IIIII", 1, 4096, 0, 0, 100).ljust(32, b"\0"))
        struct.pack_into("<I", elf, 28, 52)
        struct.pack_into("<HH", elf, 42, 32, 1)
        (tmp / "short").write_bytes(elf)
        (tmp / "header").write_bytes(elf[:40])
        (tmp / "short.gz").write_bytes(gzip.compress(bytes(elf) * 9)[:-20])
        (tmp / "damaged.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0\xff\xff")
        (tmp / "text").write_text("text")
        (tmp / "old").write_text("#!/bin/sh\necho QEMU emulator version 5.2.0\n")
        (tmp / "old").chmod(0o755)
        cases = (
            (["run", "DOMO=pv"], "DOMO=: no such variable; is DOM0= meant?"),
            (["run", "XYZ=1"], "XYZ=: no such variable"),
            (["run", "T=boot"], "T= means nothing to make run"),
            (["test", "RUN=ls"], "RUN= means nothing to make test"),
            (["run", "DOM0=hvm"], "DOM0=hvm: must be pvh or pv"),
            (["run", "ICOUNT=2"], "ICOUNT=2: must be 0 or 1"),
            (["run", "KERNEL=../x"], "KERNEL=../x: must be a version"),
            (["run", "QEMU_ARGS=it's"], "QEMU_ARGS=it's: no closing quotation"),
            (["run", "QEMU=/none"], "QEMU=/none does not run"),
            (["run", f"QEMU={tmp}/old"], "QEMU 5.2 is too old"),
            (["run", f"LINUX_TREE={tmp}"], "not a source tree"),
            (["run", f"XEN_TREE={tmp}/none"], "no such folder"),
            (["run", f"INITRD_EXTRA={tmp}/text"], "not a folder"),
            (["run", f"XEN_IMAGE={tmp}"], "this is a folder"),
            (["run", f"XEN_IMAGE={tmp}/none"], "no such file"),
            (["run", f"XEN_IMAGE={tmp}/text"], "not the 32-bit ELF file"),
            (["run", f"XEN_IMAGE={tmp}/short"], "cut short (84 bytes of 4,196)"),
            (["run", f"XEN_IMAGE={tmp}/header"], "cut short (40 bytes"),
            (["run", f"XEN_IMAGE={tmp}/short.gz"], "damaged or cut short"),
            (["run", f"XEN_IMAGE={tmp}/damaged.gz"], "damaged or cut short"),
            (["test", "T=no-such"], "T=no-such: no such test"),
        )
        for arguments, wanted in cases:
            must_say(["make", *arguments], wanted)
        must_say(["make", "run"], "the cache of downloads", XDG_CACHE_HOME="/proc/self")
        must_say([sys.executable, LAB / "lab.py", "deb"], f"CONFIG={tmp}: this is a folder", CONFIG=str(tmp))
        (tmp / "a b/lab").mkdir(parents=True)
        shutil.copy(REPO / "Makefile", tmp / "a b")
        shutil.copy(LAB / "bootstrap.sh", tmp / "a b/lab")
        must_say(["make", "-C", tmp / "a b", "run"], "has a space")
        must_say(["sh", tmp / "a b/lab/bootstrap.sh", "run"], "has a space")


def must_say(cmd, wanted, **env):
    done = subprocess.run([str(c) for c in cmd], cwd=REPO, env=clean_env(**env), stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=60)
    text = done.stdout + done.stderr
    said = [line for line in text.splitlines() if not re.match(r"make(\[\d+\])?: ", line)]
    if not done.returncode or len(said) != 1 or wanted not in said[0]:
        raise Fail(f"{' '.join(map(str, cmd))}: expected “{wanted}”, got {done.returncode}: {text}")


def variables_told(lab):
    """Variables on make's command line are recognized, whatever their values."""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp / "lab").mkdir()
        shutil.copy(REPO / "Makefile", tmp)
        (tmp / "lab/bootstrap.sh").write_text('printf "%s\\n" "$MAKEFLAGS" "$RUN"\n')
        text = """a $HOME $(shell id) 'b "c" \\ # T=x -- Y=z"""
        done = subprocess.run(["make", "-s", "run", f"RUN={text}", "DOM0:=pv", "X="], cwd=tmp, env=clean_env(),
                              capture_output=True, text=True)
        flags, run = done.stdout.splitlines()
        if sorted(variables.given(flags)) != ["DOM0", "RUN", "X"] or run != text:
            raise Fail(f"{flags}: {variables.given(flags)}; RUN={run}; {done.stderr}")
    if found := [flags for flags in ("", "s", "w -j2 --jobserver-auth=fifo:/tmp/x", "k -- ") if variables.given(flags)]:
        raise Fail(f"seen in {found}")


def group_lives(group):
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            return True
    return False


def cleaned_up(lab):
    """A step that is stopped leaves no process and no incomplete folder."""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp / "Makefile").write_text("target: ; echo half >$@; sleep 1000\n")
        proc = subprocess.Popen(["make", "-s", "target"], cwd=tmp, start_new_session=True, stderr=subprocess.DEVNULL)
        while not (tmp / "target").exists():
            time.sleep(0.01)
        kill_group(proc)
        if (tmp / "target").exists():
            raise Fail("make was killed before it could remove its target")
        until = time.monotonic() + 5
        while group_lives(proc.pid):
            if time.monotonic() > until:
                raise Fail("processes are left")
            time.sleep(0.01)
        for error in (Fail, KeyboardInterrupt):
            try:
                with new_folder(tmp / "new") as partial:
                    (partial / "file").touch()
                    raise error
            except error:
                pass
        with new_folder(tmp / "good") as partial:
            (partial / "file").touch()
        if sorted(p.name for p in tmp.iterdir()) != ["Makefile", "good"] or not (tmp / "good/file").exists():
            raise Fail(f"left: {list(tmp.iterdir())}")


def foretold(lab):
    """Progress counts objects, and estimates only with a valid total."""
    progress = Progress("x", 100)
    for line in ("  CC      a.o", "  CC [M]  b.o", "  AS      c.o", "  AR      d.a", "CC e.o"):
        progress.line(line)
    if progress.count != 3 or progress.text(30) != "3 of 100 objects, about 16 min left":
        raise Fail(f"{progress.count}: {progress.text(30)}")
    progress.total = 1000
    if progress.text(30) != "3 of 1,000 objects":
        raise Fail(progress.text(30))
    progress.total = 2
    if progress.text(30) != "3 objects":
        raise Fail(progress.text(30))


def recorded(lab):
    """bench/ has what make bench writes for the data in it; tables without data work, too."""
    with tempfile.TemporaryDirectory() as tmp:
        measure.write(json.loads((REPO / "bench/results.json").read_text()), Path(tmp))
        for written, kept in {"bench.json": "results.json", "bench/results.json": "results.json",
                              "bench/RESULTS.md": "RESULTS.md"}.items():
            if (Path(tmp) / written).read_text() != (REPO / "bench" / kept).read_text():
                raise Fail(f"bench/{kept} is not what make bench writes to build/{written} for bench/results.json")
    report.report({"configurations": {}, "profiles": {}})


CASES = {
    "lab-judge": judged,
    "lab-judge-reports": each_report_is_seen,
    "lab-overlay": overlaid,
    "lab-overlay-place": only_where_it_fits,
    "lab-initramfs": archived,
    "lab-refuses": refused,
    "lab-variables": variables_told,
    "lab-stops": cleaned_up,
    "lab-progress": foretold,
    "lab-results": recorded,
}
