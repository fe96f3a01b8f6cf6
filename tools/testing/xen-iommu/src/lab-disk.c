// SPDX-License-Identifier: GPL-2.0-only
/*
 * lab-disk: read and write a disk bypassing the page cache, so that every byte
 * has been transferred by DMA.
 *
 *   lab-disk sum DISK             SHA-256 and size of the whole disk
 *   lab-disk write DISK OFFSET N  write N random bytes, read them back, compare,
 *                                 restore the old bytes, and compare again
 *   lab-disk peer DISK P2PMEM     the same, to and from another device's memory:
 *                                 P2PMEM is its p2pmem/allocate in sysfs
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "sha256.h"

#define CHUNK 1048576

static void fatal(const char *what)
{
	fprintf(stderr, "lab-disk: %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned char *buffer(size_t size)
{
	void *data = aligned_alloc(4096, size);

	if (!data)
		fatal("memory");
	/* Stale bytes must not be mistaken for data that has arrived. */
	memset(data, 0xa5, size);
	return data;
}

static void read_at(int fd, unsigned char *data, size_t len, off_t offset)
{
	ssize_t n = pread(fd, data, len, offset);

	if (n != (ssize_t)len) {
		if (n >= 0)
			errno = EIO;
		fatal("read");
	}
}

static void write_at(int fd, const unsigned char *data, size_t len, off_t offset)
{
	ssize_t n = pwrite(fd, data, len, offset);

	if (n != (ssize_t)len) {
		if (n >= 0)
			errno = EIO;
		fatal("write");
	}
	if (fsync(fd))
		fatal("flush");
}

static int sum(const char *path)
{
	struct sha256 sha;
	unsigned char *data = buffer(CHUNK);
	char text[65];
	int fd = open(path, O_RDONLY | O_DIRECT);
	off_t size;

	if (fd < 0)
		fatal(path);
	size = lseek(fd, 0, SEEK_END);
	if (size <= 0 || size % 512)
		fatal("size of the disk");

	sha256_init(&sha);
	for (off_t offset = 0; offset < size; offset += CHUNK) {
		size_t len = size - offset < CHUNK ? size - offset : CHUNK;

		memset(data, 0xa5, len);
		read_at(fd, data, len, offset);
		sha256_update(&sha, data, len);
	}
	sha256_final(&sha, text);
	printf("%s %lld\n", text, (long long)size);
	return fflush(stdout) ? 1 : 0;
}

static void fill_random(unsigned char *data, size_t len)
{
	for (size_t done = 0; done < len; done += 256)
		if (getrandom(data + done, 256, 0) != 256)
			fatal("random bytes");
}

static int write_back(const char *path, const char *offset_text, const char *len_text)
{
	unsigned long long offset = strtoull(offset_text, NULL, 0);
	unsigned long long len = strtoull(len_text, NULL, 0);
	unsigned char *old, *new, *back;
	int fd, differs;

	if (!len || len % 4096 || offset % 4096 || len > CHUNK) {
		fprintf(stderr, "lab-disk: only whole pages, 1 MiB at most\n");
		return 2;
	}
	fd = open(path, O_RDWR | O_DIRECT);
	if (fd < 0)
		fatal(path);
	old = buffer(len);
	new = buffer(len);
	back = buffer(len);

	read_at(fd, old, len, offset);
	fill_random(new, len);
	write_at(fd, new, len, offset);
	read_at(fd, back, len, offset);
	differs = memcmp(new, back, len);

	write_at(fd, old, len, offset);
	memset(back, 0xa5, len);
	read_at(fd, back, len, offset);
	if (differs || memcmp(old, back, len)) {
		fprintf(stderr, "lab-disk: what was read back is not what was %s\n",
			differs ? "written" : "restored");
		return 1;
	}
	printf("%llu bytes written at %llu, read back, restored\n", len, offset);
	return fflush(stdout) ? 1 : 0;
}

/* The disk's controller reads and writes the memory of the other device. */
static int peer(const char *path, const char *p2pmem)
{
	const size_t len = 65536;
	unsigned char *old = buffer(len), *new = buffer(len), *back = buffer(len);
	int fd = open(path, O_RDWR | O_DIRECT), mem = open(p2pmem, O_RDWR);
	unsigned char *there;

	if (fd < 0)
		fatal(path);
	if (mem < 0)
		fatal(p2pmem);
	there = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	if (there == MAP_FAILED)
		fatal("mapping the device's memory");

	read_at(fd, old, len, 0);
	memset(there, 0xa5, len);
	read_at(fd, there, len, 0);
	if (memcmp(old, there, len)) {
		fprintf(stderr, "lab-disk: data read into the device's memory differs\n");
		return 1;
	}
	fill_random(new, len);
	memcpy(there, new, len);
	write_at(fd, there, len, 0);
	read_at(fd, back, len, 0);
	write_at(fd, old, len, 0);
	if (memcmp(new, back, len)) {
		fprintf(stderr, "lab-disk: data written from the device's memory differs\n");
		return 1;
	}
	printf("%zu bytes read into a device's memory, and written from it\n", len);
	return fflush(stdout) ? 1 : 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "sum"))
		return sum(argv[2]);
	if (argc == 5 && !strcmp(argv[1], "write"))
		return write_back(argv[2], argv[3], argv[4]);
	if (argc == 4 && !strcmp(argv[1], "peer"))
		return peer(argv[2], argv[3]);
	fprintf(stderr, "usage: lab-disk sum DISK | write DISK OFFSET BYTES | peer DISK P2PMEM\n");
	return 2;
}
