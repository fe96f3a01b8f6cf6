# SPDX-License-Identifier: GPL-2.0
"""Boots: dom0 with our driver on our Xen, and the cases in which the driver must stand back."""
import os

from boot import explain
from lab import Skip
from util import REPO, Fail


def booted(lab, name, **kw):
    """Boot and fail unless the guest and the console say that all is well."""
    result = lab.boot(f"test/{name}", **kw)
    if result.code:
        raise Fail("\n".join([*explain(result), f"log: {result.logs.relative_to(REPO)}/console.log"]))
    return result


def fits(dom0, iommu):
    """Skip what is not the machine that the user has asked for."""
    for variable, value in (("DOM0", dom0), ("IOMMU", iommu)):
        if os.environ.get(variable, value) != value:
            raise Skip(f"{variable}={os.environ[variable]}")


def works(dom0, iommu, name="", **kw):
    def case(lab):
        fits(dom0, iommu)
        booted(lab, f"boot-{dom0}-{iommu}{name}", dom0=dom0, iommu=iommu, **kw)
    return case


def stands_back(name, expect="none", **kw):
    return name, lambda lab: booted(lab, name, expect=expect, **kw)


CASES = {
    "boot-pvh-vtd": works("pvh", "vtd"),
    "boot-pv-vtd": works("pv", "vtd"),
    "boot-pv-vtd-translated": works("pv", "vtd", "-translated", expect="translated", dom0_args="iommu.passthrough=0"),
    "boot-pvh-amd": works("pvh", "amd"),
    "boot-pv-amd": works("pv", "amd"),
    "boot-pvh-vtd-debug-xen": works("pvh", "vtd", "-debug-xen", xen="debug"),
    # The hypercall without the driver: all of it, and random calls, on a Xen with its assertions. The devices
    # must work afterwards.
    "fuzz-pvh-vtd": works("pvh", "vtd", "-fuzz", xen="debug", expect="none", dom0_args="xen_iommu.enable=0",
                          env={"LAB_TESTS": "'hypercall disk-read disk-write edu-dma'", "LAB_IOMMU": "none"}),
    # Two CPUs, and calls from both at once.
    "fuzz-pv-vtd": works("pv", "vtd", "-fuzz", xen="debug", expect="none", dom0_args="xen_iommu.enable=0",
                         env={"LAB_TESTS": "'hypercall disk-read disk-write edu-dma'", "LAB_IOMMU": "none"}),
    "fuzz-pv-amd": works("pv", "amd", "-fuzz", xen="debug", expect="none", dom0_args="xen_iommu.enable=0",
                         env={"LAB_TESTS": "'hypercall disk-read disk-write edu-dma'", "LAB_IOMMU": "none"}),
    **dict((
        stands_back("stand-back-stock-xen-pvh", xen="stock", dom0="pvh", iommu="vtd"),
        stands_back("stand-back-stock-xen-pv", xen="stock", dom0="pv", iommu="vtd"),
        # Xen runs a PVH dom0 only with an IOMMU.
        stands_back("stand-back-xen-iommu-off", dom0="pv", iommu="vtd", xen_args="iommu=off", env={"LAB_IOMMU": "none"}),
        # Without Xen, Linux's own driver has the IOMMU, if there is one.
        stands_back("stand-back-no-xen-vtd", expect="translated", xen=None, iommu="vtd"),
        stands_back("stand-back-no-xen", xen=None, iommu="none"),
    )),
}

# Long ones: only by name.
EXTRA = {
    # A device must be stopped in time, nothing may be left behind.
    "stress-pvh-vtd": works("pvh", "vtd", "-stress", env={"LAB_TESTS": "'hammer cycles'"}),
}
