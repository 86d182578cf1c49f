/* glob.c - patterns as in Redis, matched in linear time.
 *
 *     *        any run of bytes, also none        [abc] [a-z]  one byte of these
 *     ?        any byte                           [^abc]       one byte that is none of these
 *     \x       the byte x, whatever it means      others       themselves
 *
 * Bytes are unsigned, and case counts. The details are those of Redis' stringmatchlen:
 *   - A class that is not closed goes on to the pattern's end. `[]` matches nothing, and `[^]` any byte.
 *   - A range from high to low is turned round. `[a-]` is a range from a to ], in a class that is not closed.
 *   - Within a class, too, `\` takes the meaning from the next byte, but not at the end of a range.
 *   - A `\` that is the pattern's last byte matches itself.
 * One detail is different: `*` matches an empty text. Some versions of Redis say no, if the caller has no path of its
 * own for that pattern.
 *
 * A pattern is compiled into the pieces between its stars:
 *
 *     user:*[0-9]:??*:x   ->   "user:"             [0-9]:??    ":x"
 *                              at the beginning    anywhere    at the end
 *
 * The pieces in the middle are searched one behind the other. The first occurrence of a piece is as good as any later
 * one, because the star behind it takes what is left over. So a search never goes back, and matching is linear if each
 * search is:
 *   - Plain bytes are searched by memmem(), which is linear in glibc and musl (two-way search for long needles). On a
 *     libc with a naive memmem(), matching would be quadratic.
 *   - A piece of ? alone is wherever there is room.
 *   - A short piece is compared at each place, which is at most GLOB_SHORT bytes.
 *   - Other pieces are searched with Shift-And (R. Baeza-Yates and G. Gonnet, "A New Approach to Text Searching", CACM,
 *     1992). Bit i of its state says that the last i + 1 bytes match the first i + 1 characters. A byte of the text
 *     shifts the state by one, and clears the bits of all characters that are not this byte. That needs a mask for
 *     each of the 256 bytes: 2 KiB for each 64 characters of a piece. */
#include "db.h"

#define GLOB_MAX_BYTES (2 * MAX_KEY_BYTES) /* of a pattern; the longest key fits with each of its bytes escaped */
#define GLOB_MAX_MEMORY_WORDS (GLOB_WORDS * 256) /* of all pieces together: 2 MiB of masks and sets */
#define GLOB_SHORT 16 /* characters of a piece that is looked for at each place; longer ones have masks */

typedef enum glob_kind { GLOB_PLAIN, GLOB_ANY, GLOB_MASKS, GLOB_SETS } glob_kind;
/* The bit set moves several words at once. */
#define GLOB_LANES 4
typedef uint64_t glob_lanes __attribute__((vector_size(8 * GLOB_LANES)));

typedef struct glob_piece {
    glob_kind kind;
    uint32_t chars;     /* bytes of a text that it matches */
    uint32_t words;     /* MASKS: of the bit set of its characters, a multiple of GLOB_LANES */
    const char *plain;  /* PLAIN: its bytes */
    uint64_t *masks;    /* MASKS: masks[byte * words + i / 64], bit i % 64: character i may be this byte */
                        /* SETS: masks[i * 4 + byte / 64], bit byte % 64: the same */
} glob_piece;

/* One allocation: this, the pieces, the masks, the plain bytes. */
struct glob_pattern {
    size_t least;      /* bytes of the shortest text that matches */
    uint32_t pieces;   /* one more than there are stars; consecutive stars are one */
    glob_piece piece[];
};

/* ---- reading a pattern ------------------------------------------------------------------------------------------- */

typedef struct glob_reader {
    const unsigned char *p, *end;
} glob_reader;

/* One character of a pattern: a set of bytes. */
typedef struct glob_char {
    glob_kind kind;     /* PLAIN: `byte` alone. ANY: each byte. SETS: a class */
    unsigned char byte;
    uint64_t set[4];    /* whatever the kind is */
} glob_char;

/* Adds the bytes from low to high. */
static void glob_set_range(uint64_t set[4], unsigned low, unsigned high) {
    unsigned word;
    for (word = low / 64; word <= high / 64; word++) {
        unsigned from = word == low / 64 ? low % 64 : 0, to = word == high / 64 ? high % 64 : 63;
        set[word] |= UINT64_MAX >> (63 - to) & UINT64_MAX << from;
    }
}

/* A class, behind its bracket. */
static void glob_read_class(glob_reader *r, glob_char *c) {
    bool negated = r->p < r->end && *r->p == '^';
    int i;
    memset(c->set, 0, sizeof c->set);
    if (negated) r->p++;
    while (r->p < r->end && *r->p != ']') {
        size_t left = (size_t)(r->end - r->p);
        if (*r->p == '\\' && left >= 2) {
            glob_set_range(c->set, r->p[1], r->p[1]);
            r->p += 2;
        } else if (left >= 3 && r->p[1] == '-') {
            unsigned a = r->p[0], b = r->p[2];
            glob_set_range(c->set, a < b ? a : b, a < b ? b : a);
            r->p += 3;
        } else {
            glob_set_range(c->set, *r->p, *r->p);
            r->p++;
        }
    }
    if (r->p < r->end) r->p++; /* the closing bracket */
    for (i = 0; negated && i < 4; i++) c->set[i] = ~c->set[i];
}

/* The next character; false at a star, and at the end. */
static bool glob_read(glob_reader *r, glob_char *c) {
    if (r->p == r->end || *r->p == '*') return false;
    c->byte = *r->p++;
    if (c->byte == '[') {
        c->kind = GLOB_SETS;
        glob_read_class(r, c);
        return true;
    }
    c->kind = c->byte == '?' ? GLOB_ANY : GLOB_PLAIN;
    if (c->byte == '\\' && r->p < r->end) c->byte = *r->p++;
    memset(c->set, c->kind == GLOB_ANY ? 255 : 0, sizeof c->set);
    c->set[c->byte / 64] |= UINT64_C(1) << c->byte % 64;
    return true;
}

/* Steps over stars; false at the end of the pattern. */
static bool glob_read_stars(glob_reader *r) {
    bool stars = r->p < r->end;
    while (r->p < r->end && *r->p == '*') r->p++;
    return stars;
}

/* ---- compiling --------------------------------------------------------------------------------------------------- */

/* What the next piece is, without its bytes and masks. */
static glob_piece glob_measure(glob_reader *r) {
    glob_piece piece = {GLOB_PLAIN, 0, 0, NULL, NULL};
    uint32_t plain = 0, any = 0;
    glob_char c;
    while (glob_read(r, &c)) {
        piece.chars++;
        if (c.kind == GLOB_PLAIN) plain++;
        if (c.kind == GLOB_ANY) any++;
    }
    if (plain != piece.chars)
        piece.kind = any == piece.chars ? GLOB_ANY : piece.chars <= GLOB_SHORT ? GLOB_SETS : GLOB_MASKS;
    if (piece.kind == GLOB_MASKS) piece.words = (piece.chars + 64 * GLOB_LANES - 1) / (64 * GLOB_LANES) * GLOB_LANES;
    return piece;
}

/* Words of memory for its masks or sets. */
static size_t glob_memory(const glob_piece *piece) {
    return piece->kind == GLOB_MASKS ? (size_t)piece->words * 256 : piece->kind == GLOB_SETS ? piece->chars * 4u : 0;
}

/* Turns rows into columns: bit i of row k becomes bit k of row i. Blocks of 32, 16, ... 1 bits trade places. */
static void glob_transpose(uint64_t rows[64]) {
    uint64_t low = UINT32_MAX; /* the lower block of each pair */
    uint32_t size, k;
    for (size = 32; size > 0; size /= 2, low ^= low << size)
        for (k = 0; k < 64; k++) {
            uint64_t different;
            if ((k & size) != 0) continue;
            different = (rows[k] >> size ^ rows[k + size]) & low;
            rows[k] ^= different << size;
            rows[k + size] ^= different;
        }
}

/* Reads up to 64 characters of a piece, and writes one word of each byte's mask. A character is a set of bytes, and a
 * mask is a set of characters. So this is a matrix to be turned. Bit by bit, a piece of 64 Ki ? would take 150 ms. */
static void glob_fill_word(glob_reader *r, const glob_piece *piece, uint32_t word) {
    uint64_t rows[4][64];
    uint32_t i, quarter;
    glob_char c;
    memset(rows, 0, sizeof rows);
    for (i = 0; i < 64 && glob_read(r, &c); i++)
        for (quarter = 0; quarter < 4; quarter++) rows[quarter][i] = c.set[quarter];
    for (quarter = 0; quarter < 4; quarter++) {
        glob_transpose(rows[quarter]);
        for (i = 0; i < 64; i++) piece->masks[(quarter * 64 + i) * piece->words + word] = rows[quarter][i];
    }
}

/* Reads the same piece again, and writes its bytes, its sets or its masks. */
static void glob_fill(glob_reader r, const glob_piece *piece, char *plain) {
    uint32_t i;
    glob_char c;
    for (i = 0; i < piece->words; i++) glob_fill_word(&r, piece, i);
    for (i = 0; glob_read(&r, &c); i++) {
        if (piece->kind == GLOB_PLAIN) plain[i] = (char)c.byte;
        if (piece->kind == GLOB_SETS) memcpy(piece->masks + (size_t)i * 4, c.set, sizeof c.set);
    }
}

/* NULL: the pattern has more than GLOB_MAX_BYTES, or a piece with ? or classes has more than 64 * GLOB_WORDS
 * characters, or all such pieces together need more than GLOB_MAX_MEMORY_WORDS. */
glob_pattern *glob_compile(slice pattern) {
    const unsigned char *begin = (const unsigned char *)(pattern.bytes == 0 ? "" : pattern.p);
    glob_reader r = {begin, begin + pattern.bytes};
    size_t least = 0, words = 0, head;
    uint32_t pieces = 0, i;
    glob_pattern *g;
    uint64_t *masks;
    char *plain;
    if (pattern.bytes > GLOB_MAX_BYTES) return NULL;
    do {
        glob_piece piece = glob_measure(&r);
        if (piece.words > GLOB_WORDS) return NULL;
        pieces++;
        least += piece.chars;
        words += glob_memory(&piece);
    } while (glob_read_stars(&r));
    if (words > GLOB_MAX_MEMORY_WORDS) return NULL;
    head = sizeof *g + pieces * sizeof *g->piece;
    g = (glob_pattern *)must(malloc(head + words * sizeof *masks + least));
    masks = (uint64_t *)(void *)((char *)g + head);
    plain = (char *)(masks + words);
    g->least = least;
    g->pieces = pieces;
    for (i = 0, r.p = begin; i < pieces; i++) {
        glob_reader again = r;
        glob_piece *piece = &g->piece[i];
        *piece = glob_measure(&r);
        piece->plain = plain;
        piece->masks = masks;
        glob_fill(again, piece, plain);
        (void)glob_read_stars(&r);
        plain += piece->chars;
        masks += glob_memory(piece);
    }
    return g;
}

void glob_free(glob_pattern *g) { free(g); }

/* ---- matching ---------------------------------------------------------------------------------------------------- */

/* Is the piece right here? */
static bool glob_is_at(const glob_piece *piece, const char *text) {
    uint32_t i;
    if (piece->kind == GLOB_PLAIN) return memcmp(text, piece->plain, piece->chars) == 0;
    for (i = 0; piece->kind == GLOB_SETS && i < piece->chars; i++) {
        unsigned byte = (unsigned char)text[i];
        if ((piece->masks[i * 4 + byte / 64] >> byte % 64 & 1) == 0) return false;
    }
    for (i = 0; piece->kind == GLOB_MASKS && i < piece->chars; i++)
        if ((piece->masks[(unsigned char)text[i] * piece->words + i / 64] >> i % 64 & 1) == 0) return false;
    return true;
}

/* Behind the first place where the piece is, or NULL. The word below state[0] is all ones: a match may begin at each
 * byte. Moved from the top down, each word still finds the one below as it was. */
static const char *glob_shift_and(const glob_piece *piece, const char *text, const char *end) {
    uint64_t room[1 + GLOB_WORDS], *state = room + 1;
    uint32_t last = (piece->chars - 1) / 64, word;
    memset(room, 0, (1 + (size_t)piece->words) * sizeof *room);
    room[0] = UINT64_MAX;
    for (; text < end; text++) {
        const uint64_t *mask = &piece->masks[(unsigned char)*text * piece->words];
        for (word = piece->words; word > 0; word -= GLOB_LANES) {
            glob_lanes now, below, may;
            memcpy(&now, state + word - GLOB_LANES, sizeof now);
            memcpy(&below, state + word - GLOB_LANES - 1, sizeof below);
            memcpy(&may, mask + word - GLOB_LANES, sizeof may);
            now = (now << 1 | below >> 63) & may;
            memcpy(state + word - GLOB_LANES, &now, sizeof now);
        }
        if ((state[last] >> (piece->chars - 1) % 64 & 1) != 0) return text + 1;
    }
    return NULL;
}

static const char *glob_short(const glob_piece *piece, const char *text, const char *end) {
    for (; text + piece->chars <= end; text++)
        if (glob_is_at(piece, text)) return text + piece->chars;
    return NULL;
}

static const char *glob_search(const glob_piece *piece, const char *text, const char *end) {
    size_t left = (size_t)(end - text);
    const char *found;
    if (piece->chars > left) return NULL;
    if (piece->kind == GLOB_MASKS) return glob_shift_and(piece, text, end);
    if (piece->kind == GLOB_SETS) return glob_short(piece, text, end);
    if (piece->kind == GLOB_ANY) return text + piece->chars;
    found = (const char *)memmem(text, left, piece->plain, piece->chars);
    return found == NULL ? NULL : found + piece->chars;
}

uint32_t glob_words(const glob_pattern *g) {
    uint32_t most = 1, i;
    for (i = 0; i < g->pieces; i++)
        if (g->piece[i].words > most) most = g->piece[i].words;
    return most;
}

bool glob_match(const glob_pattern *g, slice text) {
    const glob_piece *first = &g->piece[0], *last = &g->piece[g->pieces - 1], *piece;
    const char *at, *end;
    if (text.bytes < g->least || (first == last && text.bytes > g->least)) return false;
    if (text.bytes == 0) return true;
    at = text.p + first->chars;
    end = text.p + text.bytes - last->chars;
    if (!glob_is_at(first, text.p)) return false;
    if (first == last) return true;
    if (!glob_is_at(last, end)) return false;
    for (piece = first + 1; piece < last && at != NULL; piece++) at = glob_search(piece, at, end);
    return at != NULL;
}
