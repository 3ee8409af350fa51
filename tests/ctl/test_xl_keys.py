"""Settings become a definition; whatever has no counterpart is named, and what is impossible refused."""

from __future__ import annotations

from typing import Any

import pytest

from xenpvd.ctl import xl_keys, xl_syntax
from xenpvd.ctl.xl_meanings import meaning
from xenpvd.ctl.xl_syntax import XlFault

KERNEL = "kernel = '/k'\n"
#: what every imported guest without a word of its own gets: xl's defaults where ours differ
DEFAULTS = {"on_watchdog": "destroy", "on_crash": "destroy"}

#: the keys that xl looks at, or its manual names
XL_KEYS = """
    acpi acpi_firmware acpi_laptop_slate acpi_s3 acpi_s4 altp2m altp2m_count altp2mhvm apic arm_sci bios
    bios_path_override boot bootloader bootloader_args bootloader_restrict bootloader_user builder cap
    channel cmdline cpu_weight cpuid cpus cpus_soft device_model_args device_model_args_hvm
    device_model_args_pv device_model_override device_model_stubdomain_override
    device_model_stubdomain_seclabel device_model_user device_model_version device_tree disk dm_restrict
    driver_domain dtdev e820_host extra extratime firmware gfx_passthru gic_version hap hdtype hpet
    hvm_pirq init_seclabel iomem ioports irqs kernel keymap latency llc_colors localtime
    max_event_channels max_grant_frames max_grant_version max_maptrack_frames maxmem maxvcpus mca_caps
    memory mmio_hole ms_vm_genid msr_relaxed name nestedhvm nographic nomigrate nr_spis nx on_crash
    on_poweroff on_reboot on_soft_reset on_watchdog oos opengl p9 pae passthrough pci pci_msitranslate
    pci_permissive pci_power_mgmt pci_seize period pool pvcalls pvshim pvshim_cmdline pvshim_extra
    pvshim_path ramdisk rdm rdm_mem_boundary root rtc_timeoffset sdl seclabel serial shadow_memory slice
    smbios smbios_firmware soundhw spice spice_clipboard_sharing spice_image_compression
    spice_streaming_video spiceagent_mouse spicedisable_ticketing spicehost spicepasswd spiceport
    spicetls_port spiceusbredirection spicevdagent stdvga stubdomain_cmdline stubdomain_kernel
    stubdomain_memory stubdomain_ramdisk sve tee timer_mode trap_unmapped_accesses tsc_mode type usb
    usbctrl usbdev usbdevice usbversion uuid vcpus vdispl vendor_device vfb vga videoram vif vif2
    viridian virtio vkb vkb_device vmtrace_buf_kb vnc vncdisplay vnclisten vncpasswd vncunused vnuma
    vpmu vpt_align vsnd vtpm vuart xen_platform_pci xen_platform_pci_bar_uc xend_suspend_evtchn_compat
    xenstore_feature_mask xenstore_quota
"""

#: those that a definition can say, or that are looked at to make it
COUNTERPARTS = """
    bootloader builder channel cmdline disk extra firmware kernel maxmem maxvcpus memory name on_crash
    on_poweroff on_reboot on_watchdog pvshim pvshim_cmdline pvshim_extra pvshim_path ramdisk root type
    vcpus
"""


def convert(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The definition without what :data:`KERNEL` and DEFAULTS put in, and the notes by key."""
    definition, notes = xl_keys.convert(xl_syntax.parse(text), "web1")
    common = {"name": "web1", "type": "pv", "kernel": "/k", **DEFAULTS}
    own = {key: value for key, value in definition.items() if common.get(key) != value}
    return own, {note.key: note.what for note in notes}


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("", {}),
        ("name = 'db'", {"name": "db"}),
        ("type = 'pv'", {}),
        ("builder = 'generic'", {}),
        ("builder = 'linux'", {}),
        ("type = 'pvh'", {"type": "pvh"}),
        ("type = 'pvh'; pvshim = 1", {"shim": {"path": "auto"}}),
        (
            "type = 'pvh'; pvshim = 1; pvshim_path = '/s'; pvshim_extra = 'loglvl=all'",
            {"shim": {"path": "/s", "extra": "loglvl=all"}},
        ),
        ("type = 'pvh'; pvshim_path = '/s'", {"type": "pvh"}),
        ("pvshim = 1; pvshim_path = '/s'", {}),  # it is a shim for a PVH domain, to xl
        ("memory = 1024; maxmem = 1024; vcpus = 2; maxvcpus = 2", {"memory": 1024, "vcpus": 2}),
        ("memory = 0x400", {"memory": 1024}),
        ("memory = 02000", {"memory": 1024}),
        ("memory = '1024'", {"memory": 1024}),
        ("maxmem = 1024", {"memory": 1024}),
        ("ramdisk = '/r'", {"ramdisk": "/r"}),
        ("root = '/dev/xvda ro'; extra = 'quiet'", {"cmdline": "root=/dev/xvda ro quiet"}),
        ("extra = 'root=/dev/xvda'", {"cmdline": "root=/dev/xvda"}),
        ("cmdline = 'quiet'", {"cmdline": "quiet"}),
        (
            "on_poweroff = 'preserve'; on_reboot = 'destroy'; on_crash = 'restart'; on_watchdog = 'restart'",
            {
                "on_poweroff": "preserve",
                "on_reboot": "destroy",
                "on_crash": "restart",
                "on_watchdog": "restart",
            },
        ),
        (
            "disk = ['phy:vg0/root,xvda,w', '/a.iso,,hdc,cdrom', ',hdd:cdrom,r', '/b,,xvdb,r,no-discard']",
            {
                "disk": [
                    {"vdev": "xvda", "target": "/dev/vg0/root"},
                    {"vdev": "hdc", "device": "cdrom", "target": "/a.iso"},
                    {"vdev": "hdd", "device": "cdrom"},
                    {"vdev": "xvdb", "target": "/b", "access": "ro", "discard": False},
                ]
            },
        ),
        # what is off is no loss
        ("vif = []; vfb = []; vnc = 0; sdl = 0; nomigrate = 0; uuid = ''", {}),
    ],
)
def test_what_has_a_counterpart(text: str, own: dict[str, Any]) -> None:
    assert convert(KERNEL + text) == (own, {})


@pytest.mark.parametrize(
    ("text", "own", "notes"),
    [
        ("name = 'Web 1'", {"name": "web-1"}, {"name": "'Web 1' becomes web-1"}),
        ("memory = 32", {"memory": 64}, {"memory": "32 becomes 64"}),
        (
            "name = 'db'; memory = 512; maxmem = 1024",
            {"name": "db", "memory": 512},
            {"maxmem": "memory = 1024, and when it runs: xenpvctl memory set db 512"},
        ),
        (
            "vcpus = 2; maxvcpus = 64",
            {"vcpus": 2},
            {"maxvcpus": "vcpus = 32, and when it runs: xenpvctl vcpu set web1 2"},
        ),
        ("vcpus = 64", {"vcpus": 32}, {"vcpus": "64 becomes 32"}),
        ("kernel = 'vmlinuz'", {"kernel": "vmlinuz"}, {"kernel": "counts from the folder of the TOML file"}),
        ("kernel = 'auto'", {"kernel": "./auto"}, {"kernel": "counts from"}),
        (
            "kernel = '/usr/lib/xen-4.0/boot/pv-grub-x86_64.gz'",
            {"kernel": "/usr/lib/xen-4.0/boot/pv-grub-x86_64.gz"},
            {"kernel": "this old GRUB was not tried here"},
        ),
        (
            "cmdline = 'a'; root = '/dev/xvda'; extra = 'b'",
            {"cmdline": "a"},
            {"root": "as xl does", "extra": "as xl"},
        ),
        (
            "bootloader = '/usr/bin/pygrub'; ramdisk = '/r'; extra = 'quiet'",
            {"kernel": "pvgrub"},
            {
                "bootloader": "pygrub becomes pvgrub: GRUB runs inside the guest",
                "kernel": "menu says it",
                "ramdisk": "menu says it",
                "extra": "menu says it",
            },
        ),
        (
            "type = 'pvh'; pvshim = 1; pvshim_cmdline = 'pv-shim console=xen,pv sched=null'",
            {"shim": {"path": "auto", "extra": "sched=null"}},
            {"pvshim_cmdline": "pv-shim console=xen"},
        ),
        ("on_crash = 'coredump-restart'", {"on_crash": "restart"}, {"on_crash": "no dump"}),
        ("on_crash = 'rename-restart'", {"on_crash": "restart"}, {"on_crash": "becomes restart"}),
        (
            "channel = ['connection=socket, path=/run/x, name=org.qemu.guest_agent.0']",
            {"channel": [{"name": "org.qemu.guest_agent.0"}]},
            {"channel": "not at /run/x, but at: xenpvctl console web1 -c org.qemu.guest_agent.0"},
        ),
        (
            "disk = ['/srv/my web.qed,qed,xvda,w']",
            {"disk": [{"vdev": "xvda", "target": "/srv/my web.raw"}]},
            {"disk xvda": "qemu-img convert -O raw '/srv/my web.qed' '/srv/my web.raw'"},
        ),
        (
            "disk = ['/srv/web.qcow2,qcow2,xvda,w', '/srv/web.vhd,vhd,xvdb,w']",
            {
                "disk": [
                    {"vdev": "xvda", "target": "/srv/web.qcow2", "format": "qcow2"},
                    {"vdev": "xvdb", "target": "/srv/web.vhd", "format": "vpc"},
                ]
            },
            {},
        ),
        (
            "disk = ['nbd:host:10809,xvda,w']",
            {},
            {"disk xvda": "left out, as the script block-nbd provides it"},
        ),
        (
            "disk = ['/dev/a,,xvda,backend=store']",
            {},
            {"disk xvda": "left out, as the domain store provides it"},
        ),
        (
            "disk = ['phy:/a,xvda,w!']",
            {"disk": [{"vdev": "xvda", "target": "/a"}]},
            {"disk xvda": "no longer shared"},
        ),
        (
            "disk = ['/a,,xvda,backendtype=tap']",
            {"disk": [{"vdev": "xvda", "target": "/a"}]},
            {"disk xvda": "backendtype=tap is left out"},
        ),
        ("vif = ['']", {}, {"vif": "boots without eth0"}),
        ("vfb = ['vnc=1']; vnc = 1", {}, {"vfb": "no display", "vnc": "no display"}),
        ("pci = ['01:00.0']", {}, {"pci": "cannot be passed through"}),
        ("colour = 'red'", {}, {"colour": "neither xl nor xenpvd knows such a key"}),
    ],
)
def test_what_is_told(text: str, own: dict[str, Any], notes: dict[str, str]) -> None:
    got, told = convert(KERNEL + text)
    assert got == own
    assert told.keys() == notes.keys()
    assert [part for key, part in notes.items() if part not in told[key]] == []


def test_boot_loaders_need_no_kernel() -> None:
    assert convert("firmware = 'pvgrub64'")[0] == {"kernel": "pvgrub"}
    assert convert("firmware = 'pvgrub32'")[0] == {"kernel": xl_keys.GRUB_32}
    assert convert("bootloader = 'eliloader'")[1]["bootloader"].startswith("eliloader becomes pvgrub")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type = 'hvm'", "line 2: type: an HVM guest needs firmware and emulated devices"),
        ("builder = 'hvm'", "line 2: builder: an HVM guest needs"),
        ("builder = 'hvm'; type = 'pv'", "line 2: builder: type is pv, and builder hvm."),
        ("type = 'arm'", "line 2: type: there is no type of guest 'arm'."),
        ("type = ['pv']", "line 2: type: a list cannot be here."),
        ("firmware = 'ovmf'", "line 2: firmware: ovmf is for HVM guests."),
        ("kernel = ''", "there is neither kernel nor bootloader"),
        ("name = '§'", "name '§': names take"),
        ("memory = 'much'", "line 2: memory: 'much' is no number."),
        ("memory = " + "9" * 5000, "line 2: memory: '9+' is no number."),
        ("on_crash = 'soft-reset'", "line 2: on_crash: soft-reset cannot be done for a PV guest."),
        ("disk = '/a,,xvda'", "line 2: disk: a list of strings is wanted."),
        ("disk = [['/a,,xvda']]", "line 2: disk: a list of strings is wanted."),
        ("\ndisk = ['/a']", "line 3: disk '/a': it does not say"),
        ("channel = ['connection=pty']", "line 2: channel: 'connection=pty' has no name."),
    ],
)
def test_what_is_impossible(text: str, message: str) -> None:
    with pytest.raises(XlFault, match=message):
        convert(KERNEL + text)


def test_notes_come_in_the_order_of_the_file() -> None:
    definition = "vif = ['']\nname = 'A'\nkernel = '/k'\ncpus = '0'\ndisk = ['/a.qed,qed,xvda']\nuuid = '1'"
    assert list(convert(definition)[1]) == ["vif", "name", "cpus", "disk xvda", "uuid"]


def test_every_key_of_xl_has_a_counterpart_or_a_meaning() -> None:
    unknown = meaning("no such key")
    assert {key for key in XL_KEYS.split() if meaning(key) == unknown} == set(COUNTERPARTS.split())
