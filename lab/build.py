# SPDX-License-Identifier: GPL-2.0
"""Build the kernel, the hypervisor and the initramfs; rebuild only what changed."""
import gzip
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import fetch
import overlay
import util
from initramfs import newc, newc_tree
from util import BUILD, CPUS, LAB, LOGS, REPO, Fail, Progress, clean_env, output, run, say, write_if_changed

SRC, OBJ = BUILD / "src", BUILD / "obj"
COMPILER = "ccache gcc"
# Let other clones find the objects in the cache. Xen passes its header path to the assembler as an absolute path, which
# ccache cannot make relative.
ENV = {
    "CCACHE_BASEDIR": str(BUILD), "CCACHE_NOHASHDIR": "1", "CCACHE_IGNOREOPTIONS": "-Wa,-I*",
    "CCACHE_SLOPPINESS": "time_macros",
    "KBUILD_BUILD_TIMESTAMP": "2026-01-01", "KBUILD_BUILD_USER": "lab", "KBUILD_BUILD_HOST": "lab",
    "XEN_BUILD_DATE": "2026-01-01", "XEN_BUILD_TIME": "00:00", "XEN_WHOAMI": "lab", "XEN_DOMAIN": "lab",
}
LEAVE_OUT = (
    ".git", "*.o", "*.o.d", "*.a", "*.ko", "*.mod", "*.mod.c", "*.cmd", "*.order", "*.symvers",
    # Linux
    "/.config*", "/include/config", "/include/generated", "/arch/*/include/generated", "/vmlinux*", "/System.map",
    # Xen
    "/xen/.config*", "/xen/include/config", "/xen/include/generated", "/xen/include/compat", "/xen/asm-offsets.s",
    "/xen/arch/*/include/generated", "/xen/arch/*/include/asm/asm-macros.h", "/xen/arch/*/include/asm/asm-offsets.h",
    "/xen/arch/*/*.lds", "/xen/common/config_data.S", "/xen/xen", "/xen/xen*.gz", "/xen/xen.efi", "/xen/xen-syms*",
)


def lock():
    """Allow one build at a time in this clone."""
    return util.lock(BUILD / ".lock", "another build in this clone")


def check_place():
    if re.search(r"[\s:,]", str(REPO)):
        raise Fail(f"the path {REPO} has a space, colon or comma, which Linux's build cannot handle")
    need, free = 5, shutil.disk_usage(REPO).free >> 30
    if not (BUILD / "obj").exists() and free < need:
        raise Fail(f"disk full: {free} GiB free in {REPO}, {need} GiB are needed")


def copy_of(user_tree, name, managed):
    """A copy of a user's source tree under build/, without build products."""
    user_tree = Path(user_tree).expanduser().resolve()
    if not (user_tree / "Makefile").is_file():
        raise Fail(f"{user_tree} is not a source tree (it has no Makefile)")
    copy = SRC / name
    copy.mkdir(parents=True, exist_ok=True)
    ignored = output(["git", "-C", user_tree, "-c", "safe.directory=*", "ls-files", "-oi", "--exclude-standard",
                      "--directory"]) or ""
    say(f"copying {user_tree}")
    run(f"copying {user_tree}",
        ["rsync", "-a", "--delete", *(f"--exclude={p}" for p in LEAVE_OUT),
         *(f"--exclude=/{p}" for p in [*managed, *ignored.splitlines()]), f"{user_tree}/", f"{copy}/"],
        LOGS / f"copy-{name}.log")
    return user_tree, copy


def source(kind, fetched, user_tree, parts, mark, lab_patches=()):
    """The folder of a source tree that contains our parts.

    A user's tree that has the file `mark` already has our parts, and is used as it is.
    lab_patches: what the lab needs in addition, if it applies.
    """
    whole, patches = parts
    if not user_tree:
        tree, base = fetched(), None
    else:
        user_tree = Path(user_tree).expanduser()
        if (user_tree / mark).exists():
            say(f"{user_tree} has {mark}: using that tree as it is")
            whole, patches = {}, []
        managed = set(whole).union(*map(overlay.targets, [*patches, *lab_patches]))
        base, tree = copy_of(user_tree, f"{kind}-user", managed)
    lab_patches = [patch for patch in lab_patches if applies(base or overlay.pristine(tree, patch), patch)]
    overlay.apply(tree, base, whole, [*patches, *lab_patches])
    return tree


def applies(base, patch):
    try:
        overlay.result(base, {}, [patch])
    except Fail:
        say(f"{patch.relative_to(REPO)} is not for {base}: left out")
        return False
    return True


def linux_source(version, user_tree=None):
    lab_patches = [patch for folder in ("", version) for patch in sorted((LAB / "patches/linux" / folder).glob("*.patch"))]
    return source("linux", lambda: fetch.linux(version), user_tree, overlay.linux_parts(version),
                  "drivers/iommu/xen-iommu.c", lab_patches)


def xen_source(user_tree=None, drafts=False):
    """drafts: with the quirks of the drafts of the interface."""
    name = "xen-drafts" if drafts else "xen"

    def fetched():
        """A copy of the fetched Xen, to change."""
        pristine, ours = fetch.xen(), SRC / name
        if not ours.is_dir():
            with util.new_folder(ours) as partial:
                shutil.copytree(pristine, partial, symlinks=True, dirs_exist_ok=True)
        return ours

    if drafts and user_tree:
        raise Fail("the quirks of the drafts cannot be added to your own tree: leave out XEN_TREE")
    whole, ours = overlay.xen_parts()
    if drafts:
        ours = [*ours, *sorted((LAB / "patches/xen-drafts").glob("*.patch"))]
    return source(name, fetched, user_tree, (whole, ours), "xen/include/public/pv-iommu.h",
                  sorted((LAB / "patches/xen").glob("*.patch")))


def make(what, log, folder, *args, progress=None, append=False):
    run(what, ["make", f"-j{CPUS}", "-C", folder, *args], log, env=clean_env(**ENV),
        progress=progress, append=append)


def progress(what, image, name):
    """objects.txt has the number of objects of a first build; that of later builds is unknown."""
    totals = dict(line.split() for line in (LAB / "objects.txt").read_text().splitlines() if not line.startswith("#"))
    return Progress(what, 0 if image.exists() else int(totals.get(name, 0)))


def write_config(path, *fragments):
    return write_if_changed(path, "".join((LAB / "config" / f).read_text() for f in fragments))


class Kernel:
    """A built Linux: its source, its objects and the bzImage."""

    def __init__(self, src, flavour="dom0", fragments=("dom0.config",)):
        self.src = src
        self.obj = OBJ / f"{self.src.name}-{flavour}"
        self.image = self.obj / "arch/x86/boot/bzImage"
        self.log = LOGS / "build" / f"{self.obj.name}.log"
        self.fragments = fragments

    def make(self, what, *targets, progress=None, log=None):
        make(what, log or self.log, self.src, f"O={self.obj}", f"CC={COMPILER}", f"HOSTCC={COMPILER}",
             *targets, progress=progress)

    def configure(self):
        self.obj.mkdir(parents=True, exist_ok=True)
        fragment = self.obj / "lab.config"
        kconfigs = [p.stat().st_mtime for p in (self.src / "drivers/iommu").glob("**/Kconfig")]
        config = self.obj / ".config"
        if write_config(fragment, *self.fragments) or not config.exists() or config.stat().st_mtime < max(kconfigs):
            self.make("kernel configuration", f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig")
            os.utime(config)
            # Like Kconfig: the last line for a symbol counts.
            asked = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", fragment.read_text(), re.M))
            asked = {f"{symbol}={value}" for symbol, value in asked.items() if value != "n"}
            missing = sorted(asked - set(config.read_text().splitlines()))
            (self.obj / "lab.config.missing").write_text("\n".join(missing))
            if "CONFIG_XEN_IOMMU=y" in missing and (self.src / "drivers/iommu/xen-iommu.c").exists():
                raise Fail(f"CONFIG_XEN_IOMMU cannot be set with {' '.join(self.fragments)}; log: {self.log}")

    def build(self):
        self.configure()
        say(f"building {self.src.name} ({self.obj.name}; 10 to 20 minutes the first time)"
            if not self.image.exists() else f"building {self.src.name}: what changed")
        self.make("kernel", "bzImage", "modules", progress=progress("kernel", self.image, self.obj.name))
        return self


class Xen:
    """A built hypervisor."""

    def __init__(self, src, flavour="release", fragments=("xen.config",)):
        self.src = src
        self.obj = OBJ / f"{self.src.name}-{flavour}"
        self.image = self.obj / "xen"
        self.log = LOGS / "build" / f"{self.obj.name}.log"
        self.fragments = fragments

    def make(self, what, *targets, **kw):
        make(what, self.log, self.src / "xen", f"O={self.obj}", "XEN_TARGET_ARCH=x86_64", f"CC={COMPILER}",
             f"HOSTCC={COMPILER}", *targets, **kw)

    def build(self):
        self.obj.mkdir(parents=True, exist_ok=True)
        fragment = self.obj / "lab.config"
        if write_config(fragment, *self.fragments) or not (self.obj / ".config").exists():
            self.make("Xen configuration", f"KCONFIG_ALLCONFIG={fragment}", "alldefconfig")
        say(f"building {self.obj.name}"
            + (": what changed" if self.image.exists() else " (2 to 4 minutes the first time)"))
        self.make("Xen", "build", progress=progress("Xen", self.image, self.obj.name), append=True)
        return self


def unpacked_image(path):
    """The content of the user's hypervisor binary, checked to be complete and bootable."""
    path = Path(path).expanduser().resolve()
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise Fail(f"XEN_IMAGE={path}: damaged or cut short (gzip: {error})") from error
    if data[:5] != b"\x7fELF\x01":
        raise Fail(f"XEN_IMAGE={path}: not the 32-bit ELF file (xen or xen.gz) that QEMU boots")
    if len(data) < elf_size(data):
        raise Fail(f"XEN_IMAGE={path}: cut short ({len(data):,} bytes of {elf_size(data):,})")
    return data


def elf_size(data):
    """The size that a 32-bit ELF file must have to contain its headers and segments."""
    if len(data) < 52:
        return 52
    phoff, phentsize, phnum = *struct.unpack_from("<I", data, 28), *struct.unpack_from("<HH", data, 42)
    shoff, shentsize, shnum = *struct.unpack_from("<I", data, 32), *struct.unpack_from("<HH", data, 46)
    size = max(phoff + phentsize * phnum, shoff + shentsize * shnum)
    if len(data) < phoff + phentsize * phnum or phentsize < 32:
        return size
    segments = (struct.unpack_from("<IIIII", data, phoff + n * phentsize) for n in range(phnum))
    return max([size, *(offset + filesz for _, offset, _, _, filesz in segments)])


def image_of(path, name="xen-image"):
    """A ready hypervisor binary, unpacked if compressed."""
    image = OBJ / name
    write_if_changed(image, unpacked_image(path))
    return image


def guest_source(kernel):
    """The folder of what runs in dom0: the one for the kernel's version, or ours if a user's tree has none."""
    return next(path for tree in (kernel.src, REPO) if (path := tree / "tools/testing/xen-iommu").is_dir())


def programs_root(name, unpacked, *programs):
    """A folder for dom0's root with programs from unpacked Debian packages, and the libraries that they need."""
    root, libs = OBJ / f"{name}-root", "usr/lib/x86_64-linux-gnu"
    places = ":".join(sorted({str(path.parent) for path in unpacked.rglob("*.so.*")}))
    text = output(["env", f"LD_LIBRARY_PATH={places}", "ldd", *programs]) or ""
    if missing := re.findall(r"(\S+) => not found", text):
        raise Fail(f"{name} needs {' '.join(missing)}, which no package contains")
    with lock():
        shutil.rmtree(root, ignore_errors=True)
        for folder in ("lib64", libs, *(path.relative_to(unpacked).parent for path in programs)):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for path in programs:
            shutil.copy(path, root / path.relative_to(unpacked))
        # The C library loads that last one by itself.
        for path in {*re.findall(r"=> (/\S+)", text), "/lib/x86_64-linux-gnu/libgcc_s.so.1"}:
            shutil.copy(path, root / libs)
        shutil.copy("/lib64/ld-linux-x86-64.so.2", root / "lib64")
    return root


def initramfs(kernel):
    """dom0's root file system: busybox, and what tools/testing/xen-iommu installs."""
    out, root = OBJ / f"guest-{kernel.obj.name}", OBJ / f"root-{kernel.obj.name}"
    log = LOGS / "build" / f"guest-{kernel.obj.name}.log"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "sbin", "usr/bin", "dev", "proc", "sys", "etc", "tmp", "run", "mnt", "lib"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    guest = guest_source(kernel)
    if (guest / "Makefile").exists():
        say("building dom0's tests")
        make("guest's tests", log, guest, f"KDIR={kernel.obj}", f"O={out}", f"DESTDIR={root}", f"CC={COMPILER}",
             "install")
    image = OBJ / f"initrd-{kernel.obj.name}.gz"
    if write_if_changed(image.with_suffix(".cpio"), newc_tree(root)) or not image.exists():
        image.write_bytes(gzip.compress(image.with_suffix(".cpio").read_bytes(), 1, mtime=0))
    return image


def initramfs_extra(env, run_command, extra, below=""):
    """
    The part that differs between boots: a second, compressed cpio archive to append to the first. `below` is where
    the user's files go.
    """
    files = {"etc/lab/env": (0o644, "".join(f"{k}={v}\n" for k, v in env.items()).encode())}
    if run_command is not None:
        files["etc/lab/run"] = (0o755, os.fsencode(f"#!/bin/sh\n{run_command}\n"))
    data = newc(files)
    if extra:
        extra = Path(extra).expanduser().resolve()
        if not extra.is_dir():
            raise Fail(f"INITRD_EXTRA={extra}: no such folder")
        data += newc_tree(extra, below)
    return gzip.compress(data, 1, mtime=0)
