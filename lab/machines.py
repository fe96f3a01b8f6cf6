# SPDX-License-Identifier: GPL-2.0
"""The machines that QEMU emulates, as data."""

# For every machine. The second serial port carries the verdict, by port I/O, never by DMA.
COMMON = ["-M", "q35", "-display", "none", "-vga", "none", "-net", "none", "-no-reboot", "-nodefaults"]
MEMORY = "2048"
# QEMU's SVM loses wake-ups when several CPUs run a PVH dom0: about one in six boots hangs when the second CPU starts.
CPUS = {"pvh": 1, "pv": 2, "bare": 2}

# Devices whose DMA the tests check.
EDU = ["-device", "edu,dma_mask=0xffffffffffff"]
DISK = ["-drive", "if=none,id=disk,file=disk.img,format=raw,cache=unsafe", "-device", "nvme,drive=disk,serial=lab"]
DISK_BYTES = 64 << 20
# With ROOT=debian: memory for guests, the root on its own NVMe disk, and a NIC for their network. The wire ends in
# QEMU, where port 7 of ECHO sends back what it receives.
DEBIAN_MEMORY = "3072"
ROOT_DISK = ["-drive", "if=none,id=root,file=root.img,format=raw,snapshot=on,cache=unsafe",
             "-device", "nvme,drive=root,serial=root"]
DEBIAN_LINUX_ARGS = "systemd.unit=lab.service systemd.show_status=0"
ECHO = "10.0.2.100"
NIC = ["-netdev", f"user,id=net0,restrict=on,guestfwd=tcp:{ECHO}:7-cmd:cat",
       "-device", "e1000e,netdev=net0,romfile=,mac=52:54:00:12:34:56"]
# For the kernel's VFIO selftests, which drive it, and map 1 GiB at a time; needs QEMU 8.0. Its virtual functions
# are 16 slots up from it. None may have 00:14.0, by which QEMU's amd-iommu knows the I/O APIC: when Xen forgets
# such a function, it also forgets how to remap the I/O APIC's interrupts.
IGB = "-device igb,romfile=,addr=8"
# Two connected ones, spaced so that their functions do not collide. Not behind a port: QEMU 10.0's
# amd-iommu mistakes a device there for one on bus 0.
IGB_PAIR = ("-netdev hubport,id=wire0,hubid=0 -device igb,romfile=,addr=8,netdev=wire0 "
            "-netdev hubport,id=wire1,hubid=0 -device igb,romfile=,addr=a,netdev=wire1")
BIG_MEMORY = "3072"
BIG_XEN_ARGS = "dom0_mem=2048M"
# A PVH dom0 with the EPYC model (AMD-Vi) has 1 GiB pages; enough memory for one, from 4 GiB on.
IGB_HUGE_MEMORY = "4096"
IGB_HUGE_XEN_ARGS = "dom0_mem=3584M"
IGB_HUGE_LINUX_ARGS = "hugepagesz=1G hugepages=1"

IOMMU = {
    "vtd": ["-device", "intel-iommu,intremap=on,aw-bits=48,snoop-control=on"],
    # With pt=on, QEMU 9.2 and later do not translate DMA at all; earlier versions ignore it.
    "amd": ["-device", "amd-iommu,intremap=on,pt=off"],
    "none": [],
}

# QEMU emulates SVM but not VMX, so a PVH dom0 needs an AMD CPU model, also with VT-d. With rdtscp or xsave
# a PVH dom0 dies early in QEMU 7.2, and a PV dom0 dies with the EPYC model.
CPU = {
    ("pvh", "vtd"): "qemu64,+svm,+npt",
    ("pvh", "amd"): "EPYC,-rdtscp,-xsave,-monitor",
    ("pv", "vtd"): "qemu64",
    ("pv", "amd"): "qemu64",
    ("bare", "vtd"): "qemu64",
    ("bare", "amd"): "qemu64",
    ("bare", "none"): "qemu64",
}

# What DPDK requires of a processor.
CPU_DPDK = "+ssse3,+sse4.1,+sse4.2,+popcnt"

XEN_ARGS = "console=com1 com1=115200,8n1 sync_console loglvl=all guest_loglvl=all conring_size=1m dom0_mem=1024M"
XEN_ARGS_DOM0 = {"pvh": "dom0=pvh", "pv": "dom0=pv"}

LINUX_ARGS = "panic=1 rdinit=/init"
# When to flush unmaps: later, the default, or at once.
LAZY, STRICT = "iommu.strict=0", "iommu.strict=1"
LINUX_ARGS_DOM0 = {"pvh": "console=hvc0", "pv": "console=hvc0", "bare": "console=ttyS0"}


def expected(dom0, args):
    """The default domain that dom0's devices are expected to have, with our driver on our Xen."""
    identity = dom0 == "pv"
    for arg in args.split():
        name, _, value = arg.partition("=")
        if name == "iommu.passthrough":
            identity = value.lower() in ("1", "y", "yes", "t", "true", "on")
        elif arg in ("iommu=pt", "iommu=nopt"):
            identity = value == "pt"
    return "identity" if identity else "translated"
