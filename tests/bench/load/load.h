/* The load generator: one thread, one epoll, both ends of everything that is measured. See load.c for its use. */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ID_BYTES = 48, CHUNK_BYTES = 65536, MESSAGE_BYTES = 8192, MAX_PIDS = 4, STAMP_CHARS = 18 };
enum state { FREE, CONNECTING, SECURING, UPGRADING, JOINING, OPEN, ENDING };
enum role { CLIENT, WORKER };
enum kind { OFFER, ANSWER, CANDIDATE };

/* One connection. `in` and `out` are there only while something of a message waits, so that idle ones are small. */
struct conn {
    int fd;
    uint8_t state, role, step;
    bool wants_write;
    uint16_t port;
    uint32_t index; /* of its pair */
    uint32_t asked; /* requests, in http mode */
    uint64_t begun_ns;
    struct conn *peer;
    char id[ID_BYTES]; /* what the server calls it */
    char nonce[33];
    void *tls;
    uint8_t *in, *out;
    size_t in_len, out_len, out_cap;
};

/* What the command line says; the units are in the names. */
struct options {
    const char *mode, *dialect, *prefix, *key, *path, *method;
    int ports[2], port_count;
    int pids[MAX_PIDS], pid_count;
    int count, window, parallel, candidates, start;
    double rate, seconds, warmup_s, limit_s;
    bool tls, wait, workers;
};
extern struct options options;

/* What a mode does with its connections. `data` sees raw bytes where there is no WebSocket (http). */
struct mode {
    void (*connected)(struct conn *); /* TCP, and TLS where it is wanted */
    void (*upgraded)(struct conn *);
    void (*joined)(struct conn *);
    void (*message)(struct conn *, const char *text, size_t size);
    void (*closed)(struct conn *);
    void (*data)(struct conn *, const uint8_t *bytes, size_t size);
    void (*line)(void); /* standard input has a line, or its end */
};
extern struct mode mode;

/* net.c */
extern bool input_ended;
uint64_t now_ns(void);
uint64_t seconds_ns(double seconds);
void net_start(void);
void net_turn(uint64_t until_ns); /* waits for events until then at most, and handles them */
void net_watch_input(void);
void conn_open(struct conn *c);
void conn_close(struct conn *c);
void conn_write(struct conn *c, const uint8_t *bytes, size_t size);
size_t conn_keep(struct conn *c, const uint8_t *rest, size_t size);
const char *tls_start(void); /* NULL, or why there is no TLS */

/* tls.c */
int tls_connect(struct conn *c); /* 1: done, 0: later, -1: failed */
long tls_read(struct conn *c, void *bytes, size_t size); /* 0: end, -1: later, -2: failed */
long tls_write(struct conn *c, const void *bytes, size_t size);
void tls_free(struct conn *c);

/* websocket.c */
void ws_request(struct conn *c);
void ws_data(struct conn *c, const uint8_t *bytes, size_t size);
void ws_send(struct conn *c, uint8_t opcode, const void *payload, size_t size);

/* dialect.c */
bool dialect_choose(const char *name);
size_t dialect_request(struct conn *c, char *out, size_t size); /* path, and further header lines */
void dialect_opened(struct conn *c);
void dialect_joining(struct conn *c, const char *text, size_t size);
size_t dialect_message(struct conn *from, enum kind kind, const char *stamp, char *out, size_t size);
bool dialect_sdp_only(void);
void dialect_name(struct conn *c);

/* sha256.c */
void hmac_sha256_hex(const char *key, const char *text, char out[65]);

/* report.c */
struct latencies {
    uint32_t *tenths_us;
    size_t count, cap;
};
void latency_add(struct latencies *l, uint64_t ns);
void latency_print(struct latencies *l); /* "p50_ms":…,"p99_ms":…,"max_ms":… */
double cpu_seconds(int pid); /* user and system time of a process so far; negative when it is gone */
double own_cpu_seconds(void);
void text_print(const char *text, size_t size); /* as a JSON string, cut at 200 bytes */
void fail(const char *why);

/* the modes: each prints one line of JSON at its end, and {"event":"joined",…} when all connections are open */
void run_relay(void);
void run_idle(void);
void run_handshakes(void);
void run_http(void);

/* relay.c and idle.c */
struct opening {
    struct conn *conns;
    int wanted, begun, joined, failed;
};
extern struct opening opening;
void open_all(struct conn *conns, int wanted);
#endif
