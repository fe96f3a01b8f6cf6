# SPDX-License-Identifier: GPL-2.0
"""The page of tables that "make bench" writes, in Markdown. The data is in the JSON file next to it."""
from bench.configurations import FIO_LOOPS, FIO_OPS, LOOPS, NVME, SIZES, VFIO


class Figure:
    """The cost of one loop per operation, in instructions."""

    def __init__(self, loops, loop):
        entry = loops.get(loop)
        self.error = None if entry is None else entry.get("error")
        self.there = entry is not None and self.error is None
        if not self.there:
            return
        ops = entry["ops"]
        # A round includes the end of one clock read and the beginning of another, together one read.
        self.total = (entry["ns"] - entry["rounds"] * per_op(loops, "clock")) / ops
        self.traps = entry.get("hypercalls", 0) / ops
        self.work = self.total - self.traps * per_op(loops, "noop")


def per_op(loops, loop):
    entry = loops.get(loop, {})
    return entry["ns"] / entry["ops"] if entry.get("ops") else 0


def both_ways(loops, loop):
    return [Figure(loops, f"{way}-{loop}") for way in ("map", "unmap")]


def number(value, unit):
    """Up to three significant digits."""
    value /= unit
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def traps(value):
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}" if value >= 0.01 else "<0.01"


def cell(figures, unit):
    """work of one way / of the other [traps]"""
    if errors := [f.error for f in figures if f.error]:
        return f"error {errors[0]}"
    if not all(f.there for f in figures):
        return "-"
    text = " / ".join(number(f.work, unit) for f in figures)
    return text + f" [{'+'.join(traps(f.traps) for f in figures)}]" if any(f.traps for f in figures) else text


def table(results, heads, row):
    """row(loops): the cells of a configuration; configurations without any are left out."""
    lines = [["configuration", *heads], ["---"] * (len(heads) + 1)]
    lines += [[name, *cells] for name, cells in
              ((name, row(c["loops"])) for name, c in results["configurations"].items()) if any(c != "-" for c in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if len(lines) > 2 else "Not measured.\n"


def dma(results):
    return table(results, ["noop", *(head for head, _ in LOOPS)], lambda loops: [
        number(per_op(loops, "noop"), 1000) if f"map-{LOOPS[0][1]}" in loops else "-",
        *(cell(both_ways(loops, loop), 1000) for _, loop in LOOPS)])


def domains(results):
    sizes = [n for n in SIZES if n in (1, 16, 512, 65536)] + [262144]
    return table(results, [f"{n:,} pages" if n > 1 else "1 page" for n in sizes] + ["life of a domain"], lambda loops: [
        *(cell(both_ways(loops, f"domain-{n}"), 1000) for n in sizes), cell([Figure(loops, "context")], 1000)])


def vfio(results):
    columns = [(head, loop) for head, loop in VFIO if "-512-" in loop]
    return table(results, [head for head, _ in columns],
                 lambda loops: [cell(both_ways(loops, loop), 1000000) for _, loop in columns])


def memory(loops, loop="memory-type1-512-small"):
    """Linux's and Xen's KiB for each GiB that is mapped."""
    if loop not in loops:
        return "-"
    entry, mib = loops[loop], int(loop.split("-")[2])
    linux = (entry["iommu_pages"] * 4 + entry["slab_kib"]) * 1024 / mib
    return f"{linux:,.0f} + {entry.get('pool_pages', 0) * 4 * 1024 / mib:,.0f}"


def devices(results):
    return table(results, [*(f"NVMe, {head}" for head, _ in NVME), "memory, Linux + Xen"], lambda loops: [
        *(cell([Figure(loops, loop)], 1000) for _, loop in NVME), memory(loops)])


def fio_cell(loops, loop):
    """Instructions of Linux and of Xen for each read [exits to Xen + hypercalls of the driver]"""
    few, many = (loops.get(f"{loop}-{ops}", {}) for ops in FIO_OPS)
    if "counted" not in few or "counted" not in many:
        return "-"
    total, xen, exits, calls = ((many.get(key, 0) - few.get(key, 0)) / (FIO_OPS[1] - FIO_OPS[0])
                                for key in ("counted", "xen", "exits", "hypercalls"))
    text = number(total - xen, 1000)
    return f"{text} + {number(xen, 1000)} [{traps(exits)}, {traps(calls)}]" if xen else text


def fio(results):
    return table(results, [head for head, _ in FIO_LOOPS], lambda loops: [fio_cell(loops, loop) for _, loop in FIO_LOOPS])


def threads(results):
    """Time of two CPUs relative to one: 1 if they do not disturb each other, 2 if one always waits."""
    found = []
    for name, configuration in results["configurations"].items():
        one, two = (configuration["loops"].get(f"threads-{n}", {}).get("ns") for n in (1, 2))
        if one and two:
            found.append(f"{name.removeprefix('threads-')} {two / one:.2f}")
    return ", ".join(found) or "not measured"


def used(results):
    """The versions that were measured, each once."""
    versions = [c["versions"] for c in (*results["configurations"].values(), *results["profiles"].values())]
    kinds = (("repository", "this repository at {}"), ("linux", "Linux {}"), ("xen", "Xen {} (release build)"), ("qemu", "{}"),
             ("compiler", "{}"))
    return "; ".join(text.format(", ".join(dict.fromkeys(v[key] for v in versions if key in v))) for key, text in kinds)


def report(results):
    return f"""# Results of make bench

![Instructions to map and unmap: native, this driver, others](results.svg)

Measured: {used(results)}.

QEMU runs one CPU with `-icount shift=0`, so the guest's clock counts instructions, including the hypervisor's. A cell is map /
unmap [traps into Xen of each]. It excludes the cost of the traps, which differs most between an emulator and real hardware: each
trap costs as much as an empty hypercall in the same boot (column noop). `bare` is Linux without Xen; `virtio` has QEMU's
virtio-iommu, whose device side is not counted; `nested` is a PVH dom0 with nested translation on AMD-Vi; `amd-v1` and `amd-v2` are
native Linux with the two table formats of AMD-Vi, without NpCache, with which Linux would flush whenever it maps; `passthrough` is
without translation (the last four run on the lab's own QEMU); `swiotlb` is a PV dom0 without an IOMMU driver; `strict` and `lazy`
are the modes of `iommu.strict=`. `results.json` has all results, and profiles by function.

## DMA API, thousands of instructions

{dma(results)}
## iommu_map() and iommu_unmap(), and the life of a domain (allocated, device attached and detached, freed), thousands of instructions

{domains(results)}
## VFIO and iommufd, millions of instructions, including pinning

{vfio(results)}
## One NVMe read at a time, thousands of instructions; memory for a mapping of small pages, KiB per GiB

Instructions while waiting for the disk count as well, so small differences are not significant.

{devices(results)}
## fio reads from an NVMe disk, thousands of instructions per read

Linux + Xen [exits to Xen, hypercalls of the driver]. A QEMU plugin counts executed instructions, not the time spent waiting.

{fio(results)}
## Two CPUs that map and unmap for the same device

Time for both to finish, relative to one CPU alone, by the host's clock (1: neither waits for the other, 2: one always waits):
{threads(results)}.
"""
