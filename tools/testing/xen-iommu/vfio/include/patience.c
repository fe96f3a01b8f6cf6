// SPDX-License-Identifier: GPL-2.0-only
/*
 * Linked into the kernel's selftests: their harness gives a case 30 seconds of the
 * wall clock, fit for a processor. Ours is emulated, on a machine that has other
 * work: what takes 20 times as long is not wrong.
 */
#include <poll.h>

int __real_poll(struct pollfd *fds, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout);

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	return __real_poll(fds, count, timeout < 0 ? timeout : timeout * 20);
}
