/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Xen PV-IOMMU driver: what is asked of the hypervisor, and what it did
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM xen_iommu

#if !defined(_TRACE_XEN_IOMMU_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_XEN_IOMMU_H

#include <linux/tracepoint.h>

DECLARE_EVENT_CLASS(xen_iommu_pages,
		    TP_PROTO(u16 ctx, u64 dfn, u32 nr, u32 pgsize,
			     u32 done, int ret),
		    TP_ARGS(ctx, dfn, nr, pgsize, done, ret),
		    TP_STRUCT__entry(__field(u64, dfn)
				     __field(u32, nr)
				     __field(u32, pgsize)
				     __field(u32, done)
				     __field(int, ret)
				     __field(u16, ctx)),
		    TP_fast_assign(__entry->dfn = dfn;
				   __entry->nr = nr;
				   __entry->pgsize = pgsize;
				   __entry->done = done;
				   __entry->ret = ret;
				   __entry->ctx = ctx;),
		    TP_printk("ctx=%u dfn=%#llx nr=%u pgsize=%#x done=%u ret=%d",
			      __entry->ctx, __entry->dfn, __entry->nr,
			      __entry->pgsize, __entry->done, __entry->ret));

DEFINE_EVENT(xen_iommu_pages, xen_iommu_map,
	     TP_PROTO(u16 ctx, u64 dfn, u32 nr, u32 pgsize, u32 done, int ret),
	     TP_ARGS(ctx, dfn, nr, pgsize, done, ret));

DEFINE_EVENT(xen_iommu_pages, xen_iommu_unmap,
	     TP_PROTO(u16 ctx, u64 dfn, u32 nr, u32 pgsize, u32 done, int ret),
	     TP_ARGS(ctx, dfn, nr, pgsize, done, ret));

TRACE_EVENT(xen_iommu_runs,
	    TP_PROTO(unsigned int subop, u16 ctx, u64 dfn,
		     u32 runs, u64 nr, u64 done, int ret),
	    TP_ARGS(subop, ctx, dfn, runs, nr, done, ret),
	    TP_STRUCT__entry(__field(u64, dfn)
			     __field(u64, nr)
			     __field(u64, done)
			     __field(u32, runs)
			     __field(u32, subop)
			     __field(int, ret)
			     __field(u16, ctx)),
	    TP_fast_assign(__entry->dfn = dfn;
			   __entry->nr = nr;
			   __entry->done = done;
			   __entry->runs = runs;
			   __entry->subop = subop;
			   __entry->ret = ret;
			   __entry->ctx = ctx;),
	    TP_printk("subop=%u ctx=%u dfn=%#llx runs=%u nr=%llu done=%llu ret=%d",
		      __entry->subop, __entry->ctx, __entry->dfn,
		      __entry->runs, __entry->nr, __entry->done,
		      __entry->ret));

TRACE_EVENT(xen_iommu_attach,
	    TP_PROTO(u16 seg, u8 bus, u8 devfn, u16 ctx, int ret),
	    TP_ARGS(seg, bus, devfn, ctx, ret),
	    TP_STRUCT__entry(__field(int, ret)
			     __field(u16, seg)
			     __field(u16, ctx)
			     __field(u8, bus)
			     __field(u8, devfn)),
	    TP_fast_assign(__entry->ret = ret;
			   __entry->seg = seg;
			   __entry->ctx = ctx;
			   __entry->bus = bus;
			   __entry->devfn = devfn;),
	    TP_printk("%04x:%02x:%02x.%u ctx=%u ret=%d",
		      __entry->seg, __entry->bus,
		      __entry->devfn >> 3, __entry->devfn & 7,
		      __entry->ctx, __entry->ret));

/* Any call that the hypervisor refused or did not complete. */
TRACE_EVENT(xen_iommu_error,
	    TP_PROTO(unsigned int subop, int ret),
	    TP_ARGS(subop, ret),
	    TP_STRUCT__entry(__field(u32, subop)
			     __field(int, ret)),
	    TP_fast_assign(__entry->subop = subop;
			   __entry->ret = ret;),
	    TP_printk("subop=%u ret=%d",
		      __entry->subop, __entry->ret));

#endif /* _TRACE_XEN_IOMMU_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE xen_iommu_trace
#include <trace/define_trace.h>
