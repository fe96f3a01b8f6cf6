/* SPDX-License-Identifier: GPL-2.0-only */
/* PV-IOMMU: making, using and freeing contexts. */

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

/* The context may be gone right after that. */
void ctx_put(struct pv_iommu_ctx *ctx)
{
    ASSERT(atomic_read(&ctx->users) > 0);
    smp_mb__before_atomic();
    atomic_dec(&ctx->users);
}

/*
 * The pool is empty: flush contexts, for their tables that are empty. May
 * return -ERESTART.
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
 * The caller wants a frame that may be in use only because it was unmapped
 * without a flush. Page table pages may be locked, so this cannot be preempted:
 * it flushes each context once at most, and releases MAX_DEFERRED frames at most.
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
 * Release the entries of one table and the table. Returns false if there are
 * no tables left.
 */
static bool zap_one(struct pv_iommu_ctx *ctx, struct later *later)
{
    struct page_info *pg = ctx->root, *parent = NULL;
    unsigned int level = pv_hw.levels, i, at = 0, budget = 8;
    uint64_t *tbl;

    ASSERT(spin_is_locked(&ctx->lock));

    ctx->last = NULL;
    if ( !pg )
        return false;

    for ( ; ; )
    {
        uint64_t pte = 0;

        tbl = __map_domain_page(pg);
        if ( level == 1 )
            break;

        for ( i = 0; i < PT_ENTRIES; i++ )
        {
            pte = tbl[i];
            if ( pte && !pte_is_leaf(pte, level) )
                break;
        }
        if ( i == PT_ENTRIES )
            break;

        unmap_domain_page(tbl);
        parent = pg;
        at = i;
        pg = mfn_to_page(pte_mfn(pte));
        level--;
    }

    for ( i = 0; i < PT_ENTRIES; i++ )
    {
        uint64_t pte = tbl[i];

        if ( !pte )
            continue;

        if ( (level > 1 && !budget--) ||
             ((pte & pv_hw.sw_grant) && !put_later(later, pte)) )
        {
            unmap_domain_page(tbl);
            return true;
        }

        tbl[i] = 0;
        if ( !(pte & pv_hw.sw_grant) )
            put_frames(ctx, pte_mfn(pte), span(level), pte, true);
        ctx->nr_frames -= span(level);
        if ( level > 1 )
            pool_put(ctx, page_list_remove_head(&ctx->spare));
    }
    unmap_domain_page(tbl);

    if ( parent )
    {
        tbl = __map_domain_page(parent);
        tbl[at] = 0;
        unmap_domain_page(tbl);
    }
    else
        ctx->root = NULL;

    pool_put(ctx, pg);
    ctx->nr_tables--;

    return parent;
}

/* Empty a context that nobody can use any more. May return -ERESTART. */
int ctx_teardown(struct pv_iommu_ctx *ctx)
{
    bool more;

    ASSERT(ctx->dying);

    if ( ctx->identity || ctx->nested )
        return 0;

    /* No device is in it; the tag will be used again, though. */
    if ( ctx->root && flush_deferred(ctx, true) )
        return -ERESTART;

    do {
        struct later later = {};

        spin_lock(&ctx->lock);
        more = zap_one(ctx, &later);
        spin_unlock(&ctx->lock);
        put_now(ctx, &later);

        if ( more && hypercall_preempt_check() )
            return -ERESTART;
    } while ( more );

    ASSERT(!ctx->nr_frames && !ctx->nr_tables && page_list_empty(&ctx->spare));

    return 0;
}

/*
 * Free a context that was torn down. -ERESTART if calls other than the caller's
 * own ones still use it.
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

/* desc: for a nested context, the page by which hardware finds its table. */
struct pv_iommu_ctx *ctx_create(struct domain *d, struct pv_iommu *pv,
                                unsigned int no, unsigned int flags,
                                const gfn_t *desc, int *rc)
{
    struct pv_iommu_ctx *ctx;
    struct page_info *pg;
    unsigned int level;

    ASSERT(pcidevs_locked());

    *rc = -ENOMEM;
    ctx = xzalloc(struct pv_iommu_ctx);
    if ( !ctx )
        return NULL;

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

    *rc = 0;
    if ( ctx->identity )
        goto out;

    *rc = iommu_call(&iommu_ops, pv_ctx_init, ctx);
    if ( *rc )
    {
        xfree(ctx);
        return NULL;
    }

    if ( desc )
    {
        nested_add(ctx, *desc);
        goto out;
    }

    *rc = -ENOMEM;
    ctx->root = new_table(ctx, 0, pv_hw.levels);
    if ( !ctx->root )
        goto fail;

    /* IOMMUs of fewer levels start from the first table of a lower level. */
    spin_lock(&ctx->lock);
    for ( level = pv_hw.levels - 1; level >= pv_hw.min_levels; level-- )
    {
        unsigned int at = level;

        *rc = find_table(ctx, 0, &at, true, &pg);
        if ( *rc )
            break;
        /* Never counts as empty. */
        pt_get(ctx, pg, 1);
    }
    spin_unlock(&ctx->lock);
    if ( pv_hw.min_levels < pv_hw.levels && *rc )
        goto fail;

    *rc = ctx->empty ? 0 : map_reserved(ctx);
    if ( *rc )
        goto fail;

 out:
    list_add(&ctx->list, &all_ctx);
    return ctx;

 fail:
    spin_lock(&ctx->lock);
    trim_empties(ctx);
    while ( zap_one(ctx, NULL) )
        /* nothing: only reserved regions, if anything at all */;
    spin_unlock(&ctx->lock);
    pool_put_list(ctx, &ctx->stale);
    iommu_vcall(&iommu_ops, pv_ctx_destroy, ctx);
    xfree(ctx);

    return NULL;
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

/* Make a context; sets *no. */
int ctx_new(struct domain *d, struct pv_iommu *pv, unsigned int flags,
            const gfn_t *desc, unsigned int *no)
{
    struct pv_iommu_ctx *ctx = NULL;
    int rc = 0;

    pcidevs_lock();

    for ( *no = 1; *no <= pv->max_ctx; ++*no )
        if ( !pv->ctx[*no] )
            break;

    if ( d->is_dying )
        rc = -EINVAL;
    else if ( *no > pv->max_ctx )
        rc = -ENOSPC;
    else
        ctx = ctx_create(d, pv, *no, flags, desc, &rc);

    if ( ctx )
    {
        spin_lock(&pv->lock);
        pv->ctx[*no] = ctx;
        pv->nr_ctx++;
        spin_unlock(&pv->lock);
    }

    pcidevs_unlock();

    return rc;
}

/* Free a context. May return -ERESTART. */
int ctx_free(struct domain *d, struct pv_iommu *pv, unsigned int no,
             bool reattach)
{
    /* One that is dying already is the continuation's, or another's. */
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
            spin_lock(&ctx->lock);
            spin_lock(&pv->lock);
            ctx->dying = true;
            spin_unlock(&pv->lock);
            spin_unlock(&ctx->lock);
        }

        pcidevs_unlock();
    }

    /* Nobody comes in any more. */
    if ( !rc && atomic_read(&ctx->users) > 1 )
        rc = -ERESTART;
    if ( !rc )
        rc = ctx_teardown(ctx);
    /* But to free it as well. */
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
