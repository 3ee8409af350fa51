"""include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h: what the engine room uses of KVM, x86-64.

Sizes are part of each request's number (``_IOC``): a layout that is wrong by a byte is refused by the
kernel as ENOTTY. ``tests/abi/test_linux_kvm.py`` holds the sizes against the numbers.
"""

from __future__ import annotations

from struct import Struct

KVM_API_VERSION = 12

# -- /dev/kvm
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05

# -- VM
KVM_CREATE_VCPU = 0xAE41
KVM_SET_TSS_ADDR = 0xAE47
KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_GSI_ROUTING = 0x4008AE6A
KVM_IRQFD = 0x4020AE76
KVM_ENABLE_CAP = 0x4068AEA3
KVM_GET_CLOCK = 0x8030AE7C
KVM_SET_CLOCK = 0x4030AE7B
KVM_SIGNAL_MSI = 0x4020AEA5
KVM_X86_SET_MSR_FILTER = 0x4188AEC6
KVM_XEN_HVM_CONFIG = 0x4038AE7A
KVM_XEN_HVM_GET_ATTR = 0xC048AEC8
KVM_XEN_HVM_SET_ATTR = 0x4048AEC9
KVM_XEN_HVM_EVTCHN_SEND = 0x400CAED0

# -- vCPU
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_INTERRUPT = 0x4004AE86
KVM_SET_MSRS = 0x4008AE89
KVM_GET_LAPIC = 0x8400AE8E
KVM_SET_LAPIC = 0x4400AE8F
KVM_SET_CPUID2 = 0x4008AE90
KVM_XEN_VCPU_SET_ATTR = 0x4048AECB

KVM_CAP_XEN_HVM = 38
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_SYNC_REGS = 74
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_MSR_FILTER = 189

# -- KVM_CAP_XEN_HVM's bits; the same numbers are flags of kvm_xen_hvm_config
KVM_XEN_HVM_CONFIG_HYPERCALL_MSR = 1 << 0
KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL = 1 << 1
KVM_XEN_HVM_CONFIG_SHARED_INFO = 1 << 2
KVM_XEN_HVM_CONFIG_RUNSTATE = 1 << 3
KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL = 1 << 4
KVM_XEN_HVM_CONFIG_EVTCHN_SEND = 1 << 5

# -- memory slots, capabilities, interrupts
kvm_userspace_memory_region = Struct("=IIQQQ")  # slot flags guest_phys_addr memory_size userspace_addr
kvm_enable_cap = Struct("=II4Q64x")  # cap flags args[4]
kvm_msi = Struct("=IIII16x")  # address_lo address_hi data flags
MSI_ADDRESS = 0xFEE0_0000  # of an interrupt for the LAPIC whose id is at bit 12
kvm_irqfd = Struct("=IIII16x")  # fd gsi flags resamplefd
KVM_IRQFD_FLAG_DEASSIGN = 1
kvm_irq_routing = Struct("=II")  # nr flags; entries follow
kvm_irq_routing_entry_xen_evtchn = Struct("=IIIIIII20x")  # gsi type flags pad port vcpu priority
KVM_IRQ_ROUTING_XEN_EVTCHN = 5
KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL = 0xFFFFFFFF

# -- CPUID
kvm_cpuid2 = Struct("=II")  # nent padding; entries follow
kvm_cpuid_entry2 = Struct("=IIIIIII12x")  # function index flags eax ebx ecx edx
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1

# -- model-specific registers
kvm_msrs = Struct("=II")  # nmsrs pad; entries follow
kvm_msr_entry = Struct("=I4xQ")  # index data
KVM_MSR_EXIT_REASON_FILTER = 1 << 2
KVM_MSR_FILTER_WRITE = 1 << 1
KVM_MSR_FILTER_MAX_RANGES = 16
kvm_msr_filter = Struct("=I4x")  # flags; 16 ranges follow
kvm_msr_filter_range = Struct("=III4xQ")  # flags nmsrs base bitmap (an address; a 0 bit: not for the kernel)
MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01

# -- time
kvm_clock_data = Struct("=QI4xQQ16x")  # clock flags realtime host_tsc
KVM_CLOCK_REALTIME = 1 << 2

# -- local APIC: kvm_lapic_state is its register page
KVM_LAPIC_STATE_SIZE = 1024
APIC_LVT0 = 0x350
APIC_DM_EXTINT = 0x700

# -- registers
KVM_REGS_NAMES = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
kvm_regs = Struct("=18Q")
kvm_segment = Struct("=QIH8BBB")  # base limit selector type present dpl db s l g avl unusable padding
KVM_SREGS_SIZE = 312
KVM_SREGS_SEGMENTS = {
    name: 24 * n for n, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"))
}
KVM_SREGS_cr0 = 224
KVM_SREGS_cr2 = 232
KVM_SREGS_cr3 = 240
KVM_SREGS_cr4 = 248
KVM_SREGS_efer = 264
X86_CR0_PG = 1 << 31
X86_CR4_PAE = 1 << 5
EFER_LMA = 1 << 10

# -- Xen attributes
kvm_xen_hvm_config = Struct("=IIQQBB30x")  # flags msr blob_addr_32 blob_addr_64 blob_size_32 blob_size_64
KVM_XEN_ATTR_SIZE = 72  # kvm_xen_hvm_attr and kvm_xen_vcpu_attr: type u16 @0, a union @8
KVM_XEN_ATTR_TYPE_LONG_MODE = 0
KVM_XEN_ATTR_TYPE_SHARED_INFO = 1
KVM_XEN_ATTR_TYPE_UPCALL_VECTOR = 2
KVM_XEN_ATTR_TYPE_EVTCHN = 3
kvm_xen_evtchn_attr = Struct("=IIIIII")  # send_port type flags deliver.{port vcpu priority | port=0 fd}
KVM_XEN_EVTCHN_DEASSIGN = 1 << 0
KVM_XEN_EVTCHN_UPDATE = 1 << 1
KVM_XEN_EVTCHN_RESET = 1 << 2
KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO = 0
KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID = 6
KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR = 8
KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO = 1
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR = 2
KVM_XEN_VCPU_ATTR_TYPE_TIMER = 7
kvm_xen_timer_attr = Struct("=IIQ")  # port priority expires_ns
KVM_XEN_INVALID_GPA = (1 << 64) - 1

# -- struct kvm_run
KVM_RUN_immediate_exit = 1
KVM_RUN_exit_reason = 8
KVM_RUN_io = Struct("=BBHIQ")  # direction size port count data_offset, at 32
KVM_RUN_mmio = Struct("=Q8sIB")  # phys_addr data len is_write, at 32
KVM_RUN_mmio_data = 40
KVM_RUN_xen_hcall = Struct("=I4xIIQQ6Q")  # type longmode cpl input result params[6], at 32
KVM_RUN_suberror = Struct("=I")  # of an internal error; the low half of a failed entry's reason, at 32
KVM_RUN_msr = Struct("=B7xIIQ")  # error reason index data, at 32
KVM_RUN_msr_error = 32
KVM_RUN_msr_data = 48
KVM_RUN_union = 32
KVM_RUN_xen_result = 56
KVM_RUN_valid_regs = 288  # which registers the kernel leaves in the page at each exit
KVM_RUN_dirty_regs = 296  # which it takes from there at the next entry
KVM_RUN_regs = 304
KVM_RUN_sregs = 448
KVM_SYNC_X86_REGS = 1 << 0
KVM_SYNC_X86_SREGS = 1 << 1

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_XEN = 34
KVM_EXIT_XEN_HCALL = 1
KVM_EXIT_IO_OUT = 1

KVM_EXIT_NAMES = {
    0: "unknown", 2: "I/O", 5: "HLT", 6: "MMIO", 8: "shutdown (triple fault)", 9: "failed entry",
    10: "interrupted", 17: "internal error", 24: "system event", 29: "RDMSR", 30: "WRMSR",
    34: "Xen",
}  # fmt: skip
