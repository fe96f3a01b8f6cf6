# SPDX-License-Identifier: GPL-2.0
"""Make patch series for pristine Linux and Xen trees from our files, patches and the texts in lab/series.

A series is a folder of texts: lab/series/xen, and each folder in lab/series/linux, which build on each other. Its
file "cover" is the cover letter: the subject, an empty line, and the rest. Each *.msg is one patch, in name order:

  Subject: <...>
  Files: <files and patches of this repository that it contains, as shell patterns>
  Without: <label> <path> <parts to leave out: section "Title" ..., function name ..., or a regular expression>
  Brings: <labels of parts that earlier patches have left out>
  Large: <why it cannot be split, if it changes more than 500 lines>

an empty line, and the description. Without a subject, both are those of the first patch that it contains.
"""
import email
import email.policy
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import fetch
import overlay
from util import BUILD, LAB, REPO, Fail, clean_env, output, say

OUT = BUILD / "series"


class Patch:
    def __init__(self, text_file):
        self.text_file = text_file
        head, _, self.body = text_file.read_text().partition("\n\n")
        fields = re.findall(r"^(\w+): (.*(?:\n[ \t].*)*)", head, re.M)
        self.subject = dict(fields).get("Subject")
        self.files = dict(fields).get("Files", "").split()
        self.brings = dict(fields).get("Brings", "").split()
        self.large = dict(fields).get("Large")
        self.without = [" ".join(value.split("\n")).split(" ", 2) for key, value in fields if key == "Without"]

    def adopt(self, carried):
        """Take subject and description from the head of a mail."""
        mail = email.message_from_string(carried.read_text(), policy=email.policy.default)
        if not mail["Subject"]:
            raise Fail(f"{self.text_file.relative_to(REPO)} has no subject, and neither has {carried.name}")
        self.subject = re.sub(r"^\[PATCH[^]]*\] *", "", " ".join(mail["Subject"].split()))
        self.body = re.split(r"^(?:---$|Signed-off-by: )", mail.get_payload(), maxsplit=1, flags=re.M)[0]

    def keep_back(self, rel, content):
        for _, path, what in self.without:
            if path != rel:
                continue
            for pattern in patterns_of(what):
                text, count = re.subn(pattern, "", content.decode(), flags=re.M)
                content = text.encode()
                if not count:
                    raise Fail(f"{self.text_file.relative_to(REPO)}: nothing in {rel} is {pattern}")
        return content


def patterns_of(what):
    """Regular expressions for parts of a C file that can be left out cleanly."""
    kind, *names = shlex.split(what) if re.match(r"(section|function) ", what) else ("", what)
    if kind == "section":
        return [rf"^/\*\n \* {name}\n \*/\n(?s:.*?)(?=^/\*\n \* [^\n]*\n \*/\n)" for name in names]
    if kind == "function":
        # Including the comment right above it and the empty line below.
        return [rf"(?:^/\*(?:(?!\*/)(?s:.))*\*/\n)?^(?:static|struct) [^;{{}}()]*\b{name}\([^;{{}}]*\)\n\{{\n(?s:.*?)^\}}\n\n"
                for name in names]
    return names


def folders(kind):
    """[(name of a series, folder of its texts)]."""
    top = LAB / "series" / kind
    return [(path.name, path) for path in sorted(top.iterdir()) if path.is_dir()] or [("1-xen", top)]


def plan(kind, parts):
    """[(series, patch, whole files up to it, patches up to it)]; everything is in exactly one patch."""
    whole, patches = parts
    root = REPO / ("xen" if kind == "xen" else "")

    def name(path):
        """A backport belongs to the file that it changes."""
        rel = path.relative_to(root)
        return "/".join(rel.parts[2:] if rel.parts[0] == "backports" else rel.parts)

    ours = {rel: rel for rel in whole} | {name(path): path for path in patches}
    left_out = overlay.patterns(LAB / "series" / kind / "left-out")
    rest = {rel for rel in ours if not any(fnmatch.fnmatch(rel, p) for p in left_out)}
    steps, taken, kept_back = [], set(), []
    for series, folder in folders(kind):
        for text in sorted(folder.glob("*.msg")):
            patch, before = Patch(text), set(taken)
            brought = [entry for entry in kept_back if entry[0] in patch.brings]
            for pattern in patch.files:
                found = set(fnmatch.filter(rest, pattern))
                if again := found & taken:
                    raise Fail(f"{text.relative_to(REPO)}: {min(again)} is in an earlier patch")
                taken |= found | rest & {f"{rel}.patch" for rel in found}
                if found and not patch.subject:
                    patch.adopt(ours[min(found)])
            if taken - before or brought:
                kept_back = kept_back + patch.without
                patch.without = kept_back = [entry for entry in kept_back if entry not in brought]
                steps.append((series, patch, {rel: whole[rel] for rel in taken & set(whole)},
                              [path for path in patches if name(path) in taken]))
    if forgotten := rest - taken:
        raise Fail(f"lab/series/{kind}: {min(forgotten)} is in no patch of the series")
    if kept_back:
        raise Fail(f"lab/series/{kind}: no patch brings {kept_back[0][0]}")
    return steps


def git(folder, *args, **env):
    done = subprocess.run(["git", "-c", "core.autocrlf=false", "-c", "core.abbrev=12", "-c", "gc.auto=0",
                           "-c", "commit.gpgsign=false", *args], cwd=folder, capture_output=True, text=True,
                          env=clean_env(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1", **env))
    if done.returncode:
        raise Fail(f"git {args[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def author():
    name, mail, date = (output(["git", "-C", REPO, "log", "-1", "--format=%an%n%ae%n%aI"])
                        or "lab\nlab@localhost\n2026-01-01T00:00:00Z").splitlines()
    return {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", name), ("EMAIL", mail), ("DATE", date))}


def repository(folder, base, paths):
    """A git repository of the pristine files at `paths`."""
    folder.mkdir()
    for rel in paths:
        if (base / rel).is_file():
            (folder / rel).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(base / rel, folder / rel)
    git(folder, "init", "-q")
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-q", "--allow-empty", "-m", "base", **author())


def pristine(kind, lab):
    """The unchanged source: a folder, or an object that is used like one."""
    if kind == "xen":
        return Path(lab.xen_tree).resolve() if lab.xen_tree else fetch.xen()
    return Path(lab.linux_tree).resolve() if lab.linux_tree else PristineLinux(fetch.linux(lab.version))


class PristineLinux:
    """The fetched Linux as it was before our overlay: `tree / path` is the unchanged file."""

    def __init__(self, tree):
        self.tree = tree

    def __truediv__(self, rel):
        kept = self.tree.with_name(self.tree.name + ".orig") / rel
        return kept if kept.is_file() or rel in overlay.touched(self.tree) else self.tree / rel


def cover(path, text_file):
    """Put our text into git's cover letter."""
    subject, _, body = text_file.read_text().partition("\n\n")
    letter = path.read_text()
    letter = letter.replace("*** SUBJECT HERE ***", subject.removeprefix("Subject: ").strip())
    path.write_text(letter.replace("*** BLURB HERE ***", body.strip()))


def write(kind, lab):
    """Write the series to build/series; return [(its Patch, its file)] of the patches, in order."""
    parts = overlay.xen_parts() if kind == "xen" else overlay.linux_parts(lab.version)
    steps, base = plan(kind, parts), pristine(kind, lab)
    if not steps:
        raise Fail(f"lab/series/{kind} has no patch")
    who = author()
    sign = f"Signed-off-by: {who['GIT_AUTHOR_NAME']} <{who['GIT_AUTHOR_EMAIL']}>"
    written = []
    with tempfile.TemporaryDirectory(prefix="xen-iommu-") as tmp:
        repo = Path(tmp) / "repo"
        _, _, whole, patches = steps[-1]
        repository(repo, base, set(whole).union(*map(overlay.targets, patches)))
        for _, patch, whole, patches in steps:
            for rel, content in overlay.result(base, whole, patches).items():
                (repo / rel).parent.mkdir(parents=True, exist_ok=True)
                (repo / rel).write_bytes(patch.keep_back(rel, content))
                if rel in whole and os.access(whole[rel], os.X_OK):
                    (repo / rel).chmod(0o755)
            git(repo, "add", "-A", "-f")
            git(repo, "commit", "-q", "-m", f"{patch.subject}\n\n{patch.body.strip()}\n\n{sign}\n", **who)
        left = len(steps)
        shutil.rmtree(OUT / kind, ignore_errors=True)
        for name, folder in folders(kind):
            made = [patch for series, patch, *_ in steps if series == name]
            out = OUT / kind / name
            if not made:
                continue
            git(repo, "format-patch", "-q", "--no-signature", "--cover-letter", "-o", out,
                f"HEAD~{left}..HEAD~{left - len(made)}", **who)
            left -= len(made)
            letter, *files = sorted(out.glob("*.patch"))
            cover(letter.rename(letter.with_suffix(".txt")), folder / "cover")
            written += zip(made, files, strict=True)
    return written


def make(lab):
    for kind in ("xen", "linux"):
        write(kind, lab)
        for name, _ in folders(kind):
            if count := len(list((OUT / kind / name).glob("*.patch"))):
                say(f"{count} patches and a cover letter in {(OUT / kind / name).relative_to(REPO)}/")
    say(f"git am .../build/series/linux/*/*.patch takes them on Linux {lab.linux_tree or lab.version}, "
        f"git am .../build/series/xen/*/*.patch on {lab.xen_tree or 'Xen 4.20'}")
    return 0
