/* The database from outside: what its commands answer, and what survives kills and faults. The helpers are in server.h.
 *
 *   COMMANDS           what each command answers, as Redis does
 *   PROTOCOL           frames, pipelines, limits, protocol errors
 *   SEVERAL CLIENTS    many at once, on one key and on different cores
 *   TIME TO LIVE       expiry, and what it does to other commands
 *   SCAN               every key that stays is found
 *   LARGE VALUES       fetched in pieces, while others are served
 *   RESTARTS           after orderly ends and kills, in the middle of writes
 *   FILES              what a checkpoint makes of the log and the directory
 *   VECTOR SETS        VADD to VSIM, restarts, the memory of indexes
 *   MEMORY             above the ceiling: spilling, and refusals where nothing can spill
 *   REFUSALS           a second server, damaged data, wrong options
 *   FAULTS             a core that faults, and what the others still do
 *   REFUSING SYSTEMS   no io_uring, tmpfs, few descriptors
 *   DURABILITY         acknowledged writes survive kills
 *   CLIENTS OF REDIS   redis-cli and redis-benchmark
 *   END                the shared server stops in order */
#include "server.h"

/* ===================================================================================================================
 * COMMANDS: what each command answers, as Redis does
 * ================================================================================================================ */

DB_TEST(connection_commands_answer_as_in_redis) {
    client *c = shared_client();
    says(c, "PING", "+PONG\r\n");
    says(c, "ping hello", "$5\r\nhello\r\n");
    says(c, "PING a b", "-ERR wrong number of arguments for 'ping' command\r\n");
    says(c, "ECHO \"a b\"", "$3\r\na b\r\n");
    says(c, "ECHO", "-ERR wrong number of arguments for 'echo' command\r\n");
    says(c, "SELECT 0", "+OK\r\n");
    says(c, "SELECT 99999", "-ERR DB index is out of range\r\n");
    says(c, "SELECT abc", "-ERR value is not an integer or out of range\r\n");
    says(c, "CLIENT SETNAME me", "+OK\r\n");
    says(c, "CLIENT GETNAME", "$2\r\nme\r\n");
    says(c, "CLIENT SETINFO lib-name x", "+OK\r\n");
    CHECK(number(c, "CLIENT ID") > 0);
    begins(c, "CLIENT NONSENSE", "-ERR unknown subcommand");
    begins(c, "COMMAND", "*");
    CHECK(number(c, "COMMAND COUNT") > 20);
    begins(c, "COMMAND DOCS", "*");
    begins(c, "INFO", "$");
    CHECK_HAS(c->reply.p, "redis_version:");
    says(c, "QUIT", "+OK\r\n");
    CHECK(strcmp(reply(c), "(closed)") == 0);
}

DB_TEST(unknown_commands_and_wrong_counts_have_the_wording_of_redis) {
    static const char *const with_one_less[] = {
        "get",        "set k",    "del",   "exists", "mget",   "mset k",     "expire k", "ttl",
        "incr",       "incrby k", "type",  "scan",   "select", "echo",       "client",   "vadd k VALUES 1",
        "vsim k ELE", "vrem k",   "vcard", "vdim",   "vemb k", "vismember k"};
    client *c = shared_client();
    size_t i;
    says(c, "NONSENSE", "-ERR unknown command 'NONSENSE', with args beginning with: \r\n");
    says(c, "nonsense a \"b c\"", "-ERR unknown command 'nonsense', with args beginning with: 'a' 'b c' \r\n");
    for (i = 0; i < sizeof with_one_less / sizeof *with_one_less; i++) {
        char want[160];
        (void)snprintf(want, sizeof want, "-ERR wrong number of arguments for '%.*s' command\r\n",
                       (int)strcspn(with_one_less[i], " "), with_one_less[i]);
        says(c, with_one_less[i], want);
    }
    says(c, "GET a b", "-ERR wrong number of arguments for 'get' command\r\n");
    says(c, "MSET a b c", "-ERR wrong number of arguments for 'mset' command\r\n");
    says(c, "DBSIZE x", "-ERR wrong number of arguments for 'dbsize' command\r\n");
    says(c, "FLUSHALL x", "-ERR syntax error\r\n");
    says(c, "SHUTDOWN x", "-ERR syntax error\r\n");
    says(c, "DEBUG PANIC", "-ERR DEBUG command not allowed. Start the server with --enable-debug-command.\r\n");
    /* no byte from a client ends the line of an error early */
    says(c, "\"a\\r\\nb\"", "-ERR unknown command 'a  b', with args beginning with: \r\n");
    says(c, "PING", "+PONG\r\n");
}

DB_TEST(set_and_get_with_all_options) {
    client *c = shared_client();
    says(c, "GET k", "$-1\r\n");
    says(c, "SET k v", "+OK\r\n");
    says(c, "GET k", "$1\r\nv\r\n");
    says(c, "SET k w NX", "$-1\r\n");
    says(c, "SET n w NX", "+OK\r\n");
    says(c, "SET x w XX", "$-1\r\n");
    says(c, "SET k w xx", "+OK\r\n");
    says(c, "GET k", "$1\r\nw\r\n");
    says(c, "SET k u GET", "$1\r\nw\r\n");
    says(c, "SET new u GET", "$-1\r\n");
    says(c, "SET k t NX GET", "$1\r\nu\r\n");
    says(c, "GET k", "$1\r\nu\r\n");
    says(c, "SET fresh t NX GET", "$-1\r\n");
    says(c, "GET fresh", "$1\r\nt\r\n");
    says(c, "SET k v EX 100", "+OK\r\n");
    says(c, "TTL k", ":100\r\n");
    says(c, "SET k v KEEPTTL", "+OK\r\n");
    says(c, "TTL k", ":100\r\n");
    says(c, "SET k v", "+OK\r\n");
    says(c, "TTL k", ":-1\r\n");
    says(c, "SET k v PX 100000", "+OK\r\n");
    says(c, "TTL k", ":100\r\n");
    says(c, "SET k v EX 0", "-ERR invalid expire time in 'set' command\r\n");
    says(c, "SET k v PX -5", "-ERR invalid expire time in 'set' command\r\n");
    says(c, "SET k v EX abc", "-ERR value is not an integer or out of range\r\n");
    says(c, "SET k v EX 9223372036854775807", "-ERR invalid expire time in 'set' command\r\n");
    says(c, "SET k v EX", "-ERR syntax error\r\n");
    says(c, "SET k v NX XX", "-ERR syntax error\r\n");
    says(c, "SET k v EX 1 PX 1", "-ERR syntax error\r\n");
    says(c, "SET k v EX 1 KEEPTTL", "-ERR syntax error\r\n");
    says(c, "SET k v nonsense", "-ERR syntax error\r\n");
    says(c, "SET k \"\"", "+OK\r\n");
    says(c, "GET k", "$0\r\n\r\n");
}

DB_TEST(counters_count_and_refuse_as_in_redis) {
    client *c = shared_client();
    says(c, "INCR n", ":1\r\n");
    says(c, "INCRBY n 41", ":42\r\n");
    says(c, "INCRBY n -50", ":-8\r\n");
    says(c, "GET n", "$2\r\n-8\r\n");
    says(c, "SET n 9223372036854775807", "+OK\r\n");
    says(c, "INCR n", "-ERR increment or decrement would overflow\r\n");
    says(c, "GET n", "$19\r\n9223372036854775807\r\n");
    says(c, "INCRBY n 9223372036854775808", "-ERR value is not an integer or out of range\r\n");
    says(c, "INCRBY n x", "-ERR value is not an integer or out of range\r\n");
    says(c, "SET n -9223372036854775808", "+OK\r\n");
    says(c, "INCRBY n -1", "-ERR increment or decrement would overflow\r\n");
    says(c, "INCR n", ":-9223372036854775807\r\n");
    {
        static const char *const no_numbers[] = {"abc", "\"\"", "\" 1\"", "\"1 \"", "01",  "+1",
                                                 "-0",  "1.0",  "-",      "0x10",   "1e3", "\"1\\x002\""};
        size_t i;
        for (i = 0; i < sizeof no_numbers / sizeof *no_numbers; i++) {
            char line[64];
            (void)snprintf(line, sizeof line, "SET n %s", no_numbers[i]);
            says(c, line, "+OK\r\n");
            says(c, "INCR n", "-ERR value is not an integer or out of range\r\n");
        }
    }
    says(c, "SET t 1 EX 100", "+OK\r\n");
    says(c, "INCR t", ":2\r\n");
    says(c, "TTL t", ":100\r\n");
}

DB_TEST(commands_on_several_keys_and_times_to_live) {
    client *c = shared_client();
    says(c, "MSET a 1 b 2 c 3 a 4", "+OK\r\n");
    says(c, "MGET a b nothing c a", "*5\r\n$1\r\n4\r\n$1\r\n2\r\n$-1\r\n$1\r\n3\r\n$1\r\n4\r\n");
    says(c, "EXISTS a b a nothing", ":3\r\n");
    says(c, "DBSIZE", ":3\r\n");
    says(c, "TYPE a", "+string\r\n");
    says(c, "TYPE nothing", "+none\r\n");
    says(c, "DEL a a nothing b", ":2\r\n");
    says(c, "DBSIZE", ":1\r\n");
    says(c, "TTL c", ":-1\r\n");
    says(c, "TTL nothing", ":-2\r\n");
    says(c, "EXPIRE nothing 10", ":0\r\n");
    says(c, "EXPIRE c 10", ":1\r\n");
    says(c, "TTL c", ":10\r\n");
    says(c, "EXPIRE c x", "-ERR value is not an integer or out of range\r\n");
    says(c, "EXPIRE c 9223372036854775807", "-ERR invalid expire time in 'expire' command\r\n");
    says(c, "TTL c", ":10\r\n");
    says(c, "EXPIRE c 0", ":1\r\n");
    says(c, "EXISTS c", ":0\r\n");
    says(c, "SET d 1", "+OK\r\n");
    says(c, "EXPIRE d -5", ":1\r\n");
    says(c, "GET d", "$-1\r\n");
    says(c, "MSET a 1 b 2 c 3", "+OK\r\n");
    says(c, "VADD v VALUES 2 1 0 e", ":1\r\n");
    says(c, "MGET a v", "*2\r\n$1\r\n1\r\n$-1\r\n");
    says(c, "DBSIZE", ":4\r\n");
    says(c, "FLUSHALL", "+OK\r\n");
    says(c, "DBSIZE", ":0\r\n");
    says(c, "GET a", "$-1\r\n");
    says(c, "VCARD v", ":0\r\n");
    says(c, "TYPE v", "+none\r\n");
}

DB_TEST(hello_changes_the_protocol_and_each_reply_has_its_resp3_form) {
    client *c = shared_client(), *two = client_open(shared.port);
    leaf l[40];
    size_t n, i;
    says(c, "HELLO 4", "-NOPROTO unsupported protocol version\r\n");
    says(c, "HELLO abc", "-ERR Protocol version is not an integer or out of range\r\n");
    says(c, "HELLO 3 NONSENSE", "-ERR Syntax error in HELLO option 'NONSENSE'\r\n");
    says(c, "GET nothing", "$-1\r\n"); /* a refused HELLO changes nothing */
    begins(c, "HELLO 3 SETNAME three", "%7\r\n");
    says(c, "CLIENT GETNAME", "$5\r\nthree\r\n");
    says(c, "GET nothing", "_\r\n");
    says(c, "SET nothing v XX", "_\r\n");
    says(c, "SET k v", "+OK\r\n");
    says(c, "GET k", "$1\r\nv\r\n");
    says(c, "MGET k nothing", "*2\r\n$1\r\nv\r\n_\r\n");
    says(c, "DEL k nothing", ":1\r\n");
    says(c, "VADD v VALUES 2 3 0 e", "#t\r\n");
    says(c, "VADD v VALUES 2 3 0 e", "#f\r\n");
    says(c, "VISMEMBER v e", "#t\r\n");
    says(c, "VISMEMBER v f", "#f\r\n");
    says(c, "VSIM v VALUES 2 1 0 WITHSCORES", "%1\r\n$1\r\ne\r\n,1\r\n");
    says(c, "VSIM v VALUES 2 1 0", "*1\r\n$1\r\ne\r\n");
    says(c, "VSIM nothing VALUES 2 1 0 WITHSCORES", "%0\r\n");
    says(c, "VEMB v e", "*2\r\n,3\r\n,0\r\n");
    says(c, "VEMB v f", "_\r\n");
    says(two, "GET nothing", "$-1\r\n"); /* it is the connection's choice */
    says(two, "VEMB v e", "*2\r\n$1\r\n3\r\n$1\r\n0\r\n");
    says(two, "VSIM v VALUES 2 1 0 WITHSCORES", "*2\r\n$1\r\ne\r\n$1\r\n1\r\n");
    says(two, "VEMB v f", "$-1\r\n");
    says(two, "VISMEMBER v e", ":1\r\n");
    says(c, "VREM v e", "#t\r\n");
    says(c, "VREM v e", "#f\r\n");
    begins(c, "HELLO 2", "*14\r\n");
    says(c, "GET nothing", "$-1\r\n");
    put_line(c, "HELLO");
    n = reply_leaves(c, l, 40);
    for (i = 0; i + 1 < n && !(l[i].n == 5 && memcmp(l[i].p, "proto", 5) == 0); i++) {}
    CHECK(i + 1 < n && l[i + 1].kind == ':' && *l[i + 1].p == '2');
}

DB_TEST(a_key_of_one_type_refuses_commands_of_another) {
    static const char wrong[] = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";
    static const char *const on_string[] = {
        "VADD s VALUES 2 1 0 e", "VSIM s VALUES 2 1 0", "VSIM s ELE e", "VREM s e", "VCARD s", "VDIM s", "VEMB s e",
        "VISMEMBER s e"};
    static const char *const on_set[] = {"GET v", "INCR v", "INCRBY v 2", "SET v x GET"};
    client *c = shared_client();
    size_t i;
    says(c, "SET s x", "+OK\r\n");
    says(c, "VADD v VALUES 2 1 0 e", ":1\r\n");
    for (i = 0; i < sizeof on_string / sizeof *on_string; i++) says(c, on_string[i], wrong);
    for (i = 0; i < sizeof on_set / sizeof *on_set; i++) says(c, on_set[i], wrong);
    says(c, "TYPE v", "+vectorset\r\n");
    says(c, "VCARD v", ":1\r\n");
    says(c, "GET s", "$1\r\nx\r\n");
    says(c, "EXPIRE v 100", ":1\r\n");
    says(c, "TTL v", ":100\r\n");
    says(c, "SET v x", "+OK\r\n"); /* SET replaces whatever there is */
    says(c, "GET v", "$1\r\nx\r\n");
    says(c, "TTL v", ":-1\r\n");
    says(c, "VCARD v", wrong);
}

/* ===================================================================================================================
 * PROTOCOL: frames, pipelines, limits, protocol errors
 * ================================================================================================================ */

DB_TEST(keys_and_values_are_any_bytes) {
    client *c = shared_client();
    char all[256], want[300];
    int i, n;
    for (i = 0; i < 256; i++) all[i] = (char)i;
    put_array(c, 3), put_text(c, "SET"), put_arg(c, all, 256), put_arg(c, all, 256);
    next_is(c, "+OK\r\n");
    put_array(c, 2), put_text(c, "GET"), put_arg(c, all, 256);
    n = sprintf(want, "$256\r\n");
    memcpy(want + n, all, 256);
    memcpy(want + n + 256, "\r\n", 2);
    check_reply(__LINE__, c, "GET of all bytes", want, (size_t)n + 258);
    says(c, "SET \"a\\x00b\" 1", "+OK\r\n");
    says(c, "SET \"a\\x00c\" 2", "+OK\r\n");
    says(c, "GET \"a\\x00b\"", "$1\r\n1\r\n");
    says(c, "GET a", "$-1\r\n");
    says(c, "SET \"\\r\\n\" \"\\r\\n$3\\r\\n\"", "+OK\r\n");
    says(c, "GET \"\\r\\n\"", "$6\r\n\r\n$3\r\n\r\n");
    says(c, "VADD v VALUES 2 1 0 \"e\\x00\\r\\n\"", ":1\r\n");
    says(c, "VADD v VALUES 2 1 0 \"e\\x00\\r\\r\"", ":1\r\n");
    put_line(c, "VSIM v VALUES 2 1 0");
    check_reply(__LINE__, c, "VSIM", "*2\r\n$4\r\ne\0\r\n\r\n$4\r\ne\0\r\r\r\n", 24);
}

DB_TEST(ten_thousand_commands_in_one_write_are_answered_in_order_and_reads_see_own_writes) {
    client *c = shared_client();
    int i, bad = 0;
    for (i = 0; i < 10000; i++)
        switch (i % 5) {
        case 0: putf(c, "SET k%d %d", i % 7, i); break;
        case 1: putf(c, "GET k%d", (i - 1) % 7); break;
        case 2: putf(c, "INCR n"); break;
        case 3: putf(c, "MGET n k%d", (i - 3) % 7); break;
        default: putf(c, "ECHO %d", i); break;
        }
    for (i = 0; i < 10000 && bad < 5; i++) {
        char want[100], digits[16], count[16];
        const char *got = reply(c);
        int set_at = i - i % 5;
        (void)sprintf(digits, "%d", i % 5 == 4 ? i : set_at);
        (void)sprintf(count, "%d", i / 5 + 1);
        switch (i % 5) {
        case 0: (void)sprintf(want, "+OK\r\n"); break;
        case 2: (void)sprintf(want, ":%d\r\n", i / 5 + 1); break;
        case 3:
            (void)sprintf(want, "*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", (int)strlen(count), count, (int)strlen(digits),
                          digits);
            break;
        default: (void)sprintf(want, "$%d\r\n%s\r\n", (int)strlen(digits), digits); break;
        }
        if (strcmp(got, want) != 0) {
            complain(__LINE__, "command %d answered \"%.100s\", not \"%.100s\"", i, got, want);
            bad++;
        }
    }
}

DB_TEST(a_pipeline_over_vector_sets_and_keys_keeps_its_order) {
    client *c = shared_client();
    int i;
    for (i = 0; i < 300; i++) {
        putf(c, "VADD v VALUES 2 1 %d e%d", i, i);
        putf(c, "VCARD v");
        putf(c, "SET s %d", i);
        putf(c, "VISMEMBER v e%d", i);
        putf(c, "VREM v e%d", i);
        putf(c, "VISMEMBER v e%d", i);
        putf(c, "VADD v VALUES 2 1 %d f%d", i, i);
        putf(c, "DEL v");
        putf(c, "VCARD v");
    }
    for (i = 0; i < 300 && test_failures_here == 0; i++) {
        next_is(c, ":1\r\n"), next_is(c, ":1\r\n"), next_is(c, "+OK\r\n"), next_is(c, ":1\r\n"), next_is(c, ":1\r\n");
        next_is(c, ":0\r\n"), next_is(c, ":1\r\n"), next_is(c, ":1\r\n"), next_is(c, ":0\r\n");
    }
}

DB_TEST(the_first_additions_to_a_new_set_keep_their_place_in_a_pipeline) {
    static const char *const enders[] = {"DEL v%d", "SET v%d x", "EXPIRE v%d 0"};
    client *c = shared_client();
    int i, k;
    for (i = 0; i < 100; i++) { /* an addition, what undoes it, and a look */
        putf(c, "VADD w%d VALUES 2 1 0 a", i), putf(c, "VADD w%d VALUES 2 1 0 b", i), putf(c, "VREM w%d a", i),
            putf(c, "VADD w%d VALUES 2 1 0 c", i);
        putf(c, "VADD v%d VALUES 2 1 0 a", i), putf(c, enders[i % 3], i);
    }
    for (i = 0; i < 100; i++) putf(c, "VISMEMBER w%d a", i), putf(c, "VCARD w%d", i), putf(c, "TYPE v%d", i);
    for (i = 0; i < 100 && test_failures_here < 6; i++) {
        for (k = 0; k < 5; k++) next_is(c, ":1\r\n");
        next_is(c, i % 3 == 1 ? "+OK\r\n" : ":1\r\n");
    }
    for (i = 0; i < 100 && test_failures_here < 6; i++)
        next_is(c, ":0\r\n"), next_is(c, ":2\r\n"), next_is(c, i % 3 == 1 ? "+string\r\n" : "+none\r\n");
}

DB_TEST(frames_may_come_in_single_bytes) {
    client *c = shared_client();
    bytes all = {0};
    size_t i;
    put_line(c, "SET key \"a value\\r\\nof two lines\"");
    put_line(c, "GET key");
    put_line(c, "VADD v VALUES 3 1 2 3 e");
    put_line(c, "VCARD v");
    bytes_put(&c->out, "PING\r\n", 6);
    bytes_put(&all, c->out.p, c->out.len);
    c->out.len = 0;
    for (i = 0; i < all.len; i++) {
        bytes_put(&c->out, all.p + i, 1);
        client_flush(c);
        if (i % 4 == 0) sleep_ms(1);
    }
    bytes_free(&all);
    next_is(c, "+OK\r\n");
    next_is(c, "$21\r\na value\r\nof two lines\r\n");
    next_is(c, ":1\r\n");
    next_is(c, ":1\r\n");
    next_is(c, "+PONG\r\n");
}

DB_TEST(inline_commands_work) {
    static const char text[] =
        "PING\r\nset k v\n  GET \t k  \r\n\r\n*0\r\n*-1\r\nEXISTS k nothing\r\n*1\r\n$4\r\nPING\r\nnonsense\r\n";
    client *c = shared_client();
    bytes_put(&c->out, text, sizeof text - 1);
    next_is(c, "+PONG\r\n");
    next_is(c, "+OK\r\n");
    next_is(c, "$1\r\nv\r\n");
    next_is(c, ":1\r\n");
    next_is(c, "+PONG\r\n");
    next_is(c, "-ERR unknown command 'nonsense', with args beginning with: \r\n");
}

DB_TEST(a_malformed_frame_gets_a_protocol_error_and_its_connection_closes) {
    static const struct { const char *text, *error;
    } wrong[] = {
        {"*1\r\n+PING\r\n", "-ERR Protocol error: expected '$', got '+'\r\n"},
        {"*1\r\n\x01", "-ERR Protocol error: expected '$', got '"},
        {"*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
        {"*1x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
        {"*99999999999999999999\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
        {"*2147483648\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
        {"*1000000\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
        {"*1\r\n$-1\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
        {"*1\r\n$x\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
        {"*1\r\n$99999999999\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
        {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n",
         "-ERR Protocol error: invalid bulk length\r\n"}, /* at its header, not a byte of it is there */
        {"*1\r\n$4\r\nPINGPING\r\n", "-ERR Protocol error: "},
        {"*1\r\n$00000000000000000000000000000000000000000000004\r\nPING\r\n", "-ERR Protocol error: "},
    };
    client *bystander = shared_client();
    size_t i;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        client *c = client_open(shared.port);
        put_line(c, "SET k before"); /* what came before is answered first */
        bytes_put(&c->out, wrong[i].text, strlen(wrong[i].text));
        next_is(c, "+OK\r\n");
        if (strncmp(reply(c), wrong[i].error, strlen(wrong[i].error)) != 0)
            complain(__LINE__, "case %d answered \"%.200s\", not \"%s\"", (int)i, c->reply.p, wrong[i].error);
        CHECK(strcmp(reply(c), "(closed)") == 0);
        says(bystander, "GET k", "$6\r\nbefore\r\n");
    }
}

DB_TEST(a_frame_over_the_limit_is_refused_before_it_is_buffered) {
    client *c = shared_client(), *d = client_open(shared.port);
    char *inline_request = malloc(200000);
    long long rss;
    int i;
    REQUIRE(inline_request != NULL);
    rss = info(c, "used_memory_rss");
    /* the third value does not fit into one command; the two before it do */
    bytes_put(&d->out, "*7\r\n$4\r\nMSET\r\n", 14);
    for (i = 0; i < 2; i++) {
        bytes_put(&d->out, "$1\r\nk\r\n$20971520\r\n", 18);
        bytes_room(&d->out, 20971522);
        memset(d->out.p + d->out.len, 'x', 20971520);
        d->out.len += 20971520;
        bytes_put(&d->out, "\r\n", 2);
    }
    bytes_put(&d->out, "$1\r\nk\r\n$20971520\r\n", 18);
    CHECK(strncmp(reply(d), "-ERR Protocol error: ", 21) == 0);
    CHECK(strcmp(reply(d), "(closed)") == 0);
    d = client_open(shared.port);
    memset(inline_request, 'a', 200000);
    bytes_put(&d->out, inline_request, 200000);
    free(inline_request);
    CHECK(strcmp(reply(d), "-ERR Protocol error: too big inline request\r\n") == 0);
    CHECK(strcmp(reply(d), "(closed)") == 0);
    /* connections that announce much and send nothing take no memory */
    for (i = 0; i < 200; i++) {
        client *e = client_open(shared.port);
        bytes_put(&e->out, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$33554432\r\n", 31);
        client_flush(e);
    }
    says(c, "PING", "+PONG\r\n");
    CHECK(info(c, "used_memory_rss") < rss + (400 << 20));
}

DB_TEST(keys_have_a_longest_length_that_is_an_ordinary_error) {
    client *c = shared_client();
    char *key = malloc(65537);
    REQUIRE(key != NULL);
    memset(key, 'k', 65537);
    put_array(c, 3), put_text(c, "SET"), put_arg(c, key, 65536), put_text(c, "v");
    next_is(c, "+OK\r\n");
    put_array(c, 2), put_text(c, "GET"), put_arg(c, key, 65536);
    next_is(c, "$1\r\nv\r\n");
    put_array(c, 3), put_text(c, "SET"), put_arg(c, key, 65537), put_text(c, "v");
    CHECK(strncmp(reply(c), "-ERR ", 5) == 0);
    put_array(c, 4), put_text(c, "DEL"), put_text(c, "a"), put_arg(c, key, 65536), put_arg(c, key, 65537);
    CHECK(strncmp(reply(c), "-ERR ", 5) == 0);
    says(c, "DBSIZE", ":1\r\n"); /* nothing of a refused command was done */
    free(key);
}

DB_TEST(garbage_never_harms_the_server_or_other_clients) {
    static const char *const seeds[] = {
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n",
        "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
        "*7\r\n$4\r\nVADD\r\n$1\r\nv\r\n$6\r\nVALUES\r\n$1\r\n2\r\n$1\r\n1\r\n$1\r\n0\r\n$1\r\ne\r\n",
        "*6\r\n$4\r\nVSIM\r\n$1\r\nv\r\n$6\r\nVALUES\r\n$1\r\n2\r\n$1\r\n1\r\n$1\r\n0\r\n",
        "*4\r\n$4\r\nSCAN\r\n$1\r\n0\r\n$5\r\nMATCH\r\n$4\r\n[a-z\r\n",
        "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
        "*5\r\n$4\r\nVADD\r\n$1\r\nv\r\n$4\r\nFP32\r\n$8\r\n\x00\x00\x80?\x00\x00\x00\x00\r\n$1\r\ne\r\n",
        "PING hello\r\n"};
    uint64_t random = test_seed * 77;
    client *bystander = shared_client();
    int round, rounds = test_long ? 5000 : 400;
    for (round = 0; round < rounds && test_failures_here == 0; round++) {
        client *c = client_open(shared.port);
        uint64_t until = clock_ms() + PATIENCE_MS;
        int i, n = (int)(test_random(&random) % 8) + 1;
        char value[32];
        for (i = 0; i < n; i++) {
            size_t at = c->out.len, length, changes;
            if (round % 4 == 0) {
                length = test_random(&random) % 500;
                bytes_room(&c->out, length);
                for (; length > 0; length--) c->out.p[c->out.len++] = (char)test_random(&random);
                continue;
            }
            {
                const char *seed = seeds[test_random(&random) % (sizeof seeds / sizeof *seeds)];
                bytes_put(&c->out, seed, strlen(seed));
            }
            length = c->out.len - at;
            for (changes = test_random(&random) % 4; changes > 0 && length > 0; changes--) {
                size_t where = at + test_random(&random) % length;
                static const char swaps[] = "0123456789*$\r\n-x[]\\?";
                c->out.p[where] = test_random(&random) % 3 == 0 ? (char)test_random(&random)
                                                                : swaps[test_random(&random) % (sizeof swaps - 1)];
            }
        }
        client_flush(c);
        if (round % 3 != 0) (void)shutdown(c->fd, SHUT_WR);
        if (round % 3 == 2)
            while (!c->closed && clock_ms() < until) client_io(c, 100);
        CHECK(round % 3 != 2 || c->closed);
        client_hang_up(c);
        (void)snprintf(value, sizeof value, "SET mine %d", round);
        says(bystander, value, "+OK\r\n");
        (void)snprintf(value, sizeof value, "$%d\r\n%d\r\n",
                       round < 10     ? 1
                       : round < 100  ? 2
                       : round < 1000 ? 3
                                      : 4,
                       round);
        says(bystander, "GET mine", value);
    }
}

DB_TEST(two_hundred_connections_that_break_off_with_commands_under_way_do_no_harm) {
    client *c = shared_client();
    int i, j;
    for (i = 0; i < 200; i++) {
        client *d = client_open(shared.port);
        for (j = 0; j < 50; j++)
            switch (j % 6) {
            case 0: putf(d, "SET key:%d:%d value", i, j); break;
            case 1: putf(d, "GET key:%d:%d", i, j - 1); break;
            case 2: putf(d, "INCR count"); break;
            case 3: putf(d, "VADD v VALUES 3 %d %d 1 e:%d:%d", i, j, i, j); break;
            case 4: putf(d, "VSIM v VALUES 3 1 2 3"); break;
            default: putf(d, "MGET count key:%d:0 a b c", i); break;
            }
        if (i % 4 != 3) client_flush(d);
        else bytes_put(&d->out, "*3\r\n$3\r\nSET\r\n$1", 16), client_io(d, 10);
        if (i % 2 == 0) client_reset(d);
        else client_hang_up(d);
    }
    CHECK(info_reaches(c, "connected_clients", false, 1));
    begins(c, "GET count", "$");
    says(c, "SET own 1", "+OK\r\n"); /* not `count`: what was under way may still be raising it */
    says(c, "INCR own", ":2\r\n");
    says(c, "FLUSHALL", "+OK\r\n");
    CHECK(info_reaches(c, "used_memory", false, 100000)); /* disconnected clients hold no memory */
}

/* ===================================================================================================================
 * SEVERAL CLIENTS: many at once, on one key and on different cores
 * ================================================================================================================ */

typedef struct worker {
    pthread_t thread;
    int port, index, wins, count;
} worker;

static void *count_up(void *argument) {
    worker *w = argument;
    client *c = client_open(w->port);
    int i;
    for (i = 0; i < w->count; i++) put_line(c, i % 2 == 0 ? "INCR sum" : "INCRBY sum 3");
    for (i = 0; i < w->count; i++)
        if (*reply(c) == ':') w->wins++;
    return NULL;
}

DB_TEST(increments_from_several_connections_sum_up_exactly) {
    client *c = shared_client();
    worker w[6];
    int i;
    for (i = 0; i < 6; i++) {
        memset(&w[i], 0, sizeof w[i]);
        w[i].port = shared.port, w[i].count = 1000;
        REQUIRE(pthread_create(&w[i].thread, NULL, count_up, &w[i]) == 0);
    }
    for (i = 0; i < 6; i++) {
        (void)pthread_join(w[i].thread, NULL);
        CHECK_EQ(w[i].wins, 1000);
    }
    says(c, "GET sum", "$5\r\n12000\r\n");
}

static void *race_for_locks(void *argument) {
    worker *w = argument;
    client *c = client_open(w->port);
    int i;
    for (i = 0; i < w->count; i++) putf(c, "SET lock:%d %d NX", i, w->index);
    for (i = 0; i < w->count; i++)
        if (*reply(c) == '+') __atomic_fetch_add(&w->wins, 1, __ATOMIC_RELAXED);
    return NULL;
}

DB_TEST(set_nx_from_several_connections_has_exactly_one_winner) {
    client *c = shared_client();
    worker w[6];
    int i, wins = 0, owned[6] = {0};
    for (i = 0; i < 6; i++) {
        memset(&w[i], 0, sizeof w[i]);
        w[i].port = shared.port, w[i].index = i, w[i].count = 500;
        REQUIRE(pthread_create(&w[i].thread, NULL, race_for_locks, &w[i]) == 0);
    }
    for (i = 0; i < 6; i++) (void)pthread_join(w[i].thread, NULL), wins += w[i].wins;
    CHECK_EQ(wins, 500);
    for (i = 0; i < 500; i++) putf(c, "GET lock:%d", i);
    for (i = 0; i < 500; i++) {
        const char *r = reply(c);
        if (r[0] == '$' && r[1] == '1') owned[(r[4] - '0') % 6]++;
    }
    for (i = 0; i < 6; i++) CHECK_EQ(owned[i], w[i].wins); /* the client that was told so is the owner */
}

/* ===================================================================================================================
 * TIME TO LIVE: expiry, and what it does to other commands
 * ================================================================================================================ */

static bool scan_finds(client *c, const char *key) {
    char line[100], cursor[32] = "0";
    leaf l[3000];
    int steps = 0;
    do {
        size_t n, i;
        (void)snprintf(line, sizeof line, "SCAN %s COUNT 1000", cursor);
        put_line(c, line);
        n = reply_leaves(c, l, 3000);
        if (n == 0 || l[0].n >= sizeof cursor) return false;
        for (i = 1; i < n; i++)
            if (l[i].n == strlen(key) && memcmp(l[i].p, key, l[i].n) == 0) return true;
        memcpy(cursor, l[0].p, l[0].n);
        cursor[l[0].n] = 0;
    } while (strcmp(cursor, "0") != 0 && ++steps < 1000);
    return false;
}

DB_TEST(expired_keys_vanish_for_every_command_and_for_good) {
    server *s = server_start(data_dir(), "--cores 2");
    client *c;
    uint64_t begin;
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    begin = clock_ms();
    says(c, "SET short v PX 400", "+OK\r\n");
    says(c, "SET count 5 PX 400", "+OK\r\n");
    says(c, "SET lock v PX 400", "+OK\r\n");
    says(c, "VADD vs VALUES 2 1 0 e", ":1\r\n");
    says(c, "SET long v EX 1000", "+OK\r\n");
    says(c, "SET middle v EX 2", "+OK\r\n");
    says(c, "SET lasting v EX 1", "+OK\r\n");
    says(c, "SET lasting w", "+OK\r\n");
    says(c, "SET shortened v EX 1000", "+OK\r\n");
    says(c, "EXPIRE vs 1", ":1\r\n");
    if (clock_ms() - begin < 300) {
        says(c, "GET short", "$1\r\nv\r\n");
        CHECK(scan_finds(c, "short"));
    }
    sleep_ms(450);
    says(c, "GET short", "$-1\r\n");
    says(c, "EXISTS short", ":0\r\n");
    says(c, "TTL short", ":-2\r\n");
    says(c, "TYPE short", "+none\r\n");
    says(c, "DEL short", ":0\r\n");
    CHECK(!scan_finds(c, "short"));
    says(c, "INCR count", ":1\r\n"); /* from nothing, not from 5 */
    says(c, "TTL count", ":-1\r\n");
    says(c, "SET lock w NX", "+OK\r\n");
    says(c, "EXPIRE shortened 1", ":1\r\n");
    begin = clock_ms();
    (void)server_signal(s, SIGKILL);
    s = server_start(data_dir(), "--cores 2");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "GET short", "$-1\r\n");
    says(c, "GET count", "$1\r\n1\r\n");
    says(c, "GET lock", "$1\r\nw\r\n");
    says(c, "GET lasting", "$1\r\nw\r\n");
    i = (int)number(c, "TTL long");
    CHECK(i > 980 && i <= 1000);
    while (clock_ms() - begin < 2100) sleep_ms(20);
    says(c, "EXISTS middle shortened vs", ":0\r\n");
    says(c, "VCARD vs", ":0\r\n");
    says(c, "VADD vs VALUES 3 1 0 0 e", ":1\r\n"); /* a new set, of another dimension */
    CHECK(info_reaches(c, "used_memory_vectors", true, 1));
    says(c, "MGET long lasting", "*2\r\n$1\r\nv\r\n$1\r\nw\r\n");
}

DB_TEST(a_vector_set_that_expired_before_a_checkpoint_stays_expired_after_it) {
    server *s = server_start(data_dir(), "--cores 1");
    client *c;
    int i, risen = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < 5000; i++) putf(c, "SET filler:%d v EX 1000", i); /* so that the sweep is not there at once */
    for (i = 0; i < 5000; i++) next_is(c, "+OK\r\n");
    for (i = 0; i < 200; i++) putf(c, "VADD vs:%d VALUES 2 1 0 e", i), putf(c, "SET s:%d v", i);
    for (i = 0; i < 400; i++) (void)reply(c);
    for (i = 0; i < 200; i++) putf(c, "PEXPIRE vs:%d %d", i, 300 + i), putf(c, "PEXPIRE s:%d %d", i, 300 + i);
    for (i = 0; i < 400; i++) CHECK_EQ(atoi(reply(c) + 1), 1);
    sleep_ms(400); /* some have just gone, others go while the checkpoint is written */
    says(c, "SAVE", "+OK\r\n");
    (void)server_signal(s, SIGKILL);
    sleep_ms(150);
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < 200; i++) {
        putf(c, "EXISTS vs:%d s:%d", i, i);
        risen += atoi(reply(c) + 1);
    }
    CHECK_EQ(risen, 0);
}

/* ===================================================================================================================
 * SCAN: every key that stays is found
 * ================================================================================================================ */

DB_TEST(scan_returns_every_key_that_stays_while_others_come_and_go) {
    client *c = shared_client(), *other = client_open(shared.port);
    enum { STAY = 2000 };
    static unsigned char seen[STAY];
    static leaf l[2000];
    uint64_t random = test_seed;
    char cursor[32] = "0", line[64];
    int i, steps = 0, missing = 0, go = 0;
    memset(seen, 0, sizeof seen);
    for (i = 0; i < STAY; i++) {
        putf(other, "SET stay:%d v", i);
        putf(other, "SET go:%d v", go++);
    }
    for (i = 0; i < 2 * STAY; i++) CHECK(*reply(other) == '+');
    do {
        size_t n, k;
        (void)snprintf(line, sizeof line, "SCAN %s COUNT 20", cursor);
        put_line(c, line);
        n = reply_leaves(c, l, 2000);
        REQUIRE(n > 0 && l[0].n < sizeof cursor && ++steps < 20000);
        for (k = 1; k < n; k++)
            if (l[k].n > 5 && memcmp(l[k].p, "stay:", 5) == 0) seen[atoi(l[k].p + 5) % STAY]++;
        memcpy(cursor, l[0].p, l[0].n);
        cursor[l[0].n] = 0;
        for (k = 0; k < 10; k++) putf(other, "DEL go:%d", (int)(test_random(&random) % (uint64_t)go));
        for (k = 0; k < 4; k++) putf(other, "SET go:%d v", go++);
        for (k = 0; k < 4; k++)
            putf(other, "SET stay:%d again", (int)(test_random(&random) % STAY)); /* overwritten is not moved */
        for (k = 0; k < 18; k++) CHECK(*reply(other) != '-');
    } while (strcmp(cursor, "0") != 0);
    for (i = 0; i < STAY; i++) missing += seen[i] == 0;
    CHECK_EQ(missing, 0);
}

DB_TEST(scan_has_match_count_and_type_and_refuses_nonsense) {
    client *c = shared_client();
    static const struct { const char *pattern; int hits;
    } patterns[] = {
        {"*", 9},     {"h?llo", 3},   {"h*llo", 4},  {"h[ae]llo", 2}, {"h[^e]llo", 2}, {"h[a-b]llo", 2}, {"hllo", 1},
        {"*llo*", 5}, {"nothing", 0}, {"\\\\**", 1}, {"*\\\\**", 1},  {"h*l*o", 4},    {"v", 1},
    };
    size_t i;
    leaf l[100];
    says(c, "MSET hello 1 hallo 1 hbllo 1 hllo 1 xlloy 1 *star 1 other 1 v2 1", "+OK\r\n");
    says(c, "VADD v VALUES 1 1 e", ":1\r\n");
    for (i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        char cursor[32] = "0";
        int hits = 0;
        do {
            size_t n;
            putf(c, "SCAN %s MATCH \"%s\" COUNT 100", cursor, patterns[i].pattern);
            n = reply_leaves(c, l, 100);
            REQUIRE(n > 0 && l[0].n < sizeof cursor);
            memcpy(cursor, l[0].p, l[0].n);
            cursor[l[0].n] = 0;
            hits += (int)n - 1;
        } while (strcmp(cursor, "0") != 0);
        if (hits != patterns[i].hits)
            complain(__LINE__, "MATCH %s found %d keys, not %d", patterns[i].pattern, hits, patterns[i].hits);
    }
    {
        static const char *const types[] = {"string", "vectorset", "hash"};
        static const int want[] = {8, 1, 0};
        for (i = 0; i < 3; i++) {
            char cursor[32] = "0";
            int hits = 0;
            do {
                size_t n;
                putf(c, "SCAN %s TYPE %s", cursor, types[i]);
                n = reply_leaves(c, l, 100);
                REQUIRE(n > 0 && l[0].n < sizeof cursor);
                memcpy(cursor, l[0].p, l[0].n);
                cursor[l[0].n] = 0;
                hits += (int)n - 1;
            } while (strcmp(cursor, "0") != 0);
            CHECK_EQ(hits, want[i]);
        }
    }
    says(c, "SCAN abc", "-ERR invalid cursor\r\n");
    says(c, "SCAN -1", "-ERR invalid cursor\r\n");
    says(c, "SCAN 0 COUNT 0", "-ERR syntax error\r\n");
    says(c, "SCAN 0 COUNT x", "-ERR value is not an integer or out of range\r\n");
    says(c, "SCAN 0 MATCH", "-ERR syntax error\r\n");
    says(c, "SCAN 0 NONSENSE 1", "-ERR syntax error\r\n");
    begins(c, "SCAN 0 COUNT 1000000000000", "*2\r\n");
}

/* ===================================================================================================================
 * LARGE VALUES: fetched in pieces, while others are served
 * ================================================================================================================ */

static void fill_value(char *value, size_t n, uint64_t seed) {
    uint64_t x = 0;
    size_t i;
    for (i = 0; i < n; i++, x >>= 8) {
        if (i % 8 == 0) x = test_random(&seed);
        value[i] = (char)x;
    }
}

static void check_value(int line, client *c, size_t n, uint64_t seed, char *room) {
    char head[32];
    size_t h = (size_t)sprintf(head, "$%zu\r\n", n);
    fill_value(room, n, seed);
    (void)reply(c);
    if (c->reply.len != h + n + 2 || memcmp(c->reply.p, head, h) != 0 || memcmp(c->reply.p + h, room, n) != 0)
        complain(line, "a value of %zu bytes came back as %zu bytes \"%.40s\"", n, c->reply.len, c->reply.p);
}

DB_TEST(values_of_every_size_come_back_and_survive_a_kill) {
    static const size_t sizes[] = {1,      4056,           4057,    65535,         65536,
                                   262144, (1 << 20) - 65, 1 << 20, (1 << 20) + 1, 8 << 20};
    server *s = server_start(data_dir(), "--cores 2");
    char *room = malloc(8 << 20), key[32];
    client *c;
    int i, round, n = (int)(sizeof sizes / sizeof *sizes);
    REQUIRE(s != NULL && room != NULL);
    c = client_open(s->port);
    for (i = 0; i < n; i++) {
        fill_value(room, sizes[i], (uint64_t)i);
        put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "size:%d", i)),
            put_arg(c, room, sizes[i]);
    }
    for (i = 0; i < n; i++) next_is(c, "+OK\r\n");
    for (round = 0; round < 2; round++) {
        for (i = 0; i < n; i++) putf(c, "GET size:%d", i);
        for (i = 0; i < n; i++) check_value(__LINE__, c, sizes[i], (uint64_t)i, room);
        if (round == 1) break;
        (void)server_signal(s, SIGKILL);
        s = server_start(data_dir(), "--cores 2");
        REQUIRE(s != NULL);
        c = client_open(s->port);
    }
    free(room);
}

DB_TEST(a_pipeline_of_large_replies_comes_whole_to_a_client_that_reads_it) {
    client *c = shared_client();
    size_t n = 1 << 20;
    char *room = malloc(n), key[16];
    int i, k, twice;
    REQUIRE(room != NULL);
    fill_value(room, n, 7);
    for (k = 0; k < 4; k++) {
        put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "big%d", k)), put_arg(c, room, n);
        next_is(c, "+OK\r\n");
    }
    for (twice = 0; twice < 2; twice++) { /* from either core, of keys on either */
        c = client_open(shared.port);
        for (i = 0; i < 100; i++) putf(c, "GET big%d", i % 4);
        client_flush(c);
        sleep_ms(50); /* it sends all its commands before it looks at replies, as pipelining clients do */
        for (i = 0; i < 100 && test_failures_here == 0; i++) check_value(__LINE__, c, n, 7, room);
        for (i = 0; i < 5; i++) put_line(c, "MGET big0 big1 big2 big3");
        for (i = 0; i < 5 && test_failures_here == 0; i++) CHECK_EQ((reply(c), c->reply.len), 4 + 4 * (n + 12));
    }
    free(room);
}

/* ===================================================================================================================
 * RESTARTS: after orderly ends and kills, in the middle of writes
 * ================================================================================================================ */

DB_TEST(a_restart_keeps_everything_after_shutdown_sigterm_sigint_and_sigkill) {
    static const char *const how[] = {"SHUTDOWN", "SHUTDOWN NOSAVE", "SHUTDOWN SAVE", "TERM", "INT", "KILL", "none"};
    client *c;
    int i, round;
    for (round = 0; round < 7; round++) {
        server *s = server_start(data_dir(), "--cores 2");
        REQUIRE(s != NULL);
        c = client_open(s->port);
        for (i = 0; i < round; i++) {
            char line[64], want[64];
            (void)snprintf(line, sizeof line, "MGET a%d b%d c%d", i, i, i);
            (void)snprintf(want, sizeof want, "*3\r\n$1\r\n%d\r\n$2\r\nb%d\r\n$-1\r\n", i, i);
            says(c, line, want);
            (void)snprintf(line, sizeof line, "VISMEMBER v e%d", i);
            says(c, line, ":1\r\n");
        }
        CHECK_EQ(number(c, "DBSIZE"), round * 2 + (round > 0) * 2);
        if (round > 0) CHECK_EQ(number(c, "VCARD v"), round);
        if (strcmp(how[round], "none") == 0) break;
        putf(c, "SET a%d %d", round, round), putf(c, "SET b%d b%d", round, round), putf(c, "SET c%d x", round),
            putf(c, "DEL c%d", round);
        putf(c, "VADD v VALUES 3 1 2 %d e%d", round, round), putf(c, "INCR runs");
        for (i = 0; i < 6; i++) CHECK(*reply(c) != '-');
        says(c, "VADD v VALUES 3 1 2 3 gone", ":1\r\n");
        says(c, "VREM v gone", ":1\r\n");
        if (strcmp(how[round], "KILL") == 0) CHECK(WIFSIGNALED(server_signal(s, SIGKILL)));
        else {
            int status;
            if (strncmp(how[round], "SHUTDOWN", 8) == 0) {
                put_line(c, how[round]);
                CHECK(strcmp(reply(c), "(closed)") == 0);
                status = server_wait(s);
            } else status = server_signal(s, how[round][0] == 'T' ? SIGTERM : SIGINT);
            CHECK_EQ(status, 0);
        }
    }
    says(c, "GET runs", "$1\r\n6\r\n");
}

static void *write_until_stopped(void *argument) {
    worker *w = argument;
    client *c = client_open(w->port);
    bool over = false;
    int sent = 0;
    while (!over && sent < 200000) {
        int i;
        for (i = 0; i < 100; i++) putf(c, "SET w:%d:%d %d", w->index, sent, sent), sent++;
        for (i = 0; i < 100 && !over; i++) {
            if (*reply(c) == '+') (void)__atomic_add_fetch(&w->count, 1, __ATOMIC_RELAXED);
            else over = true;
        }
    }
    return NULL;
}

DB_TEST(a_shutdown_in_the_middle_of_writes_keeps_all_that_were_acknowledged) {
    int round;
    worker w[3];
    memset(w, 0, sizeof w);
    for (round = 0; round < 2; round++) {
        server *s = server_start(data_dir(), "--cores 2");
        client *c;
        int i, k, lost = 0;
        REQUIRE(s != NULL);
        c = client_open(s->port);
        if (round == 0) {
            for (i = 0; i < 3; i++) {
                w[i].port = s->port, w[i].index = i;
                REQUIRE(pthread_create(&w[i].thread, NULL, write_until_stopped, &w[i]) == 0);
            }
            for (i = 0; i < 3; i++)
                for (k = 0; k < 1000 && __atomic_load_n(&w[i].count, __ATOMIC_RELAXED) < 300; k++) sleep_ms(10);
            put_line(c, "SHUTDOWN");
            CHECK(strcmp(reply(c), "(closed)") == 0);
            CHECK_EQ(server_wait(s), 0);
            for (i = 0; i < 3; i++) (void)pthread_join(w[i].thread, NULL);
            continue;
        }
        for (i = 0; i < 3; i++) {
            CHECK(w[i].count > 0);
            for (k = 0; k < w[i].count; k++) putf(c, "GET w:%d:%d", i, k);
            for (k = 0; k < w[i].count; k++) {
                char want[40], digits[16];
                int n = sprintf(digits, "%d", k);
                (void)sprintf(want, "$%d\r\n%s\r\n", n, digits);
                if (strcmp(reply(c), want) != 0) lost++;
            }
        }
        CHECK_EQ(lost, 0);
    }
}

/* ===================================================================================================================
 * FILES: what a checkpoint makes of the log and the directory
 * ================================================================================================================ */

/* The first file below `dir` whose path has `part` and, if `holds` is given, whose bytes hold it; at what offset. */
static bool find_file(const char *dir, const char *part, const char *holds, char *path, long *offset) {
    DIR *d = opendir(dir);
    struct dirent *e;
    bool found = false;
    if (d == NULL) return false;
    while (!found && (e = readdir(d)) != NULL) {
        char below[PATH_BYTES];
        struct stat st;
        if (e->d_name[0] == '.' || snprintf(below, sizeof below, "%s/%s", dir, e->d_name) >= (int)sizeof below ||
            stat(below, &st) != 0)
            continue;
        if (S_ISDIR(st.st_mode)) found = find_file(below, part, holds, path, offset);
        else if (strstr(below, part) != NULL) {
            size_t n = 0;
            char *text = holds != NULL ? file_text(below, &n) : NULL;
            const char *at = text != NULL ? memmem(text, n, holds, strlen(holds)) : NULL;
            found = holds == NULL || at != NULL;
            if (found) (void)memcpy(path, below, sizeof below);
            if (found && offset != NULL) *offset = at != NULL ? (long)(at - text) : 0;
            free(text);
        }
    }
    (void)closedir(d);
    return found;
}

static void flip_byte(const char *path, long offset, int bits) {
    int fd = open(path, O_RDWR);
    unsigned char byte = 0;
    if (fd < 0 || pread(fd, &byte, 1, offset) != 1) complain(__LINE__, "cannot damage %s", path);
    byte = (unsigned char)(byte ^ bits);
    if (pwrite(fd, &byte, 1, offset) != 1) complain(__LINE__, "cannot damage %s", path);
    (void)close(fd);
}

static long file_bytes(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 ? (long)st.st_size : -1;
}

/* The path as a message names it: relative to the data directory. */
static const char *below(const char *path, const char *dir) { return path + strlen(dir); }

DB_TEST(after_a_checkpoint_the_log_behind_it_goes_and_a_restart_needs_only_what_is_left) {
    server *s = server_start(data_dir(), "--cores 1");
    char path[PATH_BYTES], first[PATH_BYTES];
    client *c;
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "VADD v VALUES 2 0 1 e0", ":1\r\n");
    for (i = 0; i < 500; i++) putf(c, "SET k%d %d", i, i), putf(c, "VADD v VALUES 2 %d 1 e%d", i, i);
    for (i = 0; i < 1000; i++) CHECK(*reply(c) != '-');
    CHECK_EQ(server_signal(s, SIGTERM), 0); /* a start begins a new segment, so the first is now behind */
    REQUIRE(find_file(s->dir, "00000001.wal", NULL, first, NULL));
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    CHECK_EQ(info(c, "records_replayed_at_start"), 1002); /* the set itself is one */
    says(c, "SET k0 again", "+OK\r\n");
    says(c, "SAVE", "+OK\r\n");
    says(c, "SAVE", "+OK\r\n"); /* nothing to do */
    CHECK(find_file(s->dir, "checkpoint-", NULL, path, NULL));
    CHECK(access(first, F_OK) != 0);
    says(c, "SET after save", "+OK\r\n");
    says(c, "VREM v e7", ":1\r\n");
    (void)server_signal(s, SIGKILL);
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    CHECK_EQ(info(c, "records_replayed_at_start"), 2);
    says(c, "MGET k0 k499 after", "*3\r\n$5\r\nagain\r\n$3\r\n499\r\n$4\r\nsave\r\n");
    CHECK_EQ(number(c, "VCARD v"), 499);
    says(c, "VISMEMBER v e7", ":0\r\n");
    says(c, "DBSIZE", ":502\r\n");
    says(c, "FLUSHALL", "+OK\r\n");
    says(c, "SAVE", "+OK\r\n");
    (void)server_signal(s, SIGKILL);
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "DBSIZE", ":0\r\n");
    says(c, "VCARD v", ":0\r\n");
}

/* ===================================================================================================================
 * VECTOR SETS: VADD to VSIM, restarts, the memory of indexes
 * ================================================================================================================ */

enum { COSINE, L2, IP };
static const char *const metric_names[] = {"COSINE", "L2", "IP"};

static void random_vector(uint64_t *random, float *v, int dim) {
    int i;
    for (i = 0; i < dim; i++) v[i] = (float)((double)(test_random(random) >> 40) / 8388608.0 - 1.0);
}

static double true_score(int metric, const float *a, const float *b, int dim) {
    double dot = 0, aa = 0, bb = 0, square = 0;
    int i;
    for (i = 0; i < dim; i++) {
        double x = a[i], y = b[i];
        dot += x * y, aa += x * x, bb += y * y, square += (x - y) * (x - y);
    }
    return metric == IP ? dot : metric == L2 ? 1 / (1 + square) : (1 + dot / sqrt(aa * bb)) / 2;
}

static void put_vadd(client *c, const char *key, const char *element, const float *v, int dim, int metric) {
    put_array(c, metric < 0 ? 5 : 7);
    put_text(c, "VADD"), put_text(c, key), put_text(c, "FP32"), put_arg(c, v, (size_t)dim * 4), put_text(c, element);
    if (metric >= 0) put_text(c, "XDISTANCE_METRIC"), put_text(c, metric_names[metric]);
}

static void put_vsim(client *c, const char *key, const float *v, int dim, int count, bool truth) {
    char digits[16];
    (void)sprintf(digits, "%d", count);
    put_array(c, truth ? 8 : 7);
    put_text(c, "VSIM"), put_text(c, key), put_text(c, "FP32"), put_arg(c, v, (size_t)dim * 4),
        put_text(c, "WITHSCORES"), put_text(c, "COUNT"), put_text(c, digits);
    if (truth) put_text(c, "TRUTH");
}

typedef struct scored {
    int id;
    double score;
} scored;

static int compare_scored(const void *a, const void *b) {
    const scored *x = a, *y = b;
    return x->score != y->score ? (x->score > y->score ? -1 : 1) : x->id - y->id;
}

/* Elements "e<i>" of a reply with scores: their ids. Checks each score, and that they fall. */
static int check_scores(int line, client *c, int metric, const float *query, const float *all, int n, int dim, int *ids,
                        int max) {
    static leaf l[4100];
    size_t got = reply_leaves(c, l, 4100), i;
    double last = INFINITY;
    if (got == 1 && l[0].kind == '-') {
        complain(line, "VSIM answered -%.*s", (int)(l[0].n < 100 ? l[0].n : 100), l[0].p);
        return 0;
    }
    for (i = 0; i + 1 < got && (int)(i / 2) < max; i += 2) {
        int id = atoi(l[i].p + 1);
        double score = atof(l[i + 1].p), want;
        if (l[i].p[0] != 'e' || id < 0 || id >= n) {
            complain(line, "VSIM found the element \"%.*s\"", (int)l[i].n, l[i].p);
            return (int)(i / 2);
        }
        want = true_score(metric, query, all + (size_t)id * (size_t)dim, dim);
        if (fabs(score - want) > 1e-4 * (1 + fabs(want)))
            complain(line, "the %s score of e%d is %g, not %g", metric_names[metric], id, score, want);
        if (score > last + 1e-9) complain(line, "the score %g stands behind %g", score, last);
        last = score;
        ids[i / 2] = id;
    }
    return (int)(i / 2);
}

DB_TEST(searches_score_by_metric_and_truth_equals_brute_force) {
    enum { N = 400, DIM = 24, K = 20, QUERIES = 10 };
    static float all[N * DIM], query[DIM];
    client *c = shared_client();
    uint64_t random = test_seed;
    int metric, i, q, found = 0, wanted = 0;
    for (metric = 0; metric < 3; metric++) {
        char name[32];
        for (i = 0; i < N; i++) {
            random_vector(&random, all + i * DIM, DIM);
            (void)sprintf(name, "e%d", i);
            put_vadd(c, metric_names[metric], name, all + i * DIM, DIM,
                     metric == COSINE ? -1 : metric); /* COSINE is the default */
        }
        for (i = 0; i < N; i++) next_is(c, ":1\r\n");
        for (q = 0; q < QUERIES; q++) {
            scored truth[N];
            int ids[N], n, j;
            random_vector(&random, query, DIM);
            for (i = 0; i < N; i++) truth[i].id = i, truth[i].score = true_score(metric, query, all + i * DIM, DIM);
            qsort(truth, N, sizeof *truth, compare_scored);
            put_vsim(c, metric_names[metric], query, DIM, K, true);
            n = check_scores(__LINE__, c, metric, query, all, N, DIM, ids, N);
            CHECK_EQ(n, K);
            for (i = 0; i < n; i++) /* equal but for scores that floats cannot tell apart */
                if (ids[i] != truth[i].id &&
                    fabs(truth[i].score - true_score(metric, query, all + ids[i] * DIM, DIM)) > 1e-5)
                    complain(__LINE__, "%s: TRUTH has e%d at place %d, not e%d", metric_names[metric], ids[i], i,
                             truth[i].id);
            put_vsim(c, metric_names[metric], query, DIM, K, false);
            n = check_scores(__LINE__, c, metric, query, all, N, DIM, ids, N);
            CHECK_EQ(n, K);
            for (i = 0; i < n; i++)
                for (j = 0; j < K; j++) found += truth[j].id == ids[i];
            wanted += K;
        }
    }
    CHECK(found >= wanted * 95 / 100);
}

DB_TEST(scores_have_exact_values_for_plain_vectors) {
    client *c = shared_client();
    says(c, "VADD cos VALUES 2 2 0 same", ":1\r\n");
    says(c, "VADD cos VALUES 2 0 5 right", ":1\r\n");
    says(c, "VADD cos VALUES 2 -1 0 opposite", ":1\r\n");
    says(c, "VSIM cos VALUES 2 7 0 WITHSCORES",
         "*6\r\n$4\r\nsame\r\n$1\r\n1\r\n$5\r\nright\r\n$3\r\n0.5\r\n$8\r\nopposite\r\n$1\r\n0\r\n");
    says(c, "VADD l2 VALUES 2 0 0 zero XDISTANCE_METRIC L2", ":1\r\n");
    says(c, "VADD l2 VALUES 2 1 0 one XDISTANCE_METRIC L2", ":1\r\n");
    says(c, "VADD l2 VALUES 2 0 3 three", ":1\r\n"); /* a set keeps its metric */
    says(c, "VSIM l2 VALUES 2 0 0 WITHSCORES",
         "*6\r\n$4\r\nzero\r\n$1\r\n1\r\n$3\r\none\r\n$3\r\n0.5\r\n$5\r\nthree\r\n$3\r\n0.1\r\n");
    says(c, "VADD ip VALUES 2 1 2 a XDISTANCE_METRIC IP", ":1\r\n");
    says(c, "VADD ip VALUES 2 -1 0 b", ":1\r\n");
    says(c, "VSIM ip VALUES 2 3 4 WITHSCORES", "*4\r\n$1\r\na\r\n$2\r\n11\r\n$1\r\nb\r\n$2\r\n-3\r\n");
    says(c, "VSIM ip ELE a WITHSCORES COUNT 1", "*2\r\n$1\r\na\r\n$1\r\n5\r\n");
    says(c, "VSIM cos ELE opposite COUNT 2", "*2\r\n$8\r\nopposite\r\n$5\r\nright\r\n");
    says(c, "VDIM cos", ":2\r\n");
    says(c, "VCARD l2", ":3\r\n");
    says(c, "VEMB l2 three", "*2\r\n$1\r\n0\r\n$1\r\n3\r\n");
    says(c, "VEMB cos right", "*2\r\n$1\r\n0\r\n$1\r\n5\r\n");
}

DB_TEST(vector_commands_refuse_what_is_wrong) {
    static const float bad[][2] = {{NAN, 1}, {1, INFINITY}, {-INFINITY, 0}};
    client *c = shared_client();
    float v[2] = {1, 2};
    size_t i;
    says(c, "VADD v VALUES 2 1 2 a", ":1\r\n");
    says(c, "VADD v VALUES 3 1 2 3 b", "-ERR Vector dimension mismatch - got 3 but set has 2\r\n");
    says(c, "VSIM v VALUES 3 1 2 3", "-ERR Vector dimension mismatch - got 3 but set has 2\r\n");
    begins(c, "VADD v VALUES 2 1 2 b XDISTANCE_METRIC L2", "-ERR ");
    begins(c, "VADD v VALUES 2 1 2 b XDISTANCE_METRIC NONSENSE", "-ERR ");
    begins(c, "VADD v VALUES 2 1 nan b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES 2 1 inf b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES 2 1 1e39 b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES 2 1 x b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES 2 1 \"\" b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES 0 a b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES -1 a b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES 1000000 1 2 b", "-ERR invalid vector specification");
    begins(c, "VADD v VALUES x 1 2 b", "-ERR invalid vector specification");
    begins(c, "VADD v FP32 abc b", "-ERR invalid vector specification");
    begins(c, "VADD v FP32 \"\" b", "-ERR invalid vector specification");
    begins(c, "VADD v NONSENSE 1 2 b", "-ERR ");
    begins(c, "VADD v VALUES 2 1 2", "-ERR wrong number of arguments for ");
    begins(c, "VADD v VALUES 2 1 2 b NONSENSE", "-ERR ");
    for (i = 0; i < 3; i++) {
        put_vadd(c, "v", "b", bad[i], 2, -1);
        CHECK(strncmp(reply(c), "-ERR invalid vector specification", 33) == 0);
        put_vsim(c, "v", bad[i], 2, 1, false);
        CHECK(strncmp(reply(c), "-ERR invalid vector specification", 33) == 0);
    }
    begins(c, "VSIM v VALUES 2 1 2 COUNT 0", "-ERR ");
    begins(c, "VSIM v VALUES 2 1 2 COUNT x", "-ERR ");
    begins(c, "VSIM v VALUES 2 1 2 EF 0", "-ERR ");
    begins(c, "VSIM v VALUES 2 1 2 EF 100000000", "-ERR ");
    begins(c, "VSIM v VALUES 2 1 2 COUNT", "-ERR ");
    begins(c, "VSIM v VALUES 2 1 2 NONSENSE", "-ERR ");
    says(c, "VSIM v ELE nothing", "-ERR element not found in set\r\n");
    says(c, "VSIM nothing VALUES 2 1 2", "*0\r\n");
    says(c, "VSIM nothing ELE e", "*0\r\n");
    says(c, "VDIM nothing", "-ERR key does not exist\r\n");
    says(c, "VCARD nothing", ":0\r\n");
    says(c, "VREM nothing e", ":0\r\n");
    says(c, "VEMB nothing e", "$-1\r\n");
    says(c, "VISMEMBER nothing e", ":0\r\n");
    says(c, "EXISTS nothing", ":0\r\n");
    says(c, "VCARD v", ":1\r\n");
    says(c, "VISMEMBER v b", ":0\r\n");
    /* a refused addition does not make a set either */
    begins(c, "VADD fresh VALUES 2 1 nan b", "-ERR ");
    says(c, "EXISTS fresh", ":0\r\n");
    put_vadd(c, "v", "b", v, 2, -1);
    next_is(c, ":1\r\n");
    says(c, "VSIM v VALUES 2 1 2 COUNT 1000000 EF 1000000", "*2\r\n$1\r\na\r\n$1\r\nb\r\n");
}

DB_TEST(a_vector_of_zeros_does_no_harm) {
    client *c = shared_client();
    const char *r = ask(c, "VADD v VALUES 2 0 0 zero");
    bool added = *r == ':';
    CHECK(added || *r == '-');
    if (!added) CHECK_EQ(number(c, "EXISTS v"), 0); /* a refused addition leaves no set behind */
    says(c, "VADD w VALUES 2 1 0 e", ":1\r\n");
    r = ask(c, "VSIM w VALUES 2 0 0 WITHSCORES");
    CHECK(strstr(r, "nan") == NULL && (*r == '*' || *r == '-'));
}

DB_TEST(elements_are_replaced_and_removed_ones_are_never_found) {
    enum { N = 300, DIM = 8 };
    static float all[N * DIM], query[DIM];
    client *c = shared_client();
    uint64_t random = test_seed + 5;
    int ids[N], i, q, n;
    char name[32];
    for (i = 0; i < 2 * N; i++) { /* each twice: the second replaces the first */
        random_vector(&random, all + i % N * DIM, DIM);
        (void)sprintf(name, "e%d", i % N);
        put_vadd(c, "v", name, all + i % N * DIM, DIM, -1);
    }
    for (i = 0; i < 2 * N; i++) check_reply(__LINE__, c, "VADD", i < N ? ":1\r\n" : ":0\r\n", 4);
    says(c, "VCARD v", ":300\r\n");
    for (i = 0; i < N; i += 3) putf(c, "VREM v e%d", i);
    for (i = 0; i < N; i += 3) next_is(c, ":1\r\n");
    says(c, "VREM v e0", ":0\r\n");
    says(c, "VCARD v", ":200\r\n");
    for (q = 0; q < 10; q++) {
        int truth;
        random_vector(&random, query, DIM);
        for (truth = 0; truth < 2; truth++) {
            put_vsim(c, "v", query, DIM, N, truth != 0);
            n = check_scores(__LINE__, c, COSINE, query, all, N, DIM, ids,
                             N); /* scores are those of the second vectors */
            if (truth != 0) CHECK_EQ(n, 200);
            else CHECK(n >= 190 && n <= 200);
            for (i = 0; i < n; i++)
                if (ids[i] % 3 == 0) complain(__LINE__, "the removed e%d was found", ids[i]);
        }
    }
    for (i = 0; i < N; i++) putf(c, "VISMEMBER v e%d", i);
    for (i = 0; i < N; i++) check_reply(__LINE__, c, "VISMEMBER", i % 3 == 0 ? ":0\r\n" : ":1\r\n", 4);
    says(c, "VEMB v e3", "$-1\r\n");
}

DB_TEST(an_element_removed_and_added_again_in_one_pipeline_is_there) {
    server *s = server_start(data_dir(), "--cores 1"); /* all in one log, one behind the other */
    client *c;
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "VADD v VALUES 1 1 e", ":1\r\n");
    for (i = 0; i < 50; i++) {
        putf(c, "SET x %d", i), putf(c, "VREM v e"), putf(c, "VADD v VALUES 1 %d e", i + 2), putf(c, "VISMEMBER v e");
        next_is(c, "+OK\r\n"), next_is(c, ":1\r\n"), next_is(c, ":1\r\n"), next_is(c, ":1\r\n");
    }
}

DB_TEST(a_client_that_has_sent_all_still_gets_its_replies) {
    client *c = shared_client();
    putf(c, "SET half 41"), putf(c, "INCR half"), putf(c, "GET half");
    client_flush(c);
    CHECK(shutdown(c->fd, SHUT_WR) == 0);
    next_is(c, "+OK\r\n"), next_is(c, ":42\r\n"), next_is(c, "$2\r\n42\r\n");
}

/* A restart replays what happened, even if a key expires after a change is logged and before it is applied. */
DB_TEST(a_restart_gives_the_same_values_where_keys_expire_under_load) {
    enum { KEYS = 600, ROUNDS = 12 };
    server *s = server_start(data_dir(), "--cores 1");
    static long long value[KEYS];
    client *c;
    int i, round, wrong = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < KEYS; i++) putf(c, "SET k%d 100 PX %d", i, 1 + i % 30);
    for (round = 0; round < ROUNDS; round++)
        for (i = 0; i < KEYS; i++) putf(c, "INCR k%d", i);
    for (i = 0; i < KEYS; i++) next_is(c, "+OK\r\n");
    for (round = 0; round < ROUNDS; round++)
        for (i = 0; i < KEYS; i++) value[i] = atoll(reply(c) + 1);
    (void)server_signal(s, SIGKILL);
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < KEYS; i++) putf(c, "GET k%d", i);
    for (i = 0; i < KEYS; i++) {
        const char *text = reply(c);
        if (text[0] == '$' && text[1] != '-') wrong += atoll(strchr(text, '\n') + 1) != value[i];
    }
    CHECK_EQ(wrong, 0);
}

DB_TEST(memory_comes_back_when_values_replace_vector_sets_in_interval_mode) {
    server *s = server_start(data_dir(), "--cores 1 --durability interval");
    client *c;
    long long before = 0;
    int i, round;
    char value[1001];
    REQUIRE(s != NULL);
    memset(value, 'v', 1000), value[1000] = 0;
    c = client_open(s->port);
    for (round = 0; round < 3; round++) {
        for (i = 0; i < 100; i++)
            putf(c, "DEL r%d", i), putf(c, "VADD r%d VALUES 1 1 e", i), putf(c, "SET r%d %s", i, value);
        for (i = 0; i < 300; i++) CHECK(*reply(c) != '-');
        if (round == 0) before = info(c, "used_memory");
    }
    CHECK(info_reaches(c, "used_memory", false, before + 8192)); /* what was dropped is freed step by step */
}

/* Large memory of an index is returned in pieces: all of it, also if the server ends meanwhile (which the sanitizers
 * check), and if new vectors arrive in between. */
DB_TEST(the_memory_of_a_large_index_goes_back_whole) {
    enum { DIM = 32768, VECTORS = SLOW ? 32 : 144 };
    server *s = server_start(data_dir(), "--cores 1 --memory 1G");
    float *v = calloc(DIM, sizeof *v);
    client *c;
    int i, round;
    REQUIRE(s != NULL && v != NULL);
    c = client_open(s->port);
    for (round = 0; round < 2; round++) {
        for (i = 0; i < VECTORS; i++) {
            char name[32];
            (void)sprintf(name, "e%d", i);
            v[i] = 1, v[i + 1] = 2;
            put_vadd(c, round == 0 ? "v" : "w", name, v, DIM, -1);
            v[i] = 0;
            if (i % 16 == 15) {
                int k;
                for (k = 0; k < 16; k++) next_is(c, ":1\r\n");
            }
        }
        CHECK(info(c, "used_memory_vectors") > (SLOW ? 1 : 18) << 20);
        if (round > 0) break;
        putf(c, "DEL v"), putf(c, "VADD small VALUES 1 1 e"), putf(c, "DEL small");
        next_is(c, ":1\r\n"), next_is(c, ":1\r\n"), next_is(c, ":1\r\n");
        CHECK(info_reaches(c, "used_memory_vectors", false, 0));
    }
    says(c, "DEL w", ":1\r\n");
    (void)server_signal(s, SIGTERM);
    free(v);
}

DB_TEST(a_vector_set_that_loses_its_last_element_is_gone) {
    client *c = shared_client();
    says(c, "VADD v VALUES 2 1 0 a", ":1\r\n");
    says(c, "VADD v VALUES 2 1 0 b", ":1\r\n");
    says(c, "VREM v a", ":1\r\n");
    says(c, "EXISTS v", ":1\r\n");
    says(c, "VREM v b", ":1\r\n");
    says(c, "EXISTS v", ":0\r\n");
    says(c, "TYPE v", "+none\r\n");
    says(c, "VCARD v", ":0\r\n");
    says(c, "VSIM v VALUES 2 1 0", "*0\r\n");
    says(c, "DEL v", ":0\r\n");
    says(c, "VADD v VALUES 3 1 0 0 a", ":1\r\n");
}

DB_TEST(a_set_deleted_and_made_anew_in_one_pipeline_has_only_the_new_elements) {
    client *c = shared_client();
    int i, round;
    for (round = 0; round < 20; round++) {
        int dim = 2 + round % 3;
        for (i = 0; i < 20; i++)
            putf(c, "VADD v VALUES %d 1 2%s%s e:%d:%d", dim, dim > 2 ? " 3" : "", dim > 3 ? " 4" : "", round, i);
        if (round % 3 == 0) putf(c, "DEL v");
        else if (round % 3 == 1) putf(c, "FLUSHALL");
        else putf(c, "SET v x"), putf(c, "DEL v");
        for (i = 0; i < 10; i++) putf(c, "VADD v VALUES 5 1 2 3 4 %d new:%d:%d", i, round, i);
        putf(c, "VCARD v"), putf(c, "VDIM v"), putf(c, "VSIM v VALUES 5 1 2 3 4 5 COUNT 100"), putf(c, "DEL v");
        for (i = 0; i < 20; i++) next_is(c, ":1\r\n");
        (void)reply(c);
        if (round % 3 == 2) (void)reply(c);
        for (i = 0; i < 10; i++) next_is(c, ":1\r\n");
        next_is(c, ":10\r\n");
        next_is(c, ":5\r\n");
        {
            leaf l[100];
            size_t n = reply_leaves(c, l, 100), k;
            CHECK_EQ(n, 10);
            for (k = 0; k < n; k++) CHECK(l[k].n > 4 && memcmp(l[k].p, "new:", 4) == 0);
        }
        next_is(c, ":1\r\n");
        if (test_failures_here > 0) return;
    }
    CHECK(info_reaches(c, "used_memory_vectors", false, 0)); /* the parts of dropped sets are freed */
}

static void *add_elements(void *argument) {
    worker *w = argument;
    client *c = client_open(w->port);
    int i;
    for (i = 0; i < w->count; i++) putf(c, "VADD v VALUES 4 %d %d 1 2 e:%d:%d", w->index, i, w->index, i);
    for (i = 0; i < w->count; i++)
        if (strcmp(reply(c), ":1\r\n") == 0) w->wins++;
    return NULL;
}

DB_TEST(a_set_that_several_connections_create_at_once_is_one_set) {
    client *c = shared_client();
    int round, i;
    for (round = 0; round < 5; round++) {
        worker w[4];
        for (i = 0; i < 4; i++) {
            memset(&w[i], 0, sizeof w[i]);
            w[i].port = shared.port, w[i].index = i, w[i].count = 50;
            REQUIRE(pthread_create(&w[i].thread, NULL, add_elements, &w[i]) == 0);
        }
        for (i = 0; i < 4; i++) {
            (void)pthread_join(w[i].thread, NULL);
            CHECK_EQ(w[i].wins, 50);
        }
        says(c, "VCARD v", ":200\r\n");
        says(c, "DEL v", ":1\r\n");
    }
}

DB_TEST(another_number_of_cores_keeps_every_key_time_to_live_and_vector) {
    static const char *const cores[] = {"--cores 2", "--cores 1", "--cores 3", "--cores 2"};
    enum { KEYS = 300, N = 200, DIM = 8 };
    static float all[N * DIM], query[DIM];
    uint64_t random = test_seed + 9;
    int step, i, first[N], ids[N], n, before = 0;
    char name[32];
    for (i = 0; i < N; i++) random_vector(&random, all + i * DIM, DIM);
    random_vector(&random, query, DIM);
    for (step = 0; step < 4; step++) {
        server *s = server_start(data_dir(), cores[step]);
        client *c;
        REQUIRE(s != NULL);
        c = client_open(s->port);
        if (step == 0) {
            for (i = 0; i < KEYS; i++) putf(c, i % 5 == 0 ? "SET k%d v%d EX 1000" : "SET k%d v%d", i, i);
            for (i = 0; i < KEYS; i++) next_is(c, "+OK\r\n");
            for (i = 0; i < N; i++) (void)sprintf(name, "e%d", i), put_vadd(c, "v", name, all + i * DIM, DIM, L2);
            for (i = 0; i < N; i++) next_is(c, ":1\r\n");
            says(c, "VADD other VALUES 2 1 0 a", ":1\r\n");
            says(c, "EXPIRE other 1000", ":1\r\n");
        }
        CHECK_EQ(number(c, "DBSIZE"), KEYS + 2);
        for (i = 0; i < KEYS; i++) putf(c, "GET k%d", i), putf(c, "TTL k%d", i);
        for (i = 0; i < KEYS; i++) {
            char want[32];
            int ttl;
            (void)sprintf(want, "$%d\r\nv%d\r\n", i < 10 ? 2 : i < 100 ? 3 : 4, i);
            check_reply(__LINE__, c, "GET", want, strlen(want));
            ttl = atoi(reply(c) + 1);
            CHECK(i % 5 == 0 ? ttl > 900 && ttl <= 1000 : ttl == -1);
        }
        says(c, "VCARD v", ":200\r\n");
        says(c, "VDIM v", ":8\r\n");
        put_vsim(c, "v", query, DIM, 50, true);
        n = check_scores(__LINE__, c, L2, query, all, N, DIM, ids, N);
        CHECK_EQ(n, 50);
        if (step == 0) memcpy(first, ids, sizeof first);
        CHECK(memcmp(first, ids, (size_t)n * sizeof *ids) == 0);
        put_vsim(c, "v", query, DIM, 10, false);
        CHECK_EQ(check_scores(__LINE__, c, L2, query, all, N, DIM, ids, N), 10);
        says(c, "VISMEMBER other a", ":1\r\n");
        i = (int)number(c, "TTL other");
        CHECK(i > 900 && i <= 1000);
        for (i = 0; i < KEYS; i++) before += scan_finds(c, "k7") && i == 0;
        says(c, "SET k1 v1", "+OK\r\n"); /* and it is written to after each change */
        if (step == 1) (void)server_signal(s, SIGKILL);
        else CHECK_EQ(server_signal(s, SIGTERM), 0);
    }
    CHECK_EQ(before, 4);
}

DB_TEST(vector_sets_survive_kills_and_checkpoints_with_equal_answers) {
    enum { N = 300, DIM = 12 };
    static float all[N * DIM], query[DIM];
    uint64_t random = test_seed + 3;
    int round, i, first[N], ids[N], n;
    char name[32];
    for (i = 0; i < N; i++) random_vector(&random, all + i * DIM, DIM);
    random_vector(&random, query, DIM);
    for (round = 0; round < 3; round++) {
        server *s = server_start(data_dir(), "--cores 2");
        client *c;
        REQUIRE(s != NULL);
        c = client_open(s->port);
        if (round == 0) {
            for (i = 0; i < N; i++)
                (void)sprintf(name, "e%d", i), put_vadd(c, "v", name, all + (N - 1 - i) * DIM, DIM, IP);
            for (i = 0; i < N; i++) next_is(c, ":1\r\n");
            for (i = 0; i < N; i++) (void)sprintf(name, "e%d", i), put_vadd(c, "v", name, all + i * DIM, DIM, IP);
            for (i = 0; i < N; i++) next_is(c, ":0\r\n");
            for (i = 0; i < N; i += 10) putf(c, "VREM v e%d", i);
            for (i = 0; i < N; i += 10) next_is(c, ":1\r\n");
            says(c, "VADD dropped VALUES 2 1 2 x", ":1\r\n");
            says(c, "DEL dropped", ":1\r\n");
        }
        says(c, "VCARD v", ":270\r\n");
        says(c, "EXISTS dropped", ":0\r\n");
        put_vsim(c, "v", query, DIM, 100, true);
        n = check_scores(__LINE__, c, IP, query, all, N, DIM, ids, N);
        CHECK_EQ(n, 100);
        if (round == 0) memcpy(first, ids, sizeof first);
        CHECK(memcmp(first, ids, (size_t)n * sizeof *ids) == 0);
        for (i = 0; i < n; i++) CHECK(ids[i] % 10 != 0);
        for (i = 1; i < 50; i += 10) { /* bit for bit what was added */
            leaf l[DIM];
            int k;
            (void)sprintf(name, "VEMB v e%d", i);
            put_line(c, name);
            CHECK_EQ(reply_leaves(c, l, DIM), DIM);
            for (k = 0; k < DIM; k++) CHECK(strtof(l[k].p, NULL) == all[i * DIM + k]);
        }
        if (round == 1) says(c, "SAVE", "+OK\r\n");
        (void)server_signal(s, SIGKILL);
    }
}

/* ===================================================================================================================
 * MEMORY: above the ceiling: spilling, and refusals where nothing can spill
 * ================================================================================================================ */

DB_TEST(beyond_the_ceiling_cold_values_spill_and_all_stay_readable_and_right) {
    server *s = server_start(data_dir(), "--cores 2 --memory 32M");
    enum { KEYS = 12000, BYTES = 4096, BATCH = 250 };
    char *room = malloc(BYTES), key[32];
    client *c;
    int i, at, refused = 0, bad = 0, round;
    REQUIRE(s != NULL && room != NULL);
    c = client_open(s->port);
    for (at = 0; at < KEYS; at += BATCH) { /* in time, so that the spilling keeps up; a refused write is tried again */
        for (i = at; i < at + BATCH; i++) {
            fill_value(room, BYTES, (uint64_t)i);
            put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "k%d", i)),
                put_arg(c, room, BYTES);
        }
        for (i = at; i < at + BATCH; i++) {
            uint64_t until = clock_ms() + PATIENCE_MS;
            while (strncmp(reply(c), "-OOM", 4) == 0 && clock_ms() < until) {
                bytes later = {0};
                refused++;
                for (i = i + 1; i < at + BATCH; i++)
                    (void)reply(c); /* this batch again from its start, when there is room */
                bytes_free(&later);
                sleep_ms(5);
                for (i = at; i < at + BATCH; i++) {
                    fill_value(room, BYTES, (uint64_t)i);
                    put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "k%d", i)),
                        put_arg(c, room, BYTES);
                }
                i = at;
            }
            if (*c->reply.p != '+') {
                complain(__LINE__, "SET k%d answered \"%.100s\"", i, c->reply.p);
                free(room);
                return;
            }
        }
    }
    CHECK(info_reaches(c, "spilled_keys", true, 1));
    CHECK(info(c, "used_memory") <= 33 << 20);
    says(c, "DBSIZE", ":12000\r\n");
    for (round = 0; round < 2; round++) {
        for (at = 0; at < KEYS && bad == 0; at += BATCH) {
            for (i = at; i < at + BATCH; i++) putf(c, "GET k%d", i);
            for (i = at; i < at + BATCH; i++) check_value(__LINE__, c, BYTES, (uint64_t)i, room);
            bad = test_failures_here;
        }
        if (round == 1) break;
        says(c, "SAVE", "+OK\r\n"); /* the checkpoint has the spilled ones, too */
        (void)server_signal(s, SIGKILL);
        s = server_start(data_dir(), "--cores 2 --memory 32M");
        REQUIRE(s != NULL);
        c = client_open(s->port);
    }
    for (i = 0; i < KEYS; i++) putf(c, "DEL k%d", i);
    for (i = 0; i < KEYS; i++) next_is(c, ":1\r\n");
    CHECK(info_reaches(c, "spilled_keys", false, 0));
    CHECK(info_reaches(c, "used_memory", false, 64 << 10)); /* the connection */
    free(room);
}

DB_TEST(when_nothing_can_spill_writes_get_oom_and_after_deleting_they_work_again) {
    server *s = server_start(data_dir(), "--cores 2 --memory 2M");
    client *c;
    int at, i, stored = 0, refused = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (at = 0; at < 24000; at += 1000) {
        for (i = at; i < at + 1000; i++) putf(c, "SET key:%d 0123456789012345678901234567890123456789", i);
        for (i = at; i < at + 1000; i++) {
            if (*reply(c) == '+') stored++;
            else if (strcmp(c->reply.p, "-OOM command not allowed when used memory > 'maxmemory'.\r\n") == 0) refused++;
            else complain(__LINE__, "SET answered \"%.100s\"", c->reply.p);
        }
    }
    CHECK(stored > 8000 && refused > 0);
    for (i = 0; i < 4000; i++) { /* one by one: what pipelines hold meanwhile is back */
        putf(c, "INCR more:%d", i);
        if (*reply(c) != ':') break;
        stored++;
    }
    CHECK(i < 4000 && strncmp(c->reply.p, "-OOM ", 5) == 0);
    CHECK_EQ(number(c, "DBSIZE"), stored);
    says(c, "VADD v VALUES 2 1 0 e", "-OOM command not allowed when used memory > 'maxmemory'.\r\n");
    begins(c, "GET key:0", "$40\r\n");
    says(c, "EXPIRE key:0 100", ":1\r\n"); /* what takes no memory is allowed */
    CHECK(info(c, "used_memory") <= 2 << 20);
    CHECK(info(c, "oom_refused") >= refused);
    for (i = 0; i < 4000; i++) putf(c, "DEL key:%d", i);
    for (i = 0; i < 4000; i++) next_is(c, ":1\r\n");
    says(c, "SET again works", "+OK\r\n");
    says(c, "VADD v VALUES 2 1 0 e", ":1\r\n");
    says(c, "INCR n", ":1\r\n");
    (void)server_signal(s, SIGKILL);
    s = server_start(data_dir(), "--cores 2 --memory 1M"); /* existing data are kept, even above a lower ceiling */
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "GET again", "$5\r\nworks\r\n");
    CHECK_EQ(number(c, "DBSIZE"), stored - 4000 + 3);
}

/* ===================================================================================================================
 * REFUSALS: a second server, damaged data, wrong options
 * ================================================================================================================ */

DB_TEST(a_second_server_on_the_same_directory_is_refused_by_name) {
    server *s = server_start(data_dir(), "--cores 1");
    char options[64], pid[32];
    client *c;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    (void)sprintf(pid, "process %d", (int)s->pid);
    refuses(__LINE__, data_dir(), "--cores 1", 1, s->dir, "in use", pid, NULL);
    refuses(__LINE__, data_dir(), "--cores 2", 1, s->dir, "in use", pid, NULL);
    says(c, "SET k v", "+OK\r\n");
    (void)snprintf(options, sizeof options, "--port %d", s->port);
    {
        char other[PATH_BYTES + 8];
        (void)snprintf(other, sizeof other, "%s-2", data_dir());
        refuses(__LINE__, other, options, 1, "cannot listen on 127.0.0.1:", NULL);
    }
    (void)server_signal(s, SIGKILL); /* a lock does not outlive its server */
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    says(client_open(s->port), "GET k", "$1\r\nv\r\n");
}

DB_TEST(a_damaged_log_is_named_with_file_and_offset_and_nothing_is_served) {
    static const char *const marks[] = {"marker-000", "marker-050", "marker-099"};
    server *s = server_start(data_dir(), "--cores 1");
    char path[PATH_BYTES];
    client *c;
    long offset;
    size_t m;
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < 100; i++) {
        char line[64];
        (void)sprintf(line, "SET k%d marker-%03d", i, i);
        says(c, line, "+OK\r\n");
    }
    CHECK_EQ(server_signal(s, SIGTERM),
             0); /* closed in order: then the last record is known to be acknowledged as well */
    for (m = 0; m < 3; m++) {
        REQUIRE(find_file(data_dir(), ".wal", marks[m], path, &offset));
        flip_byte(path, offset + 3, 0x10);
        refuses(__LINE__, data_dir(), "--cores 1", 1, below(path, data_dir()), "offset", NULL);
        refuses(__LINE__, data_dir(), "--cores 2", 1, below(path, data_dir()), "offset",
                NULL); /* nor is it dealt out */
        flip_byte(path, offset + 3, 0x10);
    }
    s = server_start(data_dir(), "--cores 1"); /* refusing has changed nothing */
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "DBSIZE", ":100\r\n");
    says(c, "GET k99", "$10\r\nmarker-099\r\n");
    for (i = 100; i < 200; i++) {
        char line[64];
        (void)sprintf(line, "SET k%d marker-%03d", i, i);
        says(c, line, "+OK\r\n");
    }
    (void)server_signal(s, SIGKILL); /* no seal: later records prove that this one was acknowledged */
    REQUIRE(find_file(data_dir(), ".wal", "marker-150", path, &offset));
    flip_byte(path, offset, 0x01);
    refuses(__LINE__, data_dir(), "--cores 1", 1, below(path, data_dir()), "offset", NULL);
    flip_byte(path, offset, 0x01);
    flip_byte(path, 9, 0x01); /* the segment's own preamble */
    refuses(__LINE__, data_dir(), "--cores 1", 1, below(path, data_dir()), "offset", NULL);
    flip_byte(path, 9, 0x01);
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    says(client_open(s->port), "DBSIZE", ":200\r\n");
}

/* A 64-bit word of a file; -1: it cannot be read. */
static long word_of_file(const char *path, long offset) {
    unsigned char bytes[8];
    FILE *f = fopen(path, "rb");
    long word = 0;
    int i;
    if (f == NULL) return -1;
    if (fseek(f, offset, SEEK_SET) != 0 || fread(bytes, 1, 8, f) != 8) word = -1;
    for (i = 8; i-- > 0 && word >= 0;) word = word << 8 | bytes[i];
    fclose(f);
    return word;
}

DB_TEST(a_damaged_checkpoint_index_or_manifest_is_named_and_served_only_where_it_is_whole) {
    uint32_t healed = 0, refused = 0;
    server *s = server_start(data_dir(), "--cores 1");
    char keys[PATH_BYTES], index[PATH_BYTES], manifest[PATH_BYTES], moved[PATH_BYTES + 8];
    uint64_t random = test_seed;
    client *c;
    long offset, size;
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < 100; i++) putf(c, "SET k%d marker-%03d", i, i), putf(c, "VADD v VALUES 4 %d 1 2 3 e%d", i, i);
    for (i = 0; i < 200; i++) CHECK(*reply(c) != '-');
    says(c, "SAVE", "+OK\r\n");
    (void)server_signal(s, SIGKILL);
    REQUIRE(find_file(data_dir(), "/state", "marker-050", keys, &offset));
    REQUIRE(find_file(data_dir(), ".vamana", NULL, index, NULL));
    REQUIRE(find_file(data_dir(), "MANIFEST", NULL, manifest, NULL));
    flip_byte(keys, offset, 0x10);
    refuses(__LINE__, data_dir(), "--cores 1", 1, below(keys, data_dir()), "offset", NULL);
    flip_byte(keys, offset, 0x10);
    size = file_bytes(keys);
    for (i = 0; i < 12; i++) { /* anywhere: the header, lengths, the end */
        long at = i == 0   ? 0
                  : i == 1 ? 17
                  : i == 2 ? 41
                  : i < 6  ? size - 1 - 5 * (i - 3)
                           : (long)(test_random(&random) % (uint64_t)size);
        flip_byte(keys, at, 0x04);
        refuses(__LINE__, data_dir(), "--cores 1", 1, below(keys, data_dir()), "offset", NULL);
        flip_byte(keys, at, 0x04);
    }
    (void)snprintf(moved, sizeof moved, "%s.moved", keys);
    {
        char command[4 * PATH_BYTES];
        (void)snprintf(command, sizeof command, "cp '%s' '%s' && truncate -s %ld '%s'", keys, moved, size / 2, keys);
        CHECK_EQ(system(command), 0);
    }
    refuses(__LINE__, data_dir(), "--cores 1", 1, below(keys, data_dir()), "offset", NULL);
    CHECK_EQ(unlink(keys), 0);
    refuses(__LINE__, data_dir(), "--cores 1", 1, below(keys, data_dir()), NULL);
    CHECK_EQ(rename(moved, keys), 0);
    size = file_bytes(index);
    for (i = 0; i < 16; i++) {
        long at = i == 0 ? 0 : i == 1 ? 13 : i == 2 ? size - 1 : (long)(test_random(&random) % (uint64_t)size);
        /* The header and the checksums stand there twice; the table of ids, and codes of so few vectors, are for
         * searches on disk. Whatever else is damaged is refused. */
        bool spare = at < 4096 || (at >= word_of_file(index, 112) && at < word_of_file(index, 120)) ||
                     at >= word_of_file(index, 128);
        flip_byte(index, at, 0x20);
        if (!spare) refuses(__LINE__, data_dir(), "--cores 1", 1, below(index, data_dir()), "offset", NULL);
        else {
            s = server_start(data_dir(), "--cores 1");
            REQUIRE(s != NULL);
            c = client_open(s->port);
            says(c, "VCARD v", ":100\r\n");
            says(c, "VSIM v VALUES 4 50 1 2 3 COUNT 1", "*1\r\n$3\r\ne50\r\n");
            (void)server_signal(s, SIGKILL);
            healed++;
        }
        refused += !spare;
        flip_byte(index, at, 0x20);
    }
    CHECK(refused >= 3 && healed >= 3);
    (void)snprintf(moved, sizeof moved, "%s.moved", index);
    CHECK_EQ(rename(index, moved), 0);
    refuses(__LINE__, data_dir(), "--cores 1", 1, below(index, data_dir()), NULL);
    CHECK_EQ(rename(moved, index), 0);
    size = file_bytes(manifest);
    for (i = 0; i < size - 1; i += 4) {
        flip_byte(manifest, i, 0x01);
        refuses(__LINE__, data_dir(), "--cores 1", 1, "MANIFEST", "offset", NULL);
        flip_byte(manifest, i, 0x01);
    }
    (void)snprintf(moved, sizeof moved, "%s.moved", manifest);
    CHECK_EQ(rename(manifest, moved), 0);
    refuses(__LINE__, data_dir(), "--cores 1", 1, "MANIFEST", NULL); /* not taken for a new directory */
    CHECK_EQ(rename(moved, manifest), 0);
    s = server_start(data_dir(), "--cores 1");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "DBSIZE", ":101\r\n");
    says(c, "GET k50", "$10\r\nmarker-050\r\n");
    says(c, "VCARD v", ":100\r\n");
}

DB_TEST(wrong_options_are_named_and_help_helps) {
    static const char *const wrong[] = {"--nonsense",   "--cores 0",  "--cores 65",   "--cores x",
                                        "--cores",      "--port",     "--port 65536", "--port -1",
                                        "--memory x",   "--memory 1", "--memory 1MM", "--durability sometimes",
                                        "--durability", "stray"};
    server s;
    char text[4096] = "";
    size_t i;
    ssize_t n;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++)
        refuses(__LINE__, data_dir(), wrong[i], 2, "wrong option ", wrong[i], "--help", NULL);
    CHECK(access(data_dir(), F_OK) != 0); /* and nothing was made */
    server_launch(&s, test_dir(), data_dir(), "--help");
    n = read(s.out, text, sizeof text - 1);
    CHECK(n > 0);
    CHECK_HAS(text, "usage: nodedb");
    CHECK_HAS(text, "--durability");
    CHECK_EQ(server_wait(&s), 0);
    refuses(__LINE__, data_dir(), "--bind nonsense", 1, "cannot listen on nonsense", NULL);
    refuses(__LINE__, data_dir(), "--dir /proc/nothing", 1, "/proc/nothing", NULL);
}

/* ===================================================================================================================
 * FAULTS: a core that faults, and what the others still do
 * ================================================================================================================ */

DB_TEST(a_panic_is_answered_at_once_and_three_degrade_only_their_core) {
    server *s = server_start(data_dir(), "--cores 2 --enable-debug-command");
    client *a, *b;
    uint64_t begin;
    int i, good = 0, degraded = 0, other = 0;
    REQUIRE(s != NULL);
    a = client_open(s->port), b = client_open(s->port); /* connections are dealt out in turn: one to each core */
    for (i = 0; i < 100; i++) putf(b, "SET k%d v", i);
    for (i = 0; i < 100; i++) next_is(b, "+OK\r\n");
    begin = clock_ms();
    put_line(a, "DEBUG PANIC");
    put_line(a, "PING");
    put_line(a, "GET k1");
    CHECK(strncmp(reply(a), "-ERR ", 5) == 0);
    CHECK(clock_ms() - begin < 5000);
    next_is(a, "+PONG\r\n");
    next_is(a, "$1\r\nv\r\n");
    says(b, "MGET k0 k1 k2 k3", "*4\r\n$1\r\nv\r\n$1\r\nv\r\n$1\r\nv\r\n$1\r\nv\r\n");
    says(b, "SET k1 w", "+OK\r\n");
    begins(a, "DEBUG PANIC", "-ERR ");
    begins(a, "DEBUG PANIC", "-ERR ");
    for (i = 0; i < 100; i++) putf(b, "GET k%d", i);
    for (i = 0; i < 100; i++) {
        const char *r = reply(b);
        if (*r == '$') good++;
        else if (strncmp(r, "-ERR ", 5) == 0 && strstr(r, "degraded") != NULL) degraded++;
        else other++;
    }
    CHECK(good > 20 && degraded > 20 && other == 0);
    says(a, "PING", "+PONG\r\n");
    begins(a, "INFO", "$");
    begins(b, "INFO", "$");
    says(b, "DBSIZE", ":100\r\n"); /* a degraded core still counts */
    begins(b, "FLUSHALL", "-ERR degraded: core ");
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    s = server_start(data_dir(), "--cores 2");
    REQUIRE(s != NULL);
    a = client_open(s->port);
    for (i = 0; i < 100; i++) putf(a, "EXISTS k%d", i);
    for (i = good = 0; i < 100; i++) good += strcmp(reply(a), ":1\r\n") == 0;
    CHECK_EQ(good, 100); /* FLUSHALL has changed nothing, on no core */
}

/* ===================================================================================================================
 * REFUSING SYSTEMS: no io_uring, tmpfs, few descriptors
 * ================================================================================================================ */

static void refuse_io_uring(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 425, 0, 2), /* io_uring_setup, _enter, _register: 425, 426, 427 */
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 427, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog;
    prog.len = sizeof filter / sizeof *filter, prog.filter = filter;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) != 0)
        _exit(125);
}

/* Some of each kind of data, a kill, and a check. */
static void everything_works(const char *dir, const char *options, int *fallback_lines, const char *word, char *ready,
                             size_t ready_bytes) {
    int round, i;
    for (round = 0; round < 3; round++) {
        server *s = server_start(dir, options);
        client *c;
        char *text;
        if (s == NULL) return;
        c = client_open(s->port);
        (void)snprintf(ready, ready_bytes, "%s", s->ready);
        if (round == 0) {
            for (i = 0; i < 2000; i++) putf(c, "SET k%d %d", i, i), putf(c, "INCR n");
            for (i = 0; i < 4000; i++) CHECK(*reply(c) != '-');
            for (i = 0; i < 200; i++) putf(c, "VADD v VALUES 3 %d 1 2 e%d", i, i);
            for (i = 0; i < 200; i++) next_is(c, ":1\r\n");
        }
        says(c, "GET n", "$4\r\n2000\r\n");
        says(c, "MGET k0 k1999", "*2\r\n$1\r\n0\r\n$4\r\n1999\r\n");
        says(c, "VSIM v VALUES 3 0 1 2 COUNT 1", "*1\r\n$2\r\ne0\r\n");
        says(c, "DBSIZE", ":2002\r\n");
        if (round == 1) says(c, "SAVE", "+OK\r\n");
        text = server_errors(s);
        fallback_lines[round] = lines_with(text, word);
        free(text);
        if (round < 2) (void)server_signal(s, SIGKILL);
        else CHECK_EQ(server_signal(s, SIGTERM), 0);
    }
}

DB_TEST(with_io_uring_refused_everything_works_and_one_line_says_so) {
    int lines[3] = {-1, -1, -1};
    char ready[512] = "";
    const char *log;
    server *s = server_start(data_dir(), "--cores 1");
    bool uring;
    REQUIRE(s != NULL);
    uring = strstr(s->ready, "(log: io_uring") != NULL; /* as built, and as this system allows */
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    test_remove_tree(data_dir());
    before_exec = refuse_io_uring;
    everything_works(data_dir(), "--cores 2", lines, "io_uring is refused", ready, sizeof ready);
    log = strstr(ready, "(log: ");
    CHECK(log != NULL && strncmp(log, "(log: io_uring", 14) != 0);
    if (uring) {
        CHECK_EQ(lines[0], 1);
        CHECK_EQ(lines[1], 1);
        CHECK_EQ(lines[2], 1);
    } else fprintf(stderr, "note: built without io_uring, or it is refused here anyway\n");
}

DB_TEST(on_tmpfs_everything_works_and_one_line_says_what_fell_back) {
    struct statfs fs;
    int lines[3] = {-1, -1, -1}, i;
    char ready[512] = "", dir[64];
    if (statfs("/dev/shm", &fs) != 0 || fs.f_type != 0x01021994 || access("/dev/shm", W_OK) != 0) {
        fprintf(stderr, "skipped: /dev/shm is no tmpfs here\n");
        return;
    }
    if (fs.f_bavail * (uint64_t)fs.f_bsize < UINT64_C(1) << 30) {
        fprintf(stderr, "skipped: /dev/shm has less than 1 GiB free\n");
        return;
    }
    (void)sprintf(dir, "/dev/shm/test_nodedb-%d", (int)getpid());
    everything_works(dir, "--cores 2", lines, "O_DIRECT", ready, sizeof ready);
    for (i = 0; i < 3; i++)
        CHECK_EQ(lines[i], strstr(ready, "O_DIRECT") != NULL ? 0 : 1); /* newer kernels have O_DIRECT on tmpfs */
    test_remove_tree(dir);
}

static void few_descriptors(void) {
    struct rlimit l;
    l.rlim_cur = l.rlim_max = 40;
    (void)setrlimit(RLIMIT_NOFILE, &l);
}

DB_TEST(more_connections_than_descriptors_do_no_harm) {
    server *s;
    client *first, *many[80], *last;
    int i;
    before_exec = few_descriptors;
    s = server_start(data_dir(), "--cores 2");
    REQUIRE(s != NULL);
    first = client_open(s->port);
    says(first, "SET k v", "+OK\r\n");
    for (i = 0; i < 80; i++) many[i] = client_open(s->port);
    for (i = 0; i < 20; i++) says(first, "GET k", "$1\r\nv\r\n");
    CHECK(strstr("+OK\r\n -ERR", strtok((char *)(uintptr_t)ask(first, "SAVE"), " ")) !=
          NULL); /* it is done, or it is said why not */
    for (i = 0; i < 80; i++) client_hang_up(many[i]);
    last = client_open(s->port);
    says(last, "GET k", "$1\r\nv\r\n");
    says(last, "SAVE", "+OK\r\n");
}

/* ===================================================================================================================
 * DURABILITY: acknowledged writes survive kills
 * ================================================================================================================ */

DB_TEST(with_durability_interval_replies_come_at_once_and_a_little_later_all_is_on_the_disk) {
    enum { BIG = 24 };
    int round, i;
    char *room = malloc(1 << 20), key[32];
    REQUIRE(room != NULL);
    for (round = 0; round < 2; round++) {
        server *s = server_start(data_dir(), "--cores 2 --durability interval");
        client *c;
        REQUIRE(s != NULL);
        c = client_open(s->port);
        if (round == 0) {
            for (i = 0; i < 2000; i++) putf(c, "SET k%d %d", i, i), putf(c, "VADD v VALUES 2 %d 1 e%d", i % 50, i);
            for (i = 0; i < 4000; i++) CHECK(*reply(c) != '-');
            for (i = 0; i < BIG; i++) { /* more than the log can have under way */
                fill_value(room, 1 << 20, (uint64_t)i);
                put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "big%d", i)),
                    put_arg(c, room, 1 << 20);
                putf(c, "VADD new%d VALUES 2 %d 1 e", i, i);
                putf(c, "VADD v VALUES 2 %d 1 late%d", i, i);
            }
            for (i = 0; i < BIG; i++) {
                next_is(c, "+OK\r\n"), next_is(c, ":1\r\n"), next_is(c, ":1\r\n");
                if (test_failures_here > 0) break;
            }
            if (test_failures_here > 0) break;
            sleep_ms(500);
        }
        CHECK_EQ(number(c, "VCARD v"), 2000 + BIG);
        CHECK_EQ(number(c, "DBSIZE"), 2001 + BIG + BIG);
        for (i = 0; i < BIG; i++) putf(c, "GET big%d", i), check_value(__LINE__, c, 1 << 20, (uint64_t)i, room);
        (void)server_signal(s, SIGKILL);
    }
    free(room);
}

/* What a client of the kill test was promised. */
typedef struct promise {
    worker w;
    int sets_acked, vadds_acked, last_acked, last_sent, dels_acked;
} promise;

static void vector_of(int thread, int i, float *v) {
    v[0] = (float)thread, v[1] = (float)i, v[2] = (float)(i % 97), v[3] = 1;
}

static void *write_until_killed(void *argument) {
    promise *p = argument;
    client *c = client_open(p->w.port);
    int t = p->w.index, i, window = t == 0 ? 1 : t == 1 ? 16 : 200, n = p->sets_acked;
    bool over = false;
    char name[64];
    float v[4];
    while (!over && n < p->sets_acked + 1000000 && !c->late) {
        int from = n;
        for (i = 0; i < window; i++, n++) {
            putf(c, "SET k:%d:%d value:%d", t, n, n);
            putf(c, "SET last:%d %d", t, n);
            if (n % 4 == 0) {
                vector_of(t, n, v);
                (void)sprintf(name, "e:%d:%d", t, n);
                put_vadd(c, "v", name, v, 4, L2);
            }
            if (n % 4 == 2 && n >= 10) putf(c, "DEL k:%d:%d", t, n - 2); /* the key before an even one */
        }
        p->last_sent = n - 1;
        for (i = from; i < n && !over; i++) {
            if (strcmp(reply(c), "+OK\r\n") != 0) break;
            p->sets_acked = i + 1;
            if (strcmp(reply(c), "+OK\r\n") != 0) break;
            p->last_acked = i;
            if (i % 4 == 0) {
                if (*reply(c) != ':') break;
                p->vadds_acked = i + 1;
            }
            if (i % 4 == 2 && i >= 10) {
                if (*reply(c) != ':') break;
                p->dels_acked = i - 1;
            }
        }
        over = i < n;
    }
    return NULL;
}

/* How many acknowledged writes of one thread are missing. */
static int count_lost(client *c, const promise *p) {
    int t = p->w.index, i, lost = 0;
    for (i = 0; i < p->sets_acked; i++) putf(c, "GET k:%d:%d", t, i);
    for (i = 0; i < p->sets_acked; i++) {
        char want[64], value[40];
        const char *r = reply(c);
        int n = sprintf(value, "value:%d", i);
        bool deletable = i % 4 == 0 && i >= 8;
        (void)sprintf(want, "$%d\r\n%s\r\n", n, value);
        if (deletable && i < p->dels_acked) {
            if (strcmp(r, "$-1\r\n") != 0) lost++;
        } else if (strcmp(r, want) != 0 && !(deletable && strcmp(r, "$-1\r\n") == 0 && i + 2 <= p->last_sent)) lost++;
    }
    for (i = 0; i < p->vadds_acked; i += 4) putf(c, "VEMB v e:%d:%d", t, i);
    for (i = 0; i < p->vadds_acked; i += 4) {
        leaf l[4];
        float v[4];
        size_t n = reply_leaves(c, l, 4), k;
        vector_of(t, i, v);
        for (k = 0; k < n && strtof(l[k].p, NULL) == v[k]; k++) {}
        lost += n != 4 || k != 4;
    }
    return lost;
}

DB_TEST(no_acknowledged_write_is_lost_when_the_server_is_killed_at_random_moments) {
    int rounds = test_long ? 20 : 3, round, t, acked = 0;
    uint64_t random = test_seed * 31 + (uint64_t)getpid();
    static promise p[3];
    memset(p, 0, sizeof p);
    for (round = 0; round <= rounds; round++) {
        server *s = server_start(data_dir(), round % 4 == 3 ? "--cores 3" : "--cores 2");
        client *c;
        unsigned wait;
        REQUIRE(s != NULL);
        c = client_open(s->port);
        for (t = 0; t < 3; t++) {
            int lost = count_lost(c, &p[t]);
            if (lost > 0) complain(__LINE__, "round %d: %d acknowledged writes of thread %d are lost", round, lost, t);
            if (p[t].sets_acked > 0) {
                char line[64];
                int last;
                (void)sprintf(line, "GET last:%d", t);
                put_line(c, line);
                last = atoi(strchr(reply(c), '\n') != NULL ? strchr(c->reply.p, '\n') + 1 : "-1");
                if (last < p[t].last_acked || last > p[t].last_sent)
                    complain(__LINE__, "round %d: last:%d is %d, not from %d to %d", round, t, last, p[t].last_acked,
                             p[t].last_sent);
            }
        }
        if (round == rounds || test_failures_here > 0) break;
        for (t = 0; t < 3; t++) {
            p[t].w.port = s->port, p[t].w.index = t;
            p[t].sets_acked = p[t].last_acked = p[t].vadds_acked = p[t].dels_acked = 0;
            p[t].last_sent = -1;
        }
        says(c, "FLUSHALL", "+OK\r\n"); /* each round counts from 0 */
        for (t = 0; t < 3; t++) REQUIRE(pthread_create(&p[t].w.thread, NULL, write_until_killed, &p[t]) == 0);
        wait = 50 + (unsigned)(test_random(&random) % 350);
        if (round % 2 == 1) {
            sleep_ms(wait / 2);
            put_line(c, "SAVE"); /* the kill may interrupt it at any step */
            client_flush(c);
            sleep_ms(wait / 8);
        } else sleep_ms(wait);
        (void)server_signal(s, SIGKILL);
        for (t = 0; t < 3; t++) {
            (void)pthread_join(p[t].w.thread, NULL);
            acked += p[t].sets_acked;
        }
    }
    CHECK(acked > 100);
}

/* ===================================================================================================================
 * CLIENTS OF REDIS: redis-cli and redis-benchmark
 * ================================================================================================================ */

static bool installed(const char *name) {
    char command[100];
    (void)snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", name);
    return system(command) == 0;
}

/* The output of a command, with stderr. The caller frees it. */
static char *output_of(const char *command, int *status) {
    char path[PATH_BYTES], whole[3 * PATH_BYTES];
    (void)snprintf(path, sizeof path, "%s/output", test_dir());
    (void)snprintf(whole, sizeof whole, "%s >'%s' 2>&1 </dev/null", command, path);
    *status = system(whole);
    return file_text(path, NULL);
}

DB_TEST(redis_cli_is_a_client) {
    static const struct { const char *arguments, *want;
    } cases[] = {
        {"PING", "PONG\n"},
        {"SET k \"a value\"", "OK\n"},
        {"GET k", "a value\n"},
        {"-3 GET nothing", "\n"},
        {"-3 VADD v VALUES 2 1 0 e", "(true)\n"},
        {"VSIM v VALUES 2 1 0 WITHSCORES", "e\n1\n"},
        {"-3 VSIM v VALUES 2 1 0 WITHSCORES", "e 1\n"},
        {"NONSENSE", "ERR unknown command 'NONSENSE', with args beginning with: \n\n"},
        {"--scan --pattern 'k*'", "k\n"},
        {"DBSIZE", "2\n"},
    };
    client *c = shared_client();
    size_t i;
    if (!installed("redis-cli")) {
        fprintf(stderr, "skipped: redis-cli is not installed\n");
        return;
    }
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        char command[200], *text;
        int status;
        (void)snprintf(command, sizeof command, "timeout 10 redis-cli -p %d %s", shared.port, cases[i].arguments);
        text = output_of(command, &status);
        CHECK(text != NULL);
        if (text != NULL && strcmp(text, cases[i].want) != 0)
            complain(__LINE__, "redis-cli %s printed \"%.200s\", not \"%s\"", cases[i].arguments, text, cases[i].want);
        free(text);
    }
    {
        char command[200], *text;
        int status;
        (void)snprintf(command, sizeof command,
                       "sh -c \"seq 1 2000 | sed 's/.*/SET p& v/' | timeout 10 redis-cli -p %d --pipe\"", shared.port);
        text = output_of(command, &status);
        CHECK_HAS(text != NULL ? text : "", "errors: 0, replies: 2000");
        free(text);
    }
    says(c, "DBSIZE", ":2002\r\n");
}

DB_TEST(redis_benchmark_runs_to_its_end_without_an_error) {
    static const char *const loads[] = {"-t set,get -d 128 -c 50 -n 4000", "-t set,get -d 128 -c 50 -P 16 -n 20000",
                                        "-t ping,mset,incr -c 10 -P 4 -n 2000", "-t set,get -r 1000 -3 -n 2000"};
    client *c = shared_client();
    size_t i;
    if (!installed("redis-benchmark")) {
        fprintf(stderr, "skipped: redis-benchmark is not installed\n");
        return;
    }
    for (i = 0; i < sizeof loads / sizeof *loads; i++) {
        char command[200], *text;
        int status;
        (void)snprintf(command, sizeof command, "timeout 30 redis-benchmark -q -p %d %s", shared.port, loads[i]);
        text = output_of(command, &status);
        CHECK_EQ(status, 0);
        CHECK_HAS(text != NULL ? text : "", "requests per second");
        if (text != NULL &&
            (strstr(text, "Error") != NULL || strstr(text, "ERR") != NULL || strstr(text, "WARNING") != NULL))
            complain(__LINE__, "redis-benchmark %s printed %.500s", loads[i], text);
        free(text);
    }
    says(c, "PING", "+PONG\r\n");
}

/* ===================================================================================================================
 * END: the shared server stops in order
 * ================================================================================================================ */

TEST(the_server_that_all_tests_shared_stops_in_order_at_the_end) {
    if (shared.pid == 0) return;
    CHECK_EQ(server_signal(&shared, SIGTERM), 0);
}

int main(int argc, char **argv) {
    (void)signal(SIGPIPE, SIG_IGN);
    (void)atexit(end_shared);
    return test_main("nodedb", argc, argv);
}
