/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The parts of Xen that PV-IOMMU's files need, for the host.  Locks check their order, pages
 * count references, and the IOMMU has a TLB: a page that is released while the
 * TLB still has it is a bug.
 */
#ifndef EMUL_H
#define EMUL_H

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "pv-iommu.h" /* public */
#include "grant_table.h"

#define CONFIG_PV_IOMMU 1
#define ERESTART 85

#define __init
#define __initdata
#define __initcall(fn) static void *initcall_##fn __attribute__((unused)) = fn
#define __hwdom_init
#define __hwdom_initdata
#define __read_mostly
#define __ro_after_init
#define __must_check
#define __maybe_unused __attribute__((unused))
#define cf_check
#define fallthrough __attribute__((fallthrough))
#define custom_param(name, fn) \
    static void *param_##fn __attribute__((unused)) = fn
#define always_inline inline
#define likely(x) (x)
#define unlikely(x) (x)

#define ASSERT(x) assert(x)
#define ASSERT_UNREACHABLE() assert(!"unreachable")
#define BUILD_BUG_ON(x) ((void)sizeof(char[1 - 2 * !!(x)]))
#define ARRAY_SIZE(x) (sizeof(x) / sizeof((x)[0]))
#define min(x, y) ({ typeof(x) x_ = (x); typeof(y) y_ = (y); x_ < y_ ? x_ : y_; })
#define max(x, y) ({ typeof(x) x_ = (x); typeof(y) y_ = (y); x_ > y_ ? x_ : y_; })
#define ACCESS_ONCE(x) (*(volatile typeof(x) *)&(x))
#define container_of(p, t, m) ((t *)((char *)(p) - offsetof(t, m)))
#define EXPORT_SYMBOL(s)
#include "rbtree.c"
typedef struct { unsigned int counter; } atomic_t;
#define atomic_inc(a) ((a)->counter++)
#define atomic_add_return(n, a) ((a)->counter += (n))
#define atomic_sub(n, a) ((a)->counter -= (n))
#define atomic_dec(a) ((a)->counter--)
#define atomic_dec_and_test(a) (!--(a)->counter)
#define smp_mb__before_atomic()
#define process_pending_softirqs()
#define atomic_read(a) ((a)->counter)
#define write_atomic(p, v) (*(volatile typeof(*(p)) *)(p) = (v))
#define smp_wmb()
#define smp_mb()
#define array_index_nospec(i, n) (i)
#define printk(fmt, ...) ((void)(fmt))
#define panic(fmt, ...) abort()
#define printk_ratelimit() false
#define XENLOG_ERR
#define XENLOG_G_ERR
#define XENLOG_INFO
#define XENLOG_WARNING

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096
#define PAGE_MASK (~(uint64_t)(PAGE_SIZE - 1))
#define PADDR_MASK ((1UL << 52) - 1)
/* Named as in Xen, but dependent on the number of entries per table. */
#define PAGE_SIZE_4K (1UL << 12)
#define PAGE_SIZE_2M (1UL << (12 + PT_SHIFT))
#define PAGE_SIZE_1G (1UL << (12 + 2 * PT_SHIFT))
static unsigned int paddr_bits = 40;

static inline int parse_bool(const char *s, const char *e) { return -1; }
#define parse_boolean(n, s, e) (-1)
#define parse_signed_integer(n, s, e, v) (*(v) = 0, -1)
#define ERR_PTR(e) ((void *)(long)(e))
#define PTR_ERR(p) ((long)(p))
#define IS_ERR(p) ((unsigned long)(p) >= -4095UL)
#define simple_strtoul(s, e, b) strtoul(s, (char **)(e), b)

/* Lists, of the only kind that is used. */
struct list_head { struct list_head *next, *prev; };
#define LIST_HEAD(n) struct list_head n = { &(n), &(n) }
#define INIT_LIST_HEAD(h) ((h)->next = (h)->prev = (h))
static inline void list_add(struct list_head *l, struct list_head *h)
{
    l->next = h->next; l->prev = h; h->next->prev = l; h->next = l;
}
static inline void list_del(struct list_head *l)
{
    l->next->prev = l->prev; l->prev->next = l->next;
}
#define list_for_each_entry(p, h, m)                                       \
    for ( p = (void *)((char *)(h)->next - offsetof(typeof(*p), m));       \
          &p->m != (h);                                                    \
          p = (void *)((char *)p->m.next - offsetof(typeof(*p), m)) )

/* Locks have a level, smaller for outer ones, to check their order. */
typedef struct { int level; bool held; } spinlock_t;
static int lock_level[8], lock_depth;
static int level_of(const char *name)
{
    return strstr(name, "init_lock") ? 1 : strstr(name, "ctx->lock") ? 2
           : strstr(name, "b->lock") ? 4 : 3;
}
#define DEFINE_SPINLOCK(n) spinlock_t n
#define spin_lock_init(l) (*(l) = (spinlock_t){ 0 })
#define spin_lock(l) do {                                                  \
    int lvl_ = level_of(#l);                                               \
    assert(!(l)->held);                                                    \
    assert(!lock_depth || lock_level[lock_depth - 1] < lvl_);              \
    lock_level[lock_depth++] = lvl_;                                       \
    (l)->held = true;                                                      \
} while ( 0 )
#define spin_unlock(l) do {                                                \
    assert((l)->held && lock_level[lock_depth - 1] == level_of(#l));       \
    lock_depth--;                                                          \
    (l)->held = false;                                                     \
} while ( 0 )
#define spin_is_locked(l) ((l)->held)
/* Innermost. */
typedef struct { bool held; } rwlock_t;
#define rwlock_init(l) (*(l) = (rwlock_t){})
#define write_lock(l) (assert(!(l)->held), (l)->held = true)
#define write_unlock(l) (assert((l)->held), (l)->held = false)
/* Runs just before, as another CPU would. */
static void (*at_read_lock)(void);
#define read_lock(l) do {                                                  \
    if ( at_read_lock )                                                    \
        at_read_lock();                                                    \
    write_lock(l);                                                         \
} while ( 0 )
#define read_unlock write_unlock

static int pcidevs;
static void pcidevs_lock(void) { assert(!lock_depth); pcidevs++; }
static void pcidevs_unlock(void) { assert(pcidevs); pcidevs--; }
static bool pcidevs_locked(void) { return pcidevs; }

/* Domains */
typedef uint64_t paddr_t;
#undef DOMID_INVALID
#define DOMID_INVALID 0x7ff4
struct pv_iommu;
struct pv_iommu_faults;
struct domain_iommu {
    struct pv_iommu *pv, *pv_init;
    struct pv_iommu_faults *pv_faults;
};
struct pci_dev;
struct domain {
    domid_t domain_id;
    bool is_dying, hwdom, translated;
    int refs;
    struct domain_iommu iommu;
    struct pci_dev *pdevs;
};
struct vcpu { struct domain *domain; };
static struct vcpu vcpu0, *current = &vcpu0;
static struct domain dom0, domU = { .domain_id = 7 }, dom_io_;
static struct domain *const dom_io = &dom_io_;
#define dom_iommu(d) (&(d)->iommu)
#define is_hardware_domain(d) ((d)->hwdom)
#define is_control_domain(d) ((d)->hwdom)
#define get_knownalive_domain(d) ((d)->refs++)
#define put_domain(d) ((d)->refs--)
#define is_system_domain(d) ((d) == dom_io)
#define is_iommu_enabled(d) true
#define paging_mode_translate(d) ((d)->translated)
#define paging_mode_external(d) ((d)->translated)

/* Pages */
typedef struct { unsigned long m; } mfn_t;
typedef struct { unsigned long d; } dfn_t;
typedef struct { unsigned long g; } gfn_t;
#define _gfn(n) ((gfn_t){ n })
#define gfn_x(x) ((x).g)
#define _mfn(x) ((mfn_t){ x })
#define mfn_x(x) ((x).m)
#define _dfn(x) ((dfn_t){ x })
#define dfn_x(x) ((x).d)
#define mfn_add(x, i) _mfn((x).m + (i))
#define mfn_eq(x, y) ((x).m == (y).m)
#define INVALID_MFN _mfn(~0UL)
#define maddr_to_mfn(x) _mfn((x) >> PAGE_SHIFT)
#define mfn_to_maddr(x) ((uint64_t)(x).m << PAGE_SHIFT)

struct page_info {
    struct { struct { unsigned long type_info; } inuse; } u;
    struct page_info *next, *prev;
    void *list;
    struct domain *owner;
    long count, writable;
    bool other_type, heap;
    uint64_t *data;
};

#define NR_PAGES 16384
static struct page_info frame_table[NR_PAGES];
#define mfn_valid(m) (mfn_x(m) < NR_PAGES)
#define mfn_to_page(m) (&frame_table[mfn_x(m)])
#define page_to_mfn(p) _mfn((p) - frame_table)
#define page_to_maddr(p) mfn_to_maddr(page_to_mfn(p))

struct page_list_head { struct page_info *first, *last; };
#define PAGE_LIST_HEAD(n) struct page_list_head n = { 0 }
#define INIT_PAGE_LIST_HEAD(h) (*(h) = (struct page_list_head){ 0 })
#define page_list_empty(h) (!(h)->first)
#define page_list_first(h) ((h)->first)
static void page_list_add(struct page_info *p, struct page_list_head *h)
{
    assert(!p->list);
    p->list = h; p->prev = NULL; p->next = h->first;
    if ( h->first ) h->first->prev = p; else h->last = p;
    h->first = p;
}
static void page_list_add_tail(struct page_info *p, struct page_list_head *h)
{
    assert(!p->list);
    p->list = h; p->next = NULL; p->prev = h->last;
    if ( h->last ) h->last->next = p; else h->first = p;
    h->last = p;
}
static void page_list_del(struct page_info *p, struct page_list_head *h)
{
    assert(p->list == h);
    p->list = NULL;
    if ( p->prev ) p->prev->next = p->next; else h->first = p->next;
    if ( p->next ) p->next->prev = p->prev; else h->last = p->prev;
}
static struct page_info *page_list_remove_head(struct page_list_head *h)
{
    struct page_info *p = h->first;

    if ( p )
        page_list_del(p, h);
    return p;
}
static void page_list_splice(struct page_list_head *h,
                             struct page_list_head *to)
{
    struct page_info *p;

    while ( (p = page_list_remove_head(h)) )
        page_list_add_tail(p, to);
}
static void page_list_move(struct page_list_head *to, struct page_list_head *h)
{
    struct page_info *p;

    while ( (p = page_list_remove_head(h)) )
        page_list_add_tail(p, to);
}

static void gnttab_end_mapping(struct domain *ld, struct domain *rd,
                               grant_ref_t ref, mfn_t mfn, uint16_t flags);

/* The domains' frames come first, then the heap. */
#define FIRST_HEAP 8192
static unsigned long heap_limit = NR_PAGES, heap_used;
static bool tlb_has_table(const struct page_info *pg);

static struct page_info *alloc_domheap_page(struct domain *d, unsigned int f)
{
    unsigned long m;

    if ( heap_used >= heap_limit )
        return NULL;
    for ( m = FIRST_HEAP; m < NR_PAGES; m++ )
        if ( !frame_table[m].heap )
        {
            struct page_info *pg = &frame_table[m];

            pg->heap = true;
            pg->data = malloc(PAGE_SIZE);
            memset(pg->data, 0xa5, PAGE_SIZE);
            heap_used++;
            return pg;
        }
    return NULL;
}
static void free_domheap_page(struct page_info *pg)
{
    assert(pg->heap && !pg->list && !pg->u.inuse.type_info);
    assert(!tlb_has_table(pg));
    free(pg->data);
    pg->data = NULL;
    pg->heap = false;
    heap_used--;
}
#define __map_domain_page(pg) ({ assert((pg)->data); (void *)(pg)->data; })
#define unmap_domain_page(p) ((void)(p))
#define clear_domain_page(m) memset(mfn_to_page(m)->data, 0, PAGE_SIZE)
static bool iommu_non_coherent = true;
static bool iommu_snoop = true;
#define iommu_sync_cache(p, n) ((void)(p))

/* References taken and dropped since the last preemption check. */
static unsigned long stretch, longest_stretch;
static void one_more(void)
{
    longest_stretch = max(longest_stretch, ++stretch);
}

#define PGT_writable_page 1
static int p2m_locks;
static bool tlb_has_frame(unsigned long mfn, bool write);

#define page_get_owner(pg) ((pg)->owner)
static struct domain *page_get_owner_and_reference(struct page_info *pg)
{
    if ( !pg->owner )
        return NULL;
    one_more();
    pg->count++;
    return pg->owner;
}
static bool get_page_type(struct page_info *pg, unsigned long type)
{
    /* For a page table, it may take locks of its owner's paging mode. */
    assert(!p2m_locks && !lock_depth);
    if ( pg->other_type )
        return false;
    pg->writable++;
    return true;
}
static void put_page(struct page_info *pg)
{
    assert(pg->count > 0);
    one_more();
    if ( !--pg->count )
        assert(!tlb_has_frame(pg - frame_table, false));
}
static void put_page_type(struct page_info *pg)
{
    assert(pg->writable > 0);
    pg->writable--;
}
static void put_page_and_type(struct page_info *pg)
{
    assert(pg->writable > 0);
    if ( !--pg->writable )
        assert(!tlb_has_frame(pg - frame_table, true));
    put_page(pg);
}

/* P2M: identity, with holes and types, and one piece of MMIO. */
typedef enum { p2m_invalid, p2m_ram_rw, p2m_ram_ro, p2m_map_foreign,
               p2m_grant_map_rw, p2m_grant_map_ro, p2m_mmio_direct } p2m_type_t;
typedef enum { p2m_access_n, p2m_access_rw, p2m_access_rwx, p2m_access_w,
               p2m_access_wx } p2m_access_t;
#define P2M_ALLOC 1
#define p2m_get_hostp2m(d) (d)
static p2m_type_t p2m_type[NR_PAGES];
static unsigned long p2m_mfn(unsigned long gfn)
{
    return gfn >= 1700 && gfn < 1710 ? 0x5008 + gfn - 1700 : gfn;
}
static void p2m_lookup_begin(struct domain *d)
{
    assert(d->translated && !lock_depth && !p2m_locks);
    p2m_locks++;
}
static void p2m_lookup_end(struct domain *d)
{
    assert(p2m_locks == 1);
    p2m_locks--;
}
static mfn_t p2m_get_gfn_type_access(struct domain *d, gfn_t gfn_,
                                     p2m_type_t *t, p2m_access_t *a,
                                     unsigned int q, unsigned int *order,
                                     bool lock)
{
    unsigned long gfn = gfn_.g;

    assert(p2m_locks == 1 && !lock_depth && !q && !lock);
    *order = 0;
    *a = p2m_access_rwx;
    *t = gfn < NR_PAGES ? p2m_type[gfn] : p2m_invalid;
    if ( *t == p2m_ram_rw && gfn < 1024 )
        *order = PT_SHIFT;
    if ( *t == p2m_mmio_direct )
        *order = 1;
    return *t == p2m_invalid ? INVALID_MFN : _mfn(p2m_mfn(gfn));
}
static struct page_info *get_page_from_gfn(struct domain *d, unsigned long gfn,
                                           p2m_type_t *t, unsigned int q)
{
    assert(!lock_depth && !p2m_locks);
    *t = gfn < NR_PAGES ? p2m_type[gfn] : p2m_invalid;
    if ( *t == p2m_invalid || *t == p2m_mmio_direct )
        return NULL;
    frame_table[p2m_mfn(gfn)].count++;
    return &frame_table[p2m_mfn(gfn)];
}
#define paging_mark_dirty(d, m) ((void)(m))
#define clear_page(p) memset(p, 0, PAGE_SIZE)
static bool iommu_hwdom_passthrough;

static void *mmio_ro_ranges __attribute__((unused));
#define MMIO_RO(s, e) ((s) <= 0x5010 && (e) >= 0x5010)
/* More MMIO, enough for two superpages and a part of one. */
#define HUGE_MMIO 0x100000UL
#define HUGE_MMIO_END (HUGE_MMIO + (9UL << PT_SHIFT) / 4)
/* As for the hardware domain, which is not denied RAM. */
#define iomem_access_permitted(d, s, e)                                    \
    ((e) < FIRST_HEAP || ((s) >= 0x5000 && (e) < 0x5100) ||                \
     ((s) >= HUGE_MMIO && (e) < HUGE_MMIO_END))
#define rangeset_contains_singleton(r, s) MMIO_RO(s, s)

/* Memory allocation, which fails on request. */
static unsigned int fail_after = ~0U;
static long xen_allocs;
static void *xalloc(size_t n)
{
    if ( !fail_after-- )
        return NULL;
    xen_allocs++;
    return calloc(1, n);
}
#define xzalloc(t) ((t *)xalloc(sizeof(t)))
#define xzalloc_array(t, n) ((t *)xalloc(sizeof(t) * (n)))
#define xfree(p) (xen_allocs -= !!(p), free(p))
#define XFREE(p) do { xfree(p); (p) = NULL; } while ( 0 )
#define xvfree xfree
#define XVFREE(p) do { xvfree(p); (p) = NULL; } while ( 0 )
#define xvzalloc_flex_struct(t, f, n) \
    ((t *)xalloc(sizeof(t) + (n) * sizeof(((t *)0)->f[0])))

/* Guest access: outside Xen, handles are pointers. */
#undef XEN_GUEST_HANDLE_PARAM
#define XEN_GUEST_HANDLE_PARAM(t) t *
#define guest_handle_cast(h, t) ((t *)(h))
#define guest_handle_from_ptr(p, t) ((t *)(p))
static unsigned long copy(void *to, const void *from, size_t n)
{
    assert(!lock_depth);
    if ( !to || !from )
        return n;
    memcpy(to, from, n);
    return 0;
}
#define copy_from_guest(to, h, n) copy(to, h, sizeof(*(to)) * (n))
#define HVMTRANS_okay 0
#define hvm_copy_from_guest_phys(to, p, n) \
    (copy(to, (const void *)(p), n) ? -1 : HVMTRANS_okay)
#define copy_to_guest(h, from, n) copy(h, from, sizeof(*(from)) * (n))
#define __copy_to_guest copy_to_guest
#define __copy_field_to_guest(h, s, f) copy(&(h)->f, &(s)->f, sizeof((s)->f))

/* Continuations: preempted at random, and continued by the caller. */
static unsigned int preempt_every, preempt_count;
static unsigned int cont_op;
static unsigned long cont_arg[4];
static bool preempted;
static bool hypercall_preempt_check(void)
{
    assert(!lock_depth && !pcidevs);
    stretch = 0;
    return preempt_every && !(++preempt_count % preempt_every);
}
#define __HYPERVISOR_iommu_op 43
/* The arguments of a continuation, in the order of those of the call. */
static void continuation(unsigned int n, unsigned int op,
                         const unsigned long *args)
{
    cont_op = op;
    memcpy(cont_arg, args, n * sizeof(*args));
    preempted = true;
}
#define hypercall_create_continuation(nr, fmt, op, ...) ({ \
    unsigned long args_[] = { __VA_ARGS__ };               \
    continuation(ARRAY_SIZE(args_), op, args_);            \
    0; })
#define XSM_OTHER 0
#define xsm_iommu_op(def, d, op) (is_hardware_domain(d) ? 0 : -EPERM)

/* PCI */
typedef struct { uint32_t sbdf; } pci_sbdf_t;
#define PCI_SBDF(s, b, d) ((pci_sbdf_t){ (s) << 16 | (b) << 8 | (d) })
#define PCI_SLOT(d) ((d) >> 3)
struct pv_iommu_ctx;
struct pci_dev {
    struct domain *domain;
    pci_sbdf_t sbdf;
    uint8_t devfn, phantom_stride;
    bool broken;
    struct pv_iommu_ctx *pv_ctx;
    bool pv_moving;
    struct pv_iommu_ctx *in_hw[8]; /* context in the hardware, per function */
    struct pci_dev *next;
};
static struct pci_dev *pci_get_pdev(struct domain *d, pci_sbdf_t sbdf)
{
    struct pci_dev *p;

    for ( p = d->pdevs; p; p = p->next )
        if ( p->sbdf.sbdf == sbdf.sbdf && p->domain == d )
            return p;
    return NULL;
}
static int pci_iterate_devices(int (*handler)(struct pci_dev *pdev, void *arg),
                               void *arg);
#define for_each_pdev(d, p) \
    for ( p = (d)->pdevs; p; p = p->next ) \
        if ( p->domain != (d) ) continue; else

static bool iommu_enabled = true;
#define IOMMU_FLUSHF_added 1
#define IOMMU_FLUSHF_modified 2
#define IOMMU_FLUSHF_all 4

#define X86_VENDOR_AMD 1
#define X86_VENDOR_HYGON 2
static struct { unsigned int x86_vendor; } boot_cpu_data;

typedef int iommu_grdm_t(xen_pfn_t start, xen_ulong_t nr, uint32_t id, void *c);
static int iommu_get_reserved_device_memory(iommu_grdm_t *fn, void *c)
{
    /* The same region for two devices. */
    int rc = fn(0, 0, 0, c);

    assert(rc == 1);
    rc = fn(0x3000, 3, 0, c);
    if ( rc == 1 )
        rc = fn(0x3000, 3, 1, c);
    return rc < 0 ? rc : 0;
}

struct pv_iommu_hw;
static struct {
    int (*pv_hw_init)(struct pv_iommu_hw *);
    int (*pv_ctx_init)(struct pv_iommu_ctx *);
    void (*pv_ctx_destroy)(struct pv_iommu_ctx *);
    int (*pv_attach)(uint8_t, struct pci_dev *);
    int (*pv_flush)(struct pv_iommu_ctx *, dfn_t, unsigned long, unsigned int);
    void (*pv_flush_nested)(const struct pv_iommu_ctx *, dfn_t, unsigned long,
                            unsigned int);
    uint64_t (*pv_nested_desc)(gfn_t);
} iommu_ops;
#define iommu_call(o, f, ...) ((o)->f(__VA_ARGS__))
#define iommu_vcall iommu_call

#endif
