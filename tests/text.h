/* A source file as text, for the tests that read the headers. */
#ifndef NODEDB_TESTS_TEXT_H
#define NODEDB_TESTS_TEXT_H

#include <stdio.h>
#include <stdlib.h>

/* The whole file with a zero behind it, or NULL. The caller frees it. */
static inline char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text;
    long bytes;
    if (file == NULL) return NULL;
    (void)fseek(file, 0, SEEK_END);
    bytes = ftell(file);
    rewind(file);
    text = (char *)malloc((size_t)bytes + 1);
    if (fread(text, 1, (size_t)bytes, file) != (size_t)bytes) bytes = 0;
    text[bytes] = 0;
    fclose(file);
    return text;
}

#endif
