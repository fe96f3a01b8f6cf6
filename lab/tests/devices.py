# SPDX-License-Identifier: GPL-2.0
"""Devices that come and go: Xen is told before the IOMMU core is, and the driver gets them in a domain of their own."""
import os

from tests.boots import booted, fits

# The IOMMU that the user has asked for.
IOMMU = os.environ.get("IOMMU") or "vtd"

GUEST = r"""
. /usr/lib/xen-iommu/lib.sh
set -eu
cd /sys/bus/pci/devices
translated() {
	[ "$(basename "$(readlink "$1/iommu")")" = xen-iommu ] || fail "$1 is not xen-iommu's"
	type=$(cat "$1/iommu_group/type")
	say "$1: group $(basename "$(readlink "$1/iommu_group")"), domain $type"
	[ "$type" = DMA ] || fail "domain $type"
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


def hotplug(dom0, **kw):
    def case(lab):
        fits(dom0, IOMMU)
        booted(lab, f"hotplug-{dom0}-{IOMMU}", dom0=dom0, iommu=IOMMU, expect="translated", run=GUEST, **kw)
    return case


CASES = {
    f"hotplug-pvh-{IOMMU}": hotplug("pvh"),
    f"hotplug-pv-{IOMMU}": hotplug("pv", dom0_args="iommu.passthrough=0"),
}
