/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef XEN__PV_IOMMU_H
#define XEN__PV_IOMMU_H

#include <xen/iommu.h>
#include <xen/mm.h>
#include <xen/pci.h>
#include <xen/sched.h>

#include <public/grant_table.h>

/* Hooks of PV-IOMMU, see docs/designs/pv-iommu.md. */

struct pv_iommu_ctx;

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
/*
 * Flush what the current domain, d, has unmapped without a flush, so that no frame
 * stays writable, or referenced, for that reason. Only if pv_iommu_in_use(d).
 */
void pv_iommu_release_unmapped(const struct domain *d);
/* Entries of the IOMMU table of d's P2M have changed, and were flushed. */
void pv_iommu_p2m_changed(const struct domain *d);
/* Free everything, for a domain that dies. May return -ERESTART. */
int pv_iommu_domain_destroy(struct domain *d);
/* What remains after that, with the domain itself. */
void pv_iommu_domain_free(struct domain *d);
/* The hardware domain's devices have been set up. */
void pv_iommu_hwdom_init(struct domain *d);
void pv_iommu_dump(const struct domain *d);
/* Report a fault to the domain that has the device; reason is the vendor's. */
void pv_iommu_fault(pci_sbdf_t sbdf, uint64_t addr, bool write,
                    unsigned int reason);
/* IOMMU_get_faults: the number of faults that were moved, or an error. */
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
