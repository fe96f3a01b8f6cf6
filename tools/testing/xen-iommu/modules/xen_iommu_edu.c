// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test of DMA translation with the DMA engine of QEMU's "edu" device
 *
 * A return code only tells what an IOMMU driver believes. Only DMA shows what a
 * device can reach, so every case here checks memory afterwards.
 *
 * The cases run when "<suite> [count]" is written to
 * <debugfs>/xen_iommu_edu/<PCI address>/run; the KTAP is then read from
 * "results" beside it:
 *
 *   dma           DMA API, in the device's default domain
 *   large         DMA API, large and many mappings
 *   iommu         IOMMU API, in paging domains of our own
 *   nested [n]    IOMMU API, with page tables in our memory: DMA that Xen must stop, and
 *                 n rounds of garbage in the tables
 *   hammer [n]    DMA at full speed against n rounds of map, unmap, reuse
 *   cycles [n]    allocate, map, attach, detach, unmap, free, n times
 *
 * A line "# blocked <read|write> <address>" reports DMA that the IOMMU had to
 * block, so that a script can look for the fault in the log.
 *
 * The device refuses a transfer of its whole 4096 byte buffer (QEMU up to 8.x even
 * exits), takes 100 ms for each, and truncates addresses to its dma_mask property, which
 * the parameter dma_bits has to match.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cleanup.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/iopoll.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/random.h>
#include <linux/scatterlist.h>
#include <linux/seq_buf.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <xen/xen.h>
#ifdef CONFIG_XEN
#include <xen/mem-reservation.h>
#include <xen/page.h>
#endif
#if IS_ENABLED(CONFIG_XEN) && IS_ENABLED(CONFIG_IOMMU_PT_X86_64)
#include <linux/generic_pt/iommu.h>
#define HAVE_PT
#endif

static unsigned int dma_bits = 28;
module_param(dma_bits, uint, 0444);
MODULE_PARM_DESC(dma_bits, "Address bits of the device's dma_mask property (default: 28)");

#define EDU_ID			0x00
#define EDU_ID_VALUE		0x010000ed
#define EDU_LIVE		0x04
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_SRC		0x80
#define EDU_DMA_DST		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_CMD		0x98
#define EDU_DMA_START		BIT(0)
#define EDU_DMA_TO_RAM		BIT(1)
#define EDU_DMA_IRQ		BIT(2)

/* The device's buffer, in the device's own address space. */
#define EDU_BUFFER		0x40000

#define XFER			2048	/* bytes per transfer */

/*
 * A refused transfer faults once per byte on QEMU, and Xen takes bus mastering
 * away from a device that faults ten times in a row.
 */
#define XFER_BLOCKED		4

#define CANARY			0xc5
#define SECRET			0x3c

#define RESULTS_SIZE		SZ_64K

struct edu {
	struct pci_dev *pdev;
	void __iomem *regs;
	struct dentry *dir;
	struct mutex lock;		/* one suite at a time; guards log */
	struct seq_buf log;
	struct completion irq;
};

#define NR_PAGES	32
#define NR_MAPS		32

/* State of a case; the runner cleans up what it leaves. */
struct edu_test {
	struct edu *edu;
	struct device *dev;
	struct iommu_domain *domain;	/* attached, in the suite "iommu" */
	unsigned long iova;		/* of the area where the case may map */
	unsigned long step;		/* to the next case's iova */
	struct page *src;		/* holds the pattern, mapped read-only */
	struct {
		struct page *page;
		unsigned int order;
	} pages[NR_PAGES];
	struct {
		struct iommu_domain *domain;
		unsigned long iova;
		size_t size;
	} maps[NR_MAPS];
	unsigned int nr_pages, nr_maps;
	unsigned long count;
	const char *skip;
};

struct edu_case {
	const char *name;
	int (*run)(struct edu_test *t);
};

/* Offset of a case's source page; the case may use the addresses below. */
#define SRC_OFFSET	SZ_64M

/* Distance between cases, so that a logged fault has a unique origin. */
#define CASE_STEP	SZ_256M

#define note(t, fmt, ...) \
	seq_buf_printf(&(t)->edu->log, "    # " fmt "\n", ##__VA_ARGS__)

#define expect(t, cond, fmt, ...)						\
do {										\
	if (!(cond)) {								\
		note(t, "line %d, %s: " fmt, __LINE__, #cond, ##__VA_ARGS__);	\
		return -EINVAL;							\
	}									\
} while (0)

/* Like expect(), for a call that returns 0 or an error. */
#define must(t, call)								\
do {										\
	int must_err = (call);							\
										\
	if (must_err) {								\
		note(t, "line %d, %s: %d", __LINE__, #call, must_err);		\
		return must_err;						\
	}									\
} while (0)

#define skip(t, why)								\
do {										\
	(t)->skip = why;							\
	return 0;								\
} while (0)

/*
 * The device
 */

static void edu_start(struct edu *edu, u64 src, u64 dst, u32 len, u32 cmd)
{
	writeq(src, edu->regs + EDU_DMA_SRC);
	writeq(dst, edu->regs + EDU_DMA_DST);
	writeq(len, edu->regs + EDU_DMA_COUNT);
	/* Order the CPU's stores to the buffers before the device's reads. */
	wmb();
	writeq(cmd | EDU_DMA_START, edu->regs + EDU_DMA_CMD);
}

static int edu_wait(struct edu *edu)
{
	u64 cmd;

	return readq_poll_timeout(edu->regs + EDU_DMA_CMD, cmd, !(cmd & EDU_DMA_START),
				  1000, 10 * USEC_PER_SEC);
}

/* Copies memory to the device's buffer. */
static int edu_fetch(struct edu *edu, dma_addr_t from, u32 len)
{
	edu_start(edu, from, EDU_BUFFER, len, 0);
	return edu_wait(edu);
}

/* Copies the device's buffer to memory. */
static int edu_store(struct edu *edu, dma_addr_t to, u32 len)
{
	edu_start(edu, EDU_BUFFER, to, len, EDU_DMA_TO_RAM);
	return edu_wait(edu);
}

/* After blocked DMA, restores bus mastering, which Xen may have turned off. */
static void edu_after_fault(struct edu_test *t)
{
	u16 cmd;

	/* QEMU's VT-d drops faults until the previous one has been handled. */
	msleep(100);
	pci_read_config_word(t->edu->pdev, PCI_COMMAND, &cmd);
	if (cmd & PCI_COMMAND_MASTER)
		return;
	note(t, "bus mastering was taken from the device, giving it back");
	pci_write_config_word(t->edu->pdev, PCI_COMMAND, cmd | PCI_COMMAND_MASTER);
}

static irqreturn_t edu_irq(int irq, void *data)
{
	struct edu *edu = data;
	u32 status = readl(edu->regs + EDU_IRQ_STATUS);

	if (!status)
		return IRQ_NONE;
	writel(status, edu->regs + EDU_IRQ_ACK);
	complete(&edu->irq);
	return IRQ_HANDLED;
}

/*
 * Memory
 */

static struct page *test_pages(struct edu_test *t, unsigned int order)
{
	struct page *page;

	if (t->nr_pages == NR_PAGES)
		return NULL;
	page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_COMP | __GFP_NOWARN, order);
	if (!page)
		return NULL;
	t->pages[t->nr_pages].page = page;
	t->pages[t->nr_pages++].order = order;
	return page;
}

static struct page *test_page(struct edu_test *t)
{
	return test_pages(t, 0);
}

static void fill(struct page *page, u8 value)
{
	memset(page_address(page), value, PAGE_SIZE);
	/* Make it visible to the device before the transfer that must not change it. */
	mb();
}

static bool filled(struct page *page, u8 value)
{
	return !memchr_inv(page_address(page), value, PAGE_SIZE);
}

/* Returns true if the source's pattern has arrived there. */
static bool holds_pattern(struct edu_test *t, struct page *page, size_t offset, size_t len)
{
	return !memcmp(page_address(page) + offset, page_address(t->src), len);
}

static void new_pattern(struct edu_test *t)
{
	get_random_bytes(page_address(t->src), PAGE_SIZE);
	/* Make it visible to the device before it fetches. */
	mb();
}

/*
 * Returns the bus address that would reach a page without translation, or if the
 * device were still in Xen's default context.
 */
static phys_addr_t untranslated(struct page *page)
{
#ifdef CONFIG_XEN
	if (xen_pv_domain())
		return PFN_PHYS(pfn_to_mfn(page_to_pfn(page)));
#endif
	return page_to_phys(page);
}

static bool device_reaches(u64 address)
{
	return dma_bits >= 64 || !(address >> dma_bits);
}

/*
 * Mappings
 */

static int test_map_in(struct edu_test *t, struct iommu_domain *domain, unsigned long iova,
		       phys_addr_t phys, size_t size, int prot)
{
	int ret;

	if (t->nr_maps == NR_MAPS)
		return -ENOSPC;
	ret = iommu_map(domain, iova, phys, size, prot, GFP_KERNEL);
	if (ret)
		return ret;
	t->maps[t->nr_maps].domain = domain;
	t->maps[t->nr_maps].iova = iova;
	t->maps[t->nr_maps++].size = size;
	return 0;
}

static int test_map(struct edu_test *t, unsigned long iova, struct page *page, size_t size,
		    int prot)
{
	return test_map_in(t, t->domain, iova, page_to_phys(page), size, prot);
}

#define RW (IOMMU_READ | IOMMU_WRITE)

/* Unmaps what is left of the case's mappings; skips holes, which return 0. */
static void test_unmap_all(struct edu_test *t)
{
	for (; t->nr_maps; t->nr_maps--) {
		unsigned long iova = t->maps[t->nr_maps - 1].iova;
		unsigned long end = iova + t->maps[t->nr_maps - 1].size;

		while (iova < end) {
			size_t size = iommu_unmap(t->maps[t->nr_maps - 1].domain, iova, end - iova);

			iova += size ?: PAGE_SIZE;
		}
	}
}

static void forget_maps(struct edu_test *t, struct iommu_domain *domain)
{
	unsigned int kept = 0;

	for (unsigned int i = 0; i < t->nr_maps; i++)
		if (t->maps[i].domain != domain)
			t->maps[kept++] = t->maps[i];
	t->nr_maps = kept;
}

static struct iommu_domain *new_domain(struct edu_test *t)
{
	return iommu_paging_domain_alloc(t->dev);
}

static int attach(struct edu_test *t, struct iommu_domain *domain)
{
	struct iommu_group *group = iommu_group_get(t->dev);
	int ret;

	if (!group)
		return -ENODEV;
	ret = iommu_attach_group(domain, group);
	iommu_group_put(group);
	return ret;
}

static void detach(struct edu_test *t, struct iommu_domain *domain)
{
	struct iommu_group *group = iommu_group_get(t->dev);

	if (group)
		iommu_detach_group(domain, group);
	iommu_group_put(group);
}

/* Loads a new pattern into the device's buffer by the read-only mapping. */
static int load_pattern(struct edu_test *t)
{
	new_pattern(t);
	return edu_fetch(t->edu, t->iova + SRC_OFFSET, XFER);
}

/* Checks that DMA to a mapped iova arrives at the page and nowhere else. */
static int arrives(struct edu_test *t, unsigned long iova, struct page *page, size_t offset)
{
	must(t, load_pattern(t));
	must(t, edu_store(t->edu, iova, XFER));
	expect(t, holds_pattern(t, page, offset, XFER), "iova %#lx, phys %pa", iova,
	       &(phys_addr_t){ page_to_phys(page) });
	return 0;
}

/*
 * Checks that DMA to this address, which must be blocked, does not change the page.
 * QEMU's VT-d blocks, but does not report a fault, if its IOTLB has the address with
 * other permissions: do not check the log then.
 */
static int write_blocked_quietly(struct edu_test *t, u64 address, struct page *page)
{
	fill(page, CANARY);
	must(t, edu_store(t->edu, address, XFER_BLOCKED));
	edu_after_fault(t);
	expect(t, filled(page, CANARY), "address %#llx reached memory", address);
	return 0;
}

static int write_blocked(struct edu_test *t, u64 address, struct page *page)
{
	note(t, "blocked write %#llx", address);
	return write_blocked_quietly(t, address, page);
}

/*
 * Checks that a read that must be blocked does not get any of the page: looks at what the
 * device has afterwards, through a mapping that works.
 */
static int read_blocked_quietly(struct edu_test *t, u64 address, struct page *secret,
				unsigned long out_iova, struct page *out)
{
	must(t, load_pattern(t));
	fill(secret, SECRET);
	fill(out, CANARY);
	must(t, edu_fetch(t->edu, address, XFER_BLOCKED));
	edu_after_fault(t);
	must(t, edu_store(t->edu, out_iova, XFER));
	expect(t, memchr_inv(page_address(out), SECRET, XFER_BLOCKED),
	       "address %#llx was read", address);
	expect(t, !memcmp(page_address(out) + XFER_BLOCKED, page_address(t->src) + XFER_BLOCKED,
			  XFER - XFER_BLOCKED), "the control transfer did not arrive");
	return 0;
}

static int read_blocked(struct edu_test *t, u64 address, struct page *secret,
			unsigned long out_iova, struct page *out)
{
	note(t, "blocked read %#llx", address);
	return read_blocked_quietly(t, address, secret, out_iova, out);
}

/*
 * DMA API
 */

/* Returns the type of the default domain, or 0 without an IOMMU driver. */
static unsigned int default_type(struct edu_test *t)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(t->dev);

	return domain ? domain->type : 0;
}

static bool is_translated(struct edu_test *t)
{
	return default_type(t) & __IOMMU_DOMAIN_DMA_API;
}

/* Checks that a bus address of the DMA API fits the expected translation. */
static int check_bus_address(struct edu_test *t, const char *what, dma_addr_t bus,
			     struct page *page)
{
	phys_addr_t phys = page_to_phys(page), direct = untranslated(page);

	note(t, "%s: bus %pad, physical %pa%s", what, &bus, &phys,
	     is_translated(t) ? ": translated" : bus == phys ? "" : ": machine address");
	if (is_translated(t))
		expect(t, bus != phys && bus != direct, "bus address is not translated");
	else
		expect(t, bus == direct, "bus address is not %pa", &direct);
	return 0;
}

static int dma_device_answers(struct edu_test *t)
{
	u32 id = readl(t->edu->regs), live = get_random_u32();

	expect(t, (id & 0xff0000ff) == (EDU_ID_VALUE & 0xff0000ff), "id %#x", id);
	writel(live, t->edu->regs + EDU_LIVE);
	expect(t, readl(t->edu->regs + EDU_LIVE) == ~live, "not the inverse of %#x", live);
	note(t, "default domain type %#x, %u address bits", default_type(t), dma_bits);
	return 0;
}

static struct page *coherent_page(void *cpu)
{
	return is_vmalloc_addr(cpu) ? vmalloc_to_page(cpu) : virt_to_page(cpu);
}

static int dma_coherent(struct edu_test *t)
{
	dma_addr_t from, to;
	void *src, *dst;
	int ret = -ENOMEM;

	src = dma_alloc_coherent(t->dev, PAGE_SIZE, &from, GFP_KERNEL);
	dst = dma_alloc_coherent(t->dev, PAGE_SIZE, &to, GFP_KERNEL);
	if (src && dst) {
		get_random_bytes(src, PAGE_SIZE);
		ret = edu_fetch(t->edu, from, XFER) ?: edu_store(t->edu, to, XFER);
		if (!ret && memcmp(src, dst, XFER)) {
			note(t, "data did not arrive");
			ret = -EIO;
		}
		ret = ret ?: check_bus_address(t, "from", from, coherent_page(src)) ?:
			     check_bus_address(t, "to", to, coherent_page(dst));
	}
	if (dst)
		dma_free_coherent(t->dev, PAGE_SIZE, dst, to);
	if (src)
		dma_free_coherent(t->dev, PAGE_SIZE, src, from);
	return ret;
}

/* Sends the source page to this address, by a streaming mapping. */
static int dma_send(struct edu_test *t, dma_addr_t to, u32 len)
{
	dma_addr_t from;
	int ret;

	new_pattern(t);
	from = dma_map_page(t->dev, t->src, 0, PAGE_SIZE, DMA_TO_DEVICE);
	if (dma_mapping_error(t->dev, from))
		return -EIO;
	ret = edu_fetch(t->edu, from, XFER);
	dma_unmap_page(t->dev, from, PAGE_SIZE, DMA_TO_DEVICE);
	return ret ?: edu_store(t->edu, to, len);
}

static int dma_streaming(struct edu_test *t)
{
	struct page *dst = test_page(t);
	dma_addr_t to;
	int ret;

	expect(t, dst, "no memory");
	to = dma_map_page(t->dev, dst, 0, PAGE_SIZE, DMA_FROM_DEVICE);
	expect(t, !dma_mapping_error(t->dev, to), "not mapped");
	ret = check_bus_address(t, "streaming", to, dst) ?: dma_send(t, to + 512, XFER);
	dma_unmap_page(t->dev, to, PAGE_SIZE, DMA_FROM_DEVICE);
	must(t, ret);
	expect(t, holds_pattern(t, dst, 512, XFER), "data did not arrive");
	return 0;
}

/* A mapping of 64 KiB is contiguous on the bus, wherever its frames are. */
static int dma_streaming_64k(struct edu_test *t)
{
	const size_t offsets[] = { 0, 3 * PAGE_SIZE - XFER / 2, SZ_64K - XFER };
	struct page *dst = test_pages(t, 4);
	int ret = 0;

	expect(t, dst, "no memory");
	for (unsigned int i = 0; !ret && i < ARRAY_SIZE(offsets); i++) {
		dma_addr_t to = dma_map_page(t->dev, dst, 0, SZ_64K, DMA_FROM_DEVICE);

		expect(t, !dma_mapping_error(t->dev, to), "not mapped");
		ret = dma_send(t, to + offsets[i], XFER);
		dma_unmap_page(t->dev, to, SZ_64K, DMA_FROM_DEVICE);
		if (!ret && !holds_pattern(t, dst, offsets[i], XFER)) {
			note(t, "nothing arrived at %#zx", offsets[i]);
			ret = -EIO;
		}
	}
	return ret;
}

static int dma_sg(struct edu_test *t)
{
	struct scatterlist sgl[8], *sg;
	struct page *pages[8];
	unsigned long total = 0;
	int nents, i, ret = 0;

	sg_init_table(sgl, ARRAY_SIZE(sgl));
	for (i = 0; i < ARRAY_SIZE(sgl); i++) {
		pages[i] = test_page(t);
		expect(t, pages[i], "no memory");
	}
	/* In reverse order, so that no two entries are contiguous. */
	for_each_sg(sgl, sg, ARRAY_SIZE(sgl), i)
		sg_set_page(sg, pages[ARRAY_SIZE(sgl) - 1 - i], PAGE_SIZE, 0);

	nents = dma_map_sg(t->dev, sgl, ARRAY_SIZE(sgl), DMA_FROM_DEVICE);
	expect(t, nents > 0, "not mapped");
	new_pattern(t);
	for_each_sg(sgl, sg, nents, i) {
		for (u32 done = 0; !ret && done < sg_dma_len(sg); done += PAGE_SIZE) {
			dma_addr_t from = dma_map_page(t->dev, t->src, 0, PAGE_SIZE, DMA_TO_DEVICE);

			ret = dma_mapping_error(t->dev, from);
			if (ret)
				break;
			ret = edu_fetch(t->edu, from, XFER) ?:
			      edu_store(t->edu, sg_dma_address(sg) + done, XFER);
			dma_unmap_page(t->dev, from, PAGE_SIZE, DMA_TO_DEVICE);
		}
		total += sg_dma_len(sg);
	}
	dma_unmap_sg(t->dev, sgl, ARRAY_SIZE(sgl), DMA_FROM_DEVICE);
	must(t, ret);
	expect(t, total == ARRAY_SIZE(sgl) * PAGE_SIZE, "%lu bytes", total);
	for (i = 0; i < ARRAY_SIZE(sgl); i++)
		expect(t, holds_pattern(t, pages[i], 0, XFER), "nothing arrived in page %d", i);
	note(t, "%zu pages, %d pieces on the bus", ARRAY_SIZE(sgl), nents);
	return 0;
}

static int dma_unmapped_is_blocked(struct edu_test *t)
{
	struct page *dst = test_page(t);
	dma_addr_t to;
	int ret;

	if (!is_translated(t))
		skip(t, "the DMA API does not translate here");
	if (default_type(t) == IOMMU_DOMAIN_DMA_FQ)
		skip(t, "a flush queue lets the device in for a while");
	expect(t, dst, "no memory");
	to = dma_map_page(t->dev, dst, 0, PAGE_SIZE, DMA_FROM_DEVICE);
	expect(t, !dma_mapping_error(t->dev, to), "not mapped");
	/* Bring the translation into the IOTLB. */
	ret = dma_send(t, to, XFER);
	dma_unmap_page(t->dev, to, PAGE_SIZE, DMA_FROM_DEVICE);
	must(t, ret);
	expect(t, holds_pattern(t, dst, 0, XFER), "data did not arrive");
	return write_blocked(t, to, dst);
}

/* Not identity: the physical address must be blocked. */
static int dma_physical_is_blocked(struct edu_test *t)
{
	struct page *page = test_page(t);

	if (!is_translated(t))
		skip(t, "the DMA API does not translate here");
	expect(t, page, "no memory");
	if (!device_reaches(untranslated(page)))
		skip(t, "beyond the device's dma_mask");
	return write_blocked(t, untranslated(page), page);
}

static int interrupt_arrives(struct edu_test *t, dma_addr_t from)
{
	reinit_completion(&t->edu->irq);
	edu_start(t->edu, from, EDU_BUFFER, XFER, EDU_DMA_IRQ);
	must(t, edu_wait(t->edu));
	expect(t, wait_for_completion_timeout(&t->edu->irq, 2 * HZ), "no interrupt");
	return 0;
}

static int dma_msi(struct edu_test *t)
{
	dma_addr_t from = dma_map_page(t->dev, t->src, 0, PAGE_SIZE, DMA_TO_DEVICE);
	int ret;

	expect(t, !dma_mapping_error(t->dev, from), "not mapped");
	ret = interrupt_arrives(t, from);
	dma_unmap_page(t->dev, from, PAGE_SIZE, DMA_TO_DEVICE);
	return ret;
}

static const struct edu_case dma_cases[] = {
	{ "device_answers", dma_device_answers },
	{ "coherent", dma_coherent },
	{ "streaming", dma_streaming },
	{ "streaming_64k", dma_streaming_64k },
	{ "scatter_gather", dma_sg },
	{ "unmapped_is_blocked", dma_unmapped_is_blocked },
	{ "physical_address_is_blocked", dma_physical_is_blocked },
	{ "msi_arrives", dma_msi },
	{ }
};

/*
 * The DMA API, large and many mappings
 */

/* Data arrives at the end of a buffer, and is visible before the unmap. */
static int large_single(struct edu_test *t)
{
	if (!is_translated(t))
		skip(t, "xen-swiotlb has no buffers of 1 MiB and more");

	for (unsigned int order = 0; order <= 10; order += 2) {
		size_t size = PAGE_SIZE << order, end = size - XFER;
		struct page *dst = test_pages(t, order);
		bool early, late;
		dma_addr_t to;
		int ret;

		expect(t, dst, "no memory for %zu bytes", size);
		to = dma_map_page(t->dev, dst, 0, size, DMA_FROM_DEVICE);
		expect(t, !dma_mapping_error(t->dev, to), "%zu bytes are not mapped", size);
		ret = dma_send(t, to + end, XFER);
		early = holds_pattern(t, dst, end, XFER);
		dma_unmap_page(t->dev, to, size, DMA_FROM_DEVICE);
		late = holds_pattern(t, dst, end, XFER);
		must(t, ret);
		expect(t, early && late, "%zu bytes: arrived before unmap %d, after %d", size,
		       early, late);
	}
	return 0;
}

#define LARGE_LIST	1024

static int large_list_of(struct edu_test *t, struct page **pages)
{
	const unsigned int last = LARGE_LIST - 1;
	struct sg_table table;
	struct scatterlist *sg;
	dma_addr_t end = 0;
	int ret, i;

	must(t, sg_alloc_table_from_pages(&table, pages, LARGE_LIST, 0,
					  (size_t)LARGE_LIST << PAGE_SHIFT, GFP_KERNEL));
	ret = dma_map_sgtable(t->dev, &table, DMA_FROM_DEVICE, 0);
	if (ret)
		goto out;
	for_each_sgtable_dma_sg(&table, sg, i)
		end = sg_dma_address(sg) + sg_dma_len(sg);
	note(t, "%u pages in %u pieces, %u on the bus", LARGE_LIST, table.orig_nents, table.nents);
	ret = dma_send(t, sg_dma_address(table.sgl), XFER) ?:
	      edu_store(t->edu, end - XFER, XFER);
	dma_unmap_sgtable(t->dev, &table, DMA_FROM_DEVICE, 0);
out:
	sg_free_table(&table);
	must(t, ret);
	expect(t, holds_pattern(t, pages[0], 0, XFER), "nothing arrived at the beginning");
	expect(t, holds_pattern(t, pages[last], PAGE_SIZE - XFER, XFER),
	       "nothing arrived at the end");
	return 0;
}

static int large_list(struct edu_test *t)
{
	struct page **pages;
	int ret = 0, nr;

	if (!is_translated(t))
		skip(t, "xen-swiotlb has no buffers of 1 MiB and more");
	pages = kvcalloc(LARGE_LIST, sizeof(*pages), GFP_KERNEL);
	expect(t, pages, "no memory");
	for (nr = 0; nr < LARGE_LIST && !ret; nr++) {
		pages[nr] = alloc_page(GFP_KERNEL);
		ret = pages[nr] ? 0 : -ENOMEM;
	}
	ret = ret ?: large_list_of(t, pages);
	while (nr--)
		if (pages[nr])
			__free_page(pages[nr]);
	kvfree(pages);
	return ret;
}

static int large_coherent(struct edu_test *t)
{
	if (!is_translated(t))
		skip(t, "nothing makes memory contiguous for the device");

	for (size_t size = SZ_1M; size <= SZ_16M; size *= 4) {
		dma_addr_t to;
		void *dst = dma_alloc_coherent(t->dev, size, &to, GFP_KERNEL);
		bool arrived;
		int ret;

		expect(t, dst, "no %zu bytes", size);
		ret = dma_send(t, to + size - XFER, XFER);
		arrived = !memcmp(dst + size - XFER, page_address(t->src), XFER);
		dma_free_coherent(t->dev, size, dst, to);
		must(t, ret);
		expect(t, arrived, "%zu bytes: nothing arrived at the end", size);
	}
	return 0;
}

/* A device with few address bits uses up its addresses, twice. */
#define NARROW_BITS	24
#define NARROW_MAX	(1U << (NARROW_BITS - PAGE_SHIFT))

static int narrow_round(struct edu_test *t, dma_addr_t *bus, struct page *dst)
{
	dma_addr_t highest = 0;
	int nr, ret;

	for (nr = 0; nr < NARROW_MAX; nr++) {
		bus[nr] = dma_map_page_attrs(t->dev, dst, 0, PAGE_SIZE, DMA_FROM_DEVICE,
					     DMA_ATTR_NO_WARN);
		if (dma_mapping_error(t->dev, bus[nr]))
			break;
		highest = max(highest, bus[nr]);
		if (!(nr % 256))
			cond_resched();
	}
	fill(dst, CANARY);
	/* No address is left for the source, but the device has its data already. */
	ret = nr ? edu_store(t->edu, bus[nr - 1], XFER) : -ENOSPC;
	for (int i = 0; i < nr; i++)
		dma_unmap_page(t->dev, bus[i], PAGE_SIZE, DMA_FROM_DEVICE);
	note(t, "%d of %u pages mapped, the highest at %pad", nr, NARROW_MAX, &highest);
	must(t, ret);
	expect(t, nr > NARROW_MAX / 2, "only %d mappings", nr);
	expect(t, highest <= DMA_BIT_MASK(NARROW_BITS), "beyond the mask");
	expect(t, holds_pattern(t, dst, 0, XFER), "nothing arrived");
	return 0;
}

static int large_narrow(struct edu_test *t)
{
	u64 mask = dma_get_mask(t->dev);
	struct page *dst = test_page(t);
	dma_addr_t *bus, from;
	int ret;

	if (!is_translated(t))
		skip(t, "the DMA API does not translate here");
	bus = vmalloc_array(NARROW_MAX, sizeof(*bus));
	ret = bus && dst ? 0 : -ENOMEM;
	new_pattern(t);
	from = dma_map_page(t->dev, t->src, 0, PAGE_SIZE, DMA_TO_DEVICE);
	if (dma_mapping_error(t->dev, from)) {
		vfree(bus);
		return -EIO;
	}
	ret = ret ?: edu_fetch(t->edu, from, XFER);
	dma_unmap_page(t->dev, from, PAGE_SIZE, DMA_TO_DEVICE);
	ret = ret ?: dma_set_mask(t->dev, DMA_BIT_MASK(NARROW_BITS));
	for (int i = 0; i < 2 && !ret; i++) {
		ret = narrow_round(t, bus, dst);
		/* A flush queue frees addresses later. */
		msleep(100);
	}
	dma_set_mask(t->dev, mask);
	vfree(bus);
	return ret;
}

static const struct edu_case large_cases[] = {
	{ "single", large_single },
	{ "list", large_list },
	{ "coherent", large_coherent },
	{ "narrow_mask", large_narrow },
	{ }
};

/*
 * IOMMU API
 */

static int iommu_mapped(struct edu_test *t)
{
	struct page *dst = test_page(t);

	expect(t, dst, "no memory");
	expect(t, !iommu_iova_to_phys(t->domain, t->iova), "phys of a hole");
	must(t, test_map(t, t->iova, dst, PAGE_SIZE, RW));
	expect(t, iommu_iova_to_phys(t->domain, t->iova + 0x123) == page_to_phys(dst) + 0x123,
	       "phys");
	return arrives(t, t->iova + 1024, dst, 1024);
}

static int iommu_unmapped_write(struct edu_test *t)
{
	struct page *dst = test_page(t), *canary = test_page(t);

	expect(t, dst && canary, "no memory");
	must(t, test_map(t, t->iova, dst, PAGE_SIZE, RW));
	must(t, arrives(t, t->iova, dst, 0));
	fill(dst, CANARY);
	must(t, write_blocked(t, t->iova + PAGE_SIZE, canary));
	expect(t, filled(dst, CANARY), "the neighbour changed");
	must(t, write_blocked(t, t->iova - PAGE_SIZE, canary));
	expect(t, filled(dst, CANARY), "the neighbour changed");
	if (!device_reaches(untranslated(canary)))
		skip(t, "a canary's own address is beyond the device's dma_mask");
	return write_blocked(t, untranslated(canary), canary);
}

static int iommu_unmapped_read(struct edu_test *t)
{
	struct page *out = test_page(t), *secret = test_page(t);

	expect(t, out && secret, "no memory");
	must(t, test_map(t, t->iova, out, PAGE_SIZE, RW));
	must(t, test_map(t, t->iova + SZ_1M, secret, PAGE_SIZE, IOMMU_READ));
	must(t, edu_fetch(t->edu, t->iova + SZ_1M, XFER));
	expect(t, iommu_unmap(t->domain, t->iova + SZ_1M, PAGE_SIZE) == PAGE_SIZE, "unmap");
	must(t, read_blocked(t, t->iova + SZ_1M, secret, t->iova, out));
	if (!device_reaches(untranslated(secret)))
		skip(t, "a canary's own address is beyond the device's dma_mask");
	return read_blocked(t, untranslated(secret), secret, t->iova, out);
}

static int iommu_read_only(struct edu_test *t)
{
	struct page *page = test_page(t);

	expect(t, page, "no memory");
	must(t, test_map(t, t->iova, page, PAGE_SIZE, IOMMU_READ));
	must(t, write_blocked(t, t->iova, page));
	/* Again, after a read has brought the translation into the IOTLB. */
	must(t, edu_fetch(t->edu, t->iova, XFER));
	return write_blocked_quietly(t, t->iova, page);
}

/* Returns the page table of a nested domain, or NULL. */
static u64 *nested_root(struct iommu_domain *domain)
{
#ifdef HAVE_PT
	struct pt_iommu *pt = iommupt_from_domain(domain);
	struct pt_iommu_x86_64_hw_info info;

	if (pt) {
		pt_iommu_x86_64_hw_info(container_of(pt, struct pt_iommu_x86_64, iommu), &info);
		return phys_to_virt(info.gcr3_pt);
	}
#endif
	return NULL;
}

static int iommu_write_only(struct edu_test *t)
{
	struct page *page = test_page(t), *out = test_page(t);

	expect(t, page && out, "no memory");
	if (nested_root(t->domain))
		skip(t, "in this format what can be written can be read");
	must(t, test_map(t, t->iova, page, PAGE_SIZE, IOMMU_WRITE));
	must(t, test_map(t, t->iova + PAGE_SIZE, out, PAGE_SIZE, RW));
	must(t, read_blocked(t, t->iova, page, t->iova + PAGE_SIZE, out));
	must(t, arrives(t, t->iova, page, 0));
	return read_blocked_quietly(t, t->iova, page, t->iova + PAGE_SIZE, out);
}

static int iommu_unmap_flushes(struct edu_test *t)
{
	struct page *page = test_page(t), *out = test_page(t);
	phys_addr_t phys;

	expect(t, page && out, "no memory");
	must(t, test_map(t, t->iova + PAGE_SIZE, out, PAGE_SIZE, RW));
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	must(t, arrives(t, t->iova, page, 0));
	expect(t, iommu_unmap(t->domain, t->iova, PAGE_SIZE) == PAGE_SIZE, "unmap");
	phys = iommu_iova_to_phys(t->domain, t->iova);
	expect(t, !phys, "phys %pa after unmap", &phys);
	must(t, write_blocked(t, t->iova, page));
	return read_blocked(t, t->iova, page, t->iova + PAGE_SIZE, out);
}

static int iommu_remap(struct edu_test *t)
{
	struct page *a = test_page(t), *b = test_page(t);

	expect(t, a && b, "no memory");
	must(t, test_map(t, t->iova, a, PAGE_SIZE, RW));
	must(t, arrives(t, t->iova, a, 0));
	expect(t, iommu_unmap(t->domain, t->iova, PAGE_SIZE) == PAGE_SIZE, "unmap");
	must(t, test_map(t, t->iova, b, PAGE_SIZE, RW));
	fill(a, CANARY);
	must(t, arrives(t, t->iova, b, 0));
	expect(t, filled(a, CANARY), "the old page was written to");
	expect(t, iommu_iova_to_phys(t->domain, t->iova) == page_to_phys(b), "phys");
	return 0;
}

static int iommu_map_over(struct edu_test *t)
{
	struct page *a = test_page(t), *b = test_pages(t, 1);
	int err;

	expect(t, a && b, "no memory");
	must(t, test_map(t, t->iova, a, PAGE_SIZE, RW));
	err = iommu_map(t->domain, t->iova, page_to_phys(b), PAGE_SIZE, RW, GFP_KERNEL);
	expect(t, err < 0, "mapped over a mapping: %d", err);
	/* A run whose second page is already mapped leaves nothing behind. */
	err = iommu_map(t->domain, t->iova - PAGE_SIZE, page_to_phys(b), 2 * PAGE_SIZE, RW,
			GFP_KERNEL);
	expect(t, err < 0, "mapped over a mapping: %d", err);
	note(t, "refused with %d", err);
	expect(t, iommu_iova_to_phys(t->domain, t->iova) == page_to_phys(a), "phys");
	expect(t, !iommu_iova_to_phys(t->domain, t->iova - PAGE_SIZE), "phys of a hole");
	must(t, write_blocked(t, t->iova - PAGE_SIZE, b));
	must(t, arrives(t, t->iova, a, 0));
	expect(t, filled(b, CANARY), "the refused page was written to");
	return 0;
}

static int iommu_unmap_hole(struct edu_test *t)
{
	struct page *page = test_page(t);
	size_t size;

	expect(t, page, "no memory");
	size = iommu_unmap(t->domain, t->iova, SZ_2M);
	expect(t, !size, "unmapped %zu bytes of nothing", size);
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	return arrives(t, t->iova, page, 0);
}

static int iommu_scattered(struct edu_test *t)
{
	struct page *pages[16];
	const int nr = ARRAY_SIZE(pages);
	size_t size;
	int i;

	for (i = nr - 1; i >= 0; i--) {
		pages[i] = test_page(t);
		expect(t, pages[i], "no memory");
	}
	for (i = 0; i < nr; i++)
		must(t, test_map(t, t->iova + i * PAGE_SIZE, pages[i], PAGE_SIZE, RW));
	for (i = 0; i < nr; i++)
		expect(t, iommu_iova_to_phys(t->domain, t->iova + i * PAGE_SIZE) ==
		       page_to_phys(pages[i]), "phys of page %d", i);
	/* Each transfer is half in one page and half in the next. */
	for (i = 0; i < nr - 1; i++) {
		must(t, load_pattern(t));
		must(t, edu_store(t->edu, t->iova + (i + 1) * PAGE_SIZE - XFER / 2, XFER));
		expect(t, holds_pattern(t, pages[i], PAGE_SIZE - XFER / 2, XFER / 2), "page %d", i);
		expect(t, !memcmp(page_address(pages[i + 1]), page_address(t->src) + XFER / 2,
				  XFER / 2), "page %d", i + 1);
	}
	size = iommu_unmap(t->domain, t->iova, nr * PAGE_SIZE);
	expect(t, size == nr * PAGE_SIZE, "unmapped %zu bytes", size);
	must(t, write_blocked(t, t->iova, pages[0]));
	must(t, write_blocked(t, t->iova + 7 * PAGE_SIZE, pages[7]));
	return write_blocked(t, t->iova + (nr - 1) * PAGE_SIZE, pages[nr - 1]);
}

/* Unmapping a page of a run blocks that page, but not its neighbours. */
static int iommu_hole_in_run(struct edu_test *t)
{
	struct page *run = test_pages(t, 4);
	unsigned long hole = t->iova + 5 * PAGE_SIZE;
	size_t size;

	expect(t, run, "no memory");
	/* Page by page: this is no test of splitting large entries. */
	for (int i = 0; i < 16; i++)
		must(t, test_map(t, t->iova + i * PAGE_SIZE, run + i, PAGE_SIZE, RW));
	must(t, arrives(t, hole, run + 5, 0));
	size = iommu_unmap(t->domain, hole, PAGE_SIZE);
	expect(t, size == PAGE_SIZE, "unmapped %zu bytes", size);
	must(t, write_blocked(t, hole, run + 5));
	must(t, arrives(t, hole - PAGE_SIZE, run + 4, 0));
	must(t, arrives(t, hole + PAGE_SIZE, run + 6, 0));
	expect(t, filled(run + 5, CANARY), "the page in the hole changed");
	expect(t, !iommu_iova_to_phys(t->domain, hole), "phys of the hole");
	expect(t, iommu_iova_to_phys(t->domain, hole + PAGE_SIZE) == page_to_phys(run + 6), "phys");
	return 0;
}

static int run_of(struct edu_test *t, struct page *run, unsigned long iova, size_t size)
{
	const size_t offsets[] = { 0, size / 2 - XFER / 2, size - XFER };
	size_t unmapped;

	must(t, test_map(t, iova, run, size, RW));
	for (unsigned int i = 0; i < ARRAY_SIZE(offsets); i++) {
		expect(t, iommu_iova_to_phys(t->domain, iova + offsets[i]) ==
		       page_to_phys(run) + offsets[i], "phys of %#zx", offsets[i]);
		must(t, arrives(t, iova + offsets[i], run, offsets[i]));
	}
	must(t, write_blocked(t, iova + size, run));
	unmapped = iommu_unmap(t->domain, iova, size);
	expect(t, unmapped == size, "unmapped %zu bytes", unmapped);
	must(t, write_blocked(t, iova, run));
	return write_blocked(t, iova + size - PAGE_SIZE, run + (size / PAGE_SIZE) - 1);
}

static int iommu_run_64k(struct edu_test *t)
{
	struct page *run = test_pages(t, 4);

	expect(t, run, "no memory");
	return run_of(t, run, t->iova + SZ_64K, SZ_64K);
}

static int iommu_run_2m(struct edu_test *t)
{
	struct page *run = test_pages(t, get_order(SZ_2M));

	if (!run)
		skip(t, "no 2 MiB of contiguous memory");
	return run_of(t, run, t->iova + SZ_2M, SZ_2M);
}

/* The same, with neither end on a 2 MiB boundary. */
static int iommu_run_2m_unaligned(struct edu_test *t)
{
	struct page *run = test_pages(t, get_order(SZ_2M));

	if (!run)
		skip(t, "no 2 MiB of contiguous memory");
	return run_of(t, run, t->iova + SZ_2M + 3 * PAGE_SIZE, SZ_2M);
}

/*
 * Maps 1 GiB of memory that contains pages of ours, and returns these. Ballooning may
 * have removed memory elsewhere.
 */
static struct page *map_gigabyte(struct edu_test *t, unsigned long iova)
{
	phys_addr_t base, last = PHYS_ADDR_MAX;
	struct page *page, *next, *found = NULL;
	LIST_HEAD(blocks);

	while (!found && t->nr_pages < NR_PAGES) {
		page = alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, MAX_PAGE_ORDER);
		if (!page)
			break;
		list_add(&page->lru, &blocks);
		base = round_down(page_to_phys(page), SZ_1G);
		if (base == last ||
		    region_intersects(base, SZ_1G, IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE) !=
		    REGION_INTERSECTS)
			continue;
		last = base;
		if (!test_map(t, iova, pfn_to_page(PHYS_PFN(base)), SZ_1G, RW))
			found = page;
	}
	list_for_each_entry_safe(page, next, &blocks, lru) {
		list_del(&page->lru);
		if (page != found)
			__free_pages(page, MAX_PAGE_ORDER);
	}
	if (found) {
		t->pages[t->nr_pages].page = found;
		t->pages[t->nr_pages++].order = MAX_PAGE_ORDER;
	}
	return found;
}

static int iommu_run_1g(struct edu_test *t)
{
	/* Beyond the addresses of other cases. */
	const unsigned long iova = 1UL << 36;
	struct page *pages;
	unsigned long at;

	if (!(t->domain->pgsize_bitmap & SZ_1G))
		skip(t, "no pages of 1 GiB");
	if (xen_pv_domain())
		skip(t, "memory is not contiguous, and some is read-only");
	if (!device_reaches(iova + SZ_1G - 1))
		skip(t, "beyond the device's dma_mask");
	pages = map_gigabyte(t, iova);
	if (!pages)
		skip(t, "no 1 GiB of memory");

	at = iova + page_to_phys(pages) % SZ_1G;
	expect(t, iommu_iova_to_phys(t->domain, at) == page_to_phys(pages), "phys");
	must(t, arrives(t, at, pages, 0));
	must(t, arrives(t, at + PAGE_SIZE, pages + 1, 0));
	/* Unmap a part; the remainder stays. */
	expect(t, iommu_unmap(t->domain, at, PAGE_SIZE) == PAGE_SIZE, "unmap");
	must(t, write_blocked(t, at, pages));
	must(t, arrives(t, at + PAGE_SIZE, pages + 1, 0));
	expect(t, iommu_unmap(t->domain, iova, at - iova) == at - iova, "unmap");
	must(t, arrives(t, at + PAGE_SIZE, pages + 1, 0));
	at += PAGE_SIZE;
	expect(t, iommu_unmap(t->domain, at, iova + SZ_1G - at) == iova + SZ_1G - at, "unmap");
	return write_blocked(t, at, pages + 1);
}

static int iommu_sg(struct edu_test *t)
{
	struct scatterlist sgl[8];
	struct page *pages[8];
	ssize_t mapped;
	size_t size;

	sg_init_table(sgl, ARRAY_SIZE(sgl));
	for (int i = ARRAY_SIZE(sgl) - 1; i >= 0; i--) {
		pages[i] = test_page(t);
		expect(t, pages[i], "no memory");
		sg_set_page(&sgl[i], pages[i], PAGE_SIZE, 0);
	}
	mapped = iommu_map_sg(t->domain, t->iova, sgl, ARRAY_SIZE(sgl), RW, GFP_KERNEL);
	expect(t, mapped == ARRAY_SIZE(sgl) * PAGE_SIZE, "mapped %zd", mapped);
	for (int i = 0; i < ARRAY_SIZE(sgl); i++)
		must(t, arrives(t, t->iova + i * PAGE_SIZE, pages[i], 0));
	size = iommu_unmap(t->domain, t->iova, mapped);
	expect(t, size == mapped, "unmapped %zu", size);
	return write_blocked(t, t->iova + 3 * PAGE_SIZE, pages[3]);
}

static int iommu_two_domains(struct edu_test *t)
{
	struct page *a = test_page(t), *b = test_page(t), *only_b = test_page(t);
	struct iommu_domain *other;
	int ret;

	expect(t, a && b && only_b, "no memory");
	other = new_domain(t);
	must(t, PTR_ERR_OR_ZERO(other));

	ret = test_map(t, t->iova, a, PAGE_SIZE, RW) ?:
	      test_map_in(t, other, t->iova, page_to_phys(b), PAGE_SIZE, RW) ?:
	      test_map_in(t, other, t->iova + SZ_1M, page_to_phys(only_b), PAGE_SIZE, RW) ?:
	      test_map_in(t, other, t->iova + SRC_OFFSET, page_to_phys(t->src), PAGE_SIZE,
			  IOMMU_READ) ?:
	      arrives(t, t->iova, a, 0) ?:
	      write_blocked(t, t->iova + SZ_1M, only_b);
	if (ret)
		goto out_free;

	detach(t, t->domain);
	ret = attach(t, other);
	if (!ret) {
		fill(a, CANARY);
		ret = arrives(t, t->iova, b, 0) ?: arrives(t, t->iova + SZ_1M, only_b, 0);
		if (!ret && !filled(a, CANARY)) {
			note(t, "the page of the other domain was written to");
			ret = -EINVAL;
		}
		detach(t, other);
	}
	ret = ret ?: attach(t, t->domain) ?: arrives(t, t->iova, a, 0);
out_free:
	test_unmap_all(t);
	iommu_domain_free(other);
	/* The runner expects the source at its old place. */
	return ret ?: test_map(t, t->iova + SRC_OFFSET, t->src, PAGE_SIZE, IOMMU_READ);
}

static int iommu_detached(struct edu_test *t)
{
	struct page *page = test_page(t);
	int ret;

	expect(t, page, "no memory");
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	must(t, arrives(t, t->iova, page, 0));
	detach(t, t->domain);
	/* Claimed, and without a domain: everything is blocked. */
	ret = write_blocked(t, t->iova, page);
	if (!ret && device_reaches(untranslated(page)))
		ret = write_blocked(t, untranslated(page), page);
	must(t, attach(t, t->domain));
	return ret ?: arrives(t, t->iova, page, 0);
}

/* Mappings of a freed domain are gone, also for the next user of its context. */
static int iommu_free_mapped(struct edu_test *t)
{
	struct page *page = test_page(t);
	struct iommu_domain *other;
	int ret;

	/* The core takes the mappings of a freed domain for leaks. */
	if (IS_ENABLED(CONFIG_IOMMU_DEBUG_PAGEALLOC))
		skip(t, "the kernel counts mappings of each page");
	expect(t, page, "no memory");
	other = new_domain(t);
	must(t, PTR_ERR_OR_ZERO(other));
	detach(t, t->domain);
	ret = test_map_in(t, other, t->iova, page_to_phys(page), PAGE_SIZE, RW) ?:
	      test_map_in(t, other, t->iova + SRC_OFFSET, page_to_phys(t->src), PAGE_SIZE,
			  IOMMU_READ) ?:
	      attach(t, other);
	if (!ret) {
		ret = arrives(t, t->iova, page, 0);
		detach(t, other);
	}
	forget_maps(t, other);
	iommu_domain_free(other);
	must(t, attach(t, t->domain));
	must(t, ret);
	must(t, write_blocked(t, t->iova, page));

	other = new_domain(t);
	must(t, PTR_ERR_OR_ZERO(other));
	expect(t, !iommu_iova_to_phys(other, t->iova), "phys in a new domain");
	detach(t, t->domain);
	ret = attach(t, other);
	if (!ret) {
		ret = write_blocked(t, t->iova, page);
		detach(t, other);
	}
	iommu_domain_free(other);
	must(t, attach(t, t->domain));
	return ret;
}

static int iommu_aperture(struct edu_test *t)
{
	struct iommu_domain_geometry *geometry = &t->domain->geometry;
	struct page *page = test_page(t);
	u64 last = geometry->aperture_end;
	int err;

	expect(t, page, "no memory");
	expect(t, geometry->force_aperture, "the aperture is not enforced");
	note(t, "aperture %pad to %pad", &geometry->aperture_start, &geometry->aperture_end);
	if (last < ULONG_MAX) {
		err = iommu_map(t->domain, last + 1, page_to_phys(page), PAGE_SIZE, RW, GFP_KERNEL);
		expect(t, err < 0, "mapped beyond the aperture");
		expect(t, !iommu_iova_to_phys(t->domain, last + 1), "phys beyond the aperture");
	}
	last &= PAGE_MASK;
	must(t, test_map(t, last, page, PAGE_SIZE, RW));
	if (!device_reaches(last))
		skip(t, "the end of the aperture is beyond the device's dma_mask");
	return arrives(t, last, page, 0);
}

/* Regions that firmware has reserved, for any device, are mapped by default. */
static int iommu_reserved(struct edu_test *t)
{
	struct page *out = test_page(t);
	struct iommu_resv_region *region;
	phys_addr_t start = 0;
	LIST_HEAD(regions);
	void *memory;
	bool same;

	expect(t, out, "no memory");
	iommu_get_resv_regions(t->dev, &regions);
	list_for_each_entry(region, &regions, list)
		if (region->type != IOMMU_RESV_MSI && (region->prot & IOMMU_READ))
			start = region->start;
	iommu_put_resv_regions(t->dev, &regions);
	if (!start)
		skip(t, "no memory is reserved");
	if (!device_reaches(start + PAGE_SIZE))
		skip(t, "beyond the device's dma_mask");

	note(t, "reserved: %pa", &start);
	must(t, test_map(t, t->iova, out, PAGE_SIZE, RW));
	must(t, edu_fetch(t->edu, start, XFER));
	must(t, edu_store(t->edu, t->iova, XFER));
	memory = memremap(start, PAGE_SIZE, MEMREMAP_WB);
	expect(t, memory, "no access");
	same = memchr_inv(memory, 0, XFER) && !memcmp(page_address(out), memory, XFER);
	memunmap(memory);
	expect(t, same, "the device has read something else");
	/* They cannot be changed. */
	expect(t, iommu_map(t->domain, start, page_to_phys(out), PAGE_SIZE, RW, GFP_KERNEL),
	       "mapped over it");
	expect(t, !iommu_unmap(t->domain, start, PAGE_SIZE), "unmapped it");
	fill(out, CANARY);
	must(t, edu_fetch(t->edu, start, XFER));
	must(t, edu_store(t->edu, t->iova, XFER));
	expect(t, !filled(out, CANARY), "it has gone");
	return 0;
}

static int iommu_msi(struct edu_test *t)
{
	struct iommu_resv_region *region;
	bool found = false;
	LIST_HEAD(regions);

	iommu_get_resv_regions(t->dev, &regions);
	list_for_each_entry(region, &regions, list)
		if (region->type == IOMMU_RESV_MSI && region->start <= 0xfee00000 &&
		    region->start + region->length > 0xfeefffff)
			found = true;
	iommu_put_resv_regions(t->dev, &regions);
	expect(t, !IS_ENABLED(CONFIG_X86) || found, "the MSI window is not reserved");
	return interrupt_arrives(t, t->iova + SRC_OFFSET);
}

static const struct edu_case iommu_cases[] = {
	{ "mapped_arrives", iommu_mapped },
	{ "unmapped_write_is_blocked", iommu_unmapped_write },
	{ "unmapped_read_is_blocked", iommu_unmapped_read },
	{ "read_only_write_is_blocked", iommu_read_only },
	{ "write_only_read_is_blocked", iommu_write_only },
	{ "unmap_flushes", iommu_unmap_flushes },
	{ "remap_to_other_page", iommu_remap },
	{ "map_over_mapping_is_refused", iommu_map_over },
	{ "unmap_of_hole_returns_0", iommu_unmap_hole },
	{ "scattered_pages", iommu_scattered },
	{ "hole_in_run", iommu_hole_in_run },
	{ "run_64k", iommu_run_64k },
	{ "run_2m", iommu_run_2m },
	{ "run_2m_unaligned", iommu_run_2m_unaligned },
	{ "run_1g", iommu_run_1g },
	{ "map_sg", iommu_sg },
	{ "two_domains_are_apart", iommu_two_domains },
	{ "detached_is_blocked", iommu_detached },
	{ "freed_domain_is_gone", iommu_free_mapped },
	{ "aperture_end", iommu_aperture },
	{ "reserved_memory_is_there", iommu_reserved },
	{ "msi_arrives", iommu_msi },
	{ }
};

/*
 * Stress
 */

struct hammer {
	struct edu_test *t;
	unsigned long done;	/* transfers completed */
	int error;
};

static int hammer_thread(void *data)
{
	struct hammer *hammer = data;
	struct edu_test *t = hammer->t;

	while (!kthread_should_stop()) {
		int ret = edu_store(t->edu, t->iova, XFER_BLOCKED);
		u16 cmd;

		if (ret) {
			WRITE_ONCE(hammer->error, ret);
			break;
		}
		/* Blocked transfers are expected here, so do not report them. */
		pci_read_config_word(t->edu->pdev, PCI_COMMAND, &cmd);
		if (!(cmd & PCI_COMMAND_MASTER))
			pci_write_config_word(t->edu->pdev, PCI_COMMAND, cmd | PCI_COMMAND_MASTER);
		/* Pairs with wait_transfers(): the transfer ends before it is counted. */
		smp_store_release(&hammer->done, hammer->done + 1);
	}
	while (!kthread_should_stop())
		msleep(20);
	return 0;
}

/* Waits until a transfer has both begun and ended. */
static int wait_transfers(struct hammer *hammer)
{
	unsigned long from = READ_ONCE(hammer->done);

	for (int ms = 0; ms < 20000; ms += 5) {
		if (READ_ONCE(hammer->error))
			return hammer->error;
		/* Pairs with hammer_thread(): check the page only afterwards. */
		if (smp_load_acquire(&hammer->done) - from >= 2)
			return 0;
		usleep_range(5000, 6000);
	}
	return -ETIMEDOUT;
}

static int hammer_rounds(struct edu_test *t, struct hammer *hammer)
{
	unsigned long hits = 0;

	for (unsigned long i = 0; i < t->count; i++) {
		struct page *page = alloc_page(GFP_KERNEL);
		size_t size = 0;
		int ret;

		if (!page)
			return -ENOMEM;
		fill(page, CANARY);
		ret = iommu_map(t->domain, t->iova, page_to_phys(page), PAGE_SIZE, RW, GFP_KERNEL);
		if (!ret) {
			/* A transfer takes 100 ms: unmap at any point of it. */
			usleep_range(1000, 1000 + get_random_u32_below(200 * USEC_PER_MSEC));
			size = iommu_unmap(t->domain, t->iova, PAGE_SIZE);
			hits += !filled(page, CANARY);
			/* From now on, the page belongs to somebody else. */
			fill(page, (u8)i);
			ret = wait_transfers(hammer);
		}
		if (!ret && (size != PAGE_SIZE || !filled(page, (u8)i))) {
			note(t, "round %lu: unmap returned %zu, page %s", i, size,
			     filled(page, (u8)i) ? "unchanged" : "changed after the unmap");
			ret = -EINVAL;
		}
		__free_page(page);
		must(t, ret);
	}
	note(t, "%lu rounds, %lu transfers, %lu rounds in which the device wrote while it might",
	     t->count, hammer->done, hits);
	expect(t, t->count < 20 || hits, "the device never hit: nothing was tested");
	return 0;
}

static int hammer_unmap(struct edu_test *t)
{
	struct hammer hammer = { .t = t };
	struct task_struct *task;
	int ret;

	must(t, load_pattern(t));
	task = kthread_run(hammer_thread, &hammer, "edu-hammer");
	must(t, PTR_ERR_OR_ZERO(task));
	ret = hammer_rounds(t, &hammer);
	kthread_stop(task);
	return ret ?: hammer.error;
}

static const struct edu_case hammer_cases[] = {
	{ "page_unchanged_after_unmap", hammer_unmap },
	{ }
};

static int one_cycle(struct edu_test *t, struct page *run, bool transfer)
{
	struct iommu_domain *domain = new_domain(t);
	int ret;

	if (IS_ERR(domain))
		return PTR_ERR(domain);
	ret = test_map_in(t, domain, t->iova, page_to_phys(run), SZ_64K, RW) ?:
	      test_map_in(t, domain, t->iova + SZ_32M + PAGE_SIZE, page_to_phys(run), PAGE_SIZE,
			  IOMMU_READ) ?:
	      test_map_in(t, domain, t->iova + SRC_OFFSET, page_to_phys(t->src), PAGE_SIZE,
			  IOMMU_READ) ?:
	      attach(t, domain);
	if (!ret) {
		if (transfer)
			ret = arrives(t, t->iova, run, 0);
		detach(t, domain);
	}
	for (; t->nr_maps; t->nr_maps--) {
		size_t size = t->maps[t->nr_maps - 1].size;

		if (iommu_unmap(domain, t->maps[t->nr_maps - 1].iova, size) != size && !ret)
			ret = -EIO;
	}
	iommu_domain_free(domain);
	cond_resched();
	return ret;
}

static int domain_cycles(struct edu_test *t)
{
	struct page *run = test_pages(t, 4);
	unsigned long i;
	int ret = 0;

	expect(t, run, "no memory");
	/* The runner's domain is not needed. */
	test_unmap_all(t);
	detach(t, t->domain);
	for (i = 0; !ret && i < t->count; i++)
		ret = one_cycle(t, run, !(i % 500));
	note(t, "%lu cycles", i);
	return attach(t, t->domain) ?: ret;
}

static const struct edu_case cycle_cases[] = {
	{ "domain_cycles", domain_cycles },
	{ }
};

/*
 * Nested translation: the page table is ours, and may contain anything
 */

#define NESTED_LEVELS	4
#define NESTED_ADDR	GENMASK_ULL(51, 12)
#define NESTED_PRESENT	(BIT(0) | BIT(1) | BIT(2))	/* writeable, by devices */

/* Returns the entry for an address in the table of this level. */
static u64 *nested_entry(struct edu_test *t, unsigned long iova, unsigned int level)
{
	u64 *table = nested_root(t->domain);

	for (unsigned int at = NESTED_LEVELS; ; at--) {
		u64 *entry = &table[(iova >> (3 + 9 * at)) & 511];

		if (at == level)
			return entry;
		table = phys_to_virt(*entry & NESTED_ADDR);
	}
}

/* Changes an entry and flushes; returns the old value. */
static u64 nested_write(struct edu_test *t, unsigned long iova, unsigned int level, u64 value)
{
	u64 old = xchg(nested_entry(t, iova, level), value);

	iommu_flush_iotlb_all(t->domain);
	return old;
}

/* Frames that exist, but are not in our P2M: Xen's, and an IOMMU's. */
static const u64 nested_foreign[] = {
	0x7000000, 0x60000000, 0x7f000000, 0xfed80000, 0x800000000, 0x100000000000
};

static bool in_p2m(u64 addr)
{
	return page_is_ram(PHYS_PFN(addr));
}

/* Checks that Xen stops DMA to an address whose translation leads to gpa. */
static int nested_blocked(struct edu_test *t, u64 gpa)
{
	note(t, "blocked write %#llx", gpa);
	must(t, edu_store(t->edu, t->iova, XFER_BLOCKED));
	edu_after_fault(t);
	note(t, "blocked read %#llx", gpa);
	must(t, edu_fetch(t->edu, t->iova, XFER_BLOCKED));
	edu_after_fault(t);
	return 0;
}

static int nested_leaf_outside(struct edu_test *t)
{
	struct page *page = test_page(t);
	unsigned int nr = 0;

	expect(t, page, "no memory");
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	must(t, arrives(t, t->iova, page, 0));
	for (unsigned int i = 0; i < ARRAY_SIZE(nested_foreign); i++) {
		u64 gpa = nested_foreign[i], old;
		int ret;

		if (in_p2m(gpa))
			continue;
		old = nested_write(t, t->iova, 1, gpa | NESTED_PRESENT);
		ret = nested_blocked(t, gpa);
		nested_write(t, t->iova, 1, old);
		must(t, ret);
		nr++;
	}
	expect(t, nr > 2, "all addresses are memory of ours");
	return arrives(t, t->iova, page, 0);
}

static int nested_table_outside(struct edu_test *t)
{
	struct page *page = test_page(t);

	expect(t, page, "no memory");
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	for (unsigned int level = 2; level <= NESTED_LEVELS; level++) {
		u64 gpa = 0x100000000000, old;
		int ret;

		must(t, arrives(t, t->iova, page, 0));
		old = nested_write(t, t->iova, level, gpa | NESTED_PRESENT);
		/* The fault is for the entry, which cannot be read. */
		gpa += ((t->iova >> (3 + 9 * (level - 1))) & 511) << 3;
		ret = nested_blocked(t, gpa);
		nested_write(t, t->iova, level, old);
		must(t, ret);
	}
	return arrives(t, t->iova, page, 0);
}

/* A device cannot reach a page that has left our P2M, even if the table maps it. */
static int nested_ballooned(struct edu_test *t)
{
#ifdef CONFIG_XEN
	struct page *page = test_page(t);
	xen_pfn_t gfn;
	int nr, ret;

	expect(t, page, "no memory");
	gfn = page_to_pfn(page);
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	/* The IOMMU has now cached both translations. */
	must(t, arrives(t, t->iova, page, 0));
	nr = xenmem_reservation_decrease(1, &gfn);
	expect(t, nr == 1, "Xen takes %d pages", nr);
	ret = nested_blocked(t, page_to_phys(page));
	gfn = page_to_pfn(page);
	nr = xenmem_reservation_increase(1, &gfn);
	/* Without a frame, the page is lost. */
	if (nr != 1)
		t->nr_pages--;
	expect(t, nr == 1, "Xen gives %d pages", nr);
	must(t, ret);
	return arrives(t, t->iova, page, 0);
#else
	skip(t, "not on Xen");
#endif
}

/*
 * Returns garbage for an entry, which leads to no memory of ours but that page.
 * It is not a superpage: that would have more of our memory in it.
 */
static u64 nested_nonsense(struct page *page)
{
	u64 value = get_random_u64(), flags = value & 0xf7f;

	switch (get_random_u32_below(4)) {
	case 0:
		value = nested_foreign[get_random_u32_below(ARRAY_SIZE(nested_foreign))] | flags;
		if (!in_p2m(value))
			return value;
		break;
	case 1:
		return page_to_phys(page) | flags;
	}
	return value | BIT_ULL(45);	/* above all memory */
}

/*
 * Garbage in live tables, with and without a flush. The device could read back
 * whatever it has written anywhere.
 */
static int nested_scribble(struct edu_test *t)
{
	struct page *page = test_page(t), *other = test_page(t), *out = test_page(t);
	unsigned long out_iova = t->iova + SRC_OFFSET / 2, hits = 0;

	expect(t, page && other && out, "no memory");
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	must(t, test_map(t, out_iova, out, PAGE_SIZE, RW));
	for (unsigned long i = 0; i < t->count; i++) {
		unsigned int level = 1 + get_random_u32_below(NESTED_LEVELS);
		u64 value = nested_nonsense(other), old;
		bool hit, back;

		/* The IOMMU has now cached the translation. */
		must(t, arrives(t, t->iova, page, 0));
		fill(page, CANARY);
		fill(other, 0);
		fill(out, CANARY);
		old = i & 1 ? nested_write(t, t->iova, level, value) :
			      xchg(nested_entry(t, t->iova, level), value);
		must(t, edu_store(t->edu, t->iova, XFER_BLOCKED));
		edu_start(t->edu, t->iova, EDU_BUFFER + XFER, XFER_BLOCKED, 0);
		must(t, edu_wait(t->edu));
		hit = !filled(page, CANARY) || !filled(other, 0);
		nested_write(t, t->iova, level, old);
		edu_after_fault(t);
		edu_start(t->edu, EDU_BUFFER + XFER, out_iova, XFER_BLOCKED, EDU_DMA_TO_RAM);
		must(t, edu_wait(t->edu));
		expect(t, !filled(out, CANARY), "what the device has read does not come");
		back = !memcmp(page_address(out), page_address(t->src), XFER_BLOCKED);
		expect(t, hit || !back, "level %u, entry %#llx: memory of others was reached",
		       level, value);
		hits += hit;
	}
	note(t, "%lu rounds, %lu in which the device reached a page of ours", t->count, hits);
	expect(t, hits && hits < t->count, "the same each time");
	return arrives(t, t->iova, page, 0);
}

/* The same while the device does DMA. The page beside it must not change. */
static int nested_scribble_live(struct edu_test *t)
{
	struct page *page = test_page(t), *other = test_page(t), *beside = test_page(t);
	unsigned long entries = 0;

	expect(t, page && other && beside, "no memory");
	must(t, test_map(t, t->iova, page, PAGE_SIZE, RW));
	must(t, arrives(t, t->iova, page, 0));
	fill(beside, CANARY);
	for (unsigned long i = 0; i < t->count; i++) {
		u64 old[NESTED_LEVELS + 1], *entry[NESTED_LEVELS + 1];

		for (unsigned int level = 1; level <= NESTED_LEVELS; level++) {
			entry[level] = nested_entry(t, t->iova, level);
			old[level] = READ_ONCE(*entry[level]);
		}
		edu_start(t->edu, EDU_BUFFER, t->iova, XFER_BLOCKED, EDU_DMA_TO_RAM);
		while (readq(t->edu->regs + EDU_DMA_CMD) & EDU_DMA_START) {
			unsigned int level = 1 + get_random_u32_below(NESTED_LEVELS);

			WRITE_ONCE(*entry[level],
				   entries++ & 1 ? old[level] : nested_nonsense(other));
			cond_resched();
		}
		for (unsigned int level = 1; level <= NESTED_LEVELS; level++)
			WRITE_ONCE(*entry[level], old[level]);
		iommu_flush_iotlb_all(t->domain);
		edu_after_fault(t);
		expect(t, filled(beside, CANARY), "another page of ours was reached");
	}
	note(t, "%lu transfers, %lu entries", t->count, entries);
	return arrives(t, t->iova, page, 0);
}

static const struct edu_case nested_cases[] = {
	{ "leaf_outside_is_blocked", nested_leaf_outside },
	{ "table_outside_is_blocked", nested_table_outside },
	{ "ballooned_page_is_blocked", nested_ballooned },
	{ "nonsense_reaches_nothing", nested_scribble },
	{ "nonsense_while_walking", nested_scribble_live },
	{ }
};

/*
 * The runner
 */

static void free_case(struct edu_test *t)
{
	test_unmap_all(t);
	while (t->nr_pages) {
		t->nr_pages--;
		__free_pages(t->pages[t->nr_pages].page, t->pages[t->nr_pages].order);
	}
}

static int run_cases(struct edu_test *t, const struct edu_case *cases, int nr_done,
		     int (*prepare)(struct edu_test *t))
{
	int failed = 0;

	for (int i = 0; cases[i].name; i++) {
		int ret;

		t->skip = NULL;
		t->src = test_page(t);
		ret = t->src ? 0 : -ENOMEM;
		if (!ret && prepare)
			ret = prepare(t);
		ret = ret ?: cases[i].run(t);
		free_case(t);
		t->iova += t->step;
		if (ret)
			note(t, "error %d", ret);
		failed += !!ret;
		if (ret)
			t->skip = NULL;
		seq_buf_printf(&t->edu->log, "    %sok %d %s", ret ? "not " : "", ++nr_done,
			       cases[i].name);
		if (t->skip)
			seq_buf_printf(&t->edu->log, " # SKIP %s", t->skip);
		seq_buf_puts(&t->edu->log, "\n");
		cond_resched();
	}
	return failed;
}

static int nr_cases(const struct edu_case *cases)
{
	int nr = 0;

	while (cases[nr].name)
		nr++;
	return nr;
}

static int map_source(struct edu_test *t)
{
	return test_map(t, t->iova + SRC_OFFSET, t->src, PAGE_SIZE, IOMMU_READ);
}

/* Claimed, and not in a domain yet. */
static int claimed_is_blocked(struct edu_test *t)
{
	struct page *page = test_page(t);

	expect(t, page, "no memory");
	if (!device_reaches(untranslated(page)))
		skip(t, "beyond the device's dma_mask");
	return write_blocked(t, untranslated(page), page);
}

static const struct edu_case claim_cases[] = {
	{ "claimed_is_blocked", claimed_is_blocked },
	{ }
};

/* The device cannot reach the page by any address; the log shows its attempts. */
static int default_is_blocked(struct edu_test *t)
{
	struct page *page = test_page(t);

	expect(t, page, "no memory");
	if (!device_reaches(untranslated(page)))
		skip(t, "beyond the device's dma_mask");
	must(t, write_blocked(t, untranslated(page), page));
	note(t, "blocked read %#llx", (u64)untranslated(t->src));
	must(t, edu_fetch(t->edu, untranslated(t->src), XFER_BLOCKED));
	edu_after_fault(t);
	return write_blocked(t, untranslated(page), page);
}

static const struct edu_case blocked_cases[] = {
	{ "default_is_blocked", default_is_blocked },
	{ }
};

static const struct edu_case release_cases[] = {
	{ "dma_api_after_release", dma_streaming },
	{ }
};

/* Chooses addresses well above all memory, if the device has enough bits. */
static void choose_iova(struct edu_test *t)
{
	u64 limit = min_t(u64, DMA_BIT_MASK(dma_bits), t->domain->geometry.aperture_end);

	t->iova = SRC_OFFSET;
	t->step = 0;
	if (limit >= DMA_BIT_MASK(38)) {
		t->iova = BIT_ULL(37);
		t->step = CASE_STEP;
	}
}

static int run_iommu(struct edu_test *t, const struct edu_case *cases)
{
	int nr = nr_cases(cases), failed, ret;

	seq_buf_printf(&t->edu->log, "    1..%d\n", nr + 2);
	ret = iommu_device_claim_dma_owner(t->dev, t->edu);
	if (ret) {
		note(t, "claiming the device: %d", ret);
		return ret;
	}
	failed = run_cases(t, claim_cases, 0, NULL);
	t->domain = new_domain(t);
	if (IS_ERR(t->domain)) {
		ret = PTR_ERR(t->domain);
		note(t, "domain: %d", ret);
		goto out_release;
	}
	if (cases == nested_cases && !nested_root(t->domain)) {
		note(t, "the domain's page table is not in our memory");
		ret = -EOPNOTSUPP;
		goto out_free;
	}
	choose_iova(t);
	ret = attach(t, t->domain);
	if (ret) {
		note(t, "attach: %d", ret);
		goto out_free;
	}
	failed += run_cases(t, cases, 1, map_source);
	detach(t, t->domain);
out_free:
	iommu_domain_free(t->domain);
out_release:
	iommu_device_release_dma_owner(t->dev);
	if (!ret)
		failed += run_cases(t, release_cases, nr + 1, NULL);
	return ret ?: failed;
}

static int run_dma(struct edu_test *t, const struct edu_case *cases)
{
	seq_buf_printf(&t->edu->log, "    1..%d\n", nr_cases(cases));
	return run_cases(t, cases, 0, NULL);
}

static const struct edu_suite {
	const char *name;
	int (*run)(struct edu_test *t, const struct edu_case *cases);
	const struct edu_case *cases;
	unsigned long count;
} suites[] = {
	{ "dma", run_dma, dma_cases },
	{ "large", run_dma, large_cases },
	{ "blocked", run_dma, blocked_cases },
	{ "iommu", run_iommu, iommu_cases },
	{ "nested", run_iommu, nested_cases, 100 },
	{ "hammer", run_iommu, hammer_cases, 50 },
	{ "cycles", run_iommu, cycle_cases, 10000 },
};

/* Failed cases are lines of the results; errors here are suites that cannot run. */
static ssize_t run_write(struct file *file, const char __user *ubuf, size_t len, loff_t *pos)
{
	struct edu *edu = file->private_data;
	struct edu_test *t;
	char line[40], name[16];
	unsigned long count;
	int fields, ret;

	if (*pos || len >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, ubuf, len))
		return -EFAULT;
	line[len] = '\0';
	fields = sscanf(line, "%15s %lu", name, &count);
	if (fields < 1)
		return -EINVAL;

	for (int i = 0; i < ARRAY_SIZE(suites); i++) {
		if (strcmp(name, suites[i].name))
			continue;
		t = kzalloc_obj(*t);
		if (!t)
			return -ENOMEM;
		guard(mutex)(&edu->lock);
		t->edu = edu;
		t->dev = &edu->pdev->dev;
		t->count = fields == 2 ? count : suites[i].count;
		seq_buf_clear(&edu->log);
		seq_buf_printf(&edu->log, "    KTAP version 1\n");
		ret = suites[i].run(t, suites[i].cases);
		if (seq_buf_has_overflowed(&edu->log))
			ret = -EOVERFLOW;
		kfree(t);
		return ret < 0 ? ret : len;
	}
	return -EINVAL;
}

static ssize_t results_read(struct file *file, char __user *ubuf, size_t len, loff_t *pos)
{
	struct edu *edu = file->private_data;

	guard(mutex)(&edu->lock);
	return simple_read_from_buffer(ubuf, len, pos, edu->log.buffer, seq_buf_used(&edu->log));
}

static const struct file_operations run_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = run_write,
};

static const struct file_operations results_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = results_read,
};

static struct dentry *edu_root;

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct edu *edu;
	char *log;
	int ret;

	edu = devm_kzalloc(dev, sizeof(*edu), GFP_KERNEL);
	log = devm_kzalloc(dev, RESULTS_SIZE, GFP_KERNEL);
	if (!edu || !log)
		return -ENOMEM;
	edu->pdev = pdev;
	seq_buf_init(&edu->log, log, RESULTS_SIZE);
	mutex_init(&edu->lock);
	init_completion(&edu->irq);

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	edu->regs = pcim_iomap_region(pdev, 0, KBUILD_MODNAME);
	if (IS_ERR(edu->regs))
		return PTR_ERR(edu->regs);
	ret = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(dma_bits));
	if (ret)
		return ret;
	pci_set_master(pdev);

	ret = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSI);
	if (ret < 0)
		return dev_err_probe(dev, ret, "MSI\n");
	ret = request_irq(pci_irq_vector(pdev, 0), edu_irq, 0, KBUILD_MODNAME, edu);
	if (ret) {
		pci_free_irq_vectors(pdev);
		return ret;
	}

	pci_set_drvdata(pdev, edu);
	edu->dir = debugfs_create_dir(pci_name(pdev), edu_root);
	debugfs_create_file("run", 0200, edu->dir, edu, &run_fops);
	debugfs_create_file("results", 0400, edu->dir, edu, &results_fops);
	return 0;
}

static void edu_remove(struct pci_dev *pdev)
{
	struct edu *edu = pci_get_drvdata(pdev);

	debugfs_remove(edu->dir);
	pci_clear_master(pdev);
	free_irq(pci_irq_vector(pdev, 0), edu);
	pci_free_irq_vectors(pdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	/* The cases claim and release the device themselves. */
	.driver_managed_dma = true,
};

static int __init edu_init(void)
{
	int ret;

	edu_root = debugfs_create_dir(KBUILD_MODNAME, NULL);
	ret = pci_register_driver(&edu_driver);
	if (ret)
		debugfs_remove(edu_root);
	return ret;
}
module_init(edu_init);

static void __exit edu_exit(void)
{
	pci_unregister_driver(&edu_driver);
	debugfs_remove(edu_root);
}
module_exit(edu_exit);

MODULE_DESCRIPTION("Test of DMA translation with QEMU's edu device");
MODULE_LICENSE("GPL");
#ifdef HAVE_PT
MODULE_IMPORT_NS("GENERIC_PT_IOMMU");
#endif
