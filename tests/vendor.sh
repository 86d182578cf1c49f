# The checks `amalgamate` and `vendor`: every way in which a project may take the headers in. tests/check.sh's verb
# `check` reads this file; it uses build.sh's, check.sh's and packaging/package.sh's functions and variables.
#
# A way is a folder of tests/vendor/ and a function here that builds and runs it. It works in build/vendor/WAY, on a
# copy of that folder with the headers in nodedb/ beside it, as a project would have them, so nothing else of ours is
# in sight. Its program uses the log and the index for real (tests/vendor/use.h), and ends with 0 if all was right.

VENDOR_CFLAGS="-O0 -Wall -Wextra -pedantic -Werror" # what is tested is that it builds and works, not how fast

# ---- the frame -----------------------------------------------------------------------------------------------------

# run_in_vendor WAY: runs vendor_WAY in a folder that holds the way's files and the headers, and nothing else. Notes the
# status, the CPU time and what was printed beside that folder.
run_in_vendor() {
    way=${1%%_*} at=$PWD/build/vendor/$1
    mkdir -p "$at"
    [ ! -d "tests/vendor/$way" ] || cp -R "tests/vendor/$way/." "$at"
    mkdir "$at/nodedb" "$at/data"
    cp $HEADERS "$at/nodedb/" && cp -R packaging "$at/nodedb/"
    cp tests/vendor/use.h "$at/"
    set +e # in a condition, as with `|| status=$?`, the way would go on after a command that failed
    (set -e; ROOT=$PWD; cd "$at"; needs_of wal vamana; "vendor_$1"; times >"$at.times") >"$at.log" 2>&1
    echo $? >"$at.status"
    set -e
}

# checked WHAT: a line of a way's log about something that it has proven.
checked() { echo "checked: $*"; }

# refuse_output COMMAND...: fails, and shows what was printed, if it printed anything.
refuse_output() {
    found=$("$@" || true)
    [ -z "$found" ] || { echo "unexpected, of $*:"; echo "$found"; return 1; }
}

# run_app PROGRAM: in a data directory that is empty.
run_app() {
    rm -rf data && mkdir data
    "$@" data
}

# cpu_seconds TIMES: user and system time of a shell's children, as `times` has written it.
cpu_seconds() { awk 'NR == 2 { split($1 $2, t, /[ms]/); printf "%.1f", t[1] * 60 + t[2] + t[3] * 60 + t[4] }' "$1"; }

report_ways() {
    for way in "$@"; do
        log=build/vendor/$way
        proven=$(sed -n 's/^checked: /, /p' "$log.log" | tr -d '\n')
        if [ "$(cat "$log.status")" = 0 ]
        then ok "vendored: $way ($(cpu_seconds "$log.times") s of CPU)$proven"
        else fail "vendored: $way"; tail -30 "$log.log" >&2; fi
    done
}

check_vendor() {
    install make:make cmake:cmake meson:meson pkg-config:pkg-config
    ways="make cxx cmake_subdirectory cmake_fetch cmake_installed meson pkgconfig shared versions lto sections size"
    rm -rf build/vendor && mkdir -p build/vendor
    run_in_vendor ports # cmake_fetch and meson take its archive
    in_pairs run_in_vendor $ways # never in a condition: run_in_vendor says why
    report_ways ports $ways
    check_ports
}

# ---- each way ------------------------------------------------------------------------------------------------------

# A release's archive is the same bytes when it is made again, and nothing in the port files is left to fill in.
vendor_ports() {
    cd "$ROOT"
    verb_ports
    sha256sum build/ports/*.tar.gz >"$at/first"
    verb_ports
    sha256sum -c "$at/first"
    refuse_output grep -rI '@[A-Z0-9]*@' build/ports
}

# Plain C, with make: an implementation is a file of its own.
vendor_make() {
    make -s CC="$CC" CFLAGS="-std=c99 $VENDOR_CFLAGS" CPPFLAGS="-Inodedb $defines" LDLIBS="$libraries"
    run_app ./app
}

# C++17 without exceptions and RTTI. It links as a C program: the headers take nothing of the C++ library.
vendor_cxx() {
    flags="-std=c++17 -fno-exceptions -fno-rtti $VENDOR_CFLAGS -Inodedb $defines"
    g++ $flags -c app.cpp
    g++ $flags -c nodedb.cpp
    "$CC" -o app app.o nodedb.o $libraries
    run_app ./app
    checked "no C++ library needed"
}

# cmake_build FOLDER: configures and builds it below build/.
cmake_build() {
    liburing=AUTO
    [ -z "${NODEDB_NO_LIBURING:-}" ] || liburing=OFF
    cmake -S "$1" -B build -DCMAKE_C_COMPILER="$CC" -DCMAKE_C_FLAGS="$VENDOR_CFLAGS" -DNODEDB_LIBURING=$liburing
    cmake --build build
}

# CMake, add_subdirectory: a target for each header, and nodedb::compiled.
vendor_cmake_subdirectory() {
    cmake_build subdirectory
    for app in wal mem tpc prefetch compiled; do run_app "build/$app"; done
}

# CMake, FetchContent from the release's archive, and nodedb::compiled as a shared library.
vendor_cmake_fetch() {
    cp "$ROOT"/build/ports/nodedb-*.tar.gz nodedb.tar.gz
    cmake_build fetch
    run_app build/app
}

# CMake, find_package of what `./build.sh install` has installed; a newer or an older minor version is refused.
vendor_cmake_installed() {
    (cd "$ROOT" && DESTDIR="" verb_install "$at/prefix")
    export CMAKE_PREFIX_PATH="$at/prefix"
    cmake_build installed
    run_app build/app
    sed 's/find_package(nodedb [0-9.]*/find_package(nodedb 0.1/' installed/CMakeLists.txt >CMakeLists.txt
    if cmake -S . -B old >old.log 2>&1; then echo "find_package(nodedb 0.1) is content"; return 1; fi
    grep -q "considered but not accepted" old.log
    checked "another minor version refused"
}

# Meson: a subproject that the release's wrap brings, found by dependency() through override_dependency.
vendor_meson() {
    mkdir -p subprojects/packagecache
    cp -R "$ROOT/build/ports/meson/nodedb.wrap" subprojects/
    cp "$ROOT"/build/ports/nodedb-*.tar.gz subprojects/packagecache/
    mkdir -p subprojects/packagefiles/nodedb
    cp "$ROOT"/packaging/meson/meson*.* subprojects/packagefiles/nodedb/
    liburing=auto
    [ -z "${NODEDB_NO_LIBURING:-}" ] || liburing=disabled
    CC=$CC meson setup build --wrap-mode=forcefallback -Dbuildtype=plain -Dnodedb:liburing=$liburing
    ninja -C build
    for app in wal mem tpc prefetch compiled; do run_app "build/$app"; done
}

# `./build.sh install` into a DESTDIR, and what pkg-config says of each header: its program links with that alone.
vendor_pkgconfig() {
    (cd "$ROOT" && DESTDIR="$at/root" verb_install /opt/nodedb)
    test ! -e /opt/nodedb/include/nodedb_wal.h
    export PKG_CONFIG_PATH="$at/root/opt/nodedb/lib/pkgconfig"
    for name in $ALL_NAMES; do
        flags=$(pkg-config --define-variable=prefix="$at/root/opt/nodedb" --cflags --libs "nodedb_$name")
        printf '#define NODEDB_%s_IMPLEMENTATION\n' "$(upper "$name")" >"$name.c"
        printf '#include <nodedb_%s.h>\n#include "use.h"\n' "$name" >>"$name.c"
        echo 'int main(int argc, char **argv) { return argc == 2 ? use_all(argv[1]) : 2; }' >>"$name.c"
        mkdir "$name.d"
        "$CC" -std=c99 $VENDOR_CFLAGS -I. -Wl,--no-undefined -o "$name" "$name.c" $flags
        "./$name" "$name.d"
        [ "$(pkg-config --modversion "nodedb_$name")" = "$(version_of "nodedb/nodedb_$name.h")" ]
    done
    grep -q '^prefix=/opt/nodedb$' "$PKG_CONFIG_PATH/nodedb_wal.pc"
    checked "each header with its own libraries alone"
}

# A shared library with hidden visibility that hands on the log's functions and keeps the index to itself.
vendor_shared() {
    flags="-std=c99 $VENDOR_CFLAGS -fPIC -fvisibility=hidden -Inodedb $defines"
    "$CC" $flags -shared -Wl,--no-undefined -o libstore.so store.c $libraries
    "$CC" -std=c99 $VENDOR_CFLAGS -Inodedb -o app app.c -L. -lstore -Wl,-rpath,"$at"
    run_app ./app
    nm -D --defined-only libstore.so | awk '{ print $3 }' >exported
    grep -q '^nodedb_wal_open$' exported
    grep -q '^store_nearest$' exported
    refuse_output grep -v -e '^nodedb_wal_' -e '^store_' exported
    checked "$(wc -l <exported) functions visible, all of the log or its own"
}

# Two versions of one header in one program: STATIC keeps each to its file. The other version has another struct, so a
# call that went astray would be seen. Both in one file are refused.
vendor_versions() {
    mkdir other
    sed -e 's/^#define NODEDB_VERSION ".*"/#define NODEDB_VERSION "0.0.1"/' \
        -e 's/^#define NODEDB_VERSION_NUMBER [0-9]*/#define NODEDB_VERSION_NUMBER 1/' \
        -e 's/NODEDB_VERSION_NUMBER != [0-9]*/NODEDB_VERSION_NUMBER != 1/' \
        -e 's/^typedef struct nodedb_wal_config {/&\n    uint64_t of_the_other_version[4];/' \
        nodedb/nodedb_wal.h >other/nodedb_wal.h
    "$CC" -std=c99 $VENDOR_CFLAGS $defines -Inodedb -I. -c this.c
    "$CC" -std=c99 $VENDOR_CFLAGS $defines -Iother -I. -c -o other.o that.c
    "$CC" -std=c99 $VENDOR_CFLAGS -o app app.c this.o other.o $libraries
    mkdir -p data-of-the-other
    run_app ./app
    refuse_output sh -c "nm -g --defined-only this.o other.o | grep nodedb"
    printf '#include "nodedb/nodedb_mem.h"\n#include "other/nodedb_wal.h"\n' >both.c
    if "$CC" -std=c99 -c both.c 2>both.log; then echo "two releases in one file are let through"; return 1; fi
    grep -q 'of different releases' both.log
    checked "no symbol of either is visible, two releases in one file refused"
}

# Link-time optimisation: what several files say of one function or struct must agree.
vendor_lto() {
    flags="-std=c99 -O1 -flto=1 -Wall -Wextra -pedantic -Werror -Wlto-type-mismatch -Inodedb $defines"
    for file in app log index; do "$CC" $flags -c "$file.c"; done
    "$CC" $flags -o app app.o log.o index.o $libraries
    run_app ./app
}

# -Os with a section for each function: what a program does not call is not in it.
vendor_sections() {
    flags="-std=c99 -Os -Wall -Wextra -pedantic -Werror -ffunction-sections -fdata-sections -Inodedb $defines"
    "$CC" $flags -c app.c
    "$CC" -o whole app.o $libraries
    "$CC" -Wl,--gc-sections -o app app.o $libraries
    run_app ./app
    nm app >symbols
    grep -q ' nodedb_wal_replay$' symbols
    refuse_output grep -e ' nodedb_wal_verify$' -e ' nodedb_vamana_build$' symbols
    strip app whole
    [ "$(wc -c <app)" -lt "$(wc -c <whole)" ]
    checked "stripped $(wc -c <app) bytes instead of $(wc -c <whole)"
}

# The table of sizes, of one header.
vendor_size() {
    (cd "$ROOT" && OUT=$at && verb_size prefetch) >table
    awk '$1 == "prefetch" && $2 > 1000 && $3 > $2 { rows++ } END { exit rows == 1 ? 0 : 1 }' table
}

# ---- the amalgamation ----------------------------------------------------------------------------------------------

# amalgam ARGUMENT...: nodedb.c and nodedb.h alone, in this folder.
amalgam() {
    rm -rf nodedb use.h
    (cd "$ROOT" && AMALGAM=$at/made && amalgamate "$@")
    mv made/nodedb.[ch] .
}

# printed_command FILE: the one command that stands at its top.
printed_command() { sed -n 's/^ \*     \(.* -o .*\)$/\1/p' "$1"; }

# make_app: a program that uses what nodedb.h declares.
make_app() {
    cp "$ROOT/tests/vendor/use.h" .
    printf '#include "nodedb.h"\n#include "use.h"\n' >app.c
    echo 'int main(int argc, char **argv) { return argc == 2 ? use_all(argv[1]) : 2; }' >>app.c
}

# The database: the command at the top of nodedb.c, as it stands there.
vendor_amalgam_database() {
    amalgam database
    $(printed_command nodedb.c)
    ./nodedb --help >help
    grep -q -e '--dir' help
}

# The database without liburing and jemalloc, as a function in a program that has its own main(), and names of its own
# that the database has too.
vendor_amalgam_bare() {
    NODEDB_NO_LIBURING=1 NODEDB_NO_JEMALLOC=1
    amalgam database
    cat >app.c <<'END'
#include "nodedb.h"
int apply(void); /* the database has one too */
int apply(void) { return 0; }
int main(void) {
    char name[] = "nodedb", help[] = "--help", *arguments[] = {name, help, 0};
    return apply() + nodedb_main(2, arguments);
}
END
    sh -e -c "$(printed_command nodedb.h | sed 's/-O2/-O0/')"
    ./app >help
    grep -q -e '--dir' help
}

# The database as one static program with musl, which has no libraries but its own: at most 500,000 bytes, stripped. Its
# compiler does not look for the kernel's headers where Debian has them.
vendor_amalgam_musl() {
    NODEDB_NO_LIBURING=1 NODEDB_NO_JEMALLOC=1
    amalgam database
    needs_of $ALL_NAMES
    mkdir kernel
    for folder in linux asm-generic; do ln -s "/usr/include/$folder" kernel/; done
    ln -s "/usr/include/$(gcc -dumpmachine)/asm" kernel/
    musl-gcc $SMALL -w -static -s -idirafter kernel $defines -o nodedb nodedb.c $libraries
    ./nodedb --help >help
    grep -q -e '--dir' help
    [ "$(wc -c <nodedb)" -le 500000 ]
    checked "$(wc -c <nodedb) bytes"
}

# Two headers: the command at the top of nodedb.h. It is a C++ header as well.
vendor_amalgam_headers() {
    amalgam wal nodedb_vamana.h
    make_app
    $(printed_command nodedb.h)
    run_app ./app
    g++ -std=c++11 -Wall -Wextra -pedantic -Werror -fsyntax-only -x c++ app.c
    refuse_output grep -n 'pthread_mutex_lock' nodedb.h
    checked "nodedb.h holds no implementation"
}

# The other three, without liburing and jemalloc.
vendor_amalgam_bare_headers() {
    NODEDB_NO_LIBURING=1 NODEDB_NO_JEMALLOC=1
    amalgam mem tpc prefetch
    make_app
    $(printed_command nodedb.c)
    run_app ./app
    refuse_output sh -c "ldd app | grep -e uring -e jemalloc"
}

check_amalgamate() {
    install musl-gcc:musl-tools
    ways="amalgam_database amalgam_musl amalgam_bare amalgam_headers amalgam_bare_headers"
    mkdir -p build/vendor
    for way in $ways; do rm -rf "build/vendor/$way"; done
    in_pairs run_in_vendor $ways
    report_ways $ways
}

# ---- package managers ----------------------------------------------------------------------------------------------

# Each port with its tool, where the tool is there. None of them is in Debian, and in use they fetch from the network,
# so the checks do not install them. The archive is the one that `ports` has just made. What a port needs beside it is a
# stand-in (tests/vendor/port): a package liburing that is the system's.
#
#     conan, xmake    pip install conan xmake-wheel
#     vcpkg           VCPKG_ROOT, a copy of its repository with the program in it
#     clib            takes GitHub's address only, so it cannot be tried here
check_ports() {
    ways=""
    if command -v conan >/dev/null 2>&1; then ways="$ways port_conan"; fi
    if command -v xmake >/dev/null 2>&1; then ways="$ways port_xmake"; fi
    if [ -x "${VCPKG_ROOT:-}/vcpkg" ]; then ways="$ways port_vcpkg"; fi
    for way in $ways; do run_in_vendor "$way"; done # one after the other: two CPUs are for the compilers
    report_ways $ways
    say "ports tried with their tools:${ways:- none}"
}

# Conan builds the package and its test_package, with liburing and without.
vendor_port_conan() {
    export CONAN_HOME="$at/home"
    conan profile detect
    conan export conan_liburing
    version=$(version_of nodedb/nodedb_wal.h)
    for liburing in True False; do
        conan create "$ROOT/build/ports/conan" --version "$version" --no-remote --build=missing \
            -o "nodedb/*:with_liburing=$liburing"
    done
}

# xmake installs the package, and builds a program with it.
vendor_port_xmake() {
    export XMAKE_ROOT=y XMAKE_GLOBALDIR="$at/global" XMAKE_COLORTERM=nocolor
    mkdir -p xmake/repo/packages/n/nodedb
    cp "$ROOT/build/ports/xmake/xmake.lua" xmake/repo/packages/n/nodedb/
    cd xmake
    xmake global --network=private
    xmake config --yes
    xmake build
    mkdir data
    "$(find build -type f -name app)" data
}

# vcpkg installs the port without a warning, and a CMake project finds it.
vendor_port_vcpkg() {
    export VCPKG_DISABLE_METRICS=1 VCPKG_FORCE_SYSTEM_BINARIES=1
    cp -R "$ROOT/build/ports/vcpkg" vcpkg_ports/nodedb
    "$VCPKG_ROOT/vcpkg" install nodedb --overlay-ports=vcpkg_ports --x-install-root="$at/installed" \
        --x-buildtrees-root="$at/trees" --x-packages-root="$at/packages" --downloads-root="$at/downloads" \
        --binarysource=clear | tee vcpkg.log
    refuse_output grep 'warning' vcpkg.log
    cp -R "$ROOT/tests/vendor/cmake" .
    cp use.h cmake/
    cmake -S cmake/installed -B build -DCMAKE_TOOLCHAIN_FILE="$VCPKG_ROOT/scripts/buildsystems/vcpkg.cmake" \
        -DVCPKG_MANIFEST_MODE=OFF -DVCPKG_INSTALLED_DIR="$at/installed" -DVCPKG_TARGET_TRIPLET=x64-linux
    cmake --build build
    run_app build/app
    PKG_CONFIG_PATH=$at/installed/x64-linux/lib/pkgconfig pkg-config --cflags --libs nodedb_wal
}
