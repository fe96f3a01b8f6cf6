# SPDX-License-Identifier: GPL-2.0
"""Nested translation: a PVH dom0 on AMD-Vi builds the page tables, on a QEMU that has what that needs.

Building that QEMU takes ten minutes once, so these run by name only.
"""
import qemu
from tests.boots import booted, fits

# The default tests of a boot, and those of tables in dom0's memory.
STANDARD = "groups boot-log disk-read disk-write edu-dma edu-iommu edu-nested"


def nested(name, tests, **kw):
    def case(lab):
        fits("pvh", "amd")
        booted(lab, f"nested-{name}", dom0="pvh", iommu="amd", qemu=qemu.guest_translation(), qemu_args=qemu.ARGS,
               **{**kw, "env": {"LAB_TESTS": f"'{tests}'", **kw.get("env", {})}})
    return case


CASES = {}
EXTRA = {
    "nested-boot": nested("boot", STANDARD),
    "nested-lazy": nested("lazy", STANDARD, dom0_args="iommu.strict=0"),
    # The hypercall alone, on a Xen with its assertions.
    "nested-hypercall": nested("hypercall", "hypercall disk-read disk-write edu-dma", xen="debug", expect="none",
                               dom0_args="xen_iommu.enable=0", env={"LAB_IOMMU": "none"}),
    "nested-vfio": nested("vfio", "vfio-nvme", env={"LAB_MAPPINGS": 20000}),
    "nested-stress": nested("stress", "hammer cycles"),
    # What turns it off leaves all as it is without.
    "nested-off-xen": nested("off-xen", STANDARD.replace(" edu-nested", ""), xen_args="pv-iommu=nested=off"),
    "nested-off-linux": nested("off-linux", STANDARD.replace(" edu-nested", ""), dom0_args="xen_iommu.nested=0"),
}
