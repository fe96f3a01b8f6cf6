/* SPDX-License-Identifier: GPL-2.0-only */
/* PV-IOMMU: IOTLB flushes, and the frames and tables that wait for one. */

#include <xen/event.h>
#include <xen/hypercall.h>

#include "private.h"

void flush_range(struct pv_iommu_ctx *ctx, unsigned long dfn, unsigned long nr,
                 unsigned int flags)
{
    /*
     * An IOMMU without devices in the context is not flushed. It must see the
     * new entries when it gets one.
     */
    smp_mb();

    /* The vendors' code waits for as long as it takes. */
    if ( iommu_call(&iommu_ops, pv_flush, ctx, _dfn(dfn), nr, flags) )
        panic("%pd: IOMMU context %u cannot be flushed\n", ctx->d, ctx->no);

    if ( ctx->pv )
        atomic_inc(&ctx->pv->nr_flushes);
}

/* Flush all of a context, and free empty tables. */
void flush_ctx(struct pv_iommu_ctx *ctx)
{
    PAGE_LIST_HEAD(stale);
    unsigned int tail, splits;

    spin_lock(&ctx->lock);
    trim_empties(ctx);
    page_list_move(&stale, &ctx->stale);
    tail = ctx->def_tail;
    ctx->def_sealed = tail;
    splits = ctx->nr_splits;
    spin_unlock(&ctx->lock);

    flush_range(ctx, 0, 0, IOMMU_FLUSHF_modified | IOMMU_FLUSHF_all);

    pool_put_list(ctx, &stale);

    spin_lock(&ctx->lock);
    if ( (int)(tail - ctx->def_flushed) > 0 )
        ctx->def_flushed = tail;
    if ( (int)(splits - ctx->splits_flushed) > 0 )
        ctx->splits_flushed = splits;
    spin_unlock(&ctx->lock);
}

/*
 * After a flush: clear dead entries of one table, and release the frames. With
 * all, do the same to entries that are present. Returns how far it got, which
 * may be less than nr: it stops at the end of the table, and after a frame of
 * another domain, which the caller must pass to put_foreign().
 */
unsigned long reap(struct pv_iommu_ctx *ctx, unsigned long dfn,
                   unsigned long nr, bool all, uint64_t *foreign)
{
    const uint64_t special = pv_hw.sw_noref | pv_hw.sw_rsvd | pv_hw.sw_grant;
    const uint64_t gone = pv_hw.sw_dead | (all ? pv_hw.present : 0);
    unsigned int level = 1, idx, n = 0;
    struct page_info *pg;
    unsigned long i = 0;
    uint64_t *tbl;

    ASSERT(spin_is_locked(&ctx->lock));
    *foreign = 0;

    if ( find_table(ctx, dfn, &level, false, &pg) )
        ASSERT_UNREACHABLE();

    tbl = __map_domain_page(pg);

    for ( idx = pt_index(dfn, level);
          idx < PT_ENTRIES && i < nr && !*foreign; idx++ )
    {
        uint64_t pte = tbl[idx];

        if ( pte & gone && pte_is_leaf(pte, level) )
        {
            if ( unlikely(level > 1) )
            {
                /* Those that were partly unmapped have been split. */
                ASSERT(!((dfn + i) & (PT_ENTRIES - 1)) && nr - i >= PT_ENTRIES);
                /* Enough until the next check for preemption. */
                if ( n == 8 )
                    break;
                put_frames(ctx, pte_mfn(pte), PT_ENTRIES, pte, true);
                pool_put(ctx, page_list_remove_head(&ctx->spare));
            }
            else if ( unlikely(pte & special) )
            {
                if ( pte & pv_hw.sw_grant )
                    *foreign = pte;
            }
            else if ( pte & pv_hw.sw_write )
                put_page_and_type(mfn_to_page(pte_mfn(pte)));
            else
                put_page(mfn_to_page(pte_mfn(pte)));

            tbl[idx] = 0;
            n++;
        }
        else if ( pte && !pte_is_leaf(pte, level) )
            break;

        i += span(level) - ((dfn + i) & (span(level) - 1));
    }
    unmap_domain_page(tbl);

    ctx->nr_frames -= n * span(level);
    if ( n )
        pt_put(ctx, pg, n);

    return min(i, nr);
}

/*
 * Leave a dead range to flush_deferred(). Returns false if there are too many.
 */
bool defer(struct pv_iommu_ctx *ctx, unsigned long dfn, unsigned long nr)
{
    atomic_t *all = &ctx->pv->nr_deferred;
    unsigned int idx;
    bool ok;

    if ( atomic_add_return(nr, all) > MAX_DEFERRED )
    {
        atomic_sub(nr, all);
        return false;
    }

    spin_lock(&ctx->lock);

    idx = (ctx->def_tail - 1) % PV_IOMMU_NR_DEFERRED;
    ok = ctx->def_tail - ctx->def_head < PV_IOMMU_NR_DEFERRED;

    /* Extend the last range if no flush has started since it was added. */
    if ( ctx->def_tail != ctx->def_sealed &&
         ctx->deferred[idx].dfn + ctx->deferred[idx].nr == dfn )
    {
        ctx->deferred[idx].nr += nr;
        ok = true;
    }
    else if ( ok )
    {
        idx = ctx->def_tail++ % PV_IOMMU_NR_DEFERRED;
        ctx->deferred[idx].dfn = dfn;
        ctx->deferred[idx].nr = nr;
    }

    spin_unlock(&ctx->lock);

    if ( !ok )
        atomic_sub(nr, all);

    return ok;
}

/* Release deferred ranges that have been flushed. May return -ERESTART. */
static int release_deferred(struct pv_iommu_ctx *ctx)
{
    bool more;

    do {
        uint64_t foreign = 0;

        spin_lock(&ctx->lock);
        if ( ctx->def_head != ctx->def_flushed )
        {
            unsigned int idx = ctx->def_head % PV_IOMMU_NR_DEFERRED;
            unsigned long n = reap(ctx, ctx->deferred[idx].dfn,
                                   ctx->deferred[idx].nr, false, &foreign);

            ctx->deferred[idx].dfn += n;
            ctx->deferred[idx].nr -= n;
            atomic_sub(n, &ctx->pv->nr_deferred);
            if ( !ctx->deferred[idx].nr )
                ctx->def_head++;
        }
        more = ctx->def_head != ctx->def_flushed;
        spin_unlock(&ctx->lock);

        put_foreign(ctx, foreign);
        if ( more && hypercall_preempt_check() )
            return -ERESTART;
    } while ( more );

    return 0;
}

/*
 * Flush and release deferred ranges. With always, flush even if there are
 * none. May return -ERESTART.
 */
int flush_deferred(struct pv_iommu_ctx *ctx, bool always)
{
    if ( always || ACCESS_ONCE(ctx->def_flushed) != ACCESS_ONCE(ctx->def_tail) )
        flush_ctx(ctx);

    return release_deferred(ctx);
}

/*
 * Flush and release a range that the caller has made dead. With later, leave
 * that to the next full flush, unless too much is waiting for it already.
 */
void finish_unmap(struct pv_iommu_ctx *ctx, unsigned long dfn,
                  unsigned long nr, bool later)
{
    if ( !nr || (later && defer(ctx, dfn, nr)) )
        return;

    /* The IOTLB may have a superpage that has been split since. */
    if ( later ||
         ACCESS_ONCE(ctx->nr_splits) != ACCESS_ONCE(ctx->splits_flushed) )
        flush_ctx(ctx);
    else
        flush_range(ctx, dfn, nr, IOMMU_FLUSHF_modified);

    while ( nr )
    {
        unsigned long n;
        uint64_t foreign;

        spin_lock(&ctx->lock);
        n = reap(ctx, dfn, nr, false, &foreign);
        spin_unlock(&ctx->lock);

        put_foreign(ctx, foreign);
        dfn += n;
        nr -= n;
    }

    /* If this is preempted, the next flush releases the rest. */
    if ( later )
        release_deferred(ctx);
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
