# SPDX-License-Identifier: GPL-2.0
"""Judge a boot by the guest's verdict channel and by what Linux and Xen wrote on the console."""
import re

# Reports from Linux or Xen that fail a boot, whatever the verdict.
BAD = re.compile("|".join((
    r"\bWARNING: ",
    r"\bBUG: ",
    r"\bkernel BUG at\b",
    r"\bOops\b",
    r"Kernel panic",
    r"\[ cut here \]",
    r"\bCall Trace:",
    r"\bKASAN: |\bKCSAN: |\bKMSAN: |\bUBSAN: |\bkmemleak: [1-9]",
    r"\bINFO: (possible|suspicious|inconsistent|rcu|task|trying)",
    r"\brcu: INFO:",
    r"possible (circular|recursive|irq lock|deadlock)",
    r"general protection fault|unable to handle|double fault|stack guard page",
    r"\brefcount_t: |\blist_(add|del) corruption|\bDMA-API: ",
    r"Out of memory: |invoked oom-killer",
    r"\(XEN\).*(Assertion '|BUG at |WARN at |Xen call trace|Panic on CPU|FATAL|UBSAN)",
    r"\(XEN\).*(Hardware Dom0 (crashed|shutdown: (?!halt|poweroff|rebooting))|[Dd]omain \d+ .*crashed|domain_crash)",
    r"\(XEN\).*(Pagetable walk from|Early fatal|Watchdog timer fired)",
)))

# Console output that looks bad but is known not to be our fault: (expression, why). Removed before judging.
EXCEPTIONS = (
    (r"\(XEN\) WARNING: CONSOLE OUTPUT IS SYNCHRONOUS", "the lab asks for sync_console"),
    (r"unchecked MSR access error: RDMSR from 0xc0010055 .*\n(?:\(XEN\).*\n)*.*Call Trace:\n(?:.*\n){0,12}?.*</TASK>",
     "Linux looks for an AMD erratum in an MSR that Xen hides from a PV domain; the same without our work"),
    (r"-+\[ cut here \]-+\nWARNING: \S*arch/um/drivers/virtio_pcidev\.c:(?:.*\n)*?-+\[ end trace .*\n",
     "User-mode Linux has PCI, but no PCI device; before the tests begin"),
)

# Bugs of QEMU's SVM emulation that kill a PVH dom0: states that no processor or software could cause, or that occur
# before any of our code runs. (expression, what it shows)
EMULATION = (
    (r"\(XEN\) RIP: +e008:\S+\n\(XEN\) RFLAGS: \S+ +CONTEXT: hvm guest", "the guest's registers are Xen's own"),
    (r"RIP: 0010:asm_sysvec_xen_hvm_callback\+0x0/.*\n.*\n.* EFLAGS: 000000[0-9a-f][0-9a-f]\s",
     "an interrupt at the first instruction of an interrupt gate"),
)
# Printed by dom0 once the driver is at work, or once its user space starts. A driver that finds no PV-IOMMU does nothing.
OURS_BEGINS = re.compile(r"xen-iommu: (?!Xen offers no PV-IOMMU)|Run /init as init")

VERDICT = re.compile(r"^LAB-EXIT (\d+)\s*$", re.M)
WANTED = re.compile(r"^LAB-CONSOLE (.+?)\s*$", re.M)
NOT_OK = re.compile(r"^\s*not ok\b(?!.*# (?:SKIP|TODO)).*$", re.M)


def text_of(path):
    """A log's text, without the carriage returns that both consoles add."""
    return path.read_bytes().decode(errors="replace").replace("\r", "")


def reports(console):
    """Lines of the console that fail a boot."""
    for known, _ in EXCEPTIONS:
        console = re.sub(known, "", console)
    return [line.strip() for line in console.splitlines() if BAD.search(line)]


def emulator_fault(console, ended):
    """The emulator's fault, or None."""
    for sign, what in EMULATION:
        if re.search(sign, console):
            return what
    if ended == "silence" and not OURS_BEGINS.search(console):
        return "dom0's kernel stopped, without the driver at work"
    return None


def last_lines(console, count=5):
    return [line.strip() for line in console.splitlines() if line.strip()][-count:]


def only_exit_code(reasons):
    """True if nothing failed but the command that dom0 ran."""
    return len(reasons) == 1 and reasons[0].startswith("the guest's exit code is ")


def judge(console, channel, ended):
    """(exit code, [reasons]): 0 and no reason only for a good boot.

    channel: what the guest wrote to the verdict channel; ended: how QEMU ended: "off" (the guest powered
    off), "time" (killed after the time-out), "silence" (killed since the console was silent at boot),
    or a text that describes how QEMU failed.
    """
    reasons = []
    verdict = VERDICT.findall(channel)
    code = int(verdict[-1]) if verdict else 1
    if bad := reports(console):
        reasons.append(f"the console has {len(bad)} report{'s' * (len(bad) > 1)}: {bad[0]}")
    if not verdict:
        reasons.append({"off": "the guest ended without a verdict (died or was reset)",
                        "silence": "the guest hung: the console has been silent while dom0's kernel started",
                        "time": "the guest hung: time-out without a verdict"}.get(ended, ended))
    else:
        failed = [line.strip() for line in NOT_OK.findall(channel)]
        if code:
            what = f": {failed[0]}" + (f" and {len(failed) - 1} more" if failed[1:] else "") if failed else ""
            reasons.append(f"the guest's exit code is {code}{what}")
        elif failed:
            reasons.append(f"the guest says success, but: {failed[0]}")
        if ended == "time":
            reasons.append("the guest gave its verdict but did not power off")
        elif ended != "off":
            reasons.append(ended)
        for wanted in WANTED.findall(channel):
            if not re.search(wanted, console):
                reasons.append(f"the console lacks what must be there: {wanted}")
    return (code or 1) if reasons else 0, reasons
