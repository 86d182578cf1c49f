package("nodedb")
    set_kind("library", {headeronly = true})
    set_homepage("https://github.com/@REPO@")
    set_description("Single-file C99 libraries: durable log, memory governor, thread per core, vector index, prefetch")
    set_license("MIT OR Unlicense")

    add_urls("@URL@")
    add_versions("@VERSION@", "@SHA256@")

    add_configs("liburing", {description = "Read and write through io_uring.", default = true, type = "boolean"})
    add_configs("jemalloc", {description = "Arenas; jemalloc then is the program's malloc.", default = false,
                             type = "boolean"})

    add_syslinks("pthread", "m")

    on_load(function (package)
        for _, name in ipairs({"liburing", "jemalloc"}) do
            if package:config(name) then
                package:add("deps", name)
            else
                package:add("defines", "NODEDB_NO_" .. name:upper())
            end
        end
    end)

    on_install("linux", function (package)
        os.cp("nodedb_*.h", package:installdir("include"))
    end)

    on_test(function (package)
        assert(package:check_csnippets({test = [[
            #define NODEDB_WAL_IMPLEMENTATION
            #include <nodedb_wal.h>
            int test(void) { nodedb_error err; return nodedb_wal_open(NULL, &err) == NULL; }
        ]]}, {configs = {languages = "c99"}}))
    end)
