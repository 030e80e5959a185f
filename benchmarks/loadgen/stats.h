/* Time, durations and their percentiles, and how busy this process was. */
#ifndef STATS_H
#define STATS_H

#include <stddef.h>
#include <stdint.h>

uint64_t now_ns(void); /* monotonic: one clock for everything on this machine */
uint64_t cpu_ns(void); /* CPU time that this process has used */

struct samples {
    uint32_t *microseconds;
    size_t count, room;
};

void samples_add(struct samples *samples, uint64_t nanoseconds);
void samples_clear(struct samples *samples);

/* Prints `"name":{"p50":…,"p90":…,"p99":…,"max":…}` in milliseconds, or null values when empty. Sorts. */
void samples_print(struct samples *samples, const char *name);

#endif
