# SPDX-License-Identifier: GPL-2.0
"""Write reproducible cpio archives ("newc") for the kernel's initramfs, without root."""
import stat
from pathlib import Path

CONSOLE = (stat.S_IFCHR | 0o600, b"", (5, 1))


def _entry(name, mode, data=b"", rdev=(0, 0)):
    name = name.encode() + b"\0"
    head = "070701" + "".join(f"{v:08x}" for v in (
        0, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name), 0))
    return _pad(head.encode() + name) + _pad(data)


def _pad(data):
    return data + bytes(-len(data) % 4)


def _archive(entries):
    """entries: {path: (mode, data, rdev)}; parent folders are added."""
    for path in list(entries):
        for parent in Path(path).parents:
            if str(parent) != ".":
                entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", (0, 0)))
    parts = [_entry(path, *entries[path]) for path in sorted(entries)]
    return b"".join(parts) + _entry("TRAILER!!!", 0)


def newc(files):
    """An archive of {path: (permissions, content)}."""
    return _archive({path: (stat.S_IFREG | perm, data, (0, 0)) for path, (perm, data) in files.items()})


def newc_tree(root, below=""):
    """An archive of a folder's content, placed `below` a path, with a console for the first process."""
    entries = {"dev/console": CONSOLE}
    for path in Path(root).rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            data = str(path.readlink()).encode()
        elif stat.S_ISREG(mode):
            data = path.read_bytes()
        elif stat.S_ISDIR(mode):
            data = b""
        else:
            continue
        entries[str(Path(below) / path.relative_to(root))] = (mode, data, (0, 0))
    return _archive(entries)
