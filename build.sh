#!/bin/sh
# The only build entry. `./build.sh help` lists the verbs. Plain POSIX sh; all output goes to build/.
#
# Environment: CC (gcc), CFLAGS (added last), NODEDB_NO_LIBURING=1, NODEDB_NO_JEMALLOC=1 (build without them),
# NODEDB_NO_INSTALL=1 (never call apt-get).
set -eu
cd "$(dirname "$0")"

HEADERS="nodedb_wal.h nodedb_mem.h nodedb_tpc.h nodedb_vamana.h nodedb_prefetch.h"
CC=${CC:-gcc}
OUT=build                                  # `check` builds its variants in folders below it
WARN="-Wall -Wextra -pedantic -Werror"
STB_DIR=/usr/include/stb
DATABASE="examples/nodedb/nodedb.c examples/nodedb/demo.c" # the other files there are rooms that nodedb.c includes
COMMON_FLAGS="-std=c99 -g $WARN -I. -Itests -isystem $STB_DIR"
OPT="-O2"

say() { printf '%s\n' "$*" >&2; }
die() { say "build.sh: $*"; exit 1; }

# ---- what is needed, and how it gets here --------------------------------------------------------------------------

# The Debian packages that are missing for the build that was asked for.
missing_packages() {
    missing=""
    command -v "$CC" >/dev/null 2>&1 || missing="$missing gcc"
    [ -f /usr/include/stdio.h ] || missing="$missing libc6-dev"
    [ -n "${NODEDB_NO_LIBURING:-}" ] || [ -f /usr/include/liburing.h ] || missing="$missing liburing-dev"
    [ -n "${NODEDB_NO_JEMALLOC:-}" ] || [ -f /usr/include/jemalloc/jemalloc.h ] || missing="$missing libjemalloc-dev"
    [ -f "$STB_DIR/stb_ds.h" ] || missing="$missing libstb-dev"
    for command_and_package in "$@"; do
        command -v "${command_and_package%%:*}" >/dev/null 2>&1 || missing="$missing ${command_and_package##*:}"
    done
    echo "$missing"
}

# install [COMMAND:PACKAGE ...]: brings the packages, or says how.
install() {
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && [ -z "${NODEDB_NO_INSTALL:-}" ] && command -v apt-get >/dev/null 2>&1; then
        say "build.sh: installing from Debian:$missing"
        mkdir -p build
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } \
            >build/apt.log 2>&1 || { tail -5 build/apt.log >&2; die "apt-get could not install$missing (see build/apt.log)"; }
    else
        say "build.sh: missing packages. Install them with:"
        say "    sudo apt-get install$missing"
        say "or build without liburing and jemalloc: NODEDB_NO_LIBURING=1 NODEDB_NO_JEMALLOC=1 ./build.sh ..."
        exit 1
    fi
}

# What a test is better with, and can do without: OpenSSL, for the log's encryption; SIMDe, to emulate the instructions
# that this CPU has not got. Brought where that needs no asking.
OPENSSL=/usr/include/openssl/evp.h
SIMDE=/usr/include/simde/x86/avx512.h
install_for_tests() {
    for header_and_package in "$OPENSSL:libssl-dev" "$SIMDE:libsimde-dev"; do
        package=${header_and_package##*:}
        [ ! -f "${header_and_package%%:*}" ] || continue
        [ "$(id -u)" = 0 ] && [ -z "${NODEDB_NO_INSTALL:-}" ] && command -v apt-get >/dev/null 2>&1 || continue
        say "build.sh: installing from Debian: $package"
        mkdir -p build
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package"; } \
            >build/apt.log 2>&1 || say "build.sh: $package could not be installed (see build/apt.log)"
    done
    [ -f "$OPENSSL" ] || say "build.sh: no OpenSSL (libssl-dev): the log's encryption is tested with a stand-in"
    [ -f "$SIMDE" ] || say "build.sh: no SIMDe (libsimde-dev): AVX-512 is tested only where the CPU has it"
}

# ---- compiling -----------------------------------------------------------------------------------------------------

features() {
    FEATURES=""; LIBS=""
    if [ -n "${NODEDB_NO_LIBURING:-}" ]; then FEATURES="$FEATURES -DNODEDB_NO_LIBURING"; else LIBS="$LIBS -luring"; fi
    if [ -n "${NODEDB_NO_JEMALLOC:-}" ]; then FEATURES="$FEATURES -DNODEDB_NO_JEMALLOC"; else LIBS="$LIBS -ljemalloc"; fi
    LIBS="$LIBS -lpthread -lm"
}

# compile OUTPUT SOURCE [FLAG ...]: unless OUTPUT is newer than all sources and was made by the same command.
compile() {
    output=$1 source=$2
    shift 2
    command_line="$CC $COMMON_FLAGS $OPT $FEATURES $* ${CFLAGS:-} -o $output $source $LIBS"
    if [ -x "$output" ] && [ "$source" -ot "$output" ] && [ "$(cat "$output.cmd" 2>/dev/null)" = "$command_line" ] &&
        [ -z "$(find nodedb_*.h tests examples/nodedb -name '*.h' -newer "$output")" ] &&
        { case $source in *nodedb* | *fuzz_resp.c) false ;; *) true ;; esac || [ -z "$(find examples/nodedb -name '*.c' -newer "$output")" ]; }; then
        return 0
    fi
    rm -f "$output"
    $command_line || { say "build.sh: $source does not compile: $command_line"; return 1; }
    printf '%s' "$command_line" >"$output.cmd"
}

# in_pairs FUNCTION ITEM...: runs FUNCTION for each item, two at a time.
in_pairs() {
    function=$1 previous="" failed=0
    shift
    for item in "$@"; do
        "$function" "$item" & current=$!
        if [ -n "$previous" ]; then wait "$previous" || failed=1; fi
        previous=$current
    done
    if [ -n "$previous" ]; then wait "$previous" || failed=1; fi
    return $failed
}

# The program that a source makes: tests/test_wal.c -> test_wal, examples/wal.c -> example_wal, the database -> nodedb.
program_of() {
    case $1 in
    examples/nodedb/nodedb.c) echo nodedb ;;
    examples/nodedb/demo.c) echo nodedb_demo ;;
    examples/*.c) echo "example_$(basename "$1" .c)" ;;
    *) basename "$1" .c ;;
    esac
}

# The engines that bench_wal measures beside ours, where they are installed; no other program links them.
find_peers() {
    PEERS="" PEER_LIBS=""
    for peer in rocksdb/c.h:rocksdb:ROCKSDB sqlite3.h:sqlite3:SQLITE lmdb.h:lmdb:LMDB; do
        [ -f "/usr/include/${peer%%:*}" ] || continue
        library=${peer#*:}
        PEERS="$PEERS -DBENCH_${peer##*:}" PEER_LIBS="$PEER_LIBS -l${library%:*}"
    done
}

# find_peer BENCH NAME HEADER PACKAGE: what a benchmark measures beside ours, tests/bench/peer_NAME.cpp, where its header
# and a C++ compiler are; with the flags that its users take. Made anew, and the benchmark with it, when anything of it
# has changed.
find_peer() {
    PEERS="" PEER_LIBS="" object=$OUT/peer_$2.o cxx=${CXX:-g++}
    if [ ! -f "/usr/include/$3" ] || ! command -v "$cxx" >/dev/null 2>&1; then
        say "build.sh: bench $1 is built without $2 (Debian: $4 g++)"
        return 0
    fi
    PEERS=-DBENCH_$(echo "$2" | tr '[:lower:]' '[:upper:]') PEER_LIBS="$object -lstdc++"
    command_line="$cxx -std=c++11 -O3 -march=native $WARN $PEERS -c -o $object tests/bench/peer_$2.cpp"
    if [ -f "$object" ] && [ "$(cat "$object.cmd" 2>/dev/null)" = "$command_line" ] &&
        [ -z "$(find "tests/bench/peer_$2.cpp" "tests/bench/peer_$2.h" "/usr/include/$3" -newer "$object")" ]; then
        return 0
    fi
    rm -f "$object" "$OUT/bench_$1"
    $command_line || { say "build.sh: $2 does not compile: $command_line"; return 1; }
    printf '%s' "$command_line" >"$object.cmd"
}

compile_program() {
    own=""
    # stb_ds hashes with shifts into the sign bit; its code is compiled within the database
    case $1:$OPT in examples/nodedb/nodedb.c:*undefined*) own=-fno-sanitize=shift-base ;; esac
    case $1 in # in_pairs runs us in a shell of our own, so LIBS is ours too
    tests/bench/bench_wal.c) find_peers; own=$PEERS LIBS="$PEER_LIBS $LIBS" ;;
    tests/bench/bench_vamana.c)
        find_peer vamana hnswlib hnswlib/hnswlib.h libhnswlib-dev || return 1; own=$PEERS LIBS="$PEER_LIBS $LIBS" ;;
    tests/bench/bench_tpc.c)
        find_peer tpc spsc boost/lockfree/spsc_queue.hpp libboost-dev || return 1; own=$PEERS LIBS="$PEER_LIBS $LIBS" ;;
    tests/test_wal_cipher.c) # a RUNNER: for another machine, for which there is no OpenSSL
        if [ -f "$OPENSSL" ] && [ -z "${RUNNER:-}" ]; then own=-DHAVE_OPENSSL LIBS="-lcrypto $LIBS"; fi ;;
    tests/test_vamana_emulated.c) # how 64 bytes are passed is between it and itself; and it includes this source
        own=-Wno-psabi
        [ tests/test_vamana_kernels.c -ot "$OUT/test_vamana_emulated" ] || rm -f "$OUT/test_vamana_emulated" ;;
    esac
    compile "$OUT/$(program_of "$1")" "$1" $own
}

build() { # build [GLOB...]: the programs of these sources, all by default
    features
    mkdir -p "$OUT"
    sources=""
    for s in ${*:-examples/*.c $DATABASE tests/test_*.c tests/bench/bench_*.c}; do
        [ -f "$s" ] && sources="$sources $s"
    done
    in_pairs compile_program $sources || die "the build failed"
}

# ---- tests ---------------------------------------------------------------------------------------------------------

PASSED=0 FAILED=0
ok() { PASSED=$((PASSED + 1)); say "ok   $*"; }
fail() { FAILED=$((FAILED + 1)); say "FAIL $*"; }
totals() { echo "$PASSED passed, $FAILED failed"; [ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]; }

# run_one_test NAME: its log, and the status at its end, in $OUT. only_NAME: which of its tests, if not all.
run_one_test() {
    status=0
    eval "only=\${only_$1:-}"
    NODEDB_BUILD_DIR=$OUT ${RUNNER:-} "$OUT/test_$1" $test_arguments $only >"$OUT/test_$1.log" 2>&1 || status=$?
    echo "$status" >"$OUT/test_$1.status"
}

# Two lanes take the tests one after the other, the longest first; the runtime's, which wants both CPUs, comes last, alone.
run_lane() { for name in $lane_names; do if mkdir "$OUT/lanes/$name" 2>/dev/null; then run_one_test "$name"; fi; done; }

# run_tests [--arguments of the tests] NAME...: runs the test programs in $OUT and adds up what they say.
run_tests() {
    test_arguments="" lane_names="" alone=""
    while [ $# -gt 0 ]; do case $1 in --seed) test_arguments="$test_arguments $1 $2"; shift 2 ;; --*) test_arguments="$test_arguments $1"; shift ;; *) break ;; esac; done
    for name in vamana_hard nodedb_clients vamana_codes nodedb_machine vamana_threads nodedb wal vamana "$@"; do
        case " $* " in *" $name "*) ;; *) continue ;; esac
        case "$name: $lane_names $alone " in tpc:*) alone=tpc ;; *" $name "*) ;; *) lane_names="$lane_names $name" ;; esac
    done
    rm -rf "$OUT/lanes" && mkdir -p "$OUT/lanes"
    run_lane & lane=$!
    run_lane
    wait "$lane"
    for name in $alone; do run_one_test "$name"; done
    for name in "$@"; do
        log="$OUT/test_$name.log" status=$(cat "$OUT/test_$name.status")
        counts=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -1)
        if [ -z "$counts" ]; then
            fail "test_$name ended with status $status and no result"; tail -40 "$log" >&2
            continue
        fi
        set_passed=${counts%% *} set_failed=${counts#*, }; set_failed=${set_failed%% *}
        if [ "$status" != 0 ] && [ "$set_failed" = 0 ]; then set_failed=1; fi # a sanitizer's report at exit
        PASSED=$((PASSED + set_passed)) FAILED=$((FAILED + set_failed))
        say "$([ "$set_failed" = 0 ] && echo 'ok  ' || echo FAIL) $OUT/test_$name: $counts"
        [ "$set_failed" = 0 ] || { grep -v '^ok' "$log" | head -60 >&2; }
    done
}

all_tests() { for s in tests/test_*.c; do basename "$s" .c | sed 's/^test_//'; done; }

verb_test() {
    install
    install_for_tests
    options=""
    while [ $# -gt 0 ]; do case $1 in --seed) options="$options $1 $2"; shift 2 ;; --*) options="$options $1"; shift ;; *) break ;; esac; done
    if [ $# = 0 ]; then build; else build examples/*.c $DATABASE $(for n in "$@"; do echo "tests/test_$n.c"; done); fi
    run_tests $options ${*:-$(all_tests)}
    totals
}

# ---- check: compilers, analysers, sanitizers ------------------------------------------------------------------------

# one_header COMPILER "FLAGS" NAME TEXT: does this little program compile without a warning?
little() {
    compiler=$1 name=$3 flags=$2
    case $compiler in *++) extension=cpp; standard=-std=c++11 ;; *) extension=c; standard=-std=c99 ;; esac
    printf '%b' "$4" >"$OUT/little.$extension"
    if $compiler $standard $WARN -O1 -I. $flags -c -o "$OUT/little.o" "$OUT/little.$extension" >"$OUT/little.log" 2>&1; then
        ok "$compiler $standard: $name"
    else
        fail "$compiler $standard: $name"; head -20 "$OUT/little.log" >&2
    fi
}

macro_of() { echo "${1%.h}" | tr '[:lower:]' '[:upper:]'; }

check_compilers() {
    together="" statics=""
    for h in $HEADERS; do
        together="$together#define $(macro_of "$h")_IMPLEMENTATION\n#include \"$h\"\n"
        statics="$statics#define $(macro_of "$h")_STATIC\n#define $(macro_of "$h")_IMPLEMENTATION\n#include \"$h\"\n"
    done
    for compiler in gcc g++ clang clang++; do
        command -v $compiler >/dev/null 2>&1 || { fail "$compiler is missing"; continue; }
        for h in $HEADERS; do
            little $compiler "" "$h, declarations" "#include \"$h\"\n#include \"$h\"\nint nothing;\n"
            little $compiler "" "$h, implementation first" "#define $(macro_of "$h")_IMPLEMENTATION\n#include \"$h\"\n#include \"$h\"\n"
            little $compiler "" "$h, declarations first" "#include \"$h\"\n#define $(macro_of "$h")_IMPLEMENTATION\n#include \"$h\"\n"
            little $compiler "" "$h, exported" "#define $(macro_of "$h")_API __attribute__((visibility(\"default\"))) extern\n#define $(macro_of "$h")_IMPLEMENTATION\n#include \"$h\"\n"
            little $compiler "-DNODEDB_NO_LIBURING -DNODEDB_NO_JEMALLOC" "$h, without liburing and jemalloc" "#define $(macro_of "$h")_IMPLEMENTATION\n#include \"$h\"\n"
        done
        little $compiler "" "all five together" "$together"
        little $compiler "-O2 -DNDEBUG" "all five together, NDEBUG" "$together"
        little $compiler "-O2 -DNDEBUG -DNODEDB_NO_LIBURING -DNODEDB_NO_JEMALLOC" "all five together, NDEBUG, bare" "$together"
        for h in $HEADERS; do # private functions that nobody has written
            printf '#define %s_STATIC\n#include "%s"\n' "$(macro_of "$h")" "$h" >"$OUT/little.c"
            if $compiler -I. -c -o "$OUT/little.o" "$OUT/little.c" >/dev/null 2>&1; then fail "$compiler: $h takes STATIC alone"; else ok "$compiler: $h refuses STATIC alone"; fi
        done
        # STATIC twice in one program: two files with private copies of everything, and a main, linked together
        case $compiler in *++) extension=cpp; standard=-std=c++11 ;; *) extension=c; standard=-std=c99 ;; esac
        printf '%bint other(void);\nint main(void) { return other(); }\n' "$statics" >"$OUT/static_a.$extension"
        printf '%bint other(void);\nint other(void) { return 0; }\n' "$statics" >"$OUT/static_b.$extension"
        if $compiler $standard $WARN -O1 -I. -o "$OUT/static_twice" "$OUT/static_a.$extension" "$OUT/static_b.$extension" $LIBS >"$OUT/little.log" 2>&1 &&
            "$OUT/static_twice"; then ok "$compiler: STATIC twice in one program"; else fail "$compiler: STATIC twice in one program"; head -20 "$OUT/little.log" >&2; fi
    done
}

# variant FOLDER "FLAGS" "FEATURE=1 ..." TESTS...: the test suite built another way. Examples and the database come along.
variant() {
    folder=$1 flags=$2 settings=$3
    shift 3
    say "-- $folder: $flags $settings"
    (
        for setting in $settings; do export "${setting?}"; done
        OUT=build/$folder OPT="$flags" PASSED=0 FAILED=0
        mkdir -p "$OUT"
        features
        sources="$(ls examples/*.c) $DATABASE"
        for t in "$@"; do sources="$sources tests/test_$t.c"; done
        in_pairs compile_program $sources || exit 1
        run_tests "$@"
        echo "$PASSED $FAILED" >"$OUT/counts"
    ) || { fail "$folder does not build"; return 0; }
    read -r variant_passed variant_failed <"build/$folder/counts"
    PASSED=$((PASSED + variant_passed)) FAILED=$((FAILED + variant_failed))
}

# The first CPU that this shell may run on, of a list like 0-3,8.
first_cpu() { taskset -cp $$ | sed 's/.*: //; s/[-,].*//'; }

verb_check() {
    install clang:clang g++:g++ redis-cli:redis-tools
    ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer* >/dev/null 2>&1 || [ "$(id -u)" != 0 ] ||
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" >build/apt.log 2>&1 || true
    features
    mkdir -p "$OUT"
    only_vamana_hard="every_live sizes small" # what it measures of recall is the same however it is built
    case ${1:-all} in all | compilers) check_compilers ;; esac
    case ${1:-all} in all | asan)
        ASAN_OPTIONS=detect_stack_use_after_return=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
        export ASAN_OPTIONS UBSAN_OPTIONS
        variant asan "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer" "NODEDB_NO_JEMALLOC=1" $(all_tests) ;;
    esac
    case ${1:-all} in all | tsan)
        # liburing maps and unmaps rings by bare system calls: a reader's new ring at the address of one that another
        # thread has closed is the same memory to the sanitizer
        mkdir -p build/tsan
        printf 'race:nodedb_wal__ring_start\nrace:nodedb_wal__ring_finish\n' >build/tsan/suppressions
        TSAN_OPTIONS=suppressions=$PWD/build/tsan/suppressions
        export TSAN_OPTIONS
        # not those that have no threads and take long
        only_vamana_codes="whatever_the_threads an_index_of_4096" only_mem_overflow="view power_cut reopened"
        variant tsan "-O1 -fsanitize=thread" "NODEDB_NO_JEMALLOC=1" \
            $(all_tests | grep -v -e '^wal_types$' -e '^wal_cipher$' -e '^vamana_kernels$' -e '^vamana_emulated$' -e '^nodedb_rooms$' \
                -e '^nodedb_resp$' -e '^nodedb_clients$' -e '^nodedb_machine$') ;;
    esac
    case ${1:-all} in all | bare)
        only_vamana_codes="" only_mem_overflow=""
        # not those that use neither
        variant bare "-O2" "NODEDB_NO_LIBURING=1 NODEDB_NO_JEMALLOC=1" \
            $(all_tests | grep -v -e '^tpc$' -e '^common$' -e '^vamana_kernels$' -e '^vamana_emulated$' -e '^vamana_codes$' \
                -e '^vamana_hard$' -e '^nodedb_rooms$' -e '^nodedb_resp$' -e '^nodedb_clients$' -e '^nodedb_machine$') ;;
    esac
    # the headers; the database and the runtime mostly wait
    case ${1:-all} in all | clang) variant clang "-O2" "CC=clang" $(all_tests | grep -v -e '^nodedb$' -e '^nodedb_[cms]' -e '^tpc$') ;; esac
    case ${1:-all} in all | fuzz)
        for f in tests/fuzz/fuzz_*.c; do
            [ -f "$f" ] || continue
            n=$(basename "$f" .c); n=${n#fuzz_}
            if (verb_fuzz "$n" 10) >"$OUT/fuzz_$n.log" 2>&1; then ok "fuzz $n for 10 s"; else fail "fuzz $n"; tail -30 "$OUT/fuzz_$n.log" >&2; fi
        done ;;
    esac
    case ${1:-all} in all | onecpu) # rings, wake-ups and stops where two threads never run at the same time
        (OUT=build/onecpu && mkdir -p "$OUT" && features && compile_program tests/test_tpc.c) &&
            if taskset -c "$(first_cpu)" build/onecpu/test_tpc >build/onecpu/log 2>&1; then ok "tpc on a single CPU: $(tail -1 build/onecpu/log)"
            else fail "tpc on a single CPU"; grep -v '^ok' build/onecpu/log | head -40 >&2; fi ;;
    esac
    case ${1:-all} in all | rooms) check_rooms ;; esac
    case ${1:-all} in all | amalgamate)
        if (verb_amalgamate) >"$OUT/amalgamate.log" 2>&1; then ok "amalgamate"; else fail "amalgamate"; tail -20 "$OUT/amalgamate.log" >&2; fi ;;
    esac
    totals
}

# ---- the other verbs -----------------------------------------------------------------------------------------------

verb_bench() {
    [ $# -ge 1 ] || die "bench NAME [ARGUMENTS]: one of $(ls tests/bench/bench_*.c | sed 's/.*bench_//; s/\.c//' | tr '\n' ' ')"
    install
    name=$1
    shift
    [ -f "tests/bench/bench_$name.c" ] || die "there is no benchmark $name"
    build "tests/bench/bench_$name.c" examples/nodedb/nodedb.c >&2
    "$OUT/bench_$name" "$@"
}

verb_fuzz() {
    [ $# -ge 1 ] || die "fuzz NAME [SECONDS]: one of $(ls tests/fuzz/fuzz_*.c | sed 's/.*fuzz_//; s/\.c//' | tr '\n' ' ')"
    install clang:clang
    NODEDB_NO_JEMALLOC=1 NODEDB_NO_LIBURING=${NODEDB_NO_LIBURING:-}
    features
    mkdir -p "build/fuzz/$1"
    CC=clang OPT="-O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined"
    compile "build/fuzz_$1" "tests/fuzz/fuzz_$1.c"
    seeds=""
    [ ! -d "tests/fuzz/corpus_$1" ] || seeds="tests/fuzz/corpus_$1"
    if grep -q MAKE_SEEDS "tests/fuzz/fuzz_$1.c"; then # it writes its own, of the version that is read now
        seeds="build/fuzz/seeds_$1"
        rm -rf "$seeds" && mkdir -p "$seeds"
        OPT="-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"
        compile "build/seeds_$1" "tests/fuzz/fuzz_$1.c" -DMAKE_SEEDS
        "build/seeds_$1" "$seeds"
    fi
    "build/fuzz_$1" -max_total_time="${2:-60}" -timeout=20 -rss_limit_mb=4096 -artifact_prefix=build/fuzz/ "build/fuzz/$1" $seeds
}

# cross ARCH [NAME...]: the headers' tests, built for another machine and run (all, or these) under its emulator.
verb_cross() {
    case ${1:-} in
    arm) triplet=arm-linux-gnueabihf; debian=armhf; emulator=arm ;;
    aarch64 | arm64) triplet=aarch64-linux-gnu; debian=arm64; emulator=aarch64 ;;
    s390x) triplet=s390x-linux-gnu; debian=s390x; emulator=s390x ;;
    riscv64) triplet=riscv64-linux-gnu; debian=riscv64; emulator=riscv64 ;;
    i686 | i386) triplet=i686-linux-gnu; debian=i386; emulator=i386 ;;
    *) die "cross ARCH: arm, aarch64, s390x (big-endian), riscv64 or i686" ;;
    esac
    arch=$1
    shift
    NODEDB_NO_JEMALLOC=1 NODEDB_NO_LIBURING=1
    install "$triplet-gcc:gcc-$triplet libc6-dev-$debian-cross" "qemu-$emulator:qemu-user"
    CC=$triplet-gcc OUT=build/cross-$arch RUNNER="qemu-$emulator"
    CFLAGS="${CFLAGS:-} -static -DSLOW=1" # SLOW: less data, an emulator takes its time
    case $arch in arm) CFLAGS="$CFLAGS -Wno-psabi" ;; esac
    [ $# -gt 0 ] || set -- common wal wal_read wal_cipher wal_types mem tpc vamana vamana_kernels # not prefetch: the emulator keeps madvise from the kernel
    build examples/nodedb/nodedb.c $(for n in "$@"; do echo "tests/test_$n.c"; done)
    run_tests "$@"
    totals
}

# The rooms of the database: each opens alone in an editor, none is too long to read, and all use the public API only.
check_rooms() {
    rooms=$(ls examples/nodedb/*.c examples/nodedb/commands/*.c | grep -v -e /nodedb.c -e /demo.c)
    for room in $rooms; do
        if $CC $COMMON_FLAGS -fsyntax-only "$room" >"$OUT/little.log" 2>&1; then ok "$room alone"; else fail "$room alone"; head -20 "$OUT/little.log" >&2; fi
    done
    long=$(awk 'FNR == 1 { if (n > limit) print last ": " n " lines"; n = 0; last = FILENAME
                   limit = FILENAME ~ /nodedb\/nodedb.c|tiny.c/ ? 400 : 700 } { n++ }
                /^[a-zA-Z].*\) \{( \/\*.*)?$/ && !/;/ { begin = FNR } /^\}/ && begin { if (FNR - begin + 1 > 60) print FILENAME ":" begin ": a function of " FNR - begin + 1 " lines"; begin = 0 }
                END { if (n > limit) print last ": " n " lines" }' examples/tiny.c examples/nodedb/nodedb.c examples/nodedb/*.h $rooms)
    if [ -z "$long" ]; then ok "no room over 700 lines, no function over 60"; else fail "too long: $long"; fi
    private=$(grep -n 'nodedb__\|NODEDB_[A-Z]*__' examples/tiny.c examples/nodedb/*.[ch] examples/nodedb/commands/*.c || true)
    if [ -z "$private" ]; then ok "the database uses the public API only"; else fail "private names: $private"; fi
    # each function and file that the README of the database names in `code` exists
    lost=""
    for name in $(grep -o '`[a-z_/]*\(()\|\.[ch]\)`' examples/nodedb/README.md | tr -d '`()' | sort -u); do
        case $name in
        *.c | *.h) [ -f "examples/nodedb/$name" ] || [ -f "examples/$name" ] || [ -f "$name" ] || lost="$lost $name" ;;
        *) grep -q "^[a-z].*\b$name(" examples/nodedb/*.c examples/nodedb/commands/*.c nodedb_*.h || lost="$lost $name" ;;
        esac
    done
    if [ -z "$lost" ]; then ok "what the database's README names is there"; else fail "the database's README names what is not there:$lost"; fi
}

# amalgamate: the database and the five headers (and stb_ds) in one .c, and the proof that it compiles.
verb_amalgamate() {
    install
    features
    mkdir -p "$OUT"
    awk -v stb="$STB_DIR" '
        # where a file that `from` includes is: ours at the top, the rooms beside it or above
        function place(name, from) {
            if (name ~ /^nodedb_[a-z]+\.h$/) return name
            if (name == "stb_ds.h") return stb "/" name
            if (name == "../db.h") return "examples/nodedb/db.h"
            return "examples/nodedb/" name
        }
        function paste(file,    line, part) {
            if (file in pasted && file !~ /stb_ds/) return
            pasted[file] = 1
            while ((getline line < file) > 0) {
                if (line ~ /^#include "[a-z_.\/]+"/) {
                    split(line, part, "\"")
                    paste(place(part[2], file))
                } else print line
            }
            close(file)
        }
        BEGIN { paste("examples/nodedb/nodedb.c") }' >"$OUT/nodedb_amalgamated.c"
    mkdir -p "$OUT/elsewhere" # nothing of ours is in the way there
    $CC -std=c99 -O2 -w $FEATURES -o "$OUT/elsewhere/nodedb" "$OUT/nodedb_amalgamated.c" $LIBS
    say "$OUT/nodedb_amalgamated.c: $(wc -l <"$OUT/nodedb_amalgamated.c") lines. Compile it with:"
    say "    $CC -std=c99 -O2 -o nodedb nodedb_amalgamated.c$LIBS"
}

# sync: copies the blocks that headers share from nodedb_wal.h, their master, to the headers that have them.
verb_sync() {
    for h in $HEADERS; do
        [ "$h" != nodedb_wal.h ] && [ -f "$h" ] || continue
        awk '# the words of each block, from the master; then the header with them in the place of its own
            function name_of(line) { sub(/.*(BEGIN|END) NODEDB /, "", line); sub(/( BLOCK)?[:. =*].*$/, "", line); return line }
            /BEGIN NODEDB (BASE BLOCK|STORAGE BLOCK|LICENCE)/ {
                block = name_of($0)
                if (NR == FNR) words[block] = ""
                else printf "%s", words[block]
            }
            NR == FNR { if (block != "") words[block] = words[block] $0 "\n" }
            NR != FNR && block == "" { print }
            /END NODEDB (BASE BLOCK|STORAGE BLOCK|LICENCE)/ { block = "" }' nodedb_wal.h "$h" >"$h.new"
        if cmp -s "$h" "$h.new"; then rm "$h.new"; else mv "$h.new" "$h"; say "$h: shared blocks copied"; fi
    done
}

verb_run() {
    install
    build $DATABASE
    exec "$OUT/nodedb_demo" --server "$OUT/nodedb" --data tests/data "$@"
}

verb_help() {
    cat <<'END'
./build.sh VERB
  run                     build the database and watch its main job: ingest, search, kill, recover
  test [--long] [NAME..]  build and run the tests (all, or e.g. `wal vamana`)
  build                   build everything into build/
  bench NAME [ARGS]       build and run build/bench_NAME: wal mem tpc vamana prefetch nodedb
  check [PART]            compilers, asan, tsan, bare (no liburing, no jemalloc), clang, fuzz, onecpu, rooms, amalgamate; default: all
  fuzz NAME [SECONDS]     a libFuzzer target (clang)
  cross ARCH [NAME..]     build for arm, aarch64, s390x, riscv64 or i686 and run the headers' tests under qemu
  amalgamate              the whole database in one file, build/nodedb_amalgamated.c
  sync                    copy the blocks that headers share from nodedb_wal.h to the others
  clean                   remove build/
END
}

verb=${1:-help}
[ $# = 0 ] || shift
case $verb in
run) verb_run "$@" ;;
test) verb_test "$@" ;;
build) install; build ;;
bench) verb_bench "$@" ;;
check) verb_check "$@" ;;
fuzz) verb_fuzz "$@" ;;
cross) verb_cross "$@" ;;
amalgamate) verb_amalgamate ;;
sync) verb_sync ;;
clean) rm -rf build ;;
help | -h | --help) verb_help ;;
*) verb_help >&2; exit 2 ;;
esac
