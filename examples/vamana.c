/* Nearest neighbours with nodedb_vamana.h: colours by their red, green and blue. Build, search, change, save, open.
 *
 *   cc -std=c99 -O2 -I. -o example_vamana examples/vamana.c -luring -lpthread -lm && ./example_vamana
 */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"

typedef struct colour { const char *name; uint8_t rgb[3]; } colour;

static const colour colours[] = {
    {"black", {0, 0, 0}},       {"white", {255, 255, 255}}, {"red", {255, 0, 0}},      {"lime", {0, 255, 0}},
    {"blue", {0, 0, 255}},      {"yellow", {255, 255, 0}},  {"cyan", {0, 255, 255}},   {"magenta", {255, 0, 255}},
    {"silver", {192, 192, 192}}, {"gray", {128, 128, 128}},  {"maroon", {128, 0, 0}},   {"olive", {128, 128, 0}},
    {"green", {0, 128, 0}},     {"purple", {128, 0, 128}},  {"teal", {0, 128, 128}},   {"navy", {0, 0, 128}},
    {"orange", {255, 165, 0}},  {"pink", {255, 192, 203}},  {"brown", {165, 42, 42}},  {"gold", {255, 215, 0}},
    {"coral", {255, 127, 80}},  {"salmon", {250, 128, 114}}, {"khaki", {240, 230, 140}}, {"indigo", {75, 0, 130}}};
enum { COLOURS = sizeof colours / sizeof colours[0] };

static int fail(const nodedb_error *err) {
    fprintf(stderr, "%s\n", err->message);
    return 1;
}

static bool is_named_with_o(void *ctx, uint64_t id) {
    (void)ctx;
    return strchr(colours[id].name, 'o') != NULL;
}

/* Prints the three nearest to a colour. */
static int ask(const nodedb_vamana *index, uint8_t r, uint8_t g, uint8_t b, bool (*filter)(void *, uint64_t)) {
    nodedb_vamana_searcher *searcher; /* one per thread; kept and used again in a real program */
    nodedb_vamana_result results[3];
    nodedb_vamana_query query;
    nodedb_error err;
    uint8_t rgb[3];
    uint32_t found, i;
    rgb[0] = r, rgb[1] = g, rgb[2] = b;
    memset(&query, 0, sizeof query);
    query.vector = rgb, query.k = 3, query.filter = filter;
    searcher = nodedb_vamana_searcher_create(index, NULL, &err);
    if (searcher == NULL || nodedb_vamana_search(searcher, &query, results, &found, NULL,
                                                 &err) != NODEDB_OK) return fail(&err);
    printf("near (%u, %u, %u):", (unsigned)r, (unsigned)g, (unsigned)b);
    for (i = 0; i < found; i++) printf(" %s (%.0f)", colours[results[i].id].name, (double)results[i].distance);
    printf("\n");
    nodedb_vamana_searcher_destroy(searcher);
    return 0;
}

int main(void) {
    const char *path = "example_vamana.index";
    nodedb_vamana_config config;
    nodedb_vamana *index;
    nodedb_error err;
    uint64_t i;
    memset(&config, 0, sizeof config);
    config.dim = 3, config.type = NODEDB_VAMANA_U8, config.metric = NODEDB_VAMANA_L2;
    index = nodedb_vamana_create(&config, &err);
    if (index == NULL) return fail(&err);
    for (i = 0; i < COLOURS; i++)
        if (nodedb_vamana_insert(index, i, colours[i].rgb, &err) != NODEDB_OK) return fail(&err);
    printf("%u colours\n", (unsigned)nodedb_vamana_count(index));
    if (ask(index, 250, 150, 20, NULL) != 0) return 1;
    if (nodedb_vamana_remove(index, 16, &err) != NODEDB_OK) return fail(&err);
    printf("without orange, ");
    if (ask(index, 250, 150, 20, NULL) != 0) return 1;
    printf("with an o in the name, ");
    if (ask(index, 10, 10, 140, is_named_with_o) != 0) return 1;

    if (nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, &err) != NODEDB_OK) return fail(&err);
    nodedb_vamana_destroy(index);
    index = nodedb_vamana_open(path, NULL, &err);
    if (index == NULL) return fail(&err);
    printf("opened again: %u colours, ", (unsigned)nodedb_vamana_count(index));
    if (ask(index, 0, 120, 10, NULL) != 0) return 1;
    nodedb_vamana_destroy(index);
    return remove(path) == 0 ? 0 : 1;
}
