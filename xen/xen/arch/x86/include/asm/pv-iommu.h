/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU contexts: shared by drivers/passthrough/x86/pv-iommu/ and the
 * vendors' code. All other code uses xen/pv-iommu.h.
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
 * Layout of the IOMMU's page table entries, and its limits. VT-d and AMD-Vi
 * tables both have 512 entries of 64 bits. This structure describes how they
 * differ, so that a single page table walker serves both.
 */
struct pv_iommu_hw {
    /* An entry with any of these bits is present. */
    uint64_t present;
    uint64_t read, write;
    /* Bits of an entry that refers to a table, besides the level. */
    uint64_t table;
    /* First bit of the table's level; 64 if the entry does not have it. */
    unsigned int level_shift;
    /*
     * leaf is set in any leaf. Above level 1, a leaf has
     * (pte & super_mask) == super.
     */
    uint64_t leaf, super, super_mask;
    /* Bits that the hardware ignores, even if the entry is not present. */
    uint64_t sw_write, sw_noref, sw_rsvd, sw_dead, sw_grant;

    /* Levels of the page tables of a context. */
    unsigned int levels;
    /* Tables of the first entries, down to this level, must always exist. */
    unsigned int min_levels;
    /* Highest device frame number. */
    unsigned long max_dfn;
    /* Page sizes, in bytes. */
    unsigned long page_sizes;
    /* The hardware sees a new entry only after a flush. */
    bool flush_added;
    /* A device can only send interrupts that were set up for it. */
    bool isolated_msi;
    /* Formats of nested tables; one without page sizes is not supported. */
    struct pv_iommu_nested_format nested[IOMMU_NESTED_FMT_x86_64_4 + 1];
};

#define PV_IOMMU_NR_DEFERRED 256

struct pv_iommu_ctx {
    /* All contexts, protected by pcidevs_lock. */
    struct list_head list;
    struct domain *d;
    /* Pool for tables; NULL for Xen's own context, which uses the heap. */
    struct pv_iommu *pv;
    uint16_t no;
    /* IOMMU tag of this context; DOMID_INVALID for identity contexts. */
    domid_t domid;
    /* Levels of the page tables. */
    uint8_t levels;
    /* Uses the domain's tables instead of its own. */
    bool identity;
    /* Nests the domain's table, found through desc_gfn, over Xen's. */
    bool nested;
    /* Has no reserved regions; the domain maps those that it needs. */
    bool empty;
    /* Being freed. Set with both pcidevs_lock and pv_iommu.lock held. */
    bool dying;
    /* Calls in progress. Taken with pv_iommu.lock held, dropped without. */
    atomic_t users;
    /* Devices in this context, protected by pcidevs_lock. */
    unsigned int nr_devs;
    /* IOMMUs that devices of this context are or were behind. */
    unsigned long *iommu_bitmap;
    /* Nested contexts only; the list is protected by pv_iommu.nested_lock. */
    struct list_head nested_list;
    gfn_t desc_gfn;

    /* Protects everything below, and the tables. */
    spinlock_t lock;
    struct page_info *root;
    /* The level 1 table that was used last, or NULL. */
    struct page_info *last;
    /* Empty tables, still linked for the next mapping. */
    struct page_list_head empties;
    /* Tables removed from the tree, free after a full flush. */
    struct page_list_head stale;
    /* Reserved tables, enough to split all superpages. */
    struct page_list_head spare;
    unsigned long nr_tables, nr_frames;
    /* Superpages split in total, and before the last full flush. */
    unsigned int nr_splits, splits_flushed;

    /*
     * Ranges that were unmapped but not flushed. Indices are free running.
     * [head, flushed) can be released; [flushed, tail) must be flushed first;
     * no flush has begun for [sealed, tail).
     */
    unsigned int def_head, def_flushed, def_sealed, def_tail;
    struct {
        unsigned long dfn, nr;
    } deferred[PV_IOMMU_NR_DEFERRED];
};

/* pv_flush_nested(): tables were removed, too. */
#define PV_IOMMU_NESTED_tables  (1U << 0)
/* pv_flush_nested(): the table of the domain's P2M has changed. */
#define PV_IOMMU_NESTED_host    (1U << 1)

/* True if a device's DMA goes, or went until now, through a nested table. */
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
