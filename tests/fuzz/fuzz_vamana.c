/* libFuzzer target: the reader of nodedb_vamana.h's files. The input is a file; its checksums are made right first, so
 * that the fuzzer meets the checks behind them (the first byte of the input turns that off). What opens must also
 * search, give its vectors back, change, and be written again. Compiled with MAKE_SEEDS it is a program that writes
 * the files to begin with, of the version that the header has now, into the folder that it is given. */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "vamana_file.h"

/* Makes the checksums right where the header leads to them. */
static void mend(memory_file *f) {
    size_t end = f->size / 4096 * 4096, sums, groups;
    if (f->size < 3 * 4096) return;
    sums = section(f->bytes, SUMS), groups = (sums / 4096 - 1 + 1022) / 1023;
    if (sums < 8192 || sums % 4096 != 0 || sums >= end || 2 * groups > (end - sums) / 4096) return;
    repair_checksums(f->bytes, sums, end);
}

static void use(nodedb_vamana *index, bool on_disk) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint32_t dim = nodedb_vamana_dim(index), found, i;
    float *vector = (float *)calloc(dim, sizeof *vector);
    nodedb_vamana_result results[5];
    uint64_t cursor = 0, id = 0;
    nodedb_vamana_query q;
    memset(&q, 0, sizeof q);
    q.vector = vector, q.k = 5, q.beam = 8;
    if (s == NULL || vector == NULL) abort();
    if (nodedb_vamana_search(s, &q, results, &found, NULL, NULL) == NODEDB_OK)
        for (i = 0; i < found; i++)
            if (results[i].distance != results[i].distance ||
                (!on_disk && !nodedb_vamana_contains(index, results[i].id))) /* on disk the table may lie */
                abort();
    while (nodedb_vamana_next(index, &cursor, &id)) (void)nodedb_vamana_get(index, id, vector, NULL);
    memset(vector, 0, dim * sizeof *vector);
    if (!on_disk) {
        if (nodedb_vamana_insert(index, id, vector, NULL) != NODEDB_OK) abort();
        if (nodedb_vamana_remove(index, id, NULL) != NODEDB_OK) abort();
        while (nodedb_vamana_maintain(index, 100)) {
        }
    }
    nodedb_vamana_searcher_destroy(s);
    free(vector);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    nodedb_vamana_open_config o;
    memory_file f;
    int mode;
    if (size < 1 || size > (1u << 22)) return 0;
    f.size = size - 1, f.reads = 0;
    f.bytes = (uint8_t *)malloc(f.size + 1);
    if (f.bytes == NULL) return 0;
    memcpy(f.bytes, data + 1, f.size);
    if (data[0] != 0xFF) mend(&f);
    memset(&o, 0, sizeof o);
    memory_io(&o.io, &f);
    for (mode = 0; mode < 3; mode++) { /* in memory; on disk; on disk, all of it loaded first */
        nodedb_vamana *index;
        nodedb_error err;
        bool more;
        o.mode = mode == 0 ? NODEDB_VAMANA_IN_MEMORY : NODEDB_VAMANA_ON_DISK;
        index = nodedb_vamana_open("fuzz", &o, &err);
        if (index == NULL) {
            if (err.status == NODEDB_OK || err.message[0] == 0) abort();
            continue;
        }
        if (mode == 2 && nodedb_vamana_load(index, UINT64_MAX, &more, NULL) != NODEDB_OK) abort();
        use(index, mode > 0);
        nodedb_vamana_destroy(index);
    }
    (void)nodedb_vamana_verify("fuzz", &o, NULL, NULL, NULL);
    free(f.bytes);
    return 0;
}

#if defined(MAKE_SEEDS)
/* One small index of every type, metric and code, some with removed vectors in it. */
static void make_seed(const char *folder, int number) {
    enum { N = 40, DIM = 5 };
    nodedb_vamana_config c;
    nodedb_vamana *index;
    char path[512];
    uint8_t input[1 << 17];
    bool more = true;
    FILE *file;
    size_t size;
    uint32_t i, j;
    memset(&c, 0, sizeof c);
    c.dim = DIM, c.degree = 4 + 4 * (uint32_t)(number % 2), c.beam_build = 16;
    c.type = (nodedb_vamana_type)(number % 3), c.metric = (nodedb_vamana_metric)(number / 3 % 3);
    c.code = number / 9 % 2 == 0 ? NODEDB_VAMANA_CODE_4BIT : NODEDB_VAMANA_CODE_NONE;
    index = nodedb_vamana_create(&c, NULL);
    if (index == NULL) abort();
    for (i = 0; i < N; i++) {
        float floats[DIM];
        uint8_t bytes[DIM];
        for (j = 0; j < DIM; j++) bytes[j] = (uint8_t)(1 + i * (7 + j) % 100), floats[j] = (float)bytes[j];
        if (nodedb_vamana_insert(index, 1000 + i, c.type == NODEDB_VAMANA_F32 ? (void *)floats : bytes, NULL) !=
            NODEDB_OK)
            abort();
    }
    index->code_due = 0; /* not only when there are thousands */
    while (nodedb_vamana_maintain(index, 100)) {
    }
    for (i = 0; i < (number % 2 == 0 ? 3u : 0u); i++) (void)nodedb_vamana_remove(index, 1000 + 5 * i, NULL);
    (void)snprintf(path, sizeof path, "%s/%d.ndbv", folder, number);
    if (nodedb_vamana_save_begin(index, path, number / 2 % 2 == 0 ? NODEDB_VAMANA_RESIDENT : NODEDB_VAMANA_PACKED,
                                 NULL) != NODEDB_OK)
        abort();
    while (more)
        if (nodedb_vamana_save_step(index, 7, &more, NULL) != NODEDB_OK) abort();
    nodedb_vamana_destroy(index);
    file = fopen(path, "rb");
    if (file == NULL) abort();
    input[0] = 0, size = 1 + fread(input + 1, 1, sizeof input - 1, file);
    fclose(file), (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/%d", folder, number);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(input, 1, size, file) != size || fclose(file) != 0) abort();
    (void)LLVMFuzzerTestOneInput(input, size);
}

int main(int argc, char **argv) {
    int number;
    if (argc != 2) return 2;
    for (number = 0; number < 18; number++) make_seed(argv[1], number);
    return 0;
}
#endif
