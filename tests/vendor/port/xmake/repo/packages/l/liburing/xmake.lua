-- A stand-in for the package liburing: the system's.
package("liburing")
    set_kind("library")
    on_fetch(function (package) return {links = "uring"} end)
