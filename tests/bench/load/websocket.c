/* The client's end of RFC 6455: a request, masked frames out, whole text messages in, pings answered. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

static uint32_t random32(void) {
    static uint64_t x = 0x9e3779b97f4a7c15u;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (uint32_t)(x >> 16) | 1;
}

static void new_key(char out[25]) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 21; i++)
        out[i] = DIGITS[random32() >> 5 & 63];
    memcpy(out + 21, "A==", 4); /* 16 bytes have 22 digits, the last of which has two bits */
}

void ws_request(struct conn *c) {
    char target[512], key[25], request[1024];
    new_key(key);
    dialect_request(c, target, sizeof target);
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s\r\n",
                        target, c->port, key, target + strlen(target) + 1);
    conn_write(c, (const uint8_t *)request, (size_t)size);
}

void ws_send(struct conn *c, uint8_t opcode, const void *payload, size_t size) {
    static uint8_t frame[MESSAGE_BYTES + 16];
    size_t at = 2;
    uint32_t word = random32();
    if (size > MESSAGE_BYTES)
        fail("a message is too large for this generator");
    frame[0] = 0x80 | opcode;
    if (size < 126) {
        frame[1] = (uint8_t)(0x80 | size);
    } else {
        frame[1] = 0x80 | 126;
        frame[2] = (uint8_t)(size >> 8);
        frame[3] = (uint8_t)size;
        at = 4;
    }
    memcpy(frame + at, &word, 4);
    at += 4;
    const uint8_t *from = payload;
    uint64_t wide = (uint64_t)word << 32 | word;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t eight;
        memcpy(&eight, from + i, 8);
        eight ^= wide;
        memcpy(frame + at + i, &eight, 8);
    }
    for (; i < size; i++)
        frame[at + i] = from[i] ^ ((uint8_t *)&word)[i & 3];
    conn_write(c, frame, at + size);
}

static void control(struct conn *c, uint8_t opcode, const uint8_t *payload, size_t size) {
    if (opcode == 9)
        ws_send(c, 10, payload, size);
    else if (opcode == 8)
        c->state = ENDING;
}

/* One frame; returns its size, or 0 when it is not there whole. */
static size_t take(struct conn *c, const uint8_t *p, size_t size) {
    size_t head = 2;
    if (size < 2)
        return 0;
    uint64_t length = p[1] & 0x7f;
    if (length == 126) {
        head = 4;
        if (size < head)
            return 0;
        length = (uint64_t)p[2] << 8 | p[3];
    } else if (length == 127) {
        head = 10;
        if (size < head)
            return 0;
        length = 0;
        for (int i = 2; i < 10; i++)
            length = length << 8 | p[i];
    }
    if (length > 1 << 20)
        fail("a server sends frames over 1 MiB");
    if (size < head + length)
        return 0;
    uint8_t opcode = p[0] & 15;
    const char *text = (const char *)p + head;
    if (opcode > 2)
        control(c, opcode, p + head, length);
    else if (c->state == JOINING)
        dialect_joining(c, text, length);
    else if (c->state == OPEN)
        mode.message(c, text, length);
    return head + length;
}

void ws_data(struct conn *c, const uint8_t *bytes, size_t size) {
    size_t at = 0;
    if (c->state == UPGRADING) {
        const uint8_t *end = memmem(bytes, size, "\r\n\r\n", 4);
        if (!end) {
            if (conn_keep(c, bytes, size) > 16384)
                conn_close(c);
            return;
        }
        at = (size_t)(end - bytes) + 4;
        if (size < 12 || memcmp(bytes, "HTTP/1.1 101", 12)) {
            conn_close(c);
            return;
        }
        c->state = JOINING;
        mode.upgraded(c);
    }
    while (c->state != FREE && c->state != ENDING && at < size) {
        size_t taken = take(c, bytes + at, size - at);
        if (!taken)
            break;
        at += taken;
    }
    if (c->state == ENDING)
        conn_close(c);
    else if (c->state != FREE)
        conn_keep(c, bytes + at, size - at);
}
