/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: contexts whose page table is in the domain's memory.
 *
 * The hardware translates the addresses that this table contains, and those
 * that it leads to, by the IOMMU table of the domain's P2M. So Xen need not
 * look at it: whatever the domain writes there, devices cannot get past the
 * P2M. Xen only flushes, if the domain asks for it after changing its table,
 * and whenever its P2M changes.
 */

#include <xen/guest_access.h>
#include <xen/iommu.h>
#include <xen/nospec.h>

#include <asm/paging.h>

#include "private.h"

bool __read_mostly opt_nested = true;

/* Returns NULL if a domain cannot use tables of this format. */
const struct pv_iommu_nested_format *nested_format(const struct domain *d,
                                                   unsigned long fmt)
{
    const struct pv_iommu_nested_format *f;

    /* Without a P2M, nothing would restrict devices. */
    if ( !opt_nested || !paging_mode_translate(d) ||
         (is_hardware_domain(d) && iommu_hwdom_passthrough) ||
         fmt >= ARRAY_SIZE(pv_hw.nested) )
        return NULL;

    f = &pv_hw.nested[array_index_nospec(fmt, ARRAY_SIZE(pv_hw.nested))];

    return f->pgsize_mask ? f : NULL;
}

/* Get a page of the domain's own memory, if it may write to it. */
static struct page_info *get_own_page(struct domain *d, uint64_t gfn)
{
    struct page_info *pg;
    p2m_type_t t;

    if ( gfn >> (paddr_bits - PAGE_SHIFT) )
        return NULL;

    pg = get_page_from_gfn(d, gfn, &t, P2M_ALLOC);
    if ( pg && (t != p2m_ram_rw || page_get_owner(pg) != d) )
    {
        put_page(pg);
        pg = NULL;
    }

    return pg;
}

/*
 * Write the descriptor by which the hardware finds the table. The domain may
 * change it, but all it can change is where its table is.
 */
int nested_write_desc(struct domain *d, uint64_t desc_gfn,
                      uint64_t pgtable_gfn)
{
    struct page_info *desc = get_own_page(d, desc_gfn);
    struct page_info *table = get_own_page(d, pgtable_gfn);
    int rc = -EINVAL;

    if ( desc && table && get_page_type(desc, PGT_writable_page) )
    {
        uint64_t *p = __map_domain_page(desc);

        clear_page(p);
        write_atomic(p, iommu_call(&iommu_ops, pv_nested_desc,
                                   _gfn(pgtable_gfn)));
        unmap_domain_page(p);
        paging_mark_dirty(d, page_to_mfn(desc));
        put_page_type(desc);
        rc = 0;
    }

    if ( table )
        put_page(table);
    if ( desc )
        put_page(desc);

    return rc;
}

void nested_add(struct pv_iommu_ctx *ctx, gfn_t desc)
{
    ctx->nested = true;
    ctx->desc_gfn = desc;

    write_lock(&ctx->pv->nested_lock);
    list_add(&ctx->nested_list, &ctx->pv->nested);
    write_unlock(&ctx->pv->nested_lock);
}

/* The context has no devices. Its tag will be reused. */
void nested_remove(struct pv_iommu_ctx *ctx)
{
    write_lock(&ctx->pv->nested_lock);
    list_del(&ctx->nested_list);
    write_unlock(&ctx->pv->nested_lock);

    iommu_vcall(&iommu_ops, pv_flush_nested, ctx, _dfn(0), 0,
                PV_IOMMU_NESTED_host | PV_IOMMU_NESTED_tables);
}

void nested_flush(struct pv_iommu_ctx *ctx, unsigned long dfn,
                  unsigned long nr, bool tables)
{
    /* Flush everything if the range wraps around. */
    if ( dfn + nr < dfn )
        nr = 0;

    atomic_inc(&ctx->pv->nr_flushes);
    iommu_vcall(&iommu_ops, pv_flush_nested, ctx, _dfn(dfn), nr,
                tables ? PV_IOMMU_NESTED_tables : 0);
}

void pv_iommu_p2m_changed(const struct domain *d)
{
    struct pv_iommu *pv = ACCESS_ONCE(dom_iommu(d)->pv);
    struct pv_iommu_ctx *ctx;

    if ( !pv )
        return;

    read_lock(&pv->nested_lock);
    list_for_each_entry ( ctx, &pv->nested, nested_list )
        iommu_vcall(&iommu_ops, pv_flush_nested, ctx, _dfn(0), 0,
                    PV_IOMMU_NESTED_host | PV_IOMMU_NESTED_tables);
    read_unlock(&pv->nested_lock);
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
