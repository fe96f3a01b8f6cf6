# SPDX-License-Identifier: GPL-2.0
"""Xen's side on the host: the real sources under the sanitizers, with random calls."""
import re

import build
from util import LOGS, REPO, Fail, clean_env, run


def host_test(lab):
    log = LOGS / "test/xen-host.log"
    with build.lock():
        folder = build.xen_source(lab.xen_tree) / "tools/tests/pv-iommu"
        run("host test of Xen's side", ["make", "-C", folder, "HOSTCC=gcc", "clean", "run"], log, env=clean_env())
    text = log.read_text(errors="replace")
    if not re.search(r"^ok ", text, re.M) or re.search(r"^not ok", text, re.M):
        raise Fail(f"no test passed, or one failed; log: {log.relative_to(REPO)}")


CASES = {"xen-host": host_test}
