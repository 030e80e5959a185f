#include "stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t read_clock(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }
uint64_t cpu_ns(void) { return read_clock(CLOCK_PROCESS_CPUTIME_ID); }

void samples_add(struct samples *samples, uint64_t nanoseconds) {
    if (samples->count == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 65536;
        samples->microseconds =
            realloc(samples->microseconds, samples->room * sizeof *samples->microseconds);
        if (!samples->microseconds) abort();
    }
    uint64_t microseconds = nanoseconds / 1000;
    samples->microseconds[samples->count++] =
        microseconds > UINT32_MAX ? UINT32_MAX : (uint32_t)microseconds;
}

void samples_clear(struct samples *samples) { samples->count = 0; }

static int by_size(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

void samples_print(struct samples *samples, const char *name) {
    if (samples->count == 0) {
        printf("\"%s\":null", name);
        return;
    }
    qsort(samples->microseconds, samples->count, sizeof *samples->microseconds, by_size);
    static const struct {
        const char *name;
        double quantile;
    } wanted[] = {{"p50", 0.50}, {"p90", 0.90}, {"p99", 0.99}, {"max", 1.0}};
    printf("\"%s\":{", name);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        size_t rank = (size_t)(wanted[i].quantile * (double)(samples->count - 1) + 0.5);
        printf("%s\"%s\":%.3f", i ? "," : "", wanted[i].name, samples->microseconds[rank] / 1000.0);
    }
    printf("}");
}
