/*
 * Conformance image: output, options, ports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdarg.h>
#include "image.h"

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4

static char command_line[256];
static bool failed;

uint8_t in8(uint16_t port)
{
    uint8_t value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

uint16_t in16(uint16_t port)
{
    uint16_t value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

uint32_t in32(uint16_t port)
{
    uint32_t value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

void out8(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

void out16(uint16_t port, uint16_t value)
{
    asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

void out32(uint16_t port, uint32_t value)
{
    asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

uint32_t read_msr(uint32_t number)
{
    uint32_t low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return low;
}

void write_msr(uint32_t number, uint32_t low)
{
    asm volatile("wrmsr" : : "a"(low), "d"(0), "c"(number) : "memory");
}

/* The compiler may ask for these. */
void *memset(void *at, int byte, size_t length)
{
    uint8_t *to = at;

    while (length--) {
        *to++ = byte;
    }
    return at;
}

void *memcpy(void *to, const void *from, size_t length)
{
    uint8_t *t = to;
    const uint8_t *f = from;

    while (length--) {
        *t++ = *f++;
    }
    return to;
}

void fill(void *at, uint8_t byte, uint32_t length)
{
    memset(at, byte, length);
}

static void put(char c)
{
    while (!(in8(COM1 + 5) & 0x20)) {
    }
    out8(COM1, c);
}

static void put_number(uint32_t value, unsigned base)
{
    char digits[10];
    int n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n) {
        put(digits[--n]);
    }
}

void print(const char *format, ...)
{
    va_list list;
    const char *text;

    va_start(list, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (text = va_arg(list, const char *); *text; text++) {
                put(*text);
            }
            break;
        case 'x':
            put_number(va_arg(list, uint32_t), 16);
            break;
        default:
            put_number(va_arg(list, uint32_t), 10);
        }
    }
    va_end(list);
}

void check(const char *name, bool good)
{
    print("check %s %s\n", good ? "ok" : "FAIL", name);
    failed |= !good;
}

void check_equal(const char *name, uint32_t got, uint32_t want)
{
    if (got == want) {
        check(name, true);
    } else {
        print("check FAIL %s: got %x, want %x\n", name, got, want);
        failed = true;
    }
}

void finish(void)
{
    print("end\n");
    out8(DEBUG_EXIT, failed);
    for (;;) {
        asm volatile("cli; hlt");
    }
}

void unexpected_exception(void);
void unexpected_exception(void)
{
    print("check FAIL exception %d(%x) at %x\n", last_vector, last_error,
          last_eip);
    failed = true;
    finish();
}

bool equal_text(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

/* "name=value" among the words of the command line */
const char *option(const char *name)
{
    static char value[64];
    const char *word = command_line;

    while (*word) {
        const char *n = name, *w = word;
        unsigned length = 0;

        while (*n && *n == *w) {
            n++;
            w++;
        }
        if (!*n && *w == '=') {
            for (w++; *w && *w != ' ' && length < sizeof(value) - 1; w++) {
                value[length++] = *w;
            }
            value[length] = 0;
            return value;
        }
        while (*word && *word != ' ') {
            word++;
        }
        while (*word == ' ') {
            word++;
        }
    }
    return "";
}

uint32_t option_number(const char *name, uint32_t otherwise)
{
    const char *text = option(name);
    uint32_t value = 0;

    if (!*text) {
        return otherwise;
    }
    for (; *text >= '0' && *text <= '9'; text++) {
        value = value * 10 + (*text - '0');
    }
    return value;
}

/* The ACPI timer of the q35 board: 3.579545 MHz, 24 bits. */
void wait_microseconds(uint32_t count)
{
    static uint16_t port;
    uint32_t left, last;

    if (!port) {
        port = (config_read(0xf8, 0x40) & 0xff80) + 8;
    }
    left = count / 2 * 7 + count % 2 * 4; /* a little less than 3.58 each */
    last = in32(port);
    while (left) {
        uint32_t now = in32(port), passed = (now - last) & 0xffffff;

        left = passed > left ? 0 : left - passed;
        last = now;
    }
}

void main(uint32_t multiboot_info) __attribute__((noreturn));
void main(uint32_t multiboot_info)
{
    const char *text = (const char *)*at32(multiboot_info + 16);
    void (*run)(void);
    unsigned i;

    for (i = 0; i < sizeof(command_line) - 1 && text[i]; i++) {
        command_line[i] = text[i];
    }
    set_up_exceptions();
    run = find_case(option("case"));
    if (run) {
        run();
    } else {
        check("the image knows this case", false);
    }
    finish();
}
