# SPDX-License-Identifier: GPL-2.0
"""Build a QEMU with features that no release has: Debian's source with lab/patches/qemu and few devices, once for all clones.

Its amd-iommu supports guest tables, for nested translation. It takes ten minutes on two CPUs, and only tests that need
it build it.
"""
import fcntl
import hashlib
import os
import re
import shutil

import fetch
from util import CACHE, CPUS, LAB, LOGS, Fail, Progress, clean_env, output, run, say

PATCHES = LAB / "patches/qemu"
LOG = LOGS / "build/qemu.log"
PYTHON = "/usr/bin/python3"
# Devices of the lab's machines.
DEVICES = ("Q35", "AMD_IOMMU", "VTD", "EDU", "NVME_PCI", "E1000E_PCI_EXPRESS", "IGB_PCI_EXPRESS", "PCIE_PORT",
           "SPDM_SOCKET")
CONFIGURE = ("--target-list=x86_64-softmmu", "--enable-system", "--enable-tcg", "--disable-user", "--disable-tools",
             "--disable-guest-agent", "--disable-docs", "--disable-werror", "--disable-download",
             "--without-default-features", "--without-default-devices", "--with-devices-x86_64=lab",
             # A Debian dom0's network needs slirp; profiles need plugins.
             "--enable-slirp", "--enable-plugins",
             f"--python={PYTHON}", "--cc=ccache gcc")
# As on hardware, software need not flush when it adds entries.
ARGS = "-global amd-iommu.x-guest-translation=on -global amd-iommu.x-np-cache=off"


def tarball():
    """The upstream tarball of Debian's source package."""
    if found := sorted(CACHE.glob("qemu_*.orig.tar.xz")):
        return found[-1]
    fetch.apt_update()
    shown = output(["apt-cache", *fetch.apt_options(), "showsrc", "--only-source", "qemu"]) or ""
    found = re.search(r"^ ([0-9a-f]{64}) \d+ (qemu_\S+\.orig\.tar\.xz)$", shown, re.M)
    where = re.search(r"^Directory: (\S+)$", shown, re.M)
    if not found or not where:
        raise Fail("Debian's archive has no source of QEMU: name a QEMU with guest translation in amd-iommu with QEMU=")
    digest, name = found.groups()
    say(f"downloading {name}, about 40 MB")
    partial = CACHE / (name + ".partial")
    uri = fetch.archives()["Debian"].rstrip("/")
    fetch.retry(f"downloading {name}", [fetch.HELPER, "download-file",
                                        f"{uri}/{where[1]}/{name.replace('+', '%2b')}", partial, f"SHA256:{digest}"])
    return partial.rename(CACHE / name)


def meson():
    """The folder of the Python modules of a recent Meson; Debian 12's is too old."""
    folder = CACHE / "meson"
    if not folder.is_dir():
        fetch.apt_update()
        partial = CACHE / "meson.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        fetch.retry("downloading Meson", ["apt-get", *fetch.apt_options(), "download", "meson"], cwd=partial)
        run("unpacking Meson", ["dpkg-deb", "-x", next(partial.glob("*.deb")), partial], LOG, append=True)
        partial.rename(folder)
    return folder / "usr/lib/python3/dist-packages"


def build(source, env):
    """Configure and build in source/build."""
    (source / "configs/devices/x86_64-softmmu/lab.mak").write_text("".join(f"CONFIG_{d}=y\n" for d in DEVICES))
    # Debian's tarball has no firmware, and a Python module is needed only for tests.
    (source / "pc-bios/meson.build").write_text("roms = []\n")
    toml = source / "pythondeps.toml"
    toml.write_text(re.sub(r"^pycotap = .*\n", "", toml.read_text(), flags=re.M))
    folder = source / "build"
    folder.mkdir()
    run("configuring QEMU", [source / "configure", *CONFIGURE], LOG, cwd=folder, env=env, append=True)
    run("building QEMU", ["ninja", f"-j{CPUS}", "qemu-system-x86_64"], LOG, cwd=folder, env=env, append=True,
        progress=Progress("QEMU"))
    return folder / "qemu-system-x86_64"


def guest_translation():
    """The QEMU that QEMU= names, or ours, built if need be."""
    if named := os.environ.get("QEMU"):
        if "x-guest-translation" not in (output([named, "-device", "amd-iommu,help"]) or ""):
            raise Fail(f"QEMU={named}: its amd-iommu has no guest translation")
        return named
    patches = sorted(PATCHES.glob("*.patch"))
    told = hashlib.sha256(b"".join(p.read_bytes() for p in patches) + repr((DEVICES, CONFIGURE)).encode()).hexdigest()[:12]
    folder = CACHE / f"qemu-{told}"
    start = folder / "qemu-system-x86_64"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".qemu-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if start.exists():
            return str(start)
        run("installing what QEMU's build needs", ["sh", LAB / "bootstrap.sh", "packages", "packages-qemu.txt"], LOG)
        # Always the same folder, so that ccache finds what an earlier set of patches has not changed.
        archive, source = tarball(), CACHE / "qemu.source"
        shutil.rmtree(source, ignore_errors=True)
        fetch.unpack(archive.name, f"xz -dcT0 '{archive}'", source, 1)
        for patch in patches:
            run(f"applying {patch.name}", ["patch", "-p1", "-F0", "-i", patch], LOG, cwd=source, append=True)
        say("building QEMU (about 10 minutes, once)")
        program = build(source, clean_env(PYTHONPATH=str(meson())))
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        shutil.copy2(program, partial / "qemu")
        # Firmware comes from Debian's packages.
        script = partial / start.name
        script.write_text('#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/qemu" -L /usr/share/seabios '
                          '-L /usr/share/qemu "$@"\n')
        script.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        shutil.rmtree(source)
    return str(start)
