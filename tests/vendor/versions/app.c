/* Two versions of the log's header in one program. This file includes neither. */
#include <stdio.h>
#include <string.h>

int this_works(const char *dir);
int that_works(const char *dir);
const char *this_version(void);
const char *that_version(void);

int main(int argc, char **argv) {
    char other[1024];
    if (argc != 2 || strcmp(this_version(), that_version()) == 0) return 2;
    (void)snprintf(other, sizeof other, "%s-of-the-other", argv[1]);
    printf("%s and %s\n", this_version(), that_version());
    return this_works(argv[1]) | that_works(other);
}
