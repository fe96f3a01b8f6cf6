// SPDX-License-Identifier: GPL-2.0-only
/*
 * lab-run: run a command, pass on its output, and report its verdict.
 *
 *   lab-run [-k] COMMAND [ARGUMENT...]
 *
 * Everything that the command prints goes to stdout. KTAP lines also go to the
 * second serial port (or the file in $LAB_VERDICT), which does not depend on
 * the DMA or the hypervisor console under test. The last line there is
 * "LAB-EXIT <code>", completely written before lab-run ends, since the machine
 * is powered off next.
 *
 * The code is the command's own exit status (128 + the signal that killed it).
 * With -k, a status of 0 counts only if the KTAP agrees: a plan, as many
 * results as planned, none of them "not ok", at every level.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/serial.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define MAX_DEPTH 4

static int verdict = -1;
static bool lost;

/* The open plan of each nesting level, while its results come in. */
static struct plan {
	bool planned;
	long expected;
	long seen;
} plans[MAX_DEPTH];
static bool any_plan;
static char *complaint;

static void write_all(int fd, const char *data, size_t len, bool *failed)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			*failed = true;
			return;
		}
		data += n;
		len -= n;
	}
}

/*
 * Makes the driver of a serial port work without interrupts, as their remapping is also
 * under test. (The amd-iommu of QEMU 10.0 loses those of the I/O APIC.)
 */
static int poll_port(const char *path)
{
	int fd = open(path, O_WRONLY | O_NOCTTY | O_NONBLOCK | O_APPEND), ret = 0;
	struct serial_struct serial;

	if (fd < 0)
		return -1;
	if (!ioctl(fd, TIOCGSERIAL, &serial) && serial.irq) {
		serial.irq = 0;
		ret = ioctl(fd, TIOCSSERIAL, &serial);
	}
	/* Linux allows writing to it once it is opened again. */
	close(fd);
	return ret;
}

static int open_verdict(const char *path)
{
	struct termios tio;
	int fd;

	if (poll_port(path))
		return -1;
	/* O_NONBLOCK: do not wait for a carrier that never comes. */
	fd = open(path, O_WRONLY | O_NOCTTY | O_NONBLOCK | O_APPEND);
	if (fd < 0)
		return -1;
	if (!tcgetattr(fd, &tio)) {
		cfmakeraw(&tio);
		tio.c_cflag |= CLOCAL;
		cfsetspeed(&tio, B115200);
		if (tcsetattr(fd, TCSANOW, &tio))
			return -1;
	} else if (errno == EIO) {
		/* The driver knows the port, but the machine does not have it. */
		return -1;
	}
	if (fcntl(fd, F_SETFL, O_APPEND))
		return -1;
	return fd;
}

static void complain(const char *what, const char *line)
{
	if (!complaint && asprintf(&complaint, "%s: %s", what, line) < 0)
		complaint = (char *)"out of memory";
}

static void close_level(int level, const char *line)
{
	struct plan *plan = &plans[level];

	if (plan->seen && !plan->planned)
		complain("results without a plan before", line);
	else if (plan->planned && plan->seen != plan->expected)
		complain("results do not match the plan before", line);
	memset(plan, 0, sizeof(*plan));
}

/* Returns true for a line of KTAP, and keeps track of it for -k. */
static bool ktap_line(const char *line)
{
	int indent = strspn(line, " "), level = indent / 4;
	const char *text = line + indent;
	bool not_ok = !strncmp(text, "not ok ", 7);
	char *end;
	long n;

	if (*text == '#' || !strncmp(text, "KTAP version", 12) || !strncmp(text, "TAP version", 11))
		return true;
	if (level >= MAX_DEPTH)
		return false;
	if (!strncmp(text, "1..", 3) && isdigit((unsigned char)text[3])) {
		n = strtol(text + 3, &end, 10);
		if (plans[level].planned)
			complain("second plan", line);
		plans[level].planned = true;
		plans[level].expected = n;
		any_plan = true;
		return true;
	}
	if (!not_ok && strncmp(text, "ok ", 3))
		return false;
	if (level + 1 < MAX_DEPTH)
		close_level(level + 1, line);
	if (not_ok)
		complain("failed", line);
	n = strtol(text + (not_ok ? 7 : 3), &end, 10);
	if (n != ++plans[level].seen)
		complain("out of order", line);
	return true;
}

static void take_line(char *line, size_t len)
{
	line[len - 1] = '\0';
	if (ktap_line(line)) {
		line[len - 1] = '\n';
		write_all(verdict, line, len, &lost);
	}
	line[len - 1] = '\n';
	/* Losing a console line is not a failure. */
	write_all(STDOUT_FILENO, line, len, &(bool){ false });
}

static int run_command(char **argv)
{
	int pipefd[2], status = 0;
	static char buf[4096];
	bool running = true;
	size_t used = 0;
	pid_t pid;

	if (pipe2(pipefd, O_CLOEXEC)) {
		perror("lab-run: pipe");
		return 127;
	}
	pid = fork();
	if (pid < 0) {
		perror("lab-run: fork");
		return 127;
	}
	if (!pid) {
		dup2(pipefd[1], STDOUT_FILENO);
		dup2(pipefd[1], STDERR_FILENO);
		execvp(argv[0], argv);
		fprintf(stderr, "lab-run: %s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	close(pipefd[1]);
	if (fcntl(pipefd[0], F_SETFL, O_NONBLOCK))
		return 127;

	/* A child left behind may keep the pipe open, so end with the command. */
	for (;;) {
		struct pollfd pfd = { .fd = pipefd[0], .events = POLLIN };
		char *newline;
		ssize_t n;

		if (running && waitpid(pid, &status, WNOHANG) == pid)
			running = false;
		n = read(pipefd[0], buf + used, sizeof(buf) - used);
		if (n < 0 && errno == EAGAIN && running) {
			poll(&pfd, 1, 100);
			continue;
		}
		if (n <= 0) {
			if (!running)
				break;
			if (waitpid(pid, &status, 0) == pid)
				running = false;
			continue;
		}
		used += n;
		while ((newline = memchr(buf, '\n', used)) || used == sizeof(buf)) {
			size_t len = newline ? (size_t)(newline - buf) + 1 : used;

			if (newline)
				take_line(buf, len);
			else
				write_all(STDOUT_FILENO, buf, len, &(bool){ false });
			used -= len;
			memmove(buf, buf + len, used);
		}
	}
	if (used)
		write_all(STDOUT_FILENO, buf, used, &(bool){ false });
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	const char *path = getenv("LAB_VERDICT") ?: "/dev/ttyS1";
	bool judge = false;
	char line[512];
	int opt, code;

	while ((opt = getopt(argc, argv, "+k")) == 'k')
		judge = true;
	if (opt != -1 || optind == argc) {
		fprintf(stderr, "usage: lab-run [-k] COMMAND [ARGUMENT...]\n");
		return 2;
	}
	verdict = open_verdict(path);
	if (verdict < 0) {
		fprintf(stderr, "lab-run: no verdict channel %s: %s\n", path, strerror(errno));
		return 2;
	}

	code = run_command(argv + optind);
	if (judge) {
		for (int level = 0; level < MAX_DEPTH; level++)
			close_level(level, "the end");
		if (!any_plan)
			complain("no plan", "nothing was run");
		if (complaint) {
			snprintf(line, sizeof(line), "# lab-run: %s\n", complaint);
			write_all(STDOUT_FILENO, line, strlen(line), &(bool){ false });
			write_all(verdict, line, strlen(line), &lost);
			if (!code)
				code = 1;
		}
	}
	snprintf(line, sizeof(line), "LAB-EXIT %d\n", code);
	write_all(verdict, line, strlen(line), &lost);
	write_all(STDOUT_FILENO, line, strlen(line), &(bool){ false });
	/* A file (LAB_VERDICT) need not be drained. */
	if (lost || (tcdrain(verdict) && errno != ENOTTY)) {
		perror("lab-run: verdict channel");
		return 2;
	}
	return code;
}
