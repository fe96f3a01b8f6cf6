// SPDX-License-Identifier: GPL-2.0-only
/*
 * Measure the cost of mapping in loops of many operations
 *
 * Binds to QEMU's "edu" device. A line written to <debugfs>/xen_iommu_bench/run
 * runs one loop; "last" then has its nanoseconds, which are instructions on a
 * machine whose clock counts these (QEMU's -icount shift=0):
 *
 *   clock N           read the clock N times
 *   noop N            N empty hypercalls
 *   single PAGES N    dma_map_single() of PAGES contiguous pages, N times
 *   sg ENTRIES N      dma_map_sg() of ENTRIES scattered pages, N times
 *   domain PAGES N    iommu_map() of PAGES pages, N times at different addresses
 *   context N         allocate a domain, attach and detach the device, free it, N times
 *   threads T N       map and unmap one page N times, on T CPUs at once
 *   unmap             unmap everything that the previous line has mapped
 *
 * The clock is read only at the beginning and at the end of a loop: if the
 * hypervisor emulates it, reading it costs more than what is to be measured.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/dma-mapping.h>
#include <linux/iommu.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <xen/xen.h>
#ifdef CONFIG_XEN
#include <xen/interface/pv-iommu.h>
#include <asm/xen/hypercall.h>
#endif

#define MAX_OPS		256
#define MAX_ENTRIES	256
#define MAX_THREADS	8

/* Memory to map with iommu_map(). No DMA goes there. */
#define DOMAIN_PHYS	SZ_256M
#define DOMAIN_IOVA	BIT_ULL(37)

enum kind { SINGLE, SG, DOMAIN };

struct bench {
	struct pci_dev *pdev;
	struct mutex lock;		/* one loop at a time */
	struct iommu_group *group;
	struct iommu_domain *domain;
	void *buffer;			/* 2 MiB */
	struct page *scattered[MAX_ENTRIES];
	struct sg_table sgt[MAX_OPS];
	dma_addr_t addr[MAX_OPS];
	enum kind what;			/* is mapped */
	unsigned long size;		/* pages or entries of each */
	unsigned int nr;		/* how many of these */
	u64 ns;
};

static int noops(unsigned long nr)
{
#ifdef CONFIG_XEN
	if (!xen_domain())
		return -ENODEV;
	while (nr--)
		if (HYPERVISOR_iommu_op(IOMMU_noop, NULL))
			return -EIO;
	return 0;
#else
	return -ENODEV;
#endif
}

static int clocks(unsigned long nr)
{
	while (nr--)
		ktime_get_ns();
	return 0;
}

static int map_single(struct bench *b, unsigned int i)
{
	b->addr[i] = dma_map_single(&b->pdev->dev, b->buffer, b->size << PAGE_SHIFT,
				    DMA_BIDIRECTIONAL);
	return dma_mapping_error(&b->pdev->dev, b->addr[i]);
}

static int map_sg(struct bench *b, unsigned int i)
{
	return dma_map_sgtable(&b->pdev->dev, &b->sgt[i], DMA_BIDIRECTIONAL, 0);
}

static u64 domain_iova(struct bench *b, unsigned int i)
{
	return DOMAIN_IOVA + i * round_up((u64)b->size << PAGE_SHIFT, SZ_2M);
}

static int map_domain(struct bench *b, unsigned int i)
{
	return iommu_map(b->domain, domain_iova(b, i), DOMAIN_PHYS, b->size << PAGE_SHIFT,
			 IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);
}

static int map_all(struct bench *b, unsigned int nr)
{
	int ret = 0;

	for (b->nr = 0; b->nr < nr && !ret; b->nr += !ret) {
		switch (b->what) {
		case SINGLE:
			ret = map_single(b, b->nr);
			break;
		case SG:
			ret = map_sg(b, b->nr);
			break;
		default:
			ret = map_domain(b, b->nr);
		}
	}
	return ret;
}

static int unmap_all(struct bench *b)
{
	unsigned long bytes = b->size << PAGE_SHIFT;
	int ret = 0;

	for (unsigned int i = 0; i < b->nr; i++) {
		switch (b->what) {
		case SINGLE:
			dma_unmap_single(&b->pdev->dev, b->addr[i], bytes, DMA_BIDIRECTIONAL);
			break;
		case SG:
			dma_unmap_sgtable(&b->pdev->dev, &b->sgt[i], DMA_BIDIRECTIONAL, 0);
			break;
		default:
			if (iommu_unmap(b->domain, domain_iova(b, i), bytes) != bytes)
				ret = -EIO;
		}
	}
	b->nr = 0;
	return ret;
}

static void free_sg(struct bench *b)
{
	for (unsigned int i = 0; i < MAX_OPS; i++)
		sg_free_table(&b->sgt[i]);
}

/* Adjacent entries of the list are not adjacent in memory. */
static int make_sg(struct bench *b, unsigned int nr)
{
	struct scatterlist *sg;
	unsigned int j;

	for (unsigned int i = 0; i < nr; i++) {
		int ret = sg_alloc_table(&b->sgt[i], b->size, GFP_KERNEL);

		if (ret)
			return ret;
		for_each_sgtable_sg(&b->sgt[i], sg, j)
			sg_set_page(sg, b->scattered[j], PAGE_SIZE, 0);
	}
	return 0;
}

/*
 * Attaches the device to the domain: a domain without devices is never flushed,
 * and would seem too cheap.
 */
static int open_domain(struct bench *b)
{
	struct device *dev = &b->pdev->dev;
	int ret;

	if (b->domain)
		return 0;
	if (!b->group)
		return -ENODEV;
	ret = iommu_device_claim_dma_owner(dev, b);
	if (ret)
		return ret;
	b->domain = iommu_paging_domain_alloc(dev);
	ret = PTR_ERR_OR_ZERO(b->domain);
	if (!ret) {
		ret = iommu_attach_group(b->domain, b->group);
		if (ret)
			iommu_domain_free(b->domain);
	}
	if (ret) {
		b->domain = NULL;
		iommu_device_release_dma_owner(dev);
	}
	return ret;
}

static void close_domain(struct bench *b)
{
	struct device *dev = &b->pdev->dev;

	if (!b->domain)
		return;
	iommu_detach_group(b->domain, b->group);
	iommu_domain_free(b->domain);
	iommu_device_release_dma_owner(dev);
	b->domain = NULL;
}

static int contexts(struct bench *b, unsigned long nr)
{
	int ret = 0;

	if (b->nr)
		return -EBUSY;
	close_domain(b);
	while (nr-- && !ret) {
		ret = open_domain(b);
		close_domain(b);
	}
	return ret;
}

struct worker {
	struct bench *b;
	struct task_struct *task;
	struct completion done;
	unsigned long nr;
	int ret;
};

static int work(void *data)
{
	struct worker *w = data;
	struct device *dev = &w->b->pdev->dev;

	for (unsigned long i = 0; i < w->nr && !w->ret; i++) {
		dma_addr_t addr = dma_map_single(dev, w->b->buffer, PAGE_SIZE, DMA_BIDIRECTIONAL);

		w->ret = dma_mapping_error(dev, addr);
		if (!w->ret)
			dma_unmap_single(dev, addr, PAGE_SIZE, DMA_BIDIRECTIONAL);
		cond_resched();
	}
	complete(&w->done);
	return 0;
}

static int threads(struct bench *b, unsigned long nr_threads, unsigned long nr)
{
	struct worker w[MAX_THREADS] = {};
	unsigned int cpu = 0, n = 0;
	int ret = 0;

	if (b->nr || !nr_threads || nr_threads > MAX_THREADS)
		return -EINVAL;
	if (nr_threads > num_online_cpus())
		return -ENODEV;
	close_domain(b);
	for_each_online_cpu(cpu) {
		if (n == nr_threads)
			break;
		w[n] = (struct worker) { .b = b, .nr = nr };
		init_completion(&w[n].done);
		w[n].task = kthread_create_on_cpu(work, &w[n], cpu, "bench/%u");
		if (IS_ERR(w[n].task)) {
			ret = PTR_ERR(w[n].task);
			break;
		}
		n++;
	}
	for (unsigned int i = 0; i < n; i++) {
		if (ret)
			w[i].nr = 0;
		wake_up_process(w[i].task);
	}
	for (unsigned int i = 0; i < n; i++) {
		wait_for_completion(&w[i].done);
		ret = ret ?: w[i].ret;
	}
	return ret;
}

static int prepare(struct bench *b, enum kind what, unsigned long size, unsigned long nr)
{
	if (b->nr || !nr || nr > MAX_OPS || !size)
		return -EINVAL;
	b->what = what;
	b->size = size;
	switch (what) {
	case SINGLE:
		close_domain(b);
		return size << PAGE_SHIFT > SZ_2M ? -EINVAL : 0;
	case SG:
		close_domain(b);
		free_sg(b);
		return size > MAX_ENTRIES ? -EINVAL : make_sg(b, nr);
	default:
		return open_domain(b);
	}
}

static int run_line(struct bench *b, const char *line)
{
	static const struct {
		const char *name;
		enum kind what;
	} loops[] = { { "single", SINGLE }, { "sg", SG }, { "domain", DOMAIN } };
	unsigned long a = 0, nr = 0;
	char name[16];
	u64 start;
	int ret;

	if (sscanf(line, "%15s %lu %lu", name, &a, &nr) < 1)
		return -EINVAL;
	for (unsigned int i = 0; i < ARRAY_SIZE(loops); i++) {
		if (strcmp(name, loops[i].name))
			continue;
		ret = prepare(b, loops[i].what, a, nr);
		if (ret)
			return ret;
		start = ktime_get_ns();
		ret = map_all(b, nr);
		b->ns = ktime_get_ns() - start;
		if (ret)
			unmap_all(b);
		return ret;
	}

	start = ktime_get_ns();
	if (!strcmp(name, "clock"))
		ret = clocks(a);
	else if (!strcmp(name, "noop"))
		ret = noops(a);
	else if (!strcmp(name, "context"))
		ret = contexts(b, a);
	else if (!strcmp(name, "threads"))
		ret = threads(b, a, nr);
	else if (!strcmp(name, "unmap"))
		ret = unmap_all(b);
	else
		ret = -EINVAL;
	b->ns = ktime_get_ns() - start;
	return ret;
}

static ssize_t run_write(struct file *file, const char __user *ubuf, size_t len, loff_t *pos)
{
	struct bench *b = file->private_data;
	char line[40];
	int ret;

	if (len >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, ubuf, len))
		return -EFAULT;
	line[len] = '\0';
	guard(mutex)(&b->lock);
	ret = run_line(b, line);
	return ret ?: len;
}

static ssize_t last_read(struct file *file, char __user *ubuf, size_t len, loff_t *pos)
{
	struct bench *b = file->private_data;
	char text[24];

	guard(mutex)(&b->lock);
	return simple_read_from_buffer(ubuf, len, pos, text,
				       scnprintf(text, sizeof(text), "%llu\n", b->ns));
}

static const struct file_operations run_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = run_write,
};

static const struct file_operations last_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = last_read,
};

static struct dentry *bench_dir;

static void bench_free(struct bench *b)
{
	free_sg(b);
	for (unsigned int i = 0; i < MAX_ENTRIES; i++)
		if (b->scattered[i])
			__free_page(b->scattered[i]);
	if (b->buffer)
		free_pages_exact(b->buffer, SZ_2M);
	kvfree(b);
}

/* Use the first page of each pair: the free second one separates them. */
static int scatter(struct bench *b)
{
	for (unsigned int i = 0; i < MAX_ENTRIES; i++) {
		struct page *pair = alloc_pages(GFP_KERNEL, 1);

		if (!pair)
			return -ENOMEM;
		split_page(pair, 1);
		__free_page(pair + 1);
		b->scattered[i] = pair;
	}
	return 0;
}

static int bench_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct bench *b;
	int ret;

	b = kvzalloc_obj(*b);
	if (!b)
		return -ENOMEM;
	b->pdev = pdev;
	mutex_init(&b->lock);
	b->buffer = alloc_pages_exact(SZ_2M, GFP_KERNEL);
	ret = b->buffer ? scatter(b) : -ENOMEM;
	ret = ret ?: dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(48));
	if (ret) {
		bench_free(b);
		return ret;
	}
	b->group = iommu_group_get(&pdev->dev);
	pci_set_drvdata(pdev, b);
	debugfs_create_file("run", 0200, bench_dir, b, &run_fops);
	debugfs_create_file("last", 0400, bench_dir, b, &last_fops);
	return 0;
}

static void bench_remove(struct pci_dev *pdev)
{
	struct bench *b = pci_get_drvdata(pdev);

	debugfs_lookup_and_remove("run", bench_dir);
	debugfs_lookup_and_remove("last", bench_dir);
	unmap_all(b);
	close_domain(b);
	iommu_group_put(b->group);
	bench_free(b);
}

static const struct pci_device_id bench_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, bench_ids);

static struct pci_driver bench_driver = {
	.name = KBUILD_MODNAME,
	.id_table = bench_ids,
	.probe = bench_probe,
	.remove = bench_remove,
	.driver_managed_dma = true,
};

static int __init bench_init(void)
{
	int ret;

	bench_dir = debugfs_create_dir(KBUILD_MODNAME, NULL);
	ret = pci_register_driver(&bench_driver);
	if (ret)
		debugfs_remove(bench_dir);
	return ret;
}
module_init(bench_init);

static void __exit bench_exit(void)
{
	pci_unregister_driver(&bench_driver);
	debugfs_remove(bench_dir);
}
module_exit(bench_exit);

MODULE_DESCRIPTION("What mapping for DMA costs");
MODULE_LICENSE("GPL");
