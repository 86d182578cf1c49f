/* What tests know about the files of nodedb_vamana.h, which is included before this. */
#ifndef NODEDB_TEST_VAMANA_FILE_H
#define NODEDB_TEST_VAMANA_FILE_H

/* The sections of a saved file, in order; SUMS are the checksums, and END is the end of the file. section() is the
 * offset at which one begins. */
enum { STATES, IDS, NORMS, ROWS, HEADS, PARENTS, MEANS, CODES, RECORDS, TABLE, SUMS, SUMS_AGAIN, HEADER_AGAIN, END };
static inline size_t section(const uint8_t *file, int which) { return (size_t)nodedb_get_u64(file + 64 + 8 * which); }

/* Repairs all checksums of a changed file, so that only the checks of its meaning are left to find the change. `sums`
 * is where the checksums begin, `end` where the file ends. */
static inline void repair_checksums(uint8_t *file, size_t sums, size_t end) {
    size_t blocks = sums / 4096 - 1, groups = (blocks + 1022) / 1023, group, i;
    for (group = 0; group < groups; group++) {
        uint8_t *block = file + sums + group * 4096;
        for (i = group * 1023; i < blocks && i < group * 1023 + 1023; i++)
            nodedb_put_u32(block + 4 * (i - group * 1023), nodedb_crc32c(0, file + (i + 1) * 4096, 4096));
        nodedb_put_u32(block + 4092, nodedb_crc32c((uint32_t)group + 1, block, 4092));
        memcpy(block + groups * 4096, block, 4096);
    }
    nodedb_put_u32(file + 4092, nodedb_crc32c(0, file, 4092));
    memcpy(file + end - 4096, file, 4096);
}

/* A read-only file in memory, of which any bytes may be changed; it counts reads. */
typedef struct memory_file { uint8_t *bytes; size_t size; uint64_t reads; } memory_file;
static inline int memory_open(void *ctx, const char *path, int flags, int mode) {
    (void)ctx, (void)path, (void)mode;
    return (flags & O_DIRECTORY) != 0 || (flags & O_ACCMODE) == O_RDONLY ? 1000 : -EROFS;
}
static inline int memory_close(void *ctx, int fd) {
    (void)ctx;
    return fd == 1000 ? 0 : -EBADF;
}
static inline int64_t memory_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    memory_file *f = (memory_file *)ctx;
    (void)fd;
    f->reads++;
    if (offset >= f->size) return 0;
    if (bytes > f->size - offset) bytes = (size_t)(f->size - offset);
    memcpy(buffer, f->bytes + offset, bytes);
    return (int64_t)bytes;
}
static inline int64_t memory_size(void *ctx, int fd) {
    (void)fd;
    return (int64_t)((memory_file *)ctx)->size;
}
static inline void memory_io(nodedb_io *io, memory_file *f) {
    io->open = memory_open, io->close = memory_close, io->pread = memory_pread, io->size = memory_size, io->ctx = f;
}

#endif
