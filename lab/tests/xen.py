# SPDX-License-Identifier: GPL-2.0
"""Options on Xen's command line: block DMA, behave like earlier drafts of the interface, disable a feature."""
import os
import re

from tests.boots import booted, fits, works
from util import REPO, Fail

# Bits of the hypercall's capabilities.
DEFAULT_IDENTITY, IDENTITY, ISOLATED_MSI = 1 << 0, 1 << 4, 1 << 16

STANDARD = "groups boot-log disk-read disk-write edu-dma edu-iommu"


def no_dma(dom0, iommu):
    """Context 0 blocks; the driver moves all devices out of it, in PV into an identity context."""
    return works(dom0, iommu, "-no-dma", xen_args="dom0-iommu=no-dma",
                 env={"LAB_TESTS": f"'capabilities {STANDARD}'", "LAB_CAPS_SET": IDENTITY | ISOLATED_MSI,
                      "LAB_CAPS_CLEAR": DEFAULT_IDENTITY})


def no_dma_unattached(dom0, iommu):
    """Without the driver, nobody moves the device, and the disk cannot be used."""
    return works(dom0, iommu, "-no-dma-unattached", xen_args="dom0-iommu=no-dma", dom0_args="xen_iommu.enable=0",
                 expect="none", disk=False,
                 env={"LAB_TESTS": "'capabilities edu-blocked'", "LAB_CAPS_CLEAR": DEFAULT_IDENTITY})


def no_intremap(dom0, iommu):
    return works(dom0, iommu, "-no-intremap", xen_args="iommu=no-intremap",
                 env={"LAB_TESTS": "'capabilities boot-log disk-read'", "LAB_CAPS_SET": DEFAULT_IDENTITY,
                      "LAB_CAPS_CLEAR": ISOLATED_MSI})


def reserved(dom0):
    """
    Memory that firmware requires to be mapped for the disk, here the BIOS's, set up by Xen's command line.
    Xen does not accept that for QEMU's AMD-Vi, whose tables report no address bits.
    """
    return works(dom0, "vtd", "-reserved", xen_args="rmrr=f0-f3=0:2.0",
                 env={"LAB_TESTS": "'edu-reserved disk-read disk-write'"})


def caching_mode(dom0):
    """Hardware that may cache absent entries needs flushes for new ones, too; QEMU can log these."""
    def case(lab):
        fits(dom0, "vtd")
        result = booted(lab, f"caching-mode-{dom0}-vtd", dom0=dom0, iommu="vtd",
                        qemu_args="-global intel-iommu.caching-mode=on "
                                  "-trace vtd_inv_desc_iotlb_pages -trace vtd_inv_desc_iotlb_domain",
                        env={"LAB_TESTS": f"'{STANDARD} hypercall-flush'"})
        log = result.logs / "qemu.log"
        # For a map, a list, and a range, but not for the map that requested no flush.
        seen = re.findall(r"invalidate (?:domain (\S+) addr (0xabcd\d00000) |whole domain (\S+))", log.read_text())
        mine = [one for one, addr, _ in seen if addr]
        seen = [addr or "all" for one, addr, other in seen if mine and (one or other) == mine[0]]
        while seen and seen[0] == "all":
            seen.pop(0)
        if [addr for addr in seen if addr != "all"] != ["0xabcd100000", "0xabcd200000"] or seen[1] != "all":
            raise Fail(f"flushes after maps: {seen}; log: {log.relative_to(REPO)}")
    return case


def hostile(dom0, iommu, name="", **kw):
    """Random calls without the driver, while another domain is hostile; the devices must work afterwards."""
    return works(dom0, iommu, f"-hostile{name}", expect="none", dom0_args="xen_iommu.enable=0",
                 xen_args="guest_loglvl=error",
                 env={"LAB_TESTS": "'hypercall-hostile disk-read disk-write'", "LAB_FUZZ": 20000, "LAB_IOMMU": "none"}, **kw)


def shadow(iommu):
    """A PVH dom0 maps a guest's page table for DMA, on a Xen with shadow paging."""
    return works("pvh", iommu, "-shadow", xen="debug", expect="none", dom0_args="xen_iommu.enable=0",
                 env={"LAB_TESTS": "hypercall-shadow", "LAB_IOMMU": "none"})


def drafts(dom0, iommu, name="", **kw):
    return works(dom0, iommu, f"-drafts{name}", xen="drafts", xen_args="pv-iommu=drafts",
                 env={"LAB_TESTS": f"'capabilities {STANDARD}'", "LAB_CAPS_SET": DEFAULT_IDENTITY,
                      "LAB_CAPS_CLEAR": 0xffffffff - DEFAULT_IDENTITY}, **kw)


CASES = {
    "no-dma-pvh-vtd": no_dma("pvh", "vtd"),
    "no-dma-pv-vtd": no_dma("pv", "vtd"),
    "no-dma-unattached-pvh-vtd": no_dma_unattached("pvh", "vtd"),
    "no-intremap-pvh-vtd": no_intremap("pvh", "vtd"),
    "caching-mode-pvh-vtd": caching_mode("pvh"),
    "reserved-pvh-vtd": reserved("pvh"),
    "hostile-pvh-vtd": hostile("pvh", "vtd", xen="debug"),
}

EXTRA = {
    "no-dma-pvh-amd": no_dma("pvh", "amd"),
    "no-dma-pv-amd": no_dma("pv", "amd"),
    "no-dma-unattached-pv-amd": no_dma_unattached("pv", "amd"),
    "no-intremap-pv-amd": no_intremap("pv", "amd"),
    "caching-mode-pv-vtd": caching_mode("pv"),
    "reserved-pv-vtd": reserved("pv"),
    **{f"hostile{name}-{dom0}-{iommu}": hostile(dom0, iommu, name, xen=xen)
       for dom0 in ("pvh", "pv") for iommu in ("vtd", "amd") for name, xen in (("", "debug"), ("-release", "ours"))
       if (dom0, iommu, xen) != ("pvh", "vtd", "debug")},
    **{f"shadow-pvh-{iommu}": shadow(iommu) for iommu in ("vtd", "amd")},
    # Another Xen has to be built for these.
    "drafts-pvh-vtd": drafts("pvh", "vtd"),
    "drafts-pv-vtd": drafts("pv", "vtd"),
    "drafts-pvh-amd": drafts("pvh", "amd"),
    "drafts-pv-amd": drafts("pv", "amd"),
    "drafts-pv-vtd-translated": drafts("pv", "vtd", "-translated", dom0_args="iommu.passthrough=0"),
}

# With IOMMU=amd, the tests that default to VT-d run on AMD-Vi.
if os.environ.get("IOMMU") == "amd":
    CASES.update({name: EXTRA.pop(name) for name in list(EXTRA)
                  if name.startswith("no-") and name.endswith("-amd")})
