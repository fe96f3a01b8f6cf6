/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: a domain manages I/O address spaces (contexts) for its devices.
 * See docs/designs/pv-iommu.md for the concept.
 *
 *   abi.c       build-time checks of the ABI
 *   ops.c       the hypercall: validation, copying, continuations; parameters
 *   domain.c    setting up and tearing down a domain's contexts
 *   map.c       mapping and unmapping runs of frames
 *   context.c   creating, looking up and freeing contexts
 *   device.c    which device is in which context
 *   nested.c    contexts whose page table is in the domain's memory
 *   reserved.c  reserved regions and interrupt ranges
 *   flush.c     IOTLB flushes, immediate and deferred
 *   frame.c     permission to map a frame, and references to it
 *   grant.c     frames of other domains, and the grants behind them
 *   table.c     page tables
 *   faults.c    fault reports
 *
 * A file only calls files below it.
 *
 * A page table entry goes from zero (free) to present, dead, and back to zero.
 * A dead entry is not present for the hardware, but still holds the frame. The
 * caller that made it dead flushes, clears it and releases the frame; if the
 * flush is deferred, the next full flush of the context does. A dead entry
 * cannot be overwritten. Therefore there is no list of frames, unmapping
 * allocates nothing, and no lock is held across a flush.
 *
 * A table without entries stays linked, as empty, for the next mapping. The
 * hardware may have cached its address, so it is unlinked only at the start of
 * a full flush (stale), and goes back to the pool after it.
 *
 * Lock order:
 *   pcidevs_lock()     which device is in which context; creating and freeing
 *                      contexts
 *   ctx->lock          the tables of a context, its ring and lists
 *   pv->lock           the pool, and the array of contexts
 *   pv->bucket[].lock  frames of other domains
 *   pv->nested_lock    the list of nested contexts
 * The last two may be taken with a P2M lock held, the others may not. Guest
 * memory is not accessed with any of the last four held. Grant table locks and
 * type references are not taken with any of the five held.
 */
#ifndef PV_IOMMU_PRIVATE_H
#define PV_IOMMU_PRIVATE_H

#include <xen/iommu.h>
#include <xen/lib.h>
#include <xen/mm.h>
#include <xen/pci.h>
#include <xen/rbtree.h>
#include <xen/sched.h>

#include <asm/p2m.h>
#include <asm/pv-iommu.h>

#include <public/pv-iommu.h>

#define PT_SHIFT        9
#define PT_ENTRIES      (1U << PT_SHIFT)
#define PTE_ADDR        (PADDR_MASK & PAGE_MASK)

#define NR_BUCKETS      64

/* Unmapped frames of a domain that may wait for a flush. */
#define MAX_DEFERRED    16384

/* Empty tables to free with one flush. */
#define MAX_TRIM        512

/* The contexts of a domain; exists from IOMMU_init on. */
struct pv_iommu {
    struct domain *d;
    unsigned int max_ctx;
    /* During IOMMU_init: the error that makes it undo everything, or 0. */
    int failed;
    /* IOTLB flushes, for the debug key. */
    atomic_t nr_flushes;
    /* Frames in the deferred ranges of all contexts. */
    atomic_t nr_deferred;

    /* Protects all below. */
    spinlock_t lock;
    unsigned int nr_ctx;
    unsigned long nr_pages, nr_free;
    struct page_list_head pool;

    /* Frames of other domains. */
    struct bucket {
        spinlock_t lock;
        struct rb_root frames;
    } bucket[NR_BUCKETS];

    /* Nested contexts, to be flushed when the domain's P2M changes. */
    rwlock_t nested_lock;
    struct list_head nested;

    struct pv_iommu_ctx *ctx[]; /* [max_ctx + 1], [0] is unused */
};

/* The format of the host's IOMMUs; levels is 0 if there are none. */
extern struct pv_iommu_hw pv_hw;

/*
 * The type_info of a table, which has no owner and thus no type, holds the
 * number of its non-zero entries, its level, and the first dfn it covers.
 */

#define META_USED_MASK  0x7ffUL
#define META_LEVEL(m)   (((m) >> 11) & 7)
#define META_DFN(m)     (((m) >> 14) << PT_SHIFT)

static inline unsigned long *meta(struct page_info *pg)
{
    return &pg->u.inuse.type_info;
}

static inline unsigned int pt_used(struct page_info *pg)
{
    return *meta(pg) & META_USED_MASK;
}

static inline unsigned int pt_index(unsigned long dfn, unsigned int level)
{
    return (dfn >> (PT_SHIFT * (level - 1))) & (PT_ENTRIES - 1);
}

/* Frames covered by an entry of this level. */
static inline unsigned long span(unsigned int level)
{
    return 1UL << (PT_SHIFT * (level - 1));
}

/* Frames from dfn to the end of its level 1 table. */
static inline unsigned long table_rest(unsigned long dfn)
{
    return PT_ENTRIES - (dfn & (PT_ENTRIES - 1));
}

static inline bool pte_is_leaf(uint64_t pte, unsigned int level)
{
    return level == 1 || (pte & pv_hw.super_mask) == pv_hw.super;
}

static inline mfn_t pte_mfn(uint64_t pte)
{
    return maddr_to_mfn(pte & PTE_ADDR);
}

/* table.c */
void pool_put(struct pv_iommu_ctx *ctx, struct page_info *pg);
void pool_put_list(struct pv_iommu_ctx *ctx, struct page_list_head *list);
void pt_put(struct pv_iommu_ctx *ctx, struct page_info *pg, unsigned int nr);
int find_table(struct pv_iommu_ctx *ctx, unsigned long dfn,
               unsigned int *level, bool alloc, struct page_info **ppg);
int new_top(struct pv_iommu_ctx *ctx);
void free_top(struct pv_iommu_ctx *ctx);
void trim_empties(struct pv_iommu_ctx *ctx);

/* A table that is written to: nr entries, up to dfn, so far. */
struct writer {
    struct page_info *pg;
    uint64_t *tbl;
    unsigned int level, nr;
    unsigned long dfn;
};

int write_entries(struct pv_iommu_ctx *ctx, struct writer *w,
                  unsigned long dfn, mfn_t mfn, unsigned long nr,
                  uint64_t flags, bool retry, unsigned long *done);
void writer_end(struct pv_iommu_ctx *ctx, struct writer *w);
int kill_entries(struct pv_iommu_ctx *ctx, unsigned long dfn, unsigned long nr,
                 bool whole, unsigned long *done, bool *foreign);

/* grant.c */
int foreign_get(struct pv_iommu *pv, mfn_t mfn, bool write);
void foreign_put(struct pv_iommu *pv, mfn_t mfn, bool write);
int foreign_destroy(struct pv_iommu *pv);

/* frame.c */

/* Contiguous frames to map, with references held. */
struct piece {
    unsigned long dfn;
    mfn_t mfn;
    unsigned long nr;
    uint64_t pte;
};

/* The P2M entry looked up last. The caller holds the P2M lock for reading. */
struct xlat {
    const struct pv_iommu_ctx *ctx;
    /* The access type permits writing. */
    bool writable;
    unsigned long gfn, nr;
    mfn_t mfn;
    p2m_type_t t;
};

long get_run(struct xlat *x, unsigned long gfn, unsigned long nr, bool write,
             mfn_t *mfn, uint64_t *pte);
unsigned int get_types(const struct pv_iommu_ctx *ctx, struct piece *piece,
                       unsigned int nr, int *rc);
void put_frames(const struct pv_iommu_ctx *ctx, mfn_t mfn, unsigned long nr,
                uint64_t pte, bool typed);

void put_foreign(const struct pv_iommu_ctx *ctx, uint64_t pte);

/* flush.c */
void flush_range(struct pv_iommu_ctx *ctx, unsigned long dfn, unsigned long nr,
                 unsigned int flags);
void flush_ctx(struct pv_iommu_ctx *ctx);
unsigned long reap(struct pv_iommu_ctx *ctx, unsigned long dfn,
                   unsigned long nr, bool all, uint64_t *foreign);
bool defer(struct pv_iommu_ctx *ctx, unsigned long dfn, unsigned long nr);
int flush_deferred(struct pv_iommu_ctx *ctx, bool always);
void finish_unmap(struct pv_iommu_ctx *ctx, unsigned long dfn,
                  unsigned long nr, bool later);

/* reserved.c */
int reserved_init(void);
int map_reserved(struct pv_iommu_ctx *ctx);
long reserved_run(const struct pv_iommu_ctx *ctx, unsigned long dfn,
                  unsigned long gfn, unsigned long *nr);
void reserved_move(const struct pci_dev *pdev, const struct pv_iommu_ctx *ctx);
bool is_msi_range(unsigned long dfn, unsigned long nr);

/* nested.c */
extern bool opt_nested;
const struct pv_iommu_nested_format *nested_format(const struct domain *d,
                                                   unsigned long fmt);
int nested_write_desc(struct domain *d, uint64_t desc_gfn,
                      uint64_t pgtable_gfn);
void nested_add(struct pv_iommu_ctx *ctx, gfn_t desc);
void nested_remove(struct pv_iommu_ctx *ctx);
void nested_flush(struct pv_iommu_ctx *ctx, unsigned long dfn,
                  unsigned long nr, bool tables);

/* device.c */
extern struct pv_iommu_ctx *hwdom_block;
bool default_blocks(const struct domain *d);
int attach_functions(struct pci_dev *pdev);
int pdev_attach(struct pci_dev *pdev, struct pv_iommu_ctx *ctx);
bool pdev_lent(const struct pci_dev *pdev);
int cf_check pdev_orphan(struct pci_dev *pdev, void *arg);
int pdev_move(struct domain *d, struct pv_iommu *pv, pci_sbdf_t sbdf,
              unsigned int no);

/* context.c */
struct pv_iommu_ctx *ctx_get(struct pv_iommu *pv, unsigned int no, bool dying);
void ctx_put(struct pv_iommu_ctx *ctx);
int reclaim(struct pv_iommu *pv);
struct pv_iommu_ctx *ctx_create(struct domain *d, struct pv_iommu *pv,
                                unsigned int no, unsigned int flags,
                                const gfn_t *desc);
int ctx_teardown(struct pv_iommu_ctx *ctx);
int ctx_remove(struct pv_iommu_ctx *ctx, unsigned int own);
int ctx_new(struct domain *d, struct pv_iommu *pv, unsigned int flags,
            const gfn_t *desc, unsigned int *no);
int ctx_free(struct domain *d, struct pv_iommu *pv, unsigned int no,
             bool reattach);

/* domain.c */
int init_domain(struct domain *d, unsigned int max_ctx, unsigned long pages,
                bool continued);

/* map.c */

/* What to map or unmap: a run, followed by the runs of a list. */
struct runs {
    unsigned long dfn, gfn, nr;
    bool map;

    /* Runs copied in. */
    struct pv_iommu_run *buf;
    unsigned int at, fill;

    /* Where the remaining runs are (see the public header), and how many. */
    unsigned long list;
    unsigned int nr_list;

    /* Frames to skip, as previous calls have done them. */
    unsigned long skip;
};

/* Runs copied in at once. */
#define RUNS_CHUNK      64

int check_run(const struct runs *r);
int map_runs(struct pv_iommu_ctx *ctx, struct runs *r, uint32_t flags,
             unsigned long unit, unsigned long *done);
int unmap_runs(struct pv_iommu_ctx *ctx, struct runs *r, uint32_t *flags,
               unsigned long unit, unsigned long *done);

#endif /* PV_IOMMU_PRIVATE_H */

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
