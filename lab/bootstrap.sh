#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Install the Debian packages of packages.txt that are missing, and for tests those of packages-test.txt, then start the lab.
# bootstrap.sh packages LIST: only install those of that list.
set -eu
lab=$(dirname "$0")
PATH=$PATH:/usr/sbin:/sbin
export PATH

missing=
lists=$lab/packages.txt
[ "$1" != test ] || lists="$lists $lab/packages-test.txt"
[ "$1" != packages ] || lists=$lab/$2
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
		echo "lab: this is not Debian; please install what these Debian packages hold:$missing" >&2
		exit 1
	fi
	install="apt-get install -y --no-install-recommends$missing"
	if [ "$(id -u)" != 0 ]; then
		echo "lab: packages are missing; please run: sudo $install" >&2
		exit 1
	fi
	log=$lab/../build/logs/packages.log
	mkdir -p "$(dirname "$log")"
	echo "installing$missing"
	if ! { apt-get update && DEBIAN_FRONTEND=noninteractive $install; } >"$log" 2>&1 </dev/null; then
		echo "lab: cannot install packages: $(grep -m1 '^E:' "$log"); log: $log" >&2
		exit 1
	fi
fi
[ "$1" != packages ] || exit 0
exec python3 "$lab/lab.py" "$@"
