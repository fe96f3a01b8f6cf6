// SPDX-License-Identifier: GPL-2.0-only
/*
 * Linked into the kernel's selftests. Their harness gives a case 30 seconds of wall
 * clock time, which suits a real processor. Ours is emulated, on a machine with other
 * work: a case that takes 20 times as long need not be wrong.
 */
#include <poll.h>

int __real_poll(struct pollfd *fds, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout);

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	return __real_poll(fds, count, timeout < 0 ? timeout : timeout * 20);
}
