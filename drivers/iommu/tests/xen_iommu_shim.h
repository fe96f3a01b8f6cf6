/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Environment of the Xen PV-IOMMU driver in its KUnit suite
 *
 * The suite compiles a copy of the driver. This file replaces the driver's
 * environment by one that the tests control: hypercalls, detection of Xen,
 * memory allocation, initcalls, warnings, interrupts, and registration with the
 * IOMMU core. The driver itself is not changed.
 */
#ifndef _XEN_IOMMU_SHIM_H
#define _XEN_IOMMU_SHIM_H

/* Everything that the driver includes, before names are redefined below. */
#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/debugfs.h>
#include <linux/generic_pt/iommu.h>
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/interval_tree.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/msi.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/percpu.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#ifndef CONFIG_XEN
/* User-mode Linux would find x86's headers, which it cannot use. */
#define _ASM_X86_XEN_PAGE_H
#define _ASM_X86_XEN_HYPERCALL_H
#define _XEN_EVENTS_H
static inline unsigned long pfn_to_gfn(unsigned long pfn)
{
	return pfn;
}
#endif

#include <xen/events.h>
#include <xen/interface/memory.h>
#include <xen/interface/pv-iommu.h>
#include <xen/page.h>
#include <xen/xen.h>

#include <asm/xen/hypercall.h>

#include "xen_iommu_sim.h"

/**
 * struct xt_env - the driver's environment
 * @domain: Linux runs on Xen
 * @pv: as a PV domain
 * @initial: as dom0
 * @isolated_msi: interrupts are remapped
 * @ram_pages: memory size, in pages
 * @segment: PCI segment of all devices
 * @vmd: VMD that does DMA for the devices on @vmd_bus
 * @vmd_bus: bus in a segment that only Linux knows
 * @fail_at: allocation to fail, counted from 1; 0 for none
 * @allocs: allocations since @fail_at was set
 * @live: allocations that have not been freed
 * @bytes: size of these
 * @warnings: number of warnings and errors that the driver has logged
 * @infos: number of other lines
 * @register_ret: result of iommu_device_register()
 * @on_register: called by iommu_device_register()
 * @sysfs_ret: result of iommu_device_sysfs_add()
 * @virq_ret: result of bind_virq_to_irqhandler(), if negative
 * @sysfs: calls of iommu_device_sysfs_add() minus those of _remove()
 * @acs: ACS has been requested
 * @virq: handler of VIRQ_IOMMU
 * @virq_data: argument of @virq
 * @iommu: registered device
 * @ops: registered operations
 */
struct xt_env {
	bool domain;
	bool pv;
	bool initial;
	bool isolated_msi;
	unsigned long ram_pages;
	int segment;
	struct pci_dev *vmd;
	struct pci_bus *vmd_bus;

	unsigned int fail_at;
	unsigned int allocs;
	atomic_t live;
	atomic64_t bytes;
	atomic_t warnings;
	atomic_t infos;

	int register_ret;
	void (*on_register)(void);
	int sysfs_ret;
	int virq_ret;
	int sysfs;
	bool acs;
	irq_handler_t virq;
	void *virq_data;
	struct iommu_device *iommu;
	const struct iommu_ops *ops;
};

static struct xt_env xt_env;

/* An early_param(). */
struct xt_param {
	const char *name;
	int (*fn)(char *str);
};

static void xt_fail_alloc(unsigned int nth)
{
	xt_env.allocs = 0;
	xt_env.fail_at = nth;
}

static bool xt_alloc_fails(void)
{
	return xt_env.fail_at && ++xt_env.allocs == xt_env.fail_at;
}

static void *xt_kmalloc(size_t size, gfp_t gfp)
{
	void *p = xt_alloc_fails() ? NULL : kmalloc(size, gfp);

	if (p) {
		atomic_inc(&xt_env.live);
		atomic64_add(ksize(p), &xt_env.bytes);
	}
	return p;
}

static void xt_kfree(const void *p)
{
	if (!p)
		return;
	atomic_dec(&xt_env.live);
	atomic64_sub(ksize(p), &xt_env.bytes);
	kfree(p);
}

static unsigned long xt_get_page(gfp_t gfp)
{
	return xt_alloc_fails() ? 0 : get_zeroed_page(gfp);
}

static struct iommu_resv_region *
xt_alloc_resv_region(phys_addr_t start, size_t length, int prot,
		     enum iommu_resv_type type, gfp_t gfp)
{
	struct iommu_resv_region *region = xt_kmalloc(sizeof(*region), gfp);

	if (!region)
		return NULL;
	*region = (struct iommu_resv_region) {
		.start = start, .length = length, .prot = prot, .type = type,
	};
	INIT_LIST_HEAD(&region->list);
	return region;
}

static int xt_device_register(struct iommu_device *iommu,
			      const struct iommu_ops *ops, struct device *dev)
{
	xt_env.iommu = iommu;
	xt_env.ops = ops;
	if (xt_env.on_register)
		xt_env.on_register();
	if (xt_env.register_ret)
		xt_env.ops = NULL;
	return xt_env.register_ret;
}

static __printf(4, 5) int
xt_sysfs_add(struct iommu_device *iommu, struct device *parent,
	     const struct attribute_group **groups, const char *fmt, ...)
{
	if (xt_env.sysfs_ret)
		return xt_env.sysfs_ret;
	xt_env.sysfs++;
	return 0;
}

static void xt_sysfs_remove(struct iommu_device *iommu)
{
	xt_env.sysfs--;
}

static int xt_bind_virq(unsigned int virq, unsigned int cpu, irq_handler_t fn,
			unsigned long flags, const char *name, void *data)
{
	if (xt_env.virq_ret)
		return xt_env.virq_ret;
	xt_env.virq = fn;
	xt_env.virq_data = data;
	return 1;
}

static struct pci_dev *xt_real_dma_dev(struct pci_dev *pdev)
{
	return pdev->bus == xt_env.vmd_bus ? xt_env.vmd : pdev;
}

typedef int (*xt_alias_fn)(struct pci_dev *pdev, u16 alias, void *data);

static int xt_dma_aliases(struct pci_dev *pdev, xt_alias_fn fn, void *data)
{
	return pci_for_each_dma_alias(xt_real_dma_dev(pdev), fn, data);
}

static int xt_domain_nr(struct pci_bus *bus)
{
	return bus == xt_env.vmd_bus ? 0x10000 : xt_env.segment;
}

/* Format strings are still checked. */
#define xt_line(what, fmt, ...)						\
do {									\
	atomic_inc(&xt_env.what);					\
	no_printk(fmt, ##__VA_ARGS__);					\
} while (0)

#undef kmalloc_array
#undef kmalloc_flex
#undef kzalloc_obj
#undef kcalloc
#undef get_zeroed_page
#undef xen_domain
#undef xen_pv_domain
#undef xen_initial_domain
#undef pr_err
#undef pr_err_once
#undef pr_err_ratelimited
#undef pr_warn
#undef pr_warn_once
#undef pr_warn_ratelimited
#undef pr_info
#undef pci_warn
#undef pci_err
#undef pci_err_ratelimited
#undef pci_warn_ratelimited
#undef arch_initcall
#undef early_param
#undef rootfs_initcall
#undef __init
#undef pr_fmt

#define kzalloc_obj(p, ...) \
	((typeof(p) *)xt_kmalloc(sizeof(p), default_gfp(__VA_ARGS__) | __GFP_ZERO))
#define kmalloc_array(n, size, gfp)	xt_kmalloc(array_size(n, size), gfp)
#define kcalloc(n, size, gfp)	xt_kmalloc(array_size(n, size), (gfp) | __GFP_ZERO)
#define kmalloc_flex(p, member, n, gfp) \
	((typeof(p) *)xt_kmalloc(struct_size_t(typeof(p), member, n), gfp))
#define kfree(p)		xt_kfree(p)
#define get_zeroed_page(gfp)	xt_get_page(gfp)
#define iommu_alloc_resv_region	xt_alloc_resv_region

#define iommu_device_register	xt_device_register
#define iommu_device_sysfs_add	xt_sysfs_add
#define iommu_device_sysfs_remove xt_sysfs_remove
#define bind_virq_to_irqhandler	xt_bind_virq
#define pci_request_acs()	((void)(xt_env.acs = true))
#define dev_iommu_priv_set(dev, p)	((void)((dev)->iommu->priv = (p)))
#define pci_for_each_dma_alias	xt_dma_aliases
#define pci_real_dma_dev	xt_real_dma_dev
#define pci_domain_nr		xt_domain_nr
#define totalram_pages()	(xt_env.ram_pages)

#define xen_domain()		(xt_env.domain)
#define xen_pv_domain()		(xt_env.pv)
#define xen_initial_domain()	(xt_env.initial)
#define xen_iommu_isolate_msi()	((void)(xt_env.isolated_msi = true))

#define pr_info(fmt, ...)		xt_line(infos, fmt, ##__VA_ARGS__)
#define pr_err(fmt, ...)		xt_line(warnings, fmt, ##__VA_ARGS__)
#define pr_err_once(fmt, ...)		xt_line(warnings, fmt, ##__VA_ARGS__)
#define pr_err_ratelimited(fmt, ...)	xt_line(warnings, fmt, ##__VA_ARGS__)
#define pr_warn(fmt, ...)		xt_line(warnings, fmt, ##__VA_ARGS__)
#define pr_warn_once(fmt, ...)		xt_line(warnings, fmt, ##__VA_ARGS__)
#define pr_warn_ratelimited(fmt, ...)	xt_line(warnings, fmt, ##__VA_ARGS__)
#define pci_warn(pdev, fmt, ...)					\
do {									\
	(void)(pdev);							\
	xt_line(warnings, fmt, ##__VA_ARGS__);					\
} while (0)
#define pci_err			pci_warn
#define pci_warn_ratelimited	pci_warn
#define pci_err_ratelimited	pci_warn

#define early_param(str, parse) \
	static const struct xt_param xt_param = { .name = str, .fn = parse }
#define arch_initcall(fn)	static int (*const xt_early_init)(void) = fn
#define rootfs_initcall(fn)	static int (*const xt_late_init)(void) = fn
#define __init

/* Replaces the lowest layer of the driver. */
#define XEN_IOMMU_KUNIT

#define xen_iommu_op			sim_op
#define xen_iommu_call			sim_op_regs
#define xen_iommu_memory_op		sim_memory_op
#define xen_iommu_translated()		(!xt_env.pv)
#define xen_iommu_pfn_to_gfn		sim_pfn_to_gfn
#define xen_iommu_count_hypercalls()	((unsigned long)xen_iommu_sim->traps)

#include "../xen-iommu.c"

/* Stops the driver, which cannot do that itself. Returns the contexts lost. */
static unsigned int xt_shut_down(void)
{
	unsigned int lost;

	if (!xen_iommu)
		return 0;
	cancel_delayed_work_sync(&xen_iommu->faults);
	lost = xen_iommu->nr_lost;
	xen_iommu_teardown(xen_iommu);
	xen_iommu = NULL;
	return lost;
}

/* Allocations of the tests are not counted. */
#undef kfree
#undef get_zeroed_page
#undef pci_domain_nr

#endif /* _XEN_IOMMU_SHIM_H */
