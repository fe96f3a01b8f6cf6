/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: fault reports to the owner of the device (IOMMU_get_faults).
 *
 * A domain that has asked for reports has a small ring. An event is sent only
 * if the ring was empty, and faults that find it full are only counted, so a
 * storm of faults does not turn into a storm of events.
 */

#include <xen/event.h>
#include <xen/guest_access.h>
#include <xen/iommu.h>
#include <asm/pv-iommu.h>
#include <xen/sched.h>

#include <public/pv-iommu.h>

#define NR_FAULTS 64

struct pv_iommu_faults {
    /* Protects all below. Leaf lock; pcidevs_lock may be held around it. */
    spinlock_t lock;
    /* Free running indices. */
    unsigned int head, tail;
    /* Faults dropped since the last one that was added. */
    uint32_t lost;
    struct pv_iommu_fault ring[NR_FAULTS];
};

void pv_iommu_fault(pci_sbdf_t sbdf, uint64_t addr, bool write,
                    unsigned int reason)
{
    struct pv_iommu_faults *f = NULL;
    struct pci_dev *pdev;
    bool notify = false;

    /* The device stays with its domain, which cannot be freed. */
    pcidevs_lock();

    pdev = pci_get_real_pdev(sbdf);
    if ( pdev && pdev->domain )
        f = dom_iommu(pdev->domain)->pv_faults;

    if ( f )
    {
        const struct pv_iommu_ctx *ctx = pdev->pv_ctx;

        spin_lock(&f->lock);

        if ( f->tail - f->head < NR_FAULTS )
        {
            notify = f->tail == f->head;
            f->ring[f->tail++ % NR_FAULTS] = (struct pv_iommu_fault){
                .addr = addr,
                .dev = { .seg = sbdf.seg, .bus = sbdf.bus,
                         .devfn = sbdf.devfn },
                .ctx_no = ctx && ctx->d == pdev->domain ? ctx->no : 0,
                .flags = write ? IOMMU_FAULT_write : 0,
                .reason = reason,
                .lost = f->lost,
            };
            f->lost = 0;
        }
        else if ( f->lost != UINT32_MAX )
            f->lost++;

        spin_unlock(&f->lock);
    }

    if ( notify )
        send_guest_global_virq(pdev->domain, VIRQ_IOMMU);

    pcidevs_unlock();
}

static int turn_on(struct domain *d)
{
    struct domain_iommu *hd = dom_iommu(d);
    struct pv_iommu_faults *f = xzalloc(struct pv_iommu_faults);

    if ( !f )
        return -ENOMEM;

    spin_lock_init(&f->lock);

    pcidevs_lock();
    if ( !hd->pv_faults )
    {
        hd->pv_faults = f;
        f = NULL;
    }
    pcidevs_unlock();

    /* Not NULL if another vCPU was faster. */
    xfree(f);

    return 0;
}

long pv_iommu_get_faults(struct domain *d, unsigned long buf, unsigned long nr)
{
    XEN_GUEST_HANDLE_PARAM(pv_iommu_fault_t) to =
        guest_handle_from_ptr((void *)buf, pv_iommu_fault_t);
    struct pv_iommu_faults *f = ACCESS_ONCE(dom_iommu(d)->pv_faults);
    unsigned int i;

    if ( !f )
        return turn_on(d);

    /* At most one ring full: a storm must not keep us here. */
    nr = min(nr, NR_FAULTS + 0UL);
    if ( !guest_handle_okay(to, nr) )
        return -EFAULT;

    for ( i = 0; i < nr; i++ )
    {
        struct pv_iommu_fault fault;

        spin_lock(&f->lock);
        if ( f->head == f->tail )
        {
            spin_unlock(&f->lock);
            break;
        }
        fault = f->ring[f->head++ % NR_FAULTS];
        spin_unlock(&f->lock);

        if ( __copy_to_guest_offset(to, i, &fault, 1) )
        {
            spin_lock(&f->lock);
            f->lost += 1 + fault.lost;
            spin_unlock(&f->lock);
            return i ?: -EFAULT;
        }
    }

    return i;
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
