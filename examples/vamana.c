/* Nearest neighbours with nodedb_vamana.h: colours by their red, green and blue. It inserts them, asks with a filter
 * and by an id, removes one, saves the index, and asks the same questions of the file, which stays on disk.
 *
 *   cc -std=c99 -O2 -I. -o example_vamana examples/vamana.c -luring -lpthread -lm && ./example_vamana
 */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct colour { const char *name; uint8_t rgb[3]; } colour;

static const colour colours[] = { /* the id of a colour is its place here */
    {"black", {0, 0, 0}},        {"white", {255, 255, 255}}, {"red", {255, 0, 0}},       {"lime", {0, 255, 0}},
    {"blue", {0, 0, 255}},       {"yellow", {255, 255, 0}},  {"cyan", {0, 255, 255}},    {"magenta", {255, 0, 255}},
    {"silver", {192, 192, 192}}, {"gray", {128, 128, 128}},  {"maroon", {128, 0, 0}},    {"olive", {128, 128, 0}},
    {"green", {0, 128, 0}},      {"purple", {128, 0, 128}},  {"teal", {0, 128, 128}},    {"navy", {0, 0, 128}},
    {"orange", {255, 165, 0}},   {"pink", {255, 192, 203}},  {"brown", {165, 42, 42}},   {"gold", {255, 215, 0}},
    {"coral", {255, 127, 80}},   {"salmon", {250, 128, 114}}, {"khaki", {240, 230, 140}}, {"indigo", {75, 0, 130}}};
enum { COLOURS = sizeof colours / sizeof colours[0], ORANGE = 16, GOLD = 19, NEAREST = 3 };

/* Leaves the program with the reason, unless all is well. */
static void check(nodedb_status status, const nodedb_error *err) {
    if (status == NODEDB_OK) return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

static bool is_named_with_o(void *ctx, uint64_t id) {
    (void)ctx;
    return strchr(colours[id].name, 'o') != NULL;
}

/* Prints the nearest. A program keeps one searcher for each of its threads, and asks with it again and again. */
static void ask(nodedb_vamana_searcher *searcher, const char *title, nodedb_vamana_query query) {
    nodedb_vamana_result results[NEAREST];
    nodedb_error err;
    uint32_t found;
    query.k = NEAREST;
    check(nodedb_vamana_search(searcher, &query, results, &found, NULL, &err), &err);
    printf("%s:", title);
    for (uint32_t i = 0; i < found; i++) printf(" %s (%.0f)", colours[results[i].id].name, (double)results[i].distance);
    printf("\n");
}

static nodedb_vamana_searcher *searcher_of(const nodedb_vamana *index) {
    nodedb_error err;
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, &err);
    if (searcher == NULL) check(err.status, &err);
    return searcher;
}

int main(void) {
    const uint8_t sunset[3] = {250, 150, 20}, dusk[3] = {10, 10, 140};
    const nodedb_vamana_query near_sunset = {.vector = sunset}, like_gold = {.by_id = true, .id = GOLD};
    const nodedb_vamana_query near_dusk_with_o = {.vector = dusk, .filter = is_named_with_o};
    nodedb_vamana_config config = {.dim = 3, .type = NODEDB_VAMANA_U8, .metric = NODEDB_VAMANA_L2};
    nodedb_vamana_open_config on_disk = {.mode = NODEDB_VAMANA_ON_DISK};
    const char *path = "example_vamana.index";
    nodedb_error err;
    bool more = true;

    nodedb_vamana *index = nodedb_vamana_create(&config, &err);
    if (index == NULL) check(err.status, &err);
    for (uint64_t id = 0; id < COLOURS; id++) check(nodedb_vamana_insert(index, id, colours[id].rgb, &err), &err);
    printf("%u colours\n", (unsigned)nodedb_vamana_count(index));
    nodedb_vamana_searcher *searcher = searcher_of(index);
    ask(searcher, "near a sunset", near_sunset);
    ask(searcher, "near dusk, with an o", near_dusk_with_o);
    check(nodedb_vamana_remove(index, ORANGE, &err), &err); /* the searcher stays valid */
    ask(searcher, "near a sunset, without orange", near_sunset);
    ask(searcher, "like gold", like_gold); /* itself first */
    check(nodedb_vamana_save(index, path, NODEDB_VAMANA_PACKED, &err), &err);
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);

    index = nodedb_vamana_open(path, &on_disk, &err); /* reads its header, and nothing else */
    if (index == NULL) check(err.status, &err);
    while (more) check(nodedb_vamana_load(index, 1 << 20, &more, &err), &err); /* so that no search waits for it */
    searcher = searcher_of(index);
    ask(searcher, "on disk, like gold", like_gold);
    ask(searcher, "on disk, near dusk, with an o", near_dusk_with_o);
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
    return remove(path) == 0 ? 0 : 1;
}
