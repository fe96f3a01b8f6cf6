/* SPDX-License-Identifier: GPL-2.0-only */
/* Grants: whose ends are held, at random and case by case; part of main.c. */

#define FIRST_GRANT 1100
#define NR_GRANTS 10

/* Mappings that the granter sees in use: live and held ones. */
static unsigned int pinned[NR_PAGES][2], held_ended;
/* The kind of the grant that is held, or -1. */
static int held[NR_PAGES];

static void grants_forget(void)
{
    memset(live, 0, sizeof(live));
    memset(pinned, 0, sizeof(pinned));
    memset(held, -1, sizeof(held));
}

/* The domain is dead: held grants have ended, live ones end later. */
static void grants_gone(void)
{
    assert(!memcmp(pinned, live, sizeof(pinned)));
}

static uint16_t part_of(bool write)
{
    return GNTMAP_host_map | (write ? 0 : GNTMAP_readonly);
}

static void gnttab_end_mapping(struct domain *ld, struct domain *rd,
                               grant_ref_t ref, mfn_t mfn, uint16_t flags)
{
    bool write = !(flags & GNTMAP_readonly);

    assert(ld == &dom0 && rd == &domU && ref == mfn_x(mfn) + 7);
    assert(flags == part_of(write));
    assert(!p2m_locks && !lock_depth);
    assert(pinned[mfn_x(mfn)][write]);
    pinned[mfn_x(mfn)][write]--;
    /* There is a grant for everything that devices can reach. */
    assert(pinned[mfn_x(mfn)][RW] || !tlb_has_frame(mfn_x(mfn), true));
    assert(pinned[mfn_x(mfn)][RW] || pinned[mfn_x(mfn)][RO] ||
           !tlb_has_frame(mfn_x(mfn), false));
    held_ended++;
}

/* Mappings of a frame by contexts. */
static void model_io(unsigned long gfn, unsigned long io[2])
{
    unsigned int c, i;

    io[RO] = io[RW] = 0;
    for ( c = 1; c <= NR_CTX; c++ )
        for ( i = 0; i < NR_DFN; i++ )
            if ( model[c].map[i].prot && model[c].map[i].gfn == gfn )
                io[!!(model[c].map[i].prot & IOMMU_MAP_writeable)]++;
}

/* Returns true if no live grant permits what contexts map. */
static bool model_needs(unsigned long gfn)
{
    unsigned long io[2];

    model_io(gfn, io);
    if ( io[RW] )
        return !live[gfn][RW];
    return io[RO] && !live[gfn][RO] && !live[gfn][RW];
}

/* Checks which grants are in use, after any change. */
static void check_grants(void)
{
    unsigned long gfn;
    int kind;

    for ( gfn = FIRST_GRANT; gfn < FIRST_GRANT + NR_GRANTS; gfn++ )
    {
        if ( held[gfn] >= 0 && !model_needs(gfn) )
            held[gfn] = -1;
        for ( kind = RO; kind <= RW; kind++ )
            assert(pinned[gfn][kind] == live[gfn][kind] + (held[gfn] == kind));
    }
}

static void grant_map(unsigned long gfn, bool write, bool fails)
{
    assert(pv_iommu_begin_grant(&dom0, _mfn(gfn), !write) == 1);
    if ( fails )
    {
        assert(!pv_iommu_end_grant(&dom0, &domU, gfn + 7, _mfn(gfn),
                                   write ? 0 : GNTMAP_readonly, true));
        return;
    }
    pinned[gfn][write]++;
    live[gfn][write]++;
    pv_iommu_grant_mapped(&dom0, _mfn(gfn));
}

static void grant_end(unsigned long gfn, bool write)
{
    unsigned long io[2];
    bool hold;

    live[gfn][write]--;
    model_io(gfn, io);
    hold = model_needs(gfn) && (write || !io[RW]) &&
           (held[gfn] < 0 || (held[gfn] == RO && write));
    if ( hold )
        held[gfn] = write;

    assert(pv_iommu_end_grant(&dom0, &domU, gfn + 7, _mfn(gfn), part_of(write),
                              true) == hold);
    if ( !hold )
        pinned[gfn][write]--;
}

static void random_grant(void)
{
    unsigned long gfn = FIRST_GRANT + rnd(NR_GRANTS);
    bool write = rnd(2);

    check_grants();
    if ( live[gfn][write] && rnd(3) )
        grant_end(gfn, write);
    else
        grant_map(gfn, write, !rnd(8));
}

/* Whether the owner sees the grant in use. */
#define in_use(gfn, kind) (check_grants(), pinned[gfn][kind])

static void io_map(unsigned int c, unsigned long dfn, unsigned long gfn,
                   unsigned int prot, long wanted)
{
    pv_iommu_map_pages_t op = {
        .ctx_no = c, .dfn = dfn, .gfn = gfn, .map_flags = prot,
        .pgsize = 4096, .nr_pages = 1,
    };

    assert(call(IOMMU_map_pages, &op) == wanted);
    if ( !wanted )
    {
        model[c].map[dfn].gfn = gfn;
        model[c].map[dfn].prot = prot;
        /* The device uses it. */
        assert(hw_walk(dom0.iommu.pv->ctx[c], dfn, true, NULL));
    }
}

static void io_unmap(unsigned int c, unsigned long dfn, unsigned int flags)
{
    pv_iommu_unmap_pages_t op = {
        .ctx_no = c, .dfn = dfn, .pgsize = 4096, .nr_pages = 1,
        .unmap_flags = flags,
    };

    assert(!call(IOMMU_unmap_pages, &op));
    model[c].map[dfn].prot = 0;
}

static void grant_cases(unsigned int c)
{
    const unsigned int rd = IOMMU_MAP_readable, wr = rd | IOMMU_MAP_writeable;
    /* P2M types: a writable grant, and a read-only one. */
    const unsigned long rw = 1102, ro = 1103, tbl = 1105;
    const bool pv = !dom0.translated;
    long allocs;
    int i;

    assert(p2m_type[rw] == p2m_grant_map_rw);
    assert(p2m_type[ro] == p2m_grant_map_ro);

    /* Two grants of a frame: only the end of the last one is held. */
    grant_map(rw, true, false);
    grant_map(rw, true, false);
    io_map(c, 0, rw, wr, 0);
    grant_end(rw, true);
    assert(in_use(rw, RW) == 1);
    allocs = xen_allocs;
    grant_end(rw, true);
    assert(in_use(rw, RW) == 1 && domU.refs == 1);
    /* However often others are mapped and end, one is held, without memory. */
    for ( i = 0; i < 1000; i++ )
    {
        grant_map(rw, true, false);
        assert(in_use(rw, RW) == 1 && !domU.refs);
        grant_end(rw, true);
    }
    assert(in_use(rw, RW) == 1 && domU.refs == 1 && xen_allocs == allocs);
    /* Not deferred, although the caller requests it. */
    io_unmap(c, 0, IOMMU_UNMAP_no_flush);
    assert(!in_use(rw, RW) && !domU.refs);

    /* A read-only grant does not permit what the writable one does. */
    grant_map(rw, true, false);
    grant_map(rw, false, false);
    io_map(c, 0, rw, wr, 0);
    grant_end(rw, true);
    assert(in_use(rw, RW) == 1 && in_use(rw, RO) == 1);
    /* In PV, only grants permit access. */
    io_map(c, 1, rw, wr, pv ? -EPERM : 0);
    grant_end(rw, false);
    assert(in_use(rw, RW) == 1 && !in_use(rw, RO));
    if ( !pv )
        io_unmap(c, 1, 0);
    io_unmap(c, 0, 0);
    assert(!in_use(rw, RW));

    /* Another grant releases it; what is left may need less. */
    grant_map(rw, false, false);
    io_map(c, 0, rw, rd, 0);
    grant_end(rw, false);
    assert(in_use(rw, RO) == 1);
    grant_map(rw, true, false);
    assert(!in_use(rw, RO));
    io_map(c, 1, rw, wr, 0);
    grant_end(rw, true);
    assert(in_use(rw, RW) == 1);
    io_unmap(c, 1, 0);
    assert(in_use(rw, RW) == 1);
    grant_map(rw, false, false);
    assert(!in_use(rw, RW));
    grant_end(rw, false);
    assert(in_use(rw, RO) == 1);
    io_unmap(c, 0, 0);
    assert(!in_use(rw, RO));

    /* Mapping a grant fails half-way, after devices have reached it. */
    io_map(c, 0, rw, rd, 0);
    assert(pv_iommu_begin_grant(&dom0, _mfn(rw), false) == 1);
    live[rw][RW]++;
    pinned[rw][RW]++;
    io_map(c, 1, rw, wr, 0);
    grant_end(rw, true);
    assert(in_use(rw, RW) == 1);
    io_unmap(c, 1, 0);
    io_unmap(c, 0, 0);
    assert(!in_use(rw, RW));

    /* A grant that was mapped before there were contexts. */
    pinned[rw][RW]++;
    io_map(c, 0, rw, wr, 0);
    assert(pv_iommu_end_grant(&dom0, &domU, rw + 7, _mfn(rw), part_of(true),
                              false));
    held[rw] = RW;
    assert(in_use(rw, RW) == 1);
    io_unmap(c, 0, 0);
    assert(!in_use(rw, RW));

    /* What is read-only for the domain is read-only for devices. */
    grant_map(ro, false, false);
    io_map(c, 0, ro, rd, 0);
    io_map(c, 1, ro, wr, -EPERM);
    io_unmap(c, 0, 0);
    grant_end(ro, false);
    assert(!in_use(ro, RO));

    /* A page table of the granter, which does not matter in external paging mode. */
    io_map(c, 0, tbl, wr, domU.translated ? 0 : -EPERM);
    if ( domU.translated )
        io_unmap(c, 0, 0);
    assert(frame_table[tbl].count == 1 && !frame_table[tbl].writable);

    /* Without memory, mapping the grant fails, but ending it cannot. */
    fail_after = 0;
    assert(pv_iommu_begin_grant(&dom0, _mfn(rw), false) == -ENOMEM);
    fail_after = ~0U;

    /* The mapping domain dies: its contexts go first, then what they held. */
    grant_map(rw, true, false);
    grant_map(ro, false, false);
    io_map(c, 0, rw, wr, 0);
    io_map(c, 1, rw, rd, 0);
    grant_end(rw, true);
    assert(in_use(rw, RW) == 1 && domU.refs == 1);
    /* tear_down() follows. */
}
