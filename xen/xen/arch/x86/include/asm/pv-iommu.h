/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU contexts: what drivers/passthrough/x86/pv-iommu/ and the vendors'
 * code share. For everybody else there is xen/pv-iommu.h.
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
 * Layout of the page table entries of the IOMMU, and its limits. Tables of
 * both VT-d and AMD-Vi have 512 entries of 64 bits; what differs is in here,
 * so that there is one page table walker.
 */
struct pv_iommu_hw {
    /* Any of these set: the entry is present. */
    uint64_t present;
    uint64_t read, write;
    /* Set in entries that refer to a table, besides the level. */
    uint64_t table;
    /* The level of the table is stored from this bit on (64: it is not). */
    unsigned int level_shift;
    /*
     * Set in any leaf; for leaves above level 1: (pte & super_mask) == super.
     */
    uint64_t leaf, super, super_mask;
    /* Bits that the hardware ignores, also while the entry is not present. */
    uint64_t sw_write, sw_noref, sw_rsvd, sw_dead, sw_grant;

    /* Levels of the page tables of a context. */
    unsigned int levels;
    /* Tables of first entries down to this level must always be there. */
    unsigned int min_levels;
    /* Highest device frame number. */
    unsigned long max_dfn;
    /* Page sizes, in bytes. */
    unsigned long page_sizes;
    /* A new entry must be flushed for the hardware to see it. */
    bool flush_added;
    /* A device can only send the interrupts that were set up for it. */
    bool isolated_msi;
    /* Formats of tables that can be nested; without page sizes: it can't. */
    struct pv_iommu_nested_format nested[IOMMU_NESTED_FMT_x86_64_4 + 1];
};

#define PV_IOMMU_NR_DEFERRED 256

struct pv_iommu_ctx {
    /* All contexts, protected by pcidevs_lock. */
    struct list_head list;
    struct domain *d;
    /* Where tables come from; NULL for Xen's own context: from the heap. */
    struct pv_iommu *pv;
    uint16_t no;
    /*
     * Tag of this context in the IOMMUs; DOMID_INVALID for identity contexts.
     */
    domid_t domid;
    /* Of the page tables. */
    uint8_t levels;
    /* Uses the tables of the domain instead of its own. */
    bool identity;
    /* The domain's table, found by desc_gfn, goes before Xen's. */
    bool nested;
    /* Without the reserved regions; the domain maps those that it needs. */
    bool empty;
    /* Being freed. Set with both pcidevs_lock and pv_iommu.lock held. */
    bool dying;
    /* Calls in progress. Taken with pv_iommu.lock held, dropped without. */
    atomic_t users;
    /* Devices in this context, protected by pcidevs_lock. */
    unsigned int nr_devs;
    /* IOMMUs that devices of this context are, or were, behind. */
    unsigned long *iommu_bitmap;
    /* For nested contexts, the former protected by pv_iommu.nested_lock. */
    struct list_head nested_list;
    gfn_t desc_gfn;

    /* Protects all below, and the tables. */
    spinlock_t lock;
    struct page_info *root;
    /* Table of the lowest level that was used last, NULL if that is gone. */
    struct page_info *last;
    /* Tables without entries, still linked, for the next mapping. */
    struct page_list_head empties;
    /* Tables that were taken out of the tree; free after a flush of all. */
    struct page_list_head stale;
    /* Tables set aside for the split of each superpage. */
    struct page_list_head spare;
    unsigned long nr_tables, nr_frames;
    /* While it is freed: what is below this dfn is gone. */
    unsigned long zapped;
    /* Superpages that were split, in all and before the last flush of all. */
    unsigned int nr_splits, splits_flushed;

    /*
     * Ranges that were unmapped but not flushed. Indices are free running:
     * [head, flushed) can be released, [flushed, tail) needs a flush first,
     * and [sealed, tail) is what no flush has begun for.
     */
    unsigned int def_head, def_flushed, def_sealed, def_tail;
    struct {
        unsigned long dfn, nr;
    } deferred[PV_IOMMU_NR_DEFERRED];
};

/* pv_flush_nested(): tables were taken out, too. */
#define PV_IOMMU_NESTED_tables  (1U << 0)
/* pv_flush_nested(): the table of the domain's P2M has changed. */
#define PV_IOMMU_NESTED_host    (1U << 1)

/* Do a device's requests go, or did until now, through its domain's table? */
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
