/* TLS by the machine's own OpenSSL 3, taken at run time: the generator is built without it, and runs where it is not. */
#include <dlfcn.h>
#include <stdio.h>

#include "load.h"

enum { ERROR_WANT_READ = 2, ERROR_WANT_WRITE = 3, ERROR_ZERO_RETURN = 6, CTRL_MODE = 33 };
enum { MODE_PARTIAL_WRITE = 1, MODE_MOVING_BUFFER = 2, MODE_RELEASE_BUFFERS = 16 };

static void *context;
static void *(*ssl_new)(void *);
static void (*ssl_free)(void *);
static int (*ssl_set_fd)(void *, int);
static int (*ssl_connect)(void *);
static int (*ssl_read)(void *, void *, int);
static int (*ssl_write)(void *, const void *, int);
static int (*ssl_get_error)(const void *, int);
static void (*err_clear)(void);

const char *tls_start(void) {
    void *library = dlopen("libssl.so.3", RTLD_NOW | RTLD_GLOBAL);
    void *crypto = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_GLOBAL);
    if (!library || !crypto)
        return "no libssl.so.3 on this machine";
    void *(*method)(void), *(*new_context)(void *);
    long (*control)(void *, int, long, void *);
    struct {
        const char *name;
        void *at;
        void *from;
    } wanted[] = {{"TLS_client_method", &method, library}, {"SSL_CTX_new", &new_context, library},
                  {"SSL_CTX_ctrl", &control, library},     {"SSL_new", &ssl_new, library},
                  {"SSL_free", &ssl_free, library},        {"SSL_set_fd", &ssl_set_fd, library},
                  {"SSL_connect", &ssl_connect, library},  {"SSL_read", &ssl_read, library},
                  {"SSL_write", &ssl_write, library},      {"SSL_get_error", &ssl_get_error, library},
                  {"ERR_clear_error", &err_clear, crypto}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *found = dlsym(wanted[i].from, wanted[i].name);
        if (!found)
            return "a libssl.so.3 that lacks functions";
        *(void **)wanted[i].at = found;
    }
    context = new_context(method());
    if (!context)
        return "OpenSSL makes no context";
    control(context, CTRL_MODE, MODE_PARTIAL_WRITE | MODE_MOVING_BUFFER | MODE_RELEASE_BUFFERS, NULL);
    return NULL;
}

static long failure(struct conn *c, int result) {
    int error = ssl_get_error(c->tls, result);
    return error == ERROR_WANT_READ || error == ERROR_WANT_WRITE ? -1 : error == ERROR_ZERO_RETURN ? 0 : -2;
}

int tls_connect(struct conn *c) {
    if (!c->tls) {
        c->tls = ssl_new(context);
        if (!c->tls || !ssl_set_fd(c->tls, c->fd))
            return -1;
    }
    err_clear();
    int result = ssl_connect(c->tls);
    return result == 1 ? 1 : failure(c, result) == -1 ? 0 : -1;
}

long tls_read(struct conn *c, void *bytes, size_t size) {
    err_clear();
    int result = ssl_read(c->tls, bytes, (int)size);
    return result > 0 ? result : failure(c, result);
}

long tls_write(struct conn *c, const void *bytes, size_t size) {
    err_clear();
    int result = ssl_write(c->tls, bytes, (int)size);
    return result > 0 ? result : failure(c, result) == -1 ? -1 : -2;
}

void tls_free(struct conn *c) {
    if (c->tls)
        ssl_free(c->tls);
    c->tls = NULL;
}
