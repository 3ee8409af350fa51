"""A PVH guest of 400 bytes for a real KVM: it takes the hypercall page, places shared_info, waits for three
events on its console port, says "e" to port 0xE9 at each, and powers off.

It needs no hardware virtualization: a KVM that emulates its guests does, too. The code was assembled by GNU
as from this (entry at 2 MiB, flat 32-bit mode)::

    # entered at 2 MiB in flat 32-bit mode; RAM below is free
    .code32
    start:
        mov $0x180000, %esp
        # hypercall page at 3 MiB
        mov $0x40000000, %ecx
        mov $0x300000, %eax
        xor %edx, %edx
        wrmsr
        # an IDT with one gate, 0x30, at 0x100000
        lea handler, %eax
        mov %ax, 0x100180
        movw $0x8, 0x100182
        movw $0x8e00, 0x100184
        shr $16, %eax
        mov %ax, 0x100186
        lidt idtr
        lgdt gdtr
        ljmp $8, $1f
    1:  mov $16, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        # shared_info at 4 MiB - 1 page (RAM)
        mov $12, %eax
        mov $7, %ebx
        lea physmap, %ecx
        call hypercall
        # upcalls
        mov $34, %eax
        cmpl $0, per_vcpu
        jne 2f
        mov $0, %ebx
        lea param, %ecx
        call hypercall
        jmp 3f
    2:  movl $0x1ff, 0xfee000f0
        mov $23, %ebx
        lea upcall, %ecx
        call hypercall
    3:  # unmask port 1, the console's
        mov $32, %eax
        mov $9, %ebx
        lea port, %ecx
        call hypercall
        mov $'r', %al
        out %al, $0xe9
    wait:
        sti
        hlt
        cli
        cmpl $3, count
        jb wait
        mov $29, %eax
        mov $2, %ebx
        lea zero, %ecx
        call hypercall
        ud2

    hypercall:
        shl $5, %eax
        add $0x300000, %eax
        call *%eax
        test %eax, %eax
        jz 1f
        neg %eax
        out %al, $0xe9
    1:  ret

    handler:
        push %eax
        movb $0, 0x3ff000          # upcall_pending
        xor %eax, %eax
        xchg %eax, 0x3ff004        # pending_sel
        xor %eax, %eax
        xchg %eax, 0x3ff800        # pending
        test %eax, %eax
        jz 1f
        incl count
        mov $'e', %al
        out %al, $0xe9
    1:  cmpl $0, per_vcpu
        je 2f
        movl $0, 0xfee000b0        # EOI
    2:  pop %eax
        lret $4     # not iret: a KVM without hardware support cannot

    .align 4
    per_vcpu: .long 0
    count: .long 0
    zero: .long 0
    port: .long 1
    physmap: .short 0x7ff0, 0; .long 0, 0, 0x3ff
    param: .short 0x7ff0, 0; .long 0, 0x30, 0x02000000
    upcall: .long 0, 0x30
    .align 8
    gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
    gdtr: .short 23; .long gdt
    idtr: .short 0x187; .long 0x100000
"""

from __future__ import annotations

from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.elf import Segment
from xenpvd.vmm.kernel import PvhImage

ENTRY = 0x20_0000
_PER_VCPU = 0x138
_CODE = bytes.fromhex(
    "bc00001800b900000040b80000300031d20f308d05f800200066a38001100066c70582011000080066c7058401100000"
    "8ec1e81066a3860110000f011d8e0120000f011588012000ea4f0020000800b8100000008ed88ec08ed0b80c000000bb"
    "070000008d0d48012000e876000000b822000000833d38012000007512bb000000008d0d58012000e858000000eb1ac7"
    "05f000e0feff010000bb170000008d0d68012000e83c000000b820000000bb090000008d0d44012000e827000000b072"
    "e6e9fbf4fa833d3c0120000372f4b81d000000bb020000008d0d40012000e8020000000f0bc1e0050500003000ffd085"
    "c07404f7d8e6e9c350c60500f03f000031c0870504f03f0031c0870500f83f0085c0740aff053c012000b065e6e9833d"
    "3801200000740ac705b000e0fe0000000058ca04008d760000000000000000000000000001000000f07f000000000000"
    "00000000ff030000f07f000000000000300000000000000200000000300000000000000000000000ffff0000009bcf00"
    "ffff00000093cf00170070012000870100001000"
)


#: lidt with no room for any gate, then int3: the CPU can not even report its double fault
TRIPLE_FAULT = bytes.fromhex("0f011d10002000cc000000000000000000000000000000")


def image(per_vcpu: bool) -> BootImage:
    """``per_vcpu``: upcalls by the vCPU's own vector through its LAPIC, else by the VM's callback vector."""
    code = bytearray(_CODE)
    code[_PER_VCPU] = per_vcpu
    return running(bytes(code))


def running(code: bytes) -> BootImage:
    """A guest of ``code``, entered at its first byte in flat 32-bit mode."""
    return BootImage(PvhImage(ENTRY, (Segment(ENTRY, 4096, code),), {}), "", (), False)
