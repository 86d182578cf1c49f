/* The home of a vector set as a state machine. Every sequence of four commands is run on a key of its own, all keys in
 * one server: key i runs sequence i. A model says what each reply and the state after it must be.
 *
 *            VADD             VREM of the last, DEL, SET, expiry, FLUSHALL
 *   nothing ------> a set    ---------------------------------------------> nothing (or, by SET, a string)
 *
 * The sequences run with a kill between any two commands, with a checkpoint, in one write, around FLUSHALL, and against
 * each other; with one, two and three cores. A set that was ended and is made anew has another dimension, so that
 * whatever came back of the old one would show. See server.h for the helpers. */
#include "server.h"

enum { STEPS = 4 };
typedef enum command { ADD_1, ADD_2, REMOVE_1, DELETE, SET_STRING, EXPIRE_PAST, EXPIRE_LATER, COMMANDS } command;
enum { SEQUENCES = COMMANDS * COMMANDS * COMMANDS * COMMANDS, SHORT_SEQUENCES = COMMANDS * COMMANDS * COMMANDS };

/* ---- the model ------------------------------------------------------------------------------------------------- */

typedef enum { NOTHING, STRING, SET } kind;
typedef struct model {
    kind kind;
    bool has_ttl;
    bool has[2]; /* the elements e1 and e2 */
    int vector[2]; /* which vector they have: the number of the step that added it */
    int dim, ended; /* a set that is ended comes back with another dimension */
    int string;    /* the step that set it */
} model;

static const char wrong_type[] = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

static command command_at(int sequence, int step) {
    while (step-- > 0) sequence /= COMMANDS;
    return (command)(sequence % COMMANDS);
}

static void model_end(model *m) {
    int ended = m->ended + (m->kind == SET);
    memset(m, 0, sizeof *m);
    m->ended = ended;
}

static int model_count(const model *m) { return m->has[0] + m->has[1]; }

/* The vector of element e (0 or 1) that was added in a step; near the others of no other step. */
static float component(int e, int step, int i) { return (float)(i == 0 ? 1 + e : 3 * step + i); }

/* Changes the model by one command; what the server must answer. */
static const char *model_step(model *m, command c, int step) {
    static const char one[] = ":1\r\n", zero[] = ":0\r\n";
    int e = c == ADD_2;
    bool was;
    switch (c) {
    case ADD_1:
    case ADD_2:
        if (m->kind == STRING) return wrong_type;
        if (m->kind == NOTHING) m->kind = SET, m->dim = 2 + m->ended;
        was = m->has[e];
        m->has[e] = true, m->vector[e] = step;
        return was ? zero : one;
    case REMOVE_1:
        if (m->kind == STRING) return wrong_type;
        was = m->has[0];
        m->has[0] = false;
        if (m->kind == SET && model_count(m) == 0) model_end(m);
        return was ? one : zero;
    case SET_STRING:
        model_end(m);
        m->kind = STRING, m->string = step;
        return "+OK\r\n";
    case EXPIRE_LATER: return m->kind == NOTHING ? zero : (m->has_ttl = true, one);
    default: /* DELETE, EXPIRE_PAST */
        was = m->kind != NOTHING;
        model_end(m);
        return was ? one : zero;
    }
}

/* Sends what model_step is about to be told; the dimension is the set's, or that of the next one. */
static void put_step(client *c, int key, const model *m, command what, int step) {
    int dim = m->kind == SET ? m->dim : 2 + m->ended, i;
    char text[32];
    switch (what) {
    case ADD_1:
    case ADD_2:
        put_array(c, (size_t)(5 + dim)), put_text(c, "VADD"), put_arg(c, text, (size_t)sprintf(text, "k%d", key)),
            put_text(c, "VALUES"), put_arg(c, text, (size_t)sprintf(text, "%d", dim));
        for (i = 0; i < dim; i++)
            put_arg(c, text, (size_t)sprintf(text, "%g", (double)component(what == ADD_2, step, i)));
        put_text(c, what == ADD_1 ? "e1" : "e2");
        break;
    case REMOVE_1: putf(c, "VREM k%d e1", key); break;
    case DELETE: putf(c, "DEL k%d", key); break;
    case SET_STRING: putf(c, "SET k%d s%d", key, step); break;
    case EXPIRE_PAST: putf(c, "PEXPIRE k%d -1", key); break;
    default: putf(c, "EXPIRE k%d 5000", key); break;
    }
}

static const char *sequence_text(int sequence, int steps) {
    static const char *const names[] = {"VADD e1", "VADD e2", "VREM e1", "DEL", "SET", "PEXPIRE -1", "EXPIRE 5000"};
    static char text[128];
    int step;
    text[0] = 0;
    for (step = 0; step < steps; step++)
        (void)sprintf(text + strlen(text), "%s%s", step > 0 ? ", " : "", names[command_at(sequence, step)]);
    return text;
}

static int shown; /* complaints of this test: the first few tell all */

/* The reply to step `step` of sequence `key`, and the model goes on. */
static void expect_step(int line, client *c, int key, model *m, int step) {
    const char *want = model_step(m, command_at(key, step), step), *got = reply(c);
    char a[200], b[200];
    if (strcmp(got, want) == 0) return;
    if (++shown <= 5)
        complain(line, "%s: the last command answered \"%s\", not \"%s\"", sequence_text(key, step + 1),
                 readable(got, strlen(got), a, sizeof a), readable(want, strlen(want), b, sizeof b));
    else (void)__atomic_add_fetch(&test_failures_here, 1, __ATOMIC_RELAXED);
}

/* ---- the state of all keys -------------------------------------------------------------------------------------- */

static void put_look(client *c, int key, const model *m) {
    putf(c, "TYPE k%d", key), putf(c, "EXISTS k%d", key), putf(c, "TTL k%d", key), putf(c, "VCARD k%d", key);
    putf(c, "VISMEMBER k%d e1", key), putf(c, "VISMEMBER k%d e2", key);
    if (m->kind == STRING) putf(c, "GET k%d", key);
    if (m->kind != SET) return;
    putf(c, "VDIM k%d", key), putf(c, "VEMB k%d e1", key), putf(c, "VEMB k%d e2", key);
    putf(c, "VSIM k%d ELE %s COUNT 10", key, m->has[0] ? "e1" : "e2");
}

/* The reply to VEMB: null, or the vector that was added last (but for the last digit, as some metrics normalise). */
static bool reply_is_vector(client *c, const model *m, int e) {
    leaf l[16];
    size_t n = reply_leaves(c, l, 16), i;
    if (!m->has[e]) return strcmp(c->reply.p, "$-1\r\n") == 0;
    for (i = 0; i < n && fabs(atof(l[i].p) - (double)component(e, m->vector[e], (int)i)) < 1e-4; i++) {}
    return *c->reply.p == '*' && n == (size_t)m->dim && i == n;
}

static bool reply_was(client *c, const char *want, const char **wrong, const char *what) {
    if (strcmp(reply(c), want) == 0) return true;
    if (*wrong == NULL) *wrong = what;
    return false;
}

/* What is wrong with a key's state; NULL: nothing. */
static const char *state_fault(client *c, const model *m) {
    static const char *const types[] = {"+none\r\n", "+string\r\n", "+vectorset\r\n"};
    const char *wrong = NULL;
    char text[64];
    int e;
    bool string = m->kind == STRING, set = m->kind == SET;
    long long ttl;
    (void)reply_was(c, types[m->kind], &wrong, "TYPE");
    (void)reply_was(c, m->kind == NOTHING ? ":0\r\n" : ":1\r\n", &wrong, "EXISTS");
    ttl = atoll(reply(c) + 1);
    if (m->has_ttl ? ttl < 4900 || ttl > 5000 : ttl != (m->kind == NOTHING ? -2 : -1)) wrong = wrong ? wrong : "TTL";
    (void)sprintf(text, ":%d\r\n", model_count(m));
    (void)reply_was(c, string ? wrong_type : text, &wrong, "VCARD");
    for (e = 0; e < 2; e++)
        (void)reply_was(c, string ? wrong_type : m->has[e] ? ":1\r\n" : ":0\r\n", &wrong, "VISMEMBER");
    (void)sprintf(text, "$2\r\ns%d\r\n", m->string);
    if (string) (void)reply_was(c, text, &wrong, "GET");
    if (!set) return wrong;
    (void)sprintf(text, ":%d\r\n", m->dim);
    (void)reply_was(c, text, &wrong, "VDIM");
    for (e = 0; e < 2; e++)
        if (!reply_is_vector(c, m, e) && wrong == NULL) wrong = "VEMB";
    (void)sprintf(text, "*%d\r\n$2\r\n%s\r\n%s", model_count(m), m->has[0] ? "e1" : "e2",
                  model_count(m) == 2 ? "$2\r\ne2\r\n" : "");
    (void)reply_was(c, text, &wrong, "VSIM");
    return wrong;
}

/* All keys are as the model says, after so many steps of their sequences. */
static void check_states(int line, client *c, const model *models, int sequences, int steps, const char *when) {
    int key, at, bad = 0, there = 0;
    char want[32];
    for (at = 0; at < sequences; at += 100) {
        for (key = at; key < at + 100 && key < sequences; key++) put_look(c, key, &models[key]);
        for (key = at; key < at + 100 && key < sequences; key++) {
            const char *fault = state_fault(c, &models[key]);
            there += models[key].kind != NOTHING;
            if (fault != NULL && ++bad == 1)
                complain(line, "%s, after %s: %s is wrong", when, sequence_text(key, steps), fault);
        }
    }
    if (bad > 1) complain(line, "%s: the state of %d of %d keys is wrong", when, bad, sequences);
    (void)sprintf(want, ":%d\r\n", there);
    says_at(line, c, "DBSIZE", want);
}

/* SET NX succeeds exactly where nothing is. Changes the strings of the model. */
static void check_nothing_is_left(int line, client *c, model *models, int sequences) {
    int key, at, bad = 0;
    for (at = 0; at < sequences; at += 500) {
        for (key = at; key < at + 500 && key < sequences; key++) putf(c, "SET k%d s9 NX", key);
        for (key = at; key < at + 500 && key < sequences; key++) {
            bool done = strcmp(reply(c), "+OK\r\n") == 0;
            bad += done != (models[key].kind == NOTHING);
            if (done) models[key].kind = STRING, models[key].string = 9;
        }
    }
    if (bad > 0) complain(line, "SET NX did of %d keys what it must not", bad);
}

/* ---- the ways to run them -------------------------------------------------------------------------------------- */

static server *killed_and_started(server *s, const char *options, client **c, int line) {
    char dir[PATH_BYTES];
    (void)memcpy(dir, s->dir, sizeof dir);
    (void)server_signal(s, SIGKILL);
    s = server_start_at(dir, options, line);
    if (s != NULL) *c = client_open(s->port);
    return s;
}

static model models[SEQUENCES];

/* Step j of all keys, then step j + 1 of all: no key has more than one command under way. */
static void run_step(client *c, int sequences, int step) {
    int key, at;
    for (at = 0; at < sequences; at += 500) {
        for (key = at; key < at + 500 && key < sequences; key++)
            put_step(c, key, &models[key], command_at(key, step), step);
        for (key = at; key < at + 500 && key < sequences; key++) expect_step(__LINE__, c, key, &models[key], step);
    }
}

/* Kills where the bit of a step is set in `kills`; SAVE first where it is in `saves`. */
static void run_with_kills(const char *options, unsigned kills, unsigned saves) {
    server *s = server_start(data_dir(), options);
    client *c;
    int step;
    char when[128];
    REQUIRE(s != NULL);
    c = client_open(s->port);
    shown = 0;
    memset(models, 0, sizeof models);
    for (step = 0; step < STEPS && shown == 0; step++) {
        run_step(c, SEQUENCES, step);
        if ((saves >> step & 1) != 0) says(c, "SAVE", "+OK\r\n");
        if ((kills >> step & 1) == 0) continue;
        s = killed_and_started(s, options, &c, __LINE__);
        REQUIRE(s != NULL);
        (void)sprintf(when, "%s, killed after step %d", options, step + 1);
        check_states(__LINE__, c, models, SEQUENCES, step + 1, when);
        if (test_failures_here > 0) return;
    }
    if (shown > 0) return;
    (void)sprintf(when, "%s, at the end", options);
    check_states(__LINE__, c, models, SEQUENCES, STEPS, when);
    check_nothing_is_left(__LINE__, c, models, SEQUENCES);
    s = killed_and_started(s, options, &c, __LINE__);
    REQUIRE(s != NULL);
    (void)sprintf(when, "%s, after SET NX and another kill", options);
    check_states(__LINE__, c, models, SEQUENCES, STEPS, when);
}

DB_TEST(every_sequence_ends_in_the_right_state_with_a_kill_after_every_command_on_one_core) {
    run_with_kills("--cores 1", 15, 0);
}
DB_TEST(every_sequence_ends_in_the_right_state_with_a_kill_after_every_command_on_two_cores) {
    run_with_kills("--cores 2", 15, 0);
}
DB_TEST(every_sequence_ends_in_the_right_state_with_one_kill_in_its_middle_on_three_cores) {
    run_with_kills("--cores 3", 2, 0);
}
DB_TEST(every_sequence_ends_in_the_right_state_with_checkpoints_and_kills_in_between) {
    run_with_kills("--cores 2", 6, 6);
}

/* A key's sequence in one write, many keys at a time over several connections. */
static void run_pipelined(const char *options) {
    enum { CONNECTIONS = 3, AT_ONCE = 40 };
    server *s = server_start(data_dir(), options);
    client *c[CONNECTIONS];
    int key, at, step, k;
    char when[128];
    REQUIRE(s != NULL);
    for (k = 0; k < CONNECTIONS; k++) c[k] = client_open(s->port);
    shown = 0;
    memset(models, 0, sizeof models);
    for (at = 0; at < SEQUENCES && shown < 6; at += AT_ONCE) {
        for (key = at; key < at + AT_ONCE && key < SEQUENCES; key++) {
            model ahead = models[key];
            for (step = 0; step < STEPS; step++) {
                put_step(c[key % CONNECTIONS], key, &ahead, command_at(key, step), step);
                (void)model_step(&ahead, command_at(key, step), step);
            }
        }
        for (k = 0; k < CONNECTIONS; k++) client_flush(c[k]);
        for (key = at; key < at + AT_ONCE && key < SEQUENCES; key++)
            for (step = 0; step < STEPS; step++) expect_step(__LINE__, c[key % CONNECTIONS], key, &models[key], step);
    }
    if (shown > 0) return;
    (void)sprintf(when, "%s, in one write", options);
    check_states(__LINE__, c[0], models, SEQUENCES, STEPS, when);
    s = killed_and_started(s, options, &c[0], __LINE__);
    REQUIRE(s != NULL);
    (void)sprintf(when, "%s, in one write, and a kill", options);
    check_states(__LINE__, c[0], models, SEQUENCES, STEPS, when);
    check_nothing_is_left(__LINE__, c[0], models, SEQUENCES);
}

DB_TEST(every_sequence_in_one_write_has_the_replies_of_one_command_at_a_time_on_one_core) {
    run_pipelined("--cores 1");
}
DB_TEST(every_sequence_in_one_write_has_the_replies_of_one_command_at_a_time_on_two_cores) {
    run_pipelined("--cores 2");
}
DB_TEST(every_sequence_in_one_write_has_the_replies_of_one_command_at_a_time_on_three_cores) {
    run_pipelined("--cores 3");
}
DB_TEST(every_sequence_in_one_write_has_the_replies_of_one_command_at_a_time_in_interval_mode) {
    run_pipelined("--cores 2 --durability interval");
}

/* All sequences of three commands, with FLUSHALL at each place; everything of one place in one write. */
static void run_around_flushall(const char *options) {
    enum { SHORT = STEPS - 1 };
    static model ahead[SHORT_SEQUENCES];
    server *s = server_start(data_dir(), options);
    client *c;
    int place, step, key;
    char when[128];
    REQUIRE(s != NULL);
    c = client_open(s->port);
    shown = 0;
    memset(models, 0, sizeof models), memset(ahead, 0, sizeof ahead);
    for (place = 0; place <= SHORT && test_failures_here == 0; place++) {
        for (step = 0; step < SHORT; step++) {
            if (step == place) {
                putf(c, "FLUSHALL");
                for (key = 0; key < SHORT_SEQUENCES; key++) model_end(&ahead[key]);
            }
            for (key = 0; key < SHORT_SEQUENCES; key++) {
                put_step(c, key, &ahead[key], command_at(key, step), step);
                (void)model_step(&ahead[key], command_at(key, step), step);
            }
        }
        for (step = 0; step < SHORT; step++) {
            if (step == place) {
                next_is(c, "+OK\r\n");
                for (key = 0; key < SHORT_SEQUENCES; key++) model_end(&models[key]);
            }
            for (key = 0; key < SHORT_SEQUENCES; key++) expect_step(__LINE__, c, key, &models[key], step);
        }
        if (shown > 0) return;
        (void)sprintf(when, "%s, FLUSHALL before step %d", options, place + 1);
        check_states(__LINE__, c, models, SHORT_SEQUENCES, SHORT, when);
        if (place == SHORT - 1) { /* the state after a flush in the middle survives a kill */
            s = killed_and_started(s, options, &c, __LINE__);
            REQUIRE(s != NULL);
            check_states(__LINE__, c, models, SHORT_SEQUENCES, SHORT, when);
        }
        says(c, "FLUSHALL", "+OK\r\n");
        says(c, "DBSIZE", ":0\r\n");
        memset(models, 0, sizeof models), memset(ahead, 0, sizeof ahead);
    }
    s = killed_and_started(s, options, &c, __LINE__);
    REQUIRE(s != NULL);
    check_states(__LINE__, c, models, SHORT_SEQUENCES, 0, "after FLUSHALL and a kill");
}

DB_TEST(flushall_between_any_two_commands_ends_all_sets_on_one_core) { run_around_flushall("--cores 1"); }
DB_TEST(flushall_between_any_two_commands_ends_all_sets_on_two_cores) { run_around_flushall("--cores 2"); }
DB_TEST(flushall_between_any_two_commands_ends_all_sets_on_three_cores) { run_around_flushall("--cores 3"); }

/* ---- races ----------------------------------------------------------------------------------------------------- */

enum { RACE_KEYS = 24, RACE_WRITES = 150, RACE_BATCH = 12, RACE_ELEMENTS = 3 };

/* Writes of one client in a race: adding, removing, ending. `seed` decides all. */
static void put_race(client *c, uint64_t *seed) {
    int key = (int)(test_random(seed) % RACE_KEYS), e = (int)(test_random(seed) % RACE_ELEMENTS);
    switch (test_random(seed) % 12) {
    case 0: putf(c, "DEL r%d", key); break;
    case 1: putf(c, "PEXPIRE r%d 1", key); break;
    case 2: putf(c, "SET r%d x", key); break;
    case 3: putf(c, "DEL r%d", key); break;
    case 4:
    case 5:
    case 6:
    case 7: putf(c, "VREM r%d e%d", key, e); break;
    default: putf(c, "VADD r%d VALUES 2 %d 1 e%d", key, e + 1, e); break;
    }
}

/* An orderly answer: a number, OK, or that there is a string. */
static bool race_reply_is_fine(const char *r) {
    return strcmp(r, ":0\r\n") == 0 || strcmp(r, ":1\r\n") == 0 || strcmp(r, "+OK\r\n") == 0 ||
           strcmp(r, wrong_type) == 0;
}

/* Each key's state as text, and whether it agrees with itself: EXISTS iff there are elements, VCARD is their number,
 * VSIM finds exactly them. */
static char *race_state(int line, client *c) {
    bytes all = {0};
    int key, e, bad = 0;
    for (key = 0; key < RACE_KEYS; key++) {
        putf(c, "TYPE r%d", key), putf(c, "EXISTS r%d", key), putf(c, "VCARD r%d", key);
        putf(c, "VSIM r%d VALUES 2 1 1 COUNT 10", key);
        for (e = 0; e < RACE_ELEMENTS; e++) putf(c, "VISMEMBER r%d e%d", key, e);
    }
    for (key = 0; key < RACE_KEYS; key++) {
        char type[32];
        leaf l[16];
        int exists, count, found, members = 0;
        (void)snprintf(type, sizeof type, "%s", reply(c));
        bytes_put(&all, c->reply.p, c->reply.len);
        exists = atoi(reply(c) + 1);
        count = *reply(c) == ':' ? atoi(c->reply.p + 1) : -1;
        bytes_put(&all, c->reply.p, c->reply.len);
        found = (int)reply_leaves(c, l, 16);
        if (count < 0) found = -1; /* a string: an error */
        for (e = 0; e < RACE_ELEMENTS; e++) {
            members += strcmp(reply(c), ":1\r\n") == 0;
            bytes_put(&all, c->reply.p, c->reply.len);
        }
        if (strcmp(type, "+string\r\n") == 0 ? exists != 1 || count != -1
                                              : exists != (members > 0) || count != members || found != members ||
                                                    strcmp(type, exists ? "+vectorset\r\n" : "+none\r\n") != 0) {
            if (++bad == 1)
                complain(line, "r%d: TYPE %.12s EXISTS %d VCARD %d, %d members, VSIM finds %d", key, type + 1, exists,
                         count, members, found);
        }
    }
    if (bad > 1) complain(line, "%d of %d keys do not agree with themselves", bad, RACE_KEYS);
    return all.p;
}

static void run_race(const char *options, int connections) {
    server *s = server_start(data_dir(), options);
    client *c[4], *look;
    uint64_t seed = test_seed * 1000 + 7;
    int round, i, k, odd = 0;
    char *before, *after;
    REQUIRE(s != NULL);
    for (k = 0; k < connections; k++) c[k] = client_open(s->port);
    look = client_open(s->port);
    for (round = 0; round < RACE_WRITES; round++) {
        for (k = 0; k < connections; k++)
            for (i = 0; i < RACE_BATCH; i++) put_race(c[k], &seed);
        for (k = 0; k < connections; k++) client_io(c[k], 0); /* they are under way on all before one is answered */
        for (k = 0; k < connections; k++)
            for (i = 0; i < RACE_BATCH; i++)
                if (!race_reply_is_fine(reply(c[k])) && ++odd <= 3)
                    complain(__LINE__, "%s: a write in a race answered \"%.120s\"", options, c[k]->reply.p);
        if (c[0]->closed) return;
        if (round % 30 == 29) {
            sleep_ms(20); /* what was to expire has */
            free(race_state(__LINE__, look));
        }
    }
    if (odd > 3) complain(__LINE__, "%d replies were odd", odd);
    sleep_ms(20);
    before = race_state(__LINE__, look);
    s = killed_and_started(s, options, &look, __LINE__);
    if (s != NULL) {
        after = race_state(__LINE__, look);
        if (strcmp(before, after) != 0) complain(__LINE__, "%s: a kill has changed the state", options);
        free(after);
        for (k = 0; k < RACE_KEYS; k++) { /* and each can be ended and made anew */
            putf(look, "DEL r%d", k), putf(look, "VADD r%d VALUES 3 1 2 3 new", k), putf(look, "VCARD r%d", k);
            (void)reply(look);
            next_is(look, ":1\r\n"), next_is(look, ":1\r\n");
        }
    }
    free(before);
}

DB_TEST(writes_that_race_for_a_set_never_leave_it_in_two_minds_on_one_core) { run_race("--cores 1", 2); }
DB_TEST(writes_that_race_for_a_set_never_leave_it_in_two_minds_on_two_cores) { run_race("--cores 2", 2); }
DB_TEST(writes_that_race_for_a_set_never_leave_it_in_two_minds_on_three_cores) { run_race("--cores 3", 4); }

/* Two clients at the last element of a set, many times: one takes it away while the other adds, ends or asks. */
DB_TEST(the_last_element_is_removed_while_others_add_end_and_ask) {
    static const char *const others[] = {"VADD q%d VALUES 2 2 1 b", "DEL q%d", "VREM q%d a", "SET q%d x NX",
                                         "VADD q%d VALUES 2 2 1 a"};
    enum { ROUNDS = 400 };
    server *s = server_start(data_dir(), "--cores 2");
    client *a, *b, *look;
    int i, won = 0, odd = 0;
    REQUIRE(s != NULL);
    a = client_open(s->port), b = client_open(s->port), look = client_open(s->port);
    for (i = 0; i < ROUNDS; i++) putf(a, "VADD q%d VALUES 2 1 1 a", i);
    for (i = 0; i < ROUNDS; i++) next_is(a, ":1\r\n");
    for (i = 0; i < ROUNDS; i++) putf(a, "VREM q%d a", i), putf(b, others[i % 5], i);
    client_io(a, 0), client_io(b, 0);
    for (i = 0; i < ROUNDS; i++) {
        bool removed, done;
        long long count;
        char line[32];
        odd += !race_reply_is_fine(reply(a)) && strcmp(a->reply.p, "$-1\r\n") != 0;
        removed = strcmp(a->reply.p, ":1\r\n") == 0;
        odd += !race_reply_is_fine(reply(b)) && strcmp(b->reply.p, "$-1\r\n") != 0;
        done = strcmp(b->reply.p, ":1\r\n") == 0 || *b->reply.p == '+';
        if (i % 5 == 1 ? removed + done == 0 : i % 5 == 2 && removed + done != 1)
            complain(__LINE__, "q%d: VREM of the one element answered %d, and the other's \"%s\" %d", i, removed,
                     others[i % 5], done);
        if ((i % 5 == 0 || i % 5 == 4) && (!removed || (i % 5 == 0 && !done)))
            complain(__LINE__, "q%d: VREM answered %d, and VADD %d", i, removed, done);
        won += removed;
        (void)sprintf(line, "EXISTS q%d", i);
        count = number(look, line);
        (void)sprintf(line, "VCARD q%d", i);
        if (i % 5 != 3 && (number(look, line) > 0) != (count == 1))
            complain(__LINE__, "q%d: EXISTS answers %lld, and VCARD %.10s", i, count, look->reply.p);
        if (i % 5 == 0 ? count != 1 : i % 5 == 1 || i % 5 == 2 ? count != 0 : count > 1)
            complain(__LINE__, "EXISTS q%d is %lld after VREM and \"%s\"", i, count, others[i % 5]);
        if (test_failures_here > 3) return;
    }
    CHECK_EQ(odd, 0);
    CHECK(won > 0);
}

/* VREMs that come back from another core to a set that has no element left by then, while others like them queue at its
 * home. Each would end the set behind those before it, and none may wait for one that waits for it. The EXPIREs, each
 * sent by itself, make a queue of it. */
DB_TEST(those_that_find_a_set_empty_do_not_wait_for_each_other) {
    enum { ROUNDS = 700, SETS = 4, TIMES = 12, CLIENTS = 6 };
    server *s = server_start(data_dir(), "--cores 2");
    client *all[CLIENTS];
    int i, k, n, removed = 0, odd = 0;
    REQUIRE(s != NULL);
    for (k = 0; k < CLIENTS; k++) all[k] = client_open(s->port);
    for (i = 0; i < ROUNDS && odd == 0; i++) {
        for (k = 0; k < SETS; k++) putf(all[0], "VADD z%d.%d VALUES 2 1 1 a", i, k);
        for (k = 0; k < SETS; k++) odd += strcmp(reply(all[0]), ":1\r\n") != 0;
        for (n = 0; n < TIMES; n++)
            for (k = 0; k < SETS; k++) {
                putf(all[n % 2], "EXPIRE z%d.%d 1000", i, k), client_flush(all[n % 2]);
                putf(all[2 + n % 4], "VREM z%d.%d a", i, k), client_flush(all[2 + n % 4]);
            }
        for (n = 0; n < TIMES * SETS && !all[n % 2]->late; n++) odd += *reply(all[n % 2]) != ':';
        for (n = 0; n < TIMES * SETS && !all[2 + n % 4]->late; n++) {
            const char *r = reply(all[2 + n % 4]);
            removed += strcmp(r, ":1\r\n") == 0;
            odd += strcmp(r, ":1\r\n") != 0 && strcmp(r, ":0\r\n") != 0;
        }
    }
    CHECK_EQ(odd, 0);
    CHECK_EQ(removed, ROUNDS * SETS);
    says(all[0], "DBSIZE", ":0\r\n");
}

int main(int argc, char **argv) {
    (void)signal(SIGPIPE, SIG_IGN);
    (void)atexit(end_shared);
    return test_main("nodedb_sets", argc, argv);
}
