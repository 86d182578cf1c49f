# What only the checks need: the verbs `check`, `fuzz` and `cross`. build.sh reads this file when one of them is asked
# for. It uses build.sh's functions and variables, and is no program of its own.
#
#   compilers       each header alone, all together, and twice in one program, with gcc, g++, clang and clang++
#   variants        the suite with sanitizers, without liburing and jemalloc, with clang
#   rooms           the database's files: each opens alone, none is too long, all use the public API
#   fuzzing         libFuzzer targets
#   other machines  the headers' tests under an emulator

# ---- compilers -----------------------------------------------------------------------------------------------------

# language_of COMPILER: sets the suffix and the standard that it takes.
language_of() {
    case $1 in *++) suffix=cpp standard=-std=c++11 ;; *) suffix=c standard=-std=c99 ;; esac
}

# little COMPILER "FLAGS" NAME TEXT: this little program compiles without a warning.
little() {
    compiler=$1 flags=$2 name=$3
    language_of "$compiler"
    printf '%b' "$4" >"$OUT/little.$suffix"
    if $compiler $standard $WARN -O1 -I. $flags -c -o "$OUT/little.o" "$OUT/little.$suffix" >"$OUT/little.log" 2>&1
    then ok "$compiler $standard: $name"
    else fail "$compiler $standard: $name"; head -20 "$OUT/little.log" >&2; fi
}

macro_of() { echo "${1%.h}" | tr '[:lower:]' '[:upper:]'; }

# one_header COMPILER HEADER: in each order that a user may choose.
one_header() {
    macro=$(macro_of "$2") include="#include \"$2\"\n"
    implementation="#define ${macro}_IMPLEMENTATION\n"
    exported="#define ${macro}_API __attribute__((visibility(\"default\"))) extern\n"
    little "$1" "" "$2, declarations" "$include${include}int nothing;\n"
    little "$1" "" "$2, implementation first" "$implementation$include$include"
    little "$1" "" "$2, declarations first" "$include$implementation$include"
    little "$1" "" "$2, exported" "$exported$implementation$include"
    little "$1" "$bare" "$2, without liburing and jemalloc" "$implementation$include"
    for part in $(grep -o '^#if.*NODEDB_[A-Z]*_NO_[A-Z]*' "$2" | grep -o 'NODEDB_[A-Z]*_NO_[A-Z]*$' | sort -u); do
        little "$1" "-D$part" "$2, $part" "$implementation$include"
    done
    # STATIC alone would declare private functions that nobody defines
    printf '#define %s_STATIC\n#include "%s"\n' "$macro" "$2" >"$OUT/little.c"
    if $1 -I. -c -o "$OUT/little.o" "$OUT/little.c" >/dev/null 2>&1
    then fail "$1: $2 takes STATIC alone"
    else ok "$1: $2 refuses STATIC alone"; fi
}

# static_twice COMPILER TEXT: two files with private copies of everything, and a main, linked together.
static_twice() {
    language_of "$1"
    printf '%bint other(void);\nint main(void) { return other(); }\n' "$2" >"$OUT/static_a.$suffix"
    printf '%bint other(void);\nint other(void) { return 0; }\n' "$2" >"$OUT/static_b.$suffix"
    if $1 $standard $WARN -O1 -I. -o "$OUT/static_twice" "$OUT/static_a.$suffix" "$OUT/static_b.$suffix" $LIBS \
        >"$OUT/little.log" 2>&1 && "$OUT/static_twice"
    then ok "$1: STATIC twice in one program"
    else fail "$1: STATIC twice in one program"; head -20 "$OUT/little.log" >&2; fi
}

check_compilers() {
    together="" statics="" bare="-DNODEDB_NO_LIBURING -DNODEDB_NO_JEMALLOC"
    for h in $HEADERS; do
        macro=$(macro_of "$h")
        together="$together#define ${macro}_IMPLEMENTATION\n#include \"$h\"\n"
        statics="$statics#define ${macro}_STATIC\n#define ${macro}_IMPLEMENTATION\n#include \"$h\"\n"
    done
    for compiler in gcc g++ clang clang++; do
        command -v "$compiler" >/dev/null 2>&1 || { fail "$compiler is missing"; continue; }
        for h in $HEADERS; do one_header "$compiler" "$h"; done
        little "$compiler" "" "all five together" "$together"
        little "$compiler" "-O2 -DNDEBUG" "all five together, NDEBUG" "$together"
        little "$compiler" "-O2 -DNDEBUG $bare" "all five together, NDEBUG, bare" "$together"
        static_twice "$compiler" "$statics"
    done
}

# ---- variants ------------------------------------------------------------------------------------------------------

# variant FOLDER "FLAGS" "FEATURE=1 ..." TESTS...: the test suite built another way, with the examples and the database.
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

# all_tests_but NAME...: a name may hold a pattern of the shell.
all_tests_but() {
    for t in $(all_tests); do
        keep=1
        for pattern in "$@"; do case $t in $pattern) keep=0 ;; esac; done
        [ $keep = 0 ] || echo "$t"
    done
}

# What a test measures of recall, or reads in the source, is the same however it is built.
only_vamana_hard="every_live sizes small"

check_asan() {
    ASAN_OPTIONS=detect_stack_use_after_return=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
    export ASAN_OPTIONS UBSAN_OPTIONS
    variant asan "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer" \
        "NODEDB_NO_JEMALLOC=1" $(all_tests_but manuals)
}

# Without the tests that have no threads and take long.
check_tsan() {
    # liburing maps and unmaps rings by bare system calls. A reader's new ring at the address of one that another thread
    # has closed is the same memory to the sanitizer.
    mkdir -p build/tsan
    printf 'race:nodedb_wal__ring_start\nrace:nodedb_wal__ring_finish\n' >build/tsan/suppressions
    TSAN_OPTIONS=suppressions=$PWD/build/tsan/suppressions
    export TSAN_OPTIONS
    only_vamana_codes="whatever_the_threads an_index_of_4096" only_mem_overflow="view power_cut reopened"
    only_vamana="whatever_the_number_of_threads searchers_of_several_threads"
    variant tsan "-O1 -fsanitize=thread" "NODEDB_NO_JEMALLOC=1" \
        $(all_tests_but manuals wal_types wal_cipher vamana_kernels vamana_emulated nodedb_rooms nodedb_resp \
            nodedb_clients nodedb_machine)
    only_vamana_codes="" only_mem_overflow="" only_vamana=""
}

# Without the tests that use neither liburing nor jemalloc.
check_bare() {
    variant bare "-O2" "NODEDB_NO_LIBURING=1 NODEDB_NO_JEMALLOC=1" \
        $(all_tests_but 'tpc*' common vamana_kernels vamana_emulated vamana_codes vamana_hard nodedb_rooms nodedb_resp \
            nodedb_clients nodedb_machine)
}

# The headers. The tests of the database and the runtime mostly wait.
check_clang() { variant clang "-O2" "CC=clang" $(all_tests_but manuals nodedb 'nodedb_[cms]*' 'tpc*'); }

# Rings, wake-ups and stops where two threads never run at the same time.
check_onecpu() {
    cpu=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//') # the first that this shell may run on, of a list like 0-3,8
    mkdir -p build/onecpu
    for n in tpc tpc_calls tpc_faults tpc_watch; do
        log=build/onecpu/$n.log
        if (OUT=build/onecpu && features && compile_program "tests/test_$n.c") &&
            taskset -c "$cpu" "build/onecpu/test_$n" >"$log" 2>&1
        then ok "$n on a single CPU: $(tail -1 "$log")"
        else fail "$n on a single CPU"; grep -v '^ok' "$log" | head -40 >&2; fi
    done
}

check_fuzz() {
    for f in tests/fuzz/fuzz_*.c; do
        n=$(basename "$f" .c)
        n=${n#fuzz_}
        if (verb_fuzz "$n" 10) >"$OUT/fuzz_$n.log" 2>&1
        then ok "fuzz $n for 10 s"
        else fail "fuzz $n"; tail -30 "$OUT/fuzz_$n.log" >&2; fi
    done
}

verb_check() {
    . packaging/package.sh
    . tests/vendor.sh
    install clang:clang g++:g++ redis-cli:redis-tools
    ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer* >/dev/null 2>&1 || ! may_install ||
        fetch_packages "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" || true
    features
    mkdir -p "$OUT"
    parts="compilers asan tsan bare clang fuzz onecpu rooms amalgamate vendor"
    case " $parts all " in *" ${1:-all} "*) ;; *) die "check PART: one of $parts" ;; esac
    for part in $parts; do case ${1:-all} in all | "$part") "check_$part" ;; esac; done
    totals
}

# ---- rooms of the database -----------------------------------------------------------------------------------------

# Prints the files and functions that are too long to read.
too_long() {
    awk 'function end_of_file() { if (lines > limit) print file ": " lines " lines" }
        FNR == 1 {
            end_of_file()
            lines = 0
            file = FILENAME
            limit = FILENAME ~ /nodedb\/nodedb.c|tiny.c/ ? 400 : 700
        }
        { lines++ }
        /^[a-zA-Z].*\) \{( \/\*.*)?$/ && !/;/ { begin = FNR }
        /^\}/ && begin {
            if (FNR - begin + 1 > 60) print FILENAME ":" begin ": a function of " FNR - begin + 1 " lines"
            begin = 0
        }
        END { end_of_file() }' "$@"
}

# Prints the functions and files that the database's README names in `code` and that do not exist.
lost_names() {
    grep -o '`[a-z_/]*\(()\|\.[ch]\)`' examples/nodedb/README.md | tr -d '`()' | sort -u | while read -r name; do
        case $name in
        *.c | *.h) [ -f "examples/nodedb/$name" ] || [ -f "examples/$name" ] || [ -f "$name" ] || echo "$name" ;;
        *) grep -q "^[a-z].*\b$name(" examples/nodedb/*.c examples/nodedb/commands/*.c nodedb_*.h || echo "$name" ;;
        esac
    done
}

# Each room opens alone in an editor, none is too long to read, and all use the public API only.
check_rooms() {
    rooms=$(ls examples/nodedb/*.c examples/nodedb/commands/*.c | grep -v -e /nodedb.c -e /demo.c)
    for room in $rooms; do
        if $CC $COMMON_FLAGS -fsyntax-only "$room" >"$OUT/little.log" 2>&1
        then ok "$room alone"
        else fail "$room alone"; head -20 "$OUT/little.log" >&2; fi
    done
    found=$(too_long examples/tiny.c examples/nodedb/nodedb.c examples/nodedb/*.h $rooms)
    if [ -z "$found" ]; then ok "no room over 700 lines, no function over 60"; else fail "too long: $found"; fi
    found=$(grep -n 'nodedb__\|NODEDB_[A-Z]*__' examples/tiny.c examples/nodedb/*.[ch] examples/nodedb/commands/*.c ||
        true)
    if [ -z "$found" ]; then ok "the database uses the public API only"; else fail "private names: $found"; fi
    found=$(lost_names)
    if [ -z "$found" ]; then ok "what the database's README names exists"; else fail "missing names: $found"; fi
}

# ---- fuzzing -------------------------------------------------------------------------------------------------------

verb_fuzz() {
    [ $# -ge 1 ] || die "fuzz NAME [SECONDS]: one of $(names_in tests/fuzz/fuzz_)"
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
    "build/fuzz_$1" -max_total_time="${2:-60}" -timeout=20 -rss_limit_mb=4096 -artifact_prefix=build/fuzz/ \
        "build/fuzz/$1" $seeds
}

# ---- other machines ------------------------------------------------------------------------------------------------

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
    CFLAGS="${CFLAGS:-} -static -DSLOW=1" # SLOW: less data, as an emulator takes its time
    case $arch in arm) CFLAGS="$CFLAGS -Wno-psabi" ;; esac
    # not prefetch: the emulator keeps madvise from the kernel
    [ $# -gt 0 ] || set -- common wal wal_read wal_cipher wal_types mem tpc tpc_calls tpc_faults tpc_watch vamana \
        vamana_kernels
    build examples/nodedb/nodedb.c $(for n in "$@"; do echo "tests/test_$n.c"; done)
    run_tests "$@"
    totals
}
