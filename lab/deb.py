# SPDX-License-Identifier: GPL-2.0
"""make deb: packages of the kernel and of the hypervisor for a Debian 13 host, in build/deb/.

The kernel's own bindeb-pkg makes its packages; the hypervisor's come from Debian's source package with our series added.
"""
import os
import re
import shutil
from pathlib import Path

import build
import fetch
import series
from util import BUILD, CPUS, LAB, LOGS, REPO, Fail, clean_env, output, run, say, write_if_changed

OUT = BUILD / "deb"
# Debian's configurations refer to keys that only Debian has.
NOT_OURS = {"SYSTEM_TRUSTED_KEYS": '""', "SYSTEM_REVOCATION_KEYS": '""'}


class UserKernel(build.Kernel):
    """A kernel with the user's configuration, and CONFIG_XEN_IOMMU."""

    def __init__(self, src, config):
        super().__init__(src, flavour="user")
        self.user_config = Path(config).expanduser()

    def configure(self):
        text = self.user_config.read_text()
        if "CONFIG_64BIT=y" not in text:
            raise Fail(f"CONFIG={self.user_config} is not a configuration of a 64-bit kernel")
        for name, value in {**NOT_OURS, "XEN_IOMMU": "y"}.items():
            text = re.sub(rf"^(# )?CONFIG_{name}[= ].*\n", "", text, flags=re.M) + f"CONFIG_{name}={value}\n"
        self.obj.mkdir(parents=True, exist_ok=True)
        if write_if_changed(self.obj / "lab.config", text) or not (self.obj / ".config").exists():
            shutil.copy(self.obj / "lab.config", self.obj / ".config")
            self.make("kernel configuration", "olddefconfig")
        if "CONFIG_XEN_IOMMU=y\n" not in (self.obj / ".config").read_text():
            raise Fail(f"CONFIG_XEN_IOMMU cannot be set with {self.user_config}: it needs CONFIG_XEN_DOM0 and CONFIG_IOMMU_SUPPORT")


def linux(kernel):
    """[linux-image and linux-headers of a built kernel]"""
    say("packing the kernel")
    place = kernel.obj.parent
    for old in place.glob("linux-*.deb"):
        old.unlink()
    build.make("linux packages", LOGS / "build" / f"deb-{kernel.obj.name}.log", kernel.src, f"O={kernel.obj}",
               f"CC={build.COMPILER}", f"HOSTCC={build.COMPILER}", "DPKG_FLAGS=-d", "bindeb-pkg")
    debs = [deb for deb in place.glob("linux-*.deb") if re.match(r"linux-(image|headers)-", deb.name)
            and "-dbg_" not in deb.name]
    if len(debs) != 2:
        raise Fail(f"bindeb-pkg made {', '.join(deb.name for deb in debs) or 'nothing'}: expected an image and headers")
    return debs


def xen(lab):
    """[xen-hypervisor] of Debian's source package with our series."""
    tarball, packaging, revision = fetch.xen_packaging()
    version = f"{tarball.name.removeprefix('xen_').removesuffix('.orig.tar.xz')}-{revision}+pviommu1"
    place = BUILD / "obj" / "deb-xen"
    tree, log = place / "xen", LOGS / "build" / "deb-xen.log"
    shutil.rmtree(place, ignore_errors=True)
    tree.mkdir(parents=True)
    say(f"packing Xen {version} (3 to 6 minutes)")
    run("unpacking Xen", ["tar", "-x", "--strip-components=1", "-C", tree, "-f", tarball], log)
    run("unpacking Debian's packaging", ["tar", "-x", "-C", tree, "-f", packaging], log, append=True)
    names = []
    for _, patch in series.write("xen", lab):
        names.append(f"pv-iommu/{patch.name}")
        (tree / "debian/patches/pv-iommu").mkdir(exist_ok=True)
        shutil.copy(patch, tree / "debian/patches" / names[-1])
    with open(tree / "debian/patches/series", "a") as file:
        file.write("".join(f"{name}\n" for name in names))
    who, date = series.author(), output(["date", "-R", "-d", "2026-01-01"]).strip()
    changelog = tree / "debian/changelog"
    changelog.write_text(f"xen ({version}) UNRELEASED; urgency=medium\n\n  * Add the PV-IOMMU hypercall.\n\n"
                         f" -- {who['GIT_AUTHOR_NAME']} <{who['GIT_AUTHOR_EMAIL']}>  {date}\n\n" + changelog.read_text())
    run("applying Debian's patches and ours", ["dpkg-source", "--before-build", "."], log, cwd=tree, append=True)
    # Debian's rules build all of Xen; this is the part that makes the hypervisor's package.
    (tree / "debian/hypervisor.mk").write_text(HYPERVISOR)
    run("packing Xen", ["make", f"-j{CPUS}", "-f", "debian/hypervisor.mk", "hypervisor"], log, cwd=tree,
        env=clean_env(**build.ENV), append=True)
    return list(place.glob("xen-hypervisor-4.20-amd64_*.deb"))


HYPERVISOR = """\
include debian/rules
package = xen-hypervisor-$(upstream_version)-$(flavour)
hypervisor: $(TEMPLATED_FILES)
	cp debian/xen-kconfig xen/.config
	$(MAKE) -C xen olddefconfig $(make_args_xen)
	$(MAKE) $(make_args_xen) xen
	$(MAKE) $(make_args_xen) DESTDIR=$t install-xen
	if ls $t/usr/lib*/efi/*.efi; then mv $t/usr/lib*/efi/*.efi $t/boot/; fi
	debian/shuffle-boot-files $(upstream_version) $(flavour)
	dh_installdocs -p$(package)
	dh_installchangelogs -p$(package)
	dh_compress -p$(package)
	dh_fixperms -p$(package)
	dh_installdeb -p$(package)
	dh_gencontrol -p$(package)
	dh_md5sums -p$(package)
	dh_builddeb -p$(package)
.NOTPARALLEL:
"""


def make(lab):
    run("installing what packing needs", ["sh", LAB / "bootstrap.sh", "packages", "packages-deb.txt"], LOGS / "deb.log")
    config = os.environ.get("CONFIG")
    if config:
        with build.lock():
            build.check_place()
            kernel = UserKernel(lab.linux_source, config).build()
    else:
        kernel = lab.kernel
    with build.lock():
        debs = [*linux(kernel), *xen(lab)]
        partial = OUT.with_name("deb.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for deb in debs:
            shutil.move(deb, partial / deb.name)
        shutil.rmtree(OUT, ignore_errors=True)
        partial.rename(OUT)
    for deb in sorted(OUT.iterdir()):
        say(f"{deb.relative_to(REPO)}")
    return 0
