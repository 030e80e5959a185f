/* Looking into JSON text without building a tree: a value is the span of its characters. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>

struct span {
    const char *at;
    const char *end;
};

/* The value of `key` at the top level of an object; an empty span when it has none or is none. */
struct span json_get(struct span object, const char *key);

/* Walks an array: call with *cursor = array.at first; false when there are no more elements. */
bool json_next(struct span array, const char **cursor, struct span *element);

bool json_is(struct span value, const char *string); /* the JSON string "string"? */
bool json_true(struct span value);
long json_number(struct span value); /* a number, or a string of digits; -1 when neither */

#endif
