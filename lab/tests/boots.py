# SPDX-License-Identifier: GPL-2.0
"""Boots: dom0 with our driver on our Xen, and the cases in which the driver must stay inactive."""
import os

from boot import explain
from machines import LAZY, STRICT
from runner import Skip
from util import REPO, Fail


def booted(lab, name, **kw):
    """Boot, and fail unless the verdict and the console are good."""
    result = lab.boot(f"test/{name}", **kw)
    if result.code:
        raise Fail("\n".join([*explain(result), f"log: {result.logs.relative_to(REPO)}/console.log"]))
    return result


def fits(dom0, iommu):
    """Skip machines other than the one that the user has requested."""
    for variable, value in (("DOM0", dom0), ("IOMMU", iommu)):
        if os.environ.get(variable, value) != value:
            raise Skip(f"{variable}={os.environ[variable]}")


def needs(lab, path):
    """Skip kernels whose source does not have a file or folder that the test is about."""
    if not (lab.linux_source / path).exists():
        raise Skip(f"this kernel has no {path}")


def works(dom0, iommu, name="", **kw):
    def case(lab):
        fits(dom0, iommu)
        booted(lab, f"boot-{dom0}-{iommu}{name}", dom0=dom0, iommu=iommu, **kw)
    return case


def stands_back(name, expect="none", **kw):
    return name, lambda lab: booted(lab, name, expect=expect, **kw)


def fuzz(dom0, iommu):
    """
    The hypercall without the driver: all sub-ops, and random calls, on a debug build of Xen. The devices must work
    afterwards. A PV dom0 has two CPUs, and makes calls from both at once.
    """
    return works(dom0, iommu, "-fuzz", xen="debug", expect="none", dom0_args="xen_iommu.enable=0",
                 env={"LAB_TESTS": "'hypercall hypercall-grants disk-read disk-write edu-dma'", "LAB_IOMMU": "none"})


def faults(dom0):
    """Faults that the hypercall reports, and the context of a device that another domain had; without the driver."""
    return works(dom0, "vtd", "-faults", xen="debug", expect="none", dom0_args="xen_iommu.enable=0",
                 env={"LAB_TESTS": "hypercall-devices", "LAB_IOMMU": "none"})


def stress(dom0, iommu, name="", **kw):
    """DMA must be blocked in time, and nothing may leak."""
    return works(dom0, iommu, f"-stress{name}", env={"LAB_TESTS": "'hammer cycles'"}, **kw)


def translated(iommu, name="", args=""):
    return works("pv", iommu, f"-translated{name}", dom0_args=f"iommu.passthrough=0 {args}")


def large(dom0, mode, **kw):
    """Large and many mappings, strict or lazy."""
    return works(dom0, "vtd", f"-large-{mode}", env={"LAB_TESTS": "'groups edu-dma edu-large'"},
                 dom0_args=f"iommu.passthrough=0 {STRICT if mode == 'strict' else LAZY}", **kw)


# Too few contexts for all groups: the driver reports that, and the disk works without it.
TOO_FEW = r"""
. /usr/lib/xen-iommu/lib.sh
set -eu
[ ! -e "$CLASS" ] || fail "xen-iommu is in use"
dmesg | grep 'xen-iommu: ' > /tmp/lines
sed 's/^/# /' /tmp/lines
[ "$(wc -l < /tmp/lines)" = 1 ] || fail "expected one line"
grep -q 'not in use: registration with [0-9]* contexts failed' /tmp/lines || fail "it does not say why"
/usr/lib/xen-iommu/disk-read
/usr/lib/xen-iommu/kernel-log
"""

CASES = {
    "boot-pvh-vtd": works("pvh", "vtd"),
    "boot-pv-vtd": works("pv", "vtd"),
    "boot-pv-vtd-translated": translated("vtd"),
    "boot-pvh-amd": works("pvh", "amd"),
    "boot-pv-amd": works("pv", "amd"),
    "boot-pvh-vtd-strict": works("pvh", "vtd", "-strict", dom0_args=STRICT),
    "boot-pvh-vtd-debug-xen": works("pvh", "vtd", "-debug-xen", xen="debug"),
    **{f"large-{dom0}-{mode}": large(dom0, mode) for dom0 in ("pvh", "pv") for mode in ("strict", "lazy")},
    "contexts-2-pvh": works("pvh", "vtd", "-contexts-2", run=TOO_FEW, dom0_args="xen_iommu.contexts=2"),
    "fuzz-pvh-vtd": fuzz("pvh", "vtd"),
    "fuzz-pv-vtd": fuzz("pv", "vtd"),
    "fuzz-pv-amd": fuzz("pv", "amd"),
    # QEMU's AMD-Vi does not deliver its events.
    "faults-pvh-vtd": faults("pvh"),
    "faults-pv-vtd": faults("pv"),
    **dict((
        # Debian's hypervisor.
        stands_back("stand-back-stock-xen-pv", xen="stock", dom0="pv", iommu="vtd"),
        stands_back("stand-back-pv-iommu-off-pvh", dom0="pvh", iommu="vtd", xen_args="pv-iommu=off"),
        # Xen runs a PVH dom0 only with an IOMMU.
        stands_back("stand-back-xen-iommu-off", dom0="pv", iommu="vtd", xen_args="iommu=off", env={"LAB_IOMMU": "none"}),
        # Without Xen, Linux's own driver uses the IOMMU, if there is one.
        stands_back("stand-back-no-xen-vtd", expect="translated", xen=None, iommu="vtd"),
        stands_back("stand-back-no-xen", xen=None, iommu="none"),
        stands_back("stand-back-iommu-off-pvh", dom0="pvh", iommu="vtd", dom0_args="iommu=off"),
        stands_back("stand-back-iommu-soft-pv", dom0="pv", iommu="vtd", dom0_args="iommu=soft"),
    )),
}

# Long ones, and those that differ little from the above: they run only by name or with T=all.
EXTRA = {
    # It lacks the lab's patches for QEMU's SVM, and crashes or hangs occasionally.
    **dict((stands_back("stand-back-stock-xen-pvh", xen="stock", dom0="pvh", iommu="vtd"),)),
    "stress-pvh-vtd": stress("pvh", "vtd"),
    "stress-pvh-vtd-strict": stress("pvh", "vtd", "-strict", dom0_args=STRICT),
    "stress-pvh-amd": stress("pvh", "amd"),
    "boot-pvh-amd-strict": works("pvh", "amd", "-strict", dom0_args=STRICT),
    "boot-pv-vtd-translated-strict": translated("vtd", "-strict", STRICT),
    # Without translation by default.
    "stress-pv-amd": stress("pv", "amd"),
    "boot-pv-amd-translated": translated("amd"),
    "boot-pvh-amd-debug-xen": works("pvh", "amd", "-debug-xen", xen="debug"),
    "fuzz-pvh-amd": fuzz("pvh", "amd"),
}

# With IOMMU=amd, the tests that default to VT-d run on AMD-Vi.
if os.environ.get("IOMMU") == "amd":
    CASES.update({name: EXTRA.pop(name) for name in list(EXTRA) if "-amd" in name and not name.startswith("stress-")})
