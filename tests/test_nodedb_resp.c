/* The protocol of the database, without a server: commands in pieces of any size, and replies. */
#include "resp_alone.h"
#include "test.h"

typedef struct text {
    char *p;
    size_t n, cap;
} text;

static void text_put(text *t, const void *p, size_t n) {
    if (t->cap - t->n < n) {
        t->cap = t->cap * 2 + n;
        t->p = must(realloc(t->p, t->cap));
    }
    memcpy(t->p + t->n, p, n);
    t->n += n;
}

static void text_printf(text *t, const char *format, ...) {
    char line[128];
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    text_put(t, line, (size_t)n);
}

static void text_free(text *t) {
    free(t->p);
    memset(t, 0, sizeof *t);
}

static void complain(const char *frame, size_t n, const char *what) {
    char line[400];
    size_t i, at = (size_t)snprintf(line, sizeof line, "%s: ", what);
    for (i = 0; i < n && at + 8 < sizeof line; i++)
        at += (size_t)snprintf(line + at, sizeof line - at,
                               frame[i] >= 32 && frame[i] < 127 && frame[i] != '\\' ? "%c" : "\\x%02x",
                               (unsigned char)frame[i]);
    test_fail(__FILE__, __LINE__, line);
}

/* ---- commands in ----------------------------------------------------------------------------------------------- */

static const struct { const char *frame; int args; const char *last; } whole[] = {
    {"*1\r\n$4\r\nPING\r\n", 1, "PING"},
    {"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", 2, "k"},
    {"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", 2, ""},
    {"*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$4\r\n*1\r\n\r\n", 3, "*1\r\n"},
    {"*1\r\n$12\r\nabcdefghijkl\r\n", 1, "abcdefghijkl"},
    {"*0\r\n", 0, NULL},
    {"*-1\r\n", 0, NULL},
    {"*-99\r\n", 0, NULL},
    {"\r\n", 0, NULL},
    {"\n", 0, NULL},
    {"  \t \r\n", 0, NULL},
    {"PING\r\n", 1, "PING"},
    {"PING\n", 1, "PING"},
    {"  set \t k v \r\n", 3, "v"},
    {"a\rb\r\r\n", 1, "a\rb\r"},
    {"$5\r\n", 1, "$5"},
};

static const struct { const char *frame, *wrong; } refused[] = {
    {"*1\r\n+PING\r\n", "expected '$', got '+'"},
    {"*1\r\n\x01", "expected '$', got '?'"},
    {"*2\r\n$1\r\nx\r\n:", "expected '$', got ':'"},
    {"*x\r\n", "invalid multibulk length"},
    {"*\r\n", "invalid multibulk length"},
    {"*1x\r\n", "invalid multibulk length"},
    {"*+1\r\n", "invalid multibulk length"},
    {"* 1\r\n", "invalid multibulk length"},
    {"*01\r\n", "invalid multibulk length"},
    {"*1\rx", "invalid multibulk length"},
    {"*65537\r\n", "invalid multibulk length"},
    {"*99999999999999999999\r\n", "invalid multibulk length"},
    {"*00000000000000000000000000000001", "invalid multibulk length"},
    {"*1\r\n$-1\r\n", "invalid bulk length"},
    {"*1\r\n$\r\n", "invalid bulk length"},
    {"*1\r\n$33554433\r\n", "invalid bulk length"},
    {"*1\r\n$99999999999\r\n", "invalid bulk length"},
    {"*1\r\n$00000000000000000000000000000004\r\n", "invalid bulk length"},
    {"*1\r\n$4\r\nPINGPING\r\n", "a bulk string does not end with CR LF"},
    {"*1\r\n$4\r\nPING\rx", "a bulk string does not end with CR LF"},
};

TEST(a_command_is_the_same_in_any_pieces) {
    size_t i, k;
    for (i = 0; i < sizeof whole / sizeof *whole; i++) {
        const char *frame = whole[i].frame;
        size_t n = strlen(frame);
        for (k = 1; k <= n; k++) {
            parsed f = parse_in_pieces(frame, n, (long)k, NULL);
            ptrdiff_t last = arrlen(f.p.args) - 1;
            if (f.harm != NULL) complain(frame, n, f.harm);
            else if (f.result != PARSE_READY || f.p.at != n || last + 1 != whole[i].args)
                complain(frame, n, "is not read as one command");
            else if (last >= 0 && (f.p.args[last].bytes != strlen(whole[i].last) ||
                                   memcmp(frame + f.p.args[last].at, whole[i].last, f.p.args[last].bytes) != 0))
                complain(frame, n, "has another last argument");
            parsed_free(&f);
        }
    }
}

TEST(a_wrong_command_is_refused_in_the_same_words_in_any_pieces) {
    size_t i, k;
    for (i = 0; i < sizeof refused / sizeof *refused; i++) {
        const char *frame = refused[i].frame;
        size_t n = strlen(frame);
        for (k = 1; k <= n; k++) {
            parsed f = parse_in_pieces(frame, n, (long)k, NULL);
            if (f.result != PARSE_BAD) complain(frame, n, "is not refused");
            else if (strcmp(f.wrong, refused[i].wrong) != 0) complain(frame, n, f.wrong);
            parsed_free(&f);
        }
    }
}

TEST(a_command_ends_where_the_next_begins) {
    static const char frames[] = "*1\r\n$4\r\nPING\r\nGET k\r\n*0\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n\r\n";
    static const size_t ends[] = {14, 21, 25, 45, 47};
    parser p = {0};
    const char *wrong = NULL;
    size_t at = 0, i;
    for (i = 0; i < sizeof ends / sizeof *ends; i++) {
        CHECK_EQ(parser_feed(&p, frames + at, sizeof frames - 1 - at, &wrong), PARSE_READY);
        at += p.at;
        CHECK_EQ(at, ends[i]);
        parser_reset(&p);
        CHECK(p.at == 0 && p.wanted == 0 && p.seen == 0 && arrlen(p.args) == 0);
    }
    parser_free(&p);
}

TEST(random_commands_come_out_as_they_went_in) {
    uint64_t random = test_seed;
    int round;
    for (round = 0; round < 3000; round++) {
        text frame = {0};
        size_t args = 1 + test_random(&random) % 20, i, at, least = 0;
        size_t bytes[20];
        parsed f;
        text_printf(&frame, "*%zu\r\n", args);
        for (i = 0; i < args; i++) {
            size_t n = test_random(&random) % (test_random(&random) % 8 == 0 ? 3000 : 12), k;
            text_printf(&frame, "$%zu\r\n", n);
            for (k = 0; k < n; k++) text_put(&frame, &"\r\n$*0a"[test_random(&random) % 6], 1);
            text_put(&frame, "\r\n", 2);
            bytes[i] = n;
        }
        f = parse_in_pieces(frame.p, frame.n, -(long)(1 + test_random(&random) % 500), &random);
        CHECK(f.harm == NULL);
        REQUIRE(f.result == PARSE_READY && f.p.at == frame.n && (size_t)arrlen(f.p.args) == args);
        for (i = 0; i < args; i++) CHECK_EQ(f.p.args[i].bytes, bytes[i]);
        parsed_free(&f);
        for (at = 0; at < frame.n; at++) { /* what it says that it needs only grows, and is there in the end */
            parser p = {0};
            const char *wrong = NULL;
            CHECK_EQ(parser_feed(&p, frame.p, at, &wrong), PARSE_MORE);
            CHECK(p.needs > at && p.needs >= least && p.needs <= frame.n);
            least = p.needs;
            parser_free(&p);
            if (frame.n > 500) at += test_random(&random) % 200;
        }
        text_free(&frame);
    }
}

TEST(what_is_announced_is_what_it_needs) {
    static const struct { const char *begin; size_t needs; } cases[] = {
        {"", 1},
        {"*", 2},
        {"*3\r", 4},
        {"*3\r\n", 4 + 3 * 6},
        {"*3\r\n$3\r\nSET\r\n", 13 + 2 * 6},
        {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$33554432\r\n", 31 + 33554432 + 2},
        {"*3\r\n$3\r\nSET\r\n$100\r\n", 19 + 102 + 6},
        {"*65536\r\n", 8 + 65536 * 6},
        {"inline", 7},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        parser p = {0};
        const char *wrong = NULL;
        CHECK_EQ(parser_feed(&p, cases[i].begin, strlen(cases[i].begin), &wrong), PARSE_MORE);
        CHECK_EQ(p.needs, cases[i].needs);
        CHECK(arrcap(p.args) < 16); /* an announcement takes no memory */
        parser_free(&p);
    }
}

/* A parser that begins again with each piece needs minutes for this. */
TEST(a_command_of_65536_arguments_in_small_pieces_is_read_once) {
    text frame = {0};
    int i, piece;
    text_printf(&frame, "*%d\r\n", MAX_ARGS);
    for (i = 0; i < MAX_ARGS; i++) text_printf(&frame, "$2\r\n%02d\r\n", i % 100);
    for (piece = 1; piece <= 7; piece += 6) {
        parser p = {0};
        const char *wrong = NULL;
        parse_result result = PARSE_MORE;
        size_t there = 0;
        while (result == PARSE_MORE && there < frame.n) {
            there = there + (size_t)piece < frame.n ? there + (size_t)piece : frame.n;
            result = parser_feed(&p, frame.p, there, &wrong);
        }
        CHECK_EQ(result, PARSE_READY);
        CHECK_EQ(arrlen(p.args), MAX_ARGS);
        CHECK_EQ(p.at, frame.n);
        parser_reset(&p);
        CHECK(p.args == NULL); /* so large an array does not stay */
    }
    text_free(&frame);
}

TEST(an_inline_command_may_have_64_kib_and_is_read_once_too) {
    static char line[MAX_INLINE_BYTES + 1];
    size_t n, there;
    for (n = MAX_INLINE_BYTES - 1; n <= MAX_INLINE_BYTES; n++) { /* without its end */
        parser p = {0};
        const char *wrong = NULL;
        parse_result result = PARSE_MORE;
        memset(line, 'a', n);
        line[n] = '\n';
        for (there = 1; result == PARSE_MORE && there <= n + 1; there++)
            result = parser_feed(&p, line, there, &wrong);
        if (n < MAX_INLINE_BYTES) CHECK(result == PARSE_READY && p.args[0].bytes == n);
        else CHECK(result == PARSE_BAD && strcmp(wrong, "too big inline request") == 0);
        parser_free(&p);
    }
}

TEST(a_command_over_the_limit_is_refused_when_it_is_announced) {
    text frame = {0};
    parser p = {0};
    const char *wrong = NULL;
    char *value = must(calloc(1, MAX_BULK_BYTES));
    char want[64];
    text_printf(&frame, "*3\r\n$3\r\nSET\r\n$%u\r\n", MAX_BULK_BYTES);
    CHECK_EQ(parser_feed(&p, frame.p, frame.n, &wrong), PARSE_MORE);
    text_put(&frame, value, MAX_BULK_BYTES);
    text_printf(&frame, "\r\n$%u\r\n", MAX_FRAME_BYTES - MAX_BULK_BYTES - 64);
    CHECK_EQ(parser_feed(&p, frame.p, frame.n, &wrong), PARSE_MORE);
    CHECK_EQ(arrlen(p.args), 2);
    frame.n -= 11;
    text_printf(&frame, "$%u\r\n", MAX_FRAME_BYTES - MAX_BULK_BYTES);
    parser_reset(&p);
    CHECK_EQ(parser_feed(&p, frame.p, frame.n, &wrong), PARSE_BAD);
    (void)snprintf(want, sizeof want, "a command of more than %u bytes", MAX_FRAME_BYTES);
    CHECK_HAS(wrong, want);
    parser_free(&p);
    free(value);
    text_free(&frame);
}

static void mutate(text *t, uint64_t *random) {
    static const char likely[] = "\r\n*$0123456789- a";
    int changes = 1 + (int)(test_random(random) % 4);
    while (changes-- > 0 && t->n > 0) {
        size_t at = test_random(random) % t->n;
        switch (test_random(random) % 4) {
        case 0: t->p[at] = (char)test_random(random); break;
        case 1: t->p[at] = likely[test_random(random) % (sizeof likely - 1)]; break;
        case 2: /* a byte goes */
            memmove(t->p + at, t->p + at + 1, t->n - at - 1);
            t->n--;
            break;
        default: /* a byte comes */
            text_put(t, "", 1);
            memmove(t->p + at + 1, t->p + at, t->n - at - 1);
            t->p[at] = likely[test_random(random) % (sizeof likely - 1)];
        }
    }
}

TEST(mutated_commands_never_have_arguments_outside_of_the_frame) {
    uint64_t random = test_seed;
    long round, rounds = test_long ? 2000000 : SLOW ? 20000 : 200000, ready = 0;
    size_t seeds = sizeof whole / sizeof *whole + sizeof refused / sizeof *refused;
    for (round = 0; round < rounds && test_failures_here < 5; round++) {
        size_t seed = test_random(&random) % seeds;
        const char *from = seed < sizeof whole / sizeof *whole ? whole[seed].frame
                                                               : refused[seed - sizeof whole / sizeof *whole].frame;
        text frame = {0};
        parsed one, pieces;
        const char *difference;
        text_put(&frame, from, strlen(from));
        mutate(&frame, &random);
        one = parse_in_pieces(frame.p, frame.n, (long)frame.n + 1, NULL);
        pieces = parse_in_pieces(frame.p, frame.n, -8, &random);
        difference = parsed_difference(&one, &pieces);
        if (difference != NULL) complain(frame.p, frame.n, difference);
        ready += one.result == PARSE_READY;
        parsed_free(&one);
        parsed_free(&pieces);
        text_free(&frame);
    }
    CHECK(ready > rounds / 20 && ready < rounds);
}

/* ---- replies out ----------------------------------------------------------------------------------------------- */

#define REPLIES(call, want)                                                                                            \
    do {                                                                                                               \
        buffer b = {0};                                                                                                \
        call;                                                                                                          \
        if (b.len != sizeof(want) - 1 || memcmp(b.p, want, sizeof(want) - 1) != 0) complain(b.p, b.len, #call);        \
        buffer_free(&b);                                                                                               \
    } while (0)

TEST(the_memory_of_arguments_is_counted_while_they_come_in) {
    size_t counter = 7, most = 0, i;
    const char *wrong;
    parser p = {.counter = &counter};
    text frame = {0};
    text_printf(&frame, "*2000\r\n");
    for (i = 0; i < 2000; i++) {
        text_printf(&frame, "$1\r\nx\r\n");
        CHECK_EQ(parser_feed(&p, frame.p, frame.n, &wrong), i < 1999 ? PARSE_MORE : PARSE_READY);
        CHECK_EQ(counter, 7 + parser_bytes(&p));
        if (counter > most) most = counter;
    }
    CHECK(most >= 7 + 2000 * sizeof(argument_at));
    parser_reset(&p);
    CHECK_EQ(counter, 7); /* a large array is freed with its frame ... */
    CHECK_EQ(parser_feed(&p, "*1\r\n$1\r\nx\r\n", 11, &wrong), PARSE_READY);
    CHECK_EQ(counter, 7 + parser_bytes(&p));
    parser_reset(&p);
    CHECK(parser_bytes(&p) > 0 && counter == 7 + parser_bytes(&p)); /* ... a small one stays, and counts */
    parser_free(&p);
    CHECK_EQ(counter, 7);
    text_free(&frame);
}

TEST(replies_are_as_each_version_of_the_protocol_says) {
    REPLIES(reply_integer(&b, 0), ":0\r\n");
    REPLIES(reply_integer(&b, INT64_MIN), ":-9223372036854775808\r\n");
    REPLIES(reply_integer(&b, INT64_MAX), ":9223372036854775807\r\n");
    REPLIES(reply_array(&b, 3), "*3\r\n");
    REPLIES(reply_map(&b, 2, 3), "*6\r\n");
    REPLIES(reply_map(&b, 3, 3), "%3\r\n");
    REPLIES(reply_bulk(&b, "a\0b", 3), "$3\r\na\0b\r\n");
    REPLIES(reply_bulk(&b, NULL, 0), "$0\r\n\r\n");
    REPLIES(reply_bulk_head(&b, 1234567), "$1234567\r\n");
    REPLIES(reply_bulk_text(&b, "text"), "$4\r\ntext\r\n");
    REPLIES(reply_null(&b, 2), "$-1\r\n");
    REPLIES(reply_null(&b, 3), "_\r\n");
    REPLIES(reply_ok(&b), "+OK\r\n");
    REPLIES(reply_bool(&b, 2, true), ":1\r\n");
    REPLIES(reply_bool(&b, 3, false), "#f\r\n");
    REPLIES(reply_double(&b, 2, 0.5), "$3\r\n0.5\r\n");
    REPLIES(reply_double(&b, 3, -1e20), ",-1e+20\r\n");
}

TEST(an_error_is_one_line_whatever_is_in_it) {
    char text_of_a_client[5000];
    buffer b = {0};
    REPLIES(reply_error(&b, "ERR %s", "a\r\nb\nc"), "-ERR a  b c\r\n");
    REPLIES(reply_error(&b, "%s", ""), "-\r\n");
    memset(text_of_a_client, 'x', sizeof text_of_a_client);
    text_of_a_client[sizeof text_of_a_client - 1] = 0;
    reply_error(&b, "ERR %s", text_of_a_client);
    CHECK(b.len > 500 && b.len < 700 && memcmp(b.p + b.len - 2, "\r\n", 2) == 0);
    buffer_free(&b);
}

TEST(each_kind_of_result_has_its_reply) {
    value pinned = {0};
    result r = {RESULT_OK, 0, {0}, NULL};
    REPLIES(reply_result(&b, 2, &r), "+OK\r\n");
    r.kind = RESULT_NULL;
    REPLIES(reply_result(&b, 2, &r), "$-1\r\n");
    REPLIES(reply_result(&b, 3, &r), "_\r\n");
    r.kind = RESULT_INTEGER, r.number = -2;
    REPLIES(reply_result(&b, 3, &r), ":-2\r\n");
    r.kind = RESULT_BOOL, r.number = 1;
    REPLIES(reply_result(&b, 2, &r), ":1\r\n");
    REPLIES(reply_result(&b, 3, &r), "#t\r\n");
    buffer_text(&r.bytes, "string");
    r.kind = RESULT_TYPE;
    REPLIES(reply_result(&b, 2, &r), "+string\r\n");
    r.kind = RESULT_BULK;
    REPLIES(reply_result(&b, 3, &r), "$6\r\nstring\r\n");
    r.number = 100, r.pinned = &pinned;
    REPLIES(reply_result(&b, 3, &r), "$100\r\nstring"); /* the rest is still to come */
    r.pinned = NULL;
    result_error(&r, "ERR %s of %d", "one\r\n", 2);
    CHECK_EQ(r.kind, RESULT_ERROR);
    REPLIES(reply_result(&b, 2, &r), "-ERR one   of 2\r\n");
    buffer_free(&r.bytes);
}

TEST_MAIN("nodedb_resp")
