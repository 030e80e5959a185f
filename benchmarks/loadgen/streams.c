#include "streams.h"

void stream_begin(struct stream *stream, int version) {
    stream->first = stream->newest = version;
    stream->seen = 0;
}

enum verdict stream_take(struct stream *stream, int version) {
    uint64_t bit = UINT64_C(1) << version;
    if (version <= stream->first || stream->seen & bit) return REPEATED;
    stream->seen |= bit;
    if (version < stream->newest) return LATE;
    enum verdict verdict = version == stream->newest + 1 ? GOOD : SKIPPED;
    stream->newest = version;
    return verdict;
}

int stream_missing(const struct stream *stream, int version) {
    int missing = 0;
    for (int v = stream->first + 1; v <= version; v++) missing += !(stream->seen >> v & 1);
    return missing;
}
