/* options.c - the command line, and the logger. */
#include "db.h"

#include <sched.h>

/* To stderr. Two cores would report the same about their logs, so each reason is printed once. */
void say(void *ctx, nodedb_log_level level, const char *sentence) {
    server *srv = ctx;
    const char *reason = strstr(sentence, ": ");
    uint64_t hash = nodedb_mix64(nodedb_crc32c(0, reason != NULL ? reason : sentence,
                                               strlen(reason != NULL ? reason : sentence)));
    uint32_t i;
    (void)pthread_mutex_lock(&srv->said_lock);
    for (i = 0; i < srv->said_count && srv->said[i] != hash; i++) {}
    if (level == NODEDB_LOG_ERROR || i == srv->said_count) {
        fprintf(stderr, "nodedb: %s%s\n",
                level == NODEDB_LOG_INFO      ? ""
                : level == NODEDB_LOG_WARNING ? "warning: "
                                              : "error: ",
                sentence);
        if (i == srv->said_count && level != NODEDB_LOG_INFO && i < sizeof srv->said / sizeof *srv->said)
            srv->said[srv->said_count++] = hash;
    }
    (void)pthread_mutex_unlock(&srv->said_lock);
}

static const char usage[] =
    "usage: nodedb [options]\n"
    "  --dir DIR          data directory, made if missing (nodedb-data)\n"
    "  --port PORT        TCP port, 0 for any free one (6399)\n"
    "  --bind ADDRESS     IPv4 address to listen on (127.0.0.1); others need a password\n"
    "  --requirepass PASSWORD  clients must say it with AUTH\n"
    "  --protected-mode no     allow another --bind without a password\n"
    "  --cores N          pinned cores, each with its shard (all CPUs, at most 64); may differ from the last start\n"
    "  --memory BYTES     ceiling for keys, values, vectors and clients, with K, M or G (three quarters of what the\n"
    "                     system allows); cold values move to an overflow file near it, writes beyond it are refused.\n"
    "                     Beside it the process takes 8 MiB, and 8 MiB for each core\n"
    "  --durability MODE  always: a write is answered when it is on the disk (default)\n"
    "                     interval: at once, and it is on the disk 100 ms later at most\n"
    "  --log-limit BYTES  a checkpoint is made when a core's log is larger, and four times its data (1G)\n"
    "  --timeout SECONDS  clients that say nothing for so long are disconnected (0: never)\n"
    "  --force-empty      start although data are missing, without them\n"
    "  --enable-debug-command  allow DEBUG PANIC, for tests of fault isolation\n"
    "  --help             this text\n"
    "Talk to it with redis-cli -p 6399. SIGINT, SIGTERM and SIGHUP stop it in order.\n";

static bool parse_size(const char *text, uint64_t *bytes) {
    char *end;
    unsigned long long n;
    int shift;
    errno = 0;
    n = strtoull(text, &end, 10);
    shift = *end == 0 ? 0 : (*end | 32) == 'k' ? 10 : (*end | 32) == 'm' ? 20 : (*end | 32) == 'g' ? 30 : -1;
    if (errno != 0 || end == text || text[0] == '-' || shift < 0 || (*end != 0 && end[1] != 0) ||
        n > (UINT64_MAX >> shift) || n << shift > SIZE_MAX)
        return false;
    *bytes = (uint64_t)n << shift;
    return true;
}

static bool parse_whole(const char *text, long min, long max, long *value) {
    char *end;
    errno = 0;
    *value = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == 0 && *value >= min && *value <= max;
}

static bool copy_text(char *to, size_t room, const char *text) {
    size_t bytes = strlen(text);
    if (bytes == 0 || bytes >= room) return false;
    memcpy(to, text, bytes + 1);
    return true;
}

/* One option with a value. False: the option is unknown, or its value is wrong. */
static bool take_option(server *srv, const char *option, const char *value) {
    uint64_t bytes;
    long n;
    if (value == NULL) return false;
    if (strcmp(option, "--dir") == 0) return copy_text(srv->dir, sizeof srv->dir - 128, value);
    if (strcmp(option, "--bind") == 0) return copy_text(srv->bind, sizeof srv->bind, value);
    if (strcmp(option, "--requirepass") == 0) return copy_text(srv->password, sizeof srv->password, value);
    if (strcmp(option, "--protected-mode") == 0) {
        srv->unprotected = strcmp(value, "no") == 0;
        return srv->unprotected || strcmp(value, "yes") == 0;
    }
    if (strcmp(option, "--port") == 0 && parse_whole(value, 0, 65535, &n)) return srv->port = (int)n, true;
    if (strcmp(option, "--cores") == 0 && parse_whole(value, 1, MAX_CORES, &n)) return srv->cores = (uint32_t)n, true;
    if (strcmp(option, "--timeout") == 0 && parse_whole(value, 0, INT_MAX, &n))
        return srv->timeout_s = (uint32_t)n, true;
    if (strcmp(option, "--memory") == 0 && parse_size(value, &bytes) && (bytes == 0 || bytes >= 1 << 20))
        return srv->memory_bytes = (size_t)bytes, true;
    if (strcmp(option, "--log-limit") == 0 && parse_size(value, &bytes) && bytes >= 1 << 20)
        return srv->log_limit_bytes = bytes, true;
    if (strcmp(option, "--durability") == 0) {
        srv->durable_always = strcmp(value, "always") == 0;
        return srv->durable_always || strcmp(value, "interval") == 0;
    }
    return false;
}

int parse_options(server *srv, int argc, char **argv) {
    int i;
    (void)snprintf(srv->dir, sizeof srv->dir, "nodedb-data");
    (void)snprintf(srv->bind, sizeof srv->bind, "127.0.0.1");
    srv->port = 6399;
    srv->durable_always = true;
    srv->log_limit_bytes = LOG_LIMIT_BYTES;
    for (i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(option, "--help") == 0) {
            fputs(usage, stdout);
            return 1;
        }
        if (strcmp(option, "--enable-debug-command") == 0) srv->debug = true;
        else if (strcmp(option, "--force-empty") == 0) srv->force_empty = true;
        else if (take_option(srv, option, value)) i++;
        else {
            fprintf(stderr, "nodedb: wrong option %s%s%s (try --help)\n", option, value != NULL ? " " : "",
                    value != NULL ? value : "");
            return 3;
        }
    }
    if (srv->cores == 0) {
        cpu_set_t set;
        int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
        srv->cores = cpus > MAX_CORES ? MAX_CORES : (uint32_t)cpus;
    }
    return 0;
}
