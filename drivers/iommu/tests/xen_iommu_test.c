// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the Xen PV-IOMMU driver
 *
 * The driver runs on a software hypervisor (xen_iommu_sim.c), which knows what
 * devices can reach. The tests use the operations that the driver registers.
 * Most cases run on each kind of hypervisor in xt_confs. Each map and unmap is
 * checked both in the driver's record and in the hypervisor. After each case,
 * there must be no violation of the interface, no leaked context, frame, page
 * or allocation, no WARN(), and no lockdep report.
 *
 *   ./tools/testing/kunit/kunit.py run --kunitconfig=drivers/iommu/tests
 */
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/panic.h>
#include <linux/prandom.h>
#include <linux/random.h>

#include "xen_iommu_shim.h"

#define XT_NR_DEVS	4
#define XT_MAX_DOMS	16

#define XT_4K		SZ_4K
#define XT_MAX_IOVA	GENMASK_ULL(47, 0)

/* Above all guest memory, aligned to the largest page size. */
#define XT_IOVA		0x4000000000UL
#define XT_PHYS		0x100000000ULL

#define XT_RW		(IOMMU_READ | IOMMU_WRITE)

static unsigned long xt_seed;
module_param_named(seed, xt_seed, ulong, 0444);
MODULE_PARM_DESC(seed, "Seed of the random test, 0 for a new one at each boot");

static unsigned int xt_ops = 40000;
module_param_named(ops, xt_ops, uint, 0444);
MODULE_PARM_DESC(ops, "Operations of the random test, per kind of hypervisor");

struct xt_dev {
	struct pci_dev pdev;
	struct dev_iommu iommu;
};

/**
 * struct xt - a running test
 * @test: the test
 * @sim: the hypervisor
 * @ops: operations that the driver has registered
 * @bus: bus 0
 * @bridge: a bridge from PCI Express to PCI, not in use at first
 * @secondary: the bus behind @bridge
 * @dev: devices that the hypervisor knows, all probed
 * @domain: the domain that helpers use
 * @dom: domains to free at the end
 * @nr_doms: number of entries in @dom
 * @booted: the driver is running
 * @lock_errors: hypercalls made with a lock held that must not be, or without
 *	one that must be
 * @tainted: there was a WARN() before the test
 * @lockdep: lockdep was on before the test
 * @on_call: called before each hypercall
 * @priv: for @on_call
 */
struct xt {
	struct kunit *test;
	struct xen_iommu_sim *sim;
	const struct iommu_ops *ops;
	struct pci_bus bus;
	struct pci_dev bridge;
	struct pci_bus secondary;
	struct xt_dev dev[XT_NR_DEVS];
	struct iommu_domain *domain;
	struct iommu_domain *dom[XT_MAX_DOMS];
	unsigned int nr_doms;
	bool booted;
	atomic_t lock_errors;
	bool tainted;
	bool lockdep;
	void (*on_call)(struct xt *xt, unsigned int subop, void *arg);
	void *priv;
};

/* These need a struct xt *xt. */
#define EXPECT(cond)	KUNIT_EXPECT_TRUE(xt->test, cond)
#define EXPECT_EQ(a, b)	KUNIT_EXPECT_EQ(xt->test, a, b)
#define EXPECT_NE(a, b)	KUNIT_EXPECT_NE(xt->test, a, b)
#define EXPECT_LE(a, b)	KUNIT_EXPECT_LE(xt->test, a, b)
#define EXPECT_GE(a, b)	KUNIT_EXPECT_GE(xt->test, a, b)

/*
 * Kinds of hypervisors
 */

#define XT_EXTENSIONS	(IOMMUCAP_cache | IOMMUCAP_identity | \
			 IOMMUCAP_isolated_msi | IOMMUCAP_deferred_unmap | \
			 IOMMUCAP_query | IOMMUCAP_faults | IOMMUCAP_alloc_empty)
#define XT_V7_QUIRKS	(SIM_INIT_FALLS_THROUGH | SIM_PREEMPTS | \
			 SIM_FREE_LEAKS | SIM_RDM_FIRST_ONLY | \
			 SIM_NO_DEVICE_ENOENT)
#define XT_LIMITS	{ .max_ctx_no = 4096, .arena_order = 18 }

static const struct sim_conf xt_confs[] = {
	{
		.desc = "ours",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_runs | XT_EXTENSIONS,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.limits = XT_LIMITS,
	}, {
		.desc = "ours_pv",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_runs | XT_EXTENSIONS,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.limits = XT_LIMITS,
		.quirks = SIM_PREEMPTS,
		.pv = true,
		.pv_order = 1,
	}, {
		/* Context 0 blocks; the identity domain has its own context. */
		.desc = "ours_blocking",
		.caps = IOMMUCAP_runs | XT_EXTENSIONS,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.limits = XT_LIMITS,
		.quirks = SIM_PREEMPTS | SIM_OVERCOUNTS,
	}, {
		.desc = "ours_without_runs",
		.caps = IOMMUCAP_default_identity | XT_EXTENSIONS,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.limits = XT_LIMITS,
		.quirks = SIM_PREEMPTS | SIM_OVERCOUNTS,
	}, {
		.desc = "v7",
		.caps = IOMMUCAP_default_identity,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.quirks = XT_V7_QUIRKS,
	}, {
		.desc = "v7_pv",
		.caps = IOMMUCAP_default_identity,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
		.quirks = XT_V7_QUIRKS,
		.pv = true,
		.pv_order = 3,
	}, {
		.desc = "downstream",
		.caps = IOMMUCAP_default_identity | IOMMUCAP_cache |
			IOMMUCAP_identity | IOMMUCAP_deferred_flush,
		.pgsize_mask = SZ_4K | SZ_2M,
		.max_iova = XT_MAX_IOVA,
		.quirks = SIM_PREEMPTS | SIM_NO_DEVICE_ENOENT,
	},
};

KUNIT_ARRAY_PARAM_DESC(conf, xt_confs, desc);

static bool xt_has(struct xt *xt, u32 caps)
{
	return xt->sim->conf.caps & caps;
}

/*
 * Setup and teardown
 */

/* Checks locks: never a domain's; the mutex for contexts and devices. */
static void xt_hook(struct xen_iommu_sim *sim, unsigned int subop, void *arg)
{
	struct xt *xt = sim->priv;

#ifdef CONFIG_LOCKDEP
	for (unsigned int i = 0; i < xt->nr_doms; i++)
		if (lockdep_is_held(&to_xen_domain(xt->dom[i])->lock) == LOCK_STATE_HELD)
			atomic_inc(&xt->lock_errors);
	if (xt->booted && (subop == IOMMU_alloc_context ||
			   subop == IOMMU_alloc_nested ||
			   subop == IOMMU_free_context ||
			   subop == IOMMU_reattach_device) &&
	    lockdep_is_held(&xen_iommu->mutex) == LOCK_STATE_NOT_HELD)
		atomic_inc(&xt->lock_errors);
#endif
	if (xt->on_call)
		xt->on_call(xt, subop, arg);
}

static void xt_virq(void)
{
	if (xt_env.virq)
		xt_env.virq(0, xt_env.virq_data);
}

static void xt_release(struct device *dev)
{
}

static struct device *xt_device(struct xt *xt, unsigned int i)
{
	return &xt->dev[i].pdev.dev;
}

/* Finds the device's requester ID, or that of the device that does its DMA. */
static struct sim_device *xt_sim_dev(struct xt *xt, unsigned int i)
{
	struct pci_dev *pdev = xt_real_dma_dev(&xt->dev[i].pdev);

	return sim_find_device(xt->sim, xt_env.segment, pdev->bus->number,
			       pdev->devfn);
}

static void xt_make_dev(struct xt *xt, struct pci_dev *pdev, u8 devfn)
{
	pdev->bus = &xt->bus;
	pdev->devfn = devfn;
	pdev->class = PCI_CLASS_NETWORK_ETHERNET << 8;
	pdev->dev.bus = &pci_bus_type;
	pdev->dev.init_name = "xen-iommu-test";
	pdev->dev.release = xt_release;
}

/* Creates a hypervisor and devices; the driver is not running yet. */
static struct xt *xt_new(struct kunit *test, const struct sim_conf *conf)
{
	struct xt *xt = kvzalloc_obj(*xt);

	KUNIT_ASSERT_NOT_NULL(test, xt);
	xt->sim = kvzalloc_obj(*xt->sim);
	KUNIT_ASSERT_NOT_NULL(test, xt->sim);
	xt->test = test;
	test->priv = xt;
	xt->tainted = test_taint(TAINT_WARN);
	xt->lockdep = debug_locks;
	memset(&xt_env, 0, sizeof(xt_env));
	xt_env.domain = true;
	xt_env.pv = conf->pv;
	xt_env.initial = true;
	xt_env.ram_pages = SZ_4G >> PAGE_SHIFT;
	xen_iommu_identity.ctx = 0;
	xen_iommu_blocked.ctx = 0;

	sim_init(xt->sim, conf);
	xt->sim->priv = xt;
	xt->sim->hook = xt_hook;
	xt->sim->virq = xt_virq;
	for (unsigned int i = 0; i < XT_NR_DEVS; i++) {
		xt_make_dev(xt, &xt->dev[i].pdev, PCI_DEVFN(i + 1, 0));
		xt_device(xt, i)->iommu = &xt->dev[i].iommu;
		sim_add_device(xt->sim, 0, 0, PCI_DEVFN(i + 1, 0));
	}
	return xt;
}

static int xt_probe(struct xt *xt, unsigned int i)
{
	struct iommu_device *iommu = xt->ops->probe_device(xt_device(xt, i));

	if (IS_ERR(iommu))
		return PTR_ERR(iommu);
	EXPECT(iommu == xt_env.iommu);
	xt->dev[i].iommu.iommu_dev = iommu;
	return 0;
}

static void xt_release_dev(struct xt *xt, unsigned int i)
{
	xt->ops->release_device(xt_device(xt, i));
	EXPECT(!xt->dev[i].iommu.priv);
}

/* Starts the driver by its own initcalls. */
static int xt_boot(struct xt *xt)
{
	int ret = xt_early_init() ?: xt_late_init();

	xt->ops = xt_env.ops;
	xt->booted = !ret && xt->ops;
	return ret ?: xt->booted ? 0 : -ENODEV;
}

static struct iommu_domain *xt_alloc_domain(struct xt *xt)
{
	struct iommu_domain *domain;

	domain = xt->ops->domain_alloc_paging_flags(xt_device(xt, 0), 0, NULL);
	if (!IS_ERR(domain)) {
		/* As the core does. */
		domain->type = IOMMU_DOMAIN_UNMANAGED;
		xt->dom[xt->nr_doms++] = domain;
	}
	return domain;
}

static struct iommu_domain *xt_new_domain(struct xt *xt)
{
	struct iommu_domain *domain = xt_alloc_domain(xt);

	KUNIT_ASSERT_FALSE(xt->test, IS_ERR(domain));
	return domain;
}

/* Starts the driver on a hypervisor, with devices and a domain. */
static struct xt *xt_start_new(struct xt *xt)
{
	KUNIT_ASSERT_EQ(xt->test, xt_boot(xt), 0);
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		KUNIT_ASSERT_EQ(xt->test, xt_probe(xt, i), 0);
	xt->domain = xt_new_domain(xt);
	return xt;
}

static struct xt *xt_start(struct kunit *test, const struct sim_conf *conf)
{
	return xt_start_new(xt_new(test, conf));
}

static int xt_init(struct kunit *test)
{
	if (test->param_value)
		xt_start(test, test->param_value);
	return 0;
}

static void xt_free_domain(struct xt *xt, struct iommu_domain *domain)
{
	for (unsigned int i = 0; i < xt->nr_doms; i++)
		if (xt->dom[i] == domain)
			xt->dom[i] = xt->dom[--xt->nr_doms];
	domain->ops->free(domain);
}

static void xt_stop(struct kunit *test)
{
	struct xt *xt = test->priv;
	unsigned int left, kept;

	if (!xt)
		return;
	sim_clear_faults(xt->sim);
	xt->on_call = NULL;
	xt_env.fail_at = 0;
	xen_iommu_enable = true;
	xen_iommu_nested = true;
	xen_iommu_contexts = 0;
	xen_iommu_pool_order = 0;

	while (xt->nr_doms)
		xt_free_domain(xt, xt->dom[xt->nr_doms - 1]);
	/* As if registration had failed: devices return to Xen's default context. */
	if (xt->booted) {
		xen_iommu->registered = false;
		EXPECT_EQ(atomic_long_read(&xen_iommu->tables), 0);
	}
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		if (xt->dev[i].iommu.priv)
			xt_release_dev(xt, i);
	xt->booted = false;
	for (unsigned int i = 0; i < xt->sim->nr_devices; i++)
		sim_move_device(xt->sim, &xt->sim->device[i], 0,
				xt->sim->device[i].gone);
	kept = xt->sim->leaked + xt_shut_down();

	left = sim_exit(xt->sim);
	EXPECT_EQ(left, kept);
	EXPECT_EQ(atomic_read(&xt->sim->violations), 0);
	EXPECT_EQ(atomic_read(&xt->lock_errors), 0);
	EXPECT_EQ(atomic_read(&xt_env.live), 0);
	EXPECT_EQ(test_taint(TAINT_WARN), xt->tainted);
	EXPECT_EQ(debug_locks, xt->lockdep);
	kvfree(xt->sim);
	kvfree(xt);
	test->priv = NULL;
}

/*
 * Checked maps and unmaps of pages in a window of the domain
 */

static u16 xt_ctx(struct iommu_domain *domain)
{
	return to_xen_domain(domain)->ctx;
}

static unsigned long xt_iova(unsigned long page)
{
	return XT_IOVA + page * XT_4K;
}

static phys_addr_t xt_phys(unsigned int frame)
{
	return XT_PHYS + (phys_addr_t)frame * XT_4K;
}

static u64 xt_nr_frames(struct xt *xt)
{
	return sim_nr_frames(xt->sim, xt_ctx(xt->domain));
}

static phys_addr_t xt_lookup(struct xt *xt, unsigned long page)
{
	return iommu_iova_to_phys(xt->domain, xt_iova(page));
}

/*
 * Checks the driver's record of each page. Pages that could not be mapped stay
 * in the record until they are unmapped, as the IOMMU core expects.
 */
static bool __xt_truthful(struct xt *xt, unsigned long page, unsigned int nr,
			  bool failed)
{
	for (unsigned long i = page; i < page + nr; i++) {
		phys_addr_t phys = xt_lookup(xt, i);
		bool there;
		u64 gfn;

		there = sim_walk(xt->sim, xt_ctx(xt->domain),
				 xt_iova(i) >> XEN_PAGE_SHIFT, &gfn, NULL);
		if ((phys && !there && !failed) || (there && !phys) ||
		    (there && gfn != sim_pfn_to_gfn(phys >> XEN_PAGE_SHIFT))) {
			kunit_err(xt->test, "page %lu: %#llx, hypervisor has gfn %#llx (%d)\n",
				  i, (u64)phys, gfn, there);
			return false;
		}
	}
	return true;
}

static bool xt_truthful(struct xt *xt, unsigned long page, unsigned int nr)
{
	return __xt_truthful(xt, page, nr, false);
}

/* Checks that pages are recorded, with every @stride-th frame. */
static bool xt_is_recorded(struct xt *xt, unsigned long page, unsigned int frame,
			   unsigned int nr, unsigned int stride)
{
	for (unsigned int i = 0; i < nr; i++)
		if (xt_lookup(xt, page + i) != xt_phys(frame + i * stride))
			return false;
	return __xt_truthful(xt, page, nr, true);
}

static bool xt_is_mapped(struct xt *xt, unsigned long page, unsigned int frame,
			 unsigned int nr, unsigned int stride)
{
	return xt_is_recorded(xt, page, frame, nr, stride) &&
	       xt_truthful(xt, page, nr);
}

/* Checks that no device can reach the pages, and that the driver agrees. */
static bool xt_is_empty(struct xt *xt, unsigned long page, unsigned int nr)
{
	for (unsigned long i = page; i < page + nr; i++)
		if (xt_lookup(xt, i) ||
		    sim_reaches(xt->sim, xt_ctx(xt->domain),
				xt_iova(i) >> XEN_PAGE_SHIFT))
			return false;
	return true;
}

static int xt_map_prot(struct xt *xt, unsigned long page, unsigned int frame,
		       unsigned int nr, int prot)
{
	int ret = iommu_map(xt->domain, xt_iova(page), xt_phys(frame),
			    (size_t)nr * XT_4K, prot, GFP_KERNEL);

	EXPECT(ret ? __xt_truthful(xt, page, nr, true) :
		     xt_is_mapped(xt, page, frame, nr, 1));
	return ret;
}

static int xt_map(struct xt *xt, unsigned long page, unsigned int frame,
		  unsigned int nr)
{
	return xt_map_prot(xt, page, frame, nr, XT_RW);
}

static int xt_map_nosync(struct xt *xt, unsigned long page, unsigned int frame,
			 unsigned int nr)
{
	return iommu_map_nosync(xt->domain, xt_iova(page), xt_phys(frame),
				(size_t)nr * XT_4K, XT_RW, GFP_ATOMIC);
}

static int xt_sync(struct xt *xt, unsigned long page, unsigned int nr)
{
	return iommu_sync_map(xt->domain, xt_iova(page), (size_t)nr * XT_4K);
}

/* Like iommu_map_sg(): maps every second frame, with one sync at the end. */
static int xt_map_pieces(struct xt *xt, unsigned long page, unsigned int frame,
			 unsigned int nr)
{
	int ret = 0;

	for (unsigned int i = 0; i < nr && !ret; i++)
		ret = xt_map_nosync(xt, page + i, frame + 2 * i, 1);
	ret = ret ?: xt_sync(xt, page, nr);
	if (!ret)
		EXPECT(xt_is_mapped(xt, page, frame, nr, 2));
	return ret;
}

static unsigned int xt_unmap(struct xt *xt, unsigned long page, unsigned int nr)
{
	size_t ret = iommu_unmap(xt->domain, xt_iova(page), (size_t)nr * XT_4K) / XT_4K;

	EXPECT(ret <= nr && xt_is_empty(xt, page, ret) &&
	       __xt_truthful(xt, page, nr, true));
	return ret;
}

static bool xt_is_lazy(struct xt *xt)
{
	return xt_has(xt, IOMMUCAP_deferred_unmap);
}

/* Like the DMA API, with a flush queue if the driver supports it. */
static unsigned int xt_unmap_queued(struct xt *xt, unsigned long page,
				    unsigned int nr)
{
	struct iommu_iotlb_gather gather;
	size_t ret;

	iommu_iotlb_gather_init(&gather);
	gather.queued = xt_is_lazy(xt);
	ret = iommu_unmap_fast(xt->domain, xt_iova(page), (size_t)nr * XT_4K,
			       &gather) / XT_4K;
	if (!gather.queued)
		iommu_iotlb_sync(xt->domain, &gather);
	for (unsigned long i = page; i < page + ret; i++)
		EXPECT_EQ(xt_lookup(xt, i), 0);
	return ret;
}

static void xt_flush(struct xt *xt)
{
	xt->domain->ops->flush_iotlb_all(xt->domain);
}

/* Makes further calls fail, after a number of frames. */
static void xt_limit(struct xt *xt, bool map, u64 frames, int error)
{
	xt->sim->left[map] = frames;
	xt->sim->error[map] = error;
}

static unsigned int xt_warnings(void)
{
	return atomic_read(&xt_env.warnings);
}

/* Includes lines that are mere information. */
static unsigned int xt_lines(void)
{
	return xt_warnings() + atomic_read(&xt_env.infos);
}

/* Success without completion is an error, too. */
static const int xt_errors[] = { -ENOMEM, -EPERM, -EIO, -EADDRINUSE, 0 };

/*
 * Mapping
 */

static void map_unmap_roundtrip(struct kunit *test)
{
	static const unsigned int sizes[] = { 1, 2, 7, 8, 9, 511, 512, 513, 1200 };
	struct xt *xt = test->priv;

	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		EXPECT_EQ(xt_map(xt, i, i / 3, sizes[i]), 0);
		EXPECT_EQ(xt_nr_frames(xt), sizes[i]);
		EXPECT_EQ(xt_unmap(xt, i, sizes[i]), sizes[i]);
		EXPECT_EQ(xt_nr_frames(xt), 0);
	}
}

/* A scatterlist takes one trap if there are lists, and so does its unmap. */
static void map_pieces_roundtrip(struct kunit *test)
{
	static const unsigned int sizes[] = { 1, 2, 3, 8, 9, 64, 1500 };
	struct xt *xt = test->priv;
	bool one = xt_has(xt, IOMMUCAP_runs);

	xt->sim->conf.quirks &= ~SIM_PREEMPTS;
	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned int nr = sizes[i];

		sim_reset_calls(xt->sim);
		EXPECT_EQ(xt_map_pieces(xt, 0, 0, nr), 0);
		EXPECT_LE(xt->sim->traps, one && nr < 100 ? 1 : nr);
		sim_reset_calls(xt->sim);
		EXPECT_EQ(xt_unmap(xt, 0, nr), nr);
		EXPECT_LE(xt->sim->traps, nr < 100 ? 1 : nr);
		EXPECT_EQ(xt_nr_frames(xt), 0);
	}
}

static void map_takes_little_memory(struct kunit *test)
{
	struct xt *xt = test->priv;
	unsigned int nr = SZ_128M / XT_4K;
	s64 before = atomic64_read(&xt_env.bytes);

	EXPECT_EQ(xt_map(xt, 0, 0, nr), 0);
	EXPECT_LE(atomic64_read(&xt_env.bytes) - before, 256);
	EXPECT_EQ(xt_nr_frames(xt), nr);
	EXPECT_EQ(xt_unmap(xt, 0, nr), nr);
	EXPECT_EQ(atomic64_read(&xt_env.bytes), before);

	EXPECT_EQ(xt_map_pieces(xt, 0, 0, 64), 0);
	EXPECT_LE(atomic64_read(&xt_env.bytes) - before, 2048);
	EXPECT_EQ(xt_unmap(xt, 0, 64), 64);
	EXPECT_EQ(atomic64_read(&xt_env.bytes), before);
}

static void map_passes_on_permissions(struct kunit *test)
{
	static const int refused[] = { 0, IOMMU_CACHE, IOMMU_NOEXEC | IOMMU_MMIO };
	static const struct {
		int prot;
		u32 flags;
	} taken[] = {
		{ IOMMU_READ, IOMMU_MAP_readable },
		{ IOMMU_WRITE, IOMMU_MAP_writeable },
		{ XT_RW, IOMMU_MAP_readable | IOMMU_MAP_writeable },
		{ XT_RW | IOMMU_MMIO, IOMMU_MAP_readable | IOMMU_MAP_writeable },
		{ IOMMU_READ | IOMMU_CACHE, IOMMU_MAP_readable | IOMMU_MAP_cache },
	};
	struct xt *xt = test->priv;
	u32 flags, known = ~0;

	if (!xt_has(xt, IOMMUCAP_cache))
		known &= ~IOMMU_MAP_cache;
	sim_reset_calls(xt->sim);
	for (unsigned int i = 0; i < ARRAY_SIZE(refused); i++)
		EXPECT_EQ(xt_map_prot(xt, 0, 0, 1, refused[i]), -EINVAL);
	EXPECT_EQ(xt->sim->traps, 0);

	/* Adjacent pages, but not a single run. */
	for (unsigned int i = 0; i < ARRAY_SIZE(taken); i++)
		EXPECT_EQ(iommu_map_nosync(xt->domain, xt_iova(i), xt_phys(i), XT_4K,
					   taken[i].prot, GFP_KERNEL), 0);
	EXPECT_EQ(xt_sync(xt, 0, ARRAY_SIZE(taken)), 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(taken); i++) {
		EXPECT(sim_walk(xt->sim, xt_ctx(xt->domain),
				xt_iova(i) >> XEN_PAGE_SHIFT, NULL, &flags));
		EXPECT_EQ(flags, taken[i].flags & known);
	}
}

static void map_stays_within_aperture(struct kunit *test)
{
	struct xt *xt = test->priv;
	const struct iommu_domain_geometry *geometry = &xt->domain->geometry;
	const struct iommu_domain_ops *ops = xt->domain->ops;
	unsigned long last = (XT_MAX_IOVA - XT_IOVA) / XT_4K;
	size_t mapped = 0;

	EXPECT_EQ(geometry->aperture_start, 0);
	EXPECT_EQ(geometry->aperture_end, XT_MAX_IOVA);
	EXPECT(geometry->force_aperture);
	EXPECT_EQ(xt_map(xt, last, 0, 1), 0);
	EXPECT_EQ(xt_unmap(xt, last, 1), 1);

	EXPECT_EQ(xt_map(xt, last, 0, 2), -ERANGE);
	EXPECT_EQ(xt_map(xt, last + 1, 0, 1), -ERANGE);
	EXPECT_EQ(ops->map_pages(xt->domain, -XT_4K, XT_PHYS, XT_4K, 2, XT_RW,
				 GFP_KERNEL, &mapped), -ERANGE);
	EXPECT_EQ(mapped, 0);
	EXPECT_EQ(xt_nr_frames(xt), 0);
}

/* The last page of 64 bits: no sum may overflow. */
static void map_at_top_of_address_space(struct kunit *test)
{
	struct sim_conf conf = xt_confs[0];
	const struct iommu_domain_ops *ops;
	unsigned long iova = -2UL * XT_4K;
	size_t mapped = 0;
	struct xt *xt;

	conf.max_iova = U64_MAX;
	xt = xt_start(test, &conf);
	ops = xt->domain->ops;
	EXPECT_EQ(ops->map_pages(xt->domain, iova, XT_PHYS, XT_4K, 2, XT_RW,
				 GFP_KERNEL, &mapped), 0);
	EXPECT_EQ(mapped, 2 * XT_4K);
	EXPECT_EQ(ops->iotlb_sync_map(xt->domain, iova, 2 * XT_4K), 0);
	EXPECT_EQ(xt_nr_frames(xt), 2);
	EXPECT_EQ(iommu_iova_to_phys(xt->domain, ULONG_MAX), XT_PHYS + 2 * XT_4K - 1);
	EXPECT_EQ(iommu_unmap(xt->domain, iova, 2 * XT_4K), 2 * XT_4K);
	EXPECT_EQ(xt_nr_frames(xt), 0);
}

static void map_over_mapping_is_refused(struct kunit *test)
{
	static const struct {
		unsigned int page, nr;
	} over[] = { { 10, 8 }, { 9, 2 }, { 17, 2 }, { 13, 1 }, { 8, 16 } };
	struct xt *xt = test->priv;

	EXPECT_EQ(xt_map(xt, 10, 0, 8), 0);
	sim_reset_calls(xt->sim);
	for (unsigned int i = 0; i < ARRAY_SIZE(over); i++)
		EXPECT_EQ(xt_map(xt, over[i].page, 0x1000, over[i].nr), -EADDRINUSE);
	EXPECT_EQ(xt->sim->traps, 0);
	EXPECT(xt_is_mapped(xt, 10, 0, 8, 1));
	EXPECT_EQ(xt_nr_frames(xt), 8);
}

static void map_fails_where_there_is_no_page(struct kunit *test)
{
	struct xt *xt = test->priv;
	u64 gfn = sim_pfn_to_gfn(xt_phys(7) >> XEN_PAGE_SHIFT);

	xt->sim->hole_start = gfn;
	xt->sim->hole_end = gfn + 1;
	EXPECT_EQ(xt_map(xt, 0, 0, 20), -ENOENT);
	EXPECT(xt_is_empty(xt, 0, 20));
	xt->sim->hole_start = 0;
	xt->sim->hole_end = 0;
	xt->sim->foreign_start = gfn;
	xt->sim->foreign_end = gfn + 1;
	EXPECT_EQ(xt_map(xt, 0, 0, 20), -EPERM);
	EXPECT(xt_is_empty(xt, 0, 20));
}

/* The core undoes a partial map. Success without completion is an error. */
static void map_run_partial_failure(struct kunit *test)
{
	struct xt *xt = test->priv;

	for (unsigned int n = 0; n < 20; n += 3)
		for (unsigned int e = 0; e < ARRAY_SIZE(xt_errors); e++) {
			int error = xt_errors[e];

			xt_limit(xt, true, n, error);
			EXPECT_EQ(xt_map(xt, 0, 0, 20), error ?: -EIO);
			EXPECT(xt_is_empty(xt, 0, 20));
			EXPECT_EQ(xt_nr_frames(xt), 0);
			sim_clear_faults(xt->sim);
		}
	EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
}

/* The record is correct between a failed sync and the caller's undoing it. */
static void map_pieces_partial_failure(struct kunit *test)
{
	static const unsigned int after[] = { 0, 1, 29, 59, 70, 99 };
	struct xt *xt = test->priv;

	for (unsigned int i = 0; i < ARRAY_SIZE(after); i++)
		for (unsigned int e = 0; e < ARRAY_SIZE(xt_errors); e++) {
			int error = xt_errors[e];

			xt_limit(xt, true, after[i], error);
			EXPECT_EQ(xt_map_pieces(xt, 0, 0, 100), error ?: -EIO);
			EXPECT_EQ(xt_nr_frames(xt), after[i]);
			EXPECT(xt_is_recorded(xt, 0, 0, 100, 2));
			EXPECT_EQ(xt_unmap(xt, 0, 100), 100);
			EXPECT_EQ(xt_nr_frames(xt), 0);
			sim_clear_faults(xt->sim);
		}
}

/* One call fails; further calls would succeed. */
static void map_pieces_failure_in_the_middle(struct kunit *test)
{
	struct xt *xt = test->priv;

	for (unsigned int skip = 0; skip < 100; skip += 33) {
		sim_add_fault(xt->sim, IOMMU_map_pages, skip, 1, -ENOMEM, 0);
		/* With lists, there is only one call. */
		EXPECT_EQ(xt_map_pieces(xt, 0, 0, 100),
			  xt->sim->nr_injected ? -ENOMEM : 0);
		EXPECT(xt_is_recorded(xt, 0, 0, 100, 2));
		EXPECT_EQ(xt_unmap(xt, 0, 100), 100);
		EXPECT_EQ(xt_nr_frames(xt), 0);
		sim_clear_faults(xt->sim);
		xt->sim->nr_injected = 0;
	}
}

/* The record is correct even if undoing fails. */
static void map_failure_that_cannot_be_undone(struct kunit *test)
{
	struct xt *xt = test->priv;

	xt_limit(xt, true, 9, -ENOMEM);
	xt_limit(xt, false, 4, -ENOMEM);
	EXPECT_EQ(xt_map(xt, 0, 0, 20), -ENOMEM);
	EXPECT_EQ(xt_nr_frames(xt), 5);
	EXPECT(xt_is_recorded(xt, 4, 4, 16, 1));
	EXPECT_GE(xt_warnings(), 1);
	sim_clear_faults(xt->sim);
	for (unsigned int i = 0; i < 20; i++)
		xt_unmap(xt, i, 1);
	EXPECT(xt_is_empty(xt, 0, 20));
	EXPECT_EQ(xt_nr_frames(xt), 0);
	EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
}

static void sync_of_nothing_does_nothing(struct kunit *test)
{
	struct xt *xt = test->priv;

	EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
	sim_reset_calls(xt->sim);
	EXPECT_EQ(xt_sync(xt, 0, 4), 0);
	EXPECT_EQ(xt_sync(xt, 1000, 1), 0);
	EXPECT_EQ(xt->sim->traps, 0);
}

/*
 * Adjacent ranges are mapped at the same time, three of eight pieces each. A
 * sync concerns only its own range, and so does its failure, whether in the
 * hypervisor or from lack of memory.
 */
static void map_of_neighbours_is_synced_apart(struct kunit *test)
{
	static const unsigned int orders[][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 },
		{ 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};
	struct xt *xt = test->priv;

	for (unsigned int i = 0; i < ARRAY_SIZE(orders); i++)
		for (unsigned int fail = 0; fail < 3; fail++) {
			unsigned int there = 0;

			for (unsigned int j = 0; j < 24; j++)
				EXPECT_EQ(xt_map_nosync(xt, j, 2 * j, 1), 0);
			for (unsigned int j = 0; j < 3; j++) {
				unsigned int page = orders[i][j] * 8;
				bool fails = page == 8 && fail;
				int ret;

				if (fails && fail == 1)
					xt_limit(xt, true, 3, -ENOMEM);
				if (fails && fail == 2)
					xt_fail_alloc(1);
				ret = xt_sync(xt, page, 8);
				xt_fail_alloc(0);
				sim_clear_faults(xt->sim);
				if (ret) {
					EXPECT(fails);
					EXPECT_EQ(ret, -ENOMEM);
					EXPECT(xt_is_recorded(xt, page, 2 * page, 8, 2));
					EXPECT_EQ(xt_unmap(xt, page, 8), 8);
				} else {
					EXPECT(xt_is_mapped(xt, page, 2 * page, 8, 2));
					there += 8;
				}
				EXPECT_EQ(xt_nr_frames(xt), there);
			}
			for (unsigned int page = 0; page < 24; page += 8)
				xt_unmap(xt, page, 8);
			EXPECT_EQ(xt_nr_frames(xt), 0);
		}

	/* A synced mapping does not grow: its neighbour needs no cut, and no memory. */
	EXPECT_EQ(xt_map(xt, 0, 0, 1), 0);
	EXPECT_EQ(xt_map_nosync(xt, 1, 1, 1), 0);
	xt_fail_alloc(1);
	EXPECT_EQ(xt_sync(xt, 1, 1), 0);
	EXPECT_EQ(xt_unmap(xt, 0, 1), 1);
	xt_fail_alloc(0);
	EXPECT_EQ(xt_unmap(xt, 1, 1), 1);
}

/*
 * Unmapping
 */

static void unmap_goes_on_after_short_result(struct kunit *test)
{
	struct xt *xt = test->priv;

	for (unsigned int e = 0; e < ARRAY_SIZE(xt_errors); e++) {
		int error = xt_errors[e];

		EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
		sim_add_fault(xt->sim, IOMMU_unmap_pages, 0, 3, error, 4);
		EXPECT_EQ(xt_unmap(xt, 0, 20), 20);
		EXPECT_EQ(xt_nr_frames(xt), 0);
		sim_clear_faults(xt->sim);
	}
	EXPECT_EQ(xt_warnings(), 0);
}

static void unmap_keeps_what_stays_mapped(struct kunit *test)
{
	static const unsigned int after[] = { 0, 1, 7, 19 };
	struct xt *xt = test->priv;

	for (unsigned int i = 0; i < ARRAY_SIZE(after); i++)
		for (unsigned int e = 0; e < ARRAY_SIZE(xt_errors); e++) {
			int error = xt_errors[e];

			unsigned int n = after[i], warnings = xt_warnings();

			EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
			xt_limit(xt, false, n, error);
			EXPECT_EQ(xt_unmap(xt, 0, 20), n);
			EXPECT_GE(xt_warnings(), warnings + 1);
			EXPECT(xt_is_mapped(xt, n, n, 20 - n, 1));
			/* Still stuck, and the record is still correct. */
			EXPECT_EQ(xt_unmap(xt, n, 20 - n), 0);
			EXPECT_EQ(xt_map(xt, n, 0, 1), -EADDRINUSE);
			sim_clear_faults(xt->sim);
			EXPECT_EQ(xt_unmap(xt, n, 20 - n), 20 - n);
			EXPECT_EQ(xt_nr_frames(xt), 0);
		}
}

/* Each way to cut three out of thirteen pages, from a run and from pieces. */
static void unmap_of_parts(struct kunit *test)
{
	struct xt *xt = test->priv;

	for (unsigned int stride = 1; stride <= 2; stride++)
		for (unsigned int i = 0; i <= 10; i++) {
			if (stride == 1)
				EXPECT_EQ(xt_map(xt, 0, 0, 13), 0);
			else
				EXPECT_EQ(xt_map_pieces(xt, 0, 0, 13), 0);
			EXPECT_EQ(xt_unmap(xt, i, 3), 3);
			EXPECT(xt_is_mapped(xt, 0, 0, i, stride));
			EXPECT(xt_is_mapped(xt, i + 3, (i + 3) * stride, 10 - i, stride));
			EXPECT_EQ(xt_nr_frames(xt), 10);
			/* Stops at the hole, which can be filled again. */
			EXPECT_EQ(xt_unmap(xt, i, 13 - i), 0);
			EXPECT_EQ(xt_map_pieces(xt, i, 100, 3), 0);
			EXPECT_EQ(xt_unmap(xt, 0, 13), 13);
			EXPECT_EQ(xt_nr_frames(xt), 0);
		}
}

/* Splitting a record takes memory; if there is none, nothing is unmapped. */
static void unmap_without_memory(struct kunit *test)
{
	struct xt *xt = test->priv;
	unsigned int ret;

	EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
	xt_fail_alloc(1);
	ret = xt_unmap(xt, 8, 4);
	xt_fail_alloc(0);
	EXPECT(ret == 4 || (!ret && xt_is_mapped(xt, 0, 0, 20, 1)));
	EXPECT_EQ(xt_unmap(xt, 0, 8), 8);
	EXPECT_EQ(xt_unmap(xt, 8 + ret, 12 - ret), 12 - ret);
	/* Unmapping whole mappings takes none, however many. */
	for (unsigned int i = 0; i < 50; i++)
		EXPECT_EQ(xt_map(xt, i, 2 * i, 1), 0);
	xt_fail_alloc(1);
	EXPECT_EQ(xt_unmap(xt, 0, 50), 50);
	xt_fail_alloc(0);
	EXPECT_EQ(xt_nr_frames(xt), 0);
}

static void unmap_across_mappings_is_one_call(struct kunit *test)
{
	struct xt *xt = test->priv;

	xt->sim->conf.quirks &= ~SIM_PREEMPTS;
	for (unsigned int i = 0; i < 10; i++)
		EXPECT_EQ(xt_map(xt, 2 * i, 100 * i, 2), 0);
	sim_reset_calls(xt->sim);
	EXPECT_EQ(xt_unmap(xt, 1, 18), 18);
	EXPECT_EQ(xt->sim->traps, 1);
	EXPECT(xt_truthful(xt, 0, 20));
	EXPECT_EQ(xt_nr_frames(xt), 2);
}

static void unmap_of_nothing(struct kunit *test)
{
	struct xt *xt = test->priv;

	EXPECT_EQ(xt_map(xt, 10, 0, 4), 0);
	sim_reset_calls(xt->sim);
	EXPECT_EQ(xt_unmap(xt, 14, 4), 0);
	EXPECT_EQ(xt_unmap(xt, 9, 4), 0);
	EXPECT_EQ(xt_unmap_queued(xt, 9, 4), 0);
	EXPECT_EQ(xt->sim->traps, 0);
	EXPECT(xt_is_mapped(xt, 10, 0, 4, 1));
}

/* Recorded but never synced, so unknown to the hypervisor. */
static void unmap_of_what_was_never_synced(struct kunit *test)
{
	struct xt *xt = test->priv;

	EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
	EXPECT_EQ(xt_map_nosync(xt, 4, 0, 4), 0);
	EXPECT_EQ(xt_nr_frames(xt), 4);
	EXPECT_EQ(xt_unmap_queued(xt, 6, 2), 2);
	EXPECT_EQ(xt_unmap(xt, 2, 4), 4);
	EXPECT_EQ(xt_nr_frames(xt), 2);
	EXPECT(xt_truthful(xt, 0, 8));
}

/*
 * Lazy unmapping
 */

static u64 xt_nr_stale(struct xt *xt)
{
	return sim_nr_stale(xt->sim, xt_ctx(xt->domain));
}

/* Unmapped at once; with the extension, a single flush for all follows. */
static void queued_unmaps_share_a_flush(struct kunit *test)
{
	struct xt *xt = test->priv;
	bool lazy = xt_is_lazy(xt);

	for (unsigned int i = 0; i < 100; i++)
		EXPECT_EQ(xt_map(xt, 3 * i, 5 * i, 2), 0);
	for (unsigned int i = 0; i < 100; i++)
		EXPECT_EQ(xt_unmap_queued(xt, 3 * i, 2), 2);
	EXPECT_EQ(xt_nr_frames(xt), 0);
	EXPECT_EQ(xt_nr_stale(xt), lazy ? 200 : 0);
	sim_reset_calls(xt->sim);
	xt_flush(xt);
	EXPECT_EQ(xt->sim->traps, xt_has(xt, IOMMUCAP_deferred_unmap));
	EXPECT(xt_is_empty(xt, 0, 300));
	EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
	/* A strict unmap in between is not deferred. */
	EXPECT_EQ(xt_map(xt, 20, 0, 1), 0);
	EXPECT_EQ(xt_unmap_queued(xt, 0, 20), 20);
	EXPECT_EQ(xt_unmap(xt, 20, 1), 1);
	xt_flush(xt);
	EXPECT_EQ(xt_nr_stale(xt), 0);
}

/* Granted pages return to their owners, so the hypervisor flushes at once. */
static void queued_unmap_of_grants(struct kunit *test)
{
	struct xt *xt = test->priv;
	u64 gfn = sim_pfn_to_gfn(xt_phys(7) >> XEN_PAGE_SHIFT);

	xt->sim->foreign_start = gfn;
	xt->sim->foreign_end = gfn + 1;
	xt->sim->foreign_ok = true;
	EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
	EXPECT_EQ(xt_map(xt, 30, 7, 1), 0);
	EXPECT_EQ(xt_unmap_queued(xt, 0, 20), 20);
	EXPECT_EQ(xt_unmap_queued(xt, 30, 1), 1);
	EXPECT(xt_is_empty(xt, 7, 1));
	EXPECT(xt_is_empty(xt, 30, 1));
	xt_flush(xt);
	EXPECT(xt_is_empty(xt, 0, 31));
}

static void queued_unmap_keeps_what_stays_mapped(struct kunit *test)
{
	struct xt *xt = test->priv;

	for (unsigned int n = 0; n < 20; n += 6)
		for (unsigned int e = 0; e < ARRAY_SIZE(xt_errors); e++) {
			int error = xt_errors[e];

			EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
			xt_limit(xt, false, n, error);
			EXPECT_EQ(xt_unmap_queued(xt, 0, 20), n);
			xt_flush(xt);
			EXPECT(xt_is_empty(xt, 0, n));
			EXPECT(xt_is_mapped(xt, n, n, 20 - n, 1));
			sim_clear_faults(xt->sim);
			EXPECT_EQ(xt_unmap_queued(xt, n, 20 - n), 20 - n);
			xt_flush(xt);
			EXPECT(xt_is_empty(xt, 0, 20));
		}
}

/* The next user of a context must not reach what was mapped before. */
static void domain_free_flushes(struct kunit *test)
{
	struct xt *xt = test->priv;
	u16 ctx = xt_ctx(xt->domain);

	EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
	EXPECT_EQ(xt_unmap_queued(xt, 0, 20), 20);
	xt_free_domain(xt, xt->domain);
	EXPECT_EQ(sim_nr_stale(xt->sim, ctx), 0);
}

/* The next flush covers what a failed one did not. */
static void flush_failure_is_said(struct kunit *test)
{
	struct xt *xt = test->priv;

	EXPECT_EQ(xt_map(xt, 0, 0, 20), 0);
	EXPECT_EQ(xt_unmap_queued(xt, 0, 20), 20);
	sim_add_fault(xt->sim, IOMMU_flush_pages, 0, 1, -EIO, 0);
	xt_flush(xt);
	EXPECT_EQ(xt_warnings(), xt_has(xt, IOMMUCAP_deferred_unmap));
	xt_flush(xt);
	EXPECT_EQ(xt_nr_stale(xt), 0);
}

/*
 * Domains
 */

static u16 xt_dev_ctx(struct xt *xt, unsigned int i)
{
	return xt_sim_dev(xt, i)->ctx;
}

static int xt_attach(struct xt *xt, struct iommu_domain *domain, unsigned int i)
{
	return domain->ops->attach_dev(domain, xt_device(xt, i), NULL);
}

static void static_domains_follow_capabilities(struct kunit *test)
{
	static const u32 caps[] = {
		0, IOMMUCAP_default_identity, IOMMUCAP_identity,
		IOMMUCAP_default_identity | IOMMUCAP_identity,
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(caps); i++) {
		struct sim_conf conf = { .pgsize_mask = SZ_4K, .max_iova = XT_MAX_IOVA };
		const struct iommu_ops *ops;
		struct sim_ctx *ctx;
		struct xt *xt;

		conf.caps = caps[i];
		xt = xt_start(test, &conf);
		ops = xt->ops;
		EXPECT_EQ(ops->blocked_domain->type, IOMMU_DOMAIN_BLOCKED);
		EXPECT_EQ(xt_attach(xt, ops->blocked_domain, 0), 0);
		EXPECT_EQ(!xt_dev_ctx(xt, 0), !(caps[i] & IOMMUCAP_default_identity));
		ctx = xa_load(&xt->sim->contexts, xt_dev_ctx(xt, 0));
		EXPECT(!ctx->identity && !ctx->nr_frames);

		EXPECT_EQ(!!ops->identity_domain, !!caps[i]);
		if (ops->identity_domain) {
			EXPECT_EQ(ops->identity_domain->type, IOMMU_DOMAIN_IDENTITY);
			EXPECT_EQ(xt_attach(xt, ops->identity_domain, 0), 0);
			ctx = xa_load(&xt->sim->contexts, xt_dev_ctx(xt, 0));
			EXPECT_EQ(ctx->identity, !(caps[i] & IOMMUCAP_default_identity));
			EXPECT_EQ(!xt_dev_ctx(xt, 0), !ctx->identity);
		}
		xt_stop(test);
	}
}

/* The identity domain is optional; without a blocked one, there is no IOMMU. */
static void static_contexts_refused(struct kunit *test)
{
	struct sim_conf conf = {
		.caps = IOMMUCAP_identity,
		.pgsize_mask = SZ_4K,
		.max_iova = XT_MAX_IOVA,
	};
	struct xt *xt = xt_new(test, &conf);

	sim_add_fault(xt->sim, IOMMU_alloc_context, 0, 1, -ENOMEM, 0);
	xt_start_new(xt);
	EXPECT(!xt->ops->identity_domain);
	EXPECT(xt->ops->blocked_domain);
	xt_stop(test);

	conf.caps = IOMMUCAP_default_identity;
	xt = xt_new(test, &conf);
	sim_add_fault(xt->sim, IOMMU_alloc_context, 0, 1, -ENOMEM, 0);
	EXPECT_NE(xt_boot(xt), 0);
	EXPECT_EQ(xt_lines(), 1);
}

static void attach_moves_device(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct iommu_domain *a = xt->domain, *b = xt_new_domain(xt);

	EXPECT_NE(xt_ctx(a), xt_ctx(b));
	EXPECT_EQ(xt_attach(xt, a, 0), 0);
	EXPECT_EQ(xt_dev_ctx(xt, 0), xt_ctx(a));
	EXPECT_EQ(xt_attach(xt, a, 1), 0);
	EXPECT_EQ(xt_attach(xt, b, 0), 0);
	EXPECT_EQ(xt_dev_ctx(xt, 0), xt_ctx(b));
	EXPECT_EQ(xt_dev_ctx(xt, 1), xt_ctx(a));
	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 0), 0);
	EXPECT_NE(xt_dev_ctx(xt, 0), xt_ctx(b));
}

static void attach_failure_leaves_device(struct kunit *test)
{
	static const struct {
		int xen;
		int core;
	} errors[] = {
		/* The core tries another domain only after -EINVAL. */
		{ -EINVAL, -EINVAL }, { -ENOMEM, -ENOMEM },
		{ -ENOSPC, -ENOSPC }, { -EBUSY, -EBUSY },
		{ -ENODEV, -ENODEV }, { -ENOENT, -ENODEV },
		{ -EPERM, -ENODEV }, { -EFAULT, -ENODEV },
	};
	struct xt *xt = test->priv;
	struct iommu_domain *b = xt_new_domain(xt);

	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(errors); i++) {
		sim_add_fault(xt->sim, IOMMU_reattach_device, 0, 1, errors[i].xen, 0);
		EXPECT_EQ(xt_attach(xt, b, 0), errors[i].core);
		EXPECT_EQ(xt_dev_ctx(xt, 0), xt_ctx(xt->domain));
		sim_clear_faults(xt->sim);
	}
}

static void domain_alloc_refuses_what_it_cannot_do(struct kunit *test)
{
	static const u32 flags[] = {
		IOMMU_HWPT_ALLOC_NEST_PARENT, IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
		IOMMU_HWPT_FAULT_ID_VALID, IOMMU_HWPT_ALLOC_PASID,
	};
	struct xt *xt = test->priv;
	const struct iommu_user_data data = {};
	struct device *dev = xt_device(xt, 0);

	for (unsigned int i = 0; i < ARRAY_SIZE(flags); i++)
		EXPECT_EQ(PTR_ERR(xt->ops->domain_alloc_paging_flags(dev, flags[i], NULL)),
			  -EOPNOTSUPP);
	EXPECT_EQ(PTR_ERR(xt->ops->domain_alloc_paging_flags(dev, 0, &data)),
		  -EOPNOTSUPP);
	EXPECT(xt->domain->pgsize_bitmap & SZ_4K);
}

static void domain_alloc_runs_out_of_contexts(struct kunit *test)
{
	struct iommu_domain *domain[5];
	struct xt *xt;

	xen_iommu_contexts = 6;
	xt = xt_start(test, &xt_confs[0]);
	EXPECT_EQ(xt->sim->max_ctx, 6);
	domain[0] = xt->domain;
	/* The blocked domain has one. */
	for (unsigned int i = 1; i < 5; i++)
		domain[i] = xt_new_domain(xt);
	EXPECT_EQ(PTR_ERR(xt_alloc_domain(xt)), -ENOSPC);
	xt_free_domain(xt, domain[2]);
	xt->domain = xt_new_domain(xt);
	EXPECT_EQ(PTR_ERR(xt_alloc_domain(xt)), -ENOSPC);
	EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
}

static void domain_alloc_without_pool(struct kunit *test)
{
	struct xt *xt = test->priv;
	unsigned int contexts = sim_nr_contexts(xt->sim);

	xt->sim->pool = xt->sim->pool_used;
	EXPECT_EQ(PTR_ERR(xt_alloc_domain(xt)), -ENOMEM);
	EXPECT_EQ(sim_nr_contexts(xt->sim), contexts);
}

/* The driver checks the number that the hypervisor returns. */
static void domain_alloc_refuses_forged_context(struct kunit *test)
{
	struct xt *xt = test->priv;
	const int forged[] = { 0, xt->sim->max_ctx + 1, U16_MAX };

	for (unsigned int i = 0; i < ARRAY_SIZE(forged); i++) {
		xt->sim->forge_ctx = forged[i];
		EXPECT_EQ(PTR_ERR(xt_alloc_domain(xt)), -EIO);
	}
	xt->sim->forge_ctx = -1;
	xt_new_domain(xt);
}

/* The context is lost, and never used for another domain. */
static void xt_expect_lost(struct xt *xt, u16 ctx)
{
	EXPECT_EQ(xt->sim->calls[IOMMU_free_context], 0);
	EXPECT_NE(xt_ctx(xt_new_domain(xt)), ctx);
	EXPECT_GE(xt_warnings(), 1);
}

static void domain_free_with_devices_that_stay(struct kunit *test)
{
	struct xt *xt = test->priv;
	u16 ctx = xt_ctx(xt->domain);

	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	EXPECT_EQ(xt_attach(xt, xt->domain, 1), 0);
	EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
	xt_free_domain(xt, xt->domain);
	/* But the devices can reach nothing there, and can still be used. */
	EXPECT_EQ(sim_nr_frames(xt->sim, ctx), 0);
	xt_expect_lost(xt, ctx);
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		EXPECT_EQ(xt_attach(xt, xt->dom[0], i), 0);
}

static void domain_free_with_mapping_that_stays(struct kunit *test)
{
	struct xt *xt = test->priv;
	u16 ctx = xt_ctx(xt->domain);

	EXPECT_EQ(xt_map(xt, 0, 0, 8), 0);
	xt_limit(xt, false, 3, -EIO);
	xt_free_domain(xt, xt->domain);
	sim_clear_faults(xt->sim);
	EXPECT_EQ(sim_nr_frames(xt->sim, ctx), 5);
	xt_expect_lost(xt, ctx);
}

static void domain_free_unmaps_what_is_left(struct kunit *test)
{
	struct xt *xt = test->priv;

	for (unsigned int i = 0; i < 20; i++)
		EXPECT_EQ(xt_map(xt, 3 * i, 0, 1 + (i & 1)), 0);
	for (unsigned int i = 0; i < 20; i += 3)
		EXPECT_EQ(xt_unmap_queued(xt, 3 * i, 1), 1);
	xt_free_domain(xt, xt->domain);
	EXPECT_EQ(xt->sim->refs, 0);
	EXPECT_EQ(xt_warnings(), 0);
}

/* Some hypervisors leak memory on each free. */
static void freed_contexts_are_used_again(struct kunit *test)
{
	struct xt *xt = test->priv;
	u64 used;

	xt_free_domain(xt, xt->domain);
	used = xt->sim->pool_used;
	for (unsigned int i = 0; i < 300; i++) {
		xt->domain = xt_new_domain(xt);
		EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
		EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
		EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 0), 0);
		xt_free_domain(xt, xt->domain);
	}
	EXPECT_EQ(xt->sim->pool_used, used);
}

/* Many at the same time, repeatedly. */
static void contexts_come_and_go(struct kunit *test)
{
	struct xt *xt = test->priv;
	unsigned int before = sim_nr_contexts(xt->sim), nr = XT_MAX_DOMS - 1;
	unsigned int most = 0;

	for (unsigned int round = 0; round < 3; round++) {
		for (unsigned int i = 0; i < nr; i++)
			xt_new_domain(xt);
		most = max(most, sim_nr_contexts(xt->sim));
		while (xt->nr_doms > 1)
			xt_free_domain(xt, xt->dom[1]);
	}
	EXPECT_EQ(most, before + nr);
}

/* The hypervisor reports a violation if such a context is used. */
static void context_that_stays_busy_is_not_used_again(struct kunit *test)
{
	struct sim_conf conf = xt_confs[0];
	struct xt *xt;

	conf.quirks = SIM_FREE_BUSY;
	xt = xt_start(test, &conf);
	for (unsigned int round = 0; round < 3; round++) {
		for (unsigned int i = 0; i < XT_MAX_DOMS - 1; i++)
			xt_new_domain(xt);
		while (xt->nr_doms > 1)
			xt_free_domain(xt, xt->dom[1]);
	}
	EXPECT_EQ(xt_warnings(), xt->sim->calls[IOMMU_free_context]);
	xt->sim->conf.quirks = 0;
}

static void cache_coherency_is_enforced_with_capability(struct kunit *test)
{
	struct xt *xt = test->priv;
	const struct iommu_domain_ops *ops = xt->domain->ops;
	bool cache = xt_has(xt, IOMMUCAP_cache);
	u32 flags;

	/* No longer possible once there is a mapping that is not coherent. */
	EXPECT_EQ(xt_map(xt, 0, 0, 1), 0);
	EXPECT(!ops->enforce_cache_coherency(xt->domain));

	xt->domain = xt_new_domain(xt);
	EXPECT_EQ(ops->enforce_cache_coherency(xt->domain), cache);
	EXPECT_EQ(xt_map(xt, 0, 0, 1), 0);
	sim_walk(xt->sim, xt_ctx(xt->domain), XT_IOVA >> XEN_PAGE_SHIFT, NULL, &flags);
	EXPECT_EQ(!!(flags & IOMMU_MAP_cache), cache);
	EXPECT_EQ(ops->enforce_cache_coherency(xt->domain), cache);
}

/*
 * A domain that maps until the pool is empty gets -ENOMEM. The domains of the
 * DMA API can still map.
 */
static void pool_is_not_for_one_domain(struct kunit *test)
{
	struct iommu_domain *hog;
	struct xt *xt;
	int ret = 0;

	xen_iommu_pool_order = 8;
	xt = xt_start(test, &xt_confs[0]);
	hog = xt->domain;
	xt->domain = xt_new_domain(xt);
	xt->domain->type = IOMMU_DOMAIN_DMA;
	EXPECT_EQ(xt_map(xt, 0, 0, 1), 0);
	for (unsigned int i = 0; i < 256 && !ret; i++)
		ret = iommu_map(hog, XT_IOVA + i * SZ_2M, XT_PHYS, XT_4K, XT_RW,
				GFP_KERNEL);
	EXPECT_EQ(ret, -ENOMEM);
	EXPECT_EQ(PTR_ERR_OR_ZERO(xt_alloc_domain(xt)), 0);
	for (unsigned int i = 1; i < 16; i++)
		EXPECT_EQ(xt_map(xt, i * 512, i, 1), 0);

	/* Others can use what it gives back. */
	for (unsigned int i = 0; i < 4; i++)
		EXPECT_EQ(iommu_unmap(hog, XT_IOVA + i * SZ_2M, XT_4K), XT_4K);
	xt->domain = xt->dom[2];
	EXPECT_EQ(xt_map(xt, 0, 0, 1), 0);
}

/*
 * Nested contexts: the driver's own page table
 */

static struct sim_conf xt_nested_conf(void)
{
	struct sim_conf conf = xt_confs[0];

	conf.caps |= IOMMUCAP_nested;
	conf.nested = (struct pv_iommu_nested_format) {
		.pgsize_mask = SZ_4K | SZ_2M | SZ_1G,
		.flags = IOMMU_NESTED_INFO_dirty | IOMMU_NESTED_INFO_desc,
		.input_bits = 48,
		.output_bits = 48,
	};
	return conf;
}

/* Mapping takes no hypercall; unmapping takes one flush. */
static void nested_maps_and_unmaps(struct kunit *test)
{
	static const unsigned int sizes[] = { 1, 2, 9, 511, 512, 513, 1200 };
	struct sim_conf conf = xt_nested_conf();
	struct xt *xt = xt_start(test, &conf);
	u32 flags;

	EXPECT_EQ(xt->sim->calls[IOMMU_alloc_nested], 1);
	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	EXPECT_EQ(xt_dev_ctx(xt, 0), xt_ctx(xt->domain));
	EXPECT(!xt->ops->capable(xt_device(xt, 0), IOMMU_CAP_ENFORCE_CACHE_COHERENCY));
	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		sim_reset_calls(xt->sim);
		/* A large page replaces an empty table. */
		EXPECT_EQ(xt_map(xt, i & 1 ? 512 : i, i & 1 ? 1024 : i, sizes[i]), 0);
		EXPECT_LE(xt->sim->traps, sizes[i] < 512 ? 0 : 1);
		sim_reset_calls(xt->sim);
		EXPECT_EQ(xt_unmap(xt, i & 1 ? 512 : i, sizes[i]), sizes[i]);
		EXPECT_EQ(xt->sim->traps, 1);
		EXPECT_EQ(xt->sim->calls[IOMMU_flush_nested], 1);
		EXPECT_EQ(xt_map_pieces(xt, i, 0, sizes[i]), 0);
		EXPECT_EQ(xt_unmap(xt, i, sizes[i]), sizes[i]);
	}
	EXPECT_EQ(xt_map_prot(xt, 0, 0, 1, IOMMU_READ), 0);
	EXPECT(sim_walk(xt->sim, xt_ctx(xt->domain), XT_IOVA >> XEN_PAGE_SHIFT, NULL,
			&flags));
	EXPECT_EQ(flags, IOMMU_MAP_readable);
	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 0), 0);
	EXPECT_EQ(xt_warnings(), 0);
}

/* Lazy: devices may use cached translations until a single flush for all. */
static void nested_flushes(struct kunit *test)
{
	struct sim_conf conf = xt_nested_conf();
	struct xt *xt = xt_start(test, &conf);

	for (unsigned int i = 0; i < 3; i++) {
		EXPECT_EQ(xt_map(xt, 0, i, 1024), 0);
		sim_reset_calls(xt->sim);
		EXPECT_EQ(xt_unmap_queued(xt, 0, 1024), 1024);
		EXPECT_EQ(xt->sim->traps, 0);
		EXPECT(sim_reaches(xt->sim, xt_ctx(xt->domain),
				   XT_IOVA >> XEN_PAGE_SHIFT));
		xt_flush(xt);
		EXPECT_EQ(xt->sim->traps, 1);
		EXPECT(xt_is_empty(xt, 0, 1024));
	}

	/* A failed flush is logged, and the next one covers the same pages. */
	EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
	sim_add_fault(xt->sim, IOMMU_flush_nested, 0, 1, -EIO, 0);
	EXPECT_EQ(iommu_unmap(xt->domain, XT_IOVA, 4 * XT_4K), 4 * XT_4K);
	EXPECT_EQ(xt_warnings(), 1);
	xt_flush(xt);
	EXPECT(xt_is_empty(xt, 0, 4));

	/* Without a queue, too, devices forget the tables that are freed. */
	EXPECT_EQ(xt_map(xt, 0, 1, 1024), 0);
	EXPECT(xt_is_mapped(xt, 0, 1, 1024, 1));
	EXPECT_EQ(xt_unmap(xt, 0, 1024), 1024);
}

static void nested_alloc_failures(struct kunit *test)
{
	struct sim_conf conf = xt_nested_conf();
	struct xt *xt = xt_start(test, &conf);
	unsigned int contexts = sim_nr_contexts(xt->sim);

	for (unsigned int n = 1; n <= 2; n++) {
		xt_fail_alloc(n);
		EXPECT_EQ(PTR_ERR(xt_alloc_domain(xt)), -ENOMEM);
	}
	xt_fail_alloc(0);
	sim_add_fault(xt->sim, IOMMU_alloc_nested, 0, 1, -ENOSPC, 0);
	EXPECT_EQ(PTR_ERR(xt_alloc_domain(xt)), -ENOSPC);
	xt->sim->forge_ctx = xt->sim->max_ctx + 1;
	EXPECT_EQ(PTR_ERR(xt_alloc_domain(xt)), -EIO);
	xt->sim->forge_ctx = -1;
	EXPECT_EQ(sim_nr_contexts(xt->sim), contexts);
	xt_new_domain(xt);

	/* Tables that a device may still walk are not freed. */
	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
	xt_free_domain(xt, xt->domain);
	EXPECT_EQ(sim_nr_contexts(xt->sim), contexts + 1);
	EXPECT(sim_reaches(xt->sim, xt_sim_dev(xt, 0)->ctx, XT_IOVA >> XEN_PAGE_SHIFT));
	atomic_dec(&xt_env.live);
}

/* Even where freed contexts are kept: the table is gone. */
static void nested_contexts_are_freed(struct kunit *test)
{
	struct sim_conf conf = xt_nested_conf();
	unsigned int contexts;
	struct xt *xt;

	conf.caps &= ~IOMMUCAP_runs;
	xt = xt_start(test, &conf);
	contexts = sim_nr_contexts(xt->sim);
	xt_free_domain(xt, xt->domain);
	EXPECT_EQ(sim_nr_contexts(xt->sim), contexts - 1);
}

/* Without a suitable format, or if turned off, mapping takes hypercalls. */
static void nested_is_not_for_everybody(struct kunit *test)
{
	for (unsigned int i = 0; i < 4; i++) {
		struct sim_conf conf = xt_nested_conf();
		struct xt *xt;

		if (i == 0)
			conf.nested.pgsize_mask = SZ_2M;
		if (i == 1)
			conf.caps &= ~IOMMUCAP_query;
		xt = xt_new(test, &conf);
		/* The first query is for the limits. */
		if (i == 2)
			sim_add_fault(xt->sim, IOMMU_query, 1, 1, -EOPNOTSUPP, 0);
		xen_iommu_nested = i != 3;
		xt_start_new(xt);
		EXPECT_EQ(xt->sim->calls[IOMMU_alloc_nested], 0);
		EXPECT_EQ(xt_map(xt, 0, 0, 4), 0);
		EXPECT_EQ(xt_nr_frames(xt), 4);
		xt_stop(test);
	}
}

/*
 * Threads and interrupts
 */

#define XT_NR_WORKERS	4

struct xt_worker {
	struct xt xt;		/* the test's, with the worker's domain */
	struct task_struct *task;
	struct completion done;
	unsigned int dev;
	unsigned int page;
	unsigned int errors;
};

static int xt_worker(void *data)
{
	struct xt_worker *w = data;
	struct xt *xt = &w->xt;
	struct rnd_state rnd;

	prandom_seed_state(&rnd, xt_seed + w->page);
	for (unsigned int i = 0; i < 1000; i++) {
		unsigned int page = w->page + prandom_u32_state(&rnd) % 8;
		unsigned int n = 1 + prandom_u32_state(&rnd) % 40;
		unsigned int how = prandom_u32_state(&rnd) % 4;

		w->errors += how ? xt_map(xt, page, page, n) != 0 :
				   xt_map_pieces(xt, page, page, n) != 0;
		if (how == 1) {
			w->errors += xt_unmap_queued(xt, page, n) != n;
			xt_flush(xt);
		} else {
			w->errors += xt_unmap(xt, page, n) != n;
		}
		w->errors += !xt_is_empty(xt, page, n);
		cond_resched();
	}
	complete(&w->done);
	return 0;
}

static void xt_run_workers(struct xt *xt, int (*fn)(void *data))
{
	struct xt_worker *w;

	w = kunit_kcalloc(xt->test, XT_NR_WORKERS, sizeof(*w), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(xt->test, w);
	xt_new_domain(xt);
	for (unsigned int i = 0; i < XT_NR_WORKERS; i++) {
		w[i].xt = *xt;
		/* Three in one domain, and one in another. */
		w[i].xt.domain = xt->dom[i / 3];
		w[i].dev = i;
		/* Workers' ranges are adjacent. */
		w[i].page = i * 48;
		init_completion(&w[i].done);
		w[i].task = kthread_run(fn, &w[i], "xen-iommu-%u", i);
		EXPECT(!IS_ERR(w[i].task));
	}
	for (unsigned int i = 0; i < XT_NR_WORKERS; i++) {
		if (!IS_ERR(w[i].task))
			wait_for_completion(&w[i].done);
		EXPECT_EQ(w[i].errors, 0);
	}
	EXPECT_EQ(xt->sim->refs, 0);
}

/* Ranges that do not overlap, in the same domain and in different ones. */
static void concurrent_maps_and_unmaps(struct kunit *test)
{
	xt_run_workers(test->priv, xt_worker);
}

/* Allocates, attaches and frees, which the mutex protects. */
static int xt_attacher(void *data)
{
	struct xt_worker *w = data;
	struct xt *xt = &w->xt;

	for (unsigned int i = 0; i < 300; i++) {
		xt->nr_doms = 0;
		xt->domain = xt_alloc_domain(xt);
		if (IS_ERR(xt->domain)) {
			w->errors++;
			break;
		}
		w->errors += xt_attach(xt, xt->domain, w->dev) != 0;
		w->errors += xt_map(xt, 0, 0, 3) != 0;
		w->errors += xt_dev_ctx(xt, w->dev) != xt_ctx(xt->domain);
		w->errors += xt_unmap(xt, 0, 3) != 3;
		w->errors += xt_attach(xt, xt->ops->blocked_domain, w->dev) != 0;
		xt_free_domain(xt, xt->domain);
		cond_resched();
	}
	complete(&w->done);
	return 0;
}

static void concurrent_attaches_and_frees(struct kunit *test)
{
	xt_run_workers(test->priv, xt_attacher);
}

static int xt_free_worker(void *data)
{
	struct xt_worker *w = data;

	xt_free_domain(&w->xt, w->xt.domain);
	complete(&w->done);
	return 0;
}

/* Devices may come and go while their domain is freed. */
static void domain_free_waits_for_the_mutex(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct xt_worker *w = kunit_kzalloc(test, sizeof(*w), GFP_KERNEL);
	struct iommu_domain *domain = xt->domain;
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(xt_device(xt, 0));

	KUNIT_ASSERT_NOT_NULL(test, w);
	EXPECT_EQ(xt_attach(xt, domain, 0), 0);
	w->xt = *xt;
	xt->nr_doms = 0;
	init_completion(&w->done);
	mutex_lock(&xen_iommu->mutex);
	w->task = kthread_run(xt_free_worker, w, "xen-iommu-free");
	msleep(50);
	EXPECT(xdev->domain == domain);
	mutex_unlock(&xen_iommu->mutex);
	KUNIT_ASSERT_FALSE(test, IS_ERR(w->task));
	wait_for_completion(&w->done);
	EXPECT(!xdev->domain);
}

struct xt_irq {
	struct hrtimer timer;
	struct completion done;
	struct xt *xt;
	bool in_irq;
	int ret;
	unsigned int unmapped;
};

static enum hrtimer_restart xt_irq_fn(struct hrtimer *timer)
{
	struct xt_irq *irq = container_of(timer, struct xt_irq, timer);
	struct xt *xt = irq->xt;

	irq->in_irq = in_hardirq();
	irq->ret = xt_map_pieces(xt, 0, 0, 30);
	irq->unmapped = xt_unmap_queued(xt, 0, 10);
	xt_flush(xt);
	irq->unmapped += xt_unmap(xt, 11, 18);
	complete(&irq->done);
	return HRTIMER_NORESTART;
}

static void map_and_unmap_in_interrupt(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct xt_irq irq = { .xt = xt };

	init_completion(&irq.done);
	hrtimer_setup_on_stack(&irq.timer, xt_irq_fn, CLOCK_MONOTONIC,
			       HRTIMER_MODE_REL);
	hrtimer_start(&irq.timer, ms_to_ktime(1), HRTIMER_MODE_REL);
	wait_for_completion(&irq.done);
	hrtimer_cancel(&irq.timer);
	destroy_hrtimer_on_stack(&irq.timer);

	EXPECT(irq.in_irq);
	EXPECT_EQ(irq.ret, 0);
	EXPECT_EQ(irq.unmapped, 28);
	EXPECT(xt_truthful(xt, 0, 30));
	EXPECT_EQ(xt_nr_frames(xt), 2);
}

/* An interrupt arrives on a CPU that has passed a list to the hypervisor. */
static void xt_nested_call(struct xt *xt, unsigned int subop, void *arg)
{
	struct xt *other = xt->priv;

	if (subop != IOMMU_map_pages && subop != IOMMU_unmap_pages)
		return;
	xt->on_call = NULL;
	EXPECT_EQ(xt_map_pieces(other, 1000, 0, 30), 0);
	EXPECT_EQ(xt_unmap_queued(other, 1000, 15), 15);
	xt_flush(other);
}

static void map_and_unmap_during_a_call(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct xt *other = kunit_kzalloc(test, sizeof(*other), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, other);
	*other = *xt;
	xt->priv = other;
	for (unsigned int i = 0; i < 2; i++) {
		if (i)
			other->domain = xt_new_domain(xt);
		xt->on_call = xt_nested_call;
		EXPECT_EQ(xt_map_pieces(xt, 0, 0, 60), 0);
		EXPECT_EQ(xt_unmap(other, 1015, 15), 15);
		xt->on_call = xt_nested_call;
		EXPECT_EQ(xt_unmap(xt, 0, 60), 60);
		EXPECT_EQ(xt_unmap(other, 1015, 15), 15);
		EXPECT_EQ(xt->sim->refs, 0);
	}
}

/*
 * Devices
 */

static void capabilities_are_honest(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct device *dev = xt_device(xt, 0);
	bool cache = xt_has(xt, IOMMUCAP_cache);

	/* DMA on x86 is coherent even without snoop control. */
	EXPECT_EQ(xt->ops->capable(dev, IOMMU_CAP_CACHE_COHERENCY),
		  IS_ENABLED(CONFIG_X86) || cache);
	EXPECT_EQ(xt->ops->capable(dev, IOMMU_CAP_ENFORCE_CACHE_COHERENCY), cache);
	EXPECT_EQ(xt->ops->capable(dev, IOMMU_CAP_PRE_BOOT_PROTECTION), false);
	EXPECT(!xt->ops->capable(dev, IOMMU_CAP_DIRTY_TRACKING));
	EXPECT(!xt->ops->capable(dev, IOMMU_CAP_DEFERRED_FLUSH) || xt_is_lazy(xt));
}

static void probe_refuses_devices_that_are_not_xens(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct device other = { .init_name = "other" };
	struct pci_dev *pdev = &xt->dev[0].pdev;

	xt_release_dev(xt, 0);
	/* The IOMMU itself, even if Xen knows it. */
	sim_reset_calls(xt->sim);
	pdev->class = PCI_CLASS_SYSTEM_IOMMU << 8;
	EXPECT_EQ(xt_probe(xt, 0), -ENODEV);
	pdev->class = PCI_CLASS_NETWORK_ETHERNET << 8;
	/* Segments that do not fit into the interface. */
	xt_env.segment = 0x10000;
	EXPECT_EQ(xt_probe(xt, 0), -ENODEV);
	xt_env.segment = 0;
	EXPECT_EQ(PTR_ERR(xt->ops->probe_device(&other)), -ENODEV);
	EXPECT_EQ(xt->sim->traps, 0);

	/* Unknown to Xen. */
	xt_env.segment = 1;
	EXPECT_EQ(xt_probe(xt, 0), -ENODEV);
	/* -ENOMEM must not become -ENODEV. */
	xt_env.segment = 0;
	sim_add_fault(xt->sim, IOMMU_reattach_device, 0, 1, -ENOMEM, 0);
	EXPECT_EQ(xt_probe(xt, 0), -ENOMEM);

	sim_add_device(xt->sim, 0xffff, 0, pdev->devfn);
	xt_env.segment = 0xffff;
	EXPECT_EQ(xt_probe(xt, 0), 0);
	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	EXPECT_EQ(xt_dev_ctx(xt, 0), xt_ctx(xt->domain));
}

/* Firmware may require a region to stay mapped. */
static void release_blocks_device(struct kunit *test)
{
	struct xt *xt = test->priv;
	u16 blocked;

	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 0), 0);
	blocked = xt_dev_ctx(xt, 0);
	for (unsigned int i = 0; i < 2; i++) {
		EXPECT_EQ(xt_attach(xt, xt->domain, i), 0);
		xt->dev[i].iommu.require_direct = i;
		xt_release_dev(xt, i);
		EXPECT_EQ(xt_dev_ctx(xt, i), i ? 0 : blocked);
	}
	EXPECT_EQ(xt_warnings(), 0);
}

/* The next user of the context would share it with that device. */
static void release_of_device_that_stays(struct kunit *test)
{
	struct xt *xt = test->priv;
	u16 ctx = xt_ctx(xt->domain);

	EXPECT_EQ(xt_attach(xt, xt->domain, 1), 0);
	sim_add_fault(xt->sim, IOMMU_reattach_device, 0, 100, -EBUSY, 0);
	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 1), -EBUSY);
	xt_release_dev(xt, 1);
	EXPECT_GE(xt_warnings(), 1);
	sim_clear_faults(xt->sim);
	xt_free_domain(xt, xt->domain);
	xt_expect_lost(xt, ctx);
}

/* Hot-unplug: Xen has already been told. */
static void release_of_device_that_is_gone(struct kunit *test)
{
	struct xt *xt = test->priv;
	u16 ctx = xt_ctx(xt->domain);

	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	EXPECT_EQ(xt_attach(xt, xt->domain, 1), 0);
	sim_move_device(xt->sim, xt_sim_dev(xt, 0), 0, true);
	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 0), -ENODEV);
	xt_release_dev(xt, 0);
	EXPECT_EQ(xt_dev_ctx(xt, 1), ctx);
	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 1), 0);
	xt_free_domain(xt, xt->domain);
	EXPECT_EQ(xt_warnings(), 0);
}

/* A function that also does DMA with the IDs of others. */
static void aliases_move_with_the_device(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct pci_dev *pdev = &xt->dev[0].pdev;
	u16 ctx = xt_ctx(xt->domain);
	unsigned int known = PCI_DEVFN(1, 1), unknown = PCI_DEVFN(1, 2);

	xt_release_dev(xt, 0);
	pdev->dma_alias_mask = kunit_kcalloc(test, BITS_TO_LONGS(256),
					     sizeof(long), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, pdev->dma_alias_mask);
	__set_bit(known, pdev->dma_alias_mask);
	__set_bit(unknown, pdev->dma_alias_mask);
	sim_add_device(xt->sim, 0, 0, known);
	EXPECT_EQ(xt_probe(xt, 0), 0);
	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	EXPECT_EQ(xt_dev_ctx(xt, 0), ctx);
	EXPECT_EQ(sim_find_device(xt->sim, 0, 0, known)->ctx, ctx);

	/* All or none. */
	sim_add_fault(xt->sim, IOMMU_reattach_device, 1, 1, -ENOMEM, 0);
	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 0), -ENOMEM);
	EXPECT_EQ(xt_dev_ctx(xt, 0), ctx);
	EXPECT_EQ(sim_find_device(xt->sim, 0, 0, known)->ctx, ctx);
	EXPECT_EQ(xt_attach(xt, xt->ops->blocked_domain, 0), 0);
	EXPECT_EQ(sim_find_device(xt->sim, 0, 0, known)->ctx, xt_dev_ctx(xt, 0));
}

/* One device is removed; another with the same requester ID must still work. */
static void xt_test_shared_id(struct xt *xt, struct sim_device *shared)
{
	u16 ctx = xt_ctx(xt->domain);

	for (unsigned int i = 0; i < 2; i++)
		EXPECT_EQ(xt_probe(xt, i), 0);
	for (unsigned int i = 0; i < 2; i++)
		EXPECT_EQ(xt_attach(xt, xt->domain, i), 0);
	EXPECT_EQ(shared->ctx, ctx);
	xt_release_dev(xt, 0);
	EXPECT_EQ(shared->ctx, ctx);
	EXPECT(xt_sim_dev(xt, 0) == shared || xt_dev_ctx(xt, 0) != ctx);
	/* It comes back. */
	EXPECT_EQ(xt_probe(xt, 0), 0);
	EXPECT_EQ(shared->ctx, ctx);
	EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
	EXPECT_EQ(xt_warnings(), 0);

	/* All of them move, one by one. */
	xt_new_domain(xt);
	for (unsigned int i = 0; i < 2; i++)
		EXPECT_EQ(xt_attach(xt, xt->dom[1], i), 0);
	EXPECT_EQ(shared->ctx, xt_ctx(xt->dom[1]));
	for (unsigned int i = 0; i < 2; i++)
		xt_release_dev(xt, i);
	EXPECT_NE(shared->ctx, xt_ctx(xt->dom[1]));
	EXPECT_EQ(xt_warnings(), 0);
}

static void devices_behind_a_bridge(struct kunit *test)
{
	struct xt *xt = test->priv;

	xt_make_dev(xt, &xt->bridge, PCI_DEVFN(5, 0));
	xt->bridge.pcie_cap = 0x40;
	xt->bridge.pcie_flags_reg = PCI_EXP_TYPE_PCI_BRIDGE << 4;
	xt->bridge.subordinate = &xt->secondary;
	xt->secondary.number = 7;
	xt->secondary.parent = &xt->bus;
	xt->secondary.self = &xt->bridge;
	sim_add_device(xt->sim, 0, 7, PCI_DEVFN(0, 0));
	for (unsigned int i = 0; i < 2; i++) {
		xt_release_dev(xt, i);
		xt->dev[i].pdev.bus = &xt->secondary;
		sim_add_device(xt->sim, 0, 7, xt->dev[i].pdev.devfn);
	}
	xt_test_shared_id(xt, sim_find_device(xt->sim, 0, 7, PCI_DEVFN(0, 0)));
}

/* VMD: disks in a segment of their own share one requester ID. */
static void devices_behind_vmd(struct kunit *test)
{
	struct xt *xt = test->priv;

	xt_env.vmd = &xt->dev[3].pdev;
	xt_env.vmd_bus = &xt->secondary;
	xt_release_dev(xt, 3);
	for (unsigned int i = 0; i < 2; i++) {
		xt_release_dev(xt, i);
		xt->dev[i].pdev.bus = &xt->secondary;
	}
	xt_test_shared_id(xt, xt_sim_dev(xt, 3));
}

static int xt_count_regions(struct xt *xt, unsigned int dev,
			    enum iommu_resv_type type, phys_addr_t start,
			    size_t length)
{
	struct iommu_resv_region *region, *next;
	int found = 0;
	LIST_HEAD(head);

	xt->ops->get_resv_regions(xt_device(xt, dev), &head);
	list_for_each_entry_safe(region, next, &head, list) {
		found += (!length || (region->start == start &&
				      region->length == length)) &&
			 region->type == type;
		xt_kfree(region);
	}
	return found;
}

static struct xt *xt_start_rdm(struct kunit *test, const struct sim_conf *conf)
{
	struct xt *xt = xt_new(test, conf);

	sim_add_rdm(xt->sim, 0x1000, 16, 0, PCI_DEVFN(1, 0));
	sim_add_rdm(xt->sim, 0x2000, 1, 0, PCI_DEVFN(2, 0));
	sim_add_rdm(xt->sim, 0x3000, 0, 0, PCI_DEVFN(2, 0));
	return xt_start_new(xt);
}

/*
 * As on bare metal. But if the hypervisor maps the regions into all contexts,
 * nothing else can be mapped there.
 */
static void reserved_regions_are_those_of_the_device(struct kunit *test)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(xt_confs); i++) {
		struct xt *xt = xt_start_rdm(test, &xt_confs[i]);
		bool empty = xt_has(xt, IOMMUCAP_alloc_empty);

		for (unsigned int dev = 0; dev < 3; dev++) {
			EXPECT_EQ(xt_count_regions(xt, dev, IOMMU_RESV_DIRECT,
						   0x1000000, 0x10000),
				  dev == 0 && empty);
			EXPECT_EQ(xt_count_regions(xt, dev, IOMMU_RESV_DIRECT,
						   0x2000000, 0x1000),
				  dev == 1 && empty);
			EXPECT_EQ(xt_count_regions(xt, dev, IOMMU_RESV_RESERVED,
						   0x1000000, 0x10000), !empty);
			EXPECT_EQ(xt_count_regions(xt, dev, IOMMU_RESV_RESERVED,
						   0x2000000, 0x1000), !empty);
		}
		EXPECT_EQ(xt_count_regions(xt, 0, IOMMU_RESV_MSI, 0, 0),
			  IS_ENABLED(CONFIG_X86));

		/* Firmware rarely uses these. */
		xt->dev[0].pdev.class = PCI_CLASS_SERIAL_USB_XHCI;
		EXPECT_EQ(xt_count_regions(xt, 0, IOMMU_RESV_DIRECT_RELAXABLE,
					   0x1000000, 0x10000), empty);
		xt->dev[0].pdev.class = PCI_CLASS_DISPLAY_VGA << 8;
		EXPECT_EQ(xt_count_regions(xt, 0, IOMMU_RESV_DIRECT_RELAXABLE,
					   0x1000000, 0x10000), empty);
		EXPECT_EQ(xt_warnings(), 0);
		xt_stop(test);
	}
}

/* What the core and a user of another device can map there. */
static void reserved_regions_in_contexts(struct kunit *test)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(xt_confs); i++) {
		struct xt *xt = xt_start_rdm(test, &xt_confs[i]);
		phys_addr_t start = 0x1000000;
		bool there;

		for (unsigned int j = 0; j < 4; j++) {
			bool direct = j & 1;
			int ret;

			/* Anything, as long as its device is not there. */
			there = j & 2;
			if (there)
				EXPECT_EQ(xt_attach(xt, xt->domain, 0), 0);
			ret = iommu_map(xt->domain, start, direct ? start : XT_PHYS,
					SZ_64K, XT_RW, GFP_KERNEL);
			if (!xt_has(xt, IOMMUCAP_alloc_empty))
				EXPECT(ret == -EADDRNOTAVAIL || ret == -EADDRINUSE);
			else if (!xt->sim->conf.pv)
				EXPECT_EQ(ret, there && !direct ? -EADDRNOTAVAIL : 0);
			iommu_unmap(xt->domain, start, SZ_64K);
			EXPECT_EQ(xt_nr_frames(xt), 0);
		}
		xt_stop(test);
	}
}

/* There is exactly one warning, and everything else works. */
static void reserved_regions_query_refused(struct kunit *test)
{
	static const struct {
		unsigned int skip;
		int error;
	} faults[] = { { 0, -EPERM }, { 0, -ENOSYS }, { 1, -EFAULT }, { 0, 0 } };

	for (unsigned int i = 0; i < ARRAY_SIZE(faults); i++) {
		struct sim_conf conf = xt_confs[i & 1 ? 0 : 4];
		struct xt *xt;

		if (!faults[i].error)
			conf.quirks |= SIM_RDM_GROWS;
		xt = xt_new(test, &conf);
		sim_add_rdm(xt->sim, 0x1000, 16, 0, PCI_DEVFN(1, 0));
		if (faults[i].error)
			sim_add_fault(xt->sim, SIM_MEMORY_OP, faults[i].skip, 1000,
				      faults[i].error, 0);
		xt_start_new(xt);
		EXPECT_EQ(xt_count_regions(xt, 0, IOMMU_RESV_DIRECT, 0x1000000,
					   0x10000), 0);
		EXPECT_GE(xt_warnings(), 1);
		EXPECT_EQ(xt_map(xt, 0, 0, 1), 0);
		xt_stop(test);
	}
}

/*
 * DMA faults
 */

struct xt_seen {
	struct device *dev;
	unsigned long iova;
	int flags;
	unsigned int nr;
};

static int xt_fault_handler(struct iommu_domain *domain, struct device *dev,
			    unsigned long iova, int flags, void *token)
{
	struct xt_seen *seen = token;

	seen->dev = dev;
	seen->iova = iova;
	seen->flags = flags;
	seen->nr++;
	return 0;
}

static void faults_are_reported(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct xt_seen seen = {};

	if (!xt_has(xt, IOMMUCAP_faults))
		kunit_skip(test, "no fault reports");
	EXPECT_EQ(xt_attach(xt, xt->domain, 1), 0);
	for (unsigned int i = 0; i < 2; i++) {
		sim_report_fault(xt->sim, xt_sim_dev(xt, 1), 0x1234567,
				 i ? IOMMU_FAULT_write : 0, 5);
		flush_delayed_work(&xen_iommu->faults);
		EXPECT_EQ(xt_warnings(), 1);
		EXPECT_EQ(seen.nr, i);
		if (!i)
			iommu_set_fault_handler(xt->domain, xt_fault_handler, &seen);
	}
	EXPECT(seen.dev == xt_device(xt, 1));
	EXPECT_EQ(seen.iova, 0x1234567);
	EXPECT_EQ(seen.flags, IOMMU_FAULT_WRITE);

	/* A device without a domain, and one that Linux does not have. */
	sim_report_fault(xt->sim, xt_sim_dev(xt, 2), 0, 0, 5);
	xt_release_dev(xt, 3);
	sim_report_fault(xt->sim, xt_sim_dev(xt, 3), 0, 0, 5);
	flush_delayed_work(&xen_iommu->faults);
	EXPECT_EQ(xt_warnings(), 3);
	EXPECT_EQ(seen.nr, 1);
}

/* Faults that do not fit are only counted. */
static void storm_of_faults(struct kunit *test)
{
	struct xt *xt = test->priv;
	struct xt_seen seen = {};

	if (!xt_has(xt, IOMMUCAP_faults))
		kunit_skip(test, "no fault reports");
	EXPECT_EQ(xt_attach(xt, xt->domain, 1), 0);
	iommu_set_fault_handler(xt->domain, xt_fault_handler, &seen);
	sim_reset_calls(xt->sim);
	/* On a slow machine, some would be fetched before the last one comes. */
	disable_delayed_work_sync(&xen_iommu->faults);
	for (unsigned int i = 0; i < 10000; i++)
		sim_report_fault(xt->sim, xt_sim_dev(xt, 1), i, 0, 5);
	enable_delayed_work(&xen_iommu->faults);
	schedule_delayed_work(&xen_iommu->faults, 0);
	do
		flush_delayed_work(&xen_iommu->faults);
	while (delayed_work_pending(&xen_iommu->faults));
	EXPECT_EQ(seen.nr, SIM_FAULT_RING);
	EXPECT_LE(xt->sim->traps, SIM_FAULT_RING / 16 + 1);
	EXPECT_EQ(xt_warnings(), 0);
	/* The next report has their number. */
	sim_report_fault(xt->sim, xt_sim_dev(xt, 1), 0, 0, 5);
	flush_delayed_work(&xen_iommu->faults);
	EXPECT_EQ(seen.nr, SIM_FAULT_RING + 1);
	EXPECT_EQ(xt_warnings(), 1);
}

/*
 * Initialisation
 */

static void init_once(struct kunit *test)
{
	struct xt *xt = test->priv;

	EXPECT_EQ(xt->sim->calls[IOMMU_init], 1);
	EXPECT_EQ(xt->sim->calls[IOMMU_query_capabilities], 2);
	EXPECT_EQ(xt_env.sysfs, 1);
	EXPECT_EQ(xt_env.isolated_msi, xt_has(xt, IOMMUCAP_isolated_msi));
	EXPECT(xt_env.acs);
	EXPECT_EQ(!!xt_env.virq, xt_has(xt, IOMMUCAP_faults));
	EXPECT_EQ(xt_warnings(), 0);
}

/* From 64 MiB to 16 TiB; the hypervisor reports unsafe values itself. */
static void init_sizes_follow_memory(struct kunit *test)
{
	for (unsigned int shift = 26; shift <= 44; shift += 3)
		for (unsigned int i = 0; i < ARRAY_SIZE(xt_confs); i++) {
			struct xt *xt = xt_new(test, &xt_confs[i]);
			u64 pages = BIT_ULL(shift - XEN_PAGE_SHIFT);

			xt_env.ram_pages = BIT(shift - PAGE_SHIFT);
			xt_start_new(xt);
			EXPECT_GE(xt->sim->max_ctx, 64);
			/* Enough to map all memory by 4 KiB pages. */
			if (shift < 39)
				EXPECT_GE(xt->sim->pool, pages / 512);
			EXPECT_LE(xt->sim->pool, max(pages / 16, 8192ULL));
			EXPECT_EQ(xt_warnings(), 0);
			xt_stop(test);
		}
}

/* Values out of range are clamped, with one warning. */
static void init_parameters_stay_safe(struct kunit *test)
{
	static const struct {
		unsigned int contexts, order;
		u16 max_ctx;
		unsigned int got;
		int warnings;
	} params[] = {
		{ 1, 0, 2, 0, 1 }, { 2, 1, 2, 6, 1 }, { 100, 12, 100, 12, 0 },
		{ 0xffff, 21, 0xfffe, 20, 2 }, { UINT_MAX, UINT_MAX, 0xfffe, 20, 2 },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(params); i++) {
		struct xt *xt = xt_new(test, &xt_confs[4]);

		xen_iommu_contexts = params[i].contexts;
		xen_iommu_pool_order = params[i].order;
		EXPECT_EQ(xt_boot(xt), 0);
		EXPECT_EQ(xt->sim->max_ctx, params[i].max_ctx);
		if (params[i].got)
			EXPECT_EQ(xt->sim->pool, BIT_ULL(params[i].got));
		EXPECT_EQ(xt_warnings(), params[i].warnings);
		xt_stop(test);
	}
}

/* Limits are reported, in structures of any size, or have to be found out. */
static void init_stays_below_limits(struct kunit *test)
{
	static const size_t sizes[] = { 8, 16, 4, 0 };

	for (unsigned int i = 0; i < 2 * ARRAY_SIZE(sizes); i++) {
		struct sim_conf conf = xt_confs[i & 1 ? 0 : 4];
		struct xt *xt;

		conf.limits = (struct pv_iommu_limits) { 64, 9 };
		xt = xt_new(test, &conf);
		xt->sim->limits_size = sizes[i / 2];
		xt_start_new(xt);
		EXPECT_LE(xt->sim->max_ctx, 64);
		EXPECT_GE(xt->sim->max_ctx, 16);
		EXPECT_EQ(xt->sim->pool, BIT_ULL(9));
		xt_stop(test);
	}
}

static void init_tries_smaller_pools(struct kunit *test)
{
	struct xt *xt = xt_new(test, &xt_confs[0]);

	sim_add_fault(xt->sim, IOMMU_init, 0, 3, -ENOMEM, 0);
	xt_start_new(xt);
	EXPECT_EQ(xt->sim->calls[IOMMU_init], 4);
	xt_stop(test);

	/* But it gives up in the end. */
	xt = xt_new(test, &xt_confs[0]);
	sim_add_fault(xt->sim, IOMMU_init, 0, 1000, -ENOMEM, 0);
	EXPECT_NE(xt_boot(xt), 0);
	EXPECT_LE(xt->sim->calls[IOMMU_init], 200);
}

/* If the driver does not start, it logs one line and leaves nothing behind. */
static void init_failures(struct kunit *test)
{
	static const struct {
		unsigned long quirks;
		u32 pgsize_mask;
		unsigned int subop, skip;
		int error;
	} failures[] = {
		/* Drafts return the error of the allocation that follows. */
		{ SIM_INIT_FALLS_THROUGH, SZ_4K, IOMMU_init, 0, -ENOMEM },
		{ SIM_INIT_IDLE, SZ_4K },
		{ 0, SZ_4K, IOMMU_init, 0, -EACCES },
		{ 0, SZ_4K, IOMMU_query_capabilities, 1, -EFAULT },
		{ 0, 0 }, { 0, SZ_2M }, { 0, SZ_2M | SZ_1G }, { 0, 0xfff },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(failures); i++) {
		struct sim_conf conf = xt_confs[4];
		struct xt *xt;

		conf.quirks = failures[i].quirks;
		conf.pgsize_mask = failures[i].pgsize_mask;
		xt = xt_new(test, &conf);
		if (failures[i].error)
			sim_add_fault(xt->sim, failures[i].subop, failures[i].skip,
				      1000, failures[i].error, 0);
		EXPECT_NE(xt_boot(xt), 0);
		EXPECT_EQ(xt_lines(), 1 + xt_warnings());
		xt_stop(test);
	}
}

static void init_declines_quietly(struct kunit *test)
{
	static const struct {
		bool domain, initial, enable;
		int error;
		unsigned int traps;
	} envs[] = {
		{ false, false, true, 0, 0 },		/* bare metal */
		{ true, true, false, 0, 0 },		/* switched off */
		{ true, false, true, -ENOSYS, 1 },	/* domU */
		{ true, true, true, -ENOSYS, 1 },	/* dom0 of an older Xen */
		{ true, true, true, -ENODEV, 1 },	/* dom0 without an IOMMU */
		{ true, true, true, -EPERM, 1 },
		{ true, true, true, -EOPNOTSUPP, 1 },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(envs); i++) {
		struct xt *xt = xt_new(test, &xt_confs[0]);

		xt_env.domain = envs[i].domain;
		xt_env.initial = envs[i].initial;
		xen_iommu_enable = envs[i].enable;
		if (envs[i].error)
			sim_add_fault(xt->sim, IOMMU_query_capabilities, 0, 100,
				      envs[i].error, 0);
		EXPECT_EQ(xt_early_init(), 0);
		EXPECT_EQ(xt_late_init(), 0);
		EXPECT(!xt_env.ops && !xt_env.acs && !xt_env.virq);
		EXPECT_EQ(xt->sim->traps, envs[i].traps);
		EXPECT_EQ(xt_warnings(), 0);
		xt_stop(test);
	}
}

#ifdef CONFIG_X86
static void init_obeys_iommu_off(struct kunit *test)
{
	static const struct {
		char *str;
		bool enable;
	} options[] = {
		{ "off", false }, { "soft", false }, { "pt,off", false },
		{ "nomerge,pt", true }, { "", true }, { NULL, true },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(options); i++) {
		xen_iommu_enable = true;
		KUNIT_EXPECT_EQ(test, xt_param.fn(options[i].str), 0);
		KUNIT_EXPECT_EQ(test, xen_iommu_enable, options[i].enable);
	}
	xen_iommu_enable = true;
}
#endif

/* The core gets a domain for the first device, but not for the second. */
static void xt_probe_in_vain(void)
{
	struct xt *xt = xen_iommu_sim->priv;

	xt->ops = xt_env.ops;
	for (unsigned int i = 0; i < 2; i++)
		EXPECT_EQ(xt_probe(xt, i), 0);
	EXPECT_EQ(xt_attach(xt, xt_new_domain(xt), 0), 0);
	for (unsigned int i = 0; i < 2; i++)
		xt_release_dev(xt, i);
	xt_free_domain(xt, xt->dom[0]);
}

/* Devices stay where they were, and can do DMA as without an IOMMU. */
static void registration_failures_leave_nothing(struct kunit *test)
{
	for (unsigned int i = 0; i < 4; i++) {
		struct xt *xt = xt_new(test, &xt_confs[0]);

		xt_env.sysfs_ret = i == 0 ? -EEXIST : 0;
		xt_env.register_ret = i == 1 || i == 2 ? -ENOSPC : 0;
		xt_env.on_register = i == 2 ? xt_probe_in_vain : NULL;
		xt_env.virq_ret = i == 3 ? -ENOSPC : 0;
		/* The driver works without fault reports. */
		EXPECT_EQ(!xt_boot(xt), i == 3);
		EXPECT_EQ(xt_env.sysfs, i == 3);
		EXPECT_EQ(xt_warnings(), 1);
		if (i < 3)
			EXPECT_EQ(sim_nr_contexts(xt->sim), 0);
		for (unsigned int j = 0; j < XT_NR_DEVS; j++)
			EXPECT_EQ(xt_dev_ctx(xt, j), 0);
		xt_stop(test);
	}
}

/*
 * Each allocation and each hypercall fails in turn
 */

/* Exercises everything that the driver does, as far as it gets. */
static void xt_scenario(struct xt *xt)
{
	if (xt_boot(xt) || xt_probe(xt, 0))
		return;
	xt_count_regions(xt, 0, IOMMU_RESV_DIRECT, 0, 0);
	xt->domain = xt_alloc_domain(xt);
	if (IS_ERR(xt->domain) || xt_attach(xt, xt->domain, 0))
		return;

	xt_map(xt, 0, 0, 20);
	/* As iommu_map_sg() does. */
	if (xt_map_pieces(xt, 50, 0, 30))
		xt_unmap(xt, 50, 30);
	xt_unmap(xt, 4, 4);
	xt_unmap_queued(xt, 0, 20);
	xt_unmap_queued(xt, 50, 30);
	xt_flush(xt);
	xt_free_domain(xt, xt->domain);
}

static void each_allocation_fails_in_turn(struct kunit *test)
{
	unsigned int n = 0;
	bool hit;

	xt_stop(test);
	do {
		struct xt *xt = xt_new(test, test->param_value);

		sim_add_rdm(xt->sim, 0x1000, 16, 0, PCI_DEVFN(1, 0));
		xt_fail_alloc(++n);
		xt_scenario(xt);
		hit = xt_env.allocs >= n;
		xt_stop(test);
	} while (hit && n < 1000);
	/* The IOMMU, devices, regions, domains, mappings. */
	KUNIT_EXPECT_GT(test, n, 10);
	KUNIT_EXPECT_LT(test, n, 1000);
}

static void each_hypercall_fails_in_turn(struct kunit *test)
{
	static const int errors[] = { -ENOMEM, -EBUSY, -ENODEV };

	xt_stop(test);
	for (unsigned int subop = 0; subop < SIM_NR_SUBOPS; subop++)
		for (unsigned int i = 0; i < ARRAY_SIZE(errors); i++) {
			unsigned int n = 0;
			u64 injected;

			do {
				struct xt *xt = xt_new(test, test->param_value);

				sim_add_rdm(xt->sim, 0x1000, 16, 0, PCI_DEVFN(1, 0));
				sim_add_fault(xt->sim, subop, n++, 1, errors[i], 0);
				xt_scenario(xt);
				injected = xt->sim->nr_injected;
				xt_stop(test);
			} while (injected && n < 1000);
			KUNIT_EXPECT_LT(test, n, 1000);
		}
}

/*
 * Random operations, compared with a model
 *
 * The model is an array of the pages in each domain's window. It has no
 * mappings, trees or runs.
 */

#define XT_RND_PAGES	4096
#define XT_RND_DOMS	3

struct xt_model {
	struct xt xt;		/* the test's, with the model's domain */
	phys_addr_t phys[XT_RND_PAGES];
};

struct xt_random {
	struct xt *xt;
	struct rnd_state rnd;
	struct xt_model model[XT_RND_DOMS];
	u64 failed;
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
		kunit_err(__r->xt->test, "seed %lu, operation %u: " fmt "\n", \
			  xt_seed, __r->op, ##__VA_ARGS__);		\
} while (0)

/* Compares driver, hypervisor and model on a range of pages. */
static void xt_rnd_check(struct xt_random *r, struct xt_model *m,
			 unsigned int page, unsigned int nr)
{
	for (unsigned int i = page; i < min(page + nr, XT_RND_PAGES); i++) {
		phys_addr_t phys = xt_lookup(&m->xt, i);

		if (phys != m->phys[i] || !xt_truthful(&m->xt, i, 1))
			xt_diverges(r, "page %u: %#llx instead of %#llx", i,
				    (u64)phys, (u64)m->phys[i]);
	}
}

static void xt_rnd_range(struct xt_random *r, unsigned int *page, unsigned int *nr)
{
	static const unsigned int lengths[] = { 1, 1, 4, 16, 64, 64, 700 };

	*nr = 1 + xt_rnd(r, lengths[xt_rnd(r, ARRAY_SIZE(lengths))]);
	*page = xt_rnd(r, XT_RND_PAGES - *nr);
}

/* Flushes without failures. */
static void xt_rnd_flush(struct xt_random *r, struct xt_model *m)
{
	r->xt->sim->fault_rate = 0;
	xt_flush(&m->xt);
	if (xt_nr_stale(&m->xt))
		xt_diverges(r, "%llu pages are left", xt_nr_stale(&m->xt));
}

static void xt_rnd_map(struct xt_random *r, struct xt_model *m)
{
	unsigned int page, nr, frame = xt_rnd(r, 1 << 16), stride = 1 + xt_rnd(r, 2);
	bool conflict = false;
	int ret;

	xt_rnd_range(r, &page, &nr);
	for (unsigned int i = page; i < page + nr; i++)
		conflict |= m->phys[i] != 0;
	/* Addresses are never reused before the flush. */
	if (xt_nr_stale(&m->xt))
		xt_rnd_flush(r, m);

	if (stride == 1) {
		ret = xt_map(&m->xt, page, frame, nr);
	} else {
		unsigned int done = 0, cut = xt_rnd(r, 4) ? 0 : xt_rnd(r, nr);

		for (ret = 0; done < nr && !ret; done += !ret)
			ret = xt_map_nosync(&m->xt, page + done, frame + 2 * done, 1);
		/* Sometimes two callers: the one of the second part comes first. */
		ret = ret ?: xt_sync(&m->xt, page + cut, nr - cut);
		ret = ret ?: cut ? xt_sync(&m->xt, page, cut) : 0;
		if (ret && done)
			xt_unmap(&m->xt, page, done);
	}
	if (conflict ? ret != -EADDRINUSE : ret && !r->xt->sim->nr_injected)
		xt_diverges(r, "map of %u pages from %u returned %d", nr, page, ret);
	r->failed += !!ret;
	for (unsigned int i = 0; i < nr && !conflict; i++) {
		if (!ret)
			m->phys[page + i] = xt_phys(frame + i * stride);
		/* Unmap what could not be undone. */
		r->xt->sim->fault_rate = 0;
		if (ret && xt_lookup(&m->xt, page + i) &&
		    !xt_unmap(&m->xt, page + i, 1))
			xt_diverges(r, "page %u cannot be unmapped", page + i);
	}
	xt_rnd_check(r, m, page, nr);
}

static void xt_rnd_unmap(struct xt_random *r, struct xt_model *m, bool queued)
{
	u64 injected = r->xt->sim->nr_injected;
	unsigned int page, nr, expected, ret;

	xt_rnd_range(r, &page, &nr);
	/* Mostly unmap where something is mapped, and mostly all of it. */
	for (unsigned int i = 0; i < 64 && !m->phys[page]; i++)
		page = (page + 1) % (XT_RND_PAGES - nr);
	while (xt_rnd(r, 64) && page + nr < XT_RND_PAGES && m->phys[page + nr])
		nr++;
	for (expected = 0; expected < nr && m->phys[page + expected]; expected++)
		;

	ret = queued ? xt_unmap_queued(&m->xt, page, nr) : xt_unmap(&m->xt, page, nr);
	if (ret > expected ||
	    (ret < expected && r->xt->sim->nr_injected == injected))
		xt_diverges(r, "unmap of %u pages from %u returned %u instead of %u",
			    nr, page, ret, expected);
	r->failed += ret < expected;
	memset(&m->phys[page], 0, ret * sizeof(m->phys[0]));
	xt_rnd_check(r, m, page, nr);
}

static void xt_rnd_attach(struct xt_random *r)
{
	unsigned int dev = xt_rnd(r, XT_NR_DEVS), to = xt_rnd(r, XT_RND_DOMS + 1);
	struct iommu_domain *domain = r->xt->ops->blocked_domain;
	u16 before = xt_dev_ctx(r->xt, dev);
	int ret;

	if (to < XT_RND_DOMS)
		domain = r->model[to].xt.domain;
	ret = xt_attach(r->xt, domain, dev);
	r->failed += !!ret;
	/* After a failure, moving the device back may fail, too. */
	if (!ret && to < XT_RND_DOMS && xt_dev_ctx(r->xt, dev) != xt_ctx(domain))
		xt_diverges(r, "device %u is in context %u", dev,
			    xt_dev_ctx(r->xt, dev));
	if (ret && xt_dev_ctx(r->xt, dev) != before)
		xt_diverges(r, "device %u has moved", dev);
}

static void xt_rnd_free(struct xt_random *r, struct xt_model *m)
{
	u16 ctx = xt_ctx(m->xt.domain);
	unsigned int lost = xen_iommu->nr_lost;
	bool empty = true;

	xt_free_domain(r->xt, m->xt.domain);
	for (unsigned int i = 0; i < XT_NR_DEVS; i++)
		empty &= xt_dev_ctx(r->xt, i) != ctx;
	if ((!empty || sim_nr_frames(r->xt->sim, ctx)) && xen_iommu->nr_lost == lost)
		xt_diverges(r, "context %u is not empty", ctx);
	memset(m->phys, 0, sizeof(m->phys));
	/* Allocating the next one must succeed. */
	sim_clear_faults(r->xt->sim);
	r->xt->sim->pool += XT_RND_PAGES / 512 + 2;
	m->xt.domain = xt_new_domain(r->xt);
	xt_rnd_check(r, m, 0, XT_RND_PAGES);
}

static void random_operations(struct kunit *test)
{
	struct xt *xt = test->priv;
	const struct sim_conf *conf = test->param_value;
	struct xt_random *r;

	/* Contexts get lost, so there must be many. */
	xt_stop(test);
	xen_iommu_contexts = 4096;
	xt = xt_start(test, conf);
	r = kvzalloc_obj(*r);
	KUNIT_ASSERT_NOT_NULL(test, r);
	r->xt = xt;
	prandom_seed_state(&r->rnd, xt_seed + (conf - xt_confs));
	prandom_seed_state(&xt->sim->rnd, ~xt_seed);
	for (unsigned int i = 0; i < XT_RND_DOMS; i++) {
		r->model[i].xt = *xt;
		r->model[i].xt.domain = i ? xt_new_domain(xt) : xt->domain;
	}

	for (r->op = 0; r->op < xt_ops && !r->divergences; r->op++) {
		struct xt_model *m = &r->model[xt_rnd(r, XT_RND_DOMS)];
		unsigned int what = xt_rnd(r, 1000);

		/* Alternate long stretches with and without failures. */
		xt->sim->fault_rate = r->op / 1000 % 2 ? 100 : 0;
		if (what < 400)
			xt_rnd_map(r, m);
		else if (what < 900)
			xt_rnd_unmap(r, m, what & 1);
		else if (what < 950)
			xt_rnd_flush(r, m);
		else if (what < 998)
			xt_rnd_attach(r);
		else
			xt_rnd_free(r, m);
		if (r->op % 2048 == 2047) {
			for (unsigned int i = 0; i < XT_RND_DOMS; i++)
				xt_rnd_check(r, &r->model[i], 0, XT_RND_PAGES);
			cond_resched();
		}
	}
	kunit_info(test, "seed %lu: %u operations, %llu failures injected, %llu operations failed, %u contexts lost\n",
		   xt_seed, r->op, xt->sim->nr_injected, r->failed,
		   xen_iommu->nr_lost);
	EXPECT_EQ(r->divergences, 0);
	kvfree(r);
}

static int xt_suite_init(struct kunit_suite *suite)
{
	if (!xt_seed)
		xt_seed = get_random_u32() | 1;
	pr_notice("xen-iommu-test: seed %lu\n", xt_seed);
	return 0;
}

static struct kunit_case xen_iommu_test_cases[] = {
	KUNIT_CASE_PARAM(map_unmap_roundtrip, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_roundtrip, conf_gen_params),
	KUNIT_CASE_PARAM(map_takes_little_memory, conf_gen_params),
	KUNIT_CASE_PARAM(map_passes_on_permissions, conf_gen_params),
	KUNIT_CASE_PARAM(map_stays_within_aperture, conf_gen_params),
	KUNIT_CASE(map_at_top_of_address_space),
	KUNIT_CASE_PARAM(map_over_mapping_is_refused, conf_gen_params),
	KUNIT_CASE_PARAM(map_fails_where_there_is_no_page, conf_gen_params),
	KUNIT_CASE_PARAM(map_run_partial_failure, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_partial_failure, conf_gen_params),
	KUNIT_CASE_PARAM(map_pieces_failure_in_the_middle, conf_gen_params),
	KUNIT_CASE_PARAM(map_failure_that_cannot_be_undone, conf_gen_params),
	KUNIT_CASE_PARAM(sync_of_nothing_does_nothing, conf_gen_params),
	KUNIT_CASE_PARAM(map_of_neighbours_is_synced_apart, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_goes_on_after_short_result, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_keeps_what_stays_mapped, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_parts, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_without_memory, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_across_mappings_is_one_call, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_nothing, conf_gen_params),
	KUNIT_CASE_PARAM(unmap_of_what_was_never_synced, conf_gen_params),
	KUNIT_CASE_PARAM(queued_unmaps_share_a_flush, conf_gen_params),
	KUNIT_CASE_PARAM(queued_unmap_of_grants, conf_gen_params),
	KUNIT_CASE_PARAM(queued_unmap_keeps_what_stays_mapped, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_flushes, conf_gen_params),
	KUNIT_CASE_PARAM(flush_failure_is_said, conf_gen_params),
	KUNIT_CASE(static_domains_follow_capabilities),
	KUNIT_CASE(static_contexts_refused),
	KUNIT_CASE_PARAM(attach_moves_device, conf_gen_params),
	KUNIT_CASE_PARAM(attach_failure_leaves_device, conf_gen_params),
	KUNIT_CASE_PARAM(domain_alloc_refuses_what_it_cannot_do, conf_gen_params),
	KUNIT_CASE(domain_alloc_runs_out_of_contexts),
	KUNIT_CASE_PARAM(domain_alloc_without_pool, conf_gen_params),
	KUNIT_CASE_PARAM(domain_alloc_refuses_forged_context, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_with_devices_that_stay, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_with_mapping_that_stays, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_unmaps_what_is_left, conf_gen_params),
	KUNIT_CASE_PARAM(freed_contexts_are_used_again, conf_gen_params),
	KUNIT_CASE_PARAM(contexts_come_and_go, conf_gen_params),
	KUNIT_CASE(context_that_stays_busy_is_not_used_again),
	KUNIT_CASE_PARAM(cache_coherency_is_enforced_with_capability, conf_gen_params),
	KUNIT_CASE(pool_is_not_for_one_domain),
	KUNIT_CASE(nested_maps_and_unmaps),
	KUNIT_CASE(nested_flushes),
	KUNIT_CASE(nested_alloc_failures),
	KUNIT_CASE(nested_contexts_are_freed),
	KUNIT_CASE(nested_is_not_for_everybody),
	KUNIT_CASE_PARAM(concurrent_maps_and_unmaps, conf_gen_params),
	KUNIT_CASE_PARAM(concurrent_attaches_and_frees, conf_gen_params),
	KUNIT_CASE_PARAM(domain_free_waits_for_the_mutex, conf_gen_params),
	KUNIT_CASE_PARAM(map_and_unmap_in_interrupt, conf_gen_params),
	KUNIT_CASE_PARAM(map_and_unmap_during_a_call, conf_gen_params),
	KUNIT_CASE_PARAM(capabilities_are_honest, conf_gen_params),
	KUNIT_CASE_PARAM(probe_refuses_devices_that_are_not_xens, conf_gen_params),
	KUNIT_CASE_PARAM(release_blocks_device, conf_gen_params),
	KUNIT_CASE_PARAM(release_of_device_that_stays, conf_gen_params),
	KUNIT_CASE_PARAM(release_of_device_that_is_gone, conf_gen_params),
	KUNIT_CASE_PARAM(aliases_move_with_the_device, conf_gen_params),
	KUNIT_CASE_PARAM(devices_behind_a_bridge, conf_gen_params),
	KUNIT_CASE_PARAM(devices_behind_vmd, conf_gen_params),
	KUNIT_CASE(reserved_regions_are_those_of_the_device),
	KUNIT_CASE(reserved_regions_in_contexts),
	KUNIT_CASE(reserved_regions_query_refused),
	KUNIT_CASE_PARAM(faults_are_reported, conf_gen_params),
	KUNIT_CASE_PARAM(storm_of_faults, conf_gen_params),
	KUNIT_CASE_PARAM(init_once, conf_gen_params),
	KUNIT_CASE(init_sizes_follow_memory),
	KUNIT_CASE(init_parameters_stay_safe),
	KUNIT_CASE(init_stays_below_limits),
	KUNIT_CASE(init_tries_smaller_pools),
	KUNIT_CASE(init_failures),
	KUNIT_CASE(init_declines_quietly),
#ifdef CONFIG_X86
	KUNIT_CASE(init_obeys_iommu_off),
#endif
	KUNIT_CASE(registration_failures_leave_nothing),
	KUNIT_CASE_PARAM(each_allocation_fails_in_turn, conf_gen_params),
	KUNIT_CASE_PARAM(each_hypercall_fails_in_turn, conf_gen_params),
	KUNIT_CASE_PARAM_ATTR(random_operations, conf_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	{}
};

static struct kunit_suite xen_iommu_test_suite = {
	.name = "xen_iommu",
	.suite_init = xt_suite_init,
	.init = xt_init,
	.exit = xt_stop,
	.test_cases = xen_iommu_test_cases,
};

kunit_test_suite(xen_iommu_test_suite);

MODULE_DESCRIPTION("KUnit tests of the Xen PV-IOMMU driver");
MODULE_LICENSE("GPL");
