# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
# Code that the tests with guests share. Sourced by each of them, after "set -eu".

. /usr/lib/xen-iommu/lib.sh

HERE=/usr/lib/xen-iommu/debian
GUESTS=/run/guests
ECHO=10.0.2.100
# Seconds for which a guest may print nothing, or take to go, under emulation.
PATIENCE=600

# Where xenconsoled writes what guests print; without those of earlier tests.
CONSOLES=/var/log/xen/console
rm -f "$CONSOLES"/guest-*.log

# guest_kind NUMBER: PV and PVH guests in turn, if dom0 can have both
guest_kind() {
	if [ $(($1 % 2)) = 1 ] || ! xl info virt_caps | grep -qw hap; then
		echo pv
	else
		echo pvh
	fi
}

# Guests run Debian's unmodified kernel; their root has busybox and that kernel's drivers.
guest_base() {
	[ ! -e "$GUESTS/base.cpio" ] || return 0
	mkdir -p "$GUESTS/root/bin" "$GUESTS/root/sbin" "$GUESTS/root/usr/bin" "$GUESTS/root/usr/sbin" "$GUESTS/root/proc" \
		"$GUESTS/root/sys" "$GUESTS/root/dev" "$GUESTS/root/tmp" "$GUESTS/root/modules"
	kernel=$(echo /boot/vmlinuz-*-cloud-amd64)
	[ -e "$kernel" ] || fail "no kernel for guests in the image"
	version=${kernel#/boot/vmlinuz-}
	cp "$kernel" "$GUESTS/vmlinuz"
	number=0
	for module in block/xen-blkfront net/xen-netfront xen/xen-gntalloc pci/xen-pcifront; do
		number=$((number + 1))
		busybox unxz -c "/lib/modules/$version/kernel/drivers/$module.ko.xz" \
			> "$GUESTS/root/modules/$number-$(basename $module).ko"
	done
	cp /bin/busybox /usr/bin/guest-grants "$GUESTS/root/bin/"
	cp $HERE/guest-init "$GUESTS/root/init"
	archive "$GUESTS/root" > "$GUESTS/base.cpio"
}

# Beginning of the script of a guest that does I/O: network, MIB [1] of data in /tmp/data, and functions to transfer it.
# shellcheck disable=SC2016 # for the guest's shell
IO='
ip address add 10.0.2.$ADDRESS/24 dev eth0
ip link set eth0 up
dd if=/dev/urandom of=/tmp/data bs=1M count=${MIB:-1} 2> /dev/null
use_net() {
	nc $ECHO 7 < /tmp/data > /tmp/back || exit 1
	cmp /tmp/data /tmp/back || exit 1
}
use_disk() {
	dd if=/tmp/data of=/dev/xvda bs=64k oflag=direct 2> /dev/null || exit 1
	dd if=/dev/xvda bs=64k count=$((${MIB:-1} * 16)) iflag=direct 2> /dev/null | cmp - /tmp/data || exit 1
}
rounds=0
'
# Script of a guest that does ROUNDS of I/O, and prints BUSY after the first.
# shellcheck disable=SC2016,SC2034 # used by the tests
ROUNDS_OF_IO="$IO"'
while [ $rounds -lt $ROUNDS ]; do
	use_net
	use_disk
	rounds=$((rounds + 1))
	echo "round $rounds"
	[ $rounds -gt 1 ] || echo BUSY
done
'

archive() {
	(cd "$1" && find . | cpio -o -H newc --quiet)
}

# log NAME: print a guest's console output
log() {
	if [ -e "$CONSOLES/guest-$1.log" ]; then
		tr -d '\r' < "$CONSOLES/guest-$1.log"
	fi
}

# guest NAME pv|pvh ADDRESS SCRIPT [DISK...]: create a guest; its NIC has the address 10.0.2.ADDRESS, its disks are xvda, xvdb, ...
# MORE: additional lines for its configuration
guest() {
	name=$1 kind=$2 address=$3 script=$4
	shift 4
	guest_base
	folder="$GUESTS/$name"
	rm -rf "$folder" "$CONSOLES/guest-$name.log"
	mkdir -p "$folder/root/lab"
	printf '%s\n' "$script" > "$folder/root/lab/run"
	printf 'NAME=%s\nADDRESS=%s\nECHO=%s\n' "$name" "$address" "$ECHO" > "$folder/root/lab/env"
	{ cat "$GUESTS/base.cpio"; archive "$folder/root"; } > "$folder/initrd"
	letter=a disks=
	for target in "$@"; do
		disks="$disks'format=raw, vdev=xvd$letter, access=w, script=$HERE/block, target=$target', "
		letter=$(echo "$letter" | tr a-y b-z)
	done
	# cpuid: before 8.0, QEMU leaves garbage in the flags after CMPXCHG16B, and an interrupt can then kill a PVH guest.
	cat > "$folder/config" <<-END
		name = "$name"
		type = "$kind"
		kernel = "$GUESTS/vmlinuz"
		ramdisk = "$folder/initrd"
		extra = "console=hvc0 rdinit=/init panic=1"
		memory = 192
		vcpus = 1
		cpuid = "host,cmpxchg16=0"
		disk = [ $disks ]
		vif = [ "mac=00:16:3e:00:00:$(printf %02x "$address"), script=$HERE/vif" ]
		${MORE:-}
		on_poweroff = "destroy"
		on_reboot = "destroy"
		on_crash = "destroy"
	END
	began=$(now)
	tries=0
	# libxl gives backends 10 s, which can be too short under emulation.
	until xl create "$folder/config" > "$GUESTS/output" 2>&1; do
		tries=$((tries + 1))
		if [ $tries = 3 ] || ! grep -q 'rc -9\|because of timeout' "$GUESTS/output"; then
			sed 's/^/    # /' "$GUESTS/output"
			fail "guest $name ($kind) cannot be created"
		fi
		say "guest $name: libxl timed out; trying again"
	done
	say "$name: $kind guest, created in $(($(now) - began)) s"
}

# must WHAT COMMAND...: fail if the command does, and show its output
must() {
	what=$1
	shift
	if ! "$@" > "$GUESTS/output" 2>&1; then
		sed 's/^/    # /' "$GUESTS/output"
		fail "$what: $*"
	fi
}

# Seconds since boot.
now() {
	read -r uptime _ < /proc/uptime
	echo "${uptime%%.*}"
}

exists() {
	xl domid "$1" > /dev/null 2>&1
}

# Print each guest's last lines, and then what it says itself.
show_guests() {
	for console in "$CONSOLES"/guest-*.log; do
		name=${console##*/guest-} name=${name%.log}
		log "$name" | grep -v '^# ' | tail -n 12 | sed "s/^/    # $name: /"
		log "$name" | sed -n "s/^#/    # $name:/p"
	done
	xl list | sed 's/^/    # /'
}

# wait_word NAME PATTERN: wait until a guest has printed such a line; fail if a guest fails before
wait_word() {
	size='' looks=0
	until log "$1" | grep -q "$2"; do
		# A guest that waits for another one says nothing meanwhile.
		looks=$((looks + 1)) last=$size size=$(cat "$CONSOLES"/guest-*.log 2> /dev/null | wc -c)
		[ "$size" = "$last" ] || deadline=$(($(now) + PATIENCE))
		reason=
		# Another guest may be what it waits for.
		failed=$(cd "$CONSOLES" && grep -Hs '^GUEST-EXIT [^0]' guest-*.log | tr -d '\r')
		if [ "$failed" ]; then
			reason="expected exit code 0, got $failed"
		elif [ "$(now)" -ge "$deadline" ]; then
			reason="no guest has printed anything for $PATIENCE s, expected of $1: $2"
		# Not each time: xl is slow under emulation. The line may have been its last.
		elif [ $((looks % 4)) = 0 ] && ! exists "$1" && ! log "$1" | grep -q "$2"; then
			reason="guest $1 is gone without printing: $2"
		fi
		if [ "$reason" ]; then
			show_guests
			fail "$reason"
		fi
		# Looking takes dom0's processor from the guests.
		sleep 4
	done
}

# wait_guest NAME: wait for its end, and fail unless its exit code is 0
wait_guest() {
	wait_word "$1" '^GUEST-EXIT 0$'
	log "$1" | sed -n "s/^#/    # $1:/p"
	wait_gone "$1"
}

# leave ADDRESS: tell a guest that listens on port 8 to end
leave() {
	tries=0
	until echo leave | busybox nc -w 10 "10.0.2.$1" 8; do
		tries=$((tries + 1))
		[ $tries -lt 30 ] || fail "the guest at 10.0.2.$1 does not listen"
		sleep 1
	done
}

wait_gone() {
	deadline=$(($(now) + PATIENCE))
	while exists "$1"; do
		[ "$(now)" -lt $deadline ] || fail "guest $1 is still there after $PATIENCE s: $(xl list | grep "^$1 ")"
		sleep 1
	done
}

# The disk under test: not the root.
test_disk() {
	serial=$(grep -ls '^lab *$' /sys/block/nvme*/device/serial) || fail "no NVMe disk with the serial number lab"
	serial=${serial#/sys/block/}
	echo "/dev/${serial%%/*}"
}

# Give the disk two partitions of 31 MiB.
partition_disk() {
	disk=$(test_disk)
	if [ ! -e "${disk}p2" ]; then
		{
			printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\370\0\0'
			printf '\0\0\0\0\203\0\0\0\0\0\001\0\0\370\0\0'
			printf '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\125\252'
		} | dd of="$disk" bs=1 seek=446 conv=notrunc status=none
		blockdev --rereadpt "$disk"
		udevadm settle
	fi
	[ -e "${disk}p2" ] || fail "$disk has no partitions"
}

# sum_of DEVICE MIB: checksum of the first MIB MiB, without the page cache
sum_of() {
	dd if="$1" bs=1M count="$2" iflag=direct status=none | sha256sum | cut -d' ' -f1
}
