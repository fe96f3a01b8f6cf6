# SPDX-License-Identifier: GPL-2.0
"""The driver's KUnit suite on its software hypervisor, as the kernel's kunit.py runs it (User-mode Linux)."""
import re

import build
from lab import Skip
from util import BUILD, CPUS, LOGS, REPO, Fail, clean_env, run


def kunit(lab):
    if not (REPO / "drivers/iommu/tests/.kunitconfig").exists():
        raise Skip("there is no suite")
    log = LOGS / "test/kunit.log"
    with build.lock():
        run("KUnit", ["python3", "tools/testing/kunit/kunit.py", "run", "--kunitconfig=drivers/iommu/tests",
                      f"--build_dir={build.OBJ / 'kunit-um'}", f"--jobs={CPUS}", f"--make_options=CC={build.COMPILER}"],
            log, cwd=lab.linux_source, env=clean_env(**build.ENV))
    done = re.findall(r"Ran (\d+) tests: passed: (\d+)", log.read_text(errors="replace"))
    if not done or not int(done[-1][1]):
        raise Fail(f"no test ran; log: {log.relative_to(REPO)}")


CASES = {}
# Not yet seen to its end through the lab: only by name.
EXTRA = {"kunit": kunit}
