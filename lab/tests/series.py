# SPDX-License-Identifier: GPL-2.0
"""The patch series: git am applies it, every step builds and boots, and the kernel's own scripts accept it."""
import copy
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import build
import overlay
import series
from tests.boots import booted
from tests.static import accepted
from util import BUILD, LOGS, Fail, clean_env, run

MAX_LINES = 500
# With part of the series the driver may be missing or inactive, so only the disk and the log are judged.
WORKS = "/usr/lib/xen-iommu/disk-read && /usr/lib/xen-iommu/kernel-log"


class Steps:
    """Builds the steps of a series, and boots each new image in a PVH and a PV dom0; all else is the lab's."""

    def __init__(self, lab, name, tree, target, **parts):
        self.lab, self.name, self.tree, self.target = copy.copy(lab), name, tree, target
        self.lab.__dict__.update(initrd=lab.initrd, **parts)
        self.booted = None

    def take(self, number, repo):
        """Build the tree with the files of `repo`, and boot the image if it is another than before."""
        self.target.log = LOGS / f"test/{self.name}-{number}.log"
        with build.lock():
            overlay.apply(self.tree, None, {rel: repo / rel for rel in series.git(repo, "ls-files").splitlines()}, [])
            self.target.build()
        image = self.target.image.stat().st_mtime_ns
        if image != self.booted:
            self.booted = image
            for dom0 in ("pvh", "pv"):
                booted(self.lab, f"{self.name}-{number}-{dom0}", dom0=dom0, iommu="vtd", run=WORKS, dom0_args="kunit.enable=0")


def applied(kind, lab, each):
    """Make the series, apply it with git am, and call each(number, patch, folder) after every patch."""
    patches = series.write(kind, lab)
    base = series.pristine(kind, lab)
    parts = overlay.xen_parts() if kind == "xen" else overlay.linux_parts(lab.version)
    _, _, whole, diffs = series.plan(kind, parts)[-1]
    with tempfile.TemporaryDirectory(prefix="xen-iommu-") as tmp:
        repo = Path(tmp) / "repo"
        series.repository(repo, base, set(whole).union(*map(overlay.targets, diffs)))
        # All sizes come first: building and booting take long.
        for made_from, patch in patches:
            changed = re.findall(r"^(\d+)\t(\d+)\t", series.git(repo, "apply", "--numstat", str(patch)), re.M)
            size = sum(map(int, sum(changed, ())))
            if size > MAX_LINES and not made_from.large:
                raise Fail(f"{patch.name} changes {size} lines: split it, or say in {made_from.text_file.name} why not")
        for number, (_, patch) in enumerate(patches, 1):
            series.git(repo, "am", "-q", str(patch), **series.author())
            each(number, patch, repo)
        for rel, content in overlay.result(base, whole, diffs).items():
            if (repo / rel).read_bytes() != content:
                raise Fail(f"the series results in another {rel} than the lab builds")


def linux(lab):
    src = lab.linux_source
    tree = src.with_name(src.name + "-series")
    if not tree.is_dir():
        # Hard links: the lab replaces files and never writes into them.
        run("linking the source", ["cp", "-al", src, f"{tree}.partial"], LOGS / "test/series-linux.log")
        Path(f"{tree}.partial").rename(tree)
        for suffix in (".overlay.json", ".orig"):
            state = Path(f"{src}{suffix}")
            (shutil.copytree if state.is_dir() else shutil.copy)(state, f"{tree}{suffix}")
    # A small kernel, since many steps change a header that much of the kernel includes.
    kernel = build.Kernel(tree, "series", ("dom0.config", "slim.config"))
    steps = Steps(lab, "series-linux", tree, kernel, kernel=kernel)

    def script(name, *args):
        return subprocess.run(["perl", f"scripts/{name}", *args], cwd=src, env=clean_env(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True)

    def each(number, patch, repo):
        # With --showfile, a finding names the file; MAINTAINERS gets its entry in the last patch.
        checked = script("checkpatch.pl", "--strict", "--terse", "--showfile", "--show-types", "--no-summary",
                         "--ignore", "FILE_PATH_CHANGES", patch)
        found = [line for line in (checked.stdout + checked.stderr).splitlines() if line and not accepted(line)]
        if found:
            raise Fail(f"{patch.name}: checkpatch.pl:\n" + "\n".join(found[:20]))
        maintainers = script("get_maintainer.pl", "--no-git", patch)
        if maintainers.returncode or maintainers.stderr or "@" not in maintainers.stdout:
            raise Fail(f"{patch.name}: get_maintainer.pl: {maintainers.stderr or 'nobody'}")
        steps.take(number, repo)

    applied("linux", lab, each)


def xen(lab):
    stock = series.pristine("xen", lab)
    tree = BUILD / "src/xen-series"
    if not tree.is_dir():
        run("copying the source", ["cp", "-a", stock, f"{tree}.partial"], LOGS / "test/series-xen.log")
        Path(f"{tree}.partial").rename(tree)
    hypervisor = build.Xen(tree)
    steps = Steps(lab, "series-xen", tree, hypervisor, xen=hypervisor.image)
    applied("xen", lab, lambda number, patch, repo: steps.take(number, repo))


CASES = {}
# They build and boot after each patch, so they run only by name or with T=all.
EXTRA = {"series-xen": xen, "series-linux": linux}
