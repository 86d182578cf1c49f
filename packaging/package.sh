# How the headers leave this repository: the verbs `amalgamate`, `install`, `size` and `ports`. build.sh reads this file
# when one of them is asked for. It uses build.sh's functions and variables, and is no program of its own.
#
#   what a header needs   its libraries, and the macros that do without them
#   amalgamate            any choice of headers, or the database, as one .c file and one .h file
#   install               headers, pkg-config files and a CMake package, below a prefix
#   size                  what each header adds to a stripped program
#   ports                 a release's archive, and the files that package managers take for it

ALL_NAMES="wal mem tpc vamana prefetch"

version_of() { sed -n 's/^#define NODEDB_VERSION "\(.*\)"/\1/p' "$1"; }

# What a header is, in one line: its first line without the name, the version and the licence.
summary_of() {
    sed -n '1{s|^/\* nodedb_[a-z]*\.h - v[0-9.]* - ||; s|[-,; ]*public domain.*||; p;}' "nodedb_$1.h"
}

upper() { echo "$1" | tr '[:lower:]' '[:upper:]'; }

# ---- what a header needs -------------------------------------------------------------------------------------------

# needs_of NAME...: what a program that implements these headers links: sets `packages` (that pkg-config knows),
# `libraries`, and `defines`, which do without what was refused.
needs_of() {
    packages="" libraries="" defines=""
    case " $* " in *" wal "* | *" vamana "* | *" prefetch "*)
        if [ -n "${NODEDB_NO_LIBURING:-}" ]; then defines="-DNODEDB_NO_LIBURING"; else packages="liburing"; fi ;;
    esac
    case " $* " in *" mem "*)
        if [ -n "${NODEDB_NO_JEMALLOC:-}" ]; then defines="$defines -DNODEDB_NO_JEMALLOC"
        else packages="$packages jemalloc"; fi ;;
    esac
    case $packages in *liburing*) libraries="-luring" ;; esac
    case $packages in *jemalloc*) libraries="$libraries -ljemalloc" ;; esac
    system="-lpthread"
    case " $* " in *" vamana "*) system="-lpthread -lm" ;; " prefetch ") system="" ;; esac
    libraries=$(echo $libraries $system) defines=$(echo $defines) packages=$(echo $packages)
}

# names_of ARGUMENT...: the headers that were asked for, as `wal`, `nodedb_wal` or `nodedb_wal.h`.
names_of() {
    for argument in "$@"; do
        name=${argument#nodedb_}
        name=${name%.h}
        case " $ALL_NAMES " in *" $name "*) echo "$name" ;; *) die "there is no header nodedb_$name.h" ;; esac
    done
}

# ---- amalgamate ----------------------------------------------------------------------------------------------------

# heading FILE "WHAT IT IS" COMMAND CONTENTS: the comment at the top of an amalgamated file.
heading() {
    cat <<END
/* $1 - NodeDB $(version_of nodedb_wal.h), amalgamated - public domain or MIT, as you prefer
 *
 * $2 Made by \`./build.sh amalgamate\`; do not edit.
 *
 * Compile:
 *     $3
 *
 * It contains:
$(echo "$4" | sed 's/^/ *     /')
 */
END
}

# contents_of NAME...: a line for each header.
contents_of() { for n in "$@"; do printf '%-20s %s\n' "nodedb_$n.h" "$(summary_of "$n")"; done; }

# declarations_of NAME: the header without its implementation, which stands between two lines that this looks for.
declarations_of() {
    awk -v macro="NODEDB_$(upper "$1")_IMPLEMENTATION" '
        $0 ~ "^#ifdef " macro "$" || $0 ~ "^#if defined\\(" macro "\\)" { inside = 1; begun++ }
        !inside { print }
        inside && $0 ~ "^#endif /\\* " macro " \\*/" { inside = 0; ended++ }
        END { exit begun == 1 && ended == 1 ? 0 : 1 }' "nodedb_$1.h" ||
        die "nodedb_$1.h: where its implementation begins and ends is not found"
}

# amalgamate_headers NAME...: nodedb.h declares, nodedb.c implements and needs no other file.
amalgamate_headers() {
    needs_of "$@"
    command_line="$(echo $CC -std=c99 -O2 $defines -o app app.c nodedb.c $libraries)"
    contents=$(contents_of "$@")
    {
        heading nodedb.h "The declarations; a program includes this file." "$command_line" "$contents"
        for n in "$@"; do declarations_of "$n"; done
    } >"$AMALGAM/nodedb.h"
    {
        heading nodedb.c "The implementation. nodedb.h declares what is in it." "$command_line" "$contents"
        for n in "$@"; do
            echo "#define NODEDB_$(upper "$n")_IMPLEMENTATION"
            cat "nodedb_$n.h"
        done
    } >"$AMALGAM/nodedb.c"
    proof="$CC -std=c99 -O2 $defines -c -o $AMALGAM/elsewhere/nodedb.o $AMALGAM/nodedb.c"
}

# paste FILE: the file with everything of ours that it includes in the place of the #include, each file once. stb_ds.h
# is pasted as often as it is included: it has a guard, and its implementation comes with the second time.
paste_all() {
    awk -v stb="$STB_DIR" '
        # where a file that another one includes is: ours at the top, the rooms beside it or above
        function place(name) {
            if (name ~ /^nodedb_[a-z]+\.h$/) return name
            if (name == "stb_ds.h") return stb "/" name
            if (name == "../db.h") return "examples/nodedb/db.h"
            return "examples/nodedb/" name
        }
        function paste(file,    line, part) {
            if (file in pasted && file !~ /stb_ds/) return
            pasted[file] = 1
            print "/* ---- " file " begins ---- */"
            while ((getline line < file) > 0) {
                if (line ~ /^#include "[a-z_.\/]+"/) {
                    split(line, part, "\"")
                    paste(place(part[2]))
                } else print line
            }
            close(file)
            print "/* ---- " file " ends ---- */"
        }
        BEGIN { paste(ARGV[1]) }' "$1"
}

# amalgamate_database: nodedb.c is the database, a program. With -DNODEDB_NO_MAIN it is a function, which nodedb.h
# declares, for a program that has a main() of its own.
amalgamate_database() {
    needs_of $ALL_NAMES
    command_line="$(echo $CC -std=c99 -O2 $defines -o nodedb nodedb.c $libraries)"
    paste_all examples/nodedb/nodedb.c >"$AMALGAM/body"
    rooms=$(sed -n 's|^/\* ---- examples/nodedb/\(.*\) begins ---- \*/$|\1|p' "$AMALGAM/body")
    contents=$(
        contents_of $ALL_NAMES
        printf '%-20s %s\n' stb_ds.h "$(sed -n '1{s|/\* *||; s|stb_ds.h - ||; p;}' "$STB_DIR/stb_ds.h")"
        echo "examples/nodedb: $(echo $rooms)" | fold -s -w 100 | sed 's/ *$//'
        echo "Each begins at a line \"---- FILE begins ----\"."
    )
    {
        # its functions have short names (apply, buffer_put): objcopy keeps them from the rest of the program
        heading nodedb.h "The database as a function of a program that has a main() of its own." \
            "$(echo $CC -std=c99 -O2 $defines -DNODEDB_NO_MAIN -c nodedb.c "&&" objcopy -G nodedb_main -G malloc_conf \
                nodedb.o "&&" $CC -o app app.c nodedb.o $libraries)" "$contents"
        cat <<'END'
#ifndef NODEDB_AMALGAM_H
#define NODEDB_AMALGAM_H
#ifdef __cplusplus
extern "C" {
#endif
/* Runs the database with these arguments (`--help` lists them) until SIGTERM or SIGINT. Returns the exit status. */
int nodedb_main(int argc, char **argv);
#ifdef __cplusplus
}
#endif
#endif /* NODEDB_AMALGAM_H */
END
    } >"$AMALGAM/nodedb.h"
    {
        heading nodedb.c "The whole database in one file." "$command_line" "$contents"
        printf '#ifdef NODEDB_NO_MAIN /* see nodedb.h */\n#define main nodedb_main\n'
        printf 'int nodedb_main(int argc, char **argv);\n#endif\n'
        cat "$AMALGAM/body"
    } >"$AMALGAM/nodedb.c"
    rm "$AMALGAM/body"
    proof="$CC -std=c99 -O2 -w $defines -o $AMALGAM/elsewhere/nodedb $AMALGAM/nodedb.c $libraries"
}

# amalgamate [database | HEADER...]: writes $AMALGAM/nodedb.c and nodedb.h. Sets `command_line`, which they name, and
# `proof`, which compiles nodedb.c into the folder `elsewhere`, where nothing of ours is in the way.
amalgamate() {
    rm -rf "$AMALGAM" && mkdir -p "$AMALGAM/elsewhere"
    [ $# -gt 0 ] || set -- database
    if [ "$*" = database ]; then amalgamate_database
    else
        chosen=$(names_of "$@") || exit 1
        amalgamate_headers $chosen
    fi
}

# amalgamate [database | HEADER...]: into build/amalgam, and compiles it to prove it.
verb_amalgamate() {
    install
    AMALGAM=$OUT/amalgam
    amalgamate "$@"
    $proof || die "the amalgamated file does not compile: $proof"
    say "$AMALGAM/nodedb.c: $(wc -l <"$AMALGAM/nodedb.c") lines. Compile it with:"
    say "    $command_line"
}

# ---- install -------------------------------------------------------------------------------------------------------

# pkg_config_of NAME: the implementation is compiled in the user's own program, so what it needs is public: Requires and
# Libs, and not the private ones, which are for static linking only.
pkg_config_of() {
    needs_of "$1"
    cat <<END
prefix=$prefix
includedir=\${prefix}/include

Name: nodedb_$1
Description: $(summary_of "$1")
Version: $(version_of "nodedb_$1.h")
Requires:${packages:+ $packages}
Cflags: -I\${includedir}${defines:+ $defines}
Libs:${system:+ $system}
END
}

# cmake_version_of VERSION: find_package(nodedb 0.2) takes a release of the same minor version that is not older.
cmake_version_of() {
    cat <<END
set(PACKAGE_VERSION "$1")
if(PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION OR
   NOT "\${PACKAGE_FIND_VERSION_MAJOR}.\${PACKAGE_FIND_VERSION_MINOR}" STREQUAL "${1%.*}")
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if(PACKAGE_FIND_VERSION STREQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
END
}

# install [PREFIX]: include/nodedb_*.h, lib/pkgconfig/nodedb_*.pc, and share/nodedb with the licence and what
# find_package(nodedb) reads; all below DESTDIR, if that is set.
verb_install() {
    prefix=${1:-/usr/local}
    case $prefix in /*) ;; *) die "install [PREFIX]: an absolute path (today: $prefix)" ;; esac
    root=${DESTDIR:-}$prefix
    command install -d "$root/include" "$root/lib/pkgconfig" "$root/share/nodedb"
    command install -m 644 $HEADERS "$root/include"
    command install -m 644 LICENSE packaging/nodedb-config.cmake packaging/nodedb.c "$root/share/nodedb"
    cmake_version_of "$(version_of nodedb_wal.h)" >"$root/share/nodedb/nodedb-config-version.cmake"
    for n in $ALL_NAMES; do pkg_config_of "$n" >"$root/lib/pkgconfig/nodedb_$n.pc"; done
    chmod 644 "$root"/lib/pkgconfig/nodedb_*.pc "$root/share/nodedb/nodedb-config-version.cmake"
    say "installed below $root: include/nodedb_*.h, lib/pkgconfig/nodedb_*.pc, share/nodedb"
}

# ---- size ----------------------------------------------------------------------------------------------------------

SMALL="-std=c99 -Os -ffunction-sections -fdata-sections -Wl,--gc-sections"

# code_and_data PROGRAM: the bytes of its sections, without the file's padding to whole pages.
code_and_data() { size "$1" | awk 'NR == 2 { print $1 + $2 }'; }

# small_program NAME...: a program that uses these headers as tests/vendor/use.h does.
small_program() {
    needs_of "$@"
    small=$OUT/size/$(echo "$*" | tr ' ' '_')
    {
        for part in "$@"; do
            printf '#define NODEDB_%s_STATIC\n#define NODEDB_%s_IMPLEMENTATION\n' "$(upper "$part")" "$(upper "$part")"
            printf '#include "nodedb_%s.h"\n' "$part"
        done
        printf '#include "use.h"\nint main(int argc, char **argv) { return argc == 2 ? use_all(argv[1]) : 2; }\n'
    } >"$small.c"
    $CC $SMALL $defines -I. -Itests/vendor -s -o "$small" "$small.c" $libraries
}

# size_row WHAT PROGRAM
size_row() {
    printf '%-10s %14d %16d\n' "$1" "$(($(code_and_data "$2") - nothing))" "$(wc -c <"$2")"
}

# size [NAME...]: of each header, all five, and the database (or of those that are named): the bytes that it adds, and
# the whole program.
verb_size() {
    install
    for what in "$@"; do case $what in all | database) ;; *) names_of "$what" >/dev/null ;; esac; done
    rm -rf "$OUT/size" && mkdir -p "$OUT/size"
    printf 'int main(void) { return 0; }\n' >"$OUT/size/nothing.c"
    $CC $SMALL -s -o "$OUT/size/nothing" "$OUT/size/nothing.c"
    nothing=$(code_and_data "$OUT/size/nothing")
    echo "# $($CC -dumpmachine), $CC $($CC -dumpversion), $SMALL -s; bytes. A program that does nothing: $nothing."
    printf '%-10s %14s %16s\n' header "code and data" "stripped program"
    for what in ${*:-$ALL_NAMES all database}; do
        case $what in
        database)
            needs_of $ALL_NAMES
            small=$OUT/size/database
            paste_all examples/nodedb/nodedb.c >"$small.c"
            $CC $SMALL -w $defines -s -o "$small" "$small.c" $libraries ;;
        all) small_program $ALL_NAMES ;;
        *) small_program "$(names_of "$what")" ;;
        esac
        size_row "$what" "$small"
    done
}

# ---- ports ---------------------------------------------------------------------------------------------------------

# ports [URL [OWNER/NAME]]: build/ports/nodedb-VERSION.tar.gz, the same bytes whenever and wherever it is made from the
# same files, and the port files for it. URL is where the archive will lie (by default where it lies now, to try the
# ports), OWNER/NAME the repository. Upload the archive with the tag, then hand the ports in.
verb_ports() {
    release=nodedb-$(version_of nodedb_wal.h) ports=$PWD/$OUT/ports
    rm -rf "$ports" && mkdir -p "$ports/$release"
    cp -R $HEADERS build.sh LICENSE README.md CHANGELOG.md packaging "$ports/$release/"
    chmod -R u=rwX,go=rX "$ports/$release"
    (cd "$ports" && tar --sort=name --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - "$release" |
        gzip -n9 >"$release.tar.gz")
    rm -rf "${ports:?}/$release"
    for port in meson vcpkg conan xmake clib; do cp -R "packaging/$port" "$ports/"; done
    sha256=$(sha256sum "$ports/$release.tar.gz") sha512=$(sha512sum "$ports/$release.tar.gz")
    find "$ports"/*/ -type f | while read -r file; do
        sed -i "s|@VERSION@|${release#nodedb-}|g; s|@URL@|${1:-file://$ports/$release.tar.gz}|g
            s|@REPO@|${2:-OWNER/nodedb}|g; s|@SHA256@|${sha256%% *}|g; s|@SHA512@|${sha512%% *}|g" "$file"
    done
    say "$OUT/ports: $release.tar.gz, and the ports $(cd "$ports" && echo */)"
}
