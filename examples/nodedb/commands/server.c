/* server.c - commands on the connection and on the server: identity, information, saving, stopping. */
#include "../db.h"

/* The longest word from the client that an error repeats. */
static int shown_bytes(slice a) { return (int)(a.bytes < 64 ? a.bytes : 64); }

static void fail_subcommand(request *req, const char *there) {
    reply_error(&req->reply, "ERR unknown subcommand or wrong number of arguments for '%.*s'. Try %s.",
                shown_bytes(req->argv[1]), req->argv[1].p, there);
}

/* ---- the connection ---------------------------------------------------------------------------------------------- */

void run_ping(core *c, request *req) {
    (void)c;
    if (req->argc > 2) reply_wrong_count(req);
    else if (req->argc == 2) reply_bulk(&req->reply, req->argv[1].p, req->argv[1].bytes);
    else buffer_text(&req->reply, "+PONG\r\n");
}

void run_echo(core *c, request *req) {
    (void)c;
    reply_bulk(&req->reply, req->argv[1].p, req->argv[1].bytes);
}

void run_quit(core *c, request *req) {
    (void)c;
    reply_ok(&req->reply);
    req->conn->closing = true;
}

/* There is one database. After a SELECT of another, what the client sends is meant for that one, and is refused. */
void run_select(core *c, request *req) {
    int64_t n = -1;
    bool is_number = parse_int64(req->argv[1], &n);
    (void)c;
    req->conn->other_database = !is_number || n != 0;
    if (!is_number) (void)request_fail(req, not_integer);
    else if (n != 0) (void)request_fail(req, "ERR DB index is out of range");
    else reply_ok(&req->reply);
}

/* ---- identity: AUTH, HELLO, CLIENT ------------------------------------------------------------------------------- */

/* The time that it takes says nothing about how much of the password is right. */
static bool is_password(const server *srv, slice a) {
    size_t bytes = strlen(srv->password), i;
    unsigned differ = a.bytes != bytes;
    for (i = 0; i < bytes; i++) differ |= (unsigned char)srv->password[i] ^ (i < a.bytes ? (unsigned char)a.p[i] : 0u);
    return differ == 0;
}

/* The only user is "default". Without a password everybody is this user. */
static bool authenticate(core *c, request *req, slice user, slice password) {
    const server *srv = c->server;
    bool is_default = user.bytes == 7 && memcmp(user.p, "default", 7) == 0;
    if (!is_default || (srv->password[0] != 0 && !is_password(srv, password)))
        return request_fail(req, "WRONGPASS invalid username-password pair or user is disabled.");
    req->conn->authenticated = true;
    return true;
}

void run_auth(core *c, request *req) {
    static const slice the_user = {"default", 7};
    bool named = req->argc == 3;
    if (req->argc > 3) (void)request_fail(req, syntax_error);
    else if (!named && c->server->password[0] == 0)
        (void)request_fail(req, "ERR AUTH <password> called without any password configured for the default user. Are "
                                "you sure your configuration is correct?");
    else if (authenticate(c, req, named ? req->argv[1] : the_user, req->argv[req->argc - 1])) reply_ok(&req->reply);
}

static void set_name(connection *conn, slice name) {
    (void)snprintf(conn->name, sizeof conn->name, "%.*s", shown_bytes(name), name.p);
}

static void reply_hello(request *req, int version) {
    buffer *b = &req->reply;
    reply_map(b, version, 7);
    reply_bulk_text(b, "server"), reply_bulk_text(b, "nodedb");
    reply_bulk_text(b, "version"), reply_bulk_text(b, NODEDB_VERSION);
    reply_bulk_text(b, "proto"), reply_integer(b, version);
    reply_bulk_text(b, "id"), reply_integer(b, (int64_t)req->conn->id);
    reply_bulk_text(b, "mode"), reply_bulk_text(b, "standalone");
    reply_bulk_text(b, "role"), reply_bulk_text(b, "master");
    reply_bulk_text(b, "modules"), reply_array(b, 0);
}

/* HELLO [version [AUTH user password] [SETNAME name]]. An error in any part changes nothing. */
void run_hello(core *c, request *req) {
    static const char no_auth[] =
        "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> "
        "<pass> option can be used to authenticate the client and select the RESP protocol version at the same time";
    connection *conn = req->conn;
    const slice *auth = NULL, *name = NULL;
    int64_t version = conn->resp;
    int i;
    if (req->argc > 1 && !parse_int64(req->argv[1], &version)) {
        (void)request_fail(req, "ERR Protocol version is not an integer or out of range");
        return;
    }
    if (version != 2 && version != 3) {
        (void)request_fail(req, "NOPROTO unsupported protocol version");
        return;
    }
    for (i = 2; i < req->argc; i++) {
        slice a = req->argv[i];
        if (is_word(a, "SETNAME") && i + 1 < req->argc) name = &req->argv[i += 1];
        else if (is_word(a, "AUTH") && i + 2 < req->argc) auth = &req->argv[i + 1], i += 2;
        else {
            reply_error(&req->reply, "ERR Syntax error in HELLO option '%.*s'", shown_bytes(a), a.p);
            return;
        }
    }
    if (auth != NULL && !authenticate(c, req, auth[0], auth[1])) return;
    if (!conn->authenticated) {
        (void)request_fail(req, no_auth);
        return;
    }
    if (name != NULL) set_name(conn, *name);
    conn->resp = req->resp = (int)version;
    reply_hello(req, (int)version);
}

void run_client(core *c, request *req) {
    slice what = req->argv[1];
    connection *conn = req->conn;
    (void)c;
    if (is_word(what, "SETNAME") && req->argc == 3) {
        set_name(conn, req->argv[2]);
        reply_ok(&req->reply);
    } else if (is_word(what, "GETNAME") && req->argc == 2) {
        if (conn->name[0] == 0) reply_null(&req->reply, req->resp);
        else reply_bulk_text(&req->reply, conn->name);
    } else if (is_word(what, "ID") && req->argc == 2) reply_integer(&req->reply, (int64_t)conn->id);
    else if ((is_word(what, "SETINFO") && req->argc == 4) ||
             ((is_word(what, "NO-EVICT") || is_word(what, "NO-TOUCH")) && req->argc == 3))
        reply_ok(&req->reply); /* clients ask for these when they connect */
    else fail_subcommand(req, "CLIENT SETNAME, GETNAME, ID, SETINFO");
}

/* ---- settings, commands, slots ----------------------------------------------------------------------------------- */

/* What clients and redis-benchmark ask for. */
static const char *const settings[] = {"save", "appendonly", "appendfsync", "maxmemory", "timeout", "databases"};
enum { SETTINGS = sizeof settings / sizeof *settings };

static void setting_text(const server *srv, const char *name, char *text, size_t bytes) {
    text[0] = 0; /* save: no checkpoint comes after so many seconds */
    if (strcmp(name, "appendonly") == 0) (void)snprintf(text, bytes, "yes");
    else if (strcmp(name, "appendfsync") == 0) (void)snprintf(text, bytes, srv->durable_always ? "always" : "everysec");
    else if (strcmp(name, "maxmemory") == 0) (void)snprintf(text, bytes, "%zu", srv->memory_bytes);
    else if (strcmp(name, "databases") == 0) (void)snprintf(text, bytes, "1");
    else if (strcmp(name, "timeout") == 0)
        (void)snprintf(text, bytes, "%u", __atomic_load_n(&srv->timeout_s, __ATOMIC_RELAXED));
}

static void config_get(core *c, request *req) {
    bool wanted[SETTINGS] = {false};
    int64_t found = 0;
    size_t k;
    int i;
    for (k = 0; k < SETTINGS; k++) {
        for (i = 2; i < req->argc && !wanted[k]; i++)
            wanted[k] = is_word(req->argv[i], "*") || is_word(req->argv[i], settings[k]);
        found += wanted[k];
    }
    reply_map(&req->reply, req->resp, found);
    for (k = 0; k < SETTINGS; k++) {
        char text[32];
        if (!wanted[k]) continue;
        setting_text(c->server, settings[k], text, sizeof text);
        reply_bulk_text(&req->reply, settings[k]);
        reply_bulk_text(&req->reply, text);
    }
}

static void config_set(core *c, request *req) {
    int64_t seconds;
    if (!is_word(req->argv[2], "timeout"))
        (void)request_fail(req, "ERR only CONFIG SET timeout is there; other settings are options of the command line");
    else if (!parse_int64(req->argv[3], &seconds) || seconds < 0 || seconds > INT32_MAX)
        (void)request_fail(req, not_integer);
    else {
        __atomic_store_n(&c->server->timeout_s, (uint32_t)seconds, __ATOMIC_RELAXED);
        reply_ok(&req->reply);
    }
}

void run_config(core *c, request *req) {
    if (is_word(req->argv[1], "GET") && req->argc >= 3) config_get(c, req);
    else if (is_word(req->argv[1], "SET") && req->argc == 4) config_set(c, req);
    else fail_subcommand(req, "CONFIG GET name, CONFIG SET timeout seconds");
}

void run_cluster(core *c, request *req) {
    (void)c;
    if (is_word(req->argv[1], "KEYSLOT") && req->argc == 3) reply_integer(&req->reply, slot_of_key(req->argv[2]));
    else fail_subcommand(req, "CLUSTER KEYSLOT key");
}

void run_command(core *c, request *req) {
    buffer *b = &req->reply;
    size_t i;
    (void)c;
    if (req->argc == 2 && is_word(req->argv[1], "COUNT")) reply_integer(b, (int64_t)command_count);
    else if (req->argc >= 2 && is_word(req->argv[1], "DOCS"))
        reply_map(b, req->resp, 0); /* redis-cli falls back to its own help */
    else if (req->argc == 1) {
        reply_array(b, (int64_t)command_count);
        for (i = 0; i < command_count; i++) {
            reply_array(b, 3);
            reply_bulk_text(b, commands[i].name);
            reply_integer(b, commands[i].arity);
            reply_array(b, 1);
            buffer_text(b, (commands[i].flags & COMMAND_WRITE) != 0 ? "+write\r\n" : "+readonly\r\n");
        }
    } else fail_subcommand(req, "COMMAND, COMMAND COUNT, COMMAND DOCS");
}

/* ---- INFO -------------------------------------------------------------------------------------------------------- */

static shard_stats sum_of(const shard_stats *st, uint32_t n) {
    shard_stats sum = {0};
    uint32_t i;
    for (i = 0; i < n; i++) {
        sum.keys += st[i].keys, sum.expiring += st[i].expiring, sum.vectors += st[i].vectors;
        sum.spilled_count += st[i].spilled_count, sum.spilled_bytes += st[i].spilled_bytes;
        sum.overflow_bytes += st[i].overflow_bytes, sum.overflow_disk += st[i].overflow_disk;
        sum.clients += st[i].clients, sum.client_bytes += st[i].client_bytes;
        sum.clients_refused += st[i].clients_refused, sum.oom_refused += st[i].oom_refused;
        sum.commands += st[i].commands, sum.accepted += st[i].accepted;
        sum.replayed += st[i].replayed, sum.saves += st[i].saves, sum.major_faults += st[i].major_faults;
        sum.wal.records += st[i].wal.records, sum.wal.groups += st[i].wal.groups, sum.wal.syncs += st[i].wal.syncs;
    }
    return sum;
}

static bool is_degraded(core *c, uint32_t index) {
    nodedb_tpc_stats t = {0};
    (void)nodedb_tpc_get_stats(nodedb_tpc_core_runtime(c->tpc), index, &t);
    return t.degraded;
}

/* redis_version: clients choose what they may send by it. */
static void info_server(core *c, buffer *b) {
    const server *srv = c->server;
    const char *between = "";
    uint32_t i;
    buffer_printf(b, "# Server\r\nredis_version:8.0.0\r\nnodedb_version:" NODEDB_VERSION "\r\nprocess_id:%d\r\n",
                  (int)getpid());
    buffer_printf(b, "tcp_port:%d\r\nuptime_in_seconds:%" PRIu64 "\r\ncores:%u\r\ndegraded_cores:", srv->port,
                  (steady_ms() - srv->started_ms) / 1000, srv->cores);
    for (i = 0; i < srv->cores; i++)
        if (is_degraded(c, i)) {
            buffer_printf(b, "%s%u", between, i);
            between = ",";
        }
    buffer_text(b, "\r\n\r\n");
}

static void info_memory(core *c, buffer *b, const shard_stats *sum) {
    static const char *const level[] = {"normal", "warning", "critical", "emergency"};
    nodedb_mem *mem = c->server->mem;
    nodedb_mem_usage all = {0}, vectors = {0};
    nodedb_mem_reality real = {0};
    (void)nodedb_mem_poll(mem);
    (void)nodedb_mem_get_usage(mem, NODEDB_MEM_GLOBAL, &all, NULL);
    (void)nodedb_mem_get_usage(mem, MEM_VECTORS, &vectors, NULL);
    (void)nodedb_mem_get_reality(mem, &real, NULL);
    buffer_printf(b, "# Memory\r\nused_memory:%zu\r\nused_memory_rss:%" PRIu64 "\r\nused_memory_peak:%zu\r\n",
                  all.reserved_bytes, real.rss_bytes, all.peak_bytes);
    buffer_printf(b, "used_memory_vectors:%zu\r\nused_memory_clients:%" PRIu64 "\r\nused_memory_base:%zu\r\n",
                  vectors.reserved_bytes, sum->client_bytes, BASE_PROCESS_BYTES + c->server->cores * BASE_CORE_BYTES);
    buffer_printf(b, "maxmemory:%zu\r\nmemory_pressure:%s\r\n", all.limit_bytes, level[all.level]);
    buffer_printf(b, "spilled_keys:%" PRIu64 "\r\nspilled_bytes:%" PRIu64 "\r\n", sum->spilled_count,
                  sum->spilled_bytes);
    buffer_printf(b, "overflow_capacity:%" PRIu64 "\r\noverflow_disk:%" PRIu64 "\r\noom_refused:%" PRIu64 "\r\n\r\n",
                  sum->overflow_bytes, sum->overflow_disk, sum->oom_refused);
}

static void info_persistence(const server *srv, buffer *b, const shard_stats *first, const shard_stats *sum) {
    buffer_printf(b, "# Persistence\r\ndurability:%s\r\nlog:%s\r\n", srv->durable_always ? "always" : "interval",
                  first->log);
    buffer_printf(b, "log_records:%" PRIu64 "\r\nlog_groups:%" PRIu64 "\r\nlog_syncs:%" PRIu64 "\r\n", sum->wal.records,
                  sum->wal.groups, sum->wal.syncs);
    buffer_printf(b, "log_commit_p50_us:%.1f\r\nlog_commit_p99_us:%.1f\r\n",
                  (double)first->wal.commit_p50_ns / 1e3, (double)first->wal.commit_p99_ns / 1e3);
    buffer_printf(b, "records_replayed_at_start:%" PRIu64 "\r\ncheckpoints:%" PRIu64 "\r\n\r\n", sum->replayed,
                  sum->saves);
}

static void info_cores(core *c, buffer *b, const shard_stats *st) {
    uint32_t i;
    buffer_text(b, "# Cores\r\n");
    for (i = 0; i < c->server->cores; i++) {
        nodedb_tpc_stats t = {0};
        (void)nodedb_tpc_get_stats(nodedb_tpc_core_runtime(c->tpc), i, &t);
        buffer_printf(b, "core%u:keys=%" PRIu64 ",clients=%" PRIu64 ",turns=%" PRIu64 ",messages=%" PRIu64, i,
                      st[i].keys, st[i].clients, t.turns, t.messages);
        buffer_printf(b, ",parks=%" PRIu64 ",wakes=%" PRIu64 ",wakes_avoided=%" PRIu64 ",faults=%" PRIu64, t.parks,
                      t.wakes, t.wakes_avoided, t.faults);
        buffer_printf(b, ",degraded=%d,applied_lsn=%" PRIu64 ",checkpoint_lsn=%" PRIu64 "\r\n", (int)t.degraded,
                      st[i].applied_lsn, st[i].checkpoint_lsn);
    }
}

static void end_info(core *c, request *req) {
    const shard_stats *st = req->state;
    shard_stats sum = sum_of(st, c->server->cores);
    buffer b = {0};
    info_server(c, &b);
    buffer_printf(&b, "# Clients\r\nconnected_clients:%" PRIu64 "\r\nclients_refused:%" PRIu64 "\r\n\r\n", sum.clients,
                  sum.clients_refused);
    info_memory(c, &b, &sum);
    info_persistence(c->server, &b, &st[0], &sum);
    buffer_printf(&b, "# Stats\r\ntotal_connections_received:%" PRIu64 "\r\ntotal_commands_processed:%" PRIu64 "\r\n",
                  sum.accepted, sum.commands);
    buffer_printf(&b, "major_faults:%" PRIu64 "\r\nprefetch:%s\r\n\r\n", sum.major_faults, st[0].prefetch);
    buffer_printf(&b, "# Keyspace\r\ndb0:keys=%" PRIu64 ",expires=%" PRIu64 ",vectors=%" PRIu64 "\r\n\r\n", sum.keys,
                  sum.expiring, sum.vectors);
    info_cores(c, &b, st);
    reply_bulk(&req->reply, b.p, b.len);
    buffer_free(&b);
}

/* Answers come in the order of the cores. A core that cannot answer counts as nothing. */
static void answer_info(core *c, request *req, operation *op) {
    shard_stats *st = req->state;
    int at = req->at++;
    (void)c;
    if (op->result.kind == RESULT_DATA && op->result.bytes.len == sizeof *st)
        memcpy(&st[at], op->result.bytes.p, sizeof *st);
}

void run_info(core *c, request *req) { /* all sections always: clients pick the lines that they know */
    (void)request_state(c, req, c->server->cores * sizeof(shard_stats));
    req->on_answer = answer_info;
    req->at_end = end_info;
    request_everywhere(c, req, OP_STATS);
}

/* ---- saving, stopping -------------------------------------------------------------------------------------------- */

void run_save(core *c, request *req) {
    req->on_answer = answer_ok;
    req->at_end = end_ok;
    request_everywhere(c, req, OP_SAVE);
}

static void stop_if_saved(core *c, request *req) {
    if (!req->failed) nodedb_tpc_stop(nodedb_tpc_core_runtime(c->tpc));
}

/* The log has everything, so a checkpoint is made only on demand. */
void run_shutdown(core *c, request *req) {
    if (req->argc == 1 || (req->argc == 2 && is_word(req->argv[1], "NOSAVE"))) {
        req->conn->closing = true;
        nodedb_tpc_stop(nodedb_tpc_core_runtime(c->tpc));
    } else if (req->argc == 2 && is_word(req->argv[1], "SAVE")) {
        req->on_answer = answer_ok;
        req->at_end = stop_if_saved;
        request_everywhere(c, req, OP_SAVE);
    } else (void)request_fail(req, syntax_error);
}

/* Each gets its own fault id: one that faults repeatedly would be refused. */
void run_debug(core *c, request *req) {
    operation *op;
    if (!c->server->debug)
        (void)request_fail(req, "ERR DEBUG command not allowed. Start the server with --enable-debug-command.");
    else if (req->argc == 2 && is_word(req->argv[1], "PANIC")) {
        op = request_start(c, req, OP_PANIC, (slice){"", 0});
        op->fault_id = nodedb_mix64(req->conn->id << 40 ^ nodedb_now_ns(NULL)) | 1;
        request_send(c, req, op, c->index);
    } else (void)request_fail(req, "ERR only DEBUG PANIC is there");
}
