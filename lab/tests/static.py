# SPDX-License-Identifier: GPL-2.0
"""Static checks of our Linux files: checkpatch, sparse and the compiler's extra warnings."""
import re
import shutil
import subprocess

import build
import overlay
from util import LOGS, REPO, Fail, clean_env

# Debian's sparse, 0.6.4, lacks this operator, which Linux 7.3 uses; __typeof__ serves as well. It does not see that guard()
# releases a lock. Linux 7.3 has no annotations of locks for sparse any more, but 6.12 does.
SPARSE = "sparse -Wno-context -D__typeof_unqual__=__typeof__"
# Accepted findings of checkpatch: (path, type, why).
ACCEPTED = (
    (r"include/xen/interface/", "PREFER_KERNEL_TYPES|LINE_SPACING", "the style of the headers that are shared with Xen"),
    (r"drivers/iommu/tests/", "ENOSYS", "a hypervisor's result for an unknown hypercall"),
    (r"tools/testing/kunit/configs/", "EMBEDDED_FILENAME", "the comment says how the file is used"),
    (r"tools/testing/", "MACRO_WITH_FLOW_CONTROL", "a test's macros may return from the case: that is what they are for"),
    (r"tools/testing/", "BIT_MACRO|CAMELCASE|EMBEDDED_FUNCTION_NAME|MEMORY_BARRIER|CONST_STRUCT|PREFER_DEFINED_ATTRIBUTE_MACRO",
     "for the kernel, not for programs"),
    (r"tools/testing/xen-iommu/vfio/include/", "NEW_TYPEDEFS", "replaces a library that has these names"),
    (r"tools/testing/xen-iommu/vfio/include/", "AVOID_EXTERNS", "no header declares the linker's names for --wrap"),
    (r"tools/testing/xen-iommu/hypercall/", ".*", "in Xen's style"),
)


def finding(log, text):
    lines = [line for line in text.splitlines() if line.strip()]
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    if lines:
        raise Fail("\n".join(lines[:20] + ["..."] * (len(lines) > 20) + [f"log: {log.relative_to(REPO)}"]))


def checkpatch(lab):
    src = lab.linux_source
    whole, patches = overlay.linux_parts(lab.version)
    common = ["perl", "scripts/checkpatch.pl", "--strict", "--terse", "--no-summary", "--show-types"]
    files = [rel for rel in whole if rel.endswith((".c", ".h", ".rst", "Makefile", "Kbuild"))]
    runs = [[*common, "-f", *files]]
    # The patches' descriptions are checked with the series.
    runs += [[*common, "--no-signoff", "--ignore", "COMMIT_MESSAGE,FILE_PATH_CHANGES", patch] for patch in patches]
    text = ""
    for cmd in runs:
        done = subprocess.run(cmd, cwd=src, env=clean_env(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        text += done.stdout + done.stderr
        if done.returncode and not done.stdout + done.stderr:
            raise Fail(f"checkpatch failed with {done.returncode}")
    finding(LOGS / "test/checkpatch.log", "\n".join(line for line in text.splitlines() if not accepted(line)))


def accepted(line):
    return any(re.search(rf"{path}.*: \w+:(?:{kind}): ", line) for path, kind, _ in ACCEPTED)


def compiler_and_sparse(lab):
    """W=1 and C=2, also without what Debian leaves out, in an object folder that the kernel to boot does not use."""
    ours = [rel for rel in overlay.linux_parts(lab.version)[0] if rel.startswith(("drivers/", "arch/", "include/"))]
    objects = [rel[:-2] + ".o" for rel in ours if rel.endswith(".c")]
    flags = ["W=1", "C=2", f"CHECK={SPARSE}", "CF=-fmax-errors=unlimited -fmax-warnings=unlimited"]
    text = guest_modules(lab, flags)
    for name, fragments in (("all", ()), ("less", ("less.config",))):
        log = LOGS / f"test/sparse-w1-{name}.build.log"
        with build.lock():
            kernel = build.Kernel(lab.linux_source, "check", ("dom0.config", "check.config", *fragments))
            kernel.configure()
            kernel.make("preparing the checks", "prepare")
            for rel in objects:
                (kernel.obj / rel).unlink(missing_ok=True)
            kernel.make("W=1 C=2", *flags, *objects, log=log)
        report = log.read_text(errors="replace")
        for rel in objects:
            if not re.search(rf"  CHECK\s+\S*{re.escape(rel[:-2])}\.c", report):
                raise Fail(f"sparse did not look at {rel[:-2]}.c; log: {log.relative_to(REPO)}")
        text += report
    bad = [line for line in text.splitlines() if re.search(r": (warning|error):", line)
           and (any(rel in line for rel in ours) or "guest-modules/" in line) and not sparse_cannot(kernel.src, line)]
    finding(LOGS / "test/sparse-w1.log", "\n".join(bad))


def guest_modules(lab, flags):
    """Reports of the compiler and sparse for the test modules that dom0 loads."""
    source, log = REPO / "tools/testing/xen-iommu/modules", LOGS / "test/guest-modules.build.log"
    copy = build.OBJ / "guest-modules"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    lab.kernel.make("W=1 C=2 of the guest's modules", f"M={copy}", *flags, "modules", log=log)
    return log.read_text(errors="replace")


def sparse_cannot(src, line):
    """MODULE_INFO() asserts on __builtin_strlen(), which sparse 0.6.4 cannot compute: any driver shows that."""
    found = re.match(r"([^:]+):(\d+):.*bad constant expression$", line)
    return found and re.match(r"(module_|MODULE_)\w+\(", (src / found[1]).read_text().splitlines()[int(found[2]) - 1])


CASES = {"checkpatch": checkpatch, "sparse-w1": compiler_and_sparse}
