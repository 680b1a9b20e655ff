/* Latencies, the CPU time of processes, and JSON on standard output. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "load.h"

void fail(const char *why) {
    printf("{\"error\":");
    text_print(why, strlen(why));
    printf("}\n");
    fflush(stdout);
    exit(1);
}

void latency_add(struct latencies *l, uint64_t ns) {
    if (l->count == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 65536;
        if (!(l->tenths_us = realloc(l->tenths_us, l->cap * sizeof *l->tenths_us)))
            fail("out of memory");
    }
    l->tenths_us[l->count++] = (uint32_t)(ns / 100 < UINT32_MAX ? ns / 100 : UINT32_MAX);
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* The nearest rank: the smallest value that so large a share of all is not above. */
static double at_share(const struct latencies *l, double share) {
    double rank = share * (double)l->count;
    size_t place = (size_t)rank;
    if ((double)place < rank)
        place++;
    return l->tenths_us[place ? place - 1 : 0] / 10000.0;
}

void latency_print(struct latencies *l) {
    if (!l->count) {
        printf("\"p50_ms\":null,\"p99_ms\":null,\"max_ms\":null");
        return;
    }
    qsort(l->tenths_us, l->count, sizeof *l->tenths_us, compare);
    printf("\"p50_ms\":%.4f,\"p99_ms\":%.4f,\"max_ms\":%.4f", at_share(l, 0.5), at_share(l, 0.99), at_share(l, 1.0));
}

double cpu_seconds(int pid) {
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
        return -1;
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double own_cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void text_print(const char *text, size_t size) {
    putchar('"');
    for (size_t i = 0; i < size && i < 200; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20 || byte > 0x7e)
            putchar(' ');
        else
            putchar(byte);
    }
    putchar('"');
}
