/* spill.c - near the ceiling cold values move to the overflow file, and come back when there is room.
 *
 * The file is mapped, so what is written or read there counts as this process' memory until it is unmapped from it:
 * spill_unmap() does so after each MiB. The page cache may keep the pages. */
#include "db.h"

#define SPILL_PAGES 32             /* of the table of keys, that one call looks at */
#define UNMAP_BYTES (4u << 20)
#define INITIAL_BYTES (1u << 20)
#define FAULT_AROUND 65536u        /* /sys/kernel/mm: fault_around_bytes, Linux' default */

static nodedb_mem_overflow *overflow_of(shard *s) {
    nodedb_mem_overflow_config config = {.dir = s->dir, .initial_bytes = INITIAL_BYTES,
                                         .max_bytes = NODEDB_MEM_OVERFLOW_MAX_BYTES, .allocator = data_allocator(s),
                                         .logger = s->logger};
    nodedb_prefetch_config batches = {.method = NODEDB_PREFETCH_PROCESS_MADVISE, .logger = s->logger};
    nodedb_error err;
    if (s->prefetch == NULL) s->prefetch = nodedb_prefetch_create(&batches, NULL); /* without it pages just fault */
    if (s->overflow == NULL && (s->overflow = nodedb_mem_overflow_open(&config, &err)) == NULL)
        nodedb_say(&s->logger, NODEDB_LOG_WARNING, "core %u cannot move cold values out of memory: %s", s->index,
                   err.message);
    return s->overflow;
}

static nodedb_mem_handle handle_of(const value *v) {
    nodedb_mem_handle handle;
    assert(v->spilled);
    memcpy(&handle, v + 1, sizeof handle);
    return handle;
}

void spill_unmap(shard *s) {
    /* DROP_PRIVATE does not look up whether the mapping is shared; it is, so nothing is lost. */
    if (s->mapped_bytes > 0 && s->prefetch != NULL)
        (void)nodedb_prefetch_release(s->prefetch, s->mapped_low, (size_t)(s->mapped_high - s->mapped_low),
                                      NODEDB_PREFETCH_DROP_PRIVATE, NULL);
    s->mapped_low = s->mapped_high = NULL;
    s->mapped_bytes = 0;
}

/* Widens the range that may be mapped: a fault maps up to FAULT_AROUND bytes around its page. Whole pages, because
 * spill_unmap() rounds inward. */
static void note_touched(shard *s, const char *p, size_t bytes) {
    const char *from = p - (uintptr_t)p % FAULT_AROUND, *end = p + bytes;
    const char *to = end + (FAULT_AROUND - (uintptr_t)end % FAULT_AROUND) % FAULT_AROUND;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    /* not beyond the part of this mapping that was ever used: the memory beside it is not ours */
    if (s->file_low == NULL || p < s->file_low) s->file_low = p - (uintptr_t)p % page;
    if (end > s->file_high) s->file_high = end + (page - (uintptr_t)end % page) % page;
    if (from < s->file_low) from = s->file_low;
    if (to > s->file_high) to = s->file_high;
    if (s->mapped_bytes == 0 || from < s->mapped_low) s->mapped_low = from;
    if (s->mapped_bytes == 0 || to > s->mapped_high) s->mapped_high = to;
    s->mapped_bytes += bytes + FAULT_AROUND;
}

const char *spill_read(shard *s, const value *v) {
    const char *p;
    if (s->mapped_bytes >= UNMAP_BYTES) spill_unmap(s); /* before this value is handed out, not after */
    p = nodedb_mem_overflow_read(s->overflow, handle_of(v), NULL, NULL);
    if (p != NULL) note_touched(s, p, v->bytes);
    return p;
}

void spill_forget(shard *s, value *v) {
    (void)nodedb_mem_overflow_free(s->overflow, handle_of(v), NULL);
    s->spilled_bytes -= v->bytes;
    s->spilled_count--;
}

/* Writes an entry's string to the overflow file. False: the file refuses. */
static bool spill_entry(shard *s, entry *e) {
    value *old = e->u.string, *out;
    nodedb_mem_handle handle;
    const char *p;
    if (overflow_of(s) == NULL) return false;
    if (nodedb_mem_overflow_write(s->overflow, old + 1, old->bytes, &handle, NULL) != NODEDB_OK) return false;
    p = nodedb_mem_overflow_read(s->overflow, handle, NULL, NULL);
    if (p != NULL) note_touched(s, p, old->bytes);
    if (s->mapped_bytes >= UNMAP_BYTES) spill_unmap(s);
    out = data_alloc(s, sizeof *out + sizeof handle);
    *out = (value){.bytes = old->bytes, .spilled = 1};
    memcpy(out + 1, &handle, sizeof handle);
    s->spilled_bytes += old->bytes;
    s->spilled_count++;
    data_free(s, old);
    e->u.string = out;
    return true;
}

/* Second chance: a value that was used since the hand last passed stays for another round. */
size_t spill_some(shard *s, size_t bytes) {
    void *items[DICTIONARY_SEGMENT];
    size_t moved = 0, i, n;
    int pages, rounds = 0;
    if (s->keys.count == 0) return 0;
    for (pages = 0; pages < SPILL_PAGES && moved < bytes; pages++) {
        if (s->spill_cursor >= DICTIONARY_END) {
            if (++rounds > 2) break;
            s->spill_cursor = 0;
        }
        n = dictionary_page(&s->keys, &s->spill_cursor, items, DICTIONARY_SEGMENT);
        for (i = 0; i < n && moved < bytes; i++) {
            entry *e = items[i];
            value *v = e->kind == ENTRY_STRING ? e->u.string : NULL;
            if (v == NULL || v->spilled || v->pins > 0 || v->bytes < SPILL_MIN_BYTES) continue;
            if (v->touched) v->touched = 0;
            else if (spill_entry(s, e)) moved += e->u.string->bytes;
            else return moved; /* full: the budget refuses writes */
        }
        if (i < n) s->spill_cursor = ((const entry *)items[i])->hash;
    }
    return moved;
}

/* Brings values back, a batch at a time: announced first, so that the pages are read before they are touched. */
void restore_some(shard *s, size_t bytes) {
    void *items[DICTIONARY_SEGMENT];
    nodedb_prefetch_range ranges[SPILL_BATCH];
    entry *back[SPILL_BATCH];
    size_t found = 0, i, n;
    int pages;
    for (pages = 0; pages < SPILL_PAGES && found < SPILL_BATCH && s->spilled_count > 0; pages++) {
        if (s->spill_cursor >= DICTIONARY_END) s->spill_cursor = 0;
        n = dictionary_page(&s->keys, &s->spill_cursor, items, DICTIONARY_SEGMENT);
        for (i = 0; i < n && found < SPILL_BATCH; i++) {
            entry *e = items[i];
            const value *v = e->kind == ENTRY_STRING ? e->u.string : NULL;
            if (v == NULL || !v->spilled || v->pins > 0 || v->bytes > bytes) continue;
            ranges[found].start = nodedb_mem_overflow_read(s->overflow, handle_of(v), &ranges[found].bytes, NULL);
            if (ranges[found].start == NULL) continue;
            back[found++] = e;
            bytes -= v->bytes;
        }
        if (i < n) s->spill_cursor = ((const entry *)items[i])->hash;
    }
    if (found > 0 && s->prefetch != NULL) (void)nodedb_prefetch_batch(s->prefetch, ranges, found, NULL);
    for (i = 0; i < found; i++) {
        value *old = back[i]->u.string, *v;
        if (nodedb_mem_reserve(s->server->mem, s->index, MEM_DATA, old->bytes + sizeof *v, NULL) != NODEDB_OK) return;
        s->credit_bytes = old->bytes + sizeof *v;
        v = data_alloc(s, sizeof *v + old->bytes);
        *v = (value){.bytes = old->bytes};
        memcpy(v + 1, ranges[i].start, old->bytes);
        note_touched(s, ranges[i].start, old->bytes);
        data_release(s, s->credit_bytes);
        s->credit_bytes = 0;
        spill_forget(s, old);
        data_free(s, old);
        back[i]->u.string = v;
    }
    if (s->mapped_bytes >= UNMAP_BYTES) spill_unmap(s);
}

/* Returns whole free MiBs to the file system, and removes a file that is empty. */
void spill_trim(shard *s) {
    nodedb_mem_overflow_stats st;
    if (s->overflow == NULL || nodedb_mem_overflow_get_stats(s->overflow, &st, NULL) != NODEDB_OK) return;
    if (st.objects == 0) {
        spill_unmap(s);
        nodedb_mem_overflow_close(s->overflow);
        s->overflow = NULL;
        s->file_low = s->file_high = NULL;
    } else if (st.disk_bytes > st.used_bytes + st.used_bytes / 4 + 2 * NODEDB_MEM_OVERFLOW_GRANULE_BYTES)
        (void)nodedb_mem_overflow_trim(s->overflow, NULL, NULL);
}

void spill_maintain(shard *s) {
    nodedb_mem_spill_action action = NODEDB_MEM_SPILL_NONE;
    size_t bytes = 0;
    nodedb_error err;
    if (nodedb_mem_spill_decide(s->server->mem, &s->spill, s->index, NODEDB_MEM_GLOBAL, (size_t)s->spilled_bytes,
                                &action, &bytes, &err) != NODEDB_OK) {
        nodedb_say(&s->logger, NODEDB_LOG_ERROR, "core %u cannot ask the governor: %s", s->index, err.message);
        return;
    }
    if (action == NODEDB_MEM_SPILL_RESTORE) restore_some(s, bytes);
    else if (action != NODEDB_MEM_SPILL_NONE && has_retired(s)) (void)retire_some(s, RETIRE_BATCH);
    else if (action != NODEDB_MEM_SPILL_NONE) (void)spill_some(s, bytes < CHUNK_BYTES * 16 ? bytes : CHUNK_BYTES * 16);
}
