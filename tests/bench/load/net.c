/* Sockets, the event loop, and what a connection could not send at once. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

bool input_ended;
static int poll_fd, timer_fd;
static struct conn input = {.fd = 0}, timer = {.fd = -1};
static uint8_t chunk[CHUNK_BYTES];

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t seconds_ns(double seconds) { return (uint64_t)(seconds * 1e9); }

static void watch(int operation, struct conn *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poll_fd, operation, c->fd, &event) < 0)
        fail(strerror(errno));
}

void net_start(void) {
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (poll_fd < 0 || timer_fd < 0)
        fail(strerror(errno));
    watch(EPOLL_CTL_ADD, &timer, EPOLLIN);
}

void net_watch_input(void) { watch(EPOLL_CTL_ADD, &input, EPOLLIN); }

/* Many source addresses: one has 28,000 ports, and those of closed connections rest for a minute. */
static int new_socket(void) {
    static uint32_t turn;
    struct sockaddr_in source = {.sin_family = AF_INET};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail(strerror(errno));
    turn++;
    source.sin_addr.s_addr = htonl(0x7f000000u | (1 + turn % 200) << 8 | (1 + turn / 200 % 200));
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&source, sizeof source) < 0)
        fail(strerror(errno));
    return fd;
}

void conn_open(struct conn *c) {
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(c->port)};
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = new_socket();
    c->state = CONNECTING;
    c->step = 0;
    c->begun_ns = now_ns();
    c->wants_write = true;
    watch(EPOLL_CTL_ADD, c, EPOLLIN | EPOLLOUT);
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS)
        conn_close(c);
}

void conn_close(struct conn *c) {
    if (c->state == FREE)
        return;
    tls_free(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    c->in = c->out = NULL;
    c->in_len = c->out_len = c->out_cap = 0;
    c->state = FREE;
    mode.closed(c);
}

static long raw_write(struct conn *c, const void *bytes, size_t size) {
    if (c->tls)
        return tls_write(c, bytes, size);
    long sent = send(c->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent >= 0 ? sent : errno == EAGAIN ? -1 : -2;
}

static void want_write(struct conn *c, bool wants) {
    if (c->wants_write != wants) {
        c->wants_write = wants;
        watch(EPOLL_CTL_MOD, c, wants ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

/* A failed write is left to be found out by reading: nobody's connection is freed under its caller's feet. */
void conn_write(struct conn *c, const uint8_t *bytes, size_t size) {
    if (!c->out_len) {
        long sent = raw_write(c, bytes, size);
        if (sent == (long)size || sent == -2)
            return;
        if (sent > 0) {
            bytes += sent;
            size -= (size_t)sent;
        }
    }
    if (c->out_len + size > c->out_cap) {
        c->out_cap = (c->out_len + size) * 2;
        if (!(c->out = realloc(c->out, c->out_cap)))
            fail("out of memory");
    }
    memcpy(c->out + c->out_len, bytes, size);
    c->out_len += size;
    want_write(c, true);
}

static void flush(struct conn *c) {
    size_t done = 0;
    while (done < c->out_len) {
        long sent = raw_write(c, c->out + done, c->out_len - done);
        if (sent <= 0)
            break;
        done += (size_t)sent;
    }
    if (done) {
        memmove(c->out, c->out + done, c->out_len - done);
        c->out_len -= done;
    }
    want_write(c, c->out_len > 0);
}

/* Keeps the rest of what was read for the next time. */
size_t conn_keep(struct conn *c, const uint8_t *rest, size_t size) {
    uint8_t *old = c->in;
    c->in = NULL;
    c->in_len = size;
    if (size) {
        if (!(c->in = malloc(size)))
            fail("out of memory");
        memcpy(c->in, rest, size);
    }
    free(old);
    return size;
}

static void receive(struct conn *c) {
    long got;
    if (c->tls) {
        got = tls_read(c, chunk, sizeof chunk);
    } else {
        got = recv(c->fd, chunk, sizeof chunk, MSG_DONTWAIT);
        got = got >= 0 ? got : errno == EAGAIN || errno == EINTR ? -1 : -2;
    }
    if (got == -1)
        return;
    if (got <= 0) {
        conn_close(c);
        return;
    }
    const uint8_t *bytes = chunk;
    size_t size = (size_t)got;
    if (c->in_len) {
        uint8_t *joined = realloc(c->in, c->in_len + size);
        if (!joined)
            fail("out of memory");
        memcpy(joined + c->in_len, chunk, size);
        c->in = NULL; /* conn_keep makes a new one of what is left */
        size += c->in_len;
        c->in_len = 0;
        mode.data(c, joined, size);
        free(joined);
        return;
    }
    mode.data(c, bytes, size);
}

static void secured(struct conn *c) {
    int done = options.tls ? tls_connect(c) : 1;
    if (done < 0) {
        conn_close(c);
    } else if (done) {
        c->state = UPGRADING;
        want_write(c, false);
        mode.connected(c);
    } else {
        c->state = SECURING;
        want_write(c, false); /* what TLS itself wants to write fits into the socket's buffer */
    }
}

static void handle(struct conn *c, uint32_t events) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error || events & (EPOLLERR | EPOLLHUP))
            conn_close(c);
        else if (events & EPOLLOUT)
            secured(c);
        return;
    }
    if (c->state == SECURING) {
        secured(c);
        return;
    }
    if (events & EPOLLOUT)
        flush(c);
    if (c->state != FREE && events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
        int rounds = c->tls ? 16 : 1; /* TLS may have more than the socket tells of */
        do {
            receive(c);
        } while (--rounds && c->state != FREE && c->tls);
    }
}

static void read_input(void) {
    char text[256];
    long got = read(0, text, sizeof text);
    if (got <= 0) {
        input_ended = true;
        epoll_ctl(poll_fd, EPOLL_CTL_DEL, 0, NULL);
    }
    if (mode.line)
        mode.line();
}

void net_turn(uint64_t until_ns) {
    static uint64_t armed_ns;
    struct epoll_event events[256];
    uint64_t ticks;
    if (until_ns != armed_ns) {
        struct itimerspec at = {.it_value = {.tv_sec = (time_t)(until_ns / 1000000000u),
                                             .tv_nsec = (long)(until_ns % 1000000000u)}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
        armed_ns = until_ns;
    }
    int count = epoll_wait(poll_fd, events, 256, 1000);
    for (int i = 0; i < count; i++) {
        struct conn *c = events[i].data.ptr;
        if (c == &timer)
            armed_ns = read(timer_fd, &ticks, sizeof ticks) < 0 ? armed_ns : 0;
        else if (c == &input)
            read_input();
        else
            handle(c, events[i].events);
    }
}
