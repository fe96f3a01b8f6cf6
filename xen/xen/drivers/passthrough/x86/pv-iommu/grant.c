/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: frames of other domains, and the grants that they come from.
 *
 * What a domain was granted, it may map for its devices. The granter must
 * find such a grant in use as long as a device can reach the frame, and no
 * other grant of the frame is mapped that allows the same. For each frame
 * there is thus the number of grants of it that are mapped (live), of entries
 * that contexts have (io, including those that are yet to be flushed), and
 * the one grant, at most, whose end waits for the contexts.
 *
 * A grant counts as live from before the domain can map it into a context,
 * and up to after it no longer can. The end of a grant never needs memory.
 */

#include <xen/event.h>
#include <xen/grant_table.h>
#include <xen/hypercall.h>

#include "private.h"

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

/* Find the record of a frame, or make one (alloc), and lock its bucket. */
static struct foreign *foreign_lock(struct pv_iommu *pv, mfn_t mfn, bool alloc,
                                    struct bucket **bucket)
{
    struct bucket *b = &pv->bucket[mfn_x(mfn) % NR_BUCKETS];
    struct rb_node **link = &b->frames.rb_node, *parent = NULL;
    struct foreign *f;

    *bucket = b;
    spin_lock(&b->lock);

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
 * After a change of f, which is NULL if there is no record. Ends the grant that
 * is held if it is no longer needed, and frees a record without a purpose.
 */
static void foreign_unlock(struct pv_iommu *pv, struct bucket *b,
                           struct foreign *f)
{
    mfn_t mfn = f ? _mfn(f->mfn) : INVALID_MFN;
    struct held held = {};

    if ( f && f->held.rd && !wants_grant(f) )
    {
        held = f->held;
        f->held.rd = NULL;
    }

    if ( f && !f->io[RO] && !f->io[RW] && !f->live[RO] && !f->live[RW] )
    {
        rb_erase(&f->node, &b->frames);
        xfree(f);
    }

    spin_unlock(&b->lock);

    end_held(pv, mfn, &held);
}

/* A context is to have an entry for the frame. The P2M may be locked. */
int foreign_get(struct pv_iommu *pv, mfn_t mfn, bool write)
{
    struct bucket *b;
    struct foreign *f = foreign_lock(pv, mfn, true, &b);
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
void foreign_put(struct pv_iommu *pv, mfn_t mfn, bool write)
{
    struct bucket *b;
    struct foreign *f = foreign_lock(pv, mfn, false, &b);

    if ( f && f->io[write] )
        f->io[write]--;
    else
        ASSERT_UNREACHABLE();

    foreign_unlock(pv, b, f);
}

int pv_iommu_begin_grant(struct domain *ld, mfn_t mfn, bool readonly)
{
    struct bucket *b;
    struct foreign *f = foreign_lock(dom_iommu(ld)->pv, mfn, true, &b);

    if ( f )
        f->live[!readonly]++;

    spin_unlock(&b->lock);

    return f ? 1 : -ENOMEM;
}

void pv_iommu_grant_mapped(struct domain *ld, mfn_t mfn)
{
    struct pv_iommu *pv = dom_iommu(ld)->pv;
    struct bucket *b;
    /* It may have been unmapped again by now. */
    struct foreign *f = foreign_lock(pv, mfn, false, &b);

    foreign_unlock(pv, b, f);
}

bool pv_iommu_end_grant(struct domain *ld, struct domain *rd, grant_ref_t ref,
                        mfn_t mfn, uint16_t flags, bool begun)
{
    struct pv_iommu *pv = dom_iommu(ld)->pv;
    struct bucket *b;
    struct foreign *f = foreign_lock(pv, mfn, false, &b);
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
int foreign_destroy(struct pv_iommu *pv)
{
    unsigned int i, n = 0;

    for ( i = 0; i < NR_BUCKETS; i++ )
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
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
