#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Breaks the Xen PV-IOMMU driver line by line, and sees whether its KUnit suite
notices.

    tools/testing/xen-iommu-kunit/mutate.py [-t tree] [-n numbers] [kunit.py options]

Each entry of mutations.txt names the test that must fail with it. The driver in
the tree is changed for that, and restored. Options are passed to "kunit.py run",
such as --build_dir or --make_options. Exits with 1 if a mistake went unnoticed.
"""
import argparse
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
DRIVER = "drivers/iommu/xen-iommu.c"


def read_mutations(path):
    """Returns a list of (test, old line, new line)."""
    mutations, entry = [], {}
    for line in path.read_text().splitlines():
        if line.startswith("test: "):
            entry = {"test": line[6:].strip()}
        elif line.startswith("-"):
            entry["old"] = line[1:]
        elif line.startswith("+"):
            mutations.append((entry["test"], entry["old"], line[1:]))
    return mutations


def run_kunit(tree, test, options):
    """Returns "passed", "failed", or "not run" if it came to no result."""
    if not any(option.startswith("--kunitconfig") for option in options):
        options = ["--kunitconfig=drivers/iommu/tests", *options]
    cmd = ["./tools/testing/kunit/kunit.py", "run", *options, f"xen_iommu.{test}"]
    run = subprocess.run(cmd, cwd=tree, capture_output=True, text=True,
                         errors="replace", check=False)
    if "Testing complete" not in run.stdout:
        sys.stderr.write(run.stdout[-2000:])
        return "not run"
    if test not in run.stdout:
        return "not run"
    return "failed" if run.returncode else "passed"


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
    unnoticed = 0
    try:
        for i in chosen:
            test, old, new = mutations[i - 1]
            lines = original.split("\n")
            if lines.count(old) != 1:
                print(f"{i:2} BAD       {test}: {lines.count(old)} lines are {old.strip()!r}")
                unnoticed += 1
                continue
            lines[lines.index(old)] = new
            driver.write_text("\n".join(lines))
            result = run_kunit(args.tree, test, options)
            word = {"failed": "noticed", "passed": "UNNOTICED"}.get(result, "NOT RUN")
            unnoticed += result != "failed"
            print(f"{i:2} {word:9} {test}: {old.strip()} -> {new.strip()}", flush=True)
    finally:
        driver.write_text(original)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} noticed")
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
