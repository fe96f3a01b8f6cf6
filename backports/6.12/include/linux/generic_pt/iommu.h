/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Linux 6.12 has no generic_pt. These are the names that the Xen PV-IOMMU driver
 * refers to but does not use there (CONFIG_IOMMU_PT_X86_64 is not set).
 */
#ifndef __GENERIC_PT_IOMMU_H
#define __GENERIC_PT_IOMMU_H

#include <linux/iommu.h>

#define PT_FEAT_FLUSH_RANGE 0

struct pt_iommu {
	struct iommu_domain domain;
	int nid;
};

struct pt_iommu_x86_64 {
	struct pt_iommu iommu;
};

struct pt_iommu_x86_64_cfg {
	struct {
		unsigned int features;
		u8 hw_max_vasz_lg2;
		u8 hw_max_oasz_lg2;
	} common;
	unsigned int top_level;
};

struct pt_iommu_x86_64_hw_info {
	u64 gcr3_pt;
};

#define IOMMU_PT_DOMAIN_OPS(fmt) .iova_to_phys = pt_iommu_##fmt##_iova_to_phys
#define PT_IOMMU_CHECK_DOMAIN(s, pt_iommu_memb, domain_memb) \
	static_assert(offsetof(s, pt_iommu_memb.domain) == offsetof(s, domain_memb))

static inline phys_addr_t pt_iommu_x86_64_iova_to_phys(struct iommu_domain *domain,
						       dma_addr_t iova)
{
	return 0;
}

static inline int pt_iommu_x86_64_init(struct pt_iommu_x86_64 *table,
				       const struct pt_iommu_x86_64_cfg *cfg,
				       gfp_t gfp)
{
	return -EOPNOTSUPP;
}

static inline void pt_iommu_x86_64_hw_info(struct pt_iommu_x86_64 *table,
					   struct pt_iommu_x86_64_hw_info *info)
{
}

static inline void pt_iommu_deinit(struct pt_iommu *table)
{
}

#define iommu_pages_list_empty(list) list_empty(list)

#endif /* __GENERIC_PT_IOMMU_H */
