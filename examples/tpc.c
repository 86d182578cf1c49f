/* A bank of four cores: each account belongs to one core, which alone touches it. Transfers are messages: the core of
 * the payer takes the money, and sends the rest of the work to the core of the payee. A request that would break the
 * bank panics inside its guard, is undone, and harms nobody else; the one that keeps doing it is refused for good.
 *
 *   cc -std=c99 -O2 -I. -o bank examples/tpc.c -lpthread && ./bank */
#define NODEDB_TPC_IMPLEMENTATION
#include "nodedb_tpc.h"
#include <stdio.h>

enum { CORES = 4, ACCOUNTS = 64, TRANSFERS = 100000, BAD_REQUEST = 4711 };

typedef struct transfer { /* 24 of a message's 64 bytes; the rest is free */
    uint32_t payer, payee, cents;
    bool taken;
    uint64_t request;
} transfer;

typedef struct core_state { /* one for each core, written by that core only */
    int64_t balance[ACCOUNTS];
    uint64_t done, failed, refused;
} core_state;

static void give_back(nodedb_tpc_core *core, void *arg) {
    transfer *t = (transfer *)arg;
    ((core_state *)nodedb_tpc_core_data(core))->balance[t->payer] += t->cents;
}

static void take_money(nodedb_tpc_core *core, void *arg) {
    transfer *t = (transfer *)arg;
    core_state *mine = (core_state *)nodedb_tpc_core_data(core);
    mine->balance[t->payer] -= t->cents;
    (void)nodedb_tpc_defer(core, give_back, t);
    if (t->payee >= ACCOUNTS) nodedb_tpc_panic(core, "there is no account %u", (unsigned)t->payee);
    t->taken = true;
    if (nodedb_tpc_send(core, t->payee % CORES, t) != NODEDB_OK)
        nodedb_tpc_panic(core, "core %u is busy", (unsigned)(t->payee % CORES));
}

static void on_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    transfer *t = (transfer *)message;
    core_state *mine = (core_state *)nodedb_tpc_core_data(core);
    (void)from, (void)ctx;
    if (t->taken) {
        mine->balance[t->payee] += t->cents;
        mine->done++;
        return;
    }
    switch (nodedb_tpc_guard(core, take_money, t, t->request)) {
    case NODEDB_OK: break;
    case NODEDB_ERR_FAULT: mine->failed++; break; /* a server would answer its client here */
    default: mine->refused++;
    }
}

static nodedb_status on_start(nodedb_tpc_core *core, void *ctx, nodedb_error *err) {
    (void)err;
    nodedb_tpc_core_set_data(core, (core_state *)ctx + nodedb_tpc_core_index(core));
    return NODEDB_OK;
}

int main(void) {
    static core_state cores[CORES];
    static const transfer bad = {1, ACCOUNTS, 1000000, false, BAD_REQUEST};
    nodedb_error err;
    nodedb_tpc_config config = {0};
    int64_t money = 0;
    uint64_t done = 0, failed = 0, refused = 0;
    nodedb_tpc *bank;
    uint32_t i;
    config.cores = CORES;
    config.ctx = cores;
    /* room for all 25000 transfers from one core to another: nobody is told to come again */
    config.ring_messages = 32768;
    config.on_start = on_start;
    config.on_message = on_message;
    bank = nodedb_tpc_start(&config, &err);
    if (bank == NULL) return fprintf(stderr, "%s\n", err.message), 1;
    for (i = 0; i < TRANSFERS; i++) {
        transfer message[3] = {{0, 0, 0, false, 0}}; /* 72 bytes: a message has 64 */
        message[0] = i % 25000 == 7 ? bad : (transfer){i % ACCOUNTS, i * 7 % ACCOUNTS, i % 100, false, 0};
        while (nodedb_tpc_post(bank, message[0].payer % CORES, message, &err) == NODEDB_ERR_AGAIN) sched_yield();
    }
    nodedb_tpc_stop(bank); /* lets every transfer run to its end */
    nodedb_tpc_join(bank, NULL);
    for (i = 0; i < CORES * ACCOUNTS; i++) money += cores[i / ACCOUNTS].balance[i % ACCOUNTS];
    for (i = 0; i < CORES; i++) done += cores[i].done, failed += cores[i].failed, refused += cores[i].refused;
    printf("%llu transfers done, %llu failed, %llu refused; money made or lost: %lld\n", (unsigned long long)done,
           (unsigned long long)failed, (unsigned long long)refused, (long long)money);
    nodedb_tpc_destroy(bank);
    return 0;
}
