/* SPDX-License-Identifier: GPL-2.0-only */
/* PV-IOMMU: which device is in which context. */

#include <xen/iommu.h>
#include <xen/nospec.h>

#include "private.h"

/*
 * Blocks all DMA except to reserved regions. With dom0-iommu=no-dma, this is
 * the hardware domain's context 0. A device returns to it if its context was
 * freed while it was assigned to another domain.
 */
struct pv_iommu_ctx *__read_mostly hwdom_block;

bool default_blocks(const struct domain *d)
{
    return opt_pv_iommu_no_dma && is_hardware_domain(d);
}

struct pv_iommu_ctx *pv_iommu_pdev_ctx(const struct domain *d,
                                       const struct pci_dev *pdev)
{
    struct pv_iommu_ctx *ctx = pdev->pv_ctx;

    ASSERT(pcidevs_locked());

    if ( !ctx && default_blocks(d) )
        ctx = hwdom_block;

    return ctx && ctx->d == d && !ctx->identity ? ctx : NULL;
}

/*
 * Set up a device and its phantom functions for the context that it is in.
 */
int attach_functions(struct pci_dev *pdev)
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

/* Move a device to a context, or to context 0 (NULL). */
int pdev_attach(struct pci_dev *pdev, struct pv_iommu_ctx *ctx)
{
    struct pv_iommu_ctx *old = pdev->pv_ctx;
    int rc;

    ASSERT(pcidevs_locked());

    /* While it moves, flushes of both contexts include the device's TLB. */
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
             * Its functions may be in either. Keep both contexts: a device
             * must never walk tables that have been freed.
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
        reserved_move(pdev, ctx);

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

/* Is it assigned to another domain, and will return to its context? */
bool pdev_lent(const struct pci_dev *pdev)
{
    return pdev->pv_ctx && pdev->pv_ctx->d != pdev->domain;
}

int pv_iommu_release_pdev(struct pci_dev *pdev)
{
    ASSERT(pcidevs_locked());

    return pdev->pv_ctx && !pdev_lent(pdev) ? pdev_attach(pdev, NULL) : 0;
}

void pv_iommu_forget_pdev(struct pci_dev *pdev)
{
    ASSERT(pcidevs_locked());

    if ( pdev->pv_ctx )
        pdev->pv_ctx->nr_devs--;
    pdev->pv_ctx = NULL;
}

/*
 * A context is being freed: devices that would return to it will be blocked.
 */
int cf_check pdev_orphan(struct pci_dev *pdev, void *arg)
{
    struct pv_iommu_ctx *ctx = arg;

    if ( pdev->pv_ctx == ctx && pdev_lent(pdev) )
    {
        pdev->pv_ctx = hwdom_block;
        hwdom_block->nr_devs++;
        ctx->nr_devs--;
    }

    return 0;
}

int pdev_move(struct domain *d, struct pv_iommu *pv, pci_sbdf_t sbdf,
              unsigned int no)
{
    struct pv_iommu_ctx *ctx = NULL;
    struct pci_dev *pdev;
    int rc = -ENODEV;

    pcidevs_lock();

    pdev = pci_get_pdev(d, sbdf);
    if ( !pdev )
        goto out;

    rc = -EBUSY;
    if ( pdev_lent(pdev) )
        goto out;

    if ( no )
    {
        rc = -EINVAL;
        /* With pcidevs_lock held, it cannot start dying. */
        if ( no > pv->max_ctx )
            goto out;
        ctx = pv->ctx[array_index_nospec(no, pv->max_ctx + 1)];
        if ( !ctx || ctx->dying )
            goto out;
    }

    rc = pdev->pv_ctx != ctx ? pdev_attach(pdev, ctx) : 0;

 out:
    pcidevs_unlock();

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
