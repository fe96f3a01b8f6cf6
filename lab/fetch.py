# SPDX-License-Identifier: GPL-2.0
"""Fetch Linux and Xen from Debian's archive, verified by apt's own hashes or by pinned ones.

The archive's address is the one that this machine's apt uses. Suites that its apt does not know are
looked up through a private apt directory in the cache, so nothing in /etc/apt changes.
"""
import functools
import gzip
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

from util import BUILD, CACHE, LAB, LOGS, Fail, clean_env, lock, new_folder, output, qemu_version, run, say

APT = CACHE / "apt"
LOG = LOGS / "fetch.log"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
HELPER = "/usr/lib/apt/apt-helper"
PAUSES = (1, 5, 15, None)       # seconds to wait after each failed attempt to download
NETWORK = ("-oAcquire::Retries=1", "-oAcquire::http::Timeout=20", "-oAcquire::https::Timeout=20")
OFFLINE = re.compile(r"(Could not resolve|Temporary failure resolving|Could not connect|Unable to connect|Cannot initiate "
                     r"the connection|Network is unreachable|No route to host).*")
SUITES = (                      # (label of the archive, line of the private sources.list)
    ("Debian", "deb {} trixie-backports main"),
    ("Debian", "deb {} trixie main"),
    ("Debian-Security", "deb {} bookworm-security main"),
    ("Debian", "deb-src {} trixie main"),
)
XEN_PACKAGE = "xen-hypervisor-4.20-amd64"
QEMU_PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data")


def one_at_a_time(function):
    """Lock the cache, which all clones of this user share."""
    @functools.wraps(function)
    def locked(*args):
        with lock(CACHE / ".lock", "another lab that downloads or unpacks"):
            return function(*args)
    return locked


def archives():
    """{label: URI} of the Debian archives that this machine's apt uses."""
    query = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]
    for attempt in (1, 2):
        rows = [line.split("|") for line in (output(query) or "").splitlines()]
        found = {label: uri for origin, label, uri in rows if origin == "Debian"}
        if "Debian" in found:
            return found
        if attempt == 1 and os.geteuid() == 0:
            run("apt-get update", ["apt-get", "update"], LOG)
    raise Fail("apt knows no Debian archive: run apt-get update, or name LINUX_TREE= and XEN_TREE=")


def retry(what, cmd, pauses=PAUSES, **kw):
    """Run an apt command that downloads; retry if it fails, unless the network is down."""
    cmd = [cmd[0], *NETWORK, *cmd[1:]]
    for pause in pauses:
        start = LOG.stat().st_size if LOG.exists() else 0
        try:
            return run(what, cmd, LOG, append=True, **kw)
        except Fail as failure:
            if offline := OFFLINE.search(LOG.read_bytes()[start:].decode(errors="replace")):
                raise Fail(f"{what}: Debian's archive cannot be reached ({offline[0].strip()}); log: {LOG}") from failure
            if pause is None:
                raise
            time.sleep(pause)


def apt_options():
    return [f"-oDir::Etc::sourcelist={APT}/sources.list", "-oDir::Etc::sourceparts=-",
            f"-oDir::State::lists={APT}/lists", f"-oDir::Cache={APT}/cache",
            "-oAPT::Sandbox::User=", "-oAcquire::Languages=none"]


def apt_update():
    """Update the private package lists, at most once an hour."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (APT / folder).mkdir(parents=True, exist_ok=True)
    uris = archives()
    text = "".join(line.format(f"[signed-by={KEYRING}] {uris[label]}") + "\n"
                   for label, line in SUITES if label in uris)
    sources, stamp = APT / "sources.list", APT / "updated"
    if (stamp.exists() and time.time() - stamp.stat().st_mtime < 3600
            and sources.exists() and sources.read_text() == text):
        return
    sources.write_text(text)
    say("reading Debian's package lists")
    retry("reading Debian's package lists",
          ["apt-get", *apt_options(), "-oAPT::Update::Error-Mode=any", "update"])
    stamp.touch()


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def unpack(what, feed, folder, strip):
    """Unpack the tar stream that the shell command `feed` writes; the folder appears when complete."""
    say(f"unpacking {what}")
    with new_folder(folder) as partial:
        run(f"unpacking {what}",
            ["bash", "-c", f"set -o pipefail; {feed} | tar -x --strip-components={strip} -C \"$OUT\""],
            LOG, append=True, env=clean_env(OUT=str(partial)))


@one_at_a_time
def linux(version):
    """Unpack the pristine source of Linux `version`, and return its folder."""
    folder = BUILD / "src" / f"linux-{version}"
    if folder.is_dir():
        return folder
    package = f"linux-source-{version}"
    debs = sorted(CACHE.glob(f"{package}_*.deb"))
    if not debs:
        apt_update()
        known = output(["apt-cache", *apt_options(), "pkgnames", "linux-source-"]) or ""
        if package not in known.split():
            there = sorted(name.removeprefix("linux-source-") for name in known.split())
            raise Fail(f"Debian's archive has no Linux {version}; it has "
                       f"{', '.join(there) or 'none'}: use KERNEL= or LINUX_TREE=")
        say(f"downloading {package}, about 160 MB")
        partial = CACHE / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            retry(f"downloading {package}", ["apt-get", *apt_options(), "download", package], cwd=partial)
            debs = [deb.rename(CACHE / deb.name) for deb in partial.glob("*.deb")]
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    deb = debs[-1]
    unpack(f"Linux {version} ({deb.name})",
           f"dpkg-deb --fsys-tarfile '{deb}' | tar -xO ./usr/src/{package}.tar.xz | xz -dT0", folder, 1)
    return folder


def xen_candidates():
    """[(version, sha256, folder in the archive)] of Xen 4.20 tarballs to try, best first."""
    apt_update()
    for stanza in (output(["apt-cache", *apt_options(), "showsrc", "--only-source", "xen"]) or "").split("\n\n"):
        tarball = re.search(r"^ ([0-9a-f]{64}) \d+ xen_(4\.20\S+)\.orig\.tar\.xz$", stanza, re.M)
        folder = re.search(r"^Directory: (\S+)$", stanza, re.M)
        if tarball and folder:
            yield tarball[2], tarball[1], folder[1]
    for line in (LAB / "xen-versions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            version, digest, *_ = line.split()
            yield version, digest, "pool/main/x/xen"


def pool_file(name, digest, folder="pool/main/x/xen"):
    """A file of the archive, kept in the cache; None if the archive does not deliver it."""
    if (CACHE / name).exists():
        return CACHE / name
    uri, partial = archives()["Debian"].rstrip("/"), CACHE / (name + ".partial")
    say(f"downloading {name}")
    try:
        retry(f"downloading {name}", [HELPER, "download-file", f"{uri}/{folder}/{name.replace('+', '%2b')}", partial,
                                      f"SHA256:{digest}"], pauses=(3, None))
    except Fail:
        say(f"the archive does not have {name}")
        return None
    if sha256(partial) != digest:
        raise Fail(f"{partial} does not have the expected SHA256 {digest}")
    return partial.rename(CACHE / name)


@one_at_a_time
def xen_packaging():
    """(orig tarball, Debian's packaging of that version, its revision)"""
    tried = []
    for line in (LAB / "xen-versions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            version, digest, revision, packaging_digest = line.split()
            packaging = pool_file(f"xen_{version}-{revision}.debian.tar.xz", packaging_digest)
            tarball = packaging and pool_file(f"xen_{version}.orig.tar.xz", digest)
            if tarball:
                return tarball, packaging, revision
            tried.append(version)
    raise Fail(f"Debian's archive has no complete source package of Xen {', '.join(tried)}; log: {LOG}")


@one_at_a_time
def xen():
    """Unpack the pristine source of Xen 4.20, and return its folder."""
    folder = BUILD / "src" / "xen-pristine"
    if folder.is_dir():
        return folder
    tarballs = sorted(CACHE.glob("xen_4.20*.orig.tar.xz"))
    if not tarballs:
        tried = []
        for version, digest, where in xen_candidates():
            if version in tried:
                continue
            tried.append(version)
            if tarball := pool_file(f"xen_{version}.orig.tar.xz", digest, where):
                tarballs = [tarball]
                break
        else:
            raise Fail(f"Debian's archive has none of Xen {', '.join(tried)}: name an unpacked "
                       f"Xen 4.20 with XEN_TREE=; log: {LOG}")
    unpack(f"Xen ({tarballs[-1].name})", f"xz -dcT0 '{tarballs[-1]}'", folder, 1)
    return folder


@one_at_a_time
def xen_stock():
    """Unpack Debian's hypervisor package, and return its image."""
    folder = BUILD / "src" / XEN_PACKAGE
    if not folder.is_dir():
        debs = CACHE / XEN_PACKAGE
        if not debs.is_dir():
            apt_update()
            say(f"downloading {XEN_PACKAGE}")
            with new_folder(debs) as partial:
                retry(f"downloading {XEN_PACKAGE}", ["apt-get", *apt_options(), "download", XEN_PACKAGE], cwd=partial)
        with new_folder(folder) as partial:
            run(f"unpacking {XEN_PACKAGE}", ["dpkg-deb", "-x", next(debs.glob("*.deb")), partial], LOG, append=True)
    return next(folder.glob("boot/xen-*.gz"))


@one_at_a_time
def xen_arm64():
    """Fetch a binary Xen for arm64 from the archive, and return its image."""
    image = CACHE / "xen-arm64"
    if image.exists():
        return image
    apt = CACHE / "apt-arm64"
    for folder in ("lists/partial", "cache/archives/partial", "deb"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {archives()['Debian']} bookworm main\n")
    options = [f"-oDir::Etc::sourcelist={apt}/sources.list", "-oDir::Etc::sourceparts=-", "-oDir::State::status=/dev/null",
               f"-oDir::State::lists={apt}/lists", f"-oDir::Cache={apt}/cache", "-oAPT::Sandbox::User=",
               "-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64", "-oAcquire::Languages=none"]
    say("downloading Xen for arm64")
    retry("reading Debian's package lists for arm64", ["apt-get", *options, "-oAPT::Update::Error-Mode=any", "update"])
    retry("downloading Xen for arm64", ["apt-get", *options, "download", "xen-hypervisor-4.17-arm64"], cwd=apt)
    deb = sorted(apt.glob("xen-hypervisor-*.deb"))[-1]
    run("unpacking Xen for arm64", ["dpkg-deb", "-x", deb, apt / "deb"], LOG, append=True)
    packed = next((apt / "deb/boot").glob("xen-*-arm64"), None)
    if not packed:
        raise Fail(f"{deb.name} has no Xen in it")
    data = packed.read_bytes()
    partial = image.with_suffix(".partial")
    partial.write_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    return partial.rename(image)


def codename():
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
    if not found:
        raise Fail("this is not a Debian release: name a newer QEMU with QEMU=")
    return found[1]


def private_apt(name, suite):
    """Options for an apt of our own that knows one suite, with updated package lists."""
    apt = CACHE / f"apt-{name}"
    for path in ("lists/partial", "cache/archives/partial"):
        (apt / path).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {archives()['Debian']} {suite} main\n")
    options = [f"-oDir::Etc::sourcelist={apt}/sources.list", "-oDir::Etc::sourceparts=-",
               f"-oDir::State::lists={apt}/lists", f"-oDir::Cache={apt}/cache", "-oAPT::Sandbox::User=",
               "-oAcquire::Languages=none", "-oDebug::NoLocking=1"]
    retry(f"reading the package lists of {suite}",
          ["apt-get", *options, "-oAPT::Update::Error-Mode=any", "update"])
    return options


@one_at_a_time
def qemu(oldest):
    """A QEMU of at least version `oldest` (major, minor): this machine's, or one of backports unpacked in build/."""
    if (qemu_version("qemu-system-x86_64") or (0, 0)) >= oldest:
        return "qemu-system-x86_64"
    folder = BUILD / "src" / "qemu"
    start = folder / "qemu-system-x86_64"
    if start.exists():
        return str(start)
    debs = sorted((CACHE / "qemu").glob("*.deb"))
    if len(debs) != len(QEMU_PACKAGES):
        suite = f"{codename()}-backports"
        say(f"downloading a newer QEMU from {suite}")
        options = private_apt("qemu", suite)
        shutil.rmtree(CACHE / "qemu", ignore_errors=True)
        with new_folder(CACHE / "qemu") as partial:
            retry("downloading QEMU", ["apt-get", *options, "download", *(f"{p}/{suite}" for p in QEMU_PACKAGES)],
                  cwd=partial)
        debs = sorted((CACHE / "qemu").glob("*.deb"))
    with new_folder(folder) as partial:
        for deb in debs:
            run(f"unpacking {deb.name}", ["dpkg-deb", "-x", deb, partial], LOG, append=True)
        # QEMU expects its data in fixed places, so tell it where they are.
        name = partial / start.name
        name.write_text('#!/bin/sh\nhere=$(dirname "$(readlink -f "$0")")\n'
                        'export QEMU_MODULE_DIR="$here/usr/lib/x86_64-linux-gnu/qemu"\n'
                        'exec "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L /usr/share/seabios '
                        '-L /usr/share/qemu "$@"\n')
        name.chmod(0o755)
    return str(start)


@one_at_a_time
def packages(name, title, *wanted):
    """
    Packages of this machine's Debian and their dependencies, unpacked in a folder. A star at the end of a name stands
    for the version of the ABI.
    """
    folder = BUILD / "src" / name
    if folder.is_dir():
        return folder
    say(f"downloading {title}")
    options = private_apt(name, codename())
    names = []
    for one in wanted:
        names += ((output(["apt-cache", *options, "pkgnames", one[:-1]]) or "").split() if one.endswith("*") else [one])
    # Use this machine's own dependencies where it has them.
    retry(f"downloading {name}", ["apt-get", *options, "-y", "--no-install-recommends", "--download-only", "install",
                                  *names])
    with new_folder(folder) as partial:
        for deb in sorted((CACHE / f"apt-{name}/cache/archives").glob("*.deb")):
            run(f"unpacking {deb.name}", ["dpkg-deb", "-x", deb, partial], LOG, append=True)
    return folder
