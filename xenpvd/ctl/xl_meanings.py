"""What it means for a guest that a key of its xl.cfg has no counterpart (Xen: docs/man/xl.cfg.5)."""

from __future__ import annotations

import re

_HVM = "for HVM guests only; nothing is lost"
_ARM = "for ARM guests only; nothing is lost"
_DISPLAY = "there is no display. The guest's console is hvc0: xenpvctl console"
_SCHEDULER = "the daemon is an ordinary process: use CPUAffinity=, CPUWeight= or CPUQuota= of systemd for it"
_NO_DEVICE = "there is no such device here: the guest goes without it"
_PASSTHROUGH = "the host's devices cannot be passed through: the guest goes without them"
_CLOCK = "the guest's clock begins with the host's, in UTC"
_XSM = "there are no XSM labels; what the daemon may is the host's affair"
_QUOTA = "the bound is ours, and cannot be set"

#: Patterns of whole keys; the first that fits counts
_MEANINGS = (
    ("vif|vif2", "there is no network here: the guest boots without eth0"),
    ("ip|dhcp|netmask|gateway|hostname|nfs_server|nfs_root", "of xend, xl ignores it; add it to cmdline"),
    ("vfb|vnc.*|sdl|opengl|keymap|nographic|vkb", _DISPLAY),
    ("uuid", "the guest gets a new UUID whenever its daemon starts"),
    ("cpus|cpus_soft|pool|cpu_weight|cap|period|slice|latency|extratime", _SCHEDULER),
    ("vnuma", "the guest sees one NUMA node"),
    ("bootloader_.*", "GRUB runs inside the guest and takes no arguments; its menu says what to boot"),
    ("on_soft_reset", "a soft reset is refused: the guest cannot start another kernel by kexec"),
    ("on_xend_start|on_xend_stop", "of xend, xl ignores it"),
    ("pci|gfx_passthru|pci_.*|rdm.*|dtdev|ioports|iomem|irqs|passthrough|e820_host|usbdev", _PASSTHROUGH),
    ("vtpm|p9|pvcalls|usbctrl|vdispl|vsnd|virtio|vscsi", _NO_DEVICE),
    ("localtime|rtc_timeoffset|tsc_mode", _CLOCK),
    ("cpuid|mca_caps|msr_relaxed", "the guest sees the CPU that the shim, or KVM, shows it"),
    ("seclabel|init_seclabel|device_model_stubdomain_seclabel", _XSM),
    ("nomigrate", "guests do not migrate here; nothing is lost"),
    ("driver_domain", "a guest cannot serve devices to others"),
    ("xenstore_quota", "quotas are set while it runs: xenpvctl xenstore-quota"),
    ("max_.*|xenstore_feature_mask|vmtrace_buf_kb", _QUOTA),
    ("xend_suspend_evtchn_compat", "guests are not suspended here; nothing is lost"),
    ("device_tree|gic_version|vuart|sve|llc_colors|nr_spis|trap_unmapped_accesses|arm_sci|tee|vpmu", _ARM),
    (
        "device_model.*|dm_restrict|stubdomain.*|stubdom.*|spice.*|acpi.*|smbios.*|altp2m.*|xen_platform_.*",
        _HVM,
    ),
    ("boot|hap|oos|shadow_memory|bios|bios_.*|pae|apic|nx|hpet|nestedhvm|hdtype|ms_vm_genid", _HVM),
    ("vpt_align|timer_mode|mmio_hole|viridian|hvm_pirq|videoram|stdvga|vga|serial|parallel|soundhw", _HVM),
    ("vkb_device|usb|usbversion|usbdevice|vendor_device|monitor", _HVM),
)


def meaning(key: str) -> str:
    """In an operator's words."""
    return next(
        (words for pattern, words in _MEANINGS if re.fullmatch(pattern, key)),
        "neither xl nor xenpvd knows such a key",
    )
