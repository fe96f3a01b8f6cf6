// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest-grants: one domain grants pages, and another does direct I/O to them.
 *
 *   guest-grants give COUNT        in a guest: grant COUNT pages to dom0 and print
 *                                  "GRANTS <ref>..."; then, for each line on stdin:
 *                                    fill SEED    fill them
 *                                    check SEED   compare them
 *                                    end [N]      end all of them, or the first N
 *                                  and print "DONE <command>" or "WRONG <what>"
 *   guest-grants take DOMID FILE OFFSET read|write [hold] REF...
 *                                  in dom0: map them twice, read FILE into them or
 *                                  write them to FILE without the page cache, unmap the
 *                                  first mapping, do it again, unmap the second. hold:
 *                                  print "HELD" and wait for a line of stdin in between
 *   guest-grants reuse DOMID FILE OFFSET TIMES REF...
 *                                  in dom0: write them to FILE and read them back, TIMES
 *                                  times, each time newly mapped and in another order
 *   guest-grants pattern SEED COUNT          write the pattern of "fill" to stdout
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* The headers below use types that they do not define. */
#define grant_ref_t unsigned int
#define domid_t unsigned short
#include <xen/gntalloc.h>
#include <xen/gntdev.h>

#define PAGE 4096
#define MAX 256

static void fatal(const char *what)
{
	fprintf(stderr, "guest-grants: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void pattern(unsigned int *page, unsigned int seed, int number)
{
	unsigned int x = seed * 2654435761u + number * 40503u + 1;

	for (int i = 0; i < PAGE / 4; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		page[i] = x;
	}
}

/* Fill the pages from number @first on. */
static void fill(char *pages, int first, int count, unsigned int seed)
{
	for (int i = first; i < count; i++)
		pattern((unsigned int *)(pages + i * PAGE), seed, i);
}

/* Return the number of a page that differs, or -1. */
static int find_wrong(const char *pages, int first, int count, unsigned int seed)
{
	unsigned int expected[PAGE / 4];

	for (int i = first; i < count; i++) {
		pattern(expected, seed, i);
		if (memcmp(pages + i * PAGE, expected, PAGE))
			return i;
	}
	return -1;
}

static char *map(int fd, off_t index, int count)
{
	void *pages = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, index);

	if (pages == MAP_FAILED)
		fatal("mmap");
	return pages;
}

static int give(int count)
{
	int fd = open("/dev/xen/gntalloc", O_RDWR), ended = 0;
	struct ioctl_gntalloc_alloc_gref *request;
	char line[80], *pages;

	request = calloc(1, sizeof(*request) + count * sizeof(request->gref_ids[0]));
	if (fd < 0 || !request)
		fatal("gntalloc");
	request->flags = GNTALLOC_FLAG_WRITABLE;
	request->count = count;
	if (ioctl(fd, IOCTL_GNTALLOC_ALLOC_GREF, request))
		fatal("ioctl of gntalloc");
	pages = map(fd, request->index, count);
	printf("GRANTS");
	for (int i = 0; i < count; i++)
		printf(" %u", request->gref_ids[i]);
	printf("\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		unsigned int seed = strtoul(strchr(line, ' ') ?: "", NULL, 0);

		line[strcspn(line, "\n")] = '\0';
		if (!strncmp(line, "fill", 4)) {
			fill(pages, ended, count, seed);
		} else if (!strncmp(line, "check", 5)) {
			int wrong = find_wrong(pages, ended, count, seed);

			if (wrong >= 0) {
				printf("WRONG page %d is not as expected\n", wrong);
				return 1;
			}
		} else if (!strncmp(line, "end", 3)) {
			struct ioctl_gntalloc_dealloc_gref old = {
				.index = request->index + (unsigned long)ended * PAGE,
				.count = seed ? (int)seed : count - ended,
			};

			munmap(pages + ended * PAGE, old.count * PAGE);
			if (ioctl(fd, IOCTL_GNTALLOC_DEALLOC_GREF, &old)) {
				printf("WRONG %s: %s\n", line, strerror(errno));
				return 1;
			}
			ended += old.count;
		}
		printf("DONE %s\n", line);
		fflush(stdout);
	}
	return 0;
}

/* One mapping of all the grants. */
struct mapping {
	int fd;
	char *pages;
	struct ioctl_gntdev_unmap_grant_ref all;
};

static struct mapping map_grants(int domid, char **refs, int count)
{
	struct mapping new = { .fd = open("/dev/xen/gntdev", O_RDWR), .all.count = count };
	struct ioctl_gntdev_map_grant_ref *request;

	request = calloc(1, sizeof(*request) + count * sizeof(request->refs[0]));
	if (new.fd < 0 || !request)
		fatal("gntdev");
	request->count = count;
	for (int i = 0; i < count; i++) {
		request->refs[i].domid = domid;
		request->refs[i].ref = strtoul(refs[i], NULL, 0);
	}
	if (ioctl(new.fd, IOCTL_GNTDEV_MAP_GRANT_REF, request))
		fatal("ioctl of gntdev");
	new.all.index = request->index;
	new.pages = map(new.fd, request->index, count);
	free(request);
	return new;
}

static void unmap_grants(struct mapping *old)
{
	munmap(old->pages, old->all.count * PAGE);
	if (ioctl(old->fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &old->all))
		fatal("unmap of gntdev");
	close(old->fd);
}

static void direct_io(int file, const struct mapping *to, off_t offset, bool read_in)
{
	size_t len = to->all.count * PAGE;
	ssize_t n = read_in ? pread(file, to->pages, len, offset) :
			      pwrite(file, to->pages, len, offset);

	if (n == (ssize_t)len)
		return;
	fprintf(stderr, "guest-grants: direct %s: expected %zu bytes, got %zd (%s)\n",
		read_in ? "read" : "write", len, n, n < 0 ? strerror(errno) : "short");
	exit(1);
}

/*
 * Each page has two grant mappings, and I/O continues through the second when the
 * first has ended.
 */
static int take(int argc, char **argv)
{
	bool read_in = !strcmp(argv[3], "read"), hold = !strcmp(argv[4], "hold");
	off_t offset = strtoull(argv[2], NULL, 0);
	struct mapping first, second;
	int file, domid = atoi(argv[0]);

	first = map_grants(domid, argv + 4 + hold, argc - 4 - hold);
	second = map_grants(domid, argv + 4 + hold, argc - 4 - hold);
	file = open(argv[1], (read_in ? O_RDONLY : O_WRONLY) | O_DIRECT);
	if (file < 0)
		fatal(argv[1]);
	direct_io(file, &first, offset, read_in);
	unmap_grants(&first);
	if (hold) {
		printf("HELD\n");
		fflush(stdout);
		getchar();
	}
	direct_io(file, &second, offset, read_in);
	unmap_grants(&second);
	return 0;
}

/*
 * Map the grants again right after they were unmapped, in another order: a mapping
 * that is still there would show as a page with another one's contents.
 */
static int reuse(int argc, char **argv)
{
	off_t offset = strtoull(argv[2], NULL, 0);
	int file, domid = atoi(argv[0]), times = atoi(argv[3]), count = argc - 4;
	char **refs = argv + 4;
	struct mapping m;

	file = open(argv[1], O_RDWR | O_DIRECT);
	if (file < 0)
		fatal(argv[1]);
	for (int n = 0; n < times; n++) {
		char *one = refs[0];
		int wrong;

		m = map_grants(domid, refs, count);
		fill(m.pages, 0, count, n);
		direct_io(file, &m, offset, false);
		unmap_grants(&m);

		memmove(refs, refs + 1, (count - 1) * sizeof(*refs));
		refs[count - 1] = one;
		m = map_grants(domid, refs, count);
		direct_io(file, &m, offset, true);
		wrong = find_wrong(m.pages, 0, count, n);
		if (wrong >= 0) {
			fprintf(stderr, "guest-grants: round %d: page %d differs\n", n, wrong);
			return 1;
		}
		unmap_grants(&m);
	}
	return 0;
}

int main(int argc, char **argv)
{
	unsigned int page[PAGE / 4];

	if (argc == 3 && !strcmp(argv[1], "give") && atoi(argv[2]) > 0 && atoi(argv[2]) <= MAX)
		return give(atoi(argv[2]));
	if (argc > 6 && !strcmp(argv[1], "take"))
		return take(argc - 2, argv + 2);
	if (argc > 6 && !strcmp(argv[1], "reuse"))
		return reuse(argc - 2, argv + 2);
	if (argc == 4 && !strcmp(argv[1], "pattern")) {
		for (int i = 0; i < atoi(argv[3]); i++) {
			pattern(page, strtoul(argv[2], NULL, 0), i);
			fwrite(page, PAGE, 1, stdout);
		}
		return fflush(stdout) ? 1 : 0;
	}
	fprintf(stderr, "usage: guest-grants give COUNT | pattern SEED COUNT |\n"
		"       take DOMID FILE OFFSET read|write [hold] REF... |\n"
		"       reuse DOMID FILE OFFSET TIMES REF...\n");
	return 2;
}
