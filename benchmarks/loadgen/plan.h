/* The plan file: one line each. Settings first, then the steps in the order in which they run.
 *
 *   server HOST PORT       repeated: client i and caller i use server i modulo their number
 *   token TEXT             repeated: likewise
 *   order ID VERSION       repeated, ascending ids; the status follows from the version (1 = Pending)
 *   watch all | own        each client watches every order, or client i the order i modulo their number
 *   protocol socketio | websocket
 *   limit SECONDS          a step that takes longer has failed (default 60)
 *
 *   connect CLIENTS IN_FLIGHT          connect, authenticate and subscribe until so many are there;
 *                                      with `after` those that were here before
 *   change CALLERS COUNT RATE          COUNT status changes, RATE a second (0: as fast as answered),
 *                                      until every watcher has every event
 *   drop                               close every client's connection at once
 *   put CALLERS SECONDS WARM_UP        status changes as fast as answered, for a time
 *   get CALLERS SECONDS WARM_UP        orders read as fast as answered, for a time
 *   post CALLERS SECONDS WARM_UP       orders placed as fast as answered, for a time
 *   hold SECONDS                       stay connected, doing nothing
 */
#ifndef PLAN_H
#define PLAN_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

enum { MAX_SERVERS = 16, MAX_STEPS = 32, MAX_VERSION = 32, LAST_STATUS_VERSION = 4 };

extern const char *const status_of_version[LAST_STATUS_VERSION + 1]; /* [1] = Pending … [4] = Completed */

struct order {
    long id;
    int version;  /* the newest that a server acknowledged */
    bool in_flight;
    uint64_t due[MAX_VERSION + 1]; /* when the change to that version was to be sent, ns */
    int watchers;
};

enum step_kind { CONNECT, CHANGE, DROP, PUT, GET, POST, HOLD };

struct step {
    enum step_kind kind;
    const char *name;
    double arg[3];
};

struct plan {
    struct sockaddr_in servers[MAX_SERVERS];
    int server_count;
    char **tokens;
    int token_count;
    struct order *orders;
    int order_count;
    bool watch_all, raw_websocket;
    double limit_seconds;
    struct step steps[MAX_STEPS];
    int step_count;
};

/* Reads the file; says what is wrong with it and exits when it is no plan. */
struct plan plan_read(const char *path);

/* The index of the order with that id, or -1. */
int plan_find_order(const struct plan *plan, long id);

#endif
