# SPDX-License-Identifier: GPL-2.0
"""The driver on Debian 13's kernel, an LTS: with backports/ and without the optimisations. To build faster, the
kernel has only what the driver and its tests need: lab/config/slim.config."""
from functools import cached_property

import build
from lab import Lab
from runner import Skip
from tests.boots import booted, fits
from tests.kunit import ALL_PASSED

LTS = "6.12"


class LtsLab(Lab):
    def __init__(self):
        super().__init__()
        self.version, self.linux_tree = LTS, ""

    @cached_property
    def kernel(self):
        with build.lock():
            build.check_place()
            return build.Kernel(self.linux_source, "slim", ("dom0.config", "slim.config")).build()


def on_lts(case):
    def on_lts_case(lab):
        if lab.linux_tree:
            raise Skip("LINUX_TREE= is under test")
        case(LtsLab())
    return on_lts_case


def boot(dom0, **kw):
    def case(lts):
        fits(dom0, "vtd")
        booted(lts, f"boot-612-{dom0}", dom0=dom0, iommu="vtd", **kw)
    return on_lts(case)


def kunit(lts):
    """The driver's suite, without Xen."""
    booted(lts, "kunit-612", xen=None, iommu="none", expect="none", timeout=1800, disk=False,
           dom0_args="kunit.filter_glob=xen_iommu", run=ALL_PASSED)


CASES = {
    "boot-612-pvh": boot("pvh", dom0_args="kunit.enable=0"),
    "boot-612-pv": boot("pv", dom0_args="kunit.enable=0"),
    "kunit-612": on_lts(kunit),
}
EXTRA = {
    "boot-612-pv-translated": boot("pv", dom0_args="kunit.enable=0 iommu.passthrough=0"),
}
