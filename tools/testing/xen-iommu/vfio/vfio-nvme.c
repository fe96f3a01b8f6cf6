// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio-nvme: a userspace driver for an NVMe disk, as a test of VFIO.
 *
 *   vfio-nvme iommufd|container DEVICE [read|MAPPINGS [MIB]]
 *
 * DEVICE is a PCI address, bound to vfio-pci. Runs its cases and prints KTAP,
 * with MAPPINGS mappings at once in the case of many, and MIB MiB in the case
 * of a large one. With "read", it reads the disk repeatedly instead, until it
 * is killed. The exit status is 0 if all cases pass, 3 if the kernel refuses
 * the device for lack of interrupt isolation, or else 1.
 *
 * The cases check memory to find out whether DMA was blocked. A line
 * "# blocked <read|write> <address>" lets a script look for the fault, too.
 *
 * There is deliberately no case of unmapping during a transfer. QEMU's disk
 * looks up an address once and keeps the pointer, so such data still arrives.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/iommufd.h>
#include <linux/types.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "../src/sha256.h"
#include "vfio.h"

/*
 * The device, through VFIO
 */

static int enable_bus_master(struct vfio *vfio)
{
	struct vfio_region_info info = {
		.argsz = sizeof(info),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	__u16 command;

	if (ioctl(vfio->device, VFIO_DEVICE_GET_REGION_INFO, &info))
		return fail("VFIO_DEVICE_GET_REGION_INFO");
	if (pread(vfio->device, &command, 2, info.offset + 4) != 2)
		return fail("config space");
	command |= 1 << 1 | 1 << 2;	/* memory space, bus master */
	if (pwrite(vfio->device, &command, 2, info.offset + 4) != 2)
		return fail("config space");
	return 0;
}

/* Makes MSI-X vector 0 signal this eventfd; -1: none. */
static int set_msix(struct vfio *vfio, int fd)
{
	struct {
		struct vfio_irq_set set;
		__s32 fd;
	} irq = {
		.set = {
			.argsz = sizeof(irq),
			.flags = fd < 0 ? VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER :
					  VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			.index = VFIO_PCI_MSIX_IRQ_INDEX,
			.count = fd < 0 ? 0 : 1,
		},
		.fd = fd,
	};

	return ioctl(vfio->device, VFIO_DEVICE_SET_IRQS, &irq) ? fail("VFIO_DEVICE_SET_IRQS") : 0;
}

/*
 * NVMe: the minimum to read and write
 */

#define NVME_CAP	0x00
#define NVME_CC		0x14
#define NVME_CSTS	0x1c
#define NVME_AQA	0x24
#define NVME_ASQ	0x28
#define NVME_ACQ	0x30
#define NVME_DOORBELLS	0x1000

#define ADMIN_DELETE_SQ	0x00
#define ADMIN_CREATE_SQ	0x01
#define ADMIN_DELETE_CQ	0x04
#define ADMIN_CREATE_CQ	0x05
#define ADMIN_IDENTIFY	0x06
#define IO_WRITE	0x01
#define IO_READ		0x02

#define DEPTH 64

struct command {
	__u8 opcode;
	__u8 flags;
	__u16 id;
	__u32 nsid;
	__u64 reserved[2];
	__u64 prp[2];
	__u32 dw[6];
};

struct completion {
	__u32 result;
	__u32 reserved;
	__u16 sq_head;
	__u16 sq;
	__u16 id;
	__u16 status;		/* the phase is bit 0 */
};

struct queue {
	struct command *sq;
	struct completion *cq;
	unsigned int number, tail, head, phase;
};

/* Memory that the device may always use, and its address on the bus. */
#define DATA_SIZE	(128UL << 10)
#define QUEUES		3
#define PRP_LIST	(2 * QUEUES * PAGE)
#define DATA		(PRP_LIST + PAGE)
#define ARENA_SIZE	(DATA + DATA_SIZE)
#define ARENA_IOVA	0x100000000ULL

/* The cases map from here on, in steps, so that each fault has a unique origin. */
#define CASE_IOVA	0x1000000000ULL
#define CASE_STEP	0x100000000ULL

struct nvme {
	const char *name;	/* PCI address */
	struct vfio *vfio;
	char *regs;
	unsigned int stride;
	char *arena;
	struct queue queues[QUEUES];
	__u64 blocks;
	unsigned int block_size;
	__u64 iova;		/* of the current case */
	unsigned int mappings;
	size_t large;
};

static __u32 reg32(struct nvme *nvme, unsigned int reg)
{
	return __atomic_load_n((__u32 *)(nvme->regs + reg), __ATOMIC_ACQUIRE);
}

static void set_reg32(struct nvme *nvme, unsigned int reg, __u32 value)
{
	/* Everything that the device will read must be written first. */
	__atomic_store_n((__u32 *)(nvme->regs + reg), value, __ATOMIC_SEQ_CST);
}

static void set_reg64(struct nvme *nvme, unsigned int reg, __u64 value)
{
	set_reg32(nvme, reg, value);
	set_reg32(nvme, reg + 4, value >> 32);
}

static __u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

static void submit(struct nvme *nvme, struct queue *q, const struct command *cmd)
{
	memcpy(&q->sq[q->tail], cmd, sizeof(*cmd));
	q->sq[q->tail].id = q->tail;
	q->tail = (q->tail + 1) % DEPTH;
	set_reg32(nvme, NVME_DOORBELLS + 2 * q->number * nvme->stride, q->tail);
}

/* Returns the status of the next command to complete, or an error. */
static int complete(struct nvme *nvme, struct queue *q)
{
	__u64 end = now_ms() + 20000;
	int status;

	while ((__atomic_load_n(&q->cq[q->head].status, __ATOMIC_ACQUIRE) & 1) != q->phase) {
		if (now_ms() > end) {
			errno = ETIMEDOUT;
			return fail("no completion");
		}
		if (reg32(nvme, NVME_CSTS) & 2) {
			errno = EIO;
			return fail("the controller has failed");
		}
		usleep(10);
	}
	status = q->cq[q->head].status >> 1;
	q->head = (q->head + 1) % DEPTH;
	q->phase ^= !q->head;
	set_reg32(nvme, NVME_DOORBELLS + (2 * q->number + 1) * nvme->stride, q->head);
	return status;
}

static int execute(struct nvme *nvme, struct queue *q, const struct command *cmd)
{
	submit(nvme, q, cmd);
	return complete(nvme, q);
}

static void init_queue(struct nvme *nvme, unsigned int number)
{
	struct queue *q = &nvme->queues[number];

	*q = (struct queue){
		.sq = (void *)(nvme->arena + 2 * number * PAGE),
		.cq = (void *)(nvme->arena + (2 * number + 1) * PAGE),
		.number = number,
		.phase = 1,
	};
	memset(q->cq, 0, PAGE);
}

static int create_queue(struct nvme *nvme, unsigned int number, bool interrupt)
{
	__u64 base = ARENA_IOVA + 2 * number * PAGE;
	struct command cmd = {
		.opcode = ADMIN_CREATE_CQ,
		.prp = { base + PAGE },
		.dw = { (DEPTH - 1) << 16 | number, interrupt << 1 | 1 },
	};
	int status;

	init_queue(nvme, number);
	status = execute(nvme, &nvme->queues[0], &cmd);
	if (status)
		return status;
	cmd.opcode = ADMIN_CREATE_SQ;
	cmd.prp[0] = base;
	cmd.dw[1] = number << 16 | 1;
	return execute(nvme, &nvme->queues[0], &cmd);
}

static int delete_queue(struct nvme *nvme, unsigned int number)
{
	struct command cmd = { .opcode = ADMIN_DELETE_SQ, .dw = { number } };
	int status = execute(nvme, &nvme->queues[0], &cmd);

	cmd.opcode = ADMIN_DELETE_CQ;
	return status ?: execute(nvme, &nvme->queues[0], &cmd);
}

static int wait_ready(struct nvme *nvme, unsigned int ready)
{
	__u64 end = now_ms() + 20000;

	while ((reg32(nvme, NVME_CSTS) & 1) != ready) {
		if (now_ms() > end) {
			errno = ETIMEDOUT;
			return fail(ready ? "no start" : "no stop");
		}
		usleep(1000);
	}
	return 0;
}

static int start_nvme(struct nvme *nvme, struct vfio *vfio)
{
	struct vfio_region_info info = {
		.argsz = sizeof(info),
		.index = VFIO_PCI_BAR0_REGION_INDEX,
	};
	struct command identify = {
		.opcode = ADMIN_IDENTIFY,
		.nsid = 1,
		.prp = { ARENA_IOVA + DATA },
	};
	unsigned char *id;
	__u8 format;
	int ret;

	nvme->vfio = vfio;
	ret = enable_bus_master(vfio);
	if (ret)
		return ret;
	if (ioctl(vfio->device, VFIO_DEVICE_GET_REGION_INFO, &info))
		return fail("VFIO_DEVICE_GET_REGION_INFO");
	nvme->regs = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, vfio->device,
			  info.offset);
	if (nvme->regs == MAP_FAILED)
		return fail("mapping BAR 0");
	nvme->stride = 4 << (reg32(nvme, NVME_CAP + 4) & 0xf);

	nvme->arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (nvme->arena == MAP_FAILED)
		return fail("memory");
	ret = map(vfio, ARENA_IOVA, nvme->arena, ARENA_SIZE, MAP_RW);
	if (ret) {
		errno = -ret;
		return fail("mapping the queues");
	}

	set_reg32(nvme, NVME_CC, 0);
	ret = wait_ready(nvme, 0);
	if (ret)
		return ret;
	init_queue(nvme, 0);
	set_reg32(nvme, NVME_AQA, (DEPTH - 1) << 16 | (DEPTH - 1));
	set_reg64(nvme, NVME_ASQ, ARENA_IOVA);
	set_reg64(nvme, NVME_ACQ, ARENA_IOVA + PAGE);
	/* Queue entries of 2^6 and 2^4 bytes, pages of 4 KiB, enable. */
	set_reg32(nvme, NVME_CC, 4 << 20 | 6 << 16 | 1);
	ret = wait_ready(nvme, 1);
	if (ret)
		return ret;

	id = (unsigned char *)nvme->arena + DATA;
	ret = execute(nvme, &nvme->queues[0], &identify);
	if (ret) {
		printf("    # identify: status %#x\n", ret);
		return -EIO;
	}
	memcpy(&nvme->blocks, id, 8);
	format = id[26] & 0xf;
	nvme->block_size = 1U << id[128 + 4 * format + 2];
	if (!nvme->blocks || nvme->block_size < 512 || nvme->block_size > PAGE) {
		printf("    # %llu blocks of %u bytes\n", nvme->blocks, nvme->block_size);
		return -EINVAL;
	}
	ret = create_queue(nvme, 1, false);
	if (ret)
		printf("    # creating the queues: status %#x\n", ret);
	return ret ? -EIO : 0;
}

/* Transfers up to 128 KiB between disk and iova; returns the NVMe status. */
static int transfer(struct nvme *nvme, unsigned int queue, int opcode, __u64 offset, __u64 iova,
		    unsigned int bytes)
{
	__u64 *list = (__u64 *)(nvme->arena + PRP_LIST);
	__u64 block = offset / nvme->block_size;
	struct command cmd = {
		.opcode = opcode,
		.nsid = 1,
		.prp = { iova },
		.dw = { block, block >> 32, bytes / nvme->block_size - 1 },
	};

	for (unsigned int page = 1; page < bytes / PAGE; page++)
		list[page - 1] = iova + page * PAGE;
	if (bytes == 2 * PAGE)
		cmd.prp[1] = iova + PAGE;
	else if (bytes > 2 * PAGE)
		cmd.prp[1] = ARENA_IOVA + PRP_LIST;
	return execute(nvme, &nvme->queues[queue], &cmd);
}

/*
 * The cases
 */

#define CANARY 0xc5
#define SECRET 0x3c

/* A place on the disk that the cases may overwrite temporarily. */
#define SCRATCH 0x100000

static unsigned char *pages(size_t size)
{
	unsigned char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

static bool filled(const unsigned char *mem, unsigned char value, size_t size)
{
	return mem[0] == value && !memcmp(mem, mem + 1, size - 1);
}

/*
 * QEMU's VT-d drops faults until the previous one has been handled. $FAULT_SEEN is
 * a command that ends when this one has been handled.
 */
static int wait_for_fault(struct nvme *nvme, const char *direction, __u64 iova)
{
	const char *seen = getenv("FAULT_SEEN");
	char command[256];

	if (!seen)
		return 0;
	snprintf(command, sizeof(command), "%s %s %s %#llx", seen, nvme->name, direction, iova);
	return system(command);
}

/* Checks that a read from the disk to this iova does not reach that memory. */
static int read_blocked(struct nvme *nvme, __u64 iova, unsigned char *mem)
{
	int status;

	memset(mem, CANARY, PAGE);
	printf("    # blocked write %#llx\n", iova);
	status = transfer(nvme, 1, IO_READ, 0, iova, PAGE);
	expect(status >= 0, "%d", status);
	expect(!wait_for_fault(nvme, "write", iova), "waiting for the fault");
	expect(filled(mem, CANARY, PAGE), "iova %#llx reached memory", iova);
	return 0;
}

/* Checks that a write from this iova gets nothing of mem to the disk. */
static int write_blocked(struct nvme *nvme, __u64 iova, unsigned char *mem)
{
	unsigned char *data = (unsigned char *)nvme->arena + DATA, old[PAGE];
	int status, put_back;
	bool leaked;

	expect(!transfer(nvme, 1, IO_READ, SCRATCH, ARENA_IOVA + DATA, PAGE), "read");
	memcpy(old, data, PAGE);
	memset(mem, SECRET, PAGE);
	printf("    # blocked read %#llx\n", iova);
	status = transfer(nvme, 1, IO_WRITE, SCRATCH, iova, PAGE);
	memset(data, CANARY, PAGE);
	expect(!transfer(nvme, 1, IO_READ, SCRATCH, ARENA_IOVA + DATA, PAGE), "read");
	leaked = memmem(data, PAGE, mem, 16);
	memcpy(data, old, PAGE);
	put_back = transfer(nvme, 1, IO_WRITE, SCRATCH, ARENA_IOVA + DATA, PAGE);
	expect(status >= 0, "%d", status);
	expect(!put_back, "status %#x", put_back);
	expect(!leaked, "iova %#llx was read", iova);
	expect(!wait_for_fault(nvme, "read", iova), "waiting for the fault");
	return 0;
}

static int read_whole_disk(struct nvme *nvme)
{
	__u64 size = nvme->blocks * nvme->block_size;
	unsigned char *mem = pages(DATA_SIZE);
	struct sha256 sha;
	char text[65];

	expect(mem, "no memory");
	expect(!map(nvme->vfio, nvme->iova, mem, DATA_SIZE, MAP_WRITE), "%s", strerror(errno));
	sha256_init(&sha);
	for (__u64 offset = 0; offset < size; offset += DATA_SIZE) {
		unsigned int len = size - offset < DATA_SIZE ? size - offset : DATA_SIZE;
		int status;

		memset(mem, CANARY, len);
		status = transfer(nvme, 1, IO_READ, offset, nvme->iova, len);
		expect(!status, "offset %#llx, status %#x", offset, status);
		sha256_update(&sha, mem, len);
	}
	sha256_final(&sha, text);
	printf("    # disk: %llu bytes, SHA-256 %s\n", size, text);
	expect(unmap(nvme->vfio, nvme->iova, DATA_SIZE) == (__s64)DATA_SIZE, "unmap");
	munmap(mem, DATA_SIZE);
	return 0;
}

static int write_and_read_back(struct nvme *nvme)
{
	const size_t size = 65536;
	unsigned char *old = pages(size), *new = pages(size), *back = pages(size);
	__u64 a = nvme->iova, b = a + size, c = b + size;

	expect(old && new && back, "no memory");
	expect(!map(nvme->vfio, a, old, size, MAP_RW), "%s", strerror(errno));
	expect(!map(nvme->vfio, b, new, size, MAP_READ), "%s", strerror(errno));
	expect(!map(nvme->vfio, c, back, size, MAP_WRITE), "%s", strerror(errno));
	for (size_t i = 0; i < size; i += 256)
		expect(getrandom(new + i, 256, 0) == 256, "getrandom");
	expect(!transfer(nvme, 1, IO_READ, SCRATCH, a, size), "read");
	expect(!transfer(nvme, 1, IO_WRITE, SCRATCH, b, size), "write");
	expect(!transfer(nvme, 1, IO_READ, SCRATCH, c, size), "read");
	expect(!transfer(nvme, 1, IO_WRITE, SCRATCH, a, size), "write back");
	expect(!memcmp(new, back, size), "other data came back");
	expect(!transfer(nvme, 1, IO_READ, SCRATCH, c, size), "read");
	expect(!memcmp(old, back, size), "the old data was not restored");
	expect(unmap(nvme->vfio, a, 3 * size) == (__s64)(3 * size), "unmap");
	munmap(old, size);
	munmap(new, size);
	munmap(back, size);
	return 0;
}

static int unmapped_is_blocked(struct nvme *nvme)
{
	unsigned char *mem = pages(PAGE);

	expect(mem, "no memory");
	expect(!map(nvme->vfio, nvme->iova, mem, PAGE, MAP_RW), "%s", strerror(errno));
	/* Bring the translation into the IOTLB. */
	memset(mem, CANARY, PAGE);
	expect(!transfer(nvme, 1, IO_READ, 0, nvme->iova, PAGE), "read");
	expect(!filled(mem, CANARY, PAGE), "nothing arrived");
	expect(unmap(nvme->vfio, nvme->iova, PAGE) == (__s64)PAGE, "unmap");
	if (read_blocked(nvme, nvme->iova, mem) || write_blocked(nvme, nvme->iova, mem))
		return 1;
	/* An address that was never mapped, far from any that is. */
	if (read_blocked(nvme, nvme->iova + CASE_STEP / 2, mem))
		return 1;
	munmap(mem, PAGE);
	return 0;
}

static int read_only_is_blocked(struct nvme *nvme)
{
	unsigned char *mem = pages(PAGE);

	expect(mem, "no memory");
	expect(!map(nvme->vfio, nvme->iova, mem, PAGE, MAP_READ), "%s", strerror(errno));
	if (read_blocked(nvme, nvme->iova, mem))
		return 1;
	expect(unmap(nvme->vfio, nvme->iova, PAGE) == (__s64)PAGE, "unmap");
	munmap(mem, PAGE);
	return 0;
}

static int remap_to_other_page(struct nvme *nvme)
{
	unsigned char *mem = pages(2 * PAGE);

	expect(mem, "no memory");
	for (int round = 0; round < 20; round++) {
		unsigned char *page = mem + round % 2 * PAGE;
		unsigned char *other = mem + !(round % 2) * PAGE;

		expect(!map(nvme->vfio, nvme->iova, page, PAGE, MAP_RW), "%s", strerror(errno));
		memset(mem, CANARY, 2 * PAGE);
		expect(!transfer(nvme, 1, IO_READ, 0, nvme->iova, PAGE), "read");
		expect(!filled(page, CANARY, PAGE), "nothing arrived, round %d", round);
		expect(filled(other, CANARY, PAGE), "the old page was written to, round %d", round);
		expect(unmap(nvme->vfio, nvme->iova, PAGE) == (__s64)PAGE, "unmap");
	}
	munmap(mem, 2 * PAGE);
	return 0;
}

static int interrupt_arrives(struct nvme *nvme)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), status, arrived;
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	expect(fd >= 0, "eventfd");
	if (set_msix(nvme->vfio, fd))
		return 1;
	status = create_queue(nvme, 2, true);
	expect(!status, "status %#x", status);
	status = transfer(nvme, 2, IO_READ, 0, ARENA_IOVA + DATA, PAGE);
	arrived = poll(&pfd, 1, 5000);
	expect(!delete_queue(nvme, 2), "deleting the queue");
	if (set_msix(nvme->vfio, -1))
		return 1;
	close(fd);
	expect(!status, "status %#x", status);
	expect(arrived == 1, "no interrupt");
	return 0;
}

/* Many mappings of single pages, none adjacent to another. */
static int many_single_pages(struct nvme *nvme)
{
	const unsigned int count = nvme->mappings;
	unsigned char *mem = pages(PAGE);
	__u64 began = now_ms(), mapped;

	expect(mem, "no memory");
	for (unsigned int i = 0; i < count; i++) {
		int err = map(nvme->vfio, nvme->iova + 2 * i * PAGE, mem, PAGE, MAP_RW);

		expect(!err, "mapping %u: %s", i, strerror(-err));
	}
	mapped = now_ms();
	for (unsigned int i = 0; i < count; i += count / 16) {
		memset(mem, CANARY, PAGE);
		expect(!transfer(nvme, 1, IO_READ, 0, nvme->iova + 2 * i * PAGE, PAGE), "read");
		expect(!filled(mem, CANARY, PAGE), "nothing arrived through mapping %u", i);
	}
	if (nvme->vfio->legacy) {
		__s64 size = unmap(nvme->vfio, nvme->iova, 2 * count * PAGE);

		expect(size == (__s64)(count * PAGE), "unmapped %lld bytes", size);
	} else {
		for (unsigned int i = 0; i < count; i++) {
			__s64 size = unmap(nvme->vfio, nvme->iova + 2 * i * PAGE, PAGE);

			expect(size == (__s64)PAGE, "unmapped %lld bytes of mapping %u", size, i);
		}
	}
	printf("    # %u mappings, made in %llu ms, undone in %llu ms\n", count, mapped - began,
	       now_ms() - mapped);
	if (read_blocked(nvme, nvme->iova + 2 * (count / 2) * PAGE, mem))
		return 1;
	munmap(mem, PAGE);
	return 0;
}

/* One large mapping, of huge pages as far as available. */
static int large_mapping(struct nvme *nvme)
{
	size_t size = nvme->large;
	const char *kind = "huge";
	unsigned char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
	__u64 began;
	__s64 gone;
	int err;

	if (mem == MAP_FAILED) {
		kind = "single";
		mem = pages(size);
	}
	expect(mem, "no memory");
	began = now_ms();
	err = map(nvme->vfio, nvme->iova, mem, size, MAP_RW);
	expect(!err, "%s", strerror(-err));
	printf("    # %zu MiB of %s pages mapped in %llu ms\n", size >> 20, kind, now_ms() - began);
	for (size_t offset = 0; offset < size; offset += size / 8) {
		memset(mem + offset, CANARY, PAGE);
		expect(!transfer(nvme, 1, IO_READ, 0, nvme->iova + offset, PAGE), "read");
		expect(!filled(mem + offset, CANARY, PAGE), "nothing arrived at %#zx", offset);
	}
	gone = unmap(nvme->vfio, nvme->iova, size);
	expect(gone == (__s64)size, "unmapped %lld bytes", gone);
	if (read_blocked(nvme, nvme->iova + size / 2, mem + size / 2))
		return 1;
	munmap(mem, size);
	return 0;
}

static const struct {
	const char *name;
	int (*run)(struct nvme *nvme);
} cases[] = {
	{ "read_whole_disk", read_whole_disk },
	{ "write_and_read_back", write_and_read_back },
	{ "unmapped_is_blocked", unmapped_is_blocked },
	{ "read_only_is_blocked", read_only_is_blocked },
	{ "remap_to_other_page", remap_to_other_page },
	{ "interrupt_arrives", interrupt_arrives },
	{ "many_single_pages", many_single_pages },
	{ "large_mapping", large_mapping },
};

#define NR_CASES (sizeof(cases) / sizeof(*cases))

/* Endless DMA, for a test that kills us. */
static int read_for_ever(struct nvme *nvme)
{
	const size_t size = 32UL << 20;
	__u64 disk = nvme->blocks * nvme->block_size;
	unsigned char *mem = pages(size);

	expect(mem, "no memory");
	expect(!map(nvme->vfio, CASE_IOVA, mem, size, MAP_RW), "%s", strerror(errno));
	for (__u64 offset = 0;; offset += DATA_SIZE) {
		expect(!transfer(nvme, 1, IO_READ, offset % disk, CASE_IOVA + offset % size,
				 DATA_SIZE), "read");
		if (offset == size) {
			printf("reading\n");
			fflush(stdout);
		}
	}
}

int main(int argc, char **argv)
{
	struct vfio vfio = { .device = -1 };
	struct nvme nvme = { };
	int failed = 0, ret;

	if (argc < 3 || (strcmp(argv[1], "iommufd") && strcmp(argv[1], "container"))) {
		fprintf(stderr,
			"usage: vfio-nvme iommufd|container DEVICE [read|MAPPINGS [MIB]]\n");
		return 2;
	}
	vfio.legacy = !strcmp(argv[1], "container");
	setlinebuf(stdout);
	ret = vfio.legacy ? open_container(&vfio, argv[2]) : open_iommufd(&vfio, argv[2]);
	if (ret)
		return ret == -EPERM ? EXIT_UNSAFE : 1;
	nvme.name = argv[2];
	if (start_nvme(&nvme, &vfio))
		return 1;
	if (argc > 3 && !strcmp(argv[3], "read"))
		return read_for_ever(&nvme);
	/* The container allows 65535 mappings, and already has some. */
	nvme.mappings = vfio.legacy ? 65000 : 262144;
	if (argc > 3 && strtoul(argv[3], NULL, 0) < nvme.mappings)
		nvme.mappings = strtoul(argv[3], NULL, 0);
	if (nvme.mappings < 16)
		nvme.mappings = 16;
	nvme.large = 256UL << 20;
	if (argc > 4)
		nvme.large = strtoul(argv[4], NULL, 0) << 20;

	printf("    KTAP version 1\n    1..%zu\n", NR_CASES);
	nvme.iova = CASE_IOVA;
	for (size_t i = 0; i < NR_CASES; i++) {
		int bad = cases[i].run(&nvme);

		printf("    %sok %zu %s_%s\n", bad ? "not " : "", i + 1, argv[1], cases[i].name);
		failed += bad;
		nvme.iova += CASE_STEP;
	}
	/* Leave the controller disabled. */
	set_reg32(&nvme, NVME_CC, 0);
	return wait_ready(&nvme, 0) || failed;
}
