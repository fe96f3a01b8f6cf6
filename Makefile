# SPDX-License-Identifier: GPL-2.0
# The lab: see README.md. Everything is done by lab/, which gets the variables below in its environment.

VARIABLES := DOM0 IOMMU KERNEL LINUX_TREE XEN_TREE XEN_IMAGE XEN_ARGS DOM0_ARGS INITRD_EXTRA RUN \
	     QEMU QEMU_ARGS ICOUNT T

# Pass on the text as it was written: $ and quotes in RUN= are for the guest's shell, not for make.
$(foreach v,$(VARIABLES),$(if $(filter-out undefined,$(origin $v)),$(eval override $v := $$(value $v))$(eval export $v)))

help:
	@echo 'make run      boot Xen and dom0 in QEMU and show the driver at work'
	@echo 'make test     run the tests (T=list lists them, T=name runs one, T=all the long ones, too)'
	@echo 'make shell    a console of dom0'
	@echo 'make series   write patches for Linux and Xen to build/series'
	@echo 'make bench    measure'
	@echo 'make clean    remove build/'
	@echo 'Variables: $(VARIABLES); README.md explains them.'

run test shell series bench:
	@sh lab/bootstrap.sh $@

clean:
	rm -rf build

.PHONY: help run test shell series bench clean
.NOTPARALLEL:
