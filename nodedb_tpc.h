/* nodedb_tpc.h - v0.2 - a thread per core: rings, parking, fault isolation - public domain or MIT, as you prefer

1. WHAT IT IS FOR, AND NOT FOR
   A runtime for servers that give each CPU one thread. That thread owns its data, sockets and files outright, and
   shares nothing with other threads but rings of messages. You get:
   - a ring: one producer, one consumer, fixed-size messages; usable alone;
   - a notifier: park and wake by eventfd, with no wake-up lost and no system call for a core that is awake;
   - cores: pinned threads that drain rings, run tasks and timers, poll your sockets, park when idle, and stop in order;
   - calls: a function on another core, and its answer, for cores and for threads outside;
   - fault isolation: a task that panics (or, on request, crashes) is abandoned, undone, and answered at once.
   Not for work stealing, for blocking calls in tasks, for more than NODEDB_TPC_MAX_CORES threads, or for systems other
   than Linux. The fault guard keeps a server up; it is not a security boundary (section 8).

2. QUICK START
   Each core adds up the messages that it gets. A thread outside has a function run on a core, and gets its answer.

        #define NODEDB_TPC_IMPLEMENTATION
        #include <nodedb_tpc.h>
        #include <stdio.h>

        static unsigned long long sums[NODEDB_TPC_MAX_CORES]; // one for each core, touched by that core alone

        static void on_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
            (void)from, (void)ctx;
            sums[nodedb_tpc_core_index(core)] += *(unsigned long long *)message;
        }

        static void invert(nodedb_tpc_core *core, void *arg) { // runs on a core, inside its fault guard
            double *number = (double *)arg;
            if (*number == 0) nodedb_tpc_panic(core, "cannot invert zero");
            *number = 1 / *number;
        }

        int main(void) {
            static nodedb_tpc_config config; // zeroed: a pinned core for each CPU, messages of 64 bytes
            unsigned long long message[8] = {6, 0, 0, 0, 0, 0, 0, 0};
            double number = 4, zero = 0;
            nodedb_error err;
            nodedb_tpc *runtime;
            config.on_message = on_message;
            runtime = nodedb_tpc_start(&config, &err);
            if (runtime == NULL) return fprintf(stderr, "%s\n", err.message), 1;

            for (int i = 0; i < 7; i++)
                if (nodedb_tpc_post(runtime, 0, message, &err) != NODEDB_OK) fprintf(stderr, "%s\n", err.message);
            if (nodedb_tpc_call_wait(runtime, 0, invert, &number, 0, &err) == NODEDB_OK) printf("1/4 = %g\n", number);
            if (nodedb_tpc_call_wait(runtime, 0, invert, &zero, 0, &err) != NODEDB_OK) printf("%s\n", err.message);

            nodedb_tpc_stop(runtime);       // refuses new posts, lets the accepted ones run to their end
            nodedb_tpc_join(runtime, NULL); // returns when all cores have ended
            printf("sum: %llu\n", sums[0]);
            nodedb_tpc_destroy(runtime);
            return sums[0] == 42 ? 0 : 1;
        }

3. CONCEPTS
   Core        A thread pinned to a CPU, and all that it owns. Cores are numbered from 0. More cores than CPUs are
               allowed: they share CPUs, and then do not spin.
   Ring        There are N * N, one from each core to each; the one to itself is its local queue. Each core also has an
               inbox, where threads outside post. A mutex keeps those apart; the core reads without it.
   Turn        One round of a core's loop, in this order: poll hook; rings, at most NODEDB_TPC_BATCH_MESSAGES of each,
               another ring first each turn; calls; timers; tasks, at most NODEDB_TPC_TASKS_PER_TURN; wakes for the
               cores that were sent something; maintenance, heartbeat, checkpoint, pressure; stop. If none of that was
               work: spin or park.
   Spin        Idle turns before a park, for up to config.spin_ns, because waking a parked thread takes tens of
               microseconds on a virtual machine. The spin adapts: a park that ended within twice spin_ns asks for a
               whole spin next time, a longer park halves it. So an idle core does not spin.
   Park        Sleep for at most NODEDB_TPC_PARK_NS_MAX (100 ms) in ppoll(2) on the core's eventfd, or in your wait
               hook.
   Wake        A producer makes the system call only for a parked core. A core collects its wakes and issues them once
               in a turn; nodedb_tpc_flush() issues them now. Why none is lost: see the picture in the room NOTIFIER.
   Task        A function with an argument. It runs to its end in one turn of its core, inside the guard.
   Call        A function that runs on another core, inside the guard, and is answered. It may hold its answer back.
   Timer       A function that runs in the first turn at or after a time. Each core has its own timers. A turn runs at
               most NODEDB_TPC_TIMERS_PER_TURN of them; the others run in the turns that follow.
   Kept        A message that its handler leaves in the ring. It comes again; its sender is held back when the ring is
               full. Other senders go on.
   Guard       The frame that a fault returns to (sigsetjmp). A fault is nodedb_tpc_panic(), or with
               config.catch_signals a SIGSEGV, SIGBUS, SIGFPE or SIGILL that the CPU raises. The function is abandoned,
               what it registered by nodedb_tpc_defer() is undone in reverse order, and the failure is answered.
   Request id  Whose fault a fault is: a number of your choice, 0 for none. To shut out a client, take a number that
               survives a reconnect (its account, its address). To shut out one request only, take a hash of it.
   Refused     After faults_to_refuse (2) faults, on any cores, an id is refused everywhere until
               nodedb_tpc_reset_request(), or until the table is full of such ids (section 8). So a poisonous request
               that is repeated does not harm one core after the other.
   Degraded    After faults of faults_to_degrade (3) different ids within fault_window_ns (60 s), a core refuses all
               tasks, calls and guards, until degraded_ns (30 s) have passed or nodedb_tpc_reset_core() is called. It
               still handles messages, timers, hooks and answers. An id counts once, a fault without an id each time.
               So a client with one id never degrades a core, but a client that can get new ids does, with
               faults_to_degrade of them.
   Gate        Of a collection. Scans enter and leave. When the collection is dropped, the gate is shut: it lets no scan
               in, and says when the last one has left.
   Quarantine  Damaged parts that the server goes on without, by name, with reason and time. The text report has all
               three, the Prometheus report the names.
   Time        One clock, config.clock. With a virtual one everything that depends on time is deterministic, except how
               long a park lasts.

4. API BY TASK
   ring         nodedb_tpc_ring_create, _destroy, _push, _pop, _push_n, _pop_n; in place _reserve, _commit, _peek,
                _release (and these with _n); _length, _pressure, _get_stats, _disconnect, _disconnected, _ended
   notifier     nodedb_tpc_notifier_open, _close, _wake, _prepare, _cancel, _wait
   life         nodedb_tpc_start, _stop, _join, _destroy; _create_manual and _turn run cores on your thread, by turns
   cores        nodedb_tpc_core_count, _core_at, _core_index, _core_cpu, _core_runtime, _core_fd, _core_data,
                _core_set_data, _core_wait, nodedb_tpc_self, nodedb_tpc_stopping
   messages     nodedb_tpc_send, _flush, _keep_message, _pressure; nodedb_tpc_post from outside
   calls        nodedb_tpc_call_start, _call_hold, _call_answer; nodedb_tpc_call_wait from outside
   tasks        nodedb_tpc_spawn, _guard, _defer, _panic, _fault_text, _is_degraded, _is_refused, _reset_core,
                _reset_request
   timers       nodedb_tpc_timer_set, nodedb_tpc_timer_cancel
   quiescence   nodedb_tpc_gate_enter, _leave, _undo, _shut, _drained
   quarantine   nodedb_tpc_quarantine, nodedb_tpc_is_quarantined, nodedb_tpc_release_part, nodedb_tpc_quarantine_list
   watching     nodedb_tpc_get_stats, nodedb_tpc_latency, nodedb_tpc_stalled, nodedb_tpc_report

   A core with sockets brings two hooks. `poll` handles what is ready and never blocks. `wait` blocks until something is
   ready or the timeout has passed, and need not handle it. Put nodedb_tpc_core_fd(core) into the same epoll set,
   level-triggered. `poll` ignores its event and does not count it, because a core whose `poll` counts an event does not
   park. The runtime sets and clears the parked flag around the wait, looks at the rings once more before it, and
   empties the eventfd after it. A core without sockets leaves its wait to the runtime, by nodedb_tpc_core_wait(). A
   `wait` in milliseconds rounds up, or it spins; timers then fire up to 1 ms late. Ask for the pressure before you read
   a socket: what you do not read stays there, and what you cannot send you would have to keep yourself. Core 0 reads a
   pipe, and hands each byte to core 1:

        #define NODEDB_TPC_IMPLEMENTATION
        #include <nodedb_tpc.h>
        #include <stdio.h>
        #include <sys/epoll.h>

        static int ends[2], epoll_fd = -1; // the pipe; the epoll set of core 0

        static nodedb_status on_start(nodedb_tpc_core *core, void *ctx, nodedb_error *err) {
            struct epoll_event wake, byte;
            (void)ctx;
            if (nodedb_tpc_core_index(core) != 0) return NODEDB_OK;
            memset(&wake, 0, sizeof wake), memset(&byte, 0, sizeof byte);
            wake.events = byte.events = EPOLLIN;
            wake.data.fd = nodedb_tpc_core_fd(core), byte.data.fd = ends[0];
            epoll_fd = epoll_create1(EPOLL_CLOEXEC);
            if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake.data.fd, &wake) != 0 ||
                epoll_ctl(epoll_fd, EPOLL_CTL_ADD, ends[0], &byte) != 0)
                return nodedb_fail(err, NODEDB_ERR_IO, errno, "the epoll set of core 0"); // the status, err filled
            return NODEDB_OK;
        }
        static void my_wait(nodedb_tpc_core *core, void *ctx, uint64_t timeout_ns) { // config.wait
            struct epoll_event event;
            (void)ctx;
            if (nodedb_tpc_core_index(core) != 0) nodedb_tpc_core_wait(core, timeout_ns);
            else (void)epoll_wait(epoll_fd, &event, 1, (int)((timeout_ns + 999999) / 1000000));
        }
        static size_t my_poll(nodedb_tpc_core *core, void *ctx) { // config.poll
            struct epoll_event events[8];
            char message[64] = {0};
            size_t handled = 0;
            int ready;
            (void)ctx;
            if (nodedb_tpc_core_index(core) != 0) return 0;
            if (nodedb_tpc_pressure(core, 1) == NODEDB_TPC_PRESSURE_SUSPENDED) return 0; // the byte stays in the pipe
            ready = epoll_wait(epoll_fd, events, 8, 0);
            for (int i = 0; i < ready; i++)
                if (events[i].data.fd == ends[0] && read(ends[0], message, 1) == 1 &&
                    nodedb_tpc_send(core, 1, message) == NODEDB_OK) handled++;
            return handled;
        }
        static void on_byte(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) { // config.on_message
            (void)from, (void)ctx;
            printf("core %u got %c\n", (unsigned)nodedb_tpc_core_index(core), *(char *)message);
            nodedb_tpc_stop(nodedb_tpc_core_runtime(core));
        }

        int main(void) {
            static nodedb_tpc_config config;
            nodedb_error err;
            nodedb_tpc *runtime;
            if (pipe(ends) != 0) return 1;
            config.cores = 2, config.on_start = on_start, config.on_message = on_byte;
            config.wait = my_wait, config.poll = my_poll;
            runtime = nodedb_tpc_start(&config, &err);
            if (runtime == NULL) return fprintf(stderr, "%s\n", err.message), 1;
            if (write(ends[1], "x", 1) != 1) return 1;
            nodedb_tpc_join(runtime, NULL); // until on_byte stops it
            nodedb_tpc_destroy(runtime);
            return 0;
        }

   Stopping. nodedb_tpc_stop() refuses posts and calls from outside from then on. Everything accepted before runs to its
   end, with all that it sends, spawns and calls. A core that waits for something of its own (a log's completion) says
   so by the `pending` hook, or holds the call that waits for it. When all rings and queues are empty, no call is open
   and no core is pending, or after config.drain_ns, the cores run on_stop and end. Timers that have not fired are
   forgotten. What is left after drain_ns: tasks and calls are answered NODEDB_ERR_CANCELLED, messages are counted as
   dropped, and a warning says so. A core with sockets asks nodedb_tpc_stopping() in `poll`, and accepts no more
   connections when it is true; answers `pending` true until its replies are written; and closes its sockets in on_stop.

   Answering later. A call's function that starts something long (a log write) takes the call by nodedb_tpc_call_hold(),
   returns, and nodedb_tpc_call_answer() answers it in a later turn of the same core.

   A fault, told step by step. The task registers what must be undone (nodedb_tpc_defer), and panics or crashes. The
   undo functions run, on_task_end gets NODEDB_ERR_FAULT and the sentence, answers the client, and frees the task's
   `arg`, which lives until then. The next task runs as if nothing had happened. examples/tpc.c is a whole program.

5. THREADS
   "Own thread" means the core's thread; for a manual core, the thread that made the runtime. A function that returns a
   status answers NODEDB_ERR_STATE on any other thread. Of the others, nodedb_tpc_flush does nothing there,
   nodedb_tpc_call_hold returns NULL, nodedb_tpc_pressure returns SUSPENDED, nodedb_tpc_panic aborts the process; and
   core_data, core_set_data, core_wait and fault_text do not check. "Any thread" includes the cores. A ring has one
   producer thread and one consumer thread at a time. All hooks and callbacks of a core run on its own thread. The
   allocator is called in start, create_manual and destroy only. nodedb_tpc_call_wait() blocks its thread until the core
   has answered. The logger and the clock are called by all cores, also at the same time, so both must be thread-safe.
   The threads of cores block all signals but SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT and SIGPROF. So
   a write to a closed socket answers EPIPE there, and no SIGPIPE ends the process. Manual runtimes with catch_signals
   that share a thread are destroyed in reverse order.

6. MEMORY
   Everything is allocated in start. A ring takes its messages * message_bytes + 384 bytes. There are cores * cores
   rings of ring_messages, and an inbox of inbox_messages for each core. A core takes 6 KiB, the runtime 50 KiB; a place
   in the run queue 40 bytes, a place for a timer 8; with catch_signals 64 KiB more for each core's signal stack. So 4
   cores with the defaults take 2.0 MiB, of which rings and inboxes are 1.3 MiB. The structs of calls, timers and gates
   are the caller's. The address space of threads' stacks is the system's default.

7. ERRORS
   Each function lists its statuses. A full ring or queue is NODEDB_ERR_AGAIN: keep the message, go on, and try again in
   a later turn. Never wait for it inside a handler, because the other core may be waiting for you;
   nodedb_tpc_keep_message() leaves what you are handling where it is. NODEDB_ERR_DEGRADED means that the core is
   degraded or the id refused: nodedb_tpc_is_degraded() and nodedb_tpc_is_refused() tell which. Each core that cannot be
   pinned logs that once, and runs unpinned. An on_start that fails fills its `err` by nodedb_fail(), which is there
   where the implementation is, or after NODEDB_COMMON_TOOLS.

8. LIMITS
   The constants of the first part of the declarations bound cores, messages, tasks, timers, defers and ids. Request ids
   with faults are kept in 128 buckets of 8 places. A new id displaces one that is not refused. A refused id is
   forgotten only when its bucket would fill with refused ids: the eighth displaces one of the seven others, in turn.

   The guard cannot release a lock, or finish a malloc(), in whose middle a task was abandoned: register locks with
   nodedb_tpc_defer, and let tasks allocate from the core's own arena. It does not notice a write to a wrong but mapped
   address. It does not run C++ destructors. A signal of the CPU outside a guard goes to the handler that was there
   before this one, or ends the process; a panic outside a guard logs its sentence and aborts. A fault in a signal
   handler of yours that interrupted a guarded function abandons that function, and leaves the handler's own signal
   blocked. An undo function that faults is logged and left; the others still run. nodedb_tpc_stalled() reports a task
   that never ends; nothing can stop it. Not across fork().

9. ON DISK
   Nothing is stored.

10. BUILDING
   Include this header before any system header, or compile with -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64. C99 or C++11, gcc
   or clang. -I names its folder. Link with -lpthread; with -latomic as well where a 32-bit CPU has no 8-byte atomics
   (older Arm, MIPS).
   NODEDB_TPC_IMPLEMENTATION   in one file, before the #include: the code
   NODEDB_TPC_STATIC           beside it: the functions are private to that file
   NODEDB_TPC_API              stands before each function instead of extern: an export attribute, for example
   NODEDB_TPC_NO_REPORT        leaves out nodedb_tpc_report: 220 lines, 6 KB of code (x86-64, gcc -O2, stripped)
   NDEBUG                      leaves out the asserts of our own invariants

11. DEPARTURES
   Ring: Lamport's queue (1977) with the cached cursors of MCRingBuffer (Lee, Bu, Chandranmenon, 2010), but without its
   delayed publication: a message is visible as soon as it is pushed. Instead, the consumer of a stream looks at the
   producer's cursor seldom, and the producer fetches the lines of free slots many at a time. What that gave, in million
   single messages of 8 bytes a second, on two vCPUs of an AMD EPYC that others share (`./build.sh bench tpc`,
   ring/single):
   the others      before      now           boost::lockfree::spsc_queue
   are quiet       30 to 84    100 to 205    72 to 84
   are at work     6 to 32     42 to 62      20 to 24
   A message there and back takes as long as before.

   Notifier: Dekker's store-then-load on both sides, as in the event counts of D. Vyukov.

   Stop: Mattern's counters (1987), read in one wave instead of two, because a unit of work counts as done only after
   all that it issues has been counted as issued.

   Calls: an intrusive stack that the core takes whole, after R. K. Treiber (1986), instead of a ring. A call's struct
   is its own place in the queue, so calls need no limit, and a thread outside can wait on its own stack.

   Process-wide state: signal dispositions belong to the process, so the record of the previous ones does too. The
   signal handler finds its core by a thread-local pointer. There is no other.

12. MEASURED
   `./build.sh bench tpc --quick` prints these, on two vCPUs of an AMD EPYC that others share and use. Each figure is
   the median of five runs. Three have a reference from the same runs: a peer, or what the bare machine does.
   ring/single      63 million messages a second, of 8 bytes; boost/single 24 million
   ring/batch       180 million messages a second, 256 at a time
   ring/roundtrip   600 ns; limit/cacheline-roundtrip 740 ns, one line there and back (the difference is noise)
   park/roundtrip   80 us; limit/eventfd-roundtrip 70 us
   core/roundtrip   310 ns; on_message to on_message, between two cores that do not park
   core/call        290 ns; a call to another core, and its answer
   wake-awake       2.4 ns; waking a core that is awake
   guard            15 ns; nodedb_tpc_guard of an empty function
   idle             0.04% of a CPU; each core of a runtime with nothing to do

13. LICENCE
   Public domain (Unlicense) or MIT, as you prefer: both texts stand at the end of this file. */
/* ===================================================================================================================
 * BEGIN NODEDB BASE BLOCK: statuses, errors, memory, sentences, time. The same words in every nodedb_*.h, behind one
 * guard, so that any set of them compiles together; `./build.sh sync` copies it from nodedb_wal.h.
 * ================================================================================================================ */
#ifndef NODEDB_VERSION
#define NODEDB_VERSION "0.2.0"
#define NODEDB_VERSION_NUMBER 200 /* major * 10000 + minor * 100 + patch */

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* O_DIRECT, CPU affinity, madvise: must be seen before the first system header */
#endif
#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64 /* files over 2 GiB on 32-bit systems */
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NODEDB_CACHE_LINE_BYTES 64       /* what two threads must not share; 128 would also cover paired prefetch */
#define NODEDB_ERROR_MESSAGE_BYTES 256   /* longest sentence in nodedb_error, its final zero included */

/* What a call answers. Zero is success; every other value is explained by the nodedb_error that the caller passed. */
typedef enum nodedb_status {
    NODEDB_OK = 0,
    NODEDB_ERR_INVALID,     /* an argument is wrong: nothing was done */
    NODEDB_ERR_STATE,       /* the object is not in a state that allows this call (closed, failed, degraded ...) */
    NODEDB_ERR_NO_MEMORY,   /* the allocator refused */
    NODEDB_ERR_LIMIT,       /* a limit with a name would be passed: a budget, a table, a payload size */
    NODEDB_ERR_AGAIN,       /* not now: a bounded queue is full, or there is nothing to do yet; try later */
    NODEDB_ERR_NOT_FOUND,   /* no such record, file, engine, handle or id */
    NODEDB_ERR_EXISTS,      /* it is there already */
    NODEDB_ERR_LOCKED,      /* another process or object owns it */
    NODEDB_ERR_IO,          /* the system refused a read, write, sync or map; see sys_errno */
    NODEDB_ERR_DISK_FULL,   /* no space left on the device, or quota used up; goes away when there is room */
    NODEDB_ERR_CORRUPT,     /* stored data is not what was written: see offset and lsn */
    NODEDB_ERR_UNSUPPORTED, /* this system, file system or build cannot do it */
    NODEDB_ERR_FAULT,       /* a task panicked or faulted and was abandoned */
    NODEDB_ERR_DEGRADED,    /* refused at once, because of earlier faults */
    NODEDB_ERR_TIMEOUT,     /* the deadline passed */
    NODEDB_ERR_CANCELLED,   /* the caller, or a stop, asked for it */
    NODEDB_ERR_KEY          /* an encryption key is missing or does not fit */
} nodedb_status;

/* Why a call failed, for a program and for a person. The caller owns it, passes it or NULL; it is written only on
 * failure. `message` is one sentence: what failed, on which path, where. `offset` and `lsn` are 0 where they mean
 * nothing; `sys_errno` is the system's errno or 0. */
typedef struct nodedb_error {
    nodedb_status status;
    int sys_errno;
    uint64_t offset; /* bytes from the start of the file that the message names */
    uint64_t lsn;
    char message[NODEDB_ERROR_MESSAGE_BYTES];
} nodedb_error;

/* Where memory comes from. Zeroed: posix_memalign and free. `alloc` returns `bytes` bytes aligned to `align` (a power
 * of two, at least sizeof(void *)) or NULL; `release` gets the same `bytes` back. Called from the threads that the
 * header's manual names. */
typedef struct nodedb_allocator {
    void *(*alloc)(void *ctx, size_t bytes, size_t align);
    void (*release)(void *ctx, void *memory, size_t bytes);
    void *ctx;
} nodedb_allocator;

typedef enum nodedb_log_level { NODEDB_LOG_INFO = 0, NODEDB_LOG_WARNING, NODEDB_LOG_ERROR } nodedb_log_level;
/* Where sentences for a person go (what fell back and why, what was dropped). Zeroed: nowhere. */
typedef struct nodedb_logger {
    void (*write)(void *ctx, nodedb_log_level level, const char *sentence);
    void *ctx;
} nodedb_logger;

/* The clock. Zeroed: CLOCK_MONOTONIC. Nanoseconds that never go back; tests pass a virtual one. */
typedef struct nodedb_clock {
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
} nodedb_clock;

/* The name of a status as a sentence; never NULL. Any thread. */
static inline const char *nodedb_status_text(nodedb_status status) {
    static const char *const texts[] = {
        "success", "an argument is wrong", "the object's state does not allow this call", "out of memory",
        "a limit would be passed", "not now, try again", "not found", "exists already", "locked by another",
        "input or output failed", "no space left on the device", "stored data is damaged", "not supported here",
        "the task faulted and was abandoned", "refused, degraded after repeated faults", "the deadline passed",
        "cancelled", "an encryption key is missing or does not fit"};
    return (size_t)status < sizeof texts / sizeof texts[0] ? texts[status] : "unknown status";
}
#elif NODEDB_VERSION_NUMBER != 200
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

/* TOOLS. A program that defines NODEDB_COMMON_TOOLS before it includes a header may use what has one underscore here
 * and in the storage block. What has two is private.
 *     nodedb_fail, nodedb_io_status, nodedb_say    fill an error; the status of an errno; tell a logger
 *     nodedb_now_ns                                the clock of a config; NULL: CLOCK_MONOTONIC
 *     nodedb_mix64                                 a mixer for seeds and hashes; no secret */
#if !defined(NODEDB_BASE_INTERNALS) &&                                                                               \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) || defined(NODEDB_TPC_IMPLEMENTATION) || \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_PREFETCH_IMPLEMENTATION) || defined(NODEDB_COMMON_TOOLS))
#define NODEDB_BASE_INTERNALS 1
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "include nodedb_*.h before any system header, or compile with -D_GNU_SOURCE"
#endif

/* ThreadSanitizer does not know fences: where an argument stands on one, another way is taken under it. */
#if defined(__SANITIZE_THREAD__)
#define NODEDB__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NODEDB__TSAN 1
#endif
#endif
#define nodedb__load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define nodedb__load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define nodedb__store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define nodedb__store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define nodedb__add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define nodedb__cas(p, expected, v) \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

/* Fills `err` (if there is one) and returns `status`, so that `return nodedb_fail(...)` reads as one step. */
__attribute__((format(printf, 4, 5))) static inline nodedb_status
nodedb_fail(nodedb_error *err, nodedb_status status, int sys_errno, const char *format, ...) {
    char reason[96] = "unknown error";
    const char *why = reason;
    va_list args;
    int used;
    if (err == NULL) return status;
    memset(err, 0, sizeof *err);
    err->status = status, err->sys_errno = sys_errno;
    va_start(args, format);
    used = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    if (sys_errno == 0 || used < 0 || (size_t)used + 4 >= sizeof err->message) return status;
#if defined(__GLIBC__)
    why = strerror_r(sys_errno, reason, sizeof reason);
#else
    (void)strerror_r(sys_errno, reason, sizeof reason);
#endif
    (void)snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", why);
    return status;
}

__attribute__((format(printf, 3, 4))) static inline void
nodedb_say(const nodedb_logger *logger, nodedb_log_level level, const char *format, ...) {
    char sentence[NODEDB_ERROR_MESSAGE_BYTES * 2];
    va_list args;
    if (logger == NULL || logger->write == NULL) return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    logger->write(logger->ctx, level, sentence);
}

static inline void *nodedb__alloc(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = NULL;
    if (bytes == 0) bytes = 1;
    if (align < sizeof(void *)) align = sizeof(void *);
    if (allocator != NULL && allocator->alloc != NULL) return allocator->alloc(allocator->ctx, bytes, align);
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}
static inline void *nodedb__alloc_zero(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = nodedb__alloc(allocator, bytes, align);
    return memory != NULL ? memset(memory, 0, bytes) : NULL;
}
static inline void nodedb__release(const nodedb_allocator *allocator, void *memory, size_t bytes) {
    if (memory == NULL) return;
    if (allocator == NULL || allocator->release == NULL) free(memory);
    else allocator->release(allocator->ctx, memory, bytes == 0 ? 1 : bytes);
}

static inline uint64_t nodedb_now_ns(const nodedb_clock *clock) {
    struct timespec t;
    if (clock != NULL && clock->now_ns != NULL) return clock->now_ns(clock->ctx);
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* A small mixer for seeds and hashes: splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t nodedb_mix64(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* A system call that a signal may cut off: again, until it was not. */
#define nodedb__retry(result, call) do (result) = (call); while ((result) < 0 && errno == EINTR)
/* The status that an errno means. */
static inline nodedb_status nodedb_io_status(int error) {
    if (error == ENOSPC || error == EDQUOT) return NODEDB_ERR_DISK_FULL;
    return error == ENOMEM ? NODEDB_ERR_NO_MEMORY : NODEDB_ERR_IO;
}
#endif
/* END NODEDB BASE BLOCK =========================================================================================== */

#ifndef NODEDB_TPC_H
#define NODEDB_TPC_H

#include <assert.h>
#include <string.h>

#if defined(NODEDB_TPC_STATIC) && !defined(NODEDB_TPC_IMPLEMENTATION)
#error "NODEDB_TPC_STATIC needs NODEDB_TPC_IMPLEMENTATION in the same file"
#endif
#if !defined(NODEDB_TPC_API) && defined(NODEDB_TPC_STATIC)
#define NODEDB_TPC_API static __attribute__((unused))
#elif !defined(NODEDB_TPC_API)
#define NODEDB_TPC_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- limits ------------------------------------------------------------------------------------------------------ */
#define NODEDB_TPC_MAX_CORES 256
#define NODEDB_TPC_MAX_MESSAGE_BYTES 4096
#define NODEDB_TPC_MAX_RING_MESSAGES (UINT32_C(1) << 24)
#define NODEDB_TPC_MAX_QUEUE_TASKS (UINT32_C(1) << 24)
#define NODEDB_TPC_MAX_TIMERS (UINT32_C(1) << 20) /* per core */
#define NODEDB_TPC_MAX_DEFERS 64                  /* per core, of all nested guards together */
#define NODEDB_TPC_MAX_NAME_BYTES 11              /* "name-255" must fit into the kernel's 15 characters */
#define NODEDB_TPC_MAX_FAULTS_TO_DEGRADE 64
#define NODEDB_TPC_SUSPECT_IDS 1024               /* request ids with faults that a runtime remembers */
#define NODEDB_TPC_BATCH_MESSAGES 64              /* per ring and turn */
#define NODEDB_TPC_CALLS_PER_TURN 64              /* calls to run and answers to deliver, together */
#define NODEDB_TPC_TIMERS_PER_TURN 64
#define NODEDB_TPC_TASKS_PER_TURN 256
#define NODEDB_TPC_PARK_NS_MAX UINT64_C(100000000)
#define NODEDB_TPC_HEARTBEAT_JITTER_NS UINT64_C(100000000) /* two beats are heartbeat_ns apart, plus or minus this */
#define NODEDB_TPC_MAX_QUARANTINED 128            /* parts per runtime */
#define NODEDB_TPC_MAX_PART_BYTES 64              /* name of a part, final zero included */
#define NODEDB_TPC_MAX_REASON_BYTES 192           /* why it is quarantined, final zero included */

#define NODEDB_TPC_OUTSIDE UINT32_MAX             /* `from` of a message that no core sent */
#define NODEDB_TPC_OFF UINT64_MAX                 /* for spin_ns, heartbeat_ns, watchdog_ns, checkpoint_ns: never */
#define NODEDB_TPC_NEVER UINT32_MAX               /* for faults_to_degrade and faults_to_refuse */

/* ---- the ring: one producer, one consumer, fixed-size messages --------------------------------------------------- */

/* Two cache lines, because CPUs prefetch lines in pairs: what the producer writes stays out of the consumer's pair. */
#define NODEDB_TPC__APART_BYTES (2 * NODEDB_CACHE_LINE_BYTES)
#define NODEDB_TPC__APART __attribute__((aligned(2 * NODEDB_CACHE_LINE_BYTES)))
#define NODEDB_TPC__AHEAD_BYTES 512     /* the consumer prefetches so far ahead of what it reads */
#define NODEDB_TPC__OWN_AHEAD_BYTES 1024 /* the producer takes so much of the ring from the consumer's cache at once, */
#define NODEDB_TPC__OWN_AHEAD_MESSAGE_BYTES_MAX 16 /* where messages are so small that several share a line */
#define NODEDB_TPC__LOOK_TICKS 2048     /* of the time stamp counter, between two looks at a stream's cursor */
#define NODEDB_TPC__LOOK_TURNS 64       /* ends that wait where the counter stands still */

typedef enum nodedb_tpc_pressure_level {
    NODEDB_TPC_PRESSURE_NONE = 0,
    NODEDB_TPC_PRESSURE_THROTTLED, /* from 85% full until below 75%: send less */
    NODEDB_TPC_PRESSURE_SUSPENDED  /* from 95% full until below 85%: send nothing that can wait */
} nodedb_tpc_pressure_level;

/* A ring. The fields are here only so that push and pop can be inlined: use the functions. `head` and `tail` count
 * messages since the beginning and wrap around at the word's size; tail - head is the length. Each side keeps a copy of
 * the other's cursor, and looks at the real one only when the copy says full (or empty), so the line rarely travels. */
typedef struct nodedb_tpc_ring {
    /* fixed, except `disconnected`, which is set once */
    unsigned char *slots;
    size_t mask; /* capacity - 1 */
    size_t message_bytes;
    size_t block_bytes; /* of the allocation: this struct and the slots behind it */
    nodedb_allocator allocator;
    uint32_t disconnected;

    /* written by the producer */
    NODEDB_TPC__APART size_t tail;
    size_t head_seen;       /* copy of `head`; never ahead of it */
    size_t tail_high_water; /* greatest length that the producer found when it looked at `head` */
    nodedb_tpc_pressure_level pressure;

    /* written by the consumer */
    NODEDB_TPC__APART size_t head;
    size_t tail_seen; /* copy of `tail`; never ahead of it */
    size_t head_high_water;
    uint64_t next_look; /* time stamp before which pop does not look at `tail` again; 0: no limit */
} nodedb_tpc_ring;

typedef struct nodedb_tpc_ring_stats {
    size_t capacity, length;
    size_t high_water; /* greatest length that either side found when it looked, or the present one */
    uint64_t pushed;   /* since the beginning; modulo the word's size */
} nodedb_tpc_ring_stats;

/* Makes a ring of `messages` slots (a power of two, 2 to NODEDB_TPC_MAX_RING_MESSAGES) of `message_bytes` each (1 to
 * NODEDB_TPC_MAX_MESSAGE_BYTES). `allocator` NULL: the system's. Slot i begins i * message_bytes after the start of a
 * cache line, so a slot is aligned to the largest power of two, up to 64, that divides message_bytes. NULL on
 * NODEDB_ERR_INVALID or NODEDB_ERR_NO_MEMORY. The caller owns the ring and calls nodedb_tpc_ring_destroy when neither
 * thread uses it any more. */
NODEDB_TPC_API nodedb_tpc_ring *nodedb_tpc_ring_create(size_t messages, size_t message_bytes,
                                                       const nodedb_allocator *allocator, nodedb_error *err);
NODEDB_TPC_API void nodedb_tpc_ring_destroy(nodedb_tpc_ring *ring);

/* Says that one side leaves. From then on push refuses; pop goes on until the ring is empty. Any thread. */
NODEDB_TPC_API void nodedb_tpc_ring_disconnect(nodedb_tpc_ring *ring);

/* Messages in the ring. Any thread. For the producer an upper bound, because the consumer may take some meanwhile; for
 * the consumer a lower bound. */
NODEDB_TPC_API size_t nodedb_tpc_ring_length(const nodedb_tpc_ring *ring);
NODEDB_TPC_API void nodedb_tpc_ring_get_stats(const nodedb_tpc_ring *ring, nodedb_tpc_ring_stats *stats);

/* How much the producer should hold back; the levels have hysteresis. The producer's thread only. */
NODEDB_TPC_API nodedb_tpc_pressure_level nodedb_tpc_ring_pressure(nodedb_tpc_ring *ring);

static inline void nodedb_tpc__copy(void *to, const void *from, size_t bytes) {
    __asm__("" : "+r"(to), "+r"(from)); /* keeps gcc from warning about cases larger than the caller's message */
    switch (bytes) {                    /* a constant size becomes single moves */
    case 8: memcpy(to, from, 8); break;
    case 16: memcpy(to, from, 16); break;
    case 64: memcpy(to, from, 64); break;
    default: memcpy(to, from, bytes);
    }
}

/* The free space: how many slots the producer may fill. Looks at the consumer's cursor only if the copy allows fewer
 * than `wanted`. */
static inline size_t nodedb_tpc__ring_space(nodedb_tpc_ring *ring, size_t wanted) {
    size_t capacity = ring->mask + 1, used = ring->tail - ring->head_seen;
    assert(used <= capacity);
    if (capacity - used < wanted) {
        /* acquire: the consumer has finished reading the slots before this cursor */
        ring->head_seen = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
        used = ring->tail - ring->head_seen;
        if (used > ring->tail_high_water) __atomic_store_n(&ring->tail_high_water, used, __ATOMIC_RELAXED);
        assert(used <= capacity);
    }
    return capacity - used;
}

/* How many messages the consumer may read. Looks at the producer's cursor only if the copy offers fewer than
 * `wanted`. */
static inline size_t nodedb_tpc__ring_ready(nodedb_tpc_ring *ring, size_t wanted) {
    size_t ready = ring->tail_seen - ring->head;
    assert(ready <= ring->mask + 1);
    if (ready < wanted) {
        ring->tail_seen = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE); /* the slots before it are written */
        ready = ring->tail_seen - ring->head;
        if (ready > ring->head_high_water) __atomic_store_n(&ring->head_high_water, ready, __ATOMIC_RELAXED);
        assert(ready <= ring->mask + 1);
    }
    return ready;
}

/* Writing in place, in the producer's thread. Returns the first of *count contiguous free slots; *count becomes smaller
 * where the ring is nearly full or its end is near. NULL and 0 if the ring is full or disconnected. The consumer sees
 * nothing before commit_n, which takes up to that many. A second reserve without commit returns the same slots. */
static inline void *nodedb_tpc_ring_reserve_n(nodedb_tpc_ring *ring, size_t *count) {
    size_t at, space;
    if (ring == NULL || count == NULL || *count == 0) return NULL;
    space = __atomic_load_n(&ring->disconnected, __ATOMIC_RELAXED) != 0 ? 0 : nodedb_tpc__ring_space(ring, *count);
    at = ring->tail & ring->mask;
    if (space > ring->mask + 1 - at) space = ring->mask + 1 - at;
    if (space < *count) *count = space;
    return *count == 0 ? NULL : ring->slots + at * ring->message_bytes;
}
static inline void nodedb_tpc_ring_commit_n(nodedb_tpc_ring *ring, size_t count) {
    assert(ring->tail - ring->head_seen + count <= ring->mask + 1); /* at most what was reserved */
    __atomic_store_n(&ring->tail, ring->tail + count, __ATOMIC_RELEASE);
}
/* One slot. NULL if the ring is full or disconnected. */
static inline void *nodedb_tpc_ring_reserve(nodedb_tpc_ring *ring) {
    if (ring == NULL || __atomic_load_n(&ring->disconnected, __ATOMIC_RELAXED) != 0) return NULL;
    if (nodedb_tpc__ring_space(ring, 1) == 0) return NULL;
    return ring->slots + (ring->tail & ring->mask) * ring->message_bytes;
}
static inline void nodedb_tpc_ring_commit(nodedb_tpc_ring *ring) { nodedb_tpc_ring_commit_n(ring, 1); }

/* Reading in place, in the consumer's thread. Returns the first of *count contiguous messages; *count becomes smaller
 * where there are fewer. NULL and 0 if there are none. They stay until release_n. A second peek without release returns
 * the same messages. */
static inline void *nodedb_tpc_ring_peek_n(nodedb_tpc_ring *ring, size_t *count) {
    size_t at, ready;
    if (ring == NULL || count == NULL || *count == 0) return NULL;
    ready = nodedb_tpc__ring_ready(ring, *count);
    at = ring->head & ring->mask;
    if (ready > ring->mask + 1 - at) ready = ring->mask + 1 - at;
    if (ready < *count) *count = ready;
    return *count == 0 ? NULL : ring->slots + at * ring->message_bytes;
}
static inline void nodedb_tpc_ring_release_n(nodedb_tpc_ring *ring, size_t count) {
    assert(count <= ring->tail_seen - ring->head); /* at most what was seen */
    __atomic_store_n(&ring->head, ring->head + count, __ATOMIC_RELEASE);
}
/* One message. NULL if there is none. */
static inline void *nodedb_tpc_ring_peek(nodedb_tpc_ring *ring) {
    if (ring == NULL || nodedb_tpc__ring_ready(ring, 1) == 0) return NULL;
    return ring->slots + (ring->head & ring->mask) * ring->message_bytes;
}
static inline void nodedb_tpc_ring_release(nodedb_tpc_ring *ring) { nodedb_tpc_ring_release_n(ring, 1); }

/* Takes the KiB of free slots after the next KiB out of the consumer's cache, by a store into each line. Reason: a
 * store waits for its cache line, and all later stores wait behind it. Small messages put many stores into few lines,
 * so the store buffer requests few lines at a time. Stores into many lines at once make the CPU fetch them side by
 * side. */
static inline void nodedb_tpc__ring_own_ahead(nodedb_tpc_ring *ring, size_t at) {
    size_t end = (ring->mask + 1) * ring->message_bytes;
    size_t space = (ring->mask + 1 - (ring->tail - ring->head_seen)) * ring->message_bytes;
    if (space < 2 * NODEDB_TPC__OWN_AHEAD_BYTES) return;
    for (size_t line = NODEDB_TPC__OWN_AHEAD_BYTES; line < 2 * NODEDB_TPC__OWN_AHEAD_BYTES;
         line += NODEDB_CACHE_LINE_BYTES) {
        size_t place = at + line < end ? at + line : at + line - end;
        *(volatile unsigned char *)(ring->slots + place) = 0;
    }
}

/* Copies one message in. False if the ring is full or disconnected. Producer's thread. May overwrite free slots. */
static inline bool nodedb_tpc_ring_push(nodedb_tpc_ring *ring, const void *message) {
    unsigned char *slot = (unsigned char *)nodedb_tpc_ring_reserve(ring);
    if (slot == NULL || message == NULL) return false;
    nodedb_tpc__copy(slot, message, ring->message_bytes);
    nodedb_tpc_ring_commit(ring);
    if (((size_t)(slot - ring->slots) & (NODEDB_TPC__OWN_AHEAD_BYTES - 1)) < ring->message_bytes &&
        ring->message_bytes <= NODEDB_TPC__OWN_AHEAD_MESSAGE_BYTES_MAX)
        nodedb_tpc__ring_own_ahead(ring, (size_t)(slot - ring->slots));
    return true;
}

/* Looks at the producer's cursor, after all known messages have been read; true if there are more. Each look takes the
 * cursor's line away from the producer, which needs it for the next message. So a look that found a stream (more than
 * two messages) delays the next one by about half a microsecond: that one finds more, and the producer works
 * undisturbed meanwhile. One or two messages are a dialogue, where looks follow each other without delay. */
static inline bool nodedb_tpc__ring_look(nodedb_tpc_ring *ring) {
    size_t ready, end, bytes, at;
#if defined(__x86_64__)
    for (int turn = 0; ring->next_look != 0 && turn < NODEDB_TPC__LOOK_TURNS &&
                       (int64_t)(__builtin_ia32_rdtsc() - ring->next_look) < 0; turn++)
        __builtin_ia32_pause();
#endif
    ready = nodedb_tpc__ring_ready(ring, 1);
#if defined(__x86_64__)
    ring->next_look = ready > 2 ? __builtin_ia32_rdtsc() + NODEDB_TPC__LOOK_TICKS : 0;
#endif
    if (ready < 2) return ready != 0;
    end = (ring->mask + 1) * ring->message_bytes;
    at = (ring->head & ring->mask) * ring->message_bytes;
    bytes = ready * ring->message_bytes;
    if (bytes > NODEDB_TPC__AHEAD_BYTES) bytes = NODEDB_TPC__AHEAD_BYTES;
    for (size_t line = NODEDB_CACHE_LINE_BYTES; line < bytes; line += NODEDB_CACHE_LINE_BYTES)
        __builtin_prefetch(ring->slots + (at + line < end ? at + line : at + line - end), 0);
    return true;
}

/* Copies one message out. False if there is none. Consumer's thread. After a stream it may wait up to a microsecond
 * before it looks at the producer's cursor again, whatever it then finds (x86: by rdtsc). A thread that reads several
 * rings calls pop_n or peek_n, which never wait. */
static inline bool nodedb_tpc_ring_pop(nodedb_tpc_ring *ring, void *message) {
    unsigned char *slot;
    if (ring == NULL || message == NULL) return false;
    if (ring->tail_seen == ring->head && !nodedb_tpc__ring_look(ring)) return false;
    slot = ring->slots + (ring->head & ring->mask) * ring->message_bytes;
    /* At each new line prefetch a later one, or every line is a miss of its own. Only where its messages are written: a
     * prefetch of a free slot would take the line from the producer. */
    if (((uintptr_t)slot & (NODEDB_CACHE_LINE_BYTES - 1)) < ring->message_bytes &&
        (ring->tail_seen - ring->head) * ring->message_bytes > NODEDB_TPC__AHEAD_BYTES)
        __builtin_prefetch((const void *)((uintptr_t)slot + NODEDB_TPC__AHEAD_BYTES), 0);
    nodedb_tpc__copy(message, slot, ring->message_bytes);
    nodedb_tpc_ring_release(ring);
    return true;
}
/* Up to `count` messages that lie one behind the other; returns how many. The other side sees them all at once. */
static inline size_t nodedb_tpc_ring_push_n(nodedb_tpc_ring *ring, const void *messages, size_t count) {
    size_t at, first, space;
    if (ring == NULL || messages == NULL || __atomic_load_n(&ring->disconnected, __ATOMIC_RELAXED) != 0) return 0;
    space = nodedb_tpc__ring_space(ring, count);
    if (count > space) count = space;
    at = ring->tail & ring->mask;
    first = count < ring->mask + 1 - at ? count : ring->mask + 1 - at;
    memcpy(ring->slots + at * ring->message_bytes, messages, first * ring->message_bytes);
    memcpy(ring->slots, (const unsigned char *)messages + first * ring->message_bytes,
           (count - first) * ring->message_bytes);
    nodedb_tpc_ring_commit_n(ring, count);
    return count;
}
static inline size_t nodedb_tpc_ring_pop_n(nodedb_tpc_ring *ring, void *messages, size_t count) {
    size_t at, first, ready;
    if (ring == NULL || messages == NULL) return 0;
    ready = nodedb_tpc__ring_ready(ring, count);
    if (count > ready) count = ready;
    at = ring->head & ring->mask;
    first = count < ring->mask + 1 - at ? count : ring->mask + 1 - at;
    memcpy(messages, ring->slots + at * ring->message_bytes, first * ring->message_bytes);
    memcpy((unsigned char *)messages + first * ring->message_bytes, ring->slots, (count - first) * ring->message_bytes);
    nodedb_tpc_ring_release_n(ring, count);
    return count;
}
/* True if a side has disconnected. Any thread. */
static inline bool nodedb_tpc_ring_disconnected(const nodedb_tpc_ring *ring) {
    return __atomic_load_n(&ring->disconnected, __ATOMIC_ACQUIRE) != 0;
}
/* True if no message will follow: the producer has disconnected and the last message was taken. Consumer's thread. */
static inline bool nodedb_tpc_ring_ended(nodedb_tpc_ring *ring) {
    return nodedb_tpc_ring_disconnected(ring) && nodedb_tpc__ring_ready(ring, 1) == 0; /* in this order */
}

/* ---- the notifier: one sleeper, any number of wakers ------------------------------------------------------------- */

/* A waker makes its work visible (it pushes), and then calls wake. The sleeper calls prepare, looks for work once more,
 * and then calls cancel (there was some) or wait. A sleeper with an event loop of its own may wait for `fd` to become
 * readable instead of wait; after that it calls cancel. */
typedef struct nodedb_tpc_notifier {
    uint32_t parked; /* 1 from prepare until cancel, or until a waker resets it and so wins the right to write `fd` */
    int fd;          /* an eventfd(2) */
} nodedb_tpc_notifier;

/* The caller owns the struct, which must stay where it is, and closes it. NODEDB_ERR_INVALID; NODEDB_ERR_LIMIT: no more
 * descriptors; NODEDB_ERR_IO. */
NODEDB_TPC_API nodedb_status nodedb_tpc_notifier_open(nodedb_tpc_notifier *notifier, nodedb_error *err);
NODEDB_TPC_API void nodedb_tpc_notifier_close(nodedb_tpc_notifier *notifier);
/* True: the sleeper was parked, and this call made the system call. False, without one: it is awake, or another waker
 * has its flag and wakes it. Any thread. */
NODEDB_TPC_API bool nodedb_tpc_notifier_wake(nodedb_tpc_notifier *notifier);
/* Sleeper's thread. After prepare the first wake makes the eventfd readable, and it stays so until cancel (or wait). */
NODEDB_TPC_API void nodedb_tpc_notifier_prepare(nodedb_tpc_notifier *notifier);
NODEDB_TPC_API void nodedb_tpc_notifier_cancel(nodedb_tpc_notifier *notifier);
/* Sleeps until a wake or the timeout, then cancels. May return early. */
NODEDB_TPC_API void nodedb_tpc_notifier_wait(nodedb_tpc_notifier *notifier, uint64_t timeout_ns);

/* ---- the runtime: types, configuration, statistics --------------------------------------------------------------- */
typedef struct nodedb_tpc nodedb_tpc;           /* all cores */
typedef struct nodedb_tpc_core nodedb_tpc_core; /* one core; lives as long as its runtime */

/* A task, a call, a timer's function, or what undoes one. Runs on the thread of `core`. */
typedef void (*nodedb_tpc_fn)(nodedb_tpc_core *core, void *arg);

/* Zeroed: one core for each CPU, all defaults, no hooks. Every hook may be NULL, runs on its core's own thread outside
 * the guard, and gets `ctx`. */
typedef struct nodedb_tpc_config {
    void *ctx;
    uint32_t cores;          /* 0: one for each CPU that sched_getaffinity(2) allows; at most NODEDB_TPC_MAX_CORES */
    uint32_t message_bytes;  /* 0: 64; at most NODEDB_TPC_MAX_MESSAGE_BYTES */
    uint32_t ring_messages;  /* 0: 1024; from core to core; a power of two */
    uint32_t inbox_messages; /* 0: 1024; from outside to a core; a power of two */
    uint32_t queue_tasks;    /* 0: 4096; a core's run queue; a power of two */
    uint32_t timers;         /* 0: 1024; that a core has set at a time; at most NODEDB_TPC_MAX_TIMERS */
    bool unpinned;           /* leave the threads to the scheduler */
    bool catch_signals;      /* guards catch SIGSEGV, SIGBUS, SIGFPE and SIGILL as well as panics */
    const char *name;        /* NULL: "tpc"; threads are called "name-0" ...; at most NODEDB_TPC_MAX_NAME_BYTES */
    uint64_t spin_ns;        /* 0: 50 us; longest spin before a park; NODEDB_TPC_OFF: none */
    uint64_t heartbeat_ns;   /* 0: 1 s; at least 200 ms; NODEDB_TPC_OFF: none, and stalls are not logged */
    uint64_t watchdog_ns;    /* 0: 5 s; a longer turn is a stall; NODEDB_TPC_OFF: none is */
    uint64_t maintenance_interval_ns; /* 0: 1 ms; at least, between two calls of `maintain`, unless it says there is
                                       * more. No core wakes for it: a parked one calls it up to 100 ms later */
    uint64_t maintenance_budget_ns;   /* 0: 200 us; handed to `maintain` */
    uint32_t maintenance_percent;     /* 0: 20; most of a busy core's time for `maintain`; idle time has no limit */
    uint64_t checkpoint_ns;  /* 0: 300 s; between two calls of `on_checkpoint`; NODEDB_TPC_OFF: none */
    uint64_t drain_ns;       /* 0: 10 s; how long a stop waits for the queues to empty */
    uint64_t seed;           /* of the heartbeats' jitter */

    /* When faults shut out a request id, and when they shut out a core (section 3, "Refused" and "Degraded"). */
    uint32_t faults_to_refuse;  /* 0: 2; of one request id, on any cores; NODEDB_TPC_NEVER */
    uint32_t faults_to_degrade; /* 0: 3; of as many different ids, on one core; at most
                                 * NODEDB_TPC_MAX_FAULTS_TO_DEGRADE; NODEDB_TPC_NEVER */
    uint64_t fault_window_ns;   /* 0: 60 s; faults_to_degrade faults within this time degrade the core */
    uint64_t degraded_ns;       /* 0: 30 s; then a degraded core tries again; NODEDB_TPC_OFF: only a reset ends it */

    nodedb_allocator allocator;
    nodedb_logger logger;
    nodedb_clock clock;

    /* The core begins: make its arena, sockets, data. All cores run it at the same time; none takes its first turn
     * before all have succeeded. If one answers another status than NODEDB_OK, start fails with that status and the
     * sentence in `err`, and names the core. */
    nodedb_status (*on_start)(nodedb_tpc_core *core, void *ctx, nodedb_error *err);
    /* The core ends: its last call. Called for exactly the cores whose on_start succeeded. */
    void (*on_stop)(nodedb_tpc_core *core, void *ctx);
    /* A message from core `from`, or from NODEDB_TPC_OUTSIDE. `message` is the ring's slot: it is valid until the hook
     * returns. Messages of one sender arrive in order. Call nodedb_tpc_guard for what may fault. A handler that cannot
     * take the message now calls nodedb_tpc_keep_message. */
    void (*on_message)(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx);
    /* Once for every task that nodedb_tpc_spawn accepted, as soon as it is over, with the task's `arg`: free it here,
     * not in the task, which may be refused or abandoned. NODEDB_OK; _FAULT; _DEGRADED; _TIMEOUT: its deadline passed
     * before it began; _CANCELLED: left over by a stop. `sentence` says why ("" for NODEDB_OK) and is valid until the
     * hook returns. */
    void (*on_task_end)(nodedb_tpc_core *core, void *arg, nodedb_status status, const char *sentence, void *ctx);
    /* Every turn. Handles what is ready, without blocking; returns how many events it handled (0: no work). The event
     * of nodedb_tpc_core_fd does not count. */
    size_t (*poll)(nodedb_tpc_core *core, void *ctx);
    /* Blocks until nodedb_tpc_core_fd(core), or whatever else the core waits for, is readable, or timeout_ns has
     * passed. May return early. NULL: nodedb_tpc_core_wait. */
    void (*wait)(nodedb_tpc_core *core, void *ctx, uint64_t timeout_ns);
    /* Housekeeping for about budget_ns. True: there is more, and it is called again as soon as maintenance_percent
     * allows. */
    bool (*maintain)(nodedb_tpc_core *core, void *ctx, uint64_t budget_ns);
    /* Every heartbeat_ns, plus or minus NODEDB_TPC_HEARTBEAT_JITTER_NS. A busy core's beat waits until it is idle. */
    void (*on_heartbeat)(nodedb_tpc_core *core, void *ctx);
    /* Every checkpoint_ns. The cores take turns: core i of n follows the first by i / n of that time. */
    void (*on_checkpoint)(nodedb_tpc_core *core, void *ctx);
    /* The pressure of the ring from this core to core `to` has changed. Checked after each send, and in every turn
     * while there is any. */
    void (*on_pressure)(nodedb_tpc_core *core, uint32_t to, nodedb_tpc_pressure_level level, void *ctx);
    /* Asked while the runtime stops and the core is idle. True: the core still waits for something of its own, and goes
     * on. */
    bool (*pending)(nodedb_tpc_core *core, void *ctx);
} nodedb_tpc_config;

/* Of one core, since the start. The core counts without locks: a reader sees each number whole, but not all numbers of
 * one instant. */
typedef struct nodedb_tpc_stats {
    uint64_t turns, spins, parks;        /* spins: idle turns that did not park */
    uint64_t messages, batches;          /* handled; batches: runs of messages taken from one ring at once */
    uint64_t kept;                       /* times that a handler left a message in its ring */
    uint64_t sent, send_refused;         /* by this core; refused: the ring was full */
    uint64_t posted;                     /* messages and calls from outside that were accepted for this core */
    uint64_t calls;                      /* run, or refused, by this core */
    uint64_t wakes, wakes_avoided;       /* system calls made and avoided, for this core's messages and posts to it */
    uint64_t tasks;                      /* spawned tasks that are over, however they ended */
    uint64_t timers;                     /* that fired */
    uint64_t faults, degradations, refused, timeouts; /* refused: answered NODEDB_ERR_DEGRADED */
    uint64_t heartbeats, dropped;        /* dropped: messages, and answers to calls, that reached nobody */
    uint64_t checkpoints, pressure_changes;
    uint64_t latency_ns;                 /* of all tasks together, from spawn to end */
    uint64_t busy_ns, idle_ns, maintenance_ns;
    uint64_t tasks_high_water, ring_high_water; /* longest run queue; longest ring that leads to this core */
    bool degraded;                       /* now: nodedb_tpc_is_degraded */
} nodedb_tpc_stats;

/* ---- life -------------------------------------------------------------------------------------------------------- */

/* Starts the cores' threads, runs on_start on all of them, and lets them go. The config is copied, `name` included;
 * NULL means all defaults. Any thread. NULL on NODEDB_ERR_INVALID, NODEDB_ERR_NO_MEMORY, NODEDB_ERR_LIMIT (descriptors
 * or threads), NODEDB_ERR_IO, or the status of an on_start; then nothing is left behind. */
NODEDB_TPC_API nodedb_tpc *nodedb_tpc_start(const nodedb_tpc_config *config, nodedb_error *err);
/* The same cores without threads: the caller's thread owns them all and runs each one by nodedb_tpc_turn. Not pinned;
 * cores 0 means one. on_start has run for each core, in order, when it returns. Errors as for start. */
NODEDB_TPC_API nodedb_tpc *nodedb_tpc_create_manual(const nodedb_tpc_config *config, nodedb_error *err);
/* One turn of a manual core. With nothing to do it waits at most max_wait_ns (0: not at all). NODEDB_OK: it did
 * something; NODEDB_ERR_AGAIN: there was nothing to do; NODEDB_ERR_CANCELLED: the core has ended after a stop;
 * NODEDB_ERR_INVALID; NODEDB_ERR_STATE: not a manual core, not its thread, or inside a turn or guard. */
NODEDB_TPC_API nodedb_status nodedb_tpc_turn(nodedb_tpc_core *core, uint64_t max_wait_ns);
/* Asks all cores to drain and end (section 4, "Stopping"), and returns at once. Any thread, any number of times. */
NODEDB_TPC_API void nodedb_tpc_stop(nodedb_tpc *runtime);
/* Returns when all cores have ended; it does not stop them. Takes the turns of manual cores. Statistics stay readable.
 * One thread outside, the one that also destroys. NODEDB_ERR_INVALID; NODEDB_ERR_STATE: a core's own thread, or manual
 * cores that were not stopped. */
NODEDB_TPC_API nodedb_status nodedb_tpc_join(nodedb_tpc *runtime, nodedb_error *err);
/* Stops and joins where that was not done, and frees everything. NULL is fine. Not on a core's own thread, and not
 * while another thread is inside a call with this runtime. */
NODEDB_TPC_API void nodedb_tpc_destroy(nodedb_tpc *runtime);

/* ---- cores: any thread, unless it says otherwise ----------------------------------------------------------------- */
NODEDB_TPC_API uint32_t nodedb_tpc_core_count(const nodedb_tpc *runtime);                /* 0 for NULL */
NODEDB_TPC_API nodedb_tpc_core *nodedb_tpc_core_at(nodedb_tpc *runtime, uint32_t index); /* NULL out of range */
NODEDB_TPC_API nodedb_tpc_core *nodedb_tpc_self(void); /* the core whose thread (or manual turn) this is, or NULL */
NODEDB_TPC_API uint32_t nodedb_tpc_core_index(const nodedb_tpc_core *core);
NODEDB_TPC_API int nodedb_tpc_core_cpu(const nodedb_tpc_core *core); /* that it is pinned to, or -1 */
NODEDB_TPC_API nodedb_tpc *nodedb_tpc_core_runtime(const nodedb_tpc_core *core);
NODEDB_TPC_API int nodedb_tpc_core_fd(const nodedb_tpc_core *core);  /* its eventfd: for a poll set, do not read it */
NODEDB_TPC_API void *nodedb_tpc_core_data(const nodedb_tpc_core *core);          /* your pointer; own thread */
NODEDB_TPC_API void nodedb_tpc_core_set_data(nodedb_tpc_core *core, void *data); /* own thread */
NODEDB_TPC_API bool nodedb_tpc_stopping(const nodedb_tpc *runtime);              /* true once stop was called */
/* Waits for the core's eventfd alone, at most timeout_ns: what the runtime does without a `wait` hook. For a hook that
 * serves cores with sockets and cores without. Own thread, inside the hook. */
NODEDB_TPC_API void nodedb_tpc_core_wait(nodedb_tpc_core *core, uint64_t timeout_ns);

/* ---- messages ---------------------------------------------------------------------------------------------------- */

/* Copies message_bytes from `message` into the ring to core `to` (the own index too), for its on_message. Own thread.
 * NODEDB_ERR_AGAIN: the ring is full; NODEDB_ERR_CANCELLED: the cores have ended; NODEDB_ERR_INVALID;
 * NODEDB_ERR_STATE. */
NODEDB_TPC_API nodedb_status nodedb_tpc_send(nodedb_tpc_core *from, uint32_t to, const void *message);
/* Issues the wakes for what was sent now, instead of at the end of the turn. Own thread. */
NODEDB_TPC_API void nodedb_tpc_flush(nodedb_tpc_core *core);
/* Back pressure. Called by on_message: the message stays in its ring, and comes again in a later turn (after at most
 * 1 ms); no later message of that sender comes before it. The sender is refused when the ring is full. What the
 * handler has written into the message stays there. NODEDB_ERR_STATE: not inside on_message, or not the own
 * thread; NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_keep_message(nodedb_tpc_core *core);
/* The pressure of the ring to core `to`, with hysteresis. Own thread. SUSPENDED where an argument is wrong. */
NODEDB_TPC_API nodedb_tpc_pressure_level nodedb_tpc_pressure(nodedb_tpc_core *from, uint32_t to);
/* Like send, from any thread, through the core's inbox; wakes the core at once. NODEDB_ERR_AGAIN: the inbox is full;
 * NODEDB_ERR_CANCELLED: the runtime is stopping; NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_post(nodedb_tpc *runtime, uint32_t to, const void *message, nodedb_error *err);

/* ---- calls: a function on another core, and its answer ----------------------------------------------------------- */

/* One call at a time. The caller owns the struct, zeroes it once, fills the first four fields, and leaves it alone and
 * in place from nodedb_tpc_call_start until it is answered; after a stop that ran out of drain_ns, until
 * nodedb_tpc_join has returned. There is no limit of calls but the number of these structs. */
typedef struct nodedb_tpc_call nodedb_tpc_call;
struct nodedb_tpc_call {
    nodedb_tpc_fn fn;    /* runs in a turn of the core that is called, inside its guard: fn(that core, arg) */
    void *arg;
    uint64_t request_id; /* as for nodedb_tpc_spawn */
    /* In a turn of the calling core, outside the guard, so a fault here ends the process. May be NULL. */
    void (*answered)(nodedb_tpc_core *core, nodedb_tpc_call *call);
    nodedb_status status; /* the answer: NODEDB_OK, _FAULT, _DEGRADED, _CANCELLED, or that of nodedb_tpc_call_answer */

    /* private: see the room MESSAGES */
    nodedb_tpc_call *next, *previous;
    nodedb_tpc_core *caller, *holder;
    uint32_t state;
};

/* Calls call->fn on core `to` (the own index too), and returns at once. Own thread. Calls of one core to one other run
 * in order, but not in order with its messages. NODEDB_ERR_STATE: the struct is in use, or not the own thread;
 * NODEDB_ERR_CANCELLED: the cores have ended, and `answered` will not be called; NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_call_start(nodedb_tpc_core *from, uint32_t to, nodedb_tpc_call *call);
/* The same for a thread outside: returns when fn(core, arg) has run, and been answered. That is how a thread that is
 * not a core asks and gets an answer: `arg` carries both. NODEDB_OK, _FAULT, _DEGRADED, or what nodedb_tpc_call_answer
 * said; NODEDB_ERR_CANCELLED: the runtime is stopping; NODEDB_ERR_STATE: this is a core's own thread, which must not
 * block; NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_call_wait(nodedb_tpc *runtime, uint32_t to, nodedb_tpc_fn fn, void *arg,
                                                  uint64_t request_id, nodedb_error *err);
/* Inside a call's fn: the call is not answered when fn returns, but by nodedb_tpc_call_answer. Returns the call, or
 * NULL outside of one. Hold last: if fn faults after it, the call is answered NODEDB_ERR_FAULT and must not be answered
 * again. A stop waits for held calls, and answers what is left after drain_ns with NODEDB_ERR_CANCELLED. */
NODEDB_TPC_API nodedb_tpc_call *nodedb_tpc_call_hold(nodedb_tpc_core *core);
/* Answers a held call, on the core that held it, before on_stop. NODEDB_ERR_STATE: it is not held, or not the own
 * thread; NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_call_answer(nodedb_tpc_core *core, nodedb_tpc_call *call, nodedb_status status);

/* ---- tasks and faults -------------------------------------------------------------------------------------------- */

/* Puts a task at the end of the core's run queue. `deadline_ns` is a time of config.clock, 0: none; the task does not
 * begin after it. `request_id` says whose fault a fault is (section 3, "Request id"); 0: nobody's.
 * Own thread. NODEDB_OK: on_task_end will answer. Any other status is the answer: NODEDB_ERR_AGAIN: the queue is full;
 * NODEDB_ERR_DEGRADED: the core is degraded or the id refused; NODEDB_ERR_CANCELLED: the cores have ended;
 * NODEDB_ERR_INVALID; NODEDB_ERR_STATE. */
NODEDB_TPC_API nodedb_status nodedb_tpc_spawn(nodedb_tpc_core *core, nodedb_tpc_fn fn, void *arg, uint64_t deadline_ns,
                                              uint64_t request_id);
/* Runs fn(core, arg) now, inside the fault guard, for about the price of a sigsetjmp. Guards may be nested: a fault
 * ends the innermost. Own thread. NODEDB_OK; NODEDB_ERR_FAULT: it was abandoned and undone, nodedb_tpc_fault_text says
 * why; NODEDB_ERR_DEGRADED: it did not begin; NODEDB_ERR_INVALID; NODEDB_ERR_STATE. */
NODEDB_TPC_API nodedb_status nodedb_tpc_guard(nodedb_tpc_core *core, nodedb_tpc_fn fn, void *arg, uint64_t request_id);
/* Inside a guard: if the running function is abandoned, undo(core, arg) is called. Last registered, first called;
 * forgotten when the function returns. Each undo runs in a guard of its own: one that faults is logged and left, and
 * what it had registered itself is not undone. NODEDB_ERR_LIMIT: NODEDB_TPC_MAX_DEFERS are registered;
 * NODEDB_ERR_INVALID; NODEDB_ERR_STATE: no guard. */
NODEDB_TPC_API nodedb_status nodedb_tpc_defer(nodedb_tpc_core *core, nodedb_tpc_fn undo, void *arg);
/* Abandons the running guarded function. Own thread. The sentence is cut to 200 bytes and gets "core 0: ", with the
 * core's number, in front. Outside a guard it is logged, and the process aborts. */
NODEDB_TPC_API void nodedb_tpc_panic(nodedb_tpc_core *core, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
/* Why the last guarded function or task failed or was refused, as a sentence; valid until the next one fails or is
 * refused. Own thread. */
NODEDB_TPC_API const char *nodedb_tpc_fault_text(const nodedb_tpc_core *core);
/* Why NODEDB_ERR_DEGRADED: the core is degraded, or the id is refused on all cores. Any thread. False where an
 * argument is wrong. */
NODEDB_TPC_API bool nodedb_tpc_is_degraded(const nodedb_tpc *runtime, uint32_t core);
NODEDB_TPC_API bool nodedb_tpc_is_refused(const nodedb_tpc *runtime, uint64_t request_id);
/* Ends the degradation of a core now, and forgets the faults that it counted. Any thread. NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_reset_core(nodedb_tpc *runtime, uint32_t core);
/* Forgets the faults of a request id, which is admitted again. Any thread. NODEDB_ERR_NOT_FOUND: none are known;
 * NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_reset_request(nodedb_tpc *runtime, uint64_t request_id);

/* ---- timers ------------------------------------------------------------------------------------------------------ */

/* One timer. The caller owns the struct, zeroes it once, and leaves it alone and in place while it is set. */
typedef struct nodedb_tpc_timer {
    nodedb_tpc_fn fn;
    void *arg;
    uint64_t due_ns;
    uint64_t order; /* private: equal times fire in the order in which they were set */
    uint32_t place; /* private: 1 + its place in the core's heap; 0: not set */
} nodedb_tpc_timer;

/* Calls fn(core, arg) once, in the first turn that begins at or after due_ns, a time of config.clock; outside the
 * guard. A turn runs at most NODEDB_TPC_TIMERS_PER_TURN; the rest follow in the next turns, the earliest due first. A
 * timer that is set already moves; fn may set its own timer again. A stop forgets the timers that have not
 * fired when the queues are empty. Own thread. NODEDB_ERR_LIMIT: config.timers are set; NODEDB_ERR_INVALID;
 * NODEDB_ERR_STATE: not the own thread, or set on another core. */
NODEDB_TPC_API nodedb_status nodedb_tpc_timer_set(nodedb_tpc_core *core, nodedb_tpc_timer *timer, uint64_t due_ns,
                                                  nodedb_tpc_fn fn, void *arg);
/* Own thread. NODEDB_ERR_NOT_FOUND: it is not set; NODEDB_ERR_INVALID; NODEDB_ERR_STATE as above. */
NODEDB_TPC_API nodedb_status nodedb_tpc_timer_cancel(nodedb_tpc_core *core, nodedb_tpc_timer *timer);

/* ---- quiescence: a collection that is being dropped -------------------------------------------------------------- */

/* A zeroed gate is open. Any thread may use it at any time. The caller owns the memory, and keeps it until the gate is
 * drained and no thread can call enter or shut any more: take it out of the catalogue first. */
typedef struct nodedb_tpc_gate {
    uint64_t state __attribute__((aligned(8))); /* scans inside, times two; plus 1 when shut */
    void (*drained)(void *ctx);
    void *ctx;
} nodedb_tpc_gate;

/* A scan begins. False if the gate is shut; after true the scan calls leave once. In a task that may fault, register
 * nodedb_tpc_gate_undo by nodedb_tpc_defer, once for each scan, directly after enter. On that core leave takes the
 * registration back, so the scan leaves once, wherever the task is abandoned: before leave, in `drained`, or later. */
NODEDB_TPC_API bool nodedb_tpc_gate_enter(nodedb_tpc_gate *gate);
NODEDB_TPC_API void nodedb_tpc_gate_leave(nodedb_tpc_gate *gate);
NODEDB_TPC_API void nodedb_tpc_gate_undo(nodedb_tpc_core *core, void *gate);
/* No scan enters from now on. `drained` (may be NULL) is called once, when none is inside: by the thread of the last
 * leave, inside that task's guard if it has one, or here. NODEDB_ERR_STATE: it is shut already; NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_gate_shut(nodedb_tpc_gate *gate, void (*drained)(void *ctx), void *ctx);
NODEDB_TPC_API bool nodedb_tpc_gate_drained(const nodedb_tpc_gate *gate); /* shut, and no scan inside */

/* ---- quarantine: damaged parts, by name; any thread -------------------------------------------------------------- */

typedef struct nodedb_tpc_quarantined {
    char part[NODEDB_TPC_MAX_PART_BYTES], reason[NODEDB_TPC_MAX_REASON_BYTES];
    uint64_t since_ns; /* a time of config.clock */
} nodedb_tpc_quarantined;

/* Puts a part (a segment, a page range, a file) into quarantine, and logs it. `reason` may be NULL; a long one is cut.
 * NODEDB_ERR_EXISTS: it is quarantined, and its first reason stays; NODEDB_ERR_LIMIT: NODEDB_TPC_MAX_QUARANTINED are;
 * NODEDB_ERR_INVALID: no name, or one too long. */
NODEDB_TPC_API nodedb_status nodedb_tpc_quarantine(nodedb_tpc *runtime, const char *part, const char *reason);
/* True if `part` is quarantined; one load while the list is empty. `what` may be NULL. */
NODEDB_TPC_API bool nodedb_tpc_is_quarantined(const nodedb_tpc *runtime, const char *part,
                                              nodedb_tpc_quarantined *what);
/* The part is whole again. NODEDB_ERR_NOT_FOUND; NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_release_part(nodedb_tpc *runtime, const char *part);
/* Copies up to `most` entries, the oldest first; returns how many there are. */
NODEDB_TPC_API size_t nodedb_tpc_quarantine_list(const nodedb_tpc *runtime, nodedb_tpc_quarantined *list, size_t most);

/* ---- watching: any thread ---------------------------------------------------------------------------------------- */

/* NODEDB_ERR_INVALID. */
NODEDB_TPC_API nodedb_status nodedb_tpc_get_stats(const nodedb_tpc *runtime, uint32_t core, nodedb_tpc_stats *stats);
/* The time within which `per_mille` (1 to 1000; 990 is p99) of the core's tasks were over, from spawn to end: at least
 * the true one, and at most a quarter more. 0: no task yet, or an argument is wrong. */
NODEDB_TPC_API uint64_t nodedb_tpc_latency(const nodedb_tpc *runtime, uint32_t core, uint32_t per_mille);
/* True if the core has been in one turn for more than watchdog_ns. (Another core that notices it in its heartbeat also
 * logs it, once for each stall.) */
NODEDB_TPC_API bool nodedb_tpc_stalled(const nodedb_tpc *runtime, uint32_t core);
#ifndef NODEDB_TPC_NO_REPORT
typedef enum nodedb_tpc_format {
    NODEDB_TPC_TEXT = 0,   /* a few lines for each core, for a person */
    NODEDB_TPC_PROMETHEUS  /* text exposition format 0.0.4: counters, gauges and a histogram, by runtime and core */
} nodedb_tpc_format;
/* All statistics, and what is quarantined. Writes at most `size` bytes, the final zero included; returns the length of
 * the whole text. */
NODEDB_TPC_API size_t nodedb_tpc_report(const nodedb_tpc *runtime, nodedb_tpc_format format, char *buffer, size_t size);
#endif

#ifdef __cplusplus
}
#endif
#endif /* NODEDB_TPC_H */

#if defined(NODEDB_TPC_IMPLEMENTATION) && !defined(NODEDB_TPC_IMPLEMENTED)
#define NODEDB_TPC_IMPLEMENTED 1

/* =====================================================================================================================
 * IMPLEMENTATION
 *
 *   STRUCTURES    what a core and the runtime are made of
 *   RING          making a ring, and looking at one from outside
 *   NOTIFIER      park and wake, and why no wake-up is lost
 *   LOOP          a core's turn, its spin and its park
 *   MESSAGES      send, post, deliver; calls and their answers
 *   TASKS         the run queue; the guard, signals, and what is refused after faults
 *   TIME          timers, maintenance, checkpoints, heartbeats, the watchdog
 *   LIFE          making a runtime, starting its cores, stopping them when all work is done
 *   STATISTICS    what the cores have counted
 *   QUIESCENCE    gates
 *   QUARANTINE    the list of damaged parts
 *   REPORTS       statistics as text, for a person and for Prometheus
 * ================================================================================================================== */

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* =====================================================================================================================
 * STRUCTURES: what a core and the runtime are made of
 *
 *      core 0         core 1         core 2           A core owns the consumer's side of the rings that lead to it,
 *     +------+  ring +------+  ring +------+          and the producer's side of those that lead away. All other
 *     | turn | ----> | turn | ----> | turn |          fields of a core are its own, or atomics with one writer, or
 *     |      | <---- |      | <---- |      |          stand in the last part of the struct, which any thread writes.
 *     +------+       +------+       +------+
 *         ^ inbox        ^ inbox        ^ inbox       Threads outside reach a core through its inbox, under a lock
 *         |              |              |             that draining never takes.
 *       threads outside: post, call_wait
 * ================================================================================================================== */

/* ---- sizes and times --------------------------------------------------------------------------------------------- */
#define NODEDB_TPC__SECOND_NS UINT64_C(1000000000)
#define NODEDB_TPC__MILLISECOND_NS UINT64_C(1000000)
#define NODEDB_TPC__DEFAULT_MESSAGE_BYTES 64
#define NODEDB_TPC__DEFAULT_RING_MESSAGES 1024
#define NODEDB_TPC__DEFAULT_QUEUE_TASKS 4096
#define NODEDB_TPC__DEFAULT_TIMERS 1024
#define NODEDB_TPC__DEFAULT_SPIN_NS UINT64_C(50000)
#define NODEDB_TPC__DEFAULT_MAINTENANCE_BUDGET_NS UINT64_C(200000)
#define NODEDB_TPC__DEFAULT_MAINTENANCE_PERCENT 20
#define NODEDB_TPC__DEFAULT_FAULTS_TO_REFUSE 2
#define NODEDB_TPC__DEFAULT_FAULTS_TO_DEGRADE 3
#define NODEDB_TPC__SPIN_TURNS_MAX 16384 /* ends a spin where a virtual clock stands still */
/* Longest park of a core that waits for what no wake announces: the end of a stop, a ring that another core empties, a
 * message that its handler will take later. */
#define NODEDB_TPC__UNANNOUNCED_PARK_NS_MAX NODEDB_TPC__MILLISECOND_NS
#define NODEDB_TPC__SIGNAL_STACK_BYTES ((size_t)65536) /* a frame with AVX-512 state takes about 4 KiB */
#define NODEDB_TPC__SIGNAL_STACK_ALIGN 4096
#define NODEDB_TPC__BEAT_SLOTS 4096      /* places for one core's beat within the jitter */
#define NODEDB_TPC__SUSPECT_WAYS 8       /* a bucket of the table of suspects is two cache lines */
#define NODEDB_TPC__SUSPECT_BUCKETS (NODEDB_TPC_SUSPECT_IDS / NODEDB_TPC__SUSPECT_WAYS)
#define NODEDB_TPC__WORDS(bits) (((bits) + 63) / 64)
#define NODEDB_TPC__THREAD_NAME_BYTES 24 /* NODEDB_TPC_MAX_NAME_BYTES, a dash, any number, a zero */

/* A counter with one writer that others read. The alignment keeps it whole on 32-bit systems too. */
typedef uint64_t nodedb_tpc__counter __attribute__((aligned(8)));
#define nodedb_tpc__count(counter, n) nodedb__store_relaxed((counter), nodedb__load_relaxed(counter) + (n))

static inline void nodedb_tpc__pause(void) {
#if defined(__i386__) || defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* ---- a core ------------------------------------------------------------------------------------------------------ */

/* A place in the run queue, which is a circle of queue_tasks of them; the core's own. */
typedef struct nodedb_tpc__task {
    nodedb_tpc_fn fn;
    void *arg;
    uint64_t deadline_ns, request_id;
    uint64_t spawned_ns;
} nodedb_tpc__task;

/* What a guarded function has registered; valid until it returns, or is undone. */
typedef struct nodedb_tpc__undo {
    nodedb_tpc_fn fn; /* NULL: taken back */
    void *arg;
} nodedb_tpc__undo;

/* The frame that a fault returns to. Lives on the stack of nodedb_tpc__run; nothing in it changes after sigsetjmp. */
typedef struct nodedb_tpc__guard_frame {
    sigjmp_buf env;
    struct nodedb_tpc__guard_frame *outer;
    nodedb_tpc_core *current_outside; /* nodedb_tpc__current before: a manual core's guard may run between turns */
    uint32_t defers;                  /* registered before it began: its own begin there */
} nodedb_tpc__guard_frame;

/* A fault that counts towards degrading a core. */
typedef struct nodedb_tpc__counted_fault {
    uint64_t request_id; /* 0: nobody's, so an id of its own */
    uint64_t at_ns;
} nodedb_tpc__counted_fault;

/* What a core's on_message does with the message that it was handed:
 *   NONE -> DELIVERED   before each run of messages
 *   DELIVERED -> KEPT   nodedb_tpc_keep_message: the message stays in the ring
 *   any -> NONE         after the run */
typedef enum nodedb_tpc__delivery {
    NODEDB_TPC__NONE,
    NODEDB_TPC__DELIVERED,
    NODEDB_TPC__KEPT
} nodedb_tpc__delivery;

/* What a core is to a stop. Only the core itself changes it:
 *   ACTIVE -> QUIET   stopping: it was idle and not pending
 *   QUIET -> ACTIVE   it has issued or received something since, or is pending again
 *   any -> ENDED      its last turn is over */
enum { NODEDB_TPC__ACTIVE, NODEDB_TPC__QUIET, NODEDB_TPC__ENDED };

/* What a call's struct is. The core that has it changes it:
 *   IDLE -> SENT       nodedb_tpc_call_start: it is on its way to the core that is called
 *   SENT -> RUNNING    that core runs its function
 *   RUNNING -> HELD    nodedb_tpc_call_hold: in that core's list of held calls
 *   RUNNING, HELD, SENT -> ANSWERED   it has a status, and is on its way back
 *   ANSWERED -> IDLE   the calling core has it again, and tells `answered`
 * A call from outside ends where it is answered: its struct is on the stack of the thread that waits. */
enum {
    NODEDB_TPC__CALL_IDLE, /* 0: a zeroed struct */
    NODEDB_TPC__CALL_SENT,
    NODEDB_TPC__CALL_RUNNING,
    NODEDB_TPC__CALL_HELD,
    NODEDB_TPC__CALL_ANSWERED
};

/* What threads outside share with the core. `lock` keeps producers apart and guards `closed`; the core reads the ring
 * without it. */
typedef struct nodedb_tpc__inbox {
    pthread_mutex_t lock;
    nodedb_tpc_ring *ring;
    bool closed; /* a stop has begun: nothing is accepted any more */
    nodedb_tpc__counter posted, wakes, wakes_avoided;
} nodedb_tpc__inbox;

/* Latencies in nanoseconds, by octave and quarter of one: exact below 4; above, a value whose highest bit is e counts
 * in place 4 (e - 1) + the two bits after it. */
#define NODEDB_TPC__LATENCIES 252u

/* One core, an allocation of its own. Grouped by who writes; the groups that others write or read often have cache
 * lines of their own. Between turns: no guard is active and no defer registered; queue_tail - queue_head tasks wait;
 * `to_wake` has a bit for each core that was sent something and not yet woken. */
struct nodedb_tpc_core {
    /* fixed before the first turn */
    nodedb_tpc *runtime;
    uint32_t index;
    int cpu;                    /* -1: not pinned */
    pthread_t thread;           /* of a manual core: the creator's */
    nodedb_status start_status; /* NODEDB_OK: on_start has succeeded; NODEDB_ERR_STATE: it has not run */
    nodedb_error start_error;
    nodedb_tpc__task *queue;    /* config.queue_tasks */
    nodedb_tpc_timer **timers;  /* config.timers; a binary heap, the next at 0 */
    unsigned char *signal_stack;
    stack_t signal_stack_before;

    /* the core's own */
    void *data;
    bool in_turn;          /* of a manual core */
    bool last_turn_worked; /* so the time since then was busy */
    uint32_t queue_head, queue_tail;
    uint32_t first_ring;   /* the next turn drains this one first, for fairness */
    nodedb_tpc__delivery delivery;
    uint32_t kept_rings;   /* with a bit in `kept` */
    uint64_t kept[NODEDB_TPC__WORDS(NODEDB_TPC_MAX_CORES + 1)]; /* rings whose first message was left there this turn */
    uint64_t to_wake[NODEDB_TPC__WORDS(NODEDB_TPC_MAX_CORES)];
    bool to_wake_any;
    nodedb_tpc_call *calls;        /* taken from calls_in, the oldest first */
    nodedb_tpc_call *held_calls;
    nodedb_tpc_call *running_call; /* NULL also when it was answered while its function runs */
    uint32_t timer_count;
    uint64_t timer_order;
    uint64_t idle_since_ns, spin_ns; /* spin_ns: the present length of the adaptive spin */
    uint32_t idle_turns;             /* 0: not idle, and idle_since_ns means nothing */
    uint64_t maintenance_due_ns;
    bool maintenance_more;
    uint64_t maintenance_free_ns; /* from then on a busy core may do more of it */
    uint64_t checkpoint_due_ns;
    uint32_t pressed_rings;       /* that lead away from here and are under pressure */
    uint64_t beat_due_ns, beat;
    bool beat_owed;               /* due, and the core has not been idle since */
    uint32_t phase_seen;

    /* faults; the guard's fields are also written by a signal handler on this thread */
    nodedb_tpc__guard_frame *volatile guard;
    volatile int fault_signal;
    void *volatile fault_address;
    nodedb_tpc__undo defers[NODEDB_TPC_MAX_DEFERS];
    uint32_t defer_count;
    nodedb_tpc__counted_fault counted[NODEDB_TPC_MAX_FAULTS_TO_DEGRADE]; /* the latest, of different ids */
    uint32_t counted_faults;
    const char *fault_sentence; /* fault_text, or a literal */
    char fault_text[NODEDB_ERROR_MESSAGE_BYTES];

    /* written by the core, read by any thread: relaxed, except in the protocol of a stop */
    NODEDB_TPC__APART nodedb_tpc__counter turn_ns; /* when the present turn began */
    nodedb_tpc__counter issued, done; /* units of work: sent, spawned, called; handled, ended, answered */
    nodedb_tpc__counter degraded_until_ns; /* 0: not degraded; see nodedb_tpc__core_degraded */
    uint32_t state;
    nodedb_tpc_stats stats __attribute__((aligned(8))); /* `degraded` is filled in for a reader */
    nodedb_tpc__counter latencies[NODEDB_TPC__LATENCIES];

    /* written by any thread */
    NODEDB_TPC__APART nodedb_tpc_notifier notifier;
    nodedb_tpc_call *calls_in;           /* the latest first; CALLS_CLOSED after the core has ended */
    uint32_t reset_wanted;               /* nodedb_tpc_reset_core: the core obeys when it next looks */
    NODEDB_TPC__APART nodedb_tpc__inbox inbox;
    nodedb_tpc__counter stall_said_turn; /* 1 + the turn whose stall was logged */
};

/* ---- the runtime ------------------------------------------------------------------------------------------------- */

/* A request id that has faulted. Written under suspects_lock, read without it: `id` is released after `faults` is 0. */
typedef struct nodedb_tpc__suspect {
    nodedb_tpc__counter id;
    uint32_t faults; /* 0: the place is free */
} nodedb_tpc__suspect;

/* How far a stop has come. Only goes up:
 *   RUNNING -> CLOSING    nodedb_tpc_stop: the inboxes are being closed
 *   CLOSING -> STOPPING   all are closed: the cores drain
 *   STOPPING -> DRAINED   all work is done, or drain_ns has passed: each core ends in its next turn */
enum { NODEDB_TPC__RUNNING, NODEDB_TPC__CLOSING, NODEDB_TPC__STOPPING, NODEDB_TPC__DRAINED };

/* What the cores wait for after on_start. */
typedef enum nodedb_tpc__verdict { NODEDB_TPC__UNDECIDED, NODEDB_TPC__GO, NODEDB_TPC__ABORT } nodedb_tpc__verdict;

/* The runtime. Its cores and rings are fixed after start. */
struct nodedb_tpc {
    nodedb_tpc_config config; /* with the defaults filled in */
    char name[NODEDB_TPC_MAX_NAME_BYTES + 1];
    uint32_t core_count;
    bool manual, joined;
    bool catching;        /* has its share in the process's signal handlers */
    bool share_cpus;      /* fewer CPUs than cores, or only one, which threads outside need as well */
    uint64_t spin_ns_max; /* config.spin_ns, or 0 where cores share CPUs */
    uint64_t epoch_ns;    /* heartbeats and checkpoints count from here */
    nodedb_tpc_core **cores;
    nodedb_tpc_ring **rings; /* from * core_count + to */

    pthread_mutex_t start_lock; /* guards the next two */
    pthread_cond_t start_changed;
    uint32_t arrived;           /* cores that have run on_start */
    nodedb_tpc__verdict verdict;

    uint32_t phase;
    uint64_t stop_ns; /* valid from STOPPING on */

    pthread_mutex_t quarantine_lock;
    uint32_t quarantine_count; /* also read without the lock */
    nodedb_tpc_quarantined quarantine[NODEDB_TPC_MAX_QUARANTINED]; /* the oldest first */

    pthread_mutex_t suspects_lock; /* for writers; readers take none */
    uint32_t suspects_any;         /* 1 once an id has faulted */
    uint32_t suspect_hand;         /* the next to forget in a bucket full of refused ids */
    nodedb_tpc__suspect suspects[NODEDB_TPC__SUSPECT_BUCKETS][NODEDB_TPC__SUSPECT_WAYS];
};

/* The core that runs on this thread: a signal handler has no other way to find it. Initial-exec, so that reading it
 * never allocates. */
static __thread nodedb_tpc_core *nodedb_tpc__current __attribute__((tls_model("initial-exec")));

static inline uint64_t nodedb_tpc__now(const nodedb_tpc *runtime) { return nodedb_now_ns(&runtime->config.clock); }

static inline bool nodedb_tpc__on_own_thread(const nodedb_tpc_core *core) {
    return pthread_equal(core->thread, pthread_self()) != 0;
}

static inline nodedb_tpc_ring *nodedb_tpc__ring_between(const nodedb_tpc *runtime, uint32_t from, uint32_t to) {
    return runtime->rings[(size_t)from * runtime->core_count + to];
}

/* The ring number `from` that leads to this core: core_count is the inbox's. */
static inline nodedb_tpc_ring *nodedb_tpc__ring_to(const nodedb_tpc_core *core, uint32_t from) {
    if (from == core->runtime->core_count) return core->inbox.ring;
    return nodedb_tpc__ring_between(core->runtime, from, core->index);
}

/* The core is not quiet: it has been handed something, or is about to issue something. */
static inline void nodedb_tpc__stir(nodedb_tpc_core *core) {
    if (core->state == NODEDB_TPC__QUIET) nodedb__store_relaxed(&core->state, (uint32_t)NODEDB_TPC__ACTIVE);
}

/* Before a unit of work becomes visible: a stop must neither take this core for quiet nor miss the unit. */
static inline void nodedb_tpc__issue(nodedb_tpc_core *core) {
    nodedb_tpc__stir(core);
    nodedb_tpc__count(&core->issued, 1u);
}

/* After units have been handled, and all that they issued has been counted. */
static inline void nodedb_tpc__done(nodedb_tpc_core *core, uint64_t units) {
    nodedb__store_release(&core->done, core->done + units);
}

/* =====================================================================================================================
 * RING: making a ring, and looking at one from outside
 *
 * What the two threads of a ring do stands above, in the declarations, where it can be inlined.
 *
 *                 head                    tail
 *                  v                       v
 *     +---+---+---+---+---+---+---+---+---+---+---+---+       the consumer reads from head up to its copy of tail;
 *     |   |   |   | 3 | 4 | 5 | 6 | 7 | 8 |   |   |   |       the producer writes from tail up to its copy of head,
 *     +---+---+---+---+---+---+---+---+---+---+---+---+       one round further
 * ================================================================================================================== */

NODEDB_TPC_API nodedb_tpc_ring *nodedb_tpc_ring_create(size_t messages, size_t message_bytes,
                                                       const nodedb_allocator *allocator, nodedb_error *err) {
    size_t slots_bytes, block_bytes;
    nodedb_tpc_ring *ring;
    if (messages < 2 || messages > NODEDB_TPC_MAX_RING_MESSAGES || (messages & (messages - 1)) != 0) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                          "a ring of %llu messages: the number must be a power of two, 2 to %u",
                          (unsigned long long)messages, (unsigned)NODEDB_TPC_MAX_RING_MESSAGES);
        return NULL;
    }
    if (message_bytes == 0 || message_bytes > NODEDB_TPC_MAX_MESSAGE_BYTES) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "a ring's messages of %llu bytes: 1 to %d are possible",
                          (unsigned long long)message_bytes, NODEDB_TPC_MAX_MESSAGE_BYTES);
        return NULL;
    }
    if (__builtin_mul_overflow(messages, message_bytes, &slots_bytes) || slots_bytes > SIZE_MAX - sizeof *ring) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "a ring of this size does not fit into the address space");
        return NULL;
    }
    block_bytes = sizeof *ring + slots_bytes;
    ring = (nodedb_tpc_ring *)nodedb__alloc(allocator, block_bytes, NODEDB_TPC__APART_BYTES);
    if (ring == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a ring of %llu bytes",
                          (unsigned long long)block_bytes);
        return NULL;
    }
    memset(ring, 0, sizeof *ring);
    ring->slots = (unsigned char *)(ring + 1);
    ring->mask = messages - 1;
    ring->message_bytes = message_bytes;
    ring->block_bytes = block_bytes;
    if (allocator != NULL) ring->allocator = *allocator;
    return ring;
}

NODEDB_TPC_API void nodedb_tpc_ring_destroy(nodedb_tpc_ring *ring) {
    nodedb_allocator allocator;
    if (ring == NULL) return;
    allocator = ring->allocator; /* it lies in what is released */
    nodedb__release(&allocator, ring, ring->block_bytes);
}

NODEDB_TPC_API void nodedb_tpc_ring_disconnect(nodedb_tpc_ring *ring) {
    if (ring != NULL) nodedb__store_release(&ring->disconnected, 1u);
}

NODEDB_TPC_API size_t nodedb_tpc_ring_length(const nodedb_tpc_ring *ring) {
    size_t head, length;
    if (ring == NULL) return 0;
    head = nodedb__load_acquire(&ring->head); /* first, so that the tail read after it is never behind it */
    length = nodedb__load_acquire(&ring->tail) - head;
    return length <= ring->mask + 1 ? length : ring->mask + 1;
}

NODEDB_TPC_API void nodedb_tpc_ring_get_stats(const nodedb_tpc_ring *ring, nodedb_tpc_ring_stats *stats) {
    size_t seen;
    if (stats == NULL) return;
    memset(stats, 0, sizeof *stats);
    if (ring == NULL) return;
    stats->capacity = ring->mask + 1;
    stats->length = stats->high_water = nodedb_tpc_ring_length(ring);
    seen = nodedb__load_relaxed(&ring->tail_high_water);
    if (seen > stats->high_water) stats->high_water = seen;
    seen = nodedb__load_relaxed(&ring->head_high_water);
    if (seen > stats->high_water) stats->high_water = seen;
    stats->pushed = nodedb__load_relaxed(&ring->tail);
}

/* Below 75%: NONE. From 75%: SUSPENDED becomes THROTTLED. From 85%: NONE becomes THROTTLED. From 95%: SUSPENDED. */
NODEDB_TPC_API nodedb_tpc_pressure_level nodedb_tpc_ring_pressure(nodedb_tpc_ring *ring) {
    size_t percent_used, capacity;
    if (ring == NULL) return NODEDB_TPC_PRESSURE_SUSPENDED;
    capacity = ring->mask + 1;
    percent_used = nodedb_tpc_ring_length(ring) * 100;
    if (percent_used >= 95 * capacity) ring->pressure = NODEDB_TPC_PRESSURE_SUSPENDED;
    else if (percent_used >= 85 * capacity) {
        if (ring->pressure == NODEDB_TPC_PRESSURE_NONE) ring->pressure = NODEDB_TPC_PRESSURE_THROTTLED;
    } else if (percent_used >= 75 * capacity) {
        if (ring->pressure == NODEDB_TPC_PRESSURE_SUSPENDED) ring->pressure = NODEDB_TPC_PRESSURE_THROTTLED;
    } else ring->pressure = NODEDB_TPC_PRESSURE_NONE;
    return ring->pressure;
}

/* =====================================================================================================================
 * NOTIFIER: park and wake, and why no wake-up is lost
 *
 * Two cursors and one flag. There is work while the cursors differ. The flag says that the sleeper sleeps, or is about
 * to. The eventfd remembers a wake until the sleeper has seen it.
 *
 *             head                  tail               parked                 eventfd
 *              v                     v                 +-----+                +-----+
 *     |   |   | m | m | m | m | m |   |   |   |        | 0/1 |                | 0/n |
 *              ^                     ^                 +-----+                +-----+
 *          moved by the          moved by the        set by the sleeper,    written by the producer that took
 *          sleeper (C7)          producer (P1)       taken by a producer    the flag, emptied by the sleeper
 *
 *     producer                                          sleeper
 *     P1  write the message, move tail                  C1  parked = 1, after a turn without work
 *     P2  ----------- full fence -----------            C2  ----------- full fence -----------
 *     P3  parked is 0: the sleeper is awake, done       C3  head is not tail: there is work, go to C5
 *     P4  exchange parked for 0                         C4  sleep until the eventfd is readable, or the timeout
 *     P5  if P4 found 1: write the eventfd              C5  exchange parked for 0
 *                                                       C6  empty the eventfd
 *                                                       C7  turns: read messages, until a turn finds none; C1 again
 *
 * Each side writes its own word (P1, C1), passes a full fence, and only then reads the other's word (P3, C3). One of
 * the two fences comes first, and what was written before the first fence is visible after the second:
 *
 *     P2 first:  C3 sees the message, and the sleeper does not sleep.
 *     C2 first:  P3 sees what C1 wrote, or something later:
 *         1, and P4 finds 1:  this producer wakes the sleeper in P5.
 *         1, and P4 finds 0:  another producer was faster in P4, and wakes it; or the sleeper has passed C5, for
 *                             example because its timeout was over: it is awake.
 *         0:                  the same, one step earlier.
 *
 * A sleeper that is awake also sees the message:
 *
 *     P4 found 1:  C5 reads the 0 that P4 wrote, or a later one. P4 is a release and C5 an acquire, so C7 sees all that
 *                  the producer wrote before P4.
 *     otherwise:   this producer wakes nobody. What its P3 read is older than the next C1 (or else the cases above are
 *                  about that park), so its P2 came before the next C2: at the latest, the next C3 sees its message.
 *
 * No wake is swallowed either. C6 may empty an eventfd that was written for this park, but C7 follows it, and the
 * message was in the ring before the write. A P5 that comes after C6 leaves the eventfd readable: the next C4 returns
 * at once, which costs a turn and loses nothing.
 *
 * A core does the same with all of its rings. Its C7 takes at most NODEDB_TPC_BATCH_MESSAGES of each in a turn, but C1
 * follows only a turn that took none. Its C3 passes over a ring whose first message the handler has left there: a core
 * with such a ring parks for at most 1 ms. The stack of calls is one more ring, with P1 in nodedb_tpc__push_call.
 *
 * A core's park ends after 100 ms at the latest, so a lost wake-up would only be a delay. The tests do not let it hide:
 * a model without a timeout visits every interleaving of these steps, and rejects four wrong variants; and a thread
 * under stress fails the test if it waits 8 s for a wake.
 *
 * ThreadSanitizer does not understand fences. Under it P2 and P3 are one read-modify-write of `parked`, and so is C1:
 * the later of the two in that word's order sees what stood before the earlier one, which is the same argument. Without
 * it a plain store would do for C1.
 * ================================================================================================================== */

NODEDB_TPC_API nodedb_status nodedb_tpc_notifier_open(nodedb_tpc_notifier *notifier, nodedb_error *err) {
    if (notifier == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "a notifier must be given");
    notifier->parked = 0;
    notifier->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (notifier->fd >= 0) return NODEDB_OK;
    return nodedb_fail(err, errno == EMFILE || errno == ENFILE ? NODEDB_ERR_LIMIT : NODEDB_ERR_IO, errno,
                       "eventfd for a notifier");
}

NODEDB_TPC_API void nodedb_tpc_notifier_close(nodedb_tpc_notifier *notifier) {
    if (notifier == NULL || notifier->fd < 0) return;
    (void)close(notifier->fd);
    notifier->fd = -1;
}

static inline void nodedb_tpc__notifier_fence(void) { /* P2 and C2 */
#if !defined(NODEDB__TSAN)
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* P3 to P5. The caller has issued the fence, once for several of these. */
static bool nodedb_tpc__notifier_wake_if_parked(nodedb_tpc_notifier *notifier) {
    uint64_t one = 1;
    ssize_t written;
#if defined(NODEDB__TSAN)
    if (__atomic_fetch_or(&notifier->parked, 0u, __ATOMIC_ACQ_REL) == 0) return false;
#else
    if (nodedb__load_relaxed(&notifier->parked) == 0) return false;
#endif
    /* false: another waker took it, or the sleeper woke */
    if (__atomic_exchange_n(&notifier->parked, 0u, __ATOMIC_ACQ_REL) == 0) return false;
    /* EAGAIN: the counter is full, so the eventfd is readable */
    nodedb__retry(written, write(notifier->fd, &one, sizeof one));
    (void)written;
    return true;
}

NODEDB_TPC_API bool nodedb_tpc_notifier_wake(nodedb_tpc_notifier *notifier) {
    if (notifier == NULL) return false;
    nodedb_tpc__notifier_fence();
    return nodedb_tpc__notifier_wake_if_parked(notifier);
}

NODEDB_TPC_API void nodedb_tpc_notifier_prepare(nodedb_tpc_notifier *notifier) { /* C1, C2 */
    if (notifier == NULL) return;
    assert(nodedb__load_relaxed(&notifier->parked) == 0); /* one sleeper, which has cancelled or waited */
    (void)__atomic_exchange_n(&notifier->parked, 1u, __ATOMIC_ACQ_REL);
    nodedb_tpc__notifier_fence();
}

NODEDB_TPC_API void nodedb_tpc_notifier_cancel(nodedb_tpc_notifier *notifier) { /* C5, C6 */
    uint64_t wakes;
    ssize_t got;
    if (notifier == NULL) return;
    (void)__atomic_exchange_n(&notifier->parked, 0u, __ATOMIC_ACQ_REL);
    nodedb__retry(got, read(notifier->fd, &wakes, sizeof wakes)); /* EAGAIN: there was no wake */
    (void)got;
}

/* C4. A signal may end it early (EINTR). */
static void nodedb_tpc__notifier_sleep(const nodedb_tpc_notifier *notifier, uint64_t timeout_ns) {
    struct timespec timeout;
    struct pollfd fd;
    timeout.tv_sec = (time_t)(timeout_ns / NODEDB_TPC__SECOND_NS);
    timeout.tv_nsec = (long)(timeout_ns % NODEDB_TPC__SECOND_NS);
    fd.fd = notifier->fd;
    fd.events = POLLIN;
    fd.revents = 0;
    (void)ppoll(&fd, 1, &timeout, NULL);
}

NODEDB_TPC_API void nodedb_tpc_notifier_wait(nodedb_tpc_notifier *notifier, uint64_t timeout_ns) {
    if (notifier == NULL) return;
    nodedb_tpc__notifier_sleep(notifier, timeout_ns);
    nodedb_tpc_notifier_cancel(notifier);
}

/* =====================================================================================================================
 * LOOP: a core's turn, its spin and its park
 *
 *     poll -> rings -> calls -> timers -> tasks -> wakes --+
 *      ^                                                   |
 *      |    +----------------------------------------------+
 *      |    +-> maintenance -> heartbeat -> checkpoint -> pressure -> wakes -> stopped? -> ended
 *      |                                                                          |
 *      +--- at once, if any of it was work <--------------------------------------+
 *      +--- after a pause, while the spin lasts <---------------------------------+
 *      +--- after a park, until a wake or the next thing that is due <------------+
 *
 * Every step is bounded in number: no sender starves another, and none keeps the timers from their turn. Hooks and
 * tasks are not bounded in time: the watchdog reports one that takes too long.
 * ================================================================================================================== */

/* The steps of a turn, each in its room below. */
static size_t nodedb_tpc__drain_rings(nodedb_tpc_core *core);
static size_t nodedb_tpc__drain_calls(nodedb_tpc_core *core);
static size_t nodedb_tpc__run_timers(nodedb_tpc_core *core, uint64_t now);
static size_t nodedb_tpc__run_tasks(nodedb_tpc_core *core);
static bool nodedb_tpc__maintain(nodedb_tpc_core *core, uint64_t now, bool idle);
static void nodedb_tpc__heartbeat(nodedb_tpc_core *core, uint64_t now, bool idle);
static void nodedb_tpc__checkpoint(nodedb_tpc_core *core, uint64_t now);
static void nodedb_tpc__check_pressures(nodedb_tpc_core *core);
static bool nodedb_tpc__stop_turn(nodedb_tpc_core *core, uint64_t now, bool idle);

/* C3 of the notifier: true if there is something to do, except messages that their handler left for later. */
static bool nodedb_tpc__work_waits(const nodedb_tpc_core *core) {
    const nodedb_tpc *runtime = core->runtime;
    for (uint32_t from = 0; from <= runtime->core_count; from++)
        if (nodedb_tpc_ring_length(nodedb_tpc__ring_to(core, from)) != 0 &&
            (core->kept[from / 64] >> from % 64 & 1) == 0) return true;
    return core->queue_head != core->queue_tail || core->calls != NULL ||
           nodedb__load_acquire(&core->calls_in) != NULL ||
           nodedb__load_acquire(&runtime->phase) != core->phase_seen;
}

static inline uint64_t nodedb_tpc__sooner(uint64_t timeout_ns, uint64_t now, uint64_t due_ns) {
    uint64_t left = due_ns > now ? due_ns - now : 0;
    return left < timeout_ns ? left : timeout_ns;
}

/* How long the core may sleep: until the next thing that is due, and briefly where no wake announces what it waits
 * for. */
static uint64_t nodedb_tpc__park_ns(const nodedb_tpc_core *core, uint64_t now, uint64_t timeout_ns) {
    bool unannounced = core->phase_seen != NODEDB_TPC__RUNNING || core->pressed_rings > 0 || core->kept_rings > 0;
    uint64_t most = unannounced ? NODEDB_TPC__UNANNOUNCED_PARK_NS_MAX : NODEDB_TPC_PARK_NS_MAX;
    if (timeout_ns > most) timeout_ns = most;
    timeout_ns = nodedb_tpc__sooner(timeout_ns, now, core->beat_due_ns);
    timeout_ns = nodedb_tpc__sooner(timeout_ns, now, core->checkpoint_due_ns);
    if (core->timer_count > 0) timeout_ns = nodedb_tpc__sooner(timeout_ns, now, core->timers[0]->due_ns);
    return timeout_ns;
}

NODEDB_TPC_API void nodedb_tpc_core_wait(nodedb_tpc_core *core, uint64_t timeout_ns) {
    if (core != NULL) nodedb_tpc__notifier_sleep(&core->notifier, timeout_ns);
}

/* Sleeps until a wake or the timeout, and adapts the spin: a park that ends within two of the longest spins, counted
 * from the start of the turn, was a waste, so the next idle time gets a whole spin. A longer one halves it. */
static void nodedb_tpc__park(nodedb_tpc_core *core, uint64_t now, uint64_t timeout_ns) {
    const nodedb_tpc_config *config = &core->runtime->config;
    uint64_t spin_max = core->runtime->spin_ns_max, slept_ns;
    timeout_ns = nodedb_tpc__park_ns(core, now, timeout_ns);
    nodedb_tpc_notifier_prepare(&core->notifier);
    if (nodedb_tpc__work_waits(core)) {
        nodedb_tpc_notifier_cancel(&core->notifier);
        return;
    }
    nodedb_tpc__count(&core->stats.parks, 1u);
    if (config->wait == NULL) nodedb_tpc_core_wait(core, timeout_ns);
    else config->wait(core, config->ctx, timeout_ns);
    nodedb_tpc_notifier_cancel(&core->notifier);
    slept_ns = nodedb_tpc__now(core->runtime) - now;
    core->spin_ns = slept_ns < 2 * spin_max ? spin_max : core->spin_ns / 2;
    core->idle_turns = 0;
}

static nodedb_status nodedb_tpc__take_turn(nodedb_tpc_core *core, uint64_t max_wait_ns) {
    const nodedb_tpc_config *config = &core->runtime->config;
    uint64_t now = nodedb_tpc__now(core->runtime), last = core->turn_ns, refused = core->stats.send_refused;
    size_t work = 0;
    assert(core->guard == NULL && core->defer_count == 0);
    if (now > last) nodedb_tpc__count(core->last_turn_worked ? &core->stats.busy_ns : &core->stats.idle_ns, now - last);
    nodedb__store_relaxed(&core->turn_ns, now);
    nodedb_tpc__count(&core->stats.turns, 1u);

    if (config->poll != NULL) work += config->poll(core, config->ctx);
    work += nodedb_tpc__drain_rings(core); /* C7 of the notifier, with the next line */
    work += nodedb_tpc__drain_calls(core);
    if (core->timer_count > 0) work += nodedb_tpc__run_timers(core, now);
    work += nodedb_tpc__run_tasks(core);
    nodedb_tpc_flush(core);
    if (nodedb_tpc__maintain(core, now, work == 0)) work++;
    nodedb_tpc__heartbeat(core, now, work == 0);
    nodedb_tpc__checkpoint(core, now);
    if (core->pressed_rings > 0) nodedb_tpc__check_pressures(core);
    nodedb_tpc_flush(core); /* what the last four sent */
    core->last_turn_worked = work != 0;
    if (nodedb_tpc__stop_turn(core, now, work == 0)) return NODEDB_ERR_CANCELLED;

    if (work != 0) {
        core->idle_turns = 0;
        if (core->runtime->share_cpus && core->stats.send_refused != refused)
            (void)sched_yield(); /* to the core that must empty the ring */
        return NODEDB_OK;
    }
    if (max_wait_ns == 0) return NODEDB_ERR_AGAIN;
    if (core->idle_turns++ == 0) core->idle_since_ns = now;
    if (now - core->idle_since_ns < core->spin_ns && core->idle_turns < NODEDB_TPC__SPIN_TURNS_MAX) {
        nodedb_tpc__count(&core->stats.spins, 1u);
        nodedb_tpc__pause();
    } else nodedb_tpc__park(core, now, max_wait_ns);
    return NODEDB_ERR_AGAIN;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_turn(nodedb_tpc_core *core, uint64_t max_wait_ns) {
    nodedb_tpc_core *before = nodedb_tpc__current;
    nodedb_status status;
    if (core == NULL) return NODEDB_ERR_INVALID;
    if (!core->runtime->manual || !nodedb_tpc__on_own_thread(core) || core->in_turn || core->guard != NULL)
        return NODEDB_ERR_STATE;
    if (core->state == NODEDB_TPC__ENDED) return NODEDB_ERR_CANCELLED;
    core->in_turn = true;
    nodedb_tpc__current = core;
    status = nodedb_tpc__take_turn(core, max_wait_ns);
    nodedb_tpc__current = before;
    core->in_turn = false;
    return status;
}

/* =====================================================================================================================
 * MESSAGES: send, post, deliver; calls and their answers
 * ================================================================================================================== */

/* ---- send and wake ----------------------------------------------------------------------------------------------- */

static inline void nodedb_tpc__wake_later(nodedb_tpc_core *core, uint32_t to) {
    if (to == core->index) return;
    core->to_wake[to / 64] |= UINT64_C(1) << to % 64;
    core->to_wake_any = true;
}

NODEDB_TPC_API void nodedb_tpc_flush(nodedb_tpc_core *core) {
    if (core == NULL || !core->to_wake_any || !nodedb_tpc__on_own_thread(core)) return;
    core->to_wake_any = false;
    nodedb_tpc__notifier_fence(); /* one for all */
    for (uint32_t word = 0; word < NODEDB_TPC__WORDS(NODEDB_TPC_MAX_CORES); word++) {
        uint64_t bits = core->to_wake[word];
        core->to_wake[word] = 0;
        for (; bits != 0; bits &= bits - 1) {
            nodedb_tpc_core *to = core->runtime->cores[word * 64 + (uint32_t)__builtin_ctzll(bits)];
            bool called = nodedb_tpc__notifier_wake_if_parked(&to->notifier);
            nodedb_tpc__count(called ? &core->stats.wakes : &core->stats.wakes_avoided, 1u);
        }
    }
}

/* Looks at the pressure of the ring to core `to`, and tells on_pressure of a change. */
static void nodedb_tpc__check_pressure(nodedb_tpc_core *core, uint32_t to) {
    const nodedb_tpc_config *config = &core->runtime->config;
    nodedb_tpc_ring *ring = nodedb_tpc__ring_between(core->runtime, core->index, to);
    nodedb_tpc_pressure_level before = ring->pressure, now = nodedb_tpc_ring_pressure(ring);
    if (now == before) return;
    if (before == NODEDB_TPC_PRESSURE_NONE) core->pressed_rings++;
    if (now == NODEDB_TPC_PRESSURE_NONE) core->pressed_rings--;
    nodedb_tpc__count(&core->stats.pressure_changes, 1u);
    config->on_pressure(core, to, now, config->ctx);
}

/* Every ring under pressure: it may have fallen since, although this core has sent nothing. */
static void nodedb_tpc__check_pressures(nodedb_tpc_core *core) {
    for (uint32_t to = 0; to < core->runtime->core_count && core->pressed_rings > 0; to++)
        if (nodedb_tpc__ring_between(core->runtime, core->index, to)->pressure != NODEDB_TPC_PRESSURE_NONE)
            nodedb_tpc__check_pressure(core, to);
}

NODEDB_TPC_API nodedb_tpc_pressure_level nodedb_tpc_pressure(nodedb_tpc_core *from, uint32_t to) {
    nodedb_tpc_ring *ring;
    if (from == NULL || to >= from->runtime->core_count || !nodedb_tpc__on_own_thread(from))
        return NODEDB_TPC_PRESSURE_SUSPENDED;
    ring = nodedb_tpc__ring_between(from->runtime, from->index, to);
    if (from->runtime->config.on_pressure == NULL) return nodedb_tpc_ring_pressure(ring);
    nodedb_tpc__check_pressure(from, to); /* with a hook every change goes through here, so that each one is told */
    return ring->pressure;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_send(nodedb_tpc_core *from, uint32_t to, const void *message) {
    nodedb_tpc *runtime;
    nodedb_tpc_ring *ring;
    void *slot;
    if (from == NULL || message == NULL || to >= from->runtime->core_count) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(from)) return NODEDB_ERR_STATE;
    runtime = from->runtime;
    if (nodedb__load_relaxed(&runtime->phase) == NODEDB_TPC__DRAINED) return NODEDB_ERR_CANCELLED;
    ring = nodedb_tpc__ring_between(runtime, from->index, to);
    slot = nodedb_tpc_ring_reserve(ring);
    if (slot == NULL) {
        nodedb_tpc__count(&from->stats.send_refused, 1u);
        if (runtime->config.on_pressure != NULL) nodedb_tpc__check_pressure(from, to);
        return NODEDB_ERR_AGAIN;
    }
    nodedb_tpc__copy(slot, message, ring->message_bytes);
    nodedb_tpc__issue(from);
    nodedb_tpc_ring_commit(ring); /* P1 of the notifier; P2 to P5 in nodedb_tpc_flush */
    nodedb_tpc__count(&from->stats.sent, 1u);
    nodedb_tpc__wake_later(from, to);
    /* The producer's copy of the cursor never shows less than there is, so below 75% there is nothing to check. */
    if (runtime->config.on_pressure != NULL && (ring->tail - ring->head_seen) / 3 >= (ring->mask + 1) / 4)
        nodedb_tpc__check_pressure(from, to);
    return NODEDB_OK;
}

/* Wakes a core for what a thread outside has just made visible to it. */
static void nodedb_tpc__wake_from_outside(nodedb_tpc_core *to) {
    bool called = nodedb_tpc_notifier_wake(&to->notifier);
    (void)nodedb__add_relaxed(called ? &to->inbox.wakes : &to->inbox.wakes_avoided, 1u);
}

NODEDB_TPC_API nodedb_status nodedb_tpc_post(nodedb_tpc *runtime, uint32_t to, const void *message, nodedb_error *err) {
    unsigned char copy[NODEDB_TPC_MAX_MESSAGE_BYTES];
    nodedb_tpc__inbox *inbox;
    nodedb_status status = NODEDB_OK;
    if (runtime == NULL || message == NULL || to >= runtime->core_count)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                           "a post needs a runtime, a message and one of its cores, not core %u", (unsigned)to);
    nodedb_tpc__copy(copy, message, runtime->config.message_bytes); /* a bad pointer faults here, not under the lock */
    inbox = &runtime->cores[to]->inbox;
    (void)pthread_mutex_lock(&inbox->lock);
    if (inbox->closed) status = NODEDB_ERR_CANCELLED;
    else if (nodedb_tpc_ring_reserve(inbox->ring) == NULL) status = NODEDB_ERR_AGAIN;
    else {
        nodedb_tpc__count(&inbox->posted, 1u); /* before it is visible: see nodedb_tpc__quiescent */
        (void)nodedb_tpc_ring_push(inbox->ring, copy); /* P1 of the notifier */
    }
    (void)pthread_mutex_unlock(&inbox->lock);
    if (status == NODEDB_ERR_CANCELLED)
        return nodedb_fail(err, status, 0, "the runtime is stopping: core %u accepts no posts", (unsigned)to);
    if (status == NODEDB_ERR_AGAIN)
        return nodedb_fail(err, status, 0, "the inbox of core %u is full with %u messages", (unsigned)to,
                           (unsigned)runtime->config.inbox_messages);
    nodedb_tpc__wake_from_outside(runtime->cores[to]); /* P2 to P5 */
    return NODEDB_OK;
}

/* ---- delivery ---------------------------------------------------------------------------------------------------- */

NODEDB_TPC_API nodedb_status nodedb_tpc_keep_message(nodedb_tpc_core *core) {
    if (core == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(core) || core->delivery == NODEDB_TPC__NONE) return NODEDB_ERR_STATE;
    core->delivery = NODEDB_TPC__KEPT;
    return NODEDB_OK;
}

/* Hands `count` messages to on_message; returns how many it took: fewer if it left one. */
static size_t nodedb_tpc__deliver(nodedb_tpc_core *core, uint32_t from, unsigned char *message, size_t count) {
    const nodedb_tpc_config *config = &core->runtime->config;
    size_t taken = 0;
    if (config->on_message == NULL) {
        nodedb_tpc__count(&core->stats.dropped, count);
        return count;
    }
    core->delivery = NODEDB_TPC__DELIVERED;
    for (; taken < count; taken++, message += config->message_bytes) {
        config->on_message(core, from == core->runtime->core_count ? NODEDB_TPC_OUTSIDE : from, message, config->ctx);
        if (core->delivery == NODEDB_TPC__KEPT) break;
    }
    core->delivery = NODEDB_TPC__NONE;
    return taken;
}

static size_t nodedb_tpc__drain_ring(nodedb_tpc_core *core, uint32_t from) {
    nodedb_tpc_ring *ring = nodedb_tpc__ring_to(core, from);
    size_t total = 0;
    while (total < NODEDB_TPC_BATCH_MESSAGES) {
        size_t count = NODEDB_TPC_BATCH_MESSAGES - total, taken;
        unsigned char *messages = (unsigned char *)nodedb_tpc_ring_peek_n(ring, &count);
        if (messages == NULL) break;
        nodedb_tpc__stir(core);
        taken = nodedb_tpc__deliver(core, from, messages, count);
        if (taken > 0) {
            nodedb_tpc_ring_release_n(ring, taken);
            nodedb_tpc__count(&core->stats.batches, 1u);
            nodedb_tpc__count(&core->stats.messages, taken);
            nodedb_tpc__done(core, taken);
            total += taken;
        }
        if (taken == count) continue;
        core->kept[from / 64] |= UINT64_C(1) << from % 64;
        core->kept_rings++;
        nodedb_tpc__count(&core->stats.kept, 1u);
        break;
    }
    return total;
}

/* All rings that lead to this core, another one first in each turn. */
static size_t nodedb_tpc__drain_rings(nodedb_tpc_core *core) {
    uint32_t rings = core->runtime->core_count + 1, from = core->first_ring;
    size_t total = 0;
    core->first_ring = from + 1 == rings ? 0 : from + 1;
    if (core->kept_rings > 0) {
        memset(core->kept, 0, sizeof core->kept);
        core->kept_rings = 0;
    }
    for (uint32_t i = 0; i < rings; i++, from = from + 1 == rings ? 0 : from + 1)
        total += nodedb_tpc__drain_ring(core, from);
    return total;
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

/* A core's incoming calls and answers are a stack that any thread pushes on by compare-and-swap, and that the core
 * takes whole and reverses. Nobody pops a single one, so there is no ABA. CLOSED: the core has ended. */
#define NODEDB_TPC__CALLS_CLOSED ((nodedb_tpc_call *)(uintptr_t)1)

static bool nodedb_tpc__push_call(nodedb_tpc_core *to, nodedb_tpc_call *call) {
    nodedb_tpc_call *first = nodedb__load_relaxed(&to->calls_in);
    do {
        if (first == NODEDB_TPC__CALLS_CLOSED) return false;
        call->next = first;
    } while (!nodedb__cas(&to->calls_in, &first, call)); /* P1 of the notifier */
    return true;
}

static void nodedb_tpc__take_calls(nodedb_tpc_core *core) {
    nodedb_tpc_call *call = __atomic_exchange_n(&core->calls_in, (nodedb_tpc_call *)NULL, __ATOMIC_ACQUIRE);
    while (call != NULL) { /* from the latest to the oldest */
        nodedb_tpc_call *older = call->next;
        call->next = core->calls;
        core->calls = call;
        call = older;
    }
}

/* A call from outside, on the stack of the thread that waits for it. */
typedef struct nodedb_tpc__waiting_call {
    nodedb_tpc_call call; /* first */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool answered;
    char why[NODEDB_ERROR_MESSAGE_BYTES]; /* the sentence, if the status is not NODEDB_OK */
} nodedb_tpc__waiting_call;

/* Gives the call back with its status and, to a thread outside, the sentence. After it the struct is the caller's. */
static void nodedb_tpc__return_call(nodedb_tpc_core *core, nodedb_tpc_call *call, nodedb_status status,
                                    const char *sentence) {
    nodedb_tpc_core *caller = call->caller;
    call->status = status;
    nodedb__store_relaxed(&call->state, (uint32_t)NODEDB_TPC__CALL_ANSWERED);
    if (caller == NULL) {
        nodedb_tpc__waiting_call *waiting = (nodedb_tpc__waiting_call *)(void *)call;
        (void)snprintf(waiting->why, sizeof waiting->why, "%s", sentence);
        (void)pthread_mutex_lock(&waiting->lock);
        waiting->answered = true;
        (void)pthread_cond_signal(&waiting->changed);
        (void)pthread_mutex_unlock(&waiting->lock);
    } else {
        nodedb_tpc__issue(core); /* the way back is a unit of its own */
        if (nodedb_tpc__push_call(caller, call)) nodedb_tpc__wake_later(core, caller->index);
        else nodedb_tpc__count(&core->stats.dropped, 1u); /* it has ended, after drain_ns */
    }
    nodedb_tpc__done(core, 1);
}

static void nodedb_tpc__hold(nodedb_tpc_core *core, nodedb_tpc_call *call) {
    nodedb__store_relaxed(&call->state, (uint32_t)NODEDB_TPC__CALL_HELD);
    call->holder = core;
    call->previous = NULL;
    call->next = core->held_calls;
    if (call->next != NULL) call->next->previous = call;
    core->held_calls = call;
}

static void nodedb_tpc__let_go(nodedb_tpc_core *core, nodedb_tpc_call *call) {
    if (call->next != NULL) call->next->previous = call->previous;
    if (call->previous != NULL) call->previous->next = call->next;
    else core->held_calls = call->next;
}

/* The caller's own again: `answered` may start it once more. */
static void nodedb_tpc__end_call(nodedb_tpc_core *core, nodedb_tpc_call *call) {
    nodedb__store_relaxed(&call->state, (uint32_t)NODEDB_TPC__CALL_IDLE);
    if (call->answered != NULL) call->answered(core, call);
    nodedb_tpc__done(core, 1);
}

static void nodedb_tpc__run_call(nodedb_tpc_core *core, nodedb_tpc_call *call);

static size_t nodedb_tpc__drain_calls(nodedb_tpc_core *core) {
    size_t total = 0;
    if (nodedb__load_relaxed(&core->calls_in) == NULL && core->calls == NULL) return 0;
    for (; total < NODEDB_TPC_CALLS_PER_TURN; total++) {
        nodedb_tpc_call *call;
        if (core->calls == NULL) nodedb_tpc__take_calls(core);
        call = core->calls;
        if (call == NULL) break;
        core->calls = call->next;
        nodedb_tpc__stir(core);
        if (nodedb__load_relaxed(&call->state) == NODEDB_TPC__CALL_ANSWERED) nodedb_tpc__end_call(core, call);
        else nodedb_tpc__run_call(core, call);
    }
    return total;
}

/* The last of them, when the core ends: answers are told, and what was not run is cancelled. */
static void nodedb_tpc__end_calls(nodedb_tpc_core *core) {
    static const char too_late[] = "the runtime stopped before the call was answered";
    nodedb_tpc_call *empty;
    do {
        while (core->held_calls != NULL) {
            nodedb_tpc_call *call = core->held_calls;
            nodedb_tpc__let_go(core, call);
            nodedb_tpc__return_call(core, call, NODEDB_ERR_CANCELLED, too_late);
        }
        nodedb_tpc__take_calls(core);
        while (core->calls != NULL) {
            nodedb_tpc_call *call = core->calls;
            core->calls = call->next;
            if (nodedb__load_relaxed(&call->state) == NODEDB_TPC__CALL_ANSWERED) nodedb_tpc__end_call(core, call);
            else nodedb_tpc__return_call(core, call, NODEDB_ERR_CANCELLED, too_late);
        }
        empty = NULL;
    } while (!nodedb__cas(&core->calls_in, &empty, NODEDB_TPC__CALLS_CLOSED));
}

NODEDB_TPC_API nodedb_status nodedb_tpc_call_start(nodedb_tpc_core *from, uint32_t to, nodedb_tpc_call *call) {
    if (from == NULL || call == NULL || call->fn == NULL || to >= from->runtime->core_count) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(from)) return NODEDB_ERR_STATE;
    if (nodedb__load_relaxed(&call->state) != NODEDB_TPC__CALL_IDLE) return NODEDB_ERR_STATE;
    if (nodedb__load_relaxed(&from->runtime->phase) == NODEDB_TPC__DRAINED) return NODEDB_ERR_CANCELLED;
    call->caller = from;
    nodedb__store_relaxed(&call->state, (uint32_t)NODEDB_TPC__CALL_SENT);
    nodedb_tpc__issue(from);
    if (!nodedb_tpc__push_call(from->runtime->cores[to], call)) {
        nodedb__store_relaxed(&call->state, (uint32_t)NODEDB_TPC__CALL_IDLE);
        nodedb_tpc__done(from, 1);
        return NODEDB_ERR_CANCELLED;
    }
    nodedb_tpc__wake_later(from, to);
    return NODEDB_OK;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_call_wait(nodedb_tpc *runtime, uint32_t to, nodedb_tpc_fn fn, void *arg,
                                                  uint64_t request_id, nodedb_error *err) {
    nodedb_tpc__waiting_call waiting;
    nodedb_tpc__inbox *inbox;
    bool accepted;
    if (runtime == NULL || fn == NULL || to >= runtime->core_count)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                           "a call needs a runtime, a function and one of its cores, not core %u", (unsigned)to);
    if ((nodedb_tpc__current != NULL && nodedb_tpc__current->runtime == runtime) ||
        (runtime->manual && nodedb_tpc__on_own_thread(runtime->cores[0])))
        return nodedb_fail(err, NODEDB_ERR_STATE, 0, "a core's own thread must not wait: nodedb_tpc_call_start");
    memset(&waiting, 0, sizeof waiting);
    waiting.call.fn = fn, waiting.call.arg = arg, waiting.call.request_id = request_id;
    waiting.call.state = NODEDB_TPC__CALL_SENT;
    (void)pthread_mutex_init(&waiting.lock, NULL);
    (void)pthread_cond_init(&waiting.changed, NULL);
    inbox = &runtime->cores[to]->inbox;
    (void)pthread_mutex_lock(&inbox->lock);
    accepted = !inbox->closed;
    if (accepted) {
        nodedb_tpc__count(&inbox->posted, 1u); /* before it is visible: see nodedb_tpc__quiescent */
        accepted = nodedb_tpc__push_call(runtime->cores[to], &waiting.call);
        assert(accepted); /* an open inbox belongs to a core that has not ended */
    }
    (void)pthread_mutex_unlock(&inbox->lock);
    if (accepted) {
        nodedb_tpc__wake_from_outside(runtime->cores[to]);
        (void)pthread_mutex_lock(&waiting.lock);
        while (!waiting.answered) (void)pthread_cond_wait(&waiting.changed, &waiting.lock);
        (void)pthread_mutex_unlock(&waiting.lock);
    } else {
        waiting.call.status = NODEDB_ERR_CANCELLED;
        (void)snprintf(waiting.why, sizeof waiting.why, "the runtime is stopping, and accepts no calls");
    }
    (void)pthread_cond_destroy(&waiting.changed);
    (void)pthread_mutex_destroy(&waiting.lock);
    if (waiting.call.status == NODEDB_OK) return NODEDB_OK;
    if (waiting.call.status == NODEDB_ERR_FAULT) return nodedb_fail(err, NODEDB_ERR_FAULT, 0, "%s", waiting.why);
    return nodedb_fail(err, waiting.call.status, 0, "the call to core %u: %.200s", (unsigned)to, waiting.why);
}

NODEDB_TPC_API nodedb_tpc_call *nodedb_tpc_call_hold(nodedb_tpc_core *core) {
    nodedb_tpc_call *call = core == NULL || !nodedb_tpc__on_own_thread(core) ? NULL : core->running_call;
    if (call != NULL && nodedb__load_relaxed(&call->state) == NODEDB_TPC__CALL_RUNNING) nodedb_tpc__hold(core, call);
    return call;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_call_answer(nodedb_tpc_core *core, nodedb_tpc_call *call,
                                                    nodedb_status status) {
    if (core == NULL || call == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(core) || nodedb__load_relaxed(&call->state) != NODEDB_TPC__CALL_HELD ||
        call->holder != core) return NODEDB_ERR_STATE;
    if (core->running_call == call) core->running_call = NULL;
    nodedb_tpc__let_go(core, call);
    nodedb_tpc__return_call(core, call, status, nodedb_status_text(status));
    return NODEDB_OK;
}

/* =====================================================================================================================
 * TASKS: the run queue; the guard, signals, and what is refused after faults
 *
 * A guarded function ends in one of two ways. It returns, or a fault jumps back to the guard's frame:
 *
 *     nodedb_tpc__run:  sigsetjmp -> fn(core, arg) -> returns ----------------------------------> NODEDB_OK
 *                           ^            |
 *                           |            +- nodedb_tpc_panic ----------+
 *                           |            +- SIGSEGV, SIGBUS, SIGFPE,   |
 *                           |               SIGILL -> on_signal -------+
 *                           +---- siglongjmp <-------------------------+
 *                           |
 *                           +--> undo the defers, last first -> count the fault ------------> NODEDB_ERR_FAULT
 *
 * The count is kept twice. Per request id, for the runtime: after faults_to_refuse faults the id is refused. Per core:
 * after faults of faults_to_degrade different ids within fault_window_ns the core is degraded. One id counts once: a
 * client whose requests carry one id shuts out itself, and not the others. A client with new ids can degrade the core.
 * ================================================================================================================== */

/* Below, in this room. */
static nodedb_status nodedb_tpc__admit(nodedb_tpc_core *core, uint64_t request_id);
static nodedb_status nodedb_tpc__guarded(nodedb_tpc_core *core, nodedb_tpc_fn fn, void *arg, uint64_t request_id);
static void nodedb_tpc__after_signal(nodedb_tpc_core *core);
static void nodedb_tpc__suspect_add(nodedb_tpc *runtime, uint64_t id);

/* ---- the run queue ----------------------------------------------------------------------------------------------- */

NODEDB_TPC_API nodedb_status nodedb_tpc_spawn(nodedb_tpc_core *core, nodedb_tpc_fn fn, void *arg, uint64_t deadline_ns,
                                              uint64_t request_id) {
    uint32_t length;
    nodedb_tpc__task *task;
    nodedb_status status;
    if (core == NULL || fn == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(core)) return NODEDB_ERR_STATE;
    if (nodedb__load_relaxed(&core->runtime->phase) == NODEDB_TPC__DRAINED) return NODEDB_ERR_CANCELLED;
    status = nodedb_tpc__admit(core, request_id);
    if (status != NODEDB_OK) return status;
    length = core->queue_tail - core->queue_head;
    assert(length <= core->runtime->config.queue_tasks);
    if (length == core->runtime->config.queue_tasks) return NODEDB_ERR_AGAIN;
    task = &core->queue[core->queue_tail & (core->runtime->config.queue_tasks - 1)];
    task->fn = fn;
    task->arg = arg;
    task->deadline_ns = deadline_ns;
    task->request_id = request_id;
    task->spawned_ns = nodedb_tpc__now(core->runtime);
    nodedb_tpc__issue(core);
    core->queue_tail++;
    if (length + 1 > core->stats.tasks_high_water)
        nodedb__store_relaxed(&core->stats.tasks_high_water, (uint64_t)length + 1);
    return NODEDB_OK;
}

static uint32_t nodedb_tpc__latency_place(uint64_t ns) {
    uint32_t high = 63 - (uint32_t)__builtin_clzll(ns | 1);
    return ns < 4 ? (uint32_t)ns : 4 * (high - 1) + (uint32_t)(ns >> (high - 2) & 3);
}

/* The longest latency that counts in a place. */
static uint64_t nodedb_tpc__latency_most(uint32_t place) {
    return place < 4 ? place : ((UINT64_C(5) + place % 4) << (place / 4 - 1)) - 1;
}

static void nodedb_tpc__end_task(nodedb_tpc_core *core, const nodedb_tpc__task *task, nodedb_status status,
                                 const char *sentence) {
    const nodedb_tpc_config *config = &core->runtime->config;
    uint64_t now = nodedb_tpc__now(core->runtime), took = now > task->spawned_ns ? now - task->spawned_ns : 0;
    nodedb_tpc__count(&core->stats.tasks, 1u);
    nodedb_tpc__count(&core->stats.latency_ns, took);
    nodedb_tpc__count(&core->latencies[nodedb_tpc__latency_place(took)], 1u);
    if (config->on_task_end != NULL) config->on_task_end(core, task->arg, status, sentence, config->ctx);
    nodedb_tpc__done(core, 1);
}

static size_t nodedb_tpc__run_tasks(nodedb_tpc_core *core) {
    size_t ran = 0;
    for (; ran < NODEDB_TPC_TASKS_PER_TURN && core->queue_head != core->queue_tail; ran++) {
        nodedb_tpc__task task = core->queue[core->queue_head++ & (core->runtime->config.queue_tasks - 1)];
        nodedb_status status = nodedb_tpc__admit(core, task.request_id);
        if (status == NODEDB_OK && task.deadline_ns != 0 && nodedb_tpc__now(core->runtime) > task.deadline_ns) {
            status = NODEDB_ERR_TIMEOUT;
            core->fault_sentence = "the task's deadline passed before it began";
            nodedb_tpc__count(&core->stats.timeouts, 1u);
        }
        if (status == NODEDB_OK) status = nodedb_tpc__guarded(core, task.fn, task.arg, task.request_id);
        nodedb_tpc__end_task(core, &task, status, status == NODEDB_OK ? "" : core->fault_sentence);
    }
    return ran;
}

/* A call's function, in the guard. The call may be answered before it returns, or held until later. */
static void nodedb_tpc__run_call(nodedb_tpc_core *core, nodedb_tpc_call *call) {
    nodedb_status status = nodedb_tpc__admit(core, call->request_id);
    nodedb_tpc__count(&core->stats.calls, 1u);
    if (status == NODEDB_OK) {
        nodedb__store_relaxed(&call->state, (uint32_t)NODEDB_TPC__CALL_RUNNING);
        core->running_call = call;
        status = nodedb_tpc__guarded(core, call->fn, call->arg, call->request_id);
        if (core->running_call == NULL) return; /* answered: the struct is no longer ours */
        core->running_call = NULL;
        if (nodedb__load_relaxed(&call->state) == NODEDB_TPC__CALL_HELD) {
            if (status == NODEDB_OK) return;
            nodedb_tpc__let_go(core, call);
        }
    }
    nodedb_tpc__return_call(core, call, status, status == NODEDB_OK ? "" : core->fault_sentence);
}

/* ---- the guard --------------------------------------------------------------------------------------------------- */

/* The bare guard: runs fn; true if it returned. */
static __attribute__((noinline)) bool nodedb_tpc__run(nodedb_tpc_core *core, nodedb_tpc_fn fn, void *arg) {
    nodedb_tpc__guard_frame guard;
    bool returned;
    guard.outer = core->guard;
    guard.current_outside = nodedb_tpc__current;
    guard.defers = core->defer_count;
    if (sigsetjmp(guard.env, 0) == 0) { /* 0: the signal mask is not saved, which would be a system call */
        nodedb_tpc__current = core;
        core->guard = &guard;
        fn(core, arg);
        assert(core->guard == &guard);
        returned = true;
    } else {
        nodedb_tpc__after_signal(core);
        returned = false;
    }
    core->guard = guard.outer;
    nodedb_tpc__current = guard.current_outside;
    if (returned) core->defer_count = guard.defers; /* otherwise the caller undoes them */
    return returned;
}

/* Undoes what was registered since `defers`, last first, each in a guard of its own: one that faults does not keep the
 * others from running. */
static void nodedb_tpc__undo_to(nodedb_tpc_core *core, uint32_t defers) {
    char first_fault[NODEDB_ERROR_MESSAGE_BYTES];
    assert(core->defer_count >= defers);
    memcpy(first_fault, core->fault_text, sizeof first_fault); /* the one to report */
    while (core->defer_count > defers) {
        nodedb_tpc__undo undo = core->defers[--core->defer_count];
        uint32_t before = core->defer_count;
        if (undo.fn == NULL || nodedb_tpc__run(core, undo.fn, undo.arg)) continue;
        core->defer_count = before; /* what the undo function itself had registered is not undone */
        nodedb_say(&core->runtime->config.logger, NODEDB_LOG_ERROR, "an undo function faulted and was left: %s",
                   core->fault_text);
    }
    memcpy(core->fault_text, first_fault, sizeof first_fault);
}

/* Whether the core refuses work. Any thread; the core itself recovers when it next looks. */
static bool nodedb_tpc__core_degraded(const nodedb_tpc_core *core) {
    uint64_t until_ns = nodedb__load_relaxed(&core->degraded_until_ns);
    return until_ns != 0 && nodedb__load_relaxed(&core->reset_wanted) == 0 && nodedb_tpc__now(core->runtime) < until_ns;
}

static void nodedb_tpc__recover(nodedb_tpc_core *core) {
    bool degraded = core->degraded_until_ns != 0;
    nodedb__store_relaxed(&core->reset_wanted, 0u);
    nodedb__store_relaxed(&core->degraded_until_ns, UINT64_C(0));
    core->counted_faults = 0;
    if (degraded)
        nodedb_say(&core->runtime->config.logger, NODEDB_LOG_INFO, "core %u accepts tasks again",
                   (unsigned)core->index);
}

/* Enters a fault in the list of the latest ones, and answers how many of them lie within the window. A request id is in
 * the list once, with its latest fault; id 0 each time. The list holds faults_to_degrade entries, so a new one takes
 * the place of the oldest. */
static uint32_t nodedb_tpc__count_fault(nodedb_tpc_core *core, uint64_t request_id, uint64_t now) {
    const nodedb_tpc_config *config = &core->runtime->config;
    uint32_t place = core->counted_faults, within = 0;
    if (place == config->faults_to_degrade) {
        place = 0;
        for (uint32_t i = 1; i < core->counted_faults; i++)
            if (core->counted[i].at_ns < core->counted[place].at_ns) place = i;
    }
    for (uint32_t i = 0; i < core->counted_faults && request_id != 0; i++)
        if (core->counted[i].request_id == request_id) place = i;
    assert(place < config->faults_to_degrade && place < NODEDB_TPC_MAX_FAULTS_TO_DEGRADE);
    core->counted[place].request_id = request_id;
    core->counted[place].at_ns = now;
    if (place == core->counted_faults) core->counted_faults++;
    for (uint32_t i = 0; i < core->counted_faults; i++)
        within += now - core->counted[i].at_ns <= config->fault_window_ns;
    return within;
}

static void nodedb_tpc__fault(nodedb_tpc_core *core, uint64_t request_id) {
    const nodedb_tpc_config *config = &core->runtime->config;
    uint64_t now = nodedb_tpc__now(core->runtime), until_ns;
    core->fault_sentence = core->fault_text;
    nodedb_tpc__count(&core->stats.faults, 1u);
    nodedb_tpc__suspect_add(core->runtime, request_id);
    nodedb_say(&config->logger, NODEDB_LOG_WARNING, "%s (request %llu); it was abandoned", core->fault_text,
               (unsigned long long)request_id);
    if (nodedb__load_relaxed(&core->reset_wanted) != 0) nodedb_tpc__recover(core);
    if (core->degraded_until_ns != 0 || config->faults_to_degrade == NODEDB_TPC_NEVER ||
        nodedb_tpc__count_fault(core, request_id, now) < config->faults_to_degrade) return;
    until_ns = config->degraded_ns > UINT64_MAX - now ? UINT64_MAX : now + config->degraded_ns;
    nodedb__store_relaxed(&core->degraded_until_ns, until_ns);
    nodedb_tpc__count(&core->stats.degradations, 1u);
    nodedb_say(&config->logger, NODEDB_LOG_ERROR,
               "core %u is degraded after faults of %u requests within %llu ms: its tasks are refused",
               (unsigned)core->index, (unsigned)config->faults_to_degrade,
               (unsigned long long)(config->fault_window_ns / NODEDB_TPC__MILLISECOND_NS));
}

/* Whether this work may begin: NODEDB_OK, or NODEDB_ERR_DEGRADED with the sentence. */
static nodedb_status nodedb_tpc__admit(nodedb_tpc_core *core, uint64_t request_id) {
    if (core->degraded_until_ns != 0 && !nodedb_tpc__core_degraded(core)) nodedb_tpc__recover(core);
    if (core->degraded_until_ns != 0) core->fault_sentence = "the core is degraded after faults of several requests";
    else if (nodedb_tpc_is_refused(core->runtime, request_id))
        core->fault_sentence = "this request has faulted before and is refused";
    else return NODEDB_OK;
    nodedb_tpc__count(&core->stats.refused, 1u);
    return NODEDB_ERR_DEGRADED;
}

static nodedb_status nodedb_tpc__guarded(nodedb_tpc_core *core, nodedb_tpc_fn fn, void *arg, uint64_t request_id) {
    uint32_t defers = core->defer_count;
    if (nodedb_tpc__run(core, fn, arg)) return NODEDB_OK;
    nodedb_tpc__undo_to(core, defers);
    nodedb_tpc__fault(core, request_id);
    return NODEDB_ERR_FAULT;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_guard(nodedb_tpc_core *core, nodedb_tpc_fn fn, void *arg, uint64_t request_id) {
    nodedb_status status;
    if (core == NULL || fn == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(core)) return NODEDB_ERR_STATE;
    status = nodedb_tpc__admit(core, request_id);
    return status != NODEDB_OK ? status : nodedb_tpc__guarded(core, fn, arg, request_id);
}

NODEDB_TPC_API nodedb_status nodedb_tpc_defer(nodedb_tpc_core *core, nodedb_tpc_fn undo, void *arg) {
    if (core == NULL || undo == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(core) || core->guard == NULL) return NODEDB_ERR_STATE;
    if (core->defer_count == NODEDB_TPC_MAX_DEFERS) return NODEDB_ERR_LIMIT;
    core->defers[core->defer_count].fn = undo;
    core->defers[core->defer_count].arg = arg;
    core->defer_count++; /* last: a fault before it must not undo half an entry */
    return NODEDB_OK;
}

/* Forgets the latest registration of undo(core, arg), if there is one. Its place is free again when it is the last that
 * the running function has registered; the places of the guards outside stay as their frames have counted them. */
static void nodedb_tpc__take_back(nodedb_tpc_core *core, nodedb_tpc_fn undo, void *arg) {
    for (uint32_t i = core->defer_count; i-- > 0;)
        if (core->defers[i].fn == undo && core->defers[i].arg == arg) {
            core->defers[i].fn = NULL;
            break;
        }
    while (core->guard != NULL && core->defer_count > core->guard->defers &&
           core->defers[core->defer_count - 1].fn == NULL) core->defer_count--;
}

NODEDB_TPC_API void nodedb_tpc_panic(nodedb_tpc_core *core, const char *format, ...) {
    va_list args;
    bool guarded = core != NULL && nodedb_tpc__on_own_thread(core) && core->guard != NULL;
    char sentence[NODEDB_ERROR_MESSAGE_BYTES];
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    if (!guarded) {
        const nodedb_logger *logger = core == NULL ? NULL : &core->runtime->config.logger;
        nodedb_say(logger, NODEDB_LOG_ERROR, "panic outside a guard: %s", sentence);
        abort();
    }
    (void)snprintf(core->fault_text, sizeof core->fault_text, "core %u: %.200s", (unsigned)core->index, sentence);
    siglongjmp(core->guard->env, 1);
}

NODEDB_TPC_API const char *nodedb_tpc_fault_text(const nodedb_tpc_core *core) {
    return core == NULL || core->fault_sentence == NULL ? "" : core->fault_sentence;
}

NODEDB_TPC_API bool nodedb_tpc_is_degraded(const nodedb_tpc *runtime, uint32_t core) {
    return runtime != NULL && core < runtime->core_count && nodedb_tpc__core_degraded(runtime->cores[core]);
}

NODEDB_TPC_API nodedb_status nodedb_tpc_reset_core(nodedb_tpc *runtime, uint32_t core) {
    if (runtime == NULL || core >= runtime->core_count) return NODEDB_ERR_INVALID;
    nodedb__store_relaxed(&runtime->cores[core]->reset_wanted, 1u);
    return NODEDB_OK;
}

/* ---- suspects: request ids that have faulted --------------------------------------------------------------------- */

static uint32_t nodedb_tpc__suspect_bucket(uint64_t id) {
    return (uint32_t)(nodedb_mix64(id) % NODEDB_TPC__SUSPECT_BUCKETS);
}

NODEDB_TPC_API bool nodedb_tpc_is_refused(const nodedb_tpc *runtime, uint64_t request_id) {
    const nodedb_tpc__suspect *bucket;
    if (runtime == NULL || request_id == 0 || nodedb__load_relaxed(&runtime->suspects_any) == 0) return false;
    bucket = runtime->suspects[nodedb_tpc__suspect_bucket(request_id)];
    for (int way = 0; way < NODEDB_TPC__SUSPECT_WAYS; way++)
        if (nodedb__load_acquire(&bucket[way].id) == request_id)
            return nodedb__load_relaxed(&bucket[way].faults) >= runtime->config.faults_to_refuse;
    return false;
}

/* Counts a fault of this id. A new id takes the place with the fewest faults that is not refused. There always is one:
 * the id that would fill the bucket with refused ids makes the runtime forget one of the others, in turn. So no id that
 * has faulted less often displaces one that is refused. */
static void nodedb_tpc__suspect_add(nodedb_tpc *runtime, uint64_t id) {
    nodedb_tpc__suspect *bucket = runtime->suspects[nodedb_tpc__suspect_bucket(id)], *place = NULL;
    uint32_t limit = runtime->config.faults_to_refuse, refused = 0;
    if (id == 0) return;
    (void)pthread_mutex_lock(&runtime->suspects_lock);
    for (int way = 0; way < NODEDB_TPC__SUSPECT_WAYS; way++) {
        nodedb_tpc__suspect *s = &bucket[way];
        if (s->id == id) { place = s; break; }
        if (s->faults < limit && (place == NULL || s->faults < place->faults)) place = s;
    }
    assert(place != NULL);
    if (place->id != id) { /* in this order, so that no reader takes the old id's faults for the new one's */
        nodedb__store_relaxed(&place->faults, 0u);
        nodedb__store_release(&place->id, id);
    }
    nodedb__store_relaxed(&place->faults, place->faults + 1);
    for (int way = 0; way < NODEDB_TPC__SUSPECT_WAYS; way++) refused += bucket[way].faults >= limit;
    if (refused == NODEDB_TPC__SUSPECT_WAYS) {
        nodedb_tpc__suspect *forgotten = &bucket[runtime->suspect_hand++ % NODEDB_TPC__SUSPECT_WAYS];
        if (forgotten == place) forgotten = &bucket[runtime->suspect_hand++ % NODEDB_TPC__SUSPECT_WAYS];
        nodedb__store_relaxed(&forgotten->faults, 0u);
    }
    nodedb__store_relaxed(&runtime->suspects_any, 1u);
    (void)pthread_mutex_unlock(&runtime->suspects_lock);
}

NODEDB_TPC_API nodedb_status nodedb_tpc_reset_request(nodedb_tpc *runtime, uint64_t request_id) {
    nodedb_tpc__suspect *bucket;
    nodedb_status status = NODEDB_ERR_NOT_FOUND;
    if (runtime == NULL || request_id == 0) return NODEDB_ERR_INVALID;
    bucket = runtime->suspects[nodedb_tpc__suspect_bucket(request_id)];
    (void)pthread_mutex_lock(&runtime->suspects_lock);
    for (int way = 0; way < NODEDB_TPC__SUSPECT_WAYS; way++)
        if (bucket[way].id == request_id && bucket[way].faults > 0) {
            nodedb__store_relaxed(&bucket[way].faults, 0u);
            status = NODEDB_OK;
        }
    (void)pthread_mutex_unlock(&runtime->suspects_lock);
    return status;
}

/* ---- signals ----------------------------------------------------------------------------------------------------- */

static const int nodedb_tpc__caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
#define NODEDB_TPC__CAUGHT_COUNT (sizeof nodedb_tpc__caught / sizeof nodedb_tpc__caught[0])

/* Dispositions belong to the process, so the record of the previous ones does as well. The first runtime that catches
 * signals sets ours, the last one restores theirs. */
static struct sigaction nodedb_tpc__signals_before[sizeof nodedb_tpc__caught / sizeof nodedb_tpc__caught[0]];
static uint32_t nodedb_tpc__signals_users;
static pthread_mutex_t nodedb_tpc__signals_lock = PTHREAD_MUTEX_INITIALIZER;

/* A signal that is not ours: does what would have happened without us. */
static void nodedb_tpc__signal_before(int signal_number, siginfo_t *info, void *context) {
    const struct sigaction *before = NULL;
    struct sigaction standard;
    for (size_t i = 0; i < NODEDB_TPC__CAUGHT_COUNT; i++)
        if (nodedb_tpc__caught[i] == signal_number) before = &nodedb_tpc__signals_before[i];
    if (before == NULL) return;
    if ((before->sa_flags & SA_SIGINFO) != 0) {
        before->sa_sigaction(signal_number, info, context);
        return;
    }
    if (before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN) {
        before->sa_handler(signal_number);
        return;
    }
    if (before->sa_handler == SIG_IGN && info->si_code <= 0) return;
    memset(&standard, 0, sizeof standard);
    standard.sa_handler = SIG_DFL;
    (void)sigaction(signal_number, &standard, NULL);
    /* The CPU repeats its fault by itself; a signal that was sent must be sent again. */
    if (info->si_code <= 0) (void)raise(signal_number);
}

static void nodedb_tpc__on_signal(int signal_number, siginfo_t *info, void *context) {
    nodedb_tpc_core *core = nodedb_tpc__current;
    int saved_errno = errno;
    bool raised_by_cpu = info->si_code > 0;
    if (core != NULL && core->guard != NULL && core->runtime->catching && raised_by_cpu) {
        core->fault_signal = signal_number;
        core->fault_address = info->si_addr;
        siglongjmp(core->guard->env, 1);
    }
    nodedb_tpc__signal_before(signal_number, info, context);
    errno = saved_errno;
}

/* After the jump out of a signal handler the signal is still blocked, because the guard does not save the mask. All
 * four are unblocked: ThreadSanitizer's own handler, which runs before ours, blocks every signal. */
static void nodedb_tpc__after_signal(nodedb_tpc_core *core) {
    sigset_t set;
    int signal_number = core->fault_signal;
    if (signal_number == 0) return; /* a panic */
    core->fault_signal = 0;
    (void)sigemptyset(&set);
    for (size_t i = 0; i < NODEDB_TPC__CAUGHT_COUNT; i++) (void)sigaddset(&set, nodedb_tpc__caught[i]);
    (void)pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    (void)snprintf(core->fault_text, sizeof core->fault_text, "core %u: %s at address %p in a guarded task",
                   (unsigned)core->index,
                   signal_number == SIGSEGV  ? "SIGSEGV"
                   : signal_number == SIGBUS ? "SIGBUS"
                   : signal_number == SIGFPE ? "SIGFPE"
                                             : "SIGILL",
                   core->fault_address);
}

static void nodedb_tpc__signals_catch(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = nodedb_tpc__on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    (void)sigemptyset(&action.sa_mask);
    (void)pthread_mutex_lock(&nodedb_tpc__signals_lock);
    if (nodedb_tpc__signals_users++ == 0)
        for (size_t i = 0; i < NODEDB_TPC__CAUGHT_COUNT; i++) {
            /* in this order: our handler reads the record */
            (void)sigaction(nodedb_tpc__caught[i], NULL, &nodedb_tpc__signals_before[i]);
            (void)sigaction(nodedb_tpc__caught[i], &action, NULL);
        }
    (void)pthread_mutex_unlock(&nodedb_tpc__signals_lock);
}

static void nodedb_tpc__signals_leave(void) {
    struct sigaction now;
    (void)pthread_mutex_lock(&nodedb_tpc__signals_lock);
    assert(nodedb_tpc__signals_users > 0);
    if (--nodedb_tpc__signals_users == 0)
        for (size_t i = 0; i < NODEDB_TPC__CAUGHT_COUNT; i++)
            if (sigaction(nodedb_tpc__caught[i], NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 &&
                now.sa_sigaction == nodedb_tpc__on_signal) /* a handler that was set after ours stays */
                (void)sigaction(nodedb_tpc__caught[i], &nodedb_tpc__signals_before[i], NULL);
    (void)pthread_mutex_unlock(&nodedb_tpc__signals_lock);
}

/* A stack of the handler's own, so that an overflow of the thread's stack can be caught. This thread. */
static void nodedb_tpc__signal_stack_set(nodedb_tpc_core *core) {
    stack_t stack;
    if (core->signal_stack == NULL) return;
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = core->signal_stack;
    stack.ss_size = NODEDB_TPC__SIGNAL_STACK_BYTES;
    (void)sigaltstack(&stack, &core->signal_stack_before);
}

static void nodedb_tpc__signal_stack_reset(nodedb_tpc_core *core) {
    if (core->signal_stack != NULL) (void)sigaltstack(&core->signal_stack_before, NULL);
}

/* =====================================================================================================================
 * TIME: timers, maintenance, checkpoints, heartbeats, the watchdog
 *
 * All of it is looked at once in a turn, with the time at which the turn began, and with config.clock: a virtual clock
 * makes it deterministic. Missed checkpoints and beats are not repeated.
 * ================================================================================================================== */

/* ---- timers: a binary heap by due time, then by the order of setting --------------------------------------------- */

static bool nodedb_tpc__sooner_timer(const nodedb_tpc_timer *a, const nodedb_tpc_timer *b) {
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void nodedb_tpc__place_timer(nodedb_tpc_core *core, uint32_t place, nodedb_tpc_timer *timer) {
    core->timers[place] = timer;
    timer->place = place + 1;
}

/* Moves a timer from an empty place to where it belongs: up past later parents, or else down past sooner children. */
static void nodedb_tpc__sift_timer(nodedb_tpc_core *core, uint32_t place, nodedb_tpc_timer *timer) {
    for (uint32_t parent; place > 0 && nodedb_tpc__sooner_timer(timer, core->timers[parent = (place - 1) / 2]);
         place = parent)
        nodedb_tpc__place_timer(core, place, core->timers[parent]);
    for (uint32_t child; (child = 2 * place + 1) < core->timer_count; place = child) {
        if (child + 1 < core->timer_count && nodedb_tpc__sooner_timer(core->timers[child + 1], core->timers[child]))
            child++;
        if (nodedb_tpc__sooner_timer(timer, core->timers[child])) break;
        nodedb_tpc__place_timer(core, place, core->timers[child]);
    }
    nodedb_tpc__place_timer(core, place, timer);
}

static void nodedb_tpc__remove_timer(nodedb_tpc_core *core, nodedb_tpc_timer *timer) {
    uint32_t place = timer->place - 1;
    nodedb_tpc_timer *last = core->timers[--core->timer_count];
    if (last != timer) nodedb_tpc__sift_timer(core, place, last);
    timer->place = 0;
}

/* A struct that is not zeroed, or is set on another core, is not where it says. */
static bool nodedb_tpc__is_set_here(const nodedb_tpc_core *core, const nodedb_tpc_timer *timer) {
    return timer->place - 1 < core->timer_count && core->timers[timer->place - 1] == timer;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_timer_set(nodedb_tpc_core *core, nodedb_tpc_timer *timer, uint64_t due_ns,
                                                  nodedb_tpc_fn fn, void *arg) {
    if (core == NULL || timer == NULL || fn == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(core)) return NODEDB_ERR_STATE;
    if (timer->place != 0 && !nodedb_tpc__is_set_here(core, timer)) return NODEDB_ERR_STATE;
    if (timer->place != 0) nodedb_tpc__remove_timer(core, timer);
    else if (core->timer_count == core->runtime->config.timers) return NODEDB_ERR_LIMIT;
    timer->fn = fn;
    timer->arg = arg;
    timer->due_ns = due_ns;
    timer->order = core->timer_order++;
    core->timer_count++;
    nodedb_tpc__sift_timer(core, core->timer_count - 1, timer);
    return NODEDB_OK;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_timer_cancel(nodedb_tpc_core *core, nodedb_tpc_timer *timer) {
    if (core == NULL || timer == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc__on_own_thread(core)) return NODEDB_ERR_STATE;
    if (timer->place == 0) return NODEDB_ERR_NOT_FOUND;
    if (!nodedb_tpc__is_set_here(core, timer)) return NODEDB_ERR_STATE;
    nodedb_tpc__remove_timer(core, timer);
    return NODEDB_OK;
}

static size_t nodedb_tpc__run_timers(nodedb_tpc_core *core, uint64_t now) {
    size_t fired = 0;
    for (; fired < NODEDB_TPC_TIMERS_PER_TURN && core->timer_count > 0 && core->timers[0]->due_ns <= now; fired++) {
        nodedb_tpc_timer *timer = core->timers[0];
        nodedb_tpc__remove_timer(core, timer); /* first: its function may set it again, or free it */
        nodedb_tpc__count(&core->stats.timers, 1u);
        timer->fn(core, timer->arg);
    }
    return fired;
}

/* ---- maintenance and checkpoints --------------------------------------------------------------------------------- */

/* A slice of maintenance that took T is followed, on a busy core, by T (100 - p) / p without any. */
static bool nodedb_tpc__maintain(nodedb_tpc_core *core, uint64_t now, bool idle) {
    const nodedb_tpc_config *config = &core->runtime->config;
    uint64_t begin, end, took;
    if (config->maintain == NULL || (!core->maintenance_more && now < core->maintenance_due_ns)) return false;
    if (!idle && now < core->maintenance_free_ns) return false;
    begin = nodedb_tpc__now(core->runtime);
    core->maintenance_more = config->maintain(core, config->ctx, config->maintenance_budget_ns);
    end = nodedb_tpc__now(core->runtime), took = end > begin ? end - begin : 0;
    core->maintenance_due_ns = end + config->maintenance_interval_ns;
    core->maintenance_free_ns = end + took * (100 - config->maintenance_percent) / config->maintenance_percent;
    nodedb_tpc__count(&core->stats.maintenance_ns, took);
    return core->maintenance_more;
}

/* Core i of n follows the first by i / n of the period, so that not all of them write at once. */
static void nodedb_tpc__schedule_checkpoint(nodedb_tpc_core *core, uint64_t now) {
    const nodedb_tpc *runtime = core->runtime;
    uint64_t period = runtime->config.checkpoint_ns, first, passed;
    core->checkpoint_due_ns = UINT64_MAX;
    if (period == NODEDB_TPC_OFF || runtime->config.on_checkpoint == NULL) return;
    first = runtime->epoch_ns + period + period / runtime->core_count * core->index;
    passed = now < first ? 0 : (now - first) / period + 1;
    core->checkpoint_due_ns = first + passed * period;
}

static void nodedb_tpc__checkpoint(nodedb_tpc_core *core, uint64_t now) {
    if (now < core->checkpoint_due_ns) return;
    nodedb_tpc__schedule_checkpoint(core, now);
    nodedb_tpc__count(&core->stats.checkpoints, 1u);
    core->runtime->config.on_checkpoint(core, core->runtime->config.ctx);
}

/* ---- heartbeats and the watchdog --------------------------------------------------------------------------------- */

/* Beat k of core i is due at epoch + k * period + jitter. The jitter is one of BEAT_SLOTS places within 100 ms, drawn
 * by the seed. Place s of core i is s * cores + i, so the places of two cores never coincide: no two cores ever beat at
 * the same instant, and two beats of one core are a period apart, plus or minus 100 ms. */
static void nodedb_tpc__schedule_beat(nodedb_tpc_core *core, uint64_t now) {
    const nodedb_tpc *runtime = core->runtime;
    uint64_t period = runtime->config.heartbeat_ns, places = (uint64_t)NODEDB_TPC__BEAT_SLOTS * runtime->core_count;
    if (period == NODEDB_TPC_OFF) {
        core->beat_due_ns = UINT64_MAX;
        return;
    }
    do {
        uint64_t passed = now > runtime->epoch_ns ? (now - runtime->epoch_ns) / period : 0, draw, place;
        core->beat = passed > core->beat + 1 ? passed : core->beat + 1;
        draw = nodedb_mix64(runtime->config.seed ^ nodedb_mix64(core->index ^ core->beat << 16));
        place = draw % NODEDB_TPC__BEAT_SLOTS * runtime->core_count + core->index;
        core->beat_due_ns = runtime->epoch_ns + core->beat * period - NODEDB_TPC_HEARTBEAT_JITTER_NS / 2 +
                            place * (NODEDB_TPC_HEARTBEAT_JITTER_NS / places);
    } while (core->beat_due_ns <= now);
}

static bool nodedb_tpc__core_stalled(const nodedb_tpc_core *core, uint64_t now) {
    uint64_t turn_ns = nodedb__load_relaxed(&core->turn_ns);
    return core->runtime->config.watchdog_ns != NODEDB_TPC_OFF &&
           nodedb__load_relaxed(&core->state) != NODEDB_TPC__ENDED && now > turn_ns &&
           now - turn_ns > core->runtime->config.watchdog_ns;
}

NODEDB_TPC_API bool nodedb_tpc_stalled(const nodedb_tpc *runtime, uint32_t core) {
    if (runtime == NULL || core >= runtime->core_count) return false;
    return nodedb_tpc__core_stalled(runtime->cores[core], nodedb_tpc__now(runtime));
}

/* Logs the stalls of the other cores. The first core to see one claims its turn, so each stall is logged once. */
static void nodedb_tpc__log_stalls(nodedb_tpc_core *core, uint64_t now) {
    nodedb_tpc *runtime = core->runtime;
    for (uint32_t i = 0; i < runtime->core_count; i++) {
        nodedb_tpc_core *other = runtime->cores[i];
        uint64_t said, turn = nodedb__load_relaxed(&other->stats.turns) + 1, stalled_ns;
        if (other == core || !nodedb_tpc__core_stalled(other, now)) continue;
        said = nodedb__load_relaxed(&other->stall_said_turn);
        if (said == turn || !nodedb__cas(&other->stall_said_turn, &said, turn)) continue;
        stalled_ns = now - nodedb__load_relaxed(&other->turn_ns);
        nodedb_say(&runtime->config.logger, NODEDB_LOG_ERROR,
                   "core %u has not come round its loop for %llu ms (core %u noticed): a task or hook does not end",
                   (unsigned)i, (unsigned long long)(stalled_ns / NODEDB_TPC__MILLISECOND_NS), (unsigned)core->index);
    }
}

static void nodedb_tpc__heartbeat(nodedb_tpc_core *core, uint64_t now, bool idle) {
    const nodedb_tpc_config *config = &core->runtime->config;
    if (now >= core->beat_due_ns) {
        nodedb_tpc__log_stalls(core, now);
        nodedb_tpc__schedule_beat(core, now);
        core->beat_owed = true;
    }
    if (!core->beat_owed || !idle) return;
    core->beat_owed = false;
    nodedb_tpc__count(&core->stats.heartbeats, 1u);
    if (config->on_heartbeat != NULL) config->on_heartbeat(core, config->ctx);
}

/* =====================================================================================================================
 * LIFE: making a runtime, starting its cores, stopping them when all work is done
 *
 *     nodedb_tpc_start:  make -> threads -> each core: on_start -> all arrived -> GO: turns ... -> ended -> join, free
 *                                                                   \-> ABORT: on_stop where on_start succeeded, free
 * ================================================================================================================== */

/* ---- what can be wrong with a config ----------------------------------------------------------------------------- */

static bool nodedb_tpc__power_of_two(uint32_t n, uint32_t most) { return n >= 2 && n <= most && (n & (n - 1)) == 0; }

#define nodedb_tpc__default(field, value) ((field) = (field) == 0 ? (value) : (field))

static void nodedb_tpc__fill_defaults(nodedb_tpc_config *c) {
    nodedb_tpc__default(c->message_bytes, NODEDB_TPC__DEFAULT_MESSAGE_BYTES);
    nodedb_tpc__default(c->ring_messages, NODEDB_TPC__DEFAULT_RING_MESSAGES);
    nodedb_tpc__default(c->inbox_messages, NODEDB_TPC__DEFAULT_RING_MESSAGES);
    nodedb_tpc__default(c->queue_tasks, NODEDB_TPC__DEFAULT_QUEUE_TASKS);
    nodedb_tpc__default(c->timers, NODEDB_TPC__DEFAULT_TIMERS);
    nodedb_tpc__default(c->spin_ns, NODEDB_TPC__DEFAULT_SPIN_NS);
    nodedb_tpc__default(c->heartbeat_ns, NODEDB_TPC__SECOND_NS);
    nodedb_tpc__default(c->watchdog_ns, 5 * NODEDB_TPC__SECOND_NS);
    nodedb_tpc__default(c->maintenance_interval_ns, NODEDB_TPC__MILLISECOND_NS);
    nodedb_tpc__default(c->maintenance_budget_ns, NODEDB_TPC__DEFAULT_MAINTENANCE_BUDGET_NS);
    nodedb_tpc__default(c->maintenance_percent, NODEDB_TPC__DEFAULT_MAINTENANCE_PERCENT);
    nodedb_tpc__default(c->checkpoint_ns, 300 * NODEDB_TPC__SECOND_NS);
    nodedb_tpc__default(c->drain_ns, 10 * NODEDB_TPC__SECOND_NS);
    nodedb_tpc__default(c->faults_to_refuse, NODEDB_TPC__DEFAULT_FAULTS_TO_REFUSE);
    nodedb_tpc__default(c->faults_to_degrade, NODEDB_TPC__DEFAULT_FAULTS_TO_DEGRADE);
    nodedb_tpc__default(c->fault_window_ns, 60 * NODEDB_TPC__SECOND_NS);
    nodedb_tpc__default(c->degraded_ns, 30 * NODEDB_TPC__SECOND_NS);
    if (c->name == NULL) c->name = "tpc";
    if (c->checkpoint_ns > UINT64_MAX / 4) c->checkpoint_ns = NODEDB_TPC_OFF; /* no clock gets there */
}

static nodedb_status nodedb_tpc__check_config(const nodedb_tpc_config *c, nodedb_error *err) {
    if (c->maintenance_percent > 100)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "maintenance_percent is %u", (unsigned)c->maintenance_percent);
    if (c->cores > NODEDB_TPC_MAX_CORES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "%u cores: at most %d are possible", (unsigned)c->cores,
                           NODEDB_TPC_MAX_CORES);
    if (c->message_bytes > NODEDB_TPC_MAX_MESSAGE_BYTES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "message_bytes is %u: at most %d are possible",
                           (unsigned)c->message_bytes, NODEDB_TPC_MAX_MESSAGE_BYTES);
    if (!nodedb_tpc__power_of_two(c->ring_messages, NODEDB_TPC_MAX_RING_MESSAGES) ||
        !nodedb_tpc__power_of_two(c->inbox_messages, NODEDB_TPC_MAX_RING_MESSAGES) ||
        !nodedb_tpc__power_of_two(c->queue_tasks, NODEDB_TPC_MAX_QUEUE_TASKS))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                           "ring_messages (%u), inbox_messages (%u) and queue_tasks (%u) must be powers of two",
                           (unsigned)c->ring_messages, (unsigned)c->inbox_messages, (unsigned)c->queue_tasks);
    if (c->timers > NODEDB_TPC_MAX_TIMERS)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "%u timers: at most %u are possible", (unsigned)c->timers,
                           (unsigned)NODEDB_TPC_MAX_TIMERS);
    if (c->faults_to_degrade > NODEDB_TPC_MAX_FAULTS_TO_DEGRADE && c->faults_to_degrade != NODEDB_TPC_NEVER)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "faults_to_degrade is %u: at most %d, or NODEDB_TPC_NEVER",
                           (unsigned)c->faults_to_degrade, NODEDB_TPC_MAX_FAULTS_TO_DEGRADE);
    if (strlen(c->name) > NODEDB_TPC_MAX_NAME_BYTES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "the name \"%.40s\" is longer than %d bytes", c->name,
                           NODEDB_TPC_MAX_NAME_BYTES);
    if (c->heartbeat_ns < 2 * NODEDB_TPC_HEARTBEAT_JITTER_NS)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "heartbeat_ns is %llu: at least 200 ms, because of its jitter",
                           (unsigned long long)c->heartbeat_ns);
    return NODEDB_OK;
}

/* ---- make and free ----------------------------------------------------------------------------------------------- */

/* The CPUs that this thread may use, in order; returns how many, 0 if the system does not say. */
static uint32_t nodedb_tpc__cpus(int *cpus, uint32_t most) {
    cpu_set_t set;
    uint32_t n = 0;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && n < most; cpu++)
        if (CPU_ISSET((unsigned)cpu, &set)) cpus[n++] = cpu;
    return n;
}

static void nodedb_tpc__free_core(nodedb_tpc *runtime, nodedb_tpc_core *core) {
    const nodedb_allocator *allocator = &runtime->config.allocator;
    nodedb_tpc_notifier_close(&core->notifier);
    nodedb_tpc_ring_destroy(core->inbox.ring);
    (void)pthread_mutex_destroy(&core->inbox.lock);
    nodedb__release(allocator, core->queue, runtime->config.queue_tasks * sizeof *core->queue);
    nodedb__release(allocator, core->timers, runtime->config.timers * sizeof *core->timers);
    nodedb__release(allocator, core->signal_stack, NODEDB_TPC__SIGNAL_STACK_BYTES);
    nodedb__release(allocator, core, sizeof *core);
}

/* Frees a runtime, also a half-made one. No core runs. */
static void nodedb_tpc__free(nodedb_tpc *runtime) {
    nodedb_allocator allocator = runtime->config.allocator;
    size_t n = runtime->core_count;
    for (size_t i = 0; runtime->cores != NULL && i < n; i++)
        if (runtime->cores[i] != NULL) nodedb_tpc__free_core(runtime, runtime->cores[i]);
    for (size_t i = 0; runtime->rings != NULL && i < n * n; i++) nodedb_tpc_ring_destroy(runtime->rings[i]);
    nodedb__release(&allocator, runtime->cores, n * sizeof *runtime->cores);
    nodedb__release(&allocator, runtime->rings, n * n * sizeof *runtime->rings);
    if (runtime->catching) nodedb_tpc__signals_leave();
    (void)pthread_mutex_destroy(&runtime->start_lock);
    (void)pthread_mutex_destroy(&runtime->suspects_lock);
    (void)pthread_mutex_destroy(&runtime->quarantine_lock);
    (void)pthread_cond_destroy(&runtime->start_changed);
    nodedb__release(&allocator, runtime, sizeof *runtime);
}

static nodedb_status nodedb_tpc__make_core(nodedb_tpc *runtime, uint32_t index, int cpu, nodedb_error *err) {
    const nodedb_tpc_config *config = &runtime->config;
    size_t queue_bytes;
    nodedb_tpc_core *core =
        (nodedb_tpc_core *)nodedb__alloc_zero(&config->allocator, sizeof *core, NODEDB_TPC__APART_BYTES);
    if (core == NULL) return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for core %u", (unsigned)index);
    runtime->cores[index] = core;
    core->runtime = runtime;
    core->index = index;
    core->cpu = cpu;
    core->thread = pthread_self();
    core->start_status = NODEDB_ERR_STATE;
    core->spin_ns = runtime->spin_ns_max;
    core->notifier.fd = -1;
    (void)pthread_mutex_init(&core->inbox.lock, NULL);
    if (!__builtin_mul_overflow(config->queue_tasks, sizeof *core->queue, &queue_bytes))
        core->queue = (nodedb_tpc__task *)nodedb__alloc(&config->allocator, queue_bytes, NODEDB_CACHE_LINE_BYTES);
    if (core->queue == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the run queue of core %u", (unsigned)index);
    core->timers = (nodedb_tpc_timer **)nodedb__alloc(&config->allocator, config->timers * sizeof *core->timers,
                                                      NODEDB_CACHE_LINE_BYTES);
    if (core->timers == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the timers of core %u", (unsigned)index);
    if (config->catch_signals) {
        core->signal_stack = (unsigned char *)nodedb__alloc(&config->allocator, NODEDB_TPC__SIGNAL_STACK_BYTES,
                                                            NODEDB_TPC__SIGNAL_STACK_ALIGN);
        if (core->signal_stack == NULL)
            return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the signal stack of core %u",
                               (unsigned)index);
    }
    core->inbox.ring = nodedb_tpc_ring_create(config->inbox_messages, config->message_bytes, &config->allocator, err);
    if (core->inbox.ring == NULL) return NODEDB_ERR_NO_MEMORY;
    return nodedb_tpc_notifier_open(&core->notifier, err);
}

/* The cores and rings of a runtime. On failure the caller frees what is there. */
static nodedb_status nodedb_tpc__make_cores(nodedb_tpc *runtime, const int *cpus, uint32_t cpu_count,
                                            nodedb_error *err) {
    const nodedb_tpc_config *config = &runtime->config;
    size_t n = runtime->core_count; /* at most 256, so no product below overflows */
    runtime->cores =
        (nodedb_tpc_core **)nodedb__alloc_zero(&config->allocator, n * sizeof *runtime->cores, sizeof(void *));
    runtime->rings =
        (nodedb_tpc_ring **)nodedb__alloc_zero(&config->allocator, n * n * sizeof *runtime->rings, sizeof(void *));
    if (runtime->cores == NULL || runtime->rings == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the tables of %u cores",
                           (unsigned)runtime->core_count);
    for (uint32_t i = 0; i < runtime->core_count; i++) {
        int cpu = runtime->manual || config->unpinned || cpu_count == 0 ? -1 : cpus[i % cpu_count];
        nodedb_status status = nodedb_tpc__make_core(runtime, i, cpu, err);
        if (status != NODEDB_OK) return status;
    }
    for (size_t i = 0; i < n * n; i++) {
        runtime->rings[i] =
            nodedb_tpc_ring_create(config->ring_messages, config->message_bytes, &config->allocator, err);
        if (runtime->rings[i] == NULL) return NODEDB_ERR_NO_MEMORY;
    }
    return NODEDB_OK;
}

/* The runtime with all its cores and rings, nothing running. */
static nodedb_tpc *nodedb_tpc__make(const nodedb_tpc_config *given, bool manual, nodedb_error *err) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    int cpus[CPU_SETSIZE];
    uint32_t cpu_count = nodedb_tpc__cpus(cpus, CPU_SETSIZE);
    memset(&config, 0, sizeof config);
    if (given != NULL) config = *given;
    if (config.cores == 0) {
        config.cores = manual || cpu_count == 0 ? 1 : cpu_count;
        if (config.cores > NODEDB_TPC_MAX_CORES) config.cores = NODEDB_TPC_MAX_CORES;
    }
    nodedb_tpc__fill_defaults(&config);
    if (nodedb_tpc__check_config(&config, err) != NODEDB_OK) return NULL;
    runtime = (nodedb_tpc *)nodedb__alloc_zero(&config.allocator, sizeof *runtime, NODEDB_CACHE_LINE_BYTES);
    if (runtime == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the runtime");
        return NULL;
    }
    memcpy(runtime->name, config.name, strlen(config.name));
    config.name = runtime->name;
    runtime->config = config;
    runtime->core_count = config.cores;
    runtime->manual = manual;
    runtime->share_cpus = cpu_count < 2 || cpu_count < config.cores;
    runtime->spin_ns_max = config.spin_ns == NODEDB_TPC_OFF || runtime->share_cpus ? 0 : config.spin_ns;
    (void)pthread_mutex_init(&runtime->start_lock, NULL);
    (void)pthread_mutex_init(&runtime->suspects_lock, NULL);
    (void)pthread_mutex_init(&runtime->quarantine_lock, NULL);
    (void)pthread_cond_init(&runtime->start_changed, NULL);
    if (nodedb_tpc__make_cores(runtime, cpus, cpu_count, err) != NODEDB_OK) {
        nodedb_tpc__free(runtime);
        return NULL;
    }
    if (config.catch_signals) {
        nodedb_tpc__signals_catch();
        runtime->catching = true;
    }
    return runtime;
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

static void nodedb_tpc__begin_core(nodedb_tpc_core *core) {
    const nodedb_tpc_config *config = &core->runtime->config;
    core->start_status = config->on_start == NULL ? NODEDB_OK : config->on_start(core, config->ctx, &core->start_error);
}

static void nodedb_tpc__name_and_pin(nodedb_tpc_core *core) {
    char name[NODEDB_TPC__THREAD_NAME_BYTES];
    cpu_set_t set;
    int error;
    (void)snprintf(name, sizeof name, "%s-%u", core->runtime->name, (unsigned)core->index);
    (void)pthread_setname_np(pthread_self(), name);
    if (core->cpu < 0) return;
    CPU_ZERO(&set);
    CPU_SET((unsigned)core->cpu, &set);
    error = pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    if (error == 0) return;
    nodedb_say(&core->runtime->config.logger, NODEDB_LOG_WARNING,
               "core %u is not pinned to CPU %d (errno %d): it runs where the scheduler likes; allow "
               "sched_setaffinity, or set config.unpinned", (unsigned)core->index, core->cpu, error);
    core->cpu = -1;
}

static void *nodedb_tpc__thread(void *arg) {
    nodedb_tpc_core *core = (nodedb_tpc_core *)arg;
    nodedb_tpc *runtime = core->runtime;
    nodedb_tpc__verdict verdict;
    nodedb_tpc__current = core;
    core->thread = pthread_self();
    nodedb_tpc__name_and_pin(core);
    nodedb_tpc__signal_stack_set(core);
    nodedb_tpc__begin_core(core);
    (void)pthread_mutex_lock(&runtime->start_lock);
    runtime->arrived++;
    (void)pthread_cond_broadcast(&runtime->start_changed);
    while (runtime->verdict == NODEDB_TPC__UNDECIDED)
        (void)pthread_cond_wait(&runtime->start_changed, &runtime->start_lock);
    verdict = runtime->verdict;
    (void)pthread_mutex_unlock(&runtime->start_lock);
    if (verdict == NODEDB_TPC__GO)
        while (nodedb_tpc__take_turn(core, NODEDB_TPC_PARK_NS_MAX) != NODEDB_ERR_CANCELLED) {}
    else if (core->start_status == NODEDB_OK && runtime->config.on_stop != NULL)
        runtime->config.on_stop(core, runtime->config.ctx);
    nodedb_tpc__signal_stack_reset(core);
    nodedb_tpc__current = NULL;
    return NULL;
}

/* True if one of the first `cores` cores could not start; `err` names the first one, and says why. */
static bool nodedb_tpc__start_failed(nodedb_tpc *runtime, uint32_t cores, nodedb_error *err) {
    for (uint32_t i = 0; i < cores; i++) {
        nodedb_tpc_core *core = runtime->cores[i];
        const char *why = core->start_error.message;
        if (core->start_status == NODEDB_OK) continue;
        if (why[0] == 0) why = nodedb_status_text(core->start_status);
        (void)nodedb_fail(err, core->start_status, 0, "core %u did not start: %.200s", (unsigned)i, why);
        if (err != NULL) err->sys_errno = core->start_error.sys_errno;
        return true;
    }
    return false;
}

/* Just before the first turn. */
static void nodedb_tpc__set_epoch(nodedb_tpc *runtime) {
    runtime->epoch_ns = nodedb_tpc__now(runtime);
    for (uint32_t i = 0; i < runtime->core_count; i++) {
        nodedb_tpc_core *core = runtime->cores[i];
        nodedb__store_relaxed(&core->turn_ns, runtime->epoch_ns);
        core->maintenance_due_ns = runtime->epoch_ns + runtime->config.maintenance_interval_ns;
        nodedb_tpc__schedule_beat(core, runtime->epoch_ns);
        nodedb_tpc__schedule_checkpoint(core, runtime->epoch_ns);
    }
}

/* The mask that cores inherit: only what the CPU raises, what ends the process, and the profiler's timer reach them. */
static void nodedb_tpc__signals_mask(sigset_t *mask) {
    static const int open[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF};
    (void)sigfillset(mask);
    for (size_t i = 0; i < sizeof open / sizeof open[0]; i++) (void)sigdelset(mask, open[i]);
}

NODEDB_TPC_API nodedb_tpc *nodedb_tpc_start(const nodedb_tpc_config *config, nodedb_error *err) {
    nodedb_tpc *runtime = nodedb_tpc__make(config, false, err);
    sigset_t mask, mask_before;
    uint32_t threads;
    bool good;
    int error = 0;
    if (runtime == NULL) return NULL;
    nodedb_tpc__signals_mask(&mask);
    (void)pthread_sigmask(SIG_SETMASK, &mask, &mask_before);
    for (threads = 0; threads < runtime->core_count; threads++) {
        pthread_t thread; /* the core stores core->thread itself, before it arrives */
        error = pthread_create(&thread, NULL, nodedb_tpc__thread, runtime->cores[threads]);
        if (error != 0) break;
    }
    (void)pthread_sigmask(SIG_SETMASK, &mask_before, NULL);
    (void)pthread_mutex_lock(&runtime->start_lock);
    while (runtime->arrived < threads) (void)pthread_cond_wait(&runtime->start_changed, &runtime->start_lock);
    good = error == 0 && !nodedb_tpc__start_failed(runtime, threads, err);
    if (error != 0)
        (void)nodedb_fail(err, error == EAGAIN ? NODEDB_ERR_LIMIT : NODEDB_ERR_IO, error, "core %u: no thread for it",
                          (unsigned)threads);
    if (good) nodedb_tpc__set_epoch(runtime);
    runtime->verdict = good ? NODEDB_TPC__GO : NODEDB_TPC__ABORT;
    (void)pthread_cond_broadcast(&runtime->start_changed);
    (void)pthread_mutex_unlock(&runtime->start_lock);
    if (good) return runtime;
    for (uint32_t i = 0; i < threads; i++) (void)pthread_join(runtime->cores[i]->thread, NULL);
    nodedb_tpc__free(runtime);
    return NULL;
}

NODEDB_TPC_API nodedb_tpc *nodedb_tpc_create_manual(const nodedb_tpc_config *config, nodedb_error *err) {
    nodedb_tpc *runtime = nodedb_tpc__make(config, true, err);
    uint32_t begun;
    if (runtime == NULL) return NULL;
    nodedb_tpc__signal_stack_set(runtime->cores[0]); /* one thread, one stack */
    for (begun = 0; begun < runtime->core_count; begun++) {
        nodedb_tpc__begin_core(runtime->cores[begun]);
        if (runtime->cores[begun]->start_status != NODEDB_OK) break;
    }
    if (begun == runtime->core_count) {
        nodedb_tpc__set_epoch(runtime);
        return runtime;
    }
    (void)nodedb_tpc__start_failed(runtime, begun + 1, err);
    for (uint32_t i = 0; i < begun; i++)
        if (runtime->config.on_stop != NULL) runtime->config.on_stop(runtime->cores[i], runtime->config.ctx);
    nodedb_tpc__signal_stack_reset(runtime->cores[0]);
    nodedb_tpc__free(runtime);
    return NULL;
}

/* ---- stop -------------------------------------------------------------------------------------------------------- */

static void nodedb_tpc__wake_all(nodedb_tpc *runtime) {
    nodedb_tpc__notifier_fence();
    for (uint32_t i = 0; i < runtime->core_count; i++)
        (void)nodedb_tpc__notifier_wake_if_parked(&runtime->cores[i]->notifier);
}

NODEDB_TPC_API void nodedb_tpc_stop(nodedb_tpc *runtime) {
    uint32_t running = NODEDB_TPC__RUNNING;
    if (runtime == NULL || !nodedb__cas(&runtime->phase, &running, (uint32_t)NODEDB_TPC__CLOSING)) return;
    for (uint32_t i = 0; i < runtime->core_count; i++) { /* all before the phase: a core in STOPPING sees all posts */
        nodedb_tpc__inbox *inbox = &runtime->cores[i]->inbox;
        (void)pthread_mutex_lock(&inbox->lock);
        inbox->closed = true;
        (void)pthread_mutex_unlock(&inbox->lock);
    }
    runtime->stop_ns = nodedb_tpc__now(runtime);
    nodedb__store_release(&runtime->phase, (uint32_t)NODEDB_TPC__STOPPING);
    nodedb_tpc__wake_all(runtime);
}

NODEDB_TPC_API bool nodedb_tpc_stopping(const nodedb_tpc *runtime) {
    return runtime != NULL && nodedb__load_acquire(&runtime->phase) != NODEDB_TPC__RUNNING;
}

/* True if all work is done, now that nothing comes from outside. Reads every `done` before every `issued`. A unit that
 * is counted as done was counted as issued before, and so was all that it issued. So if the sums are equal, the units
 * done are exactly the units issued. Suppose a unit is missing from both sums. Then the unit that issued it is missing
 * too, and so on back to a post; but all posts were counted before the phase was STOPPING. Hooks issue without a unit,
 * but a core that is QUIET has issued nothing since it became so: issuing sets ACTIVE first. What its hooks issue later
 * may come too late, because its `pending` has said that it waits for nothing. */
static bool nodedb_tpc__quiescent(nodedb_tpc *runtime) {
    uint64_t done = 0, issued = 0;
    for (uint32_t i = 0; i < runtime->core_count; i++) done += nodedb__load_acquire(&runtime->cores[i]->done);
    for (uint32_t i = 0; i < runtime->core_count; i++)
        if (nodedb__load_acquire(&runtime->cores[i]->state) == NODEDB_TPC__ACTIVE) return false;
    for (uint32_t i = 0; i < runtime->core_count; i++)
        issued += nodedb__load_acquire(&runtime->cores[i]->issued) +
                  nodedb__load_acquire(&runtime->cores[i]->inbox.posted);
    return done == issued;
}

/* The core's last act. What is still there came too late or took too long. */
static void nodedb_tpc__end_core(nodedb_tpc_core *core) {
    nodedb_tpc *runtime = core->runtime;
    uint64_t tasks = 0, messages = 0;
    for (; core->queue_head != core->queue_tail; tasks++) {
        nodedb_tpc__task task = core->queue[core->queue_head++ & (runtime->config.queue_tasks - 1)];
        nodedb_tpc__end_task(core, &task, NODEDB_ERR_CANCELLED, "the runtime stopped before the task began");
    }
    for (uint32_t from = 0; from <= runtime->core_count; from++)
        messages += nodedb_tpc_ring_length(nodedb_tpc__ring_to(core, from));
    nodedb_tpc__count(&core->stats.dropped, messages);
    nodedb_tpc__end_calls(core);
    if (tasks + messages > 0)
        nodedb_say(&runtime->config.logger, NODEDB_LOG_WARNING,
                   "core %u stopped with %llu tasks cancelled and %llu messages dropped: it was not drained in time",
                   (unsigned)core->index, (unsigned long long)tasks, (unsigned long long)messages);
    if (runtime->config.on_stop != NULL) runtime->config.on_stop(core, runtime->config.ctx);
    nodedb__store_release(&core->state, (uint32_t)NODEDB_TPC__ENDED);
}

/* Within a turn: true if the core has ended. */
static bool nodedb_tpc__stop_turn(nodedb_tpc_core *core, uint64_t now, bool idle) {
    nodedb_tpc *runtime = core->runtime;
    uint32_t phase = nodedb__load_acquire(&runtime->phase);
    core->phase_seen = phase;
    if (phase < NODEDB_TPC__STOPPING) return false;
    if (phase == NODEDB_TPC__STOPPING) {
        bool over = now >= runtime->stop_ns && now - runtime->stop_ns >= runtime->config.drain_ns;
        if (idle && !over) {
            bool pending = runtime->config.pending != NULL && runtime->config.pending(core, runtime->config.ctx);
            nodedb__store_release(&core->state, (uint32_t)(pending ? NODEDB_TPC__ACTIVE : NODEDB_TPC__QUIET));
            over = !pending && nodedb_tpc__quiescent(runtime);
        }
        if (!over) return false;
        nodedb__store_release(&runtime->phase, (uint32_t)NODEDB_TPC__DRAINED);
        nodedb_tpc__wake_all(runtime);
    }
    nodedb_tpc__end_core(core);
    return true;
}

/* Turns of all manual cores until they have ended. drain_ns counts by the real clock as well, because a virtual one may
 * stand still. */
static void nodedb_tpc__join_manual(nodedb_tpc *runtime) {
    uint64_t begin = nodedb_now_ns(NULL);
    for (uint32_t left = runtime->core_count; left > 0;) {
        bool worked = false;
        left = 0;
        for (uint32_t i = 0; i < runtime->core_count; i++) {
            nodedb_status status = nodedb_tpc_turn(runtime->cores[i], 0);
            worked = worked || status == NODEDB_OK;
            left += status != NODEDB_ERR_CANCELLED;
        }
        if (left > 0 && nodedb_now_ns(NULL) - begin >= runtime->config.drain_ns)
            nodedb__store_release(&runtime->phase, (uint32_t)NODEDB_TPC__DRAINED);
        if (left > 0 && !worked) (void)poll(NULL, 0, 1);
    }
    nodedb_tpc__signal_stack_reset(runtime->cores[0]);
}

NODEDB_TPC_API nodedb_status nodedb_tpc_join(nodedb_tpc *runtime, nodedb_error *err) {
    if (runtime == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "a runtime must be given");
    if (nodedb_tpc__current != NULL && nodedb_tpc__current->runtime == runtime)
        return nodedb_fail(err, NODEDB_ERR_STATE, 0, "core %u cannot wait for its own end",
                           (unsigned)nodedb_tpc__current->index);
    if (runtime->joined) return NODEDB_OK;
    if (runtime->manual) {
        if (!nodedb_tpc__on_own_thread(runtime->cores[0]) || !nodedb_tpc_stopping(runtime))
            return nodedb_fail(err, NODEDB_ERR_STATE, 0,
                               "manual cores must be stopped first, and joined on their own thread");
        nodedb_tpc__join_manual(runtime);
    } else
        for (uint32_t i = 0; i < runtime->core_count; i++) (void)pthread_join(runtime->cores[i]->thread, NULL);
    runtime->joined = true;
    return NODEDB_OK;
}

NODEDB_TPC_API void nodedb_tpc_destroy(nodedb_tpc *runtime) {
    if (runtime == NULL) return;
    nodedb_tpc_stop(runtime);
    if (nodedb_tpc_join(runtime, NULL) == NODEDB_OK) nodedb_tpc__free(runtime);
}

/* ---- what a core is ---------------------------------------------------------------------------------------------- */

NODEDB_TPC_API uint32_t nodedb_tpc_core_count(const nodedb_tpc *runtime) {
    return runtime == NULL ? 0 : runtime->core_count;
}
NODEDB_TPC_API nodedb_tpc_core *nodedb_tpc_core_at(nodedb_tpc *runtime, uint32_t index) {
    return runtime == NULL || index >= runtime->core_count ? NULL : runtime->cores[index];
}
NODEDB_TPC_API nodedb_tpc_core *nodedb_tpc_self(void) { return nodedb_tpc__current; }
NODEDB_TPC_API uint32_t nodedb_tpc_core_index(const nodedb_tpc_core *core) {
    return core == NULL ? UINT32_MAX : core->index;
}
NODEDB_TPC_API int nodedb_tpc_core_cpu(const nodedb_tpc_core *core) { return core == NULL ? -1 : core->cpu; }
NODEDB_TPC_API nodedb_tpc *nodedb_tpc_core_runtime(const nodedb_tpc_core *core) {
    return core == NULL ? NULL : core->runtime;
}
NODEDB_TPC_API int nodedb_tpc_core_fd(const nodedb_tpc_core *core) { return core == NULL ? -1 : core->notifier.fd; }
NODEDB_TPC_API void *nodedb_tpc_core_data(const nodedb_tpc_core *core) { return core == NULL ? NULL : core->data; }
NODEDB_TPC_API void nodedb_tpc_core_set_data(nodedb_tpc_core *core, void *data) {
    if (core != NULL) core->data = data;
}

/* =====================================================================================================================
 * STATISTICS: what the cores have counted
 * ================================================================================================================== */

NODEDB_TPC_API nodedb_status nodedb_tpc_get_stats(const nodedb_tpc *runtime, uint32_t index, nodedb_tpc_stats *stats) {
    const nodedb_tpc_core *core;
    const uint64_t *from;
    uint64_t *to;
    if (stats == NULL || runtime == NULL || index >= runtime->core_count) return NODEDB_ERR_INVALID;
    memset(stats, 0, sizeof *stats);
    core = runtime->cores[index];
    from = (const uint64_t *)(const void *)&core->stats; /* all fields before `degraded` are counters of one type */
    to = (uint64_t *)(void *)stats;
    for (size_t i = 0; i < offsetof(nodedb_tpc_stats, degraded) / sizeof *to; i++)
        to[i] = nodedb__load_relaxed(&from[i]);
    stats->degraded = nodedb_tpc__core_degraded(core);
    stats->posted = nodedb__load_relaxed(&core->inbox.posted);
    stats->wakes += nodedb__load_relaxed(&core->inbox.wakes);
    stats->wakes_avoided += nodedb__load_relaxed(&core->inbox.wakes_avoided);
    for (uint32_t i = 0; i <= runtime->core_count; i++) {
        nodedb_tpc_ring_stats ring;
        nodedb_tpc_ring_get_stats(nodedb_tpc__ring_to(core, i), &ring);
        if (ring.high_water > stats->ring_high_water) stats->ring_high_water = ring.high_water;
    }
    return NODEDB_OK;
}

NODEDB_TPC_API uint64_t nodedb_tpc_latency(const nodedb_tpc *runtime, uint32_t core, uint32_t per_mille) {
    uint64_t counts[NODEDB_TPC__LATENCIES], all = 0, wanted, seen = 0;
    uint32_t place;
    if (runtime == NULL || core >= runtime->core_count || per_mille == 0 || per_mille > 1000) return 0;
    for (place = 0; place < NODEDB_TPC__LATENCIES; place++)
        all += counts[place] = nodedb__load_relaxed(&runtime->cores[core]->latencies[place]);
    if (all == 0) return 0;
    wanted = all / 1000 * per_mille + (all % 1000 * per_mille + 999) / 1000; /* rounded up */
    for (place = 0; place < NODEDB_TPC__LATENCIES - 1; place++)
        if ((seen += counts[place]) >= wanted) break;
    return nodedb_tpc__latency_most(place);
}

/* =====================================================================================================================
 * QUIESCENCE: gates
 *
 * A gate is one word: the scans inside, times two, plus 1 when it is shut. So one compare-and-swap both checks that it
 * is open and enters, and the scan that takes the word from 3 to 1 knows that it was the last:
 *
 *     0 -> 2 -> 4 ...   enter          5 -> 3 -> 1   leave, shut: the last one calls `drained`
 *     4 -> 5            shut
 * ================================================================================================================== */

NODEDB_TPC_API bool nodedb_tpc_gate_enter(nodedb_tpc_gate *gate) {
    uint64_t state = gate == NULL ? 1 : nodedb__load_relaxed(&gate->state);
    do
        if ((state & 1) != 0) return false;
    while (!nodedb__cas(&gate->state, &state, state + 2));
    return true;
}

/* One scan less. */
static void nodedb_tpc__gate_out(nodedb_tpc_gate *gate) {
    uint64_t state = nodedb__load_acquire(&gate->state);
    void (*drained)(void *ctx);
    void *ctx;
    do { /* 3: shut, and only we are inside. Read what to call now: after the swap the gate may be gone */
        assert(state >= 2);
        drained = NULL, ctx = NULL;
        if (state == 3) drained = gate->drained, ctx = gate->ctx;
    } while (!nodedb__cas(&gate->state, &state, state - 2));
    if (drained != NULL) drained(ctx);
}

/* The registration goes before the scan does: a fault in `drained`, or later in the task, must not leave a second
 * time. */
NODEDB_TPC_API void nodedb_tpc_gate_leave(nodedb_tpc_gate *gate) {
    if (gate == NULL) return;
    if (nodedb_tpc__current != NULL) nodedb_tpc__take_back(nodedb_tpc__current, nodedb_tpc_gate_undo, gate);
    nodedb_tpc__gate_out(gate);
}

/* The guard has taken this registration off its list. Another one of the same gate belongs to another scan. */
NODEDB_TPC_API void nodedb_tpc_gate_undo(nodedb_tpc_core *core, void *gate) {
    (void)core;
    if (gate != NULL) nodedb_tpc__gate_out((nodedb_tpc_gate *)gate);
}

/* The closer enters first, so that no scan finds the gate drained before the callback is written. */
NODEDB_TPC_API nodedb_status nodedb_tpc_gate_shut(nodedb_tpc_gate *gate, void (*drained)(void *ctx), void *ctx) {
    uint64_t state;
    if (gate == NULL) return NODEDB_ERR_INVALID;
    if (!nodedb_tpc_gate_enter(gate)) return NODEDB_ERR_STATE;
    state = nodedb__load_relaxed(&gate->state);
    do {
        if ((state & 1) != 0) { /* another closer was faster */
            nodedb_tpc__gate_out(gate);
            return NODEDB_ERR_STATE;
        }
    } while (!nodedb__cas(&gate->state, &state, state | 1));
    gate->drained = drained, gate->ctx = ctx; /* our own leave publishes them, and the last leave comes after it */
    nodedb_tpc__gate_out(gate);
    return NODEDB_OK;
}

NODEDB_TPC_API bool nodedb_tpc_gate_drained(const nodedb_tpc_gate *gate) {
    return gate != NULL && nodedb__load_acquire(&gate->state) == 1;
}

/* =====================================================================================================================
 * QUARANTINE: the list of damaged parts
 * ================================================================================================================== */

/* Under the lock: where a part stands, or quarantine_count. */
static uint32_t nodedb_tpc__find_part(const nodedb_tpc *runtime, const char *part) {
    uint32_t place = 0;
    while (place < runtime->quarantine_count && strcmp(runtime->quarantine[place].part, part) != 0) place++;
    return place;
}

static bool nodedb_tpc__is_part(const char *part) {
    return part != NULL && part[0] != 0 && strlen(part) < NODEDB_TPC_MAX_PART_BYTES;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_quarantine(nodedb_tpc *runtime, const char *part, const char *reason) {
    nodedb_status status = NODEDB_OK;
    if (runtime == NULL || !nodedb_tpc__is_part(part)) return NODEDB_ERR_INVALID;
    (void)pthread_mutex_lock(&runtime->quarantine_lock);
    if (nodedb_tpc__find_part(runtime, part) < runtime->quarantine_count) status = NODEDB_ERR_EXISTS;
    else if (runtime->quarantine_count == NODEDB_TPC_MAX_QUARANTINED) status = NODEDB_ERR_LIMIT;
    else {
        nodedb_tpc_quarantined *q = &runtime->quarantine[runtime->quarantine_count];
        memset(q, 0, sizeof *q);
        (void)snprintf(q->part, sizeof q->part, "%s", part);
        (void)snprintf(q->reason, sizeof q->reason, "%s", reason == NULL ? "" : reason);
        q->since_ns = nodedb_tpc__now(runtime);
        nodedb__store_release(&runtime->quarantine_count, runtime->quarantine_count + 1);
    }
    (void)pthread_mutex_unlock(&runtime->quarantine_lock);
    if (status == NODEDB_OK)
        nodedb_say(&runtime->config.logger, NODEDB_LOG_ERROR, "%s is in quarantine: %.*s", part,
                   NODEDB_TPC_MAX_REASON_BYTES - 1, reason == NULL ? "no reason was given" : reason);
    return status;
}

NODEDB_TPC_API bool nodedb_tpc_is_quarantined(const nodedb_tpc *runtime, const char *part,
                                              nodedb_tpc_quarantined *what) {
    nodedb_tpc *shared = (nodedb_tpc *)(uintptr_t)runtime; /* for the lock */
    uint32_t place;
    bool found;
    if (runtime == NULL || !nodedb_tpc__is_part(part) || nodedb__load_acquire(&runtime->quarantine_count) == 0)
        return false;
    (void)pthread_mutex_lock(&shared->quarantine_lock);
    place = nodedb_tpc__find_part(runtime, part), found = place < runtime->quarantine_count;
    if (found && what != NULL) *what = runtime->quarantine[place];
    (void)pthread_mutex_unlock(&shared->quarantine_lock);
    return found;
}

NODEDB_TPC_API nodedb_status nodedb_tpc_release_part(nodedb_tpc *runtime, const char *part) {
    uint32_t place;
    bool found;
    if (runtime == NULL || !nodedb_tpc__is_part(part)) return NODEDB_ERR_INVALID;
    (void)pthread_mutex_lock(&runtime->quarantine_lock);
    place = nodedb_tpc__find_part(runtime, part), found = place < runtime->quarantine_count;
    if (found) {
        memmove(&runtime->quarantine[place], &runtime->quarantine[place + 1],
                (runtime->quarantine_count - place - 1) * sizeof runtime->quarantine[0]);
        nodedb__store_release(&runtime->quarantine_count, runtime->quarantine_count - 1);
    }
    (void)pthread_mutex_unlock(&runtime->quarantine_lock);
    if (!found) return NODEDB_ERR_NOT_FOUND;
    nodedb_say(&runtime->config.logger, NODEDB_LOG_INFO, "%s has left quarantine", part);
    return NODEDB_OK;
}

NODEDB_TPC_API size_t nodedb_tpc_quarantine_list(const nodedb_tpc *runtime, nodedb_tpc_quarantined *list, size_t most) {
    nodedb_tpc *shared = (nodedb_tpc *)(uintptr_t)runtime;
    size_t count;
    if (runtime == NULL) return 0;
    (void)pthread_mutex_lock(&shared->quarantine_lock);
    count = runtime->quarantine_count;
    if (list != NULL) memcpy(list, runtime->quarantine, (count < most ? count : most) * sizeof *list);
    (void)pthread_mutex_unlock(&shared->quarantine_lock);
    return count;
}

/* =====================================================================================================================
 * REPORTS: statistics as text, for a person and for Prometheus
 * ================================================================================================================== */
#ifndef NODEDB_TPC_NO_REPORT

/* A text that may grow beyond its buffer: what does not fit is counted and dropped. */
typedef struct nodedb_tpc__text {
    char *buffer;
    size_t size, used;
} nodedb_tpc__text;

__attribute__((format(printf, 2, 3))) static void nodedb_tpc__print(nodedb_tpc__text *t, const char *format, ...) {
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(t->used < t->size ? t->buffer + t->used : NULL, t->used < t->size ? t->size - t->used : 0, format,
                  args);
    va_end(args);
    if (n > 0) t->used += (size_t)n;
}

/* What is counted, under the names of Prometheus: a field of nodedb_tpc_stats, all of one type. */
typedef enum nodedb_tpc__metric_kind {
    NODEDB_TPC__COUNTER,
    NODEDB_TPC__SECONDS, /* a counter of nanoseconds, printed in seconds */
    NODEDB_TPC__GAUGE
} nodedb_tpc__metric_kind;

typedef struct nodedb_tpc__metric {
    const char *name;
    size_t at;
    nodedb_tpc__metric_kind kind;
} nodedb_tpc__metric;

static const nodedb_tpc__metric nodedb_tpc__metrics[] = {
    {"turns_total", offsetof(nodedb_tpc_stats, turns), NODEDB_TPC__COUNTER},
    {"spins_total", offsetof(nodedb_tpc_stats, spins), NODEDB_TPC__COUNTER},
    {"parks_total", offsetof(nodedb_tpc_stats, parks), NODEDB_TPC__COUNTER},
    {"messages_total", offsetof(nodedb_tpc_stats, messages), NODEDB_TPC__COUNTER},
    {"batches_total", offsetof(nodedb_tpc_stats, batches), NODEDB_TPC__COUNTER},
    {"kept_total", offsetof(nodedb_tpc_stats, kept), NODEDB_TPC__COUNTER},
    {"sent_total", offsetof(nodedb_tpc_stats, sent), NODEDB_TPC__COUNTER},
    {"send_refused_total", offsetof(nodedb_tpc_stats, send_refused), NODEDB_TPC__COUNTER},
    {"posted_total", offsetof(nodedb_tpc_stats, posted), NODEDB_TPC__COUNTER},
    {"calls_total", offsetof(nodedb_tpc_stats, calls), NODEDB_TPC__COUNTER},
    {"wakes_total", offsetof(nodedb_tpc_stats, wakes), NODEDB_TPC__COUNTER},
    {"wakes_avoided_total", offsetof(nodedb_tpc_stats, wakes_avoided), NODEDB_TPC__COUNTER},
    {"tasks_total", offsetof(nodedb_tpc_stats, tasks), NODEDB_TPC__COUNTER},
    {"timers_total", offsetof(nodedb_tpc_stats, timers), NODEDB_TPC__COUNTER},
    {"faults_total", offsetof(nodedb_tpc_stats, faults), NODEDB_TPC__COUNTER},
    {"degradations_total", offsetof(nodedb_tpc_stats, degradations), NODEDB_TPC__COUNTER},
    {"refused_total", offsetof(nodedb_tpc_stats, refused), NODEDB_TPC__COUNTER},
    {"timeouts_total", offsetof(nodedb_tpc_stats, timeouts), NODEDB_TPC__COUNTER},
    {"heartbeats_total", offsetof(nodedb_tpc_stats, heartbeats), NODEDB_TPC__COUNTER},
    {"dropped_total", offsetof(nodedb_tpc_stats, dropped), NODEDB_TPC__COUNTER},
    {"checkpoints_total", offsetof(nodedb_tpc_stats, checkpoints), NODEDB_TPC__COUNTER},
    {"pressure_changes_total", offsetof(nodedb_tpc_stats, pressure_changes), NODEDB_TPC__COUNTER},
    {"busy_seconds_total", offsetof(nodedb_tpc_stats, busy_ns), NODEDB_TPC__SECONDS},
    {"idle_seconds_total", offsetof(nodedb_tpc_stats, idle_ns), NODEDB_TPC__SECONDS},
    {"maintenance_seconds_total", offsetof(nodedb_tpc_stats, maintenance_ns), NODEDB_TPC__SECONDS},
    {"tasks_high_water", offsetof(nodedb_tpc_stats, tasks_high_water), NODEDB_TPC__GAUGE},
    {"ring_high_water", offsetof(nodedb_tpc_stats, ring_high_water), NODEDB_TPC__GAUGE},
};

/* The bytes of the UTF-8 character at `p` (RFC 3629); 0 if there is none, because names are cut anywhere. */
static size_t nodedb_tpc__utf8(const unsigned char *p) {
    size_t bytes = 0;
    if (*p < 0x80) bytes = 1;
    else if (*p >= 0xC2 && *p < 0xE0) bytes = 2;
    else if (*p >= 0xE0 && *p < 0xF0) bytes = 3;
    else if (*p >= 0xF0 && *p < 0xF5) bytes = 4;
    for (size_t i = 1; i < bytes; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if (bytes > 2 && ((*p == 0xE0 && p[1] < 0xA0) || (*p == 0xED && p[1] >= 0xA0) || (*p == 0xF0 && p[1] < 0x90) ||
                      (*p == 0xF4 && p[1] >= 0x90)))
        return 0; /* longer than needed, half of a surrogate pair, beyond Unicode */
    return bytes;
}

/* A label's value: quotes, backslashes and line ends escaped; a question mark for what is not UTF-8. */
static void nodedb_tpc__print_label(nodedb_tpc__text *t, const char *value) {
    while (*value != 0) {
        size_t bytes = nodedb_tpc__utf8((const unsigned char *)value);
        if (*value == '\n') nodedb_tpc__print(t, "\\n");
        else if (*value == '"' || *value == '\\') nodedb_tpc__print(t, "\\%c", *value);
        else if (bytes == 0) nodedb_tpc__print(t, "?");
        else nodedb_tpc__print(t, "%.*s", (int)bytes, value);
        value += bytes == 0 ? 1 : bytes;
    }
}

static void nodedb_tpc__print_series(nodedb_tpc__text *t, const nodedb_tpc *runtime, const char *name, uint32_t core) {
    nodedb_tpc__print(t, "tpc_%s{runtime=\"", name);
    nodedb_tpc__print_label(t, runtime->name);
    nodedb_tpc__print(t, "\",core=\"%u\"", (unsigned)core);
}

/* By integers, because a locale may have another decimal point. */
static void nodedb_tpc__print_seconds(nodedb_tpc__text *t, uint64_t ns) {
    nodedb_tpc__print(t, "%llu.%09llu", (unsigned long long)(ns / 1000000000), (unsigned long long)(ns % 1000000000));
}

/* The latencies as a histogram. The bounds are 1 ns below powers of four, where places end: 1,024 ns to 17 s. */
#define NODEDB_TPC__BOUND_LOG2_MIN 10
#define NODEDB_TPC__BOUND_LOG2_MAX 34

static void nodedb_tpc__print_histogram(nodedb_tpc__text *t, const nodedb_tpc *runtime, uint32_t core,
                                        const nodedb_tpc_stats *s) {
    const nodedb_tpc__counter *latencies = runtime->cores[core]->latencies;
    uint64_t below = 0;
    uint32_t place = 0;
    for (uint32_t high = NODEDB_TPC__BOUND_LOG2_MIN; high <= NODEDB_TPC__BOUND_LOG2_MAX; high += 2) {
        for (; place < 4 * (high - 1); place++) below += nodedb__load_relaxed(&latencies[place]);
        nodedb_tpc__print_series(t, runtime, "task_seconds_bucket", core);
        nodedb_tpc__print(t, ",le=\"");
        nodedb_tpc__print_seconds(t, (UINT64_C(1) << high) - 1);
        nodedb_tpc__print(t, "\"} %llu\n", (unsigned long long)below);
    }
    for (; place < NODEDB_TPC__LATENCIES; place++) below += nodedb__load_relaxed(&latencies[place]);
    nodedb_tpc__print_series(t, runtime, "task_seconds_bucket", core);
    nodedb_tpc__print(t, ",le=\"+Inf\"} %llu\n", (unsigned long long)below);
    nodedb_tpc__print_series(t, runtime, "task_seconds_sum", core);
    nodedb_tpc__print(t, "} ");
    nodedb_tpc__print_seconds(t, s->latency_ns);
    nodedb_tpc__print(t, "\n");
    nodedb_tpc__print_series(t, runtime, "task_seconds_count", core);
    nodedb_tpc__print(t, "} %llu\n", (unsigned long long)below);
}

static void nodedb_tpc__print_flags(nodedb_tpc__text *t, const nodedb_tpc *runtime, bool stalled) {
    nodedb_tpc__print(t, "# TYPE tpc_%s gauge\n", stalled ? "stalled" : "degraded");
    for (uint32_t core = 0; core < runtime->core_count; core++) {
        bool is = stalled ? nodedb_tpc_stalled(runtime, core) : nodedb_tpc_is_degraded(runtime, core);
        nodedb_tpc__print_series(t, runtime, stalled ? "stalled" : "degraded", core);
        nodedb_tpc__print(t, "} %d\n", is ? 1 : 0);
    }
}

static void nodedb_tpc__report_prometheus(nodedb_tpc__text *t, const nodedb_tpc *runtime) {
    nodedb_tpc *shared = (nodedb_tpc *)(uintptr_t)runtime; /* for the lock */
    nodedb_tpc_stats s;
    for (size_t i = 0; i < sizeof nodedb_tpc__metrics / sizeof nodedb_tpc__metrics[0]; i++) {
        const nodedb_tpc__metric *m = &nodedb_tpc__metrics[i];
        nodedb_tpc__print(t, "# TYPE tpc_%s %s\n", m->name, m->kind == NODEDB_TPC__GAUGE ? "gauge" : "counter");
        for (uint32_t core = 0; core < runtime->core_count; core++) {
            uint64_t value;
            (void)nodedb_tpc_get_stats(runtime, core, &s);
            memcpy(&value, (const char *)&s + m->at, sizeof value);
            nodedb_tpc__print_series(t, runtime, m->name, core);
            nodedb_tpc__print(t, "} ");
            if (m->kind == NODEDB_TPC__SECONDS) nodedb_tpc__print_seconds(t, value);
            else nodedb_tpc__print(t, "%llu", (unsigned long long)value);
            nodedb_tpc__print(t, "\n");
        }
    }
    nodedb_tpc__print_flags(t, runtime, false);
    nodedb_tpc__print_flags(t, runtime, true);
    nodedb_tpc__print(t, "# TYPE tpc_task_seconds histogram\n");
    for (uint32_t core = 0; core < runtime->core_count; core++) {
        (void)nodedb_tpc_get_stats(runtime, core, &s);
        nodedb_tpc__print_histogram(t, runtime, core, &s);
    }
    nodedb_tpc__print(t, "# TYPE tpc_quarantined gauge\n");
    (void)pthread_mutex_lock(&shared->quarantine_lock);
    for (uint32_t i = 0; i < runtime->quarantine_count; i++) {
        nodedb_tpc__print(t, "tpc_quarantined{runtime=\"");
        nodedb_tpc__print_label(t, runtime->name);
        nodedb_tpc__print(t, "\",part=\"");
        nodedb_tpc__print_label(t, runtime->quarantine[i].part);
        nodedb_tpc__print(t, "\"} 1\n");
    }
    (void)pthread_mutex_unlock(&shared->quarantine_lock);
}

static void nodedb_tpc__report_text(nodedb_tpc__text *t, const nodedb_tpc *runtime) {
    nodedb_tpc *shared = (nodedb_tpc *)(uintptr_t)runtime; /* for the lock */
    nodedb_tpc_stats s;
#define nodedb_tpc__llu(n) ((unsigned long long)(n))
    for (uint32_t i = 0; i < runtime->core_count; i++) {
        (void)nodedb_tpc_get_stats(runtime, i, &s);
        nodedb_tpc__print(
            t,
            "core %u (cpu %d)%s%s: turns %llu, spins %llu, parks %llu, heartbeats %llu, checkpoints %llu, "
            "timers %llu\n"
            "  messages %llu in %llu batches, kept %llu, calls %llu, sent %llu, send refused %llu, posted %llu, "
            "dropped %llu, longest ring %llu, pressure changes %llu\n"
            "  wakes %llu, wakes avoided %llu; tasks %llu, longest queue %llu, took p50 %llu ns, p99 %llu ns, at most "
            "%llu ns\n"
            "  faults %llu, degradations %llu, refused %llu, timeouts %llu\n"
            "  busy %llu us, idle %llu us, maintenance %llu us\n",
            (unsigned)i, runtime->cores[i]->cpu, s.degraded ? ", degraded" : "",
            nodedb_tpc_stalled(runtime, i) ? ", stalled" : "", nodedb_tpc__llu(s.turns), nodedb_tpc__llu(s.spins),
            nodedb_tpc__llu(s.parks), nodedb_tpc__llu(s.heartbeats), nodedb_tpc__llu(s.checkpoints),
            nodedb_tpc__llu(s.timers),
            nodedb_tpc__llu(s.messages), nodedb_tpc__llu(s.batches), nodedb_tpc__llu(s.kept),
            nodedb_tpc__llu(s.calls), nodedb_tpc__llu(s.sent),
            nodedb_tpc__llu(s.send_refused), nodedb_tpc__llu(s.posted), nodedb_tpc__llu(s.dropped),
            nodedb_tpc__llu(s.ring_high_water), nodedb_tpc__llu(s.pressure_changes), nodedb_tpc__llu(s.wakes),
            nodedb_tpc__llu(s.wakes_avoided), nodedb_tpc__llu(s.tasks), nodedb_tpc__llu(s.tasks_high_water),
            nodedb_tpc__llu(nodedb_tpc_latency(runtime, i, 500)), nodedb_tpc__llu(nodedb_tpc_latency(runtime, i, 990)),
            nodedb_tpc__llu(nodedb_tpc_latency(runtime, i, 1000)), nodedb_tpc__llu(s.faults),
            nodedb_tpc__llu(s.degradations), nodedb_tpc__llu(s.refused), nodedb_tpc__llu(s.timeouts),
            nodedb_tpc__llu(s.busy_ns / 1000), nodedb_tpc__llu(s.idle_ns / 1000),
            nodedb_tpc__llu(s.maintenance_ns / 1000));
    }
    (void)pthread_mutex_lock(&shared->quarantine_lock);
    for (uint32_t i = 0; i < runtime->quarantine_count; i++)
        nodedb_tpc__print(t, "quarantined: %s, since %llu ns: %s\n", runtime->quarantine[i].part,
                          nodedb_tpc__llu(runtime->quarantine[i].since_ns), runtime->quarantine[i].reason);
    (void)pthread_mutex_unlock(&shared->quarantine_lock);
#undef nodedb_tpc__llu
}

NODEDB_TPC_API size_t nodedb_tpc_report(const nodedb_tpc *runtime, nodedb_tpc_format format, char *buffer,
                                        size_t size) {
    nodedb_tpc__text t;
    t.buffer = buffer, t.size = buffer == NULL ? 0 : size, t.used = 0;
    if (t.size > 0) buffer[0] = 0;
    if (runtime == NULL) return 0;
    if (format == NODEDB_TPC_PROMETHEUS) nodedb_tpc__report_prometheus(&t, runtime);
    else nodedb_tpc__report_text(&t, runtime);
    return t.used;
}
#endif /* NODEDB_TPC_NO_REPORT */

#ifdef __cplusplus
}
#endif
#endif /* NODEDB_TPC_IMPLEMENTATION */

/* BEGIN NODEDB LICENCE
 *
 * This software is available under two licences. Choose the one that you prefer.
 *
 * ALTERNATIVE A: MIT License
 *
 * Copyright (c) 2026 the NodeDB authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 * documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
 * rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
 * permit persons to whom the Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 * Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 * OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * ALTERNATIVE B: Public Domain (www.unlicense.org)
 *
 * This is free and unencumbered software released into the public domain.
 *
 * Anyone is free to copy, modify, publish, use, compile, sell, or distribute this software, either in source code form
 * or as a compiled binary, for any purpose, commercial or non-commercial, and by any means.
 *
 * In jurisdictions that recognize copyright laws, the author or authors of this software dedicate any and all
 * copyright interest in the software to the public domain. We make this dedication for the benefit of the public at
 * large and to the detriment of our heirs and successors. We intend this dedication to be an overt act of
 * relinquishment in perpetuity of all present and future rights to this software under copyright law.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING
 * FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * END NODEDB LICENCE */
