/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tests PV-IOMMU on the host: random calls against a model, with an IOMMU
 * that caches all it can (entries, and addresses of tables), forgets only what
 * it is told to, and checks that nothing it has cached is ever released.
 *
 * It is built twice: with real tables, and with tables of few entries, so
 * that superpages are made and split all the time.
 *
 * usage: test-pv-iommu [seed [calls]]
 */
#include "emul.h"
#include "header.h"
#include "pv-iommu.c"

#include <time.h>

#define FMT_VTD 0
#define FMT_AMD 1

static int fmt;

/* TLB */

#define NR_TLB 512
static struct {
    bool valid, write;
    domid_t tag;
    unsigned long dfn, mfn, nr;
} tlb[NR_TLB];
static struct {
    bool valid;
    domid_t tag;
    struct page_info *pg;
    /* Level and place, which identify the table. */
    unsigned long place;
} pde[NR_TLB];

/* Superpages of each level that were seen. */
static unsigned long seen_super[5];

static bool tlb_has_frame(unsigned long mfn, bool write)
{
    unsigned int i;

    for ( i = 0; i < NR_TLB; i++ )
        if ( tlb[i].valid && mfn - tlb[i].mfn < tlb[i].nr &&
             (!write || tlb[i].write) )
            return true;
    return false;
}

static bool tlb_has_table(const struct page_info *pg)
{
    unsigned int i;

    for ( i = 0; i < NR_TLB; i++ )
        if ( pde[i].valid && pde[i].pg == pg )
            return true;
    return false;
}

static uint64_t state = 1;

static uint64_t rnd(unsigned int n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state * 0x2545f4914f6cdd1dULL >> 33) % n;
}

static bool hw_present(uint64_t pte)
{
    return pte & (fmt == FMT_VTD ? 3 : 1);
}

static bool hw_leaf(uint64_t pte, unsigned int level)
{
    return level == 1 || (fmt == FMT_VTD ? pte & 0x80 : !((pte >> 9) & 7));
}

static unsigned long hw_mfn(uint64_t pte)
{
    return (pte & 0xffffffffff000UL) >> 12;
}

/* Number of frames that an entry covers. */
static unsigned long hw_span(unsigned int level)
{
    return 1UL << (PT_SHIFT * (level - 1));
}

static void cache_leaf(domid_t tag, uint64_t pte, unsigned long dfn,
                       unsigned int level)
{
    unsigned int i = rnd(NR_TLB);

    tlb[i].valid = true;
    tlb[i].write = pte & (fmt == FMT_VTD ? 2UL : 1UL << 62);
    tlb[i].tag = tag;
    tlb[i].nr = hw_span(level);
    tlb[i].dfn = dfn & ~(tlb[i].nr - 1);
    tlb[i].mfn = hw_mfn(pte);
}

/* Walks as the hardware does; returns the leaf, and caches everything. */
static uint64_t hw_walk(const struct pv_iommu_ctx *ctx, unsigned long dfn,
                        bool cache, unsigned int *leaf_level)
{
    struct page_info *pg = ctx->root;
    unsigned int level = pv_hw.levels;

    for ( ; ; )
    {
        uint64_t pte = pg->data[(dfn / hw_span(level)) % hw_span(2)];

        if ( cache )
        {
            unsigned int i = rnd(NR_TLB);

            pde[i].valid = true;
            pde[i].tag = ctx->domid;
            pde[i].pg = pg;
            pde[i].place = *meta(pg) >> 11;
        }

        if ( !hw_present(pte) )
            return 0;

        if ( hw_leaf(pte, level) )
        {
            unsigned long mfn = hw_mfn(pte);

            assert(!(mfn % hw_span(level)));
            seen_super[level]++;
            if ( leaf_level )
                *leaf_level = level;
            if ( cache )
                cache_leaf(ctx->domid, pte, dfn, level);
            mfn += dfn % hw_span(level);
            return (uint64_t)mfn << 12 |
                   (fmt == FMT_VTD ? pte & 3
                                   : ((pte >> 61) & 1) | ((pte >> 61) & 2));
        }

        if ( fmt == FMT_AMD )
            assert(((pte >> 9) & 7) == level - 1);
        pg = mfn_to_page(_mfn(hw_mfn(pte)));
        assert(pg->heap);
        level--;
    }
}

/* The hardware may continue from any table whose address it has cached. */
static void hw_walk_cached(const struct pv_iommu *pv)
{
    unsigned int i;

    for ( i = 0; i < NR_TLB; i++ )
    {
        struct page_info *pg = pde[i].pg;
        unsigned int level, at = rnd(hw_span(2));
        unsigned long dfn;
        uint64_t pte;

        if ( !pde[i].valid )
            continue;

        /* It must still be the same table. */
        assert(pg->heap && pg->list != &pv->pool &&
               *meta(pg) >> 11 == pde[i].place);
        level = META_LEVEL(*meta(pg));
        dfn = META_DFN(*meta(pg)) + at * hw_span(level);
        pte = pg->data[at];
        if ( hw_present(pte) && hw_leaf(pte, level) )
            cache_leaf(pde[i].tag, pte, dfn, level);
    }
}

static int hw_init(struct pv_iommu_hw *h)
{
    *h = (struct pv_iommu_hw){
        .levels = 4, .min_levels = fmt == FMT_VTD ? 3 : 4,
        .max_dfn = hw_span(5) - 1,
        .page_sizes = PAGE_SIZE_4K | PAGE_SIZE_2M,
        .flush_added = fmt == FMT_VTD,
    };
    if ( fmt == FMT_VTD )
    {
        h->present = h->table = 3;
        h->read = 1;
        h->write = 2;
        h->level_shift = 64;
        h->super = h->super_mask = 0x80;
        h->sw_write = 1UL << 52;
        h->sw_noref = 1UL << 53;
        h->sw_rsvd = 1UL << 54;
        h->sw_dead = 1UL << 55;
        h->sw_grant = 1UL << 56;
    }
    else
    {
        h->present = 1;
        h->read = 1UL << 61;
        h->write = 1UL << 62;
        h->table = 1 | 3UL << 61;
        h->level_shift = 9;
        h->leaf = 1 | 1UL << 60;
        h->super_mask = 7UL << 9;
        h->sw_write = 2;
        h->sw_noref = 4;
        h->sw_rsvd = 8;
        h->sw_dead = 16;
        h->sw_grant = 128;
    }
    return 0;
}

static domid_t next_tag = 0x8000;
static bool fail_attach;
static unsigned long flushes, flushes_of_all;

static int ctx_init(struct pv_iommu_ctx *ctx)
{
    assert(pcidevs);
    ctx->domid = next_tag++;
    return 0;
}

static void hw_ctx_destroy(struct pv_iommu_ctx *ctx)
{
    unsigned int i;

    /* Nothing may be left for the next user of the tag. */
    for ( i = 0; i < NR_TLB; i++ )
        assert((!tlb[i].valid || tlb[i].tag != ctx->domid) &&
               (!pde[i].valid || pde[i].tag != ctx->domid));
}

static int flush(struct pv_iommu_ctx *ctx, dfn_t dfn, unsigned long nr,
                 unsigned int flags)
{
    unsigned long d = dfn_x(dfn);
    unsigned int i;

    assert(!lock_depth);
    flushes++;
    flushes_of_all += !!(flags & IOMMU_FLUSHF_all);
    if ( !(flags & IOMMU_FLUSHF_modified) )
        return 0;
    for ( i = 0; i < NR_TLB; i++ )
    {
        /* Partly flushed entries remain. */
        if ( tlb[i].tag == ctx->domid &&
             ((flags & IOMMU_FLUSHF_all) ||
              (tlb[i].dfn >= d && tlb[i].dfn + tlb[i].nr <= d + nr)) )
            tlb[i].valid = false;
        if ( pde[i].tag == ctx->domid && (flags & IOMMU_FLUSHF_all) )
            pde[i].valid = false;
    }
    return 0;
}

static int attach(uint8_t devfn, struct pci_dev *pdev)
{
    assert(pcidevs);
    if ( pdev->devfn == 0x50 )
        return -ENODEV;
    if ( fail_attach )
    {
        fail_attach = false;
        return -EIO;
    }
    assert(pdev->pv_moving);
    pdev->in_hw[devfn & 7] = pv_iommu_pdev_ctx(pdev->domain, pdev);
    return 0;
}

/* Model */

#define NR_CTX 6
#define NR_DFN 4096
static struct {
    bool used, identity;
    struct { unsigned long gfn; unsigned int prot; } map[NR_DFN];
} model[NR_CTX + 1];

static struct pci_dev dev[3] = {
    { .domain = &dom0, .sbdf = { 0x10 }, .devfn = 0x10, .next = &dev[1] },
    { .domain = &dom0, .sbdf = { 0x20 }, .devfn = 0x20, .phantom_stride = 2,
      .next = &dev[2] },
    { .domain = &dom0, .sbdf = { 0x50 }, .devfn = 0x50 },
};

/* In a file of its own, which does not touch contexts. */
long pv_iommu_get_faults(struct domain *d, unsigned long buf, unsigned long nr)
{
    return -EOPNOTSUPP;
}

static int pci_iterate_devices(int (*handler)(struct pci_dev *pdev, void *arg),
                               void *arg)
{
    unsigned int i;
    int rc = 0;

    for ( i = 0; i < ARRAY_SIZE(dev); i++ )
    {
        int ret = handler(&dev[i], arg);

        rc = rc ?: ret;
    }
    return rc;
}

static long call_regs(unsigned int op, unsigned long a1, unsigned long a2,
                      unsigned long a3, unsigned long a4)
{
    long ret;

    cont_arg[0] = a1;
    cont_arg[1] = a2;
    cont_arg[2] = a3;
    cont_arg[3] = a4;
    do {
        preempted = false;
        stretch = 0;
        ret = do_iommu_op(op, cont_arg[0], cont_arg[1], cont_arg[2],
                          cont_arg[3]);
        op = cont_op;
        assert(!lock_depth && !pcidevs && !p2m_locks);
    } while ( preempted );

    return ret;
}

static long call(unsigned int op, void *arg)
{
    return call_regs(op, (unsigned long)arg, 0xbad, 0xbad, 0xbad);
}

/* Repeats a list or a range like a caller, until it is done or fails. */
static long call_runs(bool map, unsigned int c, unsigned long flags,
                      pv_iommu_run_t *run, unsigned int nr, bool list,
                      unsigned long *done)
{
    unsigned long ctx = c | flags << 32, all = 0, at = 0;
    unsigned int i;
    long ret = 0;

    for ( i = 0; i < nr; i++ )
        all += run[i].nr_frames;

    *done = 0;
    while ( list && *done < all )
    {
        ret = call_regs(map ? IOMMU_map_runs : IOMMU_unmap_runs, ctx,
                        (unsigned long)run, nr, *done);
        if ( ret < 0 )
            return ret;
        assert(ret > *done && ret <= all);
        *done = ret;
    }

    for ( i = 0; !list && i < nr; i++ )
        for ( at = 0; at < run[i].nr_frames; at += ret )
        {
            ret = call_regs(map ? IOMMU_map_range : IOMMU_unmap_range, ctx,
                            run[i].dfn + at, run[i].nr_frames - at,
                            map ? run[i].gfn + at : 0xbad);
            if ( ret < 0 )
                return ret;
            assert(ret > 0 && ret <= run[i].nr_frames - at);
            *done += ret;
        }

    return 0;
}

/* Returns true if a mapping of this frame needs a type reference. */
static bool typed(unsigned long gfn, unsigned int prot)
{
    return (prot & IOMMU_MAP_writeable) &&
           !paging_mode_external(frame_table[gfn].owner);
}

/* Number of mapped grants, by frame: read-only and writable ones. */
static unsigned int live[NR_PAGES][2];

/* Returns 0, or the error for mapping this frame. */
static int model_gfn(unsigned long gfn, unsigned int prot)
{
    bool write = prot & IOMMU_MAP_writeable;
    p2m_type_t t = gfn < NR_PAGES ? p2m_type[gfn] : p2m_invalid;

    if ( !dom0.translated )
    {
        if ( gfn >= NR_PAGES )
        {
            if ( gfn >> 28 )
                return -ENOENT;
            return gfn >= 0x5000 && gfn < 0x5100 && !(write && gfn == 0x5010)
                   ? 0 : -EPERM;
        }
        if ( !frame_table[gfn].owner )
            return -ENOENT;
        if ( frame_table[gfn].owner == dom_io )
            return -EPERM;
        if ( write && live[gfn][RO] && !live[gfn][RW] )
            return -EPERM;
    }
    else
    {
        if ( gfn >= NR_PAGES || t == p2m_invalid )
            return -ENOENT;
        if ( write && (t == p2m_ram_ro || t == p2m_grant_map_ro) )
            return -EPERM;
        if ( t == p2m_mmio_direct )
            return p2m_mfn(gfn) == gfn || (write && p2m_mfn(gfn) == 0x5010)
                   ? -EPERM : 0;
        if ( frame_table[gfn].owner == &domU && t != p2m_map_foreign &&
             t != p2m_grant_map_rw && t != p2m_grant_map_ro )
            return -EPERM;
    }
    return typed(gfn, prot) && frame_table[gfn].other_type ? -EPERM : 0;
}

static bool is_reserved(unsigned long dfn)
{
    return dfn >= 0x3000 && dfn < 0x3003;
}

static unsigned long counted(unsigned int c)
{
    unsigned long i, n = 0;

    for ( i = 0; i < NR_DFN; i++ )
        n += !!model[c].map[i].prot;
    return n;
}

static void verify(void)
{
    static long count[NR_PAGES], writable[NR_PAGES];
    const struct pv_iommu *pv = dom0.iommu.pv;
    unsigned int c, at;
    unsigned long i, dead = 0;
    bool deferred = false;

    memset(count, 0, sizeof(count));
    memset(writable, 0, sizeof(writable));

    for ( c = 1; c <= NR_CTX; c++ )
    {
        const struct pv_iommu_ctx *ctx = pv->ctx[c];

        assert(!!ctx == model[c].used);
        if ( !ctx || model[c].identity )
            continue;
        for ( at = ctx->def_head; at != ctx->def_tail; at++ )
            dead += ctx->deferred[at % PV_IOMMU_NR_DEFERRED].nr;
        deferred |= ctx->def_head != ctx->def_tail;
        for ( i = 0; i < NR_DFN; i++ )
        {
            uint64_t hwpte = hw_walk(ctx, i, !rnd(64), NULL);
            unsigned long gfn = model[c].map[i].gfn;
            unsigned int prot = model[c].map[i].prot;

            assert((hwpte & 3) == prot);
            if ( prot )
            {
                if ( dom0.translated )
                    gfn = p2m_mfn(gfn);
                assert(hwpte >> 12 == gfn);
                if ( gfn < NR_PAGES )
                {
                    count[gfn]++;
                    writable[gfn] += typed(gfn, prot);
                }
            }
        }
        for ( i = 0x3000; i < 0x3003; i++ )
            assert(hw_walk(ctx, i, false, NULL) == (i << 12 | 3));
        if ( ctx->def_head == ctx->def_tail )
            assert(ctx->nr_frames == counted(c) + 3);
    }
    assert(dead == atomic_read(&pv->nr_deferred));

    for ( i = 0; i < FIRST_HEAP; i++ )
        if ( deferred )
            assert(frame_table[i].count > count[i] &&
                   frame_table[i].writable >= writable[i]);
        else
            assert(frame_table[i].count == count[i] + 1 &&
                   frame_table[i].writable == writable[i]);

    /* Frames in the IOTLB must have references. */
    hw_walk_cached(pv);
    for ( i = 0; i < NR_TLB; i++ )
    {
        unsigned long mfn = tlb[i].mfn;

        if ( tlb[i].valid && !is_reserved(tlb[i].dfn) )
            for ( ; mfn < tlb[i].mfn + tlb[i].nr && mfn < FIRST_HEAP; mfn++ )
                assert(frame_table[mfn].count > 1);
    }
}

static bool any_dead(unsigned int c)
{
    const struct pv_iommu_ctx *ctx = dom0.iommu.pv->ctx[c];

    return ctx && ctx->def_head != ctx->def_tail;
}

static unsigned long a_dfn(void)
{
    switch ( rnd(8) )
    {
    case 0: return rnd(8) * PT_ENTRIES;
    case 1: return PT_ENTRIES - 1 + rnd(4);
    case 2: return rnd(8) * hw_span(3) % NR_DFN;
    default: return rnd(NR_DFN);
    }
}

static unsigned long a_gfn(void)
{
    switch ( rnd(10) )
    {
    case 0: return 0x4ffe + rnd(0x20);
    case 1: return ~0UL - rnd(3);
    case 2: return rnd(FIRST_HEAP + 100);
    case 3: case 4: return rnd(8) * PT_ENTRIES;
    case 5: return rnd(8) * hw_span(3) % 2048;
    default: return rnd(2048);
    }
}

static unsigned long model_map(unsigned int c, unsigned long dfn,
                               unsigned long gfn, unsigned long nr,
                               unsigned int prot, int *rc)
{
    unsigned long i;

    *rc = 0;
    for ( i = 0; i < nr; i++ )
    {
        /* The frame is checked before the place. */
        *rc = model_gfn(gfn + i, prot);
        if ( !*rc && is_reserved(dfn + i) )
            *rc = -EADDRNOTAVAIL;
        else if ( !*rc && dfn + i < NR_DFN && model[c].map[dfn + i].prot )
            *rc = -EADDRINUSE;
        if ( *rc )
            break;
        assert(dfn + i < NR_DFN);
        model[c].map[dfn + i].gfn = gfn + i;
        model[c].map[dfn + i].prot = prot & 3;
    }
    return i;
}

static unsigned long model_unmap(unsigned int c, unsigned long dfn,
                                 unsigned long nr, int *rc)
{
    unsigned long i;

    *rc = 0;
    for ( i = 0; i < nr; i++ )
    {
        if ( dfn + i >= NR_DFN || !model[c].map[dfn + i].prot )
        {
            *rc = is_reserved(dfn + i) ? -EADDRNOTAVAIL : -ENOENT;
            break;
        }
        model[c].map[dfn + i].prot = 0;
    }
    return i;
}

static void forget(unsigned int c)
{
    memset(&model[c], 0, sizeof(model[c]));
}

#include "abi.c"
#include "grants.c"

static unsigned long oom;

static void random_call(void)
{
    unsigned int c = 1 + rnd(NR_CTX), i;
    long ret;

    switch ( rnd(12) )
    {
    case 0:
    {
        pv_iommu_alloc_t op = { .alloc_flags = !rnd(8) };

        ret = call(IOMMU_alloc_context, &op);
        for ( i = 1; i <= NR_CTX && model[i].used; i++ )
            ;
        if ( ret == -ENOMEM && i <= NR_CTX )
        {
            oom++;
            break;
        }
        assert(ret == (i > NR_CTX ? -ENOSPC : 0));
        if ( !ret )
        {
            assert(op.ctx_no == i);
            model[i].used = true;
            model[i].identity = op.alloc_flags;
        }
        break;
    }

    case 1:
    {
        pv_iommu_free_t op = { .ctx_no = c, .free_flags = rnd(2) };
        bool busy = false;

        if ( rnd(3) )
            break;
        for ( i = 0; i < 3; i++ )
            busy |= dom0.iommu.pv->ctx[c] &&
                    dev[i].pv_ctx == dom0.iommu.pv->ctx[c];
        ret = call(IOMMU_free_context, &op);
        assert(ret == (!model[c].used ? -EINVAL
                       : busy && !op.free_flags ? -EBUSY : 0));
        if ( !ret )
            forget(c);
        break;
    }

    case 2:
    {
        pv_iommu_reattach_device_t op = {
            .ctx_no = rnd(3) ? c : 0,
            .dev = { .devfn = dev[i = rnd(3)].devfn },
        };

        struct pv_iommu_ctx *before = dev[i].pv_ctx;

        fail_attach = !rnd(4);
        ret = call(IOMMU_reattach_device, &op);
        if ( ret == -EIO )
        {
            /* It stays where it was. */
            assert(!fail_attach && dev[i].pv_ctx == before);
            if ( before && before->identity )
                before = NULL;
            assert(dev[i].in_hw[0] == before);
            break;
        }
        fail_attach = false;
        if ( op.ctx_no && !model[c].used )
            assert(ret == -EINVAL);
        else if ( i == 2 )
            assert(ret == (op.ctx_no ? -ENODEV : 0));
        else
        {
            struct pv_iommu_ctx *ctx =
                op.ctx_no ? dom0.iommu.pv->ctx[c] : NULL;

            assert(!ret && dev[i].pv_ctx == ctx);
            if ( ctx && ctx->identity )
                ctx = NULL;
            assert(dev[i].in_hw[0] == ctx);
            if ( dev[i].phantom_stride )
                assert(dev[i].in_hw[2] == ctx && dev[i].in_hw[6] == ctx);
        }
        break;
    }

    case 3 ... 6:
    {
        bool large = !rnd(4);
        unsigned int order = large ? PT_SHIFT : 0, prot = 1 + rnd(3);
        unsigned long mask = (1UL << order) - 1, nr;
        unsigned long dfn = a_dfn() & ~mask, gfn = a_gfn() & ~mask, n;
        static unsigned int before[NR_DFN];
        pv_iommu_map_pages_t op;
        int rc;

        nr = large ? 1 + rnd(3) : rnd(3) ? 1 + rnd(20) : 1 + rnd(1500);
        if ( !rnd(20) )
        {
            dfn = 0x2ff0;
            nr = 1;
            if ( large )
                break;
            dfn = 0x3000 + rnd(3);
        }
        if ( dfn < NR_DFN )
            nr = min(nr, (NR_DFN - dfn) >> order);
        if ( !nr )
            break;
        op = (pv_iommu_map_pages_t){
            .ctx_no = c, .dfn = dfn, .gfn = gfn, .nr_pages = nr,
            .pgsize = 4096U << order, .map_flags = prot, .mapped = 5,
        };
        ret = call(IOMMU_map_pages, &op);
        op.mapped -= 5;
        if ( !model[c].used || model[c].identity )
        {
            assert(ret == -EINVAL && !op.mapped);
            break;
        }
        if ( gfn + (nr << order) < gfn )
        {
            assert(ret == -ENOENT && !op.mapped);
            break;
        }
        if ( ret == -ENOMEM )
        {
            oom++;
            model_map(c, dfn, gfn, (unsigned long)op.mapped << order, prot, &rc);
            assert(!rc);
            break;
        }
        for ( n = 0; n < NR_DFN; n++ )
            before[n] = model[c].map[n].prot;
        n = model_map(c, dfn, gfn, nr << order, prot, &rc);
        assert(op.mapped == n >> order);
        /* Which of two errors comes first depends on the size of pieces. */
        assert(!ret == !rc);
        for ( ; n & mask; n-- )
        {
            assert(!before[dfn + n - 1]);
            model[c].map[dfn + n - 1].prot = 0;
        }
        break;
    }

    case 7 ... 9:
    {
        bool large = !rnd(5);
        unsigned int order = large ? PT_SHIFT : 0;
        unsigned long mask = (1UL << order) - 1, nr, n, p;
        unsigned long dfn = a_dfn() & ~mask;
        pv_iommu_unmap_pages_t op;
        int rc = 0;

        nr = large ? 1 + rnd(3) : rnd(3) ? 1 + rnd(20) : 1 + rnd(1500);
        if ( !large && !rnd(20) )
            dfn = 0x3000 + rnd(4);
        op = (pv_iommu_unmap_pages_t){
            .ctx_no = c, .dfn = dfn, .nr_pages = nr, .pgsize = 4096U << order,
            .unmap_flags = rnd(2),
        };
        ret = call(IOMMU_unmap_pages, &op);
        if ( !model[c].used || model[c].identity )
        {
            assert(ret == -EINVAL);
            break;
        }
        if ( large )
        {
            for ( n = 0; n < nr && !rc; n++ )
            {
                for ( p = 0; p <= mask; p++ )
                    if ( dfn + (n << order) + p >= NR_DFN ||
                         !model[c].map[dfn + (n << order) + p].prot )
                        break;
                if ( p <= mask )
                    break;
                model_unmap(c, dfn + (n << order), mask + 1, &rc);
            }
            if ( n < nr )
                rc = -ENOENT;
        }
        else
            n = model_unmap(c, dfn, nr, &rc);
        assert(op.unmapped == n);
        assert(ret == rc);
        break;
    }

    case 10:
    {
        static pv_iommu_run_t run[40];
        unsigned int nr = rnd(40), flags;
        bool map = rnd(2), list = rnd(2);
        unsigned long done = 0, got;
        int rc = 0;

        flags = map ? 1 + rnd(3) : rnd(2);
        for ( i = 0; i < 20; i++ )
        {
            run[i] = (pv_iommu_run_t){ rnd(2048), a_dfn(), rnd(20) };
            run[i].nr_frames = min(run[i].nr_frames, NR_DFN - run[i].dfn);
        }
        for ( i = done = 0; i < nr; i++ )
            done += run[i].nr_frames;
        assert(call_regs(map ? IOMMU_map_runs : IOMMU_unmap_runs,
                         c | (unsigned long)flags << 32, (unsigned long)run, nr,
                         done + 1 + rnd(2)) == -EINVAL);
        done = 0;
        ret = call_runs(map, c, flags, run, nr, list, &got);
        if ( !model[c].used || model[c].identity )
        {
            assert(ret == -EINVAL || (!ret && !got));
            break;
        }
        for ( i = 0; i < nr && !rc; i++ )
        {
            unsigned long left = run[i].nr_frames;

            if ( ret == -ENOMEM )
                left = min(left, got - done);
            done += map ? model_map(c, run[i].dfn, run[i].gfn, left, flags,
                                    &rc)
                        : model_unmap(c, run[i].dfn, left, &rc);
        }
        assert(got == done);
        if ( ret == -ENOMEM )
            oom++;
        else
            assert(!ret == !rc);
        break;
    }

    case 11:
    {
        pv_iommu_flush_pages_t op = {
            .ctx_no = c, .dfn = a_dfn(), .pgsize = 4096, .nr_pages = 1,
        };

        ret = call(IOMMU_flush_pages, &op);
        assert(ret == (model[c].used && !model[c].identity ? 0 : -EINVAL));
        if ( !ret )
            assert(!any_dead(c));
        break;
    }
    }
}

static void set_up(bool translated, int format)
{
    unsigned long i;

    fmt = format;
    memset(&dom0, 0, sizeof(dom0));
    dom0.hwdom = true;
    dom0.translated = translated;
    dom0.pdevs = dev;
    vcpu0.domain = &dom0;
    memset(tlb, 0, sizeof(tlb));
    memset(pde, 0, sizeof(pde));
    memset(model, 0, sizeof(model));
    grants_forget();
    for ( i = 0; i < 3; i++ )
        dev[i].pv_ctx = NULL;

    for ( i = 0; i < NR_PAGES; i++ )
    {
        frame_table[i].owner = i < FIRST_HEAP ? &dom0 : NULL;
        frame_table[i].count = i < FIRST_HEAP;
        frame_table[i].other_type = i < FIRST_HEAP && i % 97 == 13;
        p2m_type[i] = i < 2048 || i % 7 ? p2m_ram_rw : p2m_invalid;
        if ( i >= FIRST_HEAP )
            p2m_type[i] = p2m_invalid;
        if ( i >= 1100 && i < 1110 )
        {
            frame_table[i].owner = &domU;
            /* One of the domain's page tables, if it is PV. */
            frame_table[i].other_type = i == 1105;
            p2m_type[i] = p2m_map_foreign + i % 3;
        }
        if ( i >= 1500 && i < 1504 )
            p2m_type[i] = p2m_ram_ro;
        /* RAM among MMIO must not be taken for MMIO. */
        if ( i >= 1690 && i < 1712 )
            p2m_type[i] = p2m_mmio_direct;
    }

    hw_init(&pv_hw);
    iommu_ops.pv_hw_init = hw_init;
    iommu_ops.pv_ctx_init = ctx_init;
    iommu_ops.pv_ctx_destroy = hw_ctx_destroy;
    iommu_ops.pv_attach = attach;
    iommu_ops.pv_flush = flush;
}

/* Everything is freed with the domain. */
static void tear_down(long allocs)
{
    unsigned long i;

    for ( i = 0; i < 3; i++ )
    {
        pcidevs_lock();
        assert(!pv_iommu_release_pdev(&dev[i]));
        pcidevs_unlock();
    }
    preempt_every = 3;
    while ( pv_iommu_domain_destroy(&dom0) == -ERESTART )
        ;
    preempt_every = 0;
    pv_iommu_domain_free(&dom0);
    assert(!dom0.iommu.pv && !heap_used && xen_allocs == allocs);
    for ( i = 0; i < FIRST_HEAP; i++ )
        assert(frame_table[i].count == 1 && !frame_table[i].writable);
    grants_gone();
}

static void run_case(bool translated, int format, unsigned int order,
                     unsigned long calls)
{
    pv_iommu_init_t init = { NR_CTX, order };
    unsigned long i;
    long allocs = xen_allocs;
    pv_iommu_capabilities_t cap;

    set_up(translated, format);
    domU.translated = order < 10;
    memset(seen_super, 0, sizeof(seen_super));

    /* Without enough memory, it fails cleanly and can be retried. */
    heap_limit = heap_used + (1UL << order) - 1;
    assert(call(IOMMU_init, &init) == -ENOMEM);
    assert(!heap_used && xen_allocs == allocs);
    heap_limit = NR_PAGES;
    fail_after = 0;
    assert(call(IOMMU_init, &init) == -ENOMEM);
    fail_after = ~0U;
    assert(call(IOMMU_query_capabilities, &cap) == 0 && !cap.max_ctx_no);
    init.max_ctx_no = 0x10000;
    assert(call(IOMMU_init, &init) == -EINVAL);
    init.max_ctx_no = NR_CTX;
    assert(call(IOMMU_init, &init) == 0);
    assert(call(IOMMU_init, &init) == -EACCES);
    assert(call(IOMMU_query_capabilities, &cap) == 0 &&
           cap.max_ctx_no == NR_CTX);

    oom = held_ended = 0;
    for ( i = 0; i < calls; i++ )
    {
        preempt_every = rnd(4) ? 0 : 1 + rnd(4);
        random_call();
        random_grant();
        check_grants();
        if ( !(i % 16) )
            verify();
    }
    verify();

    tear_down(allocs);
    assert(held_ended || calls < 10000);
    assert(!calls || seen_super[2]);

    printf("ok - %s, %s, %u pool pages, %lu calls (%lu out of memory, %u grants held)\n",
           translated ? "PVH" : "PV", format == FMT_VTD ? "VT-d" : "AMD-Vi",
           1U << order, calls, oom, held_ended);
}

/* Superpages, systematically. */

static unsigned int super_ctx;

static struct pv_iommu_ctx *super(void)
{
    return dom0.iommu.pv->ctx[super_ctx];
}

/* Maps or unmaps pages of a size; returns the number of frames done. */
static unsigned long super_map(unsigned long dfn, unsigned long gfn,
                               unsigned long nr, unsigned int order,
                               long wanted)
{
    pv_iommu_map_pages_t op = {
        .ctx_no = super_ctx, .dfn = dfn, .gfn = gfn, .nr_pages = nr >> order,
        .pgsize = 4096U << order, .map_flags = IOMMU_MAP_readable,
    };

    assert(call(IOMMU_map_pages, &op) == wanted);
    return (unsigned long)op.mapped << order;
}

static unsigned long super_unmap(unsigned long dfn, unsigned long nr,
                                 unsigned int order, long wanted)
{
    pv_iommu_unmap_pages_t op = {
        .ctx_no = super_ctx, .dfn = dfn, .nr_pages = nr >> order,
        .pgsize = 4096U << order,
    };

    assert(call(IOMMU_unmap_pages, &op) == wanted);
    return (unsigned long)op.unmapped << order;
}

/* Returns the level of the entry for dfn, which must lead to that frame. */
static unsigned int super_level(unsigned long dfn, unsigned long mfn)
{
    unsigned int level;

    assert(hw_walk(super(), dfn, true, &level) ==
           (mfn << 12 | IOMMU_MAP_readable));
    return level;
}

static bool is_mapped(unsigned long dfn)
{
    return hw_walk(super(), dfn, true, NULL);
}

static void take_pool(struct pv_iommu *pv, struct page_list_head *taken)
{
    while ( pv->nr_free )
    {
        page_list_add(page_list_remove_head(&pv->pool), taken);
        pv->nr_free--;
    }
}

static void return_pool(struct pv_iommu *pv, struct page_list_head *taken)
{
    struct page_info *pg;

    while ( (pg = page_list_remove_head(taken)) )
    {
        page_list_add(pg, &pv->pool);
        pv->nr_free++;
    }
}

static void run_super(bool translated, int format)
{
    const unsigned long span = hw_span(2), dfn = 5 * span, gfn = span;
    pv_iommu_init_t init = { NR_CTX, 8 };
    struct page_list_head taken = {};
    pv_iommu_alloc_t alloc = {};
    pv_iommu_free_t op;
    pv_iommu_capabilities_t cap;
    long allocs = xen_allocs;
    unsigned long i, at, left, all;
    struct pv_iommu *pv;
    bool *gone;

    set_up(translated, format);
    assert(!call(IOMMU_init, &init));
    assert(!call(IOMMU_query_capabilities, &cap) &&
           cap.pgsize_mask == (PAGE_SIZE_4K | PAGE_SIZE_2M));
    pv = dom0.iommu.pv;
    all = pv->nr_free;

    /* Each part can be unmapped alone, in any order, with an empty pool. */
    assert(!call(IOMMU_alloc_context, &alloc));
    super_ctx = alloc.ctx_no;
    preempt_every = 1;
    assert(super_map(dfn, gfn, span, 0, 0) == span);
    for ( i = 0; i < span; i++ )
        assert(super_level(dfn + i, gfn + i) == 2);
    take_pool(pv, &taken);
    gone = calloc(span, sizeof(*gone));
    for ( left = span; left; left-- )
    {
        at = rnd(span);
        while ( gone[at] )
            at = (at + 1) % span;
        gone[at] = true;
        assert(super_unmap(dfn + at, 1, 0, 0) == 1);
        for ( i = 0; i < span; i++ )
        {
            assert(is_mapped(dfn + i) == !gone[i]);
            assert(frame_table[gfn + i].count == 2 - gone[i]);
        }
    }
    free(gone);
    return_pool(pv, &taken);

    /* Pages of this size are mapped completely or not at all. */
    assert(super_map(dfn, gfn, span, PT_SHIFT, 0) == span);
    assert(super_level(dfn, gfn) == 2);
    assert(super_map(dfn, gfn, span, PT_SHIFT, -EADDRINUSE) == 0);
    assert(super_unmap(dfn, span, PT_SHIFT, 0) == span);
    assert(super_unmap(dfn, span, PT_SHIFT, -ENOENT) == 0);
    assert(super_map(dfn, gfn, span, PT_SHIFT, 0) == span);
    assert(super_unmap(dfn + span - 1, 1, 0, 0) == 1);
    assert(super_unmap(dfn, span, PT_SHIFT, -ENOENT) == 0);
    assert(super_level(dfn + span - 2, gfn + span - 2) == 1);
    assert(super_unmap(dfn, span - 1, 0, 0) == span - 1);
    assert(super_map(dfn + span / 2, gfn, 1, 0, 0) == 1);
    assert(super_map(dfn, gfn, span, PT_SHIFT, -EADDRINUSE) == 0);
    for ( i = 0; i < span; i++ )
        assert(is_mapped(dfn + i) == (i == span / 2));
    assert(super_unmap(dfn + span / 2, 1, 0, 0) == 1);

    /* An empty table gives way to a superpage; so does one of dead entries. */
    assert(super_map(dfn, gfn, span, 0, 0) == span);
    assert(super_level(dfn, gfn) == 2);

    /* Without contiguity, or a page for the split, there is no superpage. */
    assert(super_map(dfn + span, gfn + 1, span, 0, 0) == span);
    assert(super_level(dfn + span, gfn + 1) == 1);
    if ( translated )
    {
        /* Only part of the last one is permitted. */
        i = HUGE_MMIO;
        assert(super_map(dfn + 2 * span, i, 3 * span, PT_SHIFT, -ENOENT) == 0);
    }
    else
    {
        assert(super_map(dfn + 2 * span, HUGE_MMIO, 3 * span, PT_SHIFT,
                         -EPERM) == 2 * span);
        assert(super_level(dfn + 3 * span, HUGE_MMIO + span) == 2);
        for ( i = 4 * span; i < 5 * span; i++ )
            assert(!is_mapped(dfn + i));
    }

    /* It is freed with its contents, and every page returns. */
    op = (pv_iommu_free_t){ .ctx_no = super_ctx };
    assert(!call(IOMMU_free_context, &op) && pv->nr_free == all);

    /* A context that is in use when the domain dies. */
    assert(!call(IOMMU_alloc_context, &alloc));
    super_ctx = alloc.ctx_no;
    assert(super_map(dfn, gfn, span, 0, 0) == span);
    tear_down(allocs);

    printf("ok - superpages of %lu pages, %s, %s\n", span,
           translated ? "PVH" : "PV", format == FMT_VTD ? "VT-d" : "AMD-Vi");
}

/* Finds the level 1 table for dfn as the hardware does. */
static struct page_info *table_of(const struct pv_iommu_ctx *ctx,
                                  unsigned long dfn)
{
    struct page_info *pg = ctx->root;
    unsigned int level;

    for ( level = pv_hw.levels; level > 1; level-- )
    {
        uint64_t pte = pg->data[(dfn / hw_span(level)) % hw_span(2)];

        if ( !hw_present(pte) || hw_leaf(pte, level) )
            return NULL;
        pg = mfn_to_page(_mfn(hw_mfn(pte)));
    }
    return pg;
}

/*
 * AMD hardware may have cached the entry that points to a table, and flushes of pages
 * do not affect that: an empty table must not be replaced before a full flush.
 */
static void run_stale(bool translated, int format)
{
    pv_iommu_init_t init = { NR_CTX, 8 };
    pv_iommu_alloc_t alloc = {};
    struct page_info *cached[20];
    long allocs = xen_allocs;
    unsigned int i;

    set_up(translated, format);
    assert(!call(IOMMU_init, &init) && !call(IOMMU_alloc_context, &alloc));
    super_ctx = alloc.ctx_no;
    for ( i = 0; i < 20; i++ )
    {
        assert(super_map(i * hw_span(2), 100 + i, 1, 0, 0) == 1);
        assert(is_mapped(i * hw_span(2)));
        cached[i] = table_of(super(), i * hw_span(2));
    }
    flushes_of_all = 0;
    for ( i = 0; i < 20; i++ )
        assert(super_unmap(i * hw_span(2), 1, 0, 0) == 1);
    for ( i = 0; i < 20; i++ )
    {
        assert(super_map(i * hw_span(2) + 1, 200 + i, 1, 0, 0) == 1);
        assert(flushes_of_all ||
               table_of(super(), i * hw_span(2) + 1) == cached[i]);
    }
    tear_down(allocs);

    printf("ok - no stale tables, %s\n", format == FMT_VTD ? "VT-d" : "AMD-Vi");
}

/* A flush frees a limited number of tables, and in the end all are free. */
static void run_trim(void)
{
    const unsigned long nr = MAX_TRIM + MAX_TRIM / 4, at = 8;
    pv_iommu_init_t init = { NR_CTX, 12 };
    pv_iommu_alloc_t alloc = {};
    pv_iommu_flush_pages_t op = {};
    pv_iommu_free_t op_free = {};
    long allocs = xen_allocs;
    unsigned long i, tables, before;

    set_up(true, FMT_AMD);
    assert(!call(IOMMU_init, &init) && !call(IOMMU_alloc_context, &alloc));
    op.ctx_no = op_free.ctx_no = super_ctx = alloc.ctx_no;
    tables = super()->nr_tables;
    for ( i = 1; i <= nr; i++ )
        assert(super_map(i * hw_span(2) + at, 100, 1, 0, 0) == 1);
    for ( i = 1; i <= nr; i++ )
        assert(super_unmap(i * hw_span(2) + at, 1, 0, 0) == 1);

    while ( (before = super()->nr_tables) != tables )
    {
        assert(!call(IOMMU_flush_pages, &op));
        assert(super()->nr_tables < before);
        assert(super()->nr_tables + MAX_TRIM >= before);
    }

    /* The same when the context is freed. */
    for ( i = 1; i <= nr; i++ )
        assert(super_map(i * hw_span(2) + at, 100, 1, 0, 0) == 1);
    for ( i = 1; i <= nr; i++ )
        assert(super_unmap(i * hw_span(2) + at, 1, 0, 0) == 1);
    assert(!call(IOMMU_free_context, &op_free));
    assert(dom0.iommu.pv->nr_free == dom0.iommu.pv->nr_pages);
    tear_down(allocs);

    printf("ok - %lu empty tables are freed in parts\n", 2 * nr);
}

/* The work between two preemption checks is bounded. */
static void run_long(bool translated)
{
    const unsigned long dfn = 1, gfn = 2000, nr = 6000;
    pv_iommu_init_t init = { NR_CTX, 10 };
    pv_iommu_alloc_t alloc = {};
    pv_iommu_free_t op;
    long allocs = xen_allocs;
    unsigned long map, unmap, i;

    set_up(translated, FMT_VTD);
    for ( i = 0; i < nr; i++ )
        p2m_type[gfn + i] = p2m_ram_rw;
    assert(!call(IOMMU_init, &init) && !call(IOMMU_alloc_context, &alloc));
    super_ctx = alloc.ctx_no;
    longest_stretch = 0;
    assert(super_map(dfn, gfn, nr, 0, 0) == nr);
    map = longest_stretch;
    longest_stretch = 0;
    assert(super_unmap(dfn, nr, 0, 0) == nr);
    unmap = longest_stretch;
    assert(super_map(dfn, gfn, nr, 0, 0) == nr);
    longest_stretch = 0;
    op = (pv_iommu_free_t){ .ctx_no = super_ctx };
    assert(!call(IOMMU_free_context, &op));
    printf("# longest stretches: %lu frames mapped, %lu unmapped, %lu of a context that is freed\n",
           map, unmap, longest_stretch);
    assert(map <= 2 * PT_ENTRIES && unmap <= 4096 + PT_ENTRIES &&
           longest_stretch <= 8 * PT_ENTRIES);
    tear_down(allocs);

    printf("ok - long calls, %s\n", translated ? "PVH" : "PV");
}

/* However much is unmapped without a flush, the number of frames that wait for one is bounded. */
static void run_deferred(bool translated)
{
    const unsigned long dfn = 0x4000, gfn = 2000, nr = 6000, rounds = 4;
    pv_iommu_init_t init = { NR_CTX, 12 };
    pv_iommu_alloc_t alloc[2] = {};
    long allocs = xen_allocs;
    unsigned long i, most = 0;
    const atomic_t *waits;

    set_up(translated, FMT_AMD);
    for ( i = 0; i < nr; i++ )
        p2m_type[gfn + i] = p2m_ram_rw;
    assert(!call(IOMMU_init, &init));
    assert(!call(IOMMU_alloc_context, &alloc[0]));
    assert(!call(IOMMU_alloc_context, &alloc[1]));
    waits = &dom0.iommu.pv->nr_deferred;

    for ( i = 0; i < rounds; i++ )
    {
        super_ctx = alloc[i % 2].ctx_no;
        assert(super_map(dfn + i * nr, gfn, nr, 0, 0) == nr);
    }
    for ( i = 0; i < rounds; i++ )
    {
        pv_iommu_unmap_pages_t op = {
            .ctx_no = alloc[i % 2].ctx_no, .dfn = dfn + i * nr, .nr_pages = nr,
            .pgsize = 4096, .unmap_flags = IOMMU_UNMAP_no_flush,
        };

        assert(!call(IOMMU_unmap_pages, &op) && op.unmapped == nr);
        assert(atomic_read(waits) <= MAX_DEFERRED);
        most = max(most, atomic_read(waits) + 0UL);
    }
    assert(most > MAX_DEFERRED / 2);

    /* Releasing them all is therefore bounded, too. */
    pv_iommu_release_unmapped(&dom0);
    assert(!atomic_read(waits));
    for ( i = 0; i < nr; i++ )
        assert(frame_table[gfn + i].count == 1);
    tear_down(allocs);

    printf("ok - %lu frames at most wait for a flush, %s\n", most,
           translated ? "PVH" : "PV");
}

/* The domain dies while a grant or a toolstack changes its P2M, or 'o' is pressed. */

static void destroy(void)
{
    at_read_lock = NULL;
    assert(!pv_iommu_domain_destroy(&dom0));
    pv_iommu_domain_free(&domU);
}

static void run_dying(void)
{
    pv_iommu_init_t init = { NR_CTX, 8 };
    pv_iommu_alloc_t alloc = {};
    long allocs = xen_allocs;

    set_up(true, FMT_AMD);
    assert(!call(IOMMU_init, &init) && !call(IOMMU_alloc_context, &alloc));
    super_ctx = alloc.ctx_no;
    assert(super_map(0, 100, 1, 0, 0) == 1);

    assert(ctx_get(dom0.iommu.pv, super_ctx, true));
    assert(pv_iommu_domain_destroy(&dom0) == -ERESTART);
    ctx_put(super());

    at_read_lock = destroy;
    pv_iommu_p2m_changed(&dom0);
    assert(!at_read_lock);
    tear_down(allocs);

    printf("ok - the domain dies meanwhile\n");
}

/* A device that is assigned to another domain, and returns. */
static void run_lent(void)
{
    pv_iommu_init_t init = { NR_CTX, 8 };
    pv_iommu_alloc_t alloc = {};
    pv_iommu_reattach_device_t move = { .dev.devfn = dev[0].devfn };
    pv_iommu_free_t op_free = {};
    long allocs = xen_allocs;

    set_up(true, FMT_AMD);
    pv_iommu_hwdom_init(&dom0);
    assert(!default_blocks(&dom0));
    assert(!call(IOMMU_init, &init) && !call(IOMMU_alloc_context, &alloc));
    move.ctx_no = op_free.ctx_no = alloc.ctx_no;
    assert(!call(IOMMU_reattach_device, &move));

    dev[0].domain = &domU;
    assert(call(IOMMU_reattach_device, &move) == -ENODEV);
    assert(!call(IOMMU_free_context, &op_free));

    /* It returns to neither freed tables nor all of dom0's memory. */
    dev[0].domain = &dom0;
    assert(hwdom_block && dev[0].pv_ctx == hwdom_block);
    move.ctx_no = 0;
    assert(!call(IOMMU_reattach_device, &move) && !dev[0].in_hw[0]);
    assert(!hwdom_block->nr_devs);

    while ( zap_table(hwdom_block) )
        ;
    free_top(hwdom_block);
    hw_ctx_destroy(hwdom_block);
    list_del(&hwdom_block->list);
    XFREE(hwdom_block);
    tear_down(allocs);

    printf("ok - a device is assigned to another domain\n");
}

/* Contexts whose tables are the domain's. */

static unsigned int nested_flushes, nested_flags;

static void flush_nested(const struct pv_iommu_ctx *ctx, dfn_t dfn,
                         unsigned long nr, unsigned int flags)
{
    assert(ctx->nested);
    nested_flushes++;
    nested_flags = flags;
}

static uint64_t nested_desc(gfn_t table)
{
    return gfn_x(table) << PAGE_SHIFT | 1;
}

static void run_nested(void)
{
    const unsigned int all = PV_IOMMU_NESTED_host | PV_IOMMU_NESTED_tables;
    static uint64_t desc[PAGE_SIZE / 8];
    pv_iommu_init_t init = { NR_CTX, 8 };
    pv_iommu_alloc_t alloc = {};
    pv_iommu_alloc_nested_t op = {
        .pgtable_gfn = 100, .desc_gfn = 101,
        .nested_flags = IOMMU_NESTED_FMT_x86_64_4,
    };
    pv_iommu_reattach_device_t move = {};
    pv_iommu_free_t op_free = {};
    long allocs = xen_allocs;
    unsigned int i;

    set_up(true, FMT_AMD);
    iommu_ops.pv_flush_nested = flush_nested;
    iommu_ops.pv_nested_desc = nested_desc;
    frame_table[101].data = desc;
    assert(!call(IOMMU_init, &init) && !call(IOMMU_alloc_context, &alloc));
    assert(call(IOMMU_alloc_nested, &op) == -EOPNOTSUPP);
    pv_hw.nested[IOMMU_NESTED_FMT_x86_64_4].pgsize_mask = PAGE_SIZE_4K;
    op.pgtable_gfn = 1500; /* read-only */
    assert(call(IOMMU_alloc_nested, &op) == -EINVAL);
    op.pgtable_gfn = 100;
    assert(!call(IOMMU_alloc_nested, &op) && op.ctx_no != alloc.ctx_no);
    assert(desc[0] == (100UL << PAGE_SHIFT | 1) && !desc[1]);

    /* The P2M restricts devices, not references. */
    assert(frame_table[100].count == 1 && frame_table[101].count == 1);
    assert(call_regs(IOMMU_map_range,
                     op.ctx_no | (unsigned long)IOMMU_MAP_readable << 32,
                     0x10, 1, 100) == -EOPNOTSUPP);

    move.ctx_no = op_free.ctx_no = op.ctx_no;
    for ( i = 0; i < 2; i++ )
    {
        move.dev.devfn = dev[i].devfn;
        assert(!call(IOMMU_reattach_device, &move));
        assert(dev[i].in_hw[0] == dom0.iommu.pv->ctx[op.ctx_no]);
    }
    assert(call(IOMMU_free_context, &op_free) == -EBUSY);

    nested_flushes = 0;
    pv_iommu_p2m_changed(&dom0);
    assert(nested_flushes == 1 && nested_flags == all);

    /* One device is removed, and the domain dies with the other. */
    pcidevs_lock();
    pv_iommu_forget_pdev(&dev[1]);
    memset(dev[1].in_hw, 0, sizeof(dev[1].in_hw));
    pcidevs_unlock();
    nested_flushes = 0;
    tear_down(allocs);
    /* Before its tag is used again. */
    assert(nested_flushes == 1 && nested_flags == all);
    frame_table[101].data = NULL;

    printf("ok - nested contexts\n");
}

/* Grants, case by case. */

static void run_grants(bool translated, bool external)
{
    pv_iommu_init_t init = { NR_CTX, 8 };
    pv_iommu_alloc_t op = {};
    long allocs = xen_allocs;

    set_up(translated, FMT_VTD);
    domU.translated = external;
    assert(!call(IOMMU_init, &init));
    assert(!call(IOMMU_alloc_context, &op));
    grant_cases(op.ctx_no);
    tear_down(allocs);
    assert(!domU.refs);

    printf("ok - grants, %s maps what %s granted\n", translated ? "PVH" : "PV",
           external ? "PVH" : "PV");
}

int main(int argc, char **argv)
{
    unsigned long seed = argc > 1 ? strtoul(argv[1], NULL, 0) : time(NULL);
    unsigned long calls = argc > 2 ? strtoul(argv[2], NULL, 0) : 20000;
    int i;

    setlinebuf(stdout);
    printf("# seed %lu\n", seed);
    state = seed * 2654435761UL + 1;
    assert(!reserved_init());
    for ( i = 0; i < 4; i++ )
        run_super(i & 1, i >> 1);
    run_stale(true, FMT_AMD);
    run_stale(true, FMT_VTD);
    run_trim();
    run_dying();
    run_lent();
    run_nested();
    run_long(false);
    run_long(true);
    run_deferred(false);
    run_deferred(true);
    for ( i = 0; i < 4; i++ )
        run_grants(i & 1, i >> 1);
    for ( i = 0; i < 8; i++ )
        run_case(i & 1, (i >> 1) & 1, i & 4 ? 6 : 10, calls);

    return 0;
}
