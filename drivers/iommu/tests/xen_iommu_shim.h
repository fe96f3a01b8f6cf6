/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What stands around the Xen PV-IOMMU driver in its KUnit suite
 *
 * The suite compiles a copy of the driver. Here its surroundings are replaced
 * by ones that the tests control: whether there is a Xen, memory allocation,
 * initcalls, warnings, the registration with the IOMMU core. The driver itself
 * is not changed. Hypercalls go through struct xen_iommu_hyp as ever.
 */
#ifndef _XEN_IOMMU_SHIM_H
#define _XEN_IOMMU_SHIM_H

/* Everything that the driver includes: what follows must not change these. */
#include <linux/bitmap.h>
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/kexec.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/msi.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/percpu.h>
#include <linux/rbtree.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/syscore_ops.h>
#include <linux/tracepoint.h>

#ifndef CONFIG_XEN
/* User-mode Linux finds x86's headers, which are not for it. */
#define _ASM_X86_XEN_PAGE_H
#define _ASM_X86_XEN_HYPERCALL_H
static inline unsigned long pfn_to_gfn(unsigned long pfn)
{
	return pfn;
}
#endif

#include <xen/interface/memory.h>
#include <xen/interface/pv-iommu.h>
#include <xen/page.h>
#include <xen/xen.h>

#include <asm/xen/hypercall.h>

#include "xen_iommu_sim.h"

/**
 * struct xt_env - the surroundings
 * @domain: runs on Xen
 * @pv: as a PV domain
 * @initial: as dom0
 * @kexec: is about to start another kernel
 * @isolated_msi: interrupts are remapped
 * @ram_pages: memory of the machine
 * @segment: PCI segment of all devices
 * @fail_at: allocation to fail, counted from 1; 0 for none
 * @allocs: allocations since that was set
 * @live: allocations that have not been freed
 * @bytes: their size
 * @warnings: lines that the driver has logged as warnings or errors
 * @warns: WARN() splats that it would have made
 * @register_ret: result of iommu_device_register()
 * @sysfs_ret: result of iommu_device_sysfs_add()
 * @registered: calls of iommu_device_register() that succeeded
 * @sysfs: calls of iommu_device_sysfs_add() without those of _remove()
 * @groups: attributes that were passed to that
 * @acs: ACS has been requested
 * @syscore: what has been registered
 * @nb: what has been registered
 * @ops: what has been registered
 * @stats: data of the file in debugfs
 * @stats_fops: operations of that
 * @dev: all devices
 * @nr_devs: number of these
 */
struct xt_env {
	bool domain;
	bool pv;
	bool initial;
	bool kexec;
	bool isolated_msi;
	unsigned long ram_pages;
	int segment;

	unsigned int fail_at;
	unsigned int allocs;
	atomic_t live;
	atomic64_t bytes;

	atomic_t warnings;
	atomic_t warns;

	int register_ret;
	int sysfs_ret;
	int registered;
	int sysfs;
	const struct attribute_group **groups;
	bool acs;
	struct syscore *syscore;
	struct notifier_block *nb;
	const struct iommu_ops *ops;
	void *stats;
	const struct file_operations *stats_fops;
	struct device **dev;
	unsigned int nr_devs;
};

static struct xt_env xt_env;

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

static void __percpu *xt_alloc_percpu(size_t size, size_t align)
{
	void __percpu *p = xt_alloc_fails() ? NULL : __alloc_percpu(size, align);

	if (p)
		atomic_inc(&xt_env.live);
	return p;
}

static void xt_free_percpu(void __percpu *p)
{
	if (p)
		atomic_dec(&xt_env.live);
	free_percpu(p);
}

static unsigned long *xt_bitmap_zalloc(unsigned int nbits, gfp_t gfp)
{
	return xt_kmalloc(BITS_TO_LONGS(nbits) * sizeof(long), gfp | __GFP_ZERO);
}

static struct iommu_resv_region *
xt_alloc_resv_region(phys_addr_t start, size_t length, int prot,
		     enum iommu_resv_type type, gfp_t gfp)
{
	return xt_alloc_fails() ? NULL :
	       iommu_alloc_resv_region(start, length, prot, type, gfp);
}

static int xt_device_register(struct iommu_device *iommu,
			      const struct iommu_ops *ops, struct device *dev)
{
	if (xt_env.register_ret)
		return xt_env.register_ret;
	xt_env.registered++;
	xt_env.ops = ops;
	return 0;
}

static __printf(4, 5) int
xt_sysfs_add(struct iommu_device *iommu, struct device *parent,
	     const struct attribute_group **groups, const char *fmt, ...)
{
	if (xt_env.sysfs_ret)
		return xt_env.sysfs_ret;
	xt_env.groups = groups;
	xt_env.sysfs++;
	return 0;
}

static void xt_sysfs_remove(struct iommu_device *iommu)
{
	xt_env.sysfs--;
}

static struct dentry *xt_debugfs_dir(const char *name, struct dentry *parent)
{
	return NULL;
}

static void xt_debugfs_file(const char *name, umode_t mode,
			    struct dentry *parent, void *data,
			    const struct file_operations *fops)
{
	xt_env.stats = data;
	xt_env.stats_fops = fops;
}

typedef int (*xt_dev_fn)(struct device *dev, void *data);

static int xt_walk_devs(const struct bus_type *bus, struct device *start,
			void *data, xt_dev_fn fn)
{
	for (unsigned int i = 0; i < xt_env.nr_devs; i++)
		fn(xt_env.dev[i], data);
	return 0;
}

static int xt_register_notifier(const struct bus_type *bus,
				struct notifier_block *nb)
{
	xt_env.nb = nb;
	return 0;
}

static int xt_domain_nr(struct pci_bus *bus)
{
	return xt_env.segment;
}

/* Format strings are still checked. */
#define xt_warning(fmt, ...)						\
do {									\
	atomic_inc(&xt_env.warnings);					\
	no_printk(fmt, ##__VA_ARGS__);					\
} while (0)

/* The driver's events exist once, if the driver is in this kernel, too. */
#define XEN_IOMMU_NO_TRACEPOINTS
#if !IS_ENABLED(CONFIG_XEN_IOMMU)
#define CREATE_TRACE_POINTS
#endif

#undef kmalloc_obj
#undef kmalloc_flex
#undef kzalloc_obj
#undef kcalloc
#undef kcalloc_node
#undef alloc_percpu
#undef kexec_in_progress
#undef xen_domain
#undef xen_pv_domain
#undef xen_initial_domain
#undef pr_err
#undef pr_err_once
#undef pr_warn
#undef pr_warn_ratelimited
#undef pr_info
#undef pci_warn
#undef pci_err
#undef WARN_RATELIMIT
#undef arch_initcall
#undef rootfs_initcall
#undef __init
#undef pr_fmt
/* With statistics, although not in debugfs: the real ones may be there. */
#undef CONFIG_IOMMU_DEBUGFS
#undef iommu_debugfs_dir

#define kmalloc_obj(p, ...) \
	((typeof(p) *)xt_kmalloc(sizeof(p), default_gfp(__VA_ARGS__)))
#define kmalloc_flex(p, fam, n, ...)						\
	((typeof(p) *)xt_kmalloc(struct_size_t(typeof(p), fam, n),		\
				 default_gfp(__VA_ARGS__)))
#define kzalloc_obj(p, ...) \
	((typeof(p) *)xt_kmalloc(sizeof(p), default_gfp(__VA_ARGS__) | __GFP_ZERO))
#define kcalloc(n, size, gfp)	xt_kmalloc(array_size(n, size), (gfp) | __GFP_ZERO)
#define kcalloc_node(n, size, gfp, node) \
	((void)(node), xt_kmalloc(array_size(n, size), (gfp) | __GFP_ZERO))
#define kfree(p)		xt_kfree(p)
#define alloc_percpu(type) \
	((typeof(type) __percpu *)xt_alloc_percpu(sizeof(type), __alignof__(type)))
#define free_percpu(p)		xt_free_percpu(p)
#define bitmap_zalloc(n, gfp)	xt_bitmap_zalloc(n, gfp)
#define bitmap_free(p)		xt_kfree(p)
#define iommu_alloc_resv_region	xt_alloc_resv_region

#define CONFIG_IOMMU_DEBUGFS	1
#define iommu_debugfs_dir	NULL
#define debugfs_create_dir	xt_debugfs_dir
#undef debugfs_create_file
#define debugfs_create_file	xt_debugfs_file
#define iommu_device_register	xt_device_register
#define iommu_device_sysfs_add	xt_sysfs_add
#define iommu_device_sysfs_remove xt_sysfs_remove
#define pci_request_acs()			((void)(xt_env.acs = true))
#define register_syscore(s)			((void)(xt_env.syscore = (s)))
#define bus_register_notifier	xt_register_notifier
#define bus_for_each_dev	xt_walk_devs
#define dev_iommu_priv_set(dev, p)		((void)((dev)->iommu->priv = (p)))
#define pci_domain_nr		xt_domain_nr
#define totalram_pages()			(xt_env.ram_pages)

#define xen_domain()		(xt_env.domain)
#define xen_pv_domain()		(xt_env.pv)
#define xen_initial_domain()	(xt_env.initial)
#define kexec_in_progress	(xt_env.kexec)
#define xen_isolated_msi	(xt_env.isolated_msi)

static inline long xt_single_call(unsigned int call, unsigned long a1,
				  unsigned long a2, unsigned long a3,
				  unsigned long a4, unsigned long a5)
{
	return call == __HYPERVISOR_iommu_op ?
		sim_iommu_op_regs(a1, a2, a3, a4, a5) : -ENOSYS;
}

#define HYPERVISOR_iommu_op	sim_iommu_op
#define xen_single_call		xt_single_call
#define HYPERVISOR_multicall	sim_multicall
#define HYPERVISOR_memory_op	sim_memory_op
#define pfn_to_gfn		sim_pfn_to_gfn

#define pr_info(fmt, ...)		no_printk(fmt, ##__VA_ARGS__)
#define pr_err(fmt, ...)		xt_warning(fmt, ##__VA_ARGS__)
#define pr_err_once(fmt, ...)		xt_warning(fmt, ##__VA_ARGS__)
#define pr_warn(fmt, ...)		xt_warning(fmt, ##__VA_ARGS__)
#define pr_warn_ratelimited(fmt, ...)	xt_warning(fmt, ##__VA_ARGS__)
#define pci_warn(pdev, fmt, ...)					\
do {									\
	(void)(pdev);							\
	xt_warning(fmt, ##__VA_ARGS__);					\
} while (0)
#define pci_err(pdev, fmt, ...)					\
do {									\
	(void)(pdev);							\
	xt_warning(fmt, ##__VA_ARGS__);					\
} while (0)
#define WARN_RATELIMIT(condition, fmt, ...)				\
({									\
	bool __warn = !!(condition);					\
									\
	if (__warn)							\
		atomic_inc(&xt_env.warns);				\
	no_printk(fmt, ##__VA_ARGS__);					\
	__warn;								\
})

#define arch_initcall(fn)
#define rootfs_initcall(fn)
#define __init

#include "../xen-iommu.c"

/* The tests allocate for themselves. */
#undef kfree
#undef free_percpu
#undef pci_domain_nr

#endif /* _XEN_IOMMU_SHIM_H */
