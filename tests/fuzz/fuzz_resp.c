/* libFuzzer target: the database's parser of commands. The first byte of the input says how large the pieces are in
 * which the rest comes in. Whatever it is, its arguments lie inside of it, one behind the other, and other pieces give
 * the same. Compiled with MAKE_SEEDS it is a program that writes inputs to begin with into the folder that it is
 * given. */
#include "resp_alone.h"

static void die(const char *what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

#if defined(MAKE_SEEDS)
int main(int argc, char **argv) {
    static const char *const frames[] = {
        "*1\r\n$4\r\nPING\r\n", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nhello\r\n", "*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
        "*0\r\n", "*-1\r\n", "set  k \t v\r\n", "\r\n", "*1\r\n$33554432\r\nx", "*65536\r\n$1\r\na\r\n$1\r\nb\r\n",
        "*1\r\n+x\r\n", "*99999999999999999999\r\n", "PING\nPING\n*1\r\n$4\r\nPING\r\n"};
    size_t i;
    if (argc < 2) die("fuzz_resp FOLDER");
    for (i = 0; i < sizeof frames / sizeof *frames; i++) {
        char path[4096];
        FILE *f;
        (void)snprintf(path, sizeof path, "%s/%d", argv[1], (int)i);
        f = fopen(path, "wb");
        if (f == NULL || fputc((int)i + 1, f) == EOF || fputs(frames[i], f) == EOF || fclose(f) != 0) die(path);
    }
    return 0;
}
#else

/* One frame in one piece, in small ones, and byte by byte. Returns where it ends; 0: there is no end. */
static size_t check_frame(const char *frame, size_t bytes, long most, uint64_t *random) {
    parsed one = parse_in_pieces(frame, bytes, (long)bytes, NULL);
    parsed pieces = parse_in_pieces(frame, bytes, -most, random);
    parsed single = parse_in_pieces(frame, bytes, bytes < 512 ? 1 : 64, NULL);
    const char *difference = parsed_difference(&one, &pieces);
    size_t end = one.result == PARSE_READY ? one.p.at : 0;
    if (difference == NULL) difference = parsed_difference(&one, &single);
    if (difference != NULL) die(difference);
    if (one.result == PARSE_READY && end == 0) die("a frame of no bytes");
    parsed_free(&one);
    parsed_free(&pieces);
    parsed_free(&single);
    return end;
}

/* What comes from a client stays within one line of an error. */
static void check_error(const char *frame, size_t bytes) {
    buffer b = {0};
    reply_error(&b, "ERR '%.*s'", (int)(bytes < 100 ? bytes : 100), frame);
    if (b.len < 3 || memchr(b.p, '\n', b.len) != b.p + b.len - 1 || memchr(b.p, '\r', b.len) != b.p + b.len - 2)
        die("an error of two lines");
    buffer_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const char *frame = (const char *)data + 1;
    size_t left = bytes - 1, end = 1;
    uint64_t random = 1;
    if (bytes < 2 || bytes > 4096) return 0;
    check_error(frame, left);
    while (left > 0 && end > 0) { /* one frame behind the other, as from a socket */
        end = check_frame(frame, left, 1 + data[0], &random);
        frame += end;
        left -= end;
    }
    return 0;
}
#endif
