# SPDX-License-Identifier: GPL-2.0
"""Debian as dom0's userland: an image that is built once and kept.

The image contains nothing of the lab: the initramfs copies that into it at each boot (tools/testing/xen-iommu/init). QEMU
discards what a boot writes.
"""
import hashlib
import os
import shutil

import build
import fetch
from initramfs import newc_tree
from util import CACHE, LAB, LOGS, Fail, lock, run, say

RELEASE = "trixie"
PACKAGES = (
    "systemd-sysv", "udev", "kmod", "iproute2", "ethtool", "pciutils", "busybox-static",
    "xen-utils-4.20",
    # For VFIO in dom0, whose guest is also emulated.
    "qemu-system-x86",
    # The guests' kernel, unmodified.
    "linux-image-cloud-amd64",
    # What kernel and hypervisor packages need to add themselves to the boot loader's menu.
    "initramfs-tools", "grub2-common",
    "kexec-tools",
)
LEFT_OUT = ("man", "doc", "locale", "info")
OPTIONS = ("--variant=minbase", "--format=tar", "--aptopt=APT::Install-Recommends \"false\"",
           "--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Sandbox::User \"root\"",
           *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in LEFT_OUT))
IMAGE_SIZE = "6G"               # a sparse file
NEEDED = 4                      # GiB free while it is made
LOG = LOGS / "debian.log"


def image():
    """The ext4 image of Debian's root; the file exists only when it is complete."""
    key = hashlib.sha256(repr((RELEASE, PACKAGES, OPTIONS, IMAGE_SIZE)).encode()).hexdigest()[:12]
    whole = CACHE / f"debian-{RELEASE}-{key}.ext4"
    with lock(CACHE / "debian.lock", "another lab that makes the Debian image"):
        if not whole.exists():
            make_image(whole)
    return whole


def make_image(whole):
    run("installing what the Debian image needs", ["sh", LAB / "bootstrap.sh", "packages", "packages-debian.txt"], LOG)
    free = shutil.disk_usage(CACHE).free >> 30
    if free < NEEDED:
        raise Fail(f"disk full: {free} GiB free in {CACHE}, {NEEDED} GiB are needed for the Debian image")
    uri = fetch.archives()["Debian"]
    partial = CACHE / "debian.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    root = os.geteuid() == 0
    say(f"making an image of Debian {RELEASE}: 3 to 5 minutes, about 800 MB, once")
    try:
        run("making the Debian image (mmdebstrap)",
            ["mmdebstrap", f"--mode={'root' if root else 'unshare'}", *OPTIONS, f"--include={','.join(PACKAGES)}",
             RELEASE, partial / "root.tar", f"deb [signed-by={fetch.KEYRING}] {uri} {RELEASE} main"], LOG, append=True)
        # Runs as root or as root of a user namespace, so that files keep their owners.
        run("making the Debian image (mke2fs)",
            [*(() if root else ("unshare", "--map-auto", "--map-root-user")), "sh", "-euc",
             'mkdir "$0/root"; tar -x -C "$0/root" --numeric-owner --exclude="./dev/*" -f "$0/root.tar"; rm "$0/root.tar"\n'
             'PATH=$PATH:/usr/sbin:/sbin; mke2fs -q -t ext4 -L lab-debian -d "$0/root" "$0/root.ext4" "$1"; rm -rf "$0/root"',
             partial, IMAGE_SIZE], LOG, append=True)
        for old in CACHE.glob(f"debian-{RELEASE}-*.ext4"):
            old.unlink()
        (partial / "root.ext4").rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def initramfs_extra(kernel):
    """An archive for the initramfs of what the image lacks: the modules of dom0's kernel."""
    with build.lock():
        root = build.OBJ / f"modules-{kernel.obj.name}"
        shutil.rmtree(root, ignore_errors=True)
        kernel.make("kernel modules", f"INSTALL_MOD_PATH={root / 'usr'}", "INSTALL_MOD_STRIP=1", "modules_install",
                    log=LOGS / "build" / f"modules-{kernel.obj.name}.log")
        for link in root.glob("usr/lib/modules/*/build"):
            link.unlink()
        return newc_tree(root, below="debian")
