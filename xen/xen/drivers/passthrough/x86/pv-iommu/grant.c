/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: frames of other domains, and the grants behind them.
 *
 * A domain may map frames granted to it into its contexts. As long as devices
 * can reach a frame, the granter must see a grant of it in use. So if the last
 * mapping of a grant that permits the devices' access ends, its end is held
 * until contexts no longer need it. For each frame, this counts the mappings
 * of grants (live) and the entries in contexts (io, including those that wait
 * for a flush); at most one grant is held.
 *
 * A grant is live from before the domain can map it into a context until after
 * it no longer can. Ending one allocates nothing.
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
    /* The grant that is held, if rd is set; flags are GNTMAP_*. */
    struct held {
        struct domain *rd;
        grant_ref_t ref;
        uint16_t flags;
    } held;
};

/* Can devices reach the frame in a way that no live grant permits? */
static bool wants_grant(const struct foreign *f)
{
    return f->io[RW] ? !f->live[RW] : f->io[RO] && !f->live[RO] && !f->live[RW];
}

/* Lock a frame's bucket, and find its record. With alloc, create it. */
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
 * Unlock after a change of f, which may be NULL. Ends the grant that is held
 * if it is no longer needed, and frees the record if it is empty.
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

/* Called before an entry is written. The P2M may be locked. */
int foreign_get(struct pv_iommu *pv, mfn_t mfn, bool write)
{
    struct bucket *b;
    struct foreign *f = foreign_lock(pv, mfn, true, &b);
    int rc = 0;

    if ( !f )
        rc = -ENOMEM;
    /* In PV, only the grants tell whether a frame may be written. */
    else if ( write && f->live[RO] && !f->live[RW] &&
              !paging_mode_translate(pv->d) )
        rc = -EPERM;
    else
        f->io[write]++;

    /* This cannot end a grant that is held. */
    spin_unlock(&b->lock);

    return rc;
}

/* Called after the entry was flushed. No locks may be held. */
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
    /* NULL if it has been unmapped again. */
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

    /* Hold it, unless it does not help or the one already held suffices. */
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

/* Free the records of grants that are still mapped. May return -ERESTART. */
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
