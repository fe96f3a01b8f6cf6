/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A software hypervisor with the PV-IOMMU interface, for KUnit tests
 *
 * It implements include/xen/interface/pv-iommu.h frame by frame, knows nothing
 * about the driver, and can be made to misbehave as real hypervisors do. Each
 * call checks that the driver follows the interface; see xen_iommu_sim.c.
 */
#ifndef _XEN_IOMMU_SIM_H
#define _XEN_IOMMU_SIM_H

#include <linux/prandom.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/xarray.h>

#include <xen/interface/memory.h>
#include <xen/interface/pv-iommu.h>
#include <xen/interface/xen.h>

/* Not a sub-op, but counted and made to fail like one. */
#define SIM_MEMORY_OP		40
#define SIM_NR_SUBOPS		41

#define SIM_MAX_DEVICES		16
#define SIM_MAX_RDM		8
#define SIM_MAX_FAULTS		8
#define SIM_FAULT_RING		40

/* No limit. */
#define SIM_ALL			U64_MAX

enum sim_quirk {
	/* Drafts: IOMMU_init continues into IOMMU_alloc_context. */
	SIM_INIT_FALLS_THROUGH	= BIT(0),
	/* Preempted calls change gfn, dfn and nr_pages. */
	SIM_PREEMPTS		= BIT(1),
	/* Each pair of alloc and free leaks a page of the pool. */
	SIM_FREE_LEAKS		= BIT(2),
	/* Freeing a context fails with -EBUSY and leaves it unusable. */
	SIM_FREE_BUSY		= BIT(3),
	/* Only the first dfn of a call is checked for reserved regions. */
	SIM_RDM_FIRST_ONLY	= BIT(4),
	/* -ENOENT instead of -ENODEV if there is no such device. */
	SIM_NO_DEVICE_ENOENT	= BIT(5),
	/* Counters of complete calls exceed what was requested. */
	SIM_OVERCOUNTS		= BIT(6),
	/* There are more reserved regions at the second call. */
	SIM_RDM_GROWS		= BIT(7),
	/* IOMMU_init succeeds without any effect. */
	SIM_INIT_IDLE		= BIT(8),
};

struct xen_iommu_sim;

/**
 * struct sim_conf - a kind of hypervisor
 * @desc: name of the parameterised cases
 * @caps: IOMMUCAP_*
 * @pgsize_mask: page sizes that are reported; only 4 KiB is accepted
 * @max_iova: highest device address
 * @max_ctx: number of contexts if somebody else has initialised the domain
 * @limits: limits of IOMMU_init; 0 for none
 * @nested: format of nested tables, with IOMMUCAP_nested
 * @pool: pages in the pool; 0 for as many as requested
 * @quirks: SIM_*
 * @pv: gfns are scattered
 * @pv_order: log2 of the number of frames that stay contiguous with @pv
 */
struct sim_conf {
	const char *desc;
	u32 caps;
	u32 pgsize_mask;
	u64 max_iova;
	u16 max_ctx;
	struct pv_iommu_limits limits;
	struct pv_iommu_nested_format nested;
	u64 pool;
	unsigned long quirks;
	bool pv;
	unsigned int pv_order;
};

/**
 * struct sim_fault - one planned failure
 * @subop: calls to fail
 * @skip: number of calls to let pass first
 * @times: number of calls to fail after that
 * @ret: result of these; 0 for success without completion
 * @frames: number of frames that they process before they stop
 */
struct sim_fault {
	unsigned int subop;
	unsigned int skip;
	unsigned int times;
	int ret;
	u64 frames;
};

/* A requester ID. */
struct sim_device {
	u16 seg;
	u8 bus;
	u8 devfn;
	u16 ctx;
	bool gone;
};

struct sim_rdm {
	u64 start;
	u64 nr;
	u8 bus;
	u8 devfn;
};

struct sim_ctx {
	struct xarray frames;	/* by dfn: gfn and IOMMU_MAP_* */
	struct xarray stale;	/* likewise, unmapped but not yet flushed */
	struct xarray tables;	/* by dfn >> 9: number of frames in a page table */
	u64 nr_frames;
	u64 nr_stale;
	unsigned int nr_devices;
	bool identity;
	bool empty;
	bool dying;
	u64 root;		/* frame of the caller's table, if nested */
	struct xarray tlb;	/* likewise, cached translations */
	struct xarray leaves;	/* by dfn >> 9: cached tables */
};

struct xen_iommu_sim {
	struct sim_conf conf;
	spinlock_t lock;	/* everything */
	struct xarray contexts;
	bool initialised;
	u16 max_ctx;
	u64 pool;
	u64 pool_used;
	u64 refs;
	/* Contexts that IOMMU_init has allocated, unknown to the caller. */
	unsigned int leaked;

	struct sim_device device[SIM_MAX_DEVICES];
	unsigned int nr_devices;
	struct sim_rdm rdm[SIM_MAX_RDM];
	unsigned int nr_rdm;
	/* Frames without a page, and frames of others, refused or not. */
	u64 hole_start, hole_end;
	u64 foreign_start, foreign_end;
	bool foreign_ok;
	/* Context number to hand out instead of a real one, if not negative. */
	int forge_ctx;
	/* Size of struct pv_iommu_limits. */
	size_t limits_size;

	struct sim_fault fault[SIM_MAX_FAULTS];
	unsigned int nr_faults;
	/* Frames until unmaps [0] and maps [1] fail, and the error. */
	u64 left[2];
	int error[2];
	/* Random failures, per thousand calls. */
	unsigned int fault_rate;
	struct rnd_state rnd;
	u64 nr_injected;

	/* DMA faults. */
	bool reporting;
	struct pv_iommu_fault ring[SIM_FAULT_RING];
	unsigned int nr_ring;
	u32 nr_lost;
	void (*virq)(void);

	unsigned int calls[SIM_NR_SUBOPS];
	unsigned int traps;
	/* Mapping a dfn twice is refused, but not a violation. */
	bool overlap_ok;
	atomic_t violations;
	/* Called before each call, without locks. */
	void (*hook)(struct xen_iommu_sim *sim, unsigned int subop, void *arg);
	void *priv;
};

extern struct xen_iommu_sim *xen_iommu_sim;

void sim_init(struct xen_iommu_sim *sim, const struct sim_conf *conf);
/* Returns the number of contexts left, apart from context 0. */
unsigned int sim_exit(struct xen_iommu_sim *sim);

void sim_add_device(struct xen_iommu_sim *sim, u16 seg, u8 bus, u8 devfn);
struct sim_device *sim_find_device(struct xen_iommu_sim *sim, u16 seg, u8 bus,
				   u8 devfn);
/* Moves a device as the hypervisor does, on unplug or to another domain. */
void sim_move_device(struct xen_iommu_sim *sim, struct sim_device *dev, u16 ctx,
		     bool gone);
void sim_add_rdm(struct xen_iommu_sim *sim, u64 start, u64 nr, u8 bus,
		 u8 devfn);
void sim_add_fault(struct xen_iommu_sim *sim, unsigned int subop,
		   unsigned int skip, unsigned int times, int ret, u64 frames);
void sim_clear_faults(struct xen_iommu_sim *sim);
void sim_reset_calls(struct xen_iommu_sim *sim);
/* Records the fault of a device. */
void sim_report_fault(struct xen_iommu_sim *sim, const struct sim_device *dev,
		      u64 addr, u32 flags, u32 reason);

/*
 * Returns false if dfn is not mapped. In a nested context this is an access by
 * a device, which may use cached translations.
 */
bool sim_walk(struct xen_iommu_sim *sim, u16 ctx, u64 dfn, u64 *gfn,
	      u32 *flags);
/* Returns true if a device can reach dfn, even by a stale translation. */
bool sim_reaches(struct xen_iommu_sim *sim, u16 ctx, u64 dfn);
u64 sim_nr_frames(struct xen_iommu_sim *sim, u16 ctx);
u64 sim_nr_stale(struct xen_iommu_sim *sim, u16 ctx);
unsigned int sim_nr_contexts(struct xen_iommu_sim *sim);
unsigned long sim_pfn_to_gfn(unsigned long pfn);

long sim_op(unsigned int subop, void *arg);
long sim_op_regs(unsigned int subop, unsigned long a1, unsigned long a2,
		 unsigned long a3, unsigned long a4);
int sim_memory_op(unsigned int cmd, void *arg);

#endif /* _XEN_IOMMU_SIM_H */
