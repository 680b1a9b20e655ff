/* Connections that are opened and held, and connections that are opened and closed. */
#include <stdio.h>
#include <stdlib.h>

#include "load.h"

struct opening opening;

/* -- opening, for every mode with connections that stay -------------------------------------------------------------- */

static void begin_next(void) {
    while (opening.begun < opening.wanted && opening.begun - opening.joined - opening.failed < options.parallel)
        conn_open(&opening.conns[opening.begun++]);
}

static void one_joined(struct conn *c) {
    (void)c;
    opening.joined++;
}

static void one_failed(struct conn *c) {
    (void)c;
    opening.failed++;
}

/* Opens them all and says so. Ends the program when not one of them gets in, or with --limit. */
void open_all(struct conn *conns, int wanted) {
    void (*closed)(struct conn *) = mode.closed;
    uint64_t begun_ns = now_ns(), limit_ns = begun_ns + seconds_ns(options.limit_s);
    opening = (struct opening){.conns = conns, .wanted = wanted};
    mode.joined = one_joined;
    mode.closed = one_failed;
    while (opening.joined + opening.failed < wanted && now_ns() < limit_ns) {
        begin_next();
        net_turn(limit_ns);
    }
    mode.closed = closed;
    printf("{\"event\":\"joined\",\"wanted\":%d,\"joined\":%d,\"failed\":%d,\"seconds\":%.4f}\n", wanted, opening.joined,
           opening.failed, (double)(now_ns() - begun_ns) / 1e9);
    fflush(stdout);
    if (!opening.joined)
        fail("no connection got in");
}

/* -- idle ------------------------------------------------------------------------------------------------------------ */

static int lost;

static void one_lost(struct conn *c) {
    (void)c;
    lost++;
}

static void unasked(struct conn *c, const char *text, size_t size) {
    (void)c, (void)text, (void)size; /* PeerJS and fronts may tell something of their own */
}

void run_idle(void) {
    struct conn *conns = calloc((size_t)options.count, sizeof *conns);
    if (!conns)
        fail("out of memory");
    for (int i = 0; i < options.count; i++) {
        conns[i] = (struct conn){.role = options.workers ? WORKER : CLIENT, .port = (uint16_t)options.ports[0],
                                 .index = (uint32_t)(options.start + i)};
        if (dialect_sdp_only()) {
            conns[i].role = i % 2 ? WORKER : CLIENT; /* swarms of two, as those that relay */
            conns[i].index = (uint32_t)(options.start + i / 2);
        }
        dialect_name(&conns[i]);
    }
    mode.closed = one_lost;
    mode.message = unasked;
    net_watch_input();
    open_all(conns, options.count);
    uint64_t end_ns = now_ns() + seconds_ns(options.seconds);
    while (!input_ended && now_ns() < end_ns)
        net_turn(end_ns);
    printf("{\"lost\":%d}\n", lost);
}

/* -- handshakes: opened, closed with a close frame, opened again -------------------------------------------------------- */

static struct latencies handshakes;
static long done, failures;
static uint64_t measure_from_ns, measure_until_ns;

static void ready_to_ask(struct conn *c) { ws_request(c); }

static void shaken(struct conn *c) {
    static const uint8_t DONE[2] = {0x03, 0xe8}; /* 1000 */
    uint64_t now = now_ns();
    if (now >= measure_from_ns && now < measure_until_ns)
        latency_add(&handshakes, now - c->begun_ns);
    c->step = 1;
    ws_send(c, 8, DONE, sizeof DONE);
}

static void again(struct conn *c) {
    uint64_t now = now_ns();
    if (now >= measure_from_ns && now < measure_until_ns) {
        if (c->step)
            done++;
        else
            failures++;
    }
    if (now < measure_until_ns && failures < 1000) /* not without end into a server that is gone */
        conn_open(c);
}

void run_handshakes(void) {
    struct conn *conns = calloc((size_t)options.parallel, sizeof *conns);
    double cpu_s[MAX_PIDS] = {0}, own_s = 0;
    if (!conns)
        fail("out of memory");
    mode.connected = ready_to_ask;
    mode.upgraded = shaken;
    mode.closed = again;
    mode.message = unasked;
    measure_from_ns = now_ns() + seconds_ns(options.warmup_s);
    measure_until_ns = measure_from_ns + seconds_ns(options.seconds);
    for (int i = 0; i < options.parallel; i++) {
        conns[i] = (struct conn){.port = (uint16_t)options.ports[0], .index = (uint32_t)i};
        dialect_name(&conns[i]);
        conn_open(&conns[i]);
    }
    while (now_ns() < measure_from_ns)
        net_turn(measure_from_ns);
    for (int i = 0; i < options.pid_count; i++)
        cpu_s[i] = cpu_seconds(options.pids[i]);
    own_s = own_cpu_seconds();
    while (now_ns() < measure_until_ns && failures < 1000)
        net_turn(measure_until_ns);
    own_s = own_cpu_seconds() - own_s;
    printf("{\"handshakes\":%ld,\"failures\":%ld,\"seconds\":%.4f,\"rate\":%.2f,\"generator_busy\":%.3f,\"cpu_s\":[", done,
           failures, options.seconds, (double)done / options.seconds, own_s / options.seconds);
    for (int i = 0; i < options.pid_count; i++)
        printf("%s%.6f", i ? "," : "", cpu_seconds(options.pids[i]) - cpu_s[i]);
    printf("],");
    latency_print(&handshakes);
    printf("}\n");
}
