#include "plan.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const status_of_version[] = {NULL, "Pending", "Processing", "Shipped", "Completed"};

static const struct {
    const char *name;
    int args;
} kinds[] = {
    [CONNECT] = {"connect", 2}, [CHANGE] = {"change", 3}, [DROP] = {"drop", 0},
    [PUT] = {"put", 3},         [GET] = {"get", 3},       [POST] = {"post", 3}, [HOLD] = {"hold", 1},
};

static void reject(int line, const char *text) {
    fprintf(stderr, "plan, line %d: cannot read: %s", line, text);
    exit(2);
}

/* Room for one more element, doubling at every power of two. */
static void *grown(void *array, int count, size_t size) {
    if (count & (count - 1)) return array;
    array = realloc(array, (size_t)(count ? count * 2 : 1) * size);
    if (!array) abort();
    return array;
}

static bool read_step(struct plan *plan, const char *word, const char *rest) {
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        if (strcmp(word, kinds[kind].name) != 0) continue;
        struct step step = {.kind = (enum step_kind)kind, .name = kinds[kind].name};
        int got = sscanf(rest, "%lf %lf %lf", &step.arg[0], &step.arg[1], &step.arg[2]);
        if ((got < 0 ? 0 : got) != kinds[kind].args || plan->step_count == MAX_STEPS) return false;
        plan->steps[plan->step_count++] = step;
        return true;
    }
    return false;
}

static bool read_setting(struct plan *plan, const char *word, const char *rest) {
    char text[4096];
    int number;
    if (strcmp(word, "server") == 0) {
        struct sockaddr_in *server = &plan->servers[plan->server_count];
        if (plan->server_count == MAX_SERVERS || sscanf(rest, "%4095s %d", text, &number) != 2) return false;
        *server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)number)};
        plan->server_count++;
        return inet_pton(AF_INET, text, &server->sin_addr) == 1;
    }
    if (strcmp(word, "token") == 0) {
        if (sscanf(rest, "%4095s", text) != 1) return false;
        plan->tokens = grown(plan->tokens, plan->token_count, sizeof *plan->tokens);
        plan->tokens[plan->token_count++] = strdup(text);
        return true;
    }
    if (strcmp(word, "order") == 0) {
        struct order order = {0};
        if (sscanf(rest, "%ld %d", &order.id, &order.version) != 2) return false;
        if (order.version < 1 || order.version > LAST_STATUS_VERSION) return false;
        if (plan->order_count && plan->orders[plan->order_count - 1].id >= order.id) return false;
        plan->orders = grown(plan->orders, plan->order_count, sizeof *plan->orders);
        plan->orders[plan->order_count++] = order;
        return true;
    }
    if (sscanf(rest, "%4095s", text) != 1) return false;
    if (strcmp(word, "watch") == 0) {
        plan->watch_all = strcmp(text, "all") == 0;
        return plan->watch_all || strcmp(text, "own") == 0;
    }
    if (strcmp(word, "protocol") == 0) {
        plan->raw_websocket = strcmp(text, "websocket") == 0;
        return plan->raw_websocket || strcmp(text, "socketio") == 0;
    }
    if (strcmp(word, "limit") == 0) return (plan->limit_seconds = atof(text)) > 0;
    return false;
}

struct plan plan_read(const char *path) {
    struct plan plan = {.limit_seconds = 60};
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        exit(2);
    }
    char line[8192], word[32];
    for (int number = 1; fgets(line, sizeof line, file); number++) {
        int used = 0;
        if (sscanf(line, "%31s%n", word, &used) != 1 || *word == '#') continue;
        if (!read_step(&plan, word, line + used) && !read_setting(&plan, word, line + used))
            reject(number, line);
    }
    fclose(file);
    if (!plan.server_count || !plan.token_count || !plan.order_count || !plan.step_count) {
        fprintf(stderr, "plan: needs a server, a token, an order and a step at least\n");
        exit(2);
    }
    return plan;
}

int plan_find_order(const struct plan *plan, long id) {
    int low = 0, high = plan->order_count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (plan->orders[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < plan->order_count && plan->orders[low].id == id ? low : -1;
}
