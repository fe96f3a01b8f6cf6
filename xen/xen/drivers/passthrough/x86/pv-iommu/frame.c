/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: permission to map a frame, and references to it.
 *
 * Each entry holds a reference to its frame. A writable entry also holds a
 * PGT_writable_page reference, unless the frame's owner is in external paging
 * mode: Xen does not rely on such a domain's page or descriptor tables.
 *
 * sw_write marks entries of the domain's own frames with a type reference.
 * Entries of other domains' frames have sw_grant; in these, sw_write is set in
 * all writable ones.
 */

#include <xen/iocap.h>
#include <xen/rangeset.h>

#include <asm/p2m.h>

#include "private.h"

static bool is_typed(const struct page_info *pg, uint64_t pte)
{
    return (pte & pv_hw.sw_write) &&
           (!(pte & pv_hw.sw_grant) ||
            !paging_mode_external(page_get_owner(pg)));
}

/* Drop references; typed: to types, too. No locks may be held. */
void put_frames(const struct pv_iommu_ctx *ctx, mfn_t mfn, unsigned long nr,
                uint64_t pte, bool typed)
{
    struct page_info *pg;
    unsigned long i;

    if ( pte & (pv_hw.sw_noref | pv_hw.sw_rsvd) )
        return;

    for ( i = 0, pg = mfn_to_page(mfn); i < nr; i++, pg++ )
    {
        if ( typed && is_typed(pg, pte) )
            put_page_and_type(pg);
        else
            put_page(pg);

        /* Last, as this may end the grant. */
        if ( pte & pv_hw.sw_grant )
            foreign_put(ctx->pv, mfn_add(mfn, i), pte & pv_hw.sw_write);
    }
}

/* Release what reap() left. No locks may be held, as a grant may end. */
void put_foreign(const struct pv_iommu_ctx *ctx, uint64_t pte)
{
    if ( pte )
        put_frames(ctx, pte_mfn(pte), 1, pte, true);
}

/* MMIO needs permission, and has no references. Returns how many frames. */
static long get_mmio(const struct domain *d, mfn_t mfn, bool write,
                     uint64_t *pte)
{
    unsigned long frame = mfn_x(mfn);

    *pte = pv_hw.sw_noref;

    /*
     * It must not be RAM, as there would be a reference to get. The P2M also
     * has pages of Xen's as MMIO, e.g. the virtual APIC.
     */
    if ( (mfn_valid(mfn) && page_get_owner(mfn_to_page(mfn)) != dom_io) ||
         !iomem_access_permitted(d, frame, frame) ||
         (write && rangeset_contains_singleton(mmio_ro_ranges, frame)) )
        return -EPERM;

    return 1;
}

/*
 * Get a reference to a frame, and set the PTE bits for it. The type reference
 * has to wait until the P2M is unlocked.
 */
static int get_frame(const struct domain *d, struct page_info *pg, bool write,
                     bool foreign, uint64_t *pte)
{
    /* Unlike get_page(), this does not log failures. */
    const struct domain *owner = page_get_owner_and_reference(pg);
    int rc;

    if ( !owner )
        return -ENOENT;

    if ( owner == d )
    {
        *pte = write && !paging_mode_external(d) ? pv_hw.sw_write : 0;
        return 0;
    }

    rc = owner == dom_io ? -EXDEV
         : !foreign || is_system_domain(owner) ? -EPERM
         : foreign_get(dom_iommu(d)->pv, page_to_mfn(pg), write);
    if ( rc )
        put_page(pg);
    *pte = pv_hw.sw_grant | (write ? pv_hw.sw_write : 0);

    return rc;
}

/* Nothing has to be populated: domains with devices have no such entries. */
static void xlat_gfn(struct xlat *x, unsigned long gfn)
{
    unsigned int order = 0;
    p2m_access_t a;

    if ( gfn - x->gfn < x->nr )
        return;

    x->mfn = p2m_get_gfn_type_access(p2m_get_hostp2m(x->ctx->d), _gfn(gfn),
                                     &x->t, &a, 0, &order, false);

    x->nr = 1UL << order;
    x->gfn = gfn & ~(x->nr - 1);
    if ( !mfn_eq(x->mfn, INVALID_MFN) )
        x->mfn = mfn_add(x->mfn, -(gfn - x->gfn));

    x->writable = a == p2m_access_rw || a == p2m_access_rwx ||
                  a == p2m_access_w || a == p2m_access_wx;
}

/* Does the type of the P2M entry allow mapping it? */
static int check_type(const struct xlat *x, bool write, bool *foreign,
                      bool *mmio)
{
    bool ro = !x->writable;

    switch ( x->t )
    {
    case p2m_ram_rw:
        break;

    case p2m_map_foreign:
    case p2m_grant_map_rw:
        *foreign = true;
        break;

    case p2m_grant_map_ro:
        *foreign = true;
        fallthrough;
    case p2m_ram_ro:
        ro = true;
        break;

    case p2m_mmio_direct:
        *mmio = true;
        break;

    default:
        return -ENOENT;
    }

    return write && ro ? -EPERM : mfn_eq(x->mfn, INVALID_MFN) ? -ENOENT : 0;
}

/*
 * The fast path: get references to valid frames as long as they are the
 * domain's own. Returns how many are. Without it, mapping 512 pages in PVH
 * takes 1.5 times the instructions.
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
        /* The slow path takes another look at this one. */
        if ( owner )
            put_page(pg);
        break;
    }

    return i;
}

/*
 * Translate gfn, and get references to up to nr contiguous frames from there.
 * Returns the number of frames, and sets the PTE bits for them.
 */
long get_run(struct xlat *x, unsigned long gfn, unsigned long nr, bool write,
             mfn_t *mfn, uint64_t *pte)
{
    struct domain *d = x->ctx->d;
    bool translate = paging_mode_translate(d), foreign = false, mmio = false;
    bool valid;
    unsigned long i;
    int rc = 0;

    ASSERT(nr <= PT_ENTRIES);

    if ( translate )
    {
        xlat_gfn(x, gfn);
        rc = check_type(x, write, &foreign, &mmio);
        *mfn = mfn_add(x->mfn, gfn - x->gfn);
        nr = min(nr, x->gfn + x->nr - gfn);
    }
    else
    {
        *mfn = _mfn(gfn);
        if ( gfn >> (paddr_bits - PAGE_SHIFT) )
            rc = -ENOENT;
    }

    if ( rc )
        return rc;

    if ( mmio || (!translate && !mfn_valid(*mfn)) )
        return get_mmio(d, *mfn, write, pte);

    /* Validity has a granularity of 2 MiB, and a run is no longer. */
    valid = mfn_valid(*mfn) && (nr == 1 || mfn_valid(mfn_add(*mfn, nr - 1)));

    if ( likely(valid && !foreign) )
    {
        *pte = write && !translate ? pv_hw.sw_write : 0;
        i = get_own(d, *mfn, nr);
        if ( i )
            return i;
    }

    /*
     * There is no record of a PV domain's foreign mappings, so it has to be
     * privileged over all domains.
     */
    if ( !translate )
        foreign = is_hardware_domain(d) && is_control_domain(d);

    for ( i = 0; i < nr; i++ )
    {
        mfn_t m = mfn_add(*mfn, i);
        uint64_t bits;

        rc = valid || mfn_valid(m)
             ? get_frame(d, mfn_to_page(m), write, foreign, &bits) : -EXDEV;
        if ( rc )
            break;
        if ( !i )
            *pte = bits;
        else if ( bits != *pte )
        {
            /* PV only, so no P2M lock is held. Another run starts here. */
            ASSERT(!translate);
            put_frames(x->ctx, m, 1, bits, false);
            break;
        }
    }

    /* RAM to Xen, but MMIO to the domain. */
    if ( !i && rc == -EXDEV )
        return get_mmio(d, *mfn, write, pte);

    return i ?: rc;
}

/*
 * Get type references, after the P2M was unlocked. Returns the number of
 * pieces that have them; the last of these may have been shortened. The
 * references of the others are dropped.
 */
unsigned int get_types(const struct pv_iommu_ctx *ctx, struct piece *piece,
                       unsigned int nr, int *rc)
{
    unsigned long i = 0;
    unsigned int n, good;

    for ( n = 0; n < nr; n++ )
    {
        struct page_info *pg;

        if ( !(piece[n].pte & pv_hw.sw_write) )
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
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
