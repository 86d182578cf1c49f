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

# ---- the packages that a build needs --------------------------------------------------------------------------------

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

# fetch_packages PACKAGE...: by apt-get, with its words in build/apt.log.
fetch_packages() {
    mkdir -p build
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
        >build/apt.log 2>&1
}

# May this script install packages without asking?
may_install() { [ "$(id -u)" = 0 ] && [ -z "${NODEDB_NO_INSTALL:-}" ] && command -v apt-get >/dev/null 2>&1; }

# install [COMMAND:PACKAGE ...]: installs the packages, or prints how.
install() {
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    if may_install; then
        say "build.sh: installing from Debian:$missing"
        fetch_packages $missing ||
            { tail -5 build/apt.log >&2; die "apt-get could not install$missing (see build/apt.log)"; }
    else
        say "build.sh: missing packages. Install them with:"
        say "    sudo apt-get install$missing"
        say "or build without liburing and jemalloc: NODEDB_NO_LIBURING=1 NODEDB_NO_JEMALLOC=1 ./build.sh ..."
        exit 1
    fi
}

# Two optional packages of the tests: OpenSSL, for the log's encryption, and SIMDe, which emulates instructions that
# this CPU lacks. They are installed where that needs no question.
OPENSSL=/usr/include/openssl/evp.h
SIMDE=/usr/include/simde/x86/avx512.h
install_for_tests() {
    for header_and_package in "$OPENSSL:libssl-dev" "$SIMDE:libsimde-dev"; do
        package=${header_and_package##*:}
        [ ! -f "${header_and_package%%:*}" ] || continue
        may_install || continue
        say "build.sh: installing from Debian: $package"
        fetch_packages "$package" || say "build.sh: $package could not be installed (see build/apt.log)"
    done
    [ -f "$OPENSSL" ] || say "build.sh: no OpenSSL (libssl-dev): the log's encryption is tested with a stand-in"
    [ -f "$SIMDE" ] || say "build.sh: no SIMDe (libsimde-dev): AVX-512 is tested only where the CPU has it"
}

# ---- compiling -----------------------------------------------------------------------------------------------------

features() {
    FEATURES="" LIBS="-lpthread -lm"
    if [ -n "${NODEDB_NO_JEMALLOC:-}" ]; then FEATURES="-DNODEDB_NO_JEMALLOC"; else LIBS="-ljemalloc $LIBS"; fi
    if [ -n "${NODEDB_NO_LIBURING:-}" ]; then FEATURES="-DNODEDB_NO_LIBURING $FEATURES"; else LIBS="-luring $LIBS"; fi
}

# The sources that a program of this source includes: every header, and for the database and its tests every room.
included_by() {
    case $1 in
    *nodedb* | *fuzz_resp.c) find nodedb_*.h tests examples/nodedb -name '*.h' -o -path 'examples/nodedb/*.c' ;;
    *) find nodedb_*.h tests examples/nodedb -name '*.h' ;;
    esac
}

# compile OUTPUT SOURCE [FLAG ...]: unless OUTPUT is newer than all of its sources and the same command made it.
compile() {
    output=$1 source=$2
    shift 2
    command_line="$CC $COMMON_FLAGS $OPT $FEATURES $* ${CFLAGS:-} -o $output $source $LIBS"
    if [ -x "$output" ] && [ "$source" -ot "$output" ] && [ "$(cat "$output.cmd" 2>/dev/null)" = "$command_line" ] &&
        [ -z "$(find $(included_by "$source") -newer "$output")" ]; then
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

# find_peer BENCH NAME HEADER PACKAGE: compiles the peer that a benchmark measures beside ours,
# tests/bench/peer_NAME.cpp, where its header and a C++ compiler are installed, with the flags that its users take. When
# anything of it has changed the peer is compiled again, and the benchmark with it.
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
        find_peer vamana hnswlib hnswlib/hnswlib.h libhnswlib-dev || return 1
        own=$PEERS LIBS="$PEER_LIBS $LIBS" ;;
    tests/bench/bench_tpc.c)
        find_peer tpc spsc boost/lockfree/spsc_queue.hpp libboost-dev || return 1
        own=$PEERS LIBS="$PEER_LIBS $LIBS" ;;
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

# Two lanes take the tests one after the other, the longest first. The runtime's tests need both CPUs: they run last.
run_lane() { for name in $lane_names; do if mkdir "$OUT/lanes/$name" 2>/dev/null; then run_one_test "$name"; fi; done; }

# read_options ARGUMENT...: `options` is what the test programs get, `options_count` how many arguments that was.
read_options() {
    options="" options_count=0
    while [ $# -gt 0 ]; do
        case $1 in
        --seed) options="$options $1 ${2:-}"; shift; options_count=$((options_count + 1)) ;;
        --*) options="$options $1" ;;
        *) break ;;
        esac
        options_count=$((options_count + 1))
        [ $# = 0 ] || shift
    done
}

# run_tests [--options of the tests] NAME...: runs the test programs in $OUT and adds up what they say.
run_tests() {
    read_options "$@"
    shift "$options_count"
    test_arguments=$options lane_names="" alone=""
    for name in vamana_hard nodedb_clients vamana_codes nodedb_machine vamana_threads nodedb wal vamana "$@"; do
        case " $* " in *" $name "*) ;; *) continue ;; esac
        case "$name: $lane_names $alone " in
        tpc*) case " $alone " in *" $name "*) ;; *) alone="$alone $name" ;; esac ;;
        *" $name "*) ;;
        *) lane_names="$lane_names $name" ;;
        esac
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
    read_options "$@"
    shift "$options_count"
    for n in "$@"; do [ -f "tests/test_$n.c" ] || die "test NAME: one of $(names_in tests/test_)"; done
    if [ $# = 0 ]; then build; else build examples/*.c $DATABASE $(for n in "$@"; do echo "tests/test_$n.c"; done); fi
    run_tests $options ${*:-$(all_tests)}
    totals
}

# ---- the other verbs -----------------------------------------------------------------------------------------------

# names_in PREFIX: the names between PREFIX and .c, in one line.
names_in() { ls "$1"*.c | sed "s|^$1||; s|\.c$||" | tr '\n' ' '; }

verb_bench() {
    [ $# -ge 1 ] || die "bench NAME [ARGUMENTS]: one of $(names_in tests/bench/bench_)"
    install
    name=$1
    shift
    [ -f "tests/bench/bench_$name.c" ] || die "there is no benchmark $name"
    build "tests/bench/bench_$name.c" examples/nodedb/nodedb.c >&2
    "$OUT/bench_$name" "$@"
}

# sync: copies the blocks that headers share from nodedb_wal.h, their master, to the headers that have them.
verb_sync() {
    for h in $HEADERS; do
        [ "$h" != nodedb_wal.h ] && [ -f "$h" ] || continue
        awk '# the words of each block, from the master; then the header with them in the place of its own
            function name_of(line) {
                sub(/.*(BEGIN|END) NODEDB /, "", line)
                sub(/( BLOCK)?[:. =*].*$/, "", line)
                return line
            }
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
  check [PART]            all, or one of: compilers, asan, tsan, bare (no liburing, no jemalloc), clang, fuzz, onecpu,
                          rooms, amalgamate, vendor (each way that a project may take the headers in)
  fuzz NAME [SECONDS]     a libFuzzer target (clang)
  cross ARCH [NAME..]     build for arm, aarch64, s390x, riscv64 or i686 and run the headers' tests under qemu
  amalgamate [HEADER..]   build/amalgam/nodedb.c and nodedb.h: the whole database, or these headers (`wal vamana`)
  install [PREFIX]        headers, pkg-config files and a CMake package below PREFIX (/usr/local); DESTDIR counts
  size [NAME..]           what each header, all five and the database add to a stripped program
  ports [URL [REPO]]      a release's archive and its port files for vcpkg, Conan, xmake, clib and Meson: build/ports
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
check | fuzz | cross) . tests/check.sh; "verb_$verb" "$@" ;;
amalgamate | install | size | ports) . packaging/package.sh; "verb_$verb" "$@" ;;
sync) verb_sync ;;
clean) rm -rf build ;;
help | -h | --help) verb_help ;;
*) verb_help >&2; exit 2 ;;
esac
