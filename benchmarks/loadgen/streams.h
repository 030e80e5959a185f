/* The check: what one client saw of one order. Versions must arrive dense, in order, each once. */
#ifndef STREAMS_H
#define STREAMS_H

#include <stdint.h>

struct stream {
    int order;     /* index in the plan */
    int first;     /* the version at which the client joined; later ones are owed to it */
    int newest;    /* the highest version seen; 0 before the first subscription */
    uint64_t seen; /* bit v: version v arrived (MAX_VERSION bounds them) */
};

enum verdict {
    GOOD,
    REPEATED, /* arrived before */
    LATE,     /* a newer one arrived before it */
    SKIPPED,  /* arrived before its predecessor */
};

void stream_begin(struct stream *stream, int version);
enum verdict stream_take(struct stream *stream, int version);
int stream_missing(const struct stream *stream, int version); /* how many up to `version` never came */

#endif
