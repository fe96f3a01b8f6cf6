#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The lab's commands: run, shell, test, bench, series. The Makefile calls them; variables come from make."""
import gzip
import importlib
import os
import signal
import sys
import traceback
from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import boot
import build
import debian
import fetch
import machines
import util
from runner import run_all
from util import CPUS, LAB, LOGS, REPO, Fail, say, say_error
from variables import check as check_variables, value as variable


DEBIAN_PATIENCE = 3     # the initramfs' time limit times this


class Lab:
    """What the user's variables select, built on first use."""

    def __init__(self):
        self.version = variable("KERNEL", "7.3")
        self.linux_tree, self.xen_tree = variable("LINUX_TREE"), variable("XEN_TREE")
        self.xen_image = variable("XEN_IMAGE")
        self.root = variable("ROOT", "initramfs", ("initramfs", "debian"))
        self.settings = boot.Settings(
            dom0=variable("DOM0", "pvh", ("pvh", "pv")), iommu=variable("IOMMU", "vtd", ("vtd", "amd")),
            xen_args=variable("XEN_ARGS"), dom0_args=variable("DOM0_ARGS"),
            initrd_extra=variable("INITRD_EXTRA"), run=os.environ.get("RUN") or None,
            qemu=variable("QEMU", "qemu-system-x86_64"), qemu_args=variable("QEMU_ARGS"),
            icount=variable("ICOUNT", "0", ("0", "1")) == "1")

    def check(self):
        """Check early what would otherwise fail only after a long build."""
        build.check_place()
        util.check_cache()
        boot.check_qemu(self.settings.qemu)
        if self.xen_image:
            build.unpacked_image(self.xen_image)

    @cached_property
    def linux_source(self):
        return build.linux_source(self.version, self.linux_tree)

    @cached_property
    def kernel(self):
        with build.lock():
            build.check_place()
            return build.Kernel(self.linux_source).build()

    @cached_property
    def initrd(self):
        kernel = self.kernel
        with build.lock():
            return build.initramfs(kernel)

    @cached_property
    def initrd_debian(self):
        return gzip.compress(debian.initramfs_extra(self.kernel), 1, mtime=0)

    @cached_property
    def xen(self):
        """The image of the Xen under test."""
        if self.xen_image:
            return build.image_of(self.xen_image)
        return self.build_xen()

    @cached_property
    def stock_xen(self):
        """Debian's hypervisor, without our parts."""
        return build.image_of(fetch.xen_stock(), "xen-stock")

    @cached_property
    def debug_xen(self):
        return self.build_xen(flavour="debug", fragments=("xen-debug.config",))

    @cached_property
    def drafts_xen(self):
        """With the quirks of the drafts of the interface, which pv-iommu=drafts turns on."""
        return self.build_xen(drafts=True, flavour="debug", fragments=("xen-debug.config",))

    def build_xen(self, drafts=False, **kw):
        with build.lock():
            build.check_place()
            return build.Xen(build.xen_source(self.xen_tree, drafts), **kw).build().image

    def boot(self, name, xen="ours", expect=None, show=False, shell=False, env=None, disk=True, xen_args="",
             cpus=0, timeout=600, **settings):
        """Boot one machine; `settings` replace the user's."""
        chosen = replace(self.settings, **settings)
        image = {"ours": lambda: self.xen, "stock": lambda: self.stock_xen, "debug": lambda: self.debug_xen,
                 "drafts": lambda: self.drafts_xen,
                 None: lambda: None}[xen]()
        kernel, initrd, debian_root = self.kernel.image, self.initrd, {}
        if chosen.root == "debian":
            debian_root = {"root": debian.image(), "initrd_debian": self.initrd_debian}
            timeout *= DEBIAN_PATIENCE
        if show:
            say(f"booting {'dom0 ' + chosen.dom0 if image else 'Linux without Xen'}, IOMMU {chosen.iommu}, in QEMU")
        return boot.boot(boot.Boot(name=name, kernel=kernel, initrd=initrd, xen=image, settings=chosen,
                                   expect=expect or machines.expected(chosen.dom0, chosen.dom0_args), xen_args=xen_args,
                                   disk=disk, cpus=cpus, timeout=timeout, env=env or {}, **debian_root), show=show, shell=shell)


def run(lab):
    result = lab.boot("run", show=True, root=lab.root)
    log = result.logs.relative_to(REPO)
    if result.code == 0:
        say(f"PASSED after {result.seconds:.0f} s in QEMU; logs: {log}/")
        return 0
    if lab.settings.run is not None and boot.judge.only_exit_code(result.reasons):
        say(f"RUN ended with exit code {result.code}; nothing else went wrong; logs: {log}/")
        return result.code
    for line in boot.explain(result)[1:]:
        print(f"         {line}")
    say(f"FAILED: {result.reasons[0]}; logs: {log}/")
    return result.code


def shell(lab):
    say("leave with Ctrl-A X, or power off in dom0")
    lab.boot("shell", shell=True, root=lab.root, env={"LAB_SHELL": 1})
    return 0


def cases(by_name):
    """All test cases: every file of lab/tests has CASES, {name: function of the lab}.

    by_name: include EXTRA, which run only when named.
    """
    found = {}
    sys.modules.setdefault("lab", sys.modules[__name__])
    sys.path.insert(0, str(LAB))
    for path in sorted((LAB / "tests").glob("[a-z]*.py")):
        module = importlib.import_module(f"tests.{path.stem}")
        found.update(module.CASES)
        if by_name:
            found.update(getattr(module, "EXTRA", {}))
    return found


def test(lab):
    chosen = variable("T").replace(",", " ").split()
    found = cases(by_name=bool(chosen))
    if chosen == ["list"]:
        print("\n".join(found))
        return 0
    if chosen == ["all"]:
        chosen = [""]
    if unknown := [t for t in chosen if not any(name.startswith(t) for name in found)]:
        raise Fail(f"T={unknown[0]}: no such test; make test T=list shows them all")
    selected = {n: f for n, f in found.items() if not chosen or any(n.startswith(t) for t in chosen)}
    if sum(not name.startswith("lab-") for name in selected) > 4:
        # Build once, before the cases run in parallel.
        lab.xen, lab.initrd  # pylint: disable=pointless-statement
    # A boot keeps one CPU busy most of the time.
    outcomes = run_all(selected, lab, CPUS)
    longest = sorted(outcomes, key=lambda o: -o.seconds)[:5]
    print(f"# took longest: {', '.join(f'{o.name} {o.seconds:.0f} s' for o in longest)}")
    print(f"# logs: {(LOGS / 'test').relative_to(REPO)}/")
    count = Counter(o.verdict for o in outcomes)
    skipped = f", {count['skipped']} skipped" if count["skipped"] else ""
    print(f"{count['passed']} passed, {count['failed']} failed{skipped}", flush=True)
    return 1 if count["failed"] or not count["passed"] else 0


def series(lab):
    import series as maker
    return maker.make(lab)


def bench(lab):
    """T= selects configurations by the start of their names, keeping the results of the others; RUN= selects what
    to measure from "kernel sizes dma vfio nvme".
    """
    from bench.measure import bench as measure
    return measure(lab, variable("T").replace(",", " ").split(), variable("RUN", "kernel sizes dma vfio nvme"))


def deb(lab):
    import deb as maker
    return maker.make(lab)


COMMANDS = {"run": run, "shell": shell, "test": test, "series": series, "deb": deb, "bench": bench}


def main(argv):
    if len(argv) != 2 or argv[1] not in COMMANDS:
        say_error(f"usage: lab.py {'|'.join(COMMANDS)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check_variables(argv[1])
        lab = Lab()
        lab.check()
        return COMMANDS[argv[1]](lab)
    except Fail as failure:
        say_error(failure)
        return 1
    except KeyboardInterrupt:
        say_error("interrupted")
        return 130
    except OSError as error:
        say_error(f"{error.strerror}: {error.filename or ''}" if error.strerror else error)
        return 1
    except Exception as error:
        log = LOGS / "traceback.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc())
        say_error(f"a fault of the lab itself: {type(error).__name__}: {error}; traceback: {log.relative_to(REPO)}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
