/* SPDX-License-Identifier: GPL-2.0-only */
/* PV-IOMMU: creating, looking up and freeing contexts. */

#include <xen/err.h>
#include <xen/event.h>
#include <xen/hypercall.h>
#include <xen/iommu.h>
#include <xen/nospec.h>

#include "private.h"

/* All contexts. Protected by pcidevs_lock. */
static LIST_HEAD(all_ctx);

struct pv_iommu_ctx *ctx_get(struct pv_iommu *pv, unsigned int no, bool dying)
{
    struct pv_iommu_ctx *ctx;

    if ( !no || no > pv->max_ctx )
        return NULL;

    no = array_index_nospec(no, pv->max_ctx + 1);

    spin_lock(&pv->lock);
    ctx = pv->ctx[no];
    if ( ctx && ctx->dying && !dying )
        ctx = NULL;
    if ( ctx )
        atomic_inc(&ctx->users);
    spin_unlock(&pv->lock);

    return ctx;
}

/* The context may be freed at any time after this. */
void ctx_put(struct pv_iommu_ctx *ctx)
{
    ASSERT(atomic_read(&ctx->users) > 0);
    smp_mb__before_atomic();
    atomic_dec(&ctx->users);
}

/*
 * The pool has no pages left. Flush all contexts with empty tables to get some
 * back. May return -ERESTART.
 */
int reclaim(struct pv_iommu *pv)
{
    unsigned int no;
    int rc = 0;

    for ( no = 1; !rc && no <= pv->max_ctx; no++ )
    {
        struct pv_iommu_ctx *ctx;

        if ( !ACCESS_ONCE(pv->ctx[no]) || !(ctx = ctx_get(pv, no, false)) )
            continue;

        if ( !page_list_empty(&ctx->empties) )
        {
            rc = flush_deferred(ctx, true);
            if ( !rc && hypercall_preempt_check() )
                rc = -ERESTART;
        }
        ctx_put(ctx);
    }

    return rc;
}

/*
 * Called if a frame is in use, perhaps only because it was unmapped without a
 * flush. The caller may hold locks of page table pages, so this cannot be
 * preempted: it flushes each context at most once, and releases at most
 * MAX_DEFERRED frames.
 */
void pv_iommu_release_unmapped(const struct domain *d)
{
    struct pv_iommu *pv = dom_iommu(d)->pv;
    unsigned int no;

    for ( no = 1; no <= pv->max_ctx; no++ )
    {
        struct pv_iommu_ctx *ctx;

        if ( !ACCESS_ONCE(pv->ctx[no]) || !(ctx = ctx_get(pv, no, false)) )
            continue;

        while ( flush_deferred(ctx, false) )
            continue;
        ctx_put(ctx);
    }
}

/*
 * Release the entries of the next table, and tables that are empty then.
 * Returns false if there were none.
 */
static bool zap_table(struct pv_iommu_ctx *ctx)
{
    unsigned long left = pv_hw.max_dfn + 1 - ctx->zapped;
    uint64_t foreign = 0;

    if ( !ctx->root || (!left && page_list_empty(&ctx->empties)) )
        return false;

    spin_lock(&ctx->lock);
    if ( left )
        ctx->zapped += reap(ctx, ctx->zapped, left, true, &foreign);
    trim_empties(ctx);
    spin_unlock(&ctx->lock);

    pool_put_list(ctx, &ctx->stale);
    put_foreign(ctx, foreign);

    return true;
}

/*
 * Release everything in a context that is no longer used. May return
 * -ERESTART.
 */
int ctx_teardown(struct pv_iommu_ctx *ctx)
{
    ASSERT(ctx->dying);

    if ( !ctx->root )
        return 0;

    /* It has no devices, but its tag will be reused. */
    if ( !ctx->zapped && flush_deferred(ctx, true) )
        return -ERESTART;

    while ( zap_table(ctx) )
        if ( hypercall_preempt_check() )
            return -ERESTART;
    free_top(ctx);

    ASSERT(!ctx->nr_frames && !ctx->nr_tables && page_list_empty(&ctx->spare));

    return 0;
}

/*
 * Free a context after ctx_teardown(). Returns -ERESTART if anybody but the
 * caller, who has own references, still uses it.
 */
int ctx_remove(struct pv_iommu_ctx *ctx, unsigned int own)
{
    struct pv_iommu *pv = ctx->pv;
    bool busy;

    pcidevs_lock();

    spin_lock(&pv->lock);
    busy = atomic_read(&ctx->users) != own;
    if ( !busy )
    {
        pv->ctx[ctx->no] = NULL;
        pv->nr_ctx--;
    }
    spin_unlock(&pv->lock);

    if ( !busy )
    {
        list_del(&ctx->list);
        if ( ctx->nested )
            nested_remove(ctx);
        if ( !ctx->identity )
            iommu_vcall(&iommu_ops, pv_ctx_destroy, ctx);
        xfree(ctx);
    }

    pcidevs_unlock();

    return busy ? -ERESTART : 0;
}

/* desc: only for a nested context, the page with its descriptor. */
struct pv_iommu_ctx *ctx_create(struct domain *d, struct pv_iommu *pv,
                                unsigned int no, unsigned int flags,
                                const gfn_t *desc)
{
    struct pv_iommu_ctx *ctx;
    int rc;

    ASSERT(pcidevs_locked());

    ctx = xzalloc(struct pv_iommu_ctx);
    if ( !ctx )
        return ERR_PTR(-ENOMEM);

    ctx->d = d;
    ctx->pv = pv;
    ctx->no = no;
    ctx->levels = pv_hw.levels;
    ctx->identity = flags & IOMMU_ALLOC_identity;
    ctx->empty = flags & IOMMU_ALLOC_empty;
    ctx->domid = DOMID_INVALID;
    spin_lock_init(&ctx->lock);
    INIT_PAGE_LIST_HEAD(&ctx->empties);
    INIT_PAGE_LIST_HEAD(&ctx->stale);
    INIT_PAGE_LIST_HEAD(&ctx->spare);

    rc = ctx->identity ? 0 : iommu_call(&iommu_ops, pv_ctx_init, ctx);
    if ( rc )
        goto fail;

    if ( desc )
        nested_add(ctx, *desc);
    else if ( !ctx->identity )
    {
        rc = new_top(ctx);
        if ( !rc && !ctx->empty )
            rc = map_reserved(ctx);
        if ( rc )
            goto destroy;
    }

    list_add(&ctx->list, &all_ctx);

    return ctx;

 destroy:
    /* At most the reserved regions. */
    while ( zap_table(ctx) )
        continue;
    free_top(ctx);
    iommu_vcall(&iommu_ops, pv_ctx_destroy, ctx);
 fail:
    xfree(ctx);

    return ERR_PTR(rc);
}

struct domain *pv_iommu_domid_owner(domid_t domid)
{
    const struct pv_iommu_ctx *ctx;

    ASSERT(pcidevs_locked());

    if ( domid == DOMID_INVALID )
        return NULL;

    list_for_each_entry ( ctx, &all_ctx, list )
        if ( ctx->domid == domid )
            return ctx->d;

    return NULL;
}

/* Create a context, and set *no. */
int ctx_new(struct domain *d, struct pv_iommu *pv, unsigned int flags,
            const gfn_t *desc, unsigned int *no)
{
    struct pv_iommu_ctx *ctx;

    pcidevs_lock();

    for ( *no = 1; *no <= pv->max_ctx; ++*no )
        if ( !pv->ctx[*no] )
            break;

    if ( d->is_dying )
        ctx = ERR_PTR(-EINVAL);
    else if ( *no > pv->max_ctx )
        ctx = ERR_PTR(-ENOSPC);
    else
        ctx = ctx_create(d, pv, *no, flags, desc);

    if ( !IS_ERR(ctx) )
    {
        spin_lock(&pv->lock);
        pv->ctx[*no] = ctx;
        pv->nr_ctx++;
        spin_unlock(&pv->lock);
    }

    pcidevs_unlock();

    return IS_ERR(ctx) ? PTR_ERR(ctx) : 0;
}

/* Free a context. May return -ERESTART. */
int ctx_free(struct domain *d, struct pv_iommu *pv, unsigned int no,
             bool reattach)
{
    /* It is dying already in a continuation, or if another call frees it. */
    struct pv_iommu_ctx *ctx = ctx_get(pv, no, true);
    struct pci_dev *pdev;
    int rc = 0;

    if ( !ctx )
        return -EINVAL;

    if ( !ctx->dying )
    {
        pcidevs_lock();

        for_each_pdev ( d, pdev )
            if ( pdev->pv_ctx == ctx )
            {
                rc = reattach ? pdev_attach(pdev, NULL) : -EBUSY;
                if ( rc )
                    break;
            }

        if ( !rc && ctx->nr_devs )
            pci_iterate_devices(pdev_orphan, ctx);
        if ( !rc && ctx->nr_devs )
            rc = -EBUSY;

        if ( !rc )
        {
            spin_lock(&pv->lock);
            ctx->dying = true;
            spin_unlock(&pv->lock);
        }

        pcidevs_unlock();
    }

    /* No new users from now on. */
    if ( !rc && atomic_read(&ctx->users) > 1 )
        rc = -ERESTART;
    if ( !rc )
        rc = ctx_teardown(ctx);
    if ( !rc )
        rc = ctx_remove(ctx, 1);
    if ( rc )
        ctx_put(ctx);

    return rc;
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
