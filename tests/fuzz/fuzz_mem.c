/* libFuzzer target: the reader of nodedb_mem.h's kept overflow files. The input is a file without the unused parts: the
 * used bytes of the two headers, TABLE_SLOTS entries of the table, and data. It is laid out, and its checksums are made
 * right, so that the fuzzer meets the checks behind them (the first byte of the input turns that off). In what opens
 * every object must lie apart from all others and be readable or refused; it must go on as a region, and be opened
 * again with nothing lost. Compiled with MAKE_SEEDS it is a program that writes the first inputs into the folder that
 * it is given. */
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"

#define TABLE_SLOTS 64u
#define HEADERS_BYTES (2 * NODEDB_MEM__HEADER_USED_BYTES)
#define FIXED_BYTES (1 + HEADERS_BYTES + TABLE_SLOTS * NODEDB_MEM__ENTRY_BYTES)
#define MAX_DATA_BYTES 65536u

static void die(const char *what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

static const char *folder(void) {
    static char path[64];
    if (path[0] == 0) {
        (void)snprintf(path, sizeof path, "build/fuzz/files-%ld", (long)getpid());
        (void)mkdir("build", 0700), (void)mkdir("build/fuzz", 0700);
        if (mkdir(path, 0700) != 0 && errno != EEXIST) die("no folder");
    }
    return path;
}

static const char *file_path(void) {
    static char path[96];
    (void)snprintf(path, sizeof path, "%s/kept", folder());
    return path;
}

#if defined(MAKE_SEEDS)
int main(int argc, char **argv) {
    int seed, i;
    if (argc < 2) die("fuzz_mem FOLDER");
    for (seed = 0; seed < 3; seed++) {
        nodedb_mem_overflow_config config;
        nodedb_mem_overflow *region;
        nodedb_mem_handle handles[20];
        static unsigned char bytes[FIXED_BYTES + 8192], object[300];
        char path[4096];
        FILE *f;
        int fd;
        (void)unlink(file_path());
        memset(&config, 0, sizeof config);
        config.dir = folder(), config.name = "kept", config.max_bytes = MAX_DATA_BYTES;
        config.max_blocks = TABLE_SLOTS - 2;
        region = nodedb_mem_overflow_open(&config, NULL);
        if (region == NULL) die("no region");
        for (i = 0; i < 20; i++)
            if (nodedb_mem_overflow_write(region, object, (size_t)(i * 15), &handles[i], NULL) != NODEDB_OK)
                die("write");
        for (i = seed; i < 20 && seed > 0; i += 1 + seed) (void)nodedb_mem_overflow_free(region, handles[i], NULL);
        nodedb_mem_overflow_close(region);
        fd = open(file_path(), O_RDONLY);
        if (fd < 0 || pread(fd, bytes + 1, 48, 0) < 0 || pread(fd, bytes + 49, 48, 4096) < 0 ||
            pread(fd, bytes + 1 + HEADERS_BYTES, TABLE_SLOTS * 32, 8192) < 0 ||
            pread(fd, bytes + FIXED_BYTES, 8192, (off_t)nodedb_mem__data_offset(TABLE_SLOTS)) < 0) die("read");
        (void)close(fd);
        (void)snprintf(path, sizeof path, "%s/%d", argv[1], seed);
        f = fopen(path, "wb");
        if (f == NULL || fwrite(bytes, sizeof bytes, 1, f) != 1 || fclose(f) != 0) die(path);
    }
    return 0;
}
#else

static nodedb_mem_overflow *open_it(void) {
    nodedb_mem_overflow_config config;
    memset(&config, 0, sizeof config);
    config.dir = folder(), config.name = "kept";
    config.initial_bytes = 4096, config.max_bytes = MAX_DATA_BYTES;
    return nodedb_mem_overflow_open(&config, NULL);
}

/* Lays the input out as a file; false if its header asks for more than a fuzzer has time for. */
static bool lay_out(const uint8_t *data, size_t size) {
    static unsigned char file[2 * NODEDB_MEM__HEADER_BYTES + TABLE_SLOTS * NODEDB_MEM__ENTRY_BYTES];
    const uint8_t *at = data + 1, *bytes = data + FIXED_BYTES;
    uint32_t slots = 0, i;
    int copy, fd;
    memset(file, 0, sizeof file);
    for (copy = 0; copy < 2; copy++, at += NODEDB_MEM__HEADER_USED_BYTES) {
        unsigned char *header = file + copy * NODEDB_MEM__HEADER_BYTES;
        memcpy(header, at, NODEDB_MEM__HEADER_USED_BYTES);
        if (data[0] != 0xFF) {
            nodedb_put_u64(header + 24, nodedb_mem__data_offset(nodedb_get_u32(header + 16)));
            nodedb_put_u32(header + 32, nodedb_crc32c(0, header, 32));
            nodedb_put_u32(header + 44, nodedb_crc32c(0, header + 40, 4));
        }
        if (nodedb_get_u32(header + 16) > slots) slots = nodedb_get_u32(header + 16);
    }
    if (slots > 3 * NODEDB_MEM__SLAB_SLOTS) return false;
    memcpy(file + 8192, at, TABLE_SLOTS * NODEDB_MEM__ENTRY_BYTES);
    for (i = 0; i < TABLE_SLOTS && data[0] != 0xFF; i++) {
        unsigned char *entry = file + 8192 + i * NODEDB_MEM__ENTRY_BYTES;
        nodedb_put_u32(entry, nodedb_crc32c(i, entry + 4, 28));
    }
    fd = open(file_path(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || pwrite(fd, file, sizeof file, 0) != (ssize_t)sizeof file ||
        pwrite(fd, bytes, size - FIXED_BYTES, (off_t)nodedb_mem__data_offset(slots < 4 ? 4 : slots)) < 0) die("file");
    (void)close(fd);
    return true;
}

/* Every object lies apart from the others; their number. */
static size_t look(nodedb_mem_overflow *region) {
    static unsigned char taken[MAX_DATA_BYTES / 16];
    static const unsigned char *base;
    nodedb_mem_handle handle = {0};
    size_t objects = 0, bytes, i;
    volatile unsigned char seen = 0;
    memset(taken, 0, sizeof taken);
    base = (const unsigned char *)region->base;
    while (nodedb_mem_overflow_next(region, &handle, NULL) == NODEDB_OK) {
        const nodedb_mem__slot *s = nodedb_mem__slot_of(region, (uint32_t)(handle.bits >> 38));
        const unsigned char *at = (const unsigned char *)nodedb_mem_overflow_read(region, handle, &bytes, NULL);
        for (i = 0; i < s->size; i++)
            if (s->at + i >= sizeof taken || taken[s->at + i]++ != 0) die("two objects in one place");
        if (at != NULL && (at < base || at + bytes > base + MAX_DATA_BYTES)) die("an object outside of the data");
        for (i = 0; at != NULL && i < bytes; i++) seen = at[i];
        objects++;
    }
    (void)seen;
    return objects;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char object[500] = {0};
    nodedb_mem_overflow *region;
    nodedb_mem_overflow_stats stats;
    nodedb_mem_handle handle, next = {0};
    size_t objects, i;
    if (size < FIXED_BYTES || size > FIXED_BYTES + MAX_DATA_BYTES || !lay_out(data, size)) return 0;
    region = open_it();
    if (region == NULL) return 0;
    (void)look(region);
    for (i = 0; i < 10; i++) (void)nodedb_mem_overflow_write(region, object, i * 50, &handle, NULL);
    for (i = 0; i < 5 && nodedb_mem_overflow_next(region, &next, NULL) == NODEDB_OK; i++)
        if (nodedb_mem_overflow_free(region, next, NULL) != NODEDB_OK) die("an object cannot be freed");
    if (nodedb_mem_overflow_next(region, &next, NULL) == NODEDB_OK &&
        nodedb_mem_overflow_update(region, next, object, 300, NULL) != NODEDB_OK &&
        nodedb_mem_overflow_get_stats(region, &stats, NULL) == NODEDB_OK && stats.largest_hole_bytes >= 304 &&
        stats.objects + stats.holes + 1 < TABLE_SLOTS) die("an object cannot be updated");
    if (nodedb_mem_overflow_compact(region, 0, NULL, NULL, NULL, NULL) != NODEDB_OK) die("compaction");
    (void)nodedb_mem_overflow_trim(region, NULL, NULL);
    objects = look(region);
    nodedb_mem_overflow_close(region);
    region = open_it();
    if (region == NULL) die("it does not open again");
    (void)nodedb_mem_overflow_get_stats(region, &stats, NULL);
    if (stats.lost != 0 || stats.reopened != objects || look(region) != objects) die("it is another one now");
    for (next.bits = 0; nodedb_mem_overflow_next(region, &next, NULL) == NODEDB_OK; next.bits = 0)
        if (nodedb_mem_overflow_free(region, next, NULL) != NODEDB_OK) die("an object cannot be freed");
    (void)nodedb_mem_overflow_get_stats(region, &stats, NULL);
    if (stats.holes != 1 || stats.largest_hole_bytes != stats.capacity_bytes) die("the row has a gap");
    nodedb_mem_overflow_close(region);
    return 0;
}
#endif
