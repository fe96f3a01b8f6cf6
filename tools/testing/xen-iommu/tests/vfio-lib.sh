# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
# Code that the VFIO tests share. Sourced by each of them, after "set -eu".

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

# find_id VENDOR:DEVICE: the first function with these IDs
find_id() {
	for dev in "$PCI"/*; do
		if [ "$(cat "$dev/vendor"):$(cat "$dev/device")" = "$1" ]; then
			basename "$dev"
			return
		fi
	done
	fail "no device $1" >&2
}

# move DEVICE DRIVER: give the device to the driver
move() {
	echo "$2" > "$PCI/$1/driver_override"
	tries=0
	# After a rescan, another driver may still be probing.
	while :; do
		if [ -e "$PCI/$1/driver" ]; then
			echo "$1" > "$PCI/$1/driver/unbind"
		fi
		echo "$1" > /sys/bus/pci/drivers_probe
		[ "$(basename "$(readlink "$PCI/$1/driver")")" != "$2" ] || break
		tries=$((tries + 1))
		[ $tries -lt 50 ] || fail "$2 has not taken $1"
		sleep 0.2
	done
}

# wait_until WHAT COMMAND...: wait without a limit; the lab ends what hangs
wait_until() {
	what=$1 rounds=0
	shift
	until "$@"; do
		rounds=$((rounds + 1))
		[ "$rounds" != 100 ] || say "still waiting: $what"
		sleep 0.2
	done
}

# Counts, by the driver and by Xen, that programs must leave unchanged. They do not include
# contexts that Xen shows empty and without devices, which the driver keeps for reuse. And
# Xen keeps some empty tables with a context, and some until the next flush, which are free.
# But each page of the pool must be free or belong to a context.
holdings() {
	if [ ! -d "$CLASS" ]; then
		echo "no xen-iommu" > /tmp/holdings
		return
	fi
	lost=$(attribute contexts_lost)
	[ "$lost" = 0 ] || fail "$lost contexts lost"
	xen_contexts
	awk -v used="$(attribute contexts_used)" '
		# value of the number before that word
		function before(word,	i, text) {
			for (i = 2; i <= NF; i++) {
				if ($i !~ "^" word)
					continue
				text = $(i - 1)
				sub(/^\(/, "", text)
				return text
			}
		}
		/PV-IOMMU: / { astray = $(NF - 2) - $(NF - 4) }
		/: identity, / { contexts++ }
		/ tag .* tables,/ {
			astray -= before("tables")
			if (before("devices") + before("frames"))
				contexts++
			if (before("frames") + 0) {
				frames += before("frames")
				pages += before("tables")
			}
		}
		END {
			printf "%d contexts (Xen: %d), %d frames mapped by %d tables, %d pages astray\n",
			       used, contexts, frames, pages, astray
		}' /tmp/key > /tmp/holdings
}

# Everything used since then must have been released.
begin_count() {
	holdings
	before=$(cat /tmp/holdings)
	say "before: $before"
}

end_count() {
	holdings
	after=$(cat /tmp/holdings)
	say "after: $after"
	[ "$before" = "$after" ] || fail "something leaked"
	case $after in
	*" 0 pages astray" | "no xen-iommu") ;;
	*) fail "pages of the pool are neither free nor in a context" ;;
	esac
}

# start_reader BACKEND: start a program that makes the disk $dev do endless DMA; its process is $reader
start_reader() {
	# Emptied here, or the next check could see the old content.
	: > /tmp/reading
	vfio-nvme "$1" "$dev" read >> /tmp/reading &
	reader=$!
	wait_until "$1: the reader begins" reader_said
	grep -q reading /tmp/reading || fail "$1: the reader did not start: $(cat /tmp/reading)"
}

# True if it reads, or has ended.
reader_said() {
	grep -q reading /tmp/reading || ! kill -0 "$reader" 2> /dev/null
}

kill_reader() {
	kill -9 "$reader"
	wait "$reader" && fail "the reader ended by itself"
	say "program killed while it used the device"
}

told() {
	dmesg | grep -c 'blocked until released by user' || [ $? = 1 ]
}

# True if the kernel has logged that it waits, or did not wait, or if the program has ended.
told_again() {
	[ "$(told)" != "$told_before" ] || ! kill -0 "$writer" 2> /dev/null || ! kill -0 "$reader" 2> /dev/null
}

# write_blocks FILE TEXT: writing TEXT to FILE removes a device that $reader uses. The kernel
# waits for that process, which is then killed.
write_blocks() {
	told_before=$(told)
	echo "$2" > "$1" &
	writer=$!
	wait_until "$1" told_again
	[ "$(told)" != "$told_before" ] || fail "$1: does not wait for the program"
	kill -0 "$reader" || fail "$1: the program has died"
	kill_reader
	wait "$writer" || fail "$1: failed"
}

# start_holder BACKEND DEVICE: start a program that holds the device; its process is $reader
start_holder() {
	: > /tmp/reading
	vfio-hold "$1" "$2" >> /tmp/reading &
	reader=$!
	wait_until "$1: the program holds $2" holder_said
	grep -q holding /tmp/reading || fail "$1: the program does not hold $2: $(cat /tmp/reading)"
}

holder_said() {
	grep -q holding /tmp/reading || ! kill -0 "$reader" 2> /dev/null
}

# The kernel's driver takes the disk back and reads it.
back_to_kernel() {
	move "$dev" nvme
	wait_until "/dev/nvme0n1" test -b /dev/nvme0n1
	/usr/lib/xen-iommu/disk-read
}

# broken WHY: fail, and show the report
broken() {
	sed 's/^/    # /' /tmp/report
	fail "$1"
}
