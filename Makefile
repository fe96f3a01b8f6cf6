# SPDX-License-Identifier: GPL-2.0
# The lab: see README.md. Everything is done by lab/, which gets the variables in its environment.

comma := ,
ifneq ($(words $(CURDIR))$(findstring :,$(CURDIR))$(findstring $(comma),$(CURDIR)),1)
$(error The path "$(CURDIR)" has a space, colon or comma, which the builds of Linux and Xen cannot handle)
endif

# Pass on the text as it was written: $ and quotes in RUN= are for the guest's shell, not for make.
$(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $v)),$(eval override $v := $$(value $v))$(eval export $v)))

help:
	@echo 'make run      boot Xen and dom0 in QEMU and demonstrate the driver'
	@echo 'make test     run the tests (T=list lists them, T=name runs one, T=all also the long ones)'
	@echo 'make shell    boot to a console of dom0'
	@echo 'make series   write patches for Linux and Xen to build/series'
	@echo 'make deb      build Debian packages of kernel and hypervisor in build/deb'
	@echo 'make bench    measure the cost of mappings'
	@echo 'make clean    remove build/'
	@echo 'README.md explains the variables, such as DOM0=pv.'

run test shell series deb bench:
	@sh lab/bootstrap.sh $@

clean:
	rm -rf build

.PHONY: help run test shell series deb bench clean
.NOTPARALLEL:
