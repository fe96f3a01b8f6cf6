/* SPDX-License-Identifier: GPL-2.0-only */
/* PV-IOMMU: mapping and unmapping runs of frames. */

#include <xen/event.h>
#include <xen/guest_access.h>
#include <xen/hypercall.h>

#include <asm/hvm/support.h>

#include "private.h"

/* Frames to make dead before these are flushed and released. */
#define UNMAP_BATCH     4096
/* Runs to unmap between checks for preemption. */
#define RUNS_PREEMPT    8
/* Pieces of runs to look up, and then to write, at once. */
#define NR_PIECES       32

int check_run(const struct runs *r)
{
    if ( r->dfn > pv_hw.max_dfn || r->nr - 1 > pv_hw.max_dfn - r->dfn )
        return -ERANGE;

    if ( !r->map )
        return 0;

    if ( r->gfn + r->nr < r->gfn )
        return -ENOENT;

    return is_msi_range(r->dfn, r->nr) ? -EADDRNOTAVAIL : 0;
}

/* Copy in the next runs of a list, if needed. No locks may be held. */
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

/*
 * Go on to the next run if this one is done. Returns 1, 0 if there is none
 * among those copied in, or an error.
 */
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
 * Look up the next pieces, and get references to their frames. Stops after
 * about as many frames as a table has entries. Returns the number of pieces;
 * if what follows them cannot be mapped, sets *rc.
 */
static unsigned int get_pieces(const struct pv_iommu_ctx *ctx, struct runs *r,
                               bool write, struct piece *piece, int *rc)
{
    bool translate = paging_mode_translate(ctx->d);
    struct xlat x = { .ctx = ctx };
    unsigned int n = 0;
    unsigned long frames = 0;

    if ( translate )
        p2m_lookup_begin(p2m_get_hostp2m(ctx->d));

    *rc = 0;
    while ( frames < PT_ENTRIES && n < NR_PIECES && (*rc = runs_next(r)) > 0 )
    {
        /* Do not cut what can be a superpage. */
        unsigned long part = min(r->nr, table_rest(r->dfn));

        while ( part && n < NR_PIECES )
        {
            struct piece *last = n ? &piece[n - 1] : NULL;
            unsigned long nr = part;
            uint64_t pte = pv_hw.sw_noref;
            mfn_t mfn = _mfn(r->dfn);
            long got = 0;

            if ( unlikely(ctx->empty) )
                got = reserved_run(ctx, r->dfn, r->gfn, &nr);
            if ( likely(!got) )
                got = get_run(&x, r->gfn, nr, write, &mfn, &pte);

            if ( got < 0 )
            {
                *rc = got;
                goto out;
            }

            /* The P2M may have small pages for contiguous frames. */
            if ( last && last->dfn + last->nr == r->dfn && last->pte == pte &&
                 mfn_eq(mfn_add(last->mfn, last->nr), mfn) )
                last->nr += got;
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
    if ( translate )
        p2m_lookup_end(p2m_get_hostp2m(ctx->d));

    return get_types(ctx, piece, n, rc);
}

/*
 * Write entries for pieces. Consumes the references. Returns -ERESTART if
 * making room was preempted.
 */
static int put_pieces(struct pv_iommu_ctx *ctx, struct piece *piece,
                      unsigned int nr, uint64_t flags, unsigned long *done)
{
    struct piece *end = piece + nr;
    struct writer w = {};
    bool retry = false;
    int rc = 0;

    spin_lock(&ctx->lock);

    while ( piece < end )
    {
        unsigned long got;

        rc = write_entries(ctx, &w, piece->dfn, piece->mfn, piece->nr,
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

        writer_end(ctx, &w);
        spin_unlock(&ctx->lock);
        retry = true;
        if ( flush_deferred(ctx, true) ||
             (rc == -ENOMEM && !ACCESS_ONCE(ctx->pv->nr_free) &&
              reclaim(ctx->pv)) )
            rc = -ERESTART;
        spin_lock(&ctx->lock);

        if ( rc == -ERESTART )
            break;
    }

    writer_end(ctx, &w);
    spin_unlock(&ctx->lock);

    for ( ; piece < end; piece++ )
        put_frames(ctx, piece->mfn, piece->nr, piece->pte, true);

    return rc;
}

static uint64_t pte_flags(uint32_t map_flags)
{
    return ((map_flags & IOMMU_MAP_readable) ? pv_hw.read : 0) |
           ((map_flags & IOMMU_MAP_writeable) ? pv_hw.write : 0);
}

/*
 * Map what r describes. Each unit (a number of frames) is mapped as a whole or
 * not at all. Adds to *done. Returns -ERESTART if there is more to do.
 */
int map_runs(struct pv_iommu_ctx *ctx, struct runs *r, uint32_t flags,
             unsigned long unit, unsigned long *done)
{
    unsigned long dfn = r->dfn, total = 0, part;
    bool list = r->nr_list;
    int rc = 0;

    while ( !rc && !runs_end(r) )
    {
        struct piece piece[NR_PIECES];
        unsigned int nr;
        int ret;

        rc = runs_fill(r);
        if ( rc )
            break;

        nr = get_pieces(ctx, r, flags & IOMMU_MAP_writeable, piece, &rc);
        ret = put_pieces(ctx, piece, nr, pte_flags(flags), &total);
        rc = ret ?: rc;

        if ( !rc && !runs_end(r) && !(total & (unit - 1)) &&
             hypercall_preempt_check() )
            rc = -ERESTART;
    }

    part = total & (unit - 1);
    if ( part )
    {
        bool foreign = false;

        total -= part;
        /* Another call may be unmapping it. Leave the rest to that, then. */
        kill_entries(ctx, dfn + total, part, false, &part, &foreign);
        finish_unmap(ctx, dfn + total, part, false);
    }

    if ( total && pv_hw.flush_added && !(flags & IOMMU_MAP_no_flush) )
    {
        if ( list )
            flush_range(ctx, 0, 0, IOMMU_FLUSHF_added | IOMMU_FLUSHF_all);
        else
            flush_range(ctx, dfn, total, IOMMU_FLUSHF_added);
    }
    *done += total;

    return rc;
}

/*
 * Make the rest of a run dead, up to UNMAP_BATCH frames. Returns -ERESTART if
 * there is more to do.
 */
static int kill_run(struct pv_iommu_ctx *ctx, const struct runs *r,
                    unsigned long unit, unsigned long *done, bool *foreign)
{
    int rc = 0;

    *done = 0;

    while ( !rc && *done < r->nr )
    {
        unsigned long cur = r->dfn + *done, part;

        /* Ending grants takes longer. */
        if ( *done >= UNMAP_BATCH || *foreign ||
             (*done && hypercall_preempt_check()) )
            return -ERESTART;

        rc = kill_entries(ctx, cur, min(r->nr - *done, table_rest(cur)),
                          unit > 1, &part, foreign);
        *done += part;
    }

    return rc;
}

/*
 * Unmap what r describes. Adds to *done. Returns -ERESTART if there is more to
 * do. Clears IOMMU_UNMAP_no_flush in *flags if that includes a flush.
 */
int unmap_runs(struct pv_iommu_ctx *ctx, struct runs *r, uint32_t *flags,
               unsigned long unit, unsigned long *done)
{
    bool list = r->nr_list, foreign = false;
    unsigned int n = 0;
    int rc = 0, ret;

    while ( !runs_end(r) )
    {
        bool mine = false;
        unsigned long part;

        rc = runs_fill(r) ?: runs_next(r);
        if ( rc < 0 )
            break;
        if ( !rc )
            continue;

        rc = kill_run(ctx, r, unit, &part, &mine);
        foreign |= mine;
        /* A list has one flush at its end, if the ranges can be deferred. */
        finish_unmap(ctx, r->dfn, part,
                     list || ((*flags & IOMMU_UNMAP_no_flush) && !mine));
        *done += part;
        r->dfn += part;
        r->nr -= part;

        if ( rc == -ERESTART && !list && !hypercall_preempt_check() )
            rc = 0;
        if ( !rc && list && !(++n % RUNS_PREEMPT) && !runs_end(r) &&
             hypercall_preempt_check() )
            rc = -ERESTART;
        if ( rc )
            break;
    }

    if ( list && foreign )
        *flags &= ~IOMMU_UNMAP_no_flush;

    if ( list && !(*flags & IOMMU_UNMAP_no_flush) )
    {
        ret = flush_deferred(ctx, false);
        /*
         * Preemption overrides an error, which the continuation runs into
         * again. The rest must be released, as the end of a grant may wait for
         * it.
         */
        if ( ret )
            rc = ret;
    }

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
