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

/* The context that a device of d belongs to, or NULL for the tables of d. */
struct pv_iommu_ctx *pv_iommu_pdev_ctx(const struct domain *d,
                                       const struct pci_dev *pdev);
/* The owner of a context's tag, or NULL if the tag is not a context's. */
struct domain *pv_iommu_domid_owner(domid_t domid);
/*
 * Move a device back to its domain's default context, before it goes away. One
 * that came from another domain's context returns to that.
 */
int pv_iommu_release_pdev(struct pci_dev *pdev);
/* A device has been removed from the IOMMUs. */
void pv_iommu_forget_pdev(struct pci_dev *pdev);
/*
 * Hooks for grants mapped by a domain with contexts (pv_iommu_in_use()).
 *
 * begin: called before the mapping exists. Returns 1 if end has to follow, or
 * an error.
 * mapped: called when the mapping exists.
 * end: called when the last part of the mapping is gone, including from TLBs.
 * flags are GNTMAP_*; neither device_map nor host_map: there was no mapping.
 * Returns true if contexts still need the grant. gnttab_end_mapping() will be
 * called when they no longer do.
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
 * Flush everything that d, the current domain, has unmapped without a flush,
 * and release the frames. The caller has checked pv_iommu_in_use(d).
 */
void pv_iommu_release_unmapped(const struct domain *d);
/* The IOMMU table of d's P2M has changed, and has been flushed. */
void pv_iommu_p2m_changed(const struct domain *d);
/* Free the contexts of a dying domain. May return -ERESTART. */
int pv_iommu_domain_destroy(struct domain *d);
/* Free the rest, when nobody can find the domain any more. */
void pv_iommu_domain_free(struct domain *d);
/* Called when the hardware domain's devices have been set up. */
void pv_iommu_hwdom_init(struct domain *d);
void pv_iommu_dump(const struct domain *d);
/* Report a fault to the owner of the device. The reason is vendor specific. */
void pv_iommu_fault(pci_sbdf_t sbdf, uint64_t addr, bool write,
                    unsigned int reason);
/* IOMMU_get_faults. Returns the number of faults copied, or an error. */
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
