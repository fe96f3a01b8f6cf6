# SPDX-License-Identifier: GPL-2.0
"""Where instructions go: from counts per address to a table of functions."""
import bisect
from collections import Counter

from util import output

# The kernel's half of the address space, and where it puts modules and Xen itself.
KERNEL, MODULES, MODULES_END = 1 << 63, 0xffffffffa0000000, 0xffffffffff000000
XEN, XEN_END = 0xffff800000000000, 0xffff880000000000


class Symbols:
    def __init__(self, binary):
        lines = (output(["nm", "-n", binary]) or "").splitlines()
        found = [(int(parts[0], 16), parts[2]) for parts in map(str.split, lines)
                 if len(parts) >= 3 and parts[1] in "tTwW"]
        self.starts, self.names = [a for a, _ in found], [n for _, n in found]

    def name(self, address):
        index = bisect.bisect_right(self.starts, address) - 1
        return self.names[index] if index >= 0 else "?"


def place(address, linux, xen):
    """(part, function)"""
    if address < KERNEL:
        return "user", "user"
    if XEN <= address < XEN_END:
        return "Xen", xen.name(address) if xen else "?"
    if MODULES <= address < MODULES_END:
        return "Linux", "modules"
    return "Linux", linux.name(address)


def profile(path, linux, xen):
    """Counter of (part, function) of one section that the plugin wrote."""
    counts = Counter()
    for line in path.read_text().splitlines():
        address, count, _ = line.split()
        counts[place(int(address, 16), linux, xen)] += int(count)
    return counts


def runs(path, symbols, function):
    """The number of calls of a function in that section."""
    places = {start for start, name in zip(symbols.starts, symbols.names) if name == function}
    return sum(int(times) for address, _, times in map(str.split, path.read_text().splitlines()) if int(address, 16) in places)


def table(counts, ops, lines=25):
    total = sum(counts.values())
    parts = Counter()
    for (part, _), count in counts.items():
        parts[part] += count
    head = ", ".join(f"{part} {count / ops:,.0f}" for part, count in parts.most_common())
    rows = [f"| {part} | {name} | {count / ops:,.0f} | {100 * count / total:.1f} % |"
            for (part, name), count in counts.most_common(lines)]
    return f"{total / ops:,.0f} instructions per operation: {head}\n\n| | function | instructions | |\n" \
           "| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
