/* SPDX-License-Identifier: MIT */
#ifndef __XEN_PUBLIC_PV_IOMMU_H__
#define __XEN_PUBLIC_PV_IOMMU_H__

#include "xen.h"
#include "physdev.h"

/*
 * PV-IOMMU lets a domain create IOMMU contexts (I/O address spaces), map its
 * pages into them and attach its devices to them.
 *
 * The interface comes from the "PV-IOMMU" RFC series posted to xen-devel from
 * June 2024 (v1) to November 2025 (v7), called the drafts below, and from what
 * downstreams ship. Layouts, sub-op numbers and flags up to and including
 * IOMMU_flush_pages are theirs. Anything marked "extension" is new here, and
 * may be used only if the hypervisor reports the capability named with it. The
 * wording of this file is our own.
 *
 * Call:    long HYPERVISOR_iommu_op(unsigned int subop, void *arg)
 * Number:  __HYPERVISOR_iommu_op (43)
 * Returns: 0, or a negative Xen errno value.
 *
 * Terms: a context is an I/O address space, identified by ctx_no. Context 0 is
 * the default context, in which devices start out; nothing can be mapped into
 * it. dfn is a device frame number (iova >> 12). gfn is a frame number of the
 * calling domain: a machine frame in a PV domain, a guest physical frame in an
 * HVM or PVH domain. Frames are 4 KiB; nr_pages and the counters are in pages
 * of pgsize bytes.
 *
 * General errors: -EOPNOTSUPP: unknown or unsupported sub-op. -EFAULT: bad
 * argument pointer. -ENODEV: no IOMMU for this domain. -EPERM: not allowed for
 * this domain. -EACCES: the domain has not been initialised. -EINVAL:
 * malformed argument, including a ctx_no that does not exist.
 *
 * Differences from the drafts as implemented (up to v7): IOMMU_init does not
 * allocate a context, fails if the domain has already been initialised, and
 * can be retried after a failure; a context that could not be freed stays
 * usable; unknown flags, nonzero padding, unsupported page sizes and addresses
 * beyond max_iova_addr are rejected rather than ignored; whole ranges are
 * checked for reserved regions.
 */

/* Sub-ops. */
#define IOMMU_noop                  0
#define IOMMU_query_capabilities    1
#define IOMMU_init                  2
#define IOMMU_alloc_context         3
#define IOMMU_free_context          4
#define IOMMU_reattach_device       5
#define IOMMU_map_pages             6
#define IOMMU_unmap_pages           7
#define IOMMU_remote_cmd            8
#define IOMMU_alloc_nested          9 /* IOMMUCAP_nested */
#define IOMMU_flush_nested         10 /* IOMMUCAP_nested */
#define IOMMU_attach_pasid         11
#define IOMMU_detach_pasid         12
#define IOMMU_flush_pages          13 /* downstreams; IOMMUCAP_deferred_flush */
#define IOMMU_map_range            32 /* extension;   IOMMUCAP_runs */
#define IOMMU_unmap_range          33 /* extension;   IOMMUCAP_runs */
#define IOMMU_map_runs             34 /* extension;   IOMMUCAP_runs */
#define IOMMU_unmap_runs           35 /* extension;   IOMMUCAP_runs */
#define IOMMU_query                36 /* extension;   IOMMUCAP_query */
#define IOMMU_get_faults           37 /* extension;   IOMMUCAP_faults */

/*
 * IOMMU_query_capabilities: fills in struct pv_iommu_capabilities.
 *
 * max_ctx_no is 0 until the domain has been initialised (IOMMU_init). Contexts
 * are numbered from 1 to max_ctx_no.
 */

/* Context 0 is an identity map; else it blocks all but reserved regions. */
#define IOMMUCAP_default_identity   (1U << 0)
/* DMA is coherent with CPU caches, even if a device asks for no-snoop. */
#define IOMMUCAP_cache              (1U << 1)
/*
 * IOMMU_alloc_nested and IOMMU_flush_nested are supported as described below.
 * Reported only together with IOMMUCAP_query.
 */
#define IOMMUCAP_nested             (1U << 2)
/* IOMMU_attach_pasid is supported; nobody implements it yet. */
#define IOMMUCAP_pasid              (1U << 3)
/* IOMMU_ALLOC_identity is supported. */
#define IOMMUCAP_identity           (1U << 4)
/* IOMMU_MAP_no_flush and IOMMU_flush_pages are supported (downstreams). */
#define IOMMUCAP_deferred_flush     (1U << 5)
/*
 * Extension: interrupts of this domain's devices are remapped, so a device can
 * only send those that were set up for it.
 */
#define IOMMUCAP_isolated_msi       (1U << 16)
/*
 * Extension: pv_iommu_unmap_pages.unmap_flags and IOMMU_UNMAP_no_flush are
 * supported. Unmapped frames stay referenced until the flush.
 */
#define IOMMUCAP_deferred_unmap     (1U << 17)
/* Extension: IOMMU_{map,unmap}_{range,runs} are supported. */
#define IOMMUCAP_runs               (1U << 18)
/* Extension: IOMMU_query is supported. */
#define IOMMUCAP_query              (1U << 19)
/* Extension: IOMMU_get_faults and VIRQ_IOMMU are supported. */
#define IOMMUCAP_faults             (1U << 20)
/* Extension: IOMMU_ALLOC_empty is supported. */
#define IOMMUCAP_alloc_empty        (1U << 21)

struct pv_iommu_capabilities {
    /* OUT: highest device address that can be mapped, in bytes, inclusive. */
    uint64_t max_iova_addr;
    /* OUT: IOMMUCAP_* */
    uint32_t cap_flags;
    /* OUT: mask of supported page sizes, in bytes. */
    uint32_t pgsize_mask;
    /* OUT: highest PASID, 0 if PASIDs are not supported. */
    uint32_t max_pasid;
    /* OUT: highest context number, 0 before IOMMU_init. */
    uint16_t max_ctx_no;
    uint16_t pad;
};
typedef struct pv_iommu_capabilities pv_iommu_capabilities_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_capabilities_t);

/*
 * IOMMU_init: sets the number of contexts and the size of the pool that holds
 * the page tables of all contexts but 0. Can be done only once per domain.
 *
 * -EACCES: the domain has already been initialised. -EINVAL: max_ctx_no is 0
 * or above 0xfffe, or a limit is exceeded. -ENOMEM: no memory; may be retried.
 *
 * In the drafts, this sub-op continues into IOMMU_alloc_context: callers
 * must query again afterwards and go by that, not by the return value.
 */
struct pv_iommu_init {
    /* IN: highest context number wanted. */
    uint32_t max_ctx_no;
    /* IN: the pool has 2^arena_order pages. */
    uint32_t arena_order;
};
typedef struct pv_iommu_init pv_iommu_init_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_init_t);

/*
 * IOMMU_alloc_context: allocates a context, empty except for reserved regions.
 *
 * -ENOSPC: all contexts are in use. -ENOMEM: the pool is empty.
 */

/* The new context is an identity map; nothing can be mapped into it. */
#define IOMMU_ALLOC_identity        (1U << 0)
/*
 * Extension, IOMMUCAP_alloc_empty: the new context does not contain the
 * reserved regions. The caller maps those of the devices that it attaches. In
 * a reserved region, the hypervisor accepts mappings with dfn == gfn, and
 * others only if the region does not belong to a device in the context.
 */
#define IOMMU_ALLOC_empty           (1U << 1)

struct pv_iommu_alloc {
    /* OUT: number of the new context. */
    uint16_t ctx_no;
    /* IN: 0. */
    uint16_t pad;
    /* IN: IOMMU_ALLOC_* */
    uint32_t alloc_flags;
};
typedef struct pv_iommu_alloc pv_iommu_alloc_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_alloc_t);

/*
 * IOMMU_free_context: frees a context and removes all its mappings.
 *
 * -EBUSY: devices are in the context and IOMMU_FREE_reattach_default is not
 * set; the context is unchanged. If a device cannot be moved, the error is
 * that of IOMMU_reattach_device; other devices may have been moved.
 */

/* First move the devices that are in the context to context 0. */
#define IOMMU_FREE_reattach_default (1U << 0)

struct pv_iommu_free {
    /* IN: context to free. */
    uint16_t ctx_no;
    /* IN: 0. */
    uint16_t pad;
    /* IN: IOMMU_FREE_* */
    uint32_t free_flags;
};
typedef struct pv_iommu_free pv_iommu_free_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_free_t);

/*
 * IOMMU_map_pages: maps nr_pages pages, contiguous in both dfn and gfn.
 * A page larger than 4 KiB is mapped completely or not at all.
 *
 * The hypervisor adds to the counter "mapped", which is also valid on error.
 * It changes gfn, dfn and nr_pages when it continues a preempted call: callers
 * must set every field before each call, and use only the counter afterwards.
 *
 * -EADDRINUSE: something is mapped there (the drafts' text says -EINVAL).
 * -EADDRNOTAVAIL: a reserved region, or the range of interrupt messages.
 * -ENOENT: no page at gfn. -EPERM: the domain may not map that frame, or not
 * with that access. -ENOMEM: the pool is empty. -ERANGE, -EINVAL: beyond
 * max_iova_addr, unsupported pgsize, misaligned dfn or gfn, neither readable
 * nor writeable.
 */
#define IOMMU_MAP_readable          (1U << 0)
#define IOMMU_MAP_writeable         (1U << 1)
#define IOMMU_MAP_cache             (1U << 2)
/* Do not flush the IOTLB: the caller will use IOMMU_flush_pages. */
#define IOMMU_MAP_no_flush          (1U << 3)

struct pv_iommu_map_pages {
    /* IN: context to map into. */
    uint16_t ctx_no;
    /* IN: 0. */
    uint16_t pad[3];
    /* IN: first frame of the caller. */
    uint64_t gfn;
    /* IN: first device frame. */
    uint64_t dfn;
    /* IN: IOMMU_MAP_* */
    uint32_t map_flags;
    /* IN: page size in bytes, one of pgsize_mask. */
    uint32_t pgsize;
    /* IN: number of pages of pgsize bytes. */
    uint32_t nr_pages;
    /* OUT: counter of pages mapped. */
    uint32_t mapped;
};
typedef struct pv_iommu_map_pages pv_iommu_map_pages_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_map_pages_t);

/*
 * IOMMU_unmap_pages: unmaps nr_pages pages from dfn on.
 *
 * Stops at the first page that is not mapped (-ENOENT) or cannot be unmapped,
 * and leaves the remainder unchanged. "unmapped" behaves like "mapped" above.
 * Pages need not be unmapped in the size in which they were mapped. Splitting
 * a page takes no memory; in the drafts it may, and fail with -ENOMEM.
 */

/*
 * Extension, IOMMUCAP_deferred_unmap: do not flush the IOTLB. Devices may
 * reach the pages until IOMMU_flush_pages, which also releases the frames. If
 * a PV domain turns one into a page table before that, Xen flushes by itself.
 * Ranges with frames of other domains are flushed and released immediately.
 */
#define IOMMU_UNMAP_no_flush        (1U << 0)

struct pv_iommu_unmap_pages {
    /* IN: context to unmap from. */
    uint16_t ctx_no;
    /* IN: 0. */
    uint16_t pad[3];
    /* IN: first device frame. */
    uint64_t dfn;
    /* IN: page size in bytes, one of pgsize_mask. */
    uint32_t pgsize;
    /* IN: number of pages of pgsize bytes. */
    uint32_t nr_pages;
    /* OUT: counter of pages unmapped. */
    uint32_t unmapped;
    /* IN: IOMMU_UNMAP_*; padding without IOMMUCAP_deferred_unmap. */
    uint32_t unmap_flags;
};
typedef struct pv_iommu_unmap_pages pv_iommu_unmap_pages_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_unmap_pages_t);

/*
 * IOMMU_flush_pages: flushes the IOTLB for a range of a context.
 *
 * Afterwards, no device can reach what was unmapped from the range before the
 * call. Extension, IOMMUCAP_deferred_unmap: if nr_pages is 0, the whole
 * context is flushed, and dfn and pgsize are ignored.
 */
struct pv_iommu_flush_pages {
    /* IN: context to flush. */
    uint16_t ctx_no;
    /* IN: 0. */
    uint16_t pad[3];
    /* IN: first device frame. */
    uint64_t dfn;
    /* IN: page size in bytes, one of pgsize_mask. */
    uint32_t pgsize;
    /* IN: number of pages of pgsize bytes. */
    uint32_t nr_pages;
};
typedef struct pv_iommu_flush_pages pv_iommu_flush_pages_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_flush_pages_t);

/*
 * IOMMU_reattach_device: moves a device to a context, 0 for the default one.
 *
 * A device that was assigned to another domain returns to the context that it
 * was in. If that has been freed, its DMA is blocked until it is moved.
 *
 * -ENODEV: no such device (older: -ENOENT), or it is not behind an IOMMU.
 * -EPERM: the device is not the caller's. On error, it stays where it was.
 */
struct pv_iommu_reattach_device {
    /* IN: context to attach to. */
    uint16_t ctx_no;
    /* IN: the device. */
    struct physdev_pci_device dev;
    /* IN: PASID, 0 for none. */
    uint32_t pasid;
};
typedef struct pv_iommu_reattach_device pv_iommu_reattach_device_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_reattach_device_t);

/* IOMMU_remote_cmd: does a sub-op on behalf of another domain (toolstack). */
struct pv_iommu_remote_cmd {
    /* IN: the domain. */
    uint16_t domid;
    /* IN: sub-op. */
    uint16_t subop;
    /* INOUT: the argument of that sub-op. */
    XEN_GUEST_HANDLE(void) arg;
};
typedef struct pv_iommu_remote_cmd pv_iommu_remote_cmd_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_remote_cmd_t);

/*
 * Extension, IOMMUCAP_runs: mapping and unmapping with arguments in registers.
 * A run is a range that is contiguous in both dfn and gfn.
 *
 * long HYPERVISOR_iommu_op(IOMMU_map_range, ctx_flags, dfn, nr_frames, gfn)
 * long HYPERVISOR_iommu_op(IOMMU_unmap_range, ctx_flags, dfn, nr_frames)
 * long HYPERVISOR_iommu_op(IOMMU_map_runs, ctx_flags, runs, nr_runs, skip)
 * long HYPERVISOR_iommu_op(IOMMU_unmap_runs, ctx_flags, runs, nr_runs, skip)
 *
 * ctx_flags: context in bits 0-15, IOMMU_MAP_* or IOMMU_UNMAP_* in bits 32-63.
 * nr_frames: number of 4 KiB frames. runs: address of an array of nr_runs (at
 * most IOMMU_MAX_RUNS) struct pv_iommu_run, which is only read; unmapping
 * ignores gfn. The address is virtual in a PV domain and guest physical in any
 * other, because walking the guest's page tables costs more than mapping a
 * run. skip: number of frames to skip at the start.
 *
 * Runs are processed in order, as by IOMMU_map_pages and IOMMU_unmap_pages,
 * with a single flush of the IOTLB.
 *
 * Returns the number of 4 KiB frames processed, including those skipped, or a
 * negative error if there were none but those. A smaller number than requested
 * is due to an error or to preemption: callers repeat the call for the
 * remainder, which fails if there was an error.
 */
struct pv_iommu_run {
    /* IN: first frame of the caller. */
    uint64_t gfn;
    /* IN: first device frame. */
    uint64_t dfn;
    /* IN: number of 4 KiB frames. */
    uint64_t nr_frames;
};
typedef struct pv_iommu_run pv_iommu_run_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_run_t);

#define IOMMU_MAX_RUNS              1024

/*
 * Extension, IOMMUCAP_query: properties of the hypervisor.
 *
 * long HYPERVISOR_iommu_op(IOMMU_query, what, index, buf, size)
 *
 * Copies at most size bytes of the structure that "what" selects to the
 * virtual address buf. Returns the size in bytes of the hypervisor's
 * structure, which may be more or less than size: fields are only ever added
 * at the end.
 *
 * -EINVAL: unknown what. -EOPNOTSUPP: there is nothing at that index.
 */

/* struct pv_iommu_limits; index is 0. */
#define IOMMU_QUERY_limits          0
/* struct pv_iommu_nested_format; index is an IOMMU_NESTED_FMT_*. */
#define IOMMU_QUERY_nested          1

struct pv_iommu_limits {
    /* OUT: highest max_ctx_no that IOMMU_init accepts. */
    uint32_t max_ctx_no;
    /* OUT: highest arena_order that IOMMU_init accepts. */
    uint32_t arena_order;
};
typedef struct pv_iommu_limits pv_iommu_limits_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_limits_t);

/*
 * Extension: nested translation, IOMMUCAP_nested.
 *
 * The caller builds a context's first-stage table in its own memory; the
 * hypervisor nests it under the second stage of context 0. The table contains
 * guest physical addresses, and a device can reach what both stages allow. The
 * hypervisor never trusts the table, which may change at any time. Mappings in
 * it do not pin pages.
 *
 * Sub-ops for nested contexts are IOMMU_reattach_device, IOMMU_free_context
 * and IOMMU_flush_nested. Any other fails with -EOPNOTSUPP.
 */

/* Formats of first-stage tables. */
#define IOMMU_NESTED_FMT_x86_64_4   1 /* x86-64, 4 levels; user and A/D bits */
#define IOMMU_NESTED_FMT_x86_64_5   2 /* x86-64, 5 levels; reserved */
#define IOMMU_NESTED_FMT_arm_64_s1  3 /* Arm VMSAv8-64 stage 1; reserved */

/* The hardware sets dirty bits. */
#define IOMMU_NESTED_INFO_dirty     (1U << 0)
/* IOMMU_alloc_nested needs desc_gfn. */
#define IOMMU_NESTED_INFO_desc      (1U << 1)

struct pv_iommu_nested_format {
    /* OUT: mask of page sizes, in bytes. */
    uint64_t pgsize_mask;
    /* OUT: IOMMU_NESTED_INFO_* */
    uint32_t flags;
    /* OUT: width of a device address, in bits. */
    uint8_t input_bits;
    /* OUT: width of an address in the table, in bits. */
    uint8_t output_bits;
    uint16_t pad;
};
typedef struct pv_iommu_nested_format pv_iommu_nested_format_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_nested_format_t);

/*
 * IOMMU_alloc_nested: allocates a context that uses the caller's table.
 *
 * long HYPERVISOR_iommu_op(IOMMU_alloc_nested, arg)
 *
 * If the format has IOMMU_NESTED_INFO_desc, desc_gfn is a page to which the
 * hypervisor writes what the hardware needs to find the table. The caller must
 * not use it until the context is freed.
 *
 * -ENOSPC: all contexts are in use. -ENOMEM: no memory. -EINVAL: unknown
 * flags, or a frame that is not a page of the caller's. -EOPNOTSUPP: the
 * format is not supported. -EACCES: before IOMMU_init.
 */

/* The format, in bits 0 to 7 of nested_flags. The other bits must be zero. */
#define IOMMU_NESTED_FMT_mask       0xffU

struct pv_iommu_alloc_nested {
    /* OUT: number of the new context. */
    uint16_t ctx_no;
    /* IN: 0. */
    uint16_t pad[3];
    /* IN: frame of the root of the table. */
    uint64_t pgtable_gfn;
    /* IN: IOMMU_NESTED_FMT_* */
    uint64_t nested_flags;
    /* IN: frame for the hypervisor's use; not in the drafts. */
    uint64_t desc_gfn;
};
typedef struct pv_iommu_alloc_nested pv_iommu_alloc_nested_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_alloc_nested_t);

/*
 * IOMMU_flush_nested: flushes the IOTLB for a range of a nested context.
 *
 * long HYPERVISOR_iommu_op(IOMMU_flush_nested, ctx_flags, dfn, nr_frames)
 *
 * ctx_flags: context in bits 0-15, IOMMU_FLUSH_* in bits 32-63. If nr_frames
 * is 0, the whole context is flushed. Afterwards, no device can reach what was
 * removed from the table before the call; with IOMMU_FLUSH_tables, none reads
 * tables that were removed, either.
 *
 * -EINVAL: no such context, not nested, or unknown flags.
 */

/* Tables have been removed, not only leaf entries. */
#define IOMMU_FLUSH_tables          (1U << 0)

/*
 * Extension, IOMMUCAP_faults: faults of the caller's devices.
 *
 * long HYPERVISOR_iommu_op(IOMMU_get_faults, buf, nr)
 *
 * Moves up to nr of the oldest faults to buf, the virtual address of an array
 * of struct pv_iommu_fault, and returns their number. The first call, for
 * which nr may be 0, enables reporting. From then on, VIRQ_IOMMU is raised
 * when a fault is recorded and none was pending. If there is no room for a
 * fault, it is only counted.
 */

/* The access was a write. */
#define IOMMU_FAULT_write           (1U << 0)

struct pv_iommu_fault {
    /* OUT: device address, in bytes. */
    uint64_t addr;
    /* OUT: requester ID of the device. */
    struct physdev_pci_device dev;
    /* OUT: context that it is in. */
    uint16_t ctx_no;
    uint16_t pad;
    /* OUT: IOMMU_FAULT_* */
    uint32_t flags;
    /* OUT: reason that the hardware reports; vendor-specific. */
    uint32_t reason;
    /* OUT: number of faults lost before this one. */
    uint32_t lost;
    uint32_t pad2;
};
typedef struct pv_iommu_fault pv_iommu_fault_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_fault_t);

#endif /* __XEN_PUBLIC_PV_IOMMU_H__ */

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * tab-width: 4
 * indent-tabs-mode: nil
 * End:
 */
