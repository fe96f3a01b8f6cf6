/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: a domain manages I/O address spaces (contexts) for its devices.
 *
 * See docs/designs/pv-iommu.md for the concept.  In short: a context has page
 * tables of its own, made from a pool of pages that the domain asked for.  For
 * each frame that a device can reach a page reference is held, and a writable
 * type reference where it can be written.  The reference is dropped only after
 * an IOTLB flush that follows the removal of the page table entry.
 *
 * Life of a page table entry: zero (free) -> present -> dead -> zero.  A dead
 * entry is not present for the hardware, but still names the frame.  It is
 * turned into zero, and the frame is released, by whoever made it dead
 * (IOMMU_unmap_pages, after its flush) or by the next flush of all that was
 * deferred.  Nothing can be mapped over a dead entry.  Hence no list of frames
 * to release has to be kept, and no lock is held across a flush.
 *
 * Life of a table: in use -> empty (linked, without entries, kept for the next
 * mapping) -> stale (taken out of the tree, hardware may still cache its
 * address) -> back in the pool, after a flush of the whole context.
 *
 * Lock order:
 *   pcidevs_lock()     which device is in which context, making and freeing of
 *                      contexts
 *   ctx->lock          the tables of a context
 *   pv->lock           the pool, and the array of contexts with their users
 *   pv->bucket[].lock  frames of other domains
 * P2M locks and hypercall copies are taken with none of the latter three held,
 * other than that a bucket's lock is taken inside of P2M locks.  Grant table
 * locks, and types of pages, are taken with none of them all held.
 */

#include <xen/event.h>
#include <xen/grant_table.h>
#include <xen/guest_access.h>
#include <xen/hypercall.h>
#include <xen/init.h>
#include <xen/iocap.h>
#include <xen/iommu.h>
#include <xen/lib.h>
#include <xen/mm.h>
#include <xen/nospec.h>
#include <xen/param.h>
#include <xen/pci.h>
#include <xen/pv-iommu.h>
#include <xen/rbtree.h>
#include <xen/sched.h>
#include <xen/xvmalloc.h>

#include <asm/hvm/support.h>
#include <asm/p2m.h>

#include <public/pv-iommu.h>
#include <xsm/xsm.h>

#define PT_SHIFT        9
#define PT_ENTRIES      (1U << PT_SHIFT)
#define PTE_ADDR        (PADDR_MASK & PAGE_MASK)

/* Empty tables that a context keeps. */
#define MAX_EMPTY       16
/* Frames that are made dead before they are flushed and released. */
#define UNMAP_BATCH     16384
/* Runs that are copied in at once. */
#define RUNS_CHUNK      64
/* Runs to unmap between two checks for preemption. */
#define RUNS_PREEMPT    8
/* Pieces of runs that are looked up, and entered, at once. */
#define NR_PIECES       32

/* Set in the sub-op of continuations. */
#define OP_CONTINUED    (1U << 31)

static bool __read_mostly opt_pv_iommu = true;
static unsigned int __read_mostly opt_max_ctx = 4096;
static unsigned int __read_mostly opt_max_order = 18;
bool __hwdom_initdata opt_pv_iommu_no_dma;

/*
 * For testing callers: behave like the drafts, as of v7, do. Only what doesn't
 * put Xen in danger. Calls are continued after each page, as there on nearly
 * every one.
 */
#ifdef CONFIG_PV_IOMMU_QUIRKS
static bool __read_mostly opt_drafts;
#else
#define opt_drafts false
#endif

static struct pv_iommu_hw __ro_after_init hw;

/* All contexts. Protected by pcidevs_lock. */
static LIST_HEAD(all_ctx);

/* Context 0 of the hardware domain, if that is not to be an identity map. */
static struct pv_iommu_ctx *__read_mostly hwdom_block;
/*
 * Blocks all but reserved regions, too: where devices come back to whose
 * context was freed while another domain had them. Made when the first one goes.
 */
static struct pv_iommu_ctx *__read_mostly hwdom_lost;

static int __init cf_check parse_pv_iommu(const char *s)
{
    const char *ss;
    int val, rc = 0;

    do {
        ss = strchr(s, ',');
        if ( !ss )
            ss = strchr(s, '\0');

        if ( (val = parse_bool(s, ss)) >= 0 )
            opt_pv_iommu = val;
#ifdef CONFIG_PV_IOMMU_QUIRKS
        else if ( (val = parse_boolean("drafts", s, ss)) >= 0 )
            opt_drafts = val;
#endif
        else if ( !strncmp(s, "max-contexts=", 13) )
        {
            unsigned long n = simple_strtoul(s + 13, &s, 0);

            if ( s != ss || !n || n > 0xfffe )
                rc = -EINVAL;
            else
                opt_max_ctx = n;
        }
        else if ( !strncmp(s, "max-order=", 10) )
        {
            unsigned long n = simple_strtoul(s + 10, &s, 0);

            if ( s != ss || n > 30 )
                rc = -EINVAL;
            else
                opt_max_order = n;
        }
        else
            rc = -EINVAL;

        s = ss + 1;
    } while ( *ss );

    return rc;
}
custom_param("pv-iommu", parse_pv_iommu);

/*
 * Page table pages
 *
 * A table knows its number of entries that are not zero, its level and the
 * first dfn that it covers.  Nobody else uses type_info of these pages: they
 * have no owner.
 */

#define META_USED_MASK  0x7ffUL
#define META_LEVEL(m)   (((m) >> 11) & 7)
#define META_DFN(m)     (((m) >> 14) << PT_SHIFT)

static unsigned long *meta(struct page_info *pg)
{
    return &pg->u.inuse.type_info;
}

static unsigned int pt_used(struct page_info *pg)
{
    return *meta(pg) & META_USED_MASK;
}

static unsigned long new_meta(unsigned long dfn, unsigned int level)
{
    return (dfn >> (PT_SHIFT * level) << (PT_SHIFT * (level - 1)) << 14) |
           (level << 11);
}

static unsigned int pt_index(unsigned long dfn, unsigned int level)
{
    return (dfn >> (PT_SHIFT * (level - 1))) & (PT_ENTRIES - 1);
}

/* Number of frames that an entry of the level covers. */
static unsigned long span(unsigned int level)
{
    return 1UL << (PT_SHIFT * (level - 1));
}

static bool pte_is_leaf(uint64_t pte, unsigned int level)
{
    return level == 1 || (pte & hw.super_mask) == hw.super;
}

static mfn_t pte_mfn(uint64_t pte)
{
    return maddr_to_mfn(pte & PTE_ADDR);
}

static uint64_t leaf_pte(mfn_t mfn, unsigned int level, uint64_t flags)
{
    return mfn_to_maddr(mfn) | flags | hw.leaf | (level > 1 ? hw.super : 0);
}

static uint64_t table_pte(const struct page_info *pg, unsigned int level)
{
    return page_to_maddr(pg) | hw.table |
           (hw.level_shift < 64 ? (uint64_t)level << hw.level_shift : 0);
}

static void write_pte(uint64_t *ptep, uint64_t pte)
{
    write_atomic(ptep, pte);
}

/* Write entries of the lowest level up to one in use. Returns how many. */
static unsigned int write_ptes(uint64_t *ptep, unsigned int max, uint64_t pte)
{
    unsigned int n;

    for ( n = 0; n < max && !ptep[n]; n++, pte += PAGE_SIZE )
        write_pte(&ptep[n], pte);

    return n;
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

/* Pages in the pool are zero. */
static void pool_put(struct pv_iommu_ctx *ctx, struct page_info *pg)
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

static void pool_put_list(struct pv_iommu_ctx *ctx, struct page_list_head *list)
{
    struct page_info *pg;

    while ( (pg = page_list_remove_head(list)) )
    {
        /* See fold(). */
        if ( pt_used(pg) )
            clear_domain_page(page_to_mfn(pg));
        pool_put(ctx, pg);
    }
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

static void pt_get(struct pv_iommu_ctx *ctx, struct page_info *pg,
                   unsigned int nr)
{
    if ( !pt_used(pg) && pg != ctx->root )
    {
        page_list_del(pg, &ctx->empty);
        ctx->nr_empty--;
    }
    *meta(pg) += nr;
    ASSERT(pt_used(pg) <= PT_ENTRIES + 1);
}

static void pt_put(struct pv_iommu_ctx *ctx, struct page_info *pg,
                   unsigned int nr)
{
    ASSERT(pt_used(pg) >= nr);
    *meta(pg) -= nr;
    if ( !pt_used(pg) && pg != ctx->root )
    {
        page_list_add_tail(pg, &ctx->empty);
        ctx->nr_empty++;
    }
}

/*
 * Find the table that holds the entry for dfn at level *level, or at a higher
 * one if the tree ends there with a leaf or, without alloc, with nothing.
 */
static int find_table(struct pv_iommu_ctx *ctx, unsigned long dfn,
                      unsigned int *level, bool alloc, struct page_info **ppg)
{
    struct page_info *pg = ctx->root;
    unsigned int lvl = hw.levels;

    ASSERT(spin_is_locked(&ctx->lock));
    ASSERT(dfn <= hw.max_dfn);

    /* The table that was used last, which is often the one. */
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

            page_list_add_tail(child, &ctx->empty);
            ctx->nr_empty++;

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

/* Take an empty table out of the tree. */
static void unlink_empty(struct pv_iommu_ctx *ctx, struct page_info *pg)
{
    unsigned int level = META_LEVEL(*meta(pg)), up = level + 1;
    unsigned long dfn = META_DFN(*meta(pg));
    struct page_info *parent;
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

    page_list_del(pg, &ctx->empty);
    ctx->nr_empty--;
    page_list_add(pg, &ctx->stale);
    ctx->nr_stale++;
    ctx->nr_tables--;

    pt_put(ctx, parent, 1);
}

static void trim_empty(struct pv_iommu_ctx *ctx, unsigned int keep)
{
    while ( ctx->nr_empty > keep )
        unlink_empty(ctx, page_list_first(&ctx->empty));
}

/*
 * Frames
 */

/*
 * Frames of other domains
 *
 * What a domain was granted, it may map for its devices.  The granter must find
 * such a grant in use as long as a device can reach the frame, and no other grant
 * of the frame is mapped that allows the same.  For each frame there is thus the
 * number of grants of it that are mapped (live), of entries that contexts have
 * (io, including those that are yet to be flushed), and the one grant, at most,
 * whose end waits for the contexts.
 *
 * A grant counts as live from before the domain can map it into a context, and up
 * to after it no longer can.  The end of a grant never needs memory.
 */
enum { RO, RW };

struct foreign {
    struct rb_node node;
    unsigned long mfn;
    unsigned long io[2];
    unsigned int live[2];
    /* The grant that is held, if rd is set, by GNTMAP_* what of it. */
    struct held {
        struct domain *rd;
        grant_ref_t ref;
        uint16_t flags;
    } held;
};

/* Devices may reach the frame, but no grant that is live lets them. */
static bool wants_grant(const struct foreign *f)
{
    return f->io[RW] ? !f->live[RW] : f->io[RO] && !f->live[RO] && !f->live[RW];
}

static struct pv_iommu_bucket *foreign_lock(struct pv_iommu *pv, mfn_t mfn)
{
    struct pv_iommu_bucket *b = &pv->bucket[mfn_x(mfn) % PV_IOMMU_NR_BUCKETS];

    spin_lock(&b->lock);

    return b;
}

static struct foreign *foreign_find(struct pv_iommu_bucket *b, mfn_t mfn,
                                    bool alloc)
{
    struct rb_node **link = &b->frames.rb_node, *parent = NULL;
    struct foreign *f;

    while ( *link )
    {
        parent = *link;
        f = rb_entry(parent, struct foreign, node);
        if ( mfn_x(mfn) == f->mfn )
            return f;
        link = mfn_x(mfn) < f->mfn ? &parent->rb_left : &parent->rb_right;
    }

    f = alloc ? xzalloc(struct foreign) : NULL;
    if ( f )
    {
        f->mfn = mfn_x(mfn);
        rb_link_node(&f->node, parent, link);
        rb_insert_color(&f->node, &b->frames);
    }

    return f;
}

static void end_held(struct pv_iommu *pv, mfn_t mfn, const struct held *held)
{
    if ( !held->rd )
        return;

    gnttab_end_mapping(pv->d, held->rd, held->ref, mfn, held->flags);
    put_domain(held->rd);
}

/*
 * To be called after any change but the end of a grant, and by that.  Ends the
 * grant that is held if there is no need for it now.
 */
static void foreign_unlock(struct pv_iommu *pv, struct pv_iommu_bucket *b,
                           struct foreign *f)
{
    struct held held = {};
    mfn_t mfn = _mfn(f->mfn);

    if ( f->held.rd && !wants_grant(f) )
    {
        held = f->held;
        f->held.rd = NULL;
    }

    if ( !f->io[RO] && !f->io[RW] && !f->live[RO] && !f->live[RW] )
    {
        rb_erase(&f->node, &b->frames);
        xfree(f);
    }

    spin_unlock(&b->lock);

    end_held(pv, mfn, &held);
}

/* A context is to have an entry for the frame. The P2M may be locked. */
static int foreign_get(struct pv_iommu *pv, mfn_t mfn, bool write)
{
    struct pv_iommu_bucket *b = foreign_lock(pv, mfn);
    struct foreign *f = foreign_find(b, mfn, true);
    int rc = 0;

    if ( !f )
        rc = -ENOMEM;
    /* In PV nothing else tells that a frame must not be written to. */
    else if ( write && f->live[RO] && !f->live[RW] &&
              !paging_mode_translate(pv->d) )
        rc = -EPERM;
    else
        f->io[write]++;

    /* Nothing became superfluous: no grant ends here. */
    spin_unlock(&b->lock);

    return rc;
}

/* The entry is gone, and flushed. No lock may be held. */
static void foreign_put(struct pv_iommu *pv, mfn_t mfn, bool write)
{
    struct pv_iommu_bucket *b = foreign_lock(pv, mfn);
    struct foreign *f = foreign_find(b, mfn, false);

    if ( !f || !f->io[write] )
    {
        ASSERT_UNREACHABLE();
        spin_unlock(&b->lock);
        return;
    }

    f->io[write]--;
    foreign_unlock(pv, b, f);
}

int pv_iommu_begin_grant(struct domain *ld, mfn_t mfn, bool readonly)
{
    struct pv_iommu *pv = dom_iommu(ld)->pv;
    struct pv_iommu_bucket *b = foreign_lock(pv, mfn);
    struct foreign *f = foreign_find(b, mfn, true);

    if ( f )
        f->live[!readonly]++;

    spin_unlock(&b->lock);

    return f ? 1 : -ENOMEM;
}

void pv_iommu_grant_mapped(struct domain *ld, mfn_t mfn)
{
    struct pv_iommu *pv = dom_iommu(ld)->pv;
    struct pv_iommu_bucket *b = foreign_lock(pv, mfn);
    struct foreign *f = foreign_find(b, mfn, false);

    /* It may have been unmapped again by now. */
    if ( f )
        foreign_unlock(pv, b, f);
    else
        spin_unlock(&b->lock);
}

bool pv_iommu_end_grant(struct domain *ld, struct domain *rd, grant_ref_t ref,
                        mfn_t mfn, uint16_t flags, bool begun)
{
    struct pv_iommu *pv = dom_iommu(ld)->pv;
    struct pv_iommu_bucket *b = foreign_lock(pv, mfn);
    struct foreign *f = foreign_find(b, mfn, false);
    bool write = !(flags & GNTMAP_readonly), hold = false;
    struct held old = {};

    if ( !f || (begun && !f->live[write]) )
    {
        ASSERT(!begun);
        spin_unlock(&b->lock);
        return false;
    }

    if ( begun )
        f->live[write]--;

    /* What is held already may do, and a read-only grant may not. */
    if ( (flags & (GNTMAP_device_map | GNTMAP_host_map)) && wants_grant(f) &&
         (write || !f->io[RW]) &&
         (!f->held.rd || (write && (f->held.flags & GNTMAP_readonly))) )
    {
        get_knownalive_domain(rd);
        old = f->held;
        f->held = (struct held){ rd, ref, flags };
        hold = true;
    }

    foreign_unlock(pv, b, f);
    end_held(pv, mfn, &old);

    return hold;
}

/* Records of grants that are mapped still. May return -ERESTART. */
static int foreign_destroy(struct pv_iommu *pv)
{
    unsigned int i, n = 0;

    for ( i = 0; i < PV_IOMMU_NR_BUCKETS; i++ )
    {
        struct rb_root *root = &pv->bucket[i].frames;

        while ( root->rb_node )
        {
            struct foreign *f = rb_entry(root->rb_node, struct foreign, node);

            ASSERT(!f->held.rd);
            rb_erase(&f->node, root);
            xfree(f);
            if ( !(++n % 256) && hypercall_preempt_check() )
                return -ERESTART;
        }
    }

    return 0;
}

/*
 * References
 *
 * A frame that a device can write to has a writable type reference, too, unless
 * its owner is an external one, whose frames are never page or descriptor tables
 * that Xen relies on.  Frames of other domains have sw_grant set, and sw_write
 * then only says that the device may write.
 */
static bool is_typed(const struct page_info *pg, uint64_t pte)
{
    return (pte & hw.sw_write) &&
           (!(pte & hw.sw_grant) || !paging_mode_external(page_get_owner(pg)));
}

/* Drop references, those to types only if typed. No lock may be held. */
static void put_frames(const struct pv_iommu_ctx *ctx, mfn_t mfn,
                       unsigned long nr, uint64_t pte, bool typed)
{
    struct page_info *pg;
    unsigned long i;

    if ( pte & (hw.sw_noref | hw.sw_rsvd) )
        return;

    for ( i = 0, pg = mfn_to_page(mfn); i < nr; i++, pg++ )
    {
        if ( typed && is_typed(pg, pte) )
            put_page_and_type(pg);
        else
            put_page(pg);

        /* The granter is told last. */
        if ( pte & hw.sw_grant )
            foreign_put(ctx->pv, mfn_add(mfn, i), pte & hw.sw_write);
    }
}

/* Frames of other domains, for put_frames() once ctx->lock is dropped. */
struct later {
    unsigned int nr;
    struct {
        uint64_t pte;
        unsigned long nr;
    } entry[32];
};

/* Returns false if there is no room. */
static bool put_later(struct later *later, uint64_t pte, unsigned long nr)
{
    if ( later->nr == ARRAY_SIZE(later->entry) )
        return false;

    later->entry[later->nr].pte = pte;
    later->entry[later->nr].nr = nr;
    later->nr++;

    return true;
}

static void put_now(const struct pv_iommu_ctx *ctx, struct later *later)
{
    unsigned int i;

    for ( i = 0; i < later->nr; i++ )
        put_frames(ctx, pte_mfn(later->entry[i].pte), later->entry[i].nr,
                   later->entry[i].pte, true);
    later->nr = 0;
}

/* Not RAM, for which a reference would be needed. */
static bool is_mmio(mfn_t mfn)
{
    return !mfn_valid(mfn) || page_get_owner(mfn_to_page(mfn)) == dom_io;
}

/* MMIO: no references, but permission is needed. */
static long get_mmio(const struct domain *d, mfn_t mfn, unsigned long nr,
                     bool write)
{
    unsigned long s = mfn_x(mfn), e = s + nr - 1;

    if ( iomem_access_permitted(d, s, e) &&
         (!write || !rangeset_overlaps_range(mmio_ro_ranges, s, e)) )
        return nr;

    if ( iomem_access_permitted(d, s, s) &&
         (!write || !rangeset_contains_singleton(mmio_ro_ranges, s)) )
        return 1;

    return -EPERM;
}

/*
 * Get a reference to a frame, but not to its type, as the P2M may be locked.  Sets
 * the PTE bits.
 */
static int get_frame(const struct domain *d, struct page_info *pg, bool write,
                     bool foreign, uint64_t *pte)
{
    /* Unlike get_page() this does not log what a caller asked for in vain. */
    const struct domain *owner = page_get_owner_and_reference(pg);
    int rc;

    if ( !owner )
        return -ENOENT;

    if ( owner == d )
    {
        *pte = write && !paging_mode_external(d) ? hw.sw_write : 0;
        return 0;
    }

    rc = owner == dom_io ? -EXDEV
         : !foreign || is_system_domain(owner) ? -EPERM
         : foreign_get(dom_iommu(d)->pv, page_to_mfn(pg), write);
    if ( rc )
        put_page(pg);
    *pte = hw.sw_grant | (write ? hw.sw_write : 0);

    return rc;
}

/*
 * The P2M entry that was looked up last.  The P2M stays locked until xlat_end(),
 * so that the entry can be used for other frames that it covers, too.
 */
struct xlat {
    const struct pv_iommu_ctx *ctx;
    struct domain *d;
    bool locked;
    /* The domain may read and write it. */
    bool writable;
    /* Plain memory, all of it. */
    bool plain;
    unsigned long first, gfn, nr;
    mfn_t mfn;
    p2m_type_t t;
};

static void xlat_gfn(struct xlat *x, unsigned long gfn)
{
    unsigned int order = 0;
    p2m_access_t a;

    if ( gfn - x->gfn < x->nr )
        return;

    x->mfn = get_gfn_type_access(p2m_get_hostp2m(x->d), gfn, &x->t, &a,
                                 P2M_ALLOC, &order);
    /* The lock is recursive: once is enough. */
    if ( x->locked )
        put_gfn(x->d, gfn);
    else
        x->first = gfn;
    x->locked = true;

    x->nr = 1UL << order;
    x->gfn = gfn & ~(x->nr - 1);
    if ( !mfn_eq(x->mfn, INVALID_MFN) )
        x->mfn = mfn_add(x->mfn, -(gfn - x->gfn));

    x->writable = a == p2m_access_rw || a == p2m_access_rwx ||
                  a == p2m_access_w || a == p2m_access_wx;
    x->plain = x->t == p2m_ram_rw && x->writable && mfn_valid(x->mfn) &&
               mfn_valid(mfn_add(x->mfn, x->nr - 1));
}

static void xlat_end(struct xlat *x)
{
    if ( x->locked )
        put_gfn(x->d, x->first);
    x->locked = false;
    x->nr = 0;
}

/*
 * Get references to frames that are all valid, as long as they are what is by far
 * the most frequent: memory of the domain's own.  Returns how many are.
 */
static always_inline unsigned long get_own(const struct domain *d, mfn_t mfn,
                                           unsigned long nr)
{
    struct page_info *pg = mfn_to_page(mfn);
    unsigned long i;

    for ( i = 0; i < nr; i++, pg++ )
    {
        const struct domain *owner = page_get_owner_and_reference(pg);

        if ( likely(owner == d) )
            continue;
        /* To be looked at once more, with more care. */
        if ( owner )
            put_page(pg);
        break;
    }

    return i;
}

/*
 * Translate gfn, and get references to up to nr frames that are contiguous from
 * there.  Returns the number of frames, and sets the PTE bits for them.
 */
static long get_run(struct xlat *x, unsigned long gfn, unsigned long nr,
                    bool write, mfn_t *mfn, uint64_t *pte)
{
    struct domain *d = x->d;
    unsigned long i = 0;
    bool translate = paging_mode_translate(d), foreign = false, mmio = false;
    long rc = 0;

    if ( translate )
    {
        xlat_gfn(x, gfn);
        *mfn = x->mfn;

        if ( x->plain )
        {
            *mfn = mfn_add(*mfn, gfn - x->gfn);
            *pte = 0;
            i = get_own(d, *mfn, min(nr, x->gfn + x->nr - gfn));
            if ( i )
                return i;
            *mfn = x->mfn;
        }

        /* That a foreign frame is in the P2M says that it may be. */
        switch ( x->t )
        {
        case p2m_ram_rw:
            break;

        case p2m_map_foreign:
        case p2m_grant_map_rw:
            foreign = true;
            break;

        case p2m_grant_map_ro:
            foreign = true;
            fallthrough;
        case p2m_ram_ro:
            if ( write )
                rc = -EPERM;
            break;

        case p2m_mmio_direct:
            mmio = true;
            break;

        default:
            rc = -ENOENT;
            break;
        }

        if ( mfn_eq(*mfn, INVALID_MFN) )
            rc = rc ?: -ENOENT;
        else
            *mfn = mfn_add(*mfn, gfn - x->gfn);

        if ( !rc && write && !x->writable )
            rc = -EPERM;

        nr = min(nr, x->gfn + x->nr - gfn);
    }
    else
    {
        *mfn = _mfn(gfn);

        /* Validity changes between 2 MiB only, and a run is no longer. */
        if ( mfn_valid(*mfn) && (nr == 1 || mfn_valid(mfn_add(*mfn, nr - 1))) )
        {
            *pte = write ? hw.sw_write : 0;
            i = get_own(d, *mfn, nr);
            if ( i )
                return i;
        }

        if ( gfn >> (paddr_bits - PAGE_SHIFT) )
            rc = -ENOENT;
        else
            mmio = !mfn_valid(*mfn);
        /* Nothing tells a frame's foreign mappings: be privileged over all. */
        foreign = is_hardware_domain(d) && is_control_domain(d);
    }

    *pte = 0;

    if ( !rc && !mmio )
    {
        struct page_info *pg = mfn_to_page(*mfn);
        /* Validity changes between 2 MiB only, and a run is no longer. */
        bool valid = mfn_valid(*mfn) && mfn_valid(mfn_add(*mfn, nr - 1));

        ASSERT(nr <= PT_ENTRIES);

        for ( ; i < nr; i++, pg++ )
        {
            uint64_t bits;

            rc = valid || mfn_valid(mfn_add(*mfn, i))
                 ? get_frame(d, pg, write, foreign, &bits) : -EXDEV;
            if ( rc )
                break;
            if ( !i )
                *pte = bits;
            else if ( bits != *pte )
            {
                /* PV only: no P2M lock is held. Another run begins here. */
                ASSERT(!translate);
                put_frames(x->ctx, mfn_add(*mfn, i), 1, bits, false);
                break;
            }
        }

        /* RAM type for Xen, MMIO for the domain. */
        if ( !i && rc == -EXDEV )
        {
            mmio = true;
            nr = 1;
            rc = 0;
        }
    }

    if ( !rc && mmio )
    {
        unsigned long max = 1;

        /* Don't extend into what is not MMIO. */
        while ( max < nr && is_mmio(mfn_add(*mfn, max)) &&
                !(mfn_x(mfn_add(*mfn, max)) >> (paddr_bits - PAGE_SHIFT)) )
            max++;

        /* The P2M has pages of Xen's as MMIO, too, e.g. a virtual APIC's. */
        rc = is_mmio(*mfn) ? get_mmio(d, *mfn, max, write) : -EPERM;
        if ( rc > 0 )
            i = rc;
        *pte |= hw.sw_noref;
    }

    return i ?: rc;
}

/*
 * Operations on the tables
 */

/* Replace a superpage by a table. Cannot fail: there is a page for it. */
static void split(struct pv_iommu_ctx *ctx, uint64_t *ptep, unsigned long dfn,
                  unsigned int level)
{
    struct page_info *pg = page_list_remove_head(&ctx->spare);
    uint64_t *tbl = __map_domain_page(pg);
    uint64_t pte = *ptep & ~PTE_ADDR;
    mfn_t mfn = pte_mfn(*ptep);
    unsigned int i;

    ctx->nr_spare--;
    ctx->nr_tables++;
    ctx->nr_splits++;

    level--;
    if ( level == 1 )
        pte &= ~hw.super_mask;
    for ( i = 0; i < PT_ENTRIES; i++ )
        tbl[i] = mfn_to_maddr(mfn_add(mfn, i * span(level))) | pte;
    iommu_sync_cache(tbl, PAGE_SIZE);
    unmap_domain_page(tbl);

    *meta(pg) = new_meta(dfn, level) | PT_ENTRIES;

    write_pte(ptep, table_pte(pg, level));
    iommu_sync_cache(ptep, sizeof(*ptep));
}

/*
 * Replace a table by a superpage if it has nothing but contiguous ones.  As the
 * hardware may have the table's address cached, it becomes stale as it is, and
 * another page is set aside for the split.  Without one the table stays.  Before
 * any of the frames is released there is a split, and thus a flush of all.
 */
static void fold(struct pv_iommu_ctx *ctx, struct page_info *pg)
{
    unsigned int level = META_LEVEL(*meta(pg)), up = level + 1, i = PT_ENTRIES;
    unsigned long dfn = META_DFN(*meta(pg));
    const uint64_t step = span(level) << PAGE_SHIFT;
    struct page_info *parent, *spare;
    uint64_t *tbl, pte;

    if ( !(hw.page_sizes & PAGE_SIZE_1G) || level != 2 || pg == ctx->root ||
         pt_used(pg) != PT_ENTRIES )
        return;

    tbl = __map_domain_page(pg);
    pte = tbl[0];
    if ( pte_is_leaf(pte, level) && (pte & hw.present) &&
         !(mfn_x(pte_mfn(pte)) & (span(up) - 1)) )
        /* The last one is the first that doesn't fit, if any. */
        while ( i && tbl[i - 1] == pte + (i - 1) * step )
            i--;
    unmap_domain_page(tbl);

    if ( i || !(spare = pool_get(ctx)) )
        return;

    page_list_add(spare, &ctx->spare);
    ctx->nr_spare++;

    if ( find_table(ctx, dfn, &up, false, &parent) || up != level + 1 )
    {
        ASSERT_UNREACHABLE();
        return;
    }

    tbl = __map_domain_page(parent);
    write_pte(&tbl[pt_index(dfn, up)], pte);
    iommu_sync_cache(&tbl[pt_index(dfn, up)], sizeof(*tbl));
    unmap_domain_page(tbl);

    page_list_add(pg, &ctx->stale);
    ctx->nr_stale++;
    ctx->nr_tables--;
}

/*
 * Write entries for nr frames, with the lock held. Returns -EAGAIN if a flush of
 * everything may help, which is not to be used twice in a row (retry).
 */
static int install(struct pv_iommu_ctx *ctx, unsigned long dfn, mfn_t mfn,
                   unsigned long nr, uint64_t flags, bool retry,
                   unsigned long *done)
{
    unsigned long i = 0;
    int rc = 0;

    ASSERT(spin_is_locked(&ctx->lock));

    while ( i < nr )
    {
        unsigned long cur = dfn + i;
        mfn_t m = mfn_add(mfn, i);
        unsigned int level = 1, idx, n;
        bool large = (hw.page_sizes & PAGE_SIZE_2M) && nr - i >= PT_ENTRIES &&
                     !((cur | mfn_x(m)) & (PT_ENTRIES - 1));
        struct page_info *pg;
        uint64_t *tbl, pte;

        if ( ctx->dying )
        {
            rc = -EINVAL;
            break;
        }

        /* Frames of other domains are released one by one. */
        if ( large && !(flags & hw.sw_grant) )
        {
            struct page_info *spare;

            level = 2;
            rc = find_table(ctx, cur, &level, true, &pg);
            if ( rc )
                break;

            tbl = __map_domain_page(pg);
            idx = pt_index(cur, 2);
            pte = tbl[idx];

            if ( level == 2 && !pte && (spare = pool_get(ctx)) )
            {
                /* The page is for the split, which must not fail. */
                page_list_add(spare, &ctx->spare);
                ctx->nr_spare++;

                write_pte(&tbl[idx], leaf_pte(m, 2, flags));
                iommu_sync_cache(&tbl[idx], sizeof(*tbl));
                unmap_domain_page(tbl);
                pt_get(ctx, pg, 1);
                fold(ctx, pg);
                i += PT_ENTRIES;
                continue;
            }
            unmap_domain_page(tbl);

            if ( level == 2 && pte && !pte_is_leaf(pte, 2) && !retry &&
                 !pt_used(mfn_to_page(pte_mfn(pte))) )
            {
                rc = -EAGAIN;
                break;
            }
            level = 1;
        }

        rc = find_table(ctx, cur, &level, true, &pg);
        if ( rc )
            break;

        tbl = __map_domain_page(pg);
        idx = pt_index(cur, level);

        n = level > 1 ? 0
            : write_ptes(&tbl[idx], min(nr - i, PT_ENTRIES - idx + 0UL),
                         leaf_pte(m, 1, flags));
        pte = idx + n < PT_ENTRIES ? tbl[idx + n] : 0;
        if ( n )
        {
            iommu_sync_cache(&tbl[idx], n * sizeof(*tbl));
            pt_get(ctx, pg, n);
            i += n;
        }
        unmap_domain_page(tbl);

        if ( i < nr && pte )
        {
            rc = (pte & hw.sw_rsvd) ? -EADDRNOTAVAIL
                 : (pte & hw.sw_dead) && !retry ? -EAGAIN : -EADDRINUSE;
            break;
        }
    }

    ctx->nr_frames += i;
    *done = i;

    return rc;
}

/*
 * Make the entries of nr frames dead. Sets *grants when the flush must not be
 * deferred: the owner of a frame may take it back as soon as the caller is done
 * with it.
 */
static int kill_frames(struct pv_iommu_ctx *ctx, unsigned long dfn,
                       unsigned long nr, unsigned long *done, bool *grants)
{
    const uint64_t present = hw.present, rsvd = hw.sw_rsvd, dead = hw.sw_dead;
    uint64_t seen = 0;
    unsigned long i = 0;
    int rc = 0;

    spin_lock(&ctx->lock);

    while ( i < nr && !rc )
    {
        unsigned long cur = dfn + i;
        unsigned int level = 1, idx, n;
        struct page_info *pg;
        uint64_t *tbl;

        if ( ctx->dying )
        {
            rc = -EINVAL;
            break;
        }

        rc = find_table(ctx, cur, &level, false, &pg);
        ASSERT(!rc);

        tbl = __map_domain_page(pg);
        idx = pt_index(cur, level);
        n = 0;

        /* This is what takes the time. */
        if ( level == 1 )
        {
            unsigned int end = min(nr - i, PT_ENTRIES - idx + 0UL);
            uint64_t *ptep = &tbl[idx];

            for ( ; n < end; n++, ptep++ )
            {
                uint64_t pte = *ptep;

                if ( (pte & (present | rsvd)) != present )
                    break;
                seen |= pte;
                write_pte(ptep, (pte & ~present) | dead);
            }
            i += n;
        }

        for ( ; idx + n < PT_ENTRIES && i < nr; n++ )
        {
            uint64_t pte = tbl[idx + n];

            if ( !(pte & present) )
                rc = -ENOENT;
            else if ( pte & rsvd )
                rc = -EADDRNOTAVAIL;
            if ( rc )
                break;

            if ( !pte_is_leaf(pte, level) )
                break;

            /* Those of 1 GiB are released in portions, see reap(). */
            if ( level > 2 ||
                 (level == 2 &&
                  (((dfn + i) & (span(2) - 1)) || nr - i < span(2))) )
            {
                split(ctx, &tbl[idx + n], dfn + i, level);
                break;
            }

            seen |= pte;
            write_pte(&tbl[idx + n], (pte & ~present) | dead);
            i += span(level);
        }

        if ( n )
            iommu_sync_cache(&tbl[idx], n * sizeof(*tbl));
        unmap_domain_page(tbl);
    }

    spin_unlock(&ctx->lock);

    if ( seen & hw.sw_grant )
        *grants = true;
    *done = i;

    return rc;
}

/*
 * Release the frames behind dead entries. To be called after the flush.  Returns how
 * far it got, less than nr if there is more than fits into later.
 */
static unsigned long reap(struct pv_iommu_ctx *ctx, unsigned long dfn,
                          unsigned long nr, struct later *later)
{
    const uint64_t state = hw.present | hw.sw_dead, dead = hw.sw_dead;
    const uint64_t special = hw.sw_noref | hw.sw_rsvd | hw.sw_grant;
    const uint64_t typed = hw.sw_write, grant = hw.sw_grant;
    unsigned long i = 0;
    bool full = false;

    ASSERT(spin_is_locked(&ctx->lock));

    while ( i < nr && !full )
    {
        unsigned long cur = dfn + i;
        unsigned int level = 1, idx, n, gone = 0;
        struct page_info *pg, *frame;
        uint64_t *tbl;

        if ( find_table(ctx, cur, &level, false, &pg) )
            ASSERT_UNREACHABLE();

        tbl = __map_domain_page(pg);
        idx = pt_index(cur, level);

        n = 0;

        /* This is what takes the time. */
        if ( level == 1 )
        {
            unsigned int end = min(nr - i, PT_ENTRIES - idx + 0UL);
            uint64_t *ptep = &tbl[idx];

            for ( ; n < end; n++, ptep++ )
            {
                uint64_t pte = *ptep;

                if ( (pte & state) != dead )
                    continue;

                if ( unlikely(pte & special) )
                {
                    full = (pte & grant) && !put_later(later, pte, 1);
                    if ( full )
                        break;
                }
                else
                {
                    frame = mfn_to_page(pte_mfn(pte));
                    if ( pte & typed )
                        put_page_and_type(frame);
                    else
                        put_page(frame);
                }

                *ptep = 0;
                gone++;
            }
            ctx->nr_frames -= gone;
            i += n;
        }
        else
            for ( ; idx + n < PT_ENTRIES && i < nr; n++ )
            {
                uint64_t pte = tbl[idx + n];

                if ( pte && !pte_is_leaf(pte, level) )
                    break;

                if ( (pte & state) == dead )
                {
                    /* A range that is dead always covers superpages wholly. */
                    ASSERT(!((dfn + i) & (span(level) - 1)) &&
                           nr - i >= span(level));
                    tbl[idx + n] = 0;
                    put_frames(ctx, pte_mfn(pte), span(level), pte, true);
                    ctx->nr_frames -= span(level);
                    gone++;
                    pool_put(ctx, page_list_remove_head(&ctx->spare));
                    ctx->nr_spare--;
                }
                i += span(level) - ((dfn + i) & (span(level) - 1));
            }
        unmap_domain_page(tbl);

        if ( gone )
            pt_put(ctx, pg, gone);
    }

    trim_empty(ctx, MAX_EMPTY);

    return min(i, nr);
}

static int flush_range(struct pv_iommu_ctx *ctx, unsigned long dfn,
                       unsigned long nr, unsigned int flags)
{
    int rc;

    /*
     * An IOMMU that isn't flushed as no device behind it is in the context must
     * see the new entries when there is one.
     */
    smp_mb();

    rc = iommu_call(&iommu_ops, pv_flush, ctx, _dfn(dfn), nr, flags);

    if ( ctx->pv )
        atomic_inc(&ctx->pv->nr_flushes);

    if ( unlikely(rc) && printk_ratelimit() )
        printk(XENLOG_ERR "%pd: IOMMU context %u: flush failed: %d\n",
               ctx->d, ctx->no, rc);

    return rc;
}

/* Flush all of a context, and give back the tables that waited for it. */
static int flush_ctx(struct pv_iommu_ctx *ctx)
{
    PAGE_LIST_HEAD(stale);
    unsigned int tail, splits;
    int rc;

    spin_lock(&ctx->lock);
    page_list_move(&stale, &ctx->stale);
    ctx->nr_stale = 0;
    tail = ctx->def_tail;
    ctx->def_sealed = tail;
    splits = ctx->nr_splits;
    spin_unlock(&ctx->lock);

    rc = flush_range(ctx, 0, 0, IOMMU_FLUSHF_modified | IOMMU_FLUSHF_all);

    if ( unlikely(rc) )
    {
        struct page_info *pg;

        spin_lock(&ctx->lock);
        while ( (pg = page_list_remove_head(&stale)) )
        {
            page_list_add(pg, &ctx->stale);
            ctx->nr_stale++;
        }
        spin_unlock(&ctx->lock);

        return rc;
    }

    pool_put_list(ctx, &stale);

    spin_lock(&ctx->lock);
    if ( (int)(tail - ctx->def_flushed) > 0 )
        ctx->def_flushed = tail;
    if ( (int)(splits - ctx->splits_flushed) > 0 )
        ctx->splits_flushed = splits;
    spin_unlock(&ctx->lock);

    return 0;
}

/* Release what was unmapped without a flush. May return -ERESTART. */
static int flush_deferred(struct pv_iommu_ctx *ctx)
{
    struct later later = {};
    int rc = 0;

    if ( ACCESS_ONCE(ctx->def_tail) != ACCESS_ONCE(ctx->def_flushed) ||
         ACCESS_ONCE(ctx->nr_stale) )
    {
        rc = flush_ctx(ctx);
        if ( rc )
            return rc;
    }

    spin_lock(&ctx->lock);
    while ( ctx->def_head != ctx->def_flushed )
    {
        unsigned int idx = ctx->def_head % PV_IOMMU_NR_DEFERRED;
        unsigned long dfn = ctx->deferred[idx].dfn;
        unsigned long n = min(ctx->deferred[idx].nr,
                              PT_ENTRIES - (dfn & (PT_ENTRIES - 1)));

        n = reap(ctx, dfn, n, &later);
        ctx->deferred[idx].dfn += n;
        ctx->deferred[idx].nr -= n;
        if ( !ctx->deferred[idx].nr )
            ctx->def_head++;

        if ( ctx->def_head == ctx->def_flushed )
            break;

        spin_unlock(&ctx->lock);
        put_now(ctx, &later);
        if ( hypercall_preempt_check() )
            return -ERESTART;
        spin_lock(&ctx->lock);
    }
    spin_unlock(&ctx->lock);
    put_now(ctx, &later);

    return 0;
}

/* Remember a dead range for flush_deferred(). False if there is no room. */
static bool defer(struct pv_iommu_ctx *ctx, unsigned long dfn, unsigned long nr)
{
    unsigned int idx;
    bool ok;

    spin_lock(&ctx->lock);

    idx = (ctx->def_tail - 1) % PV_IOMMU_NR_DEFERRED;
    ok = ctx->def_tail - ctx->def_head < PV_IOMMU_NR_DEFERRED;

    /* No flush has begun since, so that one serves both. */
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

    return ok;
}

/* Flush and release a range that this call made dead. */
static int finish_unmap(struct pv_iommu_ctx *ctx, unsigned long dfn,
                        unsigned long nr)
{
    int rc;

    if ( !nr )
        return 0;

    /* What is cached may be larger than the range. */
    if ( ACCESS_ONCE(ctx->nr_splits) != ACCESS_ONCE(ctx->splits_flushed) )
        rc = flush_ctx(ctx);
    else
        rc = flush_range(ctx, dfn, nr, IOMMU_FLUSHF_modified);
    if ( unlikely(rc) )
    {
        /* The frames stay until a flush succeeds. */
        defer(ctx, dfn, nr);
        return rc;
    }

    while ( nr )
    {
        unsigned long n = min(nr, PT_ENTRIES - (dfn & (PT_ENTRIES - 1)));
        struct later later = {};

        spin_lock(&ctx->lock);
        n = reap(ctx, dfn, n, &later);
        spin_unlock(&ctx->lock);
        put_now(ctx, &later);
        dfn += n;
        nr -= n;
    }

    return 0;
}

/* The pool is empty, or something dead is in the way. May return -ERESTART. */
static int reclaim(struct pv_iommu_ctx *ctx)
{
    spin_lock(&ctx->lock);
    trim_empty(ctx, 0);
    spin_unlock(&ctx->lock);

    return flush_deferred(ctx);
}

/*
 * Contexts
 */

static struct pv_iommu_ctx *ctx_get(struct pv_iommu *pv, unsigned int no,
                                    bool dying)
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
        ctx->users++;
    spin_unlock(&pv->lock);

    return ctx;
}

static void ctx_put(struct pv_iommu_ctx *ctx)
{
    spin_lock(&ctx->pv->lock);
    ASSERT(ctx->users);
    ctx->users--;
    spin_unlock(&ctx->pv->lock);
}

/* Make room for others: tables that contexts only keep for the next mapping. */
static void reclaim_others(struct pv_iommu *pv)
{
    unsigned int no;

    for ( no = 1; no <= pv->max_ctx; no++ )
    {
        struct pv_iommu_ctx *ctx;
        bool some;

        if ( !ACCESS_ONCE(pv->ctx[no]) )
            continue;

        ctx = ctx_get(pv, no, false);
        if ( !ctx )
            continue;

        /* What is not done because of preemption is of little interest. */
        some = !ctx->identity && (ctx->nr_empty || ctx->nr_stale) &&
               reclaim(ctx) != -ETIMEDOUT;
        ctx_put(ctx);

        if ( some && ACCESS_ONCE(pv->nr_free) >= 8 )
            break;
    }
}

/*
 * Release the entries of one table and the table. Returns false if there are
 * no tables left.
 */
static bool zap_one(struct pv_iommu_ctx *ctx, struct later *later)
{
    struct page_info *pg = ctx->root, *parent = NULL;
    unsigned int level = hw.levels, i, at = 0, budget = 8;
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
            if ( pte && level > 2 && pte_is_leaf(pte, level) )
            {
                split(ctx, &tbl[i], META_DFN(*meta(pg)) + i * span(level),
                      level);
                pte = tbl[i];
            }
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
             ((pte & hw.sw_grant) && !put_later(later, pte, span(level))) )
        {
            unmap_domain_page(tbl);
            return true;
        }

        tbl[i] = 0;
        if ( !(pte & hw.sw_grant) )
            put_frames(ctx, pte_mfn(pte), span(level), pte, true);
        ctx->nr_frames -= span(level);
        if ( level > 1 )
        {
            pool_put(ctx, page_list_remove_head(&ctx->spare));
            ctx->nr_spare--;
        }
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
static int ctx_teardown(struct pv_iommu_ctx *ctx, bool force)
{
    bool more;
    int rc;

    ASSERT(ctx->dying);

    if ( ctx->identity )
        return 0;

    if ( ctx->root )
    {
        spin_lock(&ctx->lock);
        trim_empty(ctx, 0);
        spin_unlock(&ctx->lock);

        /* No device is in it; the tag will be used again, though. */
        rc = flush_ctx(ctx);
        if ( rc && !force )
            return rc;
    }

    do {
        struct later later = {};

        spin_lock(&ctx->lock);
        more = zap_one(ctx, &later);
        spin_unlock(&ctx->lock);
        put_now(ctx, &later);

        if ( more && hypercall_preempt_check() )
            return -ERESTART;
    } while ( more );

    ASSERT(!ctx->nr_frames && !ctx->nr_tables && !ctx->nr_spare);
    pool_put_list(ctx, &ctx->stale);
    ctx->nr_stale = 0;

    return 0;
}

static void ctx_destroy(struct pv_iommu_ctx *ctx)
{
    ASSERT(pcidevs_locked());

    list_del(&ctx->list);
    if ( !ctx->identity )
        iommu_vcall(&iommu_ops, pv_ctx_destroy, ctx);
    xfree(ctx);
}

static int cf_check map_reserved(xen_pfn_t start, xen_ulong_t nr, uint32_t id,
                                 void *ctxt)
{
    struct pv_iommu_ctx *ctx = ctxt;
    unsigned long i = 0;

    if ( !nr )
        return 1;

    if ( start > hw.max_dfn || nr - 1 > hw.max_dfn - start )
        return -ERANGE;

    while ( i < nr )
    {
        unsigned long done = 0;
        int rc;

        spin_lock(&ctx->lock);
        rc = install(ctx, start + i, _mfn(start + i), nr - i,
                     hw.read | hw.write | hw.sw_rsvd, true, &done);
        spin_unlock(&ctx->lock);

        i += done;
        /* Several devices may have the same region. */
        if ( rc == -EADDRNOTAVAIL )
            i++;
        else if ( rc )
            return rc;
    }

    return 1;
}

static struct pv_iommu_ctx *ctx_create(struct domain *d, struct pv_iommu *pv,
                                       unsigned int no, bool identity, int *rc)
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
    ctx->levels = hw.levels;
    ctx->identity = identity;
    ctx->domid = DOMID_INVALID;
    spin_lock_init(&ctx->lock);
    INIT_PAGE_LIST_HEAD(&ctx->empty);
    INIT_PAGE_LIST_HEAD(&ctx->stale);
    INIT_PAGE_LIST_HEAD(&ctx->spare);

    *rc = 0;
    if ( identity )
        goto out;

    *rc = iommu_call(&iommu_ops, pv_ctx_init, ctx);
    if ( *rc )
    {
        xfree(ctx);
        return NULL;
    }

    *rc = -ENOMEM;
    ctx->root = new_table(ctx, 0, hw.levels);
    if ( !ctx->root )
        goto fail;

    /* IOMMUs of fewer levels start from the first table of a lower level. */
    spin_lock(&ctx->lock);
    for ( level = hw.levels - 1; level >= hw.min_levels; level-- )
    {
        unsigned int at = level;

        *rc = find_table(ctx, 0, &at, true, &pg);
        if ( *rc )
            break;
        /* Never counts as empty. */
        pt_get(ctx, pg, 1);
    }
    spin_unlock(&ctx->lock);
    if ( hw.min_levels < hw.levels && *rc )
        goto fail;

    *rc = iommu_get_reserved_device_memory(map_reserved, ctx);
    if ( *rc < 0 && *rc != -ENODEV && *rc != -EOPNOTSUPP )
        goto fail;
    *rc = 0;

 out:
    list_add(&ctx->list, &all_ctx);
    return ctx;

 fail:
    spin_lock(&ctx->lock);
    trim_empty(ctx, 0);
    while ( zap_one(ctx, NULL) )
        /* nothing: only reserved regions, if anything at all */;
    spin_unlock(&ctx->lock);
    pool_put_list(ctx, &ctx->stale);
    iommu_vcall(&iommu_ops, pv_ctx_destroy, ctx);
    xfree(ctx);

    return NULL;
}

struct pv_iommu_ctx *pv_iommu_pdev_ctx(const struct domain *d,
                                       const struct pci_dev *pdev)
{
    struct pv_iommu_ctx *ctx = pdev->pv_ctx;

    ASSERT(pcidevs_locked());

    if ( !ctx && is_hardware_domain(d) )
        ctx = hwdom_block;

    return ctx && ctx->d == d && !ctx->identity ? ctx : NULL;
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

static int attach_functions(struct pci_dev *pdev)
{
    unsigned int devfn = pdev->devfn;
    int rc;

    do {
        rc = iommu_call(&iommu_ops, pv_attach, devfn, pdev);
        devfn += pdev->phantom_stride;
    } while ( !rc && devfn != pdev->devfn &&
              PCI_SLOT(devfn) == PCI_SLOT(pdev->devfn) );

    return rc;
}

/* Move a device to a context, NULL for context 0. */
static int pdev_attach(struct pci_dev *pdev, struct pv_iommu_ctx *ctx)
{
    struct pv_iommu_ctx *old = pdev->pv_ctx;
    int rc;

    ASSERT(pcidevs_locked());

    /* Until the move is done, flushes of either reach the device's TLB. */
    pdev->pv_moving = true;
    smp_wmb();

    pdev->pv_ctx = ctx;
    rc = attach_functions(pdev);
    if ( rc )
    {
        pdev->pv_ctx = old;
        if ( rc != -ENODEV && attach_functions(pdev) )
        {
            /*
             * Some function may be in either. Keep both contexts: a device
             * must never walk tables that were freed.
             */
            printk(XENLOG_ERR "%pp: cannot be moved between IOMMU contexts\n",
                   &pdev->sbdf);
            pdev->broken = true;
            if ( ctx )
                ctx->nr_devs++;
        }
    }
    else
    {
        if ( ctx )
            ctx->nr_devs++;
        if ( old )
        {
            ASSERT(old->nr_devs);
            old->nr_devs--;
        }
    }

    smp_wmb();
    pdev->pv_moving = false;

    return rc;
}

/* The context of another domain than its own is the one it comes back to. */
static bool lent(const struct pci_dev *pdev)
{
    return pdev->pv_ctx && pdev->pv_ctx->d != pdev->domain;
}

int pv_iommu_release_pdev(struct pci_dev *pdev)
{
    ASSERT(pcidevs_locked());

    return pdev->pv_ctx && !lent(pdev) ? pdev_attach(pdev, NULL) : 0;
}

int pv_iommu_lend_pdev(const struct pci_dev *pdev)
{
    int rc = 0;

    ASSERT(pcidevs_locked());

    if ( pdev->pv_ctx && !lent(pdev) && !hwdom_lost )
        hwdom_lost = ctx_create(pdev->domain, NULL, 0, false, &rc);

    return rc;
}

void pv_iommu_forget_pdev(struct pci_dev *pdev)
{
    ASSERT(pcidevs_locked());

    if ( pdev->pv_ctx )
        pdev->pv_ctx->nr_devs--;
    pdev->pv_ctx = NULL;
}

/* A context goes: devices that would come back to it find their DMA blocked. */
static int cf_check orphan(struct pci_dev *pdev, void *arg)
{
    struct pv_iommu_ctx *ctx = arg;

    if ( pdev->pv_ctx == ctx && lent(pdev) )
    {
        pdev->pv_ctx = hwdom_lost;
        hwdom_lost->nr_devs++;
        ctx->nr_devs--;
    }

    return 0;
}

/*
 * Sub-ops
 */

static int op_query(struct domain *d, const struct pv_iommu *pv,
                    XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_capabilities cap;

    memset(&cap, 0, sizeof(cap));
    cap.max_iova_addr = ((hw.max_dfn + 1) << PAGE_SHIFT) - 1;
    cap.cap_flags = IOMMUCAP_deferred_flush | IOMMUCAP_deferred_unmap |
                    IOMMUCAP_runs | IOMMUCAP_faults;
    /* Without snoop control a device decides for itself. */
    if ( iommu_snoop )
        cap.cap_flags |= IOMMUCAP_cache;
    if ( !hwdom_block || !is_hardware_domain(d) )
        cap.cap_flags |= IOMMUCAP_default_identity;
    cap.cap_flags |= IOMMUCAP_identity;
    if ( hw.isolated_msi )
        cap.cap_flags |= IOMMUCAP_isolated_msi;
    cap.pgsize_mask = hw.page_sizes;
    cap.max_ctx_no = pv ? pv->max_ctx : 0;

    if ( opt_drafts )
    {
        cap.max_iova_addr = (1UL << 48) - 1;
        cap.cap_flags = IOMMUCAP_default_identity;
        cap.pgsize_mask = PAGE_SIZE_4K;
    }

    return copy_to_guest(arg, &cap, 1) ? -EFAULT : 0;
}

/*
 * Free up to nr pages of a pool that is not, or no longer, in use. Returns true
 * if there are more.
 */
static bool drain_pool(struct pv_iommu *pv, unsigned int nr)
{
    struct page_info *pg;

    while ( nr-- && (pg = page_list_remove_head(&pv->pool)) )
    {
        pv->nr_free--;
        pv->nr_pages--;
        *meta(pg) = 0;
        free_domheap_page(pg);
    }

    return !page_list_empty(&pv->pool);
}

/*
 * One step of IOMMU_init. A continuation may find itself on another vCPU, as
 * the guest's kernel is free to schedule in between, hence the flag in the
 * sub-op tells it from a second attempt, and a lock serialises steps.
 */
static int init_step(struct domain *d, const struct pv_iommu_init *op,
                     bool continued)
{
    static DEFINE_SPINLOCK(init_lock);
    struct domain_iommu *hd = dom_iommu(d);
    struct pv_iommu *pv;
    unsigned int i, memflags = 0;
    int rc = -ERESTART;

    spin_lock(&init_lock);

    pv = hd->pv_init;
    if ( hd->pv || !pv == continued )
    {
        /* Done: another vCPU has continued as well, for whatever reason. */
        rc = hd->pv && continued ? 0 : -EACCES;
        goto out;
    }

    if ( !pv )
    {
        rc = -ENOMEM;
        pv = xvzalloc_flex_struct(struct pv_iommu, ctx, op->max_ctx_no + 1);
        if ( !pv )
            goto out;

        pv->d = d;
        spin_lock_init(&pv->lock);
        for ( i = 0; i < PV_IOMMU_NR_BUCKETS; i++ )
            spin_lock_init(&pv->bucket[i].lock);
        INIT_PAGE_LIST_HEAD(&pv->pool);
        INIT_PAGE_LIST_HEAD(&pv->quirk_leaked);
        pv->max_ctx = op->max_ctx_no;
        hd->pv_init = pv;
        rc = -ERESTART;
    }

#ifdef CONFIG_NUMA
    if ( hd->node != NUMA_NO_NODE )
        memflags = MEMF_node(hd->node);
#endif

    for ( i = 0; !pv->failed && i < 64; i++ )
    {
        struct page_info *pg;

        if ( pv->nr_pages >= (1UL << op->arena_order) )
        {
            /* From here on the others may use it. */
            hd->pv_init = NULL;
            smp_wmb();
            write_atomic(&hd->pv, pv);
            rc = 0;
            goto out;
        }

        pg = alloc_domheap_page(NULL, memflags);
        if ( !pg )
        {
            pv->failed = true;
            break;
        }

        clear_domain_page(page_to_mfn(pg));
        *meta(pg) = 0;
        page_list_add(pg, &pv->pool);
        pv->nr_pages++;
        pv->nr_free++;
    }

    if ( pv->failed && !drain_pool(pv, 64) )
    {
        hd->pv_init = NULL;
        xvfree(pv);
        rc = -ENOMEM;
    }

 out:
    spin_unlock(&init_lock);

    return rc;
}

static int op_init(struct domain *d, bool continued,
                   XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_init op;
    int rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( !continued && dom_iommu(d)->pv )
        return -EACCES;

    if ( !op.max_ctx_no || op.max_ctx_no > opt_max_ctx ||
         op.arena_order > opt_max_order )
        return -EINVAL;

    while ( (rc = init_step(d, &op, continued)) == -ERESTART )
    {
        continued = true;
        if ( hypercall_preempt_check() )
            break;
    }

    return rc;
}

static int op_alloc(struct domain *d, struct pv_iommu *pv,
                    XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_alloc op;
    struct pv_iommu_ctx *ctx = NULL;
    unsigned int no;
    bool retried = false;
    int rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( opt_drafts )
        op.alloc_flags = 0;

    if ( op.alloc_flags & ~IOMMU_ALLOC_identity )
        return -EINVAL;

    /* Find out now if the number of the context cannot be returned. */
    op.ctx_no = 0;
    if ( __copy_to_guest(arg, &op, 1) )
        return -EFAULT;

 retry:
    pcidevs_lock();

    for ( no = 1; no <= pv->max_ctx; no++ )
        if ( !pv->ctx[no] )
            break;

    if ( d->is_dying )
        rc = -EINVAL;
    else if ( no > pv->max_ctx )
        rc = -ENOSPC;
    else
        ctx = ctx_create(d, pv, no, op.alloc_flags & IOMMU_ALLOC_identity, &rc);

    if ( ctx )
    {
        spin_lock(&pv->lock);
        pv->ctx[no] = ctx;
        pv->nr_ctx++;
        spin_unlock(&pv->lock);
    }

    pcidevs_unlock();

    if ( rc == -ENOMEM && !retried )
    {
        retried = true;
        reclaim_others(pv);
        goto retry;
    }

    if ( rc )
        return rc;

    op.ctx_no = no;

    return __copy_to_guest(arg, &op, 1) ? -EFAULT : 0;
}

static int op_free(struct domain *d, struct pv_iommu *pv,
                   XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_free op;
    struct pv_iommu_ctx *ctx;
    struct pci_dev *pdev;
    int rc = 0;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( op.free_flags & ~IOMMU_FREE_reattach_default )
        return -EINVAL;

    /* One that is dying already is the continuation's, or another's. */
    ctx = ctx_get(pv, op.ctx_no, true);
    if ( !ctx )
        return -EINVAL;

    if ( !ctx->dying )
    {
        pcidevs_lock();

        for_each_pdev ( d, pdev )
            if ( pdev->pv_ctx == ctx )
            {
                rc = (op.free_flags & IOMMU_FREE_reattach_default)
                     ? pdev_attach(pdev, NULL) : -EBUSY;
                if ( rc )
                    break;
            }

        if ( !rc && ctx->nr_devs )
            pci_iterate_devices(orphan, ctx);
        if ( !rc && ctx->nr_devs )
            rc = -EBUSY;

        /* There the context is lost. */
        if ( rc && opt_drafts )
            ctx->quirk_lost = true;

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

    if ( !rc )
    {
        spin_lock(&pv->lock);
        if ( ctx->users > 1 )
            rc = -ERESTART;
        spin_unlock(&pv->lock);
    }

    if ( !rc )
        rc = ctx_teardown(ctx, false);

    if ( rc )
    {
        ctx_put(ctx);
        return rc;
    }

    /* There each context costs a page of the pool for good. */
    if ( opt_drafts )
    {
        struct page_info *pg = pool_get(ctx);

        spin_lock(&pv->lock);
        if ( pg )
            page_list_add(pg, &pv->quirk_leaked);
        spin_unlock(&pv->lock);
    }

    pcidevs_lock();

    spin_lock(&pv->lock);
    if ( --ctx->users )
        rc = -ERESTART;
    else
    {
        pv->ctx[ctx->no] = NULL;
        pv->nr_ctx--;
    }
    spin_unlock(&pv->lock);

    if ( !rc )
        ctx_destroy(ctx);

    pcidevs_unlock();

    return rc;
}

static int op_reattach(struct domain *d, struct pv_iommu *pv,
                       XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_reattach_device op;
    struct pv_iommu_ctx *ctx = NULL;
    struct pci_dev *pdev;
    int rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( op.pasid && !opt_drafts )
        return -EOPNOTSUPP;

    pcidevs_lock();

    pdev = pci_get_pdev(d, PCI_SBDF(op.dev.seg, op.dev.bus, op.dev.devfn));
    rc = -ENODEV;
    if ( !pdev )
        goto out;

    rc = -EBUSY;
    if ( lent(pdev) )
        goto out;

    if ( op.ctx_no )
    {
        rc = -EINVAL;
        /* Freeing is excluded by pcidevs_lock, up to "dying". */
        if ( op.ctx_no > pv->max_ctx )
            goto out;
        ctx = pv->ctx[array_index_nospec(op.ctx_no, pv->max_ctx + 1)];
        if ( !ctx || ctx->dying || ctx->quirk_lost )
            goto out;
    }

    rc = 0;
    if ( pdev->pv_ctx != ctx )
        rc = pdev_attach(pdev, ctx);

 out:
    pcidevs_unlock();

    return rc;
}

/* Common checks of a range. */
static int check_range(unsigned long dfn, unsigned long nr)
{
    return dfn > hw.max_dfn || nr - 1 > hw.max_dfn - dfn ? -ERANGE : 0;
}

/* pgsize -> order in frames, or negative. */
static int pgsize_order(uint32_t pgsize)
{
    if ( !pgsize || (pgsize & (pgsize - 1)) || !(hw.page_sizes & pgsize) )
        return -EINVAL;

    return ffs(pgsize) - 1 - PAGE_SHIFT;
}

/* Frames on their way into a context; references to them are held. */
struct piece {
    unsigned long dfn;
    mfn_t mfn;
    unsigned long nr;
    uint64_t pte;
};

/* What is to be mapped or unmapped: a run, and then those of a list. */
struct runs {
    unsigned long dfn, gfn, nr;
    bool map;

    /* Those that were copied in. */
    struct pv_iommu_run *buf;
    unsigned int at, fill;

    /* Those that were not, and where they are: see the public header. */
    unsigned long list;
    unsigned int nr_list;

    /* Frames to leave out: they have been done. */
    unsigned long skip;
};

static int check_run(const struct runs *r)
{
    int rc = check_range(r->dfn, r->nr);

    return !rc && r->map && r->gfn + r->nr < r->gfn ? -ENOENT : rc;
}

/* Copy in what comes next. No locks may be held. */
static int runs_fill(struct runs *r)
{
    unsigned int nr = min(r->nr_list, RUNS_CHUNK + 0U);

    if ( r->nr || r->at < r->fill || !nr )
        return 0;

    if ( paging_mode_translate(current->domain) )
    {
        if ( hvm_copy_from_guest_phys(r->buf, r->list,
                                      nr * sizeof(*r->buf)) != HVMTRANS_okay )
            return -EFAULT;
    }
    else
    {
        XEN_GUEST_HANDLE_PARAM(pv_iommu_run_t) list =
            guest_handle_from_ptr((void *)r->list, pv_iommu_run_t);

        if ( copy_from_guest(r->buf, list, nr) )
            return -EFAULT;
    }

    r->at = 0;
    r->fill = nr;
    r->nr_list -= nr;
    r->list += nr * sizeof(*r->buf);

    return 0;
}

/* Go to the next run if this one is done.  Returns 1 if there is one. */
static always_inline int runs_next(struct runs *r)
{
    while ( !r->nr )
    {
        const struct pv_iommu_run *run = &r->buf[r->at];
        unsigned long skip;
        int rc;

        if ( r->at == r->fill )
            return 0;

        r->dfn = run->dfn;
        r->gfn = run->gfn;
        r->nr = run->nr_frames;
        r->at++;

        if ( !r->nr )
            continue;

        rc = check_run(r);
        if ( rc )
            return rc;

        if ( likely(!r->skip) )
            break;

        skip = min(r->nr, r->skip);
        r->skip -= skip;
        r->dfn += skip;
        r->gfn += skip;
        r->nr -= skip;
    }

    return 1;
}

static bool runs_end(const struct runs *r)
{
    return !r->nr && r->at == r->fill && !r->nr_list;
}

/*
 * Get the references to types, with the P2M no longer locked.  Returns how many pieces
 * have them, the last one perhaps shortened; the others are dropped.
 */
static unsigned int get_types(const struct pv_iommu_ctx *ctx,
                              struct piece *piece, unsigned int nr, int *rc)
{
    unsigned long i = 0;
    unsigned int n, good;

    for ( n = 0; n < nr; n++ )
    {
        struct page_info *pg;

        if ( !(piece[n].pte & hw.sw_write) )
            continue;

        for ( i = 0, pg = mfn_to_page(piece[n].mfn); i < piece[n].nr;
              i++, pg++ )
            if ( is_typed(pg, piece[n].pte) &&
                 unlikely(!get_page_type(pg, PGT_writable_page)) )
                goto fail;
    }

    return nr;

 fail:
    *rc = -EPERM;
    put_frames(ctx, mfn_add(piece[n].mfn, i), piece[n].nr - i, piece[n].pte,
               false);
    piece[n].nr = i;
    good = n + !!i;
    while ( ++n < nr )
        put_frames(ctx, piece[n].mfn, piece[n].nr, piece[n].pte, false);

    return good;
}

/*
 * Look up the next pieces, and get references to their frames.  Stops after
 * about as many frames as a table has entries.  Sets *rc if it has come to what
 * cannot be mapped; what comes before that can be.
 */
static unsigned int get_pieces(const struct pv_iommu_ctx *ctx, struct runs *r,
                               bool write, struct piece *piece, int *rc)
{
    struct xlat x = { .ctx = ctx, .d = ctx->d };
    struct piece extra = {};
    unsigned int n = 0;
    unsigned long frames = 0;

    *rc = 0;
    while ( frames < PT_ENTRIES && (*rc = runs_next(r)) > 0 )
    {
        /* Superpages are not to be cut into two. */
        unsigned long part = min(r->nr, PT_ENTRIES - (r->dfn & (PT_ENTRIES - 1)));

        while ( part )
        {
            struct piece *last = n ? &piece[n - 1] : NULL;
            uint64_t pte;
            mfn_t mfn;
            long got = get_run(&x, r->gfn, part, write, &mfn, &pte);

            if ( got < 0 )
            {
                *rc = got;
                goto out;
            }

            /* The P2M may have small pages for what is contiguous. */
            if ( last && last->dfn + last->nr == r->dfn && last->pte == pte &&
                 mfn_eq(mfn_add(last->mfn, last->nr), mfn) )
                last->nr += got;
            else if ( n == NR_PIECES )
            {
                /* References are not dropped under the P2M lock. */
                extra = (struct piece){ .mfn = mfn, .nr = got, .pte = pte };
                *rc = 0;
                goto out;
            }
            else
                piece[n++] = (struct piece){
                    .dfn = r->dfn, .mfn = mfn, .nr = got, .pte = pte,
                };

            r->dfn += got;
            r->gfn += got;
            r->nr -= got;
            part -= got;
            frames += got;
        }
        *rc = 0;
    }

 out:
    xlat_end(&x);
    put_frames(ctx, extra.mfn, extra.nr, extra.pte, false);

    return get_types(ctx, piece, n, rc);
}

/*
 * Enter those of the pieces that are for the table which was used last, as far
 * as there is room.  Returns the first one that has to be seen to by install().
 */
static struct piece *install_few(struct pv_iommu_ctx *ctx, struct piece *piece,
                                 const struct piece *end, uint64_t flags,
                                 unsigned long *done)
{
    struct page_info *pg = ctx->last;
    /* Entries that are written, but still in the CPU's cache. */
    unsigned long first = 0, next = 0;
    unsigned long total = 0, dfn;
    uint64_t *tbl;

    if ( !pg || ctx->dying )
        return piece;

    dfn = META_DFN(*meta(pg));
    tbl = __map_domain_page(pg);

    for ( ; piece < end; piece++ )
    {
        unsigned long idx = piece->dfn - dfn, n;

        /* Nor what may become a superpage. */
        if ( idx >= PT_ENTRIES || piece->nr > PT_ENTRIES - idx ||
             piece->nr == PT_ENTRIES )
            break;

        if ( idx != next )
        {
            iommu_sync_cache(&tbl[first], (next - first) * sizeof(*tbl));
            first = idx;
        }

        n = write_ptes(&tbl[idx], piece->nr,
                       leaf_pte(piece->mfn, 1, flags | piece->pte));
        next = idx + n;
        total += n;

        if ( n < piece->nr )
        {
            piece->dfn += n;
            piece->mfn = mfn_add(piece->mfn, n);
            piece->nr -= n;
            break;
        }
    }

    iommu_sync_cache(&tbl[first], (next - first) * sizeof(*tbl));
    unmap_domain_page(tbl);
    if ( total )
        pt_get(ctx, pg, total);
    ctx->nr_frames += total;
    *done += total;

    return piece;
}

/*
 * Enter pieces.  Uses up the references.  Returns -ERESTART if making room was
 * preempted.
 */
static int put_pieces(struct pv_iommu_ctx *ctx, struct piece *piece,
                      unsigned int nr, uint64_t flags, unsigned long *done)
{
    struct piece *end = piece + nr;
    bool retry = false;
    int rc = 0;

    spin_lock(&ctx->lock);

    while ( piece < end )
    {
        unsigned long got;

        piece = install_few(ctx, piece, end, flags, done);
        if ( piece == end )
        {
            rc = 0;
            break;
        }

        rc = install(ctx, piece->dfn, piece->mfn, piece->nr,
                     flags | piece->pte, retry, &got);
        *done += got;
        piece->dfn += got;
        piece->mfn = mfn_add(piece->mfn, got);
        piece->nr -= got;

        if ( !rc )
        {
            piece++;
            retry = false;
            continue;
        }

        if ( (rc != -EAGAIN && rc != -ENOMEM) || retry )
            break;

        spin_unlock(&ctx->lock);
        if ( reclaim(ctx) == -ERESTART )
            rc = -ERESTART;
        else if ( rc == -ENOMEM && !ACCESS_ONCE(ctx->pv->nr_free) )
            reclaim_others(ctx->pv);
        spin_lock(&ctx->lock);

        if ( rc == -ERESTART )
            break;
        retry = true;
    }

    spin_unlock(&ctx->lock);

    for ( ; piece < end; piece++ )
        put_frames(ctx, piece->mfn, piece->nr, piece->pte, true);

    return rc == -EAGAIN ? -EADDRINUSE : rc;
}

/*
 * Map the next pieces, a bounded number of frames.  After an error, -ERESTART
 * included, r is not where *done is.
 */
static int map_some(struct pv_iommu_ctx *ctx, struct runs *r, uint64_t flags,
                    unsigned long *done)
{
    struct piece piece[NR_PIECES];
    unsigned int nr;
    int rc = runs_fill(r), ret;

    *done = 0;
    if ( rc )
        return rc;

    nr = get_pieces(ctx, r, flags & hw.write, piece, &rc);
    ret = put_pieces(ctx, piece, nr, flags, done);

    return ret ?: rc;
}

/* Map a run. Returns -ERESTART if there is more to do. */
static int map_run(struct pv_iommu_ctx *ctx, unsigned long dfn,
                   unsigned long gfn, unsigned long nr, uint64_t flags,
                   unsigned long *done)
{
    int rc = 0;

    *done = 0;

    while ( !rc && *done < nr )
    {
        struct runs r = {
            .dfn = dfn + *done,
            .gfn = gfn + *done,
            .nr = opt_drafts ? 1 : nr - *done,
            .map = true,
        };
        unsigned long part;

        rc = map_some(ctx, &r, flags, &part);
        *done += part;
        if ( !rc && *done < nr && (opt_drafts || hypercall_preempt_check()) )
            rc = -ERESTART;
    }

    return rc;
}

/* How far a call has come within a page that is larger than 4 KiB. */
struct within {
    /* Frames of the page that are done. */
    unsigned long done;
    /* Not 0: they have to be unmapped again, because of this error. */
    int error;
};

/* Larger pages are mapped wholly or not at all. May return -ERESTART. */
static int undo_map(struct pv_iommu_ctx *ctx, unsigned long dfn,
                    struct within *at)
{
    while ( at->done )
    {
        unsigned long first = (at->done - 1) & ~(UNMAP_BATCH - 1UL), n;
        bool grants = false;

        /* Stops at what others have unmapped; the remainder is theirs, too. */
        kill_frames(ctx, dfn + first, at->done - first, &n, &grants);
        /* And what can't be flushed now stays out of reach for the caller. */
        finish_unmap(ctx, dfn + first, n);

        at->done = first;
        if ( first && hypercall_preempt_check() )
            return -ERESTART;
    }

    return at->error;
}

static uint64_t pte_flags(uint32_t map_flags)
{
    return ((map_flags & IOMMU_MAP_readable) ? hw.read : 0) |
           ((map_flags & IOMMU_MAP_writeable) ? hw.write : 0);
}

static bool map_flags_ok(uint32_t flags)
{
    return (flags & (IOMMU_MAP_readable | IOMMU_MAP_writeable)) &&
           !(flags & ~(IOMMU_MAP_readable | IOMMU_MAP_writeable |
                       IOMMU_MAP_cache | IOMMU_MAP_no_flush));
}

static int op_map(struct pv_iommu *pv, XEN_GUEST_HANDLE_PARAM(void) arg,
                  struct within *at)
{
    struct pv_iommu_map_pages op;
    struct pv_iommu_ctx *ctx;
    unsigned long nr, done;
    int order, rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( opt_drafts )
    {
        op.pgsize = PAGE_SIZE_4K;
        op.map_flags &= IOMMU_MAP_readable | IOMMU_MAP_writeable;
        /* Bits of an address beyond the tables are ignored. */
        op.dfn &= hw.max_dfn;
        /* What nobody can access cannot be unmapped, either. */
        if ( !op.map_flags )
        {
            op.mapped += op.nr_pages;
            return __copy_to_guest(arg, &op, 1) ? -EFAULT : 0;
        }
    }

    order = pgsize_order(op.pgsize);
    if ( order < 0 || !map_flags_ok(op.map_flags) ||
         ((op.dfn | op.gfn) & ((1UL << order) - 1)) || (at->done >> order) )
        return -EINVAL;

    ctx = ctx_get(pv, op.ctx_no, false);
    if ( !ctx )
        return -EINVAL;

    rc = ctx->identity ? -EINVAL : 0;
    nr = (unsigned long)op.nr_pages << order;
    if ( rc || !nr )
        goto out;

    rc = check_range(op.dfn, nr);
    if ( !rc && op.gfn + nr < op.gfn )
        rc = -ENOENT;
    if ( rc )
        goto out;

    if ( !at->error )
    {
        rc = map_run(ctx, op.dfn + at->done, op.gfn + at->done, nr - at->done,
                     pte_flags(op.map_flags), &done);

        if ( done && hw.flush_added && !(op.map_flags & IOMMU_MAP_no_flush) )
        {
            int ret = flush_range(ctx, op.dfn + at->done, done,
                                  IOMMU_FLUSHF_added);

            if ( ret && (!rc || rc == -ERESTART) )
                rc = ret;
        }

        done += at->done;
        at->done = done & ((1UL << order) - 1);
        done -= at->done;
        op.mapped += done >> order;
        op.dfn += done;
        op.gfn += done;
        op.nr_pages -= done >> order;

        if ( rc != -ERESTART )
            at->error = rc;
    }

    if ( at->error )
        rc = undo_map(ctx, op.dfn, at);

    if ( rc == -ERESTART )
    {
        if ( __copy_to_guest(arg, &op, 1) )
            rc = -EFAULT;
    }
    else if ( __copy_field_to_guest(
                  guest_handle_cast(arg, pv_iommu_map_pages_t), &op, mapped) )
        rc = -EFAULT;

 out:
    ctx_put(ctx);

    return rc;
}

/* Is all of a larger page mapped? */
static int check_mapped(struct pv_iommu_ctx *ctx, unsigned long dfn,
                        unsigned long nr)
{
    unsigned long i = 0;
    int rc = 0;

    while ( i < nr && !rc )
    {
        unsigned int level = 1, idx;
        struct page_info *pg;
        uint64_t *tbl;

        spin_lock(&ctx->lock);
        rc = ctx->dying ? -EINVAL
                        : find_table(ctx, dfn + i, &level, false, &pg);
        if ( rc )
        {
            spin_unlock(&ctx->lock);
            break;
        }
        tbl = __map_domain_page(pg);
        for ( idx = pt_index(dfn + i, level);
              idx < PT_ENTRIES && i < nr; idx++ )
        {
            if ( !(tbl[idx] & hw.present) )
                rc = -ENOENT;
            else if ( tbl[idx] & hw.sw_rsvd )
                rc = -EADDRNOTAVAIL;
            if ( rc || !pte_is_leaf(tbl[idx], level) )
                break;
            i += span(level) - ((dfn + i) & (span(level) - 1));
        }
        unmap_domain_page(tbl);
        spin_unlock(&ctx->lock);
    }

    return rc;
}

/*
 * Make a run dead, up to UNMAP_BATCH frames. Returns -ERESTART if there is more
 * to do.
 */
static int unmap_run(struct pv_iommu_ctx *ctx, unsigned long dfn,
                     unsigned long nr, unsigned int order, unsigned long *done,
                     bool *grants)
{
    unsigned long page = 1UL << order;
    int rc = 0;

    *done = 0;

    while ( *done < nr )
    {
        unsigned long cur = dfn + *done, n, part = 0;

        /* Grants may have to be ended, which takes longer. */
        if ( *done >= UNMAP_BATCH || *grants ||
             (*done && (opt_drafts || hypercall_preempt_check())) )
            return -ERESTART;

        /* Larger pages are unmapped wholly or not at all. */
        if ( order && !(cur & (page - 1)) )
            rc = check_mapped(ctx, cur, page);

        n = min(nr - *done, PT_ENTRIES - (cur & (PT_ENTRIES - 1)));
        if ( opt_drafts )
            n = 1;

        if ( !rc )
            rc = kill_frames(ctx, cur, n, &part, grants);
        *done += part;
        if ( rc )
            break;
    }

    return rc;
}

static int op_unmap(struct pv_iommu *pv, XEN_GUEST_HANDLE_PARAM(void) arg,
                    struct within *at)
{
    struct pv_iommu_unmap_pages op;
    struct pv_iommu_ctx *ctx;
    unsigned long nr, done;
    bool preempted;
    int order, rc, ret = 0;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( opt_drafts )
    {
        op.pgsize = PAGE_SIZE_4K;
        op.unmap_flags = 0;
        op.dfn &= hw.max_dfn;
    }

    order = pgsize_order(op.pgsize);
    if ( order < 0 || (op.unmap_flags & ~IOMMU_UNMAP_no_flush) ||
         (op.dfn & ((1UL << order) - 1)) || (at->done >> order) )
        return -EINVAL;

    ctx = ctx_get(pv, op.ctx_no, false);
    if ( !ctx )
        return -EINVAL;

    rc = ctx->identity ? -EINVAL : 0;
    nr = (unsigned long)op.nr_pages << order;
    if ( rc || !nr )
        goto out;

    rc = check_range(op.dfn, nr);
    if ( rc )
        goto out;

    do {
        unsigned long dfn = op.dfn + at->done;
        bool grants = false;

        preempted = false;
        rc = unmap_run(ctx, dfn, nr - at->done, order, &done, &grants);

        /*
         * A deferred range for which there is no room is flushed here; what
         * was deferred before it is left for the caller to flush.
         */
        if ( done && (!(op.unmap_flags & IOMMU_UNMAP_no_flush) || grants ||
                      !defer(ctx, dfn, done)) )
            ret = finish_unmap(ctx, dfn, done);

        done += at->done;
        at->done = done & ((1UL << order) - 1);
        done -= at->done;
        op.unmapped += done >> order;
        op.dfn += done;
        nr -= done;
        op.nr_pages = nr >> order;
        if ( ret && (!rc || rc == -ERESTART) )
            rc = ret;
        if ( rc == -ERESTART )
            preempted = opt_drafts || hypercall_preempt_check();
    } while ( rc == -ERESTART && !preempted );

    if ( rc == -ERESTART )
    {
        if ( __copy_to_guest(arg, &op, 1) )
            rc = -EFAULT;
    }
    else if ( __copy_field_to_guest(
                  guest_handle_cast(arg, pv_iommu_unmap_pages_t), &op,
                  unmapped) )
        rc = -EFAULT;

 out:
    ctx_put(ctx);

    return rc;
}

static int op_flush(struct pv_iommu *pv, XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_flush_pages op;
    struct pv_iommu_ctx *ctx;
    unsigned long nr;
    int order, rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    order = pgsize_order(op.pgsize);
    if ( order < 0 )
        return -EINVAL;

    ctx = ctx_get(pv, op.ctx_no, false);
    if ( !ctx )
        return -EINVAL;

    rc = ctx->identity ? -EINVAL : 0;
    nr = (unsigned long)op.nr_pages << order;
    if ( rc || !nr )
        goto out;

    rc = check_range(op.dfn, nr);
    if ( rc )
        goto out;

    if ( ACCESS_ONCE(ctx->def_tail) == ACCESS_ONCE(ctx->def_head) )
        rc = flush_range(ctx, op.dfn, nr,
                         IOMMU_FLUSHF_added | IOMMU_FLUSHF_modified);
    else
        rc = flush_deferred(ctx);

 out:
    ctx_put(ctx);

    return rc;
}

/*
 * Map, or unmap, what r has.  Adds to *done.  Returns -ERESTART if there is more
 * to do.
 */
static int map_runs(struct pv_iommu_ctx *ctx, struct runs *r, uint32_t flags,
                    unsigned long *done)
{
    unsigned long dfn = r->dfn, total = 0;
    bool list = r->nr_list;
    int rc = 0, ret = 0;

    while ( !rc && !runs_end(r) )
    {
        unsigned long part;

        rc = map_some(ctx, r, pte_flags(flags), &part);
        total += part;
        if ( !rc && !runs_end(r) && hypercall_preempt_check() )
            rc = -ERESTART;
    }

    if ( total && hw.flush_added && !(flags & IOMMU_MAP_no_flush) )
        ret = list ? flush_range(ctx, 0, 0, IOMMU_FLUSHF_added |
                                            IOMMU_FLUSHF_all)
                   : flush_range(ctx, dfn, total, IOMMU_FLUSHF_added);
    *done += total;

    return ret && (!rc || rc == -ERESTART) ? ret : rc;
}

static int unmap_list(struct pv_iommu_ctx *ctx, struct runs *r, uint32_t flags,
                      unsigned long *done)
{
    unsigned long before = *done;
    unsigned int n = 0;
    int rc = 0;

    while ( !rc && !runs_end(r) )
    {
        unsigned long part;
        bool grants = false;

        rc = runs_fill(r) ?: runs_next(r);
        if ( rc <= 0 )
            continue;

        rc = unmap_run(ctx, r->dfn, r->nr, 0, &part, &grants);
        if ( part && (grants || !defer(ctx, r->dfn, part)) )
        {
            /* No room: this is where the one flush becomes two. */
            int ret = finish_unmap(ctx, r->dfn, part);

            if ( ret )
                return ret;
            ret = flush_deferred(ctx);
            if ( ret && (!rc || rc == -ERESTART) )
                rc = ret;
        }
        *done += part;
        r->dfn += part;
        r->nr -= part;

        if ( !rc && !(++n % RUNS_PREEMPT) && !runs_end(r) &&
             hypercall_preempt_check() )
            rc = -ERESTART;
    }

    if ( !(flags & IOMMU_UNMAP_no_flush) )
    {
        int ret = flush_deferred(ctx);

        if ( ret && (!rc || rc == -ERESTART) )
            rc = ret;
        /* Devices may still reach all of them. */
        if ( ret && ret != -ERESTART )
            *done = before;
    }

    return rc;
}

static int unmap_range(struct pv_iommu_ctx *ctx, unsigned long dfn,
                       unsigned long nr, uint32_t flags, unsigned long *done)
{
    int rc;

    do {
        unsigned long part;
        bool grants = false;

        rc = unmap_run(ctx, dfn, nr, 0, &part, &grants);

        /* See op_unmap(). */
        if ( part && (!(flags & IOMMU_UNMAP_no_flush) || grants ||
                      !defer(ctx, dfn, part)) )
        {
            int ret = finish_unmap(ctx, dfn, part);

            /* Devices may still reach these. */
            if ( ret )
                return ret;
        }
        *done += part;
        dfn += part;
        nr -= part;
    } while ( rc == -ERESTART && !hypercall_preempt_check() );

    return rc;
}

/* Ops with their arguments in registers. Returns the number of frames done. */
static long op_runs(struct pv_iommu *pv, unsigned int subop, unsigned long a1,
                    unsigned long a2, unsigned long a3, unsigned long a4)
{
    struct pv_iommu_run buf[RUNS_CHUNK];
    struct runs r = { .buf = buf };
    unsigned int cmd = subop & ~OP_CONTINUED;
    bool list = cmd == IOMMU_map_runs || cmd == IOMMU_unmap_runs;
    uint32_t flags = a1 >> 32;
    unsigned long done = 0;
    struct pv_iommu_ctx *ctx;
    int rc;

    r.map = cmd == IOMMU_map_range || cmd == IOMMU_map_runs;
    if ( ((uint32_t)a1 >> 16) ||
         (r.map ? !map_flags_ok(flags) : flags & ~IOMMU_UNMAP_no_flush) ||
         (list && a3 > IOMMU_MAX_RUNS) )
        return -EINVAL;

    if ( list )
    {
        r.list = a2;
        r.nr_list = a3;
        r.skip = done = a4;
    }
    else
    {
        r.dfn = a2;
        r.nr = a3;
        r.gfn = a4;
        rc = r.nr ? check_run(&r) : 0;
        if ( rc )
            return rc;
    }

    ctx = ctx_get(pv, a1 & 0xffff, false);
    if ( !ctx )
        return -EINVAL;

    if ( ctx->identity )
        rc = -EINVAL;
    else if ( r.map )
        rc = map_runs(ctx, &r, flags, &done);
    else if ( list )
        rc = unmap_list(ctx, &r, flags, &done);
    else
        rc = r.nr ? unmap_range(ctx, r.dfn, r.nr, flags, &done) : 0;

    ctx_put(ctx);

    /* More frames than there are were to be left out. */
    if ( !rc && r.skip )
        rc = -EINVAL;

    if ( rc == -ERESTART && list )
    {
        /* From now on an error has something done before it. */
        if ( done != a4 )
            subop |= OP_CONTINUED;
        return hypercall_create_continuation(__HYPERVISOR_iommu_op, "illll",
                                             subop, a1, a2, a3, done);
    }
    if ( rc == -ERESTART && !done )
        return hypercall_create_continuation(__HYPERVISOR_iommu_op, "illll",
                                             subop, a1, a2, a3, a4);

    /* An error is reported when nothing was done. The caller comes back. */
    if ( rc && (!list || !(subop & OP_CONTINUED)) &&
         done == (list ? a4 : 0) )
        return rc;

    return done;
}

long do_iommu_op(unsigned int subop, unsigned long a1, unsigned long a2,
                 unsigned long a3, unsigned long a4)
{
    XEN_GUEST_HANDLE_PARAM(void) arg = guest_handle_from_ptr((void *)a1, void);
    struct domain *d = current->domain;
    unsigned int cmd = subop & ~OP_CONTINUED;
    struct within at = {};
    struct pv_iommu *pv;
    int rc;

    if ( !opt_pv_iommu )
        return -ENOSYS;

    if ( subop == IOMMU_noop )
        return 0;

    rc = xsm_iommu_op(XSM_OTHER, d, cmd);
    if ( rc )
        return rc;

    if ( !is_iommu_enabled(d) || !hw.levels )
        return -ENODEV;

    pv = ACCESS_ONCE(dom_iommu(d)->pv);

    if ( opt_drafts )
    {
        if ( cmd > IOMMU_remote_cmd )
            return -EOPNOTSUPP;

        /* Initialising twice allocates another context ... */
        if ( subop == IOMMU_init && pv )
            subop = cmd = IOMMU_alloc_context;
    }

    switch ( cmd )
    {
    case IOMMU_query_capabilities:
    case IOMMU_init:
    case IOMMU_get_faults:
        break;

    case IOMMU_alloc_context:
    case IOMMU_free_context:
    case IOMMU_reattach_device:
    case IOMMU_map_pages:
    case IOMMU_unmap_pages:
    case IOMMU_flush_pages:
    case IOMMU_map_range:
    case IOMMU_unmap_range:
    case IOMMU_map_runs:
    case IOMMU_unmap_runs:
        if ( !pv )
            return -EACCES;
        break;

    default:
        return -EOPNOTSUPP;
    }

    if ( subop & OP_CONTINUED )
    {
        switch ( cmd )
        {
        case IOMMU_init:
        case IOMMU_map_runs:
        case IOMMU_unmap_runs:
            break;

        case IOMMU_map_pages:
        case IOMMU_unmap_pages:
            at.done = a2;
            at.error = a3;
            if ( at.error <= 0 && at.error != -ERESTART )
                break;
            return -EINVAL;

        default:
            return -EOPNOTSUPP;
        }
    }

    switch ( cmd )
    {
    case IOMMU_query_capabilities:
        rc = op_query(d, pv, arg);
        break;

    case IOMMU_init:
        rc = op_init(d, subop & OP_CONTINUED, arg);
        if ( rc == -ERESTART )
            subop |= OP_CONTINUED;
        /* ... and so does initialising once, if it works at all. */
        else if ( opt_drafts )
        {
            pv = dom_iommu(d)->pv;
            rc = pv ? op_alloc(d, pv, arg) : -ENOSPC;
        }
        break;

    case IOMMU_alloc_context:
        rc = op_alloc(d, pv, arg);
        break;

    case IOMMU_free_context:
        rc = op_free(d, pv, arg);
        break;

    case IOMMU_reattach_device:
        rc = op_reattach(d, pv, arg);
        break;

    case IOMMU_map_pages:
        rc = op_map(pv, arg, &at);
        /* There only the first page is looked at with regard to these. */
        if ( opt_drafts && rc == -EADDRNOTAVAIL && (subop & OP_CONTINUED) )
            rc = -EADDRINUSE;
        break;

    case IOMMU_unmap_pages:
        rc = op_unmap(pv, arg, &at);
        break;

    case IOMMU_flush_pages:
        rc = op_flush(pv, arg);
        break;

    case IOMMU_get_faults:
        return pv_iommu_get_faults(d, a1, a2);

    case IOMMU_map_range:
    case IOMMU_unmap_range:
    case IOMMU_map_runs:
    case IOMMU_unmap_runs:
        return op_runs(pv, subop, a1, a2, a3, a4);

    default:
        ASSERT_UNREACHABLE();
        return -EOPNOTSUPP;
    }

    if ( rc == -ERESTART &&
         (cmd == IOMMU_map_pages || cmd == IOMMU_unmap_pages) )
        return hypercall_create_continuation(__HYPERVISOR_iommu_op, "illl",
                                             cmd | OP_CONTINUED, a1, at.done,
                                             (long)at.error);
    if ( rc == -ERESTART )
        return hypercall_create_continuation(__HYPERVISOR_iommu_op, "il",
                                             subop, a1);

    return rc;
}

/*
 * Domain destruction, boot, debugging
 */

int pv_iommu_domain_destroy(struct domain *d)
{
    struct domain_iommu *hd = dom_iommu(d);
    struct pv_iommu *pv = hd->pv;
    struct pci_dev *pdev;
    unsigned int no;
    int rc;

    if ( hd->pv_init )
    {
        while ( drain_pool(hd->pv_init, 256) )
            if ( hypercall_preempt_check() )
                return -ERESTART;
        XVFREE(hd->pv_init);
    }

    if ( !pv )
        return 0;

    pcidevs_lock();
    for_each_pdev ( d, pdev )
        if ( pv_iommu_release_pdev(pdev) )
            printk(XENLOG_ERR "%pp: left in an IOMMU context\n", &pdev->sbdf);
    pcidevs_unlock();

    for ( no = 1; no <= pv->max_ctx; no++ )
    {
        struct pv_iommu_ctx *ctx = pv->ctx[no];

        if ( !ctx )
            continue;

        if ( ctx->nr_devs )
        {
            /* A device that could not be moved may still walk the tables. */
            printk(XENLOG_ERR "%pd: IOMMU context %u leaked\n", d, no);
            continue;
        }

        ctx->dying = true;
        rc = ctx_teardown(ctx, true);
        if ( rc )
            return rc;

        pcidevs_lock();
        pv->ctx[no] = NULL;
        pv->nr_ctx--;
        ctx_destroy(ctx);
        pcidevs_unlock();
    }

    page_list_splice(&pv->quirk_leaked, &pv->pool);
    INIT_PAGE_LIST_HEAD(&pv->quirk_leaked);
    while ( drain_pool(pv, 256) )
        if ( hypercall_preempt_check() )
            return -ERESTART;

    /* Contexts that were leaked refer to it, and to the domain. */
    if ( !pv->nr_ctx )
    {
        /* The grants themselves go next. */
        if ( foreign_destroy(pv) )
            return -ERESTART;
        XVFREE(hd->pv);
    }
    else
        get_knownalive_domain(d);

    return 0;
}

void __hwdom_init pv_iommu_hwdom_init(struct domain *d)
{
    struct pci_dev *pdev;
    int rc = -ENODEV;

    if ( !opt_pv_iommu_no_dma || hwdom_block )
        return;

    pcidevs_lock();

    if ( hw.levels )
        hwdom_block = ctx_create(d, NULL, 0, false, &rc);
    if ( !hwdom_block )
        panic("Cannot block DMA of %pd: %d\n", d, rc);

    for_each_pdev ( d, pdev )
    {
        rc = attach_functions(pdev);
        if ( rc == -ENODEV )
            printk(XENLOG_WARNING "%pp: not behind an IOMMU, DMA not blocked\n",
                   &pdev->sbdf);
        else if ( rc )
            panic("Cannot block DMA of %pp: %d\n", &pdev->sbdf, rc);
    }

    pcidevs_unlock();

    printk(XENLOG_INFO "%pd: DMA blocked by default\n", d);
}

void pv_iommu_dump(const struct domain *d)
{
    struct pv_iommu *pv = dom_iommu(d)->pv;
    unsigned int no;

    if ( !pv || d->is_dying )
        return;

    printk("%pd PV-IOMMU: %u of %u contexts, %lu of %lu pages free\n",
           d, pv->nr_ctx, pv->max_ctx, pv->nr_free, pv->nr_pages);
    printk("  flushes: %u\n", atomic_read(&pv->nr_flushes));

    for ( no = 1; no <= pv->max_ctx; no++ )
    {
        struct pv_iommu_ctx *ctx = ctx_get(pv, no, true);

        if ( !ctx )
            continue;

        if ( ctx->identity )
            printk("  %u: identity, %u devices\n", no, ctx->nr_devs);
        else
            printk("  %u: tag %#x, %u devices, %lu frames, %lu tables (%u empty), %u stale, %u spare, %u deferred%s\n",
                   no, ctx->domid, ctx->nr_devs, ctx->nr_frames,
                   ctx->nr_tables, ctx->nr_empty, ctx->nr_stale, ctx->nr_spare,
                   ctx->def_tail - ctx->def_head, ctx->dying ? ", dying" : "");

        ctx_put(ctx);
    }
}

static int __init cf_check pv_iommu_setup(void)
{
    if ( !iommu_enabled || !iommu_ops.pv_hw_init || !opt_pv_iommu )
        return 0;

    if ( iommu_call(&iommu_ops, pv_hw_init, &hw) )
        hw.levels = 0;

    return 0;
}
__initcall(pv_iommu_setup);

/* The layouts and numbers that callers know. */
static void __init __maybe_unused build_assertions(void)
{
#define SIZE(s, n) BUILD_BUG_ON(sizeof(struct pv_iommu_ ## s) != (n))
#define FIELD(s, f, n) BUILD_BUG_ON(offsetof(struct pv_iommu_ ## s, f) != (n))

    SIZE(capabilities, 24);
    FIELD(capabilities, max_iova_addr, 0);
    FIELD(capabilities, cap_flags, 8);
    FIELD(capabilities, pgsize_mask, 12);
    FIELD(capabilities, max_pasid, 16);
    FIELD(capabilities, max_ctx_no, 20);

    SIZE(init, 8);
    FIELD(init, max_ctx_no, 0);
    FIELD(init, arena_order, 4);

    SIZE(alloc, 8);
    FIELD(alloc, ctx_no, 0);
    FIELD(alloc, alloc_flags, 4);

    SIZE(free, 8);
    FIELD(free, ctx_no, 0);
    FIELD(free, free_flags, 4);

    SIZE(map_pages, 40);
    FIELD(map_pages, ctx_no, 0);
    FIELD(map_pages, gfn, 8);
    FIELD(map_pages, dfn, 16);
    FIELD(map_pages, map_flags, 24);
    FIELD(map_pages, pgsize, 28);
    FIELD(map_pages, nr_pages, 32);
    FIELD(map_pages, mapped, 36);

    SIZE(unmap_pages, 32);
    FIELD(unmap_pages, ctx_no, 0);
    FIELD(unmap_pages, dfn, 8);
    FIELD(unmap_pages, pgsize, 16);
    FIELD(unmap_pages, nr_pages, 20);
    FIELD(unmap_pages, unmapped, 24);
    FIELD(unmap_pages, unmap_flags, 28);

    SIZE(flush_pages, 24);
    FIELD(flush_pages, ctx_no, 0);
    FIELD(flush_pages, dfn, 8);
    FIELD(flush_pages, pgsize, 16);
    FIELD(flush_pages, nr_pages, 20);

    SIZE(reattach_device, 12);
    FIELD(reattach_device, ctx_no, 0);
    FIELD(reattach_device, dev, 2);
    FIELD(reattach_device, pasid, 8);

    SIZE(remote_cmd, 16);
    FIELD(remote_cmd, domid, 0);
    FIELD(remote_cmd, subop, 2);
    FIELD(remote_cmd, arg, 8);

    SIZE(run, 24);
    FIELD(run, gfn, 0);
    FIELD(run, dfn, 8);
    FIELD(run, nr_frames, 16);

#undef FIELD
#undef SIZE
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
