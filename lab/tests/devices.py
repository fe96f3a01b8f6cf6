# SPDX-License-Identifier: GPL-2.0
"""Devices that come and go: Xen is told before the IOMMU core, and each device gets a domain of its own."""
import json
import os
import shutil
import socket
import threading

from machines import CPU
from tests.boots import booted, fits
from util import LOGS, Fail

# The IOMMU that the user has requested.
IOMMU = os.environ.get("IOMMU") or "vtd"

GUEST = r"""
. /usr/lib/xen-iommu/lib.sh
set -eu
cd /sys/bus/pci/devices
translated() {
	[ "$(basename "$(readlink "$1/iommu")")" = xen-iommu ] || fail "$1 is not xen-iommu's"
	type=$(cat "$1/iommu_group/type")
	say "$1: group $(basename "$(readlink "$1/iommu_group")"), domain $type"
	[ "$type" = "$(dma_type)" ] || fail "domain $type, expected $(dma_type)"
}
wait_for() {
	n=0
	# shellcheck disable=SC2086 # a pattern, of what may not be there yet
	until ls -d $1 > /dev/null 2>&1; do
		n=$((n + 1))
		[ $n -lt 100 ] || fail "no $1"
		sleep 0.2
	done
}
disk=$(basename "$(readlink -f /sys/block/nvme*n1/device/device)")
free=$(attribute contexts_used)
for round in 1 2 3; do
	translated "$disk"
	echo 1 > "$disk/remove"
	[ ! -e "$disk" ] || fail "$disk is still there"
	[ "$(attribute contexts_used)" = $((free - 1)) ] || fail "its context is still in use"
	echo 1 > /sys/bus/pci/rescan
	wait_for "$disk/iommu_group"
done
translated "$disk"
wait_for '/dev/nvme*n1'
node=$(echo /dev/nvme*n1)
[ "$(dd if="$node" bs=1M 2> /dev/null | sha256sum | cut -d' ' -f1)" = "$LAB_DISK_SHA256" ] || fail "the disk's data is wrong"
[ "$(attribute contexts_lost)" = 0 ] || fail "contexts are lost"
"""


def hotplug(dom0, iommu=IOMMU, **kw):
    def case(lab):
        fits(dom0, iommu)
        booted(lab, f"hotplug-{dom0}-{iommu}", dom0=dom0, iommu=iommu, expect="translated", run=GUEST, **kw)
    return case


# A PCIe slot, operated natively, as on servers, not by the firmware's ACPI code.
SLOT = ("-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off "
        "-device pcie-root-port,id=port0,chassis=1,slot=1,addr=10")

# Two devices with the requester ID of one PCI bridge.
BRIDGE = ("-device pcie-pci-bridge,id=pci,addr=11 -device edu,dma_mask=0xffffffffffff,bus=pci,addr=1 "
          "-device edu,dma_mask=0xffffffffffff,bus=pci,addr=2")

BEHIND_BRIDGE = r"""
. /usr/lib/xen-iommu/lib.sh
set -eu
load_edu
# QEMU 7.2 does not pass on interrupts from behind a bridge.
dma() {
	printf dma > "$EDU/$1/run" || :
	cat "$EDU/$1/results" > /tmp/report
	[ "$(grep -cE '^ *ok .*(coherent|streaming|scatter_gather|is_blocked)' /tmp/report)" -ge 6 ] ||
		fail "$1: $(cat /tmp/report)"
	! grep '^ *not ok' /tmp/report | grep -v msi_arrives || fail "$1: its DMA does not work"
	say "$1: its DMA works"
}
at_bridge() { for dev in $(edu_devices); do case $dev in *:00:*) ;; *) echo "$dev" ;; esac; done; }
# shellcheck disable=SC2046 # two words
set -- $(at_bridge)
[ $# = 2 ] || fail "not two edus at the bridge: $*"
groups=$(for dev; do readlink "/sys/bus/pci/devices/$dev/iommu_group"; done | sort -u | wc -l)
[ "$groups" = 1 ] || fail "$groups groups for one requester ID"
dma "$1"
dma "$2"
echo 1 > "/sys/bus/pci/devices/$1/remove"
dma "$2"
echo 1 > /sys/bus/pci/rescan
[ -e "$EDU/$1/run" ] || fail "$1 is not back"
dma "$1"
dma "$2"
"""

IN_SLOT = r"""
. /usr/lib/xen-iommu/vfio-lib.sh
set -eu
port=0000:00:10.0
gone() { ! ls "$PCI/$port/pci_bus"/*/devices 2> /dev/null | grep -q . && [ -z "$(in_slot)" ]; }
in_slot() { ls "$PCI/$port" | grep -E '^[0-9a-f]{4}:' | grep -v pcie || [ $? = 1 ]; }
there() { [ -n "$(in_slot)" ] && [ -e "$PCI/$(in_slot)/iommu_group/type" ]; }
has_disk() { ls -d "$PCI/$dev"/nvme/nvme*/nvme*n1 > /dev/null 2>&1; }
right_data() {
	node=/dev/$(basename "$(ls -d "$PCI/$dev"/nvme/nvme*/nvme*n1)")
	[ "$(dd if="$node" bs=1M iflag=direct 2> /dev/null | sha256sum | cut -d' ' -f1)" = "$LAB_DISK_SHA256" ] ||
		fail "the data on $dev is wrong"
}
mark=$(xen-dmesg -e)
for round in 1 2 3; do
	echo LAB-PLUG > /dev/ttyS1
	wait_until "a device in the slot" there
	dev=$(in_slot)
	type=$(cat "$PCI/$dev/iommu_group/type")
	say "$dev: group $(basename "$(readlink "$PCI/$dev/iommu_group")"), domain $type"
	[ "$type" = "$(dma_type)" ] || fail "domain $type, expected $(dma_type)"
	wait_until "a disk of $dev" has_disk
	right_data
	if [ "$round" = 2 ]; then
		move "$dev" vfio-pci
		vfio-nvme iommufd "$dev" 100 16 > /tmp/report || broken "the disk in the slot under VFIO"
		move "$dev" nvme
		wait_until "a disk of $dev again" has_disk
		right_data
	fi
	echo LAB-PULL > /dev/ttyS1
	wait_until "an empty slot" gone
	say "$dev: pulled"
done
xen-dmesg "$mark" > /tmp/log
grep -E 'failed|left in|clobbers' /tmp/log && fail "Xen complains" || :
"""


class Operator(threading.Thread):
    """Plugs a disk into a machine's slot and removes it when the guest requests that on its channel."""

    def __init__(self, name):
        super().__init__(daemon=True)
        self.logs, self.stop, self.qemu, self.error = LOGS / "test" / name, threading.Event(), None, None

    def ask(self, command, **arguments):
        self.qemu.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.qemu.flush()
        while "return" not in (answer := json.loads(self.qemu.readline())):
            if "error" in answer:
                self.error = f"{command}: {answer['error']['desc']}"
                return

    def pull(self):
        self.ask("device_del", id="plugged")
        # The guest releases it before its slot is powered off, which is when QEMU removes it.
        while not self.error:
            message = json.loads(self.qemu.readline())
            if message.get("event") == "DEVICE_DELETED" and message["data"].get("device") == "plugged":
                break

    def plug(self, first):
        if first:
            shutil.copy(self.logs / "disk.img", self.logs / "plugged.img")
            self.ask("blockdev-add", driver="raw", **{"node-name": "plugged"},
                     file={"driver": "file", "filename": "plugged.img"})
        self.ask("device_add", driver="nvme", id="plugged", bus="port0", drive="plugged", serial="plugged")

    def operate(self):
        """Serve one QEMU, from its first request to its end; the boot may be retried."""
        with open(self.logs / "channel.log") as channel, socket.socket(socket.AF_UNIX) as monitor:
            line = ""
            while not self.stop.wait(0.2):
                line += channel.readline()
                if not line.endswith("\n"):
                    continue
                order, line = line.strip(), ""
                if order == "LAB-PLUG":
                    first = not self.qemu
                    if first:
                        monitor.connect(str(self.logs / "qmp.sock"))
                        self.qemu = monitor.makefile("rw")
                        self.ask("qmp_capabilities")
                    self.plug(first)
                elif order == "LAB-PULL":
                    self.pull()
                elif order.startswith("LAB-EXIT"):
                    break
        self.qemu = None

    def run(self):
        while not self.stop.wait(0.2):
            try:
                if (self.logs / "qmp.sock").exists():
                    self.operate()
            except (OSError, ValueError) as e:
                self.qemu = None
                self.error = str(e)


def slot(dom0, iommu=IOMMU, what="", **kw):
    """A disk is plugged into a PCIe slot, used, and removed, three times."""
    def case(lab):
        fits(dom0, iommu)
        name = f"{what}slot-{dom0}-{iommu}"
        shutil.rmtree(LOGS / "test" / name, ignore_errors=True)
        operator = Operator(name)
        operator.start()
        try:
            booted(lab, name, dom0=dom0, iommu=iommu, expect="translated", run=IN_SLOT, qemu_args=SLOT, **kw)
        except Fail as e:
            raise Fail(f"{e}\nthe slot's operator: {operator.error or 'no error'}") from e
        finally:
            operator.stop.set()
            operator.join()
            (operator.logs / "plugged.img").unlink(missing_ok=True)
    return case


def bridge(dom0, **kw):
    """One of two devices behind a PCI bridge goes and comes; the DMA of the other always works."""
    def case(lab):
        # On QEMU's AMD-Vi, Xen (Debian's as well) crashes when a device there enables MSI: alloc_intremap_entry().
        fits(dom0, "vtd")
        booted(lab, f"bridge-{dom0}-vtd", dom0=dom0, iommu="vtd", expect="translated", run=BEHIND_BRIDGE,
               qemu_args=BRIDGE, **kw)
    return case


# A second controller with a memory buffer. Linux permits peers behind the root complex only on AMD's newer CPUs.
PEER = ("-drive if=none,id=peer,driver=null-co,size=16M,read-zeroes=on -device nvme,drive=peer,serial=peer,cmb_size_mb=16 "
        "-cpu {},family=23")


def peer(dom0, iommu=IOMMU, **kw):
    """A disk's controller reads and writes another device's memory."""
    def case(lab):
        if dom0 != "bare":
            fits(dom0, iommu)
        booted(lab, f"peer-{dom0}-{iommu}", **({"xen": None} if dom0 == "bare" else {"dom0": dom0}), iommu=iommu,
               expect="translated", qemu_args=PEER.format(CPU[dom0, iommu]), env={"LAB_TESTS": "'groups disk-peer boot-log'"}, **kw)
    return case


PV_ARGS = {"dom0_args": "iommu.passthrough=0"}

CASES = {
    f"hotplug-pvh-{IOMMU}": hotplug("pvh"),
    f"hotplug-pv-{IOMMU}": hotplug("pv", **PV_ARGS),
    f"slot-pvh-{IOMMU}": slot("pvh"),
    f"slot-pv-{IOMMU}": slot("pv", **PV_ARGS),
    "bridge-pv-vtd": bridge("pv", **PV_ARGS),
    f"peer-pvh-{IOMMU}": peer("pvh"),
}

# Only by name or with T=all. Native Linux shows what to expect.
EXTRA = {
    f"peer-bare-{IOMMU}": peer("bare"),
    f"peer-pv-{IOMMU}": peer("pv", **PV_ARGS),
}
