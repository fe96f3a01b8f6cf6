// SPDX-License-Identifier: GPL-2.0
/*
 * Make random calls while another domain is hostile: it grants frames, takes them back,
 * loses some, gets a device, and dies at any time. At the end, nothing of it may be left.
 *
 * A thread in dom0 does what the domain would do itself. Runs in dom0's userspace without
 * an IOMMU driver. KTAP on stdout.
 *
 * usage: hostile [-s seed] [-n calls per thread]
 */
#define main hypercall_main
#include "hypercall.c"
#undef main

#define SLOTS		16	/* mappings of grants */
#define ALIENS		4	/* PVH: frames mapped by their owner's number, without a grant */
#define FRAMES		8
#define FIRST_REF	8
#define REFS		32
#define FIRST_GFN	(1ul << 26)
#define LAST_DFN	0x4000

_Static_assert(SLOTS + ALIENS + FRAMES == NR_FOREIGN, "places for fuzz()");

struct grant { uint16_t flags, domid; uint32_t frame; };

static struct {
	bool used;
	uint32_t handle;
	uint64_t gfn;
} slot[SLOTS];
static bool alien[ALIENS];
static volatile struct grant *table;
static uint64_t extent[FRAMES];
static bool has_extent[FRAMES];
static long guest;
static bool guest_has_edu;
static volatile bool stop;
static struct {
	unsigned long domains, mapped, ended, aliens, io, taken, lent;
} count;

static long guest_memory(unsigned int op, unsigned int i)
{
	struct reservation r = { .extents = &extent[i], .nr = 1, .domid = guest };
	long ret = hypercall(MEMORY_OP, op, (unsigned long)&r);

	if (ret == 1)
		has_extent[i] = op == 6;
	foreign[SLOTS + ALIENS + i] = pv && has_extent[i] ? extent[i] : 0;
	return ret;
}

static void random_grant(struct fuzz *f)
{
	unsigned int ref = FIRST_REF + pick(f, REFS);

	if (!pick(f, 4)) {
		table[ref].flags = pick(f, 2) ? 0 : wild(f);
		return;
	}
	table[ref].flags = 0;
	table[ref].domid = pick(f, 20) ? 0 : wild(f);
	table[ref].frame = pick(f, 20) ? extent[pick(f, FRAMES)] : wild(f);
	__sync_synchronize();
	table[ref].flags = pick(f, 4) ? 1 : 1 | 4;
}

static bool new_guest(struct fuzz *f)
{
	guest = new_domain();
	if (guest < 0) {
		printf("# no domain: %ld\n", guest);
		return false;
	}
	count.domains++;
	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.max_kb = 4096;
	if (domctl(11, guest))
		return false;
	for (int i = 0; i < FRAMES; i++) {
		extent[i] = i;
		if (guest_memory(6, i) != 1)
			return false;
	}
	table = grant_table(guest);
	if (!table)
		return false;
	for (int i = 0; i < REFS * 4; i++)
		random_grant(f);
	return true;
}

static void end_guest(struct fuzz *f)
{
	bool early = pick(f, 2);

	if (early)
		munmap((void *)table, SZ_4K);
	want_eq(domctl(2, guest), 0);
	if (!early)
		munmap((void *)table, SZ_4K);
	memset(has_extent, 0, sizeof(has_extent));
	for (int i = 0; i < FRAMES; i++)
		foreign[SLOTS + ALIENS + i] = 0;
	/* It is in quarantine now. */
	if (guest_has_edu)
		want_eq(assign(47, DOMID_IO), 0);
	guest_has_edu = false;
}

static void begin_slot(struct fuzz *f, unsigned int i)
{
	if (slot[i].used)
		return;
	slot[i].gfn = FIRST_GFN + i;
	if (map_grant(guest, FIRST_REF + pick(f, REFS), &slot[i].gfn,
		      pick(f, 4) ? 0 : GRANT_READONLY, &slot[i].handle))
		return;
	slot[i].used = true;
	foreign[i] = slot[i].gfn;
	count.mapped++;
}

static void end_slot(unsigned int i)
{
	if (!slot[i].used)
		return;
	/* The domain may be dead. */
	want_eq(unmap_grant(slot[i].gfn, slot[i].handle), 0);
	slot[i].used = false;
	foreign[i] = 0;
	count.ended++;
}

static void begin_alien(unsigned int i, unsigned int which)
{
	uint64_t gfn = FIRST_GFN + SLOTS + i;
	int err = 0;
	struct {
		uint16_t domid, space, size, from;
		uint64_t *idx, *gfn;
		int *err;
	} op = { DOMID_SELF, 4, 1, guest, &extent[which], &gfn, &err };

	if (alien[i] || !has_extent[which] || hypercall(MEMORY_OP, 23, (unsigned long)&op) || err)
		return;
	alien[i] = true;
	foreign[SLOTS + i] = gfn;
	count.aliens++;
}

static void end_alien(unsigned int i)
{
	struct { uint16_t domid; uint64_t gfn; } op = { DOMID_SELF, FIRST_GFN + SLOTS + i };

	if (!alien[i])
		return;
	want_eq(hypercall(MEMORY_OP, 15, (unsigned long)&op), 0);
	alien[i] = false;
	foreign[SLOTS + i] = 0;
}

static void step(struct fuzz *f)
{
	unsigned int i, done;
	bool created;

	switch (pick(f, 40)) {
	case 0 ... 9:
		begin_slot(f, pick(f, SLOTS));
		break;
	case 10 ... 17:
		end_slot(pick(f, SLOTS));
		break;
	case 18 ... 21:
		random_grant(f);
		break;
	case 22 ... 33:
		i = pick(f, SLOTS);
		if (slot[i].used)
			count.io += !map(1 + pick(f, 6), pick(f, LAST_DFN), slot[i].gfn, 1, 1 + pick(f, 3),
					 SZ_4K, &done);
		break;
	case 34:
		i = pick(f, FRAMES);
		if (guest_memory(has_extent[i] ? 1 : 6, i) == 1)
			count.taken++;
		break;
	case 35 ... 36:
		if (!pv)
			begin_alien(pick(f, ALIENS), pick(f, FRAMES));
		break;
	case 37:
		if (!pv)
			end_alien(pick(f, ALIENS));
		break;
	case 38:
		if (have_edu && !pick(f, 4)) {
			if (guest_has_edu) {
				/* Through quarantine. */
				want_eq(assign(47, guest), 0);
				want_eq(assign(47, DOMID_IO), 0);
				guest_has_edu = false;
			} else if (!assign(37, guest)) {
				guest_has_edu = true;
				count.lent++;
			}
		}
		break;
	default:
		if (pick(f, 10))
			break;
		end_guest(f);
		/* The main thread may set stop at any time. */
		created = new_guest(f);
		want(created, "no other domain: %d", errno);
		if (!created)
			stop = true;
	}
}

static void *live(void *arg)
{
	while (!stop)
		step(arg);
	return NULL;
}

/* Counts the other domains, including zombies. */
static long other_domains(void)
{
	static uint8_t info[SZ_4K];
	struct {
		uint32_t cmd, version;
		uint16_t first, pad;
		uint32_t max;
		uint64_t buffer;
		uint32_t nr;
		uint8_t room[104];
	} op = { .cmd = 6, .version = 0x15, .first = 1, .max = 8, .buffer = (unsigned long)info };
	long ret = hypercall(SYSCTL, (unsigned long)&op, 0);

	return ret < 0 ? ret : op.nr;
}

static void test_hostile(uint64_t seed, unsigned int threads)
{
	struct fuzz f[threads + 1];
	unsigned long calls = 0, ok = 0;
	long tables = pool_free(), pages = free_pages();
	unsigned int i;

	want_eq(other_domains(), 0);
	for (i = 0; i <= threads; i++)
		f[i] = (struct fuzz){ .state = seed * 2654435761u + i + 1, .nr = i };
	want(new_guest(&f[threads]), "%d", errno);
	if (case_failed)
		return;
	for (i = 0; i <= threads; i++)
		if (pthread_create(&f[i].thread, NULL, i < threads ? fuzz : live, &f[i]))
			exit(1);
	for (i = 0; i < threads; i++) {
		pthread_join(f[i].thread, NULL);
		calls += f[i].calls;
		ok += f[i].ok;
	}
	stop = true;
	pthread_join(f[threads].thread, NULL);
	printf("# %lu calls, %lu succeeded; %lu domains, %lu grants mapped, %lu ended; "
	       "%lu frames without a grant; %lu of them all for DMA; %lu taken, %lu times a device\n",
	       calls, ok, count.domains, count.mapped, count.ended, count.aliens, count.io, count.taken, count.lent);
	want(count.domains > 3 && count.mapped > 100 && count.io > 50, "too few");
	report("it_does_its_worst");

	/* End the grants of the last one first, while contexts have the frames. */
	for (i = 0; i < SLOTS; i++)
		end_slot(i);
	for (i = 0; i < ALIENS; i++)
		end_alien(i);
	for (unsigned int c = 1; c <= caps.max_ctx; c++) {
		long ret = free_ctx(c, REATTACH_DEFAULT);

		want(!ret || ret == -EINVAL, "context %u: %ld", c, ret);
	}
	/* The domain may have overwritten the table. A pinned grant remains in use. */
	want(has_extent[0] || guest_memory(6, 0) == 1, "no memory");
	for (i = FIRST_REF; i < FIRST_REF + REFS; i++) {
		uint64_t gfn = FIRST_GFN;
		uint32_t handle;

		table[i].flags = 0;
		table[i].domid = 0;
		table[i].frame = extent[0];
		__sync_synchronize();
		table[i].flags = 1;
		want_eq(map_grant(guest, i, &gfn, 0, &handle), 0);
		want_eq(table[i].flags & GRANT_IN_USE, GRANT_IN_USE);
		want_eq(unmap_grant(gfn, handle), 0);
		want_eq(table[i].flags & GRANT_IN_USE, 0);
	}
	report("grants_are_free");

	end_guest(&f[threads]);
	if (have_edu)
		want_eq(move_edu(0), 0);
	for (i = 0; i < 50 && other_domains(); i++)
		usleep(100000);
	want_eq(other_domains(), 0);
	report("domains_are_gone");

	want(tables > 0, "%ld", tables);
	want_eq(pool_free(), tables);
	for (i = 0; i < 20 && labs(free_pages() - pages) >= 16; i++)
		usleep(100000);
	want(labs(free_pages() - pages) < 16, "%ld, %ld before", free_pages(), pages);
	report("pages_are_back");
}

int main(int argc, char **argv)
{
	uint64_t seed = time(NULL) ^ getpid();
	struct init init = { 64, 10 };
	long own;
	int opt;

	fuzz_calls = 20000;
	while ((opt = getopt(argc, argv, "s:n:")) != -1) {
		switch (opt) {
		case 's': seed = strtoull(optarg, NULL, 0); break;
		case 'n': fuzz_calls = strtoul(optarg, NULL, 0); break;
		default: return 2;
		}
	}
	start();
	if (privcmd < 0 || !find_guest_type())
		return 1;
	nr_foreign = NR_FOREIGN;
	printf("KTAP version 1\n1..5\n# seed %lu (-s)\n", (long)seed);
	find_edu();
	own = current_pages();
	iommu(INIT, &init);
	if (iommu(QUERY, &caps) || !caps.max_ctx || get_frames() || get_lists()) {
		printf("Bail out! no contexts, or no memory\n");
		return 1;
	}
	test_hostile(seed, 2);
	want_eq(put_frames(), NR_FRAMES);
	want_eq(current_pages(), own);
	report("own_pages_are_back");
	return failed || test_nr != 5;
}
