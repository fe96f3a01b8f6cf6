#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Break the Xen PV-IOMMU driver line by line, and check whether its KUnit suite
notices.

    tools/testing/xen-iommu-kunit/mutate.py [-t tree] [-n numbers] [kunit.py options]

Each entry of mutations.txt names the test that must fail with it. The driver in
the tree is changed for each, and restored. Options are passed to "kunit.py run",
such as --build_dir or --make_options. Exits with 1 if a mistake went unnoticed.
"""
import argparse
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
DRIVER = "drivers/iommu/xen-iommu.c"


def read_mutations(path):
    """Returns a list of (test, function or None, old line, new line)."""
    mutations, entry = [], {}
    for line in path.read_text().splitlines():
        if line.startswith("test: "):
            entry = {"test": line[6:].strip()}
        elif line.startswith("in: "):
            entry["in"] = line[4:].strip()
        elif line.startswith("-"):
            entry["old"] = line[1:]
        elif line.startswith("+"):
            mutations.append((entry["test"], entry.get("in"), entry["old"], line[1:]))
    return mutations


def find(lines, function, old):
    """Indices of the lines equal to old, in the function if one is named."""
    first, last = 0, len(lines)
    if function:
        heads = [i for i, line in enumerate(lines) if re.match(rf"\w.*\b{function}\(", line)
                 and "{" in lines[i + 1:i + 6]]
        if len(heads) != 1:
            return []
        first, last = heads[0], lines.index("}", heads[0])
    return [i for i in range(first, last) if lines[i] == old]


def run_kunit(tree, test, options):
    """Returns "passed", "failed", or "not run" if there was no result."""
    if not any(option.startswith("--kunitconfig") for option in options):
        options = ["--kunitconfig=drivers/iommu/tests", *options]
    cmd = ["./tools/testing/kunit/kunit.py", "run", *options, f"xen_iommu.{test}"]
    try:
        run = subprocess.run(cmd, cwd=tree, capture_output=True, text=True, errors="replace",
                             check=False, timeout=600)
    except subprocess.TimeoutExpired:
        return "failed"
    summary = re.search(r"Testing complete\. .*", run.stdout)
    if not summary or test not in run.stdout:
        sys.stderr.write(run.stdout[-2000:])
        return "not run"
    # kunit.py's exit code can be 0 after a crash.
    return "failed" if run.returncode or "errors:" in summary[0] else "passed"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-t", "--tree", default=".", type=pathlib.Path,
                        help="Linux tree with the driver (default: here)")
    parser.add_argument("-n", "--numbers", default="", help="try only these, such as 1,4,5")
    args, options = parser.parse_known_args()

    driver = args.tree / DRIVER
    if driver.is_symlink():
        sys.exit(f"{driver} is a link; it would be changed elsewhere")
    original = driver.read_text()
    mutations = read_mutations(HERE / "mutations.txt")
    chosen = [int(n) for n in args.numbers.split(",") if n] or range(1, len(mutations) + 1)
    if not all(0 < n <= len(mutations) for n in chosen):
        sys.exit(f"there are mutations 1 to {len(mutations)}")
    survived = []
    try:
        for i in chosen:
            test, function, old, new = mutations[i - 1]
            lines = original.split("\n")
            found = find(lines, function, old)
            if len(found) == 1:
                lines[found[0]] = new
                driver.write_text("\n".join(lines))
                result = run_kunit(args.tree, test, options)
                word = {"failed": "noticed", "passed": "SURVIVED"}.get(result, "NOT RUN")
            else:
                word = f"{len(found)} LINES"
            if word != "noticed":
                survived.append(str(i))
            print(f"{i:2} {word:9} {test}: {function + ': ' if function else ''}"
                  f"{old.strip()} -> {new.strip()}", flush=True)
    finally:
        driver.write_text(original)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} noticed"
          + (f"; not: {','.join(survived)}" if survived else ""))
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
