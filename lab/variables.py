# SPDX-License-Identifier: GPL-2.0
"""The variables that a user gives to make: which exist, which commands use them, and what they may contain."""
import difflib
import os
import re
import shlex
from pathlib import Path

from util import Fail

EVERY = "run test shell series deb bench"
BOOTING = "run test shell bench"
# {name: commands that use it}
COMMANDS = {
    "DOM0": "run test shell",
    "ROOT": "run shell",
    "IOMMU": "run test shell",
    "KERNEL": EVERY,
    "CONFIG": "deb",
    "LINUX_TREE": EVERY,
    "XEN_TREE": EVERY,
    "XEN_IMAGE": BOOTING,
    "XEN_ARGS": BOOTING,
    "DOM0_ARGS": BOOTING,
    "INITRD_EXTRA": "run shell",
    "RUN": "run bench",
    "QEMU": BOOTING,
    "QEMU_ARGS": BOOTING,
    "ICOUNT": "run test shell",
    "T": "test bench",
}


def given(makeflags):
    """Names of the variables on make's command line, from MAKEFLAGS."""
    _, found, variables = f" {makeflags}".partition(" -- ")
    words = re.findall(r"(?:\\.|[^\s\\])+", variables if found else "", re.S)
    return [re.split(r"[:?+!]*=", word, maxsplit=1)[0] for word in words if "=" in word]


def value(name, default="", allowed=None):
    text = os.environ.get(name) or default
    if allowed and text not in allowed:
        raise Fail(f"{name}={text}: must be {' or '.join(allowed)}")
    return text


def folder(name, holding=None):
    """Check that a variable, if given, names a folder, which has the file `holding`."""
    text = os.environ.get(name) or ""
    path = Path(text).expanduser()
    if text and not path.is_dir():
        raise Fail(f"{name}={text}: " + ("not a folder" if path.exists() else "no such folder"))
    if text and holding and not (path / holding).is_file():
        raise Fail(f"{name}={text}: not a source tree (it has no {holding})")


def file(name):
    """Check that a variable, if given, names a file."""
    text = os.environ.get(name) or ""
    path = Path(text).expanduser()
    if text and not path.is_file():
        raise Fail(f"{name}={text}: " + ("this is a folder, not a file" if path.is_dir() else "no such file"))


def words(name):
    """Split a variable as a shell would."""
    text = os.environ.get(name) or ""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Fail(f"{name}={text}: {str(error).lower()}") from error


def check(command):
    """Refuse misspelt, useless or wrong variables before anything is built."""
    for name in given(os.environ.get("MAKEFLAGS", "")):
        if name not in COMMANDS:
            close = difflib.get_close_matches(name.upper(), COMMANDS, 1)
            raise Fail(f"{name}=: no such variable" + (f"; is {close[0]}= meant?" if close else "; README.md lists them"))
        if command not in COMMANDS[name].split():
            raise Fail(f"{name}= means nothing to make {command}; it is for make {', '.join(COMMANDS[name].split())}")
    version = value("KERNEL", "7.3")
    if not re.fullmatch(r"\d+\.\d+", version):
        raise Fail(f"KERNEL={version}: must be a version such as 7.3")
    folder("LINUX_TREE", "Kbuild")
    folder("XEN_TREE", "xen/Makefile")
    folder("INITRD_EXTRA")
    file("CONFIG")
    file("XEN_IMAGE")
    words("QEMU_ARGS")
    if value("XEN_IMAGE") and value("XEN_TREE") and command in ("run", "shell"):
        raise Fail("XEN_IMAGE= and XEN_TREE=: give one of them, since only one Xen is booted")
