# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
# Code that the tests share. Sourced by each of them, after "set -eu".

CLASS=/sys/class/iommu/xen-iommu
STATE=/sys/kernel/debug/iommu/xen
EDU=/sys/kernel/debug/xen_iommu_edu

say() {
	echo "    # $*"
}

fail() {
	say "FAILED: $*"
	exit 1
}

on_xen() {
	[ "$LAB_DOM0" != none ]
}

# Functions that can do DMA: all but the IOMMUs' own (class 0806).
pci_functions() {
	for dev in /sys/bus/pci/devices/*; do
		[ -e "$dev/class" ] || fail "no PCI devices"
		case $(cat "$dev/class") in
		0x0806*) ;;
		*) basename "$dev" ;;
		esac
	done
}

edu_devices() {
	for dev in /sys/bus/pci/devices/*; do
		if [ "$(cat "$dev/vendor"):$(cat "$dev/device")" = 0x1234:0x11e8 ]; then
			basename "$dev"
		fi
	done
}

load_edu() {
	if [ ! -d "$EDU" ]; then
		insmod /lib/xen-iommu/xen_iommu_edu.ko "dma_bits=$LAB_EDU_DMA_BITS"
	fi
	[ -n "$(edu_devices)" ] || fail "no edu device"
	for dev in $(edu_devices); do
		[ -e "$EDU/$dev/run" ] || fail "edu $dev has not been taken by its test module"
	done
}

# The log with faults: Xen's console since the mark, or the kernel's log on bare metal.
mark_faults() {
	fault_mark=0
	if on_xen; then
		fault_mark=$(xen-dmesg -e)
	fi
}

fault_log() {
	if on_xen; then
		xen-dmesg "$fault_mark"
	else
		dmesg
	fi
}

# Debian's QEMU never moves the tail of amd-iommu's event log; the one that the lab builds does, and sets LAB_AMD_EVENTS.
faults_are_told() {
	[ "$LAB_IOMMU" != amd ] || [ -n "${LAB_AMD_EVENTS:-}" ]
}

# Makes vfio-nvme wait until each fault is in the log, if faults are logged.
wait_for_faults() {
	unset FAULT_SEEN
	if on_xen && faults_are_told; then
		export FAULT_SEEN="/usr/lib/xen-iommu/fault-seen $fault_mark"
	fi
}

# fault_at LOG DEVICE ADDRESS read|write: true if the log has a fault of this DMA
fault_at() {
	page=$(printf %x $(($3 >> 12)))
	# VT-d reports the page, AMD-Vi the address; Linux and Xen have different formats.
	case $LAB_IOMMU,$4 in
	amd,*) pattern="IO_PAGE_FAULT.*$2.*addr(ess)?[ =](0x)?0*${page}[0-9a-f]{3}[^0-9a-f]" ;;
	*,read) pattern="DMA Read.*$2\] fault addr (0x)?0*${page}000" ;;
	*,write) pattern="DMA Write.*$2\] fault addr (0x)?0*${page}000" ;;
	esac
	case $2 in
	0000:*) grep -qE "$(echo "$pattern" | sed "s/$2/(0000:)?${2#0000:}/")" "$1" ;;
	*) grep -qE "$pattern" "$1" ;;
	esac
}

# results REPORT: show the KTAP of a suite, fail if a case failed
results() {
	cat "$1"
	! grep -q '^ *not ok' "$1" || fail "a case failed"
	grep -q '^ *ok' "$1" || fail "no results"
}

# run_edu DEVICE SUITE [COUNT]: the KTAP is in /tmp/report afterwards
run_edu() {
	edu_status=0
	mark_faults
	printf %s "$2 ${3:-}" > "$EDU/$1/run" || edu_status=1
	cat "$EDU/$1/results" > /tmp/report
	results /tmp/report
	[ "$edu_status" = 0 ] || fail "the suite did not finish on $1"
}

# check_faults DEVICE REPORT: all DMA that was blocked must be in the log of faults
check_faults() {
	fault_log > /tmp/faults
	blocked=0 missing=0
	# The loop reads a file, not a pipe: its counters must survive it.
	grep '# blocked ' "$2" > /tmp/blocked || [ $? = 1 ]
	while read -r _ _ direction address; do
		blocked=$((blocked + 1))
		if ! fault_at /tmp/faults "$1" "$address" "$direction"; then
			missing=$((missing + 1))
			echo "$direction $address" >> /tmp/missing
		fi
	done < /tmp/blocked
	[ "$blocked" != 0 ] || fail "no DMA was blocked"
	say "$blocked transfers blocked, $missing of them without a fault in the log"
	if ! faults_are_told && [ "$missing" = "$blocked" ]; then
		say "QEMU's AMD IOMMU does not hand out its events: memory alone has shown it"
	elif on_xen && [ "$missing" != 0 ]; then
		sed 's/^/    # no fault logged: /' /tmp/missing
		fail "faults missing in Xen's log"
	elif [ "$missing" = "$blocked" ]; then
		# Linux limits the rate of its messages, so only some must be there.
		fail "no faults in the kernel's log"
	fi
}

# attribute NAME: an attribute of the driver, from debugfs
attribute() {
	awk -v name="$1" '$1 == name { print $2; found = 1 } END { exit !found }' "$STATE"
}

# Puts what Xen prints about the contexts and their pool into /tmp/key.
xen_contexts() {
	mark=$(xen-dmesg -e)
	xen-dmesg -k o
	xen-dmesg "$mark" > /tmp/key
	grep -q 'PV-IOMMU: ' /tmp/key || fail "Xen does not print its pool"
}

# Prints the number of pages of Xen's pool that are in use.
tables_in_use() {
	xen_contexts
	awk '/PV-IOMMU: / { print $(NF - 2) - $(NF - 4) }' /tmp/key
}

# The type of the DMA API's domains, by the kernel's command line and Xen's capabilities.
dma_type() {
	strict=$(tr ' ' '\n' < /proc/cmdline | sed -n 's/^iommu\.strict=//p' | tail -n 1)
	# IOMMUCAP_deferred_unmap
	caps=$(dmesg | sed -n 's/.*xen-iommu: .*, capabilities \(0x[0-9a-f]*\),.*/\1/p')
	if [ "${strict:-0}" = 1 ] || { on_xen && [ $((${caps:-0} >> 17 & 1)) = 0 ]; }; then
		echo DMA
	else
		echo DMA-FQ
	fi
}

# For programs that make hypercalls themselves.
without_driver() {
	[ ! -d "$CLASS" ] || fail "the driver has the contexts: boot with xen_iommu.enable=0"
}

# hypercalls COMMAND...: run such a program, and exit with its KTAP and exit code
hypercalls() {
	status=0
	"$@" > /tmp/hypercall || status=$?
	sed 's/^/    /' /tmp/hypercall
	exit "$status"
}
