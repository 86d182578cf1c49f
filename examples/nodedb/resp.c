/* resp.c - the protocol, RESP2 and RESP3, without sockets: a command's bytes become arguments, and results become
 * replies.
 *
 *     *2 CR LF  $3 CR LF GET CR LF  $1 CR LF k CR LF        one frame: a command of two arguments
 *     GET k CR LF                                           the same, inline
 *
 * A frame comes in pieces of any size. The parser keeps its place in it, so that no byte is looked at twice, and it
 * refuses what is too large when its length is announced, before a byte of it has arrived. */
#include "db.h"

#define MAX_LENGTH_BYTES 32 /* "$12" and the like: digits and CR */
#define LEAST_ARGUMENT_BYTES 6 /* "$0", CR LF, nothing, CR LF */
#define KEPT_ARGUMENTS 64   /* a larger array is freed with its frame */
#define MAX_ERROR_BYTES 600 /* a longer sentence is cut */

/* ---- commands in ------------------------------------------------------------------------------------------------- */

static parse_result parse_failed(const char **wrong, const char *text) {
    *wrong = text;
    return PARSE_BAD;
}

/* A decimal number and CR LF, behind the character at p->at. READY: p->at is behind all of it. */
static parse_result parse_length(parser *p, const char *frame, size_t bytes, int64_t *length) {
    size_t begin = p->at + 1, end = bytes - begin < MAX_LENGTH_BYTES ? bytes : begin + MAX_LENGTH_BYTES;
    const char *cr;
    if (p->seen < begin) p->seen = begin;
    cr = memchr(frame + p->seen, '\r', end - p->seen);
    p->seen = cr == NULL ? end : (size_t)(cr - frame);
    if (cr == NULL) return end - begin == MAX_LENGTH_BYTES ? PARSE_BAD : PARSE_MORE;
    if (p->seen + 1 == bytes) return PARSE_MORE;
    if (cr[1] != '\n' || !parse_int64((slice){frame + begin, (uint32_t)(p->seen - begin)}, length)) return PARSE_BAD;
    p->at = p->seen + 2;
    return PARSE_READY;
}

/* "*3": how many arguments follow. None, or fewer than none, is a whole command that says nothing. */
static parse_result parse_count(parser *p, const char *frame, size_t bytes, const char **wrong) {
    int64_t count = 0;
    parse_result result = parse_length(p, frame, bytes, &count);
    if (result == PARSE_BAD || count > MAX_ARGS) return parse_failed(wrong, "invalid multibulk length");
    if (result != PARSE_READY || count <= 0) return result;
    p->wanted = count;
    p->bulk = -1;
    return PARSE_READY;
}

/* "$5": how many bytes the next argument has. */
static parse_result parse_bulk_head(parser *p, const char *frame, size_t bytes, const char **wrong) {
    int64_t length = 0;
    parse_result result;
    if (p->at == bytes) return PARSE_MORE;
    if (frame[p->at] != '$') {
        char got = frame[p->at];
        (void)snprintf(p->wrong_text, sizeof p->wrong_text, "expected '$', got '%c'",
                       isprint((unsigned char)got) ? got : '?');
        return parse_failed(wrong, p->wrong_text);
    }
    result = parse_length(p, frame, bytes, &length);
    if (result == PARSE_BAD || length < 0 || length > MAX_BULK_BYTES) return parse_failed(wrong, "invalid bulk length");
    if (result != PARSE_READY) return result;
    if (p->at + (size_t)length + 2 > MAX_FRAME_BYTES) {
        (void)snprintf(p->wrong_text, sizeof p->wrong_text, "a command of more than %u bytes", MAX_FRAME_BYTES);
        return parse_failed(wrong, p->wrong_text);
    }
    p->bulk = length;
    return PARSE_READY;
}

static parse_result parse_argument(parser *p, const char *frame, size_t bytes, const char **wrong) {
    size_t length;
    if (p->bulk < 0) {
        parse_result result = parse_bulk_head(p, frame, bytes, wrong);
        if (result != PARSE_READY) return result;
    }
    length = (size_t)p->bulk;
    if (bytes - p->at < length + 2) return PARSE_MORE;
    if (frame[p->at + length] != '\r' || frame[p->at + length + 1] != '\n')
        return parse_failed(wrong, "a bulk string does not end with CR LF");
    arrput(p->args, ((argument_at){(uint32_t)p->at, (uint32_t)length}));
    p->at += length + 2;
    p->bulk = -1;
    return PARSE_READY;
}

/* A line of words with spaces between them. */
static parse_result parse_inline(parser *p, const char *frame, size_t bytes, const char **wrong) {
    size_t end = bytes < MAX_INLINE_BYTES ? bytes : MAX_INLINE_BYTES, at = 0;
    const char *lf = memchr(frame + p->seen, '\n', end - p->seen);
    p->seen = end;
    if (lf == NULL) return end == MAX_INLINE_BYTES ? parse_failed(wrong, "too big inline request") : PARSE_MORE;
    p->at = (size_t)(lf - frame) + 1;
    end = p->at > 1 && lf[-1] == '\r' ? p->at - 2 : p->at - 1;
    while (at < end) {
        size_t word;
        while (at < end && (frame[at] == ' ' || frame[at] == '\t')) at++;
        for (word = at; at < end && frame[at] != ' ' && frame[at] != '\t'; at++) {}
        if (at > word) arrput(p->args, ((argument_at){(uint32_t)word, (uint32_t)(at - word)}));
    }
    return PARSE_READY;
}

/* The length that was announced, and at least one byte more than has arrived. */
static size_t least_bytes(const parser *p, size_t bytes) {
    size_t least = 0;
    if (p->wanted > 0) {
        size_t left = (size_t)(p->wanted - (int64_t)arrlen(p->args));
        least = p->at + left * LEAST_ARGUMENT_BYTES;
        if (p->bulk >= 0) least += (size_t)p->bulk + 2 - LEAST_ARGUMENT_BYTES;
    }
    return least > bytes ? least : bytes + 1;
}

size_t parser_bytes(const parser *p) { return arrcap(p->args) * sizeof *p->args; }

parse_result parser_feed(parser *p, const char *frame, size_t bytes, const char **wrong) {
    parse_result result = bytes > p->at ? PARSE_READY : PARSE_MORE;
    size_t had = parser_bytes(p);
    if (result == PARSE_READY && p->wanted == 0) {
        if (frame[0] == '*') result = parse_count(p, frame, bytes, wrong);
        else p->wanted = -1;
    }
    if (result == PARSE_READY && p->wanted == -1) result = parse_inline(p, frame, bytes, wrong);
    while (result == PARSE_READY && (int64_t)arrlen(p->args) < p->wanted)
        result = parse_argument(p, frame, bytes, wrong);
    p->needs = result == PARSE_MORE ? least_bytes(p, bytes) : p->at;
    if (p->counter != NULL) *p->counter += parser_bytes(p) - had;
    assert(result != PARSE_READY || p->at <= bytes);
    return result;
}

void parser_free(parser *p) {
    size_t *counter = p->counter;
    if (counter != NULL) *counter -= parser_bytes(p);
    arrfree(p->args);
    memset(p, 0, sizeof *p);
    p->counter = counter;
}

void parser_reset(parser *p) {
    argument_at *args = p->args;
    size_t *counter = p->counter;
    if (arrcap(args) > KEPT_ARGUMENTS) {
        parser_free(p);
        return;
    }
    if (args != NULL) arrsetlen(args, 0);
    memset(p, 0, sizeof *p);
    p->args = args;
    p->counter = counter;
}

/* ---- replies out ------------------------------------------------------------------------------------------------- */

static void reply_number(buffer *b, char kind, int64_t n) {
    char text[24];
    int at = sizeof text;
    uint64_t rest = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
    text[--at] = '\n', text[--at] = '\r';
    do text[--at] = (char)('0' + rest % 10);
    while ((rest /= 10) != 0);
    if (n < 0) text[--at] = '-';
    text[--at] = kind;
    buffer_put(b, text + at, sizeof text - (size_t)at);
}

void reply_integer(buffer *b, int64_t n) { reply_number(b, ':', n); }
void reply_array(buffer *b, int64_t n) { reply_number(b, '*', n); }
void reply_map(buffer *b, int resp, int64_t pairs) {
    if (resp == 3) reply_number(b, '%', pairs);
    else reply_number(b, '*', pairs * 2);
}

void reply_bulk_head(buffer *b, int64_t n) { reply_number(b, '$', n); }
void reply_bulk(buffer *b, const void *bytes, size_t n) {
    reply_bulk_head(b, (int64_t)n);
    buffer_put(b, bytes, n);
    buffer_put(b, "\r\n", 2);
}
void reply_bulk_text(buffer *b, const char *text) { reply_bulk(b, text, strlen(text)); }

void reply_null(buffer *b, int resp) { buffer_text(b, resp == 3 ? "_\r\n" : "$-1\r\n"); }
void reply_ok(buffer *b) { buffer_text(b, "+OK\r\n"); }
void reply_bool(buffer *b, int resp, bool value) {
    if (resp == 3) buffer_text(b, value ? "#t\r\n" : "#f\r\n");
    else reply_integer(b, value);
}

void reply_double(buffer *b, int resp, double value) {
    char text[40];
    (void)snprintf(text, sizeof text, "%.9g", value);
    if (resp == 3) buffer_printf(b, ",%s\r\n", text);
    else reply_bulk_text(b, text);
}

void reply_error(buffer *b, const char *format, ...) {
    char text[MAX_ERROR_BYTES];
    va_list args;
    char *p;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (p = text; *p != 0; p++)
        if (*p == '\r' || *p == '\n') *p = ' ';
    buffer_put(b, "-", 1);
    buffer_text(b, text);
    buffer_put(b, "\r\n", 2);
}

static int printed_bytes(const result *r) {
    return (int)(r->bytes.len < MAX_ERROR_BYTES ? r->bytes.len : MAX_ERROR_BYTES);
}

void reply_result(buffer *b, int resp, const result *r) {
    switch (r->kind) {
    case RESULT_OK: reply_ok(b); break;
    case RESULT_NULL: reply_null(b, resp); break;
    case RESULT_INTEGER: reply_integer(b, r->number); break;
    case RESULT_BOOL: reply_bool(b, resp, r->number != 0); break;
    case RESULT_TYPE: buffer_printf(b, "+%.*s\r\n", printed_bytes(r), r->bytes.p); break;
    case RESULT_ERROR: reply_error(b, "%.*s", printed_bytes(r), r->bytes.p); break;
    case RESULT_BULK:
        if (r->pinned == NULL) reply_bulk(b, r->bytes.p, r->bytes.len);
        else { /* request_put_value() fetches the rest, and writes it with its CR LF */
            reply_bulk_head(b, r->number);
            buffer_put(b, r->bytes.p, r->bytes.len);
        }
        break;
    case RESULT_DATA: assert(0); /* the command that asked makes a reply of it */
    }
}

void result_error(result *r, const char *format, ...) {
    char text[MAX_ERROR_BYTES];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    r->kind = RESULT_ERROR;
    r->bytes.len = 0;
    buffer_text(&r->bytes, text);
}
