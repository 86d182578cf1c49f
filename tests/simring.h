/* Asynchronous writing to the simulated disk, in place of a log's backend: what is started may be on the disk at any
 * time from then on, in part, and becomes durable when its completion is reaped; completions come some at a time and in
 * any order. And a real ring whose n-th operation the kernel seems to fail. Include it behind simdisk.h.
 *
 * One log at a time, one thread. */
#ifndef NODEDB_SIMRING_H
#define NODEDB_SIMRING_H

static struct {
    nodedb_wal__op op[NODEDB_WAL__MAX_OPS];
    int result[NODEDB_WAL__MAX_OPS];
    uint32_t count;
    uint64_t started, fault_at; /* this operation fails (counting from 1), 0: none */
    int fault;                  /* with this -errno, 0: it does half of what was asked */
    nodedb_wal__engine below;  /* the real one */
} simring;

/* On the disk and durable, these bytes alone. */
static inline void sim_make_durable(sim_disk *d, int fd, uint64_t offset, size_t bytes) {
    sim_file *f = &d->file[d->fd_file[fd]];
    size_t s;
    memcpy(f->durable + offset, f->now + offset, bytes);
    for (s = (size_t)offset / SIM_SECTOR_BYTES; (s + 1) * SIM_SECTOR_BYTES <= offset + bytes; s++) f->dirty[s] = 0;
}

static inline void simring_start(nodedb_wal *w, const nodedb_wal__op *op) {
    sim_disk *d = (sim_disk *)w->io.ctx;
    simring.result[simring.count] =
        op->data == NULL ? 0 : (int)sim_pwrite(d, op->fd, op->data, op->bytes, op->offset);
    simring.op[simring.count++] = *op;
    nodedb_wal__signal(w);
}

static inline uint32_t simring_reap(nodedb_wal *w, bool wait, nodedb_wal__completion *done) {
    sim_disk *d = (sim_disk *)w->io.ctx;
    uint32_t n = 0, some = simring.count == 0 ? 0 : (uint32_t)(sim_random(d) % (simring.count + 1));
    if (wait && some == 0 && simring.count > 0) some = 1;
    while (n < some) {
        uint32_t i = (uint32_t)(sim_random(d) % simring.count);
        nodedb_wal__op op = simring.op[i];
        int result = simring.result[i];
        if (op.data == NULL) result = sim_sync(d, op.fd);
        else if (op.tag < NODEDB_WAL_MAX_GROUPS && result > 0) sim_make_durable(d, op.fd, op.offset, (size_t)result);
        simring.count--;
        simring.op[i] = simring.op[simring.count];
        simring.result[i] = simring.result[simring.count];
        done[n].tag = op.tag;
        done[n].from_ring = false;
        done[n++].result = result;
    }
    return n;
}

/* The log writes asynchronously from now on, also where it writes and waits. */
static inline void simring_install(nodedb_wal *w) {
    memset(&simring, 0, sizeof simring);
    w->device.engine.start = simring_start;
    w->device.engine.reap = simring_reap;
}

/* ---- a real backend, one operation of which fails ---- */

static inline bool simring_fails(void) { return ++simring.started == simring.fault_at; }

/* The disk has done half of it when it fails. */
static inline void simring_half(const nodedb_wal__op *op) {
    size_t half = op->bytes / 2 / 4096 * 4096;
    if (op->data != NULL && half > 0 && pwrite(op->fd, op->data, half, (off_t)op->offset) < 0) perror("pwrite");
}

static inline void simring_faulty_start(nodedb_wal *w, const nodedb_wal__op *op) {
    if (!simring_fails()) {
        simring.below.start(w, op);
        return;
    }
    simring_half(op);
    simring.result[simring.count] = simring.fault != 0 ? simring.fault : (int)(op->bytes / 2 / 4096 * 4096);
    simring.op[simring.count++] = *op;
    nodedb_wal__signal(w);
}

static inline uint32_t simring_faulty_reap(nodedb_wal *w, bool wait, nodedb_wal__completion *done) {
    if (simring.count == 0) return simring.below.reap(w, wait, done);
    simring.count = 0;
    done[0].tag = simring.op[0].tag;
    done[0].from_ring = true;
    done[0].result = simring.result[0];
    return 1;
}

static inline int simring_faulty_write(nodedb_wal *w, const nodedb_wal__op *op) {
    if (!simring_fails() || (simring.fault != -EIO && simring.fault != -ENOSPC)) return simring.below.write(w, op);
    simring_half(op);
    return simring.fault;
}

static inline void simring_install_fault(nodedb_wal *w, uint64_t fault_at, int fault) {
    memset(&simring, 0, sizeof simring);
    simring.below = w->device.engine;
    simring.fault_at = fault_at;
    simring.fault = fault;
    w->device.engine.start = simring_faulty_start;
    w->device.engine.reap = simring_faulty_reap;
    w->device.engine.write = simring_faulty_write;
}

#endif
