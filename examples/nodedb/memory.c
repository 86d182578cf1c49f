/* memory.c - every byte is counted: by its shard's account with the governor, or by the core's sum for its clients.
 *
 * A write is admitted before it is logged: data_reserve() asks the governor for what it will take. What is durable
 * cannot be refused any more, so apply() counts by force, and what the operation had reserved pays for it (credit).
 * Clients' buffers count into one number of their core; net_report_memory() reports it to the governor in each turn. */
#include "db.h"

#include <malloc.h>
#include <sys/mman.h>

#define LARGE_BYTES ((size_t)16 << 20)
#define LARGE_PIECE_BYTES ((size_t)2 << 20)

void *must(void *memory) { /* the governor refuses long before malloc does; if malloc does, nothing can go on */
    if (memory == NULL) {
        fprintf(stderr, "nodedb: out of memory\n");
        abort();
    }
    return memory;
}

/* ---- buffers ----------------------------------------------------------------------------------------------------- */

static void buffer_resize(buffer *b, size_t cap) {
    b->p = must(realloc(b->p, cap));
    if (b->counter != NULL) *b->counter += cap - b->cap; /* wraps around where it shrinks; the sum is right */
    b->cap = cap;
}

char *buffer_room(buffer *b, size_t bytes) {
    if (b->cap - b->len < bytes) {
        size_t cap = b->cap + b->cap / 2 + 64;
        buffer_resize(b, cap - b->len < bytes ? b->len + bytes : cap);
    }
    return b->p + b->len;
}

char *buffer_exact_room(buffer *b, size_t cap) {
    if (b->cap < cap) buffer_resize(b, cap);
    return b->p + b->len;
}

void buffer_put(buffer *b, const void *bytes, size_t n) {
    if (n == 0) return;
    memcpy(buffer_room(b, n), bytes, n);
    b->len += n;
}

void buffer_text(buffer *b, const char *text) { buffer_put(b, text, strlen(text)); }

void buffer_printf(buffer *b, const char *format, ...) {
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(buffer_room(b, 128), 128, format, args);
    va_end(args);
    if (n >= 128) {
        va_start(args, format);
        (void)vsnprintf(buffer_room(b, (size_t)n + 1), (size_t)n + 1, format, args);
        va_end(args);
    }
    if (n > 0) b->len += (size_t)n;
}

void buffer_free(buffer *b) {
    if (b->counter != NULL) *b->counter -= b->cap;
    free(b->p);
    b->p = NULL;
    b->len = b->cap = 0;
}

void buffer_count_at(buffer *b, size_t *counter) {
    if (b->counter != NULL) *b->counter -= b->cap;
    if (counter != NULL) *counter += b->cap;
    b->counter = counter;
}

/* ---- the data of a shard ----------------------------------------------------------------------------------------- */

void data_count(shard *s, int64_t bytes) {
    nodedb_mem *mem = s->server->mem;
    if (bytes > 0) {
        size_t more = (size_t)bytes, paid = more < s->credit_bytes ? more : s->credit_bytes;
        s->credit_bytes -= paid;
        if (more > paid) (void)nodedb_mem_reserve_forced(mem, s->index, MEM_DATA, more - paid, NULL);
    } else if (bytes < 0) (void)nodedb_mem_release(mem, s->index, MEM_DATA, (size_t)-bytes, NULL);
}

void *data_alloc(shard *s, size_t bytes) {
    void *memory = must(malloc(bytes > 0 ? bytes : 1));
    data_count(s, (int64_t)malloc_usable_size(memory));
    return memory;
}

void data_free(shard *s, void *memory) {
    if (memory == NULL) return;
    data_count(s, -(int64_t)malloc_usable_size(memory));
    free(memory);
}

void data_disown(shard *s, void *memory) { data_count(s, -(int64_t)malloc_usable_size(memory)); }
void data_adopt(shard *s, void *memory) { data_count(s, (int64_t)malloc_usable_size(memory)); }

static void *engine_alloc(shard *s, uint32_t engine, size_t bytes, size_t align) {
    void *memory = NULL;
    if (posix_memalign(&memory, align, bytes) != 0) return NULL;
    (void)nodedb_mem_reserve_forced(s->server->mem, s->index, engine, malloc_usable_size(memory), NULL);
    return memory;
}

static void engine_free(shard *s, uint32_t engine, void *memory) {
    (void)nodedb_mem_release(s->server->mem, s->index, engine, malloc_usable_size(memory), NULL);
    free(memory);
}

static void *data_engine_alloc(void *ctx, size_t bytes, size_t align) {
    return engine_alloc(ctx, MEM_DATA, bytes, align);
}
static void data_engine_free(void *ctx, void *memory, size_t bytes) {
    (void)bytes;
    engine_free(ctx, MEM_DATA, memory);
}
static void *vector_engine_alloc(void *ctx, size_t bytes, size_t align) {
    return engine_alloc(ctx, MEM_VECTORS, bytes, align);
}

/* Memory that an index has released, because it ended or has grown. The struct lies in that memory itself. */
struct large {
    large *next;
    size_t left; /* bytes from the start that are not returned to the system yet */
};

static void vector_engine_free(void *ctx, void *memory, size_t bytes) {
    shard *s = ctx;
    large *l = memory;
    (void)bytes;
    if (s->core == NULL || malloc_usable_size(memory) < LARGE_BYTES) {
        engine_free(s, MEM_VECTORS, memory);
        return;
    }
    *l = (large){s->large, malloc_usable_size(memory)};
    s->large = l;
}

/* Gives one piece back, from the end of the memory on. A piece takes 0.3 ms; a GiB at once would take 130 ms. */
void free_large_some(shard *s) {
    large *l = s->large;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from, to;
    if (l->left <= LARGE_PIECE_BYTES) {
        s->large = l->next;
        engine_free(s, MEM_VECTORS, l);
        return;
    }
    to = ((uintptr_t)l + l->left) / page * page;
    l->left -= LARGE_PIECE_BYTES;
    from = ((uintptr_t)l + l->left + page - 1) / page * page;
    (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

nodedb_allocator data_allocator(shard *s) {
    return (nodedb_allocator){.alloc = data_engine_alloc, .release = data_engine_free, .ctx = s};
}

nodedb_allocator vector_allocator(shard *s) {
    return (nodedb_allocator){.alloc = vector_engine_alloc, .release = vector_engine_free, .ctx = s};
}

/* What is counted by force (clients' buffers, values beyond their estimate) needs room under the ceiling as well. So a
 * write is granted only if FORCED_SLACK more would fit. */
#define FORCED_SLACK(memory_bytes) ((memory_bytes) / 32)
static bool reserve_with_slack(shard *s, size_t bytes) {
    nodedb_mem *mem = s->server->mem;
    size_t slack = FORCED_SLACK(s->server->memory_bytes);
    if (nodedb_mem_reserve(mem, s->index, MEM_DATA, bytes + slack, NULL) != NODEDB_OK) return false;
    (void)nodedb_mem_release(mem, s->index, MEM_DATA, slack, NULL);
    return true;
}

/* Where the ceiling refuses, room is made at once, because maintenance may not have run yet: dropped items are freed
 * first, then cold values are spilled to the overflow file. A call that spills nothing may have cleared `touched` bits,
 * so only the fourth of them gives up. */
bool data_reserve(shard *s, size_t bytes) {
    int tries, idle = 0;
    for (tries = 0; tries < 16; tries++) {
        if (bytes == 0 || reserve_with_slack(s, bytes)) return true;
        if (has_retired(s)) (void)retire_some(s, RETIRE_BATCH);
        else if (spill_some(s, bytes + SPILL_AHEAD_BYTES) == 0 && ++idle == 4) return false;
    }
    return false;
}

void data_release(shard *s, size_t bytes) {
    if (bytes > 0) (void)nodedb_mem_release(s->server->mem, s->index, MEM_DATA, bytes, NULL);
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static uint64_t clock_ms(clockid_t clock) {
    struct timespec t;
    (void)clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

uint64_t wall_ms(void) { return clock_ms(CLOCK_REALTIME); }
uint64_t steady_ms(void) { return clock_ms(CLOCK_MONOTONIC); }
