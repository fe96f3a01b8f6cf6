#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Install the Debian packages of packages.txt that are missing, and those of packages-COMMAND.txt, then start the lab.
# bootstrap.sh packages LIST: only install those of that list.
set -eu
lab=$(dirname "$0")
here=$(cd "$lab/.." && pwd)
case $here in
*[[:space:]:,]*)
	echo "lab: the path \"$here\" has a space, colon or comma, which the builds of Linux and Xen cannot handle" >&2
	exit 1 ;;
esac
PATH=$PATH:/usr/sbin:/sbin
export PATH

missing=
lists=$lab/packages.txt
[ ! -e "$lab/packages-${1-}.txt" ] || lists="$lists $lab/packages-$1.txt"
[ "${1-}" != packages ] || lists=$lab/$2
while read -r package probe; do
	case $package in ''|'#'*) continue ;; esac
	case $probe in
	/*) [ -e "$probe" ] ;;
	*)  command -v "$probe" >/dev/null ;;
	esac || missing="$missing $package"
done <<END
$(cat $lists)
END

if [ -n "$missing" ]; then
	if ! command -v apt-get >/dev/null; then
		echo "lab: this is not Debian; install what these Debian packages contain:$missing" >&2
		exit 1
	fi
	install="apt-get install -y --no-install-recommends$missing"
	if [ "$(id -u)" != 0 ]; then
		echo "lab: packages are missing; install them with: sudo apt-get update && sudo $install" >&2
		exit 1
	fi
	log=$lab/../build/logs/packages.log
	mkdir -p "$(dirname "$log")"
	echo "installing$missing"
	# Another test or run may be installing packages, too, and apt-get update does not wait.
	if ! { flock -o /var/lib/apt apt-get update &&
	       DEBIAN_FRONTEND=noninteractive flock -o /var/lib/apt $install; } >"$log" 2>&1 </dev/null; then
		echo "lab: cannot install packages: $(grep -m1 '^E:' "$log"); log: $log" >&2
		exit 1
	fi
fi
[ "${1-}" != packages ] || exit 0
# The one that Debian's Python packages are for.
python=/usr/bin/python3
[ -x $python ] || python=python3
exec $python "$lab/lab.py" "$@"
