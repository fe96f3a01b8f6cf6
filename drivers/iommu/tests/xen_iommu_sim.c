// SPDX-License-Identifier: GPL-2.0-only
/*
 * A software hypervisor with the PV-IOMMU interface, for KUnit tests
 *
 * Each frame that is mapped is an entry of its own, and page tables are only
 * counted: simple enough to be right, and to be taken for the truth about what
 * a device reaches.
 *
 * Checked at every call, and counted as a violation if it does not hold:
 * - arguments are well-formed: known flags, sizes that are offered, alignment,
 *   counters zero on entry, nothing beyond the highest address;
 * - no mapping without read or write, none that lies over another one (unless
 *   the test allows that), no unmap of what is not mapped;
 * - extensions only where their capability is reported;
 * - IOMMU_init only with values that no known hypervisor chokes on, once;
 * - contexts are freed only without devices and mappings, never by force;
 * - references to frames and frames in contexts add up.
 */
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "xen_iommu_sim.h"

#define SIM_PAGE_SHIFT	12
#define SIM_L1_SHIFT	9
#define SIM_L2_SHIFT	18
#define SIM_L1_FRAMES	BIT(SIM_L1_SHIFT)
#define SIM_L2_FRAMES	BIT(SIM_L2_SHIFT)
/* In the count of entries of a table: it is a superpage, there is no table. */
#define SIM_SUPER	BIT(16)

#define SIM_KNOWN_FLAGS	(IOMMU_MAP_readable | IOMMU_MAP_writeable | IOMMU_MAP_cache)

/* The one behind the hypercalls: these have no argument to name it. */
struct xen_iommu_sim *xen_iommu_sim;

#define sim_violation(sim, fmt, ...)					\
do {									\
	struct xen_iommu_sim *__sim = (sim);				\
									\
	atomic_inc(&__sim->violations);					\
	pr_err("xen-iommu-sim: " fmt "\n", ##__VA_ARGS__);		\
} while (0)

static bool sim_quirk(struct xen_iommu_sim *sim, enum sim_quirk quirk)
{
	return sim->conf.quirks & quirk;
}

/*
 * Tables: an xarray of counters, by frame number shifted by the level
 */

static u64 sim_table_get(struct xarray *xa, u64 index)
{
	void *entry = xa_load(xa, index);

	return entry ? xa_to_value(entry) : 0;
}

static void sim_table_set(struct xen_iommu_sim *sim, struct xarray *xa,
			  u64 index, u64 value)
{
	if (!value)
		xa_erase(xa, index);
	else if (xa_is_err(xa_store(xa, index, xa_mk_value(value), GFP_ATOMIC)))
		sim_violation(sim, "out of memory");
}

static bool sim_pool_take(struct xen_iommu_sim *sim, u64 nr)
{
	if (sim->pool_used + nr > sim->pool)
		return false;
	sim->pool_used += nr;
	return true;
}

static void sim_pool_give(struct xen_iommu_sim *sim, u64 nr)
{
	if (sim->pool_used < nr)
		sim_violation(sim, "pool underflow");
	else
		sim->pool_used -= nr;
}

/*
 * Frames
 */

static u64 sim_entry(u64 gfn, u32 flags)
{
	return gfn << 3 | flags;
}

static void sim_set_frame(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			  u64 dfn, u64 gfn, u32 flags)
{
	sim_table_set(sim, &ctx->frames, dfn, sim_entry(gfn, flags));
	ctx->nr_frames++;
	sim->refs++;
}

static void sim_clear_frame(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			    u64 dfn)
{
	xa_erase(&ctx->frames, dfn);
	ctx->nr_frames--;
	sim->refs--;
}

/* Superpages that the hypervisor makes of its own. */
static void sim_fold(struct xen_iommu_sim *sim, struct sim_ctx *ctx, u64 dfn)
{
	u64 first = round_down(dfn, SIM_L1_FRAMES);
	u64 entry = sim_table_get(&ctx->frames, first);

	if (!sim_quirk(sim, SIM_FOLDS) || (entry >> 3) & (SIM_L1_FRAMES - 1))
		return;
	for (u64 i = 0; i < SIM_L1_FRAMES; i++)
		if (sim_table_get(&ctx->frames, first + i) != entry + (i << 3))
			return;
	sim_table_set(sim, &ctx->l1, dfn >> SIM_L1_SHIFT,
		      SIM_L1_FRAMES | SIM_SUPER);
	sim_pool_give(sim, 1);
}

/* Tables for one entry of the given order. */
static int sim_get_tables(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			  u64 dfn, unsigned int order)
{
	u64 l2 = sim_table_get(&ctx->l2, dfn >> SIM_L2_SHIFT);
	u64 l1 = sim_table_get(&ctx->l1, dfn >> SIM_L1_SHIFT);
	u64 need = 0;

	if (order < SIM_L2_SHIFT && !l2)
		need++;
	if (order < SIM_L1_SHIFT && !l1)
		need++;
	return sim_pool_take(sim, need) ? 0 : -ENOMEM;
}

static int sim_map_one(struct xen_iommu_sim *sim, struct sim_ctx *ctx, u64 dfn,
		       u64 gfn, u32 flags, unsigned int order)
{
	u64 nr = BIT_ULL(order);
	int ret;

	for (u64 i = 0; i < nr; i++) {
		if (xa_load(&ctx->frames, dfn + i)) {
			if (!sim->overlap_ok)
				sim_violation(sim, "map of dfn %#llx, which is mapped",
					      dfn + i);
			return -EADDRINUSE;
		}
		if (gfn + i >= sim->hole_start && gfn + i < sim->hole_end)
			return -ENOENT;
		if (gfn + i >= sim->foreign_start && gfn + i < sim->foreign_end)
			return -EPERM;
		for (unsigned int j = 0; j < sim->nr_rdm; j++) {
			struct sim_rdm *rdm = &sim->rdm[j];

			if (sim_quirk(sim, SIM_RDM_FIRST_ONLY) ||
			    dfn + i < rdm->start ||
			    dfn + i >= rdm->start + rdm->nr)
				continue;
			return sim_quirk(sim, SIM_RDM_IN_USE) ? -EADDRINUSE :
								-EADDRNOTAVAIL;
		}
	}

	ret = sim_get_tables(sim, ctx, dfn, order);
	if (ret)
		return ret;

	if (order >= SIM_L2_SHIFT) {
		sim_table_set(sim, &ctx->l2, dfn >> SIM_L2_SHIFT,
			      SIM_L1_FRAMES | SIM_SUPER);
		for (u64 i = 0; i < SIM_L1_FRAMES; i++)
			sim_table_set(sim, &ctx->l1, (dfn >> SIM_L1_SHIFT) + i,
				      SIM_L1_FRAMES | SIM_SUPER);
	} else {
		u64 l1 = sim_table_get(&ctx->l1, dfn >> SIM_L1_SHIFT);

		if (!l1)
			sim_table_set(sim, &ctx->l2, dfn >> SIM_L2_SHIFT,
				      sim_table_get(&ctx->l2,
						    dfn >> SIM_L2_SHIFT) + 1);
		sim_table_set(sim, &ctx->l1, dfn >> SIM_L1_SHIFT,
			      order >= SIM_L1_SHIFT ?
			      SIM_L1_FRAMES | SIM_SUPER : l1 + nr);
	}
	for (u64 i = 0; i < nr; i++)
		sim_set_frame(sim, ctx, dfn + i, gfn + i, flags);
	if (order < SIM_L1_SHIFT &&
	    sim_table_get(&ctx->l1, dfn >> SIM_L1_SHIFT) == SIM_L1_FRAMES)
		sim_fold(sim, ctx, dfn);
	return 0;
}

static void sim_put_l1(struct xen_iommu_sim *sim, struct sim_ctx *ctx, u64 dfn)
{
	u64 l2 = sim_table_get(&ctx->l2, dfn >> SIM_L2_SHIFT);
	bool super = l2 & SIM_SUPER;

	if (!(sim_table_get(&ctx->l1, dfn >> SIM_L1_SHIFT) & SIM_SUPER))
		sim_pool_give(sim, 1);
	sim_table_set(sim, &ctx->l1, dfn >> SIM_L1_SHIFT, 0);
	if ((l2 & ~SIM_SUPER) == 1) {
		sim_table_set(sim, &ctx->l2, dfn >> SIM_L2_SHIFT, 0);
		if (!super)
			sim_pool_give(sim, 1);
	} else {
		sim_table_set(sim, &ctx->l2, dfn >> SIM_L2_SHIFT, l2 - 1);
	}
}

/*
 * Unmaps one frame, or a superpage if it is all within @nr. Returns frames
 * unmapped, or a negative error.
 */
static int sim_unmap_one(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			 u64 dfn, u64 nr)
{
	u64 l1, l2;

	if (!xa_load(&ctx->frames, dfn)) {
		sim_violation(sim, "unmap of dfn %#llx, which is not mapped", dfn);
		return -ENOENT;
	}

	l2 = sim_table_get(&ctx->l2, dfn >> SIM_L2_SHIFT);
	if ((l2 & SIM_SUPER) && (l2 & ~SIM_SUPER) == SIM_L1_FRAMES &&
	    (nr < SIM_L2_FRAMES || dfn & (SIM_L2_FRAMES - 1))) {
		if (!sim_pool_take(sim, 1))
			return -ENOMEM;
		sim_table_set(sim, &ctx->l2, dfn >> SIM_L2_SHIFT,
			      l2 & ~SIM_SUPER);
	}

	l1 = sim_table_get(&ctx->l1, dfn >> SIM_L1_SHIFT);
	if ((l1 & SIM_SUPER) && nr >= SIM_L1_FRAMES &&
	    !(dfn & (SIM_L1_FRAMES - 1))) {
		for (u64 i = 0; i < SIM_L1_FRAMES; i++)
			sim_clear_frame(sim, ctx, dfn + i);
		sim_put_l1(sim, ctx, dfn);
		return SIM_L1_FRAMES;
	}
	if (l1 & SIM_SUPER) {
		if (!sim_pool_take(sim, 1))
			return -ENOMEM;
		l1 &= ~SIM_SUPER;
		sim_table_set(sim, &ctx->l1, dfn >> SIM_L1_SHIFT, l1);
	}

	sim_clear_frame(sim, ctx, dfn);
	if (l1 == 1)
		sim_put_l1(sim, ctx, dfn);
	else
		sim_table_set(sim, &ctx->l1, dfn >> SIM_L1_SHIFT, l1 - 1);
	return 1;
}

/*
 * Failures
 */

/* Frames that the call may do; *@ret is what it returns if that is too few. */
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

	if (sim->fault_rate && subop != IOMMU_query_capabilities &&
	    prandom_u32_state(&sim->rnd) % 1000 < sim->fault_rate) {
		sim->nr_injected++;
		*ret = errors[prandom_u32_state(&sim->rnd) % ARRAY_SIZE(errors)];
		if (subop == IOMMU_reattach_device && !*ret)
			*ret = -EBUSY;
		return prandom_u32_state(&sim->rnd) % 64;
	}
	switch (subop) {
	case IOMMU_map_pages:
	case IOMMU_map_runs:
		*ret = sim->map_error;
		return sim->map_left;
	case IOMMU_unmap_pages:
	case IOMMU_unmap_runs:
		*ret = sim->unmap_error;
		return sim->unmap_left;
	default:
		*ret = 0;
		return SIM_ALL;
	}
}

static void sim_spend(u64 *left, u64 done)
{
	if (*left != SIM_ALL)
		*left -= min(*left, done);
}

static void sim_log(struct xen_iommu_sim *sim, const struct sim_call *call)
{
	if (sim->nr_log < SIM_LOG)
		sim->log[sim->nr_log++] = *call;
}

static void sim_check_sums(struct xen_iommu_sim *sim)
{
	struct sim_ctx *ctx;
	unsigned long i;
	u64 frames = 0;

	xa_for_each(&sim->contexts, i, ctx)
		frames += ctx->nr_frames;
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
	xa_init(&ctx->l1);
	xa_init(&ctx->l2);
	return ctx;
}

static void sim_free_tables(struct xen_iommu_sim *sim, struct sim_ctx *ctx)
{
	unsigned long i;
	void *entry;

	xa_for_each(&ctx->l1, i, entry)
		if (!(xa_to_value(entry) & SIM_SUPER))
			sim_pool_give(sim, 1);
	xa_for_each(&ctx->l2, i, entry)
		if (!(xa_to_value(entry) & SIM_SUPER))
			sim_pool_give(sim, 1);
}

static void sim_destroy_ctx(struct xen_iommu_sim *sim, struct sim_ctx *ctx)
{
	sim->refs -= ctx->nr_frames;
	xa_destroy(&ctx->frames);
	xa_destroy(&ctx->l1);
	xa_destroy(&ctx->l2);
	kfree(ctx);
}

/* A context that can be mapped into. */
static struct sim_ctx *sim_get_ctx(struct xen_iommu_sim *sim, u16 nr)
{
	struct sim_ctx *ctx = nr ? xa_load(&sim->contexts, nr) : NULL;

	if (!ctx || ctx->dying || ctx->identity) {
		sim_violation(sim, "context %u cannot be used", nr);
		return NULL;
	}
	return ctx;
}

static int sim_alloc(struct xen_iommu_sim *sim, struct pv_iommu_alloc *op)
{
	struct sim_ctx *ctx;
	int ret = 0;
	u16 nr;

	if (!sim->initialised) {
		sim_violation(sim, "alloc before init");
		return -EACCES;
	}
	if ((op->alloc_flags & ~IOMMU_ALLOC_identity) ||
	    (op->alloc_flags && !(sim->conf.caps & IOMMUCAP_identity))) {
		sim_violation(sim, "alloc flags %#x", op->alloc_flags);
		return -EINVAL;
	}
	if (sim_limit(sim, IOMMU_alloc_context, &ret) != SIM_ALL)
		return ret;
	if (sim->forge_ctx >= 0) {
		op->ctx_no = sim->forge_ctx;
		return 0;
	}

	for (nr = 1; nr <= sim->max_ctx; nr++)
		if (!xa_load(&sim->contexts, nr))
			break;
	if (nr > sim->max_ctx)
		return -ENOSPC;
	if (!sim_pool_take(sim, 1))
		return -ENOMEM;
	ctx = sim_new_ctx(sim, nr);
	if (!ctx)
		return -ENOMEM;
	ctx->identity = op->alloc_flags & IOMMU_ALLOC_identity;
	op->ctx_no = nr;
	return 0;
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
	if (op->free_flags ||
	    ((ctx->nr_devices || ctx->nr_frames) && !sim->full_ok))
		sim_violation(sim, "free of context %u: flags %#x, %u devices, %llu frames",
			      op->ctx_no, op->free_flags, ctx->nr_devices,
			      ctx->nr_frames);
	if (sim_quirk(sim, SIM_FREE_BUSY)) {
		ctx->dying = true;
		return -EBUSY;
	}
	/* Drafts: a context that was refused once is gone for good. */
	if (ctx->nr_devices) {
		ctx->dying = sim_quirk(sim, SIM_FREE_LEAKS);
		return -EBUSY;
	}
	if (sim_limit(sim, IOMMU_free_context, &ret) != SIM_ALL)
		return ret;
	xa_erase(&sim->contexts, op->ctx_no);
	sim_free_tables(sim, ctx);
	sim_destroy_ctx(sim, ctx);
	if (!sim_quirk(sim, SIM_FREE_LEAKS))
		sim_pool_give(sim, 1);
	return 0;
}

static int sim_query(struct xen_iommu_sim *sim, struct pv_iommu_capabilities *op)
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
	int ret = 0;

	/* A draft dies of these; the calling domain must know. */
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
	if (sim_limit(sim, IOMMU_init, &ret) != SIM_ALL) {
		/* The alloc that follows in the drafts finds no context. */
		return sim_quirk(sim, SIM_INIT_FALLS_THROUGH) ? -ENOSPC : ret;
	}
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

static int sim_reattach(struct xen_iommu_sim *sim,
			struct pv_iommu_reattach_device *op)
{
	struct sim_device *dev;
	struct sim_ctx *ctx, *old;
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
	old = xa_load(&sim->contexts, dev->ctx);
	if (old)
		old->nr_devices--;
	ctx->nr_devices++;
	dev->ctx = op->ctx_no;
	return 0;
}

/*
 * Mapping and unmapping
 */

static int sim_map_frames(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			  u64 dfn, u64 gfn, u64 nr, unsigned int order,
			  u32 flags, u64 *limit, int stop, u64 *done)
{
	u64 step = BIT_ULL(order);
	int ret;

	if (!(flags & (IOMMU_MAP_readable | IOMMU_MAP_writeable)) ||
	    (flags & ~SIM_KNOWN_FLAGS) ||
	    ((flags & IOMMU_MAP_cache) && !(sim->conf.caps & IOMMUCAP_cache))) {
		sim_violation(sim, "map with flags %#x", flags);
		return -EINVAL;
	}
	if (!nr || (dfn | gfn) & (step - 1)) {
		sim_violation(sim, "map of %#llx frames, order %u, dfn %#llx, gfn %#llx",
			      nr, order, dfn, gfn);
		return -EINVAL;
	}
	if (nr > (sim->conf.max_iova >> SIM_PAGE_SHIFT) + 1 ||
	    dfn > (sim->conf.max_iova >> SIM_PAGE_SHIFT) + 1 - nr) {
		sim_violation(sim, "map of %#llx frames at dfn %#llx", nr, dfn);
		return -ERANGE;
	}

	if (sim_quirk(sim, SIM_RDM_FIRST_ONLY))
		for (unsigned int i = 0; i < sim->nr_rdm; i++)
			if (dfn >= sim->rdm[i].start &&
			    dfn < sim->rdm[i].start + sim->rdm[i].nr)
				return -EADDRINUSE;

	for (; nr; nr -= step, dfn += step, gfn += step) {
		if (*limit < step)
			return stop;
		ret = sim_map_one(sim, ctx, dfn, gfn, flags, order);
		if (ret)
			return ret;
		*done += step;
		if (*limit != SIM_ALL)
			*limit -= step;
	}
	return 0;
}

static int sim_unmap_frames(struct xen_iommu_sim *sim, struct sim_ctx *ctx,
			    u64 dfn, u64 nr, u64 *limit, int stop, u64 *done)
{
	int ret;

	if (!nr || dfn + nr < dfn) {
		sim_violation(sim, "unmap of %#llx frames at dfn %#llx", nr, dfn);
		return -EINVAL;
	}
	while (nr) {
		if (!*limit)
			return stop;
		ret = sim_unmap_one(sim, ctx, dfn, min(nr, *limit));
		if (ret < 0)
			return ret;
		dfn += ret;
		nr -= ret;
		*done += ret;
		if (*limit != SIM_ALL)
			*limit -= ret;
	}
	return 0;
}

static int sim_page_order(struct xen_iommu_sim *sim, u32 pgsize)
{
	if (!is_power_of_2(pgsize) || !(pgsize & sim->conf.pgsize_mask)) {
		sim_violation(sim, "page size %#x", pgsize);
		return -EINVAL;
	}
	return ilog2(pgsize) - SIM_PAGE_SHIFT;
}

static u32 sim_counter(struct xen_iommu_sim *sim, u32 done, u32 wanted)
{
	return sim_quirk(sim, SIM_OVERCOUNTS) && done == wanted ? done + 7 : done;
}

static int sim_map_pages(struct xen_iommu_sim *sim, struct pv_iommu_map_pages *op)
{
	struct sim_call call = {
		.subop = IOMMU_map_pages, .ctx = op->ctx_no, .dfn = op->dfn,
		.gfn = op->gfn, .pgsize = op->pgsize, .nr = op->nr_pages,
		.flags = op->map_flags,
	};
	int order = sim_page_order(sim, op->pgsize), stop = 0;
	struct sim_ctx *ctx = sim_get_ctx(sim, op->ctx_no);
	u64 limit, done = 0;

	if (op->mapped)
		sim_violation(sim, "counter %u on entry", op->mapped);
	if (order < 0 || !ctx)
		return -EINVAL;
	limit = sim_limit(sim, IOMMU_map_pages, &stop);
	call.ret = sim_map_frames(sim, ctx, op->dfn, op->gfn,
				  (u64)op->nr_pages << order, order,
				  op->map_flags, &limit, stop, &done);
	call.done = done;
	sim_log(sim, &call);
	sim_spend(&sim->map_left, done);

	op->mapped += sim_counter(sim, done >> order, op->nr_pages);
	if (sim_quirk(sim, SIM_PREEMPTS)) {
		op->dfn += done;
		op->gfn += done;
		op->nr_pages -= done >> order;
	}
	return call.ret;
}

static int sim_unmap_pages(struct xen_iommu_sim *sim,
			   struct pv_iommu_unmap_pages *op)
{
	struct sim_call call = {
		.subop = IOMMU_unmap_pages, .ctx = op->ctx_no, .dfn = op->dfn,
		.pgsize = op->pgsize, .nr = op->nr_pages,
		.flags = op->unmap_flags,
	};
	int order = sim_page_order(sim, op->pgsize), stop = 0;
	struct sim_ctx *ctx = sim_get_ctx(sim, op->ctx_no);
	u64 limit, done = 0;

	if (op->unmapped || op->unmap_flags)
		sim_violation(sim, "unmap counter %u, flags %#x on entry",
			      op->unmapped, op->unmap_flags);
	if (order < 0 || !ctx)
		return -EINVAL;
	limit = sim_limit(sim, IOMMU_unmap_pages, &stop);
	if (limit != SIM_ALL)
		limit = round_down(limit, BIT_ULL(order));
	call.ret = sim_unmap_frames(sim, ctx, op->dfn,
				    (u64)op->nr_pages << order, &limit, stop,
				    &done);
	call.done = done;
	sim_log(sim, &call);
	sim_spend(&sim->unmap_left, done);

	op->unmapped += sim_counter(sim, done >> order, op->nr_pages);
	if (sim_quirk(sim, SIM_PREEMPTS)) {
		op->dfn += done;
		op->nr_pages -= done >> order;
	}
	return call.ret;
}

static u64 sim_nr_left(const struct pv_iommu_run *run, unsigned int nr)
{
	u64 left = 0;

	while (nr--)
		left += run[nr].nr_frames;
	return left;
}

/* Ranges and lists: the arguments are in registers, the result is a count. */
static long sim_runs(struct xen_iommu_sim *sim, unsigned int subop, bool list,
		     unsigned long a1, unsigned long a2, unsigned long a3,
		     unsigned long a4)
{
	bool map = subop == IOMMU_map_runs;
	struct pv_iommu_run one = { .dfn = a2, .nr_frames = a3, .gfn = a4 };
	const struct pv_iommu_run *run = &one;
	u64 limit, max, skip = list ? a4 : 0, done = 0;
	unsigned int nr = list ? a3 : 1;
	u64 wanted;
	u16 ctx_no = a1 & U16_MAX;
	u32 flags = (u64)a1 >> 32;
	struct sim_ctx *ctx = sim_get_ctx(sim, ctx_no);
	int stop = 0, ret = 0;

	if (!(sim->conf.caps & IOMMUCAP_runs)) {
		sim_violation(sim, "runs without the capability");
		return -EOPNOTSUPP;
	}
	if (list)
		run = sim->conf.pv ? (void *)a2 : phys_to_virt(a2);
	if (!nr || nr > IOMMU_MAX_RUNS || (a1 & GENMASK(31, 16)) ||
	    skip >= sim_nr_left(run, nr)) {
		sim_violation(sim, "%u runs, skip %llu, argument %#lx", nr, skip, a1);
		return -EINVAL;
	}
	if (!map && flags)
		sim_violation(sim, "unmap flags %#x", flags);
	if (!ctx)
		return -EINVAL;

	if (sim->owed[map]) {
		sim->owed[map] = false;
		return sim->owed_ret[map];
	}

	limit = sim_limit(sim, subop, &stop);
	max = limit;
	wanted = sim_nr_left(run, nr) - skip;
	if (sim_quirk(sim, SIM_PREEMPTS) && wanted / 2 + 1 < limit) {
		limit = wanted / 2 + 1;
		stop = 0;
	}
	for (u32 i = 0; i < nr && !ret; i++) {
		u64 left_out = min(skip, run[i].nr_frames), before = done;
		struct sim_call call = {
			.subop = subop, .ctx = ctx_no,
			.dfn = run[i].dfn + left_out,
			.gfn = run[i].gfn + left_out,
			.nr = run[i].nr_frames - left_out,
			.flags = flags,
		};

		skip -= left_out;
		if (!call.nr && left_out)
			continue;
		if (!limit) {
			ret = stop;
			break;
		}
		if (map)
			ret = sim_map_frames(sim, ctx, call.dfn, call.gfn,
					     call.nr, 0, flags, &limit, stop,
					     &done);
		else
			ret = sim_unmap_frames(sim, ctx, call.dfn, call.nr,
					       &limit, stop, &done);
		call.done = done - before;
		call.ret = ret;
		sim_log(sim, &call);
	}
	sim_spend(map ? &sim->map_left : &sim->unmap_left, done);
	/* A planned failure would be over by the next call. */
	if (done && done == max && done < wanted) {
		sim->owed[map] = true;
		sim->owed_ret[map] = stop;
	}
	if (!done)
		return ret;
	if (sim_quirk(sim, SIM_OVERCOUNTS) && !ret && limit)
		done += 7;
	return done + (list ? a4 : 0);
}

static void sim_enter(struct xen_iommu_sim *sim, unsigned int subop, void *arg)
{
	if (sim->hook)
		sim->hook(sim, subop, arg);
}

static long sim_call(unsigned int subop, void *arg)
{
	struct xen_iommu_sim *sim = xen_iommu_sim;
	unsigned long flags;
	int ret;

	sim_enter(sim, subop, arg);

	spin_lock_irqsave(&sim->lock, flags);
	if (subop < SIM_NR_SUBOPS)
		sim->calls[subop]++;
	switch (subop) {
	case IOMMU_query_capabilities:
		ret = sim_query(sim, arg);
		break;
	case IOMMU_init:
		ret = sim_op_init(sim, arg);
		break;
	case IOMMU_alloc_context:
		ret = sim_alloc(sim, arg);
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
	default:
		sim_violation(sim, "sub-op %u", subop);
		ret = -EOPNOTSUPP;
		break;
	}
	sim_check_sums(sim);
	spin_unlock_irqrestore(&sim->lock, flags);
	return ret;
}

long sim_iommu_op(unsigned int subop, void *arg)
{
	xen_iommu_sim->traps++;
	return sim_call(subop, arg);
}

long sim_iommu_op_regs(unsigned int subop, unsigned long a1, unsigned long a2,
		       unsigned long a3, unsigned long a4)
{
	struct xen_iommu_sim *sim = xen_iommu_sim;
	bool list = subop == IOMMU_map_runs || subop == IOMMU_unmap_runs;
	unsigned long flags;
	long ret;

	/* A range is a list of one. */
	if (subop == IOMMU_map_range)
		subop = IOMMU_map_runs;
	if (subop == IOMMU_unmap_range)
		subop = IOMMU_unmap_runs;

	sim->traps++;
	sim_enter(sim, subop, NULL);

	spin_lock_irqsave(&sim->lock, flags);
	if (subop < SIM_NR_SUBOPS)
		sim->calls[subop]++;
	if (subop == IOMMU_map_runs || subop == IOMMU_unmap_runs) {
		ret = sim_runs(sim, subop, list, a1, a2, a3, a4);
	} else {
		sim_violation(sim, "sub-op %u", subop);
		ret = -EOPNOTSUPP;
	}
	sim_check_sums(sim);
	spin_unlock_irqrestore(&sim->lock, flags);
	return ret;
}

int sim_multicall(struct multicall_entry *call, u32 nr)
{
	struct xen_iommu_sim *sim = xen_iommu_sim;
	unsigned long flags;
	int ret = 0;
	u64 limit;

	sim->traps++;
	spin_lock_irqsave(&sim->lock, flags);
	sim->calls[SIM_MULTICALL]++;
	if (!nr)
		sim_violation(sim, "empty multicall");
	limit = sim_limit(sim, SIM_MULTICALL, &ret);
	spin_unlock_irqrestore(&sim->lock, flags);

	/* One that fails has carried out the first of its calls, perhaps. */
	for (u32 i = 0; i < nr; i++) {
		if (ret && i >= limit)
			return ret;
		if (call[i].op != __HYPERVISOR_iommu_op)
			sim_violation(sim, "hypercall %lu in a multicall",
				      (unsigned long)call[i].op);
		call[i].result = sim_call(call[i].args[0],
					  (void *)call[i].args[1]);
	}
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
	struct xen_iommu_sim *sim = xen_iommu_sim;
	struct xen_reserved_device_memory *buf = sim_rdm_buffer(map);
	unsigned int n = 0, max = map->nr_entries;
	unsigned long flags;
	int ret = 0;

	sim->traps++;
	if (cmd != XENMEM_reserved_device_memory_map) {
		sim_violation(sim, "memory op %u", cmd);
		return -EOPNOTSUPP;
	}
	if (sim->hook)
		sim->hook(sim, SIM_MEMORY_OP, arg);

	spin_lock_irqsave(&sim->lock, flags);
	sim->calls[SIM_MEMORY_OP]++;
	if (sim_limit(sim, SIM_MEMORY_OP, &ret) != SIM_ALL)
		goto out;
	for (unsigned int i = 0; i < sim->nr_rdm; i++) {
		struct sim_rdm *rdm = &sim->rdm[i];

		if (!(map->flags & XENMEM_RDM_ALL) &&
		    (map->dev.pci.bus != rdm->bus ||
		     map->dev.pci.devfn != rdm->devfn))
			continue;
		if (n < max) {
			buf[n].start_pfn = rdm->start;
			buf[n].nr_pages = rdm->nr;
		}
		n++;
	}
	map->nr_entries = n;
	if (n > max)
		ret = -ENOBUFS;
	if (max && sim_quirk(sim, SIM_RDM_GROWS)) {
		map->nr_entries = n + 1;
		ret = -ENOBUFS;
	}
out:
	spin_unlock_irqrestore(&sim->lock, flags);
	return ret;
}

/*
 * PV: a bijection of frame numbers below 2^28 that leaves aligned groups of
 * 2^pv_order frames together.
 */
unsigned long sim_pfn_to_gfn(unsigned long pfn)
{
	unsigned int order = xen_iommu_sim->conf.pv_order;
	unsigned long group = pfn >> order;

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
	sim->map_left = SIM_ALL;
	sim->unmap_left = SIM_ALL;
	/* The xarrays' own locks are taken in interrupts, too. */
	scoped_guard(spinlock_irqsave, &sim->lock)
		sim_new_ctx(sim, 0);
	if (sim_quirk(sim, SIM_INITIALISED)) {
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
	struct sim_ctx *ctx = xa_load(&sim->contexts, 0);

	sim->device[sim->nr_devices++] = (struct sim_device) {
		.seg = seg,
		.bus = bus,
		.devfn = devfn,
	};
	ctx->nr_devices++;
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

int sim_add_stale_ctx(struct xen_iommu_sim *sim, unsigned int frames)
{
	struct pv_iommu_alloc op = {};
	struct sim_ctx *ctx;

	guard(spinlock_irqsave)(&sim->lock);
	if (sim_alloc(sim, &op))
		return -1;
	ctx = xa_load(&sim->contexts, op.ctx_no);
	for (unsigned int i = 0; i < frames; i++)
		sim_map_one(sim, ctx, 0x1000 + i, 0x2000 + i,
			    IOMMU_MAP_readable, 0);
	return op.ctx_no;
}

void sim_add_rdm(struct xen_iommu_sim *sim, u64 start, u64 nr, u8 bus, u8 devfn)
{
	sim->rdm[sim->nr_rdm++] = (struct sim_rdm) {
		.start = start,
		.nr = nr,
		.bus = bus,
		.devfn = devfn,
	};
}

void sim_add_fault(struct xen_iommu_sim *sim, unsigned int subop,
		   unsigned int skip, unsigned int times, int ret, u64 frames)
{
	sim->fault[sim->nr_faults++] = (struct sim_fault) {
		.subop = subop,
		.skip = skip,
		.times = times,
		.ret = ret,
		.frames = frames,
	};
}

void sim_clear_faults(struct xen_iommu_sim *sim)
{
	sim->nr_faults = 0;
	sim->fault_rate = 0;
	memset(sim->owed, 0, sizeof(sim->owed));
	sim->map_left = SIM_ALL;
	sim->unmap_left = SIM_ALL;
}

void sim_reset_log(struct xen_iommu_sim *sim)
{
	memset(sim->calls, 0, sizeof(sim->calls));
	sim->traps = 0;
	sim->nr_log = 0;
}

bool sim_walk(struct xen_iommu_sim *sim, u16 nr, u64 dfn, u64 *gfn, u32 *flags)
{
	struct sim_ctx *ctx = xa_load(&sim->contexts, nr);
	u64 entry = ctx ? sim_table_get(&ctx->frames, dfn) : 0;

	if (gfn)
		*gfn = entry >> 3;
	if (flags)
		*flags = entry & 7;
	return entry;
}

u64 sim_nr_frames(struct xen_iommu_sim *sim, u16 nr)
{
	struct sim_ctx *ctx = xa_load(&sim->contexts, nr);

	return ctx ? ctx->nr_frames : 0;
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
