/* An allocator that counts what lives and refuses one call. Include it after a nodedb_*.h. */
#ifndef NODEDB_REFUSING_ALLOCATOR_H
#define NODEDB_REFUSING_ALLOCATOR_H

typedef struct refusing {
    long live;      /* bytes */
    long calls;
    long refuse_at; /* the number of the call that gets NULL, from 0 */
} refusing;

static void *refusing_alloc(void *ctx, size_t bytes, size_t align) {
    refusing *r = (refusing *)ctx;
    void *memory = NULL;
    if (r->calls++ == r->refuse_at || posix_memalign(&memory, align, bytes) != 0) return NULL;
    r->live += (long)bytes;
    return memory;
}

static void refusing_release(void *ctx, void *memory, size_t bytes) {
    ((refusing *)ctx)->live -= (long)bytes;
    free(memory);
}

/* Begins *r anew: the allocator that refuses call `refuse_at`. */
static nodedb_allocator refusing_allocator(refusing *r, long refuse_at) {
    nodedb_allocator allocator;
    r->live = r->calls = 0, r->refuse_at = refuse_at;
    allocator.alloc = refusing_alloc, allocator.release = refusing_release, allocator.ctx = r;
    return allocator;
}

#endif
