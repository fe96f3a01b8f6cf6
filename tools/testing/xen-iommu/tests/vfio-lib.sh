# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
# What the tests of VFIO share. Read in by each of them, after "set -eu".

. /usr/lib/xen-iommu/lib.sh

PCI=/sys/bus/pci/devices

# find_class CLASS: the first function of that class
find_class() {
	for dev in "$PCI"/*; do
		if [ "$(cat "$dev/class")" = "$1" ]; then
			basename "$dev"
			return
		fi
	done
	fail "no device of class $1" >&2
}

# find_id VENDOR:DEVICE: the first function with these
find_id() {
	for dev in "$PCI"/*; do
		if [ "$(cat "$dev/vendor"):$(cat "$dev/device")" = "$1" ]; then
			basename "$dev"
			return
		fi
	done
	fail "no device $1" >&2
}

# move DEVICE DRIVER: give the device to it
move() {
	if [ -e "$PCI/$1/driver" ]; then
		echo "$1" > "$PCI/$1/driver/unbind"
	fi
	echo "$2" > "$PCI/$1/driver_override"
	echo "$1" > /sys/bus/pci/drivers_probe
	[ "$(basename "$(readlink "$PCI/$1/driver")")" = "$2" ] || fail "$2 has not taken $1"
}

contexts() {
	if [ -d "$CLASS" ]; then
		attribute contexts_used
	fi
}

# start_reader BACKEND: a program that has the disk $dev do DMA without end; its process is $reader
start_reader() {
	vfio-nvme "$1" "$dev" read > /tmp/reading &
	reader=$!
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		! grep -q reading /tmp/reading || break
		sleep 1
	done
	grep -q reading /tmp/reading || fail "$1: the reader did not get going"
}

kill_reader() {
	kill -9 "$reader"
	wait "$reader" && fail "the reader ended by itself"
	say "reader killed in the middle of DMA"
}

wait_for_disk() {
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		[ ! -b /dev/nvme0n1 ] || break
		sleep 1
	done
}

# broken WHY: fail, and show the report
broken() {
	sed 's/^/    # /' /tmp/report
	fail "$1"
}
