/* One request after the other on each of `parallel` connections that stay open (HTTP/1.1 keep-alive). */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "load.h"

static struct latencies answers;
static long good, bad;
static bool measuring, over;

/* A # in the path is three bytes of an address that changes with each request. */
static void ask(struct conn *c) {
    char request[1024], path[512];
    const char *mark = strchr(options.path, '#');
    uint32_t n = c->index * 7919u + c->asked++ * 104729u;
    if (mark)
        snprintf(path, sizeof path, "%.*s%u.%u.%u%s", (int)(mark - options.path), options.path, n & 255, n >> 8 & 255,
                 n >> 16 & 255, mark + 1);
    else
        snprintf(path, sizeof path, "%s", options.path);
    bool body = !strcmp(options.method, "POST");
    int size = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n", options.method, path,
                        c->port, body ? "Content-Type: application/json\r\nContent-Length: 0\r\n" : "");
    c->begun_ns = now_ns();
    conn_write(c, (const uint8_t *)request, (size_t)size);
}

static long content_length(const char *head, size_t size) {
    static const char NAME[] = "\r\ncontent-length:";
    for (size_t i = 0; i + sizeof NAME < size; i++) {
        if (head[i] == '\r' && !strncasecmp(head + i, NAME, sizeof NAME - 1))
            return strtol(head + i + sizeof NAME - 1, NULL, 10);
    }
    return -1;
}

static void answered(struct conn *c, const uint8_t *bytes, size_t size) {
    const uint8_t *end = memmem(bytes, size, "\r\n\r\n", 4);
    long length = end ? content_length((const char *)bytes, (size_t)(end - bytes) + 4) : 0;
    if (end && length < 0)
        fail("an answer without Content-Length");
    if (!end || size < (size_t)(end - bytes) + 4 + (size_t)length) {
        conn_keep(c, bytes, size);
        return;
    }
    conn_keep(c, NULL, 0);
    if (measuring) {
        latency_add(&answers, now_ns() - c->begun_ns);
        if (memcmp(bytes, "HTTP/1.1 200", 12))
            bad++;
        else
            good++;
    }
    if (!over)
        ask(c);
}

static void reopened(struct conn *c) {
    if (measuring)
        bad++;
    if (!over && bad < 1000)
        conn_open(c);
}

void run_http(void) {
    struct conn *conns = calloc((size_t)options.parallel, sizeof *conns);
    double cpu_s[MAX_PIDS] = {0}, own_s;
    if (!conns)
        fail("out of memory");
    mode.connected = ask;
    mode.data = answered;
    mode.closed = reopened;
    for (int i = 0; i < options.parallel; i++) {
        conns[i] = (struct conn){.port = (uint16_t)options.ports[0], .index = (uint32_t)i};
        conn_open(&conns[i]);
    }
    uint64_t from_ns = now_ns() + seconds_ns(options.warmup_s), until_ns = from_ns + seconds_ns(options.seconds);
    while (now_ns() < from_ns)
        net_turn(from_ns);
    measuring = true;
    for (int i = 0; i < options.pid_count; i++)
        cpu_s[i] = cpu_seconds(options.pids[i]);
    own_s = own_cpu_seconds();
    from_ns = now_ns();
    while (now_ns() < until_ns && bad < 1000)
        net_turn(until_ns);
    double taken_s = (double)(now_ns() - from_ns) / 1e9;
    over = true;
    printf("{\"requests\":%ld,\"failures\":%ld,\"seconds\":%.4f,\"rate\":%.2f,\"generator_busy\":%.3f,\"cpu_s\":[", good, bad,
           taken_s, (double)good / taken_s, (own_cpu_seconds() - own_s) / taken_s);
    for (int i = 0; i < options.pid_count; i++)
        printf("%s%.6f", i ? "," : "", cpu_seconds(options.pids[i]) - cpu_s[i]);
    printf("],");
    latency_print(&answers);
    printf("}\n");
}
