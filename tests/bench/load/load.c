/* The load generator of the benchmarks. Only to servers on this machine: it connects to 127.0.0.1 and nowhere else.
 *
 *   cc -O2 -o load *.c -ldl
 *   load handshakes --dialect relay --port 8080 --seconds 3
 *   load idle --dialect front --port 8080 --count 10000       (holds them until its standard input ends)
 *   load relay --dialect front --port 8080 --count 100 --window 8 --seconds 3 [--rate 1000] [--pid N] …
 *   load http --port 8080 --method POST --path /bootstrap
 *
 * Everything is told in lines of JSON on standard output. Latencies are from the write of a message, in this process, to
 * its arrival in this process. Nothing runs longer than its --seconds and --limit. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "load.h"

struct options options = {
    .dialect = "front", .prefix = "r", .key = "", .path = "/", .method = "GET", .count = 100, .window = 1,
    .parallel = 32, .candidates = 6, .seconds = 3, .warmup_s = 0.5, .limit_s = 60};

static void nobody(struct conn *c) { (void)c; }
struct mode mode = {.connected = ws_request, .upgraded = dialect_opened, .joined = nobody, .closed = nobody,
                    .data = ws_data};

static struct {
    const char *name;
    const char **text;
    int *number;
    double *decimal;
    bool *flag;
} const TABLE[] = {
    {"--dialect", .text = &options.dialect},       {"--prefix", .text = &options.prefix},
    {"--key", .text = &options.key},               {"--path", .text = &options.path},
    {"--method", .text = &options.method},         {"--count", .number = &options.count},
    {"--window", .number = &options.window},       {"--parallel", .number = &options.parallel},
    {"--candidates", .number = &options.candidates}, {"--start", .number = &options.start},
    {"--rate", .decimal = &options.rate},          {"--seconds", .decimal = &options.seconds},
    {"--warmup", .decimal = &options.warmup_s},    {"--limit", .decimal = &options.limit_s},
    {"--tls", .flag = &options.tls},               {"--wait", .flag = &options.wait},
    {"--workers", .flag = &options.workers}};

static void parse(int count, char **words) {
    options.mode = count > 1 ? words[1] : "";
    for (int i = 2; i < count; i++) {
        const char *name = words[i];
        size_t row = 0, rows = sizeof TABLE / sizeof TABLE[0];
        while (row < rows && strcmp(TABLE[row].name, name))
            row++;
        if (row < rows && TABLE[row].flag) {
            *TABLE[row].flag = true;
            continue;
        }
        if (++i == count)
            fail("an option without its value");
        if (row < rows && TABLE[row].text)
            *TABLE[row].text = words[i];
        else if (row < rows && TABLE[row].number)
            *TABLE[row].number = atoi(words[i]);
        else if (row < rows && TABLE[row].decimal)
            *TABLE[row].decimal = atof(words[i]);
        else if (!strcmp(name, "--port") && options.port_count < 2)
            options.ports[options.port_count++] = atoi(words[i]);
        else if (!strcmp(name, "--pid") && options.pid_count < MAX_PIDS)
            options.pids[options.pid_count++] = atoi(words[i]);
        else
            fail(name);
    }
}

int main(int count, char **words) {
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    parse(count, words);
    if (!options.port_count || options.count < 1 || options.parallel < 1 || options.window < 1 || options.seconds <= 0)
        fail("a port and positive numbers are needed");
    if (options.candidates < 0 || options.candidates > 14 || options.candidates % 2)
        fail("candidates come from both ends in turn: an even number up to 14");
    if (!dialect_choose(options.dialect))
        fail("no such dialect");
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    const char *no_tls = options.tls ? tls_start() : NULL;
    if (no_tls)
        fail(no_tls);
    net_start();
    if (!strcmp(options.mode, "relay"))
        run_relay();
    else if (!strcmp(options.mode, "idle"))
        run_idle();
    else if (!strcmp(options.mode, "handshakes"))
        run_handshakes();
    else if (!strcmp(options.mode, "http"))
        run_http();
    else
        fail("the modes are relay, idle, handshakes and http");
    return 0;
}
