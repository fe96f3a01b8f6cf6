/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef XEN__PV_IOMMU_H
#define XEN__PV_IOMMU_H

#include <xen/iommu.h>
#include <xen/mm.h>
#include <xen/pci.h>
#include <xen/sched.h>

#include <public/grant_table.h>

/* PV-IOMMU's hooks in the rest of Xen. See docs/designs/pv-iommu.md. */

struct pv_iommu_ctx;

#ifdef CONFIG_PV_IOMMU

/* The context to set up a device of d for; NULL for the tables of d. */
struct pv_iommu_ctx *pv_iommu_pdev_ctx(const struct domain *d,
                                       const struct pci_dev *pdev);
/* The domain that owns the context with this IOMMU tag, or NULL. */
struct domain *pv_iommu_domid_owner(domid_t domid);
/* Move a device back to its domain's default context. */
int pv_iommu_release_pdev(struct pci_dev *pdev);
/*
 * A device is about to be assigned to another domain. It will return to the
 * context that it is in now, or to one that blocks DMA if that has been freed.
 */
int pv_iommu_lend_pdev(const struct pci_dev *pdev);
/* A device has been removed from the IOMMUs. */
void pv_iommu_forget_pdev(struct pci_dev *pdev);
/*
 * A domain with contexts (pv_iommu_in_use()) maps a grant.
 *
 * begin: called before the mapping exists. Returns 1 if end must be called, 0
 * if not, or an error.
 * mapped: called once the mapping exists.
 * end: called when the last part of the mapping is gone, also from TLBs (flags:
 * GNTMAP_*; without device_map and host_map there never was a mapping). Returns
 * true if contexts still need the grant: gnttab_end_mapping() is then called
 * once they no longer do.
 */
int pv_iommu_begin_grant(struct domain *ld, mfn_t mfn, bool readonly);
void pv_iommu_grant_mapped(struct domain *ld, mfn_t mfn);
bool pv_iommu_end_grant(struct domain *ld, struct domain *rd, grant_ref_t ref,
                        mfn_t mfn, uint16_t flags, bool begun);
static always_inline bool pv_iommu_in_use(const struct domain *d)
{
    return unlikely(ACCESS_ONCE(dom_iommu(d)->pv));
}
/*
 * Flush what d, the current domain, has unmapped without a flush, so that this
 * no longer keeps frames writable. Requires pv_iommu_in_use(d).
 */
void pv_iommu_release_unmapped(const struct domain *d);
/* Entries in the IOMMU table of d's P2M have changed and have been flushed. */
void pv_iommu_p2m_changed(const struct domain *d);
/* Free the contexts of a dying domain. May return -ERESTART. */
int pv_iommu_domain_destroy(struct domain *d);
/* Free what remains, together with the domain itself. */
void pv_iommu_domain_free(struct domain *d);
/* The hardware domain's devices have been set up. */
void pv_iommu_hwdom_init(struct domain *d);
void pv_iommu_dump(const struct domain *d);
/* Report a fault to the device's owner; reason is vendor-specific. */
void pv_iommu_fault(pci_sbdf_t sbdf, uint64_t addr, bool write,
                    unsigned int reason);
/* IOMMU_get_faults: returns the number of faults moved to buf, or an error. */
long pv_iommu_get_faults(struct domain *d, unsigned long buf, unsigned long nr);
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

static inline void pv_iommu_release_unmapped(const struct domain *d) {}
static inline void pv_iommu_p2m_changed(const struct domain *d) {}

static inline int pv_iommu_domain_destroy(struct domain *d)
{
    return 0;
}

static inline void pv_iommu_domain_free(struct domain *d) {}
static inline void pv_iommu_hwdom_init(struct domain *d) {}
static inline void pv_iommu_dump(const struct domain *d) {}
static inline void pv_iommu_fault(pci_sbdf_t sbdf, uint64_t addr, bool write,
                                  unsigned int reason) {}

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
