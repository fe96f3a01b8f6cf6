# SPDX-License-Identifier: GPL-2.0
"""Tables of what "make bench" has measured, in Markdown."""
from bench.configurations import DMA, DOMAIN, LOOPS, NVME, PROFILED_LOOPS, SIZES, VFIO, WITHOUT_IOMMU


class Figure:
    """What one loop took for each operation, in instructions."""

    def __init__(self, loops, loop):
        entry = loops.get(loop)
        self.error = None if entry is None else entry.get("error")
        self.there = entry is not None and self.error is None
        if not self.there:
            return
        ops = entry["ops"]
        # What lies between a round's two clock reads has the end of one and the beginning of the other.
        self.total = (entry["ns"] - entry["rounds"] * per_op(loops, "clock")) / ops
        self.traps = entry.get("hypercalls", 0) / ops
        self.work = self.total - self.traps * per_op(loops, "noop")


def per_op(loops, loop):
    entry = loops.get(loop, {})
    return entry["ns"] / entry["ops"] if entry.get("ops") else 0


def number(value, unit):
    """Three significant digits, as far as they matter."""
    value /= unit
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def traps(value):
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


def cell(loops, loop, unit):
    """work map / unmap [traps of each] (all, if it differs)"""
    both = [Figure(loops, f"{way}-{loop}") for way in ("map", "unmap")]
    if any(f.error for f in both):
        return f"error {next(f.error for f in both if f.error)}"
    if not all(f.there for f in both):
        return "-"
    text = " / ".join(number(f.work, unit) for f in both)
    if any(f.traps for f in both):
        text += f" [{'+'.join(traps(f.traps) for f in both)}], all {' / '.join(number(f.total, unit) for f in both)}"
    return text


def table(results, columns, unit, calibration=False):
    heads = ["configuration", *(["clock, noop"] if calibration else []), *(head for head, _ in columns)]
    rows = []
    for name, configuration in results["configurations"].items():
        loops = configuration["loops"]
        if not any(f"map-{loop}" in loops for _, loop in columns):
            continue
        fixed = [f"{number(per_op(loops, 'clock'), 1000)}, {number(per_op(loops, 'noop'), 1000)}"] if calibration else []
        rows.append([name, *fixed, *(cell(loops, loop, unit) for _, loop in columns)])
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if rows else "Not measured.\n"


def simple_table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if rows else "Not measured.\n"


def contexts(results):
    rows = []
    for name, configuration in results["configurations"].items():
        figure = Figure(configuration["loops"], "context")
        if figure.there:
            rows.append([name, number(figure.work, 1000), traps(figure.traps), number(figure.total, 1000)])
    return simple_table(["configuration", "work", "traps", "all"], rows)


def threads(results):
    """Time of two CPUs, each with the work, by that of one: 1 if they do not meet, 2 if one waits for the other."""
    rows = []
    for name, configuration in results["configurations"].items():
        one, two = (configuration["loops"].get(f"threads-{n}", {}).get("ns") for n in (1, 2))
        if one and two:
            rows.append([name.removeprefix("threads-"), f"{two / one:.2f}"])
    return simple_table(["configuration", "time of two by time of one"], rows)


def nvme(results):
    """All of one read, traps, and what of it is more than the same read takes without an IOMMU."""
    rows = []
    for name, configuration in results["configurations"].items():
        row = [name]
        base = results["configurations"].get(WITHOUT_IOMMU.get(name.partition("-")[0]), {}).get("loops", {})
        for _, loop in NVME:
            figure, without = Figure(configuration["loops"], loop), Figure(base, loop)
            if not figure.there:
                continue
            text = f"{number(figure.total, 1000)} [{traps(figure.traps)}]"
            if without.there and base is not configuration["loops"]:
                more = figure.total - without.total
                text += f", IOMMU {number(more, 1000)} ({100 * more / figure.total:.0f} %)"
            row.append(text)
        if len(row) == 1 + len(NVME):
            rows.append(row)
    return simple_table(["configuration", *(head for head, _ in NVME)], rows)


def flushes(results):
    """Flushes of the IOTLB per operation, counted by Xen."""
    rows = []
    for name, configuration in results["configurations"].items():
        both = {loop: [configuration["loops"].get(f"flushes-{way}-{loop}") for way in ("map", "unmap")]
                for _, loop in (*LOOPS, *VFIO)}
        if any(all(pair) for pair in both.values()):
            rows.append([name, *("+".join(traps(entry["count"] / entry["ops"]) for entry in pair) if all(pair) else "-"
                                 for pair in both.values())])
    return simple_table(["configuration", *(head for head, _ in (*LOOPS, *VFIO))], rows)


def pinning(results):
    """Of a map, and of an unmap, by VFIO: what it takes beyond pinning."""
    rows = []
    for name, configuration in results["configurations"].items():
        loops, row = configuration["loops"], []
        for _, loop in VFIO:
            door, size = loop.split("-", 1)
            pairs = [(Figure(loops, f"{way}-{loop}"), Figure(loops, f"{way}-pin-{size}")) for way in ("map", "unmap")]
            row.append(" / ".join(number(all.total - pin.total, 1000000) for all, pin in pairs)
                       if all(f.there for pair in pairs for f in pair) else "-")
        if any(cell != "-" for cell in row):
            rows.append([name, *row])
    return simple_table(["configuration", *(head for head, _ in VFIO)], rows)


def sizes(results):
    """Sizes downwards, configurations across: all of map / unmap."""
    measured = {n: c["loops"] for n, c in results["configurations"].items() if "map-domain-1" in c["loops"]}
    if not measured:
        return "Not measured.\n"
    lines = [["pages", *measured], ["---"] * (len(measured) + 1)]
    for pages in SIZES:
        both = {n: [Figure(loops, f"{way}-domain-{pages}") for way in ("map", "unmap")] for n, loops in measured.items()}
        lines.append([f"{pages:,}", *(" / ".join(number(f.total, 1000) for f in pair) if all(f.there for f in pair)
                                      else "-" for pair in both.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def memory(results):
    rows = []
    for name, configuration in results["configurations"].items():
        for loop, entry in configuration["loops"].items():
            if loop.startswith("memory-"):
                mib = int(loop.split("-")[2])
                pool = f"{entry['pool_pages'] * 4 * 1024 / mib:.0f}" if "pool_pages" in entry else "-"
                rows.append(f"| {name} | {loop[len('memory-'):]} | {entry['iommu_pages'] * 4 * 1024 / mib:.0f} "
                            f"| {entry['slab_kib'] * 1024 / mib:.0f} "
                            f"| {pool} |")
    return "| configuration | mapped | page tables | all slab | Xen's pool |\n| --- | --- | --- | --- | --- |\n" \
        + "\n".join(rows) + "\n" if rows else "Not measured.\n"


def profiles(results):
    return "\n".join(f"### {name}: {loop}\n\n{table}" for name, found in results["profiles"].items()
                     for loop, table in found["profile"].items()
                     if loop.partition("-")[2] in PROFILED_LOOPS or loop.startswith("nvme-")) or "Not measured.\n"


def used(results):
    """A line for each set of versions, with the configurations that were measured with it."""
    found = {}
    for name, result in [*results["configurations"].items(), *results["profiles"].items()]:
        v = result["versions"]
        line = f"repository {v['repository']}; Linux {v.get('linux', '?')}; " \
               + (f"Xen {v['xen']}, release build; " if "xen" in v else "") + f"{v['qemu']}; {v['compiler']}"
        found.setdefault(line, []).append(name)
    return "\n".join(f"- {', '.join(names)}: {line}" for line, names in found.items())


def report(results):
    return f"""# Results of make bench

{used(results)}

One CPU, QEMU with -icount shift=0: the guest's clock counts instructions, the hypervisor's included. A cell is: work of
map / unmap [traps into Xen of each], all map / unmap. All is what is left of the measured instructions without clock
reads; work is all without the traps times the cost of an empty hypercall (noop), both measured in the same boot.

## DMA API, thousands of instructions per operation

{table(results, LOOPS, 1000, calibration=True)}
## The kernel's dma_map_benchmark, thousands of instructions per operation, traps included

It reads the clock around each operation, which is taken off, and rounds to 0.1.

{table(results, DMA, 1000)}
## iommu_map() and iommu_unmap() in a domain of their own, thousands of instructions per operation

{table(results, DOMAIN, 1000)}
## The same against size in pages: thousands of instructions, traps included

{sizes(results)}
## VFIO, millions of instructions, pinning of the pages included

{table(results, VFIO, 1000000)}
## The same without pinning, in millions

Of map / unmap, what is more than registering the same memory with io_uring takes, which pins it and does nothing else.

{pinning(results)}
## Flushes of the IOTLB per operation, map + unmap, counted by Xen

{flushes(results)}
## A domain made, a device attached and detached, the domain freed: thousands of instructions

{contexts(results)}
## Two CPUs that map and unmap a page for the same device, without counting instructions

1: neither waits for the other; 2: one always does. From the host's clock: other work there disturbs it.

{threads(results)}
## NVMe, one read at a time, thousands of instructions per read [traps]

What is the IOMMU's is the difference to the same read on the same kind of machine without one.
The CPU idles while the disk works, and what it does then counts, too, and differs from boot to boot: small differences
say nothing.

{nvme(results)}
## Memory for what is mapped, KiB per GiB (of a single mapping; slab is all of the kernel's)

{memory(results)}
## Where the instructions go (counted by a plugin of QEMU, the whole system call that runs the loop included)

{profiles(results)}"""
