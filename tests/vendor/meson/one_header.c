/* Takes the one header that the build names, and implements it. */
#include HEADER
#include "use.h"

int main(int argc, char **argv) { return argc == 2 ? use_all(argv[1]) : 2; }
