/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A software hypervisor with the PV-IOMMU interface, for KUnit tests
 *
 * It implements include/xen/interface/pv-iommu.h frame by frame, knows nothing
 * of the driver, and misbehaves as real hypervisors do when it is told to. Each
 * call checks what a correct driver keeps to; see xen_iommu_sim.c.
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

/* Counted and made to fail like a sub-op, without being one. */
#define SIM_MEMORY_OP		40
#define SIM_NR_SUBOPS		41

#define SIM_MAX_DEVICES		16
#define SIM_MAX_RDM		8
#define SIM_MAX_FAULTS		8
#define SIM_FAULT_RING		40

/* Without a limit. */
#define SIM_ALL			U64_MAX

enum sim_quirk {
	/* Drafts: IOMMU_init goes on into IOMMU_alloc_context. */
	SIM_INIT_FALLS_THROUGH	= BIT(0),
	/* Preempted calls come back with gfn, dfn and nr_pages rewritten. */
	SIM_PREEMPTS		= BIT(1),
	/* Each pair of alloc and free costs a page of the pool. */
	SIM_FREE_LEAKS		= BIT(2),
	/* A context is never freed: -EBUSY, and it is unusable then. */
	SIM_FREE_BUSY		= BIT(3),
	/* Reserved regions are looked for at the first dfn of a call only. */
	SIM_RDM_FIRST_ONLY	= BIT(4),
	/* No such device is -ENOENT instead of -ENODEV. */
	SIM_NO_DEVICE_ENOENT	= BIT(5),
	/* Counters of complete calls claim more than was asked for. */
	SIM_OVERCOUNTS		= BIT(6),
	/* The reserved regions have grown by the second call. */
	SIM_RDM_GROWS		= BIT(7),
	/* IOMMU_init succeeds without any effect. */
	SIM_INIT_IDLE		= BIT(8),
};

struct xen_iommu_sim;

/**
 * struct sim_conf - a kind of hypervisor
 * @desc: for the names of parameterised cases
 * @caps: IOMMUCAP_*
 * @pgsize_mask: page sizes that are reported; those of 4 KiB are accepted
 * @max_iova: highest device address
 * @max_ctx: number of contexts if somebody else has initialised the domain
 * @limits: what IOMMU_init accepts at most; 0: anything
 * @nested: format of nested tables, with IOMMUCAP_nested
 * @pool: pages in the pool; 0: as many as asked for
 * @quirks: SIM_*
 * @pv: gfns are scattered
 * @pv_order: log2 of the frames that remain neighbours then
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
 * @subop: in which calls
 * @skip: calls to let pass before
 * @times: calls to make fail after those
 * @ret: what they return; 0: success without completion
 * @frames: what they do before they stop
 */
struct sim_fault {
	unsigned int subop;
	unsigned int skip;
	unsigned int times;
	int ret;
	u64 frames;
};

/* A requester id. */
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
	struct xarray stale;	/* the same: unmapped, but not yet flushed */
	struct xarray tables;	/* by dfn >> 9: frames in a page table */
	u64 nr_frames;
	u64 nr_stale;
	unsigned int nr_devices;
	bool identity;
	bool empty;
	bool dying;
	u64 root;		/* frame of the caller's table, if nested */
	struct xarray tlb;	/* the same, by dfn: what devices have used */
	struct xarray leaves;	/* by dfn >> 9: tables that they have used */
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
	/* Contexts that IOMMU_init has made, and nobody knows of. */
	unsigned int leaked;

	struct sim_device device[SIM_MAX_DEVICES];
	unsigned int nr_devices;
	struct sim_rdm rdm[SIM_MAX_RDM];
	unsigned int nr_rdm;
	/* Frames without a page behind them, others' frames, refused or not. */
	u64 hole_start, hole_end;
	u64 foreign_start, foreign_end;
	bool foreign_ok;
	/* Context number to hand out instead of a real one, if not negative. */
	int forge_ctx;
	/* Size of struct pv_iommu_limits. */
	size_t limits_size;

	struct sim_fault fault[SIM_MAX_FAULTS];
	unsigned int nr_faults;
	/* Frames that unmaps [0], and maps [1], may still do, and what comes then. */
	u64 left[2];
	int error[2];
	/* Random failures, per thousand calls. */
	unsigned int fault_rate;
	struct rnd_state rnd;
	u64 nr_injected;

	/* Faults of devices. */
	bool reporting;
	struct pv_iommu_fault ring[SIM_FAULT_RING];
	unsigned int nr_ring;
	u32 nr_lost;
	void (*virq)(void);

	unsigned int calls[SIM_NR_SUBOPS];
	unsigned int traps;
	/* Map a frame twice: refused, and that is a driver's mistake or not. */
	bool overlap_ok;
	atomic_t violations;
	/* Called before each call, without locks. */
	void (*hook)(struct xen_iommu_sim *sim, unsigned int subop, void *arg);
	void *priv;
};

extern struct xen_iommu_sim *xen_iommu_sim;

void sim_init(struct xen_iommu_sim *sim, const struct sim_conf *conf);
/* Returns the number of contexts, apart from context 0, that were left. */
unsigned int sim_exit(struct xen_iommu_sim *sim);

void sim_add_device(struct xen_iommu_sim *sim, u16 seg, u8 bus, u8 devfn);
struct sim_device *sim_find_device(struct xen_iommu_sim *sim, u16 seg, u8 bus,
				   u8 devfn);
/* Moves a device as the hypervisor itself does: unplug, another domain. */
void sim_move_device(struct xen_iommu_sim *sim, struct sim_device *dev, u16 ctx,
		     bool gone);
void sim_add_rdm(struct xen_iommu_sim *sim, u64 start, u64 nr, u8 bus,
		 u8 devfn);
void sim_add_fault(struct xen_iommu_sim *sim, unsigned int subop,
		   unsigned int skip, unsigned int times, int ret, u64 frames);
void sim_clear_faults(struct xen_iommu_sim *sim);
void sim_reset_calls(struct xen_iommu_sim *sim);
/* A device has been stopped. */
void sim_report_fault(struct xen_iommu_sim *sim, const struct sim_device *dev,
		      u64 addr, u32 flags, u32 reason);

/*
 * What is mapped: false if nothing. In a nested context this is an access of a
 * device, which may use what has not been flushed.
 */
bool sim_walk(struct xen_iommu_sim *sim, u16 ctx, u64 dfn, u64 *gfn,
	      u32 *flags);
/* What a device in the context reaches, perhaps by a stale translation. */
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
