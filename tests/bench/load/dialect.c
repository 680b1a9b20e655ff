/* What each server calls joining and relaying. The payloads are the same for all: a browser's offer of 2 KB for a data
 * channel, and a candidate of 200 bytes; each has a stamp that comes back untouched. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "load.h"

/* As it stands inside a JSON string. */
#define LINE(text) text "\\r\\n"
#define HOST(n) LINE("a=candidate:84216304" n " 1 udp 2122260223 192.0.2." n " 5012" n " typ host generation 0 network-id 1")
static const char SDP[] =
    LINE("v=0") LINE("o=- 4611731400430051336 2 IN IP4 127.0.0.1") LINE("s=-") LINE("t=0 0") LINE("a=group:BUNDLE 0")
    LINE("a=extmap-allow-mixed") LINE("a=msid-semantic: WMS") LINE("m=application 9 UDP/DTLS/SCTP webrtc-datachannel")
    LINE("c=IN IP4 0.0.0.0") HOST("1") HOST("2") HOST("3") HOST("4") HOST("5") HOST("6") HOST("7") HOST("8") HOST("9")
    HOST("1") HOST("2") HOST("3") HOST("4") HOST("5") LINE("a=ice-ufrag:4ZcD") LINE("a=ice-pwd:2/1muCWoOi3uLifh0NuRHlea")
    LINE("a=ice-options:trickle")
    LINE("a=fingerprint:sha-256 7B:8B:F0:65:5F:78:E2:51:3B:AC:6F:F3:3F:46:1B:35:DC:B8:5F:64:1A:24:C2:43:F0:A1:58:D0:A1:2C:19:08")
    LINE("a=setup:actpass") LINE("a=mid:0") LINE("a=sctp-port:5000") LINE("a=max-message-size:262144") "a=x-stamp:";
static const char SDP_END[] = "\\r\\n";
static const char CANDIDATE_BEGIN[] =
    "{\"candidate\":\"candidate:842163049 1 udp 1677729535 192.0.2.77 50123 typ srflx raddr 0.0.0.0 rport 0"
    " generation 0 ufrag ";
static const char CANDIDATE_END[] = "\",\"sdpMid\":\"0\",\"sdpMLineIndex\":0}";
static const char *const KINDS[] = {"offer", "answer", "candidate"};
static const char *const CAPITALS[] = {"OFFER", "ANSWER", "CANDIDATE"};

static size_t text_of(enum kind kind, const char *stamp, const char *before, const char *after, char *out) {
    /* `before` and `after` stand around an SDP; a candidate is an object of its own. */
    char *at = out;
    if (kind == CANDIDATE) {
        at = mempcpy(at, CANDIDATE_BEGIN, sizeof CANDIDATE_BEGIN - 1);
        at = mempcpy(at, stamp, STAMP_CHARS);
        at = mempcpy(at, CANDIDATE_END, sizeof CANDIDATE_END - 1);
    } else {
        at = stpcpy(at, before);
        at = mempcpy(at, SDP, sizeof SDP - 1);
        at = mempcpy(at, stamp, STAMP_CHARS);
        at = mempcpy(at, SDP_END, sizeof SDP_END - 1);
        at = stpcpy(at, after);
    }
    *at = 0;
    return (size_t)(at - out);
}

static void say(struct conn *c, const char *text) { ws_send(c, 1, text, strlen(text)); }

static void joined(struct conn *c) {
    c->state = OPEN;
    mode.joined(c);
}

/* Something else than a welcome came; the first of them is told. */
static void refused(struct conn *c, const char *text, size_t size) {
    static bool told;
    if (!told) {
        printf("{\"event\":\"refused\",\"said\":");
        text_print(text, size);
        printf("}\n");
        fflush(stdout);
    }
    told = true;
    conn_close(c);
}

static bool has(const char *text, size_t size, const char *what) { return memmem(text, size, what, strlen(what)); }

/* The text value of a key, as servers that write compact JSON have it. */
static bool value(const char *text, size_t size, const char *key, char *out, size_t out_size) {
    const char *at = memmem(text, size, key, strlen(key));
    size_t length = 0;
    if (!at)
        return false;
    at += strlen(key);
    while (at + length < text + size && at[length] != '"')
        length++;
    if (length >= out_size)
        return false;
    memcpy(out, at, length);
    out[length] = 0;
    return true;
}

/* -- the front -------------------------------------------------------------------------------------------------- */

static size_t front_request(struct conn *c, char *out, size_t size) {
    (void)c;
    return (size_t)snprintf(out, size, "/signaling%cSec-WebSocket-Protocol: kollator.v1\r\n", 0);
}

static void front_opened(struct conn *c) {
    char text[512];
    if (c->role == CLIENT) {
        say(c, "{\"type\":\"hello\",\"role\":\"client\"}");
        return;
    }
    snprintf(c->nonce, sizeof c->nonce, "%032llx", (unsigned long long)(now_ns() + c->index));
    snprintf(text, sizeof text,
             "{\"type\":\"hello\",\"role\":\"worker\",\"id\":\"%s\",\"region\":\"\",\"capacity\":100,"
             "\"address\":\"192.0.2.1\",\"nonce\":\"%s\"}", c->id, c->nonce);
    say(c, text);
}

static void front_joining(struct conn *c, const char *text, size_t size) {
    char nonce[129], proof[512], mac[65];
    if (has(text, size, "\"type\":\"challenge\"") && value(text, size, "\"nonce\":\"", nonce, sizeof nonce)) {
        snprintf(proof, sizeof proof, "kollator.v1 worker\n%s\n\n100\n%s\n%s", c->id, c->nonce, nonce);
        hmac_sha256_hex(options.key, proof, mac);
        snprintf(proof, sizeof proof, "{\"type\":\"auth\",\"mac\":\"%s\"}", mac);
        say(c, proof);
    } else if (has(text, size, "\"type\":\"welcome\"") && value(text, size, "\"id\":\"", c->id, sizeof c->id)) {
        joined(c);
    } else {
        refused(c, text, size);
    }
}

static size_t front_message(struct conn *c, enum kind kind, const char *stamp, char *out, size_t size) {
    size_t at = (size_t)snprintf(out, size, "{\"type\":\"%s\",\"to\":\"%s\",\"session\":\"s%u\",\"%s\":", KINDS[kind],
                                 c->peer->id, c->index, kind == CANDIDATE ? "candidate" : "sdp");
    at += text_of(kind, stamp, "\"", "\"", out + at);
    out[at++] = '}';
    return at;
}

/* -- relays that take the id from the URL: ws, Bun, plain Autobahn ------------------------------------------------ */

static size_t relay_request(struct conn *c, char *out, size_t size) {
    return (size_t)snprintf(out, size, "/?id=%s%c", c->id, 0);
}

static void relay_opened(struct conn *c) { joined(c); }

/* -- PeerJS ----------------------------------------------------------------------------------------------------- */

static size_t peerjs_request(struct conn *c, char *out, size_t size) {
    return (size_t)snprintf(out, size, "/peerjs?key=peerjs&id=%s&token=t&version=1.5.4%c", c->id, 0);
}

static void nothing(struct conn *c) { (void)c; }

static void peerjs_joining(struct conn *c, const char *text, size_t size) {
    if (has(text, size, "\"OPEN\"")) {
        joined(c);
    } else {
        refused(c, text, size);
    }
}

static size_t peerjs_message(struct conn *c, enum kind kind, const char *stamp, char *out, size_t size) {
    size_t at = (size_t)snprintf(out, size, "{\"type\":\"%s\",\"dst\":\"%s\",\"payload\":{\"type\":\"data\","
                                 "\"connectionId\":\"dc_%u\",\"%s\":", CAPITALS[kind], c->peer->id, c->index,
                                 kind == CANDIDATE ? "candidate" : "sdp");
    at += text_of(kind, stamp, kind == OFFER ? "{\"type\":\"offer\",\"sdp\":\"" : "{\"type\":\"answer\",\"sdp\":\"",
                  "\"}", out + at);
    out[at++] = '}';
    out[at++] = '}';
    return at;
}

/* -- y-webrtc: a topic for each end, to which it alone has subscribed ---------------------------------------------- */

static size_t root_request(struct conn *c, char *out, size_t size) {
    (void)c;
    return (size_t)snprintf(out, size, "/%c", 0);
}

static void topics_opened(struct conn *c) {
    char text[256];
    snprintf(text, sizeof text, "{\"type\":\"subscribe\",\"topics\":[\"%s\"]}", c->id);
    say(c, text);
    say(c, "{\"type\":\"ping\"}"); /* a subscription is not answered, this is */
}

static void topics_joining(struct conn *c, const char *text, size_t size) {
    if (has(text, size, "\"pong\""))
        joined(c);
}

static size_t topics_message(struct conn *c, enum kind kind, const char *stamp, char *out, size_t size) {
    size_t at = (size_t)snprintf(out, size, "{\"type\":\"publish\",\"topic\":\"%s\",\"data\":{\"type\":\"%s\","
                                 "\"from\":\"%s\",\"%s\":", c->peer->id, KINDS[kind], c->id,
                                 kind == CANDIDATE ? "candidate" : "sdp");
    at += text_of(kind, stamp, "\"", "\"", out + at);
    out[at++] = '}';
    out[at++] = '}';
    return at;
}

static size_t relay_message(struct conn *c, enum kind kind, const char *stamp, char *out, size_t size) {
    return front_message(c, kind, stamp, out, size); /* the same form, so that the same is parsed and passed on */
}

/* -- bittorrent-tracker: a swarm of two for each pair; it relays offers and answers only ---------------------------- */

static void swarm_of(struct conn *c, char *out, size_t size) {
    snprintf(out, size, "\"action\":\"announce\",\"info_hash\":\"%-2.2s%018u\",\"peer_id\":\"%-2.2s%c%017u\"",
             options.prefix, c->index, options.prefix, c->role == WORKER ? 'w' : 'c', c->index);
}

static void tracker_opened(struct conn *c) {
    char swarm[128], text[256];
    swarm_of(c, swarm, sizeof swarm);
    snprintf(text, sizeof text, "{%s,\"event\":\"started\",\"left\":1,\"numwant\":0,\"offers\":[]}", swarm);
    say(c, text);
}

static void tracker_joining(struct conn *c, const char *text, size_t size) {
    if (has(text, size, "\"interval\"")) {
        joined(c);
    } else {
        refused(c, text, size);
    }
}

static size_t tracker_message(struct conn *c, enum kind kind, const char *stamp, char *out, size_t size) {
    char swarm[128];
    swarm_of(c, swarm, sizeof swarm);
    size_t at = (size_t)snprintf(out, size, "{%s,\"left\":1,", swarm);
    if (kind == OFFER) {
        at += (size_t)snprintf(out + at, size - at, "\"numwant\":1,\"offers\":[{\"offer_id\":\"%020u\",\"offer\":", c->index);
        at += text_of(kind, stamp, "{\"type\":\"offer\",\"sdp\":\"", "\"}}]}", out + at);
        return at;
    }
    at += (size_t)snprintf(out + at, size - at, "\"offer_id\":\"%020u\",\"to_peer_id\":\"%-2.2s%c%017u\",\"answer\":",
                           c->index, options.prefix, c->role == WORKER ? 'c' : 'w', c->index);
    return at + text_of(kind, stamp, "{\"type\":\"answer\",\"sdp\":\"", "\"}}", out + at);
}

/* --------------------------------------------------------------------------------------------------------------- */

struct dialect {
    const char *name;
    size_t (*request)(struct conn *, char *, size_t);
    void (*opened)(struct conn *);
    void (*joining)(struct conn *, const char *, size_t);
    size_t (*message)(struct conn *, enum kind, const char *, char *, size_t);
};
static const struct dialect DIALECTS[] = {
    {"front", front_request, front_opened, front_joining, front_message},
    {"relay", relay_request, relay_opened, NULL, relay_message},
    {"peerjs", peerjs_request, nothing, peerjs_joining, peerjs_message},
    {"topics", root_request, topics_opened, topics_joining, topics_message},
    {"tracker", root_request, tracker_opened, tracker_joining, tracker_message},
};
static const struct dialect *chosen = DIALECTS;

bool dialect_choose(const char *name) {
    for (size_t i = 0; i < sizeof DIALECTS / sizeof DIALECTS[0]; i++) {
        if (!strcmp(DIALECTS[i].name, name)) {
            chosen = &DIALECTS[i];
            return true;
        }
    }
    return false;
}

size_t dialect_request(struct conn *c, char *out, size_t size) { return chosen->request(c, out, size); }
void dialect_opened(struct conn *c) { chosen->opened(c); }
void dialect_joining(struct conn *c, const char *text, size_t size) { chosen->joining(c, text, size); }
bool dialect_sdp_only(void) { return chosen->message == tracker_message; }

size_t dialect_message(struct conn *from, enum kind kind, const char *stamp, char *out, size_t size) {
    return chosen->message(from, kind, stamp, out, size);
}

/* Tells the ends of all pairs apart, and one generator's from another's. */
void dialect_name(struct conn *c) {
    snprintf(c->id, sizeof c->id, "%s%c%u", options.prefix, c->role == WORKER ? 'w' : 'c', c->index);
}
