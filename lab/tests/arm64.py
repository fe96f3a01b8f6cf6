# SPDX-License-Identifier: GPL-2.0
"""arm64: the driver compiles, and stays inactive on a Xen without the hypercall; no other Xen for arm64 exists yet."""
import subprocess

import build
import fetch
import judge
from initramfs import newc_tree
from util import LOGS, REPO, Fail, Progress, clean_env, die_with_parent, kill_group, run, say, write_if_changed

CROSS = "aarch64-linux-gnu-"
LOG = LOGS / "test/arm64"
KERNEL_AT, INITRD_AT = "0x49000000", "0x4f000000"
TIMEOUT = 300


def kernel(src):
    obj = build.OBJ / f"{src.name}-arm64"
    obj.mkdir(parents=True, exist_ok=True)
    args = [f"O={obj}", "ARCH=arm64", f"CROSS_COMPILE={CROSS}", f"CC=ccache {CROSS}gcc", f"HOSTCC={build.COMPILER}"]
    fragment = obj / "lab.config"
    if build.write_config(fragment, "arm64.config") or not (obj / ".config").exists():
        build.make("arm64 configuration", LOG / "config.log", src, *args, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig")
    if "CONFIG_XEN_IOMMU=y" not in (obj / ".config").read_text():
        raise Fail(f"CONFIG_XEN_IOMMU cannot be set for arm64; log: {LOG}/config.log")
    say("building Linux for arm64")
    build.make("arm64 kernel", LOG / "build.log", src, *args, "Image", progress=Progress("arm64 kernel"))
    return obj / "arch/arm64/boot/Image"


def initrd():
    root = build.OBJ / "root-arm64"
    root.mkdir(parents=True, exist_ok=True)
    for folder in ("dev", "proc", "sys"):
        (root / folder).mkdir(exist_ok=True)
    run("arm64 init", [f"{CROSS}gcc", "-O2", "-Wall", "-Werror", "-static", "-o", root / "init",
                       REPO / "tools/testing/xen-iommu/arm64/init.c"], LOG / "init.log")
    image = build.OBJ / "initrd-arm64.cpio"
    write_if_changed(image, newc_tree(root))
    return image


def arm64(lab):
    LOG.mkdir(parents=True, exist_ok=True)
    with build.lock():
        xen, linux, root = fetch.xen_arm64(), kernel(lab.linux_source), initrd()
    console = LOG / "console.log"
    cmd = ["qemu-system-aarch64", "-M", "virt,virtualization=on,gic-version=2", "-cpu", "cortex-a57", "-m", "1536",
           "-smp", "1", "-display", "none", "-no-reboot", "-net", "none", "-serial", f"file:{console}", "-monitor", "none",
           "-kernel", xen, "-append", "console=dtuart dom0_mem=768M sync_console noreboot",
           "-device", f'guest-loader,addr={KERNEL_AT},kernel={linux},bootargs=console=hvc0 rdinit=/init panic=1',
           "-device", f"guest-loader,addr={INITRD_AT},initrd={root}"]
    with open(LOG / "qemu.log", "wb") as out:
        qemu = subprocess.Popen([str(c) for c in cmd], env=clean_env(), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                start_new_session=True, preexec_fn=die_with_parent)
        try:
            qemu.wait(TIMEOUT)
            ended = "off" if qemu.returncode == 0 else f"QEMU ended with {qemu.returncode}"
        except subprocess.TimeoutExpired:
            ended = "time"
        finally:
            kill_group(qemu)
    text = judge.text_of(console)
    # There is only one serial port, so the verdict is on the console.
    code, reasons = judge.judge(text, text, ended)
    if code:
        raise Fail("\n".join([*reasons, *judge.last_lines(text), f"log: {console.relative_to(REPO)}"]))


CASES = {}
# This builds another kernel, so it runs only by name or with T=all.
EXTRA = {"stand-back-arm64": arm64}
