/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PV-IOMMU: the hypercall. Arguments are copied in and validated here; other
 * files rely on it.
 */

#include <xen/err.h>
#include <xen/event.h>
#include <xen/guest_access.h>
#include <xen/hypercall.h>
#include <xen/init.h>
#include <xen/param.h>

#include <xsm/xsm.h>

#include "private.h"

/* Set in the sub-op of continuations. */
#define OP_CONTINUED    (1U << 31)

static bool __read_mostly opt_pv_iommu = true;
static unsigned int __read_mostly opt_max_ctx = 4096;
static unsigned int __read_mostly opt_max_order = 18;

struct pv_iommu_hw __ro_after_init pv_hw;

static int __init cf_check parse_pv_iommu(const char *s)
{
    const char *ss;
    long long n;
    int val, rc = 0;

    do {
        ss = strchr(s, ',');
        if ( !ss )
            ss = strchr(s, '\0');

        if ( (val = parse_bool(s, ss)) >= 0 )
            opt_pv_iommu = val;
        else if ( (val = parse_boolean("nested", s, ss)) >= 0 )
            opt_nested = val;
        else if ( !parse_signed_integer("max-contexts", s, ss, &n) &&
                  n >= 1 && n <= 0xfffe )
            opt_max_ctx = n;
        else if ( !parse_signed_integer("max-order", s, ss, &n) &&
                  n >= 0 && n <= 30 )
            opt_max_order = n;
        else
            rc = -EINVAL;

        s = ss + 1;
    } while ( *ss );

    return rc;
}
custom_param("pv-iommu", parse_pv_iommu);

static int op_capabilities(const struct domain *d, const struct pv_iommu *pv,
                           XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_capabilities cap;

    memset(&cap, 0, sizeof(cap));
    cap.max_iova_addr = ((pv_hw.max_dfn + 1) << PAGE_SHIFT) - 1;
    cap.cap_flags = IOMMUCAP_identity | IOMMUCAP_deferred_flush |
                    IOMMUCAP_deferred_unmap | IOMMUCAP_runs | IOMMUCAP_query |
                    IOMMUCAP_alloc_empty | IOMMUCAP_faults;
    /* Without snoop control, devices decide themselves. */
    if ( iommu_snoop )
        cap.cap_flags |= IOMMUCAP_cache;
    if ( !default_blocks(d) )
        cap.cap_flags |= IOMMUCAP_default_identity;
    if ( pv_hw.isolated_msi )
        cap.cap_flags |= IOMMUCAP_isolated_msi;
    if ( nested_format(d, IOMMU_NESTED_FMT_x86_64_4) )
        cap.cap_flags |= IOMMUCAP_nested;
    cap.pgsize_mask = pv_hw.page_sizes;
    cap.max_ctx_no = pv ? pv->max_ctx : 0;

    return copy_to_guest(arg, &cap, 1) ? -EFAULT : 0;
}

/* Returns the full size of the structure. */
static long op_query(const struct domain *d, unsigned long what,
                     unsigned long index, unsigned long buf,
                     unsigned long size)
{
    const struct pv_iommu_limits limits = {
        .max_ctx_no = opt_max_ctx, .arena_order = opt_max_order,
    };
    XEN_GUEST_HANDLE_PARAM(char) to = guest_handle_from_ptr((void *)buf, char);
    const void *from = &limits;
    size_t have = sizeof(limits);

    switch ( what )
    {
    case IOMMU_QUERY_limits:
        if ( index )
            return -EOPNOTSUPP;
        break;

    case IOMMU_QUERY_nested:
        from = nested_format(d, index);
        if ( !from )
            return -EOPNOTSUPP;
        have = sizeof(struct pv_iommu_nested_format);
        break;

    default:
        return -EINVAL;
    }

    size = min(size, have + 0UL);

    return copy_to_guest(to, (const char *)from, size) ? -EFAULT : have;
}

static int op_init(struct domain *d, bool continued,
                   XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_init op;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( !continued && dom_iommu(d)->pv )
        return -EACCES;

    if ( !op.max_ctx_no || op.max_ctx_no > opt_max_ctx ||
         op.arena_order > opt_max_order )
        return -EINVAL;

    return init_domain(d, op.max_ctx_no, 1UL << op.arena_order, continued);
}

/* Padding must be zero, so that it can get a meaning later. */
static bool pad_ok(const uint16_t *pad)
{
    return !(pad[0] | pad[1] | pad[2]);
}

/* Create a context. In the arguments of both calls, its number comes first. */
static int alloc_ctx(struct domain *d, struct pv_iommu *pv, unsigned int flags,
                     const gfn_t *desc,
                     XEN_GUEST_HANDLE_PARAM(pv_iommu_alloc_t) to)
{
    struct pv_iommu_alloc op = {};
    unsigned int no;
    int rc;

    /* Check before creating it that the number can be returned. */
    if ( __copy_field_to_guest(to, &op, ctx_no) )
        return -EFAULT;

    rc = ctx_new(d, pv, flags, desc, &no);
    if ( rc == -ENOMEM )
        rc = reclaim(pv) ?: ctx_new(d, pv, flags, desc, &no);
    if ( rc )
        return rc;

    op.ctx_no = no;

    return __copy_field_to_guest(to, &op, ctx_no) ? -EFAULT : 0;
}

static int op_alloc(struct domain *d, struct pv_iommu *pv,
                    XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_alloc op;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( op.pad ||
         op.alloc_flags & ~(IOMMU_ALLOC_identity | IOMMU_ALLOC_empty) ||
         op.alloc_flags == (IOMMU_ALLOC_identity | IOMMU_ALLOC_empty) )
        return -EINVAL;

    return alloc_ctx(d, pv, op.alloc_flags, NULL,
                     guest_handle_cast(arg, pv_iommu_alloc_t));
}

static int op_alloc_nested(struct domain *d, struct pv_iommu *pv,
                           XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_alloc_nested op;
    gfn_t desc;
    int rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( !pad_ok(op.pad) || op.nested_flags & ~(IOMMU_NESTED_FMT_mask + 0UL) )
        return -EINVAL;

    if ( !nested_format(d, op.nested_flags) )
        return -EOPNOTSUPP;

    rc = nested_write_desc(d, op.desc_gfn, op.pgtable_gfn);
    if ( rc )
        return rc;

    desc = _gfn(op.desc_gfn);

    return alloc_ctx(d, pv, 0, &desc, guest_handle_cast(arg, pv_iommu_alloc_t));
}

static int op_flush_nested(struct pv_iommu *pv, unsigned long ctx_flags,
                           unsigned long dfn, unsigned long nr)
{
    uint32_t flags = ctx_flags >> 32;
    struct pv_iommu_ctx *ctx;
    int rc = -EINVAL;

    if ( ((uint32_t)ctx_flags >> 16) || (flags & ~IOMMU_FLUSH_tables) )
        return -EINVAL;

    ctx = ctx_get(pv, ctx_flags & 0xffff, false);
    if ( !ctx )
        return -EINVAL;

    if ( ctx->nested )
    {
        nested_flush(ctx, dfn, nr, flags & IOMMU_FLUSH_tables);
        rc = 0;
    }

    ctx_put(ctx);

    return rc;
}

static int op_free(struct domain *d, struct pv_iommu *pv,
                   XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_free op;
    int rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( op.pad || op.free_flags & ~IOMMU_FREE_reattach_default )
        return -EINVAL;

    rc = op.free_flags ? xsm_iommu_op(XSM_OTHER, d, IOMMU_reattach_device) : 0;
    if ( rc )
        return rc;

    return ctx_free(d, pv, op.ctx_no, op.free_flags);
}

static int op_reattach(struct domain *d, struct pv_iommu *pv,
                       XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_reattach_device op;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( op.pasid )
        return -EOPNOTSUPP;

    return pdev_move(d, pv, PCI_SBDF(op.dev.seg, op.dev.bus, op.dev.devfn),
                     op.ctx_no);
}

/* pgsize -> order in frames, or negative. */
static int pgsize_order(uint32_t pgsize)
{
    if ( !pgsize || (pgsize & (pgsize - 1)) || !(pv_hw.page_sizes & pgsize) )
        return -EINVAL;

    return ffs(pgsize) - 1 - PAGE_SHIFT;
}

static bool flags_ok(bool map, uint32_t flags)
{
    const uint32_t rw = IOMMU_MAP_readable | IOMMU_MAP_writeable;

    if ( !map )
        return !(flags & ~IOMMU_UNMAP_no_flush);

    return (flags & rw) &&
           !(flags & ~(rw | IOMMU_MAP_cache | IOMMU_MAP_no_flush));
}

/* Get a context that has tables of its own. */
static struct pv_iommu_ctx *get_tables(struct pv_iommu *pv, unsigned int no)
{
    struct pv_iommu_ctx *ctx = ctx_get(pv, no, false);
    bool nested = ctx && ctx->nested;

    if ( ctx && (ctx->identity || nested) )
    {
        ctx_put(ctx);
        ctx = NULL;
    }

    return ctx ?: ERR_PTR(nested ? -EOPNOTSUPP : -EINVAL);
}

/* Map or unmap what r describes, see map_runs() and unmap_runs(). */
static int do_runs(struct pv_iommu *pv, unsigned int no, struct runs *r,
                   uint32_t *flags, unsigned long unit, unsigned long *done)
{
    struct pv_iommu_ctx *ctx;
    int rc;

    if ( !flags_ok(r->map, *flags) )
        return -EINVAL;

    ctx = get_tables(pv, no);
    if ( IS_ERR(ctx) )
        return PTR_ERR(ctx);

    rc = r->nr ? check_run(r) : 0;
    if ( !rc )
        rc = r->map ? map_runs(ctx, r, *flags, unit, done)
                    : unmap_runs(ctx, r, flags, unit, done);

    ctx_put(ctx);

    return rc;
}

static int op_map(struct pv_iommu *pv, XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_map_pages op;
    struct runs r = { .map = true };
    unsigned long done = 0;
    int order, rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    order = pgsize_order(op.pgsize);
    if ( order < 0 || !pad_ok(op.pad) ||
         ((op.dfn | op.gfn) & ((1UL << order) - 1)) )
        return -EINVAL;

    r.dfn = op.dfn;
    r.gfn = op.gfn;
    r.nr = (unsigned long)op.nr_pages << order;
    rc = do_runs(pv, op.ctx_no, &r, &op.map_flags, 1UL << order, &done);

    op.dfn += done;
    op.gfn += done;
    op.nr_pages -= done >> order;
    op.mapped += done >> order;

    return __copy_to_guest(arg, &op, 1) ? -EFAULT : rc;
}

static int op_unmap(struct pv_iommu *pv, XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_unmap_pages op;
    struct runs r = {};
    unsigned long done = 0;
    int order, rc;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    order = pgsize_order(op.pgsize);
    if ( order < 0 || !pad_ok(op.pad) || (op.dfn & ((1UL << order) - 1)) )
        return -EINVAL;

    r.dfn = op.dfn;
    r.nr = (unsigned long)op.nr_pages << order;
    rc = do_runs(pv, op.ctx_no, &r, &op.unmap_flags, 1UL << order, &done);

    op.dfn += done;
    op.nr_pages -= done >> order;
    op.unmapped += done >> order;

    return __copy_to_guest(arg, &op, 1) ? -EFAULT : rc;
}

static int op_flush(struct pv_iommu *pv, XEN_GUEST_HANDLE_PARAM(void) arg)
{
    struct pv_iommu_flush_pages op;
    struct runs r = {};
    struct pv_iommu_ctx *ctx;
    int order = 0, rc = 0;

    if ( copy_from_guest(&op, arg, 1) )
        return -EFAULT;

    if ( !pad_ok(op.pad) )
        return -EINVAL;

    if ( op.nr_pages )
    {
        order = pgsize_order(op.pgsize);
        if ( order < 0 )
            return -EINVAL;
        r.dfn = op.dfn;
        r.nr = (unsigned long)op.nr_pages << order;
        rc = check_run(&r);
    }

    ctx = get_tables(pv, op.ctx_no);
    if ( IS_ERR(ctx) )
        return PTR_ERR(ctx);

    /* If anything is deferred, all of the context is flushed. */
    if ( rc )
        /* nothing */;
    else if ( !r.nr || ACCESS_ONCE(ctx->def_tail) != ACCESS_ONCE(ctx->def_head) )
        rc = flush_deferred(ctx, true);
    else
        flush_range(ctx, r.dfn, r.nr,
                    IOMMU_FLUSHF_added | IOMMU_FLUSHF_modified);

    ctx_put(ctx);

    return rc;
}

/* Calls with arguments in registers. Returns the number of frames done. */
static long op_runs(struct pv_iommu *pv, unsigned int subop, unsigned long a1,
                    unsigned long a2, unsigned long a3, unsigned long a4)
{
    struct pv_iommu_run buf[RUNS_CHUNK];
    struct runs r = { .buf = buf };
    unsigned int cmd = subop & ~OP_CONTINUED;
    bool list = cmd == IOMMU_map_runs || cmd == IOMMU_unmap_runs;
    uint32_t flags = a1 >> 32;
    unsigned long done = 0;
    int rc;

    if ( ((uint32_t)a1 >> 16) || (list && a3 > IOMMU_MAX_RUNS) )
        return -EINVAL;

    r.map = cmd == IOMMU_map_range || cmd == IOMMU_map_runs;
    if ( list )
    {
        r.list = a2;
        r.nr_list = a3;
        r.skip = done = a4;
    }
    else
    {
        r.dfn = a2;
        r.nr = a3;
        r.gfn = a4;
    }

    rc = do_runs(pv, a1 & 0xffff, &r, &flags, 1, &done);

    /* More frames to skip than there are. */
    if ( !rc && r.skip )
        rc = -EINVAL;

    a1 = (a1 & 0xffff) | ((unsigned long)flags << 32);
    if ( rc == -ERESTART && list )
    {
        /* From now on, return the progress in case of an error. */
        if ( done != a4 )
            subop |= OP_CONTINUED;
        return hypercall_create_continuation(__HYPERVISOR_iommu_op, "illll",
                                             subop, a1, a2, a3, done);
    }
    if ( rc == -ERESTART && !done )
        return hypercall_create_continuation(__HYPERVISOR_iommu_op, "illll",
                                             subop, a1, a2, a3, a4);

    /* Without progress, return the error. Otherwise the next call will. */
    if ( rc && (!list || !(subop & OP_CONTINUED)) &&
         done == (list ? a4 : 0) )
        return rc;

    return done;
}

long do_iommu_op(unsigned int subop, unsigned long a1, unsigned long a2,
                 unsigned long a3, unsigned long a4)
{
    XEN_GUEST_HANDLE_PARAM(void) arg = guest_handle_from_ptr((void *)a1, void);
    struct domain *d = current->domain;
    unsigned int cmd = subop & ~OP_CONTINUED;
    struct pv_iommu *pv;
    int rc;

    if ( !opt_pv_iommu )
        return -ENOSYS;

    if ( subop == IOMMU_noop )
        return 0;

    rc = xsm_iommu_op(XSM_OTHER, d, cmd);
    if ( rc )
        return rc;

    if ( !is_iommu_enabled(d) || !pv_hw.levels )
        return -ENODEV;

    if ( (subop & OP_CONTINUED) && cmd != IOMMU_init &&
         cmd != IOMMU_map_runs && cmd != IOMMU_unmap_runs )
        return -EOPNOTSUPP;

    /* NULL before IOMMU_init. */
    pv = ACCESS_ONCE(dom_iommu(d)->pv);
    switch ( cmd )
    {
    case IOMMU_query_capabilities:
        return op_capabilities(d, pv, arg);

    case IOMMU_query:
        return op_query(d, a1, a2, a3, a4);

    case IOMMU_get_faults:
        return pv_iommu_get_faults(d, a1, a2);

    case IOMMU_init:
        rc = op_init(d, subop & OP_CONTINUED, arg);
        subop |= OP_CONTINUED;
        break;

    case IOMMU_alloc_context:
        rc = pv ? op_alloc(d, pv, arg) : -EACCES;
        break;

    case IOMMU_alloc_nested:
        rc = pv ? op_alloc_nested(d, pv, arg) : -EACCES;
        break;

    case IOMMU_flush_nested:
        return pv ? op_flush_nested(pv, a1, a2, a3) : -EACCES;

    case IOMMU_free_context:
        rc = pv ? op_free(d, pv, arg) : -EACCES;
        break;

    case IOMMU_reattach_device:
        rc = pv ? op_reattach(d, pv, arg) : -EACCES;
        break;

    case IOMMU_map_pages:
        rc = pv ? op_map(pv, arg) : -EACCES;
        break;

    case IOMMU_unmap_pages:
        rc = pv ? op_unmap(pv, arg) : -EACCES;
        break;

    case IOMMU_flush_pages:
        rc = pv ? op_flush(pv, arg) : -EACCES;
        break;

    case IOMMU_map_range:
    case IOMMU_unmap_range:
    case IOMMU_map_runs:
    case IOMMU_unmap_runs:
        return pv ? op_runs(pv, subop, a1, a2, a3, a4) : -EACCES;

    default:
        return -EOPNOTSUPP;
    }

    if ( rc == -ERESTART )
        return hypercall_create_continuation(__HYPERVISOR_iommu_op, "il",
                                             subop, a1);

    return rc;
}

static int __init cf_check pv_iommu_setup(void)
{
    int rc;

    if ( !iommu_enabled || !iommu_ops.pv_hw_init || !opt_pv_iommu )
        return 0;

    rc = iommu_call(&iommu_ops, pv_hw_init, &pv_hw) ?: reserved_init();
    if ( rc )
    {
        pv_hw.levels = 0;
        printk(XENLOG_WARNING "PV-IOMMU: not available: %d\n", rc);
        return 0;
    }

    pv_hw.page_sizes &= PAGE_SIZE_4K | PAGE_SIZE_2M;
    printk(XENLOG_INFO
           "PV-IOMMU: up to %u contexts and 2^%u table pages for a domain, device addresses up to %#lx\n",
           opt_max_ctx, opt_max_order, ((pv_hw.max_dfn + 1) << PAGE_SHIFT) - 1);

    return 0;
}
__initcall(pv_iommu_setup);

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
