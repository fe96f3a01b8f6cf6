# SPDX-License-Identifier: GPL-2.0
"""make bench: boot the configurations, collect their counts, and write the results."""
import json
import re
import shlex

import build
import fetch
import qemu
from bench import plot, report, symbols
from bench.configurations import CONFIGURATIONS, FIO_OPS, PROFILED, QEMU_ARGS, XEN_ARGS
from boot import explain
from util import BUILD, LAB, LOGS, REPO, Fail, output, qemu_version, run, say

PROFILE = "profile-"
LINE = re.compile(r"^# bench (\S+) (.*)$", re.M)
END = re.compile(r"^# bench end$", re.M)


def parse(channel):
    """{loop: {field: value}} of the guest's lines."""
    return {name: {k: int(v) for k, v in (field.split("=") for field in fields.split())}
            for name, fields in LINE.findall(channel)}


def program(lab, name):
    """The QEMU of a configuration."""
    if CONFIGURATIONS[name.removeprefix(PROFILE)].get("guest_tables"):
        return qemu.guest_translation()
    return lab.settings.qemu


def measure(lab, name, what, more=()):
    """Boot a configuration; more: arguments for QEMU."""
    settings = dict(CONFIGURATIONS[name.removeprefix(PROFILE)])
    settings["qemu"] = program(lab, name)
    own_args = qemu.ARGS if settings.pop("guest_tables", False) else ""
    qemu_args = shlex.join([*shlex.split(QEMU_ARGS), *shlex.split(settings.pop("qemu_args", "")), *shlex.split(own_args),
                            *shlex.split(lab.settings.qemu_args), *more])
    xen_args = f"{XEN_ARGS} {settings.pop('xen_args', '')}".strip()
    dom0_args = f"{settings.pop('dom0_args')} {lab.settings.dom0_args}".strip()
    what = settings.pop("what", what)
    settings.setdefault("icount", True)
    say(f"measuring {name}: {what}")
    if what == "fio":
        unpacked = fetch.packages("fio", "fio, about 20 MB", "fio")
        settings["initrd_extra"] = str(build.programs_root("fio", unpacked, unpacked / "usr/bin/fio"))
    result = lab.boot(f"bench/{name}", xen_args=xen_args,
                      env={"LAB_BENCH": f"'{what}'", "LAB_BENCH_FIO": "'{} {}'".format(*FIO_OPS)},
                      run=". /usr/lib/xen-iommu/bench", qemu_args=qemu_args, dom0_args=dom0_args, **settings)
    if result.code or not END.search(result.channel):
        raise Fail("\n".join([f"{name}:", *explain(result), f"log: {result.logs.relative_to(REPO)}/"]))
    loops = parse(result.channel)
    if not loops:
        raise Fail(f"{name}: no results")
    return {"seconds": round(result.seconds), "dom0_args": dom0_args, "loops": loops,
            "versions": {**versions(settings["qemu"]), **seen(result.console)}}


def seen(console):
    """The versions that the machine itself reported."""
    found = {"linux": re.search(r"Linux version (\S+)", console),
             "xen": re.search(r"Xen version (\S+)", console)}
    return {key: match[1] for key, match in found.items() if match}


def profile(lab, name, what="kernel vfio nvme"):
    """Boot with a plugin that counts what runs between the guest's marks; return a table of functions for each loop."""
    plugin = BUILD / "obj/libprofile.so"
    run("QEMU plugin", [*build.COMPILER.split(), "-O2", "-shared", "-fPIC", "-fvisibility=hidden",
                        f"-DPLUGIN_API={3 if qemu_version(program(lab, name)) >= (9, 1) else 1}",
                        "-o", plugin, LAB / "bench/profile.c"],
        LOGS / "build/profile.log")
    result = measure(lab, name, what, ["-plugin", f"{plugin},out=profile"])
    linux = symbols.Symbols(lab.kernel.obj / "vmlinux")
    xen = symbols.Symbols(build.OBJ / "xen-release/xen-syms")
    # The guest marks each loop that it reports, in the same order, and warms up without a mark.
    sections = [loop for loop, entry in result["loops"].items() if entry.get("rounds")]
    found = {}
    for number, loop in enumerate(sections, 1):
        path, entry = LOGS / "bench" / name / f"profile.{number}", result["loops"][loop]
        counts = symbols.profile(path, linux, xen)
        entry["counted"] = sum(counts.values())
        entry["xen"] = sum(count for (part, _), count in counts.items() if part == "Xen")
        entry["exits"] = symbols.runs(path, xen, "svm_vmexit_handler")
        found[loop] = symbols.table(counts, entry["ops"] // entry["rounds"])
    return {**result, "profile": found}


def versions(qemu_program):
    """Versions that are the same for all machines."""
    return {
        "repository": (output(["git", "-C", REPO, "describe", "--always", "--dirty"]) or "unknown").strip(),
        "qemu": (output([qemu_program, "--version"]) or "unknown").splitlines()[0],
        "compiler": (output([*build.COMPILER.split(), "--version"]) or "unknown").splitlines()[0],
    }


def dump(results):
    """JSON with one loop per line, for readable diffs."""
    return re.sub(r"\{\n\s+([^{}]*?)\n\s+\}", lambda m: "{" + re.sub(r"\n\s+", " ", m[1]) + "}",
                  json.dumps(results, indent=1)) + "\n"


def write(results, place):
    """Write the data and the tables below a folder. Returns the tables."""
    folder, data, text = place / "bench", dump(results), report.report(results)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (place / "bench.json", folder / "results.json"):
        path.write_text(data)
    (folder / "RESULTS.md").write_text(text)
    return text


def bench(lab, chosen, what):
    """chosen: first parts of names of configurations, all if empty; what: parts of the guest's script.

    The results of other configurations are kept; each has its versions.
    """
    every = [*CONFIGURATIONS, *(f"{PROFILE}{name}" for name in PROFILED)]
    if unknown := [t for t in chosen if not any(name.startswith(t) for name in every)]:
        raise Fail(f"T={unknown[0]}: no such configuration; there are {' '.join(every)}")
    names = [n for n in every if not chosen or any(n.startswith(t) for t in chosen)]
    path = BUILD / "bench.json"
    results = {"configurations": {}, "profiles": {}}
    known = path if path.exists() else REPO / "bench/results.json"
    if chosen and known.exists():
        results = json.loads(known.read_text())
    failed = []
    for name in names:
        try:
            if name.startswith(PROFILE):
                results["profiles"][name] = profile(lab, name)
            elif name.startswith("fio-"):
                results["configurations"][name] = profile(lab, name, "fio")
            else:
                results["configurations"][name] = measure(lab, name, what)
        except Fail as failure:
            failed.append(name)
            say(str(failure))
        # After each configuration, so that an interrupted run leaves its results.
        text = write(results, BUILD)
        plot.draw(results, BUILD / "bench/results.svg")
        plot.draw(results, BUILD / "bench.png")
    print(text)
    say("results: build/bench.json, build/bench.png and build/bench/; to record them: cp build/bench/* bench/")
    if failed:
        say(f"FAILED: {' '.join(failed)}")
    return 1 if failed else 0
