from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.files import copy, get
from conan.tools.layout import basic_layout

required_conan_version = ">=2.0"


class NodedbConan(ConanFile):
    name = "nodedb"
    description = "Single-file C99 libraries: durable log, memory governor, thread per core, vector index, prefetch"
    license = "MIT OR Unlicense"
    url = "https://github.com/conan-io/conan-center-index"
    homepage = "https://github.com/@REPO@"
    topics = ("wal", "vector-search", "database", "io-uring", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"with_liburing": [True, False], "with_jemalloc": [True, False]}
    default_options = {"with_liburing": True, "with_jemalloc": False}
    no_copy_source = True

    def layout(self):
        basic_layout(self, src_folder="src")

    def requirements(self):
        if self.options.with_liburing:
            self.requires("liburing/[>=2.3 <3]")
        if self.options.with_jemalloc:
            self.requires("jemalloc/[>=5.2 <6]")

    def package_id(self):
        self.info.clear()

    def validate(self):
        if self.settings.os != "Linux":
            raise ConanInvalidConfiguration("nodedb needs Linux")

    def source(self):
        get(self, **self.conan_data["sources"][self.version], strip_root=True)

    def package(self):
        copy(self, "LICENSE", self.source_folder, f"{self.package_folder}/licenses")
        copy(self, "nodedb_*.h", self.source_folder, f"{self.package_folder}/include")

    def package_info(self):
        # The implementation is compiled in the consumer's own file, so each header brings what that file links.
        needs = {"wal": ["liburing", "pthread"], "mem": ["jemalloc", "pthread"], "tpc": ["pthread"],
                 "vamana": ["liburing", "pthread", "m"], "prefetch": ["liburing"]}
        for name, libraries in needs.items():
            component = self.cpp_info.components[name]
            component.bindirs = []
            component.libdirs = []
            component.set_property("cmake_target_name", f"nodedb::{name}")
            component.set_property("pkg_config_name", f"nodedb_{name}")
            for library in libraries:
                if library in ("pthread", "m"):
                    component.system_libs.append(library)
                elif self.options.get_safe(f"with_{library}"):
                    component.requires.append(f"{library}::{library}")
                else:
                    component.defines.append(f"NODEDB_NO_{library.upper()}")
