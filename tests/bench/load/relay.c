/* Pairs of a client and a worker that send each other offers, answers and candidates through a server.
 *
 * A session is an offer, its answer, and candidates in turn. Closed loop: each message that arrives sets off the next of
 * its session, and `window` sessions are under way between the ends of each pair. Open loop (--rate): the messages leave
 * when they are due, whatever has arrived. The stamp in each message is its step and the time when it was written. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

static const double DRAIN_S = 10; /* for what is under way at the end */
static struct latencies relayed, lateness;
static struct conn *ends; /* client 0, worker 0, client 1, … */
static int session_steps;
static bool measuring, running;
static long sent, arrived, arrived_in_window, errors, lost_connections;
static char first_error[201];
static size_t first_error_size;

static void send_step(struct conn *client, int step, uint64_t now) {
    char stamp[STAMP_CHARS + 1], text[MESSAGE_BYTES];
    struct conn *from = step % 2 ? client->peer : client;
    if (from->state != OPEN)
        return;
    snprintf(stamp, sizeof stamp, "~%x%016llx", (unsigned)step & 15, (unsigned long long)now);
    ws_send(from, 1, text, dialect_message(from, step < 2 ? (enum kind)step : CANDIDATE, stamp, text, sizeof text));
    sent++;
}

static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

static bool stamp_of(const char *text, size_t size, int *step, uint64_t *at_ns) {
    const char *mark = memrchr(text, '~', size); /* it stands near the end */
    if (!mark || mark + STAMP_CHARS > text + size)
        return false;
    *at_ns = 0;
    *step = digit(mark[1]);
    for (int i = 2; i < STAMP_CHARS; i++) {
        if (digit(mark[i]) < 0)
            return false;
        *at_ns = *at_ns << 4 | (uint64_t)digit(mark[i]);
    }
    return *step >= 0;
}

static void message(struct conn *c, const char *text, size_t size) {
    int step;
    uint64_t at_ns, now = now_ns();
    if (!stamp_of(text, size, &step, &at_ns)) {
        if (memmem(text, size, "\"error\"", 7) || memmem(text, size, "\"failure reason\"", 16)) {
            errors++;
            if (!first_error_size) {
                first_error_size = size < 200 ? size : 200;
                memcpy(first_error, text, first_error_size);
            }
        }
        return; /* the tracker answers each announcement */
    }
    arrived++;
    if (measuring) {
        arrived_in_window++;
        latency_add(&relayed, now - at_ns);
    }
    if (running && options.rate == 0)
        send_step(c->role == CLIENT ? c : c->peer, (step + 1) % session_steps, now);
}

static void lost(struct conn *c) {
    (void)c;
    lost_connections++;
}

/* Sends what is due; returns when the next one is. */
static uint64_t send_due(uint64_t begun_ns, uint64_t *number) {
    uint64_t now = now_ns();
    for (;;) {
        uint64_t due_ns = begun_ns + seconds_ns((double)*number / options.rate);
        if (due_ns > now)
            return due_ns;
        uint64_t session = *number / (uint64_t)session_steps;
        send_step(&ends[2 * (session % (uint64_t)options.count)], (int)(*number % (uint64_t)session_steps), now);
        if (measuring)
            latency_add(&lateness, now - due_ns);
        ++*number;
        now = now_ns();
    }
}

static void run_until(uint64_t end_ns, uint64_t begun_ns, uint64_t *number) {
    while (now_ns() < end_ns && !lost_connections) {
        uint64_t next_ns = end_ns;
        if (running && options.rate > 0) {
            uint64_t due_ns = send_due(begun_ns, number);
            next_ns = due_ns < end_ns ? due_ns : end_ns;
        }
        net_turn(next_ns);
    }
}

static void drain(double limit_s) {
    uint64_t until_ns = now_ns() + seconds_ns(limit_s);
    while (arrived + errors < sent && now_ns() < until_ns && !lost_connections)
        net_turn(until_ns);
}

/* One offer for each pair: a cluster of fronts learns from it where the answers go. */
static void prime(void) {
    for (int i = 0; i < options.count; i++)
        send_step(&ends[2 * i], 0, now_ns());
    drain(DRAIN_S);
}

static bool told;

static void input_line(void) { told = true; }

static void make_ends(void) {
    ends = calloc((size_t)options.count * 2, sizeof *ends);
    if (!ends)
        fail("out of memory");
    for (int i = 0; i < 2 * options.count; i++) {
        int place = i % 2 && options.port_count > 1 ? 1 : 0; /* workers at the second port, where there is one */
        ends[i] = (struct conn){.role = i % 2 ? WORKER : CLIENT, .port = (uint16_t)options.ports[place],
                                .index = (uint32_t)(options.start + i / 2), .peer = &ends[i ^ 1]};
        dialect_name(&ends[i]);
    }
}

void run_relay(void) {
    uint64_t number = 0;
    double cpu_s[MAX_PIDS], own_s;
    session_steps = 2 + (dialect_sdp_only() ? 0 : options.candidates);
    make_ends();
    mode.message = message;
    mode.closed = lost;
    mode.line = input_line;
    open_all(ends, 2 * options.count);
    if (opening.failed || opening.joined < 2 * options.count)
        fail("not all connections got in");
    if (options.wait) {
        net_watch_input();
        while (!told && !lost_connections)
            net_turn(now_ns() + seconds_ns(1));
    }
    prime();
    uint64_t begun_ns = now_ns(), from_ns = begun_ns + seconds_ns(options.warmup_s);
    uint64_t until_ns = from_ns + seconds_ns(options.seconds);
    running = true;
    for (int i = 0; options.rate == 0 && i < options.count * options.window; i++)
        send_step(&ends[2 * (i % options.count)], 0, now_ns());
    run_until(from_ns, begun_ns, &number);
    for (int i = 0; i < options.pid_count; i++)
        cpu_s[i] = cpu_seconds(options.pids[i]);
    own_s = own_cpu_seconds();
    from_ns = now_ns();
    measuring = true;
    run_until(until_ns, begun_ns, &number);
    double taken_s = (double)(now_ns() - from_ns) / 1e9;
    for (int i = 0; i < options.pid_count; i++)
        cpu_s[i] = cpu_seconds(options.pids[i]) - cpu_s[i];
    own_s = own_cpu_seconds() - own_s;
    running = false;
    measuring = options.rate > 0; /* what was sent at a steady rate and comes late must be seen */
    long in_time = arrived_in_window;
    drain(DRAIN_S);
    printf("{\"messages\":%ld,\"seconds\":%.4f,\"rate\":%.2f,\"missing\":%ld,\"errors\":%ld,\"lost\":%ld,"
           "\"generator_busy\":%.3f,\"cpu_s\":[", in_time, taken_s, (double)in_time / taken_s, sent - arrived, errors,
           lost_connections, own_s / taken_s);
    for (int i = 0; i < options.pid_count; i++)
        printf("%s%.6f", i ? "," : "", cpu_s[i]);
    printf("],");
    latency_print(&relayed);
    if (first_error_size) {
        printf(",\"first_error\":");
        text_print(first_error, first_error_size);
    }
    printf(",\"generator_late\":{");
    latency_print(&lateness);
    printf("}}\n");
}
