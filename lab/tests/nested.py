# SPDX-License-Identifier: GPL-2.0
"""Nested translation: a PVH dom0 on AMD-Vi builds the page tables, on a QEMU that supports it.

Building that QEMU takes ten minutes, once, so these run only by name or with T=all. Most are cases of other files.
"""
import copy
import re

import qemu
from lab import Lab
from machines import STRICT
from tests import boots, devices, guests, vfio, xen
from tests.boots import needs, works
from util import Fail

# The default tests of a boot, and those for tables in dom0's memory.
STANDARD = "groups boot-log disk-read disk-write edu-dma edu-iommu edu-nested"
OFF = STANDARD.replace(" edu-nested", "")
NESTED = 1 << 2     # among the capabilities


class Nested(Lab):
    """The lab with only such machines."""

    def boot(self, name, **kw):
        name = re.sub("^test/(nested-)?", "test/nested-", name).replace("-vtd", "-amd")
        args = kw.get("qemu_args", self.settings.qemu_args)
        result = super().boot(name, **{**kw, "dom0": "pvh", "iommu": "amd", "qemu": qemu.guest_translation(),
                                       "qemu_args": f"{args} {qemu.ARGS}",
                                       "env": {"LAB_AMD_EVENTS": 1, **(kw.get("env") or {})}})
        # Cases from other files would also pass without nested translation.
        wanted = kw.get("expect") != "none" and "nested=" not in kw.get("xen_args", "") + kw.get("dom0_args", "")
        if not result.code and wanted != bool(re.search(r"xen-iommu: .*, nested", result.console)):
            raise Fail(f"nested translation is {'not ' if wanted else ''}in use")
        return result


def nested(case):
    def on_that(lab):
        needs(lab, "drivers/iommu/generic_pt")
        other = copy.copy(lab)
        other.__class__ = Nested
        case(other)
    return on_that


def boot(name, tests=STANDARD, **kw):
    return works("pvh", "amd", f"-{name}", **{**kw, "env": {"LAB_TESTS": f"'{tests}'", **kw.get("env", {})}})


CASES = {}
EXTRA = {f"nested-{name}": nested(case) for name, case in {
    "boot": boot("lazy"),
    "strict": boot("strict", dom0_args=STRICT),
    "debug-xen": boot("debug-xen", xen="debug"),
    # The hypercall alone, on a debug build of Xen.
    "hypercall": boot("hypercall", "capabilities hypercall hypercall-grants disk-read disk-write edu-dma", xen="debug",
                      expect="none", dom0_args="xen_iommu.enable=0", timeout=1200,
                      env={"LAB_IOMMU": "none", "LAB_CAPS_SET": NESTED}),
    # Faults, quarantine, and contexts that are freed meanwhile; this QEMU reports faults.
    "faults": boots.faults("pvh"),
    "hostile": xen.hostile("pvh", "amd", xen="debug"),
    # Options that turn it off.
    "off-xen": boot("off-xen", OFF, xen_args="pv-iommu=nested=off"),
    "off-linux": boot("off-linux", OFF, dom0_args="xen_iommu.nested=0"),
    "stress": boots.stress("pvh", "amd"),
    "stress-strict": boots.stress("pvh", "amd", "-strict", dom0_args=STRICT),
    **{f"large-{mode}": boots.large("pvh", mode) for mode in ("strict", "lazy")},
    "no-dma": xen.no_dma("pvh", "amd"),
    "no-intremap": xen.no_intremap("pvh", "amd"),
    "hotplug": devices.hotplug("pvh", "amd"),
    "slot": devices.slot("pvh", "amd", "nested-"),
    "vfio": vfio.nvme("pvh", "amd"),
    "vfio-unplug": vfio.on_nvme("pvh", "amd", "vfio-unplug", **vfio.STORM),
    "vfio-limits": vfio.on_nvme("pvh", "amd", "vfio-limits", dom0_args="xen_iommu.contexts=24 xen_iommu.pool_order=9"),
    "vfio-fail": vfio.fail("pvh", "amd"),
    "vfio-selftests": vfio.selftests("pvh", "amd", vfio.SHORT),
    "vfio-msi": vfio.msi("pvh", "amd"),
    "vfio-driver": vfio.selftests("pvh", "amd", "vfio_pci_driver_test", timeout=2400),
    "vfio-dpdk": vfio.dpdk("pvh", "amd"),
    "iommufd-selftests": vfio.iommufd("ours", "pvh", "amd"),
    "guests": guests.guests("pvh-lazy"),
}.items()}
