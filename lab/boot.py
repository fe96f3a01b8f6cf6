# SPDX-License-Identifier: GPL-2.0
"""Boot a machine in QEMU, follow it, and judge it."""
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import build
import judge
import machines
from util import LOGS, Fail, clean_env, die_with_parent, kill_group, lock, qemu_version, say

OLDEST_QEMU = (7, 2)
POWER_OFF = 60          # seconds from the verdict to QEMU's end
SILENCE = 150           # seconds of silence before dom0's init
TRIES = 3               # boots, if one fails because of the emulator

# Console lines that show how far a boot has come.
MILESTONES = (
    (r"\(XEN\).*Xen version", "Xen has started"),
    (r"\(XEN\).*I/O virtualisation enabled", "Xen uses the IOMMU"),
    (r"Linux version", "dom0's kernel has started"),
    (r"Run /init as init", "dom0 runs its init"),
)
DEBIAN_MILESTONES = ((r"systemd\[1\]: ", "Debian's systemd has started"),)
# Lines of the guest's channel that are for the log only, and console lines from no program.
DULL = re.compile(r"LAB-|\s*KTAP version|\s*1\.\.\d|\s+# (blocked|no fault logged|refused) ")
KERNEL_LINE = re.compile(r"\s*$|\[ *\d+\.\d+\]|\(XEN\)")


@dataclass
class Settings:
    """The user's variables."""
    dom0: str = "pvh"
    root: str = "initramfs"
    iommu: str = "vtd"
    xen_args: str = ""
    dom0_args: str = ""
    initrd_extra: str = ""
    run: str | None = None
    qemu: str = "qemu-system-x86_64"
    qemu_args: str = ""
    icount: bool = False


@dataclass
class Boot:
    """One boot: what runs, and what dom0 is expected to find."""
    name: str
    kernel: Path
    initrd: Path
    xen: Path | None                    # None: bare Linux
    settings: Settings
    expect: str                         # translated, identity, none
    xen_args: str = ""
    disk: bool = True
    root: Path | None = None            # the Debian image
    initrd_debian: bytes = b""          # archive of what the image lacks
    cpus: int = 0                       # 0: the default of this kind of machine
    env: dict = field(default_factory=dict)
    timeout: int = 600


@dataclass
class Result:
    code: int
    reasons: list
    logs: Path
    channel: str
    console: str
    seconds: float


def check_qemu(qemu):
    version = qemu_version(qemu)
    if not version:
        raise Fail(f"QEMU={qemu} does not run")
    if version < OLDEST_QEMU:
        raise Fail("QEMU {}.{} is too old, {}.{} is needed: name another with QEMU=".format(*version, *OLDEST_QEMU))


def make_disk(path):
    data = os.urandom(machines.DISK_BYTES)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def command(b, shell):
    s = b.settings
    dom0 = s.dom0 if b.xen else "bare"
    linux = " ".join((machines.LINUX_ARGS_DOM0[dom0], machines.LINUX_ARGS,
                      machines.DEBIAN_LINUX_ARGS if b.root else "", s.dom0_args)).strip()
    memory = machines.DEBIAN_MEMORY if b.root else machines.MEMORY
    cmd = [s.qemu, *machines.COMMON, "-m", memory, "-cpu", machines.CPU[dom0, s.iommu],
           *machines.IOMMU[s.iommu], *machines.EDU]
    if b.disk:
        cmd += machines.DISK
    if b.root:
        cmd += [*machines.ROOT_DISK, *machines.NIC]
    cmd += ["-icount", "shift=0", "-smp", "1"] if s.icount else ["-smp", str(b.cpus or machines.CPUS[dom0])]
    if b.xen:
        xen = " ".join((machines.XEN_ARGS, machines.XEN_ARGS_DOM0[dom0], b.xen_args, s.xen_args)).strip()
        # QEMU separates modules by commas; a double comma is a literal one.
        cmd += ["-kernel", "xen", "-append", xen, "-initrd", f"bzImage {linux}".replace(",", ",,") + ",initrd.gz"]
    else:
        cmd += ["-kernel", "bzImage", "-append", linux, "-initrd", "initrd.gz"]
    if shell:
        cmd += ["-chardev", "stdio,id=console,mux=on,signal=off,logfile=console.log", "-serial", "chardev:console",
                "-mon", "chardev=console"]
    else:
        cmd += ["-serial", "file:console.log"]
    return cmd + ["-serial", "file:channel.log", "-qmp", "unix:qmp.sock,server=on,wait=off", *shlex.split(s.qemu_args)]


def only_one(name):
    """Run boots of the same name in a clone one after the other, since they share a log folder."""
    return lock(LOGS / ".locks" / name.replace("/", "-"), f"another boot {name} in this clone")


def prepare(b):
    """Put what QEMU needs into the boot's log folder."""
    logs = LOGS / b.name
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    for name, target in (("xen", b.xen), ("bzImage", b.kernel), ("root.img", b.root)):
        if target:
            (logs / name).symlink_to(target)
    env = {"LAB_DOM0": b.settings.dom0 if b.xen else "none", "LAB_IOMMU": b.settings.iommu,
           "LAB_EXPECT": b.expect, "LAB_ROOT": "debian" if b.root else "initramfs",
           **b.env}
    if b.disk:
        env.update(LAB_DISK_BYTES=machines.DISK_BYTES, LAB_DISK_SHA256=make_disk(logs / "disk.img"))
    for name in ("console.log", "channel.log"):
        (logs / name).touch()
    extra = build.initramfs_extra(env, b.settings.run, b.settings.initrd_extra, below="debian" if b.root else "")
    (logs / "initrd.gz").write_bytes(b.initrd.read_bytes() + b.initrd_debian + extra)
    return logs


def tidy(logs):
    for name in ("disk.img", "initrd.gz", "qmp.sock"):
        (logs / name).unlink(missing_ok=True)


class Follower:
    """Return the complete lines that were added to a file."""

    def __init__(self, path):
        self.file, self.rest = open(path, "rb"), b""

    def lines(self):
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]


def boot(b, show=False, shell=False):
    """Boot, wait and judge; retry if the emulator failed. show: print the guest's channel as it runs."""
    check_qemu(b.settings.qemu)
    with only_one(b.name):
        for attempt in range(1, TRIES + 1):
            result, fault = boot_once(b, show, shell)
            if not result.code or not fault or shell or attempt == TRIES:
                break
            say(f"QEMU's emulation has failed ({fault}): booting again")
            shutil.copy(result.logs / "console.log", LOGS / f"{b.name}.emulator-{attempt}.log")
        return result


def boot_once(b, show, shell):
    """Return (result, the emulator's fault or None)."""
    logs = prepare(b)
    timeout = b.timeout * (8 if b.settings.icount else 1)
    cmd = command(b, shell)
    (logs / "qemu.cmd").write_text(shlex.join(cmd) + "\n")
    began = time.monotonic()
    with open(logs / "qemu.log", "wb") as qemu_log:
        qemu = subprocess.Popen(cmd, cwd=logs, env=clean_env(TMPDIR=str(logs)), stdin=None if shell else subprocess.DEVNULL,
                                stdout=None if shell else qemu_log, stderr=None if shell else qemu_log,
                                start_new_session=not shell, preexec_fn=die_with_parent)
        try:
            ended = wait_shell(qemu) if shell else follow(
                qemu, logs, began, timeout, show, show_console=show and b.settings.run is not None, debian=b.root)
        finally:
            if shell:
                qemu.kill()
                qemu.wait()
            else:
                kill_group(qemu)
            tidy(logs)
    console = judge.text_of(logs / "console.log")
    channel = judge.text_of(logs / "channel.log")
    code, reasons = judge.judge(console, channel, ended)
    if code and b.expect != "none" and (declined := re.search(r"xen-iommu: .*no PV-IOMMU.*", console)):
        reasons.insert(0, f"this Xen has no PV-IOMMU ({declined[0]})")
    fault = judge.emulator_fault(console, ended) if b.xen else None
    return Result(code, reasons, logs, channel, console, time.monotonic() - began), fault


def wait_shell(qemu):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    qemu.wait()
    return "off"


def follow(qemu, logs, began, timeout, show, show_console, debian):
    """Wait until QEMU ends, and return how it ended."""
    console, channel = Follower(logs / "console.log"), Follower(logs / "channel.log")
    milestones = [*MILESTONES, *(DEBIAN_MILESTONES if debian else ())]
    deadline = began + timeout
    heard, started = began, False
    while True:
        code = qemu.poll()
        for line in console.lines():
            heard, started = time.monotonic(), started or "Run /init as init" in line
            if show_console and not milestones and not KERNEL_LINE.match(line) and not line.startswith("LAB-"):
                print(f"         {line}", flush=True)
            for milestone in [m for m in milestones if re.search(m[0], line)]:
                milestones.remove(milestone)
                if show:
                    say(milestone[1])
        for line in channel.lines():
            if judge.VERDICT.match(line):
                deadline = min(deadline, time.monotonic() + POWER_OFF)
            elif show and not DULL.match(line):
                print(f"         {line}", flush=True)
        if code is not None:
            if code == 0:
                return "off"
            said = (logs / "qemu.log").read_text(errors="replace").strip().splitlines()
            return f"QEMU ended with {code}: {said[-1] if said else 'no message'}"
        if time.monotonic() > deadline:
            return "time"
        if not started and time.monotonic() > heard + SILENCE * (timeout / Boot.timeout):
            return "silence"
        time.sleep(0.2)


def explain(result):
    """The lines that explain a failed boot to the user."""
    lines = list(result.reasons)
    if failed := judge.NOT_OK.search(result.channel):
        lines += [f"  {line}" for line in judge.last_lines(result.channel[:failed.start()], 40)]
    if not judge.VERDICT.search(result.channel):
        lines += [f"  console: {line}" for line in judge.last_lines(result.console)]
    return lines
