# SPDX-License-Identifier: GPL-2.0
"""VFIO and iommufd in dom0: programs that drive a device, and the kernel's own selftests."""
import copy
import os
import shutil

import build
import fetch
import machines
from tests.boots import booted, fits, needs
from util import CPUS, LOGS, clean_env, run

OLDEST_QEMU = (8, 0)        # has igb
SELFTESTS = "tools/testing/selftests/vfio"
SHORT = ("vfio_dma_mapping_test vfio_dma_mapping_mmio_test vfio_iommufd_setup_test vfio_pci_device_test "
         "vfio_pci_sriov_uapi_test")


def nvme(dom0, iommu):
    """An NVMe driver in userspace."""
    def case(lab):
        fits(dom0, iommu)
        booted(lab, f"vfio-{dom0}-{iommu}", dom0=dom0, iommu=iommu,
               env={"LAB_TESTS": "vfio-nvme", "LAB_MAPPINGS": 20000})
    return case


def selftests_root(lab):
    """A folder for dom0's root with the selftests of the kernel under test."""
    kernel = lab.kernel
    root = build.OBJ / f"selftests-root-{kernel.obj.name}"
    with build.lock():
        shutil.rmtree(root, ignore_errors=True)
        run("building the selftests",
            ["make", f"-j{CPUS}", "-C", build.guest_source(kernel), f"KDIR={kernel.obj}", f"O={build.OBJ / f'guest-{kernel.obj.name}'}",
             f"DESTDIR={root}", f"CC={build.COMPILER}", "install-selftests"],
            LOGS / "build" / "selftests.log", env=clean_env())
    return root


# As by default, Xen limits the rate of messages about guests, faults among them.
LIMIT_RATE = "guest_loglvl=none/all"


def selftests(dom0, iommu, programs, args="", timeout=600):
    """The kernel's own VFIO selftests, on an igb."""
    def case(lab):
        fits(dom0, iommu)
        what = "selftests" if programs == SHORT else "msi" if args else "driver"
        needs(lab, SELFTESTS if what == "selftests" else f"{SELFTESTS}/lib/drivers/igb")
        qemu = os.environ.get("QEMU") or fetch.qemu(OLDEST_QEMU)
        memory, xen_args, dom0_args = machines.BIG_MEMORY, machines.BIG_XEN_ARGS, ""
        if (dom0, iommu, what) == ("pvh", "amd", "selftests"):
            memory, xen_args = machines.IGB_HUGE_MEMORY, machines.IGB_HUGE_XEN_ARGS
            dom0_args = machines.IGB_HUGE_LINUX_ARGS
        if what == "driver":
            xen_args += f" {LIMIT_RATE}"
        # One CPU: with two, QEMU 10.0 has hit an assertion in its TLB (iotlb_to_section) while a BAR moved.
        booted(lab, f"vfio-{what}-{dom0}-{iommu}", dom0=dom0, iommu=iommu, qemu=qemu, timeout=timeout, cpus=1,
               qemu_args=f"{machines.IGB} -m {memory}", xen_args=xen_args, dom0_args=dom0_args,
               initrd_extra=str(selftests_root(lab)),
               env={"LAB_TESTS": "vfio-selftests", "LAB_SELFTESTS": f"'{programs}'", "LAB_SELFTEST_ARGS": f"'{args}'"})
    return case


STORM = {"env": {"LAB_TESTS": "'vfio-unplug vfio-storm'"}, "xen_args": LIMIT_RATE}


def on_nvme(dom0, iommu, script, name=None, **kw):
    """One of dom0's tests, on the NVMe disk."""
    def case(lab):
        fits(dom0, iommu)
        booted(lab, f"{name or script}-{dom0}-{iommu}", dom0=dom0, iommu=iommu,
               **{"env": {"LAB_TESTS": script}, **kw})
    return case


def sriov(dom0, iommu):
    """Virtual functions of an igb."""
    def case(lab):
        fits(dom0, iommu)
        booted(lab, f"vfio-sriov-{dom0}-{iommu}", dom0=dom0, iommu=iommu, qemu_args=machines.IGB, cpus=1,
               qemu=os.environ.get("QEMU") or fetch.qemu(OLDEST_QEMU), env={"LAB_TESTS": "vfio-sriov"})
    return case


def dpdk_root():
    """A folder for dom0's root with DPDK's testpmd, and the drivers that it needs."""
    unpacked = fetch.packages("dpdk", "DPDK, about 20 MB", "dpdk-dev", "librte-net-e1000*", "librte-mempool-ring*")
    plugins = next((unpacked / "usr/lib/x86_64-linux-gnu/dpdk").glob("pmds-*"))
    return build.programs_root("dpdk", unpacked, unpacked / "usr/bin/dpdk-testpmd",
                               *(next(plugins.glob(f"librte_{name}.so.*.*")) for name in ("net_e1000", "mempool_ring")))


def dpdk(dom0, iommu):
    """DPDK's testpmd sends packets back and forth between two igbs."""
    def case(lab):
        fits(dom0, iommu)
        booted(lab, f"vfio-dpdk-{dom0}-{iommu}", dom0=dom0, iommu=iommu, cpus=1,
               qemu=os.environ.get("QEMU") or fetch.qemu(OLDEST_QEMU),
               qemu_args=f"{machines.IGB_PAIR} -m {machines.BIG_MEMORY} "
                         f"-cpu {machines.CPU[dom0, iommu]},{machines.CPU_DPDK}",
               xen_args=machines.BIG_XEN_ARGS, initrd_extra=str(dpdk_root()), env={"LAB_TESTS": "vfio-dpdk"})
    return case


def with_faults(lab):
    """The lab with a kernel that has iommufd's mock devices and fault injection."""
    other = copy.copy(lab)
    vars(other).pop("initrd", None)
    with build.lock():
        other.kernel = build.Kernel(lab.linux_source, "iommufd", ("dom0.config", "iommufd-test.config")).build()
    return other


def iommufd(xen, dom0, iommu):
    """The kernel's own iommufd selftests."""
    def case(lab):
        fits(dom0, iommu)
        # They are built with those of VFIO. Linux 6.12 lacks the latter, and its iommufd selftests do not compile.
        needs(lab, SELFTESTS)
        other = with_faults(lab)
        booted(other, f"iommufd-selftests-{dom0 if xen else 'bare'}", xen=xen, dom0=dom0, iommu=iommu, timeout=2400,
               expect=None if xen else "translated", initrd_extra=str(selftests_root(other)),
               env={"LAB_TESTS": "iommufd-selftests"})
    return case


def fail(dom0, iommu):
    """Each allocation of mapping, unmapping and attaching fails in turn."""
    def case(lab):
        fits(dom0, iommu)
        booted(with_faults(lab), f"vfio-fail-{dom0}", dom0=dom0, iommu=iommu, timeout=1200,
               env={"LAB_TESTS": "vfio-fail"})
    return case


def msi(dom0, iommu):
    """Real DMA and interrupts through iommufd, without the long case."""
    return selftests(dom0, iommu, "vfio_pci_driver_test", "-T memcpy_storm -v iommufd")


MACHINES = [(dom0, iommu) for dom0 in ("pvh", "pv") for iommu in ("vtd", "amd")]

CASES = {
    "vfio-pvh-vtd": nvme("pvh", "vtd"),
    "vfio-pv-amd": nvme("pv", "amd"),
    # Xen does not remap interrupts.
    **{f"vfio-refused-{dom0}": on_nvme(dom0, "vtd", "vfio-refused", xen_args="iommu=no-intremap")
       for dom0 in ("pvh", "pv")},
    **{f"vfio-unplug-{dom0}": on_nvme(dom0, "vtd", "vfio-unplug", **STORM)
       for dom0 in ("pvh", "pv")},
    **{f"vfio-limits-{dom0}": on_nvme(dom0, "vtd", "vfio-limits",
                                      dom0_args="xen_iommu.contexts=24 xen_iommu.pool_order=9")
       for dom0 in ("pvh", "pv")},
    # Xen 4.20 has no SR-IOV for a PVH dom0: it refuses the functions for their MSI-X tables (SUPPORT.md).
    "vfio-sriov-pv-vtd": sriov("pv", "vtd"),
    "vfio-selftests-pvh-vtd": selftests("pvh", "vtd", SHORT),
    "vfio-msi-pvh-vtd": msi("pvh", "vtd"),
    "vfio-msi-pv-vtd": msi("pv", "vtd"),
}

EXTRA = {
    "vfio-pv-vtd": nvme("pv", "vtd"),
    "vfio-pvh-amd": nvme("pvh", "amd"),
    # 1 GiB of huge pages, 256 Ki small ones.
    "vfio-large-pvh": on_nvme("pvh", "vtd", "vfio-nvme", "vfio-large", timeout=2400, xen_args=machines.BIG_XEN_ARGS,
                              qemu_args=f"-m {machines.BIG_MEMORY}",
                              env={"LAB_TESTS": "vfio-nvme", "LAB_MAPPINGS": 262144, "LAB_LARGE_MIB": 1024}),
    **{f"vfio-selftests-{dom0}-{iommu}": selftests(dom0, iommu, SHORT)
       for dom0, iommu in (("pvh", "amd"), ("pv", "vtd"), ("pv", "amd"))},
    # Real DMA, and interrupts: 1 GiB is mapped for each case.
    **{f"vfio-driver-{dom0}-{iommu}": selftests(dom0, iommu, "vfio_pci_driver_test", timeout=2400)
       for dom0, iommu in MACHINES},
    **{f"vfio-msi-{dom0}-amd": msi(dom0, "amd") for dom0 in ("pvh", "pv")},
    **{f"iommufd-selftests-{dom0}": iommufd("ours", dom0, "vtd") for dom0 in ("pvh", "pv")},
    "iommufd-selftests-bare": iommufd(None, "pvh", "vtd"),
    **{f"vfio-fail-{dom0}": fail(dom0, "vtd") for dom0 in ("pvh", "pv")},
    "vfio-sriov-pv-amd": sriov("pv", "amd"),
    **{f"vfio-dpdk-{dom0}-{iommu}": dpdk(dom0, iommu) for dom0, iommu in MACHINES},
}
