/* A bank of four cores. Each account belongs to one core, and that core alone touches it. A transfer is a message to
 * the payer's core, which takes the money and sends the rest of the work to the payee's core. A request that would
 * break the bank panics inside its guard, is undone, and harms nobody else; the one that keeps doing it is refused.
 *
 *   cc -std=c99 -O2 -I. -o bank examples/tpc.c -lpthread && ./bank */
#define NODEDB_TPC_IMPLEMENTATION
#include "nodedb_tpc.h"
#include <stdio.h>

enum { CORES = 4, ACCOUNTS = 64, TRANSFERS = 100000, CENTS_AT_FIRST = 1000, BAD_REQUEST = 4711 };

typedef enum stage { ASKED, TAKEN, SENT } stage; /* by main; from the payer's account; to the payee's core */

typedef struct transfer { /* a message */
    uint32_t payer, payee, cents;
    stage at;
    uint64_t request;
} transfer;

typedef struct core_state { /* one for each core, written by that core only */
    int64_t balance[ACCOUNTS];
    uint64_t done, failed, refused;
} core_state;

static void open_accounts(nodedb_tpc_core *core, void *arg) { /* a call: main waits for it */
    core_state *mine = (core_state *)nodedb_tpc_core_data(core);
    for (uint32_t i = nodedb_tpc_core_index(core); i < ACCOUNTS; i += CORES) mine->balance[i] = *(const int *)arg;
}

static void give_back(nodedb_tpc_core *core, void *arg) {
    transfer *t = (transfer *)arg;
    ((core_state *)nodedb_tpc_core_data(core))->balance[t->payer] += t->cents;
}

static void take_money(nodedb_tpc_core *core, void *arg) { /* runs in the guard */
    transfer *t = (transfer *)arg;
    ((core_state *)nodedb_tpc_core_data(core))->balance[t->payer] -= t->cents;
    (void)nodedb_tpc_defer(core, give_back, t);
    if (t->payee >= ACCOUNTS) nodedb_tpc_panic(core, "there is no account %u", (unsigned)t->payee);
    t->at = TAKEN;
}

static void on_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    transfer *t = (transfer *)message, letter;
    core_state *mine = (core_state *)nodedb_tpc_core_data(core);
    (void)from, (void)ctx;
    if (t->at == SENT) {
        mine->balance[t->payee] += t->cents;
        mine->done++;
        return;
    }
    if (t->at == ASKED) {
        nodedb_status status = nodedb_tpc_guard(core, take_money, t, t->request);
        if (status == NODEDB_ERR_FAULT) mine->failed++; /* a server would answer its client here, */
        else if (status != NODEDB_OK) mine->refused++;  /* and here */
        if (status != NODEDB_OK) return;
    }
    letter = *t, letter.at = SENT;
    if (nodedb_tpc_send(core, t->payee % CORES, &letter) != NODEDB_OK)
        (void)nodedb_tpc_keep_message(core); /* that ring is full: the transfer comes again, TAKEN */
}

static nodedb_status on_start(nodedb_tpc_core *core, void *ctx, nodedb_error *err) {
    (void)err;
    nodedb_tpc_core_set_data(core, (core_state *)ctx + nodedb_tpc_core_index(core));
    return NODEDB_OK;
}

int main(void) {
    static core_state cores[CORES];
    static nodedb_tpc_config config;
    static const transfer bad = {1, ACCOUNTS, 1000000, ASKED, BAD_REQUEST};
    int cents = CENTS_AT_FIRST;
    int64_t money = -(int64_t)ACCOUNTS * CENTS_AT_FIRST;
    uint64_t done = 0, failed = 0, refused = 0;
    nodedb_error err;
    nodedb_tpc *bank;
    config.cores = CORES, config.ctx = cores, config.message_bytes = sizeof(transfer);
    config.on_start = on_start, config.on_message = on_message;
    bank = nodedb_tpc_start(&config, &err);
    if (bank == NULL) return fprintf(stderr, "%s\n", err.message), 1;
    for (uint32_t i = 0; i < CORES; i++)
        if (nodedb_tpc_call_wait(bank, i, open_accounts, &cents, 0, &err) != NODEDB_OK)
            return fprintf(stderr, "%s\n", err.message), 1;
    for (uint32_t i = 0; i < TRANSFERS; i++) {
        transfer t = {i % ACCOUNTS, i * 7 % ACCOUNTS, i % 100, ASKED, 0};
        if (i % 25000 == 7) t = bad;
        while (nodedb_tpc_post(bank, t.payer % CORES, &t, &err) == NODEDB_ERR_AGAIN) sched_yield();
    }
    nodedb_tpc_stop(bank); /* lets every transfer run to its end */
    nodedb_tpc_join(bank, NULL);
    for (uint32_t i = 0; i < CORES * ACCOUNTS; i++) money += cores[i / ACCOUNTS].balance[i % ACCOUNTS];
    for (uint32_t i = 0; i < CORES; i++) done += cores[i].done, failed += cores[i].failed, refused += cores[i].refused;
    printf("%llu transfers done, %llu failed, %llu refused; money made or lost: %lld\n", (unsigned long long)done,
           (unsigned long long)failed, (unsigned long long)refused, (long long)money);
    nodedb_tpc_destroy(bank);
    return 0;
}
