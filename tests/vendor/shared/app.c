#include "store.h"
#include "use.h"

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    if (store_nearest(100, 41.7f) != 42) return use_failed("the nearest point", NULL);
    return use_all(argv[1]);
}
