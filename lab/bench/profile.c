// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU plugin: count the guest's instructions
 *
 *   -plugin libprofile.so,out=PREFIX
 *
 * Counts the instructions between two that do nothing, "xchg
 * %bx, %bx" and "xchg %cx, %cx", per block of code. The n-th such section
 * becomes the file PREFIX.n, with an address, a number of instructions and how
 * often the block ran in each line. Supports one virtual CPU.
 *
 * The parts of the plugin interface in use are declared here: distributions do
 * not package its header. PLUGIN_API is its version: 1, or 3 from QEMU 9.1 on.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct tb;
struct insn;

enum { CB_NO_REGS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*cb)(uint64_t id, struct tb *tb));
size_t qemu_plugin_tb_n_insns(const struct tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct tb *tb);
struct insn *qemu_plugin_tb_get_insn(const struct tb *tb, size_t index);
#if PLUGIN_API >= 3
size_t qemu_plugin_insn_data(const struct insn *insn, void *to, size_t len);
#else
const void *qemu_plugin_insn_data(const struct insn *insn);
#endif
size_t qemu_plugin_insn_size(const struct insn *insn);
void qemu_plugin_register_vcpu_tb_exec_cb(struct tb *tb, void (*cb)(unsigned int, void *), int flags,
					  void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct insn *insn, void (*cb)(unsigned int, void *),
					    int flags, void *data);

EXPORT int qemu_plugin_version = PLUGIN_API;

/* A block of code, its instructions, and how often it ran since the last mark. */
struct block {
	uint64_t address;
	size_t insns;
	uint64_t runs;
	struct block *next;
};

#define BUCKETS (1 << 16)

static struct block *buckets[BUCKETS];
static const char *prefix = "profile";
static unsigned int sections;

static struct block *find_block(uint64_t address, size_t insns)
{
	struct block **link = &buckets[(address ^ address >> 16) % BUCKETS];

	for (struct block *b = *link; b; b = b->next)
		if (b->address == address && b->insns == insns)
			return b;

	struct block *b = calloc(1, sizeof(*b));

	if (!b)
		abort();
	b->address = address;
	b->insns = insns;
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
			b->runs = 0;
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
			if (b->runs)
				fprintf(file, "%llx %llu %llu\n", (unsigned long long)b->address,
					(unsigned long long)(b->runs * b->insns),
					(unsigned long long)b->runs);
	if (fclose(file)) {
		perror(path);
		exit(1);
	}
}

static void ran(unsigned int cpu, void *data)
{
	struct block *b = data;

	(void)cpu;
	b->runs++;
}

/* Returns true if the instruction is these three bytes. */
static bool is(const struct insn *insn, const unsigned char *bytes)
{
	if (qemu_plugin_insn_size(insn) != 3)
		return false;
#if PLUGIN_API >= 3
	unsigned char data[3];

	return qemu_plugin_insn_data(insn, data, sizeof(data)) == 3 && !memcmp(data, bytes, 3);
#else
	return !memcmp(qemu_plugin_insn_data(insn), bytes, 3);
#endif
}

static void translated(uint64_t id, struct tb *tb)
{
	static const unsigned char begins[] = { 0x66, 0x87, 0xdb }, ends[] = { 0x66, 0x87, 0xc9 };
	size_t nr = qemu_plugin_tb_n_insns(tb);
	struct block *b = find_block(qemu_plugin_tb_vaddr(tb), nr);

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, ran, CB_NO_REGS, b);
	for (size_t i = 0; i < nr; i++) {
		struct insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (is(insn, begins))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, begin, CB_NO_REGS, NULL);
		else if (is(insn, ends))
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
