# SPDX-License-Identifier: GPL-2.0
"""Add our files and patches to a source tree, and remove what we no longer have.

Only files whose content changes are written, so that make rebuilds no more than that.
"""
import fnmatch
import json
import re
import shutil
import tempfile
from pathlib import Path

from util import REPO, Fail, say, write_if_changed

LINUX_DIRS = ("arch", "block", "Documentation", "drivers", "fs", "include", "init", "kernel", "lib", "mm",
              "net", "samples", "scripts", "security", "tools", "virt")
XEN_DIRS = ("xen", "docs", "tools", "tests", "automation", "config")


def linux_parts(version):
    """({path in the tree: our whole file}, [our patches]) for Linux `version`.

    backports/<version>/ has what an older version needs in addition: patches, also of our own files, which replace
    those of the same path. left-out there lists our files that are not for that version.
    """
    backports = REPO / "backports" / version
    absent = patterns(backports / "left-out")
    whole, patches = {}, {}
    for root, prefix in ((REPO, ""), (REPO / "optimisations", "optimisations/"), (backports, "")):
        top = [p for p in root.glob("*.patch")] if root.is_dir() else []
        for path in top + [p for d in LINUX_DIRS for p in sorted((root / d).rglob("*"))]:
            rel = str(path.relative_to(root))
            if not path.is_file() or ignored(path) or any(fnmatch.fnmatch(prefix + rel, p) for p in absent):
                continue
            if path.suffix == ".patch":
                patches[prefix + rel] = path
            else:
                whole[rel] = path
    return whole, [patches[rel] for rel in sorted(patches, key=lambda rel: (rel.startswith("optimisations/"), rel))]


def patterns(path):
    """The first word of each line of a list of files; the rest of the line says why."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def xen_parts():
    """The same for Xen, whose files are under xen/ and whose patches are under xen/patches/."""
    root = REPO / "xen"
    whole = {str(path.relative_to(root)): path for d in XEN_DIRS for path in (root / d).rglob("*")
             if path.is_file() and not ignored(path)}
    for name in ("CHANGELOG.md", "SUPPORT.md", "MAINTAINERS"):
        if (root / name).is_file():
            whole[name] = root / name
    return whole, sorted((root / "patches").glob("*.patch"))


def ignored(path):
    return (path.name.startswith(".checkpatch") or "__pycache__" in path.parts
            or path.suffix in (".o", ".ko", ".pyc", ".rej", ".orig", ".swp"))


def targets(patch):
    """Paths that a patch changes or creates."""
    found = re.findall(r"^(?:---|\+\+\+) (\S+)", patch.read_text(errors="replace"), re.M)
    return {name.split("/", 1)[1] for name in found if name != "/dev/null"}


def created(patch):
    """Paths that a patch creates."""
    return set(re.findall(r"^--- /dev/null\n\+\+\+ [^/\s]+/(\S+)", patch.read_text(errors="replace"), re.M))


def hunks(patch):
    """[(path before, path after, line, old lines, new lines)] of a unified diff; a path is None for /dev/null."""
    lines = patch.read_bytes().decode(errors="surrogateescape").splitlines(keepends=True)
    found, i = [], 0
    while i < len(lines):
        if lines[i].startswith("--- ") and i + 1 < len(lines) and lines[i + 1].startswith("+++ "):
            before, after = (None if name == "/dev/null" else name.split("/", 1)[1]
                             for name in (line[4:].split()[0] for line in lines[i:i + 2]))
            i += 2
            continue
        head = re.match(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", lines[i])
        i += 1
        if not head:
            continue
        left, right = (int(count or 1) for count in head.group(2, 3))
        old, new, last = [], [], ""
        while len(old) < left or len(new) < right or i < len(lines) and lines[i][0] == "\\":
            line = lines[i] if i < len(lines) else ""
            i += 1
            if line.startswith("\\"):        # no newline at the end of the line before
                for side in (old, new):
                    if side and side[-1] == last:
                        side[-1] = last.rstrip("\n")
                continue
            kind, last = line[:1], line[1:] or "\n"
            if kind not in (" ", "-", "+", "\n"):
                raise Fail(f"{short(patch)} is cut short or damaged at line {i}")
            if kind != "+":
                old.append(last)
            if kind != "-":
                new.append(last)
        found.append((before, after, int(head[1]), old, new))
    return found


def apply_patch(folder, patch):
    """Apply a patch in `folder`.

    Each hunk must match completely. If its lines have moved, there must be only one place for it: a patch
    that was made for another version must not silently change the wrong place.
    """
    number, shift = {}, {}
    for before, after, line, old, new in hunks(patch):
        name = before or after
        number[name] = number.get(name, 0) + 1
        path = folder / name
        lines = path.read_bytes().decode(errors="surrogateescape").splitlines(keepends=True) if path.exists() else []
        places = [at for at in range(len(lines) - len(old) + 1) if lines[at:at + len(old)] == old]
        expected = max(line - 1, 0) + shift.get(name, 0)
        if not old:             # a new file
            places = [] if lines else [expected]
        if expected not in places and len(places) != 1:
            raise Fail(f"{short(patch)} does not apply: {name}, hunk {number[name]} (line {line}) "
                       + (f"matches {len(places)} places" if places else
                          "does not match" if path.exists() or not before else "has no such file"))
        at = expected if expected in places else places[0]
        lines[at:at + len(old)] = new
        # As diff counts: both the offset and the change of length move later hunks.
        shift[name] = at - max(line - 1, 0) + len(new) - len(old)
        if not after:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(lines).encode(errors="surrogateescape"))


def short(path):
    return str(path).removeprefix(f"{REPO}/")


def record_of(tree):
    return tree.with_name(tree.name + ".overlay.json")


def touched(tree):
    """Paths that our parts have changed or created in a tree so far."""
    record = record_of(tree)
    return set(json.loads(record.read_text())) if record.exists() else set()


def pristine(tree, patch):
    """The folder with the pristine versions of all files of a fetched tree that patches change."""
    return tree.with_name(tree.name + ".orig") if targets(patch) <= touched(tree) else tree


def apply(tree, base, whole, patches):
    """Make `tree` equal to its pristine state plus our parts.

    base: where the pristine files are, if not in `tree` itself (a user's own tree); the pristine
    content of files that we change in a fetched tree is kept beside it, in <tree>.orig.
    """
    record, kept, old = record_of(tree), tree.with_name(tree.name + ".orig"), touched(tree)
    new = set(whole).union(*map(targets, patches))
    if not base:
        for rel in new - old:
            if (tree / rel).is_file():
                (kept / rel).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(tree / rel, kept / rel)
        base = kept
    record.write_text(json.dumps(sorted(old | new)))
    wanted = result(base, whole, patches)
    changed = 0
    for rel in sorted(old | new):
        if rel not in wanted and rel not in new and (base / rel).is_file():
            wanted[rel] = (base / rel).read_bytes()
        if rel in wanted:
            changed += write_if_changed(tree / rel, wanted[rel])
            if rel in whole:
                shutil.copymode(whole[rel], tree / rel)
        elif (tree / rel).exists():
            (tree / rel).unlink()
            changed += 1
    record.write_text(json.dumps(sorted(new)))
    if changed:
        say(f"{tree.name}: {changed} of our {len(new)} files new or changed")


def result(base, whole, patches):
    """{path: content} of all files that our parts change, made from the pristine ones in `base`."""
    with tempfile.TemporaryDirectory(prefix="xen-iommu-") as tmp:
        tmp = Path(tmp)
        # A patch may create a file that we also have: ours counts.
        twice = set(whole) & set().union(*map(created, patches))
        for rel in set(whole).union(*map(targets, patches)) - twice:
            source = whole.get(rel, base / rel)
            if source.is_file():
                (tmp / rel).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, tmp / rel)
        for patch in patches:
            apply_patch(tmp, patch)
        for rel in twice:
            shutil.copy2(whole[rel], tmp / rel)
        return {str(path.relative_to(tmp)): path.read_bytes() for path in tmp.rglob("*") if path.is_file()}
