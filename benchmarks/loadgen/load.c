/* The load generator: drives a server over HTTP, watches it over Socket.IO or raw WebSocket, measures,
 * and checks every stream. One thread, one epoll loop. See plan.h for what it is told to do.
 *
 * Before each step it prints {"begin":NAME} and waits for a line on standard input, so that whoever
 * runs it can read the server's CPU time and memory in between; after each it prints a result.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "json.h"
#include "plan.h"
#include "stats.h"
#include "streams.h"

enum {
    READ_ROOM = 1 << 20,
    MAX_ERRORS = 100,   /* then the run stops: it measures nothing any more */
    SHOWN_ERRORS = 5,
    EVENTS_PER_WAIT = 256,
};
#define SECOND UINT64_C(1000000000)
#define LINGER (SECOND / 5)  /* after the last event that is due: time for one too many to show up */
#define SETTLE (3 * SECOND)  /* without any event while some are due: they are lost */

enum state { CLOSED, OPENING_TCP, UPGRADING, OPENING, JOINING, SUBSCRIBING, LIVE, IDLE, CALLING };

struct connection {
    int fd, number;
    enum state state;
    bool caller;          /* an HTTP connection; else a client that watches */
    uint64_t began;       /* when the connection, or the caller's request, was begun */
    char *rest;           /* the beginning of a message whose end has not arrived */
    size_t rest_length;
    struct stream *streams;
    int stream_count;
    struct order *order;  /* what the caller's request is about; NULL for a new one */
    int version;          /* that the answer must have */
};

static struct plan plan;
static struct connection *clients;
static int client_count; /* clients[0 … client_count-1] exist */
static int epoll_fd, timer_fd;
static char read_buffer[READ_ROOM];
static uint64_t received_at;

/* What a step measures. */
static struct {
    uint64_t began, ended, cpu_began, cpu_ended, last_delivery;
    long connected, failed;
    long started, answered; /* requests */
    long expected, delivered;
    long errors, wrong, verdicts[SKIPPED + 1];
    struct samples delivery, answer, connect;
} tally;

/* The requests of the running step. */
static struct {
    struct connection *callers;
    int caller_count, next_caller, next_order;
    enum step_kind kind; /* GET, POST, or else a change of status */
    bool exhausted;
    long count;
    double rate;
    uint64_t until, count_from;
} calls;

static void complain(const char *format, ...) {
    if (tally.errors++ >= SHOWN_ERRORS) return;
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

/* ---- connections ---------------------------------------------------------------------------- */

static void close_connection(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->state = CLOSED;
    c->rest_length = 0;
    free(c->rest);
    c->rest = NULL;
}

static void fail(struct connection *c, const char *why) {
    complain("%s %d: %s", c->caller ? "caller" : "client", c->number, why);
    if (!c->caller && c->state != LIVE) tally.failed++;
    if (c->caller && c->order) c->order->in_flight = false;
    close_connection(c);
}

static void transmit(struct connection *c, const char *bytes, size_t length) {
    ssize_t sent = send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent != (ssize_t)length) fail(c, sent < 0 ? strerror(errno) : "the socket took part of a request");
}

static void open_connection(struct connection *c, enum state state) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    c->state = state;
    c->began = now_ns();
    if (c->fd < 0) return fail(c, strerror(errno));
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const struct sockaddr_in *server = &plan.servers[c->number % plan.server_count];
    if (connect(c->fd, (const struct sockaddr *)server, sizeof *server) < 0 && errno != EINPROGRESS)
        return fail(c, strerror(errno));
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) fail(c, strerror(errno));
}

static const char *token_of(const struct connection *c) { return plan.tokens[c->number % plan.token_count]; }

/* ---- WebSocket, client side ----------------------------------------------------------------- */

/* Frames must be masked; a key of zeros costs the server the same and spares us the work. */
static void send_frame(struct connection *c, int opcode, const char *payload, size_t length) {
    static char frame[65536 + 8];
    size_t header = 2;
    if (length >= 65536) abort();
    frame[0] = (char)(0x80 | opcode);
    if (length < 126) {
        frame[1] = (char)(0x80 | length);
    } else {
        frame[1] = (char)(0x80 | 126);
        frame[2] = (char)(length >> 8);
        frame[3] = (char)length;
        header = 4;
    }
    memset(frame + header, 0, 4);
    memcpy(frame + header + 4, payload, length);
    transmit(c, frame, header + 4 + length);
}

static void send_text(struct connection *c, const char *text) { send_frame(c, 1, text, strlen(text)); }

static void send_upgrade(struct connection *c) {
    char path[128], request[8192];
    const struct stream *own = c->streams;
    if (!plan.raw_websocket)
        snprintf(path, sizeof path, "/socket.io/?EIO=4&transport=websocket");
    else if (own->newest)
        snprintf(path, sizeof path, "/ws/orders/%ld?after=%d", plan.orders[own->order].id, own->newest);
    else
        snprintf(path, sizeof path, "/ws/orders/%ld", plan.orders[own->order].id);
    const struct sockaddr_in *server = &plan.servers[c->number % plan.server_count];
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s%s%s\r\n",
                          path, ntohs(server->sin_port), plan.raw_websocket ? "Authorization: Bearer " : "",
                          plan.raw_websocket ? token_of(c) : "", plan.raw_websocket ? "\r\n" : "");
    transmit(c, request, (size_t)length);
}

static void send_connect(struct connection *c) {
    char text[8192];
    snprintf(text, sizeof text, "40{\"token\":\"%s\"}", token_of(c));
    send_text(c, text);
}

static void send_subscribe(struct connection *c) {
    static char text[65536];
    size_t length = (size_t)sprintf(text, "420[\"subscribe\",%s", c->stream_count > 1 ? "{\"orders\":[" : "");
    for (int i = 0; i < c->stream_count; i++) {
        const struct stream *stream = &c->streams[i];
        if (length > sizeof text - 128) abort();
        length += (size_t)sprintf(text + length, "%s{\"order_id\":\"%ld\"", i ? "," : "",
                                  plan.orders[stream->order].id);
        if (stream->newest) length += (size_t)sprintf(text + length, ",\"after\":%d", stream->newest);
        length += (size_t)sprintf(text + length, "}");
    }
    sprintf(text + length, "%s]", c->stream_count > 1 ? "]}" : "");
    send_text(c, text);
}

/* ---- what arrives at a client --------------------------------------------------------------- */

static void become_live(struct connection *c) {
    c->state = LIVE;
    tally.connected++;
    samples_add(&tally.connect, received_at - c->began);
    for (int i = 0; i < c->stream_count; i++) plan.orders[c->streams[i].order].watchers++;
}

/* What an event says: a version of an order. Its status was checked already. */
struct said {
    int order, version;
};

/* False when it is none that can be due. */
static bool read_event(struct span event, struct said *said) {
    int index = plan_find_order(&plan, json_number(json_get(event, "order_id")));
    long version = json_number(json_get(event, "version"));
    *said = (struct said){index, (int)version};
    return index >= 0 && version >= 1 && version <= LAST_STATUS_VERSION &&
           json_is(json_get(event, "status"), status_of_version[version]);
}

static struct stream *stream_of(struct connection *c, int order) {
    if (c->stream_count > 1) return &c->streams[order]; /* it watches all of them */
    return c->streams->order == order ? c->streams : NULL;
}

/* One event, live or replayed, against the stream that it belongs to. */
static void take_said(struct connection *c, struct said said, bool live) {
    struct stream *stream = stream_of(c, said.order);
    if (!stream) {
        tally.wrong++;
        return;
    }
    tally.verdicts[stream_take(stream, said.version)]++;
    if (!live) return;
    tally.delivered++;
    tally.last_delivery = received_at;
    samples_add(&tally.delivery, received_at - plan.orders[said.order].due[said.version]);
}

static void take_event(struct connection *c, struct span event, bool live) {
    struct said said;
    if (read_event(event, &said)) return take_said(c, said, live);
    if (tally.wrong++ < SHOWN_ERRORS)
        fprintf(stderr, "client %d: not an event that is due: %.*s\n", c->number,
                (int)(event.end - event.at), event.at);
}

/* A broadcast reaches each client as the same bytes. Those of the last few are kept with what they say,
 * so that a message costs a comparison instead of a parse, and the load generator is not the limit. */
static struct {
    char bytes[1024];
    size_t length;
    struct said said;
} heard[16];
static int last_heard, next_heard;

static bool take_heard(struct connection *c, struct span text) {
    size_t length = (size_t)(text.end - text.at);
    enum { COUNT = sizeof heard / sizeof *heard };
    for (int i = 0; length && i < COUNT; i++) {
        int at = (last_heard + i) % COUNT;
        if (heard[at].length != length || memcmp(heard[at].bytes, text.at, length) != 0) continue;
        last_heard = at;
        take_said(c, heard[at].said, true);
        return true;
    }
    return false;
}

static void take_live(struct connection *c, struct span text, struct span event) {
    size_t length = (size_t)(text.end - text.at);
    struct said said;
    if (length <= sizeof heard->bytes && read_event(event, &said)) {
        memcpy(heard[next_heard].bytes, text.at, length);
        heard[next_heard].length = length;
        heard[next_heard].said = said;
        next_heard = (next_heard + 1) % (int)(sizeof heard / sizeof *heard);
    }
    take_event(c, event, true);
}

/* One order's part of a subscription's answer: its version, and the events that were missed. */
static bool take_result(struct connection *c, struct stream *stream, struct span result) {
    long version = json_number(json_get(result, "version"));
    struct span events = json_get(result, "events"), event;
    if (!json_true(json_get(result, "ok")) || version < 1 || version > MAX_VERSION || !events.at) return false;
    if (stream->newest == 0) stream_begin(stream, (int)version);
    for (const char *cursor = events.at; json_next(events, &cursor, &event);) take_event(c, event, false);
    return stream->newest == version && version == plan.orders[stream->order].version;
}

static bool take_ack(struct connection *c, struct span answer) {
    struct span ack, result;
    const char *cursor = answer.at;
    if (!json_next(answer, &cursor, &ack) || !json_true(json_get(ack, "ok"))) return false;
    if (c->stream_count == 1) return take_result(c, c->streams, ack);
    struct span results = json_get(ack, "results");
    cursor = results.at;
    for (int i = 0; i < c->stream_count; i++)
        if (!cursor || !json_next(results, &cursor, &result) || !take_result(c, &c->streams[i], result))
            return false;
    return true;
}

static bool starts(struct span text, const char *prefix) {
    size_t length = strlen(prefix);
    return (size_t)(text.end - text.at) >= length && memcmp(text.at, prefix, length) == 0;
}

static void take_socketio(struct connection *c, struct span text) {
    if (c->state == LIVE && take_heard(c, text)) return;
    if (starts(text, "2")) return send_text(c, "3");
    if (c->state == LIVE && starts(text, "42[")) {
        struct span args = {text.at + 2, text.end}, name, event;
        const char *cursor = args.at;
        if (json_next(args, &cursor, &name) && json_is(name, "order_update") &&
            json_next(args, &cursor, &event))
            return take_live(c, text, event);
    }
    if (c->state == OPENING && starts(text, "0{")) {
        c->state = JOINING;
        return send_connect(c);
    }
    if (c->state == JOINING && starts(text, "40")) {
        c->state = SUBSCRIBING;
        return send_subscribe(c);
    }
    if (c->state == SUBSCRIBING && starts(text, "430[") &&
        take_ack(c, (struct span){text.at + 3, text.end}))
        return become_live(c);
    fprintf(stderr, "client %d got: %.*s\n", c->number,
            (int)(text.end - text.at > 300 ? 300 : text.end - text.at), text.at);
    fail(c, "an unexpected message");
}

static void take_raw(struct connection *c, struct span event) {
    struct stream *stream = c->streams;
    if (c->state == LIVE) {
        if (!take_heard(c, event)) take_live(c, event, event);
        return;
    }
    if (stream->newest == 0)
        stream_begin(stream, (int)json_number(json_get(event, "version")));
    else
        take_event(c, event, false);
    if (stream->newest == plan.orders[stream->order].version) become_live(c);
}

/* Takes one frame; how many bytes it was, 0 when it is not complete. */
static size_t take_frame(struct connection *c, const char *at, size_t length) {
    if (length < 2) return 0;
    const unsigned char *head = (const unsigned char *)at;
    size_t payload = head[1] & 0x7f, header = 2;
    if (payload == 126) {
        header = 4;
        if (length < header) return 0;
        payload = (size_t)head[2] << 8 | head[3];
    } else if (payload == 127) {
        header = 10;
        if (length < header) return 0;
        payload = 0;
        for (int i = 2; i < 10; i++) payload = payload << 8 | head[i];
    }
    if (payload > READ_ROOM - header) {
        fail(c, "a frame that is too large");
        return 0;
    }
    if (length < header + payload) return 0;
    struct span text = {at + header, at + header + payload};
    if (head[0] == 0x81) {
        if (plan.raw_websocket)
            take_raw(c, text);
        else
            take_socketio(c, text);
    } else if (head[0] == 0x89) {
        send_frame(c, 10, text.at, payload);
    } else if (head[0] == 0x88 && payload >= 2) {
        complain("close code %d", (unsigned char)text.at[0] << 8 | (unsigned char)text.at[1]);
        fail(c, "closed by the server");
    } else if (head[0] != 0x8a) {
        fail(c, "an unexpected kind of frame");
    }
    return header + payload;
}

/* ---- HTTP ----------------------------------------------------------------------------------- */

static bool changing(void) { return calls.kind != GET && calls.kind != POST; }

/* Calls about an order; about none when it is NULL: places one. */
static void send_call(struct connection *c, struct order *order, uint64_t due) {
    char request[8192], path[64] = "/api/orders", body[128] = "";
    const struct sockaddr_in *server = &plan.servers[c->number % plan.server_count];
    c->order = order;
    c->version = order ? order->version + changing() : 1;
    if (order)
        snprintf(path, sizeof path, "/api/orders/%ld%s", order->id, changing() ? "/status" : "");
    else
        snprintf(body, sizeof body, "{\"description\":\"Two boxes of tea, one of rusks\"}");
    if (changing()) {
        snprintf(body, sizeof body, "{\"status\":\"%s\"}", status_of_version[c->version]);
        order->in_flight = true;
        order->due[c->version] = due;
    }
    char sized[80] = ""; /* a GET has no body, and says so by saying nothing */
    if (*body)
        snprintf(sized, sizeof sized, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    int length = snprintf(request, sizeof request,
                          "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n%s\r\n%s",
                          calls.kind == GET ? "GET" : calls.kind == POST ? "POST" : "PUT", path,
                          ntohs(server->sin_port), token_of(c), sized, body);
    c->state = CALLING;
    c->began = due;
    tally.started++;
    transmit(c, request, (size_t)length);
}

static void take_answer(struct connection *c, int status, struct span body) {
    struct order *order = c->order;
    long id = json_number(json_get(body, "id"));
    c->state = IDLE;
    if (order) order->in_flight = false;
    if (received_at >= calls.count_from && (!calls.until || received_at < calls.until)) {
        tally.answered++;
        samples_add(&tally.answer, received_at - c->began);
    }
    if (status != (order ? 200 : 201) || (order ? id != order->id : id < 1) ||
        json_number(json_get(body, "version")) != c->version ||
        !json_is(json_get(body, "status"), status_of_version[c->version]))
        return complain("order %ld, version %d: answer %d %.*s", order ? order->id : 0, c->version, status,
                        (int)(body.end - body.at > 300 ? 300 : body.end - body.at), body.at);
    if (!changing()) return;
    order->version = c->version;
    tally.expected += order->watchers;
}

/* Takes one answer, or the acceptance of the upgrade; how many bytes it was, 0 when not complete. */
static size_t take_http(struct connection *c, const char *at, size_t length) {
    const char *head_end = memmem(at, length, "\r\n\r\n", 4);
    if (!head_end) return 0;
    size_t head = (size_t)(head_end - at) + 4, body = 0;
    int status = atoi(at + strcspn(at, " "));
    if (status == 101 && !c->caller) {
        if (!memmem(at, head, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28)) {
            fail(c, "a wrong Sec-WebSocket-Accept");
            return 0;
        }
        c->state = OPENING;
        if (plan.raw_websocket && c->streams->newest == plan.orders[c->streams->order].version) become_live(c);
        return head;
    }
    bool sized = false;
    for (const char *line = at; line < head_end; line += strcspn(line, "\n") + 1)
        if (strncasecmp(line, "content-length:", 15) == 0) body = strtoul(line + 15, NULL, 10), sized = true;
    if (!sized || body > READ_ROOM - head || !c->caller) {
        complain("%.*s", (int)(length > 400 ? 400 : length), at);
        fail(c, "an unexpected answer");
        return 0;
    }
    if (length < head + body) return 0;
    take_answer(c, status, (struct span){at + head, at + head + body});
    return head + body;
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void on_writable(struct connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return fail(c, strerror(error));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    if (c->caller) {
        c->state = IDLE;
    } else {
        c->state = UPGRADING;
        send_upgrade(c);
    }
}

static void on_readable(struct connection *c) {
    if (c->rest_length) memcpy(read_buffer, c->rest, c->rest_length);
    ssize_t got = recv(c->fd, read_buffer + c->rest_length, READ_ROOM - c->rest_length, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got == 0 && c->state == IDLE) { /* a server may end an unused connection: take another */
        close_connection(c);
        return open_connection(c, OPENING_TCP);
    }
    if (got <= 0) return fail(c, got < 0 ? strerror(errno) : "the server hung up");
    received_at = now_ns();
    size_t length = c->rest_length + (size_t)got, used, at = 0;
    c->rest_length = 0;
    while (at < length) {
        used = c->caller || c->state == UPGRADING ? take_http(c, read_buffer + at, length - at)
                                                  : take_frame(c, read_buffer + at, length - at);
        if (c->state == CLOSED) return;
        if (!used) break;
        at += used;
    }
    if (at == length) return;
    c->rest_length = length - at;
    c->rest = realloc(c->rest, c->rest_length);
    if (!c->rest) abort();
    memcpy(c->rest, read_buffer + at, c->rest_length);
}

/* Waits for something to happen, at most 50 ms, and handles it. */
static void pump(void) {
    struct epoll_event events[EVENTS_PER_WAIT];
    int count = epoll_wait(epoll_fd, events, EVENTS_PER_WAIT, 50);
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (!c) {
            uint64_t expirations;
            if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) abort();
        } else if (c->state == OPENING_TCP) {
            on_writable(c);
        } else if (c->state != CLOSED) {
            on_readable(c);
        }
    }
    if (tally.errors >= MAX_ERRORS) {
        fprintf(stderr, "%d errors: giving up\n", MAX_ERRORS);
        exit(1);
    }
}

static uint64_t step_limit(void) { return now_ns() + (uint64_t)(plan.limit_seconds * 1e9); }

/* ---- steps ---------------------------------------------------------------------------------- */

static void start_clock(void) {
    tally.began = now_ns();
    tally.cpu_began = cpu_ns();
}

static void stop_clock(void) {
    tally.ended = now_ns();
    tally.cpu_ended = cpu_ns();
}

/* As many as the largest step wants, once: epoll holds their addresses. */
static void create_clients(void) {
    int wanted = 0;
    for (int i = 0; i < plan.step_count; i++)
        if (plan.steps[i].kind == CONNECT && plan.steps[i].arg[0] > wanted) wanted = (int)plan.steps[i].arg[0];
    clients = calloc((size_t)wanted + 1, sizeof *clients);
    if (!clients) abort();
    for (client_count = 0; client_count < wanted; client_count++) {
        struct connection *c = &clients[client_count];
        *c = (struct connection){.fd = -1, .number = client_count, .state = CLOSED};
        c->stream_count = plan.watch_all && !plan.raw_websocket ? plan.order_count : 1;
        c->streams = calloc((size_t)c->stream_count, sizeof *c->streams);
        if (!c->streams) abort();
        for (int i = 0; i < c->stream_count; i++)
            c->streams[i].order = c->stream_count > 1 ? i : client_count % plan.order_count;
    }
}

static void run_connect(const struct step *step) {
    int wanted = (int)step->arg[0], in_flight = (int)step->arg[1], next = 0, missing = 0;
    for (int i = 0; i < wanted; i++) missing += clients[i].state == CLOSED;
    uint64_t limit = step_limit();
    start_clock();
    for (long begun = 0; tally.connected + tally.failed < missing && now_ns() < limit; pump()) {
        for (; begun < missing && begun - tally.connected - tally.failed < in_flight; next++) {
            if (clients[next].state != CLOSED) continue;
            open_connection(&clients[next], OPENING_TCP);
            begun++;
        }
    }
    stop_clock();
    if (tally.connected < missing)
        complain("%ld of %d clients are connected and subscribed", tally.connected, missing);
}

static void run_drop(void) {
    start_clock();
    for (int i = 0; i < client_count; i++) close_connection(&clients[i]);
    for (int i = 0; i < plan.order_count; i++) plan.orders[i].watchers = 0;
    stop_clock();
}

static void run_hold(const struct step *step) {
    uint64_t until = now_ns() + (uint64_t)(step->arg[0] * 1e9);
    start_clock();
    while (now_ns() < until) pump();
    stop_clock();
}

/* The order whose turn it is, or NULL while its earlier change is unanswered or when all are done. */
static struct order *next_order(void) {
    for (int tried = 0; tried < plan.order_count; tried++) {
        struct order *order = &plan.orders[calls.next_order];
        if (order->in_flight) return NULL;
        calls.next_order = (calls.next_order + 1) % plan.order_count;
        if (!changing() || order->version < LAST_STATUS_VERSION) return order;
    }
    calls.exhausted = true;
    return NULL;
}

static struct connection *idle_caller(void) {
    for (int tried = 0; tried < calls.caller_count; tried++) {
        struct connection *c = &calls.callers[calls.next_caller];
        calls.next_caller = (calls.next_caller + 1) % calls.caller_count;
        if (c->state == IDLE) return c;
        if (c->state == CLOSED) open_connection(c, OPENING_TCP); /* its error is counted already */
    }
    return NULL;
}

/* Sends every request whose time has come and that a caller is free for. */
static void dispatch(void) {
    while (!calls.exhausted && (!calls.count || tally.started < calls.count)) {
        uint64_t now = now_ns(), due = now;
        if (calls.until && now >= calls.until) return;
        if (calls.rate > 0) {
            due = tally.began + (uint64_t)((double)tally.started / calls.rate * 1e9);
            if (due > now) {
                struct itimerspec at = {.it_value = {(time_t)(due / SECOND), (long)(due % SECOND)}};
                timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
                return;
            }
        }
        struct connection *c = idle_caller();
        struct order *order = c && calls.kind != POST ? next_order() : NULL;
        if (!c || (!order && calls.kind != POST)) return;
        send_call(c, order, due);
    }
}

static bool callers_are(enum state state) {
    for (int i = 0; i < calls.caller_count; i++)
        if (calls.callers[i].state != state) return false;
    return true;
}

static void open_callers(int count) {
    calls.callers = calloc((size_t)count, sizeof *calls.callers);
    if (!calls.callers) abort();
    calls.caller_count = count;
    for (int i = 0; i < count; i++) {
        calls.callers[i] = (struct connection){.fd = -1, .number = i, .caller = true};
        open_connection(&calls.callers[i], OPENING_TCP);
    }
    for (uint64_t limit = step_limit(); !callers_are(IDLE) && now_ns() < limit;) pump();
}

static void close_callers(void) {
    for (int i = 0; i < calls.caller_count; i++) close_connection(&calls.callers[i]);
    free(calls.callers);
    memset(&calls, 0, sizeof calls);
}

/* A number of changes, until every watcher has every event of them. */
static void run_change(const struct step *step) {
    open_callers((int)step->arg[0]);
    calls.kind = CHANGE;
    calls.count = (long)step->arg[1];
    calls.rate = step->arg[2];
    uint64_t limit = step_limit();
    start_clock();
    while (now_ns() < limit && !calls.exhausted) {
        dispatch();
        pump();
        if (tally.answered < calls.count) continue;
        if (tally.delivered >= tally.expected) break;
        uint64_t quiet_since = tally.last_delivery > received_at ? tally.last_delivery : received_at;
        if (now_ns() - quiet_since > SETTLE) break;
    }
    stop_clock();
    if (tally.last_delivery) tally.ended = tally.last_delivery;
    if (tally.answered < calls.count) complain("%ld of %ld changes are answered", tally.answered, calls.count);
    for (uint64_t until = now_ns() + LINGER; now_ns() < until;) pump();
    close_callers();
}

/* Requests as fast as they are answered, for a time. */
static void run_calls(const struct step *step) {
    open_callers((int)step->arg[0]);
    calls.kind = step->kind;
    uint64_t began = now_ns();
    calls.count_from = began + (uint64_t)(step->arg[2] * 1e9);
    calls.until = calls.count_from + (uint64_t)(step->arg[1] * 1e9);
    bool counting = false;
    while (now_ns() < calls.until && !calls.exhausted) {
        if (!counting && now_ns() >= calls.count_from) {
            start_clock();
            counting = true;
        }
        dispatch();
        pump();
    }
    stop_clock();
    if (calls.exhausted) complain("out of orders to change after %ld", tally.started);
    for (uint64_t limit = step_limit(); !callers_are(IDLE) && now_ns() < limit;) pump();
    close_callers();
}

/* ---- the result ----------------------------------------------------------------------------- */

static long count_missing(void) {
    long missing = 0;
    for (int i = 0; i < client_count; i++)
        for (int k = 0; clients[i].state == LIVE && k < clients[i].stream_count; k++)
            missing += stream_missing(&clients[i].streams[k], plan.orders[clients[i].streams[k].order].version);
    return missing;
}

static void print_result(const struct step *step) {
    double seconds = (double)(tally.ended - tally.began) / 1e9;
    double cpu = (double)(tally.cpu_ended - tally.cpu_began) / 1e9;
    printf("{\"step\":\"%s\",\"seconds\":%.6f,\"load_cpu\":%.3f,\"connected\":%ld,\"started\":%ld,"
           "\"answered\":%ld,\"delivered\":%ld,\"expected\":%ld,\"errors\":%ld,",
           step->name, seconds, seconds > 0 ? cpu / seconds : 0, tally.connected, tally.started,
           tally.answered, tally.delivered, tally.expected, tally.errors);
    printf("\"faults\":{\"missing\":%ld,\"repeated\":%ld,\"late\":%ld,\"skipped\":%ld,\"wrong\":%ld},",
           count_missing(), tally.verdicts[REPEATED], tally.verdicts[LATE], tally.verdicts[SKIPPED],
           tally.wrong);
    samples_print(&tally.delivery, "delivery_ms");
    printf(",");
    samples_print(&tally.answer, "answer_ms");
    printf(",");
    samples_print(&tally.connect, "connect_ms");
    printf("}\n");
    fflush(stdout);
}

static void run_step(const struct step *step) {
    char line[64];
    printf("{\"begin\":\"%s\"}\n", step->name);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(3); /* whoever ran us is gone */
    struct samples delivery = tally.delivery, answer = tally.answer, connect = tally.connect;
    memset(&tally, 0, sizeof tally);
    tally.delivery = delivery, tally.answer = answer, tally.connect = connect;
    samples_clear(&tally.delivery), samples_clear(&tally.answer), samples_clear(&tally.connect);
    switch (step->kind) {
    case CONNECT: run_connect(step); break;
    case CHANGE: run_change(step); break;
    case DROP: run_drop(); break;
    case HOLD: run_hold(step); break;
    case PUT:
    case GET:
    case POST: run_calls(step); break;
    }
    print_result(step);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s PLAN\n", argv[0]);
        return 2;
    }
    plan = plan_read(argv[1]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_fd < 0 || timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event) < 0) {
        perror("epoll");
        return 1;
    }
    create_clients();
    for (int i = 0; i < plan.step_count; i++) run_step(&plan.steps[i]);
    return 0;
}
