# A launch image that only tells that it runs: what the loader handed over, on COM1, then the debug exit.
#
#   as --32 -o probe.o probe-slb.s && ld -m elf_i386 -Ttext 0 --oformat binary -e 0 -o probe.bin probe.o
#
# Entered by SKINIT (APM vol. 2, 15.27.4): 32-bit, flat CS and SS, ESP = EAX + 10000h, other segments unusable.
# Where `relay=1` is defined and the hand-off's rsdp is not zero, it executes SKINIT again on the block there.

.intel_syntax noprefix
.code32
.text
start:
    .short entry - start
    .short end - start
entry:
    mov ebp, eax                    # base of the block; SS is the only usable data segment
    lea esi, [ebp + (text_running - start)]
    call print
    mov eax, ebp
    call print_hex
    lea esi, [ebp + (text_magic - start)]
    call print
    lea esi, [ebp + 0xf000]
    mov ecx, 8
magic:
    mov al, ss:[esi]
    inc esi
    call putc
    loop magic
    lea esi, [ebp + (text_components - start)]
    call print
    mov eax, ss:[ebp + 0xf00c]
    call print_hex
    lea esi, [ebp + (text_ranges - start)]
    call print
    mov eax, ss:[ebp + 0xf010]
    call print_hex
    lea esi, [ebp + (text_region - start)]
    call print
    mov eax, ss:[ebp + 0xf038]
    call print_hex
    lea esi, [ebp + (text_pool - start)]
    call print
    mov eax, ss:[ebp + 0xf04c]
    call print_hex
    mov eax, ss:[ebp + 0xf048]
    call print_hex
    lea esi, [ebp + (text_rsdp - start)]
    call print
    mov eax, ss:[ebp + 0xf058]
    call print_hex
    lea esi, [ebp + (text_end - start)]
    call print
.ifdef relay
    mov eax, ss:[ebp + 0xf058]
    skinit eax
.endif
    mov al, 0x10
    out 0xf4, al
stop:
    hlt
    jmp stop

print:
    mov al, ss:[esi]
    test al, al
    jz printed
    call putc
    inc esi
    jmp print
printed:
    ret

print_hex:
    mov ecx, 8
    mov edi, eax
digit:
    rol edi, 4
    mov eax, edi
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe decimal
    add al, 'a' - '9' - 1
decimal:
    call putc
    loop digit
    ret

putc:
    push eax
    mov dx, 0x3fd
room:
    in al, dx
    test al, 0x20
    jz room
    pop eax
    mov dx, 0x3f8
    out dx, al
    ret

text_running:    .asciz "probe: running slb="
text_magic:      .asciz " magic="
text_components: .asciz " components="
text_ranges:     .asciz " ranges="
text_region:     .asciz " region="
text_pool:       .asciz " pool="
text_rsdp:       .asciz " rsdp="
text_end:        .asciz "\r\n"
end:
