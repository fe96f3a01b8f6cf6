/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: setting up and tearing down a domain's contexts, the hardware
 * domain's default context, and the debug key.
 */

#include <xen/err.h>
#include <xen/event.h>
#include <xen/hypercall.h>
#include <xen/init.h>
#include <xen/iommu.h>
#include <xen/softirq.h>
#include <xen/xvmalloc.h>

#include "private.h"

bool __ro_after_init opt_pv_iommu_no_dma;

/*
 * Free up to nr pages of a pool that is not in use. Returns true if there are
 * more.
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
 * One step of IOMMU_init. The guest's kernel may continue it on another vCPU,
 * so a lock serialises the steps. If a call with other arguments follows one
 * that was never continued, or memory runs out, everything is freed.
 */
static int init_step(struct domain *d, unsigned int max_ctx,
                     unsigned long pages, bool continued)
{
    static DEFINE_SPINLOCK(init_lock);
    struct domain_iommu *hd = dom_iommu(d);
    struct pv_iommu *pv;
    unsigned int i, memflags = 0;
    int rc = -ERESTART;

    spin_lock(&init_lock);

    pv = hd->pv_init;
    if ( hd->pv )
    {
        /* Another vCPU has continued it, too. */
        rc = continued ? 0 : -EACCES;
        goto out;
    }

    if ( !pv )
    {
        rc = -ENOMEM;
        pv = xvzalloc_flex_struct(struct pv_iommu, ctx, max_ctx + 1);
        if ( !pv )
            goto out;

        pv->d = d;
        spin_lock_init(&pv->lock);
        for ( i = 0; i < NR_BUCKETS; i++ )
            spin_lock_init(&pv->bucket[i].lock);
        INIT_PAGE_LIST_HEAD(&pv->pool);
        rwlock_init(&pv->nested_lock);
        INIT_LIST_HEAD(&pv->nested);
        pv->max_ctx = max_ctx;
        hd->pv_init = pv;
        rc = -ERESTART;
    }
    else if ( !pv->failed &&
              (pv->max_ctx != max_ctx || pv->nr_pages > pages) )
        pv->failed = -ERESTART;

#ifdef CONFIG_NUMA
    if ( hd->node != NUMA_NO_NODE )
        memflags = MEMF_node(hd->node);
#endif

    for ( i = 0; !pv->failed && i < 64; i++ )
    {
        struct page_info *pg;

        if ( pv->nr_pages == pages )
        {
            /* Publish it. */
            hd->pv_init = NULL;
            smp_wmb();
            write_atomic(&hd->pv, pv);
            rc = 0;
            goto out;
        }

        pg = alloc_domheap_page(NULL, memflags);
        if ( !pg )
        {
            pv->failed = -ENOMEM;
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
        rc = pv->failed;
        hd->pv_init = NULL;
        xvfree(pv);
    }

 out:
    spin_unlock(&init_lock);

    return rc;
}

/* Set up a domain for contexts. May return -ERESTART. */
int init_domain(struct domain *d, unsigned int max_ctx, unsigned long pages,
                bool continued)
{
    int rc;

    while ( (rc = init_step(d, max_ctx, pages, continued)) == -ERESTART )
    {
        continued = true;
        if ( hypercall_preempt_check() )
            break;
    }

    return rc;
}

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
            /* Devices that could not be moved may still walk its tables. */
            printk(XENLOG_ERR "%pd: IOMMU context %u leaked\n", d, no);
            continue;
        }

        ctx->dying = true;
        rc = ctx_teardown(ctx) ?: ctx_remove(ctx, 0);
        if ( rc )
            return rc;
    }

    while ( drain_pool(pv, 256) )
        if ( hypercall_preempt_check() )
            return -ERESTART;

    /* Leaked contexts refer to it, and to the domain. */
    if ( !pv->nr_ctx )
    {
        /* The grants that are still mapped end later. */
        if ( foreign_destroy(pv) )
            return -ERESTART;
    }
    else
        get_knownalive_domain(d);

    return 0;
}

/* Not earlier: others may have found the domain, and change its P2M. */
void pv_iommu_domain_free(struct domain *d)
{
    XVFREE(dom_iommu(d)->pv);
    XFREE(dom_iommu(d)->pv_faults);
}

void __hwdom_init pv_iommu_hwdom_init(struct domain *d)
{
    struct pci_dev *pdev;
    int rc;

    pcidevs_lock();

    /* There may be a late hardware domain. */
    if ( hwdom_block )
        hwdom_block->d = d;
    else if ( pv_hw.levels )
    {
        struct pv_iommu_ctx *ctx = ctx_create(d, NULL, 0, 0, NULL);

        if ( !IS_ERR(ctx) )
            hwdom_block = ctx;
        else
        {
            printk(XENLOG_WARNING "PV-IOMMU: not available: %ld\n",
                   PTR_ERR(ctx));
            pv_hw.levels = 0;
        }
    }

    if ( !opt_pv_iommu_no_dma )
    {
        pcidevs_unlock();
        return;
    }

    if ( !hwdom_block )
        panic("Cannot block DMA of %pd\n", d);

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
        else if ( ctx->nested )
            printk("  %u: tag %#x, %u devices, nested\n", no, ctx->domid,
                   ctx->nr_devs);
        else
            printk("  %u: tag %#x, %u devices, %lu frames, %lu tables, %u deferred%s\n",
                   no, ctx->domid, ctx->nr_devs, ctx->nr_frames,
                   ctx->nr_tables, ctx->def_tail - ctx->def_head,
                   ctx->dying ? ", dying" : "");

        ctx_put(ctx);
        process_pending_softirqs();
    }
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
