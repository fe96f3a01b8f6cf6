/* SPDX-License-Identifier: GPL-2.0-only */
/* PV-IOMMU: reserved regions (RMRR, IVMD) and interrupt ranges. */

#include <xen/init.h>
#include <xen/iommu.h>

#include "private.h"

/* Regions that devices must always be able to reach, one entry per device. */
static struct reserved {
    unsigned long first, nr;
    pci_sbdf_t sbdf;
    /* The device's context. Only compared, never dereferenced. */
    const struct pv_iommu_ctx *ctx;
} *__ro_after_init reserved;
static unsigned int __ro_after_init nr_reserved;

static int __init cf_check add_reserved(xen_pfn_t start, xen_ulong_t nr,
                                        uint32_t id, void *ctxt)
{
    unsigned int *n = ctxt;

    if ( nr && reserved )
        reserved[*n] = (struct reserved){ start, nr, { .sbdf = id } };
    *n += !!nr;

    return 1;
}

int __init reserved_init(void)
{
    unsigned int n = 0;
    int rc = iommu_get_reserved_device_memory(add_reserved, &n);

    if ( rc == -EOPNOTSUPP || rc == -ENODEV || (rc >= 0 && !n) )
        return 0;

    if ( rc >= 0 && !(reserved = xzalloc_array(struct reserved, n)) )
        rc = -ENOMEM;
    if ( rc >= 0 )
        rc = iommu_get_reserved_device_memory(add_reserved, &nr_reserved);

    return rc < 0 ? rc : 0;
}

/*
 * For a context created without reserved regions. If dfn is in one and mapped
 * 1:1, returns how many frames may be mapped so, whatever they are. Otherwise
 * returns 0 and reduces *nr so that the frames are all in or all outside of a
 * region. If a device in the context needs the region, anything but 1:1 is an
 * error.
 */
long reserved_run(const struct pv_iommu_ctx *ctx, unsigned long dfn,
                  unsigned long gfn, unsigned long *nr)
{
    bool within = false;
    unsigned int i;

    for ( i = 0; i < nr_reserved; i++ )
    {
        const struct reserved *r = &reserved[i];

        if ( dfn < r->first )
            *nr = min(*nr, r->first - dfn);
        else if ( dfn - r->first < r->nr )
        {
            *nr = min(*nr, r->first + r->nr - dfn);
            if ( dfn != gfn && r->ctx == ctx )
                return -EADDRNOTAVAIL;
            within |= dfn == gfn;
        }
    }

    return within ? *nr : 0;
}

/* Writes there are interrupts, or are not translated for other reasons. */
bool is_msi_range(unsigned long dfn, unsigned long nr)
{
    const unsigned long msi = 0xfee00, msi_end = 0xfeeff;
    /* HyperTransport's, up to 1 TiB. */
    const unsigned long ht = 0xfd00000, ht_end = 0xfffffff;
    unsigned long last = dfn + nr - 1;

    return (dfn <= msi_end && last >= msi) ||
           ((boot_cpu_data.x86_vendor &
             (X86_VENDOR_AMD | X86_VENDOR_HYGON)) &&
            dfn <= ht_end && last >= ht);
}

/* Map all reserved regions. Several devices may have the same one. */
int map_reserved(struct pv_iommu_ctx *ctx)
{
    unsigned int n;

    for ( n = 0; n < nr_reserved; n++ )
    {
        unsigned long dfn = reserved[n].first, nr = reserved[n].nr, i = 0;

        if ( dfn > pv_hw.max_dfn || nr - 1 > pv_hw.max_dfn - dfn )
            return -ERANGE;

        while ( i < nr )
        {
            struct writer w = {};
            unsigned long done;
            int rc;

            spin_lock(&ctx->lock);
            rc = write_entries(ctx, &w, dfn + i, _mfn(dfn + i), nr - i,
                               pv_hw.read | pv_hw.write | pv_hw.sw_rsvd, true,
                               &done);
            writer_end(ctx, &w);
            spin_unlock(&ctx->lock);

            i += done;
            if ( rc == -EADDRNOTAVAIL )
                i++;
            else if ( rc )
                return rc;
        }
    }

    return 0;
}

/* A device has moved to a context. */
void reserved_move(const struct pci_dev *pdev, const struct pv_iommu_ctx *ctx)
{
    unsigned int i;

    ASSERT(pcidevs_locked());

    for ( i = 0; i < nr_reserved; i++ )
        if ( reserved[i].sbdf.sbdf == pdev->sbdf.sbdf )
            reserved[i].ctx = ctx;
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
