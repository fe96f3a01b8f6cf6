// SPDX-License-Identifier: GPL-2.0-only
/*
 * A software hypervisor with the PV-IOMMU interface, for KUnit tests
 *
 * Each mapped frame has its own entry, and page tables are only counted. This
 * is simple enough to be trusted as the reference for what a device can reach.
 *
 * Each call is checked. It counts as a violation unless
 * - arguments are well-formed: known flags, supported sizes, aligned, counters
 *   zero on entry, nothing beyond the highest address;
 * - mappings are readable or writeable, and not over another one (unless the
 *   test allows that) or one that has not been flushed;
 * - only mapped frames are unmapped;
 * - extensions are used only if their capability is reported;
 * - IOMMU_init is called once, with values that are safe on known hypervisors;
 * - nested tables have valid pointers, and are not used after their removal;
 * - contexts are freed without devices and mappings, and not by force;
 * - the number of references matches the number of frames in contexts.
 */
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "xen_iommu_sim.h"

#define SIM_PAGE_SHIFT		12
#define SIM_TABLE_SHIFT		9

#define SIM_MAP_FLAGS	(IOMMU_MAP_readable | IOMMU_MAP_writeable | IOMMU_MAP_cache)

/* The instance behind the hypercalls, which have no argument to name it. */
struct xen_iommu_sim *xen_iommu_sim;

#define sim_violation(sim, fmt, ...)					\
do {									\
	atomic_inc(&(sim)->violations);					\
	pr_err("xen-iommu-sim: " fmt "\n", ##__VA_ARGS__);		\
} while (0)

static bool sim_quirk(struct xen_iommu_sim *sim, enum sim_quirk quirk)
{
	return sim->conf.quirks & quirk;
}

static u64 sim_get(struct xarray *xa, u64 index)
{
	void *entry = xa_load(xa, index);

	return entry ? xa_to_value(entry) : 0;
}

static void sim_set(struct xen_iommu_sim *sim, struct xarray *xa, u64 index,
		    u64 value)
{
	if (!value)
		xa_erase(xa, index);
	else if (xa_is_err(xa_store(xa, index, xa_mk_value(value), GFP_ATOMIC)))
		sim_violation(sim, "out of memory");
}

static bool sim_pool_take(struct xen_iommu_sim *sim)
{
	if (sim->pool_used >= sim->pool)
		return false;
	sim->pool_used++;
	return true;
}

static void sim_pool_give(struct xen_iommu_sim *sim)
{
	if (!sim->pool_used--)
		sim_violation(sim, "pool underflow");
}

static bool sim_within(u64 x, u64 start, u64 end)
{
	return x >= start && x < end;
}

/*
 * Failures
 */

/* Returns how many frames the call may process, and *@ret, the error then. */
static u64 sim_limit(struct xen_iommu_sim *sim, unsigned int subop, int *ret)
{
	static const int errors[] = {
		-ENOMEM, -EIO, -EBUSY, -EINVAL, -EPERM, -ENOENT, 0,
	};

	for (unsigned int i = 0; i < sim->nr_faults; i++) {
		struct sim_fault *fault = &sim->fault[i];

		if (fault->subop != subop)
			continue;
		if (fault->skip) {
			fault->skip--;
			continue;
		}
		if (!fault->times)
			continue;
		fault->times--;
		sim->nr_injected++;
		*ret = fault->ret;
		return fault->frames;
	}

	if (sim->fault_rate && prandom_u32_state(&sim->rnd) % 1000 < sim->fault_rate) {
		sim->nr_injected++;
		*ret = errors[prandom_u32_state(&sim->rnd) % ARRAY_SIZE(errors)];
		if (subop != IOMMU_map_pages && subop != IOMMU_unmap_pages && !*ret)
			*ret = -EBUSY;
		return prandom_u32_state(&sim->rnd) % 64;
	}
	if (subop == IOMMU_map_pages || subop == IOMMU_unmap_pages) {
		*ret = sim->error[subop == IOMMU_map_pages];
		return sim->left[subop == IOMMU_map_pages];
	}
	*ret = 0;
	return SIM_ALL;
}

static void sim_spend(u64 *left, u64 done)
{
	if (*left != SIM_ALL)
		*left -= min(*left, done);
}

static void sim_check_sums(struct xen_iommu_sim *sim)
{
	struct sim_ctx *ctx;
	unsigned long i;
	u64 frames = 0;

	xa_for_each(&sim->contexts, i, ctx)
		frames += ctx->nr_frames + ctx->nr_stale;
	if (frames != sim->refs)
		sim_violation(sim, "%llu frames, %llu references", frames,
			      sim->refs);
}

/*
 * Contexts
 */

static struct sim_ctx *sim_new_ctx(struct xen_iommu_sim *sim, u16 nr)
{
	struct sim_ctx *ctx = kzalloc_obj(*ctx, GFP_ATOMIC);

	if (!ctx || xa_is_err(xa_store(&sim->contexts, nr, ctx, GFP_ATOMIC))) {
		sim_violation(sim, "out of memory");
		kfree(ctx);
		return NULL;
	}
	xa_init(&ctx->frames);
	xa_init(&ctx->stale);
	xa_init(&ctx->tables);
	xa_init(&ctx->tlb);
	xa_init(&ctx->leaves);
	return ctx;
}

static void sim_destroy_ctx(struct xen_iommu_sim *sim, struct sim_ctx *ctx)
{
	unsigned long i;
	void *entry;

	xa_for_each(&ctx->tables, i, entry)
		sim_pool_give(sim);
	sim->refs -= ctx->nr_frames + ctx->nr_stale;
	xa_destroy(&ctx->frames);
	xa_destroy(&ctx->stale);
	xa_destroy(&ctx->tables);
	xa_destroy(&ctx->tlb);
	xa_destroy(&ctx->leaves);
	kfree(ctx);
}

/* Finds a context that can be mapped into. */
static struct sim_ctx *sim_get_ctx(struct xen_iommu_sim *sim, u16 nr)
{
	struct sim_ctx *ctx = nr ? xa_load(&sim->contexts, nr) : NULL;

	if (!ctx || ctx->dying || ctx->identity || ctx->root) {
		sim_violation(sim, "context %u cannot be used", nr);
		return NULL;
	}
	return ctx;
}

static int sim_get_number(struct xen_iommu_sim *sim, unsigned int subop, u16 *nr,
			  struct sim_ctx **ctx)
{
	int ret = 0;

	*ctx = NULL;
	if (!sim->initialised) {
		sim_violation(sim, "alloc before init");
		return -EACCES;
	}
	if (sim_limit(sim, subop, &ret) != SIM_ALL)
		return ret;
	if (sim->forge_ctx >= 0) {
		*nr = sim->forge_ctx;
		return 0;
	}

	for (*nr = 1; *nr <= sim->max_ctx; ++*nr)
		if (!xa_load(&sim->contexts, *nr))
			break;
	if (*nr > sim->max_ctx)
		return -ENOSPC;
	if (!sim_pool_take(sim))
		return -ENOMEM;
	*ctx = sim_new_ctx(sim, *nr);
	return *ctx ? 0 : -ENOMEM;
}

static int sim_alloc(struct xen_iommu_sim *sim, struct pv_iommu_alloc *op)
{
	u32 flags = op->alloc_flags, known = 0;
	struct sim_ctx *ctx;
	int ret;

	if (sim->conf.caps & IOMMUCAP_identity)
		known |= IOMMU_ALLOC_identity;
	if (sim->conf.caps & IOMMUCAP_alloc_empty)
		known |= IOMMU_ALLOC_empty;
	if (flags & ~known) {
		sim_violation(sim, "alloc flags %#x", flags);
		return -EINVAL;
	}
	ret = sim_get_number(sim, IOMMU_alloc_context, &op->ctx_no, &ctx);
	if (!ret && ctx) {
		ctx->identity = flags & IOMMU_ALLOC_identity;
		ctx->empty = flags & IOMMU_ALLOC_empty;
	}
	return ret;
}

static int sim_alloc_nested(struct xen_iommu_sim *sim,
			    struct pv_iommu_alloc_nested *op)
{
	struct sim_ctx *ctx;
	int ret;

	if (!(sim->conf.caps & IOMMUCAP_nested) || sim->conf.pv ||
	    op->nested_flags != IOMMU_NESTED_FMT_x86_64_4 || !op->pgtable_gfn ||
	    !op->desc_gfn || op->desc_gfn == op->pgtable_gfn) {
		sim_violation(sim, "nested context with flags %#llx", op->nested_flags);
		return -EINVAL;
	}
	ret = sim_get_number(sim, IOMMU_alloc_nested, &op->ctx_no, &ctx);
	if (!ret && ctx)
		ctx->root = op->pgtable_gfn;
	return ret;
}

static int sim_free(struct xen_iommu_sim *sim, struct pv_iommu_free *op)
{
	struct sim_ctx *ctx = op->ctx_no ? xa_load(&sim->contexts, op->ctx_no) :
					   NULL;
	int ret = 0;

	if (!ctx || ctx->dying) {
		sim_violation(sim, "free of context %u", op->ctx_no);
		return -EINVAL;
	}
	if (op->free_flags || ctx->nr_devices || ctx->nr_frames)
		sim_violation(sim, "free of context %u: flags %#x, %u devices, %llu frames",
			      op->ctx_no, op->free_flags, ctx->nr_devices,
			      ctx->nr_frames);
	/* Drafts: a context is unusable after a refused free. */
	if (ctx->nr_devices || sim_quirk(sim, SIM_FREE_BUSY)) {
		ctx->dying = sim_quirk(sim, SIM_FREE_LEAKS | SIM_FREE_BUSY);
		return -EBUSY;
	}
	if (sim_limit(sim, IOMMU_free_context, &ret) != SIM_ALL)
		return ret;
	xa_erase(&sim->contexts, op->ctx_no);
	sim_destroy_ctx(sim, ctx);
	if (!sim_quirk(sim, SIM_FREE_LEAKS))
		sim_pool_give(sim);
	return 0;
}

static int sim_query_caps(struct xen_iommu_sim *sim,
			  struct pv_iommu_capabilities *op)
{
	int ret = 0;

	if (sim_limit(sim, IOMMU_query_capabilities, &ret) != SIM_ALL)
		return ret;
	*op = (struct pv_iommu_capabilities) {
		.max_iova_addr = sim->conf.max_iova,
		.cap_flags = sim->conf.caps,
		.pgsize_mask = sim->conf.pgsize_mask,
		.max_ctx_no = sim->initialised ? sim->max_ctx : 0,
	};
	return 0;
}

static int sim_op_init(struct xen_iommu_sim *sim, struct pv_iommu_init *op)
{
	const struct pv_iommu_limits *limits = &sim->conf.limits;
	int ret = 0;

	/* These crash a hypervisor with a draft of the interface. */
	if (!op->arena_order || op->arena_order > 20 || !op->max_ctx_no ||
	    op->max_ctx_no > 0xfffe) {
		sim_violation(sim, "init with order %u, %u contexts",
			      op->arena_order, op->max_ctx_no);
		return -EINVAL;
	}
	if (sim->initialised && !sim_quirk(sim, SIM_INIT_FALLS_THROUGH)) {
		sim_violation(sim, "second init");
		return -EACCES;
	}
	if (sim_quirk(sim, SIM_INIT_IDLE))
		return 0;
	if (sim_limit(sim, IOMMU_init, &ret) != SIM_ALL)
		/* In the drafts, the alloc that follows finds no context. */
		return sim_quirk(sim, SIM_INIT_FALLS_THROUGH) ? -ENOSPC : ret;
	if ((limits->max_ctx_no && op->max_ctx_no > limits->max_ctx_no) ||
	    (limits->arena_order && op->arena_order > limits->arena_order))
		return -EINVAL;
	if (!sim->initialised) {
		sim->initialised = true;
		sim->max_ctx = op->max_ctx_no;
		sim->pool = sim->conf.pool ?: BIT_ULL(op->arena_order);
	}
	if (sim_quirk(sim, SIM_INIT_FALLS_THROUGH)) {
		struct pv_iommu_alloc alloc = {};

		ret = sim_alloc(sim, &alloc);
		sim->leaked += !ret;
		memcpy(op, &alloc, sizeof(alloc));
	}
	return ret;
}

void sim_move_device(struct xen_iommu_sim *sim, struct sim_device *dev, u16 nr,
		     bool gone)
{
	struct sim_ctx *from = xa_load(&sim->contexts, dev->ctx);
	struct sim_ctx *to = xa_load(&sim->contexts, nr);

	if (from && !dev->gone)
		from->nr_devices--;
	if (to && !gone)
		to->nr_devices++;
	dev->ctx = nr;
	dev->gone = gone;
}

static int sim_reattach(struct xen_iommu_sim *sim,
			struct pv_iommu_reattach_device *op)
{
	struct sim_device *dev;
	struct sim_ctx *ctx;
	int ret = 0;

	if (op->pasid)
		sim_violation(sim, "reattach with PASID %u", op->pasid);
	dev = sim_find_device(sim, op->dev.seg, op->dev.bus, op->dev.devfn);
	if (!dev || dev->gone)
		return sim_quirk(sim, SIM_NO_DEVICE_ENOENT) ? -ENOENT : -ENODEV;
	ctx = xa_load(&sim->contexts, op->ctx_no);
	if (!ctx || ctx->dying) {
		sim_violation(sim, "attach to context %u", op->ctx_no);
		return -EINVAL;
	}
	if (sim_limit(sim, IOMMU_reattach_device, &ret) != SIM_ALL)
		return ret;
	sim_move_device(sim, dev, op->ctx_no, false);
	return 0;
}

/*
 * Mapping and unmapping
 */

/* Returns true if a device in the context owns the reserved region. */
static bool sim_owns_rdm(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			 const struct sim_rdm *rdm)
{
	for (unsigned int i = 0; i < sim->nr_devices; i++) {
		struct sim_device *dev = &sim->device[i];

		if (!dev->gone && dev->bus == rdm->bus && dev->devfn == rdm->devfn &&
		    xa_load(&sim->contexts, dev->ctx) == ctx)
			return true;
	}
	return false;
}

static int sim_may_map(struct xen_iommu_sim *sim, struct sim_ctx *ctx, u64 dfn,
		       u64 gfn, bool first)
{
	if (xa_load(&ctx->frames, dfn)) {
		if (!sim->overlap_ok)
			sim_violation(sim, "map of dfn %#llx, which is mapped", dfn);
		return -EADDRINUSE;
	}
	if (xa_load(&ctx->stale, dfn))
		sim_violation(sim, "map of dfn %#llx, which was not flushed", dfn);
	if (sim_within(gfn, sim->hole_start, sim->hole_end))
		return -ENOENT;
	if (sim_within(gfn, sim->foreign_start, sim->foreign_end) && !sim->foreign_ok)
		return -EPERM;
	for (unsigned int i = 0; i < sim->nr_rdm; i++) {
		struct sim_rdm *rdm = &sim->rdm[i];

		if (!sim_within(dfn, rdm->start, rdm->start + rdm->nr) ||
		    (sim_quirk(sim, SIM_RDM_FIRST_ONLY) && !first) ||
		    (ctx->empty && (dfn == gfn || !sim_owns_rdm(sim, ctx, rdm))))
			continue;
		return sim_quirk(sim, SIM_RDM_FIRST_ONLY) ? -EADDRINUSE :
							    -EADDRNOTAVAIL;
	}
	return 0;
}

static int sim_map_page(struct xen_iommu_sim *sim, struct sim_ctx *ctx, u64 dfn,
			u64 gfn, u32 flags, bool first)
{
	u64 table = dfn >> SIM_TABLE_SHIFT;
	int ret = sim_may_map(sim, ctx, dfn, gfn, first);

	if (ret)
		return ret;
	if (!sim_get(&ctx->tables, table) && !sim_pool_take(sim))
		return -ENOMEM;

	sim_set(sim, &ctx->frames, dfn, gfn << 3 | flags);
	sim_set(sim, &ctx->tables, table, sim_get(&ctx->tables, table) + 1);
	ctx->nr_frames++;
	sim->refs++;
	return 0;
}

static void sim_drop_stale(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			   u64 dfn, u64 nr)
{
	unsigned long i;
	void *entry;

	if (!nr)
		return;
	xa_for_each_range(&ctx->stale, i, entry, dfn, dfn + nr - 1) {
		xa_erase(&ctx->stale, i);
		ctx->nr_stale--;
		sim->refs--;
	}
}

static int sim_unmap_page(struct xen_iommu_sim *sim, struct sim_ctx *ctx, u64 dfn)
{
	u64 table = dfn >> SIM_TABLE_SHIFT, left = sim_get(&ctx->tables, table) - 1;

	if (!xa_load(&ctx->frames, dfn)) {
		sim_violation(sim, "unmap of dfn %#llx, which is not mapped", dfn);
		return -ENOENT;
	}
	sim_set(sim, &ctx->stale, dfn, sim_get(&ctx->frames, dfn));
	xa_erase(&ctx->frames, dfn);
	ctx->nr_frames--;
	ctx->nr_stale++;
	sim_set(sim, &ctx->tables, table, left);
	if (!left)
		sim_pool_give(sim);
	return 0;
}

static int sim_map_frames(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			  u64 dfn, u64 gfn, u64 nr, u32 flags, u64 *limit,
			  int stop, u64 *done)
{
	u64 end = (sim->conf.max_iova >> SIM_PAGE_SHIFT) + 1;
	bool first = true;
	int ret;

	if (!(flags & (IOMMU_MAP_readable | IOMMU_MAP_writeable)) ||
	    (flags & ~SIM_MAP_FLAGS) ||
	    ((flags & IOMMU_MAP_cache) && !(sim->conf.caps & IOMMUCAP_cache)) ||
	    !nr || nr > end || dfn > end - nr) {
		sim_violation(sim, "map of %#llx frames, dfn %#llx, flags %#x",
			      nr, dfn, flags);
		return -EINVAL;
	}
	for (; nr; nr--, dfn++, gfn++, first = false) {
		if (!*limit)
			return stop;
		ret = sim_map_page(sim, ctx, dfn, gfn, flags, first);
		if (ret)
			return ret;
		++*done;
		sim_spend(limit, 1);
	}
	return 0;
}

static int sim_unmap_frames(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			    u64 dfn, u64 nr, u32 flags, u64 *limit, int stop,
			    u64 *done)
{
	bool flush = !(flags & IOMMU_UNMAP_no_flush);
	u64 first = dfn;
	int ret = 0;

	if (!nr || dfn + nr < dfn || (flags & ~IOMMU_UNMAP_no_flush) ||
	    (flags && !(sim->conf.caps & IOMMUCAP_deferred_unmap))) {
		sim_violation(sim, "unmap of %#llx frames at dfn %#llx, flags %#x",
			      nr, dfn, flags);
		return -EINVAL;
	}
	for (; nr; nr--, dfn++) {
		u64 gfn = sim_get(&ctx->frames, dfn) >> 3;

		ret = *limit ? sim_unmap_page(sim, ctx, dfn) : stop;
		if (!*limit || ret)
			break;
		/* Grants are flushed and released at once. */
		if (sim_within(gfn, sim->foreign_start, sim->foreign_end))
			flush = true;
		++*done;
		sim_spend(limit, 1);
	}
	if (flush)
		sim_drop_stale(sim, ctx, first, dfn - first);
	return ret;
}

/* Pages must be 4 KiB, and the counter zero on entry. */
static bool sim_check_pages(struct xen_iommu_sim *sim, u32 pgsize, u32 counter)
{
	if (pgsize == SZ_4K && !counter)
		return true;
	sim_violation(sim, "page size %#x, counter %u on entry", pgsize, counter);
	return false;
}

static u32 sim_count(struct xen_iommu_sim *sim, u32 done, u32 wanted)
{
	return sim_quirk(sim, SIM_OVERCOUNTS) && done == wanted ? done + 7 : done;
}

static int sim_map_pages(struct xen_iommu_sim *sim, struct pv_iommu_map_pages *op)
{
	struct sim_ctx *ctx = sim_get_ctx(sim, op->ctx_no);
	u64 limit, done = 0;
	int stop = 0, ret;

	if (!sim_check_pages(sim, op->pgsize, op->mapped) || !ctx)
		return -EINVAL;
	limit = sim_limit(sim, IOMMU_map_pages, &stop);
	ret = sim_map_frames(sim, ctx, op->dfn, op->gfn, op->nr_pages,
			     op->map_flags, &limit, stop, &done);
	sim_spend(&sim->left[1], done);

	op->mapped = sim_count(sim, done, op->nr_pages);
	if (sim_quirk(sim, SIM_PREEMPTS)) {
		op->dfn += done;
		op->gfn += done;
		op->nr_pages -= done;
	}
	return ret;
}

static int sim_unmap_pages(struct xen_iommu_sim *sim,
			   struct pv_iommu_unmap_pages *op)
{
	struct sim_ctx *ctx = sim_get_ctx(sim, op->ctx_no);
	u64 limit, done = 0;
	int stop = 0, ret;

	if (!sim_check_pages(sim, op->pgsize, op->unmapped) || !ctx)
		return -EINVAL;
	limit = sim_limit(sim, IOMMU_unmap_pages, &stop);
	ret = sim_unmap_frames(sim, ctx, op->dfn, op->nr_pages, op->unmap_flags,
			       &limit, stop, &done);
	sim_spend(&sim->left[0], done);

	op->unmapped = sim_count(sim, done, op->nr_pages);
	if (sim_quirk(sim, SIM_PREEMPTS)) {
		op->dfn += done;
		op->nr_pages -= done;
	}
	return ret;
}

static u64 sim_nr_left(const struct pv_iommu_run *run, unsigned int nr)
{
	u64 left = 0;

	while (nr--)
		left += run[nr].nr_frames;
	return left;
}

/* Ranges and lists have their arguments in registers, and return a count. */
static long sim_runs(struct xen_iommu_sim *sim, bool map, bool list,
		     unsigned long a1, unsigned long a2, unsigned long a3,
		     unsigned long a4)
{
	struct pv_iommu_run one = { .dfn = a2, .nr_frames = a3, .gfn = a4 };
	const struct pv_iommu_run *run = &one;
	u64 limit, wanted, skip = list ? a4 : 0, done = 0;
	struct sim_ctx *ctx = sim_get_ctx(sim, a1 & U16_MAX);
	unsigned int nr = list ? a3 : 1;
	u32 flags = (u64)a1 >> 32;
	int stop = 0, ret = 0;

	if (list)
		run = sim->conf.pv ? (void *)a2 : phys_to_virt(a2);
	if (!(sim->conf.caps & IOMMUCAP_runs) || !ctx || !nr ||
	    nr > IOMMU_MAX_RUNS || (a1 & GENMASK(31, 16)) ||
	    skip >= sim_nr_left(run, nr)) {
		sim_violation(sim, "%u runs, skip %llu, argument %#lx", nr, skip, a1);
		return -EINVAL;
	}
	wanted = sim_nr_left(run, nr) - skip;
	limit = sim_limit(sim, map ? IOMMU_map_pages : IOMMU_unmap_pages, &stop);
	if (sim_quirk(sim, SIM_PREEMPTS) && wanted / 2 + 1 < limit) {
		limit = wanted / 2 + 1;
		stop = 0;
	}
	for (u32 i = 0; i < nr && !ret; i++) {
		u64 left_out = min(skip, run[i].nr_frames);
		u64 dfn = run[i].dfn + left_out, gfn = run[i].gfn + left_out;
		u64 frames = run[i].nr_frames - left_out;

		skip -= left_out;
		if (!frames && left_out)
			continue;
		if (!limit) {
			ret = stop;
			break;
		}
		if (map)
			ret = sim_map_frames(sim, ctx, dfn, gfn, frames, flags,
					     &limit, stop, &done);
		else
			ret = sim_unmap_frames(sim, ctx, dfn, frames, flags,
					       &limit, stop, &done);
	}
	sim_spend(&sim->left[map], done);
	if (!done)
		return ret;
	if (sim_quirk(sim, SIM_OVERCOUNTS) && done == wanted)
		done += 7;
	return done + (list ? a4 : 0);
}

/* Flushes whole contexts only: the driver has no use for flushes of a range. */
static int sim_flush_pages(struct xen_iommu_sim *sim,
			   struct pv_iommu_flush_pages *op)
{
	struct sim_ctx *ctx = sim_get_ctx(sim, op->ctx_no);
	int ret = 0;

	if (!ctx || op->nr_pages || !(sim->conf.caps & IOMMUCAP_deferred_unmap)) {
		sim_violation(sim, "flush of %u pages", op->nr_pages);
		return -EINVAL;
	}
	if (sim_limit(sim, IOMMU_flush_pages, &ret) == SIM_ALL)
		sim_drop_stale(sim, ctx, 0, BIT_ULL(52));
	return ret;
}

/*
 * Nested contexts: x86-64 tables in the caller's memory
 */

#define SIM_PTE_PRESENT	BIT(0)
#define SIM_PTE_WRITE	BIT(1)
#define SIM_PTE_USER	BIT(2)
#define SIM_PTE_LARGE	BIT(7)

static u64 sim_pte_frame(u64 pte)
{
	return (pte & GENMASK_ULL(51, 12)) >> SIM_PAGE_SHIFT;
}

/* An access by a device that caches everything until it is flushed. */
static u64 sim_access(struct xen_iommu_sim *sim, struct sim_ctx *ctx, u64 dfn)
{
	u64 entry = sim_get(&ctx->tlb, dfn), table = ctx->root, pte = 0, leaf;
	int level;

	if (entry)
		return entry;
	leaf = sim_get(&ctx->leaves, dfn >> SIM_TABLE_SHIFT);
	for (level = 3; level >= 0; level--) {
		if (!pfn_valid(table)) {
			sim_violation(sim, "table at %#llx", table);
			return 0;
		}
		if (!level)
			break;
		pte = READ_ONCE(((u64 *)phys_to_virt(table << SIM_PAGE_SHIFT))
				[dfn >> (9 * level) & 511]);
		if (!(pte & SIM_PTE_PRESENT) || pte & SIM_PTE_LARGE)
			break;
		table = sim_pte_frame(pte);
	}
	/* A cached table must still be in place. */
	if (leaf && (level || leaf != table))
		sim_violation(sim, "table of dfn %#llx is gone, and was not flushed",
			      dfn);
	if (!level) {
		sim_set(sim, &ctx->leaves, dfn >> SIM_TABLE_SHIFT, table);
		pte = READ_ONCE(((u64 *)phys_to_virt(table << SIM_PAGE_SHIFT))
				[dfn & 511]);
	}
	if (!(pte & SIM_PTE_PRESENT))
		return 0;
	if (!(pte & SIM_PTE_USER))
		sim_violation(sim, "dfn %#llx is not for devices", dfn);
	entry = sim_pte_frame(pte);
	if (level)
		entry = (entry & ~(BIT_ULL(9 * level) - 1)) |
			(dfn & (BIT_ULL(9 * level) - 1));
	entry = entry << 3 | IOMMU_MAP_readable |
		(pte & SIM_PTE_WRITE ? IOMMU_MAP_writeable : 0);
	sim_set(sim, &ctx->tlb, dfn, entry);
	return entry;
}

static long sim_flush_nested(struct xen_iommu_sim *sim, unsigned long ctx_flags,
			     u64 dfn, u64 nr)
{
	struct sim_ctx *ctx = xa_load(&sim->contexts, ctx_flags & U16_MAX);
	u32 flags = (u64)ctx_flags >> 32;
	unsigned long i;
	void *entry;
	int ret = 0;

	if (!ctx || !ctx->root || (ctx_flags & GENMASK(31, 16)) ||
	    (flags & ~IOMMU_FLUSH_tables)) {
		sim_violation(sim, "nested flush with %#lx", ctx_flags);
		return -EINVAL;
	}
	if (sim_limit(sim, IOMMU_flush_nested, &ret) != SIM_ALL)
		return ret;
	xa_for_each_range(&ctx->tlb, i, entry, nr ? dfn : 0,
			  nr ? dfn + nr - 1 : ULONG_MAX)
		xa_erase(&ctx->tlb, i);
	if (flags & IOMMU_FLUSH_tables)
		xa_for_each(&ctx->leaves, i, entry)
			xa_erase(&ctx->leaves, i);
	return 0;
}

/*
 * Properties and faults
 */

static long sim_query(struct xen_iommu_sim *sim, unsigned long what,
		      unsigned long index, void *buf, size_t size)
{
	/* A newer hypervisor may have fields that the driver does not know. */
	u8 limits[sizeof(struct pv_iommu_limits) + 16];
	int ret = 0;

	if (!(sim->conf.caps & IOMMUCAP_query)) {
		sim_violation(sim, "query without the capability");
		return -EOPNOTSUPP;
	}
	if (sim_limit(sim, IOMMU_query, &ret) != SIM_ALL)
		return ret;
	if (what == IOMMU_QUERY_nested && index == IOMMU_NESTED_FMT_x86_64_4 &&
	    (sim->conf.caps & IOMMUCAP_nested)) {
		memcpy(buf, &sim->conf.nested, min(size, sizeof(sim->conf.nested)));
		return sizeof(sim->conf.nested);
	}
	if (what != IOMMU_QUERY_limits || index)
		return what > IOMMU_QUERY_nested ? -EINVAL : -EOPNOTSUPP;
	memset(limits, 0xff, sizeof(limits));
	memcpy(limits, &sim->conf.limits, sizeof(sim->conf.limits));
	memcpy(buf, limits, min(size, sim->limits_size));
	return sim->limits_size;
}

static long sim_get_faults(struct xen_iommu_sim *sim,
			   struct pv_iommu_fault *buf, unsigned int nr)
{
	int ret = 0;

	if (!(sim->conf.caps & IOMMUCAP_faults)) {
		sim_violation(sim, "get_faults without the capability");
		return -EOPNOTSUPP;
	}
	if (sim_limit(sim, IOMMU_get_faults, &ret) != SIM_ALL)
		return ret;
	sim->reporting = true;
	nr = min(nr, sim->nr_ring);
	memcpy(buf, sim->ring, nr * sizeof(*buf));
	sim->nr_ring -= nr;
	memmove(sim->ring, sim->ring + nr, sim->nr_ring * sizeof(*buf));
	return nr;
}

void sim_report_fault(struct xen_iommu_sim *sim, const struct sim_device *dev,
		      u64 addr, u32 flags, u32 reason)
{
	bool first = false;

	scoped_guard(spinlock_irqsave, &sim->lock) {
		if (!sim->reporting)
			return;
		if (sim->nr_ring == SIM_FAULT_RING) {
			sim->nr_lost++;
			return;
		}
		first = !sim->nr_ring;
		sim->ring[sim->nr_ring++] = (struct pv_iommu_fault) {
			.addr = addr,
			.dev = { dev->seg, dev->bus, dev->devfn },
			.ctx_no = dev->ctx,
			.flags = flags,
			.reason = reason,
			.lost = sim->nr_lost,
		};
		sim->nr_lost = 0;
	}
	if (first && sim->virq)
		sim->virq();
}

/*
 * The calls
 */

static void sim_enter(struct xen_iommu_sim *sim, unsigned int subop, void *arg)
{
	sim->traps++;
	if (subop < SIM_NR_SUBOPS)
		sim->calls[subop]++;
	if (sim->hook)
		sim->hook(sim, subop, arg);
}

long sim_op(unsigned int subop, void *arg)
{
	struct xen_iommu_sim *sim = xen_iommu_sim;
	int ret;

	sim_enter(sim, subop, arg);
	guard(spinlock_irqsave)(&sim->lock);
	switch (subop) {
	case IOMMU_query_capabilities:
		ret = sim_query_caps(sim, arg);
		break;
	case IOMMU_init:
		ret = sim_op_init(sim, arg);
		break;
	case IOMMU_alloc_context:
		ret = sim_alloc(sim, arg);
		break;
	case IOMMU_alloc_nested:
		ret = sim_alloc_nested(sim, arg);
		break;
	case IOMMU_free_context:
		ret = sim_free(sim, arg);
		break;
	case IOMMU_reattach_device:
		ret = sim_reattach(sim, arg);
		break;
	case IOMMU_map_pages:
		ret = sim_map_pages(sim, arg);
		break;
	case IOMMU_unmap_pages:
		ret = sim_unmap_pages(sim, arg);
		break;
	case IOMMU_flush_pages:
		ret = sim_flush_pages(sim, arg);
		break;
	default:
		sim_violation(sim, "sub-op %u", subop);
		ret = -EOPNOTSUPP;
		break;
	}
	sim_check_sums(sim);
	return ret;
}

long sim_op_regs(unsigned int subop, unsigned long a1, unsigned long a2,
		 unsigned long a3, unsigned long a4)
{
	struct xen_iommu_sim *sim = xen_iommu_sim;
	bool list = subop == IOMMU_map_runs || subop == IOMMU_unmap_runs;
	int stop = 0;
	long ret;

	/* Count and fail them by what they do. */
	if (subop == IOMMU_map_range || subop == IOMMU_map_runs)
		subop = IOMMU_map_pages;
	if (subop == IOMMU_unmap_range || subop == IOMMU_unmap_runs)
		subop = IOMMU_unmap_pages;

	sim_enter(sim, subop, NULL);
	guard(spinlock_irqsave)(&sim->lock);
	switch (subop) {
	case IOMMU_noop:
		sim_limit(sim, subop, &stop);
		ret = stop;
		break;
	case IOMMU_map_pages:
	case IOMMU_unmap_pages:
		ret = sim_runs(sim, subop == IOMMU_map_pages, list, a1, a2, a3, a4);
		break;
	case IOMMU_flush_nested:
		ret = sim_flush_nested(sim, a1, a2, a3);
		break;
	case IOMMU_query:
		ret = sim_query(sim, a1, a2, (void *)a3, a4);
		break;
	case IOMMU_get_faults:
		ret = sim_get_faults(sim, (void *)a1, a2);
		break;
	default:
		sim_violation(sim, "sub-op %u", subop);
		ret = -EOPNOTSUPP;
		break;
	}
	sim_check_sums(sim);
	return ret;
}

static struct xen_reserved_device_memory *
sim_rdm_buffer(struct xen_reserved_device_memory_map *map)
{
#ifdef CONFIG_ARM64
	return map->buffer.p;
#else
	return map->buffer;
#endif
}

int sim_memory_op(unsigned int cmd, void *arg)
{
	struct xen_reserved_device_memory_map *map = arg;
	struct xen_reserved_device_memory *buf = sim_rdm_buffer(map);
	struct xen_iommu_sim *sim = xen_iommu_sim;
	unsigned int n = 0, max = map->nr_entries;
	int ret = 0;

	sim_enter(sim, SIM_MEMORY_OP, arg);
	if (cmd != XENMEM_reserved_device_memory_map) {
		sim_violation(sim, "memory op %u", cmd);
		return -EOPNOTSUPP;
	}

	guard(spinlock_irqsave)(&sim->lock);
	if (sim_limit(sim, SIM_MEMORY_OP, &ret) != SIM_ALL)
		return ret;
	for (unsigned int i = 0; i < sim->nr_rdm; i++) {
		struct sim_rdm *rdm = &sim->rdm[i];

		if (!(map->flags & XENMEM_RDM_ALL) &&
		    (map->dev.pci.seg || map->dev.pci.bus != rdm->bus ||
		     map->dev.pci.devfn != rdm->devfn))
			continue;
		if (n < max) {
			buf[n].start_pfn = rdm->start;
			buf[n].nr_pages = rdm->nr;
		}
		n++;
	}
	if (max && sim_quirk(sim, SIM_RDM_GROWS))
		n = max + 1;
	map->nr_entries = n;
	return n > max ? -ENOBUFS : 0;
}

/*
 * PV: a bijection of frame numbers below 2^28 that keeps aligned groups of
 * 2^pv_order frames contiguous.
 */
unsigned long sim_pfn_to_gfn(unsigned long pfn)
{
	unsigned int order = xen_iommu_sim->conf.pv_order;
	unsigned long group = pfn >> order;

	if (!xen_iommu_sim->conf.pv)
		return pfn;
	group = (group * 0x9e3779b1UL) & (BIT(28 - order) - 1);
	return group << order | (pfn & (BIT(order) - 1));
}

/*
 * For the tests
 */

void sim_init(struct xen_iommu_sim *sim, const struct sim_conf *conf)
{
	memset(sim, 0, sizeof(*sim));
	sim->conf = *conf;
	spin_lock_init(&sim->lock);
	xa_init(&sim->contexts);
	atomic_set(&sim->violations, 0);
	sim->forge_ctx = -1;
	sim->limits_size = sizeof(struct pv_iommu_limits);
	sim->left[0] = SIM_ALL;
	sim->left[1] = SIM_ALL;
	/* The xarrays' locks are also taken in interrupts. */
	scoped_guard(spinlock_irqsave, &sim->lock)
		sim_new_ctx(sim, 0);
	if (conf->max_ctx) {
		sim->initialised = true;
		sim->max_ctx = conf->max_ctx;
		sim->pool = conf->pool;
	}
	xen_iommu_sim = sim;
}

unsigned int sim_exit(struct xen_iommu_sim *sim)
{
	unsigned int left = 0;
	struct sim_ctx *ctx;
	unsigned long i;

	sim_check_sums(sim);
	xa_for_each(&sim->contexts, i, ctx) {
		left += i != 0;
		sim_destroy_ctx(sim, ctx);
	}
	xa_destroy(&sim->contexts);
	if (sim->refs)
		sim_violation(sim, "%llu references left", sim->refs);
	xen_iommu_sim = NULL;
	return left;
}

void sim_add_device(struct xen_iommu_sim *sim, u16 seg, u8 bus, u8 devfn)
{
	struct sim_device *dev = &sim->device[sim->nr_devices++];

	*dev = (struct sim_device) {
		.seg = seg, .bus = bus, .devfn = devfn, .gone = true,
	};
	sim_move_device(sim, dev, 0, false);
}

struct sim_device *sim_find_device(struct xen_iommu_sim *sim, u16 seg, u8 bus,
				   u8 devfn)
{
	for (unsigned int i = 0; i < sim->nr_devices; i++) {
		struct sim_device *dev = &sim->device[i];

		if (dev->seg == seg && dev->bus == bus && dev->devfn == devfn)
			return dev;
	}
	return NULL;
}

void sim_add_rdm(struct xen_iommu_sim *sim, u64 start, u64 nr, u8 bus, u8 devfn)
{
	sim->rdm[sim->nr_rdm++] = (struct sim_rdm) {
		.start = start, .nr = nr, .bus = bus, .devfn = devfn,
	};
}

void sim_add_fault(struct xen_iommu_sim *sim, unsigned int subop,
		   unsigned int skip, unsigned int times, int ret, u64 frames)
{
	sim->fault[sim->nr_faults++] = (struct sim_fault) {
		.subop = subop, .skip = skip, .times = times, .ret = ret,
		.frames = frames,
	};
}

void sim_clear_faults(struct xen_iommu_sim *sim)
{
	sim->nr_faults = 0;
	sim->fault_rate = 0;
	sim->left[0] = SIM_ALL;
	sim->left[1] = SIM_ALL;
}

void sim_reset_calls(struct xen_iommu_sim *sim)
{
	memset(sim->calls, 0, sizeof(sim->calls));
	sim->traps = 0;
}

bool sim_walk(struct xen_iommu_sim *sim, u16 nr, u64 dfn, u64 *gfn, u32 *flags)
{
	struct sim_ctx *ctx = xa_load(&sim->contexts, nr);
	u64 entry = ctx ? sim_get(&ctx->frames, dfn) : 0;

	if (ctx && ctx->root) {
		guard(spinlock_irqsave)(&sim->lock);
		entry = sim_access(sim, ctx, dfn);
	}
	if (gfn)
		*gfn = entry >> 3;
	if (flags)
		*flags = entry & 7;
	return entry;
}

bool sim_reaches(struct xen_iommu_sim *sim, u16 nr, u64 dfn)
{
	struct sim_ctx *ctx = xa_load(&sim->contexts, nr);

	return sim_walk(sim, nr, dfn, NULL, NULL) ||
	       (ctx && xa_load(&ctx->stale, dfn));
}

u64 sim_nr_frames(struct xen_iommu_sim *sim, u16 nr)
{
	struct sim_ctx *ctx = xa_load(&sim->contexts, nr);

	return ctx ? ctx->nr_frames : 0;
}

u64 sim_nr_stale(struct xen_iommu_sim *sim, u16 nr)
{
	struct sim_ctx *ctx = xa_load(&sim->contexts, nr);

	return ctx ? ctx->nr_stale : 0;
}

unsigned int sim_nr_contexts(struct xen_iommu_sim *sim)
{
	unsigned int nr = 0;
	struct sim_ctx *ctx;
	unsigned long i;

	xa_for_each(&sim->contexts, i, ctx)
		nr += i != 0;
	return nr;
}
