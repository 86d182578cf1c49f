/* resp.c of the database without the database: the few functions that it calls are here, and a client's frame goes into
 * the parser in pieces, each in memory of exactly its size, so that a sanitizer sees a byte read too far. Used by the
 * unit test and the fuzz target. */
#ifndef NODEDB_RESP_ALONE_H
#define NODEDB_RESP_ALONE_H

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#define STB_DS_IMPLEMENTATION
#include "examples/nodedb/db.h"
#include "examples/nodedb/resp.c"

void *must(void *memory) {
    if (memory == NULL) abort();
    return memory;
}
void buffer_put(buffer *b, const void *bytes, size_t n) {
    if (n == 0) return;
    if (b->cap - b->len < n) {
        b->cap = b->cap * 2 + n;
        b->p = must(realloc(b->p, b->cap));
    }
    memcpy(b->p + b->len, bytes, n);
    b->len += n;
}
void buffer_text(buffer *b, const char *text) { buffer_put(b, text, strlen(text)); }
void buffer_printf(buffer *b, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    buffer_text(b, text);
}
void buffer_free(buffer *b) {
    free(b->p);
    memset(b, 0, sizeof *b);
}
bool parse_int64(slice text, int64_t *number) { /* as in shard.c */
    char copy[24], *end;
    if (text.bytes == 0 || text.bytes > 20 || isspace((unsigned char)text.p[0]) || text.p[0] == '+') return false;
    memcpy(copy, text.p, text.bytes);
    copy[text.bytes] = 0;
    errno = 0;
    *number = strtoll(copy, &end, 10);
    return errno == 0 && *end == 0 && end == copy + text.bytes &&
           (text.bytes == 1 || (text.p[0] != '0' && !(text.p[0] == '-' && text.p[1] == '0')));
}

/* What became of a frame. */
typedef struct parsed {
    parse_result result;
    parser p;         /* its arguments are freed by parsed_free() */
    char wrong[64];
    const char *harm; /* what the parser must not do, and did; or NULL */
} parsed;

static inline void parsed_free(parsed *f) {
    arrfree(f->p.args);
    f->p.args = NULL;
}

/* What must be true after each piece. */
static inline const char *parser_harm(const parser *p, parse_result result, size_t bytes, const char *wrong) {
    size_t behind = 0;
    ptrdiff_t i;
    if (result == PARSE_BAD) return wrong == NULL ? "it does not say what is wrong" : NULL;
    if (p->at > bytes) return "it is behind the end";
    if (result == PARSE_MORE && p->needs <= bytes) return "it needs no more than is there";
    if (result == PARSE_READY && p->needs != p->at) return "it needs more than the whole frame";
    for (i = 0; i < arrlen(p->args); i++) {
        if (p->args[i].at < behind) return "two arguments overlap";
        behind = (size_t)p->args[i].at + p->args[i].bytes;
    }
    return behind > p->at ? "an argument is outside of the frame" : NULL;
}

/* Feeds the frame until it is whole or wrong. The pieces' sizes: `fixed` bytes each, or from 1 to -fixed by *random. */
static inline parsed parse_in_pieces(const char *frame, size_t bytes, long fixed, uint64_t *random) {
    parsed f;
    size_t there = 0;
    memset(&f, 0, sizeof f);
    while (f.result == PARSE_MORE && f.harm == NULL && there < bytes) {
        const char *wrong = NULL;
        size_t piece = fixed > 0 ? (size_t)fixed : 1 + (size_t)(nodedb_mix64(++*random) % (uint64_t)-fixed);
        char *exact;
        there = piece < bytes - there ? there + piece : bytes;
        exact = must(malloc(there));
        memcpy(exact, frame, there);
        f.result = parser_feed(&f.p, exact, there, &wrong);
        f.harm = parser_harm(&f.p, f.result, there, wrong);
        if (wrong != NULL) (void)snprintf(f.wrong, sizeof f.wrong, "%s", wrong);
        free(exact);
    }
    return f;
}

/* Does the frame, in these pieces, give what it gives in one? */
static inline const char *parsed_difference(const parsed *a, const parsed *b) {
    if (a->harm != NULL) return a->harm;
    if (b->harm != NULL) return b->harm;
    if (a->result != b->result) return "other pieces have another result";
    if (strcmp(a->wrong, b->wrong) != 0) return "other pieces have another error";
    if (a->result == PARSE_READY && a->p.at != b->p.at) return "other pieces have another end";
    if (a->result == PARSE_BAD) return NULL;
    if (arrlen(a->p.args) != arrlen(b->p.args)) return "other pieces have another number of arguments";
    if (arrlen(a->p.args) > 0 &&
        memcmp(a->p.args, b->p.args, (size_t)arrlen(a->p.args) * sizeof *a->p.args) != 0)
        return "other pieces have other arguments";
    return NULL;
}

#endif
