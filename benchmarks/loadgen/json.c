#include "json.h"

#include <string.h>

static const struct span nothing = {NULL, NULL};

static const char *skip_space(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
    return at;
}

/* The end of the string that opens at `at`, past its closing quote; NULL when it never closes. */
static const char *string_end(const char *at, const char *end) {
    for (at++; at < end; at++) {
        if (*at == '\\')
            at++;
        else if (*at == '"')
            return at + 1;
    }
    return NULL;
}

/* The end of the value that begins at `at`; NULL when the text is cut short. */
static const char *value_end(const char *at, const char *end) {
    if (at >= end) return NULL;
    if (*at == '"') return string_end(at, end);
    if (*at != '{' && *at != '[') {
        while (at < end && !strchr(",]} \n\r\t", *at)) at++;
        return at;
    }
    for (int depth = 0; at < end;) {
        if (*at == '"') {
            at = string_end(at, end);
            if (!at) return NULL;
            continue;
        }
        if (*at == '{' || *at == '[') depth++;
        if ((*at == '}' || *at == ']') && --depth == 0) return at + 1;
        at++;
    }
    return NULL;
}

struct span json_get(struct span object, const char *key) {
    size_t length = strlen(key);
    const char *at = skip_space(object.at, object.end);
    if (at >= object.end || *at != '{') return nothing;
    at = skip_space(at + 1, object.end);
    while (at < object.end && *at == '"') {
        const char *name = at + 1;
        at = string_end(at, object.end);
        if (!at) return nothing;
        bool found = (size_t)(at - 1 - name) == length && memcmp(name, key, length) == 0;
        at = skip_space(at, object.end);
        if (at >= object.end || *at != ':') return nothing;
        at = skip_space(at + 1, object.end);
        const char *end = value_end(at, object.end);
        if (!end) return nothing;
        if (found) return (struct span){at, end};
        at = skip_space(end, object.end);
        if (at >= object.end || *at != ',') return nothing;
        at = skip_space(at + 1, object.end);
    }
    return nothing;
}

bool json_next(struct span array, const char **cursor, struct span *element) {
    const char *at = skip_space(*cursor, array.end);
    if (at >= array.end || (*at != '[' && *at != ',')) return false;
    at = skip_space(at + 1, array.end);
    if (at >= array.end || *at == ']') return false;
    const char *end = value_end(at, array.end);
    if (!end) return false;
    *element = (struct span){at, end};
    *cursor = end;
    return true;
}

bool json_is(struct span value, const char *string) {
    size_t length = strlen(string);
    return value.at && (size_t)(value.end - value.at) == length + 2 && *value.at == '"' &&
           memcmp(value.at + 1, string, length) == 0;
}

bool json_true(struct span value) {
    return value.at && value.end - value.at == 4 && memcmp(value.at, "true", 4) == 0;
}

long json_number(struct span value) {
    if (!value.at) return -1;
    const char *at = value.at, *end = value.end;
    if (end - at > 2 && *at == '"') at++, end--;
    if (at == end || end - at > 18) return -1;
    long number = 0;
    for (; at < end; at++) {
        if (*at < '0' || *at > '9') return -1;
        number = number * 10 + (*at - '0');
    }
    return number;
}
