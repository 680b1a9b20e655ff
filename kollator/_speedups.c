/* What is done to the bytes of every relayed message, compiled.
 *
 * Each function has a twin in Python that says what it does, and takes over where there was no C compiler:
 * next_text and text_frame in kollator/signaling/frames.py, usual_candidate and usual_description in
 * kollator/guard/descriptions.py, os.read and os.write for receive and send. tests.test_speedups holds them against
 * each other. Everything unusual is answered with None or False, and is the twin's affair.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

/* -- frames of a WebSocket (RFC 6455 section 5) ------------------------------------------------------------------ */

enum { TEXT = 0x81, MASKED = 0x80, TWO_BYTES = 126, EIGHT_BYTES = 127 };
#define NOT_ASCII UINT64_C(0x8080808080808080)

/* Unmasks size bytes; whether all are ASCII. */
static int unmask(unsigned char *to, const unsigned char *from, Py_ssize_t size, const unsigned char *mask)
{
    unsigned char twice[8];
    uint64_t mask_word, word, seen = 0;
    Py_ssize_t i = 0;

    memcpy(twice, mask, 4);
    memcpy(twice + 4, mask, 4);
    memcpy(&mask_word, twice, 8);
    for (; size - i >= 8; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= mask_word;
        seen |= word;
        memcpy(to + i, &word, 8);
    }
    for (; i < size; i++) {
        to[i] = from[i] ^ mask[i & 3];
        seen |= to[i];
    }
    return (seen & NOT_ASCII) == 0;
}

/* 1: UTF-8, 0: not, -1: an exception is set. */
static int is_utf8(const unsigned char *bytes, Py_ssize_t size)
{
    PyObject *text = PyUnicode_DecodeUTF8((const char *)bytes, size, "strict");
    if (text != NULL) {
        Py_DECREF(text);
        return 1;
    }
    if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        return -1;
    PyErr_Clear();
    return 0;
}

PyDoc_STRVAR(next_text_doc,
"next_text(data, at, /)\n--\n\n"
"The payload of the text message that starts at ``data[at]``: whole, masked, valid UTF-8, under 64 KiB; else None.");

static PyObject *next_text(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    char *data;
    Py_ssize_t end, at, size;
    const unsigned char *frame, *mask;
    unsigned char *to;
    PyObject *payload;
    int valid = 1;

    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "next_text takes two arguments: data and at");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(arguments[0], &data, &end) < 0)
        return NULL;
    at = PyLong_AsSsize_t(arguments[1]);
    if (at == -1 && PyErr_Occurred() != NULL)
        return NULL;
    if (at < 0 || at > end || end - at < 6)
        Py_RETURN_NONE;
    frame = (const unsigned char *)data + at;
    if (frame[0] != TEXT || frame[1] < MASKED)
        Py_RETURN_NONE;
    size = frame[1] - MASKED;
    mask = frame + 2;
    if (size == TWO_BYTES) {
        if (end - at < 8)
            Py_RETURN_NONE;
        size = frame[2] << 8 | frame[3];
        mask = frame + 4;
        if (size < TWO_BYTES) /* which one byte could have told: an error */
            Py_RETURN_NONE;
    } else if (size == EIGHT_BYTES)
        Py_RETURN_NONE;
    if (size > end - at - (mask + 4 - frame))
        Py_RETURN_NONE;
    payload = PyBytes_FromStringAndSize(NULL, size);
    if (payload == NULL)
        return NULL;
    to = (unsigned char *)PyBytes_AsString(payload);
    if (!unmask(to, mask + 4, size, mask))
        valid = is_utf8(to, size);
    if (valid == 1)
        return payload;
    Py_DECREF(payload);
    if (valid < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(text_frame_doc,
"text_frame(payload, /)\n--\n\n"
"A text message of the server, in one frame.");

static PyObject *text_frame(PyObject *Py_UNUSED(module), PyObject *payload)
{
    char *bytes;
    Py_ssize_t size;
    int head;
    PyObject *frame;
    unsigned char *to;

    if (PyBytes_AsStringAndSize(payload, &bytes, &size) < 0)
        return NULL;
    head = size < TWO_BYTES ? 2 : size < 65536 ? 4 : 10;
    if (size > PY_SSIZE_T_MAX - head)
        return PyErr_NoMemory();
    frame = PyBytes_FromStringAndSize(NULL, head + size);
    if (frame == NULL)
        return NULL;
    to = (unsigned char *)PyBytes_AsString(frame);
    to[0] = TEXT;
    to[1] = (unsigned char)(head == 2 ? size : head == 4 ? TWO_BYTES : EIGHT_BYTES);
    for (int i = 2; i < head; i++)
        to[i] = (unsigned char)((uint64_t)size >> 8 * (head - 1 - i));
    memcpy(to + head, bytes, (size_t)size);
    return frame;
}

/* -- what is relayed ---------------------------------------------------------------------------------------------- */

enum {
    MAX_SDP_LINES = 4096, /* as in descriptions.py, like all bounds here */
    MAX_SDP_MEDIA = 64,
    MAX_FOUNDATION = 32,
    MAX_TOKEN = 64,
    MAX_ADDRESS = 255,
    MAX_CANDIDATE = 1024,
};
enum { DIGIT = 1, FOUNDATION = 2, TOKEN = 4, ADDRESS = 8, VISIBLE = 16 };

/* The kinds that each byte belongs to. */
static unsigned char kinds[256];

static void add_kinds(const char *bytes, int which)
{
    for (; *bytes != '\0'; bytes++)
        kinds[(unsigned char)*bytes] |= (unsigned char)which;
}

static int prepare(PyObject *Py_UNUSED(module))
{
    for (int byte = '!'; byte <= '~'; byte++)
        kinds[byte] |= VISIBLE;
    add_kinds("0123456789", DIGIT | FOUNDATION | TOKEN | ADDRESS);
    add_kinds("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", FOUNDATION | TOKEN | ADDRESS);
    add_kinds("+/", FOUNDATION);
    add_kinds("!#$%&'*+.^_`{|}~-", TOKEN);
    add_kinds("._:%-", ADDRESS);
    return 0;
}

/* The text of a str, which ends with a NUL; NULL, and no exception, for what is no UTF-8. */
static const char *utf8(PyObject *text, Py_ssize_t *size)
{
    const char *bytes = PyUnicode_AsUTF8AndSize(text, size);
    if (bytes == NULL && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        PyErr_Clear();
    return bytes;
}

/* All below take the place where something must start, or NULL; and return where it ends, or NULL when it is not there.
 * The text ends with a NUL, which is of no kind. */

static const char *literal(const char *at, const char *expected)
{
    size_t size = strlen(expected);
    return at != NULL && strncmp(at, expected, size) == 0 ? at + size : NULL;
}

static const char *word(const char *at, int kind, int most)
{
    const char *end = at;
    if (at == NULL)
        return NULL;
    while (kinds[(unsigned char)*end] & kind)
        end++;
    return end > at && end - at <= most ? end : NULL;
}

static const char *field(const char *at, int kind, int most)
{
    return word(literal(at, " "), kind, most);
}

static const char *port(const char *at)
{
    const char *end = field(at, DIGIT, 5);
    int value = 0;
    if (end == NULL)
        return NULL;
    while (++at < end)
        value = 10 * value + (*at - '0');
    return value <= 65535 ? end : NULL;
}

PyDoc_STRVAR(usual_candidate_doc,
"usual_candidate(text, /)\n--\n\n"
"Whether this is an ICE candidate (RFC 8839 section 5.1) as browsers write it; False: a closer look is needed.");

static PyObject *usual_candidate(PyObject *Py_UNUSED(module), PyObject *text)
{
    Py_ssize_t size;
    const char *start = utf8(text, &size), *at, *related;

    if (start == NULL) {
        if (PyErr_Occurred() != NULL)
            return NULL;
        Py_RETURN_FALSE;
    }
    at = word(literal(start, "candidate:"), FOUNDATION, MAX_FOUNDATION);
    at = field(at, DIGIT, 5);               /* component */
    at = field(at, TOKEN, MAX_TOKEN);       /* transport */
    at = field(at, DIGIT, 10);              /* priority */
    at = port(field(at, ADDRESS, MAX_ADDRESS));
    at = field(literal(at, " typ"), TOKEN, MAX_TOKEN);
    related = literal(at, " raddr");
    if (related != NULL)
        at = port(literal(field(related, ADDRESS, MAX_ADDRESS), " rport"));
    while (at != NULL && at[0] == ' ' && at[1] != 'r') /* a pair; raddr and rport have their place above */
        at = field(field(at, TOKEN, MAX_TOKEN), VISIBLE, MAX_CANDIDATE);
    return PyBool_FromLong(at != NULL && at == start + size && size <= MAX_CANDIDATE);
}

PyDoc_STRVAR(usual_description_doc,
"usual_description(text, /)\n--\n\n"
"Whether this is a short session description in ASCII, within all bounds; False: a closer look is needed.");

static PyObject *usual_description(PyObject *Py_UNUSED(module), PyObject *text)
{
    Py_ssize_t size, length = PyUnicode_GetLength(text);
    const char *at;
    int media = 0;

    if (length < 0)
        return NULL;
    if (length > MAX_SDP_LINES) /* a shorter one has no more lines than that */
        Py_RETURN_FALSE;
    at = utf8(text, &size);
    if (at == NULL) {
        if (PyErr_Occurred() != NULL)
            return NULL;
        Py_RETURN_FALSE;
    }
    if (size != length || strlen(at) != (size_t)size || literal(at, "v=0") == NULL) /* ASCII, no NUL, the start */
        Py_RETURN_FALSE;
    while (media <= MAX_SDP_MEDIA && (at = strstr(at, "m=")) != NULL) {
        at += 2;
        media++;
    }
    return PyBool_FromLong(media <= MAX_SDP_MEDIA);
}

/* -- sockets that do not block, so that no other thread has to wait ------------------------------------------------ */

enum { RECEIVED = 16384 }; /* on the stack, and bytes of the right size are made of it */
#ifdef MSG_NOSIGNAL
enum { FLAGS = MSG_NOSIGNAL };
#else
enum { FLAGS = 0 }; /* Python ignores SIGPIPE */
#endif

/* A file descriptor; -1 with an exception set. */
static int descriptor(PyObject *number)
{
    long value = PyLong_AsLong(number);
    if (value == -1 && PyErr_Occurred() != NULL)
        return -1;
    if (value < 0 || value > INT_MAX) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return (int)value;
}

PyDoc_STRVAR(receive_doc,
"receive(descriptor, most, /)\n--\n\n"
"Up to ``most`` bytes from a socket that does not block, b\"\" at its end. Raises OSError as ``os.read`` does.");

static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    char bytes[RECEIVED];
    int from;
    Py_ssize_t most, received;

    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "receive takes two arguments: descriptor and most");
        return NULL;
    }
    from = descriptor(arguments[0]);
    if (from < 0)
        return NULL;
    most = PyLong_AsSsize_t(arguments[1]);
    if (most == -1 && PyErr_Occurred() != NULL)
        return NULL;
    if (most < 0) {
        errno = EINVAL;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    do
        received = recv(from, bytes, (size_t)(most < RECEIVED ? most : RECEIVED), MSG_DONTWAIT);
    while (received < 0 && errno == EINTR);
    return received < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyBytes_FromStringAndSize(bytes, received);
}

PyDoc_STRVAR(send_doc,
"send(descriptor, data, /)\n--\n\n"
"How many bytes of ``data`` a socket that does not block has taken. Raises OSError as ``os.write`` does.");

static PyObject *send_(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    char *data;
    int to;
    Py_ssize_t size, sent;

    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "send takes two arguments: descriptor and data");
        return NULL;
    }
    to = descriptor(arguments[0]);
    if (to < 0 || PyBytes_AsStringAndSize(arguments[1], &data, &size) < 0)
        return NULL;
    do
        sent = send(to, data, (size_t)size, FLAGS | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromSsize_t(sent);
}

/* -- the module --------------------------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"next_text", (PyCFunction)(void (*)(void))next_text, METH_FASTCALL, next_text_doc},
    {"text_frame", text_frame, METH_O, text_frame_doc},
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, receive_doc},
    {"send", (PyCFunction)(void (*)(void))send_, METH_FASTCALL, send_doc},
    {"usual_candidate", usual_candidate, METH_O, usual_candidate_doc},
    {"usual_description", usual_description, METH_O, usual_description_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)prepare},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kollator._speedups",
    .m_doc = "What is done to the bytes of every relayed message, compiled.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
