# SPDX-License-Identifier: GPL-2.0
"""The machines that "make bench" measures, as data: what lab.boot() takes, by name."""

from machines import LAZY, STRICT

TRANSLATE = "iommu.passthrough=0"

# More memory than for the tests, which maps 512 MiB of user memory, and 1 GiB from 256 MiB on.
QEMU_ARGS = "-m 2560"
# Avoid Xen's warning about a synchronous console, which takes three seconds, or three billion instructions.
XEN_ARGS = "dom0_mem=1536M no-sync_console"

CONFIGURATIONS = {
    # Without an IOMMU: the baseline for I/O.
    "bare-none": dict(xen=None, iommu="none", expect="none", dom0_args="", what="kernel dma nvme"),
    "pvh-none": dict(dom0="pvh", iommu="vtd", expect="none", dom0_args="xen_iommu.enable=0", what="nvme"),
    "bare-vtd-strict": dict(xen=None, iommu="vtd", expect="translated", dom0_args=STRICT),
    "bare-vtd-lazy": dict(xen=None, iommu="vtd", expect="translated", dom0_args=LAZY),
    # QEMU does the device's side of the work, which is not counted. With a disk, the machine hangs on shutdown.
    "bare-virtio-strict": dict(xen=None, iommu="none", expect="translated", dom0_args=STRICT,
                               qemu_args="-device virtio-iommu-pci", disk=False),
    # Without translation: Linux on Xen without our driver.
    "swiotlb-pv": dict(dom0="pv", iommu="vtd", expect="none", dom0_args="xen_iommu.enable=0",
                       what="kernel dma nvme"),
    **{f"{dom0}-{iommu}-{mode}": dict(dom0=dom0, iommu=iommu, expect="translated", dom0_args=f"{arg} {TRANSLATE}")
       for dom0 in ("pvh", "pv") for iommu in ("vtd", "amd") for mode, arg in (("strict", STRICT), ("lazy", LAZY))},
}

# On the QEMU that translates guest tables. Unlike other virtual IOMMUs, it does not report that it may cache absent entries;
# otherwise native Linux would flush whenever it maps.
CONFIGURATIONS.update({
    **{f"bare-amd-{version}-{mode}": dict(xen=None, iommu="amd", expect="translated", guest_tables=True,
                                          dom0_args=f"{arg} amd_iommu=pgtbl_{version}")
       for version in ("v1", "v2") for mode, arg in (("strict", STRICT), ("lazy", LAZY))},
    **{f"nested-{mode}": dict(dom0="pvh", iommu="amd", expect="translated", guest_tables=True, dom0_args=arg)
       for mode, arg in (("strict", STRICT), ("lazy", LAZY))},
    "bare-amd-passthrough": dict(xen=None, iommu="amd", expect="identity", guest_tables=True,
                                 dom0_args="iommu.passthrough=1", what="kernel nvme"),
    "nested-passthrough": dict(dom0="pvh", iommu="amd", expect="identity", guest_tables=True,
                               dom0_args="iommu.passthrough=1", what="kernel nvme"),
})

# fio, with a QEMU plugin that counts instructions: the clock would also count the time that the CPU waits. Xen is told that the
# TSC is stable, as on real processors, and so does not emulate it for dom0.
FIO = ("bare-amd-passthrough", "bare-amd-v1-lazy", "bare-amd-v2-lazy", "nested-passthrough", "nested-lazy", "nested-strict",
       "pvh-amd-lazy")
CONFIGURATIONS.update({f"fio-{name}": {**CONFIGURATIONS[name], "what": "fio", "guest_tables": True,
                                       "xen_args": "tsc=stable:socket"} for name in FIO})
CONFIGURATIONS["fio-pvh-amd-lazy"]["dom0_args"] += " xen_iommu.nested=0"

# The same machines with two CPUs and without counting: does one CPU hold up the other?
THREADED = [n for n in CONFIGURATIONS if n.startswith(("bare-vtd", "pvh-vtd", "pv-vtd"))]
CONFIGURATIONS.update({f"threads-{name}": {**CONFIGURATIONS[name], "what": "threads", "cpus": 2, "icount": False}
                       for name in THREADED})

# Profiled in a separate run, to show where the instructions go.
PROFILED = ("bare-vtd-strict", "pvh-vtd-strict", "pv-vtd-strict")
# Profiles in the report; results.json has all of them.
PROFILED_LOOPS = ("single-1", "single-512", "sg-64", "type1-512-small", "iommufd-512-small", "pin-512-small")

# Columns of the main table: (heading, loop).
LOOPS = (
    ("1 page", "single-1"), ("16 pages", "single-16"), ("512 pages", "single-512"),
    ("sg 16", "sg-16"), ("sg 64", "sg-64"), ("sg 256", "sg-256"),
)
DMA = tuple((head, f"dma-{loop}") for head, loop in LOOPS)
DOMAIN = (("4 KiB", "domain-1"), ("2 MiB", "domain-512"), ("1 GiB", "domain-262144"))
VFIO = tuple((f"{door} {mib} MiB{'' if pages == 'huge' else ', small pages'}", f"{door}-{mib}-{pages}")
             for door in ("type1", "iommufd") for mib in (64, 512) for pages in ("huge", "small"))
NVME = (("random 4 KiB", "nvme-random-4k"), ("sequential 128 KiB", "nvme-sequential-128k"))
FIO_LOOPS = (("random 4 KiB, depth 1", "fio-randread-4k-1"), ("random 4 KiB, depth 32", "fio-randread-4k-32"),
             ("sequential 128 KiB, depth 32", "fio-read-128k-32"))
# Numbers of reads: the difference of the two runs counts. It is large, as fio's start costs as much as thousands of reads.
FIO_OPS = (200, 10200)
# By the start of the names: the configuration with the same I/O but no IOMMU in Linux.
WITHOUT_IOMMU = {"bare": "bare-none", "pvh": "pvh-none", "pv": "swiotlb-pv", "swiotlb": "swiotlb-pv"}
SIZES = tuple(2 ** i for i in range(17))
