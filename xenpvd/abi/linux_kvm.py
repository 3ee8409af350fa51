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
KVM_XEN_HVM_CONFIG = 0x4038AE7A
KVM_XEN_HVM_SET_ATTR = 0x4048AEC9
KVM_XEN_HVM_EVTCHN_SEND = 0x400CAED0

# -- vCPU
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_SET_CPUID2 = 0x4008AE90
KVM_XEN_VCPU_SET_ATTR = 0x4048AECB

KVM_CAP_XEN_HVM = 38
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_IMMEDIATE_EXIT = 136

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
KVM_XEN_INVALID_GPA = (1 << 64) - 1

# -- struct kvm_run
KVM_RUN_immediate_exit = 1
KVM_RUN_exit_reason = 8
KVM_RUN_io = Struct("=BBHIQ")  # direction size port count data_offset, at 32
KVM_RUN_mmio = Struct("=Q8sIB")  # phys_addr data len is_write, at 32
KVM_RUN_mmio_data = 40
KVM_RUN_xen_hcall = Struct("=I4xIIQQ6Q")  # type longmode cpl input result params[6], at 32
KVM_RUN_suberror = Struct("=I")  # of an internal error; the low half of a failed entry's reason, at 32
KVM_RUN_union = 32
KVM_RUN_xen_result = 56

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_XEN = 34
KVM_EXIT_XEN_HCALL = 1
KVM_EXIT_IO_OUT = 1

KVM_EXIT_NAMES = {
    0: "unknown", 2: "I/O", 5: "HLT", 6: "MMIO", 8: "shutdown (triple fault)", 9: "failed entry",
    10: "interrupted", 17: "internal error", 24: "system event", 34: "Xen",
}  # fmt: skip
