# SPDX-License-Identifier: GPL-2.0
"""The figure of "make bench": the cost of mapping and unmapping natively, with this driver, and with others."""
from bench.report import Figure, per_op

# (label, configuration, colour)
BARS = (
    ("native, VT-d", "bare-vtd-strict", "#4477aa"),
    ("native, virtio-iommu", "bare-virtio-strict", "#88aacc"),
    ("Xen PVH, xen-iommu", "pvh-vtd-strict", "#228833"),
    ("Xen PV, xen-iommu", "pv-vtd-strict", "#77bb55"),
    ("Xen PV, no IOMMU (swiotlb)", "swiotlb-pv", "#bbbbbb"),
)
PANELS = (
    ("1 page", ["map-single-1", "unmap-single-1"]),
    ("16 pages (64 KiB)", ["map-single-16", "unmap-single-16"]),
    ("512 pages (2 MiB)", ["map-single-512", "unmap-single-512"]),
    ("scatterlist of 64 pages", ["map-sg-64", "unmap-sg-64"]),
)


def bar(loops, names):
    """(work, traps) in thousands of instructions, or None"""
    figures = [Figure(loops, name) for name in names]
    if not all(f.there for f in figures):
        return None
    return (sum(f.work for f in figures) / 1000, sum(f.traps for f in figures) * per_op(loops, "noop") / 1000)


def draw(results, path):
    """Write the figure to `path`, whose suffix is its format."""
    import matplotlib
    matplotlib.use("Agg")
    # The same data must give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "xen-iommu", "svg.fonttype": "none", "font.size": 11, "hatch.linewidth": 0.6})
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    configurations = results["configurations"]
    figure, axes = pyplot.subplots(2, 2, figsize=(12.8, 7.2), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95), hspace=0.06)
    figure.suptitle("Cost of a DMA mapping, map and unmap, in thousands of instructions", fontsize=16, fontweight="bold")
    for axis, (title, names) in zip(axes.flat, PANELS):
        values = [bar(configurations[name]["loops"], names) if name in configurations else None for _, name, _ in BARS]
        longest = max([sum(v) for v in values if v] or [1])
        for y, ((_, _, colour), value) in enumerate(zip(BARS, values)):
            if not value:
                axis.text(0, y, " not measured", va="center", color="#888888")
                continue
            work, traps = value
            axis.barh(y, work, color=colour)
            if traps >= longest / 200:
                axis.barh(y, traps, left=work, color="white", edgecolor=colour, hatch="////", linewidth=1)
            axis.text(work + traps + longest / 80, y, f"{work + traps:.1f}", va="center")
        axis.set_title(title, loc="left")
        axis.set_yticks(range(len(BARS)), [label for label, _, _ in BARS])
        axis.invert_yaxis()
        axis.set_xlim(0, longest * 1.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=[Patch(facecolor="#666666", label="work in Linux and Xen"),
                           Patch(facecolor="white", edgecolor="#666666", hatch="////", label="entering and leaving Xen")],
                  loc="lower right", ncol=2, frameon=False)
    figure.text(0.01, 0.015, "strict mode; QEMU with -icount, one CPU; emulated traps cost more than real ones", fontsize=10,
                color="#666666")
    figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)
    pyplot.close(figure)
