// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the Xen PV-IOMMU driver
 *
 * The driver runs on a software hypervisor (xen_iommu_sim.c), which is the
 * truth about what devices reach. Most cases run on each kind of hypervisor in
 * xt_confs. After each case: no violation of the interface, no context, frame,
 * page or allocation left behind, no WARN() but those that were asked for.
 *
 *   ./tools/testing/kunit/kunit.py run --kunitconfig=drivers/iommu/tests
 */
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/prandom.h>
#include <linux/random.h>
#include <linux/scatterlist.h>

#include "xen_iommu_shim.h"

#define XT_NR_DEVS	4
#define XT_MAX_DOMS	8

#define XT_4K		SZ_4K
#define XT_MAX_IOVA	GENMASK_ULL(47, 0)

/* Somewhere above all guest memory, aligned to the largest page size. */
#define XT_IOVA		0x4000000000UL
#define XT_PHYS		0x100000000ULL

#define XT_RW		(IOMMU_READ | IOMMU_WRITE)

/* From a Xen that does not have the hypercall. */
#define XT_NO_HYPERCALL	(-ENOSYS)

static unsigned long xt_seed;
module_param_named(seed, xt_seed, ulong, 0444);
MODULE_PARM_DESC(seed, "Seed of the random test, 0 for a new one at each boot");

static unsigned int xt_ops = 40000;
module_param_named(ops, xt_ops, uint, 0444);
MODULE_PARM_DESC(ops, "Operations of the random test, per kind of hypervisor");

struct xt_dev {
	struct pci_dev pdev;
	struct pci_bus bus;
	struct dev_iommu iommu;
};

/**
 * struct xt - a running test
 * @test: the test
 * @sim: the hypervisor
 * @hyp: how the driver reaches that
 * @xi: the IOMMU
 * @ready: xen_iommu_setup() has succeeded
 * @dev: devices that the hypervisor knows, all probed
 * @devp: the same for the driver's loops over devices
 * @dom: domains to free at the end
 * @nr_doms: number of these
 * @lock_errors: hypercalls made with a domain's lock held
 * @warns_ok: WARN() splats that the test expects
 * @contexts_ok: contexts that may be left, apart from those kept for use
 * @on_call: called before each hypercall
 * @priv: for @on_call
 */
struct xt {
	struct kunit *test;
	struct xen_iommu_sim sim;
	struct xen_iommu_hyp hyp;
	struct xen_iommu *xi;
	bool ready;
	struct xt_dev dev[XT_NR_DEVS];
	struct device *devp[XT_NR_DEVS];
	struct iommu_domain *dom[XT_MAX_DOMS];
	unsigned int nr_doms;
	atomic_t lock_errors;
	int warns_ok;
	unsigned int contexts_ok;
	void (*on_call)(struct xt *xt, unsigned int subop, void *arg);
	void *priv;
};

/*
 * Kinds of hypervisors
 */

#define XT_DRAFT_QUIRKS	(SIM_INIT_FALLS_THROUGH | SIM_PREEMPTS | SIM_FOLDS | \
			 SIM_FREE_LEAKS | SIM_RDM_FIRST_ONLY | SIM_RDM_IN_USE | \
			 SIM_NO_DEVICE_ENOENT)

static const struct sim_conf xt_confs[] = {
	{
		.desc = "plain",
		.caps = IOMMUCAP_default_identity,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
	}, {
		/* As the v7 drafts are. */
		.desc = "draft",
		.caps = IOMMUCAP_default_identity,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.quirks = XT_DRAFT_QUIRKS,
	}, {
		.desc = "superpages",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_cache,
		.pgsize_mask = SZ_4K | SZ_2M | SZ_1G,
		.max_iova = XT_MAX_IOVA,
		.quirks = SIM_PREEMPTS | SIM_OVERCOUNTS,
	}, {
		.desc = "runs",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_runs,
		.pgsize_mask = SZ_4K | SZ_2M | SZ_1G,
		.max_iova = XT_MAX_IOVA,
		.quirks = SIM_FOLDS | SIM_OVERCOUNTS,
	}, {
		.desc = "pv_scattered",
		.caps = IOMMUCAP_default_identity,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.quirks = SIM_PREEMPTS,
		.pv = true,
	}, {
		.desc = "pv_groups",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_cache,
		.pgsize_mask = SZ_4K | SZ_2M,
		.max_iova = XT_MAX_IOVA,
		.quirks = XT_DRAFT_QUIRKS,
		.pv = true,
		.pv_order = 3,
	}, {
		.desc = "pv_runs",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_runs,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.pv = true,
		.pv_order = 1,
	}, {
		/* Ranges and lists are given up half done. */
		.desc = "preempting_runs",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_runs,
		.pgsize_mask = SZ_4K | SZ_2M,
		.max_iova = XT_MAX_IOVA,
		.quirks = SIM_PREEMPTS,
	}, {
		/* Context 0 blocks, identity is a context of its own. */
		.desc = "blocking",
		.caps = IOMMUCAP_identity | IOMMUCAP_cache | IOMMUCAP_runs,
		.pgsize_mask = SZ_4K | SZ_2M,
		.max_iova = XT_MAX_IOVA,
	}, {
		/* Inherited from a kernel that has kexeced this one. */
		.desc = "inherited",
		.caps = IOMMUCAP_default_identity,
		.pgsize_mask = SZ_4K | SZ_2M,
		.max_iova = XT_MAX_IOVA,
		.max_ctx = 1024,
		.pool = 65536,
		.quirks = SIM_INITIALISED,
	},
};

KUNIT_ARRAY_PARAM_DESC(conf, xt_confs, desc);

/* Those that defer unmaps, which a PV domain does not. */
static const void *deferring_gen_params(struct kunit *test, const void *prev,
					char *desc)
{
	do {
		prev = conf_gen_params(test, prev, desc);
	} while (prev && ((const struct sim_conf *)prev)->pv);
	return prev;
}

/*
 * Set up, tear down
 */

/* By this thread; false if there is no telling. */
static bool xt_is_held(spinlock_t *lock)
{
	return IS_ENABLED(CONFIG_LOCKDEP) && debug_locks && lockdep_is_held(lock);
}

static void xt_hook(struct xen_iommu_sim *sim, unsigned int subop, void *arg)
{
	struct xt *xt = sim->priv;

	for (unsigned int i = 0; i < xt->nr_doms; i++) {
		struct xen_iommu_domain *dom = to_xen_domain(xt->dom[i]);

		if (xt_is_held(&dom->lock))
			atomic_inc(&xt->lock_errors);
	}
	if (xt->on_call)
		xt->on_call(xt, subop, arg);
}

static void xt_release(struct device *dev)
{
}

static void xt_make_dev(struct xt *xt, unsigned int i, u8 devfn)
{
	struct xt_dev *dev = &xt->dev[i];

	dev->bus.number = 0;
	dev->pdev.bus = &dev->bus;
	dev->pdev.devfn = devfn;
	dev->pdev.class = PCI_CLASS_NETWORK_ETHERNET << 8;
	dev->pdev.dev.bus = &pci_bus_type;
	dev->pdev.dev.init_name = "xen-iommu-test";
	dev->pdev.dev.release = xt_release;
	dev->pdev.dev.iommu = &dev->iommu;
	xt->devp[i] = &dev->pdev.dev;
}

/* A hypervisor and devices; the driver is not running yet. */
static struct xt *xt_new(struct kunit *test, const struct sim_conf *conf)
{
	struct xt *xt = kvzalloc_obj(*xt);

	KUNIT_ASSERT_NOT_NULL(test, xt);
	xt->test = test;
	test->priv = xt;
	memset(&xt_env, 0, sizeof(xt_env));
	xt_env.ram_pages = SZ_4G >> PAGE_SHIFT;
	xt_env.dev = xt->devp;
	xt_env.nr_devs = XT_NR_DEVS;

	sim_init(&xt->sim, conf);
	xt->sim.priv = xt;
	xt->sim.hook = xt_hook;
	xt->hyp = (struct xen_iommu_hyp) {
		.iommu_op = sim_iommu_op,
		.iommu_op_regs = sim_iommu_op_regs,
		.multicall = sim_multicall,
		.memory_op = sim_memory_op,
		.pfn_to_gfn = conf->pv ? sim_pfn_to_gfn : NULL,
	};
	for (unsigned int i = 0; i < XT_NR_DEVS; i++) {
		xt_make_dev(xt, i, PCI_DEVFN(i + 1, 0));
		sim_add_device(&xt->sim, 0, 0, PCI_DEVFN(i + 1, 0));
	}
	xt->xi = kzalloc_obj(*xt->xi);
	KUNIT_ASSERT_NOT_NULL(test, xt->xi);
	return xt;
}

/* For what counts traps. Where there are no runs, preemption costs none. */
static void xt_without_preemption(struct xt *xt)
{
	if (xt->sim.conf.caps & IOMMUCAP_runs)
		xt->sim.conf.quirks &= ~SIM_PREEMPTS;
}

static int xt_probe(struct xt *xt, unsigned int i)
{
	struct iommu_device *iommu = __xen_iommu_probe_device(xt->xi, xt->devp[i]);

	if (IS_ERR(iommu))
		return PTR_ERR(iommu);
	KUNIT_EXPECT_PTR_EQ(xt->test, iommu, &xt->xi->iommu);
	xt->dev[i].iommu.iommu_dev = iommu;
	return 0;
}

static int xt_setup(struct xt *xt)
{
	int ret = xen_iommu_setup(xt->xi, &xt->hyp);

	xt->ready = !ret;
	return ret;
}

/* The driver on a hypervisor, with devices. */
static struct xt *xt_start(struct kunit *test, const struct sim_conf *conf)
{
	struct xt *xt = xt_new(test, conf);

	KUNIT_ASSERT_EQ(test, xt_setup(xt), 0);
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		KUNIT_ASSERT_EQ(test, xt_probe(xt, i), 0);
	return xt;
}

static void xt_adopt(struct xt *xt, struct iommu_domain *domain)
{
	/* As the core does. */
	domain->type = IOMMU_DOMAIN_UNMANAGED;
	xt->dom[xt->nr_doms++] = domain;
}

static struct iommu_domain *xt_alloc_domain(struct xt *xt)
{
	struct iommu_domain *domain;

	domain = xen_iommu_domain_alloc_paging_flags(xt->devp[0], 0, NULL);
	if (!IS_ERR(domain))
		xt_adopt(xt, domain);
	return domain;
}

static struct iommu_domain *xt_domain(struct xt *xt)
{
	struct iommu_domain *domain = xt_alloc_domain(xt);

	KUNIT_ASSERT_FALSE(xt->test, IS_ERR(domain));
	return domain;
}

static void xt_free_domain(struct xt *xt, struct iommu_domain *domain)
{
	unsigned int i;

	for (i = 0; i < xt->nr_doms && xt->dom[i] != domain; i++)
		;
	domain->ops->free(domain);
	if (i < xt->nr_doms)
		xt->dom[i] = xt->dom[--xt->nr_doms];
}

static u16 xt_ctx(struct iommu_domain *domain)
{
	return to_xen_domain(domain)->ctx;
}

static void xt_stop(struct kunit *test)
{
	struct xt *xt = test->priv;
	unsigned int left, kept;

	if (!xt)
		return;
	sim_clear_faults(&xt->sim);
	xt->sim.fault_rate = 0;
	xt->on_call = NULL;
	xt_env.fail_at = 0;

	while (xt->nr_doms)
		xt_free_domain(xt, xt->dom[xt->nr_doms - 1]);
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		if (xt->dev[i].iommu.priv)
			xen_iommu_release_device(xt->devp[i]);
	kept = xt->contexts_ok;
	if (xt->ready) {
		struct xen_iommu *xi = xt->xi;

		kept += xi->nr_spare + xi->nr_lost;
		kept += xi->blocked_ctx && xi->blocked_ctx != XEN_IOMMU_NO_CTX;
		kept += xi->identity_ctx && xi->identity_ctx != XEN_IOMMU_NO_CTX;
		kept += xt->sim.leaked;
		xen_iommu_free(xi);
	}
	xt_kfree(xt->xi);

	left = sim_exit(&xt->sim);
	KUNIT_EXPECT_EQ(test, left, kept);
	KUNIT_EXPECT_EQ(test, atomic_read(&xt->sim.violations), 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&xt->lock_errors), 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&xt_env.live), 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&xt_env.warns), xt->warns_ok);
	kvfree(xt);
	test->priv = NULL;
}

/*
 * Checks
 */

static u64 xt_gfn(struct xt *xt, phys_addr_t phys)
{
	u64 pfn = phys >> XEN_PAGE_SHIFT;

	return xt->sim.conf.pv ? sim_pfn_to_gfn(pfn) : pfn;
}

/* Does the driver say of the frame what is true? */
static bool xt_truthful(struct xt *xt, struct iommu_domain *domain,
			unsigned long iova)
{
	phys_addr_t phys = iommu_iova_to_phys(domain, iova);
	u64 gfn;

	if (!sim_walk(&xt->sim, xt_ctx(domain), iova >> XEN_PAGE_SHIFT, &gfn,
		      NULL))
		return !phys;
	return phys && gfn == xt_gfn(xt, phys) && !((phys ^ iova) & ~XEN_PAGE_MASK);
}

/* Number of frames in a range of which the driver does not tell the truth. */
static unsigned long xt_lies(struct xt *xt, struct iommu_domain *domain,
			     unsigned long iova, size_t size)
{
	unsigned long lies = 0;

	for (size_t off = 0; off < size; off += XEN_PAGE_SIZE)
		if (!xt_truthful(xt, domain, iova + off)) {
			if (!lies++)
				kunit_info(xt->test, "context %u, iova %#lx: says %#llx\n",
					   xt_ctx(domain), iova + off,
					   (u64)iommu_iova_to_phys(domain, iova + off));
		}
	return lies;
}

static bool xt_is_mapped(struct xt *xt, struct iommu_domain *domain,
			 unsigned long iova, phys_addr_t phys, size_t size)
{
	for (size_t off = 0; off < size; off += XEN_PAGE_SIZE)
		if (iommu_iova_to_phys(domain, iova + off) != phys + off ||
		    !xt_truthful(xt, domain, iova + off))
			return false;
	return true;
}

static bool xt_is_empty(struct xt *xt, struct iommu_domain *domain,
			unsigned long iova, size_t size)
{
	for (size_t off = 0; off < size; off += XEN_PAGE_SIZE)
		if (iommu_iova_to_phys(domain, iova + off) ||
		    !xt_truthful(xt, domain, iova + off))
			return false;
	return true;
}

static int xt_map(struct iommu_domain *domain, unsigned long iova,
		  phys_addr_t phys, size_t pages)
{
	return iommu_map(domain, iova, phys, pages * XT_4K, XT_RW, GFP_KERNEL);
}

static size_t xt_unmap(struct iommu_domain *domain, unsigned long iova,
		       size_t pages)
{
	return iommu_unmap(domain, iova, pages * XT_4K) / XT_4K;
}

/* As the DMA API does it with a flush queue. */
static size_t xt_unmap_queued(struct iommu_domain *domain, unsigned long iova,
			      size_t pages)
{
	struct iommu_iotlb_gather gather;
	size_t ret;

	iommu_iotlb_gather_init(&gather);
	gather.queued = true;
	ret = iommu_unmap_fast(domain, iova, pages * XT_4K, &gather);
	return ret / XT_4K;
}

static void xt_flush(struct iommu_domain *domain)
{
	domain->ops->flush_iotlb_all(domain);
}

/*
 * Mapping and unmapping
 */

static void map_unmap_roundtrip(struct kunit *test)
{
	static const unsigned int sizes[] = { 1, 2, 7, 8, 9, 511, 512, 513, 1200 };
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned long iova = XT_IOVA + i * XT_4K;
		phys_addr_t phys = XT_PHYS + (i / 3) * XT_4K;
		size_t n = sizes[i];

		KUNIT_EXPECT_EQ(test, xt_map(domain, iova, phys, n), 0);
		KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, iova, phys,
						     n * XT_4K));
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), n);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, iova, n), n);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, iova, n * XT_4K));
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
	}
}

/* iommu_map_sg() without the list: pieces, and one sync for all of them. */
static int xt_map_pieces(struct iommu_domain *domain, unsigned long iova,
			 phys_addr_t phys, unsigned int nr)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < nr && !ret; i++)
		ret = iommu_map_nosync(domain, iova + i * XT_4K,
				       phys + i * 2 * XT_4K, XT_4K, XT_RW,
				       GFP_KERNEL);
	if (!ret)
		ret = iommu_sync_map(domain, iova, nr * XT_4K);
	return ret;
}

static bool xt_pieces_mapped(struct xt *xt, struct iommu_domain *domain,
			     unsigned long iova, phys_addr_t phys,
			     unsigned int nr)
{
	for (unsigned int i = 0; i < nr; i++)
		if (!xt_is_mapped(xt, domain, iova + i * XT_4K,
				  phys + i * 2 * XT_4K, XT_4K))
			return false;
	return true;
}

static void xt_set_bufs_busy(struct xt *xt, enum xen_iommu_use use, bool busy)
{
	int cpu;

	for_each_possible_cpu(cpu)
		(*per_cpu_ptr(xt->xi->buf, cpu))[use].busy = busy;
}

static void xt_limit_maps(struct xt *xt, u64 frames, int error)
{
	xt->sim.map_left = frames;
	xt->sim.map_error = error;
}

static void xt_limit_unmaps(struct xt *xt, u64 frames, int error)
{
	xt->sim.unmap_left = frames;
	xt->sim.unmap_error = error;
}

static void xt_fail_maps(struct xt *xt, unsigned int skip, unsigned int times,
			 int error, u64 frames)
{
	sim_add_fault(&xt->sim, IOMMU_map_pages, skip, times, error, frames);
	sim_add_fault(&xt->sim, IOMMU_map_runs, skip, times, error, frames);
}

static void xt_fail_unmaps(struct xt *xt, unsigned int skip, unsigned int times,
			   int error, u64 frames)
{
	sim_add_fault(&xt->sim, IOMMU_unmap_pages, skip, times, error, frames);
	sim_add_fault(&xt->sim, IOMMU_unmap_runs, skip, times, error, frames);
}

static unsigned int xt_warnings(void)
{
	return atomic_read(&xt_env.warnings);
}

static void map_pieces_go_out_together(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const unsigned int sizes[] = { 1, 2, 3, 8, 9, 60 };

	xt_without_preemption(xt);
	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned int nr = sizes[i];

		sim_reset_log(&xt->sim);
		KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, nr), 0);
		KUNIT_EXPECT_EQ(test, xt->sim.traps, 1);
		KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, XT_IOVA,
							 XT_PHYS, nr));

		sim_reset_log(&xt->sim);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, nr), nr);
		KUNIT_EXPECT_EQ(test, xt->sim.traps, 1);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, nr * XT_4K));
	}
}

/* However many they are, and one if they go on in memory, too. */
static void map_pieces_takes_few_allocations(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	unsigned long iova = XT_IOVA + SZ_1G;
	int before = atomic_read(&xt_env.live);

	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 64), 0);
	KUNIT_EXPECT_LE(test, atomic_read(&xt_env.live) - before, 3);

	before = atomic_read(&xt_env.live);
	for (unsigned int i = 0; i < 600; i++)
		KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, iova + i * XT_4K,
						       XT_PHYS + i * XT_4K, XT_4K,
						       XT_RW, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, iova, 600 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&xt_env.live) - before, 1);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, iova, XT_PHYS, 600 * XT_4K));
}

/*
 * Neighbours that map at the same time: three ranges of eight pieces. A sync is
 * for its own range only.
 */
#define XT_NEIGHBOUR(i)		(XT_IOVA + (i) * 8 * XT_4K)
#define XT_NEIGHBOUR_PHYS(i)	(XT_PHYS + (i) * 16 * XT_4K)

static void xt_map_neighbours(struct xt *xt, struct iommu_domain *domain)
{
	for (unsigned int i = 0; i < 24; i++)
		KUNIT_EXPECT_EQ(xt->test,
				iommu_map_nosync(domain, XT_IOVA + i * XT_4K,
						 XT_PHYS + i * 2 * XT_4K, XT_4K,
						 XT_RW, GFP_KERNEL), 0);
}

static void map_of_neighbours_is_synced_apart(struct kunit *test)
{
	static const unsigned int orders[][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 },
		{ 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	for (unsigned int i = 0; i < ARRAY_SIZE(orders); i++) {
		xt_map_neighbours(xt, domain);
		for (unsigned int j = 0; j < 3; j++) {
			unsigned int who = orders[i][j];

			KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_NEIGHBOUR(who),
							     8 * XT_4K), 0);
			KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)),
					(j + 1) * 8);
			KUNIT_EXPECT_TRUE(test,
					  xt_pieces_mapped(xt, domain,
							   XT_NEIGHBOUR(who),
							   XT_NEIGHBOUR_PHYS(who), 8));
		}
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 24), 24);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 24 * XT_4K));
	}
}

/* The one in the middle fails, in the hypervisor or for want of memory. */
static void map_failure_is_not_the_neighbours(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	for (unsigned int fail = 0; fail < 3; fail++) {
		xt_map_neighbours(xt, domain);
		if (fail) {
			xt_env.allocs = 0;
			xt_env.fail_at = fail;
		} else {
			xt_limit_maps(xt, 3, -ENOMEM);
		}
		KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_NEIGHBOUR(1),
						     8 * XT_4K), -ENOMEM);
		xt_env.fail_at = 0;
		sim_clear_faults(&xt->sim);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_NEIGHBOUR(1), 8), 8);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_NEIGHBOUR(1),
						    8 * XT_4K));
		for (unsigned int i = 0; i < 3; i += 2) {
			KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_NEIGHBOUR(i),
							     8 * XT_4K), 0);
			KUNIT_EXPECT_TRUE(test,
					  xt_pieces_mapped(xt, domain, XT_NEIGHBOUR(i),
							   XT_NEIGHBOUR_PHYS(i), 8));
			KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_NEIGHBOUR(i), 8), 8);
		}
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
	}
}

/* To undo what is not in the hypervisor takes memory for the middle only. */
static void unmap_of_neighbour_without_memory(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	xt_map_neighbours(xt, domain);
	xt_env.allocs = 0;
	xt_env.fail_at = 1;
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_NEIGHBOUR(2), 8), 8);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 8), 8);
	KUNIT_EXPECT_EQ(test, xt_env.allocs, 0);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_NEIGHBOUR(1) + 2 * XT_4K, 2), 0);
	KUNIT_EXPECT_EQ(test, xt_env.allocs, 1);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_NEIGHBOUR(1) + 2 * XT_4K, 2), 2);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_NEIGHBOUR(1), 2 * XT_4K), 0);
	KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, XT_NEIGHBOUR(1),
						 XT_NEIGHBOUR_PHYS(1), 2));
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 2);
}

/* What is mapped behind a mapping that grows is in its way. */
static void map_of_pieces_ends_at_other_mapping(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + 3 * XT_4K, XT_PHYS, 1), 0);
	for (unsigned int i = 0; i < 4; i++)
		KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA + i * XT_4K,
						       XT_PHYS + 2 * i * XT_4K, XT_4K,
						       XT_RW, GFP_KERNEL),
				i < 3 ? 0 : -EADDRINUSE);
	/* And what comes in between. */
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 3), 3);
	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA, XT_PHYS, XT_4K,
					       XT_RW, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + 2 * XT_4K, XT_PHYS, 1), 0);
	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA + XT_4K, XT_PHYS,
					       2 * XT_4K, XT_RW, GFP_KERNEL),
			-EADDRINUSE);
	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA + XT_4K, XT_PHYS,
					       XT_4K, XT_RW, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA, 2 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 4 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 4);
}

/* What has been given to sync does not grow: that would be taken for done. */
static void map_beside_a_sync_that_is_under_way(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	struct xen_iommu_mapping *m;

	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA, XT_PHYS, XT_4K,
					       XT_RW, GFP_KERNEL), 0);
	scoped_guard(spinlock_irqsave, &to_xen_domain(domain)->lock) {
		m = xen_iommu_find(to_xen_domain(domain), XT_IOVA);
		m->state = XEN_IOMMU_SYNCING;
	}
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + XT_4K, XT_PHYS + XT_4K, 1), 0);
	KUNIT_EXPECT_EQ(test, m->last, XT_IOVA + XT_4K - 1);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 1);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA, XT_4K), 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS, 2 * XT_4K));
}

/* More runs than a multicall, and than a buffer, takes. */
static void map_many_pieces(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	unsigned int nr = XEN_IOMMU_MANY_RUNS + XEN_IOMMU_MULTICALLS + 3;

	xt_without_preemption(xt);
	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, nr), 0);
	KUNIT_EXPECT_LE(test, xt->sim.traps, nr / XEN_IOMMU_MULTICALLS + 2);
	KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, XT_IOVA, XT_PHYS, nr));
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, nr), nr);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
}

/* Somebody else on this CPU is using the buffer. */
static void map_and_flush_without_buffer(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	for (int use = 0; use < XEN_IOMMU_NR_USES; use++)
		xt_set_bufs_busy(xt, use, true);
	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 60), 0);
	KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, XT_IOVA, XT_PHYS, 60));
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 60), 60);
	xt_flush(domain);
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 60 * XT_4K));
	for (int use = 0; use < XEN_IOMMU_NR_USES; use++)
		xt_set_bufs_busy(xt, use, false);
}

/* The flush queue's timer interrupts a map: the flush is still one trap. */
static void flush_during_map_goes_out_together(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	xt_without_preemption(xt);
	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 60), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 60), 60);
	xt_set_bufs_busy(xt, XEN_IOMMU_MAP, true);
	sim_reset_log(&xt->sim);
	xt_flush(domain);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 1);
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 60 * XT_4K));
	xt_set_bufs_busy(xt, XEN_IOMMU_MAP, false);
}

/* Buffers are given back: they are there again for the next one. */
static void buffers_are_given_back(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	int cpu;

	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 60), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 60), 60);
	xt_flush(domain);
	for_each_possible_cpu(cpu)
		for (int use = 0; use < XEN_IOMMU_NR_USES; use++)
			KUNIT_EXPECT_EQ(test, (*per_cpu_ptr(xt->xi->buf, cpu))[use].busy, 0);
}

static void map_gigabyte_takes_little_memory(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	size_t pages = SZ_1G / XT_4K;
	s64 before;

	before = atomic64_read(&xt_env.bytes);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, pages), 0);
	KUNIT_EXPECT_LT(test, atomic64_read(&xt_env.bytes) - before, 4096);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), pages);
	for (size_t off = 0; off < SZ_1G; off += SZ_1M)
		KUNIT_EXPECT_TRUE(test, xt_truthful(xt, domain, XT_IOVA + off));
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, pages), pages);
	KUNIT_EXPECT_EQ(test, atomic64_read(&xt_env.bytes), before);
}

static void map_needs_read_or_write(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const int refused[] = { 0, IOMMU_CACHE, IOMMU_NOEXEC | IOMMU_MMIO };
	static const struct {
		int prot;
		u32 flags;
	} taken[] = {
		{ IOMMU_READ, IOMMU_MAP_readable },
		{ IOMMU_WRITE, IOMMU_MAP_writeable },
		{ XT_RW, IOMMU_MAP_readable | IOMMU_MAP_writeable },
		{ XT_RW | IOMMU_MMIO, IOMMU_MAP_readable | IOMMU_MAP_writeable },
	};
	u32 flags;

	sim_reset_log(&xt->sim);
	for (unsigned int i = 0; i < ARRAY_SIZE(refused); i++)
		KUNIT_EXPECT_EQ(test, iommu_map(domain, XT_IOVA, XT_PHYS, XT_4K,
						refused[i], GFP_KERNEL), -EINVAL);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);

	for (unsigned int i = 0; i < ARRAY_SIZE(taken); i++) {
		KUNIT_EXPECT_EQ(test, iommu_map(domain, XT_IOVA, XT_PHYS, XT_4K,
						taken[i].prot, GFP_KERNEL), 0);
		KUNIT_EXPECT_TRUE(test, sim_walk(&xt->sim, xt_ctx(domain),
						 XT_IOVA >> XEN_PAGE_SHIFT,
						 NULL, &flags));
		KUNIT_EXPECT_EQ(test, flags, taken[i].flags);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 1), 1);
	}
}

static void map_passes_cache_on_with_capability(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	bool cache = xt->sim.conf.caps & IOMMUCAP_cache;
	u32 flags;

	KUNIT_EXPECT_EQ(test, iommu_map(domain, XT_IOVA, XT_PHYS, XT_4K,
					XT_RW | IOMMU_CACHE, GFP_KERNEL), 0);
	sim_walk(&xt->sim, xt_ctx(domain), XT_IOVA >> XEN_PAGE_SHIFT, NULL,
		 &flags);
	KUNIT_EXPECT_EQ(test, !!(flags & IOMMU_MAP_cache), cache);
	/* Different flags go out in different calls. */
	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA + XT_4K,
					       XT_PHYS + XT_4K, XT_4K,
					       XT_RW | IOMMU_CACHE, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA + 2 * XT_4K,
					       XT_PHYS + 2 * XT_4K, XT_4K,
					       IOMMU_READ, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA + XT_4K, 2 * XT_4K), 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS,
					     3 * XT_4K));
	sim_walk(&xt->sim, xt_ctx(domain), (XT_IOVA >> XEN_PAGE_SHIFT) + 2, NULL,
		 &flags);
	KUNIT_EXPECT_EQ(test, flags, IOMMU_MAP_readable);
}

static void map_stays_within_aperture(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	unsigned long last = XT_MAX_IOVA - XT_4K + 1;
	size_t mapped = 0;

	KUNIT_EXPECT_EQ(test, domain->geometry.aperture_start, 0);
	KUNIT_EXPECT_EQ(test, domain->geometry.aperture_end, XT_MAX_IOVA);
	KUNIT_EXPECT_TRUE(test, domain->geometry.force_aperture);

	KUNIT_EXPECT_EQ(test, xt_map(domain, last, XT_PHYS, 1), 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, last, XT_PHYS, XT_4K));
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, last, 1), 1);

	KUNIT_EXPECT_EQ(test, xt_map(domain, last, XT_PHYS, 2), -ERANGE);
	KUNIT_EXPECT_EQ(test, xt_map(domain, last + XT_4K, XT_PHYS, 1), -ERANGE);
	KUNIT_EXPECT_EQ(test, domain->ops->map_pages(domain, -XT_4K, XT_PHYS,
						     XT_4K, 2, XT_RW, GFP_KERNEL,
						     &mapped), -ERANGE);
	KUNIT_EXPECT_EQ(test, domain->ops->map_pages(domain, XT_IOVA, XT_PHYS,
						     XT_4K, 0, XT_RW, GFP_KERNEL,
						     &mapped), -ERANGE);
	KUNIT_EXPECT_EQ(test, mapped, 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
}

static void map_over_mapping_is_refused(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const struct {
		int off;
		unsigned int nr;
	} over[] = { { 0, 8 }, { -1, 2 }, { 7, 2 }, { 3, 1 }, { -2, 16 } };

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 8), 0);
	sim_reset_log(&xt->sim);
	for (unsigned int i = 0; i < ARRAY_SIZE(over); i++)
		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + over[i].off * XT_4K,
					     XT_PHYS + SZ_1G, over[i].nr),
				-EADDRINUSE);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS,
					     8 * XT_4K));
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA - 4 * XT_4K,
					    4 * XT_4K));
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA + 8 * XT_4K,
					    16 * XT_4K));
}

/* Something that the driver does not know of: -EADDRINUSE is passed on. */
static void map_over_unknown_mapping_is_reported(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	xt_limit_maps(xt, 3, -EADDRINUSE);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 8), -EADDRINUSE);
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 8 * XT_4K));
}

struct xt_op {
	u64 dfn;
	u32 pgsize;
	u32 nr;
};

static void xt_expect_maps(struct xt *xt, const struct xt_op *op, unsigned int nr)
{
	struct kunit *test = xt->test;

	KUNIT_ASSERT_EQ(test, xt->sim.nr_log, nr);
	for (unsigned int i = 0; i < nr; i++) {
		KUNIT_EXPECT_EQ(test, xt->sim.log[i].subop, IOMMU_map_pages);
		KUNIT_EXPECT_EQ(test, xt->sim.log[i].dfn, op[i].dfn);
		KUNIT_EXPECT_EQ(test, xt->sim.log[i].pgsize, op[i].pgsize);
		KUNIT_EXPECT_EQ(test, xt->sim.log[i].nr, op[i].nr);
	}
}

static const struct sim_conf xt_super = {
	.caps = IOMMUCAP_default_identity,
	.pgsize_mask = SZ_4K | SZ_2M | SZ_1G,
	.max_iova = XT_MAX_IOVA,
};

static void map_uses_largest_pages(struct kunit *test)
{
	unsigned long iova = XT_IOVA + SZ_1G - SZ_2M - 2 * XT_4K;
	size_t size = 2 * XT_4K + SZ_2M + SZ_1G + 3 * SZ_2M + 5 * XT_4K;
	const struct xt_op ops[] = {
		{ (XT_IOVA + SZ_1G - SZ_2M) / XT_4K - 2, SZ_4K, 2 },
		{ (XT_IOVA + SZ_1G - SZ_2M) / XT_4K, SZ_2M, 1 },
		{ (XT_IOVA + SZ_1G) / XT_4K, SZ_1G, 1 },
		{ (XT_IOVA + 2UL * SZ_1G) / XT_4K, SZ_2M, 3 },
		{ (XT_IOVA + 2UL * SZ_1G + 3 * SZ_2M) / XT_4K, SZ_4K, 5 },
	};
	struct xt *xt = xt_start(test, &xt_super);
	struct iommu_domain *domain = xt_domain(xt);
	phys_addr_t phys = iova - XT_IOVA + XT_PHYS;

	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_map(domain, iova, phys, size / XT_4K), 0);
	xt_expect_maps(xt, ops, ARRAY_SIZE(ops));
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), size / XT_4K);
	KUNIT_EXPECT_EQ(test, iommu_iova_to_phys(domain, iova + SZ_1G + 5),
			phys + SZ_1G + 5);
	KUNIT_EXPECT_EQ(test, iommu_unmap(domain, iova, size), size);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
}

/* Sizes for which iova and phys are not aligned alike are of no use. */
static void map_uses_pages_that_fit_both(struct kunit *test)
{
	const struct xt_op ops[] = {
		{ (XT_IOVA + SZ_2M) / XT_4K, SZ_2M, 1023 },
		{ (XT_IOVA + SZ_2M) / XT_4K, SZ_4K, 1024 },
		/* Not a whole 2M page after the first boundary. */
		{ XT_IOVA / XT_4K + 1, SZ_4K, 1022 },
	};
	struct xt *xt = xt_start(test, &xt_super);
	struct iommu_domain *domain = xt_domain(xt);

	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + SZ_2M, XT_PHYS,
				     1023 * 512), 0);
	xt_expect_maps(xt, &ops[0], 1);
	xt_unmap(domain, XT_IOVA + SZ_2M, 1023 * 512);

	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + SZ_2M, XT_PHYS + XT_4K,
				     1024), 0);
	xt_expect_maps(xt, &ops[1], 1);
	xt_unmap(domain, XT_IOVA + SZ_2M, 1024);

	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + XT_4K, XT_PHYS + XT_4K,
				     1022), 0);
	xt_expect_maps(xt, &ops[2], 1);
}

/* The counters of a call have 32 bits: very long runs are cut. */
static void long_runs_are_cut(struct kunit *test)
{
	struct xt *xt = xt_start(test, &xt_super);
	struct xen_iommu_domain *dom = to_xen_domain(xt_domain(xt));
	struct pv_iommu_run run = { .dfn = 1, .nr_frames = XEN_IOMMU_MAX_FRAMES + 5 };
	struct pv_iommu_unmap_pages unmap;
	struct pv_iommu_map_pages map;

	xen_iommu_next_unmap(dom, &run, 0, &unmap);
	KUNIT_EXPECT_EQ(test, unmap.nr_pages, XEN_IOMMU_MAX_FRAMES);
	KUNIT_EXPECT_EQ(test, run.nr_frames, 5);
	KUNIT_EXPECT_EQ(test, run.dfn, XEN_IOMMU_MAX_FRAMES + 1);

	/* Small pages only: dfn and gfn are not aligned alike. */
	run = (struct pv_iommu_run) {
		.dfn = 1,
		.nr_frames = XEN_IOMMU_MAX_FRAMES + 5,
	};
	xen_iommu_next_map(dom, &run, XT_RW, &map);
	KUNIT_EXPECT_EQ(test, map.nr_pages, XEN_IOMMU_MAX_FRAMES);
	KUNIT_EXPECT_EQ(test, run.nr_frames, 5);
	KUNIT_EXPECT_EQ(test, run.dfn, XEN_IOMMU_MAX_FRAMES + 1);
	KUNIT_EXPECT_EQ(test, run.gfn, XEN_IOMMU_MAX_FRAMES);
}

/* More frames than are looked up in the p2m in one go. */
static void map_of_many_scattered_frames(struct kunit *test)
{
	static const struct sim_conf conf = {
		.caps = IOMMUCAP_default_identity,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.pv = true,
		.pv_order = 12,
	};
	struct xt *xt = xt_start(test, &conf);
	struct iommu_domain *domain = xt_domain(xt);
	size_t nr = 3 * XEN_IOMMU_MAX_LOOKUPS + 100;

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, nr), 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS,
					     nr * XT_4K));
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, nr), nr);
}

/* The very last page of 64 bits: all sums stay below. */
static void map_at_top_of_address_space(struct kunit *test)
{
	struct sim_conf conf = xt_super;
	unsigned long iova = -2UL * XT_4K;
	struct iommu_domain *domain;
	size_t mapped = 0;
	struct xt *xt;

	conf.max_iova = U64_MAX;
	xt = xt_start(test, &conf);
	domain = xt_domain(xt);
	KUNIT_EXPECT_EQ(test, domain->ops->map_pages(domain, iova, XT_PHYS,
						     XT_4K, 2, XT_RW, GFP_KERNEL,
						     &mapped), 0);
	KUNIT_EXPECT_EQ(test, mapped, 2 * XT_4K);
	KUNIT_EXPECT_EQ(test, domain->ops->iotlb_sync_map(domain, iova, 2 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 2);
	KUNIT_EXPECT_EQ(test, iommu_iova_to_phys(domain, ULONG_MAX),
			XT_PHYS + 2 * XT_4K - 1);
	KUNIT_EXPECT_EQ(test, domain->ops->unmap_pages(domain, iova, XT_4K, 2,
						       NULL), 2 * XT_4K);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
}

static void sync_of_nothing_does_nothing(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 4), 0);
	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA, 0), 0);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA, 4 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA + SZ_1G, XT_4K), 0);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);
}

/* What a sync has given up stays so, until it is unmapped. */
static void sync_does_not_try_again(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA, XT_PHYS, 8 * XT_4K,
					       XT_RW, GFP_KERNEL), 0);
	xt_limit_maps(xt, 3, -ENOMEM);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA, 8 * XT_4K), -ENOMEM);
	sim_clear_faults(&xt->sim);
	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA + 8 * XT_4K, XT_PHYS,
					       8 * XT_4K, XT_RW, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, iommu_sync_map(domain, XT_IOVA, 16 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 16 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 11);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 16), 16);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
}

/*
 * Failures of maps
 */

static const int xt_errors[] = { -ENOMEM, -EPERM, -EIO, -EADDRINUSE, 0 };

static void map_run_partial_failure(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const unsigned int after[] = { 0, 1, 5, 15, 19 };

	for (unsigned int i = 0; i < ARRAY_SIZE(after); i++) {
		for (unsigned int j = 0; j < ARRAY_SIZE(xt_errors); j++) {
			/* Success without completion is an error, too. */
			xt_limit_maps(xt, after[i], xt_errors[j]);
			KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20),
					xt_errors[j] ?: -EIO);
			KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA,
							    20 * XT_4K));
			KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim,
							    xt_ctx(domain)), 0);
			sim_clear_faults(&xt->sim);
		}
	}
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
}

/* Between a sync that failed and the caller's undoing it. */
static void map_pieces_partial_failure(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const unsigned int after[] = { 0, 1, 29, 59, 70, 99 };

	for (unsigned int i = 0; i < ARRAY_SIZE(after); i++) {
		for (unsigned int j = 0; j < ARRAY_SIZE(xt_errors); j++) {
			xt_limit_maps(xt, after[i], xt_errors[j]);
			KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA,
							    XT_PHYS, 100),
					xt_errors[j] ?: -EIO);
			KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim,
							    xt_ctx(domain)),
					after[i]);
			KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA,
						      100 * XT_4K), 0);
			KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 100), 100);
			KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim,
							    xt_ctx(domain)), 0);
			sim_clear_faults(&xt->sim);
		}
	}
}

/* One call of many fails, those behind it do not. */
static void map_pieces_failure_in_the_middle(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const unsigned int skip[] = { 0, 1, 17, 63, 64, 99 };

	xt_without_preemption(xt);
	for (unsigned int i = 0; i < ARRAY_SIZE(skip); i++) {
		unsigned int mapped;

		xt_fail_maps(xt, skip[i], 1, -ENOMEM, 0);
		if (xt->sim.conf.caps & IOMMUCAP_runs) {
			/* There it is one call. */
			KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA,
							    XT_PHYS, 100),
					skip[i] ? 0 : -ENOMEM);
			mapped = skip[i] ? 100 : 0;
		} else {
			KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA,
							    XT_PHYS, 100),
					-ENOMEM);
			mapped = skip[i];
		}
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)),
				mapped);
		KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 100 * XT_4K), 0);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 100), 100);
		sim_clear_faults(&xt->sim);
	}
}

static void map_multicall_failure(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	bool runs = xt->sim.conf.caps & IOMMUCAP_runs;

	/* Carried out until then: nothing, or some of the calls. */
	for (unsigned int k = 0; k < 14; k += 7) {
		sim_add_fault(&xt->sim, SIM_MULTICALL, 0, 1, -EFAULT, k);
		KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 100),
				runs ? 0 : -EFAULT);
		KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 100 * XT_4K), 0);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 100), 100);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA,
						    100 * XT_4K));
	}
}

/* Then the record lacks something, and nobody else gets the context. */
static void map_pieces_behind_a_failure_that_stay(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u16 ctx = xt_ctx(domain);

	if (xt->sim.conf.caps & IOMMUCAP_runs)
		kunit_skip(test, "no multicalls");

	xt_fail_maps(xt, 30, 1, -ENOMEM, 0);
	xt_fail_unmaps(xt, 5, 1, -EIO, 0);
	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 60), -ENOMEM);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, ctx), 31);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 1);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 60), 60);
	xt_free_domain(xt, domain);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 1);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_spare, 0);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_free_context], 0);
	KUNIT_EXPECT_NE(test, xt_ctx(xt_domain(xt)), ctx);
}

static void map_fails_where_there_is_no_page(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u64 gfn = xt_gfn(xt, XT_PHYS + 7 * XT_4K);

	xt->sim.hole_start = gfn;
	xt->sim.hole_end = gfn + 1;
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), -ENOENT);
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 20 * XT_4K));
	xt->sim.hole_start = 0;
	xt->sim.hole_end = 0;
	xt->sim.foreign_start = gfn;
	xt->sim.foreign_end = gfn + 1;
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), -EPERM);
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 20 * XT_4K));
}

static void map_into_reserved_region_fails(struct kunit *test)
{
	struct xt *xt = xt_new(test, test->param_value);
	struct iommu_domain *domain;
	int ret;

	sim_add_rdm(&xt->sim, XT_IOVA / XT_4K + 4, 4, 0, PCI_DEVFN(1, 0));
	KUNIT_ASSERT_EQ(test, xt_setup(xt), 0);
	KUNIT_ASSERT_EQ(test, xt_probe(xt, 0), 0);
	domain = xt_domain(xt);
	/* Xen maps these itself, but not as an entry of ours. */
	KUNIT_EXPECT_EQ(test, iommu_iova_to_phys(domain, XT_IOVA + 5 * XT_4K + 9),
			XT_IOVA + 5 * XT_4K + 9);
	KUNIT_EXPECT_EQ(test, iommu_iova_to_phys(domain, XT_IOVA + 8 * XT_4K - 1),
			XT_IOVA + 8 * XT_4K - 1);
	KUNIT_EXPECT_EQ(test, iommu_iova_to_phys(domain, XT_IOVA + 8 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, iommu_iova_to_phys(domain, XT_IOVA + 4 * XT_4K - 1), 0);
	ret = xt_map(domain, XT_IOVA + 4 * XT_4K, XT_PHYS, 1);
	KUNIT_EXPECT_TRUE(test, ret == -EADDRINUSE || ret == -EADDRNOTAVAIL);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
}

/* If even the undoing fails, the record still tells the truth. */
static void map_failure_that_cannot_be_undone(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	xt_limit_maps(xt, 9, -ENOMEM);
	xt_limit_unmaps(xt, 4, -ENOMEM);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), -ENOMEM);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 5);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
	KUNIT_EXPECT_GE(test, xt_warnings(), 1);
	sim_clear_faults(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 4), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 4 * XT_4K, 16), 16);
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 20 * XT_4K));
}

/*
 * Unmapping
 */

static void unmap_goes_on_after_short_result(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	xt_without_preemption(xt);
	for (unsigned int i = 0; i < ARRAY_SIZE(xt_errors); i++) {
		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
		xt_fail_unmaps(xt, 0, 3, xt_errors[i], 4);
		sim_reset_log(&xt->sim);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 20), 20);
		/* Where the result is a count, the error takes a call. */
		KUNIT_EXPECT_EQ(test, xt->sim.traps,
				xt->sim.conf.caps & IOMMUCAP_runs ? 7 : 4);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA,
						    20 * XT_4K));
		sim_clear_faults(&xt->sim);
	}
	KUNIT_EXPECT_EQ(test, xt_warnings(), 0);
}

static void unmap_keeps_what_stays_mapped(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const unsigned int after[] = { 0, 1, 7, 19 };

	for (unsigned int i = 0; i < ARRAY_SIZE(after); i++) {
		for (unsigned int j = 0; j < ARRAY_SIZE(xt_errors); j++) {
			unsigned int n = after[i], warnings = xt_warnings();

			KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
			xt_limit_unmaps(xt, n, xt_errors[j]);
			KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 20), n);
			KUNIT_EXPECT_GT(test, xt_warnings(), warnings);
			KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA,
							    n * XT_4K));
			KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain,
							     XT_IOVA + n * XT_4K,
							     XT_PHYS + n * XT_4K,
							     (20 - n) * XT_4K));
			/* Still stuck, and still true. */
			KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + n * XT_4K,
						       20 - n), 0);
			KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + n * XT_4K,
						     XT_PHYS, 1), -EADDRINUSE);
			KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA,
						      20 * XT_4K), 0);
			sim_clear_faults(&xt->sim);
			KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + n * XT_4K,
						       20 - n), 20 - n);
		}
	}
}

static void unmap_of_superpage_needs_pool(struct kunit *test)
{
	struct sim_conf conf = xt_super;
	struct iommu_domain *domain;
	struct xt *xt;

	for (unsigned int i = 0; i < 2; i++) {
		/* Mapped as one, or made into one. */
		if (i) {
			conf.pgsize_mask = SZ_4K;
			conf.quirks = SIM_FOLDS;
		}
		xt = xt_start(test, &conf);
		domain = xt_domain(xt);
		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 1024), 0);
		xt->sim.pool = xt->sim.pool_used;
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + XT_4K, 1), 0);
		KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS,
						     SZ_4M));
		/* The first goes as a whole, then there is a page for the second. */
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 513),
				512);
		KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, SZ_4M), 0);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + SZ_2M, 512), 512);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, SZ_4M));
		xt_stop(test);
	}
}

static void unmap_of_parts(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	/* The middle, the front, the end, across the hole, the rest. */
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 8 * XT_4K, 4), 4);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS, 8 * XT_4K));
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA + 8 * XT_4K,
					    4 * XT_4K));
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA + 12 * XT_4K,
					     XT_PHYS + 12 * XT_4K, 8 * XT_4K));
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 2), 2);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 19 * XT_4K, 1), 1);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 19 * XT_4K, 1), 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA + 2 * XT_4K,
					     XT_PHYS + 2 * XT_4K, 6 * XT_4K));
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
	/* Stops at the hole. */
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 4 * XT_4K, 12), 4);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 9);
	/* The hole can be filled. */
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + 5 * XT_4K, XT_PHYS, 5), 0);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
}

/* The same of pieces: each way to cut three of thirteen out. */
static void unmap_of_parts_of_pieces(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	for (unsigned int i = 0; i <= 10; i++) {
		unsigned long iova = XT_IOVA + i * XT_4K;

		KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 13), 0);
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, iova, 3), 3);
		KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, XT_IOVA, XT_PHYS, i));
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, iova, 3 * XT_4K));
		KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, iova + 3 * XT_4K,
							 XT_PHYS + (i + 3) * 2 * XT_4K,
							 10 - i));
		/* The hole can be filled, and the rest goes as one. */
		KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, iova, XT_PHYS, 3), 0);
		KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, iova, XT_PHYS, 3));
		KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 13), 13);
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
	}
}

/* The record of a part takes memory: without that, nothing is unmapped. */
static void unmap_of_middle_without_memory(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	sim_reset_log(&xt->sim);
	xt_env.allocs = 0;
	xt_env.fail_at = 1;
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 8 * XT_4K, 4), 0);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS,
					     20 * XT_4K));
	/* That does not take any. */
	xt_env.allocs = 0;
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 20), 20);
	KUNIT_EXPECT_EQ(test, xt_env.allocs, 0);
}

/* No lock is held for as long as all of them take. */
static void unmap_of_very_many_mappings(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	unsigned int nr = XEN_IOMMU_MAX_MAPPINGS + 10;

	xt_without_preemption(xt);
	for (unsigned int i = 0; i < nr; i++)
		KUNIT_ASSERT_EQ(test, xt_map(domain, XT_IOVA + i * XT_4K,
					     XT_PHYS + i * 2 * XT_4K, 1), 0);
	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, nr), nr);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 2);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
	KUNIT_EXPECT_TRUE(test, RB_EMPTY_ROOT(&to_xen_domain(domain)->mappings));
}

static void unmap_across_mappings_is_one_call(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	xt_without_preemption(xt);
	for (unsigned int i = 0; i < 10; i++)
		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + 2 * i * XT_4K,
					     XT_PHYS + i * SZ_1M, 2), 0);
	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + XT_4K, 18), 18);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 1);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 2);
}

static void unmap_of_nothing(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 4), 0);
	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 4 * XT_4K, 4), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA - XT_4K, 4), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA - XT_4K, 4), 0);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);
	KUNIT_EXPECT_TRUE(test, xt_is_mapped(xt, domain, XT_IOVA, XT_PHYS, 4 * XT_4K));
}

/* Recorded, never synced: the hypervisor has nothing of it. */
static void unmap_of_what_was_never_synced(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 4), 0);
	KUNIT_EXPECT_EQ(test, iommu_map_nosync(domain, XT_IOVA + 4 * XT_4K, XT_PHYS,
					       4 * XT_4K, XT_RW, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 4);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA + 6 * XT_4K, 2), 2);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA + 2 * XT_4K, 4), 4);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 2);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 8 * XT_4K), 0);
}

/*
 * Deferred unmapping
 */

/* In a PV domain, frames must be free for use as page tables at once. */
static void queued_unmap_in_pv_is_done_at_once(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	if (!xt->sim.conf.pv)
		kunit_skip(test, "not PV");
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 20), 20);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
}

static void queued_unmap_waits_for_flush(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 20), 20);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 20);
	KUNIT_EXPECT_EQ(test, iommu_iova_to_phys(domain, XT_IOVA), 0);
	xt_flush(domain);
	KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 20 * XT_4K));
	sim_reset_log(&xt->sim);
	xt_flush(domain);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
}

/* What is not a whole mapping is not put aside. */
static void queued_unmap_of_parts_is_done_at_once(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA + 3 * XT_4K, 4), 4);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 16);
	xt_flush(domain);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 16);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 2), 2);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 14);
	xt_flush(domain);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 20 * XT_4K), 0);
}

static void queued_unmaps_go_out_together(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const unsigned int sizes[] = { 1, 2, 64, 65, 600 };

	xt_without_preemption(xt);
	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned int nr = sizes[i];

		/* Every second page: they are not one run. */
		for (unsigned int j = 0; j < nr; j++)
			KUNIT_EXPECT_EQ(test, xt_map(domain,
						     XT_IOVA + 2 * j * XT_4K,
						     XT_PHYS + j * XT_4K, 1), 0);
		for (unsigned int j = 0; j < nr; j++)
			KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA +
							      2 * j * XT_4K, 1), 1);
		sim_reset_log(&xt->sim);
		xt_flush(domain);
		KUNIT_EXPECT_LE(test, xt->sim.traps,
				DIV_ROUND_UP(nr, xt->sim.conf.caps & IOMMUCAP_runs ?
						 XEN_IOMMU_MANY_RUNS :
						 XEN_IOMMU_MULTICALLS));
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
		KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA,
					      2 * nr * XT_4K), 0);
	}
}

/* What a flush cannot unmap is in the record again, and can be unmapped later. */
static void flush_failure_is_recorded(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	static const unsigned int after[] = { 0, 1, 3, 20, 39 };

	for (unsigned int i = 0; i < ARRAY_SIZE(after); i++) {
		for (unsigned int j = 0; j < ARRAY_SIZE(xt_errors); j++) {
			unsigned int n = after[i], left = 0;

			for (unsigned int k = 0; k < 10; k++)
				KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA +
							     8 * k * XT_4K,
							     XT_PHYS + k * SZ_1M,
							     4), 0);
			for (unsigned int k = 0; k < 10; k++)
				KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain,
								      XT_IOVA +
								      8 * k * XT_4K,
								      4), 4);
			xt_limit_unmaps(xt, n, xt_errors[j]);
			xt_flush(domain);
			sim_clear_faults(&xt->sim);
			KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)),
					40 - n);
			KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA,
						      80 * XT_4K), 0);
			for (unsigned int k = 0; k < 40; k++) {
				unsigned long iova = XT_IOVA + (k / 4 * 8 + k % 4) * XT_4K;

				if (iommu_iova_to_phys(domain, iova))
					left += xt_unmap(domain, iova, 1);
			}
			KUNIT_EXPECT_EQ(test, left, 40 - n);
			KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)),
					0);
		}
	}
}

/* One mapping fails for once, the others do not: then nothing is left. */
static void flush_failure_is_tried_again(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	for (unsigned int skip = 0; skip < 12; skip++) {
		for (unsigned int k = 0; k < 10; k++)
			KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + 8 * k * XT_4K,
						     XT_PHYS + k * SZ_1M, 4), 0);
		for (unsigned int k = 0; k < 10; k++)
			KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA +
							      8 * k * XT_4K, 4), 4);
		xt_fail_unmaps(xt, skip, 1, skip & 1 ? -EBUSY : 0, 2);
		xt_flush(domain);
		sim_clear_faults(&xt->sim);
		KUNIT_EXPECT_EQ(test, xt_lies(xt, domain, XT_IOVA, 80 * XT_4K), 0);
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
	}
}

static void flush_multicall_failure(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	for (unsigned int i = 0; i < 2; i++) {
		for (unsigned int k = 0; k < 10; k++) {
			unsigned long iova = XT_IOVA + 2 * k * XT_4K;

			KUNIT_EXPECT_EQ(test, xt_map(domain, iova, XT_PHYS, 1), 0);
			KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, iova, 1), 1);
		}
		sim_add_fault(&xt->sim, SIM_MULTICALL, 0, 1, -EFAULT, 4 * i);
		xt_flush(domain);
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA, 20 * XT_4K));
	}
}

/* In the hypervisor: somebody else defers one more mapping. */
static void xt_defer_one_call(struct xt *xt, unsigned int subop, void *arg)
{
	struct iommu_domain *domain = xt->dom[0];
	unsigned long *iova = xt->priv;

	if (subop != IOMMU_unmap_pages && subop != IOMMU_unmap_runs)
		return;
	*iova += 2 * XT_4K;
	KUNIT_EXPECT_EQ(xt->test, iommu_map(domain, *iova, XT_PHYS, XT_4K, XT_RW,
					    GFP_ATOMIC), 0);
	KUNIT_EXPECT_EQ(xt->test, xt_unmap_queued(domain, *iova, 1), 1);
}

/* What is deferred before a flush is unmapped by it, and it comes to an end. */
static void flush_goes_in_pieces(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	unsigned int piece = xen_iommu_flush_size(xt->xi);
	const unsigned int sizes[] = { 0, 1, piece - 1, piece, piece + 1, 3 * piece + 5 };

	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned long iova = XT_IOVA + SZ_1G;
		unsigned int nr = sizes[i];

		for (unsigned int k = 0; k < nr; k++) {
			unsigned long at = XT_IOVA + 2 * k * XT_4K;

			KUNIT_EXPECT_EQ(test, xt_map(domain, at, XT_PHYS, 1), 0);
			KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, at, 1), 1);
		}
		xt->priv = &iova;
		xt->on_call = xt_defer_one_call;
		sim_reset_log(&xt->sim);
		xt_flush(domain);
		xt->on_call = NULL;
		KUNIT_EXPECT_TRUE(test, xt_is_empty(xt, domain, XT_IOVA,
						    2 * nr * XT_4K));
		xt_flush(domain);
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(domain)), 0);
		KUNIT_EXPECT_EQ(test, to_xen_domain(domain)->nr_deferred, 0);
		KUNIT_EXPECT_TRUE(test, list_empty(&to_xen_domain(domain)->deferred));
	}
}

/*
 * Threads and interrupts
 */

struct xt_flush_race {
	struct iommu_domain *domain;
	struct task_struct *task;
	struct completion started;
	struct completion finished;
	bool seen;
	bool early;
	u64 frames_after;
	struct xt *xt;
};

static int xt_flush_thread(void *data)
{
	struct xt_flush_race *race = data;

	complete(&race->started);
	xt_flush(race->domain);
	race->frames_after = sim_nr_frames(&race->xt->sim, xt_ctx(race->domain));
	complete(&race->finished);
	return 0;
}

/* In the hypervisor, on behalf of the first flush. */
static void xt_flush_race_call(struct xt *xt, unsigned int subop, void *arg)
{
	struct xt_flush_race *race = xt->priv;

	if (race->seen || (subop != IOMMU_unmap_pages && subop != IOMMU_unmap_runs))
		return;
	race->seen = true;
	/* Give the other thread time to find nothing, and to come back early. */
	mdelay(20);
	race->early = completion_done(&race->finished);
}

static void flush_waits_for_flush_in_progress(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	struct xt_flush_race race = { .domain = domain, .xt = xt };
	unsigned int cpu = cpumask_any_but(cpu_online_mask, raw_smp_processor_id());

	if (cpu >= nr_cpu_ids)
		kunit_skip(test, "needs two CPUs");

	init_completion(&race.started);
	init_completion(&race.finished);
	for (unsigned int i = 0; i < 4; i++)
		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + 2 * i * XT_4K,
					     XT_PHYS, 1), 0);
	for (unsigned int i = 0; i < 4; i++)
		KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain,
						      XT_IOVA + 2 * i * XT_4K, 1), 1);
	race.task = kthread_create(xt_flush_thread, &race, "xen-iommu-flush");
	KUNIT_ASSERT_FALSE(test, IS_ERR(race.task));

	xt->priv = &race;
	xt->on_call = xt_flush_race_call;
	migrate_disable();
	cpu = cpumask_any_but(cpu_online_mask, smp_processor_id());
	kthread_bind(race.task, cpu);
	wake_up_process(race.task);
	/* The window is the hypercall: let the thread come close to it. */
	wait_for_completion(&race.started);
	xt_flush(domain);
	migrate_enable();
	wait_for_completion(&race.finished);

	KUNIT_EXPECT_TRUE(test, race.seen);
	KUNIT_EXPECT_FALSE(test, race.early);
	KUNIT_EXPECT_EQ(test, race.frames_after, 0);
	xt->on_call = NULL;
}

/* On one CPU, too: the flush that unmaps holds the lock that another waits for. */
static void xt_flush_lock_call(struct xt *xt, unsigned int subop, void *arg)
{
	struct xen_iommu_domain *dom = to_xen_domain(xt->dom[0]);
	bool *held = xt->priv;

	if (!xt_is_held(&dom->flush_lock))
		*held = false;
}

static void flush_holds_its_lock(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	bool held = true;

	if (!IS_ENABLED(CONFIG_LOCKDEP) || !debug_locks)
		kunit_skip(test, "needs lockdep");
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 4), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 4), 4);
	xt->priv = &held;
	xt->on_call = xt_flush_lock_call;
	xt_flush(domain);
	xt->on_call = NULL;
	KUNIT_EXPECT_TRUE(test, held);
}

#define XT_NR_WORKERS	4

struct xt_worker {
	struct xt *xt;
	struct iommu_domain *domain;
	struct task_struct *task;
	struct completion done;
	unsigned long iova;
	phys_addr_t phys;
	u64 seed;
	unsigned int errors;
};

static int xt_worker(void *data)
{
	struct xt_worker *w = data;
	struct rnd_state rnd;

	prandom_seed_state(&rnd, w->seed);
	for (unsigned int i = 0; i < 1500; i++) {
		unsigned int n = 1 + prandom_u32_state(&rnd) % 40;
		unsigned long iova = w->iova + prandom_u32_state(&rnd) % 8 * XT_4K;
		unsigned int how = prandom_u32_state(&rnd) % 4;

		if (how == 0)
			w->errors += xt_map_pieces(w->domain, iova, w->phys, n) != 0;
		else
			w->errors += xt_map(w->domain, iova, w->phys, n) != 0;
		w->errors += iommu_iova_to_phys(w->domain, iova) != w->phys;
		if (how == 1) {
			w->errors += xt_unmap_queued(w->domain, iova, n) != n;
			xt_flush(w->domain);
		} else {
			w->errors += xt_unmap(w->domain, iova, n) != n;
		}
		w->errors += iommu_iova_to_phys(w->domain, iova) != 0;
		w->errors += sim_walk(&w->xt->sim, xt_ctx(w->domain),
				      iova >> XEN_PAGE_SHIFT, NULL, NULL);
		cond_resched();
	}
	complete(&w->done);
	return 0;
}

/* Ranges that do not overlap, in the same domain and in others. */
static void concurrent_maps_and_unmaps(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct xt_worker *w;

	w = kunit_kcalloc(test, XT_NR_WORKERS, sizeof(*w), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, w);
	xt_domain(xt);
	xt_domain(xt);
	for (unsigned int i = 0; i < XT_NR_WORKERS; i++) {
		w[i].xt = xt;
		w[i].domain = xt->dom[i / 3];
		w[i].iova = XT_IOVA + i * SZ_4M;
		w[i].phys = XT_PHYS + i * SZ_16M;
		w[i].seed = i + 1;
		init_completion(&w[i].done);
		w[i].task = kthread_run(xt_worker, &w[i], "xen-iommu-%u", i);
	}
	for (unsigned int i = 0; i < XT_NR_WORKERS; i++) {
		if (IS_ERR(w[i].task)) {
			KUNIT_FAIL(test, "no thread");
			continue;
		}
		wait_for_completion(&w[i].done);
		KUNIT_EXPECT_EQ(test, w[i].errors, 0);
	}
	KUNIT_EXPECT_EQ(test, xt->sim.refs, 0);
}

struct xt_irq {
	struct hrtimer timer;
	struct completion done;
	struct iommu_domain *domain;
	bool in_irq;
	int ret;
	size_t unmapped;
	phys_addr_t phys;
};

static enum hrtimer_restart xt_irq_fn(struct hrtimer *timer)
{
	struct xt_irq *irq = container_of(timer, struct xt_irq, timer);
	int ret = 0;

	irq->in_irq = in_hardirq();
	for (unsigned int i = 0; i < 30 && !ret; i++)
		ret = iommu_map_nosync(irq->domain, XT_IOVA + i * XT_4K,
				       XT_PHYS + i * SZ_64K, XT_4K, XT_RW,
				       GFP_ATOMIC);
	irq->ret = ret ?: iommu_sync_map(irq->domain, XT_IOVA, 30 * XT_4K);
	irq->phys = iommu_iova_to_phys(irq->domain, XT_IOVA + 29 * XT_4K);
	irq->unmapped = xt_unmap_queued(irq->domain, XT_IOVA, 10);
	xt_flush(irq->domain);
	irq->unmapped += xt_unmap(irq->domain, XT_IOVA + 11 * XT_4K, 18);
	complete(&irq->done);
	return HRTIMER_NORESTART;
}

static void map_and_unmap_in_interrupt(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct xt_irq irq = { .domain = xt_domain(xt) };

	init_completion(&irq.done);
	hrtimer_setup_on_stack(&irq.timer, xt_irq_fn, CLOCK_MONOTONIC,
			       HRTIMER_MODE_REL);
	hrtimer_start(&irq.timer, ms_to_ktime(1), HRTIMER_MODE_REL);
	wait_for_completion(&irq.done);
	hrtimer_cancel(&irq.timer);
	destroy_hrtimer_on_stack(&irq.timer);

	KUNIT_EXPECT_TRUE(test, irq.in_irq);
	KUNIT_EXPECT_EQ(test, irq.ret, 0);
	KUNIT_EXPECT_EQ(test, irq.phys, XT_PHYS + 29 * SZ_64K);
	KUNIT_EXPECT_EQ(test, irq.unmapped, 28);
	KUNIT_EXPECT_EQ(test, xt_lies(xt, irq.domain, XT_IOVA, 30 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(irq.domain)), 2);
}

/* An interrupt on a CPU that is in the hypervisor with a batch. */
static void xt_nested_call(struct xt *xt, unsigned int subop, void *arg)
{
	int *ret = xt->priv;

	if (subop != IOMMU_map_pages && subop != IOMMU_map_runs)
		return;
	xt->on_call = NULL;
	*ret = 0;
	for (unsigned int i = 0; i < 30 && !*ret; i++)
		*ret = iommu_map_nosync(xt->dom[1], XT_IOVA + i * XT_4K,
					XT_PHYS + i * SZ_64K, XT_4K, XT_RW,
					GFP_ATOMIC);
	*ret = *ret ?: iommu_sync_map(xt->dom[1], XT_IOVA, 30 * XT_4K);
}

static void map_during_a_map(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt), *other = xt_domain(xt);
	int ret = -1;

	xt->priv = &ret;
	xt->on_call = xt_nested_call;
	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 60), 0);
	KUNIT_EXPECT_EQ(test, ret, 0);
	KUNIT_EXPECT_TRUE(test, xt_pieces_mapped(xt, domain, XT_IOVA, XT_PHYS, 60));
	KUNIT_EXPECT_EQ(test, xt_lies(xt, other, XT_IOVA, 30 * XT_4K), 0);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, xt_ctx(other)), 30);
}

/*
 * Domains
 */

static u16 xt_dev_ctx(struct xt *xt, unsigned int i)
{
	return sim_find_device(&xt->sim, xt_env.segment, 0,
			       xt->dev[i].pdev.devfn)->ctx;
}

static int xt_attach(struct xt *xt, struct iommu_domain *domain, unsigned int i)
{
	return domain->ops->attach_dev(domain, xt->devp[i], NULL);
}

static void static_domains_follow_capabilities(struct kunit *test)
{
	static const u32 caps[] = {
		0, IOMMUCAP_default_identity, IOMMUCAP_identity,
		IOMMUCAP_default_identity | IOMMUCAP_identity,
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(caps); i++) {
		struct sim_conf conf = xt_super;
		struct iommu_ops *ops;
		struct xt *xt;

		conf.caps = caps[i];
		xt = xt_start(test, &conf);
		ops = &xt->xi->ops;
		KUNIT_EXPECT_PTR_EQ(test, ops->blocked_domain,
				    &xen_iommu_blocked_domain);
		KUNIT_EXPECT_PTR_EQ(test, ops->release_domain,
				    &xen_iommu_blocked_domain);
		KUNIT_EXPECT_EQ(test, ops->blocked_domain->type,
				IOMMU_DOMAIN_BLOCKED);
		KUNIT_EXPECT_EQ(test, !!ops->identity_domain, !!caps[i]);
		KUNIT_EXPECT_EQ(test, xt_attach(xt, ops->blocked_domain, 0), 0);
		if (caps[i] & IOMMUCAP_default_identity) {
			struct sim_ctx *ctx = xa_load(&xt->sim.contexts,
						      xt_dev_ctx(xt, 0));

			KUNIT_EXPECT_NE(test, xt_dev_ctx(xt, 0), 0);
			KUNIT_ASSERT_NOT_NULL(test, ctx);
			KUNIT_EXPECT_FALSE(test, ctx->identity);
			KUNIT_EXPECT_EQ(test, ctx->nr_frames, 0);
		} else {
			KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), 0);
		}
		if (ops->identity_domain) {
			struct sim_ctx *ctx;

			KUNIT_EXPECT_EQ(test, ops->identity_domain->type,
					IOMMU_DOMAIN_IDENTITY);
			KUNIT_EXPECT_EQ(test, xt_attach(xt, ops->identity_domain, 0),
					0);
			ctx = xa_load(&xt->sim.contexts, xt_dev_ctx(xt, 0));
			KUNIT_ASSERT_NOT_NULL(test, ctx);
			if (caps[i] & IOMMUCAP_default_identity)
				KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), 0);
			else
				KUNIT_EXPECT_TRUE(test, ctx->identity);
		}
		xt_stop(test);
	}
}

/* Then there is no identity domain; all else works. */
static void identity_context_refused(struct kunit *test)
{
	struct sim_conf conf = xt_super;
	struct xt *xt;

	conf.caps = IOMMUCAP_identity;
	xt = xt_new(test, &conf);
	sim_add_fault(&xt->sim, IOMMU_alloc_context, 0, 1, -ENOMEM, 0);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), 0);
	KUNIT_EXPECT_NULL(test, xt->xi->ops.identity_domain);
	KUNIT_EXPECT_NOT_NULL(test, xt->xi->ops.blocked_domain);
}

static void blocked_context_refused(struct kunit *test)
{
	struct xt *xt = xt_new(test, &xt_super);

	sim_add_fault(&xt->sim, IOMMU_alloc_context, 0, 1, -ENOMEM, 0);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), -ENOMEM);
}

static void attach_moves_device(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *a = xt_domain(xt), *b = xt_domain(xt);

	KUNIT_EXPECT_NE(test, xt_ctx(a), xt_ctx(b));
	KUNIT_EXPECT_EQ(test, xt_attach(xt, a, 0), 0);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), xt_ctx(a));
	KUNIT_EXPECT_EQ(test, xt_attach(xt, a, 1), 0);
	KUNIT_EXPECT_EQ(test, xt_attach(xt, b, 0), 0);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), xt_ctx(b));
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 1), xt_ctx(a));
	KUNIT_EXPECT_TRUE(test, list_is_singular(&to_xen_domain(a)->devices));
	KUNIT_EXPECT_TRUE(test, list_is_singular(&to_xen_domain(b)->devices));
	KUNIT_EXPECT_EQ(test, xt_attach(xt, &xen_iommu_blocked_domain, 0), 0);
	KUNIT_EXPECT_TRUE(test, list_empty(&to_xen_domain(b)->devices));
}

static void attach_failure_leaves_device(struct kunit *test)
{
	static const struct {
		int xen;
		int core;
	} errors[] = {
		/* The core tries another domain after -EINVAL only. */
		{ -EINVAL, -EINVAL }, { -ENOMEM, -ENOMEM },
		{ -ENOSPC, -ENOSPC }, { -EBUSY, -EBUSY },
		{ -ENODEV, -ENODEV }, { -ENOENT, -ENODEV },
		{ -EPERM, -ENODEV }, { -EFAULT, -ENODEV },
	};
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *a = xt_domain(xt), *b = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_attach(xt, a, 0), 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(errors); i++) {
		sim_add_fault(&xt->sim, IOMMU_reattach_device, 0, 1,
			      errors[i].xen, 0);
		KUNIT_EXPECT_EQ(test, xt_attach(xt, b, 0), errors[i].core);
		KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), xt_ctx(a));
		KUNIT_EXPECT_TRUE(test, list_is_singular(&to_xen_domain(a)->devices));
		KUNIT_EXPECT_TRUE(test, list_empty(&to_xen_domain(b)->devices));
		sim_clear_faults(&xt->sim);
	}
}

static void attach_to_domain_of_another_iommu(struct kunit *test)
{
	struct xt *xt = xt_start(test, &xt_super);
	struct iommu_domain *domain = xt_domain(xt);
	struct xen_iommu *xi = to_xen_domain(domain)->xi;

	to_xen_domain(domain)->xi = NULL;
	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 0), -EINVAL);
	to_xen_domain(domain)->xi = xi;
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), 0);
}

static void domain_alloc_refuses_what_it_cannot_do(struct kunit *test)
{
	static const u32 flags[] = {
		IOMMU_HWPT_ALLOC_NEST_PARENT, IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
		IOMMU_HWPT_FAULT_ID_VALID, IOMMU_HWPT_ALLOC_PASID,
	};
	struct xt *xt = xt_start(test, &xt_super);
	const struct iommu_user_data data = {};

	for (unsigned int i = 0; i < ARRAY_SIZE(flags); i++)
		KUNIT_EXPECT_EQ(test,
				PTR_ERR(xen_iommu_domain_alloc_paging_flags(xt->devp[0],
									    flags[i],
									    NULL)),
				-EOPNOTSUPP);
	KUNIT_EXPECT_EQ(test,
			PTR_ERR(xen_iommu_domain_alloc_paging_flags(xt->devp[0], 0,
								    &data)),
			-EOPNOTSUPP);
	KUNIT_EXPECT_EQ(test, xt_domain(xt)->pgsize_bitmap, SZ_4K | SZ_2M | SZ_1G);
}

static void domain_alloc_runs_out_of_contexts(struct kunit *test)
{
	struct iommu_domain *domain[5];
	struct xt *xt;

	xen_iommu_contexts = 6;
	xt = xt_start(test, &xt_super);
	xen_iommu_contexts = 0;
	KUNIT_EXPECT_EQ(test, xt->xi->max_ctx, 6);
	/* One is for the blocked domain. */
	for (unsigned int i = 0; i < 5; i++)
		domain[i] = xt_domain(xt);
	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -ENOSPC);
	xt_free_domain(xt, domain[2]);
	domain[2] = xt_domain(xt);
	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -ENOSPC);
	KUNIT_EXPECT_EQ(test, xt_map(domain[2], XT_IOVA, XT_PHYS, 4), 0);
}

static void domain_alloc_without_pool(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);

	xt->sim.pool = xt->sim.pool_used;
	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -ENOMEM);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_used,
			(xt->xi->blocked_ctx ? 1 : 0) +
			(xt->xi->identity_ctx ? 1 : 0));
}

/* What the hypervisor says is checked. */
static void domain_alloc_refuses_forged_context(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);

	xt->sim.forge_ctx = 0;
	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -EIO);
	xt->sim.forge_ctx = xt->xi->max_ctx + 1;
	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -EIO);
	xt->sim.forge_ctx = U16_MAX;
	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -EIO);
	xt->sim.forge_ctx = -1;
	xt_domain(xt);
}

static void domain_free_moves_devices_away(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 0), 0);
	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 1), 0);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 4), 0);
	xt_free_domain(xt, domain);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), xt->xi->blocked_ctx);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 1), xt->xi->blocked_ctx);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 2);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 0);
}

/* The context is given up, and never used for another domain. */
static void domain_free_with_devices_that_stay(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u16 ctx = xt_ctx(domain);
	unsigned int stuck = 0;

	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, i), 0);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 4), 0);
	sim_add_fault(&xt->sim, IOMMU_reattach_device, 1, 2, -EIO, 0);
	xt_free_domain(xt, domain);
	sim_clear_faults(&xt->sim);
	/* The domain is gone: no device is on a list of it. */
	for (unsigned int i = 0; i < XT_NR_DEVS; i++) {
		struct xen_iommu_dev *xdev = xt->dev[i].iommu.priv;

		KUNIT_EXPECT_TRUE(test, list_empty(&xdev->list));
		stuck += xt_dev_ctx(xt, i) == ctx;
	}
	KUNIT_EXPECT_EQ(test, stuck, 2);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 1);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_spare, 0);
	/* But the devices reach nothing there. */
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, ctx), 0);
	KUNIT_EXPECT_NE(test, xt_ctx(xt_domain(xt)), ctx);
	/* The devices are still usable. */
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		KUNIT_EXPECT_EQ(test, xt_attach(xt, xt->dom[0], i), 0);
}

static void domain_free_unmaps_what_is_left(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u16 ctx = xt_ctx(domain);

	for (unsigned int i = 0; i < 20; i++)
		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA + 2 * i * XT_4K,
					     XT_PHYS, 1 + (i & 1)), 0);
	for (unsigned int i = 0; i < 20; i += 3)
		KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA +
						      2 * i * XT_4K, 1 + (i & 1)),
				1 + (i & 1));
	xt_free_domain(xt, domain);
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, ctx), 0);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_spare, 1);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 0);
}

static void domain_free_with_mapping_that_stays(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain;
	u16 ctx;

	/* Deferred, too, where that is done. */
	for (unsigned int i = 0; i < (xt->sim.conf.pv ? 1 : 2); i++) {
		domain = xt_domain(xt);
		ctx = xt_ctx(domain);
		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 8), 0);
		if (i)
			KUNIT_EXPECT_EQ(test, xt_unmap_queued(domain, XT_IOVA, 8), 8);
		xt_limit_unmaps(xt, 3, -EIO);
		xt_free_domain(xt, domain);
		sim_clear_faults(&xt->sim);
		KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, ctx), 5);
		KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, i + 1);
		KUNIT_EXPECT_EQ(test, xt->xi->nr_spare, 0);
		KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_free_context], 0);
	}
	KUNIT_EXPECT_NE(test, xt_ctx(xt_domain(xt)), ctx);
}

/* Some hypervisors lose memory with each free. */
static void freed_contexts_are_used_again(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	u64 used;

	xt_free_domain(xt, xt_domain(xt));
	used = xt->sim.pool_used;
	for (unsigned int i = 0; i < 300; i++) {
		struct iommu_domain *domain = xt_domain(xt);

		KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 4), 0);
		KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 0), 0);
		KUNIT_EXPECT_EQ(test, xt_attach(xt, &xen_iommu_blocked_domain, 0), 0);
		xt_free_domain(xt, domain);
	}
	KUNIT_EXPECT_EQ(test, xt->sim.pool_used, used);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_free_context], 0);
}

static void xt_free_many(struct xt *xt, unsigned int nr)
{
	struct iommu_domain *domain[XEN_IOMMU_SPARE_CTX + 4];

	for (unsigned int i = 0; i < nr; i++) {
		domain[i] = xen_iommu_domain_alloc_paging_flags(xt->devp[0], 0, NULL);
		KUNIT_ASSERT_FALSE(xt->test, IS_ERR(domain[i]));
	}
	for (unsigned int i = 0; i < nr; i++)
		domain[i]->ops->free(domain[i]);
}

static void contexts_beyond_the_spare_ones_are_freed(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	unsigned int before = sim_nr_contexts(&xt->sim);
	unsigned int used = xt->xi->nr_used;

	xt_free_many(xt, XEN_IOMMU_SPARE_CTX + 3);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_free_context], 3);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_spare, XEN_IOMMU_SPARE_CTX);
	KUNIT_EXPECT_EQ(test, sim_nr_contexts(&xt->sim),
			before + XEN_IOMMU_SPARE_CTX);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_used, used);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 0);
	/* All over again. */
	xt_free_many(xt, XEN_IOMMU_SPARE_CTX + 3);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 0);
}

static void context_that_stays_busy_is_not_used_again(struct kunit *test)
{
	struct sim_conf conf = xt_super;
	struct xt *xt;

	conf.quirks = SIM_FREE_BUSY;
	xt = xt_start(test, &conf);
	xt_free_many(xt, XEN_IOMMU_SPARE_CTX + 3);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 3);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 3);
	/* The hypervisor objects if it is asked to use one of these. */
	xt_free_many(xt, XEN_IOMMU_SPARE_CTX + 3);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 6);
}

static void cache_coherency_is_enforced_with_capability(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	bool cache = xt->sim.conf.caps & IOMMUCAP_cache;
	u32 flags;

	/* Not any more, once there is a mapping without. */
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 1), 0);
	KUNIT_EXPECT_FALSE(test, domain->ops->enforce_cache_coherency(domain));

	domain = xt_domain(xt);
	KUNIT_EXPECT_EQ(test, domain->ops->enforce_cache_coherency(domain), cache);
	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 1), 0);
	sim_walk(&xt->sim, xt_ctx(domain), XT_IOVA >> XEN_PAGE_SHIFT, NULL, &flags);
	KUNIT_EXPECT_EQ(test, !!(flags & IOMMU_MAP_cache), cache);
	KUNIT_EXPECT_EQ(test, domain->ops->enforce_cache_coherency(domain), cache);
}

/*
 * Devices
 */

static void capabilities_are_honest(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct device *dev = xt->devp[0];
	u32 caps = xt->sim.conf.caps;

	KUNIT_EXPECT_EQ(test, xen_iommu_capable(dev, IOMMU_CAP_CACHE_COHERENCY),
			!!(caps & IOMMUCAP_cache));
	KUNIT_EXPECT_EQ(test,
			xen_iommu_capable(dev, IOMMU_CAP_ENFORCE_CACHE_COHERENCY),
			!!(caps & IOMMUCAP_cache));
	KUNIT_EXPECT_EQ(test, xen_iommu_capable(dev, IOMMU_CAP_DEFERRED_FLUSH),
			!xt->sim.conf.pv);
	KUNIT_EXPECT_EQ(test, xen_iommu_capable(dev, IOMMU_CAP_PRE_BOOT_PROTECTION),
			!(caps & IOMMUCAP_default_identity));
	KUNIT_EXPECT_FALSE(test, xen_iommu_capable(dev, IOMMU_CAP_DIRTY_TRACKING));
}

static void probe_refuses_devices_that_are_not_xens(struct kunit *test)
{
	struct xt *xt = xt_new(test, test->param_value);
	struct device other = { .init_name = "other" };
	struct xt_dev *dev = &xt->dev[0];

	KUNIT_ASSERT_EQ(test, xt_setup(xt), 0);
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), 0);
	xen_iommu_release_device(xt->devp[0]);

	/* The IOMMU itself, although Xen may know it. */
	sim_reset_log(&xt->sim);
	dev->pdev.class = PCI_CLASS_SYSTEM_IOMMU << 8;
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), -ENODEV);
	dev->pdev.class = PCI_CLASS_NETWORK_ETHERNET << 8;
	/* Segments that the interface cannot name. */
	xt_env.segment = 0x10000;
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), -ENODEV);
	xt_env.segment = 0;
	/* Not PCI. */
	KUNIT_EXPECT_EQ(test, PTR_ERR(__xen_iommu_probe_device(xt->xi, &other)),
			-ENODEV);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);

	/* Unknown to Xen. */
	dev->pdev.devfn = PCI_DEVFN(30, 0);
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), -ENODEV);
	dev->pdev.devfn = PCI_DEVFN(1, 0);
	xt_env.segment = 1;
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), -ENODEV);
	xt_env.segment = 0;
	/* No memory is not a reason to do without. */
	sim_add_fault(&xt->sim, IOMMU_reattach_device, 0, 1, -ENOMEM, 0);
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), -ENOMEM);
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), 0);
}

static void probe_finds_the_highest_segment(struct kunit *test)
{
	struct xt *xt = xt_new(test, &xt_super);

	KUNIT_ASSERT_EQ(test, xt_setup(xt), 0);
	sim_add_device(&xt->sim, 0xffff, 0, PCI_DEVFN(1, 0));
	xt_env.segment = 0xffff;
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), 0);
	KUNIT_EXPECT_EQ(test, xt_attach(xt, xt_domain(xt), 0), 0);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), xt_ctx(xt->dom[0]));
}

/* Hot-unplug: Xen has heard of it before we do. */
/* As if it had been in the hands of another domain. */
static void xt_lend_dev(struct xt *xt, unsigned int i)
{
	struct sim_device *dev = sim_find_device(&xt->sim, 0, 0,
						 xt->dev[i].pdev.devfn);

	((struct sim_ctx *)xa_load(&xt->sim.contexts, dev->ctx))->nr_devices--;
	dev->ctx = 0;
	((struct sim_ctx *)xa_load(&xt->sim.contexts, 0))->nr_devices++;
}

static void bind_finds_device_where_it_should_be(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);

	xen_iommu = xt->xi;
	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 0), 0);
	xt_lend_dev(xt, 0);
	xen_iommu_bus_notify(NULL, BUS_NOTIFY_BOUND_DRIVER, xt->devp[0]);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), 0);
	xen_iommu_bus_notify(NULL, BUS_NOTIFY_BIND_DRIVER, xt->devp[0]);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), xt_ctx(domain));
	KUNIT_EXPECT_TRUE(test, list_is_singular(&to_xen_domain(domain)->devices));

	/* The blocked domain is no less serious. */
	KUNIT_EXPECT_EQ(test, xt_attach(xt, &xen_iommu_blocked_domain, 0), 0);
	xt_lend_dev(xt, 0);
	xen_iommu_bus_notify(NULL, BUS_NOTIFY_BIND_DRIVER, xt->devp[0]);
	KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, 0), xt->xi->blocked_ctx);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 0);

	sim_add_fault(&xt->sim, IOMMU_reattach_device, 0, 1, -EPERM, 0);
	xen_iommu_bus_notify(NULL, BUS_NOTIFY_BIND_DRIVER, xt->devp[0]);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 1);
	xen_iommu = NULL;
}

/* Whoever gets the context next would share it with that device. */
static void release_of_device_that_stays(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u16 ctx = xt_ctx(domain);

	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 1), 0);
	sim_add_fault(&xt->sim, IOMMU_reattach_device, 0, 1, -EBUSY, 0);
	KUNIT_EXPECT_EQ(test, xt_attach(xt, &xen_iommu_blocked_domain, 1), -EBUSY);
	xen_iommu_release_device(xt->devp[1]);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 1);
	xt_free_domain(xt, domain);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 1);
	KUNIT_EXPECT_NE(test, xt_ctx(xt_domain(xt)), ctx);
}

static void release_of_device_that_is_gone(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	struct sim_device *dev;

	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 0), 0);
	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 1), 0);
	dev = sim_find_device(&xt->sim, 0, 0, xt->dev[0].pdev.devfn);
	((struct sim_ctx *)xa_load(&xt->sim.contexts, dev->ctx))->nr_devices--;
	dev->gone = true;
	KUNIT_EXPECT_EQ(test, xt_attach(xt, &xen_iommu_blocked_domain, 0), -ENODEV);
	xen_iommu_release_device(xt->devp[0]);
	KUNIT_EXPECT_NULL(test, xt->dev[0].iommu.priv);
	KUNIT_EXPECT_TRUE(test, list_is_singular(&to_xen_domain(domain)->devices));
	KUNIT_EXPECT_EQ(test, xt_attach(xt, &xen_iommu_blocked_domain, 1), 0);
	xt_free_domain(xt, domain);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 0);
}

static int xt_count_regions(struct xt *xt, unsigned int dev,
			    enum iommu_resv_type type, phys_addr_t start,
			    size_t length)
{
	struct iommu_resv_region *region, *next;
	int found = 0;
	LIST_HEAD(head);

	xen_iommu_get_resv_regions(xt->devp[dev], &head);
	list_for_each_entry_safe(region, next, &head, list) {
		if (region->type == type && region->start == start &&
		    region->length == length)
			found++;
		kfree(region);
	}
	return found;
}

static struct xt *xt_start_rdm(struct kunit *test, unsigned long quirks)
{
	struct sim_conf conf = xt_super;
	struct xt *xt;

	conf.quirks = quirks;
	xt = xt_new(test, &conf);
	sim_add_rdm(&xt->sim, 0x1000, 16, 0, PCI_DEVFN(1, 0));
	sim_add_rdm(&xt->sim, 0x2000, 1, 0, PCI_DEVFN(2, 0));
	sim_add_rdm(&xt->sim, 0x3000, 0, 0, PCI_DEVFN(2, 0));
	KUNIT_ASSERT_EQ(test, xt_setup(xt), 0);
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		KUNIT_ASSERT_EQ(test, xt_probe(xt, i), 0);
	return xt;
}

/* Xen maps all of them for all devices. */
static void reserved_regions_own_and_others(struct kunit *test)
{
	struct xt *xt = xt_start_rdm(test, 0);
	unsigned int warnings;

	KUNIT_EXPECT_EQ(test, xt->xi->nr_rdm, 2);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_DIRECT, 0x1000000,
					       0x10000), 1);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_RESERVED, 0x2000000,
					       0x1000), 1);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 1, IOMMU_RESV_RESERVED, 0x1000000,
					       0x10000), 1);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 1, IOMMU_RESV_DIRECT, 0x2000000,
					       0x1000), 1);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 2, IOMMU_RESV_RESERVED, 0x1000000,
					       0x10000), 1);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 2, IOMMU_RESV_RESERVED, 0x2000000,
					       0x1000), 1);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_MSI,
					       MSI_RANGE_START, MSI_RANGE_SIZE),
			IS_ENABLED(CONFIG_X86));
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_RESERVED,
					       HT_RANGE_START, HT_RANGE_SIZE),
			xen_iommu_has_ht_range());

	xt->dev[0].pdev.class = PCI_CLASS_SERIAL_USB_XHCI;
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_DIRECT_RELAXABLE,
					       0x1000000, 0x10000), 1);
	xt->dev[0].pdev.class = PCI_CLASS_DISPLAY_VGA << 8;
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_DIRECT_RELAXABLE,
					       0x1000000, 0x10000), 1);
	xt->dev[0].pdev.class = PCI_CLASS_NETWORK_ETHERNET << 8;
	KUNIT_EXPECT_EQ(test, xt_warnings(), 0);

	/* Refused for the device: each may be its own. */
	warnings = xt_warnings();
	sim_add_fault(&xt->sim, SIM_MEMORY_OP, 0, 1, -EPERM, 0);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 2, IOMMU_RESV_DIRECT, 0x1000000,
					       0x10000), 1);
	KUNIT_EXPECT_EQ(test, xt_warnings(), warnings + 1);
	sim_clear_faults(&xt->sim);
	sim_add_fault(&xt->sim, SIM_MEMORY_OP, 1, 1, -EFAULT, 0);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 1, IOMMU_RESV_DIRECT, 0x1000000,
					       0x10000), 1);
	KUNIT_EXPECT_EQ(test, xt_warnings(), warnings + 2);
}

/* One warning, never silence, and all else works. */
static void reserved_regions_query_refused(struct kunit *test)
{
	static const int errors[] = { -EPERM, XT_NO_HYPERCALL, -EFAULT };

	for (unsigned int i = 0; i < ARRAY_SIZE(errors); i++) {
		struct xt *xt = xt_new(test, &xt_super);

		sim_add_rdm(&xt->sim, 0x1000, 16, 0, PCI_DEVFN(1, 0));
		sim_add_fault(&xt->sim, SIM_MEMORY_OP, i == 2 ? 1 : 0, 1000,
			      errors[i], 0);
		KUNIT_ASSERT_EQ(test, xt_setup(xt), 0);
		KUNIT_EXPECT_EQ(test, xt_warnings(), 1);
		KUNIT_ASSERT_EQ(test, xt_probe(xt, 0), 0);
		KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_DIRECT,
						       0x1000000, 0x10000), 0);
		KUNIT_EXPECT_EQ(test, xt_warnings(), 1);
		KUNIT_EXPECT_EQ(test, xt_map(xt_domain(xt), XT_IOVA, XT_PHYS, 1), 0);
		xt_stop(test);
	}
}

static void reserved_regions_that_grow(struct kunit *test)
{
	struct xt *xt = xt_start_rdm(test, SIM_RDM_GROWS);

	KUNIT_EXPECT_EQ(test, xt->xi->nr_rdm, 0);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 1);
}

static void no_reserved_regions_no_warning(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);

	KUNIT_EXPECT_EQ(test, xt->xi->nr_rdm, 0);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[SIM_MEMORY_OP], 1);
	KUNIT_EXPECT_EQ(test, xt_count_regions(xt, 0, IOMMU_RESV_DIRECT, 0, 0), 0);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 0);
}

/*
 * Initialisation
 */

static void init_only_if_needed(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	bool done = xt->sim.conf.quirks & SIM_INITIALISED;

	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_init], done ? 0 : 1);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_query_capabilities], done ? 1 : 2);
	KUNIT_EXPECT_EQ(test, xt->xi->inherited, done);
	KUNIT_EXPECT_EQ(test, xt->xi->max_ctx, xt->sim.max_ctx);
	KUNIT_EXPECT_EQ(test, xt->xi->max_iova, XT_MAX_IOVA);
	KUNIT_EXPECT_EQ(test, xt->xi->pool_order < 0, done);
	KUNIT_EXPECT_EQ(test, xt_warnings(), 0);
}

/* From 64 MiB to 16 TiB; the hypervisor objects to unsafe values itself. */
static void init_sizes_follow_memory(struct kunit *test)
{
	for (unsigned int shift = 26; shift <= 44; shift += 3) {
		struct xt *xt = xt_new(test, &xt_super);
		u64 pages = BIT_ULL(shift - XEN_PAGE_SHIFT);

		xt_env.ram_pages = BIT(shift - PAGE_SHIFT);
		KUNIT_EXPECT_EQ(test, xt_setup(xt), 0);
		KUNIT_EXPECT_GE(test, xt->xi->max_ctx, XEN_IOMMU_MIN_CTX);
		KUNIT_EXPECT_LE(test, xt->xi->max_ctx, XEN_IOMMU_MAX_CTX);
		/* Enough to map all of it, page by page. */
		if (shift < 40)
			KUNIT_EXPECT_GE(test, xt->sim.pool, pages / 512);
		KUNIT_EXPECT_LE(test, xt->sim.pool, max(pages / 16, 8192ULL));
		xt_stop(test);
	}
}

static void init_parameters_stay_safe(struct kunit *test)
{
	static const struct {
		unsigned int contexts;
		int order;
		u16 max_ctx;
	} params[] = {
		{ 1, 0, 2 }, { 2, 1, 2 }, { 100, 12, 100 },
		{ 0xffff, 21, 0xfffe }, { UINT_MAX, INT_MAX, 0xfffe },
		{ 10, INT_MIN, 10 },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(params); i++) {
		struct xt *xt = xt_new(test, &xt_super);

		xen_iommu_contexts = params[i].contexts;
		xen_iommu_pool_order = params[i].order;
		KUNIT_EXPECT_EQ(test, xt_setup(xt), 0);
		KUNIT_EXPECT_EQ(test, xt->xi->max_ctx, params[i].max_ctx);
		if (params[i].order > 0)
			KUNIT_EXPECT_EQ(test, xt->xi->pool_order,
					min(params[i].order, XEN_IOMMU_MAX_ORDER));
		xen_iommu_contexts = 0;
		xen_iommu_pool_order = -1;
		xt_stop(test);
	}
}

static void init_tries_smaller_pools(struct kunit *test)
{
	struct xt *xt = xt_new(test, &xt_super);
	int order;

	order = xen_iommu_default_order(256);
	sim_add_fault(&xt->sim, IOMMU_init, 0, 3, -ENOMEM, 0);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), 0);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_init], 4);
	KUNIT_EXPECT_EQ(test, xt->xi->pool_order, order - 3);
	KUNIT_EXPECT_EQ(test, xt->sim.pool, BIT_ULL(order - 3));
	xt_stop(test);

	/* But not for ever. */
	xt = xt_new(test, &xt_super);
	sim_add_fault(&xt->sim, IOMMU_init, 0, 1000, -ENOMEM, 0);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), -ENOMEM);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_init],
			order - XEN_IOMMU_MIN_ORDER + 1);
}

/* A draft reports the error of the allocation that follows. */
static void init_failure_is_an_error(struct kunit *test)
{
	struct sim_conf conf = xt_super;
	struct xt *xt;

	conf.quirks = SIM_INIT_FALLS_THROUGH;
	xt = xt_new(test, &conf);
	sim_add_fault(&xt->sim, IOMMU_init, 0, 1000, -ENOMEM, 0);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), -ENOSPC);
	xt_stop(test);

	conf.quirks = SIM_INIT_IDLE;
	xt = xt_new(test, &conf);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), -ENODEV);
	xt_stop(test);

	xt = xt_new(test, &xt_super);
	sim_add_fault(&xt->sim, IOMMU_init, 0, 1, -EACCES, 0);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), -EACCES);
	xt_stop(test);

	/* The second query. */
	xt = xt_new(test, &xt_super);
	sim_add_fault(&xt->sim, IOMMU_query_capabilities, 1, 1, -EFAULT, 0);
	KUNIT_EXPECT_EQ(test, xt_setup(xt), -EFAULT);
}

static void setup_declines_quietly(struct kunit *test)
{
	static const int errors[] = { XT_NO_HYPERCALL, -ENODEV, -EPERM, -EOPNOTSUPP };

	for (unsigned int i = 0; i < ARRAY_SIZE(errors); i++) {
		struct xt *xt = xt_new(test, &xt_super);

		sim_add_fault(&xt->sim, IOMMU_query_capabilities, 0, 100,
			      errors[i], 0);
		KUNIT_EXPECT_EQ(test, xt_setup(xt), errors[i]);
		KUNIT_EXPECT_EQ(test, xt->sim.traps, 1);
		KUNIT_EXPECT_EQ(test, xt_warnings(), 0);
		xt_stop(test);
	}
}

static void setup_needs_a_page_size_that_serves(struct kunit *test)
{
	static const u32 masks[] = { 0, SZ_2M, SZ_2M | SZ_1G, 0xfff };

	for (unsigned int i = 0; i < ARRAY_SIZE(masks); i++) {
		struct sim_conf conf = xt_super;
		struct xt *xt;

		conf.pgsize_mask = masks[i];
		xt = xt_new(test, &conf);
		KUNIT_EXPECT_EQ(test, xt_setup(xt), -ENODEV);
		KUNIT_EXPECT_EQ(test, xt_warnings(), 1);
		xt_stop(test);
	}
}

static void xt_init_env(bool domain, bool pv, bool initial)
{
	xt_env.domain = domain;
	xt_env.pv = pv;
	xt_env.initial = initial;
}

/* The driver's own way in: early, then registration. */
static void initcalls_register_the_iommu(struct kunit *test)
{
	for (unsigned int i = 0; i < 3; i++) {
		/* plain, pv_scattered, and interrupts that are remapped */
		struct sim_conf conf = xt_confs[i == 1 ? 4 : 0];
		struct iommu_device *iommu;
		struct xt *xt;

		if (i == 2)
			conf.caps |= IOMMUCAP_isolated_msi;
		xt = xt_new(test, &conf);

		xt_init_env(true, i == 1, true);
		KUNIT_EXPECT_EQ(test, xen_iommu_early_init(), 0);
		KUNIT_ASSERT_NOT_NULL(test, xen_iommu);
		KUNIT_EXPECT_TRUE(test, xt_env.acs);
		KUNIT_EXPECT_EQ(test, xt_env.isolated_msi,
				IS_ENABLED(CONFIG_X86) && i == 2);
		KUNIT_EXPECT_EQ(test, xt_env.registered, 0);
		KUNIT_EXPECT_EQ(test, xen_iommu_init(), 0);
		KUNIT_EXPECT_EQ(test, xt_env.registered, 1);
		KUNIT_EXPECT_PTR_EQ(test, xt_env.nb, &xen_iommu_nb);
		KUNIT_EXPECT_EQ(test, xt_env.sysfs, 1);
		KUNIT_EXPECT_PTR_EQ(test, xt_env.ops, &xen_iommu->ops);
		KUNIT_EXPECT_PTR_EQ(test, xt_env.stats, xen_iommu);
		KUNIT_EXPECT_PTR_EQ(test, xt_env.stats_fops, &xen_iommu_stats_fops);
		KUNIT_EXPECT_EQ(test, !!xen_iommu->hyp->pfn_to_gfn, i == 1);
		if (i == 1)
			KUNIT_EXPECT_EQ(test, xen_iommu->hyp->pfn_to_gfn(5),
					sim_pfn_to_gfn(5));

		iommu = xen_iommu_probe_device(xt->devp[0]);
		KUNIT_EXPECT_PTR_EQ(test, iommu, &xen_iommu->iommu);
		KUNIT_EXPECT_EQ(test, xt_map_pieces(xt_domain(xt), XT_IOVA, XT_PHYS,
						    60), 0);
		KUNIT_EXPECT_EQ(test, xt_unmap(xt->dom[0], XT_IOVA, 60), 60);

		xt_kfree(xt->xi);
		xt->xi = xen_iommu;
		xt->ready = true;
		xen_iommu = NULL;
		xt_stop(test);
	}
}

static void initcalls_decline_quietly(struct kunit *test)
{
	static const struct {
		bool domain, initial, enable;
		int error;
		unsigned int traps;
	} envs[] = {
		{ false, false, true, 0, 0 },		/* bare metal */
		{ true, true, false, 0, 0 },		/* switched off */
		{ true, false, true, XT_NO_HYPERCALL, 1 },	/* domU */
		{ true, true, true, XT_NO_HYPERCALL, 1 },	/* dom0 of an older Xen */
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(envs); i++) {
		struct xt *xt = xt_new(test, &xt_super);

		xt_init_env(envs[i].domain, false, envs[i].initial);
		xen_iommu_enable = envs[i].enable;
		if (envs[i].error)
			sim_add_fault(&xt->sim, IOMMU_query_capabilities, 0, 100,
				      envs[i].error, 0);
		KUNIT_EXPECT_EQ(test, xen_iommu_early_init(), 0);
		KUNIT_EXPECT_NULL(test, xen_iommu);
		KUNIT_EXPECT_EQ(test, xen_iommu_init(), 0);
		KUNIT_EXPECT_EQ(test, xt_env.registered, 0);
		KUNIT_EXPECT_FALSE(test, xt_env.acs);
		KUNIT_EXPECT_EQ(test, xt->sim.traps, envs[i].traps);
		KUNIT_EXPECT_EQ(test, xt_warnings(), 0);
		xen_iommu_enable = true;
		xt_stop(test);
	}
}

static void initcall_failures_leave_nothing(struct kunit *test)
{
	for (unsigned int i = 0; i < 3; i++) {
		struct xt *xt = xt_new(test, &xt_super);

		xt_init_env(true, false, true);
		if (i == 2) {
			xt_env.fail_at = 1;
			KUNIT_EXPECT_EQ(test, xen_iommu_early_init(), -ENOMEM);
		} else {
			KUNIT_EXPECT_EQ(test, xen_iommu_early_init(), 0);
			xt_env.sysfs_ret = i ? 0 : -EEXIST;
			xt_env.register_ret = i ? -EBUSY : 0;
			KUNIT_EXPECT_EQ(test, xen_iommu_init(), i ? -EBUSY : -EEXIST);
			KUNIT_EXPECT_EQ(test, xt_env.sysfs, 0);
			KUNIT_EXPECT_GE(test, xt_warnings(), 1);
			KUNIT_EXPECT_EQ(test, sim_nr_contexts(&xt->sim), 0);
		}
		KUNIT_EXPECT_NULL(test, xen_iommu);
		xt_stop(test);
	}
}

/*
 * Kexec
 */

static void inherited_devices_are_blocked(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	bool inherited = xt->sim.conf.quirks & SIM_INITIALISED;

	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, i),
				inherited ? xt->xi->blocked_ctx : 0);
	KUNIT_EXPECT_TRUE(test, !inherited || xt->xi->blocked_ctx);
}

/* With contexts of a dead kernel, one of them with a device. */
static struct xt *xt_start_inherited(struct kunit *test, u32 caps, int *busy)
{
	struct sim_conf conf = xt_super;
	struct xt *xt;

	conf.caps |= caps;
	conf.quirks = SIM_INITIALISED;
	conf.max_ctx = 6;
	conf.pool = 100;
	xt = xt_new(test, &conf);
	*busy = sim_add_stale_ctx(&xt->sim, 3);
	while (sim_nr_contexts(&xt->sim) < 5)
		sim_add_stale_ctx(&xt->sim, 600);
	sim_add_device(&xt->sim, 0, 7, 7);
	sim_find_device(&xt->sim, 0, 7, 7)->ctx = *busy;
	((struct sim_ctx *)xa_load(&xt->sim.contexts, *busy))->nr_devices++;
	((struct sim_ctx *)xa_load(&xt->sim.contexts, 0))->nr_devices--;

	KUNIT_ASSERT_EQ(test, xt_setup(xt), 0);
	KUNIT_EXPECT_TRUE(test, xt->xi->inherited);
	KUNIT_EXPECT_EQ(test, xt_probe(xt, 0), 0);
	return xt;
}

static void inherited_contexts_are_reclaimed(struct kunit *test)
{
	int busy;
	struct xt *xt = xt_start_inherited(test, IOMMUCAP_runs, &busy);

	xt->sim.full_ok = true;
	for (unsigned int i = 0; i < 4; i++) {
		struct iommu_domain *domain = xt_domain(xt);

		KUNIT_EXPECT_NE(test, xt_ctx(domain), busy);
		KUNIT_EXPECT_NE(test, xt_ctx(domain), xt->xi->blocked_ctx);
		KUNIT_EXPECT_EQ(test, xt_map(domain, 0x1000 * XT_4K, XT_PHYS, 5), 0);
	}
	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -ENOSPC);
	xt->contexts_ok = 1;
}

/* Hypervisors without extensions may not survive that. */
static void inherited_contexts_are_left_to_drafts(struct kunit *test)
{
	int busy;
	struct xt *xt = xt_start_inherited(test, 0, &busy);

	KUNIT_EXPECT_EQ(test, PTR_ERR(xt_alloc_domain(xt)), -ENOSPC);
	KUNIT_EXPECT_EQ(test, xt->sim.calls[IOMMU_free_context], 0);
	xt->contexts_ok = 5;
}

static void shutdown_for_kexec_leaves_nothing(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt), *other = xt_domain(xt);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	KUNIT_EXPECT_EQ(test, xt_map(other, XT_IOVA, XT_PHYS, 20), 0);
	KUNIT_EXPECT_EQ(test, xt_unmap_queued(other, XT_IOVA, 20), 20);
	KUNIT_EXPECT_EQ(test, xt_attach(xt, domain, 0), 0);
	KUNIT_EXPECT_EQ(test, xt_attach(xt, other, 1), 0);

	/* Power off: nothing to do. */
	sim_reset_log(&xt->sim);
	xen_iommu_shutdown(xt->xi);
	KUNIT_EXPECT_EQ(test, xt->sim.traps, 0);

	xt_env.kexec = true;
	xen_iommu_shutdown(xt->xi);
	xt_env.kexec = false;
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		KUNIT_EXPECT_EQ(test, xt_dev_ctx(xt, i), 0);
	KUNIT_EXPECT_EQ(test, xt->sim.refs, 0);
	KUNIT_EXPECT_EQ(test, sim_nr_contexts(&xt->sim),
			xt->sim.leaked);

	/* Nothing runs after that but the next kernel. */
	list_del(&to_xen_domain(domain)->list);
	list_del(&to_xen_domain(other)->list);
	xt->nr_doms = 0;
	xt_kfree(to_xen_domain(domain));
	xt_kfree(to_xen_domain(other));
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		xen_iommu_release_device(xt->devp[i]);
	xen_iommu_free(xt->xi);
	xt->ready = false;
	xt->contexts_ok = sim_nr_contexts(&xt->sim);
}

/* The hypervisor objects if a context with mappings is freed. */
static void shutdown_for_kexec_leaves_lost_contexts(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u16 ctx = xt_ctx(domain);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	xt_limit_unmaps(xt, 4, -EIO);
	xt_free_domain(xt, domain);
	sim_clear_faults(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt->xi->nr_lost, 1);
	xt_env.kexec = true;
	xen_iommu_shutdown(xt->xi);
	xt_env.kexec = false;
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, ctx), 16);
	xt->xi->blocked_ctx = XEN_IOMMU_NO_CTX;
	xt->xi->identity_ctx = XEN_IOMMU_NO_CTX;
}

static void shutdown_for_kexec_keeps_what_is_stuck(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u16 ctx = xt_ctx(domain);

	KUNIT_EXPECT_EQ(test, xt_map(domain, XT_IOVA, XT_PHYS, 20), 0);
	xt_limit_unmaps(xt, 4, -EIO);
	xt_env.kexec = true;
	/* The hypervisor objects if a context with mappings is freed. */
	xen_iommu_shutdown(xt->xi);
	xt_env.kexec = false;
	KUNIT_EXPECT_EQ(test, sim_nr_frames(&xt->sim, ctx), 16);
	xt->xi->blocked_ctx = XEN_IOMMU_NO_CTX;
	xt->xi->identity_ctx = XEN_IOMMU_NO_CTX;
}

/*
 * Observability
 */

static void sysfs_shows_limits(struct kunit *test)
{
	static const struct {
		const char *name, *value;
	} attrs[] = {
		{ "max_iova", "0xffffffffffff\n" },
		{ "page_sizes", "0x40201000\n" },
		{ "capabilities", "0x1\n" },
		{ "contexts", "256\n" },
		{ "contexts_used", "2\n" },
		{ "contexts_spare", "1\n" },
		{ "contexts_lost", "0\n" },
		{ "pool_order", "13\n" },
	};
	struct xt *xt = xt_start(test, &xt_super);
	struct iommu_domain *domain;
	struct device dev = {};
	unsigned int seen = 0;
	char *buf;

	buf = (char *)get_zeroed_page(GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, buf);
	domain = xt_domain(xt);
	xt_domain(xt);
	xt_free_domain(xt, domain);
	dev_set_drvdata(&dev, &xt->xi->iommu);
	for (struct attribute **attr = xen_iommu_attrs; *attr; attr++) {
		struct device_attribute *da =
			container_of(*attr, struct device_attribute, attr);

		da->show(&dev, da, buf);
		for (unsigned int i = 0; i < ARRAY_SIZE(attrs); i++)
			if (!strcmp((*attr)->name, attrs[i].name)) {
				KUNIT_EXPECT_STREQ(test, buf, attrs[i].value);
				seen++;
			}
	}
	KUNIT_EXPECT_EQ(test, seen, ARRAY_SIZE(attrs));
	free_page((unsigned long)buf);
}

static u64 xt_stat(struct xt *xt, const char *name)
{
	struct seq_file s = { .size = PAGE_SIZE, .private = xt->xi };
	u64 value = U64_MAX;
	char *line;

	s.buf = (char *)get_zeroed_page(GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(xt->test, s.buf);
	xen_iommu_stats_show(&s, NULL);
	for (line = s.buf; line && *line; line = strchrnul(line, '\n') + 1) {
		size_t len = strlen(name);

		if (!strncmp(line, name, len) && line[len] == ' ')
			if (sscanf(line + len, " %llu", &value) == 1)
				break;
	}
	free_page((unsigned long)s.buf);
	return value;
}

static void counters_count(struct kunit *test)
{
	struct xt *xt = xt_start(test, test->param_value);
	struct iommu_domain *domain = xt_domain(xt);
	u64 calls = xt_stat(xt, "hypercalls"), errors = xt_stat(xt, "errors");

	xt_without_preemption(xt);
	sim_reset_log(&xt->sim);
	KUNIT_EXPECT_EQ(test, xt_map_pieces(domain, XT_IOVA, XT_PHYS, 60), 0);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "pages_mapped"), 60);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "hypercalls") - calls, xt->sim.traps);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "map_ops"),
			xt->sim.calls[IOMMU_map_pages] +
			xt->sim.calls[IOMMU_map_runs]);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "multicalled"),
			xt->sim.calls[SIM_MULTICALL] ?
			xt->sim.calls[IOMMU_map_pages] : 0);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "short_maps"), 0);
	xt_fail_unmaps(xt, 0, 1, -ENOMEM, 7);
	KUNIT_EXPECT_EQ(test, xt_unmap(domain, XT_IOVA, 60), 60);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "pages_unmapped"), 60);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "unmap_ops"), 2);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "short_unmaps"), 1);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "errors") - errors, 1);
	xt_fail_maps(xt, 0, 1, -ENOMEM, 0);
	KUNIT_EXPECT_NE(test, xt_map(domain, XT_IOVA, XT_PHYS, 1), 0);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "short_maps"), 1);
	KUNIT_EXPECT_EQ(test, xt_stat(xt, "attaches"), XT_NR_DEVS);
}

/*
 * Every allocation made to fail in turn
 */

/* All that the driver does. Returns the first error. */
static int xt_scenario(struct xt *xt)
{
	struct iommu_resv_region *region, *next;
	struct iommu_domain *domain;
	int ret, err = 0;
	LIST_HEAD(head);

	ret = xt_setup(xt);
	if (ret)
		return ret;
	ret = xt_probe(xt, 0);
	if (ret)
		return ret;
	xen_iommu_get_resv_regions(xt->devp[0], &head);
	list_for_each_entry_safe(region, next, &head, list)
		kfree(region);
	domain = xt_alloc_domain(xt);
	if (IS_ERR(domain))
		return PTR_ERR(domain);
	ret = xt_attach(xt, domain, 0);
	if (ret)
		return ret;

	err = xt_map(domain, XT_IOVA, XT_PHYS, 20) ?: err;
	ret = xt_map_pieces(domain, XT_IOVA + SZ_1M, XT_PHYS, 30);
	if (ret) {
		/* As iommu_map_sg() does. */
		err = ret;
		xt_unmap(domain, XT_IOVA + SZ_1M, 30);
	}
	xt_unmap(domain, XT_IOVA + 4 * XT_4K, 4);
	KUNIT_EXPECT_EQ(xt->test, xt_lies(xt, domain, XT_IOVA, SZ_2M), 0);
	xt_unmap_queued(domain, XT_IOVA, 20);
	xt_unmap_queued(domain, XT_IOVA + SZ_1M, 30);
	xt_flush(domain);
	KUNIT_EXPECT_EQ(xt->test, xt_lies(xt, domain, XT_IOVA, SZ_2M), 0);
	xt_free_domain(xt, domain);
	/* If something could not be unmapped, the context is given up. */
	KUNIT_EXPECT_TRUE(xt->test, !xt->sim.refs || xt->xi->nr_lost);
	return err;
}

static void each_allocation_fails_in_turn(struct kunit *test)
{
	unsigned int n = 0;
	bool hit;

	do {
		struct xt *xt = xt_new(test, test->param_value);

		sim_add_rdm(&xt->sim, 0x1000, 16, 0, PCI_DEVFN(1, 0));
		xt_env.fail_at = ++n;
		xt_scenario(xt);
		hit = xt_env.allocs >= n;
		if (!xt->ready)
			/* A blocked context was there before. */
			xt->contexts_ok = sim_nr_contexts(&xt->sim);
		/* No leaks, no contexts but those that are kept: */
		xt_stop(test);
	} while (hit && n < 1000);
	/* The IOMMU, devices, regions, domains, mappings. */
	KUNIT_EXPECT_GT(test, n, 15);
	KUNIT_EXPECT_LT(test, n, 1000);
}

/* The same with each hypercall. */
static void each_hypercall_fails_in_turn(struct kunit *test)
{
	static const int errors[] = { -ENOMEM, -EBUSY };

	for (unsigned int subop = 0; subop < SIM_NR_SUBOPS; subop++) {
		for (unsigned int i = 0; i < ARRAY_SIZE(errors); i++) {
			unsigned int n = 0;
			u64 injected;

			do {
				struct xt *xt = xt_new(test, test->param_value);

				sim_add_rdm(&xt->sim, 0x1000, 16, 0,
					    PCI_DEVFN(1, 0));
				sim_add_fault(&xt->sim, subop, n++, 1, errors[i], 0);
				xt_scenario(xt);
				injected = xt->sim.nr_injected;
				if (!xt->ready)
					xt->contexts_ok = sim_nr_contexts(&xt->sim);
				xt_stop(test);
			} while (injected && n < 1000);
			KUNIT_EXPECT_LT(test, n, 1000);
		}
	}
}

/*
 * Random operations, compared with a model
 *
 * The model has a page of each domain's window in an array; it knows neither
 * mappings nor trees nor runs. After a failure it takes over from the hypervisor
 * what is left, as the driver should, and compares.
 */

#define XT_RND_PAGES	4096
#define XT_RND_DOMS	3
/* Pages for the tables of one domain. */
#define XT_RND_TABLES	(XT_RND_PAGES / 512 + 2)

struct xt_model {
	struct iommu_domain *domain;
	unsigned long base;
	/* Physical address; 0 if not mapped. */
	phys_addr_t phys[XT_RND_PAGES];
	/* Unmapped, but only after the next flush. */
	bool queued[XT_RND_PAGES];
};

struct xt_random {
	struct xt *xt;
	struct rnd_state rnd;
	struct xt_model model[XT_RND_DOMS];
	/* Where the devices are: a domain, or none. */
	int where[XT_NR_DEVS];
	u64 done[8];
	u64 failed;
	u64 strays;
	/* The pool runs out of pages now and then. */
	bool scarce;
	u64 divergences;
	unsigned int op;
};

static u32 xt_rnd(struct xt_random *r, u32 max)
{
	return prandom_u32_state(&r->rnd) % max;
}

#define xt_diverges(r, fmt, ...)					\
do {									\
	struct xt_random *__r = (r);					\
									\
	if (!__r->divergences++)					\
		kunit_err(__r->xt->test, "operation %u: " fmt "\n",	\
			  __r->op, ##__VA_ARGS__);			\
} while (0)

/* Driver, hypervisor and model on a range of pages. */
static void xt_rnd_check(struct xt_random *r, struct xt_model *m,
			 unsigned int page, unsigned int nr)
{
	u16 ctx = xt_ctx(m->domain);

	for (unsigned int i = page; i < min(page + nr, XT_RND_PAGES); i++) {
		unsigned long iova = m->base + i * XT_4K;
		phys_addr_t phys = iommu_iova_to_phys(m->domain, iova);
		phys_addr_t expected = m->queued[i] ? 0 : m->phys[i];
		bool there;
		u64 gfn;

		there = sim_walk(&r->xt->sim, ctx, iova >> XEN_PAGE_SHIFT, &gfn, NULL);
		if (phys != expected)
			xt_diverges(r, "page %#x: %#llx instead of %#llx", i,
				    (u64)phys, (u64)expected);
		if (there != !!m->phys[i] ||
		    (there && gfn != xt_gfn(r->xt, m->phys[i])))
			xt_diverges(r, "page %#x: hypervisor has %#llx (%d), model %#llx",
				    i, gfn, there, (u64)m->phys[i]);
	}
}

static bool xt_rnd_is_free(struct xt_model *m, unsigned int page, unsigned int nr)
{
	for (unsigned int i = page; i < page + nr; i++)
		if (m->phys[i])
			return false;
	return true;
}

static void xt_rnd_range(struct xt_random *r, unsigned int *page, unsigned int *nr)
{
	static const unsigned int lengths[] = { 1, 1, 4, 16, 64, 64, 700 };

	*nr = 1 + xt_rnd(r, lengths[xt_rnd(r, ARRAY_SIZE(lengths))]);
	*page = xt_rnd(r, XT_RND_PAGES - *nr);
	/* Superpages, now and then. */
	if (!xt_rnd(r, 8)) {
		*page = round_down(*page, 512);
		*nr = min(round_up(*nr, 512), XT_RND_PAGES - *page);
	}
}

static void xt_rnd_free(struct xt_random *r, struct xt_model *m);

/*
 * After a map that failed and whose undoing failed: the record may have frames
 * that were never mapped, until they are unmapped.
 */
static void xt_rnd_clean(struct xt_random *r, struct xt_model *m,
			 unsigned int page, unsigned int nr)
{
	r->xt->sim.fault_rate = 0;
	for (unsigned int i = page; i < page + nr; i++)
		if (xt_unmap(m->domain, m->base + i * XT_4K, 1))
			m->phys[i] = 0;
	xt_rnd_check(r, m, page, nr);
}

static void xt_rnd_map(struct xt_random *r, struct xt_model *m)
{
	unsigned int page, nr, stride, cut;
	phys_addr_t phys;
	unsigned long iova;
	bool conflict;
	int ret = 0;

	xt_rnd_range(r, &page, &nr);
	iova = m->base + page * XT_4K;
	phys = XT_PHYS + (u64)xt_rnd(r, 1 << 16) * XT_4K;
	if (xt_rnd(r, 2))
		phys = round_down(phys, SZ_2M) + (iova & (SZ_2M - 1));
	/* Contiguous, or in pieces with one sync. */
	stride = xt_rnd(r, 3) ? 1 : 2;
	conflict = !xt_rnd_is_free(m, page, nr);
	/* What is queued must not be mapped before the flush. */
	for (unsigned int i = page; i < page + nr; i++)
		if (m->queued[i])
			return;

	if (stride == 1) {
		ret = xt_map(m->domain, iova, phys, nr);
	} else {
		unsigned int i;

		for (i = 0; i < nr && !ret; i++)
			ret = iommu_map_nosync(m->domain, iova + i * XT_4K,
					       phys + i * 2 * XT_4K, XT_4K, XT_RW,
					       GFP_KERNEL);
		/* Two callers, now and then: the one behind is first. */
		cut = xt_rnd(r, 4) ? 0 : xt_rnd(r, nr);
		if (!ret)
			ret = iommu_sync_map(m->domain, iova + cut * XT_4K,
					     (nr - cut) * XT_4K);
		else
			nr = i - 1;
		if (!ret)
			ret = iommu_sync_map(m->domain, iova, cut * XT_4K);
		if (ret && nr)
			xt_unmap(m->domain, iova, nr);
	}
	if (conflict) {
		if (ret != -EADDRINUSE)
			xt_diverges(r, "map over a mapping returned %d", ret);
		return;
	}
	if (ret)
		r->failed++;
	if (ret && !r->xt->sim.nr_injected && !r->scarce)
		xt_diverges(r, "map returned %d", ret);
	if (to_xen_domain(m->domain)->stray) {
		/* Not even the record knows of that: the context is given up. */
		r->strays++;
		xt_rnd_free(r, m);
		return;
	}
	for (unsigned int i = 0; i < nr; i++) {
		/* After a failure, what could not be undone is still there. */
		if (!ret || sim_walk(&r->xt->sim, xt_ctx(m->domain),
				     (iova >> XEN_PAGE_SHIFT) + i, NULL, NULL))
			m->phys[page + i] = phys + i * stride * XT_4K;
	}
	xt_rnd_check(r, m, page, nr);
	if (ret)
		xt_rnd_clean(r, m, page, nr);
}

static void xt_rnd_unmap(struct xt_random *r, struct xt_model *m, bool queued)
{
	u64 injected = r->xt->sim.nr_injected;
	unsigned int page, nr, expected, i;
	size_t ret;

	xt_rnd_range(r, &page, &nr);
	/* Mostly where there is something. */
	for (i = 0; i < 64 && (!m->phys[page] || m->queued[page]); i++)
		page = (page + 1) % (XT_RND_PAGES - nr);
	/* Mostly all of it. */
	if (xt_rnd(r, 4))
		while (page + nr < XT_RND_PAGES && m->phys[page + nr] &&
		       !m->queued[page + nr] && nr < 700)
			nr++;
	for (expected = 0; expected < nr; expected++)
		if (!m->phys[page + expected] || m->queued[page + expected])
			break;

	ret = queued ? xt_unmap_queued(m->domain, m->base + page * XT_4K, nr) :
		       xt_unmap(m->domain, m->base + page * XT_4K, nr);
	if (ret != expected)
		r->failed++;
	if (ret > expected || (ret < expected && r->xt->sim.nr_injected == injected &&
			       !r->scarce))
		xt_diverges(r, "unmap of %u pages from %#x returned %zu instead of %u",
			    nr, page, ret, expected);
	for (i = page; i < page + ret; i++) {
		if (queued && sim_walk(&r->xt->sim, xt_ctx(m->domain),
				       (m->base >> XEN_PAGE_SHIFT) + i, NULL, NULL))
			m->queued[i] = true;
		else
			m->phys[i] = 0;
	}
	xt_rnd_check(r, m, page, nr);
}

static void xt_rnd_flush(struct xt_random *r, struct xt_model *m)
{
	u64 injected = r->xt->sim.nr_injected;
	unsigned int left = 0;

	xt_flush(m->domain);
	for (unsigned int i = 0; i < XT_RND_PAGES; i++) {
		if (!m->queued[i])
			continue;
		m->queued[i] = false;
		if (sim_walk(&r->xt->sim, xt_ctx(m->domain),
			     (m->base >> XEN_PAGE_SHIFT) + i, NULL, NULL))
			left++;
		else
			m->phys[i] = 0;
		xt_rnd_check(r, m, i, 1);
	}
	if (left)
		r->failed++;
	if (left && r->xt->sim.nr_injected == injected && !r->scarce)
		xt_diverges(r, "flush left %u pages", left);
}

static void xt_rnd_lookup(struct xt_random *r, struct xt_model *m)
{
	unsigned int page = xt_rnd(r, XT_RND_PAGES), off = xt_rnd(r, XT_4K);
	phys_addr_t phys, expected = 0;

	if (m->phys[page] && !m->queued[page])
		expected = m->phys[page] + off;
	phys = iommu_iova_to_phys(m->domain, m->base + page * XT_4K + off);
	if (phys != expected)
		xt_diverges(r, "lookup of page %#x: %#llx instead of %#llx", page,
			    (u64)phys, (u64)expected);
	xt_rnd_check(r, m, page, 4);
}

static void xt_rnd_attach(struct xt_random *r)
{
	unsigned int dev = xt_rnd(r, XT_NR_DEVS);
	int to = xt_rnd(r, XT_RND_DOMS + 2) - 2;
	struct iommu_domain *domain;
	u16 ctx, before = xt_dev_ctx(r->xt, dev);
	int ret;

	if (to == -2 && r->xt->xi->ops.identity_domain) {
		domain = &xen_iommu_identity_domain;
		ctx = r->xt->xi->identity_ctx;
	} else if (to < 0) {
		domain = &xen_iommu_blocked_domain;
		ctx = r->xt->xi->blocked_ctx;
	} else {
		domain = r->model[to].domain;
		ctx = xt_ctx(domain);
	}
	ret = xt_attach(r->xt, domain, dev);
	if (ret)
		r->failed++;
	else
		r->where[dev] = to;
	if (xt_dev_ctx(r->xt, dev) != (ret ? before : ctx))
		xt_diverges(r, "device %u in context %u", dev,
			    xt_dev_ctx(r->xt, dev));
}

static void xt_rnd_free(struct xt_random *r, struct xt_model *m)
{
	u16 ctx = xt_ctx(m->domain);
	unsigned int lost = r->xt->xi->nr_lost;
	bool empty = true;

	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		if (r->where[i] == m - r->model)
			r->where[i] = -1;
	xt_free_domain(r->xt, m->domain);
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		empty &= xt_dev_ctx(r->xt, i) != ctx;
	empty &= !sim_nr_frames(&r->xt->sim, ctx);
	if (!empty && r->xt->xi->nr_lost != lost + 1)
		xt_diverges(r, "context %u kept: %llu frames, devices in %u %u %u %u",
			    ctx, sim_nr_frames(&r->xt->sim, ctx),
			    xt_dev_ctx(r->xt, 0), xt_dev_ctx(r->xt, 1),
			    xt_dev_ctx(r->xt, 2), xt_dev_ctx(r->xt, 3));
	/* Some contexts keep their tables for ever. */
	if (r->xt->xi->nr_lost != lost)
		r->xt->sim.pool += XT_RND_TABLES;
	memset(m->phys, 0, sizeof(m->phys));
	memset(m->queued, 0, sizeof(m->queued));

	m->domain = xt_alloc_domain(r->xt);
	if (IS_ERR(m->domain)) {
		/* Then there must be one, with a page for it. */
		sim_clear_faults(&r->xt->sim);
		r->xt->sim.pool += XT_RND_TABLES;
		m->domain = xt_alloc_domain(r->xt);
	}
	if (IS_ERR(m->domain)) {
		xt_diverges(r, "no new domain: %pe", m->domain);
		return;
	}
	if (sim_nr_frames(&r->xt->sim, xt_ctx(m->domain)))
		xt_diverges(r, "new domain in context %u is not empty",
			    xt_ctx(m->domain));
}

static void xt_rnd_op(struct xt_random *r, unsigned int failures)
{
	struct xt_model *m = &r->model[xt_rnd(r, XT_RND_DOMS)];
	unsigned int what = xt_rnd(r, 1000);

	/* Long stretches without failures, too. */
	r->xt->sim.fault_rate = r->op / 1000 % 2 ? failures : 0;
	if (what < 340) {
		r->done[0]++;
		xt_rnd_map(r, m);
	} else if (what < 580) {
		r->done[1]++;
		xt_rnd_unmap(r, m, false);
	} else if (what < 720) {
		r->done[2]++;
		xt_rnd_unmap(r, m, true);
	} else if (what < 770) {
		r->done[3]++;
		xt_rnd_flush(r, m);
	} else if (what < 960) {
		r->done[4]++;
		xt_rnd_lookup(r, m);
	} else if (what < 998) {
		r->done[5]++;
		xt_rnd_attach(r);
	} else {
		r->done[6]++;
		xt_rnd_free(r, m);
	}
}

static void random_operations(struct kunit *test)
{
	const struct sim_conf *param = test->param_value;
	struct sim_conf conf = *param;
	struct xt_random *r;
	struct xt *xt;

	/* Some run out of memory for their tables now and then. */
	if (conf.quirks & SIM_FOLDS)
		conf.pool = XT_RND_DOMS * XT_RND_TABLES;
	r = kvzalloc_obj(*r);
	KUNIT_ASSERT_NOT_NULL(test, r);

	/* Contexts get lost: let there be many. */
	xen_iommu_contexts = 0xfffe;
	xt = xt_start(test, &conf);
	xen_iommu_contexts = 0;
	r->xt = xt;
	r->scarce = conf.quirks & SIM_FOLDS;
	prandom_seed_state(&r->rnd, xt_seed + (param - xt_confs));
	prandom_seed_state(&xt->sim.rnd, ~xt_seed);
	xt->sim.overlap_ok = true;
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		r->where[i] = -1;
	for (unsigned int i = 0; i < XT_RND_DOMS; i++) {
		r->model[i].domain = xt_domain(xt);
		r->model[i].base = XT_IOVA + i * SZ_1G;
	}

	for (r->op = 0; r->op < xt_ops && !r->divergences; r->op++) {
		xt_rnd_op(r, 100);
		if (r->op % 2048 == 2047) {
			for (unsigned int i = 0; i < XT_RND_DOMS; i++)
				xt_rnd_check(r, &r->model[i], 0, XT_RND_PAGES);
			cond_resched();
		}
	}
	kunit_info(test, "seed %lu, %u operations: %llu maps, %llu unmaps, %llu queued, %llu flushes, %llu lookups, %llu attaches, %llu frees; %llu failures injected, %llu operations failed, %llu contexts with strays\n",
		   xt_seed, r->op, r->done[0], r->done[1], r->done[2], r->done[3],
		   r->done[4], r->done[5], r->done[6], xt->sim.nr_injected,
		   r->failed, r->strays);
	KUNIT_EXPECT_EQ(test, r->divergences, 0);
	kvfree(r);
}

static int xt_suite_init(struct kunit_suite *suite)
{
	if (!xt_seed)
		xt_seed = get_random_u32() | 1;
	return 0;
}

static struct kunit_case xen_iommu_test_cases[] = {
	KUNIT_CASE_PARAM(map_unmap_roundtrip, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_go_out_together, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_takes_few_allocations, conf_gen_params),
	KUNIT_CASE_PARAM(map_of_neighbours_is_synced_apart, conf_gen_params),
	KUNIT_CASE_PARAM(map_failure_is_not_the_neighbours, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_neighbour_without_memory, conf_gen_params),
	KUNIT_CASE_PARAM(map_of_pieces_ends_at_other_mapping, conf_gen_params),
	KUNIT_CASE_PARAM(map_beside_a_sync_that_is_under_way, conf_gen_params),
	KUNIT_CASE_PARAM(map_many_pieces, conf_gen_params),
	KUNIT_CASE_PARAM(map_and_flush_without_buffer, conf_gen_params),
	KUNIT_CASE_PARAM(flush_during_map_goes_out_together, deferring_gen_params),
	KUNIT_CASE_PARAM(buffers_are_given_back, conf_gen_params),
	KUNIT_CASE_PARAM(map_gigabyte_takes_little_memory, conf_gen_params),
	KUNIT_CASE_PARAM(map_needs_read_or_write, conf_gen_params),
	KUNIT_CASE_PARAM(map_passes_cache_on_with_capability, conf_gen_params),
	KUNIT_CASE_PARAM(map_stays_within_aperture, conf_gen_params),
	KUNIT_CASE_PARAM(map_over_mapping_is_refused, conf_gen_params),
	KUNIT_CASE_PARAM(map_over_unknown_mapping_is_reported, conf_gen_params),
	KUNIT_CASE(map_uses_largest_pages),
	KUNIT_CASE(map_uses_pages_that_fit_both),
	KUNIT_CASE(long_runs_are_cut),
	KUNIT_CASE(map_of_many_scattered_frames),
	KUNIT_CASE(map_at_top_of_address_space),
	KUNIT_CASE_PARAM(sync_of_nothing_does_nothing, conf_gen_params),
	KUNIT_CASE_PARAM(sync_does_not_try_again, conf_gen_params),
	KUNIT_CASE_PARAM(map_run_partial_failure, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_partial_failure, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_failure_in_the_middle, conf_gen_params),
	KUNIT_CASE_PARAM(map_multicall_failure, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_behind_a_failure_that_stay, conf_gen_params),
	KUNIT_CASE_PARAM(map_fails_where_there_is_no_page, conf_gen_params),
	KUNIT_CASE_PARAM(map_into_reserved_region_fails, conf_gen_params),
	KUNIT_CASE_PARAM(map_failure_that_cannot_be_undone, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_goes_on_after_short_result, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_keeps_what_stays_mapped, conf_gen_params),
	KUNIT_CASE(unmap_of_superpage_needs_pool),
	KUNIT_CASE_PARAM(unmap_of_parts, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_parts_of_pieces, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_middle_without_memory, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_very_many_mappings, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_across_mappings_is_one_call, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_nothing, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_what_was_never_synced, conf_gen_params),
	KUNIT_CASE_PARAM(queued_unmap_in_pv_is_done_at_once, conf_gen_params),
	KUNIT_CASE_PARAM(queued_unmap_waits_for_flush, deferring_gen_params),
	KUNIT_CASE_PARAM(queued_unmap_of_parts_is_done_at_once, conf_gen_params),
	KUNIT_CASE_PARAM(queued_unmaps_go_out_together, conf_gen_params),
	KUNIT_CASE_PARAM(flush_failure_is_recorded, deferring_gen_params),
	KUNIT_CASE_PARAM(flush_failure_is_tried_again, conf_gen_params),
	KUNIT_CASE_PARAM(flush_multicall_failure, conf_gen_params),
	KUNIT_CASE_PARAM(flush_goes_in_pieces, conf_gen_params),
	KUNIT_CASE_PARAM(flush_waits_for_flush_in_progress, conf_gen_params),
	KUNIT_CASE_PARAM(flush_holds_its_lock, conf_gen_params),
	KUNIT_CASE_PARAM(concurrent_maps_and_unmaps, conf_gen_params),
	KUNIT_CASE_PARAM(map_and_unmap_in_interrupt, conf_gen_params),
	KUNIT_CASE_PARAM(map_during_a_map, conf_gen_params),
	KUNIT_CASE(static_domains_follow_capabilities),
	KUNIT_CASE(identity_context_refused),
	KUNIT_CASE(blocked_context_refused),
	KUNIT_CASE_PARAM(attach_moves_device, conf_gen_params),
	KUNIT_CASE_PARAM(attach_failure_leaves_device, conf_gen_params),
	KUNIT_CASE(attach_to_domain_of_another_iommu),
	KUNIT_CASE(domain_alloc_refuses_what_it_cannot_do),
	KUNIT_CASE(domain_alloc_runs_out_of_contexts),
	KUNIT_CASE_PARAM(domain_alloc_without_pool, conf_gen_params),
	KUNIT_CASE_PARAM(domain_alloc_refuses_forged_context, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_moves_devices_away, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_with_devices_that_stay, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_unmaps_what_is_left, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_with_mapping_that_stays, conf_gen_params),
	KUNIT_CASE_PARAM(freed_contexts_are_used_again, conf_gen_params),
	KUNIT_CASE_PARAM(contexts_beyond_the_spare_ones_are_freed, conf_gen_params),
	KUNIT_CASE(context_that_stays_busy_is_not_used_again),
	KUNIT_CASE_PARAM(cache_coherency_is_enforced_with_capability, conf_gen_params),
	KUNIT_CASE_PARAM(capabilities_are_honest, conf_gen_params),
	KUNIT_CASE_PARAM(probe_refuses_devices_that_are_not_xens, conf_gen_params),
	KUNIT_CASE(probe_finds_the_highest_segment),
	KUNIT_CASE_PARAM(release_of_device_that_is_gone, conf_gen_params),
	KUNIT_CASE_PARAM(release_of_device_that_stays, conf_gen_params),
	KUNIT_CASE_PARAM(bind_finds_device_where_it_should_be, conf_gen_params),
	KUNIT_CASE(reserved_regions_own_and_others),
	KUNIT_CASE(reserved_regions_query_refused),
	KUNIT_CASE(reserved_regions_that_grow),
	KUNIT_CASE_PARAM(no_reserved_regions_no_warning, conf_gen_params),
	KUNIT_CASE_PARAM(init_only_if_needed, conf_gen_params),
	KUNIT_CASE(init_sizes_follow_memory),
	KUNIT_CASE(init_parameters_stay_safe),
	KUNIT_CASE(init_tries_smaller_pools),
	KUNIT_CASE(init_failure_is_an_error),
	KUNIT_CASE(setup_declines_quietly),
	KUNIT_CASE(setup_needs_a_page_size_that_serves),
	KUNIT_CASE(initcalls_register_the_iommu),
	KUNIT_CASE(initcalls_decline_quietly),
	KUNIT_CASE(initcall_failures_leave_nothing),
	KUNIT_CASE_PARAM(inherited_devices_are_blocked, conf_gen_params),
	KUNIT_CASE(inherited_contexts_are_reclaimed),
	KUNIT_CASE(inherited_contexts_are_left_to_drafts),
	KUNIT_CASE_PARAM(shutdown_for_kexec_leaves_nothing, conf_gen_params),
	KUNIT_CASE_PARAM(shutdown_for_kexec_leaves_lost_contexts, conf_gen_params),
	KUNIT_CASE_PARAM(shutdown_for_kexec_keeps_what_is_stuck, conf_gen_params),
	KUNIT_CASE(sysfs_shows_limits),
	KUNIT_CASE_PARAM(counters_count, conf_gen_params),
	KUNIT_CASE_PARAM(each_allocation_fails_in_turn, conf_gen_params),
	KUNIT_CASE_PARAM(each_hypercall_fails_in_turn, conf_gen_params),
	KUNIT_CASE_PARAM_ATTR(random_operations, conf_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	{}
};

static struct kunit_suite xen_iommu_test_suite = {
	.name = "xen_iommu",
	.suite_init = xt_suite_init,
	.exit = xt_stop,
	.test_cases = xen_iommu_test_cases,
};

kunit_test_suite(xen_iommu_test_suite);

MODULE_DESCRIPTION("KUnit tests of the Xen PV-IOMMU driver");
MODULE_LICENSE("GPL");
