# SPDX-License-Identifier: GPL-2.0
"""Cost of a mapping against its size, as SVG: both axes logarithmic."""
import math

from bench.configurations import SIZES
from bench.report import Figure

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 560, 70, 200, 40, 50
LOW, HIGH = 2, 8        # powers of ten on the vertical axis
COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666", "#1f78b4", "#b2182b",
           "#000000", "#40c0c0")


def place(pages, instructions):
    x = LEFT + math.log2(pages) / math.log2(SIZES[-1]) * (WIDTH - LEFT - RIGHT)
    level = (math.log10(max(instructions, 10 ** LOW)) - LOW) / (HIGH - LOW)
    return x, HEIGHT - BOTTOM - level * (HEIGHT - TOP - BOTTOM)


def line(x1, y1, x2, y2, style):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def text(x, y, words, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'


def axes():
    parts = []
    for power in range(LOW, HIGH + 1):
        x, y = place(1, 10 ** power)
        parts += [line(x, y, WIDTH - RIGHT, y, 'stroke="#ddd"'),
                  text(x - 6, y + 4, f"{10 ** power:,}", 'text-anchor="end" font-size="10"')]
    for pages in SIZES[::2]:
        x, y = place(pages, 10 ** LOW)
        parts += [line(x, y, x, TOP, 'stroke="#eee"'), text(x, y + 16, f"{pages:,}", 'text-anchor="middle"')]
    return parts + [text(LEFT, 20, "Instructions of iommu_map() (solid) and iommu_unmap() (dashed), traps included"),
                    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "pages of 4 KiB", 'text-anchor="middle"')]


def draw(results):
    parts = axes()
    row = 0
    for name, configuration in results["configurations"].items():
        colour, drawn = COLOURS[row % len(COLOURS)], False
        for way, dash in (("map", ""), ("unmap", ' stroke-dasharray="5 3"')):
            figures = [(n, Figure(configuration["loops"], f"{way}-domain-{n}")) for n in SIZES]
            points = " ".join("{:.1f},{:.1f}".format(*place(n, f.total)) for n, f in figures if f.there)
            if points:
                drawn = True
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"{dash}/>')
        if drawn:
            y = TOP + 10 + 18 * row
            parts += [line(WIDTH - RIGHT + 10, y, WIDTH - RIGHT + 34, y, f'stroke="{colour}" stroke-width="3"'),
                      text(WIDTH - RIGHT + 40, y + 4, name)]
            row += 1
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
            f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n")
