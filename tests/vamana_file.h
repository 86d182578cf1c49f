/* What tests must know of a file of nodedb_vamana.h, which is included before this. */
#ifndef NODEDB_TEST_VAMANA_FILE_H
#define NODEDB_TEST_VAMANA_FILE_H

/* Where a section begins in a saved file: states, ids, norms, rows, pruned, means, codes, records, table, checksums,
 * their copy, the header's copy, the end. */
enum { STATES, IDS, NORMS, ROWS, PRUNED, MEANS, CODES, RECORDS, TABLE, SUMS, SUMS_AGAIN, HEADER_AGAIN, END };
static inline size_t section(const uint8_t *file, int which) { return (size_t)nodedb__get_u64(file + 64 + 8 * which); }

/* Makes all checksums of a file right again, so that only the checks of its meaning are left; `sums`, `end`: where the
 * checksums begin and the file ends. */
static inline void mend_checksums(uint8_t *file, size_t sums, size_t end) {
    size_t blocks = sums / 4096 - 1, groups = (blocks + 1022) / 1023, group, i;
    for (group = 0; group < groups; group++) {
        uint8_t *block = file + sums + group * 4096;
        for (i = group * 1023; i < blocks && i < group * 1023 + 1023; i++)
            nodedb__put_u32(block + 4 * (i - group * 1023), nodedb__crc32c(0, file + (i + 1) * 4096, 4096));
        nodedb__put_u32(block + 4092, nodedb__crc32c((uint32_t)group + 1, block, 4092));
        memcpy(block + groups * 4096, block, 4096);
    }
    nodedb__put_u32(file + 4092, nodedb__crc32c(0, file, 4092));
    memcpy(file + end - 4096, file, 4096);
}

#endif
