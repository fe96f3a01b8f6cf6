/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: the page tables of contexts, and the pool of pages for them.
 */

#include "private.h"

static unsigned long new_meta(unsigned long dfn, unsigned int level)
{
    return (dfn >> (PT_SHIFT * level) << (PT_SHIFT * (level - 1)) << 14) |
           (level << 11);
}

static uint64_t leaf_pte(mfn_t mfn, unsigned int level, uint64_t flags)
{
    return mfn_to_maddr(mfn) | flags | pv_hw.leaf |
           (level > 1 ? pv_hw.super : 0);
}

static uint64_t table_pte(const struct page_info *pg, unsigned int level)
{
    return page_to_maddr(pg) | pv_hw.table |
           (pv_hw.level_shift < 64 ? (uint64_t)level << pv_hw.level_shift : 0);
}

static void write_pte(uint64_t *ptep, uint64_t pte)
{
    write_atomic(ptep, pte);
}

static struct page_info *pool_get(struct pv_iommu_ctx *ctx)
{
    struct pv_iommu *pv = ctx->pv;
    struct page_info *pg;

    if ( !pv )
    {
        pg = alloc_domheap_page(NULL, 0);
        if ( pg )
        {
            clear_domain_page(page_to_mfn(pg));
            *meta(pg) = 0;
        }
        return pg;
    }

    spin_lock(&pv->lock);
    pg = page_list_remove_head(&pv->pool);
    if ( pg )
        pv->nr_free--;
    spin_unlock(&pv->lock);

    return pg;
}

/* All entries must be zero. */
void pool_put(struct pv_iommu_ctx *ctx, struct page_info *pg)
{
    struct pv_iommu *pv = ctx->pv;

    *meta(pg) = 0;

    if ( !pv )
    {
        free_domheap_page(pg);
        return;
    }

    spin_lock(&pv->lock);
    page_list_add(pg, &pv->pool);
    pv->nr_free++;
    spin_unlock(&pv->lock);
}

void pool_put_list(struct pv_iommu_ctx *ctx, struct page_list_head *list)
{
    struct page_info *pg;

    while ( (pg = page_list_remove_head(list)) )
        pool_put(ctx, pg);
}

static struct page_info *new_table(struct pv_iommu_ctx *ctx, unsigned long dfn,
                                   unsigned int level)
{
    struct page_info *pg = pool_get(ctx);

    if ( !pg )
        return NULL;

    *meta(pg) = new_meta(dfn, level);
    ctx->nr_tables++;

    if ( iommu_non_coherent )
    {
        void *p = __map_domain_page(pg);

        iommu_sync_cache(p, PAGE_SIZE);
        unmap_domain_page(p);
    }

    return pg;
}

/*
 * Depending on its number of levels, an IOMMU may start from this table. So it
 * stays even if it is empty.
 */
static bool is_top(struct page_info *pg)
{
    return META_LEVEL(*meta(pg)) >= pv_hw.min_levels && !META_DFN(*meta(pg));
}

static void pt_get(struct pv_iommu_ctx *ctx, struct page_info *pg,
                   unsigned int nr)
{
    if ( !pt_used(pg) && !is_top(pg) )
        page_list_del(pg, &ctx->empties);
    *meta(pg) += nr;
    ASSERT(pt_used(pg) <= PT_ENTRIES);
}

void pt_put(struct pv_iommu_ctx *ctx, struct page_info *pg, unsigned int nr)
{
    ASSERT(pt_used(pg) >= nr);
    *meta(pg) -= nr;
    if ( !pt_used(pg) && !is_top(pg) )
        page_list_add_tail(pg, &ctx->empties);
}

/*
 * Find the table with the entry for dfn at level *level. If the walk ends
 * above that, at a superpage or (without alloc) at an entry that is zero, find
 * the table with this entry, and set *level.
 */
int find_table(struct pv_iommu_ctx *ctx, unsigned long dfn,
               unsigned int *level, bool alloc, struct page_info **ppg)
{
    struct page_info *pg = ctx->root;
    unsigned int lvl = pv_hw.levels;

    ASSERT(spin_is_locked(&ctx->lock));
    ASSERT(dfn <= pv_hw.max_dfn);

    /* Often it is the one that was used last. */
    if ( *level == 1 && ctx->last &&
         META_DFN(*meta(ctx->last)) == (dfn & ~(PT_ENTRIES - 1UL)) )
    {
        *ppg = ctx->last;
        return 0;
    }

    while ( lvl > *level )
    {
        uint64_t *tbl = __map_domain_page(pg), *ptep, pte;

        ptep = &tbl[pt_index(dfn, lvl)];
        pte = *ptep;

        if ( !pte && alloc )
        {
            struct page_info *child = new_table(ctx, dfn, lvl - 1);

            if ( !child )
            {
                unmap_domain_page(tbl);
                return -ENOMEM;
            }

            if ( !is_top(child) )
                page_list_add_tail(child, &ctx->empties);

            pte = table_pte(child, lvl - 1);
            write_pte(ptep, pte);
            iommu_sync_cache(ptep, sizeof(*ptep));
            pt_get(ctx, pg, 1);
        }
        unmap_domain_page(tbl);

        if ( !pte || pte_is_leaf(pte, lvl) )
            break;

        pg = mfn_to_page(pte_mfn(pte));
        lvl--;
    }

    if ( lvl == 1 )
        ctx->last = pg;
    *level = lvl;
    *ppg = pg;

    return 0;
}

/* Create the tables that IOMMUs start from. */
int new_top(struct pv_iommu_ctx *ctx)
{
    unsigned int level = pv_hw.min_levels;
    struct page_info *pg;
    int rc = -ENOMEM;

    spin_lock(&ctx->lock);
    ctx->root = new_table(ctx, 0, pv_hw.levels);
    if ( ctx->root )
        rc = find_table(ctx, 0, &level, true, &pg);
    spin_unlock(&ctx->lock);

    return rc;
}

/* Free them, after all others. */
void free_top(struct pv_iommu_ctx *ctx)
{
    struct page_info *pg = ctx->root;

    while ( pg )
    {
        uint64_t *tbl = __map_domain_page(pg), pte = tbl[0];

        tbl[0] = 0;
        unmap_domain_page(tbl);
        pool_put(ctx, pg);
        ctx->nr_tables--;
        pg = pte ? mfn_to_page(pte_mfn(pte)) : NULL;
    }

    ctx->root = NULL;
}

/*
 * Unlink empty tables, at the start of a full flush. Hardware may have cached
 * the entries that refer to them, and would not see a new table before. What is
 * beyond MAX_TRIM is left to the next flush, as this is not preemptible.
 */
void trim_empties(struct pv_iommu_ctx *ctx)
{
    struct page_info *pg, *parent;
    unsigned int n;

    for ( n = 0; n < MAX_TRIM && (pg = page_list_first(&ctx->empties)); n++ )
    {
        unsigned int level = META_LEVEL(*meta(pg)), up = level + 1;
        unsigned long dfn = META_DFN(*meta(pg));
        uint64_t *tbl, *ptep;

        ASSERT(!pt_used(pg));

        if ( pg == ctx->last )
            ctx->last = NULL;

        if ( find_table(ctx, dfn, &up, false, &parent) || up != level + 1 )
        {
            ASSERT_UNREACHABLE();
            return;
        }

        tbl = __map_domain_page(parent);
        ptep = &tbl[pt_index(dfn, up)];
        ASSERT(mfn_eq(pte_mfn(*ptep), page_to_mfn(pg)));
        write_pte(ptep, 0);
        iommu_sync_cache(ptep, sizeof(*ptep));
        unmap_domain_page(tbl);

        page_list_del(pg, &ctx->empties);
        page_list_add(pg, &ctx->stale);
        ctx->nr_tables--;

        pt_put(ctx, parent, 1);
    }
}

/* Replace a superpage by a table, for which a page has been set aside. */
static void split(struct pv_iommu_ctx *ctx, uint64_t *ptep, unsigned long dfn)
{
    struct page_info *pg = page_list_remove_head(&ctx->spare);
    uint64_t *tbl = __map_domain_page(pg);
    uint64_t pte = *ptep & ~(PTE_ADDR | pv_hw.super_mask);
    mfn_t mfn = pte_mfn(*ptep);
    unsigned int i;

    ctx->nr_tables++;
    ctx->nr_splits++;

    for ( i = 0; i < PT_ENTRIES; i++ )
        tbl[i] = mfn_to_maddr(mfn_add(mfn, i)) | pte;
    iommu_sync_cache(tbl, PAGE_SIZE);
    unmap_domain_page(tbl);

    *meta(pg) = new_meta(dfn, 1) | PT_ENTRIES;

    write_pte(ptep, table_pte(pg, 1));
    iommu_sync_cache(ptep, sizeof(*ptep));
}

/*
 * Map a superpage. Returns 1 if it is done, 0 if it has to be small pages, or
 * -EAGAIN if a full flush may make room.
 */
static int write_super(struct pv_iommu_ctx *ctx, unsigned long dfn, mfn_t mfn,
                       uint64_t flags)
{
    unsigned int level = 2, idx = pt_index(dfn, 2);
    struct page_info *pg, *spare;
    uint64_t *tbl, pte;
    int rc = find_table(ctx, dfn, &level, true, &pg);

    if ( rc )
        return rc;

    tbl = __map_domain_page(pg);
    pte = tbl[idx];

    /* The spare page is for splitting it. */
    if ( !pte && (spare = pool_get(ctx)) )
    {
        page_list_add(spare, &ctx->spare);
        write_pte(&tbl[idx], leaf_pte(mfn, 2, flags));
        iommu_sync_cache(&tbl[idx], sizeof(*tbl));
        pt_get(ctx, pg, 1);
        rc = 1;
    }
    else if ( pte && !pte_is_leaf(pte, 2) &&
              !pt_used(mfn_to_page(pte_mfn(pte))) )
        rc = -EAGAIN;

    unmap_domain_page(tbl);

    return rc;
}

/* Write entries to a table from dfn on. */
static int writer_start(struct pv_iommu_ctx *ctx, struct writer *w,
                        unsigned long dfn)
{
    int rc;

    writer_end(ctx, w);
    w->level = 1;
    w->dfn = dfn;
    rc = find_table(ctx, dfn, &w->level, true, &w->pg);
    if ( !rc )
        w->tbl = __map_domain_page(w->pg);

    return rc;
}

void writer_end(struct pv_iommu_ctx *ctx, struct writer *w)
{
    if ( !w->tbl )
        return;

    if ( w->nr )
    {
        iommu_sync_cache(&w->tbl[pt_index(w->dfn - w->nr, 1)],
                         w->nr * sizeof(*w->tbl));
        pt_get(ctx, w->pg, w->nr);
    }
    unmap_domain_page(w->tbl);
    w->tbl = NULL;
    w->nr = 0;
}

/*
 * Write entries for nr frames. The caller must call writer_end() before it
 * unlocks ctx->lock. Returns -EAGAIN if flush_deferred() may help, unless the
 * caller has just tried that (retry).
 */
int write_entries(struct pv_iommu_ctx *ctx, struct writer *w,
                  unsigned long dfn, mfn_t mfn, unsigned long nr,
                  uint64_t flags, bool retry, unsigned long *done)
{
    unsigned long i = 0;
    int rc = 0;

    ASSERT(spin_is_locked(&ctx->lock));

    while ( i < nr )
    {
        unsigned long cur = dfn + i;
        mfn_t m = mfn_add(mfn, i);
        unsigned int idx, n = 0, max;
        uint64_t *ptep, pte;

        /* Frames of other domains are only released one by one. */
        if ( (pv_hw.page_sizes & PAGE_SIZE_2M) && nr - i >= PT_ENTRIES &&
             !((cur | mfn_x(m)) & (PT_ENTRIES - 1)) &&
             !(flags & pv_hw.sw_grant) )
        {
            rc = write_super(ctx, cur, m, flags);
            if ( rc > 0 )
            {
                i += PT_ENTRIES;
                rc = 0;
                continue;
            }
            if ( rc && (rc != -EAGAIN || !retry) )
                break;
        }

        /* Often it is the table that was written to last. */
        if ( !w->tbl || w->dfn != cur || !pt_index(cur, 1) )
        {
            rc = writer_start(ctx, w, cur);
            if ( rc )
                break;
        }

        idx = pt_index(cur, w->level);
        max = w->level > 1 ? 0 : min(nr - i, PT_ENTRIES - idx + 0UL);
        ptep = &w->tbl[idx];
        pte = leaf_pte(m, 1, flags);

        for ( ; n < max && !ptep[n]; n++, pte += PAGE_SIZE )
            write_pte(&ptep[n], pte);

        w->dfn += n;
        w->nr += n;
        i += n;
        pte = idx + n < PT_ENTRIES ? ptep[n] : 0;

        if ( i < nr && pte )
        {
            rc = (pte & pv_hw.sw_rsvd) ? -EADDRNOTAVAIL
                 : (pte & pv_hw.sw_dead) && !retry ? -EAGAIN : -EADDRINUSE;
            break;
        }
    }

    ctx->nr_frames += i;
    *done = i;

    return rc;
}

static always_inline int check_entry(uint64_t pte)
{
    return !(pte & pv_hw.present) ? -ENOENT
           : (pte & pv_hw.sw_rsvd) ? -EADDRNOTAVAIL : 0;
}

/*
 * Make the entries of nr frames dead. With whole, it is all of them in a table
 * or none. Sets *foreign if other domains' frames are among them, as the flush
 * of these must not be deferred.
 */
int kill_entries(struct pv_iommu_ctx *ctx, unsigned long dfn, unsigned long nr,
                 bool whole, unsigned long *done, bool *foreign)
{
    const uint64_t present = pv_hw.present, dead = pv_hw.sw_dead;
    uint64_t seen = 0;
    unsigned long i = 0;
    int rc = 0;

    spin_lock(&ctx->lock);

    while ( i < nr && !rc )
    {
        unsigned int level = 1, idx, n;
        struct page_info *pg;
        uint64_t *tbl;

        if ( find_table(ctx, dfn + i, &level, false, &pg) )
            ASSERT_UNREACHABLE();

        tbl = __map_domain_page(pg);
        idx = pt_index(dfn + i, level);

        if ( whole && level == 1 )
            for ( n = 0; !rc && idx + n < PT_ENTRIES && i + n < nr; n++ )
                rc = check_entry(tbl[idx + n]);

        for ( n = 0; !rc && idx + n < PT_ENTRIES && i < nr;
              n++, i += span(level) )
        {
            uint64_t pte = tbl[idx + n];

            rc = check_entry(pte);
            if ( unlikely(rc) )
                break;

            if ( unlikely(level > 1) )
            {
                if ( !pte_is_leaf(pte, level) )
                    break;

                if ( ((dfn + i) & (PT_ENTRIES - 1)) || nr - i < PT_ENTRIES )
                {
                    split(ctx, &tbl[idx + n], dfn + i);
                    break;
                }
            }

            seen |= pte;
            write_pte(&tbl[idx + n], (pte & ~present) | dead);
        }

        if ( n )
            iommu_sync_cache(&tbl[idx], n * sizeof(*tbl));
        unmap_domain_page(tbl);
    }

    spin_unlock(&ctx->lock);

    if ( seen & pv_hw.sw_grant )
        *foreign = true;
    *done = i;

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
