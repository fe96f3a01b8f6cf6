# SPDX-License-Identifier: GPL-2.0
"""Real guests: a Debian dom0 with xl, whose guests run Debian's own kernel."""
from tests.boots import booted, fits

LAZY, STRICT = "iommu.strict=0", "iommu.strict=1"
# Kind of dom0, what its devices are in, what its kernel is told.
MODES = {
    "pvh-lazy": ("pvh", "translated", LAZY),
    "pvh-strict": ("pvh", "translated", STRICT),
    "pv-translated": ("pv", "translated", f"iommu.passthrough=0 {LAZY}"),
    "pv-translated-strict": ("pv", "translated", f"iommu.passthrough=0 {STRICT}"),
    "pv-identity": ("pv", "identity", LAZY),
}
SHORT = ("groups", "guest-io", "guest-gntdev", "guest-cycles")


def guests(mode, tests=SHORT, cycles=2, what="", **kw):
    dom0, expect, args = MODES[mode]

    def case(lab):
        fits(dom0, "vtd")
        booted(lab, f"guests-{mode}{what}", dom0=dom0, iommu="vtd", root="debian", expect=expect, dom0_args=args,
               env={"LAB_TESTS": f"'{' '.join(tests)}'", "LAB_GUEST_CYCLES": cycles}, **kw)
    return case


CASES = {}

# They take long under emulation: only by name.
EXTRA = {
    **{f"guests-{mode}": guests(mode) for mode in MODES},
    **{f"guests-cycles-{mode}": guests(mode, ("guest-cycles",), 20, "-cycles") for mode in MODES},
    **{f"guests-balloon-{mode}": guests(mode, ("guest-balloon",), what="-balloon") for mode in MODES},
    **{f"guests-save-{mode}": guests(mode, ("guest-save",), what="-save") for mode in MODES},
    **{f"guests-pciback-{mode}": guests(mode, ("guest-pciback",), what="-pciback") for mode in MODES},
    **{f"guests-vfio-{mode}": guests(mode, ("guest-vfio",), what="-vfio", timeout=1200) for mode in MODES},
}
