/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: shared by drivers/passthrough/x86/pv-iommu/ and the vendors' code.
 * Everything else uses xen/pv-iommu.h.
 */
#ifndef ASM_X86__PV_IOMMU_H
#define ASM_X86__PV_IOMMU_H

#include <xen/atomic.h>
#include <xen/list.h>
#include <xen/mm.h>
#include <xen/pv-iommu.h>
#include <xen/spinlock.h>

#include <public/physdev.h>
#include <public/pv-iommu.h>

/*
 * Page table format and limits of the host's IOMMUs. Tables of both VT-d and
 * AMD-Vi have 512 entries of 64 bits, so they share a walker; this describes
 * what differs.
 */
struct pv_iommu_hw {
    /* An entry with any of these bits is present. */
    uint64_t present;
    uint64_t read, write;
    /* Bits of an entry that refers to a table, besides the level. */
    uint64_t table;
    /* Where such an entry holds the table's level, or 64. */
    unsigned int level_shift;
    /* Bits of all leaves; superpages have (pte & super_mask) == super. */
    uint64_t leaf, super, super_mask;
    /* Bits that the hardware ignores, whether the entry is present or not. */
    uint64_t sw_write, sw_noref, sw_rsvd, sw_dead, sw_grant;

    /* Levels of the page tables of a context. */
    unsigned int levels;
    /* The lowest level that an IOMMU may start from, at the first table. */
    unsigned int min_levels;
    /* Highest device frame number. */
    unsigned long max_dfn;
    /* Page sizes, in bytes. */
    unsigned long page_sizes;
    /* The hardware may not see new entries before a flush. */
    bool flush_added;
    /* Devices can only send interrupts that were set up for them. */
    bool isolated_msi;
    /* Formats of nested tables; those without page sizes are not supported. */
    struct pv_iommu_nested_format nested[IOMMU_NESTED_FMT_x86_64_4 + 1];
};

#define PV_IOMMU_NR_DEFERRED 256

struct pv_iommu_ctx {
    /* All contexts, protected by pcidevs_lock. */
    struct list_head list;
    struct domain *d;
    /* Has the pool of tables; NULL for Xen's own contexts. */
    struct pv_iommu *pv;
    uint16_t no;
    /* Tag in the IOMMUs, DOMID_INVALID for identity contexts. */
    domid_t domid;
    /* Levels of the page tables. */
    uint8_t levels;
    /* Uses the domain's default tables instead of its own. */
    bool identity;
    /* Translates by a table in the domain's memory, then by the P2M's. */
    bool nested;
    /* Created without reserved regions; the domain may map them. */
    bool empty;
    /* Being freed. Set with pcidevs_lock and pv->lock held. */
    bool dying;
    /* Calls in progress. Incremented with pv->lock held. */
    atomic_t users;
    /* Devices in this context, protected by pcidevs_lock. */
    unsigned int nr_devs;
    /* IOMMUs that have, or had, devices of this context behind them. */
    unsigned long *iommu_bitmap;
    /* Nested contexts only; nested_list is protected by pv->nested_lock. */
    struct list_head nested_list;
    gfn_t desc_gfn;

    /* Protects the tables and all fields below. */
    spinlock_t lock;
    struct page_info *root;
    /* The level 1 table used last, or NULL. */
    struct page_info *last;
    /* Tables without entries, which are still linked. */
    struct page_list_head empties;
    /* Tables unlinked, to be freed after a full flush. */
    struct page_list_head stale;
    /* A table for each superpage, so that splitting it cannot fail. */
    struct page_list_head spare;
    unsigned long nr_tables, nr_frames;
    /* While dying: everything below this dfn has been released. */
    unsigned long zapped;
    /* Superpages split so far, and before the last full flush. */
    unsigned int nr_splits, splits_flushed;

    /*
     * A ring of ranges unmapped without a flush. Indices are free running:
     * [head, flushed) can be released, [flushed, tail) needs a flush first,
     * and for [sealed, tail) no flush has started.
     */
    unsigned int def_head, def_flushed, def_sealed, def_tail;
    struct {
        unsigned long dfn, nr;
    } deferred[PV_IOMMU_NR_DEFERRED];
};

/* pv_flush_nested(): the domain has unlinked tables. */
#define PV_IOMMU_NESTED_tables  (1U << 0)
/* pv_flush_nested(): the table of the domain's P2M has changed. */
#define PV_IOMMU_NESTED_host    (1U << 1)

/* Does a nested table translate a device's requests, or did it until now? */
static inline bool pv_iommu_is_nested(const struct pci_dev *pdev)
{
#ifdef CONFIG_PV_IOMMU
    const struct pv_iommu_ctx *ctx = ACCESS_ONCE(pdev->pv_ctx);

    return (ctx && ctx->nested) || pdev->pv_moving;
#else
    return false;
#endif
}

#endif /* ASM_X86__PV_IOMMU_H */

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
