/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef XEN__PV_IOMMU_H
#define XEN__PV_IOMMU_H

#include <xen/iommu.h>
#include <xen/list.h>
#include <xen/mm.h>
#include <xen/pci.h>
#include <xen/rbtree.h>
#include <xen/sched.h>
#include <xen/spinlock.h>
#include <xen/types.h>

#include <public/grant_table.h>

/*
 * Layout of the page table entries of the IOMMU, and its limits. Tables of both
 * VT-d and AMD-Vi have 512 entries of 64 bits; what differs is in here, so that
 * there is one page table walker.
 */
struct pv_iommu_hw {
    /* Any of these set: the entry is present. */
    uint64_t present;
    uint64_t read, write;
    /* Set in entries that refer to a table, besides the level. */
    uint64_t table;
    /* The level of the table is stored from this bit on (64: it is not). */
    unsigned int level_shift;
    /* Set in any leaf; for leaves above level 1: (pte & super_mask) == super. */
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
};

#define PV_IOMMU_NR_DEFERRED 256
#define PV_IOMMU_NR_BUCKETS 64

struct pv_iommu_ctx {
    /* All contexts, protected by pcidevs_lock. */
    struct list_head list;
    struct domain *d;
    /* Where tables come from; NULL for Xen's own context: from the heap. */
    struct pv_iommu *pv;
    uint16_t no;
    /* Tag of this context in the IOMMUs; DOMID_INVALID for identity contexts. */
    domid_t domid;
    /* Of the page tables. */
    uint8_t levels;
    /* Uses the tables of the domain instead of its own. */
    bool identity;
    /* For CONFIG_PV_IOMMU_QUIRKS: freeing was refused. */
    bool quirk_lost;
    /* Being freed. Set with both pcidevs_lock and pv_iommu.lock held. */
    bool dying;
    /* Calls in progress, protected by pv_iommu.lock. */
    unsigned int users;
    /* Devices in this context, protected by pcidevs_lock. */
    unsigned int nr_devs;
    /* IOMMUs that devices of this context are, or were, behind. */
    unsigned long *iommu_bitmap;

    /* Protects all below, and the tables. */
    spinlock_t lock;
    struct page_info *root;
    /* Table of the lowest level that was used last, NULL if that is gone. */
    struct page_info *last;
    /* Tables without entries, kept for the next mapping. */
    struct page_list_head empty;
    /* Tables that were taken out of the tree; free after a flush of all. */
    struct page_list_head stale;
    /* Tables set aside for the split of each superpage. */
    struct page_list_head spare;
    unsigned int nr_empty, nr_stale, nr_spare;
    unsigned long nr_tables, nr_frames;
    /* Superpages that were split, in all and before the last flush of all. */
    unsigned int nr_splits, splits_flushed;

    /*
     * Ranges that were unmapped but not flushed. Indices are free running:
     * [head, flushed) can be released, [flushed, tail) needs a flush first, and
     * [sealed, tail) is what no flush has begun for.
     */
    unsigned int def_head, def_flushed, def_sealed, def_tail;
    struct {
        unsigned long dfn, nr;
    } deferred[PV_IOMMU_NR_DEFERRED];
};

struct pv_iommu {
    /* Protects all below. Innermost lock. */
    spinlock_t lock;
    /* IOMMU_init did not get enough memory, and gives back what it got. */
    bool failed;
    unsigned int max_ctx, nr_ctx;
    unsigned long nr_pages, nr_free;
    struct page_list_head pool;
    /* For CONFIG_PV_IOMMU_QUIRKS: pages that are not to be used again. */
    struct page_list_head quirk_leaked;
    struct domain *d;
    /* Flushes of IOTLBs, for the debug key. */
    atomic_t nr_flushes;
    /* Frames of other domains. */
    struct pv_iommu_bucket {
        spinlock_t lock;
        struct rb_root frames;
    } bucket[PV_IOMMU_NR_BUCKETS];
    struct pv_iommu_ctx *ctx[]; /* [max_ctx + 1], [0] is unused */
};

#ifdef CONFIG_PV_IOMMU

/* The context to set a device of d up for, NULL for the tables of d. */
struct pv_iommu_ctx *pv_iommu_pdev_ctx(const struct domain *d,
                                       const struct pci_dev *pdev);
/* The owner of an IOMMU tag, NULL if it is not a context's. */
struct domain *pv_iommu_domid_owner(domid_t domid);
/* Move a device back to its domain's default context, ahead of others. */
int pv_iommu_release_pdev(struct pci_dev *pdev);
/*
 * A device is about to go to another domain. It comes back to the context that it
 * is in now, or to one that blocks its DMA if that has been freed meanwhile.
 */
int pv_iommu_lend_pdev(const struct pci_dev *pdev);
/* The IOMMUs know nothing of a device anymore. */
void pv_iommu_forget_pdev(struct pci_dev *pdev);
/*
 * Grants that a domain maps, if it has contexts (pv_iommu_in_use()).
 *
 * begin: before the mapping exists.  1: end has to follow, or an error.
 * mapped: after that.
 * end: the last part of the mapping (flags: GNTMAP_*; without device_map and
 * host_map there never was a mapping) is gone, from TLBs, too.  True if contexts still
 * need the grant: gnttab_end_mapping() is called later, once they don't.
 */
int pv_iommu_begin_grant(struct domain *ld, mfn_t mfn, bool readonly);
void pv_iommu_grant_mapped(struct domain *ld, mfn_t mfn);
bool pv_iommu_end_grant(struct domain *ld, struct domain *rd, grant_ref_t ref,
                        mfn_t mfn, uint16_t flags, bool begun);
static always_inline bool pv_iommu_in_use(const struct domain *d)
{
    return unlikely(ACCESS_ONCE(dom_iommu(d)->pv));
}
/* Free everything, for a domain that dies. May return -ERESTART. */
int pv_iommu_domain_destroy(struct domain *d);
/* The hardware domain's devices have been set up. */
void pv_iommu_hwdom_init(struct domain *d);
void pv_iommu_dump(const struct domain *d);
/* Report a fault to the domain that has the device; reason is the vendor's. */
void pv_iommu_fault(pci_sbdf_t sbdf, uint64_t addr, bool write,
                    unsigned int reason);
/* IOMMU_get_faults: the number of faults that were moved, or an error. */
long pv_iommu_get_faults(struct domain *d, unsigned long buf, unsigned long nr);
void pv_iommu_faults_free(struct domain *d);
extern bool opt_pv_iommu_no_dma;

#else

static inline struct pv_iommu_ctx *pv_iommu_pdev_ctx(
    const struct domain *d, const struct pci_dev *pdev)
{
    return NULL;
}

static inline struct domain *pv_iommu_domid_owner(domid_t domid)
{
    return NULL;
}

static inline int pv_iommu_release_pdev(struct pci_dev *pdev)
{
    return 0;
}

static inline int pv_iommu_lend_pdev(const struct pci_dev *pdev)
{
    return 0;
}

static inline void pv_iommu_forget_pdev(struct pci_dev *pdev) {}

static inline int pv_iommu_begin_grant(struct domain *ld, mfn_t mfn,
                                       bool readonly)
{
    return 0;
}

static inline void pv_iommu_grant_mapped(struct domain *ld, mfn_t mfn) {}

static inline bool pv_iommu_end_grant(
    struct domain *ld, struct domain *rd, grant_ref_t ref, mfn_t mfn,
    uint16_t flags, bool begun)
{
    return false;
}

static inline bool pv_iommu_in_use(const struct domain *d)
{
    return false;
}

static inline int pv_iommu_domain_destroy(struct domain *d)
{
    return 0;
}

static inline void pv_iommu_hwdom_init(struct domain *d) {}
static inline void pv_iommu_dump(const struct domain *d) {}
static inline void pv_iommu_fault(pci_sbdf_t sbdf, uint64_t addr, bool write,
                                  unsigned int reason) {}
static inline void pv_iommu_faults_free(struct domain *d) {}

#endif /* CONFIG_PV_IOMMU */

#endif /* XEN__PV_IOMMU_H */

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
