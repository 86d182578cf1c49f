/* The manuals' code is real: every block of code in the manual of a header, and every C block of README.md, compiles
 * without a warning as C99 and as C++11, runs in an empty directory, and ends with status 0.
 *
 * In a manual, a block of code is an empty line followed by lines that are indented by 8 spaces or more. A block with a
 * main() is a whole program. Any other block is tried within the program of the manual's first block, the quick start:
 * in front of main() if it defines something, else inside main(), where the quick start says `// here`. */
#include "test.h"
#include "text.h"
#include <limits.h>

#if defined(NODEDB_NO_LIBURING)
#define URING_FLAG "-DNODEDB_NO_LIBURING"
#else
#define URING_FLAG "-luring"
#endif
#if defined(NODEDB_NO_JEMALLOC)
#define JEMALLOC_FLAG "-DNODEDB_NO_JEMALLOC"
#else
#define JEMALLOC_FLAG "-ljemalloc"
#endif
#define FLAGS "-Wall -Wextra -pedantic -Werror"
#define LIBRARIES URING_FLAG " " JEMALLOC_FLAG " -lpthread -lm"

enum { INDENT = 8, BLOCK_BYTES = 16384, BLOCKS = 16 };

static const char *const headers[] = {"nodedb_wal.h", "nodedb_mem.h", "nodedb_tpc.h", "nodedb_vamana.h",
                                      "nodedb_prefetch.h"};

typedef struct code {
    char blocks[BLOCKS][BLOCK_BYTES];
    int count;
} code;

static bool is_empty(const char *line) { return line[strspn(line, " ")] == 0; }
static bool is_code(const char *line) { return strspn(line, " ") >= INDENT && !is_empty(line); }

static void append_line(char *block, const char *line) {
    size_t used = strlen(block);
    if (used + strlen(line) + 2 > BLOCK_BYTES) test_fail(__FILE__, __LINE__, "a block of code is too long");
    else snprintf(block + used, BLOCK_BYTES - used, "%s\n", line);
}

static char *next_line(char **text) {
    char *line = *text, *end;
    if (line == NULL) return NULL;
    end = strchr(line, '\n');
    *text = end == NULL ? NULL : end + 1;
    if (end != NULL) *end = 0;
    return line;
}

/* The blocks of the manual, the comment that `text` begins with. Cuts `text` into lines. */
static void find_in_manual(char *text, code *found) {
    char *line, *end = strstr(text, "*/");
    bool after_empty = false, inside = false;
    int empty_lines = 0; /* within a block: they belong to it only if more code follows */
    if (end != NULL) *end = 0;
    found->count = 0;
    while ((line = next_line(&text)) != NULL) {
        if (is_code(line) && (inside || after_empty) && found->count < BLOCKS) {
            if (!inside) found->blocks[found->count++][0] = 0;
            for (; empty_lines > 0 && inside; empty_lines--) append_line(found->blocks[found->count - 1], "");
            append_line(found->blocks[found->count - 1], line + INDENT);
            inside = true;
        } else if (is_empty(line)) {
            empty_lines++;
        } else {
            inside = false;
        }
        after_empty = is_empty(line);
        if (!after_empty) empty_lines = 0;
    }
}

/* The fenced C blocks of README.md. */
static void find_in_readme(char *text, code *found) {
    char *line;
    bool inside = false;
    found->count = 0;
    while ((line = next_line(&text)) != NULL) {
        if (inside && strcmp(line, "```") == 0) inside = false;
        else if (inside) append_line(found->blocks[found->count - 1], line);
        else if (strcmp(line, "```c") == 0 && found->count < BLOCKS)
            inside = true, found->blocks[found->count++][0] = 0;
    }
}

/* The program that tries `block`: itself, or the quick start with it inside. */
static void program_of(const char *quick_start, const char *block, char *program, size_t bytes) {
    const char *at;
    bool defines = strncmp(block, "static ", 7) == 0 || strncmp(block, "typedef ", 8) == 0 || block[0] == '#' ||
                   strncmp(block, "struct ", 7) == 0;
    if (strstr(block, "int main(") != NULL) {
        snprintf(program, bytes, "%s", block);
        return;
    }
    at = strstr(quick_start, defines ? "int main(" : "    // here");
    REQUIRE(at != NULL);
    snprintf(program, bytes, "%.*s%s\n%s", (int)(at - quick_start), quick_start, block, at);
}

static bool have(const char *command) {
    char line[200];
    snprintf(line, sizeof line, "command -v %s >/dev/null 2>&1", command);
    return system(line) == 0;
}

/* Compiles and runs the program. What goes wrong is a failure of the test, with the compiler's words on stderr. */
static void try_program(const char *where, int number, const char *program, const char *compiler,
                        const char *standard) {
    char root[PATH_MAX], source[PATH_MAX], command[3 * PATH_MAX], what[300];
    const char *dir = test_dir();
    FILE *file;
    snprintf(source, sizeof source, "%s/block.%s", dir, strstr(standard, "++") != NULL ? "cpp" : "c");
    file = fopen(source, "w");
    REQUIRE(file != NULL && getcwd(root, sizeof root) != NULL);
    fputs(program, file);
    fclose(file);
    snprintf(command, sizeof command, "%s %s " FLAGS " -I'%s' -o '%s/block' '%s' " LIBRARIES " >&2", compiler,
             standard, root, dir, source);
    snprintf(what, sizeof what, "block %d of %s does not compile by %s %s", number, where, compiler, standard);
    if (system(command) != 0) {
        test_fail(__FILE__, __LINE__, what);
        return;
    }
    snprintf(command, sizeof command,
             "cd '%s' && mkdir run && (cd run && timeout 60 ../block >../out 2>&1); status=$?; rm -rf run; "
             "[ $status = 0 ] || cat out >&2; exit $status",
             dir);
    snprintf(what, sizeof what, "block %d of %s, by %s %s, does not end with status 0", number, where, compiler,
             standard);
    if (system(command) != 0) test_fail(__FILE__, __LINE__, what);
}

static void try_all(const char *where, const code *found) {
    static char program[2 * BLOCK_BYTES];
    const char *c = getenv("CC") != NULL ? getenv("CC") : "gcc", *cxx = getenv("CXX") != NULL ? getenv("CXX") : "g++";
    bool plus_plus = have(cxx);
    if (!plus_plus) fprintf(stderr, "there is no %s: the blocks of %s are tried as C99 alone\n", cxx, where);
    for (int i = 0; i < found->count; i++) {
        program_of(found->blocks[0], found->blocks[i], program, sizeof program);
        try_program(where, i + 1, program, c, "-std=c99");
        if (plus_plus) try_program(where, i + 1, program, cxx, "-std=c++11");
    }
}

static void try_manual(const char *header) {
    static code found;
    char *text = read_text(header);
    REQUIRE(text != NULL);
    find_in_manual(text, &found);
    CHECK(found.count >= 1);
    if (found.count > 0) CHECK_HAS(found.blocks[0], "int main(");
    try_all(header, &found);
    free(text);
}

TEST(a_block_of_code_is_an_empty_line_and_lines_indented_by_eight) {
    static code found;
    char text[] = "/* x\n   text\n        not code, it hangs\n\n        int a;\n\n            a = 1;\n\n"
                  "   text\n\n        b();\n*/\n"
                  "\n        no code behind the manual\n";
    find_in_manual(text, &found);
    CHECK_EQ(found.count, 2);
    CHECK(strcmp(found.blocks[0], "int a;\n\n    a = 1;\n") == 0);
    CHECK(strcmp(found.blocks[1], "b();\n") == 0);
}

TEST(code_in_the_manual_of_the_log_runs) { try_manual(headers[0]); }
TEST(code_in_the_manual_of_the_memory_governor_runs) { try_manual(headers[1]); }
TEST(code_in_the_manual_of_the_runtime_runs) { try_manual(headers[2]); }
TEST(code_in_the_manual_of_the_index_runs) { try_manual(headers[3]); }
TEST(code_in_the_manual_of_prefetch_runs) { try_manual(headers[4]); }

TEST(c_code_in_the_readme_runs) {
    static code found;
    char *text = read_text("README.md");
    REQUIRE(text != NULL);
    find_in_readme(text, &found);
    CHECK(found.count >= 1);
    try_all("README.md", &found);
    free(text);
}

TEST_MAIN("manuals")
