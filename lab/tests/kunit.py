# SPDX-License-Identifier: GPL-2.0
"""The driver's KUnit suite on its software hypervisor: on User-mode Linux, by the kernel's kunit.py, with the
coverage measured; and in a kernel that detects memory errors, deadlocks and the like."""
import json
import re
import shutil

import build
import judge
from lab import Lab
from tests.boots import booted
from tests.xen import STANDARD
from util import LOGS, REPO, Fail, clean_env, run

SUITE = "drivers/iommu/tests"
DRIVER = "drivers/iommu/xen-iommu.c"
MIN_COVERAGE = 95       # percentage of the driver's lines


def covered(report):
    """{line: times run} of the driver, which the suite compiles in, from gcov's JSON."""
    lines = {}
    for source in json.loads(report)["files"]:
        if source["file"].endswith("/xen-iommu.c"):
            for line in source["lines"]:
                number = line["line_number"]
                lines[number] = lines.get(number, 0) + line["count"]
    return lines


def judge_coverage(lab, obj):
    report = LOGS / "test/kunit-coverage.json"
    if not list((obj / SUITE).glob("xen_iommu_test.gcda")):
        raise Fail("the kernel has written no coverage data")
    run("gcov", ["gcov", "--json-format", "--stdout", "-o", SUITE, f"{SUITE}/xen_iommu_test.o"], report, cwd=obj)
    lines = covered(next(line for line in report.read_text().splitlines() if line.startswith("{")))
    if not lines:
        raise Fail(f"gcov knows no line of {DRIVER}; log: {report.relative_to(REPO)}")
    source = (lab.linux_source / DRIVER).read_text().splitlines()
    missed = [f"{DRIVER}:{n}: {source[n - 1].strip()}" for n, count in sorted(lines.items()) if not count]
    share = 100 * (len(lines) - len(missed)) / len(lines)
    print("\n".join([f"# {share:.1f} % of {len(lines)} lines; not run:", *(f"#   {line}" for line in missed)]), flush=True)
    if share < MIN_COVERAGE:
        raise Fail(f"{share:.1f} % of the driver's lines are run, expected {MIN_COVERAGE} %")


def judge_console(console):
    """Fail on reports of the kernel while the tests run: kunit.py checks only the results."""
    if not console.is_file():
        raise Fail("kunit.py has kept no console log")
    shutil.copy(console, LOGS / "test/kunit-console.log")
    if bad := judge.reports(judge.text_of(console)):
        raise Fail("\n".join(["the kernel reports:", *bad[:10], "log: build/logs/test/kunit-console.log"]))


def kunit_options(obj):
    """Options for kunit.py run."""
    options = [
        f"CC={build.COMPILER}",
        # CONFIG_GCOV would cover the whole kernel, and need a separate build.
        "CFLAGS_xen_iommu_test.o=--coverage -fno-tree-loop-im -Wno-maybe-uninitialized",
        # Before 7.3, Linux has a function with the name of one in libgcov.
        *(f"CFLAGS_{name}.o=-Dmangle_path=kernel_mangle_path" for name in ("seq_file", "seq_buf")),
        # The linker script drops the section by which gcc has the data written at exit.
        "LINK-y=-no-pie --coverage -Wl,-u,__gcov_dump -Wl,-fini=__gcov_dump",
    ]
    return [f"--kunitconfig={SUITE}", f"--build_dir={obj}", f"--jobs={build.CPUS}",
            *(f"--make_options={option}" for option in options)]


def kunit(lab):
    log, obj, src = LOGS / "test/kunit.log", build.OBJ / "kunit-um", lab.linux_source
    console = obj / "test.log"
    with build.lock():
        obj.mkdir(parents=True, exist_ok=True)
        for old in [*(obj / SUITE).glob("*.gcda"), console]:
            old.unlink(missing_ok=True)
        run("KUnit", ["python3", "tools/testing/kunit/kunit.py", "run", *kunit_options(obj)], log,
            cwd=src, env=clean_env(**build.ENV))
        done = re.findall(r"Ran (\d+) tests: passed: (\d+)(.*)", log.read_text(errors="replace"))
        if not done or not int(done[-1][1]):
            raise Fail(f"no test ran; log: {log.relative_to(REPO)}")
        # kunit.py's exit code can be 0 after a crash.
        if "errors:" in done[-1][2]:
            raise Fail(f"results are missing, the kernel may have crashed; log: {log.relative_to(REPO)}")
        print(f"# {done[-1][1]} of {done[-1][0]} passed", flush=True)
        judge_console(console)
        judge_coverage(lab, obj)


def mutations(lab):
    """The suite must fail with each of many mistakes in the driver. Takes half an hour or more."""
    log = LOGS / "test/mutations.log"
    with build.lock():
        try:
            run("mutations", ["python3", REPO / "tools/testing/xen-iommu-kunit/mutate.py", "-t", lab.linux_source,
                              *kunit_options(build.OBJ / "kunit-um")], log, env=clean_env(**build.ENV))
        except Fail as failure:
            raise Fail("\n".join([*survivors(log.read_text(errors="replace")), str(failure)])) from failure
    print(f"# {log.read_text().splitlines()[-1]}", flush=True)


def survivors(text):
    """Lines of mutate.py's output about mistakes that the suite did not notice."""
    return re.findall(r"^ *\d+ (?!noticed|of ).*$", text, re.M)


def debug_lab(lab, flavour="debug", *more):
    """A lab whose kernel is a debug kernel, with only what the driver and its tests need."""
    debug = Lab()
    with build.lock():
        build.check_place()
        debug.kernel = build.Kernel(lab.linux_source, flavour, ("dom0.config", "slim.config", "debug.config", *more)).build()
        debug.initrd = build.initramfs(debug.kernel)
    return debug


# In a guest whose kernel has run the suite.
ALL_PASSED = ("results=/sys/kernel/debug/kunit/xen_iommu/results; grep '^# ' $results; "
              "grep -q '^# xen_iommu: pass:[1-9][0-9]* fail:0 ' $results && ! grep -q '^ *not ok' $results")


def kunit_debug(lab):
    """Two CPUs, KASAN, lockdep, UBSAN; without Xen. The judge sees their reports."""
    booted(debug_lab(lab), "debug-kunit", xen=None, iommu="none", expect="none", timeout=1800, disk=False,
           dom0_args="kunit.enable=1 kunit.filter_glob=xen_iommu",
           run=ALL_PASSED)


def boot_debug(dom0):
    """
    The same without KASAN, in dom0, where the core warns if a page is freed that it believes to be mapped, or unmapped more
    often than mapped. It asks the driver for each page, also when a map fails: the second boot has too few table pages.
    """
    def case(lab):
        debug = debug_lab(lab, "debug-xen", "debug-xen.config")
        for what, args, tests in (("", "", f"{STANDARD} edu-large"),
                                  ("-small-pool", "xen_iommu.pool_order=6", "groups edu-dma")):
            result = booted(debug, f"debug-boot-{dom0}-vtd{what}", dom0=dom0, iommu="vtd", expect="translated", timeout=1800,
                            env={"LAB_TESTS": f"'{tests}'"},
                            dom0_args=f"kunit.enable=0 iommu.passthrough=0 iommu.debug_pagealloc=1 {args}")
            if "iommu: Debugging page allocations" not in result.console:
                raise Fail("the core does not check freed pages")
    return case


CASES = {"kunit": kunit}
# These build one or many more kernels, so they run only by name or with T=all.
EXTRA = {
    "mutations": mutations,
    "debug-kunit": kunit_debug,
    "debug-boot-pvh-vtd": boot_debug("pvh"),
    "debug-boot-pv-vtd": boot_debug("pv"),
}
