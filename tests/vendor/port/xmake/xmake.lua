add_repositories("release repo")
add_requires("nodedb")

target("app")
    set_kind("binary")
    set_languages("c99")
    add_includedirs("..")
    add_files("app.c")
    add_packages("nodedb")
