/* table.c - all commands, one row each, and what they say about their arguments.
 *
 * A new command is a function run_name() in the room where it belongs, its name in the list below, and a row. Names
 * have at most 15 letters. The usual ones stand first. */
#include "../db.h"

const char syntax_error[] = "ERR syntax error";

void reply_wrong_count(request *req) {
    reply_error(&req->reply, "ERR wrong number of arguments for '%s' command", req->cmd->name);
}

typedef void run_function(core *c, request *req);
/* strings.c */ run_function run_get, run_set, run_mget, run_mset, run_incr, run_decr;
/* keys.c */ run_function run_del, run_exists, run_type, run_expire, run_pexpire, run_persist, run_ttl, run_pttl,
    run_scan, run_dbsize, run_flushall;
/* vectors.c */ run_function run_vadd, run_vrem, run_vismember, run_vemb, run_vcard, run_vdim, run_vsim;
/* server.c */ run_function run_ping, run_echo, run_quit, run_select, run_auth, run_hello, run_client, run_config,
    run_cluster, run_command, run_info, run_save, run_shutdown, run_debug;

/* Short, so that a row is a line. */
enum {
    READ = COMMAND_READ | COMMAND_DATA,
    WRITE = COMMAND_WRITE | COMMAND_DATA,
    ALONE = COMMAND_ALONE,
    NO_AUTH = COMMAND_NO_AUTH
};

/* The name; the number of arguments with the name (negative: a minimum); flags; the function. */
const command commands[] = {
    {"get", 2, READ, run_get},
    {"set", -3, WRITE, run_set},
    {"del", -2, WRITE, run_del},
    {"incr", 2, WRITE, run_incr},
    {"mget", -2, READ, run_mget},
    {"mset", -3, WRITE, run_mset},
    {"exists", -2, READ, run_exists},
    {"expire", 3, WRITE, run_expire},
    {"vsim", -4, READ | ALONE, run_vsim},
    {"vadd", -5, WRITE, run_vadd},
    {"ping", -1, 0, run_ping},
    {"echo", 2, 0, run_echo},
    {"unlink", -2, WRITE, run_del},
    {"pexpire", 3, WRITE, run_pexpire},
    {"persist", 2, WRITE, run_persist},
    {"ttl", 2, READ, run_ttl},
    {"pttl", 2, READ, run_pttl},
    {"incrby", 3, WRITE, run_incr},
    {"decr", 2, WRITE, run_decr},
    {"decrby", 3, WRITE, run_decr},
    {"type", 2, READ, run_type},
    {"scan", -2, READ | ALONE, run_scan},
    {"dbsize", 1, READ, run_dbsize},
    {"flushall", -1, WRITE, run_flushall},
    {"flushdb", -1, WRITE, run_flushall},
    {"vrem", 3, WRITE | COMMAND_REMOVES, run_vrem},
    {"vcard", 2, READ, run_vcard},
    {"vdim", 2, READ, run_vdim},
    {"vemb", 3, READ | ALONE, run_vemb}, /* alone: its reply is long */
    {"vismember", 3, READ, run_vismember},
    {"hello", -1, ALONE | NO_AUTH, run_hello},
    {"auth", -2, NO_AUTH, run_auth},
    {"quit", -1, NO_AUTH, run_quit},
    {"select", 2, 0, run_select},
    {"command", -1, 0, run_command},
    {"client", -2, 0, run_client},
    {"config", -2, 0, run_config},
    {"cluster", -2, 0, run_cluster},
    {"info", -1, COMMAND_READ | ALONE, run_info},
    {"save", 1, COMMAND_READ | ALONE, run_save},
    {"shutdown", -1, COMMAND_READ | ALONE, run_shutdown},
    {"debug", -2, COMMAND_READ, run_debug},
};
const size_t command_count = sizeof commands / sizeof *commands;

/* The usual ones stand first, and nearly every row differs in its first letter from what is looked for. */
const command *command_find(slice name) {
    char low[16];
    size_t i;
    if (name.bytes == 0 || name.bytes >= sizeof low || memchr(name.p, 0, name.bytes) != NULL) return NULL;
    for (i = 0; i < name.bytes; i++) low[i] = (char)tolower((unsigned char)name.p[i]);
    low[i] = 0;
    for (i = 0; i < command_count; i++)
        if (commands[i].name[0] == low[0] && strcmp(commands[i].name, low) == 0) return &commands[i];
    return NULL;
}
