# SPDX-License-Identifier: GPL-2.0
"""Real guests: a Debian dom0 with xl, whose guests run Debian's own kernel."""
import copy
import gzip
import os
import shutil

import build
import deb
import machines
from initramfs import newc_tree
from machines import LAZY, STRICT
from tests.boots import booted, fits
from util import LOGS, Fail, run

# Kind of dom0, arguments of its kernel.
MODES = {
    "pvh-lazy": ("pvh", LAZY),
    "pvh-strict": ("pvh", STRICT),
    "pv-translated": ("pv", f"iommu.passthrough=0 {LAZY}"),
    "pv-translated-strict": ("pv", f"iommu.passthrough=0 {STRICT}"),
    "pv-identity": ("pv", LAZY),
}
# A PV dom0 can have PVH guests only on a machine with nested paging, which those of the other tests lack.
CPU = {"pv": f"-cpu {machines.CPU['pvh', 'vtd']} "}
SHORT = ("groups", "guest-io", "guest-gntdev", "guest-cycles")


def guests(mode, tests=SHORT, cycles=2, what="", qemu_args="", **kw):
    dom0, args = MODES[mode]

    def case(lab):
        fits(dom0, "vtd")
        booted(lab, f"guests-{mode}{what}", dom0=dom0, iommu="vtd", root="debian", dom0_args=args, cpus=1,
               qemu_args=CPU.get(dom0, "") + qemu_args,
               env={"LAB_TESTS": f"'{' '.join(tests)}'", "LAB_GUEST_CYCLES": cycles}, **{"timeout": 1500, **kw})
    return case


def from_packages(lab):
    """The kernel and hypervisor packages of make deb, with their modules, in the Debian dom0."""
    kinds = [dom0 for dom0 in ("pvh", "pv") if os.environ.get("DOM0", dom0) == dom0]
    fits(kinds[0], "vtd")
    # The test, not the user's CONFIG=, decides what is packed.
    deb.make(lab)
    root = build.OBJ / "deb-root"
    shutil.rmtree(root, ignore_errors=True)
    for package in deb.OUT.glob("*.deb"):
        run(f"unpacking {package.name}", ["dpkg-deb", "-x", package, root], LOGS / "build" / "deb-root.log", append=True)
    kernels, xens = list(root.glob("boot/vmlinuz-*")), list(root.glob("boot/xen-4.20-amd64.gz"))
    if len(kernels) != 1 or len(xens) != 1:
        raise Fail(f"expected one kernel and one hypervisor in the packages, found {len(kernels)} and {len(xens)}")
    installed = copy.copy(lab)
    installed.__dict__.update(
        initrd=lab.initrd, xen=build.image_of(xens[0]), kernel=copy.copy(lab.kernel),
        initrd_debian=gzip.compress(newc_tree(root / "lib", below="debian/usr/lib"), 1, mtime=0))
    installed.kernel.image = kernels[0]
    # QEMU's SVM loses interrupts, for which only the lab's Xen has a patch, so guests run in PV only.
    tests = {"pvh": "groups boot-log disk-read disk-write", "pv": "groups boot-log guest-io"}
    for dom0 in kinds:
        booted(installed, f"deb-{dom0}", dom0=dom0, iommu="vtd", root="debian",
               env={"LAB_TESTS": f"'{tests[dom0]}'", "LAB_PERSISTENT": "Y"})


CASES = {
    # The default configuration: a PVH dom0, lazy mode, a PV and a PVH guest.
    "guests-pvh-lazy-io": guests("pvh-lazy", ("groups", "guest-io", "guest-gntdev"), what="-io"),
}

# These take long under emulation, so they run only by name or with T=all.
EXTRA = {
    **{f"guests-{mode}": guests(mode) for mode in MODES},
    **{f"guests-cycles-{mode}": guests(mode, ("guest-cycles",), 20, "-cycles") for mode in MODES},
    **{f"guests-balloon-{mode}": guests(mode, ("guest-balloon",), what="-balloon") for mode in MODES},
    **{f"guests-save-{mode}": guests(mode, ("guest-save",), what="-save") for mode in MODES},
    **{f"guests-reboot-{mode}": guests(mode, ("guest-reboot", "groups"), what="-reboot", qemu_args="-action reboot=reset")
       for mode in MODES},
    # In a PVH dom0, Linux's xen-pciback cannot do it, with or without our driver.
    **{f"guests-pciback-{mode}": guests(mode, ("guest-pciback",), what="-pciback")
       for mode in MODES if mode.startswith("pv-")},
    **{f"guests-vfio-{mode}": guests(mode, ("guest-vfio",), what="-vfio", timeout=1200) for mode in MODES},
    # Xen has the hypercall for PV domains only.
    **{f"guests-kexec-{mode}": guests(mode, what="-kexec", run="exec /usr/lib/xen-iommu/guest-kexec")
       for mode in MODES if mode.startswith("pv-")},
    "deb-boot": from_packages,
}
