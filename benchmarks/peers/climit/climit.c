/* The limit: what a single-threaded program reaches that does nothing but exactly one send() per message.
 *
 * It speaks just enough of the protocol for the load generator (Socket.IO over WebSocket, PUT status),
 * keeps versions in memory, checks no token, has no database, sends every change to everybody, and then
 * answers who made it. Its sockets block: a message is never merged with the next one.
 *
 * climit PORT [drop|repeat|reorder]: the second argument makes it a faulty server, on which the tests
 * show that the load generator's check can fail. It prints "ready" when it listens.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "json.h"

enum { MAX_FILES = 1 << 20, MAX_ORDERS = 1 << 16, ROOM = 1 << 16, LAST_VERSION = 4 };

static const char *const statuses[] = {NULL, "Pending", "Processing", "Shipped", "Completed"};
static int versions[MAX_ORDERS]; /* 0 stands for 1, Pending */
static int watchers[MAX_FILES], watcher_count;
static bool upgraded[MAX_FILES];
static const char *fault = "";

static int version_of(long order) { return versions[order % MAX_ORDERS] ? versions[order % MAX_ORDERS] : 1; }

static void transmit(int fd, const char *bytes, size_t length) {
    if (send(fd, bytes, length, MSG_NOSIGNAL) < 0) shutdown(fd, SHUT_RDWR);
}

static size_t make_frame(char *frame, const char *text) {
    size_t length = strlen(text), header = length < 126 ? 2 : 4;
    frame[0] = (char)0x81;
    frame[1] = (char)(length < 126 ? length : 126);
    if (header == 4) frame[2] = (char)(length >> 8), frame[3] = (char)length;
    memcpy(frame + header, text, length);
    return header + length;
}

static void send_text(int fd, const char *text) {
    static char frame[ROOM + 4];
    transmit(fd, frame, make_frame(frame, text));
}

static size_t make_event(char *frame, long order, int version) {
    char text[1024];
    snprintf(text, sizeof text,
             "42[\"order_update\",{\"order_id\":\"%ld\",\"version\":%d,\"type\":\"status_changed\","
             "\"status\":\"%s\",\"previous_status\":\"%s\",\"actor\":{\"id\":\"9\",\"name\":\"Driver 1\","
             "\"role\":\"driver\"},\"note\":null,\"updated_at\":\"2025-07-28T10:00:00.000000Z\"}]",
             order, version, statuses[version], statuses[version - 1]);
    return make_frame(frame, text);
}

static bool faulty(const char *kind) { return strcmp(fault, kind) == 0; }

/* A faulty server errs towards one client and in one version only: the check must find even that. */
static void broadcast(long order, int version) {
    char frame[1024], late[1024];
    size_t length = make_event(frame, order, version);
    for (int i = 0; i < watcher_count; i++) {
        bool held_back = i == 0 && version == 3 && (faulty("drop") || faulty("reorder"));
        if (!held_back) transmit(watchers[i], frame, length);
        if (i == 0 && version == 3 && faulty("repeat")) transmit(watchers[i], frame, length);
        if (i == 0 && version == 4 && faulty("reorder"))
            transmit(watchers[i], late, make_event(late, order, 3));
    }
}

static void take_put(int fd, char *request) {
    long order = atol(request + strlen("PUT /api/orders/"));
    const char *body = strstr(request, "\r\n\r\n") + 4;
    struct span status = json_get((struct span){body, body + strlen(body)}, "status");
    int version = version_of(order) + 1;
    char answer[512], json[256];
    bool legal = version <= LAST_VERSION && json_is(status, statuses[version]);
    if (legal) versions[order % MAX_ORDERS] = version;
    int length = snprintf(json, sizeof json, "{\"id\":\"%ld\",\"status\":\"%s\",\"version\":%d}", order,
                          statuses[version_of(order)], version_of(order));
    length = snprintf(answer, sizeof answer, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s",
                      legal ? "200 OK" : "409 Conflict", length, json);
    if (legal) broadcast(order, version); /* before the answer, as the peer in Node does */
    transmit(fd, answer, (size_t)length);
}

static void take_upgrade(int fd) {
    static const char accepted[] = /* the load generator always offers the example key of RFC 6455 */
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    upgraded[fd] = true;
    transmit(fd, accepted, sizeof accepted - 1);
    send_text(fd, "0{\"sid\":\"s\",\"upgrades\":[],\"pingInterval\":25000,\"pingTimeout\":20000,"
                  "\"maxPayload\":65536}");
}

static size_t write_result(char *out, struct span wish) {
    long order = json_number(json_get(wish, "order_id"));
    return (size_t)sprintf(out, "{\"ok\":true,\"order\":{\"id\":\"%ld\"},\"version\":%d,\"events\":[]}", order,
                           version_of(order));
}

static void take_subscribe(int fd, struct span args) {
    static char ack[ROOM];
    struct span name, wish, orders, one;
    const char *cursor = args.at;
    if (!json_next(args, &cursor, &name) || !json_next(args, &cursor, &wish)) return;
    size_t length = (size_t)sprintf(ack, "430[");
    orders = json_get(wish, "orders");
    if (orders.at) {
        length += (size_t)sprintf(ack + length, "{\"ok\":true,\"results\":");
        char before = '[';
        for (cursor = orders.at; json_next(orders, &cursor, &one) && length < ROOM - 256; before = ',') {
            ack[length++] = before;
            length += write_result(ack + length, one);
        }
        length += (size_t)sprintf(ack + length, "]}");
    } else {
        length += write_result(ack + length, wish);
    }
    sprintf(ack + length, "]");
    watchers[watcher_count++] = fd;
    send_text(fd, ack);
}

static void take_frame(int fd, unsigned char *frame, size_t got) {
    size_t length = frame[1] & 0x7f, header = 6;
    if (length == 126) length = (size_t)frame[2] << 8 | frame[3], header = 8;
    if (got < header + length) exit(1); /* the load generator writes a frame at a time */
    char *text = (char *)frame + header;
    for (size_t i = 0; i < length; i++) text[i] ^= (char)frame[header - 4 + i % 4];
    if (length >= 3 && memcmp(text, "420", 3) == 0)
        take_subscribe(fd, (struct span){text + 3, text + length});
    else if (length >= 2 && memcmp(text, "40", 2) == 0)
        send_text(fd, "40{\"sid\":\"s\"}");
}

static void forget(int fd) {
    for (int i = 0; i < watcher_count; i++)
        if (watchers[i] == fd) watchers[i] = watchers[--watcher_count];
    upgraded[fd] = false;
    close(fd);
}

static void on_readable(int fd) {
    static char buffer[ROOM + 1];
    ssize_t got = recv(fd, buffer, ROOM, 0);
    if (got <= 0) return forget(fd);
    buffer[got] = 0;
    if (upgraded[fd])
        take_frame(fd, (unsigned char *)buffer, (size_t)got);
    else if (strncmp(buffer, "PUT ", 4) == 0)
        take_put(fd, buffer);
    else
        take_upgrade(fd);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s PORT [drop|repeat|reorder]\n", argv[0]);
        return 2;
    }
    if (argc > 2) fault = argv[2];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MAX_FILES ? files.rlim_max : MAX_FILES;
    setrlimit(RLIMIT_NOFILE, &files);
    int on = 1, server = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(server, (struct sockaddr *)&address, sizeof address) < 0 || listen(server, 4096) < 0) {
        perror("listen");
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = server}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, server, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != server) {
                on_readable(fd);
                continue;
            }
            fd = accept(server, NULL, NULL); /* blocking: a send() may wait for a slow reader */
            if (fd < 0) continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            event.data.fd = fd;
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
