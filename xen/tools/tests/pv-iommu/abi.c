/* SPDX-License-Identifier: GPL-2.0-only */
/* PV-IOMMU: build-time checks of the ABI. */

static void __init __maybe_unused build_assertions(void)
{
#define SIZE(s, n) BUILD_BUG_ON(sizeof(struct pv_iommu_ ## s) != (n))
#define FIELD(s, f, n) BUILD_BUG_ON(offsetof(struct pv_iommu_ ## s, f) != (n))

    SIZE(capabilities, 24);
    FIELD(capabilities, max_iova_addr, 0);
    FIELD(capabilities, cap_flags, 8);
    FIELD(capabilities, pgsize_mask, 12);
    FIELD(capabilities, max_pasid, 16);
    FIELD(capabilities, max_ctx_no, 20);

    SIZE(init, 8);
    FIELD(init, max_ctx_no, 0);
    FIELD(init, arena_order, 4);

    SIZE(alloc, 8);
    FIELD(alloc, ctx_no, 0);
    FIELD(alloc, pad, 2);
    FIELD(alloc, alloc_flags, 4);

    SIZE(free, 8);
    FIELD(free, ctx_no, 0);
    FIELD(free, free_flags, 4);

    SIZE(map_pages, 40);
    FIELD(map_pages, ctx_no, 0);
    FIELD(map_pages, gfn, 8);
    FIELD(map_pages, dfn, 16);
    FIELD(map_pages, map_flags, 24);
    FIELD(map_pages, pgsize, 28);
    FIELD(map_pages, nr_pages, 32);
    FIELD(map_pages, mapped, 36);

    SIZE(unmap_pages, 32);
    FIELD(unmap_pages, ctx_no, 0);
    FIELD(unmap_pages, dfn, 8);
    FIELD(unmap_pages, pgsize, 16);
    FIELD(unmap_pages, nr_pages, 20);
    FIELD(unmap_pages, unmapped, 24);
    FIELD(unmap_pages, unmap_flags, 28);

    SIZE(flush_pages, 24);
    FIELD(flush_pages, ctx_no, 0);
    FIELD(flush_pages, dfn, 8);
    FIELD(flush_pages, pgsize, 16);
    FIELD(flush_pages, nr_pages, 20);

    SIZE(reattach_device, 12);
    FIELD(reattach_device, ctx_no, 0);
    FIELD(reattach_device, dev, 2);
    FIELD(reattach_device, pasid, 8);

    SIZE(remote_cmd, 16);
    FIELD(remote_cmd, domid, 0);
    FIELD(remote_cmd, subop, 2);
    FIELD(remote_cmd, arg, 8);

    SIZE(alloc_nested, 32);
    FIELD(alloc_nested, ctx_no, 0);
    FIELD(alloc_nested, pgtable_gfn, 8);
    FIELD(alloc_nested, nested_flags, 16);
    FIELD(alloc_nested, desc_gfn, 24);

    SIZE(nested_format, 16);
    FIELD(nested_format, pgsize_mask, 0);
    FIELD(nested_format, flags, 8);
    FIELD(nested_format, input_bits, 12);
    FIELD(nested_format, output_bits, 13);

    SIZE(run, 24);
    FIELD(run, gfn, 0);
    FIELD(run, dfn, 8);
    FIELD(run, nr_frames, 16);

#undef FIELD
#undef SIZE
}

/*
 * Local variables:
 * mode: C
 * c-file-style: "BSD"
 * c-basic-offset: 4
 * indent-tabs-mode: nil
 * End:
 */
