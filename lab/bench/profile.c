// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU plugin: where the guest's instructions go
 *
 *   -plugin libprofile.so,out=PREFIX
 *
 * Counts what is executed between two instructions that do nothing, "xchg
 * %bx, %bx" and "xchg %cx, %cx", per block of code. The n-th such section
 * becomes the file PREFIX.n, with an address and a number of instructions in
 * each line. For one virtual CPU.
 *
 * The interface of plugins is declared here as far as it is used, version 1:
 * distributions do not package its header.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct tb;
struct insn;

enum { CB_NO_REGS = 0 };
enum { INLINE_ADD_U64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*cb)(uint64_t id, struct tb *tb));
size_t qemu_plugin_tb_n_insns(const struct tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct tb *tb);
struct insn *qemu_plugin_tb_get_insn(const struct tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct insn *insn);
size_t qemu_plugin_insn_size(const struct insn *insn);
void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *tb, int op, void *ptr, uint64_t imm);
void qemu_plugin_register_vcpu_insn_exec_cb(struct insn *insn, void (*cb)(unsigned int, void *),
					    int flags, void *data);

EXPORT int qemu_plugin_version = 1;

/* A block of code, and the instructions executed in it since the last mark. */
struct block {
	uint64_t address;
	uint64_t count;
	struct block *next;
};

#define BUCKETS (1 << 16)

static struct block *buckets[BUCKETS];
static const char *prefix = "profile";
static unsigned int sections;

static struct block *find_block(uint64_t address)
{
	struct block **link = &buckets[(address ^ address >> 16) % BUCKETS];

	for (struct block *b = *link; b; b = b->next)
		if (b->address == address)
			return b;

	struct block *b = calloc(1, sizeof(*b));

	if (!b)
		abort();
	b->address = address;
	b->next = *link;
	*link = b;
	return b;
}

static void begin(unsigned int cpu, void *data)
{
	(void)cpu;
	(void)data;
	for (unsigned int i = 0; i < BUCKETS; i++)
		for (struct block *b = buckets[i]; b; b = b->next)
			b->count = 0;
}

static void end(unsigned int cpu, void *data)
{
	char path[4096];
	FILE *file;

	(void)cpu;
	(void)data;
	snprintf(path, sizeof(path), "%s.%u", prefix, ++sections);
	file = fopen(path, "w");
	if (!file) {
		perror(path);
		exit(1);
	}
	for (unsigned int i = 0; i < BUCKETS; i++)
		for (struct block *b = buckets[i]; b; b = b->next)
			if (b->count)
				fprintf(file, "%llx %llu\n", (unsigned long long)b->address,
					(unsigned long long)b->count);
	if (fclose(file)) {
		perror(path);
		exit(1);
	}
}

static void translated(uint64_t id, struct tb *tb)
{
	static const unsigned char begins[] = { 0x66, 0x87, 0xdb }, ends[] = { 0x66, 0x87, 0xc9 };
	size_t nr = qemu_plugin_tb_n_insns(tb);
	struct block *b = find_block(qemu_plugin_tb_vaddr(tb));

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &b->count, nr);
	for (size_t i = 0; i < nr; i++) {
		struct insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const void *bytes = qemu_plugin_insn_data(insn);

		if (qemu_plugin_insn_size(insn) != sizeof(begins))
			continue;
		if (!memcmp(bytes, begins, sizeof(begins)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, begin, CB_NO_REGS, NULL);
		else if (!memcmp(bytes, ends, sizeof(ends)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, end, CB_NO_REGS, NULL);
	}
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++)
		if (!strncmp(argv[i], "out=", 4))
			prefix = strdup(argv[i] + 4);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
